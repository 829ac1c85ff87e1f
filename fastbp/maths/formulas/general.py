"""Functions that expressions of users' need beside those of `elementary`, over their whole range.

Each docstring states the error and the range, subnormal numbers, infinities and NaN included.
"""

from __future__ import annotations

import math

from .activations import normal_variable
from .elementary import (
    expm1,
    log,
    log1p_rest,
    ordered_sum,
    power_of_two,
    product,
    ratio,
    reduce_exp,
    residual,
    scale,
    two_sum,
)
from .vector import TwoWords, V, named


@named("vsign")
def sign(x: V) -> V:
    """-1, 0 or 1, or NaN."""
    return x.constant(1).where(
        x > 0, x.constant(-1).where(x < 0, x.constant(0).where(x.equals(0), x))
    )


# log and expm1.


@named("vlog_of_any")
def log_of_any(x: V) -> V:
    """log x, to 2 ULP everywhere; of a subnormal number by that of a multiple."""
    small = x < x.number("SMALLEST")
    y = log((x * x.number("TO_NORMAL")).where(small, x))
    return (y - x.number("LOG_TO_NORMAL")).where(small, y)


@named("vlog1p_of_any")
def log1p_of_any(x: V) -> V:
    """log(1 + x), to 2 ULP everywhere."""
    # 1 + x = s + e = 2^k (1 + u), where e is the sum's error.
    one, bits = x.constant(1), x.number("MANTISSA_BITS")
    s = two_sum(one, x)
    k = (s.high.bits() - x.constant(math.sqrt(0.5)).bits()) >> bits
    u = x.from_bits(s.high.bits() - (k << bits)) - 1
    rest = s.low * x.from_bits(one.bits() - (k << bits))  # 2^-k is in range where it counts
    u = u + rest.where(x < x.number("TO_INTEGER"), 0)
    shift = x.constant(x.number("TO_INTEGER"))
    n = x.from_bits(shift.bits() + k) - shift
    y = n * x.number("LN2_HI") + (u - (log1p_rest(u) - n * x.number("LN2_LO")))
    y = y.where(x < math.inf, x)  # NaN and infinity as they are
    y = x.constant(-math.inf).where(x.equals(-1), x.constant(math.nan).where(x < -1, y))
    return x.where(x.equals(0), y)


@named("vexpm1_of_any")
def expm1_of_any(x: V) -> V:
    """e^x - 1, to 2.5 ULP everywhere."""
    return x.where(abs(x) < x.number("EPSILON") / 4, expm1(x))


# The hyperbolic functions.


@named("quarter_exp")
def quarter_exp(size: V) -> TwoWords:
    """2^(k - 2) and p of e^x = 2^k (1 + p), for x >= 0; infinity beyond what sinh reaches."""
    e = reduce_exp(size.at_most(size.number("SINH_MOST")), size.constant(0))
    return TwoWords(power_of_two(e.shifted - 2), e.p)


@named("vsinh")
def sinh(x: V) -> V:
    """The hyperbolic sine, to 3 ULP: with u = (e^|x| - 1)/2 it is u + u/(2u + 1)."""
    size = abs(x)
    quarter, p = quarter_exp(size)
    u = (p * quarter + (quarter - 0.25)) * 2
    part = u.at_most(x.number("TO_INTEGER"))  # above, the second term does not count
    y = u + part / (2 * part + 1)
    return size.where(size < x.number("EPSILON") / 4, y).with_sign_of(x)


@named("vcosh")
def cosh(x: V) -> V:
    """The hyperbolic cosine, to 2.5 ULP: h + 1/(4h) with h = e^|x|/2."""
    quarter, p = quarter_exp(abs(x))
    half = (p * quarter + quarter) * 2
    return half + 0.25 / half


# arctan.


@named("varctan")
def arctan(x: V) -> V:
    """The arc tangent, to 2.5 ULP everywhere."""
    # arctan a = c + arctan t with |t| <= tan(pi/8): t = a, (a - 1)/(a + 1), -1/a.
    size, zero, one = abs(x), x.constant(0), x.constant(1)
    large, middle = size > 1 + math.sqrt(2), size > math.sqrt(2) - 1
    above = (-one).where(large, (size - 1).where(middle, size))
    below = size.where(large, (size + 1).where(middle, one))
    t = above / below
    c = one.where(large, x.constant(0.5).where(middle, zero))  # times pi/2
    square = t * t
    rest = t * square * square.polynomial("ARCTAN") + c * x.number("HALF_PI_LO")
    s = ordered_sum(c * x.number("HALF_PI_HI"), t)
    return (s.high + (s.low + rest)).with_sign_of(x)


