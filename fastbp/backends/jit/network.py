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
    INTEGERS,
    NOTHING,
    NUMBERS,
    entry,
    given,
    given_doubles,
    given_integers,
    inlined,
    linked,
    reals,
    result,
)
from .layer import (
    layer_forward,
    layer_input_gradient,
    multiply_by_derivative,
    needs_transpose,
    span,
    weight_gradient,
)
from .product import PRODUCTS, transpose
from .vectors import aligned, at, copy, elementwise, pointer

# A plan is, for compiled code, a vector of integers. First come the number of layers, the rows of a
# tile and where the parts of the workspace begin; from how many rows on these lie along lanes (see
# lane_major.py), up to how many vectors are short, and the functions for these and the others. They
# are followed by the layers' columns.
(
    N_LAYERS, TILE, TAPE, DELTA, NEXT_DELTA, TRANSPOSED, GRADIENT, PART_GRADIENT, X_ROWS,
    TARGET_ROWS, LABEL_ROWS, WEIGHT_ROWS, NORMS, LANE_MAJOR_X, LANE_MAJOR_Y, LANE_MAJOR_D,
    LANE_MAJOR_SUMS, DELTAS, SPARE_ROW, R_TAPE, R_DELTA, NEXT_R_DELTA, SPARE, R_TRANSPOSED,
    LANE_MAJOR_ROWS, SHORT_ROWS, LANE_MAJOR_SHORT, LANE_MAJOR_LONG, HEADER,
) = range(29)  # fmt: skip

# Columns of a layer beside those of `Plan.layers`: the addresses of its activation's function and
# of the user's own functions, and with dropout the first column of its factors in the tape of a
# tile (else -1), behind which stands the output times the factors. Then how many parameters before
# the layer's, of its weights and of its biases are free, and where in the plan their places are:
# for each one its row and column in W (-1 if all parameters are free). Last, how far apart the rows
# of Y are, and of Z: in the tape of a tile there is room for whole vectors, since what is written
# in part can be read again only after a while. Single columns and the last layer have no gaps.
(
    FUNCTION, USER_FUNCTION, FACTORS, FREE_BEFORE, FREE_WEIGHTS, FREE_BIASES, PLACES, LEADING,
    COLUMNS,
) = range(LAYER_COLUMNS, LAYER_COLUMNS + 9)  # fmt: skip


@inlined
def layer_of(plan, index):
    """The columns of a layer."""
    return at(plan, HEADER + index * COLUMNS)


@inlined
def number_of_free(plan):
    """How many parameters are free."""
    layer = layer_of(plan, plan[N_LAYERS] - 1)
    return layer[FREE_BEFORE] + layer[FREE_WEIGHTS] + layer[FREE_BIASES]


@inlined
def number_of_params(plan):
    """The length of the parameter vector."""
    layer = layer_of(plan, plan[N_LAYERS] - 1)
    n_out, b = layer[N_OUT], layer[B_OFFSET]
    return b + n_out if b >= 0 else layer[W_OFFSET] + layer[N_IN] * n_out


times = elementwise(lambda to, x, y: (x * y,), 3, 1)


@linked(
    NOTHING, INTEGERS, NUMBERS, reals, reals, INTEGER, reals, INTEGER, INTEGER, calls=PRODUCTS,
)  # fmt: skip
def forward_tile(plan, constants, params, x, m, tape, n, i):
    """Run m rows x through all layers and write rows i to i + m of a tape for n rows."""
    ldx = layer_of(plan, 0)[N_IN]
    for index in range(plan[N_LAYERS]):
        layer = layer_of(plan, index)
        n_out, ld = layer[N_OUT], layer[LEADING]
        w, b = at(params, layer[W_OFFSET]), at(params, max(layer[B_OFFSET], 0))
        y = at(tape, n * layer[Y_COLUMN] + i * ld)
        z = at(tape, n * max(layer[Z_COLUMN], 0) + i * ld)
        layer_forward(
            m, layer[N_IN], n_out, x, ldx, w, b, layer[B_OFFSET] >= 0, layer[ACTIVATION],
            layer[FUNCTION], constants[index], layer[USER_FUNCTION], y, z, ld,
            layer[Z_COLUMN] >= 0,
        )  # fmt: skip
        x, ldx = y, ld
        if layer[FACTORS] >= 0:
            factors = at(tape, n * layer[FACTORS])
            x = at(factors, n * n_out)
            times(m * n_out, x, y, factors)  # with dropout there are no gaps


