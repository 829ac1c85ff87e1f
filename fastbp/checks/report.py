"""`gradient_report`: the gradient layer by layer, and how much of it low precision loses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .. import backends
from ..backends.contract import Problem
from ..common.arrays import FLOAT64
from ..maths.losses import Loss, row_loss
from ..networks.activations import Activation
from ..networks.dense import Dense
from ..networks.network import Network
from ..networks.objective import Objective

PRECISIONS = ("float16", "float32", "float64")
UNDERFLOWING = ("float16", "float32")

# A derivative counts as saturated below this share of the largest one for z in USUAL_Z, where most
# pre-activations of unit scale lie; over all numbers some functions have no largest one.
SMALL = 1e-3
USUAL_Z = np.linspace(-3, 3, 601)

# The shares from which on a report has a note: of vanished and underflowing entries, of saturated.
SOME, MOST = 0.05, 0.9


@dataclass(frozen=True, eq=False)
class LayerReport:
    """One layer in a `GradientReport`: L is the objective, Z = AW + b, A the layer's input.

    Attributes
    ----------
    layer : int
    activation : str
    weight_norm : float
        ‖W‖, as all norms here the root of the sum of squares; masked entries count as 0.
    gradient_norm : float
        ‖dL/dW‖, penalties included; masked and frozen entries are 0.
    ratio : float
        ‖dL/dW‖/‖W‖: times the rate, by how much a step of gradient descent changes W.
    dY_norm, dZ_norm : float
        ‖dL/dY‖ and ‖dL/dZ‖ over rows and units.
    z_mean, z_std : float
        Mean and standard deviation of Z over rows and units.
    saturated : float
        The share of derivatives |act'(Z)| below a thousandth of the largest for z in [-3, 3]. Such
        a unit learns a thousand times slower than it could; tanh gets there at |z| = 4.1, shortly
        before its derivative vanishes in float16. The inactive half of a relu counts too.
    vanished : dict of str to float
        For "float16", "float32" and "float64" the share of derivatives that are exactly 0 when they
        are computed in that precision from what a backward pass keeps: Y rounded to it where Y
        determines the derivative (1 - y² for tanh, y(1 - y) for sigmoid), else Z rounded to it.
    dead : tuple of int
        Units whose derivative is 0 for all rows, in the network's precision.
    nonzero : int
        Entries of dL/dW other than 0.
    underflow : dict of str to int
        For "float16" and "float32" how many of these are subnormal or 0 when rounded to it.
    notes : tuple of str
        What is unusual in these numbers, in words.
    """

    layer: int
    activation: str
    weight_norm: float
    gradient_norm: float
    ratio: float
    dY_norm: float
    dZ_norm: float
    z_mean: float
    z_std: float
    saturated: float
    vanished: dict[str, float]
    dead: tuple[int, ...]
    nonzero: int
    underflow: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False, repr=False)
class GradientReport:
    """The result of `gradient_report`; printed, two tables with a line per layer, and the notes.

    Attributes
    ----------
    value : float
        The objective.
    gradient_norm : float
        The norm of the whole gradient, biases included, which clipping by global norm limits.
    layers : tuple of LayerReport
    notes : tuple of str
        The layers' notes, each with its layer's number.
    """

    value: float
    gradient_norm: float
    layers: tuple[LayerReport, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"layer {row.layer}: {note}" for row in self.layers for note in row.notes)

    def __repr__(self) -> str:
        norms: list[tuple[str, ...]]
        norms = [("layer", "activation", "|W|", "|dW|", "|dW|/|W|", "|dY|", "|dZ|", "Z")]
        zeros = ("zero in float16", "float32", "float64")
        shares: list[tuple[str, ...]]
        shares = [("layer", "saturated", *zeros, "dead", "underflow in float16", "float32")]
        for row in self.layers:
            k = str(row.layer)
            sizes = (row.weight_norm, row.gradient_norm, row.ratio, row.dY_norm, row.dZ_norm)
            spread = f"{row.z_mean:.3g} ± {row.z_std:.3g}"
            norms.append((k, row.activation, *(f"{size:.3g}" for size in sizes), spread))
            vanished = (_percent(row.vanished[p]) for p in PRECISIONS)
            underflow = (f"{row.underflow[p]} of {row.nonzero}" for p in UNDERFLOWING)
            saturated, dead = _percent(row.saturated), str(len(row.dead))
            shares.append((k, saturated, *vanished, dead, *underflow))
        head = f"objective {self.value:.6g}, norm of its gradient {self.gradient_norm:.6g}"
        return "\n".join([head, *_aligned(norms), *_aligned(shares), *self.notes])


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.01 else f"{100 * share:.0f} %"


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def gradient_report(
    net: Network, params: Any, X: Any, y: Any, loss: str | Loss = "mse", **terms: Any
) -> GradientReport:
    """Look into a gradient: norms per layer, saturated and dead units, what low precision loses.

    Parameters
    ----------
    net : Network
    params : array_like (n_params,)
    X, y, loss, **terms
        As for `Network.objective`. All rows are held in memory as float64, layer by layer; some
        hundreds say as much as all.

    Returns
    -------
    GradientReport
        Computed in float64 also for a float32 network, from its parameters and data as they are.

    Raises
    ------
    ShapeError, TypeError, ValueError
        As `Network.objective`. NaN and infinities pass, and a note says where they are.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> net = fb.Network(1, fb.Dense(1, "tanh"))
    >>> x = np.array([[-10.0], [-5.0], [0.0], [1.0]])
    >>> report = fb.gradient_report(net, [1.0, 0.0], x, [0.0, 0.0, 1.0, 0.0])
    >>> report.layers[0].vanished
    {'float16': 0.5, 'float32': 0.25, 'float64': 0.0}
    >>> report.notes
    ('layer 0: 50 % of derivatives vanish in float16, 25 % in float32',)
    """
    objective = net.objective(X, y, loss, **terms).astype(FLOAT64)
    double = objective.net
    params = double.checked_params(net.checked_params(params))
    value, grad = objective.value_and_grad(params)
    chosen = backends.use_backend(terms.get("backend") or backends.get_backend())
    with chosen, np.errstate(all="ignore"):
        layers = [
            _layer_report(k, layer, dW, step, net.dtype.name)
            for k, (layer, (dW, _), step) in enumerate(
                zip(net.layers, double.unpack(grad), _passes(objective, params), strict=True)
            )
        ]
    return GradientReport(value, _norm(grad), tuple(layers))


class _Pass(NamedTuple):
    """The arrays of a layer in the forward and the backward pass; all but W are (n, n_out)."""

    W: np.ndarray  # (n_in, n_out)
    Z: np.ndarray
    Y: np.ndarray
    slope: np.ndarray  # act'(Z)
    dY: np.ndarray
    dZ: np.ndarray


def _passes(objective: Objective, params: np.ndarray) -> list[_Pass]:
    """A forward and a backward pass at `params` (n_params,), layer by layer."""
    net, problem = objective.net, objective.problem
    forward, Y = [], problem.X
    for layer, (W, b) in zip(net.layers, net.unpack(params), strict=True):
        Z = Y @ W if b is None else Y @ W + b
        Y = layer.act.f(Z)
        forward.append((W, Z, Y, layer.act.df(Z)))
    passes, dY = [], _loss_gradient(problem, Y)
    for W, Z, Y, slope in reversed(forward):
        dZ = dY * slope
        passes.append(_Pass(W, Z, Y, slope, dY, dZ))
        dY = dZ @ W.T
    return passes[::-1]


def _loss_gradient(problem: Problem, Y: np.ndarray) -> np.ndarray:
    """dL/dY (n, n_out)."""
    derivative = row_loss(problem.loss, problem.functions).derivative
    D = problem.scale * derivative(Y, problem.targets, problem.constant)
    return D if problem.weights is None else D * problem.weights[:, None]


def _layer_report(k: int, layer: Dense, dW: np.ndarray, step: _Pass, precision: str) -> LayerReport:
    """The report of layer k.

    Parameters
    ----------
    k : int
    layer : Dense
    dW : numpy.ndarray (n_in, n_out)
        The gradient of the objective, penalties included.
    step : _Pass
    precision : str
        The name of the network's dtype.
    """
    act = layer.act
    zero = {p: _slope_in(p, act, step) == 0 for p in PRECISIONS}
    report = LayerReport(
        layer=k,
        activation=repr(act).strip("'"),
        weight_norm=_norm(step.W),
        gradient_norm=_norm(dW),
        ratio=float(np.float64(_norm(dW)) / _norm(step.W)),
        dY_norm=_norm(step.dY),
        dZ_norm=_norm(step.dZ),
        z_mean=float(step.Z.mean()),
        z_std=float(step.Z.std()),
        saturated=float((np.abs(step.slope) < SMALL * np.abs(act.df(USUAL_Z)).max()).mean()),
        vanished={p: float(zero[p].mean()) for p in PRECISIONS},
        dead=tuple(np.flatnonzero(zero[precision].all(axis=0)).tolist()),
        nonzero=int(np.count_nonzero(dW)),
        underflow={p: int(_underflows(dW, p).sum()) for p in UNDERFLOWING},
        notes=(),
    )
    # Derivatives that are 0 by rounding alone, unlike the inactive half of a relu.
    lost = {p: float((zero[p] & (step.slope != 0)).mean()) for p in PRECISIONS}
    return replace(report, notes=tuple(_notes(report, layer, step.Z, lost)))


def _slope_in(precision: str, act: Activation, step: _Pass) -> np.ndarray:
    """act'(Z) as a backward pass in that precision computes it."""
    if act.formulas is None or act.formulas.df_from_y is None:
        return act.df(step.Z.astype(precision).astype(FLOAT64)).astype(precision)
    return np.asarray(act.formulas.df_from_y(step.Y.astype(precision), act.constant)).astype(
        precision
    )


