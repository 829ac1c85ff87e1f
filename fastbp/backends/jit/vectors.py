"""Vector code for Numba: pointers, vector values, and loops over arrays.

Numba compiles loops over scalars, and LLVM does not always make vector code of them: calls of libm
stay scalar, and so do the remainders of short loops. So the innermost loops are built here from
LLVM's vector instructions. `Vector` has operators, so that a formula over vectors reads as in
NumPy; `elementwise` turns such a formula into a function that jitted code calls on pointers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from ...maths.formulas import polynomials, vector as abstract
from .compiling import INTEGER, NOTHING, NUMBER
from .intrinsics import element_of, emits, like, same
from .numba_internals import cgutils

_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_CONTRACT = ("contract",)
# Numba flags what has no flag with "contract"; this one means nothing but in a division.
_ALONE = ("arcp",)


def _host_features() -> set[str]:
    """The instruction sets that Numba compiles for; its caches distinguish them."""
    if config.CPU_FEATURES is not None:  # NUMBA_CPU_FEATURES, or empty for NUMBA_CPU_NAME=generic
        listed = config.CPU_FEATURES.split(",")
        return {name[1:] for name in listed if name.startswith("+")}
    features = llvmlite.binding.get_host_cpu_features()
    return {name for name, present in features.items() if present}


_FEATURES = _host_features()
_X86_64 = llvmlite.binding.get_process_triple().startswith(("x86_64", "amd64"))
SSE = _X86_64 or "sse2" in _FEATURES  # which 64-bit processors have though no one lists it
VECTOR_BYTES = 64 if "avx512f" in _FEATURES else 32 if "avx" in _FEATURES else 16
# Elsewhere LLVM replaces a masked load by a branch per lane, and single elements are faster.
HAS_MASKS = "avx" in _FEATURES
_HAS_FMA = not {"fma", "avx512f", "neon"}.isdisjoint(_FEATURES)
VECTOR_REGISTERS = 16 if SSE and "avx512f" not in _FEATURES else 32


class Lanes:
    """A kind of vectors, and the place where code for them is being built.

    Attributes
    ----------
    builder : llvmlite.ir.IRBuilder
    real : numba type, float32 or float64
    width : int
        Elements of a vector.
    name : {"F32", "F64"}
        The suffix of the type's constants in `polynomials`.
    suffix : str
        That of LLVM's functions for these vectors.
    info : numpy.finfo
    """

    def __init__(self, builder: ir.IRBuilder, real: types.Float, width: int | None = None):
        self.builder = builder
        self.real = real
        self.name = f"F{real.bitwidth}"
        self.info = np.finfo(f"f{real.bitwidth // 8}")
        self.width = width or VECTOR_BYTES * 8 // real.bitwidth
        self.suffix = f"v{self.width}f{real.bitwidth}"
        element = ir.FloatType() if real.bitwidth == 32 else ir.DoubleType()
        self.type = ir.VectorType(element, self.width)
        self.integers = ir.VectorType(ir.IntType(real.bitwidth), self.width)

    def constant(self, x: float) -> Vector:
        """All elements equal to a Python number."""
        return Vector(self, self._all(self.type, float(x)))

    def integer(self, i: int) -> ir.Constant:
        """A vector of integers as wide as the reals, all equal."""
        return self._all(self.integers, i)

    def _all(self, kind: ir.Type, x: float) -> ir.Constant:
        return ir.Constant(kind, [x] * self.width)

    def splat(self, scalar: ir.Value) -> Vector:
        """All elements equal to a scalar value."""
        return Vector(self, self._spread(scalar))

    def first(self, count: ir.Value) -> ir.Value:
        """The mask of the first `count` elements."""
        order = ir.Constant(ir.VectorType(_INT32, self.width), list(range(self.width)))
        counts = self._spread(self.builder.trunc(count, _INT32))
        return self.builder.icmp_signed("<", order, counts)

    def _spread(self, scalar: ir.Value) -> ir.Value:
        """A vector whose elements all equal a scalar of any type."""
        undefined = ir.Constant(ir.VectorType(scalar.type, self.width), ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, ir.Constant(_INT32, 0))
        zeros = ir.Constant(ir.VectorType(_INT32, self.width), [0] * self.width)
        return self.builder.shuffle_vector(one, undefined, zeros)

    def any(self, mask: ir.Value) -> ir.Value:
        """Whether a mask selects an element."""
        bits = ir.IntType(self.width)
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(mask, bits), bits(0))

    def from_bits(self, integers: Integers) -> Vector:
        """The reals of these bits."""
        return Vector(self, self.builder.bitcast(integers.value, self.type))

    def load(self, pointer: ir.Value, mask: ir.Value | None = None) -> Vector:
        """The elements from `pointer` on; under a mask the others are 0."""
        p = self.builder.bitcast(pointer, self.type.as_pointer())
        if mask is None:
            return Vector(self, self.builder.load(p, align=self.real.bitwidth // 8))
        zero = ir.Constant(self.type, [0.0] * self.width)
        arguments = [p, ir.Constant(_INT32, self.real.bitwidth // 8), mask, zero]
        return Vector(self, self.call("llvm.masked.load", self.type, arguments, ".p0"))

    def store(self, vector: Vector, pointer: ir.Value, mask: ir.Value | None = None) -> None:
        """Write the elements (those under the mask) from `pointer` on."""
        p = self.builder.bitcast(pointer, self.type.as_pointer())
        if mask is None:
            self.builder.store(vector.value, p, align=self.real.bitwidth // 8)
            return
        arguments = [vector.value, p, ir.Constant(_INT32, self.real.bitwidth // 8), mask]
        self.call("llvm.masked.store", ir.VoidType(), arguments, ".p0")

    def call(self, name: str, returns: ir.Type, arguments: list, suffix: str = "") -> ir.Value:
        """A call of LLVM's function of this name for these vectors."""
        return _call(self.builder, f"{name}.{self.suffix}{suffix}", returns, arguments)


