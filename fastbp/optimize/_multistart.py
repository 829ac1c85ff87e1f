"""`multistart` of functions and objectives: one method from many starting points."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.arrays import FLOAT64, real_array, require_finite, whole_number
from ..common.errors import ShapeError
from ..networks.objective import Objective
from ..training.progress import progress_bar
from ._levenberg_marquardt import levenberg_marquardt
from .function import STOPPED
from .minima import EndPoint, MultistartResult, as_multistart_result, checked_tolerance
from .scipy_methods import LEAST_SQUARES, MINIMIZERS, canonical_name, least_squares, minimize
from .starts import Halt, checked_seed, child_seeds, one_at_a_time, run_starts
from .symmetry import canonical

if TYPE_CHECKING:
    from scipy.optimize import Bounds, OptimizeResult

LM = "levenberg_marquardt"
BY_RESIDUALS = (LM, *LEAST_SQUARES)  # methods for functions that return residuals
N_STARTS = 32  # are drawn by default


def multistart(
    fun: Callable[..., Any] | Objective,
    starts: Any,
    method: str = LM,
    *,
    n_starts: int | None = None,
    jac: Any = None,
    seed: int | None = None,
    threads: int = 1,
    max_time: float | None = None,
    progress: bool | str = "auto",
    rtol: float = 1e-3,
    atol: float = 1e-8,
    **options: Any,
) -> MultistartResult:
    """Minimise a function from many starts, and sort the minima into clusters.

    Parameters
    ----------
    fun : callable or Objective
        For least-squares methods ``fun(x, *args) -> r`` (m,), else ``fun(x, *args) -> (f, g)``, a
        number and the gradient (n,), or f alone with `jac`; or a network's objective.
    starts : array_like (n_starts, n), callable or scipy.optimize.Bounds
        The points to start from, a row each; or ``starts(rng) -> x0`` (n,), which draws one with a
        `numpy.random.Generator`; or the bounds of a box, in which they are drawn as a Latin
        hypercube [1]_: each of n_starts equal slices along each axis has one.
    method : str
        "levenberg_marquardt"; a least-squares method of SciPy, "trf", "dogbox" or "lm"; or one that
        `minimize` knows, such as "L-BFGS-B" or "fmincg".
    n_starts : int, optional
        How many are drawn, 32 by default; not allowed if `starts` are points.
    jac : callable, optional
        The derivative: of residuals ``jac(x, *args)`` (m, n), or what else the method takes as
        such; of a function that returns f alone its gradient.
    seed : int, optional
        Draws the starts; by default a new one, which the result has. Not allowed if `starts` are
        points.
    threads : int, default 1
        How many starts run at once. The results do not depend on it. Python runs one thread at a
        time: functions of Python's own gain nothing, those that compute in NumPy's or a network's
        larger calls do.
    max_time : float, optional
        Seconds for all starts together. The starts that are running then end at the best point they
        met, and no more are begun; starts of an `Objective` run to their end.
    progress : {"auto", True, False}
        A bar that counts the starts, as that of `fastbp.fit`.
    rtol, atol : float
        Objectives f <= g belong to one cluster if g - f <= rtol·|f| + atol, f being its lowest.
        Points there are the same if no entry differs by more than sqrt(rtol) of its size.
    **options
        What the method takes: ``args``, ``bounds``, ``maxiter``, ...

    Returns
    -------
    MultistartResult
        Also after Ctrl-C, with the results so far.

    Raises
    ------
    ShapeError, TypeError, ValueError
        For starts of another shape, numbers out of range, or unknown names.
    NonFiniteError
        If a start is not finite.
    Exception
        That of the first start, if all raised one.

    Notes
    -----
    A start that raises an exception does not end the others. A cluster runs away if its starts did
    not come to one point, and their entries have become over 1000 times as large as any start's, or
    10 times and the larger the lower the objective is.

    References
    ----------
    .. [1] M. D. McKay, R. J. Beckman, W. J. Conover, "A comparison of three methods for selecting
       values of input variables in the analysis of output from a computer code", Technometrics
       21(2), 1979.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> def two_wells(x):
    ...     return float((x[0] ** 2 - 1) ** 2 + 0.2 * x[0]), 4 * x * (x**2 - 1) + 0.2
    >>> ms = fb.optimize.multistart(two_wells, [[-2.0], [0.5], [2.0]], "L-BFGS-B")
    >>> ms.x.round(3).ravel()
    array([-1.024,  0.974,  0.974])
    >>> [len(cluster.members) for cluster in ms.clusters]
    [1, 2]
    """
    method = canonical_name(method, (*BY_RESIDUALS, *MINIMIZERS))
    solve = _solver(method, fun, jac, options)
    clustering = {
        "rtol": checked_tolerance("rtol", rtol),
        "atol": checked_tolerance("atol", atol),
    }
    points, seed, seeds = _points(starts, n_starts, seed)
    halt = Halt(max_time)
    outcomes, status = run_starts(
        lambda k: solve(points[k].copy(), halt),
        len(points),
        whole_number("threads", threads),
        halt,
        progress_bar(progress, len(points)),
        objective_of,
    )
    net = fun.net if isinstance(fun, Objective) else None
    return as_multistart_result(
        outcomes,
        _end_point,
        points,
        seeds,
        np.asarray if net is None else partial(canonical, net),
        **clustering,
        **status,
        seed=seed,
        method=method,
    )


# Where to start.


def _points(
    starts: Any, n_starts: Any, seed: Any
) -> tuple[np.ndarray, int | None, np.ndarray | None]:
    """The starts (n_starts, n), the seed, and the seed of each if they were drawn one by one."""
    from scipy.optimize import Bounds

    if not (callable(starts) or isinstance(starts, Bounds)):
        for name, value in (("n_starts", n_starts), ("seed", seed)):
            if value is not None:
                raise ValueError(
                    f"{name} is {value!r}, but starts are points, not a function or bounds to draw "
                    f"them from; leave {name} out"
                )
        return _checked_points(real_array("starts", starts, FLOAT64)), None, None
    n = whole_number("n_starts", N_STARTS if n_starts is None else n_starts)
    seed = checked_seed(seed)
    if isinstance(starts, Bounds):
        return _latin_hypercube(starts, n, np.random.default_rng(seed)), seed, None
    seeds = child_seeds(seed, n)
    points = [np.ravel(starts(np.random.default_rng(child))) for child in seeds]
    return _checked_points(real_array("starts", points, FLOAT64)), seed, seeds


def _checked_points(points: np.ndarray) -> np.ndarray:
    """The points (n_starts, n); raises for another shape and for numbers that are not finite."""
    if points.ndim != 2 or points.size == 0:
        hint = "; one start is starts.reshape(1, -1)" if points.ndim == 1 and points.size else ""
        raise ShapeError(
            f"starts has shape {points.shape}, expected (n_starts, n): a row per start{hint}"
        )
    require_finite("starts", points)
    return points


def _latin_hypercube(box: Bounds, n: int, rng: np.random.Generator) -> np.ndarray:
    """n points (n, n_params) in a box: along each axis one in each of n equal slices."""
    lower, upper = np.broadcast_arrays(*map(np.atleast_1d, (box.lb, box.ub)))
    if lower.ndim != 1 or not (np.isfinite(lower) & np.isfinite(upper) & (lower <= upper)).all():
        raise ValueError(
            f"starts is {box}, expected finite bounds with lower <= upper, an entry for each "
            f"parameter; infinite ones leave nothing to draw from"
        )
    slices = rng.permuted(np.tile(np.arange(n), (len(lower), 1)), axis=1).T
    return lower + (upper - lower) * (slices + rng.random(slices.shape)) / n


# One start.


def _solver(
    method: str, fun: Any, jac: Any, options: dict[str, Any]
) -> Callable[[np.ndarray, Halt], OptimizeResult]:
    """A function that runs the method from x0 (n,)."""
    by_residuals = method in BY_RESIDUALS
    if not callable(fun) and not isinstance(fun, Objective):
        raise TypeError(f"fun is {fun!r}, expected a function or a network's objective")
    if options.get("callback") is not None:
        options = options | {"callback": one_at_a_time(options["callback"])}

    def solve(x0: np.ndarray, halt: Halt) -> OptimizeResult:
        function = fun
        if not isinstance(fun, Objective):
            function = _HaltableFunction(fun, by_residuals, x0, halt)
        try:
            result = _run_method(method, function, x0, jac, options)
            return _without_matrices(result, by_residuals)
        except KeyboardInterrupt as error:
            if isinstance(function, Objective):
                raise
            if not isinstance(error, _Halted):
                halt.interrupted.set()
            return function.best_result()

    return solve


def _run_method(method: str, fun: Any, x0: np.ndarray, jac: Any, options: dict[str, Any]) -> Any:
    if method in BY_RESIDUALS:
        if jac is not None:
            options = options | {"jac": jac}
        if method == LM:
            return levenberg_marquardt(fun, x0, **options)
        return least_squares(fun, x0, method, **options)
    if jac is None:
        return minimize(fun, x0, method, **options)
    return minimize(lambda x, *args: (fun(x, *args), jac(x, *args)), x0, method, **options)


class _Halted(KeyboardInterrupt):
    """Ends a method from within the function; not an Exception, which a method may catch."""


class _HaltableFunction:
    """The caller's function, which keeps the best point and raises _Halted when `halt` says so.

    Parameters
    ----------
    fun : callable
    by_residuals : bool
        Whether it returns residuals.
    x0 : numpy.ndarray (n,)
    halt : Halt
    """

    def __init__(self, fun: Callable[..., Any], by_residuals: bool, x0: np.ndarray, halt: Halt):
        self._fun, self._by_residuals, self._halt = fun, by_residuals, halt
        self._x, self._lowest, self._calls = x0.copy(), np.inf, 0

    def __call__(self, x: np.ndarray, *args: Any, **named: Any) -> Any:
        if self._calls and self._halt.reason:
            raise _Halted
        self._calls += 1
        returned = self._fun(x.copy(), *args, **named)
        objective = self._objective(returned)
        if objective < self._lowest:
            self._x, self._lowest = x.copy(), objective
        return returned

    def _objective(self, returned: Any) -> float:
        """The objective of what the function returned; NaN if the method will reject it."""
        try:
            if self._by_residuals:
                return float(np.square(returned).sum()) / 2
            return float(returned[0] if isinstance(returned, tuple) else returned)
        except (TypeError, ValueError):
            return np.nan

    def best_result(self) -> OptimizeResult:
        """The best point as the result of a method."""
        from scipy.optimize import OptimizeResult

        result = OptimizeResult(
            x=self._x,
            success=False,
            status=STOPPED,
            message=self._halt.reason,
            nfev=self._calls,
        )
        result["cost" if self._by_residuals else "fun"] = self._lowest
        return result


def _without_matrices(result: OptimizeResult, by_residuals: bool) -> OptimizeResult:
    """The result without matrices and without an entry per residual: there may be many."""
    per_residual = {"fun", "jac"} if by_residuals else set()
    for key in [*result]:
        if key in per_residual or key == "hess_inv" or getattr(result[key], "ndim", 0) == 2:
            del result[key]
    return result


def objective_of(result: OptimizeResult) -> float:
    """The objective of a result; half the sum of squares of a least-squares method."""
    return float(result["cost"] if "cost" in result else result["fun"])


def _end_point(result: OptimizeResult) -> EndPoint:
    return EndPoint(objective_of(result), result.x, str(result.message))
