"""A gradient beside numerical derivatives (`Comparison`), and the verdict on it (`GradCheck`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.errors import NonFiniteError
from .numerical import Function, Grid, differences, rounding_noise

# An entry may differ from the numerical derivative by this many of its error estimates.
SAFETY = 3.0
# Random directions beside a sample of the entries.
N_DIRECTIONS = 8


@dataclass(frozen=True, eq=False, repr=False)
class GradCheck:
    """The result of a check of a gradient; true in a condition if the gradient passed.

    Attributes
    ----------
    passed : bool
    worst : int or tuple
        The entry with the largest difference in units of its tolerance. For `check_vjp` the number
        of the input and the entry's index in it. Negative for a random direction.
    max_error : float
        |analytic - numeric| there.
    error_estimate : float
        The error estimate of the numerical derivative there.
    indices : list
        The compared entries, as in `worst`.
    analytic, numeric, errors : numpy.ndarray (len(indices),)
        The gradient's values, the numerical derivatives and their error estimates.
    message : str
        The verdict in one or two lines, which are also the object's repr.
    """

    passed: bool
    worst: Any
    max_error: float
    error_estimate: float
    indices: list[Any]
    analytic: np.ndarray
    numeric: np.ndarray
    errors: np.ndarray
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return self.message


@dataclass(frozen=True, eq=False)
class Comparison:
    """A gradient beside numerical derivatives, entry by entry.

    Attributes
    ----------
    places : list
        The index of each entry; negative numbers are random directions.
    analytic, numeric, errors, tolerance : numpy.ndarray (len(places),)
        The gradient, the numerical derivatives, their error estimates, and the differences allowed.
    doubtful : numpy.ndarray of bool (len(places),)
        Where the numerical derivative is too uncertain for a verdict.
    sides : numpy.ndarray (len(places), 2)
        The derivatives from the left and from the right, where the entry disagrees with the
        numerical derivative and they with each other; NaN elsewhere.
    slack : numpy.ndarray (len(places),)
        How far outside them an entry may lie.
    notes : list of str
        Further faults; with one the check fails.
    """

    places: list[Any]
    analytic: np.ndarray
    numeric: np.ndarray
    errors: np.ndarray
    tolerance: np.ndarray
    doubtful: np.ndarray
    sides: np.ndarray
    slack: np.ndarray
    notes: list[str]

    @property
    def excess(self) -> np.ndarray:
        """Each difference in units of its tolerance."""
        return _excess(self.analytic - self.numeric, self.tolerance)

    @property
    def subgradients(self) -> np.ndarray:
        """Which entries are at a kink and lie between the derivatives from either side, bool."""
        low, high = self.sides.min(axis=1), self.sides.max(axis=1)
        return (self.analytic >= low - self.slack) & (self.analytic <= high + self.slack)


def _excess(difference: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """|difference|/tolerance; 0 where they are equal, infinite where that is not known."""
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.where(difference == 0, 0.0, np.abs(difference) / tolerance)
    return np.where(np.isnan(excess), np.inf, excess)


def compare(
    value: Function,
    value_and_grad: Callable[[np.ndarray], tuple[float, np.ndarray]],
    x: np.ndarray,
    grid: Grid,
    grad_grid: Grid,
    places: np.ndarray,
    samples: int,
    rng: np.random.Generator,
    name: str = "x",
) -> Comparison:
    """Compare the gradient at `x` with numerical derivatives in the entries `places`.

    If these are more than `samples`, so many of them are drawn at random, and N_DIRECTIONS random
    directions through all of them are compared too.

    Parameters
    ----------
    value, value_and_grad : callable
        The function, x (n,) -> f, and with its gradient (n,).
    x : numpy.ndarray (n,)
        A point on both grids.
    grid, grad_grid : Grid
        The numbers that the function and its gradient distinguish.
    places : numpy.ndarray of int (n_places,)
    samples : int
    rng : Generator
    name : str
        The name of `x` in messages.

    Raises
    ------
    NonFiniteError
        If the function is not finite at `x`.
    """
    f0, g = value_and_grad(x)
    if not np.isfinite(f0):
        raise NonFiniteError(
            f"the function is {f0} at {name}, expected a finite number; gradients can be checked "
            f"only where the function is finite"
        )
    size = np.abs(g[np.isfinite(g)]).max(initial=0.0)
    f1, g1 = value_and_grad(x)
    notes = []
    # Equal up to the order in which threads of the user's function may add.
    if not (
        np.isclose(f0, f1, rtol=1e3 * grid.eps, atol=0)
        and np.allclose(g, g1, rtol=0, atol=1e3 * grad_grid.eps * size, equal_nan=True)
    ):
        notes.append(f"called twice at {name}, the function gave different results: is it random?")
    noise = max(3 * float(rounding_noise(value, x, grid, rng)), grid.eps * abs(f0))
    grad_noise = rounding_noise(lambda x: value_and_grad(x)[1], x, grad_grid, rng)

    labels = places.tolist()
    lines: list[int | np.ndarray] = list(labels)
    if len(places) > samples:
        labels = sorted(rng.choice(places, samples, replace=False).tolist())
        lines = [*labels, *_directions(x.size, places, rng)]
        labels += range(-1, -1 - N_DIRECTIONS, -1)

    per_line = [differences(value, x, f0, noise, line, grid) for line in lines]
    numeric, errors = np.array([d.central() for d in per_line]).reshape(-1, 2).T
    analytic = np.array([_along(g, line) for line in lines])
    deviation = np.sqrt([_along(grad_noise**2, line, squared=True) for line in lines])
    tolerance = SAFETY * errors + 10 * deviation + 64 * grad_grid.eps * size
    # At a minimum all derivatives are rounding errors, and the size of the function is the measure.
    resolution = np.sqrt(grid.eps) * abs(f0) / (1 + np.abs(x).max())
    doubtful = ~(errors <= max(0.01 * size, 0.1 * resolution))

    sides = np.full((len(lines), 2), np.nan)
    slack = np.where(np.isfinite(tolerance), tolerance, 0.0)
    for k in np.flatnonzero(doubtful | (_excess(analytic - numeric, tolerance) > 1)):
        left, right = per_line[k].one_sided(1), per_line[k].one_sided(0)
        if abs(right.value - left.value) > right.error + left.error:
            sides[k] = left.value, right.value
            slack[k] += SAFETY * max(left.error, right.error)
    return Comparison(labels, analytic, numeric, errors, tolerance, doubtful, sides, slack, notes)


def _directions(n: int, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors (N_DIRECTIONS, n) that involve all places alike."""
    directions = np.zeros((N_DIRECTIONS, n))
    directions[:, places] = rng.choice([-1.0, 1.0], (N_DIRECTIONS, len(places)))
    return directions / np.sqrt(len(places))


