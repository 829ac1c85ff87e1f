"""Full-batch methods within `fit`: SciPy's, "fmincg" and "scg"; `lm` has Levenberg-Marquardt."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

import numpy as np

from .. import optimize
from ..common.arrays import FLOAT64
from ..common.errors import unknown_name
from ..optimize._scg import SCGSolver
from ..optimize.cache import CachedObjective
from ..optimize.free_coordinates import FreeCoordinates
from ..optimize.function import CONVERGED
from ..optimize.scipy_methods import MINIMIZERS, as_bounds, least_squares_names, run_minimizer
from ..reports.words import ALL_DONE, Status
from ..training import state as states
from . import lm
from .iterations import IterationRecorder, Stop, cannot_start
from .task import FitTask, MethodResult

BY_RESIDUALS = ("trf", "dogbox")  # of scipy.optimize.least_squares
METHODS = (*MINIMIZERS, *BY_RESIDUALS, "lm")
CONTINUED = ("lm", "scg")  # methods that can be continued from a state
# The limits of a method per iteration, where its default is lower than what `fit` may need: the
# recorder stops the method, which must not stop before.
LIMITS = {
    "L-BFGS-B": {"maxiter": 1, "maxfun": 21},  # maxls is 20
    "TNC": {"maxfun": 100},
    "trf": {"max_nfev": 100},
    "dogbox": {"max_nfev": 100},
}


def require_options(method: str, options: Iterable[str], arguments: Iterable[str]) -> None:
    """Raise TypeError for an option that the method does not have.

    The message suggests the nearest of its options and of `arguments`, those of the caller.
    """
    if "callback" in options:
        raise TypeError(
            "callback is not an option of fit, whose callbacks=... are told of every iteration; "
            "fastbp.optimize.minimize and least_squares take one"
        )
    if method in BY_RESIDUALS:
        known = least_squares_names()
    elif method == "lm":
        known = set(lm.NAMES)
    elif method == "scg":
        known = {"hessp", "sigma"}
    else:
        row = MINIMIZERS[method]
        known = {"options", *row.options, *row.constrained}
        known |= {"hess"} if row.hessian == "hessp" else set()
    for option in options:
        if option not in known:
            names = [*sorted(known), *arguments]
            raise TypeError(unknown_name(f"option of method {method!r}", option, names))


def run(task: FitTask) -> MethodResult:
    """Run the full-batch method of a task.

    Raises
    ------
    TypeError, ValueError, ShapeError, MemoryError
        As `fit`: for what the method or the loss cannot take.
    """
    if task.method == "lm":
        return lm.run(task)
    assert isinstance(task.method, str)
    obj = CachedObjective(task.data.training.astype(FLOAT64))
    x0, options = _within_bounds(obj, task)
    if task.method in BY_RESIDUALS:
        loss = _loss_by_residuals(obj, x0)
        usable = isfinite(loss)
    else:
        loss, grad = obj.value_and_grad(x0)
        usable = isfinite(loss) and bool(np.isfinite(grad).all())
    if not usable:
        return cannot_start(task.method, x0, loss)
    recorder = IterationRecorder(task, x0)
    if task.method == "scg":
        result = _scg(obj, x0, task, recorder, options)
    else:
        result = _by_scipy(obj, x0, task, recorder, options)
    result.value_and_grad = obj.cached(result.params)
    return result


def _loss_by_residuals(obj: CachedObjective, params: np.ndarray) -> float:
    """A least-squares objective from its residuals, which the cache holds for the method."""
    with np.errstate(all="ignore"):
        residuals = obj.residuals(params)
        return obj.problem.scale * float(residuals @ residuals)


def _within_bounds(obj: CachedObjective, task: FitTask) -> tuple[np.ndarray, dict[str, Any]]:
    """The start in float64, moved to the nearest point within the bounds, and the options.

    Bounds in the options become SciPy's class. Fixed entries of the start stay as they are.
    """
    x0, options = obj.net.checked_params(task.start).copy(), task.options
    if options.get("bounds") is None:
        return x0, options
    bounds = as_bounds(options["bounds"], len(x0), pairs=task.method not in BY_RESIDUALS)
    free = obj.net.free
    x0[free] = np.clip(x0, bounds.lb, bounds.ub)[free]
    return x0, options | {"bounds": bounds}


# Methods behind SciPy's interface.


def _by_scipy(
    obj: CachedObjective,
    x0: np.ndarray,
    task: FitTask,
    recorder: IterationRecorder,
    options: dict[str, Any],
) -> MethodResult:
    method, limits = str(task.method), task.limits
    call = _call_least_squares if method in BY_RESIDUALS else _call_minimize
    per_iteration, tolerances = LIMITS.get(method, {"maxiter": 1}), {}
    if limits.tol is not None:
        names = ("ftol", "xtol", "gtol") if method in BY_RESIDUALS else ("tol",)
        tolerances = dict.fromkeys(names, limits.tol)
    maxima = {name: times * limits.epochs + 1 for name, times in per_iteration.items()}
    options = maxima | tolerances | options
    try:
        with np.errstate(all="ignore"):  # methods step back from what overflows, or report it
            end = call(obj, x0, method, recorder, options)
            loss = _final_loss(obj, method, end)
            if not np.array_equal(end.x, recorder.params) and isfinite(loss):
                recorder.record(end.x, loss)
    except (KeyboardInterrupt, Stop) as stop:
        return recorder.stopped(stop, obj.nfev)
    return _ended(obj, method, end, recorder, options)


def _ended(
    obj: CachedObjective,
    method: str,
    end: Any,
    recorder: IterationRecorder,
    options: dict[str, Any],
) -> MethodResult:
    """The result of a method that returned `end`, SciPy's result."""
    nit, loss = len(recorder.losses), _final_loss(obj, method, end)
    if not (np.isfinite(loss) and np.isfinite(end.x).all()):
        message = (
            f"{method} diverged in iteration {nit}: the objective is {loss:g}; start from other "
            f"parameters or scale X and y to about unit size"
        )
        result = recorder.result(Status.DIVERGED, message, obj.nfev)
        result.params = recorder.params
    else:
        status = Status.FINISHED
        if not end.success:
            spent = {"maxiter": nit, "maxfun": end.nfev, "max_nfev": end.nfev}
            over = any(done >= options.get(name, np.inf) for name, done in spent.items())
            status = Status.LIMIT if over else Status.STUCK
        result = recorder.result(status, str(end.message), obj.nfev)
        if recorder.best is None:
            result.params = end.x
    if not nit:
        result.loss = loss
    return result


