"""Linear models of sums of squares, and the solution of their damped equations with LAPACK.

Importing this module does not load SciPy; the functions do when they run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import numpy as np

Solve = Callable[[np.ndarray], np.ndarray]

# Cholesky's factor of JᵀJ has lost too many digits to rounding if an entry of its squared diagonal
# is smaller than this, relative to that of the matrix; J's QR factors are used instead.
LEAST_PIVOT = 1e-10


class LinearModel(Protocol):
    """A sum of squares of residuals r that are linearised around x: r(x + v) = r + Jv.

    Attributes
    ----------
    gradient : numpy.ndarray (n,)
        Jᵀr.
    diagonal : numpy.ndarray (n,)
        The diagonal of JᵀJ.
    """

    gradient: np.ndarray
    diagonal: np.ndarray

    @property
    def JTJ(self) -> np.ndarray:
        """JᵀJ (n, n)."""
        ...

    def damped(self, d: np.ndarray) -> Solve | None:
        """The function v -> (JᵀJ + diag(d))⁻¹ v for d (n,) > 0; None if rounding prevents it."""
        ...

    def product(self, v: np.ndarray) -> np.ndarray:
        """JᵀJ v (n,) for v (n,)."""
        ...

    def jtr_at(self, step: np.ndarray) -> np.ndarray:
        """Jᵀ r(x + step) (n,), r not being linearised."""
        ...


class NormalModel:
    """The `LinearModel` with these JᵀJ and Jᵀr.

    Parameters
    ----------
    JTJ : numpy.ndarray of float64 (n, n)
    JTr : numpy.ndarray of float64 (n,)
    jtr_at : callable
        step (n,) -> Jᵀ r(x + step) (n,).
    """

    least_pivot = 0.0  # as LEAST_PIVOT

    def __init__(
        self, JTJ: np.ndarray, JTr: np.ndarray, jtr_at: Callable[[np.ndarray], np.ndarray]
    ):
        self._JTJ, self.gradient, self._jtr_at = JTJ, JTr, jtr_at
        self.diagonal = np.diagonal(JTJ)

    @property
    def JTJ(self) -> np.ndarray:
        """JᵀJ (n, n)."""
        return self._JTJ

    def jtr_at(self, step: np.ndarray) -> np.ndarray:
        """Jᵀ r(x + step)."""
        return self._jtr_at(step)

    def product(self, v: np.ndarray) -> np.ndarray:
        """JᵀJ v."""
        return self.JTJ @ v

    def damped(self, d: np.ndarray) -> Solve | None:
        """The function v -> (JᵀJ + diag(d))⁻¹ v for d > 0, by Cholesky's method."""
        from scipy.linalg import lapack

        A = self.JTJ.copy()
        diagonal = A.ravel()[:: len(d) + 1]
        diagonal += d
        limit = self.least_pivot * diagonal
        factor, info = lapack.dpotrf(A.T, lower=True, overwrite_a=True, clean=False)
        if info or (np.diagonal(factor) ** 2 < limit).any():
            return self._nearly_singular(d)
        return lambda v: lapack.dpotrs(factor, v, lower=True)[0]

    def _nearly_singular(self, d: np.ndarray) -> Solve | None:
        """The same where Cholesky's method fails."""
        return None


class TallModel(NormalModel):
    """The `LinearModel` of a J (m, n) and residuals r (m,) with m >= n.

    `residuals` is the function step (n,) -> r(x + step) (m,).
    """

    least_pivot = LEAST_PIVOT

    def __init__(self, J: np.ndarray, r: np.ndarray, residuals: Callable[[np.ndarray], np.ndarray]):
        super().__init__(J.T @ J, J.T @ r, lambda step: J.T @ residuals(step))
        self.J = J

    def _nearly_singular(self, d: np.ndarray) -> Solve | None:
        """By QR of J stacked on diag(sqrt(d)), which does not square the condition number."""
        from scipy.linalg import lapack

        R = _triangle(np.vstack([self._triangle, np.diag(np.sqrt(d))]))
        return lambda v: lapack.dpotrs(R, v)[0]

    @cached_property
    def _triangle(self) -> np.ndarray:
        return _triangle(self.J)


