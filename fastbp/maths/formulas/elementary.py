"""Elementary functions of vectors: exp, expm1, tanh, sigmoid, log, sin, cos.

They are polynomials after argument reduction, without tables; each docstring states the error and
the range, which tests/maths/test_formulas.py measures, subnormal results and NaN included. What one
number of the dtype cannot hold is a sum of two. NaN passes through every choice: comparisons are
false for it, so each cut keeps the argument where the comparison fails.
"""

from __future__ import annotations

import math

from .vector import Reduced, TwoWords, V, named

# Sums of two numbers. The errors of products and sums are numbers of the dtype themselves (T. J.
# Dekker, "A floating-point technique for extending the available precision", 1971).


@named("product", by_hand=True)
def product(a: V, b: V) -> TwoWords:
    """a·b."""
    p = a.times(b)
    return TwoWords(p, a.times_plus(b, -p))


@named("one_plus_product", by_hand=True)
def one_plus_product(a: V, b: V) -> TwoWords:
    """1 + a·b, for a·b >= 0."""
    s = 1 + a * b
    return TwoWords(s, a.times_plus(b, 1 - s))


@named("two_sum")
def two_sum(a: V, b: V) -> TwoWords:
    """a + b."""
    s = a.plus(b)
    rest = s.minus(a)
    return TwoWords(s, a.minus(s.minus(rest)).plus(b.minus(rest)))


@named("ordered_sum")
def ordered_sum(a: V, b: V) -> TwoWords:
    """a + b where |a| >= |b| or a = 0."""
    s = a.plus(b)
    return TwoWords(s, b.minus(s.minus(a)))


@named("residual", by_hand=True)
def residual(x: V, a: V, b: V) -> V:
    """x - a·b, rounded once if a·b is close to x."""
    return (-a).times_plus(b, x)


@named("ratio")
def ratio(a: TwoWords, b: TwoWords) -> V:
    """a / b, rounded about once."""
    inverse = 1 / b.high
    q = a.high.times(inverse)
    return q + inverse * (residual(a.high, q, b.high) + (a.low - q * b.low))


# exp and its kin.


@named("reduce_exp")
def reduce_exp(x: V, low: V) -> Reduced:
    """The exponential's parts for x + low."""
    shifted = x * x.number("LOG2E") + x.number("TO_INTEGER")
    k = shifted - x.number("TO_INTEGER")
    r = x - k * x.number("LN2_HI")
    r = r - (k * x.number("LN2_LO") - low)
    return Reduced(r + r * r * r.polynomial("EXP"), k, shifted)


@named("power_of_two")
def power_of_two(shifted: V) -> V:
    """2^k, k the integer in the last bits of `shifted`, if it is normal."""
    one = shifted.constant(1).bits()
    return shifted.from_bits((shifted.bits() << shifted.number("MANTISSA_BITS")) + one)


@named("scale", by_hand=True)
def scale(y: V, e: Reduced) -> V:
    """2^k y, rounded only where it is subnormal; for arguments above SCALE_LEAST."""
    # In two steps, since 2^k may be out of range where 2^k y is not.
    bits, one = y.number("MANTISSA_BITS"), y.constant(1).bits()
    k, half = e.shifted.bits() << bits, (e.k * 0.5 + y.number("TO_INTEGER")).bits() << bits
    return y * y.from_bits(half + one) * y.from_bits(k - half + one)


@named("vexp")
def exp(x: V) -> V:
    """e^x, to 2.5 ULP everywhere."""
    x = x.at_least(x.number("EXP_LEAST")).at_most(x.number("EXP_MOST"))
    e = reduce_exp(x, x.constant(0))
    return scale(e.p + 1, e)


@named("expm1_of")
def expm1_of(e: Reduced) -> V:
    """e^x - 1, accurate relative to itself, for x up to 1 or so."""
    s = scale(e.p.constant(1), e)
    return s * e.p + (s - 1)


@named("vexpm1_below")
def expm1_below(x: V) -> V:
    """e^x - 1, to 4 ULP for x up to 1 or so."""
    return expm1_of(reduce_exp(x.at_least(x.number("EXPM1_LEAST")), x.constant(0)))


