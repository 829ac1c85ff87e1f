"""How the jitted functions are compiled: lazily, once per dtype, cached where that works."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import compress
from typing import Any, ClassVar

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic, overload

from . import notice
from .caching import Cache, source_fingerprint

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
INNER_OPTIONS = {**_OPTIONS, "no_cpython_wrapper": True, "no_rewrites": False}


def inner(function: Callable) -> Callable:
    """A function that entries call, and Python never.

    As an overload of itself it is compiled for its arguments' types; as a jitted function it would
    be compiled for the values of constant arguments too, again and again.
    """
    options = {**_OPTIONS, "no_cpython_wrapper": True}
    overload(function, strict=False, jit_options=options)(lambda *arguments: function)
    return function


# One that becomes part of its caller. LLVM optimizes a function's code again for each level of
# calls above it, which this saves.
part = numba.njit(inline="always", **_OPTIONS)
part_of_users = numba.njit(inline="always", **_OPTIONS | {"no_rewrites": False})

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


def given(ndim: int) -> Callable[[types.Type], types.Type]:
    """The type of an array of reals that is read.

    Declared read-only: then Numba takes writable and read-only arrays alike, by a conversion that
    costs nothing, where arguments by inferred types would compile everything twice per argument.
    """
    return lambda real: types.Array(real, ndim, "C", readonly=True)


def given_integers(ndim: int) -> types.Type:
    """The type of an array of int64 that is read."""
    return types.Array(types.int64, ndim, "C", readonly=True)


def given_doubles(ndim: int) -> types.Type:
    """The type of an array of float64 that is read."""
    return types.Array(types.float64, ndim, "C", readonly=True)


def result(ndim: int) -> Callable[[types.Type], types.Type]:
    """The type of an array of reals that is written."""
    return lambda real: types.Array(real, ndim, "C")


def result_doubles(ndim: int) -> types.Type:
    """The type of an array of float64 that is written."""
    return types.Array(types.float64, ndim, "C")


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


class _ToldCache(Cache):
    """A function's cache that tells when the function is compiled."""

    def load_overload(self, signature: Any, context: Any) -> Any:
        found = super().load_overload(signature, context)
        if found is None:
            notice.begin(self.name)
        return found

    def save_overload(self, signature: Any, compiled: Any) -> None:
        notice.end()
        super().save_overload(signature, compiled)


class Compiled:
    """A function that is compiled when it is first needed, once per dtype, with declared types.

    Parameters
    ----------
    make : callable
        fingerprint -> Python function, which must mention the fingerprint.
    returns : numba type
    arguments : sequence of numba types, or of functions from the real type to one
    calls : sequence of Linked
        The linked functions that it calls.
    dtypes : str
        The characters of the dtypes for which there are callers.

    Attributes
    ----------
    dispatchers : dict
        The version of each dtype that was needed so far, by the dtype's character.
    """

    options: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        make: Callable[[int], Callable],
        returns: Any,
        *arguments: Any,
        calls: Sequence[Linked] = (),
        dtypes: str = "fd",
    ):
        self.dtypes = dtypes
        self._make = make
        self._returns = returns
        self._arguments = arguments
        self._calls = calls
        self._addresses: dict[str, int] = {}
        self.dispatchers: dict[str, Any] = {}

    def __getitem__(self, dtype: np.dtype) -> Any:
        """The version for float32 or float64, compiled at first use."""
        found = self.dispatchers.get(dtype.char)
        return found if found is not None else self._compile(dtype)

    def warm(self, dtype: np.dtype) -> tuple[Cache, bool]:
        """Have the version for a dtype: its cache, and whether it has just been compiled."""
        is_new, dispatcher = dtype.char not in self.dispatchers, self[dtype]
        return dispatcher._cache, is_new and bool(dispatcher.stats.cache_misses)

    def signature(self, real: types.Float) -> Any:
        """The declared types."""
        arguments = (a if isinstance(a, types.Type) else a(real) for a in self._arguments)
        return self._returns(*arguments)

    def real_of(self, arguments: Sequence[types.Type]) -> types.Float:
        """The real type of a call with arguments of these types: what the first array says."""
        of_reals = (not isinstance(declared, types.Type) for declared in self._arguments)
        return next(given.dtype for given in compress(arguments, of_reals))

    def address(self, dtype: np.dtype) -> int:
        """Where the version for a dtype begins."""
        found = self._addresses.get(dtype.char)
        if found is None:
            (compiled,) = self[dtype].overloads.values()
            with global_compiler_lock:
                found = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
            self._addresses[dtype.char] = found
        return found

    def linked(self) -> Iterator[Linked]:
        """The linked functions below it, those that others call first."""
        for function in self._calls:
            yield from function.linked()
            yield function

    def _compile(self, dtype: np.dtype) -> Any:
        # Numba's lock and no other: a thread in which it compiles users' code, which may need this
        # function, holds it already.
        with global_compiler_lock:
            for function in self._calls:
                function.provide(dtype)
            if dtype.char not in self.dispatchers:
                declared = _linked.set(self._calls)
                try:
                    self.dispatchers[dtype.char] = self._new(self.signature(real_type(dtype)))
                finally:
                    _linked.reset(declared)
        return self.dispatchers[dtype.char]

    def _new(self, signature: Any) -> Any:
        dispatcher = numba.njit(**_OPTIONS, **self.options)(self._make(source_fingerprint()))
        dispatcher._cache = _ToldCache(dispatcher.py_func)
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher


# Those that `versions` names.
_entries: list[Entry] = []
_families: list[Family] = []


