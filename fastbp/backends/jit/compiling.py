"""How functions are compiled: lazily, once per dtype, cached where that works; how they are linked.

A function becomes compiled code by one of these decorators:

    @inlined         it becomes part of each function that calls it
    @callee          it is compiled for its arguments' types, with the first that calls it
    @linked(...)     it is compiled apart, once per dtype, for the types declared here
    @entry(...)      the same, and Python calls it
    @family(...)     the same for several functions of one form, one for each kind

The code of the last three is in the cache, each function in a file of its own. One that calls
another does not contain that one's code. It refers to it by a symbol of the process such as
"fastbp.product.float64", which must exist before the caller is loaded: so it declares what it calls
(``calls=``), and that is compiled or loaded first. The functions of a family are called by their
addresses, which are arguments; so what calls them need not know which kinds there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from . import compile_notice, numba_internals
from .caching import Cache
from .numba_internals import cgutils, global_compiler_lock

# NumPy's error model: a division by zero gives inf or nan and no branch. Contraction fuses
# multiply and add; nothing is reassociated.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract"},
    "no_cfunc_wrapper": True,  # nobody calls them through a C pointer
    "no_rewrites": True,  # there are no array expressions; without looking it takes 8 % less time
}
# Of what users' code calls, which raises exceptions: that takes a rewrite.
USERS_OPTIONS = {**_OPTIONS, "no_cpython_wrapper": True, "no_rewrites": False}


def callee(function: Callable) -> Callable:
    """A function that compiled functions call, and Python never.

    As an overload of itself it is compiled for its arguments' types; as a jitted function it would
    be compiled for the values of constant arguments too, again and again.
    """
    options = {**_OPTIONS, "no_cpython_wrapper": True}
    overload(function, strict=False, jit_options=options)(lambda *arguments: function)
    return function


# LLVM optimizes a function's code again for each level of calls above it, which this saves.
inlined = numba.njit(inline="always", **_OPTIONS)
inlined_in_users = numba.njit(inline="always", **_OPTIONS | {"no_rewrites": False})


def by_type(choose: Callable, options: dict[str, Any] = USERS_OPTIONS) -> Callable:
    """Decorator: what users' jitted code calls; given the types, `choose` returns a function."""

    def stub(*arguments):
        raise NotImplementedError  # compiled code alone calls it

    overload(stub, strict=False, jit_options=options)(choose)
    return stub


INTEGER = types.int64
FLAG = types.boolean
NUMBER = types.float64
NOTHING = types.void
PAIR = types.UniTuple(types.int64, 2)


def reals(real: types.Type) -> types.Type:
    """The type of a pointer to reals."""
    return types.CPointer(real)


def itself(real: types.Type) -> types.Type:
    """The type of a real number."""
    return real


INTEGERS = types.CPointer(types.int64)
NUMBERS = types.CPointer(types.float64)


def in_array(ndim: int, element: types.Type | None = None) -> Any:
    """The type of an array of reals, or of elements of another type, that is read.

    Declared read-only: then Numba takes writable and read-only arrays alike, by a conversion that
    costs nothing, where arguments by inferred types would compile everything twice per argument.
    """
    return _array(ndim, element, True)


def out_array(ndim: int, element: types.Type | None = None) -> Any:
    """The type of an array that is written."""
    return _array(ndim, element, False)


def _array(ndim: int, element: types.Type | None, readonly: bool) -> Any:
    def of(real: types.Type) -> types.Type:
        return types.Array(real, ndim, "C", readonly=readonly)

    return of if element is None else of(element)


def real_type(dtype: np.dtype) -> types.Float:
    """Numba's type of float32 or float64."""
    return types.float32 if dtype == np.float32 else types.float64


if hasattr(os, "register_at_fork"):
    # A process forked while another thread compiles would wait for that thread for ever.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


class _NoticedCache(Cache):
    """A function's cache that says when the function is compiled: see compile_notice."""

    def load_overload(self, signature: Any, context: Any) -> Any:
        found = super().load_overload(signature, context)
        if found is None:
            compile_notice.begin(self.name)
        return found

    def save_overload(self, signature: Any, compiled: Any) -> None:
        compile_notice.end()
        super().save_overload(signature, compiled)


class Struct:
    """The declared type of a NamedTuple whose members have these declared types."""

    def __init__(self, kind: type, *members: Any):
        self.kind = kind
        self.members = members

    def __call__(self, real: types.Float) -> types.BaseTuple:
        return types.BaseTuple.from_types([_of(m, real) for m in self.members], self.kind)


def _of(declared: Any, real: types.Float) -> types.Type:
    return declared if isinstance(declared, types.Type) else declared(real)


