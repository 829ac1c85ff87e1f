"""Covariance, standard errors and intervals against closed forms, SciPy, and simulation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from helpers.problems import SERIES
from oracles import nist

import fastbp as fb
from fastbp.maths.uncertainty import Parameters, of_jacobian, of_normal_equations


def approx(expected):
    """Equal to the digits that remain after inverting matrices of condition numbers up to 1e5."""
    expected = np.asarray(expected)
    return pytest.approx(expected, rel=1e-10, abs=1e-10 * float(np.abs(expected).max()))


def line_data(rng, n=40, n_out=1):
    X = rng.uniform(-2, 3, (n, 3))
    noise = 0.3 * rng.standard_normal((n, n_out))
    return X, X @ rng.standard_normal((3, n_out)) + 1 + noise


def with_ones(X):
    return np.column_stack([X, np.ones(len(X))])


def solved(net, X, y, method="trf", **options):
    """A fit that stops where no step gains anything."""
    if method == "trf":
        options = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15} | options
    return fb.fit(net, X, y, method=method, seed=0, **{"epochs": 1000} | options)


# Linear regression, whose errors are known in closed form.


@pytest.mark.backend
@pytest.mark.parametrize("loss", ["mse", "half_mse", "sse"])
def test_linear_regression(backend, loss, rng):
    X, y = line_data(rng)
    A = with_ones(X)
    res = solved(fb.Network(3, fb.Dense(1)), X, y, loss=loss)
    r = A @ np.linalg.lstsq(A, y)[0] - y
    s2 = float((r**2).sum()) / 36
    cov = s2 * np.linalg.inv(A.T @ A)
    assert res.covariance() == approx(cov)
    assert res.standard_errors() == approx(np.sqrt(np.diag(cov)))
    result = res.uncertainty
    assert (result.dof, result.n_effective, result.notes) == (36, 4, ())
    assert result.variance == approx(s2)
    assert result.noise == approx([s2**0.5])


@pytest.mark.parametrize("method", ["lm", "trf", "L-BFGS-B", "fmincg", "sgd"])
def test_whatever_the_method(method, rng):
    X, y = line_data(rng)
    A = with_ones(X)
    options = {
        "lm": {},
        "trf": {},
        "L-BFGS-B": {"options": {"ftol": 0, "gtol": 1e-10}},
        "fmincg": {},
        "sgd": {"batch_size": None, "lr": 0.1},
    }[method]
    res = solved(fb.Network(3, fb.Dense(1)), X, y, method, **options)
    r = A @ np.linalg.lstsq(A, y)[0] - y
    assert res.covariance() == approx(float((r**2).sum()) / 36 * np.linalg.inv(A.T @ A))


def test_weights_are_inverse_variances_up_to_a_factor(rng):
    X, y = line_data(rng)
    w = rng.uniform(0.2, 3, 40)
    A, net = with_ones(X), fb.Network(3, fb.Dense(1))
    res = solved(net, X, y, sample_weight=w)
    H = A.T @ (w[:, None] * A)
    beta = np.linalg.solve(H, A.T @ (w[:, None] * y))
    s2 = float((w[:, None] * (A @ beta - y) ** 2).sum()) / 36
    assert res.covariance() == approx(s2 * np.linalg.inv(H))
    assert res.covariance(absolute_sigma=True) == approx(np.linalg.inv(H))
    errors = np.sqrt(np.diag(np.linalg.inv(H)))
    assert res.standard_errors(absolute_sigma=True) == approx(errors)
    again = solved(net, X, y, sample_weight=7 * w)
    assert again.covariance() == approx(res.covariance())


def test_absolute_weights_are_of_raw_targets(rng):
    X, y = line_data(rng, n_out=2)
    w, A = rng.uniform(0.2, 3, 40), with_ones(X)
    res = solved(fb.Network(3, fb.Dense(1)), X, y[:, 0], sample_weight=w, scale="standard")
    expected = np.linalg.inv(A.T @ (w[:, None] * A))
    assert res.covariance(absolute_sigma=True) == approx(expected)
    two = solved(fb.Network(3, fb.Dense(2)), X, y * [1, 5], scale="standard")
    with pytest.raises(ValueError, match=r"scaled each output by its own deviation.*beforehand"):
        two.standard_errors(absolute_sigma=True)


def test_rows_of_weight_0_do_not_count(rng):
    X, y = line_data(rng)
    w = rng.choice([0.0, 1.0], 40)
    net = fb.Network(3, fb.Dense(1))
    some = solved(net, X, y, sample_weight=w)
    without = solved(net, X[w > 0], y[w > 0])
    assert some.uncertainty.dof == np.count_nonzero(w) - 4
    assert some.covariance() == approx(without.covariance())


def test_outputs_have_one_variance_in_common(rng):
    X, y = line_data(rng, n_out=2)
    A = with_ones(X)
    res = solved(fb.Network(3, fb.Dense(2)), X, y)
    r = A @ np.linalg.lstsq(A, y)[0] - y
    s2 = float((r**2).sum()) / (80 - 8)
    expected = np.kron(s2 * np.linalg.inv(A.T @ A), np.eye(2))  # W row-major, then b
    assert res.covariance() == approx(expected)


def test_masked_and_frozen_parameters(rng):
    """The free parameters are those of a regression on the first column and a constant."""
    X, y = line_data(rng)
    layer = fb.Dense(1, mask=[[1], [0], [1]], trainable=[[1], [1], [0]])
    res = solved(fb.Network(3, layer), X, y, params=[0.0, np.nan, 2.0, 0.0])
    A = np.column_stack([X[:, 0], np.ones(40)])
    target = y[:, 0] - 2 * X[:, 2]
    r = A @ np.linalg.lstsq(A, target)[0] - target
    expected = np.zeros((4, 4))
    expected[np.ix_([0, 3], [0, 3])] = r @ r / 38 * np.linalg.inv(A.T @ A)
    assert res.covariance() == approx(expected)
    assert res.uncertainty.dof == 38
    J = np.column_stack([X[:5, 0], np.zeros((5, 2)), np.ones(5)])
    std = res.predict(X[:5], return_std=True)[1]
    assert std[:, 0] == approx(np.sqrt(np.diag(J @ expected @ J.T)))


BOUNDS = {
    "lm": lambda lower, upper: (lower, upper),
    "trf": lambda lower, upper: (lower, upper),
    "dogbox": lambda lower, upper: (lower, upper),
    "L-BFGS-B": lambda lower, upper: [(None if np.isinf(a) else a, None if np.isinf(b) else b)
                                      for a, b in zip(lower, upper, strict=True)],
    "trust-constr": lambda lower, upper: pytest.importorskip("scipy.optimize").Bounds(lower, upper),
}  # fmt: skip


@pytest.mark.parametrize("method", BOUNDS)
def test_parameters_at_a_bound_are_fixed(method, rng):
    X = rng.uniform(-1, 1, (40, 3))
    y = X @ [1.0, 2.0, 3.0] + 0.1 * rng.standard_normal(40)
    lower, upper = np.full(4, -np.inf), np.array([np.inf, 1.5, 10.0, np.inf])
    bounds = BOUNDS[method](lower, upper)
    res = solved(
        fb.Network(3, fb.Dense(1)), X, y, method, bounds=bounds, params=np.zeros(4), tol=1e-12
    )
    # "trust-constr" stops before the bound.
    assert res.params[1] == pytest.approx(1.5, abs=1e-4)
    A = np.column_stack([X[:, 0], X[:, 2], np.ones(40)])
    target = y - res.params[1] * X[:, 1]
    r = A @ np.linalg.lstsq(A, target)[0] - target
    expected = np.zeros((4, 4))
    free = [0, 2, 3]
    expected[np.ix_(free, free)] = r @ r / 37 * np.linalg.inv(A.T @ A)
    assert res.covariance() == approx(expected)
    assert (res.standard_errors() == 0).tolist() == [False, True, False, False]
    assert res.uncertainty.dof == 37


def test_nothing_free_but_at_bounds(rng):
    X, y = line_data(rng)
    net = fb.Network(3, fb.Dense(1, bias=False))
    res = fb.fit(net, X, y + 100 * X.sum(axis=1, keepdims=True), method="L-BFGS-B",
                 bounds=[(0, 1)] * 3, params=np.ones(3))  # fmt: skip
    assert (res.covariance() == 0).all()
    assert (res.uncertainty.dof, res.uncertainty.condition) == (40, 1)
    std = res.predict(X, return_std=True)[1]
    assert (std == 0).all()


# A penalty is a Gaussian prior.


@pytest.mark.parametrize("loss", ["mse", "half_mse", "sse"])
def test_ridge(loss, rng):
    X, y = line_data(rng, n_out=2)
    w = rng.uniform(0.5, 2, 40)
    l2 = 0.3
    res = solved(fb.Network(3, fb.Dense(2)), X, y, loss=loss, l2=l2, sample_weight=w)
    # The objective is scale·(Σ w r² + Σ l2/(2 scale) W²), biases free.
    scale = {"mse": 1 / (2 * w.sum()), "half_mse": 1 / (2 * w.sum()), "sse": 1.0}[loss]
    A = with_ones(X)
    JTJ = A.T @ (w[:, None] * A)
    H = JTJ + np.diag([l2 / (2 * scale)] * 3 + [0.0])
    beta = np.linalg.solve(H, A.T @ (w[:, None] * y))
    assert res.params == approx(beta.ravel())
    gamma = 2 * np.trace(np.linalg.solve(H, JTJ))
    s2 = float((w[:, None] * (A @ beta - y) ** 2).sum()) / (80 - gamma)
    assert res.uncertainty.n_effective == approx(gamma)
    assert res.uncertainty.dof == approx(80 - gamma)
    assert res.covariance() == approx(np.kron(s2 * np.linalg.inv(H), np.eye(2)))


@pytest.mark.parametrize("scale", [None, "standard"])
def test_a_penalty_that_the_fit_has_set(scale, rng):
    """The uncertainty is that of a second fit with the penalty that the first one has set."""
    X, y = curve_data(rng)
    net = fb.Network(2, fb.Dense(6, "tanh"), fb.Dense(1))
    res = fb.fit(net, X, y, method="lm", bayesian=True, scale=scale, seed=0, epochs=500)
    l2 = res.history["l2"][-1]
    assert l2 > 0
    again = fb.fit(net, X, y, method="lm", params=res.params, l2=l2, scale=scale, epochs=500)
    assert res.uncertainty.n_effective == pytest.approx(res.history["n_effective"][-1], rel=1e-2)
    assert res.standard_errors() == pytest.approx(again.standard_errors(), rel=1e-2)
    assert res.uncertainty.notes == ()


@pytest.mark.parametrize("scale", ["standard", "minmax"])
@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_scaled_columns(scale, l2, rng):
    """The penalty is about scaled columns, the covariance about raw ones."""
    X, y = line_data(rng, n_out=2)
    X, y = X * [1e-2, 1, 1e3] + [0, 5, -1e4], y * [1, 30] + [0, 100]
    res = solved(fb.Network(3, fb.Dense(2)), X, y, l2=l2, scale=scale)
    x_scaler, y_scaler = getattr(fb.Scaler, scale)(X), getattr(fb.Scaler, scale)(y)
    A, T = with_ones(x_scaler.transform(X)), y_scaler.transform(y)
    H = A.T @ A + np.diag([l2 * 80 / 2] * 3 + [0.0])
    beta = np.linalg.solve(H, A.T @ T)
    gamma = 2 * np.trace(np.linalg.solve(H, A.T @ A))
    s2 = float(((A @ beta - T) ** 2).sum()) / (80 - gamma)
    # y = shift + scale·([(x - shift)/scale, 1] β), one output after the other.
    fold = np.eye(4)
    fold[:3, :3] = np.diag(1 / x_scaler.scale)
    fold[3, :3] = -x_scaler.shift / x_scaler.scale
    M = np.kron(fold, np.diag(y_scaler.scale))
    expected = M @ np.kron(s2 * np.linalg.inv(H), np.eye(2)) @ M.T
    sizes = np.sqrt(np.diag(expected))
    correlation = res.covariance() / np.outer(sizes, sizes)
    assert correlation == approx(expected / np.outer(sizes, sizes))
    assert res.uncertainty.noise == approx(np.sqrt(s2) * y_scaler.scale)
    new = X[:4] + 1.0
    J = np.kron(with_ones(new), np.eye(2))
    Y, std = res.predict(new, return_std=True)
    assert std.ravel() == approx(np.sqrt(np.diag(J @ expected @ J.T)))
    stats = pytest.importorskip("scipy.stats")
    reach = stats.t.ppf(0.95, 80 - gamma) * np.sqrt(std**2 + s2 * y_scaler.scale**2)
    _, lower, upper = res.predict(new, interval=0.9)
    assert upper - Y == approx(reach)
    assert Y - lower == approx(reach)


# Networks.


def curve_data(rng, n=200):
    X = rng.uniform(-2, 2, (n, 2))
    y = np.sin(2 * X[:, 0]) + 0.5 * X[:, 1] + 0.1 * rng.standard_normal(n)
    return X, y


@pytest.mark.backend
def test_networks_by_their_jacobian(backend, rng):
    X, y = curve_data(rng)
    net = fb.Network(2, fb.Dense(4, "tanh"), fb.Dense(1))
    w = rng.uniform(0.5, 2, 200)
    res = solved(net, X, y, sample_weight=w)
    J = net.jacobian(res.params, X)
    r = res.predict(X)[:, 0] - y
    s2 = w @ r**2 / (200 - 17)
    expected = s2 * np.linalg.inv(J.T @ (w[:, None] * J))
    # The condition number of JᵀJ is 1e5 times the digits of approx.
    assert res.covariance() == pytest.approx(expected, rel=1e-6)
    new = rng.uniform(-2, 2, (30, 2))
    J = net.jacobian(res.params, new)
    Y, std = res.predict(new, return_std=True)
    assert np.array_equal(Y, res.predict(new))
    assert std[:, 0] == pytest.approx(np.sqrt(np.diag(J @ expected @ J.T)), rel=1e-6)


def test_scaling_does_not_matter_without_a_penalty(rng):
    """(JᵀJ)⁻¹ is that of the same model for raw and for scaled data."""
    X, y = curve_data(rng)
    net = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1))
    res = solved(net, 5 * X + 3, 7 * y - 1, scale="standard")
    J = net.jacobian(res.params, 5 * X + 3)
    r = res.predict(5 * X + 3)[:, 0] - (7 * y - 1)
    expected = r @ r / (200 - 13) * np.linalg.inv(J.T @ J)
    sizes = np.sqrt(np.diag(expected))
    assert res.standard_errors() == pytest.approx(sizes, rel=1e-6)
    assert res.covariance() / np.outer(sizes, sizes) == pytest.approx(
        expected / np.outer(sizes, sizes), abs=1e-6
    )


def test_float32(rng):
    X, y = curve_data(rng)
    X, y = X.astype(np.float32), y.astype(np.float32)
    net = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1), dtype="float32")
    res = solved(net, X, y, scale="standard")
    double = net.astype("float64")
    params = res.params.astype(float)
    JTJ, _, sse = double.normal_equations(params, X, y)
    assert res.covariance().dtype == np.float64
    # The fit rounds scaled columns to float32, the covariance does not.
    assert res.covariance() == pytest.approx(sse / (200 - 13) * np.linalg.inv(JTJ), rel=1e-6)
    parts = (*res.predict(X, return_std=True), *res.predict(X, interval=0.5))
    assert {part.dtype for part in parts} == {np.dtype(np.float32)}
    assert res.uncertainty.notes == ()


def test_predictions_in_blocks(rng, monkeypatch):
    X, y = curve_data(rng)
    res = solved(fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1)), X, y)
    at_once = res.predict(X, return_std=True)[1]
    monkeypatch.setattr("fastbp.fitting.covariance.BLOCK_BYTES", 8 * 13 * 7)
    assert res.predict(X.tolist(), return_std=True)[1] == pytest.approx(at_once, rel=1e-14)
    assert res.predict(X[:0], return_std=True)[1].shape == (0, 1)


def test_held_out_rows_do_not_count(rng):
    X, y = line_data(rng)
    res = solved(fb.Network(3, fb.Dense(1)), X, y, validation=0.25)
    A = with_ones(res.data[0])
    assert len(A) == 30 and res.uncertainty.dof == 26
    assert res.covariance() == approx(res.uncertainty.variance * np.linalg.inv(A.T @ A))


# SciPy, and certified values.


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def decay_jacobian(x, a, b, c):
    e = np.exp(-b * x)
    return np.column_stack([e, -a * x * e, np.ones_like(x)])


@pytest.mark.parametrize("absolute_sigma", [False, True])
def test_as_curve_fit(absolute_sigma, rng):
    optimize = pytest.importorskip("scipy.optimize")
    x, sigma = np.linspace(0, 4, 50), rng.uniform(0.05, 0.2, 50)
    y = decay(x, 2.5, 1.3, 0.5) + sigma * rng.standard_normal(50)
    popt, pcov = optimize.curve_fit(
        decay, x, y, [1, 1, 1], sigma, absolute_sigma, jac=decay_jacobian, ftol=1e-15, xtol=1e-15
    )
    J = decay_jacobian(x, *popt) / sigma[:, None]
    r = (decay(x, *popt) - y) / sigma
    result = of_jacobian(J, r @ r / 2, popt, np.ones(3))
    assert result.covariance(absolute_sigma) == pytest.approx(pcov, rel=1e-9)
    assert result.standard_errors(absolute_sigma) == pytest.approx(np.sqrt(np.diag(pcov)), rel=1e-9)
    assert (result.dof, result.notes) == (47, ())


def test_a_network_as_curve_fit(rng):
    optimize = pytest.importorskip("scipy.optimize")
    x, w = np.linspace(-3, 3, 60), rng.uniform(0.5, 2, 60)

    def curve(x, w1, b1, w2, b2):
        return w2 * np.tanh(w1 * x + b1) + b2

    y = curve(x, 0.8, -0.3, 2.0, 1.0) + 0.1 * rng.standard_normal(60)
    start = [1.0, 0.0, 1.0, 0.0]
    net = fb.Network(1, fb.Dense(1, "tanh"), fb.Dense(1))
    res = solved(net, x[:, None], y, params=start, sample_weight=w)
    popt, pcov = optimize.curve_fit(curve, x, y, res.params, w**-0.5, xtol=1e-15, ftol=1e-15)
    assert res.params == pytest.approx(popt, rel=1e-6)
    # Its Jacobian is computed by forward differences.
    assert res.covariance() == pytest.approx(pcov, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", nist.MODELS)
def test_certified_standard_deviations(name):
    """NIST's deviations: 9 of their 11 digits by J, 6 by JᵀJ, from which networks compute them."""
    problem = nist.problem(name)
    b, s = problem.certified, problem.sum_of_squares
    J, n = problem.jacobian(b), len(b)
    result = of_jacobian(J, s / 2, b, problem.starts[0])
    assert result.standard_errors() == pytest.approx(problem.deviations, rel=1e-9)
    assert result.notes == ()
    place = Parameters(b, problem.starts[0], np.arange(n), str, "")
    result = of_normal_equations(J.T @ J, np.zeros(n), np.zeros(n), s, len(J), place)
    assert result.standard_errors() == pytest.approx(problem.deviations, rel=1e-6)


