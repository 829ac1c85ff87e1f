"""Narrow networks, whose layers do not fill vectors: here the lanes of a vector are rows.

A tile's X, Y, Z and deltas lie transposed: all rows' values of a unit are side by side, `ld` apart
from the next unit's, in whole vectors. Products are then sums of vectors times single weights,
which need neither Wᵀ nor masks, and activations run over full vectors. What an entry of the
gradient sums over rows stays apart by lanes until all rows are through; then the lanes are added.

Lanes after the last row hold harmless numbers; only products over rows have to leave them out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from ...maths.activations import LINEAR, RELU
from ..contract import ACTIVATION, B_OFFSET, N_IN, N_OUT, W_OFFSET, Y_COLUMN, Z_COLUMN
from ..tiling import LANE_MAJOR_SHORT_BYTES
from . import layout
from .compiling import FLAG, INTEGER, INTEGERS, NOTHING, NUMBER, callee, family, inlined, reals
from .intrinsics import emits, same
from .layer import apply, multiply_by_derivative
from .losses import FIRST, POINTERS, is_softmax, loss_of_rows
from .network import NET, act_of, last_layer, layer_of, number_of_params, room
from .numba_internals import cgutils
from .product import RECTIFIED, least_of
from .vectors import VECTOR_BYTES, Lanes, Sums, Vector, as_real, at, loop, room_for, vector_width

_INT64 = ir.IntType(64)
_UNITS = 4  # that share the loads of a product

_SHORT = min(VECTOR_BYTES, LANE_MAJOR_SHORT_BYTES)


def _lanes(builder: ir.IRBuilder, real: types.Float, size: Any) -> Lanes:
    return Lanes(builder, real, size.literal_value * 8 // real.bitwidth)


def _apart(builder: ir.IRBuilder, start: ir.Value, stride: ir.Value, count: int) -> list[ir.Value]:
    """Pointers to so many places, a stride apart."""
    return [builder.gep(start, [builder.mul(stride, _INT64(u))]) for u in range(count)]


def _for_each_count(builder: ir.IRBuilder, units: ir.Value, emit: Any) -> None:
    """Code for each number of units up to _UNITS: `emit` gets the number."""
    for count in range(1, _UNITS + 1):
        with builder.if_then(builder.icmp_signed("==", units, _INT64(count))):
            emit(count)


# All that follows is for vectors of some size, in bytes, which is known where it is compiled.


@emits(
    NOTHING, same, INTEGER, INTEGER, INTEGER, INTEGER, same, INTEGER, INTEGER, same, FLAG, same,
    INTEGER, same, prefer_literal=True,
)  # fmt: skip
def _combine(
    code, size, units, rows, ld, depth, w, w_unit, w_depth, bias, has_bias, x, finish, out
):
    """out_u = Σ_k w[u·w_unit + k·w_depth]·x_k, plus bias_u if there is one, finished."""
    builder = code.builder
    lanes = _lanes(builder, code.types[5].dtype, code.types[0])
    element = lanes.type.element
    least = lanes.splat(least_of(builder, finish, element))

    def emit(count: int) -> None:
        weights = _apart(builder, w, w_unit, count)
        targets = _apart(builder, out, ld, count)
        biases = [cgutils.alloca_once_value(builder, element(0.0)) for _ in weights]
        with builder.if_then(has_bias):
            for u, place in enumerate(biases):
                builder.store(builder.load(builder.gep(bias, [_INT64(u)])), place)
        starts = [lanes.splat(builder.load(place)) for place in biases]
        with loop(builder, _INT64(0), rows, lanes.width) as r:
            sums, column = Sums(lanes, starts), builder.gep(x, [r])
            with loop(builder, _INT64(0), depth, 1) as k:
                vector = lanes.load(builder.gep(column, [builder.mul(k, ld)]))
                at_k = [builder.mul(k, w_depth)]
                factors = [lanes.splat(builder.load(builder.gep(p, at_k))) for p in weights]
                sums.set([s + f * vector for s, f in zip(sums.get(), factors, strict=True)])
            for total, target in zip(sums.get(), targets, strict=True):
                lanes.store(total.at_least(least), builder.gep(target, [r]))

    _for_each_count(builder, units, emit)


@emits(
    NOTHING, same, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER, same, same, FLAG, same, same, FLAG,
    prefer_literal=True,
)  # fmt: skip
def _multiply(
    code, size, units, rows, ld, n_in, n_out, x, d, accumulate, weights, biases, has_bias
):
    """By lanes, for some units u: Σ_rows x_i·d_u for all inputs i, and Σ_rows d_u; added if so."""
    builder = code.builder
    lanes = _lanes(builder, code.types[6].dtype, code.types[0])
    width = lanes.width
    tail = builder.and_(builder.sub(rows, _INT64(1)), _INT64(-width))
    exists = lanes.first(builder.sub(rows, tail))

    def start(place: ir.Value) -> Vector:
        """What is added to."""
        value = cgutils.alloca_once_value(builder, lanes.constant(0).value)
        with builder.if_then(accumulate):
            builder.store(lanes.load(place).value, value)
        return Vector(lanes, builder.load(value))

    def emit(count: int) -> None:
        deltas = _apart(builder, d, ld, count)
        last = [lanes.load(builder.gep(p, [tail])).where(exists, 0.0) for p in deltas]
        with loop(builder, _INT64(0), n_in, 1) as i:
            column = builder.gep(x, [builder.mul(i, ld)])
            first = builder.mul(builder.mul(i, n_out), _INT64(width))
            places = _apart(builder, builder.gep(weights, [first]), _INT64(width), count)
            vector = lanes.load(builder.gep(column, [tail])).where(exists, 0.0)
            pairs = zip(places, last, strict=True)
            sums = Sums(lanes, [start(place) + vector * dz for place, dz in pairs])
            with loop(builder, _INT64(0), tail, width) as r:
                vector = lanes.load(builder.gep(column, [r]))
                of_d = [lanes.load(builder.gep(p, [r])) for p in deltas]
                sums.set([s + vector * dz for s, dz in zip(sums.get(), of_d, strict=True)])
            for total, place in zip(sums.get(), places, strict=True):
                lanes.store(total, place)
        with builder.if_then(has_bias):
            places = _apart(builder, biases, _INT64(width), count)
            pairs = zip(places, last, strict=True)
            sums = Sums(lanes, [start(place) + dz for place, dz in pairs])
            with loop(builder, _INT64(0), tail, width) as r:
                of_d = [lanes.load(builder.gep(p, [r])) for p in deltas]
                sums.set([s + dz for s, dz in zip(sums.get(), of_d, strict=True)])
            for total, place in zip(sums.get(), places, strict=True):
                lanes.store(total, place)

    _for_each_count(builder, units, emit)


@emits(NOTHING, same, same, same, prefer_literal=True)
def _add_lanes(code, size, vectors, sums):
    """sums[p] = Σ of vector p, for as many as a vector has lanes.

    Interleaving row k with row k + n/2 is a step of a transpose; adding both results halves the
    rows.
    """
    builder = code.builder
    lanes = _lanes(builder, code.types[1].dtype, code.types[0])
    width = lanes.width
    rows = [lanes.load(builder.gep(vectors, [_INT64(k * width)])).value for k in range(width)]
    indices = ir.VectorType(ir.IntType(32), width)
    low = [k // 2 + (k % 2) * width for k in range(width)]
    high = [k + width // 2 for k in low]
    while len(rows) > 1:
        half = len(rows) // 2
        rows = [
            builder.fadd(
                builder.shuffle_vector(a, b, ir.Constant(indices, low)),
                builder.shuffle_vector(a, b, ir.Constant(indices, high)),
            )
            for a, b in zip(rows[:half], rows[half:], strict=True)
        ]
    lanes.store(Vector(lanes, rows[0]), sums)


@emits(INTEGER, same, same, prefer_literal=True)
def _width(code, size, like):
    """Rows in a vector of the type that a pointer points to."""
    return _INT64(_lanes(code.builder, code.types[1].dtype, code.types[0]).width)


@inlined
def _outputs(size, layer, params, rows, ld, x, out, finish):
    """Z = XW + b, finished."""
    n_in, n_out, w, b = layer[N_IN], layer[N_OUT], layer[W_OFFSET], layer[B_OFFSET]
    for u in range(0, n_out, _UNITS):
        _combine(
            size, min(_UNITS, n_out - u), rows, ld, n_in, at(params, w + u), 1, n_out,
            at(params, max(b, 0) + u), b >= 0, x, finish, at(out, u * ld),
        )  # fmt: skip


@inlined
def _input_gradient(size, layer, params, rows, ld, d, dx):
    """dX = dZ Wᵀ."""
    n_in, n_out, w = layer[N_IN], layer[N_OUT], layer[W_OFFSET]
    for u in range(0, n_in, _UNITS):
        _combine(
            size, min(_UNITS, n_in - u), rows, ld, n_out, at(params, w + u * n_out), n_out, 1,
            params, False, d, 0, at(dx, u * ld),
        )  # fmt: skip


@inlined
def _gradient(size, layer, rows, ld, x, d, lanes, accumulate):
    """dW = Xᵀ dZ and db = Σ_rows dZ by lanes."""
    n_in, n_out, w, b = layer[N_IN], layer[N_OUT], layer[W_OFFSET], layer[B_OFFSET]
    width = _width(size, d)
    for u in range(0, n_out, _UNITS):
        _multiply(
            size, min(_UNITS, n_out - u), rows, ld, n_in, n_out, x, at(d, u * ld), accumulate,
            at(lanes, (w + u) * width), at(lanes, (max(b, 0) + u) * width), b >= 0,
        )  # fmt: skip


@inlined
def _z_or_y(layer, ld, tape):
    """What the activation's derivative is taken from: Z or Y."""
    return at(tape, ld * (layer[Z_COLUMN] if layer[Z_COLUMN] >= 0 else layer[Y_COLUMN]))


