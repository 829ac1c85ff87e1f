"""The least-squares problems of Moré, Garbow and Hillstrom: residuals, Jacobians, starts, minima.

J. J. Moré, B. S. Garbow, K. E. Hillstrom, "Testing unconstrained optimization software", ACM TOMS
7 (1), 1981. Problems carry the numbers of that paper; those of any size have one that is usual.
Functions take a vector (n,), real or complex, and return the residuals (m,) and the Jacobian
(m, n).
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import NamedTuple

import numpy as np
from scipy.linalg import block_diag


class Problem(NamedTuple):
    """A problem of the collection.

    Attributes
    ----------
    function : callable
        x (n,) -> (residuals (m,), Jacobian (m, n)).
    start : sequence of n numbers
        The standard start.
    minima : tuple of float
        The known minima of the sum of squares, the least first; then local ones and what it tends
        to where a variable runs away. Unless it is 0, the paper gives the first six digits.
    solution : sequence of n numbers, optional
        Where the first of `minima` is, if that is known exactly.
    scales : tuple of float
        The standard starts are these multiples of `start`.
    """

    function: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    start: tuple[float, ...]
    minima: tuple[float, ...]
    solution: tuple[float, ...] | None = None
    scales: tuple[float, ...] = (1.0, 10.0, 100.0)

    def both(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The residuals (m,) and the Jacobian (m, n), infinite or NaN where they overflow."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            r, J = self.function(np.asarray(x))
        return np.asarray(r), np.asarray(J)

    def residuals(self, x: np.ndarray) -> np.ndarray:
        return self.both(x)[0]

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        return self.both(x)[1]

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """The sum of squares and its gradient (n,)."""
        r, J = self.both(x)
        with np.errstate(over="ignore", invalid="ignore"):
            return float(r @ r), 2 * (r @ J)

    def reached(self, value: float) -> bool:
        """Whether a sum of squares is that of a known minimum, as far as that is known."""
        return any(abs(value - minimum) <= 1e-5 * minimum + 1e-15 for minimum in self.minima)

    @property
    def starts(self) -> list[np.ndarray]:
        """The standard starts; where all entries of the first are 0, multiples of ones."""
        start = np.array(self.start, float)
        if not start.any():
            return [start, *(np.full(len(start), scale) for scale in self.scales[1:])]
        return [scale * start for scale in self.scales]


# Fixed sizes. The residuals of problem k are f_1 ... f_m of the paper.


def rosenbrock(x):
    """Any number of variables in a chain; the collection's problem has two."""
    a, b = x[:-1], x[1:]
    shift = np.eye(len(x))
    J = np.vstack([10 * (shift[1:] - 2 * a[:, None] * shift[:-1]), -shift[:-1]])
    return np.concatenate([10 * (b - a**2), 1 - a]), J


def freudenstein_roth(x):
    a, b = x
    r = [-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b]
    return r, [[1, (10 - 3 * b) * b - 2], [1, (3 * b + 2) * b - 14]]


def powell_badly_scaled(x):
    a, b = x
    r = [1e4 * a * b - 1, np.exp(-a) + np.exp(-b) - 1.0001]
    return r, [[1e4 * b, 1e4 * a], [-np.exp(-a), -np.exp(-b)]]


def brown_badly_scaled(x):
    a, b = x
    return [a - 1e6, b - 2e-6, a * b - 2], [[1, 0], [0, 1], [b, a]]


def beale(x):
    a, b = x
    k = np.arange(1, 4)
    r = np.array([1.5, 2.25, 2.625]) - a * (1 - b**k)
    return r, np.column_stack([b**k - 1, a * k * b ** (k - 1)])


def jennrich_sampson(x):
    k = np.arange(1, 11)[:, None]
    growth = np.exp(k * x)
    return 2 + 2 * k[:, 0] - growth.sum(axis=1), -k * growth