@inlined
def last_y(plan, tape, n, i):
    """The network's output for row i in a tape for n rows."""
    layer = layer_of(plan, plan[N_LAYERS] - 1)
    return at(tape, n * layer[Y_COLUMN] + i * layer[N_OUT])


@inlined
def transpose_weights(plan, params, need_dx, transposed):
    """Wᵀ of each layer that passes a gradient on, at W's place."""
    for index in range(0 if need_dx else 1, plan[N_LAYERS]):
        layer = layer_of(plan, index)
        if needs_transpose(layer[N_IN], layer[N_OUT]):
            n_in, n_out, w = layer[N_IN], layer[N_OUT], layer[W_OFFSET]
            transpose(n_in, n_out, at(params, w), n_out, at(transposed, w), n_in)


@linked(
    NOTHING, INTEGERS, NUMBERS, reals, reals, reals, INTEGER, reals, INTEGER, INTEGER,
    reals, reals, reals, FLAG, FLAG, reals, FLAG, calls=PRODUCTS,
)  # fmt: skip
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
        ld, ld_below = layer[LEADING], n_in if index == 0 else layer[LEADING - COLUMNS]
        _through_activation(layer, constants[index], m, tape, n, i, d)
        if need_gradient:
            below = x if index == 0 else _output_below(layer, tape, n, i)
            dw, db = at(gradient, w), at(gradient, max(b, 0))
            weight_gradient(m, n_in, n_out, below, ld_below, d, ld, dw, db, b >= 0, accumulate)
        if index > 0:
            wt = at(transposed, w)
            layer_input_gradient(m, n_in, n_out, d, ld, at(params, w), wt, next_d, ld_below)
            if layer[FACTORS - COLUMNS] >= 0:
                times(m * n_in, next_d, next_d, at(tape, n * layer[FACTORS - COLUMNS]))
            d, next_d = next_d, d
        elif need_dx:
            wt = at(transposed, w)
            layer_input_gradient(m, n_in, n_out, d, ld, at(params, w), wt, dx, n_in)


# What those declare that call these functions.
FORWARD = (*PRODUCTS, forward_tile)
TILES = (*FORWARD, backward_tile)


@inlined
def _through_activation(layer, constant, m, tape, n, i, d):
    """d, dL/dY of a layer for rows i to i + m of a tape, becomes dL/dZ."""
    n_out, ld = layer[N_OUT], layer[LEADING]
    column = layer[Z_COLUMN] if layer[Z_COLUMN] >= 0 else layer[Y_COLUMN]
    kept, count = at(tape, n * column + i * ld), span(m, n_out, ld)
    multiply_by_derivative(
        layer[ACTIVATION], layer[FUNCTION], constant, layer[USER_FUNCTION], count, d, kept
    )


@inlined
def _output_below(layer, tape, n, i):
    """What the layer before this one handed on, from row i of a tape."""
    factors = layer[FACTORS - COLUMNS]
    if factors >= 0:
        return at(tape, n * (factors + layer[N_IN]))
    return at(tape, n * layer[Y_COLUMN - COLUMNS] + i * layer[LEADING - COLUMNS])


@inlined
def fill(to, count, number):
    """Set `count` elements to a number."""
    for i in range(count):
        to[i] = number


@entry(
    NOTHING,
    given_integers(1), given_doubles(1), given(1), given(2), result(1), FLAG, result(2), result(1),
    calls=FORWARD,
)  # fmt: skip
def forward(plan, constants, params, X, tape, all_rows, out, workspace):
    """Write the output to `out`, or the tape of all rows to `tape`."""
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
