"""fastbp.optimize: fmincg on problems with known minima, and SciPy with exact derivatives."""

from __future__ import annotations

import importlib
import inspect
import itertools
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
from helpers.evaluations import collection, compare, gallery
from helpers.problems import (
    FREE,
    PROBLEMS,
    START,
    bowl,
    classification,
    regression,
    restricted_regression,
    rosenbrock,
    sum_of_squares,
    wood,
)
from hypothesis import given, settings, strategies as st

import fastbp as fb
from fastbp.optimize.scipy_methods import MINIMIZERS

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


# fmincg: callbacks, and as a method of SciPy.


def test_callback_gets_every_iteration():
    points, results = [], []
    fun = sum_of_squares(rosenbrock)
    result = fb.optimize.fmincg(fun, [-1.2, 1.0], maxiter=7, callback=points.append)
    assert len(points) == 7
    assert [fun(x)[0] for x in points] == result.history[1:].tolist()

    def listen(intermediate_result):
        results.append((intermediate_result.x, intermediate_result.fun))

    fb.optimize.fmincg(fun, [-1.2, 1.0], maxiter=7, callback=listen)
    assert [fun(x)[0] for x, _ in results] == [f for _, f in results] == result.history[1:].tolist()


def test_callback_may_write_to_its_point():
    fun = sum_of_squares(rosenbrock)
    result = fb.optimize.fmincg(fun, [-1.2, 1.0], callback=lambda x: x.fill(0))
    assert result.x.tobytes() == fb.optimize.fmincg(fun, [-1.2, 1.0]).x.tobytes()


def stop_by_raising(xk):
    raise StopIteration


@pytest.mark.parametrize("callback", [stop_by_raising, lambda xk: True, lambda xk: np.True_])
def test_callback_stops(callback):
    fun = sum_of_squares(rosenbrock)
    result = fb.optimize.fmincg(fun, [-1.2, 1.0], callback=callback)
    assert (result.nit, result.status, result.success) == (1, 99, False)
    assert "callback" in result.message
    assert result.fun < fun(np.array([-1.2, 1.0]))[0]


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


# SciPy's methods.


@pytest.mark.backend
@pytest.mark.parametrize("method", MINIMIZERS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_method_solves_a_regression(method, dtype):
    net, objective, exact = regression(dtype)
    start = net.init(seed=0)
    start.flags.writeable = False
    result = fb.optimize.minimize(objective, start, method, tol=1e-10)
    assert result.x.dtype == net.dtype
    np.testing.assert_allclose(result.x, exact, atol=1e-5)
    assert result.fun <= (1 + 1e-6) * objective.astype("float64").value(exact)
    lower = fb.optimize.minimize(objective, start, method.lower(), tol=1e-10)
    assert lower.x.tobytes() == result.x.tobytes()


def test_minimize_is_scipy():
    fun = sum_of_squares(rosenbrock)
    ours = fb.optimize.minimize(fun, [-1.2, 1.0], "BFGS", gtol=1e-8, options={"maxiter": 50})
    theirs = scipy.optimize.minimize(
        fun, [-1.2, 1.0], jac=True, method="BFGS", options={"gtol": 1e-8, "maxiter": 50}
    )
    assert ours.x.tobytes() == theirs.x.tobytes()
    assert ours.nfev == theirs.nfev


def test_float32_network_is_minimized_in_float64():
    net, objective, _ = regression("float32")
    start = net.init(seed=0)
    single = fb.optimize.minimize(objective, start)
    double = fb.optimize.minimize(objective.astype("float64"), start)
    assert single.x.tobytes() == double.x.astype(np.float32).tobytes()
    assert single.fun == double.fun


def test_keywords_go_where_they_belong():
    net, objective, _ = regression()
    points = []
    result = fb.optimize.minimize(
        objective, net.init(seed=0), bounds=[(0, 0.5)] * 4, callback=points.append, maxiter=3
    )
    assert result.nit <= 3
    assert len(points) == result.nit
    assert np.all((result.x >= 0) & (result.x <= 0.5))
    # As little of x_0 as is allowed: the sum of all is to be 1.
    total = {"type": "eq", "fun": lambda x: x.sum() - 1}
    result = fb.optimize.minimize(bowl, [3.0, 0.0], "SLSQP", constraints=total)
    np.testing.assert_allclose(result.x, 0.5, atol=1e-7)
    result = fb.optimize.minimize(
        lambda x, c: ((x - c) @ (x - c), 2 * (x - c)), [0.0], "CG", args=(2.0,)
    )
    np.testing.assert_allclose(result.x, 2, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "LBFGSB"}, ValueError, "did you mean 'L-BFGS-B'?"),
        ({"method": "powell"}, ValueError, "unknown method 'powell': expected one of 'CG'"),
        ({"method": None}, ValueError, "unknown method None"),
        ({"maxitr": 3}, TypeError, "unknown option of method 'L-BFGS-B' 'maxitr'"),
        ({"options": {"maxitr": 3}}, TypeError, "did you mean 'maxiter'?"),
        ({"bound": None}, TypeError, "did you mean 'bounds'?"),
        ({"method": "CG", "maxls": 3}, TypeError, "unknown option of method 'CG' 'maxls'"),
        ({"method": "fmincg", "gtol": 3}, TypeError, "expected one of"),
        ({"maxiter": 3, "options": {"maxiter": 3}}, TypeError, "'maxiter' is given twice"),
        ({"method": "BFGS", "bounds": [(0, 1)]}, ValueError, "takes no bounds; L-BFGS-B, TNC"),
        ({"constraints": {"type": "eq"}}, ValueError, "takes no constraints; SLSQP, trust-constr"),
        ({"p0": np.ones(3)}, fb.ShapeError, "params has shape (3,), expected (4,)"),
        ({"obj": 3}, TypeError, "obj is 3, expected a network's objective or a function"),
        ({"obj": bowl, "p0": [[1.0]]}, fb.ShapeError, "p0 has shape (1, 1), expected a vector"),
    ],
)
def test_bad_arguments_of_minimize(arguments, error, message):
    net, objective, _ = regression()
    with pytest.raises(error) as caught:
        fb.optimize.minimize(**{"obj": objective, "p0": net.init(seed=0)} | arguments)
    assert message in str(caught.value)


