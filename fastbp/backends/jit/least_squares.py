"""Sums of squares over a part of the rows: their normal equations, and Jᵀr at other parameters."""

from __future__ import annotations

import math

import numpy as np

from ..contract import HUBER_RHO, LINEAR_RHO, N_IN, N_OUT, SOFT_L1_RHO
from .compiling import (
    FLAG,
    INTEGER,
    INTEGERS,
    NOTHING,
    NUMBER,
    NUMBERS,
    callee,
    entry,
    given,
    inlined,
    linked,
    reals,
    result,
)
from .jacobian_rows import ROWS, deltas_of, rows_of_jacobian, samples_of_deltas, set_unit_rows
from .losses import HAS_WEIGHTS
from .network import (
    DELTA,
    DELTAS,
    FORWARD,
    N_LAYERS,
    NEXT_DELTA,
    SPARE_ROW,
    TAPE,
    TILE,
    TILES,
    TRANSPOSED,
    backward_tile,
    forward_tile,
    last_y,
    layer_of,
    number_of_free,
    transpose_weights,
)
from .objective import DATA, PLAN, add, part_size
from .product import product
from .vectors import aligned, as_real, at, copy, pointer

# Rows of JᵀJ that are computed together, from the diagonal on: those of a tile, which leaves least
# below it. Rows of the squares in which it is mirrored.
_PANEL, _SQUARE = 8, 32


@inlined
def _robust_square(kind, scale, r):
    """scale²·rho((r/scale)²) and rho' there; see `contract.Robust`."""
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
def _sum_of_squares(rho, scale, m, n_out, y, t, weights, weighted, r, roots, derive):
    """Σ of a tile; if `derive`, the roots of w·rho' and the residuals times them as well."""
    total = 0.0
    for i in range(m):
        w = np.float64(weights[i]) if weighted else 1.0
        for k in range(i * n_out, (i + 1) * n_out):
            difference = y[k] - t[k]
            square, slope = _robust_square(rho, scale, np.float64(difference))
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


@linked(
    NUMBER,
    INTEGERS, NUMBERS, reals, INTEGERS, reals, reals, reals, INTEGER, NUMBER,
    INTEGER, INTEGER, INTEGER, FLAG, reals, reals, reals, calls=(*FORWARD, *ROWS),
)  # fmt: skip
def normal_of_part(
    plan, constants, params, terms, x, t, weights, rho, scale,
    first, count, block, derive, room, normal, space,
):  # fmt: skip
    """Write JᵀDJ's upper triangle and, behind JᵀDJ, JᵀDr; returns the sum of squares.

    Of `count` rows from the first one on. There is room for `block` rows of J, for as many
    residuals and roots of D, and for a vector. Unless `derive` there is only the sum.
    """
    n_in, last = layer_of(plan, 0)[N_IN], layer_of(plan, plan[N_LAYERS] - 1)
    tile, n_out, n_free = plan[TILE], last[N_OUT], number_of_free(plan) if derive else 0
    tape, transposed = at(space, plan[TAPE]), at(space, plan[TRANSPOSED])
    deltas, spare = at(space, plan[DELTAS]), at(space, plan[SPARE_ROW])
    residuals, roots, J = room, at(room, block), at(room, 2 * block)
    step, ld = samples_of_deltas(n_out) if derive else tile, _leading(n_free)
    JTr = at(normal, n_free * n_free)
    if derive:
        transpose_weights(plan, params, False, transposed)
    total, filled, blocks = 0.0, 0, 0
    for i in range(0, count, step):
        m, place = min(step, count - i), first + i
        xi, depth = at(x, place * n_in), m * n_out
        forward_tile(plan, constants, params, xi, m, tape, tile, 0)
        total += _sum_of_squares(
            rho, scale, m, n_out, last_y(plan, tape, tile, 0), at(t, place * n_out),
            at(weights, place), terms[HAS_WEIGHTS], at(residuals, filled), at(roots, filled),
            derive,
        )  # fmt: skip
        if not derive:
            continue
        d = deltas_of(plan, last, deltas)
        set_unit_rows(m, n_out, d)
        for j in range(depth):
            d[j * n_out + j % n_out] = roots[filled + j]
        rows_of_jacobian(
            plan, constants, params, transposed, xi, m, n_out, tape, tile, deltas, spare, True,
            at(J, filled * ld), ld,
        )  # fmt: skip
        filled += depth
        if filled + step * n_out <= block and i + m < count:
            continue
        _add_upper_product(filled, n_free, J, ld, blocks > 0, normal)
        product(1, n_free, filled, residuals, 0, 1, J, ld, JTr, 0, blocks > 0, JTr, 0)
        filled, blocks = 0, blocks + 1
    return total


