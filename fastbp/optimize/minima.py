"""What many starts came to: their results, best first, in clusters of the same objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.arrays import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A cluster runs away if its parameters are so many times as large as the starts'...
FAR = 1000.0
# ... or only so many, but the lower the objective is the larger they are.
FARTHER = 10.0


@dataclass(frozen=True)
class Cluster:
    """Starts that came to the same objective.

    Attributes
    ----------
    fun : float
        The lowest.
    members : range
        Their places in the list of results.
    n_points : int
        At how many different points they are, symmetries of the network apart.
    growth : float
        How many times as large as in the starts a parameter has become, at the lowest.
    runaway : bool
        Whether the parameters grow without limit while the objective tends to a finite one: there
        is no minimum, and the parameters that grow mean nothing.
    """

    fun: float
    members: range
    n_points: int
    growth: float
    runaway: bool


@dataclass(eq=False, repr=False)
class MultistartResult(Sequence[Any]):
    """What many starts came to, best first; a sequence of their results.

    Those that diverged or failed come last, and starts that the time did not suffice for are not
    in it.

    Attributes
    ----------
    results : list
        Of each start that was begun the `FitResult` or `scipy.optimize.OptimizeResult`, without
        its matrices; None if it raised an exception.
    fun : numpy.ndarray (n,)
        Their objectives, for least-squares methods half the sum of squares; NaN where it raised.
    params : numpy.ndarray (n, n_params)
        Where they ended, NaN where it raised; `x` is the same.
    starts : numpy.ndarray (n, n_params)
        Where they began.
    order : numpy.ndarray (n,)
        The number of each in the order in which they began, from 0.
    seeds : numpy.ndarray (n,) or None
        With its seed, `fit` gives the result again, bit for bit; of starts drawn by a function that
        of its Generator. None if they were given or drawn together.
    messages : list of str
        How each ended.
    failed : numpy.ndarray of bool (n,)
        Which diverged, raised an exception or ended in no finite numbers.
    clusters : list of Cluster
        Of the others, lowest first.
    n_starts : int
        How many were asked for.
    seed : int or None
        With it the same call gives the same results.
    success : bool
        Whether all were begun and none was interrupted.
    message : str
    method : str
    elapsed : float
        Seconds.
    """

    results: list[Any]
    fun: np.ndarray
    params: np.ndarray
    starts: np.ndarray
    order: np.ndarray
    seeds: np.ndarray | None
    messages: list[str]
    failed: np.ndarray
    clusters: list[Cluster]
    n_starts: int
    seed: int | None
    success: bool
    message: str
    method: str
    elapsed: float

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, k: Any) -> Any:
        return self.results[k]

    @property
    def best(self) -> Any:
        """The result with the lowest objective."""
        return self.results[0]

    @property
    def x(self) -> np.ndarray:
        """`params`, as SciPy calls them."""
        return self.params

    def __repr__(self) -> str:
        return (
            f"MultistartResult({self.message}\n"
            f"  fun={self.fun[0]:.6g} at best, {len(self.clusters)} clusters, "
            f"{self.failed.sum()} failed, seed={self.seed})"
        )

    def summary(self) -> str:
        """What was found in words and figures: the spread of the objectives, and the clusters."""
        from ..reports.summaries import multistart_summary

        return multistart_summary(self)

    def plot(self) -> Figure:
        """Plot the objectives from the lowest to the highest, a colour for each cluster.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        from ..reports.plots import multistart_result

        return multistart_result(self)


@dataclass(frozen=True)
class Ending:
    """What is looked at of a start's result."""

    fun: float
    params: np.ndarray
    message: str
    failed: bool = False


