"""The command line: ``fastbp fit``, ``predict``, ``info``, ``demo``, ``bench`` and ``warmup``."""

from .commands import main

__all__ = ["main"]