def coverage_bounds(share, n):
    """The share among n independent cases is outside of these bounds with probability 1e-4."""
    stats = pytest.importorskip("scipy.stats")
    return stats.binom.ppf([5e-5, 1 - 5e-5], n, share) / n


@pytest.mark.parametrize("n", [5, 60])
def test_intervals_cover_as_often_as_they_say(n):
    """A line through few rows, for which Student's t matters, and through many."""
    rng, net, hits = np.random.default_rng(5), fb.Network(1, fb.Dense(1)), []
    for _ in range(400):
        x = rng.uniform(0, 1, (n, 1))
        y = 2 * x - 1 + 0.5 * rng.standard_normal((n, 1))
        res = solved(net, x, y, params=np.zeros(2))
        _, lower, upper = res.predict([[0.8]], interval=0.8)
        new = 0.6 + 0.5 * rng.standard_normal()
        hits.append(lower[0, 0] < new < upper[0, 0])
    low, high = coverage_bounds(0.8, len(hits))
    assert low <= np.mean(hits) <= high


def test_deviations_of_a_network_are_those_over_many_samples():
    """The spread of predictions over samples of noise is their standard deviation."""
    rng, net = np.random.default_rng(6), fb.Network(1, fb.Dense(2, "tanh"), fb.Dense(1))
    x, at = np.linspace(-2, 2, 50)[:, None], np.array([[-1.5], [0.0], [0.7], [1.9]])
    truth = np.array([1.5, -1.0, 0.5, 1.0, 1.0, 1.5, 0.0])
    means, deviations, hits = [], [], []
    for _ in range(200):
        y = net.forward(truth, x) + 0.05 * rng.standard_normal((50, 1))
        res = fb.fit(net, x, y, method="lm", params=truth)
        Y, std = res.predict(at, return_std=True)
        _, lower, upper = res.predict(at, interval=0.9)
        new = net.forward(truth, at) + 0.05 * rng.standard_normal((4, 1))
        means.append(Y), deviations.append(std), hits.append((lower < new) & (new < upper))
    # A deviation of 200 normal numbers has a standard error of 1/√400 of itself.
    spread = np.std(means, axis=0, ddof=1)
    assert np.sqrt(np.mean(np.square(deviations), axis=0)) == pytest.approx(
        spread, rel=4 / 400**0.5
    )
    low, high = coverage_bounds(0.9, 800)
    assert low <= np.mean(hits) <= high


