"""fastbp.jitted: the same bits as the public functions, inside users' own jitted code.

The functions here are stored by Numba's cache, as users' are: a second run of the tests loads them.
"""

from __future__ import annotations

import os
import pickle
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.strategies import BUMP, QUARTIC, case, case_of, n_for, n_out_for, same

import fastbp as fb
from fastbp import backends

numba = pytest.importorskip("numba")
from numba import njit  # noqa: E402
from numba.core.errors import TypingError  # noqa: E402

from fastbp import jitted  # noqa: E402
from fastbp.jitted import handles  # noqa: E402
from fastbp.maths.losses import TABLE  # noqa: E402

PACKAGE = Path(fb.__file__).resolve().parent


@pytest.fixture(autouse=True)
def on_numba():
    with fb.use_backend("numba"):
        yield


# Networks.


@njit(cache=True)
def of_network(net, params, X):
    out = np.empty((X.shape[0], net.n_out), X.dtype)
    returned = jitted.forward(net, params, X, out)
    J, of_free = jitted.jacobian(net, params, X), jitted.jacobian(net, params, X, True)
    sizes = np.array([net.n_in, net.n_out, net.n_params, net.n_free])
    return jitted.forward(net, params, X), out, returned, J, of_free, sizes


def masked(dtype):
    rng = np.random.default_rng(1)
    return fb.Network(
        3,
        fb.Dense(6, "elu", mask=rng.random((3, 6)) < 0.6, bias_mask=rng.random(6) < 0.6),
        fb.Dense(4, "tanh", trainable=rng.random((6, 4)) < 0.6),
        fb.Dense(2, trainable=False),
        dtype=dtype,
    )


NETWORKS = {
    "narrow": lambda dtype: fb.Network.mlp([3, 3, 1], "sigmoid", "sigmoid", dtype),
    "one hidden": lambda dtype: fb.Network.mlp([4, 20, 1], dtype=dtype),
    "deep": lambda dtype: fb.Network.mlp([2, 5, 4, 3, 7, 2], "gelu", dtype=dtype),
    "wide": lambda dtype: fb.Network.mlp([5, 130, 3], "relu", dtype=dtype),
    "one layer": lambda dtype: fb.Network(3, fb.Dense(2, bias=False), dtype=dtype),
    "user": lambda dtype: fb.Network(2, fb.Dense(9, BUMP), fb.Dense(2, fb.elu(0.5)), dtype=dtype),
    "masked": masked,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, rng, dtype):
    net = NETWORKS[name](dtype)
    for n in (0, 1, 2, 7, 63, 64, 65, 128, 255, 256, 257, 300):
        c = case_of(rng, net, n)
        Y, out, returned, J, of_free, sizes = of_network(net, c.params, c.X)
        assert same(Y, net.forward(c.params, c.X)), n
        assert same(out, Y) and same(returned, Y)
        assert same(J, net.jacobian(c.params, c.X)), n
        assert same(of_free, net.jacobian(c.params, c.X, True)), n
        assert sizes.tolist() == [net.n_in, net.n_out, net.n_params, net.n_free]


def test_called_from_python(rng):
    c = case_of(rng, masked("float32"))
    assert same(of_network.py_func(c.net, c.params, c.X), of_network(c.net, c.params, c.X))
    bound = c.net.objective(c.X, c.y, "mae", l1=0.1, backend="c" if c_is_there() else "numpy")
    grad = np.empty_like(c.params)
    for found in (
        jitted.value_and_grad(bound, c.params),
        jitted.value_and_grad(c.net, c.params, c.X, c.y, "mae", l1=0.1, out=grad),
    ):
        assert same(found, c.net.value_and_grad(c.params, c.X, c.y, "mae", l1=0.1))
    assert found[1] is grad
    X, W = c.X, c.X.T @ c.X
    assert same(
        jitted.dense_forward(X, W, None, "tanh")[0], fb.dense_forward(X, W, None, "tanh")[0]
    )
    with pytest.raises(fb.ShapeError, match=r"out has shape \(2, 2\), expected \(9, 2\)"):
        jitted.forward(c.net, c.params, c.X, np.empty((2, 2), np.float32))
    with pytest.raises(ValueError, match="bound"):
        jitted.value_and_grad(bound, c.params, c.X, c.y)


