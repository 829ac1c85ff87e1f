"""Levenberg and Marquardt's method on functions: reference problems, options, errors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings, strategies as st
from oracles import mgh, nist

import fastbp as fb
from fastbp.maths.linear_models import NormalModel, TallModel, WideModel

lm = fb.optimize.levenberg_marquardt


def decay(t=None):
    """y = a·exp(-bt) through points that it fits: a = 3, b = 0.5."""
    t = np.arange(6.0) if t is None else t
    y = 3 * np.exp(-0.5 * t)
    return (
        lambda x: x[0] * np.exp(-x[1] * t) - y,
        lambda x: np.column_stack([np.exp(-x[1] * t), -t * x[0] * np.exp(-x[1] * t)]),
    )


# The collections.


@pytest.mark.parametrize("name", nist.MODELS)
def test_nist_models(name):
    problem = nist.problem(name)
    b = problem.certified
    steps = 1j * 1e-30 * np.eye(len(b))
    exact = np.stack([problem.residuals(b + step).imag / 1e-30 for step in steps], axis=-1)
    np.testing.assert_allclose(
        problem.jacobian(b), exact, rtol=1e-10, atol=1e-13 * abs(exact).max()
    )
    if name != "Lanczos1":  # its residuals are rounding of the parameters' 11 digits
        assert np.sum(problem.residuals(b) ** 2) == pytest.approx(problem.sum_of_squares, rel=1e-9)


@pytest.mark.parametrize("start", (0, 1))
@pytest.mark.parametrize("name", nist.MODELS)
def test_nist(name, start):
    problem = nist.problem(name)
    with np.errstate(all="ignore"):
        result = lm(problem.residuals, problem.starts[start], problem.jacobian)
    assert problem.digits(result.x) >= 6
    assert result.success
    if name != "Lanczos1":
        assert 2 * result.cost == pytest.approx(problem.sum_of_squares, rel=1e-9)


def test_nist_by_differences():
    reached = 0
    for name in nist.MODELS:
        problem = nist.problem(name)
        for start in problem.starts:
            with np.errstate(all="ignore"):
                reached += problem.digits(lm(problem.residuals, start).x) >= 6
    assert reached == 54


@pytest.mark.parametrize("name", nist.MODELS)
def test_nist_standard_errors(name):
    problem = nist.problem(name)
    result = lm(problem.residuals, problem.certified, problem.jacobian)
    if name == "Lanczos1":  # exact data: its certified errors are those of other arithmetic
        assert (result.standard_errors < 1e-9).all()
    else:
        # Certified to 11 digits, as are the parameters; at most 3 of them go into conditioning.
        np.testing.assert_allclose(result.standard_errors, problem.deviations, rtol=1e-8)


def reaches(value, minima):
    return any(
        low * (1 - 2e-5) - 1e-20 <= value <= low * (1 + 2e-5) + (1e-14 if low == 0 else 0)
        for low in minima
    )


@pytest.mark.parametrize("name", mgh.MGH)
def test_more_garbow_hillstrom(name):
    problem = mgh.MGH[name]
    for start in problem.starts:
        result = lm(problem.residuals, start, problem.jacobian)
        assert reaches(2 * result.cost, problem.minima)


def test_more_minima_than_minpack():
    """From the standard starts; SciPy's method refuses fewer residuals than parameters."""
    ours = theirs = 0
    for problem in mgh.MGH.values():
        for start in problem.starts:
            ours += reaches(2 * lm(problem.residuals, start, problem.jacobian).cost, problem.minima)
            if len(problem.residuals(start)) < len(start):
                continue
            tight = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
            result = scipy.optimize.least_squares(
                problem.residuals, start, problem.jacobian, method="lm", **tight
            )
            theirs += reaches(2 * result.cost, problem.minima)
    assert ours >= theirs


# The linear algebra.


