"""What is special to the Numba backend: when it compiles, what it keeps, where it runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.numba_backend import (
    METHODS,
    RIGHT,
    TANH,
    X86,
    functions,
    python,
    use_all,
)
from helpers.repository import TESTS
from helpers.strategies import EVERY_ACTIVATION, EVERY_LOSS, case, case_of, n_for, n_out_for, same

import fastbp as fb
from fastbp import backends

pytestmark = pytest.mark.skipif(
    bool(backends.why_missing("numba")), reason=backends.why_missing("numba") or ""
)

# Compilation.


def test_import_compiles_nothing():
    code = """
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    from fastbp.backends import jit
print(len(recorder.buffer))
"""
    assert python(code).split() == ["0"]


def test_one_version_per_dtype_whatever_the_arguments(rng, dtype):
    """Users' functions among them: their addresses are arguments."""
    read_only = case(rng, [3, 4, 2], ["tanh", "linear"], dtype, 5)
    for array in (read_only.params, read_only.X, read_only.y):
        array.flags.writeable = False
    with fb.use_backend("numba"):
        use_all(case(rng, [3, 4, 2], ["tanh", "linear"], dtype, 5), "sgd", 5)
        compiled = {
            name: function.version(dtype)
            for name, function in functions().items()
            if name != "descend"
        }
        for i, act in enumerate(EVERY_ACTIVATION):
            loss = EVERY_LOSS[i % len(EVERY_LOSS)]
            fixed = {"mask": rng.random((1 + i, 3 + i)) < 0.7} if i % 2 else {}
            layers = fb.Dense(3 + i, act, dropout=0.5 * (i % 2), **fixed), fb.Dense(2 - i % 2)
            layers += (fb.Dense(n_out_for(loss, 2 + i), "sigmoid", bias=bool(i % 3)),)
            net = fb.Network(1 + i, *layers, dtype=dtype)
            c = case_of(rng, net, n_for(loss, 1 + 20 * i), loss, i % 2 == 1, l2=0.1, group=0.1 * i)
            use_all(c, METHODS[i % len(METHODS)], n_for(loss, 1 + i))
        for depth in (1, 2, 5):
            c = case(rng, [2, *range(3, 3 + depth)], ["tanh"] * depth, dtype, 7)
            for lr in (1, 0.5, lambda epoch: 0.1 / (1 + epoch)):
                fb.fit(c.net, c.X, c.y, method="sgd", lr=lr, epochs=2, seed=0, threads=2)
        read_only.net.value_and_grad(*read_only.arguments)
        read_only.net.jacobian(read_only.params, read_only.X)
        read_only.net.vjp(read_only.params, read_only.X)[1](read_only.y)
    for name, function in functions().items():
        # Searches are in float64, whatever the network's type.
        version = function.dispatchers["d" if name == "descend" else dtype.char]
        assert version is compiled.get(name, version), name
        assert len(version.signatures) == 1 and set(function.dispatchers) <= {"f", "d"}, name


def test_fit_compiles_only_what_it_uses(tmp_path):
    """So that the first one does not take long: no other derivatives, one activation, one loss."""
    code = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from helpers.numba_backend import functions
import fastbp as fb
net = fb.Network(2, fb.Dense(20, "tanh"), fb.Dense(1))
fb.fit(net, [[0.0, 1.0], [1.0, 0.0]], [1.0, 2.0], epochs=2, seed=0)
for name, function in functions().items():
    if function.dispatchers:
        print(name)
