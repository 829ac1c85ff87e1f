"""The activations: functions compiled from the formulas of maths/formulas/activations.py.

Each kind becomes one function over memory, compiled when a network first has it; layers hold its
address.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...maths import activations as kinds
from ...maths.formulas import activations as formulas
from ...maths.formulas.vector import TwoWords
from .. import user_code
from .compiling import INTEGER, NOTHING, NUMBER, family, reals
from .vectors import as_real, call_c, elementwise

# What an activation's function computes, beside the function and its derivatives (0, 1, 2).
BACKWARD = 3

FORMULAS = {row.kind: formulas.FORMULAS[name] for name, row in kinds.TABLE.items()}


def _apply(order: int) -> Callable:
    def formula_of(kind: int) -> Callable:
        formula = FORMULAS[kind].of(order)
        return lambda out, x, c, low: (formula(x, TwoWords(c, low)),)

    return elementwise(formula_of, 2, 1, by_kind=True)


def _multiply_formula(kind: int) -> Callable:
    formula = FORMULAS[kind].df_from_y or FORMULAS[kind].df
    return lambda d, x, c, low: (d * formula(x, TwoWords(c, low)),)


_apply_f, _apply_df, _apply_d2f = map(_apply, range(3))
_multiply_by_df = elementwise(_multiply_formula, 2, 1, by_kind=True)


@family(NOTHING, INTEGER, INTEGER, reals, reals, NUMBER, INTEGER, kinds={*FORMULAS, kinds.USER})
def call_activation(kind):
    """The function of an activation; jitted code calls it by its address."""

    def activation(task, n, x, out, constant, user):
        """To out, which may be x: f, f' or f'' of n numbers x; or out times f', from y or z as x.

        `user` is the address of a user's own functions; for all others it is 0.
        """
        c = as_real(out, constant)
        low = as_real(out, constant - c)
        if task == BACKWARD:
            _multiply_by_df(kind, n, out, x, c, low)
        elif task == 0:
            _apply_f(kind, n, out, x, c, low)
        elif task == 1:
            _apply_df(kind, n, out, x, c, low)
        else:
            _apply_d2f(kind, n, out, x, c, low)

    def user_activation(task, n, x, out, constant, user):
        """The same by the functions that the user brought."""
        call_c(user, task, n, x, out)

    return user_activation if kind == kinds.USER else activation


def address(kind: int, dtype: np.dtype) -> int:
    """Of the function of an activation's kind."""
    return call_activation.address(dtype, kind)


def addresses(act: kinds.ActivationSpec, dtype: np.dtype) -> tuple[int, int]:
    """Of an activation's function, and of the user's own functions or 0."""
    user = 0 if act.functions is None else user_code.address(act.functions, dtype)
    return address(act.kind, dtype), user
