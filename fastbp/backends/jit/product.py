"""The matrix product of all three passes, by tiles of the result that stay in registers.

C = start + A·B where B and C have contiguous rows and A any strides, so that X·W, dZ·Wᵀ (over a
transposed copy of W) and Xᵀ·dZ are one function. A tile of C is some rows high and some vectors
wide; for each step along the depth it takes as many vectors of B, and one number of A per row. Each
height up to the most has a function of its own, and rows and columns are split evenly among tiles,
so that no shape falls off an edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llvmlite import ir
from numba import types

from . import vectors
from .compiling import FLAG, INTEGER, NOTHING, callee, inlined, itself, linked, reals, symbol
from .intrinsics import element_of, emits, same
from .numba_internals import cgutils
from .vectors import HAS_MASKS, Lanes, Total, Vector, at, vector_width

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)

# Rows of the highest tile by its vectors: sums, a row of B and a number of A fill the registers.
_HEIGHTS = {1: 8, 2: 8, 3: 8, 4: 6} if vectors.VECTOR_REGISTERS == 32 else {1: 8, 2: 6, 3: 4, 4: 2}
_MOST_ROWS = max(_HEIGHTS.values())
_WIDE, _WIDEST = 3, 4  # vectors of a tile, the latter for few rows
# A vector of half the width, which some processors do in half the time; where there are no masks,
# a single number, for what whole vectors leave.
_HALF_VECTOR = 0

_DOTS = 4  # rows whose products with a vector are summed together

_DEEP = 8  # for less depth, tiles of the rest cost more than a vector that is partly empty

# What becomes of the sums; may be added up.
RECTIFIED, PADDED = 1, 2


@dataclass
class _Tile:
    """A tile in code that is being built.

    Attributes
    ----------
    lanes : Lanes
    rows, vectors : int
    """

    lanes: Lanes
    rows: int
    vectors: int

    def walk(self, start: ir.Value, stride: ir.Value) -> list[ir.Value]:
        """Pointers to the rows of a matrix, each from the one before."""
        pointers = [start]
        for _ in range(1, self.rows):
            pointers.append(self.lanes.builder.gep(pointers[-1], [stride]))
        return pointers

    def load(self, pointer: ir.Value, mask: ir.Value | None) -> list[Vector]:
        """A row; the mask is the last vector's."""
        return [self.lanes.load(*at_vector) for at_vector in self._vectors(pointer, mask)]

    def store(self, row: list[Vector], pointer: ir.Value, mask: ir.Value | None) -> None:
        """Write a row."""
        for vector, at_vector in zip(row, self._vectors(pointer, mask), strict=True):
            self.lanes.store(vector, *at_vector)

    def _vectors(
        self, pointer: ir.Value, mask: ir.Value | None
    ) -> Iterator[tuple[ir.Value, ir.Value | None]]:
        """Where the vectors of a row begin, and their masks."""
        for v in range(self.vectors):
            place = self.lanes.builder.gep(pointer, [_INT64(v * self.lanes.width)])
            yield place, mask if v == self.vectors - 1 else None


def _tile_type(element: ir.Type) -> ir.FunctionType:
    """(depth, A, a_row, a_depth, B, b_row, C, c_row, last, start, start_row, has_start, finish)

    `last` columns exist of the last vector; `product_of_tiles` says what the others mean.
    """
    p, i, bit = element.as_pointer(), _INT64, ir.IntType(1)
    return ir.FunctionType(ir.VoidType(), [i, p, i, i, p, i, p, i, i, p, i, bit, i])


