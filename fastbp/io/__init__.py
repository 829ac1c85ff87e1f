"""Networks in files."""

from ._checkpoint import checkpoint
from ._model import SavedNetwork, load, save

__all__ = ["SavedNetwork", "checkpoint", "load", "save"]
