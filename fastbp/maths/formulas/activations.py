"""The activations and their derivatives as vector formulas.

The formulas of maths/activations.py are arranged so that nothing cancels, overflows or underflows
before the result does:

- A result that may be subnormal is made of the exponential's mantissa and multiplied by its power
  of two at the end, so that it is rounded once.
- A large argument of the exponential is a sum of two numbers, as its absolute error becomes a
  relative one.
- Where a first derivative crosses zero, its numerator is a sum of differences from the root's
  values, which have the same sign; the root is a sum of two numbers.

Arguments are cut where the function has become 0, 1 or z, so that infinities need no care. The
short formulas stand in the table, the others before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..activations import SELU_ALPHA, SELU_SCALE, TABLE
from .elementary import (
    cos,
    exp,
    expm1_below,
    expm1_of,
    log1p_to_1,
    one_plus_product,
    ordered_sum,
    product,
    ratio,
    reduce_exp,
    residual,
    scale,
    sigmoid,
    sin,
    tanh,
    two_sum,
)
from .vector import Reduced, TwoWords, V, named


def _nan_like(z: V, value: V) -> V:
    return value.where(z.equals(z), z)


def _above_0(z: V, x: float, otherwise: V) -> V:
    """x where z > 0; what is NaN elsewhere makes the result NaN."""
    return z.constant(x).where(z > 0, otherwise)


def _indicator(z: V, mask: Any, x: float = 1) -> V:
    """x under the mask, else 0; NaN where z is."""
    return _nan_like(z, z.constant(x).where(mask, 0))


def zero(z: V, _: TwoWords) -> V:
    """0, and NaN where z is NaN: the higher derivatives of what is linear between corners."""
    return _nan_like(z, z.constant(0))


def _relu_derivative(z: V, at_zero: TwoWords) -> V:
    return _above_0(z, 1, z.constant(0).where(z < 0, at_zero.high.where(z.equals(0), z)))


def _relu6_derivative(z: V, _: TwoWords) -> V:
    return _nan_like(z, z.constant(1).where(z < 6, 0).where(z > 0, 0))


# The sigmoid and its kin, by t = e^-|z|. tanh z is 2σ(2z) - 1, so that the derivatives of tanh
# cancel nowhere by those of σ; softplus' is σ.


@named("one_plus_squared")
def one_plus_squared(t: V) -> V:
    """(1 + t)², rounded about once for small t."""
    return 1 + t * (2 + t)


@named("sigmoid_slope")
def sigmoid_slope(z: V) -> V:
    """σ'(z), to 4 ULP."""
    t = exp(-abs(z))
    return t / one_plus_squared(t)


@named("sigmoid_second")
def sigmoid_second(z: V) -> V:
    """σ''(z)."""
    t = exp(-abs(z))
    return (t * (1 - t) / ((1 + t) * one_plus_squared(t))).with_sign_of(-z)


@named("sigmoid_third")
def sigmoid_third(z: V) -> V:
    """σ'''(z) = σ'(1 - 6σ')."""
    t = exp(-abs(z))
    square = one_plus_squared(t)
    return t * (1 + t * (t - 4)) / (square * square)


def _softsign(z: V, _: TwoWords) -> V:
    size = abs(z).at_most(z.number("LARGEST"))
    return (size / (1 + size)).with_sign_of(z)


def _softsign_second(z: V, _: TwoWords) -> V:
    t = 1 / (1 + abs(z))
    return z.constant(0).where(z.equals(0), (2 * t * t * t).with_sign_of(-z))


def _softsign_third(z: V, _: TwoWords) -> V:
    return z.constant(0).where(z.equals(0), 6 * _square(_square(1 / (1 + abs(z)))))


def _square(t: V) -> V:
    return t * t


# The exponential linear units.


@named("times_exp")
def times_exp(c: V, z: V) -> V:
    """c·e^z for z <= 0, also where it is normal and e^z not."""
    e = reduce_exp(z.at_least(z.number("SCALE_LEAST")), z.constant(0))
    return scale(c * e.p + c, e)


