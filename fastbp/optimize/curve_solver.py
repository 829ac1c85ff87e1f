"""Levenberg and Marquardt's method on a traced model, by calls of the backend of many steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf

import numpy as np

from .. import backends
from ..backends.contract import Curve, CurveProblem
from ..maths.marquardt import (
    MU,
    NFEV,
    NIT,
    NJEV,
    RUNNING,
    SQUARES,
    STATUS,
    LMOptions,
    LMState,
)
from ..maths.models import Formula, Model
from ..maths.robust import Robust

CALLBACK, GOAL = -2, 4  # statuses beside those of `marquardt.LMSolver`
RECORDED = ("cost", "mu", "rho", "gradient")  # the columns of `marquardt.LMSolver.record`
STEPS_PER_CALL = 256  # of the backend, between which it can be interrupted


class CurveSolver:
    """Levenberg and Marquardt's method on a model, by the backend in use.

    Parameters
    ----------
    model : Model
    x : numpy.ndarray (n,)
    options : LMOptions
    robust : Robust
    bounds : pair of numpy.ndarray (n,), or None
    y, weights : numpy.ndarray (m,), optional
        The residuals are weights·(model - y).

    Attributes
    ----------
    x, total, status, mu, nit, nfev, njev
        As of `marquardt.LMSolver`.
    """

    def __init__(
        self,
        model: Model,
        x: np.ndarray,
        options: LMOptions,
        robust: Robust,
        bounds: tuple[np.ndarray, np.ndarray] | None,
        y: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ):
        n = len(x)
        self.options, self.bounds, self.robust = options, bounds, robust
        columns = model.columns
        self.problem = CurveProblem(
            _formulas(model.formula, tuple(columns)),
            tuple(columns.values()),
            np.zeros(model.n) if y is None else y,
            weights,
        )
        self._numbers = np.zeros(8)
        self._numbers[MU] = options.mu
        self._descent = LMState(
            x.copy(), np.zeros(n), np.zeros((n + 1, n)), np.zeros(n), self._numbers
        )
        self._records: list[np.ndarray] = []
        self.backend = backends.resolve()

    def run(
        self,
        maxiter: int,
        goal: float = -inf,
        wants_to_stop: Callable[[np.ndarray, float], bool] | None = None,
    ) -> int:
        """Step until the search ends, is stopped, or the cost is not above `goal`; the status.

        `wants_to_stop` is asked after each step, with x and the cost.
        """
        steps, most = 0, 1 if wants_to_stop else STEPS_PER_CALL
        while True:
            records = np.empty((min(most, maxiter - steps) + 1, 4))
            taken = self.backend.fit_curve(
                self.problem, self.options, self.robust, self.bounds, self._descent, records,
                2 * goal,
            )  # fmt: skip
            self._records.append(records[: taken + 1])
            steps += taken
            status = self.status
            if self.total <= 2 * goal and (taken or status == RUNNING):
                return GOAL
            if wants_to_stop and taken and wants_to_stop(self.x, self.total / 2):
                return CALLBACK
            if status != RUNNING or not taken or steps >= maxiter:
                return status

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The columns of the records, at the start and after each step, by RECORDED's names."""
        first, *others = self._records
        columns = np.concatenate([first, *(records[1:] for records in others)]).T
        return dict(zip(RECORDED, columns, strict=True))

    def residuals(self) -> tuple[np.ndarray, np.ndarray]:
        """The residuals (m,) and their Jacobian (m, n) at x, without the robust loss."""
        r, columns = self.backend.curve_residuals(self.problem, self.x)
        return r, columns.T

    @property
    def x(self) -> np.ndarray:
        """The current point."""
        return self._descent.params

    @property
    def total(self) -> float:
        """The sum of squares there, after the robust loss."""
        return float(self._numbers[SQUARES])

    @property
    def status(self) -> int:
        """RUNNING, or why the search ended."""
        return int(self._numbers[STATUS])

    @property
    def mu(self) -> float:
        """The damping that the next step tries first."""
        return float(self._numbers[MU])

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of steps, and of evaluations of residuals and of Jacobians: nit, nfev, njev."""
        numbers = self._numbers.tolist()
        return int(numbers[NIT]), int(numbers[NFEV]), int(numbers[NJEV])

    @property
    def JTJ(self) -> np.ndarray:
        """JᵀJ (n, n) at x; with a robust loss, of reweighted residuals."""
        return self._descent.normal[:-1]

    @property
    def held(self) -> np.ndarray | None:
        """The active bounds (n,), as of `marquardt.LMSolver`."""
        if self.bounds is None:
            return None
        g, (lower, upper) = self._descent.normal[-1], self.bounds
        held: np.ndarray = ((self.x <= lower) & (g > 0)) | ((self.x >= upper) & (g < 0))
        return held

    @property
    def gradient(self) -> np.ndarray:
        """Half the gradient of the total, 0 for parameters held at a bound."""
        g, held = self._descent.normal[-1].copy(), self.held
        return g if held is None else np.where(held, 0.0, g)


@lru_cache(maxsize=256)
def _formulas(formula: Formula, inputs: tuple[str, ...]) -> Curve:
    """The contract's curve of a formula; the same one for the same formula."""
    return Curve((formula.value, *formula.slopes), inputs, formula.names)
