"""Minimisers of networks with masked and frozen parameters: what is free moves, alone."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import scipy.optimize
from helpers.problems import (
    FREE,
    START,
    restricted_regression,
)

import fastbp as fb
from fastbp.optimize.scipy_methods import MINIMIZERS

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
    for result in results:
        x = result if isinstance(result, np.ndarray) else result.x
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
