"""Derivatives of expressions, of any order.

At a corner of max, min or abs the derivative is that of the constant side, and 0 for abs; a sum of
a·x and b·|x| is two straight lines, and the corner belongs to the left one. Where several corners
meet at one point, as in max(x, 0) + log1p(exp(-|x|)), such values do not fit together; there all
take the side to which `where` assigns the point, by default the one below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .algebra import add, apply, compare, divide, multiply, negative, power, scaled, subtract, where
from .expressions import (
    HALF,
    MINUS_ONE,
    ONE,
    TRUTHS,
    TWO,
    ZERO,
    Expression,
    constant,
    evaluate,
    in_order,
    node,
    variable,
)


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
    "arcsin": lambda x, y: divide(ONE, _root(subtract(ONE, x), add(x, ONE))),
    "arccos": lambda x, y: divide(MINUS_ONE, _root(subtract(ONE, x), add(x, ONE))),
    "arccosh": lambda x, y: divide(ONE, _root(subtract(x, ONE), add(x, ONE))),
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


def _root(x: Expression, y: Expression) -> Expression:
    return apply("sqrt", multiply(x, y))


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
        c, inner = scaled(x)
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
