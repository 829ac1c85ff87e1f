"""`IterationRecorder`: records the iterations of full-batch methods, and stops them at limits."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np

from ..common.arrays import FLOAT64
from ..reports.words import ALL_DONE, AT_START, Status, counted, no_progress
from ..training import state as states
from .task import FitTask, MethodResult


class Stop(Exception):
    """Ends a method from within its callback; carries the status and the message of the result."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class IterationRecorder:
    """Records the objective after each iteration, and the parameters to return.

    It shows iterations to the progress bar and to the callbacks of `fit`, and raises Stop where a
    limit of the task is reached. SciPy's methods take it as their callback.

    Parameters
    ----------
    task : FitTask
    start : numpy.ndarray of float64 (n_params,)
        Where the method starts, for scaled columns.

    Attributes
    ----------
    params : numpy.ndarray (n_params,)
        The last parameters with a finite objective.
    best : numpy.ndarray (n_params,) or None
        With patience, those with the lowest objective of the validation.
    losses, validation : list of float
        The objective, and that of the validation, after each iteration.
    """

    def __init__(self, task: FitTask, start: np.ndarray):
        validation = task.data.validation
        self._task, self._limits, self._observer = task, task.limits, task.observer
        self._validation = None if validation is None else validation.astype(FLOAT64)
        self.params = start
        self.best: np.ndarray | None = None
        self.losses: list[float] = []
        self.validation: list[float] = []
        self._lowest, self._waited = np.inf, 0
        self._method_state: Callable[[], dict[str, Any]] | None = None
        self._saved: dict[str, Any] = {}

    # Iterations.

    def __call__(self, intermediate_result: Any) -> None:
        self.record(intermediate_result["x"].copy(), float(intermediate_result["fun"]))
        if len(self.losses) >= self._limits.epochs:
            raise Stop(Status.LIMIT, ALL_DONE)

    @property
    def unwatched(self) -> bool:
        """Whether nothing is done after single iterations, so that some may be recorded at once."""
        return self._observer.idle and self._validation is None

    def record(self, x: np.ndarray, loss: float) -> None:
        """Record an iteration that has reached x (n_params,), where the objective is `loss`."""
        # The validation takes time and may be interrupted: it comes before anything is recorded.
        val_loss = None if self._validation is None else self._validation.value(x)
        self.losses.append(loss)
        if isfinite(loss):
            self.params = x
        if val_loss is not None:
            self.validation.append(val_loss)
            self._compare(x, val_loss)
        if self._method_state is not None:
            self._saved = self._method_state()
        if self.unwatched and loss > self._limits.goal:
            return
        self._observer.update(len(self.losses), loss, val_loss, None)
        self._stop_if_asked(loss, val_loss)

    def _compare(self, x: np.ndarray, val_loss: float) -> None:
        self._waited += 1
        if self._limits.patience is not None and val_loss < self._lowest:
            self.best, self._lowest, self._waited = x, val_loss, 0

    def _stop_if_asked(self, loss: float, val_loss: float | None) -> None:
        limits, observer, nit = self._limits, self._observer, len(self.losses)
        callback_stops = observer.call_back(
            nit, loss, val_loss, None, lambda: self._task.data.to_raw(self.params), self.state
        )
        done = counted(nit, "iteration")
        if loss <= limits.goal:
            raise Stop(Status.FINISHED, f"the goal of {limits.goal:g} was met in {done}")
        if limits.patience is not None and self._waited >= limits.patience:
            raise Stop(
                Status.FINISHED, no_progress(limits.patience, "iteration", nit, self._lowest)
            )
        if callback_stops:
            raise Stop(Status.STOPPED, f"a callback stopped the fit after {done}")
        if observer.time_is_up:
            raise Stop(Status.LIMIT, f"max_time is over after {done}")

    # States, of methods that can be continued.

    def save_states(self, method_state: Callable[[], dict[str, Any]]) -> None:
        """Call `method_state`, which returns the state of the method, now and at each iteration.

        An interrupt may leave the method in the middle of a step; the state saved last is whole.
        """
        self._method_state = method_state
        self._saved = method_state()

    def state(self) -> dict[str, Any] | None:
        """The state after the last iteration; None of a method that cannot be continued."""
        if self._method_state is None:
            return None
        return self._task.identity | self._records() | self._saved

    def _records(self) -> dict[str, Any]:
        """The entries of a state that are not the method's."""
        best = self.params[:0] if self.best is None else self.best
        return {
            "losses": np.array(self.losses),
            "validation": np.array(self.validation),
            "best": best.copy(),
            "lowest": self._lowest,
            "waited": self._waited,
        } | states.data_entries(self._task.data)

    def restore(self, state: dict[str, Any], nit: int, params: np.ndarray) -> None:
        """Continue the records of a run that has made `nit` iterations and reached `params`.

        Raises
        ------
        ValueError
            If an entry is missing, or of another form.
        """
        validated = nit if self._validation is not None else 0
        self.losses = states.array(state, "losses", (nit,)).tolist()
        self.validation = states.array(state, "validation", (validated,)).tolist()
        self._lowest = states.number(state, "lowest", float, -np.inf)
        self._waited = states.number(state, "waited")
        has_best = self._lowest < np.inf
        best = states.array(state, "best", self.params.shape if has_best else (0,))
        self.params, self.best = params, best if has_best else None

    def require_unfinished(self, nit: int) -> None:
        """Raise ValueError if a run with `nit` iterations cannot go on within the task's epochs."""
        if nit >= self._limits.epochs:
            raise ValueError(
                f"state is of a run with {nit} iterations, and epochs is {self._limits.epochs}: it "
                f"counts those before it too; pass a larger number to go on"
            )

    # Results.

    def result(self, status: int, message: str, nfev: int) -> MethodResult:
        """The result of a method that has ended: the best parameters, or the last ones."""
        nit = len(self.losses)
        return MethodResult(
            self.params if self.best is None else self.best,
            status,
            message,
            nfev=nfev,
            epoch=nit,
            loss=self.losses[-1] if nit else np.nan,
            losses=self.losses,
            validation=self.validation,
            state=self.state(),
        )

    def stopped(self, stop: KeyboardInterrupt | Stop, nfev: int) -> MethodResult:
        """The result of a method that this exception has ended."""
        if isinstance(stop, Stop):
            return self.result(stop.status, stop.message, nfev)
        done = counted(len(self.losses), "iteration")
        return self.result(Status.INTERRUPTED, f"interrupted (Ctrl-C) after {done}", nfev)


def cannot_start(method: str, start: np.ndarray, loss: float) -> MethodResult:
    """The result of a method that cannot start from these parameters (n_params,)."""
    message = f"{method} cannot start: the objective is {loss:g}{AT_START}"
    return MethodResult(start, Status.DIVERGED, message, 1, 0, loss, [], [])
