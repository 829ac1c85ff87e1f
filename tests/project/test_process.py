"""What a program around fastbp meets: imports, threads, forks, other processes, repetition."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from helpers.calls import network, work
from helpers.processes import in_a_fork, python
from helpers.repository import TESTS
from helpers.strategies import EVERY_LOSS, case, case_of, n_out_for, same

import fastbp as fb

HEAVY = (
    "scipy", "numba", "llvmlite", "sklearn", "pandas", "matplotlib", "dask", "torch", "jax", "rich",
    "safetensors", "cffi", "pycparser", "setuptools", "distutils", "importlib.metadata",
)  # fmt: skip


def test_import_takes_less_than_a_quarter_of_a_second_beyond_numpy():
    code = """
import time, numpy
start = time.perf_counter()
import fastbp as fb
print(time.perf_counter() - start)
fb.Network.mlp([2, 3, 1]).init(0)
print(time.perf_counter() - start)
"""
    times = np.array([python(code).split() for _ in range(5)], float)
    imported, used = times.min(axis=0)
    assert imported < 0.25
    assert used < 0.25


LIGHT_USE = """
import sys
before = set(sys.modules)
import fastbp as fb
net = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1))
params = net.init(seed=0)
net.unpack(params), net.n_params, repr(net)
{more}
print(*sys.modules)
"""


def loaded(more="", **variables):
    """The heavy packages among what a program has loaded."""
    modules = python(LIGHT_USE.format(more=more), **variables).split()
    return [name for name in HEAVY if name in modules]


@pytest.mark.parametrize("name", [n for n in fb.available_backends() if n != "numba"])
def test_import_and_networks_load_nothing_heavy(name):
    assert loaded() == []
    use = "net.value_and_grad(params, [[1.0, 2.0]], [3.0]); fb.activation('tanh').f(1.0)"
    assert loaded(use, FASTBP_BACKEND=name) == []


def test_what_can_run_is_found_out_without_loading_it():
    """The version of Numba is looked up, which takes importlib.metadata."""
    assert loaded("fb.available_backends()") in ([], ["importlib.metadata"])


def test_public_names_are_listed_and_found_lazily():
    code = "import fastbp as fb, sys; print(*(n for n in sys.modules if n.startswith('fastbp')))"
    assert python(code).split() == ["fastbp"]
    assert set(fb.__all__) <= set(dir(fb))
    for name in set(fb.__all__) - {"__version__"}:  # which only an installed package has
        assert getattr(fb, name) is getattr(fb, name)
    with pytest.raises(AttributeError, match="module 'fastbp' has no attribute 'Netwrk'"):
        fb.Netwrk  # noqa: B018


# The same call again, at once, elsewhere.


@pytest.mark.backend
@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
def test_repetition_is_bitwise(backend, dtype, rng, loss):
    layers = fb.Dense(33, "tanh"), fb.Dense(17, "relu"), fb.Dense(n_out_for(loss, 3), "sigmoid")
    c = case_of(rng, fb.Network(20, *layers, dtype=dtype), 300, loss, weighted=True)
    first = c.net.value_and_grad(*c.arguments, **c.terms)
    other = case(rng, [3, 2], ["tanh"], dtype, 7)  # so that workspaces are used by others between
    for _ in range(3):
        other.net.value_and_grad(*other.arguments)
        assert same(c.net.value_and_grad(*c.arguments, **c.terms), first)


@pytest.mark.backend
def test_everything_repeats_bitwise(backend, dtype):
    net = network(dtype)
    expected = [work(net, seed) for seed in range(3)]
    for seed in (2, 0, 1, 2):  # the workspaces grow and shrink
        assert same(work(net, seed), expected[seed])
    assert same(work(network(dtype), 1), expected[1])


@pytest.mark.backend
def test_four_threads_at_once_compute_the_same(backend, dtype):
    """Threads share the network, and with it the plan that a backend keeps."""
    seeds = [0, 1, 2, 3] * 8
    expected = [work(network(dtype), seed) for seed in range(4)]
    net, barrier = network(dtype), threading.Barrier(4)

    def start_together(seed):
        if seed in first:
            first.discard(seed)
            barrier.wait(60)
        return work(net, seed, backend)

    first = {0, 1, 2, 3}
    with ThreadPoolExecutor(4) as pool:
        for seed, result in zip(seeds, pool.map(start_together, seeds), strict=True):
            assert same(result, expected[seed])


@pytest.mark.backend
def test_threads_share_one_objective(backend, dtype, rng):
    c = case(rng, [5, 33, 3], ["tanh", "linear"], dtype, 200)
    obj = c.net.objective(c.X, c.y)
    points = [c.params * (1 + k / 8) for k in range(8)]
    expected = [obj.value_and_grad(p) for p in points]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert same(list(pool.map(obj.value_and_grad, points)), expected)


@pytest.mark.backend
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_use(backend):
    net = network()
    expected = work(net)
    assert same(in_a_fork(lambda: work(net)), expected)
    assert same(work(net), expected)


@pytest.mark.backend
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_compute_the_same(backend, method):
    """The network travels by pickle; what its backend made of it stays behind."""
    net = network("float32")
    expected = [work(net, seed) for seed in range(2)]
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        results = list(pool.map(work, [net] * 2, range(2), [backend] * 2))
    assert same(results, expected)


NEEDS_NUMBA = pytest.mark.skipif(
    "numba" not in fb.available_backends(), reason="Numba is not installed"
)


@NEEDS_NUMBA
@pytest.mark.parametrize("kind", ["loky", "threading"])
def test_joblib_computes_the_same(kind):
    joblib = pytest.importorskip("joblib")
    net, call = network(), joblib.delayed(work)
    try:
        with joblib.parallel_config(kind, n_jobs=2):
            results = joblib.Parallel()(call(net, seed, "numba") for seed in range(3))
    finally:
        if kind == "loky":  # its processes would wait for more
            joblib.externals.loky.get_reusable_executor().shutdown(wait=True)
    assert same(results, [work(net, seed, "numba") for seed in range(3)])


NO_THREADS = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import os, threading
import numpy as np
import fastbp as fb
from fastbp import backends
from helpers.calls import network, work
from concurrent.futures import ThreadPoolExecutor

def threads():
    counted = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
    return threading.active_count(), counted

def result():
    net = network()
    X = np.random.default_rng(0).standard_normal((600, 5))
    with fb.use_backend("numba"):
        found = work(net)
        for method, size in (("adam", None), ("sgd", 64), ("lm", None)):
            fitted = fb.fit(net, X, X[:, :3], method=method, epochs=2, batch_size=size, seed=0,
                            validation=0.5, threads=2)
            found.append(fitted.params)
    return b"".join(np.asarray(array).tobytes() for array in found)

def in_a_child():
    reading, writing = os.pipe()
    if os.fork() == 0:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(result())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read()

fork = in_a_child if hasattr(os, "fork") else result
backends.load("numba")
found = {{fork()}}  # the first use is in the child
np.linalg.solve(np.eye(9), np.eye(9))  # what BLAS starts is not ours
before = threads()
found.add(result())
with ThreadPoolExecutor(3) as pool:
    found.update(pool.map(lambda _: result(), range(3)))
found.add(fork())
import numba
try:
    layer = numba.threading_layer()
except ValueError:
    layer = "none"
print(len(found), threads() == before, layer)
"""


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@NEEDS_NUMBA
def test_numba_starts_no_threads_that_stay():
    """Neither with threads=2, nor in Python's threads, nor in forked processes."""
    single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    assert python(NO_THREADS, **single).split() == ["1", "True", "none"]


