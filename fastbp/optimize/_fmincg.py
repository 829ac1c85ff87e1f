"""`fmincg`: conjugate gradients with a polynomial line search, as `minimize.m` and `fmincg.m`."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..networks.objective import Objective
from .free_coordinates import free_coordinates
from .function import (
    CONVERGED,
    MAXFUN,
    MAXITER,
    MESSAGES,
    STOPPED,
    STUCK,
    Function,
    Termination,
    checked_termination,
    require_usable,
    result_of,
    starting_point,
    stop_test,
    unresolvable,
)

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

# Wolfe-Powell conditions: a step t is accepted where f(t) <= f(0) + RHO·t·f'(0) (enough decrease)
# and |f'(t)| <= SIG·|f'(0)| (flat enough).
RHO = 0.01
SIG = 0.3
INT = 0.1  # an interpolated step keeps this share of the bracket from either end
EXT = 100.0  # an extrapolated step is so many times the last one where no cubic gives a minimum
MAX = 20  # evaluations in a line search
RATIO = 2.0  # the first step of a line search is at most so many times as long as the last one's
FIRST = 0.01  # the first step straight downhill moves x by at least this share of its largest entry

_MESSAGES = MESSAGES | {
    STUCK: "The line search failed twice in a row: the gradient is wrong (see fastbp.check_grad) "
    "or the function has a kink or a steep wall here."
}


class _Point(NamedTuple):
    """A point x = start + t·direction of a line, with f, the derivative along the line, and g."""

    t: float
    f: float
    slope: float
    x: np.ndarray  # (n,)
    g: np.ndarray  # (n,)

    @property
    def finite(self) -> bool:
        return isfinite(self.f) and isfinite(self.slope)


def fmincg(
    fun: Callable[..., Any] | Objective,
    x0: Any,
    args: Any = (),
    *,
    jac: Any = True,
    maxiter: int = 100,
    maxfun: int | None = None,
    red: float = 1.0,
    tol: float | None = None,
    callback: Callable[..., Any] | None = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
) -> OptimizeResult:
    """Minimise a smooth function by Polack-Ribière conjugate gradients.

    Directions are s_k = -g_k + β s_{k-1} with β = g_k·y / s_{k-1}·y, y = g_k - g_{k-1}: where the
    last line search was exact this is the β of Polack and Ribière [1]_, with g_{k-1}·g_{k-1} below,
    otherwise s_k is still conjugate to s_{k-1} [2]_. Where β < 0 or s_k does not descend, and after
    a failed line search, s_k = -g_k. The line search extrapolates and interpolates by quadratic and
    cubic polynomials until the Wolfe-Powell conditions hold [3]_; it starts where the minimum would
    be if the curvature along s_k were that along s_{k-1}. NaN and infinite values are left by
    bisection.

    Parameters
    ----------
    fun : callable or Objective
        ``fun(x, *args) -> (f, g)``, a number and the gradient (n,); only f if `jac` is callable.
        An `Objective` is computed in float64; its masked and frozen parameters stay as they are.
    x0 : array_like (n,)
        Where to start; it is not modified.
    args : tuple, optional
        Further arguments of `fun` and `jac`.
    jac : True or callable
        The gradient ``jac(x, *args) -> (n,)``, unless `fun` gives it.
    maxiter : int, default 100
        The maximum number of line searches.
    maxfun : int, optional
        The maximum number of evaluations of `fun`.
    red : float, default 1.0
        The expected reduction of `fun` in the first line search. Its first step is
        red / (1 + ‖g‖²), or the step that moves x by a hundredth of its largest entry, if that is
        longer.
    tol : float, optional
        Stop where no entry of the gradient is larger than this; by default run until rounding hides
        any further decrease.
    callback : callable, optional
        ``callback(xk)``, or ``callback(intermediate_result)`` with ``.x`` and ``.fun`` if its
        argument has that name, called after each line search. It stops the run by returning True or
        raising StopIteration.
    hess, hessp
        Ignored: what `scipy.optimize.minimize` passes to every method.
    bounds, constraints
        Not supported; `scipy.optimize.minimize` passes them to every method.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x``, ``fun`` and ``jac`` are the best point evaluated; ``history[k]`` is the value
        after k line searches; ``nit``, ``nfev``, ``njev`` count. ``status`` is 0 (converged;
        ``success`` is True for it alone), 1 (maxiter), 2 (maxfun), 3 (line search failed) or 99
        (callback); ``message`` says it in words.

    Raises
    ------
    ShapeError
        If `x0` is not a vector or the gradient has another shape.
    NonFiniteError
        If `x0`, or the function or gradient there, is not finite.
    ValueError
        Without a gradient or anything free, for bounds or constraints, or limits that are not
        positive.
    TypeError
        If x0 or the gradient are not real, or `fun` does not return a pair.

    References
    ----------
    .. [1] E. Polak, G. Ribière, "Note sur la convergence de méthodes de directions conjuguées",
       Revue française d'informatique et de recherche opérationnelle 3 (16), 1969.
    .. [2] M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems",
       Journal of Research of the National Bureau of Standards 49 (6), 1952.
    .. [3] C. E. Rasmussen, "Function minimization using conjugate gradients", 1996, and `minimize`
       of C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> def bowl(x):
    ...     return ((x - [1.0, 2.0]) ** 2).sum(), 2 * (x - [1.0, 2.0])
    >>> result = fb.optimize.fmincg(bowl, [5.0, 5.0])
    >>> result.success, np.round(result.x, 6).tolist()
    (True, [1.0, 2.0])

    As a method of SciPy:

    >>> import scipy.optimize
    >>> result = scipy.optimize.minimize(bowl, [5.0, 5.0], jac=True, method=fb.optimize.fmincg)
    >>> np.round(result.x, 6).tolist()
    [1.0, 2.0]
    """
    free = free_coordinates(fun, x0)
    if free is not None:
        fun, jac, x0, callback = free.value_and_grad, True, free.x0, free.callback(callback)
    limits = checked_termination("fmincg", maxiter, maxfun, tol, bounds, constraints)
    if not (isfinite(red) and red > 0):
        raise ValueError(f"red is {red}, expected a finite number > 0 (1.0 usually)")
    function = _LineFunction("fmincg", fun, jac, args)
    result = _minimise(function, x0, red, limits, stop_test(callback))
    return result if free is None else free.full(result)


# The iteration.


def _minimise(
    function: _LineFunction,
    x0: Any,
    red: float,
    limits: Termination,
    wants_to_stop: Callable[[np.ndarray, float], bool],
) -> OptimizeResult:
    """Conjugate gradients from x0 (n,); the arguments are those of `fmincg`, checked."""
    here = function.start(x0)
    direction = -here.g
    step = _first_step(here, red)
    history = [here.f]
    failed = False
    nit = 0
    status = None
    while status is None:
        if here.slope == 0 or (limits.tol and np.abs(function.best.g).max() <= limits.tol):
            status = CONVERGED
        elif function.calls >= limits.maxfun:
            status = MAXFUN
        elif nit == limits.maxiter:
            status = MAXITER
        else:
            nit += 1
            trials = int(min(MAX, limits.maxfun - function.calls))
            end, reach = _line_search(function.along(here, direction), here, step, trials)
            if end is not None:
                here, direction, step = _conjugate(here, end, direction)
            elif function.calls >= limits.maxfun:
                status = MAXFUN
            elif failed:
                resolved = not unresolvable(here.f, here.slope, here.x, direction, reach)
                status = STUCK if resolved else CONVERGED
            else:  # once more, from the best point and straight downhill
                here = _steepest(function.best)
                direction, step = -here.g, _first_step(here, red)
            failed = end is None
            history.append(function.best.f)
            if wants_to_stop(here.x, here.f) and status is None:
                status = STOPPED
    best = function.best
    calls = function.calls
    return result_of(
        best.x, best.f, best.g, status, _MESSAGES[status], history, nit=nit, nfev=calls, njev=calls
    )


def _steepest(point: _Point) -> _Point:
    """The point as the start of a line straight downhill."""
    with np.errstate(over="ignore"):
        return point._replace(t=0.0, slope=-float(point.g.dot(point.g)))


def _first_step(start: _Point, red: float) -> float:
    """The first step straight downhill: for a reduction `red`, and not too short to matter."""
    steepest = np.abs(start.g).max()
    shortest = FIRST * np.abs(start.x).max() / steepest if steepest else 0.0
    return float(max(red / (1 - start.slope), shortest))


@np.errstate(over="ignore", invalid="ignore")  # the next line is straight downhill then
def _conjugate(
    start: _Point, end: _Point, direction: np.ndarray
) -> tuple[_Point, np.ndarray, float]:
    """The next line: its start, its direction (n,) and its first step."""
    rise = end.slope - start.slope  # direction·(end.g - start.g)
    beta = float(end.g.dot(end.g - start.g)) / rise if rise > 0 else 0.0
    next_direction = max(beta, 0.0) * direction - end.g
    slope = float(end.g.dot(next_direction))
    if -inf < slope < 0:
        here = end._replace(t=0.0, slope=slope)
    else:
        here, next_direction = _steepest(end), -end.g
    return here, next_direction, _next_step(end.t, rise, direction, next_direction, here.slope)


def _next_step(
    last: float, rise: float, direction: np.ndarray, next_direction: np.ndarray, slope: float
) -> float:
    """The first step of the next line: to its minimum, if it curves as much as the last one.

    The step `last` raised the slope along `direction` (n,) by `rise`: in units of x a curvature of
    rise / (last·‖direction‖²). `slope` is that at the start of the next line.
    """
    unit, norm = sqrt(direction.dot(direction)), sqrt(next_direction.dot(next_direction))
    if norm == 0:
        return 0.0
    length = last * unit
    reach = -slope / norm * length / rise * unit if rise > 0 else inf
    return min(reach, RATIO * length) / norm


# The line search.


def _line_search(
    along: Callable[[float], _Point], start: _Point, step: float, trials: int
) -> tuple[_Point | None, float]:
    """A point of the line that meets the Wolfe-Powell conditions.

    Returns
    -------
    point : _Point or None
        None if none of so many trials meets them.
    reach : float
        The step to the minimum, estimated from the slopes at the start and at the first trial.
    """
    before = low = start  # `low` decreases enough and still slopes down: the minimum is beyond
    high = None  # the minimum is before it
    reach = inf
    for _ in range(trials):
        trial = along(step)
        if trial.finite and reach == inf:
            rise = trial.slope - start.slope
            reach = step * min(1.0, -start.slope / rise) if rise > 0 else step
        if high is not None and np.array_equal(trial.x, low.x):
            break  # no number lies between them
        enough = trial.finite and trial.f <= start.f + RHO * step * start.slope
        if not enough or trial.slope > -SIG * start.slope:
            high = trial
        elif trial.slope < SIG * start.slope:
            before, low = low, trial
        else:
            return trial, reach
        step = _extrapolate(before, low) if high is None else _interpolate(low, high)
    return None, reach


def _interpolate(low: _Point, high: _Point) -> float:
    """A step between both points: the minimum of a polynomial through them, kept off the ends."""
    width = high.t - low.t
    if not high.finite:
        return low.t + width / 2
    if high.f > low.f:  # the parabola through low.f, low.slope and high.f
        step = low.t - low.slope * width * width / (2 * (high.f - low.f - low.slope * width))
    else:
        step = _cubic_minimum(low, high)
        if not isfinite(step):
            return low.t + width / 2
    return min(max(step, low.t + INT * width), high.t - INT * width)


def _extrapolate(before: _Point, last: _Point) -> float:
    """A step beyond `last`: the minimum of the cubic through both points, if it lies there."""
    step = _cubic_minimum(before, last)
    if not last.t < step < inf:
        return EXT * last.t
    return max(step, last.t + INT * (last.t - before.t))


def _cubic_minimum(a: _Point, b: _Point) -> float:
    """Where the cubic with the values and slopes of both points is least; NaN if nowhere.

    With m = a' + b' - 3 (a - b)/(t_a - t_b) and w = sqrt(m² - a' b') the minimum lies at
    t_b - (t_b - t_a) (b' + w - m) / (b' - a' + 2w).
    """
    width = b.t - a.t
    if width <= 0:
        return np.nan
    m = a.slope + b.slope - 3 * (b.f - a.f) / width
    square = m * m - a.slope * b.slope
    if not 0 <= square < inf:
        return np.nan
    w = sqrt(square)
    divisor = b.slope - a.slope + 2 * w
    return b.t - width * (b.slope + w - m) / divisor if divisor else np.nan


# The function.


class _LineFunction(Function):
    """The caller's function along lines.

    Attributes
    ----------
    best : _Point
        The point with the lowest f so far.
    calls : int
        Evaluations so far.
    """

    best: _Point
    calls = 0

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.calls += 1
        return super().__call__(x)

    def start(self, x0: Any) -> _Point:
        """x0 as the start of a line straight downhill; raises if it cannot be used."""
        x = starting_point(x0)
        f, g = self(x)
        require_usable(f, g)
        self.best = _steepest(_Point(0.0, f, 0.0, x, g))
        return self.best

    def along(self, start: _Point, direction: np.ndarray) -> Callable[[float], _Point]:
        """The function of the step along a line."""

        def point(t: float) -> _Point:
            with np.errstate(over="ignore", invalid="ignore"):  # infinities are backed off from
                x = start.x + t * direction
            f, g = self(x)
            with np.errstate(over="ignore", invalid="ignore"):
                result = _Point(t, f, float(g.dot(direction)), x, g)
            if f < self.best.f and result.finite:
                self.best = result
            return result

        return point
