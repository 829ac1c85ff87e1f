"""Networks: derivatives against extended precision and differences, masks, frozen parameters."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle

import numpy as np
import pytest
from helpers.strategies import (
    EVERY_ACTIVATION,
    EVERY_LOSS,
    case,
    case_of,
    cases,
    n_for,
    n_out_for,
    same,
)
from hypothesis import given, strategies as st
from oracles import bounds
from oracles.bounds import EXACT, exact, richardson

import fastbp as fb

pytestmark = pytest.mark.backend

MIXED = [fb.relu(0.5), "sigmoid", "leaky_relu", "tanh", "linear", "relu"]


def combined(rng, k, sizes, dtype, n=11, **terms):
    """Hidden layers of activation number k and another one, loss number k."""
    loss = EVERY_LOSS[k % len(EVERY_LOSS)]
    n, last = n_for(loss, n), "sigmoid" if loss == "bce" else "linear"
    sizes = [*sizes[:-1], n_out_for(loss, sizes[-1])]
    acts = [EVERY_ACTIVATION[k % len(EVERY_ACTIVATION)], MIXED[k % 6]][: len(sizes) - 2]
    return case(rng, sizes, [*acts, last], dtype, n, loss, bias=k % 4 > 0, **terms)


def table_of_cases(dtype):
    """All activations and losses, with and without weights, penalty and biases; n_in first."""
    rng, table = np.random.default_rng(5), []
    for k in range(len(EVERY_ACTIVATION) + 8):  # test_pairwise.py has all pairs
        sizes = [4 + k % 7, 6 + k % 9, 5, 3]
        table.append(combined(rng, k, sizes, dtype, weighted=k % 2 == 0, l2=0.03 * (k % 3)))
    for k in range(len(EVERY_ACTIVATION)):  # rows and units fill no vector
        sizes = [1 + k % 8, 2 + k % 3, 4, 1 + k % 3]
        table.append(combined(rng, k, sizes, dtype, 1 + 7 * k % 67, weighted=k % 2 == 1))
    table.append(case(rng, [1, 1], ["tanh"], dtype, 1))
    table.append(case(rng, [2, 30, 1], ["relu", "linear"], dtype, 4, "bce_logits"))
    table.append(case(rng, [3, 3, 1], ["sigmoid", "sigmoid"], dtype, 4, "half_mse"))
    table.append(case(rng, [3, 1, 9, 2], ["tanh", "relu", "linear"], dtype, 70, "softmax_ce"))
    # Deep, wide and tall enough for every way of tiling.
    table.append(case(rng, [1, 40, 40, 1], ["relu", "relu", "linear"], dtype, 32, l2=0.01))
    table.append(case(rng, [64, 32, 10], ["relu", "linear"], dtype, 65, "softmax_ce"))
    table.append(case(rng, [24, 64, 63, 8], ["tanh", "gelu", "linear"], dtype, 257, "half_mse"))
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


# What grows exponentially would leave float32's range in some of the networks drawn.
TAME = [loss for loss in EVERY_LOSS if str(loss) not in ("'poisson'", "'gaussian_nll'")]
TAME_ACTIVATIONS = [act for act in EVERY_ACTIVATION if act != "exp"]


@given(data=st.data())
def test_random_networks(backend, dtype, data):
    options = {"penalties": ("l2", "l1", "group"), "masks": True}
    c = data.draw(cases(dtype, TAME_ACTIVATIONS, TAME, **options))
    terms = {("weights" if name == "sample_weight" else name): t for name, t in c.terms.items()}
    value_bound, grad_bound = bounds.objective(c.net, *c.arguments, **terms)
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


def away_from_kinks(make):
    """The first seed for which no Z is near a corner, so that differences do not step over it."""
    for seed in itertools.count():
        c = make(np.random.default_rng(seed))
        steps = bounds.forward(c.net, c.params, c.X)
        distances = [
            abs(Z.value - corner).min()
            for layer, (_, Z, _) in zip(c.net.layers, steps, strict=True)
            for corner in bounds.function(layer.act).corners
        ]
        if min(distances, default=1) > 0.003:
            return c


def wide_forward(net, params, X):
    """The network's output in extended precision for parameters and data of that precision."""
    return bounds.forward(net, params, X)[-1][2].value


