"""Functions to call from your own ``numba.njit`` code, and from Python as well.

`forward`, `value_and_grad`, `jacobian`, `dense_forward` and `dense_backward` do there what the
public functions of these names do, bitwise as with ``backend="numba"``; they need Numba. A loop
that is jitted, an integrator or a simulation, calls them as it calls NumPy's, also with
``nogil=True`` and inside ``prange``; a call takes some 0.1 µs beside the arithmetic. Networks,
objectives, and activations and losses that are no names, are arguments of the function that Python
calls. docs/jitted.md explains.

`exp`, `tanh` and `sigmoid` take one number. Unlike those of `math` they do not keep a loop from
becoming vector code, so activations and losses of your own are best written with them.

    functions   the functions as Python sees them, and what Numba is told of our classes
    overloads   their checks and implementations for the types of a call
    handles     networks and objectives as arguments, and the addresses of compiled functions
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .. import backends
from ..common.errors import BackendError
from ..maths.scalars import exp, sigmoid, tanh

if TYPE_CHECKING:
    from .functions import dense_backward, dense_forward, forward, jacobian, value_and_grad

__all__ = [
    "dense_backward",
    "dense_forward",
    "exp",
    "forward",
    "jacobian",
    "sigmoid",
    "tanh",
    "value_and_grad",
]

if backends.why_missing("numba") is None:  # else the scalar functions are Python's alone
    import_module("fastbp.backends.jit.scalars")
    from .functions import dense_backward, dense_forward, forward, jacobian, value_and_grad


def __getattr__(name: str) -> Any:
    if name in __all__:
        raise BackendError(f"fastbp.jitted.{name} cannot run here: {backends.why_missing('numba')}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
