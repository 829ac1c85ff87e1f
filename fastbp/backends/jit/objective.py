"""Losses of a tile of rows, and the objective of a batch with its gradient."""

from __future__ import annotations

import math

from ...losses import SOFTMAX_CE, SOFTMAX_CE_LABELS, SQUARED
from ..contract import N_IN, N_OUT, W_OFFSET
from . import elementary
from .compiling import (
    FLAG,
    INTEGER,
    NUMBER,
    Entry,
    given,
    given_doubles,
    given_integers,
    inner,
    part,
    result,
)
from .network import (
    _COLUMNS,
    DELTA,
    MAXIMA,
    NEXT_DELTA,
    TAPE,
    TARGET_ROWS,
    TRANSPOSED,
    WEIGHT_ROWS,
    X_ROWS,
    backward_tile,
    forward_tile,
    last_y,
    transpose_weights,
)
from .vectors import Vector, aligned, as_real, at, copy, elementwise, pointer


def _squared_formula(d: Vector, y: Vector, t: Vector, factor: Vector) -> tuple[Vector, Vector]:
    difference = y - t
    return difference * 2 * factor, difference * difference


def _bce_logits_formula(d: Vector, y: Vector, t: Vector, factor: Vector) -> tuple[Vector, Vector]:
    e = elementary.exp(-abs(y))
    sigmoid = e.where(y < 0, 1) / (e + 1)
    positive = y.lanes.constant(0).where(y < 0, y)
    return (sigmoid - t) * factor, positive - y * t + elementary.log1p_to_1(e)


# (n, d, y, t, factor) -> Σ ℓ of n elements; d becomes factor·ℓ'.
_squared = elementwise(_squared_formula, 3, 1, total=True)
_bce_logits = elementwise(_bce_logits_formula, 3, 1, total=True)

_exp = elementwise(lambda x: (elementary.exp(x),), 1, 1)
_sum = elementwise(lambda x: (x,), 1, 0, total=True)
_scale = elementwise(lambda x, a: (x * a,), 1, 1)
_scale_and_subtract = elementwise(lambda x, t, a, f: (x * a - t * f,), 2, 1)
_sum_of_squares = elementwise(lambda x: (x * x,), 1, 0, total=True)
_add_multiple = elementwise(lambda g, w, a: (g + w * a,), 2, 1)


@inner
def _softmax_ce(loss, m, n_out, y, t, labels, weights, has_weights, factor, maxima, d):
    """Σ w ℓ of m rows; d becomes factor·w·dℓ/dy.

    The exponentials are taken over all rows at once: rows are often shorter than a vector.
    """
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
        yi, di = at(y, i * n_out), at(d, i * n_out)
        weight = float(weights[i]) if has_weights else 1.0
        f = factor * weight
        row_sum = _sum(n_out, di)
        log_sum = float(maxima[i]) + math.log(row_sum)
        if loss == SOFTMAX_CE_LABELS:
            k = labels[i]
            total -= weight * (yi[k] - log_sum)
            _scale(n_out, di, as_real(d, f / row_sum))
            di[k] -= as_real(d, f)
        else:
            ti = at(t, i * n_out)
            of_row = 0.0
            for j in range(n_out):
                of_row += ti[j] * (yi[j] - log_sum)
            total -= weight * of_row
            a = f / row_sum * _sum(n_out, ti)
            _scale_and_subtract(n_out, di, ti, as_real(d, a), as_real(d, f))
    return total


@inner
def _elementwise_loss(loss, n, y, t, factor, d):
    if loss == SQUARED:
        return _squared(n, d, y, t, as_real(d, factor))
    return _bce_logits(n, d, y, t, as_real(d, factor))


@part
def loss_tile(loss, m, n_out, y, t, labels, weights, has_weights, factor, maxima, d):
    """Σ_i w_i ℓ_i of m rows; d becomes factor·w_i·dℓ_i/dy_i."""
    if loss == SOFTMAX_CE or loss == SOFTMAX_CE_LABELS:
        return _softmax_ce(loss, m, n_out, y, t, labels, weights, has_weights, factor, maxima, d)
    if not has_weights:
        return _elementwise_loss(loss, m * n_out, y, t, factor, d)
    total = 0.0
    for i in range(m):
        w, row = float(weights[i]), i * n_out
        total += w * _elementwise_loss(loss, n_out, at(y, row), at(t, row), factor * w, at(d, row))
    return total