@callee
def _weigh_residuals(rho, scale, m, n_out, y, t, weights, weighted, d):
    """d, the outputs at the other parameters, becomes D r there, where D is that of r = y - t."""
    for i in range(m):
        w = np.float64(weights[i]) if weighted else 1.0
        for k in range(i * n_out, (i + 1) * n_out):
            _, slope = _robust_square(rho, scale, np.float64(y[k] - t[k]))
            d[k] = as_real(d, w * slope) * (d[k] - t[k])


@linked(
    NOTHING,
    INTEGERS, NUMBERS, reals, INTEGERS, reals, reals, reals, INTEGER, NUMBER,
    INTEGER, INTEGER, reals, reals, reals, calls=TILES,
)  # fmt: skip
def jtr_of_part(
    plan, constants, params, terms, x, t, weights, rho, scale,
    first, count, moved, gradient, space,
):  # fmt: skip
    """Write JᵀD r(moved) of `count` rows from the first one on, for all parameters."""
    n_in, n_out = layer_of(plan, 0)[N_IN], layer_of(plan, plan[N_LAYERS] - 1)[N_OUT]
    tile, tape, transposed = plan[TILE], at(space, plan[TAPE]), at(space, plan[TRANSPOSED])
    d, next_d, y = (
        at(space, plan[DELTA]),
        at(space, plan[NEXT_DELTA]),
        last_y(plan, tape, tile, 0),
    )
    transpose_weights(plan, params, False, transposed)
    for i in range(0, count, tile):
        m, place = min(tile, count - i), first + i
        xi = at(x, place * n_in)
        forward_tile(plan, constants, moved, xi, m, tape, tile, 0)
        copy(d, y, m * n_out)
        forward_tile(plan, constants, params, xi, m, tape, tile, 0)
        _weigh_residuals(
            rho, scale, m, n_out, y, at(t, place * n_out), at(weights, place),
            terms[HAS_WEIGHTS], d,
        )  # fmt: skip
        backward_tile(
            plan, constants, params, transposed, xi, m, tape, tile, 0,
            d, next_d, gradient, True, i > 0, next_d, False,
        )  # fmt: skip


# What an entry that calls these functions declares.
PARTS = (*TILES, *ROWS, normal_of_part, jtr_of_part)


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


@inlined
def normal_of_rows(
    plan, constants, params, terms, x, t, weights, rho, scale, n, block, derive, room, normal,
    of_part, space,
):  # fmt: skip
    """`normal_of_part` for all n rows, part after part; `of_part` has room for those of a part."""
    total, size = 0.0, part_size(n)
    for first in range(0, n, size):
        equations = normal if first == 0 else of_part
        total += normal_of_part(
            plan, constants, params, terms, x, t, weights, rho, scale,
            first, min(size, n - first), block, derive, room, equations, space,
        )  # fmt: skip
        if first > 0 and derive:
            _add_normal(number_of_free(plan), normal, equations)
    return total


@inlined
def jtr_of_rows(
    plan, constants, params, terms, x, t, weights, rho, scale, n, n_params, moved, gradient,
    of_part, space,
):  # fmt: skip
    """`jtr_of_part` for all n rows, part after part; `of_part` has room for that of a part."""
    size = part_size(n)
    for first in range(0, n, size):
        to = gradient if first == 0 else of_part
        jtr_of_part(
            plan, constants, params, terms, x, t, weights, rho, scale,
            first, min(size, n - first), moved, to, space,
        )  # fmt: skip
        if first > 0:
            add(n_params, gradient, to)


@entry(
    NUMBER,
    *PLAN, given(1), *DATA, INTEGER, NUMBER, INTEGER, FLAG, result(1), result(2), result(1),
    result(1), calls=PARTS,
)  # fmt: skip
def normal_equations(
    plan, constants, params, terms, numbers, X, targets, labels, weights, rho, scale,
    block, derive, room, normal, of_part, workspace,
):  # fmt: skip
    """Write JᵀDJ and, behind it, JᵀDr; returns the sum of squares, unless `derive` it alone."""
    total = normal_of_rows(
        pointer(plan), pointer(constants), pointer(params), pointer(terms), pointer(X),
        pointer(targets), pointer(weights), rho, scale, X.shape[0], block, derive,
        pointer(room), pointer(normal), pointer(of_part), aligned(pointer(workspace)),
    )  # fmt: skip
    if derive:
        mirror(normal.shape[1], pointer(normal))
    return total


@entry(
    NOTHING,
    *PLAN, given(1), *DATA, INTEGER, NUMBER, given(1), result(1), result(1), result(1),
    calls=PARTS,
)  # fmt: skip
def jtr_at(
    plan, constants, params, terms, numbers, X, targets, labels, weights, rho, scale,
    moved, gradient, of_part, workspace,
):  # fmt: skip
    """Write JᵀD r(moved) for all parameters."""
    jtr_of_rows(
        pointer(plan), pointer(constants), pointer(params), pointer(terms), pointer(X),
        pointer(targets), pointer(weights), rho, scale, X.shape[0], params.size, pointer(moved),
        pointer(gradient), pointer(of_part), aligned(pointer(workspace)),
    )  # fmt: skip
