"""Products with Jacobian and Hessian, row gradients.

The products follow B. A. Pearlmutter, "Fast exact multiplication by the Hessian", Neural
Computation 6(1), 1994: RA is the derivative of A where the parameters move along a vector, the
tangent.
"""

from __future__ import annotations

from ..contract import N_IN, N_OUT, W_OFFSET
from ..tiling import DELTA_ROWS
from . import layout, network
from .compiling import FLAG, NOTHING, callee, entry, in_array, inlined, out_array
from .jacobian_rows import ROWS, deltas_of, rows_of_jacobian
from .layer import Affine, apply, layer_input_gradient, linear_forward, weight_gradient
from .losses import DATA, FIRST, SCALE, SECOND, loss_of_rows, pointers, rows_from
from .network import PLAN, act_of, affine_of, last_layer, layer_of, net_of, room
from .objective import add, part_size
from .product import PRODUCTS
from .vectors import at, copy, elementwise, pointer

# What the tape of a tile holds per layer: blocks of tile·n_out numbers.
Z, RZ, SLOPE, Y, RY, BLOCKS = range(6)


@inlined
def _weights(affine):
    """A layer without its b."""
    return Affine(affine.n_in, affine.n_out, affine.w, affine.b, False)


@callee
def _forward_tile(net, tangent, x, m):
    """Run m rows x, and their derivatives, through all layers; R_TAPE is the tape."""
    rx, tile = x, net.plan[layout.TILE]
    block, spare = room(net, layout.R_TAPE), room(net, layout.SPARE)
    for index in range(net.plan[layout.N_LAYERS]):
        layer = layer_of(net, index)
        n_in, n_out, act = layer[N_IN], layer[N_OUT], act_of(net, layer, index)
        affine, size, count = affine_of(layer, net.params), tile * n_out, m * n_out
        z, rz, slope = block, at(block, RZ * size), at(block, SLOPE * size)
        y, ry = at(block, Y * size), at(block, RY * size)
        linear_forward(m, affine, x, n_in, z, n_out, 0)
        linear_forward(m, affine_of(layer, tangent), x, n_in, rz, n_out, 0)
        if index > 0:
            linear_forward(m, _weights(affine), rx, n_in, spare, n_out, 0)
            add(count, rz, spare)
        apply(act, 0, count, z, y)
        apply(act, 1, count, z, slope)
        network.times(count, ry, slope, rz)
        x, rx = y, ry
        block = at(block, BLOCKS * size)


@inlined
def _last_block(net):
    """The last layer's blocks in the tape."""
    tape = room(net, layout.R_TAPE)
    for index in range(net.plan[layout.N_LAYERS] - 1):
        tape = at(tape, BLOCKS * net.plan[layout.TILE] * layer_of(net, index)[N_OUT])
    return tape


_through_activation = elementwise(
    lambda rd, d, slope, second, rz: (rd * slope + d * second * rz, d * slope), 5, 2
)


@callee
def _backward_tile(net, tangent, x, m, gradient, accumulate, gauss_newton):
    """The product of the Hessian of m rows x and the tangent to `gradient`, added if `accumulate`.

    DELTA is dL/dY of the last layer and R_DELTA its derivative along the tangent; for Gauss and
    Newton's matrix DELTA counts as 0.
    """
    d, next_d, block = room(net, layout.DELTA), room(net, layout.NEXT_DELTA), _last_block(net)
    rd, next_rd = room(net, layout.R_DELTA), room(net, layout.NEXT_R_DELTA)
    spare, tile = room(net, layout.SPARE), net.plan[layout.TILE]
    for index in range(net.plan[layout.N_LAYERS] - 1, -1, -1):
        layer = layer_of(net, index)
        n_in, n_out, w = layer[N_IN], layer[N_OUT], layer[W_OFFSET]
        size, count = tile * n_out, m * n_out
        slope, to = at(block, SLOPE * size), affine_of(layer, gradient)
        if gauss_newton:
            network.times(count, rd, rd, slope)
        else:
            apply(act_of(net, layer, index), 2, count, block, spare)
            _through_activation(count, rd, d, slope, spare, at(block, RZ * size))
        block = at(block, -BLOCKS * tile * n_in)
        y = x if index == 0 else at(block, Y * tile * n_in)
        weight_gradient(m, to, y, n_in, rd, n_out, accumulate)
        if index == 0:
            break
        affine, pt = affine_of(layer, net.params), at(room(net, layout.TRANSPOSED), w)
        layer_input_gradient(m, affine, rd, n_out, pt, next_rd, n_in)
        if not gauss_newton:
            ry = at(block, RY * tile * n_in)
            weight_gradient(m, _weights(to), ry, n_in, d, n_out, True)
            of_tangent, vt = affine_of(layer, tangent), at(room(net, layout.R_TRANSPOSED), w)
            layer_input_gradient(m, of_tangent, d, n_out, vt, spare, n_in)
            add(m * n_in, next_rd, spare)
            layer_input_gradient(m, affine, d, n_out, pt, next_d, n_in)
            d, next_d = next_d, d
        rd, next_rd = next_rd, rd


