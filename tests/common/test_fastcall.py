"""Fast calls (csrc/python/fastcall.c) give the results and errors of Python without them."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.strategies import (
    BUMP,
    EVERY_ACTIVATION,
    attempt,
    bits,
    nasty_layouts,
    nasty_types,
    same,
)

import fastbp as fb
from fastbp import backends
from fastbp.common.arrays import is_ready
from fastbp.networks import single_layers as _kernels

pytestmark = [
    pytest.mark.skipif(_kernels.fast_forward is None, reason="fastbp was built without _fastcall"),
    pytest.mark.skipif(backends.why_missing("c") is not None, reason="no C backend"),
]


@pytest.fixture(autouse=True)
def use_c():
    with fb.use_backend("c"):
        yield


def without_fastcall(name):
    """A copy of the module, imported as if `_fastcall` were not built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fastbp.common._fastcall", None)
        spec = importlib.util.find_spec(name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plain():
    """The kernels without fast calls."""
    module = without_fastcall("fastbp.networks.single_layers")
    assert module.fast_forward is module.fast_backward is None
    return module


@pytest.fixture
def long_way(monkeypatch):
    """The names of the backend's functions that Python calls, in order."""
    module, calls = backends.load("c"), []

    def watched(name, function, *args):
        calls.append(name)
        return function(*args)

    for name in ("dense_forward", "dense_backward"):
        monkeypatch.setattr(module, name, partial(watched, name, getattr(module, name)))
    return calls


def layer(rng, dtype, n=5, n_in=4, n_out=3):
    """X, W, b, dY of whole numbers 0 and 1, which every type holds."""
    shapes = (n, n_in), (n_in, n_out), n_out, (n, n_out)
    return [rng.integers(0, 2, shape).astype(dtype) for shape in shapes]


def both(kernels, X, W, b, dY, act="tanh", **options):
    """The results of both functions of a module: the cache's arrays, and the gradients."""
    Y, cache = kernels.dense_forward(X, W, b, act, **options)
    arrays = *cache[:4], cache.mask
    assert type(cache) is kernels.DenseCache
    assert cache.Y is Y and cache.backend is backends.resolve(options.get("backend"))
    assert cache.activation == fb.activation(act) and cache.has_bias is (b is not None)
    return arrays, kernels.dense_backward(dY, cache)


@pytest.mark.parametrize("act", [*EVERY_ACTIVATION, fb.elu(0.3), fb.relu(1.0)], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (33, 5, 17), (64, 40, 32), (0, 4, 3), (3, 0, 2)], ids=str
)
def test_usual_calls_are_fast(plain, long_way, dtype, rng, act, shape):
    X, W, b, dY = layer(rng, dtype, *shape)
    act = fb.activation(act)
    for bias in (b, None):
        expected, plain_cache = plain.dense_forward(X, W, bias, act)
        gradients = plain.dense_backward(dY, plain_cache)
        assert long_way == ["dense_forward", "dense_backward"]
        long_way.clear()
        Y, cache = fb.dense_forward(X, W, bias, act)
        results = fb.dense_backward(dY, cache), fb.dense_backward(dY, cache, need_dX=False)
        assert long_way == [] or act is BUMP
        assert cache.X is X and cache.W is W and cache.Y is Y and cache.activation is act
        assert same(Y, expected) and same(cache.Z, plain_cache.Z)
        assert same(results[0], gradients)
        assert same(results[1], plain.dense_backward(dY, plain_cache, need_dX=False))
        long_way.clear()


def test_arguments_by_name(plain, long_way, rng, dtype):
    X, W, b, dY = layer(rng, dtype)
    usual = [
        lambda f: f(X, W),
        lambda f: f(X, W, b),
        lambda f: f(X, W, activation="relu"),
        lambda f: f(X, W, activation="relu", b=b),
        lambda f: f(W=W, X=X),
        lambda f: f(**{"".join(("activ", "ation")): "relu", "".join("XW"[:1]): X}, W=W, b=b),
    ]
    for call in usual:
        results = call(fb.dense_forward)
        assert long_way == []
        assert same(tuple(results[1][:4]), tuple(call(plain.dense_forward)[1][:4]))
        long_way.clear()
    _, cache = fb.dense_forward(X, W, b)
    first = fb.dense_backward(dY, cache)
    assert same(fb.dense_backward(cache=cache, dY=dY), first)
    assert same(fb.dense_backward(dY, need_dX=True, cache=cache), first)
    assert long_way == []
    assert same(fb.dense_backward(dY, tuple(cache)), first)
    assert long_way == []
    assert same(fb.dense_backward(dY, cache, need_dX=1), first)
    assert long_way == ["dense_backward"]


