"""exp, tanh and sigmoid of single numbers, for jitted code outside fastbp.

They are the formulas of `elementary` once more, over scalars and without branches: LLVM makes
vector code of a loop over them, whatever else the loop does.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import types
from numba.extending import overload

from ...maths.formulas import elementary
from ...maths.scalars import exp, sigmoid, tanh
from .compiling import _OPTIONS
from .intrinsics import emits, like, same
from .vectors import Scalars, Vector

__all__ = ["exp", "sigmoid", "tanh"]


def _provide(function: Callable, formula: Callable[[Vector], Vector]) -> None:
    """Let jitted code call a function of one number."""

    @emits(like(0), same)
    def of_real(code, x):
        return formula(Vector(Scalars(code.builder, code.types[0]), x)).value

    # LLVM does not inline what it finds long, and does not vectorise calls.
    @overload(function, jit_options={**_OPTIONS, "forceinline": True})
    def of_number(x):
        if x in (types.float32, types.float64):
            return lambda x: of_real(x)
        if isinstance(x, types.Integer | types.Boolean):
            return lambda x: of_real(float(x))


_provide(exp, elementary.exp)
_provide(tanh, elementary.tanh)
_provide(sigmoid, elementary.sigmoid)