# Parameters that are not determined.


def test_equal_columns(rng):
    """Each weight's variance is infinite; their sum is that of a regression without one of them."""
    X, y = line_data(rng)
    twice = np.column_stack([X, X[:, 1]])
    res = solved(fb.Network(4, fb.Dense(1)), twice, y)
    plain = solved(fb.Network(3, fb.Dense(1)), X, y)
    assert res.uncertainty.dof == 36 and res.uncertainty.condition == np.inf
    cov, expected = res.covariance(), plain.covariance()
    assert cov[np.ix_([1, 3], [1, 3])].tolist() == [[np.inf, -np.inf], [-np.inf, np.inf]]
    rest = np.ix_([0, 2, 4], [0, 2, 4])
    assert cov[rest] == approx(expected[np.ix_([0, 2, 3], [0, 2, 3])])
    assert np.isinf(res.standard_errors()).tolist() == [False, True, False, True, False]
    assert res.uncertainty.notes == (
        "infinite for W[1, 0], W[3, 0] of layer 0: JᵀJ is singular, and only combinations of them "
        "are determined; l2, fewer units or more rows would help",
    )
    # Where the columns are equal, deviations of predictions are as without one; elsewhere infinite.
    assert res.predict(twice, return_std=True)[1] == approx(plain.predict(X, return_std=True)[1])
    other = np.array([[0.0, 1.0, 0.0, 2.0]])
    assert np.isinf(res.predict(other, return_std=True)[1]).all()


