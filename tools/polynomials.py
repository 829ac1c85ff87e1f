"""Derive the numbers of the elementary functions and activations, for both compiled backends.

    python tools/polynomials.py

writes fastbp/maths/formulas/polynomials.py and csrc/core/polynomials.h from one table, so that the
Numba and the C backend compute with the same numbers. The polynomials interpolate at Chebyshev's
nodes, which comes within a small factor of the best possible error, and are rounded to their type;
the error stated beside each is that of the rounded polynomial, measured on a fine grid. A number
that is needed to more digits than its type has stands as a sum HI + LO. Needs mpmath.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mpmath
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PYTHON_FILE = ROOT / "fastbp" / "maths" / "formulas" / "polynomials.py"
C_FILE = ROOT / "csrc" / "core" / "polynomials.h"

DTYPES = {"F64": np.float64, "F32": np.float32}

# k·LN2_HI must be exact for the exponents k that can occur: so many bits are left to k.
BITS_OF_K = {"F64": 12, "F32": 9}

# The normal distribution's tail: where it has underflowed, and the middle of the mapping.
TAIL_END, TAIL_MIDDLE = 39, 4


@dataclass(frozen=True)
class Polynomial:
    """A function q on [low, high] that a polynomial approximates.

    Attributes
    ----------
    name : str
    formula : str
        The formula that uses q, for the generated comment.
    interval : str
        The interval, for the same comment.
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
        Polynomial(
            "LOG",
            "2 atanh(s) = 2 s + 2 s^3 (1/3 + s^2 q(s^2)), to twice the precision",
            "0 <= s <= 0.172",
            mpmath.mpf(0),
            mpmath.mpf("0.172") ** 2,
            lambda x: (
                ((mpmath.atanh(mpmath.sqrt(x)) / mpmath.sqrt(x) - 1) / x - 1 / mpmath.mpf(3)) / x
            ),
            lambda x, e: x**2 * e / (mpmath.atanh(mpmath.sqrt(x)) / mpmath.sqrt(x)),
            {"F64": 6, "F32": 2},
        ),
        Polynomial(
            "SIN",
            "sin r = r + r^3 q(r^2)",
            "|r| <= 1.001 pi/2",
            mpmath.mpf(0),
            (mpmath.pi / 2 * mpmath.mpf("1.001")) ** 2,
            lambda x: (mpmath.sin(mpmath.sqrt(x)) / mpmath.sqrt(x) - 1) / x,
            lambda x, e: x * e / (mpmath.sin(mpmath.sqrt(x)) / mpmath.sqrt(x)),
            {"F64": 8, "F32": 4},
        ),
        Polynomial(
            "ARCTAN",
            "arctan t = t + t^3 q(t^2)",
            "|t| <= 1.001 tan(pi/8)",
            mpmath.mpf(0),
            (mpmath.tan(mpmath.pi / 8) * mpmath.mpf("1.001")) ** 2,
            lambda x: (mpmath.atan(mpmath.sqrt(x)) / mpmath.sqrt(x) - 1) / x,
            lambda x, e: x * e / (mpmath.atan(mpmath.sqrt(x)) / mpmath.sqrt(x)),
            {"F64": 11, "F32": 5},
        ),
        Polynomial(
            "ERF",
            "erf x = x + x q(x^2)",
            "|x| <= 0.75",
            mpmath.mpf(0),
            mpmath.mpf("0.75") ** 2,
            lambda x: mpmath.erf(mpmath.sqrt(x)) / mpmath.sqrt(x) - 1,
            lambda x, e: e / (mpmath.erf(mpmath.sqrt(x)) / mpmath.sqrt(x)),
            {"F64": 10, "F32": 6},
        ),
        Polynomial(
            "TAIL",
            "1 - Phi(a) = e^(-a^2/2) q(t) / (1 + a), t = (a - 4) / (a + 4)",
            f"0 <= a <= {TAIL_END}",
            *tail_interval(),
            lambda t: (1 + tail_argument(t)) * scaled_tail(tail_argument(t)),
            lambda t, e: e / ((1 + tail_argument(t)) * scaled_tail(tail_argument(t))),
            {"F64": 25, "F32": 12},
        ),
        Polynomial(
            "GELU_SLOPE",
            "gelu'(-a) = (GELU_ROOT - a) e^(-a^2/2) q(t), t = (a - 4) / (a + 4)",
            f"0 <= a <= {TAIL_END}",
            *tail_interval(),
            lambda t: gelu_slope(tail_argument(t)),
            lambda t, e: e / gelu_slope(tail_argument(t)),
            {"F64": 23, "F32": 11},
        ),
    ]


