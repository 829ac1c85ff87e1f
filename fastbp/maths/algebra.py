"""Arithmetic with expressions, which simplifies them.

Forms that lose digits or overflow are replaced by stable ones of the same value: log(1 + e^x)
becomes softplus(x), 1/(1 + e^-x) the logistic function, 1 - tanh²x four times `bell` of 2x, the
derivative of the logistic function.
"""

from __future__ import annotations

import math

import numpy as np

from .expressions import (
    HALF,
    ONE,
    OPERATIONS,
    TRUTHS,
    TWO,
    ZERO,
    Expression,
    constant,
    node,
)


def _is(x: Expression, value: float) -> bool:
    return x.operation == "constant" and x.value == value


def scaled(x: Expression) -> tuple[float, Expression]:
    """c and y of x = c·y with a number c."""
    if x.operation == "negative":
        c, y = scaled(x.arguments[0])
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
    factor, y = scaled(x)
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
            c, size = scaled(inner.arguments[0])
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
    (a, x), (b, size) = scaled(line), scaled(corner)
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
        c, inner = scaled(y)
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
            c, factor = scaled(a)
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
        c, inner = scaled(x)
        ratio = c / y.value if y.value else math.nan
        if c != 1 and 1e-300 < abs(ratio) < 1e300:
            return multiply(constant(ratio), inner)
    if y.operation == "exp":
        return multiply(x, apply("exp", negative(y.arguments[0])))
    u = _exponent_beside_one(y)
    if u is not None:
        return multiply(x, apply("sigmoid", negative(u)))
    (a, p), (b, q) = scaled(x), scaled(y)
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
    (a, u), (b, v) = scaled(x), scaled(y)
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
    c, inner = scaled(x)
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