@pytest.mark.parametrize("shape", [(20, 7), (7, 20), (9, 9)])
@pytest.mark.parametrize("damping", [1.0, 1e-6, 1e-12])
def test_damped_equations(shape, damping):
    rng = np.random.default_rng(0)
    J, r, v = rng.normal(size=shape), rng.normal(size=shape[0]), rng.normal(size=shape[1])
    d = damping * rng.uniform(1, 2, shape[1])
    model = (TallModel if shape[0] >= shape[1] else WideModel)(J, r, lambda step: r + J @ step)
    x = model.damped(d)(J.T @ r)
    augmented = np.vstack([J, np.diag(np.sqrt(d))])
    exact, *_ = np.linalg.lstsq(augmented, np.concatenate([r, np.zeros(len(d))]), rcond=None)
    # Rounding of Jᵀr, over d, remains where J is 0 and changes no residual.
    lost = 1e3 * np.finfo(float).eps * np.linalg.norm(J.T @ r)
    assert np.linalg.norm(J @ (x - exact)) < lost
    assert np.linalg.norm(x - exact) < lost / (d.min() if shape[0] < shape[1] else 1.0)
    # With what a prior adds, which no row of J makes, x is as long as v/d: backward errors are.
    u = J.T @ r + v
    x = model.damped(d)(u)
    back = augmented.T @ (augmented @ x) - u
    assert np.linalg.norm(back) < 1e3 * np.finfo(float).eps * np.linalg.norm(
        J
    ) ** 2 * np.linalg.norm(x)
    np.testing.assert_allclose(model.product(v), J.T @ (J @ v), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(model.JTJ, J.T @ J, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(model.diagonal, np.square(J).sum(axis=0), rtol=1e-13)
    np.testing.assert_allclose(model.jtr_at(v), J.T @ (r + J @ v), rtol=1e-10, atol=1e-10)


def test_singular_equations():
    """Equal columns: a factor of JᵀJ has lost all digits, one of J has not."""
    rng = np.random.default_rng(0)
    column, r = rng.normal(size=(30, 1)), rng.normal(size=30)
    J = np.hstack([column, column + 1e-9 * rng.normal(size=(30, 1))])
    d = np.full(2, 1e-14)
    x = TallModel(J, r, lambda step: r).damped(d)(J.T @ r)
    exact, *_ = np.linalg.lstsq(
        np.vstack([J, np.diag(np.sqrt(d))]), np.append(r, [0, 0]), rcond=None
    )
    np.testing.assert_allclose(x.sum(), exact.sum(), rtol=1e-6)
    singular = NormalModel(np.ones((2, 2)), np.ones(2), lambda step: step)
    assert singular.damped(np.full(2, 1e-30)) is None


# What it returns.


def test_result():
    fun, jac = decay()
    x0 = np.array([1.0, 0.0])
    result = lm(fun, x0, jac)
    assert result.success and result.status in (1, 2, 3) and "Converged" in result.message
    np.testing.assert_allclose(result.x, [3, 0.5], rtol=1e-12)
    np.testing.assert_array_equal(x0, [1, 0])
    np.testing.assert_array_equal(result.fun, fun(result.x))
    np.testing.assert_array_equal(result.jac, jac(result.x))
    assert result.cost == pytest.approx(np.sum(result.fun**2) / 2)
    np.testing.assert_allclose(result.grad, result.jac.T @ result.fun, atol=1e-14)
    assert result.optimality == np.abs(result.grad).max()
    history = result.history
    assert {len(history[name]) for name in ("cost", "mu", "rho", "gradient")} == {result.nit + 1}
    assert (np.diff(history["cost"])[:-1] < 0).all() and history["cost"][-1] == result.cost
    assert np.isnan(history["mu"][0]) and (history["mu"][1:] > 0).all()
    assert history["mu"][1] == 1e-3 and (history["rho"][1:-1] > 0).all()


def test_nothing_is_computed_twice():
    fun, jac = decay()
    seen = {"fun": [], "jac": []}

    def counted(name, function):
        def counting(x):
            seen[name].append(x.tobytes())
            return function(x)

        return counting

    result = lm(counted("fun", fun), [1.0, 0.0], counted("jac", jac))
    for name, count in (("fun", result.nfev + 1), ("jac", result.njev)):
        assert len(set(seen[name])) == len(seen[name]) <= count


def test_linear_problem_in_few_steps():
    rng = np.random.default_rng(3)
    A, b = rng.normal(size=(30, 4)), rng.normal(size=30)
    result = lm(lambda x: A @ x - b, np.zeros(4), lambda x: A)
    exact, *_ = np.linalg.lstsq(A, b, rcond=None)
    np.testing.assert_allclose(result.x, exact, rtol=1e-10)
    assert result.nit <= 6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_units_do_not_matter(seed):
    """Other units of the parameters, powers of two, give the same steps exactly."""
    fun, jac = decay()
    units = 2.0 ** np.random.default_rng(seed).integers(-20, 20, 2)
    plain = lm(fun, [1.0, 0.25], jac, maxiter=5)
    scaled = lm(
        lambda x: fun(x * units), np.array([1.0, 0.25]) / units, lambda x: jac(x * units) * units,
        maxiter=5,
    )  # fmt: skip
    np.testing.assert_array_equal(scaled.x * units, plain.x)


def test_fewer_residuals_than_parameters():
    result = lm(lambda x: np.array([x @ x - 4, x[0] * x[1] - 1]), [1.0, 2.0, 3.0, 4.0])
    assert result.cost < 1e-20 and result.success


# Options.


@pytest.mark.parametrize("jac", [None, "2-point", "3-point"])
def test_differences(jac):
    fun, exact = decay()
    result = lm(fun, [1.0, 0.0], jac)
    np.testing.assert_allclose(result.x, [3, 0.5], rtol=1e-8)
    np.testing.assert_allclose(result.jac, exact(result.x), rtol=1e-6, atol=1e-8)


def test_differences_stay_within_bounds():
    fun, _ = decay()

    def guarded(x):
        assert (x >= [0, 0.6]).all() and (x <= [2.5, 1]).all()
        return fun(x)

    result = lm(guarded, [2.5, 0.6], bounds=([0, 0.6], [2.5, 1]))
    assert result.x[1] == 0.6 and result.active_mask[1] == -1


@pytest.mark.parametrize("form", ["pair", "Bounds", "numbers"])
def test_bounds(form):
    fun, jac = decay()
    pair = ([0.0, 0.0], [2.0, np.inf])
    bounds = {"pair": pair, "Bounds": scipy.optimize.Bounds(*pair), "numbers": (0.0, 2.0)}[form]
    result = lm(fun, [1.0, 0.1], jac, bounds=bounds)
    best = scipy.optimize.minimize_scalar(
        lambda b: np.sum(fun([2.0, b]) ** 2), (0.1, 0.4), tol=1e-12
    )
    np.testing.assert_allclose(result.x, [2, best.x], rtol=1e-6)
    assert result.x[0] == 2 and result.active_mask.tolist() == [1, 0]
    assert result.success and result.grad[0] == 0 and result.standard_errors[0] == 0


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy"])
def test_robust_losses(loss):
    rng = np.random.default_rng(0)
    t = np.linspace(0, 4, 40)
    y = 3 * np.exp(-0.7 * t) + 0.02 * rng.normal(size=40)
    y[::7] += 2
    fun = lambda x: x[0] * np.exp(-x[1] * t) - y  # noqa: E731
    ours = lm(fun, [1.0, 0.5], loss=loss, f_scale=0.05)
    theirs = scipy.optimize.least_squares(
        fun, [1.0, 0.5], loss=loss, f_scale=0.05, xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    assert ours.cost <= theirs.cost * (1 + 1e-9)
    np.testing.assert_allclose(ours.x, [3, 0.7], rtol=0.1)
    assert "standard_errors" not in ours


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"maxiter": 2}, 0, "maxiter"),
        ({"goal": 0.1}, 4, "goal"),
        ({"min_grad": 0.5}, 1, "gradient"),
        ({"callback": lambda xk: True}, -2, "callback"),
    ],
    ids=["maxiter", "goal", "min_grad", "callback"],
)
def test_ends(options, status, words):
    fun, jac = decay()
    result = lm(fun, [1.0, 0.0], jac, **options)
    assert result.status == status and words in result.message
    assert result.success == (status > 0)


