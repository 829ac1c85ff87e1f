"""Expressions of one's own in the C backend: evaluated block by block, compiled, and built in.

"values", "slopes" and "second" are passes over numbers in the cache, without Python; "short" is a
call for 80 numbers, a layer of 20 units on 4 rows; a "step" is one of training 4-20-1 on 32 rows.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import numpy as np
import pytest
from measuring import loops
from measuring.race import Contestant
from measuring.session import QUICK
from workloads import DTYPES

import fastbp as fb
from fastbp.backends import native

SIZE, SHORT = 1024, 80
ROWS, BATCH = 2048, 32

FUNCTIONS = {  # and the built-in one
    "z exp(-z²)": (lambda z: z * np.exp(-(z**2)), None),
    "(5t³ - 3t)/2": (lambda t: (5 * t**3 - 3 * t) / 2, None),
    "silu": (lambda z: z / (1 + np.exp(-z)), "silu"),
    "softplus": (lambda z: np.log1p(np.exp(z)), "softplus"),
    "1.7159 tanh(2/3 z)": (lambda z: 1.7159 * np.tanh(2 / 3 * z), "tanh"),
    "softsign": (lambda z: z / (1 + abs(z)), "softsign"),
    "arctan": (np.arctan, "tanh"),
}
if QUICK:
    FUNCTIONS = {name: FUNCTIONS[name] for name in ("(5t³ - 3t)/2", "silu")}

PASSES = {"values": (0, SIZE), "slopes": (1, SIZE), "second": (2, SIZE), "short": (0, SHORT)}
NAMES = ("evaluated", "compiled", "built-in")


def contestants(row: str, make: Any) -> dict[str, Any]:
    """By name, what runs an activation."""
    f, built_in = FUNCTIONS[row]
    made = {
        "evaluated": partial(make, fb.Activation(f"own {row}", f)),
        "compiled": partial(make, fb.Activation(f"own {row}", f, compile=True)),
    }
    return made | ({"built-in": partial(make, fb.activation(built_in))} if built_in else {})


def one_pass(what: str, dtype: str, act: fb.Activation) -> Contestant:
    order, size = PASSES[what]
    Z = np.random.default_rng(2).uniform(-3, 3, size).astype(dtype)
    out = np.empty_like(Z)
    head = (loops.ours("fb_activation"), loops.is_double(Z), act.kind)
    user = ctypes.c_void_p(native._integer(native._user(act.functions, Z.dtype)))
    run = loops.repeated("repeat_activation", *head, user, ctypes.c_int(order), size, Z, out)

    def check():
        run(1)
        expected = (act.f, act.df, act.d2f)[order](Z.astype(np.float64), backend="numpy")
        assert np.allclose(out, expected, rtol=0, atol=1000 * np.finfo(dtype).eps)

    return Contestant(run, check, units=1 if what == "short" else size)


def step(dtype: str, act: fb.Activation) -> Contestant:
    net = fb.Network.mlp([4, 20, 1], act, dtype=dtype)
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((ROWS, 4)).astype(dtype), rng.standard_normal(ROWS).astype(dtype)
    start = net.init(seed=0)

    def run(epochs, backend="c"):
        options = {"method": "adam", "batch_size": BATCH, "shuffle": False, "backend": backend}
        return fb.fit(net, X, y, params=start, epochs=epochs, **options)

    def check():
        moved, expected = (run(1, b).params - start for b in ("c", "numpy"))
        assert abs(moved - expected).max() < 1e-3 * abs(expected).max()

    return Contestant(run, check, units=ROWS // BATCH, least=20)


def race_of(measure, make, row, what, dtype, name):
    makers = contestants(row, make)
    if name not in makers:
        pytest.skip("no built-in function is like it")
    place = {"suite": "programs", "row": f"{row}: {what}", "dtype": dtype}
    measure(makers, name, 0.1, unit="number", **place)


@loops.needed
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("row", FUNCTIONS)
def test_pass(measure, row, what, dtype, name):
    race_of(measure, partial(one_pass, what, dtype), row, what, dtype, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", FUNCTIONS)
def test_step(measure, row, dtype, name):
    race_of(measure, partial(step, dtype), row, "step", dtype, name)
