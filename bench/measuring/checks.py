"""Whether contestants have computed the right numbers, within rounding."""

from __future__ import annotations

import numpy as np


def check_layer(X, W, b, dY, activation, Y, dX, dW, db):
    """Every entry within the bound of its sum: (terms + 8) roundings of Σ|a·b|."""
    eps = np.finfo(Y.dtype).eps
    X, W, b, dY, Y = (a.astype(np.float64) for a in (X, W, b, dY, Y))
    act = {"relu": lambda Z: np.maximum(Z, 0), "tanh": np.tanh}[activation]
    # Both functions are Lipschitz with constant 1.
    within(Y, act(X @ W + b), (X.shape[1] + 8) * eps * (np.abs(X) @ np.abs(W) + np.abs(b) + 1))
    # From the contestant's own Y: relu's derivative jumps where Z is a rounding away from 0.
    dZ = dY * (Y > 0 if activation == "relu" else 1 - Y * Y)
    # 1 - Y² has an absolute error of two roundings, hence |dY| and not |dZ|.
    for found, A, B in ((dX, dZ, W.T), (dW, X.T, dZ), (db, np.ones(len(X)), dZ)):
        size = np.abs(dY) if B is dZ else np.abs(B)
        other = np.abs(dY) if A is dZ else np.abs(A)
        within(found, A @ B, (np.shape(A)[-1] + 8) * eps * (other @ size))


def within(found, expected, bound):
    assert (np.abs(found - expected) <= bound).all()


def flat(result) -> np.ndarray:
    parts = result if isinstance(result, tuple) else (result,)
    return np.concatenate([np.ravel(part) for part in parts])
