"""The objective of a batch of rows and its gradient: sums over rows in fixed parts, and penalties.

`contract.partition` tells the parts. The sums of each are accumulated tile by tile and then added
in the parts' order.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from ...losses import SOFTMAX_CE_LABELS
from ..contract import (
    GOLDEN,
    HASH_1,
    HASH_2,
    MIX_1,
    MIX_2,
    MOST_PARTS,
    N_IN,
    N_OUT,
    PART_ROWS,
    W_OFFSET,
)
from .compiling import (
    FLAG,
    INTEGER,
    INTEGERS,
    NUMBER,
    NUMBERS,
    callee,
    entry,
    given,
    given_doubles,
    given_integers,
    inlined,
    linked,
    reals,
    result,
)
from .lane_major import call_lane_major
from .losses import FIRST, GROUP, HAS_WEIGHTS, L1, L2, LOSS, N_TARGETS, SCALE, loss_of_rows
from .network import (
    DELTA,
    FACTORS,
    LABEL_ROWS,
    LANE_MAJOR_LONG,
    LANE_MAJOR_ROWS,
    LANE_MAJOR_SHORT,
    N_LAYERS,
    NEXT_DELTA,
    NORMS,
    PART_GRADIENT,
    SHORT_ROWS,
    TAPE,
    TARGET_ROWS,
    TILE,
    TILES,
    TRANSPOSED,
    WEIGHT_ROWS,
    X_ROWS,
    backward_tile,
    fill,
    forward_tile,
    last_y,
    layer_of,
    transpose_weights,
)
from .vectors import (
    Vector,
    aligned,
    as_real,
    at,
    copy,
    elementwise,
    pointer,
    taken_as,
)

# Dropout, as `contract.train` tells.

_GOLDEN, _MIX_1, _MIX_2 = map(np.uint64, (GOLDEN, MIX_1, MIX_2))
_HASH_1, _HASH_2 = map(np.uint32, (HASH_1, HASH_2))


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
def _draw_factors(plan, constants, seed, step, row, m, tape):
    """The factors of all layers for m rows of a batch, from the given one on, to a tile's tape."""
    n_layers = plan[N_LAYERS]
    for index in range(n_layers):
        layer = layer_of(plan, index)
        if layer[FACTORS] >= 0:
            n_out = layer[N_OUT]
            of_step = _mix(seed + _GOLDEN * types.uint64(step + 1))
            key = _mix(of_step + _GOLDEN * types.uint64(index + 1))
            share = constants[n_layers + index]
            _draw(m * n_out, row * n_out, key, share, at(tape, plan[TILE] * layer[FACTORS]))


# Sums over rows.


@callee
def _take_rows(m, width, order, source, to):
    """Copy the rows that `order` names to one place."""
    if width == 1:
        for i in range(m):
            to[i] = source[order[i]]
    else:
        for i in range(m):
            copy(at(to, i * width), at(source, order[i] * width), width)


@inlined
def is_lane_major(plan, count):
    """Whether a sum over so many rows has its rows along lanes: see lane_major.py."""
    return count >= plan[LANE_MAJOR_ROWS]


@linked(
    NUMBER,
    INTEGERS, NUMBERS, reals, INTEGERS, NUMBERS, reals, reals, INTEGERS, reals, INTEGERS, FLAG,
    INTEGER, INTEGER, INTEGER, NUMBER, types.uint64, INTEGER, reals, FLAG, FLAG, FLAG, reals,
    calls=TILES,
)  # fmt: skip
def sum_of_part(
    plan, constants, params, terms, numbers, x, t, labels, weights, order, has_order,
    first, start, count, factor, seed, step, gradient, need_gradient, lane_major, resident, space,
):  # fmt: skip
    """Σ w ℓ of a part of a batch, and its gradient times the factor.

    The batch begins with row `first` of the order, the part `start` rows further on. Wᵀ stands
    in the workspace, unless rows lie along lanes (`lane_major`); then the only tile may be
    `resident` there.
    """
    tile, n_in, n_targets = plan[TILE], layer_of(plan, 0)[N_IN], terms[N_TARGETS]
    n_out = layer_of(plan, plan[N_LAYERS] - 1)[N_OUT]
    of_labels = terms[LOSS] == SOFTMAX_CE_LABELS
    tape, transposed = at(space, plan[TAPE]), at(space, plan[TRANSPOSED])
    d, next_d = at(space, plan[DELTA]), at(space, plan[NEXT_DELTA])
    x_rows, t_rows = at(space, plan[X_ROWS]), at(space, plan[TARGET_ROWS])
    w_rows = at(space, plan[WEIGHT_ROWS])
    label_rows = taken_as(labels, at(space, plan[LABEL_ROWS]))
    total = 0.0
    for i in range(0, count, tile):
        m, place = min(tile, count - i), first + start + i
        xi, ti = at(x, place * n_in), at(t, place * n_targets)
        ki, wi = at(labels, place), at(weights, place)
        rows = at(order, place)
        if has_order:
            if not lane_major:
                _take_rows(m, n_in, rows, x, x_rows)
            if of_labels:
                _take_rows(m, 1, rows, labels, label_rows)
            else:
                _take_rows(m, n_targets, rows, t, t_rows)
            if terms[HAS_WEIGHTS]:
                _take_rows(m, 1, rows, weights, w_rows)
            xi, ti, ki, wi = x_rows, t_rows, label_rows, w_rows
        if lane_major:
            source = x if has_order else xi
            short = count <= plan[SHORT_ROWS]
            function = plan[LANE_MAJOR_SHORT] if short else plan[LANE_MAJOR_LONG]
            total += call_lane_major(
                function, plan, constants, params, terms, numbers, source, rows, has_order, m,
                resident, ti, ki, wi, factor, need_gradient, i > 0, gradient, i + m == count,
                space,
            )  # fmt: skip
            continue
        _draw_factors(plan, constants, seed, step, start + i, m, tape)
        forward_tile(plan, constants, params, xi, m, tape, tile, 0)
        y = last_y(plan, tape, tile, 0)
        total += loss_of_rows(
            FIRST, terms, numbers, m, n_out, 0, y, ti, ki, wi, y, factor, d, next_d
        )
        if need_gradient:
            backward_tile(
                plan, constants, params, transposed, xi, m, tape, tile, 0,
                d, next_d, gradient, True, i > 0, next_d, False,
            )  # fmt: skip
    return total


