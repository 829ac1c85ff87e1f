"""Compilation ahead of use, for the Numba backend."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import backends
from ._errors import BackendError, unknown_name
from ._terminal import in_notebook, is_terminal, progress_shown, stderr_console

_DTYPES = {"both": ("float64", "float32"), "float64": ("float64",), "float32": ("float32",)}


class Warmup(NamedTuple):
    """What `warmup` has done."""

    compiled: int
    found: int
    seconds: float
    folder: Path


def warmup(dtype: str = "both", *, progress: bool | str = "auto") -> Warmup:
    """Compile all that the Numba backend may need, and keep it for later processes.

    Without it each function is compiled when it is first needed, and kept as well; the first fit
    then takes some seconds. All of them take about 20 seconds for a dtype.

    Parameters
    ----------
    dtype : {"both", "float64", "float32"}
        For networks of which dtype. Full-batch methods compute in float64 for float32 networks too.
    progress : {"auto", True, False}
        A bar on stderr: on a terminal or in a notebook, always, or never.

    Returns
    -------
    Warmup
        ``compiled`` and ``found``, how many functions were compiled and how many were there
        already; ``seconds``; ``folder``, where they are kept: the package's ``__pycache__``, the
        user's cache folder where that cannot be written, or below what NUMBA_CACHE_DIR names.

    Raises
    ------
    ValueError
        For another dtype or setting of progress.
    BackendError
        If the Numba backend cannot run here, or if nothing can be kept.

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
    from .backends.jit.compiling import versions

    begun, compiled, folder = time.perf_counter(), 0, Path()
    todo = list(versions([np.dtype(name) for name in _DTYPES[dtype]]))
    with progress_shown(False), _bar(progress, len(todo)) as advance:
        for function, of_dtype in todo:
            cache, is_new = function.warm(of_dtype)
            if cache.path is None:
                raise BackendError(_not_kept(cache.error))
            folder = cache.path.parent
            compiled += is_new
            advance()
    return Warmup(compiled, len(todo) - compiled, time.perf_counter() - begun, folder)


def _not_kept(error: Exception | None) -> str:
    from .backends.jit.caching import folders

    return (
        f"compiled functions cannot be kept in {' or '.join(map(str, folders()))} ({error}); set "
        f"NUMBA_CACHE_DIR to a folder that can be written"
    )


@contextmanager
def _bar(setting: bool | str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar, if there is to be one; what is yielded moves it on."""
    watched = is_terminal(sys.stderr) or in_notebook()
    if not (watched if setting == "auto" else setting and sys.stderr is not None):
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=stderr_console()) as bar:
        task = bar.add_task("compiling for Numba", total=total)
        yield lambda: bar.advance(task)
