"""What stands for compiled code where Python's interpreter runs this backend's source.

With NUMBA_DISABLE_JIT=1 Numba compiles nothing, and its users' functions run as plain Python. So do
those of this backend: the same loops, formulas and bookkeeping, in NumPy's arithmetic instead of
LLVM's, and in arrays that nothing reads or writes beyond. It is slow, and for tests.

What the interpreter cannot run has a stand-in below: intrinsics, which emit LLVM's instructions,
and what makes compiled functions. It has the same name, without underscores before it, and the same
arguments::

    from .interpreted import intrinsic

    @intrinsic  # Numba's, or `at` of this file instead
    def at(typingctx, start, offset): ...

    @has_stand_in  # for what is no intrinsic
    def elementwise(formula, pointers, results, total=False): ...

So to add an intrinsic, write here what it does. The functions that run in both ways must not divide
Python's own numbers by zero, which raises, nor meet a float32 with one, which stays float32; what
they get from pointers and as arguments are NumPy's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numba import types
from numba.core import config
from numba.extending import intrinsic as _numbas_intrinsic
from numpy.ctypeslib import as_array

from ...maths.losses import SOFTMAX_CE_LABELS
from ...maths.user_functions import PairFunctions, ScalarFunctions

INTERPRETED = bool(config.DISABLE_JIT)

_Thing = TypeVar("_Thing")


def _stand_in(thing: Any = None, **_: Any) -> Any:
    return _stand_in if thing is None else globals()[thing.__name__.lstrip("_")]


def has_stand_in(thing: _Thing) -> _Thing:
    """A function or class; in the interpreter that of this name in this file."""
    return _stand_in(thing) if INTERPRETED else thing


intrinsic = _stand_in if INTERPRETED else _numbas_intrinsic


# Pointers.


class Pointer:
    """A place in a vector. Indices may be negative, but not lead out of the vector."""

    __slots__ = ("place", "vector")

    def __init__(self, vector: np.ndarray, place: int = 0):
        self.vector = vector
        self.place = place

    @property
    def dtype(self) -> np.dtype:
        """What it points to."""
        return self.vector.dtype

    @property
    def address(self) -> int:
        """Where it lies."""
        return int(self.vector.ctypes.data + self.place * self.dtype.itemsize)

    def _index(self, i: int) -> int:
        if self.place + i < 0:
            raise IndexError(f"element {i} lies {-self.place - i} before the vector")
        return self.place + i

    def __getitem__(self, i: int) -> Any:
        return self.vector[self._index(i)]

    def __setitem__(self, i: int, x: Any) -> None:
        self.vector[self._index(i)] = x

    def elements(self, count: int) -> np.ndarray:
        """A view of the elements from here on."""
        return self.matrix(1, count, 0)[0]

    def matrix(self, m: int, n: int, row: int, column: int = 1) -> np.ndarray:
        """A view (m, n) of the elements from here on, with these strides; NumPy sees to its end."""
        if m == 0 or n == 0:
            return np.empty((m, n), self.dtype)
        size = self.dtype.itemsize
        return np.ndarray(
            (m, n), self.dtype, self.vector, self._index(0) * size, (row * size, column * size)
        )


def pointer(array):
    return Pointer(array.reshape(-1))


def at(start, offset):
    return Pointer(start.vector, start.place + offset)


def aligned(start):
    return start  # the interpreter does not care


def copy(to, source, count):
    to.elements(count)[:] = source.elements(count)


def as_real(like, x):
    return like.dtype.type(x)


def room_for(like, count):
    return Pointer(np.empty(count, like.dtype))


def taken_as(like, start):
    rest = start.vector[start.place :].view(np.uint8)
    return Pointer(rest[: len(rest) - len(rest) % like.dtype.itemsize].view(like.dtype))


def one(like):
    return Pointer(np.ones(1, like.dtype))


def call_c(address, *arguments):
    _c_call(None, address, arguments)


def call_c_for_number(address, *arguments):
    return np.float64(_c_call(ctypes.c_double, address, arguments))


def _c_call(returns: Any, address: int, arguments: Sequence[Any]) -> Any:
    values = [_c_value(a) for a in arguments]
    return ctypes.CFUNCTYPE(returns, *map(type, values))(int(address))(*values)


def _c_value(x: Any) -> Any:
    if isinstance(x, Pointer):
        return ctypes.c_void_p(x.address)
    return _c_real(x.dtype)(x) if isinstance(x, np.floating) else ctypes.c_int64(int(x))


def _c_real(dtype: np.dtype) -> Any:
    return ctypes.c_float if dtype == np.float32 else ctypes.c_double


def floating_point_mode():
    return 0  # it stays as it is


def set_floating_point_mode(mode):
    pass


def flushing(mode):
    return mode


# Vectors. In a formula they are as long as the array that it is applied to.


class Lanes:
    """See `vectors.Lanes`."""

    def __init__(self, dtype: np.dtype, width: int):
        self.dtype = dtype
        self.real = types.float32 if dtype == np.float32 else types.float64
        self.name = f"F{self.real.bitwidth}"
        self.info = np.finfo(dtype)
        self.width = width

    def constant(self, x: float) -> Vector:
        return Vector(self, np.full(self.width, x, self.dtype))

    def from_bits(self, integers: np.ndarray) -> Vector:
        return Vector(self, integers.view(self.dtype))


class Vector:
    """See `vectors.Vector`; masks and integers are arrays."""

    __slots__ = ("lanes", "value")

    def __init__(self, lanes: Lanes, value: np.ndarray):
        self.lanes = lanes
        self.value = value

    def _operand(self, other: Vector | float) -> np.ndarray:
        return (other if isinstance(other, Vector) else self.lanes.constant(other)).value

    def _new(self, value: np.ndarray) -> Vector:
        return Vector(self.lanes, value)

    def __add__(self, other: Vector | float) -> Vector:
        return self._new(self.value + self._operand(other))

    def __sub__(self, other: Vector | float) -> Vector:
        return self._new(self.value - self._operand(other))

    def __mul__(self, other: Vector | float) -> Vector:
        return self._new(self.value * self._operand(other))

    def __truediv__(self, other: Vector | float) -> Vector:
        return self._new(self.value / self._operand(other))

    __radd__ = plus = __add__
    __rmul__ = times = __mul__
    minus = __sub__
    over = __truediv__

    def __rsub__(self, other: float) -> Vector:
        return self._new(self._operand(other) - self.value)

    def __rtruediv__(self, other: float) -> Vector:
        return self._new(self._operand(other) / self.value)

    def times_plus(self, factor: Vector, term: Vector) -> Vector:
        if self.lanes.dtype == np.float32:  # whose products are exact in float64
            wide = self.value.astype(np.float64) * factor.value + term.value
            return self._new(wide.astype(np.float32))
        (a, b), (c, d) = self._halves(), factor._halves()
        product = self.value * factor.value
        error = a * c - product + a * d + b * c + b * d
        return self._new(product + term.value + error)

    def _halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of half as many digits, whose products are exact; see `vectors`."""
        high = (self.bits() & -(1 << 27)).view(np.float64)
        return high, self.value - high

    def __neg__(self) -> Vector:
        return self._new(-self.value)

    def __lt__(self, other: Vector | float) -> np.ndarray:
        return self.value < self._operand(other)

    def __gt__(self, other: Vector | float) -> np.ndarray:
        return self.value > self._operand(other)

    def __le__(self, other: Vector | float) -> np.ndarray:
        return self.value <= self._operand(other)

    def equals(self, other: Vector | float) -> np.ndarray:
        return self.value == self._operand(other)

    def where(self, mask: np.ndarray, otherwise: Vector | float) -> Vector:
        return self._new(np.where(mask, self.value, self._operand(otherwise)))

    def at_least(self, least: Vector | float) -> Vector:
        return self._new(np.where(self < least, self._operand(least), self.value))

    def at_most(self, most: Vector | float) -> Vector:
        return self._new(np.where(self > most, self._operand(most), self.value))

    def sqrt(self) -> Vector:
        return self._new(np.sqrt(self.value))

    def __abs__(self) -> Vector:
        return self._new(abs(self.value))

    def with_sign_of(self, other: Vector) -> Vector:
        return self._new(np.copysign(self.value, other.value))

    def bits(self) -> np.ndarray:
        return self.value.view(f"i{self.lanes.dtype.itemsize}")

    def in_c_where(self, mask: np.ndarray, name: str, otherwise: Vector) -> Vector:
        found = getattr(np, name)(self.value.astype(np.float64))
        return self._new(found.astype(self.lanes.dtype)).where(mask, otherwise)