"""
    names = set(python(code, NUMBA_CACHE_DIR=tmp_path).splitlines())
    assert "train" in names
    assert not names & {
        "jvp", "hvp", "row_gradients", "normal_equations", "jtr_at", "descend",
        "derivatives", "activation",
        "dense_forward", "dense_backward",
    }  # fmt: skip
    kinds = sorted(name.split()[0] for name in names if " " in name)
    assert kinds == ["call_activation", "call_activation", "call_loss"]


# The cache.


def test_the_next_process_loads_from_the_cache(tmp_path):
    assert python(TANH, NUMBA_CACHE_DIR=tmp_path).split() == [*RIGHT, "0", "1"]
    assert python(TANH, NUMBA_CACHE_DIR=tmp_path).split() == [*RIGHT, "1", "0"]


def test_a_change_in_another_file_makes_the_cache_stale(copy, tmp_path):
    places = {"path": copy, "NUMBA_CACHE_DIR": tmp_path / "cache"}
    assert python(TANH, **places).split() == [*RIGHT, "0", "1"]
    layer = copy / "fastbp" / "maths" / "formulas" / "activations.py"
    text = layer.read_text(encoding="utf-8")
    changed = text.replace("z.where(z > 0, slope.high * z)", "z.where(z > 0, slope.high + z)")
    assert changed != text
    layer.write_text(changed, encoding="utf-8")
    assert python(TANH, **places).split() == ["-0.99", "2.0", "0", "1"]


OWN = """
import math, fastbp as fb
def f(z): return math.atan(z)
def df(z): return 1 / (1 + z * z)
ballast = [bytes(2**k) for k in range(20, 20 + {size})]  # so that memory lies differently
act = fb.Activation("atan", f, df)
net = fb.Network(1, fb.Dense(1, act), fb.Dense(1, "linear"))
print(*net.value_and_grad([1.0, 0.0, 2.0, 0.0], [[1.0]], [0.0])[1].round(9))
from fastbp.backends.jit import objective
(dispatcher,) = objective.objective.dispatchers.values()
print(sum(dispatcher.stats.cache_hits.values()))
"""


def test_the_cache_holds_no_address(tmp_path):
    """Of a user's function: in the next process it lies elsewhere."""
    first, second = (
        python(OWN.format(size=size), NUMBA_CACHE_DIR=tmp_path).splitlines() for size in (1, 6)
    )
    z = np.arctan(1.0)
    expected = np.array([4 * z * 2 / 2, 4 * z * 2 / 2, 4 * z * z, 4 * z])
    assert first[0] == second[0] == " ".join(map(str, expected.round(9)))
    assert (first[1], second[1]) == ("0", "1")


def test_runs_where_no_cache_can_be_written(copy, tmp_path):
    # Files where the directories would be: this stops root as well, which permissions do not.
    file = tmp_path / "file"
    file.touch()
    (copy / "fastbp" / "backends" / "jit" / "__pycache__").touch()
    nowhere = {"HOME": file, "XDG_CACHE_HOME": file, "LOCALAPPDATA": file}
    for variables in (nowhere, nowhere | {"NUMBA_CACHE_DIR": file / "cache"}):
        code = TANH + "print(dispatcher.stats.cache_path)"
        assert python(code, copy, **variables).split() == [*RIGHT, "0", "1", "None"]


def test_runs_over_a_damaged_cache(tmp_path):
    python(TANH, NUMBA_CACHE_DIR=tmp_path)
    files = [*tmp_path.rglob("*.nbi"), *tmp_path.rglob("*.nbc")]
    assert files
    for file in files:
        file.write_bytes(b"damaged")
    assert python(TANH, NUMBA_CACHE_DIR=tmp_path).split()[:2] == RIGHT


# Memory.


class GuardedNumPy:
    """NumPy, whose new arrays lie between two zones of a pattern."""

    zone, pattern = 4096, 0xA5

    def __init__(self):
        self.buffers = []

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=float):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = np.full(size + 2 * self.zone, self.pattern, np.uint8)
        self.buffers.append(buffer)
        return buffer[self.zone : self.zone + size].view(dtype).reshape(shape)

    def empty_like(self, array):
        return self.empty(array.shape, array.dtype)

    def touched(self):
        """How large the arrays are that were left, in bytes; the next ones are watched from now."""
        sizes = [
            buffer.size - 2 * self.zone
            for buffer in self.buffers
            if (buffer[: self.zone] != self.pattern).any()
            or (buffer[-self.zone :] != self.pattern).any()
        ]
        self.buffers.clear()
        return sizes


@pytest.fixture
def guarded(monkeypatch):
    from fastbp.backends import jit
    from fastbp.backends.jit import prepared

    monkeypatch.setattr(jit, "np", GuardedNumPy())
    monkeypatch.setattr(prepared, "np", jit.np)
    with fb.use_backend("numba"):
        yield jit.np


def frozen(sizes, dtype):
    """A network of which the parameters of all layers but the last are fixed, or of that too."""
    n_in, *widths = sizes
    last = len(widths) - 1 if len(sizes) > 2 else 0
    layers = [fb.Dense(w, "tanh", trainable=k == last > 0) for k, w in enumerate(widths)]
    return fb.Network(n_in, *layers, dtype=dtype)


def calls_of(c):
    """Name -> a call that has a workspace or a result of the backend."""
    net, params, X = c.net, c.params, c.X
    Y = net.forward(params, X)
    direction = np.ones_like(params)
    calls = {
        "forward": lambda: net.forward(params, X),
        "vjp": lambda: net.vjp(params, X)[1](Y),
        "jvp": lambda: net.jvp(params, X, direction),
        "jacobian": lambda: net.jacobian(params, X),
        "jacobian of free": lambda: net.jacobian(params, X, free_only=True),
        "input_jacobian": lambda: net.input_jacobian(params, X),
        "dense": lambda: fb.dense_backward(Y @ Y.T, fb.dense_forward(X, X.T, activation="tanh")[1]),
        "normal_equations": lambda: net.normal_equations(params, X, Y + 1),
        "lm fit": lambda: fb.fit(net, X, Y + 1, method="lm", epochs=2, params=params),
    } | calls_of_loss(c)
    return {name: call for name, call in calls.items() if net.n_free or "fit" not in name}


