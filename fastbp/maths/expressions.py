"""Formulas as expressions: a graph of operations, evaluated and written as Python code.

An expression is a node of a graph. Equal nodes are one object, so that a subexpression that occurs
often is computed once. `algebra` makes simplified ones, `derivatives` differentiates them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any
from weakref import WeakValueDictionary
from zlib import crc32

import numpy as np

from .activations import TABLE
from .scalars import exp, sigmoid, tanh


class Expression:
    """A node: an operation and the expressions that it takes. Make one by `node` alone.

    Attributes
    ----------
    operation : str
        "constant", "variable" or a key of `OPERATIONS` or `COMPOSED`.
    arguments : tuple of Expression
        Those of sums and products are in the order of their digests: a constant factor is the
        first, a constant term the last one.
    value : float or str or None
        The number of a constant, the name of a variable.
    digest : int
        The same in every process for the same expression.
    """

    __slots__ = ("__weakref__", "arguments", "digest", "operation", "value")

    def __init__(self, operation: str, arguments: tuple[Expression, ...], value: Any):
        self.operation, self.arguments, self.value = operation, arguments, value
        text = f"{operation} {value!r} {[argument.digest for argument in arguments]}"
        self.digest: int = crc32(text.encode())

    def __repr__(self) -> str:
        if self.value is not None:
            return f"{self.value}"
        return f"{self.operation}({', '.join(map(repr, self.arguments))})"


_nodes: WeakValueDictionary[tuple[Any, ...], Expression] = WeakValueDictionary()


def node(operation: str, *arguments: Expression, value: Any = None) -> Expression:
    """The expression with this operation and these arguments, as it stands."""
    if operation in ("add", "multiply"):
        constant_is_last = operation == "add"
        arguments = tuple(sorted(
            arguments, key=lambda x: ((x.operation == "constant") == constant_is_last, x.digest)
        ))  # fmt: skip
    key = operation, value.hex() if isinstance(value, float) else value, *map(id, arguments)
    found = _nodes.get(key)
    if found is None:
        found = _nodes.setdefault(key, Expression(operation, arguments, value))
    return found


def variable(name: str) -> Expression:
    return node("variable", value=name)


def constant(value: float) -> Expression:
    return node("constant", value=float(value))


ZERO, ONE, MINUS_ONE, TWO, HALF = map(constant, (0, 1, -1, 2, 0.5))


def in_order(roots: Iterable[Expression]) -> list[Expression]:
    """Every node below the roots and these, once, arguments before what takes them."""
    done: dict[Expression, None] = {}
    stack = [(root, False) for root in roots]
    while stack:
        at, complete = stack.pop()
        if complete:
            done[at] = None
        elif at not in done:
            stack.append((at, True))
            stack.extend((argument, False) for argument in reversed(at.arguments))
    return list(done)


def listed(root: Expression) -> list[tuple[Any, ...]]:
    """An expression without references, for pickles: what `of_list` takes.

    A line per node, arguments before what takes them: operation, value, the arguments' lines.
    """
    nodes = in_order([root])
    lines = {at: i for i, at in enumerate(nodes)}
    return [(at.operation, at.value, *(lines[x] for x in at.arguments)) for at in nodes]


def of_list(lines: Iterable[tuple[Any, ...]]) -> Expression:
    """The expression that `listed` made a list of."""
    nodes: list[Expression] = []
    for operation, value, *arguments in lines:
        nodes.append(node(operation, *(nodes[i] for i in arguments), value=value))
    return nodes[-1]


# Operations: NumPy's function and the Python code. What is composed of them is written below.


def _special(name: str) -> Callable:
    def of_array(x: Any) -> Any:
        from scipy import special

        return getattr(special, name)(x)

    return of_array


OPERATIONS: dict[str, tuple[Callable, str]] = {
    "add": (np.add, "{} + {}"),
    "subtract": (np.subtract, "{} - {}"),
    "multiply": (np.multiply, "{} * {}"),
    "divide": (np.divide, "{} / {}"),
    "power": (np.power, "{} ** {}"),
    "negative": (np.negative, "-{}"),
    "abs": (np.abs, "abs({})"),
    "sign": (np.sign, "1.0 if {0} > 0.0 else (-1.0 if {0} < 0.0 else {0})"),
    # A NaN on either side is the result, as NumPy has it.
    "max": (np.maximum, "{0} if ({0} > {1}) | ({0} != {0}) else {1}"),
    "min": (np.minimum, "{0} if ({0} < {1}) | ({0} != {0}) else {1}"),
    "exp": (np.exp, "exp({})"),
    "expm1": (np.expm1, "expm1({})"),
    "log": (np.log, "log({})"),
    "log1p": (np.log1p, "log1p({})"),
    "sqrt": (np.sqrt, "sqrt({})"),
    "sin": (np.sin, "sin({})"),
    "cos": (np.cos, "cos({})"),
    "arctan": (np.arctan, "atan({})"),
    "sinh": (np.sinh, "sinh({})"),
    "cosh": (np.cosh, "cosh({})"),
    "tanh": (np.tanh, "tanh({})"),
    "sigmoid": (lambda x: TABLE["sigmoid"].f(x, 0.0), "sigmoid({})"),
    "erf": (_special("erf"), "erf({})"),
    "erfc": (_special("erfc"), "erfc({})"),
    "less": (np.less, "{} < {}"),
    "less_equal": (np.less_equal, "{} <= {}"),
    "equal": (np.equal, "{} == {}"),
    "and": (np.logical_and, "{} & {}"),
    "or": (np.logical_or, "{} | {}"),
    "not": (np.logical_not, "not {}"),
    "where": (np.where, "{1} if {0} else {2}"),
}
TRUTHS = frozenset(("less", "less_equal", "equal", "and", "or", "not"))


def _decay(x: Expression) -> Expression:
    return node("exp", node("negative", node("abs", x)))


def _softplus(x: Expression) -> Expression:
    return node("add", node("max", x, ZERO), node("log1p", _decay(x)))


def _log_cosh(x: Expression) -> Expression:
    tail = node("log1p", _decay(node("multiply", TWO, x)))
    return node("add", node("add", node("abs", x), tail), constant(-math.log(2)))


def _share(x: Expression) -> Expression:
    """1/(1 + e^-|x|)."""
    return node("divide", ONE, node("add", _decay(x), ONE))


def _bell(x: Expression) -> Expression:
    r = _share(x)
    return node("multiply", node("multiply", _decay(x), r), r)


def _logistic(x: Expression) -> Expression:
    """The logistic function by what `bell` of the same x computes."""
    r = _share(x)
    return node("multiply", node("where", node("less", x, ZERO), _decay(x), ONE), r)


def _xlogy(x: Expression, y: Expression) -> Expression:
    product = node("multiply", x, node("log", y))
    return node("where", node("equal", x, ZERO), ZERO, product)


def _turn(x: Expression) -> Expression:
    """The derivative of |x|: the sign of x, but that its product with this is 1 also at 0."""
    return node("sign", x)


def _tan(x: Expression) -> Expression:
    return node("divide", node("sin", x), node("cos", x))


def _with_sign(x: Expression, size: Expression) -> Expression:
    return node("multiply", node("sign", x), size)


def _cube_root(x: Expression) -> Expression:
    return _with_sign(x, node("power", node("abs", x), constant(1 / 3)))


def _root_beside_square(x: Expression) -> Expression:
    """sqrt(1 - x²), of factors that do not cancel."""
    return node("sqrt", node("multiply", node("subtract", ONE, x), node("add", x, ONE)))


def _arcsin(x: Expression) -> Expression:
    return node("arctan", node("divide", x, _root_beside_square(x)))


def _arccos(x: Expression) -> Expression:
    root = node("sqrt", node("divide", node("subtract", ONE, x), node("add", x, ONE)))
    return node("multiply", TWO, node("arctan", root))


def _arccosh(x: Expression) -> Expression:
    less = node("subtract", x, ONE)
    root = node("sqrt", node("multiply", less, node("add", x, ONE)))
    return node("log1p", node("add", less, root))


def _arcsinh(x: Expression) -> Expression:
    size = node("abs", x)
    inverse = node("divide", ONE, size)
    root = node("sqrt", node("add", node("multiply", inverse, inverse), ONE))
    rest = node("divide", size, node("add", inverse, root))  # sqrt(1 + x²) - 1
    return _with_sign(x, node("log1p", node("add", size, rest)))


def _arctanh(x: Expression) -> Expression:
    size = node("abs", x)
    ratio = node("divide", node("multiply", TWO, size), node("subtract", ONE, size))
    return _with_sign(x, node("multiply", HALF, node("log1p", ratio)))


COMPOSED: dict[str, Callable[..., Expression]] = {
    "softplus": _softplus,
    "log_cosh": _log_cosh,
    "bell": _bell,
    "xlogy": _xlogy,
    "turn": _turn,
    "tan": _tan,
    "cbrt": _cube_root,
    "arcsin": _arcsin,
    "arccos": _arccos,
    "arccosh": _arccosh,
    "arcsinh": _arcsinh,
    "arctanh": _arctanh,
}


def decomposed(roots: Sequence[Expression], whole: Collection[str] = ()) -> list[Expression]:
    """The roots in `OPERATIONS` alone; sigmoid shares its exp with bell where both occur.

    Operations in `whole` stay as they are where they share nothing.
    """
    nodes = in_order(roots)
    bells = {at.arguments[0] for at in nodes if at.operation == "bell"}
    sharing = {at.arguments[0] for at in nodes if at.operation in ("sigmoid", "softplus")}
    done: dict[Expression, Expression] = {}
    for at in nodes:
        arguments = [done[argument] for argument in at.arguments]
        if at.operation in COMPOSED and not (
            at.operation in whole and at.arguments[0] not in sharing
        ):
            done[at] = COMPOSED[at.operation](*arguments)
        elif at.operation == "sigmoid" and at.arguments[0] in bells:
            done[at] = _logistic(*arguments)
        else:
            done[at] = node(at.operation, *arguments, value=at.value)
    return [done[root] for root in roots]


# Outputs.


def small_integer(x: Expression) -> int | None:
    """The integer that x is, if it is one up to 64."""
    if x.operation == "constant" and abs(x.value) <= 64 and x.value == int(x.value):
        return int(x.value)
    return None


def evaluate(
    roots: Sequence[Expression],
    values: Mapping[str, Any],
    functions: Mapping[str, Callable] | None = None,
    number: Callable[[float], Any] = np.float64,
) -> list[Any]:
    """The values of expressions.

    Parameters
    ----------
    roots : sequence of Expression
    values : mapping
        The variables: float64 arrays of one shape.
    functions, number : optional
        Other functions for the names in `OPERATIONS`, and what makes a constant for them: other
        kinds of number.

    Returns
    -------
    list
        One of each root, like the variables; where it does not depend on them a single number.
    """
    return Tape(roots, functions, number)(values)


class Tape:
    """Expressions as a list of functions, to be evaluated many times.

    Parameters
    ----------
    roots : sequence of Expression
    functions, number : optional
        As `evaluate` takes them.
    """

    def __init__(
        self,
        roots: Sequence[Expression],
        functions: Mapping[str, Callable] | None = None,
        number: Callable[[float], Any] = np.float64,
    ):
        roots = decomposed(roots)
        places: dict[Expression, int] = {}
        self._start: list[Any] = []
        self._variables: list[tuple[int, str]] = []
        self._calls: list[tuple[int, Callable, tuple[int, ...]]] = []
        for k, at in enumerate(in_order(roots)):
            places[at] = k
            self._start.append(number(at.value) if at.operation == "constant" else None)
            if at.operation == "variable":
                self._variables.append((k, at.value))
            elif at.operation != "constant":
                function = functions[at.operation] if functions else OPERATIONS[at.operation][0]
                arguments = tuple(places[argument] for argument in at.arguments)
                self._calls.append((k, function, arguments))
        self._ends = [places[root] for root in roots]

    def __call__(self, values: Mapping[str, Any]) -> list[Any]:
        """The values of the roots for those of the variables, arrays or numbers."""
        done = self._start.copy()
        for k, name in self._variables:
            done[k] = values[name]
        with np.errstate(all="ignore"):
            for k, function, arguments in self._calls:
                done[k] = function(*[done[i] for i in arguments])
        return [done[k] for k in self._ends]


def function_of(roots: Sequence[Expression], names: Sequence[str]) -> Callable:
    """A Python function of numbers for expressions; the same one for the same expressions.

    Parameters
    ----------
    roots : sequence of Expression
        The function returns their values: a number for one, a tuple for several.
    names : sequence of str
        The variables in the order of the arguments.
    """
    return _compiled(source(roots, names))


def source(roots: Sequence[Expression], names: Sequence[str]) -> str:
    """The code of `function_of`: one assignment for each node."""
    roots = decomposed(roots)
    written: dict[Expression, str] = {}
    lines = [f"def f({', '.join(names)}):"]
    for at in in_order(roots):
        if at.operation == "constant":
            written[at] = f"({at.value!r})" if math.copysign(1, at.value) < 0 else repr(at.value)
        elif at.operation == "variable":
            written[at] = at.value
        else:
            arguments = [written[argument] for argument in at.arguments]
            if at.operation == "power" and (n := small_integer(at.arguments[1])) is not None:
                arguments[1] = str(n)  # compilers multiply then
            written[at] = f"t{len(lines)}"
            code = OPERATIONS[at.operation][1].format(*arguments)
            lines.append(f"    {written[at]} = {code}")
    lines.append(f"    return {', '.join(written[root] for root in roots)}")
    return "\n".join(lines) + "\n"


@cache
def _compiled(text: str) -> Callable:
    names: dict[str, Any] = {"exp": exp, "sigmoid": sigmoid, "tanh": tanh}
    for name in ("expm1", "log", "log1p", "sqrt", "sin", "cos", "atan", "sinh", "cosh"):
        names[name] = getattr(math, name)
    names |= {"erf": math.erf, "erfc": math.erfc, "inf": math.inf, "nan": math.nan}
    exec(compile(text, "<fastbp expression>", "exec"), names)
    return names["f"]
