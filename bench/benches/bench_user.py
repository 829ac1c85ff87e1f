"""Activations and losses of one's own beside built-in ones, in the C and the Numba backend.

Those of algebra are raced against relu and mse, those written with `fastbp.jitted.exp` and `tanh`
against tanh and log_cosh. "values" and "slopes" are passes over numbers in the cache, "backward"
multiplies by the slopes as the backward pass does, "loss" writes slopes and sums; a "step" is one
of training 16-64-64-4 on batches of 64, "objective" a loss with its gradient where the network is
one layer of one input.
"""

from __future__ import annotations

import ctypes
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from measuring import loops
from measuring.race import Contestant
from measuring.session import QUICK
from report.runs import BUILT_IN, USER
from workloads import DTYPES

import fastbp as fb
from fastbp.backends import native
from fastbp.jitted import exp, sigmoid, tanh
from fastbp.maths import losses as table

SIZE = 1024  # of both types, with their results, within half of a usual first-level cache
BATCH, BATCHES = 64, 8


def p3(t):
    return (5 * t**3 - 3 * t) / 2


def p3_slope(t):
    return (15 * t**2 - 3) / 2


def horner(t):
    return t * (2.5 * t * t - 1.5)


def horner_slope(t):
    return 7.5 * t * t - 1.5


def softsign(z):
    return z / (1 + abs(z))


def softsign_slope(z):
    return 1 / (1 + abs(z)) ** 2


def squared_relu(z):
    return z * z if z > 0 else 0.0


def squared_relu_slope(z):
    return 2 * z if z > 0 else 0.0


def swish(z):
    return z * sigmoid(z)


def swish_slope(z):
    s = sigmoid(z)
    return s * (1 + z * (1 - s))


def lecun(z):
    return 1.7159 * tanh(2 / 3 * z)


def lecun_slope(z):
    y = tanh(2 / 3 * z)
    return 1.7159 * 2 / 3 * (1 - y * y)


def bump(z):
    return exp(-z * z)


def bump_slope(z):
    return -2 * z * exp(-z * z)


ACTIVATIONS = {  # and what each is raced against
    "P3": (fb.Activation("P3", p3, p3_slope), "relu"),
    "P3 by Horner": (fb.Activation("P3 by Horner", horner, horner_slope), "relu"),
    "softsign": (fb.Activation("own softsign", softsign, softsign_slope), "relu"),
    "squared relu": (fb.Activation("squared relu", squared_relu, squared_relu_slope), "relu"),
    "swish": (fb.Activation("swish", swish, swish_slope), "tanh"),
    "1.7159 tanh(2/3 z)": (fb.Activation("lecun", lecun, lecun_slope), "tanh"),
    "exp(-z²)": (fb.Activation("bump", bump, bump_slope), "tanh"),
}


def squared(y, t):
    d = y - t
    return d * d, 2 * d


def huber(y, t):
    d = y - t
    if abs(d) > 1:
        return abs(d) - 0.5, 1.0 if d > 0 else -1.0
    return d * d / 2, d


def welsch(y, t):
    d = y - t
    e = exp(-d * d / 2)
    return 1 - e, d * e


def poisson(y, t):
    rate = exp(y)
    return rate - t * y, rate - t


LOSSES = {
    "squares": (fb.custom_loss(squared, name="squares"), "mse"),
    "huber": (fb.custom_loss(huber, name="own huber"), "mse"),
    "welsch": (fb.custom_loss(welsch, name="welsch"), "log_cosh"),
    "own poisson": (fb.custom_loss(poisson, name="own poisson"), "poisson"),
}

if QUICK:  # one that is algebraic and one that is not
    ACTIVATIONS = {name: ACTIVATIONS[name] for name in ("P3 by Horner", "swish")}
    LOSSES = {name: LOSSES[name] for name in ("huber", "welsch")}

# What is done -> the number by which the backends' functions know it.
PASSES = {"values": 0, "slopes": 1, "backward": 3}
NAMES = ("c", f"c, {BUILT_IN}", "numba", f"numba, {BUILT_IN}")


@cache
def numba_loops() -> Any:
    """Loops that call the Numba backend's functions of an activation and of a loss."""
    import numba

    from fastbp.backends.jit.activations import call_activation
    from fastbp.backends.jit.losses import FIRST, LossRows, call_loss
    from fastbp.backends.jit.vectors import (
        floating_point_mode,
        flushing,
        pointer,
        set_floating_point_mode,
    )

    @numba.njit
    def activate(times, function, user, task, Z, out):
        mode = floating_point_mode()
        set_floating_point_mode(flushing(mode))  # as in training: `out` decays in "backward"
        for _ in range(times):
            call_activation(function, task, Z.size, pointer(Z), pointer(out), 0.0, user)
        set_floating_point_mode(mode)

    @numba.njit
    def lose(times, function, user, y, t, labels, d, scratch):
        total = 0.0
        for _ in range(times):
            rows = LossRows(
                y.size, 1, 0, pointer(y), pointer(t), pointer(labels), pointer(y), False
            )
            total += call_loss(
                function, FIRST, rows, pointer(y), 0.5, 0.0, user, pointer(d), pointer(scratch)
            )
        return total / times

    return activate, lose


def numbers(dtype: str) -> np.ndarray:
    return np.random.default_rng(2).uniform(-3, 3, SIZE).astype(dtype)


def close(computed: np.ndarray, expected: np.ndarray) -> None:
    """To some roundings of numbers around 60."""
    assert np.allclose(computed, expected, rtol=0, atol=1000 * np.finfo(computed.dtype).eps)


