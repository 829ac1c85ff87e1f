"""Figures of results, made without pyplot: no window opens and no global setting changes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

try:
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import (
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        PercentFormatter,
    )
except ImportError as error:
    raise ImportError(
        "plots need Matplotlib, which cannot be imported; install it with: "
        "pip install 'fastbp[demo]'"
    ) from error

from ..common.arrays import FLOAT64
from ..common.errors import ShapeError
from ..maths.losses import BCE
from ..networks.targets import prepare_target
from .summaries import step_noun
from .words import counted

# Okabe and Ito's colours, which colour-blind people tell apart as well.
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, YELLOW, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#000000",
)  # fmt: skip
COLORS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, YELLOW, BLACK)

MAX_POINTS = 5000  # in a scatter plot; more do not show more
MAX_MATRICES = 6  # confusion matrices, one per output; more outputs get a bar each
MAX_NUMBERED = 20  # classes whose confusion matrix has numbers


class _Figure(Figure):
    """A figure that notebooks show although pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def fit_result(res: Any, X: Any, y: Any, classes: Sequence[Any] | None = None) -> Figure:
    """A figure of the losses of the epochs, and of the outputs beside the targets.

    Parameters
    ----------
    res : FitResult
    X : array_like (n, n_in), n >= 1
    y : array_like or None
        As `fit` takes it.
    classes : sequence, optional
        The names of the classes, in the order of their labels.

    Returns
    -------
    matplotlib.figure.Figure
        Beside the losses, for values: predictions against targets, and residuals with their
        histogram; for classes the confusion matrix, for several outputs of two classes one each,
        or their accuracies if they are many; for pairs the differences of scores; for losses
        without targets the distribution of the outputs.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As `FitResult.score`.
    """
    loss, Y = res.loss_function, res.predict(X).astype(np.float64)
    n, n_out = Y.shape
    if n == 0:
        raise ShapeError(f"X has shape (0, {res.net.n_in}), expected at least one row")
    _, T = prepare_target(loss, y, n, n_out, FLOAT64)
    quality = _quality(res, X, y, n)
    if loss.paired:
        draw, panels = _pairs, 1
    elif loss.target == "none":
        draw, panels = _outputs, 1
    elif loss.target == "classes":
        draw, panels = partial(_classes, names=classes or range(n_out)), 1
    elif loss.target in ("probabilities", "signs"):
        labels = (-1, 1) if loss.target == "signs" else (0, 1)
        draw = partial(_two_classes, names=classes or labels)
        panels = 2 if 1 < n_out <= MAX_MATRICES else 1
    else:
        draw, panels = _values, 2
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)  # inches
    figure = _Figure(figsize=(4.6 * (1 + panels), 4.5), layout=layout)
    method = res.method.partition("(")[0]
    figure.suptitle(f"Network {res.net.sizes}, loss {loss!r}, {method}")
    sides: Any = figure.subfigures(1, 2, width_ratios=(1, panels))
    _losses(sides[0].subplots(), res)
    draw(sides[1], res, Y, T, quality)
    return figure


def _quality(res: Any, X: Any, y: Any, n: int) -> str:
    """The score on the n rows, as a title."""
    loss = res.loss_function
    rows = counted(n // 2, "pair") if loss.paired else counted(n, "row")
    if loss.target == "none" and not loss.paired:
        return f"Outputs for {rows}"
    if loss.paired or loss.target in ("classes", "probabilities", "signs"):
        return f"{res.score(X, y):.1%} of {rows} right"
    return f"R² {res.score(X, y):.4f} on {rows}" if n > 1 else rows


def multistart_result(ms: Any) -> Figure:
    """A figure of the objectives of many starts, lowest first, with a colour for each cluster.

    Parameters
    ----------
    ms : MultistartResult

    Returns
    -------
    matplotlib.figure.Figure
        Clusters whose parameters run away are rings; starts that failed are not shown.
    """
    figure = _Figure(figsize=(7, 4.5), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06))
    axes: Any = figure.subplots()
    failed = f", {ms.failed.sum()} failed" if ms.failed.any() else ""
    axes.set(xlabel="start, best first", ylabel="objective")
    axes.set_title(f"{counted(len(ms), 'start')} of {ms.method.partition('(')[0]}{failed}")
    values = ms.fun[~ms.failed]
    axes.plot(np.arange(1, len(values) + 1), values, color="0.8", lw=1, zorder=1)
    for k, cluster in enumerate(ms.clusters):
        members, named = cluster.members, k < len(COLORS) - 1  # the last one is for all others
        color = COLORS[k] if named else "0.5"
        label = f"{cluster.fun:.4g}: {counted(len(members), 'start')}"
        axes.plot(
            [place + 1 for place in members],
            values[members.start : members.stop],
            ls="",
            marker="o",
            ms=5,
            color=color,
            mfc="none" if cluster.runaway else color,
            label=label + ", runs away" * cluster.runaway if named else "_",
        )
    _scale(axes, values)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if len(values):
        axes.legend(frameon=False)
    return figure