@inlined
def _forward(size, net, x, rows, ld):
    """Run a tile's inputs through all layers; columns of the tape are units."""
    tape = room(net, layout.TAPE)
    for index in range(net.plan[layout.N_LAYERS]):
        layer = layer_of(net, index)
        kind, keeps_z = layer[ACTIVATION], layer[Z_COLUMN] >= 0
        rectified = kind == RELU and not keeps_z
        y, z = at(tape, ld * layer[Y_COLUMN]), _z_or_y(layer, ld, tape)
        _outputs(size, layer, net.params, rows, ld, x, z, RECTIFIED if rectified else 0)
        if keeps_z or (kind != LINEAR and not rectified):
            apply(act_of(net, layer, index), 0, layer[N_OUT] * ld, z, y)
        x = y


@inlined
def _backward(size, net, x, rows, ld, accumulate):
    """From DELTA, dL/dY of the last layer, to the gradient by lanes; NEXT_DELTA is written too."""
    tape, lanes = room(net, layout.TAPE), room(net, layout.LANE_MAJOR_SUMS)
    d, next_d = room(net, layout.DELTA), room(net, layout.NEXT_DELTA)
    for index in range(net.plan[layout.N_LAYERS] - 1, -1, -1):
        layer = layer_of(net, index)
        act, z_or_y = act_of(net, layer, index), _z_or_y(layer, ld, tape)
        multiply_by_derivative(act, layer[N_OUT] * ld, d, z_or_y)
        below = x if index == 0 else at(tape, ld * layer[Y_COLUMN - layout.COLUMNS])
        _gradient(size, layer, rows, ld, below, d, lanes, accumulate)
        if index > 0:
            _input_gradient(size, layer, net.params, rows, ld, d, next_d)
            d, next_d = next_d, d


