"""The entries for single layers and activations."""

from __future__ import annotations

from .activations import call_activation
from .compiling import FLAG, INTEGER, NOTHING, NUMBER, entry, given, result
from .layer import (
    layer_forward,
    layer_input_gradient,
    multiply_by_derivative,
    needs_transpose,
    weight_gradient,
)
from .product import PRODUCTS, transpose
from .vectors import pointer


@entry(
    NOTHING, INTEGER, INTEGER, NUMBER, INTEGER, given(1), result(1),
)  # fmt: skip
def activation(order, function, constant, user, Z, out):
    """Write act(Z), act'(Z) or act''(Z)."""
    call_activation(function, order, Z.size, pointer(Z), pointer(out), constant, user)


@entry(
    NOTHING,
    given(2), given(2), given(1), FLAG, INTEGER, INTEGER, NUMBER, INTEGER,
    result(2), result(2), FLAG, calls=PRODUCTS,
)  # fmt: skip
def dense_forward(X, W, b, has_bias, kind, function, constant, user, Y, Z, keep_z):
    """Write Y and, if it is to be kept, Z."""
    (m, n_in), n_out = X.shape, W.shape[1]
    layer_forward(
        m, n_in, n_out, pointer(X), n_in, pointer(W), pointer(b), has_bias,
        kind, function, constant, user, pointer(Y), pointer(Z), n_out, keep_z,
    )  # fmt: skip


@entry(
    NOTHING,
    result(2), given(2), given(2), given(2), INTEGER, INTEGER, NUMBER, INTEGER,
    result(2), FLAG, result(2), result(1), FLAG, result(1), calls=PRODUCTS,
)  # fmt: skip
def dense_backward(
    dZ, X, W, kept, kind, function, constant, user, dX, need_dX, dW, db, need_db, transposed
):
    """Turn dZ, which holds dY, into dL/dZ and write dW and, if needed, db and dX.

    `kept` is Y or Z, of which the activation's derivative is taken; `transposed` has room for
    Wᵀ if dX is needed.
    """
    (m, n_in), n_out = X.shape, W.shape[1]
    d, x, w, wt = pointer(dZ), pointer(X), pointer(W), pointer(transposed)
    multiply_by_derivative(kind, function, constant, user, m * n_out, d, pointer(kept))
    weight_gradient(m, n_in, n_out, x, n_in, d, n_out, pointer(dW), pointer(db), need_db, False)
    if need_dX:
        if needs_transpose(n_in, n_out):
            transpose(n_in, n_out, w, n_out, wt, n_in)
        layer_input_gradient(m, n_in, n_out, d, n_out, w, wt, pointer(dX), n_in)