def _call(builder: ir.IRBuilder, name: str, returns: ir.Type, arguments: list) -> ir.Value:
    kind = ir.FunctionType(returns, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


class Scalars(Lanes):
    """Single numbers in the place of vectors, for code of which LLVM is to make vector code."""

    def __init__(self, builder: ir.IRBuilder, real: types.Float):
        super().__init__(builder, real, 1)
        self.type = self.type.element
        self.integers = self.integers.element
        self.suffix = f"f{real.bitwidth}"

    def _all(self, kind: ir.Type, x: float) -> ir.Constant:
        return ir.Constant(kind, x)


@dataclass(slots=True, eq=False)
class Vector(abstract.Vector):
    """A vector in code that is being built; operators emit the instruction."""

    lanes: Lanes
    value: ir.Value

    def _operand(self, other: Vector | float) -> ir.Value:
        return (other if isinstance(other, Vector) else self.lanes.constant(other)).value

    def _new(self, value: ir.Value) -> Vector:
        return Vector(self.lanes, value)

    def constant(self, x: float) -> Vector:
        return self.lanes.constant(x)

    def number(self, name: str) -> Any:
        return getattr(polynomials, f"{name}_{self.lanes.name}")

    def __add__(self, other: Vector | float) -> Vector:
        return self._new(self.lanes.builder.fadd(self.value, self._operand(other), flags=_CONTRACT))

    def __sub__(self, other: Vector | float) -> Vector:
        return self._new(self.lanes.builder.fsub(self.value, self._operand(other), flags=_CONTRACT))

    def __mul__(self, other: Vector | float) -> Vector:
        return self._new(self.lanes.builder.fmul(self.value, self._operand(other), flags=_CONTRACT))

    def __truediv__(self, other: Vector | float) -> Vector:
        return self._new(self.lanes.builder.fdiv(self.value, self._operand(other)))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: float) -> Vector:
        return self.lanes.constant(other) - self

    def __rtruediv__(self, other: float) -> Vector:
        return self.lanes.constant(other) / self

    # Operations whose rounding is known, since they are never fused with another one.

    def plus(self, other: Vector) -> Vector:
        return self._new(self.lanes.builder.fadd(self.value, other.value, flags=_ALONE))

    def minus(self, other: Vector) -> Vector:
        return self._new(self.lanes.builder.fsub(self.value, other.value, flags=_ALONE))

    def times(self, other: Vector) -> Vector:
        return self._new(self.lanes.builder.fmul(self.value, other.value, flags=_ALONE))

    def times_plus(self, factor: Vector, term: Vector) -> Vector:
        if _HAS_FMA:
            arguments = [self.value, factor.value, term.value]
            return self._new(self.lanes.call("llvm.fma", self.lanes.type, arguments))
        # Products of halves are exact (T. J. Dekker, "A floating-point technique for extending the
        # available precision", 1971).
        (a, b), (c, d) = self._halves(), factor._halves()
        product = self.times(factor)
        error = a.times(c).minus(product).plus(a.times(d)).plus(b.times(c)).plus(b.times(d))
        return product.plus(term).plus(error)

    def _halves(self) -> tuple[Vector, Vector]:
        """Numbers of half as many digits whose sum this is."""
        low_digits = (self.lanes.info.nmant + 2) // 2
        high = self.lanes.from_bits(self.bits() & -(1 << low_digits))
        return high, self.minus(high)

    def over(self, divisor: Vector) -> Vector:
        # An estimate of 14 bits and Newton's steps.
        lanes = self.lanes
        bits = lanes.real.bitwidth
        if "avx512f" not in _FEATURES or lanes.width * bits != 512:
            return self / divisor
        d = divisor.at_most(float(lanes.info.max))  # Newton's step would make NaN of infinity
        mask, kind = ir.IntType(lanes.width), "ps" if bits == 32 else "pd"
        arguments = [d.value, lanes.constant(0).value, mask(2**lanes.width - 1)]
        name = f"llvm.x86.avx512.rcp14.{kind}.512"
        r = self._new(_call(lanes.builder, name, lanes.type, arguments))
        for _ in range(bits // 32):
            r = r + r * (-d).times_plus(r, lanes.constant(1))
        return self * r

    def __neg__(self) -> Vector:
        return self._new(self.lanes.builder.fneg(self.value))

    def __lt__(self, other: Vector | float) -> ir.Value:
        return self.lanes.builder.fcmp_ordered("<", self.value, self._operand(other))

    def __gt__(self, other: Vector | float) -> ir.Value:
        return self.lanes.builder.fcmp_ordered(">", self.value, self._operand(other))

    def __le__(self, other: Vector | float) -> ir.Value:
        return self.lanes.builder.fcmp_ordered("<=", self.value, self._operand(other))

    def equals(self, other: Vector | float) -> ir.Value:
        return self.lanes.builder.fcmp_ordered("==", self.value, self._operand(other))

    def where(self, mask: ir.Value, otherwise: Vector | float) -> Vector:
        return self._new(self.lanes.builder.select(mask, self.value, self._operand(otherwise)))

    def at_least(self, least: Vector | float) -> Vector:
        return self._new(self._operand(least)).where(self < least, self)

    def at_most(self, most: Vector | float) -> Vector:
        return self._new(self._operand(most)).where(self > most, self)

    def sqrt(self) -> Vector:
        return self._new(self.lanes.call("llvm.sqrt", self.lanes.type, [self.value]))

    def __abs__(self) -> Vector:
        return self._new(self.lanes.call("llvm.fabs", self.lanes.type, [self.value]))

    def with_sign_of(self, other: Vector) -> Vector:
        arguments = [self.value, other.value]
        return self._new(self.lanes.call("llvm.copysign", self.lanes.type, arguments))

    def bits(self) -> Integers:
        bits = self.lanes.builder.bitcast(self.value, self.lanes.integers)
        return Integers(self.lanes, bits)

    def from_bits(self, bits: Integers) -> Vector:
        return self.lanes.from_bits(bits)

    def sum(self) -> ir.Value:
        """The sum of the elements, by halves."""
        builder, value, count = self.lanes.builder, self.value, self.lanes.width
        while count > 1:
            count //= 2
            low, high = (
                builder.shuffle_vector(
                    value, value, ir.Constant(ir.VectorType(_INT32, count), list(half))
                )
                for half in (range(count), range(count, 2 * count))
            )
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(_INT32, 0))

    def in_c_where(self, mask: ir.Value, name: str, otherwise: Vector) -> Vector:
        lanes, builder, double = self.lanes, self.lanes.builder, ir.DoubleType()
        result = cgutils.alloca_once_value(builder, otherwise.value)
        with builder.if_then(lanes.any(mask), likely=False):
            values = cgutils.alloca_once_value(builder, self.value)
            first = builder.bitcast(values, lanes.type.element.as_pointer())
            function = builder.module.declare_intrinsic(f"llvm.{name}", [double])
            with cgutils.for_range(builder, _INT64(lanes.width)) as loop:
                place = builder.gep(first, [loop.index])
                value = builder.fpext(builder.load(place), double)  # of a double, itself
                value = builder.fptrunc(builder.call(function, [value]), lanes.type.element)
                builder.store(value, place)
            found = self._new(builder.load(values)).where(mask, otherwise)
            builder.store(found.value, result)
        return self._new(builder.load(result))


