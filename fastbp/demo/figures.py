"""The figures of the demo: one for each job, and one that compares the times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ..common.timing import BY_HAND
from .jobs import CAR_KM, Job

COLORS = {BY_HAND: "0.55", "numpy": "tab:blue", "numba": "tab:green", "c": "tab:red"}
MARKERS = {BY_HAND: "s", "numpy": "", "numba": "x", "c": "o"}
METHODS = {"gradient descent": "tab:purple", "fmincg": "tab:orange", "trf": "tab:green"}


def draw(done: dict[str, Job], folder: Path) -> list[Path]:
    """Write the figures of the jobs as PNG files; returns their paths."""
    written = []
    for name, figure in {
        "digits": _digits(done["digits"]),
        "diabetes": _diabetes(done["diabetes"]),
        "cars": _cars(done["cars"]),
        "speed": _speed(done),
    }.items():
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=110)
    return written


def _panels(title: str, count: int, width: float = 4.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width * count, 4.3), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(1, count)


def _digits(job: Job) -> Figure:
    figure, (losses, distances, confusion) = _panels(job.title, 3)
    _losses(losses, job, "epoch", "mean cross-entropy of the epoch")
    _distances(distances, job, "epoch")
    labels = job.details["labels"][next(iter(job.details["labels"]))]
    y = job.details["y_test"]
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (y, labels), 1)
    confusion.imshow(np.where(counts > 0, counts, np.nan), cmap="Blues", vmin=-5)
    for true, predicted in np.argwhere(counts):
        number = counts[true, predicted]
        color = "white" if number > counts.max() / 2 else "black"
        confusion.text(predicted, true, number, ha="center", va="center", color=color, fontsize=9)
    confusion.set(
        xticks=range(10),
        yticks=range(10),
        xlabel="predicted digit",
        ylabel="true digit",
        title=f"{len(y)} held-out rows: {np.mean(labels == y):.1%} right\n"
        f"({job.baseline[0]}: {job.baseline[1]:.1%})",
    )
    return figure


def _diabetes(job: Job) -> Figure:
    figure, (losses, distances, scatter) = _panels(job.title, 3)
    _losses(losses, job, "iteration", "objective (target of unit variance)")
    losses.set_yscale("linear")
    _distances(distances, job, "iteration")
    y, name = job.details["y_test"], next(iter(job.scores))
    prediction = job.details["predictions"][name]
    ends = [min(y.min(), prediction.min()) - 10, max(y.max(), prediction.max()) + 10]
    scatter.plot(ends, ends, color="0.6", lw=1, label="prediction = truth")
    scatter.plot(y, prediction, "o", ms=4, alpha=0.7, color=COLORS["c"], mew=0)
    scatter.set(
        xlim=ends,
        ylim=ends,
        aspect="equal",
        xlabel="true progression after a year (score)",
        ylabel="predicted progression (score)",
        title=f"{len(y)} held-out rows: R² {job.scores[name]:.3f}\n"
        f"({job.baseline[0]}: {job.baseline[1]:.3f})",
    )
    scatter.legend(loc="upper left", frameon=False)
    return figure


def _losses(axes: Any, job: Job, step: str, label: str) -> None:
    """Draw the losses of all runs; since the curves coincide, their markers are at other places."""
    names = sorted(job.runs, key=list(COLORS).index)
    for place, name in enumerate(names):
        losses = job.runs[name].losses
        every = max(1, len(losses) // 8)
        axes.plot(
            np.arange(1, len(losses) + 1),
            losses,
            color=COLORS[name],
            lw=5 if name == "numpy" else 1,
            alpha=0.35 if name == "numpy" else 1,
            marker=MARKERS[name],
            markevery=(place * every // len(names), every),
            mfc="none",
            label="numpy (reference)" if name == "numpy" else name,
        )
    axes.set(xlabel=step, ylabel=label, yscale="log", title="The same losses on every backend")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False)


def _distances(axes: Any, job: Job, step: str) -> None:
    """Draw the relative differences of the losses from the reference's, where they are not 0."""
    reference = job.runs["numpy"].losses
    for name in sorted(set(job.runs) - {"numpy"}, key=list(COLORS).index):
        n = min(len(reference), len(job.runs[name].losses))
        distance = np.abs(job.runs[name].losses[:n] / reference[:n] - 1)
        shown = distance > 0
        axes.plot(
            np.arange(1, n + 1)[shown],
            distance[shown],
            color=COLORS[name],
            marker=MARKERS[name],
            mfc="none",
            ms=5,
            ls="",
            label=name,
        )
    axes.axhline(np.finfo(float).eps, color="0.4", lw=1, ls="--", label="2.2e-16: one rounding")
    axes.set(
        xlabel=step,
        ylabel="relative difference of the loss",
        yscale="log",
        ylim=(3e-17, 1e-8),
        title="What rounding makes of it",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="upper left")


