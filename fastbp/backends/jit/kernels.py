"""The entries for single layers and activations."""

from __future__ import annotations

from .compiling import FLAG, INTEGER, NOTHING, entry, in_array, out_array
from .layer import (
    ACT,
    Affine,
    apply,
    layer_forward,
    layer_input_gradient,
    multiply_by_derivative,
    needs_transpose,
    weight_gradient,
)
from .product import PRODUCTS, transpose
from .vectors import pointer


@entry(NOTHING, INTEGER, ACT, in_array(1), out_array(1))
def activation(order, act, Z, out):
    """Write act(Z), act'(Z) or act''(Z)."""
    apply(act, order, Z.size, pointer(Z), pointer(out))


@entry(
    NOTHING, in_array(2), in_array(2), in_array(1), FLAG, ACT, out_array(2), out_array(2), FLAG,
    calls=PRODUCTS,
)  # fmt: skip
def dense_forward(X, W, b, has_bias, act, Y, Z, keep_z):
    """Write Y (m, n_out) and, if `keep_z`, Z (m, n_out)."""
    (m, n_in), n_out = X.shape, W.shape[1]
    layer = Affine(n_in, n_out, pointer(W), pointer(b), has_bias)
    layer_forward(m, layer, act, pointer(X), n_in, pointer(Y), pointer(Z), n_out, keep_z)


@entry(
    NOTHING, out_array(2), in_array(2), in_array(2), in_array(2), ACT, out_array(2), FLAG,
    out_array(2), out_array(1), FLAG, out_array(1), calls=PRODUCTS,
)  # fmt: skip
def dense_backward(dZ, X, W, z_or_y, act, dX, need_dX, dW, db, need_db, transposed):
    """Turn dZ, which holds dY, into dL/dZ and write dW and, if needed, db and dX.

    The activation's derivative is taken from `z_or_y`; `transposed` has room for Wᵀ if dX is
    needed.
    """
    (m, n_in), n_out = X.shape, W.shape[1]
    d, w, wt = pointer(dZ), pointer(W), pointer(transposed)
    multiply_by_derivative(act, m * n_out, d, pointer(z_or_y))
    gradient = Affine(n_in, n_out, pointer(dW), pointer(db), need_db)
    weight_gradient(m, gradient, pointer(X), n_in, d, n_out, False)
    if need_dX:
        if needs_transpose(n_in, n_out):
            transpose(n_in, n_out, w, n_out, wt, n_in)
        layer = Affine(n_in, n_out, w, w, False)
        layer_input_gradient(m, layer, d, n_out, wt, pointer(dX), n_in)
