"""Products with Jacobian and Hessian, row gradients, normal equations.

The products follow B. A. Pearlmutter, "Fast exact multiplication by the Hessian", Neural
Computation 6(1), 1994: RA is the derivative of A where the parameters move along a vector, the
tangent.
"""

from __future__ import annotations

import math

from ..contract import B_OFFSET, HUBER_RHO, LINEAR_RHO, N_IN, N_OUT, SOFT_L1_RHO, W_OFFSET
from .activations import call_activation
from .compiling import FLAG, INTEGER, NOTHING, NUMBER, Entry, given, inner, part, result
from .layer import layer_input_gradient, linear_forward, weight_gradient
from .losses import FIRST, SECOND
from .network import (
    DELTA,
    FUNCTION,
    N_LAYERS,
    NEXT_DELTA,
    NEXT_R_DELTA,
    PART_GRADIENT,
    R_DELTA,
    R_TAPE,
    R_TRANSPOSED,
    SPARE,
    TAPE,
    TILE,
    TRANSPOSED,
    USER_FUNCTION,
    forward_tile,
    jacobian_rows,
    last_y,
    layer_of,
    set_unit_rows,
    times,
    transpose_weights,
)
from .objective import DATA, HAS_WEIGHTS, N_TARGETS, PLAN, SCALE, add, loss_of_rows, part_size
from .product import PRODUCTS, product
from .vectors import Vector, aligned, as_real, at, copy, elementwise, pointer

# What the tape of a tile holds per layer: blocks of tile·n_out numbers.
Z, RZ, SLOPE, Y, RY, BLOCKS = range(6)


@inner
def _forward_tile(plan, constants, params, tangent, x, m, block, spare):
    """Run m rows x, and their derivatives, through all layers; `block` is the tape."""
    rx = x
    for index in range(plan[N_LAYERS]):
        layer = layer_of(plan, index)
        n_in, n_out, w, b = layer[N_IN], layer[N_OUT], layer[W_OFFSET], layer[B_OFFSET]
        size, count, bias = plan[TILE] * n_out, m * n_out, max(b, 0)
        z, rz, slope = block, at(block, RZ * size), at(block, SLOPE * size)
        y, ry = at(block, Y * size), at(block, RY * size)
        linear_forward(m, n_in, n_out, x, at(params, w), at(params, bias), b >= 0, z)
        linear_forward(m, n_in, n_out, x, at(tangent, w), at(tangent, bias), b >= 0, rz)
        if index > 0:
            linear_forward(m, n_in, n_out, rx, at(params, w), at(params, bias), False, spare)
            add(count, rz, spare)
        function, user = layer[FUNCTION], layer[USER_FUNCTION]
        call_activation(function, 0, count, z, y, constants[index], user)
        call_activation(function, 1, count, z, slope, constants[index], user)
        times(count, ry, slope, rz)
        x, rx = y, ry
        block = at(block, BLOCKS * size)


@part
def _last_block(plan, tape):
    """The last layer's blocks in a tape."""
    for index in range(plan[N_LAYERS] - 1):
        tape = at(tape, BLOCKS * plan[TILE] * layer_of(plan, index)[N_OUT])
    return tape


def _through_formula(
    rd: Vector, d: Vector, slope: Vector, second: Vector, rz: Vector
) -> tuple[Vector, Vector]:
    return rd * slope + d * second * rz, d * slope


_through_activation = elementwise(_through_formula, 5, 2)


@inner
def _backward_tile(
    plan, constants, params, transposed, tangent, r_transposed, x, m, block,
    d, next_d, rd, next_rd, spare, gradient, accumulate, gauss_newton,
):  # fmt: skip
    """From d, dL/dY of the last layer, and rd the Hessian product, added if `accumulate`.

    For Gauss-Newton's matrix d counts as 0; `block` is the last one of the tape.
    """
    tile = plan[TILE]
    for index in range(plan[N_LAYERS] - 1, -1, -1):
        layer = layer_of(plan, index)
        n_in, n_out, w, b = layer[N_IN], layer[N_OUT], layer[W_OFFSET], layer[B_OFFSET]
        size, count = tile * n_out, m * n_out
        slope = at(block, SLOPE * size)
        if gauss_newton:
            times(count, rd, rd, slope)
        else:
            function, user = layer[FUNCTION], layer[USER_FUNCTION]
            call_activation(function, 2, count, block, spare, constants[index], user)
            _through_activation(count, rd, d, slope, spare, at(block, RZ * size))
        block = at(block, -BLOCKS * tile * n_in)
        y = x if index == 0 else at(block, Y * tile * n_in)
        dw, db = at(gradient, w), at(gradient, max(b, 0))
        weight_gradient(m, n_in, n_out, y, rd, dw, db, b >= 0, accumulate)
        if index == 0:
            break
        p, pt = at(params, w), at(transposed, w)
        layer_input_gradient(m, n_in, n_out, rd, p, pt, next_rd)
        if not gauss_newton:
            ry = at(block, RY * tile * n_in)
            weight_gradient(m, n_in, n_out, ry, d, dw, db, False, True)
            v, vt = at(tangent, w), at(r_transposed, w)
            layer_input_gradient(m, n_in, n_out, d, v, vt, spare)
            add(m * n_in, next_rd, spare)
            layer_input_gradient(m, n_in, n_out, d, p, pt, next_d)
            d, next_d = next_d, d
        rd, next_rd = next_rd, rd