def test_equal_columns_of_a_function(rng):
    A = rng.standard_normal((30, 2))
    J = np.column_stack([A, A[:, 0] - 2 * A[:, 1], 1e9 * A[:, 1]])
    result = of_jacobian(J, 1.0, np.ones(4), np.ones(4))
    assert (result.n_effective, result.dof) == (2, 28)
    assert np.isinf(result.standard_errors()).all()
    assert result.deviations(J) == approx(
        np.sqrt(2 / 28 * np.diag(A @ np.linalg.inv(A.T @ A) @ A.T))
    )
    assert result.notes[0].startswith("infinite for x[0], x[1], x[2], x[3]: JᵀJ is singular")


def test_what_nothing_depends_on(rng):
    """One unit is linear in all rows, the other is dead: its z is never positive."""
    X, y = line_data(rng)
    plain = solved(fb.Network(3, fb.Dense(1)), X, y)
    net = fb.Network(3, fb.Dense(2, "relu"), fb.Dense(1, trainable=[[0], [1]]))
    W = np.column_stack([plain.params[:3], np.zeros(3)])
    params = net.pack([(W, [100.0, -1.0]), ([[1.0], [1.0]], plain.params[3:] - 100)])
    res = fb.fit(net, X, y, method="L-BFGS-B", params=params)
    dead, constants = [1, 3, 5, 7, 9], [6, 10]
    errors = res.standard_errors()
    assert np.flatnonzero(np.isinf(errors)).tolist() == sorted(dead + constants)
    assert errors[[0, 2, 4]] == approx(plain.standard_errors()[:3])
    assert res.uncertainty.notes == (
        "infinite for W[0, 1], W[1, 1], W[2, 1], b[1] of layer 0, W[1, 0] of layer 1: the "
        "residuals do not depend on them; infinite for b[0] of layer 0, b[0] of layer 1: JᵀJ is "
        "singular, and only combinations of them are determined; l2, fewer units or more rows "
        "would help",
    )
    assert res.predict(X, return_std=True)[1] == approx(plain.predict(X, return_std=True)[1])


