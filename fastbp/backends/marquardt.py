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
from math import inf, isfinite, sqrt
from typing import Any, Protocol

import numpy as np

from .contract import (
    FLAT,
    MU,
    NFEV,
    NIT,
    NJEV,
    RHO,
    RUNNING,
    SHORT,
    SMALL,
    SQUARES,
    STATUS,
    STUCK,
    USED,
    Descent,
    Rules,
)
from .linear_models import Linear, Normal

# What columns of the Jacobian measured counts by this factor an iteration later: a column that was
# long once, far from here, does not hold its parameter back for ever. Of squared lengths.
DECAY = 0.64
TOO_LITTLE = 0.1  # of the gain that was predicted: a step that gains less is not taken
# The last step gains less than can be seen: it is taken if the sum rises by no more of itself.
UNSEEN = 2e-15
# A gain as predicted but for this share: the linear model is exact, and nearly all damping goes.
EXACT = 1e-3
LONGEST_BEND = 0.75  # the longest bend of a step, relative to it
PROBE = 0.1  # where along a step the second derivative is taken
STRAIGHT = 1e-8  # predicted gains below this share of the sum need no bend
LEAST_LENGTH = 1e-300  # of x, where steps are compared with it
LEAST_MU = 1e-30  # what rounding does is seen to where the equations are solved
HELD = 1e150  # the damping of a parameter that is not to move
# Where even the smallest steps fail, but a step of more than this share of x was to gain more than
# this share of the sum, the Jacobian does not tell the truth.
PROMISED = 1e-6
ROUNDED = 1e-28  # residuals that are smaller, relative to what x moves, are zero but for rounding


class System(Protocol):
    """A sum of squares as a function of x (n,)."""

    def total(self, x: np.ndarray) -> float:
        """The sum of squares."""
        ...

    def linear(self, x: np.ndarray) -> tuple[float, Linear]:
        """The same with its linear model."""
        ...