def _make_jvp(fingerprint):
    def jvp(plan, constants, params, X, tangent, out, r_out, workspace):
        """Write the output and its derivative in the direction of the tangent."""
        _ = fingerprint  # see compiling.source_fingerprint
        n, n_in = X.shape
        q, space = pointer(plan), aligned(pointer(workspace))
        tile, tape, n_out = q[TILE], at(space, q[R_TAPE]), out.shape[1]
        last = _last_block(q, tape)
        for i in range(0, n, tile):
            m = min(tile, n - i)
            _forward_tile(
                q, pointer(constants), pointer(params), pointer(tangent),
                at(pointer(X), i * n_in), m, tape, at(space, q[SPARE]),
            )  # fmt: skip
            copy(at(pointer(out), i * n_out), at(last, Y * tile * n_out), m * n_out)
            copy(at(pointer(r_out), i * n_out), at(last, RY * tile * n_out), m * n_out)

    return jvp


jvp = Entry(
    _make_jvp, NOTHING,
    *PLAN, given(1), given(2), given(1), result(2), result(2), result(1), calls=PRODUCTS,
)  # fmt: skip


def _make_hvp(fingerprint):
    def hvp(
        plan, constants, params, terms, numbers, X, targets, labels, weights,
        tangent, gauss_newton, out, workspace,
    ):  # fmt: skip
        """Write the Hessian, or Gauss-Newton's matrix, times the tangent."""
        _ = fingerprint  # see compiling.source_fingerprint
        n, n_in = X.shape
        q, c, p, v = pointer(plan), pointer(constants), pointer(params), pointer(tangent)
        space, tile = aligned(pointer(workspace)), q[TILE]
        n_out = layer_of(q, q[N_LAYERS] - 1)[N_OUT]
        tape, spare = at(space, q[R_TAPE]), at(space, q[SPARE])
        d, next_d = at(space, q[DELTA]), at(space, q[NEXT_DELTA])
        rd, next_rd = at(space, q[R_DELTA]), at(space, q[NEXT_R_DELTA])
        transposed, r_transposed = at(space, q[TRANSPOSED]), at(space, q[R_TRANSPOSED])
        last = _last_block(q, tape)
        y, ry = at(last, Y * tile * n_out), at(last, RY * tile * n_out)
        t, k, w = pointer(targets), pointer(labels), pointer(weights)
        problem, a = pointer(terms), pointer(numbers)
        transpose_weights(q, p, False, transposed)
        transpose_weights(q, v, False, r_transposed)
        size = part_size(n)
        for start in range(0, n, size):
            g = pointer(out) if start == 0 else at(space, q[PART_GRADIENT])
            for i in range(start, min(start + size, n), tile):
                m, x = min(tile, min(start + size, n) - i), at(pointer(X), i * n_in)
                _forward_tile(q, c, p, v, x, m, tape, spare)
                ti, ki, wi = at(t, i * problem[N_TARGETS]), at(k, i), at(w, i)
                f = a[SCALE]
                if not gauss_newton:
                    loss_of_rows(FIRST, problem, a, m, n_out, y, ti, ki, wi, y, f, d, spare)
                loss_of_rows(SECOND, problem, a, m, n_out, y, ti, ki, wi, ry, f, rd, spare)
                _backward_tile(
                    q, c, p, transposed, v, r_transposed, x, m, last,
                    d, next_d, rd, next_rd, spare, g, i > start, gauss_newton,
                )  # fmt: skip
            if start > 0:
                add(params.size, pointer(out), g)

    return hvp


hvp = Entry(
    _make_hvp, NOTHING,
    *PLAN, given(1), *DATA, given(1), FLAG, result(1), result(1), calls=PRODUCTS,
)  # fmt: skip


