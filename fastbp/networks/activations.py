"""`Activation`: the functions that layers apply, built-in or defined by the user.

The formulas are in `maths.activations`; an `Activation` evaluates them on a backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import backends
from ..common.arrays import float_type, real_array
from ..common.errors import unknown_name
from ..maths.activations import NAMES, TABLE, ActivationSpec
from ..maths.symbols import TracedScalarFunctions, check_given_derivative
from ..maths.user_functions import ScalarFunctions


class Activation(ActivationSpec):
    """An elementwise function with its derivatives, usable wherever an activation's name is.

    The built-in ones come from `fastbp.activation` and the functions named after the parametrised
    ones (`fastbp.relu`, `fastbp.leaky_relu`, `fastbp.elu`, `fastbp.celu`). Calling the class makes
    a user-defined one from scalar Python functions.

    Parameters
    ----------
    name : str
        Its name; not that of a built-in one.
    f : callable
        float -> float, such as ``lambda z: z**3``; `math` and NumPy's functions of one number may
        be used. The compiled backends evaluate it in float32 in networks of float32, the reference
        in float64.
    df : callable, optional
        Its derivative, float -> float. Without it `f` is called once with a symbol, and its first
        and second derivatives follow from what it does: arithmetic, powers, abs, min, max,
        ``np.where``, ``np.select``, ``np.clip``, comparisons for these, and exp, exp2, expm1, log,
        log2, log10, log1p, sqrt, cbrt, hypot, sin, cos, tan, sinh, cosh, tanh, the inverses of
        these six, erf, erfc, sign and sigmoid of `math`, NumPy, `scipy.special` or
        `fastbp.jitted`.
        Functions with a `df` of yours are compiled once with Numba by both compiled backends, and
        are fast where their exp and tanh are those of `fastbp.jitted`.
    d2f : callable, optional
        Its second derivative. Beside a `df` of yours Hessian products raise without it.
    compile : bool, default False
        Without `df` the C backend evaluates the expressions of the function and its derivatives
        block by block, from the first call on; true has Numba compile them instead, which pays for
        long fits with functions of arithmetic alone.

    Attributes
    ----------
    name : str
    constant : float
        The parameter of a built-in function, such as the slope of a leaky relu; 0 where there is
        none.
    init : {"glorot", "he", "lecun"}
        The initial spread of the weights that suits the function.
    kind, keeps_z, functions, formulas, numbers
        What backends read: see `fastbp.maths.activations.ActivationSpec`.

    Raises
    ------
    ValueError
        For the name of a built-in function, or if `df` is not the derivative of `f`, or `d2f` not
        that of `df`: both are compared with differences at points in [-4, 4], and with the
        derivative that follows from the code, where one does, in [-34, 34].
    TraceError
        Without `df`, a ValueError, if `f` has something from which no derivative follows, such as a
        branch on a value; the message names it and its line.
    TypeError
        If a function is not callable or does not return a real number.

    Notes
    -----
    Activations are equal if their names and parameters, or functions, are. A user-defined one can
    be pickled if its functions are module-level ones, not lambdas.

    Without `df` the function itself, too, is evaluated by the expression that its code gives. Forms
    that overflow or lose digits are replaced: log(1 + e^z) by softplus, 1/(1 + e^-z) by the
    logistic function. At a corner of max, min or clip the derivative is that of the constant side,
    of abs 0, of a·z + b·abs(z) that of the left side; where corners of several of these meet at one
    point, all take the side that a ``where`` assigns the point to, or that below. NaN gives NaN,
    and at ±infinity values and derivatives are limits, if these exist. Global variables count with
    their values of then.

    Examples
    --------
    >>> import fastbp as fb
    >>> bump = fb.Activation("bump", lambda z: z / (1 + z**2))
    >>> bump.df([0.0, 1.0])
    array([1., 0.])
    >>> cubic = fb.Activation("cubic", lambda z: z**3, lambda z: 3 * z**2, lambda z: 6 * z)
    >>> cubic.df([1.0, 2.0])
    array([ 3., 12.])
    """

    __slots__ = ()

    def __init__(
        self,
        name: str,
        f: Callable,
        df: Callable | None = None,
        d2f: Callable | None = None,
        *,
        compile: bool = False,
    ):
        if not isinstance(name, str):
            raise TypeError(f"name is {name!r}, expected a string, such as 'P3'")
        if name in TABLE:
            raise ValueError(
                f"name is {name!r}, which is a built-in activation; give yours another name"
            )
        functions: ScalarFunctions
        if df is None:
            functions = TracedScalarFunctions(f, d2f, f"f of activation {name!r}", compile)
            df = functions.callables[1]
        else:
            functions = ScalarFunctions(f, df, d2f)
            check_given_derivative(f"df of activation {name!r}", "f", f, df)
        if d2f is not None:
            check_given_derivative(f"d2f of activation {name!r}", "df", df, d2f)
        super().__init__(name, 0.0, functions)

    @classmethod
    def _built_in(cls, name: str, constant: float = 0.0) -> Activation:
        activation = cls.__new__(cls)
        ActivationSpec.__init__(activation, name, constant)
        return activation

    def __reduce__(self) -> tuple[Any, ...]:
        if self.functions is None:
            return Activation._built_in, (self.name, self.constant)
        compile = self.functions.compile
        return _activation, (self.name, *self.functions.arguments, compile)

    def __repr__(self) -> str:
        if self.functions is not None:
            return f"<activation {self.name!r} of the user's own>"
        usual = BY_NAME[self.name]
        return repr(self.name) if self == usual else f"fb.{self.name}({self.constant:g})"

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
        return self._apply(Z, 0, backend)

    def df(self, Z: Any, *, backend: str | None = None) -> np.ndarray:
        """The derivative of act at Z with respect to Z, elementwise; arguments as for `f`."""
        return self._apply(Z, 1, backend)

    def d2f(self, Z: Any, *, backend: str | None = None) -> np.ndarray:
        """The second derivative of act at Z, elementwise; arguments as for `f`.

        Where it does not exist, as at the corner of a relu, it is taken as 0.

        Raises
        ------
        ValueError
            For a user-defined function with `df` and without `d2f`.
        """
        self.require_second()
        return self._apply(Z, 2, backend)

    def _apply(self, Z: Any, order: int, backend: str | None) -> np.ndarray:
        Z = real_array("Z", Z, float_type(Z))
        return backends.resolve(backend).activation(self, Z, order)

    def require_second(self) -> None:
        """Raise ValueError if the function was made without its second derivative."""
        if self.functions is not None and self.functions.d2f is None:
            raise ValueError(
                f"activation {self.name!r} has no second derivative, which Hessian products need; "
                f"make it as fastbp.Activation({self.name!r}, f, df, d2f), or without df"
            )


def _activation(name: str, f: Any, df: Any, d2f: Any, compile: bool) -> Activation:
    """For pickle, which passes no keywords."""
    return Activation(name, f, df, d2f, compile=compile)


def _require(name: str, value: float, in_range: bool, expected: str) -> None:
    """Raise ValueError unless a parameter is finite and in its range."""
    if not (np.isfinite(value) and in_range):
        raise ValueError(f"{name} is {value}, expected {expected}")


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
    _require("grad_at_zero", value, True, "a finite number (usually 0, 0.5 or 1)")
    return Activation._built_in("relu", value)


def leaky_relu(slope: float = 0.01) -> Activation:
    """z for z > 0, slope·z otherwise; the derivative at 0 is the slope, as in PyTorch.

    Parameters
    ----------
    slope : float, default 0.01
        At least 0, so that the output has the input's sign and the derivative follows from it.

    Raises
    ------
    ValueError
        If `slope` is negative or not finite.
    """
    value = float(slope)
    _require("slope", value, value >= 0, "a finite number >= 0 (0.01 is usual)")
    return Activation._built_in("leaky_relu", value)


def elu(alpha: float = 1.0) -> Activation:
    """z for z > 0, alpha·(e^z - 1) otherwise [1]_; the derivative at 0 is alpha.

    Parameters
    ----------
    alpha : float, default 1.0
        At least 0, so that the output has the input's sign and the derivative follows from it.

    Raises
    ------
    ValueError
        If `alpha` is negative or not finite.

    References
    ----------
    .. [1] D.-A. Clevert, T. Unterthiner, S. Hochreiter, "Fast and accurate deep network learning by
       exponential linear units (ELUs)", ICLR 2016.
    """
    value = float(alpha)
    _require("alpha", value, value >= 0, "a finite number >= 0 (1 is usual)")
    return Activation._built_in("elu", value)


def celu(alpha: float = 1.0) -> Activation:
    """z for z > 0, alpha·(e^(z/alpha) - 1) otherwise [1]_: an elu that is smooth for any alpha.

    Parameters
    ----------
    alpha : float, default 1.0
        Positive.

    Raises
    ------
    ValueError
        If `alpha` is not positive and finite.

    References
    ----------
    .. [1] J. T. Barron, "Continuously differentiable exponential linear units", arXiv:1704.07483,
       2017.
    """
    value = float(alpha)
    _require("alpha", value, value > 0, "a positive finite number (1 is usual)")
    return Activation._built_in("celu", value)


_USUAL = {"relu": 0.0, "leaky_relu": 0.01, "elu": 1.0, "celu": 1.0}
BY_NAME = {name: Activation._built_in(name, _USUAL.get(name, 0.0)) for name in NAMES}


def activation(name: str | Activation) -> Activation:
    """The activation of that name, with its usual parameters.

    Parameters
    ----------
    name : str or Activation
        One of "linear", "relu", "leaky_relu" (slope 0.01), "elu" and "celu" (alpha 1), "selu",
        "sigmoid", "tanh", "softplus", "softsign", "gelu" (exact), "gelu_tanh", "silu", "mish",
        "hard_tanh", "hard_sigmoid", "relu6", "exp", "sin"; an `Activation` is returned as it is.

    Returns
    -------
    Activation

    Raises
    ------
    ValueError
        For an unknown name; the message suggests the nearest.

    Notes
    -----
    σ is the logistic function, Φ the normal distribution's. softplus log(1 + e^z), softsign
    z/(1 + |z|), gelu z·Φ(z) and gelu_tanh ½z(1 + tanh(√(2/π)(z + 0.044715 z³))) [1]_, silu z·σ(z)
    [1]_, mish z·tanh(log(1 + e^z)) [2]_, selu 1.0507·elu(1.6733) [3]_, hard_tanh z cut to [-1, 1],
    hard_sigmoid (z + 3)/6 cut to [0, 1], relu6 z cut to [0, 6]. Derivatives at corners are those
    of the flat side.

    References
    ----------
    .. [1] D. Hendrycks, K. Gimpel, "Gaussian error linear units (GELUs)", arXiv:1606.08415, 2016.
    .. [2] D. Misra, "Mish: A self regularized non-monotonic activation function", BMVC 2020.
    .. [3] G. Klambauer et al., "Self-normalizing neural networks", NeurIPS 2017.

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
    act = BY_NAME.get(name) if isinstance(name, str) else None
    if act is None:
        raise ValueError(unknown_name("activation", name, NAMES))
    return act
