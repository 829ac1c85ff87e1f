"""Training: the time of a step within one call of `fastbp.fit`, and of a short call in all."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from conftest import QUICK
from handwritten import TrainingLoop
from race import Contestant
from workloads import CONTESTANTS, DTYPES, HAND, QUICK_TRAINING, TRAINING, Training

import fastbp as fb

# A call trains at least so many epochs: a fit ends with one look at all data, and a fit of fewer
# epochs would measure that.
LEAST_EPOCHS = 20

# Weights after 8 steps differ by no more than this share of the way that they have gone: rounding
# comes to at most a tenth of it, a rate that is 1 % wrong to 6e-3 and more.
TOLERANCE = {"float32": 1e-3, "float64": 1e-12}


def by_hand(work: Training, dtype: str, X: np.ndarray, y: np.ndarray) -> TrainingLoop:
    rule = {"method": work.method, "lr": work.lr}
    return TrainingLoop(work.net(dtype), X, y, work.loss, work.batch, **rule)


def contestant(name: str, work: Training, dtype: str, least: int) -> Contestant:
    net, (X, y) = work.net(dtype), work.data(dtype)
    params = net.init(seed=1)
    if name == HAND:
        loop = by_hand(work, dtype, X, y)
        run = partial(loop.run, params)
    else:

        def run(epochs):
            with fb.use_backend(name):
                return work.fit(net, params, X, y, epochs)

    def check():
        batches = min(work.batches, 8)  # 8 steps: one epoch of the first rows, or some of all
        rows, epochs = slice(0, batches * work.batch), 8 // batches
        expected = by_hand(work, "float64", X[rows].astype("float64"), y[rows]).run(params, epochs)
        if name == HAND:
            found = by_hand(work, dtype, X[rows], y[rows]).run(params, epochs)
        else:
            with fb.use_backend(name):
                found = work.fit(net, params, X[rows], y[rows], epochs)
        way = np.linalg.norm(expected - params)
        assert way > 0
        assert np.linalg.norm(found - expected) <= TOLERANCE[dtype] * way

    return Contestant(run, check, units=work.batches, least=least)


@pytest.mark.parametrize("name", CONTESTANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("workload", QUICK_TRAINING if QUICK else TRAINING)
def test_step(measure, workload, dtype, name):
    work = TRAINING[workload]
    makers = {other: partial(contestant, other, work, dtype, LEAST_EPOCHS) for other in CONTESTANTS}
    row = f"{workload} {work.title}"
    measure(makers, name, 1.0, suite="training", row=row, dtype=dtype, unit="step")


@pytest.mark.parametrize("name", CONTESTANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_short_fit(measure, dtype, name):
    """A call whose fixed cost counts: 8 steps."""
    work = TRAINING["T3"]

    def maker(other):
        once = contestant(other, work, dtype, 1)

        def run(times):
            for _ in range(times):
                once.run(1)

        return Contestant(run, once.check)

    makers = {other: partial(maker, other) for other in CONTESTANTS}
    row = "fit of T3, one epoch (8 steps)"
    measure(makers, name, 0.3, suite="calls", row=row, dtype=dtype, unit="call")