def curve_result(fit: Any, level: float) -> Figure:
    """A figure of data and fitted curve, with the curve's confidence band, and of the residuals.

    Parameters
    ----------
    fit : CurveFit
    level : float
        The probability of the band.

    Returns
    -------
    matplotlib.figure.Figure
        Over x if that is one variable, else over the fitted values.
    """
    figure = _Figure(figsize=(7, 5.5), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06))
    upper: Any
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    x, label = fit.x, "x"
    fitted = fit.y + fit.residuals
    style = {"ls": "", "marker": "o", "ms": 4, "color": BLUE, "zorder": 2}
    if isinstance(x, np.ndarray) and x.shape == fit.y.shape:
        at, *curve = _band(fit, x, level)
        upper.plot(at, curve[0], color=VERMILION, label="fit", zorder=3)
        upper.fill_between(
            at, *curve[1:], color=VERMILION, alpha=0.25, lw=0, label=f"{level:.0%} confidence"
        )
    else:
        x, label = fitted, "fitted value"
        ends = _ends(fitted)
        upper.plot(ends, ends, color=VERMILION, lw=1, label="fit", zorder=3)
    rows = _thinned(np.arange(len(x)), MAX_POINTS)
    errors = fit.deviations_of_data
    if errors is None:
        upper.plot(x[rows], fit.y[rows], label="data", **style)
    else:
        upper.errorbar(x[rows], fit.y[rows], errors[rows], lw=1, label="data", **style)
    title = ", ".join(
        f"{name} = {value:.4g} ± {error:.2g}"
        for name, value, error in zip(fit.names, fit.params, fit.standard_errors, strict=True)
    )
    upper.set_title(title if len(title) <= 90 else f"R² {fit.r_squared:.6f}")
    upper.set(ylabel="y")
    upper.legend(frameon=False)
    lower.plot(x[rows], fit.residuals[rows], **style)
    lower.axhline(0, color="0.4", lw=1, zorder=3)
    lower.set(xlabel=label, ylabel="fit − data")
    return figure


def _band(fit: Any, x: np.ndarray, level: float) -> tuple[np.ndarray, ...]:
    """Where the curve is drawn over x (n,), and there the curve and the ends of its band."""
    grid = np.linspace(x.min(), x.max(), 400)
    try:
        band = fit.predict(grid, "confidence", level)
        if band[0].shape == grid.shape and np.isfinite(band[0]).all():
            return grid, *band
    except Exception:  # a function that reads other data, row by row, knows no grid
        pass
    order = np.argsort(x)
    return x[order], *(ends[order] for ends in fit.predict(None, "confidence", level))


# The losses.


def _losses(axes: Any, res: Any) -> None:
    """Draw the objective of each epoch, and mark the least one of the last curve."""
    curves = {"training": res.history["loss"]}
    if "val_loss" in res.history:
        curves["validation"] = res.history["val_loss"]
    noun = step_noun(res)
    label = "objective" if res.scale is None else "objective on scaled data"
    axes.set(xlabel=noun, ylabel=label, title="Objective")
    if not len(curves["training"]):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, f"no complete {noun}", ha="center", transform=axes.transAxes)
        return
    for (name, values), color in zip(curves.items(), (BLUE, VERMILION), strict=False):
        values = np.where(np.isfinite(values), values, np.nan)
        marker = "." if len(values) <= 30 else ""
        axes.plot(np.arange(1, len(values) + 1), values, color=color, marker=marker, label=name)
    _mark_least(axes, values, noun, color)
    _scale(axes, np.concatenate(list(curves.values())))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.legend(frameon=False)


def _mark_least(axes: Any, values: np.ndarray, noun: str, color: str) -> None:
    if np.isnan(values).all():
        return
    best = int(np.nanargmin(values))
    axes.plot(
        best + 1,
        values[best],
        "o",
        color=color,
        mfc="none",
        ms=9,
        label=f"least: {values[best]:.4g} in {noun} {best + 1}",
    )


