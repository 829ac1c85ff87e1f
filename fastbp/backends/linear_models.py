"""Linear models of sums of squares, and the solution of their damped equations with LAPACK.

Importing this module does not load SciPy; the functions do when they run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import numpy as np

Solver = Callable[[np.ndarray], np.ndarray]


class Linear(Protocol):
    """A sum of squares to first order of its residuals, around x.

    Attributes
    ----------
    gradient, squares : numpy.ndarray (n,)
        Jᵀr, and the diagonal of JᵀJ.
    """

    gradient: np.ndarray
    squares: np.ndarray

    @property
    def JTJ(self) -> np.ndarray:
        """JᵀJ (n, n)."""
        ...

    def damped(self, d: np.ndarray) -> Solver | None:
        """The function v -> (JᵀJ + diag(d))⁻¹ v for d > 0; None if rounding leaves none."""
        ...

    def product(self, v: np.ndarray) -> np.ndarray:
        """JᵀJ v."""
        ...

    def jtr_at(self, step: np.ndarray) -> np.ndarray:
        """Jᵀ r(x + step)."""
        ...


class Normal:
    """A model of which JᵀJ and Jᵀr are known; see `Linear`.

    Parameters
    ----------
    JTJ : numpy.ndarray of float64 (n, n)
    JTr : numpy.ndarray of float64 (n,)
    jtr_at : callable
        step (n,) -> Jᵀ r(x + step) (n,).
    """

    # A factor whose squared diagonal, relative to that of the matrix, is smaller than this has lost
    # too many digits to rounding.
    lost = 0.0

    def __init__(
        self, JTJ: np.ndarray, JTr: np.ndarray, jtr_at: Callable[[np.ndarray], np.ndarray]
    ):
        self._JTJ, self.gradient, self._jtr_at = JTJ, JTr, jtr_at
        self.squares = np.diagonal(JTJ)

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

    def damped(self, d: np.ndarray) -> Solver | None:
        """The function v -> (JᵀJ + diag(d))⁻¹ v for d > 0, by Cholesky's factors; None if rounding
        leaves none."""
        from scipy.linalg import lapack

        A = self.JTJ.copy()
        diagonal = A.ravel()[:: len(d) + 1]
        diagonal += d
        limit = self.lost * diagonal
        factor, info = lapack.dpotrf(A.T, lower=True, overwrite_a=True, clean=False)
        if info or (np.diagonal(factor) ** 2 < limit).any():
            return self._nearly_singular(d)
        return lambda v: lapack.dpotrs(factor, v, lower=True)[0]

    def _nearly_singular(self, d: np.ndarray) -> Solver | None:
        return None


class Tall(Normal):
    """A model of which J (m, n) and the residuals r (m,) are known, m >= n."""

    lost = 1e-10

    def __init__(self, J: np.ndarray, r: np.ndarray, residuals: Callable[[np.ndarray], np.ndarray]):
        super().__init__(J.T @ J, J.T @ r, lambda step: J.T @ residuals(step))
        self.J = J

    def _nearly_singular(self, d: np.ndarray) -> Solver | None:
        """By the triangle of J over the root of d: it is found without squaring the condition."""
        from scipy.linalg import lapack

        R = _triangle(np.vstack([self._triangle, np.diag(np.sqrt(d))]))
        return lambda v: lapack.dpotrs(R, v)[0]

    @cached_property
    def _triangle(self) -> np.ndarray:
        return _triangle(self.J)


class Wide:
    """A model of which J (m, n) and r (m,) are known, m < n: only JJᵀ is formed.

    With B = diag(d), (JᵀJ + B)⁻¹Jᵀ = B⁻¹Jᵀ(I + JB⁻¹Jᵀ)⁻¹, and the inverse alone is
    B⁻¹ - B⁻¹Jᵀ(I + JB⁻¹Jᵀ)⁻¹JB⁻¹, which cancels where B is small. Right-hand sides are Jᵀw and
    little or nothing else: w is found first.
    """

    def __init__(self, J: np.ndarray, r: np.ndarray, residuals: Callable[[np.ndarray], np.ndarray]):
        self.J, self.gradient = J, J.T @ r
        self.squares = np.einsum("ij,ij->j", J, J)
        self._residuals = residuals

    def jtr_at(self, step: np.ndarray) -> np.ndarray:
        """Jᵀ r(x + step)."""
        return self.J.T @ self._residuals(step)

    @property
    def JTJ(self) -> np.ndarray:
        """JᵀJ, for those that need it whole."""
        return self.J.T @ self.J

    def product(self, v: np.ndarray) -> np.ndarray:
        """JᵀJ v."""
        return self.J.T @ (self.J @ v)

    def damped(self, d: np.ndarray) -> Solver:
        """The function v -> (JᵀJ + diag(d))⁻¹ v for d > 0."""
        from scipy.linalg import lapack

        J, within = self.J, self.J / d
        A = within @ J.T
        A.ravel()[:: len(A) + 1] += 1
        factor, _ = lapack.dpotrf(A.T, lower=True, overwrite_a=True, clean=False)

        def solve(v: np.ndarray) -> np.ndarray:
            w, rest = self._split(v)
            correction = lapack.dpotrs(factor, w - within @ rest, lower=True)[0]
            return rest / d + within.T @ correction

        return solve

    def _split(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """w (m,) and rest (n,) with v = Jᵀw + rest and J·rest about 0."""
        from scipy.linalg import lapack

        w = np.zeros(len(self.J))
        rest = v
        for _ in range(2):  # the second time for what rounding left
            w = w + lapack.dpotrs(self._gram, self.J @ rest, lower=True)[0]
            rest = v - self.J.T @ w
        return w, rest

    @cached_property
    def _gram(self) -> np.ndarray:
        """The factor of JJᵀ, with as much on its diagonal as rounding loses."""
        from scipy.linalg import lapack

        A = self.J @ self.J.T
        diagonal = A.ravel()[:: len(A) + 1]
        diagonal += len(A) * np.finfo(float).eps * max(diagonal.max(), np.finfo(float).tiny)
        return lapack.dpotrf(A.T, lower=True, overwrite_a=True, clean=False)[0]


def _triangle(A: np.ndarray) -> np.ndarray:
    """R of A = QR, Q having orthonormal columns."""
    return np.asarray(np.linalg.qr(A, mode="r"))


def effective_number(linear: Linear, prior: np.ndarray) -> float:
    """tr(JᵀJ (JᵀJ + diag(prior))⁻¹): how many parameters the data determine.

    By eigenvalues, with the parameters scaled so that the matrix has a diagonal of ones; those
    below rounding count as zero.
    """
    JTJ = linear.JTJ
    lengths = linear.squares + prior
    scale = 1 / np.sqrt(np.where(lengths > 0, lengths, 1.0))
    H = scale[:, None] * JTJ * scale
    H.ravel()[:: len(prior) + 1] += prior * scale**2
    values, vectors = np.linalg.eigh(H)
    known = values > len(prior) * np.finfo(float).eps * values[-1]
    of_prior = (vectors[:, known] ** 2).T @ (prior * scale**2)
    return float(known.sum() - (of_prior / values[known]).sum())
