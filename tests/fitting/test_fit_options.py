"""What can be asked of a fit beside its method: each option against an account of its own."""

from __future__ import annotations

import itertools
import pickle
import time
import tracemalloc

import numpy as np
import pytest

import fastbp as fb
from fastbp.maths.losses import TABLE
from fastbp.training.optimizers import METHODS

pytestmark = pytest.mark.backend

NET = fb.Network(3, fb.Dense(5, "tanh"), fb.Dense(2))
LINE = fb.Network(3, fb.Dense(1))
N = 50
FIRST_ORDER = list(METHODS)
MINIMIZE = ["scg", "fmincg", "L-BFGS-B", "BFGS", "CG", "Newton-CG", "TNC", "SLSQP", "trust-constr",
    "trust-ncg", "trust-krylov", "trust-exact"]  # fmt: skip
LEAST_SQUARES = ["trf", "dogbox"]
FULL_BATCH = [*MINIMIZE, *LEAST_SQUARES]
SOME = ["sgd", "adam", "scg", "L-BFGS-B", "trf"]


@pytest.fixture
def data(rng):
    X = rng.standard_normal((N, 3))
    return X, np.column_stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]])


@pytest.fixture
def held(rng):
    X = rng.standard_normal((21, 3))
    return X, np.column_stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]])


@pytest.fixture
def raw(rng):
    """Columns that call for scaling."""
    X = rng.standard_normal((N, 3)) * [0.1, 1, 20] + [3, 0, -50]
    y = np.column_stack([50 + 7 * np.sin(X[:, 1]), 0.01 * X[:, 2]])
    return X, y + 0.1 * rng.standard_normal((N, 2)) * [7, 0.01]


def fitted(data, net=NET, **options):
    X, y = data
    return fb.fit(net, X, y, **{"epochs": 8, "seed": 5} | options)


def children(seed):
    """Of the initial parameters, the orders, the dropout and the rows held out."""
    return np.random.SeedSequence(seed).spawn(4)


def batches(seed, n, batch, epochs):
    """The rows of each step."""
    rng = np.random.default_rng(children(seed)[1])
    for _ in range(epochs):
        order = rng.permutation(n) if batch < n else np.arange(n)
        for start in range(0, n, batch):
            yield order[start : start + batch]


def iterates(data, net=NET, **options):
    """The parameters after each step of a run, taken one at a time."""
    found = [fitted(data, net, max_time=1e-9, **options)]
    options.pop("seed", None)
    X, y = data
    while found[-1].status == 1:
        found.append(fb.fit(net, X, y, state=found[-1].state, max_time=1e-9, **options))
    assert [res.nfev for res in found] == list(range(1, len(found) + 1))
    return [res.params for res in found]


def close(a, b, rtol=1e-11):
    """Equal but for the rounding of each step, about 1e-16, of which later ones make more."""
    np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


# Scaling.


def by_hand(scale, A):
    """(shift, unit) of the columns."""
    if scale == "standard":
        return A.mean(axis=0), A.std(axis=0)
    return A.min(axis=0), A.max(axis=0) - A.min(axis=0)


def folded(net, params, x, y=None):
    """The parameters for raw columns, written out."""
    pairs = [(W.copy(), b.copy()) for W, b in net.unpack(params)]
    (shift, unit), (W, b) = x, pairs[0]
    pairs[0] = (W / unit[:, None], b - (shift / unit) @ W)
    if y is not None:
        (shift, unit), (W, b) = y, pairs[-1]
        pairs[-1] = (W * unit, b * unit + shift)
    return net.pack(pairs)


@pytest.mark.parametrize("scale", ["standard", "minmax"])
@pytest.mark.parametrize("method", SOME)
def test_scaled_by_hand(backend, raw, method, scale):
    X, y = raw
    x_unit, y_unit = by_hand(scale, X), by_hand(scale, y)
    inside = ((X - x_unit[0]) / x_unit[1], (y - y_unit[0]) / y_unit[1])
    options = {"method": method, "epochs": 6, "l2": 0.01}
    expected = fitted(inside, params=NET.init(children(5)[0]), **options)
    seen = []
    res = fitted(raw, scale=scale, callbacks=lambda epoch: seen.append(epoch.params), **options)
    # The scaled columns differ in their last bit; what a search makes of that is more.
    close(res.history["loss"], expected.history["loss"], 1e-9)
    close(res.params, folded(NET, expected.params, x_unit, y_unit), 1e-7)
    close(res.predict(X), expected.predict(inside[0]) * y_unit[1] + y_unit[0], 1e-7)
    assert res.fun == NET.value(res.params, X, y, l2=0.01)
    assert np.array_equal(res.grad, NET.value_and_grad(res.params, X, y, l2=0.01)[1])
    assert len(seen) == res.nit
    assert np.array_equal(seen[-1], res.params)


def losses_and_targets(rng):
    values = 100 + 30 * rng.standard_normal((N, 2))
    quartic = fb.custom_loss(lambda y, t: ((y - t) ** 4, 4 * (y - t) ** 3), name="quartic")
    forms = {
        "values": values,
        "probabilities": (values > 100).astype(float),
        "signs": np.where(values > 100, 1.0, -1.0),
        "counts": np.round(abs(values) / 50),
        "classes": (values[:, 0] > 100).astype(int),
        "halves": values[:, :1],
        "none": None,
    }
    for loss in TABLE.values():
        yield loss, forms[loss.target], loss.target in ("values", "halves")
    yield quartic, values / 50, False  # of which nobody knows what it compares


