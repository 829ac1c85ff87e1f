"""Curves: functions f(x, *parameters) with their derivatives, and the result of fitting one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.arrays import FLOAT64, number, real_array
from ..common.errors import ShapeError, TraceError
from ..maths.models import (
    Model,
    forget,
    require_agreement,
    require_agreement_nearby,
    trace_curve,
)
from ..maths.robust import LINEAR_RHO, Robust, influence, rho
from ..maths.uncertainty import (
    N_LISTED,
    Uncertainty,
    listed,
    of_jacobian,
    regular_inverse,
    t_quantile,
)
from .differences import jacobian_by_differences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIFFERENCES = ("2-point", "3-point", "cs")
_COMPLEX_STEP = 1e-30
# A point is no minimum if the sum of squares falls by more than this share as parameters change by
# that share along a direction in which the residuals do not change to first order.
_SADDLE_GAIN, _SADDLE_STEP, _SADDLE_DIRECTIONS = 1e-9, 1e-2, 8


class Curve:
    """A function f(x, *p) of n rows, and its derivatives by the parameters p (k,).

    Parameters
    ----------
    f : callable
    x : object
        What f takes.
    n : int
    jac : callable, "2-point", "3-point" or "cs"
        jac(x, *p) -> (n, k), or the differences that are taken.
    model : Model, optional
        Exact values and derivatives, used in the place of f and jac.
    bounds : pair of numpy.ndarray (k,), or None
        Between which differences are taken.

    Attributes
    ----------
    is_stored : bool
        Whether the model is one that an earlier call compared with f.
    """

    is_stored = False

    def __init__(
        self,
        f: Callable,
        x: Any,
        n: int,
        jac: Any = "3-point",
        model: Model | None = None,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        self.f, self.x, self.n, self.jac, self.model = f, x, n, jac, model
        self.bounds = bounds

    def values(self, p: np.ndarray) -> np.ndarray:
        """The curve (n,)."""
        if self.model is not None:
            return self.model.values(p)
        return self.called(p)

    def called(self, p: np.ndarray) -> np.ndarray:
        """What f returns (n,) at p; a number counts for all rows.

        Raises
        ------
        ShapeError
            If it has another shape.
        TypeError
            If it is not of real numbers.
        """
        return self._vector(self.f(_copy(self.x), *p), FLOAT64)

    def _vector(self, value: Any, dtype: np.dtype) -> np.ndarray:
        if dtype is FLOAT64:
            y = real_array("what f returned", value, FLOAT64)
        else:
            y = np.asarray(value, dtype)
        if y.shape == (self.n,):
            return y.copy()
        if y.size != 1 or y.ndim > 1:
            raise ShapeError(
                f"f returned an array of shape {y.shape}, expected ({self.n},), an entry for each "
                f"row of the data"
            )
        result = np.empty(self.n, dtype)
        result[:] = y
        return result

    def jacobian(self, p: np.ndarray) -> np.ndarray:
        """The derivatives (n, k) by the parameters."""
        if self.model is not None and not callable(self.jac):
            return self.model.jacobian(p)
        if callable(self.jac):
            J = real_array("what jac returned", self.jac(_copy(self.x), *p), FLOAT64)
            if J.shape != (self.n, len(p)):
                hint = ": it is transposed, return J.T" if J.shape == (len(p), self.n) else ""
                raise ShapeError(
                    f"jac returned shape {J.shape}, expected ({self.n}, {len(p)}), a row per row "
                    f"of the data and a column per parameter{hint}"
                )
            return J.copy()
        return self._complex_steps(p) if self.jac == "cs" else self.differences(p)

    def _complex_steps(self, p: np.ndarray) -> np.ndarray:
        J = np.empty((self.n, len(p)))
        for j in range(len(p)):
            moved = p.astype(np.complex128)
            moved[j] += 1j * _COMPLEX_STEP
            y = self._vector(self.f(_copy(self.x), *moved.tolist()), np.dtype(np.complex128))
            J[:, j] = y.imag / _COMPLEX_STEP
        return J

    def differences(self, p: np.ndarray) -> np.ndarray:
        """The derivatives by differences, central ones unless `jac` is "2-point"."""
        kind = "2-point" if self.jac == "2-point" else "3-point"
        return jacobian_by_differences(self.called, p, self.called(p), kind, self.bounds)


def traced_curve(curve: Curve, p: np.ndarray) -> np.ndarray | None:
    """Trace the function of a curve, and set its model, if its values agree with those of f.

    They are compared at p and at a point nearby, unless the expression was stored earlier.

    Returns
    -------
    numpy.ndarray (n,) or None
        What f returned at p, if it was called.

    Raises
    ------
    TraceError
        If f has no expression.
    """
    model, curve.is_stored = trace_curve(curve.f, curve.x, curve.n, len(p))
    values = None
    if not curve.is_stored:
        values = curve.called(p)
        try:
            require_agreement(model, p, values)
            require_agreement_nearby(model, p, curve.called, curve.bounds)
        except TraceError:
            forget(curve.f)
            raise
    curve.model = model
    return values


# Weights.


class Weighting:
    """What residuals are multiplied by: 1/sigma for deviations (n,), L⁻¹ for a covariance LLᵀ."""

    def __init__(self, weights: np.ndarray | None = None, factor: np.ndarray | None = None):
        self.weights, self._factor = weights, factor

    @property
    def rows_apart(self) -> bool:
        """Whether the residuals are independent: none takes part in another one."""
        return self._factor is None

    def __call__(self, residuals: np.ndarray) -> np.ndarray:
        """Weighted residuals (n,), or derivatives of such (n, k)."""
        if self._factor is not None:
            from scipy.linalg import solve_triangular

            result: np.ndarray = solve_triangular(
                self._factor, residuals, lower=True, check_finite=False
            )
            return result
        if self.weights is None:
            return residuals
        return residuals * (self.weights if residuals.ndim == 1 else self.weights[:, None])


# The result.


@dataclass(eq=False)
class End:
    """Where a fit ended.

    Attributes
    ----------
    p : numpy.ndarray (k,)
    total : float
        The sum of squares after the robust loss.
    status : int
        As of `levenberg_marquardt`; success if positive.
    message : str
    nit, nfev, njev : int
    JTJ : numpy.ndarray (k, k) or None
        Of the weighted residuals, where the solver has it and the loss is linear.
    jacobian : callable or None
        () -> the derivatives (n, k) of the weighted residuals at p, where the solver has them.
    held : numpy.ndarray (k,) of bool, or None
        Which parameters are at a bound, where that is not seen from p.
    """

    p: np.ndarray
    total: float
    status: int
    message: str
    nit: int
    nfev: int
    njev: int
    JTJ: np.ndarray | None = None
    jacobian: Callable[[], np.ndarray] | None = None
    held: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"jacobian": None}


class CurveFit(Sequence[np.ndarray]):
    """The result of `curve_fit`: parameters, their uncertainty, and the fitted curve.

    It unpacks as SciPy's pair: ``popt, pcov = result``. The covariance, the notes and what follows
    from them are computed when first asked for.

    Attributes
    ----------
    params, popt : numpy.ndarray (k,)
        The parameters.
    names : tuple of str
        Their names.
    cost : float
        Half the sum of squares of the weighted residuals, after the robust loss.
    nit, nfev, njev : int
        Numbers of steps, and of evaluations of the curve and of its derivatives.
    status : int
        1, 2, 3: converged (by the gradient, the sum of squares, the parameters); 4: converged (by
        the two latter); 0: `maxiter` was reached; -1: no step helps.
    method : str
    derivatives : str
        "exact" (from the code of f), "jac" (the caller's), or the differences: "2-point",
        "3-point", "cs".
    function : callable
        f.
    x, y, sigma : object, numpy.ndarray (n,), numpy.ndarray or None
        The data, as copies.
    """

    def __init__(
        self,
        curve: Curve,
        y: np.ndarray,
        sigma: Any,
        weighting: Weighting,
        start: np.ndarray,
        end: End,
        *,
        names: tuple[str, ...],
        method: str,
        robust: Robust,
        loss: str,
        absolute_sigma: bool,
        notes: tuple[str, ...],
    ):
        self._curve, self._weighting, self._start, self._end = curve, weighting, start, end
        self._robust, self._absolute, self._first_notes = robust, absolute_sigma, notes
        self.sigma = None if sigma is None else np.array(sigma, np.float64)
        self.function = curve.f
        self.x, self.y, self.names, self.method, self.loss = curve.x, y, names, method, loss
        self.params = end.p
        self.cost, self.status = end.total / 2, end.status
        self.nit, self.nfev, self.njev = end.nit, end.nfev, end.njev

    # SciPy's pair.

    def __len__(self) -> int:
        return 2

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, int) and k in (0, -2):
            return self.params
        return (self.params, self.covariance)[k]

    def __iter__(self) -> Iterator[np.ndarray]:
        if not self.success:
            warnings.warn(f"the fit has not converged: {self.message}", RuntimeWarning, 2)
        yield self.params
        yield self.covariance

    @property
    def popt(self) -> np.ndarray:
        """`params`, as SciPy calls them."""
        return self.params

    @property
    def pcov(self) -> np.ndarray:
        """`covariance`, as SciPy calls it."""
        return self.covariance

    # Uncertainty.

    @cached_property
    def covariance(self) -> np.ndarray:
        """The covariance (k, k) of the parameters; infinite where the data do not determine them.

        Without `absolute_sigma` the variance of the residuals is estimated from them. With a robust
        loss it is that of Huber's theory of M-estimators, always from the residuals. Parameters at
        a bound have variance 0.
        """
        inverse, dof = self._inverse, len(self.y) - len(self.params)
        if inverse is not None and dof > 0:
            return inverse if self._absolute else (self._end.total / dof) * inverse
        return self._uncertainty.covariance(self._absolute_variance)

    @cached_property
    def _inverse(self) -> np.ndarray | None:
        """(JᵀJ)⁻¹ (k, k), if that is cheap to have and far from singular."""
        JTJ = self._end.JTJ
        if JTJ is None or (self._curve.bounds is not None and self._held.any()):
            return None
        return regular_inverse(JTJ, lambda: self._weighted_jacobian)

    @property
    def standard_errors(self) -> np.ndarray:
        """The standard deviations (k,) of the parameters: the root of the covariance's diagonal."""
        with np.errstate(invalid="ignore"):
            return np.sqrt(np.diagonal(self.covariance))

    @property
    def dof(self) -> int:
        """Degrees of freedom: the number of rows less that of the parameters not at a bound."""
        return len(self.y) - len(self.params) + int(self._held.sum())

    @property
    def notes(self) -> tuple[str, ...]:
        """What speaks against the result, or is to be known of it."""
        return (*self._first_notes, *self._bound_notes, *self._uncertainty_notes)

    @cached_property
    def success(self) -> bool:
        """Whether a minimum was reached."""
        return self.status > 0 and (self._inverse is not None or not self._saddle)

    @cached_property
    def _saddle(self) -> str:
        """The parameters whose change lowers the sum of squares where its gradient is 0, or ""."""
        directions = list(self._uncertainty.undetermined.T[:_SADDLE_DIRECTIONS])
        # Of a product a·b at 0 the sum of squares falls only if both change.
        pairs = [u + sign * v for u, v in combinations(directions, 2) for sign in (1, -1)]
        sizes = np.where(self.params == 0, 1.0, np.abs(self.params))
        for direction in (*directions, *pairs):
            step = _SADDLE_STEP * direction / np.abs(direction).max()
            for moved in (self.params + step * sizes, self.params - step * sizes):
                if self._total(moved) < (1 - _SADDLE_GAIN) * self._end.total:
                    return self._listed(np.flatnonzero(np.abs(step) > 0.1 * _SADDLE_STEP))
        return ""

    def _total(self, p: np.ndarray) -> float:
        """The sum of squares at p, infinite outside the bounds."""
        bounds = self._curve.bounds
        if bounds is not None and ((p < bounds[0]) | (p > bounds[1])).any():
            return float("inf")
        with np.errstate(all="ignore"):
            r = self._weighting(self._curve.values(p) - self.y)
            return float(rho(r, self._robust)[0].sum())

    @property
    def end_message(self) -> str:
        """How the fit ended, without the notes."""
        if self.status > 0 and not self.success:
            return (
                f"No minimum: the gradient is zero, but the sum of squares falls with a change of "
                f"{self._saddle} to either side; start elsewhere."
            )
        return self._end.message

    @property
    def message(self) -> str:
        """How the fit ended, and the notes, in words."""
        notes = "; ".join(self.notes)
        return f"{self.end_message} Notes: {notes}." if notes else self.end_message

    @property
    def derivatives(self) -> str:
        """Where the derivatives come from."""
        if callable(self._curve.jac):
            return "jac"
        return self._curve.jac if self._curve.model is None else "exact"

    def interval(self, level: float = 0.95) -> np.ndarray:
        """Confidence intervals of the parameters.

        They are by Student's t distribution; with `absolute_sigma` and the linear loss by the
        normal one.

        Parameters
        ----------
        level : float, default 0.95
            The probability with which an interval covers its parameter.

        Returns
        -------
        numpy.ndarray (k, 2)
            The lower and the upper end of each.

        Raises
        ------
        ValueError
            If `level` is not in (0, 1).
        """
        reach = self._quantile(level) * self.standard_errors
        return np.stack([self.params - reach, self.params + reach], axis=1)

    def _quantile(self, level: Any) -> float:
        dof = np.inf if self._absolute_variance else self.dof
        if not dof > 0:
            number("level", level)
            return float("nan")
        return t_quantile(level, dof)

    @property
    def _absolute_variance(self) -> bool:
        return self._absolute and self._robust.kind == LINEAR_RHO

    @cached_property
    def _held(self) -> np.ndarray:
        """Which parameters (k,) are at a bound."""
        bounds = self._curve.bounds
        if self._end.held is not None:
            return self._end.held
        if bounds is None:
            return np.zeros(len(self.params), bool)
        return (self.params <= bounds[0]) | (self.params >= bounds[1])

    @cached_property
    def _uncertainty(self) -> Uncertainty:
        r, J = self._weighting(self.residuals), self._weighted_jacobian
        squares = float(r @ r)
        if self._robust.kind != LINEAR_RHO:
            psi, slope = influence(r, self._robust)
            mean = slope.mean()
            squares = float(psi @ psi) / mean**2 if mean > 0 else np.nan
        with np.errstate(all="ignore"):
            return of_jacobian(J, squares / 2, self.params, self._start, self._held, self._listed)

    @cached_property
    def _weighted_jacobian(self) -> np.ndarray:
        if self._end.jacobian is not None:
            return self._end.jacobian()
        with np.errstate(all="ignore"):
            return self._weighting(self._curve.jacobian(self.params))

    def _listed(self, places: np.ndarray) -> str:
        return listed([self.names[i] for i in places[:N_LISTED]], len(places))

    @cached_property
    def _uncertainty_notes(self) -> tuple[str, ...]:
        if self._robust.kind != LINEAR_RHO and np.isnan(self._uncertainty.variance):
            return ("standard errors: not known: too many residuals are outliers by f_scale",)
        return tuple(f"standard errors: {note}" for note in self._uncertainty.notes)

    @cached_property
    def _bound_notes(self) -> tuple[str, ...]:
        places = np.flatnonzero(self._held)
        if not places.size:
            return ()
        verbs = ("is", "counts") if len(places) == 1 else ("are", "count")
        return (f"{self._listed(places)} {verbs[0]} at a bound and {verbs[1]} as fixed there",)

    # The curve.

    @cached_property
    def residuals(self) -> np.ndarray:
        """f(x, *params) - y (n,), without weights."""
        with np.errstate(all="ignore"):
            return self._curve.values(self.params) - self.y

    @property
    def r_squared(self) -> float:
        """The share of the squares of y, around its mean, that the curve explains.

        Deviations `sigma` (n,) weigh the rows. NaN if all y are equal.
        """
        if (self.y == self.y[0]).all():
            return float("nan")
        weights = self._weighting.weights
        w = np.ones(len(self.y)) if weights is None else weights**2
        spread = self.y - np.average(self.y, weights=w)
        with np.errstate(all="ignore"):
            return float(1 - (w @ self.residuals**2) / (w @ spread**2))

    @property
    def deviations_of_data(self) -> np.ndarray | None:
        """The standard deviations (n,) that `sigma` states; None without it."""
        if self.sigma is None:
            return None
        if self.sigma.ndim == 2:
            return np.sqrt(np.diagonal(self.sigma))
        return np.broadcast_to(self.sigma, self.y.shape)

    def predict(
        self,
        x: Any = None,
        interval: str | None = None,
        level: float = 0.95,
        *,
        sigma: Any = None,
    ) -> Any:
        """The fitted curve, and a band around it by the delta method.

        Parameters
        ----------
        x : object, optional
            What f takes; by default the data's.
        interval : {None, "confidence", "prediction"}
            The band that covers the curve, or a new observation, with the probability `level`.
        level : float, default 0.95
        sigma : array_like, optional
            The deviations of new observations, for "prediction" of a fit with `sigma`: in its unit.

        Returns
        -------
        y : numpy.ndarray or float
            What f returns.
        lower, upper : numpy.ndarray or float
            The band, if `interval` is given.

        Raises
        ------
        ValueError
            For another interval or level, and for "prediction" without `sigma` of a fit with it.
        """
        if interval not in (None, "confidence", "prediction"):
            raise ValueError(
                f"interval is {interval!r}, expected None, 'confidence' or 'prediction'"
            )
        if interval == "prediction" and self.sigma is not None and sigma is None:
            raise ValueError(
                "the fit has sigma, the deviations of its observations: pass that of the new ones "
                "as sigma, or ask for interval='confidence'"
            )
        x = self._curve.x if x is None else data_of(x)
        scalar = isinstance(x, np.ndarray) and x.ndim == 0
        rows = x.reshape(1) if scalar else x
        y = np.array(self._curve.f(_copy(rows), *self.params), np.float64)
        if y.ndim == 0 and isinstance(rows, np.ndarray):
            y = np.full(rows.shape[-1], float(y))
        if interval is None:
            return float(y[0]) if scalar else y
        in_rows = y.ndim > 1 and getattr(rows, "shape", None) == y.shape  # a grid of numbers
        deviations = self._deviations(rows.ravel() if in_rows else rows, y)
        if interval == "prediction":
            own = 1.0 if sigma is None else real_array("sigma", sigma, FLOAT64)
            variance = 1.0 if self._absolute_variance else self._uncertainty.variance
            deviations = np.sqrt(deviations**2 + variance * np.square(own))
        reach = self._quantile(level) * deviations
        band = y, y - reach, y + reach
        return tuple(float(end[0]) for end in band) if scalar else band

    def _deviations(self, x: Any, y: np.ndarray) -> np.ndarray:
        """The standard deviations of the curve at x, where it is y; of its shape."""
        curve = Curve(self._curve.f, x, y.size, self._curve.jac, bounds=self._curve.bounds)
        if self._curve.model is not None and not callable(curve.jac):
            try:
                traced_curve(curve, self.params)
            except TraceError:  # what f reads has changed: differences are left
                pass
        G = curve.jacobian(self.params)
        return self._uncertainty.deviations(G, self._absolute_variance).reshape(y.shape)

    # Reports.

    def __repr__(self) -> str:
        rows = zip(self.names, self.params, self.standard_errors, strict=True)
        width = max(map(len, self.names))
        lines = [f"  {name:<{width}} = {value:.6g} ± {error:.2g}" for name, value, error in rows]
        return "\n".join([f"CurveFit({self.message}", *lines]) + ")"

    def summary(self) -> str:
        """The fit in words and figures: how it ended, the parameters, and how good it is."""
        from ..reports.summaries import curve_summary

        return curve_summary(self)

    def plot(self, path: Any = None, level: float = 0.95) -> Figure:
        """Plot the data, the curve with its confidence band, and the residuals.

        Parameters
        ----------
        path : str or path, optional
            Where to save the figure.
        level : float, default 0.95
            The probability of the band.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without Matplotlib.
        """
        from ..reports.plots import curve_result

        figure = curve_result(self, level)
        if path is not None:
            figure.savefig(path)
        return figure


def data_of(x: Any) -> Any:
    """x as f is called with it: lists, arrays and series as new arrays of float64."""
    kinds = (np.ndarray, list, tuple, int, float, np.generic)
    return new_array("x", x) if isinstance(x, kinds) or _is_series(x) else x


def new_array(name: str, value: Any) -> np.ndarray:
    """The value as a new C-contiguous array of float64; as `real_array` otherwise."""
    if type(value) is np.ndarray and value.dtype.kind in "fiu":
        return np.array(value, FLOAT64, order="C")
    return np.array(real_array(name, value, FLOAT64))


def _is_series(x: Any) -> bool:
    """Whether x is a vector by another name, or a sparse matrix, which is refused."""
    return (getattr(x, "ndim", None) == 1 and hasattr(x, "__array__")) or hasattr(x, "toarray")


def _copy(x: Any) -> Any:
    return x.copy() if isinstance(x, np.ndarray) else x
