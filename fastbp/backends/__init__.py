"""The names of the backends, and the choice of the one in use.

A backend is named "c", "numba" or "numpy" and is a module with the functions of `contract`. A call
resolves its backend once, at its entry: the `backend=` argument if there is one, else the innermost
`use_backend` of the running context, else that of `set_backend`, else the environment variable
FASTBP_BACKEND, else the first that can run here.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from ..common.errors import BackendError, unknown_name

# In order of preference.
_MODULES = {"c": ".native", "numba": ".jit", "numpy": ".reference"}

NAMES = tuple(_MODULES)

_context: ContextVar[ModuleType | None] = ContextVar("fastbp_backend", default=None)
_default: ModuleType | None = None
_loaded: dict[str, ModuleType] = {}


def why_missing(name: str) -> str | None:
    """Why the backend cannot run here and what to do about it, or None if it can.

    Looks without importing Numba, which takes long.
    """
    if name == "c":
        from . import native

        return native.why_missing()
    return _why_numba_is_missing() if name == "numba" else None


# The series of Numba whose internals the backend knows: see jit/numba_internals.py.
OLDEST_NUMBA, NEWEST_NUMBA = (0, 60), (0, 68)


def _why_numba_is_missing() -> str | None:
    oldest, newest = ("{}.{}".format(*series) for series in (OLDEST_NUMBA, NEWEST_NUMBA))
    install = f'pip install "numba>={oldest},<{NEWEST_NUMBA[0]}.{NEWEST_NUMBA[1] + 1}"'
    if importlib.util.find_spec("numba") is None:
        return f"Numba is not installed; install it with: {install}"
    version = _numba_version()
    series = tuple(map(int, version.split(".")[:2]))
    if not OLDEST_NUMBA <= series <= NEWEST_NUMBA:
        return (
            f"Numba {version} is installed, expected {oldest} to {newest}; install one with: "
            f"{install}"
        )
    disabled = os.environ.get("NUMBA_DISABLE_JIT", "0")
    if disabled not in ("", "0"):
        return (
            f"NUMBA_DISABLE_JIT is {disabled}, expected unset or 0, since the backend consists of "
            f"compiled functions; unset it"
        )
    return None


def _numba_version() -> str:
    from importlib import metadata  # takes long, and few need it

    try:
        return metadata.version("numba")
    except metadata.PackageNotFoundError:  # a copy that no installer knows
        return importlib.import_module("numba").__version__


def available_backends() -> tuple[str, ...]:
    """The names of the backends that can run here, the preferred one first.

    Examples
    --------
    >>> import fastbp as fb
    >>> "numpy" in fb.available_backends()
    True
    """
    return tuple(name for name in _MODULES if why_missing(name) is None)


def load(name: str) -> ModuleType:
    """The backend's module, imported at first use.

    Raises
    ------
    ValueError
        For an unknown name.
    BackendError
        If the backend cannot run here.
    """
    loaded = _loaded.get(name) if isinstance(name, str) else None
    if loaded is not None:
        return loaded
    if name not in _MODULES:
        raise ValueError(unknown_name("backend", name, _MODULES))
    reason = why_missing(name)
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot run here: {reason}")
    _loaded[name] = module = importlib.import_module(_MODULES[name], __name__)
    return module


def resolve(name: str | None = None) -> ModuleType:
    """The module of the backend that a call must use, in the order that this module states."""
    if name is not None:
        return load(name)
    return _context.get() or _default or _startup_default()


def _startup_default() -> ModuleType:
    """Load the backend of FASTBP_BACKEND, else the first that can run, and make it the default."""
    global _default
    name = os.environ.get("FASTBP_BACKEND")
    if name and name not in _MODULES:
        raise ValueError("FASTBP_BACKEND: " + unknown_name("backend", name, _MODULES))
    _default = load(name or next(name for name in _MODULES if why_missing(name) is None))
    return _default


def get_backend() -> str:
    """The name of the backend in use: "c", "numba" or "numpy"."""
    return name_of(resolve())


def name_of(module: ModuleType) -> str:
    """The name of a loaded backend."""
    return next(name for name, loaded in _loaded.items() if loaded is module)


def set_backend(name: str) -> None:
    """Make the named backend this process's default.

    Parameters
    ----------
    name : {"c", "numba", "numpy"}

    Raises
    ------
    ValueError
        For an unknown name; the message suggests the nearest.
    BackendError
        If the backend cannot run here; the message says what is missing.
    """
    global _default
    _default = load(name)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use the named backend inside a ``with`` block, in this thread or task alone.

    Parameters
    ----------
    name : {"c", "numba", "numpy"}

    Raises
    ------
    ValueError, BackendError
        As `set_backend`.

    Examples
    --------
    >>> import fastbp as fb
    >>> with fb.use_backend("numpy"):
    ...     fb.get_backend()
    'numpy'
    """
    token = _context.set(load(name))
    try:
        yield
    finally:
        _context.reset(token)
