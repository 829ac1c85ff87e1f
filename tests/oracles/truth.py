"""The activations and their derivatives in mpmath, points over the whole range, and ULPs.

The formulas are independent of those of `fastbp.maths.activations` and computed with forty digits;
tools/accuracy.py makes the tables of docs/accuracy.md from them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import mpmath
import numpy as np
from mpmath import mpf

import fastbp as fb

DIGITS = 40


def _sigmoid(z):
    return 1 / (1 + mpmath.exp(-z))


def _sigmoid_slope(z):
    t = mpmath.exp(-abs(z))
    return t / (1 + t) ** 2


def _elu(scale, alpha, divisor):
    """scale·z above 0 and scale·alpha·(e^(z/divisor) - 1) below, with the derivative."""

    def f(z):
        return scale * (z if z > 0 else alpha * mpmath.expm1(z / divisor))

    def df(z):
        return scale * (1 if z > 0 else alpha / divisor * mpmath.exp(z / divisor))

    return f, df


def _clipped(f, low, high, slope):
    def cut(z):
        return f(min(max(z, low), high))

    return cut, lambda z: slope if low < z < high else mpf(0)


def _normal_cdf(z):
    return mpmath.erfc(-z / mpmath.sqrt(2)) / 2 if z > -1000 else mpf(0)


def _normal_density(z):
    return mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi) if abs(z) < 1000 else mpf(0)


def _gelu_tanh(z):
    z = max(z, mpf(-1000))
    return z * _sigmoid(_inner(z)[0])


def _gelu_tanh_slope(z):
    z = min(max(z, mpf(-1000)), mpf(1000))
    u, du = _inner(z)
    return _sigmoid(u) + z * _sigmoid_slope(u) * du


def _inner(z):
    a, c = mpmath.sqrt(8 / mpmath.pi), mpf("0.044715")
    return a * (z + c * z**3), a * (1 + 3 * c * z * z)


def _mish(z):
    z = max(z, mpf(-10000))
    return z * mpmath.tanh(mpmath.log1p(mpmath.exp(z)))


def _mish_slope(z):
    z = min(max(z, mpf(-10000)), mpf(10000))
    w = mpmath.tanh(mpmath.log1p(mpmath.exp(z)))
    return w + z * (1 - w * w) * _sigmoid(z)


SELU = mpf("1.0507009873554804934193349852946"), mpf("1.6732632423543772848170429916717")

# Activation -> f and df.
FUNCTIONS: dict[fb.Activation, tuple[Callable, Callable]] = {
    fb.activation(name): pair
    for name, pair in {
        "linear": (lambda z: z, lambda z: mpf(1)),
        "relu": (lambda z: max(z, mpf(0)), lambda z: mpf(z > 0)),
        fb.relu(0.5): (
            lambda z: max(z, mpf(0)),
            lambda z: mpf(1) if z > 0 else mpf(0.5) if z == 0 else mpf(0),
        ),
        "leaky_relu": (
            lambda z: z if z > 0 else mpf(0.01) * z,
            lambda z: mpf(1) if z > 0 else mpf(0.01),
        ),
        "elu": _elu(mpf(1), mpf(1), mpf(1)),
        fb.elu(0.7): _elu(mpf(1), mpf(0.7), mpf(1)),
        "selu": _elu(*SELU, mpf(1)),
        "celu": _elu(mpf(1), mpf(1), mpf(1)),
        fb.celu(2.5): _elu(mpf(1), mpf(2.5), mpf(2.5)),
        "sigmoid": (_sigmoid, _sigmoid_slope),
        "tanh": (mpmath.tanh, lambda z: mpmath.sech(z) ** 2),
        "softplus": (
            lambda z: max(z, mpf(0)) + mpmath.log1p(mpmath.exp(-abs(z))),
            _sigmoid,
        ),
        "softsign": (lambda z: z / (1 + abs(z)), lambda z: 1 / (1 + abs(z)) ** 2),
        "gelu": (
            lambda z: z * _normal_cdf(z),
            lambda z: _normal_cdf(z) + z * _normal_density(z),
        ),
        "gelu_tanh": (_gelu_tanh, _gelu_tanh_slope),
        "silu": (lambda z: z * _sigmoid(z), lambda z: _sigmoid(z) + z * _sigmoid_slope(z)),
        "mish": (_mish, _mish_slope),
        "hard_tanh": _clipped(lambda z: z, mpf(-1), mpf(1), mpf(1)),
        "hard_sigmoid": _clipped(lambda z: (z + 3) / 6, mpf(-3), mpf(3), mpf(1) / 6),
        "relu6": _clipped(lambda z: z, mpf(0), mpf(6), mpf(1)),
        "exp": (mpmath.exp, mpmath.exp),
        "sin": (mpmath.sin, mpmath.cos),
    }.items()
}


def in_arrays(definition):
    """A function of mpmath as one of arrays in extended precision, number by number."""

    def of_number(z):
        head = float(z)
        with mpmath.workdps(DIGITS):
            value = definition(mpf(head) + mpf(float(z - np.longdouble(head))))
            rest = value - float(value) if mpmath.isfinite(value) else 0
            return np.longdouble(float(value)) + np.longdouble(float(rest))

    return np.vectorize(of_number, [np.longdouble])


# Where derivatives cross zero: the roots of gelu', gelu_tanh', silu' and mish'.
_ROOTS = (-0.7517915246935645, -0.7524614220710163, -1.2784645427610738, -1.192431223668883)


@cache
def points(dtype):
    """Both signs of all magnitudes, subnormal to largest, denser where the functions bend."""
    rng = np.random.default_rng(7)
    info = np.finfo(dtype)
    log_tiny, log_max = np.log2(float(info.smallest_subnormal)), np.log2(float(info.max))
    underflow = -np.log(2) * log_tiny  # exp(-z) leaves the numbers here, exp(-2z) at half of it
    normal = np.sqrt(2 * underflow)  # where exp(-z²/2) does
    magnitudes = np.concatenate(
        [
            2.0 ** rng.uniform(log_tiny, log_max, 400),
            2.0 ** rng.uniform(-14, 5, 600),
            rng.uniform(0, 10, 800),
            rng.uniform(10, 1.02 * underflow, 500),
            rng.uniform(3, 1.05 * normal, 300),
            *[c * underflow * (1 + 1e-3 * rng.standard_normal(60)) for c in (0.25, 0.5, 0.96, 1)],
            *[c * normal * (1 + 1e-3 * rng.standard_normal(60)) for c in (0.7, 0.96, 1)],
            *[-root * (1 + 10.0 ** rng.uniform(-16, -1, 60)) for root in _ROOTS],
            *[-root * (1 - 10.0 ** rng.uniform(-16, -1, 60)) for root in _ROOTS],
            *[-root + np.arange(-3, 4) * np.spacing(np.asarray(-root, dtype)) for root in _ROOTS],
            np.arange(1, 130) * np.log(2) / 2,  # where the reduction of exp changes its integer
            np.arange(1, 130) * np.pi / 4,  # and that of sin; also its zeros
            2.0 ** rng.uniform(0, 40, 100) * np.pi,
            [0, info.smallest_subnormal, info.tiny, info.eps, 1, 3, 6, info.max],
        ]
    )
    magnitudes = magnitudes[magnitudes <= info.max].astype(dtype)
    return np.concatenate([magnitudes, -magnitudes])


@cache
def truth(act, dtype, order):
    """mpmath's values at `points`, as head + tail, so that differences from them are exact enough.

    Values outside the type's range count as infinite.
    """
    function = FUNCTIONS[act][order]
    largest = float(np.finfo(dtype).max)
    with mpmath.workdps(DIGITS):
        values = [function(mpf(float(z))) for z in points(dtype)]
        limit = mpf(largest) * (1 + mpf(2) ** -(np.finfo(dtype).nmant + 2))
        values = [v if abs(v) < limit else mpmath.sign(v) * mpmath.inf for v in values]
        head = np.array([float(v) for v in values])
        tail = np.array(
            [
                float(v - mpf(h)) if np.isfinite(h) else 0.0
                for v, h in zip(values, head, strict=True)
            ]
        )
    return head, tail


def ulps(computed, head, tail):
    """The distance in units in the last place of the result's type; 0 for equal infinities."""
    below_largest = np.nextafter(np.finfo(computed.dtype).max, computed.dtype.type(0))
    rounded = np.minimum(abs(head), below_largest).astype(computed.dtype)
    spacing = np.spacing(rounded).astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance = abs((computed.astype(np.float64) - head) - tail) / spacing
    return np.where(np.isinf(head) & (computed == head), 0.0, distance)
