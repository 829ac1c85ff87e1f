"""The plots of a saved run: ratios, shares of the FMA peak, growth with the rows, methods."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from report.runs import (
    CURVES,
    FMA,
    GROWTH,
    OURS,
    PEAK,
    SUITES,
    Run,
    describe,
    fma_peak,
    growth_curves,
    number,
    title,
)

# The plot of ratios begins here; what is less stands at the edge with its value.
LEFT_EDGE = 0.05
STYLES = {
    "c": ("o", "#1f5fa8"), "c avx2": ("v", "#6aa8e0"), "numba": ("D", "#e07b00"),
    "numpy": ("x", "#888888"), "jitted": ("^", "#2a9d4a"), "by hand": ("s", "#888888"),
}  # fmt: skip
RED = "#c03030"


def draw(run: Run, path: Path) -> list[Path]:
    """Draw all plots; the others stand beside the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = {path: ratios(run)} if run.raced() else {}
    if run.suite(PEAK):
        figures[path.with_stem(path.stem + "-peak")] = peak(run)
    if run.suite(GROWTH):
        figures[path.with_stem(path.stem + "-growth")] = growth(run)
    if run.suite(CURVES):
        figures[path.with_stem(path.stem + "-methods")] = methods(run)
    for place, figure in figures.items():
        figure.suptitle(describe(run)[0].replace("; threads", "\nthreads"), fontsize=8)
        figure.savefig(place, dpi=120)
        plt.close(figure)
    return list(figures)


def ratios(run: Run) -> Any:
    """Ratios per row, a panel for each suite and type."""
    suites = [suite for suite in SUITES if run.suite(suite)]
    dtypes = sorted({row.dtype for row in run.raced()})
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
            _suite(ax, run, suite, dtype, names)
            ax.set_yticks(range(len(names)), names if ax is line[0] else [""] * len(names))
    largest = max(r for row in run.raced() for name in OURS if (r := row.ratio(name)))
    axes[0, 0].set_xlim(LEFT_EDGE / 1.3, largest * 1.5)
    axes[0, -1].legend(loc="lower right", fontsize=8)
    figure.supxlabel("times as fast as the best peer (red: slower)", fontsize=9)
    return figure


def _suite(ax: Any, run: Run, suite: str, dtype: str, names: list[str]) -> None:
    rows = [row for row in run.suite(suite) if row.dtype == dtype]
    for name in (name for name in run.contestants() if name in OURS):
        points = [(r, names.index(row.name)) for row in rows if (r := row.ratio(name))]
        if points:
            _points(ax, name, points)
    ax.axvspan(LEFT_EDGE / 2, 1, color=RED, alpha=0.07, lw=0)
    ax.axvline(1, color=RED, lw=1)
    _logarithmic(ax)
    ax.set_ylim(len(names) - 0.4, -0.8)
    ax.grid(alpha=0.3)
    ax.set_title(f"{SUITES[suite].split(',')[0]}, {dtype}", fontsize=9)


def _points(ax: Any, name: str, points: list[tuple[float, int]]) -> None:
    """A contestant's ratios, those left of the edge at it; these and C's with their values."""
    marker, color = STYLES[name]
    places = [(max(ratio, LEFT_EDGE), y) for ratio, y in points]
    ax.plot(*zip(*places, strict=True), marker, color=color, label=title(name), ms=6)
    style = {"textcoords": "offset points", "fontsize": 7, "color": color}
    for (ratio, y), place in zip(points, places, strict=True):
        if ratio < LEFT_EDGE:
            ax.annotate(f"← {number(ratio)}", place, (5, -3), **style)
        elif name == "c":
            ax.annotate(number(ratio), (ratio, y), (0, 5), ha="center", **style)


def peak(run: Run) -> Any:
    """GFLOP/s over the operations of a call below the roof, a panel for each type."""
    dtypes = sorted({row.dtype for row in run.suite(PEAK)})
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=(5 * len(dtypes), 4.2), squeeze=False, layout="constrained"
    )
    for dtype, ax in zip(dtypes, axes[0], strict=True):
        rows = [row for row in run.suite(PEAK) if row.dtype == dtype]
        roof = fma_peak(run, dtype)
        ax.axhline(roof, color=RED, lw=1, label=f"FMA peak, {number(roof)}")
        for name in (name for name in run.contestants((PEAK,)) if name != FMA):
            for way, line in (("forward", "-"), ("backward", "--")):
                points = [
                    (prod(map(int, shape.split("×"))), 1e-9 / row.seconds[name])
                    for row in rows
                    for shape, its_way in [row.name.split(" ")]
                    if its_way == way
                ]
                marker, color = STYLES[name]
                label = f"{title(name)}, {way}"
                ax.plot(*zip(*points, strict=True), line, marker=marker, color=color, label=label)
        _logarithmic(ax)
        ax.set_ylim(0, 1.1 * roof)
        ax.set_xlabel("rows × n_in × n_out")
        ax.set_ylabel("GFLOP/s")
        ax.set_title(f"dense relu layer, {dtype}", fontsize=9)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    return figure


def growth(run: Run) -> Any:
    """Seconds of an epoch over the rows; a line of slope 1 is linear growth."""
    figure, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for row in run.suite(GROWTH):
        for order, curve in growth_curves(row).items():
            line = "-o" if order == "in order" else "--s"
            epochs = [1e-9 * n * ns for n, ns in curve.items()]
            ax.plot(list(curve), epochs, line, ms=4, label=f"{row.dtype}, {order}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("rows")
    ax.set_ylabel("seconds per epoch")
    ax.set_title(run.suite(GROWTH)[0].name, fontsize=9)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def methods(run: Run) -> Any:
    """The sum of squares over the time, a line for each of fit's methods."""
    figure, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for name, curve in run.curves.items():
        ax.plot(curve["seconds"], curve["sse"], label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("seconds")
    ax.set_ylabel("sum of squares")
    ax.set_title(run.suite(CURVES)[0].name, fontsize=9)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def _logarithmic(ax: Any) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
