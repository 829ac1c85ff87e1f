"""`LM`, and Levenberg and Marquardt's method within `fit`."""

from __future__ import annotations

import time as clock
from dataclasses import dataclass, fields
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np

from ..common.arrays import FLOAT64
from ..maths.linear_models import effective_number
from ..maths.marquardt import RUNNING, STUCK as NO_STEP, LMOptions, LMSolver
from ..networks.objective import Objective
from ..optimize._levenberg_marquardt import checked_options, end_message
from ..optimize.curve_solver import RECORDED
from ..optimize.free_coordinates import FreeCoordinates
from ..optimize.network_least_squares import BackendLMSolver, NetworkSquares
from ..optimize.scipy_methods import as_bounds, require_memory
from ..reports.words import ALL_DONE, Status
from ..training import state as states
from .iterations import IterationRecorder, Stop, cannot_start
from .task import FitTask, Limits, MethodResult

CHUNK_SECONDS = 0.1  # of steps in one call, after which Ctrl-C is answered
SETTLED = 1e-3  # l2 has converged if it changes by no more than this share
MOST_UNMOVED = 20  # changes of l2 in a row after each of which no step helped


@dataclass(frozen=True)
class LM:
    """Levenberg and Marquardt's method for a network's least squares.

    As `fastbp.optimize.levenberg_marquardt`, but that all parameters are damped alike unless
    `uniform` is False: weights for scaled data are of one kind.

    Parameters
    ----------
    mu, mu_max : float
        The first damping, relative to the mean of JᵀJ's diagonal, and the largest, where the fit
        stops as stuck.
    mu_dec, mu_inc : float, optional
        The factors of mu after a step and after a failure, such as 0.1 and 10; by default they
        follow what the steps gain, and the failures.
    min_grad : float, default 0.0
        Converged if no entry of Jᵀr is larger.
    ftol, xtol, gtol : float
        Converged: where a step changes the sum of squares, or the parameters, by no more than this
        share; where no cosine between r and a column of J is larger.
    uniform : bool, default True
        Whether all parameters are damped alike, instead of by the lengths of J's columns.
    bend : bool, default True
        Whether steps follow the curve of the residuals (geodesic acceleration).
    robust : {"linear", "huber", "soft_l1", "cauchy"}, default "linear"
        How residuals larger than `f_scale` count, as in `scipy.optimize.least_squares`; the sample
        weights multiply that.
    f_scale : float, default 1.0
        Where outliers begin, in units of y, scaled if `fit` scales it.
    bounds : pair of array_like (n_params,), optional
        Between which the parameters stay: (lower, upper), or scipy.optimize.Bounds. A start
        outside is moved to the nearest point within.
    bayesian : bool, default False
        Determine l2 during the fit, as the most probable ratio of the precisions of weights and
        residuals [1]_ [2]_. ``history`` then has it as "l2", and as "n_effective" the effective
        number of parameters.
    max_fail, time : int, float, optional
        Other names of the arguments `patience` and `max_time` of `fit`.

    References
    ----------
    .. [1] D. J. C. MacKay, "Bayesian interpolation", Neural Computation 4(3), 1992.
    .. [2] F. D. Foresee, M. T. Hagan, "Gauss-Newton approximation to Bayesian learning", ICNN 1997.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> X = np.linspace(-1, 1, 50).reshape(-1, 1)
    >>> net = fb.Network(1, fb.Dense(5, "tanh"), fb.Dense(1))
    >>> res = fb.fit(net, X, np.sin(3 * X), method=fb.LM(mu=0.1), seed=0)
    >>> res.fun < 1e-6
    True
    """

    mu: float = 1e-2
    mu_dec: float | None = None
    mu_inc: float | None = None
    mu_max: float = 1e16
    min_grad: float = 0.0
    ftol: float = 1e-12
    xtol: float = 1e-10
    gtol: float = 1e-10
    uniform: bool = True
    bend: bool = True
    robust: str = "linear"
    f_scale: float = 1.0
    bounds: Any = None
    bayesian: bool = False
    max_fail: int | None = None
    time: float | None = None

    def lm_options(self, tol: float | None) -> LMOptions:
        """The numbers of the search, checked; `tol` replaces all three tolerances."""
        numbers = {field.name: getattr(self, field.name) for field in fields(LMOptions)}
        if tol is not None:
            numbers |= dict.fromkeys(("ftol", "xtol", "gtol"), tol)
        return checked_options(**numbers)