def _underflows(dW: np.ndarray, precision: str) -> np.ndarray:
    """Where an entry is not 0, but subnormal or 0 in that precision."""
    return (dW != 0) & (np.abs(dW.astype(precision)) < np.finfo(precision).tiny)


def _norm(A: np.ndarray) -> float:
    """The root of the sum of squares, even where the squares overflow or underflow."""
    largest = float(np.abs(A).max(initial=0))
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.linalg.norm(A / largest))


def _notes(
    report: LayerReport, layer: Dense, Z: np.ndarray, lost: dict[str, float]
) -> Iterator[str]:
    """Notes on a layer; Z (n, n_out), `lost` the share of vanished derivatives per precision."""
    infinite = np.count_nonzero(~np.isfinite(Z))
    if infinite:
        yield f"{infinite} of {Z.size} pre-activations are not finite"
    if not np.isfinite(report.gradient_norm):
        yield "the gradient is not finite"
    elif report.gradient_norm == 0 and layer.trainable is not False:
        yield "the gradient is exactly 0"
    vanishing = [f"{_percent(report.vanished[p])} in {p}" for p in PRECISIONS if lost[p] >= SOME]
    if vanishing:
        yield ", ".join(vanishing).replace(" in ", " of derivatives vanish in ", 1)
    if report.saturated >= MOST:
        yield (f"{_percent(report.saturated)} of derivatives are below a thousandth of the largest")
    if report.dead:
        yield (
            f"{len(report.dead)} of {Z.shape[1]} units are dead: their derivative is 0 for all "
            f"{len(Z)} rows"
        )
    for p in UNDERFLOWING:
        if report.underflow[p] > SOME * report.nonzero:
            yield f"{_percent(report.underflow[p] / report.nonzero)} of dW underflows in {p}"
