"""The entries for derivatives of outputs: vector-Jacobian products and Jacobians."""

from __future__ import annotations

from ..contract import N_OUT
from . import layout, network
from .compiling import FLAG, NOTHING, entry, in_array, out_array
from .jacobian_rows import ROWS, deltas_of, rows_of_jacobian, samples_of_deltas, set_unit_rows
from .network import PLAN, last_layer, net_of, number_of_free, room
from .vectors import at, copy, pointer


@entry(
    NOTHING, PLAN, in_array(1), in_array(2), in_array(1), in_array(2), FLAG, out_array(1),
    out_array(2), out_array(1), calls=network.TILES,
)  # fmt: skip
def pullback(plan, params, X, tape, dY, need_dx, gradient, dX, workspace):
    """The vector-Jacobian product of dY (n, n_out) to `gradient` and, if needed, dX (n, n_in)."""
    n, n_in = X.shape
    net, x, dx = net_of(plan, params, workspace), pointer(X), pointer(dX)
    tile, n_out = net.plan[layout.TILE], last_layer(net)[N_OUT]
    network.transpose_weights(net, net.params, need_dx, room(net, layout.TRANSPOSED))
    for i in range(0, max(n, 1), tile):  # no rows at all make a gradient of zeros
        m = min(tile, n - i)
        copy(room(net, layout.DELTA), at(pointer(dY), i * n_out), m * n_out)
        network.backward_tile(
            net, at(x, i * n_in), m, pointer(tape), n, i, pointer(gradient), True, i > 0,
            at(dx, i * n_in), need_dx,
        )  # fmt: skip


@entry(
    NOTHING, PLAN, in_array(1), in_array(2), FLAG, out_array(1), out_array(1),
    calls=(*network.FORWARD, *ROWS),
)  # fmt: skip
def jacobian(plan, params, X, free_only, J, workspace):
    """Write dY/dparams (n·n_out, n_params), or the columns of the free ones alone."""
    n, n_in = X.shape
    net, x = net_of(plan, params, workspace), pointer(X)
    last = last_layer(net)
    n_out, columns = last[N_OUT], number_of_free(net) if free_only else params.size
    step = samples_of_deltas(n_out)
    network.transpose_weights(net, net.params, False, room(net, layout.TRANSPOSED))
    for i in range(0, n, step):
        m, xi = min(step, n - i), at(x, i * n_in)
        network.forward_rows(net, xi, m)
        set_unit_rows(m, n_out, deltas_of(net, last))
        to = at(pointer(J), i * n_out * columns)
        rows_of_jacobian(net, xi, m, n_out, free_only, to, columns)


@entry(NOTHING, PLAN, in_array(1), in_array(2), out_array(1), out_array(1), calls=network.TILES)
def input_jacobian(plan, params, X, J, workspace):
    """Write dY/dX (n, n_out, n_in)."""
    n, n_in = X.shape
    net, x, to = net_of(plan, params, workspace), pointer(X), pointer(J)
    tile, n_out, tape = net.plan[layout.TILE], last_layer(net)[N_OUT], room(net, layout.TAPE)
    d, x_rows = room(net, layout.DELTA), room(net, layout.X_ROWS)
    network.transpose_weights(net, net.params, True, room(net, layout.TRANSPOSED))
    for i in range(0, n, tile):
        m, xi = min(tile, n - i), at(x, i * n_in)
        network.forward_rows(net, xi, m)
        for k in range(n_out):
            network.fill(d, m * n_out, 0.0)
            for j in range(m):
                d[j * n_out + k] = 1.0
            network.backward_tile(net, xi, m, tape, tile, 0, x_rows, False, False, x_rows, True)
            for j in range(m):
                copy(at(to, ((i + j) * n_out + k) * n_in), at(x_rows, j * n_in), n_in)
