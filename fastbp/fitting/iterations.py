"""What `fit` keeps of a full-batch method's iterations, and when it stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from ..common.arrays import FLOAT64
from ..reports.words import ALL_DONE, Status, counted, no_progress
from ..training import state as states
from ..training.callbacks import Observer
from ..training.data import FitData


@dataclass(eq=False)
class Outcome:
    """What a full-batch method came to; `params` are float64, for columns as they were scaled.

    `known` are the objective and its gradient there, if they were met on the way; `history` is what
    the method tells of its iterations beside the objective; `l2` is a penalty that it found.
    """

    params: np.ndarray
    status: int
    message: str
    nit: int
    nfev: int
    losses: list[float]
    validation: list[float]
    loss: float
    state: dict[str, Any] | None = None
    known: tuple[float, np.ndarray] | None = None
    history: dict[str, np.ndarray] = field(default_factory=dict)
    l2: float | None = None


@dataclass(frozen=True)
class Limits:
    """When `fit` stops a method: see its arguments of the same names."""

    epochs: int
    goal: float
    patience: int | None
    tol: float | None


class Stop(Exception):
    """Ends a method from inside its callback."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Trace:
    """A callback that keeps the objective after each iteration, and the parameters to return."""

    def __init__(self, data: FitData, start: np.ndarray, limits: Limits, observer: Observer):
        self._obj = data.training.astype(FLOAT64)
        valid = data.validation
        self._validation = None if valid is None else valid.astype(FLOAT64)
        self._data, self._limits, self._observer = data, limits, observer
        self.params = start
        self.best: np.ndarray | None = None
        self.losses: list[float] = []
        self.validation: list[float] = []
        self._lowest, self._waited = np.inf, 0
        self.keep: Callable[[], None] = lambda: None  # notes the state of the method itself
        self.state: Callable[[], dict[str, Any] | None] = lambda: None

    def __call__(self, intermediate_result: Any) -> None:
        self.record(intermediate_result["x"].copy(), float(intermediate_result["fun"]))
        if len(self.losses) >= self._limits.epochs:
            raise Stop(Status.LIMIT, ALL_DONE)

    @property
    def unwatched(self) -> bool:
        """Whether nobody looks at single iterations."""
        return self._observer.idle and self._validation is None

    def records(self) -> dict[str, Any]:
        """What goes into a state beside the method's own."""
        best = self.params[:0] if self.best is None else self.best
        return {
            "losses": np.array(self.losses),
            "validation": np.array(self.validation),
            "best": best.copy(),
            "lowest": self._lowest,
            "waited": self._waited,
        } | states.data_entries(self._data)

    def restore(self, state: dict[str, Any], nit: int) -> None:
        """Take these out of the state of a run with so many iterations."""
        validated = nit if self._validation is not None else 0
        self.losses = states.array(state, "losses", (nit,)).tolist()
        self.validation = states.array(state, "validation", (validated,)).tolist()
        self._lowest = states.number(state, "lowest", float, -np.inf)
        self._waited = states.number(state, "waited")
        found = self._lowest < np.inf
        best = states.array(state, "best", self.params.shape if found else (0,))
        self.best = best if found else None

    def record(self, x: np.ndarray, loss: float) -> None:
        """An iteration has reached `x` (n_params,), where the objective is `loss`."""
        # What takes time, and may be interrupted, comes first.
        val_loss = None if self._validation is None else self._validation.value(x)
        self.losses.append(loss)
        if isfinite(loss):
            self.params = x
        if val_loss is not None:
            self.validation.append(val_loss)
            self._compare(x, val_loss)
        self.keep()
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
        told = observer.call_back(
            nit, loss, val_loss, None, lambda: self._data.to_raw(self.params), self.state
        )
        if loss <= limits.goal:
            raise Stop(
                Status.FINISHED,
                f"the goal of {limits.goal:g} was met in {counted(nit, 'iteration')}",
            )
        if limits.patience is not None and self._waited >= limits.patience:
            raise Stop(
                Status.FINISHED, no_progress(limits.patience, "iteration", nit, self._lowest)
            )
        if told:
            raise Stop(
                Status.STOPPED, f"a callback stopped the fit after {counted(nit, 'iteration')}"
            )
        if observer.time_is_up:
            raise Stop(Status.LIMIT, f"max_time is over after {counted(nit, 'iteration')}")


def stopped(trace: Trace, stop: KeyboardInterrupt | Stop) -> Outcome:
    nit = len(trace.losses)
    if isinstance(stop, Stop):
        status, message = stop.status, stop.message
    else:
        status, message = (
            Status.INTERRUPTED,
            f"interrupted (Ctrl-C) after {counted(nit, 'iteration')}",
        )
    params = trace.params if trace.best is None else trace.best
    loss = trace.losses[-1] if nit else np.nan
    return Outcome(params, status, message, nit, nit, trace.losses, trace.validation, loss)
