"""The matrix product of all three passes, by blocks of the result that stay in registers.

C = start + A·B where B and C have contiguous rows and A any strides, so that X·W, dZ·Wᵀ (over a
transposed copy of W) and Xᵀ·dZ are one function. A block of C is some rows high and some vectors
wide; for each step along the depth it takes as many vectors of B, and one number of A per row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compiling import FLAG, INTEGER, NOTHING, Linked, itself, reals
from .interpreted import intrinsic
from .vectors import HAS_MASKS, VECTOR_REGISTERS, Lanes, Vector, at, vector_width

_INT64 = ir.IntType(64)

# Rows x vectors of a block: its accumulators, a row of B and a number of A fill the registers.
_HIGH = 8 if VECTOR_REGISTERS == 32 else 4
_WIDE = 3
_LOW = _HIGH // 2  # of the blocks at the end


@dataclass
class _Matrix:
    """A matrix in code that is being built."""

    builder: ir.IRBuilder
    start: ir.Value
    row_stride: ir.Value

    def rows(self, height: int, existing: ir.Value) -> list[ir.Value]:
        """Pointers to `height` rows; the last existing one stands for those that do not.

        They are then computed more than once, to the same values.
        """
        builder, pointers = self.builder, [self.start]
        for i in range(1, height):
            exists = builder.icmp_signed("<", _INT64(i), existing)
            step = builder.select(exists, self.row_stride, _INT64(0))
            pointers.append(builder.gep(pointers[-1], [step]))
        return pointers

    def row(self, index: ir.Value) -> ir.Value:
        """The pointer to one row."""
        return self.builder.gep(self.start, [self.builder.mul(index, self.row_stride)])

    def below(self, index: ir.Value) -> _Matrix:
        """The matrix from this row on."""
        return replace(self, start=self.row(index))

    def hidden(self) -> _Matrix:
        """The same; see `_hidden`."""
        return replace(self, row_stride=_hidden(self.builder, self.row_stride))


def _hidden(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The same value, of which LLVM knows nothing.

    Else it computes what follows from the strides ahead of all loops, for blocks of every kind,
    which takes longer than a small product.
    """
    kind = ir.FunctionType(value.type, [value.type])
    return builder.call(ir.InlineAsm(kind, "", "=r,0", side_effect=True), [value])


@dataclass
class _Panel:
    """Some columns of a product in code that is being built; `product` tells the meaning."""

    columns: ir.Value
    depth: ir.Value
    A: _Matrix
    a_depth: ir.Value
    B: _Matrix
    S: _Matrix
    has_start: ir.Value
    C: _Matrix

    def below(self, i: ir.Value) -> _Panel:
        """The panel from this row on."""
        return replace(self, A=self.A.below(i), S=self.S.below(i), C=self.C.below(i))

    def hidden(self) -> _Panel:
        """The same; see `_hidden`."""
        matrices = {name: getattr(self, name).hidden() for name in "ABSC"}
        return replace(self, a_depth=_hidden(self.A.builder, self.a_depth), **matrices)


def _emit_block(
    lanes: Lanes, height: int, vectors: int, masked: bool, p: _Panel, existing: ir.Value
) -> None:
    """Code for the first rows of a panel."""
    builder = lanes.builder
    offsets = [_INT64(j * lanes.width) for j in range(vectors)]
    masks: list[ir.Value | None] = [None] * vectors
    if masked:
        masks[-1] = lanes.first(builder.sub(p.columns, offsets[-1]))

    def load_row(pointer: ir.Value) -> list[Vector]:
        places = zip(offsets, masks, strict=True)
        return [lanes.load(builder.gep(pointer, [offset]), mask) for offset, mask in places]

    # LLVM turns these variables into registers.
    zero = lanes.constant(0).value
    sums = [[cgutils.alloca_once(builder, lanes.type) for _ in offsets] for _ in range(height)]
    with builder.if_else(p.has_start) as (then, otherwise):
        with then:
            for line, pointer in zip(sums, p.S.rows(height, existing), strict=True):
                for place, vector in zip(line, load_row(pointer), strict=True):
                    builder.store(vector.value, place)
        with otherwise:
            for line in sums:
                for place in line:
                    builder.store(zero, place)

    a_rows = p.A.rows(height, existing)
    with cgutils.for_range(builder, p.depth, intp=_INT64) as loop:
        of_b = load_row(p.B.row(loop.index))
        step = builder.mul(loop.index, p.a_depth)
        for line, pointer in zip(sums, a_rows, strict=True):
            of_a = lanes.splat(builder.load(builder.gep(pointer, [step])))
            for place, vector in zip(line, of_b, strict=True):
                builder.store((Vector(lanes, builder.load(place)) + of_a * vector).value, place)

    for line, pointer in zip(sums, p.C.rows(height, existing), strict=True):
        for place, offset, mask in zip(line, offsets, masks, strict=True):
            vector = Vector(lanes, builder.load(place))
            lanes.store(vector, builder.gep(pointer, [offset]), mask)