def test_constant_columns_of_scaled_data(rng):
    """A weight on a constant and the bias can be distinguished on neither scale."""
    X, y = line_data(rng)
    X[:, 1] = 7.0
    for scale in (None, "standard", "minmax"):
        res = solved(fb.Network(3, fb.Dense(1)), X, y, scale=scale)
        assert np.isinf(res.standard_errors()).tolist() == [False, True, False, True]
        assert "W[1, 0], b[0] of layer 0: JᵀJ is singular" in res.uncertainty.notes[0]
        assert res.covariance()[1, 3] == -np.inf


def test_a_penalty_determines_what_the_rows_do_not(rng):
    X, y = line_data(rng)
    twice = np.column_stack([X, X[:, 1]])
    res = solved(fb.Network(4, fb.Dense(1)), twice, y, l2=0.1)
    assert np.isfinite(res.covariance()).all() and res.uncertainty.notes == ()
    assert res.uncertainty.n_effective < 4


def test_more_parameters_than_residuals(rng):
    X, y = curve_data(rng, 10)
    net = fb.Network(2, fb.Dense(4, "tanh"), fb.Dense(1))
    res = fb.fit(net, X, y, method="trf", seed=0)
    assert res.uncertainty.dof == 0 and np.isnan(res.uncertainty.variance)
    assert not np.isfinite(res.standard_errors()).any()
    assert np.isnan(res.predict(X, return_std=True)[1]).all()
    assert res.uncertainty.notes[0].startswith(
        "not known: 10 residuals leave no degrees of freedom"
    )
    exact = of_jacobian(np.eye(3), 0.0, np.ones(3))
    assert np.isnan(exact.covariance()).all()
    assert exact.covariance(absolute_sigma=True).tolist() == np.eye(3).tolist()


