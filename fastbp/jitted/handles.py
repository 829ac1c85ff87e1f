"""Users' jitted code as a caller: addresses of the entries, and our objects as its arguments.

Numba stores users' code, and a stored address would be another process's. So an address stands
among the constants of the calling function as a Python integer that is pickled as the way to find
the function: whoever loads the code loads, or compiles, the functions first, and reads the integers
of his own process (see `Address`). Nothing is looked up during a call, and no thread needs Python's
lock.

A network or an objective comes as a vector of integers: sizes, and where arrays are and how large.
An activation or a loss comes as its parameter and the addresses of the user's own functions; which
one it is belongs to its type.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import NativeValue, box, intrinsic, models, register_model, unbox

from ..backends import user_code
from ..backends.contract import Plan, Problem
from ..backends.jit import activations, derivatives, kernels, losses, network, objective
from ..backends.jit.caching import source_fingerprint
from ..backends.jit.compiling import INTEGER, INTEGERS, NUMBER, Compiled, call_at
from ..backends.jit.intrinsics import emits, like, same
from ..backends.jit.numba_internals import TypingError, cgutils, populate_array
from ..backends.jit.prepared import prepared_data, prepared_plan
from ..maths.activations import ActivationSpec
from ..maths.losses import Loss

_INT64 = ir.IntType(64)


# Addresses.

_ENTRIES: dict[str, Compiled] = {
    "dense_forward": kernels.dense_forward,
    "dense_backward": kernels.dense_backward,
    "forward": network.forward,
    "jacobian": derivatives.jacobian,
    "objective": objective.objective,
}


class Address(int):
    """Where a function is, for this process; pickled as the way to find it in another one.

    Attributes
    ----------
    of : tuple
        What `_address` takes.
    """

    of: tuple[str, int, str]

    def __reduce__(self) -> tuple[Any, ...]:
        return _found_again, (source_fingerprint(), *self.of)


def _found_again(fingerprint: int, name: str, kind: int, dtype: str) -> Address:
    if fingerprint != source_fingerprint():
        # To Numba, a stored function that raises an OSError is none: it compiles it again.
        raise OSError("this function was compiled and stored by another version of fastbp")
    return _address(name, kind, dtype)


@cache
def _address(name: str, kind: int, dtype: str) -> Address:
    """Of an entry, or of the function of an activation or a loss of this kind; compiled now.

    Always the same object: functions of one name, from the cache and compiled here, may share their
    constants, and Numba then finds again what is among them.
    """
    real = np.dtype(dtype)
    if name == "activation":
        found = Address(activations.address(kind, real))
    elif name == "loss":
        found = Address(losses.addresses(kind, None, real)[0])
    else:
        found = Address(_ENTRIES[name].address(real))
    found.of = name, kind, dtype
    return found


def _read(context: Any, builder: ir.IRBuilder, address: Address) -> ir.Value:
    """Code that reads an address from the constants of the function that is being compiled."""
    constants = context.get_env_manager(builder)
    python = context.get_python_api(builder)
    number = constants.read_const(constants.add_const(address))
    return builder.ptrtoint(python.long_as_voidptr(number), _INT64)


# Networks and objectives: a vector of integers. The first ones of an objective are its network's.
# A place of an array holds its address and two lengths.

(
    NET_IN, NET_OUT, NET_PARAMS, NET_FREE, SPACE, JACOBIAN_SPACE, MASKED, N_MASKED, FIXED, N_FIXED,
    PLAN,
) = range(11)  # fmt: skip
_OF_ARRAY = 3
DATA = PLAN + _OF_ARRAY * len(network.PLAN.members)


class Handle(np.ndarray):
    """The vector of a network or an objective.

    Attributes
    ----------
    keeps : tuple
        The arrays whose addresses it holds.
    """

    keeps: tuple[np.ndarray, ...]


def opened_network(net: Any) -> Handle:
    """A network as its handle."""
    return _handle_of(net.plan, net.masked, None)


def opened_objective(objective: Any) -> Handle:
    """An objective as its handle."""
    return _handle_of(objective.problem.plan, objective.net.masked, objective.problem)


def _handle_of(plan: Plan, masked: np.ndarray | None, problem: Problem | None) -> Handle:
    owner = plan if problem is None else problem
    if "jitted" not in owner.handles:
        p, data = prepared_plan(plan), () if problem is None else prepared_data(problem)
        places = [
            np.empty(0, np.int64) if chosen is None else np.flatnonzero(chosen)
            for chosen in (masked, None if plan.free is None else ~plan.free)
        ]
        numbers = [plan.n_in, plan.n_out, plan.n_params, plan.n_free, p.size, p.jacobian_size]
        for array in places:
            numbers += [array.ctypes.data, array.size]
        for array in (*p.arrays, *data):
            numbers += [array.ctypes.data, *array.shape, 0][:_OF_ARRAY]
        handle: Handle = np.array(numbers, np.int64).view(Handle)
        owner.handles["jitted"] = handle
        handle.keeps = (*places, *p.arrays, *data)
    return owner.handles["jitted"]


def opened_function(function: ActivationSpec | Loss) -> tuple[float, int, int]:
    """An activation or a loss as its parameter and its user's functions' addresses (0 without)."""
    if function.functions is None:
        return function.constant, 0, 0
    # Compiled for the types for which their caller is, which users' code needed before it ran.
    caller = objective.objective if isinstance(function, Loss) else kernels.dense_forward
    single, double = (
        user_code.address(function.functions, dtype) if dtype.char in caller.dispatchers else 0
        for dtype in map(np.dtype, "fd")
    )
    return function.constant, single, double


class Argument(types.Type):
    """The type of one of our objects as an argument of jitted code.

    Attributes
    ----------
    inner : numba type
        What it consists of.
    opened : callable
        A function of a module: object -> Python value of the inner type.
    """

    inner: types.Type
    opened: Callable


class HandleType(Argument):
    """A network's or an objective's: a `Handle`."""

    inner = types.Array(types.int64, 1, "C")

    def __init__(self, real: types.Float):
        self.real = real
        super().__init__(f"fastbp.{type(self).__name__.removesuffix('Type')}({real})")


class NetworkType(HandleType):
    """A network's."""

    opened = staticmethod(opened_network)


