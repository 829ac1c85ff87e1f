"""`fit(scale=...)`: fits to scaled data against the same by hand."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.fits import (
    LINE,
    NET,
    children,
    close,
    fitted,
    losses_and_targets,
)

import fastbp as fb

pytestmark = pytest.mark.backend
SOME = ["sgd", "adam", "scg", "L-BFGS-B", "trf"]


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
