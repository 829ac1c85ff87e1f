"""Networks: derivatives against extended precision and differences, parameters, description."""

from __future__ import annotations

import copy
import itertools
import pickle

import bounds
import numpy as np
import pytest
from bounds import EXACT, exact
from hypothesis import given, strategies as st
from strategies import ACTIVATIONS, ALL_ACTIVATIONS, LOSSES, case, cases, same

import fastbp as fb

pytestmark = pytest.mark.backend

MIXED = [fb.relu(0.5), "sigmoid", "leaky_relu", "tanh", "linear", "relu"]


def table_of_cases(dtype):
    """All losses and activations, with and without weights, penalty and biases; n_in first."""
    rng = np.random.default_rng(5)
    table = []
    for i, loss in enumerate(LOSSES):
        for j, act in enumerate(ALL_ACTIVATIONS):
            sizes, acts = [4 + i, 6 + j, 5, 3], [act, MIXED[(i + j) % 6], "linear"]
            options = {"weighted": (i + j) % 2 == 0, "l2": 0.03 * (j % 3)}
            table.append(case(rng, sizes, acts, dtype, 11, loss, bias=(i + j) % 4 > 0, **options))
    table.append(case(rng, [1, 1], ["tanh"], dtype, 1))
    table.append(case(rng, [2, 30, 1], ["relu", "linear"], dtype, 4, "bce_logits"))
    table.append(case(rng, [3, 3, 1], ["sigmoid", "sigmoid"], dtype, 4, "half_mse"))
    table.append(case(rng, [3, 1, 9, 2], ["tanh", "relu", "linear"], dtype, 70, "softmax_ce"))
    # Deep, wide and tall enough for every way of tiling.
    table.append(case(rng, [1, 40, 40, 1], ["relu", "relu", "linear"], dtype, 32, l2=0.01))
    table.append(case(rng, [64, 32, 10], ["relu", "linear"], dtype, 65, "softmax_ce"))
    table.append(case(rng, [24, 64, 63, 8], ["tanh", "tanh", "linear"], dtype, 257, "half_mse"))
    table.append(case(rng, [130, 129, 200, 33], ["tanh", "sigmoid", "linear"], dtype, 70))
    table[-1].params *= 0.25  # or rounding would grow tenfold with each layer
    return table


TABLE = {np.dtype(t): table_of_cases(t) for t in ("float32", "float64")}
WIDE = 4  # at the end of each


def against_reference(computed, expected):
    """float64: within 1e-12 of the largest entry."""
    assert computed.shape == expected.shape
    assert abs(computed - expected).max(initial=0) <= 1e-12 * abs(expected).max(initial=0)


@pytest.mark.parametrize("index", range(len(TABLE[np.dtype("float64")])))
def test_value_and_gradient_are_within_rounding(backend, dtype, index):
    c = TABLE[dtype][index]
    weights = c.terms.get("sample_weight")
    value_bound, grad_bound = bounds.objective(c.net, *c.arguments, weights, c.terms.get("l2", 0))
    value, grad = c.net.value_and_grad(*c.arguments, **c.terms)
    assert type(value) is float and grad.dtype == dtype
    value_bound.check(value, f"value of {c}")
    value_bound.check(c.net.value(*c.arguments, **c.terms), f"value alone of {c}")
    grad_bound.check(grad, f"gradient of {c}")
    value_bound.check_sharp(2e4 * np.finfo(dtype).eps)
    if dtype == np.float64:
        reference = c.net.value_and_grad(*c.arguments, **c.terms, backend="numpy")
        against_reference(grad, reference[1])
        against_reference(np.array(value), np.array(reference[0]))


@pytest.mark.parametrize("index", range(len(TABLE[np.dtype("float64")])))
def test_forward_and_pullback_are_within_rounding(backend, dtype, rng, index):
    c = TABLE[dtype][index]
    steps = bounds.forward(c.net, c.params, c.X)
    Y, pullback = c.net.vjp(c.params, c.X)
    steps[-1][2].check(Y, f"Y of {c}")
    steps[-1][2].check(c.net.forward(c.params, c.X), f"forward of {c}")
    for _ in range(2):
        dY = rng.standard_normal(Y.shape).astype(dtype)
        expected = bounds.backward(c.net, c.params, steps, exact(dY))
        for bound, computed, what in zip(expected, pullback(dY), ["dparams", "dX"], strict=True):
            bound.check(computed, f"{what} of {c}")
            assert computed.dtype == dtype
        if dtype == np.float64:
            reference = c.net.vjp(c.params, c.X, backend="numpy")[1](dY)
            for computed, expected in zip(pullback(dY), reference, strict=True):
                against_reference(computed, expected)