class ObjectiveType(HandleType):
    """An objective's."""

    opened = staticmethod(opened_objective)


class FunctionType(Argument):
    """An activation's or a loss's: its parameter, its functions' addresses for both dtypes."""

    inner = types.Tuple((types.float64, types.int64, types.int64))
    opened = staticmethod(opened_function)


class ActivationType(FunctionType):
    """An activation's."""

    def __init__(self, activation: ActivationSpec):
        self.kind, self.keeps_z = activation.kind, activation.keeps_z
        super().__init__(f"fastbp.Activation({self.kind})")


class LossType(FunctionType):
    """A loss's."""

    def __init__(self, loss: Loss):
        self.kind, self.divisor, self.target = loss.kind, loss.divisor, loss.target
        super().__init__(f"fastbp.Loss({self.kind}, {self.divisor}, {self.target})")


class _OneMember(models.StructModel):
    def __init__(self, manager: Any, kind: Argument):
        super().__init__(manager, kind, [("inner", kind.inner)])


for _kind in (NetworkType, ObjectiveType, ActivationType, LossType):
    register_model(_kind)(_OneMember)


@unbox(Argument)
def _unbox(kind: Argument, obj: Any, c: Any) -> NativeValue:
    python = c.pyapi
    function = python.unserialize(python.serialize_object(kind.opened))
    result = cgutils.create_struct_proxy(kind)(c.context, c.builder)
    failed = cgutils.alloca_once_value(c.builder, cgutils.true_bit)
    opened = python.call_function_objargs(function, (obj,))
    with c.builder.if_then(cgutils.is_not_null(c.builder, opened)):
        native = c.unbox(kind.inner, opened)
        result.inner = native.value
        c.builder.store(native.is_error, failed)
        python.decref(opened)
    python.decref(function)
    return NativeValue(result._getvalue(), is_error=c.builder.load(failed))


@box(Argument)
def _box(kind: Argument, value: Any, c: Any) -> ir.Value:
    raise TypingError(
        f"{kind} cannot leave jitted code, alone or in the cache of fastbp.jitted.dense_forward; "
        f"return other results"
    )


# Reading them in jitted code. Pointers, so that no call counts references.


def _inner(context: Any, builder: ir.IRBuilder, kind: Argument, value: ir.Value) -> ir.Value:
    return cgutils.create_struct_proxy(kind)(context, builder, value).inner


def _integers(context: Any, builder: ir.IRBuilder, kind: Argument, value: ir.Value) -> ir.Value:
    """The pointer to a handle's integers."""
    array = context.make_array(kind.inner)(context, builder, _inner(context, builder, kind, value))
    return array.data


@emits(INTEGERS, same)
def numbers_of(code, net):
    """The integers of a network or an objective."""
    return _integers(code.context, code.builder, code.types[0], net)