NAMES = tuple(field.name for field in fields(LM))


def run(task: FitTask) -> MethodResult:
    """Run Levenberg and Marquardt's method on a task, whose options are fields of `LM`.

    Raises
    ------
    TypeError, ValueError, ShapeError, MemoryError
        As `fit`: for what the method or the loss cannot take.
    """
    obj, method = task.data.training.astype(FLOAT64), LM(**task.options)
    x0 = obj.net.checked_params(task.start).copy()
    loss = obj.problem_scale * obj.sum_of_squares(x0, method.robust, method.f_scale)
    if not isfinite(loss):
        return cannot_start("lm", x0, loss)
    recorder, run_state = IterationRecorder(task, x0), None
    if task.saved_state is not None:
        states.require_same(task.saved_state, task.identity)
        run_state = _run_state(task.saved_state, obj.net.n_params, obj.net.n_free)
        x0 = run_state["x"]
        recorder.restore(task.saved_state, run_state["solver"]["nit"], x0)
    lm_run = _LMRun(obj, x0, task.limits, recorder, method, run_state)
    recorder.save_states(lm_run.state)
    try:
        status, message = lm_run.to_the_end()
    except (KeyboardInterrupt, Stop) as stop:
        result = recorder.stopped(stop, lm_run.solver.nfev)
    else:
        result = recorder.result(status, message, lm_run.solver.nfev)
    result.history, result.l2 = lm_run.history(), lm_run.l2
    return result