@pytest.mark.parametrize("index", range(len(TABLE[np.dtype("float64")]) - WIDE))
def test_jacobians_are_within_rounding(backend, dtype, index):
    c = TABLE[dtype][index]
    by_params, by_inputs = bounds.jacobian(c.net, c.params, c.X)
    J, D = c.net.jacobian(c.params, c.X), c.net.input_jacobian(c.params, c.X)
    by_params.check(J, f"Jacobian of {c}")
    by_inputs.check(D, f"input Jacobian of {c}")
    assert J.dtype == D.dtype == dtype
    assert J.flags.c_contiguous and D.flags.c_contiguous
    if dtype == np.float64:
        against_reference(J, c.net.jacobian(c.params, c.X, backend="numpy"))
        against_reference(D, c.net.input_jacobian(c.params, c.X, backend="numpy"))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 63, 64, 65, 255, 256, 257, 300])
def test_jacobian_of_any_number_of_rows(backend, n):
    c = case(np.random.default_rng(n), [4, 20, 3], ["tanh", "linear"], n=n)
    args = c.params, c.X
    against_reference(c.net.jacobian(*args), c.net.jacobian(*args, backend="numpy"))
    against_reference(c.net.input_jacobian(*args), c.net.input_jacobian(*args, backend="numpy"))


@given(data=st.data())
def test_random_networks(backend, dtype, data):
    c = data.draw(cases(dtype))
    weights, l2 = c.terms.get("sample_weight"), c.terms["l2"]
    value_bound, grad_bound = bounds.objective(c.net, *c.arguments, weights, l2)
    value, grad = c.net.value_and_grad(*c.arguments, **c.terms)
    value_bound.check(value, "value")
    value_bound.check(c.net.value(*c.arguments, **c.terms), "value alone")
    grad_bound.check(grad, "gradient")
    steps = bounds.forward(c.net, c.params, c.X)
    Y, pullback = c.net.vjp(c.params, c.X)
    steps[-1][2].check(Y, "Y")
    _, dX = pullback(np.ones_like(Y))
    bounds.backward(c.net, c.params, steps, exact(np.ones_like(Y)))[1].check(dX, "dX")
    by_params, by_inputs = bounds.jacobian(c.net, c.params, c.X[:3])
    by_params.check(c.net.jacobian(c.params, c.X[:3]), "Jacobian")
    by_inputs.check(c.net.input_jacobian(c.params, c.X[:3]), "input Jacobian")


# The reference (and with it the bounds' own evaluation) against differences.


def away_from_kinks(sizes, acts, **options):
    """The first seed for which no Z is near 0, so that differences do not step over a kink."""
    for seed in itertools.count():
        c = case(np.random.default_rng(seed), sizes, acts, n=5, **options)
        if all(abs(Z.value).min() > 0.003 for _, Z, _ in bounds.forward(c.net, c.params, c.X)):
            return c


def richardson(f, h=1e-4):
    """f'(0) from central differences at h, h/2, h/4: the error is of order h^6."""
    D = [(f(EXACT(t)) - f(EXACT(-t))) / (2 * EXACT(t)) for t in (h, h / 2, h / 4)]
    D = [(4 * b - a) / 3 for a, b in itertools.pairwise(D)]
    return (16 * D[1] - D[0]) / 15


def wide_forward(net, params, X):
    """The network's output in extended precision for parameters and data of that precision."""
    Y = X
    for layer, (n_in, n_out, _, w, b, *_) in zip(net.layers, net.plan.layers.tolist(), strict=True):
        Z = Y @ params[w : w + n_in * n_out].reshape(n_in, n_out)
        Z = Z if b < 0 else Z + params[b : b + n_out]
        Y = bounds.activate(layer.act, exact(Z), net.dtype).value
    return Y


def wide_value(c, params):
    w = np.asarray(c.terms.get("sample_weight", np.ones(len(c.X))), EXACT)
    Y = exact(wide_forward(c.net, params, c.X.astype(EXACT)))
    rows, _ = bounds.rows_of_loss(c.loss, Y, c.y, c.net.dtype)
    penalty = (params[bounds.weight_entries(c.net)] ** 2).sum() * EXACT(c.terms.get("l2", 0)) / 2
    return bounds.scale(c.loss, w.sum(), c.net.n_out) * (w * rows.value).sum() + penalty


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("act", ALL_ACTIVATIONS, ids=str)
def test_gradient_agrees_with_differences(backend, loss, act):
    """All dimensions differ (5 rows, 4 - 7 - 6 - 3), so that no transposition goes unseen."""
    c = away_from_kinks([4, 7, 6, 3], [act, act, "linear"], loss=loss, weighted=True, l2=0.1)
    value, grad = c.net.value_and_grad(*c.arguments, **c.terms)
    p = c.params.astype(EXACT)
    assert value == pytest.approx(float(wide_value(c, p)), rel=1e-14)
    differences = [
        richardson(lambda t, e=e: wide_value(c, p + t * e)) for e in np.eye(c.net.n_params)
    ]
    # Differences are good to 1e-19/h and h^6, which is below rounding in float64.
    assert abs(grad - differences).max() <= 1e-13 * abs(grad).max()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("act", ALL_ACTIVATIONS, ids=str)
