"""Losses that let outliers count less, as functions of the residuals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Kinds of `Robust`.
LINEAR_RHO, HUBER_RHO, SOFT_L1_RHO, CAUCHY_RHO = range(4)


class Robust(NamedTuple):
    """How residuals count in a sum of squares: r² as C²·rho((r/C)²), C being the scale.

    The rho are those of `scipy.optimize.least_squares`, under its names.

    Attributes
    ----------
    kind : int
        LINEAR_RHO: z. HUBER_RHO: z up to 1, 2·sqrt(z) - 1 beyond. SOFT_L1_RHO: 2·(sqrt(1 + z) - 1).
        CAUCHY_RHO: log(1 + z).
    scale : float
        C > 0, which does not matter for LINEAR_RHO.
    """

    kind: int = LINEAR_RHO
    scale: float = 1.0


def rho(r: np.ndarray, robust: Robust) -> tuple[np.ndarray, np.ndarray]:
    """C² rho(z) and rho'(z) of z = (r/C)²."""
    C = robust.scale
    with np.errstate(all="ignore"):
        z = (r / C) ** 2
        if robust.kind == HUBER_RHO:
            size = np.abs(r) / C
            inside = ~(size > 1)
            return np.where(inside, r * r, C * C * (2 * size - 1)), np.where(inside, 1, 1 / size)
        if robust.kind == SOFT_L1_RHO:
            root = np.sqrt(1 + z)
            return C * C * 2 * z / (1 + root), 1 / root  # 2 (root - 1) without cancellation
        if robust.kind == CAUCHY_RHO:
            return C * C * np.log1p(z), 1 / (1 + z)
        return r * r, np.ones_like(r)
