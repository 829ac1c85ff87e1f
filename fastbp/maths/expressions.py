"""Formulas as expressions: simplified, differentiated, evaluated and written as Python code.

An expression is a node of a graph. Equal nodes are one object, so that a subexpression that occurs
often is computed once. The functions that make nodes (`add`, `multiply`, ...) simplify, and replace
forms that lose digits or overflow by stable ones of the same value: log(1 + e^x) becomes
softplus(x), 1/(1 + e^-x) the logistic function, 1 - tanh²x four times `bell` of 2x. `bell` is the
derivative of the logistic function.

At a corner of max, min or abs the derivative is that of the constant side, and 0 for abs; a sum of
a·x and b·|x| is two straight lines, and the corner belongs to the left one. Where several corners
meet at one point, as in max(x, 0) + log1p(exp(-|x|)), such values do not fit together; there all
take the side to which `where` assigns the point, by default the one below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any
from weakref import WeakValueDictionary

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
    value : float or str or None
        The number of a constant, the name of a variable.
    """

    __slots__ = ("__weakref__", "arguments", "operation", "value")

    def __init__(self, operation: str, arguments: tuple[Expression, ...], value: Any):
        self.operation, self.arguments, self.value = operation, arguments, value

    def __repr__(self) -> str:
        if self.value is not None:
            return f"{self.value}"
        return f"{self.operation}({', '.join(map(repr, self.arguments))})"


_nodes: WeakValueDictionary[tuple[Any, ...], Expression] = WeakValueDictionary()


def node(operation: str, *arguments: Expression, value: Any = None) -> Expression:
    """The expression with this operation and these arguments, as it stands."""
    key = operation, value.hex() if isinstance(value, float) else value, *map(id, arguments)
    found = _nodes.get(key)
    if found is None and operation in ("add", "multiply"):
        found = _nodes.get((*key[:2], *reversed(key[2:])))
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