def collected(
    outcomes: Sequence[Any],
    ending: Callable[[Any], Ending],
    starts: np.ndarray,
    seeds: np.ndarray | None,
    canonical: Callable[[np.ndarray], np.ndarray],
    rtol: float,
    atol: float,
    **told: Any,
) -> MultistartResult:
    """Sort what the starts came to, and find the clusters.

    Parameters
    ----------
    outcomes : sequence
        What `_starts.run` returned.
    ending : callable
        Reads a result.
    starts : numpy.ndarray (n_starts, n_params)
    seeds : numpy.ndarray (n_starts,) or None
    canonical : callable
        Parameters -> a vector that is the same for all that do the same.
    rtol, atol : float
        Objectives f and g, f the lowest of a cluster, belong together if g - f <= rtol·|f| + atol.
    **told
        Other attributes of the result.
    """
    begun = [k for k, outcome in enumerate(outcomes) if outcome is not None]
    results = [None if isinstance(outcomes[k], Exception) else outcomes[k] for k in begun]
    nowhere = np.full(starts.shape[1], np.nan, starts.dtype)
    endings = [
        Ending(np.nan, nowhere, f"{type(outcomes[k]).__name__}: {outcomes[k]}", True)
        if result is None
        else ending(result)
        for k, result in zip(begun, results, strict=True)
    ]
    fun = np.array([e.fun for e in endings], np.float64)
    params = np.array([e.params for e in endings])
    failed = np.array([e.failed for e in endings])
    failed |= ~(np.isfinite(fun) & np.isfinite(params).all(axis=1))
    best_first = np.lexsort((np.where(np.isnan(fun), np.inf, fun), failed))
    order = np.array(begun)[best_first]
    fun, params, failed = fun[best_first], params[best_first], failed[best_first]
    good = len(fun) - int(failed.sum())
    return MultistartResult(
        results=[results[k] for k in best_first],
        fun=fun,
        params=params,
        starts=starts[order],
        order=order,
        seeds=None if seeds is None else seeds[order],
        messages=[endings[k].message for k in best_first],
        failed=failed,
        clusters=_clusters(fun[:good], params[:good], starts, canonical, rtol, atol),
        n_starts=len(outcomes),
        **told,
    )


def tolerance(name: str, value: Any) -> float:
    """A tolerance as a float; ValueError unless it is finite and >= 0."""
    found = number(name, value)
    if not 0 <= found < np.inf:
        raise ValueError(f"{name} is {found}, expected a finite number >= 0, such as 1e-3")
    return found


# Clusters.


def _clusters(
    fun: np.ndarray,
    params: np.ndarray,
    starts: np.ndarray,
    canonical: Callable[[np.ndarray], np.ndarray],
    rtol: float,
    atol: float,
) -> list[Cluster]:
    """Of objectives in ascending order, and of the parameters there."""
    if not len(fun):
        return []
    # Near a minimum the objective grows with the square of the distance.
    near = float(np.sqrt(rtol))
    points = np.array([canonical(p) for p in params])
    typical = np.median(np.abs(points), axis=0)
    growth = _growth(params, starts)
    clusters, first = [], 0
    while first < len(fun):
        last = int(np.searchsorted(fun, fun[first] + rtol * abs(fun[first]) + atol, "right"))
        here = slice(first, last)
        clusters.append(
            Cluster(
                float(fun[first]),
                range(first, last),
                _n_points(points[here], typical, near),
                float(growth[first]),
                _runs_away(growth[here], near),
            )
        )
        first = last
    return clusters


def _n_points(points: np.ndarray, typical: np.ndarray, near: float) -> int:
    """How many of the points (k, n) are not near, relative to their sizes, to one before them."""
    count = 0
    while len(points):
        distance = np.abs(points - points[0])
        points = points[(distance > near * (np.abs(points[0]) + typical)).any(axis=1)]
        count += 1
    return count


def _growth(params: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The largest of the parameters as shares of the largest in the starts, (k,)."""
    sizes = np.abs(starts).max(axis=0)
    sizes[sizes == 0] = sizes.max() or 1.0  # biases start at 0
    return (np.abs(params) / sizes).max(axis=1)


def _runs_away(growth: np.ndarray, near: float) -> bool:
    """Whether parameters that have grown so in a cluster, lowest objective first, have no limit."""
    k, largest = len(growth), growth.max()
    if k > 1 and largest - growth.min() <= near * largest:  # they agree on one
        return False
    if growth[0] > FAR:
        return True
    ranks = growth.argsort().argsort()
    return bool(k > 2 and growth[0] > FARTHER and np.corrcoef(ranks, np.arange(k))[0, 1] < -0.5)
