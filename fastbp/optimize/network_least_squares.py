"""A network's sum of squares for Levenberg-Marquardt, and the solver inside the backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..maths.linear_models import LinearModel, WideModel
from ..maths.marquardt import (
    MU,
    NFEV,
    NIT,
    NJEV,
    SQUARES,
    STATUS,
    LMOptions,
    LMState,
    NormalEquations,
)
from ..maths.robust import rho
from ..networks.objective import Objective, robust_loss
from .free_coordinates import FreeCoordinates


class NetworkSquares(NormalEquations):
    """The sum of squares of an objective as a function of the free parameters x (n_free,).

    It is a `marquardt.SumOfSquares`. With fewer residuals than free parameters, the linear model
    holds their Jacobian, which is then the smaller matrix; else JᵀJ is summed over blocks of rows.

    Parameters
    ----------
    obj : Objective
        With a least-squares loss, in float64.
    free : FreeCoordinates
        Of this objective.
    robust, f_scale : str, float
        As `Objective.normal_equations` takes them.
    """

    def __init__(
        self, obj: Objective, free: FreeCoordinates, robust: str = "linear", f_scale: float = 1.0
    ):
        rho_of = (robust, f_scale)
        super().__init__(
            lambda x: obj.normal_equations(free.full(x), *rho_of),
            lambda x: obj.sum_of_squares(free.full(x), *rho_of),
            lambda x, step: obj.jtr_at(free.full(x), free.full(x + step), *rho_of),
        )
        self.obj, self.free, self.robust = obj, free, robust_loss(*rho_of)

    @property
    def wide(self) -> bool:
        """Whether there are fewer residuals than free parameters."""
        return self.obj.n_residuals < len(self.free.x0)

    def linear(self, x: np.ndarray) -> tuple[float, LinearModel]:
        """The sum of squares and its linear model."""
        if not self.wide:
            return super().linear(x)
        obj, p, params = self.obj, self.obj.problem, self.free.full(x)
        r = self._residuals(x)
        squares, slope = rho(r, self.robust)
        weights = 1.0 if p.weights is None else np.repeat(p.weights, p.plan.n_out)
        roots = np.sqrt(weights * slope)
        J = roots[:, None] * obj.backend.jacobian(p.plan, params, p.X, obj.threads, True)
        model = WideModel(J, roots * r, lambda step: roots * self._residuals(x + step))
        return float((weights * squares).sum()), model

    def _residuals(self, x: np.ndarray) -> np.ndarray:
        """The residuals (n·n_out,) of all rows and outputs, without weights."""
        p = self.obj.problem
        return (self.obj.backend.forward(p.plan, self.free.full(x), p.X) - p.targets).ravel()


class BackendLMSolver:
    """A `marquardt.LMSolver` inside the backend, several steps a call, without bounds.

    It has the same state, and those attributes of `marquardt.LMSolver` that `fit` reads.

    Parameters
    ----------
    system : NetworkSquares
    options : LMOptions
    prior : numpy.ndarray (n_free,)
        Σ prior_j x_j² is added to the sum of squares.
    """

    def __init__(self, system: NetworkSquares, options: LMOptions, prior: np.ndarray):
        obj, n = system.obj, len(system.free.x0)
        self._system, self._options, self._problem = system, options, obj.problem
        start = system.free.full(system.free.x0)
        self._descent = LMState(start, prior, np.zeros((n + 1, n)), np.zeros(n), np.zeros(8))
        self._descent.state[MU] = options.mu

    def steps(self, count: int, goal: float = -np.inf) -> np.ndarray:
        """Take `count` steps, or fewer: until the search ends or the sum of squares is <= goal.

        Returns
        -------
        numpy.ndarray (k, 4)
            A row per step, as `marquardt.LMSolver.record`.
        """
        obj, records = self._system.obj, np.empty((count, 4))
        taken = obj.backend.descend(
            self._problem,
            self._options,
            self._system.robust,
            self._descent,
            records,
            goal,
            obj.threads,
        )
        return records[:taken]

    @property
    def x(self) -> np.ndarray:
        """The free parameters reached (n_free,)."""
        return self._descent.params[self._system.obj.net.free]

    @property
    def mu(self) -> float:
        """The damping that the next step tries first."""
        return float(self._descent.state[MU])

    @property
    def nit(self) -> int:
        """Steps taken."""
        return int(self._descent.state[NIT])

    @property
    def nfev(self) -> int:
        """Evaluations of residuals."""
        return int(self._descent.state[NFEV])

    @property
    def status(self) -> int:
        """RUNNING, or how the search ended."""
        return int(self._descent.state[STATUS])

    def state(self) -> dict[str, Any]:
        """What the next steps depend on, beside x and the prior."""
        numbers = {"nit": self.nit, "nfev": self.nfev, "njev": int(self._descent.state[NJEV])}
        return {"scales": self._descent.scales.copy(), "mu": self.mu} | numbers

    def restore(self, state: dict[str, Any]) -> None:
        """Continue a search that was at this x and had this `state`."""
        descent, numbers = self._descent, self._descent.state
        descent.normal[:-1], descent.normal[-1], numbers[SQUARES] = self._system.normal_equations(
            self.x
        )
        descent.scales[:], numbers[MU] = state["scales"], state["mu"]
        numbers[NIT], numbers[NFEV], numbers[NJEV] = (state[k] for k in ("nit", "nfev", "njev"))