def test_fixed_parameters_of_a_function():
    fixed = np.array([False, True, False])
    result = of_jacobian(np.diag([1.0, 0.0, 2.0]), 0.5, np.ones(3), fixed=fixed)
    assert (result.dof, result.variance) == (1, 1)
    assert result.covariance().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0.25]]
    assert result.notes == ()


def test_derivatives_that_are_not_finite():
    result = of_jacobian(np.array([[1.0, np.inf], [0, 1]]), 1.0, np.ones(2))
    assert np.isnan(result.standard_errors()).all()
    assert result.notes == ("not known: the derivatives are not finite",)


# Gallery: t_k = (c0 - asinh(c0)·exp(2π a k))·b_inv/a.

K = np.arange(1, 7)


def spiral(p):
    c0, b_inv, a = p
    return (c0 - np.arcsinh(c0) * np.exp(2 * np.pi * a * K)) * b_inv / a


def spiral_jacobian(p):
    return np.column_stack([spiral(p + 1e-30j * e).imag / 1e-30 for e in np.eye(3)])


@pytest.mark.parametrize("number", range(5))
def test_runaway_parameters_are_noted(number):
    optimize = pytest.importorskip("scipy.optimize")
    start = np.array([0.1, 1.25, -0.1])
    t = np.array(SERIES[number])
    result = optimize.least_squares(
        lambda p: spiral(p) - t, start, spiral_jacobian, method="lm", max_nfev=5000
    )
    uncertainty = of_jacobian(result.jac, result.cost, result.x, start)
    if number == 0:
        assert uncertainty.notes == ()
        return
    near, away = uncertainty.notes
    assert near.startswith("without meaning for x[0], x[1]: JᵀJ is near-singular (condition number")
    assert near.endswith("; fix one of them, or add data")
    assert f"doubtful for parameters that run away, x[1] from 1.25 to {result.x[1]:.3g}: " in away


