"""Whether to write progress to stderr: a terminal, a notebook, or the argument `progress`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# The argument `progress` of the outermost call that has one.
_setting: ContextVar[bool | str | None] = ContextVar("fastbp_progress", default=None)


def is_terminal(stream: Any) -> bool:
    """Whether the stream is a terminal; None and closed streams are not."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_shell is not None and hasattr(get_shell(), "kernel")


def stderr_console() -> Console:
    """A rich console that writes to stderr."""
    from rich.console import Console

    if not in_notebook():
        return Console(stderr=True, force_terminal=is_terminal(sys.stderr), force_jupyter=False)
    if importlib.util.find_spec("ipywidgets"):
        return Console(stderr=True, force_jupyter=True)
    # Notebooks understand as many of a terminal's control codes as a bar needs.
    return Console(
        stderr=True, force_terminal=True, force_jupyter=False, legacy_windows=False, width=100
    )


def printable(text: str) -> str:
    """The text with what could steer a terminal or show nothing as escapes, such as \\x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def progress_shown(setting: bool | str) -> Iterator[None]:
    """Make a call's argument `progress` the setting within the block, unless an outer call did."""
    token = _setting.set(setting) if _setting.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _setting.reset(token)


def is_watched() -> bool:
    """Whether to write to stderr about work that takes long.

    The setting of `progress_shown` decides; "auto", which is the default, means on a terminal and
    in a notebook.
    """
    setting = _setting.get()
    if isinstance(setting, bool):
        return setting and sys.stderr is not None
    return is_terminal(sys.stderr) or in_notebook()
