"""The loop of the first-order methods: chunks of steps, each one call of the backend.

A chunk is as many steps as take about CHUNK_SECONDS, wherever in an epoch it ends: long enough that
the time between chunks does not count, short enough that Ctrl-C is answered at once even if an
epoch takes hours. Between chunks the loop draws the orders of rows, copies the state, moves the
progress bar on and looks at the clock. With callbacks a chunk ends where its epoch ends. What a
step does never depends on how steps are cut into chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import contract
from ..backends.contract import TrainConfig, TrainState
from ..networks.objective import Objective
from .callbacks import CALLBACK, INTERRUPT, TIME_IS_UP, Observer
from .optimizers import FirstOrder

CHUNK_SECONDS = 0.05
# Chunks of large networks are longer, so that the copy of the state after each takes this share of
# the time, but at most MOST_LONGER times as long.
COPY_SHARE, MOST_LONGER = 0.02, 20
# The first chunk assumes that a step takes this long, and the second number of seconds for each
# weight and row; no step takes longer.
STEP_SECONDS, PRODUCT_SECONDS = 1e-3, 1e-8
# Each chunk is at most this much longer than the one before.
CHUNK_GROWTH = 16
# Orders are drawn for as many epochs at once as have this many rows together, at least one.
ORDER_ROWS = 2**16

# The codes of `contract.train` that mean divergence.
DIVERGED = (contract.NON_FINITE_OBJECTIVE, contract.NON_FINITE_PARAMETERS, contract.GROWN)


@dataclass(eq=False)
class LoopState:
    """The state of a training run between two chunks: all that it takes to continue it.

    Attributes
    ----------
    run : TrainState
        What the backend changes in place.
    losses : numpy.ndarray of float64 (at least the epochs begun,)
        For each epoch the sum of its steps' objectives.
    validation : numpy.ndarray of float64 (at least the epochs begun,)
        The validation's objective after each epoch; (0,) without a validation.
    order : dict or None
        The position of the `Shuffler`; None for rows in stored order.
    partial : tuple of float
        In a copy made within an epoch, the sum of this epoch so far, where `losses` ends before
        it; else empty.
    """

    run: TrainState
    losses: np.ndarray
    validation: np.ndarray
    order: dict[str, Any] | None = None
    partial: tuple[float, ...] = ()

    def make_room(self, epochs: int, validated: bool) -> None:
        """Lengthen `losses` and `validation` to at least so many epochs, doubling them."""
        for name in ("losses", "validation") if validated else ("losses",):
            record = getattr(self, name)
            if epochs > len(record):
                longer = np.zeros(max(epochs, 2 * len(record), 1024))  # sums start at 0
                if name == "validation":  # a run that diverges has no value of its last epoch
                    longer.fill(np.nan)
                longer[: len(record)] = record
                setattr(self, name, longer)

    def copy(self, config: TrainConfig, per_epoch: int) -> LoopState:
        """A copy that later steps do not change; it shares what they leave as it is.

        `per_epoch` is the number of steps in an epoch.
        """
        r, done = self.run, self.run.step // per_epoch
        best = r.best.copy() if config.patience else r.best
        average = r.average.copy() if config.average_from >= 0 else r.average
        run = TrainState(
            r.params.copy(), r.moments.copy(), r.good.copy(), best, average,
            r.monitor.copy(), r.seed, r.step,
        )  # fmt: skip
        partial = (float(self.losses[done]),) if r.step % per_epoch else ()
        return LoopState(run, self.losses[:done], self.validation[:done], self.order, partial)


def initial_state(params: np.ndarray, config: TrainConfig, moment: float, seed: int) -> LoopState:
    """The state of a run before its first step.

    Parameters
    ----------
    params : numpy.ndarray (n_params,) of the network's dtype
        Masked entries are zero. Not modified.
    config : TrainConfig
    moment : float
        The initial value of all entries of the optimizer's moments.
    seed : int
        The seed of the dropout, 0 <= seed < 2^64.
    """
    n = len(params)
    moments = np.full((config.optimizer.n_moments, n), moment, params.dtype)
    monitor = np.array([0.0, 0.0, np.nan, np.inf, np.inf, 0.0])
    good = np.array([params, params])
    run = TrainState(params.copy(), moments, good, params.copy(), np.zeros(n), monitor, seed)
    return LoopState(run, np.zeros(0), np.zeros(0))


def candidate(config: TrainConfig, run: TrainState) -> np.ndarray:
    """The parameters (n_params,) that a fit without patience would return now.

    They are the average of the parameters once it has begun, else the last ones.
    """
    averaged = 0 <= config.average_from < run.step
    return run.average.astype(run.params.dtype) if averaged else run.params


@dataclass(eq=False)
class LoopResult:
    """The result of `train`.

    Attributes
    ----------
    state : LoopState
        The state after the last complete chunk.
    params : numpy.ndarray (n_params,)
        The parameters that the fit returns: after a divergence the last good ones, with patience
        the best ones, else the last ones or their average.
    losses : numpy.ndarray of float64 (completed epochs,)
        For each epoch the mean of its steps' objectives.
    validation : numpy.ndarray of float64 (completed epochs,)
        The validation's objective after each epoch; (0,) without a validation.
    steps : int
        Steps begun.
    epoch : int
        The epoch of the last step, counted from 1.
    loss : float
        The objective of the last step.
    rate : float
        The rate of the last step.
    code : int
        What `contract.train` returned last.
    stopped : str or None
        TIME_IS_UP, CALLBACK or INTERRUPT if one of these ended the run.
    """

    state: LoopState
    params: np.ndarray
    losses: np.ndarray
    validation: np.ndarray
    steps: int
    epoch: int
    loss: float
    rate: float
    code: int
    stopped: str | None


def train(
    obj: Objective,
    method: FirstOrder,
    config: TrainConfig,
    state: LoopState,
    shuffler: Shuffler | None,
    epochs: int,
    observer: Observer,
    to_raw: Callable[[np.ndarray], np.ndarray],
    to_dict: Callable[[LoopState], dict[str, Any]],
) -> LoopResult:
    """Continue a run until it has done `epochs` epochs, or something stops it.

    Parameters
    ----------
    obj : Objective
        The training objective. Its threads share batches of more than one part (see
        `contract.partition`).
    method : FirstOrder
        The source of the rates.
    config : TrainConfig
        With the rule of `method`.
    state : LoopState
        Where the run is; changed in place.
    shuffler : Shuffler, optional
        The source of the rows' order; without it rows come as stored.
    epochs : int
        All epochs of the run, those that `state` has completed included.
    observer : Observer
        Called between chunks.
    to_raw, to_dict : callable
        From the parameters of `obj` (n_params,) and from a `LoopState` to `params` and `state` of
        the `Epoch` that callbacks receive.

    Returns
    -------
    LoopResult
    """
    problem, run = obj.problem, state.run
    backend_train, validated = obj.backend.train, config.validation is not None
    per_epoch = -(-len(problem.X) // config.batch_size)
    total = epochs * per_epoch
    rates = _rates(method, run.step, run.step + 1, per_epoch)
    chunk, code, stopped = _first_chunk(config, obj, observer), contract.DONE, None
    # An interrupt may leave `run` in the middle of a step; the copy is complete.
    checkpoint = state.copy(config, per_epoch)
    try:
        while run.step < total and code == contract.DONE and stopped is None:
            start = time.perf_counter()
            first, stop = run.step, min(run.step + chunk, total)
            epoch, order = first // per_epoch, None
            if observer.callbacks:
                stop = min(stop, (epoch + 1) * per_epoch)
            if shuffler is not None:
                stop = min(stop, shuffler.draw(epoch) * per_epoch)
                order = shuffler.orders(epoch, (stop - 1) // per_epoch)
            state.make_room((stop - 1) // per_epoch + 1, validated)
            if method.rate_changes:
                rates = _rates(method, first, stop, per_epoch)
            touched = slice(epoch, (stop - 1) // per_epoch + 1)
            code = backend_train(
                problem, config, run, stop - first, order, rates, state.losses[touched],
                state.validation[touched],
            )  # fmt: skip
            trained = time.perf_counter()
            state.order = None if shuffler is None else shuffler.position
            checkpoint = state.copy(config, per_epoch)
            seconds = _chunk_seconds(time.perf_counter() - trained, observer)
            steps = int((stop - first) * seconds / max(trained - start, 1e-9))
            chunk = max(1, min(steps, CHUNK_GROWTH * chunk))
            stopped = _observe(
                observer, config, checkpoint, per_epoch, code, rates[-1], to_raw, to_dict
            )
    except KeyboardInterrupt:
        stopped, code = INTERRUPT, contract.DONE
    if method.rate_changes:
        last = max(checkpoint.run.step - (code != contract.NON_FINITE_OBJECTIVE), 0)
        rates = _rates(method, last, last + 1, per_epoch)
    return _result(config, checkpoint, per_epoch, float(rates[-1]), code, stopped)


def _first_chunk(config: TrainConfig, obj: Objective, observer: Observer) -> int:
    """Steps of the first chunk, before any is timed."""
    step = STEP_SECONDS + PRODUCT_SECONDS * config.batch_size * obj.net.n_params
    return max(1, int(min(CHUNK_SECONDS, observer.max_time) / step))


def _chunk_seconds(copying: float, observer: Observer) -> float:
    """How long the next chunk may take where a copy of the state takes `copying` seconds."""
    left = observer.max_time - observer.elapsed
    return max(CHUNK_SECONDS, min(copying / COPY_SHARE, MOST_LONGER * CHUNK_SECONDS, left))


def _rates(method: FirstOrder, first: int, stop: int, per_epoch: int) -> np.ndarray:
    """The rates of the steps from `first` to before `stop`, (stop - first,), or (1,) for all."""
    if not method.rate_changes:
        return np.array([method.lr], np.float64)
    steps = np.arange(first, stop)
    return method.rates(steps, steps / per_epoch)


def _observe(
    observer: Observer,
    config: TrainConfig,
    checkpoint: LoopState,
    per_epoch: int,
    code: int,
    rate: float,
    to_raw: Callable[[np.ndarray], np.ndarray],
    to_dict: Callable[[LoopState], dict[str, Any]],
) -> str | None:
    """Move the bar on, call back after a complete epoch, look at the clock; why to stop, or None.

    `rate` is that of the chunk's last step; the other arguments are as in `train`.
    """
    run, done = checkpoint.run, checkpoint.run.step // per_epoch
    if done:
        loss = float(checkpoint.losses[done - 1] / per_epoch)
    else:
        loss = float(run.monitor[contract.LAST_OBJECTIVE])
    val_loss = float(checkpoint.validation[-1]) if len(checkpoint.validation) else None
    observer.update(run.step / per_epoch, loss, val_loss, rate)
    complete = run.step % per_epoch == 0 and code not in DIVERGED
    if complete and observer.call_back(
        done, loss, val_loss, rate, lambda: to_raw(candidate(config, run)),
        lambda: to_dict(checkpoint.copy(config, per_epoch)),
    ):  # fmt: skip
        return CALLBACK
    return TIME_IS_UP if observer.time_is_up else None


def _result(
    config: TrainConfig,
    checkpoint: LoopState,
    per_epoch: int,
    rate: float,
    code: int,
    stopped: str | None,
) -> LoopResult:
    run, done = checkpoint.run, checkpoint.run.step // per_epoch
    params = candidate(config, run)
    if code in DIVERGED:
        params = run.good[0]
    elif config.patience and run.monitor[contract.LOWEST] < np.inf:
        params = run.best
    steps = run.step + (code == contract.NON_FINITE_OBJECTIVE)
    return LoopResult(
        state=checkpoint,
        params=params.copy(),
        losses=checkpoint.losses[:done] / per_epoch,
        validation=checkpoint.validation[:done].copy(),
        steps=steps,
        epoch=-(-steps // per_epoch),
        loss=float(run.monitor[contract.LAST_OBJECTIVE]),
        rate=rate,
        code=code,
        stopped=stopped,
    )


class Shuffler:
    """Draws the rows' order of each epoch, for a bounded block of epochs at a time.

    Parameters
    ----------
    seed : SeedSequence
    n : int
        Rows.
    epochs : int
        Epochs of the run.
    group : int, default 1
        Consecutive rows that stay together; it divides n.
    position : dict, optional
        The position of the shuffler that this one continues.

    Attributes
    ----------
    position : dict
        The first epoch of the present block, "epoch", and the state of the generator before it,
        "generator", from which the block follows.
    """

    def __init__(
        self,
        seed: np.random.SeedSequence,
        n: int,
        epochs: int,
        group: int = 1,
        position: dict[str, Any] | None = None,
    ):
        self._rng, self._group, first = np.random.default_rng(seed), group, 0
        if position is not None:
            self._rng.bit_generator.state = position["generator"]
            first = position["epoch"]
        self._block = np.empty((min(epochs, max(1, ORDER_ROWS // n)), n), np.int64)
        self._stop = first  # the first epoch that is not in the block
        self._set_position()

    def _set_position(self) -> None:
        state = self._rng.bit_generator.state
        self.position = {"epoch": self._stop, "generator": state}

    def draw(self, epoch: int) -> int:
        """Draw blocks until one holds this epoch; returns the first epoch after that block.

        Epochs never decrease from call to call.
        """
        while epoch >= self._stop:
            self._set_position()
            self._draw_block()
            self._stop += len(self._block)
        return self._stop

    def _draw_block(self) -> None:
        firsts = self._block[:, :: self._group]
        firsts[:] = np.arange(0, self._block.shape[1], self._group)
        # Row by row the same numbers as rng.permutation, at a fraction of its calls' cost.
        self._rng.permuted(firsts, axis=1, out=firsts)
        for k in range(1, self._group):
            self._block[:, k :: self._group] = firsts + k

    def orders(self, first: int, last: int) -> np.ndarray:
        """The orders of the block's epochs from `first` to `last`, (last - first + 1, n)."""
        start = self._stop - len(self._block)
        return self._block[first - start : last + 1 - start]
