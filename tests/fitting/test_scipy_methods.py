"""SciPy's methods through `fit` and `fastbp.optimize`: all alike, and nothing computed twice."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest
import scipy.optimize
from helpers.problems import restricted_regression, rosenbrock, sum_of_squares

import fastbp as fb
from fastbp.optimize import scipy_methods
from fastbp.optimize.cache import POINTS, CachedFunction, CachedProducts
from fastbp.optimize.scipy_methods import MINIMIZERS

NET = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(1))
LINE = fb.Network(3, fb.Dense(1))
MINIMIZE = [name for name in MINIMIZERS if name not in ("fmincg", "scg")]
LEAST_SQUARES = ["trf", "dogbox"]
EVERY = [*MINIMIZE, *LEAST_SQUARES]
BOUNDED = ["L-BFGS-B", "TNC", "SLSQP", "trust-constr", "trf", "dogbox"]
SECOND = [name for name in MINIMIZERS if MINIMIZERS[name].hessian]
DENSE = [name for name in MINIMIZERS if MINIMIZERS[name].matrices]
# dogleg cannot begin where the Hessian is indefinite, as it is for most networks.
WANDERING = [name for name in EVERY if name != "dogleg"]


@pytest.fixture
def data(rng):
    X = rng.standard_normal((40, 3))
    return X, np.sin(X[:, 0]) + 0.5 * X[:, 1] * X[:, 2]


@pytest.fixture
def line(rng):
    X = rng.standard_normal((40, 3))
    return X, X @ [1.0, -2.0, 0.5] + 0.3 + 0.1 * rng.standard_normal(40)


# Nothing is computed twice.


@pytest.fixture
def computed(module, monkeypatch):
    """How often the backend was asked for what, by function, parameters and direction."""
    counts = {name: Counter() for name in ("value", "value_and_grad", "hvp", "forward", "jacobian")}

    def counting(name, original):
        place = 0 if name in ("value", "value_and_grad", "hvp") else None

        def counted(*args):
            vectors = [a.tobytes() for a in args if isinstance(a, np.ndarray) and a.ndim == 1]
            counts[name][(*vectors, id(args[0]) if place == 0 else None)] += 1
            return original(*args)

        return counted

    for name in counts:
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    return counts


@pytest.mark.backend
@pytest.mark.parametrize(
    ("method", "options"),
    [(name, {}) for name in WANDERING] + [(name, {"bounds": (-1.5, 1.5)}) for name in BOUNDED],
    ids=WANDERING + [f"{name}-bounds" for name in BOUNDED],
)
def test_nothing_is_computed_twice(data, computed, method, options):
    X, y = data
    res = fb.fit(NET, X, y, method=method, loss="sse", seed=2, epochs=30, **options)
    assert res.nit > 5
    for name, counts in computed.items():
        assert set(counts.values()) <= {1}, name
    assert not computed["value"]
    whole = len(computed["value_and_grad"])
    if method in LEAST_SQUARES:
        # The gradient of the result is asked for once.
        assert whole == 1
        assert len(computed["forward"]) == res.nfev
        assert len(computed["jacobian"]) <= res.nit + 1
    else:
        assert whole == res.nfev
        assert not computed["forward"] and not computed["jacobian"]
    assert bool(computed["hvp"]) == (method in SECOND)
    value, grad = NET.value_and_grad(res.params, X, y, "sse")
    assert res.fun == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(res.grad, grad, rtol=1e-9, atol=1e-12 * value)


@pytest.mark.parametrize("method", MINIMIZE)
def test_functions_are_not_evaluated_twice_either(method):
    both = sum_of_squares(rosenbrock)
    calls = Counter()

    def fun(x, factor):
        calls[x.tobytes()] += 1
        f, g = both(x)
        x[:] = np.nan  # theirs to write to
        return factor * f, factor * g

    def hess(x, factor):
        (a, b) = x
        return factor * np.array([[1200 * a * a - 400 * b + 2, -400 * a], [-400 * a, 200.0]])

    derivatives = {
        "": {},
        "hess": {"hess": hess},
        "hessp": {"hessp": lambda x, p, factor: hess(x, factor) @ p},
    }
    options = {"maxfun": 500} if method == "TNC" else {"maxiter": 300}
    start = [1.2, 1.43] if method == "dogleg" else [-1.2, 1.0]
    result = fb.optimize.minimize(
        fun, start, method, args=(2.0,), **options, **derivatives[MINIMIZERS[method].hessian]
    )
    np.testing.assert_allclose(result.x, 1, atol=1e-2)
    assert set(calls.values()) == {1}


def test_cache_is_limited():
    cached = CachedFunction(lambda x: (x.sum(),))
    points = [np.full(3, float(k)) for k in range(POINTS + 1)]
    for x in points:
        assert cached(x) is cached(x)
    assert cached.calls == POINTS + 1
    assert cached.cached(points[0]) is None and cached.cached(points[1]) is not None
    cached(points[1])
    assert cached.calls == POINTS + 1
    cached(points[0])
    assert cached.calls == POINTS + 2


def test_cache_of_long_vectors_is_limited_by_bytes(monkeypatch):
    monkeypatch.setattr("fastbp.optimize.cache.BYTES", 8 * 100 * 3)
    cached = CachedFunction(lambda x: (x[0],))
    for k in range(5):
        cached(np.full(100, float(k)))
    known = [cached.cached(np.full(100, float(k))) is not None for k in range(5)]
    assert known == [False, False, True, True, True]
    calls = []
    products = CachedProducts(lambda x, p: calls.append(1) or 2 * p)
    for k in (0, 1, 2, 3, 0, 1, 2, 3):
        assert products(np.zeros(100), np.full(100, float(k)))[0] == 2 * k
    assert len(calls) == 5  # the cache had no room for the fourth
    products(np.ones(100), np.zeros(100))
    assert len(calls) == 6  # another point


# The services of fit.


@pytest.mark.backend
@pytest.mark.parametrize("method", WANDERING)
def test_history_is_of_the_points_reached(data, backend, method):
    X, y = data
    seen = []
    res = fb.fit(
        NET, X, y, method=method, seed=2, epochs=12,
        callbacks=lambda epoch: seen.append((epoch.loss, epoch.params)) and None,
    )  # fmt: skip
    losses = [loss for loss, _ in seen]
    assert losses == res.history["loss"].tolist()
    np.testing.assert_allclose(losses, [NET.value(p, X, y) for _, p in seen], rtol=1e-12)
    # These methods accept nothing that is worse.
    before = NET.value(NET.init(np.random.SeedSequence(2).spawn(1)[0]), X, y)
    assert (np.diff([before, *losses]) <= 1e-12).all()
    assert losses[0] < before or method.startswith("trust")
    assert np.array_equal(seen[-1][1], res.params)


@pytest.mark.backend
@pytest.mark.parametrize("method", WANDERING)
def test_epochs_are_iterations(data, backend, method):
    X, y = data
    res = fb.fit(NET, X, y, method=method, epochs=4, seed=2)
    assert (res.nit, res.status, res.success) == (4, 1, False)
    assert res.message == "the maximum number of iterations (epochs) has been reached"
    longer = fb.fit(NET, X, y, method=method, epochs=6, seed=2)
    assert np.array_equal(longer.history["loss"][:4], res.history["loss"])


@pytest.mark.backend
@pytest.mark.parametrize("service", ["goal", "max_time", "callbacks", "patience", "Ctrl-C"])
@pytest.mark.parametrize("method", WANDERING)
def test_every_method_stops_when_asked(data, backend, method, service):
    X, y = data

    def interrupt(epoch):
        if epoch.epoch == 3:
            raise KeyboardInterrupt

    after_three = fb.fit(NET, X, y, method=method, epochs=3, seed=2).history["loss"]
    noise = np.random.default_rng(1).standard_normal(9)
    options, status, words = {
        "goal": ({"goal": after_three[-1]}, 0, "the goal of"),
        "max_time": ({"max_time": 1e-9}, 1, "max_time is over after 1 iteration"),
        "callbacks": ({"callbacks": lambda e: e.epoch == 3}, 5, "a callback stopped the fit"),
        "patience": ({"validation": (X[:9], noise), "patience": 2}, 0, "no progress in 2"),
        "Ctrl-C": ({"callbacks": interrupt}, 4, "interrupted (Ctrl-C) after 3 iterations"),
    }[service]
    res = fb.fit(NET, X, y, method=method, seed=2, epochs=200, **options)
    assert words in res.message
    assert (res.status, res.success) == (status, status == 0)
    if service == "patience":
        best = res.history["val_loss"].argmin()
        assert res.nit == best + 3
        held = NET.value(res.params, *options["validation"])
        assert held == pytest.approx(res.history["val_loss"][best], rel=1e-12)
    elif service != "goal":
        assert res.nit == (1 if service == "max_time" else 3)
    else:
        assert res.history["loss"][-1] <= after_three[-1] < res.history["loss"][:-1].min(initial=9)
    assert res.fun == pytest.approx(NET.value(res.params, X, y), rel=1e-12)


@pytest.mark.parametrize("method", EVERY)
def test_the_bar_is_told_of_every_iteration(line, monkeypatch, method):
    X, y = line
    seen = []

    class Bar:
        def update(self, epoch, loss, val_loss, rate):
            seen.append(loss)

        def close(self):
            seen.append("closed")

    monkeypatch.setattr("fastbp.fitting._fit.progress_bar", lambda setting, total: Bar())
    res = fb.fit(LINE, X, y, method=method, seed=0)
    assert seen == [*res.history["loss"].tolist(), "closed"]


@pytest.mark.parametrize("answer", [True, StopIteration])
@pytest.mark.parametrize("method", [name for name in MINIMIZERS if name != "dogleg"])
def test_callbacks_stop_every_method(data, method, answer):
    objective = NET.objective(*data)
    seen = []

    def listen(intermediate_result):
        seen.append((intermediate_result.x.copy(), intermediate_result.fun))
        if len(seen) == 3:
            if answer is StopIteration:
                raise StopIteration
            return True
        return False

    result = fb.optimize.minimize(objective, NET.init(seed=0), method, callback=listen)
    assert len(seen) == 3
    assert not result.success and "callback" in result.message
    assert all(objective.value(x) == pytest.approx(f, rel=1e-12) for x, f in seen)
    assert np.array_equal(result.x, seen[-1][0])
    assert result.fun == pytest.approx(seen[-1][1], rel=1e-12)
    assert isinstance(result, scipy.optimize.OptimizeResult)


# Second derivatives.


def hessian(objective):
    return lambda x: np.column_stack([objective.hvp(x, unit) for unit in np.eye(len(x))])


@pytest.mark.backend
@pytest.mark.parametrize("method", MINIMIZE)
def test_minimize_is_scipy_s_with_exact_derivatives(line, data, backend, method):
    X, y = line if method == "dogleg" else data
    net = LINE if method == "dogleg" else NET
    objective, start = net.objective(X, y), net.init(seed=1)
    derivatives = {"": {}, "hessp": {"hessp": objective.hvp}, "hess": {"hess": hessian(objective)}}
    options = {"maxfun" if method == "TNC" else "maxiter": 10}
    ours = fb.optimize.minimize(objective, start, method, **options)
    theirs = scipy.optimize.minimize(
        objective.value_and_grad, start, jac=True, method=method, options=options,
        **derivatives[MINIMIZERS[method].hessian],
    )  # fmt: skip
    assert ours.x.tobytes() == theirs.x.tobytes()
    assert (ours.fun, ours.nit, ours.message) == (theirs.fun, theirs.nit, theirs.message)


def without_second_derivatives():
    smooth = fb.Activation(
        "bent", lambda z: z / (1 + z * z), lambda z: (1 - z * z) / (1 + z * z) ** 2
    )
    square = fb.custom_loss(lambda p, t: ((p - t) ** 2, 2 * (p - t)))
    return [(fb.Network(3, fb.Dense(2, smooth), fb.Dense(1)), "mse"), (NET, square)]


@pytest.mark.parametrize("which", ["activation", "loss"])
@pytest.mark.parametrize("method", SECOND)
def test_where_there_are_no_second_derivatives(data, method, which):
    pytest.importorskip("numba")
    X, y = data
    net, loss = without_second_derivatives()[which == "loss"]
    with pytest.raises(ValueError) as caught:
        fb.fit(net, X, y, method=method, loss=loss)
    for words in (f"method {method!r} needs second derivatives", which, "take 'L-BFGS-B'"):
        assert words in str(caught.value)
    assert fb.fit(net, X, y, method="BFGS", loss=loss, seed=0).nit > 3


@pytest.mark.backend
def test_second_derivatives_may_be_approximated(data, computed):
    X, y = data
    strategy = scipy.optimize.BFGS()
    res = fb.fit(NET, X, y, method="trust-constr", hess=strategy, seed=0, epochs=30)
    assert res.fun < 0.5 * res.history["loss"][0]
    assert not computed["hvp"]
    with pytest.raises(TypeError, match="unknown option of method 'BFGS' 'hess'"):
        fb.fit(NET, X, y, method="BFGS", hess=strategy)
    for derivative in ({"hessp": lambda x, p: p}, {"hess": lambda x: np.eye(len(x))}):
        with pytest.raises(TypeError, match="was given with an objective, which brings its own"):
            fb.optimize.minimize(NET.objective(X, y), NET.init(seed=0), "trust-ncg", **derivative)


def test_dogleg_says_that_the_hessian_is_indefinite(data):
    X, y = data
    res = fb.fit(NET, X, y, method="dogleg", seed=2)
    assert (res.success, res.status, res.nit) == (False, 2, 0)
    assert "dogleg needs a positive definite Hessian" in res.message
    assert "'trust-exact'" in res.message


def test_frozen_parameters_have_no_rows_in_the_hessian():
    objective, A, exact = restricted_regression()
    for method in ("trust-exact", "dogleg"):
        result = fb.optimize.minimize(objective, [0.5, np.nan, 2.0, -1.0, 0.0], method, gtol=1e-9)
        np.testing.assert_allclose(result.hess, 2 * A.T @ A, rtol=1e-12)
        np.testing.assert_allclose(result.x[[0, 3, 4]], exact, atol=1e-9)


# Bounds.


@pytest.mark.backend
@pytest.mark.parametrize("form", ["ends", "vectors", "pairs", "Bounds"])
@pytest.mark.parametrize("method", BOUNDED)
def test_bounds_through_fit(line, backend, method, form):
    X, y = line
    lower, upper = np.array([0.25, -1.0, -np.inf, -1.0]), np.array([0.75, 1.0, 0.2, np.inf])
    if form == "ends":
        lower, upper = np.full(4, -0.9), np.full(4, 0.9)
    bounds = {
        "ends": (-0.9, 0.9),
        "vectors": (lower, upper),
        "pairs": [(0.25, 0.75), (-1, 1), (None, 0.2), (-1, None)],
        "Bounds": scipy.optimize.Bounds(lower, upper),
    }[form]
    # A start outside is moved to the nearest point within.
    res = fb.fit(
        LINE, X, y, method=method, loss="sse", bounds=bounds, params=np.full(4, 5.0), tol=1e-10
    )
    A = np.column_stack([X, np.ones(40)])
    exact = scipy.optimize.lsq_linear(A, y, (lower, upper), tol=1e-14).x
    np.testing.assert_allclose(res.params, exact, atol=1e-3)
    assert (lower - 1e-12 <= res.params).all() and (res.params <= upper + 1e-12).all()


@pytest.mark.parametrize("method", ["L-BFGS-B", "trf"])
def test_bounds_of_two_parameters_are_as_the_method_takes_them(method):
    net = fb.Network(1, fb.Dense(1))
    X = np.linspace(-1, 1, 9)[:, None]
    # As pairs the slope is in [1, 2] and the bias in [3, 4]; else from (1, 2) up to (3, 4).
    res = fb.fit(net, X, 9 * X[:, 0], method=method, bounds=[(1, 2), (3, 4)], seed=0)
    expected = [2, 3] if method == "L-BFGS-B" else [3, 2]
    np.testing.assert_allclose(res.params, expected, atol=1e-6)
    res = fb.fit(net, X, 9 * X[:, 0], method=method, bounds=(3, 4), seed=0)
    np.testing.assert_allclose(res.params, [4, 3], atol=1e-6)


@pytest.mark.parametrize("name", ["bounds", "constraints"])
def test_limits_and_scaling_exclude_each_other(line, name):
    X, y = line
    limits = {
        "bounds": [(0, 1)] * 4,
        "constraints": scipy.optimize.LinearConstraint(np.eye(4), 0, 1),
    }
    with pytest.raises(ValueError, match=f"{name} with scale='standard'"):
        fb.fit(LINE, X, y, method="SLSQP", scale="standard", **{name: limits[name]})


@pytest.mark.parametrize("method", BOUNDED)
@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((1.0, 0.0), ValueError, "the bounds of parameter 0 are 1 and 0, expected the lower one"),
        (([0, 0, 0, np.nan], 1), ValueError, "the bounds of parameter 3 are nan and 1"),
        (([0] * 3, 1), fb.ShapeError, "bounds has shape (3,), expected (4,)"),
        ([(0, 1)] * 3, fb.ShapeError, "bounds has shape (3, 2), expected (4, 2)"),
        (3.0, TypeError, "bounds is 3.0, expected (lower, upper), or a pair"),
    ],
)
def test_bad_bounds(line, method, bounds, error, message):
    with pytest.raises(error) as caught:
        fb.fit(LINE, *line, method=method, bounds=bounds)
    assert message in str(caught.value)


def test_least_squares_says_where_the_start_is_outside(line):
    objective = LINE.objective(*line)
    with pytest.raises(ValueError, match=r"the start is outside of the bounds: 5 is not between"):
        fb.optimize.least_squares(objective, [0.5, 5.0, 0.5, 0.5], bounds=(0, 1))


# What does not fit.


@pytest.mark.parametrize("method", [*DENSE, "trf", "dogbox"])
def test_the_memory_needed_is_named_before_it_is_taken(line, monkeypatch, method):
    monkeypatch.setattr(scipy_methods, "main_memory", lambda: 2.0**7)
    with pytest.raises(MemoryError) as caught:
        fb.fit(LINE, *line, method=method)
    needed = 8 * MINIMIZERS[method].matrices * 16 if method in DENSE else 8 * 40 * 4 * 5
    assert f"method {method!r} needs about " in str(caught.value)
    named = float(str(caught.value).split("about ")[1].split(" GiB")[0]) * 2**30
    assert named >= 0.99 * needed
    assert "this machine has 1.19e-07 GiB; 'L-BFGS-B'" in str(caught.value)


@pytest.mark.parametrize("method", ["L-BFGS-B", "CG", "TNC", "Newton-CG", "trust-ncg"])
def test_methods_without_matrices_take_any_number_of_parameters(line, monkeypatch, method):
    monkeypatch.setattr(scipy_methods, "main_memory", lambda: 2.0**7)
    assert fb.fit(LINE, *line, method=method, seed=0).success


def test_the_machine_s_memory(monkeypatch):
    assert 2**20 < scipy_methods.main_memory() < 2**60
    monkeypatch.delattr(os, "sysconf")
    assert scipy_methods.main_memory() == np.inf


@pytest.mark.parametrize("method", LEAST_SQUARES)
@pytest.mark.parametrize("loss", ["huber", "mae", "bce_logits", "poisson"])
def test_least_squares_of_another_loss(line, method, loss):
    X, y = line
    with pytest.raises(ValueError) as caught:
        fb.fit(LINE, X, np.abs(np.sign(y)), method=method, loss=loss)
    for words in (f"loss {loss!r} is not a sum of squares", "'mse', 'half_mse' or 'sse'"):
        assert words in str(caught.value)
