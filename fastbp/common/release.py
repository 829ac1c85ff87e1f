"""Which release of fastbp this is."""

from __future__ import annotations

from functools import cache


@cache
def version() -> str:
    """The installed version, such as "0.1.0"; a sentence where fastbp is not installed."""
    from importlib import metadata  # takes long, and few need it

    try:
        return metadata.version("fastbp")
    except metadata.PackageNotFoundError:
        return "unknown (not installed: running from its source folder)"
