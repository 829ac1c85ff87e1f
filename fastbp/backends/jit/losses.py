"""The losses: formulas over vectors by kind, and the functions compiled from them.

Each kind becomes one function over a tile of rows, compiled when an objective first has it. To add
an elementwise loss, write its formulas here and its line in `ELEMENTWISE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..._user import PairFunctions
from ...losses import (
    ABSOLUTE,
    BCE,
    BCE_LOGITS,
    GAUSSIAN_KL,
    GAUSSIAN_NLL,
    HINGE,
    HUBER,
    LOG_COSH,
    MARGIN_RANKING,
    POISSON,
    QUANTILE,
    SOFTMAX_CE,
    SOFTMAX_CE_LABELS,
    SQUARED,
    SQUARED_HINGE,
    USER_LOSS,
)
from . import elementary
from .compiling import INTEGER, INTEGERS, NUMBER, Family, reals
from .vectors import Vector, as_real, at, call_c, elementwise, elementwise_of

# The elementwise losses. y is the output, t the target, c the loss's parameter; the first formula
# gives loss and slope, the second one the second derivative, 0 where it does not exist.


def _clamp_below(x: Vector, least: float) -> Vector:
    """The larger one; NaN passes."""
    return x.lanes.constant(least).where(x < least, x)


def _sign(x: Vector) -> Vector:
    """-1, 0 or 1; NaN passes."""
    one = x.lanes.constant(1)
    return one.where(x > 0, (-one).where(x < 0, x))


def _none(y: Vector, t: Vector, c: Vector) -> Vector:
    return y.lanes.constant(0)


def _squared(y: Vector, t: Vector, _: Vector) -> tuple[Vector, Vector]:
    d = y - t
    return d * d, d * 2


def _squared_second(y: Vector, t: Vector, _: Vector) -> Vector:
    return y.lanes.constant(2)


def _absolute(y: Vector, t: Vector, _: Vector) -> tuple[Vector, Vector]:
    d = y - t
    return abs(d), _sign(d)


def _huber(y: Vector, t: Vector, delta: Vector) -> tuple[Vector, Vector]:
    d = y - t
    size = abs(d)
    beyond = size > delta
    value = (delta * (size - delta * 0.5)).where(beyond, d * d * 0.5)
    return value, delta.with_sign_of(d).where(beyond, d)


def _huber_second(y: Vector, t: Vector, delta: Vector) -> Vector:
    return y.lanes.constant(1).where(abs(y - t) <= delta, 0)


def _log_cosh(y: Vector, t: Vector, _: Vector) -> tuple[Vector, Vector]:
    # log cosh d = |d| + log((1 + e^-2|d|)/2) cancels near 0; there it is atanh s, tanh² d = q.
    d = y - t
    slope, size = elementary.tanh(d), abs(d)
    q = slope * slope
    near = elementary.twice_atanh(q / (-(q - 2))) * 0.5
    far = size + elementary.log1p_to_1(elementary.exp(size * -2)) - math.log(2)
    return near.where(q < 0.5, far), slope


def _log_cosh_second(y: Vector, t: Vector, _: Vector) -> Vector:
    e = elementary.exp(abs(y - t) * -2)
    return e * 4 / ((e + 1) * (e + 1))


def _quantile(y: Vector, t: Vector, tau: Vector) -> tuple[Vector, Vector]:
    d = t - y
    slope = (-tau).where(d > 0, (-(tau - 1)).where(d < 0, d * 0))
    return -(slope * d), slope


def _probability(y: Vector, eps: Vector) -> Vector:
    """y cut to [eps, 1 - eps]; NaN passes."""
    most = -(eps - 1)
    y = eps.where(y < eps, y)
    return most.where(y > most, y)


def _bce(y: Vector, t: Vector, eps: Vector) -> tuple[Vector, Vector]:
    p = _probability(y, eps)
    q = -(p - 1)
    # log(1 - p): 1 - p is exact for p > 1/2, below the other form has no cancellation.
    small = p < 0.5
    of_small = elementary.twice_atanh(-p / (q + 1))
    log_q = of_small.where(small, elementary.log(q))
    value = -(t * elementary.log(p) - (t - 1) * log_q)
    return value, ((p - t) / (p * q)).where(p.equals(y), y.lanes.constant(0).where(y.equals(y), y))


def _bce_second(y: Vector, t: Vector, eps: Vector) -> Vector:
    p = _probability(y, eps)
    q = -(p - 1)
    inside = t / (p * p) - (t - 1) / (q * q)
    return inside.where(p.equals(y), y.lanes.constant(0).where(y.equals(y), y))


def _bce_logits(y: Vector, t: Vector, _: Vector) -> tuple[Vector, Vector]:
    e = elementary.exp(-abs(y))
    sigmoid = e.where(y < 0, 1) / (e + 1)
    return _clamp_below(y, 0) - y * t + elementary.log1p_to_1(e), sigmoid - t


def _bce_logits_second(y: Vector, t: Vector, _: Vector) -> Vector:
    e = elementary.exp(-abs(y))
    return e / ((e + 1) * (e + 1))


def _hinge(y: Vector, t: Vector, _: Vector) -> tuple[Vector, Vector]:
    slack = _clamp_below(-(t * y - 1), 0)
    return slack, (-t).where(slack > 0, slack)


def _squared_hinge(y: Vector, t: Vector, _: Vector) -> tuple[Vector, Vector]:
    slack = _clamp_below(-(t * y - 1), 0)
    return slack * slack, t * slack * -2


def _squared_hinge_second(y: Vector, t: Vector, _: Vector) -> Vector:
    return (t * t * 2).where(t * y < 1, 0)


def _poisson(y: Vector, t: Vector, _: Vector) -> tuple[Vector, Vector]:
    rate = elementary.exp(y)
    return rate - t * y, rate - t


def _poisson_second(y: Vector, t: Vector, _: Vector) -> Vector:
    return elementary.exp(y)


class Formulas(NamedTuple):
    """Of an elementwise loss."""

    value_and_slope: Callable[[Vector, Vector, Vector], tuple[Vector, Vector]]
    second: Callable[[Vector, Vector, Vector], Vector]


ELEMENTWISE = {
    SQUARED: Formulas(_squared, _squared_second),
    ABSOLUTE: Formulas(_absolute, _none),
    HUBER: Formulas(_huber, _huber_second),
    LOG_COSH: Formulas(_log_cosh, _log_cosh_second),
    QUANTILE: Formulas(_quantile, _none),
    BCE: Formulas(_bce, _bce_second),
    BCE_LOGITS: Formulas(_bce_logits, _bce_logits_second),
    HINGE: Formulas(_hinge, _none),
    SQUARED_HINGE: Formulas(_squared_hinge, _squared_hinge_second),
    POISSON: Formulas(_poisson, _poisson_second),
}

# What a loss's function computes to d: the factor times the derivative, or times the product of
# the Hessian with u.
FIRST, SECOND = 1, 2


def _first_formula(kind: int) -> Callable:
    formula = ELEMENTWISE[kind].value_and_slope

    def first(d: Vector, y: Vector, t: Vector, factor: Vector, c: Vector) -> tuple[Vector, Vector]:
        value, slope = formula(y, t, c)
        return slope * factor, value

    return first


def _second_formula(kind: int) -> Callable:
    formula = ELEMENTWISE[kind].second

    def second(
        d: Vector, y: Vector, t: Vector, u: Vector, factor: Vector, c: Vector
    ) -> tuple[Vector]:
        found, zero = formula(y, t, c), y.lanes.constant(0)
        return (zero.where(found.equals(zero), found * u * factor),)  # also where u is NaN

    return second


_first = elementwise_of(_first_formula, 3, 1, total=True)
_second = elementwise_of(_second_formula, 4, 1)

_sum = elementwise(lambda x: (x,), 1, 0, total=True)
_scale = elementwise(lambda x, a: (x * a,), 1, 1)
_scale_by = elementwise(lambda x, u, a: (x * u * a,), 2, 1)


def _make_loss(fingerprint, kind):
    """The function of a loss.

    (order, m, n_out, y, t, labels, u, factor, constant, user, d, scratch) -> Σ ℓ of m rows, if the
    order is FIRST; d becomes factor·dℓ/dy, or with SECOND factor·(d²ℓ/dy²)u. `user` is the address
    of a user's own functions; scratch has room for m·n_out numbers.
    """
    if kind in ELEMENTWISE:
        return _make_elementwise(fingerprint, kind)
    return _OTHERS[kind](fingerprint, kind)


def _make_elementwise(fingerprint, kind):
    def loss(order, m, n_out, y, t, labels, u, factor, constant, user, d, scratch):
        _ = fingerprint  # see compiling.source_fingerprint
        f, c = as_real(d, factor), as_real(d, constant)
        if order == FIRST:
            return _first(kind, m * n_out, d, y, t, f, c)
        _second(kind, m * n_out, d, y, t, u, f, c)
        return 0.0

    return loss


def _make_user(fingerprint, kind):
    def loss(order, m, n_out, y, t, labels, u, factor, constant, user, d, scratch):
        _ = fingerprint, kind
        n = m * n_out
        call_c(user, order, n, y, t, scratch, d)
        if order == FIRST:
            _scale(n, d, as_real(d, factor))
            return _sum(n, scratch)
        _scale_by(n, d, u, as_real(d, factor))
        return 0.0

    return loss


_exp = elementwise(lambda x: (elementary.exp(x),), 1, 1)
_scale_and_subtract = elementwise(lambda x, t, a, f: (x * a - t * f,), 2, 1)
_dot = elementwise(lambda x, y: (x * y,), 2, 0, total=True)
_times_centred = elementwise(lambda x, u, mean, a: (x * (u - mean) * a,), 2, 1)


def _make_softmax(fingerprint, kind):
    def loss(order, m, n_out, y, t, labels, u, factor, constant, user, d, scratch):
        # The exponentials are taken over all rows at once: rows are often shorter than a vector.
        _ = fingerprint  # see compiling.source_fingerprint
        maxima = scratch
        for i in range(m):
            yi, di = at(y, i * n_out), at(d, i * n_out)
            largest = yi[0]
            for j in range(1, n_out):
                if not yi[j] <= largest:
                    largest = yi[j]
            maxima[i] = largest
            for j in range(n_out):
                di[j] = yi[j] - largest
        _exp(m * n_out, d)
        total = 0.0
        for i in range(m):
            yi, ti, di = at(y, i * n_out), at(t, i * n_out), at(d, i * n_out)
            row_sum = _sum(n_out, di)
            share = 1.0 if kind == SOFTMAX_CE_LABELS else _sum(n_out, ti)
            a = factor / row_sum * share
            if order == SECOND:
                ui = at(u, i * n_out)
                mean = _dot(n_out, di, ui) / row_sum
                _times_centred(n_out, di, ui, as_real(d, mean), as_real(d, a))
                continue
            log_sum = float(maxima[i]) + math.log(row_sum)
            if kind == SOFTMAX_CE_LABELS:
                k = labels[i]
                total -= yi[k] - log_sum
                _scale(n_out, di, as_real(d, a))
                di[k] -= as_real(d, factor)
            else:
                for j in range(n_out):
                    total -= ti[j] * (yi[j] - log_sum)
                _scale_and_subtract(n_out, di, ti, as_real(d, a), as_real(d, factor))
        return total

    return loss


# Outputs 0 to k - 1 are means, outputs k to 2k - 1 logarithms of variances.


def _nll_formula(
    dm: Vector, dv: Vector, m: Vector, v: Vector, t: Vector, factor: Vector
) -> tuple[Vector, Vector, Vector]:
    d, precision = m - t, elementary.exp(-v)
    square = d * d * precision
    value = (v + square) * 0.5 + 0.5 * math.log(2 * math.pi)
    return d * precision * factor, -(square - 1) * 0.5 * factor, value


def _nll_second_formula(
    dm: Vector, dv: Vector, m: Vector, v: Vector, t: Vector, um: Vector, uv: Vector, factor: Vector
) -> tuple[Vector, Vector]:
    d, precision = m - t, elementary.exp(-v) * factor
    return precision * (um - d * uv), precision * d * (d * 0.5 * uv - um)


def _kl_formula(
    dm: Vector, dv: Vector, m: Vector, v: Vector, factor: Vector
) -> tuple[Vector, Vector, Vector]:
    e = elementary.expm1(v)
    return m * factor, e * 0.5 * factor, (e - v + m * m) * 0.5


def _kl_second_formula(
    dm: Vector, dv: Vector, v: Vector, um: Vector, uv: Vector, factor: Vector
) -> tuple[Vector, Vector]:
    return um * factor, elementary.exp(v) * 0.5 * uv * factor


_nll = elementwise(_nll_formula, 5, 2, total=True)
_nll_second = elementwise(_nll_second_formula, 7, 2)
_kl = elementwise(_kl_formula, 4, 2, total=True)
_kl_second = elementwise(_kl_second_formula, 5, 2)


def _make_gaussian(fingerprint, kind):
    def loss(order, m, n_out, y, t, labels, u, factor, constant, user, d, scratch):
        _ = fingerprint  # see compiling.source_fingerprint
        k, f = n_out // 2, as_real(d, factor)
        total = 0.0
        for i in range(m):
            mean, dm, um = at(y, i * n_out), at(d, i * n_out), at(u, i * n_out)
            v, dv, uv, ti = at(mean, k), at(dm, k), at(um, k), at(t, i * k)
            if kind == GAUSSIAN_NLL:
                if order == FIRST:
                    total += _nll(k, dm, dv, mean, v, ti, f)
                else:
                    _nll_second(k, dm, dv, mean, v, ti, um, uv, f)
            elif order == FIRST:
                total += _kl(k, dm, dv, mean, v, f)
            else:
                _kl_second(k, dm, dv, v, um, uv, f)
        return total

    return loss


def _make_margin_ranking(fingerprint, kind):
    def loss(order, m, n_out, y, t, labels, u, factor, constant, user, d, scratch):
        # Rows 2i and 2i + 1 are a pair, better and worse.
        _ = fingerprint, kind
        total = 0.0
        for i in range(0, m, 2):
            slack = constant - (float(y[i]) - float(y[i + 1]))
            down = 0.0
            if order == FIRST and not slack <= 0.0:
                total += slack
                down = -factor if slack > 0.0 else slack
            d[i] = as_real(d, down)
            d[i + 1] = as_real(d, -down)
        return total

    return loss


_OTHERS = {
    USER_LOSS: _make_user,
    SOFTMAX_CE: _make_softmax,
    SOFTMAX_CE_LABELS: _make_softmax,
    GAUSSIAN_NLL: _make_gaussian,
    GAUSSIAN_KL: _make_gaussian,
    MARGIN_RANKING: _make_margin_ranking,
}

_functions = Family(
    _make_loss, NUMBER,
    INTEGER, INTEGER, INTEGER, reals, reals, INTEGERS, reals, NUMBER, NUMBER, INTEGER, reals, reals,
    kinds={*ELEMENTWISE, *_OTHERS},
)  # fmt: skip
call_loss = _functions.call


def addresses(kind: int, functions: PairFunctions | None, dtype: np.dtype) -> tuple[int, int]:
    """Of a loss's function, and of the user's own functions or 0."""
    user = 0 if functions is None else functions.address(dtype)
    return _functions.address(dtype, kind), user