def _emit_panel(lanes: Lanes, vectors: int, masked: bool, m: ir.Value, panel: _Panel) -> None:
    """Code for a panel of m rows: high blocks, and at the end low ones and single rows."""
    builder, panel = lanes.builder, panel.hidden()
    whole = builder.and_(m, _INT64(-_HIGH))
    with cgutils.for_range_slice(builder, _INT64(0), whole, _INT64(_HIGH), _INT64) as (i, _):
        _emit_block(lanes, _HIGH, vectors, masked, panel.below(i), _INT64(_HIGH))
    with cgutils.for_range_slice(builder, whole, m, _INT64(_LOW), _INT64) as (i, _):
        rest, left = panel.hidden().below(i), builder.sub(m, i)
        with builder.if_else(builder.icmp_signed("==", left, _INT64(1))) as (then, otherwise):
            with then:
                _emit_block(lanes, 1, vectors, masked, rest, _INT64(1))
            with otherwise:
                _emit_block(lanes, _LOW, vectors, masked, rest, left)


@intrinsic
def _panel(
    typingctx: Any,
    vectors: Any,  # 1 to _WIDE; 0 means a single column
    columns: Any,  # that many exist of the vectors' columns
    m: Any,
    depth: Any,
    a: Any,
    a_row: Any,
    a_depth: Any,
    b: Any,
    b_row: Any,
    start: Any,
    start_row: Any,
    has_start: Any,
    c: Any,
    c_row: Any,
) -> Any:
    """The first columns of `product`, which tells the arguments' meaning."""
    i8 = types.int64
    signature = types.void(i8, i8, i8, i8, a, i8, i8, b, i8, start, i8, types.boolean, c, i8)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        wanted, columns, m, depth, a, a_row, a_depth, b, b_row, start, start_row, *rest = args
        has_start, c, c_row = rest
        A, B = _Matrix(builder, a, a_row), _Matrix(builder, b, b_row)
        S, C = _Matrix(builder, start, start_row), _Matrix(builder, c, c_row)
        panel = _Panel(columns, depth, A, a_depth, B, S, has_start, C)
        for vectors in range(0 if not HAS_MASKS else 1, _WIDE + 1):
            with builder.if_then(builder.icmp_signed("==", wanted, _INT64(vectors))):
                lanes = Lanes(builder, signature.args[4].dtype, None if vectors else 1)
                masked = HAS_MASKS and vectors > 0
                _emit_panel(lanes, max(vectors, 1), masked, m, panel)
        return context.get_dummy_value()

    return signature, codegen


def _make_product(fingerprint):
    def product(m, n, depth, a, a_row, a_depth, b, b_row, start, start_row, has_start, c, c_row):
        """C (m, n) = start + A (m, depth) · B (depth, n).

        Rows of A are `a_row` apart and its columns `a_depth`; `b_row`, `start_row` and `c_row` are
        the distances of rows; `start` may be C, or a vector if `start_row` is 0. Without
        `has_start` the sums begin at zero.
        """
        _ = fingerprint  # see compiling.source_fingerprint
        width = vector_width(c)
        vectors = (n + width - 1) // width if HAS_MASKS else n // width
        j = 0
        while j < n:
            wide = 2 if vectors == 4 else min(vectors, _WIDE)  # 4 vectors are 2 + 2, not 3 + 1
            vectors -= wide
            columns = min(max(wide * width, 1), n - j)
            _panel(
                wide, columns, m, depth, a, a_row, a_depth, at(b, j), b_row,
                at(start, j), start_row, has_start, at(c, j), c_row,
            )  # fmt: skip
            j += columns

    return product


_linked_product = Linked(
    _make_product, NOTHING,
    INTEGER, INTEGER, INTEGER, reals, INTEGER, INTEGER, reals, INTEGER, reals, INTEGER, FLAG, reals,
    INTEGER,
)  # fmt: skip
product = _linked_product.call


