"""`levenberg_marquardt`: least squares of a function of residuals, or of a network's objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.arrays import FLOAT64, all_finite, number, real_array, require_finite, whole_number
from ..common.errors import ShapeError, TraceError
from ..maths.linear_models import LinearModel, model_of
from ..maths.marquardt import (
    FLAT,
    RUNNING,
    SHORT,
    SMALL,
    STUCK,
    LMOptions,
    LMSolver,
)
from ..maths.models import (
    Model,
    require_agreement,
    require_agreement_nearby,
    trace_residuals,
)
from ..maths.robust import Robust, rho
from ..maths.uncertainty import of_jacobian
from ..networks.objective import Objective, robust_loss
from .curve_solver import CALLBACK, GOAL, RECORDED, CurveSolver
from .differences import jacobian_by_differences
from .free_coordinates import FreeCoordinates
from .function import starting_point, stop_test
from .network_least_squares import NetworkSquares
from .scipy_methods import as_bounds

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

MESSAGES = {
    CALLBACK: "`callback` stopped the minimisation.",
    STUCK: "No step decreases the sum of squares, although the Jacobian promises one: the Jacobian "
    "is wrong (see fastbp.check_grad), or the residuals have a kink or a steep wall here.",
    RUNNING: "The maximum number of iterations (maxiter) has been reached.",
    FLAT: "Converged: the gradient is zero within gtol or min_grad.",
    SMALL: "Converged: the sum of squares can fall by no more than ftol of it.",
    SHORT: "Converged: the next step is no longer than xtol of the parameters.",
    GOAL: "The goal has been reached.",
}

# The numbers of `LMOptions`, and the ranges in which they may be.
_RANGES = {"> 0": (0, inf), ">= 0": (0, inf), "between 0 and 1": (0, 1), "> 1": (1, inf)}
_EXPECTED = {
    "mu": "> 0",
    "mu_dec": "between 0 and 1",
    "mu_inc": "> 1",
    "mu_max": "> 0",
    "ftol": ">= 0",
    "xtol": ">= 0",
    "gtol": ">= 0",
    "min_grad": ">= 0",
}
_OPTIONAL = ("mu_dec", "mu_inc")  # None stands for Nielsen's factors


def levenberg_marquardt(
    fun: Callable[..., Any] | Objective,
    x0: Any,
    jac: Any = None,
    *,
    args: Any = (),
    bounds: Any = None,
    loss: str = "linear",
    f_scale: float = 1.0,
    maxiter: int = 5000,
    ftol: float = 1e-14,
    xtol: float = 1e-12,
    gtol: float = 1e-12,
    goal: float = 0.0,
    min_grad: float = 0.0,
    mu: float = 1e-3,
    mu_dec: float | None = None,
    mu_inc: float | None = None,
    mu_max: float = 1e16,
    uniform: bool = False,
    bend: bool = True,
    callback: Callable[..., Any] | None = None,
) -> OptimizeResult:
    """Minimise a sum of squares by Levenberg and Marquardt's method.

    A step v solves (JᵀJ + μD) v = -Jᵀr [1]_ [2]_, where r are the residuals, J their Jacobian and D
    the largest diagonal of JᵀJ so far, where earlier ones decay. Half the second derivative of r
    along v bends the step [3]_. μ follows the ratio of the step's gain to the gain that the linear
    model of r predicts [4]_.

    Parameters
    ----------
    fun : callable or Objective
        ``fun(x, *args) -> r`` (m,), the residuals: not their squares, nor the sum. An `Objective`
        with a least-squares loss brings its own Jacobian; it is computed in float64, and its masked
        and frozen parameters stay as they are.
    x0 : array_like (n,)
        Where to start; it is not modified.
    jac : callable or {"2-point", "3-point"}, optional
        ``jac(x, *args)``, the derivative (m, n) of r. By default it follows exactly from the code
        of `fun`, if that computes r row by row from entries of x and arrays of data; else it is
        "3-point", central differences. Forward differences ("2-point") need half the evaluations
        and are less accurate.
    args : tuple, optional
        Further arguments of `fun` and `jac`.
    bounds : pair of array_like (n,), or scipy.optimize.Bounds, optional
        Limits of x, (lower, upper); numbers are for all entries.
    loss : {"linear", "huber", "soft_l1", "cauchy"}, default "linear"
        How residuals larger than `f_scale` count, as in `scipy.optimize.least_squares`; it is
        minimised by reweighting.
    f_scale : float, default 1.0
        Where outliers begin, in the units of the residuals.
    maxiter : int, default 5000
        The maximum number of steps.
    ftol, xtol, gtol : float
        The method has converged where a step changes the sum of squares, and was predicted to, by
        no more than the share `ftol` of it; where it is no longer than the share `xtol` of x, both
        measured by D; or where all cosines between r and the columns of J are at most `gtol`.
    goal : float, default 0.0
        Stop where the cost, half the sum of squares, is not above this.
    min_grad : float, default 0.0
        Stop where no entry of the gradient Jᵀr is larger.
    mu, mu_max : float
        The first μ, and the largest one: beyond it the method stops as stuck.
    mu_dec, mu_inc : float, optional
        The factors of μ after a step and after a failure, such as 0.1 and 10. By default they
        depend on the gain, and grow with the failures.
    uniform : bool, default False
        Let D be the mean of its entries instead: for variables of the same kind and size.
    bend : bool, default True
        Whether steps are bent.
    callback : callable, optional
        ``callback(xk)``, or ``callback(intermediate_result)`` with ``.x`` and ``.fun``, the cost,
        if its argument has that name, called after each step. It stops the method by returning True
        or raising StopIteration.

    Returns
    -------
    scipy.optimize.OptimizeResult
        As of `scipy.optimize.least_squares`: ``x``, ``cost`` (half the sum of squares, after
        `loss`), ``fun`` (the residuals there), ``jac``, ``grad`` (of the cost), ``optimality`` (its
        largest entry), ``active_mask``, ``nfev``, ``njev``, ``success``, and ``status``: 1, 2, 3
        (gtol or min_grad, ftol, xtol), 4 (goal), 0 (maxiter), -1 (no step helps, or mu_max) or -2
        (callback), in words in ``message``. ``nit`` counts steps; ``history`` has an array each for
        "cost", "mu", "rho" (the gain relative to the predicted one) and "gradient" (largest entry)
        at the start and after each step. ``derivatives`` is "exact" (by the code of `fun`), "jac",
        "2-point" or "3-point". With "linear" loss, ``covariance`` (n, n) and ``standard_errors``
        (n,) estimate those of x, and ``notes``, which ``message`` repeats, say
        what speaks against them: a near-singular JᵀJ, parameters that run away, no degrees of
        freedom.

    Raises
    ------
    ShapeError
        If x0 is no vector, r is a number or changes its length, or J or `bounds` have a wrong
        shape.
    NonFiniteError
        If x0, or r or J there, is not finite.
    TypeError, ValueError
        For what is not real, bounds that cross, numbers out of range and unknown names.

    References
    ----------
    .. [1] K. Levenberg, "A method for the solution of certain non-linear problems in least
       squares", Quarterly of Applied Mathematics 2, 1944.
    .. [2] D. W. Marquardt, "An algorithm for least-squares estimation of nonlinear parameters",
       Journal of the Society for Industrial and Applied Mathematics 11, 1963.
    .. [3] M. K. Transtrum, J. P. Sethna, "Improvements to the Levenberg-Marquardt algorithm for
       nonlinear least-squares minimization", arXiv:1201.5885, 2012.
    .. [4] H. B. Nielsen, "Damping parameter in Marquardt's method", report IMM-REP-1999-05,
       Technical University of Denmark, 1999.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> t = np.arange(5.0)
    >>> y = 3 * np.exp(-0.5 * t)
    >>> result = fb.optimize.levenberg_marquardt(lambda x: x[0] * np.exp(x[1] * t) - y, [1.0, 0.0])
    >>> result.success, result.x.round(6).tolist()
    (True, [3.0, -0.5])
    """
    options = checked_options(
        mu=mu, mu_dec=mu_dec, mu_inc=mu_inc, mu_max=mu_max, uniform=uniform, bend=bend, ftol=ftol,
        xtol=xtol, gtol=gtol, min_grad=min_grad,
    )  # fmt: skip
    maxiter, goal = whole_number("maxiter", maxiter), number("goal", goal)
    robust = robust_loss(loss, f_scale)
    if isinstance(fun, Objective):
        if jac is not None:
            raise TypeError("jac was given with an objective, which brings its own; leave it out")
        free, obj = FreeCoordinates(fun, x0), fun.astype(FLOAT64)
        pair = None
        if bounds is not None:
            bounds = as_bounds(bounds, obj.net.n_params, pairs=False)
            pair = checked_bounds((bounds.lb[obj.net.free], bounds.ub[obj.net.free]), free.x0)
        squares = NetworkSquares(obj, free, loss, f_scale)
        solver = LMSolver(squares, free.x0, options, obj.prior()[obj.net.free], pair)
        end = _run(solver, maxiter, goal, stop_test(free.callback(callback)))
        r, J = free.residuals(solver.x), free.jacobian(solver.x)
        result: OptimizeResult = free.full(_result(solver, *end, r, J))
        result.x = result.x.astype(fun.net.dtype, copy=False)
        return result
    x = starting_point(x0)
    pair = checked_bounds(bounds, x)
    system = Residuals(fun, jac, args, robust, pair)
    system.start(x)
    result = None if jac is not None else _of_traced(system, x, options, maxiter, goal, callback)
    exact = result is not None
    if result is None:
        solver = LMSolver(system, x, options, None, pair)
        require_finite("the Jacobian at x0", system.at(x)[1])
        end = _run(solver, maxiter, goal, stop_test(callback))
        result = _result(solver, *end, *system.at(solver.x))
    result.derivatives = "exact" if exact else "jac" if callable(system.jac) else system.jac
    if loss == "linear":
        _add_errors(result, x)
    return result


def end_message(solver: Any, options: LMOptions) -> str:
    """How a `marquardt.LMSolver` has ended, in words."""
    if solver.status == STUCK and solver.mu > options.mu_max:
        return (
            f"mu has grown beyond mu_max, {options.mu_max:g}, and no step decreases the sum of "
            f"squares: raise mu_max, or check the Jacobian (see fastbp.check_grad)."
        )
    return MESSAGES[solver.status]


def _run(
    solver: LMSolver, maxiter: int, goal: float, wants_to_stop: Callable[[np.ndarray, float], bool]
) -> tuple[int, dict[str, np.ndarray]]:
    """Step until the search ends or is stopped; its status, and its history by RECORDED's names."""
    status = GOAL if solver.total / 2 <= goal and solver.status == RUNNING else RUNNING
    records = [solver.record]
    while status == RUNNING and solver.nit < maxiter:
        record = solver.steps(1)
        if not len(record):
            break
        records.append(record[0])
        if solver.total / 2 <= goal:
            status = GOAL
        elif wants_to_stop(solver.x, solver.total / 2):
            status = CALLBACK
    columns = np.array(records).T
    return status or solver.status, dict(zip(RECORDED, columns, strict=True))


