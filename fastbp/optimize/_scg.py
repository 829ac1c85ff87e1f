"""`scg`: Møller's scaled conjugate gradients, without line searches."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.arrays import FLOAT64
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
    derivative,
    require_usable,
    result_of,
    starting_point,
    stop_test,
    unresolvable,
)

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

SIGMA = 1e-4  # the distance between the two gradients of a difference
DAMPING = 1e-6  # the first λ, which is added to the curvature
# The comparison parameter of a step, gained/expected: below POOR the curvature is damped more, from
# GOOD on less. Steps become at most CUT times shorter at once, however bad they were.
POOR = 0.25
GOOD = 0.75
CUT = 10.0

_TINY = float(np.finfo(float).tiny)  # the least δ: a quotient by it may be infinite, but not NaN

_MESSAGES = MESSAGES | {
    STUCK: "No step straight downhill decreases the function: the gradient is wrong (see "
    "fastbp.check_grad) or the function has a kink or a steep wall here."
}

# The attributes of an `SCGSolver` on which its next steps depend.
_STATE = "x f g direction curvature damping nit nfev nhev status".split()


def scg(
    fun: Callable[..., Any] | Objective,
    x0: Any,
    args: Any = (),
    *,
    jac: Any = True,
    hessp: Any = None,
    maxiter: int = 100,
    maxfun: int | None = None,
    sigma: float = SIGMA,
    tol: float | None = None,
    callback: Callable[..., Any] | None = None,
    hess: Any = None,
    bounds: Any = None,
    constraints: Any = (),
) -> OptimizeResult:
    """Minimise a smooth function by Møller's scaled conjugate gradients [1]_.

    Along the unit vector u the step is -g·u/δ, where δ = u·Hu + λ; if that is not positive, λ
    becomes -2 u·Hu first. The step is taken if f does not rise. Δ is the ratio of its gain to the
    gain of the parabola with this slope and curvature: below 0.25, λ rises by δ(1 - Δ); from 0.75
    on, it falls to a quarter. The next direction is that of -g' + βu with
    β = g'·(g' - g)/(-g·u), or that of -g' after every n iterations.

    Parameters
    ----------
    fun : callable or Objective
        ``fun(x, *args) -> (f, g)``, a number and the gradient (n,); only f if `jac` is callable.
        An `Objective` is computed in float64; its masked and frozen parameters stay as they are.
    x0 : array_like (n,)
        Where to start; it is not modified.
    args : tuple, optional
        Further arguments of `fun`, `jac` and `hessp`.
    jac : True or callable
        The gradient ``jac(x, *args) -> (n,)``, unless `fun` gives it.
    hessp : callable or True, optional
        The Hessian's products ``hessp(x, p, *args) -> (n,)``; True for those of an `Objective`. By
        default Hu is the difference of two gradients, (g(x + sigma·u) - g(x))/sigma.
    maxiter : int, default 100
        The maximum number of iterations: steps, whether taken or not.
    maxfun : int, optional
        The maximum number of evaluations of `fun`. A step in a new direction takes two, or one with
        `hessp`; a step that would exceed the maximum is not begun.
    sigma : float, default 1e-4
        How far from x that second gradient is taken; it should be a small part of the size of x.
    tol : float, optional
        Stop where no entry of the gradient is larger than this; by default run until rounding hides
        any further decrease.
    callback : callable, optional
        ``callback(xk)``, or ``callback(intermediate_result)`` with ``.x`` and ``.fun`` if its
        argument has that name, called after each iteration. It stops the run by returning True or
        raising StopIteration.
    hess
        Ignored: what `scipy.optimize.minimize` passes to every method.
    bounds, constraints
        Not supported; `scipy.optimize.minimize` passes them to every method.

    Returns
    -------
    scipy.optimize.OptimizeResult
        ``x``, ``fun`` and ``jac`` are the last point, whose value is the least of those accepted;
        ``history[k]`` is the value after k iterations; ``nit``, ``nfev``, ``njev`` and ``nhev``
        count. ``status`` is 0 (converged; ``success`` is True for it alone), 1 (maxiter), 2
        (maxfun), 3 (no step goes down) or 99 (callback); ``message`` says it in words.

    Raises
    ------
    ShapeError
        If `x0` is not a vector or a derivative has another shape.
    NonFiniteError
        If `x0`, or the function or gradient there, is not finite.
    ValueError
        Without a gradient or anything free, for bounds or constraints, numbers out of range, or
        ``hessp=True`` where an activation or the loss has no second derivative.
    TypeError
        If x0 or the derivatives are not real, `fun` does not return a pair, or `hessp` does not fit
        `fun`.

    Notes
    -----
    Differences are faster for networks: an exact product takes two to three times as long as the
    second gradient, and saves no iterations.

    Differences from the paper: a step is never cut to less than a tenth at once, also where f or g
    is not finite. Where rounding hides any change of f or x along a direction, the search restarts
    along -g, and ends if that was the direction. With λ and δ divided by ‖p‖², the paper's p is the
    unit vector; λ̄, which undoes the last scaling of δ, is not needed, since δ is always computed
    from u·Hu.

    References
    ----------
    .. [1] M. F. Møller, "A scaled conjugate gradient algorithm for fast supervised learning",
       Neural Networks 6(4), 1993.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> def bowl(x):
    ...     return ((x - [1.0, 2.0]) ** 2).sum(), 2 * (x - [1.0, 2.0])
    >>> result = fb.optimize.scg(bowl, [5.0, 5.0])
    >>> result.success, np.round(result.x, 6).tolist()
    (True, [1.0, 2.0])

    As a method of SciPy:

    >>> import scipy.optimize
    >>> result = scipy.optimize.minimize(bowl, [5.0, 5.0], jac=True, method=fb.optimize.scg)
    >>> np.round(result.x, 6).tolist()
    [1.0, 2.0]
    """
    if isinstance(fun, Objective):
        if callable(hessp):
            raise TypeError(
                "hessp was given with an objective, which brings its own; pass hessp=True for it, "
                "or leave it out"
            )
        fun = fun.astype(FLOAT64)
    free = free_coordinates(fun, x0)
    if free is not None:
        fun, jac, args, x0, callback = (
            free.value_and_grad, True, (), free.x0, free.callback(callback)
        )  # fmt: skip
        hessp = free.hessp if hessp else None
    limits = checked_termination("scg", maxiter, maxfun, tol, bounds, constraints)
    function = Function("scg", fun, jac, args)
    products = _products(fun, hessp, function.args)
    solver = SCGSolver(function, products, x0, tol=limits.tol, sigma=sigma)
    result = _run(solver, limits, stop_test(callback))
    return result if free is None else free.full(result)


def _run(
    solver: SCGSolver, limits: Termination, wants_to_stop: Callable[[np.ndarray, float], bool]
) -> OptimizeResult:
    """Iterate until the search ends or is stopped."""
    history = [solver.f]
    status = solver.status
    while status is None:
        if solver.nfev + solver.cost > limits.maxfun:
            status = MAXFUN
        elif solver.nit == limits.maxiter:
            status = MAXITER
        else:
            solver.step()
            history.append(solver.f)
            stopped = wants_to_stop(solver.x, solver.f)
            status = STOPPED if stopped and solver.status is None else solver.status
    counts = {"nit": solver.nit, "nfev": solver.nfev, "njev": solver.nfev, "nhev": solver.nhev}
    return result_of(solver.x, solver.f, solver.g, status, _MESSAGES[status], history, **counts)


def _products(
    fun: Any, hessp: Any, args: tuple[Any, ...]
) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """The Hessian's products as `SCGSolver` takes them."""
    if hessp is None or hessp is False:
        return None
    if isinstance(fun, Objective):
        return fun.hvp
    if not callable(hessp):
        raise TypeError(
            f"hessp is {hessp!r}, expected a function (x, p) -> Hp, or None; True is for a "
            f"network's objective"
        )
    return lambda x, p: derivative("what hessp gave", hessp(x.copy(), p.copy(), *args), x)