@inlined
def part_size(n):
    """The rows of a part: `contract.partition`."""
    if n <= PART_ROWS:
        return max(n, 1)  # a division less
    most = max(1, min(MOST_PARTS, (n + PART_ROWS - 1) // PART_ROWS))
    return max(2, 2 * ((n + 2 * most - 1) // (2 * most)))


add = elementwise(lambda to, x: (to + x,), 2, 1)


@inlined
def sum_of_rows(
    plan, constants, params, terms, numbers, x, t, labels, weights, order, has_order,
    first, count, factor, seed, step, gradient, need_gradient, n_params, resident, space,
):  # fmt: skip
    """Σ w ℓ of a batch, and its gradient times the factor: part after part.

    The inputs may be `resident`: left by the call before, with rows along lanes in a single tile.
    """
    lane_major = is_lane_major(plan, count)
    if need_gradient and not lane_major:
        transpose_weights(plan, params, False, at(space, plan[TRANSPOSED]))
    total, size = 0.0, part_size(count)
    for start in range(0, count, size):
        of_part = gradient if start == 0 else at(space, plan[PART_GRADIENT])
        total += sum_of_part(
            plan, constants, params, terms, numbers, x, t, labels, weights, order, has_order,
            first, start, min(size, count - start), factor, seed, step, of_part, need_gradient,
            lane_major, resident, space,
        )  # fmt: skip
        if need_gradient and start > 0:
            add(n_params, gradient, of_part)
    return total


@inlined
def value_of_rows(plan, constants, params, terms, numbers, x, t, labels, weights, n, space):
    """Σ w ℓ of n rows as stored, part after part."""
    total, size, seed, lane_major = 0.0, part_size(n), types.uint64(0), is_lane_major(plan, n)
    for start in range(0, n, size):
        total += sum_of_part(
            plan, constants, params, terms, numbers, x, t, labels, weights, labels, False,
            0, start, min(size, n - start), 0.0, seed, 0, params, False, lane_major, False, space,
        )  # fmt: skip
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
    fill(norms, n_out, 0.0)
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


@linked(
    NUMBER, INTEGERS, reals, NUMBERS, reals, FLAG, reals,
)  # fmt: skip
def penalties(plan, params, numbers, gradient, need_gradient, space):
    """The penalties, and their gradient added."""
    l2, l1, group = numbers[L2], numbers[L1], numbers[GROUP]
    total = 0.0
    for index in range(plan[N_LAYERS]):
        layer = layer_of(plan, index)
        n_in, n_out = layer[N_IN], layer[N_OUT]
        size, w, g = n_in * n_out, at(params, layer[W_OFFSET]), at(gradient, layer[W_OFFSET])
        if l2 != 0.0:
            total += 0.5 * l2 * sum_of_squares(size, w)
            if need_gradient:
                _add_multiple(size, g, w, as_real(w, l2))
        if l1 != 0.0:
            total += l1 * _sum_of_sizes(size, w)
            if need_gradient:
                _add_signs(size, g, w, as_real(w, l1))
        if group != 0.0:
            norms = taken_as(numbers, at(space, plan[NORMS]))
            total += _group_penalty(n_in, n_out, w, group, norms, g, need_gradient)
    return total


@inlined
def has_penalties(numbers):
    """Whether there are any."""
    return numbers[L2] != 0.0 or numbers[L1] != 0.0 or numbers[GROUP] != 0.0


@inlined
def objective_of(total, factor, plan, params, numbers, gradient, need_gradient, space):
    """The objective from the sum over rows; penalties are added to the gradient."""
    result = factor * total
    if has_penalties(numbers):
        result += penalties(plan, params, numbers, gradient, need_gradient, space)
    return result


# What an entry that calls these functions declares.
SUMS = (*TILES, sum_of_part, penalties)


# The types of a plan, a problem and its data, and of the rows' order.
DATA = (
    given_integers(1), given_doubles(1), given(2), given(2), given_integers(1), given(1),
)  # fmt: skip
PLAN = (given_integers(1), given_doubles(1))


@entry(
    NUMBER,
    *PLAN, given(1), *DATA, result(1), FLAG, result(1), calls=SUMS,
)  # fmt: skip
def objective(
    plan, constants, params, terms, numbers, X, targets, labels, weights,
    gradient, need_gradient, workspace,
):  # fmt: skip
    """The objective of all rows, and its gradient if needed."""
    q, c, p = pointer(plan), pointer(constants), pointer(params)
    a, g, k = pointer(numbers), pointer(gradient), pointer(labels)
    space = aligned(pointer(workspace))
    total = sum_of_rows(
        q, c, p, pointer(terms), a, pointer(X), pointer(targets), k, pointer(weights), k,
        False, 0, X.shape[0], a[SCALE], types.uint64(0), 0, g, need_gradient, params.size,
        False, space,
    )  # fmt: skip
    return objective_of(total, a[SCALE], q, p, a, g, need_gradient, space)
