"""`show_config`: the versions, backends and instruction set in use."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from .. import backends


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print the configuration: versions, backends, instruction set and its cap.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        "stdout" prints, "dicts" returns a dictionary instead.

    Returns
    -------
    dict or None
        ``versions``; ``backend`` (the one in use); ``backends`` (for each name "available", or why
        it is missing and what to do); ``c`` (instruction set, its cap and the compiler, or None).

    Raises
    ------
    ValueError
        For another mode.
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode is {mode!r}, expected 'stdout' or 'dicts'")
    config = {
        "versions": _versions(),
        "backend": backends.get_backend(),
        "backends": {name: backends.why_missing(name) or "available" for name in backends.NAMES},
        "c": _c_library(),
        "threads": 1,
    }
    if mode == "dicts":
        return config
    for title, content in config.items():
        if isinstance(content, dict):
            print(f"{title}:")
            for name, text in content.items():
                print(f"  {name}: {text}")
        else:
            print(f"{title}: {content}")
    return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("fastbp", "numpy", "scipy", "cffi", "numba"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _c_library() -> dict[str, str] | None:
    if backends.why_missing("c"):
        return None
    native = backends.load("c")
    return {
        "instruction set": native.instruction_set(),
        "cap (FASTBP_MAX_ISA)": os.environ.get("FASTBP_MAX_ISA") or "none",
        "compiler": native.compiler(),
    }
