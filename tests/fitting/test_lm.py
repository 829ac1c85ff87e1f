"""`fit(method="lm")`: Levenberg-Marquardt on networks, with limits, states and bayesian l2."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize

import fastbp as fb

pytestmark = pytest.mark.backend


def wave(n=60, seed=0, noise=0.1):
    """Outputs of a network like `small` with noise, so that the best parameters are finite."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, (n, 2))
    y = 2 * np.tanh(2 * X[:, 0] + 1) + np.tanh(X[:, 1]) - 3 * np.tanh(X[:, 0] - X[:, 1] - 0.5)
    return X, y + noise * rng.normal(size=n)


def small(**layer):
    return fb.Network(2, fb.Dense(3, "tanh", **layer), fb.Dense(1), dtype="float64")


def fitted(net, X, y, backend, **options):
    arguments = {"method": "lm", "seed": 0, "epochs": 300} | options
    return fb.fit(net, X, y, backend=backend, **arguments)


# Where it arrives.


def test_a_line_in_three_steps(backend):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3))
    y = X @ [1, -2, 0.5] + 3 + rng.normal(size=30)
    res = fitted(fb.Network(3, fb.Dense(1), dtype="float64"), X, y, backend, epochs=3)
    exact, *_ = np.linalg.lstsq(np.column_stack([X, np.ones(30)]), y, rcond=None)
    np.testing.assert_allclose(res.params, exact, rtol=1e-9)


def test_a_minimum(backend):
    X, y = wave()
    res = fitted(small(), X, y, backend)
    assert res.success and np.abs(res.grad).max() < 1e-7
    names = ("mu", "rho", "gradient")
    assert {len(res.history[name]) for name in ("loss", *names)} == {res.nit}
    losses = res.history["loss"]  # the last step may gain less than can be seen
    assert (np.diff(losses)[:-1] < 0).all() and losses[-1] <= losses[-2] * (1 + 2e-15)
    assert res.history["loss"][-1] == pytest.approx(res.fun, rel=1e-12)
    assert res.nfev >= res.nit and res.method == "lm"


def test_same_on_all_backends(backend):
    X, y = wave(40)
    res = fitted(small(), X, y, backend, epochs=10)
    same = fitted(small(), X, y, "numpy", epochs=10)
    np.testing.assert_allclose(res.params, same.params, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(res.history["mu"], same.history["mu"], rtol=1e-5)


def test_float32_networks_are_fitted_in_float64(backend):
    X, y = wave()
    net = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1), dtype="float32")
    res = fitted(net, X.astype("f4"), y.astype("f4"), backend, params=net.init(seed=0))
    double = net.astype("float64")
    same = fitted(
        double, X.astype("f4"), y.astype("f4"), backend, params=net.init(seed=0).astype(float)
    )
    assert res.params.dtype == np.float32
    np.testing.assert_allclose(res.params, same.params, rtol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "half_mse", "sse"])
def test_l2_is_a_prior(backend, loss):
    """Ridge regression, in closed form."""
    rng = np.random.default_rng(1)
    X, w = rng.normal(size=(25, 3)), rng.uniform(0.5, 2, 25)
    y = X @ [1, -2, 0.5] + 3 + rng.normal(size=25)
    net = fb.Network(3, fb.Dense(1), dtype="float64")
    res = fitted(net, X, y, backend, loss=loss, l2=0.3, sample_weight=w)
    scale = {"mse": w.sum(), "half_mse": 2 * w.sum(), "sse": 1}[loss]
    A = np.column_stack([X, np.ones(25)])
    prior = np.diag([0.3 * scale / 2] * 3 + [0])
    exact = np.linalg.solve(A.T @ (w[:, None] * A) + prior, A.T @ (w * y))
    np.testing.assert_allclose(res.params, exact, rtol=1e-9)


@pytest.mark.parametrize("bend", [True, False])
@pytest.mark.parametrize("uniform", [True, False])
def test_scales_and_bends(backend, bend, uniform):
    X, y = wave()
    res = fitted(small(), X, y, backend, bend=bend, uniform=uniform)
    assert res.success and np.abs(res.grad).max() < 1e-6


def test_several_outputs(backend):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (30, 2))
    Y = np.column_stack([X[:, 0] * X[:, 1], np.sin(X[:, 0]), X[:, 1] ** 2])
    net = fb.Network(2, fb.Dense(5, "sigmoid"), fb.Dense(3), dtype="float64")
    res = fitted(net, X, Y, backend, goal=1e-4)
    assert res.success and res.fun <= 1e-4


def test_fewer_residuals_than_parameters(backend):
    """JJᵀ is smaller than JᵀJ; the steps are the same."""
    X, y = wave(8)
    net = fb.Network(2, fb.Dense(6, "tanh"), fb.Dense(1), dtype="float64")
    res = fitted(net, X, y, backend, goal=1e-12)
    assert res.success and res.fun <= 1e-12
    p0 = net.init(seed=3)
    wide = fitted(net, X, y, backend, params=p0, epochs=4, sample_weight=np.full(8, 4.0))
    twice = fitted(net, np.tile(X, (4, 1)), np.tile(y, 4), backend, params=p0, epochs=4)
    np.testing.assert_allclose(wide.params, twice.params, rtol=1e-6)