def test_unusual_arrays_take_the_long_way(plain, long_way, dtype, rng):
    clean = layer(rng, dtype)
    for i, array in enumerate(clean):
        variants = {**nasty_layouts(array), **nasty_types(array)}
        for what, variant in variants.items():
            arrays = [*clean[:i], variant, *clean[i + 1 :]]
            before = bits(variant)
            results, calls = both(_kernels, *arrays), list(long_way)
            assert same(results, both(plain, *arrays)), (i, what)
            assert bits(variant) == before
            assert (calls == []) is is_ready(variant, dtype), (i, what)
            long_way.clear()


def test_other_calls_take_the_long_way(plain, long_way, rng, dtype):
    X, W, b, dY = layer(rng, dtype)
    mask = rng.integers(0, 2, W.shape)
    for options in ({"mask": mask}, {"backend": "c"}, {"act": BUMP}):
        assert same(both(_kernels, X, W, b, dY, **options), both(plain, X, W, b, dY, **options))
        assert "dense_forward" in long_way
        long_way.clear()


X, W, B, DY = np.ones((5, 4)), np.ones((4, 3)), np.ones(3), np.ones((5, 3))


def backward(kernels, *args, **options):
    _, cache = kernels.dense_forward(X, W, B)
    return kernels.dense_backward(*[cache if a == "cache" else a for a in args], **options)


class NoActivation:
    numbers = (1,)

    def __repr__(self):
        return "none"


FAILURES = [
    lambda k: k.dense_forward(X, W, B, NoActivation()),
    lambda k: k.dense_backward(DY, tuple.__new__(k.DenseCache, (X, W))),
    lambda k: k.dense_forward(),
    lambda k: k.dense_forward(X),
    lambda k: k.dense_forward(W=W),
    lambda k: k.dense_forward(X, W, B, "tanh", None),
    lambda k: k.dense_forward(X, W, B, X=X),
    lambda k: k.dense_forward(X, W, B, bias=B),
    lambda k: k.dense_forward(X, W, B, activation=None),
    lambda k: k.dense_forward(X, W, B, "rleu"),
    lambda k: k.dense_forward(X, W, B, ["tanh"]),
    lambda k: k.dense_forward(X, W, B, "tanh", mask=W / 2),
    lambda k: k.dense_forward(X, W, B, backend="d"),
    lambda k: k.dense_forward(None, W),
    lambda k: k.dense_forward(X, None),
    lambda k: k.dense_forward(X[0], W),
    lambda k: k.dense_forward(X, W[0]),
    lambda k: k.dense_forward(X[None], W),
    lambda k: k.dense_forward(X, W.T),
    lambda k: k.dense_forward(X, W, B[:2]),
    lambda k: k.dense_forward(X, W, B[None]),
    lambda k: k.dense_forward(X * 1j, W),
    lambda k: k.dense_forward(X.astype(object), W),
    lambda k: k.dense_forward(np.empty((2**40, 0)), np.empty((0, 2**40))),
    lambda k: k.dense_forward(np.empty((2**25, 0)), np.empty((0, 2**25))),
    lambda k: k.dense_backward(DY),
    lambda k: k.dense_backward(DY, None),
    lambda k: k.dense_backward(DY, (X, W)),
    lambda k: backward(k, DY, "cache", True),
    lambda k: backward(k, DY, "cache", need_dx=True),
    lambda k: backward(k, DY[:4], "cache"),
    lambda k: backward(k, DY[0], "cache"),
    lambda k: backward(k, None, "cache"),
    lambda k: backward(k, DY * 1j, "cache"),
]


