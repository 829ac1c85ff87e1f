"""Curvature of a training objective, from which the largest stable rate follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..common.arrays import FLOAT64
from ..networks.objective import Objective, largest_eigenvalue


def batch_curvature(obj: Objective, params: np.ndarray, batch_size: int) -> float:
    """The largest eigenvalue of the Gauss-Newton matrix of a batch's mean objective.

    It is estimated from at most 4096 rows and 2^24 numbers rows·n_params, rows evenly spaced and
    scaled to all, so that the work stays a small part of a fit's.

    Parameters
    ----------
    obj : Objective
        With a least-squares loss.
    params : numpy.ndarray (n_params,)
    batch_size : int
        At most n. Where the loss has no normaliser, a batch of B rows has B/n of the curvature.

    Returns
    -------
    float
        Not finite if the network's outputs at `params` are not.
    """
    obj = obj.astype(FLOAT64)
    problem, params, free = obj.problem, obj.net.checked_params(params), obj.net.free
    n = len(problem.X)
    rows = slice(None, None, -(-n // min(4096, max(32, 2**24 // len(params)))))
    weights = np.ones(n) if problem.weights is None else problem.weights
    scale = problem.scale * weights.sum() / max(weights[rows].sum(), 1e-300)
    sample = replace(
        problem,
        X=np.ascontiguousarray(problem.X[rows]),
        targets=np.ascontiguousarray(problem.targets[rows]),
        weights=np.ascontiguousarray(weights[rows]),
        scale=scale if obj.loss.averaged else scale * batch_size / n,
        handles={},
    )

    def product(x: np.ndarray) -> np.ndarray:
        v = np.zeros(len(params))
        v[free] = np.ravel(x)
        v = obj.backend.hvp(sample, params, v, True) + obj._penalty_product(params, v)
        return v[free]

    return largest_eigenvalue(product, len(free), tol=1e-5, restarts=20)
