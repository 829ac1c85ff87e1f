"""What `fmincg`, `scg` and `levenberg_marquardt` share: checked functions, arguments, callbacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..common.arrays import FLOAT64, real_array, require_finite, whole_number
from ..common.errors import NonFiniteError, ShapeError
from ..networks.objective import Objective

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

CONVERGED, MAXITER, MAXFUN, STUCK, STOPPED = 0, 1, 2, 3, 99

MESSAGES = {
    CONVERGED: "Converged: the gradient is zero within tol, or no further decrease can be "
    "resolved.",
    MAXITER: "The maximum number of iterations (maxiter) has been reached.",
    MAXFUN: "The maximum number of function evaluations (maxfun) has been reached.",
    STOPPED: "`callback` stopped the minimisation.",
}

# A relative change of f or x by less than this many units in the last place is rounding.
_ROUNDING = 1000 * float(np.finfo(float).eps)


class Function:
    """The caller's function with its gradient: x (n,) -> (f, g (n,)), the results checked.

    Parameters
    ----------
    method : str
        The name of the method, for messages.
    fun, jac, args
        As `fmincg` takes them.

    Raises
    ------
    TypeError
        If `fun` is no function; in a call, if it does not return a pair of real numbers.
    ValueError
        Without a gradient.
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
        x = x.copy()  # the function may write to it
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
    """A vector (n,) that the caller's function returned at x (n,), checked and copied."""
    if type(value) is not np.ndarray or value.dtype is not FLOAT64:
        value = real_array(name, value, FLOAT64)
    if value.shape != x.shape:
        raise ShapeError(f"{name} has shape {value.shape}, expected {x.shape}, that of x0")
    return value.copy()  # the function may write into the same array again


# Arguments and start.


class Termination(NamedTuple):
    """When `fmincg` and `scg` stop: after maxiter iterations or maxfun evaluations, or by tol.

    `maxfun` is inf without a limit; `tol` is the largest entry of a gradient that counts as zero.
    """

    maxiter: int
    maxfun: float
    tol: float


def checked_termination(
    method: str, maxiter: Any, maxfun: Any, tol: Any, bounds: Any, constraints: Any
) -> Termination:
    """The numbers of a `Termination`, checked, for a method without bounds and constraints.

    Raises
    ------
    TypeError, ValueError
        For numbers out of range, and for the bounds and constraints that
        `scipy.optimize.minimize` passes to every method.
    """
    if bounds is not None or np.size(constraints):
        raise ValueError(
            f"{method} takes neither bounds nor constraints; SciPy's 'L-BFGS-B' takes bounds, "
            f"'SLSQP' and 'trust-constr' take both"
        )
    maxiter = whole_number("maxiter", maxiter)
    maxfun = inf if maxfun is None else whole_number("maxfun", maxfun)
    tol = 0.0 if tol is None else float(tol)
    if not tol >= 0:
        raise ValueError(f"tol is {tol}, expected a number >= 0")
    return Termination(maxiter, maxfun, tol)


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
    """Whether a step from x along `direction` (n,) changes f or x by no more than rounding.

    `slope` is the derivative of f along the direction; `step` is a multiple of it.
    """
    return bool(
        -slope * step <= _ROUNDING * abs(f)
        or np.abs(direction).max() * abs(step) <= _ROUNDING * np.abs(x).max()
    )


# Results and callbacks.


def result_of(
    x: np.ndarray, f: float, g: np.ndarray, status: int, message: str, history: list[float],
    **counts: int,
) -> OptimizeResult:  # fmt: skip
    """A result in SciPy's form; `counts` are nit, nfev and so on."""
    from scipy.optimize import OptimizeResult

    return OptimizeResult(
        x=x, fun=f, jac=g, **counts, status=status, success=status == CONVERGED, message=message,
        history=np.array(history),
    )  # fmt: skip


def stop_test(callback: Callable[..., Any] | None) -> Callable[[np.ndarray, float], bool]:
    """A function (x, f) -> bool that calls the callback, and returns whether it asks to stop.

    As SciPy does, it passes an ``intermediate_result`` if the callback's only argument has that
    name, else a copy of x. To return True or to raise StopIteration asks to stop.
    """
    if callback is None:
        return lambda x, f: False
    from scipy.optimize import OptimizeResult

    try:
        named = set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except ValueError:  # some built-in functions have no signature
        named = False

    def wants_to_stop(x: np.ndarray, f: float) -> bool:
        x = x.copy()
        try:
            if named:
                answer = callback(intermediate_result=OptimizeResult(x=x, fun=f))
            else:
                answer = callback(x)
        except StopIteration:
            return True
        return isinstance(answer, bool | np.bool_) and bool(answer)

    return wants_to_stop