class SCGSolver:
    """Scaled conjugate gradients, one `step` at a time.

    Parameters
    ----------
    value_and_grad : callable
        x (n,) -> (f, g (n,)), g being a new array of float64; it does not modify x.
    hessp : callable or None
        (x, p) -> Hp (n,); by default a difference of gradients.
    x0 : array_like (n,)
        Where to start.
    tol : float, default 0.0
        The largest entry of a gradient that counts as zero.
    sigma : float, default 1e-4
        See `scg`.
    state : dict, optional
        What `state` returned: continue from there instead of from x0, with the same iterates as
        without an interruption.

    Attributes
    ----------
    x, f, g : numpy.ndarray (n,), float, numpy.ndarray (n,)
        The point reached, its value and gradient.
    nit, nfev, nhev : int
        Iterations, evaluations and Hessian products so far.
    status : int or None
        None while there is more to gain, then CONVERGED or STUCK.

    Raises
    ------
    ShapeError, NonFiniteError, TypeError, ValueError
        As `scg`.
    """

    x: np.ndarray
    f: float
    g: np.ndarray
    direction: np.ndarray  # (n,), a unit vector
    curvature: float | None  # along the direction; None until it is measured
    damping: float
    status: int | None

    def __init__(
        self,
        value_and_grad: Callable[[np.ndarray], tuple[float, np.ndarray]],
        hessp: Callable[[np.ndarray, np.ndarray], np.ndarray] | None,
        x0: Any,
        *,
        tol: float = 0.0,
        sigma: float = SIGMA,
        state: dict[str, Any] | None = None,
    ):
        if not (isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma is {sigma}, expected a small positive number, such as 1e-4")
        self._value_and_grad, self._hessp = value_and_grad, hessp
        self.tol, self.sigma = tol, sigma
        self.nit = self.nfev = self.nhev = 0
        self.curvature = self.status = None
        if state is None:
            self._start(starting_point(x0))
        else:
            for name, value in state.items():
                setattr(self, name, np.array(value) if np.ndim(value) else value)

    def _start(self, x: np.ndarray) -> None:
        self.x = x
        self.f, self.g = self._evaluate(x)
        require_usable(self.f, self.g)
        if self._flat:
            self.status = CONVERGED
        self._restart()

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on: numbers, and vectors (n,) of float64.

        Attributes that are None are left out.
        """
        values = {name: getattr(self, name) for name in _STATE}
        return {
            name: value.copy() if isinstance(value, np.ndarray) else value
            for name, value in values.items()
            if value is not None
        }

    @property
    def message(self) -> str:
        """The status in words; empty while there is more to gain."""
        return "" if self.status is None else _MESSAGES[self.status]

    @property
    def cost(self) -> int:
        """How many evaluations the next step takes."""
        return 2 if self.curvature is None and self._hessp is None else 1

    @np.errstate(over="ignore", invalid="ignore")  # a step that overflows is not taken
    def step(self) -> None:
        """Try a step along the direction, and take it if f does not rise: one iteration."""
        self.nit += 1
        u, slope = self.direction, float(self.g.dot(self.direction))
        if self.curvature is None:
            self.curvature = self._measured_curvature(u)
        if self.curvature + self.damping <= 0:
            self.damping = -2 * self.curvature
        delta = max(self.curvature + self.damping, _TINY)
        length = -slope / delta  # backwards where u leads uphill
        x = self.x + length * u
        f, g = self._evaluate(x)

        expected = -slope * length / 2
        finite = isfinite(f) and isfinite(g.dot(g))
        ratio = (self.f - f) / expected if finite and expected > 0 else -inf
        if ratio < POOR:
            # The parabola of this slope through f(x) has its minimum at 1/(2 - Δ) of the step.
            self.damping += delta * (min(2 - ratio, CUT) - 1)
        elif ratio >= GOOD:
            self.damping /= 4
        exhausted = not ratio > 0 and unresolvable(self.f, slope, self.x, u, length)
        status = self._status_if_exhausted(self.curvature, slope) if exhausted else None
        if ratio >= 0:
            self._accept(x, f, g, slope)
        if self._flat:
            status = CONVERGED
        elif exhausted:
            self._restart()
        self.status = status

    def _measured_curvature(self, u: np.ndarray) -> float:
        """The curvature u·Hu at x along the unit vector u (n,), 0 if it is not finite."""
        if self._hessp is not None:
            self.nhev += 1
            curvature = float(u.dot(self._hessp(self.x, u)))
        else:
            _, g = self._evaluate(self.x + self.sigma * u)
            curvature = float(u.dot(g - self.g)) / self.sigma
        return curvature if isfinite(curvature) else 0.0

    def _accept(self, x: np.ndarray, f: float, g: np.ndarray, slope: float) -> None:
        """Move to x, where f and g hold, and choose the next direction."""
        beta = float(g.dot(g - self.g)) / -slope
        conjugate = beta * self.direction - g
        self.x, self.f, self.g = x, f, g
        usable = isfinite(conjugate.dot(conjugate)) and self.nit % len(x)
        self._set_direction(conjugate if usable else -g)

    def _set_direction(self, direction: np.ndarray) -> None:
        self.direction, self.curvature = _unit(direction), None

    def _restart(self) -> None:
        """Continue along -g, with the first damping."""
        self._set_direction(-self.g)
        self.damping = DAMPING

    def _status_if_exhausted(self, curvature: float, slope: float) -> int | None:
        """The status where no step along the direction gains; None if it was not that of -g."""
        if not np.array_equal(self.direction, _unit(-self.g)):
            return None
        # If an undamped step should gain, but none does, the slope is wrong.
        reach = -slope / curvature if curvature > 0 else inf
        resolved = not unresolvable(self.f, slope, self.x, self.direction, reach)
        return STUCK if resolved else CONVERGED

    @property
    def _flat(self) -> bool:
        """Whether the gradient is zero within tol."""
        return self.g.dot(self.g) == 0 or bool(self.tol and np.abs(self.g).max() <= self.tol)

    def _evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.nfev += 1
        f, g = self._value_and_grad(x)
        return float(f), g


def _unit(v: np.ndarray) -> np.ndarray:
    """v (n,) divided by its norm; 0 stays 0."""
    norm = np.sqrt(v.dot(v))
    return v / norm if norm else v
