"""How the benches measure: one core, contestants in turns, results in pytest-benchmark's format."""

from __future__ import annotations

import os
import sys

# NumPy's BLAS reads these when it is loaded; the training loops of fastbp use one thread too.
THREADS_LIMITED = "numpy" not in sys.modules or os.environ.get("OPENBLAS_NUM_THREADS") == "1"
for _library in ("OPENBLAS_NUM", "MKL_NUM", "OMP_NUM", "BLIS_NUM", "VECLIB_MAXIMUM"):
    os.environ[f"{_library}_THREADS"] = "1"

import numpy as np  # noqa: E402
import peers  # noqa: E402
import pytest  # noqa: E402
from measuring.race import FINE, race  # noqa: E402
from measuring.session import CLOCK, CORES, QUICK, hand_over  # noqa: E402
from workloads import SEED  # noqa: E402

import fastbp as fb  # noqa: E402


def pytest_collection_modifyitems(items):
    for item in items:
        if "measure" in item.fixturenames:
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))


@pytest.fixture(scope="session", autouse=True)
def one_core():
    """The whole session on one core, where the system allows it."""
    if not CORES:
        yield
        return
    os.sched_setaffinity(0, {max(CORES)})  # interrupts go to the first core as a rule
    yield
    os.sched_setaffinity(0, CORES)


@pytest.fixture(scope="session")
def races():
    """What came of the groups measured so far."""
    return {}


@pytest.fixture
def measure(benchmark, races):
    """Measure a group if that has not been done, and report one of its contestants.

    ``measure(makers, contestant, seconds, suite=, row=, dtype=, unit=)``: `makers` as for
    `race.race`; the others say where the figure stands in the tables of report/tables.py.
    """

    def measure(makers, contestant, seconds, *, suite, row, dtype, unit):
        benchmark.group = group = f"{suite}: {row}, {dtype}"
        if benchmark.disabled:
            entrant = makers[contestant]()
            entrant.check()
            benchmark.pedantic(entrant.run, args=(1,))
            return
        if group not in races:
            races[group] = race(makers, seconds / 5 if QUICK else seconds)
        outcome = races[group][contestant]
        if outcome.error is not None:
            raise outcome.error
        place = {"suite": suite, "row": row, "dtype": dtype, "contestant": contestant}
        how = {"unit": unit, "times_per_turn": outcome.times, "warmup_s": outcome.warmup}
        hand_over(benchmark, outcome.seconds, **place, **how)

    return measure


def pytest_report_header():
    """How to draw the random workloads again."""
    return f"FASTBP_BENCH_SEED={SEED}"


def pytest_benchmark_update_machine_info(config, machine_info):
    """Add what the figures depend on beside the processor."""
    shown = fb.show_config("dicts")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    machine_info["fastbp"] = {
        "versions": shown["versions"] | peers.versions(),
        "left out": peers.left_out(),
        "seed": SEED,
        "c": shown["c"],
        "threads": "1" if THREADS_LIMITED else "1, NumPy's BLAS not limited",
        "clock": "processor time" if FINE else "wall clock",
        "blas": f"{blas['name']} {blas['version']}",
        "quick": QUICK,
    }
