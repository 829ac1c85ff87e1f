"""Which backend runs: arguments, contexts, defaults, the environment, instruction-set levels."""

from __future__ import annotations

import contextvars
import re
import threading

import numpy as np
import pytest
from helpers.agreement import agree
from helpers.processes import run
from helpers.strategies import (
    same,
)

import fastbp as fb
from fastbp import backends


@pytest.fixture
def restored_default():
    """The process's default backend is put back after the test."""
    before = backends._default
    yield
    backends._default = before


def test_numpy_can_always_run():
    names = fb.available_backends()
    assert names[-1] == "numpy"
    assert names == tuple(name for name in ("c", "numba", "numpy") if name in names)


def test_use_backend_nests_and_restores(restored_default):
    outside = fb.get_backend()
    with fb.use_backend("numpy"):
        assert fb.get_backend() == "numpy"
        for name in fb.available_backends():
            with fb.use_backend(name):
                assert fb.get_backend() == name
                fb.set_backend("numpy")  # of no effect inside
                assert fb.get_backend() == name
            assert fb.get_backend() == "numpy"
        with pytest.raises(KeyError), fb.use_backend(fb.available_backends()[0]):
            raise KeyError
        assert fb.get_backend() == "numpy"
    backends._default = backends.load(outside)
    assert fb.get_backend() == outside


def test_set_backend_holds_for_all_threads_and_use_backend_for_one(restored_default):
    fb.set_backend("numpy")
    seen = []
    with fb.use_backend(fb.available_backends()[0]):
        context = contextvars.Context()  # as a thread without an inherited context has
        thread = threading.Thread(target=lambda: seen.append(context.run(fb.get_backend)))
        thread.start()
        thread.join()
    assert seen == ["numpy"]


def test_backend_argument_comes_first(restored_default):
    net = fb.Network(2, fb.Dense(1, "tanh"))
    params, X = net.init(0), [[0.5, 2.0]]
    with fb.use_backend(fb.available_backends()[0]):
        for name in fb.available_backends():
            with fb.use_backend(name):
                expected = net.forward(params, X)
            assert same(net.forward(params, X, backend=name), expected)
            _, cache = fb.dense_forward(X, np.ones((2, 1)), backend=name)
            assert cache.backend is backends.load(name)


@pytest.mark.parametrize(
    "use",
    [
        fb.set_backend,
        lambda name: fb.use_backend(name).__enter__(),
        lambda name: fb.dense_forward([[1.0]], [[1.0]], backend=name),
        lambda name: fb.activation("tanh").f(1.0, backend=name),
        lambda name: fb.Network(1, fb.Dense(1)).forward([1.0, 0.0], [[1.0]], backend=name),
    ],
)
def test_unknown_backends(use):
    with pytest.raises(ValueError, match=r"unknown backend 'nunba': .*did you mean 'numba'"):
        use("nunba")


def test_missing_backend_says_what_to_do(monkeypatch):
    missing = 'Numba is not installed; install it with: pip install "numba>=0.60,<0.69"'
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert "numba" not in fb.available_backends()
    with pytest.raises(fb.BackendError, match=f"backend 'numba' cannot run here: {missing}"):
        backends.load("numba")


@pytest.mark.parametrize("version", ["0.59.1", "0.69.0", "1.0.0rc1", "0.70.0dev0+41.g0f0cbb3"])
def test_an_unknown_series_of_numba_says_what_to_do(monkeypatch, version):
    why = re.escape(
        f"Numba {version} is installed, expected 0.60 to 0.68; install one with: "
        f'pip install "numba>=0.60,<0.69"'
    )
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: True)
    monkeypatch.setattr("importlib.metadata.version", lambda package: version)
    assert "numba" not in fb.available_backends()
    assert re.fullmatch(why, backends.why_missing("numba"))
    with pytest.raises(fb.BackendError, match=f"backend 'numba' cannot run here: {why}"):
        backends.load("numba")


@pytest.mark.parametrize("name", fb.available_backends())
def test_environment_variable_sets_the_default(name):
    done = run("import fastbp as fb; print(fb.get_backend())", FASTBP_BACKEND=name)
    assert (done.stdout.strip(), done.stderr) == (name, "")


def test_unknown_environment_variable_is_an_error_at_first_use():
    done = run("import fastbp as fb; print('imported'); fb.get_backend()", FASTBP_BACKEND="C")
    assert done.stdout.strip() == "imported"
    expected = (
        "ValueError: FASTBP_BACKEND: unknown backend 'C': expected one of 'c', 'numba', 'numpy'"
    )
    assert expected in done.stderr
    assert "did you mean 'c'?" in done.stderr


def test_empty_environment_variable_is_none():
    done = run("import fastbp as fb; print(fb.get_backend())", FASTBP_BACKEND="")
    assert done.stdout.strip() == fb.available_backends()[0]


LEVELS = ("baseline", "avx2", "avx512")


@pytest.mark.skipif("c" not in fb.available_backends(), reason="the C library is not built")
def test_instruction_set_can_be_capped_and_levels_agree():
    code = """
import numpy as np, fastbp as fb
from fastbp.backends import native
net = fb.Network.mlp([20, 33, 17, 3])
X, y = np.sin(np.arange(1400.0)).reshape(70, 20), np.cos(np.arange(210.0)).reshape(70, 3)
value, grad = net.value_and_grad(net.init(0), X, y, backend="c")
print(native.instruction_set(), value.hex(), grad.tobytes().hex())
"""
    result = [run(code, FASTBP_MAX_ISA=cap).stdout.split() for cap in LEVELS]
    names = [name for name, _, _ in result]
    highest = names[-1]
    assert names == [min(cap, highest, key=LEVELS.index) for cap in LEVELS]
    values = [float.fromhex(value) for _, value, _ in result]
    grads = [np.frombuffer(bytes.fromhex(grad)) for _, _, grad in result]
    for value, grad in zip(values, grads, strict=True):
        agree(value, values[0], "value")
        agree(grad, grads[0], "gradient")
    unknown = run("import fastbp as fb; fb.available_backends()", FASTBP_MAX_ISA="avx3")
    assert "ValueError: FASTBP_MAX_ISA: unknown instruction set 'avx3': " in unknown.stderr
