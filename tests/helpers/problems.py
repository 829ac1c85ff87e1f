"""Functions and networks with known minima, for the tests of the minimisers."""

from __future__ import annotations

import numpy as np
from oracles.mgh import Problem, beale, powell_singular, rosenbrock, wood

import fastbp as fb

PROBLEMS = {
    "Rosenbrock": (rosenbrock, [-1.2, 1.0], [1.0, 1.0]),
    "Rosenbrock, 10 variables": (rosenbrock, [-1.2, 1.0] * 5, [1.0] * 10),
    "Beale": (beale, [1.0, 1.0], [3.0, 0.5]),
    "Wood": (wood, [-3.0, -1.0, -3.0, -1.0], [1.0] * 4),
    "Powell's singular": (powell_singular, [3.0, -1.0, 0.0, 1.0], [0.0] * 4),
}


def sum_of_squares(residuals):
    return Problem(residuals, (), ()).value_and_grad


def bowl(x):
    return float(x @ x), 2 * x


def regression(dtype="float64", n=40):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3)).astype(np.float32)
    y = (X @ [1.0, -2.0, 0.5] + 3 + 0.1 * rng.normal(size=n)).astype(np.float32)
    net = fb.Network(3, fb.Dense(1), dtype=dtype)
    exact, *_ = np.linalg.lstsq(np.column_stack([X, np.ones(n)]).astype(float), y.astype(float))
    return net, net.objective(X, y), exact


def classification():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 5))
    y = (X @ [1, -2, 0.5, 0, 1] + rng.normal(size=200) > 0).astype(float)
    net = fb.Network(5, fb.Dense(1))
    return net, net.objective(X, y, "bce_logits", l2=0.01)


# Masked and frozen parameters. The line's network has 4 weights and a bias; the second weight is
# masked, the third frozen at 2: the others are those of a regression that lstsq solves.

FREE = [0, 3, 4]
START = [0.5, np.nan, 2.0, -1.0, 0.0]


def restricted_regression(dtype="float64"):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(30, 4)).astype(np.float32)
    y = (X @ [1.0, 5.0, -2.0, 0.5] + 3).astype(np.float32)
    layer = fb.Dense(1, mask=[[1], [0], [1], [1]], trainable=[[1], [1], [0], [1]])
    net = fb.Network(4, layer, dtype=dtype)
    A = np.column_stack([X[:, 0], X[:, 3], np.ones(30)]).astype(float)
    exact, *_ = np.linalg.lstsq(A, y - 2.0 * X[:, 2].astype(float))
    return net.objective(X, y, "sse"), A, exact


# Rows of times; a model of growth has one minimum for the first, and runs away for the others.
SERIES = [
    [0.52, 1.28, 2.04, 3.17, 4.53, 6.22],
    [0.51, 1.40, 2.09, 3.00, 4.42, 6.17],
    [0.63, 1.35, 2.19, 3.02, 4.57, 6.29],
    [0.63, 1.39, 2.23, 3.28, 4.70, 6.32],
    [0.57, 1.40, 2.10, 3.06, 4.53, 6.17],
]


def same_results(a, b):
    """Two results of many starts are the same to the bit."""
    for name in ("fun", "params", "starts", "order", "seeds", "failed"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.messages == b.messages and a.clusters == b.clusters
