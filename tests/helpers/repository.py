"""The repository's folders, and its tools and examples as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples"


def load(path, name=None):
    """The module that a file holds. One with a name can be imported again."""
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    module = importlib.util.module_from_spec(spec)
    if name:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def tool(name):
    """A module of tools/; the test is skipped where the folder is missing."""
    path = ROOT / "tools" / f"{name}.py"
    if not path.exists():
        pytest.skip("tools/ is not here: this is an installed copy")
    return load(path, f"{name}_tool")
