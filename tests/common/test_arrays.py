"""Any array-like gives the results of a clean array; wrong inputs raise alike everywhere."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from helpers.strategies import attempt, bits, case, nasty_layouts, nasty_types, same

import fastbp as fb
from fastbp.common.arrays import real_array

pytestmark = pytest.mark.backend


# Name -> (names of the arrays, function of the arrays).


def both_passes(act):
    def call(X, W, b, dY):
        Y, cache = fb.dense_forward(X, W, b, act)
        return (Y, *fb.dense_backward(dY, cache))

    return call


def masked(X, W, mask, dY):
    Y, cache = fb.dense_forward(X, W, None, "tanh", mask=mask)
    return (Y, *fb.dense_backward(dY, cache))


def vjp(net):
    def call(params, X, dY):
        Y, pullback = net.vjp(params, X)
        return (Y, *pullback(dY))

    return call


def objective(net, loss):
    def call(params, X, y, w):
        terms = {"sample_weight": w, "l2": 0.5}
        obj = net.objective(X, y, loss, **terms)
        results = net.value_and_grad(params, X, y, loss, **terms)
        return (*results, net.value(params, X, y, loss, **terms), obj.value(params))

    return call


def masked_network(mask, bias_mask):
    net = fb.Network(4, fb.Dense(3, "tanh", mask=mask, bias_mask=bias_mask))
    return net.free.copy(), net.init(0)


def curvature(net):
    def call(params, X, y, v):
        products = net.hvp(params, X, y, v, "log_cosh"), net.gnvp(params, X, y, v)
        return (*products, *net.jvp(params, X, v))

    return call


def ranking(net):
    def call(pair_params, P, pair_w):
        terms = {"sample_weight": pair_w, "l1": 0.5, "group": 0.25}
        return net.value_and_grad(pair_params, P, None, "margin_ranking", **terms)

    return call


def calls(dtype):
    """Networks and kernels of 4 - 6 - 3 with whole numbers 0 and 1, which every type holds."""
    rng = np.random.default_rng(8)
    c = case(rng, [4, 6, 3], [fb.relu(0.5), "sigmoid"], dtype, n=5)
    net = c.net
    pairs = case(rng, [4, 6, 1], [fb.relu(0.5), "sigmoid"], dtype, n=6).net
    arrays = {
        name: rng.integers(0, 2, shape).astype(dtype)
        for name, shape in {
            "X": (5, 4), "W": (4, 3), "b": 3, "dY": (5, 3), "mask": (4, 3), "y": (5, 3), "w": 5,
            "bias_mask": 3, "v": net.n_params,
            "P": (6, 4), "pair_w": 3, "pair_params": pairs.n_params,
        }.items()
    }  # fmt: skip
    arrays["w"][0] = arrays["pair_w"][0] = 1
    arrays["params"] = rng.integers(0, 2, net.n_params).astype(dtype)
    functions = {
        "relu layer": both_passes("relu"),
        "tanh layer": both_passes("tanh"),
        "masked layer": masked,
        "activation": lambda X: (fb.activation("tanh").f(X), fb.activation("tanh").df(X)),
        "forward": net.forward,
        "vjp": vjp(net),
        "jacobian": lambda params, X: net.jacobian(params, X),
        "input_jacobian": net.input_jacobian,
        "unpack": net.unpack,
        "mse": objective(net, "mse"),
        "bce_logits": objective(net, "bce_logits"),
        "softmax_ce": objective(net, "softmax_ce"),
        "poisson": objective(net, "poisson"),
        "margin_ranking": ranking(pairs),
        "curvature": curvature(net),
        "per_sample_grad": lambda params, X, y: net.per_sample_grad(params, X, y, "softmax_ce"),
        "normal_equations": lambda params, X, y, w: net.normal_equations(params, X, y, w),
        "max_stable_rate": lambda params, X, y: net.max_stable_rate(params, X, y),
        "masked network": masked_network,
    }
    return functions, arrays


def names_of(function):
    return [
        p.name for p in inspect.signature(function).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "layout"
    ]  # fmt: skip


FUNCTIONS = list(calls(np.dtype("float64"))[0])


def check_results(results, expected, what):
    assert same(results, expected), what
    for result in results if isinstance(results, tuple) else [results]:
        if isinstance(result, np.ndarray):
            assert type(result) is np.ndarray and result.flags.c_contiguous, what
            assert result.flags.writeable and result.flags.aligned, what


@pytest.mark.parametrize("name", FUNCTIONS)
def test_unusual_layouts_give_what_clean_arrays_give(backend, dtype, name):
    functions, arrays = calls(dtype)
    function = functions[name]
    clean = {key: arrays[key] for key in names_of(function)}
    expected = function(**clean)
    for key in clean:
        for what, variant in nasty_layouts(clean[key]).items():
            before = bits(variant)
            results = function(**clean | {key: variant})
            if name == "unpack":  # views of what came, where they can be
                assert same(results, expected), (key, what)
            else:
                check_results(results, expected, (key, what))
            assert bits(variant) == before, (key, what)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_types_are_converted_first(backend, dtype, name):
    """A network has its dtype. A kernel takes its widest argument's, float32 at least."""
    functions, arrays = calls(dtype)
    function = functions[name]
    clean = {key: arrays[key] for key in names_of(function)}
    kernel = "layer" in name or name == "activation"
    for key in clean:
        for what, variant in nasty_types(clean[key]).items():
            if kernel and key in ("X", "W", "b"):
                mine = np.asarray(variant).dtype
                others = [clean[k].dtype for k in clean if k in ("X", "W", "b") and k != key]
                floats = [d for d in (mine, *others) if d.kind == "f"]
                wide = not floats or max(d.itemsize for d in floats) > 4
                result_type = np.dtype("float64" if wide else "float32")
            else:
                result_type = dtype
            converted = {k: a.astype(result_type) for k, a in clean.items()}
            arguments = clean | {key: variant}
            check_results(function(**arguments), function(**converted), (key, what))