def test_fixed_factors_of_mu():
    fun, jac = decay()
    result = lm(fun, [1.0, 0.0], jac, mu=1e-2, mu_dec=0.1, mu_inc=10, maxiter=4)
    mu = result.history["mu"][1:]
    np.testing.assert_allclose(np.log10(mu), np.round(np.log10(mu)), atol=1e-9)


def test_callback_is_told():
    fun, jac = decay()
    seen = []

    def callback(intermediate_result):
        seen.append((intermediate_result.x, intermediate_result.fun))

    result = lm(fun, [1.0, 0.0], jac, callback=callback)
    assert len(seen) == result.nit
    np.testing.assert_array_equal([cost for _, cost in seen], result.history["cost"][1:])
    np.testing.assert_array_equal(seen[-1][0], result.x)


def test_wrong_jacobian_is_told():
    fun, jac = decay()
    for mu_max in (1.0, 1e16):
        result = lm(fun, [1.0, 0.2], lambda x: -jac(x), mu_max=mu_max)
        assert not result.success and result.status == -1
        assert "check_grad" in result.message and f"mu_max, {mu_max:g}" in result.message


def test_walls_are_backed_off_from():
    """Beyond x = 1 the residuals are NaN, and the first step leads there."""
    with np.errstate(invalid="ignore"):
        result = lm(lambda x: np.array([np.sqrt(1 - x[0]) - 0.1]), [-30.0], mu=1e-8)
    np.testing.assert_allclose(result.x, 0.99, rtol=1e-9)


# Networks' objectives.