MODULES = {
    "CG": "_optimize._minimize_cg",
    "BFGS": "_optimize._minimize_bfgs",
    "Newton-CG": "_optimize._minimize_newtoncg",
    "L-BFGS-B": "_lbfgsb_py._minimize_lbfgsb",
    "TNC": "_tnc._minimize_tnc",
    "SLSQP": "_slsqp_py._minimize_slsqp",
    "trust-constr": "_trustregion_constr._minimize_trustregion_constr",
}


@pytest.mark.parametrize("method", MODULES)
def test_option_names_are_scipys(method):
    module, name = MODULES[method].split(".")
    function = getattr(importlib.import_module(f"scipy.optimize.{module}"), name)
    theirs = set(inspect.signature(function).parameters)
    theirs -= {"fun", "func", "x0", "args", "jac", "grad", "hess", "hessp", "unknown_options"}
    theirs -= {"bounds", "constraints", "callback"}
    assert MINIMIZERS[method].options <= theirs
    # What is left out concerns numerical derivatives.
    assert theirs - MINIMIZERS[method].options <= {"eps", "finite_diff_rel_step", "workers"}


# Least squares.


@pytest.mark.backend
@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_least_squares_solves_a_regression(method, dtype):
    net, objective, exact = regression(dtype)
    start = net.init(seed=0)
    start.flags.writeable = False
    result = fb.optimize.least_squares(objective, start, method)
    assert result.success
    assert result.x.dtype == net.dtype
    np.testing.assert_allclose(result.x, exact, atol=1e-6)
    double = objective.astype("float64")
    assert result.cost == pytest.approx(20 * double.value(exact), rel=1e-9)


@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
def test_least_squares_of_a_function(method):
    residuals, jacobian = [], []

    def fun(x):
        residuals.append(x.tobytes())
        return wood(x)[0]

    def jac(x):
        jacobian.append(x.tobytes())
        return wood(x)[1]

    result = fb.optimize.least_squares(fun, [-3.0, -1, -3, -1], method, jac=jac, xtol=1e-12)
    np.testing.assert_allclose(result.x, 1, atol=1e-8)
    # Nothing is computed twice in a row at the same point.
    for calls in (residuals, jacobian):
        assert all(a != b for a, b in itertools.pairwise(calls))


def test_least_squares_keywords():
    _, objective, _ = regression()
    result = fb.optimize.least_squares(
        objective, np.full(4, 0.25), bounds=(0, 0.5), loss="soft_l1", max_nfev=30
    )
    assert np.all((result.x >= 0) & (result.x <= 0.5))
    result = fb.optimize.least_squares(lambda x, c: x - c, [0.0], jac="2-point", args=(2.0,))
    np.testing.assert_allclose(result.x, 2, atol=1e-7)