@functools.cache
def differences(k):
    """A case and its gradient by differences of the objective in extended precision.

    All dimensions differ (8 rows, 5 - 7 - 6 - 3 or 4), so that no transposition goes unseen.
    """
    penalties = {"l2": 0.1, "l1": 0.05, "group": 0.07}

    def make(rng):
        c = combined(rng, k, [5, 7, 6, 3], "float64", 8, weighted=True)
        c.terms |= penalties
        return c

    c = away_from_kinks(make)
    p, weights = c.params.astype(EXACT), c.terms["sample_weight"]

    def value(p):
        return bounds.value(c.net, p, c.X, c.y, c.loss, weights, **penalties).value

    units = np.eye(c.net.n_params)
    grad = np.array([richardson(lambda t, e=e: value(p + t * e)) for e in units])
    return c, float(value(p)), grad


@pytest.mark.parametrize("k", range(len(EVERY_ACTIVATION)))
def test_gradient_agrees_with_differences(backend, k):
    c, expected, grad = differences(k)
    value, computed = c.net.value_and_grad(*c.arguments, **c.terms)
    assert value == pytest.approx(expected, rel=1e-14)
    # Differences over h/4 magnify the value's extended rounding; the error of order h^6 is below.
    rounding = 8 * np.finfo(EXACT).eps * abs(expected) / (1e-4 / 4)
    assert abs(computed - grad).max() <= 1e-13 * abs(grad).max() + rounding


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("act", EVERY_ACTIVATION, ids=str)
def test_products_agree_with_directional_differences(backend, rng, act, bias):
    """<dY, J v> = <Jᵀ dY, v> for parameters and inputs, the left by differences along v."""
    c = away_from_kinks(lambda rng: case(rng, [4, 7, 6, 3], [act, "tanh", act], n=5, bias=bias))
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
    assert abs(c.net.jvp(c.params, c.X, v)[1] - Jv).max() <= 1e-13 * abs(Jv).max()


@pytest.mark.parametrize("loss", ["mse", "half_mse", "sse"])
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
    for name in ("residuals", "jacobian", "normal_equations"):
        with pytest.raises(ValueError, match="'softmax_ce' is not a sum of squares; least-squares"):
            getattr(c.net.objective(c.X, [0] * 9, "softmax_ce"), name)(c.params)
        with pytest.raises(ValueError, match="penalties l1 and group are not sums of squares"):
            getattr(c.net.objective(c.X, c.y, l1=0.1), name)(c.params)


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
@pytest.mark.parametrize("act", EVERY_ACTIVATION, ids=str)
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
    copied = copy.deepcopy(first)
    second = all_results(c.params / 2)
    assert same(first, copied)
    for a, b in itertools.product(first, second):
        assert not np.shares_memory(a, b)


# Masks and frozen parameters.


def partly_fixed(dtype="float64", seed=6):
    """A case with masks, frozen entries and a frozen layer, and which of its parameters are free.

    One unit has lost all its connections; one layer has no bias.
    """
    rng = np.random.default_rng(seed)
    first, last = rng.random((4, 7)) < 0.6, rng.random((6, 3)) < 0.6
    first[:, 2] = False
    trainable = rng.random((4, 7)) < 0.7
    biases = np.array([1, 0, 1, 1, 0, 1, 1])
    net = fb.Network(
        4,
        fb.Dense(7, "tanh", mask=first, bias_mask=biases, trainable=trainable),
        fb.Dense(5, "gelu", bias=False, trainable=rng.random((7, 5)) < 0.5),
        fb.Dense(6, "softplus", trainable=False),
        fb.Dense(3, mask=last),
        dtype=dtype,
    )
    middle, frozen = np.asarray(net.layers[1].trainable), np.zeros(5 * 6 + 6, bool)
    free = [(first & trainable).ravel(), biases == 1, middle.ravel(), frozen, last.ravel()]
    present = [first.ravel(), biases == 1, np.ones(35 + 36, bool), last.ravel(), np.ones(3, bool)]
    c = case_of(rng, net, weighted=True, l2=0.1, l1=0.05, group=0.07)
    return c, np.concatenate([*free, np.ones(3, bool)]), np.concatenate(present)


def without_masks(net):
    """The same layers with all their connections, all of them free."""
    layers = [fb.Dense(layer.n_out, layer.act, bias=layer.bias) for layer in net.layers]
    return fb.Network(net.n_in, *layers, dtype=net.dtype)