@dataclass(slots=True, eq=False)
class Integers:
    """A vector of integers as wide as the reals; numbers may stand for vectors beside one."""

    lanes: Lanes
    value: ir.Value

    def _with(self, emit: Callable[..., ir.Value], other: Integers | int) -> Integers:
        value = self.lanes.integer(other) if isinstance(other, int) else other.value
        return Integers(self.lanes, emit(self.value, value))

    def __add__(self, other: Integers | int) -> Integers:
        return self._with(self.lanes.builder.add, other)

    def __sub__(self, other: Integers | int) -> Integers:
        return self._with(self.lanes.builder.sub, other)

    def __lshift__(self, places: int) -> Integers:
        return self._with(self.lanes.builder.shl, places)

    def __rshift__(self, places: int) -> Integers:
        return self._with(self.lanes.builder.ashr, places)

    def __and__(self, other: Integers | int) -> Integers:
        return self._with(self.lanes.builder.and_, other)

    def __xor__(self, other: Integers | int) -> Integers:
        return self._with(self.lanes.builder.xor, other)


def widened(vector: Vector) -> Vector:
    """The elements in float64."""
    return _converted(vector, types.float64)


def _converted(vector: Vector, real: types.Float) -> Vector:
    """The elements in the other type, or this one."""
    builder = vector.lanes.builder
    lanes = Lanes(builder, real, vector.lanes.width)
    convert = builder.fpext if vector.lanes.real.bitwidth < real.bitwidth else builder.fptrunc
    return Vector(lanes, convert(vector.value, lanes.type))  # which leaves this type as it is


