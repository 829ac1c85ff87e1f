"""Full-batch methods inside `fit`: iterations recorded, shown and told, and stopped if asked."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

import numpy as np

from .. import optimize
from ..common.arrays import FLOAT64
from ..common.errors import unknown_name
from ..optimize._scg import Search
from ..optimize.cache import Remembered
from ..optimize.free_coordinates import FreeCoordinates
from ..optimize.function import CONVERGED
from ..optimize.scipy_methods import METHODS as MINIMIZE, as_bounds, least_squares_names, minimized
from ..reports.words import ALL_DONE, AT_START, Status
from ..training import state as states
from ..training.callbacks import Observer
from ..training.data import FitData
from . import lm
from .iterations import Limits, Outcome, Stop, Trace, stopped

LEAST_SQUARES = ("trf", "dogbox")
METHODS = (*MINIMIZE, *LEAST_SQUARES, "lm")
CONTINUED = ("lm", "scg")  # those with a state to go on from
# What a method is allowed for each iteration, where that is more than an iteration: the trace ends
# it, and its own limits must not come before.
LIMITS = {
    "L-BFGS-B": {"maxiter": 1, "maxfun": 21},  # maxls is 20
    "TNC": {"maxfun": 100},
    "trf": {"max_nfev": 100},
    "dogbox": {"max_nfev": 100},
}


def require_options(method: str, options: Iterable[str], others: Iterable[str]) -> None:
    """Raise TypeError for an option that the method has not.

    The message lists those it has, and `others`, the arguments that the caller takes itself.
    """
    if "callback" in options:
        raise TypeError(
            "callback is not an option of fit, whose callbacks=... are told of every iteration; "
            "fastbp.optimize.minimize and least_squares take one"
        )
    if method in LEAST_SQUARES:
        known = least_squares_names()
    elif method == "lm":
        known = set(lm.NAMES)
    elif method == "scg":
        known = {"hessp", "sigma"}
    else:
        row = MINIMIZE[method]
        known = {"options", *row.options, *row.constrained}
        known |= {"hess"} if row.hessian == "hessp" else set()
    for option in options:
        if option not in known:
            names = [*sorted(known), *others]
            raise TypeError(unknown_name(f"option of method {method!r}", option, names))


class _Told(Remembered):
    """An objective whose Jacobian tells a trace of iterations.

    SciPy's least squares take it at the start and after each step that was accepted; not all of its
    versions call back.
    """

    def __init__(self, obj: Remembered, trace: Trace):
        self.__dict__ |= obj.__dict__  # with what it remembers
        self._trace, self._begun = trace, False

    def jacobian(self, params: Any) -> np.ndarray:
        if self._begun:
            self._trace({"x": params, "fun": _sum_of_squares(self, params)})
        self._begun = True
        return super().jacobian(params)


def _sum_of_squares(obj: Remembered, params: np.ndarray) -> float:
    """A least-squares objective from its residuals, which are remembered."""
    with np.errstate(all="ignore"):
        residuals = obj.residuals(params)
        return obj.problem.scale * float(residuals @ residuals)


def minimise(
    data: FitData,
    method: str,
    start: np.ndarray,
    limits: Limits,
    observer: Observer,
    options: dict[str, Any],
    identity: dict[str, Any],
    state: dict[str, Any] | None,
) -> Outcome:
    """Run a full-batch method.

    Parameters
    ----------
    data : FitData
    method : str
        One of METHODS.
    start : numpy.ndarray (n_params,)
        For columns as they were scaled.
    limits : Limits
    observer : Observer
    options : dict
        What `fastbp.optimize` takes.
    identity : dict
        What the states of one run have in common.
    state : dict or None
        Of a run with this identity that is to go on, for methods in CONTINUED.
    """
    if method == "lm":
        return _lm(data, start, limits, observer, options, identity, state)
    obj = Remembered(data.training.astype(FLOAT64))
    x0, options = _within_bounds(obj, start, method, options)
    if method in LEAST_SQUARES:
        loss = _sum_of_squares(obj, x0)
        usable = isfinite(loss)
    else:
        loss, grad = obj.value_and_grad(x0)
        usable = isfinite(loss) and bool(np.isfinite(grad).all())
    if not usable:
        return _unusable(method, x0, loss)
    trace = Trace(data, x0, limits, observer)
    if method == "scg":
        out = _scg(obj, x0, limits, trace, options, identity, state)
    else:
        out = _by_scipy(obj, x0, method, limits, trace, options)
    out.known = obj.known(out.params)
    return out


def _unusable(method: str, x0: np.ndarray, loss: float) -> Outcome:
    message = f"{method} cannot start: the objective is {loss:g}{AT_START}"
    return Outcome(x0, Status.DIVERGED, message, 0, 1, [], [], loss)


def _lm(
    data: FitData,
    start: np.ndarray,
    limits: Limits,
    observer: Observer,
    options: dict[str, Any],
    identity: dict[str, Any],
    state: dict[str, Any] | None,
) -> Outcome:
    obj, method = data.training.astype(FLOAT64), lm.LM(**options)
    x0 = obj.net.checked_params(start).copy()
    loss = obj.problem_scale * obj.sum_of_squares(x0, method.robust, method.f_scale)
    if not isfinite(loss):
        return _unusable("lm", x0, loss)
    return lm.minimise(obj, x0, limits, Trace(data, x0, limits, observer), method, identity, state)


def _within_bounds(
    obj: Remembered, start: np.ndarray, method: str, options: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The start, moved to the nearest point within bounds, and the options with these as SciPy's.

    Entries that are fixed stay as they are.
    """
    x0 = obj.net.checked_params(start).copy()
    if options.get("bounds") is None:
        return x0, options
    bounds = as_bounds(options["bounds"], len(x0), pairs=method not in LEAST_SQUARES)
    free = obj.net.free
    x0[free] = np.clip(x0, bounds.lb, bounds.ub)[free]
    return x0, options | {"bounds": bounds}