def test_backends_receive_aligned_arrays_of_native_order(dtype, rng):
    clean = rng.integers(0, 2, (5, 4)).astype(dtype)
    for what, variant in {**nasty_layouts(clean), **nasty_types(clean)}.items():
        array = real_array("X", variant, dtype)
        assert type(array) is np.ndarray and array.dtype is dtype, what
        assert array.flags.c_contiguous and array.flags.aligned, what
        assert same(array, clean), what
    assert real_array("X", clean, dtype) is clean


def test_arguments_may_be_the_same_array(backend, dtype, rng):
    A = rng.standard_normal((7, 7)).astype(dtype)
    for act in ("linear", "relu", "tanh", fb.relu(0.5)):
        call = both_passes(act)
        expected = call(A.copy(), A.copy(), A[0].copy(), A.copy())
        before = bits(A)
        assert same(call(A, A, A[0], A), expected)
        assert bits(A) == before
        Y, cache = fb.dense_forward(A, A, None, act)
        assert same(fb.dense_backward(Y, cache), fb.dense_backward(Y.copy(), cache))


def test_overlapping_arguments(backend, dtype, rng):
    """Data, targets, weights and parameters that are overlapping views of one array."""
    net = fb.Network(4, fb.Dense(6, "tanh"), fb.Dense(4))
    base = rng.uniform(0, 1, 200).astype(dtype)
    params, X, y, w = base[3 : 3 + net.n_params], base[:40], base[2:42], base[5:15]
    X, y = X.reshape(10, 4), y.reshape(10, 4)
    before = bits(base)
    results = net.value_and_grad(params, X, y, sample_weight=w)
    copies = params.copy(), X.copy(), y.copy()
    assert same(results, net.value_and_grad(*copies, sample_weight=w.copy()))
    _, pullback = net.vjp(params, X)
    assert same(pullback(X), pullback(X.copy()))
    assert bits(base) == before


