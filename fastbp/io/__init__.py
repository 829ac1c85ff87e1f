"""Networks in files: `save`, `load`, and the callback `checkpoint`."""

from ._checkpoint import checkpoint
from .files import SavedNetwork, load, save

__all__ = ["SavedNetwork", "checkpoint", "load", "save"]