def tail_interval() -> tuple[mpmath.mpf, mpmath.mpf]:
    return mpmath.mpf(-1), mpmath.mpf(TAIL_END - TAIL_MIDDLE) / (TAIL_END + TAIL_MIDDLE)


def tail_argument(t: mpmath.mpf) -> mpmath.mpf:
    """a for t = (a - 4) / (a + 4), which spreads the bend of the functions near 0."""
    return TAIL_MIDDLE * (1 + t) / (1 - t)


def scaled_tail(a: mpmath.mpf) -> mpmath.mpf:
    """e^(a²/2) (1 - Phi(a))."""
    return mpmath.exp(a * a / 2) * mpmath.erfc(a / mpmath.sqrt(2)) / 2


def gelu_derivative(a: mpmath.mpf) -> mpmath.mpf:
    """e^(a²/2) gelu'(-a)."""
    return scaled_tail(a) - a / mpmath.sqrt(2 * mpmath.pi)


def gelu_slope(a: mpmath.mpf) -> mpmath.mpf:
    return gelu_derivative(a) / (gelu_root() - a)


@cache
def gelu_root() -> mpmath.mpf:
    return mpmath.findroot(gelu_derivative, mpmath.mpf("0.75"))


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
        entries += numbers_of_the_type(dtype_name)
        entries += limits(dtype_name)
        entries += elementary_numbers(dtype_name)
        entries += gelu_numbers(dtype_name)
        entries += silu_numbers(dtype_name)
        entries += mish_numbers(dtype_name)
        entries += gelu_tanh_numbers(dtype_name)
    return entries


HI_LO = ("_HI", "_LO")


def number(
    dtype_name: str, name: str, x: mpmath.mpf, comment: str = "", parts: tuple[str, ...] = ("",)
) -> list[Entry]:
    """x as a sum of numbers of the type; without a comment it belongs to the entry before it."""
    entries = []
    for part in parts:
        value = rounded(x, dtype_name)
        entries.append(Entry(name + part, dtype_name, comment, [value], False))
        x, comment = x - value, ""
    return entries


def numbers_of_the_type(dtype_name: str) -> list[Entry]:
    info = np.finfo(DTYPES[dtype_name])
    rounding = "added to x and subtracted again, rounds x to an integer"
    return [
        Entry("LARGEST", dtype_name, "the type's largest number", [float(info.max)], False),
        Entry("EPSILON", dtype_name, "1 + EPSILON follows 1", [float(info.eps)], False),
        Entry("TO_INTEGER", dtype_name, rounding, [1.5 * 2.0**info.nmant], False),
        *number(dtype_name, "SMALLEST", float(info.tiny), "the smallest that is not subnormal"),
        *number(dtype_name, "TO_NORMAL", 2.0 ** (info.nmant + 2), "makes it so; its logarithm"),
        *number(dtype_name, "NORMAL_BITS", info.nmant + 2),
        *number(dtype_name, "LOG_TO_NORMAL", (info.nmant + 2) * mpmath.log(2)),
        Entry("MANTISSA_BITS", dtype_name, "where bits lie", [info.nmant], False),
        Entry("SIGN_BIT", dtype_name, "", [info.bits - 1], False),
    ]


