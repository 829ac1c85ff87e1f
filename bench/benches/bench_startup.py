"""A first fit in a new process, to its end: what backends take to start.

Numba by itself, with one trivial function from its cache, is the floor of its backend. A contestant
is a process that is started anew; the compiled modules of Python lie ready, as in an installation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from measuring.race import FINE
from measuring.session import CLOCK, QUICK, hand_over
from report.runs import COLD, FLOOR, STARTUP

import fastbp as fb

if FINE:
    import resource

REPEATS = 3 if QUICK else 7
COLD_REPEATS = 1 if QUICK else 2

FITS = {
    "4-20-1 tanh, adam": """
net = fb.Network.mlp([4, 20, 1], "tanh", dtype=dtype)
fun = fb.fit(net, X, y, epochs=5, seed=0).fun
""",
    "4-20-20-20-20-3 tanh gelu silu mish, softmax_ce, adam, validation, patience, clip_norm": """
acts = ("tanh", "gelu", "silu", "mish")
net = fb.Network(4, *(fb.Dense(20, act) for act in acts), fb.Dense(3), dtype=dtype)
fun = fb.fit(net, X, labels, loss="softmax_ce", epochs=5, seed=0, validation=0.2, patience=3,
             clip_norm=1.0).fun
""",
    "4-20-1 tanh, lm": """
net = fb.Network.mlp([4, 20, 1], "tanh", dtype=dtype)
fun = fb.fit(net, X, y, method="lm", epochs=5, seed=0).fun
""",
    "4-20-1 tanh, adam and then lm": """
net = fb.Network.mlp([4, 20, 1], "tanh", dtype=dtype)
first = fb.fit(net, X, y, epochs=5, seed=0)
fun = fb.fit(net, X, y, method="lm", epochs=5, params=first.params).fun
""",
}
ROWS = [
    (fit, dtype)
    for fit in (list(FITS)[::2] if QUICK else FITS)
    for dtype in (("float64",) if QUICK else ("float32", "float64"))
]

START = """
import sys, numpy as np, fastbp as fb
dtype = sys.argv[1]
X = np.random.default_rng(0).standard_normal((200, 4))
y, labels = np.sin(X[:, 0]) + X[:, 1] * X[:, 2], (X[:, 0] > X[:, 1]) + 1 * (X[:, 2] > 0)
"""
# What was compiled, and not loaded: of the floor's function, of all functions of the backend.
END = """
misses = 0
if "numba" in sys.modules:
    from fastbp.backends.jit.compiling import versions
    dtypes = np.dtype("float32"), np.dtype("float64")
    there = {d for function, _ in versions(dtypes) for d in function.dispatchers.values()}
    misses = sum(bool(d.stats.cache_misses) for d in there)
print(fun, misses)
"""
TRIVIAL = """
import numba

@numba.njit(cache=True)
def double(x):
    return 2 * x
"""
FLOOR_CODE = """
from trivial import double
print(double(1), sum(double.stats.cache_misses.values()))
"""


class Processes:
    """New processes that share the folders of their caches; untimed, Numba's is the usual one."""

    def __init__(self, folder: Path, timed: bool):
        self._numba = {"NUMBA_CACHE_DIR": str(folder / "numba")} if timed else {}
        (folder / "trivial.py").write_text(TRIVIAL)
        path = os.pathsep.join([str(folder), str(Path(fb.__file__).parents[1])])
        left_out = ("FASTBP_", "NUMBA_", "PYTHON")
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
        self._environment |= {"PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(folder / "pyc")}

    def run(self, name: str, fit: str, dtype: str) -> tuple[float, float, int]:
        """Seconds of a contestant, what it computed, and how many functions it compiled."""
        code = FLOOR_CODE if name == FLOOR else START + FITS[fit] + END
        backend = "numba" if name in (FLOOR, COLD) else name
        with TemporaryDirectory() as empty:
            cache = {"NUMBA_CACHE_DIR": empty} if name == COLD else self._numba
            before = _seconds()
            done = subprocess.run(
                [sys.executable, "-c", code, dtype],
                env=self._environment | cache | {"FASTBP_BACKEND": backend},
                capture_output=True,
                text=True,
            )
            seconds = _seconds() - before
        assert done.returncode == 0, done.stderr
        value, misses = done.stdout.split()
        return seconds, float(value), int(misses)


def _seconds() -> float:
    """The processor time of the processes that have ended; where there is none the wall clock's."""
    if not FINE:
        return time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def processes(tmp_path_factory, request):
    timed = not request.config.getoption("--benchmark-disable")
    return Processes(tmp_path_factory.mktemp("startup"), timed)


@pytest.fixture(scope="module")
def measured():
    """What came of the rows measured so far."""
    return {}


NAMES = (FLOOR, *fb.available_backends(), COLD)


def turns(processes: Processes, fit: str, dtype: str, disabled: bool) -> dict[str, list[float]]:
    """The seconds of each contestant, which take turns; all compute the same."""
    if not disabled:
        for name in NAMES[:-1]:  # fills the caches
            processes.run(name, fit, dtype)
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    values = {}
    for turn in range(1 if disabled else REPEATS):
        for name in NAMES[: None if turn < COLD_REPEATS and not disabled else -1]:
            took, value, misses = processes.run(name, fit, dtype)
            assert disabled or (misses > 0) == (name == COLD)
            seconds[name].append(took)
            if name != FLOOR:
                values[name] = value
    reference = values["numpy"]
    assert all(abs(v - reference) < 1e-3 * abs(reference) for v in values.values()), values
    return seconds


@pytest.mark.skipif("numba" not in fb.available_backends(), reason="Numba is not installed")
@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("fit", "dtype"), ROWS)
def test_first_fit(benchmark, processes, measured, fit, dtype, name):
    if benchmark.disabled and name == COLD:
        pytest.skip("takes long, and untimed tells nothing")
    if (fit, dtype) not in measured:
        if benchmark.disabled and measured:
            pytest.skip("one row is enough, untimed")
        measured[fit, dtype] = turns(processes, fit, dtype, benchmark.disabled)
    benchmark.group = f"{STARTUP}: {fit}, {dtype}"
    place = {"suite": STARTUP, "row": fit, "dtype": dtype, "contestant": name}
    hand_over(benchmark, measured[fit, dtype][name], **place)