def _scale(axes: Any, values: np.ndarray) -> None:
    """Set a logarithmic scale if the values are positive and span a decade or more."""
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0 or values.max() < 10 * values.min():
        return
    axes.set_yscale("log")
    if values.max() < 100 * values.min():
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


# Values.


def _values(panel: SubFigure, res: Any, Y: np.ndarray, T: np.ndarray, quality: str) -> None:
    """Draw predictions against targets, and residuals against predictions with a histogram.

    Y (n, n_out) are outputs, T (n, width) targets, `quality` the title; so in the functions below.
    """
    loss, width = res.loss_function, T.shape[1]
    fit, residuals, histogram = panel.subplots(1, 3, width_ratios=(4, 4, 1))
    histogram.sharey(residuals)
    with np.errstate(over="ignore", invalid="ignore"):
        P = np.exp(Y) if loss.target == "counts" else Y[:, :width]
        R, error = P - T, "predicted − true"
        unit, T, P = _comparable(T, P)
        if loss.target == "halves":
            R, error = R * np.exp(-Y[:, width:] / 2), "(predicted − true) / predicted deviation"
        elif unit:
            R, error = P - T, error + unit
    finite = np.isfinite(R).all(axis=1)
    rows = _thinned(np.flatnonzero(finite), MAX_POINTS // width)
    several = 1 < width <= len(COLORS)
    style = {
        "ls": "",
        "marker": "o",
        "mew": 0,
        "ms": 4,
        "alpha": 0.7 if rows.size * width < 500 else 0.4,
    }
    for j in range(width):
        style |= {"color": COLORS[j if several else 0], "label": f"output {j}"}
        fit.plot(T[rows, j], P[rows, j], **style)
        residuals.plot(P[rows, j], R[rows, j], **style)
    ends = _ends(np.concatenate([T[rows], P[rows]]))
    fit.plot(ends, ends, color="0.4", lw=1, zorder=3)
    fit.set(xlim=ends, ylim=ends, aspect="equal")
    fit.locator_params(nbins=6)
    fit.set(xlabel=f"true{unit}", ylabel=f"predicted{unit}", title=quality)
    residuals.axhline(0, color="0.4", lw=1, zorder=3)
    shown = "" if len(rows) == len(R) else f" of {len(rows):,} of the rows"
    residuals.set(xlabel=f"predicted{unit}", ylabel=error, title=f"Residuals{shown}")
    if several:
        fit.legend(frameon=False, markerscale=1.5)
        colors = COLORS[:width]
        histogram.hist(R[finite], bins=30, orientation="horizontal", stacked=True, color=colors)
    else:
        histogram.hist(R[finite].ravel(), bins=30, orientation="horizontal", color=BLUE)
    histogram.set(xticks=[])
    histogram.tick_params(labelleft=False)
    histogram.spines[["top", "right", "bottom"]].set_visible(False)


def _comparable(T: np.ndarray, P: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """Targets and predictions for axes that all columns share, and a word for their labels.

    Columns of T (n, width) that differ much in size, and those of P, are standardised.
    """
    spread = np.ptp(T, axis=0)
    if T.shape[1] == 1 or np.ptp(T) <= 10 * spread.min():
        return "", T, P
    mean, deviation = T.mean(axis=0), T.std(axis=0)
    deviation[spread == 0] = 1
    return " (standardised)", (T - mean) / deviation, (P - mean) / deviation


def _thinned(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, drawn with a fixed seed."""
    if len(rows) <= max(most, 1):
        return rows
    return np.random.default_rng(0).choice(rows, max(most, 1), replace=False)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Limits that leave a margin around these values."""
    if not values.size:
        return 0.0, 1.0
    least, most = float(values.min()), float(values.max())
    margin = 0.05 * (most - least) or 1.0
    return least - margin, most + margin


# Classes.


def _classes(
    panel: SubFigure, res: Any, Y: np.ndarray, T: np.ndarray, quality: str, names: Sequence[Any]
) -> None:
    labels = T if T.ndim == 1 else T.argmax(axis=1)
    axes = panel.subplots()
    _matrix(axes, _confusion(labels, Y.argmax(axis=1), Y.shape[1]), names)
    axes.set_title(quality)


def _two_classes(
    panel: SubFigure, res: Any, Y: np.ndarray, T: np.ndarray, quality: str, names: Sequence[Any]
) -> None:
    """Draw a confusion matrix for each output, or the accuracies of many outputs."""
    loss, width = res.loss_function, Y.shape[1]
    predicted, true = Y > (0.5 if loss.kind == BCE else 0.0), T > 0.5
    if width > MAX_MATRICES:
        _accuracies(panel.subplots(), predicted, true, quality)
        return
    columns = 2 if width == 4 else min(width, 3)
    grid = panel.subplots(-(-width // columns), columns, squeeze=False)
    for j, axes in enumerate(grid.flat):
        if j >= width:
            axes.set_axis_off()
            continue
        _matrix(axes, _confusion(true[:, j].astype(int), predicted[:, j].astype(int), 2), names)
        axes.label_outer()
        share = np.mean(true[:, j] == predicted[:, j])
        axes.set_title(f"output {j}: {share:.1%}" if width > 1 else quality)
    if width > 1:
        panel.suptitle(f"{quality} in all outputs", fontsize="medium")


def _confusion(true: np.ndarray, predicted: np.ndarray, k: int) -> np.ndarray:
    """Counts (k, k) of labels (n,), a row for each true one."""
    return np.bincount(true * k + predicted, minlength=k * k).reshape(k, k)


def _matrix(axes: Any, counts: np.ndarray, names: Sequence[Any]) -> None:
    """Draw counts (k, k), a row for each true class, coloured by their share of the row."""
    k = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    every = 1 if k <= MAX_NUMBERED else -(-k // 10)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(0, k, every), names[::every])
    axes.set_yticks(range(0, k, every), names[::every])
    if sum(len(str(name)) for name in names[::every]) > 30:  # else they overlap
        axes.tick_params("x", labelrotation=90)
    if k > MAX_NUMBERED:
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
        return
    for i, j in np.ndindex(k, k):
        if counts[i, j] or k <= 3:
            number = f"{counts[i, j]:,}" + (f"\n{shares[i, j]:.0%}" if k <= 10 else "")
            color = "white" if shares[i, j] > 0.5 else "black"
            size = 11 if k <= 3 else 8 if k <= 10 else 6
            axes.text(j, i, number, ha="center", va="center", color=color, fontsize=size)


def _accuracies(axes: Any, predicted: np.ndarray, true: np.ndarray, quality: str) -> None:
    """Draw the accuracy of each output, beside that of always predicting the commoner class.

    Both arrays are bool (n, n_out).
    """
    places, share = np.arange(true.shape[1]), true.mean(axis=0)
    axes.bar(places, (predicted == true).mean(axis=0), color=BLUE, label="network")
    axes.plot(
        places,
        np.maximum(share, 1 - share),
        "_",
        color=ORANGE,
        ms=10,
        mew=2,
        label="always the commoner class",
    )
    axes.set(xlabel="output", ylabel="right", ylim=(0, 1), title=f"{quality} in all outputs")
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.legend(loc="lower right", framealpha=0.95)


# Losses without targets.


def _pairs(panel: SubFigure, res: Any, Y: np.ndarray, T: np.ndarray, quality: str) -> None:
    """Draw a histogram of the differences of scores within the pairs."""
    axes = panel.subplots()
    margin = res.loss_function.constant
    _histogram(axes, Y[0::2, 0] - Y[1::2, 0], BLUE, "pairs")
    axes.axvline(0, color="0.4", lw=1)
    axes.axvline(margin, color=VERMILION, lw=1, ls="--", label=f"margin {margin:g}")
    axes.set(xlabel="score of the better one − score of the worse one", title=quality)
    axes.legend(frameon=False)


def _outputs(panel: SubFigure, res: Any, Y: np.ndarray, T: np.ndarray, quality: str) -> None:
    """Draw the means and the log-variances of "gaussian_kl", which is least where all are 0."""
    means, logs = panel.subplots(2, 1)
    for axes, values, name in ((means, 0, "means"), (logs, 1, "logarithms of variances")):
        _histogram(axes, np.hsplit(Y, 2)[values].ravel(), (BLUE, GREEN)[values], "outputs")
        axes.axvline(0, color="0.4", lw=1)
        axes.set(xlabel=name)
    means.set_title(quality)


def _histogram(axes: Any, values: np.ndarray, color: str, label: str) -> None:
    axes.hist(values[np.isfinite(values)], bins=40, color=color)
    axes.set(ylabel=label)