def all_derivatives(net, params, X, y, v, terms):
    """Name -> what depends on the parameters, with the entries (..., n_params) last."""
    _, pullback = net.vjp(params, X)
    penalties = {name: value for name, value in terms.items() if name != "sample_weight"}
    objective = net.objective(X, y, sample_weight=terms["sample_weight"], l2=terms["l2"])
    return {
        "gradient": net.value_and_grad(params, X, y, **terms)[1],
        "vjp": pullback(y)[0],
        "jacobian": net.jacobian(params, X),
        "per_sample_grad": net.per_sample_grad(params, X, y),
        "hvp": net.hvp(params, X, y, v, **terms),
        "gnvp": net.gnvp(params, X, y, v, **penalties),
        "residuals' jacobian": objective.jacobian(params),
    }


def test_free_parameters_by_hand():
    net = fb.Network(
        2,
        fb.Dense(3, mask=[[1, 0, 1], [0, 1, 1]], bias_mask=[1, 1, 0]),
        fb.Dense(2, trainable=[[1, 0], [1, 1], [0, 1]]),
        fb.Dense(1, trainable=False),
    )
    assert net.free.tolist() == [0, 2, 4, 5, 6, 7, 9, 11, 12, 14, 15, 16]
    assert (net.n_params, net.n_free) == (20, 12)
    assert net.free.dtype == np.intp and not net.free.flags.writeable
    everything = fb.Network.mlp([2, 3, 1])
    assert everything.free.tolist() == list(range(13)) and everything.n_free == 13
    nothing = fb.Network(
        2, fb.Dense(3, trainable=False), fb.Dense(1, mask=np.zeros((3, 1)), bias_mask=[0])
    )
    assert nothing.free.size == nothing.n_free == 0
    # A mask that takes nothing away is none.
    assert fb.Network(2, fb.Dense(3, mask=np.ones((2, 3)), bias_mask=[1, 1, 1])).n_free == 9


def test_masks_and_frozen_entries_make_up_the_free_ones():
    c, free, _present = partly_fixed()
    assert same(c.net.free, np.flatnonzero(free))
    assert same(bounds.free_entries(c.net), free)


GARBAGE = [np.nan, np.inf, -np.inf, 1e300, -0.0, 7.0]


def test_masked_entries_act_as_zero_whatever_the_vector_holds(backend, dtype, rng):
    c, _, present = partly_fixed(dtype)
    v = rng.standard_normal(c.net.n_params).astype(dtype)
    clean = np.where(present, c.params, dtype.type(0))
    with np.errstate(over="ignore"):
        garbage = np.resize(GARBAGE, c.net.n_params).astype(dtype)
    dirty, dirty_v = np.where(present, c.params, garbage), np.where(present, v, garbage)
    before = dirty.copy()
    results = []
    for params, direction in ((clean, v), (dirty, dirty_v)):
        derivatives = all_derivatives(c.net, params, c.X, c.y, direction, c.terms)
        derivatives["forward"] = c.net.forward(params, c.X)
        derivatives["input Jacobian"] = c.net.input_jacobian(params, c.X)
        derivatives["dX"] = c.net.vjp(params, c.X)[1](c.y)[1]
        derivatives["value"] = c.net.value(params, c.X, c.y, **c.terms)
        derivatives["jvp"] = c.net.jvp(params, c.X, direction)
        derivatives["normal equations"] = c.net.normal_equations(params, c.X, c.y)
        derivatives["rate"] = c.net.max_stable_rate(params, c.X, c.y)
        results.append(derivatives)
    for name, expected in results[0].items():
        assert same(results[1][name], expected), name
        parts = expected if isinstance(expected, tuple) else (expected,)
        assert all(np.isfinite(part).all() for part in parts), name
    assert same(dirty, before)
    # And that is the network that has all connections, some of weight zero.
    plain = without_masks(c.net)
    assert same(c.net.forward(dirty, c.X), plain.forward(clean, c.X))
    assert same(c.net.value(dirty, c.X, c.y, **c.terms), plain.value(clean, c.X, c.y, **c.terms))


