"""Elementary functions of vectors: exp, expm1, tanh, sigmoid, log, sin, cos.

They are polynomials after argument reduction, without tables, accurate to about 1 to 3 ULP over the
whole range of the type. The C backend uses the same formulas, with the same coefficients and
limits. What one number of the type cannot hold is a sum of two. NaN passes through every select:
comparisons are false for it, so each clamp keeps the argument where the comparison fails.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .. import polynomials
from .vectors import Integers, Lanes, Vector


def number(lanes: Lanes, name: str) -> Any:
    """A number or list of the table, of the lanes' type."""
    return getattr(polynomials, f"{name}_{lanes.name}")


def two_numbers(lanes: Lanes, name: str) -> tuple[float, float]:
    """Both parts of a number of the table that is given as a sum of two."""
    return number(lanes, f"{name}_HI"), number(lanes, f"{name}_LO")


def _horner(x: Vector, coefficients: tuple[float, ...]) -> Vector:
    result = x.lanes.constant(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + c
    return result


def polynomial(x: Vector, name: str) -> Vector:
    """The polynomial of a list of coefficients in the table."""
    coefficients = number(x.lanes, name)
    if len(coefficients) < 13:
        return _horner(x, coefficients)
    # The processor can work on the even and on the odd powers at once.
    square = x * x
    return _horner(square, coefficients[1::2]) * x + _horner(square, coefficients[::2])


# Sums of two numbers. The errors of products and sums are numbers of the type themselves (T. J.
# Dekker, "A floating-point technique for extending the available precision", 1971).


class TwoWords(NamedTuple):
    """A sum of two numbers; |low| is about the rounding of high."""

    high: Vector
    low: Vector


def product(a: Vector, b: Vector) -> TwoWords:
    """a·b."""
    p = a.times(b)
    return TwoWords(p, a.times_plus(b, -p))


def one_plus_product(a: Vector, b: Vector) -> TwoWords:
    """1 + a·b, for a·b >= 0."""
    s = 1 + a * b
    return TwoWords(s, a.times_plus(b, 1 - s))


def two_sum(a: Vector, b: Vector) -> TwoWords:
    """a + b."""
    s = a.plus(b)
    rest = s.minus(a)
    return TwoWords(s, a.minus(s.minus(rest)).plus(b.minus(rest)))


def ordered_sum(a: Vector, b: Vector) -> TwoWords:
    """a + b where |a| >= |b| or a = 0."""
    s = a.plus(b)
    return TwoWords(s, b.minus(s.minus(a)))


def residual(x: Vector, a: Vector, b: Vector) -> Vector:
    """x - a·b, rounded once if a·b is close to x."""
    return (-a).times_plus(b, x)


def ratio(a: TwoWords, b: TwoWords) -> Vector:
    """a / b, rounded about once."""
    inverse = 1 / b.high
    q = a.high.times(inverse)
    return q + inverse * (residual(a.high, q, b.high) + (a.low - q * b.low))


# exp and its kin.


class Reduced(NamedTuple):
    """e^x = 2^k (1 + p), for the integer k nearest to x / ln 2."""

    p: Vector
    k: Vector
    shifted: Vector  # has k in its last bits


def _shift(lanes: Lanes) -> float:
    """1.5·2^m for m mantissa bits: adding it rounds to an integer, the sum's last bits."""
    return 1.5 * 2.0**lanes.info.nmant


def reduce_exp(x: Vector, low: Vector | float = 0.0) -> Reduced:
    """The exponential's parts for x + low."""
    lanes = x.lanes
    shifted = x * number(lanes, "LOG2E") + _shift(lanes)
    k = shifted - _shift(lanes)
    r = x - k * number(lanes, "LN2_HI")
    r = r - (k * number(lanes, "LN2_LO") - low)
    return Reduced(r + r * r * polynomial(r, "EXP"), k, shifted)


def _exponent(shifted: Vector) -> Integers:
    """k from the last bits in the place of the exponent; added to the bits of 1 it makes 2^k."""
    return shifted.bits() << shifted.lanes.info.nmant


def _power_of_two(exponent: Integers, lanes: Lanes) -> Vector:
    return lanes.from_bits(exponent + lanes.constant(1).bits())


def scale(y: Vector, e: Reduced) -> Vector:
    """2^k y, rounded only where it is subnormal; for arguments above SCALE_LEAST."""
    # In two steps, since 2^k may be out of range where 2^k y is not.
    lanes = y.lanes
    k, half = _exponent(e.shifted), _exponent(e.k * 0.5 + _shift(lanes))
    return y * _power_of_two(half, lanes) * _power_of_two(k - half, lanes)


def exp(x: Vector) -> Vector:
    """e^x."""
    least, most = (number(x.lanes, f"EXP_{end}") for end in ("LEAST", "MOST"))
    e = reduce_exp(x.at_least(least).at_most(most))
    return scale(e.p + 1, e)


def expm1_of(e: Reduced) -> Vector:
    """e^x - 1, accurate relative to itself, for x up to 1 or so."""
    s = scale(e.p.lanes.constant(1), e)
    return s * e.p + (s - 1)


def expm1_below(x: Vector) -> Vector:
    """e^x - 1 for x up to 1 or so."""
    return expm1_of(reduce_exp(x.at_least(number(x.lanes, "EXPM1_LEAST"))))


def expm1(x: Vector) -> Vector:
    """e^x - 1 of numbers that are not subnormal."""
    lanes = x.lanes
    overflow = (lanes.info.maxexp + 0.25) * math.log(2)
    e = reduce_exp(x.at_least(number(lanes, "EXPM1_LEAST")).at_most(overflow))
    half = _power_of_two(_exponent(e.shifted - 1), lanes)  # 2^k itself may be out of range
    return (e.p * half + (half - 0.5)) * 2.0


def tanh(x: Vector) -> Vector:
    """The hyperbolic tangent: with t = e^(-2|x|) - 1 it is -t / (t + 2), with the sign of x."""
    size = abs(x)
    e = reduce_exp((size * -2).at_least(number(x.lanes, "EXPM1_LEAST")))
    s = _power_of_two(_exponent(e.shifted), x.lanes)
    t = e.p * s + (s - 1)
    # Near 1 the roundings of t and t + 2 would add up to 2.5 ULP; 1 - 2(t + 1)/(t + 2), the same,
    # scales them down.
    large = size > 0.75
    u = e.p * s + s
    quotient = (u * 2).where(large, -t) / (t + 2)
    return (1 - quotient).where(large, quotient).with_sign_of(x)


def sigmoid(x: Vector) -> Vector:
    """1 / (1 + e^-x), as t / (1 + t) with t = e^-|x| where x < 0."""
    t = exp(-abs(x))
    return t.where(x < 0, 1) / (t + 1)


# log.


def _log1p_rest(u: Vector) -> Vector:
    # With s = u / (2 + u), log(1 + u) is 2 atanh s = 2s + 2s³ q(s²), and 2s = u - s u.
    s = u / (u + 2)
    square = s * s
    return s * (u - 2 * square * polynomial(square, "ATANH"))


def log1p_to_1(u: Vector) -> Vector:
    """log(1 + u) for u in [-1/2, 1]."""
    return u - _log1p_rest(u)


def twice_atanh(s: Vector) -> Vector:
    """log((1 + s) / (1 - s)) for |s| <= 1/3."""
    square = s * s
    return s * 2 + s * square * 2 * polynomial(square, "ATANH")


def log(x: Vector) -> Vector:
    """log x of numbers that are not subnormal: -inf for 0, NaN for negative ones."""
    lanes, mantissa_bits = x.lanes, x.lanes.info.nmant
    # x = 2^k (1 + u) with 1 + u in [sqrt(1/2), sqrt(2)).
    k = (x.bits() - lanes.constant(math.sqrt(0.5)).bits()) >> mantissa_bits
    u = lanes.from_bits(x.bits() - (k << mantissa_bits)) - 1
    shift = _shift(lanes)
    n = lanes.from_bits(lanes.constant(shift).bits() + k) - shift
    y = n * number(lanes, "LN2_HI") + (u - (_log1p_rest(u) - n * number(lanes, "LN2_LO")))
    y = y.where(x < math.inf, x)  # NaN and infinity as they are
    return y.where(x > 0, lanes.constant(-math.inf).where(x.equals(0), math.nan))


# sin and cos.


def _shifted_sin(x: Vector, shift: float) -> Vector:
    """sin(x + shift·pi), shift 0 or 1/2, of numbers up to SIN_MOST."""
    # With x = (k - shift) pi + r it is (-1)^k sin r. Numbers close to a multiple of pi need r to
    # twice the precision.
    lanes = x.lanes
    shifted = (x * number(lanes, "INV_PI") + shift) + _shift(lanes)
    k = (shifted - _shift(lanes)) - shift
    first = residual(x, k, lanes.constant(number(lanes, "PI_1")))
    second = product(k, lanes.constant(number(lanes, "PI_2")))
    r, low = two_sum(first, -second.high)
    low = low - (second.low + k * number(lanes, "PI_3"))
    square = r * r
    y = r + (low + r * square * polynomial(square, "SIN"))
    sign = shifted.bits() << (lanes.real.bitwidth - 1)
    return lanes.from_bits(y.bits() ^ sign)


def _with_large(x: Vector, y: Vector, name: str) -> Vector:
    """y, and the C library's function of x where |x| is large: it has more digits of pi."""
    return x.in_c_where(abs(x) > number(x.lanes, "SIN_MOST"), name, y)


def sin(x: Vector) -> Vector:
    """The sine."""
    y = _with_large(x, _shifted_sin(x, 0.0), "sin")
    return x.where(x.equals(0), y)  # -0 stays


def cos(x: Vector) -> Vector:
    """The cosine."""
    return _with_large(x, _shifted_sin(x, 0.5), "cos")


# Of any number.


def log_of_any(x: Vector) -> Vector:
    """log x, of subnormal numbers too: these times a power of two."""
    bits, small = x.lanes.info.nmant + 2, x < float(x.lanes.info.tiny)
    y = log((x * 2.0**bits).where(small, x))
    return (y - bits * math.log(2)).where(small, y)


def log1p_of_any(x: Vector) -> Vector:
    """log(1 + x): 1 + x = s + e = 2^k (1 + u), where e is the sum's error."""
    lanes, mantissa_bits = x.lanes, x.lanes.info.nmant
    s, rest = two_sum(lanes.constant(1), x)
    k = (s.bits() - lanes.constant(math.sqrt(0.5)).bits()) >> mantissa_bits
    u = lanes.from_bits(s.bits() - (k << mantissa_bits)) - 1
    u = u + rest * lanes.from_bits(lanes.constant(1).bits() - (k << mantissa_bits))
    shift = _shift(lanes)
    n = lanes.from_bits(lanes.constant(shift).bits() + k) - shift
    y = n * number(lanes, "LN2_HI") + (u - (_log1p_rest(u) - n * number(lanes, "LN2_LO")))
    y = y.where(x < math.inf, x)  # NaN and infinity as they are
    y = lanes.constant(-math.inf).where(x.equals(-1), y)
    return x.where(x.equals(0), lanes.constant(math.nan).where(x < -1, y))


def expm1_of_any(x: Vector) -> Vector:
    """e^x - 1, of subnormal numbers too."""
    return x.where(abs(x) < float(x.lanes.info.eps / 4), expm1(x))
