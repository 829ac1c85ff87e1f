"""Networks in files."""

from ._model import SavedNetwork, load, save

__all__ = ["SavedNetwork", "load", "save"]