def test_objective():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    net = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(1), dtype="float64")
    obj, p0 = net.objective(X, y, l2=0.1), net.init(seed=0)
    result = lm(obj, p0)
    theirs = fb.optimize.least_squares(obj, p0, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert result.success and result.cost <= theirs.cost * (1 + 1e-8)
    np.testing.assert_allclose(np.sum(result.fun**2) / 2, result.cost, rtol=1e-12)
    with pytest.raises(TypeError, match="brings its own"):
        lm(obj, p0, lambda x: x)


def test_objective_with_bounds_and_fixed_parameters():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 2)), rng.normal(size=40)
    net = fb.Network(2, fb.Dense(1, trainable=[[1], [0]]), dtype="float64")
    bounds = ([-np.inf, -1, 5], np.inf)  # the bias would be near 0
    result = lm(net.objective(X, y), [0.0, 2.0, 6.0], bounds=bounds)
    free, *_ = np.linalg.lstsq(X[:, :1], y - 2 * X[:, 1] - 5)
    assert result.success and result.x[1:].tolist() == [2, 5]
    np.testing.assert_allclose(result.x[0], free[0], rtol=1e-9)
    assert result.active_mask.tolist() == [0, 0, -1]


def test_a_jacobian_that_overflows_is_not_gone_to():
    """The first step leads where the residual is finite and its derivative is not."""
    seen = []

    def jac(x):
        seen.append(float(x[0]))
        return np.array([[np.inf if x[0] > 0.9 else 1.0]])

    result = lm(lambda x: x - 1, [0.0], jac, mu=1e-8)
    assert max(seen) > 0.9 >= result.x[0] and np.isfinite(result.jac).all()
    np.testing.assert_array_equal(result.fun, result.x - 1)


# Bad input.


@pytest.mark.parametrize(
    ("fun", "jac", "error", "words"),
    [
        (lambda x: float(x @ x), None, fb.ShapeError, "a number, expected the vector"),
        (lambda x: np.ones((2, 2)), None, fb.ShapeError, r"shape \(2, 2\)"),
        (lambda x: np.array([np.nan, 1.0]), None, fb.NonFiniteError, "residuals at x0"),
        (lambda x: np.ones(3), lambda x: np.ones((2, 3)), fb.ShapeError, "transposed"),
        (lambda x: np.ones(3), lambda x: np.ones((3, 4)), fb.ShapeError, r"expected \(3, 2\)"),
        (lambda x: np.ones(3), lambda x: np.full((3, 2), np.inf), fb.NonFiniteError, "Jacobian"),
        (lambda x: np.ones(3) * 1j, None, TypeError, "complex"),
        (lambda x: np.ones(3), "4-point", ValueError, "'2-point' or '3-point'"),
        (3, None, TypeError, "expected a function"),
    ],
    ids=["sum", "matrix", "nan", "transposed", "columns", "inf", "complex", "jac", "fun"],
)
def test_bad_functions(fun, jac, error, words):
    with pytest.raises(error, match=words):
        lm(fun, [1.0, 2.0], jac)


def test_changing_length():
    lengths = iter([3, 4, 4, 4])
    with pytest.raises(fb.ShapeError, match="4 residuals, expected 3"):
        lm(lambda x: np.ones(next(lengths)) * x[0], [1.0], lambda x: np.ones((3, 1)))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"bounds": ([0, 0], [0, 1])}, ValueError, "is not below"),
        ({"bounds": ([2, 0], [3, 1])}, ValueError, "enclose x0"),
        ({"bounds": ([0, 0, 0], 1)}, fb.ShapeError, r"\(3,\), expected a number or \(2,\)"),
        ({"bounds": 3}, fb.ShapeError, "pair"),
        ({"loss": "hubber"}, ValueError, "did you mean 'huber'"),
        ({"loss": "huber", "f_scale": 0}, ValueError, "f_scale"),
        ({"mu": 0}, ValueError, "mu is 0.0, expected a number > 0"),
        ({"mu": None}, TypeError, "mu is None, expected a number > 0"),
        ({"ftol": None}, TypeError, "ftol is None, expected a number >= 0"),
        ({"mu_dec": 2}, ValueError, "between 0 and 1"),
        ({"mu_inc": 0.5}, ValueError, "> 1"),
        ({"xtol": -1}, ValueError, ">= 0"),
        ({"maxiter": 0}, ValueError, "maxiter"),
        ({"mu": "big"}, TypeError, "mu"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_options(options, error, words):
    fun, jac = decay()
    with pytest.raises(error, match=words):
        lm(fun, [1.0, 0.5], jac, **options)


@pytest.mark.parametrize("x0", [[], [[1.0, 2.0]], [np.nan, 1.0], [1j, 2.0]], ids=str)
def test_bad_starts(x0):
    with pytest.raises((TypeError, ValueError), match="x0"):
        lm(decay()[0], x0)
