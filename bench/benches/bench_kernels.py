"""One dense layer, forward and backward, as a user calls it: checks and allocation included."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from measuring.checks import check_layer
from measuring.race import Contestant
from measuring.session import QUICK
from peers.handwritten import Dense
from workloads import (
    CONTESTANTS,
    DTYPES,
    HAND,
    KERNEL_ACTIVATIONS,
    QUICK_ACTIVATIONS,
    QUICK_KERNELS,
)

import fastbp as fb
from fastbp.cli.workloads import KERNELS


def contestant(name: str, shape: tuple[int, int, int], activation: str, dtype: str) -> Contestant:
    n, n_in, n_out = shape
    rng = np.random.default_rng(3)
    X = rng.standard_normal((n, n_in)).astype(dtype)
    W = (rng.standard_normal((n_in, n_out)) / np.sqrt(n_in)).astype(dtype)
    b, dY = rng.standard_normal(n_out).astype(dtype), rng.standard_normal((n, n_out)).astype(dtype)
    layer = Dense(X, W, b, activation)

    def hand():
        Y = layer.forward()
        return Y, layer.backward(dY)

    def fast():
        Y, cache = fb.dense_forward(X, W, b, activation)
        return Y, fb.dense_backward(dY, cache)

    work = hand if name == HAND else fast
    backend = fb.get_backend() if name == HAND else name

    def run(times):
        with fb.use_backend(backend):
            for _ in range(times):
                work()

    def check():
        if name == HAND:
            Y = layer.forward().copy()  # the way back overwrites it
            results = layer.backward(dY)
        else:
            with fb.use_backend(name):
                Y, results = fast()
        check_layer(X, W, b, dY, activation, Y, *results)

    return Contestant(run, check)


@pytest.mark.parametrize("name", CONTESTANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", QUICK_ACTIVATIONS if QUICK else KERNEL_ACTIVATIONS)
@pytest.mark.parametrize(
    "shape", QUICK_KERNELS if QUICK else KERNELS, ids=lambda s: "x".join(map(str, s))
)
def test_forward_backward(measure, shape, activation, dtype, name):
    makers = {other: partial(contestant, other, shape, activation, dtype) for other in CONTESTANTS}
    row = f"{'×'.join(map(str, shape))} {activation}"
    measure(makers, name, 0.2, suite="kernels", row=row, dtype=dtype, unit="call")