def test_which_targets_are_scaled(backend, rng, raw):
    X, _ = raw
    x_unit = by_hand("standard", X)
    for loss, y, plain in losses_and_targets(rng):
        output = "sigmoid" if loss.name == "bce" else "linear"
        net = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(1 if loss.paired else 2, output))
        options = {"loss": loss, "epochs": 3, "batch_size": 10, "lr": 1e-3}
        inside = y
        if plain:
            shift, unit = by_hand("standard", y)
            inside = (y - shift) / unit
        expected = fitted(
            ((X - x_unit[0]) / x_unit[1], inside), net, params=net.init(children(5)[0]), **options
        )
        res = fitted((X, y), net, scale="standard", **options)
        close(res.history["loss"], expected.history["loss"], 1e-9)
        y_unit = None
        if loss.target == "halves":  # means, and logarithms of variances
            y_unit = np.append(shift, 2 * np.log(unit)), np.append(unit, 1.0)
        elif plain:
            y_unit = shift, unit
        close(res.params, folded(net, expected.params, x_unit, y_unit), 1e-9)


def test_scaled_likelihoods_are_those_of_densities(backend, raw):
    """A density over scaled values is one over raw ones, but for the unit."""
    _, y = raw
    net = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(4))
    res = fitted(raw, net, loss="gaussian_nll", scale="standard", batch_size=None, epochs=1)
    again = fitted(
        raw, net, loss="gaussian_nll", batch_size=None, epochs=1, method="sgd", lr=1e-300,
        params=res.params,
    )  # fmt: skip
    step = fitted(
        raw, net, loss="gaussian_nll", scale="standard", batch_size=None, epochs=2, seed=5
    )
    shift = np.log(y.std(axis=0)).sum()
    assert again.history["loss"][0] == pytest.approx(step.history["loss"][1] + shift, rel=1e-11)


def test_a_start_is_for_raw_data(backend, dtype, raw):
    X, y = raw
    start = LINE.astype(dtype).init(3)
    res = fitted(
        (X, y[:, 0]), LINE.astype(dtype), params=start, scale="standard", method="sgd", lr=1e-300,
        epochs=1, batch_size=None,
    )  # fmt: skip
    eps = float(np.finfo(dtype).eps)
    # There and back again: the bias takes up shift/unit·W both ways.
    unit, size = by_hand("standard", X), by_hand("standard", y[:, :1])
    terms = np.abs(start).sum() * (np.abs(unit[0]) + 1).max() + np.abs(size[0]).sum()
    np.testing.assert_allclose(res.params, start, rtol=8 * eps, atol=8 * eps * terms)
    raw_loss = LINE.value(start, X, y[:, 0])
    assert res.history["loss"][0] == pytest.approx(raw_loss / y[:, 0].var(), rel=2e3 * eps)


def test_scalers_are_of_the_training_rows(backend, raw):
    X, y = raw
    res = fitted((X, y[:, 0]), LINE, scale="minmax", validation=0.4, method="sgd", lr=0.01)
    train_X, train_y = res.data
    assert len(train_X) == 30
    _, unit = by_hand("minmax", train_y)
    seen = []
    fitted(
        (X, y[:, 0]), LINE, scale="minmax", validation=0.4, method="sgd", lr=0.01,
        callbacks=lambda epoch: seen.append(epoch.params),
    )  # fmt: skip
    out = ~(X[:, None] == train_X).all(axis=2).any(axis=1)
    values = [LINE.value(params, X[out], y[out, 0]) / unit**2 for params in seen]
    close(res.history["val_loss"], np.ravel(values), 1e-11)


@pytest.mark.parametrize("scale", ["standard", "minmax"])
def test_constant_columns_and_one_row(backend, raw, scale):
    X, y = raw
    X[:, 1] = 7.0
    y[:, 0] = 3.0
    res = fitted((X, y), scale=scale)
    assert np.isfinite(res.params).all()
    assert np.isfinite(fitted((X[:1], y[:1]), scale=scale).fun)


ENDS = {"inner": fb.Dense(5, "tanh"), "last": fb.Dense(2)}
UNFOLDABLE = {
    "no first bias": ([fb.Dense(5, "tanh", bias=False), fb.Dense(2)], "layer 0, which has no bias"),
    "masked bias": ([fb.Dense(2, bias_mask=[1, 0])], "unit 1 of layer 0, which has no bias"),
    "no last bias": ([fb.Dense(5, "tanh"), fb.Dense(2, bias=False)], "layer 1, which has no bias"),
    "relu": ([fb.Dense(5, "tanh"), fb.Dense(2, "relu")], "the last layer is 'relu'"),
    "first frozen": ([fb.Dense(5, trainable=False), fb.Dense(2)], "layer 0, which has frozen ent"),
    "last frozen": ([fb.Dense(5), fb.Dense(2, trainable=False)], "layer 1, which has frozen ent"),
    "partly frozen": ([fb.Dense(2, trainable=[[1, 0]] * 3)], "layer 0, which has frozen entries"),
}


@pytest.mark.parametrize("start", [None, np.zeros])
@pytest.mark.parametrize("method", ["adam", "scg"])
@pytest.mark.parametrize("case", UNFOLDABLE)
def test_what_cannot_be_folded(backend, raw, method, case, start):
    layers, message = UNFOLDABLE[case]
    net = fb.Network(3, *layers)
    params = None if start is None else start(net.n_params)
    with pytest.raises(ValueError, match=rf"scale='standard' .*{message}"):
        fitted(raw, net, method=method, scale="standard", params=params)


def test_what_need_not_be_folded(backend, raw):
    """Layers that a loss's targets do not reach, and those within."""
    X, y = raw
    labels = (y[:, 1] > y[:, 1].mean()).astype(int)
    last = fb.Network(3, fb.Dense(5, "tanh"), fb.Dense(2, trainable=False))
    assert fitted((X, labels), last, loss="softmax_ce", scale="standard").success
    inner = fb.Network(3, fb.Dense(5, "tanh"), fb.Dense(4, trainable=False), fb.Dense(2))
    res = fitted(raw, inner, scale="standard", params=inner.init(1))
    assert np.array_equal(inner.unpack(res.params)[1][0], inner.unpack(inner.init(1))[1][0])
    masked = fb.Network(
        3, fb.Dense(5, "tanh", mask=np.arange(15).reshape(3, 5) % 3 > 0), NET.layers[1]
    )
    assert fitted(raw, masked, scale="standard").success


