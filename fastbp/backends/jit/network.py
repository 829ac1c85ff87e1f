"""The whole network on a tile of rows, forward and backward, and the entries for its derivatives.

A tile is a number of rows that passes through all layers at once, so that its activations stay in
the cache. The tape is laid out as in `contract.forward_tape`, for all rows or for one tile.
"""

from __future__ import annotations

from ..contract import (
    ACTIVATION,
    B_OFFSET,
    LAYER_COLUMNS,
    N_IN,
    N_OUT,
    W_OFFSET,
    Y_COLUMN,
    Z_COLUMN,
)
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
    layer_forward,
    layer_input_gradient,
    multiply_by_derivative,
    needs_transpose,
    weight_gradient,
)
from .product import PRODUCTS, transpose
from .vectors import aligned, at, copy, elementwise, pointer

# A plan is, for compiled code, a vector of integers. First come the number of layers, the rows of a
# tile and where the parts of the workspace begin; they are followed by the layers' columns.
(
    N_LAYERS, TILE, TAPE, DELTA, NEXT_DELTA, TRANSPOSED, GRADIENT, PART_GRADIENT, X_ROWS,
    TARGET_ROWS, LABEL_ROWS, WEIGHT_ROWS, NORMS, R_TAPE, R_DELTA, NEXT_R_DELTA, SPARE,
    R_TRANSPOSED, HEADER,
) = range(19)  # fmt: skip

# Columns of a layer beside those of `Plan.layers`: the addresses of its activation's function and
# of the user's own functions, and with dropout the first column of its factors in the tape of a
# tile (else -1), behind which stands the output times the factors. Last, how many parameters before
# the layer's, of its weights and of its biases are free, and where in the plan their places are:
# for each one its row and column in W (-1 if all parameters are free).
(
    FUNCTION, USER_FUNCTION, FACTORS, FREE_BEFORE, FREE_WEIGHTS, FREE_BIASES, PLACES, COLUMNS,
) = range(LAYER_COLUMNS, LAYER_COLUMNS + 8)  # fmt: skip


@part
def layer_of(plan, index):
    """The columns of a layer."""
    return at(plan, HEADER + index * COLUMNS)


@part
def number_of_free(plan):
    """How many parameters are free."""
    layer = layer_of(plan, plan[N_LAYERS] - 1)
    return layer[FREE_BEFORE] + layer[FREE_WEIGHTS] + layer[FREE_BIASES]


times = elementwise(lambda to, x, y: (x * y,), 3, 1)


@inner
def forward_tile(plan, constants, params, x, m, tape, n, i):
    """Run m rows x through all layers and write rows i to i + m of a tape for n rows."""
    for index in range(plan[N_LAYERS]):
        layer = layer_of(plan, index)
        n_out = layer[N_OUT]
        w, b = at(params, layer[W_OFFSET]), at(params, max(layer[B_OFFSET], 0))
        y = at(tape, n * layer[Y_COLUMN] + i * n_out)
        z = at(tape, n * max(layer[Z_COLUMN], 0) + i * n_out)
        layer_forward(
            m, layer[N_IN], n_out, x, w, b, layer[B_OFFSET] >= 0, layer[ACTIVATION],
            layer[FUNCTION], constants[index], layer[USER_FUNCTION], y, z, layer[Z_COLUMN] >= 0,
        )  # fmt: skip
        x = y
        if layer[FACTORS] >= 0:
            factors = at(tape, n * layer[FACTORS])
            x = at(factors, n * n_out)
            times(m * n_out, x, y, factors)


@part
def last_y(plan, tape, n, i):
    """The network's output for row i in a tape for n rows."""
    layer = layer_of(plan, plan[N_LAYERS] - 1)
    return at(tape, n * layer[Y_COLUMN] + i * layer[N_OUT])


@part
def transpose_weights(plan, params, need_dx, transposed):
    """Wᵀ of each layer that passes a gradient on, at W's place."""
    for index in range(0 if need_dx else 1, plan[N_LAYERS]):
        layer = layer_of(plan, index)
        if needs_transpose(layer[N_IN], layer[N_OUT]):
            w = layer[W_OFFSET]
            transpose(layer[N_IN], layer[N_OUT], at(params, w), at(transposed, w))


