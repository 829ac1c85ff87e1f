"""The command `fastbp demo`: real data, the same results on every backend, and their times."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import backends as _backends
from ..common.errors import BackendError
from ..common.timing import BY_HAND, one_blas_thread, table_of

if TYPE_CHECKING:
    from rich.console import Console

    from .jobs import Job

# How far the final parameters and the losses of two backends may differ, relative to the largest
# parameter and to the loss. Each step rounds by about 1e-16, and later steps change that error: a
# contracting method reduces it, L-BFGS-B multiplies it by about 10 in 10 iterations.
AGREEMENT = 1e-8


def run(out: str | Path, chosen: tuple[str, ...] = (), quick: bool = False) -> dict[str, Any]:
    """Run the jobs, print tables, and write figures and ``demo.json`` into a folder.

    Parameters
    ----------
    out : str or Path
        The folder, which is made if it is missing.
    chosen : tuple of str, default ()
        The backends; by default all that can run here. The NumPy reference always runs, since the
        others are compared with it.
    quick : bool, default False
        Fewer epochs and fewer repetitions.

    Returns
    -------
    dict
        The content of ``demo.json``.

    Raises
    ------
    ModuleNotFoundError
        If scikit-learn or Matplotlib is missing.
    ValueError, BackendError
        For a backend that is unknown or cannot run here.
    OSError
        If the folder cannot be written to.
    """
    missing = [name for name in ("sklearn", "matplotlib") if not importlib.util.find_spec(name)]
    if missing:
        raise ModuleNotFoundError(
            f"the demo needs scikit-learn and Matplotlib, and {' and '.join(missing)} cannot be "
            f"imported; install them with: pip install 'fastbp[demo]'"
        )
    for name in chosen:
        _backends.load(name)
    names = tuple(n for n in _backends.available_backends() if n in (chosen or _backends.NAMES))
    names = (*(n for n in names if n != "numpy"), "numpy")
    folder = Path(out)
    _require_writable(folder)

    from rich.console import Console

    from . import figures, jobs

    console = Console(highlight=False)
    one_thread, threads = one_blas_thread()
    console.print(
        f"Times are the least of several runs taken in turns. {threads} A first call also loads "
        f"and, where Numba has nothing cached, compiles."
    )
    done: dict[str, Job] = {}
    with one_thread:
        for job in (jobs.digits, jobs.diabetes, jobs.cars):
            done[job.__name__] = job(names, quick)
            _print_job(console, job.__name__, done[job.__name__])
    written = [str(path) for path in figures.draw(done, folder)]
    report = _report(done, names, quick, threads)
    path = folder / "demo.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"\nWritten: {', '.join([*written, str(path)])}", soft_wrap=True)
    return report


def _require_writable(folder: Path) -> None:
    """Make the folder and write into it; OSError if that fails, before any work is done."""
    trial = folder / "demo.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_text("{}\n", encoding="utf-8")
    except OSError as error:
        raise OSError(
            f"cannot write into the folder {str(folder)!r} ({error.strerror}); name another with "
            f"--out"
        ) from error


def worst_difference(job: Job) -> float:
    """The largest relative difference of a row's parameters and losses from the reference's."""
    return max(max(job.differences(name)) for name in job.runs)


def check_agreement(report: dict[str, Any]) -> None:
    """Raise if a result of the demo is further from the reference than `AGREEMENT`.

    Raises
    ------
    BackendError
        The message names the job and the difference.
    """
    for name, job in report["jobs"].items():
        if not job["largest_difference"] <= AGREEMENT:
            raise BackendError(
                f"the backends disagree by {job['largest_difference']:.1e} on {name}, expected at "
                f"most {AGREEMENT:.0e}; this is a defect of fastbp or of its build: please report "
                f"it with the output of: fastbp info"
            )


# Printed tables.


def _print_job(console: Console, name: str, job: Job) -> None:
    table = table_of(
        *("", "first\ncall, s", "fit,\nms", f"µs per\n{job.unit}", "times as\nfast as\nby hand"),
        *("params\noff by", "losses\noff by", job.score_name),
    )
    for row in job.runs:
        parameters, losses = job.differences(row)
        table.add_row(
            row,
            f"{job.first[row]:.2f}",
            f"{1e3 * job.best[row]:.3g}",
            f"{job.microseconds(row):.3g}",
            f"{job.speedup(row):.1f}" if row != BY_HAND else "",
            f"{parameters:.0e}" if row != "numpy" else "0",
            f"{losses:.0e}" if row != "numpy" else "0",
            f"{job.scores[row]:.4f}" if row in job.scores else "",
        )
    console.print(f"\n{job.title}", style="bold")
    console.print(table)
    what, score = job.baseline
    console.print(f"{what[0].upper()}{what[1:]}: {job.score_name} {score:.4f}.")
    worst = worst_difference(job)
    verdict = "agree" if worst <= AGREEMENT else "DISAGREE"
    console.print(
        f"After {job.runs['numpy'].work:,} {job.unit}s all {verdict}: no parameter or loss is off "
        f"numpy's by more than {worst:.0e}, relative; the bound is {AGREEMENT:.0e}."
    )
    if name == "diabetes":
        times = job.details["objective_us"]
        each = ", ".join(f"{row} {us:.3g}" for row, us in times.items())
        console.print(
            f"Much of that time is SciPy's own; objective and gradient alone take, in µs: {each}."
        )
    if name == "cars":
        _print_lines(console, job)


def _print_lines(console: Console, job: Job) -> None:
    """Print the coefficients of the line by each method of the job `cars`."""
    from .jobs import CAR_KM

    details = job.details
    effort = {"gradient descent": job.runs["numpy"].work} | details["nit"]
    table = table_of(
        *("", "steps", "θ0", "θ1", "price at\n0 km", "per\n1,000 km", f"price at\n{CAR_KM:,} km")
    )
    for name, (slope, intercept) in details["lines"].items():
        per_km, at_zero = details["real"][name]
        table.add_row(
            name,
            f"{effort[name]:,}" if name in effort else "",
            f"{intercept:.7f}",
            f"{slope:.7f}",
            f"{at_zero:.2f}",
            f"{1000 * per_km:.3f}",
            f"{details['prices'][name]:.2f}",
        )
    console.print("\nThe line by each method: θ0 + θ1·x for min-max scaled data", style="bold")
    console.print(table)
    for method, distances in details["from_exact"].items():
        each = ", ".join(f"{name} {distance:.0e}" for name, distance in distances.items())
        console.print(f"Distance of {method} from numpy.polyfit: {each}.")
    console.print("Gradient descent is not there yet; fmincg and trf are.")


# The report.


def _report(
    done: dict[str, Job], names: tuple[str, ...], quick: bool, threads: str
) -> dict[str, Any]:
    """The content of ``demo.json``, of the jobs done by name."""
    jobs = {}
    for key, job in done.items():
        rows = {}
        for name, run in job.runs.items():
            parameters, losses = job.differences(name)
            rows[name] = {
                "first_call_s": job.first[name],
                "fit_s": job.best[name],
                f"us_per_{job.unit}": job.microseconds(name),
                "times_as_fast_as_by_hand": job.speedup(name),
                "parameters_difference": parameters,
                "losses_difference": losses,
                "work": run.work,
                "final_loss": float(run.losses[-1]),
            }
        jobs[key] = {
            "title": job.title,
            "unit": job.unit,
            "largest_difference": worst_difference(job),
            "score_name": job.score_name,
            "scores": job.scores,
            "baseline": dict([job.baseline]),
            "runs": rows,
        }
    cars = done["cars"].details
    jobs["cars"] |= {
        key: {name: list(value) for name, value in cars[key].items()} for key in ("lines", "real")
    } | {"prices": cars["prices"]}
    return {
        "backends": list(names),
        "quick": quick,
        "threads": threads,
        "bound": AGREEMENT,
        "jobs": jobs,
    }
