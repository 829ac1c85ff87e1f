"""The losses: functions compiled from the vector formulas, softmax and ranking.

Each kind becomes one function over a tile of rows, compiled when an objective first has it.
maths/formulas/losses.py has the formulas of single elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ...maths import losses as kinds
from ...maths.formulas import elementary, losses as formulas
from ...maths.user_functions import PairFunctions
from .. import user_code
from . import vectors
from .compiling import (
    FLAG,
    INTEGER,
    INTEGERS,
    NUMBER,
    NUMBERS,
    Struct,
    family,
    in_array,
    inlined,
    reals,
)
from .intrinsics import element_of, emits, same
from .product import transpose
from .vectors import Lanes, Vector, as_real, at, elementwise, pointer

ELEMENTWISE = {getattr(kinds, name.upper()): row for name, row in formulas.ELEMENTWISE.items()}
GAUSSIAN = {getattr(kinds, name.upper()): row for name, row in formulas.GAUSSIAN.items()}
_ELEMENTWISE = tuple(ELEMENTWISE)

# What a loss's function computes to d: the factor times the derivative, or times the product of
# the Hessian with u.
FIRST, SECOND = 1, 2


def _first_formula(kind: int) -> Callable:
    formula = ELEMENTWISE[kind].value_and_slope

    def first(d, y, t, factor, c):
        value, slope = formula(y, t, c)
        return slope * factor, value

    return first


def _weighted_formula(kind: int) -> Callable:
    formula = ELEMENTWISE[kind].value_and_slope

    def weighted(d, y, t, w, factor, c):
        value, slope = formula(y, t, c)
        return slope * (factor * w), value * w

    return weighted


def _second_formula(kind: int) -> Callable:
    formula = ELEMENTWISE[kind].second
    return lambda d, y, t, u, factor, c: (formula(y, t, u, c) * factor,)


_first = elementwise(_first_formula, 3, 1, total=True, by_kind=True)
_first_weighted = elementwise(_weighted_formula, 4, 1, total=True, by_kind=True)
_second = elementwise(_second_formula, 4, 1, by_kind=True)

_sum = elementwise(lambda x: (x,), 1, 0, total=True)
_times = elementwise(lambda x, u: (x * u,), 2, 1)


def _elementwise(kind):
    def loss(order, rows, u, factor, constant, user, d, scratch):
        m, y, t = rows.m, rows.y, rows.t
        f, c = as_real(d, factor), as_real(d, constant)
        if rows.weighted:
            return _first_weighted(kind, m, d, y, t, rows.weights, f, c)
        if order == FIRST:
            return _first(kind, m * rows.n_out, d, y, t, f, c)
        _second(kind, m * rows.n_out, d, y, t, u, f, c)
        return 0.0

    return loss


def _user(kind):
    def loss(order, rows, u, factor, constant, user, d, scratch):
        n, nothing = rows.m * rows.n_out, 0  # instead of the weights, which are in the factor
        total = vectors.call_c_for_number(
            user, order, n, rows.y, rows.t, nothing, as_real(d, factor), d
        )
        if order == SECOND:
            _times(n, d, u)
        return total

    return loss


# Cross-entropy of softmax(y), log Σ e^(y - max) + max - y_label or Σ t (log Σ + max - y). Rows are
# often shorter than a vector, so lanes are rows here: they are transposed, unless they are already.

_MOST_LANES = vectors.VECTOR_BYTES // 4


@emits(
    NUMBER, same, INTEGER, INTEGER, same, same, INTEGER, same, same, element_of(3),
    prefer_literal=True,
)  # fmt: skip
def _softmax_of_lanes(code, kind, rows, n, y, d, stride, t, weights, factor):
    """Σ w ℓ of as many rows as a vector has lanes, or fewer; d becomes factor·w·dℓ/dy.

    Units of y and d are `stride` apart.
    """
    builder, of_labels = code.builder, code.types[0].literal_value == kinds.SOFTMAX_CE_LABELS
    lanes = Lanes(builder, code.types[3].dtype)
    first, second, zero = ir.IntType(64)(0), ir.IntType(64)(1), lanes.constant(0)

    def unit(start: ir.Value, j: ir.Value, apart: ir.Value = stride) -> ir.Value:
        return builder.gep(start, [builder.mul(apart, j)])

    def in_class(j: ir.Value, yes: Vector) -> Vector:
        """Something where the row's target is class j, times its share of it."""
        if of_labels:
            number = lanes.splat(builder.sitofp(j, lanes.type.element))
            return yes.where(number.equals(lanes.load(t)), 0.0)
        return yes * lanes.load(unit(t, j, ir.IntType(64)(lanes.width)))

    top = vectors.Sums(lanes, [lanes.load(y)])
    with vectors.loop(builder, second, n, 1) as j:
        (most,), yj = top.get(), lanes.load(unit(y, j))
        top.set([most.where(yj <= most, yj)])  # NaN passes
    (most,) = top.get()
    sums = vectors.Sums(lanes, [zero, zero, zero])
    with vectors.loop(builder, first, n, 1) as j:
        v = lanes.load(unit(y, j)) - most
        e = elementary.exp(v)
        lanes.store(e, unit(d, j))
        total, dot, share = sums.get()
        sums.set([total + e, dot + in_class(j, v), share + in_class(j, lanes.constant(1))])
    total, dot, share = sums.get()
    w = lanes.load(weights)
    scale = w * lanes.splat(factor)
    of_all = share * scale / total
    with vectors.loop(builder, first, n, 1) as j:
        place = unit(d, j)
        lanes.store(lanes.load(place) * of_all - in_class(j, scale), place)
    loss = w * (share * elementary.log(total) - dot)
    return vectors.widened(loss.where(lanes.first(rows), 0.0)).sum()


