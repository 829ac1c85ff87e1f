"""Fits in threads and processes of their own: what a process must be able to import."""

from __future__ import annotations

import os
from typing import Any

from fastbp.cli.workloads import TRAINING

# Steps of a fit: about 5 ms.
STEPS = {"T2": 16384, "T3": 1024, "T6": 56}


def fits(workload: str, dtype: str, core: int, messages: Any = None) -> Any:
    """``run(times)`` on that core; with a pipe, do what comes through it until None does."""
    os.sched_setaffinity(0, {core})  # of this thread
    work = TRAINING[workload]
    net, (X, y) = work.net(dtype), work.data(dtype)
    params, epochs = net.init(seed=1), STEPS[workload] // work.batches

    def run(times):
        for _ in range(times):
            work.fit(net, params, X, y, epochs)

    if messages is None:
        return run
    messages.send(run(1))
    while times := messages.recv():
        messages.send(run(times))
