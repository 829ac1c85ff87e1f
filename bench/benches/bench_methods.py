"""The sum of squares over the time that each of fit's methods takes for it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from measuring.session import CLOCK, QUICK, hand_over
from report.runs import CURVES
from workloads import LEAST_SQUARES

import fastbp as fb

WORK, START = LEAST_SQUARES["L2"], 1
# The rates with which SGD and Adam come to the goal soonest, of 1, 2 and 5 times a power of ten.
METHODS: dict[str, dict[str, Any]] = {
    "SGD": {"method": "sgd", "lr": 0.05, "batch_size": 32},
    "Adam": {"method": "adam", "lr": 0.002, "batch_size": 32},
    "L-BFGS-B": {"method": "L-BFGS-B"},
    "fmincg": {"method": "fmincg"},
    "LM": {"method": "lm"},
}
# Sums of squares: 1, 0.1 and 0.01 % of the data's own are left.
LEVELS = (20.0, 2.0, WORK.goal)
REPEATS = 2 if QUICK else 5


def curve(method: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Processor seconds from the call to the end of each epoch, and the sum of squares there."""
    net, (X, y) = WORK.net(), WORK.data()
    options = {"params": net.init(seed=START), "goal": WORK.goal / len(X), "epochs": 10_000}
    points = []

    def record(epoch):
        points.append((time.process_time() - start, epoch.loss * len(X)))

    start = time.process_time()
    fb.fit(net, X, y, seed=0, callbacks=record, **options, **method)
    seconds, sse = np.array(points).T
    return seconds, sse


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("name", METHODS)
def test_curve(benchmark, name):
    """The same epochs several times, the least time of each."""
    runs = [curve(METHODS[name]) for _ in range(1 if benchmark.disabled else REPEATS)]
    seconds, sse = np.min([seconds for seconds, _ in runs], axis=0), runs[0][1]
    assert sse[-1] <= WORK.goal
    place = {"suite": CURVES, "row": f"L2 {WORK.title}", "dtype": "float64", "contestant": name}
    # Enough points for a plot.
    kept = np.unique(np.geomspace(1, len(sse), 200).astype(int)) - 1
    points: dict[str, Any] = {"seconds": seconds[kept].tolist(), "sse": sse[kept].tolist()}
    points["reached"] = {f"{level:g}": seconds[np.argmax(sse <= level)] for level in LEVELS}
    hand_over(benchmark, [seconds[-1]], **place, curve=points)
