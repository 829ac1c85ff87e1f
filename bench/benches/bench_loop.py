"""What `fastbp.fit` adds to the backend's bare steps: history, validation, stopping, progress."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from measuring.race import Contestant
from workloads import DTYPES

import fastbp as fb
from fastbp import backends
from fastbp.backends.contract import TrainConfig
from fastbp.cli.workloads import TRAINING
from fastbp.training import loop

BARE = "bare steps"
STEPS = 10_000
WORK = TRAINING["T3"]
EPOCHS = STEPS // WORK.batches

# What fit is asked for beside training. All of it is looked at after each of the 1,250 epochs.
ASKED = {
    "fit": {},
    "with goal and time limit": {"goal": -1.0, "max_time": 1e9},
    "with progress bar": {"progress": True},
    "with validation and patience": {"patience": STEPS},
}


def contestant(name: str, dtype: str) -> Contestant:
    net, (X, y) = WORK.net(dtype), WORK.data(dtype)
    params, method = net.init(seed=1), fb.Adam(lr=WORK.lr)
    obj, held_out = net.objective(X, y), (X[:1], y[:1])

    def bare(times):
        """The backend's steps and nothing else."""
        for _ in range(times):
            config = TrainConfig(method.rule, WORK.batch, True)
            run = loop.initial_state(params, config, 0.0, seed=0).run
            losses, rates = np.zeros(EPOCHS), np.array([WORK.lr])
            obj.backend.train(obj.problem, config, run, STEPS, None, rates, losses, losses[:0])
        return run.params

    def fit(times):
        asked = ASKED[name]
        if "patience" in asked:
            asked = asked | {"validation": held_out}
        for _ in range(times):
            res = fb.fit(
                net, X, y, method=method, params=params, epochs=EPOCHS, batch_size=WORK.batch,
                shuffle=False, **asked,
            )  # fmt: skip
        assert len(res.history["loss"]) == EPOCHS
        return res

    def check():
        if name != BARE and "patience" not in ASKED[name]:
            assert np.array_equal(fit(1).params, bare(1))

    return Contestant(bare if name == BARE else fit, check)


@pytest.mark.parametrize("name", (BARE, *ASKED))
@pytest.mark.parametrize("dtype", DTYPES)
def test_loop(measure, dtype, name):
    with fb.use_backend(backends.available_backends()[0]):
        makers = {other: partial(contestant, other, dtype) for other in (BARE, *ASKED)}
        row = f"T3, {STEPS:,} steps"
        measure(makers, name, 1.0, suite="loop", row=row, dtype=dtype, unit="run")
