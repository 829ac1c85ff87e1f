"""The loop of the first-order methods: chunks of steps inside the backend, orders drawn between.

A chunk is as many steps as take about CHUNK_SECONDS, wherever in an epoch it ends: long enough that
the time between chunks does not count, short enough that Ctrl-C is answered at once even if an
epoch takes hours. What a step does never depends on how steps are cut into chunks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from .._arrays import FLOAT64
from .._objective import Objective, largest_eigenvalue
from ..backends import contract
from ..backends.contract import Run
from .optimizers import FirstOrder

CHUNK_SECONDS = 0.05
# The first chunk is one step, of unknown length; each next one at most this much longer.
CHUNK_GROWTH = 16
# Orders are drawn for as many epochs at once as have this many rows, at least one.
ORDER_ROWS = 2**16


@dataclass(eq=False)
class Outcome:
    """What a run came to.

    Attributes
    ----------
    params : numpy.ndarray (n_params,)
        The last parameters; after a divergence the last good ones.
    losses : numpy.ndarray of float64 (completed epochs,)
        Per epoch the mean of the objectives met.
    steps : int
        Steps begun.
    epoch : int
        The epoch of the last step, counted from 1.
    loss : float
        The last objective met.
    code : int
        What `contract.train` returned last.
    interrupted : bool
        Whether Ctrl-C ended the run.
    """

    params: np.ndarray
    losses: np.ndarray
    steps: int
    epoch: int
    loss: float
    code: int = contract.DONE
    interrupted: bool = False


def train(
    obj: Objective,
    method: FirstOrder,
    params: np.ndarray,
    epochs: int,
    batch_size: int,
    rng: np.random.Generator | None,
    seed: int,
) -> Outcome:
    """Run `epochs` epochs from `params`, which are not modified.

    Parameters
    ----------
    obj : Objective
        Its threads share batches of more than one part (see `contract.partition`).
    method : SGD or Adam
    params : numpy.ndarray (n_params,) of the network's dtype
        Masked entries are zero.
    epochs, batch_size : int
        At least 1; batch_size at most n, and even where the loss is of pairs.
    rng : numpy.random.Generator, optional
        Draws an order of the rows, or pairs of them, for every epoch; without it they come as
        stored.
    seed : int
        Of the dropout, 0 <= seed < 2^64.

    Returns
    -------
    Outcome
        After Ctrl-C the state at the end of the last complete chunk.
    """
    problem, rule = obj.problem, method.rule
    backend_train, averaged = obj.backend.train, obj.loss.averaged
    rates = np.array([method.lr])
    per_epoch = -(-len(problem.X) // batch_size)
    total = epochs * per_epoch
    group = 2 if obj.loss.paired else 1
    orders = _Orders(rng, len(problem.X), epochs, group) if rng is not None else None
    moments = np.zeros((rule.n_moments, len(params)), params.dtype)
    run = Run(params.copy(), moments, np.stack([params, params]), np.zeros(3), seed)
    sums = np.zeros(min(epochs, 1024))
    chunk, code = 1, contract.DONE
    # An interrupt may leave `run` in the middle of a step; these are whole.
    kept, interrupted = (0, run.params.copy(), np.nan), False
    try:
        while run.step < total and code == contract.DONE:
            first, stop = run.step, min(run.step + chunk, total)
            epoch, order = first // per_epoch, None
            if orders is not None:
                stop = min(stop, orders.ready_for(epoch) * per_epoch)
            last = (stop - 1) // per_epoch
            if orders is not None:
                order = orders.rows(epoch, last)
            while last >= len(sums):
                sums = np.concatenate([sums, np.zeros_like(sums)])
            start = time.perf_counter()
            code = backend_train(
                problem,
                rule,
                run,
                stop - first,
                batch_size,
                averaged,
                order,
                rates,
                sums[epoch : last + 1],
                obj.threads,
            )
            seconds = time.perf_counter() - start
            fitting = int((stop - first) * CHUNK_SECONDS / max(seconds, 1e-9))
            chunk = max(1, min(fitting, CHUNK_GROWTH * chunk))
            kept = run.step, run.params.copy(), float(run.monitor[2])
    except KeyboardInterrupt:
        interrupted, code = True, contract.DONE
    done, params, loss = kept
    if code != contract.DONE:
        params = run.good[0].copy()
    steps = done + (code == contract.NON_FINITE_OBJECTIVE)
    losses = sums[: done // per_epoch] / per_epoch
    return Outcome(params, losses, steps, -(-steps // per_epoch), loss, code, interrupted)


class _Orders:
    """The rows' order in each epoch, drawn epoch by epoch, a bounded block of epochs at a time.

    Groups of so many rows, one after another, stay together.
    """

    def __init__(self, rng: np.random.Generator, n: int, epochs: int, group: int = 1):
        self._rng, self._group = rng, group
        self._block = np.empty((min(epochs, max(1, ORDER_ROWS // n)), n), np.int64)
        self._first = -len(self._block)

    def ready_for(self, epoch: int) -> int:
        """Make the epoch's order ready; returns the first epoch whose order is not.

        Epochs are asked for in turn, so that the one after the block begins the next.
        """
        if epoch >= self._first + len(self._block):
            self._first = epoch
            self._draw()
        return self._first + len(self._block)

    def _draw(self) -> None:
        firsts = self._block[:, :: self._group]
        firsts[:] = np.arange(0, self._block.shape[1], self._group)
        # Row by row the same numbers as rng.permutation, at a fraction of its calls' cost.
        self._rng.permuted(firsts, axis=1, out=firsts)
        for k in range(1, self._group):
            self._block[:, k :: self._group] = firsts + k

    def rows(self, first: int, last: int) -> np.ndarray:
        """The orders of these epochs, (last - first + 1, n)."""
        return self._block[first - self._first : last + 1 - self._first]


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