def _reals(declared: Sequence[Any], arguments: Sequence[types.Type]) -> Iterator[types.Float]:
    """The types of those arguments that depend on the real type."""
    for of, argument in zip(declared, arguments, strict=False):
        if isinstance(of, Struct):
            yield from _reals(of.members, argument.types)
        elif not isinstance(of, types.Type):
            yield argument.dtype


@dataclass(frozen=True)
class Declared:
    """The types that a function is declared with: a numba type, or a function of the real type."""

    returns: Any
    arguments: Sequence[Any]

    def of(self, real: types.Float) -> Any:
        """The signature for float32 or float64."""
        return self.returns(*(_of(argument, real) for argument in self.arguments))

    def real_of(self, arguments: Sequence[types.Type]) -> types.Float:
        """The real type of a call with arguments of these types: what the first array says."""
        return next(_reals(self.arguments, arguments))


@dataclass(eq=False)
class Compiled:
    """A function that is compiled when it is first needed, once per dtype, with declared types.

    Python calls an entry as ``compiled[dtype](...)``. Compiled code that declares it calls it by
    its name.

    Attributes
    ----------
    function : callable
        The Python function.
    declared : Declared
    calls : sequence of Compiled
        What it calls that is linked.
    exports : sequence of str
        Variables of its module that those who call it may use too, by their `symbol`.
    dtypes : str
        The characters of the dtypes for which there are callers.
    is_entry : bool
        Whether Python calls it.
    dispatchers : dict
        The version of each dtype that was needed so far, by the dtype's character.
    """

    function: Callable
    declared: Declared
    calls: Sequence[Compiled] = ()
    exports: Sequence[str] = ()
    dtypes: str = "fd"
    is_entry: bool = False
    dispatchers: dict[str, Any] = field(default_factory=dict, init=False)
    _addresses: dict[str, int] = field(default_factory=dict, init=False)
    _from_python: dict[str, Callable] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._call = _call_of(self.declared, self._symbol)
        if self.is_entry:
            _entries.append(self)

    def __getitem__(self, dtype: np.dtype) -> Callable:
        """What Python calls for float32 or float64, compiled at first use.

        It takes its arguments to be of the declared types, which saves looking at them.
        """
        call = self._from_python.get(dtype.char)
        if call is None:
            call = self._from_python[dtype.char] = numba_internals.entry_point(self.version(dtype))
        return call

    def version(self, dtype: np.dtype) -> Any:
        """Numba's dispatcher for float32 or float64, compiled at first use."""
        if dtype.char not in self.dispatchers:
            self._compile(dtype)
        return self.dispatchers[dtype.char]

    def warm(self, dtype: np.dtype) -> tuple[Cache, bool]:
        """Have the version for a dtype: its cache, and whether it has just been compiled."""
        is_new, dispatcher = dtype.char not in self.dispatchers, self.version(dtype)
        return dispatcher._cache, is_new and bool(dispatcher.stats.cache_misses)

    def address(self, dtype: np.dtype) -> int:
        """Where the version for a dtype begins."""
        return self._addresses.get(dtype.char) or self._provide(dtype)

    def linked(self) -> Iterator[Compiled]:
        """The functions that it calls directly or indirectly, those that others call first."""
        for function in self.calls:
            yield from function.linked()
            yield function

    @property
    def _numba_type_(self) -> types.Type:
        # What Numba takes a global variable of compiled code for that holds this.
        return numba_internals.of_global(self._call)

    def _symbol(self, real: types.Float, builder: ir.IRBuilder, kind: ir.FunctionType) -> ir.Value:
        """The function, in code that is being built."""
        if self not in _declared_calls.get():
            raise AssertionError(f"{self.function.__name__} is called and not declared")
        name = symbol(self.function.__name__, real)
        return cgutils.get_or_insert_function(builder.module, kind, name)

    def _provide(self, dtype: np.dtype) -> int:
        """Define the symbols of the version for a dtype: its address and its exports."""
        dispatcher, real = self.version(dtype), real_type(dtype)
        with global_compiler_lock:
            for variable in (symbol(name, real) for name in self.exports):
                place = numba_internals.address_of(dispatcher, variable)
                llvmlite.binding.add_symbol(variable, place)
            place = self._addresses[dtype.char] = numba_internals.address_of(dispatcher)
            llvmlite.binding.add_symbol(symbol(self.function.__name__, real), place)
        return place

    def _compile(self, dtype: np.dtype) -> None:
        # Numba's lock and no other: a thread in which it compiles users' code, which may need this
        # function, holds it already.
        with global_compiler_lock:
            for function in self.calls:
                function.address(dtype)
            if dtype.char not in self.dispatchers:
                outer = _declared_calls.set(self.calls)
                try:
                    signature = self.declared.of(real_type(dtype))
                    self.dispatchers[dtype.char] = self._new(signature)
                finally:
                    _declared_calls.reset(outer)

    def _new(self, signature: Any) -> Any:
        options = {**_OPTIONS, "no_cpython_wrapper": not self.is_entry}
        dispatcher = numba.njit(**options)(self.function)
        numba_internals.set_cache(dispatcher, _NoticedCache(self.function))
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher


