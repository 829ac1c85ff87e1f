"""How the jitted functions are compiled: lazily, once per dtype, cached where that works."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

# NumPy's error model: a division by zero gives inf or nan and no branch. Contraction fuses
# multiply and add; nothing is reassociated.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract"},
    "no_cfunc_wrapper": True,  # nobody calls them through a C pointer
}


def inner(function: Callable) -> Callable:
    """A function that entries call, and Python never.

    As an overload of itself it is compiled for its arguments' types; as a jitted function it would
    be compiled for the values of constant arguments too, again and again.
    """
    overload(function, strict=False, jit_options={**_OPTIONS, "no_cpython_wrapper": True})(
        lambda *arguments: function
    )
    return function


# One that becomes part of its caller. LLVM optimizes a function's code again for each level of
# calls above it, which this saves.
part = numba.njit(inline="always", **_OPTIONS)

INTEGER = types.int64
FLAG = types.boolean
NUMBER = types.float64
NOTHING = types.void
PAIR = types.UniTuple(types.int64, 2)


def source_fingerprint() -> int:
    """A number that changes with any source file of which the compiled code is made.

    Numba keeps compiled functions by the time stamp of the one file that holds the entry, and would
    run old code after a change in another. But its key also contains the values that a function
    closes over, so each entry is made by a function of this number and closes over it.
    """
    here = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in [*sorted(here.glob("*.py")), here.parent / "polynomials.py"]:
        digest.update(path.name.encode() + path.read_bytes())
    for name in ("contract.py", "../activations.py", "../losses.py"):  # the numbers of the kinds
        digest.update((here.parent / name).read_bytes())
    return int.from_bytes(digest.digest()[:6], "little")


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


class Entry:
    """A function that Python calls, with declared argument types and one version per dtype.

    Parameters
    ----------
    make : callable
        fingerprint -> Python function, which must mention the fingerprint.
    returns : numba type
    arguments : sequence of numba types, or of functions from the real type to one
    """

    def __init__(self, make: Callable[[int], Callable], returns: Any, *arguments: Any):
        self._make = make
        self._returns = returns
        self._arguments = arguments
        self._lock = threading.Lock()
        self.dispatchers: dict[str, Any] = {}

    def __getitem__(self, dtype: np.dtype) -> Callable[..., Any]:
        """The version for float32 or float64, compiled at first use."""
        found = self.dispatchers.get(dtype.char)
        return found if found is not None else self._compile(dtype)

    def _compile(self, dtype: np.dtype) -> Callable[..., Any]:
        real = types.float32 if dtype == np.float32 else types.float64
        arguments = [a if isinstance(a, types.Type) else a(real) for a in self._arguments]
        signature = self._returns(*arguments)
        with self._lock:
            if dtype.char not in self.dispatchers:
                self.dispatchers[dtype.char] = self._cached(signature) or self._new(signature)
        return self.dispatchers[dtype.char]

    def _cached(self, signature: Any) -> Any:
        # The cache fails in many ways (no writable directory, a full disk, a damaged file, sources
        # that are not there) and none of them is a reason not to run. An error of the code itself
        # comes back without the cache.
        try:
            return self._new(signature, source_fingerprint(), cache=True)
        except Exception:
            return None

    def _new(self, signature: Any, fingerprint: int = 0, cache: bool = False) -> Any:
        dispatcher = numba.njit(cache=cache, **_OPTIONS)(self._make(fingerprint))
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher
