"""Threads in calls, and threads that call: results, forks, exceptions, the floating-point mode."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from helpers.processes import in_a_fork
from helpers.strategies import (
    ARRAYS,
    OPTIMIZERS,
    QUARTIC,
    Training,
    case,
    case_of,
    copy_of,
    n_for,
    n_out_for,
    new_run,
    same,
    training,
)

import fastbp as fb
from fastbp.backends import contract
from fastbp.backends.contract import TrainConfig
from fastbp.maths.robust import CAUCHY_RHO, Robust

pytestmark = pytest.mark.backend

COUNTS = (2, 3, 7)
ROWS = (1, 2, 255, 256, 257, 511, 1000, 4097, 10_000)
LOSSES = ("mse", "softmax_ce", "margin_ranking", "gaussian_nll", QUARTIC)


def at_once(functions):
    """The results of the functions, each called in a separate thread, all at once."""
    barrier = threading.Barrier(len(functions))

    def call(function):
        barrier.wait(60)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(call, functions))


# The number of threads in a call.


def case_for(loss, n, dtype, rng):
    layers = fb.Dense(7, "tanh"), fb.Dense(5, "gelu"), fb.Dense(n_out_for(loss, 3))
    net = fb.Network(4, *layers, dtype=dtype)
    return case_of(rng, net, n_for(loss, n), loss, True, l2=0.25, group=0.125)


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_objective_does_not_depend_on_their_number(compiled, dtype, rng, loss, n):
    c = case_for(loss, n, dtype, rng)
    where = c.problem, c.effective

    def results(threads):
        return compiled.value(*where, threads), *compiled.value_and_grad(*where, threads)

    expected = results(1)
    for threads in COUNTS:
        assert same(results(threads), expected), threads


@pytest.mark.parametrize("n", ROWS)
def test_jacobian_and_normal_equations_do_not_depend_on_their_number(compiled, dtype, rng, n):
    c = case(rng, [4, 7, 2], ["tanh", "sigmoid"], dtype, n, weighted=True)

    robust = Robust(CAUCHY_RHO, 0.5)

    def results(threads):
        J = compiled.jacobian(c.net.plan, c.effective, c.X, threads, False)
        total = compiled.sum_of_squares(c.problem, c.effective, threads, robust)
        return J, *compiled.normal_equations(c.problem, c.effective, threads, robust), total

    expected = results(1)
    for threads in COUNTS:
        assert same(results(threads), expected), threads


@pytest.mark.parametrize("parts", [1, 2, 3, 15, 16, 17])
def test_rows_about_whole_parts_do_not_depend_on_their_number(compiled, dtype, rng, parts):
    """The sums are of whole numbers, and exact."""
    net = fb.Network(3, fb.Dense(5, "relu"), fb.Dense(2), dtype=dtype)
    params = rng.integers(-2, 3, net.n_params).astype(dtype)
    (W1, b1), (W2, b2) = net.unpack(params)
    for n in range(parts * contract.PART_ROWS - 1, parts * contract.PART_ROWS + 2):
        X = rng.integers(-2, 3, (n, 3)).astype(dtype)
        Y = np.maximum(X @ W1 + b1, 0) @ W2 + b2
        y = Y - rng.integers(-2, 3, Y.shape)
        problem = net.objective(X, y, "sse").problem
        gradient = net.unpack(compiled.value_and_grad(problem, params, 1)[1])[-1][1]
        np.testing.assert_array_equal(gradient, 2 * (Y - y).sum(axis=0))
        expected = compiled.value_and_grad(problem, params, 1)
        assert expected[0] == ((Y - y) ** 2).sum()
        for threads in range(2, 6):
            assert same(compiled.value_and_grad(problem, params, threads), expected), (n, threads)


def trained(module, t, run, threads, n_steps):
    run, buffers = copy_of(run), t.buffers(n_steps)
    code, _ = t.having(threads=threads).go(module, run, n_steps, *buffers)
    return code, *buffers, *(getattr(run, name) for name in ARRAYS), run.step


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_training_does_not_depend_on_their_number(compiled, dtype, n, method):
    """Training in full batches; with dropout and fixed entries too."""
    for seed, loss in enumerate(LOSSES):
        options = {"fixed": True, "dropout": 0.25} if seed % 2 else {}
        if seed > 2:  # the validation has another number of parts
            options |= {"clip_norm": 0.1, "average_from": 1, "validation": 700, "patience": 9}
        _, t, run = training(seed, dtype, method, loss, n=n, batch_size=n, **options)
        expected = trained(compiled, t, run, 1, 3)
        for threads in COUNTS:
            assert same(trained(compiled, t, run, threads, 3), expected), (loss, threads)


@pytest.mark.parametrize("validation", [0, 1, 100, 2000, 9001])
def test_minibatches_do_not_depend_on_their_number(compiled, dtype, validation):
    """Batches have two parts, the last one part; the validation has fewer, or more, or 16."""
    options = {"validation": validation, "patience": 9, "average_from": 4}
    _, t, run = training(7, dtype, "adam", n=1100, batch_size=500, **options)
    assert t.order is not None and t.rates is not None
    expected = trained(compiled, t, run, 1, 8)
    for threads in COUNTS:
        assert same(trained(compiled, t, run, threads, 8), expected)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_small_batches_with_a_validation_of_parts(compiled, dtype, batch_size):
    """Several threads may evaluate the network that one thread trains."""
    _, t, run = training(7, dtype, "adam", batch_size=batch_size, n=64, validation=3000, patience=9)
    n_steps = 2 * t.steps_per_epoch + 1
    expected = trained(compiled, t, run, 1, n_steps)
    for threads in COUNTS:
        assert same(trained(compiled, t, run, threads, n_steps), expected)


@pytest.mark.parametrize("spoilt", ["first", "middle", "last"])
def test_stopping_does_not_depend_on_their_number(compiled, dtype, spoilt):
    """Stops by NaN in one part, by growth, by the goal, and without progress."""
    _, t, run = training(0, dtype, "momentum", n=1500, batch_size=1500, validation=1500)
    place = {"first": 0, "middle": 700, "last": 1499}[spoilt]
    targets = t.problem.targets.copy()
    targets[place] = np.nan
    nan = replace(t, problem=replace(t.problem, targets=targets, handles={}))
    t.held_out.y[place] = np.nan
    unknown = t.having(validation=t.held_out.problem, patience=3)
    grows = replace(t, rate=100.0, rates=None)
    _, (start, *_) = t.go(compiled, copy_of(run), 3)
    for runs, codes in (
        (nan, {contract.NON_FINITE_OBJECTIVE}),
        (grows, {contract.NON_FINITE_OBJECTIVE, contract.NON_FINITE_PARAMETERS, contract.GROWN}),
        (unknown, {contract.NO_PROGRESS}),
        (t.having(goal=0.9 * start), {contract.GOAL_MET}),
    ):
        expected = trained(compiled, runs, run, 1, 40)
        assert expected[0] in codes
        for threads in COUNTS:
            assert same(trained(compiled, runs, run, threads, 40), expected)


def test_flushing_does_not_depend_on_their_number(compiled, dtype):
    """Gradients and parameters of subnormal size: every thread flushes them, or none does."""
    tiny = np.finfo(dtype).tiny
    c = case(np.random.default_rng(3), [4, 7, 2], ["linear", "linear"], dtype, 1100)
    problem = c.net.objective(c.X, 0 * c.y, "sse").problem
    options = {"clip_norm": 1.0, "average_from": 1, "validation": problem, "patience": 9}
    for method, optimizer in OPTIMIZERS.items():
        t = Training(problem, TrainConfig(optimizer, 1100, False, **options))
        for scale in (tiny, 1e3 * tiny, np.sqrt(tiny) / 30):
            run = new_run((c.params * scale).astype(dtype), optimizer)
            expected = trained(compiled, t, run, 1, 4)
            for threads in COUNTS:
                assert same(trained(compiled, t, run, threads, 4), expected), method


def test_more_threads_than_parts_or_processors(compiled, dtype, rng):
    c = case_for("mse", 5000, dtype, rng)
    expected = compiled.value_and_grad(c.problem, c.effective, 1)
    for threads in (16, 17, 100):
        assert same(compiled.value_and_grad(c.problem, c.effective, threads), expected)


@pytest.mark.parametrize("method", ["sgd", "adam", "L-BFGS-B"])
def test_fits_do_not_depend_on_their_number(backend, dtype, rng, method):
    net = fb.Network(3, fb.Dense(6, "tanh", dropout=0.0), fb.Dense(2), dtype=dtype)
    X = rng.standard_normal((1500, 3))
    y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], axis=1)
    size = {} if method == "L-BFGS-B" else {"batch_size": None}
    fits = [
        fb.fit(net, X, y, method=method, epochs=5, seed=1, l2=0.01, threads=threads, **size)
        for threads in (1, *COUNTS)
    ]
    assert len({(f.params.tobytes(), f.fun) for f in fits}) == 1


# Python's threads on top.


def test_calls_with_threads_from_threads(module, dtype, rng):
    """On one problem, whose plan and workspaces all of them share."""
    c = case_for("softmax_ce", 1000, dtype, rng)
    _, t, run = training(3, dtype, "adam", n=1000, batch_size=1000)
    few = case(rng, [4, 7, 2], ["tanh", "sigmoid"], dtype, 300)
    robust = Robust()
    functions = [
        lambda threads: module.value_and_grad(c.problem, c.effective, threads),
        lambda threads: trained(module, t, run, threads, 5),
        lambda threads: module.normal_equations(few.problem, few.effective, threads, robust),
        lambda threads: module.jacobian(few.net.plan, few.effective, few.X, threads, False),
    ]
    expected = [function(1) for function in functions]
    for threads in (1, 3):
        for _ in range(3):
            calls = [partial(function, threads) for function in functions]
            assert same(at_once(calls * 2), expected * 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_use_of_threads(module, dtype, rng):
    c = case_for("mse", 1000, dtype, rng)
    _, t, run = training(3, dtype, "adam", n=1000, batch_size=1000)

    def results():
        return module.value_and_grad(c.problem, c.effective, 3), trained(module, t, run, 3, 5)

    expected = results()
    assert same(in_a_fork(results), expected)
    assert same(results(), expected)


# The floating-point mode.

MXCSR_KNOWN = sys.platform == "linux" and platform.machine() == "x86_64"
FLUSH = 1 << 15 | 1 << 6  # results to zero, operands as zero
CONTROL = 0xFFC0  # all but the flags that operations leave behind


def environment():
    """The C library's floating-point environment; the last four bytes are MXCSR."""
    buffer = ctypes.create_string_buffer(32)
    assert ctypes.CDLL(None).fegetenv(buffer) == 0
    return buffer


def mode():
    """Whether NumPy and C keep subnormal numbers, and the control word if it is known."""
    double, single = np.full(8, 5e-324), np.full(16, 1e-45, np.float32)
    one, smallest = float(len("1")), float(double[0])  # of which no compiler knows the product
    control = struct.unpack_from("<I", environment(), 28)[0] & CONTROL if MXCSR_KNOWN else None
    exact = (double * one).all(), (single * single.dtype.type(one)).all(), smallest * one > 0
    return *map(bool, exact), control


def divergence(threads):
    X = np.ones((600, 2))
    with pytest.raises(fb.DivergenceError):
        fb.fit(
            fb.Network.mlp([2, 1]), X, X[:, 0], method="sgd", lr=1e200, epochs=9, seed=0,
            batch_size=None, threads=threads,
        )  # fmt: skip


def bad_input(threads):
    net, X = fb.Network.mlp([2, 1]), np.ones((600, 2))
    with pytest.raises(fb.ShapeError):
        net.value_and_grad(net.init(0), X, X, threads=threads)
    with pytest.raises(fb.NonFiniteError):
        fb.fit(net, X * np.nan, X[:, 0], threads=threads)


def interrupted_callback(threads):
    net, X = fb.Network.mlp([2, 3, 1]), np.ones((600, 2))
    obj = net.objective(X, X[:, :1] + 1, threads=threads)

    def callback(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fb.optimize.minimize(obj, net.init(0), method="L-BFGS-B", callback=callback)


def training_runs(threads):
    from fastbp.backends import resolve

    options = {"n": 600, "batch_size": 600, "validation": 600, "threads": threads}
    for method in ("sgd", "adam"):
        _, t, run = training(2, "float32", method, **options)
        assert t.go(resolve(), run, 5)[0] == contract.DONE
        assert t.having(goal=np.inf).go(resolve(), run, 5)[0] == contract.GOAL_MET
        t.problem.targets[3] = np.nan
        assert t.go(resolve(), run, 5)[0] == contract.NON_FINITE_OBJECTIVE


def derivatives(threads):
    c = case(np.random.default_rng(0), [3, 6, 2], ["silu", "linear"], "float32", 300)
    for X in (c.X, c.X * np.float32(1e-42), c.X * np.float32(np.inf)):
        obj = c.net.objective(X, c.y, threads=threads)
        obj.value_and_grad(c.params)
        obj.hvp(c.params, c.params)
        obj.normal_equations(c.params)
        obj.jacobian(c.params)


CALLS = [training_runs, derivatives, divergence, bad_input, interrupted_callback]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("call", CALLS)
def test_the_mode_is_left_alone(backend, call, threads):
    """The mode of the calling thread, main or not, and of threads that start after the call."""

    def before_and_after():
        with fb.use_backend(backend):
            before = mode()
            call(threads)
            return before, mode(), at_once([mode])[0]

    assert len({*before_and_after(), *at_once([before_and_after])[0]}) == 1
    assert mode()[:3] == (True, True, True)


@pytest.mark.skipif(not MXCSR_KNOWN, reason="this is no x86 Linux")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("call", [training_runs, derivatives])
def test_a_mode_of_the_callers_is_put_back(backend, call, threads):
    """The caller's choice (flushing, rounding upwards) is restored."""

    def chosen(control):
        saved = environment()
        changed = ctypes.create_string_buffer(saved.raw, 32)
        struct.pack_into("<I", changed, 28, struct.unpack_from("<I", saved, 28)[0] | control)
        with fb.use_backend(backend):
            call(threads)  # compiles, and lets NumPy look at its types, in the usual mode
            ctypes.CDLL(None).fesetenv(changed)
            try:
                before = mode()
                call(threads)
                return before, mode()
            finally:
                ctypes.CDLL(None).fesetenv(saved)

    for control in (FLUSH, 1 << 14):
        before, after = at_once([lambda control=control: chosen(control)])[0]
        assert before == after and before[3] & control == control


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_mode_is_left_alone_by_ctrl_c(backend, rng, threads):
    """A signal in the middle of a fit that would take hours."""
    net = fb.Network.mlp([3, 20, 2], dtype="float32")
    X, y = rng.standard_normal((600, 3)), rng.standard_normal((600, 2))
    before = mode()
    fb.fit(net, X, y, epochs=1, batch_size=None, seed=0, threads=threads)  # compiles
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        result = fb.fit(net, X, y, epochs=10**7, batch_size=None, seed=0, threads=threads)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not result.success
    assert mode() == before
