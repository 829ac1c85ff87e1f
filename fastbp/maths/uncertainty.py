"""How sure parameters fitted by least squares are, and what speaks against saying so.

The residuals r (m,) are taken as independent, of one variance, and as linear in the parameters θ
around the minimum of r·r + θᵀΛθ; Λ is diagonal, a penalty read as a Gaussian prior. With
H = JᵀJ + Λ then [1]_ [2]_

    γ = tr(JᵀJ H⁻¹) parameters are determined by the data, s² = r·r/(m - γ), cov θ = s² H⁻¹.

H is scaled to a unit diagonal, so that the units of the parameters do not matter, and inverted
through its eigenvalues. Directions whose eigenvalue is lost in rounding are undetermined: what
moves along them has infinite variance. So two equal columns of J leave the sum of their parameters
determined and each of them not.

.. [1] G. A. F. Seber, C. J. Wild, "Nonlinear Regression", Wiley, 1989, chapters 2 and 3.
.. [2] D. J. C. MacKay, "Bayesian interpolation", Neural Computation 4(3), 1992.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..common.arrays import number

EPS = np.finfo(np.float64).eps
# Eigenvalues of a scaled JᵀJ below this share of the largest have no digit left: its entries are
# off by some epsilons, times the square root of the number of rows.
LEAST_EIGENVALUE = 1e-13
# From this condition number on JᵀJ is near-singular. Standard errors still have digits then, and in
# a linear model their meaning, but not where they are this many times the parameter itself.
NEAR_SINGULAR, MEANINGLESS = 1e10, 10.0
# A combination of parameters is undetermined if more than this share of its squared length lies
# along undetermined directions; rounding turns these by less.
UNDETERMINED_SHARE = 1e-8
# Parameters with more than this share of the weak directions are named.
NAMED_SHARE = 0.01
# How far a parameter goes that runs away, in multiples of where it started.
RUNAWAY_GROWTH = 10.0
# Steps to the minimum that do not matter: in standard errors, and relative to the parameters.
NEAR_MINIMUM, ROUNDING = 0.1, 1e-6


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """How sure the n parameters are that a least-squares method found.

    Attributes
    ----------
    variance : float
        s², the estimated variance of a residual; NaN without degrees of freedom.
    dof : float
        Degrees of freedom: the number of residuals less `n_effective`.
    n_effective : float
        γ, the effective number of parameters: without a penalty all that the residuals determine.
    condition : float
        Condition number of JᵀJ (with the penalty) scaled to a unit diagonal; infinite if singular.
    notes : tuple of str
        What is to be said of the standard errors, such as "without meaning for x[0], x[1]: ...";
        empty if they can be taken as they are.
    output_scale : numpy.ndarray (n_out,)
        The units of the residuals, in those of the outputs.
    """

    variance: float
    dof: float
    n_effective: float
    condition: float
    notes: tuple[str, ...]
    _basis: Basis = field(repr=False)
    output_scale: np.ndarray = field(default_factory=lambda: np.ones(1))

    @property
    def noise(self) -> np.ndarray:
        """The standard deviation of an observation of weight 1, per output."""
        return np.sqrt(self.variance) * self.output_scale

    def covariance(self, absolute_sigma: bool = False) -> np.ndarray:
        """The covariance matrix (n, n); `absolute_sigma` as for `FitResult.covariance`."""
        return self._basis.covariance(self._variance(absolute_sigma))

    def standard_errors(self, absolute_sigma: bool = False) -> np.ndarray:
        """The standard deviations (n,): 0 of fixed parameters, infinite of undetermined ones."""
        return self._basis.deviations(self._variance(absolute_sigma))

    def deviations(self, G: np.ndarray) -> np.ndarray:
        """The standard deviations (k,) of the combinations Gθ, G (k, n)."""
        return self._basis.across(G).deviations(self.variance)

    def _variance(self, absolute_sigma: bool) -> float:
        if not absolute_sigma:
            return self.variance
        if np.ptp(self.output_scale):
            raise ValueError(
                "absolute_sigma=True, but the fit scaled each output by its own deviation, so that "
                "sample weights do not say how large residuals are; scale y beforehand"
            )
        return 1 / float(self.output_scale[0]) ** 2


@dataclass(frozen=True, eq=False)
class Basis:
    """Errors of n parameters, or combinations of them, as sums of independent ones.

    Attributes
    ----------
    determined : numpy.ndarray (n, r)
        What each of r errors with the residuals' variance does: cov/s² is this times its transpose.
    undetermined : numpy.ndarray (n, k)
        The same of errors without bound.
    lengths : numpy.ndarray (n, p)
        The same of unit errors in each of p free parameters, with which undetermined ones compare;
        only if there are any.
    fixed : numpy.ndarray (n,) of bool
        Which parameters have none.
    """

    determined: np.ndarray
    undetermined: np.ndarray
    lengths: np.ndarray
    fixed: np.ndarray

    def across(self, G: np.ndarray) -> Basis:
        """Of the combinations Gθ, G (k, n)."""
        return Basis(
            G @ self.determined, G @ self.undetermined, G @ self.lengths, np.zeros(len(G), bool)
        )

    def deviations(self, variance: float) -> np.ndarray:
        result = np.sqrt(variance * (self.determined**2).sum(axis=1))
        result[self.fixed] = 0
        result[self.infinite] = np.inf
        return result

    def covariance(self, variance: float) -> np.ndarray:
        result = variance * (self.determined @ self.determined.T)
        result[self.fixed] = result[:, self.fixed] = 0
        lost = np.flatnonzero(self.infinite)
        if lost.size:  # the limits of variances that grow without bound
            N, lengths = self.undetermined[lost], np.linalg.norm(self.lengths[lost], axis=1)
            limit, block = N @ N.T, result[np.ix_(lost, lost)]
            unbounded = np.abs(limit) > UNDETERMINED_SHARE * np.outer(lengths, lengths)
            block[unbounded] = np.copysign(np.inf, limit[unbounded])
            result[np.ix_(lost, lost)] = block
        return result

    @property
    def infinite(self) -> np.ndarray:
        """Which of them (n,) are not determined."""
        lost, whole = ((part**2).sum(axis=1) for part in (self.undetermined, self.lengths))
        return lost > UNDETERMINED_SHARE * whole


@dataclass(frozen=True, eq=False)
class Parameters:
    """Whose columns J has.

    Attributes
    ----------
    x : numpy.ndarray (n,)
        The parameters at the minimum.
    start : numpy.ndarray (n,) or None
        Where they came from.
    free : numpy.ndarray (p,)
        Places of those that J has a column for.
    listed : callable
        Names those at the given places in a text.
    advice : str
        What to do about those that are hardly determined.
    lifted : callable, optional
        Takes changes (p, k) of what J is the derivative for to changes (n, k) of x; by default
        they are those of ``x[free]``.
    """

    x: np.ndarray
    start: np.ndarray | None
    free: np.ndarray
    listed: Callable[[np.ndarray], str]
    advice: str
    lifted: Callable[[np.ndarray], np.ndarray] = lambda changes: changes

    def lift(self, changes: np.ndarray) -> np.ndarray:
        result = np.zeros((len(self.x), changes.shape[1]))
        result[self.free] = changes
        return self.lifted(result)


def of_jacobian(
    jac: np.ndarray,
    cost: float,
    x: np.ndarray,
    x0: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
) -> Uncertainty:
    """What the Jacobian of residuals at a minimum tells about the parameters of a function.

    Parameters
    ----------
    jac : numpy.ndarray (m, n)
        Its singular values are taken, so that no digits are lost in JᵀJ.
    cost : float
        Half the sum of squared residuals.
    x : numpy.ndarray (n,)
        The minimum.
    x0 : numpy.ndarray (n,), optional
        The start, to notice parameters that run away from it.
    fixed : numpy.ndarray (n,) of bool, optional
        Parameters that could not move, such as those at a bound.

    Returns
    -------
    Uncertainty
        Of NaN, with a note, if the derivatives are not finite.
    """
    free = np.flatnonzero(np.ones(len(x), bool) if fixed is None else ~fixed)
    J = jac[:, free]
    spectrum = _of_columns(J) if np.isfinite(J).all() else None
    parameters = Parameters(x, x0, free, _numbered, "fix one of them, or add data")
    return _assembled(spectrum, np.zeros(len(free)), 2 * cost, len(J), None, parameters)


def of_normal_equations(
    JTJ: np.ndarray,
    gradient: np.ndarray,
    prior: np.ndarray,
    sse: float,
    n_residuals: int,
    parameters: Parameters,
) -> Uncertainty:
    """The same where J is too long to be kept, and with a penalty.

    Parameters
    ----------
    JTJ : numpy.ndarray (p, p)
    gradient : numpy.ndarray (p,)
        Jᵀr + Λθ.
    prior : numpy.ndarray (p,)
        The diagonal of Λ.
    sse : float
        r·r.
    n_residuals : int
        How many residuals there are of positive weight.
    parameters : Parameters
    """
    H = JTJ + np.diag(prior)
    spectrum = _of_matrix(H) if np.isfinite(H).all() else None
    return _assembled(spectrum, prior, sse, n_residuals, gradient, parameters)


def t_quantile(interval: Any, dof: float) -> float:
    """Between minus and plus this Student's t with `dof` degrees of freedom is so probable.

    Raises
    ------
    ValueError
        If `interval` is not in (0, 1).
    TypeError
        If it is not a number.
    """
    probability = number("interval", interval)
    if not 0 < probability < 1:
        raise ValueError(
            f"interval is {probability:g}, expected a probability in (0, 1), such as 0.95"
        )
    from scipy.special import stdtrit

    return float(stdtrit(dof, (1 + probability) / 2))


def listed(names: list[str], n: int) -> str:
    """Names of the first ones of n things as a text."""
    more = f" and {n - len(names)} more" if n > len(names) else ""
    return ", ".join(names) + more


N_LISTED = 5


def _numbered(places: np.ndarray) -> str:
    return listed([f"x[{i}]" for i in places[:N_LISTED]], len(places))


# Numerics.


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """H = D V diag(values) Vᵀ D with a diagonal D.

    Attributes
    ----------
    lengths : numpy.ndarray (p,)
        D, the lengths of the columns of J; 1 for those that are zero.
    values : numpy.ndarray (p,)
    vectors : numpy.ndarray (p, p)
        V, an eigenvector per column.
    least : float
        The share of the largest eigenvalue that is rounding.
    """

    lengths: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    least: float

    @property
    def lost(self) -> np.ndarray:
        """Which eigenvalues are 0 to rounding."""
        return self.values <= self.least * self.values.max(initial=0)

    @property
    def weak(self) -> np.ndarray:
        """Which others make H near-singular."""
        return ~self.lost & (self.values * NEAR_SINGULAR < self.values.max(initial=0))

    @property
    def condition(self) -> float:
        if self.lost.any():
            return float("inf")
        return float(self.values.max(initial=1) / self.values.min(initial=1))


def _of_columns(J: np.ndarray) -> _Spectrum:
    lengths, p = _lengths(np.linalg.norm(J, axis=0)), J.shape[1]
    R = np.linalg.qr(J / lengths, mode="r")
    _, singular, Vt = np.linalg.svd(np.vstack([R, np.zeros((p - len(R), p))]))
    return _Spectrum(lengths, singular**2, Vt.T, (max(J.shape) * EPS) ** 2)


def _of_matrix(H: np.ndarray) -> _Spectrum:
    lengths = _lengths(np.sqrt(np.diag(H)))
    values, vectors = np.linalg.eigh(H / np.outer(lengths, lengths))
    return _Spectrum(lengths, values, vectors, LEAST_EIGENVALUE)


def _lengths(norms: np.ndarray) -> np.ndarray:
    return np.where(norms == 0, 1, norms)


def _assembled(
    spectrum: _Spectrum | None,
    prior: np.ndarray,
    sse: float,
    n_residuals: int,
    gradient: np.ndarray | None,
    parameters: Parameters,
) -> Uncertainty:
    n, p = len(parameters.x), len(parameters.free)
    fixed = np.ones(n, bool)
    fixed[parameters.free] = False
    if spectrum is None:
        basis = Basis(np.full((n, 1), np.nan), np.empty((n, 0)), np.empty((n, 0)), fixed)
        note = "not known: the derivatives are not finite"
        return Uncertainty(np.nan, np.nan, np.nan, np.nan, (note,), basis)
    lost, V = spectrum.lost, spectrum.vectors / spectrum.lengths[:, None]
    inverse_root = V[:, ~lost] / np.sqrt(spectrum.values[~lost])
    n_effective = float(np.count_nonzero(~lost) - prior @ (inverse_root**2).sum(axis=1))
    dof = n_residuals - n_effective
    variance = float(sse) / dof if dof > ROUNDING * n_residuals else np.nan
    unit_errors = np.diag(1 / spectrum.lengths) if lost.any() else np.empty((p, 0))
    basis = Basis(
        parameters.lift(inverse_root), parameters.lift(V[:, lost]), parameters.lift(unit_errors),
        fixed,
    )  # fmt: skip
    errors = basis.deviations(variance)
    notes = [
        _no_freedom(variance, n_residuals, n_effective),
        _singular(basis, parameters),
        _near_singular(spectrum, errors, parameters),
        _runaway(spectrum, errors, parameters),
    ]
    if gradient is not None:
        notes.append(_not_at_minimum(inverse_root.T @ gradient, basis, errors, parameters))
    found = tuple(note for note in notes if note)
    return Uncertainty(variance, dof, n_effective, spectrum.condition, found, basis)


# Words.


def _singular(basis: Basis, parameters: Parameters) -> str:
    infinite = np.isinf(basis.covariance(1.0)) if basis.undetermined.size else np.empty((0, 0))
    partners, notes = infinite.sum(axis=1), []
    if (partners == 1).any():
        names = parameters.listed(np.flatnonzero(partners == 1))
        notes.append(f"infinite for {names}: the residuals do not depend on them")
    if (partners > 1).any():
        names = parameters.listed(np.flatnonzero(partners > 1))
        notes.append(
            f"infinite for {names}: JᵀJ is singular, and only combinations of them are determined; "
            f"{parameters.advice}"
        )
    return "; ".join(notes)


def _near_singular(spectrum: _Spectrum, errors: np.ndarray, parameters: Parameters) -> str:
    places = _along(spectrum, parameters)
    places = places[errors[places] > MEANINGLESS * np.abs(parameters.x[places])]
    if not places.size:
        return ""
    condition = spectrum.values.max() / spectrum.values[spectrum.weak].min()
    return (
        f"without meaning for {parameters.listed(places)}: JᵀJ is near-singular (condition number "
        f"{condition:.1e}), they can change together and hardly change the fit; {parameters.advice}"
    )


def _along(spectrum: _Spectrum, parameters: Parameters) -> np.ndarray:
    """Places of the parameters that move along weak directions."""
    shares = (spectrum.vectors[:, spectrum.weak] ** 2).sum(axis=1)
    return parameters.free[shares > NAMED_SHARE]


def _runaway(spectrum: _Spectrum, errors: np.ndarray, parameters: Parameters) -> str:
    x, start = parameters.x, parameters.start
    if start is None:
        return ""
    places = _along(spectrum, parameters)
    size = np.abs(x[places])
    start_size = np.where(start[places] == 0, 1, np.abs(start[places]))
    gone = places[(size > RUNAWAY_GROWTH * start_size) & ~(errors[places] < size)]
    if not gone.size:
        return ""
    ways = [f"{parameters.listed(gone[i : i + 1])} from {start[gone[i]]:.3g} to {x[gone[i]]:.3g}"
            for i in range(min(len(gone), N_LISTED))]  # fmt: skip
    return (
        f"doubtful for parameters that run away, {listed(ways, len(gone))}: the fit gains ever "
        f"less by it, and there may be no best value"
    )


def _no_freedom(variance: float, n_residuals: int, n_effective: float) -> str:
    if not np.isnan(variance):
        return ""
    return (
        f"not known: {n_residuals} residuals leave no degrees of freedom beside {n_effective:.6g} "
        f"effective parameters, from which to tell their variance"
    )


def _not_at_minimum(
    step: np.ndarray, basis: Basis, errors: np.ndarray, parameters: Parameters
) -> str:
    """Whether a Gauss-Newton step, in coordinates of `determined`, would still matter."""
    change = np.abs(basis.determined @ step)
    with np.errstate(all="ignore"):
        ratios = np.where(change > ROUNDING * np.abs(parameters.x), change / errors, 0)
    ratios[~np.isfinite(ratios)] = 0
    worst = int(np.argmax(ratios))
    if ratios[worst] <= NEAR_MINIMUM:
        return ""
    return (
        f"of a point that is not the minimum: a Gauss-Newton step would still move "
        f"{parameters.listed(np.array([worst]))} by {ratios[worst]:.2g} standard errors"
    )