class Rows:
    """The sum of squares of a network's rows.

    Parameters
    ----------
    normal_equations, sum_of_squares, jtr_at : callable
        What the contract calls so, as functions of x and, the last one, of a step from there.
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

    def linear(self, x: np.ndarray) -> tuple[float, Linear]:
        """The sum of squares and its linear model."""
        JTJ, JTr, total = self.normal_equations(x)
        return total, self.model(x, JTJ, JTr)

    def model(self, x: np.ndarray, JTJ: np.ndarray, JTr: np.ndarray) -> Linear:
        """The linear model at x of which these are known."""
        return Normal(JTJ, JTr, lambda step: self.jtr_at(x, step))


class Search:
    """A search, one `step` at a time.

    Parameters
    ----------
    system : System
    x : numpy.ndarray (n,)
        Where to start.
    rules : Rules
    prior : numpy.ndarray (n,) or None
        Adds Σ prior_j x_j² to the sum of squares.
    bounds : pair of numpy.ndarray (n,), or None
        Between which x stays; it starts there.
    known : pair or None
        What `System.linear` gives at x, if it is known already.

    Attributes
    ----------
    x : numpy.ndarray (n,)
        The point that has been reached.
    total, squares : float
        The sum of squares there, with the prior and without it.
    gradient : numpy.ndarray (n,)
        Half the gradient of the total, 0 for parameters held at a bound.
    linear : Linear
        The linear model there.
    held : numpy.ndarray of bool (n,), or None
        Which parameters the gradient presses against their bounds.
    mu, used, rho : float
        The damping that the next step tries first, that of the last step, and what this gained
        relative to what was predicted.
    nit, nfev, njev : int
        Steps taken, evaluations of residuals and Jacobians.
    status : int
        RUNNING, or how the search ended.
    """

    def __init__(
        self,
        system: System,
        x: np.ndarray,
        rules: Rules,
        prior: np.ndarray | None = None,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
        known: tuple[float, Linear] | None = None,
    ):
        self.system, self.rules, self.bounds = system, rules, bounds
        self.prior = np.zeros_like(x) if prior is None else prior
        self.mu, self.used, self.nu, self.rho = rules.mu, np.nan, 2.0, np.nan
        self.nit = self.nfev = self.njev = 0
        self.scales = np.zeros_like(x)
        self._arrive(x, *(self._linear(x) if known is None else known))

    @classmethod
    def of_descent(cls, rows: Rows, rules: Rules, descent: Descent, x: np.ndarray) -> Search:
        """The search that stands where the descent does, at the free parameters x."""
        state = descent.state
        if state[NJEV] == 0:
            return cls(rows, x, rules, descent.prior)
        model = rows.model(x, descent.normal[:-1].copy(), descent.normal[-1].copy())
        search = cls(rows, x, rules, descent.prior, known=(float(state[SQUARES]), model))
        search.used, search.rho = float(state[USED]), float(state[RHO])
        counts = {name: int(state[k]) for name, k in (("nit", NIT), ("nfev", NFEV), ("njev", NJEV))}
        search.go_on({"scales": descent.scales.copy(), "mu": float(state[MU])} | counts)
        search.status = int(state[STATUS])
        return search

    def keep(self, descent: Descent) -> None:
        """Let the descent stand where the search does; its parameters are the caller's to set."""
        numbers = (self.squares, self.mu, self.used, self.rho)
        descent.state[:] = *numbers, self.nit, self.nfev, self.njev, self.status
        descent.scales[:] = self.scales
        descent.normal[:-1], descent.normal[-1] = self.linear.JTJ, self.linear.gradient

    @property
    def record(self) -> tuple[float, float, float, float]:
        """Half the sum of squares, mu, rho and the largest entry of the gradient after a step."""
        return self.total / 2, self.used, self.rho, float(np.abs(self.gradient).max())

    def state(self) -> dict[str, Any]:
        """What the next steps depend on, beside x and the prior."""
        return {
            "scales": self.scales.copy(),
            "mu": self.mu,
            "nit": self.nit,
            "nfev": self.nfev,
            "njev": self.njev,
        }

    def go_on(self, state: dict[str, Any]) -> None:
        """Be where a search was, at this x, that had this `state`."""
        for name, value in state.items():
            setattr(self, name, value)

    def set_prior(self, prior: np.ndarray) -> None:
        """Let another prior count from here on."""
        self.prior = prior
        self._arrive(self.x, self.squares, self.linear)

    def _linear(self, x: np.ndarray) -> tuple[float, Linear]:
        self.njev += 1
        return self.system.linear(x)

    @np.errstate(all="ignore")
    def _arrive(self, x: np.ndarray, squares: float, linear: Linear) -> None:
        """Be at x, with the sum of squares and the linear model there."""
        rules = self.rules
        self.x, self.squares, self.linear = x, squares, linear
        self.total = squares + float(self.prior @ (x * x))
        self.gradient = linear.gradient + self.prior * x
        self._hold()
        lengths = linear.squares + self.prior
        measured = np.full_like(lengths, lengths.mean()) if rules.uniform else lengths
        scales = np.maximum(measured, DECAY * self.scales)
        self.scales = np.where(scales > 0, scales, 1.0)
        steepest = np.abs(self.gradient)
        cosines = steepest / np.sqrt(np.where(lengths > 0, lengths * self.total, inf))
        flat = steepest.max() <= rules.min_grad or not cosines.max() > rules.gtol
        self.status = FLAT if flat else RUNNING

    def _hold(self) -> None:
        """Find the parameters that the gradient presses against their bounds."""
        self.held = None
        if self.bounds is not None:
            lower, upper = self.bounds
            g = self.gradient
            self.held = ((self.x <= lower) & (g > 0)) | ((self.x >= upper) & (g < 0))
            self.gradient = np.where(self.held, 0.0, g)

    def steps(self, count: int, goal: float = -inf) -> np.ndarray:
        """Take so many, fewer if the search ends or the total is not above the goal.

        Returns
        -------
        numpy.ndarray (k, 4)
            Their records.
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

    @np.errstate(all="ignore")  # what overflows is not taken
    def step(self) -> None:
        """One iteration: a step that decreases the sum of squares, or the end of the search."""
        self.nu = 2.0
        promised = None
        while self.status == RUNNING:
            trial = _Trial(self)
            promised = promised or trial.promises
            if trial.succeeds():
                self._take(trial)
                return
            self._damp_more()
            if trial.small or trial.short:
                self.status = STUCK if promised else SMALL if trial.small else SHORT

    def _take(self, trial: _Trial) -> None:
        rules, rho = self.rules, trial.gain / trial.predicted
        factor = max(1 / 3, 1 - (2 * rho - 1) ** 3) if abs(rho - 1) > EXACT else EXACT
        if rules.mu_dec is not None:
            factor = rules.mu_dec
        self.used, self.mu = self.mu, max(LEAST_MU, self.mu * factor)
        self.nit, self.rho = self.nit + 1, rho
        self._arrive(trial.x, *trial.there)
        if self.status == RUNNING and (trial.small or trial.short):
            self.status = SMALL if trial.small else SHORT

    def _damp_more(self) -> None:
        if self.rules.mu_inc is None:
            self.mu *= self.nu
            self.nu *= 2
        else:
            self.mu *= self.rules.mu_inc
        if self.mu > self.rules.mu_max:
            self.status = STUCK


class _Trial:
    """A step with the search's present damping.

    Attributes
    ----------
    x : numpy.ndarray (n,)
        Where it leads.
    predicted, gain : float
        By how much it decreases the sum of squares: to first order of the residuals, and in truth.
    straight : bool
        Whether it bends little enough to be trusted.
    small, short, promises : bool
        Whether it changes next to nothing of the sum, of x, or was to change much of both.
    there : tuple
        The sum of squares at x and the linear model, once it `succeeds`.
    """

    there: tuple[float, Linear]

    def __init__(self, search: Search):
        self.search, self.gain, self.straight = search, -inf, True
        rules, D = search.rules, search.scales
        damping = search.mu * D
        d = search.prior + damping
        if search.held is not None:
            d[search.held] = HELD
        self.small = self.short = self.promises = False
        solve = search.linear.damped(d)
        if solve is None:
            self.straight = False
            return
        v = self._within(-solve(search.gradient))
        self.predicted = float(v @ (damping * v) - search.gradient @ v)
        self.step = v
        if rules.bend and self.predicted > STRAIGHT * search.total:
            self._bend(v, d, solve)
        self.x = search.x + self.step
        if search.bounds is not None:
            self._clip(search.bounds)
        relative = self._length(self.step) / max(self._length(search.x), LEAST_LENGTH)
        self.short = relative <= rules.xtol
        self.small = abs(self.predicted) <= rules.ftol * search.total
        moved = self._length(search.x) ** 2
        resolved = search.total > ROUNDED * moved and self.predicted > PROMISED * search.total
        self.promises = resolved and relative > PROMISED

    def _within(self, v: np.ndarray) -> np.ndarray:
        """The vector, exactly 0 where a parameter is held."""
        return v if self.search.held is None else np.where(self.search.held, 0.0, v)

    def _bend(self, v: np.ndarray, d: np.ndarray, solve: Callable[..., np.ndarray]) -> None:
        """Add half the second derivative of r along v, in the equations that v solved.

        r(x + hv) = r + hJv + h²/2·r″ gives Jᵀr″/2, with JᵀJv from the equations.
        """
        search, h = self.search, PROBE
        search.nfev += 1
        linear = -search.gradient - d * v
        bend = (search.linear.jtr_at(h * v) - search.linear.gradient) / h**2 - linear / h
        bend = self._within(-solve(bend))
        self.straight = 2 * self._length(bend) <= LONGEST_BEND * self._length(v)
        self.step = v + bend

    def _clip(self, bounds: tuple[np.ndarray, np.ndarray]) -> None:
        search = self.search
        self.x = np.clip(self.x, *bounds)
        self.step = s = self.x - search.x
        slope = search.linear.product(s) + search.prior * s
        self.predicted = -float(s @ (2 * search.gradient + slope))

    def _length(self, v: np.ndarray) -> float:
        return sqrt(float(v @ (self.search.scales * v)))

    def succeeds(self) -> bool:
        """Whether it is to be taken."""
        search = self.search
        if not self.straight:
            return False
        search.nfev += 1
        total = search.system.total(self.x) + float(search.prior @ (self.x * self.x))
        self.gain = search.total - total if isfinite(total) else -inf
        self.small = self.small and abs(self.gain) <= search.rules.ftol * search.total
        enough = self.gain > TOO_LITTLE * self.predicted
        last = self.small and self.gain >= -UNSEEN * search.total
        if not (self.predicted > 0 and (enough or last)):
            return False
        self.there = search._linear(self.x)
        linear = self.there[1]
        return bool(np.isfinite(linear.gradient).all() and np.isfinite(linear.squares).all())
