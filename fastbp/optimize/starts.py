"""Many starts: the threads that run them, and what ends them all at once."""

from __future__ import annotations

import contextvars
import functools
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ..common.arrays import number, whole_number
from ..training.progress import ProgressBar

POLL_SECONDS = 0.1


class Halt:
    """When all starts are to end: after so many seconds, or once `interrupted` is set.

    Parameters
    ----------
    seconds : float or None
        None for no limit.

    Raises
    ------
    ValueError, TypeError
        If that is not a positive number.
    """

    def __init__(self, seconds: Any):
        self._begun, self._seconds = time.perf_counter(), np.inf
        self.interrupted = threading.Event()
        if seconds is not None:
            self._seconds = number("max_time", seconds)
            if not self._seconds > 0:
                raise ValueError(
                    f"max_time is {seconds}, expected a positive number, or None for no limit"
                )

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._begun

    @property
    def seconds_left(self) -> float:
        """Never negative."""
        return max(0.0, self._seconds - self.elapsed)

    @property
    def reason(self) -> str:
        """Why all is to end, in words; empty if nothing is."""
        if self.interrupted.is_set():
            return "interrupted (Ctrl-C)"
        return "" if self.seconds_left else "max_time is over"


def run(
    one: Callable[[int], Any],
    n: int,
    threads: int,
    halt: Halt,
    bar: ProgressBar | None,
    value: Callable[[Any], float],
) -> tuple[list[Any], dict[str, Any]]:
    """Call one(k) for all k < n.

    Once there is a reason to end, those that have not begun do not; but the first begins however
    short the time is. What `one` does to context variables stays with it.

    Parameters
    ----------
    one : callable
        Called in the order of k, by `threads` threads, or by the caller's own if that is 1.
    n, threads : int
    halt : Halt
        Ctrl-C sets `interrupted`, and those running, which are to look at it, are waited for.
    bar : ProgressBar or None
        Closed at the end.
    value : callable
        The objective of what `one` returns, for the bar.

    Returns
    -------
    outcomes : list
        What each returned, or the exception that it raised, or None.
    status : dict
        "success", whether nothing ended it before; "message", "elapsed".

    Raises
    ------
    KeyboardInterrupt
        If nothing came of any.
    Exception
        That of the first, if all raised one: then it is not about where they start.
    """
    outcomes: list[Any] = [None] * n
    report = _reporter(bar, value)

    def attempt(k: int) -> Any:
        if not halt.interrupted.is_set() and (k == 0 or halt.seconds_left):
            try:
                outcomes[k] = one(k)
            except Exception as error:  # reported with its message: the others go on
                outcomes[k] = error
        return outcomes[k]

    def task(k: int) -> Callable[[], Any]:
        context = contextvars.copy_context()
        return lambda: context.run(attempt, k)

    tasks = [task(k) for k in range(n)]
    try:
        if threads == 1:
            for call in tasks:
                report(call())
        else:
            _in_threads(tasks, threads, halt, report)
    except KeyboardInterrupt:
        halt.interrupted.set()
    finally:
        if bar is not None:
            bar.close()
    begun = [outcome for outcome in outcomes if outcome is not None]
    if not begun:
        raise KeyboardInterrupt
    if all(isinstance(outcome, Exception) for outcome in begun):
        begun[0].add_note(f"None of {n} starts came to a result; the first one raised this.")
        raise begun[0]
    message = (
        f"{halt.reason} after {len(begun)} of {n} starts" if halt.reason else f"{n} starts done"
    )
    status = {"success": not halt.reason, "message": message, "elapsed": halt.elapsed}
    return outcomes, status


def _reporter(bar: ProgressBar | None, value: Callable[[Any], float]) -> Callable[[Any], None]:
    """A function that moves the bar on: how many are done, and the lowest objective."""
    done, lowest = 0, np.inf

    def report(outcome: Any) -> None:
        nonlocal done, lowest
        if bar is not None and outcome is not None:
            done += 1
            if not isinstance(outcome, Exception):
                lowest = min(lowest, value(outcome))
            bar.update(done, lowest, None, None)

    return report


def _in_threads(
    tasks: Sequence[Callable[[], Any]], threads: int, halt: Halt, report: Callable[[Any], None]
) -> None:
    finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    # A pool that Ctrl-C interrupts while it begins a thread does not wait for that one.
    complete = threading.Event()
    with ThreadPoolExecutor(threads, "multistart") as pool:
        try:
            for task in tasks:
                pool.submit(_after, complete, task).add_done_callback(finished.put)
            complete.set()
            for _ in tasks:
                report(_next(finished).result())
        except KeyboardInterrupt:  # before the pool waits for those that run
            halt.interrupted.set()
            complete.set()


def _after(event: threading.Event, task: Callable[[], Any]) -> Any:
    event.wait()
    return task()


def _next(finished: queue.SimpleQueue[Future[Any]]) -> Future[Any]:
    while True:
        try:  # where Ctrl-C does not wake a thread that waits
            return finished.get(timeout=POLL_SECONDS)
        except queue.Empty:
            pass


def spawned(seed: int, n: int) -> np.ndarray:
    """The first n child seeds, as whole numbers below 2^53 (n,); further ones change none."""
    children = np.random.SeedSequence(seed).spawn(n)
    states = [child.generate_state(1, np.uint64)[0] >> np.uint64(11) for child in children]
    return np.array(states).astype(np.int64)


def seed_of(seed: Any) -> int:
    """The seed given, or a new one."""
    if seed is None:
        return secrets.randbits(53)  # survives JSON and spreadsheets
    return whole_number("seed", seed, least=0)


def one_at_a_time(callback: Callable[..., Any]) -> Callable[..., Any]:
    """The caller's function under a lock: the threads of all starts share it."""
    lock = threading.Lock()

    @functools.wraps(callback)
    def told(*args: Any, **named: Any) -> Any:
        with lock:
            return callback(*args, **named)

    return told
