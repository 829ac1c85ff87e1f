"""Numerical derivatives with error estimates.

Difference quotients at LEVELS steps, from a tenth of the variable's scale down to where rounding
takes over, are extrapolated to step 0 (Richardson). As in Ridders' method the error of each
extrapolated value is estimated by its distance to the values from which it is computed, plus a
bound of its rounding error. The error is at least the disagreement with values from smaller steps:
coarse steps may all miss a feature and agree with each other on a wrong value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LEVELS = 10
# Columns of the extrapolation table; the first has the difference quotients.
COLUMNS = 4
# Function values from which rounding errors are estimated.
NOISE_SAMPLES = 13

Function = Callable[[np.ndarray], float]


class Estimate(NamedTuple):
    """A number and an estimate of its error."""

    value: float
    error: float


class Differences(NamedTuple):
    """Function values around a point in one direction.

    Attributes
    ----------
    steps : numpy.ndarray (LEVELS, 2)
        The steps forward and backward, after rounding to the grid; both positive.
    rises : numpy.ndarray (LEVELS, 2)
        The increases of the function over these steps.
    noise : numpy.ndarray (LEVELS, 2)
        The rounding errors to expect in the increases.
    ratio : float
        The ratio of each step to the next smaller one.
    """

    steps: np.ndarray
    rises: np.ndarray
    noise: np.ndarray
    ratio: float

    def central(self) -> Estimate:
        """The derivative from both sides: errors go down with even powers of the step."""
        width = self.steps.sum(axis=1)
        quotients = (self.rises[:, 0] - self.rises[:, 1]) / width
        return extrapolate(quotients, self.noise.sum(axis=1) / width, self.ratio, 2)

    def one_sided(self, side: int) -> Estimate:
        """The derivative from the right (0) or from the left (1)."""
        sign = 1 - 2 * side
        steps = self.steps[:, side]
        quotients = sign * self.rises[:, side] / steps
        return extrapolate(quotients, 2 * self.noise[:, side] / steps, self.ratio, 1)


class Grid:
    """Rounds points to the numbers that the function distinguishes.

    A float32 network rounds its parameters to float32, so that a step must be one between float32
    numbers.

    Parameters
    ----------
    kind : dtype
        The type of the function's arithmetic.
    dtype : numpy.dtype
        The type of the arrays that it receives.
    """

    def __init__(self, kind: Any, dtype: np.dtype):
        self.kind, self.dtype = np.dtype(kind), dtype
        self.eps = float(np.finfo(self.kind).eps)

    def __call__(self, x: Any) -> np.ndarray:
        return np.asarray(x).astype(self.kind).astype(self.dtype)


def differences(
    f: Function, x: np.ndarray, f0: float, noise: float, place: int | np.ndarray, grid: Grid
) -> Differences:
    """Differences of `f` around `x` along one line.

    Parameters
    ----------
    f : callable
        x (n,) -> float.
    x : numpy.ndarray (n,)
    f0 : float
        f(x).
    noise : float
        The rounding error to expect in f0.
    place : int or numpy.ndarray (n,)
        A coordinate, or a direction.
    grid : Grid
    """
    scale = 1.0 if isinstance(place, np.ndarray) else abs(float(x[place]))
    largest = 0.1 * max(1.0, scale)
    # eps^(1/3) balances the truncation and rounding errors of a central difference.
    smallest = grid.eps ** (1 / 3) * (min(1.0, max(scale, 1e-8)) if scale else 1.0)
    smallest = max(smallest, 64 * grid.eps * scale)
    ratio = (largest / smallest) ** (1 / (LEVELS - 1))
    steps = np.empty((LEVELS, 2))
    values = np.empty((LEVELS, 2))
    for level in range(LEVELS):
        for side, sign in enumerate((1.0, -1.0)):
            t = sign * largest / ratio**level
            if isinstance(place, np.ndarray):
                y = grid(x + t * place)
                steps[level, side] = abs(t)
            else:
                y = x.copy()
                y[place] = grid(x[place] + t)
                steps[level, side] = abs(float(y[place]) - float(x[place]))
            with np.errstate(all="ignore"):  # a far step may overflow: its value is left out then
                values[level, side] = f(y)
    with np.errstate(invalid="ignore", over="ignore"):
        return Differences(
            steps, values - f0, np.maximum(noise, grid.eps * np.abs(values)), float(ratio)
        )


def extrapolate(values: np.ndarray, noise: np.ndarray, ratio: float, power: int) -> Estimate:
    """The limit of values at steps h, h/ratio, h/ratio², ... whose errors are a power series in h.

    Parameters
    ----------
    values : numpy.ndarray (LEVELS,)
    noise : numpy.ndarray (LEVELS,)
        Bound of the rounding error in each value.
    ratio : float
    power : int
        2 if the powers of the series are 2, 4, 6, ...; 1 if they are 1, 2, 3, ...
    """
    candidates, errors, levels = [], [], []
    with np.errstate(invalid="ignore", over="ignore"):
        for column in range(COLUMNS):
            if column == 0:
                finer, better, noise_of_better = values[1:], values[1:], noise[1:]
                error = np.abs(values[1:] - values[:-1])
            else:
                factor = ratio ** (power * column)
                coarser, finer = values[:-1], values[1:]
                better = finer + (finer - coarser) / (factor - 1)
                noise_of_better = (factor * noise[1:] + noise[:-1]) / (factor - 1)
                error = np.maximum(np.abs(better - finer), np.abs(better - coarser))
                values, noise = better, noise_of_better
            candidates.append(better)
            errors.append(error + noise_of_better)
            levels.append(np.arange(LEVELS - len(better), LEVELS))
        value, error, level = map(np.concatenate, (candidates, errors, levels))
        usable = np.isfinite(value) & np.isfinite(error)
        if not usable.any():
            return Estimate(np.nan, np.inf)
        value, error, level = value[usable], error[usable], level[usable]
        distance = np.abs(value[:, None] - value) - error
        distance[level[:, None] >= level] = 0  # only values from smaller steps count
        error = np.maximum(error, distance.max(axis=1))
    best = int(np.argmin(error))
    return Estimate(float(value[best]), float(error[best]))


def rounding_noise(
    f: Callable[[np.ndarray], Any], x: np.ndarray, grid: Grid, rng: np.random.Generator
) -> np.ndarray:
    """The standard deviation of the rounding errors in each number that `f` returns near `x`.

    Over steps of a few units in the last place a smooth function is a parabola plus rounding
    errors, so that third differences consist of rounding errors alone; if these are uncorrelated,
    the third differences have sqrt(20) times their deviation [1]_. A jump of the function affects
    at most three of them, and so hardly their median.

    References
    ----------
    .. [1] J. J. Moré, S. M. Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33, 2011.
    """
    direction = rng.choice([-32.0, 32.0], x.shape) * grid.eps * np.maximum(np.abs(x), 1.0)
    samples = np.array([f(grid(x + k * direction)) for k in range(NOISE_SAMPLES)], np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        third = np.diff(samples, 3, axis=0)
        deviation = np.median(np.abs(third), axis=0) / (0.6745 * np.sqrt(20))  # of a normal one
    return np.nan_to_num(deviation, posinf=0.0)
