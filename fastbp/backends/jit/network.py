"""The whole network on a tile of rows, forward and backward, and the entries for its derivatives.

A tile is a number of rows that passes through all layers at once, so that its activations stay in
the cache. The tape is laid out as in `contract.forward_tape`, for all rows or for one tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..contract import ACTIVATION, B_OFFSET, N_IN, N_OUT, W_OFFSET, Y_COLUMN, Z_COLUMN
from . import layout
from .compiling import (
    FLAG,
    INTEGER,
    INTEGERS,
    NOTHING,
    NUMBER,
    NUMBERS,
    Struct,
    entry,
    in_array,
    inlined,
    linked,
    out_array,
    reals,
)
from .layer import (
    Act,
    Affine,
    layer_forward,
    layer_input_gradient,
    multiply_by_derivative,
    needs_transpose,
    span,
    weight_gradient,
)
from .product import PRODUCTS, transpose
from .vectors import aligned, at, copy, elementwise, pointer


class PlanArrays(NamedTuple):
    """A plan as Python hands it over."""

    integers: Any  # int64: see layout.py
    constants: Any  # float64: those of the activations, then the layers' shares of dropout


class Net(NamedTuple):
    """A network in compiled code: pointers to the plan, the parameters and the workspace."""

    plan: Any
    constants: Any
    params: Any
    space: Any


PLAN = Struct(PlanArrays, in_array(1, INTEGER), in_array(1, NUMBER))
NET = Struct(Net, INTEGERS, NUMBERS, reals, reals)


@inlined
def net_of(plan, params, workspace):
    """The network of arrays."""
    space = aligned(pointer(workspace))
    return Net(pointer(plan.integers), pointer(plan.constants), pointer(params), space)


@inlined
def with_params(net, params):
    """The same network at other parameters."""
    return Net(net.plan, net.constants, params, net.space)


@inlined
def room(net, part):
    """Where a part of the workspace begins."""
    return at(net.space, net.plan[part])


@inlined
def layer_of(net, index):
    """The columns of a layer."""
    return at(net.plan, layout.HEADER + index * layout.COLUMNS)


@inlined
def last_layer(net):
    """The columns of the last one."""
    return layer_of(net, net.plan[layout.N_LAYERS] - 1)


@inlined
def act_of(net, layer, index):
    """The activation of a layer."""
    function, user = layer[layout.FUNCTION], layer[layout.USER_FUNCTION]
    return Act(layer[ACTIVATION], function, net.constants[index], user)


@inlined
def affine_of(layer, vector):
    """A layer's W and b in a vector of parameters, or their gradient."""
    w, b = layer[W_OFFSET], layer[B_OFFSET]
    return Affine(layer[N_IN], layer[N_OUT], at(vector, w), at(vector, max(b, 0)), b >= 0)


@inlined
def number_of_free(net):
    """How many parameters are free."""
    layer = last_layer(net)
    return layer[layout.FREE_BEFORE] + layer[layout.FREE_WEIGHTS] + layer[layout.FREE_BIASES]


@inlined
def number_of_params(net):
    """The length of the parameter vector."""
    layer = last_layer(net)
    n_out, b = layer[N_OUT], layer[B_OFFSET]
    return b + n_out if b >= 0 else layer[W_OFFSET] + layer[N_IN] * n_out


times = elementwise(lambda to, x, y: (x * y,), 3, 1)


@linked(NOTHING, NET, reals, INTEGER, reals, INTEGER, INTEGER, calls=PRODUCTS)
def forward_tile(net, x, m, tape, n, i):
    """Run m rows x (m, n_in) through all layers; write rows i to i + m of a tape for n rows."""
    ldx = layer_of(net, 0)[N_IN]
    for index in range(net.plan[layout.N_LAYERS]):
        layer = layer_of(net, index)
        n_out, ld = layer[N_OUT], layer[layout.LEADING]
        y = at(tape, n * layer[Y_COLUMN] + i * ld)
        z = at(tape, n * max(layer[Z_COLUMN], 0) + i * ld)
        layer_forward(
            m, affine_of(layer, net.params), act_of(net, layer, index), x, ldx, y, z, ld,
            layer[Z_COLUMN] >= 0,
        )  # fmt: skip
        x, ldx = y, ld
        if layer[layout.FACTORS] >= 0:
            factors = at(tape, n * layer[layout.FACTORS])
            x = at(factors, n * n_out)
            times(m * n_out, x, y, factors)  # with dropout there are no gaps


@inlined
def last_y(net, tape, n, i):
    """The network's output for row i in a tape for n rows."""
    layer = last_layer(net)
    return at(tape, n * layer[Y_COLUMN] + i * layer[N_OUT])


