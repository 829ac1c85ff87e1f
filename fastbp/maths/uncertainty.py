"""The uncertainty of parameters fitted by least squares, and notes on where it means little.

The residuals r (m,) are taken as independent, of one variance, and as linear in the parameters θ
around the minimum of r·r + θᵀΛθ; Λ is diagonal, a penalty read as a Gaussian prior. With
H = JᵀJ + Λ then [1]_ [2]_

    γ = tr(JᵀJ H⁻¹) parameters are determined by the data, s² = r·r/(m - γ), cov θ = s² H⁻¹.

H is scaled to a unit diagonal, so that the units of the parameters do not matter, and inverted
through its eigenvalues. Directions whose eigenvalue is lost in rounding are undetermined: what
moves along them has infinite variance. So two equal columns of J leave the sum of their parameters
determined, but neither of the two.

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
# From this condition number on JᵀJ is near-singular. Standard errors still have digits then, and
# mean something in a linear model, but not where they are this many times the parameter itself.
NEAR_SINGULAR, MEANINGLESS = 1e10, 10.0
# Up to this condition number the inverse of JᵀJ has eight digits, and J is not needed.
WELL_CONDITIONED = 1e7
# A combination of parameters is undetermined if more than this share of its squared length lies
# along undetermined directions; rounding turns these by less.
UNDETERMINED_SHARE = 1e-8
# Parameters with more than this share of the weak directions are named.
NAMED_SHARE = 0.01
# A parameter runs away if it grows to more than this many times its start.
RUNAWAY_GROWTH = 10.0
# Steps to the minimum below these are negligible: in standard errors, and relative to parameters.
NEAR_MINIMUM, ROUNDING = 0.1, 1e-6


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """The uncertainty of the n parameters at a minimum of a sum of squares.

    Attributes
    ----------
    variance : float
        s², the estimated variance of a residual; NaN without degrees of freedom.
    dof : float
        Degrees of freedom: the number of residuals less `n_effective`.
    n_effective : float
        γ, the effective number of parameters: without a penalty the number of those that the
        residuals determine.
    condition : float
        Condition number of JᵀJ (with the penalty) scaled to a unit diagonal; infinite if singular.
    notes : tuple of str
        Reservations about the standard errors, such as "without meaning for x[0], x[1]: ...";
        empty if there are none.
    output_scale : numpy.ndarray (n_out,)
        The unit of each output's residuals, in units of the output.
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
        """The standard deviation (n_out,) of an observation of weight 1, per output."""
        return np.sqrt(self.variance) * self.output_scale

    def covariance(self, absolute_sigma: bool = False) -> np.ndarray:
        """The covariance matrix (n, n); `absolute_sigma` as for `FitResult.covariance`."""
        return self._basis.covariance(self._variance(absolute_sigma))

    def standard_errors(self, absolute_sigma: bool = False) -> np.ndarray:
        """The standard deviations (n,): 0 of fixed parameters, infinite of undetermined ones."""
        return self._basis.deviations(self._variance(absolute_sigma))

    def deviations(self, G: np.ndarray, absolute_sigma: bool = False) -> np.ndarray:
        """The standard deviations (k,) of the linear combinations Gθ, G (k, n)."""
        return self._basis.of_combinations(G).deviations(self._variance(absolute_sigma))

    @property
    def undetermined(self) -> np.ndarray:
        """Directions (n, k) of the parameters along which the linearised residuals stay."""
        return self._basis.undetermined

    def _variance(self, absolute_sigma: bool) -> float:
        """The variance of a residual; with `absolute_sigma` that of an output of variance 1."""
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
    """Errors of n parameters (or linear combinations of them) as sums of independent errors.

    Attributes
    ----------
    determined : numpy.ndarray (n, r)
        The effect on the parameters of each of r errors with the residuals' variance: cov/s² is
        this matrix times its transpose.
    undetermined : numpy.ndarray (n, k)
        The effect of each of k errors of infinite variance.
    lengths : numpy.ndarray (n, p)
        The effect of a unit error in each of the p free parameters, with which `undetermined` is
        compared; (n, 0) if k is 0.
    fixed : numpy.ndarray (n,) of bool
        Which parameters have no error.
    """

    determined: np.ndarray
    undetermined: np.ndarray
    lengths: np.ndarray
    fixed: np.ndarray

    def of_combinations(self, G: np.ndarray) -> Basis:
        """The errors of the linear combinations Gθ, G (k, n)."""
        return Basis(
            G @ self.determined, G @ self.undetermined, G @ self.lengths, np.zeros(len(G), bool)
        )

    def deviations(self, variance: float) -> np.ndarray:
        """The standard deviations (n,), `variance` being that of a residual."""
        result = np.sqrt(variance * (self.determined**2).sum(axis=1))
        result[self.fixed] = 0
        result[self.infinite] = np.inf
        return result

    def covariance(self, variance: float) -> np.ndarray:
        """The covariance matrix (n, n), `variance` being that of a residual."""
        result = variance * (self.determined @ self.determined.T)
        result[self.fixed] = result[:, self.fixed] = 0
        lost = np.flatnonzero(self.infinite)
        if lost.size:  # their limits, as the variances of `undetermined` go to infinity
            N, lengths = self.undetermined[lost], np.linalg.norm(self.lengths[lost], axis=1)
            limit, block = N @ N.T, result[np.ix_(lost, lost)]
            unbounded = np.abs(limit) > UNDETERMINED_SHARE * np.outer(lengths, lengths)
            block[unbounded] = np.copysign(np.inf, limit[unbounded])
            result[np.ix_(lost, lost)] = block
        return result

    @property
    def infinite(self) -> np.ndarray:
        """Which parameters (n,) have infinite variance."""
        lost, whole = ((M**2).sum(axis=1) for M in (self.undetermined, self.lengths))
        return lost > UNDETERMINED_SHARE * whole


