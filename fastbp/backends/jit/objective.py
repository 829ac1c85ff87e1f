"""The objective of a batch of rows and its gradient: sums over rows in fixed parts, and penalties.

`contract.partition` says which. The sums of each are accumulated tile by tile and then added
in the parts' order.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

from ...maths.losses import SOFTMAX_CE_LABELS
from .. import contract
from ..contract import N_IN, N_OUT, W_OFFSET
from . import layout, losses, network
from .compiling import (
    FLAG,
    INTEGER,
    INTEGERS,
    NUMBER,
    NUMBERS,
    Struct,
    callee,
    entry,
    in_array,
    inlined,
    linked,
    out_array,
    reals,
)
from .lane_major import call_lane_major
from .losses import DATA, POINTERS, Data, loss_of_rows, pointers, rows_from
from .network import NET, PLAN, last_layer, layer_of, net_of, room
from .vectors import Vector, as_real, at, copy, elementwise, pointer, taken_as

# Dropout, as `contract.train` says.

_GOLDEN, _MIX_1, _MIX_2 = map(np.uint64, (contract.GOLDEN, contract.MIX_1, contract.MIX_2))
_HASH_1, _HASH_2 = map(np.uint32, (contract.HASH_1, contract.HASH_2))


@inlined
def _mix(x):
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@inlined
def _hash(x):
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * _HASH_1)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * _HASH_2)
    return np.uint32(x ^ (x >> np.uint32(16)))


@callee
def _draw(count, place, key, p, factors):
    """Factors of `count` outputs, from the given place in the batch on, dropped with share p."""
    low, high = np.uint32(key), np.uint32(key >> np.uint64(32))
    last_dropped = np.uint32(math.ceil(p * 2.0**32) - 1)
    kept, dropped = as_real(factors, 1.0 / (1.0 - p)), as_real(factors, 0.0)
    for i in range(count):
        h = _hash(np.uint32(_hash(np.uint32(np.uint32(place + i) ^ low)) + high))
        factors[i] = kept if h > last_dropped else dropped


@inlined
def _draw_factors(net, seed, step, row, m):
    """The factors of all layers for m rows of a batch, from the given one on, to the tape."""
    n_layers = net.plan[layout.N_LAYERS]
    for index in range(n_layers):
        layer = layer_of(net, index)
        if layer[layout.FACTORS] >= 0:
            n_out = layer[N_OUT]
            of_step = _mix(seed + _GOLDEN * types.uint64(step + 1))
            key = _mix(of_step + _GOLDEN * types.uint64(index + 1))
            factors = at(room(net, layout.TAPE), net.plan[layout.TILE] * layer[layout.FACTORS])
            _draw(m * n_out, row * n_out, key, net.constants[n_layers + index], factors)


# Sums over rows.


class Batch(NamedTuple):
    """The rows that a sum is over."""

    order: Any  # the numbers of the rows
    has_order: Any  # or they are taken as stored
    first: Any  # where the batch begins in the order, or in the data
    count: Any
    factor: Any  # of the gradient
    seed: Any  # of the dropout
    step: Any  # of the run, for the dropout
    resident: Any  # whether the inputs, of a single lane-major tile, stand in the workspace already


BATCH = Struct(Batch, INTEGERS, FLAG, INTEGER, INTEGER, NUMBER, types.uint64, INTEGER, FLAG)


@inlined
def all_rows(data, n, factor):
    """The batch of n rows as stored."""
    return Batch(data.labels, False, 0, n, factor, types.uint64(0), 0, False)


@callee
def _take_rows(m, width, order, source, to):
    """Copy the rows (m, width) that `order` names to one place."""
    if width == 1:
        for i in range(m):
            to[i] = source[order[i]]
    else:
        for i in range(m):
            copy(at(to, i * width), at(source, order[i] * width), width)


@inlined
def _ordered(net, data, order, m, n_in, lane_major):
    """The m rows of the data that `order` names, in the workspace; lane-major all of x instead."""
    terms, x = data.terms, data.x
    t, w = room(net, layout.TARGET_ROWS), room(net, layout.WEIGHT_ROWS)
    labels = taken_as(data.labels, room(net, layout.LABEL_ROWS))
    if not lane_major:
        x = room(net, layout.X_ROWS)
        _take_rows(m, n_in, order, data.x, x)
    if terms[losses.LOSS] == SOFTMAX_CE_LABELS:
        _take_rows(m, 1, order, data.labels, labels)
    else:
        _take_rows(m, terms[losses.N_TARGETS], order, data.targets, t)
    if terms[losses.HAS_WEIGHTS]:
        _take_rows(m, 1, order, data.weights, w)
    return Data(terms, data.numbers, x, t, labels, w)


@inlined
def _sum_of_part(net, data, batch, start, count, gradient, need_gradient, lane_major):
    """Σ w ℓ of `count` rows of a batch from row `start` on, and its gradient times the factor.

    Wᵀ stands in the workspace, unless the network is `lane_major`.
    """
    tile, n_in, n_out = net.plan[layout.TILE], layer_of(net, 0)[N_IN], last_layer(net)[N_OUT]
    total = 0.0
    for i in range(0, count, tile):
        m, place = min(tile, count - i), batch.first + start + i
        order = at(batch.order, place)
        if batch.has_order:
            rows = _ordered(net, data, order, m, n_in, lane_major)
        else:
            rows = rows_from(data, place, n_in)
        if lane_major:
            short = count <= net.plan[layout.SHORT_ROWS]
            function = layout.LANE_MAJOR_SHORT if short else layout.LANE_MAJOR_LONG
            total += call_lane_major(
                net.plan[function], net, rows, order, batch.has_order, m, batch.resident,
                batch.factor, need_gradient, i > 0, gradient, i + m == count,
            )  # fmt: skip
            continue
        _draw_factors(net, batch.seed, batch.step, start + i, m)
        y = network.forward_rows(net, rows.x, m)
        d, scratch = room(net, layout.DELTA), room(net, layout.NEXT_DELTA)
        total += loss_of_rows(losses.FIRST, rows, m, n_out, 0, y, y, batch.factor, d, scratch)
        if need_gradient:
            network.backward_rows(net, rows.x, m, gradient, i > 0)
    return total


@inlined
def part_size(n):
    """The rows of a part: `partition`."""
    if n <= contract.PART_ROWS:
        return max(n, 1)  # a division less
    most = max(1, min(contract.MOST_PARTS, (n + contract.PART_ROWS - 1) // contract.PART_ROWS))
    return max(2, 2 * ((n + 2 * most - 1) // (2 * most)))


add = elementwise(lambda to, x: (to + x,), 2, 1)


@linked(NUMBER, NET, POINTERS, BATCH, reals, FLAG, INTEGER, calls=network.TILES)
def sum_of_rows(net, data, batch, gradient, need_gradient, n_params):
    """Σ w ℓ of a batch, and its gradient (n_params,) times the factor: part after part."""
    lane_major = batch.count >= net.plan[layout.LANE_MAJOR_ROWS]
    if need_gradient and not lane_major:
        network.transpose_weights(net, net.params, False, room(net, layout.TRANSPOSED))
    total, size = 0.0, part_size(batch.count)
    for start in range(0, batch.count, size):
        of_part = gradient if start == 0 else room(net, layout.PART_GRADIENT)
        count = min(size, batch.count - start)
        total += _sum_of_part(net, data, batch, start, count, of_part, need_gradient, lane_major)
        if need_gradient and start > 0:
            add(n_params, gradient, of_part)
    return total


# Penalties on the weights.


def _add_sign(g: Vector, w: Vector, a: Vector) -> tuple[Vector]:
    signed = a.where(w > 0, (-a).where(w < 0, w * a))  # 0 for 0, NaN for NaN
    return (g + signed,)


sum_of_squares = elementwise(lambda x: (x * x,), 1, 0, total=True)
_sum_of_sizes = elementwise(lambda x: (abs(x),), 1, 0, total=True)
_add_multiple = elementwise(lambda g, w, a: (g + w * a,), 2, 1)
_add_signs = elementwise(_add_sign, 2, 1)


@callee
def _group_penalty(n_in, n_out, w, group, norms, gradient, need_gradient):
    """group·Σ_j ‖W_:j‖, and its gradient added."""
    network.fill(norms, n_out, 0.0)
    for i in range(n_in):
        for j in range(n_out):
            x = np.float64(w[i * n_out + j])
            norms[j] += x * x
    total = 0.0
    for j in range(n_out):
        norm = math.sqrt(norms[j])
        total += norm
        norms[j] = group if norm == 0.0 else group / norm
    if need_gradient:
        for i in range(n_in):
            for j in range(n_out):
                k = i * n_out + j
                gradient[k] += as_real(gradient, np.float64(w[k]) * norms[j])
    return group * total


@linked(NUMBER, NET, NUMBERS, reals, FLAG)
def penalties(net, numbers, gradient, need_gradient):
    """The penalties, and their gradient added."""
    l2, l1, group = numbers[losses.L2], numbers[losses.L1], numbers[losses.GROUP]
    total = 0.0
    for index in range(net.plan[layout.N_LAYERS]):
        layer = layer_of(net, index)
        n_in, n_out, offset = layer[N_IN], layer[N_OUT], layer[W_OFFSET]
        size, w, g = n_in * n_out, at(net.params, offset), at(gradient, offset)
        if l2 != 0.0:
            total += 0.5 * l2 * sum_of_squares(size, w)
            if need_gradient:
                _add_multiple(size, g, w, as_real(w, l2))
        if l1 != 0.0:
            total += l1 * _sum_of_sizes(size, w)
            if need_gradient:
                _add_signs(size, g, w, as_real(w, l1))
        if group != 0.0:
            norms = taken_as(numbers, room(net, layout.NORMS))
            total += _group_penalty(n_in, n_out, w, group, norms, g, need_gradient)
    return total


@inlined
def has_penalties(numbers):
    """Whether there are any."""
    return numbers[losses.L2] != 0.0 or numbers[losses.L1] != 0.0 or numbers[losses.GROUP] != 0.0


@inlined
def objective_of(total, factor, net, numbers, gradient, need_gradient):
    """The objective from the sum over rows; penalties are added to the gradient."""
    result = factor * total
    if has_penalties(numbers):
        result += penalties(net, numbers, gradient, need_gradient)
    return result


# What an entry that calls these functions declares.
SUMS = (*network.TILES, sum_of_rows, penalties)


@entry(NUMBER, PLAN, in_array(1), DATA, out_array(1), FLAG, out_array(1), calls=SUMS)
def objective(plan, params, data, gradient, need_gradient, workspace):
    """The objective of all rows, and its gradient (n_params,) if needed."""
    net, rows, g = net_of(plan, params, workspace), pointers(data), pointer(gradient)
    factor = rows.numbers[losses.SCALE]
    batch = all_rows(rows, data.x.shape[0], factor)
    total = sum_of_rows(net, rows, batch, g, need_gradient, params.size)
    return objective_of(total, factor, net, rows.numbers, g, need_gradient)
