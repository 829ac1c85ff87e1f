"""`levenberg_marquardt` on residuals whose derivatives follow from their code."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import nist

import fastbp as fb

lm = fb.optimize.levenberg_marquardt

T = np.arange(8.0)
Y = 3 * np.exp(-0.5 * T) + 0.1 * np.sin(7 * T)


def residuals(x):
    return x[0] * np.exp(-x[1] * T) - Y


def jacobian(x):
    e = np.exp(-x[1] * T)
    return np.column_stack([e, -x[0] * T * e])


@pytest.mark.parametrize("start", (0, 1))
@pytest.mark.parametrize("name", nist.CURVES)
def test_nist(name, start):
    problem = nist.problem(name)
    f = nist.CURVES[name]
    result = lm(lambda b: f(problem.x, *b) - problem.y, problem.starts[start])
    assert result.derivatives == "exact"
    assert result.success
    assert problem.digits(result.x) >= 6


@pytest.mark.parametrize(
    "options",
    (
        {},
        {"bounds": ([0, 0.6], [2.5, 9])},
        {"loss": "huber", "f_scale": 0.05},
        {"loss": "cauchy", "f_scale": 0.1},
        {"bend": False, "uniform": True, "mu_dec": 0.1, "mu_inc": 10},
        {"goal": 0.05},
        {"maxiter": 2},
        {"min_grad": 1e-2},
    ),
)
def test_results_are_as_with_the_jacobian(options):
    exact, given = (
        lm(residuals, [1.0, 1.0], **options),
        lm(residuals, [1.0, 1.0], jacobian, **options),
    )
    assert (exact.derivatives, given.derivatives) == ("exact", "jac")
    assert set(exact) == set(given)
    for name in ("status", "message", "nit", "nfev", "njev", "success"):
        assert exact[name] == given[name]
    for name in ("x", "cost", "fun", "jac", "optimality"):
        np.testing.assert_allclose(exact[name], given[name], rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(exact.active_mask, given.active_mask)
    assert list(exact.history) == list(given.history)
    np.testing.assert_allclose(exact.history["cost"], given.history["cost"], rtol=1e-8)
    if "standard_errors" in given:
        np.testing.assert_allclose(exact.standard_errors, given.standard_errors, rtol=1e-5)


def test_callbacks():
    points, costs = [], []

    def callback(x):
        points.append(x)
        return len(points) == 3

    result = lm(residuals, [1.0, 1.0], callback=callback)
    assert result.derivatives == "exact"
    assert (result.status, result.nit, len(points)) == (-2, 3, 3)
    np.testing.assert_array_equal(points[-1], result.x)

    def record(intermediate_result):
        costs.append(intermediate_result.fun)

    result = lm(residuals, [1.0, 1.0], callback=record)
    np.testing.assert_array_equal(costs, result.history["cost"][1:])


def test_a_start_at_the_goal():
    result = lm(lambda x: x[0] * T, [0.0])
    assert (result.nit, result.cost, result.success) == (0, 0, True)


@pytest.mark.parametrize(
    "fun",
    (
        lambda x, t: x[0] * np.exp(-x[1] * t) - Y,
        lambda x, t: (lambda a, b: a * np.exp(-b * t) - Y)(*x),
        lambda x, t: x[:1][0] * np.exp(-x[-1] * t) - Y if len(x) == 2 else None,
    ),
)
def test_arguments(fun):
    result = lm(fun, [1.0, 1.0], args=(T,))
    assert result.derivatives == "exact"
    np.testing.assert_allclose(result.x, lm(residuals, [1.0, 1.0], jacobian).x, rtol=1e-7)


def test_differences_elsewhere():
    def rosenbrock(x):
        return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])

    result = lm(rosenbrock, [-1.2, 1.0])
    assert result.derivatives == "3-point"
    np.testing.assert_allclose(result.x, [1, 1], rtol=1e-7)
    assert lm(residuals, [1.0, 1.0], "2-point").derivatives == "2-point"
    noise = np.random.default_rng(0)
    result = lm(lambda x: x[0] * T - Y + noise.normal(0, 1e-3, 8), [1.0], maxiter=5)
    assert result.derivatives == "3-point"


def test_a_branch_hidden_from_symbols_that_agrees_at_the_start():
    def fun(x):
        return x[0] * T + (2.0 if hasattr(x[1], "dtype") and x[1] > 2 else x[1]) - 3 * T - 5

    result = lm(fun, [1.0, 1.0])
    assert result.derivatives == "3-point"
    np.testing.assert_array_equal(result.fun, fun(result.x))