# Validation.


@pytest.mark.parametrize("method", [*FIRST_ORDER, *FULL_BATCH])
def test_validation_is_told_each_epoch(backend, data, held, method):
    # TNC counts evaluations, of which an iteration takes some.
    options = {"method": method, "epochs": 30 if method == "TNC" else 5, "l2": 0.1}
    seen = []
    res = fitted(
        data, validation=held, callbacks=lambda epoch: seen.append((epoch.val_loss, epoch.params)),
        **options,
    )  # fmt: skip
    assert list(res.history) == ["loss", "val_loss"]
    assert res.history["val_loss"].dtype == np.float64
    assert len(seen) == len(res.history["val_loss"]) == len(res.history["loss"]) == res.nit
    assert [value for value, _ in seen] == res.history["val_loss"].tolist()
    close(res.history["val_loss"], np.array([NET.value(p, *held) for _, p in seen]), 1e-14)
    # It is looked at, and nothing more.
    alone = fitted(data, **options)
    assert np.array_equal(res.params, alone.params)
    assert np.array_equal(res.history["loss"], alone.history["loss"])


def test_validation_without_dropout_and_with_weights(backend, dtype, data, held):
    net = fb.Network(3, fb.Dense(5, "tanh", dropout=0.4), fb.Dense(2), dtype=dtype)
    weights = np.linspace(0, 3, 21)
    seen = []
    res = fitted(
        data, net, validation=(*held, weights), group=0.1, sample_weight=np.linspace(1, 2, N),
        callbacks=lambda epoch: seen.append(net.value(epoch.params, *held, sample_weight=weights)),
    )  # fmt: skip
    # Not bitwise: beside dropout the library may sum a narrow network's rows of 4 and 6 terms in
    # another order, 10 roundings of half an epsilon.
    close(res.history["val_loss"], np.array(seen), 5 * np.finfo(dtype).eps)


def rows_of(X, found):
    """Which rows of X these are."""
    places = (X[:, None] == found).all(axis=2).argmax(axis=0)
    assert np.array_equal(X[places], found)
    return places


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.37, 0.5, 0.97])
@pytest.mark.parametrize("method", ["adam", "L-BFGS-B"])
def test_a_fraction_is_drawn_with_the_seed(backend, data, method, fraction):
    X, y = data
    weights = np.linspace(1, 2, N)
    options = {"method": method, "epochs": 3, "sample_weight": weights}
    res = fitted(data, validation=fraction, **options)
    kept = rows_of(X, res.data[0])
    out = np.setdiff1d(np.arange(N), kept)
    assert len(out) == max(1, round(fraction * N))
    assert len(kept) == res.n_rows == N - len(out)
    assert (np.diff(kept) > 0).all()
    expected = np.random.default_rng(children(5)[3]).permutation(N)[: len(out)]
    assert out.tolist() == sorted(expected)
    explicit = fitted(
        (X[kept], y[kept]), validation=(X[out], y[out], weights[out]),
        **options | {"sample_weight": weights[kept]},
    )  # fmt: skip
    assert np.array_equal(res.params, explicit.params)
    for name in ("loss", "val_loss"):
        assert np.array_equal(res.history[name], explicit.history[name])


def test_other_seeds_hold_out_other_rows(backend, data):
    kept = [
        tuple(rows_of(data[0], fitted(data, validation=0.3, seed=seed).data[0]))
        for seed in (0, 1, 2, 0)
    ]
    assert len(set(kept)) == 3
    assert kept[0] == kept[3]


