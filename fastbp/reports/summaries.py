"""The text of `FitResult.summary`, `MultistartResult.summary` and `CurveFit.summary`."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from ..training.optimizers import METHODS
from .words import Status, counted

WIDTH = 80
QUICK = 1e9  # multiplications that a summary may take: about a tenth of a second
N_NOISES = 4  # outputs whose noise is listed


def fit_summary(res: Any) -> str:
    """A fit as aligned lines of at most 80 columns.

    Parameters
    ----------
    res : FitResult

    Returns
    -------
    str
        A line for each of the network, the method, the loss, the work done, the end, the objective
        and its gradient, for least squares the noise of the outputs and what speaks against
        standard errors, the validation if there was one, the time, the seed and the backend. Long
        lines are wrapped.
    """
    rows = {
        "network": _network(res.net),
        "method": res.method,
        "loss": f"{res.loss_function!r} over {counted(res.n_rows, 'row')}{_scaled(res)}",
        "done": _work(res),
        "ended": f"{Status(res.status).word}: {res.message}",
        "objective": f"{res.fun:.6g}",
        "largest |gradient|": _steepest(res.grad, res.net),
        **_uncertainty(res),
        "validation": _validation(res),
        "time": _time(res.elapsed),
        "seed": str(res.seed),
        "backend": res.backend,
    }
    return _aligned(rows)


def multistart_summary(ms: Any) -> str:
    """Many starts as aligned lines of at most 80 columns, and a table of the clusters.

    Parameters
    ----------
    ms : MultistartResult

    Returns
    -------
    str
        A line for each of the method, the work done, the spread of the objectives, the first of the
        starts that failed, the time and the seed; a row for each of at most 10 clusters.
    """
    good, failed = ms.fun[~ms.failed], np.flatnonzero(ms.failed)
    rows = {"method": ms.method, "starts": ms.message, "objective": "all failed"}
    if len(good):
        rows["objective"] = (
            f"least {good[0]:.6g}, median {np.median(good):.6g}, largest {good[-1]:.6g}"
        )
    if len(failed):
        k = failed[ms.order[failed].argmin()]
        rows["failed"] = f"{len(failed)}, first start {ms.order[k]}: {ms.messages[k]}"
    rows["time"] = _time(ms.elapsed)
    rows["seed"] = "" if ms.seed is None else str(ms.seed)
    return "\n".join([_aligned(rows), *_clusters(ms.clusters)])


def curve_summary(fit: Any) -> str:
    """A fitted curve as aligned lines of at most 80 columns, and a table of the parameters.

    Parameters
    ----------
    fit : CurveFit

    Returns
    -------
    str
        A line for each of the function, the method, the work done, the end, the sum of squares, R²,
        the size of the residuals and each note; a row for each parameter, with its standard error
        and its 95 % confidence interval.
    """
    derivatives = {"exact": "exact derivatives", "jac": "the caller's derivatives"}
    by = derivatives.get(fit.derivatives, f"derivatives by differences ({fit.derivatives})")
    name = getattr(fit.function, "__name__", type(fit.function).__name__)
    rows = {
        "function": f"{name.strip('<>')}(x, {', '.join(fit.names)}), {counted(len(fit.y), 'row')}",
        "method": f"{fit.method}, {by}",
        "loss": "" if fit.loss == "linear" else fit.loss,
        "done": f"{counted(fit.nit, 'step')}, {counted(fit.nfev, 'evaluation')}",
        "ended": ("success: " if fit.success else "") + fit.end_message,
        "sum of squares": f"{2 * fit.cost:.6g}" + ("" if fit.loss == "linear" else ", robust"),
        "R²": f"{fit.r_squared:.6f}",
        **_residuals(fit),
        "notes": "; ".join(fit.notes),
    }
    return "\n".join([_aligned(rows), "", *_parameters(fit)])


def _residuals(fit: Any) -> dict[str, str]:
    """The size of the residuals, in the unit of y or of the given deviations."""
    if fit.dof <= 0 or fit.loss != "linear":
        return {}
    freedom = counted(fit.dof, "degree") + " of freedom"
    variance = 2 * fit.cost / fit.dof
    if fit.sigma is None:
        return {"residuals": f"standard deviation {variance**0.5:.4g}, {freedom}"}
    return {"reduced χ²": f"{variance:.6g}, {freedom}"}


def _parameters(fit: Any) -> list[str]:
    """The lines of a table of the parameters."""
    width = max(9, *map(len, fit.names))
    lines = [f"{'parameter':<{width}}  {'value':>12}  {'std. error':>10}  95 % interval"]
    table = zip(fit.names, fit.params, fit.standard_errors, fit.interval(), strict=True)
    for name, value, error, (low, high) in table:
        lines.append(f"{name:<{width}}  {value:12.6g}  {error:10.3g}  {low:.6g} to {high:.6g}")
    return lines


def _clusters(clusters: Any) -> list[str]:
    """The lines of a table of the clusters, lowest objective first."""
    if not clusters:
        return []
    lines = ["", f"{'objective':>12}  starts  points"]
    for cluster in clusters[:10]:
        line = f"{cluster.fun:12.6g}  {len(cluster.members):6}  {cluster.n_points:6}"
        if cluster.runaway:
            line += f"  runs away: parameters {cluster.growth:.2g} times the starts'"
        lines.append(line)
    if len(clusters) > 10:
        lines.append(f"{'...':>12}  {counted(len(clusters) - 10, 'cluster')} more")
    return lines


def _aligned(rows: dict[str, str]) -> str:
    """Names and texts as two columns; long texts are wrapped, empty ones left out."""
    margin = max(map(len, rows)) + 2
    return "\n".join(
        textwrap.fill(
            text,
            WIDTH,
            initial_indent=name.ljust(margin),
            subsequent_indent=" " * margin,
            break_on_hyphens=False,
        )
        for name, text in rows.items()
        if text
    )


def step_noun(res: Any) -> str:
    """What an entry of the history belongs to: "epoch" of a minibatch method, else "iteration"."""
    batched = {type(method).__name__ for method in METHODS.values()}
    return "epoch" if res.method.partition("(")[0] in batched else "iteration"


def _network(net: Any) -> str:
    acts = ", ".join(repr(layer.act).strip("'") for layer in net.layers)
    text = f"{net.sizes} ({acts}), {net.dtype}, {counted(net.n_params, 'parameter')}"
    return text + (f", {net.n_free} of them free" if net.n_free != net.n_params else "")


def _scaled(res: Any) -> str:
    return "" if res.scale is None else f", scale={res.scale!r}"


def _work(res: Any) -> str:
    noun = step_noun(res)
    work = "step" if noun == "epoch" else "evaluation"
    return f"{counted(res.nit, noun)}, {counted(res.nfev, work)}"


def _steepest(grad: np.ndarray, net: Any) -> str:
    """The largest entry of the gradient (n_params,), and the layer that has it."""
    places = {}
    for k, (W, b) in enumerate(net.unpack(grad)):
        places[f"W of layer {k}"] = np.abs(W).max()
        if b is not None:
            places[f"b of layer {k}"] = np.abs(b).max()
    place = max(places, key=lambda name: places[name])
    return f"{places[place]:.3g} ({place})"


def _uncertainty(res: Any) -> dict[str, str]:
    """The noise, and what speaks against standard errors, if it is known or quick to compute."""
    if "uncertainty" not in vars(res):
        fitted = res.fitted
        if fitted is None or fitted.obstacle or fitted.work > QUICK:
            return {}
    uncertainty = res.uncertainty
    noise = ", ".join(f"{deviation:.4g}" for deviation in uncertainty.noise[:N_NOISES])
    more = ", ..." if len(uncertainty.noise) > N_NOISES else ""
    return {
        "noise": f"{noise}{more} (standard deviation; {uncertainty.dof:.6g} degrees of freedom, "
        f"{uncertainty.n_effective:.6g} effective parameters)",
        "standard errors": "; ".join(uncertainty.notes),
    }


def _validation(res: Any) -> str:
    values = res.history.get("val_loss", np.empty(0))
    if not len(values):
        return ""
    best, noun = int(np.argmin(np.where(np.isnan(values), np.inf, values))), step_noun(res)
    return f"best {values[best]:.6g} in {noun} {best + 1}, last {values[-1]:.6g}"


def _time(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