@named("vexpm1")
def expm1(x: V) -> V:
    """e^x - 1, to 4 ULP of numbers that are not subnormal."""
    x = x.at_least(x.number("EXPM1_LEAST")).at_most(x.number("EXP_MOST"))
    e = reduce_exp(x, x.constant(0))
    half = power_of_two(e.shifted - 1)  # 2^k itself may be out of range
    return (e.p * half + (half - 0.5)) * 2


@named("vtanh")
def tanh(x: V) -> V:
    """The hyperbolic tangent, to 2.5 ULP: with t = e^(-2|x|) - 1 it is -t / (t + 2)."""
    size = abs(x)
    e = reduce_exp((size * -2).at_least(x.number("EXPM1_LEAST")), x.constant(0))
    s = power_of_two(e.shifted)
    t, u = e.p * s + (s - 1), e.p * s + s
    # Near 1 the roundings of t and t + 2 would add up to 2.5 ULP; 1 - 2(t + 1)/(t + 2), the same,
    # scales them down. -t would turn 0 into -0.
    large = size > 0.75
    quotient = (u * 2).where(large, 0 - t) / (t + 2)
    return (1 - quotient).where(large, quotient).with_sign_of(x)


@named("vsigmoid")
def sigmoid(x: V) -> V:
    """1 / (1 + e^-x), to 2.5 ULP: with t = e^-|x| it is t / (1 + t) where x < 0."""
    t = exp(-abs(x))
    return t.where(x < 0, 1) / (t + 1)


# log.


@named("log1p_rest")
def log1p_rest(u: V) -> V:
    """u - log(1 + u) for u in [-1/2, 1].

    With s = u / (2 + u), log(1 + u) is 2 atanh s = 2s + 2s³ q(s²), and 2s = u - s u.
    """
    s = u / (u + 2)
    square = s * s
    return s * (u - 2 * square * square.polynomial("ATANH"))


@named("vlog1p_to_1")
def log1p_to_1(u: V) -> V:
    """log(1 + u), to 4 ULP for u in [-1/2, 1]."""
    return u - log1p_rest(u)


@named("vlog")
def log(x: V) -> V:
    """log x, to 4 ULP of numbers that are not subnormal: -inf for 0, NaN for negative ones."""
    bits = x.number("MANTISSA_BITS")
    # x = 2^k (1 + u) with 1 + u in [sqrt(1/2), sqrt(2)).
    k = (x.bits() - x.constant(math.sqrt(0.5)).bits()) >> bits
    u = x.from_bits(x.bits() - (k << bits)) - 1
    shift = x.constant(x.number("TO_INTEGER"))
    n = x.from_bits(shift.bits() + k) - shift
    y = n * x.number("LN2_HI") + (u - (log1p_rest(u) - n * x.number("LN2_LO")))
    y = y.where(x < math.inf, x)  # NaN and infinity as they are
    return y.where(x > 0, x.constant(-math.inf).where(x.equals(0), math.nan))


# sin and cos.


@named("shifted_sin")
def shifted_sin(x: V, shift: float) -> V:
    """sin(x + shift·pi), shift 0 or 1/2, of numbers up to SIN_MOST."""
    # With x = (k - shift) pi + r it is (-1)^k sin r. Numbers close to a multiple of pi need r to
    # twice the precision.
    shifted = (x * x.number("INV_PI") + shift) + x.number("TO_INTEGER")
    k = (shifted - x.number("TO_INTEGER")) - shift
    first = residual(x, k, x.constant(x.number("PI_1")))
    second = product(k, x.constant(x.number("PI_2")))
    r, low = two_sum(first, -second.high)
    low = low - (second.low + k * x.number("PI_3"))
    square = r * r
    y = r + (low + r * square * square.polynomial("SIN"))
    return x.from_bits(y.bits() ^ (shifted.bits() << x.number("SIGN_BIT")))


@named("vsin")
def sin(x: V) -> V:
    """The sine, to 4 ULP; by the C library, which has more digits of pi, above SIN_MOST."""
    y = x.in_c_where(abs(x) > x.number("SIN_MOST"), "sin", shifted_sin(x, 0.0))
    return x.where(x.equals(0), y)  # -0 stays


@named("vcos")
def cos(x: V) -> V:
    """The cosine, to 4 ULP, as the sine."""
    return x.in_c_where(abs(x) > x.number("SIN_MOST"), "cos", shifted_sin(x, 0.5))