def test_ill_conditioned_is_not_meaningless():
    """A polynomial of degree 9: its coefficients are far from 0, and their errors have digits."""
    x = np.linspace(1, 2, 200)
    J = x[:, None] ** np.arange(10)
    noise = 1e-9 * np.random.default_rng(0).standard_normal(200)
    b = np.polynomial.Polynomial.fit(x, J @ np.ones(10) + noise, 9).convert().coef
    result = of_jacobian(J, float(noise @ noise) / 2, b, np.ones(10))
    assert result.condition > 1e15 and result.notes == ()
    # Centred and scaled, the same polynomial is well conditioned: its values have the same errors.
    C = (2 * x[:, None] - 3) ** np.arange(10)
    centred = of_jacobian(C, float(noise @ noise) / 2, np.ones(10))
    assert result.deviations(J) == pytest.approx(centred.deviations(C), rel=1e-5)


def test_missing_steps_to_the_minimum_are_noted(rng):
    X, y = line_data(rng)
    net = fb.Network(3, fb.Dense(1))
    res = solved(net, X, y)
    off = res.params.copy()
    off[2] += 3 * res.standard_errors()[2]
    early = fb.fit(net, X, y, method="sgd", lr=1e-300, epochs=1, params=off)
    # JᵀJ is the same everywhere, s² is larger away from the minimum.
    steps = 3 * res.standard_errors()[2] / early.standard_errors()[2]
    assert early.uncertainty.notes == (
        f"of a point that is not the minimum: a Gauss-Newton step would still move W[2, 0] of "
        f"layer 0 by {steps:.2g} standard errors",
    )


def test_exact_data_are_no_cause_for_words():
    """Residuals and steps are then rounding errors of one size."""
    x = np.linspace(-1, 1, 20)[:, None]
    res = solved(fb.Network(1, fb.Dense(1)), x, 3 * x + 1)
    assert res.uncertainty.notes == ()
    assert res.standard_errors() == pytest.approx(np.zeros(2), abs=1e-9)


# Results without uncertainty.