@named("celu_exp")
def celu_exp(z: V, alpha: TwoWords) -> Reduced:
    """The parts of e^(z/alpha) for z <= 0."""
    least = alpha.high * z.number("EXP_LEAST")  # where celu has become -alpha
    z = z.at_least(least.at_least(-z.number("LARGEST")))
    quotient = z / alpha.high
    rest = residual(z, quotient, alpha.high) - quotient * alpha.low
    return reduce_exp(quotient, rest / alpha.high)


def _celu(z: V, alpha: TwoWords) -> V:
    linear = z > alpha.high * (-z.number("EPSILON") / 8)  # and z/alpha might be subnormal
    return z.where(linear, alpha.high * expm1_of(celu_exp(z, alpha)))


@named("celu_slope")
def celu_slope(z: V, alpha: TwoWords) -> V:
    """e^(z/alpha) for z <= 0."""
    e = celu_exp(z, alpha)
    return scale(e.p + 1, e)


# Functions g with g(z) - g(-z) = z, which are 0 or z beyond a limit.


def _both_sides(z: V, below: V) -> V:
    """g'(z) from g'(-|z|)."""
    return (1 - below).where(z > 0, below)


def _from_root(size: V, name: str) -> TwoWords:
    """|z| less a root. Below root/2 it is rounded as a number of size 1, else exact."""
    d = ordered_sum(size, size.constant(-size.number(f"{name}_HI")))
    return ordered_sum(d.high, d.low - size.number(f"{name}_LO"))


# gelu z = z·Φ(z), by the tail Φ(-a) = e^(-a²/2) q(t) / (1 + a), a >= 0, q a polynomial.


def _normal_size(z: V) -> V:
    return abs(z).at_most(z.number("NORMAL_MOST"))


@named("normal_exp")
def normal_exp(size: V) -> Reduced:
    """The parts of e^(-a²/2)."""
    square = product(size, size)
    return reduce_exp(-0.5 * square.high, -0.5 * square.low)


@named("normal_variable")
def normal_variable(size: V) -> V:
    """t = (a - 4) / (a + 4)."""
    return 2 * (size / (size + size.number("TAIL_MIDDLE"))) - 1


def _gelu(z: V, _: TwoWords) -> V:
    size = _normal_size(z)
    tail, e = normal_variable(size).polynomial("TAIL"), normal_exp(size)
    y = ratio(product(size, tail * e.p + tail), two_sum(z.constant(1), size))
    return (z.at_least(0) - scale(y, e)).with_sign_of(z)  # of -0, and where it underflows


def _gelu_derivative(z: V, _: TwoWords) -> V:
    size = _normal_size(z)
    slope, e = normal_variable(size).polynomial("GELU_SLOPE"), normal_exp(size)
    d = _from_root(size, "GELU_ROOT")
    slope = slope * e.p + slope
    return _both_sides(z, -scale(slope * d.high + slope * d.low, e))


@named("normal_density")
def normal_density(size: V) -> V:
    """e^(-a²/2) / √(2π)."""
    return size.number("DENSITY_0") * exp(-0.5 * size * size)


def _gelu_second(z: V, _: TwoWords) -> V:
    size = _normal_size(z)
    return (2 - size * size) * normal_density(size)


def _gelu_third(z: V, _: TwoWords) -> V:
    size = _normal_size(z)
    return z.constant(1).with_sign_of(z) * size * (size * size - 4) * normal_density(size)


# z·σ(v(z)) with v(z) = c1 z + c3 z³: silu (c1 = 1, c3 = 0) and gelu_tanh.


@named("gated")
def gated(z: V, v: TwoWords) -> V:
    """The function from |v|, z cut below."""
    e = reduce_exp(-v.high, -v.low)
    m = e.p + 1
    t = scale(m, e)
    y = z * m.where(z < 0, 1) / (1 + t)
    return scale(y, e).where(z < 0, y)


@named("mantissa")
def mantissa(e: Reduced, high: V, low: V) -> V:
    """2^-k T e^x, T = high + low."""
    return high + (high * e.p + low)