def helical_valley(x):
    a, b, c = x
    turn = (np.arctan(b / a) if a else pi / 2) / (2 * pi) + (0.5 if a.real < 0 else 0)
    radius = np.sqrt(a * a + b * b)
    around = 50 / (pi * radius**2)
    J = [[around * b, -around * a, 10], [10 * a / radius, 10 * b / radius, 0], [0, 0, 1]]
    return [10 * (c - 10 * turn), 10 * (radius - 1), c], J


def bard(x):
    y = [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]
    u = np.arange(1, 16)
    v = 16 - u
    w = np.minimum(u, v)
    below = v * x[1] + w * x[2]
    J = np.column_stack([-np.ones(15), u * v / below**2, u * w / below**2])
    return np.array(y) - (x[0] + u / below), J


def gaussian(x):
    half = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521]
    away = (8 - np.arange(1, 16)) / 2 - x[2]
    bell = np.exp(-x[1] * away**2 / 2)
    J = np.column_stack([bell, -x[0] * bell * away**2 / 2, x[0] * bell * x[1] * away])
    return x[0] * bell - np.array([*half, 0.3989, *half[::-1]]), J


def meyer(x):
    y = [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744]
    y += [8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872]
    below = 45 + 5 * np.arange(1, 17) + x[2]
    growth = np.exp(x[1] / below)
    J = [growth, x[0] * growth / below, -x[0] * growth * x[1] / below**2]
    return x[0] * growth - np.array(y), np.column_stack(J)


def gulf_research(x):
    """With |y_i - x_2| for |y_i m i x_2|, a misprint of the paper."""
    t = np.arange(1, 100) / 100
    away = ((25 + (-50 * np.log(t)) ** (2 / 3) - x[1]) ** 2) ** 0.5
    sign = np.sign((25 + (-50 * np.log(t)) ** (2 / 3) - x[1]).real)
    power = away ** x[2] / x[0]
    bell = np.exp(-power)
    J = [bell * power / x[0], bell * x[2] * power / away * sign, -bell * power * np.log(away)]
    return bell - t, np.column_stack(J)


def box(x):
    a, b, c = x
    t = np.arange(1, 11) / 10
    apart = np.exp(-t) - np.exp(-10 * t)
    r = np.exp(-t * a) - np.exp(-t * b) - c * apart
    return r, np.column_stack([-t * np.exp(-t * a), t * np.exp(-t * b), -apart])


def powell_singular(x):
    a, b, c, d = x
    r = [a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2]
    J = [[1, 10, 0, 0], [0, 0, 5**0.5, -(5**0.5)], [0, 2 * (b - 2 * c), -4 * (b - 2 * c), 0]]
    return r, [*J, [2 * 10**0.5 * (a - d), 0, 0, -2 * 10**0.5 * (a - d)]]


def wood(x):
    a, b, c, d = x
    r = [10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c]
    r += [10**0.5 * (b + d - 2), (b - d) / 10**0.5]
    J = [[-20 * a, 10, 0, 0], [-1, 0, 0, 0], [0, 0, -2 * 90**0.5 * c, 90**0.5], [0, 0, -1, 0]]
    return r, [*J, [0, 10**0.5, 0, 10**0.5], [0, 10**-0.5, 0, -(10**-0.5)]]


def kowalik_osborne(x):
    y = [0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
    u = np.array([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])
    above, below = u * (u + x[1]), u * (u + x[2]) + x[3]
    slope = x[0] * above / below**2
    J = np.column_stack([-above / below, -x[0] * u / below, slope * u, slope])
    return np.array(y) - x[0] * above / below, J


def brown_dennis(x):
    t = np.arange(1, 21) / 5
    first, second = x[0] + t * x[1] - np.exp(t), x[2] + x[3] * np.sin(t) - np.cos(t)
    J = [2 * first, 2 * first * t, 2 * second, 2 * second * np.sin(t)]
    return first**2 + second**2, np.column_stack(J)


def osborne_1(x):
    y = [0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751, 0.718, 0.685]
    y += [0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490, 0.478, 0.467, 0.457]
    y += [0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406]
    t = 10.0 * np.arange(33)
    first, second = np.exp(-t * x[3]), np.exp(-t * x[4])
    J = [-np.ones(33), -first, -second, x[1] * t * first, x[2] * t * second]
    return np.array(y) - (x[0] + x[1] * first + x[2] * second), np.column_stack(J)


def biggs(x):
    t = np.arange(1, 14) / 10
    y = np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)
    first, second, third = np.exp(-t * x[0]), np.exp(-t * x[1]), np.exp(-t * x[4])
    J = [-x[2] * t * first, x[3] * t * second, first, -second, -x[5] * t * third, third]
    return x[2] * first - x[3] * second + x[5] * third - y, np.column_stack(J)