def test_pairs_are_held_out_together(backend, rng):
    X, weights = rng.standard_normal((30, 3)), rng.uniform(0.5, 2, 15)
    options = {"loss": "margin_ranking", "method": "adam"}
    res = fitted((X, None), LINE, validation=0.4, sample_weight=weights, **options)
    kept = rows_of(X, res.data[0])
    assert len(kept) == 18
    assert np.array_equal(kept[0::2] % 2, np.zeros(9))
    assert np.array_equal(kept[1::2], kept[0::2] + 1)
    pairs = np.setdiff1d(np.arange(15), kept // 2)
    rows = np.column_stack([2 * pairs, 2 * pairs + 1]).ravel()
    last = LINE.value(res.params, X[rows], None, "margin_ranking", sample_weight=weights[pairs])
    assert res.history["val_loss"][-1] == pytest.approx(last, rel=1e-14)


def test_targets_of_every_form_are_held_out(backend, rng, raw):
    X, _ = raw
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    for loss, y, _ in losses_and_targets(rng):
        output = "sigmoid" if loss.name == "bce" else "linear"
        net = fb.Network(3, fb.Dense(1 if loss.paired else 2, output))
        res = fitted((X, y), net, loss=loss, validation=0.3, epochs=2)
        out = np.setdiff1d(np.arange(N), rows_of(X, res.data[0]))
        last = net.value(res.params, X[out], None if y is None else y[out], loss)
        assert res.history["val_loss"][-1] == pytest.approx(last, rel=1e-13), loss.name


def test_a_diverging_run_is_not_validated_at_its_end(backend, data, held):
    seen = []
    res = fitted(
        data, method="sgd", loss="sse", lr=1.0, batch_size=None, epochs=50, validation=held,
        on_divergence="return", callbacks=lambda epoch: seen.append(epoch.val_loss),
    )  # fmt: skip
    assert (res.status, res.state) == (3, None)
    assert res.nit == len(seen) + 1
    assert res.history["val_loss"][:-1].tolist() == seen
    assert np.isnan(res.history["val_loss"][-1])


def test_scaled_validation_must_be_finite(backend, data):
    X, y = data
    with pytest.raises(fb.NonFiniteError, match="validation: X holds inf at row 0"):
        fitted(
            (1e-30 * X, y), NET.astype("float32"), scale="standard", validation=(1e30 * abs(X), y)
        )


# Patience.


def stops_after(watched, patience, tol=0.0):
    """How many epochs a run takes whose watched values are these, if they suffice."""
    reference, waited = np.inf, 0
    for k, value in enumerate(watched, start=1):
        if reference == np.inf or value < reference - tol * abs(reference):
            reference, waited = value, 0
        else:
            waited += 1
        if waited == patience:
            return k
    return None


@pytest.mark.parametrize("tol", [None, 0.02])
@pytest.mark.parametrize("method", FIRST_ORDER)
def test_patience_returns_the_best(backend, data, held, method, tol):
    X, y = held
    options = {"method": method, "epochs": 400, "validation": (X[:8], y[:8] - 0.7)}
    options["lr"] = 0.1 if "ada" in method else 0.02
    seen = []
    res = fitted(
        data, patience=4, tol=tol, callbacks=lambda epoch: seen.append(epoch.params), **options
    )
    values = fitted(data, **options).history["val_loss"]
    expected = stops_after(values, 4, tol or 0.0)
    assert expected is not None
    assert (res.status, res.nit) == (0, expected)
    best = int(np.argmin(values[:expected]))
    assert np.array_equal(res.params, seen[best])
    assert best < expected - 1
    assert f"no progress in 4 epochs beyond {values[best]:.6g}" in res.message
    assert f"stopped after {expected} epochs" in res.message


@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_patience_without_validation(backend, data, method):
    """The epoch's mean objective is watched; the parameters are those after the epoch."""
    options = {"method": method, "lr": 0.3, "epochs": 300, "batch_size": 10}
    seen = []
    res = fitted(data, patience=3, callbacks=lambda epoch: seen.append(epoch.params), **options)
    values = fitted(data, **options).history["loss"]
    assert res.nit == stops_after(values, 3) < 300
    assert np.array_equal(res.params, seen[int(np.argmin(values[: res.nit]))])


@pytest.mark.parametrize("method", MINIMIZE + LEAST_SQUARES)
def test_patience_of_full_batch_methods(backend, data, held, method):
    X, y = held
    options = {"method": method, "validation": (X[:8], y[:8] - 0.7), "epochs": 60}
    seen = []
    res = fitted(data, patience=3, callbacks=lambda epoch: seen.append(epoch.params), **options)
    values = fitted(data, **options).history["val_loss"]
    expected = stops_after(values, 3) or len(values)
    assert res.nit == expected
    assert np.array_equal(res.params, seen[int(np.argmin(values[:expected]))])
    if expected < len(values):
        assert (res.status, res.message[:27]) == (0, "no progress in 3 iterations")


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B", "trf"])
def test_the_best_is_returned_however_it_ends(backend, data, held, method):
    X, y = held
    options = {"method": method, "validation": (X[:8], y[:8] - 0.7), "epochs": 7, "patience": 50}
    if method == "adam":
        options["lr"] = 0.3
    for stop in (3, 6, 7):
        seen = []

        def told(epoch, seen=seen, stop=stop):
            seen.append((epoch.val_loss, epoch.params))
            return epoch.epoch == stop

        res = fitted(data, callbacks=told, **options)
        assert np.array_equal(res.params, min(seen, key=lambda pair: pair[0])[1])


def test_tol_alone_is_patience_of_ten(backend, data):
    options = {"method": "sgd", "lr": 0.1, "epochs": 2000, "batch_size": None}
    res = fitted(data, tol=0.01, **options)
    values = fitted(data, **options).history["loss"]
    assert res.nit == stops_after(values, 10, 0.01) < 2000
    assert np.array_equal(res.params, fitted(data, tol=0.01, patience=10, **options).params)


def test_progress_of_negative_values(backend, data):
    """A likelihood may be negative: progress is still downwards."""
    X, _ = data
    net = fb.Network(3, fb.Dense(2))
    options = {"loss": "gaussian_nll", "lr": 0.05, "epochs": 900, "batch_size": None}
    tiny = (X, 1e-2 * X[:, :1])
    res = fitted(tiny, net, tol=0.02, patience=5, **options)
    values = fitted(tiny, net, **options).history["loss"]
    assert values[res.nit - 1] < 0
    assert res.nit == stops_after(values, 5, 0.02) < 900


# Goals, tolerances, time.


@pytest.mark.parametrize("method", [*FIRST_ORDER, *MINIMIZE, *LEAST_SQUARES])
def test_the_first_epoch_that_meets_the_goal(backend, data, method):
    whole = fitted(data, method=method, epochs=12, batch_size="auto")
    losses = whole.history["loss"]
    k = int(np.argmin(losses[: max(2, len(losses) // 2)]))
    res = fitted(data, method=method, epochs=12, goal=losses[k])
    assert (res.success, res.status, res.nit) == (True, 0, k + 1)
    done = f"{k + 1} {'epoch' if method in FIRST_ORDER else 'iteration'}{'s' if k else ''}"
    assert res.message == f"the goal of {losses[k]:g} was met in {done}"
    assert np.array_equal(res.history["loss"], losses[: k + 1])
    never = fitted(data, method=method, epochs=12, goal=-1.0)
    assert np.array_equal(never.params, whole.params)
    assert (never.status, never.message) == (whole.status, whole.message)


@pytest.mark.parametrize("method", MINIMIZE + LEAST_SQUARES)
def test_tol_is_the_method_s_own(backend, data, method):
    loose, tight = (fitted(data, method=method, tol=tol, epochs=40) for tol in (0.3, 1e-12))
    assert loose.status == 0
    assert loose.nit < tight.nit
    assert loose.fun > tight.fun


def test_tol_is_the_largest_entry_of_the_gradient(backend, data):
    for method in ("scg", "BFGS"):
        res = fitted(data, method=method, tol=1e-2, epochs=500)
        assert res.success
        assert np.abs(res.grad).max() <= 1e-2


@pytest.mark.parametrize("method", [*FIRST_ORDER, "scg", "L-BFGS-B", "trf"])
def test_out_of_time(backend, data, method):
    def slow(epoch):
        time.sleep(0.02)

    res = fitted(data, method=method, epochs=10**6, max_time=0.05, callbacks=slow)
    assert (res.success, res.status) == (False, 1)
    assert res.nit <= 3  # each takes at least 0.02 s
    done = f"{res.nit} {'epoch' if method in FIRST_ORDER else 'iteration'}"
    assert res.message == f"max_time is over after {done}" + ("s" if res.nit != 1 else "")
    assert res.elapsed >= 0.05


def test_out_of_time_without_callbacks(backend, data):
    res = fitted(data, epochs=10**9, max_time=0.1)
    assert res.status == 1
    again = fitted(data, epochs=max(res.nit, 1))
    assert np.array_equal(again.history["loss"][: res.nit], res.history["loss"])


def test_time_is_enough(backend, data):
    for method in ("adam", "scg", "trf"):
        res, same = (fitted(data, method=method, max_time=limit) for limit in (1e6, np.inf))
        assert np.array_equal(res.params, same.params)
        assert res.message == same.message


# Clipping and averages.


@pytest.mark.parametrize("limit", [0.3, 1.0])
def test_clipped_by_hand(backend, data, limit):
    net = fb.Network(
        3,
        fb.Dense(5, "tanh", mask=np.arange(15).reshape(3, 5) % 4 > 0),
        fb.Dense(2, trainable=False),
    )
    X, y = data
    p, clipped = net.init(1), 0
    for rows in batches(5, N, 10, 4):
        _, g = net.value_and_grad(p, X[rows], y[rows], l2=0.3, backend="numpy")
        norm = np.sqrt((g[net.free] ** 2).sum())
        clipped += norm > limit
        p[net.free] -= 0.2 * g[net.free] * min(1, limit / (norm + 1e-6))
    assert 0 < clipped <= 20
    assert (clipped < 20) == (limit == 1.0)
    res = fitted(
        data, net, method="sgd", lr=0.2, params=net.init(1), batch_size=10, epochs=4, l2=0.3,
        clip_norm=limit,
    )  # fmt: skip
    close(res.params, p)


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_what_is_within_the_limit_is_left_alone(backend, dtype, data, method):
    net = NET.astype(dtype)
    free, within, hard = (
        fitted(data, net, method=method, clip_norm=limit) for limit in (None, 1e6, 1e-3)
    )
    assert np.array_equal(free.params, within.params)
    assert not np.array_equal(free.params, hard.params)


def test_a_clipped_step_is_as_long_as_allowed(backend, dtype, data):
    net = NET.astype(dtype)
    start = net.init(0)
    res = fitted(
        data, net, params=start, method="sgd", lr=0.5, clip_norm=1e-2, epochs=1, batch_size=None
    )
    length = np.linalg.norm((res.params - start).astype(float))
    norm = np.linalg.norm(net.value_and_grad(start, *data)[1].astype(float))
    expected = 0.5 * norm * 1e-2 / (norm + 1e-6)
    # The parameters are about 1 and have the dtype's rounding, which is no small part of a step.
    assert length == pytest.approx(expected, abs=len(start) * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("epochs", [1, 2, 5])
@pytest.mark.parametrize("method", FIRST_ORDER)
def test_the_average_of_the_last_half(backend, data, method, epochs):
    """Epochs of three steps: of 3, 6 and 15 the last 2, 3 and 8."""
    options = {"method": method, "epochs": epochs, "batch_size": 20}
    met = iterates(data, **options)
    assert len(met) == 3 * epochs
    res = fitted(data, average=True, **options)
    close(res.params, np.mean(met[len(met) // 2 :], axis=0), 1e-14)
    assert np.array_equal(res.history["loss"], fitted(data, **options).history["loss"])
    assert res.fun == NET.value(res.params, *data)


def test_averages_are_told_and_validated_once_begun(backend, dtype, data, held):
    net = NET.astype(dtype)
    options = {"lr": 0.05, "batch_size": 20, "epochs": 5}
    met = iterates(data, net, **options)
    seen = []
    res = fitted(
        data, net, average=True, validation=held,
        callbacks=lambda epoch: seen.append(epoch.params), **options,
    )  # fmt: skip
    eps = np.finfo(dtype).eps
    for k in range(5):
        steps = 3 * (k + 1)
        expected = met[steps - 1] if steps <= 7 else np.mean(met[7:steps], axis=0, dtype=float)
        close(seen[k], expected, eps)
    values = [net.value(params, *held) for params in seen]
    close(res.history["val_loss"], np.array(values), 10 * eps)
    assert np.array_equal(res.params, seen[-1])
    assert res.params.dtype == dtype


def test_the_best_average(backend, data, held):
    options = {"lr": 0.3, "epochs": 30, "average": True, "validation": held}
    seen = []
    res = fitted(data, patience=30, callbacks=lambda e: seen.append(e.params), **options)
    assert np.array_equal(res.params, seen[int(np.argmin(res.history["val_loss"]))])


def test_averages_of_scaled_parameters(backend, raw):
    """Folding the mean is taking the mean of what is folded."""
    options = {"scale": "standard", "batch_size": 20, "epochs": 4, "lr": 0.02}
    met = iterates(raw, **options)
    res = fitted(raw, average=True, **options)
    close(res.params, np.mean(met[6:], axis=0), 1e-13)


def test_averages_leave_fixed_entries_alone(backend, dtype, data):
    mask = np.arange(15).reshape(3, 5) % 4 > 0
    net = fb.Network(3, fb.Dense(5, mask=mask), fb.Dense(2, trainable=False), dtype=dtype)
    start = net.init(0)
    start[0] = np.nan
    seen = []
    res = fitted(
        data, net, params=start, average=True, callbacks=lambda epoch: seen.append(epoch.params)
    )
    for params in (*seen, res.params):
        assert np.delete(params, net.free).tobytes() == np.delete(start, net.free).tobytes()


# Rates.


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_a_constant_schedule_is_a_number(backend, data, method):
    number, constant = (
        fitted(data, method=method, lr=lr) for lr in (0.02, lambda epoch: 0.02 + 0 * epoch)
    )
    assert np.array_equal(number.params, constant.params)


def cosine(epoch):
    return 0.01 + 0.29 * (1 + np.cos(np.pi * min(epoch / 3, 1))) / 2


RATES = {
    "cosine": (fb.schedules.cosine(0.3, 3, final=0.01), cosine),
    "step": (fb.schedules.step(0.3, 2, 0.5), lambda epoch: 0.3 * 0.5 ** (epoch // 2)),
    "exponential": (fb.schedules.exponential(0.3, 0.7), lambda epoch: 0.3 * 0.7**epoch),
    "inverse_time": (fb.schedules.inverse_time(0.3, 0.8), lambda epoch: 0.3 / (1 + 0.8 * epoch)),
    "warmup": (
        fb.schedules.warmup(fb.schedules.exponential(0.3, 0.7), 2, start=0.2),
        lambda epoch: 0.3 * (0.2 + 0.4 * epoch) if epoch < 2 else 0.3 * 0.7 ** (epoch - 2),
    ),
    "own": (lambda epoch: 0.3 / (1 + epoch**2), lambda epoch: 0.3 / (1 + epoch**2)),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_by_hand(backend, data, name):
    """Seven steps an epoch, each with its rate."""
    schedule, rate = RATES[name]
    X, y = data
    p = NET.init(1)
    for step, rows in enumerate(batches(5, N, 8, 4)):
        p = p - rate(step / 7) * NET.value_and_grad(p, X[rows], y[rows], backend="numpy")[1]
    told = []
    res = fitted(
        data, method="sgd", lr=schedule, params=NET.init(1), batch_size=8, epochs=4,
        callbacks=lambda epoch: told.append(epoch.rate),
    )  # fmt: skip
    close(res.params, p)
    assert told == pytest.approx([rate((7 * k + 6) / 7) for k in range(4)], rel=1e-14)


def test_a_rate_of_zero_stands_still(backend, data):
    res = fitted(data, method="sgd", lr=lambda epoch: 0.1 if epoch < 3 else 0.0)
    assert np.array_equal(res.params, fitted(data, method="sgd", lr=0.1, epochs=3).params)


def test_a_bad_rate_is_told_when_it_comes(backend, data):
    with pytest.raises(ValueError, match=r"lr is -1\.0 at epoch 3, expected a finite rate >= 0"):
        fitted(data, lr=lambda epoch: 0.1 if epoch < 3 else -1)
    with pytest.raises(TypeError, match=r"the rate at epoch 0 .* is 'fast', expected a number"):
        fitted(data, lr=lambda epoch: "fast")


# Callbacks.


@pytest.mark.parametrize("method", [*FIRST_ORDER, *FULL_BATCH])
def test_what_callbacks_are_told(backend, data, method):
    told = []

    def note(epoch):
        told.append((epoch, epoch.params, epoch.elapsed))

    res = fitted(data, method=method, callbacks=note, epochs=30 if method == "TNC" else 8)
    assert [epoch.epoch for epoch, _, _ in told] == list(range(1, res.nit + 1))
    assert [epoch.loss for epoch, _, _ in told] == res.history["loss"].tolist()
    assert {epoch.val_loss for epoch, _, _ in told} == {None}
    times = [elapsed for _, _, elapsed in told]
    assert times == sorted(times)
    assert 0 < times[-1] <= res.elapsed
    assert {id(epoch.net) for epoch, _, _ in told} == {id(NET)}
    assert np.array_equal(told[-1][1], res.params)
    assert not np.array_equal(told[0][1], told[-1][1])
    rates = {epoch.rate for epoch, _, _ in told}
    assert rates == ({None} if method in FULL_BATCH else {METHODS[method].lr})
    assert (told[-1][0].state is None) == (method in FULL_BATCH and method != "scg")
    assert repr(told[0][0]).startswith(f"Epoch(1: loss={told[0][0].loss:.6g}")


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B", "trf"])
def test_what_callbacks_get_is_theirs(backend, data, method):
    def spoil(epoch):
        params, again = epoch.params, epoch.params
        assert params is not again
        assert np.array_equal(params, again)
        params[:] = np.nan
        for value in (epoch.state or {}).values():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                value[...] = np.nan

    res, same = (fitted(data, method=method, callbacks=calls) for calls in (spoil, ()))
    assert np.array_equal(res.params, same.params)
    assert np.array_equal(res.history["loss"], same.history["loss"])


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B"])
def test_callbacks_of_scaled_fits_see_raw_parameters(backend, raw, method):
    told = []
    res = fitted(
        raw, method=method, scale="standard", epochs=4,
        callbacks=lambda epoch: told.append(NET.value(epoch.params, *raw)),
    )  # fmt: skip
    assert told[-1] == res.fun
    assert len(told) == 4


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B", "trf"])
def test_callbacks_see_fixed_entries_as_they_were(backend, data, method):
    net = fb.Network(3, fb.Dense(5, "tanh", mask=np.arange(15).reshape(3, 5) % 4 > 0), fb.Dense(2))
    start = net.init(0)
    start[0] = np.nan
    told = []
    res = fitted(
        data, net, params=start, method=method, callbacks=lambda epoch: told.append(epoch.params)
    )
    assert told[-1].tobytes() == res.params.tobytes()


def test_callbacks_are_called_in_their_order(backend, data):
    calls = []
    callbacks = (lambda epoch, k=k: calls.append((epoch.epoch, k)) for k in range(3))
    fitted(data, epochs=2, callbacks=callbacks)
    assert calls == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B", "trf"])
def test_only_true_stops(backend, data, method):
    for answer in (1, "stop", [True], np.array([True]), np.ones(3), None, False, np.False_):
        res = fitted(data, method=method, epochs=4, callbacks=lambda epoch, a=answer: a)
        assert res.nit >= 3, answer
    for answer in (True, np.True_):
        res = fitted(data, method=method, epochs=3, callbacks=lambda epoch, a=answer: a)
        assert (res.success, res.status, res.nit) == (False, 5, 1)
        noun = "epoch" if method == "adam" else "iteration"
        assert res.message == f"a callback stopped the fit after 1 {noun}"


@pytest.mark.parametrize("error", [ZeroDivisionError, StopIteration, SystemExit])
@pytest.mark.parametrize("method", ["adam", *FULL_BATCH])
def test_exceptions_of_callbacks_come_out(backend, data, method, error):
    def fail(epoch):
        if epoch.epoch == 2:
            raise error("mine")

    # SciPy would take StopIteration for a wish; generators make the same of it.
    expected, message = error, "mine"
    if error is StopIteration:
        expected, message = RuntimeError, "a callback raised StopIteration"
    with pytest.raises(expected, match=message):
        fitted(data, method=method, callbacks=fail, epochs=30)


@pytest.mark.parametrize("method", ["adam", "scg", "trf"])
def test_a_fit_in_a_fit(backend, data, method):
    within = []
    res = fitted(
        data, method=method, epochs=3,
        callbacks=lambda epoch: within.append(fitted(data, method=method, epochs=3).params),
    )  # fmt: skip
    for params in within:
        assert np.array_equal(params, res.params)


# All of them.


@pytest.mark.parametrize("method", [*FIRST_ORDER, *FULL_BATCH])
def test_inputs_are_only_read(backend, data, held, method):
    arrays = [*data, *held, np.linspace(1, 2, N), np.linspace(1, 2, 21), NET.init(0)]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    X, y, Xv, yv, weights, weights_v, start = arrays
    options = {"method": method, "epochs": 4, "params": start, "sample_weight": weights}
    fitted((X, y), validation=(Xv, yv, weights_v), scale="standard", patience=3, **options)
    fitted((X, y), validation=0.3, **options)
    for array, copy in zip(arrays, before, strict=True):
        assert np.array_equal(array, copy)


@pytest.mark.parametrize("method", ["adam", "scg", "trf"])
def test_results_survive_pickling(backend, data, method):
    res = fitted(data, method=method, validation=0.2, patience=5, scale="standard")
    text = res.summary()  # what it computes of the rows is kept
    copy = pickle.loads(pickle.dumps(res))
    assert np.array_equal(copy.params, res.params)
    assert copy.history.keys() == res.history.keys()
    assert np.array_equal(copy.history["val_loss"], res.history["val_loss"])
    assert copy.summary() == text
    if res.state is not None:
        options = {"method": method, "validation": 0.2, "patience": 5, "scale": "standard"}
        a, b = (fb.fit(NET, *data, state=r.state, epochs=12, **options) for r in (res, copy))
        assert np.array_equal(a.params, b.params)


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B", "trf"])
def test_results_as_scipy_s(backend, data, method):
    res = fitted(data, method=method)
    found = res.to_scipy()
    assert type(found).__module__.startswith("scipy.optimize")
    assert np.array_equal(found.x, res.params)
    assert np.array_equal(found.jac, res.grad)
    for name in ("fun", "success", "status", "message", "nit", "nfev"):
        assert found[name] == getattr(res, name)


@pytest.mark.parametrize("method", ["adam", "rmsprop", "scg"])
def test_threads_change_nothing(backend, dtype, rng, method):
    X = rng.standard_normal((1300, 3))
    data, net = (X, np.column_stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]])), NET.astype(dtype)
    options = {"method": method, "validation": 0.4, "patience": 3, "scale": "standard", "epochs": 3}
    if method != "scg":
        options |= {"batch_size": 600, "clip_norm": 0.1, "average": True}
    one, *others = (fitted(data, net, threads=threads, **options) for threads in (1, 2, 5))
    for res in others:
        assert res.params.tobytes() == one.params.tobytes()
        for name in ("loss", "val_loss"):
            assert res.history[name].tobytes() == one.history[name].tobytes()


COMBINED = {
    "watched": {"validation": 0.3, "patience": 3},
    "scaled": {"scale": "minmax", "validation": 0.2},
    "averaged": {"average": True, "clip_norm": 0.3, "lr": fb.schedules.cosine(0.03, 8)},
}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *itertools.product(FIRST_ORDER, COMBINED),
        *itertools.product(["scg", "L-BFGS-B"], ["watched", "scaled"]),
    ],
)
def test_backends_agree(data, method, name):
    runs = {
        backend: fitted(data, method=method, backend=backend, **COMBINED[name])
        for backend in fb.available_backends()
    }
    expected = runs["numpy"]
    for res in runs.values():
        # A gradient of almost zero is a quotient of two roundings after Adam's and its kin's root.
        close(res.params, expected.params, 1e-8)
        assert res.nit == expected.nit
        for key, values in expected.history.items():
            close(res.history[key], values, 1e-9)


def test_memory_does_not_grow_with_epochs_times_rows(backend):
    X = np.linspace(-1, 1, 2000).reshape(1000, 2)
    net, options = fb.Network(2, fb.Dense(1)), {"seed": 0, "batch_size": 400, "validation": 0.2}
    fb.fit(net, X, X[:, 0], epochs=2, **options)  # loads and compiles
    tracemalloc.start()
    try:
        fb.fit(net, X, X[:, 0], epochs=1500, **options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The orders of all epochs would be 1500·800 numbers, 9.6 MB; those of a block are 0.5 MB.
    assert peak < 3e6


# What cannot be.


MEANINGLESS = [
    ({"patience": 3}, r"patience is 3, but method '{}' never lets .*; pass validation=0\.2"),
    ({"clip_norm": 1.0}, "clip_norm=1 with method '{}', which chooses its own steps; leave it"),
    ({"average": True}, "average=True with method '{}', which chooses its own steps"),
    ({"batch_size": 8}, "batch_size is 8 with method '{}', which takes all rows at once"),
]


@pytest.mark.parametrize(("method", "case"), itertools.product(FULL_BATCH, MEANINGLESS))
def test_what_has_no_meaning_for_full_batch_methods(backend, data, method, case):
    options, message = case
    with pytest.raises(ValueError, match=message.format(method)):
        fitted(data, method=method, **options)


def test_what_validation_cannot_be(backend, data):
    X, y = data
    for fraction in (0, 1, 1.0, -0.2, 3, np.nan, np.inf, True, np.float32(0)):
        with pytest.raises(ValueError, match=r"validation is .*, expected a fraction in \(0, 1\)"):
            fitted(data, validation=fraction)
    for other in ("some", [], (X,), (X, y, None, None), {"X": X}, X):
        with pytest.raises(TypeError, match=r"validation is of type .*, expected a fraction in"):
            fitted(data, validation=other)
    for pair, error, message in [
        ((X[:, :2], y), fb.ShapeError, r"validation: X has shape \(50, 2\), expected \(n, 3\)"),
        ((X, y[:3]), fb.ShapeError, r"validation: y has shape \(3, 2\)"),
        ((X, y, np.ones(3)), fb.ShapeError, "validation: sample_weight has shape"),
        ((X[:0], y[:0]), fb.ShapeError, r"validation: X has shape \(0, 3\)"),
        ((X, y * np.nan), fb.NonFiniteError, "validation: y holds nan at row 0, column 0"),
        ((X * np.inf, y), fb.NonFiniteError, "validation: X holds .*inf at row 0, column 0"),
        ((X, y + 1j), TypeError, "validation: y has dtype complex128"),
        ((X, y, np.zeros(N)), ValueError, "validation: sample_weight is zero everywhere"),
    ]:
        with pytest.raises(error, match=message):
            fitted(data, validation=pair)
    for n, fraction in [(1, 0.5), (2, 0.9), (3, 0.99)]:
        with pytest.raises(ValueError, match=f"of {n} rows leaves none to train on"):
            fitted((X[:n], y[:n]), validation=fraction)
    with pytest.raises(ValueError, match="of 2 pairs of rows leaves none"):
        fitted((X[:4], None), LINE, loss="margin_ranking", validation=0.8)


WRONG = [
    ({"patience": 0}, ValueError, "patience is 0, expected at least 1"),
    ({"patience": -2, "method": "scg"}, ValueError, "patience is -2, expected at least 1"),
    ({"patience": 1.5}, TypeError, r"patience is 1\.5, expected a whole number"),
    ({"patience": True}, TypeError, "patience is True, expected a whole number"),
    ({"goal": "low"}, TypeError, "goal is 'low', expected a number"),
    ({"goal": np.nan}, ValueError, "goal is nan, expected the objective at which to stop"),
    ({"tol": -1e-3}, ValueError, r"tol is -0\.001, expected a finite number >= 0"),
    ({"tol": np.nan, "method": "BFGS"}, ValueError, "tol is nan, expected a finite number >= 0"),
    ({"tol": "small"}, TypeError, "tol is 'small', expected a number"),
    ({"max_time": 0}, ValueError, "max_time is 0, expected a positive number, or None"),
    ({"max_time": np.nan, "method": "trf"}, ValueError, "max_time is nan, expected a positive"),
    ({"max_time": "soon"}, TypeError, "max_time is 'soon', expected a number"),
    ({"clip_norm": 0}, ValueError, "clip_norm is 0, expected a positive number, or None"),
    ({"clip_norm": -1}, ValueError, "clip_norm is -1, expected a positive number, or None"),
    ({"clip_norm": np.nan}, ValueError, "clip_norm is nan, expected a positive number"),
    ({"clip_norm": [1, 2]}, TypeError, r"clip_norm is \[1, 2\], expected a number"),
    ({"average": "no"}, TypeError, "average is 'no', expected True or False"),
    ({"average": 0.9}, TypeError, r"average is 0\.9, expected True or False"),
    ({"shuffle": "no"}, TypeError, "shuffle is 'no', expected True or False"),
    ({"scale": "minmx"}, ValueError, "unknown scale 'minmx': .*did you mean 'minmax'"),
    ({"scale": True}, ValueError, "unknown scale True: expected one of 'standard', 'minmax'"),
    ({"callbacks": "plot"}, TypeError, "callbacks is 'plot', expected functions of one argument"),
    ({"callbacks": None}, TypeError, "callbacks is None, expected functions of one argument"),
    ({"callbacks": [print, 3]}, TypeError, "callbacks holds 3, expected functions of one"),
    ({"progress": "yes"}, ValueError, "progress is 'yes', expected 'auto'"),
    ({"weight_decay": -1, "method": "adamw"}, ValueError, "weight_decay is -1.0, expected a fin"),
    ({"weight_decay": 0.1}, TypeError, "unknown option of Adam 'weight_decay'"),
    ({"thread": 2, "method": "BFGS"}, TypeError, "did you mean 'threads'"),
    ({"gtoll": 2, "method": "bfgs"}, TypeError, "did you mean 'gtol'"),
    ({"max_nfevs": 2, "method": "trf"}, TypeError, "did you mean 'max_nfev'"),
    ({"sigm": 2, "method": "scg"}, TypeError, "did you mean 'sigma'"),
    ({"weight_decai": 0.1, "method": "adamw"}, TypeError, "did you mean 'weight_decay'"),
    ({"alpha": 1, "method": "rmsprop"}, ValueError, r"alpha is 1\.0, expected a number in \[0"),
    ({"lr_decay": np.inf, "method": "adagrad"}, ValueError, "lr_decay is inf, expected a finite"),
    ({"clip_nrom": 1.0}, TypeError, "did you mean 'clip_norm'"),
    ({"validatoin": 0.1}, TypeError, "did you mean 'validation'"),
    ({"sigm": 1e-3, "method": "scg"}, TypeError, "option of method 'scg' .*did you mean 'sigma'"),
    ({"hessp": print, "method": "scg"}, TypeError, "hessp is .*, expected True or False"),
    ({"sigma": 0.0, "method": "scg"}, ValueError, r"sigma is 0\.0, expected a small positive"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_options(backend, data, options, error, message):
    with pytest.raises(error, match=message):
        fitted(data, **options)
