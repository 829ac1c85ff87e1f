"""Two fits at once: in two threads of one process, and in two processes.

Each worker keeps to a core of its own. The clock is the wall clock here: how long both take.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from measuring.race import Contestant
from measuring.session import CORES
from measuring.workers import STEPS, fits
from report.runs import ALONE, PROCESSES, THREADS
from workloads import DTYPES

from fastbp.cli.workloads import TRAINING

NAMES = (ALONE, THREADS, PROCESSES)
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


class Threads:
    """Two threads that wait for work."""

    def __init__(self, workload: str, dtype: str):
        self.pools = [ThreadPoolExecutor(1) for _ in range(2)]
        calls = zip(self.pools, sorted(CORES), strict=False)
        self.fits = [pool.submit(fits, workload, dtype, core).result() for pool, core in calls]

    def run(self, times: int) -> None:
        calls = zip(self.pools, self.fits, strict=True)
        for call in [pool.submit(run, times) for pool, run in calls]:
            call.result()


class Processes:
    """Two processes that wait for work; they end with this one."""

    def __init__(self, workload: str, dtype: str):
        spawn, self.pipes = multiprocessing.get_context("spawn"), []
        for core, _ in zip(sorted(CORES), range(2), strict=False):
            ours, theirs = spawn.Pipe()
            call = {"target": fits, "args": (workload, dtype, core, theirs), "daemon": True}
            spawn.Process(**call).start()
            self.pipes.append(ours)
        for pipe in self.pipes:
            pipe.recv()

    def run(self, times: int) -> None:
        for pipe in self.pipes:
            pipe.send(times)
        for pipe in self.pipes:
            pipe.recv()

    def __del__(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)


def contestant(name: str, workload: str, dtype: str) -> Contestant:
    if name == ALONE:
        run = fits(workload, dtype, max(CORES))
    else:
        run = {THREADS: Threads, PROCESSES: Processes}[name](workload, dtype).run
    return Contestant(run, partial(run, 1), least=2, clock=time.perf_counter)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("workload", STEPS)
def test_two_at_once(measure, workload, dtype, name):
    makers = {other: partial(contestant, other, workload, dtype) for other in NAMES}
    row = f"{workload} {TRAINING[workload].title}"
    measure(makers, name, 0.5, suite="threads", row=row, dtype=dtype, unit="fit")