@inner
def backward_tile(
    plan, constants, params, transposed, x, m, tape, n, i,
    d, next_d, gradient, need_gradient, accumulate, dx, need_dx,
):  # fmt: skip
    """From d, dL/dY of the last layer for a tile, the gradient (added if `accumulate`) and dX.

    d and next_d are buffers and are overwritten.
    """
    for index in range(plan[N_LAYERS] - 1, -1, -1):
        layer = layer_of(plan, index)
        n_in, n_out, w, b = layer[N_IN], layer[N_OUT], layer[W_OFFSET], layer[B_OFFSET]
        _through_activation(layer, constants[index], m, tape, n, i, d)
        if need_gradient:
            below = x if index == 0 else _output_below(layer, tape, n, i)
            dw, db = at(gradient, w), at(gradient, max(b, 0))
            weight_gradient(m, n_in, n_out, below, d, dw, db, b >= 0, accumulate)
        if index > 0:
            layer_input_gradient(m, n_in, n_out, d, at(params, w), at(transposed, w), next_d)
            if layer[FACTORS - COLUMNS] >= 0:
                times(m * n_in, next_d, next_d, at(tape, n * layer[FACTORS - COLUMNS]))
            d, next_d = next_d, d
        elif need_dx:
            layer_input_gradient(m, n_in, n_out, d, at(params, w), at(transposed, w), dx)


@part
def _through_activation(layer, constant, m, tape, n, i, d):
    """d, dL/dY of a layer for rows i to i + m of a tape, becomes dL/dZ."""
    n_out = layer[N_OUT]
    column = layer[Z_COLUMN] if layer[Z_COLUMN] >= 0 else layer[Y_COLUMN]
    kept = at(tape, n * column + i * n_out)
    multiply_by_derivative(
        layer[ACTIVATION], layer[FUNCTION], constant, layer[USER_FUNCTION], m * n_out, d, kept
    )


@part
def _output_below(layer, tape, n, i):
    """What the layer before this one handed on, from row i of a tape."""
    factors = layer[FACTORS - COLUMNS]
    if factors >= 0:
        return at(tape, n * (factors + layer[N_IN]))
    return at(tape, n * layer[Y_COLUMN - COLUMNS] + i * layer[N_IN])


_scaled = elementwise(lambda to, x, factor: (x * factor,), 2, 1)


@inner
def jacobian_rows(
    plan, constants, params, transposed, x, m, tape, n, d, next_d, free_only, J, stride
):
    """From d, a row of dL/dY for each row of a tile, its product with dY/dparams to a row of J.

    Those rows are `stride` apart. Unlike gradients, deltas are not summed over rows: each makes a
    product a·dᵀ of its own. d and next_d are buffers and are overwritten.
    """
    for index in range(plan[N_LAYERS] - 1, -1, -1):
        layer = layer_of(plan, index)
        n_in, n_out, w, b = layer[N_IN], layer[N_OUT], layer[W_OFFSET], layer[B_OFFSET]
        below = x if index == 0 else _output_below(layer, tape, n, 0)
        _through_activation(layer, constants[index], m, tape, n, 0, d)
        for j in range(m):
            a, dj = at(below, j * n_in), at(d, j * n_out)
            if free_only and layer[PLACES] >= 0:
                _free_columns(plan, layer, a, dj, at(J, j * stride + layer[FREE_BEFORE]))
            else:
                row = at(J, j * stride)
                _all_columns(n_in, n_out, a, dj, at(row, w), at(row, max(b, 0)), b >= 0)
        if index == 0 or (free_only and layer[FREE_BEFORE] == 0):
            break
        layer_input_gradient(m, n_in, n_out, d, at(params, w), at(transposed, w), next_d)
        d, next_d = next_d, d


@part
def _all_columns(n_in, n_out, a, d, of_weights, of_biases, has_bias):
    """A layer's columns of a row of J."""
    if n_out == 1:
        _scaled(n_in, of_weights, a, d[0])
    else:
        for i in range(n_in):
            _scaled(n_out, at(of_weights, i * n_out), d, a[i])
    if has_bias:
        copy(of_biases, d, n_out)


@part
def _free_columns(plan, layer, a, d, row):
    """Those of its free parameters."""
    places, weights = at(plan, layer[PLACES]), layer[FREE_WEIGHTS]
    for k in range(weights):
        row[k] = a[places[2 * k]] * d[places[2 * k + 1]]
    for k in range(weights, weights + layer[FREE_BIASES]):
        row[k] = d[places[2 * k + 1]]