def _result(
    solver: LMSolver | CurveSolver,
    status: int,
    history: dict[str, np.ndarray],
    r: np.ndarray,
    J: np.ndarray,
) -> OptimizeResult:
    """The result as SciPy's least squares have it, with r (m,) and J (m, n) at the solver's x."""
    from scipy.optimize import OptimizeResult

    held = np.zeros(len(solver.x), int)
    if solver.held is not None and solver.bounds is not None:
        at_lower = solver.x <= solver.bounds[0]
        held = np.where(solver.held, np.where(at_lower, -1, 1), 0)
    return OptimizeResult(
        x=solver.x,
        cost=solver.total / 2,
        fun=r,
        jac=J,
        grad=solver.gradient,
        optimality=float(np.abs(solver.gradient).max()),
        active_mask=held,
        **dict(zip(("nit", "nfev", "njev"), solver.counts, strict=True)),
        status=status,
        success=status > 0,
        message=end_message(solver, solver.options)
        if status == solver.status
        else MESSAGES[status],
        history=history,
    )


def _add_errors(result: OptimizeResult, start: np.ndarray) -> None:
    """Add the covariance of x, the standard errors, and the notes on what speaks against them."""
    fixed = result.active_mask != 0
    uncertainty = of_jacobian(result.jac, result.cost, result.x, start, fixed)
    result.covariance = uncertainty.covariance()
    result.standard_errors = uncertainty.standard_errors()
    result.notes = uncertainty.notes
    result.message = " ".join(
        [result.message, *(f"Standard errors: {note}." for note in result.notes)]
    )


