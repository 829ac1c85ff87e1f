"""The session of benches: its cores, its length, and the clock that pytest-benchmark reads."""

from __future__ import annotations

import os

# Those that the session was given; none where the system does not tell.
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
QUICK = os.environ.get("FASTBP_BENCH_QUICK", "0") not in ("", "0")


class ReplayClock:
    """A clock that a target moves on by durations measured before.

    pytest-benchmark times one item after another. The items of a group are measured together
    (`race`), and each then hands its durations to pytest-benchmark through this clock, whose
    statistics, JSON and comparisons so hold what was measured in turns.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.durations = iter(())

    def __call__(self) -> float:
        return self.now

    def target(self) -> None:
        self.now += next(self.durations)


CLOCK = ReplayClock()


def hand_over(benchmark, seconds, **info):
    """Give an item what was measured before, and what its record holds beside; by `CLOCK`."""
    benchmark.extra_info.update(info)
    CLOCK.durations = iter(seconds)
    benchmark.pedantic(CLOCK.target, rounds=len(seconds))
