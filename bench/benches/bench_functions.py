"""exp, tanh and sigmoid of numbers in the cache, called from C, beside the FMA peak."""

from __future__ import annotations

import ctypes
from functools import partial

import numpy as np
import pytest
from measuring import loops
from measuring.race import Contestant
from peers import handwritten
from report.runs import FMA
from workloads import DTYPES, HAND

import fastbp as fb

COMPILED = [name for name in ("c", "numba") if name in fb.available_backends()]
NAMES = (FMA, *COMPILED, HAND)
SIZE = 2048

pytestmark = loops.needed


def contestant(name: str, function: str, dtype: str) -> Contestant:
    if name == FMA:
        return loops.fma_loop(1000 * SIZE, dtype)
    Z = np.random.default_rng(2).uniform(-4, 4, SIZE).astype(dtype)
    Y = np.empty_like(Z)
    if name == HAND:
        run = by_hand(function, Z, Y)
    elif name == "numba":
        run = in_numba(function, Z, Y)
    else:
        head = (loops.ours("fb_activation"), loops.is_double(Z), fb.activation(function).kind)
        run = loops.repeated("repeat_activation", *head, 0, ctypes.c_int(0), SIZE, Z, Y)

    def check():
        run(1)
        exact = {"exp": np.exp, "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}
        assert np.allclose(Y, exact[function](Z.astype(np.float64)), rtol=8 * np.finfo(dtype).eps)

    return Contestant(run, check, units=SIZE)


def in_numba(function: str, Z: np.ndarray, Y: np.ndarray):
    from fastbp.backends.jit import activations

    address, _ = activations.addresses(fb.activation(function), Z.dtype)
    return loops.repeated("repeat_numba_activation", ctypes.c_void_p(address), 0, SIZE, Z, Y)


def by_hand(function: str, Z: np.ndarray, Y: np.ndarray):
    in_place = None if function == "exp" else handwritten._activation(function, Z.dtype)

    def run(times):
        for _ in range(times):
            if in_place is None:
                np.exp(Z, Y)
            else:
                np.copyto(Y, Z)
                in_place(Y)

    return run


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", ("exp", "tanh", "sigmoid"))
def test_function(measure, function, dtype, name):
    makers = {other: partial(contestant, other, function, dtype) for other in NAMES}
    measure(makers, name, 0.1, suite="functions", row=function, dtype=dtype, unit="number")
