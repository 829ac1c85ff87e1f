"""What users call from jitted code of their own (``@numba.njit``), and from Python as well.

`exp`, `tanh` and `sigmoid` take one number. Unlike those of `math` they do not keep a loop from
becoming vector code, so activations and losses of your own are best written with them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from ._scalars import exp, sigmoid, tanh

if find_spec("numba") is not None:  # without it they are functions of Python alone
    import_module("fastbp.backends.jit.scalars")

__all__ = ["exp", "sigmoid", "tanh"]