def by_vectors(
    builder: ir.IRBuilder,
    real: types.Float,
    n: ir.Value,
    body: Callable[[Lanes, ir.Value, ir.Value | None], None],
) -> None:
    """Code for n elements: body(lanes, index, mask), which is the code for a vector.

    What whole vectors leave is a vector under a mask or, where there are no masks, single elements.
    """
    lanes = Lanes(builder, real)
    width = _INT64(lanes.width)
    rest = builder.srem(n, width)
    whole = builder.sub(n, rest)
    with cgutils.for_range_slice(builder, _INT64(0), whole, width, _INT64) as (i, _):
        body(lanes, i, None)
    if HAS_MASKS:
        with builder.if_then(builder.icmp_signed(">", rest, _INT64(0))):
            body(lanes, whole, lanes.first(rest))
    else:
        with cgutils.for_range_slice(builder, whole, n, _INT64(1), _INT64) as (i, _):
            body(Lanes(builder, real, 1), i, None)


class Total:
    """A sum over the vectors of `by_vectors`."""

    def __init__(self, builder: ir.IRBuilder, real: types.Float, width: int):
        self._builder = builder
        widths = (width,) if HAS_MASKS else (width, 1)
        zeros = [Lanes(builder, real, w).constant(0) for w in widths]
        self._places = {
            zero.lanes.width: (zero.lanes, cgutils.alloca_once_value(builder, zero.value))
            for zero in zeros
        }

    def add(self, terms: Vector) -> None:
        """Add a vector."""
        lanes, place = self._places[terms.lanes.width]
        self._builder.store((Vector(lanes, self._builder.load(place)) + terms).value, place)

    def sum(self) -> ir.Value:
        """The sum of all elements."""
        sums = [Vector(k, self._builder.load(place)).sum() for k, place in self._places.values()]
        return sums[0] if HAS_MASKS else self._builder.fadd(*sums)


