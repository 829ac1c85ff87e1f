"""`warmup`: compilation of the Numba backend ahead of use."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import backends
from ..common.errors import BackendError, unknown_name
from ..common.terminal import in_notebook, is_terminal, progress_shown, stderr_console

_DTYPES = {"both": ("float64", "float32"), "float64": ("float64",), "float32": ("float32",)}


class Warmup(NamedTuple):
    """The result of `warmup`, which documents it."""

    compiled: int
    found: int
    seconds: float
    folder: Path


def warmup(dtype: str = "both", *, progress: bool | str = "auto") -> Warmup:
    """Compile all functions of the Numba backend, and store them for later processes.

    Without it each function is compiled, and stored, when it is first needed; the first fit then
    takes some seconds. All of them take about 20 seconds for a dtype.

    Parameters
    ----------
    dtype : {"both", "float64", "float32"}
        The dtype of the networks. Full-batch methods compute in float64 for float32 networks too.
    progress : {"auto", True, False}
        A bar on stderr: on a terminal or in a notebook, always, or never.

    Returns
    -------
    Warmup
        ``compiled``, the number of functions compiled; ``found``, the number of those that were
        stored already; ``seconds``; ``folder``, where they are stored: the package's
        ``__pycache__``, the user's cache folder where that cannot be written, or a folder in
        NUMBA_CACHE_DIR.

    Raises
    ------
    ValueError
        For another dtype or setting of progress.
    BackendError
        If Numba is missing or its compiler switched off, or if functions cannot be stored.

    Examples
    --------
    >>> import fastbp as fb
    >>> done = fb.warmup()  # doctest: +SKIP
    >>> done.compiled + done.found, done.folder  # doctest: +SKIP
    (121, PosixPath('/home/me/.cache/fastbp'))
    """
    if dtype not in _DTYPES:
        raise ValueError(unknown_name("dtype", dtype, _DTYPES))
    if not (isinstance(progress, bool) or progress == "auto"):
        raise ValueError(f"progress is {progress!r}, expected 'auto', True or False")
    backends.load("numba")
    from .jit.compiling import versions

    begun, compiled, folder = time.perf_counter(), 0, Path()
    todo = list(versions([np.dtype(name) for name in _DTYPES[dtype]]))
    with progress_shown(False), _bar(progress, len(todo)) as advance:
        for function, of_dtype in todo:
            cache, is_new = function.warm(of_dtype)
            if cache.path is None:
                raise BackendError(_cannot_store(cache.error))
            folder = cache.path.parent
            compiled += is_new
            advance()
    return Warmup(compiled, len(todo) - compiled, time.perf_counter() - begun, folder)


def _cannot_store(error: Exception | None) -> str:
    """The message for functions that cannot be stored because of the error."""
    from .jit.caching import folders

    return (
        f"compiled functions cannot be kept in {' or '.join(map(str, folders()))} ({error}); set "
        f"NUMBA_CACHE_DIR to a folder that can be written"
    )


@contextmanager
def _bar(setting: bool | str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar of `total` steps if `progress` asks for it; yields what advances it by one."""
    watched = is_terminal(sys.stderr) or in_notebook()
    if not (watched if setting == "auto" else setting and sys.stderr is not None):
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=stderr_console()) as bar:
        task = bar.add_task("compiling for Numba", total=total)
        yield lambda: bar.advance(task)