def test_products_agree_with_directional_differences(backend, rng, act, bias):
    """<dY, J v> = <Jᵀ dY, v> for parameters and inputs, the left by differences along v."""
    c = away_from_kinks([4, 7, 6, 3], [act, "tanh", act], bias=bias)
    p, X = c.params.astype(EXACT), c.X.astype(EXACT)
    v, V = rng.standard_normal(p.shape), rng.standard_normal(X.shape)
    Jv = richardson(lambda t: wide_forward(c.net, p + t * v, X))
    DV = richardson(lambda t: wide_forward(c.net, p, X + t * V))
    Y, pullback = c.net.vjp(c.params, c.X)
    dY = rng.standard_normal(Y.shape)
    dparams, dX = pullback(dY)
    assert abs((dY * Jv).sum() - dparams @ v) <= 1e-13 * abs(dY * Jv).sum()
    assert abs((dY * DV).sum() - (dX * V).sum()) <= 1e-13 * abs(dY * DV).sum()
    J, D = c.net.jacobian(c.params, c.X), c.net.input_jacobian(c.params, c.X)
    assert abs(J @ v - Jv.ravel()).max() <= 1e-13 * abs(Jv).max()
    assert abs(np.einsum("nki,ni->nk", D, V) - DV).max() <= 1e-13 * abs(DV).max()


@pytest.mark.parametrize("loss", LOSSES[:3])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_residuals_are_a_factor_of_the_objective(backend, rng, loss, weighted, l2):
    c = case(rng, [4, 7, 3], ["tanh", "linear"], loss=loss, weighted=weighted, l2=l2)
    obj = c.net.objective(c.X, c.y, loss, **c.terms)
    r, J = obj.residuals(c.params), obj.jacobian(c.params)
    value, grad = obj.value_and_grad(c.params)
    n_weights = 4 * 7 + 7 * 3 if l2 else 0
    assert r.shape == (9 * 3 + n_weights,) and J.shape == (len(r), c.net.n_params)
    scale = obj.problem.scale
    assert scale * r @ r == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(2 * scale * J.T @ r, grad, rtol=0, atol=1e-13 * abs(grad).max())


def test_objective_is_bound_to_its_backend_and_data(backend, dtype, rng):
    c = case(rng, [4, 7, 3], ["tanh", "linear"], dtype, weighted=True, l2=0.1)
    obj = c.net.objective(c.X, c.y, **c.terms)
    expected = c.net.value_and_grad(*c.arguments, **c.terms)
    with fb.use_backend("numpy"):
        assert same(obj.value_and_grad(c.params), expected)
    assert obj.astype(dtype) is obj
    other = obj.astype("float64")
    assert other.net.dtype == other.problem.X.dtype == np.float64
    assert other.value(c.params) == pytest.approx(expected[0], rel=1e-5)
    with pytest.raises(ValueError, match="'softmax_ce' is not a sum of squares; least-squares"):
        c.net.objective(c.X, [0] * 9, "softmax_ce").residuals(c.params)