def test_masked_and_frozen_parameters(backend):
    X, y = wave()
    layer = fb.Dense(3, "tanh", mask=[[1, 0, 1], [1, 1, 1]], trainable=[[1, 1, 0], [1, 1, 1]])
    net = fb.Network(2, layer, fb.Dense(1), dtype="float64")
    p0 = net.init(seed=0)
    p0[1] = np.nan  # masked
    res = fitted(net, X, y, backend, params=p0)
    fixed = np.setdiff1d(np.arange(net.n_params), net.free)
    np.testing.assert_array_equal(res.params[fixed], p0[fixed])
    assert res.success and np.abs(res.grad).max() < 1e-6


@pytest.mark.parametrize("wide", [False, True])
def test_bounds(backend, wide):
    X, y = wave(10 if wide else 60)
    net, limit = small(), 2.0
    res = fitted(
        net, X, y, backend, bounds=(-limit, limit), params=np.clip(net.init(seed=0), -0.5, 0.5)
    )
    assert np.abs(res.params).max() <= limit
    inner = np.abs(res.params) < limit
    assert not inner.all() and (res.grad[~inner] * res.params[~inner] <= 0).all()
    if not wide:  # where a valley of minima is not
        assert np.abs(res.grad[inner]).max() < 1e-5
    same = fitted(
        net,
        X,
        y,
        "numpy",
        method="trf",
        bounds=(np.full(13, -limit), np.full(13, limit)),
        params=res.params,
    )
    assert res.fun <= same.fun + 1e-6


def test_starts_outside_the_bounds_are_moved(backend):
    X, y = wave()
    res = fitted(small(), X, y, backend, bounds=(0.5, 0.6), params=np.zeros(13), epochs=3)
    assert (res.params >= 0.5).all() and (res.params <= 0.6).all()


@pytest.mark.parametrize("robust", ["huber", "soft_l1", "cauchy"])
def test_robust_losses(backend, robust):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 2))
    y = X @ [1, -2] + 3 + 0.05 * rng.normal(size=80)
    y[::9] += 5
    net = fb.Network(2, fb.Dense(1), dtype="float64")
    res = fitted(net, X, y, backend, robust=robust, f_scale=0.2)
    theirs = scipy.optimize.least_squares(
        lambda p: X @ p[:2] + p[2] - y, [0, 0, 0], loss=robust, f_scale=0.2, xtol=1e-14, ftol=1e-14,
        gtol=1e-14,
    )  # fmt: skip
    np.testing.assert_allclose(res.params, theirs.x, rtol=1e-5)
    assert res.history["loss"][-1] == pytest.approx(2 * theirs.cost / 80, rel=1e-8)


# What fit offers.


def test_scale(backend):
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 1000, (80, 2))
    y = 5000 + 100 * np.sin(X[:, 0] / 150) + X[:, 1]
    res = fitted(small(), X, y, backend, scale="standard", epochs=100)
    assert res.score(X, y) > 0.99


def test_validation_and_patience(backend):
    X, y = wave(60, noise=0.5)
    net = fb.Network(2, fb.Dense(10, "tanh"), fb.Dense(1), dtype="float64")
    res = fitted(net, X, y, backend, validation=0.3, patience=5, epochs=200)
    held = res.history["val_loss"]
    assert len(held) == res.nit < 200 and res.nit - 1 - held.argmin() == 5
    same = fitted(net, X, y, backend, validation=0.3, max_fail=5, epochs=200)
    np.testing.assert_array_equal(same.params, res.params)


def test_callbacks_goal_and_time(backend):
    X, y = wave()
    seen = []
    res = fitted(small(), X, y, backend, callbacks=lambda e: seen.append((e.loss, e.params)))
    np.testing.assert_array_equal([loss for loss, _ in seen], res.history["loss"])
    np.testing.assert_array_equal(seen[-1][1], res.params)
    stopped = fitted(small(), X, y, backend, callbacks=lambda e: e.epoch == 3)
    assert stopped.nit == 3 and stopped.status == 5
    reached = fitted(small(), X, y, backend, goal=0.1)
    losses = reached.history["loss"]
    assert losses[-1] <= 0.1 < losses[-2] and "goal" in reached.message
    over = fitted(small(), X, y, backend, time=1e-9)
    assert over.nit == 1 and over.status == 1 and "max_time" in over.message


def test_watched_steps_are_the_same(backend):
    X, y = wave()
    res = fitted(small(), X, y, backend)
    watched = fitted(small(), X, y, backend, callbacks=lambda e: None)
    np.testing.assert_array_equal(res.params, watched.params)
    for name in res.history:
        np.testing.assert_array_equal(res.history[name], watched.history[name])