FORK_WHILE_COMPILING = """
import os, signal, threading
import fastbp as fb
from fastbp.backends.jit import compile_notice as notice
begun, begin = threading.Event(), notice.begin

def tell(name):
    begun.set()
    begin(name)

notice.begin = tell
thread = threading.Thread(target=lambda: fb.activation("leaky_relu").f([1.0], backend="numba"))
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)
    fb.activation("elu").f([1.0], backend="numba")
    os._exit(0)
print(os.waitpid(child, 0)[1])
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@NEEDS_NUMBA
def test_fork_while_another_thread_compiles(tmp_path):
    assert python(FORK_WHILE_COMPILING, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["0"]


@pytest.mark.backend
def test_networks_come_and_go_without_leaking(backend):
    """What a backend keeps for a network or a problem goes with it."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("no /proc here")

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def use(times):
        X, y = np.ones((200, 5)), np.ones((200, 3))
        for _ in range(times):
            net = network()
            net.value_and_grad(net.init(0), X, y)

    use(50)
    before = resident()
    use(300)  # each has 0.1 MB of activations
    assert resident() - before < 8e6


def test_errors_survive_pickling():
    for error in (fb.ShapeError("X has"), fb.NonFiniteError("y"), fb.BackendError("c")):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error)
    diverged = pickle.loads(pickle.dumps(fb.DivergenceError("loss is nan", result={"nit": 3})))
    assert str(diverged) == "loss is nan" and diverged.result == {"nit": 3}
    assert issubclass(fb.ShapeError, ValueError) and issubclass(fb.NonFiniteError, ValueError)
    assert issubclass(fb.DivergenceError, ArithmeticError)
    assert issubclass(fb.BackendError, RuntimeError)