def limits(dtype_name: str) -> list[Entry]:
    """Where arguments are cut: whole numbers, at or a little beyond where it changes nothing."""

    def limit(name: str, of_f64: float, of_f32: float, comment: str = "") -> list[Entry]:
        return number(dtype_name, name, of_f64 if dtype_name == "F64" else of_f32, comment)

    return [
        *limit("EXP_LEAST", -746, -104, "e^x is 0 below, and infinite above"),
        *limit("EXP_MOST", 710, 89),
        *limit("SCALE_LEAST", -1416, -174, "e^x = 2^k (1 + p), 2^k two normal powers of 2, above"),
        *limit("EXPM1_LEAST", -40, -20, "e^x - 1 rounds to -1 below"),
        *limit("SINH_MOST", 710.75, 89.625, "sinh and cosh are infinite beyond, erfc is 0"),
        *limit("ERFC_MOST", 27.5, 10.5),
        *limit("SIN_MOST", 2**30, 2**13, "pi as a sum suffices for sin and cos up to this"),
        *limit("NORMAL_MOST", TAIL_END, 15, "beyond, gelu, silu and mish, gelu_tanh are 0 or z"),
        *limit("LOGISTIC_MOST", 760, 112),
        *limit("GELU_TANH_MOST", 22, 11),
    ]


def elementary_numbers(dtype_name: str) -> list[Entry]:
    hi, lo = ln2_parts(dtype_name)
    short = f"ln 2 = hi + lo; k hi is exact for |k| < 2^{BITS_OF_K[dtype_name]}"
    return [
        *number(dtype_name, "LOG2E", 1 / mpmath.log(2), "log2(e)"),
        *number(dtype_name, "LN2_HI", hi, short),
        *number(dtype_name, "LN2_LO", lo),
        *number(dtype_name, "THIRD", 1 / mpmath.mpf(3), "1/3", HI_LO),
        *number(dtype_name, "INV_PI", 1 / mpmath.pi, "1/pi, and pi as a sum"),
        *number(dtype_name, "HALF_PI", mpmath.pi / 2, parts=HI_LO),
        *number(dtype_name, "PI", +mpmath.pi, parts=("_1", "_2", "_3")),
    ]


def gelu_numbers(dtype_name: str) -> list[Entry]:
    density = 1 / mpmath.sqrt(2 * mpmath.pi)
    return [
        *number(dtype_name, "TAIL_MIDDLE", TAIL_MIDDLE, "t = 0 at this a"),
        *number(dtype_name, "DENSITY_0", density, "1 / sqrt(2 pi)"),
        *number(dtype_name, "GELU_ROOT", gelu_root(), "gelu' is 0 at minus this", HI_LO),
    ]


def silu_numbers(dtype_name: str) -> list[Entry]:
    root = mpmath.findroot(lambda a: 1 + mpmath.exp(-a) - a, 1.28)
    return [
        *number(dtype_name, "SILU_ROOT", root, "silu' is 0 at minus this; e^-root", HI_LO),
        *number(dtype_name, "SILU_EXP", mpmath.exp(-root), parts=HI_LO),
    ]


def mish_numbers(dtype_name: str) -> list[Entry]:
    """mish'(-a) has the factor n(t)/4 - a (1 + t), n(t) = t³ + 4t² + 6t + 4, t = e^-a."""

    def factor(a: mpmath.mpf) -> mpmath.mpf:
        t = mpmath.exp(-a)
        return mpmath.polyval([1, 4, 6, 4], t) / 4 - a * (1 + t)

    root = mpmath.findroot(factor, 1.19)
    t = mpmath.exp(-root)
    quotient = "(n(t) - n(T)) / (4 (t - T)) - root = MISH_0 + MISH_1 t + t^2 / 4, n(t) = t^3"
    return [
        *number(dtype_name, "MISH_ROOT", root, "mish' is 0 at minus this; T = e^-root", HI_LO),
        *number(dtype_name, "MISH_EXP", t, parts=HI_LO),
        *number(
            dtype_name, "MISH_0", (6 + 4 * t + t * t) / 4 - root, f"{quotient} + 4 t^2 + 6 t + 4"
        ),
        *number(dtype_name, "MISH_1", 1 + t / 4),
    ]


