"""Sums of squares over a part of the rows: their normal equations, and gradients beyond these."""

from __future__ import annotations

import math

from ..contract import HUBER_RHO, LINEAR_RHO, N_IN, N_OUT, SOFT_L1_RHO
from .compiling import (
    FLAG,
    INTEGER,
    INTEGERS,
    NOTHING,
    NUMBER,
    NUMBERS,
    Entry,
    Linked,
    given,
    inner,
    part,
    reals,
    result,
)
from .losses import HAS_WEIGHTS
from .network import (
    DELTA,
    N_LAYERS,
    NEXT_DELTA,
    TAPE,
    TILE,
    TRANSPOSED,
    backward_tile,
    forward_tile,
    jacobian_rows,
    last_y,
    layer_of,
    number_of_free,
    set_unit_rows,
    transpose_weights,
)
from .objective import DATA, PLAN, add
from .product import PRODUCTS, product
from .vectors import aligned, as_real, at, copy, pointer

_PANEL = 32  # rows of JᵀJ that are computed together, from the diagonal on


@part
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


@inner
def _sum_of_squares(rho, scale, m, n_out, y, t, weights, weighted, r, roots, derive):
    """Σ of a tile; if `derive`, the roots of w·rho' and the residuals times them as well."""
    total = 0.0
    for i in range(m):
        w = float(weights[i]) if weighted else 1.0
        for k in range(i * n_out, (i + 1) * n_out):
            difference = y[k] - t[k]
            square, slope = _robust_square(rho, scale, float(difference))
            total += w * square
            if derive:
                roots[k] = as_real(roots, math.sqrt(w * slope))
                r[k] = roots[k] * difference
    return total


@part
def _add_upper_product(depth, n, J, accumulate, JTJ):
    """The upper triangle of JᵀJ for J (depth, n), added if `accumulate`."""
    for i in range(0, n, _PANEL):
        rows, a, c = min(_PANEL, n - i), at(J, i), at(JTJ, i * n + i)
        product(rows, n - i, depth, a, 1, n, a, n, c, n, accumulate, c, n)


def _make_normal_of_part(fingerprint):
    def normal_of_part(
        plan, constants, params, terms, x, t, weights, rho, scale,
        first, count, block, derive, room, normal, space,
    ):  # fmt: skip
        """Write JᵀDJ's upper triangle and, behind JᵀDJ, JᵀDr; returns the sum of squares.

        Of `count` rows from the first one on, `block` at a time, for which there is room: for J,
        the residuals and the roots of D. Unless `derive` there is only the sum.
        """
        _ = fingerprint  # see compiling.source_fingerprint
        n_in, n_out = layer_of(plan, 0)[N_IN], layer_of(plan, plan[N_LAYERS] - 1)[N_OUT]
        tile, n_free = plan[TILE], number_of_free(plan) if derive else 0
        tape, transposed = at(space, plan[TAPE]), at(space, plan[TRANSPOSED])
        d, next_d = at(space, plan[DELTA]), at(space, plan[NEXT_DELTA])
        residuals, roots, J = room, at(room, block * n_out), at(room, 2 * block * n_out)
        if derive:
            transpose_weights(plan, params, False, transposed)
        total = 0.0
        for i in range(0, count, block):
            m, place = min(block, count - i), first + i
            xi, depth = at(x, place * n_in), m * n_out
            forward_tile(plan, constants, params, xi, m, tape, tile, 0)
            total += _sum_of_squares(
                rho, scale, m, n_out, last_y(plan, tape, tile, 0), at(t, place * n_out),
                at(weights, place), terms[HAS_WEIGHTS], residuals, roots, derive,
            )  # fmt: skip
            if not derive:
                continue
            for k in range(n_out):
                set_unit_rows(m, n_out, k, d)
                for j in range(k, depth, n_out):
                    d[j] = roots[j]
                jacobian_rows(
                    plan, constants, params, transposed, xi, m, tape, tile, d, next_d, True,
                    at(J, k * n_free), n_out * n_free,
                )  # fmt: skip
            _add_upper_product(depth, n_free, J, i > 0, normal)
            JTr = at(normal, n_free * n_free)
            product(1, n_free, depth, residuals, 0, 1, J, n_free, JTr, 0, i > 0, JTr, 0)
        return total

    return normal_of_part


_linked_normal_of_part = Linked(
    _make_normal_of_part, NUMBER,
    INTEGERS, NUMBERS, reals, INTEGERS, reals, reals, reals, INTEGER, NUMBER,
    INTEGER, INTEGER, INTEGER, FLAG, reals, reals, reals, calls=PRODUCTS,
)  # fmt: skip
normal_of_part = _linked_normal_of_part.call