def c_is_there():
    return backends.why_missing("c") is None


def test_other_layouts(rng):
    """Strided, transposed and read-only arrays are as good as contiguous ones."""
    c = case_of(rng, NETWORKS["one hidden"]("float64"), 20)
    expected = c.net.forward(c.params, c.X)
    apart, turned = np.repeat(c.params, 2)[::2], np.asfortranarray(c.X)
    read_only = c.X.copy()
    read_only.flags.writeable = False
    for params, X in ((apart, turned), (c.params, read_only)):
        assert same(forward(c.net, params, X), expected)


@njit(nogil=True, cache=True)
def forward(net, params, X):
    return jitted.forward(net, params, X)


# Objectives.


def by_name(name):
    @njit(cache=True)
    def call(net, params, X, y, l2, l1, group):
        return jitted.value_and_grad(net, params, X, y, name, l2, l1, group)

    return call


BY_NAME = {name: by_name(name) for name in TABLE}


@pytest.mark.parametrize("name", TABLE)
def test_losses_by_name(name, rng):
    dtype = ("float32", "float64")[list(TABLE).index(name) % 2]  # one each: they are compiled
    for width, n, penalties in ((1, 1, (0.0, 0.0, 0.0)), (4, 300, (0.5, 0.25, 0.125))):
        n, n_out = n_for(name, n), n_out_for(name, width)
        c = case(rng, [3, 5, n_out], ["tanh", "linear"], dtype, n, name)
        if name == "bce":
            c = case(rng, [3, 5, n_out], ["tanh", "sigmoid"], dtype, n, name)
        terms = dict(zip(("l2", "l1", "group"), penalties, strict=True))
        expected = c.net.value_and_grad(c.params, c.X, c.y, name, **terms)
        assert same(BY_NAME[name](c.net, c.params, c.X, c.y, *penalties), expected)


@njit(cache=True)
def by_object(net, params, X, y, loss):
    return jitted.value_and_grad(net, params, X, y, loss)


@pytest.mark.parametrize(
    "loss", [fb.huber(0.5), fb.quantile(0.2), fb.margin_ranking(0.25), QUARTIC], ids=repr
)
def test_losses_by_object(loss, rng):
    net = masked("float32") if n_out_for(loss, 2) == 2 else NETWORKS["narrow"]("float64")
    c = case_of(rng, net, 70, loss)
    assert same(by_object(net, *c.arguments), net.value_and_grad(*c.arguments))
    if loss == fb.huber(0.5):  # another parameter is no other function
        others = *c.arguments[:3], fb.huber(0.25)
        assert same(by_object(net, *others), net.value_and_grad(*others))
        assert len(by_object.signatures) == 1


@njit(cache=True)
def of_objective(objective, params, out):
    value, grad = jitted.value_and_grad(objective, params)
    again = jitted.value_and_grad(objective, params, out=out)
    return value, grad, again[0]


@pytest.mark.parametrize("loss", ["mse", "softmax_ce", "margin_ranking", QUARTIC], ids=repr)
def test_objectives(loss, rng, dtype):
    net = NETWORKS["narrow"](dtype) if loss == "margin_ranking" else masked(dtype)
    for n, weighted in ((2, False), (300, True)):
        c = case_of(rng, net, n, loss, weighted, l2=0.5, group=0.125)
        objective, out = net.objective(c.X, c.y, loss, **c.terms), np.empty_like(c.params)
        value, grad, again = of_objective(objective, c.params, out)
        assert same((value, grad), objective.value_and_grad(c.params))
        assert again == value and same(out, grad)


# Layers.


@njit(cache=True)
def of_layer(X, W, b, activation, dY):
    Y, cache = jitted.dense_forward(X, W, b, activation)
    nothing, dW, db = jitted.dense_backward(dY, cache, need_dX=False)
    return Y, jitted.dense_backward(dY, cache), dW, db, nothing is None


