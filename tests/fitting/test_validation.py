"""`fit(validation=..., patience=...)`: held-out rows, and the best parameters by them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.fits import (
    FIRST_ORDER,
    FULL_BATCH,
    LEAST_SQUARES,
    LINE,
    MINIMIZE,
    NET,
    N,
    children,
    close,
    fitted,
    losses_and_targets,
)

import fastbp as fb

pytestmark = pytest.mark.backend


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


def rows_of(X, rows):
    """Which rows of X these are."""
    places = (X[:, None] == rows).all(axis=2).argmax(axis=0)
    assert np.array_equal(X[places], rows)
    return places


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.37, 0.5, 0.97])
@pytest.mark.parametrize("method", ["adam", "L-BFGS-B"])
def test_a_fraction_is_drawn_with_the_seed(backend, data, method, fraction):
    X, y = data
    weights = np.linspace(1, 2, N)
    options = {"method": method, "epochs": 3, "sample_weight": weights}
    res = fitted(data, validation=fraction, **options)
    training = rows_of(X, res.data[0])
    out = np.setdiff1d(np.arange(N), training)
    assert len(out) == max(1, round(fraction * N))
    assert len(training) == res.n_rows == N - len(out)
    assert (np.diff(training) > 0).all()
    expected = np.random.default_rng(children(5)[3]).permutation(N)[: len(out)]
    assert out.tolist() == sorted(expected)
    explicit = fitted(
        (X[training], y[training]), validation=(X[out], y[out], weights[out]),
        **options | {"sample_weight": weights[training]},
    )  # fmt: skip
    assert np.array_equal(res.params, explicit.params)
    for name in ("loss", "val_loss"):
        assert np.array_equal(res.history[name], explicit.history[name])


def test_other_seeds_hold_out_other_rows(backend, data):
    training = [
        tuple(rows_of(data[0], fitted(data, validation=0.3, seed=seed).data[0]))
        for seed in (0, 1, 2, 0)
    ]
    assert len(set(training)) == 3
    assert training[0] == training[3]


def test_pairs_are_held_out_together(backend, rng):
    X, weights = rng.standard_normal((30, 3)), rng.uniform(0.5, 2, 15)
    options = {"loss": "margin_ranking", "method": "adam"}
    res = fitted((X, None), LINE, validation=0.4, sample_weight=weights, **options)
    training = rows_of(X, res.data[0])
    assert len(training) == 18
    assert np.array_equal(training[0::2] % 2, np.zeros(9))
    assert np.array_equal(training[1::2], training[0::2] + 1)
    pairs = np.setdiff1d(np.arange(15), training // 2)
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
    for rate in (0.1,) if "ada" in method else (0.02, 0.1, 0.5):  # the first that overfits in time
        options["lr"] = rate
        values = fitted(data, **options).history["val_loss"]
        expected = stops_after(values, 4, tol or 0.0)
        if expected is not None and np.argmin(values[:expected]) < expected - 1:
            break
    assert expected is not None
    seen = []
    res = fitted(
        data, patience=4, tol=tol, callbacks=lambda epoch: seen.append(epoch.params), **options
    )
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

        def note(epoch, seen=seen, stop=stop):
            seen.append((epoch.val_loss, epoch.params))
            return epoch.epoch == stop

        res = fitted(data, callbacks=note, **options)
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
