"""Write the C of the vector formulas.

    python tools/formulas.py

calls each formula of fastbp/maths/formulas/ with vectors that record the operations, and writes
csrc/core/formulas.h in the vocabulary of csrc/core/vec.h and csrc/core/elementary.h. A formula that
has a name in C becomes a function of that name; what a function uses once is printed in place, what
it uses more often gets a variable.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from textwrap import wrap
from typing import Any

from fastbp.maths.activations import TABLE
from fastbp.maths.expressions import Expression, in_order
from fastbp.maths.formulas import activations, elementary, general, losses, optimizers
from fastbp.maths.formulas.vector import Reduced, TwoWords, Vector

ROOT = Path(__file__).resolve().parent.parent
C_FILE = ROOT / "csrc" / "core" / "formulas.h"

Arguments = list[tuple[str, str]]  # names and types

STRUCTS: dict[str, Any] = {"TwoWords": TwoWords, "Reduced": Reduced}
C_TYPES = {"V": "vec", "float": "real", "TwoWords": "two_words", "Reduced": "reduced"}

SCALARS = {"constant", "number", "scalar"}  # what is the same in all lanes
INTEGERS = {"bits", "shift_left", "shift_right", "and", "xor"}
BINARY = {  # operation: operator, precedence
    "add": ("+", 5), "subtract": ("-", 5), "multiply": ("*", 6), "divide": ("/", 6),
    "shift_left": ("<<", 4), "shift_right": (">>", 4), "and": ("&", 3), "xor": ("^", 2),
}  # fmt: skip
FUNCTIONS = {"abs": "vabs", "sqrt": "vsqrt", "with_sign_of": "with_sign_of", "over": "divide"}


nodes: dict[tuple[Any, ...], Expression] = {}


def node(operation: str, *arguments: Expression, value: Any = None) -> Expression:
    """The node of an operation, the same for the same arguments."""
    key = operation, value.hex() if isinstance(value, float) else value, *map(id, arguments)
    return nodes.setdefault(key, Expression(operation, arguments, value))


class Symbol(Vector):
    """A vector, a mask or integers, as the node that computes it."""

    __slots__ = ("node",)

    def __init__(self, recorded: Expression):
        self.node = recorded

    def apply(self, operation: str, *operands: Any, value: Any = None) -> Symbol:
        others = map(operand_node, operands)
        return Symbol(node(operation, self.node, *others, value=value))

    def constant(self, x: Any) -> Symbol:
        return x if isinstance(x, Symbol) else Symbol(operand_node(x))

    def number(self, name: str) -> Symbol:
        return Symbol(node("number", value=name))

    def polynomial(self, name: str) -> Symbol:
        return self.apply("polynomial", value=name)

    def in_c_where(self, mask: Any, name: str, otherwise: Any) -> Symbol:
        return self.apply("in_c_where", mask, otherwise, value=name)

    def call(self, formula: Any, arguments: tuple[Any, ...]) -> Any:
        """A call of the C function of this name."""
        parts: list[Any] = []
        for argument in arguments:
            parts += argument if isinstance(argument, tuple) else (argument,)
        recorded = node("call", *map(operand_node, parts), value=formula)
        returns = signature(formula)[1]
        if returns not in STRUCTS:
            return Symbol(recorded)
        fields = STRUCTS[returns]._fields
        return STRUCTS[returns](*(Symbol(node("field", recorded, value=f)) for f in fields))

    def __lshift__(self, places: Any) -> Symbol:
        return self.apply("shift_left", places)

    def __rshift__(self, places: Any) -> Symbol:
        return self.apply("shift_right", places)

    def __and__(self, other: Any) -> Symbol:
        return self.apply("and", other)

    def __xor__(self, other: Any) -> Symbol:
        return self.apply("xor", other)


def operand_node(operand: Any) -> Expression:
    """The node of an operand, which may be a number."""
    return operand.node if isinstance(operand, Symbol) else node("constant", value=float(operand))


def signature(formula: Any) -> tuple[Arguments, str]:
    """The names and types of a named formula's arguments, and the type of its result."""
    found = inspect.signature(formula.formula)
    return (
        [(name, p.annotation) for name, p in found.parameters.items()],
        str(found.return_annotation),
    )