def elementwise(
    formula: Callable[..., Any],
    pointers: int,
    results: int,
    total: bool = False,
    by_kind: bool = False,
) -> Any:
    """A jitted function f(n, p1, ..., s1, ...) that applies a formula to n elements.

    Parameters
    ----------
    formula : callable
        (vector from p1, ..., vector of s1, ...) -> the vectors to store from p1 on (`results` of
        them, in a tuple), and, if `total`, as last one, what is to be summed.
    pointers : int
        How many of the arguments are pointers; the others are scalars of the first one's type, to
        which what is read elsewhere is converted.
    results : int
        How many pointers are written, the first ones. Others may coincide with them.
    total : bool
        If true, f returns a sum, accumulated in float64.
    by_kind : bool
        If true, the function is f(kind, n, p1, ...), for a kind that is known where f is compiled,
        and its formula is formula(kind).
    """

    @intrinsic(prefer_literal=by_kind)
    def apply(typingctx: Any, *given: Any) -> Any:
        of_kind = formula(given[0].literal_value) if by_kind else formula
        n_integers = 2 if by_kind else 1  # the kind, n
        arguments = given[n_integers:]
        real = arguments[0].dtype
        integers, scalars = (types.int64,) * n_integers, (real,) * (len(arguments) - pointers)
        together = types.Tuple((*integers, *arguments[:pointers], *scalars))  # as Numba packs them

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            n, *values = cgutils.unpack_tuple(builder, args[0], len(given))[n_integers - 1 :]
            starts, scalars = values[:pointers], values[pointers:]
            sums = Total(builder, types.float64, Lanes(builder, real).width) if total else None

            def body(lanes: Lanes, i: ir.Value, mask: ir.Value | None) -> None:
                places = [builder.gep(p, [i]) for p in starts]
                vectors = [
                    _converted(Lanes(builder, a.dtype, lanes.width).load(p, mask), real)
                    for a, p in zip(arguments[:pointers], places, strict=True)
                ]
                outcome = of_kind(*vectors, *(lanes.splat(s) for s in scalars))
                for vector, place in zip(outcome[:results], places[:results], strict=True):
                    lanes.store(vector, place, mask)
                if sums is not None:
                    terms = widened(outcome[-1])
                    # What a formula makes of absent elements does not count.
                    sums.add(terms if mask is None else terms.where(mask, 0.0))

            by_vectors(builder, real, n, body)
            return context.get_dummy_value() if sums is None else sums.sum()

        return (types.float64 if total else types.void)(together), codegen

    return apply


def do_not_unroll(module: ir.Module, branch: ir.Instruction) -> None:
    """Tell LLVM to leave a loop, whose last branch this is, as it is.

    It would repeat the bodies of loops that are vector code already.
    """
    advice = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    number = ir.MetaDataString(module, f"loop {len(module.metadata)}")
    loop = module.add_metadata([number, advice])
    loop.operands = (loop, advice)  # a node that begins with itself stands for one loop alone
    branch.set_metadata("llvm.loop", loop)


@contextmanager
def loop(builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, step: int) -> Iterator[ir.Value]:
    """A loop over vectors, which LLVM leaves as it is; gives the index."""
    before = builder.block
    body, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.cbranch(builder.icmp_signed("<", start, stop), body, end)
    builder.position_at_end(body)
    index = builder.phi(_INT64)
    index.add_incoming(start, before)
    yield index
    following = builder.add(index, _INT64(step))
    index.add_incoming(following, builder.block)
    branch = builder.cbranch(builder.icmp_signed("<", following, stop), body, end)
    do_not_unroll(builder.module, branch)
    builder.position_at_end(end)


class Sums:
    """Vectors that a loop adds to; LLVM turns them into registers."""

    def __init__(self, lanes: Lanes, values: list[Vector]):
        self._lanes = lanes
        self._places = [cgutils.alloca_once(lanes.builder, lanes.type) for _ in values]
        self.set(values)

    def get(self) -> list[Vector]:
        """The sums so far."""
        return [Vector(self._lanes, self._lanes.builder.load(place)) for place in self._places]

    def set(self, values: list[Vector]) -> None:
        """What the sums have become."""
        for place, vector in zip(self._places, values, strict=True):
            self._lanes.builder.store(vector.value, place)