@dataclass(frozen=True, eq=False)
class Parameters:
    """The parameters at a minimum: their values, which are free, and their names in notes.

    Attributes
    ----------
    x : numpy.ndarray (n,)
        The values at the minimum.
    start : numpy.ndarray (n,) or None
        The values at the start of the minimisation.
    free : numpy.ndarray (p,)
        Indices of the free parameters: J has a column for each.
    names : callable
        indices -> a text with the names of those parameters.
    advice : str
        What to do about parameters that are hardly determined.
    unscaled : callable, optional
        Changes (n, k) of the parameters for which J is the derivative -> changes (n, k) of x; by
        default they are the same.
    """

    x: np.ndarray
    start: np.ndarray | None
    free: np.ndarray
    names: Callable[[np.ndarray], str]
    advice: str
    unscaled: Callable[[np.ndarray], np.ndarray] = lambda changes: changes

    def expand(self, changes: np.ndarray) -> np.ndarray:
        """Changes (n, k) of x for changes (p, k) of the free parameters."""
        result = np.zeros((len(self.x), changes.shape[1]))
        result[self.free] = changes
        return self.unscaled(result)


def of_jacobian(
    jac: np.ndarray,
    cost: float,
    x: np.ndarray,
    x0: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
    names: Callable[[np.ndarray], str] | None = None,
) -> Uncertainty:
    """The uncertainty of a function's parameters, from the Jacobian of its residuals at a minimum.

    Parameters
    ----------
    jac : numpy.ndarray (m, n)
        Its singular values are taken, so that no digits are lost in JᵀJ.
    cost : float
        Half the sum of squared residuals.
    x : numpy.ndarray (n,)
        The minimum.
    x0 : numpy.ndarray (n,), optional
        The start, by which parameters that run away are noticed.
    fixed : numpy.ndarray (n,) of bool, optional
        Parameters that could not move, such as those at a bound.
    names : callable, optional
        Indices of parameters -> a text with their names; by default "x[0], x[3]".

    Returns
    -------
    Uncertainty
        With NaN for all numbers, and a note, if the derivatives are not finite.
    """
    free = np.flatnonzero(np.ones(len(x), bool) if fixed is None else ~fixed)
    J = jac[:, free]
    spectrum = _of_columns(J) if np.isfinite(J).all() else None
    parameters = Parameters(x, x0, free, names or _numbered, "fix one of them, or add data")
    return _uncertainty(spectrum, np.zeros(len(free)), 2 * cost, len(J), None, parameters)