@njit(cache=True)
def of_tanh_layer(X, W, b, dY):
    Y, cache = jitted.dense_forward(X, W, b, "tanh")
    return Y, jitted.dense_backward(dY, cache)


def test_layers(rng, dtype):
    by_object = (fb.leaky_relu(0.3), True) if dtype == "float32" else (BUMP, False)
    for activation, biased in (by_object, ("tanh", True)):
        for n, n_in, n_out in ((0, 3, 2), (1, 4, 1), (300, 5, 7)):
            shapes = (n, n_in), (n_in, n_out), (n_out,), (n, n_out)
            X, W, b, dY = (rng.standard_normal(s).astype(dtype) for s in shapes)
            b = b if biased else None
            Y, cache = fb.dense_forward(X, W, b, activation)
            expected = fb.dense_backward(dY, cache)
            if activation == "tanh":
                assert same(of_tanh_layer(X, W, b, dY), (Y, expected))
            else:
                found = of_layer(X, W, b, activation, dY)
                assert same(found[:2], (Y, expected)) and same(found[2:4], expected[1:]), n
                assert found[4]


# What does not fit.


@njit(cache=True)
def of_labels(net, params, X, y, l2):
    return jitted.value_and_grad(net, params, X, y, "softmax_ce", l2=l2)


