"""Activation functions: one table of names, formulas and what the backward pass must keep.

A row of the table is the mathematics in NumPy. The reference backend evaluates it as it stands; the
compiled backends implement the same rows under the same `kind` numbers and are tested against it.
To add an activation, add a row here and a case of its number in each backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._errors import unknown_name

# Numbers by which the backends know the functions; csrc/fastbp.h has the same.
LINEAR, RELU, LEAKY_RELU, SIGMOID, TANH, RELU_Z = range(6)


def _linear(z, _):
    return z


def _linear_derivative(z, _):
    return np.ones_like(z)


def _relu(z, _):
    return np.where(z < 0, 0, z)  # NaN is not < 0 and passes through


def _relu_derivative(z, grad_at_zero):
    return np.where(z > 0, 1, np.where(z < 0, 0, np.where(z == 0, grad_at_zero, z)))


def _leaky_relu(z, slope):
    return np.where(z > 0, z, slope * z)


def _leaky_relu_derivative(z, slope):
    return np.where(z > 0, 1, np.where(z <= 0, slope, z))


def _sigmoid(z, _):
    t = np.exp(-np.abs(z))  # never overflows
    return np.where(z < 0, t / (1 + t), 1 / (1 + t))


def _sigmoid_derivative(z, _):
    t = np.exp(-np.abs(z))
    return t / (1 + t) ** 2


def _sigmoid_derivative_from_y(y, _):
    return y * (1 - y)


def _tanh(z, _):
    return np.tanh(z)


def _tanh_derivative(z, _):
    t = np.exp(-2 * np.abs(z))  # 1 - tanh² cancels for large |z|; this does not
    return 4 * t / (1 + t) ** 2


def _tanh_derivative_from_y(y, _):
    return 1 - y * y


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    kind : int
        The number by which backends know the function.
    f, df : callable
        act(z, c) and its derivative with respect to z; c is the function's parameter if it has one.
    df_from_y : callable or None
        The derivative computed from y = act(z), where y determines it. Then the backward pass
        keeps Y; otherwise it must keep Z.
    init : {"glorot", "he"}
        The initial spread of the weights that suits the function.
    """

    kind: int
    f: Callable[..., np.ndarray]
    df: Callable[..., np.ndarray]
    df_from_y: Callable[..., np.ndarray] | None
    init: str = "glorot"


TABLE: dict[str, Row] = {
    "linear": Row(LINEAR, _linear, _linear_derivative, _linear_derivative),
    # With derivative 0 at zero y tells all; any other value there needs z (y is 0 for z < 0 too).
    "relu": Row(RELU, _relu, _relu_derivative, _relu_derivative, "he"),
    "relu_z": Row(RELU_Z, _relu, _relu_derivative, None, "he"),
    "leaky_relu": Row(
        LEAKY_RELU, _leaky_relu, _leaky_relu_derivative, _leaky_relu_derivative, "he"
    ),
    "sigmoid": Row(SIGMOID, _sigmoid, _sigmoid_derivative, _sigmoid_derivative_from_y),
    "tanh": Row(TANH, _tanh, _tanh_derivative, _tanh_derivative_from_y),
}


@dataclass(frozen=True)
class Activation:
    """An elementwise function with its derivative, usable wherever an activation's name is.

    Made by `fastbp.activation` and the functions named after the parametrised ones
    (`fastbp.relu`, `fastbp.leaky_relu`).

    Attributes
    ----------
    name : str
        The function's name.
    constant : float
        Its parameter, such as the slope of a leaky relu; 0 for functions without one.
    """

    name: str
    constant: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(unknown_name("activation", self.name, NAMES))

    def __repr__(self) -> str:
        usual = _BY_NAME[self.name]
        return repr(self.name) if self == usual else f"fb.{self.name}({self.constant:g})"

    @property
    def row(self) -> Row:
        """The function's line in the table."""
        if self.name == "relu" and self.constant != 0.0:
            return TABLE["relu_z"]
        return TABLE[self.name]

    @property
    def kind(self) -> int:
        """The number by which backends know the function."""
        return self.row.kind

    @property
    def keeps_z(self) -> bool:
        """Whether the derivative needs Z; otherwise Y is enough."""
        return self.row.df_from_y is None

    def f(self, Z: Any, *, backend: str | None = None) -> np.ndarray:
        """act(Z), elementwise.

        Parameters
        ----------
        Z : array_like of real numbers, any shape
        backend : str, optional
            Name of the backend; the current one by default.

        Returns
        -------
        numpy.ndarray, same shape as Z
            float32 for float32 and float16 input, float64 otherwise.
        """
        from ._kernels import apply_activation  # the table stands below the backends

        return apply_activation(self, Z, False, backend)

    def df(self, Z: Any, *, backend: str | None = None) -> np.ndarray:
        """The derivative of act at Z with respect to Z, elementwise; arguments as for `f`."""
        from ._kernels import apply_activation

        return apply_activation(self, Z, True, backend)


def relu(grad_at_zero: float = 0.0) -> Activation:
    """max(z, 0), with a chosen derivative at z = 0.

    Parameters
    ----------
    grad_at_zero : float, default 0.0
        The value taken for the derivative at exactly 0, any finite number; 0, 1/2 and 1 are all
        subgradients there.

    Raises
    ------
    ValueError
        If `grad_at_zero` is not finite.
    """
    value = float(grad_at_zero)
    if not np.isfinite(value):
        raise ValueError(f"grad_at_zero is {value}, expected a finite number (usually 0, 0.5 or 1)")
    return Activation("relu", value)


def leaky_relu(slope: float = 0.01) -> Activation:
    """z for z > 0, slope·z otherwise; the derivative at 0 is the slope, as in PyTorch.

    Parameters
    ----------
    slope : float, default 0.01
        At least 0, so that the output's sign tells the input's.

    Raises
    ------
    ValueError
        If `slope` is negative or not finite.
    """
    value = float(slope)
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"slope is {value}, expected a finite number >= 0 (0.01 is usual)")
    return Activation("leaky_relu", value)


NAMES = ("linear", "relu", "leaky_relu", "sigmoid", "tanh")

_BY_NAME: dict[str, Activation] = {
    "linear": Activation("linear"),
    "relu": relu(),
    "leaky_relu": leaky_relu(),
    "sigmoid": Activation("sigmoid"),
    "tanh": Activation("tanh"),
}


def activation(name: str | Activation) -> Activation:
    """The activation of that name, with its usual parameters.

    Parameters
    ----------
    name : str or Activation
        One of "linear", "relu", "leaky_relu", "sigmoid", "tanh"; an `Activation` is returned as it
        is.

    Returns
    -------
    Activation

    Raises
    ------
    ValueError
        For an unknown name; the message suggests the nearest.

    Examples
    --------
    >>> import fastbp as fb
    >>> fb.activation("relu").f([-1.0, 0.0, 2.0])
    array([0., 0., 2.])
    >>> fb.relu(grad_at_zero=0.5).df([-1.0, 0.0, 2.0])
    array([0. , 0.5, 1. ])
    """
    if isinstance(name, Activation):
        return name
    found = _BY_NAME.get(name) if isinstance(name, str) else None
    if found is None:
        raise ValueError(unknown_name("activation", name, NAMES))
    return found