@inlined
def _sum_lanes(size, count, lanes, sums):
    """The gradient from what it is by lanes."""
    width = _width(size, sums)
    whole = count - count % width
    for p in range(0, whole, width):
        _add_lanes(size, at(lanes, p * width), at(sums, p))
    if whole < count:
        last = room_for(sums, 16)
        _add_lanes(size, at(lanes, whole * width), last)
        for p in range(count - whole):
            sums[whole + p] = last[p]


@callee
def _across(m, n, rows, order, has_order, ld, to):
    """Write m rows (m, n), or those that the order names, transposed, with zeros after the last."""
    for j in range(n):
        for i in range(m, ld):
            to[j * ld + i] = as_real(to, 0.0)
    for i in range(m):
        row = at(rows, (order[i] if has_order else i) * n)
        for j in range(n):
            to[j * ld + i] = row[j]


@callee
def _along(m, n, units, ld, to):
    """Write the first m rows (m, n) of what lies across."""
    for j in range(n):
        for i in range(m):
            to[i * n + j] = units[j * ld + i]


@family(
    NUMBER, NET, POINTERS, INTEGERS, FLAG, INTEGER, FLAG, NUMBER, FLAG, FLAG, reals, FLAG,
    kinds={_SHORT, VECTOR_BYTES},
)  # fmt: skip
def call_lane_major(size):
    """The function of such networks for vectors of a size in bytes, called by its address."""

    def lane_major(
        net, data, order, has_order, m, resident, factor, need_gradient, accumulate, gradient,
        is_last,
    ):  # fmt: skip
        """Σ w ℓ of a tile of m rows; its gradient is added to what tiles before it gave.

        After the last one it stands in `gradient`. The data begin at the tile, but for inputs that
        the order names. If the inputs are `resident` they are transposed already; targets and
        losses are row by row.
        """
        last = last_layer(net)
        n_in, n_out, width = layer_of(net, 0)[N_IN], last[N_OUT], _width(size, net.params)
        ld = (m + width - 1) // width * width
        x_units = room(net, layout.LANE_MAJOR_X)
        d, next_d = room(net, layout.DELTA), room(net, layout.NEXT_DELTA)
        if not resident:
            _across(m, n_in, data.x, order, has_order, ld, x_units)
        _forward(size, net, x_units, m, ld)
        units = at(room(net, layout.TAPE), ld * last[Y_COLUMN])
        y, dy = units, d
        apart = ld if is_softmax(data.terms) and ld % vector_width(d) == 0 else 0
        through_rows = n_out > 1 and apart == 0
        if through_rows:
            y, dy = room(net, layout.LANE_MAJOR_Y), room(net, layout.LANE_MAJOR_D)
            _along(m, n_out, units, ld, y)
        total = loss_of_rows(FIRST, data, m, n_out, apart, y, y, factor, dy, next_d)
        if need_gradient:
            if through_rows:
                _across(m, n_out, dy, order, False, ld, d)
            _backward(size, net, x_units, m, ld, accumulate)
            if is_last:
                _sum_lanes(size, number_of_params(net), room(net, layout.LANE_MAJOR_SUMS), gradient)
        return total

    return lane_major


def addresses(dtype: np.dtype) -> tuple[int, int]:
    """Of the functions for short and for long vectors."""
    return call_lane_major.address(dtype, _SHORT), call_lane_major.address(dtype, VECTOR_BYTES)


def rows_of_short(dtype: np.dtype) -> int:
    """So many rows, and fewer, fit in a short vector."""
    return _SHORT // dtype.itemsize


def lanes_size(dtype: np.dtype, n_params: int) -> int:
    """How many numbers the lanes of a gradient are."""
    width = VECTOR_BYTES // dtype.itemsize
    return (n_params + width) * width