@inner
def _take_rows(m, width, order, source, to):
    """Copy the rows that `order` names to one place."""
    if width == 1:
        for i in range(m):
            to[i] = source[order[i]]
    else:
        for i in range(m):
            copy(at(to, i * width), at(source, order[i] * width), width)


@part
def objective_of_rows(
    layers, constants, n_layers, params, loss, x, t, labels, weights, has_weights,
    order, has_order, first, count, factor, l2, gradient, need_gradient,
    tile, space, places, label_rows,
):  # fmt: skip
    """The objective of the rows first to first + count of the order, and its gradient."""
    n_in = layers[N_IN]
    n_out = at(layers, (n_layers - 1) * _COLUMNS)[N_OUT]
    of_labels = loss == SOFTMAX_CE_LABELS
    tape, transposed = at(space, places[TAPE]), at(space, places[TRANSPOSED])
    d, next_d = at(space, places[DELTA]), at(space, places[NEXT_DELTA])
    maxima = at(space, places[MAXIMA])
    x_rows, t_rows = at(space, places[X_ROWS]), at(space, places[TARGET_ROWS])
    w_rows = at(space, places[WEIGHT_ROWS])
    if need_gradient:
        transpose_weights(layers, n_layers, params, False, transposed)
    total = 0.0
    for i in range(0, count, tile):
        m, place = min(tile, count - i), first + i
        if has_order:
            rows = at(order, place)
            _take_rows(m, n_in, rows, x, x_rows)
            xi, ti, ki, wi = x_rows, t_rows, label_rows, w_rows
            if of_labels:
                _take_rows(m, 1, rows, labels, label_rows)
            else:
                _take_rows(m, n_out, rows, t, t_rows)
            if has_weights:
                _take_rows(m, 1, rows, weights, w_rows)
        else:
            xi, ti = at(x, place * n_in), at(t, place * n_out)
            ki, wi = at(labels, place), at(weights, place)
        forward_tile(layers, constants, n_layers, params, xi, m, tape, tile, 0)
        y = last_y(layers, n_layers, tape, tile, 0)
        total += loss_tile(loss, m, n_out, y, ti, ki, wi, has_weights, factor, maxima, d)
        if need_gradient:
            backward_tile(
                layers, constants, n_layers, params, transposed, xi, m, tape, tile, 0,
                d, next_d, gradient, True, i > 0, next_d, False,
            )  # fmt: skip
    total *= factor
    if l2 != 0.0:
        squares = 0.0
        for index in range(n_layers):
            layer = at(layers, index * _COLUMNS)
            size, w = layer[N_IN] * layer[N_OUT], layer[W_OFFSET]
            squares += _sum_of_squares(size, at(params, w))
            if need_gradient:
                _add_multiple(size, at(gradient, w), at(params, w), as_real(params, l2))
        total += 0.5 * l2 * squares
    return total


def _make_objective(fingerprint):
    def objective(
        layers, constants, params, loss, X, targets, labels, weights, scale, l2,
        gradient, need_gradient, tile, workspace, label_rows, places,
    ):  # fmt: skip
        """The objective of all rows; its gradient, if needed, to `gradient`."""
        _ = fingerprint  # see compiling.source_fingerprint
        return objective_of_rows(
            pointer(layers), pointer(constants), layers.shape[0], pointer(params), loss,
            pointer(X), pointer(targets), pointer(labels), pointer(weights), weights.size > 0,
            pointer(labels), False, 0, X.shape[0], scale, l2, pointer(gradient), need_gradient,
            tile, aligned(pointer(workspace)), pointer(places), pointer(label_rows),
        )  # fmt: skip

    return objective


objective = Entry(
    _make_objective, NUMBER,
    given_integers(2), given_doubles(1), given(1), INTEGER, given(2), given(2), given_integers(1),
    given(1), NUMBER, NUMBER, result(1), FLAG, INTEGER, result(1), given_integers(1),
    given_integers(1),
)  # fmt: skip
