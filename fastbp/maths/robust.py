"""Losses that let outliers count less, as functions of the residuals."""

from __future__ import annotations

import numpy as np

from ..backends.contract import CAUCHY_RHO, HUBER_RHO, SOFT_L1_RHO, Robust


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
