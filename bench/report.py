"""Tables and plots of a saved run: ``python bench/report.py bench/results/latest.json``.

Times are the least of all turns. A ratio is the best peer's time over the contestant's, both
measured in turns in the same run: above 1 fastbp is faster, and what is not is marked.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
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

# Nanoseconds of a number at AVX-512 on a core of these GFLOP/s; more is marked.
LIMIT_PEAK = {"float32": 181, "float64": 92}
LIMITS = {
    ("exp", "float32"): 0.25, ("tanh", "float32"): 0.36, ("sigmoid", "float32"): 0.36,
    ("exp", "float64"): 0.75, ("tanh", "float64"): 0.9, ("sigmoid", "float64"): 0.95,
}  # fmt: skip

# What a function of one's own may cost beside the built-in one.
USER_LIMIT = 1.5
# Seconds of a first fit: with Numba's cache beyond the floor, and without it; more is marked.
LIMIT_WARM, LIMIT_COLD = 0.35, 10.0

Table = list[list[str]]
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


def comparison(run: Run, suite: str, lost: str) -> Table:
    """The table of a suite, its heading first; `lost` formats a ratio below 1.

    It goes without the reference, which is there to be read; the plot has it.
    """
    names = [name for name in run.contestants((suite,)) if name != "numpy"]
    ours = [name for name in names if name in OURS]
    peers = [name for name in names if name not in OURS]
    best = "best peer" if len(peers) > 1 else title(peers[0])
    heading = ["", "dtype", *map(title, names), *(f"{best} / {title(name)}" for name in ours)]
    table = [heading + ["best peer"] * (len(peers) > 1)]
    for row in run.suite(suite):
        micro = [1e6 * row.seconds[n] if n in row.seconds else None for n in names]
        ratios = [row.ratio(name) for name in ours]
        texts = [lost.format(number(r)) if r is not None and r < 1 else number(r) for r in ratios]
        winner = [title(row.best_peer() or "-")] * (len(peers) > 1)
        table.append([row.name, row.dtype, *map(number, micro), *texts, *winner])
    return table


def peak_shares(run: Run) -> Table:
    """How much of the FMA peak the kernels reach."""
    names = [name for name in run.contestants((PEAK,)) if name != FMA]
    table = [["", "dtype", *(f"{title(name)}, % of peak" for name in names)]]
    for row in run.suite(PEAK):
        table.append([row.name, row.dtype, *(f"{100 * row.share(name):.0f}" for name in names)])
    return table


def fma_peak(run: Run, dtype: str) -> float:
    """GFLOP/s, the median of the groups: the clock rate is not the same in all."""
    return statistics.median(
        1e-9 / row.seconds[FMA] for row in run.suite(PEAK) if row.dtype == dtype
    )


def functions(run: Run, lost: str) -> Table:
    """The time of a number, and the limit for C."""
    names = [name for name in run.contestants((FUNCTIONS,)) if name not in (FMA, "c")]
    table = [["", "dtype", "C", *map(title, names), "limit"]]
    wide = run.machine["fastbp"]["c"]["instruction set"] == "avx512"
    for row in run.suite(FUNCTIONS):
        ns, peak = 1e9 * row.seconds["c"], 1e-9 / row.seconds[FMA]
        limit = LIMITS[row.name, row.dtype] * LIMIT_PEAK[row.dtype] / peak if wide else None
        found = lost.format(number(ns)) if limit and ns > limit else number(ns)
        others = (number(1e9 * row.seconds[name]) for name in names)
        table.append([row.name, row.dtype, found, *others, number(limit)])
    return table


def user_functions(run: Run, lost: str) -> Table:
    """Functions of one's own beside built-in ones; their times per number or step, and ratios."""
    table = [["own / built-in", "dtype"]]
    backends = ("c", "numba")
    for name in backends:
        table[0] += [f"{title(name)}, ns", f"{BUILT_IN}, ns", "ratio"]
    for row in run.suite(USER):
        cells = []
        for name in backends:
            own, other = row.seconds.get(name), row.seconds.get(f"{name}, {BUILT_IN}")
            if own is None or other is None:
                cells += ["-"] * 3
                continue
            ratio = number(own / other)
            marked = lost.format(ratio) if own > USER_LIMIT * other else ratio
            cells += [number(1e9 * own), number(1e9 * other), marked]
        table.append([row.name, row.dtype, *cells])
    return table


def two_at_once(run: Run) -> Table:
    """How much more is done in a time by two threads, and by two processes."""
    table = [["", "dtype", "one fit, ms", "two threads", "two processes", "threads / processes"]]
    for row in run.suite(THREADED):
        one, threads, processes = (row.seconds[name] for name in (ALONE, THREADS, PROCESSES))
        gains = 2 * one / threads, 2 * one / processes, processes / threads
        table.append([row.name, row.dtype, number(1e3 * one), *map(number, gains)])
    return table


def startup(run: Run, lost: str) -> Table:
    """How long a new process takes to the end of its first fit."""
    names = [name for name in ("c", "numpy", "numba", FLOOR) if name in run.contestants((STARTUP,))]
    beyond = f"Numba beyond it, limit {LIMIT_WARM:g}"
    table = [["", "dtype", *map(title, names), beyond, f"Numba cold, limit {LIMIT_COLD:g}"]]

    def against(limit: float, seconds: float) -> str:
        return lost.format(number(seconds)) if seconds > limit else number(seconds)

    for row in run.suite(STARTUP):
        more = row.seconds["numba"] - row.seconds[FLOOR]
        limited = against(LIMIT_WARM, more), against(LIMIT_COLD, row.seconds[COLD])
        table.append([row.name, row.dtype, *(number(row.seconds[n]) for n in names), *limited])
    return table


