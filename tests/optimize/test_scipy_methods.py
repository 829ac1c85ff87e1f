"""`fastbp.optimize.minimize` and `least_squares`: SciPy's methods with exact derivatives."""

from __future__ import annotations

import importlib
import inspect
import itertools

import numpy as np
import pytest
import scipy.optimize
from helpers.problems import (
    bowl,
    classification,
    regression,
    rosenbrock,
    sum_of_squares,
    wood,
)

import fastbp as fb
from fastbp.optimize.scipy_methods import MINIMIZERS

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
