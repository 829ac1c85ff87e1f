"""`FitTask`, what `fit` passes to a method, and `MethodResult`, what a method returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..training import state as states
from ..training.callbacks import Observer
from ..training.data import FitData
from ..training.optimizers import FirstOrder


class Limits(NamedTuple):
    """When `fit` stops a method: its arguments of the same names, checked.

    Without a goal it is -inf; without patience or tol these are None.
    """

    epochs: int
    goal: float
    patience: int | None
    tol: float | None


@dataclass(eq=False)
class FitTask:
    """A fit whose arguments are checked and whose data are prepared.

    Attributes
    ----------
    data : FitData
    method : FirstOrder or str
        The name of a full-batch method.
    start : numpy.ndarray (n_params,)
        The initial parameters, for scaled columns.
    limits : Limits
    observer : Observer
    seed : int
    options : dict
        Those of a full-batch method.
    saved_state : dict or None
        The state of the run to continue.
    """

    data: FitData
    method: FirstOrder | str
    start: np.ndarray
    limits: Limits
    observer: Observer
    seed: int
    options: dict[str, Any]
    saved_state: dict[str, Any] | None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What all states of one run have in common, by name."""
        data, method = self.data, self.method
        return {
            "network": states.fingerprint(data.raw.net),
            "method": method if isinstance(method, str) else type(method).__name__,
            "rows": len(data.raw.problem.X),
            "scale": data.scale,
            "validation_rows": data.n_validation,
            "seed": self.seed,
        }


@dataclass(eq=False)
class MethodResult:
    """What a method reached, on scaled columns and before it becomes a `FitResult`.

    Attributes
    ----------
    params : numpy.ndarray (n_params,)
        Of the network's dtype, or float64 of a full-batch method.
    status, message, nfev, epoch, loss, state
        As those of `FitResult`; `epoch` counts iterations of a full-batch method.
    losses, validation : sequence of float (epochs or iterations,)
        The history's "loss" and "val_loss"; `validation` is empty without one.
    value_and_grad : tuple or None
        The objective and its gradient (n_params,) at `params` if the method has computed them.
    history : dict of str to numpy.ndarray (iterations,)
        Further entries of the history.
    l2 : float or None
        The penalty that the method determined by itself.
    """

    params: np.ndarray
    status: int
    message: str
    nfev: int
    epoch: int
    loss: float
    losses: list[float] | np.ndarray
    validation: list[float] | np.ndarray
    state: dict[str, Any] | None = None
    value_and_grad: tuple[float, np.ndarray] | None = None
    history: dict[str, np.ndarray] = field(default_factory=dict)
    l2: float | None = None