def _along(g: np.ndarray, line: int | np.ndarray, squared: bool = False) -> float:
    """The entry of g, or its product with the (squared) direction."""
    if not isinstance(line, np.ndarray):
        return float(g[line])
    return float(g @ (line**2 if squared else line))


def is_direction(place: Any) -> bool:
    """Whether a place, as in `Comparison.places`, is a random direction."""
    last = place[-1] if isinstance(place, tuple) else place
    return isinstance(last, int) and last < 0


def verdict(c: Comparison, n_entries: int, describe: Callable[[Any], str]) -> GradCheck:
    """The verdict on a comparison.

    Parameters
    ----------
    c : Comparison
    n_entries : int
        All entries of the gradient, compared or not.
    describe : callable
        ``describe(place) -> str``, an entry of `c.places` in words.
    """
    accepted = c.subgradients
    decided = np.isfinite(c.errors) | ~np.isfinite(c.analytic)
    wrong = (c.excess > 1) & decided & ~accepted
    doubtful = c.doubtful & ~wrong & ~accepted
    # The worst of the wrong ones, else of the doubtful ones, else of all, kinks last.
    worst = int(np.lexsort((c.excess, 3 * wrong + 2 * doubtful - accepted))[-1])

    n_directions = sum(map(is_direction, c.places))
    n_checked = len(c.places) - n_directions
    extent = f"{n_checked} entries" + (f" of {n_entries}" if n_checked < n_entries else "")
    if n_directions:
        extent += f" and {n_directions} random directions"
    if wrong.any():
        head = f"FAILED: gradient wrong in {wrong.sum()} of {extent}"
    elif doubtful.any():
        head = f"FAILED: undecided in {doubtful.sum()} of {extent}"
    else:
        head = f"{'FAILED' if c.notes else 'passed'}: gradient right in {extent}"
    remarks = list(c.notes)
    if doubtful.any():
        remarks.append("the numerical derivative is too uncertain: is the function rough here?")
    if (wrong | doubtful)[worst] and np.isfinite(c.sides[worst]).all():
        left, right = c.sides[worst]
        remarks.append(
            f"not differentiable here? the derivative is {left:.9g} from the left and {right:.9g} "
            f"from the right"
        )
    if accepted.any():
        remarks.append(
            f"{accepted.sum()} at a kink, where any value between the derivatives from the left "
            f"and from the right is right"
        )
    message = (
        f"{head}; worst is {describe(c.places[worst])}: analytic {c.analytic[worst]:.9g}, "
        f"numeric {c.numeric[worst]:.9g} ± {c.errors[worst]:.1e}"
    )
    return GradCheck(
        passed=not (wrong.any() or doubtful.any() or c.notes),
        worst=c.places[worst],
        max_error=float(abs(c.analytic[worst] - c.numeric[worst])),
        error_estimate=float(c.errors[worst]),
        indices=c.places,
        analytic=c.analytic,
        numeric=c.numeric,
        errors=c.errors,
        message="\n".join([message, *(["; ".join(remarks)] if remarks else [])]),
    )
