"""The entries for single layers and activations."""

from __future__ import annotations

from .compiling import FLAG, INTEGER, NOTHING, NUMBER, Entry, given, result
from .layer import (
    activate,
    differentiate,
    layer_backward,
    layer_forward,
    layer_input_gradient,
    needs_transpose,
)
from .product import transpose
from .vectors import pointer


def _make_activation(fingerprint):
    def activation(kind, constant, Z, derivative):
        """Replace Z by act(Z) or act'(Z)."""
        _ = fingerprint  # see compiling.source_fingerprint
        if derivative:
            differentiate(kind, constant, Z.size, pointer(Z))
        else:
            activate(kind, constant, Z.size, pointer(Z))

    return activation


activation = Entry(_make_activation, NOTHING, INTEGER, NUMBER, result(1), FLAG)


def _make_dense_forward(fingerprint):
    def dense_forward(X, W, b, has_bias, kind, constant, Y, Z, keep_z):
        """Write Y and, if it is to be kept, Z."""
        _ = fingerprint  # see compiling.source_fingerprint
        m, n_in = X.shape
        x, w, bias, y, z = pointer(X), pointer(W), pointer(b), pointer(Y), pointer(Z)
        layer_forward(m, n_in, W.shape[1], x, w, bias, has_bias, kind, constant, y, z, keep_z)

    return dense_forward


dense_forward = Entry(
    _make_dense_forward, NOTHING,
    given(2), given(2), given(1), FLAG, INTEGER, NUMBER, result(2), result(2), FLAG,
)  # fmt: skip


def _make_dense_backward(fingerprint):
    def dense_backward(dZ, X, W, Y, Z, kind, constant, dX, need_dX, dW, db, need_db, transposed):
        """Turn dZ, which holds dY, into dL/dZ and write dW and, if needed, db and dX."""
        _ = fingerprint  # see compiling.source_fingerprint
        m, n_in = X.shape
        n_out = W.shape[1]
        d, w, wt = pointer(dZ), pointer(W), pointer(transposed)
        layer_backward(
            m, n_in, n_out, pointer(X), d, pointer(Y), pointer(Z), kind, constant,
            pointer(dW), pointer(db), need_db, True, False,
        )  # fmt: skip
        if need_dX:
            if needs_transpose(n_in, n_out):
                transpose(n_in, n_out, w, wt)
            layer_input_gradient(m, n_in, n_out, d, w, wt, pointer(dX))

    return dense_backward


dense_backward = Entry(
    _make_dense_backward, NOTHING,
    result(2), given(2), given(2), given(2), given(2), INTEGER, NUMBER,
    result(2), FLAG, result(2), result(1), FLAG, result(1),
)  # fmt: skip
