"""The test problems of the minimisers are what they claim: Jacobians, starts, minima."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize

from oracles.mgh import MGH

TINY = 1e-30  # of complex steps


@pytest.mark.parametrize("name", MGH)
def test_jacobians(name):
    problem = MGH[name]
    rng = np.random.default_rng(0)
    start = np.array(problem.start)
    for x in (start + 0.1 * rng.normal(size=len(start)) for _ in range(3)):
        J = problem.jacobian(x)
        steps = 1j * TINY * np.eye(len(x))
        expected = np.column_stack([problem.residuals(x + step).imag / TINY for step in steps])
        assert J.shape == expected.shape == (len(problem.residuals(x)), len(x))
        np.testing.assert_allclose(J, expected, rtol=1e-11, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("name", MGH)
def test_value_and_gradient(name):
    problem = MGH[name]
    for x in problem.starts:
        r, J = problem.residuals(x), problem.jacobian(x)
        f, g = problem.value_and_grad(x)
        assert np.isfinite(f) and np.isfinite(g).all() and np.any(g)
        assert f == pytest.approx(np.square(r).sum())
        np.testing.assert_allclose(g, 2 * J.T @ r, rtol=1e-10, atol=1e-10 * np.abs(g).max())


@pytest.mark.parametrize("name", [name for name in MGH if MGH[name].solution])
def test_solutions(name):
    problem = MGH[name]
    f, _ = problem.value_and_grad(np.array(problem.solution, float))
    assert f == pytest.approx(problem.minima[0], abs=1e-25)


# Near minima that SciPy's search does not find from the standard starts.
NEARBY = {
    "3 Powell badly scaled": [1e-10, 1e6],
    "18 Biggs": [17.7, 17.7, -1.3, 3.9, 1.7, 2.3],
    "26 trigonometric, 10": [0.062, 0.064, 0.067, 0.069, 0.275, 0.075, 0.079, 0.082, 0.084, 0.082],
    "27 Brown almost-linear, 10": [0.0] * 9 + [11.0],
    "35 Chebyquad, 10": [0.075, 0.172, 0.286, 0.36, 0.471, 0.617, 0.617, 0.8, 0.845, 0.967],
}


@pytest.mark.parametrize("name", MGH)
def test_minima(name):
    problem = MGH[name]
    starts = [*problem.starts, *(np.array(NEARBY[name]) for _ in range(name in NEARBY))]
    left = set(problem.minima[1:] if problem.solution else problem.minima)
    for x in starts:
        result = scipy.optimize.least_squares(
            problem.residuals, x, problem.jacobian, method="lm",
            ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=5000,
        )  # fmt: skip
        left -= {m for m in left if problem._replace(minima=(m,)).reached(2 * result.cost)}
    assert not left


def test_starts():
    assert [x.tolist() for x in MGH["1 Rosenbrock"].starts] == [[-1.2, 1], [-12, 10], [-120, 100]]
    # A start of zeros has no multiples.
    assert [x.tolist() for x in MGH["20 Watson, 6"].starts] == [[0] * 6, [10] * 6, [100] * 6]
    assert sum(len(problem.starts) for problem in MGH.values()) >= 90


def test_reached():
    problem = MGH["2 Freudenstein and Roth"]
    assert problem.reached(1e-20) and problem.reached(48.98425)
    assert not problem.reached(1e-3) and not problem.reached(48.99)
