"""The whole network on a tile of rows, forward and backward, and the entries for its derivatives.

A tile is a number of rows that passes through all layers at once, so that its activations stay in
the cache. The tape is laid out as in `contract.forward_tape`, for all rows or for one tile.
"""

from __future__ import annotations

from ..contract import ACTIVATION, B_OFFSET, N_IN, N_OUT, W_OFFSET, Y_COLUMN, Z_COLUMN
from .compiling import (
    FLAG,
    INTEGER,
    NOTHING,
    Entry,
    given,
    given_doubles,
    given_integers,
    inner,
    part,
    result,
)
from .layer import (
    layer_backward,
    layer_forward,
    layer_input_gradient,
    multiply_by_derivative,
    needs_transpose,
)
from .product import transpose
from .vectors import aligned, at, copy, elementwise, pointer

_COLUMNS = 7  # of Plan.layers

# Parts of the workspace; the last array given to an entry holds where each one begins.
TAPE, DELTA, NEXT_DELTA, TRANSPOSED, GRADIENT, X_ROWS, TARGET_ROWS, WEIGHT_ROWS, MAXIMA = range(9)


@inner
def forward_tile(layers, constants, n_layers, params, x, m, tape, n, i):
    """Run m rows x through all layers and write rows i to i + m of a tape for n rows."""
    for index in range(n_layers):
        layer = at(layers, index * _COLUMNS)
        n_out = layer[N_OUT]
        w, b = at(params, layer[W_OFFSET]), at(params, max(layer[B_OFFSET], 0))
        y = at(tape, n * layer[Y_COLUMN] + i * n_out)
        z = at(tape, n * max(layer[Z_COLUMN], 0) + i * n_out)
        layer_forward(
            m, layer[N_IN], n_out, x, w, b, layer[B_OFFSET] >= 0,
            layer[ACTIVATION], constants[index], y, z, layer[Z_COLUMN] >= 0,
        )  # fmt: skip
        x = y


@part
def last_y(layers, n_layers, tape, n, i):
    """The network's output for row i in a tape for n rows."""
    layer = at(layers, (n_layers - 1) * _COLUMNS)
    return at(tape, n * layer[Y_COLUMN] + i * layer[N_OUT])


@part
def transpose_weights(layers, n_layers, params, need_dx, transposed):
    """Wᵀ of each layer that passes a gradient on, at W's place."""
    for index in range(0 if need_dx else 1, n_layers):
        layer = at(layers, index * _COLUMNS)
        if needs_transpose(layer[N_IN], layer[N_OUT]):
            w = layer[W_OFFSET]
            transpose(layer[N_IN], layer[N_OUT], at(params, w), at(transposed, w))


@inner
def backward_tile(
    layers, constants, n_layers, params, transposed, x, m, tape, n, i,
    d, next_d, gradient, need_gradient, accumulate, dx, need_dx,
):  # fmt: skip
    """From d, dL/dY of the last layer for a tile, the gradient (added if `accumulate`) and dX.

    d and next_d are buffers and are overwritten.
    """
    for index in range(n_layers - 1, -1, -1):
        layer = at(layers, index * _COLUMNS)
        n_in, n_out, w, b = layer[N_IN], layer[N_OUT], layer[W_OFFSET], layer[B_OFFSET]
        y = at(tape, n * layer[Y_COLUMN] + i * n_out)
        z = at(tape, n * max(layer[Z_COLUMN], 0) + i * n_out)
        below = x
        if index > 0:
            below = at(tape, n * layer[Y_COLUMN - _COLUMNS] + i * n_in)
        layer_backward(
            m, n_in, n_out, below, d, y, z, layer[ACTIVATION], constants[index],
            at(gradient, w), at(gradient, max(b, 0)), b >= 0, need_gradient, accumulate,
        )  # fmt: skip
        if index > 0:
            layer_input_gradient(m, n_in, n_out, d, at(params, w), at(transposed, w), next_d)
            d, next_d = next_d, d
        elif need_dx:
            layer_input_gradient(m, n_in, n_out, d, at(params, w), at(transposed, w), dx)


_scaled = elementwise(lambda to, x, factor: (x * factor,), 2, 1)


@inner
def jacobian_rows(
    layers, constants, n_layers, params, transposed, x, m, tape, n, d, next_d, J, stride
):
    """From d, one output's unit rows for a tile, that output's row of J for each row of the tile.

    Those rows are `stride` apart. Unlike gradients, deltas are not summed over rows: each makes a
    product a·dᵀ of its own. d and next_d are buffers and are overwritten.
    """
    for index in range(n_layers - 1, -1, -1):
        layer = at(layers, index * _COLUMNS)
        n_in, n_out, w, b = layer[N_IN], layer[N_OUT], layer[W_OFFSET], layer[B_OFFSET]
        y, z = at(tape, n * layer[Y_COLUMN]), at(tape, n * max(layer[Z_COLUMN], 0))
        below = x
        if index > 0:
            below = at(tape, n * layer[Y_COLUMN - _COLUMNS])
        multiply_by_derivative(layer[ACTIVATION], constants[index], m * n_out, d, y, z)
        for j in range(m):
            row, a, dj = at(J, j * stride + w), at(below, j * n_in), at(d, j * n_out)
            if n_out == 1:
                _scaled(n_in, row, a, dj[0])
            else:
                for i in range(n_in):
                    _scaled(n_out, at(row, i * n_out), dj, a[i])
            if b >= 0:
                copy(at(J, j * stride + b), dj, n_out)
        if index > 0:
            layer_input_gradient(m, n_in, n_out, d, at(params, w), at(transposed, w), next_d)
            d, next_d = next_d, d


