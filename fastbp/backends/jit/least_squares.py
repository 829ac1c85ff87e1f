"""Sums of squares: their normal equations, and Jᵀr at other parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ...maths.robust import HUBER_RHO, LINEAR_RHO, SOFT_L1_RHO, Robust
from ..contract import N_IN, N_OUT
from . import layout, network
from .compiling import (
    FLAG,
    INTEGER,
    NOTHING,
    NUMBER,
    Struct,
    callee,
    entry,
    in_array,
    inlined,
    linked,
    out_array,
    reals,
)
from .jacobian_rows import ROWS, deltas_of, rows_of_jacobian, samples_of_deltas, set_unit_rows
from .losses import DATA, HAS_WEIGHTS, POINTERS, pointers, rows_from
from .network import NET, PLAN, last_layer, layer_of, net_of, number_of_free, room, with_params
from .objective import add, part_size
from .product import product
from .vectors import as_real, at, copy, pointer

# Rows of JᵀJ that are computed together, from the diagonal on: those of a tile, which leaves least
# below it. Rows of the squares in which it is mirrored.
_PANEL, _SQUARE = 8, 32

ROBUST = Struct(Robust, INTEGER, NUMBER)


class Rooms(NamedTuple):
    """What normal equations need beside the workspace."""

    block: Any  # rows of J that stand in memory at a time
    rows: Any  # for these, as many residuals and roots of D, and a vector
    part: Any  # for the sums over a part of the rows, before they are added


ROOMS = Struct(Rooms, INTEGER, out_array(1), out_array(1))


@inlined
def rooms_of(rooms):
    """The rooms of arrays."""
    return Rooms(rooms.block, pointer(rooms.rows), pointer(rooms.part))


@inlined
def _robust_square(robust, r):
    """scale²·rho((r/scale)²) and rho' there; see `contract.Robust`."""
    kind, scale = robust.kind, robust.scale
    if kind == LINEAR_RHO:
        return r * r, 1.0
    size = abs(r) / scale
    z = size * size
    if kind == HUBER_RHO:
        return (scale * scale * (2 * size - 1), 1 / size) if size > 1 else (r * r, 1.0)
    if kind == SOFT_L1_RHO:
        root = math.sqrt(1 + z)
        return scale * scale * 2 * z / (1 + root), 1 / root
    return scale * scale * math.log1p(z), 1 / (1 + z)


@callee
def _sum_of_squares(robust, data, m, n_out, y, r, roots, derive):
    """Σ of m rows, of which y (m, n_out) are the outputs.

    If `derive`, the roots of w·rho' and the residuals times them are written as well.
    """
    t, weights, weighted, total = data.targets, data.weights, data.terms[HAS_WEIGHTS], 0.0
    for i in range(m):
        w = np.float64(weights[i]) if weighted else 1.0
        for k in range(i * n_out, (i + 1) * n_out):
            difference = y[k] - t[k]
            square, slope = _robust_square(robust, np.float64(difference))
            total += w * square
            if derive:
                roots[k] = as_real(roots, math.sqrt(w * slope))
                r[k] = roots[k] * difference
    return total


@inlined
def _add_upper_product(depth, n, J, ld, accumulate, JTJ):
    """The upper triangle of JᵀJ for J (depth, n), added if `accumulate`."""
    for i in range(0, n, _PANEL):
        rows, a, c = min(_PANEL, n - i), at(J, i), at(JTJ, i * n + i)
        product(rows, n - i, depth, a, 1, ld, a, ld, c, n, accumulate, c, n)


@inlined
def _leading(n):
    """How far rows of J are apart: an odd number of cache lines, as few places of the cache are
    shared by rows that are a power of two apart."""
    return (n + 7) // 8 // 2 * 16 + 8


@callee
def _normal_of_part(net, data, robust, first, count, rooms, derive, normal):
    """Write JᵀDJ's upper triangle and, behind JᵀDJ, JᵀDr; returns the sum of squares.

    Of `count` rows from the first one on. Unless `derive` there is only the sum.
    """
    n_in, last, block = layer_of(net, 0)[N_IN], last_layer(net), rooms.block
    n_out, n_free = last[N_OUT], number_of_free(net) if derive else 0
    residuals, roots, J = rooms.rows, at(rooms.rows, block), at(rooms.rows, 2 * block)
    step, ld = samples_of_deltas(n_out) if derive else net.plan[layout.TILE], _leading(n_free)
    JTr = at(normal, n_free * n_free)
    if derive:
        network.transpose_weights(net, net.params, False, room(net, layout.TRANSPOSED))
    total, filled, blocks = 0.0, 0, 0
    for i in range(0, count, step):
        m, rows = min(step, count - i), rows_from(data, first + i, n_in)
        depth, y = m * n_out, network.forward_rows(net, rows.x, m)
        total += _sum_of_squares(
            robust, rows, m, n_out, y, at(residuals, filled), at(roots, filled), derive
        )
        if not derive:
            continue
        d = deltas_of(net, last)
        set_unit_rows(m, n_out, d)
        for j in range(depth):
            d[j * n_out + j % n_out] = roots[filled + j]
        rows_of_jacobian(net, rows.x, m, n_out, True, at(J, filled * ld), ld)
        filled += depth
        if filled + step * n_out <= block and i + m < count:
            continue
        _add_upper_product(filled, n_free, J, ld, blocks > 0, normal)
        product(1, n_free, filled, residuals, 0, 1, J, ld, JTr, 0, blocks > 0, JTr, 0)
        filled, blocks = 0, blocks + 1
    return total


