"""A saved run: what was measured, on which machine, and how its names and numbers are shown."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Every other contestant is a peer.
OURS = {
    "c": "C", "c avx2": "C at AVX2", "numba": "Numba", "numpy": "reference",
    "jitted": "fastbp.jitted",
}  # fmt: skip
TITLES = {**OURS, "by hand": "NumPy by hand"}
SUITES = {
    "training": "Training steps within one call, µs per step",
    "kernels": "dense_forward + dense_backward (rows × n_in × n_out), µs per pair",
    "calls": "Calls on a network, µs per call",
    "jitted": "Calls from a jitted loop, and the same ones from Python, µs per call",
    "fits": "Fits to the same sum of squares, median of the starts, µs per fit",
    "curve_fit": "Curves of NIST's problems with covariance, median of two starts, µs per fit",
    "squares": "Jacobian; JᵀJ, Jᵀr and rᵀr at once; µs per call",
    "blas": "Layers of few rows (rows × n_in × n_out), kernels called from C, µs per call",
}

# In the name of a fit's group. A contestant that missed the goal from a start took for ever there.
START = ", start "

# What is not compared with peers: see bench_loop.py, bench_peak.py and so on.
LOOP, BARE = "loop", "bare steps"
PEAK, FMA = "peak", "FMA peak"
GROWTH = "growth"
CURVES = "curves"
FUNCTIONS = "functions"
USER, BUILT_IN = "user", "built-in"
THREADED, ALONE, THREADS, PROCESSES = "threads", "one", "two threads", "two processes"
STARTUP, FLOOR, COLD = "startup", "import numba", "numba cold"

Key = tuple[str, str, str]  # suite, row, dtype
Curve = dict[str, Any]  # "seconds" and "sse" of a method, and seconds when "reached"


@dataclass
class Row:
    """A group: the least seconds of each contestant, of fits the median over the starts."""

    suite: str
    name: str
    dtype: str
    seconds: dict[str, float] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)

    def best_peer(self) -> str | None:
        """The fastest contestant that is not ours."""
        peers = [name for name in self.seconds if name not in OURS]
        return min(peers, key=self.seconds.__getitem__, default=None)

    def ratio(self, contestant: str) -> float | None:
        """The best peer's time over the contestant's."""
        peer = self.best_peer()
        if peer is None or contestant not in self.seconds:
            return None
        return self.seconds[peer] / self.seconds[contestant]

    def share(self, contestant: str) -> float:
        """Of the FMA peak."""
        return self.seconds[FMA] / self.seconds[contestant]


@dataclass
class Run:
    """A saved run."""

    machine: dict[str, Any]
    rows: list[Row]
    warmup: dict[str, float]
    curves: dict[str, Curve]

    def suite(self, suite: str) -> list[Row]:
        return [row for row in self.rows if row.suite == suite]

    def raced(self) -> list[Row]:
        """The rows with peers."""
        return [row for row in self.rows if row.suite in SUITES]

    def contestants(self, suites: tuple[str, ...] = tuple(SUITES)) -> list[str]:
        """Of these suites, ours first."""
        found = {name: None for row in self.rows if row.suite in suites for name in row.seconds}
        return sorted(found, key=lambda name: [*TITLES, *found].index(name))


def load(path: str | Path) -> Run:
    """Read what pytest-benchmark saved."""
    saved = json.loads(Path(path).read_text())
    times: dict[Key, dict[str, dict[str, float]]] = {}  # by contestant and start
    warmup: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    for item in saved["benchmarks"]:
        info = item["extra_info"]
        row, _, start = info["row"].partition(START)
        key, name = (info["suite"], row, info["dtype"]), info["contestant"]
        times.setdefault(key, {}).setdefault(name, {})[start] = item["stats"]["min"]
        if info["suite"] in SUITES:
            warmup[name] = warmup.get(name, 0.0) + info["warmup_s"]
        if info["suite"] == CURVES:
            curves[name] = info["curve"]
    return Run(saved["machine_info"], [_row(*of_row) for of_row in times.items()], warmup, curves)


def _row(key: Key, times: dict[str, dict[str, float]]) -> Row:
    starts = {start for of_one in times.values() for start in of_one}
    row = Row(*key)
    for name, reached in times.items():
        row.seconds[name] = statistics.median(reached.get(start, math.inf) for start in starts)
        if missed := len(starts) - len(reached):
            row.missed[name] = missed
    return row


def describe(run: Run) -> list[str]:
    """What the figures depend on, a line each."""
    cpu = run.machine.get("cpu", {}).get("brand_raw") or run.machine.get("machine", "unknown")
    ours = run.machine["fastbp"]
    c = ours["c"]
    c = f"{c['instruction set']}, {c['compiler']}" if c else "not available"
    dtypes = sorted({row.dtype for row in run.suite(PEAK)})
    peak = ", ".join(f"{dtype} {number(fma_peak(run, dtype))} GFLOP/s" for dtype in dtypes)
    warmup = ", ".join(f"{title(name)} {run.warmup[name]:.1f}" for name in run.contestants())
    missing = ", ".join(f"{name} (needs {need})" for name, need in ours["left out"].items())
    lines = {
        "Processor": f"{cpu}, one core; C backend: {c}; threads: {ours['threads']}; "
        f"clock: {ours['clock']}",
        "FMA peak": peak,
        "Versions": ", ".join(f"{name} {version}" for name, version in ours["versions"].items())
        + f"; NumPy's BLAS: {ours['blas']}",
        "First calls of all groups (compiled, or loaded from a cache) in s, not counted": warmup,
        "R1, R2, ... are drawn at random; drawn again with": f"FASTBP_BENCH_SEED={ours['seed']}",
        "Peers left out": missing,
        "Quick run": "few workloads, little time for each" if ours["quick"] else "",
    }
    return [f"{name}: {value}" for name, value in lines.items() if value]


def title(contestant: str) -> str:
    return TITLES.get(contestant, contestant)


def number(value: float | None) -> str:
    """Three digits, as many as a timing is good for."""
    if value is None or value == math.inf:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 0.1 else f"{value:.{1 if value >= 10 else 2}f}"


def fma_peak(run: Run, dtype: str) -> float:
    """GFLOP/s, the median of the groups: the clock rate is not the same in all."""
    return statistics.median(
        1e-9 / row.seconds[FMA] for row in run.suite(PEAK) if row.dtype == dtype
    )


def growth_curves(row: Row) -> dict[str, dict[int, float]]:
    """Nanoseconds per row and epoch by the number of rows, in each order."""
    curves: dict[str, dict[int, float]] = {}
    for name, seconds in row.seconds.items():
        rows, order = name.split(" ", 1)
        curves.setdefault(order, {})[int(rows)] = 1e9 * seconds
    return curves