def test_wrong_shapes_and_values(rng):
    net = NETWORKS["one hidden"]("float64")
    c = case_of(rng, net)
    for params, X, message in (
        (c.params[1:], c.X, "params has another length"),
        (c.params, c.X[:, 1:], "X has another number of columns"),
    ):
        for function in (of_network, forward):
            with pytest.raises(fb.ShapeError, match=message):
                function(net, np.ascontiguousarray(params), np.ascontiguousarray(X))
    with pytest.raises(fb.ShapeError, match="params has another length"):
        of_objective(net.objective(c.X, c.y), c.params[1:], c.params.copy())
    with pytest.raises(fb.ShapeError, match="out has another length"):
        of_objective(net.objective(c.X, c.y), c.params, c.params[1:].copy())
    X, W, b = c.X, np.ones((4, 2)), np.ones(2)
    for arrays, message in (
        ((X, W[1:], b, X), "X has another number of columns than W has rows"),
        ((X, W, b[1:], X), "one bias per column of W"),
        ((X, W, b, X), "dY has another shape"),
    ):
        with pytest.raises(fb.ShapeError, match=message):
            of_tanh_layer(*arrays)

    net = fb.Network.mlp([4, 5, 3])
    params, labels = net.init(0), np.zeros(len(X), np.int64)
    for count, y, l2, message in (
        (9, labels[1:], 0.0, "y has another shape"),
        (0, labels[:0], 0.0, "X has no rows"),
        (9, labels + 3, 0.0, "y holds a label outside 0 to n_out - 1"),
        (9, labels - 1, 0.0, "y holds a label outside 0 to n_out - 1"),
        (9, labels, -1.0, "finite number >= 0"),
        (9, labels, np.nan, "finite number >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            of_labels(net, params, X[:count], y, l2)


@pytest.mark.parametrize(
    "name, dtype, n_out, y, message",
    [
        ("mae", "float64", 2, np.zeros((9, 3)), "y has another shape"),
        ("bce_logits", "float64", 2, np.full((9, 2), -1.0), r"outside \[0, 1\]"),
        ("hinge", "float64", 2, np.zeros((9, 2)), "labels -1 and 1"),
        ("poisson", "float64", 2, np.full((9, 2), -1.0), "negative"),
        ("gaussian_nll", "float64", 3, np.zeros((9, 1)), "even number of outputs"),
        ("gaussian_kl", "float32", 3, None, "even number of outputs"),
        ("margin_ranking", "float64", 1, None, "pairs"),
        ("margin_ranking", "float64", 2, None, "one output"),
    ],
)
def test_wrong_targets(name, dtype, n_out, y, message):
    """The types of these calls are compiled above."""
    net = fb.Network(3, fb.Dense(n_out), dtype=dtype)
    with pytest.raises(ValueError, match=message):
        BY_NAME[name](net, net.init(0), np.zeros((9, 3), dtype), y, 0.0, 0.0, 0.0)


GLOBAL = fb.Network.mlp([4, 20, 1])
HUBER = fb.huber(0.5)


@njit
def on_a_global(params, X):
    return jitted.forward(GLOBAL, params, X)


@njit
def with_a_global(net, params, X):
    return jitted.value_and_grad(net, params, X, X, HUBER)


@njit
def unknown_loss(net, params, X):
    return jitted.value_and_grad(net, params, X, X, "mze")


@njit
def unknown_activation(X, W):
    return jitted.dense_forward(X, W, None, "tahn")[0]


@njit
def unknown_when_compiled(X, W, name):
    return jitted.dense_forward(X, W, None, name)[0]


@njit
def with_penalty(objective, params):
    return jitted.value_and_grad(objective, params, l2=0.5)


@njit
def escaping(X, W):
    return jitted.dense_forward(X, W)


X4, P = np.zeros((3, 4)), np.zeros(121)


@pytest.mark.parametrize(
    "function, arguments, message",
    [
        (forward, (GLOBAL, P, X4.astype("f4")), r"X is array\(float32, 2d, C\), expected an array "
         r"of float64 \(n, n_in\); convert it with X.astype\(np.float64\)"),
        (forward, (GLOBAL, P, X4[0]), r"X is array\(float64, 1d, C\), expected an array of float64 "
         r"\(n, n_in\); a single row is X.reshape\(1, -1\)"),
        (forward, (GLOBAL, P.astype(int), X4), r"params is array\(int64, 1d, C\), expected"),
        (forward, (P, P, X4), "expected a fastbp.Network that is passed as an argument"),
        (on_a_global, (P, X4), "Network is a global variable here, expected an argument"),
        (with_a_global, (GLOBAL, P, X4), "Loss is a global variable here, expected an argument"),
        (unknown_loss, (GLOBAL, P, X4), "unknown loss 'mze'.*did you mean 'mse'"),
        (unknown_activation, (X4, X4.T), "unknown activation 'tahn'.*did you mean 'tanh'"),
        (unknown_when_compiled, (X4, X4.T, "tanh"), "expected a name as written in the call"),
        (with_penalty, (GLOBAL.objective(X4, X4[:, 0]), P), "penalties bound"),
        (escaping, (X4, X4.T.copy()), "cannot leave jitted code"),
    ],
)  # fmt: skip
def test_what_types_tell(function, arguments, message):
    """Is said when the function is compiled, before anything runs."""
    with pytest.raises((TypingError, TypeError, NotImplementedError)) as error:
        function(*arguments)
    assert re.search(message, str(error.value).replace("\n", " "))
    assert not function.signatures or function is forward


# Threads and processes.


def test_python_threads(rng):
    c = case_of(rng, NETWORKS["deep"]("float64"), 300)
    many = [c.params * (1 + i) for i in range(40)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda params: forward(c.net, params, c.X), many))
    assert all(same(Y, c.net.forward(params, c.X)) for Y, params in zip(found, many, strict=True))


THEIRS = """
import math, numpy as np, fastbp as fb
from numba import njit, prange
from fastbp import jitted

@njit(cache=True)
def inner(net, params, X):
    return jitted.forward(net, params, X)

@njit(cache=True)
def outer(net, params, X):
    Y, cache = jitted.dense_forward(inner(net, params, X), np.ones((1, 1)), None, "tanh")
    return Y

@njit(cache=True, parallel=True)
def parallel(net, params, X):
    out = np.empty((4, len(X)))
    for i in prange(4):
        out[i] = inner(net, params, X)[:, 0] + i
    return out

def f(z): return math.atan(z)
def df(z): return 1 / (1 + z * z)

act = fb.Activation("arc", f, df)
net = fb.Network(2, fb.Dense(3, act), fb.Dense(1))
params, X = net.init(0), np.linspace(-1, 1, 40).reshape(20, 2)
right = np.arctan(X @ params[:6].reshape(2, 3)) @ params[9:12, None]
expected = {inner: right, outer: np.tanh(right), parallel: right.T + np.arange(4)[:, None]}

def check(function):
    assert np.allclose(function(net, params, X), expected[function], rtol=1e-14, atol=1e-15)
    stats = function.stats
    print(function.__name__, *(sum(c.values()) for c in (stats.cache_hits, stats.cache_misses)))
"""

FIRST = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool:  # each may need what the other compiles
    public = pool.submit(net.forward, params, X, backend="numba")
    pool.submit(check, outer).result()
    assert np.allclose(public.result(), right)
check(parallel)
"""

SECOND = """
import multiprocessing, joblib
if __name__ == "__main__":
    ballast = [bytes(2**k) for k in range(20, 26)]  # so that memory lies differently
    check(parallel)
    check(outer)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(np.allclose(pool.apply(outer, (net, params, X)), np.tanh(right)))
    (found,) = joblib.Parallel(1, "loky")([joblib.delayed(outer)(net, params, X)])
    print(np.allclose(found, np.tanh(right)))
"""

CHANGED = """
from fastbp.jitted import handles
handles.source_fingerprint = lambda: 1
check(inner)
"""


def run(folder, code):
    """What a fresh interpreter prints for a module `theirs` and some code beside it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FASTBP_", "NUMBA_"))}
    theirs = folder / "theirs.py"
    if not theirs.exists():  # its time stamp is in the cache
        theirs.write_text(THEIRS, encoding="utf-8")
    (folder / "main.py").write_text("from theirs import *\n" + code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "main.py"],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_users_own_cache(tmp_path):
    """Stored code finds our functions, and its user's, in the next process and after a change."""
    pytest.importorskip("joblib")
    assert run(tmp_path, FIRST) == "outer 0 1 parallel 0 1".split()
    assert run(tmp_path, SECOND) == "parallel 1 0 outer 1 0 True True".split()
    # Compiled again, not an error: whoever upgrades fastbp need not know of the cache.
    assert run(tmp_path, CHANGED) == "inner 0 1".split()


def test_an_address_is_stored_as_the_way_to_find_it(monkeypatch):
    address = handles._address("forward", 0, "float64")
    # The object itself: functions of one name, loaded and compiled, share their constants.
    assert pickle.loads(pickle.dumps(address)) is address
    stored = pickle.dumps(address)
    assert str(int(address)).encode() not in stored
    monkeypatch.setattr(handles, "source_fingerprint", lambda: 1)
    with pytest.raises(OSError, match="another version of fastbp"):  # to Numba: not in the cache
        pickle.loads(stored)


def test_the_example(capsys):
    """The trajectory by NumPy alone, and the period by the law that the network was fitted to."""
    example = runpy.run_path(str(PACKAGE.parent / "examples" / "jitted_pendulum.py"))
    steps, dt = 20_000, 0.005
    params, (period, spread, end) = example["main"](steps=steps, few=100, dt=dt)
    assert "in the jitted loop" in capsys.readouterr().out
    w, b, v, c = params[:12], params[12:24], params[24:36], params[36]
    x, speed, energies = 2.0, 0.0, []
    a = np.tanh(x * w + b) @ v + c
    for _ in range(steps):
        speed += 0.5 * dt * a
        x += dt * speed
        a = np.tanh(x * w + b) @ v + c
        speed += 0.5 * dt * a
        energies.append(0.5 * speed**2 - np.cos(x))
    assert abs(x - end) < 1e-9
    assert abs(max(energies) - min(energies) - spread) < 1e-11
    m0, m1 = 1.0, np.cos(1.0)  # the period is 2π over the arithmetic-geometric mean of these
    while abs(m0 - m1) > 1e-15:
        m0, m1 = (m0 + m1) / 2, np.sqrt(m0 * m1)
    assert abs(period - 2 * np.pi / m0) < 1e-3
    assert spread < 1e-3