@inner
def set_unit_rows(m, n, k, d):
    """Rows (m, n) that are 1 in column k and 0 elsewhere."""
    for i in range(m * n):
        d[i] = 0.0
    for i in range(m):
        d[i * n + k] = 1.0


def _make_forward(fingerprint):
    def forward(layers, constants, params, X, tape, all_rows, out, tile, workspace, places):
        """Write the output to `out`, or the tape of all rows to `tape`."""
        _ = fingerprint  # see compiling.source_fingerprint
        n, n_in = X.shape
        n_layers = layers.shape[0]
        L, c, p, x = pointer(layers), pointer(constants), pointer(params), pointer(X)
        scratch = at(aligned(pointer(workspace)), places[TAPE])
        n_out = layers[n_layers - 1, N_OUT]
        for i in range(0, n, tile):
            m = min(tile, n - i)
            if all_rows:
                forward_tile(L, c, n_layers, p, at(x, i * n_in), m, pointer(tape), n, i)
            else:
                forward_tile(L, c, n_layers, p, at(x, i * n_in), m, scratch, tile, 0)
                Y = last_y(L, n_layers, scratch, tile, 0)
                copy(at(pointer(out), i * n_out), Y, m * n_out)

    return forward


forward = Entry(
    _make_forward, NOTHING,
    given_integers(2), given_doubles(1), given(1), given(2), result(1), FLAG, result(2),
    INTEGER, result(1), given_integers(1),
)  # fmt: skip

# What `derivatives` computes.
PRODUCT, JACOBIAN, INPUT_JACOBIAN = range(3)


def _make_derivatives(fingerprint):
    def derivatives(
        task, layers, constants, params, X, tape, dY, need_dx, gradient, dX, tile, workspace, places
    ):
        """The vector-Jacobian product of dY, or a Jacobian, to `gradient` and `dX`."""
        _ = fingerprint  # see compiling.source_fingerprint
        n, n_in = X.shape
        n_layers, n_params = layers.shape[0], params.size
        n_out = layers[n_layers - 1, N_OUT]
        L, c, p, x = pointer(layers), pointer(constants), pointer(params), pointer(X)
        space = aligned(pointer(workspace))
        scratch, transposed = at(space, places[TAPE]), at(space, places[TRANSPOSED])
        d, next_d = at(space, places[DELTA]), at(space, places[NEXT_DELTA])
        x_rows = at(space, places[X_ROWS])
        g, dx = pointer(gradient), pointer(dX)
        transpose_weights(L, n_layers, p, need_dx, transposed)
        if task == PRODUCT:
            for i in range(0, max(n, 1), tile):  # no rows at all make a gradient of zeros
                m = min(tile, n - i)
                copy(d, at(pointer(dY), i * n_out), m * n_out)
                backward_tile(
                    L, c, n_layers, p, transposed, at(x, i * n_in), m, pointer(tape), n, i,
                    d, next_d, g, True, i > 0, at(dx, i * n_in), need_dx,
                )  # fmt: skip
        elif task == JACOBIAN:
            for i in range(0, n, tile):
                m = min(tile, n - i)
                forward_tile(L, c, n_layers, p, at(x, i * n_in), m, scratch, tile, 0)
                for k in range(n_out):
                    set_unit_rows(m, n_out, k, d)
                    jacobian_rows(
                        L, c, n_layers, p, transposed, at(x, i * n_in), m, scratch, tile,
                        d, next_d, at(g, (i * n_out + k) * n_params), n_out * n_params,
                    )  # fmt: skip
        else:
            for i in range(0, n, tile):
                m = min(tile, n - i)
                forward_tile(L, c, n_layers, p, at(x, i * n_in), m, scratch, tile, 0)
                for k in range(n_out):
                    set_unit_rows(m, n_out, k, d)
                    backward_tile(
                        L, c, n_layers, p, transposed, at(x, i * n_in), m, scratch, tile, 0,
                        d, next_d, g, False, False, x_rows, True,
                    )  # fmt: skip
                    for j in range(m):
                        to = at(dx, ((i + j) * n_out + k) * n_in)
                        copy(to, at(x_rows, j * n_in), n_in)

    return derivatives


derivatives = Entry(
    _make_derivatives, NOTHING,
    INTEGER, given_integers(2), given_doubles(1), given(1), given(2), given(1), given(2), FLAG,
    result(1), result(2), INTEGER, result(1), given_integers(1),
)  # fmt: skip