@pytest.mark.parametrize("call", FAILURES, ids=range(len(FAILURES)))
def test_errors_are_the_same(plain, call):
    expected = attempt(lambda: call(plain))
    assert expected is not None
    assert attempt(lambda: call(_kernels)) == expected


def test_the_backend_in_use_is_used(long_way, rng, dtype):
    X, W, b, dY = layer(rng, dtype)
    _, cache = fb.dense_forward(X, W, b)
    gradients = both(_kernels, X, W, b, dY, "linear", backend="c")[1]
    long_way.clear()
    for other in fb.available_backends():
        with fb.use_backend(other):
            assert fb.dense_forward(X, W, b)[1].backend is backends.load(other)
            assert same(fb.dense_backward(dY, cache), gradients)
            with ThreadPoolExecutor(1) as pool:  # whose context is empty
                default = pool.submit(fb.get_backend).result()
                of_thread = pool.submit(fb.dense_forward, X, W, b).result()[1]
            assert of_thread.backend is backends.load(default)
    assert long_way == []


@pytest.mark.parametrize("name", ["numba", "numpy"])
def test_other_backends_have_no_fast_calls(name, rng, dtype):
    if backends.why_missing(name) is not None:
        pytest.skip(backends.why_missing(name))
    X, W, b, dY = layer(rng, dtype)
    with fb.use_backend(name):
        arguments = X, W, b, "linear", backends._default, _kernels.DenseCache
        assert _kernels.fast_forward(*arguments) is None
        _, cache = fb.dense_forward(X, W, b)
    assert _kernels.fast_backward(dY, cache, True) is None


def test_a_cache_that_was_changed(plain, rng, dtype):
    X, W, b, dY = layer(rng, dtype)
    changes = [
        {"has_bias": False},
        {"activation": fb.activation("relu")},
        {"mask": np.eye(4, 3)},
        *({"backend": backends.load(name)} for name in fb.available_backends()),
    ]
    for change in changes:
        results = []
        for kernels in (_kernels, plain):
            cache = kernels.dense_forward(X, W, b, "tanh")[1]
            results.append(kernels.dense_backward(dY, cache._replace(**change)))
        assert same(*results), change
    for change in ({"X": 1}, {"W": np.asfortranarray(W)}, {"Y": X.tolist()}):
        failures = []
        for kernels in (_kernels, plain):
            cache = kernels.dense_forward(X, W, b, "tanh")[1]._replace(**change)
            failures.append(attempt(partial(kernels.dense_backward, dY, cache)))
        assert failures[0] == failures[1] is not None, change


def test_references_are_released(rng, dtype):
    arrays = layer(rng, dtype)
    act = fb.leaky_relu(0.2)
    counted = [*arrays, act, dtype, backends.load("c"), fb.activation("gelu")]

    def calls():
        for function in (act, "gelu", "linear"):
            X, W, b, dY = arrays
            _, cache = fb.dense_forward(X, W, b, function)
            fb.dense_backward(dY, cache)
            fb.dense_backward(dY, cache, need_dX=False)
            fb.dense_forward(X, W, activation=function)
            for failure in (
                partial(fb.dense_forward, X, W.T),
                partial(fb.dense_backward, X, cache),
            ):
                attempt(failure)

    calls()
    gc.collect()
    before = [sys.getrefcount(x) for x in counted]
    for _ in range(100):
        calls()
    gc.collect()
    assert [sys.getrefcount(x) for x in counted] == before


