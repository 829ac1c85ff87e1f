"""What runs beside a fit: the clock, the progress bar and the callbacks of the user."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np

from ..networks.network import Network
from .progress import ProgressBar

# Why a run was stopped before its end.
TIME_IS_UP, CALLBACK, INTERRUPT = "max_time", "callback", "Ctrl-C"
# Once this event is set, runs of the context end as by Ctrl-C. Python raises KeyboardInterrupt in
# the main thread alone, so other threads need a signal.
INTERRUPTION: ContextVar[threading.Event | None] = ContextVar("INTERRUPTION", default=None)


class Epoch:
    """The argument of a callback of `fit`: the fit after an epoch, or a full-batch iteration.

    Attributes
    ----------
    net : Network
    epoch : int
        How many epochs are complete.
    loss : float
        The last entry of the history's "loss".
    val_loss : float or None
        The validation's objective now; None without a validation.
    rate : float or None
        The rate of the last step; None for methods without one.
    elapsed : float
        Seconds since `fit` began.
    start : int or None
        The number of the start, in `multistart`; None in `fit`.
    params : numpy.ndarray (n_params,)
        The parameters now, or their average if that has begun, for raw data; a new vector. `fit`
        returns it if it stops here without patience, else the best parameters so far.
    state : dict or None
        The state that ``fit(state=...)`` continues; None for methods that cannot be continued.
    """

    __slots__ = (
        "_params", "_state", "elapsed", "epoch", "loss", "net", "rate", "start", "val_loss",
    )  # fmt: skip

    def __init__(
        self,
        net: Network,
        epoch: int,
        loss: float,
        val_loss: float | None,
        rate: float | None,
        elapsed: float,
        params: Callable[[], np.ndarray],
        state: Callable[[], dict[str, Any] | None],
    ):
        self.net, self.epoch, self.loss, self.val_loss = net, epoch, loss, val_loss
        self.rate, self.elapsed = rate, elapsed
        self.start: int | None = None
        self._params, self._state = params, state

    @property
    def params(self) -> np.ndarray:
        return self._params()

    @property
    def state(self) -> dict[str, Any] | None:
        return self._state()

    def __repr__(self) -> str:
        validation = "" if self.val_loss is None else f", val_loss={self.val_loss:.6g}"
        return f"Epoch({self.epoch}: loss={self.loss:.6g}{validation}, {self.elapsed:.3g} s)"


class Observer:
    """The clock, the progress bar and the callbacks of a fit, called between steps or iterations.

    Parameters
    ----------
    net : Network
    callbacks : tuple of callables
        Each is called with an `Epoch`.
    max_time : float
        Seconds; inf for no limit.
    bar : ProgressBar or None

    Attributes
    ----------
    callbacks, max_time
        As passed.
    idle : bool
        Whether there is neither a callback, a bar nor a limit of time.
    """

    def __init__(
        self,
        net: Network,
        callbacks: tuple[Callable[[Epoch], Any], ...],
        max_time: float,
        bar: ProgressBar | None,
    ):
        self._net, self.callbacks, self.max_time, self._bar = net, callbacks, max_time, bar
        self.idle = not callbacks and bar is None and max_time == np.inf
        self._start, self._interruption = time.perf_counter(), INTERRUPTION.get()

    @property
    def elapsed(self) -> float:
        """Seconds since the observer was made."""
        return time.perf_counter() - self._start

    @property
    def time_is_up(self) -> bool:
        """Whether `max_time` is over."""
        return self.elapsed >= self.max_time

    def update(self, epoch: float, loss: float, val_loss: float | None, rate: float | None) -> None:
        """Move the progress bar on; `epoch` may be a fraction.

        Raises
        ------
        KeyboardInterrupt
            If the event in INTERRUPTION is set.
        """
        if self._interruption is not None and self._interruption.is_set():
            raise KeyboardInterrupt
        if self._bar is not None:
            self._bar.update(epoch, loss, val_loss, rate)

    def call_back(
        self,
        epoch: int,
        loss: float,
        val_loss: float | None,
        rate: float | None,
        params: Callable[[], np.ndarray],
        state: Callable[[], dict[str, Any] | None],
    ) -> bool:
        """Call all callbacks with an `Epoch` of these values; True if one of them wants to stop."""
        if not self.callbacks:
            return False
        info = Epoch(self._net, epoch, loss, val_loss, rate, self.elapsed, params, state)
        # All are called: one that stops must not keep another from its checkpoint.
        try:
            answers = [callback(info) for callback in self.callbacks]
        except StopIteration as error:  # it would end a method of SciPy's without a message
            raise RuntimeError("a callback raised StopIteration; return True to stop") from error
        return any(isinstance(answer, bool | np.bool_) and answer for answer in answers)

    def close(self) -> None:
        """Close the progress bar, which leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