def _make_row_gradients(fingerprint):
    def row_gradients(
        plan, constants, params, terms, numbers, X, targets, labels, weights, rows, workspace
    ):
        """Write each row's part of the gradient."""
        _ = fingerprint  # see compiling.source_fingerprint
        n, n_in = X.shape
        n_params = params.size
        q, c, p, problem = pointer(plan), pointer(constants), pointer(params), pointer(terms)
        a, space, tile = pointer(numbers), aligned(pointer(workspace)), q[TILE]
        tape, transposed = at(space, q[TAPE]), at(space, q[TRANSPOSED])
        d, next_d = at(space, q[DELTA]), at(space, q[NEXT_DELTA])
        n_out = layer_of(q, q[N_LAYERS] - 1)[N_OUT]
        transpose_weights(q, p, False, transposed)
        for i in range(0, n, tile):
            m, x = min(tile, n - i), at(pointer(X), i * n_in)
            forward_tile(q, c, p, x, m, tape, tile, 0)
            y, t = last_y(q, tape, tile, 0), at(pointer(targets), i * problem[N_TARGETS])
            labels_, w = at(pointer(labels), i), at(pointer(weights), i)
            loss_of_rows(FIRST, problem, a, m, n_out, y, t, labels_, w, y, a[SCALE], d, next_d)
            J = at(pointer(rows), i * n_params)
            jacobian_rows(q, c, p, transposed, x, m, tape, tile, d, next_d, False, J, n_params)

    return row_gradients


row_gradients = Entry(
    _make_row_gradients, NOTHING,
    *PLAN, given(1), *DATA, result(2), result(1), calls=PRODUCTS,
)  # fmt: skip


# Normal equations.

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


def _make_normal_equations(fingerprint):
    def normal_equations(
        plan, constants, params, terms, numbers, X, targets, labels, weights, rho, scale,
        first, count, block, derive, J, r, JTJ, JTr, workspace,
    ):  # fmt: skip
        """Write JᵀDJ's upper triangle and JᵀDr for a part of the rows; returns its sum of squares.

        J is room for `block` rows of X, r for their residuals and roots of D. Unless `derive` there
        is only the sum.
        """
        _ = fingerprint  # see compiling.source_fingerprint
        n_in, n_free = X.shape[1], JTr.size
        q, c, p, problem = pointer(plan), pointer(constants), pointer(params), pointer(terms)
        space, tile = aligned(pointer(workspace)), q[TILE]
        tape, transposed = at(space, q[TAPE]), at(space, q[TRANSPOSED])
        d, next_d = at(space, q[DELTA]), at(space, q[NEXT_DELTA])
        n_out = layer_of(q, q[N_LAYERS] - 1)[N_OUT]
        residuals, roots = pointer(r), at(pointer(r), r.shape[1])
        if derive:
            transpose_weights(q, p, False, transposed)
        total = 0.0
        for i in range(0, count, block):
            m, place = min(block, count - i), first + i
            x, depth = at(pointer(X), place * n_in), m * n_out
            forward_tile(q, c, p, x, m, tape, tile, 0)
            total += _sum_of_squares(
                rho, scale, m, n_out, last_y(q, tape, tile, 0),
                at(pointer(targets), place * n_out), at(pointer(weights), place),
                problem[HAS_WEIGHTS], residuals, roots, derive,
            )  # fmt: skip
            if not derive:
                continue
            for k in range(n_out):
                set_unit_rows(m, n_out, k, d)
                for j in range(k, depth, n_out):
                    d[j] = roots[j]
                jacobian_rows(
                    q, c, p, transposed, x, m, tape, tile, d, next_d, True,
                    at(pointer(J), k * n_free), n_out * n_free,
                )  # fmt: skip
            _add_upper_product(depth, n_free, pointer(J), i > 0, pointer(JTJ))
            product(
                1, n_free, depth, residuals, 0, 1, pointer(J), n_free,
                pointer(JTr), 0, i > 0, pointer(JTr), 0,
            )  # fmt: skip
        return total

    return normal_equations


normal_equations = Entry(
    _make_normal_equations, NUMBER,
    *PLAN, given(1), *DATA, INTEGER, NUMBER, INTEGER, INTEGER, INTEGER, FLAG, result(2), result(2),
    result(2), result(1), result(1), calls=PRODUCTS,
)  # fmt: skip


def _make_add_upper(fingerprint):
    def add_upper(total, addend):
        """Add a symmetric matrix to another one; of both there is the upper triangle."""
        _ = fingerprint  # see compiling.source_fingerprint
        n = total.shape[0]
        for i in range(n):
            add(n - i, at(pointer(total), i * n + i), at(pointer(addend), i * n + i))

    return add_upper


add_upper = Entry(_make_add_upper, NOTHING, result(2), given(2))


def _make_mirror(fingerprint):
    def mirror(A):
        """Copy the upper triangle to the lower one."""
        _ = fingerprint  # see compiling.source_fingerprint
        n, a = A.shape[0], pointer(A)
        for i0 in range(0, n, _PANEL):
            for j0 in range(i0, n, _PANEL):
                for i in range(i0, min(i0 + _PANEL, n)):
                    for j in range(max(j0, i + 1), min(j0 + _PANEL, n)):
                        a[j * n + i] = a[i * n + j]

    return mirror


mirror = Entry(_make_mirror, NOTHING, result(2))