_exp = elementwise(lambda x: (elementary.exp(x),), 1, 1)
_dot = elementwise(lambda x, y: (x * y,), 2, 0, total=True)
_times_centred = elementwise(lambda x, u, mean, a: (x * (u - mean) * a,), 2, 1)


def _softmax(kind):
    of_labels = kind == kinds.SOFTMAX_CE_LABELS

    def loss(order, rows, u, factor, constant, user, d, scratch):
        m, n_out, ld, y, t = rows.m, rows.n_out, rows.ld, rows.y, rows.t
        labels, weights, weighted = rows.labels, rows.weights, rows.weighted
        if order == FIRST:
            width, total = vectors.vector_width(d), 0.0
            f, block, targets = as_real(d, factor), scratch, at(scratch, n_out * width)
            numbers, w = vectors.room_for(d, _MOST_LANES), vectors.room_for(d, _MOST_LANES)
            for i in range(0, m, width):
                count = min(width, m - i)
                for j in range(width):
                    w[j] = weights[i + j] if weighted and j < count else as_real(d, 1.0)
                if of_labels:
                    for j in range(count):
                        numbers[j] = as_real(d, labels[i + j])
                    targets = numbers
                else:
                    transpose(count, n_out, at(t, i * n_out), n_out, targets, width)
                yi, di, stride = at(y, i), at(d, i), ld
                if ld == 0:
                    yi = di = block
                    stride = width
                    transpose(count, n_out, at(y, i * n_out), n_out, block, width)
                total += _softmax_of_lanes(kind, count, n_out, yi, di, stride, targets, w, f)
                if ld == 0:
                    transpose(n_out, count, block, width, at(d, i * n_out), n_out)
            return total
        for i in range(m):
            yi, ti, di, ui = at(y, i * n_out), at(t, i * n_out), at(d, i * n_out), at(u, i * n_out)
            largest = yi[0]
            for j in range(1, n_out):
                if not yi[j] <= largest:
                    largest = yi[j]
            for j in range(n_out):
                di[j] = yi[j] - largest
            _exp(n_out, di)
            row_sum = _sum(n_out, di)
            share = 1.0 if of_labels else _sum(n_out, ti)
            mean = _dot(n_out, di, ui) / row_sum
            a = factor / row_sum * share
            _times_centred(n_out, di, ui, as_real(d, mean), as_real(d, a))
        return 0.0

    return loss