class _LMRun:
    """A search by Levenberg and Marquardt's method, and the records of its steps.

    Parameters
    ----------
    obj : Objective
        Over scaled columns, in float64.
    x0 : numpy.ndarray (n_params,)
        Where to start or continue; moved into the bounds in place.
    limits : Limits
    recorder : IterationRecorder
    method : LM
    run_state : dict or None
        What `_run_state` returned, to continue a run.

    Attributes
    ----------
    solver : marquardt.LMSolver or BackendLMSolver
        In the free parameters.
    records : list of numpy.ndarray (k, 4)
        A row per step, with the columns RECORDED.
    evidence : list of tuple
        With `bayesian`, l2 and the effective number of parameters after each step.
    """

    def __init__(
        self,
        obj: Objective,
        x0: np.ndarray,
        limits: Limits,
        recorder: IterationRecorder,
        method: LM,
        run_state: dict[str, Any] | None,
    ):
        self.obj, self.limits, self.recorder, self.method = obj, limits, recorder, method
        self.scale = obj.problem_scale  # of the sum of squares in the objective
        self.records = [np.empty((0, 4))]
        self.evidence: list[tuple[float, float]] = []
        self.unmoved = 0
        self.options = method.lm_options(limits.tol)
        free, bounds = obj.net.free, None
        if method.bounds is not None:
            pair = as_bounds(method.bounds, len(x0), pairs=False)
            bounds = pair.lb[free], pair.ub[free]
            x0[free] = np.clip(x0[free], *bounds)
        self.free = FreeCoordinates(obj, x0)
        squares = NetworkSquares(obj, self.free, method.robust, method.f_scale)
        prior, x = obj.prior(None if run_state is None else run_state["l2"])[free], self.free.x0
        require_memory("lm", 3 * len(x) * min(len(x), obj.n_residuals))
        if method.bayesian and obj.prior().any():
            raise ValueError(
                "bayesian=True finds l2 itself, and l2 was given; leave one of them out"
            )
        self.solver: LMSolver | BackendLMSolver
        if squares.wide or method.bayesian or bounds is not None or obj._blocks:
            self.solver = LMSolver(squares, x, self.options, prior, bounds)
        else:
            self.solver = BackendLMSolver(squares, self.options, prior)
        if run_state is not None:
            self.records, self.evidence = [run_state["records"]], run_state["evidence"].tolist()
            self.solver.restore(run_state["solver"])

    # Steps.

    def to_the_end(self) -> tuple[int, str]:
        """Step until the search ends or has made `epochs` steps; the status and message then."""
        solver, epochs = self.solver, self.limits.epochs
        self.recorder.require_unfinished(solver.nit)
        count = 1
        while solver.status == RUNNING and solver.nit < epochs:
            before = clock.perf_counter()
            records = solver.steps(min(count, epochs - solver.nit), self.limits.goal / self.scale)
            if self.method.bayesian:
                self._update_l2(len(records) > 0)
            if len(records):
                count = self._next_count(count, clock.perf_counter() - before)
                self._record(records)
        if solver.status == RUNNING:
            return Status.LIMIT, ALL_DONE
        status = Status.STUCK if solver.status == NO_STEP else Status.FINISHED
        return status, end_message(solver, self.options)

    def _next_count(self, count: int, seconds: float) -> int:
        """How many steps to take in the next call, after `count` steps took so many seconds."""
        if not self.recorder.unwatched or self.method.bayesian:
            return 1
        return max(1, min(2 * count, int(CHUNK_SECONDS * count / max(seconds, 1e-6))))

    def _record(self, records: np.ndarray) -> None:
        """Record the steps of a call (k, 4); callbacks see the last of them."""
        self.records.append(records)
        losses = 2 * self.scale * records[:, 0]
        if isinstance(self.solver, LMSolver) and self.method.bayesian:
            # l2 changes from step to step: the objective is without it.
            losses[-1] = self.scale * self.solver.squares
        self.recorder.losses += losses[:-1].tolist()
        self.recorder.record(self.free.full(self.solver.x), float(losses[-1]))

    def history(self) -> dict[str, np.ndarray]:
        """The history of the steps beside the objective, an array (iterations,) each."""
        columns = np.concatenate(self.records).T
        history = dict(zip(RECORDED[1:], columns[1:], strict=True))
        if self.method.bayesian:
            l2, effective = np.array(self.evidence).reshape(-1, 2).T
            history |= {"l2": l2, "n_effective": effective}
        return history

    # Bayesian regularisation.

    @property
    def l2(self) -> float | None:
        """The penalty that a bayesian search has reached, else None."""
        if not (self.method.bayesian and isinstance(self.solver, LMSolver)):
            return None
        return 2 * self.scale * float(self.solver.prior.max())

    @cached_property
    def weights(self) -> np.ndarray:
        """Which free parameters are weights, not biases; bool (n_free,)."""
        return np.isin(self.obj.net.free, self.obj._weight_indices)

    def _update_l2(self, moved: bool) -> None:
        """Set l2 to the ratio of the precisions of weights and residuals at the solver's x.

        `moved` says whether a step was taken since the last update.

        With H = JᵀJ + Λ, γ = n - tr(Λ H⁻¹) parameters are determined by the data. The residuals'
        precision is then (m - γ)/r·r, that of the weights γ less the parameters without a prior
        over w·w; Λ is their ratio.
        """
        solver, obj = self.solver, self.obj
        assert isinstance(solver, LMSolver)
        n, before = len(solver.x), float(solver.prior.max())
        effective = effective_number(solver.linear, solver.prior)
        freedom = obj.n_residuals - effective
        if freedom <= 0:  # as many parameters as residuals: take all for noise at first
            freedom = obj.n_residuals
        determined = max(effective - (n - self.weights.sum()), 0.0)
        w = solver.x[self.weights]
        ratio = determined * solver.squares / max(freedom * float(w @ w), 1e-300)
        ended = solver.status
        solver.set_prior(ratio * self.weights)  # which also resets the status
        if moved:
            self.evidence.append((2 * self.scale * ratio, effective))
        self.unmoved = 0 if moved else self.unmoved + 1
        settled = abs(ratio - before) <= SETTLED * ratio or self.unmoved == MOST_UNMOVED
        if ended != RUNNING:
            solver.status = ended if settled else RUNNING

    def state(self) -> dict[str, Any]:
        """What the next steps depend on, and the records."""
        state = {
            "x": self.free.full(self.solver.x),
            "records": np.concatenate(self.records),
            "evidence": np.array(self.evidence, float).reshape(-1, 2),
            **self.solver.state(),
        }
        return state if self.l2 is None else state | {"l2": self.l2}


def _run_state(state: dict[str, Any], n_params: int, n_free: int) -> dict[str, Any]:
    """What `_LMRun` continues from, from the state of a fit; "solver" is that of its solver."""
    nit = states.number(state, "nit")
    solver = {name: states.number(state, name) for name in ("nit", "nfev", "njev")}
    solver |= {"scales": states.array(state, "scales", (n_free,))}
    solver |= {"mu": states.number(state, "mu", float)}
    l2 = states.number(state, "l2", float) if "l2" in state else None  # of bayesian runs alone
    return {
        "solver": solver,
        "x": states.array(state, "x", (n_params,)),
        "l2": l2,
        "records": states.array(state, "records", (nit, 4)),
        "evidence": states.array(state, "evidence", (0 if l2 is None else nit, 2)),
    }