@named("gated_slope_below")
def gated_slope_below(root: TwoWords, delta: TwoWords, d: TwoWords, s: V, g: V) -> V:
    """The derivative at z = -a from T, δ, d, s and g.

    It is t (1 + t - a v'(a)) / (1 + t)² with t = e^-v(a). The bracket is 0 at a0, where t is T;
    with d = a - a0, δ = v(a) - v(a0), s = δ / d and g = 2 (s - c1) it is therefore
    T (e^-δ - 1) - d (s + g).
    """
    e = reduce_exp(-delta.high, -delta.low)
    m = mantissa(e, root.high, root.low)
    t = scale(m, e)
    bracket = ((root.high * expm1_of(e) - d.low * (s + g)) - d.high * g) - d.high * s
    return scale(ratio(product(m, bracket), one_plus_product(t, 2 + t)), e)


def _two_numbers(z: V, name: str) -> TwoWords:
    return TwoWords(z.constant(z.number(f"{name}_HI")), z.constant(z.number(f"{name}_LO")))


@named("gated_third")
def gated_third(q: V, slope: V, a: V, v1: V, v2: V, v3: V) -> V:
    """f'''/σ' at a = |z| of z·σ(v), with σ' = slope, 1 - 2σ = -q and the derivatives of v."""
    return 3 * (v2 - q * v1 * v1) + a * (v1 * ((1 - 6 * slope) * v1 * v1 - 3 * q * v2) + v3)


def _silu(z: V, _: TwoWords) -> V:
    limit = z.number("LOGISTIC_MOST")
    return gated(z.at_least(-limit), TwoWords(abs(z).at_most(limit), z.constant(0)))


def _silu_derivative(z: V, _: TwoWords) -> V:
    d = _from_root(abs(z).at_most(z.number("LOGISTIC_MOST")), "SILU_ROOT")
    root = _two_numbers(z, "SILU_EXP")
    return _both_sides(z, gated_slope_below(root, d, d, z.constant(1), z.constant(0)))


def _silu_second(z: V, _: TwoWords) -> V:
    size = abs(z).at_most(z.number("LOGISTIC_MOST"))
    t = exp(-size)
    return t * (2 - size * (1 - t) / (1 + t)) / one_plus_squared(t)


def _silu_third(z: V, _: TwoWords) -> V:
    size = abs(z).at_most(z.number("LOGISTIC_MOST"))
    t = exp(-size)
    slope, q = t / one_plus_squared(t), (1 - t) / (1 + t)
    return z.constant(1).with_sign_of(z) * slope * (size * (1 - 6 * slope) - 3 * q)


def _gelu_tanh(z: V, _: TwoWords) -> V:
    limit = z.number("GELU_TANH_MOST")
    c1, c3 = _two_numbers(z, "GELU_TANH_1"), _two_numbers(z, "GELU_TANH_3")
    size = abs(z).at_most(limit)
    square = product(size, size)
    cubic = product(square.high, c3.high)
    s, low = two_sum(c1.high, cubic.high)
    low = low + (cubic.low + c3.high * square.low + c3.low * square.high + c1.low)
    v, v_low = product(size, s)
    return gated(z.at_least(-limit), TwoWords(v, v_low + size * low))


def _gelu_tanh_derivative(z: V, _: TwoWords) -> V:
    # s = c3 a² + GELU_TANH_S1 a + GELU_TANH_S0
    c1, c3 = _two_numbers(z, "GELU_TANH_1"), _two_numbers(z, "GELU_TANH_3")
    s1, s0 = _two_numbers(z, "GELU_TANH_S1"), _two_numbers(z, "GELU_TANH_S0")
    size = abs(z).at_most(z.number("GELU_TANH_MOST"))
    d = _from_root(size, "GELU_TANH_ROOT")
    cubic = product(size, c3.high)
    linear = two_sum(cubic.high, s1.high)
    low = linear.low + (cubic.low + size * c3.low + s1.low)
    square = product(size, linear.high)
    s = two_sum(square.high, s0.high)
    low = s.low + (size * low + s0.low + square.low)
    delta = product(d.high, s.high)
    delta = TwoWords(delta.high, delta.low + (d.high * low + d.low * s.high))
    g = 2 * ((s.high - c1.high) + (1.5 * low - c1.low))  # with the low part of s + g
    root = _two_numbers(z, "GELU_TANH_EXP")
    return _both_sides(z, gated_slope_below(root, delta, d, s.high, g))


