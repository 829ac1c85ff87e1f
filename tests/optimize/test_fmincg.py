"""`fastbp.optimize.fmincg`: problems with known minima, its steps, options and errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
from helpers.evaluations import collection, compare, gallery
from helpers.problems import (
    PROBLEMS,
    bowl,
    classification,
    regression,
    rosenbrock,
    sum_of_squares,
    wood,
)
from hypothesis import given, settings, strategies as st

import fastbp as fb

# fmincg: what it finds.


@pytest.mark.parametrize("name", PROBLEMS)
def test_known_minima(name):
    residuals, x0, minimum = PROBLEMS[name]
    fun = sum_of_squares(residuals)
    result = fb.optimize.fmincg(fun, x0, maxiter=1000)
    assert result.fun < 1e-20
    # Powell's Hessian is singular: f grows with the 4th power of the distance.
    tolerance = 1e-4 if name == "Powell's singular" else 1e-9
    np.testing.assert_allclose(result.x, minimum, atol=tolerance)
    assert result.success or name == "Powell's singular"


@pytest.mark.parametrize("name", PROBLEMS)
def test_result_is_consistent(name):
    residuals, x0, _ = PROBLEMS[name]
    fun = sum_of_squares(residuals)
    met = []

    def noting(x):
        f, g = fun(x)
        met.append(f)
        return f, g

    result = fb.optimize.fmincg(noting, x0, maxiter=10)
    f, g = fun(result.x)
    assert result.fun == f == min(met)
    assert np.array_equal(result.jac, g)
    assert result.nfev == result.njev == len(met)
    assert (result.nit, result.status, result.success) == (10, 1, False)
    assert "maxiter" in result.message
    assert len(result.history) == 11
    assert result.history[0] == met[0] and result.history[-1] == f
    assert np.all(np.diff(result.history) <= 0)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 8), spread=st.floats(0, 2))
def test_quadratics_take_few_steps(seed, n, spread):
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    eigenvalues = 10 ** rng.uniform(0, spread, n)
    A = Q * eigenvalues @ Q.T
    center = rng.normal(size=n)

    def fun(x):
        d = x - center
        return float(d @ A @ d) / 2, A @ d

    result = fb.optimize.fmincg(fun, rng.normal(size=n), tol=1e-6 * eigenvalues.max(), maxiter=200)
    assert result.success
    # Exact line searches would take n steps; these stop at half the slope.
    assert result.nit <= 10 * n + 10
    # ‖x - c‖ <= ‖g‖ / smallest eigenvalue
    assert np.linalg.norm(result.x - center) <= 1e-6 * n * eigenvalues.max() / eigenvalues.min()


def test_directions_are_conjugate_or_straight_downhill():
    rng = np.random.default_rng(3)
    Q, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    A = Q * 10 ** np.linspace(0, 2, 6) @ Q.T
    points = [rng.normal(size=6)]
    fun = lambda x: (float(x @ A @ x) / 2, A @ x)  # noqa: E731
    fb.optimize.fmincg(fun, points[0], tol=1e-6, callback=points.append)
    steps = np.diff(points, axis=0)
    steps /= np.linalg.norm(steps, axis=1)[:, None]
    downhill = -(points[:-1] @ A)
    downhill /= np.linalg.norm(downhill, axis=1)[:, None]
    along, conjugate = (steps * downhill).sum(axis=1), (steps[1:] @ A * steps[:-1]).sum(axis=1)
    # Line searches that stop at 0.3 of the slope leave β·y·s far from 0 if β has g·g below.
    restarted = along[1:] > 1 - 1e-12
    assert len(steps) > 6 and not restarted.all()
    assert np.abs(conjugate[~restarted]).max() <= 1e-6


@pytest.mark.parametrize("cases", [collection, gallery])
def test_evaluations_compared_with_scipy(cases):
    if cases is gallery:
        pytest.importorskip("sklearn")
    rows = [compare(case) for case in cases()]
    assert len(rows) >= {collection: 98, gallery: 17}[cases]
    assert sum(row.won for row in rows) >= 2 / 3 * len(rows)


@pytest.mark.backend
def test_linear_regression():
    net, objective, exact = regression()
    result = fb.optimize.fmincg(objective, net.init(seed=0))
    assert result.success
    np.testing.assert_allclose(result.x, exact, atol=1e-7)


@pytest.mark.backend
def test_logistic_regression():
    net, objective = classification()
    start = np.zeros(net.n_params)
    result = fb.optimize.fmincg(objective, start, maxiter=500)
    reference = fb.optimize.minimize(objective, start, ftol=0, gtol=1e-12, maxiter=5000)
    assert result.success
    # The objective is 0.01-strongly convex in the weights: ‖x - x*‖ is at most ‖g‖ / 0.01.
    np.testing.assert_allclose(result.x, reference.x, atol=1e-6)
    assert result.fun - reference.fun <= 1e-12


def test_one_versus_all_on_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    X, y = datasets.load_digits(return_X_y=True)
    darkest = np.argsort(X.var(axis=0))[-3:]
    for columns, expected in ((slice(None), (0.985, 1.0)), (darkest, (0.4, 0.5))):
        data = X[:, columns]
        net = fb.Network(data.shape[1], fb.Dense(1))
        outputs = []
        for digit in range(10):
            objective = net.objective(data, y == digit, "bce_logits", l2=0.1 / len(X))
            result = fb.optimize.fmincg(objective, np.zeros(net.n_params), maxiter=50)
            assert result.nit <= 50
            outputs.append(net.forward(result.x, data)[:, 0])
        low, high = expected
        assert low <= np.mean(np.argmax(outputs, axis=0) == y) <= high


# fmincg: how it copes.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("red", [1.0, 1e6])
def test_backs_off_from_values_that_are_not_finite(bad, red):
    def fun(x):  # least at 1, undefined from 0 down
        return (x[0] - np.log(x[0]), 1 - 1 / x) if x[0] > 0 else (bad, np.full(1, np.nan))

    for start in (1e-3, 10.0):
        result = fb.optimize.fmincg(fun, [start], red=red)
        assert result.success
        np.testing.assert_allclose(result.x, 1, atol=1e-7)
        assert np.isfinite(result.history).all()


def test_backs_off_from_gradients_that_are_not_finite():
    def fun(x):
        return float((x[0] - 1) ** 2), 2 * (x - 1) if abs(x[0]) < 4 else np.full(1, np.nan)

    result = fb.optimize.fmincg(fun, [3.9], red=1e4)
    np.testing.assert_allclose(result.x, 1, atol=1e-7)


def test_a_wrong_gradient_is_reported():
    result = fb.optimize.fmincg(lambda x: (float(x @ x), -2 * x), [3.0, 1.0])
    assert (result.status, result.success) == (3, False)
    assert "check_grad" in result.message
    assert result.x.tolist() == [3.0, 1.0]


def test_a_kink_is_reported():
    result = fb.optimize.fmincg(lambda x: (np.abs(x).sum(), np.sign(x)), [3.0, 1.0, 2.7])
    assert (result.status, result.success) == (3, False)


def test_an_unbounded_function_ends():
    result = fb.optimize.fmincg(lambda x: (-x.sum(), -np.ones(2)), [0.0, 1.0], maxiter=50)
    assert not result.success
    assert result.fun < -1e6


def test_zero_gradient_at_the_start():
    result = fb.optimize.fmincg(bowl, [0.0, 0.0])
    assert (result.success, result.nit, result.nfev) == (True, 0, 1)


def test_tol():
    fun = sum_of_squares(rosenbrock)
    result = fb.optimize.fmincg(fun, [-1.2, 1.0], tol=1e-3)
    assert result.success
    assert np.abs(result.jac).max() <= 1e-3
    assert result.nfev < fb.optimize.fmincg(fun, [-1.2, 1.0]).nfev


@pytest.mark.parametrize("maxfun", [1, 2, 17])
def test_maxfun(maxfun):
    result = fb.optimize.fmincg(sum_of_squares(rosenbrock), [-1.2, 1.0], maxfun=maxfun)
    assert (result.nfev, result.status, result.success) == (maxfun, 2, False)
    assert "maxfun" in result.message


@pytest.mark.parametrize(
    ("start", "first"),
    [
        (1.0, 1 - 2 * 0.25 / 5),  # red / (1 + ‖g‖²), downhill along g = (2, 0)
        (1e6, 0.99e6),  # that would be 5e-8 of x; at least a hundredth
    ],
)
def test_red_sets_the_first_step(start, first):
    steps = []

    def fun(x):
        steps.append(x.copy())
        return bowl(x)

    fb.optimize.fmincg(fun, [start, 0.0], maxfun=2, red=0.25)
    assert steps[1].tolist() == [first, 0.0]


def test_a_line_search_ends_where_no_number_is_left_between():
    points = []

    def cliff(x):
        points.append(x[0])
        return (0.0 if x[0] == 1 else 1e30), np.ones(1)

    result = fb.optimize.fmincg(cliff, [1.0])
    assert result.x == 1 and result.nit == 2
    assert points.count(1.0) == 3  # the start, and what ended both line searches


def test_repetition_is_bitwise_equal():
    fun = sum_of_squares(wood)
    first, second = (fb.optimize.fmincg(fun, [-3.0, -1, -3, -1]) for _ in range(2))
    assert first.x.tobytes() == second.x.tobytes()
    assert first.history.tobytes() == second.history.tobytes()


def test_arguments_are_not_modified_or_kept():
    x0 = np.array([1.0, 2.0])
    x0.flags.writeable = False
    out = np.empty(2)

    def rude(x):
        f, out[:] = bowl(x)
        x[:] = np.nan
        return f, out

    result = fb.optimize.fmincg(rude, x0)
    assert x0.tolist() == [1.0, 2.0]
    assert result.x is not x0
    np.testing.assert_allclose(result.x, 0, atol=1e-10)


def test_args():
    def fun(x, center, scale):
        return scale * float((x - center) @ (x - center)), 2 * scale * (x - center)

    result = fb.optimize.fmincg(fun, [0.0, 0.0], (np.array([1.0, 2.0]), 3.0))
    np.testing.assert_allclose(result.x, [1, 2], atol=1e-10)
    result = fb.optimize.fmincg(lambda x, c: ((x - c) @ (x - c), 2 * (x - c)), [0.0], 5.0)
    np.testing.assert_allclose(result.x, 5, atol=1e-10)


def test_float32_network():
    net, objective, exact = regression("float32")
    result = fb.optimize.fmincg(objective, net.init(seed=0))
    assert result.x.dtype == np.float64
    np.testing.assert_allclose(result.x, exact, atol=1e-7)


# fmincg: as a method of SciPy.


@pytest.mark.parametrize("separate", [False, True])
def test_as_a_method_of_scipy(separate):
    both = sum_of_squares(rosenbrock)
    calls = 0

    def fun(x):
        nonlocal calls
        calls += 1
        return both(x)[0] if separate else both(x)

    result = scipy.optimize.minimize(
        fun,
        [-1.2, 1.0],
        method=fb.optimize.fmincg,
        jac=(lambda x: both(x)[1]) if separate else True,
        options={"maxiter": 30, "red": 0.5},
    )
    direct = fb.optimize.fmincg(both, [-1.2, 1.0], maxiter=30, red=0.5)
    assert result.x.tobytes() == direct.x.tobytes()
    assert calls == result.nfev == direct.nfev


def test_scipy_passes_callback_args_and_tol():
    points = []
    result = scipy.optimize.minimize(
        lambda x, c: ((x - c) @ (x - c), 2 * (x - c)),
        [0.0, 0.0],
        args=(2.0,),
        method=fb.optimize.fmincg,
        jac=True,
        tol=1e-3,
        callback=points.append,
    )
    assert result.success
    assert len(points) == result.nit
    assert 0 < np.abs(result.jac).max() <= 1e-3 or result.fun == 0


@pytest.mark.parametrize("jac", [None, False, "2-point"])
def test_a_gradient_is_needed(jac):
    with pytest.raises(ValueError, match="fmincg needs the gradient"):
        fb.optimize.fmincg(lambda x: x @ x, [1.0], jac=jac)
    with pytest.raises(ValueError, match="fmincg needs the gradient"):
        scipy.optimize.minimize(lambda x: x @ x, [1.0], method=fb.optimize.fmincg, jac=jac)


@pytest.mark.parametrize(
    "limits", [{"bounds": [(0, 1)]}, {"constraints": {"type": "eq", "fun": lambda x: x[0]}}]
)
def test_bounds_and_constraints_are_refused(limits):
    with pytest.raises(ValueError, match="takes neither bounds nor constraints"):
        scipy.optimize.minimize(bowl, [1.0], method=fb.optimize.fmincg, jac=True, **limits)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x0": [[1.0]]}, fb.ShapeError, "x0 has shape (1, 1), expected a vector"),
        ({"x0": []}, fb.ShapeError, "x0 has shape (0,)"),
        ({"x0": [np.nan]}, fb.NonFiniteError, "x0 holds nan at row 0"),
        ({"x0": [1j]}, TypeError, "x0 has dtype complex128"),
        ({"fun": lambda x: (1.0, np.ones(3))}, fb.ShapeError, "shape (3,), expected (1,)"),
        ({"fun": lambda x: (np.nan, x)}, fb.NonFiniteError, "fun is nan at x0"),
        ({"fun": lambda x: (1.0, x * np.inf)}, fb.NonFiniteError, "the gradient at x0 holds inf"),
        ({"fun": lambda x: (1.0, x * 1e200)}, fb.NonFiniteError, "overflows; scale fun down"),
        ({"fun": lambda x: 1.0}, TypeError, "expected the pair (value, gradient)"),
        ({"fun": 3}, TypeError, "fun is 3, expected a function"),
        ({"maxiter": 0}, ValueError, "maxiter is 0, expected at least 1"),
        ({"maxiter": 1.5}, TypeError, "maxiter is 1.5, expected a whole number"),
        ({"maxfun": 0}, ValueError, "maxfun is 0"),
        ({"red": 0.0}, ValueError, "red is 0.0"),
        ({"red": np.nan}, ValueError, "red is nan"),
        ({"tol": -1.0}, ValueError, "tol is -1.0"),
        ({"maxitr": 3}, TypeError, "maxitr"),
    ],
)
def test_bad_arguments_of_fmincg(arguments, error, message):
    with pytest.raises(error) as caught:
        fb.optimize.fmincg(**{"fun": bowl, "x0": [1.0]} | arguments)
    assert message in str(caught.value)


# Masked and frozen parameters.


def test_import_does_not_load_scipy():
    code = "import sys, fastbp; fastbp.optimize.fmincg; assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