# Pointers. Inside jitted code arrays are pointers: an argument's type then says its dtype alone, so
# that nothing is compiled twice for read-only or differently shaped arrays, and no call counts
# references. Whoever calls an entry keeps the arrays alive.


@emits(lambda array: types.CPointer(array.dtype), same)
def pointer(code, array):
    """The address of an array's first element."""
    return code.context.make_array(code.types[0])(code.context, code.builder, array).data


@emits(like(0), same, INTEGER)
def at(code, start, offset):
    """The pointer `offset` elements further on."""
    return code.builder.gep(start, [offset])


@emits(like(0), same)
def aligned(code, start):
    """The next address that is a multiple of 64 bytes."""
    address = code.builder.ptrtoint(start, _INT64)
    rounded = code.builder.and_(code.builder.add(address, _INT64(63)), _INT64(-64))
    return code.builder.inttoptr(rounded, start.type)


@emits(NOTHING, same, same, INTEGER)
def copy(code, to, source, count):
    """Copy `count` elements between places that do not overlap."""
    size = code.types[0].dtype.bitwidth // 8
    cgutils.raw_memcpy(code.builder, to, source, count, size)


@emits(element_of(0), same, same)
def as_real(code, like, x):
    """A number in the type that the pointer `like` points to."""
    return code.context.cast(code.builder, x, code.types[1], code.returns)


@emits(INTEGER, same)
def vector_width(code, start):
    """Elements of a vector of the type that a pointer points to."""
    return _INT64(Lanes(code.builder, code.types[0].dtype).width)


@emits(lambda like, count: types.CPointer(like.dtype), same, same, prefer_literal=True)
def room_for(code, like, count):
    """A buffer on the stack for so many numbers, a constant, of the type `like` points to."""
    element = code.context.get_value_type(code.returns.dtype)
    buffer = cgutils.alloca_once(code.builder, ir.ArrayType(element, code.types[1].literal_value))
    return code.builder.bitcast(buffer, element.as_pointer())


@emits(like(0), same, same)
def taken_as(code, like, start):
    """The pointer `start`, taken as one to numbers of the type that `like` points to."""
    return code.builder.bitcast(start, like.type)


def _c_function(returns: Any) -> Any:
    """What jitted code calls for the C functions of this result: f(address, argument, ...)."""

    @intrinsic
    def call(typingctx: Any, address: Any, *arguments: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            values = cgutils.unpack_tuple(builder, args[1], len(arguments))
            nothing = returns == NOTHING
            type_ = ir.VoidType() if nothing else context.get_value_type(returns)
            kind = ir.FunctionType(type_, [value.type for value in values])
            result = builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
            return context.get_dummy_value() if nothing else result

        return returns(types.int64, types.Tuple(arguments)), codegen

    return call


call_c, call_c_for_number = _c_function(NOTHING), _c_function(NUMBER)


# Numbers near zero: the moments of an optimizer decay into the subnormals as a network converges,
# and arithmetic on those takes many times longer. The mode belongs to the thread; whoever sets it
# does so after the last allocation, so that nothing can raise before it is restored.


@emits(types.uint32)
def floating_point_mode(code):
    """The processor's control word for vector arithmetic (0 where we do not know one)."""
    return code.builder.load(_control_word(code.builder, "stmxcsr", _INT32(0)))


@emits(NOTHING, types.uint32)
def set_floating_point_mode(code, mode):
    """Set that control word."""
    _control_word(code.builder, "ldmxcsr", mode)


@emits(types.uint32, types.uint32)
def flushing(code, mode):
    """The control word, changed to flush subnormal results and operands to zero."""
    return code.builder.or_(mode, _INT32(0x8040))


def _control_word(builder: ir.IRBuilder, name: str, value: ir.Value) -> ir.Value:
    """A place that holds a value, passed to the instruction that reads or writes the word."""
    word = cgutils.alloca_once_value(builder, value)
    builder.store(value, word)
    if SSE:
        address = builder.bitcast(word, ir.IntType(8).as_pointer())
        _call(builder, f"llvm.x86.sse.{name}", ir.VoidType(), [address])
    return word
