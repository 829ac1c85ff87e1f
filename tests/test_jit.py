"""What is special to the Numba backend: compiling, caching, and the floating-point mode."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb

pytest.importorskip("numba")  # the package works without it

from fastbp.backends import contract, jit
from fastbp.backends.jit import compiling

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def on_numba():
    with fb.use_backend("numba"):
        yield


def python(program, **variables):
    """What a program prints in a new process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ENTRIES = """
from fastbp.backends import jit
from fastbp.backends.jit import kernels, network, objective, training
from fastbp.backends.jit.compiling import Entry
modules = (kernels, network, objective, training)
entries = [e for m in modules for e in vars(m).values() if isinstance(e, Entry)]
assert len(entries) >= 5
"""


def test_importing_compiles_nothing():
    program = ENTRIES + "print(sum(len(e.dispatchers) for e in entries))"
    assert python(program) == "0\n"


def entries():
    namespace: dict = {}
    exec(ENTRIES, namespace)
    return namespace["entries"]


def exercise(dtype, sizes, act, loss, method, rows):
    """Every entry, through the public API, with read-only data."""
    rng = np.random.default_rng(0)
    net = fb.Network.mlp(sizes, act, dtype=dtype)
    params = net.init(seed=0)
    X = rng.standard_normal((rows, sizes[0])).astype(dtype)
    y = rng.uniform(0, 1, (rows, sizes[-1])).astype(dtype)
    for array in (params, X, y):
        array.flags.writeable = False
    net.forward(params, X)
    net.value_and_grad(params, X, y, loss, sample_weight=np.ones(rows), l2=0.1)
    net.vjp(params, X)[1](y)
    net.jacobian(params, X)
    net.input_jacobian(params, X)
    fb.activation(act).df(X)
    W = rng.standard_normal((sizes[0], 3)).astype(dtype)
    Y, cache = fb.dense_forward(X, W, None, act)
    fb.dense_backward(Y, cache)
    fb.fit(net, X, y, method=method, loss=loss, params=params, epochs=2, batch_size=3, seed=0)


def test_only_the_dtype_is_compiled_for():
    for dtype in ("float32", "float64"):
        exercise(dtype, [2, 3, 2], "tanh", "mse", "sgd", 5)
    before = [(e, name, len(d.signatures)) for e in entries() for name, d in e.dispatchers.items()]
    assert before and all(count == 1 for _, _, count in before)
    for dtype in ("float32", "float64"):
        exercise(dtype, [5, 70, 130, 3], "relu", "softmax_ce", "adam", 90)
        exercise(dtype, [1, 1], "sigmoid", "bce_logits", "nesterov", 1)
        exercise(dtype, [4, 4, 4], fb.relu(0.5), "sse", "momentum", 40)
    after = [(e, name, len(d.signatures)) for e in entries() for name, d in e.dispatchers.items()]
    assert after == before


USE = """
import sys, time
import fastbp as fb
net = fb.Network.mlp([2, 3, 1])
start = time.perf_counter()
value = net.value(net.init(seed=0), [[1.0, 2.0]], [0.5], backend="numba")
print(repr(value))
"""


READ_ONLY = """
from numba.core import caching
tried = []
def refuse(self):
    tried.append(self)
    raise OSError("read-only")
for locator in [caching._CacheLocator, *caching._CacheLocator.__subclasses__()]:
    locator.ensure_cache_path = refuse
"""


def test_where_no_cache_can_be_written_it_compiles_anew():
    """Root may write everywhere, so that the refusal is Numba's and not the system's."""
    net = fb.Network.mlp([2, 3, 1])
    expected = net.value(net.init(seed=0), [[1.0, 2.0]], [0.5])
    assert python(READ_ONLY + USE + "assert tried") == f"{expected!r}\n"


def test_a_second_process_takes_compiled_code_from_the_cache(tmp_path):
    """It reads the files of the first and writes none."""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    first = python(USE, **cache)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert written
    assert python(USE, **cache) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == written


def test_the_fingerprint_knows_every_source(tmp_path):
    """A change of any file that compiled code is made of must not run old code."""
    shutil.copytree(ROOT / "fastbp", tmp_path / "fastbp", ignore=shutil.ignore_patterns("*.so"))
    program = (
        "from fastbp.backends.jit.compiling import source_fingerprint as f; import fastbp;"
        f"assert fastbp.__file__.startswith({str(tmp_path)!r}); print(f())"
    )
    seen = [python(program, PYTHONPATH=str(tmp_path))]
    assert int(seen[0]) == compiling.source_fingerprint()
    for name in ("jit/product.py", "jit/vectors.py", "polynomials.py", "contract.py"):
        with open(tmp_path / "fastbp" / "backends" / name, "a") as source:
            source.write("\n# changed\n")
        seen.append(python(program, PYTHONPATH=str(tmp_path)))
    assert len(set(seen)) == len(seen)


def test_first_use_by_many_threads():
    program = """
import threading
import fastbp as fb
net = fb.Network.mlp([2, 3, 1])
params, X, y = net.init(seed=0), [[1.0, 2.0]], [0.5]
found = []
work = lambda: found.append(net.value(params, X, y, backend="numba"))
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
assert len(found) == 4 and len(set(found)) == 1
print("done")
"""
    assert python(program) == "done\n"


def subnormals_survive():
    return bool((np.full(4, 1e-310) * 0.5 > 0).all())


def train(problem, steps=3):
    n = problem.plan.n_params
    start = np.zeros(n)
    run = contract.Run(start, np.zeros((0, n)), np.zeros((2, n)), np.zeros(3))
    rule = contract.Optimizer(contract.SGD, 0, (0.0,))
    rows = len(problem.X)
    return jit.train(problem, rule, run, steps, rows, True, None, np.ones(1), np.zeros(steps)), run


def test_training_restores_the_floating_point_mode():
    """Subnormals are zero inside and not outside, on each way out and in each thread."""
    net = fb.Network(1, fb.Dense(1, bias=False))
    tiny = net.objective([[1.0]], [1e-310], "half_mse").problem
    code, run = train(tiny)
    assert code == contract.DONE and run.params[0] == 0.0  # the subnormal gradient was flushed
    assert subnormals_survive()
    code, _ = train(net.objective([[np.nan]], [1.0], "mse").problem)
    assert code == contract.NON_FINITE_OBJECTIVE and subnormals_survive()
    seen = []
    thread = threading.Thread(target=lambda: (train(tiny), seen.append(subnormals_survive())))
    thread.start()
    thread.join()
    assert seen == [True]
