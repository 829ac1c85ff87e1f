"""Table and plot of a saved run: ``python bench/report.py bench/results/latest.json``.

Times are the least of all turns. A ratio is hand-written NumPy's time over the contestant's, both
measured in turns in the same run: above 1 fastbp is faster, and what is not is marked.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HAND = "by hand"  # as in workloads.py, which this file does without
TITLES = {"c": "C", "numba": "Numba", "numpy": "reference", HAND: "NumPy by hand"}
SUITES = {
    "training": "Training steps within one call of fit, µs per step",
    "kernels": "dense_forward + dense_backward (rows × n_in × n_out), µs per pair",
    "calls": "Calls on a network, µs per call",
}

# What is compared with the backend's bare steps instead, see bench_loop.py.
LOOP, BARE = "loop", "bare steps"

# The plot begins at this ratio; what is less stands at the edge with its value.
LEFT_EDGE = 0.05
STYLES = {"c": ("o", "#1f5fa8"), "numba": ("D", "#e07b00"), "numpy": ("x", "#888888")}


@dataclass
class Row:
    """A group: the least seconds of each contestant."""

    suite: str
    name: str
    dtype: str
    seconds: dict[str, float] = field(default_factory=dict)

    def ratio(self, contestant: str) -> float | None:
        """Hand-written NumPy's time over the contestant's."""
        if HAND in self.seconds and contestant in self.seconds:
            return self.seconds[HAND] / self.seconds[contestant]
        return None


@dataclass
class Run:
    """A saved run."""

    machine: dict[str, Any]
    rows: list[Row]
    contestants: list[str]
    warmup: dict[str, float]
    loop: list[Row] = field(default_factory=list)

    def suite(self, suite: str) -> list[Row]:
        return [row for row in self.rows if row.suite == suite]


def load(path: str | Path) -> Run:
    """Read what pytest-benchmark saved."""
    saved = json.loads(Path(path).read_text())
    rows: dict[tuple[str, str, str], Row] = {}
    warmup: dict[str, float] = {}
    for item in saved["benchmarks"]:
        info = item["extra_info"]
        key = info["suite"], info["row"], info["dtype"]
        row = rows.setdefault(key, Row(*key))
        row.seconds[info["contestant"]] = item["stats"]["min"]
        if info["suite"] == LOOP:
            continue
        name = info["contestant"]
        warmup[name] = warmup.get(name, 0.0) + info["warmup_s"]
    known = [name for name in TITLES if name in warmup]
    others = [name for name in warmup if name not in TITLES]
    loop = [row for row in rows.values() if row.suite == LOOP]
    raced = [row for row in rows.values() if row.suite != LOOP]
    return Run(saved["machine_info"], raced, known + others, warmup, loop)


def describe(run: Run) -> list[str]:
    """What the figures depend on, a line each."""
    cpu = run.machine.get("cpu", {}).get("brand_raw") or run.machine.get("machine", "unknown")
    ours = run.machine["fastbp"]
    versions = ", ".join(f"{name} {version}" for name, version in ours["versions"].items())
    if ours["c"]:
        c = f"C backend: {ours['c']['instruction set']}, {ours['c']['compiler']}"
    else:
        c = "C backend: not available"
    warmup = ", ".join(f"{title(n)} {run.warmup[n]:.1f}" for n in run.contestants if n != HAND)
    return [
        f"Processor: {cpu}, one core; {c}; threads: {ours['threads']}; clock: {ours['clock']}",
        f"Versions: {versions}; NumPy's BLAS: {ours['blas']}",
        f"First calls of all groups (compiled, or loaded from a cache) in s, not counted: {warmup}",
        *(["Quick run: few workloads, little time for each."] if ours["quick"] else []),
    ]


def title(contestant: str) -> str:
    return TITLES.get(contestant, contestant)


def number(value: float | None) -> str:
    """Three digits, as many as a timing is good for."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 0.1 else f"{value:.{1 if value >= 10 else 2}f}"


def cells(run: Run, suite: str, lost: str, without: tuple[str, ...] = ()) -> list[list[str]]:
    """The table of a suite, its heading first; `lost` formats a ratio below 1."""
    others = [name for name in run.contestants if name not in (HAND, *without)]
    heading = ["", "dtype", title(HAND), *map(title, others)]
    heading += [f"hand / {title(name)}" for name in others]
    table = [heading]
    for row in run.suite(suite):
        micro = [1e6 * row.seconds[n] if n in row.seconds else None for n in (HAND, *others)]
        ratios = [row.ratio(name) for name in others]
        texts = [lost.format(number(r)) if r is not None and r < 1 else number(r) for r in ratios]
        table.append([row.name, row.dtype, *map(number, micro), *texts])
    return table