def named_formulas(module: Any) -> Iterator[Any]:
    """The formulas of a module that C names and does not write itself, in the module's order."""
    for value in vars(module).values():
        if hasattr(value, "by_hand") and value.__module__ == module.__name__ and not value.by_hand:
            yield value


def symbols(arguments: Arguments) -> list[Any]:
    """What a formula is called with to record it."""
    result: list[Any] = []
    for name, kind in arguments:
        if kind in STRUCTS:
            names = [f"{name}.{field}" for field in STRUCTS[kind]._fields]
            result.append(STRUCTS[kind](*(Symbol(node("variable", value=n)) for n in names)))
        else:
            operation = "scalar" if kind == "float" else "variable"
            result.append(Symbol(node(operation, value=name)))
    return result


class Body:
    """The statements and expressions of some results."""

    def __init__(self, roots: Iterable[Any]):
        nodes = list(map(operand_node, roots))
        order = in_order(nodes)
        self._users: dict[Expression, list[str]] = {at: [] for at in order}
        for at in order:
            for argument in at.arguments:
                self._users[argument].append(at.operation)
        for at in nodes:
            self._users[at].append("return")
        self._variables: dict[Expression, str] = {}
        self.lists = {at.value for at in order if at.operation == "polynomial"}
        self.inputs = {str(at.value).partition(".")[0] for at in order if not at.arguments}
        self.statements: list[str] = []
        for at in order:
            if self._needs_variable(at):
                kind, value = self._kind(at), self._print(at, 0)
                self._variables[at] = f"t{len(self._variables)}"
                self.statements.append(f"{kind} {self._variables[at]} = {value};")
        self.results = list(map(self.vector, nodes))

    def _needs_variable(self, at: Expression) -> bool:
        if at.operation in ("variable", "field", "less", "greater", "equal") or is_scalar(at):
            return False
        if at.operation == "call" and signature(at.value)[1] in STRUCTS:
            return True
        users = self._users[at]
        if at.operation == "multiply" and set(users) <= {"add", "subtract"}:
            return False  # each may be fused with it
        return len(users) > 1

    def _kind(self, at: Expression) -> str:
        if at.operation == "call":
            return C_TYPES[signature(at.value)[1]]
        return "ivec" if is_integer(at) else "vec"

    def vector(self, at: Expression) -> str:
        """An argument of a function."""
        text = self._print(at, 0)
        return f"splat({text})" if is_scalar(at) else text

    def _print(self, at: Expression, precedence: int) -> str:
        """An operand in an expression whose operator binds so tightly."""
        if at in self._variables:
            return self._variables[at]
        operation, arguments = at.operation, at.arguments
        if operation in ("variable", "scalar"):
            return at.value
        if operation == "number":
            return f"NUMBER({at.value})"
        if operation == "constant":
            return c_number(at.value)
        if operation in BINARY:
            sign, binding = BINARY[operation]
            within = (binding, binding + 1) if binding >= 5 else (7, 7)
            left, right = map(self._print, arguments, within)
            text = f"{left} {sign} {right}"
            if is_scalar(at):  # which C would compute in double
                return f"(real)({text})"
            return text if binding >= precedence else f"({text})"
        if operation == "negative":
            text = f"-{self._print(arguments[0], 8)}"
            return text if precedence <= 8 else f"({text})"
        if operation == "field":
            return f"{self._print(arguments[0], 9)}.{at.value}"
        if operation == "bits":
            scalar = is_scalar(arguments[0])
            return f"(ivec){self.vector(arguments[0]) if scalar else self._print(arguments[0], 9)}"
        if operation == "from_bits":
            return f"(vec){self._print(arguments[1], 8)}"
        if operation == "polynomial":
            return f"POLYNOMIAL({at.value.lower()}_q, {self.vector(arguments[0])})"
        if operation == "at_least":
            return f"vmax({self.vector(arguments[1])}, {self.vector(arguments[0])})"
        if operation == "at_most":
            return f"vmin({self.vector(arguments[1])}, {self.vector(arguments[0])})"
        if operation == "where":
            yes, condition, no = arguments
            how = "if_equal" if condition.operation == "equal" else "if_greater"
            return f"{how}({self._compared(condition)}, {self.vector(yes)}, {self.vector(no)})"
        if operation == "in_c_where":
            x, condition, otherwise = arguments
            compared = self._compared(condition)
            return (
                f"in_c_where_greater({compared}, {at.value}, "
                f"{self.vector(x)}, {self.vector(otherwise)})"
            )
        if operation == "call":
            return self._call(at)
        return f"{FUNCTIONS[operation]}({', '.join(map(self.vector, arguments))})"

    def _compared(self, condition: Expression) -> str:
        """The sides of a comparison, the larger one first."""
        left, right = map(self.vector, condition.arguments)
        return f"{right}, {left}" if condition.operation == "less" else f"{left}, {right}"

    def _call(self, at: Expression) -> str:
        """A call; the parts of a struct are next to one another among the arguments."""
        parts, texts = list(at.arguments), []
        for _, kind in signature(at.value)[0]:
            if kind == "float":
                texts.append(self._print(parts.pop(0), 0))
            elif kind in STRUCTS:
                texts.append(
                    struct(kind, [self.vector(parts.pop(0)) for _ in STRUCTS[kind]._fields])
                )
            else:
                texts.append(self.vector(parts.pop(0)))
        return f"{at.value.name}({', '.join(texts)})"