@pytest.mark.parametrize("acts", [["tanh", "linear"], [fb.relu(0.5), "sigmoid"]], ids=str)
def test_no_rows(backend, dtype, rng, acts):
    """Functions of X alone take empty data; an objective needs a row."""
    c = case(rng, [4, 7, 3], acts, dtype, n=0)
    Y, pullback = c.net.vjp(c.params, c.X)
    dparams, dX = pullback(Y)
    assert same(dparams, np.zeros(c.net.n_params, dtype))
    assert dX.shape == (0, 4)
    assert c.net.forward(c.params, c.X).shape == Y.shape == (0, 3)
    assert c.net.jacobian(c.params, c.X).shape == (0, c.net.n_params)
    assert c.net.input_jacobian(c.params, c.X).shape == (0, 3, 4)
    with pytest.raises(fb.ShapeError, match=r"X has shape \(0, 4\), expected at least one row"):
        c.net.value(*c.arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("act", ALL_ACTIVATIONS, ids=str)
def test_non_finite_data_pass_through_as_in_the_reference(backend, dtype, rng, act, bad):
    c = case(rng, [4, 7, 3], [act, "linear"], dtype)
    c.X[5, 2] = bad
    Y = c.net.forward(c.params, c.X)
    np.testing.assert_array_equal(
        np.isfinite(Y), np.isfinite(c.net.forward(c.params, c.X, backend="numpy"))
    )
    assert np.isfinite(np.delete(Y, 5, axis=0)).all()
    results = [c.net.value_and_grad(*c.arguments, backend=name) for name in (backend, "numpy")]
    for computed, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(np.isnan(computed), np.isnan(expected))
    D = c.net.input_jacobian(c.params, c.X)
    assert np.isfinite(np.delete(D, 5, axis=0)).all()


def test_pullback_can_be_used_again_and_y_is_the_callers(backend, dtype, rng):
    c = case(rng, [4, 7, 3], ["tanh", "sigmoid"], dtype)
    Y, pullback = c.net.vjp(c.params, c.X)
    dY = rng.standard_normal(Y.shape).astype(dtype)
    first = pullback(dY)
    Y[:] = np.nan
    first[0][:] = np.nan
    second = pullback(dY)
    assert same(second, c.net.vjp(c.params, c.X)[1](dY))


def test_results_belong_to_the_caller(backend, dtype, rng):
    """No later call changes what an earlier one returned."""
    c = case(rng, [4, 7, 3], ["tanh", "sigmoid"], dtype)

    def all_results(params):
        Y, pullback = c.net.vjp(params, c.X)
        results = [Y, *pullback(Y), c.net.forward(params, c.X), c.net.jacobian(params, c.X)]
        _, grad = c.net.value_and_grad(params, c.X, c.y)
        return [*results, c.net.input_jacobian(params, c.X), grad]

    first = all_results(c.params)
    kept = copy.deepcopy(first)
    second = all_results(c.params / 2)
    assert same(first, kept)
    for a, b in itertools.product(first, second):
        assert not np.shares_memory(a, b)


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
    glorot, he = np.sqrt(6 / 500), np.sqrt(6 / 300)
    for act, init, limit in [
        ("tanh", "auto", glorot),
        ("sigmoid", "auto", glorot),
        ("linear", "auto", glorot),
        ("relu", "auto", he),
        ("leaky_relu", "auto", he),
        (fb.relu(0.5), "auto", he),
        ("tanh", "he", he),
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


def test_repr_is_what_makes_the_object():
    for net in (
        fb.Network.mlp([4, 20, 1]),
        fb.Network(2, fb.Dense(3, fb.relu(0.5), bias=False, init="he"), dtype="float32"),
        fb.Network(2, fb.Dense(3, "leaky_relu"), fb.Dense(2, fb.leaky_relu(0.25))),
    ):
        assert eval(repr(net), {"fb": fb, "Network": fb.Network, "Dense": fb.Dense}) == net


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
    (lambda: fb.Dense(3, "relu6"), ValueError, "did you mean 'relu'?"),
    (lambda: fb.Dense(3, init="glorott"), ValueError, "did you mean 'glorot'?"),
    (lambda: fb.Network(0, fb.Dense(1)), ValueError, "n_in is 0, expected at least 1"),
    (lambda: fb.Network(2.0, fb.Dense(1)), TypeError, "n_in is 2.0, expected a whole number"),
    (lambda: fb.Network(2), ValueError, "a network needs at least one layer"),
    (lambda: fb.Network(2, 3, 1), TypeError, "a layer is 3, expected fastbp.Dense(...)"),
    (lambda: fb.Network(2, fb.Dense), TypeError, "expected fastbp.Dense(...)"),
    (lambda: fb.Network(2, fb.Dense(1), dtype="float16"), ValueError, "dtype is float16"),
    (lambda: fb.Network(2, fb.Dense(1), dtype=int), ValueError, "dtype is int64, expected"),
    (lambda: fb.Network(2, fb.Dense(1), dtype=complex), ValueError, "dtype is complex128"),
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
    for name in ACTIVATIONS:
        assert f'"{name}"' in fb.activation.__doc__
    for name in LOSSES:
        assert f'"{name}"' in fb.Network.objective.__doc__


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="l2 is 'much', expected a number >= 0"):
        fb.Network.mlp([1, 1]).value([0, 0], [[1.0]], [1.0], l2="much")
    with pytest.raises(TypeError, match="n_out is True, expected a whole number"):
        fb.Dense(True)
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        fb.Activation("tanhh")