def test_fixed_entries_have_zero_derivatives_and_free_ones_all_of_theirs(backend, dtype, rng):
    c, free, present = partly_fixed(dtype)
    params = np.where(present, c.params, dtype.type(0))
    v = np.where(free, rng.standard_normal(c.net.n_params), 0).astype(dtype)
    plain = all_derivatives(without_masks(c.net), params, c.X, c.y, v, c.terms)
    for name, derivative in all_derivatives(c.net, params, c.X, c.y, v, c.terms).items():
        fixed = derivative[..., ~free]
        assert not fixed.any() and not np.signbit(fixed).any(), name
        assert same(derivative[..., free], plain[name][..., free]), name
        assert derivative[..., free].any(), name


def test_directions_count_at_free_parameters_alone(backend, dtype, rng):
    c, free, _ = partly_fixed(dtype)
    v = rng.standard_normal(c.net.n_params).astype(dtype)
    for other in (np.where(free, v, 0), np.where(free, v, np.nan)):
        assert same(c.net.jvp(c.params, c.X, v), c.net.jvp(c.params, c.X, other))
        for product in (c.net.hvp, c.net.gnvp):
            expected = product(c.params, c.X, c.y, v, **c.terms)
            assert same(product(c.params, c.X, c.y, other, **c.terms), expected)


def test_normal_equations_are_in_free_coordinates(backend, dtype):
    c, free, present = partly_fixed(dtype)
    JTJ, JTr, sse = c.net.normal_equations(c.params, c.X, c.y)
    params = np.where(present, c.params, dtype.type(0))
    plain, arguments = without_masks(c.net), (params, c.X, c.y)
    all_JTJ, all_JTr, all_sse = plain.normal_equations(*arguments)
    assert sse == all_sse
    # Sums of the same products, in two orders on the backend "numpy".
    J = abs(plain.jacobian(params, c.X)[:, free].astype(np.float64))
    r = abs(plain.forward(params, c.X).astype(np.float64) - c.y).ravel()
    most = 2 * bounds.gamma(len(J) + 2, dtype)
    assert (abs(JTJ - all_JTJ[np.ix_(free, free)]) <= most * J.T @ J).all()
    assert (abs(JTr - all_JTr[free]) <= most * J.T @ r).all()
    np.linalg.cholesky(JTJ.astype(np.float64) + 1e-6 * np.eye(len(JTJ)))


def test_jacobian_of_the_free_parameters(backend, dtype):
    c, free, _ = partly_fixed(dtype)
    whole, part = c.net.jacobian(c.params, c.X), c.net.jacobian(c.params, c.X, free_only=True)
    assert same(part, np.ascontiguousarray(whole[:, free])) and part.flags.c_contiguous
    plain = without_masks(c.net)
    assert same(plain.jacobian(c.params, c.X, True), plain.jacobian(c.params, c.X))
    above = fb.Network(
        4, fb.Dense(5, "tanh", trainable=False), fb.Dense(2, trainable=False), fb.Dense(3),
        dtype=dtype,
    )  # fmt: skip
    params = above.init(0)
    whole, part = above.jacobian(params, c.X), above.jacobian(params, c.X, free_only=True)
    assert same(part, np.ascontiguousarray(whole[:, above.free])) and part.any()
    frozen = fb.Network(4, fb.Dense(3, trainable=False), dtype=dtype)
    assert frozen.jacobian(frozen.init(0), c.X, free_only=True).shape == (27, 0)
    JTJ, JTr, sse = frozen.normal_equations(frozen.init(0), c.X, c.y)
    assert JTJ.shape == (0, 0) and JTr.shape == (0,) and sse > 0
    assert frozen.max_stable_rate(frozen.init(0), c.X, c.y) == np.inf


def test_a_mask_is_what_dense_forward_takes(backend, dtype, rng):
    mask, X = rng.random((4, 3)) < 0.5, rng.standard_normal((6, 4)).astype(dtype)
    net = fb.Network(4, fb.Dense(3, "tanh", mask=mask), dtype=dtype)
    params = rng.standard_normal(net.n_params).astype(dtype)
    ((W, b),) = net.unpack(params)
    Y, cache = fb.dense_forward(X, W, b, "tanh", mask=mask)
    assert same(net.forward(params, X), Y)
    dX, dW, db = fb.dense_backward(Y, cache)
    assert same(net.vjp(params, X)[1](Y), (np.concatenate([dW.ravel(), db]), dX))


