"""Users' expressions as vector code, for the C backend as well if it is to have them compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ...maths import expressions as ex
from ...maths.formulas import activations, elementary, general
from ...maths.programs import lowered
from .compiling import FLAG
from .intrinsics import emits, same
from .vectors import Lanes, Vector, elementwise


def _functions(lanes: Lanes) -> dict[str, Callable]:
    """What computes the operations of expressions; truth values are masks."""
    builder = lanes.builder

    def mask(x: Vector | ir.Value) -> ir.Value:
        """A truth value, which may also be a constant."""
        return builder.not_(x.equals(0)) if isinstance(x, Vector) else x

    return {
        "add": lambda x, y: x + y,
        "subtract": lambda x, y: x - y,
        "multiply": lambda x, y: x * y,
        "divide": lambda x, y: x / y,
        "negative": lambda x: -x,
        "abs": abs,
        "sign": general.sign,
        "max": lambda x, y: x.where(x > y, y).where(x.equals(x), x),
        "min": lambda x, y: x.where(x < y, y).where(x.equals(x), x),
        "sqrt": Vector.sqrt,
        "exp": elementary.exp,
        "decay": lambda x: elementary.exp(-abs(x)),
        "expm1": general.expm1_of_any,
        "log": general.log_of_any,
        "log1p": general.log1p_of_any,
        "log1p_small": elementary.log1p_to_1,
        "sin": elementary.sin,
        "cos": elementary.cos,
        "tanh": elementary.tanh,
        "sigmoid": elementary.sigmoid,
        "bell": activations.sigmoid_slope,
        "arctan": general.arctan,
        "sinh": general.sinh,
        "cosh": general.cosh,
        "erf": general.erf,
        "erfc": general.erfc,
        "power": general.power,
        "less": lambda x, y: x < y,
        "less_equal": lambda x, y: x <= y,
        "equal": lambda x, y: x.equals(y),
        "and": lambda x, y: builder.and_(mask(x), mask(y)),
        "or": lambda x, y: builder.or_(mask(x), mask(y)),
        "not": lambda x: builder.not_(mask(x)),
        "where": lambda c, x, y: x.where(mask(c), y),
    }


def _values(roots: list[ex.Expression], **variables: Vector) -> list[Vector]:
    """The values of expressions."""
    lanes = next(iter(variables.values())).lanes
    return ex.evaluate(lowered(roots), variables, _functions(lanes), lanes.constant)


def activation(roots: list[ex.Expression]) -> Callable:
    """What applies f, df and d2f: (order, n, z, out), for Numba to compile.

    Order 3 multiplies out by df(z).
    """

    def of(root: ex.Expression) -> Any:
        return elementwise(lambda _, z: _values([root], z=z), 2, 1)

    def multiplied(d: Vector, z: Vector) -> tuple[Vector]:
        return (d * _values(roots[1:2], z=z)[0],)

    values, slopes, bends = map(of, roots)
    multiply = elementwise(multiplied, 2, 1)

    def apply(order, n, z, out):
        if order == 0:
            values(n, out, z)
        elif order == 1:
            slopes(n, out, z)
        elif order == 2:
            bends(n, out, z)
        else:
            multiply(n, out, z)

    return apply


@emits(FLAG, same)
def is_given(code, pointer):
    """Whether a pointer is not null."""
    return code.builder.icmp_unsigned("!=", pointer, ir.Constant(pointer.type, None))


def loss(roots: list[ex.Expression]) -> Callable:
    """What applies a loss and its derivatives: (order, n, y, t, weights, factor, d), for Numba."""

    def slopes(_: Vector, y: Vector, t: Vector, factor: Vector) -> tuple[Vector, Vector]:
        value, slope = _values(roots[:2], y=y, t=t)
        return slope * factor, value

    def weighted_slopes(
        _: Vector, y: Vector, t: Vector, w: Vector, factor: Vector
    ) -> tuple[Vector, Vector]:
        value, slope = _values(roots[:2], y=y, t=t)
        return slope * (w * factor), w * value

    def curves(_: Vector, y: Vector, t: Vector, factor: Vector) -> tuple[Vector]:
        return (_values(roots[2:], y=y, t=t)[0] * factor,)

    def weighted_curves(
        _: Vector, y: Vector, t: Vector, w: Vector, factor: Vector
    ) -> tuple[Vector]:
        return (_values(roots[2:], y=y, t=t)[0] * (w * factor),)

    first, first_weighted = (
        elementwise(slopes, 3, 1, True),
        elementwise(weighted_slopes, 4, 1, True),
    )
    second, second_weighted = elementwise(curves, 3, 1), elementwise(weighted_curves, 4, 1)

    def apply(order, n, y, t, weights, factor, d):
        if order == 1:
            if is_given(weights):
                return first_weighted(n, d, y, t, weights, factor)
            return first(n, d, y, t, factor)
        if is_given(weights):
            second_weighted(n, d, y, t, weights, factor)
        else:
            second(n, d, y, t, factor)
        return 0.0

    return apply