def _cars(job: Job) -> Figure:
    figure, (data, convergence) = _panels("Prices of 24 used cars: a line by three methods", 2, 6)
    details = job.details
    ends = np.array([details["km"].min(), details["km"].max()])
    data.plot(details["km"] / 1000, details["price"], "o", color="0.3", ms=5, label="24 cars")
    for name, style in {"trf": "-", "gradient descent": "--"}.items():
        slope, intercept = details["real"][name]
        who = "trf and fmincg: least squares" if name == "trf" else name
        data.plot(ends / 1000, intercept + slope * ends, style, color=METHODS[name], label=who)
    price = details["prices"]["trf"]
    data.annotate(
        f"least squares says\n{price:,.0f} for {CAR_KM:,} km",
        (CAR_KM / 1000, price),
        xytext=(22, 5300),
        arrowprops={"arrowstyle": "->", "color": "0.3", "shrinkB": 4},
    )
    data.set(xlabel="kilometres driven (thousands)", ylabel="price", title="Data and lines")
    data.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    data.legend(frameon=False)

    floor = 1e-17  # below it the difference is rounding
    for name, color in METHODS.items():
        losses = details["losses"][name]
        if name == "gradient descent":  # its losses were met before each step
            losses = losses[1:]
        excess = np.maximum(losses - details["least_loss"], floor)
        steps = np.arange(1, len(excess) + 1)
        marker = "o" if len(excess) < 50 else ""
        convergence.plot(steps, excess, color=color, marker=marker, ms=5, label=name)
    convergence.axhline(floor, color="0.4", lw=1, ls="--", label="rounding")
    convergence.set(
        xscale="log",
        yscale="log",
        xlabel="step or iteration",
        ylabel="objective above its minimum",
        title="How fast they get there",
    )
    convergence.legend(frameon=False)
    return figure


def _speed(done: dict[str, Job]) -> Figure:
    figure, panels = _panels(
        "Time of one step or evaluation, beside NumPy by hand: shorter is better", len(done)
    )
    for axes, job in zip(panels, done.values(), strict=True):
        names = sorted(job.runs, key=list(COLORS).index)
        times = [job.microseconds(name) for name in names]
        axes.barh(names, times, color=[COLORS[name] for name in names])
        for place, (name, us) in enumerate(zip(names, times, strict=True)):
            ratio = "" if name == BY_HAND else f"  ({job.speedup(name):.1f}×)"
            axes.text(us, place, f" {us:.3g} µs{ratio}", va="center")
        axes.set(xlabel=f"µs per {job.unit}", title=job.title.partition(":")[0])
        axes.set_xlim(0, 1.45 * max(times))
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not panels[0]:
            axes.set_yticklabels([])
        else:
            axes.set_yticks(range(len(names)), [_speed_label(name) for name in names])
    return figure


def _speed_label(name: str) -> str:
    return {BY_HAND: "NumPy by hand", "numpy": "numpy\n(reference)"}.get(name, name)