def _final_loss(obj: CachedObjective, method: str, end: Any) -> float:
    """The objective of SciPy's result."""
    return float(end.cost * 2 * obj.problem.scale if method in BY_RESIDUALS else end.fun)


def _call_minimize(
    obj: CachedObjective,
    x0: np.ndarray,
    method: str,
    recorder: IterationRecorder,
    options: dict[str, Any],
) -> Any:
    def after_start(intermediate_result: Any) -> None:
        if intermediate_result.nit > 1:
            recorder(intermediate_result)

    # trust-constr calls back at the start too, as its first iteration.
    callback = after_start if method == "trust-constr" else recorder
    return run_minimizer(obj, x0, method, options | {"callback": callback})


def _call_least_squares(
    obj: CachedObjective,
    x0: np.ndarray,
    method: str,
    recorder: IterationRecorder,
    options: dict[str, Any],
) -> Any:
    return optimize.least_squares(_RecordedObjective(obj, recorder), x0, method=method, **options)


class _RecordedObjective(CachedObjective):
    """An objective that records an iteration where its Jacobian is evaluated, but for the start.

    SciPy's least squares evaluate it at the start and after each accepted step; some of its
    versions take no callback.
    """

    def __init__(self, obj: CachedObjective, recorder: IterationRecorder):
        self.__dict__ |= obj.__dict__  # with its caches
        self._recorder, self._begun = recorder, False

    def jacobian(self, params: Any) -> np.ndarray:
        if self._begun:
            self._recorder({"x": params, "fun": _loss_by_residuals(self, params)})
        self._begun = True
        return super().jacobian(params)


# Scaled conjugate gradients, which can be continued.


def _scg(
    obj: CachedObjective,
    x0: np.ndarray,
    task: FitTask,
    recorder: IterationRecorder,
    options: dict[str, Any],
) -> MethodResult:
    if callable(options.get("hessp")):
        raise TypeError(
            f"hessp is {options['hessp']!r}, expected True or False: the objective brings its own"
        )
    limits, state, solver_state = task.limits, task.saved_state, None
    free = FreeCoordinates(obj, x0)
    if state is not None:
        states.require_same(state, task.identity)
        solver_state = _solver_state(state, len(free.x0))
        recorder.restore(state, solver_state["nit"], free.full(solver_state["x"]))
    solver = SCGSolver(
        free.value_and_grad,
        free.hessp if options.get("hessp") else None,
        free.x0,
        tol=limits.tol or 0.0,
        state=solver_state,
        **{name: value for name, value in options.items() if name == "sigma"},
    )
    recorder.require_unfinished(solver.nit)
    recorder.save_states(solver.state)
    try:
        while solver.status is None and solver.nit < limits.epochs:
            solver.step()
            recorder.record(free.full(solver.x), solver.f)
    except (KeyboardInterrupt, Stop) as stop:
        result = recorder.stopped(stop, 0)
    else:
        status = {None: Status.LIMIT, CONVERGED: Status.FINISHED}.get(solver.status, Status.STUCK)
        result = recorder.result(status, solver.message or ALL_DONE, 0)
        result.loss = solver.f
    assert result.state is not None
    result.nfev = result.state["nfev"]  # without those of a step that was interrupted
    return result


def _solver_state(state: dict[str, Any], n_free: int) -> dict[str, Any]:
    """The state of an `SCGSolver` in n_free coordinates, from that of a fit."""
    result = {name: states.array(state, name, (n_free,)) for name in ("x", "g", "direction")}
    result |= {name: states.number(state, name) for name in ("nit", "nfev", "nhev")}
    result |= {"f": states.number(state, "f", float, -np.inf)}
    result |= {"damping": states.number(state, "damping", float)}
    if "curvature" in state:
        result["curvature"] = states.number(state, "curvature", float, -np.inf)
    if "status" in state:
        result["status"] = states.number(state, "status")
    return result
