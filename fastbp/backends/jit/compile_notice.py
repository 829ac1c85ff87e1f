"""A line that says that functions are being compiled, for people who wait for it.

The logger "fastbp" tells the same, at the level INFO, and each function at the level DEBUG.
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress

from ...common.terminal import is_watched
from .caching import writable_folder

# Seconds of compilation in this process before anything is said: a function or two are soon done.
QUIET_SECONDS = 0.5

_log = logging.getLogger("fastbp")
_spent = 0.0
_begun = 0.0
_announced = False


def begin(name: str) -> None:
    """A function is not in the cache and its compilation begins."""
    global _begun, _announced
    _log.debug("compiling %s", name)
    if _spent >= QUIET_SECONDS and not _announced:
        _announced = _announce()
    _begun = time.perf_counter()


def end() -> None:
    """It is compiled."""
    global _spent
    _spent += time.perf_counter() - _begun


def _announce() -> bool:
    """Say it; returns whether anyone could read it."""
    if _log.isEnabledFor(logging.INFO) and _log.hasHandlers():
        _log.info(_text())
        return True
    if not is_watched():
        return False
    with suppress(OSError, ValueError):  # the terminal is gone, or stderr closed
        print(f"fastbp: {_text()}", file=sys.stderr, flush=True)
    return True


def _text() -> str:
    if writable_folder() is None:
        return (
            "compiling for Numba, some seconds in every process, since no folder for its cache can "
            "be written; set NUMBA_CACHE_DIR to one"
        )
    return "compiling for Numba, once, some seconds; `fastbp warmup` does it ahead"
