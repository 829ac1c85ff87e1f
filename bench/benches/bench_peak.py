"""The kernels by themselves, forward and backward, beside the most that the core can multiply.

The kernels run in a loop in C (loops.c) or in Numba, so that a small layer shows its arithmetic
and not Python's cost of a call. NumPy by hand is called from Python as ever.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
from measuring import loops
from measuring.checks import check_layer
from measuring.race import Contestant
from measuring.session import QUICK
from peers.handwritten import Dense
from report.runs import FMA
from workloads import DTYPES, HAND, QUICK_KERNELS

import fastbp as fb
from fastbp.cli.workloads import KERNELS

COMPILED = [name for name in ("c", "numba") if name in fb.available_backends()]
NAMES = (FMA, *COMPILED, HAND)

pytestmark = loops.needed


def contestant(name: str, shape: tuple[int, int, int], way: str, dtype: str) -> Contestant:
    n, n_in, n_out = shape
    flops = (2 if way == "forward" else 4) * n * n_in * n_out
    if name == FMA:
        return loops.fma_loop(flops, dtype)
    rng = np.random.default_rng(3)
    X = rng.standard_normal((n, n_in)).astype(dtype)
    W = (rng.standard_normal((n_in, n_out)) / np.sqrt(n_in)).astype(dtype)
    b, dY = rng.standard_normal(n_out).astype(dtype), rng.standard_normal((n, n_out)).astype(dtype)
    layer = Dense(X, W, b, "relu")
    run = {HAND: by_hand, "c": in_c, "numba": in_numba}[name](layer, dY, way)

    def check():
        Y = layer.forward().copy()
        layer.backward(dY)  # overwrites Y
        layer.Y[:] = Y
        for result in (layer.Y,) if way == "forward" else (layer.dX, layer.dW, layer.db):
            result[:] = np.nan
        run(1)
        found = layer.Y if way == "forward" else Y
        check_layer(X, W, b, dY, "relu", found, layer.dX, layer.dW, layer.db)
        layer.Y[:] = Y

    return Contestant(run, check, units=flops)


def by_hand(layer: Dense, dY: np.ndarray, way: str):
    def run(times):
        for _ in range(times):
            layer.forward() if way == "forward" else layer.backward(dY)

    return run


def in_c(layer: Dense, dY: np.ndarray, way: str):
    n, n_in = layer.X.shape
    sizes = (loops.is_double(dY), n, n_in, dY.shape[1], fb.activation("relu").kind)
    if way == "forward":
        arrays = (layer.X, layer.W, layer.b, layer.Y)
    else:
        arrays = (dY, layer.X, layer.W, layer.Y, layer.dX, layer.dW, layer.db)
    return loops.repeated(f"repeat_{way}", loops.ours(f"fb_dense_{way}"), *sizes, *arrays)


def in_numba(layer: Dense, dY: np.ndarray, way: str):
    from fastbp.backends.jit import activations
    from fastbp.backends.jit.layer import Act

    relu, W = fb.activation("relu"), layer.W
    act = Act(relu.kind, activations.addresses(relu, dY.dtype)[0], 0.0, 0)
    if way == "forward":
        return lambda times: numba_loops()[0](times, layer.X, W, layer.b, act, layer.Y)
    given, results = (dY, layer.X, W, layer.Y), (layer.dX, layer.dW, layer.db)
    spare = np.empty_like(dY), np.empty(W.size, W.dtype)
    return lambda times: numba_loops()[1](times, *given, act, *results, *spare)


@cache
def numba_loops():
    """Loops in Numba over the backend's functions; the backward pass overwrites a copy of dY."""
    import numba

    from fastbp.jitted.handles import call_dense_backward, call_dense_forward

    @numba.njit
    def forward(times, X, W, b, act, Y):
        for _ in range(times):
            call_dense_forward(X, W, b, True, act, Y, Y, False)

    @numba.njit
    def backward(times, dY, X, W, Y, act, dX, dW, db, d, transposed):
        for _ in range(times):
            d[:] = dY
            call_dense_backward(d, X, W, Y, act, dX, True, dW, db, True, transposed)

    return forward, backward


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ("forward", "backward"))
@pytest.mark.parametrize(
    "shape", QUICK_KERNELS if QUICK else KERNELS, ids=lambda s: "x".join(map(str, s))
)
def test_share_of_peak(measure, shape, way, dtype, name):
    makers = {other: partial(contestant, other, shape, way, dtype) for other in NAMES}
    row = f"{'×'.join(map(str, shape))} {way}"
    measure(makers, name, 0.15, suite="peak", row=row, dtype=dtype, unit="operation")
