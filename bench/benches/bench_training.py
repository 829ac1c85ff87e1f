"""Training: the time of a step within one call, beside all peers; and of a short call in all."""

from __future__ import annotations

from functools import partial

import numpy as np
import peers
import pytest
from measuring import levels
from measuring.race import Contestant
from measuring.session import QUICK
from peers.handwritten import TrainingLoop
from workloads import CONTESTANTS, DRAWN, DTYPES, HAND, QUICK_TRAINING

import fastbp as fb
from fastbp.cli.workloads import TRAINING, Training

# A call of fit trains at least so many epochs: it ends with one look at all data, and a fit of
# fewer epochs would measure that.
LEAST_EPOCHS = 20

# Weights after 8 steps (or an epoch of more) differ by no more than this share of the way that they
# have gone: rounding comes to at most a tenth of it, a rate that is 1 % wrong to 6e-3 and more.
TOLERANCE = {"float32": 1e-3, "float64": 1e-12}

WORKLOADS = ({name: TRAINING[name] for name in QUICK_TRAINING} if QUICK else TRAINING) | DRAWN
PEERS = peers.installed()
BACKENDS = (*fb.available_backends(), *levels.lower())


def entrants(workload: str) -> list[str]:
    """Who takes part."""
    n_params = WORKLOADS[workload].net("float32").n_params

    def suits(peer: peers.Peer) -> bool:
        return n_params <= peer.most_params and not (peer.slow_to_compile and workload in DRAWN)

    return [*BACKENDS, HAND, *(name for name in PEERS if suits(peers.PEERS[name]))]


def by_hand(work: Training, dtype: str) -> TrainingLoop:
    X, y = work.data(dtype)
    rule = {"method": work.method, "lr": work.lr}
    return TrainingLoop(work.net(dtype), X, y, work.loss, work.batch, **rule)


def trainer(name: str, work: Training, dtype: str, params: np.ndarray) -> peers.Run:
    """``run(epochs)``, which returns the parameters."""
    if name == HAND:
        return partial(by_hand(work, dtype).run, params)
    net, (X, y) = work.net(dtype), work.data(dtype)
    if name in PEERS:
        return peers.trainer(name, work, dtype, X, y, params)

    def fit(epochs):
        with fb.use_backend(name):
            return work.fit(net, params, X, y, epochs)

    return fit


def contestant(name: str, work: Training, dtype: str, least: int = LEAST_EPOCHS) -> Contestant:
    net = work.net(dtype)
    params = net.init(seed=1)
    run = trainer(name, work, dtype, params)

    def check():
        epochs = max(1, 8 // work.batches)
        expected = by_hand(work, "float64").run(params, epochs)
        found = run(epochs)
        if not isinstance(found, np.ndarray):
            found = net.pack([(np.asarray(W), np.asarray(b)) for W, b in found])
        way = np.linalg.norm(expected - params)
        assert way > 0
        assert np.linalg.norm(found - expected) <= TOLERANCE[dtype] * way

    return Contestant(run, check, work.batches, least if name in BACKENDS else 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "workload, name", [(work, name) for work in WORKLOADS for name in entrants(work)]
)
def test_step(measure, workload, name, dtype):
    work = WORKLOADS[workload]
    makers = {other: partial(contestant, other, work, dtype) for other in entrants(workload)}
    row = f"{workload} {work.title}"
    measure(makers, name, 0.4, suite="training", row=row, dtype=dtype, unit="step")


@pytest.mark.parametrize("name", CONTESTANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_short_fit(measure, dtype, name):
    """A call whose fixed cost counts: 8 steps."""
    work = TRAINING["T3"]

    def maker(other):
        once = contestant(other, work, dtype, least=1)

        def run(times):
            for _ in range(times):
                once.run(1)

        return Contestant(run, once.check)

    makers = {other: partial(maker, other) for other in CONTESTANTS}
    row = "fit of T3, one epoch (8 steps)"
    measure(makers, name, 0.3, suite="calls", row=row, dtype=dtype, unit="call")
