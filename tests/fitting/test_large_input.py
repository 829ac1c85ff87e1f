"""Data larger than memory should hold twice: memory-mapped files, used in place or in blocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.repository import TESTS
from helpers.strategies import EVERY_LOSS, case_of, n_for, n_out_for, same
from oracles.bounds import gamma

import fastbp as fb
from fastbp.common import arrays as _arrays

pytestmark = pytest.mark.backend

MIB = 2**20
WORKSPACE = 2 * MIB
N, N_IN = 1_000_000, 5
LAYOUTS = ("float32", "float64", "Fortran")  # of the file; the network is one of float64
NET = fb.Network.mlp([N_IN, 8, 1])


def write(path, n, layout):
    """A file of n rows and the array that it holds; columns of different sizes."""
    wave = np.sin(np.arange(1, 1009, dtype=np.float32)).reshape(-1, 1) * np.arange(1, N_IN + 1)
    dtype = "float32" if layout == "float32" else "float64"
    order = "F" if layout == "Fortran" else "C"
    file = np.memmap(path, dtype, "w+", shape=(n, N_IN), order=order)
    file[:] = np.resize(wave.astype(np.float32), (n, N_IN))
    file.flush()
    return np.memmap(path, dtype, "r", shape=(n, N_IN), order=order)


def targets(n):
    return np.resize(np.cos(np.arange(1013.0)), (n, 1))


def results(X, y, **terms):
    """Of the three functions that go through the data once."""
    params = NET.init(0)
    return (
        NET.forward(params, X),
        *NET.value_and_grad(params, X, y, l2=0.5, **terms),
        *NET.normal_equations(params, X, y),
        NET.objective(X, y).sum_of_squares(params, "cauchy", 0.5),
    )


def check_sums(streamed, whole, sizes, n, dtype):
    """Sums of n terms in any two orders: twice γ_n·Σ|terms| apart at most, if each term is one."""
    difference = abs(np.asarray(streamed, np.float64) - whole)
    assert (difference <= 2 * gamma(n, dtype) * sizes).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_million_rows(backend, tmp_path, layout):
    """A file of the network's type is used in place, others bit by bit, with the same result."""
    if backend == "numpy":
        pytest.skip("the reference takes row by row")
    X, y = write(tmp_path / "X", N, layout), targets(N)
    blocks = _arrays.row_blocks(X, NET.dtype)
    assert (len(blocks) == 0) if layout == "float64" else (len(blocks) == 3)
    memory = np.array(X, np.float64, order="C")
    streamed, whole = results(X, y), results(memory, y)
    if layout == "float64":
        assert same(streamed, whole)
        return
    assert abs(streamed[0] - whole[0]).max() <= 100 * np.finfo(float).eps * abs(whole[0]).max()
    assert streamed[1] == pytest.approx(whole[1], rel=float(2 * gamma(N, np.float64)))
    obj = NET.objective(memory[:1008], y[:1008], "sse", backend=backend)
    J, r = abs(obj.jacobian(NET.init(0))), abs(obj.residuals(NET.init(0)))
    # The rows repeat: with other targets, which are at most 1.
    repeats = N // 1008 + 1
    by_rows = repeats * J.T @ (r + 2)
    check_sums(streamed[2], whole[2], 2 * by_rows / N + 1, N, np.float64)
    check_sums(streamed[3], whole[3], repeats * J.T @ J, N, np.float64)
    check_sums(streamed[4], whole[4], by_rows, N, np.float64)
    for i in (5, 6):
        assert streamed[i] == pytest.approx(whole[i], rel=float(2 * gamma(N, np.float64)))


CHILD = """
import gc, json, resource, sys, tracemalloc
sys.path[:0] = {folders!r}
import numpy as np
import test_large_input as t

def data_bytes():
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return 1024 * int(lines["VmData"].split()[0])

params, peaks = t.NET.init(0), {{}}
for layout in t.LAYOUTS:
    converts = layout == "float32"
    dtype = "float32" if converts else "float64"
    X = np.memmap({folder!r} + "/" + layout, dtype, "r", shape=(t.N, t.N_IN),
                  order="F" if layout == "Fortran" else "C")
    y = t.targets(t.N).astype(dtype)
    w = np.ones(t.N, dtype)
    calls = {{
        "forward": lambda rows: t.NET.forward(params, X[:rows]),
        "value": lambda rows: t.NET.value(
            params, X[:rows], y[:rows], sample_weight=w[:rows]),
        "value_and_grad": lambda rows: t.NET.value_and_grad(
            params, X[:rows], y[:rows], sample_weight=w[:rows]),
        "normal_equations": lambda rows: t.NET.normal_equations(
            params, X[:rows], y[:rows], w[:rows]),
        "sum_of_squares": lambda rows: t.NET.objective(
            X[:rows], y[:rows], sample_weight=w[:rows]).sum_of_squares(params, "huber"),
    }}
    for name, call in calls.items():
        call(5000)  # imports, compiles and makes workspaces
        gc.collect()
        allowed = t.allowed(layout, name)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        tracemalloc.start()
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + allowed, hard))
        before = tracemalloc.get_traced_memory()[0]
        result = call(t.N)
        peaks[layout + " " + name] = tracemalloc.get_traced_memory()[1] - before
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        tracemalloc.stop()
        del result
print(json.dumps(peaks))
"""


