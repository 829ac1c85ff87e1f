"""Products with Jacobian and Hessian, row gradients.

The products follow B. A. Pearlmutter, "Fast exact multiplication by the Hessian", Neural
Computation 6(1), 1994: RA is the derivative of A where the parameters move along a vector, the
tangent.
"""

from __future__ import annotations

from ..contract import B_OFFSET, N_IN, N_OUT, W_OFFSET
from ..tiling import DELTA_ROWS
from .activations import call_activation
from .compiling import FLAG, NOTHING, callee, entry, given, inlined, result
from .jacobian_rows import ROWS, deltas_of, rows_of_jacobian
from .layer import layer_input_gradient, linear_forward, weight_gradient
from .losses import FIRST, N_TARGETS, SCALE, SECOND, loss_of_rows
from .network import (
    DELTA,
    DELTAS,
    FORWARD,
    FUNCTION,
    N_LAYERS,
    NEXT_DELTA,
    NEXT_R_DELTA,
    PART_GRADIENT,
    R_DELTA,
    R_TAPE,
    R_TRANSPOSED,
    SPARE,
    SPARE_ROW,
    TAPE,
    TILE,
    TRANSPOSED,
    USER_FUNCTION,
    forward_tile,
    last_y,
    layer_of,
    times,
    transpose_weights,
)
from .objective import DATA, PLAN, add, part_size
from .product import PRODUCTS
from .vectors import Vector, aligned, at, copy, elementwise, pointer

# What the tape of a tile holds per layer: blocks of tile·n_out numbers.
Z, RZ, SLOPE, Y, RY, BLOCKS = range(6)


@callee
def _forward_tile(plan, constants, params, tangent, x, m, block, spare):
    """Run m rows x, and their derivatives, through all layers; `block` is the tape."""
    rx = x
    for index in range(plan[N_LAYERS]):
        layer = layer_of(plan, index)
        n_in, n_out, w, b = layer[N_IN], layer[N_OUT], layer[W_OFFSET], layer[B_OFFSET]
        size, count, bias = plan[TILE] * n_out, m * n_out, max(b, 0)
        z, rz, slope = block, at(block, RZ * size), at(block, SLOPE * size)
        y, ry = at(block, Y * size), at(block, RY * size)
        linear_forward(
            m, n_in, n_out, x, n_in, at(params, w), at(params, bias), b >= 0, z, n_out, 0
        )
        linear_forward(
            m, n_in, n_out, x, n_in, at(tangent, w), at(tangent, bias), b >= 0, rz, n_out, 0
        )
        if index > 0:
            linear_forward(
                m, n_in, n_out, rx, n_in, at(params, w), at(params, bias), False, spare, n_out, 0
            )
            add(count, rz, spare)
        function, user = layer[FUNCTION], layer[USER_FUNCTION]
        call_activation(function, 0, count, z, y, constants[index], user)
        call_activation(function, 1, count, z, slope, constants[index], user)
        times(count, ry, slope, rz)
        x, rx = y, ry
        block = at(block, BLOCKS * size)


@inlined
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


@callee
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
        weight_gradient(m, n_in, n_out, y, n_in, rd, n_out, dw, db, b >= 0, accumulate)
        if index == 0:
            break
        p, pt = at(params, w), at(transposed, w)
        layer_input_gradient(m, n_in, n_out, rd, n_out, p, pt, next_rd, n_in)
        if not gauss_newton:
            ry = at(block, RY * tile * n_in)
            weight_gradient(m, n_in, n_out, ry, n_in, d, n_out, dw, db, False, True)
            v, vt = at(tangent, w), at(r_transposed, w)
            layer_input_gradient(m, n_in, n_out, d, n_out, v, vt, spare, n_in)
            add(m * n_in, next_rd, spare)
            layer_input_gradient(m, n_in, n_out, d, n_out, p, pt, next_d, n_in)
            d, next_d = next_d, d
        rd, next_rd = next_rd, rd


@entry(
    NOTHING, *PLAN, given(1), given(2), given(1), result(2), result(2), result(1), calls=PRODUCTS,
)  # fmt: skip
def jvp(plan, constants, params, X, tangent, out, r_out, workspace):
    """Write the output and its derivative in the direction of the tangent."""
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


@entry(
    NOTHING, *PLAN, given(1), *DATA, given(1), FLAG, result(1), result(1), calls=PRODUCTS,
)  # fmt: skip
def hvp(
    plan, constants, params, terms, numbers, X, targets, labels, weights,
    tangent, gauss_newton, out, workspace,
):  # fmt: skip
    """Write the Hessian, or Gauss-Newton's matrix, times the tangent."""
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
                loss_of_rows(FIRST, problem, a, m, n_out, 0, y, ti, ki, wi, y, f, d, spare)
            loss_of_rows(SECOND, problem, a, m, n_out, 0, y, ti, ki, wi, ry, f, rd, spare)
            _backward_tile(
                q, c, p, transposed, v, r_transposed, x, m, last,
                d, next_d, rd, next_rd, spare, g, i > start, gauss_newton,
            )  # fmt: skip
        if start > 0:
            add(params.size, pointer(out), g)


@entry(
    NOTHING, *PLAN, given(1), *DATA, result(2), result(1), calls=(*FORWARD, *ROWS),
)  # fmt: skip
def row_gradients(
    plan, constants, params, terms, numbers, X, targets, labels, weights, rows, workspace
):
    """Write each row's part of the gradient."""
    n, n_in = X.shape
    n_params = params.size
    q, c, p, problem = pointer(plan), pointer(constants), pointer(params), pointer(terms)
    a, space, tile = pointer(numbers), aligned(pointer(workspace)), q[TILE]
    tape, transposed = at(space, q[TAPE]), at(space, q[TRANSPOSED])
    deltas, spare, scratch = at(space, q[DELTAS]), at(space, q[SPARE_ROW]), at(space, q[DELTA])
    last = layer_of(q, q[N_LAYERS] - 1)
    n_out, d = last[N_OUT], deltas_of(q, last, deltas)
    transpose_weights(q, p, False, transposed)
    for i in range(0, n, DELTA_ROWS):
        m, x = min(DELTA_ROWS, n - i), at(pointer(X), i * n_in)
        forward_tile(q, c, p, x, m, tape, tile, 0)
        y, t = last_y(q, tape, tile, 0), at(pointer(targets), i * problem[N_TARGETS])
        labels_, w = at(pointer(labels), i), at(pointer(weights), i)
        loss_of_rows(FIRST, problem, a, m, n_out, 0, y, t, labels_, w, y, a[SCALE], d, scratch)
        rows_of_jacobian(
            q, c, p, transposed, x, m, 1, tape, tile, deltas, spare, False,
            at(pointer(rows), i * n_params), n_params,
        )  # fmt: skip
