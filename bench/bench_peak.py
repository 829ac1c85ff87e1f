"""The C kernels by themselves, forward and backward, beside the most that the core can multiply.

The kernels run in a loop in C (loops.c), compiled here, so that a small layer shows its arithmetic
and not Python's cost of a call. NumPy by hand is called from Python as ever.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sysconfig
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from bench_kernels import check_layer
from conftest import QUICK
from handwritten import Dense
from race import Contestant
from workloads import DTYPES, HAND, KERNELS, QUICK_KERNELS

import fastbp as fb

PEAK = "FMA peak"
NAMES = (PEAK, "c", HAND)
# Flags and bytes of a vector for each level; multiply and add stay apart where there is no FMA.
LEVELS = {
    "avx512": (["-mavx512f", "-mfma"], 64),
    "avx2": (["-mavx2", "-mfma"], 32),
    "baseline": ([], 16),
}
ACCUMULATORS = 12  # as in loops.c

LEVEL = (fb.show_config("dicts")["c"] or {}).get("instruction set")
COMPILER = shutil.which((os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0])

pytestmark = pytest.mark.skipif(
    LEVEL not in LEVELS or COMPILER is None, reason="needs the C backend and a C compiler"
)


@cache
def library() -> ctypes.CDLL:
    """loops.c for the level in use."""
    here, (flags, width) = Path(__file__).parent, LEVELS[LEVEL]
    with TemporaryDirectory() as folder:
        output = Path(folder, "loops.so")
        options = ["-O2", "-shared", "-fPIC", f"-DBYTES={width}", *flags]
        include = f"-I{here.parent / 'csrc'}"
        command = [COMPILER, *options, include, str(here / "loops.c"), "-o", str(output)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(output))


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def fma_loop(flops: int, dtype: str) -> Contestant:
    """As many multiply-adds as the kernel has."""
    width = LEVELS[LEVEL][1] // np.dtype(dtype).itemsize
    loop = getattr(library(), f"fma_{dtype}")
    loop.restype = {"float32": ctypes.c_float, "float64": ctypes.c_double}[dtype]

    def run(times):
        loop(ctypes.c_int64(times * flops // (2 * width * ACCUMULATORS)))

    def check():
        assert loop(ctypes.c_int64(1000)) == ACCUMULATORS  # every sum has reached 1

    return Contestant(run, check, units=flops)


def contestant(name: str, shape: tuple[int, int, int], way: str, dtype: str) -> Contestant:
    n, n_in, n_out = shape
    flops = (2 if way == "forward" else 4) * n * n_in * n_out
    if name == PEAK:
        return fma_loop(flops, dtype)
    rng = np.random.default_rng(3)
    X = rng.standard_normal((n, n_in)).astype(dtype)
    W = (rng.standard_normal((n_in, n_out)) / np.sqrt(n_in)).astype(dtype)
    b, dY = rng.standard_normal(n_out).astype(dtype), rng.standard_normal((n, n_out)).astype(dtype)
    layer = Dense(X, W, b, "relu")
    run = by_hand(layer, dY, way) if name == HAND else in_c(layer, dY, way)

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
    from fastbp.backends._c import ffi, lib

    n, n_in = layer.X.shape
    sizes = (int(dY.itemsize == 8), *map(ctypes.c_int64, (n, n_in, dY.shape[1])))
    function = ffi.addressof(lib, f"fb_dense_{way}")
    function = ctypes.c_void_p(int(ffi.cast("uintptr_t", function)))
    if way == "forward":
        arrays = (layer.X, layer.W, layer.b, layer.Y)
    else:
        arrays = (dY, layer.X, layer.W, layer.Y, layer.dX, layer.dW, layer.db)
    kind = ctypes.c_int64(fb.activation("relu").kind)
    given = (function, *sizes, kind, *map(address, arrays))
    repeat = getattr(library(), f"repeat_{way}")
    return lambda times: repeat(ctypes.c_int64(times), *given)


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
