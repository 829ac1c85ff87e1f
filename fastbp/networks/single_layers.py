"""The drop-in functions: one dense layer forward and backward, and activations by themselves.

They replace the NumPy lines ``Y = act(X @ W + b)`` and its three gradients in a user-defined loop.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .. import backends
from ..common.arrays import float_type, real_array
from ..common.errors import ShapeError
from .activations import BY_NAME, Activation, activation as activation_of
from .dense import require_binary

try:
    from ..common._fastcall import (
        connect_kernels,
        dense_backward as fast_backward,
        dense_forward as fast_forward,
    )
except ImportError:  # not built: no compiler, or a Python without limited API
    fast_backward = fast_forward = None
else:
    connect_kernels(backends._context.get, BY_NAME, Activation)


class DenseCache(NamedTuple):
    """What `dense_backward` needs of a forward pass; its arrays must not be modified before it."""

    X: np.ndarray  # (n, n_in)
    W: np.ndarray  # (n_in, n_out), with the mask applied
    Y: np.ndarray  # (n, n_out)
    Z: np.ndarray | None  # (n, n_out), or None where the activation's derivative follows from Y
    activation: Activation
    has_bias: bool
    mask: np.ndarray | None  # (n_in, n_out)
    backend: ModuleType


def dense_forward(
    X: Any,
    W: Any,
    b: Any = None,
    activation: str | Activation = "linear",
    *,
    mask: Any = None,
    backend: str | None = None,
) -> tuple[np.ndarray, DenseCache]:
    """One dense layer: Y = act(X (W ∘ mask) + b).

    Parameters
    ----------
    X : array_like (n, n_in)
        One sample per row.
    W : array_like (n_in, n_out)
    b : array_like (n_out,), optional
    activation : str or Activation, default "linear"
    mask : array_like (n_in, n_out) of 0 and 1, optional
        Which connections exist; the others count as 0 whatever W holds.
    backend : {"c", "numba", "numpy"}, optional
        The current one by default.

    Returns
    -------
    Y : numpy.ndarray (n, n_out)
        float32 if no argument is of a wider float type, else float64.
    cache : DenseCache
        For `dense_backward`. It refers to X, W and Y: do not modify them before the backward pass.

    Raises
    ------
    ShapeError
        If the shapes do not fit; the message names the argument and both shapes.
    TypeError
        For complex, object or string arrays.
    ValueError
        For an unknown activation or a mask with entries other than 0 and 1.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> X, W, b = np.array([[1.0, 2.0]]), np.eye(2), np.array([0.0, -5.0])
    >>> Y, cache = fb.dense_forward(X, W, b, "relu")
    >>> Y
    array([[1., 0.]])
    >>> dX, dW, db = fb.dense_backward(np.ones_like(Y), cache)
    >>> dX
    array([[1., 0.]])
    """
    if fast_forward is not None and mask is None and backend is None:
        results = fast_forward(X, W, b, activation, backends._default, DenseCache)
        if results is not None:
            return results
    act = activation_of(activation)
    module = backends.resolve(backend)
    dtype = float_type(X, W, b)
    X = real_array("X", X, dtype)
    W = real_array("W", W, dtype)
    if X.ndim != 2 or W.ndim != 2 or X.shape[1] != W.shape[0]:
        raise ShapeError(_product_message(X.shape, W.shape))
    if b is not None:
        b = real_array("b", b, dtype)
        if b.shape != (W.shape[1],):
            raise ShapeError(
                f"b has shape {b.shape}, expected ({W.shape[1]},): one bias per column of W, "
                f"which has shape {W.shape}"
            )
    if mask is not None:
        mask = _binary_mask(mask, W)
        W = np.where(mask == 1, W, W.dtype.type(0))
    Y, Z = module.dense_forward(X, W, b, act, act.keeps_z)
    return Y, DenseCache(X, W, Y, Z, act, b is not None, mask, module)


def dense_backward(
    dY: Any, cache: DenseCache, *, need_dX: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Gradients of one dense layer: dZ = dY ∘ act'(Z), dX = dZ Wᵀ, dW = Xᵀ dZ, db = Σ_rows dZ.

    Parameters
    ----------
    dY : array_like (n, n_out)
        The gradient with respect to the layer's output, not yet multiplied by act'.
    cache : DenseCache
        From `dense_forward`; the backward pass runs on the same backend.
    need_dX : bool, default True
        False saves the product for a first layer.

    Returns
    -------
    dX : numpy.ndarray (n, n_in) or None
        None if not needed.
    dW : numpy.ndarray (n_in, n_out)
        Zero where the mask is 0.
    db : numpy.ndarray (n_out,) or None
        None for a layer without b.

    Raises
    ------
    ShapeError
        If dY does not have the shape of Y.
    TypeError
        For complex, object or string arrays.
    """
    if fast_backward is not None:
        results = fast_backward(dY, cache, need_dX)
        if results is not None:
            return results
    X, W, Y, Z, act, has_bias, mask, module = cache
    dY = real_array("dY", dY, Y.dtype)
    if dY.shape != Y.shape:
        raise ShapeError(f"dY has shape {dY.shape}, expected {Y.shape}, the shape of Y")
    dX, dW, db = module.dense_backward(dY, X, W, Y, Z, act, need_dX, has_bias)
    if mask is not None:
        dW[mask == 0] = 0  # also where it is inf or NaN
    return dX, dW, db


def _product_message(x: tuple[int, ...], w: tuple[int, ...]) -> str:
    """Why X and W of these shapes have no product, and what may be meant."""
    if len(w) != 2:
        return f"W has shape {w}, expected (n_in, n_out)"
    advice = ""
    if len(x) == 2 and x[1] == w[1]:
        advice = "; W with a row per output, as in PyTorch, is W.T here"
    elif len(x) == 1 and x[0] == w[0]:
        advice = "; a single sample is X.reshape(1, -1)"
    return (
        f"X has shape {x}, expected (n, {w[0]}): a column per row of W, which has shape {w}{advice}"
    )


def _binary_mask(mask: Any, W: np.ndarray) -> np.ndarray:
    """A mask of zeros and ones of the shape and dtype of W, checked."""
    mask = real_array("mask", mask, W.dtype)
    if mask.shape != W.shape:
        raise ShapeError(f"mask has shape {mask.shape}, expected {W.shape}, the shape of W")
    require_binary("mask", mask)
    return mask