def calls_of_loss(c):
    options = c.terms | {"epochs": 2, "batch_size": 10, "params": c.params, "seed": 0, "threads": 2}
    v = np.ones_like(c.params)
    return {
        "value_and_grad": lambda: c.net.value_and_grad(*c.arguments, **c.terms),
        "per_sample_grad": lambda: c.net.per_sample_grad(*c.arguments),
        "hvp": lambda: c.net.hvp(c.params, c.X, c.y, v, c.loss, **c.terms),
        "fit": lambda: fb.fit(c.net, c.X, c.y, loss=c.loss, on_divergence="return", **options),
    }


SHAPES = (
    (1, 10, 1), (3, 3, 1), (4, 20, 1), (10, 8, 1), (3, 5, 2), (6, 16, 16, 3), (12, 33, 17),
    (40, 9, 2), (2, 130, 1), (5, 2),
)  # fmt: skip


@pytest.mark.parametrize("make", [fb.Network.mlp, frozen])
def test_nothing_is_written_beyond_results_and_workspaces(guarded, rng, dtype, make):
    for sizes in SHAPES:
        net = make(sizes, dtype=dtype)
        for n in (1, 5, 65) if max(sizes) > 20 else (1, 5, 64, 65, 300):
            for name, call in calls_of(case_of(rng, net, n)).items():
                call()
                assert not guarded.touched(), f"{name} of {n} rows, {net}"


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
def test_nothing_is_written_beyond_those_of_a_loss(guarded, rng, dtype, loss):
    for n_out in (1, 3, 17):
        for n_in, width in ((3, 4), (5, 9)):
            net = fb.Network.mlp([n_in, width, n_out_for(loss, n_out)], dtype=dtype)
            for n in (1, 5, 19, 66):
                c = case_of(rng, net, n_for(loss, n), loss, weighted=n % 2 == 1)
                for name, call in calls_of_loss(c).items():
                    call()
                    assert not guarded.touched(), f"{name} of {c}"


def test_guards_tell_what_is_written_beyond_an_array():
    numpy = GuardedNumPy()
    for place, touched in ((0, []), (-1, [24]), (3, [24])):
        array = numpy.empty(3)
        np.ndarray(1, float, array.base, numpy.zone + 8 * place)[0] = 1
        assert numpy.touched() == touched


DISABLED = """
import numpy as np, fastbp as fb
from fastbp import backends, jitted

def refused(call):
    try:
        return call()
    except fb.BackendError as error:
        return error

print(fb.available_backends(), jitted.exp(0.0))
print(backends.why_missing("numba"))
print(fb.show_config("dicts")["backends"]["numba"])
print(refused(lambda: backends.load("numba")))
print(refused(fb.warmup))
print(refused(lambda: jitted.forward))
square = fb.Activation("square", lambda z: z * z, lambda z: 2 * z)
print(refused(lambda: fb.dense_forward(np.ones((1, 1)), np.ones((1, 1)), activation=square)))
"""


def test_without_numbas_compiler_the_backend_is_missing():
    """And says why, as `fastbp.jitted` and functions of the user's own do."""
    why = (
        "NUMBA_DISABLE_JIT is 1, expected unset or 0, since the backend consists of compiled "
        "functions; unset it"
    )
    kept = [name for name in fb.available_backends() if name != "numba"]
    done = python(DISABLED, NUMBA_DISABLE_JIT=1, FASTBP_BACKEND=kept[0]).splitlines()
    assert done[:6] == [
        f"{tuple(kept)} 1.0",
        why,
        why,
        f"backend 'numba' cannot run here: {why}",
        f"backend 'numba' cannot run here: {why}",
        f"fastbp.jitted.forward cannot run here: {why}",
    ]
    if "c" in kept:
        assert done[6].endswith(f"through Numba: {why}, or use backend='numpy'")


# Threads and processors.

FIT = """
import sys, numpy as np, fastbp as fb
from concurrent.futures import ThreadPoolExecutor
rng = np.random.default_rng(0)
X = rng.standard_normal((70, 5))
y = rng.standard_normal((70, 3))
net = fb.Network.mlp([5, 33, 18, 3])
def fit(backend):
    return fb.fit(net, X, y, epochs=10, batch_size=16, seed=0, backend=backend)
"""


