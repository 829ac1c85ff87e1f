"""The loop of the first-order methods: chunks of steps inside the backend, orders drawn between.

A chunk is as many steps as take about CHUNK_SECONDS, wherever in an epoch it ends: long enough that
the time between chunks does not count, short enough that Ctrl-C is answered at once even if an
epoch takes hours. Callbacks end a chunk with each epoch. What a step does never depends on how
steps are cut into chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._arrays import FLOAT64
from .._objective import Objective, largest_eigenvalue
from ..backends import contract
from ..backends.contract import Recipe, Run
from .optimizers import FirstOrder
from .watch import CALLBACK, INTERRUPT, TIME_IS_UP, Watch

CHUNK_SECONDS = 0.05
# Chunks of large networks are longer, so that a copy of the run after each takes this share of the
# time, but no more than so many times as long.
COPY_SHARE, MOST_LONGER = 0.02, 20
# Before anything is measured: no step takes longer than this and so much for each weight and row.
STEP_SECONDS, PRODUCT_SECONDS = 1e-3, 1e-8
# Each chunk is at most this much longer than the one before.
CHUNK_GROWTH = 16
# Orders are drawn for as many epochs at once as have this many rows, at least one.
ORDER_ROWS = 2**16

DIVERGED = (contract.NON_FINITE_OBJECTIVE, contract.NON_FINITE_PARAMETERS, contract.GROWN)


@dataclass(eq=False)
class Progress:
    """A training run between two chunks: all that it takes to go on.

    Attributes
    ----------
    run : Run
    losses : numpy.ndarray of float64 (at least the epochs begun,)
        The sum of the objectives met in each epoch.
    validation : numpy.ndarray of float64
        The validation's value after each epoch; empty without one.
    order : dict or None
        Where the orders of rows come from (see `Orders.position`).
    partial : tuple of float
        Of a copy: the running epoch's sum, if it has begun; `losses` then ends before it.
    """

    run: Run
    losses: np.ndarray
    validation: np.ndarray
    order: dict[str, Any] | None = None
    partial: tuple[float, ...] = ()

    def make_room(self, epochs: int, validated: bool) -> None:
        """Make the records long enough for so many epochs, doubling them as they grow."""
        for name in ("losses", "validation") if validated else ("losses",):
            record = getattr(self, name)
            if epochs > len(record):
                longer = np.zeros(max(epochs, 2 * len(record), 1024))  # where sums begin
                if name == "validation":  # a run that ends in divergence has no last one
                    longer.fill(np.nan)
                longer[: len(record)] = record
                setattr(self, name, longer)

    def copy(self, recipe: Recipe, per_epoch: int) -> Progress:
        """What it is now, whatever becomes of it; what will not change any more is shared."""
        r, done = self.run, self.run.step // per_epoch
        best = r.best.copy() if recipe.patience else r.best
        average = r.average.copy() if recipe.average_from >= 0 else r.average
        run = Run(
            r.params.copy(), r.moments.copy(), r.good.copy(), best, average,
            r.monitor.copy(), r.seed, r.step,
        )  # fmt: skip
        partial = (float(self.losses[done]),) if r.step % per_epoch else ()
        return Progress(run, self.losses[:done], self.validation[:done], self.order, partial)


def beginning(params: np.ndarray, recipe: Recipe, moment: float, seed: int) -> Progress:
    """A run before its first step.

    Parameters
    ----------
    params : numpy.ndarray (n_params,) of the network's dtype
        Masked entries are zero. Not modified.
    recipe : Recipe
    moment : float
        What the optimizer's vectors are full of at first.
    seed : int
        Of the dropout, 0 <= seed < 2^64.
    """
    n = len(params)
    moments = np.full((recipe.optimizer.n_moments, n), moment, params.dtype)
    monitor = np.array([0.0, 0.0, np.nan, np.inf, np.inf, 0.0])
    good = np.array([params, params])
    run = Run(params.copy(), moments, good, params.copy(), np.zeros(n), monitor, seed)
    return Progress(run, np.zeros(0), np.zeros(0))


def candidate(recipe: Recipe, run: Run) -> np.ndarray:
    """The parameters that a fit would return now."""
    begun = 0 <= recipe.average_from < run.step
    return run.average.astype(run.params.dtype) if begun else run.params


@dataclass(eq=False)
class Outcome:
    """What a run came to.

    Attributes
    ----------
    progress : Progress
        At the end of the last complete chunk.
    params : numpy.ndarray (n_params,)
        After a divergence the last good ones, with patience the best, else the last ones or their
        average.
    losses, validation : numpy.ndarray of float64 (completed epochs,)
        Per epoch the mean of the objectives met, and the validation's value (or empty).
    steps : int
        Steps begun.
    epoch : int
        The epoch of the last step, counted from 1.
    loss : float
        The last objective met.
    rate : float
        That of the last step.
    code : int
        What `contract.train` returned last.
    stopped : str or None
        TIME_IS_UP, CALLBACK or INTERRUPT if one of them ended the run.
    """

    progress: Progress
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
    recipe: Recipe,
    progress: Progress,
    orders: Orders | None,
    epochs: int,
    watch: Watch,
    params_of: Callable[[np.ndarray], np.ndarray],
    state_of: Callable[[Progress], dict[str, Any]],
) -> Outcome:
    """Go on with a run until it has `epochs` epochs, or something stops it.

    Parameters
    ----------
    obj : Objective
        Its threads share batches of more than one part (see `contract.partition`) in the C backend.
    method : FirstOrder
    recipe : Recipe
        With the rule of `method`.
    progress : Progress
        Changed in place.
    orders : Orders, optional
        Without it rows come as stored.
    epochs : int
        Those that `progress` has completed included.
    watch : Watch
    params_of, state_of : callable
        What callbacks are told of parameters and of a copy of the progress.

    Returns
    -------
    Outcome
    """
    problem, run = obj.problem, progress.run
    backend_train, validated = obj.backend.train, recipe.validation is not None
    per_epoch = -(-len(problem.X) // recipe.batch_size)
    total = epochs * per_epoch
    rates = _rates(method, run.step, run.step + 1, per_epoch)
    chunk, code, stopped = _first_chunk(recipe, obj, watch), contract.DONE, None
    # An interrupt may leave `run` in the middle of a step; this is whole.
    kept = progress.copy(recipe, per_epoch)
    try:
        while run.step < total and code == contract.DONE and stopped is None:
            start = time.perf_counter()
            first, stop = run.step, min(run.step + chunk, total)
            epoch, order = first // per_epoch, None
            if watch.callbacks:
                stop = min(stop, (epoch + 1) * per_epoch)
            if orders is not None:
                stop = min(stop, orders.ready_for(epoch) * per_epoch)
                order = orders.rows(epoch, (stop - 1) // per_epoch)
            progress.make_room((stop - 1) // per_epoch + 1, validated)
            if method.changes:
                rates = _rates(method, first, stop, per_epoch)
            touched = slice(epoch, (stop - 1) // per_epoch + 1)
            code = backend_train(
                problem, recipe, run, stop - first, order, rates, progress.losses[touched],
                progress.validation[touched],
            )  # fmt: skip
            trained = time.perf_counter()
            progress.order = None if orders is None else orders.position
            kept = progress.copy(recipe, per_epoch)
            length = _chunk_seconds(time.perf_counter() - trained, watch)
            fitting = int((stop - first) * length / max(trained - start, 1e-9))
            chunk = max(1, min(fitting, CHUNK_GROWTH * chunk))
            stopped = _look(watch, recipe, kept, per_epoch, code, rates[-1], params_of, state_of)
    except KeyboardInterrupt:
        stopped, code = INTERRUPT, contract.DONE
    if method.changes:
        last = max(kept.run.step - (code != contract.NON_FINITE_OBJECTIVE), 0)
        rates = _rates(method, last, last + 1, per_epoch)
    return _outcome(recipe, kept, per_epoch, float(rates[-1]), code, stopped)


def _first_chunk(recipe: Recipe, obj: Objective, watch: Watch) -> int:
    step = STEP_SECONDS + PRODUCT_SECONDS * recipe.batch_size * obj.net.n_params
    return max(1, int(min(CHUNK_SECONDS, watch.max_time) / step))


def _chunk_seconds(copying: float, watch: Watch) -> float:
    left = watch.max_time - watch.elapsed
    return max(CHUNK_SECONDS, min(copying / COPY_SHARE, MOST_LONGER * CHUNK_SECONDS, left))


def _rates(method: FirstOrder, first: int, stop: int, per_epoch: int) -> np.ndarray:
    """The rates of these steps, or one for all."""
    if not method.changes:
        return np.array([method.lr], np.float64)
    steps = np.arange(first, stop)
    return method.rates(steps, steps / per_epoch)


def _look(
    watch: Watch,
    recipe: Recipe,
    kept: Progress,
    per_epoch: int,
    code: int,
    rate: float,
    params_of: Callable[[np.ndarray], np.ndarray],
    state_of: Callable[[Progress], dict[str, Any]],
) -> str | None:
    """Between two chunks: show, tell, look at the clock; why to stop, if so."""
    run, done = kept.run, kept.run.step // per_epoch
    met = kept.losses[done - 1] / per_epoch if done else run.monitor[contract.LAST_OBJECTIVE]
    loss = float(met)
    val_loss = float(kept.validation[-1]) if len(kept.validation) else None
    watch.show(run.step / per_epoch, loss, val_loss, rate)
    complete = run.step % per_epoch == 0 and code not in DIVERGED
    if complete and watch.tell(
        done, loss, val_loss, rate, lambda: params_of(candidate(recipe, run)),
        lambda: state_of(kept.copy(recipe, per_epoch)),
    ):  # fmt: skip
        return CALLBACK
    return TIME_IS_UP if watch.time_is_up else None


def _outcome(
    recipe: Recipe, kept: Progress, per_epoch: int, rate: float, code: int, stopped: str | None
) -> Outcome:
    run, done = kept.run, kept.run.step // per_epoch
    params = candidate(recipe, run)
    if code in DIVERGED:
        params = run.good[0]
    elif recipe.patience and run.monitor[contract.LOWEST] < np.inf:
        params = run.best
    steps = run.step + (code == contract.NON_FINITE_OBJECTIVE)
    return Outcome(
        progress=kept,
        params=params.copy(),
        losses=kept.losses[:done] / per_epoch,
        validation=kept.validation[:done].copy(),
        steps=steps,
        epoch=-(-steps // per_epoch),
        loss=float(run.monitor[contract.LAST_OBJECTIVE]),
        rate=rate,
        code=code,
        stopped=stopped,
    )


class Orders:
    """The rows' order in each epoch, drawn epoch by epoch, a bounded block of epochs at a time.

    Parameters
    ----------
    seed : SeedSequence
    n : int
        Rows.
    epochs : int
        As many as may be asked for.
    group : int
        So many rows, one after another, stay together.
    position : dict, optional
        Of the orders that these continue.
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
        self._remember()

    def _remember(self) -> None:
        """`position`: a block's first epoch and the generator before it, from which it follows."""
        state = self._rng.bit_generator.state
        self.position = {"epoch": self._stop, "generator": state}

    def ready_for(self, epoch: int) -> int:
        """Make the epoch's order ready; returns the first epoch whose order is not.

        No epoch is asked for after a later one.
        """
        while epoch >= self._stop:
            self._remember()
            self._draw()
            self._stop += len(self._block)
        return self._stop

    def _draw(self) -> None:
        firsts = self._block[:, :: self._group]
        firsts[:] = np.arange(0, self._block.shape[1], self._group)
        # Row by row the same numbers as rng.permutation, at a fraction of its calls' cost.
        self._rng.permuted(firsts, axis=1, out=firsts)
        for k in range(1, self._group):
            self._block[:, k :: self._group] = firsts + k

    def rows(self, first: int, last: int) -> np.ndarray:
        """The orders of these epochs of the block, (last - first + 1, n)."""
        start = self._stop - len(self._block)
        return self._block[first - start : last + 1 - start]


