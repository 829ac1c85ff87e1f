"""Runs many starts: their seeds, the threads that run them, and the end of all of them."""

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
    """Ends all starts after so many seconds, or once `interrupted` is set.

    Parameters
    ----------
    seconds : float or None
        `max_time` of the call; None for no limit.

    Raises
    ------
    ValueError, TypeError
        If `seconds` is not a positive number.
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
        """Seconds since the call began."""
        return time.perf_counter() - self._begun

    @property
    def seconds_left(self) -> float:
        """Seconds until `max_time` is over, 0 from then on."""
        return max(0.0, self._seconds - self.elapsed)

    @property
    def reason(self) -> str:
        """Why all starts must end, in words; empty while they need not."""
        if self.interrupted.is_set():
            return "interrupted (Ctrl-C)"
        return "" if self.seconds_left else "max_time is over"


def run_starts(
    run_one: Callable[[int], Any],
    n: int,
    threads: int,
    halt: Halt,
    bar: ProgressBar | None,
    objective_of: Callable[[Any], float],
) -> tuple[list[Any], dict[str, Any]]:
    """Call run_one(k) for all k < n.

    Once `halt` has a reason no more calls begin; but the first one is always made, however short
    the time is. Each call has its own copy of the context variables.

    Parameters
    ----------
    run_one : callable
        Called in the order of k, in `threads` threads, or in the caller's thread if that is 1.
    n, threads : int
    halt : Halt
        Ctrl-C sets `interrupted`; calls that are running must look at it, and are waited for.
    bar : ProgressBar or None
        Closed at the end.
    objective_of : callable
        A value that `run_one` returned -> its objective, for the bar.

    Returns
    -------
    outcomes : list
        For each k the value returned or the exception raised; None if it was not called.
    status : dict
        "success", whether all ended by themselves; "message", "elapsed".

    Raises
    ------
    KeyboardInterrupt
        If none returned or raised.
    Exception
        That of the first, if all raised one: then the reason is not the starting point.
    """
    outcomes: list[Any] = [None] * n
    report = _reporter(bar, objective_of)

    def attempt(k: int) -> Any:
        if not halt.interrupted.is_set() and (k == 0 or halt.seconds_left):
            try:
                outcomes[k] = run_one(k)
            except Exception as error:  # its message is reported; the other starts go on
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


def _reporter(
    bar: ProgressBar | None, objective_of: Callable[[Any], float]
) -> Callable[[Any], None]:
    """A function of an outcome that moves the bar on: the number done, the lowest objective."""
    done, lowest = 0, np.inf

    def report(outcome: Any) -> None:
        nonlocal done, lowest
        if bar is not None and outcome is not None:
            done += 1
            if not isinstance(outcome, Exception):
                lowest = min(lowest, objective_of(outcome))
            bar.update(done, lowest, None, None)

    return report


def _in_threads(
    tasks: Sequence[Callable[[], Any]], threads: int, halt: Halt, report: Callable[[Any], None]
) -> None:
    """Run the tasks in threads, and report their results as they finish, until Ctrl-C."""
    finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    # A pool that Ctrl-C interrupts while it begins a thread does not wait for that thread: tasks
    # begin only once all threads exist.
    complete = threading.Event()
    with ThreadPoolExecutor(threads, "multistart") as pool:
        try:
            for task in tasks:
                pool.submit(_after, complete, task).add_done_callback(finished.put)
            complete.set()
            for _ in tasks:
                report(_next(finished).result())
        except KeyboardInterrupt:  # here, since the pool then waits for the running tasks
            halt.interrupted.set()
            complete.set()


def _after(event: threading.Event, task: Callable[[], Any]) -> Any:
    event.wait()
    return task()


def _next(finished: queue.SimpleQueue[Future[Any]]) -> Future[Any]:
    while True:
        try:  # on some systems Ctrl-C does not wake a thread that waits without a timeout
            return finished.get(timeout=POLL_SECONDS)
        except queue.Empty:
            pass


def child_seeds(seed: int, n: int) -> np.ndarray:
    """n child seeds (n,), whole numbers below 2^53; the first ones do not depend on n."""
    children = np.random.SeedSequence(seed).spawn(n)
    states = [child.generate_state(1, np.uint64)[0] >> np.uint64(11) for child in children]
    return np.array(states).astype(np.int64)


def checked_seed(seed: Any) -> int:
    """The seed as an int >= 0; a new one for None."""
    if seed is None:
        return secrets.randbits(53)  # survives JSON and spreadsheets
    return whole_number("seed", seed, least=0)


def one_at_a_time(callback: Callable[..., Any]) -> Callable[..., Any]:
    """The caller's function under a lock, since the threads of all starts share it."""
    lock = threading.Lock()

    @functools.wraps(callback)
    def locked(*args: Any, **named: Any) -> Any:
        with lock:
            return callback(*args, **named)

    return locked