class Function:
    """The text of one C function."""

    def __init__(self, name: str, arguments: Arguments, returns: str, formula: Callable):
        parts = getattr(formula, "formula", formula)(*symbols(arguments))
        body = Body(parts if returns in STRUCTS else (parts,))
        self.lists, self.is_short = body.lists, not body.statements
        if not hasattr(formula, "by_hand"):  # no one calls it but the functions written here
            arguments = [(name, kind) for name, kind in arguments if name in body.inputs]
        parameters = ", ".join(f"{C_TYPES[kind]} {name}" for name, kind in arguments)
        self.call = f"{name}({', '.join(name for name, _ in arguments)})"
        self.result = struct(returns, body.results) if returns in STRUCTS else body.results[0]
        self.lines = [
            *comment((formula.__doc__ or "").partition("\n")[0]),
            *head(f"INLINE {C_TYPES[returns]} {name}({parameters})"), "{",
            *statements([*body.statements, f"return {self.result};"]), "}", "",
        ]  # fmt: skip


def struct(kind: str, values: list[str]) -> str:
    """A struct of these values, which may be all those of a variable."""
    whole = values[0].rpartition(".")[0]
    if whole and values == [f"{whole}.{field}" for field in STRUCTS[kind]._fields]:
        return whole
    return f"({C_TYPES[kind]}){{{', '.join(values)}}}"


def is_scalar(at: Expression) -> bool:
    """Whether C has a number for it and not a vector."""
    if at.operation in SCALARS:
        return True
    return at.operation in (*BINARY, "negative") and all(map(is_scalar, at.arguments))


def is_integer(at: Expression) -> bool:
    if at.operation in ("add", "subtract"):
        return any(map(is_integer, at.arguments))
    return at.operation in INTEGERS


def c_number(value: float) -> str:
    """A number in an expression of vectors."""
    if math.isinf(value):
        return f"(real){'-' if value < 0 else ''}INFINITY"
    if math.isnan(value):
        return "(real)NAN"
    if value == int(value):
        return str(int(value))
    return f"(real){value!r}"


def head(text: str) -> list[str]:
    """The head of a function."""
    return wrap(text, 100, subsequent_indent=" " * (text.index("(") + 1))


def statements(texts: Iterable[str], indent: int = 4) -> list[str]:
    """The lines of statements."""
    first, others = " " * indent, " " * (indent + 4)
    return [
        line
        for text in texts
        for line in wrap(
            text, 100, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
        )
    ]


