"""A network's least squares, as Levenberg and Marquardt's method sees them: in free parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._objective import Objective, robust_loss
from ..backends.contract import MU, NFEV, NIT, NJEV, SQUARES, STATUS, Descent, Rules
from ..backends.linear_models import Linear, Wide
from ..backends.marquardt import Rows
from ..backends.robust import rho
from ._free import FreeCoordinates


class NetworkRows(Rows):
    """The sum of squares of an objective's residuals; a `marquardt.System`.

    With fewer residuals than free parameters their Jacobian is kept, which is then the smaller
    matrix; else JᵀJ is summed over blocks of rows.

    Parameters
    ----------
    obj : Objective
        With a least-squares loss, in float64.
    inside : FreeCoordinates
        Its free parameters.
    robust, f_scale : str, float
        As `Objective.normal_equations` takes them.
    """

    def __init__(
        self, obj: Objective, inside: FreeCoordinates, robust: str = "linear", f_scale: float = 1.0
    ):
        how = (robust, f_scale)
        super().__init__(
            lambda x: obj.normal_equations(inside.full(x), *how),
            lambda x: obj.sum_of_squares(inside.full(x), *how),
            lambda x, step: obj.jtr_at(inside.full(x), inside.full(x + step), *how),
        )
        self.obj, self.inside, self.robust = obj, inside, robust_loss(*how)

    @property
    def wide(self) -> bool:
        """Whether there are fewer residuals than free parameters."""
        return self.obj.n_residuals < len(self.inside.x0)

    def linear(self, x: np.ndarray) -> tuple[float, Linear]:
        """The sum of squares and its linear model."""
        if not self.wide:
            return super().linear(x)
        obj, p, params = self.obj, self.obj.problem, self.inside.full(x)
        r = self._residuals(x)
        squares, slope = rho(r, self.robust)
        weights = 1.0 if p.weights is None else np.repeat(p.weights, p.plan.n_out)
        roots = np.sqrt(weights * slope)
        J = roots[:, None] * obj.backend.jacobian(p.plan, params, p.X, obj.threads, True)
        model = Wide(J, roots * r, lambda step: roots * self._residuals(x + step))
        return float((weights * squares).sum()), model

    def _residuals(self, x: np.ndarray) -> np.ndarray:
        """Those of all rows and outputs (n·n_out,), not weighted."""
        p = self.obj.problem
        return (self.obj.backend.forward(p.plan, self.inside.full(x), p.X) - p.targets).ravel()


class Fused:
    """A search that the backend makes: `steps` at a time, without bounds.

    It has the attributes of `marquardt.Search` that are told of, and the same state.
    """

    def __init__(self, rows: NetworkRows, rules: Rules, prior: np.ndarray):
        obj, n = rows.obj, len(rows.inside.x0)
        self._rows, self._rules, self._problem = rows, rules, obj.problem
        start = rows.inside.full(rows.inside.x0)
        self._descent = Descent(start, prior, np.zeros((n + 1, n)), np.zeros(n), np.zeros(8))
        self._descent.state[MU] = rules.mu

    def steps(self, count: int, goal: float = -np.inf) -> np.ndarray:
        """Take so many, fewer if the search ends or the sum of squares is not above the goal.

        Returns
        -------
        numpy.ndarray (k, 4)
            Their records, as `marquardt.Search.record`.
        """
        obj, records = self._rows.obj, np.empty((count, 4))
        taken = obj.backend.descend(
            self._problem, self._rules, self._rows.robust, self._descent, records, goal, obj.threads
        )
        return records[:taken]

    @property
    def x(self) -> np.ndarray:
        """The free parameters reached."""
        return self._descent.params[self._rows.obj.net.free]

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

    def go_on(self, state: dict[str, Any]) -> None:
        """Be where a search was, at this x, that had this `state`."""
        descent, numbers = self._descent, self._descent.state
        descent.normal[:-1], descent.normal[-1], numbers[SQUARES] = self._rows.normal_equations(
            self.x
        )
        descent.scales[:], numbers[MU] = state["scales"], state["mu"]
        numbers[NIT], numbers[NFEV], numbers[NJEV] = (state[k] for k in ("nit", "nfev", "njev"))