# The error function. erfc a = 2Φ(-√2 a), whose tail gelu has too.


@named("erfc_of_size")
def erfc_of_size(size: V) -> V:
    """erfc of numbers that are not negative."""
    size = size.at_most(size.number("ERFC_MOST"))
    a = size * math.sqrt(2)
    tail, square = normal_variable(a).polynomial("TAIL"), product(size, size)
    e = reduce_exp(-square.high, -square.low)
    numerator = 2 * (tail * e.p + tail)
    return scale(ratio(TwoWords(numerator, size.constant(0)), two_sum(size.constant(1), a)), e)


@named("verf")
def erf(x: V) -> V:
    """The error function, to 2.5 ULP everywhere."""
    size = abs(x)
    square = size * size
    y = (size + size * square.polynomial("ERF")).where(size < 0.75, 1 - erfc_of_size(size))
    return y.with_sign_of(x)


@named("verfc")
def erfc(x: V) -> V:
    """1 - erf x, to 4 ULP everywhere."""
    size = abs(x)
    square = size * size
    small = 1 - (x + x * square.polynomial("ERF"))
    y = erfc_of_size(size)
    return small.where(size < 0.25, (2 - y).where(x < 0, y))


# Powers.


@named("two_log")
def two_log(size: V) -> TwoWords:
    """log of positive numbers, to twice the precision but for some bits."""
    bits, one, small = (
        size.number("MANTISSA_BITS"),
        size.constant(1),
        size < size.number("SMALLEST"),
    )
    size = (size * size.number("TO_NORMAL")).where(small, size)
    k = (size.bits() - size.constant(math.sqrt(0.5)).bits()) >> bits
    u = size.from_bits(size.bits() - (k << bits)) - 1
    shift = size.constant(size.number("TO_INTEGER"))
    n = size.from_bits(shift.bits() + k) - shift
    n = (n - size.number("NORMAL_BITS")).where(small, n)
    # log(1 + u) = 2 atanh s = 2s + 2s³ (1/3 + s² q(s²)) with s = u / (2 + u).
    divisor = two_sum(2 * one, u)
    s = u / divisor.high
    s_low = (residual(u, s, divisor.high) - s * divisor.low) / divisor.high
    square = product(s, s)
    square_low = square.low + 2 * s * s_low
    third = ordered_sum(one * size.number("THIRD_HI"), square.high * square.high.polynomial("LOG"))
    third_low = third.low + size.number("THIRD_LO")
    factor = product(square.high, third.high)
    factor_low = factor.low + (square.high * third_low + square_low * third.high)
    cubic = product(s, factor.high)
    cubic_low = cubic.low + (s * factor_low + s_low * factor.high)
    log = ordered_sum(s, cubic.high)
    low = log.low + (s_low + cubic_low)
    whole = two_sum(n * size.number("LN2_HI"), 2 * log.high)
    return ordered_sum(whole.high, whole.low + (2 * low + n * size.number("LN2_LO")))


@named("size_of_power")
def size_of_power(size: V, y: V) -> V:
    """The power of numbers that are not negative."""
    y = y.at_most(y.number("LARGEST")).at_least(-y.constant(y.number("LARGEST")))
    log = two_log(size)
    high = log.high.where(size < math.inf, size)
    high = size.constant(-math.inf).where(size.equals(0), high)
    exponent = product(y, high)
    low = (exponent.low + y * log.low).where(abs(exponent.high) < 1e3, 0)
    e = reduce_exp(exponent.high.at_least(y.number("EXP_LEAST")).at_most(y.number("EXP_MOST")), low)
    return scale(e.p + 1, e)


@named("vpower")
def power(x: V, y: V) -> V:
    """x to the power of y, to 2.5 ULP everywhere."""
    result, one, size = size_of_power(abs(x), y), x.constant(1), abs(y)
    # The last bit of `digits` says whether y is odd, if it is an integer.
    fractional = size < x.number("TO_INTEGER") / 1.5
    digits = size.plus(x.constant(x.number("TO_INTEGER") / 1.5))
    integer = digits.minus(x.constant(x.number("TO_INTEGER") / 1.5)).where(fractional, size)
    digits = digits.where(fractional, size.at_most(x.number("TO_INTEGER") / 0.75))
    sign = (digits.bits() << x.number("SIGN_BIT")) & x.bits()
    of_fraction = result.where(abs(x).equals(math.inf), x.constant(math.nan)).where(x < 0, result)
    result = x.from_bits(result.bits() ^ sign).where(integer.equals(size), of_fraction)
    return one.where(y.equals(0), one.where(x.equals(1), result))