def allowed(layout, name):
    """Bytes that a call may need beyond its arguments, as `Network.value_and_grad` says."""
    block = 0 if layout == "float64" else 16 * MIB
    if name == "forward":
        result = N * NET.n_out * 8
        return result + block + block // N_IN * NET.n_out + WORKSPACE
    numbers = N * (1 + 1)  # targets and weights
    converted = 8 * numbers if layout == "float32" else 0
    return block + converted + 3 * numbers + WORKSPACE


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's data")
def test_memory_is_bounded(backend, tmp_path):
    """In a child process whose limit for data leaves no room for more."""
    if backend == "numpy":
        pytest.skip("the reference keeps what it computes for all rows")
    for layout in LAYOUTS:
        write(tmp_path / layout, N, layout)
    package = str(Path(fb.__file__).parents[1])
    code = CHILD.format(folders=[str(TESTS), str(Path(__file__).parent)], folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"FASTBP_BACKEND": backend, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for what, peak in json.loads(done.stdout).items():
        assert peak <= allowed(*what.split()), what


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(_arrays, "BLOCK_BYTES", 2**14)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
@pytest.mark.parametrize("stored", ["float32", "float64", "int16"])
def test_blocks_of_any_loss_add_up(backend, dtype, rng, small_blocks, stored, loss):
    """Pairs stay together, penalties count once, weights belong to their rows."""
    if dtype == stored:
        stored = f">f{dtype.itemsize}"
    net = fb.Network(4, fb.Dense(5, "tanh"), fb.Dense(n_out_for(loss, 2), "sigmoid"), dtype=dtype)
    c = case_of(rng, net, n_for(loss, 1301), loss, True, l2=0.25, l1=0.125, group=0.5)
    X = (10 * c.X).round().astype(stored)
    memory = X.astype(dtype)
    n_blocks = len(_arrays.row_blocks(X, dtype))
    assert n_blocks == (2 if dtype == np.float32 else 3) and not _arrays.row_blocks(memory, dtype)
    obj, whole = (net.objective(A, c.y, loss, **c.terms) for A in (X, memory))
    p = c.params
    assert same(net.forward(p, X), net.forward(p, memory))
    value, grad = whole.value_and_grad(p)
    streamed, streamed_grad = obj.value_and_grad(p)
    rows = abs(whole.backend.row_gradients(whole.problem, c.effective).astype(np.float64))
    assert obj.value(p) == pytest.approx(streamed, rel=1e-14)
    assert streamed == pytest.approx(value, rel=float(4 * gamma(len(X), np.float64)))
    check_sums(streamed_grad, grad, rows.sum(axis=0) + abs(grad), len(X), dtype)
    Hv, streamed_Hv = whole.hvp(p, p), obj.hvp(p, p)
    size = abs(Hv).max() * 100
    assert (abs(streamed_Hv - Hv) <= 2 * gamma(len(X), dtype) * size).all()


def test_what_needs_all_rows_converts_them_once(backend, rng, small_blocks):
    """The fit's loop and the least-squares methods see the whole data."""
    net = fb.Network.mlp([4, 5, 2])
    X, y = rng.standard_normal((1301, 4)).astype("f4"), rng.standard_normal((1301, 2))
    obj, whole = net.objective(X, y), net.objective(X.astype("f8"), y)
    p = net.init(0)
    assert obj.problem.X is obj.problem.X and obj.problem.X.dtype == np.float64
    for name in ("residuals", "jacobian", "per_sample_grad", "value_and_grad"):
        assert same(getattr(obj, name)(p), getattr(whole, name)(p)), name
    options = {"epochs": 2, "batch_size": 300, "seed": 3}
    assert same(
        fb.fit(net, X, y, **options).params, fb.fit(net, whole.problem.X, y, **options).params
    )
