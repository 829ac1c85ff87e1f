"""Measure every activation and its derivative against mpmath; write docs/accuracy.md.

    python tools/accuracy.py

A process for each backend and instruction set evaluates the functions at the points of
tests/oracles/truth.py; the page lists the mean and the largest error in ULP, and the z of the
latter. Needs mpmath; takes about two minutes. With --check nothing is written, and the exit
code says whether a bound is broken.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

PAGE = ROOT / "docs" / "accuracy.md"
DTYPES = (np.float32, np.float64)
ORDERS = ("f", "df")

# The functions whose bound is 2.5 ULP; it is 4 for the others and all derivatives.
TIGHT = ("exp", "sigmoid", "tanh")

# The environment of each process. Numba names instruction sets by processors.
_AVX2 = "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+popcnt"
VARIANTS = {
    ("c", "baseline"): {"FASTBP_MAX_ISA": "baseline"},
    ("c", "avx2"): {"FASTBP_MAX_ISA": "avx2"},
    ("c", "avx512"): {"FASTBP_MAX_ISA": "avx512"},
    ("numba", "baseline"): {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
    ("numba", "avx2"): {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": _AVX2},
    ("numba", "avx512"): {},
}

_INTRODUCTION = """\
# Accuracy of the activations

This page is written by `make accuracy`. Each function and its derivative with respect to z is
evaluated at {count} points over the whole range of its dtype - both signs, subnormal to largest,
denser where the function bends, underflows or crosses zero - and compared with mpmath at {digits}
digits. Errors are in units in the last place (ULP) of the exact result, subnormal results included:
the mean, the largest, and the z of the largest.

The bounds are 2.5 ULP for exp, tanh and sigmoid and 4 ULP for all else; the largest error measured
is {worst:.2f} ULP. The NumPy backend computes float32 in float64 and is not listed: it is the
reference for formulas, not for last digits.

Derivatives that the backward pass takes from y instead of z (`y (1 - y)`, `1 - y²`) lose relative
accuracy where they are small, by nature; there the error is at most 2 machine epsilons, absolute.
"""


def measure(directory: str) -> None:
    """Evaluate everything, in a child process, and write the results to the directory."""
    from oracles import truth

    import fastbp as fb

    results = {}
    for dtype in DTYPES:
        Z = truth.points(dtype)
        for act in truth.FUNCTIONS:
            for order, method in enumerate((act.f, act.df)):
                results[np.dtype(dtype).name, repr(act), order] = method(Z)
    level = None
    if fb.get_backend() == "c":
        from fastbp.backends import native

        level = native.instruction_set()
    Path(directory, "results").write_bytes(pickle.dumps((level, results)))


def run(backend: str, level: str, variables: dict[str, str]) -> dict | None:
    """The results of one variant, or None if this machine cannot run it."""
    if level not in _host_levels():
        return None
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **os.environ,
            **variables,
            "FASTBP_BACKEND": backend,
            "NUMBA_CACHE_DIR": directory,
        }
        command = [sys.executable, __file__, "--measure", directory]
        subprocess.run(command, env=environment, check=True)
        result, results = pickle.loads(Path(directory, "results").read_bytes())
    return results if result in (None, level) else None


def _host_levels() -> list[str]:
    from fastbp.backends import native

    if native.why_missing() is not None:
        return ["baseline"]
    top = native.LEVELS.index(native.instruction_set())
    return list(native.LEVELS[: top + 1])


def lines_of(name: str, results: dict, rows: dict) -> float:
    """Add the variant's cells to the tables' rows; returns its largest error over its bound."""
    from oracles import truth

    worst = 0.0
    for dtype in DTYPES:
        Z = truth.points(dtype)
        for act in truth.FUNCTIONS:
            for order in range(len(ORDERS)):
                kind = np.dtype(dtype).name
                error = truth.ulps(results[kind, repr(act), order], *truth.truth(act, dtype, order))
                place = int(np.argmax(error))
                bound = 2.5 if order == 0 and act.name in TIGHT else 4.0
                worst = max(worst, error[place] / bound)
                cell = f"{error.mean():.2f} / {error[place]:.2f} at {Z[place]:.4g}"
                key = (kind, repr(act).strip("'"), ORDERS[order])
                rows.setdefault(key, {})[name] = (cell, error[place])
    return worst


def page(rows: dict, names: list[str]) -> str:
    """The text of docs/accuracy.md."""
    from oracles import truth

    worst = max(error for cells in rows.values() for _, error in cells.values())
    count = min(len(truth.points(dtype)) for dtype in DTYPES) // 1000 * 1000
    parts = [_INTRODUCTION.format(count=f"about {count:,}", digits=truth.DIGITS, worst=worst)]
    for dtype in DTYPES:
        kind = np.dtype(dtype).name
        parts.append(f"## {kind}\n")
        parts.append(f"| function | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
        for (row_kind, act, order), cells in rows.items():
            if row_kind == kind:
                label = f"{act}{'′' if order == 'df' else ''}"
                values = " | ".join(cells[name][0] for name in names)
                parts[-1] += f"\n| {label} | {values} |"
        parts[-1] += "\n"
    return "\n".join(parts)


@click.command()
@click.option("--measure", "directory", default=None, hidden=True)
@click.option("--check", is_flag=True, help="Write nothing; fail if a bound is broken.")
def main(directory: str | None, check: bool) -> None:
    """Write docs/accuracy.md."""
    if directory:
        measure(directory)
        return
    rows: dict = {}
    names, worst = [], 0.0
    for (backend, level), variables in VARIANTS.items():
        results = run(backend, level, variables)
        if results is None:
            continue
        name = f"{'C' if backend == 'c' else 'Numba'} {level}"
        names.append(name)
        worst = max(worst, lines_of(name, results, rows))
        click.echo(f"{name}: largest error {worst:.2f} of its bound so far")
    if not check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(rows, names), encoding="utf-8")
        click.echo(f"wrote {PAGE.relative_to(ROOT)}")
    if worst > 1:
        raise SystemExit("a bound is broken")


if __name__ == "__main__":
    main()