def test_memory_does_not_grow(rng, dtype):
    X, W, b, dY = layer(rng, dtype, 30, 20, 10)

    def calls(times):
        for _ in range(times):
            _, cache = fb.dense_forward(X, W, b, "gelu")
            fb.dense_backward(dY, cache)

    calls(10)
    tracemalloc.start()
    try:
        calls(10)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        calls(1000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1000  # less than a result


def test_what_is_ready(dtype, rng):
    in_python = without_fastcall("fastbp.common.arrays").is_ready
    assert in_python is not is_ready
    for array in [*layer(rng, dtype), np.zeros((0, 3), dtype)]:
        variants = {"as it is": array, **nasty_layouts(array), **nasty_types(array)}
        for what, variant in variants.items():
            assert is_ready(variant, dtype) is bool(in_python(variant, dtype)), what
    for other in (None, 1.0, dtype, np.dtype(dtype, metadata={"unit": "m"}).type(1)):
        assert is_ready(other, dtype) is in_python(other, dtype) is False


@pytest.mark.parametrize("loss", ["mse", "softmax_ce", "gaussian_kl"])
def test_value_and_gradient(monkeypatch, dtype, rng, loss):
    net = fb.Network(4, fb.Dense(6, "gelu"), fb.Dense(2), dtype=dtype)
    X, params = rng.standard_normal((9, 4)), net.init(seed=3)
    y = {"mse": X[:, :2], "softmax_ce": rng.integers(0, 2, 9), "gaussian_kl": None}[loss]
    objective = net.objective(X, y, loss, l2=0.1)
    value, grad = objective.value_and_grad(params)
    assert type(value) is float and grad.flags.owndata and grad.flags.writeable
    count = sys.getrefcount(params)
    for _ in range(100):
        objective.value_and_grad(params)
    assert sys.getrefcount(params) == count
    module, fast = backends.load("c"), []

    def watched(function, *args):
        fast.append(function(*args))
        return fast[-1]

    value_and_grad = partial(watched, module._fastcall.value_and_grad)
    monkeypatch.setattr(module, "_fastcall", SimpleNamespace(value_and_grad=value_and_grad))
    assert same((value, grad), objective.value_and_grad(params))
    assert len(fast) == 1 and same(fast[0], (value, grad))
    monkeypatch.setattr(module, "_fastcall", None)
    assert same((value, grad), objective.value_and_grad(params))
    assert len(fast) == 1


@pytest.mark.parametrize("shape", [(2, 8, 8), (64, 48, 40)], ids=str)  # with the GIL and without
def test_threads(rng, dtype, shape):
    arrays = layer(rng, dtype, *shape)
    expected = both(_kernels, *arrays)

    def calls(_):
        with fb.use_backend("c"):
            return all(same(both(_kernels, *arrays), expected) for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(calls, range(8)))


def run(program, backend):
    environment = os.environ | {"FASTBP_BACKEND": backend}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


def test_the_first_calls_are_made_by_several_threads():
    program = """
import threading, numpy as np, fastbp as fb
from concurrent.futures import ThreadPoolExecutor
X, W, start = np.ones((2, 3), np.float32), np.full((3, 4), 0.1, np.float32), threading.Barrier(3)

def calls(i):
    start.wait()
    act = ("tanh", "relu", "tanh")[i]
    for _ in range(100):
        Y, cache = fb.dense_forward(X, W, X[0, :1].repeat(4), act)
        dX, dW, db = fb.dense_backward(Y, cache)
    return [np.round(array, 4).tolist() for array in (Y, dX, dW, db)]

y = np.tanh(1.3)
d = y * (1 - y * y)
expected = ((y, 0.4 * d, 2 * d, 2 * d), (1.3, 0.52, 2.6, 2.6))
shapes = (2, 4), (2, 3), (3, 4), 4
with ThreadPoolExecutor(3) as pool:
    for i, results in enumerate(pool.map(calls, range(3))):
        for result, shape, value in zip(results, shapes, expected[i % 2]):
            assert np.allclose(result, np.full(shape, value), atol=1e-4), (i, result, value)
"""
    run(program, "c")


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_before_the_library_is_loaded(backend):
    """The process does not use the C backend."""
    if backends.why_missing(backend) is not None:
        pytest.skip(backends.why_missing(backend))
    run(
        "import numpy as np, sys, fastbp as fb\n"
        "Y, cache = fb.dense_forward(np.ones((2, 3)), np.ones((3, 1)), np.zeros(1), 'tanh')\n"
        "Y, cache = fb.dense_forward(np.ones((2, 3)), np.ones((3, 1)))\n"
        "dX, dW, db = fb.dense_backward(np.ones((2, 1)), cache)\n"
        "assert Y.tolist() == [[3.0], [3.0]] and dW.tolist() == 3 * [[2.0]] and db is None\n"
        "assert 'fastbp.backends.native' not in sys.modules\n",
        backend,
    )