@part
def set_unit_rows(m, n, k, d):
    """Rows (m, n) that are 1 in column k and 0 elsewhere."""
    fill(d, m * n, 0.0)
    for i in range(m):
        d[i * n + k] = 1.0


@part
def fill(to, count, number):
    """Set `count` elements to a number."""
    for i in range(count):
        to[i] = number


def _make_forward(fingerprint):
    def forward(plan, constants, params, X, tape, all_rows, out, workspace):
        """Write the output to `out`, or the tape of all rows to `tape`."""
        _ = fingerprint  # see compiling.source_fingerprint
        n, n_in = X.shape
        q, c, p, x = pointer(plan), pointer(constants), pointer(params), pointer(X)
        scratch, tile = at(aligned(pointer(workspace)), q[TAPE]), q[TILE]
        n_out = layer_of(q, q[N_LAYERS] - 1)[N_OUT]
        for i in range(0, n, tile):
            m = min(tile, n - i)
            if all_rows:
                forward_tile(q, c, p, at(x, i * n_in), m, pointer(tape), n, i)
            else:
                forward_tile(q, c, p, at(x, i * n_in), m, scratch, tile, 0)
                copy(at(pointer(out), i * n_out), last_y(q, scratch, tile, 0), m * n_out)

    return forward


forward = Entry(
    _make_forward, NOTHING,
    given_integers(1), given_doubles(1), given(1), given(2), result(1), FLAG, result(2), result(1),
    calls=PRODUCTS,
)  # fmt: skip

# What `derivatives` computes.
PRODUCT, JACOBIAN, FREE_JACOBIAN, INPUT_JACOBIAN = range(4)


def _make_derivatives(fingerprint):
    def derivatives(task, plan, constants, params, X, tape, dY, need_dx, gradient, dX, workspace):
        """The vector-Jacobian product of dY, or a Jacobian, to `gradient` and `dX`."""
        _ = fingerprint  # see compiling.source_fingerprint
        n, n_in = X.shape
        q, c, p, x = pointer(plan), pointer(constants), pointer(params), pointer(X)
        space, tile = aligned(pointer(workspace)), q[TILE]
        n_out = layer_of(q, q[N_LAYERS] - 1)[N_OUT]
        scratch, transposed = at(space, q[TAPE]), at(space, q[TRANSPOSED])
        d, next_d, x_rows = at(space, q[DELTA]), at(space, q[NEXT_DELTA]), at(space, q[X_ROWS])
        g, dx = pointer(gradient), pointer(dX)
        transpose_weights(q, p, need_dx, transposed)
        if task == PRODUCT:
            for i in range(0, max(n, 1), tile):  # no rows at all make a gradient of zeros
                m = min(tile, n - i)
                copy(d, at(pointer(dY), i * n_out), m * n_out)
                backward_tile(
                    q, c, p, transposed, at(x, i * n_in), m, pointer(tape), n, i,
                    d, next_d, g, True, i > 0, at(dx, i * n_in), need_dx,
                )  # fmt: skip
            return
        for i in range(0, n, tile):
            m, xi = min(tile, n - i), at(x, i * n_in)
            forward_tile(q, c, p, xi, m, scratch, tile, 0)
            for k in range(n_out):
                set_unit_rows(m, n_out, k, d)
                if task != INPUT_JACOBIAN:
                    free_only = task == FREE_JACOBIAN
                    columns = number_of_free(q) if free_only else params.size
                    J, stride = at(g, (i * n_out + k) * columns), n_out * columns
                    jacobian_rows(
                        q, c, p, transposed, xi, m, scratch, tile, d, next_d, free_only, J, stride
                    )
                    continue
                backward_tile(
                    q, c, p, transposed, xi, m, scratch, tile, 0,
                    d, next_d, g, False, False, x_rows, True,
                )  # fmt: skip
                for j in range(m):
                    copy(at(dx, ((i + j) * n_out + k) * n_in), at(x_rows, j * n_in), n_in)

    return derivatives


derivatives = Entry(
    _make_derivatives, NOTHING,
    INTEGER, given_integers(1), given_doubles(1), given(1), given(2), given(1), given(2), FLAG,
    result(1), result(2), result(1), calls=PRODUCTS,
)  # fmt: skip