def one_pass(what: str, act: Any, dtype: str, name: str) -> Contestant:
    """Over numbers in the cache, without Python."""
    act = fb.activation(act)
    Z, out = numbers(dtype), np.ones(SIZE, dtype)
    order = PASSES[what]
    if name.startswith("numba"):
        from fastbp.backends.jit import activations

        function, user = activations.addresses(act, Z.dtype)
        # The backward pass of relu and tanh reads their values.
        of = act.f(Z) if order == 3 and not act.keeps_z else Z
        run = partial(_swapped, numba_loops()[0], function, user, order, of, out)
    else:
        user = ctypes.c_void_p(native._integer(native._user(act.functions, Z.dtype)))
        head = (loops.ours("fb_activation"), loops.is_double(Z), act.kind, user)
        run = loops.repeated("repeat_activation", *head, ctypes.c_int(order), SIZE, Z, out)

    def check():
        out[:] = 1
        run(1)
        f = act.df if order else act.f
        close(out, f(Z.astype(np.float64), backend="numpy"))

    return Contestant(run, check, units=SIZE)


def _swapped(function, *arguments):
    """`function` with its first argument last."""
    *arguments, times = arguments
    return function(times, *arguments)


def loss_pass(loss: Any, dtype: str, name: str) -> Contestant:
    """A loss and its slopes over numbers in the cache, without Python; C has no function for it."""
    from fastbp.backends.jit import losses

    loss = table.loss(loss)
    y, labels = numbers(dtype), np.zeros(1, np.int64)
    t, d, scratch = y[::-1] > 0, np.empty_like(y), np.empty_like(y)
    t = t.astype(dtype)
    function, user = losses.addresses(loss.kind, loss.functions, y.dtype)
    run = partial(_swapped, numba_loops()[1], function, user, y, t, labels, d, scratch)

    def check():
        value = run(1)
        net = fb.Network(1, fb.Dense(1, bias=False))
        slope = [
            net.value_and_grad([v], [[1.0]], [s], loss, backend="numpy")[1][0]
            for v, s in zip(y[:20].astype(float), t[:20].astype(float), strict=True)
        ]
        close(d[:20], np.array(slope) / 2)
        expected = net.value([1.0], y.astype(float)[:, None], t.astype(float), loss) * SIZE
        assert abs(value / expected - 1) < 100 * np.finfo(dtype).eps

    return Contestant(run, check, units=SIZE)


def step(act: Any, dtype: str, name: str) -> Contestant:
    """Of training a small network."""
    net = fb.Network.mlp([16, 64, 64, 4], act, dtype=dtype)
    rng = np.random.default_rng(3)
    X = rng.standard_normal((BATCH * BATCHES, 16)).astype(dtype)
    y = rng.standard_normal((BATCH * BATCHES, 4)).astype(dtype)
    start = 0.3 * net.init(seed=0)  # P3 grows fast

    backend = name.split(",")[0]

    def run(epochs, backend=backend):
        options = {"method": "sgd", "lr": 1e-3, "batch_size": BATCH, "shuffle": False}
        return fb.fit(net, X, y, params=start, epochs=epochs, backend=backend, **options)

    def check():
        moved, expected = (run(1, b).params - start for b in (backend, "numpy"))
        assert abs(moved - expected).max() < 1e-3 * abs(expected).max()

    return Contestant(run, check, units=BATCHES, least=20)


def objective(loss: Any, dtype: str, name: str) -> Contestant:
    """A loss and its gradient where a layer of one input does little beside."""
    net = fb.Network(1, fb.Dense(64, bias=False), dtype=dtype)
    rng = np.random.default_rng(3)
    X = rng.uniform(-1, 1, (2048, 1)).astype(dtype)
    y = (rng.random((2048, 64)) > 0.5).astype(dtype)
    p = rng.standard_normal(64).astype(dtype)
    with fb.use_backend(name.split(",")[0]):
        bound = net.objective(X, y, loss)

    def run(times):
        for _ in range(times):
            bound.value_and_grad(p)

    def check():
        value, grad = bound.value_and_grad(p)
        expected = net.value_and_grad(p, X, y, loss, backend="numpy")
        assert abs(value / expected[0] - 1) < 1e-5
        close(grad, expected[1])

    return Contestant(run, check, units=2048 * 64)


def race_of(measure, make, own, built_in, what, row, dtype, name, names=NAMES):
    makers = {
        other: partial(make, built_in if BUILT_IN in other else own, dtype, other)
        for other in names
    }
    place = {"suite": USER, "row": f"{row} / {built_in}: {what}", "dtype": dtype}
    measure(makers, name, 0.1, unit="number", **place)


@loops.needed
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", ("values", "slopes"))
@pytest.mark.parametrize("row", ACTIVATIONS)
def test_pass(measure, row, what, dtype, name):
    race_of(measure, partial(one_pass, what), *ACTIVATIONS[row], what, row, dtype, name)


@pytest.mark.parametrize("name", NAMES[2:])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ACTIVATIONS)
def test_backward(measure, row, dtype, name):
    own = ACTIVATIONS[row]
    race_of(measure, partial(one_pass, "backward"), *own, "backward", row, dtype, name, NAMES[2:])


@pytest.mark.parametrize("name", NAMES[2:])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", LOSSES)
def test_loss(measure, row, dtype, name):
    race_of(measure, loss_pass, *LOSSES[row], "loss", row, dtype, name, NAMES[2:])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ACTIVATIONS)
def test_step(measure, row, dtype, name):
    race_of(measure, step, *ACTIVATIONS[row], "step", row, dtype, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", LOSSES)
def test_objective(measure, row, dtype, name):
    race_of(measure, objective, *LOSSES[row], "objective", row, dtype, name)
