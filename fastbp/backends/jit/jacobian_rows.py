"""Derivatives row by row: of every output to the parameters, or of every row's loss.

Each row of data has one or more rows of deltas: one for each output in a Jacobian, one for the
loss. Unlike a gradient's they are not summed over rows: each makes a product a·dᵀ of its own. They
pass through the transposed layers together, so that narrow networks still fill the matrix product,
and stay, layer by layer, until the rows of J are written.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ...maths.activations import LINEAR
from ..contract import B_OFFSET, N_IN, N_OUT, W_OFFSET, Y_COLUMN, Z_COLUMN
from ..tiling import DELTA_ROWS
from . import layout, network
from .activations import BACKWARD
from .compiling import FLAG, INTEGER, NOTHING, callee, inlined, linked, reals
from .intrinsics import emits, same
from .layer import apply, layer_input_gradient, multiply_by_derivative, span
from .network import NET, act_of, affine_of, last_layer, layer_of, number_of_free, room
from .product import PRODUCTS
from .vectors import Lanes, at, copy, elementwise, loop, vector_width

_INT64 = ir.IntType(64)


@inlined
def samples_of_deltas(n_out):
    """How many rows of data have their deltas together."""
    return max(1, DELTA_ROWS // n_out)


@inlined
def deltas_of(net, layer):
    """Where a layer's deltas are."""
    return at(room(net, layout.DELTAS), max(DELTA_ROWS, last_layer(net)[N_OUT]) * layer[Y_COLUMN])


@inlined
def _scale(net, layer, act, m, each, d):
    """d *= act' of the layer, where `each` rows of d share the row of Y (or Z) of their sample."""
    n_out, ld, slopes = layer[N_OUT], layer[layout.LEADING], room(net, layout.SPARE_ROW)
    column = layer[Z_COLUMN] if layer[Z_COLUMN] >= 0 else layer[Y_COLUMN]
    z_or_y = at(room(net, layout.TAPE), net.plan[layout.TILE] * column)
    if each == 1:
        multiply_by_derivative(act, span(m, n_out, ld), d, z_or_y)
    elif act.kind != LINEAR:
        network.fill(slopes, m * ld, 1.0)
        apply(act, BACKWARD, span(m, n_out, ld), z_or_y, slopes)
        for i in range(m):
            for k in range(i * each, (i + 1) * each):
                network.times(n_out, at(d, k * ld), at(d, k * ld), at(slopes, i * ld))


@callee
def _pull(net, m, each, lowest):
    """From dL/dY of the last layer to dL/dZ of the layers down to the lowest one."""
    for index in range(net.plan[layout.N_LAYERS] - 1, lowest - 1, -1):
        layer = layer_of(net, index)
        d = deltas_of(net, layer)
        _scale(net, layer, act_of(net, layer, index), m, each, d)
        if index > lowest:
            below, wt = layer_of(net, index - 1), at(room(net, layout.TRANSPOSED), layer[W_OFFSET])
            layer_input_gradient(
                m * each, affine_of(layer, net.params), d, layer[layout.LEADING], wt,
                deltas_of(net, below), below[layout.LEADING],
            )  # fmt: skip


@emits(NOTHING, INTEGER, INTEGER, same, same, same)
def _multiples(code, n_in, n_out, a, d, row):
    """Rows a_i·d (n_out,) one after another, in whole vectors: some numbers more are written."""
    builder = code.builder
    lanes = Lanes(builder, code.types[2].dtype)

    def places(start: ir.Value, count: int) -> list[ir.Value]:
        return [builder.gep(start, [_INT64(v * lanes.width)]) for v in range(count)]

    def of_row(i: ir.Value) -> tuple[Any, ir.Value]:
        factor = lanes.splat(builder.load(builder.gep(a, [i])))
        return factor, builder.gep(row, [builder.mul(i, n_out)])

    most = 3
    for vectors in range(1, most + 1):
        fits = builder.icmp_signed("<=", n_out, _INT64(vectors * lanes.width))
        more = builder.icmp_signed(">", n_out, _INT64((vectors - 1) * lanes.width))
        with builder.if_then(builder.and_(fits, more)):
            parts = [lanes.load(place) for place in places(d, vectors)]
            with loop(builder, _INT64(0), n_in, 1) as i:
                factor, start = of_row(i)
                for vector, place in zip(parts, places(start, vectors), strict=True):
                    lanes.store(factor * vector, place)
    with builder.if_then(builder.icmp_signed(">", n_out, _INT64(most * lanes.width))):
        with loop(builder, _INT64(0), n_in, 1) as i:
            factor, start = of_row(i)
            with loop(builder, _INT64(0), n_out, lanes.width) as j:
                vector = lanes.load(builder.gep(d, [j]))
                lanes.store(factor * vector, builder.gep(start, [j]))