def growth_curves(row: Row) -> dict[str, dict[int, float]]:
    """Nanoseconds per row and epoch by the number of rows, in each order."""
    curves: dict[str, dict[int, float]] = {}
    for name, seconds in row.seconds.items():
        rows, order = name.split(" ", 1)
        curves.setdefault(order, {})[int(rows)] = 1e9 * seconds
    return curves


def growth(run: Run) -> Table:
    """The time of a row as their number grows."""
    table = [["rows", "dtype", "in order", "of the first", "shuffled", "of in order"]]
    for row in run.suite(GROWTH):
        curves = growth_curves(row)
        ordered, shuffled = curves["in order"], curves["shuffled"]
        first = ordered[min(ordered)]
        for n, ns in ordered.items():
            times = ns, ns / first, shuffled[n], shuffled[n] / ns
            table.append([f"{n:,}", row.dtype, *map(number, times)])
    return table


def methods(run: Run) -> Table:
    """When each method came to these sums of squares."""
    levels = list(next(iter(run.curves.values()))["reached"])
    table = [["", "dtype", *(f"SSE {level}" for level in levels)]]
    for row in run.suite(CURVES):
        for name in row.seconds:
            reached = run.curves[name]["reached"]
            table.append([name, row.dtype, *(number(1e3 * reached[level]) for level in levels)])
    return table


def tables(run: Run, lost: str) -> dict[str, Table]:
    """All tables by their headings."""
    raced = {suite: text for suite, text in SUITES.items() if run.suite(suite)}
    found = {text: comparison(run, suite, lost) for suite, text in raced.items()}
    found["Kernels without the call from Python, relu, of the FMA peak"] = peak_shares(run)
    if run.suite(FUNCTIONS):
        found["Functions of numbers in the cache, called from C, ns per number"] = functions(
            run, lost
        )
    found["Functions of one's own, ns per number or per step, and their ratio"] = user_functions(
        run, lost
    )
    found["Two fits at once, times as much as one after the other"] = two_at_once(run)
    found["A first fit in a new process, to its end, s"] = startup(run, lost)
    for row in run.suite(CURVES):
        found[f"Methods of fit on {row.name}, ms to a sum of squares"] = methods(run)
    for row in run.suite(GROWTH)[:1]:
        found[f"Time of a row in an epoch, {row.name}, ns"] = growth(run)
    return {heading: table for heading, table in found.items() if len(table) > 1}


def around(run: Run) -> list[str]:
    """How much longer a run takes than its bare steps, a line for each type."""
    lines = []
    for row in run.suite(LOOP):
        more = {n: t / row.seconds[BARE] - 1 for n, t in row.seconds.items() if n != BARE}
        told = ", ".join(f"{name} {share:+.1%}" for name, share in more.items())
        lines.append(f"Beside the bare steps of {row.name}, {row.dtype}: {told}")
    return lines


def misses(run: Run) -> list[str]:
    """Who did not get to the goal, a line if there is anyone."""
    told = [
        f"{title(name)} from {n} of {row.name}"
        for row in run.rows
        for name, n in row.missed.items()
    ]
    return [f"Starts from which the goal was not reached: {', '.join(told)}"] if told else []


def losses(run: Run) -> str:
    """How often each of ours loses against the best peer."""
    counts = []
    for name in (name for name in run.contestants() if name in OURS):
        ratios = [r for row in run.raced() if (r := row.ratio(name)) is not None]
        counts.append(f"{title(name)} {sum(r < 1 for r in ratios)} of {len(ratios)}")
    return f"Slower than the best peer (ratio below 1): {', '.join(counts)}"


def text(run: Run) -> str:
    """All tables, in columns."""
    lines = [*describe(run), ""]
    for heading, table in tables(run, "< {}").items():
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines.append(heading)
        for row in table:
            first = [cell.ljust(w) for cell, w in zip(row[:2], widths[:2], strict=True)]
            rest = [cell.rjust(w) for cell, w in zip(row[2:], widths[2:], strict=True)]
            lines.append("  ".join(first + rest))
        lines.append("")
    return "\n".join([*lines, *around(run), *misses(run), losses(run)])


def markdown(run: Run) -> str:
    """All tables, as a README takes them."""
    lines = []
    for heading, table in tables(run, "**{}**").items():
        lines += [f"{heading}:", "", "| " + " | ".join(table[0]) + " |"]
        lines.append("| --- | --- |" + " ---: |" * (len(table[0]) - 2))
        lines += ["| " + " | ".join(row) + " |" for row in table[1:]]
        lines.append("")
    told = (*describe(run), *around(run), *misses(run), losses(run))
    return "\n".join([*lines, *(f"- {line}" for line in told)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON of a run")
    parser.add_argument("--markdown", action="store_true", help="print the tables for a README")
    parser.add_argument("--plot", type=Path, help="where; by default beside the results, as .png")
    arguments = parser.parse_args()
    if not arguments.results.exists():
        print(f"{arguments.results} does not exist; make bench writes it", file=sys.stderr)
        return 2
    run = load(arguments.results)
    if arguments.markdown:
        print(markdown(run))
        return 0
    print(text(run))
    try:
        import plots
    except ImportError:
        print("No plots: Matplotlib is not installed; pip install matplotlib")
        return 0
    for path in plots.draw(run, arguments.plot or arguments.results.with_suffix(".png")):
        print(f"Plot: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
