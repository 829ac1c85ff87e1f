"""Linear models of sums of squares, and the solution of their damped equations with LAPACK.

Importing this module does not load SciPy; the functions do when they run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

Solver = Callable[[np.ndarray], np.ndarray]


class Normal:
    """A model of which JᵀJ and Jᵀr are known; see `marquardt.Linear`.

    Parameters
    ----------
    JTJ : numpy.ndarray of float64 (n, n)
    JTr : numpy.ndarray of float64 (n,)
    beyond : callable
        step (n,) -> Jᵀ r(x + step) (n,).
    """

    # A factor whose squared diagonal, relative to that of the matrix, is smaller than this has lost
    # too many digits to rounding.
    lost = 0.0

    def __init__(
        self, JTJ: np.ndarray, JTr: np.ndarray, beyond: Callable[[np.ndarray], np.ndarray]
    ):
        self.JTJ, self.gradient, self.beyond = JTJ, JTr, beyond
        self.squares = np.diagonal(JTJ)

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

        R = np.linalg.qr(np.vstack([self._triangle, np.diag(np.sqrt(d))]), mode="r")
        return lambda v: lapack.dpotrs(R, v)[0]

    @cached_property
    def _triangle(self) -> np.ndarray:
        return np.linalg.qr(self.J, mode="r")


class Wide:
    """A model of which J (m, n) and r (m,) are known, m < n: only JJᵀ is formed.

    With B = diag(d), (JᵀJ + B)⁻¹ = B⁻¹ - B⁻¹Jᵀ(I + JB⁻¹Jᵀ)⁻¹JB⁻¹.
    """

    def __init__(self, J: np.ndarray, r: np.ndarray, residuals: Callable[[np.ndarray], np.ndarray]):
        self.J, self.gradient = J, J.T @ r
        self.squares = np.einsum("ij,ij->j", J, J)
        self.beyond = lambda step: J.T @ residuals(step)

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

        def once(v: np.ndarray) -> np.ndarray:
            return v / d - within.T @ lapack.dpotrs(factor, within @ v, lower=True)[0]

        def solve(v: np.ndarray) -> np.ndarray:
            # What the difference cancels is won back by refinement.
            x = once(v)
            for _ in range(2):
                x = x + once(v - (self.product(x) + d * x))
            return x

        return solve
