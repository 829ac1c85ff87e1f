"""loops.c, compiled here: what the C library takes without Python's cost of each call."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import fastbp as fb
from measuring.race import Contestant

# Flags and bytes of a vector for each level; multiply and add stay apart where there is no FMA.
LEVELS = {
    "avx512": (["-mavx512f", "-mfma"], 64),
    "avx2": (["-mavx2", "-mfma"], 32),
    "baseline": ([], 16),
}
ACCUMULATORS = 12  # as in loops.c

LEVEL = (fb.show_config("dicts")["c"] or {}).get("instruction set")
COMPILER = shutil.which((os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0])

needed = pytest.mark.skipif(
    LEVEL not in LEVELS or COMPILER is None, reason="needs the C backend and a C compiler"
)


@cache
def library() -> ctypes.CDLL:
    """loops.c for the level in use."""
    here, (flags, width) = Path(__file__).resolve().parent, LEVELS[LEVEL]
    with TemporaryDirectory() as folder:
        output = Path(folder, "loops.so")
        options = ["-O2", "-shared", "-fPIC", f"-DBYTES={width}", *flags]
        include = f"-I{here.parents[1] / 'csrc'}"
        command = [COMPILER, *options, include, str(here / "loops.c"), "-o", str(output)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(output))


def ours(name: str) -> ctypes.c_void_p:
    """The address of a function of fastbp.h."""
    from fastbp.backends._c import ffi, lib

    return ctypes.c_void_p(int(ffi.cast("uintptr_t", ffi.addressof(lib, name))))


def converted(value: Any) -> Any:
    """An argument as C takes it: whole numbers as int64_t, arrays as addresses."""
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return ctypes.c_int64(value) if isinstance(value, int) else value


def is_double(array: np.ndarray) -> ctypes.c_int:
    """The first argument of most of these functions."""
    return ctypes.c_int(array.itemsize == 8)


def repeated(loop: str, *args: Any):
    """``run(times)`` that calls a loop of loops.c; it keeps the arrays."""
    function = getattr(library(), loop)

    def run(times):
        function(ctypes.c_int64(times), *map(converted, args))

    return run


def fma_loop(flops: int, dtype: str) -> Contestant:
    """So many operations, half of them multiplications: the most that the core can do."""
    width = LEVELS[LEVEL][1] // np.dtype(dtype).itemsize
    loop = getattr(library(), f"fma_{dtype}")
    loop.restype = {"float32": ctypes.c_float, "float64": ctypes.c_double}[dtype]

    def run(times):
        loop(ctypes.c_int64(times * flops // (2 * width * ACCUMULATORS)))

    def check():
        assert loop(ctypes.c_int64(1000)) == ACCUMULATORS  # every sum has reached 1

    return Contestant(run, check, units=flops)
