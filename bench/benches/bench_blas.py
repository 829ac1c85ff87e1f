"""Layers of few rows against BLAS, its matrix-vector code for one row: both called from C.

BLAS computes the products and no more; ours adds the bias, or its gradient. SciPy hands out the
functions of its OpenBLAS, of which NumPy has the like.
"""

from __future__ import annotations

import ctypes
from functools import partial

import numpy as np
import pytest
from measuring import loops
from measuring.checks import within
from measuring.race import Contestant
from measuring.session import QUICK
from workloads import DTYPES

BLAS = "BLAS"
NAMES = ("c", BLAS)
ROWS = (1, 2, 4, 8)
WIDTHS = (128,) if QUICK else (16, 48, 128)

pytest.importorskip("scipy")
pytestmark = loops.needed


def blas(name: str) -> ctypes.c_void_p:
    """The address of a function of SciPy's BLAS."""
    from scipy.linalg import cython_blas

    address, of = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_GetName
    of.restype, of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = cython_blas.__pyx_capi__[name]
    return ctypes.c_void_p(address(capsule, of(capsule)))


def contestant(name: str, n: int, width: int, way: str, dtype: str) -> Contestant:
    rng = np.random.default_rng(5)
    X, dY = (rng.standard_normal((n, width)).astype(dtype) for _ in range(2))
    W, b = rng.standard_normal((width, width)).astype(dtype), np.zeros(width, dtype)
    given = (X, W) if way == "forward" else (dY, X, W)
    found = [np.empty_like(X)] if way == "forward" else [np.empty_like(X), np.empty_like(W)]
    sizes = (n, width, width)
    if name == BLAS:
        kind = "d" if dtype == "float64" else "s"
        functions = blas(f"{kind}gemv"), blas(f"{kind}gemm")
        factors = np.ones(1, dtype), np.zeros(1, dtype)
        run = loops.repeated(f"repeat_blas_{way}", *functions, *sizes, *factors, *given, *found)
    else:
        bias = (b,) if way == "forward" else (X,)  # Y, of which a linear layer makes no use
        gradient = () if way == "forward" else (np.empty_like(b),)
        function = loops.ours(f"fb_dense_{way}")
        head = (function, loops.is_double(X), *sizes, 0)
        run = loops.repeated(f"repeat_{way}", *head, *given, *bias, *found, *gradient)

    def check():
        run(1)
        products = [(X, W)] if way == "forward" else [(dY, W.T), (X.T, dY)]
        for result, (A, B) in zip(found, products, strict=True):
            A, B = A.astype(np.float64), B.astype(np.float64)
            eps = (A.shape[1] + 8) * np.finfo(dtype).eps
            within(result, A @ B, eps * (np.abs(A) @ np.abs(B)))

    return Contestant(run, check)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ("forward", "backward"))
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n", ROWS)
def test_few_rows(measure, n, width, way, dtype, name):
    makers = {other: partial(contestant, other, n, width, way, dtype) for other in NAMES}
    row = f"{n}×{width}×{width} {way}"
    measure(makers, name, 0.1, suite="blas", row=row, dtype=dtype, unit="call")