def comment(text: str) -> list[str]:
    if not text:
        return []
    return wrap(f"/* {text} */", 100, subsequent_indent=" * ", break_on_hyphens=False)


HEAD = """\
/* The vector formulas of fastbp/maths/formulas/, which says what they compute, how exactly and for
 * which arguments. Generated by tools/formulas.py; change them there.
 */
#include "elementary.h"
"""


class Header:
    """The lines of the generated file."""

    def __init__(self) -> None:
        self.lines = [HEAD]
        self._lists: set[str] = set()

    def add(self, function: Function) -> None:
        """A function, after the coefficients that it is the first to use."""
        for name in sorted(function.lists - self._lists):
            self.lines += [f"static const real {name.lower()}_q[] = {{NUMBER({name})}};", ""]
        self._lists |= function.lists
        self.lines += function.lines

    def add_named(self, module: Any) -> None:
        """The formulas of a module that C calls by name."""
        for formula in named_formulas(module):
            arguments, returns = signature(formula)
            self.add(Function(formula.name, arguments, returns, formula))

    def add_choice(self, name: str, arguments: Arguments, formulas: dict[str, Callable]) -> None:
        """A function that computes one of the formulas, by FB_ and its name in upper case."""
        cases = []
        for key, formula in formulas.items():
            function = Function(f"{name}_{key}", arguments, "V", formula)
            if not function.is_short:
                self.add(function)
            result = function.result if function.is_short else function.call
            cases.append(f"case FB_{key.upper()}: return {result};")
        parameters = ", ".join(f"{C_TYPES[kind]} {argument}" for argument, kind in arguments)
        self.lines += [
            f"INLINE vec {name}(int kind, {parameters})", "{",
            f"    {', '.join(f'(void){argument}' for argument, _ in arguments)};",
            "    switch (kind) {",
            *statements(cases), "    default: __builtin_trap();", "    }", "}", "",
        ]  # fmt: skip

    def add_list(self, name: str, keys: Iterable[str]) -> None:
        """A macro that applies another one to all of these."""
        text = " ".join(f"CASE(FB_{key.upper()})" for key in keys)
        lines = [
            f"#define {name}(CASE)",
            *wrap(text, 92, initial_indent="    ", subsequent_indent="    "),
        ]
        self.lines += [*(line.ljust(98) + " \\" for line in lines[:-1]), lines[-1], ""]


def activation_lines(header: Header) -> None:
    table, (c, z, y) = activations.FORMULAS, (("c", "TwoWords"), ("z", "V"), ("y", "V"))
    rows = {name: table[name] for name in TABLE}
    linear, zero = rows["linear"], activations.zero
    curved = [name for name, row in rows.items() if row.d2f not in (linear.d2f, zero)]
    known = {n: row.df_from_y for n, row in rows.items() if row.df_from_y and row is not linear}
    header.add_list("EACH_BENT", [name for name in rows if name != "linear"])
    header.add_list("EACH_CURVED", curved)
    header.add_list("EACH_POLYGON", [name for name in rows if name not in (*curved, "linear")])
    header.add_list("EACH_KNOWN_FROM_Y", known)
    header.add_named(activations)
    for name, order in (("act", 0), ("act_derivative", 1), ("act_second", 2), ("act_third", 3)):
        header.add_choice(name, [c, z], {n: swapped(row.of(order)) for n, row in rows.items()})
    header.add_choice("act_derivative_from_y", [c, y], {n: swapped(f) for n, f in known.items()})


def swapped(formula: Callable) -> Callable:
    return lambda x, y: formula(y, x)


