"""All that the backend uses of Numba beside its documented interface.

That may change from one series of Numba to the next: `backends.why_missing` admits those with which
the tests pass. The oldest is tested by ``make test-oldest-numba``.

    cgutils               building LLVM's code: variables on the stack, tuples, loops, structures
    populate_array        an array that lies somewhere, built in code
    global_compiler_lock  the lock under which Numba compiles
    cpu_target            its typing of functions, to register ours; see `Rules` as well
    TypingError           what users' code raises that passes wrong types
    Purpose               tells a global variable of users' code from an argument
    Dispatcher            a jitted function; three functions below use its attributes
    AppDirs               the user's cache folder
    dumps                 pickles, closures too
    BaseTuple, unliteral  tuples of any kind; the type of a constant without its value

Elsewhere the backend uses attributes of objects that Numba passes to it: a target's call_conv,
get_env_manager and get_python_api (compiling, handles), a code generator's magic_tuple (caching);
and an object's attribute _numba_type_, by which Numba knows the type of a `compiling.Compiled`.
"""

from __future__ import annotations

import pickle
from typing import Any

from numba import config
from numba.core import cgutils, typing
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.errors import TypingError
from numba.core.registry import CPUTarget, cpu_target
from numba.core.serialize import dumps
from numba.core.types.containers import BaseTuple
from numba.core.types.misc import unliteral
from numba.core.typing.typeof import Purpose
from numba.misc.appdirs import AppDirs
from numba.np.arrayobj import populate_array

from ...common.errors import BackendError

__all__ = [
    "AppDirs", "BaseTuple", "CFunc", "Dispatcher", "Purpose", "Rules", "TypingError", "address_of",
    "cgutils", "dumps", "entry_point", "global_compiler_lock", "of_global", "packed",
    "populate_array", "set_cache", "typed_by", "unliteral", "unpacked",
]  # fmt: skip

if config.DISABLE_JIT:  # by a file of settings or by the program; see `backends.why_missing`
    raise BackendError("numba.config.DISABLE_JIT is set; the Numba backend needs the compiler")


# Compiled functions.


def set_cache(dispatcher: Any, cache: Any) -> None:
    """Let a jitted function ask this for compiled code: see `caching.Cache`."""
    dispatcher._cache = cache


def packed(compiled: Any) -> bytes:
    """A compiled function as bytes, without addresses of this process.

    Raises
    ------
    ValueError
        If it contains some.
    """
    if compiled.library.has_dynamic_globals:
        raise ValueError("the code contains addresses")
    return dumps(compiled._reduce())


def unpacked(context: Any, data: bytes) -> Any:
    """The compiled function of these bytes, loaded."""
    return CompileResult._rebuild(context, *pickle.loads(data))


def address_of(dispatcher: Dispatcher, variable: str | None = None) -> int:
    """Where the code of a jitted function begins, or where a variable of its module is."""
    (compiled,) = dispatcher.overloads.values()
    if variable is None:
        return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return compiled.library.codegen._engine.get_global_value_address(variable)


def entry_point(dispatcher: Dispatcher) -> Any:
    """What Python calls for the only version of a jitted function: it looks at no types."""
    (compiled,) = dispatcher.overloads.values()
    return compiled.entry_point


def of_global(value: Any) -> Any:
    """The type of what a global variable of compiled code holds."""
    return cpu_target.typing_context.resolve_value_type(value)


# Typing by other rules than Numba's: an own context, target, and kinds of functions.


class Rules(typing.Context):
    """Numba's rules of typing, for subclasses to change."""

    def __init__(self) -> None:
        self.__dict__ = cpu_target.typing_context.__dict__  # all that Numba knows, now and later

    def refresh(self) -> None:
        """Learn what is new; Numba's own context learns it, and not this one."""
        cpu_target.typing_context.refresh()


def typed_by(rules: Rules) -> tuple[type[Dispatcher], type[CFunc]]:
    """The classes of jitted functions, and of functions for C, that are typed by these rules."""

    class Target(CPUTarget):
        typing_context = property(lambda self: rules)
        target_context = property(lambda self: cpu_target.target_context)

    class Jitted(Dispatcher):
        targetdescr = Target("cpu")

    class ForC(CFunc):
        _targetdescr = Jitted.targetdescr

    return Jitted, ForC