def test_first_use_by_four_threads_at_once(tmp_path):
    code = (
        FIT
        + """
with ThreadPoolExecutor(4) as pool:
    results = list(pool.map(fit, ["numba"] * 4))
from fastbp.backends.jit import training
print(len({r.params.tobytes() for r in results}), np.isfinite(results[0].params).all())
import numba
try:
    print(numba.threading_layer())
except ValueError:
    print("no threads")
for dispatcher in training.train.dispatchers.values():
    (code,) = dispatcher.inspect_llvm().values()
    print("numba_xxgemm" in code or "numba_xxdot" in code or "numba_xxgemv" in code)
"""
    )
    assert python(code, NUMBA_CACHE_DIR=tmp_path).split() == ["1", "True", "no", "threads", "False"]


LEVELS = {
    "baseline": ("generic", ""),
    "avx2": ("haswell", "+sse2,+avx,+avx2,+fma"),
}


@pytest.mark.skipif(not X86, reason="these are x86 processors")
@pytest.mark.parametrize("level", LEVELS)
def test_agrees_on_other_processors(level, tmp_path):
    # Without AVX there are no masked loads and stores, as on ARM: remainders go by single elements.
    code = (
        FIT
        + """
from fastbp.backends.jit import vectors
print(vectors.SSE, vectors.VECTOR_REGISTERS)
for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-4)):
    net = fb.Network.mlp([5, 33, 18, 3], dtype=dtype)
    ours, right = fit("numba").params, fit("numpy").params
    print(np.abs(ours - right).max() <= tolerance * np.abs(right).max())
    for n in (1, 3, 4, 7, 70):
        params = net.init(1)
        for n_out in (1, 2, 3):
            small = fb.Network.mlp([5, 9, n_out], dtype=dtype)
            p = small.init(1)
            a, b = (small.value_and_grad(p, X[:n], y[:n, :n_out], backend=which)[1]
                    for which in ("numba", "numpy"))
            assert np.abs(a - b).max() <= tolerance * np.abs(b).max()
    Z = np.linspace(-7, 7, 71).astype(dtype)
    from fastbp.maths.activations import NAMES
    for act in map(fb.activation, NAMES):
        for f in (act.f, act.df, act.d2f):
            a, b = f(Z, backend="numba"), f(Z, backend="numpy")
            assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), act
"""
    )
    name, features = LEVELS[level]
    variables = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    printed = python(code, NUMBA_CACHE_DIR=tmp_path, **variables).split()
    assert printed == ["True", "16", "True", "True"]


def keeps_subnormals():
    tiny = np.full(100, 1e-310)
    return bool((tiny * 0.5 > 0).all() and float(tiny[0]) / 2 > 0)


@pytest.mark.parametrize("lr", [1e-3, 1e300])
def test_training_leaves_the_floating_point_mode_alone(rng, lr):
    c = case(rng, [3, 5, 2], ["relu", "linear"])

    def run():
        before = keeps_subnormals()
        result = fb.fit(
            c.net, c.X, c.y, method="sgd", lr=lr, epochs=20, batch_size=4, seed=0,
            backend="numba", on_divergence="return",
        )  # fmt: skip
        return before, result.success or lr > 1, keeps_subnormals()

    with ThreadPoolExecutor(1) as pool:  # the mode belongs to a thread
        assert pool.submit(run).result() == (True, True, True)
    assert run() == (True, True, True)


@pytest.mark.skipif(not X86, reason="the mode is set on x86 only")
def test_training_flushes_subnormals(rng):
    c = case(rng, [2, 3, 1], ["tanh", "linear"])
    params = np.full(c.net.n_params, 1e-310)
    for backend, flushed in (("numba", True), ("numpy", False)):
        result = fb.fit(
            c.net, c.X, c.y, method="sgd", lr=1e-300, params=params, epochs=1, seed=0,
            backend=backend,
        )  # fmt: skip
        assert (result.params[0] == 0) == flushed


def test_results_do_not_depend_on_what_a_workspace_held(rng, dtype):
    c = case(rng, [4, 70, 31, 3], ["tanh", "sigmoid", "linear"], dtype, 150, "softmax_ce")
    with fb.use_backend("numba"):
        first = c.net.value_and_grad(*c.arguments)
        for _ in range(3):
            rubbish = [np.full(size, np.nan, dtype) for size in (100, 10_000, 20_000, 40_000)]
            del rubbish  # and its memory is handed out again
            assert same(first, c.net.value_and_grad(*c.arguments))