def gelu_tanh_numbers(dtype_name: str) -> list[Entry]:
    """gelu_tanh z = z σ(v(z)); its derivative at -a has the factor 1 + e^-v(a) - a v'(a)."""
    c1 = mpmath.sqrt(8 / mpmath.pi)
    c3 = c1 * mpmath.mpf("0.044715")

    def v(a: mpmath.mpf) -> mpmath.mpf:
        return c1 * a + c3 * a**3

    root = mpmath.findroot(lambda a: 1 + mpmath.exp(-v(a)) - (c1 * a + 3 * c3 * a**3), 0.75)
    formula = "gelu_tanh z = z sigma(v(z)), v(z) = GELU_TANH_1 z + GELU_TANH_3 z^3"
    at_root = "gelu_tanh' is 0 at minus this; e^-v(root)"
    quotient = "(v(a) - v(root)) / (a - root) = GELU_TANH_S0 + GELU_TANH_S1 a + GELU_TANH_3 a^2"
    return [
        *number(dtype_name, "GELU_TANH_1", c1, formula, HI_LO),
        *number(dtype_name, "GELU_TANH_3", c3, parts=HI_LO),
        *number(dtype_name, "GELU_TANH_ROOT", root, at_root, HI_LO),
        *number(dtype_name, "GELU_TANH_EXP", mpmath.exp(-v(root)), parts=HI_LO),
        *number(dtype_name, "GELU_TANH_S0", c1 + c3 * root**2, quotient, HI_LO),
        *number(dtype_name, "GELU_TANH_S1", c3 * root, parts=HI_LO),
    ]


HEAD = "Generated by tools/polynomials.py; change it there. Lowest powers come first."


def python_text(entries: list[Entry]) -> str:
    lines = [f'"""Numbers of the formulas.\n\n{HEAD}\n"""', ""]
    for entry in entries:
        if entry.comment:
            lines += [f"# {part}" for part in wrapped(entry.comment)]
        name = f"{entry.name}_{entry.dtype_name}"
        if entry.is_list:
            lines += [f"{name} = (", *(f"    {value!r}," for value in entry.values), ")"]
        else:
            lines.append(f"{name} = {entry.values[0]!r}".replace("e+", "e"))
    return "\n".join(lines) + "\n"


def c_text(entries: list[Entry]) -> str:
    lines = [
        "/* Numbers of the formulas; lists are for brace initialisers.",
        f" * {HEAD} */",
        "#ifndef FB_POLYNOMIALS_H",
        "#define FB_POLYNOMIALS_H",
    ]
    for entry in entries:
        suffix = "f" if entry.dtype_name == "F32" else ""
        numbers = [c_number(value, suffix) for value in entry.values]
        if entry.comment:
            lines += ["", "/* " + "\n * ".join(wrapped(entry.comment)) + " */"]
        name = f"FB_{entry.name}_{entry.dtype_name}"
        if entry.is_list:
            lines.append(f"#define {name} \\")
            lines += [f"    {number}, \\" for number in numbers[:-1]] + [f"    {numbers[-1]}"]
        else:
            lines.append(f"#define {name} {numbers[0]}")
    return "\n".join([*lines, "", "#endif", ""])


def c_number(value: float, suffix: str) -> str:
    """A hexadecimal float without trailing zeros; decimal if it is whole."""
    if isinstance(value, int):
        return str(value)
    if value.is_integer() and abs(value) < 2**20:
        return str(value) + suffix
    mantissa, exponent = value.hex().split("p")
    return mantissa.rstrip("0").rstrip(".") + "p" + exponent + suffix


def wrapped(text: str, width: int = 94) -> list[str]:
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
