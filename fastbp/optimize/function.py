"""What the minimisers share: the caller's function, where a search starts and ends, who listens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import isfinite
from typing import Any, Protocol

import numpy as np

from ..common.arrays import FLOAT64, real_array, require_finite
from ..common.errors import NonFiniteError, ShapeError
from ..networks.objective import Objective

CONVERGED, MAXITER, MAXFUN, STUCK, STOPPED = 0, 1, 2, 3, 99

MESSAGES = {
    CONVERGED: "Converged: the gradient is zero within tol, or no further decrease can be "
    "resolved.",
    MAXITER: "The maximum number of iterations (maxiter) has been reached.",
    MAXFUN: "The maximum number of function evaluations (maxfun) has been reached.",
    STOPPED: "`callback` stopped the minimisation.",
}

# What this many units in the last place of f or x amount to is below what a fit can resolve.
_ROUNDING = 1000 * float(np.finfo(float).eps)


class Function:
    """The caller's function and its gradient, checked: x (n,) -> (f, g (n,)).

    Raises
    ------
    TypeError
        If there is no function, or later if it does not return a pair of real numbers.
    ValueError
        Without a gradient; the message names the `method` that needs it.
    """

    def __init__(self, method: str, fun: Any, jac: Any, args: Any):
        if isinstance(fun, Objective):
            fun, jac = fun.astype(FLOAT64).value_and_grad, True
        if not callable(fun):
            raise TypeError(f"fun is {fun!r}, expected a function or a network's objective")
        if jac is not True and not callable(jac):
            raise ValueError(
                f"jac is {jac!r}, and {method} needs the gradient: let fun return (value, "
                f"gradient) and pass jac=True, or pass a function as jac"
            )
        self.fun, self.jac = fun, jac
        self.args = args if isinstance(args, tuple) else (args,)

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        x = x.copy()  # theirs to write to
        if self.jac is True:
            pair = self.fun(x, *self.args)
            try:
                f, g = pair
            except (TypeError, ValueError):
                raise TypeError(
                    f"fun returned {type(pair).__name__}, expected the pair (value, gradient); "
                    f"if it returns the value alone, pass the gradient's function as jac"
                ) from None
        else:
            f = self.fun(x, *self.args)
            g = self.jac(x, *self.args)
        return float(f), derivative("the gradient", g, x)


def derivative(name: str, value: Any, x: np.ndarray) -> np.ndarray:
    """A vector that the caller's function gave at x, checked and copied."""
    if type(value) is not np.ndarray or value.dtype is not FLOAT64:
        value = real_array(name, value, FLOAT64)
    if value.shape != x.shape:
        raise ShapeError(f"{name} has shape {value.shape}, expected {x.shape}, that of x0")
    return value.copy()  # they may write into the same array again


# Where a search starts and ends.


def require_unbounded(method: str, bounds: Any, constraints: Any) -> None:
    """Raise ValueError for the limits that `scipy.optimize.minimize` passes on."""
    if bounds is not None or np.size(constraints):
        raise ValueError(
            f"{method} takes neither bounds nor constraints; SciPy's 'L-BFGS-B' takes bounds, "
            f"'SLSQP' and 'trust-constr' take both"
        )


def tolerance(tol: Any) -> float:
    """The largest entry of a gradient that counts as zero."""
    tol = 0.0 if tol is None else float(tol)
    if not tol >= 0:
        raise ValueError(f"tol is {tol}, expected a number >= 0")
    return tol


def starting_point(x0: Any) -> np.ndarray:
    """x0 as a new vector (n,) of finite numbers."""
    x = real_array("x0", x0, FLOAT64).copy()
    if x.ndim != 1 or x.size == 0:
        raise ShapeError(f"x0 has shape {x.shape}, expected a vector (n,) of at least one entry")
    require_finite("x0", x)
    return x


def require_usable(f: float, g: np.ndarray) -> None:
    """Raise NonFiniteError if no search can start from this value and gradient."""
    if not isfinite(f):
        raise NonFiniteError(f"fun is {f} at x0, expected a finite number; start elsewhere")
    require_finite("the gradient at x0", g)
    with np.errstate(over="ignore"):
        square = g.dot(g)
    if not isfinite(square):
        raise NonFiniteError(
            f"the gradient at x0 is as large as {np.abs(g).max():.3g} and its square overflows; "
            f"scale fun down or start elsewhere"
        )


def unresolvable(f: float, slope: float, x: np.ndarray, direction: np.ndarray, step: float) -> bool:
    """Whether a step along a direction of this slope changes f or x by no more than rounding."""
    return bool(
        -slope * step <= _ROUNDING * abs(f)
        or np.abs(direction).max() * abs(step) <= _ROUNDING * np.abs(x).max()
    )


# Who listens.


class Reached(Protocol):
    """What a callback is told of."""

    @property
    def x(self) -> np.ndarray: ...

    @property
    def f(self) -> float: ...


def listener(callback: Callable[..., Any] | None) -> Callable[[Reached], bool]:
    """A function of the current point that says whether the callback wants to stop."""
    if callback is None:
        return lambda point: False
    from scipy.optimize import OptimizeResult

    try:
        named = set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except ValueError:  # some built-in functions have no signature
        named = False

    def tell(point: Reached) -> bool:
        x = point.x.copy()
        try:
            if named:
                answer = callback(intermediate_result=OptimizeResult(x=x, fun=point.f))
            else:
                answer = callback(x)
        except StopIteration:
            return True
        return isinstance(answer, bool | np.bool_) and bool(answer)

    return tell