def osborne_2(x):
    y = [1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746, 0.679, 0.608]
    y += [0.655, 0.616, 0.606, 0.602, 0.626, 0.651, 0.724, 0.649, 0.649, 0.694, 0.644, 0.624]
    y += [0.661, 0.612, 0.558, 0.533, 0.495, 0.500, 0.423, 0.395, 0.375, 0.372, 0.391, 0.396]
    y += [0.405, 0.428, 0.429, 0.523, 0.562, 0.607, 0.653, 0.672, 0.708, 0.633, 0.668, 0.645]
    y += [0.632, 0.591, 0.559, 0.597, 0.625, 0.739, 0.710, 0.729, 0.720, 0.636, 0.581, 0.428]
    y += [0.292, 0.162, 0.098, 0.054]
    t = np.arange(65)[:, None] / 10
    decay = np.exp(-t * x[4])
    away = t - x[8:]
    bells = np.exp(-(away**2) * x[5:8])
    J = [-decay, -bells, x[0] * t * decay, x[1:4] * away**2 * bells]
    J += [-2 * x[1:4] * x[5:8] * away * bells]
    return np.array(y) - x[0] * decay[:, 0] - bells @ x[1:4], np.hstack(J)


# Any size.


def blockwise(function, size):
    """The function of so many variables for each block of them."""

    def extended(x):
        r, J = zip(*map(function, x.reshape(-1, size)), strict=True)
        return np.concatenate(r), block_diag(*J)

    return extended


def watson(x):
    n = len(x)
    powers = (np.arange(1, 30)[:, None] / 29) ** np.arange(n)
    slopes = np.hstack([np.zeros((29, 1)), np.arange(1, n) * powers[:, :-1]])
    value = powers @ x
    r = [*(slopes @ x - value**2 - 1), x[0], x[1] - x[0] ** 2 - 1]
    J = np.zeros((31, n), x.dtype)
    J[:29] = slopes - 2 * value[:, None] * powers
    J[29, 0] = J[30, 1] = 1
    J[30, 0] = -2 * x[0]
    return r, J


def penalty_1(x):
    J = np.vstack([1e-5**0.5 * np.eye(len(x)), 2 * x])
    return [*(1e-5**0.5 * (x - 1)), x @ x - 0.25], J


def penalty_2(x):
    n = len(x)
    root = 1e-5**0.5
    k = np.arange(1, n + 1)
    growth, known = np.exp(x / 10), np.exp(k / 10)
    sums = growth[1:] + growth[:-1] - known[1:] - known[:-1]
    r = [x[0] - 0.2, *(root * sums), *(root * (growth[1:] - np.exp(-0.1)))]
    slopes = root * np.diag(growth) / 10
    J = [np.eye(1, n), slopes[1:] + slopes[:-1], slopes[1:], [2 * (n + 1 - k) * x]]
    return [*r, (n + 1 - k) @ x**2 - 1], np.vstack(J)


def variably_dimensioned(x):
    k = np.arange(1, len(x) + 1)
    weighted = k @ (x - 1)
    return [*(x - 1), weighted, weighted**2], np.vstack([np.eye(len(x)), k, 2 * weighted * k])


def trigonometric(x):
    n = len(x)
    k = np.arange(1, n + 1)
    r = n - np.cos(x).sum() + k * (1 - np.cos(x)) - np.sin(x)
    return r, np.sin(x) + np.diag(k * np.sin(x) - np.cos(x))


