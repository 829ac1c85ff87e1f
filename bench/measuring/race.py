"""Measuring side by side: the contestants of a group take turns until the time is up.

On a shared machine the clock of a core and its neighbours' load change from second to second. Two
programs measured one after the other meet different machines; taking turns, they meet the same.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# The processor time of all threads, where it is fine enough (not on Windows): what other programs
# take of the core does not count, and threads that a contestant started would.
FINE = time.get_clock_info("process_time").resolution <= 1e-6
clock = time.process_time if FINE else time.perf_counter

# A turn takes about so long: far above the clock's resolution, short beside a change of the load.
TURN_SECONDS = 0.005
# Every contestant has at least so many turns, however long they are.
LEAST_TURNS = 3


@dataclass
class Contestant:
    """One way of doing a group's work.

    Attributes
    ----------
    run : callable
        ``run(times)`` does the work so many times.
    check : callable
        Raises AssertionError unless the work is the same as the others'.
    units : int
        What is counted (steps, calls) in the work done once.
    least : int
        The fewest times in a turn; where a call has a fixed cost, as many as its users have.
    clock : callable
        What a turn is timed by.
    """

    run: Callable[[int], Any]
    check: Callable[[], Any]
    units: int = 1
    least: int = 1
    clock: Callable[[], float] = clock


@dataclass
class Outcome:
    """What came of one contestant.

    Attributes
    ----------
    seconds : list of float
        Per unit, a number for each turn.
    times : int
        How often a turn did the work.
    warmup : float
        Seconds that passed during the check, which is the first call: compilation is in it.
    error : Exception or None
        Why it did not take part.
    """

    seconds: list[float] = field(default_factory=list)
    times: int = 0
    warmup: float = 0.0
    error: Exception | None = None


def race(makers: dict[str, Callable[[], Contestant]], seconds: float) -> dict[str, Outcome]:
    """Let all contestants take turns, `seconds` for each of them together.

    All have the same number of turns, so that none has more chances for a lucky minimum. One that
    cannot be made or fails its check does not take part.
    """
    outcomes = {name: Outcome() for name in makers}
    runners: dict[str, Contestant] = {}
    for name, make in makers.items():
        outcome = outcomes[name]
        try:
            contestant = make()
            start = time.perf_counter()
            contestant.check()
            outcome.warmup = time.perf_counter() - start
        except Exception as error:  # raised again by the item that reports this contestant
            outcome.error = error
        else:
            outcome.times = _times_of_a_turn(contestant)
            runners[name] = contestant
    gc.collect()
    gc.disable()
    try:
        turns, start = 0, clock()
        while turns < LEAST_TURNS or clock() - start < seconds * len(runners):
            for name, contestant in runners.items():
                times = outcomes[name].times
                spent = _seconds(contestant, times)
                outcomes[name].seconds.append(spent / (times * contestant.units))
            turns += 1
    finally:
        gc.enable()
    return outcomes


def _times_of_a_turn(contestant: Contestant) -> int:
    times = contestant.least
    contestant.run(times)
    while True:
        spent = _seconds(contestant, times)
        if spent >= TURN_SECONDS / 4:
            return max(contestant.least, round(times * TURN_SECONDS / spent))
        times = max(times + 1, round(times * min(16, TURN_SECONDS / max(spent, 1e-9))))


def _seconds(contestant: Contestant, times: int) -> float:
    start = contestant.clock()
    contestant.run(times)
    return contestant.clock() - start