@pytest.mark.parametrize("options", [{}, {"bounds": (-2, 2)}, {"bayesian": True}], ids=str)
def test_going_on(backend, options):
    X, y = wave()
    whole = fitted(small(), X, y, backend, epochs=12, **options)
    first = fitted(small(), X, y, backend, epochs=5, **options)
    again = fitted(small(), X, y, backend, epochs=12, state=first.state, **options)
    np.testing.assert_array_equal(again.params, whole.params)
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])
    assert (again.nit, again.nfev) == (whole.nit, whole.nfev)


@pytest.mark.parametrize("method", ["lm", "scg"])
def test_going_on_after_convergence_keeps_the_parameters(backend, method):
    X = np.linspace(-1, 1, 20).reshape(-1, 1)
    y, net = 3 * X[:, 0] + 1, fb.Network(1, fb.Dense(1), dtype="float64")
    res = fitted(net, X, y, backend, method=method)
    again = fitted(net, X, y, backend, method=method, epochs=400, state=res.state)
    assert res.success and again.success
    np.testing.assert_allclose(again.params, [3, 1], rtol=1e-6)


def test_threads_change_nothing(backend):
    X, y = wave(700)
    one = fitted(small(), X, y, backend, epochs=4)
    three = fitted(small(), X, y, backend, epochs=4, threads=3)
    np.testing.assert_array_equal(one.params, three.params)


def test_epochs_are_over(backend):
    X, y = wave()
    res = fitted(small(), X, y, backend, epochs=3)
    assert res.nit == 3 and res.status == 1 and "epochs" in res.message


def test_options_as_an_object(backend):
    X, y = wave()
    named = fitted(small(), X, y, backend, mu=0.5, bend=False)
    whole = fitted(small(), X, y, backend, method=fb.LM(mu=0.5, bend=False))
    np.testing.assert_array_equal(named.params, whole.params)


# Bayesian regularisation.


def test_bayesian_fixed_point(backend):
    """l2 is the ratio that the evidence asks for, by explicit matrices at the result."""
    X, y = wave(50, noise=0.3)
    net = small()
    res = fitted(net, X, y, backend, bayesian=True)
    assert res.success
    JTJ, _, sse = net.normal_equations(res.params, X, y)
    weights = np.ones(net.n_params)
    for _, b in net.unpack(weights):
        b[:] = 0
    ratio = res.history["l2"][-1] * 50 / 2
    inverse = np.linalg.inv(JTJ + np.diag(ratio * weights))
    effective = net.n_params - ratio * (weights * np.diag(inverse)).sum()
    assert res.history["n_effective"][-1] == pytest.approx(effective, rel=1e-3)
    assert res.uncertainty.n_effective == pytest.approx(effective, rel=1e-3)
    w = res.params[weights == 1]
    asked = (effective - 4) * sse / ((50 - effective) * (w @ w))
    assert ratio == pytest.approx(asked, rel=1e-2)
    gradient = res.grad + res.history["l2"][-1] * weights * res.params
    assert np.abs(gradient).max() < 1e-4


def test_bayesian_fits_generalise(backend):
    X, y = wave(40, noise=0.4)
    X_new, y_new = wave(400, seed=9, noise=0.0)
    net = fb.Network(2, fb.Dense(8, "tanh"), fb.Dense(1), dtype="float64")
    plain = fitted(net, X, y, backend, epochs=200)
    bayes = fitted(net, X, y, backend, epochs=200, bayesian=True)
    assert bayes.score(X_new, y_new) > plain.score(X_new, y_new)
    assert 5 < bayes.history["n_effective"][-1] < net.n_params


# Errors.


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"loss": "mae"}, ValueError, "'mse', 'half_mse' or 'sse'"),
        ({"l1": 0.1}, ValueError, "not sums of squares"),
        ({"batch_size": 8}, ValueError, "batch_size"),
        ({"robust": "hubber"}, ValueError, "did you mean 'huber'"),
        ({"robust": "huber", "f_scale": -1}, ValueError, "f_scale"),
        ({"mu": -1}, ValueError, "mu is -1.0, expected"),
        ({"mu": None}, TypeError, "mu is None, expected"),
        ({"mu_dek": 0.1}, TypeError, "did you mean 'mu_dec'"),
        ({"bounds": (1, -1)}, ValueError, "bound"),
        ({"bounds": (-1, 1), "scale": "standard"}, ValueError, "scale"),
        ({"bayesian": True, "l2": 0.1}, ValueError, "finds l2 itself"),
        ({"patience": 3, "max_fail": 3, "validation": 0.2}, TypeError, "mean the same"),
        ({"max_time": 3, "time": 3}, TypeError, "mean the same"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_options(backend, options, error, words):
    X, y = wave()
    with pytest.raises(error, match=words):
        fitted(small(), X, y, backend, **options)


def test_non_finite_start(backend):
    X, y = wave()
    net = small()
    with pytest.raises(fb.DivergenceError, match="lm cannot start"):
        fitted(net, X, y * 1e200, backend, params=np.full(net.n_params, 1e200))


def test_memory_that_is_not_there(backend, monkeypatch):
    from fastbp.optimize import scipy_methods

    monkeypatch.setattr(scipy_methods, "main_memory", lambda: 1000.0)
    X, y = wave()
    with pytest.raises(MemoryError, match="GiB"):
        fitted(small(), X, y, backend)
