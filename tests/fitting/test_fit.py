"""`fit` as users call it: results, arguments, messages, divergence, Ctrl-C, every method."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading

import numpy as np
import pytest
from helpers.fits import FIRST_ORDER, LEAST_SQUARES, LINE, MINIMIZE, NET

import fastbp as fb
from fastbp import backends
from fastbp.maths.losses import TABLE
from fastbp.networks.objective import Objective
from fastbp.training.optimizers import METHODS

pytestmark = pytest.mark.backend


@pytest.fixture
def data(rng):
    X = rng.standard_normal((70, 3))
    return X, np.column_stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]])


@pytest.fixture
def line(rng):
    X = rng.standard_normal((40, 3))
    return X, X @ [1.0, -2.0, 3.0] + 4 + 0.1 * rng.standard_normal(40)


# The result.


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_result(backend, data, dtype, method):
    X, y = data
    net = NET.astype(dtype)
    res = fb.fit(net, X, y, method=method, epochs=15, batch_size=16, seed=4, l2=0.01)
    assert (res.success, res.status, res.message) == (True, 0, "all 15 epochs done")
    assert (res.nit, res.nfev, res.epoch, res.step, res.seed) == (15, 75, 15, 75, 4)
    fun, grad = net.value_and_grad(res.params, X, y, "mse", l2=0.01)
    assert res.fun == fun
    assert np.array_equal(res.grad, grad)
    assert res.params.dtype == res.grad.dtype == dtype
    assert list(res.history) == ["loss"]
    assert res.history["loss"].shape == (15,)
    assert res.history["loss"].dtype == np.float64
    assert res.history["loss"][-1] < res.history["loss"][0]
    assert np.array_equal(res.predict(X), net.forward(res.params, X))


def test_history_is_each_epoch_s_mean_before_its_steps(backend, data):
    X, y = data
    start = NET.init(0)
    one = fb.fit(NET, X, y, method="sgd", params=start, epochs=1, batch_size=None)
    assert one.history["loss"] == pytest.approx([NET.value(start, X, y)], rel=1e-14)
    two = fb.fit(
        NET, X, y, method="sgd", lr=1e-300, params=start, epochs=1, batch_size=35, shuffle=False
    )
    halves = [NET.value(start, X[:35], y[:35]), NET.value(start, X[35:], y[35:])]
    assert two.history["loss"] == pytest.approx([np.mean(halves)], rel=1e-14)


def test_repr_is_short_and_says_how_it_went(data):
    X, y = data
    text = repr(fb.fit(NET, X, y, epochs=2, seed=11))
    assert len(text.splitlines()) == 3
    for part in ("success=True", "all 2 epochs done", "seed=11", "32 of float64", "3-5-2"):
        assert part in text


def test_results_and_errors_survive_pickling(backend, data):
    X, y = data
    res = fb.fit(NET, X, y, epochs=3, seed=0)
    copy = pickle.loads(pickle.dumps(res))
    assert np.array_equal(copy.params, res.params)
    assert np.array_equal(copy.predict(X), res.predict(X))
    assert copy.score(X, y) == res.score(X, y)
    with pytest.raises(fb.DivergenceError) as caught:
        fb.fit(NET, X, y, method="sgd", lr=1e9, loss="sse", seed=0)
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert np.array_equal(error.result.params, caught.value.result.params)


def test_score_is_scikit_learn_s(backend, rng):
    metrics = pytest.importorskip("sklearn.metrics")
    X = rng.standard_normal((60, 3))
    y = np.column_stack([X[:, 0], np.ones(60)])
    res = fb.fit(NET, X, y, epochs=5, seed=0)
    assert res.score(X, y) == pytest.approx(metrics.r2_score(y, res.predict(X)))
    labels = rng.integers(0, 2, 60)
    res = fb.fit(NET, X, labels, loss="softmax_ce", epochs=5, seed=0)
    expected = metrics.accuracy_score(labels, res.predict(X).argmax(axis=1))
    assert res.score(X, labels) == res.score(X, np.eye(2)[labels]) == expected
    flags = rng.integers(0, 2, (60, 2))
    res = fb.fit(NET, X, flags, loss="bce_logits", epochs=5, seed=0)
    assert res.score(X, flags) == metrics.accuracy_score(flags, res.predict(X) > 0)


def test_score_of_every_loss(backend, rng):
    """Each score against its formula, at parameters where it is neither perfect nor void."""
    X, noise = rng.standard_normal((60, 3)), rng.standard_normal((60, 2))
    Z = X[:, :2] + noise
    right = {
        "values": Z,
        "probabilities": (Z > 0).astype(float),
        "signs": np.where(Z > 0, 1, -1),
        "counts": np.round(np.exp(Z)),
        "classes": Z.argmax(axis=1),
        "halves": Z[:, :1],
        "none": None,
    }

    def r2(Y, T):
        return np.mean(1 - np.mean((Y - T) ** 2, axis=0) / np.var(T, axis=0))

    quartic = fb.custom_loss(lambda y, t: ((y - t) ** 4, 4 * (y - t) ** 3), name="quartic")
    for loss in [*TABLE.values(), fb.huber(0.3), quartic]:
        output = "sigmoid" if loss.name == "bce" else "linear"
        net = fb.Network(3, fb.Dense(1 if loss.paired else 2, output))
        y = right[loss.target]
        res = fb.fit(net, X, y, loss=loss, epochs=3, seed=0, lr=0.05)
        if loss.name == "gaussian_kl":
            with pytest.raises(ValueError, match="'gaussian_kl' has no targets and so no score"):
                res.score(X, y)
            continue
        Y = res.predict(X)
        if loss.target in ("probabilities", "signs"):
            positive = Y > (0.5 if loss.name == "bce" else 0)
            expected = np.mean([tuple(a) == tuple(b) for a, b in zip(positive, Z > 0, strict=True)])
        elif loss.target == "classes":
            expected = np.mean((Y[:, 1] > Y[:, 0]) == y)
        elif loss.paired:
            better, worse = Y.reshape(-1, 2).T
            expected = np.mean(better > worse)
        elif loss.target == "counts":
            expected = r2(np.exp(Y), y)
        else:
            expected = r2(Y[:, :1], y) if loss.target == "halves" else r2(Y, y)
        assert res.score(X, y) == pytest.approx(expected, rel=1e-12), loss
        assert expected < 1
    with pytest.raises(ValueError, match="loss 'quartic' expects values"):
        res.score(X, None)


def test_score_of_few_rows(data):
    X, y = data
    res = fb.fit(NET, X, y, epochs=1, seed=0)
    assert np.isnan(res.score(X[:1], y[:1]))
    with pytest.raises(fb.ShapeError, match=r"X has shape \(0, 3\), expected at least one row"):
        res.score(X[:0], y[:0])
    with pytest.raises(fb.ShapeError, match="y has shape"):
        res.score(X, y[:, 0])


# Seeds, batches, orders.


def test_seed_draws_start_and_order(backend, data):
    X, y = data
    res = fb.fit(NET, X, y, epochs=4, batch_size=16, seed=7)
    init, order, _ = np.random.SeedSequence(7).spawn(3)
    start = NET.init(init)
    again = fb.fit(NET, X, y, epochs=4, batch_size=16, seed=7, params=start)
    assert np.array_equal(again.params, res.params)
    first = np.random.default_rng(order).permutation(70)
    one = fb.fit(NET, X, y, epochs=1, batch_size=16, seed=7)
    stored = fb.fit(
        NET, X[first], y[first], epochs=1, batch_size=16, seed=7, params=start, shuffle=False
    )
    assert np.array_equal(one.params, stored.params)
    other = fb.fit(NET, X, y, epochs=1, batch_size=16, seed=8, params=start)
    assert not np.array_equal(one.params, other.params)


def test_a_fresh_seed_is_kept(backend, data):
    X, y = data
    first, second = fb.fit(NET, X, y, epochs=2), fb.fit(NET, X, y, epochs=2)
    assert first.seed != second.seed
    again = fb.fit(NET, X, y, epochs=2, seed=first.seed)
    assert np.array_equal(again.params, first.params)


def test_batch_sizes(backend, data):
    X, y = data

    def run(batch_size, rows=70, **options):
        return fb.fit(NET, X[:rows], y[:rows], epochs=2, seed=0, batch_size=batch_size, **options)

    assert run("auto").nfev == 2 * 3
    assert run("auto", rows=20).nfev == 2
    assert run(None).nfev == run(1000).nfev == run(np.int64(70)).nfev == 2
    assert run(1).nfev == 140
    assert np.array_equal(run("auto").params, run(32).params)
    # All rows at once: shuffling would change the order of a sum at most, and does not.
    assert np.array_equal(run(None).params, run(1000, shuffle=False).params)


def test_options_go_before_the_method_s_own(backend, data):
    X, y = data

    def params(method, **options):
        return fb.fit(NET, X, y, method=method, epochs=3, seed=0, **options).params

    momentum = params(fb.SGD(0.02, 0.5))
    assert np.array_equal(params("momentum", lr=0.02, momentum=0.5), momentum)
    assert np.array_equal(params(fb.SGD(0.7, 0.1), lr=0.02, momentum=0.5), momentum)
    adam = params(fb.Adam(1e-2, (0.5, 0.9), 1e-6))
    assert np.array_equal(params("adam", lr=1e-2, betas=(0.5, 0.9), eps=1e-6), adam)
    nesterov = params("nesterov")
    assert np.array_equal(params("sgd", momentum=0.9, nesterov=True), nesterov)
    adamw = params(fb.AdamW(1e-2, weight_decay=0.3))
    assert np.array_equal(params("adamw", lr=1e-2, weight_decay=0.3), adamw)
    rmsprop = params(fb.RMSprop(1e-2, 0.9, 1e-6, 0.5, centered=True))
    options = {"lr": 1e-2, "alpha": 0.9, "eps": 1e-6, "momentum": 0.5, "centered": True}
    assert np.array_equal(params("rmsprop", **options), rmsprop)
    adagrad = params(fb.Adagrad(0.1, 0.2, 0.3, 1e-6))
    options = {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.3, "eps": 1e-6}
    assert np.array_equal(params("adagrad", **options), adagrad)
    plain = [params(name) for name in METHODS]
    for a, b in itertools.combinations([momentum, adam, adamw, rmsprop, adagrad, *plain], 2):
        assert not np.array_equal(a, b)


def test_backends_agree(data):
    X, y = data
    runs = {
        name: fb.fit(NET, X, y, epochs=5, batch_size=8, seed=3, backend=name).params
        for name in fb.available_backends()
    }
    for params in runs.values():
        np.testing.assert_allclose(params, runs["numpy"], rtol=0, atol=1e-11)


def test_backend_argument(data, monkeypatch):
    X, y = data
    calls = []
    module = backends.load("numpy")
    train = module.train
    monkeypatch.setattr(module, "train", lambda *args: calls.append(1) or train(*args))
    fb.fit(NET, X, y, epochs=1, backend="numpy")
    assert calls


# What goes in stays as it was.


@pytest.mark.parametrize("method", ["adam", "scg", "fmincg", "L-BFGS-B", "trf"])
def test_inputs_are_only_read(backend, data, method):
    X, y = data
    start, weights = NET.init(0), np.linspace(0.5, 1, 70)
    arrays = [X, y, start, weights]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    res = fb.fit(
        NET, X, y, method=method, params=start, sample_weight=weights, epochs=3, loss="sse"
    )
    for a, b in zip(arrays, before, strict=True):
        assert np.array_equal(a, b)
    assert res.params.flags.writeable
    assert not np.shares_memory(res.params, start)


def test_any_array_like(backend, data):
    X, y = data
    expected = fb.fit(NET, X, y, epochs=2, seed=0).params
    for A, b in [
        (X.tolist(), y.tolist()),
        (np.asfortranarray(X), np.asfortranarray(y)),
        (X.astype(">f8"), y.astype(">f8")),
        (np.repeat(X, 2, axis=0)[::2], y),
    ]:
        assert np.array_equal(fb.fit(NET, A, b, epochs=2, seed=0).params, expected)


# Masks and frozen layers.


def partly_fixed(dtype):
    """A network of which 15 parameters of 39 are free, and where to start."""
    net = fb.Network(
        3,
        fb.Dense(
            4, "tanh", mask=[[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]], bias_mask=[1, 0, 1, 1]
        ),
        fb.Dense(3, "tanh", trainable=False),
        fb.Dense(2, trainable=[[1, 0], [0, 1], [0, 0]]),
        dtype=dtype,
    )
    start = net.init(0)
    masked, frozen = ~np.isin(np.arange(39), net.free), np.arange(16, 31)
    masked[16:] = False
    garbage = start[masked]
    signaling = {4: 0x7FA00001, 8: 0x7FF4000000000001}[dtype.itemsize]
    garbage.view(f"u{dtype.itemsize}")[:] = signaling  # NaN that most operations would change
    garbage[:3] = np.inf, -np.inf, -0.0
    start[masked], start[frozen[:2]] = garbage, (-0.0, 1e-30)
    return net, start


FITS = [*FIRST_ORDER, *MINIMIZE, *LEAST_SQUARES]


@pytest.mark.parametrize("method", FITS)
def test_no_method_changes_a_fixed_entry(backend, data, dtype, method):
    X, y = data
    net, start = partly_fixed(dtype)
    before, free = start.tobytes(), net.free
    options = {"loss": "sse", "method": method, "epochs": 8, "seed": 1, "l2": 0.1}
    if method in FIRST_ORDER:
        options |= {"lr": 1e-3, "batch_size": 16}
    res = fb.fit(net, X, y, params=start, **options)
    assert start.tobytes() == before
    assert np.delete(res.params, free).tobytes() == np.delete(start, free).tobytes()
    assert (res.params[free] != start[free]).all()
    assert np.isfinite(res.params[free]).all()
    assert not np.delete(res.grad, free).any()
    # What lies where a mask is counts as zero.
    clean = np.where(np.isfinite(start), start, 0)
    same = fb.fit(net, X, y, params=clean, **options)
    assert np.array_equal(res.params[free], same.params[free])
    assert (res.fun, res.nfev) == (same.fun, same.nfev)
    assert res.fun < net.value(start, X, y, "sse", l2=0.1)


@pytest.mark.parametrize(
    "method", ["sgd", "adamw", "scg", "L-BFGS-B", "BFGS", "fmincg", "trf", "dogbox"]
)
def test_divergence_and_ctrl_c_keep_fixed_entries(backend, data, monkeypatch, method):
    X, y = data
    net, start = partly_fixed(np.dtype(np.float64))
    fixed = np.delete(start, net.free).tobytes()
    options = {"method": method, "params": start, "seed": 0}
    res = fb.fit(net, X, 1e200 * y, on_divergence="return", **options)
    assert (res.status, res.params.tobytes()) == (3, start.tobytes())
    if method in FIRST_ORDER:
        res = fb.fit(net, X, y, loss="sse", lr=1e9, on_divergence="return", **options)
        assert (res.status, np.delete(res.params, net.free).tobytes()) == (3, fixed)
        name, count = "train", 3
        place = backends.load(backend)
    else:
        name, count = ("residuals" if method in LEAST_SQUARES else "value_and_grad"), 9
        place = Objective
    original, calls = getattr(place, name), []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(place, name, interrupted)
    monkeypatch.setattr("fastbp.training.loop.CHUNK_SECONDS", 0.0)
    res = fb.fit(net, X, y, **options)
    assert (res.status, np.delete(res.params, net.free).tobytes()) == (4, fixed)
    assert (res.params[net.free] != start[net.free]).any()


@pytest.mark.parametrize("method", ["scg", "fmincg", "L-BFGS-B", "BFGS", "trf"])
def test_a_masked_input_is_as_good_as_none(backend, line, method):
    X, y = line
    net = fb.Network(3, fb.Dense(1, mask=[[1], [0], [1]]))
    options = {"method": method, "loss": "sse", "l2": 0.1, "epochs": 4}
    res = fb.fit(net, X, y, params=[0.1, np.nan, 0.2, 0.0], **options)
    less = fb.fit(fb.Network(2, fb.Dense(1)), X[:, [0, 2]], y, params=[0.1, 0.2, 0.0], **options)
    np.testing.assert_allclose(np.delete(res.params, 1), less.params, rtol=1e-9)
    np.testing.assert_allclose(res.history["loss"], less.history["loss"], rtol=1e-9)
    assert res.nfev == less.nfev


def test_a_frozen_start_must_be_finite(backend, data):
    X, y = data
    net, start = partly_fixed(np.dtype(np.float64))
    start[17] = np.nan
    with pytest.raises(fb.NonFiniteError, match="params holds nan at entry 17"):
        fb.fit(net, X, y, params=start)


@pytest.mark.parametrize("method", ["adam", "L-BFGS-B", "trf"])
def test_something_must_be_free(backend, data, method):
    net = fb.Network(
        3, fb.Dense(5, trainable=False), fb.Dense(2, bias=False, mask=np.zeros((5, 2)))
    )
    with pytest.raises(ValueError, match="all 30 parameters of the network are masked or frozen"):
        fb.fit(net, *data, method=method)


# Dropout, threads.


@pytest.mark.parametrize("method", MINIMIZE + LEAST_SQUARES)
def test_dropout_needs_minibatch_methods(backend, data, method):
    net = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(5, "tanh", dropout=0.25), fb.Dense(2))
    with pytest.raises(ValueError, match=r"layer 1 has dropout=0\.25, .* takes a minibatch method"):
        fb.fit(net, *data, method=method)
    assert fb.fit(net, *data, batch_size=None, epochs=2).success


@pytest.mark.parametrize("method", ["L-BFGS-B", "trf"])
def test_threads_change_nothing(backend, dtype, rng, method):
    X = rng.standard_normal((1600, 3))  # 7 parts
    y, net = np.column_stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]]), NET.astype(dtype)
    one, *others = [
        fb.fit(net, X, y, method=method, epochs=2, seed=0, threads=threads)
        for threads in (1, 2, 3, 7)
    ]
    for res in others:
        assert res.params.tobytes() == one.params.tobytes()
        assert res.history["loss"].tobytes() == one.history["loss"].tobytes()
        assert res.fun == one.fun and res.nfev == one.nfev


# What cannot be.


def test_bad_data(backend, data):
    X, y = data
    with pytest.raises(fb.ShapeError, match=r"X has shape \(70, 2\), expected \(n, 3\)"):
        fb.fit(NET, X[:, :2], y)
    with pytest.raises(fb.ShapeError, match=r"y has shape \(69, 2\), expected \(70, 2\)"):
        fb.fit(NET, X, y[:69])
    with pytest.raises(fb.ShapeError, match=r"y has shape \(70,\), expected \(70, 2\)"):
        fb.fit(NET, X, y[:, 0])
    with pytest.raises(fb.ShapeError, match=r"X has shape \(0, 3\), expected at least one row"):
        fb.fit(NET, X[:0], y[:0])
    with pytest.raises(TypeError, match="X has dtype complex128"):
        fb.fit(NET, X + 0j, y)
    with pytest.raises(TypeError, match="y has dtype <U1"):
        fb.fit(NET, X, np.full((70, 2), "a"))
    with pytest.raises(TypeError, match="y is not an array of real numbers"):
        fb.fit(NET, X, [[1.0, 2.0], [3.0]] * 35)
    with pytest.raises(ValueError, match="y holds label 2 at row 5, expected 0 to 1"):
        fb.fit(NET, X, np.where(np.arange(70) == 5, 2, 0), loss="softmax_ce")
    with pytest.raises(TypeError, match=r"net is list, expected fastbp.Network"):
        fb.fit(X.tolist(), y, NET)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["adam", "fmincg", "scg"])
def test_non_finite_data(backend, data, bad, method):
    X, y = data
    A, b, p = X.copy(), y.copy(), NET.init(0)
    A[4, 2] = b[6, 1] = p[9] = bad
    with pytest.raises(fb.NonFiniteError, match=rf"X holds {bad} at row 4, column 2"):
        fb.fit(NET, A, y, method=method)
    with pytest.raises(fb.NonFiniteError, match=rf"y holds {bad} at row 6, column 1"):
        fb.fit(NET, X, b, method=method)
    with pytest.raises(fb.NonFiniteError, match=rf"params holds {bad} at entry 9"):
        fb.fit(NET, X, y, params=p, method=method)
    # Not "row 6 is no label".
    for loss in ("softmax_ce", "bce_logits"):
        with pytest.raises(fb.NonFiniteError, match=rf"y holds {bad} at row 6"):
            fb.fit(NET, X, np.where(np.isfinite(b), 0, bad), loss=loss, method=method)
    with pytest.raises(fb.NonFiniteError, match=r"y holds .* at row 3"):
        fb.fit(NET, X, np.where(np.arange(70) == 3, bad, 0.0), loss="softmax_ce")


def test_what_float32_cannot_hold(backend, data):
    X, y = data
    net = NET.astype("float32")
    with pytest.raises(fb.NonFiniteError, match="X holds inf at row 0, column 0"):
        fb.fit(net, np.where(np.arange(210).reshape(70, 3) == 0, 1e300, X), y)
    with pytest.raises(fb.NonFiniteError, match="y holds inf at row 0, column 0"):
        fb.fit(net, X, np.full_like(y, 1e300))


def test_bad_parameters(backend, data):
    X, y = data
    with pytest.raises(fb.ShapeError, match=r"params has shape \(31,\), expected \(32,\)"):
        fb.fit(NET, X, y, params=np.zeros(31))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "adaam"}, ValueError, r"unknown method 'adaam': .*did you mean 'adam'\?"),
        ({"method": "L-BFGS"}, ValueError, "did you mean 'L-BFGS-B'"),
        ({"method": fb.Adam}, TypeError, "method is .*, expected a name or such as fastbp.Adam"),
        ({"loss": "msee"}, ValueError, "unknown loss 'msee': .*did you mean 'mse'"),
        ({"beta": 0.9}, TypeError, "option of Adam 'beta': .*'eps'.* did you mean 'betas'"),
        ({"epoch": 5}, TypeError, "option of Adam 'epoch': .* did you mean 'epochs'"),
        ({"method": "sgd", "momentun": 0.9}, TypeError, "did you mean 'momentum'"),
        ({"lr": 0, "method": "adagrad"}, ValueError, "lr is 0.0, expected a positive finite rate"),
        (
            {"eps": -1, "method": "rmsprop"},
            ValueError,
            r"eps is -1\.0, expected a finite number >=",
        ),
        (
            {"weight_decay": "a", "method": "adamw"},
            TypeError,
            "weight_decay is 'a', expected a num",
        ),
        ({"centred": 1, "method": "rmsprop"}, TypeError, "did you mean 'centered'"),
        ({"lr": 0}, ValueError, r"lr is 0\.0, expected a positive finite rate"),
        ({"lr": np.nan}, ValueError, "lr is nan, expected a positive finite rate"),
        ({"method": "nesterov", "momentum": 0}, ValueError, "nesterov=True needs momentum"),
        ({"epochs": 0}, ValueError, "epochs is 0, expected at least 1"),
        ({"epochs": 1.5}, TypeError, r"epochs is 1\.5, expected a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size is 0, expected at least 1"),
        ({"batch_size": "all"}, ValueError, "batch_size is 'all', expected 'auto', None or a"),
        ({"batch_size": 8.0}, TypeError, r"batch_size is 8\.0, expected a whole number"),
        ({"batch_size": 8, "method": "fmincg"}, ValueError, "batch_size is 8 with .*'fmincg'"),
        ({"batch_size": 70, "method": "trf"}, ValueError, "takes all rows at once"),
        ({"seed": -1}, ValueError, "seed is -1, expected at least 0"),
        ({"seed": 0.5}, TypeError, r"seed is 0\.5, expected a whole number"),
        ({"on_divergence": "rise"}, ValueError, "on_divergence 'rise': .*did you mean 'raise'"),
        ({"backend": "nunpy"}, ValueError, "unknown backend 'nunpy': .*did you mean 'numpy'"),
        ({"l2": -1}, ValueError, r"l2 is -1\.0, expected a finite number >= 0"),
        ({"l1": np.nan}, ValueError, "l1 is nan, expected a finite number >= 0"),
        ({"group": "a"}, TypeError, "group is 'a', expected a number >= 0"),
        ({"l1": 1, "method": "trf"}, ValueError, "l1 and group are not sums of squares"),
        ({"group": 1, "method": "dogbox"}, ValueError, "l1 and group are not sums of squares"),
        ({"threads": 0}, ValueError, "threads is 0, expected at least 1"),
        ({"threads": 2.0}, TypeError, r"threads is 2\.0, expected a whole number"),
        ({"thread": 2}, TypeError, "did you mean 'threads'"),
        ({"loss": "gaussian_kl"}, ValueError, "y was given, but loss 'gaussian_kl' has no targets"),
        ({"loss": "hinge"}, ValueError, "loss 'hinge' expects labels -1 and 1"),
        ({"sample_weight": np.zeros(70)}, ValueError, "sample_weight is zero everywhere"),
        ({"sample_weight": np.ones(69)}, fb.ShapeError, r"\(69,\), expected \(70,\)"),
        ({"method": "fmincg", "redd": 2.0}, TypeError, "did you mean 'red'"),
        ({"method": "BFGS", "gtoll": 2.0}, TypeError, "did you mean 'gtol'"),
        ({"method": "trf", "gtoll": 2.0}, TypeError, "did you mean 'gtol'"),
        ({"method": "BFGS", "callback": print}, TypeError, "callback is not an option of fit"),
    ],
)
def test_bad_arguments(backend, data, options, error, message):
    X, y = data
    with pytest.raises(error, match=message):
        fb.fit(NET, X, y, **options)


def test_losses_without_targets(backend, data):
    X, _ = data
    assert fb.fit(NET, X, None, loss="gaussian_kl", epochs=2).success
    with pytest.raises(ValueError, match="y is None, but loss 'mse' expects values"):
        fb.fit(NET, X, None)
    for method in ("adam", "L-BFGS-B"):
        res = fb.fit(LINE, X, None, loss="margin_ranking", method=method, epochs=2, l2=0.1)
        assert np.isfinite(res.fun)
    with pytest.raises(fb.ShapeError, match=r"X has 69 rows, .* expects pairs: an even number"):
        fb.fit(LINE, X[:69], None, loss="margin_ranking")
    with pytest.raises(fb.ShapeError, match=r"sample_weight has shape \(70,\), expected \(35,\)"):
        fb.fit(LINE, X, None, loss="margin_ranking", sample_weight=np.ones(70))


def test_batches_of_pairs(backend, data):
    X, _ = data

    def run(batch_size):
        return fb.fit(LINE, X, None, loss="margin_ranking", batch_size=batch_size, epochs=2, seed=0)

    assert run("auto").nfev == 2 * 3
    assert run(None).nfev == run(70).nfev == run(80).nfev == 2
    assert np.array_equal(run("auto").params, run(32).params)
    for batch_size in (1, 7, 71):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}, expected an even"):
            run(batch_size)


def test_least_squares_needs_squares(backend, data):
    X, _ = data
    with pytest.raises(ValueError, match="loss 'softmax_ce' is not a sum of squares"):
        fb.fit(NET, X, np.zeros(70, int), method="trf", loss="softmax_ce")


# Divergence.


def one_row(**options):
    net = fb.Network(2, fb.Dense(1))
    return fb.fit(
        net, [[4.0, 7.0]], [2.0], params=[0.5, 0.5, 1.0], loss="sse", **{"method": "sgd"} | options
    )


def test_too_large_a_rate_is_told_the_largest_stable_one(backend):
    with pytest.raises(fb.DivergenceError) as caught:
        one_row(lr=30.0)
    message, res = str(caught.value), caught.value.result
    assert "with lr=30" in message
    assert f"largest stable one is about {2 / 132:.4g} = 2/λ_max" in message
    assert f"in epoch {res.epoch} (step {res.step} of the run)" in message
    assert (res.success, res.status, res.message) == (False, 3, message)
    assert res.step <= 5
    assert res.epoch == res.step  # one step an epoch
    assert res.loss > 1e6
    assert np.isfinite(res.params).all()
    assert np.isfinite(res.fun)
    returned = one_row(lr=30.0, on_divergence="return")
    assert returned.message == message
    assert np.array_equal(returned.params, res.params)


def test_the_edge_is_where_it_is_said_to_be(backend):
    start = one_row(epochs=1, lr=1e-300).history["loss"][0]
    at_once = one_row(lr=1 / 132, epochs=2)
    assert at_once.history["loss"][1] < 1e-20 * start
    on_it = one_row(lr=2 / 132, epochs=2)
    assert on_it.history["loss"][1] == pytest.approx(start, rel=1e-9)
    assert one_row(lr=1.9 / 132, epochs=500).fun < 1e-10
    beyond = one_row(lr=2.1 / 132, epochs=500, on_divergence="return")
    assert beyond.status == 3


@pytest.mark.parametrize(("name", "factor"), [("momentum", 3.8), ("nesterov", 3.8 / 2.8)])
def test_momentum_s_limit_is_its_own(backend, name, factor):
    res = one_row(method=name, lr=30.0, on_divergence="return")
    assert f"stable one is about {factor / 132:.4g} = {factor:.4g}/λ_max" in res.message


def test_minibatches_are_told_what_cannot_be_stable(backend, rng):
    X = 10 * rng.standard_normal((64, 3))
    with pytest.raises(fb.DivergenceError, match="none is stable above about"):
        fb.fit(LINE, X, X.sum(axis=1), method="sgd", lr=1.0, seed=0, batch_size=8)


def test_no_limit_where_there_is_none(backend, data, rng):
    X, y = data
    with pytest.raises(fb.DivergenceError) as caught:
        fb.fit(NET, X, y, method="adam", lr=1e9, seed=0)
    assert "take a smaller rate or scale X and y" in str(caught.value)
    X = 1e3 * rng.standard_normal((64, 3))
    y = (X.sum(axis=1) > 0).astype(float)
    with pytest.raises(fb.DivergenceError) as caught:
        fb.fit(LINE, X, y, method="sgd", lr=1e306, loss="bce_logits", seed=0)
    assert "take a smaller rate or scale X and y" in str(caught.value)


@pytest.mark.parametrize("batch", [None, 5])
def test_overflow_within_few_steps(backend, dtype, data, batch):
    """Here the objective or the parameters overflow before three epochs are over."""
    X, y = data
    net = fb.Network(3, fb.Dense(4, "relu"), fb.Dense(4, "relu"), fb.Dense(2), dtype=dtype)
    res = fb.fit(
        net, X, y, method="sgd", lr=1e30, loss="sse", batch_size=batch, on_divergence="return"
    )
    assert (res.success, res.status) == (False, 3)
    assert np.isfinite(res.params).all()
    assert np.isfinite(res.fun)
    assert res.params.dtype == dtype
    assert res.nit == len(res.history["loss"]) <= res.epoch <= 4


def test_the_start_itself_overflows(backend, data):
    X, y = data
    for method in (*FIRST_ORDER, "scg", "fmincg", "L-BFGS-B", "trf"):
        with pytest.raises(fb.DivergenceError, match="objective is inf at the initial parameters"):
            fb.fit(NET, X, 1e200 * y, method=method)
        res = fb.fit(NET, X, 1e200 * y, method=method, on_divergence="return", seed=0)
        assert (res.success, res.status, res.nit) == (False, 3, 0)
        assert np.array_equal(res.params, NET.init(np.random.SeedSequence(0).spawn(3)[0]))


def test_a_method_that_ends_in_nan(backend, data, monkeypatch):
    X, y = data
    value_and_grad = Objective.value_and_grad
    seen = []

    def failing(obj, params):
        seen.append(params.copy())
        value, grad = value_and_grad(obj, params)
        return (value, grad) if len(seen) < 8 else (np.nan, np.full_like(grad, np.nan))

    monkeypatch.setattr(Objective, "value_and_grad", failing)
    res = fb.fit(NET, X, y, method="L-BFGS-B", on_divergence="return")
    assert (res.success, res.status) == (False, 3)
    assert "L-BFGS-B diverged in iteration" in res.message
    assert np.isfinite(res.params).all()


# Ctrl-C.


@pytest.mark.parametrize("batch", [None, 16])
def test_interrupt_keeps_the_work(backend, data, batch):
    X, y = data

    def run(epochs):
        return fb.fit(NET, X, y, method="sgd", epochs=epochs, batch_size=batch, seed=0)

    run(1)  # compiles
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    res = run(10**9)
    timer.join()
    assert (res.success, res.status) == (False, 4)
    assert res.message == f"interrupted (Ctrl-C) after {res.nit} epochs"
    assert res.nit == len(res.history["loss"]) > 0
    assert np.isfinite(res.fun)
    again = run(res.nit)
    assert np.array_equal(again.history["loss"], res.history["loss"])
    if batch is None:
        assert np.array_equal(again.params, res.params)


@pytest.mark.parametrize("method", ["scg", "fmincg", "L-BFGS-B", "trf"])
def test_interrupt_of_a_full_batch_method(backend, data, monkeypatch, method):
    X, y = data
    name = "residuals" if method == "trf" else "value_and_grad"
    original = getattr(Objective, name)
    calls = []

    def interrupted(obj, params):
        calls.append(1)
        if len(calls) == 9:
            signal.raise_signal(signal.SIGINT)
        return original(obj, params)

    monkeypatch.setattr(Objective, name, interrupted)
    start = NET.init(0)
    res = fb.fit(NET, X, y, method=method, params=start)
    assert (res.success, res.status) == (False, 4)
    assert res.message == f"interrupted (Ctrl-C) after {res.nit} iterations"
    assert res.nit == len(res.history["loss"]) > 0
    assert res.fun == pytest.approx(res.history["loss"][-1])
    assert res.fun < NET.value(start, X, y)


def test_two_fits_at_once(backend, data):
    X, y = data
    options = {"epochs": 60, "batch_size": 8, "backend": backend}
    alone = [fb.fit(NET, X, y, seed=seed, **options) for seed in range(4)]
    together = [None] * 4

    def run(seed):
        together[seed] = fb.fit(NET, X, y, seed=seed, **options)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a.params, b.params)
        assert np.array_equal(a.history["loss"], b.history["loss"])


# Full-batch methods.


@pytest.mark.parametrize("method", MINIMIZE + LEAST_SQUARES)
def test_full_batch_methods_find_the_line(backend, line, method):
    X, y = line
    expected, rss, *_ = np.linalg.lstsq(np.column_stack([X, np.ones(40)]), y, rcond=None)
    exact = {"fmincg", "BFGS", "L-BFGS-B", "CG", "Newton-CG", "trust-constr", *LEAST_SQUARES}
    tight = {"L-BFGS-B": {"ftol": 0, "gtol": 1e-7}, "BFGS": {"gtol": 1e-7}, "CG": {"gtol": 1e-7}}
    res = fb.fit(LINE, X, y, method=method, loss="sse", seed=1, **tight.get(method, {}))
    np.testing.assert_allclose(res.params, expected, atol=1e-8 if method in exact else 1e-3)
    # At the minimum Newton-CG's differences of gradients are all rounding, and it may say so.
    rounding = any(text in res.message for text in ("not positive definite", "precision loss"))
    assert res.success or (method == "Newton-CG" and rounding)
    assert res.fun == pytest.approx(rss[0], rel=1e-6)
    assert res.history["loss"][-1] == pytest.approx(res.fun, rel=1e-9)
    assert len(res.history["loss"]) == res.nit == res.epoch
    # trust-constr shrinks its region with the point staying where it is, which is not evaluated.
    assert res.nfev == res.step >= (1 if method == "trust-constr" else res.nit)
    assert isinstance(res.message, str)


@pytest.mark.parametrize("method", ["scg", "fmincg", "L-BFGS-B", "trf"])
def test_full_batch_methods_round_once(backend, data, method):
    X, y = (a.astype(np.float32) for a in data)
    start = NET.astype("float32").init(0)
    double = fb.fit(NET, X, y, method=method, params=start, epochs=20)
    single = fb.fit(NET.astype("float32"), X, y, method=method, params=start, epochs=20)
    assert single.params.dtype == single.grad.dtype == np.float32
    assert np.array_equal(single.params, double.params.astype(np.float32))
    assert np.array_equal(single.history["loss"], double.history["loss"])
    assert single.fun == pytest.approx(double.fun, rel=1e-5)


@pytest.mark.parametrize("method", ["scg", "fmincg", "L-BFGS-B", "BFGS", "SLSQP", "trf"])
def test_epochs_limit_the_iterations(backend, data, method):
    X, y = data
    res = fb.fit(NET, X, y, method=method, epochs=3, seed=0)
    assert (res.success, res.status) == (False, 1)
    assert res.nit <= 3


def test_names_in_any_case(backend, line):
    X, y = line
    res = fb.fit(LINE, X, y, method="l-bfgs-b", seed=0)
    assert np.array_equal(res.params, fb.fit(LINE, X, y, method="L-BFGS-B", seed=0).params)


def test_penalty_and_weights_reach_every_method(backend, line):
    X, y = line
    terms = {"sample_weight": np.linspace(0.5, 2, 40), "l2": 0.3, "loss": "half_mse", "seed": 0}
    trf = fb.fit(LINE, X, y, method="trf", **terms)
    for method in ("scg", "fmincg", "BFGS"):
        res = fb.fit(LINE, X, y, method=method, **terms)
        np.testing.assert_allclose(res.params, trf.params, atol=1e-4)
    sgd = fb.fit(LINE, X, y, method="sgd", lr=0.3, batch_size=None, epochs=2000, **terms)
    np.testing.assert_allclose(sgd.params, trf.params, atol=1e-9)
    assert sgd.history["loss"][-1] == pytest.approx(trf.fun, rel=1e-12)


def test_least_squares_of_a_scipy_without_callback(backend, line, monkeypatch):
    import scipy.optimize

    X, y = line
    new = fb.fit(LINE, X, y, method="trf", seed=0)
    least_squares = scipy.optimize.least_squares

    def older(fun, x0, jac="2-point", method="trf", max_nfev=None):
        return least_squares(fun, x0, jac=jac, method=method, max_nfev=max_nfev)

    monkeypatch.setattr(scipy.optimize, "least_squares", older)
    old = fb.fit(LINE, X, y, method="trf", seed=0)
    assert np.array_equal(old.params, new.params)
    assert np.array_equal(old.history["loss"], new.history["loss"])
