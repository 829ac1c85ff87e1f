"""Levenberg and Marquardt's method inside `fit`."""

from __future__ import annotations

import time as clock
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from ..maths.linear_models import effective_number
from ..maths.marquardt import RUNNING, STUCK as NO_STEP, LMSolver, Rules
from ..networks.objective import Objective
from ..optimize._levenberg_marquardt import RECORDED, checked_rules, ending
from ..optimize.free_coordinates import FreeCoordinates
from ..optimize.network_rows import Fused, NetworkRows
from ..optimize.scipy_methods import as_bounds, require_memory
from ..reports.words import ALL_DONE, Status
from ..training import state as states
from .iterations import Limits, Outcome, Stop, Trace, stopped

CHUNK_SECONDS = 0.1  # between looks at Ctrl-C
SETTLED = 1e-3  # the change, as a share, of an l2 that has been found
MOST_UNMOVED = 20  # changes of l2 in a row after each of which no step helped


@dataclass(frozen=True)
class LM:
    """Levenberg and Marquardt's method for a network's least squares.

    As `fastbp.optimize.levenberg_marquardt`, with steps measured alike in all parameters unless
    `uniform` is False: weights of scaled data are of one kind.

    Parameters
    ----------
    mu, mu_max : float
        The first damping, relative to the mean of JᵀJ's diagonal, and the one beyond which the fit
        is stuck.
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
        Find l2 on the way, as the ratio of the precisions of weights and residuals that is the most
        probable [1]_ [2]_. ``history`` then has it as "l2", and as "n_effective" the effective
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

    def rules(self, tol: float | None) -> Rules:
        """The numbers of the search, checked; `tol` is for all three tolerances."""
        names = [field.name for field in fields(Rules)]
        given = {name: getattr(self, name) for name in names}
        if tol is not None:
            given |= dict.fromkeys(("ftol", "xtol", "gtol"), tol)
        return checked_rules(**given)


NAMES = tuple(field.name for field in fields(LM))


def minimise(
    obj: Objective,
    x0: np.ndarray,
    limits: Limits,
    trace: Trace,
    method: LM,
    identity: dict[str, Any],
    state: dict[str, Any] | None,
) -> Outcome:
    """Run it from x0 (n_params,); the other arguments are those of `_full_batch.minimise`."""
    own = None
    if state is not None:
        states.require_same(state, identity)
        own = _restored(state, obj.net.n_params, obj.net.n_free)
        trace.restore(state, own["nit"])
        x0 = own.pop("x")
    run = _Run(obj, x0, limits, trace, method, own)
    kept = run.state()

    def keep() -> None:
        nonlocal kept
        kept = run.state()

    trace.keep, trace.state = keep, lambda: identity | trace.records() | kept
    try:
        status, message = run.to_the_end()
    except (KeyboardInterrupt, Stop) as stop:
        out = stopped(trace, stop)
    else:
        params = trace.params if trace.best is None else trace.best
        loss = trace.losses[-1] if trace.losses else np.nan
        out = Outcome(
            params, status, message, run.search.nit, run.search.nfev, trace.losses,
            trace.validation, loss,
        )  # fmt: skip
    out.nfev, out.state, out.history = run.search.nfev, trace.state(), run.history()
    out.l2 = run.l2
    return out


class _Run:
    """A search and what was recorded of its steps."""

    def __init__(
        self,
        obj: Objective,
        x0: np.ndarray,
        limits: Limits,
        trace: Trace,
        method: LM,
        own: dict[str, Any] | None,
    ):
        self.obj, self.limits, self.trace, self.method = obj, limits, trace, method
        self.scale = obj.problem_scale  # of the sum of squares in the objective
        self.records = [np.empty((0, 4))]
        self.evidence: list[tuple[float, float]] = []  # l2, the effective number of parameters
        self.unmoved = 0
        self.rules = method.rules(limits.tol)
        free, within = obj.net.free, None
        if method.bounds is not None:
            bounds = as_bounds(method.bounds, len(x0), pairs=False)
            within = bounds.lb[free], bounds.ub[free]
            x0[free] = np.clip(x0[free], *within)
        self.inside = FreeCoordinates(obj, x0)
        rows = NetworkRows(obj, self.inside, method.robust, method.f_scale)
        prior, x = obj.prior(None if own is None else own["l2"])[free], self.inside.x0
        require_memory("lm", 3 * len(x) * min(len(x), obj.n_residuals))
        if method.bayesian and obj.prior().any():
            raise ValueError(
                "bayesian=True finds l2 itself, and l2 was given; leave one of them out"
            )
        self.search: LMSolver | Fused
        if rows.wide or method.bayesian or within is not None or obj._blocks:
            self.search = LMSolver(rows, x, self.rules, prior, within)
        else:
            self.search = Fused(rows, self.rules, prior)
        if own is not None:
            self.records, self.evidence = [own["records"]], own["evidence"].tolist()
            self.search.restore(own["search"])

    # Along the way.

    def to_the_end(self) -> tuple[int, str]:
        """Steps until the search ends or has made `epochs`; status and message for the result."""
        search, epochs = self.search, self.limits.epochs
        if search.nit >= epochs:
            raise ValueError(
                f"state is of a run with {search.nit} iterations, and epochs is {epochs}: it "
                f"counts those before it too; pass a larger number to go on"
            )
        count = 1
        while search.status == RUNNING and search.nit < epochs:
            before = clock.perf_counter()
            found = search.steps(min(count, epochs - search.nit), self.limits.goal / self.scale)
            if self.method.bayesian:
                self._weigh_evidence(len(found) > 0)
            if len(found):
                count = self._next(count, clock.perf_counter() - before)
                self._record(found)
        if search.status == RUNNING:
            return Status.LIMIT, ALL_DONE
        return (Status.STUCK if search.status == NO_STEP else Status.FINISHED), ending(
            search, self.rules
        )

    def _next(self, count: int, seconds: float) -> int:
        """How many steps to take at once, where nobody looks at each of them."""
        if not self.trace.unwatched or self.method.bayesian:
            return 1
        return max(1, min(2 * count, int(CHUNK_SECONDS * count / max(seconds, 1e-6))))

    def _record(self, found: np.ndarray) -> None:
        self.records.append(found)
        losses = 2 * self.scale * found[:, 0]
        if isinstance(self.search, LMSolver) and self.method.bayesian:  # l2 changes: without it
            losses[-1] = self.scale * self.search.squares
        self.trace.losses += losses[:-1].tolist()
        self.trace.record(self.inside.full(self.search.x), float(losses[-1]))

    def history(self) -> dict[str, np.ndarray]:
        """What is told of each step beside the objective."""
        columns = np.concatenate(self.records).T
        told = dict(zip(RECORDED[1:], columns[1:], strict=True))
        if self.method.bayesian:
            l2, effective = np.array(self.evidence).reshape(-1, 2).T
            told |= {"l2": l2, "n_effective": effective}
        return told

    # Bayesian regularisation.

    @property
    def l2(self) -> float | None:
        """The penalty that was found, None if it was not looked for."""
        if not (self.method.bayesian and isinstance(self.search, LMSolver)):
            return None
        return 2 * self.scale * float(self.search.prior.max())

    @cached_property
    def weights(self) -> np.ndarray:
        """Which free parameters are weights, not biases."""
        return np.isin(self.obj.net.free, self.obj._weight_indices)

    def _weigh_evidence(self, moved: bool) -> None:
        """Set l2 to the ratio of the precisions of weights and residuals, where the search is.

        With H = JᵀJ + Λ, γ = n - tr(Λ H⁻¹) parameters are determined by the data. The residuals'
        precision is then (m - γ)/r·r, that of the weights γ less the parameters without a prior
        over w·w; Λ is their ratio.
        """
        search, obj = self.search, self.obj
        assert isinstance(search, LMSolver)
        n, before = len(search.x), float(search.prior.max())
        effective = effective_number(search.linear, search.prior)
        freedom = obj.n_residuals - effective
        if freedom <= 0:  # as many parameters as residuals: take all for noise at first
            freedom = obj.n_residuals
        determined = max(effective - (n - self.weights.sum()), 0.0)
        w = search.x[self.weights]
        ratio = determined * search.squares / max(freedom * float(w @ w), 1e-300)
        ended = search.status
        search.set_prior(ratio * self.weights)
        if moved:
            self.evidence.append((2 * self.scale * ratio, effective))
        self.unmoved = 0 if moved else self.unmoved + 1
        settled = abs(ratio - before) <= SETTLED * ratio or self.unmoved == MOST_UNMOVED
        if ended != RUNNING:
            search.status = ended if settled else RUNNING

    def state(self) -> dict[str, Any]:
        """What the next steps depend on, and the records."""
        found = {
            "x": self.inside.full(self.search.x),
            "records": np.concatenate(self.records),
            "evidence": np.array(self.evidence, float).reshape(-1, 2),
            **self.search.state(),
        }
        return found if self.l2 is None else found | {"l2": self.l2}


def _restored(state: dict[str, Any], n_params: int, n_free: int) -> dict[str, Any]:
    """What a run goes on from, out of its state."""
    nit = states.number(state, "nit")
    search = {name: states.number(state, name) for name in ("nit", "nfev", "njev")}
    search |= {"scales": states.array(state, "scales", (n_free,))}
    search |= {"mu": states.number(state, "mu", float)}
    l2 = states.number(state, "l2", float) if "l2" in state else None  # bayesian alone
    return {
        "search": search,
        "nit": nit,
        "x": states.array(state, "x", (n_params,)),
        "l2": l2,
        "records": states.array(state, "records", (nit, 4)),
        "evidence": states.array(state, "evidence", (0 if l2 is None else nit, 2)),
    }
