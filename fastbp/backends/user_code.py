"""Compilation of user-defined activations and losses for the compiled backends.

Numba compiles each once, for both backends, to a function over arrays with a C address, so that
nothing else has to be compiled again. The C backend needs none of it for functions with programs.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

import numpy as np

from ..common.errors import BackendError
from ..maths.user_functions import PairFunctions, UserFunctions
from . import why_missing

_lock = threading.Lock()
_compiled: dict[tuple[Any, ...], Any] = {}


def address(functions: UserFunctions, dtype: np.dtype) -> int:
    """The address of the C function that evaluates the user's functions over vectors.

    Parameters
    ----------
    functions : ScalarFunctions or PairFunctions
    dtype : numpy.dtype
        float32 or float64: the type `real` below.

    Returns
    -------
    int
        Of ScalarFunctions: ``void (int64 order, int64 n, const real *z, real *out)``. out becomes
        the function (order 0) or a derivative (1, 2) of z, which it may be; or, as order 3, out
        times the first derivative.

        Of PairFunctions: ``double (int64 order, int64 n, const real *y, const real *t,
        const real *weights, real factor, real *d)``. It returns Σ w ℓ(y, t) of n pairs, and d
        becomes factor·w·ℓ' (order 1) or factor·w·ℓ'' (order 2); all weights w are 1 if that
        pointer is null.

    Raises
    ------
    BackendError
        If Numba cannot run here or cannot compile one of the functions.
    """
    key = functions, dtype.char
    compiled = _compiled.get(key)
    if compiled is None:
        with _lock:
            compiled = _compiled.get(key) or _compile(functions, dtype)
            _compiled[key] = compiled
    return compiled.address


def _compile(functions: UserFunctions, dtype: np.dtype) -> Any:
    reason = why_missing("numba")
    if reason is not None:
        raise BackendError(
            f"functions of your own run on the compiled backends through Numba: {reason}, or use "
            f"backend='numpy'"
        )
    # By name, since the Numba backend imports this file.
    user = importlib.import_module(".jit.user", __package__)
    is_loss = isinstance(functions, PairFunctions)
    compiled = user.compile_loss if is_loss else user.compile_activation
    try:
        return compiled(functions.callables, functions.roots, dtype)
    except Exception as error:  # as a rule `user.Refused`, which says where
        raise BackendError(
            f"Numba cannot compile your function; write it with numbers, math and NumPy's "
            f"functions of one number alone, or use backend='numpy', which calls it as it is. "
            f"The reason:\n{error}"
        ) from error