def _by_scipy(
    obj: Remembered,
    x0: np.ndarray,
    method: str,
    limits: Limits,
    trace: Trace,
    options: dict[str, Any],
) -> Outcome:
    search = _least_squares if method in LEAST_SQUARES else _minimize
    own, tolerances = LIMITS.get(method, {"maxiter": 1}), {}
    if limits.tol is not None:
        names = ("ftol", "xtol", "gtol") if method in LEAST_SQUARES else ("tol",)
        tolerances = dict.fromkeys(names, limits.tol)
    own = {name: times * limits.epochs + 1 for name, times in own.items()}
    options = own | tolerances | options
    try:
        with np.errstate(all="ignore"):  # what overflows on the way is backed off from, or told
            found = search(obj, x0, method, trace, options)
            loss = float(_value(obj, method, found))
            if not np.array_equal(found.x, trace.params) and isfinite(loss):
                trace.record(found.x, loss)
    except (KeyboardInterrupt, Stop) as stop:
        out = stopped(trace, stop)
    else:
        out = _outcome(obj, method, found, trace, options)
    out.nfev = obj.nfev
    return out


def _outcome(
    obj: Remembered, method: str, found: Any, trace: Trace, options: dict[str, Any]
) -> Outcome:
    nit = len(trace.losses)
    loss = _value(obj, method, found)
    if not (np.isfinite(loss) and np.isfinite(found.x).all()):
        status, params = Status.DIVERGED, trace.params
        message = (
            f"{method} diverged in iteration {nit}: the objective is {loss:g}; start from other "
            f"parameters or scale X and y to about unit size"
        )
    else:
        status, params, message = Status.FINISHED, found.x, str(found.message)
        if not found.success:
            spent = {"maxiter": nit, "maxfun": found.nfev, "max_nfev": found.nfev}
            over = any(done >= options.get(name, np.inf) for name, done in spent.items())
            status = Status.LIMIT if over else Status.STUCK
        if trace.best is not None:
            params = trace.best
    loss = trace.losses[-1] if trace.losses else float(loss)
    return Outcome(params, status, message, nit, obj.nfev, trace.losses, trace.validation, loss)


def _value(obj: Remembered, method: str, found: Any) -> float:
    """The objective that a method ended with."""
    return found.cost * 2 * obj.problem.scale if method in LEAST_SQUARES else found.fun


def _minimize(
    obj: Remembered, x0: np.ndarray, method: str, trace: Trace, options: dict[str, Any]
) -> Any:
    def after_start(intermediate_result: Any) -> None:
        if intermediate_result.nit > 1:
            trace(intermediate_result)

    # trust-constr calls back at the start too, as its first iteration.
    callback = after_start if method == "trust-constr" else trace
    return minimized(obj, x0, method, options | {"callback": callback})


def _least_squares(
    obj: Remembered, x0: np.ndarray, method: str, trace: Trace, options: dict[str, Any]
) -> Any:
    return optimize.least_squares(_Told(obj, trace), x0, method=method, **options)


# Scaled conjugate gradients, which can be continued.


def _scg(
    obj: Remembered,
    x0: np.ndarray,
    limits: Limits,
    trace: Trace,
    options: dict[str, Any],
    identity: dict[str, Any],
    state: dict[str, Any] | None,
) -> Outcome:
    if callable(options.get("hessp")):
        raise TypeError(
            f"hessp is {options['hessp']!r}, expected True or False: the objective brings its own"
        )
    inside = FreeCoordinates(obj, x0)
    own = None
    if state is not None:
        states.require_same(state, identity)
        own = _searched(state, len(inside.x0))
        trace.restore(state, own["nit"])
    search = Search(
        inside.value_and_grad,
        inside.hessp if options.get("hessp") else None,
        inside.x0,
        tol=limits.tol or 0.0,
        state=own,
        **{name: value for name, value in options.items() if name == "sigma"},
    )
    if search.nit >= limits.epochs:
        raise ValueError(
            f"state is of a run with {search.nit} iterations, and epochs is {limits.epochs}: it "
            f"counts those before it too; pass a larger number to go on"
        )
    # An interrupt may leave the search in the middle of a step; this is whole.
    kept = search.state()

    def keep() -> None:
        nonlocal kept
        kept = search.state()

    trace.keep, trace.state = keep, lambda: identity | trace.records() | kept
    try:
        while search.status is None and search.nit < limits.epochs:
            search.step()
            trace.record(inside.full(search.x), search.f)
    except (KeyboardInterrupt, Stop) as stop:
        out = stopped(trace, stop)
    else:
        status = {None: Status.LIMIT, CONVERGED: Status.FINISHED}.get(search.status, Status.STUCK)
        message = search.message or ALL_DONE
        params = inside.full(search.x) if trace.best is None else trace.best
        records = (trace.losses, trace.validation)
        out = Outcome(params, status, message, search.nit, search.nfev, *records, search.f)
    out.nfev, out.state = kept["nfev"], trace.state()
    return out


def _searched(state: dict[str, Any], n: int) -> dict[str, Any]:
    """What `Search` goes on from, of a search in n coordinates."""
    found = {name: states.array(state, name, (n,)) for name in ("x", "g", "direction")}
    found |= {name: states.number(state, name) for name in ("nit", "nfev", "nhev")}
    found |= {"f": states.number(state, "f", float, -np.inf)}
    found |= {"damping": states.number(state, "damping", float)}
    if "curvature" in state:
        found["curvature"] = states.number(state, "curvature", float, -np.inf)
    if "status" in state:
        found["status"] = states.number(state, "status")
    return found