@entry(
    NOTHING, PLAN, in_array(1), in_array(2), in_array(1), out_array(2), out_array(2), out_array(1),
    calls=PRODUCTS,
)  # fmt: skip
def jvp(plan, params, X, tangent, out, r_out, workspace):
    """Write the output (n, n_out) and its derivative in the direction of the tangent."""
    n, n_in = X.shape
    net = net_of(plan, params, workspace)
    tile, n_out, last = net.plan[layout.TILE], out.shape[1], _last_block(net)
    for i in range(0, n, tile):
        m = min(tile, n - i)
        _forward_tile(net, pointer(tangent), at(pointer(X), i * n_in), m)
        copy(at(pointer(out), i * n_out), at(last, Y * tile * n_out), m * n_out)
        copy(at(pointer(r_out), i * n_out), at(last, RY * tile * n_out), m * n_out)


@entry(
    NOTHING, PLAN, in_array(1), DATA, in_array(1), FLAG, out_array(1), out_array(1), calls=PRODUCTS,
)  # fmt: skip
def hvp(plan, params, data, tangent, gauss_newton, out, workspace):
    """Write the Hessian, or Gauss and Newton's matrix, times the tangent (n_params,)."""
    n, n_in = data.x.shape
    net, v, whole = net_of(plan, params, workspace), pointer(tangent), pointers(data)
    tile, n_out, last = net.plan[layout.TILE], last_layer(net)[N_OUT], _last_block(net)
    y, ry = at(last, Y * tile * n_out), at(last, RY * tile * n_out)
    d, rd, spare = room(net, layout.DELTA), room(net, layout.R_DELTA), room(net, layout.SPARE)
    f, size = whole.numbers[SCALE], part_size(n)
    network.transpose_weights(net, net.params, False, room(net, layout.TRANSPOSED))
    network.transpose_weights(net, v, False, room(net, layout.R_TRANSPOSED))
    for start in range(0, n, size):
        g = pointer(out) if start == 0 else room(net, layout.PART_GRADIENT)
        stop = min(start + size, n)
        for i in range(start, stop, tile):
            m, rows = min(tile, stop - i), rows_from(whole, i, n_in)
            _forward_tile(net, v, rows.x, m)
            if not gauss_newton:
                loss_of_rows(FIRST, rows, m, n_out, 0, y, y, f, d, spare)
            loss_of_rows(SECOND, rows, m, n_out, 0, y, ry, f, rd, spare)
            _backward_tile(net, v, rows.x, m, g, i > start, gauss_newton)
        if start > 0:
            add(params.size, pointer(out), g)


@entry(
    NOTHING, PLAN, in_array(1), DATA, out_array(2), out_array(1), calls=(*network.FORWARD, *ROWS)
)
def row_gradients(plan, params, data, gradients, workspace):
    """Write each row's part of the gradient (n, n_params)."""
    n, n_in = data.x.shape
    n_params = params.size
    net, whole = net_of(plan, params, workspace), pointers(data)
    last, f = last_layer(net), whole.numbers[SCALE]
    n_out, d = last[N_OUT], deltas_of(net, last)
    network.transpose_weights(net, net.params, False, room(net, layout.TRANSPOSED))
    for i in range(0, n, DELTA_ROWS):
        m, rows = min(DELTA_ROWS, n - i), rows_from(whole, i, n_in)
        y = network.forward_rows(net, rows.x, m)
        loss_of_rows(FIRST, rows, m, n_out, 0, y, y, f, d, room(net, layout.DELTA))
        to = at(pointer(gradients), i * n_params)
        rows_of_jacobian(net, rows.x, m, 1, False, to, n_params)
