"""Derive the polynomials of exp, expm1 and log1p and write them for both compiled backends.

    python tools/polynomials.py

writes fastbp/backends/polynomials.py and csrc/core/polynomials.h from one table, so that the Numba
and the C backend compute with the same numbers. The polynomials interpolate at Chebyshev's nodes,
which comes within a small factor of the best possible error, and are rounded to their type; the
error stated beside each is that of the rounded polynomial, measured on a fine grid. Needs mpmath.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mpmath
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PYTHON_FILE = ROOT / "fastbp" / "backends" / "polynomials.py"
C_FILE = ROOT / "csrc" / "core" / "polynomials.h"

DTYPES = {"F64": np.float64, "F32": np.float32}

# k·LN2_HI must be exact for the exponents k that can occur: so many bits are left to k.
BITS_OF_K = {"F64": 12, "F32": 9}


@dataclass(frozen=True)
class Polynomial:
    """q on [low, high], by which `whole` is computed.

    Attributes
    ----------
    name : str
    formula : str
        What q serves, for the generated comment.
    interval : str
        Where, likewise.
    low, high : mpf
        The interval of q's argument.
    q : callable
        The function that the polynomial stands for.
    error : callable
        (argument, error of q there) -> relative error of what is computed from q.
    degrees : dict
        Degree by type: the lowest whose error before rounding is below 2^-60 (F64), 2^-30 (F32).
    """

    name: str
    formula: str
    interval: str
    low: mpmath.mpf
    high: mpmath.mpf
    q: Callable
    error: Callable
    degrees: dict[str, int]


def polynomials() -> list[Polynomial]:
    half_ln2 = mpmath.log(2) / 2 * mpmath.mpf("1.0001")  # rint(x·log2e) can err by rounding
    return [
        Polynomial(
            "EXP",
            "e^r = 1 + (r + r^2 q(r)); relative error of expm1(r) = r + r^2 q(r)",
            "|r| <= 1.0001 ln2/2",
            -half_ln2,
            half_ln2,
            lambda r: (mpmath.expm1(r) - r) / r**2,
            lambda r, e: r**2 * e / mpmath.expm1(r),
            {"F64": 10, "F32": 5},
        ),
        Polynomial(
            "ATANH",
            "2 atanh(s) = 2 s + 2 s^3 q(s^2); log(1 + u) for s = u / (2 + u)",
            "0 <= s <= 1/3",
            mpmath.mpf(0),
            mpmath.mpf(1) / 9,
            lambda x: (mpmath.atanh(mpmath.sqrt(x)) / mpmath.sqrt(x) - 1) / x,
            lambda x, e: x * e / (mpmath.atanh(mpmath.sqrt(x)) / mpmath.sqrt(x)),
            {"F64": 10, "F32": 4},
        ),
    ]


def coefficients(poly: Polynomial, dtype_name: str) -> list[float]:
    """q's coefficients, lowest power first, rounded to the type."""
    count = poly.degrees[dtype_name] + 1
    middle, half = (poly.low + poly.high) / 2, (poly.high - poly.low) / 2
    nodes = [
        middle + half * mpmath.cos(mpmath.pi * (2 * i + 1) / (2 * count)) for i in range(count)
    ]
    # An odd number of nodes about 0 has one at 0, where the formula for q is 0/0.
    nodes = [x if abs(x) > 1e-20 else mpmath.mpf("1e-20") for x in nodes]
    vandermonde = mpmath.matrix([[x**k for k in range(count)] for x in nodes])
    exact = mpmath.lu_solve(vandermonde, mpmath.matrix([poly.q(x) for x in nodes]))
    return [rounded(c, dtype_name) for c in exact]


def rounded(x: mpmath.mpf, dtype_name: str) -> float:
    """`x` to the nearest number of the type (directly, not by way of float64)."""
    bits = np.finfo(DTYPES[dtype_name]).nmant + 1
    with mpmath.workprec(bits):
        return float(+x)


