"""Data for the tests of `fit`: rows to fit, rows held out, columns of different sizes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.fits import N


@pytest.fixture
def data(rng):
    X = rng.standard_normal((N, 3))
    return X, np.column_stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]])


@pytest.fixture
def held(rng):
    X = rng.standard_normal((21, 3))
    return X, np.column_stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]])


@pytest.fixture
def raw(rng):
    """Columns that call for scaling."""
    X = rng.standard_normal((N, 3)) * [0.1, 1, 20] + [3, 0, -50]
    y = np.column_stack([50 + 7 * np.sin(X[:, 1]), 0.01 * X[:, 2]])
    return X, y + 0.1 * rng.standard_normal((N, 2)) * [7, 0.01]
