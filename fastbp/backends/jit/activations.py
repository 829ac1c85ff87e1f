"""The activations: formulas over vectors by kind, and the functions compiled from them.

Each kind becomes one function over memory, compiled when a network first has it; layers hold its
address.

The formulas of maths/activations.py are arranged so that nothing cancels, overflows or underflows
before the result does; csrc/core/activations.h has the same arrangement. The short ones stand in
the table, the others before it:

- A result that may be subnormal is made of the exponential's mantissa and multiplied by its power
  of two at the end, so that it is rounded once.
- A large argument of the exponential is a sum of two numbers, as its absolute error becomes a
  relative one.
- Where a derivative crosses zero, its numerator is a sum of differences from the root's values,
  which have the same sign; the root is a sum of two numbers.

Arguments are cut where the function has become 0, 1 or z, so that infinities need no care.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from ...maths import activations as kinds
from .. import user_code
from . import elementary
from .compiling import INTEGER, NOTHING, NUMBER, family, reals
from .elementary import (
    Reduced,
    TwoWords,
    number,
    one_plus_product,
    product,
    ratio,
    reduce_exp,
    scale,
)
from .vectors import Vector, as_real, call_c, elementwise

# What an activation's function computes, beside the function and its derivatives (0, 1, 2).
BACKWARD = 3

Formula = Callable[[Vector, TwoWords], Vector]  # of z (or y) and the activation's constant


def _constant(z: Vector, x: float) -> Vector:
    return z.lanes.constant(x)


def _nan_like(z: Vector, value: Vector) -> Vector:
    return value.where(z.equals(z), z)


def _above_0(z: Vector, x: float, otherwise: Vector) -> Vector:
    """x where z > 0; what is NaN elsewhere makes the result NaN."""
    return _constant(z, x).where(z > 0, otherwise)


def _indicator(z: Vector, mask: ir.Value, x: float = 1) -> Vector:
    """x under the mask, else 0; NaN where z is."""
    return _nan_like(z, _constant(z, x).where(mask, 0))


def _zero(z: Vector, _: TwoWords) -> Vector:
    return _nan_like(z, _constant(z, 0))


def _relu_derivative(z: Vector, at_zero: TwoWords) -> Vector:
    return _above_0(z, 1, at_zero.high.where(z.equals(0), _constant(z, 0).where(z < 0, z)))


def _relu6_derivative(z: Vector, _: TwoWords) -> Vector:
    return _nan_like(z, _constant(z, 1).where(z < 6, 0).where(z > 0, 0))


# The sigmoid and its kin. tanh z is 2σ(2z) - 1, so that tanh' and tanh'' cancel nowhere by σ' and
# σ''; softplus' is σ.


def _one_plus_squared(t: Vector) -> Vector:
    """(1 + t)², rounded about once for small t."""
    return 1 + t * (2 + t)


def _sigmoid_derivative(z: Vector) -> Vector:
    t = elementary.exp(-abs(z))
    return t / _one_plus_squared(t)


def _sigmoid_second(z: Vector) -> Vector:
    t = elementary.exp(-abs(z))
    return (t * (1 - t) / ((1 + t) * _one_plus_squared(t))).with_sign_of(-z)


def _softsign(z: Vector, _: TwoWords) -> Vector:
    size = abs(z).at_most(float(z.lanes.info.max))
    return (size / (1 + size)).with_sign_of(z)


def _softsign_second(z: Vector, _: TwoWords) -> Vector:
    t = 1 / (1 + abs(z))
    return _constant(z, 0).where(z.equals(0), (2 * t * t * t).with_sign_of(-z))


def _square(t: Vector) -> Vector:
    return t * t


# The exponential linear units.


def _times_exp(c: Vector, z: Vector) -> Vector:
    """c·e^z for z <= 0, also where it is normal and e^z not."""
    e = reduce_exp(z.at_least(number(z.lanes, "SCALE_LEAST")))
    return scale(c * e.p + c, e)


def _celu_exp(z: Vector, alpha: TwoWords) -> Reduced:
    """e^(z/alpha) for z <= 0."""
    lanes = z.lanes
    least = alpha.high * number(lanes, "EXP_LEAST")  # where celu has become -alpha
    z = z.at_least(least.at_least(float(lanes.info.min)))
    quotient = z / alpha.high
    rest = elementary.residual(z, quotient, alpha.high) - quotient * alpha.low
    return reduce_exp(quotient, rest / alpha.high)


def _celu(z: Vector, alpha: TwoWords) -> Vector:
    linear = z > alpha.high * float(-z.lanes.info.eps / 8)  # and z/alpha might be subnormal
    return z.where(linear, alpha.high * elementary.expm1_of(_celu_exp(z, alpha)))


def _celu_slope(z: Vector, alpha: TwoWords) -> Vector:
    e = _celu_exp(z, alpha)
    return scale(e.p + 1, e)


# Functions g with g(z) - g(-z) = z, which are 0 or z beyond a limit.


def _both_sides(z: Vector, below: Vector) -> Vector:
    """g'(z), given g'(-|z|)."""
    return (1 - below).where(z > 0, below)


def _from_root(size: Vector, name: str) -> TwoWords:
    """|z| less a root. Below root/2 it is rounded as a number of size 1, else exact."""
    high, low = elementary.two_numbers(size.lanes, name)
    d = elementary.ordered_sum(size, _constant(size, -high))
    return elementary.ordered_sum(d.high, d.low - low)


# gelu z = z·Φ(z), by the tail Φ(-a) = e^(-a²/2) q(t) / (1 + a), a >= 0, q a polynomial.


def _normal_exp(size: Vector) -> Reduced:
    square = product(size, size)
    return reduce_exp(-0.5 * square.high, -0.5 * square.low)


def _normal_variable(size: Vector) -> Vector:
    """t = (a - 4) / (a + 4)."""
    return 2 * (size / (size + number(size.lanes, "TAIL_MIDDLE"))) - 1


def _gelu(z: Vector, _: TwoWords) -> Vector:
    size = abs(z).at_most(number(z.lanes, "NORMAL_MOST"))
    tail, e = elementary.polynomial(_normal_variable(size), "TAIL"), _normal_exp(size)
    y = ratio(product(size, tail * e.p + tail), elementary.two_sum(_constant(z, 1), size))
    return z.at_least(0) - scale(y, e)


def _gelu_derivative(z: Vector, _: TwoWords) -> Vector:
    size = abs(z).at_most(number(z.lanes, "NORMAL_MOST"))
    slope, e = elementary.polynomial(_normal_variable(size), "GELU_SLOPE"), _normal_exp(size)
    d = _from_root(size, "GELU_ROOT")
    slope = slope * e.p + slope
    return _both_sides(z, -scale(slope * d.high + slope * d.low, e))


def _gelu_second(z: Vector, _: TwoWords) -> Vector:
    size = abs(z).at_most(number(z.lanes, "NORMAL_MOST"))
    density = number(z.lanes, "DENSITY_0") * elementary.exp(-0.5 * size * size)
    return (2 - size * size) * density


# z·σ(v(z)) with v(z) = c1 z + c3 z³: silu (c1 = 1, c3 = 0) and gelu_tanh.


def _gated(z: Vector, v: TwoWords, limit: float) -> Vector:
    """The function, given |v|."""
    e = reduce_exp(-v.high, -v.low)
    m = e.p + 1
    negative, t = z < 0, scale(m, e)
    y = z.at_least(-limit) * m.where(negative, 1) / (1 + t)
    return scale(y, e).where(negative, y)


def _mantissa(e: Reduced, high: Vector, low: Vector) -> Vector:
    """2^-k T e^x, T a sum of two."""
    return high + (high * e.p + low)


def _gated_slope(
    z: Vector, root: tuple[float, float], delta: TwoWords, d: TwoWords, s: Vector, g: Vector
) -> Vector:
    """The derivative, given T, δ, d, s and g.

    At z = -a it is t (1 + t - a v'(a)) / (1 + t)² with t = e^-v(a). The bracket is 0 at a0, where t
    is T; with d = a - a0, δ = v(a) - v(a0), s = δ / d and g = 2 (s - c1) it is therefore
    T (e^-δ - 1) - d (s + g).
    """
    high, low = (_constant(z, part) for part in root)
    e = reduce_exp(-delta.high, -delta.low)
    m = _mantissa(e, high, low)
    t = scale(m, e)
    bracket = ((high * elementary.expm1_of(e) - d.low * (s + g)) - d.high * g) - d.high * s
    return _both_sides(z, scale(ratio(product(m, bracket), one_plus_product(t, 2 + t)), e))


def _silu(z: Vector, _: TwoWords) -> Vector:
    limit = number(z.lanes, "LOGISTIC_MOST")
    return _gated(z, TwoWords(abs(z).at_most(limit), _constant(z, 0)), limit)


def _silu_derivative(z: Vector, _: TwoWords) -> Vector:
    d = _from_root(abs(z).at_most(number(z.lanes, "LOGISTIC_MOST")), "SILU_ROOT")
    root = elementary.two_numbers(z.lanes, "SILU_EXP")
    return _gated_slope(z, root, d, d, _constant(z, 1), _constant(z, 0))


def _silu_second(z: Vector, _: TwoWords) -> Vector:
    size = abs(z).at_most(number(z.lanes, "LOGISTIC_MOST"))
    t = elementary.exp(-size)
    return t * (2 - size * (1 - t) / (1 + t)) / _one_plus_squared(t)


def _gelu_tanh(z: Vector, _: TwoWords) -> Vector:
    limit = number(z.lanes, "GELU_TANH_MOST")
    c1, c1_low = elementary.two_numbers(z.lanes, "GELU_TANH_1")
    c3, c3_low = elementary.two_numbers(z.lanes, "GELU_TANH_3")
    size = abs(z).at_most(limit)
    square = product(size, size)
    cubic = product(square.high, _constant(z, c3))
    s, low = elementary.two_sum(_constant(z, c1), cubic.high)
    low = low + (cubic.low + c3 * square.low + c3_low * square.high + c1_low)
    v, v_low = product(size, s)
    return _gated(z, TwoWords(v, v_low + size * low), limit)


def _gelu_tanh_derivative(z: Vector, _: TwoWords) -> Vector:
    # s = c3 a² + GELU_TANH_S1 a + GELU_TANH_S0
    c1, c1_low = elementary.two_numbers(z.lanes, "GELU_TANH_1")
    c3, c3_low = elementary.two_numbers(z.lanes, "GELU_TANH_3")
    s1, s1_low = elementary.two_numbers(z.lanes, "GELU_TANH_S1")
    s0, s0_low = elementary.two_numbers(z.lanes, "GELU_TANH_S0")
    size = abs(z).at_most(number(z.lanes, "GELU_TANH_MOST"))
    d = _from_root(size, "GELU_TANH_ROOT")
    cubic = product(size, _constant(z, c3))
    linear = elementary.two_sum(cubic.high, _constant(z, s1))
    low = linear.low + (cubic.low + size * c3_low + s1_low)
    square = product(size, linear.high)
    s = elementary.two_sum(square.high, _constant(z, s0))
    low = s.low + (size * low + s0_low + square.low)
    delta = product(d.high, s.high)
    delta = TwoWords(delta.high, delta.low + (d.high * low + d.low * s.high))
    g = 2 * ((s.high - c1) + (1.5 * low - c1_low))  # with the low part of s + g
    root = elementary.two_numbers(z.lanes, "GELU_TANH_EXP")
    return _gated_slope(z, root, delta, d, s.high, g)


def _gelu_tanh_second(z: Vector, _: TwoWords) -> Vector:
    c1, c3 = (number(z.lanes, f"GELU_TANH_{i}_HI") for i in (1, 3))
    size = abs(z).at_most(number(z.lanes, "GELU_TANH_MOST"))
    square = size * size
    t, slope = elementary.exp(-size * (c1 + c3 * square)), c1 + 3 * c3 * square
    bend = size * slope * slope * (1 - t) / (1 + t)
    return t * (2 * slope + 6 * c3 * square - bend) / _one_plus_squared(t)


# mish z = z·w. With t = e^-|z|, x = t for z >= 0 and x = t/2 for z < 0, w is 1 + 2x and t (1 + x),
# in this order, over 1 + 2x(1 + x).


def _mish(z: Vector, _: TwoWords) -> Vector:
    limit, negative = number(z.lanes, "LOGISTIC_MOST"), z < 0
    e = reduce_exp(-abs(z).at_most(limit))
    m = e.p + 1
    t = scale(m, e)
    x = (0.5 * t).where(negative, t)
    numerator = 1 + (x * m + e.p).where(negative, 2 * x)
    y = ratio(product(z.at_least(-limit), numerator), one_plus_product(2 * x, 1 + x))
    y = scale(y, e).where(negative, y)
    return z.where(z > limit, y.with_sign_of(z))  # the ratio of -0 is 0


def _mish_derivative(z: Vector, _: TwoWords) -> Vector:
    # The denominator is (1 + 2x(1 + x))² = 1 + x (4 + 8x + 8x² + 4x³), the numerator for z >= 0
    # 1 + 4t + 6t² + 4t³ + 4z t² (1 + t). For z = -a < 0 it is t (n(t) / 4 - a (1 + t)), n(t) = t³ +
    # 4t² + 6t + 4. The bracket is 0 at a0, where t is T, and therefore (t - T) times
    # t²/4 + MISH_1 t + MISH_0, less (a - a0)(1 + t).
    lanes, negative = z.lanes, z < 0
    t0, t0_low = (_constant(z, part) for part in elementary.two_numbers(lanes, "MISH_EXP"))
    size = abs(z).at_most(number(lanes, "LOGISTIC_MOST"))
    d = _from_root(size, "MISH_ROOT")
    e = reduce_exp(-d.high.where(negative, size), -d.low.where(negative, 0))
    m = _mantissa(e, t0.where(negative, 1), t0_low.where(negative, 0))
    t = scale(m, e)
    x = t * _constant(z, 0.5).where(negative, 1)

    difference = t0 * elementary.expm1_of(e)
    difference = difference * (t * (0.25 * t + number(lanes, "MISH_1")) + number(lanes, "MISH_0"))
    bracket = elementary.two_sum(difference - d.low - d.high * t, -d.high)
    below, below_low = product(m, bracket.high)
    below_low = below_low + m * bracket.low
    above = ((4 * t + 6) * t + 4) * t + 1 + 4 * size * t * t * (1 + t)
    numerator = TwoWords(below.where(negative, above), below_low.where(negative, 0))

    slope = elementary.ordered_sum(_constant(z, 4), ((4 * x + 8) * x + 8) * x)
    denominator, denominator_low = one_plus_product(x, slope.high)
    y = ratio(numerator, TwoWords(denominator, denominator_low + x * slope.low))
    return scale(y, e).where(negative, y)


def _mish_second(z: Vector, _: TwoWords) -> Vector:
    # 2w' + z w''. Over (1 + 2x(1 + x))², w' is t (1 + t) for z < 0, else 4t² (1 + t); w'' is
    # w' (1 - σ - 2wσ).
    size, negative = abs(z).at_most(number(z.lanes, "LOGISTIC_MOST")), z < 0
    t = elementary.exp(-size)
    x = (0.5 * t).where(negative, t)
    q = 1 + 2 * x * (1 + x)
    w = (t * (1 + x)).where(negative, 1 + 2 * x) / q
    slope = t * (1 + t) * _constant(z, 1).where(negative, 4 * t) / (q * q)
    s = t.where(negative, 1) / (1 + t)
    return slope * (2 + size.with_sign_of(z) * (1 - s - 2 * w * s))


class Formulas(NamedTuple):
    """An activation and its derivatives; the last one is from y, or None if that needs z."""

    f: Formula
    df: Formula
    d2f: Formula
    df_from_y: Formula | None

    def of(self, task: int) -> Formula:
        """The formula for a task: a derivative's order, or BACKWARD."""
        return (self.f, self.df, self.d2f, self.df_from_y or self.df)[task]


_SELU_SCALE, _SELU_DEPTH = kinds.SELU_SCALE, kinds.SELU_SCALE * kinds.SELU_ALPHA

FORMULAS = {
    kinds.LINEAR: Formulas(
        lambda z, _: z,
        lambda z, _: _constant(z, 1),
        lambda z, _: _constant(z, 0),
        lambda y, _: _constant(y, 1),
    ),
    kinds.RELU: Formulas(lambda z, _: z.at_least(0), _relu_derivative, _zero, _relu_derivative),
    kinds.RELU_Z: Formulas(lambda z, _: z.at_least(0), _relu_derivative, _zero, None),
    kinds.LEAKY_RELU: Formulas(
        lambda z, slope: z.where(z > 0, slope.high * z),
        lambda z, slope: _above_0(z, 1, _nan_like(z, slope.high)),
        _zero,
        lambda y, slope: _above_0(y, 1, _nan_like(y, slope.high)),
    ),
    kinds.SIGMOID: Formulas(
        lambda z, _: elementary.sigmoid(z),
        lambda z, _: _sigmoid_derivative(z),
        lambda z, _: _sigmoid_second(z),
        lambda y, _: y * (1 - y),
    ),
    kinds.TANH: Formulas(
        lambda z, _: elementary.tanh(z),
        lambda z, _: 4 * _sigmoid_derivative(2 * z),
        lambda z, _: 8 * _sigmoid_second(2 * z),
        lambda y, _: 1 - y * y,
    ),
    kinds.ELU: Formulas(
        lambda z, alpha: (alpha.high * elementary.expm1_below(z)).where(z < 0, z),
        lambda z, alpha: _above_0(z, 1, _times_exp(alpha.high, z)),
        lambda z, alpha: _above_0(z, 0, _times_exp(alpha.high, z)),
        lambda y, alpha: _above_0(y, 1, y + alpha.high),
    ),
    kinds.SELU: Formulas(
        lambda z, _: (_SELU_DEPTH * elementary.expm1_below(z)).where(z < 0, _SELU_SCALE * z),
        lambda z, _: _above_0(z, _SELU_SCALE, _times_exp(_constant(z, _SELU_DEPTH), z)),
        lambda z, _: _above_0(z, 0, _times_exp(_constant(z, _SELU_DEPTH), z)),
        lambda y, _: _above_0(y, _SELU_SCALE, y + _SELU_DEPTH),
    ),
    kinds.CELU: Formulas(
        _celu,
        lambda z, alpha: _above_0(z, 1, _celu_slope(z, alpha)),
        lambda z, alpha: _above_0(z, 0, _celu_slope(z, alpha) / alpha.high),
        lambda y, alpha: _above_0(y, 1, y / alpha.high + 1),
    ),
    kinds.SOFTPLUS: Formulas(
        lambda z, _: z.at_least(0) + elementary.log1p_to_1(elementary.exp(-abs(z))),
        lambda z, _: elementary.sigmoid(z),
        lambda z, _: _sigmoid_derivative(z),
        None,
    ),
    kinds.SOFTSIGN: Formulas(
        _softsign,
        lambda z, _: _square(1 / (1 + abs(z))),
        _softsign_second,
        lambda y, _: _square(1 - abs(y)),
    ),
    kinds.GELU: Formulas(_gelu, _gelu_derivative, _gelu_second, None),
    kinds.GELU_TANH: Formulas(_gelu_tanh, _gelu_tanh_derivative, _gelu_tanh_second, None),
    kinds.SILU: Formulas(_silu, _silu_derivative, _silu_second, None),
    kinds.MISH: Formulas(_mish, _mish_derivative, _mish_second, None),
    kinds.HARD_TANH: Formulas(
        lambda z, _: z.at_least(-1).at_most(1),
        lambda z, _: _indicator(z, abs(z) < 1),
        _zero,
        lambda y, _: _indicator(y, abs(y) < 1),
    ),
    kinds.HARD_SIGMOID: Formulas(
        lambda z, _: (z.at_least(-3).at_most(3) + 3) / 6,
        lambda z, _: _indicator(z, abs(z) < 3, 1 / 6),
        _zero,
        None,
    ),
    kinds.RELU6: Formulas(
        lambda z, _: z.at_least(0).at_most(6), _relu6_derivative, _zero, _relu6_derivative
    ),
    kinds.EXP: Formulas(
        lambda z, _: elementary.exp(z),
        lambda z, _: elementary.exp(z),
        lambda z, _: elementary.exp(z),
        lambda y, _: y,
    ),
    kinds.SIN: Formulas(
        lambda z, _: elementary.sin(z),
        lambda z, _: elementary.cos(z),
        lambda z, _: -elementary.sin(z),
        None,
    ),
}


def _apply(task: int) -> Callable:
    def formula_of(kind: int) -> Callable:
        formula = FORMULAS[kind].of(task)
        return lambda out, x, c, low: (formula(x, TwoWords(c, low)),)

    return elementwise(formula_of, 2, 1, by_kind=True)


def _multiply_formula(kind: int) -> Callable:
    formula = FORMULAS[kind].of(BACKWARD)
    return lambda d, x, c, low: (d * formula(x, TwoWords(c, low)),)


_apply_f, _apply_df, _apply_d2f = map(_apply, range(3))
_multiply_by_df = elementwise(_multiply_formula, 2, 1, by_kind=True)


@family(NOTHING, INTEGER, INTEGER, reals, reals, NUMBER, INTEGER, kinds={*FORMULAS, kinds.USER})
def call_activation(kind):
    """The function of an activation; jitted code calls it by its address."""

    def activation(task, n, x, out, constant, user):
        """To out, which may be x: f, f' or f'' of n numbers x; or out times f', from y or z as x.

        `user` is the address of a user's own functions; for all others it is 0.
        """
        c = as_real(out, constant)
        low = as_real(out, constant - c)
        if task == BACKWARD:
            _multiply_by_df(kind, n, out, x, c, low)
        elif task == 0:
            _apply_f(kind, n, out, x, c, low)
        elif task == 1:
            _apply_df(kind, n, out, x, c, low)
        else:
            _apply_d2f(kind, n, out, x, c, low)

    def user_activation(task, n, x, out, constant, user):
        """The same by the functions that the user brought."""
        call_c(user, task, n, x, out)

    return user_activation if kind == kinds.USER else activation


def address(kind: int, dtype: np.dtype) -> int:
    """Of the function of an activation's kind."""
    return call_activation.address(dtype, kind)


def addresses(act: kinds.ActivationSpec, dtype: np.dtype) -> tuple[int, int]:
    """Of an activation's function, and of the user's own functions or 0."""
    user = 0 if act.functions is None else user_code.address(act.functions, dtype)
    return address(act.kind, dtype), user