def elementwise(formula, pointers, results, total=False):
    return lambda n, *arguments: _apply(formula, n, arguments, pointers, results, total)


def elementwise_of(formula, pointers, results, total=False):
    return lambda kind, n, *arguments: _apply(formula(kind), n, arguments, pointers, results, total)


def _apply(
    formula: Callable[..., Any],
    n: int,
    arguments: tuple[Any, ...],
    pointers: int,
    results: int,
    total: bool,
) -> Any:
    starts, scalars = arguments[:pointers], arguments[pointers:]
    lanes = Lanes(starts[0].dtype, int(n))
    vectors = [Vector(lanes, p.elements(n).astype(lanes.dtype)) for p in starts]
    outcome = formula(*vectors, *map(lanes.constant, scalars))
    for vector, place in zip(outcome[:results], starts[:results], strict=True):
        place.elements(n)[:] = vector.value
    return outcome[-1].value.sum(dtype=np.float64) if total else None


# Matrix products.


def vector_width(start):
    return 4  # so that small matrices have whole vectors and remainders


def height(vectors):
    return 4  # so that there are several tiles


def tile(
    vectors, rows, depth, a, a_row, a_depth, b, b_row, c, c_row, last, start, start_row, has_start,
    finish,
):  # fmt: skip
    columns = max(vectors - 1, 0) * vector_width(c) + last
    sums = a.matrix(rows, depth, a_row, a_depth) @ b.matrix(depth, columns, b_row)
    if has_start:
        sums += start.matrix(rows, columns, start_row)
    c.matrix(rows, columns, c_row)[:] = _finished(sums, finish)