def _gelu_tanh_second(z: V, _: TwoWords) -> V:
    c1, c3 = z.number("GELU_TANH_1_HI"), z.number("GELU_TANH_3_HI")
    size = abs(z).at_most(z.number("GELU_TANH_MOST"))
    square = size * size
    t, slope = exp(-size * (c1 + c3 * square)), c1 + 3 * c3 * square
    bend = size * slope * slope * (1 - t) / (1 + t)
    return t * (2 * slope + 6 * c3 * square - bend) / one_plus_squared(t)


def _gelu_tanh_third(z: V, _: TwoWords) -> V:
    c1, c3 = z.number("GELU_TANH_1_HI"), z.number("GELU_TANH_3_HI")
    size = abs(z).at_most(z.number("GELU_TANH_MOST"))
    square = size * size
    t, bend = exp(-size * (c1 + c3 * square)), z.constant(6 * c3)
    slope, q = t / one_plus_squared(t), (1 - t) / (1 + t)
    rest = gated_third(q, slope, size, c1 + 3 * c3 * square, bend * size, bend)
    return z.constant(1).with_sign_of(z) * slope * rest


# mish z = z·w. With t = e^-|z|, x = t for z >= 0 and x = t/2 for z < 0, w is 1 + 2x and t (1 + x),
# in this order, over 1 + 2x(1 + x).


def _mish(z: V, _: TwoWords) -> V:
    limit, negative = z.number("LOGISTIC_MOST"), z < 0
    e = reduce_exp(-abs(z).at_most(limit), z.constant(0))
    m = e.p + 1
    t = scale(m, e)
    x = (0.5 * t).where(negative, t)
    numerator = 1 + (x * m + e.p).where(negative, 2 * x)
    y = ratio(product(z.at_least(-limit), numerator), one_plus_product(2 * x, 1 + x))
    y = scale(y, e).where(negative, y)
    return z.where(z > limit, y.with_sign_of(z))  # the ratio of -0 is 0


def _mish_derivative(z: V, _: TwoWords) -> V:
    # The denominator is (1 + 2x(1 + x))² = 1 + x (4 + 8x + 8x² + 4x³), the numerator for z >= 0
    # 1 + 4t + t² (6 + 4t + 4z (1 + t)). For z = -a < 0 it is t (n(t) / 4 - a (1 + t)), n(t) = t³ +
    # 4t² + 6t + 4. The bracket is 0 at a0, where t is T, and therefore (t - T) times
    # t²/4 + MISH_1 t + MISH_0, less (a - a0)(1 + t).
    negative, t0 = z < 0, _two_numbers(z, "MISH_EXP")
    size = abs(z).at_most(z.number("LOGISTIC_MOST"))
    d = _from_root(size, "MISH_ROOT")
    e = reduce_exp(-d.high.where(negative, size), -d.low.where(negative, 0))
    m = mantissa(e, t0.high.where(negative, 1), t0.low.where(negative, 0))
    t = scale(m, e)
    x = t * z.constant(0.5).where(negative, 1)

    difference = t0.high * expm1_of(e)
    difference = difference * (t * (0.25 * t + z.number("MISH_1")) + z.number("MISH_0"))
    bracket = two_sum(difference - d.low - d.high * t, -d.high)
    below = product(m, bracket.high)
    above = 1 + t * (4 + t * (6 + 4 * (t + size * (1 + t))))
    numerator = TwoWords(
        below.high.where(negative, above), (below.low + m * bracket.low).where(negative, 0)
    )

    slope = ordered_sum(z.constant(4), ((4 * x + 8) * x + 8) * x)
    denominator = one_plus_product(x, slope.high)
    y = ratio(numerator, TwoWords(denominator.high, denominator.low + x * slope.low))
    return scale(y, e).where(negative, y)