@pytest.mark.parametrize("acts", [["sigmoid", fb.relu(0.5)], ["linear", "linear"]], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("fill", ["subnormal", "mixed", "huge"])
def test_extreme_values_give_no_warning_and_stay_extreme(backend, dtype, rng, rows, fill, acts):
    """Also where NumPy raises on floating-point errors, and its settings stay."""
    c = case(rng, [4, 6, 3], acts, dtype, n=rows)
    info = np.finfo(dtype)
    values = {
        "subnormal": [info.smallest_subnormal, -info.tiny / 2],
        "mixed": [np.nan, np.inf, -np.inf, 0, 1],
        "huge": [info.max, -info.max],
    }[fill]
    X = np.resize(np.array(values, dtype), (rows, 4))
    Y0 = np.resize(np.array(values, dtype), (rows, 3))
    with np.errstate(all="raise"):
        settings = np.geterr()
        net, p = c.net, c.params
        results = [net.forward(p, X), net.jacobian(p, X), net.input_jacobian(p, X)]
        results += [*net.value_and_grad(p, X, Y0), net.value(p, X, Y0)]
        results += net.vjp(p, X)[1](Y0)
        obj = net.objective(X, Y0, sample_weight=[0, 1, 2][-rows:], l2=0.1)
        results += [obj.value(p), obj.residuals(p), obj.jacobian(p)]
        results += [*net.jvp(p, X, p), net.hvp(p, X, Y0, p), net.gnvp(p, X, Y0, p)]
        results += [net.per_sample_grad(p, X, Y0), *net.normal_equations(p, X, Y0)]
        for act in ("linear", "relu", "leaky_relu", "sigmoid", "tanh"):
            Y, cache = fb.dense_forward(X, np.ones((4, 3), dtype), None, act)
            results += [Y, *fb.dense_backward(Y0, cache)[:2]]
            results += [fb.activation(act).f(X), fb.activation(act).df(X)]
        assert np.geterr() == settings
    finite = [np.isfinite(r).all() for r in results]
    assert all(finite) if fill == "subnormal" else not all(finite)


# Failures.

NET = fb.Network(4, fb.Dense(6, "tanh"), fb.Dense(3))
P, X, Y = NET.init(0), np.ones((5, 4)), np.ones((5, 3))
W, B = np.ones((4, 3)), np.ones(3)


def layer(X=X, W=W, b=B, act="tanh", mask=None, dY=Y):
    return fb.dense_backward(dY, fb.dense_forward(X, W, b, act, mask=mask)[1])


def least_squares(robust, f_scale=1.0):
    return NET.objective(X, Y).normal_equations(P, robust, f_scale)


def value(params=P, X=X, y=Y, loss="mse", **terms):
    return NET.value_and_grad(params, X, y, loss, **terms)


def pullback(dY):
    return NET.vjp(P, X)[1](dY)


FAILURES = [
    # dense layers
    (lambda: layer(X=X * 1j), TypeError, "X has dtype complex128, expected real numbers"),
    (lambda: layer(W=W.astype(object)), TypeError, "W has dtype object, expected real numbers"),
    (lambda: layer(b=["a", "b", "c"]), TypeError, "b has dtype <U1, expected real numbers"),
    (lambda: layer(dY=Y.astype("M8[s]")), TypeError, "dY has dtype datetime64[s], expected real"),
    (lambda: layer(X=[[1, 2], [3]]), TypeError, "X is not an array of real numbers"),
    (lambda: layer(b=[[1, 2], [3]]), TypeError, "b is not an array of real numbers"),
    (lambda: layer(X=None), TypeError, "X has dtype object"),
    (lambda: layer(X=X[0]), fb.ShapeError, "X has shape (4,), expected (n, 4)"),
    (lambda: layer(X=X[0]), fb.ShapeError, "a single sample is X.reshape(1, -1)"),
    (lambda: layer(X=1.0), fb.ShapeError, "X has shape (), expected (n, 4)"),
    (lambda: layer(X=X[None]), fb.ShapeError, "X has shape (1, 5, 4), expected (n, 4)"),
    (lambda: layer(X=X[:, :3]), fb.ShapeError, "X has shape (5, 3), expected (n, 4): a column"),
    (lambda: layer(W=W.T), fb.ShapeError, "W with a row per output, as in PyTorch, is W.T here"),
    (lambda: layer(W=W[0]), fb.ShapeError, "W has shape (3,), expected (n_in, n_out)"),
    (lambda: layer(b=1.0), fb.ShapeError, "b has shape (), expected (3,)"),
    (lambda: layer(b=np.ones(4)), fb.ShapeError, "b has shape (4,), expected (3,)"),
    (lambda: layer(b=np.ones((1, 3))), fb.ShapeError, "b has shape (1, 3), expected (3,)"),
    (lambda: layer(dY=Y[:4]), fb.ShapeError, "dY has shape (4, 3), expected (5, 3)"),
    (lambda: layer(dY=1.0), fb.ShapeError, "dY has shape (), expected (5, 3)"),
    (lambda: layer(mask=W.T), fb.ShapeError, "mask has shape (3, 4), expected (4, 3)"),
    (lambda: layer(mask=W / 2), ValueError, "mask holds 0.5 at row 0, column 0, expected 0"),
    (lambda: layer(mask=W * np.nan), ValueError, "mask holds nan at row 0, column 0"),
    (lambda: layer(act="rleu"), ValueError, "did you mean 'relu'?"),
    (lambda: layer(act=np.tanh), ValueError, "unknown activation <ufunc 'tanh'>: expected one of"),
    (lambda: fb.activation("tanh").f(1j), TypeError, "Z has dtype complex128, expected real"),
    (lambda: fb.activation("tanh").df("a"), TypeError, "Z has dtype <U1, expected real numbers"),
    (lambda: fb.activation("tanh").f([[1], 2]), TypeError, "Z is not an array of real numbers"),
    # networks
    (lambda: NET.forward(P[1:], X), fb.ShapeError, "params has shape (50,), expected (51,)"),
    (lambda: NET.forward(P[None], X), fb.ShapeError, "params has shape (1, 51), expected (51,)"),
    (lambda: NET.forward(1.0, X), fb.ShapeError, "params has shape (), expected (51,)"),
    (lambda: NET.forward(P * 1j, X), TypeError, "params has dtype complex128, expected real"),
    (lambda: NET.forward(P, X[:, 1:]), fb.ShapeError, "X has shape (5, 3), expected (n, 4)"),
    (lambda: NET.forward(P, X[0]), fb.ShapeError, "a single row is X.reshape(1, -1)"),
    (lambda: NET.forward(P, 1.0), fb.ShapeError, "X has shape (), expected (n, 4)"),
    (lambda: NET.forward(P, []), fb.ShapeError, "X has shape (0,), expected (n, 4)"),
    (lambda: NET.forward(P, X.astype(str)), TypeError, "X has dtype <U"),
    (lambda: NET.forward(P, [[1, 2], [3]]), TypeError, "X is not an array of real numbers"),
    (lambda: NET.jacobian(P[1:], X), fb.ShapeError, "params has shape (50,), expected (51,)"),
    (lambda: NET.jacobian(P, X.T), fb.ShapeError, "X has shape (4, 5), expected (n, 4)"),
    (lambda: NET.input_jacobian(P, X.T), fb.ShapeError, "X has shape (4, 5), expected (n, 4)"),
    (lambda: NET.vjp(P, X.T), fb.ShapeError, "X has shape (4, 5), expected (n, 4)"),
    (lambda: pullback(Y.T), fb.ShapeError, "dY has shape (3, 5), expected (5, 3)"),
    (lambda: pullback(Y.ravel()), fb.ShapeError, "dY has shape (15,), expected (5, 3)"),
    (lambda: pullback(Y * 1j), TypeError, "dY has dtype complex128, expected real numbers"),
    (lambda: NET.unpack(P[1:]), fb.ShapeError, "params has shape (50,), expected (51,)"),
    (lambda: NET.unpack(P, "xww"), ValueError, "did you mean 'xw'?"),
    (lambda: NET.jvp(P, X, P[1:]), fb.ShapeError, "tangent has shape (50,), expected (51,)"),
    (lambda: NET.jvp(P, X.T, P), fb.ShapeError, "X has shape (4, 5), expected (n, 4)"),
    (lambda: NET.jvp(P, X, P * 1j), TypeError, "tangent has dtype complex128, expected real"),
    (lambda: NET.jacobian(P, X, threads=0), ValueError, "threads is 0, expected at least 1"),
    (lambda: NET.jacobian(P, X, threads=1.5), TypeError, "threads is 1.5, expected a whole"),
    # layers
    (lambda: fb.Dense(3, mask=W / 2), ValueError, "mask holds 0.5 at row 0, column 0, expected 0"),
    (lambda: fb.Dense(3, mask=B), fb.ShapeError, "mask has shape (3,), expected (n_in, 3)"),
    (lambda: fb.Dense(3, mask=W * 1j), TypeError, "mask has dtype complex128, expected real"),
    (lambda: fb.Dense(3, trainable=2 * W), ValueError, "trainable holds 2.0 at row 0, column 0"),
    (lambda: fb.Dense(3, bias_mask=W), fb.ShapeError, "bias_mask has shape (4, 3), expected (3,)"),
    (lambda: fb.Dense(3, bias_mask=B - 1, bias=False), ValueError, "bias_mask was given with bias"),
    (lambda: fb.Dense(3, dropout=1.0), ValueError, "dropout is 1.0, expected a share in [0, 1)"),
    (lambda: fb.Network(5, fb.Dense(3, mask=W)), fb.ShapeError, "mask of layer 0 has shape (4, 3)"),
    # objectives; test_losses.py has the targets and weights
    (lambda: value(P[1:]), fb.ShapeError, "params has shape (50,), expected (51,)"),
    (lambda: value(X=X[:, 1:]), fb.ShapeError, "X has shape (5, 3), expected (n, 4)"),
    (lambda: value(X=X[:0], y=Y[:0]), fb.ShapeError, "X has shape (0, 4), expected at least one"),
    (lambda: value(X=X[:4]), fb.ShapeError, "y has shape (5, 3), expected (4, 3) as X has 4 rows"),
    (lambda: value(y=[0, 1, 2, 3, 0], loss="softmax_ce"), ValueError, "y holds label 3 at row 3"),
    (lambda: value(y=Y + 1, loss="bce_logits"), ValueError, "y holds 2.0 at row 0, column 0"),
    (lambda: value(loss="bcd"), ValueError, "unknown loss 'bcd': expected one of 'mse'"),
    (lambda: value(loss="softmax"), ValueError, "did you mean 'softmax_ce'?"),
    (lambda: value(sample_weight=-Y[:, 0]), ValueError, "sample_weight holds -1.0 at row 0"),
    (lambda: value(sample_weight=[1, 2]), fb.ShapeError, "sample_weight has shape (2,), expected"),
    (lambda: value(l2=-1), ValueError, "l2 is -1.0, expected a finite number >= 0"),
    (lambda: value(l1=np.nan), ValueError, "l1 is nan, expected a finite number >= 0"),
    (lambda: value(group="much"), TypeError, "group is 'much', expected a number >= 0"),
    (lambda: value(threads=-1), ValueError, "threads is -1, expected at least 1"),
    (lambda: value(y=None), ValueError, "y is None, but loss 'mse' expects values of shape"),
    (lambda: NET.hvp(P, X, Y, P[1:]), fb.ShapeError, "v has shape (50,), expected (51,)"),
    (lambda: NET.gnvp(P, X, Y, P * 1j), TypeError, "v has dtype complex128, expected real"),
    (lambda: NET.hvp(P, X, Y[1:], P), fb.ShapeError, "y has shape (4, 3), expected (5, 3)"),
    (lambda: NET.per_sample_grad(P, X, Y[1:]), fb.ShapeError, "y has shape (4, 3), expected"),
    (lambda: NET.normal_equations(P, X, Y.T), fb.ShapeError, "y has shape (3, 5), expected (5"),
    (lambda: NET.normal_equations(P, X, Y, B), fb.ShapeError, "sample_weight has shape (3,)"),
    (lambda: least_squares("hubber"), ValueError, "unknown robust loss 'hubber': expected one"),
    (lambda: least_squares("huber", 0), ValueError, "f_scale is 0.0, expected a finite number > 0"),
    (lambda: least_squares("huber", np.inf), ValueError, "f_scale is inf, expected a finite"),
    (lambda: least_squares("huber", "1m"), TypeError, "f_scale is '1m', expected a number > 0"),
    (lambda: NET.objective(X, Y, "mae").sum_of_squares(P), ValueError, "is not a sum of squares"),
    (lambda: NET.max_stable_rate(P, X, Y, "hinge_"), ValueError, "did you mean 'hinge'?"),
    (lambda: NET.objective(X, Y, l1=0.1).residuals(P), ValueError, "penalties l1 and group are"),
    (lambda: NET.objective(X, abs(Y), "poisson").jacobian(P), ValueError, "is not a sum of sq"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), FAILURES, ids=[f"{i}-{f[-1]}" for i, f in enumerate(FAILURES)]
)
def test_failures_are_the_references_and_leave_the_data(backend, call, error, message):
    before = [bits(a) for a in (P, X, Y, W, B)]
    with fb.use_backend("numpy"):
        expected = attempt(call)
    assert expected is not None, "no error"
    assert expected[0] is error and message in expected[1]
    assert attempt(call) == expected
    assert [bits(a) for a in (P, X, Y, W, B)] == before
