"""Timing of alternating calls, and tables of the results, for `fastbp demo` and `fastbp bench`."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

BY_HAND = "by hand"


def compare(
    calls: dict[str, Callable[[], Any]], seconds: float
) -> tuple[dict[str, Any], dict[str, float], dict[str, float]]:
    """Time each call: once, then all in turns for `seconds`, at least once.

    Returns
    -------
    results : dict
        The results of the first calls.
    first : dict of float
        Seconds of the first calls, loading and compiling included.
    best : dict of float
        The least seconds of the later calls; calls too short for the clock are timed in groups.
    """
    results, first, counts = {}, {}, {}
    for name, call in calls.items():
        start = time.perf_counter()
        results[name] = call()
        first[name] = time.perf_counter() - start
        start = time.perf_counter()
        call()
        counts[name] = max(1, int(2e-4 / (time.perf_counter() - start)))
    best = dict.fromkeys(calls, float("inf"))
    stop = time.perf_counter() + seconds
    while True:
        for name, call in calls.items():
            repeat = range(counts[name])
            start = time.perf_counter()
            for _ in repeat:
                call()
            best[name] = min(best[name], (time.perf_counter() - start) / counts[name])
        if time.perf_counter() > stop:
            return results, first, best


def one_blas_thread() -> tuple[AbstractContextManager[Any], str]:
    """A context in which BLAS libraries loaded so far use one thread, and a sentence about it."""
    if importlib.util.find_spec("threadpoolctl"):
        limits = importlib.import_module("threadpoolctl").threadpool_limits
        return limits(1), "fastbp and NumPy's BLAS use one thread each."
    return nullcontext(), (
        "fastbp uses one thread; NumPy's BLAS uses as many as it likes (threadpoolctl, which would "
        "hold it to one, is not installed)."
    )


def table_of(*headers: str) -> Table:
    """An empty table, for 80 columns: numbers, and text in columns without a header."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in headers:
        table.add_column(header, justify="right" if header else "left", vertical="bottom")
    return table