_scaled = elementwise(lambda to, x, factor: (x * factor,), 2, 1)


@inlined
def _all_columns(layer, a, d, row):
    """A layer's columns of a row of J: a_i·d_j, then d_j for the biases."""
    n_in, n_out, of_weights = layer[N_IN], layer[N_OUT], at(row, layer[W_OFFSET])
    if n_out == 1:
        _scaled(n_in, of_weights, a, d[0])
    else:
        _multiples(n_in, n_out, a, d, of_weights)
    if layer[B_OFFSET] >= 0:
        copy(at(row, layer[B_OFFSET]), d, n_out)


@inlined
def _free_columns(net, layer, a, d, row):
    """Those of its free parameters."""
    places, weights = at(net.plan, layer[layout.PLACES]), layer[layout.FREE_WEIGHTS]
    for k in range(weights):
        row[k] = a[places[2 * k]] * d[places[2 * k + 1]]
    for k in range(weights, weights + layer[layout.FREE_BIASES]):
        row[k] = d[places[2 * k + 1]]


@callee
def _fill(net, x, sample, k, free_only, row):
    """A row of J; up to a vector more is written behind its end."""
    a = at(x, sample * layer_of(net, 0)[N_IN])
    for index in range(net.plan[layout.N_LAYERS]):
        layer = layer_of(net, index)
        ld = layer[layout.LEADING]
        d = at(deltas_of(net, layer), k * ld)
        if free_only and layer[layout.PLACES] >= 0:
            _free_columns(net, layer, a, d, at(row, layer[layout.FREE_BEFORE]))
        else:
            _all_columns(layer, a, d, row)
        a = at(room(net, layout.TAPE), net.plan[layout.TILE] * layer[Y_COLUMN] + sample * ld)


@inlined
def _lowest(net, free_only):
    """The first layer that has columns."""
    index = 0
    while free_only and index < net.plan[layout.N_LAYERS] - 1:
        layer = layer_of(net, index)
        if layer[layout.FREE_WEIGHTS] + layer[layout.FREE_BIASES] > 0:
            break
        index += 1
    return index


@linked(NOTHING, NET, reals, INTEGER, INTEGER, FLAG, reals, INTEGER, calls=PRODUCTS)
def rows_of_jacobian(net, x, m, each, free_only, J, stride):
    """From `each` rows of dL/dY for each of m samples x, rows of J, which are `stride` apart.

    dL/dY stands in `deltas_of` the last layer, and the workspace holds the samples' tape and Wᵀ.
    Its SPARE_ROW has room for a row and a vector, and for m rows of the widest layer.
    """
    columns = number_of_free(net) if free_only else network.number_of_params(net)
    lowest, rows, spare = _lowest(net, free_only), m * each, room(net, layout.SPARE_ROW)
    _pull(net, m, each, lowest)
    for k in range(rows):
        row = at(J, k * stride)
        # What is written behind a row the next one overwrites; after the last there is no room.
        if (rows - 1 - k) * stride >= vector_width(J):
            _fill(net, x, k // each, k, free_only, row)
        else:
            _fill(net, x, k // each, k, free_only, spare)
            copy(row, spare, columns)


# What an entry that calls this declares.
ROWS = (*PRODUCTS, rows_of_jacobian)


@inlined
def set_unit_rows(m, n, d):
    """For each of m samples n rows of d (m·n, n), which pick one output each."""
    network.fill(d, m * n * n, 0.0)
    for i in range(m * n):
        d[i * n + i % n] = 1.0