@inlined
def forward_rows(net, x, m):
    """Run the m rows x of a tile through all layers, with the workspace's tape; the output."""
    tape, tile = room(net, layout.TAPE), net.plan[layout.TILE]
    forward_tile(net, x, m, tape, tile, 0)
    return last_y(net, tape, tile, 0)


@inlined
def transpose_weights(net, vector, need_dx, transposed):
    """Wᵀ of each layer that passes a gradient on, at the place of W in a vector of parameters."""
    for index in range(0 if need_dx else 1, net.plan[layout.N_LAYERS]):
        layer = layer_of(net, index)
        if needs_transpose(layer[N_IN], layer[N_OUT]):
            n_in, n_out, w = layer[N_IN], layer[N_OUT], layer[W_OFFSET]
            transpose(n_in, n_out, at(vector, w), n_out, at(transposed, w), n_in)


@linked(
    NOTHING, NET, reals, INTEGER, reals, INTEGER, INTEGER, reals, FLAG, FLAG, reals, FLAG,
    calls=PRODUCTS,
)  # fmt: skip
def backward_tile(net, x, m, tape, n, i, gradient, need_gradient, accumulate, dx, need_dx):
    """From dL/dY of the last layer for m rows, the gradient (added if `accumulate`) and dX.

    Of the workspace, DELTA holds dL/dY (m, n_out) and is overwritten, NEXT_DELTA is written, and
    TRANSPOSED holds what `transpose_weights` wrote.
    """
    transposed = room(net, layout.TRANSPOSED)
    d, next_d = room(net, layout.DELTA), room(net, layout.NEXT_DELTA)
    for index in range(net.plan[layout.N_LAYERS] - 1, -1, -1):
        layer = layer_of(net, index)
        n_in, ld, wt = layer[N_IN], layer[layout.LEADING], at(transposed, layer[W_OFFSET])
        ld_below = n_in if index == 0 else layer[layout.LEADING - layout.COLUMNS]
        _through_activation(layer, act_of(net, layer, index), m, tape, n, i, d)
        if need_gradient:
            below = x if index == 0 else _output_below(layer, tape, n, i)
            weight_gradient(m, affine_of(layer, gradient), below, ld_below, d, ld, accumulate)
        if index > 0:
            layer_input_gradient(m, affine_of(layer, net.params), d, ld, wt, next_d, ld_below)
            factors = layer[layout.FACTORS - layout.COLUMNS]
            if factors >= 0:
                times(m * n_in, next_d, next_d, at(tape, n * factors))
            d, next_d = next_d, d
        elif need_dx:
            layer_input_gradient(m, affine_of(layer, net.params), d, ld, wt, dx, n_in)


@inlined
def backward_rows(net, x, m, gradient, accumulate):
    """The gradient of the m rows of a tile that `forward_rows` left in the workspace's tape."""
    tape, tile = room(net, layout.TAPE), net.plan[layout.TILE]
    backward_tile(net, x, m, tape, tile, 0, gradient, True, accumulate, x, False)


# What those declare that call these functions.
FORWARD = (*PRODUCTS, forward_tile)
TILES = (*FORWARD, backward_tile)


@inlined
def _through_activation(layer, act, m, tape, n, i, d):
    """d, dL/dY of a layer for rows i to i + m of a tape, becomes dL/dZ."""
    n_out, ld = layer[N_OUT], layer[layout.LEADING]
    column = layer[Z_COLUMN] if layer[Z_COLUMN] >= 0 else layer[Y_COLUMN]
    multiply_by_derivative(act, span(m, n_out, ld), d, at(tape, n * column + i * ld))


@inlined
def _output_below(layer, tape, n, i):
    """The input of a layer that is not the first, from row i of a tape on."""
    factors = layer[layout.FACTORS - layout.COLUMNS]
    if factors >= 0:
        return at(tape, n * (factors + layer[N_IN]))
    y, ld = layer[Y_COLUMN - layout.COLUMNS], layer[layout.LEADING - layout.COLUMNS]
    return at(tape, n * y + i * ld)


@inlined
def fill(to, count, number):
    """Set `count` elements to a number."""
    for i in range(count):
        to[i] = number


@entry(
    NOTHING, PLAN, in_array(1), in_array(2), out_array(1), FLAG, out_array(2), out_array(1),
    calls=FORWARD,
)  # fmt: skip
def forward(plan, params, X, tape, all_rows, out, workspace):
    """Write the output to `out` (n, n_out), or if `all_rows` the tape of all rows to `tape`."""
    n, n_in = X.shape
    net, x = net_of(plan, params, workspace), pointer(X)
    tile, n_out = net.plan[layout.TILE], last_layer(net)[N_OUT]
    for i in range(0, n, tile):
        m, xi = min(tile, n - i), at(x, i * n_in)
        if all_rows:
            forward_tile(net, xi, m, pointer(tape), n, i)
        else:
            copy(at(pointer(out), i * n_out), forward_rows(net, xi, m), m * n_out)