# Residuals whose code has an expression.


def _of_traced(
    system: Residuals,
    x: np.ndarray,
    options: LMOptions,
    maxiter: int,
    goal: float,
    callback: Callable[..., Any] | None,
) -> OptimizeResult | None:
    """The result by the expression of the residuals; None if that is none of them."""
    model = _traced(system, x)
    if model is None:
        return None
    solver = CurveSolver(model, x, options, system.robust, system.bounds)
    status = solver.run(maxiter, goal, None if callback is None else stop_test(callback))
    try:  # a function that hides a branch from symbols may agree at the start alone
        with np.errstate(all="ignore"):
            require_agreement(model, solver.x, system.residuals(solver.x))
    except TraceError:
        return None
    except (ArithmeticError, ValueError):
        pass
    return _result(solver, status, solver.history, *solver.residuals())


def _traced(system: Residuals, x: np.ndarray) -> Model | None:
    """The model of the caller's residuals, if it agrees with them at x and nearby."""
    r = system.residuals(x)
    try:
        model = trace_residuals(system.fun, system.args, len(x), len(r))
        require_agreement(model, x, r)
        require_agreement_nearby(model, x, system.residuals, system.bounds)
    except TraceError:
        return None
    return model if all_finite(model.jacobian(x)) else None


# The caller's function.