# Outputs 0 to k - 1 are means, outputs k to 2k - 1 logarithms of variances.


def _slopes_formula(kind: int) -> Callable:
    formula = GAUSSIAN[kind].value_and_slopes

    def slopes(dm, dv, m, v, t, factor):
        value, slope_m, slope_v = formula(m, v, t)
        return slope_m * factor, slope_v * factor, value

    return slopes


def _curves_formula(kind: int) -> Callable:
    formula = GAUSSIAN[kind].second

    def curves(dm, dv, m, v, t, um, uv, factor):
        curve_m, curve_v = formula(m, v, t, um, uv)
        return curve_m * factor, curve_v * factor

    return curves


_slopes = elementwise(_slopes_formula, 5, 2, total=True, by_kind=True)
_curves = elementwise(_curves_formula, 7, 2, by_kind=True)


def _gaussian(kind):
    has_targets = kind != kinds.GAUSSIAN_KL

    def loss(order, rows, u, factor, constant, user, d, scratch):
        m, n_out, y = rows.m, rows.n_out, rows.y
        k, f = n_out // 2, as_real(d, factor)
        total = 0.0
        for i in range(m):
            mean, dm, um = at(y, i * n_out), at(d, i * n_out), at(u, i * n_out)
            v, dv, uv = at(mean, k), at(dm, k), at(um, k)
            t = at(rows.t, i * k) if has_targets else mean  # which is not read then
            if order == FIRST:
                total += _slopes(kind, k, dm, dv, mean, v, t, f)
            else:
                _curves(kind, k, dm, dv, mean, v, t, um, uv, f)
        return total

    return loss


def _margin_ranking(kind):
    def loss(order, rows, u, factor, constant, user, d, scratch):
        # Rows 2i and 2i + 1 are a pair, better and worse.
        y, total = rows.y, 0.0
        for i in range(0, rows.m, 2):
            slack = constant - (np.float64(y[i]) - np.float64(y[i + 1]))
            down = 0.0
            if order == FIRST and not slack <= 0.0:
                total += slack
                down = -factor if slack > 0.0 else slack
            d[i] = as_real(d, down)
            d[i + 1] = as_real(d, -down)
        return total

    return loss


_OTHERS = {
    kinds.USER_LOSS: _user,
    kinds.SOFTMAX_CE: _softmax,
    kinds.SOFTMAX_CE_LABELS: _softmax,
    **dict.fromkeys(GAUSSIAN, _gaussian),
    kinds.MARGIN_RANKING: _margin_ranking,
}


class LossRows(NamedTuple):
    """Rows of which a loss is taken."""

    m: Any  # how many
    n_out: Any
    ld: Any  # 0 if y and d are (m, n_out); else they lie transposed, units so far apart
    y: Any
    t: Any  # (m, n_targets)
    labels: Any  # (m,)
    weights: Any  # (m,)
    weighted: Any  # whether the weights count


@family(
    NUMBER, INTEGER,
    Struct(LossRows, INTEGER, INTEGER, INTEGER, reals, reals, INTEGERS, reals, FLAG), reals, NUMBER,
    NUMBER, INTEGER, reals, reals, calls=(transpose,), kinds={*ELEMENTWISE, *_OTHERS},
)  # fmt: skip
def call_loss(kind):
    """The function of a loss; jitted code calls it by its address.

    Its arguments are order, rows, u, factor, constant, user, d, scratch; it returns Σ ℓ of the
    rows, if the order is FIRST. d becomes factor·dℓ/dy, or with SECOND factor·(d²ℓ/dy²)u. `user` is
    the address of a user's own functions; scratch has room for m·n_out numbers and for two rows of
    whole vectors per output. Only those that `_takes_weights` names get weights, and only softmax
    an `ld` other than 0.
    """
    return _elementwise(kind) if kind in ELEMENTWISE else _OTHERS[kind](kind)