def text(run: Run) -> str:
    """All tables, in columns."""
    lines = [*describe(run), ""]
    for suite, heading in SUITES.items():
        if not run.suite(suite):
            continue
        table = cells(run, suite, "< {}")
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += [heading]
        for row in table:
            first = [cell.ljust(w) for cell, w in zip(row[:2], widths[:2], strict=True)]
            rest = [cell.rjust(w) for cell, w in zip(row[2:], widths[2:], strict=True)]
            lines.append("  ".join(first + rest))
        lines.append("")
    return "\n".join([*lines, *around(run), losses(run)])


def markdown(run: Run) -> str:
    """All tables, as a README takes them: without the reference, which is there to be read."""
    lines = []
    for suite, heading in SUITES.items():
        if not run.suite(suite):
            continue
        table = cells(run, suite, "**{}**", without=("numpy",))
        lines += [f"{heading}:", "", "| " + " | ".join(table[0]) + " |"]
        lines.append("| --- | --- |" + " ---: |" * (len(table[0]) - 2))
        lines += ["| " + " | ".join(row) + " |" for row in table[1:]]
        lines.append("")
    lines += [f"- {line}" for line in describe(run)]
    return "\n".join([*lines, *(f"- {line}" for line in (*around(run), losses(run)))])


def around(run: Run) -> list[str]:
    """How much longer a run takes than its bare steps, a line for each type."""
    lines = []
    for row in run.loop:
        more = {n: t / row.seconds[BARE] - 1 for n, t in row.seconds.items() if n != BARE}
        told = ", ".join(f"{name} {share:+.1%}" for name, share in more.items())
        lines.append(f"Beside the bare steps of {row.name}, {row.dtype}: {told}")
    return lines


def losses(run: Run) -> str:
    """How often each contestant loses against hand-written NumPy."""
    counts = []
    for name in run.contestants:
        ratios = [r for r in (row.ratio(name) for row in run.rows) if r is not None]
        if name != HAND:
            counts.append(f"{title(name)} {sum(r < 1 for r in ratios)} of {len(ratios)}")
    return f"Slower than NumPy by hand (ratio below 1): {', '.join(counts)}"


def plot(run: Run, path: Path) -> None:
    """Ratios per row, a panel for each suite and type."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    suites = [suite for suite in SUITES if run.suite(suite)]
    dtypes = sorted({row.dtype for row in run.rows})
    heights = [len({row.name for row in run.suite(suite)}) for suite in suites]
    figure, axes = plt.subplots(
        len(suites),
        len(dtypes),
        figsize=(6 + 4 * len(dtypes), 1.5 + 0.8 * len(suites) + 0.3 * sum(heights)),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for suite, line in zip(suites, axes, strict=True):
        names = list(dict.fromkeys(row.name for row in run.suite(suite)))
        for dtype, ax in zip(dtypes, line, strict=True):
            rows = [row for row in run.suite(suite) if row.dtype == dtype]
            for name in run.contestants:
                points = [(r, names.index(row.name)) for row in rows if (r := row.ratio(name))]
                if name != HAND and points:
                    _points(ax, name, points)
            ax.axvspan(LEFT_EDGE / 2, 1, color="#c03030", alpha=0.07, lw=0)
            ax.axvline(1, color="#c03030", lw=1)
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_ylim(len(names) - 0.4, -0.8)
            ax.set_yticks(range(len(names)), names if ax is line[0] else [""] * len(names))
            ax.grid(alpha=0.3)
            ax.set_title(f"{SUITES[suite].split(',')[0]}, {dtype}", fontsize=9)
    largest = max(r for row in run.rows for n in run.contestants if (r := row.ratio(n)))
    axes[0, 0].set_xlim(LEFT_EDGE / 1.3, largest * 1.5)
    axes[0, -1].legend(loc="lower right", fontsize=8)
    figure.supxlabel("times as fast as hand-written NumPy (red: slower)", fontsize=9)
    figure.suptitle(describe(run)[0].replace("; threads", "\nthreads"), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _points(ax: Any, name: str, points: list[tuple[float, int]]) -> None:
    """A contestant's ratios, those left of the edge at it; these and C's with their values."""
    marker, color = STYLES.get(name, ("s", None))
    places = [(max(ratio, LEFT_EDGE), y) for ratio, y in points]
    (drawn,) = ax.plot(*zip(*places, strict=True), marker, color=color, label=title(name), ms=6)
    style = {"textcoords": "offset points", "fontsize": 7, "color": drawn.get_color()}
    for (ratio, y), place in zip(points, places, strict=True):
        if ratio < LEFT_EDGE:
            ax.annotate(f"← {number(ratio)}", place, (5, -3), **style)
        elif name == "c":
            ax.annotate(number(ratio), (ratio, y), (0, 5), ha="center", **style)


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
    path = arguments.plot or arguments.results.with_suffix(".png")
    try:
        plot(run, path)
    except ImportError:
        print("No plot: Matplotlib is not installed; pip install matplotlib")
    else:
        print(f"Plot: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
