"""Who is watching: whether what is written to stderr is seen while it happens."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# What the outermost call of those that have an argument `progress` was given.
_setting: ContextVar[bool | str | None] = ContextVar("fastbp_progress", default=None)


def is_terminal(stream: Any) -> bool:
    """Whether a stream is one; None and closed ones are not."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_shell is not None and hasattr(get_shell(), "kernel")


def stderr_console() -> Console:
    """stderr for rich."""
    from rich.console import Console

    if not in_notebook():
        return Console(stderr=True, force_terminal=is_terminal(sys.stderr), force_jupyter=False)
    if importlib.util.find_spec("ipywidgets"):
        return Console(stderr=True, force_jupyter=True)
    # Notebooks know a terminal's codes as far as a bar needs them.
    return Console(
        stderr=True, force_terminal=True, force_jupyter=False, legacy_windows=False, width=100
    )


@contextmanager
def progress_shown(setting: bool | str) -> Iterator[None]:
    """Let a call's `progress` rule what is told within the block, unless a call around it does."""
    token = _setting.set(setting) if _setting.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _setting.reset(token)


def is_watched() -> bool:
    """Whether to tell on stderr of work that takes long: as `progress` says, which is "auto" where
    there is none.
    """
    setting = _setting.get()
    if isinstance(setting, bool):
        return setting and sys.stderr is not None
    return is_terminal(sys.stderr) or in_notebook()
