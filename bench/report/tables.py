"""Tables and plots of a saved run: ``python bench report bench/results/latest.json``.

Times are the least of all turns. A ratio is the best peer's time over the contestant's, both
measured in turns in the same run: above 1 fastbp is faster, and what is not is marked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from report.runs import (
    ALONE,
    BARE,
    BUILT_IN,
    COLD,
    CURVES,
    FLOOR,
    FMA,
    FUNCTIONS,
    GROWTH,
    LOOP,
    OURS,
    PEAK,
    PROCESSES,
    STARTUP,
    SUITES,
    THREADED,
    THREADS,
    USER,
    Run,
    describe,
    growth_curves,
    load,
    number,
    title,
)

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
        from report import plots
    except ImportError:
        print("No plots: Matplotlib is not installed; pip install matplotlib")
        return 0
    for path in plots.draw(run, arguments.plot or arguments.results.with_suffix(".png")):
        print(f"Plot: {path}")
    return 0