class WideModel:
    """The `LinearModel` of a J (m, n) and residuals r (m,) with m < n: only JJᵀ is formed.

    With B = diag(d), (JᵀJ + B)⁻¹Jᵀ = B⁻¹Jᵀ(I + JB⁻¹Jᵀ)⁻¹, and the inverse alone is
    B⁻¹ - B⁻¹Jᵀ(I + JB⁻¹Jᵀ)⁻¹JB⁻¹, which cancels where B is small. Right-hand sides are Jᵀw and
    little or nothing else: w is computed first. `residuals` is the function step (n,) ->
    r(x + step) (m,).
    """

    def __init__(self, J: np.ndarray, r: np.ndarray, residuals: Callable[[np.ndarray], np.ndarray]):
        self.J, self.gradient = J, J.T @ r
        self.diagonal = np.einsum("ij,ij->j", J, J)
        self._residuals = residuals

    def jtr_at(self, step: np.ndarray) -> np.ndarray:
        """Jᵀ r(x + step)."""
        return self.J.T @ self._residuals(step)

    @property
    def JTJ(self) -> np.ndarray:
        """JᵀJ (n, n), formed at each call; `damped` and `product` do without it."""
        return self.J.T @ self.J

    def product(self, v: np.ndarray) -> np.ndarray:
        """JᵀJ v."""
        return self.J.T @ (self.J @ v)

    def damped(self, d: np.ndarray) -> Solve:
        """The function v -> (JᵀJ + diag(d))⁻¹ v for d > 0."""
        from scipy.linalg import lapack

        J, J_over_d = self.J, self.J / d
        A = J_over_d @ J.T
        A.ravel()[:: len(A) + 1] += 1
        factor, _ = lapack.dpotrf(A.T, lower=True, overwrite_a=True, clean=False)

        def solve(v: np.ndarray) -> np.ndarray:
            w, rest = self._split(v)
            correction = lapack.dpotrs(factor, w - J_over_d @ rest, lower=True)[0]
            return rest / d + J_over_d.T @ correction

        return solve

    def _split(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """w (m,) and rest (n,) with v = Jᵀw + rest and J·rest about 0."""
        from scipy.linalg import lapack

        w = np.zeros(len(self.J))
        rest = v
        for _ in range(2):  # the second pass removes the first one's rounding errors
            w = w + lapack.dpotrs(self._gram, self.J @ rest, lower=True)[0]
            rest = v - self.J.T @ w
        return w, rest

    @cached_property
    def _gram(self) -> np.ndarray:
        """Cholesky's factor (m, m) of JJᵀ, whose diagonal is raised by its rounding errors."""
        from scipy.linalg import lapack

        A = self.J @ self.J.T
        diagonal = A.ravel()[:: len(A) + 1]
        diagonal += len(A) * np.finfo(float).eps * max(diagonal.max(), np.finfo(float).tiny)
        return lapack.dpotrf(A.T, lower=True, overwrite_a=True, clean=False)[0]


def model_of(
    J: np.ndarray, r: np.ndarray, residuals: Callable[[np.ndarray], np.ndarray]
) -> LinearModel:
    """The `LinearModel` of a J (m, n) of any shape; arguments as `TallModel` has them."""
    return (TallModel if J.shape[0] >= J.shape[1] else WideModel)(J, r, residuals)


def _triangle(A: np.ndarray) -> np.ndarray:
    """R of A = QR; Q has orthonormal columns."""
    return np.asarray(np.linalg.qr(A, mode="r"))


def effective_number(linear: LinearModel, prior: np.ndarray) -> float:
    """tr(JᵀJ (JᵀJ + diag(prior))⁻¹), prior (n,) >= 0: how many parameters the data determine.

    It is computed from the eigenvalues of JᵀJ + diag(prior) scaled to a unit diagonal; those below
    rounding count as zero.
    """
    JTJ = linear.JTJ
    lengths = linear.diagonal + prior
    scale = 1 / np.sqrt(np.where(lengths > 0, lengths, 1.0))
    H = scale[:, None] * JTJ * scale
    H.ravel()[:: len(prior) + 1] += prior * scale**2
    values, vectors = np.linalg.eigh(H)
    determined = values > len(prior) * np.finfo(float).eps * values[-1]
    of_prior = (vectors[:, determined] ** 2).T @ (prior * scale**2)
    return float(determined.sum() - (of_prior / values[determined]).sum())