class Residuals:
    """The sum of squares of the caller's residuals, which are checked; a `marquardt.SumOfSquares`.

    Parameters
    ----------
    fun, jac, args
        As `levenberg_marquardt` takes them.
    robust : Robust
        How residuals count.
    bounds : pair of numpy.ndarray (n,), or None
        Between which differences are taken.
    """

    def __init__(
        self,
        fun: Any,
        jac: Any,
        args: Any,
        robust: Robust,
        bounds: tuple[np.ndarray, np.ndarray] | None,
    ):
        if not callable(fun):
            raise TypeError(f"fun is {fun!r}, expected a function or a network's objective")
        if jac is None:
            jac = "3-point"
        if not callable(jac) and jac not in ("2-point", "3-point"):
            raise ValueError(f"jac is {jac!r}, expected a function, '2-point' or '3-point'")
        self.fun, self.jac, self.robust, self.bounds = fun, jac, robust, bounds
        self.args = args if isinstance(args, tuple) else (args,)
        self.m: int | None = None
        self._last: tuple[np.ndarray, np.ndarray] | None = None  # x, r
        self._last_linear: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # x, r, J

    def start(self, x: np.ndarray) -> None:
        """Set the number of residuals; raise if no search can start from x (n,)."""
        r = self.residuals(x)
        self.m = len(r)
        require_finite("the residuals at x0", r)
        self._last = (x, r)

    def total(self, x: np.ndarray) -> float:
        """The sum of squares at x (n,), after the robust loss."""
        r = self.residuals(x)
        self._last = (x, r)
        return float(rho(r, self.robust)[0].sum())

    def linear(self, x: np.ndarray) -> tuple[float, LinearModel]:
        """The same sum with its linear model."""
        r, J = self.at(x)
        squares, slope = rho(r, self.robust)
        root = np.sqrt(slope)
        return float(squares.sum()), model_of(
            root[:, None] * J, root * r, lambda step: root * self.residuals(x + step)
        )

    def at(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """r (m,) and J (m, n) at x; not computed again if x is the same array as the last one."""
        if self._last_linear is None or self._last_linear[0] is not x:
            last = self._last
            r = last[1] if last is not None and last[0] is x else self.residuals(x)
            self._last_linear = x, r, self._jacobian(x, r)
        return self._last_linear[1:]

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """r (m,) at x (n,), a new array."""
        r = real_array("what fun returned", self.fun(x.copy(), *self.args), FLOAT64)
        if r.ndim != 1 or len(r) == 0:
            what = "a number" if r.ndim == 0 else f"an array of shape {r.shape}"
            raise ShapeError(
                f"fun returned {what}, expected the vector (m,) of residuals: neither their "
                f"squares nor the sum, which the method takes itself"
            )
        if self.m is not None and len(r) != self.m:
            raise ShapeError(f"fun returned {len(r)} residuals, expected {self.m} as at x0")
        return r.copy()

    def _jacobian(self, x: np.ndarray, r: np.ndarray) -> np.ndarray:
        """J (m, n) at x (n,), where the residuals are r (m,); a new array."""
        if not callable(self.jac):
            return jacobian_by_differences(self.residuals, x, r, self.jac, self.bounds)
        J = real_array("what jac returned", self.jac(x.copy(), *self.args), FLOAT64)
        m, n = len(r), len(x)
        if J.shape != (m, n):
            hint = ": it is transposed, return J.T" if J.shape == (n, m) else ""
            raise ShapeError(
                f"jac returned shape {J.shape}, expected ({m}, {n}), a row per residual and a "
                f"column per entry of x{hint}"
            )
        return J.copy()


# Arguments.


def checked_options(**fields: Any) -> LMOptions:
    """`LMOptions` of these fields, whose numbers are checked.

    Raises
    ------
    TypeError, ValueError
        For a value that is no number, or out of range.
    """
    for name, expected in _EXPECTED.items():
        if name not in fields or (name in _OPTIONAL and fields[name] is None):
            continue
        fields[name] = value = number(name, fields[name], f"a number {expected}")
        low, high = _RANGES[expected]
        if not (low < value < high or (value == low == 0.0 and expected.startswith(">="))):
            raise ValueError(f"{name} is {value}, expected a number {expected}")
    return LMOptions(**fields)


def checked_bounds(
    bounds: Any, x: np.ndarray, names: Sequence[str] = (), start: str = "x0"
) -> tuple[np.ndarray, np.ndarray] | None:
    """(lower, upper), each (n,), between which x lies; None if there are none.

    `names` are those of the entries in messages, `start` that of x.

    Raises
    ------
    ShapeError, ValueError
        For other shapes, and bounds that cross or that x is outside of.
    """
    if bounds is None:
        return None
    if hasattr(bounds, "lb"):
        bounds = (bounds.lb, bounds.ub)
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ShapeError(
            f"bounds is {bounds!r}, expected a pair (lower, upper) of numbers or vectors "
            f"({len(x)},), or scipy.optimize.Bounds"
        )
    pair = []
    for name, value in zip(("lower", "upper"), bounds, strict=True):
        value = real_array(f"the {name} bound", value, FLOAT64)
        if value.shape not in ((), x.shape):
            raise ShapeError(
                f"the {name} bound has shape {value.shape}, expected a number or {x.shape}, an "
                f"entry per entry of {start}"
            )
        pair.append(np.broadcast_to(value, x.shape))
    lower, upper = pair
    for wrong, words in (
        (~(lower < upper), "is not below the upper one"),
        (~((lower <= x) & (x <= upper)), f"and the upper one do not enclose {start}"),
    ):
        if wrong.any():
            j = int(np.flatnonzero(wrong)[0])
            name = names[j] if names else f"entry {j}"
            raise ValueError(
                f"the lower bound of {name} {words}: {lower[j]} and {upper[j]}, {start} is {x[j]}; "
                f"expected lower < upper and lower <= {start} <= upper"
            )
    return lower, upper