@callee
def _weigh_residuals(robust, data, m, n_out, y, d):
    """d, the outputs at the other parameters, becomes D r there, where D is that of r = y - t."""
    t, weights, weighted = data.targets, data.weights, data.terms[HAS_WEIGHTS]
    for i in range(m):
        w = np.float64(weights[i]) if weighted else 1.0
        for k in range(i * n_out, (i + 1) * n_out):
            _, slope = _robust_square(robust, np.float64(y[k] - t[k]))
            d[k] = as_real(d, w * slope) * (d[k] - t[k])


@inlined
def _jtr_of_part(net, data, robust, first, count, moved, gradient):
    """Write JᵀD r(moved) of `count` rows from the first one on, for all parameters."""
    n_in, n_out, tile = layer_of(net, 0)[N_IN], last_layer(net)[N_OUT], net.plan[layout.TILE]
    d, there = room(net, layout.DELTA), with_params(net, moved)
    network.transpose_weights(net, net.params, False, room(net, layout.TRANSPOSED))
    for i in range(0, count, tile):
        m, rows = min(tile, count - i), rows_from(data, first + i, n_in)
        copy(d, network.forward_rows(there, rows.x, m), m * n_out)
        _weigh_residuals(robust, rows, m, n_out, network.forward_rows(net, rows.x, m), d)
        network.backward_rows(net, rows.x, m, gradient, i > 0)


@inlined
def _add_normal(n, total, addend):
    """Add normal equations to others; of JᵀDJ there is the upper triangle."""
    for i in range(n):
        add(n - i, at(total, i * n + i), at(addend, i * n + i))
    add(n, at(total, n * n), at(addend, n * n))


@inlined
def mirror(n, A):
    """Copy the upper triangle of A (n, n) to the lower one."""
    for i0 in range(0, n, _SQUARE):
        for j0 in range(i0, n, _SQUARE):
            for i in range(i0, min(i0 + _SQUARE, n)):
                for j in range(max(j0, i + 1), min(j0 + _SQUARE, n)):
                    A[j * n + i] = A[i * n + j]


@linked(
    NUMBER, NET, POINTERS, ROBUST, INTEGER, Struct(Rooms, INTEGER, reals, reals), FLAG, reals,
    calls=(*network.FORWARD, *ROWS),
)  # fmt: skip
def normal_of_rows(net, data, robust, n, rooms, derive, normal):
    """`_normal_of_part` for all n rows, part after part."""
    total, size = 0.0, part_size(n)
    for first in range(0, n, size):
        count, of_part = min(size, n - first), normal if first == 0 else rooms.part
        total += _normal_of_part(net, data, robust, first, count, rooms, derive, of_part)
        if first > 0 and derive:
            _add_normal(number_of_free(net), normal, of_part)
    return total


@linked(NOTHING, NET, POINTERS, ROBUST, INTEGER, INTEGER, reals, reals, reals, calls=network.TILES)
def jtr_of_rows(net, data, robust, n, n_params, moved, gradient, room_of_part):
    """`_jtr_of_part` for all n rows, part after part."""
    size = part_size(n)
    for first in range(0, n, size):
        count, of_part = min(size, n - first), gradient if first == 0 else room_of_part
        _jtr_of_part(net, data, robust, first, count, moved, of_part)
        if first > 0:
            add(n_params, gradient, of_part)


# What an entry that calls these functions declares.
PARTS = (*network.TILES, *ROWS, normal_of_rows, jtr_of_rows)


@entry(
    NUMBER, PLAN, in_array(1), DATA, ROBUST, ROOMS, FLAG, out_array(2), out_array(1), calls=PARTS,
)  # fmt: skip
def normal_equations(plan, params, data, robust, rooms, derive, normal, workspace):
    """Write JᵀDJ and, below it, JᵀDr (n_free + 1, n_free); returns the sum of squares.

    Unless `derive` there is only the sum.
    """
    net, n = net_of(plan, params, workspace), data.x.shape[0]
    total = normal_of_rows(net, pointers(data), robust, n, rooms_of(rooms), derive, pointer(normal))
    if derive:
        mirror(normal.shape[1], pointer(normal))
    return total


@entry(
    NOTHING, PLAN, in_array(1), DATA, ROBUST, in_array(1), out_array(1), out_array(1), out_array(1),
    calls=PARTS,
)  # fmt: skip
def jtr_at(plan, params, data, robust, moved, gradient, room_of_part, workspace):
    """Write JᵀD r(moved) (n_params,)."""
    jtr_of_rows(
        net_of(plan, params, workspace), pointers(data), robust, data.x.shape[0], params.size,
        pointer(moved), pointer(gradient), pointer(room_of_part),
    )  # fmt: skip