def _mish_factors(z: V) -> tuple[V, V, V, V, V]:
    """z, w, w' and σ, z cut, and σ'. Over (1 + 2x(1 + x))², w' is t (1 + t) for z < 0, else 4t²
    (1 + t)."""
    size, negative = abs(z).at_most(z.number("LOGISTIC_MOST")), z < 0
    t = exp(-size)
    x = (0.5 * t).where(negative, t)
    q = 1 + 2 * x * (1 + x)
    w = (t * (1 + x)).where(negative, 1 + 2 * x) / q
    slope = t * (1 + t) * z.constant(1).where(negative, 4 * t) / (q * q)
    return size.with_sign_of(z), w, slope, t.where(negative, 1) / (1 + t), t


def _mish_second(z: V, _: TwoWords) -> V:
    # 2w' + z w'', where w'' is w' (1 - σ - 2wσ).
    z, w, slope, s, _t = _mish_factors(z)
    return slope * (2 + z * (1 - s - 2 * w * s))


def _mish_third(z: V, _: TwoWords) -> V:
    # 3w'' + z w'''. With w'' = w' h and h = 1 - σ - 2wσ, w''' is w' (h² + h').
    z, w, slope, s, t = _mish_factors(z)
    h = 1 - s - 2 * w * s
    bend = t / one_plus_squared(t)
    return slope * (3 * h + z * (h * h - bend - 2 * (slope * s + w * bend)))


def _minus_cos(z: V, _: TwoWords) -> V:
    return -cos(z)


@dataclass(frozen=True)
class Formulas:
    """An activation and its derivatives as vector formulas.

    Attributes
    ----------
    f, df, d2f, d3f : callable
        (z, c) -> act(z) and its derivatives, c the activation's constant.
    df_from_y : callable or None
        (y, c) -> the first derivative from y = act(z), or None if that needs z.
    ulps : tuple of float
        How accurate f and df are over the whole range of the dtype, in units in the last place.
        d2f and d3f are accurate to 8 and 64 machine epsilons of the larger of 1 and the result.
    """

    f: Callable[..., Any]
    df: Callable[..., Any]
    d2f: Callable[..., Any]
    d3f: Callable[..., Any]
    df_from_y: Callable[..., Any] | None = None
    ulps: tuple[float, float] = (4.0, 4.0)

    def of(self, order: int) -> Callable[..., Any]:
        """The derivative of this order; 0 is the function."""
        return (self.f, self.df, self.d2f, self.d3f)[order]


_SELU_DEPTH = SELU_SCALE * SELU_ALPHA
_EXACT = (0.0, 0.5)