def evaluate(
    roots: Sequence[Expression],
    values: Mapping[str, Any],
    functions: Mapping[str, Callable] | None = None,
    number: Callable[[float], Any] = float,
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
    roots = decomposed(roots)
    done: dict[Expression, Any] = {}
    with np.errstate(all="ignore"):
        for at in in_order(roots):
            if at.operation == "constant":
                done[at] = number(at.value)
            elif at.operation == "variable":
                done[at] = values[at.value]
            else:
                f = functions[at.operation] if functions else OPERATIONS[at.operation][0]
                done[at] = f(*(done[argument] for argument in at.arguments))
    return [done[root] for root in roots]


class Tape:
    """Expressions as a list of NumPy's functions, to be evaluated many times.

    Parameters
    ----------
    roots : sequence of Expression
    """

    def __init__(self, roots: Sequence[Expression]):
        roots = decomposed(roots)
        places: dict[Expression, int] = {}
        self._start: list[Any] = []
        self._variables: list[tuple[int, str]] = []
        self._calls: list[tuple[int, Callable, tuple[int, ...]]] = []
        for k, at in enumerate(in_order(roots)):
            places[at] = k
            self._start.append(np.float64(at.value) if at.operation == "constant" else None)
            if at.operation == "variable":
                self._variables.append((k, at.value))
            elif at.operation != "constant":
                arguments = tuple(places[argument] for argument in at.arguments)
                self._calls.append((k, OPERATIONS[at.operation][0], arguments))
        self._ends = [places[root] for root in roots]

    def __call__(self, values: dict[str, Any]) -> list[Any]:
        """The values of the roots for those of the variables, arrays or numbers of NumPy."""
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


# Simplification.


def _is(x: Expression, value: float) -> bool:
    return x.operation == "constant" and x.value == value


def small_integer(x: Expression) -> int | None:
    """The integer that x is, if it is one up to 64."""
    if x.operation == "constant" and abs(x.value) <= 64 and x.value == int(x.value):
        return int(x.value)
    return None


def _scaled(x: Expression) -> tuple[float, Expression]:
    """c and y of x = c·y with a number c."""
    if x.operation == "negative":
        c, y = _scaled(x.arguments[0])
        return -c, y
    if x.operation == "multiply" and x.arguments[0].operation == "constant":
        return x.arguments[0].value, x.arguments[1]
    return 1.0, x


def _exponent_beside_one(x: Expression) -> Expression | None:
    """u of 1 + e^u."""
    if x.operation == "add" and _is(x.arguments[1], 1) and x.arguments[0].operation == "exp":
        return x.arguments[0].arguments[0]
    return None


def _opposite(x: Expression, y: Expression) -> bool:
    return negative(x) is y


def number(x: Expression) -> Expression:
    """A truth value as 0 or 1; anything else as it is."""
    return node("where", x, ONE, ZERO) if x.operation in TRUTHS else x


def negative(x: Expression) -> Expression:
    if x.operation == "constant":
        return constant(-x.value)
    if x.operation == "negative":
        return x.arguments[0]
    if x.operation == "subtract":
        return node("subtract", *reversed(x.arguments))
    if x.operation == "multiply" and x.arguments[0].operation == "constant":
        return multiply(negative(x.arguments[0]), x.arguments[1])
    return node("negative", x)


def _with_one(x: Expression, sign: float) -> Expression | None:
    """1 + sign·x in a form that does not cancel."""
    operation, u = x.operation, x.arguments[0] if x.arguments else x
    if operation == "tanh":  # 1 + tanh u = 2σ(2u)
        return multiply(TWO, apply("sigmoid", multiply(constant(2 * sign), u)))
    if operation == "erf":
        return apply("erfc", u if sign < 0 else negative(u))
    if sign < 0 and operation == "exp":
        return negative(apply("expm1", u))
    if sign < 0 and operation == "sigmoid":
        return apply("sigmoid", negative(u))
    if sign < 0 and operation == "power" and u.operation == "tanh" and _is(x.arguments[1], 2):
        return multiply(constant(4), apply("bell", multiply(TWO, u.arguments[0])))
    return None


def _add_constant(x: Expression, c: float) -> Expression:
    factor, y = _scaled(x)
    if abs(c) == abs(factor):
        stable = _with_one(y, factor / c)
        if stable is not None:
            return multiply(constant(c), stable)
    if factor == -2 * c and y.operation == "sigmoid":  # 1 - 2σ(u) = -tanh(u/2)
        return multiply(constant(-c), apply("tanh", multiply(HALF, y.arguments[0])))
    return node("add", x, constant(c))


_SEARCHED = 8  # sums within sums in which `_join` looks: long chains would take quadratic time


def _join(chain: Expression, term: Expression, depth: int = _SEARCHED) -> Expression | None:
    """The sum, if it has max(x, 0) and log(1 + e^-|x|), which are softplus x together."""
    for outer, inner in ((chain, term), (term, chain)):
        if inner.operation == "softplus" and outer.operation == "max":
            c, size = _scaled(inner.arguments[0])
            x, y = outer.arguments
            if c < 0 and _is(y, 0) and apply("abs", x) is multiply(constant(-c), size):
                return apply("softplus", x)
    if depth and chain.operation in ("add", "subtract"):
        first, second = chain.arguments
        joined = _join(first, term, depth - 1)
        if joined is not None:
            return node(chain.operation, joined, second)
        joined = _join(second, term, depth - 1) if chain.operation == "add" else None
        if joined is not None:
            return node("add", first, joined)
    return None


def _two_lines(line: Expression, corner: Expression) -> Expression | None:
    """The sum of a·x and b·|x|, as a function that is linear on both sides of 0."""
    (a, x), (b, size) = _scaled(line), _scaled(corner)
    if size.operation != "abs" or size.arguments[0] is not x:
        return None
    if abs(a) == abs(b):
        return multiply(constant(2 * a), bound("max" if a == b else "min", x, ZERO))
    left, right = (multiply(constant(slope), x) for slope in (a - b, a + b))
    return where(compare("less_equal", x, ZERO), left, right)


def add(x: Expression, y: Expression) -> Expression:
    if x.operation == "constant":
        x, y = y, x
    if _is(y, 0):
        return x
    if x.operation == "constant":
        return _fold("add", x, y)
    if y.operation == "constant":
        return _add_constant(x, y.value)
    if y.operation == "negative":
        return subtract(x, y.arguments[0])
    if x.operation == "negative":
        return subtract(y, x.arguments[0])
    if x is y:
        return multiply(TWO, x)
    if x.operation == y.operation == "exp" and _opposite(x.arguments[0], y.arguments[0]):
        return multiply(TWO, apply("cosh", x.arguments[0]))
    for a, b in ((x, y), (y, x)):
        joined = _two_lines(a, b)
        if joined is None and b.operation in ("softplus", "max"):
            joined = _join(a, b)
        if joined is not None:
            return joined
    return node("add", x, y)


def subtract(x: Expression, y: Expression) -> Expression:
    if x is y:
        return ZERO
    if _is(x, 0):
        return negative(y)
    if y.operation in ("constant", "negative"):
        return add(x, negative(y))
    if x.operation == "constant":
        stable = _add_constant(negative(y), x.value)
        plain = stable.operation == "add" and stable.arguments[0] is negative(y)
        return node("subtract", x, y) if plain else stable
    if x.operation == y.operation == "exp" and _opposite(x.arguments[0], y.arguments[0]):
        return multiply(TWO, apply("sinh", x.arguments[0]))
    joined = _two_lines(x, negative(y))
    if joined is None:
        joined = _two_lines(negative(y), x)
    return node("subtract", x, y) if joined is None else joined


def _turns(x: Expression) -> list[Expression]:
    """The arguments of the factors "turn" of a product."""
    if x.operation == "turn":
        return [x.arguments[0]]
    if x.operation == "multiply":
        return [u for factor in x.arguments for u in _turns(factor)]
    return _turns(x.arguments[0]) if x.operation in ("divide", "negative") else []


def _without(x: Expression, operations: tuple[str, ...], u: Expression) -> Expression | None:
    """A product without a factor that is such an operation of u; None if it has none."""
    if x.operation in operations and x.arguments[0] is u:
        return ONE
    if x.operation == "multiply":
        for p, q in (x.arguments, x.arguments[::-1]):
            rest = _without(p, operations, u)
            if rest is not None:
                return multiply(rest, q)
    if x.operation in ("divide", "negative"):
        rest = _without(x.arguments[0], operations, u)
        if rest is not None:
            return negative(rest) if x.operation == "negative" else divide(rest, x.arguments[1])
    return None


def multiply(x: Expression, y: Expression) -> Expression:
    if y.operation == "constant":
        x, y = y, x
    if y.operation == "constant":
        return _fold("multiply", x, y)
    if x.operation == "constant":
        if x.value in (0, 1, -1):
            return ZERO if x.value == 0 else y if x.value == 1 else negative(y)
        c, inner = _scaled(y)
        return multiply(constant(x.value * c), inner) if c != 1 else node("multiply", x, y)
    for a, b in ((x, y), (y, x)):
        for u in _turns(a):
            rest = _without(b, ("sign", "turn"), u)
            if rest is not None:
                return multiply(_without(a, ("turn",), u) or a, rest)
        if a.operation == "where" and ZERO in a.arguments[1:]:  # 0 beside an infinite b, too
            sides = (ZERO if side is ZERO else multiply(side, b) for side in a.arguments[1:])
            return where(a.arguments[0], *sides)
        if a.operation == "negative":
            return negative(multiply(a.arguments[0], b))
        if a.operation == "divide" and _is(a.arguments[0], 1):
            return divide(b, a.arguments[1])
        if b.operation == "sigmoid" and a.operation == "multiply":
            for p, q in (a.arguments, a.arguments[::-1]):
                if q.operation in ("exp", "expm1", "sigmoid"):
                    if _opposite(q.arguments[0], b.arguments[0]):
                        return multiply(p, multiply(q, b))
        if b.operation == "sigmoid" and a.operation in ("exp", "expm1", "sigmoid"):
            u = a.arguments[0]
            if _opposite(u, b.arguments[0]):  # e^u = σ(u)/σ(-u)
                if a.operation == "expm1":
                    return apply("tanh", multiply(HALF, u))
                return apply("sigmoid" if a.operation == "exp" else "bell", u)
        if b.operation == "log":
            c, factor = _scaled(a)
            if factor is b.arguments[0]:  # x·log x, which is 0 at 0
                return multiply(constant(c), node("xlogy", factor, factor))
    return power(x, TWO) if x is y else node("multiply", x, y)


def divide(x: Expression, y: Expression) -> Expression:
    if _is(y, 1):
        return x
    if x.operation == y.operation == "constant":
        return _fold("divide", x, y)
    if x.operation == "negative":
        return negative(divide(x.arguments[0], y))
    if y.operation == "negative":
        return negative(divide(x, y.arguments[0]))
    if y.operation == "constant" and y.value and abs(math.frexp(y.value)[0]) == 0.5:
        return multiply(constant(1 / y.value), x)  # exact
    if y.operation == "constant":
        c, inner = _scaled(x)
        ratio = c / y.value if y.value else math.nan
        if c != 1 and 1e-300 < abs(ratio) < 1e300:
            return multiply(constant(ratio), inner)
    if y.operation == "exp":
        return multiply(x, apply("exp", negative(y.arguments[0])))
    u = _exponent_beside_one(y)
    if u is not None:
        return multiply(x, apply("sigmoid", negative(u)))
    (a, p), (b, q) = _scaled(x), _scaled(y)
    if p.operation == "sinh" and q.operation == "cosh" and p.arguments == q.arguments:
        return multiply(constant(a / b), apply("tanh", p.arguments[0]))
    if _is(x, 0) and y.operation != "constant":
        return ZERO
    return node("divide", x, y)


def power(x: Expression, y: Expression) -> Expression:
    if y.operation == "constant":
        if x.operation == "constant":
            return _fold("power", x, y)
        if y.value in (0, 1):
            return ONE if y.value == 0 else x
        if y.value == 0.5:
            return apply("sqrt", x)
        if y.value == -1:
            return divide(ONE, x)
        if y.value % 2 == 0 and x.operation in ("abs", "negative"):
            return power(x.arguments[0], y)
    if _is(x, math.e):
        return apply("exp", y)
    return node("power", x, y)


def where(condition: Expression, x: Expression, y: Expression) -> Expression:
    if condition.operation == "constant":
        return x if condition.value else y
    if condition.operation not in TRUTHS:
        condition = compare("not", compare("equal", condition, ZERO))
    return x if x is y else node("where", condition, x, y)


def compare(operation: str, *arguments: Expression) -> Expression:
    """A comparison, or "and", "or", "not" of comparisons."""
    if all(a.operation == "constant" for a in arguments):
        return _fold(operation, *arguments)
    return node(operation, *arguments)


def bound(operation: str, x: Expression, y: Expression) -> Expression:
    """max or min; a constant is the second argument."""
    if x.operation == "constant":
        x, y = y, x
    if x.operation == "constant":
        return _fold(operation, x, y)
    (a, u), (b, v) = _scaled(x), _scaled(y)
    if u is v and a != b:
        left, right = (min(a, b), max(a, b)) if operation == "max" else (max(a, b), min(a, b))
        slopes = (multiply(constant(slope), u) for slope in (left, right))
        return where(compare("less_equal", u, ZERO), *slopes)
    return x if x is y else node(operation, x, y)


_ODD = frozenset((
    "sin", "tan", "tanh", "sinh", "erf", "arctan", "sign", "turn", "cbrt", "arcsin", "arcsinh",
    "arctanh",
))  # fmt: skip
_EVEN = frozenset(("abs", "cos", "cosh", "bell", "log_cosh"))


def apply(operation: str, x: Expression) -> Expression:
    """A function of one number."""
    if x.operation == "constant" and operation in OPERATIONS:
        return _fold(operation, x)
    c, inner = _scaled(x)
    if c < 0 and operation in _ODD:
        return negative(apply(operation, negative(x)))
    if c < 0 and operation in _EVEN:
        return apply(operation, negative(x))
    if operation in ("sign", "turn") and c not in (0, 1):
        return apply(operation, inner)
    if operation == "abs":
        if x.operation in ("abs", "exp", "sqrt"):
            return x
        if c != 1:
            return multiply(constant(c), apply("abs", inner))
    if operation == "sqrt" and x.operation == "power" and _is(x.arguments[1], 2):
        return apply("abs", x.arguments[0])
    if operation == "log":
        if x.operation == "exp":
            return x.arguments[0]
        if x.operation == "sigmoid":
            return negative(apply("softplus", negative(x.arguments[0])))
        if c == 2 and inner.operation == "cosh":
            return add(apply("log", inner), constant(math.log(2)))
        if x.operation == "cosh":
            return node("log_cosh", x.arguments[0])
        if x.operation == "add" and _is(x.arguments[1], 1):
            return apply("log1p", x.arguments[0])
        if x.operation == "subtract" and _is(x.arguments[0], 1):
            return apply("log1p", negative(x.arguments[1]))
    if operation == "log1p" and x.operation == "exp":
        return apply("softplus", x.arguments[0])
    return node(operation, x)


def _fold(operation: str, *arguments: Expression) -> Expression:
    with np.errstate(all="ignore"):
        values = (np.float64(argument.value) for argument in arguments)
        return constant(OPERATIONS[operation][0](*values))


# Derivatives.


def derivative(root: Expression, name: str) -> Expression:
    """The derivative of an expression with respect to the variable of that name."""
    return derivatives(root, [name])[0]


def derivatives(root: Expression, names: Sequence[str]) -> list[Expression]:
    """Those with respect to several variables."""
    nodes = in_order([root])
    shared = _shared_corners(nodes)
    places = {at: i for i, at in enumerate(nodes)}
    takers: list[list[int]] = [[] for _ in nodes]
    for i, at in enumerate(nodes):
        for argument in at.arguments:
            takers[places[argument]].append(i)
    results = []
    for name in names:
        start = variable(name)
        done = {start: ONE} if start in places else {}
        above: set[int] = set()  # where the nodes are that depend on the variable
        waiting = list(takers[places[start]]) if done else []
        while waiting:
            i = waiting.pop()
            if i not in above:
                above.add(i)
                waiting.extend(takers[i])
        for at in (nodes[i] for i in sorted(above)):
            slopes = [done.get(argument, ZERO) for argument in at.arguments]
            if at.operation not in TRUTHS and any(slope is not ZERO for slope in slopes):
                done[at] = _slope(at, slopes, shared)
        results.append(done.get(root, ZERO))
    return results


def _slope(at: Expression, slopes: list[Expression], shared: dict[Any, bool]) -> Expression:
    """The derivative of a node from those of its arguments."""
    x, dx = at.arguments[0], slopes[0]
    match at.operation:
        case "add":
            return add(*slopes)
        case "subtract":
            return subtract(*slopes)
        case "where":
            return where(x, *slopes[1:])
        case "multiply":
            y, dy = at.arguments[1], slopes[1]
            return add(multiply(dx, y), multiply(x, dy))
        case "divide":
            y, dy = at.arguments[1], slopes[1]
            return subtract(divide(dx, y), multiply(divide(at, y), dy))
        case "power":
            y, dy = at.arguments[1], slopes[1]
            by_base = multiply(multiply(y, power(x, subtract(y, ONE))), dx)
            by_exponent = ZERO if dy is ZERO else multiply(node("xlogy", at, x), dy)
            return by_base if by_exponent is ZERO else add(by_base, by_exponent)
        case "xlogy":
            y, dy = at.arguments[1], slopes[1]
            by_second = dy if x is y else divide(multiply(x, dy), y)
            return add(multiply(dx, apply("log", y)), by_second)
        case "max" | "min" | "abs":
            point, turned = _corner(at)
            above = shared.get(point)
            return _slope_at_corner(at, slopes, above if above is None else above != turned)
    return multiply(_SLOPES[at.operation](x, at), dx)


_SLOPES: dict[str, Callable[[Expression, Expression], Expression]] = {
    "negative": lambda x, y: MINUS_ONE,
    "sign": lambda x, y: ZERO,
    "turn": lambda x, y: ZERO,
    "exp": lambda x, y: y,
    "expm1": lambda x, y: apply("exp", x),
    "log": lambda x, y: divide(ONE, x),
    "log1p": lambda x, y: divide(ONE, add(x, ONE)),
    "sqrt": lambda x, y: divide(HALF, y),
    "sin": lambda x, y: apply("cos", x),
    "cos": lambda x, y: negative(apply("sin", x)),
    "arctan": lambda x, y: divide(ONE, add(power(x, TWO), ONE)),
    "tan": lambda x, y: add(power(y, TWO), ONE),
    "cbrt": lambda x, y: divide(constant(1 / 3), power(y, TWO)),
    "arcsin": lambda x, y: divide(ONE, _root_beside_square(x)),
    "arccos": lambda x, y: divide(MINUS_ONE, _root_beside_square(x)),
    "arccosh": lambda x, y: divide(ONE, apply("sqrt", multiply(subtract(x, ONE), add(x, ONE)))),
    "arcsinh": lambda x, y: divide(ONE, apply("sqrt", add(power(x, TWO), ONE))),
    "arctanh": lambda x, y: divide(ONE, multiply(subtract(ONE, x), add(x, ONE))),
    "sinh": lambda x, y: apply("cosh", x),
    "cosh": lambda x, y: apply("sinh", x),
    "tanh": lambda x, y: multiply(constant(4), apply("bell", multiply(TWO, x))),
    "sigmoid": lambda x, y: apply("bell", x),
    "bell": lambda x, y: negative(multiply(y, apply("tanh", multiply(HALF, x)))),
    "softplus": lambda x, y: apply("sigmoid", x),
    "log_cosh": lambda x, y: apply("tanh", x),
    "erf": lambda x, y: multiply(constant(2 / math.sqrt(math.pi)), _gaussian(x)),
    "erfc": lambda x, y: multiply(constant(-2 / math.sqrt(math.pi)), _gaussian(x)),
}


def _gaussian(x: Expression) -> Expression:
    return apply("exp", negative(power(x, TWO)))


def _slope_at_corner(at: Expression, slopes: list[Expression], above: bool | None) -> Expression:
    """That of max, min or abs; `above` names the side taken at a corner that several share."""
    x, dx = at.arguments[0], slopes[0]
    if at.operation == "abs":
        if above is None:
            return multiply(apply("turn", x), dx)
        return where(compare("less" if above else "less_equal", x, ZERO), negative(dx), dx)
    y, dy = at.arguments[1], slopes[1]
    if above is None:
        pair = (y, x) if at.operation == "max" else (x, y)
        return where(compare("less", *pair), dx, dy)
    below, over = (dy, dx) if at.operation == "max" else (dx, dy)
    return where(compare("less" if above else "less_equal", x, y), below, over)


def _corner(at: Expression) -> tuple[tuple[Expression, Expression], bool]:
    """The point of a corner or of a comparison: x and what it is there; whether x has turned.

    The arguments of the node grow with x, and fall if x has turned.
    """
    x, y = at.arguments[0], ZERO if at.operation == "abs" else at.arguments[1]
    if x.operation == "constant":
        x, y = y, x
    turned = False
    while y is ZERO:  # multiples, and increasing functions that are 0 at 0
        c, inner = _scaled(x)
        if inner is not x:
            x, turned = inner, turned != (c < 0)
        elif x.operation in ("expm1", "tanh", "sinh", "erf", "arctan", "arcsinh", "cbrt"):
            x = x.arguments[0]
        else:
            break
    return (x, y), turned


def _shared_corners(nodes: list[Expression]) -> dict[Any, bool]:
    """The points where several corners meet, and whether `where` assigns them to the side above."""
    counts: dict[Any, int] = {}
    sides: dict[Any, bool] = {}
    for at in nodes:
        if at.operation in ("max", "min", "abs", "less", "less_equal"):
            point, turned = _corner(at)
            counts[point] = counts.get(point, 0) + 1
            if at.operation in ("less", "less_equal"):
                # x < c leaves the point to the side above, x <= c does not; c < x is the reverse.
                reverse = (at.arguments[0].operation == "constant") != turned
                sides.setdefault(point, (at.operation == "less") != reverse)
    return {point: sides.get(point, False) for point, n in counts.items() if n > 1}


# NaN and infinity.

_CORNERED = frozenset(("max", "min", "abs", "sign", "where")) | TRUTHS


def keeping_nan(root: Expression, name: str, of: Expression) -> Expression:
    """An expression that is NaN where its variable is, as a smooth one is by itself.

    Parameters
    ----------
    root : Expression
        A function or a derivative.
    name : str
        The variable.
    of : Expression
        The function whose derivative it is. Without corners, or if it asks whether a number is
        equal to itself, it needs nothing.
    """
    nodes = in_order([of])
    asks = any(at.operation == "equal" and len(set(at.arguments)) == 1 for at in nodes)
    if asks or not any(at.operation in _CORNERED for at in nodes):
        return root
    nan: dict[Expression, bool] = {}  # whether a node is NaN, or a comparison false of NaN
    for at in in_order([root]):
        arguments = [nan[argument] for argument in at.arguments]
        if at.operation == "where":
            nan[at] = arguments[2] and (arguments[0] or arguments[1])
        elif at.operation in ("and", "or", "not"):
            nan[at] = False
        else:
            nan[at] = at.value == name or any(arguments)
    if nan[root]:
        return root
    at_nan = variable(name)
    return where(compare("equal", at_nan, at_nan), root, at_nan)


def with_limits(root: Expression, name: str) -> Expression:
    """An expression with its limits at infinity, where it has any and is NaN itself, as by 0·inf.

    That the values approach a limit from 1e6 on, or grow all the way, tells limits from numbers
    that come of rounding.
    """
    x = variable(name)
    far = np.append(np.geomspace(1e6, 1e90, 24), math.inf)
    near = 100 / np.sqrt(far[:-1])
    for points in (far, -far):
        *values, end = np.broadcast_to(evaluate([root], {name: points})[0], len(far)).tolist()
        last, sizes = values[-1], [math.copysign(value, value * values[-1]) for value in values]
        if not math.isnan(end) or not all(map(math.isfinite, values)):
            continue
        if all(b > a > 0 for a, b in pairwise(sizes)):
            limit = math.copysign(math.inf, last)
        elif (np.abs(np.array(values) - last) <= near * max(1.0, abs(last))).all():
            limit = last
        else:
            continue
        root = where(compare("equal", x, constant(points[-1])), constant(limit), root)
    return root