def regular_inverse(JTJ: np.ndarray, jac: Callable[[], np.ndarray]) -> np.ndarray | None:
    """(JᵀJ)⁻¹ (n, n) if it is far from singular, at less cost than `of_jacobian`; else None.

    Parameters
    ----------
    JTJ : numpy.ndarray (n, n)
        It is inverted if few digits are lost in it.
    jac : callable
        () -> J (m, n), which is used otherwise.
    """
    lengths = np.sqrt(JTJ.diagonal())
    if 0.0 in lengths.tolist():
        return None
    scale = lengths[:, None] * lengths
    try:
        inverse = np.linalg.inv(JTJ / scale)
        # Of a singular matrix the computed inverse may be anything, with a negative diagonal too.
        sizes = inverse.diagonal().tolist()
        if not (min(sizes) > 0 and len(JTJ) * sum(sizes) < WELL_CONDITIONED):
            R = np.linalg.qr(jac() / lengths, mode="r")
            root = np.linalg.inv(R)
            inverse = root @ root.T
            if not len(JTJ) * sum(inverse.diagonal().tolist()) < NEAR_SINGULAR:
                return None
    except np.linalg.LinAlgError:
        return None
    result: np.ndarray = inverse / scale
    return result


def of_normal_equations(
    JTJ: np.ndarray,
    gradient: np.ndarray,
    prior: np.ndarray,
    sse: float,
    n_residuals: int,
    parameters: Parameters,
) -> Uncertainty:
    """The uncertainty from the normal equations, for a J too large to store, and with a penalty.

    Parameters
    ----------
    JTJ : numpy.ndarray (p, p)
        Of the free parameters.
    gradient : numpy.ndarray (p,)
        Jᵀr + Λθ.
    prior : numpy.ndarray (p,)
        The diagonal of Λ.
    sse : float
        r·r.
    n_residuals : int
        The number of residuals of positive weight.
    parameters : Parameters

    Returns
    -------
    Uncertainty
        With NaN for all numbers, and a note, if the derivatives are not finite.
    """
    H = JTJ + np.diag(prior)
    spectrum = _of_matrix(H) if np.isfinite(H).all() else None
    return _uncertainty(spectrum, prior, sse, n_residuals, gradient, parameters)


def t_quantile(interval: Any, dof: float) -> float:
    """The t for which Student's t with `dof` degrees of freedom is in [-t, t] with a probability.

    Parameters
    ----------
    interval : float
        The probability, in (0, 1).
    dof : float

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
    """The first names of n things as a text, with the number of the others."""
    more = f" and {n - len(names)} more" if n > len(names) else ""
    return ", ".join(names) + more


N_LISTED = 5


def _numbered(places: np.ndarray) -> str:
    """The names of a function's parameters: "x[0], x[3] and 2 more"."""
    return listed([f"x[{i}]" for i in places[:N_LISTED]], len(places))


# The matrix H.


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """The eigenvalues of H scaled to a unit diagonal: H = D V diag(values) Vᵀ D.

    Attributes
    ----------
    lengths : numpy.ndarray (p,)
        The diagonal of D: the roots of H's diagonal, 1 where they are 0.
    values : numpy.ndarray (p,)
        The eigenvalues.
    vectors : numpy.ndarray (p, p)
        V, an eigenvector per column.
    least : float
        Eigenvalues up to this share of the largest are rounding errors.
    """

    lengths: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    least: float

    @property
    def lost(self) -> np.ndarray:
        """Which eigenvalues (p,) are 0 but for rounding."""
        return self.values <= self.least * self.values.max(initial=0)

    @property
    def weak(self) -> np.ndarray:
        """Which other eigenvalues (p,) make H near-singular."""
        return ~self.lost & (self.values * NEAR_SINGULAR < self.values.max(initial=0))

    @property
    def condition(self) -> float:
        """The condition number; infinite if an eigenvalue is lost."""
        if self.lost.any():
            return float("inf")
        return float(self.values.max(initial=1) / self.values.min(initial=1))