@inner
def _weigh_residuals(rho, scale, m, n_out, y, t, weights, weighted, d):
    """d, the outputs at the other parameters, becomes D r there, where D is that of r = y - t."""
    for i in range(m):
        w = float(weights[i]) if weighted else 1.0
        for k in range(i * n_out, (i + 1) * n_out):
            _, slope = _robust_square(rho, scale, float(y[k] - t[k]))
            d[k] = as_real(d, w * slope) * (d[k] - t[k])


def _make_beyond_of_part(fingerprint):
    def beyond_of_part(
        plan, constants, params, terms, x, t, weights, rho, scale,
        first, count, moved, gradient, space,
    ):  # fmt: skip
        """Write JᵀD r(moved) of `count` rows from the first one on, for all parameters."""
        _ = fingerprint  # see compiling.source_fingerprint
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

    return beyond_of_part


_linked_beyond_of_part = Linked(
    _make_beyond_of_part, NOTHING,
    INTEGERS, NUMBERS, reals, INTEGERS, reals, reals, reals, INTEGER, NUMBER,
    INTEGER, INTEGER, reals, reals, reals, calls=PRODUCTS,
)  # fmt: skip
beyond_of_part = _linked_beyond_of_part.call

# What an entry that calls these functions declares.
PARTS = (*PRODUCTS, _linked_normal_of_part, _linked_beyond_of_part)


def _make_normal_equations(fingerprint):
    def normal_equations(
        plan, constants, params, terms, numbers, X, targets, labels, weights, rho, scale,
        first, count, block, derive, room, normal, workspace,
    ):  # fmt: skip
        """`normal_of_part` for Python."""
        _ = fingerprint  # see compiling.source_fingerprint
        return normal_of_part(
            pointer(plan), pointer(constants), pointer(params), pointer(terms), pointer(X),
            pointer(targets), pointer(weights), rho, scale, first, count, block, derive,
            pointer(room), pointer(normal), aligned(pointer(workspace)),
        )  # fmt: skip

    return normal_equations


normal_equations = Entry(
    _make_normal_equations, NUMBER,
    *PLAN, given(1), *DATA, INTEGER, NUMBER, INTEGER, INTEGER, INTEGER, FLAG, result(1), result(2),
    result(1), calls=PARTS,
)  # fmt: skip


def _make_gradient_beyond(fingerprint):
    def gradient_beyond(
        plan, constants, params, terms, numbers, X, targets, labels, weights, rho, scale,
        first, count, moved, gradient, workspace,
    ):  # fmt: skip
        """`beyond_of_part` for Python."""
        _ = fingerprint  # see compiling.source_fingerprint
        beyond_of_part(
            pointer(plan), pointer(constants), pointer(params), pointer(terms), pointer(X),
            pointer(targets), pointer(weights), rho, scale, first, count, pointer(moved),
            pointer(gradient), aligned(pointer(workspace)),
        )  # fmt: skip

    return gradient_beyond


gradient_beyond = Entry(
    _make_gradient_beyond, NOTHING,
    *PLAN, given(1), *DATA, INTEGER, NUMBER, INTEGER, INTEGER, given(1), result(1), result(1),
    calls=PARTS,
)  # fmt: skip


@part
def add_normal(n, total, addend):
    """Add normal equations to others; of JᵀDJ there is the upper triangle."""
    for i in range(n):
        add(n - i, at(total, i * n + i), at(addend, i * n + i))
    add(n, at(total, n * n), at(addend, n * n))


@part
def mirror(n, A):
    """Copy the upper triangle of A (n, n) to the lower one."""
    for i0 in range(0, n, _PANEL):
        for j0 in range(i0, n, _PANEL):
            for i in range(i0, min(i0 + _PANEL, n)):
                for j in range(max(j0, i + 1), min(j0 + _PANEL, n)):
                    A[j * n + i] = A[i * n + j]


def _make_add_part(fingerprint):
    def add_part(total, addend):
        """`add_normal` for Python."""
        _ = fingerprint  # see compiling.source_fingerprint
        add_normal(total.shape[1], pointer(total), pointer(addend))

    return add_part


add_part = Entry(_make_add_part, NOTHING, result(2), given(2))


def _make_complete(fingerprint):
    def complete(normal):
        """`mirror` for Python, of JᵀDJ in normal equations."""
        _ = fingerprint  # see compiling.source_fingerprint
        mirror(normal.shape[1], pointer(normal))

    return complete


complete = Entry(_make_complete, NOTHING, result(2))
