"""The elementary functions are as accurate as their docstrings say."""

from __future__ import annotations

import re

import mpmath
import numpy as np
import pytest
from oracles import truth

import fastbp as fb
from fastbp.maths.formulas import elementary

FUNCTIONS = {  # the truth, and the range for which the docstring states the error
    "exp": (mpmath.exp, (-np.inf, np.inf)),
    "expm1_below": (mpmath.expm1, (-np.inf, 1)),
    "expm1": (mpmath.expm1, (-np.inf, np.inf)),
    "tanh": (mpmath.tanh, (-np.inf, np.inf)),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), (-np.inf, np.inf)),
    "log1p_to_1": (mpmath.log1p, (-0.5, 1)),
    "log": (mpmath.log, (0, np.inf)),
    "sin": (mpmath.sin, (-np.inf, np.inf)),
    "cos": (mpmath.cos, (-np.inf, np.inf)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_as_stated(dtype, name):
    if "numba" not in fb.available_backends():
        pytest.skip("Numba is not installed")
    from numba import njit

    from fastbp.backends.jit.vectors import elementwise, pointer

    formula, (function, (low, high)) = getattr(elementary, name), FUNCTIONS[name]
    apply = elementwise(lambda out, x: (formula(x),), 2, 1)
    limit = float(re.search(r"to ([\d.]+) ULP", formula.__doc__)[1])

    @njit
    def of_array(x, out):
        apply(x.size, pointer(out), pointer(x))

    Z = truth.points(dtype)
    Z = Z[(low <= Z) & (Z <= high) & (abs(Z) >= np.finfo(dtype).tiny)]
    computed = np.empty_like(Z)
    of_array(Z, computed)
    with mpmath.workdps(truth.DIGITS):
        exact = [function(mpmath.mpf(float(z))) for z in Z]
        head = np.array([float(v) for v in exact])
        largest = float(np.finfo(dtype).max)
        head = np.where(abs(head) > largest, np.copysign(np.inf, head), head)
        tail = [float(v - h) if np.isfinite(h) else 0.0 for v, h in zip(exact, head, strict=True)]
    assert truth.ulps(computed, head, np.array(tail)).max() <= limit
