"""Levenberg and Marquardt's method for any sum of squares.

With the residuals r, their Jacobian J and a diagonal D that measures steps, a step v solves
(JᵀJ + μD) v = -Jᵀr [1]_ [2]_. It is bent by half the second derivative of r along it, so that it
follows the curve instead of the tangent [3]_. Where the sum of squares falls as the linear model
of r promises, μ becomes smaller, and larger where it does not [4]_.

References
----------
.. [1] K. Levenberg, "A method for the solution of certain non-linear problems in least squares",
   Quarterly of Applied Mathematics 2, 1944.
.. [2] D. W. Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", Journal
   of the Society for Industrial and Applied Mathematics 11, 1963.
.. [3] M. K. Transtrum, J. P. Sethna, "Improvements to the Levenberg-Marquardt algorithm for
   nonlinear least-squares minimization", arXiv:1201.5885, 2012.
.. [4] H. B. Nielsen, "Damping parameter in Marquardt's method", report IMM-REP-1999-05, Technical
   University of Denmark, 1999.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from typing import Any, Protocol

import numpy as np

from .linear_models import LinearModel, NormalModel

# Places in `LMState.state`.
SQUARES, MU, USED, RHO, NIT, NFEV, NJEV, STATUS = range(8)

# Status of a minimisation: why it ended (0: it has not).
STUCK, RUNNING, FLAT, SMALL, SHORT = range(-1, 4)

# The factor by which a scale (a squared length of a column of J) decays per iteration, while the
# column is shorter: a column that was long once, far from here, does not damp its parameter for
# ever.
DECAY = 0.64
TOO_LITTLE = 0.1  # a step is rejected if it gains less than this share of the prediction
# The gain of the last step drowns in rounding: the step is accepted if the sum of squares rises by
# no more than this share of itself.
UNSEEN = 2e-15
# The linear model counts as exact if gain and prediction differ by at most this share; mu is then
# multiplied by this factor.
EXACT = 1e-3
LONGEST_BEND = 0.75  # the longest bend (acceleration term) of a step, relative to the step
PROBE = 0.1  # the share of a step at which the second derivative is evaluated
STRAIGHT = 1e-8  # predicted gains below this share of the sum of squares need no bend
LEAST_LENGTH = 1e-300  # the least length of x with which steps are compared
LEAST_MU = 1e-30  # the least damping; the solution of the equations takes care of rounding itself
HELD = 1e150  # the damping of a parameter that does not move
# The Jacobian is wrong (status STUCK) if all steps fail, even the smallest, although a step longer
# than this share of x promised to gain more than this share of the sum of squares.
PROMISED = 1e-6
# Residuals are zero but for rounding if their sum of squares is below this share of x's squared
# length.
ROUNDED = 1e-28


@dataclass(frozen=True)
class LMOptions:
    """Options of Levenberg and Marquardt's method.

    Attributes
    ----------
    mu : float
        The first damping, relative to the scales.
    mu_dec, mu_inc : float or None
        Factors of mu after an accepted and after a rejected step; None for Nielsen's.
    mu_max : float
        The status becomes STUCK above this damping.
    uniform : bool
        Whether the scales are all the mean of the diagonal of JᵀJ instead of that diagonal.
    bend : bool
        Whether steps follow the second derivative of the residuals (geodesic acceleration).
    ftol : float
        Status SMALL if both the actual and the predicted change of the sum of squares by a step are
        no more than this share of it.
    xtol : float
        Status SHORT if a step is no longer than this share of x, both measured by the scales.
    gtol : float
        Status FLAT if no cosine between r and a column of J is larger.
    min_grad : float
        Status FLAT if no entry of Jᵀr is larger.
    """

    mu: float = 1e-3
    mu_dec: float | None = None
    mu_inc: float | None = None
    mu_max: float = 1e16
    uniform: bool = False
    bend: bool = True
    ftol: float = 1e-14
    xtol: float = 1e-12
    gtol: float = 1e-12
    min_grad: float = 0.0


@dataclass(eq=False)
class LMState:
    """The state of a minimisation inside a backend, in float64.

    `contract.descend` and `contract.fit_curve` update it.

    Attributes
    ----------
    params : numpy.ndarray (n_params,)
        The current parameters.
    prior : numpy.ndarray (n_free,)
        Σ prior_j x_j² over the free parameters is added to the sum of squares; it does not change.
    normal : numpy.ndarray (n_free + 1, n_free)
        JᵀJ at params and, as the last row, Jᵀr, both weighted as `contract.normal_equations` says;
        undefined before the first step.
    scales : numpy.ndarray (n_free,)
        The diagonal D that measures steps; 0 before the first step.
    state : numpy.ndarray (8,)
        Numbers, by place: SQUARES, the sum of squares without the prior; MU, the damping that the
        next step tries first; USED and RHO, the damping of the last step and its gain relative to
        the prediction; NIT, NFEV and NJEV, the numbers of steps and of evaluations of residuals and
        of Jacobians; STATUS.
    handles : dict
        Where a backend stores, under its name, what it made of the state.
    """

    params: np.ndarray
    prior: np.ndarray
    normal: np.ndarray
    scales: np.ndarray
    state: np.ndarray
    handles: dict[str, Any] = field(default_factory=dict, repr=False)


class SumOfSquares(Protocol):
    """A sum of squares as a function of x (n,)."""

    def total(self, x: np.ndarray) -> float:
        """The sum of squares."""
        ...

    def linear(self, x: np.ndarray) -> tuple[float, LinearModel]:
        """The sum of squares and its linear model around x."""
        ...


class NormalEquations:
    """A sum of squares by functions that sum over rows of data, without forming J.

    Parameters
    ----------
    normal_equations : callable
        x (n,) -> (JᵀJ (n, n), Jᵀr (n,), r·r).
    sum_of_squares : callable
        x -> r·r.
    jtr_at : callable
        (x, step (n,)) -> Jᵀ r(x + step) (n,), J being that at x.
    """

    def __init__(
        self,
        normal_equations: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, float]],
        sum_of_squares: Callable[[np.ndarray], float],
        jtr_at: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ):
        self.normal_equations, self.sum_of_squares = normal_equations, sum_of_squares
        self.jtr_at = jtr_at

    def total(self, x: np.ndarray) -> float:
        """The sum of squares."""
        return self.sum_of_squares(x)

    def linear(self, x: np.ndarray) -> tuple[float, LinearModel]:
        """The sum of squares and its linear model."""
        JTJ, JTr, total = self.normal_equations(x)
        return total, self.model(x, JTJ, JTr)

    def model(self, x: np.ndarray, JTJ: np.ndarray, JTr: np.ndarray) -> LinearModel:
        """The linear model around x with this JᵀJ (n, n) and Jᵀr (n,)."""
        return NormalModel(JTJ, JTr, lambda step: self.jtr_at(x, step))


class LMSolver:
    """Levenberg and Marquardt's method, one `step` at a time.

    Parameters
    ----------
    system : SumOfSquares
    x : numpy.ndarray (n,)
        The start, between the bounds.
    options : LMOptions
    prior : numpy.ndarray (n,) or None
        Adds Σ prior_j x_j² to the sum of squares.
    bounds : pair of numpy.ndarray (n,), or None
        The least and the largest x.
    at_start : pair or None
        `system.linear(x)` where the caller has it already.

    Attributes
    ----------
    x : numpy.ndarray (n,)
        The current point.
    total, squares : float
        The sum of squares at x, with the prior and without it.
    gradient : numpy.ndarray (n,)
        Half the gradient of the total, 0 for parameters held at a bound.
    linear : LinearModel
        The linear model around x.
    held : numpy.ndarray of bool (n,), or None
        The active bounds: parameters at a bound that the gradient would push across.
    scales : numpy.ndarray (n,)
        The diagonal D.
    mu, used, rho : float
        The damping that the next step tries first, the damping of the last step, and its gain
        relative to the prediction.
    nit, nfev, njev : int
        Numbers of steps, and of evaluations of residuals and of Jacobians.
    status : int
        RUNNING, or why the minimisation ended.
    """

    def __init__(
        self,
        system: SumOfSquares,
        x: np.ndarray,
        options: LMOptions,
        prior: np.ndarray | None = None,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
        at_start: tuple[float, LinearModel] | None = None,
    ):
        self.system, self.options, self.bounds = system, options, bounds
        self.prior = np.zeros_like(x) if prior is None else prior
        self.mu, self.used, self.nu, self.rho = options.mu, np.nan, 2.0, np.nan
        self.nit = self.nfev = self.njev = 0
        self.scales = np.zeros_like(x)
        self._move_to(x, *(self._linear(x) if at_start is None else at_start))

    @classmethod
    def from_state(
        cls,
        system: SumOfSquares,
        options: LMOptions,
        descent: LMState,
        x: np.ndarray,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> LMSolver:
        """The solver in the state of `descent`, whose free parameters are x."""
        state = descent.state
        if state[NJEV] == 0:
            return cls(system, x, options, descent.prior, bounds)
        if isinstance(system, NormalEquations):
            model = system.model(x, descent.normal[:-1].copy(), descent.normal[-1].copy())
            at_start = float(state[SQUARES]), model
        else:
            at_start = system.linear(x)
        solver = cls(system, x, options, descent.prior, bounds, at_start)
        solver.used, solver.rho = float(state[USED]), float(state[RHO])
        counts = {name: int(state[k]) for name, k in (("nit", NIT), ("nfev", NFEV), ("njev", NJEV))}
        solver.restore({"scales": descent.scales.copy(), "mu": float(state[MU])} | counts)
        solver.status = int(state[STATUS])
        return solver

    def store(self, descent: LMState) -> None:
        """Write the state to `descent`, except the parameters, which the caller writes."""
        numbers = (self.squares, self.mu, self.used, self.rho)
        descent.state[:] = *numbers, self.nit, self.nfev, self.njev, self.status
        descent.scales[:] = self.scales
        descent.normal[:-1], descent.normal[-1] = self.linear.JTJ, self.linear.gradient

    @property
    def counts(self) -> tuple[int, int, int]:
        """nit, nfev, njev."""
        return self.nit, self.nfev, self.njev

    @property
    def record(self) -> tuple[float, float, float, float]:
        """After a step: half the total, its mu and rho, and the largest entry of the gradient."""
        return self.total / 2, self.used, self.rho, float(np.abs(self.gradient).max())

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, except x and the prior."""
        return {
            "scales": self.scales.copy(),
            "mu": self.mu,
            "nit": self.nit,
            "nfev": self.nfev,
            "njev": self.njev,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue like a solver that had this `state` at this x."""
        for name, value in state.items():
            setattr(self, name, value)

    def set_prior(self, prior: np.ndarray) -> None:
        """Replace the prior."""
        self.prior = prior
        self._move_to(self.x, self.squares, self.linear)

    def _linear(self, x: np.ndarray) -> tuple[float, LinearModel]:
        self.njev += 1
        return self.system.linear(x)

    @np.errstate(all="ignore")
    def _move_to(self, x: np.ndarray, squares: float, linear: LinearModel) -> None:
        """Make x, with its sum of squares and its linear model, the current point."""
        options = self.options
        self.x, self.squares, self.linear = x, squares, linear
        self.total = squares + float(self.prior @ (x * x))
        self.gradient = linear.gradient + self.prior * x
        self._find_held()
        lengths = linear.diagonal + self.prior
        measured = np.full_like(lengths, lengths.mean()) if options.uniform else lengths
        scales = np.maximum(measured, DECAY * self.scales)
        self.scales = np.where(scales > 0, scales, 1.0)
        steepest = np.abs(self.gradient)
        cosines = steepest / np.sqrt(np.where(lengths > 0, lengths * self.total, inf))
        flat = steepest.max() <= options.min_grad or not cosines.max() > options.gtol
        self.status = FLAT if flat else RUNNING

    def _find_held(self) -> None:
        """Find the active bounds, and set the gradient of their parameters to 0."""
        self.held = None
        if self.bounds is not None:
            lower, upper = self.bounds
            g = self.gradient
            self.held = ((self.x <= lower) & (g > 0)) | ((self.x >= upper) & (g < 0))
            self.gradient = np.where(self.held, 0.0, g)

    def steps(self, count: int, goal: float = -inf) -> np.ndarray:
        """Take `count` steps, fewer if the minimisation ends or the total is not above `goal`.

        Returns
        -------
        numpy.ndarray (k, 4)
            The `record` of each step.
        """
        records: list[tuple[float, ...]] = []
        while len(records) < count and self.status == RUNNING:
            before = self.nit
            self.step()
            if self.nit > before:
                records.append(self.record)
                if self.total <= goal:
                    break
        return np.array(records).reshape(-1, 4)

    @np.errstate(all="ignore")  # a step that overflows is rejected
    def step(self) -> None:
        """One iteration: take a step that decreases the sum of squares, or set the status."""
        self.nu = 2.0
        promised = None
        while self.status == RUNNING:
            trial = _TrialStep(self)
            promised = promised or trial.promises
            if trial.succeeds():
                self._take(trial)
                return
            self._damp_more()
            if trial.small or trial.short:
                self.status = STUCK if promised else SMALL if trial.small else SHORT

    def _take(self, trial: _TrialStep) -> None:
        options, rho = self.options, trial.gain / trial.predicted
        factor = max(1 / 3, 1 - (2 * rho - 1) ** 3) if abs(rho - 1) > EXACT else EXACT
        if options.mu_dec is not None:
            factor = options.mu_dec
        self.used, self.mu = self.mu, max(LEAST_MU, self.mu * factor)
        self.nit, self.rho = self.nit + 1, rho
        self._move_to(trial.x, *trial.there)
        if self.status == RUNNING and (trial.small or trial.short):
            self.status = SMALL if trial.small else SHORT

    def _damp_more(self) -> None:
        if self.options.mu_inc is None:
            self.mu *= self.nu
            self.nu *= 2
        else:
            self.mu *= self.options.mu_inc
        if self.mu > self.options.mu_max:
            self.status = STUCK


class _TrialStep:
    """A step with the solver's current damping, not yet accepted.

    Attributes
    ----------
    step, x : numpy.ndarray (n,)
        The step, and the point to which it leads.
    predicted, gain : float
        The decrease of the total: by the linear model, and in fact.
    straight : bool
        Whether its bend is short enough to be trusted.
    small, short : bool
        Whether it changes hardly anything of the total, or of x.
    promises : bool
        Whether it is long and its predicted gain large (see PROMISED).
    there : tuple
        The sum of squares at x and its linear model, after `succeeds` has returned True.
    """

    there: tuple[float, LinearModel]

    def __init__(self, solver: LMSolver):
        self.solver, self.gain, self.straight = solver, -inf, True
        options, D = solver.options, solver.scales
        damping = solver.mu * D
        d = solver.prior + damping
        if solver.held is not None:
            d[solver.held] = HELD
        self.small = self.short = self.promises = False
        solve = solver.linear.damped(d)
        if solve is None:
            self.straight = False
            return
        v = self._within(-solve(solver.gradient))
        self.predicted = float(v @ (damping * v) - solver.gradient @ v)
        self.step = v
        if options.bend and self.predicted > STRAIGHT * solver.total:
            self._bend(v, d, solve)
        self.x = solver.x + self.step
        if solver.bounds is not None:
            self._clip(solver.bounds)
        relative = self._length(self.step) / max(self._length(solver.x), LEAST_LENGTH)
        self.short = relative <= options.xtol
        self.small = abs(self.predicted) <= options.ftol * solver.total
        moved = self._length(solver.x) ** 2
        resolved = solver.total > ROUNDED * moved and self.predicted > PROMISED * solver.total
        self.promises = resolved and relative > PROMISED

    def _within(self, v: np.ndarray) -> np.ndarray:
        """The vector v (n,), exactly 0 where a parameter is held."""
        return v if self.solver.held is None else np.where(self.solver.held, 0.0, v)

    def _bend(self, v: np.ndarray, d: np.ndarray, solve: Callable[..., np.ndarray]) -> None:
        """Add the bend to the step v: the solution for half the second derivative of r along v.

        r(x + hv) = r + hJv + h²/2·r″ gives Jᵀr″/2, with JᵀJv from the equations that v solves; d is
        their diagonal, the damping and the prior, and `solve` their solution.
        """
        solver, h = self.solver, PROBE
        solver.nfev += 1
        linear = -solver.gradient - d * v
        bend = (solver.linear.jtr_at(h * v) - solver.linear.gradient) / h**2 - linear / h
        bend = self._within(-solve(bend))
        self.straight = 2 * self._length(bend) <= LONGEST_BEND * self._length(v)
        self.step = v + bend

    def _clip(self, bounds: tuple[np.ndarray, np.ndarray]) -> None:
        """Shorten the step to the bounds, and predict its gain anew."""
        solver = self.solver
        self.x = np.clip(self.x, *bounds)
        self.step = s = self.x - solver.x
        slope = solver.linear.product(s) + solver.prior * s
        self.predicted = -float(s @ (2 * solver.gradient + slope))

    def _length(self, v: np.ndarray) -> float:
        """sqrt(vᵀDv)."""
        return sqrt(float(v @ (self.solver.scales * v)))

    def succeeds(self) -> bool:
        """Evaluate the sum of squares at x; whether the step is accepted."""
        solver = self.solver
        if not self.straight:
            return False
        solver.nfev += 1
        total = solver.system.total(self.x) + float(solver.prior @ (self.x * self.x))
        self.gain = solver.total - total if isfinite(total) else -inf
        self.small = self.small and abs(self.gain) <= solver.options.ftol * solver.total
        enough = self.gain > TOO_LITTLE * self.predicted
        last = self.small and self.gain >= -UNSEEN * solver.total
        if not (self.predicted > 0 and (enough or last)):
            return False
        self.there = solver._linear(self.x)
        linear = self.there[1]
        return bool(np.isfinite(linear.gradient).all() and np.isfinite(linear.diagonal).all())
