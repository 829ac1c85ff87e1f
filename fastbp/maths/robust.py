"""Robust losses rho of squared residuals, by which outliers count less."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Kinds of `Robust`.
LINEAR_RHO, HUBER_RHO, SOFT_L1_RHO, CAUCHY_RHO, ARCTAN_RHO = range(5)


class Robust(NamedTuple):
    """A robust loss: C²·rho((r/C)²) takes the place of r² in a sum of squares; C is the scale.

    The rho are those of `scipy.optimize.least_squares`, under its names.

    Attributes
    ----------
    kind : int
        LINEAR_RHO: z. HUBER_RHO: z up to 1, 2·sqrt(z) - 1 beyond. SOFT_L1_RHO: 2·(sqrt(1 + z) - 1).
        CAUCHY_RHO: log(1 + z). ARCTAN_RHO: arctan(z), of functions alone, not of networks.
    scale : float
        C > 0, in units of the residuals; without effect for LINEAR_RHO.
    """

    kind: int = LINEAR_RHO
    scale: float = 1.0


def rho(r: np.ndarray, robust: Robust) -> tuple[np.ndarray, np.ndarray]:
    """C² rho(z) and rho'(z), for z = (r/C)², of residuals r of any shape; both have its shape."""
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
        if robust.kind == ARCTAN_RHO:
            return C * C * np.arctan(z), 1 / (1 + z * z)
        return r * r, np.ones_like(r)


def influence(r: np.ndarray, robust: Robust) -> tuple[np.ndarray, np.ndarray]:
    """ψ = rho'(z) r, half the derivative of C² rho(z), and its derivative ψ', of residuals r."""
    with np.errstate(all="ignore"):
        z = (r / robust.scale) ** 2
        slope = rho(r, robust)[1]
        curved = {
            LINEAR_RHO: lambda: np.ones_like(r),
            HUBER_RHO: lambda: np.where(z > 1, 0.0, 1.0),
            SOFT_L1_RHO: lambda: (1 + z) ** -1.5,
            CAUCHY_RHO: lambda: (1 - z) / (1 + z) ** 2,
            ARCTAN_RHO: lambda: (1 - 3 * z * z) / (1 + z * z) ** 2,
        }
        return slope * r, curved[robust.kind]()