class Entry(Compiled):
    """A function that Python calls."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        _entries.append(self)


class _Addressed(Compiled):
    """A function that compiled code calls, by its address."""

    options: ClassVar[dict[str, Any]] = {"no_cpython_wrapper": True}


# What the function that is being compiled may call.
_linked: ContextVar[Sequence[Linked]] = ContextVar("linked", default=())


def symbol(name: str, real: types.Float) -> str:
    """The name in the process of what is compiled once for all who use it."""
    return f"fastbp.{name}.{real}"


class Linked(_Addressed):
    """A function that other compiled functions call and that is compiled apart from them, once.

    Its code is then not made again for each of them. They find it by a symbol of the process, so it
    must be there before they are loaded: each declares what it calls.

    Parameters
    ----------
    make, returns, arguments, calls
        As for `Compiled`.
    exports : sequence of str
        Variables of its module that those who call it may use too, by their `symbol`.

    Attributes
    ----------
    call : intrinsic
        What jitted code calls.
    """

    def __init__(
        self,
        make: Callable[[int], Callable],
        returns: Any,
        *arguments: Any,
        calls: Sequence[Linked] = (),
        exports: Sequence[str] = (),
    ):
        super().__init__(make, returns, *arguments, calls=calls)
        self._exports = exports
        self._name = make.__name__.removeprefix("_make_")
        self._provided: set[str] = set()
        self.call = self._intrinsic()

    def provide(self, dtype: np.dtype) -> None:
        """Make the version for a dtype known to code that will be loaded."""
        if dtype.char not in self._provided:
            real = real_type(dtype)
            llvmlite.binding.add_symbol(symbol(self._name, real), self.address(dtype))
            (compiled,) = self[dtype].overloads.values()
            for name in self._exports:
                engine = compiled.library.codegen._engine
                place = engine.get_global_value_address(symbol(name, real))
                llvmlite.binding.add_symbol(symbol(name, real), place)
            self._provided.add(dtype.char)

    def _intrinsic(self) -> Any:
        @intrinsic
        def call(typingctx: Any, *arguments: Any) -> Any:
            if self not in _linked.get():
                raise AssertionError(f"{self._name} is called and not declared")
            real = self.real_of(arguments)
            declared = self.signature(real)

            def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
                kind = context.call_conv.get_function_type(declared.return_type, declared.args)
                name = symbol(self._name, real)
                function = cgutils.get_or_insert_function(builder.module, kind, name)
                return call_at(context, builder, function, declared, args[0])

            return declared.return_type(types.Tuple(declared.args)), codegen

        return call


class Family:
    """Functions of one form that are told apart by a number; each is compiled when it is needed.

    Compiled code receives the addresses as arguments, so it need not know which ones there are.

    Parameters
    ----------
    make : callable
        (fingerprint, kind) -> Python function, which must mention both.
    returns, arguments
        As for `Compiled`.
    kinds : collection of int
        Which numbers there are.

    Attributes
    ----------
    call : intrinsic
        (address, argument, ...): what jitted code calls.
    """

    def __init__(
        self,
        make: Callable[[int, int], Callable],
        returns: Any,
        *arguments: Any,
        calls: Sequence[Linked] = (),
        kinds: Collection[int],
    ):
        self.kinds = kinds
        self._make = make
        self._types = (returns, *arguments)
        self._calls = calls
        self._members: dict[int, _Addressed] = {}
        self.call = self._intrinsic()
        _families.append(self)

    def member(self, kind: int) -> _Addressed:
        """The function of a kind."""
        found = self._members.get(kind)
        if found is None:
            new = _Addressed(partial(self._named, kind), *self._types, calls=self._calls)
            found = self._members.setdefault(kind, new)
        return found

    def address(self, dtype: np.dtype, kind: int) -> int:
        """Where the version of this kind for a dtype begins."""
        return self.member(kind).address(dtype)

    def _named(self, kind: int, fingerprint: int) -> Callable:
        # Numba names compiled code after the function, and those of one name by a counter that
        # starts anew in each process: code from the cache would meet other code of the same name.
        function = self._make(fingerprint, kind)
        function.__qualname__ += f"_{kind}"
        return function

    def _intrinsic(self) -> Any:
        form = Compiled(partial(self._named, 0), *self._types)

        @intrinsic
        def call(typingctx: Any, address: Any, *arguments: Any) -> Any:
            declared = form.signature(form.real_of(arguments))

            def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
                kind = context.call_conv.get_function_type(declared.return_type, declared.args)
                function = builder.inttoptr(args[0], kind.as_pointer())
                return call_at(context, builder, function, declared, args[1])

            return declared.return_type(types.int64, types.Tuple(declared.args)), codegen

        return call


def call_at(
    context: Any, builder: ir.IRBuilder, function: ir.Value, declared: Any, packed: ir.Value
) -> ir.Value:
    """Code for a call of a compiled function; Numba packs *arguments into a tuple."""
    arguments = cgutils.unpack_tuple(builder, packed, len(declared.args))
    types_ = declared.return_type, declared.args
    _, result = context.call_conv.call_function(builder, function, *types_, arguments)
    return context.get_dummy_value() if declared.return_type == types.void else result


def versions(dtypes: Sequence[np.dtype]) -> Iterator[tuple[Compiled, np.dtype]]:
    """Every function that anything may need in these dtypes, those that others call first."""
    members = [family.member(kind) for family in _families for kind in family.kinds]
    linked = dict.fromkeys(f for caller in (*_entries, *members) for f in caller.linked())
    for dtype in dtypes:
        for function in (*linked, *members, *_entries):
            if dtype.char in function.dtypes:
                yield function, dtype
