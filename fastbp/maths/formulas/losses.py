"""The losses of single elements, and of pairs of mean and variance, as vector formulas.

maths/losses.py has the formulas, arranged here so that nothing cancels or overflows before the
result does. Values and slopes of moderate size are accurate to 4 ULP of the largest term; the tests
derive the bounds from the terms. A second derivative that does not exist is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .activations import sigmoid_slope
from .elementary import exp, expm1, log, log1p_to_1, tanh
from .vector import V, named


@named("sign")
def sign(x: V) -> V:
    """-1, 0 or 1; NaN passes."""
    return x.constant(1).where(x > 0, x.constant(-1).where(x < 0, x))


def _zero(y: V, t: V, u: V, c: V) -> V:
    return y.constant(0)


def _squared(y: V, t: V, c: V) -> tuple[V, V]:
    d = y - t
    return d * d, 2 * d


def _absolute(y: V, t: V, c: V) -> tuple[V, V]:
    d = y - t
    return abs(d), sign(d)


def _huber(y: V, t: V, delta: V) -> tuple[V, V]:
    d = y - t
    size = abs(d)
    value = (delta * (size - 0.5 * delta)).where(size > delta, 0.5 * size * size)
    return value, d.at_least(-delta).at_most(delta)


def _huber_second(y: V, t: V, u: V, delta: V) -> V:
    d = y - t
    return y.constant(0).where(abs(d) > delta, u.where(d.equals(d), 0))


def _log_cosh(y: V, t: V, c: V) -> tuple[V, V]:
    # log cosh d = |d| + log((1 + e^-2|d|) / 2) cancels near 0; there it is log(1 + q / (1 - q)) / 2
    # with q = tanh² d.
    d = y - t
    size, slope = abs(d), tanh(d)
    q = slope * slope
    near = q < 0.5
    part = log1p_to_1((q / (1 - q)).where(near, exp(-2 * size)))
    return (0.5 * part).where(near, size + (part - math.log(2))), slope


def _log_cosh_second(y: V, t: V, u: V, c: V) -> V:
    return 4 * sigmoid_slope(2 * (y - t)) * u


def _quantile(y: V, t: V, tau: V) -> tuple[V, V]:
    d = t - y
    value = (tau * d).where(d > 0, (tau - 1) * d)
    return value, (-tau).where(d > 0, (1 - tau).where(d < 0, d))


def _clipped(y: V, eps: V) -> V:
    return y.at_least(eps).at_most(1 - eps)


def _where_inside(y: V, eps: V, inside: V) -> V:
    """`inside` where y is not clipped, 0 elsewhere, NaN where y is."""
    return inside.where(_clipped(y, eps).equals(y), y.constant(0).where(y.equals(y), y))


def _bce(y: V, t: V, eps: V) -> tuple[V, V]:
    # Of p and 1 - p the smaller one is exact; the logarithm of the other is log(1 - it).
    p = _clipped(y, eps)
    large = p > 0.5
    least = (1 - p).where(large, p)
    of_least, of_other = log(least), log1p_to_1(-least)
    log_p, log_q = of_other.where(large, of_least), of_least.where(large, of_other)
    value = 0 - t * log_p - (1 - t) * log_q
    return value, _where_inside(y, eps, (y - t) / (y * (1 - y)))


def _bce_second(y: V, t: V, u: V, eps: V) -> V:
    return _where_inside(y, eps, t / (y * y) + (1 - t) / ((1 - y) * (1 - y))) * u


def _bce_logits(y: V, t: V, c: V) -> tuple[V, V]:
    e = exp(-abs(y))
    sigmoid = e.where(y < 0, 1) / (1 + e)
    return y.at_least(0) - y * t + log1p_to_1(e), sigmoid - t


def _hinge(y: V, t: V, c: V) -> tuple[V, V]:
    slack = (1 - t * y).at_least(0)
    return slack, (-t).where(slack > 0, slack)  # which is 0 or NaN otherwise


def _squared_hinge(y: V, t: V, c: V) -> tuple[V, V]:
    slack = (1 - t * y).at_least(0)
    return slack * slack, -2 * t * slack


def _squared_hinge_second(y: V, t: V, u: V, c: V) -> V:
    return (2 * t * t * u).where(t * y < 1, 0)


def _poisson(y: V, t: V, c: V) -> tuple[V, V]:
    rate = exp(y)
    return rate - t * y, rate - t


class Formulas(NamedTuple):
    """An elementwise loss of output y and target t; c is the loss's parameter."""

    value_and_slope: Callable[..., tuple[Any, Any]]  # (y, t, c) -> (ℓ, ℓ')
    second: Callable[..., Any]  # (y, t, u, c) -> ℓ''·u


ELEMENTWISE: dict[str, Formulas] = {
    "squared": Formulas(_squared, lambda y, t, u, c: 2 * u),
    "absolute": Formulas(_absolute, _zero),
    "huber": Formulas(_huber, _huber_second),
    "log_cosh": Formulas(_log_cosh, _log_cosh_second),
    "quantile": Formulas(_quantile, _zero),
    "bce": Formulas(_bce, _bce_second),
    "bce_logits": Formulas(_bce_logits, lambda y, t, u, c: sigmoid_slope(y) * u),
    "hinge": Formulas(_hinge, _zero),
    "squared_hinge": Formulas(_squared_hinge, _squared_hinge_second),
    "poisson": Formulas(_poisson, lambda y, t, u, c: exp(y) * u),
}


# Losses of a mean m and the logarithm v of a variance.


def _gaussian_nll(m: V, v: V, t: V) -> tuple[V, V, V]:
    d, precision = m - t, exp(-v)
    square = d * d * precision
    value = 0.5 * (v + square) + 0.5 * math.log(2 * math.pi)
    return value, d * precision, 0.5 * (1 - square)


def _gaussian_nll_second(m: V, v: V, t: V, um: V, uv: V) -> tuple[V, V]:
    d, precision = m - t, exp(-v)
    return precision * (um - d * uv), precision * d * (0.5 * d * uv - um)


def _gaussian_kl(m: V, v: V, t: V) -> tuple[V, V, V]:
    less = expm1(v)
    return 0.5 * ((less - v) + m * m), m, 0.5 * less


def _gaussian_kl_second(m: V, v: V, t: V, um: V, uv: V) -> tuple[V, V]:
    return um, 0.5 * exp(v) * uv


class GaussianFormulas(NamedTuple):
    """A loss of m and v; t is the target, 0 where there is none."""

    value_and_slopes: Callable[..., tuple[Any, Any, Any]]  # (m, v, t) -> (ℓ, dℓ/dm, dℓ/dv)
    second: Callable[..., tuple[Any, Any]]  # (m, v, t, um, uv) -> the Hessian's product with u


GAUSSIAN: dict[str, GaussianFormulas] = {
    "gaussian_nll": GaussianFormulas(_gaussian_nll, _gaussian_nll_second),
    "gaussian_kl": GaussianFormulas(_gaussian_kl, _gaussian_kl_second),
}
