"""What is special to the Numba backend: when it compiles, what it keeps, where it runs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from strategies import ALL_ACTIVATIONS, LOSSES, case, same

import fastbp as fb
from fastbp import backends

pytestmark = pytest.mark.skipif(
    bool(backends.why_missing("numba")), reason=backends.why_missing("numba") or ""
)

PACKAGE = Path(fb.__file__).resolve().parent
X86 = platform.machine().lower() in ("x86_64", "amd64")


def python(code, path=PACKAGE.parent, **variables):
    """What a fresh interpreter prints that finds fastbp at `path`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FASTBP_", "NUMBA_"))}
    environment |= {"PYTHONPATH": str(path), "FASTBP_BACKEND": "numba"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=path,  # which Python searches first
        env=environment | {key: str(value) for key, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def entries():
    from fastbp.backends.jit import kernels, network, objective, training

    return [
        kernels.activation,
        kernels.dense_forward,
        kernels.dense_backward,
        network.forward,
        network.derivatives,
        objective.objective,
        training.train,
    ]


# Compilation.


def test_import_compiles_nothing():
    code = """
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    from fastbp.backends import jit
print(len(recorder.buffer))
"""
    assert python(code).split() == ["0"]


def use_all(rng, sizes, activations, dtype, n, loss, weighted, l2, methods, batch_size):
    c = case(rng, sizes, activations, dtype, n, loss, weighted=weighted, l2=l2)
    Y, pullback = c.net.vjp(c.params, c.X)
    pullback(Y)
    c.net.forward(c.params, c.X)
    c.net.value(*c.arguments, **c.terms)
    c.net.value_and_grad(*c.arguments, **c.terms)
    c.net.jacobian(c.params, c.X)
    c.net.input_jacobian(c.params, c.X)
    W = c.X.T @ c.X
    Y, cache = fb.dense_forward(c.X, W, W[0] if weighted else None, activations[0])
    fb.dense_backward(Y, cache)
    fb.activation(activations[0]).f(c.X), fb.activation(activations[0]).df(c.X)
    for method in methods:
        fb.fit(
            c.net, c.X, c.y, method=method, loss=loss, params=c.params, epochs=2,
            batch_size=batch_size, shuffle=weighted, seed=0, on_divergence="return",
            **c.terms,
        )  # fmt: skip


def test_one_version_per_dtype_whatever_the_arguments(rng, dtype):
    methods = ["sgd", "momentum", "nesterov", "adam"]
    read_only = case(rng, [3, 4, 2], ["tanh", "linear"], dtype, 5)
    for array in (read_only.params, read_only.X, read_only.y):
        array.flags.writeable = False
    with fb.use_backend("numba"):
        use_all(rng, [3, 4, 2], ["tanh", "linear"], dtype, 5, "mse", False, 0.0, methods[:1], 5)
        compiled = [entry[dtype] for entry in entries()]
        for i, activation in enumerate(ALL_ACTIVATIONS):
            loss = LOSSES[i % len(LOSSES)]
            sizes = [2 + i, 1 + i, 3] if i % 2 else [1, 5 + i, 2 * i + 1, 2]
            activations = [activation] * (len(sizes) - 2) + ["linear"]
            n = 1 + 20 * i
            use_all(rng, sizes, activations, dtype, n, loss, i % 2 == 1, 0.1 * i, methods, 1 + i)
        read_only.net.value_and_grad(*read_only.arguments)
        read_only.net.jacobian(read_only.params, read_only.X)
        read_only.net.vjp(read_only.params, read_only.X)[1](read_only.y)
    for entry, first in zip(entries(), compiled, strict=True):
        assert entry.dispatchers[dtype.char] is first
        assert len(first.signatures) == 1
        assert set(entry.dispatchers) <= {"f", "d"}


# The cache.

TANH = """
import numpy as np, fastbp as fb
print(*fb.activation("leaky_relu").f([-1.0, 2.0]))
from fastbp.backends.jit import kernels
(dispatcher,) = kernels.activation.dispatchers.values()
print(sum(dispatcher.stats.cache_hits.values()), sum(dispatcher.stats.cache_misses.values()))
"""
RIGHT = ["-0.01", "2.0"]


@pytest.fixture
def copy(tmp_path):
    """The package at another place, where a test may damage it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
    shutil.copytree(PACKAGE, tmp_path / "copy" / "fastbp", ignore=ignored)
    return tmp_path / "copy"


def test_the_next_process_loads_from_the_cache(tmp_path):
    assert python(TANH, NUMBA_CACHE_DIR=tmp_path).split() == [*RIGHT, "0", "1"]
    assert python(TANH, NUMBA_CACHE_DIR=tmp_path).split() == [*RIGHT, "1", "0"]


def test_a_change_in_another_file_makes_the_cache_stale(copy, tmp_path):
    places = {"path": copy, "NUMBA_CACHE_DIR": tmp_path / "cache"}
    assert python(TANH, **places).split() == [*RIGHT, "0", "1"]
    layer = copy / "fastbp" / "backends" / "jit" / "layer.py"
    text = layer.read_text(encoding="utf-8")
    changed = text.replace("z.where(z > 0, slope * z)", "z.where(z > 0, slope + z)")
    assert changed != text
    layer.write_text(changed, encoding="utf-8")
    assert python(TANH, **places).split() == ["-0.99", "2.0", "0", "1"]


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