# What the function that is being compiled may call.
_declared_calls: ContextVar[Sequence[Compiled]] = ContextVar("declared_calls", default=())


def symbol(name: str, real: types.Float) -> str:
    """The name in the process of what is compiled once for all who use it."""
    return f"fastbp.{name}.{real}"


# Those that `versions` names.
_entries: list[Compiled] = []
_families: list[Family] = []


def entry(returns: Any, *arguments: Any, **options: Any) -> Callable[[Callable], Any]:
    """Decorator: a function that Python calls; see `Declared`, and `Compiled` for the options."""
    return linked(returns, *arguments, is_entry=True, **options)


def linked(returns: Any, *arguments: Any, **options: Any) -> Callable[[Callable], Any]:
    """Decorator: a function that other compiled functions call, declared likewise."""
    return lambda function: Compiled(function, Declared(returns, arguments), **options)


@dataclass(eq=False)
class Family:
    """Functions of one form that are told apart by a number; each is compiled when it is needed.

    Compiled code calls ``family(address, ...)``, with an address from `address`.

    Attributes
    ----------
    make : callable
        kind -> Python function.
    declared, calls
        As for `Compiled`.
    kinds : collection of int
        The numbers.
    """

    make: Callable[[int], Callable]
    declared: Declared
    kinds: Collection[int]
    calls: Sequence[Compiled] = ()
    _members: dict[int, Compiled] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._call = _call_of(self.declared, None)
        _families.append(self)

    def member(self, kind: int) -> Compiled:
        """The function of a kind."""
        if kind not in self._members:
            # Numba names compiled code after the function, and those of one name by a counter that
            # starts anew in each process: code from the cache would meet other code of that name.
            function = self.make(kind)
            function.__name__ += f"_{kind}"
            function.__qualname__ += f"_{kind}"
            self._members.setdefault(kind, Compiled(function, self.declared, self.calls))
        return self._members[kind]

    def address(self, dtype: np.dtype, kind: int) -> int:
        """Where the version of this kind for a dtype begins."""
        return self.member(kind).address(dtype)

    @property
    def _numba_type_(self) -> types.Type:
        return numba_internals.of_global(self._call)


def family(returns: Any, *arguments: Any, **options: Any) -> Callable[[Callable], Any]:
    """Decorator: kind -> Python function; see `Declared`, and `Family` for the options."""
    return lambda make: Family(make, Declared(returns, arguments), **options)


def _call_of(declared: Declared, symbol_of: Callable[..., ir.Value] | None) -> Any:
    """What compiled code calls: f(argument, ...), or without a symbol f(address, argument, ...)."""
    n_addresses = int(symbol_of is None)

    @intrinsic
    def call(typingctx: Any, *arguments: Any) -> Any:
        real = declared.real_of(arguments[n_addresses:])
        signature = declared.of(real)
        packed = types.Tuple((types.int64,) * n_addresses + signature.args)  # as Numba packs them

        def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
            values = cgutils.unpack_tuple(builder, args[0], len(packed))
            if symbol_of is None:
                function, *values = values
            else:
                kind = context.call_conv.get_function_type(signature.return_type, signature.args)
                function = symbol_of(real, builder, kind)
            return call_at(context, builder, function, signature, values)

        return signature.return_type(packed), codegen

    return call


def call_at(
    context: Any, builder: ir.IRBuilder, function: ir.Value, signature: Any, values: list[ir.Value]
) -> ir.Value:
    """Code for a call of a compiled function or of what is at an address."""
    types_ = signature.return_type, signature.args
    if isinstance(function.type, ir.IntType):
        kind = context.call_conv.get_function_type(*types_)
        function = builder.inttoptr(function, kind.as_pointer())
    _, result = context.call_conv.call_function(builder, function, *types_, values)
    return context.get_dummy_value() if signature.return_type == types.void else result


def versions(dtypes: Sequence[np.dtype]) -> Iterator[tuple[Compiled, np.dtype]]:
    """Every function that anything may need in these dtypes, those that others call first."""
    members = [family.member(kind) for family in _families for kind in family.kinds]
    linked = dict.fromkeys(f for caller in (*_entries, *members) for f in caller.linked())
    for dtype in dtypes:
        for function in (*linked, *members, *_entries):
            if dtype.char in function.dtypes:
                yield function, dtype