WITHOUT = {
    "loss": ({"loss": "mae"}, "the fit had loss 'mae', and covariance.*'half_mse' or 'sse'"),
    "l1": ({"l1": 0.1}, "the fit had a penalty l1 or group"),
    "group": ({"group": 0.1}, "the fit had a penalty l1 or group"),
    "robust": ({"method": "lm", "robust": "huber"}, "the fit had robust='huber'"),
    "robust, as an object": ({"method": fb.LM(robust="cauchy")}, "the fit had robust='cauchy'"),
    "constraints": (
        {"method": "SLSQP", "constraints": {"type": "eq", "fun": lambda p: p[0]}},
        "the fit had constraints",
    ),
}


@pytest.mark.parametrize(("options", "message"), WITHOUT.values(), ids=WITHOUT)
def test_what_is_not_least_squares(options, message, rng):
    X, y = line_data(rng)
    res = fb.fit(fb.Network(3, fb.Dense(1)), X, y, epochs=3, **options)
    asked = [
        res.covariance,
        res.standard_errors,
        lambda: res.predict(X, return_std=True),
        lambda: res.predict(X, interval=0.5),
    ]
    for question in asked:
        with pytest.raises(ValueError, match=message):
            question()
    assert res.predict(X).shape == (40, 1)
    assert "noise" not in res.summary()


def test_networks_that_are_too_large_raise_before_the_fit():
    net = fb.Network(1000, fb.Dense(2000, "tanh"), fb.Dense(1))
    res = fb.fit(net, np.ones((1, 1000)), [1.0], epochs=1, params=np.zeros(net.n_params))
    with pytest.raises(
        MemoryError, match=r"of 2004001 free parameters needs about 2.39e\+05 GiB for"
    ):
        res.covariance()
    assert "noise" not in res.summary()


def test_pickled_results(rng):
    X, y = line_data(rng)
    res = solved(fb.Network(3, fb.Dense(1)), X, y, scale="standard")
    copy = pickle.loads(pickle.dumps(res))
    with pytest.raises(ValueError, match=r"not kept in files; ask it for res\.uncertainty before"):
        copy.covariance()
    assert "noise" not in copy.summary()
    expected = res.covariance()
    copy = pickle.loads(pickle.dumps(res))
    assert copy.data is None
    assert np.array_equal(copy.covariance(), expected)
    assert np.array_equal(copy.predict(X, interval=0.9)[1], res.predict(X, interval=0.9)[1])
    assert "noise" in copy.summary()


WRONG_INTERVALS = {
    "95": (95, ValueError, r"interval is 95, expected a probability in \(0, 1\), such as 0.95"),
    "0": (0.0, ValueError, "interval is 0"),
    "nan": (np.nan, ValueError, "interval is nan"),
    "True": (True, ValueError, "interval is 1"),
    "word": ("wide", TypeError, "interval is 'wide', expected a number"),
}


@pytest.mark.parametrize(
    ("value", "error", "message"), WRONG_INTERVALS.values(), ids=WRONG_INTERVALS
)
def test_wrong_intervals(value, error, message, rng):
    X, y = line_data(rng)
    res = solved(fb.Network(3, fb.Dense(1)), X, y)
    with pytest.raises(error, match=message):
        res.predict(X, interval=value)


def test_one_question_at_a_time(rng):
    X, y = line_data(rng)
    res = solved(fb.Network(3, fb.Dense(1)), X, y)
    with pytest.raises(ValueError, match="ask for them one by one"):
        res.predict(X, return_std=True, interval=0.9)
    with pytest.raises(fb.ShapeError, match=r"X has shape \(40, 2\)"):
        res.predict(X[:, :2], return_std=True)


# The summary.


def test_summary(rng):
    X, y = line_data(rng, n_out=6)
    twice = np.column_stack([X, X[:, 1]])
    res = solved(fb.Network(4, fb.Dense(6)), twice, y)
    text = res.summary()
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    s = f"{res.uncertainty.variance**0.5:.4g}"
    assert f"noise {s}, {s}, {s}, {s}, ... (standard deviation; 216 degrees of freedom, 24" in words
    assert "standard errors infinite for W[1, 0], W[1, 1], W[1, 2], W[1, 3], W[1, 4] of" in words
    assert "and 7 more: JᵀJ is singular" in words


def test_summary_takes_no_long_time(rng, monkeypatch):
    X, y = line_data(rng)
    res = solved(fb.Network(3, fb.Dense(1)), X, y)
    monkeypatch.setattr("fastbp.reports.summaries.QUICK", 100.0)
    assert "noise" not in res.summary()
    assert res.covariance().shape == (4, 4)
    assert "noise" in res.summary()  # it is known now