def test_masks_are_copied_and_compared_by_value():
    mask = np.array([[1, 0, 1], [0, 1, 1]])
    layer = fb.Dense(3, mask=mask, bias_mask=[1, 0, 1], trainable=mask.astype(bool))
    forms = [
        fb.Dense(3, mask=mask.tolist(), bias_mask=(1.0, 0.0, 1.0), trainable=mask.astype("f4")),
        fb.Dense(3, mask=mask > 0, bias_mask=np.array([1, 0, 1], "u1"), trainable=mask),
        pickle.loads(pickle.dumps(layer)),
        copy.deepcopy(layer),
    ]
    for other in forms:
        assert other == layer and hash(other) == hash(layer)
    others = [
        fb.Dense(3),
        fb.Dense(3, mask=mask),
        fb.Dense(3, mask=1 - mask, bias_mask=[1, 0, 1], trainable=mask),
        fb.Dense(3, mask=mask, bias_mask=[1, 1, 1], trainable=mask),
        fb.Dense(3, mask=mask, bias_mask=[1, 0, 1], trainable=False),
        fb.Dense(3, mask=mask, bias_mask=[1, 0, 1], trainable=mask, dropout=0.5),
        fb.Dense(3, mask=mask.T.reshape(2, 3), bias_mask=[1, 0, 1], trainable=mask),
        fb.Dense(3, mask=mask.reshape(-1, 3)[:1], bias_mask=[1, 0, 1]),
    ]
    assert all(layer != other for other in others)
    assert len({layer, *forms, *others}) == 1 + len(others)
    mask[:] = 0
    assert layer == forms[0]
    for array in (layer.mask, layer.bias_mask, layer.trainable):
        assert array.dtype == bool
        with pytest.raises(ValueError, match="read-only"):
            array[...] = True


@pytest.mark.parametrize("layout", ["xw", "wx", "theta", "Octave's vector"])
def test_layouts_keep_masked_entries_and_forward_ignores_them(backend, layout, rng):
    """In every layout packing moves numbers alone; the mask is W's, a row per input."""
    mask, biases = np.array([[1, 0, 1], [0, 1, 1]]), np.array([1, 0, 1])
    net = fb.Network(
        2,
        fb.Dense(3, "tanh", mask=mask, bias_mask=biases),
        fb.Dense(2, mask=[[1, 0], [1, 1], [0, 1]]),
    )
    params = np.arange(1.0, 1 + net.n_params)
    if layout == "Octave's vector":
        flat = np.concatenate([t.ravel(order="F") for t in net.unpack(params, "theta")])
        packed = net.pack(flat, "theta")
    else:
        packed = net.pack(net.unpack(params, layout), layout)
    assert same(packed, params)
    (W, b), (V, c) = net.unpack(params)
    X = rng.standard_normal((5, 2))
    expected = np.tanh(X @ (W * mask) + b * biases) @ (V * net.layers[1].mask) + c
    np.testing.assert_allclose(net.forward(packed, X), expected, rtol=1e-14)


def test_masked_weights_start_at_zero_and_others_as_without_mask(dtype):
    mask = np.random.default_rng(2).random((30, 20)) < 0.5
    masked = fb.Network(30, fb.Dense(20, "relu", mask=mask), fb.Dense(4), dtype=dtype)
    plain = fb.Network(30, fb.Dense(20, "relu"), fb.Dense(4), dtype=dtype)
    params = plain.init(seed=5)
    plain.unpack(params)[0][0][~mask] = 0
    assert same(masked.init(seed=5), params)


def test_dropout_and_frozen_layers_change_no_function(backend, dtype):
    """Dropout is for training alone; freezing zeroes derivatives, not outputs."""
    c = case(np.random.default_rng(1), [4, 7, 5, 3], ["tanh", "gelu", "linear"], dtype)
    layers = c.net.layers
    dropping = fb.Network(
        4, *(fb.Dense(u.n_out, u.act, dropout=0.5) for u in layers[:-1]), layers[-1], dtype=dtype
    )
    assert same(dropping.value_and_grad(*c.arguments), c.net.value_and_grad(*c.arguments))
    frozen = fb.Network(
        4, *(fb.Dense(u.n_out, u.act, trainable=False) for u in layers), dtype=dtype
    )
    value, grad = frozen.value_and_grad(*c.arguments)
    assert value == c.net.value(*c.arguments) and not grad.any()
    assert same(frozen.input_jacobian(c.params, c.X), c.net.input_jacobian(c.params, c.X))
    assert same(frozen.vjp(c.params, c.X)[1](c.y)[1], c.net.vjp(c.params, c.X)[1](c.y)[1])