# Why a rate is too large.


def curvature(obj: Objective, params: np.ndarray, batch_size: int) -> float:
    """The largest eigenvalue of the Gauss-Newton matrix of a batch's mean objective.

    At most 4096 rows and 2^24 numbers rows·n_params are looked at, rows evenly spaced and scaled to
    all, so that the work stays a small part of a fit's.

    Parameters
    ----------
    obj : Objective
        Of a least-squares loss.
    params : numpy.ndarray (n_params,)
    batch_size : int
        At most n. Where the loss has no normaliser, a batch of B rows has B/n of the curvature.

    Returns
    -------
    float
        Not finite where the network is not at `params`.
    """
    obj = obj.astype(FLOAT64)
    problem, params, free = obj.problem, obj.net._params(params), obj.net.free
    n = len(problem.X)
    rows = slice(None, None, -(-n // min(4096, max(32, 2**24 // len(params)))))
    weights = np.ones(n) if problem.weights is None else problem.weights
    scale = problem.scale * weights.sum() / max(weights[rows].sum(), 1e-300)
    sample = replace(
        problem,
        X=np.ascontiguousarray(problem.X[rows]),
        targets=np.ascontiguousarray(problem.targets[rows]),
        weights=np.ascontiguousarray(weights[rows]),
        scale=scale if obj.loss.averaged else scale * batch_size / n,
        handles={},
    )

    def product(x: np.ndarray) -> np.ndarray:
        v = np.zeros(len(params))
        v[free] = np.ravel(x)
        v = obj.backend.hvp(sample, params, v, True) + obj._penalty_product(params, v)
        return v[free]

    return largest_eigenvalue(product, len(free), tol=1e-5, restarts=20)
