"""gradient_report: its figures by closed formulas, NumPy by hand and differences of the loss."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from helpers.strategies import shifted

import fastbp as fb

pytestmark = pytest.mark.backend

LOSSES = {
    "mse": ("mse", (7, 2)),
    "half_mse": ("half_mse", (7, 2)),
    "sse": ("sse", (7, 2)),
    "mae": ("mae", (7, 2)),
    "huber": (fb.huber(0.4), (7, 2)),
    "log_cosh": ("log_cosh", (7, 2)),
    "quantile": (fb.quantile(0.3), (7, 2)),
    "bce": ("bce", "probabilities"),
    "bce_logits": ("bce_logits", "probabilities"),
    "hinge": ("hinge", "signs"),
    "squared_hinge": ("squared_hinge", "signs"),
    "poisson": ("poisson", "counts"),
    "softmax_ce labels": ("softmax_ce", "labels"),
    "softmax_ce rows": ("softmax_ce", "rows"),
    "gaussian_nll": ("gaussian_nll", (7, 1)),
    "gaussian_kl": ("gaussian_kl", None),
    "custom": (fb.custom_loss(lambda y, t: ((y - t) ** 4, 4 * (y - t) ** 3)), (7, 2)),
}


def target(rng, form):
    if isinstance(form, tuple):
        return rng.standard_normal(form)
    return {
        None: None,
        "probabilities": rng.uniform(size=(7, 2)),
        "signs": rng.choice([-1.0, 1.0], (7, 2)),
        "counts": rng.integers(5, size=(7, 2)),
        "labels": rng.integers(2, size=7),
        "rows": rng.dirichlet([1, 1], size=7),
    }[form]


def slopes_of_loss(Y, y, loss, **terms):
    """dL/dY by central differences of the value of a network that returns its input."""
    identity = fb.Network(Y.shape[1], fb.Dense(Y.shape[1], bias=False))
    params, result, h = np.eye(Y.shape[1]).ravel(), np.empty_like(Y), 1e-5
    for index in np.ndindex(Y.shape):
        step = np.zeros_like(Y)
        step[index] = h
        up, down = (identity.value(params, Y + s * step, y, loss, **terms) for s in (1, -1))
        result[index] = (up - down) / (2 * h)
    return result


def norm(A):
    return math.sqrt(math.fsum((np.asarray(A, float) ** 2).ravel().tolist()))


def by_hand(net, params, X, y, loss, **terms):
    """Per layer W, Z, dY and dZ, tanh hidden layers; the derivatives from differences."""
    pairs = net.unpack(params)
    inputs, pre = [X], []
    for layer, (W, b) in zip(net.layers, pairs, strict=True):
        pre.append(inputs[-1] @ W + b)
        kind = layer.act.name
        inputs.append({"tanh": np.tanh, "linear": lambda Z: Z}[kind](pre[-1]))
    dY, rows = slopes_of_loss(inputs[-1], y, loss, **terms), []
    for layer, (W, _), Z in reversed(list(zip(net.layers, pairs, pre, strict=True))):
        dZ = dY / np.cosh(Z) ** 2 if layer.act.name == "tanh" else dY
        rows.append((W, Z, dY, dZ))
        dY = dZ @ W.T
    return rows[::-1]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_norms(backend, name, weighted, rng):
    loss, form = LOSSES[name]
    net = fb.Network(4, fb.Dense(5, "tanh"), fb.Dense(3, "tanh"), fb.Dense(2))
    params, X = net.init(1) + 0.1 * rng.standard_normal(net.n_params), rng.standard_normal((7, 4))
    if name == "bce":  # probabilities away from where they are cut
        W, b = net.unpack(params)[-1]
        W *= 0.1
        b[:] = 0.5
    y = target(rng, form)
    terms = {"sample_weight": rng.choice([0.0, 1.0, 2.5], 7)} if weighted else {}
    report = fb.gradient_report(net, params, X, y, loss, **terms)
    value, grad = net.value_and_grad(params, X, y, loss, **terms)
    assert report.value == value
    assert report.gradient_norm == pytest.approx(norm(grad), rel=1e-14)
    expected = by_hand(net, params, X, y, loss, **terms)
    for row, (dW, _), (W, Z, dY, dZ) in zip(report.layers, net.unpack(grad), expected, strict=True):
        assert row.weight_norm == pytest.approx(norm(W), rel=1e-14)
        assert row.gradient_norm == pytest.approx(norm(dW), rel=1e-14)
        assert row.ratio == pytest.approx(norm(dW) / norm(W), rel=1e-14)
        assert row.nonzero == dW.size
        # The differences are off by h²/6 times third derivatives, and by rounding/h.
        assert row.dY_norm == pytest.approx(norm(dY), rel=1e-7)
        assert row.dZ_norm == pytest.approx(norm(dZ), rel=1e-7)
        assert row.z_mean == pytest.approx(Z.mean(), rel=1e-12)
        assert row.z_std == pytest.approx(Z.std(), rel=1e-12)
        assert row.dead == () and row.saturated == 0


def test_pairs(backend, rng):
    """Max-margin loss: of two rows with slack the better one pulls up, the worse one down."""
    net = fb.Network(3, fb.Dense(1))
    X = rng.standard_normal((6, 3))
    report = fb.gradient_report(net, [1.0, 2, 3, 4], X, None, fb.margin_ranking(100.0))
    assert report.layers[0].dY_norm == pytest.approx(math.sqrt(6) / 3, rel=1e-15)
    assert report.layers[0].gradient_norm == pytest.approx(
        norm((X[1::2] - X[0::2]).mean(axis=0)), rel=1e-14
    )


def test_penalties_belong_to_the_gradient(backend):
    net = fb.Network(2, fb.Dense(1, bias=False))
    report = fb.gradient_report(net, [3.0, 4.0], np.zeros((1, 2)), [0.0], l2=0.5)
    assert report.value == 0.25 * 25
    assert report.layers[0].gradient_norm == report.gradient_norm == 2.5
    assert report.layers[0].ratio == 0.5
    assert report.layers[0].dY_norm == 0


def test_biases_count_in_the_whole_gradient_alone(backend):
    net = fb.Network(1, fb.Dense(1))
    report = fb.gradient_report(net, [0.0, 0.0], [[3.0]], [-0.5], "sse")  # dL/dY = 1
    assert report.layers[0].gradient_norm == 3
    assert report.gradient_norm == pytest.approx(math.sqrt(10), rel=1e-15)


# Saturation and vanishing.


def one_layer(activation, z, dtype="float64"):
    """The report of a layer whose pre-activations are z (n, units)."""
    n_out = z.shape[1]
    net = fb.Network(n_out, fb.Dense(n_out, activation, bias=False), dtype=dtype)
    report = fb.gradient_report(net, np.eye(n_out).ravel(), z, np.full(z.shape, 0.5))
    return report.layers[0]


def beyond(threshold, spread):
    """P(|z| > threshold) of a normal z."""
    return math.erfc(threshold / (spread * math.sqrt(2)))


def test_the_pooler(backend, rng):
    """768-768 tanh, pre-activations of deviation 10: y is 1 from 1 - u/2 on, u half of epsilon."""
    z = 10 * rng.standard_normal((64, 768))
    row = one_layer("tanh", z)
    for name, expected in (("float16", 65), ("float32", 37), ("float64", 6)):
        u = float(np.finfo(name).eps) / 2
        p = beyond(0.5 * math.log(4 / u), 10)  # atanh(1 - u/2)
        assert abs(row.vanished[name] - p) < 5 * math.sqrt(p / z.size)
        assert round(100 * p) == expected
    p = beyond(math.acosh(math.sqrt(1000)), 10)
    assert abs(row.saturated - p) < 5 * math.sqrt(p / z.size)
    assert row.notes[0] == "65 % of derivatives vanish in float16, 37 % in float32, 6 % in float64"


# Where the derivative as computed becomes 0: beside the threshold in float16 and float32; at some
# distance in float64, as the functions themselves are up to 2.5 ULP off.
THRESHOLDS = {
    # 1 - y² with y = 1 from 1 - 2^-12 on, 1 - 2^-25, 1 - 2^-54: at atanh of these.
    "tanh": {"float16": (4.5, 4.51), "float32": (-9.0, -9.02), "float64": (17.8, 22.0)},
    # y(1 - y): the same of log(y/(1 - y)); below, y must be under half of the least number.
    "sigmoid above": {"float16": (8.3, 8.33), "float32": (17.3, 17.4), "float64": (36.0, 40.0)},
    "sigmoid below": {
        "float16": (-17.3, -17.4),
        "float32": (-103.9, -104.1),
        "float64": (-700, -750),
    },
    # (1 - |y|)² with 1 - |y| = 1/(1 + |z|).
    "softsign": {"float16": (4093, 4097), "float32": (-3.3e7, -3.4e7), "float64": (4e15, 4e16)},
    # σ(z) and e^z under half of the least number.
    "softplus": {"float16": (-17.3, -17.4), "float32": (-103.9, -104.1), "float64": (-700, -750)},
    "exp": {"float16": (-17.3, -17.4), "float32": (-103.9, -104.1), "float64": (-700, -750)},
    # y + 1 where y = e^z - 1 rounds to -1.
    "elu": {"float16": (-8.3, -8.33), "float32": (-17.3, -17.4), "float64": (-36.0, -40.0)},
}


@pytest.mark.parametrize("precision", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", THRESHOLDS)
def test_where_derivatives_vanish(backend, name, precision):
    alive, gone = THRESHOLDS[name][precision]
    row = one_layer(name.split()[0], np.array([[alive, gone], [alive, gone]]))
    assert row.vanished[precision] == 0.5
    assert row.dead == ((1,) if row.vanished["float64"] else ())


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "relu6", "hard_tanh", "linear", "sin"])
def test_pieces_vanish_alike_in_all_precisions(backend, name):
    z = np.array([[-7.0, -2.0, -0.5, 0.5, 2.0, 7.0]])
    share = {"relu": 1 / 2, "relu6": 4 / 6, "hard_tanh": 4 / 6}.get(name, 0.0)
    row = one_layer(name, z)
    assert row.vanished == pytest.approx(dict.fromkeys(("float16", "float32", "float64"), share))
    assert row.saturated == pytest.approx(share)
    assert not any("vanish" in note for note in row.notes)


def test_saturation_is_relative_to_the_steepest_slope(backend):
    z = np.array([[8.2, 8.4, -8.2, -8.4]])  # σ' is ¼ at most; below a thousandth of it from 8.29 on
    assert one_layer("sigmoid", z).saturated == 0.5
    assert one_layer("sin", np.array([[1.0, np.pi / 2]])).saturated == 0.5
    cube = fb.Activation("cube", lambda t: t**3, lambda t: 3 * t**2)
    assert one_layer(cube, np.array([[0.09, 0.1]])).saturated == 0.5  # 27 is the largest, at ±3


def test_saturated_layers_are_noted(backend):
    row = one_layer("hard_tanh", np.full((2, 3), 2.0))
    assert row.notes[0] == "the gradient is exactly 0"
    assert "100 % of derivatives are below a thousandth of the largest" in row.notes
    assert "3 of 3 units are dead: their derivative is 0 for all 2 rows" in row.notes


def test_dead_units(backend):
    z = np.array([[1.0, -1.0, -1.0, -2.0], [-1.0, -1.0, 1.0, 0.0]])
    row = one_layer("relu", z)
    assert row.dead == (1, 3)
    assert row.notes == ("2 of 4 units are dead: their derivative is 0 for all 2 rows",)
    assert one_layer(fb.relu(1.0), z).dead == (1,)
    assert one_layer("leaky_relu", z).dead == ()


def test_dead_in_the_precision_of_the_network(backend):
    z = np.full((3, 2), [10.0, 1.0])
    assert one_layer("tanh", z).dead == ()
    assert one_layer("tanh", z, "float32").dead == (0,)


# Underflow.


def test_underflow_counts(backend):
    """A linear unit with dL/dY = 1 for one row: dW is the row itself."""
    exponents = np.array([0, -14, -15, -24, -26, -126, -127, -149, -151, -1022])
    X = np.append(2.0**exponents, 0.0)[None, :]
    net = fb.Network(11, fb.Dense(1))
    row = fb.gradient_report(net, np.zeros(12), X, [-0.5], "sse").layers[0]
    assert row.nonzero == 10  # the last input is 0
    assert row.underflow == {"float16": 8, "float32": 4}
    assert row.notes == ("80 % of dW underflows in float16", "40 % of dW underflows in float32")


def test_just_below_the_least_normal_number_rounds_up(backend):
    least = float(np.finfo(np.float16).tiny)
    net = fb.Network(1, fb.Dense(1))
    for factor, count in ((1 - 2.0**-13, 0), (1 - 2.0**-10, 1)):
        row = fb.gradient_report(net, [0.0, 0.0], [[least * factor]], [-0.5], "sse").layers[0]
        assert row.underflow["float16"] == count


def test_norms_neither_overflow_nor_underflow(backend):
    for size in (1e-200, 1e200):
        net = fb.Network(2, fb.Dense(1, bias=False))
        report = fb.gradient_report(net, [0.0, 0.0], [[3 * size, 4 * size]], [-0.5], "sse")
        assert report.gradient_norm == pytest.approx(5 * size, rel=1e-15)
        assert report.layers[0].ratio == np.inf


# Masks and frozen layers.


def test_masked_entries_count_as_zero(backend, rng):
    mask = np.array([[1, 0], [0, 1], [1, 1]])
    X, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    W = rng.standard_normal((3, 2))
    plain = fb.Network(3, fb.Dense(2, "tanh"))
    masked = fb.Network(3, fb.Dense(2, "tanh", mask=mask, bias_mask=[1, 0]))
    b = np.array([0.3, 0.0])
    a = fb.gradient_report(plain, plain.pack([(W * mask, b)]), X, y)
    junk = masked.pack([(np.where(mask, W, np.nan), [0.3, np.inf])])
    c = fb.gradient_report(masked, junk, X, y)
    assert c.value == a.value and c.layers[0].dZ_norm == a.layers[0].dZ_norm
    assert c.layers[0].weight_norm == a.layers[0].weight_norm
    dW, db = plain.unpack(plain.value_and_grad(plain.pack([(W * mask, b)]), X, y)[1])[0]
    assert c.layers[0].nonzero == 4
    assert c.layers[0].gradient_norm == pytest.approx(norm(dW * mask), rel=1e-14)
    assert c.gradient_norm == pytest.approx(math.hypot(norm(dW * mask), db[0]), rel=1e-14)


def test_frozen_layers_pass_gradients_on(backend, rng):
    net = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(4, "tanh", trainable=False), fb.Dense(1))
    X, y, params = rng.standard_normal((5, 3)), rng.standard_normal(5), net.init(0)
    first, frozen, _ = fb.gradient_report(net, params, X, y).layers
    assert frozen.gradient_norm == frozen.ratio == frozen.nonzero == 0 and frozen.notes == ()
    assert frozen.dZ_norm > 0 and first.gradient_norm > 0


def test_zero_weights(backend):
    net = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1))
    report = fb.gradient_report(net, np.zeros(net.n_params), np.ones((4, 2)), np.ones(4))
    first, last = report.layers
    assert math.isnan(first.ratio) and first.notes == ("the gradient is exactly 0",)
    assert last.weight_norm == 0 and last.gradient_norm == 0  # its inputs are tanh(0)
    assert report.gradient_norm == 2  # of the last bias


# Types, layouts, nonsense.


def fields(report):
    return [dataclasses.asdict(row) for row in report.layers]


def test_float32_networks_are_reported_in_float64(backend, rng):
    single = fb.Network.mlp([3, 5, 2], dtype="float32")
    params, X, y = (rng.standard_normal(shape) for shape in (single.n_params, (6, 3), (6, 2)))
    a = fb.gradient_report(single, params, X, y, l2=0.1)
    params, X, y = (array.astype(np.float32) for array in (params, X, y))
    b = fb.gradient_report(single.astype("float64"), params, X, y, l2=0.1)
    assert a.value == b.value and a.gradient_norm == b.gradient_norm
    assert fields(a) == fields(b)


def test_layouts(backend, rng):
    net = fb.Network.mlp([3, 5, 2], activation="sigmoid")
    params, X, y = net.init(0), rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
    expected = fields(fb.gradient_report(net, params, X, y))
    X.flags.writeable = y.flags.writeable = params.flags.writeable = False
    for same in (
        np.asfortranarray(X),
        X[::-1].copy()[::-1],
        X.astype(">f8"),
        np.repeat(X, 2, axis=1)[:, ::2],
        shifted(X, 4),
        X.tolist(),
    ):
        assert fields(fb.gradient_report(net, params.tolist(), same, y.tolist())) == expected


def test_backends_agree(backend, rng):
    net = fb.Network(4, fb.Dense(6, "gelu"), fb.Dense(5, "silu"), fb.Dense(2))
    params, X, y = net.init(0), 5 * rng.standard_normal((50, 4)), rng.standard_normal((50, 2))
    a = fb.gradient_report(net, params, X, y)
    b = fb.gradient_report(net, params, X, y, backend="numpy")
    for row, other in zip(a.layers, b.layers, strict=True):
        for name in ("gradient_norm", "ratio", "dY_norm", "dZ_norm", "z_mean", "saturated"):
            assert getattr(row, name) == pytest.approx(getattr(other, name), rel=1e-12)
        assert (row.vanished, row.dead, row.underflow) == (
            other.vanished, other.dead, other.underflow,
        )  # fmt: skip


def test_the_backend_asked_for_computes_all(backend):
    table = {0.0: 0.0}

    def uncompilable(z):  # Numba knows no such dict
        return table.get(z, z)

    act = fb.Activation("identity", uncompilable, lambda z: 1.0)
    net = fb.Network(1, fb.Dense(1, act))
    report = fb.gradient_report(net, [2.0, 0.0], [[1.0]], [0.0], backend="numpy")
    assert report.value == 4 and fb.get_backend() == backend


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_noted(backend, bad):
    net = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1))
    X = np.array([[1.0, bad], [1.0, 2.0]])
    report = fb.gradient_report(net, net.init(0), X, [0.0, 0.0])
    first = report.layers[0].notes
    assert first[:2] == ("3 of 6 pre-activations are not finite", "the gradient is not finite")
    assert math.isnan(report.gradient_norm)
    assert str(report)


@pytest.mark.parametrize(
    ("X", "y", "loss", "terms"),
    [
        (np.zeros((3, 4)), np.zeros(3), "mse", {}),
        (np.zeros((0, 2)), np.zeros(0), "mse", {}),
        (np.zeros(2), np.zeros(3), "mse", {}),
        (np.zeros((3, 2)), np.zeros((1, 3)), "mse", {}),
        (np.zeros((3, 2)), None, "mse", {}),
        (np.zeros((3, 2)), np.zeros(3), "mes", {}),
        (np.zeros((3, 2)), np.zeros(3), "hinge", {}),
        (np.zeros((3, 2)), np.zeros(3), "mse", {"l2": -1}),
        (np.zeros((3, 2)), np.zeros(3), "mse", {"sample_weight": [1, 2]}),
        (np.zeros((3, 2)), np.zeros(3), "mse", {"backend": "nunpy"}),
        (np.zeros((3, 2)), np.zeros(3), "mse", {"l3": 1}),
        (np.zeros((3, 2)) * 1j, np.zeros(3), "mse", {}),
        (np.full((3, 2), "a"), np.zeros(3), "mse", {}),
    ],
)
def test_bad_input_fails_as_the_objective_does(backend, X, y, loss, terms):
    net = fb.Network(2, fb.Dense(1))
    with pytest.raises((ValueError, TypeError)) as expected:
        net.objective(X, y, loss, **terms)
    with pytest.raises(type(expected.value)) as caught:
        fb.gradient_report(net, net.init(0), X, y, loss, **terms)
    assert str(caught.value) == str(expected.value)


def test_bad_parameters(backend):
    net = fb.Network(2, fb.Dense(1))
    with pytest.raises(fb.ShapeError, match=r"params has shape \(2,\), expected \(3,\)"):
        fb.gradient_report(net, [1, 2], np.zeros((1, 2)), [0.0])


# What is printed.


def test_printed(backend, rng):
    net = fb.Network(3, fb.Dense(12, "tanh"), fb.Dense(2, fb.relu(0.5)), fb.Dense(1))
    report = fb.gradient_report(net, 50 * net.init(0), rng.standard_normal((40, 3)), np.zeros(40))
    lines = str(report).splitlines()
    assert repr(report) == str(report)
    assert lines[0] == f"objective {report.value:.6g}, norm of its gradient " + (
        f"{report.gradient_norm:.6g}"
    )
    for table in (lines[1:5], lines[5:9]):  # aligned, so that each ends alike
        assert len({len(line) for line in table}) == 1 and len(table[0]) <= 100
        assert [line.split()[0] for line in table] == ["layer", "0", "1", "2"]
    assert "fb.relu(0.5)" in lines[3]
    assert tuple(lines[9:]) == report.notes
    assert report.notes[0].startswith("layer 0: ") and "vanish in float16" in report.notes[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.value = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.layers[0].ratio = 0