def loss_lines(header: Header) -> None:
    y, t, u, c = ((name, "V") for name in "ytuc")
    rows = losses.ELEMENTWISE
    header.add_named(losses)
    header.add_list("EACH_ELEMENTWISE_LOSS", rows)
    for name, i in (("loss_value", 0), ("loss_slope", 1)):
        chosen = {key: part(row.value_and_slope, i) for key, row in rows.items()}
        header.add_choice(name, [y, t, c], chosen)
    header.add_choice("loss_curve", [y, t, u, c], {key: row.second for key, row in rows.items()})
    m, v, um, uv = ((name, "V") for name in ("m", "v", "um", "uv"))
    pairs = losses.GAUSSIAN
    header.add_list("EACH_GAUSSIAN_LOSS", pairs)
    for i, name in enumerate(("gaussian_value", "gaussian_slope_m", "gaussian_slope_v")):
        chosen = {key: part(row.value_and_slopes, i) for key, row in pairs.items()}
        header.add_choice(name, [m, v, t], chosen)
    for i, name in enumerate(("gaussian_curve_m", "gaussian_curve_v")):
        chosen = {key: part(row.second, i) for key, row in pairs.items()}
        header.add_choice(name, [m, v, t, um, uv], chosen)


RULE_ARGUMENTS = (
    "idx n, real *p, real *moments, const real *g, double lr, const double *constants, "
    "const double *powers"
)


def rule_lines(header: Header) -> None:
    rows = optimizers.RULES
    header.add_list("EACH_RULE_WITH_POWERS", [key for key, row in rows.items() if row.has_powers])
    cases = []
    for key, row in rows.items():
        header.lines += rule(key, row)
        arguments = "n, p, moments, g, lr, constants, powers"
        cases.append(f"case FB_{key.upper()}: step_of_{key}({arguments}); break;")
    header.lines += [
        *head(f"static void apply_rule(int64_t kind, {RULE_ARGUMENTS})"), "{",
        "    switch (kind) {", *statements(cases), "    default: __builtin_trap();", "    }", "}",
        "",
    ]  # fmt: skip


def variables(*names: str) -> list[Symbol]:
    return [Symbol(node("variable", value=name)) for name in names]


def rule(key: str, row: Any) -> list[str]:
    """A function that applies an optimizer's rule to n parameters, n a multiple of VL."""
    names = [f"constants[{i}]" for i in range(4)], [f"powers[{i}]" for i in range(2)]
    constants, powers = ([Symbol(node("double", value=n)) for n in group] for group in names)
    numbers = row.numbers(Symbol(node("double", value="lr")), constants, powers)
    p, g = variables("p0", "g0")
    moments = variables(*(f"m{i}" for i in range(row.n_moments)))
    names = [f"n{i}" for i in range(len(numbers))]
    body = Body(row.formula(p, moments, g, *variables(*names)))
    sizes = [
        f"const vec {name} = splat((real){double(number.node)});"
        for name, number in zip(names, numbers, strict=True)
        if name in body.inputs
    ]
    places = ["p + i", "moments + i", "moments + n + i", "moments + 2 * n + i"]
    loads = [f"m{i} = load({places[i + 1]})" for i in range(row.n_moments)]
    stores = [f"store({places[i]}, {result});" for i, result in enumerate(body.results)]
    lines = [
        f"vec {', '.join(['p0 = load(p + i)', 'g0 = load(g + i)', *loads])};",
        *body.statements, *stores,
    ]  # fmt: skip
    return [
        *head(f"static void step_of_{key}({RULE_ARGUMENTS})"), "{",
        *statements(["(void)moments, (void)constants, (void)powers;", *sizes]),
        "    for (idx i = 0; i < n; i += VL) {", *statements(lines, 8), "    }", "}", "",
    ]  # fmt: skip


def double(at: Expression) -> str:
    """An expression of single numbers."""
    if at.operation == "double":
        return at.value
    if at.operation == "constant":
        return f"{at.value:g}"
    if at.operation == "sqrt":
        return f"sqrt({double(*at.arguments)})"
    left, right = map(double, at.arguments)
    return f"({left} {BINARY[at.operation][0]} {right})"


def part(formula: Callable, i: int) -> Callable:
    """The formula of one of several results."""
    return lambda *arguments: formula(*arguments)[i]


def generate() -> dict[Path, str]:
    """The text of the generated file."""
    header = Header()
    header.add_named(elementary)
    activation_lines(header)
    header.add_named(general)
    loss_lines(header)
    rule_lines(header)
    return {C_FILE: "\n".join(header.lines)}


if __name__ == "__main__":
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