# A problem is, for compiled code, a vector of integers and one of numbers: the loss's kind, the
# addresses of its function and of the user's own, the columns of the targets, whether there are
# weights; and the attributes of `Problem` of these names.
LOSS, LOSS_FUNCTION, USER_LOSS_FUNCTION, N_TARGETS, HAS_WEIGHTS = range(5)
SCALE, CONSTANT, L2, L1, GROUP = range(5)


class Data(NamedTuple):
    """The loss and the data of a problem: arrays, or in compiled code pointers to them."""

    terms: Any
    numbers: Any
    x: Any  # (n, n_in)
    targets: Any  # (n, n_targets), or empty if there are labels
    labels: Any  # int64 (n,), or empty
    weights: Any  # (n,), or empty


DATA = Struct(
    Data, in_array(1, INTEGER), in_array(1, NUMBER), in_array(2), in_array(2), in_array(1, INTEGER),
    in_array(1),
)  # fmt: skip
POINTERS = Struct(Data, INTEGERS, NUMBERS, reals, reals, INTEGERS, reals)


@inlined
def pointers(data):
    """The pointers to arrays."""
    return Data(
        pointer(data.terms), pointer(data.numbers), pointer(data.x), pointer(data.targets),
        pointer(data.labels), pointer(data.weights),
    )  # fmt: skip


@inlined
def rows_from(data, first, n_in):
    """The data from a row on, of n_in columns."""
    return Data(
        data.terms, data.numbers, at(data.x, first * n_in),
        at(data.targets, first * data.terms[N_TARGETS]), at(data.labels, first),
        at(data.weights, first),
    )  # fmt: skip


@inlined
def is_softmax(terms):
    """Whether the loss is cross-entropy of softmax."""
    return terms[LOSS] == kinds.SOFTMAX_CE or terms[LOSS] == kinds.SOFTMAX_CE_LABELS


@inlined
def _takes_weights(order, terms, n_out):
    """Whether a loss's function takes weights; others get one row at a time."""
    whole_rows = is_softmax(terms) or (n_out == 1 and terms[LOSS] in _ELEMENTWISE)
    return order == FIRST and whole_rows


@inlined
def loss_of_rows(order, data, m, n_out, ld, y, u, factor, d, scratch):
    """Σ_i w_i ℓ_i of the first m rows of the data; d becomes factor·w_i·dℓ_i/dy_i.

    Or what else the order says; y, d and `ld` are as in `LossRows`.
    """
    terms, t, labels, weights = data.terms, data.targets, data.labels, data.weights
    function, user = terms[LOSS_FUNCTION], terms[USER_LOSS_FUNCTION]
    constant, weighted = data.numbers[CONSTANT], terms[HAS_WEIGHTS] != 0
    if not weighted or _takes_weights(order, terms, n_out):
        rows = LossRows(m, n_out, ld, y, t, labels, weights, weighted)
        return call_loss(function, order, rows, u, factor, constant, user, d, scratch)
    total = 0.0
    together = 2 if terms[LOSS] == kinds.MARGIN_RANKING else 1
    for i in range(0, m, together):
        w, k = np.float64(weights[i]), i * n_out
        rows = LossRows(
            together, n_out, 0, at(y, k), at(t, i * terms[N_TARGETS]), at(labels, i), weights, False
        )
        total += w * call_loss(
            function, order, rows, at(u, k), factor * w, constant, user, at(d, k), scratch
        )
    return total


def addresses(kind: int, functions: PairFunctions | None, dtype: np.dtype) -> tuple[int, int]:
    """Of a loss's function, and of the user's own functions or 0."""
    user = 0 if functions is None else user_code.address(functions, dtype)
    return call_loss.address(dtype, kind), user
