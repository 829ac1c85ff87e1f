"""Fixtures for the tests of the backends: a copy of the package."""

from __future__ import annotations

import shutil

import pytest
from helpers.numba_backend import PACKAGE


@pytest.fixture
def copy(tmp_path):
    """The package at another place, where a test may damage it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
    shutil.copytree(PACKAGE, tmp_path / "copy" / "fastbp", ignore=ignored)
    return tmp_path / "copy"
