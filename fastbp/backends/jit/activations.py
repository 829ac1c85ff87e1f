"""The activations: formulas over vectors by kind, and the functions compiled from them.

Each kind becomes one function over memory, compiled when a network first has it; layers hold its
address. To add an activation, write its formulas here and its line in `FORMULAS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...activations import (
    LEAKY_RELU,
    LINEAR,
    RELU,
    RELU_Z,
    SIGMOID,
    TANH,
    USER,
    Activation,
)
from . import elementary
from .compiling import INTEGER, NOTHING, NUMBER, Family, reals
from .vectors import Vector, as_real, at, call_c, elementwise, elementwise_of, room_for

# What an activation's function computes, beside the function and its derivatives (0, 1, 2).
BACKWARD = 3

Formula = Callable[[Vector, Vector], Vector]  # of z (or y) and the activation's constant


def _zero(z: Vector, _: Vector) -> Vector:
    return z.lanes.constant(0).where(z.equals(z), z)


def _linear(z: Vector, _: Vector) -> Vector:
    return z


def _linear_derivative(z: Vector, _: Vector) -> Vector:
    return z.lanes.constant(1)


def _linear_second(z: Vector, _: Vector) -> Vector:
    return z.lanes.constant(0)


def _relu(z: Vector, _: Vector) -> Vector:
    return z.lanes.constant(0).where(z < 0, z)  # NaN is not < 0 and passes through


def _relu_derivative(z: Vector, at_zero: Vector) -> Vector:
    negative_or_nan = z.lanes.constant(0).where(z < 0, z)
    return z.lanes.constant(1).where(z > 0, at_zero.where(z.equals(0), negative_or_nan))


def _leaky_relu(z: Vector, slope: Vector) -> Vector:
    return z.where(z > 0, slope * z)


def _leaky_relu_derivative(z: Vector, slope: Vector) -> Vector:
    slope_or_nan = slope.where(z.lanes.builder.or_(z < 0, z.equals(0)), z)
    return z.lanes.constant(1).where(z > 0, slope_or_nan)


def _sigmoid(z: Vector, _: Vector) -> Vector:
    return elementary.sigmoid(z)


def _sigmoid_derivative(z: Vector, _: Vector) -> Vector:
    t = elementary.exp(-abs(z))
    return t / ((t + 1) * (t + 1))


def _sigmoid_second(z: Vector, c: Vector) -> Vector:
    return -_sigmoid_derivative(z, c) * elementary.tanh(z * 0.5)


def _sigmoid_derivative_from_y(y: Vector, _: Vector) -> Vector:
    return y * (-(y - 1))


def _tanh(z: Vector, _: Vector) -> Vector:
    return elementary.tanh(z)


def _tanh_derivative(z: Vector, _: Vector) -> Vector:
    t = elementary.exp(abs(z) * -2)  # 1 - tanh² cancels for large |z|; this does not
    return t * 4 / ((t + 1) * (t + 1))


def _tanh_second(z: Vector, c: Vector) -> Vector:
    return elementary.tanh(z) * -2 * _tanh_derivative(z, c)


def _tanh_derivative_from_y(y: Vector, _: Vector) -> Vector:
    return -(y * y - 1)


class Formulas(NamedTuple):
    """An activation and its derivatives; the last one is from y, or None if that needs z."""

    f: Formula
    df: Formula
    d2f: Formula
    df_from_y: Formula | None

    def of(self, task: int) -> Formula:
        """The formula for a task: a derivative's order, or BACKWARD."""
        return (self.f, self.df, self.d2f, self.df_from_y or self.df)[task]


FORMULAS = {
    LINEAR: Formulas(_linear, _linear_derivative, _linear_second, _linear_derivative),
    RELU: Formulas(_relu, _relu_derivative, _zero, _relu_derivative),
    RELU_Z: Formulas(_relu, _relu_derivative, _zero, None),
    LEAKY_RELU: Formulas(_leaky_relu, _leaky_relu_derivative, _zero, _leaky_relu_derivative),
    SIGMOID: Formulas(_sigmoid, _sigmoid_derivative, _sigmoid_second, _sigmoid_derivative_from_y),
    TANH: Formulas(_tanh, _tanh_derivative, _tanh_second, _tanh_derivative_from_y),
}


def _apply(task: int) -> Callable:
    def formula_of(kind: int) -> Callable:
        formula = FORMULAS[kind].of(task)
        return lambda out, x, c: (formula(x, c),)

    return elementwise_of(formula_of, 2, 1)


def _multiply_formula(kind: int) -> Callable:
    formula = FORMULAS[kind].of(BACKWARD)
    return lambda d, x, c: (d * formula(x, c),)


_apply_f, _apply_df, _apply_d2f = map(_apply, range(3))
_multiply_by_df = elementwise_of(_multiply_formula, 2, 1)
_multiply = elementwise(lambda d, slope: (d * slope,), 2, 1)

# Elements of a user's function at a time, where its results go through a buffer.
_CHUNK = 64


def _make_activation(fingerprint, kind):
    def activation(task, n, x, out, constant, user):
        """To out, which may be x: f, f' or f'' of n numbers x; or out times f', from y or z as x.

        `user` is the address of a user's own functions; for all others it is 0.
        """
        _ = fingerprint  # see compiling.source_fingerprint
        c = as_real(out, constant)
        if task == BACKWARD:
            _multiply_by_df(kind, n, out, x, c)
        elif task == 0:
            _apply_f(kind, n, out, x, c)
        elif task == 1:
            _apply_df(kind, n, out, x, c)
        else:
            _apply_d2f(kind, n, out, x, c)

    def user_activation(task, n, x, out, constant, user):
        """The same by the functions that the user brought."""
        _ = fingerprint, kind
        if task == BACKWARD:
            slopes = room_for(out, _CHUNK)
            for i in range(0, n, _CHUNK):
                m = min(_CHUNK, n - i)
                call_c(user, 1, m, at(x, i), slopes)
                _multiply(m, at(out, i), slopes)
        else:
            call_c(user, task, n, x, out)

    return user_activation if kind == USER else activation


_functions = Family(
    _make_activation, NOTHING, INTEGER, INTEGER, reals, reals, NUMBER, INTEGER
)  # fmt: skip
call_activation = _functions.call


def addresses(act: Activation, dtype: np.dtype) -> tuple[int, int]:
    """Of an activation's function, and of the user's own functions or 0."""
    user = 0 if act.functions is None else act.functions.address(dtype)
    return _functions.address(dtype, act.kind), user
