"""What the tests of the minimisers minimise: functions and networks with known minima."""

from __future__ import annotations

import numpy as np

import fastbp as fb

# Problems of J. J. Moré, B. S. Garbow, K. E. Hillstrom, "Testing unconstrained optimization
# software", ACM TOMS 7, 1981: residuals and Jacobians at their standard starts. All minima are 0.


def rosenbrock(x):
    a, b = x[:-1], x[1:]
    n = len(a)
    J = np.zeros((2 * n, n + 1))
    J[np.arange(n), np.arange(n)] = -20 * a
    J[np.arange(n), np.arange(n) + 1] = 10
    J[n + np.arange(n), np.arange(n)] = -1
    return np.concatenate([10 * (b - a**2), 1 - a]), J


def beale(v):
    x, y = v
    powers = np.array([1, 2, 3])
    r = np.array([1.5, 2.25, 2.625]) - x * (1 - y**powers)
    return r, np.column_stack([y**powers - 1, x * powers * y ** (powers - 1)])


def wood(v):
    a, b, c, d = v
    r = [10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c]
    r += [10**0.5 * (b + d - 2), (b - d) / 10**0.5]
    J = [[-20 * a, 10, 0, 0], [-1, 0, 0, 0], [0, 0, -2 * 90**0.5 * c, 90**0.5], [0, 0, -1, 0]]
    J += [[0, 10**0.5, 0, 10**0.5], [0, 10**-0.5, 0, -(10**-0.5)]]
    return np.array(r), np.array(J)


def powell_singular(v):
    a, b, c, d = v
    r = [a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2]
    J = [[1, 10, 0, 0], [0, 0, 5**0.5, -(5**0.5)], [0, 2 * (b - 2 * c), -4 * (b - 2 * c), 0]]
    J += [[2 * 10**0.5 * (a - d), 0, 0, -2 * 10**0.5 * (a - d)]]
    return np.array(r), np.array(J)


PROBLEMS = {
    "Rosenbrock": (rosenbrock, [-1.2, 1.0], [1.0, 1.0]),
    "Rosenbrock, 10 variables": (rosenbrock, [-1.2, 1.0] * 5, [1.0] * 10),
    "Beale": (beale, [1.0, 1.0], [3.0, 0.5]),
    "Wood": (wood, [-3.0, -1.0, -3.0, -1.0], [1.0] * 4),
    "Powell's singular": (powell_singular, [3.0, -1.0, 0.0, 1.0], [0.0] * 4),
}


def sum_of_squares(residuals):
    def fun(x):
        r, J = residuals(x)
        return float(r @ r), 2 * J.T @ r

    return fun


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
# masked, the third frozen at 2: what is left is a regression that lstsq solves.

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