FORMULAS: dict[str, Formulas] = {
    "linear": Formulas(
        lambda z, _: z,
        lambda z, _: z.constant(1),
        lambda z, _: z.constant(0),
        lambda z, _: z.constant(0),
        lambda y, _: y.constant(1),
        _EXACT,
    ),
    "relu": Formulas(
        lambda z, _: z.at_least(0),
        _relu_derivative,
        zero,
        zero,
        lambda y, _: _above_0(y, 1, y),  # which is 0 or NaN otherwise
        _EXACT,
    ),
    "relu_z": Formulas(lambda z, _: z.at_least(0), _relu_derivative, zero, zero, None, _EXACT),
    "leaky_relu": Formulas(
        lambda z, slope: z.where(z > 0, slope.high * z),
        lambda z, slope: _above_0(z, 1, _nan_like(z, slope.high)),
        zero,
        zero,
        lambda y, slope: _above_0(y, 1, _nan_like(y, slope.high)),
    ),
    "sigmoid": Formulas(
        lambda z, _: sigmoid(z),
        lambda z, _: sigmoid_slope(z),
        lambda z, _: sigmoid_second(z),
        lambda z, _: sigmoid_third(z),
        lambda y, _: y * (1 - y),
        (2.5, 4.0),
    ),
    "tanh": Formulas(
        lambda z, _: tanh(z),
        lambda z, _: 4 * sigmoid_slope(2 * z),
        lambda z, _: 8 * sigmoid_second(2 * z),
        lambda z, _: 16 * sigmoid_third(2 * z),
        lambda y, _: 1 - y * y,
        (2.5, 4.0),
    ),
    "elu": Formulas(
        lambda z, alpha: (alpha.high * expm1_below(z)).where(z < 0, z),
        lambda z, alpha: _above_0(z, 1, times_exp(alpha.high, z)),
        lambda z, alpha: _above_0(z, 0, times_exp(alpha.high, z)),
        lambda z, alpha: _above_0(z, 0, times_exp(alpha.high, z)),
        lambda y, alpha: _above_0(y, 1, y + alpha.high),
    ),
    "selu": Formulas(
        lambda z, _: (_SELU_DEPTH * expm1_below(z)).where(z < 0, SELU_SCALE * z),
        lambda z, _: _above_0(z, SELU_SCALE, times_exp(z.constant(_SELU_DEPTH), z)),
        lambda z, _: _above_0(z, 0, times_exp(z.constant(_SELU_DEPTH), z)),
        lambda z, _: _above_0(z, 0, times_exp(z.constant(_SELU_DEPTH), z)),
        lambda y, _: _above_0(y, SELU_SCALE, y + _SELU_DEPTH),
    ),
    "celu": Formulas(
        _celu,
        lambda z, alpha: _above_0(z, 1, celu_slope(z, alpha)),
        lambda z, alpha: _above_0(z, 0, celu_slope(z, alpha) / alpha.high),
        lambda z, alpha: _above_0(z, 0, celu_slope(z, alpha) / alpha.high / alpha.high),
        lambda y, alpha: _above_0(y, 1, y / alpha.high + 1),
    ),
    "softplus": Formulas(
        lambda z, _: z.at_least(0) + log1p_to_1(exp(-abs(z))),
        lambda z, _: sigmoid(z),
        lambda z, _: sigmoid_slope(z),
        lambda z, _: sigmoid_second(z),
    ),
    "softsign": Formulas(
        _softsign,
        lambda z, _: _square(1 / (1 + abs(z))),
        _softsign_second,
        _softsign_third,
        lambda y, _: _square(1 - abs(y)),
    ),
    "gelu": Formulas(_gelu, _gelu_derivative, _gelu_second, _gelu_third),
    "gelu_tanh": Formulas(_gelu_tanh, _gelu_tanh_derivative, _gelu_tanh_second, _gelu_tanh_third),
    "silu": Formulas(_silu, _silu_derivative, _silu_second, _silu_third),
    "mish": Formulas(_mish, _mish_derivative, _mish_second, _mish_third),
    "hard_tanh": Formulas(
        lambda z, _: z.at_least(-1).at_most(1),
        lambda z, _: _indicator(z, abs(z) < 1),
        zero,
        zero,
        lambda y, _: _indicator(y, abs(y) < 1),
        _EXACT,
    ),
    "hard_sigmoid": Formulas(
        lambda z, _: (z.at_least(-3).at_most(3) + 3) / 6,
        lambda z, _: _indicator(z, abs(z) < 3, 1 / 6),
        zero,
        zero,
    ),
    "relu6": Formulas(
        lambda z, _: z.at_least(0).at_most(6),
        _relu6_derivative,
        zero,
        zero,
        _relu6_derivative,
        _EXACT,
    ),
    "exp": Formulas(
        lambda z, _: exp(z),
        lambda z, _: exp(z),
        lambda z, _: exp(z),
        lambda z, _: exp(z),
        lambda y, _: y,
        (2.5, 2.5),
    ),
    "sin": Formulas(
        lambda z, _: sin(z),
        lambda z, _: cos(z),
        lambda z, _: -sin(z),
        _minus_cos,
    ),
}

for _name, _row in TABLE.items():
    assert _name in FORMULAS, f"{_name} has no vector formula"
    assert (_row.df_from_y is None) == (FORMULAS[_name].df_from_y is None), _name
