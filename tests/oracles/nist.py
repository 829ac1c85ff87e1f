"""NIST's Statistical Reference Datasets for nonlinear regression: models, data, certified values.

A model gives (values (m,), derivatives (m, n)) for parameters b and predictors x.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "nist_strd"


def columns(*derivatives):
    return np.stack(np.broadcast_arrays(*derivatives), axis=-1)


def bennett(b, x):
    f = (b[1] + x) ** (-1 / b[2])
    at = b[0] * f
    return at, columns(f, -at / (b[2] * (b[1] + x)), at * np.log(b[1] + x) / b[2] ** 2)


def saturation(b, x):
    e = np.exp(-b[1] * x)
    return b[0] * (1 - e), columns(1 - e, b[0] * x * e)


def chwirut(b, x):
    below = b[1] + b[2] * x
    f = np.exp(-b[0] * x) / below
    return f, columns(-x * f, -f / below, -x * f / below)


def power(b, x):
    f = x ** b[1]
    return b[0] * f, columns(f, b[0] * f * np.log(x))


def enso(b, x):
    year = 2 * np.pi * x / 12
    f = b[0] + b[1] * np.cos(year) + b[2] * np.sin(year)
    J = [np.ones_like(x), np.cos(year), np.sin(year)]
    for period, c, s in ((b[3], b[4], b[5]), (b[6], b[7], b[8])):
        angle = 2 * np.pi * x / period
        cos, sin = np.cos(angle), np.sin(angle)
        f = f + c * cos + s * sin
        J += [(c * sin - s * cos) * angle / period, cos, sin]
    return f, columns(*J)


def eckerle(b, x):
    z = (x - b[2]) / b[1]
    e = np.exp(-0.5 * z**2) / b[1]
    f = b[0] * e
    return f, columns(e, f * (z**2 - 1) / b[1], f * z / b[1])


def two_peaks(b, x):
    decay = np.exp(-b[1] * x)
    f, J = b[0] * decay, [decay, -b[0] * x * decay]
    for height, center, width in (b[2:5], b[5:8]):
        z = (x - center) / width
        e = np.exp(-(z**2))
        f = f + height * e
        J += [e, 2 * height * e * z / width, 2 * height * e * z**2 / width]
    return f, columns(*J)


def rational(above):
    """(b0 + b1 x + ...)/(1 + ... x + ...) with so many coefficients above."""

    def model(b, x):
        top = sum(c * x**k for k, c in enumerate(b[:above]))
        below = 1 + sum(c * x**k for k, c in enumerate(b[above:], 1))
        up = [x**k / below for k in range(above)]
        down = [-top * x**k / below**2 for k in range(1, len(b) - above + 1)]
        return top / below, columns(*up, *down)

    return model


def three_decays(b, x):
    f, J = 0.0, []
    for height, rate in (b[0:2], b[2:4], b[4:6]):
        e = np.exp(-rate * x)
        f = f + height * e
        J += [e, -height * x * e]
    return f, columns(*J)


def kowalik(b, x):
    top, below = x**2 + x * b[1], x**2 + x * b[2] + b[3]
    f = b[0] * top / below
    return f, columns(top / below, b[0] * x / below, -f * x / below, -f / below)


def meyer(b, x):
    e = np.exp(b[1] / (x + b[2]))
    f = b[0] * e
    return f, columns(e, f / (x + b[2]), -f * b[1] / (x + b[2]) ** 2)


def osborne(b, x):
    e, d = np.exp(-x * b[3]), np.exp(-x * b[4])
    f = b[0] + b[1] * e + b[2] * d
    return f, columns(np.ones_like(x), e, d, -b[1] * x * e, -b[2] * x * d)


def misra_b(b, x):
    base = 1 + b[1] * x / 2
    return b[0] * (1 - base**-2), columns(1 - base**-2, b[0] * x * base**-3)


def misra_c(b, x):
    base = 1 + 2 * b[1] * x
    return b[0] * (1 - base**-0.5), columns(1 - base**-0.5, b[0] * x * base**-1.5)


def misra_d(b, x):
    base = 1 + b[1] * x
    return b[0] * b[1] * x / base, columns(b[1] * x / base, b[0] * x / base**2)


def nelson(b, x):
    e = np.exp(-b[2] * x[1])
    return b[0] - b[1] * x[0] * e, columns(1.0, -x[0] * e, b[1] * x[0] * x[1] * e)


def ratkowsky_3(b, x):
    e = np.exp(b[1] - b[2] * x)
    f = b[0] / (1 + e)
    return f, columns(1 / (1 + e), -f * e / (1 + e), f * x * e / (1 + e))


def ratkowsky_4(b, x):
    e = np.exp(b[1] - b[2] * x)
    root = (1 + e) ** (-1 / b[3])
    f = b[0] * root
    inner = f * e / (1 + e) / b[3]
    return f, columns(root, -inner, x * inner, f * np.log(1 + e) / b[3] ** 2)


def roszman(b, x):
    away = x - b[3]
    f = b[0] - b[1] * x - np.arctan(b[2] / away) / np.pi
    square = np.pi * (away**2 + b[2] ** 2)
    return f, columns(1.0, -x, -away / square, -b[2] / square)


MODELS = {
    "Bennett5": bennett,
    "BoxBOD": saturation,
    "Chwirut1": chwirut,
    "Chwirut2": chwirut,
    "DanWood": power,
    "ENSO": enso,
    "Eckerle4": eckerle,
    "Gauss1": two_peaks,
    "Gauss2": two_peaks,
    "Gauss3": two_peaks,
    "Hahn1": rational(4),
    "Kirby2": rational(3),
    "Lanczos1": three_decays,
    "Lanczos2": three_decays,
    "Lanczos3": three_decays,
    "MGH09": kowalik,
    "MGH10": meyer,
    "MGH17": osborne,
    "Misra1a": saturation,
    "Misra1b": misra_b,
    "Misra1c": misra_c,
    "Misra1d": misra_d,
    "Nelson": nelson,
    "Rat42": ratkowsky_3,
    "Rat43": ratkowsky_4,
    "Roszman1": roszman,
    "Thurber": rational(4),
}


# The same models as users write them for `curve_fit`: f(x, *parameters), without derivatives.


def two_peaks_curve(x, b1, b2, b3, b4, b5, b6, b7, b8):
    return (
        b1 * np.exp(-b2 * x)
        + b3 * np.exp(-((x - b4) ** 2) / b5**2)
        + b6 * np.exp(-((x - b7) ** 2) / b8**2)
    )


def three_decays_curve(x, b1, b2, b3, b4, b5, b6):
    return b1 * np.exp(-b2 * x) + b3 * np.exp(-b4 * x) + b5 * np.exp(-b6 * x)


def enso_curve(x, b1, b2, b3, b4, b5, b6, b7, b8, b9):
    year, first, second = 2 * np.pi * x / 12, 2 * np.pi * x / b4, 2 * np.pi * x / b7
    seasons = b1 + b2 * np.cos(year) + b3 * np.sin(year)
    cycles = b5 * np.cos(first) + b6 * np.sin(first) + b8 * np.cos(second) + b9 * np.sin(second)
    return seasons + cycles


def cubic_ratio_curve(x, b1, b2, b3, b4, b5, b6, b7):
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def square_ratio_curve(x, b1, b2, b3, b4, b5):
    return (b1 + b2 * x + b3 * x**2) / (1 + b4 * x + b5 * x**2)


def saturation_curve(x, b1, b2):
    return b1 * (1 - np.exp(-b2 * x))


def chwirut_curve(x, b1, b2, b3):
    return np.exp(-b1 * x) / (b2 + b3 * x)


CURVES = {
    "Bennett5": lambda x, b1, b2, b3: b1 * (b2 + x) ** (-1 / b3),
    "BoxBOD": saturation_curve,
    "Chwirut1": chwirut_curve,
    "Chwirut2": chwirut_curve,
    "DanWood": lambda x, b1, b2: b1 * x**b2,
    "ENSO": enso_curve,
    "Eckerle4": lambda x, b1, b2, b3: b1 / b2 * np.exp(-0.5 * ((x - b3) / b2) ** 2),
    "Gauss1": two_peaks_curve,
    "Gauss2": two_peaks_curve,
    "Gauss3": two_peaks_curve,
    "Hahn1": cubic_ratio_curve,
    "Kirby2": square_ratio_curve,
    "Lanczos1": three_decays_curve,
    "Lanczos2": three_decays_curve,
    "Lanczos3": three_decays_curve,
    "MGH09": lambda x, b1, b2, b3, b4: b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4),
    "MGH10": lambda x, b1, b2, b3: b1 * np.exp(b2 / (x + b3)),
    "MGH17": lambda x, b1, b2, b3, b4, b5: b1 + b2 * np.exp(-x * b4) + b3 * np.exp(-x * b5),
    "Misra1a": saturation_curve,
    "Misra1b": lambda x, b1, b2: b1 * (1 - (1 + b2 * x / 2) ** (-2)),
    "Misra1c": lambda x, b1, b2: b1 * (1 - (1 + 2 * b2 * x) ** (-0.5)),
    "Misra1d": lambda x, b1, b2: b1 * b2 * x * (1 + b2 * x) ** (-1),
    "Nelson": lambda x, b1, b2, b3: b1 - b2 * x[0] * np.exp(-b3 * x[1]),
    "Rat42": lambda x, b1, b2, b3: b1 / (1 + np.exp(b2 - b3 * x)),
    "Rat43": lambda x, b1, b2, b3, b4: b1 / (1 + np.exp(b2 - b3 * x)) ** (1 / b4),
    "Roszman1": lambda x, b1, b2, b3, b4: b1 - b2 * x - np.arctan(b3 / (x - b4)) / np.pi,
    "Thurber": cubic_ratio_curve,
}


@dataclass(frozen=True)
class Problem:
    """A problem of the collection.

    Attributes
    ----------
    starts : numpy.ndarray (2, n)
        Far from the solution, and nearer.
    certified, deviations : numpy.ndarray (n,)
        The parameters and their standard deviations, to 11 digits.
    sum_of_squares : float
    """

    name: str
    model: Callable
    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    certified: np.ndarray
    deviations: np.ndarray
    sum_of_squares: float

    def residuals(self, b):
        return self.model(b, self.x)[0] - self.y

    def jacobian(self, b):
        return self.model(b, self.x)[1]

    def digits(self, b):
        """How many digits of the worst parameter are right: -log10 of its relative error."""
        worst = np.max(np.abs(b / self.certified - 1))
        return 11.0 if worst < 1e-11 else float(-np.log10(worst))


def problem(name):
    lines = (FOLDER / f"{name}.dat").read_text(encoding="ascii").splitlines()
    text = "\n".join(lines)
    rows = [line.split("=")[1].split() for line in lines if re.match(r"\s+b\d+ =", line)]
    starts_1, starts_2, certified, deviations = np.array(rows, float).T
    squares = re.search(r"Residual Sum of Squares:\s+(\S+)", text)
    first, last = re.search(r"Data +\(lines +(\d+) to +(\d+)\)", text).groups()
    y, *x = np.array([line.split() for line in lines[int(first) - 1 : int(last)]], float).T
    if name == "Nelson":
        y = np.log(y)
    return Problem(
        name,
        MODELS[name],
        x[0] if len(x) == 1 else np.array(x),
        y,
        np.array([starts_1, starts_2]),
        certified,
        deviations,
        float(squares.group(1)),
    )
