"""User-defined functions of numbers, of which activations and losses are made.

The reference backend calls them as they are; the compiled backends call what
`backends.user_code` compiles from them, and C evaluates their programs where they have some.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

# The points at which derivatives are checked: irregular, so that none is a corner, in the range of
# reasonable networks' pre-activations.
POINTS = np.concatenate([np.linspace(-3.9173, 3.8791, 24), [-0.0173, 0.0191]])


class UserFunctions:
    """What activations and losses of a user's share.

    Attributes
    ----------
    callables : tuple
        The functions as backends evaluate them, None for one that is missing.
    compile : bool
        Whether the C backend has Numba compile them also where it has programs for them.
    roots : list of Expression or None
        The expressions of all of them, if these are known.
    programs : tuple of Program or None
        What computes them in C, if it is known and to be used.
    handles : dict
        What backends keep with the functions; copies begin without.
    """

    callables: tuple[Any, ...]
    compile = False
    roots: list[Any] | None = None
    programs: tuple[Any, ...] | None = None

    def __init__(self) -> None:
        self.handles: dict[str, Any] = {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UserFunctions):
            return NotImplemented
        return (self.callables, self.compile) == (other.callables, other.compile)

    def __hash__(self) -> int:
        return hash(self.callables)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"handles": {}}


class ScalarFunctions(UserFunctions):
    """A user-defined function of one number and its derivatives.

    Parameters
    ----------
    f, df : callable
        float -> float.
    d2f : callable, optional

    Attributes
    ----------
    callables : tuple
        (f, df, d2f), as backends evaluate them.
    arguments : tuple
        The same as the user passed them.
    d2f : callable or None
    programs : tuple of Program or None
        Of f, df, d2f, and f with df.

    Raises
    ------
    TypeError
        If one is not callable.
    """

    def __init__(self, f: Callable, df: Callable, d2f: Callable | None = None):
        super().__init__()
        for name, function in (("f", f), ("df", df), ("d2f", d2f)):
            require_callable(name, function, optional=name == "d2f")
        self.callables = (f, df, d2f)
        self.arguments: tuple[Callable | None, ...] = self.callables
        self.d2f = d2f

    def evaluate(self, order: int, Z: np.ndarray) -> np.ndarray:
        """The function (0) or a derivative (1, 2), by plain Python calls with float64 numbers.

        Where Python raises an arithmetic error the result is infinite after an overflow, else NaN.

        Parameters
        ----------
        order : {0, 1, 2}
        Z : numpy.ndarray of any shape

        Returns
        -------
        numpy.ndarray of float64, same shape
        """
        function = self.callables[order]
        values = [value_of(function, z) for z in Z.ravel().astype(np.float64)]
        return np.array(values, np.float64).reshape(Z.shape)


class PairFunctions(UserFunctions):
    """A user-defined loss of one prediction and its target.

    Parameters
    ----------
    f : callable
        (prediction, target) -> (loss, dloss/dprediction).
    d2 : callable, optional
        (prediction, target) -> d²loss/dprediction².

    Attributes
    ----------
    callables : tuple
        (f, d2).
    d2 : callable or None
    programs : tuple of Program or None
        Of the loss, the loss with its derivative, and d2.

    Raises
    ------
    TypeError
        If one is not callable.
    """

    def __init__(self, f: Callable, d2: Callable | None = None):
        super().__init__()
        require_callable("f", f)
        require_callable("d2", d2, optional=True)
        self.callables = (f, d2)
        self.d2 = d2

    def evaluate(self, Y: np.ndarray, T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loss and derivative for Y and T of one shape, both float64 arrays of that shape."""
        f = self.callables[0]
        values = [value_of(f, y, t) for y, t in _pairs(Y, T)]
        both = np.array([v if isinstance(v, tuple | list) else (v, v) for v in values], np.float64)
        both = both.reshape(*Y.shape, 2)
        return both[..., 0], both[..., 1]

    def second(self, Y: np.ndarray, T: np.ndarray) -> np.ndarray:
        """The second derivative, a float64 array of the shape of Y and T."""
        values = [value_of(self.d2, y, t) for y, t in _pairs(Y, T)]
        return np.array(values, np.float64).reshape(Y.shape)


def _pairs(Y: np.ndarray, T: np.ndarray) -> Any:
    return zip(Y.ravel().astype(np.float64), T.ravel().astype(np.float64), strict=True)


def require_callable(name: str, function: Any, optional: bool = False) -> None:
    if not (callable(function) or (optional and function is None)):
        raise TypeError(f"{name} is {function!r}, expected a function of numbers")


def value_of(function: Any, *numbers: Any) -> Any:
    """The function's result; infinity or NaN where Python raises an arithmetic error."""
    try:
        with np.errstate(all="ignore"):
            return function(*numbers)
    except OverflowError:
        return np.inf
    except (ZeroDivisionError, ValueError):  # ValueError: math domain error
        return np.nan


def check_derivative(what: str, of: str, f: Callable, df: Callable) -> None:
    """Compare df with difference quotients of f, except at points where these do not converge.

    Parameters
    ----------
    what, of : str
        How messages name df and f.
    f, df : callable
        float -> float.

    Raises
    ------
    ValueError
        If they disagree at a point, or no point allows a comparison.
    TypeError
        If a function does not return a real number.
    """
    compared = 0
    for z in POINTS:  # NumPy's numbers, as `evaluate` passes them
        claimed = number(what, df, z)
        steps = [1e-4 * 2.0**-k for k in range(3)]
        slopes = [(number(of, f, z + h) - number(of, f, z - h)) / (2 * h) for h in steps]
        # Richardson's extrapolation, twice; the change by the second bounds the error.
        first = [(4 * b - a) / 3 for a, b in pairwise(slopes)]
        estimate = (16 * first[1] - first[0]) / 15
        error = abs(estimate - first[1])
        scale = max(abs(estimate), abs(number(of, f, z)), 1.0)
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


def number(what: str, function: Callable, z: float) -> float:
    """function(z) as a float; TypeError, which names the function `what`, if it is no number."""
    result = value_of(function, z)
    try:
        return float(result)
    except (TypeError, ValueError):
        raise TypeError(
            f"{what}: the function returned {result!r} for {z:g}, expected a real number"
        ) from None