def test_more_parameters_than_residuals():
    net = fb.Network.mlp([3, 10, 1])
    rng = np.random.default_rng(0)
    objective = net.objective(rng.normal(size=(20, 3)), rng.normal(size=20))
    with pytest.raises(
        ValueError, match=r"20 residuals and 51 parameters; 'trf', and fastbp's own"
    ):
        fb.optimize.least_squares(objective, net.init(seed=0), "lm")
    assert fb.optimize.least_squares(objective, net.init(seed=0), "trf").cost < 1e-8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "levenberg"}, ValueError, "unknown method 'levenberg'"),
        ({"method": "dogbo"}, ValueError, "did you mean 'dogbox'?"),
        ({"max_nfe": 3}, TypeError, "did you mean 'max_nfev'?"),
        ({"jac": lambda p: p}, TypeError, "jac was given with an objective"),
        ({"obj": bowl}, TypeError, "jac is missing"),
        ({"obj": 3}, TypeError, "obj is 3"),
        ({"p0": np.ones(3)}, fb.ShapeError, "params has shape (3,), expected (4,)"),
    ],
)
def test_bad_arguments_of_least_squares(arguments, error, message):
    net, objective, _ = regression()
    with pytest.raises(error) as caught:
        fb.optimize.least_squares(**{"obj": objective, "p0": net.init(seed=0)} | arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("method", ["trf", "lm"])
def test_least_squares_needs_a_sum_of_squares(method):
    net, objective = classification()
    with pytest.raises(ValueError, match="'bce_logits' is not a sum of squares"):
        fb.optimize.least_squares(objective, net.init(seed=0), method)


@pytest.mark.parametrize("penalty", ["l1", "group"])
def test_least_squares_takes_no_other_penalty(penalty):
    net = fb.Network(1, fb.Dense(1))
    objective = net.objective([[1.0], [2.0]], [1.0, 3.0], **{penalty: 0.1})
    with pytest.raises(ValueError, match="l1 and group are not sums of squares"):
        fb.optimize.least_squares(objective, net.init(seed=0))


# Masked and frozen parameters.


def check_whole(result, objective, exact, atol):
    np.testing.assert_allclose(result.x[FREE], exact, atol=atol)
    assert np.isnan(result.x[1]) and result.x[2] == 2.0
    assert result.x.shape == (5,)


@pytest.mark.backend
@pytest.mark.parametrize("method", MINIMIZERS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_methods_move_what_is_free(method, dtype):
    objective, _, exact = restricted_regression(dtype)
    start = np.array(START)
    start.flags.writeable = False
    result = fb.optimize.minimize(objective, start, method, tol=1e-10)
    check_whole(result, objective, exact, 1e-5)
    assert result.x.dtype == dtype
    jac = result.grad if method == "trust-constr" else result.jac
    assert jac.shape == (5,) and jac[1] == jac[2] == 0
    double = objective.astype("float64")
    assert result.fun == pytest.approx(double.value(result.x), rel=1e-6)


@pytest.mark.backend
@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
def test_least_squares_moves_what_is_free(method):
    objective, A, exact = restricted_regression()
    result = fb.optimize.least_squares(objective, START, method)
    check_whole(result, objective, exact, 1e-9)
    assert result.jac.shape == (30, 5)
    assert not result.jac[:, [1, 2]].any()
    np.testing.assert_allclose(result.jac[:, FREE], A, rtol=1e-12)
    assert result.grad.shape == result.active_mask.shape == (5,)


@pytest.mark.backend
def test_fmincg_moves_what_is_free():
    objective, _, exact = restricted_regression("float32")
    points = []
    result = fb.optimize.fmincg(objective, START, callback=points.append)
    check_whole(result, objective, exact, 1e-7)
    assert result.x.dtype == np.float64
    assert result.jac.shape == (5,)
    assert len(points) == result.nit
    for point in points:
        assert np.isnan(point[1]) and point[2] == 2.0
    with pytest.raises(ValueError, match="takes neither bounds nor constraints"):
        fb.optimize.fmincg(objective, START, bounds=[(0, 1)] * 5)


@pytest.mark.parametrize("method", [*MINIMIZERS, "trf", "dogbox"])
def test_callbacks_are_told_whole_vectors(method):
    objective, _, _ = restricted_regression()
    solve = fb.optimize.minimize if method in MINIMIZERS else fb.optimize.least_squares
    if "callback" not in inspect.signature(scipy.optimize.least_squares).parameters:
        if method not in MINIMIZERS:
            pytest.skip("SciPy's least_squares takes callbacks since 1.16")
    vectors, results = [], []

    def listen(intermediate_result):
        results.append(intermediate_result)

    def listen_plainly(xk, *state):
        vectors.append(xk)
        for other in state:
            assert other.x.tobytes() == xk.tobytes()
            assert other.grad.shape == (5,)

    solve(objective, START, method, callback=listen)
    solve(objective, START, method, callback=listen_plainly)
    assert 0 < len(vectors) == len(results)
    for told in results:
        x = told if isinstance(told, np.ndarray) else told.x
        assert x.shape == (5,) and np.isnan(x[1]) and x[2] == 2.0
    for xk in vectors:
        assert xk.shape == (5,) and np.isnan(xk[1]) and xk[2] == 2.0


@pytest.mark.parametrize("method", ["L-BFGS-B", "TNC", "SLSQP", "trust-constr", "trf", "dogbox"])
@pytest.mark.parametrize("form", ["pairs", "Bounds", "numbers"])
def test_bounds_have_an_entry_per_parameter(method, form):
    objective, A, _ = restricted_regression()
    # Those of the fixed ones, which their values break, do not count.
    lower, upper = np.array([-1, 7, 7, -1, -np.inf]), np.array([0.75, 8, 8, 1, 2.5])
    if form == "numbers":
        lower, upper = -2.0, 2.25
    low, high = (np.broadcast_to(b, 5)[FREE] for b in (lower, upper))
    solve = fb.optimize.minimize if method in MINIMIZERS else fb.optimize.least_squares
    if form == "pairs":
        pairs = list(zip(lower, upper, strict=True))
        bounds = pairs if method in MINIMIZERS else (lower, upper)
    elif form == "Bounds" or method in MINIMIZERS:
        bounds = scipy.optimize.Bounds(lower, upper)
    else:
        bounds = (lower, upper)
    result = solve(objective, START, method, bounds=bounds)
    residual = objective.residuals(np.where(np.isin(np.arange(5), FREE), 0, START))
    exact = scipy.optimize.lsq_linear(A, -residual, (low, high), tol=1e-14).x
    assert ((exact < low + 1e-6) | (exact > high - 1e-6)).any()
    check_whole(result, objective, exact, 1e-3)


def halfspace(kind):
    """x_0 + 10·x_1 + x_2 + 2·x_3 <= 1, where x_1 counts as 0 and x_2 is 2."""
    row = np.array([[1.0, 10.0, 1.0, 2.0, 0.0]])
    if kind == "dict":
        return {"type": "ineq", "fun": lambda x, c: c - row @ x, "args": (1.0,)}
    if kind == "dict with jac":
        return ({"type": "ineq", "fun": lambda x: 1 - row @ x, "jac": lambda x: -row},)
    if kind == "linear":
        return scipy.optimize.LinearConstraint(row, -np.inf, 1)
    if kind == "sparse":
        return [scipy.optimize.LinearConstraint(scipy.sparse.coo_array(row), -np.inf, 1)]
    hessians = {
        "nonlinear": lambda x, v: np.zeros((5, 5)),
        "sparse hess": lambda x, v: scipy.sparse.csr_array((5, 5)),
        "operator": lambda x, v: scipy.sparse.linalg.aslinearoperator(np.zeros((5, 5))),
        "BFGS": scipy.optimize.BFGS(),
    }
    jac = "2-point" if kind == "BFGS" else lambda x: row
    return scipy.optimize.NonlinearConstraint(
        lambda x: row @ x, -np.inf, 1, jac, hessians[kind],
        finite_diff_rel_step=np.full(5, 1e-8), finite_diff_jac_sparsity=np.ones((1, 5)),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
@pytest.mark.parametrize(
    "kind",
    ["dict", "dict with jac", "linear", "sparse", "nonlinear", "sparse hess", "operator", "BFGS"],
)
@pytest.mark.filterwarnings("ignore::scipy.optimize.OptimizeWarning")  # SLSQP takes no Hessians
@pytest.mark.filterwarnings("ignore:delta_grad == 0.0:UserWarning")  # SciPy's, of linear functions
def test_constraints_are_on_all_parameters(method, kind):
    objective, A, exact = restricted_regression()
    assert exact @ [1, 2, 0] > -1
    # The nearest point of the edge in the metric of AᵀA.
    G = np.linalg.solve(A.T @ A, [1.0, 2.0, 0.0])
    edge = exact - G * (exact @ [1, 2, 0] + 1) / (G @ [1, 2, 0])
    result = fb.optimize.minimize(objective, START, method, constraints=halfspace(kind))
    check_whole(result, objective, edge, 1e-3)


def test_a_curved_constraint_of_the_free_ones():
    objective, _, _ = restricted_regression()
    disk = scipy.optimize.NonlinearConstraint(
        lambda x: x @ x, -np.inf, 5, lambda x: 2 * x, lambda x, v: 2 * v[0] * np.eye(5)
    )
    # SciPy stops at gtol however large the barrier is then.
    options = {"gtol": 1e-9, "initial_barrier_parameter": 1e-6}
    result = fb.optimize.minimize(objective, START, "trust-constr", constraints=disk, **options)
    x = result.x[FREE]
    assert x @ x + 4 == pytest.approx(5, abs=1e-6)  # the frozen one is 2
    gradient = objective.value_and_grad(result.x)[1][FREE]
    # Lagrange: both gradients are parallel.
    assert abs(gradient @ x) == pytest.approx(
        np.linalg.norm(gradient) * np.linalg.norm(x), rel=1e-6
    )


def test_options_with_an_entry_per_parameter():
    objective, _, exact = restricted_regression()
    minimize, least_squares = fb.optimize.minimize, fb.optimize.least_squares
    result = minimize(objective, START, "BFGS", hess_inv0=np.diag([0.1, -1, -1, 0.1, 0.1]))
    check_whole(result, objective, exact, 1e-4)
    assert result.hess_inv.shape == (3, 3)
    scaled = {"scale": np.arange(1.0, 6.0), "offset": np.zeros(5), "maxfun": 500}
    check_whole(minimize(objective, START, "TNC", **scaled), objective, exact, 1e-3)
    result = minimize(objective, START, "CG", return_all=True)
    assert len(result.allvecs) == result.nit + 1
    assert all(x.shape == (5,) and x[2] == 2.0 for x in result.allvecs)
    for x_scale in (np.arange(1.0, 6.0), "jac", 0.5):
        result = least_squares(objective, START, x_scale=x_scale)
        check_whole(result, objective, exact, 1e-6)
    for sparsity in (np.ones((30, 5)), scipy.sparse.coo_array(np.ones((30, 5)))):
        result = least_squares(objective, START, jac_sparsity=sparsity, bounds=(-9, 9))
        check_whole(result, objective, exact, 1e-6)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("L-BFGS-B", {"bounds": [(0, 1)] * 3}, "bounds has shape (3, 2), expected (5, 2)"),
        ("SLSQP", {"bounds": scipy.optimize.Bounds([0] * 3, 1)}, "bounds has shape (3,)"),
        ("TNC", {"scale": [1, 2, 3]}, "scale has shape (3,), expected (5,)"),
        ("BFGS", {"hess_inv0": np.eye(3)}, "hess_inv0 has shape (3, 3), expected (..., 5)"),
        ("SLSQP", {"constraints": scipy.optimize.LinearConstraint([1, 1, 1])}, "(1, 3), expected"),
        (
            "SLSQP",
            {"constraints": {"type": "eq", "fun": lambda x: x[0], "jac": lambda x: np.ones(3)}},
            "jac of a constraint has shape (3,), expected (..., 5)",
        ),
        ("trf", {"bounds": ([0] * 3, [1] * 3)}, "bounds has shape (3,), expected (5,)"),
        ("trf", {"x_scale": [1, 2, 3]}, "x_scale has shape (3,), expected (5,)"),
    ],
)
def test_entries_for_the_free_ones_alone_are_refused(method, options, message):
    objective, _, _ = restricted_regression()
    solve = fb.optimize.minimize if method in MINIMIZERS else fb.optimize.least_squares
    with pytest.raises(fb.ShapeError) as caught:
        solve(objective, START, method, **options)
    assert message in str(caught.value)
    assert "an entry per parameter, also for the masked and frozen ones" in str(caught.value)


def test_something_must_be_free():
    net = fb.Network(2, fb.Dense(1, trainable=False))
    objective = net.objective(np.eye(2), [1.0, 2.0])
    for solve in (fb.optimize.minimize, fb.optimize.least_squares, fb.optimize.fmincg):
        with pytest.raises(ValueError, match="all 3 parameters of the network are masked or froz"):
            solve(objective, np.zeros(3))
        with pytest.raises(fb.ShapeError, match=r"params has shape \(2,\), expected \(5,\)"):
            solve(restricted_regression()[0], np.zeros(2))


def test_import_does_not_load_scipy():
    code = "import sys, fastbp; fastbp.optimize.fmincg; assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
