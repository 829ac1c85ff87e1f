"""Functions of one number that users bring, for activations and losses of their own.

The reference backend calls them as they are. For the compiled backends Numba makes of them, once
and for both, a function over arrays with a plain C address, so that nothing else is compiled again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from ._errors import BackendError

# Where derivatives are checked: irregular points, so that they meet no corner, around those that
# pre-activations of reasonable networks take.
_POINTS = np.concatenate([np.linspace(-3.9173, 3.8791, 24), [-0.0173, 0.0191]])

_lock = threading.Lock()
_compiled: dict[tuple[Any, ...], Any] = {}


class ScalarFunctions:
    """A function of one number and its derivatives, as the backends call them.

    Parameters
    ----------
    f, df : callable
        float -> float.
    d2f : callable, optional

    Raises
    ------
    TypeError
        If one is not callable.
    """

    def __init__(self, f: Callable, df: Callable, d2f: Callable | None = None):
        for name, function in (("f", f), ("df", df), ("d2f", d2f)):
            _require_callable(name, function, optional=name == "d2f")
        self.given = (f, df, d2f)
        self.d2f = d2f

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScalarFunctions) and self.given == other.given

    def __hash__(self) -> int:
        return hash(self.given)

    def evaluate(self, order: int, Z: np.ndarray) -> np.ndarray:
        """The function (0) or a derivative (1, 2), elementwise in float64, by plain Python calls.

        Where Python raises an arithmetic error the result is what arithmetic gives: infinite after
        an overflow, else NaN.
        """
        function = self.given[order]
        values = [_value(function, z) for z in Z.ravel().astype(np.float64)]
        return np.array(values, np.float64).reshape(Z.shape)

    def address(self, dtype: np.dtype) -> int:
        """The address of void (int64 order, int64 n, const real *z, real *out).

        out becomes the function (order 0) or a derivative (1, 2) of z, which it may be; or, as
        order 3, out times the first derivative.

        Raises
        ------
        BackendError
            If Numba cannot run here or cannot compile one of the functions.
        """
        return _address("compile_activation", self.given, dtype)


class PairFunctions:
    """A loss of one prediction and its target, as the backends call it.

    Parameters
    ----------
    f : callable
        (prediction, target) -> (loss, dloss/dprediction).
    d2 : callable, optional
        (prediction, target) -> d²loss/dprediction².

    Raises
    ------
    TypeError
        If one is not callable.
    """

    def __init__(self, f: Callable, d2: Callable | None = None):
        _require_callable("f", f)
        _require_callable("d2", d2, optional=True)
        self.given = (f, d2)
        self.d2 = d2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PairFunctions) and self.given == other.given

    def __hash__(self) -> int:
        return hash(self.given)

    def evaluate(self, Y: np.ndarray, T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loss and derivative, elementwise in float64, by plain Python calls."""
        f = self.given[0]
        values = [_value(f, y, t) for y, t in _pairs(Y, T)]
        both = np.array([v if isinstance(v, tuple | list) else (v, v) for v in values], np.float64)
        both = both.reshape(*Y.shape, 2)
        return both[..., 0], both[..., 1]

    def second(self, Y: np.ndarray, T: np.ndarray) -> np.ndarray:
        """The second derivative, likewise."""
        values = [_value(self.d2, y, t) for y, t in _pairs(Y, T)]
        return np.array(values, np.float64).reshape(Y.shape)

    def address(self, dtype: np.dtype) -> int:
        """The address of double (order, n, const real *y, *t, *weights, real factor, real *d).

        Order and n are int64. It returns Σ w ℓ(y, t) of n pairs, and d becomes factor·w·ℓ' (order
        1) or factor·w·ℓ'' (order 2); all weights w are 1 if that pointer is null.

        Raises
        ------
        BackendError
            If Numba cannot run here or cannot compile one of the functions.
        """
        return _address("compile_loss", self.given, dtype)


def _pairs(Y: np.ndarray, T: np.ndarray) -> Any:
    return zip(Y.ravel().astype(np.float64), T.ravel().astype(np.float64), strict=True)


def _require_callable(name: str, function: Any, optional: bool = False) -> None:
    if not (callable(function) or (optional and function is None)):
        raise TypeError(f"{name} is {function!r}, expected a function of numbers")


def _value(function: Any, *numbers: Any) -> Any:
    """What the function returns; where Python raises an arithmetic error, infinity or NaN."""
    try:
        with np.errstate(all="ignore"):
            return function(*numbers)
    except OverflowError:
        return np.inf
    except (ZeroDivisionError, ValueError):  # ValueError: math domain error
        return np.nan


def _address(compiler: str, given: tuple[Any, ...], dtype: np.dtype) -> int:
    key = compiler, given, dtype.char
    found = _compiled.get(key)
    if found is None:
        with _lock:
            found = _compiled.get(key) or _compile(compiler, given, dtype)
            _compiled[key] = found
    return found.address


def _compile(compiler: str, given: tuple[Any, ...], dtype: np.dtype) -> Any:
    from . import backends

    reason = backends.why_missing("numba")
    if reason is not None:
        raise BackendError(
            f"functions of your own run on the compiled backends through Numba: {reason}, or use "
            f"backend='numpy'"
        )
    from .backends.jit import user

    try:
        return getattr(user, compiler)(given, dtype)
    except Exception as error:  # as a rule `user.Refused`, which says where
        raise BackendError(
            f"Numba cannot compile your function; write it with numbers, math and NumPy's "
            f"functions of one number alone, or use backend='numpy', which calls it as it is. "
            f"The reason:\n{error}"
        ) from error


def check_derivative(what: str, of: str, f: Callable, df: Callable) -> None:
    """Compare df with differences of f; points where those do not converge are passed over.

    Raises
    ------
    ValueError
        If they disagree at a point, or no point allows a comparison.
    TypeError
        If a function does not return a real number.
    """
    compared = 0
    for z in _POINTS:  # as NumPy's numbers, which is what `evaluate` passes on
        claimed = _number(what, df, z)
        steps = [1e-4 * 2.0**-k for k in range(3)]
        slopes = [(_number(of, f, z + h) - _number(of, f, z - h)) / (2 * h) for h in steps]
        # Richardson's extrapolation, twice; the change that the last one made bounds its error.
        first = [(4 * b - a) / 3 for a, b in pairwise(slopes)]
        estimate = (16 * first[1] - first[0]) / 15
        error = abs(estimate - first[1])
        scale = max(abs(estimate), abs(_number(of, f, z)), 1.0)
        if not error < 1e-6 * scale:  # a corner, a jump, or not a number
            continue
        compared += 1
        if not abs(claimed - estimate) <= 1e-5 * scale:
            raise ValueError(
                f"{what} is {claimed:.8g} at {z:g}, expected {estimate:.8g} ± {error:.1g}, the "
                f"difference quotient of {of} there; correct the derivative"
            )
    if compared == 0:
        raise ValueError(
            f"{what} cannot be checked: {of} has no finite difference quotient between -4 and 4; "
            f"expected a function that is differentiable almost everywhere there"
        )


def _number(what: str, function: Callable, z: float) -> float:
    result = _value(function, z)
    try:
        return float(result)
    except (TypeError, ValueError):
        raise TypeError(
            f"{what}: the function returned {result!r} for {z:g}, expected a real number"
        ) from None