@intrinsic
def _dots(
    typingctx: Any, rows: Any, depth: Any, a: Any, a_row: Any, b: Any, start: Any, c: Any
) -> Any:
    """c[i] = start + A[i] · b for up to _LOW rows of A, which are contiguous."""
    i8 = types.int64
    signature = types.void(i8, i8, a, i8, b, a.dtype, c)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        rows, depth, a, a_row, b, start, c = args
        real = signature.args[2].dtype
        lanes = Lanes(builder, real)
        a_rows = _Matrix(builder, a, a_row).rows(_LOW, rows)
        rest = builder.srem(depth, _INT64(lanes.width))
        whole = builder.sub(depth, rest)

        def add(sums: list, lanes: Lanes, k: ir.Value, mask: ir.Value | None) -> None:
            of_b = lanes.load(builder.gep(b, [k]), mask)
            for place, pointer in zip(sums, a_rows, strict=True):
                of_a = lanes.load(builder.gep(pointer, [k]), mask)
                total = Vector(lanes, builder.load(place)) + of_a * of_b
                builder.store(total.value, place)

        def zeros(lanes: Lanes) -> list:
            places = [cgutils.alloca_once(builder, lanes.type) for _ in a_rows]
            for place in places:
                builder.store(lanes.constant(0).value, place)
            return places

        sums = zeros(lanes)
        step = _INT64(lanes.width)
        with cgutils.for_range_slice(builder, _INT64(0), whole, step, _INT64) as (k, _):
            add(sums, lanes, k, None)
        if HAS_MASKS:
            with builder.if_then(builder.icmp_signed(">", rest, _INT64(0))):
                add(sums, lanes, whole, lanes.first(rest))
            totals = [Vector(lanes, builder.load(place)).sum() for place in sums]
        else:
            one = Lanes(builder, real, 1)
            singles = zeros(one)
            with cgutils.for_range_slice(builder, whole, depth, _INT64(1), _INT64) as (k, _):
                add(singles, one, k, None)
            totals = [
                builder.fadd(
                    Vector(lanes, builder.load(place)).sum(), Vector(one, builder.load(tail)).sum()
                )
                for place, tail in zip(sums, singles, strict=True)
            ]
        places = _Matrix(builder, c, _INT64(1)).rows(_LOW, rows)
        for total, place in zip(totals, places, strict=True):
            builder.store(builder.fadd(start, total), place)
        return context.get_dummy_value()

    return signature, codegen


def _make_dots(fingerprint):
    def dots(m, depth, a, a_row, b, start, c):
        """c (m,) = start + A (m, depth) · b (depth,): the product for one output."""
        _ = fingerprint  # see compiling.source_fingerprint
        for i in range(0, m, _LOW):
            _dots(min(m - i, _LOW), depth, at(a, i * a_row), a_row, b, start, at(c, i))

    return dots


_linked_dots = Linked(
    _make_dots, NOTHING,
    INTEGER, INTEGER, reals, INTEGER, reals, itself, reals,
)  # fmt: skip
dots = _linked_dots.call


def _transpose_width(lanes: Lanes) -> int:
    return min(lanes.width, 8)  # wider ones are not faster


@intrinsic
def _square_width(typingctx: Any, start: Any) -> Any:
    """The side of the squares that `_transpose_square` takes."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _INT64(_transpose_width(Lanes(builder, signature.args[0].dtype)))

    return types.int64(start), codegen


@intrinsic
def _transpose_square(typingctx: Any, a: Any, a_row: Any, to: Any, to_row: Any) -> Any:
    """Write the transpose of a square of A: 2x2 blocks swap their corners, then 4x4, then 8x8."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        real = signature.args[0].dtype
        width = _transpose_width(Lanes(builder, real))
        lanes = Lanes(builder, real, width)
        a, a_row, to, to_row = args
        A, T = _Matrix(builder, a, a_row), _Matrix(builder, to, to_row)
        rows = [lanes.load(A.row(_INT64(i))).value for i in range(width)]
        indices = ir.VectorType(ir.IntType(32), width)
        size = 1
        while size < width:
            # Of each pair of rows, the upper takes the lower's left corner for its right one.
            upper = [k if not k & size else k - size + width for k in range(width)]
            lower = [k + size if not k & size else k + width for k in range(width)]
            for i in range(width):
                if not i & size:
                    pair = rows[i], rows[i + size]
                    rows[i] = builder.shuffle_vector(*pair, ir.Constant(indices, upper))
                    rows[i + size] = builder.shuffle_vector(*pair, ir.Constant(indices, lower))
            size *= 2
        for i, row in enumerate(rows):
            lanes.store(Vector(lanes, row), T.row(_INT64(i)))
        return context.get_dummy_value()

    return types.void(a, types.int64, to, types.int64), codegen


def _make_transpose(fingerprint):
    def transpose(m, n, a, to):
        """Write the transpose of A (m, n) to `to` (n, m)."""
        _ = fingerprint  # see compiling.source_fingerprint
        width = _square_width(a)
        for i in range(0, m, width):
            for j in range(0, n, width):
                if i + width <= m and j + width <= n:
                    _transpose_square(at(a, i * n + j), n, at(to, j * m + i), m)
                else:
                    for i1 in range(i, min(i + width, m)):
                        for j1 in range(j, min(j + width, n)):
                            to[j1 * m + i1] = a[i1 * n + j1]

    return transpose


_linked_transpose = Linked(
    _make_transpose, NOTHING,
    INTEGER, INTEGER, reals, reals,
)  # fmt: skip
transpose = _linked_transpose.call

# What an entry that calls these functions declares.
PRODUCTS = (_linked_product, _linked_dots, _linked_transpose)