def _tile_function(module: ir.Module, real: types.Float, vectors: int, rows: int) -> ir.Function:
    """The function for tiles of this size, which is in the module once.

    Tiles are functions of their own since LLVM would compute what follows from the strides ahead of
    the loop over tiles, for those of every size, which takes longer than a small product.
    """
    name = f"fastbp.tile.{real}.{vectors}.{rows}"
    if name in module.globals:
        return module.globals[name]
    element = ir.FloatType() if real.bitwidth == 32 else ir.DoubleType()
    function = ir.Function(module, _tile_type(element), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    width = None if vectors != _HALF_VECTOR else Lanes(builder, real).width // 2 if HAS_MASKS else 1
    _emit_tile(_Tile(Lanes(builder, real, width), rows, max(vectors, 1)), function)
    return function


def _emit_tile(tile: _Tile, function: ir.Function) -> None:
    """The code of a tile's function."""
    lanes = tile.lanes
    builder = lanes.builder
    depth, a, a_row, a_depth, b, b_row, c, c_row, last, start, start_row, has_start, finish = (
        function.args
    )
    mask = lanes.first(last) if HAS_MASKS else None
    zero = lanes.constant(0).value
    columns = range(tile.vectors)
    # LLVM turns these variables into registers.
    sums = [[cgutils.alloca_once(builder, lanes.type) for _ in columns] for _ in range(tile.rows)]
    with builder.if_else(has_start) as (then, otherwise):
        with then:
            for line, pointer in zip(sums, tile.walk(start, start_row), strict=True):
                for place, vector in zip(line, tile.load(pointer, mask), strict=True):
                    builder.store(vector.value, place)
        with otherwise:
            for line in sums:
                for place in line:
                    builder.store(zero, place)
    _emit_depth(tile, sums, mask, depth, (a, a_row, a_depth), (b, b_row))
    least = lanes.splat(least_of(builder, finish, lanes.type.element))
    results = [[Vector(lanes, builder.load(place)).at_least(least) for place in s] for s in sums]
    whole = builder.icmp_signed("!=", builder.and_(finish, _INT64(PADDED)), _INT64(0))
    targets = tile.walk(c, c_row)
    with builder.if_else(whole) as branches:
        for branch, of_last in zip(branches, (None, mask), strict=True):
            with branch:
                for row, pointer in zip(results, targets, strict=True):
                    tile.store(row, pointer, of_last)
    builder.ret_void()


def _hidden(builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
    """The same pointer, of which LLVM knows nothing.

    Else it reaches each row from the one before, and a step takes as many cycles as there are rows.
    """
    kind = ir.FunctionType(pointer.type, [pointer.type])
    return builder.call(ir.InlineAsm(kind, "", "=r,0"), [pointer])


def least_of(builder: ir.IRBuilder, finish: ir.Value, element: ir.Type) -> ir.Value:
    """What smaller results become; NaN stays, as comparisons with it are false."""
    rectified = builder.icmp_signed("!=", builder.and_(finish, _INT64(RECTIFIED)), _INT64(0))
    return builder.select(rectified, element(0.0), element(float("-inf")))


def _emit_depth(
    tile: _Tile,
    sums: list[list[ir.Value]],
    mask: ir.Value | None,
    depth: ir.Value,
    A: tuple[ir.Value, ir.Value, ir.Value],
    B: tuple[ir.Value, ir.Value],
) -> None:
    """The loop along the depth; A is given with its strides, B with its rows' distance."""
    lanes = tile.lanes
    builder = lanes.builder
    (a, a_row, a_depth), (b, b_row) = A, B
    # Rows of A are reached from pointers four rows apart, so that the addresses of eight rows need
    # five registers.
    multiples = [_INT64(0), a_row, builder.mul(a_row, _INT64(2)), builder.mul(a_row, _INT64(3))]
    starts = [builder.gep(a, [builder.mul(a_row, _INT64(i))]) for i in range(0, tile.rows, 4)]
    of_a = [cgutils.alloca_once_value(builder, start) for start in starts]
    of_b, left = cgutils.alloca_once_value(builder, b), cgutils.alloca_once_value(builder, depth)
    step, end = builder.append_basic_block("step"), builder.append_basic_block("end")
    builder.cbranch(builder.icmp_signed(">", depth, _INT64(0)), step, end)
    builder.position_at_end(step)
    here = builder.load(of_b)
    row = tile.load(here, mask)
    bases = [builder.load(place) for place in of_a]
    hidden = [_hidden(builder, base) for base in bases]
    for i, line in enumerate(sums):
        number = builder.load(builder.gep(hidden[i // 4], [multiples[i % 4]]))
        factor = lanes.splat(number)
        for place, vector in zip(line, row, strict=True):
            builder.store((Vector(lanes, builder.load(place)) + factor * vector).value, place)
    for place, base in zip(of_a, bases, strict=True):
        builder.store(builder.gep(base, [a_depth]), place)
    builder.store(builder.gep(here, [b_row]), of_b)
    remaining = builder.sub(builder.load(left), _INT64(1))
    builder.store(remaining, left)
    branch = builder.cbranch(builder.icmp_signed(">", remaining, _INT64(0)), step, end)
    vectors.do_not_unroll(builder.module, branch)
    builder.position_at_end(end)


def _tile_table(module: ir.Module, real: types.Float) -> ir.GlobalVariable:
    """The functions by vectors and rows, _MOST_ROWS for each number of vectors.

    They are made in the module of `product` and declared in others, which find them by the name.
    """
    name = symbol("tiles", real)
    if name in module.globals:
        return module.globals[name]
    element = ir.FloatType() if real.bitwidth == 32 else ir.DoubleType()
    functions = ir.ArrayType(_tile_type(element).as_pointer(), (_WIDEST + 1) * _MOST_ROWS)
    table = ir.GlobalVariable(module, functions, name)
    table.global_constant = True
    return table


def _define_tiles(module: ir.Module, real: types.Float) -> None:
    table = _tile_table(module, real)
    if table.initializer is None:
        functions = [
            _tile_function(module, real, vectors, min(rows, _HEIGHTS[max(vectors, 1)]))
            for vectors in range(_WIDEST + 1)
            for rows in range(1, _MOST_ROWS + 1)
        ]
        table.initializer = ir.Constant(table.type.pointee, functions)
        table.linkage = "weak_odr"  # no matter if it is loaded twice


@emits(NOTHING, same)
def _provide_tiles(code, like):
    """Make the tiles for reals as a pointer's in the module of who calls this."""
    _define_tiles(code.builder.module, code.types[0].dtype)


@emits(
    NOTHING, INTEGER, INTEGER, INTEGER, same, INTEGER, INTEGER, same, INTEGER, same, INTEGER,
    INTEGER, same, INTEGER, FLAG, INTEGER,
)  # fmt: skip
def _tile(
    code, vectors, rows, depth, a, a_row, a_depth, b, b_row, c, c_row, last, start, start_row,
    has_start, finish,
):  # fmt: skip
    """One tile; see `_tile_type`."""
    builder, table = code.builder, _tile_table(code.builder.module, code.types[3].dtype)
    A, B, C = (a, a_row, a_depth), (b, b_row), (c, c_row)
    index = builder.mul(vectors, _INT64(_MOST_ROWS))
    index = builder.add(index, builder.sub(rows, _INT64(1)))
    function = builder.load(builder.gep(table, [_INT64(0), index], inbounds=True))
    builder.call(function, [depth, *A, *B, *C, last, start, start_row, has_start, finish])


@emits(INTEGER, INTEGER)
def _height(code, vectors):
    """The rows of the highest tile of so many vectors."""
    builder = code.builder
    result = _INT64(_HEIGHTS[1])
    for width in range(2, _WIDEST + 1):
        is_it = builder.icmp_signed("==", vectors, _INT64(width))
        result = builder.select(is_it, _INT64(_HEIGHTS[width]), result)
    return result


@linked(
    NOTHING,
    INTEGER, INTEGER, INTEGER, reals, INTEGER, INTEGER, reals, INTEGER, reals, INTEGER, FLAG, reals,
    INTEGER, INTEGER, exports=("tiles",),
)  # fmt: skip
def product_of_tiles(
    m, n, depth, a, a_row, a_depth, b, b_row, start, start_row, has_start, c, c_row, finish
):
    """C (m, n) = start + A (m, depth) · B (depth, n), finished.

    Rows of A are `a_row` apart and its columns `a_depth`; `b_row`, `start_row` and `c_row` are
    the distances of rows; `start` may be C, or a vector if `start_row` is 0. Without
    `has_start` the sums begin at zero. RECTIFIED: the results are those of relu; PADDED: rows
    of C have room for whole vectors.
    """
    _provide_tiles(c)
    if m <= 0:
        return
    width = vector_width(c)
    vectors, rest = n // width, n % width
    if HAS_MASKS and (rest > width // 2 or depth < _DEEP):
        vectors, rest = vectors + (rest > 0), 0
    whole = n - rest
    j = 0
    while j < n:
        if j < whole:
            widest = _WIDEST if m <= _height(_WIDEST) else _WIDE
            wide = vectors if vectors <= widest else vectors // ((vectors + widest - 1) // widest)
            vectors -= wide
            columns = min(wide * width, whole - j)
            last = columns - (wide - 1) * width
        else:
            wide = _HALF_VECTOR
            columns = last = n - j if HAS_MASKS else 1
        highest = _height(wide)
        i, blocks = 0, 1 if m <= highest else (m + highest - 1) // highest
        while blocks > 0:
            rows = m - i if blocks == 1 else (m - i) // blocks
            blocks -= 1
            _tile(
                wide, rows, depth, at(a, i * a_row), a_row, a_depth, at(b, j), b_row,
                at(c, i * c_row + j), c_row, last, at(start, i * start_row + j), start_row,
                has_start, finish,
            )  # fmt: skip
            i += rows
        j += columns


@callee
def finished_product(
    m, n, depth, a, a_row, a_depth, b, b_row, start, start_row, has_start, c, c_row, finish
):
    """The same for any product: those of small networks are single tiles, without a call more."""
    width = vector_width(c)
    vectors = (n + width - 1) // width
    if HAS_MASKS and m >= 1 and 1 <= vectors <= _WIDEST and m <= _height(vectors):
        kind = _HALF_VECTOR if n <= width // 2 else vectors
        _tile(
            kind, m, depth, a, a_row, a_depth, b, b_row, c, c_row, n - (vectors - 1) * width,
            start, start_row, has_start, finish,
        )  # fmt: skip
    else:
        product_of_tiles(
            m, n, depth, a, a_row, a_depth, b, b_row, start, start_row, has_start, c, c_row, finish
        )


@inlined
def product(m, n, depth, a, a_row, a_depth, b, b_row, start, start_row, has_start, c, c_row):
    """`finished_product` with nothing done to the sums."""
    finished_product(
        m, n, depth, a, a_row, a_depth, b, b_row, start, start_row, has_start, c, c_row, 0
    )


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


@emits(NOTHING, INTEGER, INTEGER, same, INTEGER, same, element_of(2), same, INTEGER)
def _dots(code, rows, depth, a, a_row, b, start, c, finish):
    """c[i] = start + A[i] · b, finished, for up to _DOTS rows of A, which are contiguous."""
    builder, real = code.builder, code.types[2].dtype
    a_rows = _Matrix(builder, a, a_row).rows(_DOTS, rows)
    totals = [Total(builder, real, Lanes(builder, real).width) for _ in a_rows]

    def body(lanes: Lanes, k: ir.Value, mask: ir.Value | None) -> None:
        of_b = lanes.load(builder.gep(b, [k]), mask)
        for total, pointer in zip(totals, a_rows, strict=True):
            total.add(lanes.load(builder.gep(pointer, [k]), mask) * of_b)

    vectors.by_vectors(builder, real, depth, body)
    places = _Matrix(builder, c, _INT64(1)).rows(_DOTS, rows)
    least = least_of(builder, finish, start.type)
    for total, place in zip(totals, places, strict=True):
        result = builder.fadd(start, total.sum())
        below = builder.fcmp_ordered("<", result, least)
        builder.store(builder.select(below, least, result), place)


@linked(NOTHING, INTEGER, INTEGER, reals, INTEGER, reals, itself, reals, INTEGER)
def dots(m, depth, a, a_row, b, start, c, finish):
    """c (m,) = start + A (m, depth) · b (depth,), finished: the product for one output."""
    for i in range(0, m, _DOTS):
        _dots(min(m - i, _DOTS), depth, at(a, i * a_row), a_row, b, start, at(c, i), finish)


def _transpose_width(lanes: Lanes) -> int:
    return min(lanes.width, 8)  # wider ones are not faster


@emits(INTEGER, same)
def _square_width(code, start):
    """The side of the squares that `_transpose_square` takes."""
    return _INT64(_transpose_width(Lanes(code.builder, code.types[0].dtype)))


def _transposed(lanes: Lanes, rows: list[ir.Value]) -> list[ir.Value]:
    """A square's columns, given its rows: 2x2 blocks swap their corners, then 4x4, then 8x8."""
    builder, rows, width = lanes.builder, list(rows), lanes.width
    indices = ir.VectorType(_INT32, width)
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
    return rows


def _square_lanes(builder: ir.IRBuilder, real: types.Float) -> Lanes:
    return Lanes(builder, real, _transpose_width(Lanes(builder, real)))


@emits(NOTHING, same, INTEGER, same, INTEGER)
def _transpose_square(code, a, a_row, to, to_row):
    """Write the transpose of a square of A."""
    builder = code.builder
    lanes = _square_lanes(builder, code.types[0].dtype)
    A, T = _Matrix(builder, a, a_row), _Matrix(builder, to, to_row)
    numbers = [_INT64(i) for i in range(lanes.width)]
    rows = _transposed(lanes, [lanes.load(A.row(i)).value for i in numbers])
    for i, row in zip(numbers, rows, strict=True):
        lanes.store(Vector(lanes, row), T.row(i))


@emits(NOTHING, INTEGER, INTEGER, same, INTEGER, same, INTEGER)
def _transpose_edge(code, m, n, a, a_row, to, to_row):
    """The same for a square of which only m rows and n columns exist."""
    builder = code.builder
    lanes = _square_lanes(builder, code.types[2].dtype)
    existing = _Matrix(builder, a, a_row).rows(lanes.width, m)
    mask_of_row, mask_of_column = lanes.first(n), lanes.first(m)
    rows = _transposed(lanes, [lanes.load(row, mask_of_row).value for row in existing])
    T = _Matrix(builder, to, to_row)
    for j, row in enumerate(rows):
        with builder.if_then(builder.icmp_signed("<", _INT64(j), n)):
            lanes.store(Vector(lanes, row), T.row(_INT64(j)), mask_of_column)


@linked(NOTHING, INTEGER, INTEGER, reals, INTEGER, reals, INTEGER)
def transpose(m, n, a, a_row, to, to_row):
    """Write the transpose of A (m, n) to `to` (n, m), given the distances of their rows."""
    width = _square_width(a)
    for i in range(0, m, width):
        for j in range(0, n, width):
            rows, columns = min(width, m - i), min(width, n - j)
            block, target = at(a, i * a_row + j), at(to, j * to_row + i)
            if rows == width and columns == width:
                _transpose_square(block, a_row, target, to_row)
            elif HAS_MASKS:
                _transpose_edge(rows, columns, block, a_row, target, to_row)
            else:
                for p in range(rows):
                    for q in range(columns):
                        target[q * to_row + p] = block[p * a_row + q]


# What a function that calls these declares.
PRODUCTS = (product_of_tiles, dots, transpose)