def brown_almost_linear(x):
    n = len(x)
    others = [np.prod(np.delete(x, j)) for j in range(n)]
    J = np.vstack([np.eye(n - 1, n) + 1, others])
    return [*(x[:-1] + x.sum() - (n + 1)), np.prod(x) - 1], J


def discrete_boundary_value(x):
    n = len(x)
    h = 1 / (n + 1)
    cube = x + h * np.arange(1, n + 1) + 1
    second = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    return second @ x + h**2 * cube**3 / 2, second + np.diag(1.5 * h**2 * cube**2)


def discrete_integral_equation(x):
    n = len(x)
    h = 1 / (n + 1)
    t = h * np.arange(1, n + 1)
    green = h / 2 * np.minimum.outer(t, t) * (1 - np.maximum.outer(t, t))
    cube = x + t + 1
    return x + green @ cube**3, np.eye(n) + 3 * green * cube**2


def broyden_tridiagonal(x):
    n = len(x)
    beside = np.eye(n, k=-1) + 2 * np.eye(n, k=1)
    return (3 - 2 * x) * x - beside @ x + 1, np.diag(3 - 4 * x) - beside


def broyden_banded(x):
    n = len(x)
    beside = np.tri(n, k=1) - np.tri(n, k=-6) - np.eye(n)
    J = np.diag(2 + 15 * x**2) - beside * (1 + 2 * x)
    return x * (2 + 5 * x**2) + 1 - beside @ (x * (1 + x)), J


def linear_full_rank(x, m=10):
    J = np.eye(m, len(x)) - 2 / m
    return J @ x - 1, J


def linear_rank_1(x, m=10):
    J = np.outer(np.arange(1, m + 1), np.arange(1, len(x) + 1))
    return J @ x - 1, J


def linear_rank_1_with_zeros(x, m=10):
    J = np.zeros((m, len(x)))
    J[1:-1, 1:-1] = np.outer(np.arange(1, m - 1), np.arange(2, len(x)))
    return J @ x - 1, J


def chebyquad(x):
    """Means of the Chebyshev polynomials on [0, 1] less their integrals; as many as variables."""
    n = len(x)
    z = 2 * x - 1
    T, dT = [np.ones_like(z), z], [np.zeros_like(z), 2 * np.ones_like(z)]
    for _ in range(n - 1):
        T.append(2 * z * T[-1] - T[-2])
        dT.append(4 * T[-2] + 2 * z * dT[-1] - dT[-2])
    k = np.arange(1, n + 1)
    integrals = np.where(k % 2, 0, -1 / np.where(k % 2, 1, k * k - 1))
    return np.mean(T[1:], axis=1) - integrals, np.array(dT[1:]) / n


def _rising(n):
    return tuple(np.arange(1, n + 1) / (n + 1))


_ONCE = (1.0,)
_MGH28 = tuple(t * (t - 1) for t in _rising(10))

