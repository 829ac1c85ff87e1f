"""`MultistartResult`: the results of many starts, best first, in clusters of equal objectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.arrays import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A cluster runs away if its parameters are so many times as large as the starts', or so many times
# as large and the larger the lower the objective is.
RUNAWAY_GROWTH, ORDERED_GROWTH = 1000.0, 10.0


@dataclass(frozen=True)
class Cluster:
    """Starts that reached the same objective.

    Attributes
    ----------
    fun : float
        The lowest objective of the members.
    members : range
        Their places in the list of results.
    n_points : int
        The number of different points among them; points that differ only by symmetries of the
        network count once.
    growth : float
        At the lowest objective, the largest ratio of a parameter to its size in the starts.
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
    """The results of many starts, as a sequence: the lowest objective first.

    Starts that diverged or failed come last; starts that `max_time` or Ctrl-C left out are missing.

    Attributes
    ----------
    results : list
        Of each start that was begun the `FitResult` or `scipy.optimize.OptimizeResult`, without
        its matrices; None if it raised an exception.
    fun : numpy.ndarray (n,)
        Their objectives, for least-squares methods half the sum of squares; NaN where it raised.
    params : numpy.ndarray (n, n_params)
        The final parameters, NaN where it raised; `x` is the same.
    starts : numpy.ndarray (n, n_params)
        The initial parameters.
    order : numpy.ndarray (n,)
        The number of each start, from 0, in the order in which they began.
    seeds : numpy.ndarray (n,) or None
        The seed of each start: with it `fit` gives the same result, bit for bit. For starts drawn
        by a function, the seed of its Generator; None for points and for bounds.
    messages : list of str
        How each ended.
    failed : numpy.ndarray of bool (n,)
        Which diverged, raised an exception or ended at numbers that are not finite.
    clusters : list of Cluster
        The clusters of the others, lowest objective first.
    n_starts : int
        The number of starts that the call asked for.
    seed : int or None
        With it the same call gives the same results.
    success : bool
        Whether all starts were begun and none was interrupted.
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
        """The results in words and figures: the spread of the objectives, and the clusters."""
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
class EndPoint:
    """Where a start ended: objective, parameters (n_params,), message; whether it diverged."""

    fun: float
    params: np.ndarray
    message: str
    failed: bool = False


def as_multistart_result(
    outcomes: Sequence[Any],
    end_point: Callable[[Any], EndPoint],
    starts: np.ndarray,
    seeds: np.ndarray | None,
    canonical: Callable[[np.ndarray], np.ndarray],
    rtol: float,
    atol: float,
    **attributes: Any,
) -> MultistartResult:
    """Sort the results of the starts, and find the clusters.

    Parameters
    ----------
    outcomes : sequence
        The first value that `run_starts` returned.
    end_point : callable
        A result -> its EndPoint.
    starts : numpy.ndarray (n_starts, n_params)
    seeds : numpy.ndarray (n_starts,) or None
    canonical : callable
        Parameters (n_params,) -> a vector that is equal for parameters that differ by a symmetry.
    rtol, atol : float
        Objectives f and g, f the lowest of a cluster, belong together if g - f <= rtol·|f| + atol.
    **attributes
        The attributes of the result that are about the call.
    """
    begun = [k for k, outcome in enumerate(outcomes) if outcome is not None]
    results = [None if isinstance(outcomes[k], Exception) else outcomes[k] for k in begun]
    no_params = np.full(starts.shape[1], np.nan, starts.dtype)
    ends = [
        EndPoint(np.nan, no_params, f"{type(outcomes[k]).__name__}: {outcomes[k]}", True)
        if result is None
        else end_point(result)
        for k, result in zip(begun, results, strict=True)
    ]
    fun = np.array([end.fun for end in ends], np.float64)
    params = np.array([end.params for end in ends])
    failed = np.array([end.failed for end in ends])
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
        messages=[ends[k].message for k in best_first],
        failed=failed,
        clusters=_clusters(fun[:good], params[:good], starts, canonical, rtol, atol),
        n_starts=len(outcomes),
        **attributes,
    )


def checked_tolerance(name: str, value: Any) -> float:
    """A tolerance as a float; ValueError unless it is finite and >= 0."""
    tolerance = number(name, value)
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"{name} is {tolerance}, expected a finite number >= 0, such as 1e-3")
    return tolerance


# Clusters.


def _clusters(
    fun: np.ndarray,
    params: np.ndarray,
    starts: np.ndarray,
    canonical: Callable[[np.ndarray], np.ndarray],
    rtol: float,
    atol: float,
) -> list[Cluster]:
    """The clusters of objectives (k,) in ascending order, with the parameters (k, n_params) there.

    The other arguments are those of `as_multistart_result`.
    """
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
    """How many of the points (k, n) are not near, relative to their sizes, to an earlier one.

    `typical` (n,) are the sizes of the coordinates; `near` is the relative distance.
    """
    count = 0
    while len(points):
        distance = np.abs(points - points[0])
        points = points[(distance > near * (np.abs(points[0]) + typical)).any(axis=1)]
        count += 1
    return count


def _growth(params: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The largest ratio of a parameter to its size in the starts, (k,), for params (k, n)."""
    sizes = np.abs(starts).max(axis=0)
    sizes[sizes == 0] = sizes.max() or 1.0  # biases start at 0
    return (np.abs(params) / sizes).max(axis=1)


def _runs_away(growth: np.ndarray, near: float) -> bool:
    """Whether the parameters of a cluster have no limit.

    `growth` (k,) is that of its members, lowest objective first; `near` as in `_n_points`.
    """
    k, largest = len(growth), growth.max()
    if k > 1 and largest - growth.min() <= near * largest:  # all ended equally large
        return False
    if growth[0] > RUNAWAY_GROWTH:
        return True
    ranks = growth.argsort().argsort()
    return bool(
        k > 2 and growth[0] > ORDERED_GROWTH and np.corrcoef(ranks, np.arange(k))[0, 1] < -0.5
    )
