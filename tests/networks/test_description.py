"""Descriptions of networks: packing, initial values, equality, words, errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from helpers.strategies import (
    BUMP,
    case,
    same,
)

import fastbp as fb
from fastbp.maths.activations import NAMES
from fastbp.maths.losses import TABLE as LOSS_TABLE

pytestmark = pytest.mark.backend

MIXED = [fb.relu(0.5), "sigmoid", "leaky_relu", "tanh", "linear", "relu"]


# Parameters.


def hand_written(bias=True):
    """2 inputs, 3 units, 1 output, with parameters 0, 1, 2, ..."""
    net = fb.Network(2, fb.Dense(3, "tanh", bias=bias), fb.Dense(1, bias=bias))
    return net, np.arange(float(net.n_params))


W1, B1 = np.array([[0.0, 1, 2], [3, 4, 5]]), np.array([6.0, 7, 8])
W2, B2 = np.array([[9.0], [10], [11]]), np.array([12.0])
LAYERS = {
    "xw": [(W1, B1), (W2, B2)],
    "wx": [(W1.T, B1), (W2.T, B2)],
    "theta": [np.array([[6.0, 0, 3], [7, 1, 4], [8, 2, 5]]), np.array([[12.0, 9, 10, 11]])],
}
OCTAVE = np.array([6.0, 7, 8, 0, 1, 2, 3, 4, 5, 12, 9, 10, 11])  # [Theta1(:); Theta2(:)]


@pytest.mark.parametrize("layout", LAYERS)
def test_pack_and_unpack_against_hand_written_arrays(layout):
    net, params = hand_written()
    assert same(net.pack(LAYERS[layout], layout), params)
    for got, expected in zip(net.unpack(params, layout), LAYERS[layout], strict=True):
        if layout == "theta":
            got, expected = [got], [expected]
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert same(net.pack(net.unpack(params, layout), layout), params)


def test_octaves_unrolled_vector():
    net, params = hand_written()
    assert same(net.pack(OCTAVE, "theta"), params)
    unrolled = [theta.ravel(order="F") for theta in net.unpack(params, "theta")]
    np.testing.assert_array_equal(np.concatenate(unrolled), OCTAVE)


def test_layers_without_bias():
    net, params = hand_written(bias=False)
    assert net.n_params == 9
    for layout in ("xw", "wx"):
        pairs = net.unpack(params, layout)
        assert [b for _, b in pairs] == [None, None]
        assert same(net.pack(pairs, layout), params)
        assert same(net.pack([W for W, _ in pairs], layout), params)
    with pytest.raises(ValueError, match="layout 'theta' keeps a bias column"):
        net.pack(params, "theta")


def test_forward_uses_the_layout_that_pack_writes(backend):
    net, _ = hand_written()
    X = np.array([[0.3, -0.2], [0.1, 0.4]])
    expected = np.tanh(X @ W1 + B1) @ W2 + B2
    for layout, layers in LAYERS.items():
        np.testing.assert_allclose(net.forward(net.pack(layers, layout), X), expected, rtol=1e-14)


def test_unpack_gives_views_and_pack_copies():
    net, params = hand_written()
    for layout in ("xw", "wx"):
        (W, b), _ = net.unpack(params, layout)
        assert np.shares_memory(W, params) and np.shares_memory(b, params)
    net.unpack(params)[1][0][1, 0] = -5
    assert params[10] == -5
    packed = net.pack(net.unpack(params))
    assert not np.shares_memory(packed, params)
    params.flags.writeable = False
    assert not net.unpack(params)[0][0].flags.writeable


PACKS = [  # layout, layers, error, part of the message
    ("xw", LAYERS["xw"][:1], fb.ShapeError, "1 layers came, expected 2"),
    ("theta", LAYERS["theta"][:1], fb.ShapeError, "1 layers came, expected 2"),
    ("wx", LAYERS["xw"], fb.ShapeError, "W of layer 0 has shape (2, 3), expected (3, 2)"),
    ("xw", [(W1, B1), (W2, B1)], fb.ShapeError, "b of layer 1 has shape (3,), expected (1,)"),
    ("xw", [(W1, None), (W2, B2)], fb.ShapeError, "b of layer 0 is missing, expected shape (3,)"),
    ("xw", [(W1, B1, B1), (W2, B2)], fb.ShapeError, "layer 0 has 3 arrays, expected a pair"),
    ("xw", [(W1 * 1j, B1), (W2, B2)], TypeError, "W of layer 0 has dtype complex128"),
    ("theta", OCTAVE[1:], fb.ShapeError, "params has shape (12,), expected (13,)"),
    ("theta", LAYERS["wx"], TypeError, "rows of equal length"),
    ("Thetas", LAYERS["theta"], ValueError, "did you mean 'theta'?"),
    (None, LAYERS["xw"], ValueError, "unknown layout None: expected one of 'xw', 'wx', 'theta'"),
]


@pytest.mark.parametrize(
    ("layout", "layers", "error", "message"), PACKS, ids=[f"{p[0]}-{p[-1]}" for p in PACKS]
)
def test_what_cannot_be_packed(layout, layers, error, message):
    with pytest.raises(error) as caught:
        hand_written()[0].pack(layers, layout)
    assert message in str(caught.value)


def test_layer_without_bias_refuses_b():
    with pytest.raises(fb.ShapeError, match="layer 0 has bias=False and came with b"):
        hand_written(bias=False)[0].pack([(W1, B1), (W2, None)])


def test_init_is_uniform_with_the_published_limits():
    glorot, he, lecun = np.sqrt(6 / 500), np.sqrt(6 / 300), np.sqrt(3 / 300)
    for act, init, limit in [
        ("tanh", "auto", glorot),
        ("sigmoid", "auto", glorot),
        ("linear", "auto", glorot),
        ("relu", "auto", he),
        ("leaky_relu", "auto", he),
        ("gelu", "auto", he),
        (fb.relu(0.5), "auto", he),
        ("selu", "auto", lecun),
        (BUMP, "auto", glorot),
        ("tanh", "he", he),
        ("tanh", "lecun", lecun),
        ("relu", "glorot", glorot),
        ("relu", "zeros", 0),
    ]:
        net = fb.Network(300, fb.Dense(200, act, init=init))
        ((W, b),) = net.unpack(net.init(seed=1))
        assert not b.any()
        assert abs(W).max() <= limit
        if not limit:
            continue
        # Uniform on ±limit, 60,000 draws: mean 0 ± σ/√n, E|W|^k = limit^k/(k+1), 5 deviations.
        draws = W.ravel() / limit
        for k, expected in ((1, 0), (2, 1 / 3), (3, 0), (4, 1 / 5)):
            deviation = np.sqrt((1 / (2 * k + 1) - expected**2) / draws.size)
            assert abs((draws**k).mean() - expected) <= 5 * deviation
        assert abs(W).max() > 0.999 * limit


def test_init_follows_the_seed():
    net = fb.Network.mlp([5, 7, 2])
    assert same(net.init(seed=3), net.init(seed=3))
    assert not same(net.init(seed=3), net.init(seed=4))
    assert not same(net.init(), net.init())
    assert same(net.init(np.random.default_rng(3)), net.init(np.random.SeedSequence(3)))
    single = net.astype("float32").init(seed=3)
    assert same(single, net.init(seed=3).astype(np.float32))


# Description.


def test_sizes():
    net = fb.Network(4, fb.Dense(20, "tanh"), fb.Dense(3, bias=False), dtype="float32")
    assert (net.n_in, net.n_out, net.n_params) == (4, 3, 4 * 20 + 20 + 20 * 3)
    assert net.dtype == np.float32
    assert fb.Network.mlp([4, 20, 1]) == fb.Network(4, fb.Dense(20, "tanh"), fb.Dense(1))


def test_equal_descriptions_are_equal_and_hash_alike():
    a = fb.Network(4, fb.Dense(20, "relu"), fb.Dense(1))
    b = fb.Network(np.int64(4), fb.Dense(20, fb.relu()), fb.Dense(1, "linear"), dtype=float)
    b.plan  # a cached plan changes nothing  # noqa: B018
    assert a == b and hash(a) == hash(b)
    others = [
        fb.Network(5, *a.layers),
        fb.Network(4, fb.Dense(20, fb.relu(0.5)), fb.Dense(1)),
        fb.Network(4, fb.Dense(20, "relu"), fb.Dense(1, bias=False)),
        fb.Network(4, fb.Dense(20, "relu", init="zeros"), fb.Dense(1)),
        a.astype("float32"),
    ]
    assert all(a != other for other in others)
    assert len({a, b, *others}) == 1 + len(others)


def test_descriptions_are_immutable():
    net = fb.Network(4, fb.Dense(20), fb.Dense(1))
    for thing, name in [(net, "n_in"), (net, "layers"), (net, "dtype"), (net.layers[0], "n_out")]:
        with pytest.raises(AttributeError):
            setattr(thing, name, 3)
    with pytest.raises(AttributeError):
        fb.activation("tanh").constant = 1.0


LAYERS_IN_WORDS = [
    (fb.Dense(20), "Dense(20)"),
    (fb.Dense(3, "tanh"), "Dense(3, 'tanh')"),
    (
        fb.Dense(3, fb.relu(0.5), bias=False, init="he"),
        "Dense(3, fb.relu(0.5), bias=False, init='he')",
    ),
    (fb.Dense(2, fb.leaky_relu(0.25), dropout=0.2), "Dense(2, fb.leaky_relu(0.25), dropout=0.2)"),
    (fb.Dense(2, trainable=False), "Dense(2, trainable=False)"),
    (fb.Dense(2, mask=[[1, 0], [1, 1]]), "Dense(2, mask=<3 of 4>)"),
    (fb.Dense(2, bias_mask=[0, 1]), "Dense(2, bias_mask=<1 of 2>)"),
    (fb.Dense(2, trainable=[[1, 0]]), "Dense(2, trainable=<1 of 2>)"),
    (fb.Dense(2, BUMP), "Dense(2, <activation 'bump' of the user's own>)"),
]


@pytest.mark.parametrize(("layer", "words"), LAYERS_IN_WORDS, ids=[w for _, w in LAYERS_IN_WORDS])
def test_layers_in_words(layer, words):
    assert repr(layer) == words
    if "<" not in words:
        assert eval(words, {"fb": fb, "Dense": fb.Dense}) == layer


def test_networks_in_words():
    """A table with a line per layer; columns that say nothing are left out."""
    assert repr(fb.Network.mlp([4, 20, 1])) == (
        "Network 4-20-1, float64, 121 parameters\n"
        "  layer  W        b      activation  parameters\n"
        "      0  (4, 20)  (20,)  tanh               100\n"
        "      1  (20, 1)  (1,)   linear              21"
    )
    net = fb.Network(
        2,
        fb.Dense(3, fb.relu(0.5), bias=False, dropout=0.25, mask=[[1, 0, 1], [1, 1, 1]]),
        fb.Dense(10, trainable=False),
        fb.Dense(1, "sigmoid", bias_mask=[0]),
        dtype="float32",
    )
    assert repr(net) == (
        "Network 2-3-10-1, float32, 57 parameters, 15 of them free\n"
        "  layer  W        b      activation    dropout  parameters  free\n"
        "      0  (2, 3)   none   fb.relu(0.5)     0.25           6     5\n"
        "      1  (3, 10)  (10,)  linear              0          40     0\n"
        "      2  (10, 1)  (1,)   sigmoid             0          11    10"
    )
    assert repr(fb.Network(1, fb.Dense(1, bias=False))).startswith(
        "Network 1-1, float64, 1 parameter\n"
    )


@pytest.mark.parametrize(
    "copied",
    [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy, copy.copy],
    ids=["pickle", "deepcopy", "copy"],
)
def test_copies_compute_the_same(backend, dtype, rng, copied):
    c = case(rng, [4, 7, 5, 3], MIXED[:3], dtype)
    expected = c.net.value_and_grad(*c.arguments)  # what a backend made of the plan stays behind
    net = copied(c.net)
    assert net == c.net and hash(net) == hash(c.net) and repr(net) == repr(c.net)
    assert same(net.value_and_grad(*c.arguments), expected)
    assert copied(c.net.layers[0]) == c.net.layers[0]
    assert copied(fb.relu(0.5)) == fb.relu(0.5)


BAD_DESCRIPTIONS = [
    (lambda: fb.Dense(0), ValueError, "n_out is 0, expected at least 1"),
    (lambda: fb.Dense(-3), ValueError, "n_out is -3, expected at least 1"),
    (lambda: fb.Dense(2.5), TypeError, "n_out is 2.5, expected a whole number"),
    (lambda: fb.Dense("3"), TypeError, "n_out is '3', expected a whole number"),
    (lambda: fb.Dense(3, "tnah"), ValueError, "unknown activation 'tnah': expected one of"),
    (lambda: fb.Dense(3, "tnah"), ValueError, "did you mean 'tanh'?"),
    (lambda: fb.Dense(3, "reluu"), ValueError, "did you mean 'relu'?"),
    (lambda: fb.Dense(3, init="glorott"), ValueError, "did you mean 'glorot'?"),
    (lambda: fb.Network(0, fb.Dense(1)), ValueError, "n_in is 0, expected at least 1"),
    (lambda: fb.Network(2.0, fb.Dense(1)), TypeError, "n_in is 2.0, expected a whole number"),
    (lambda: fb.Network(2), ValueError, "a network needs at least one layer"),
    (lambda: fb.Network(2, 3, 1), TypeError, "a layer is 3, expected fastbp.Dense(...)"),
    (lambda: fb.Network(2, fb.Dense), TypeError, "expected fastbp.Dense(...)"),
    (lambda: fb.Network(2, fb.Dense(1), dtype="float16"), ValueError, "dtype is float16"),
    (lambda: fb.Network(2, fb.Dense(1), dtype=int), ValueError, "dtype is int64, expected"),
    (lambda: fb.Network(2, fb.Dense(1), dtype=complex), ValueError, "dtype is complex128"),
    (lambda: fb.Dense(3, dropout=1), ValueError, "dropout is 1.0, expected a share in [0, 1)"),
    (lambda: fb.Dense(3, dropout=-0.1), ValueError, "dropout is -0.1, expected a share in [0, 1)"),
    (lambda: fb.Dense(3, dropout=np.nan), ValueError, "dropout is nan, expected a share"),
    (lambda: fb.Dense(3, dropout="half"), TypeError, "dropout is 'half', expected a number"),
    (lambda: fb.Dense(3, dropout=None), TypeError, "dropout is None, expected a number"),
    (
        lambda: fb.Network(2, fb.Dense(3), fb.Dense(1, dropout=0.5)),
        ValueError,
        "dropout of the last layer is 0.5, expected 0: its outputs are the predictions",
    ),
    (lambda: fb.Dense(2, mask=[[1, 2]]), ValueError, "mask holds 2.0 at row 0, column 1"),
    (lambda: fb.Dense(2, mask=[[1, np.nan]]), ValueError, "mask holds nan at row 0, column 1"),
    (lambda: fb.Dense(2, mask=[[1, 0.5]]), ValueError, "expected 0 (no connection) or 1"),
    (lambda: fb.Dense(2, mask=[1, 0]), fb.ShapeError, "mask has shape (2,), expected (n_in, 2)"),
    (lambda: fb.Dense(2, mask=1), fb.ShapeError, "mask has shape (), expected (n_in, 2)"),
    (lambda: fb.Dense(2, mask=[[1], [1]]), fb.ShapeError, "shape (2, 1), expected (n_in, 2)"),
    (lambda: fb.Dense(2, mask=[["a", "b"]]), TypeError, "mask has dtype <U1, expected real"),
    (lambda: fb.Dense(2, bias_mask=[1, -1]), ValueError, "bias_mask holds -1.0 at entry 1"),
    (lambda: fb.Dense(2, bias_mask=[1, 2]), ValueError, "expected 0 (no bias) or 1"),
    (lambda: fb.Dense(2, bias_mask=[[1, 1]]), fb.ShapeError, "shape (1, 2), expected (2,)"),
    (
        lambda: fb.Dense(2, bias=False, bias_mask=[1, 1]),
        ValueError,
        "bias_mask was given with bias=False; leave one of them out",
    ),
    (lambda: fb.Dense(2, trainable=[[1, 3]]), ValueError, "trainable holds 3.0 at row 0, column 1"),
    (lambda: fb.Dense(2, trainable=[[1, 3]]), ValueError, "expected 0 (frozen) or 1"),
    (lambda: fb.Dense(2, trainable=[1, 1]), fb.ShapeError, "trainable has shape (2,)"),
    (
        lambda: fb.Network(2, fb.Dense(3), fb.Dense(4, mask=np.ones((2, 4)))),
        fb.ShapeError,
        "mask of layer 1 has shape (2, 4), expected (3, 4): a row per input, a column per unit",
    ),
    (
        lambda: fb.Network(2, fb.Dense(3, trainable=np.ones((3, 3)))),
        fb.ShapeError,
        "trainable of layer 0 has shape (3, 3), expected (2, 3)",
    ),
    (lambda: fb.Network.mlp([3]), ValueError, "sizes is [3], expected at least [n_in, n_out]"),
    (lambda: fb.Network.mlp([3, 2], output="softmax"), ValueError, "unknown activation"),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), BAD_DESCRIPTIONS, ids=[b[-1] for b in BAD_DESCRIPTIONS]
)
def test_bad_descriptions(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_every_name_is_documented():
    for name in NAMES:
        assert f'"{name}"' in fb.activation.__doc__
    for name in LOSS_TABLE:
        assert f'"{name}"' in fb.Network.objective.__doc__


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="l2 is 'much', expected a number >= 0"):
        fb.Network.mlp([1, 1]).value([0, 0], [[1.0]], [1.0], l2="much")
    with pytest.raises(TypeError, match="n_out is True, expected a whole number"):
        fb.Dense(True)
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        fb.activation("tanhh")
