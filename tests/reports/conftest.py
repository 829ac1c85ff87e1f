"""Data for the tests of plots and summaries."""

from __future__ import annotations

import pytest


@pytest.fixture
def data(rng):
    X = rng.standard_normal((60, 3))
    return X, X[:, 0] - 2 * X[:, 1]
