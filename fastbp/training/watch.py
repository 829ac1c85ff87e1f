"""What goes on beside a run: the clock, the progress bar and the user's callbacks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np

from ..networks.network import Network
from .progress import Bar

# Why a run was stopped from outside.
TIME_IS_UP, CALLBACK, INTERRUPT = "max_time", "callback", "Ctrl-C"
# Once set, runs of this context end as by Ctrl-C, which Python raises in the main thread alone.
INTERRUPTION: ContextVar[threading.Event | None] = ContextVar("INTERRUPTION", default=None)


class Epoch:
    """What a callback of `fit` is told: an epoch, or an iteration of a full-batch method, is over.

    Attributes
    ----------
    net : Network
    epoch : int
        How many are complete.
    loss : float
        The last entry of the history's "loss".
    val_loss : float or None
        The validation's objective now; None without one.
    rate : float or None
        The last step's rate; None where there is none.
    elapsed : float
        Seconds since `fit` began.
    start : int or None
        The number of the start, in `multistart`.
    params : numpy.ndarray (n_params,)
        A new vector of the parameters now, or of their average if that has begun, for data as they
        were given; `fit` returns it if it stops here without patience, else the best ones met.
    state : dict or None
        What ``fit(state=...)`` goes on from; None for methods that cannot.
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


class Watch:
    """Looks after a run between its chunks of steps, or its iterations.

    Parameters
    ----------
    net : Network
    callbacks : sequence of callables
    max_time : float
        Seconds; inf for no limit.
    bar : Bar or None

    Attributes
    ----------
    idle : bool
        Whether there is nothing to look after.
    """

    def __init__(
        self,
        net: Network,
        callbacks: tuple[Callable[[Epoch], Any], ...],
        max_time: float,
        bar: Bar | None,
    ):
        self._net, self.callbacks, self.max_time, self._bar = net, callbacks, max_time, bar
        self.idle = not callbacks and bar is None and max_time == np.inf
        self._start, self._interruption = time.perf_counter(), INTERRUPTION.get()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._start

    @property
    def time_is_up(self) -> bool:
        """Whether `max_time` is over."""
        return self.elapsed >= self.max_time

    def show(self, epoch: float, loss: float, val_loss: float | None, rate: float | None) -> None:
        """Move the progress bar on; `epoch` may be a fraction. KeyboardInterrupt if told to end."""
        if self._interruption is not None and self._interruption.is_set():
            raise KeyboardInterrupt
        if self._bar is not None:
            self._bar.update(epoch, loss, val_loss, rate)

    def tell(
        self,
        epoch: int,
        loss: float,
        val_loss: float | None,
        rate: float | None,
        params: Callable[[], np.ndarray],
        state: Callable[[], dict[str, Any] | None],
    ) -> bool:
        """Call all callbacks; whether one of them wants to stop."""
        if not self.callbacks:
            return False
        told = Epoch(self._net, epoch, loss, val_loss, rate, self.elapsed, params, state)
        # All are called: one that stops must not keep another from its checkpoint.
        try:
            answers = [callback(told) for callback in self.callbacks]
        except StopIteration as error:  # which would end a method of SciPy's without a word
            raise RuntimeError("a callback raised StopIteration; return True to stop") from error
        return any(isinstance(answer, bool | np.bool_) and answer for answer in answers)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
