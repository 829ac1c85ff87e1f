"""Activation functions: the table of their names, formulas and derivatives in NumPy.

The reference backend evaluates the formulas as they stand; the compiled backends implement the same
functions under the same `kind` numbers and are tested against it. CONTRIBUTING.md says how one
is added. A user-defined activation is made from scalar Python functions and needs no row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .user_functions import ScalarFunctions

# Numbers by which the backends know the functions. RELU_Z is relu with a derivative at 0 other than
# 0, USER a user-defined function.
(
    LINEAR, RELU, LEAKY_RELU, SIGMOID, TANH, RELU_Z, ELU, SELU, CELU, SOFTPLUS, SOFTSIGN, GELU,
    GELU_TANH, SILU, MISH, HARD_TANH, HARD_SIGMOID, RELU6, EXP, SIN, USER,
) = range(21)  # fmt: skip

# Klambauer et al., "Self-normalizing neural networks", NeurIPS 2017.
SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543773


# The formulas f(z, c), df(z, c), d2f(z, c) and df_from_y(y, c) of `Formulas`.


def _nan_like(z, value):
    """`value`, and NaN where z is NaN."""
    return np.where(np.isnan(z), z, value)


def _zero(z, _):
    return _nan_like(z, 0.0)


def _linear(z, _):
    return z


def _linear_derivative(z, _):
    return np.ones_like(z)


def _linear_second(z, _):
    return np.zeros_like(z)


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


def _sigmoid_second(z, _):
    return -_sigmoid_derivative(z, _) * np.tanh(z / 2)  # σ'(1 - 2σ)


def _sigmoid_third(z, _):
    slope = _sigmoid_derivative(z, _)
    return slope * (1 - 6 * slope)  # σ'(1 - 6σ(1 - σ))


def _sigmoid_derivative_from_y(y, _):
    return y * (1 - y)


def _tanh(z, _):
    return np.tanh(z)


def _tanh_derivative(z, _):
    t = np.exp(-2 * np.abs(z))  # 1 - tanh² cancels for large |z|; this does not
    return 4 * t / (1 + t) ** 2


def _tanh_second(z, _):
    return -2 * np.tanh(z) * _tanh_derivative(z, _)


def _tanh_third(z, _):
    slope = _tanh_derivative(z, _)
    return slope * (4 - 6 * slope)  # (6 tanh² - 2) tanh'


def _tanh_derivative_from_y(y, _):
    return 1 - y * y


# The exponential linear units: scale·z above 0, scale·a·(e^(z/b) - 1) below.


def _elu(z, alpha):
    return np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0)))


def _elu_derivative(z, alpha):
    return np.where(z > 0, 1, alpha * np.exp(np.minimum(z, 0)))


def _elu_second(z, alpha):
    return np.where(z > 0, 0, alpha * np.exp(np.minimum(z, 0)))


def _elu_derivative_from_y(y, alpha):
    return np.where(y > 0, 1, y + alpha)


def _selu(z, _):
    return SELU_SCALE * _elu(z, SELU_ALPHA)


def _selu_derivative(z, _):
    return SELU_SCALE * _elu_derivative(z, SELU_ALPHA)


def _selu_second(z, _):
    return SELU_SCALE * _elu_second(z, SELU_ALPHA)


def _selu_derivative_from_y(y, _):
    return np.where(y > 0, SELU_SCALE, y + SELU_SCALE * SELU_ALPHA)


def _celu(z, alpha):
    return np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0) / alpha))


def _celu_derivative(z, alpha):
    return np.where(z > 0, 1, np.exp(np.minimum(z, 0) / alpha))


def _celu_second(z, alpha):
    return np.where(z > 0, 0, np.exp(np.minimum(z, 0) / alpha) / alpha)


def _celu_third(z, alpha):
    return _celu_second(z, alpha) / alpha


def _celu_derivative_from_y(y, alpha):
    return np.where(y > 0, 1, y / alpha + 1)


def _softplus(z, _):
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def _softsign(z, _):
    # z / (1 + |z|) is NaN at infinity, this is not; near 0 it is the other way round.
    return np.where(np.abs(z) > 1, np.sign(z) / (1 + 1 / np.abs(z)), z / (1 + np.abs(z)))


def _softsign_derivative(z, _):
    return (1 / (1 + np.abs(z))) ** 2  # the square of the sum would overflow first


def _softsign_second(z, _):
    return -2 * np.sign(z) * (1 / (1 + np.abs(z))) ** 3


def _softsign_third(z, _):
    return 6 * np.sign(z) ** 2 * (1 / (1 + np.abs(z))) ** 4


def _softsign_derivative_from_y(y, _):
    return (1 - np.abs(y)) ** 2


def _times(z, factor):
    """z·factor, and 0 where the factor is 0 and z infinite."""
    return np.where((factor == 0) & np.isinf(z), 0 * factor, z * factor)


def _normal_cdf(z):
    from scipy.special import ndtr

    return ndtr(z)


def _normal_density(z):
    return np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)


def _gelu(z, _):
    return _times(z, _normal_cdf(z))


def _gelu_derivative(z, _):
    return _normal_cdf(z) + _times(z, _normal_density(z))


def _gelu_second(z, _):
    return _times(2 - z * z, _normal_density(z))


def _gelu_third(z, _):
    return _times(z * (z * z - 4), _normal_density(z))


# gelu_tanh: ½z(1 + tanh u) = z·σ(2u) with u = √(2/π)(z + 0.044715 z³).
_GELU_SLOPE, _GELU_CUBIC = np.sqrt(8 / np.pi), 0.044715  # 2u' at 0


def _gelu_tanh_inner(z):
    """2u and its first two derivatives; z is cut where σ(2u) has reached 0 or 1."""
    z = np.clip(z, -40, 40)
    return (
        _GELU_SLOPE * z * (1 + _GELU_CUBIC * z * z),
        _GELU_SLOPE * (1 + 3 * _GELU_CUBIC * z * z),
        _GELU_SLOPE * 6 * _GELU_CUBIC * z,
    )


def _gelu_tanh(z, _):
    return _times(z, _sigmoid(_gelu_tanh_inner(z)[0], _))


def _gelu_tanh_derivative(z, _):
    v, dv, _d2v = _gelu_tanh_inner(z)
    return _sigmoid(v, _) + _times(z, _sigmoid_derivative(v, _) * dv)


def _gelu_tanh_second(z, _):
    v, dv, d2v = _gelu_tanh_inner(z)
    s1, s2 = _sigmoid_derivative(v, _), _sigmoid_second(v, _)
    return 2 * s1 * dv + _times(z, s2 * dv * dv + s1 * d2v)


def _gelu_tanh_third(z, _):
    v, dv, d2v = _gelu_tanh_inner(z)
    d3v = 6 * _GELU_SLOPE * _GELU_CUBIC
    s1, s2, s3 = _sigmoid_derivative(v, _), _sigmoid_second(v, _), _sigmoid_third(v, _)
    of_gate = s3 * dv**3 + 3 * s2 * dv * d2v + s1 * d3v
    return 3 * (s2 * dv * dv + s1 * d2v) + _times(z, of_gate)


def _silu(z, _):
    return _times(z, _sigmoid(z, _))


def _silu_derivative(z, _):
    return _sigmoid(z, _) + _times(z, _sigmoid_derivative(z, _))


def _silu_second(z, _):
    return 2 * _sigmoid_derivative(z, _) + _times(z, _sigmoid_second(z, _))


def _silu_third(z, _):
    return 3 * _sigmoid_second(z, _) + _times(z, _sigmoid_third(z, _))


# mish: z·w with w = tanh(softplus z), whose derivative is (1 - w²)σ.


def _mish_weight(z):
    t = np.exp(-np.abs(z))
    below = t * (t + 2) / (t * (t + 2) + 2)
    return np.where(z < 0, below, (1 + 2 * t) / (1 + 2 * t * (1 + t)))


def _mish_weight_derivatives(z):
    # With t = e^-|z| one has w' = 4 e^z (1 + e^z) / (e^2z + 2 e^z + 2)².
    t = np.exp(-np.abs(z))
    below = 4 * t * (1 + t) / (t * (t + 2) + 2) ** 2
    above = 4 * t * (1 + t) * t / (1 + 2 * t * (1 + t)) ** 2
    first = np.where(z < 0, below, above)
    s, ds, w = _sigmoid(z, None), _sigmoid_derivative(z, None), _mish_weight(z)
    share = 1 - s - 2 * w * s
    third = first * (share * share - ds - 2 * (first * s + w * ds))
    return first, first * share, third


def _mish(z, _):
    return _times(z, _mish_weight(z))


def _mish_derivative(z, _):
    return _mish_weight(z) + _times(z, _mish_weight_derivatives(z)[0])


def _mish_second(z, _):
    first, second, _third = _mish_weight_derivatives(z)
    return 2 * first + _times(z, second)


def _mish_third(z, _):
    _first, second, third = _mish_weight_derivatives(z)
    return 3 * second + _times(z, third)


def _hard_tanh(z, _):
    return np.where(z > 1, 1, np.where(z < -1, -1, z))


def _hard_tanh_derivative(z, _):
    return _nan_like(z, np.abs(z) < 1)


def _hard_sigmoid(z, _):
    return np.where(z > 3, 1, np.where(z < -3, 0, (z + 3) / 6))


def _hard_sigmoid_derivative(z, _):
    return _nan_like(z, np.where(np.abs(z) < 3, 1 / 6, 0))


def _relu6(z, _):
    return np.where(z > 6, 6, np.where(z < 0, 0, z))


def _relu6_derivative(z, _):
    return _nan_like(z, (z > 0) & (z < 6))


def _exp(z, _):
    return np.exp(z)


def _exp_derivative_from_y(y, _):
    return y


def _sin(z, _):
    return np.sin(z)


def _sin_derivative(z, _):
    return np.cos(z)


def _sin_second(z, _):
    return -np.sin(z)


def _sin_third(z, _):
    return -np.cos(z)


@dataclass(frozen=True)
class Formulas:
    """A built-in activation: a row of `TABLE`.

    Attributes
    ----------
    kind : int
        The number by which backends know the function.
    f, df, d2f, d3f : callable
        (z, c) -> act(z) and its derivatives with respect to z, elementwise for float64 arrays; c is
        the function's parameter if it has one. Where a higher derivative does not exist it is 0.
    df_from_y : callable or None
        (y, c) -> the first derivative, where y = act(z) determines it. Then the forward pass stores
        only Y for the backward pass; otherwise it stores Z.
    init : {"glorot", "he", "lecun"}
        The initial spread of the weights that suits the function.
    c, matlab : str
        The function as an expression of z and c in C (with math.h, in double) and in MATLAB, where
        z is an array.
    onnx : str
        The operators of ONNX as an expression of z and c, in opset 20.
    """

    kind: int
    f: Callable[..., np.ndarray]
    df: Callable[..., np.ndarray]
    d2f: Callable[..., np.ndarray]
    d3f: Callable[..., np.ndarray]
    df_from_y: Callable[..., np.ndarray] | None
    init: str
    c: str
    matlab: str
    onnx: str

    def of(self, order: int) -> Callable[..., np.ndarray]:
        """The derivative of this order; 0 is the function."""
        return (self.f, self.df, self.d2f, self.d3f)[order]


TABLE: dict[str, Formulas] = {
    "linear": Formulas(
        LINEAR,
        _linear,
        _linear_derivative,
        _linear_second,
        _linear_second,
        _linear_derivative,
        "glorot",
        c="z",
        matlab="z",
        onnx="Identity(z)",
    ),
    # With derivative 0 at zero y is enough; any other value there needs z (y is 0 for z < 0 too).
    "relu": Formulas(
        RELU,
        _relu,
        _relu_derivative,
        _zero,
        _zero,
        _relu_derivative,
        "he",
        c="z < 0 ? 0 : z",
        matlab="max(z, 0)",
        onnx="Relu(z)",
    ),
    "relu_z": Formulas(
        RELU_Z,
        _relu,
        _relu_derivative,
        _zero,
        _zero,
        None,
        "he",
        c="z < 0 ? 0 : z",
        matlab="max(z, 0)",
        onnx="Relu(z)",
    ),
    "leaky_relu": Formulas(
        LEAKY_RELU,
        _leaky_relu,
        _leaky_relu_derivative,
        _zero,
        _zero,
        _leaky_relu_derivative,
        "he",
        c="z > 0 ? z : c * z",
        matlab="max(z, 0) + c * min(z, 0)",
        onnx="LeakyRelu(z, alpha=c)",
    ),
    "elu": Formulas(
        ELU,
        _elu,
        _elu_derivative,
        _elu_second,
        _elu_second,
        _elu_derivative_from_y,
        "he",
        c="z > 0 ? z : c * expm1(z)",
        matlab="max(z, 0) + c * expm1(min(z, 0))",
        onnx="Elu(z, alpha=c)",
    ),
    "selu": Formulas(
        SELU,
        _selu,
        _selu_derivative,
        _selu_second,
        _selu_second,
        _selu_derivative_from_y,
        "lecun",
        c="1.0507009873554805 * (z > 0 ? z : 1.6732632423543773 * expm1(z))",
        matlab="1.0507009873554805 * (max(z, 0) + 1.6732632423543773 * expm1(min(z, 0)))",
        onnx="Selu(z, alpha=1.6732632423543773, gamma=1.0507009873554805)",
    ),
    "celu": Formulas(
        CELU,
        _celu,
        _celu_derivative,
        _celu_second,
        _celu_third,
        _celu_derivative_from_y,
        "he",
        c="z > 0 ? z : c * expm1(z / c)",
        matlab="max(z, 0) + c * expm1(min(z, 0) / c)",
        onnx="Celu(z, alpha=c)",
    ),
    "sigmoid": Formulas(
        SIGMOID,
        _sigmoid,
        _sigmoid_derivative,
        _sigmoid_second,
        _sigmoid_third,
        _sigmoid_derivative_from_y,
        "glorot",
        c="1 / (1 + exp(-z))",
        matlab="1 ./ (1 + exp(-z))",
        onnx="Sigmoid(z)",
    ),
    "tanh": Formulas(
        TANH,
        _tanh,
        _tanh_derivative,
        _tanh_second,
        _tanh_third,
        _tanh_derivative_from_y,
        "glorot",
        c="tanh(z)",
        matlab="tanh(z)",
        onnx="Tanh(z)",
    ),
    "softplus": Formulas(
        SOFTPLUS,
        _softplus,
        _sigmoid,
        _sigmoid_derivative,
        _sigmoid_second,
        None,
        "glorot",
        c="fmax(z, 0) + log1p(exp(-fabs(z)))",
        matlab="max(z, 0) + log1p(exp(-abs(z)))",
        onnx="Softplus(z)",
    ),
    "softsign": Formulas(
        SOFTSIGN,
        _softsign,
        _softsign_derivative,
        _softsign_second,
        _softsign_third,
        _softsign_derivative_from_y,
        "glorot",
        c="z / (1 + fabs(z))",
        matlab="z ./ (1 + abs(z))",
        onnx="Softsign(z)",
    ),
    "gelu": Formulas(
        GELU,
        _gelu,
        _gelu_derivative,
        _gelu_second,
        _gelu_third,
        None,
        "he",
        c="0.5 * z * erfc(-0.7071067811865476 * z)",
        matlab="0.5 * z .* erfc(-0.7071067811865476 * z)",
        onnx="Gelu(z)",
    ),
    "gelu_tanh": Formulas(
        GELU_TANH,
        _gelu_tanh,
        _gelu_tanh_derivative,
        _gelu_tanh_second,
        _gelu_tanh_third,
        None,
        "he",
        c="z / (1 + exp(-1.5957691216057308 * z * (1 + 0.044715 * z * z)))",
        matlab="z ./ (1 + exp(-1.5957691216057308 * z .* (1 + 0.044715 * z .* z)))",
        onnx='Gelu(z, approximate="tanh")',
    ),
    "silu": Formulas(
        SILU,
        _silu,
        _silu_derivative,
        _silu_second,
        _silu_third,
        None,
        "he",
        c="z / (1 + exp(-z))",
        matlab="z ./ (1 + exp(-z))",
        onnx="Mul(z, Sigmoid(z))",
    ),
    "mish": Formulas(
        MISH,
        _mish,
        _mish_derivative,
        _mish_second,
        _mish_third,
        None,
        "he",
        c="z * tanh(fmax(z, 0) + log1p(exp(-fabs(z))))",
        matlab="z .* tanh(max(z, 0) + log1p(exp(-abs(z))))",
        onnx="Mish(z)",
    ),
    "hard_tanh": Formulas(
        HARD_TANH,
        _hard_tanh,
        _hard_tanh_derivative,
        _zero,
        _zero,
        _hard_tanh_derivative,
        "glorot",
        c="z > 1 ? 1 : z < -1 ? -1 : z",
        matlab="min(max(z, -1), 1)",
        onnx="Clip(z, -1, 1)",
    ),
    # y rounds to 0 and 1 before z reaches the corners, so z is needed.
    "hard_sigmoid": Formulas(
        HARD_SIGMOID,
        _hard_sigmoid,
        _hard_sigmoid_derivative,
        _zero,
        _zero,
        None,
        "glorot",
        c="z > 3 ? 1 : z < -3 ? 0 : (z + 3) / 6",
        matlab="(min(max(z, -3), 3) + 3) / 6",
        onnx="HardSigmoid(z, alpha=0.16666666666666666, beta=0.5)",
    ),
    "relu6": Formulas(
        RELU6,
        _relu6,
        _relu6_derivative,
        _zero,
        _zero,
        _relu6_derivative,
        "he",
        c="z > 6 ? 6 : z < 0 ? 0 : z",
        matlab="min(max(z, 0), 6)",
        onnx="Clip(z, 0, 6)",
    ),
    "exp": Formulas(
        EXP,
        _exp,
        _exp,
        _exp,
        _exp,
        _exp_derivative_from_y,
        "glorot",
        c="exp(z)",
        matlab="exp(z)",
        onnx="Exp(z)",
    ),
    "sin": Formulas(
        SIN,
        _sin,
        _sin_derivative,
        _sin_second,
        _sin_third,
        None,
        "glorot",
        c="sin(z)",
        matlab="sin(z)",
        onnx="Sin(z)",
    ),
}

NAMES = tuple(name for name in TABLE if name != "relu_z")


class ActivationSpec:
    """All that a backend reads of an activation; `networks.activations.Activation` adds the rest.

    Parameters
    ----------
    name : str
        A name of `TABLE`, or that of a user-defined function.
    constant : float, default 0.0
        The parameter of a built-in function.
    functions : ScalarFunctions, optional
        A user-defined function.

    Attributes
    ----------
    name : str
    constant : float
        The parameter of a built-in function, such as the slope of a leaky relu; 0 where there is
        none.
    functions : ScalarFunctions or None
        The user-defined function, None for a built-in one.
    formulas : Formulas or None
        Those of a built-in function.
    kind : int
        The number by which backends know the function.
    keeps_z : bool
        Whether the derivative needs Z; otherwise Y is enough.
    init : {"glorot", "he", "lecun"}
        The initial spread of the weights that suits the function.
    numbers : tuple or None
        (kind, constant, keeps_z) of a built-in function, for code that reads them all at once.
    """

    __slots__ = ("constant", "formulas", "functions", "init", "keeps_z", "kind", "name", "numbers")

    name: str
    constant: float
    functions: ScalarFunctions | None
    formulas: Formulas | None
    kind: int
    keeps_z: bool
    init: str
    numbers: tuple[int, float, bool] | None

    def __init__(self, name: str, constant: float = 0.0, functions: ScalarFunctions | None = None):
        formulas, kind, keeps_z, init, numbers = None, USER, True, "glorot", None
        if functions is None:
            formulas = TABLE["relu_z" if name == "relu" and constant != 0.0 else name]
            kind, keeps_z, init = formulas.kind, formulas.df_from_y is None, formulas.init
            numbers = kind, constant, keeps_z
        values = constant, formulas, functions, init, keeps_z, kind, name, numbers
        for attribute, value in zip(ActivationSpec.__slots__, values, strict=True):
            object.__setattr__(self, attribute, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("an Activation cannot be changed; make another one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("an Activation cannot be changed; make another one")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActivationSpec):
            return NotImplemented
        return (self.name, self.constant, self.functions) == (
            other.name, other.constant, other.functions,
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash((self.name, self.constant, self.functions))
