"""Jacobians by differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_EPS = float(np.finfo(float).eps)
# Steps relative to the variable, which balance truncation and rounding.
STEPS = {"2-point": _EPS ** (1 / 2), "3-point": _EPS ** (1 / 3)}


def jacobian_by_differences(
    f: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    here: np.ndarray,
    kind: str,
    bounds: tuple[np.ndarray, np.ndarray] | None,
) -> np.ndarray:
    """The derivatives (m, n) of f by differences.

    Parameters
    ----------
    f : callable
        (n,) -> (m,), a new array at each call.
    x : numpy.ndarray (n,)
    here : numpy.ndarray (m,)
        f(x).
    kind : {"2-point", "3-point"}
        Forward differences, or central ones.
    bounds : pair of numpy.ndarray (n,), or None
        Within which f is called.
    """
    lower, upper = bounds or (np.full_like(x, -np.inf), np.full_like(x, np.inf))
    J = np.empty((len(here), len(x)))
    for j in range(len(x)):
        h = STEPS[kind] * (abs(x[j]) or 1.0)
        before, after = x.copy(), x.copy()
        after[j] = min(x[j] + h, upper[j])
        if kind == "3-point" or after[j] == x[j]:
            before[j] = max(x[j] - h, lower[j])
        f_after = f(after) if after[j] != x[j] else here
        f_before = f(before) if before[j] != x[j] else here
        J[:, j] = (f_after - f_before) / (after[j] - before[j])
    return J