def log2_error(poly: Polynomial, values: list[float]) -> float:
    """log2 of the largest relative error on a grid over the interval."""
    width = poly.high - poly.low
    worst = mpmath.mpf(0)
    for i in range(2000):
        x = poly.low + width * (i + mpmath.mpf("0.5")) / 2000
        e = mpmath.polyval(values[::-1], x) - poly.q(x)
        worst = max(worst, abs(poly.error(x, e)))
    return float(mpmath.log(worst, 2))


def ln2_parts(dtype_name: str) -> tuple[float, float]:
    """ln 2 = hi + lo, hi short enough for k·hi to be exact."""
    ln2 = mpmath.log(2)
    with mpmath.workprec(np.finfo(DTYPES[dtype_name]).nmant + 1 - BITS_OF_K[dtype_name]):
        hi = +ln2
    return float(hi), rounded(ln2 - hi, dtype_name)


@dataclass(frozen=True)
class Entry:
    """One constant of the generated files."""

    name: str
    dtype_name: str
    comment: str
    values: list[float]
    is_list: bool


def table() -> list[Entry]:
    entries = []
    for dtype_name in DTYPES:
        for poly in polynomials():
            values = coefficients(poly, dtype_name)
            text = f"{poly.formula} below 2^{log2_error(poly, values):.1f} on {poly.interval}"
            entries.append(Entry(poly.name, dtype_name, text, values, True))
        hi, lo = ln2_parts(dtype_name)
        log2e = rounded(1 / mpmath.log(2), dtype_name)
        short = f"ln 2 = hi + lo; k hi is exact for |k| < 2^{BITS_OF_K[dtype_name]}"
        entries.append(Entry("LOG2E", dtype_name, "log2(e)", [log2e], False))
        entries.append(Entry("LN2_HI", dtype_name, short, [hi], False))
        entries.append(Entry("LN2_LO", dtype_name, "", [lo], False))
    return entries


HEAD = "Generated by tools/polynomials.py; change it there. Lowest powers come first."


def python_text(entries: list[Entry]) -> str:
    lines = [f'"""Coefficients of the compiled backends\' elementary functions.\n\n{HEAD}\n"""', ""]
    for entry in entries:
        if entry.comment:
            lines += [f"# {part}" for part in wrapped(entry.comment)]
        name = f"{entry.name}_{entry.dtype_name}"
        if entry.is_list:
            lines += [f"{name} = (", *(f"    {value!r}," for value in entry.values), ")"]
        else:
            lines.append(f"{name} = {entry.values[0]!r}")
    return "\n".join(lines) + "\n"


def c_text(entries: list[Entry]) -> str:
    lines = [
        "/* Coefficients of the elementary functions, as lists for brace initialisers.",
        f" * {HEAD} */",
        "#ifndef FB_POLYNOMIALS_H",
        "#define FB_POLYNOMIALS_H",
    ]
    for entry in entries:
        suffix = "f" if entry.dtype_name == "F32" else ""
        numbers = [c_hex(value) + suffix for value in entry.values]
        if entry.comment:
            lines += ["", "/* " + "\n * ".join(wrapped(entry.comment)) + " */"]
        name = f"FB_{entry.name}_{entry.dtype_name}"
        if entry.is_list:
            lines.append(f"#define {name} \\")
            lines += [f"    {number}, \\" for number in numbers[:-1]] + [f"    {numbers[-1]}"]
        else:
            lines.append(f"#define {name} {numbers[0]}")
    return "\n".join([*lines, "", "#endif", ""])


def c_hex(value: float) -> str:
    """A hexadecimal float without trailing zeros."""
    mantissa, exponent = value.hex().split("p")
    return mantissa.rstrip("0").rstrip(".") + "p" + exponent


def wrapped(text: str, width: int = 96) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line]


def generate() -> dict[Path, str]:
    """The text of each generated file."""
    with mpmath.workdps(60):
        entries = table()
    return {PYTHON_FILE: python_text(entries), C_FILE: c_text(entries)}


if __name__ == "__main__":
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