def provide_tiles(like):
    pass


def _finished(sums: np.ndarray, finish: int) -> np.ndarray:
    from .product import RECTIFIED

    return np.where(sums < 0, sums.dtype.type(0), sums) if finish & RECTIFIED else sums


def dots(rows, depth, a, a_row, b, start, c, finish):
    sums = start + a.matrix(rows, depth, a_row) @ b.elements(depth)
    c.elements(rows)[:] = _finished(sums, finish)


def square_width(start):
    return 4


def transpose_square(a, a_row, to, to_row):
    transpose_edge(4, 4, a, a_row, to, to_row)


def transpose_edge(m, n, a, a_row, to, to_row):
    to.matrix(n, m, to_row)[:] = a.matrix(m, n, a_row).T


def multiples(n_in, n_out, a, d, row):
    width = vector_width(d)
    count = -(-n_out // width) * width
    for i in range(n_in):
        at(row, i * n_out).elements(count)[:] = a[i] * d.elements(count)


# Slim networks.


def width(size, like):
    return size // like.dtype.itemsize


def combine(
    size, units, rows, ld, depth, w, w_unit, w_depth, bias, has_bias, x, finish, out
):  # fmt: skip
    sums = w.matrix(units, depth, w_unit, w_depth) @ x.matrix(depth, ld, ld)
    if has_bias:
        sums += bias.matrix(units, 1, 1)
    out.matrix(units, ld, ld)[:] = _finished(sums, finish)


def multiply(
    size, units, rows, ld, n_in, n_out, x, d, accumulate, weights, biases, has_bias
):  # fmt: skip
    lanes, deltas = width(size, d), d.matrix(units, rows, ld)

    def add(place: Pointer, terms: np.ndarray) -> None:
        padded = np.pad(terms, ((0, 0), (0, -rows % lanes)))
        sums, to = padded.reshape(units, -1, lanes).sum(1), place.matrix(units, lanes, lanes)
        to[:] = to + sums if accumulate else sums

    for i in range(n_in):
        add(at(weights, i * n_out * lanes), at(x, i * ld).elements(rows) * deltas)
    if has_bias:
        add(biases, deltas)


def add_lanes(size, vectors, sums):
    lanes = width(size, sums)
    sums.elements(lanes)[:] = vectors.matrix(lanes, lanes, lanes).sum(1)


def softmax_of_lanes(kind, rows, n, y, y_unit, t, weights, factor, d, d_unit):
    lanes = vector_width(y)
    classes, w = np.arange(n)[:, None], weights.elements(lanes)

    def of_class(x: np.ndarray) -> np.ndarray:
        if kind == SOFTMAX_CE_LABELS:
            return np.where(classes == t.elements(lanes), x, x.dtype.type(0))
        return x * t.matrix(n, lanes, lanes)

    below = y.matrix(n, lanes, y_unit)
    below = below - below.max(0)
    powers, share = np.exp(below), of_class(np.ones_like(below)).sum(0)
    total = powers.sum(0)
    slopes = powers * (share * w * factor / total) - of_class(np.ones_like(below) * w * factor)
    d.matrix(n, lanes, d_unit)[:] = slopes
    loss = w * (share * np.log(total) - of_class(below).sum(0))
    return loss[:rows].sum(dtype=np.float64)


# Functions.


def _typed(function: Callable, returns: Any, arguments: Sequence[Any]) -> Callable:
    """The function, whose numbers are taken in their declared types, as in compiled code."""
    numbers = [(i, t) for i, t in enumerate(arguments) if isinstance(t, types.Number)]

    def typed(*given):
        values = list(given)
        for i, declared in numbers:
            values[i] = declared(values[i])
        result = function(*values)
        return returns(result) if isinstance(returns, types.Number) else result

    return typed


class Entry:
    """See `compiling.Entry`: there is one version, for both dtypes."""

    def __init__(
        self, make: Callable, returns: Any, *arguments: Any, calls: Any = (), dtypes: str = ""
    ):
        self._typed = _typed(make(0), returns, arguments)

    def __getitem__(self, dtype: np.dtype) -> Callable[..., Any]:
        return self._run

    def _run(self, *arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            result = self._typed(*arguments)
        if isinstance(result, tuple):
            return tuple(x.item() if isinstance(x, np.generic) else x for x in result)
        return result.item() if isinstance(result, np.generic) else result


class Linked:
    """See `compiling.Linked`."""

    def __init__(
        self, make: Callable, returns: Any, *arguments: Any, calls: Any = (), exports: Any = ()
    ):
        self.call = _typed(make(0), returns, arguments)


class Family:
    """See `compiling.Family`: a function's address is its number."""

    def __init__(
        self,
        make: Callable[[int, int], Callable],
        returns: Any,
        *arguments: Any,
        calls: Any = (),
        kinds: Any,
    ):
        self._make = make
        self._types = returns, arguments

    def address(self, dtype: np.dtype, kind: int) -> int:
        return kind

    def call(self, address, *arguments):
        return _typed(self._make(0, int(address)), *self._types)(*arguments)


# Functions of the user's own, which C calls as well.


def compile_activation(given, dtype):
    from .activations import BACKWARD

    functions = ScalarFunctions(*given)

    def apply(order: int, n: int, *places: Any) -> None:
        z, out = (as_array(place, (n,)) for place in places)
        if order == BACKWARD:
            out *= functions.evaluate(1, z)
        else:
            out[:] = functions.evaluate(order, z)

    array = ctypes.POINTER(_c_real(dtype))
    return _Callback(apply, None, array, array)


def compile_loss(given, dtype):
    functions, real = PairFunctions(*given), _c_real(dtype)

    def apply(order: int, n: int, y: Any, t: Any, weights: Any, factor: float, d: Any) -> float:
        y, t, d = (as_array(place, (n,)) for place in (y, t, d))
        w = as_array(weights, (n,)).astype(np.float64) if weights else 1.0
        if order == 1:
            value, slope = functions.evaluate(y, t)
            d[:] = slope * w * factor
            return float((value * w).sum())
        d[:] = functions.second(y, t) * w * factor
        return 0.0

    array = ctypes.POINTER(real)
    return _Callback(apply, ctypes.c_double, array, array, array, real, array)


class _Callback:
    """A function in Python for callers in C; its first arguments are the order and n."""

    def __init__(self, function: Callable, returns: Any, *arguments: Any):
        kind = ctypes.CFUNCTYPE(returns, ctypes.c_int64, ctypes.c_int64, *arguments)
        self._kept = kind(function)
        self.address = ctypes.cast(self._kept, ctypes.c_void_p).value
