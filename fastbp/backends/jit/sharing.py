"""Work shared among threads: compiled functions run without Python's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class Team:
    """Threads for the length of a ``with`` block, so that a process may fork between calls.

    Parameters
    ----------
    threads : int
        How many; with one the caller does the work.
    n_tasks : int
        More threads than these are not started.
    """

    def __init__(self, threads: int, n_tasks: int):
        self._size = min(threads, n_tasks)
        self._executor = ThreadPoolExecutor(self._size) if self._size > 1 else None

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._executor is not None:
            self._executor.shutdown()

    def map(self, work: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> Iterator[_Result]:
        """The results of the tasks, in their order; few are kept at a time."""
        if self._executor is None:
            yield from map(work, tasks)
            return
        ahead: deque[Future[_Result]] = deque()
        for task in tasks:
            if len(ahead) > self._size:
                yield ahead.popleft().result()
            ahead.append(self._executor.submit(work, task))
        while ahead:
            yield ahead.popleft().result()
