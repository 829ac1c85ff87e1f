"""`fb.multistart` and `fb.optimize.multistart`: the same from any number of threads, best first."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import tracemalloc

import numpy as np
import pytest
from helpers.figures import line, panels
from helpers.problems import START, restricted_regression
from scipy.optimize import Bounds

import fastbp as fb
from fastbp.optimize import starts
from fastbp.optimize.minima import _clusters
from fastbp.optimize.symmetry import canonical

NET = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1))
SAME = {"method": "L-BFGS-B", "epochs": 30}


@pytest.fixture
def data(rng):
    X = rng.uniform(-1, 1, (50, 2))
    return X, np.sin(3 * X[:, 0]) * X[:, 1]


def same_results(a, b):
    for name in ("fun", "params", "starts", "order", "seeds", "failed"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.messages == b.messages and a.clusters == b.clusters


# Networks: reproducible.


@pytest.mark.backend
@pytest.mark.parametrize(
    "options",
    [
        {"method": "adam", "epochs": 20, "batch_size": 8},
        {"method": "sgd", "epochs": 20, "average": True, "scale": "standard"},
        {"method": "L-BFGS-B", "epochs": 20, "l2": 1e-3},
        {"method": "trf", "epochs": 8, "scale": "minmax"},
        {"method": "lm", "epochs": 8, "scale": "standard", "l2": 1e-3},
        {"method": "scg", "epochs": 10, "loss": fb.huber(0.3)},
    ],
    ids=lambda options: options["method"],
)
def test_each_start_can_be_run_again(backend, data, options):
    X, y = data
    options |= {"sample_weight": np.linspace(1, 2, 50), "validation": (X[:9], y[:9])}
    ms = fb.multistart(NET, X, y, 5, seed=3, threads=2, **options)
    assert len(ms) == 5 and ms.success and ms.message == "5 starts done"
    for k, res in enumerate(ms):
        again = fb.fit(NET, X, y, seed=ms.seeds[k], **options)
        assert again.seed == res.seed and res.backend == backend
        np.testing.assert_array_equal(again.params, ms.params[k])
        np.testing.assert_array_equal(again.params, res.params)
        for name, values in again.history.items():
            np.testing.assert_array_equal(values, res.history[name])
        assert again.fun == res.fun == ms.fun[k]


@pytest.mark.backend
def test_the_number_of_threads_changes_nothing(backend, data):
    one, *others = (fb.multistart(NET, *data, 7, seed=1, threads=t, **SAME) for t in (1, 2, 5))
    for other in others:
        same_results(one, other)


def test_seeds_do_not_depend_on_the_number_of_starts(data):
    few, many = (fb.multistart(NET, *data, n, seed=1, **SAME) for n in (3, 8))
    assert len(set(many.seeds)) == 8
    first = many.order < 3
    np.testing.assert_array_equal(many.order[first], few.order)
    np.testing.assert_array_equal(many.params[first], few.params)


def test_a_seed_is_drawn_and_kept(data):
    ms = fb.multistart(NET, *data, 3, **SAME)
    other = fb.multistart(NET, *data, 3, **SAME)
    assert ms.seed != other.seed
    same_results(ms, fb.multistart(NET, *data, 3, seed=ms.seed, **SAME))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [None, "standard"])
def test_starts_are_where_the_fits_began(data, dtype, scale):
    seen = {}

    def first(epoch):
        if epoch.epoch == 1:
            seen[epoch.start] = epoch.params

    X, y = data
    ms = fb.multistart(
        NET.astype(dtype), 5 * X, y, 4, method="sgd", lr=1e-30, epochs=1, seed=0, callbacks=first,
        scale=scale,
    )  # fmt: skip
    assert ms.starts.dtype == ms.params.dtype == np.dtype(dtype)
    for k in range(4):
        np.testing.assert_allclose(ms.starts[k], seen[ms.order[k]], 4 * np.finfo(dtype).eps, 1e-25)


# Best first.


def test_best_first(data):
    ms = fb.multistart(NET, *data, 9, seed=0, **SAME)
    assert (np.diff(ms.fun) >= 0).all() and not ms.failed.any()
    assert sorted(ms.order) == list(range(9))
    assert ms.best is ms[0] and ms.x is ms.params and ms[-2:] == ms.results[-2:]
    assert [res.fun for res in ms] == ms.fun.tolist()
    assert [res.message for res in ms] == ms.messages
    members = [place for cluster in ms.clusters for place in cluster.members]
    assert members == list(range(9))


def test_those_that_diverge_come_last(data):
    X, y = data
    options = {"method": "sgd", "lr": 0.7, "epochs": 200, "batch_size": None}
    ms = fb.multistart(NET, X, y, 12, seed=0, **options)
    n = 12 - ms.failed.sum()
    assert 0 < n < 12
    assert ms.failed.tolist() == n * [False] + (12 - n) * [True]
    assert (np.diff(ms.fun[:n]) >= 0).all()
    assert all("fit diverged in epoch" in message for message in ms.messages[n:])
    assert sum(len(cluster.members) for cluster in ms.clusters) == n
    assert f"failed     {12 - n}, first start {ms.order[n:].min()}: fit diverged" in ms.summary()


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_ends_one_start(data, threads):
    def failing(epoch):
        if epoch.start in (1, 4):
            raise RuntimeError(f"no luck with {epoch.start}")

    whole = fb.multistart(NET, *data, 6, seed=0, **SAME)
    ms = fb.multistart(NET, *data, 6, seed=0, threads=threads, callbacks=failing, **SAME)
    assert ms.success and ms[4:] == [None, None]
    assert ms.messages[4:] == ["RuntimeError: no luck with 1", "RuntimeError: no luck with 4"]
    assert ms.order[4:].tolist() == [1, 4] and ms.failed.tolist() == 4 * [False] + 2 * [True]
    assert np.isnan(ms.fun[4:]).all() and np.isnan(ms.params[4:]).all()
    kept = ~np.isin(whole.order, (1, 4))
    np.testing.assert_array_equal(ms.params[:4], whole.params[kept])
    assert "first start 1: RuntimeError: no luck with 1" in ms.summary()
    ms.plot()


def test_the_first_exception_is_raised_if_all_raise(data):
    def failing(epoch):
        raise RuntimeError(f"no luck with {epoch.start}")

    with pytest.raises(RuntimeError, match="no luck with 0") as error:
        fb.multistart(NET, *data, 4, threads=2, callbacks=failing, **SAME)
    assert error.value.__notes__ == [
        "None of 4 starts came to a result; the first one raised this."
    ]


# Networks: many threads at once.


@pytest.mark.parametrize("threads", [1, 4])
def test_callbacks_are_called_one_at_a_time(data, threads):
    inside, seen = threading.Lock(), []

    def watch(epoch):
        assert inside.acquire(blocking=False)
        seen.append(epoch.start)
        inside.release()
        return epoch.start == 2 and epoch.epoch == 3

    ms = fb.multistart(NET, *data, 6, epochs=9, seed=0, threads=threads, callbacks=[watch])
    counts = np.bincount(seen)
    assert counts.tolist() == [9, 9, 3, 9, 9, 9]
    (stopped,) = np.flatnonzero(ms.order == 2)
    assert ms.messages[stopped] == "a callback stopped the fit after 3 epochs"
    assert ms.success


@pytest.mark.parametrize("threads", [1, 2])
def test_time_is_for_all_together(data, threads):
    ms = fb.multistart(NET, *data, 50, epochs=10**9, seed=0, threads=threads, max_time=0.2)
    assert not ms.success and 1 <= len(ms) <= threads and ms.n_starts == 50
    assert ms.message == f"max_time is over after {len(ms)} of 50 starts"
    assert all(res.status == 1 for res in ms)
    assert ms.params.shape == ms.starts.shape == (len(ms), NET.n_params)


@pytest.mark.parametrize("method", ["adam", "fmincg", "lm"])
@pytest.mark.parametrize("threads", [1, 3])
def test_interrupt_keeps_what_was_reached(data, threads, method):
    X, y = data
    begun = threading.Event()

    def interrupt():
        begun.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    def watch(epoch):
        if epoch.epoch == 5:
            begun.set()

    timer = threading.Thread(target=interrupt)
    timer.start()
    y = y + np.random.default_rng(0).standard_normal(len(y))
    net = fb.Network.mlp([2, 40, 40, 1])
    options = {"method": method, "epochs": 10**6, "callbacks": watch}
    ms = fb.multistart(net, X, y, 20, seed=0, threads=threads, **options)
    timer.join()
    assert not ms.success and 1 <= len(ms) <= threads
    assert ms.message == f"interrupted (Ctrl-C) after {len(ms)} of 20 starts"
    assert {res.status for res in ms} == {4} and np.isfinite(ms.fun).all()
    fb.fit(NET, *data, epochs=2)  # nothing is left of it


@pytest.mark.backend
def test_results_share_the_data(backend, rng):
    X = rng.standard_normal((20_000, 20)).astype(np.float32)  # converted: 3.2 MB
    net = fb.Network(20, fb.Dense(1))
    y = X[:, 0].tolist()
    options = {"method": "sgd", "epochs": 1, "batch_size": None, "scale": "standard"}
    fb.multistart(net, X, y, 2, **options)
    tracemalloc.start()
    ms = fb.multistart(net, X, y, 20, threads=2, **options)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ms) == 20 and kept < 3 * 20_000 * 21 * 8
    assert len(pickle.dumps(ms)) < 100_000


def test_progress_counts_the_starts(data, capsys):
    fb.multistart(NET, *data, 6, seed=0, progress=True, threads=2, **SAME)
    assert "6/6" in capsys.readouterr().err
    fb.multistart(NET, *data, 6, seed=0, **SAME)
    assert capsys.readouterr().err == ""


# Networks: bad input.


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"n_starts": 0}, ValueError, "n_starts is 0, expected at least 1"),
        ({"n_starts": 2.5}, TypeError, "n_starts is 2.5, expected a whole number"),
        ({"n_starts": True}, TypeError, "n_starts is True, expected a whole number"),
        ({"threads": 0}, ValueError, "threads is 0, expected at least 1"),
        ({"seed": -1}, ValueError, "seed is -1, expected at least 0"),
        ({"max_time": 0}, ValueError, "max_time is 0, expected a positive number"),
        ({"max_time": "soon"}, TypeError, "max_time is 'soon', expected a number"),
        ({"rtol": -1.0}, ValueError, "rtol is -1.0, expected a finite number >= 0"),
        ({"atol": np.nan}, ValueError, "atol is nan, expected a finite number >= 0"),
        ({"params": np.zeros(13)}, ValueError, "multistart draws the starts from its seed"),
        ({"seed": 0, "params": np.zeros(13)}, ValueError, "leave params out"),
        ({"state": {}}, ValueError, "state is of one run"),
        ({"validation": 0.2}, ValueError, "validation is 0.2, of which each start would hold out"),
        ({"progress": "yes"}, ValueError, "progress is 'yes', expected 'auto'"),
        ({"callbacks": 3}, TypeError, "callbacks is 3, expected functions"),
        ({"mehtod": "adam"}, TypeError, "did you mean 'method'"),
        ({"method": "adan"}, ValueError, "did you mean 'adam'"),
        ({"epochs": 0}, ValueError, "epochs is 0"),
        ({"scale": "standart"}, ValueError, "did you mean 'standard'"),
    ],
)
def test_bad_arguments(data, options, error, message):
    with pytest.raises(error, match=message):
        fb.multistart(NET, *data, **({"n_starts": 3} | options))


def test_bad_data(data):
    X, y = data
    with pytest.raises(fb.ShapeError, match=r"X has shape \(50, 3\), expected \(n, 2\)"):
        fb.multistart(NET, np.ones((50, 3)), y)
    with pytest.raises(fb.ShapeError, match=r"y has shape \(49,\)"):
        fb.multistart(NET, X, y[1:])
    with pytest.raises(fb.NonFiniteError, match="X holds nan at row 3, column 1"):
        fb.multistart(NET, np.where(np.arange(100).reshape(50, 2) == 7, np.nan, X), y)
    with pytest.raises(fb.NonFiniteError, match="y holds nan at row 0"):
        fb.multistart(NET, X, np.full(50, np.nan), loss="bce_logits")
    with pytest.raises(TypeError, match=r"net is ndarray, expected fastbp.Network"):
        fb.multistart(X, y, NET)
    frozen = fb.Network(2, fb.Dense(1, trainable=False))
    with pytest.raises(ValueError, match="masked or frozen"):
        fb.multistart(frozen, X, y, 3)


# Symmetries.


def unit_norms(W, b, V, c, rng):
    """Incoming weights of a relu layer smaller, outgoing ones larger by as much."""
    sizes = rng.uniform(0.1, 10, W.shape[1])
    return W / sizes, b / sizes, V * sizes[:, None], c


def turned(shift):
    def turn(W, b, V, c, rng):
        signs = rng.choice([-1, 1], W.shape[1])
        c = c + shift * V[signs < 0].sum(axis=0)
        return W * signs, b * signs, V * signs[:, None], c

    return turn


def as_they_are(W, b, V, c, rng):
    return W, b, V, c


@pytest.mark.parametrize(
    "activation, change",
    [
        ("tanh", turned(0)),
        ("softsign", turned(0)),
        ("hard_tanh", turned(0)),
        ("sin", turned(0)),
        ("linear", turned(0)),
        ("linear", unit_norms),
        ("sigmoid", turned(1)),
        ("hard_sigmoid", turned(1)),
        ("relu", unit_norms),
        (fb.leaky_relu(0.3), unit_norms),
        ("gelu", as_they_are),
        ("elu", as_they_are),
    ],
    ids=["tanh", "softsign", "hard_tanh", "sin", "linear", "linear_sizes", "sigmoid",
         "hard_sigmoid", "relu", "leaky_relu", "gelu", "elu"],
)  # fmt: skip
def test_canonical_form_is_the_same_for_what_does_the_same(rng, activation, change):
    net = fb.Network(3, fb.Dense(6, activation), fb.Dense(5, activation), fb.Dense(2))
    params = rng.standard_normal(net.n_params)
    X = rng.standard_normal((20, 3))
    for _ in range(20):
        layers = net.unpack(params.copy())
        for k, size in ((0, 6), (1, 5)):
            (W, b), (V, c) = layers[k : k + 2]
            order = rng.permutation(size)
            W, b, V = W[:, order], b[order], V[order]
            W, b, V, c = change(W, b, V, c, rng)
            layers[k : k + 2] = (W, b), (V, c)
        other = net.pack(layers)
        np.testing.assert_allclose(net.forward(other, X), net.forward(params, X), rtol=1e-9)
        np.testing.assert_allclose(canonical(net, other), canonical(net, params), rtol=1e-9)
    far = params + 0.1 * rng.standard_normal(len(params))
    assert np.abs(canonical(net, far) - canonical(net, params)).max() > 0.01


def test_canonical_form_passes_over_what_masks_take_away(rng):
    mask = [[1, 1, 0], [0, 1, 1]]
    net = fb.Network(2, fb.Dense(3, "sigmoid", mask=mask), fb.Dense(1, bias=False))
    params = rng.standard_normal(net.n_params)
    (W, b), (V, _) = net.unpack(params.copy())
    W[~np.array(mask, bool)] = 7.0
    other = net.pack([(W, b), (V, None)])
    np.testing.assert_array_equal(canonical(net, other), canonical(net, params))
    assert len(canonical(net, params)) == net.n_params + 1  # a bias of 0


def test_canonical_form_turns_no_activation_of_the_users_own(rng):
    square = fb.Activation("square", lambda z: z * z, lambda z: 2 * z)
    net = fb.Network(1, fb.Dense(2, square), fb.Dense(1))
    params = rng.standard_normal(net.n_params)
    assert sorted(canonical(net, params)) == sorted(params)  # in another order at most


# Clusters.


def test_fits_of_one_teacher_are_one_point(rng):
    """Noise makes the minimum one; permutations and signs of its units are the same point."""
    net = fb.Network(1, fb.Dense(2, "tanh"), fb.Dense(1))
    teacher = np.array([1.0, 2.5, 0.5, -1.0, 1.5, -1.0, 0.2])
    X = np.linspace(-3, 3, 200).reshape(-1, 1)
    y = net.forward(teacher, X) + 0.01 * rng.standard_normal((200, 1))
    ms = fb.multistart(net, X, y, 16, method="trf", epochs=500, seed=0)
    least = ms.clusters[0]
    assert len(least.members) >= 6 and least.n_points == 1 and not least.runaway
    raw = ms.params[: len(least.members)]
    assert len(np.unique(raw.round(2), axis=0)) > 1


def test_separable_classes_run_away(rng):
    X = np.linspace(-1, 1, 20).reshape(-1, 1)
    net = fb.Network(1, fb.Dense(1))
    options = {"loss": "bce_logits", "method": "L-BFGS-B", "epochs": 500, "tol": 1e-14}
    ms = fb.multistart(net, X, X[:, 0] > 0.1, 8, seed=0, **options)
    assert len(ms.clusters) == 1 and ms.clusters[0].runaway
    assert "runs away: parameters" in ms.summary()


def clusters(fun, points, starts=((1.0, 1.0),), rtol=1e-2, atol=1e-8):
    found = _clusters(np.array(fun), np.array(points), np.array(starts), np.asarray, rtol, atol)
    return [(c.fun, c.members, c.n_points, c.runaway) for c in found]


def test_clusters_are_of_objectives_within_the_tolerances():
    points = np.ones((6, 2))
    assert clusters([1.0, 1.009, 1.011, 1.02, 5.0, 5.0], points) == [
        (1.0, range(2), 1, False),
        (1.011, range(2, 4), 1, False),
        (5.0, range(4, 6), 1, False),
    ]
    zeros = [0.0, 1e-20, 1e-9, 1e-7, -1.0, 3.0]
    assert [c[1] for c in clusters(sorted(zeros), points)] == [
        range(1), range(1, 4), range(4, 5), range(5, 6),
    ]  # fmt: skip
    assert [c[1] for c in clusters([-2.0, -1.99, -1.9], points[:3])] == [range(2), range(2, 3)]
    assert clusters(np.empty(0), np.empty((0, 2))) == []


def test_points_are_near_relative_to_their_sizes():
    points = [[100.0, 1e-3], [101.0, 1.01e-3], [100.0, 2e-3], [101.0, 2e-3], [99.0, -1e-3]]
    ((_, members, n_points, _),) = clusters([1.0] * 5, points)
    assert (members, n_points) == (range(5), 3)


@pytest.mark.parametrize(
    "sizes, runaway",
    [
        ([5e4, 3e4, 9e3], True),  # far away, each elsewhere
        ([3e4, 5e4, 9e3], True),
        ([5e4, 5e4, 5e4], False),  # a minimum far away
        ([5e4], True),
        ([50.0, 40.0, 30.0, 20.0], True),  # the lower the farther
        ([30.0, 50.0, 20.0, 40.0], False),
        ([50.0, 40.0], False),
        ([5.0, 4.0, 3.0], False),
        ([50.0], False),
    ],
)
def test_runaways(sizes, runaway):
    points = [[1.0, size * (-1) ** k] for k, size in enumerate(sizes)]
    fun = 1.0 + 1e-5 * np.arange(len(sizes))
    assert [c[3] for c in clusters(fun, points)] == [runaway]


# Functions.


def rosenbrock(x):
    return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def rosenbrock_jacobian(x):
    return np.array([[-20 * x[0], 10.0], [-1.0, 0.0]])


def half_square(x):
    r = rosenbrock(x)
    return r @ r / 2


def half_square_gradient(x):
    return rosenbrock_jacobian(x).T @ rosenbrock(x)


def half_square_pair(x):
    return half_square(x), half_square_gradient(x)


BOX = Bounds([-2.0, -1.0], [2.0, 3.0])


@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
def test_least_squares_methods(method):
    jac = rosenbrock_jacobian
    ms = fb.optimize.multistart(rosenbrock, BOX, method, jac=jac, n_starts=10, seed=0)
    np.testing.assert_allclose(ms.best.x, [1, 1], rtol=1e-6)
    assert ms.fun[0] == ms.best.cost and ms.method == method and len(ms) == 10
    alone = fb.optimize.least_squares(rosenbrock, ms.starts[4], method, jac=jac)
    np.testing.assert_array_equal(alone.x, ms.x[4])
    assert ms.messages[4] == alone.message and "jac" not in ms.best and "fun" not in ms.best


def test_levenberg_marquardt_is_the_default():
    ms = fb.optimize.multistart(rosenbrock, BOX, n_starts=10, seed=0)
    np.testing.assert_allclose(ms.x, np.ones((10, 2)), rtol=1e-6)
    alone = fb.optimize.levenberg_marquardt(rosenbrock, ms.starts[4])
    np.testing.assert_array_equal(alone.x, ms.x[4])
    assert (ms.method, ms.fun[4]) == ("levenberg_marquardt", alone.cost)


@pytest.mark.parametrize("method", ["BFGS", "L-BFGS-B", "CG", "fmincg", "scg"])
def test_gradient_methods(method):
    options = {"n_starts": 10, "seed": 0, "options": {"maxiter": 500}}
    pair = fb.optimize.multistart(half_square_pair, BOX, method, **options)
    np.testing.assert_allclose(pair.best.x, [1, 1], rtol=1e-3)
    assert pair.best.fun == pair.fun[0] and "hess_inv" not in pair.best
    parts = fb.optimize.multistart(half_square, BOX, method, jac=half_square_gradient, **options)

    np.testing.assert_array_equal(pair.x, parts.x)


@pytest.mark.parametrize("threads", [2, 5])
def test_functions_in_threads(threads):
    def runs(threads):
        return fb.optimize.multistart(
            half_square_pair, lambda rng: rng.normal(size=2), "fmincg", n_starts=12, seed=5,
            threads=threads,
        )  # fmt: skip

    same_results(runs(1), runs(threads))


def test_arguments_and_options_reach_the_method():
    def shifted(x, where, scale):
        return scale * float((x - where) @ (x - where)), 2 * scale * (x - where)

    ms = fb.optimize.multistart(
        shifted, [[0.0, 0.0], [5.0, 5.0]], "L-BFGS-B", args=(np.array([1.0, 2.0]), 3.0),
        bounds=[(0, 0.5), (None, None)],
    )  # fmt: skip
    np.testing.assert_allclose(ms.x, [[0.5, 2.0]] * 2, rtol=1e-6)
    assert (ms.seed, ms.seeds) == (None, None)


def test_callbacks_of_functions_are_called_one_at_a_time():
    inside, seen = threading.Lock(), []

    def watch(intermediate_result):
        assert inside.acquire(blocking=False)
        seen.append(intermediate_result.fun)
        inside.release()

    ms = fb.optimize.multistart(
        half_square_pair, BOX, "L-BFGS-B", n_starts=6, seed=0, threads=3, callback=watch
    )
    assert len(seen) == sum(res.nit for res in ms)


def test_an_objective_with_frozen_parameters():
    obj, _, exact = restricted_regression()
    starts = np.array([START, START])
    starts[1, 0] = 3.0
    for method in ("trf", "fmincg", "levenberg_marquardt"):
        ms = fb.optimize.multistart(obj, np.nan_to_num(starts, nan=7.0), method)
        np.testing.assert_allclose(ms.x[:, [0, 3, 4]], [exact, exact], rtol=1e-4)
        assert (ms.x[:, [1, 2]] == [7.0, 2.0]).all()
        assert (len(ms.clusters), ms.clusters[0].n_points) == (1, 1)


# Functions: where they start.


def test_starts_drawn_by_a_function():
    def draw(rng):
        return rng.uniform(-1, 1, 2)

    few, many = (
        fb.optimize.multistart(rosenbrock, draw, "trf", jac="2-point", n_starts=n, seed=2)
        for n in (4, 9)
    )
    np.testing.assert_array_equal(many.starts[many.order < 4], few.starts)
    for k, seed in enumerate(many.seeds):
        np.testing.assert_array_equal(many.starts[k], draw(np.random.default_rng(seed)))
    assert len(fb.optimize.multistart(rosenbrock, draw, "trf", jac="2-point")) == 32


def test_a_latin_hypercube_in_bounds():
    box = Bounds([-1.0, 100.0, 3.0], [1.0, 200.0, 3.0])
    ms = fb.optimize.multistart(lambda x: x - 1, box, "trf", jac="2-point", n_starts=20, seed=0)
    inside = (ms.starts[:, :2] - [-1, 100]) / [2, 100]
    assert (ms.starts[:, 2] == 3).all()
    for column in inside.T:
        assert sorted(np.floor(20 * column)) == list(range(20))
    again = fb.optimize.multistart(
        lambda x: x - 1, box, "trf", jac="2-point", n_starts=20, seed=ms.seed
    )
    np.testing.assert_array_equal(again.starts, ms.starts)


def test_points_are_not_changed():
    points = np.array([[-1.2, 1.0], [3.0, 3.0]])

    def spoils(x):
        r = rosenbrock(x)
        x[:] = np.nan
        return r

    ms = fb.optimize.multistart(spoils, points, "lm", jac=rosenbrock_jacobian)
    np.testing.assert_array_equal(points, [[-1.2, 1.0], [3.0, 3.0]])
    np.testing.assert_array_equal(ms.starts, points[ms.order])
    np.testing.assert_allclose(ms.x, np.ones((2, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"starts": [1.0, 2.0]}, fb.ShapeError, r"shape \(2,\), .* starts.reshape\(1, -1\)"),
        ({"starts": np.ones((2, 2, 2))}, fb.ShapeError, r"shape \(2, 2, 2\), expected \(n_starts"),
        ({"starts": np.empty((0, 2))}, fb.ShapeError, r"shape \(0, 2\)"),
        ({"starts": [[1.0], [1.0, 2.0]]}, TypeError, "starts is not an array of real numbers"),
        ({"starts": [[1j, 2.0]]}, TypeError, "starts has dtype complex128"),
        ({"starts": [[1.0, np.inf]]}, fb.NonFiniteError, "starts holds inf at row 0, column 1"),
        (
            {"starts": [[1.0, 2.0]], "n_starts": 3},
            ValueError,
            "n_starts is 3, but starts are points",
        ),
        ({"starts": [[1.0, 2.0]], "seed": 3}, ValueError, "seed is 3, but starts are points"),
        ({"n_starts": 0}, ValueError, "n_starts is 0, expected at least 1"),
        ({"starts": Bounds([0, 0], [1, np.inf])}, ValueError, "expected finite bounds"),
        ({"starts": Bounds([0, 2], [1, 1])}, ValueError, "expected finite bounds"),
        ({"starts": lambda rng: "x"}, TypeError, "starts has dtype"),
        ({"starts": lambda rng: rng.normal(size=rng.integers(1, 9))}, TypeError, "equal length"),
        ({"method": "L-BFGS"}, ValueError, "unknown method 'L-BFGS'.*did you mean 'L-BFGS-B'"),
        ({"fun": 3}, TypeError, "fun is 3, expected a function"),
        ({"jac": None}, TypeError, "jac is missing"),
        ({"threads": -1}, ValueError, "threads is -1"),
        ({"nfev_max": 3}, TypeError, "unknown keyword of least_squares 'nfev_max'"),
    ],
)
def test_bad_arguments_of_functions(arguments, error, message):
    given = {"fun": rosenbrock, "starts": BOX, "method": "trf", "jac": "2-point", "seed": None}
    given |= arguments
    with pytest.raises(error, match=message):
        fb.optimize.multistart(**given)


# Functions: what ends them.


def test_failures_of_functions_come_last():
    def picky(x):
        if x[0] < -1:
            raise ArithmeticError("the model has no solution here")
        return rosenbrock(x) if x[0] < 1.5 else np.full(2, np.nan)

    ms = fb.optimize.multistart(picky, BOX, "trf", jac="2-point", n_starts=16, seed=0)
    n = 16 - ms.failed.sum()
    assert 3 < n < 16 and not ms.failed[:n].any()
    for message in ms.messages[n:]:
        assert message.startswith(("ArithmeticError: the model has", "ValueError: Residuals"))
    assert "failed" in ms.summary()


def test_an_objective_that_is_not_finite_is_a_failure():
    def pair(x):
        return (np.nan, 0 * x) if x[0] > 3 else (float(x @ x), 2 * x)

    ms = fb.optimize.multistart(pair, [[5.0], [1.0], [-np.pi]], "L-BFGS-B")
    assert ms.failed.tolist() == [False, False, True] and ms.order[2] == 0
    assert len(ms.clusters) == 1


@pytest.mark.parametrize("method", ["fmincg", "L-BFGS-B", "trf", "levenberg_marquardt"])
@pytest.mark.parametrize("threads", [1, 2])
def test_interrupted_functions_end_at_their_best_points(method, threads):
    calls, squares = [], method in ("trf", "levenberg_marquardt")

    def interrupted(x):
        calls.append(1)
        if len(calls) == 300:
            os.kill(os.getpid(), signal.SIGINT)
        return slow_valley(x)

    def slow_valley(x):
        r = np.concatenate([100 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])
        J = np.zeros((2 * len(x) - 2, len(x)))
        k = np.arange(len(x) - 1)
        J[k, k], J[k, k + 1], J[len(k) + k, k] = -200 * x[:-1], 100, -1
        return r if squares else (r @ r / 2, J.T @ r)

    def value(x):
        found = slow_valley(x)
        return found @ found / 2 if squares else found[0]

    starts = np.random.default_rng(0).uniform(-2, 2, (40, 30))
    options = {"jac": "2-point"} if squares else {"maxiter": 10**5, "tol": 1e-30}
    ms = fb.optimize.multistart(interrupted, starts, method, threads=threads, **options)
    assert not ms.success and ms.message.startswith("interrupted (Ctrl-C) after")
    cut = [k for k, message in enumerate(ms.messages) if "interrupted" in message]
    assert 1 <= len(cut) <= threads and len(cut) < len(calls) < 1000
    for k in cut:
        assert ms.fun[k] == pytest.approx(value(ms.x[k]), rel=1e-12)
        assert ms.fun[k] < value(ms.starts[k]) or ms[k].nfev == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_time_of_functions(threads):
    never = threading.Event()

    def slow(x):
        never.wait(0.05)
        return float(np.sum(np.cos(x) + 1e-3 * x**2)), -np.sin(x) + 2e-3 * x

    starts = np.random.default_rng(0).uniform(-2, 2, (20, 5))
    ms = fb.optimize.multistart(slow, starts, "fmincg", threads=threads, max_time=0.2)
    assert not ms.success and 1 <= len(ms) <= threads and ms.n_starts == 20
    assert ms.message == f"max_time is over after {len(ms)} of 20 starts"
    assert set(ms.messages) == {"max_time is over"}
    assert all(1 <= res.nfev <= 5 and res.fun == slow(res.x)[0] for res in ms)


def test_interrupt_before_anything_was_reached():
    def never(k):
        raise KeyboardInterrupt

    halt = starts.Halt(None)
    with pytest.raises(KeyboardInterrupt):
        starts.run_starts(never, 3, 1, halt, None, float)
    assert halt.interrupted.is_set()


# A fit by least squares whose series have a minimum or run away.

TIMES = np.arange(1, 7)
SERIES = [
    [0.52, 1.28, 2.04, 3.17, 4.53, 6.22],
    [0.51, 1.40, 2.09, 3.00, 4.42, 6.17],
    [0.63, 1.35, 2.19, 3.02, 4.57, 6.29],
    [0.63, 1.39, 2.23, 3.28, 4.70, 6.32],
    [0.57, 1.40, 2.10, 3.06, 4.53, 6.17],
]


def growth_model(series):
    """Residuals of t_k = (c - asinh(c)·exp(2π·a·k))·b/a and their derivatives by a, b, c."""

    def residuals(x):
        a, b, c = x
        return (c - np.arcsinh(c) * np.exp(2 * np.pi * a * TIMES)) * b / a - series

    def jacobian(x):
        a, b, c = x
        E, s = np.exp(2 * np.pi * a * TIMES), np.arcsinh(c)
        inner = c - s * E
        by_a = -2 * np.pi * TIMES * s * E * b / a - inner * b / a**2
        return np.column_stack([by_a, inner / a, (1 - E / np.hypot(1, c)) * b / a])

    return residuals, jacobian


@pytest.mark.parametrize("number", range(5))
def test_one_series_has_two_mirrored_minima_and_the_others_run_away(number):
    residuals, jacobian = growth_model(SERIES[number])
    box = Bounds([0.05, -1.0, -1.0], [0.3, 1.0, 1.0])
    ms = fb.optimize.multistart(residuals, box, jac=jacobian, n_starts=8, seed=0, maxiter=300)
    (cluster,) = ms.clusters
    a, b, c = np.abs(ms.x.T)
    if number == 0:
        assert cluster.n_points == 2 and not cluster.runaway
        np.testing.assert_allclose(np.array([a, b, c]).T, 8 * [[0.0362, 0.642, 0.1207]], rtol=1e-3)
        assert (ms.x[:, 1] * ms.x[:, 2] < 0).all()
    else:
        assert cluster.runaway and "runs away" in ms.summary()
        assert b.min() > 50 and c.max() < 0.01
        np.testing.assert_allclose(b * c, b[0] * c[0], rtol=1e-4)


# What is shown.


def test_summary_and_repr(data):
    ms = fb.multistart(NET, *data, 9, seed=4, **SAME)
    text = ms.summary()
    assert all(len(text_line) <= 80 for text_line in text.splitlines())
    for part in ("L-BFGS-B", "9 starts done", f"least {ms.fun[0]:.6g}", f"largest {ms.fun[8]:.6g}"):
        assert part in text
    rows = text.partition("points\n")[2].splitlines()
    assert [int(row.split()[1]) for row in rows] == [len(c.members) for c in ms.clusters]
    assert f"fun={ms.fun[0]:.6g} at best" in repr(ms) and "seed=4" in repr(ms)


def test_summary_of_many_clusters():
    starts = 2 * np.pi * np.arange(15.0).reshape(-1, 1) + 3
    wave = fb.optimize.multistart(
        lambda x: (float(np.cos(x[0]) + 0.1 * x[0]), -np.sin(x) + 0.1), starts, "L-BFGS-B"
    )
    assert len(wave.clusters) == 15
    assert "...  5 clusters more" in wave.summary() and "seed" not in wave.summary()


def test_plot_shows_the_clusters():
    ms = fb.optimize.multistart(half_square_pair, BOX, "fmincg", n_starts=12, seed=0, maxiter=9)
    (axes,) = panels(ms.plot())
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("start, best first", "objective")
    assert axes.get_title() == "12 starts of fmincg"
    shown = [points for points in axes.lines[1:] for points in points.get_ydata()]
    assert shown == ms.fun.tolist()
    x, y = line(axes, f"{ms.clusters[0].fun:.4g}: ")
    assert list(x) == [place + 1 for place in ms.clusters[0].members]
    assert (y == ms.fun[: len(x)]).all()


def test_runaways_are_rings():
    residuals, jacobian = growth_model(SERIES[1])
    starts = [[0.1, 1.25, -0.1], [0.05, 1.0, 0.3]]
    ms = fb.optimize.multistart(residuals, starts, "trf", jac=jacobian, max_nfev=50)
    for cluster in ms.clusters:
        object.__setattr__(cluster, "runaway", True)
    (axes,) = panels(ms.plot())
    assert all(points.get_markerfacecolor() == "none" for points in axes.lines[1:])
    assert "runs away" in axes.get_legend().get_texts()[0].get_text()
