"""Fixtures: every backend that can run here, both types, seeded random numbers.

FASTBP_BACKEND narrows the backends to one, FASTBP_MAX_ISA caps the C library's instruction set (it
is read when the library is loaded): so the tests marked `backend` are run once for each.
"""

from __future__ import annotations

import os
import signal

# Threads of BLAS that wait for each other on a busy machine make NumPy and SciPy a hundred times
# slower; the variables are read when NumPy is loaded.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import hypothesis
import numpy as np
import pytest

import fastbp as fb
from fastbp import backends

hypothesis.settings.register_profile(
    "fastbp",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,  # ours do not change between examples
        hypothesis.HealthCheck.too_slow,  # Numba compiles inside the first ones
    ],
)
hypothesis.settings.register_profile(
    "explore", hypothesis.settings.get_profile("fastbp"), derandomize=False, max_examples=2000
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fastbp"))


def _backends():
    chosen = os.environ.get("FASTBP_BACKEND")
    if chosen:
        return [chosen]  # missing is then an error
    return [
        pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=reason or ""))
        for name in ("c", "numba", "numpy")
        for reason in [backends.why_missing(name)]
    ]


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Ctrl-C interrupts, as it does by default; the workers of pytest-xdist ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=_backends())
def backend(request):
    """The name of a backend, which is in use during the test."""
    with fb.use_backend(request.param):
        yield request.param


@pytest.fixture
def module(backend):
    """The module of the backend in use."""
    return backends.load(backend)


@pytest.fixture
def compiled(backend, module):
    """The same, where it is to be compared with the reference or runs threads of its own."""
    if backend == "numpy":
        pytest.skip("this is the reference itself, which knows one thread")
    return module


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)