def _of_columns(J: np.ndarray) -> _Spectrum:
    """The spectrum of JᵀJ, by the singular values of J (m, p): no digits are lost in JᵀJ."""
    lengths, p = _lengths(np.linalg.norm(J, axis=0)), J.shape[1]
    R = np.linalg.qr(J / lengths, mode="r")
    _, singular, Vt = np.linalg.svd(np.vstack([R, np.zeros((p - len(R), p))]))
    return _Spectrum(lengths, singular**2, Vt.T, (max(J.shape) * EPS) ** 2)


def _of_matrix(H: np.ndarray) -> _Spectrum:
    """The spectrum of H (p, p)."""
    lengths = _lengths(np.sqrt(np.diag(H)))
    values, vectors = np.linalg.eigh(H / np.outer(lengths, lengths))
    return _Spectrum(lengths, values, vectors, LEAST_EIGENVALUE)


def _lengths(norms: np.ndarray) -> np.ndarray:
    """The norms (p,), by which columns are divided, with 1 for 0."""
    return np.where(norms == 0, 1, norms)


def _uncertainty(
    spectrum: _Spectrum | None,
    prior: np.ndarray,
    sse: float,
    n_residuals: int,
    gradient: np.ndarray | None,
    parameters: Parameters,
) -> Uncertainty:
    """The uncertainty from the spectrum of H, which is None if the derivatives are not finite.

    The other arguments are those of `of_normal_equations`; without a gradient the parameters are
    taken to be at the minimum.
    """
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
        parameters.expand(inverse_root),
        parameters.expand(V[:, lost]),
        parameters.expand(unit_errors),
        fixed,
    )
    errors = basis.deviations(variance)
    notes = [
        _no_freedom(variance, n_residuals, n_effective),
        _singular(basis, parameters),
        _near_singular(spectrum, errors, parameters),
        _runaway(spectrum, errors, parameters),
    ]
    if gradient is not None:
        notes.append(_not_at_minimum(inverse_root.T @ gradient, basis, errors, parameters))
    nonempty = tuple(note for note in notes if note)
    return Uncertainty(variance, dof, n_effective, spectrum.condition, nonempty, basis)


# Notes on the standard errors: each function returns one, or "" where it does not apply.


def _singular(basis: Basis, parameters: Parameters) -> str:
    infinite = np.isinf(basis.covariance(1.0)) if basis.undetermined.size else np.empty((0, 0))
    partners, notes = infinite.sum(axis=1), []
    if (partners == 1).any():
        names = parameters.names(np.flatnonzero(partners == 1))
        notes.append(f"infinite for {names}: the residuals do not depend on them")
    if (partners > 1).any():
        names = parameters.names(np.flatnonzero(partners > 1))
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
        f"without meaning for {parameters.names(places)}: JᵀJ is near-singular (condition number "
        f"{condition:.1e}), they can change together and hardly change the fit; {parameters.advice}"
    )


def _along(spectrum: _Spectrum, parameters: Parameters) -> np.ndarray:
    """Indices of the parameters with a share in the directions of weak eigenvalues."""
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
    ways = [f"{parameters.names(gone[i : i + 1])} from {start[gone[i]]:.3g} to {x[gone[i]]:.3g}"
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
    """`step` (r,) is the Gauss-Newton step in coordinates of `basis.determined`, up to its sign."""
    change = np.abs(basis.determined @ step)
    with np.errstate(all="ignore"):
        ratios = np.where(change > ROUNDING * np.abs(parameters.x), change / errors, 0)
    ratios[~np.isfinite(ratios)] = 0
    worst = int(np.argmax(ratios))
    if ratios[worst] <= NEAR_MINIMUM:
        return ""
    return (
        f"of a point that is not the minimum: a Gauss-Newton step would still move "
        f"{parameters.names(np.array([worst]))} by {ratios[worst]:.2g} standard errors"
    )
