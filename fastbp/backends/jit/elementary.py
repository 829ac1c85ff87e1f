"""exp, log1p, tanh and sigmoid of vectors: branch-free, over the whole range of the type.

The C backend uses the same formulas and coefficients. NaN passes through every select: comparisons
are false for it, so each clamp keeps the argument where the comparison fails.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import polynomials
from .vectors import Lanes, Vector


def _coefficient(lanes: Lanes, name: str) -> Any:
    """A number or list of the table, of the lanes' type."""
    return getattr(polynomials, f"{name}_{lanes.name}")


def _horner(x: Vector, coefficients: tuple[float, ...]) -> Vector:
    result = x.lanes.constant(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + c
    return result


def _shift(lanes: Lanes) -> float:
    """1.5·2^m for m mantissa bits: adding it rounds to an integer, found in the sum's last bits."""
    return 1.5 * 2.0 ** np.finfo(f"f{lanes.real.bitwidth // 8}").nmant


def _round(x: Vector) -> Vector:
    """The nearest integer; |x| must be small against 2^m."""
    shift = _shift(x.lanes)
    return (x + shift) - shift


def _power_of_two(k: Vector) -> Vector:
    """2^k for integers k in the normal exponents' range."""
    lanes = k.lanes
    info = np.finfo(f"f{lanes.real.bitwidth // 8}")
    bits = (k + _shift(lanes)).bits()
    biased = lanes.builder.add(bits, lanes.integer(info.maxexp - 1))
    exponent = lanes.builder.shl(biased, lanes.integer(info.nmant))
    return Vector(lanes, lanes.builder.bitcast(exponent, lanes.type))


def _reduce(x: Vector) -> tuple[Vector, Vector]:
    """k and p = expm1(x - k·ln 2), for the integer k nearest to x / ln 2."""
    k = _round(x * _coefficient(x.lanes, "LOG2E"))
    r = x - k * _coefficient(x.lanes, "LN2_HI")
    r = r - k * _coefficient(x.lanes, "LN2_LO")
    return k, r + r * r * _horner(r, _coefficient(x.lanes, "EXP"))


def exp(x: Vector) -> Vector:
    """e^x."""
    info = np.finfo(f"f{x.lanes.real.bitwidth // 8}")
    low = (info.minexp - info.nmant - 2) * math.log(2)  # e^low rounds to 0
    high = (info.maxexp + 1) * math.log(2)  # e^high overflows
    x = x.lanes.constant(low).where(x < low, x)
    x = x.lanes.constant(high).where(x > high, x)
    k, p = _reduce(x)
    # In two steps, as 2^k itself may be out of range; only the second one rounds.
    half = _round(k * 0.5)
    return (p + 1.0) * _power_of_two(half) * _power_of_two(k - half)


def expm1(x: Vector) -> Vector:
    """e^x - 1."""
    info = np.finfo(f"f{x.lanes.real.bitwidth // 8}")
    low = -2.0 * x.lanes.real.bitwidth  # far below, where the result is -1
    high = (info.maxexp + 0.25) * math.log(2)  # e^high overflows
    x = x.lanes.constant(low).where(x < low, x)
    x = x.lanes.constant(high).where(x > high, x)
    k, p = _reduce(x)
    half = _power_of_two(k - 1.0)  # 2^k itself may be out of range
    return (p * half + (half - 0.5)) * 2.0


def log1p_to_1(u: Vector) -> Vector:
    """log(1 + u) for u in [0, 1]."""
    return twice_atanh(u / (u + 2.0))


def twice_atanh(s: Vector) -> Vector:
    """log((1 + s) / (1 - s)) for |s| <= 1/3."""
    square = s * s
    return s * 2.0 + s * square * 2.0 * _horner(square, _coefficient(s.lanes, "ATANH"))


def log(x: Vector) -> Vector:
    """log x of positive normal numbers; -inf for 0, NaN for NaN."""
    lanes = x.lanes
    builder, info = lanes.builder, np.finfo(f"f{lanes.real.bitwidth // 8}")
    # x = 2^k m with m in [sqrt(1/2), sqrt(2)).
    lowest = lanes.constant(math.sqrt(0.5)).bits()
    exponent = builder.ashr(builder.sub(x.bits(), lowest), lanes.integer(info.nmant))
    m = builder.sub(x.bits(), builder.shl(exponent, lanes.integer(info.nmant)))
    m = Vector(lanes, builder.bitcast(m, lanes.type))
    shifted = builder.add(lanes.constant(_shift(lanes)).bits(), exponent)
    k = Vector(lanes, builder.bitcast(shifted, lanes.type)) - _shift(lanes)
    result = k * _coefficient(lanes, "LN2_HI") + (
        twice_atanh((m - 1.0) / (m + 1.0)) + k * _coefficient(lanes, "LN2_LO")
    )
    return lanes.constant(-math.inf).where(x.equals(0.0), result.where(x.equals(x), x))


def tanh(x: Vector) -> Vector:
    """The hyperbolic tangent: with t = e^(-2|x|) - 1 it is -t / (t + 2), with the sign of x."""
    y = abs(x) * -2.0
    low = -2.0 * x.lanes.real.bitwidth  # far below, where t is -1
    y = x.lanes.constant(low).where(y < low, y)
    k, p = _reduce(y)
    scale = _power_of_two(k)
    t = p * scale + (scale - 1.0)
    # Near 1 the roundings of t and t + 2 would add up to 2.5 ULP; 1 - 2(t + 1)/(t + 2), the same,
    # scales them down.
    large = abs(x) > 0.75
    u = p * scale + scale
    quotient = (u * 2.0).where(large, -t) / (t + 2.0)
    return (-(quotient - 1.0)).where(large, quotient).with_sign_of(x)


def sigmoid(x: Vector) -> Vector:
    """1 / (1 + e^-x), as t / (1 + t) with t = e^-|x| where x < 0."""
    t = exp(-abs(x))
    return t.where(x < 0.0, 1.0) / (t + 1.0)