MGH = {
    "1 Rosenbrock": Problem(rosenbrock, (-1.2, 1), (0,), (1, 1)),
    "2 Freudenstein and Roth": Problem(freudenstein_roth, (0.5, -2), (0, 48.9842), (5, 4)),
    "3 Powell badly scaled": Problem(powell_badly_scaled, (0, 1), (0, 1e-8), scales=(1.0, 10.0)),
    "4 Brown badly scaled": Problem(brown_badly_scaled, (1, 1), (0,), (1e6, 2e-6)),
    "5 Beale": Problem(beale, (1, 1), (0,), (3, 0.5), _ONCE),
    "6 Jennrich and Sampson": Problem(jennrich_sampson, (0.3, 0.4), (124.362,), scales=_ONCE),
    "7 helical valley": Problem(helical_valley, (-1, 0, 0), (0,), (1, 0, 0)),
    "8 Bard": Problem(bard, (1, 1, 1), (8.21487e-3, 17.4286)),
    "9 Gaussian": Problem(gaussian, (0.4, 1, 0), (1.12793e-8,), scales=_ONCE),
    "10 Meyer": Problem(meyer, (0.02, 4000, 250), (87.9458,), scales=_ONCE),
    "11 Gulf": Problem(gulf_research, (5, 2.5, 0.15), (0,), (50, 25, 1.5), _ONCE),
    "12 Box": Problem(box, (0, 10, 20), (0,), (1, 10, 1), _ONCE),
    "13 Powell singular": Problem(powell_singular, (3, -1, 0, 1), (0,), (0,) * 4),
    "14 Wood": Problem(wood, (-3, -1, -3, -1), (0,), (1,) * 4),
    "15 Kowalik and Osborne": Problem(
        kowalik_osborne, (0.25, 0.39, 0.415, 0.39), (3.07505e-4, 1.02734e-3)
    ),
    "16 Brown and Dennis": Problem(brown_dennis, (25, 5, -5, -1), (85822.2,)),
    "17 Osborne 1": Problem(osborne_1, (0.5, 1.5, -1, 0.01, 0.02), (5.46489e-5,), scales=_ONCE),
    "18 Biggs": Problem(biggs, (1, 2, 1, 1, 1, 1), (0, 5.65565e-3), (1, 10, 1, 5, 4, 3), _ONCE),
    "19 Osborne 2": Problem(
        osborne_2, (1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5), (4.01377e-2,), scales=_ONCE
    ),
    "20 Watson, 6": Problem(watson, (0,) * 6, (2.28767e-3,)),
    "20 Watson, 9": Problem(watson, (0,) * 9, (1.39976e-6,)),
    "20 Watson, 12": Problem(watson, (0,) * 12, (4.72238e-10,)),
    "21 Rosenbrock, 10": Problem(blockwise(rosenbrock, 2), (-1.2, 1) * 5, (0,), (1,) * 10),
    "22 Powell singular, 12": Problem(
        blockwise(powell_singular, 4), (3, -1, 0, 1) * 3, (0,), (0,) * 12
    ),
    "23 penalty I, 4": Problem(penalty_1, (1, 2, 3, 4), (2.24997e-5,)),
    "23 penalty I, 10": Problem(penalty_1, tuple(range(1, 11)), (7.08765e-5,)),
    "24 penalty II, 4": Problem(penalty_2, (0.5,) * 4, (9.37629e-6,)),
    "24 penalty II, 10": Problem(penalty_2, (0.5,) * 10, (2.93660e-4,)),
    "25 variably dimensioned, 10": Problem(
        variably_dimensioned, tuple(1 - np.arange(1, 11) / 10), (0,), (1,) * 10
    ),
    "26 trigonometric, 10": Problem(
        trigonometric, (0.1,) * 10, (0, 2.79506e-5, 8.78823e-4), (0,) * 10
    ),
    "27 Brown almost-linear, 10": Problem(brown_almost_linear, (0.5,) * 10, (0, 1), (1,) * 10),
    "28 boundary value, 10": Problem(discrete_boundary_value, _MGH28, (0,)),
    "29 integral equation, 10": Problem(discrete_integral_equation, _MGH28, (0,)),
    "30 Broyden tridiagonal, 10": Problem(broyden_tridiagonal, (-1,) * 10, (0,)),
    "31 Broyden banded, 10": Problem(broyden_banded, (-1,) * 10, (0,)),
    "32 linear": Problem(linear_full_rank, (1,) * 5, (5,), (-1,) * 5),
    "33 linear, rank 1": Problem(linear_rank_1, (1,) * 5, (10 * 9 / (2 * 21),)),
    "34 linear, rank 1, zeros": Problem(
        linear_rank_1_with_zeros, (1,) * 5, ((10**2 + 3 * 10 - 6) / (2 * 17),)
    ),
    "35 Chebyquad, 8": Problem(chebyquad, _rising(8), (3.51687e-3,), scales=_ONCE),
    "35 Chebyquad, 9": Problem(chebyquad, _rising(9), (0,), scales=_ONCE),
    "35 Chebyquad, 10": Problem(chebyquad, _rising(10), (4.77271e-3, 6.50395e-3), scales=_ONCE),
}