@emits(like(0), same, INTEGER)
def places_at(code, numbers, index):
    """The integers whose address stands at an index of others."""
    address = code.builder.load(code.builder.gep(numbers, [index]))
    return code.builder.inttoptr(address, numbers.type)


def _expanded(
    context: Any, builder: ir.IRBuilder, kind: HandleType, handle: ir.Value, struct: Any
) -> ir.Value:
    """The NamedTuple of a plan's or a problem's arrays, which a handle refers to."""
    start = PLAN if struct == network.PLAN(kind.real) else DATA
    integers = _integers(context, builder, kind, handle)
    made = []
    for place, array in enumerate(struct.types):
        address, *lengths = (
            builder.load(builder.gep(integers, [_INT64(start + _OF_ARRAY * place + i)]))
            for i in range(_OF_ARRAY)
        )
        made.append(_array(context, builder, array, address, lengths[: array.ndim]))
    return context.make_tuple(builder, struct, made)


def _array(
    context: Any, builder: ir.IRBuilder, kind: types.Array, address: ir.Value, shape: list[ir.Value]
) -> ir.Value:
    """An array that lies somewhere and that nobody counts."""
    made = context.make_array(kind)(context, builder)
    size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    strides = [_INT64(size)]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    data = builder.inttoptr(address, context.get_data_type(kind.dtype).as_pointer())
    populate_array(made, data, shape, strides, size, None)
    return made._getvalue()


# Calling entries.


def _called(name: str) -> Any:
    """What jitted code calls for an entry.

    A network or an objective stands for the NamedTuple of its plan's arrays, an objective also for
    that of its data, None for an array of length 0.
    """
    entry = _ENTRIES[name]

    @intrinsic
    def call(typingctx: Any, *arguments: Any) -> Any:
        reals = [kind.real for kind in arguments if isinstance(kind, HandleType)]
        real = reals[0] if reals else entry.declared.real_of(arguments)
        declared = entry.declared.of(real)
        address = _address(name, 0, real.name)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            unpacked = cgutils.unpack_tuple(builder, args[0], len(arguments))
            values = [
                _as_declared(context, builder, value, kind, to)
                for kind, value, to in zip(arguments, unpacked, declared.args, strict=True)
            ]
            return call_at(context, builder, _read(context, builder, address), declared, values)

        return declared.return_type(types.Tuple(arguments)), codegen

    return call


def _as_declared(
    context: Any, builder: ir.IRBuilder, value: ir.Value, given: types.Type, declared: types.Type
) -> ir.Value:
    if given == types.none:
        return _array(context, builder, declared, _INT64(0), [_INT64(0)] * declared.ndim)
    if isinstance(given, HandleType):
        return _expanded(context, builder, given, value, declared)
    if isinstance(declared, types.BaseTuple):
        values = cgutils.unpack_tuple(builder, value)
        members = zip(values, given.types, declared.types, strict=True)
        made = [_as_declared(context, builder, *member) for member in members]
        return context.make_tuple(builder, declared, made)
    if isinstance(declared, types.Array):
        assert (given.dtype, given.ndim, given.layout) == (declared.dtype, declared.ndim, "C")
        return value
    return context.cast(builder, value, given, declared)


call_dense_forward, call_dense_backward, call_forward, call_jacobian, call_objective = map(
    _called, _ENTRIES
)


# Activations and losses in jitted code.


@cache
def address_of(name: str, kind: int) -> Any:
    """A function of an array: the address of an activation's or loss's for reals of its type."""

    @intrinsic
    def found(typingctx: Any, like: Any) -> Any:
        address = _address(name, kind, like.dtype.name)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return _read(context, builder, address)

        return types.int64(like), codegen

    return found


@cache
def function_of(kind: Argument, constant: float | None) -> Any:
    """A function of what stands for an activation or loss: its numbers, known now if it is a name.

    A name's are its constant, given here, and no functions of a user's.
    """

    @emits(kind, same)
    def taken(code, given):
        if constant is None:
            return given
        made = cgutils.create_struct_proxy(kind)(code.context, code.builder)
        numbers = constant, 0, 0
        made.inner = code.context.get_constant_generic(code.builder, kind.inner, numbers)
        return made._getvalue()

    return taken


@emits(NUMBER, same)
def constant_of(code, function):
    """The parameter of an activation or a loss."""
    inner = _inner(code.context, code.builder, code.types[0], function)
    return code.builder.extract_value(inner, 0)


@emits(INTEGER, same, same)
def user_of(code, function, like):
    """The address of the user's own functions for reals as in an array."""
    inner = _inner(code.context, code.builder, code.types[0], function)
    return code.builder.extract_value(inner, 1 if code.types[1].dtype == types.float32 else 2)
