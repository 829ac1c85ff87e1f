"""The entries for single layers and activations."""

from __future__ import annotations

from .activations import call_activation
from .compiling import FLAG, INTEGER, NOTHING, NUMBER, entry, given, linked, reals, result
from .layer import (
    layer_forward,
    layer_input_gradient,
    multiply_by_derivative,
    needs_transpose,
    weight_gradient,
)
from .product import PRODUCTS, transpose
from .vectors import pointer


@entry(NOTHING, INTEGER, INTEGER, NUMBER, INTEGER, given(1), result(1))
def activation(order, function, constant, user, Z, out):
    """Write act(Z), act'(Z) or act''(Z)."""
    call_activation(function, order, Z.size, pointer(Z), pointer(out), constant, user)


# The work of an entry is also for the C functions of the door, which know no arrays of Numba's: so
# flags are integers here, which C passes in the same way.
@linked(
    NOTHING, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER, NUMBER, INTEGER,
    reals, reals, reals, INTEGER, reals, reals, INTEGER, calls=PRODUCTS,
)  # fmt: skip
def linked_forward(m, n_in, n_out, kind, function, constant, user, x, w, b, has_bias, y, z, keep_z):
    """Write Y and, if it is to be kept, Z."""
    layer_forward(
        m, n_in, n_out, x, n_in, w, b, has_bias != 0,
        kind, function, constant, user, y, z, n_out, keep_z != 0,
    )  # fmt: skip


@entry(
    NOTHING, given(2), given(2), given(1), FLAG, INTEGER, INTEGER, NUMBER, INTEGER,
    result(2), result(2), FLAG, calls=(linked_forward,),
)  # fmt: skip
def dense_forward(X, W, b, has_bias, kind, function, constant, user, Y, Z, keep_z):
    """Write Y and, if it is to be kept, Z."""
    m, n_in = X.shape
    linked_forward(
        m, n_in, W.shape[1], kind, function, constant, user, pointer(X), pointer(W), pointer(b),
        int(has_bias), pointer(Y), pointer(Z), int(keep_z),
    )  # fmt: skip


@linked(
    NOTHING, INTEGER, INTEGER, INTEGER, INTEGER, INTEGER, NUMBER, INTEGER,
    reals, reals, reals, reals, reals, INTEGER, reals, reals, INTEGER, reals, calls=PRODUCTS,
)  # fmt: skip
def linked_backward(
    m, n_in, n_out, kind, function, constant, user, d, x, w, kept, dx, need_dX, dw, db, need_db,
    transposed,
):  # fmt: skip
    """Turn d, which holds dY, into dL/dZ and write dW and, if needed, db and dX.

    `kept` is Y or Z, of which the activation's derivative is taken; `transposed` has room for
    Wᵀ if dX is needed.
    """
    multiply_by_derivative(kind, function, constant, user, m * n_out, d, kept)
    weight_gradient(m, n_in, n_out, x, n_in, d, n_out, dw, db, need_db != 0, False)
    if need_dX != 0:
        if needs_transpose(n_in, n_out):
            transpose(n_in, n_out, w, n_out, transposed, n_in)
        layer_input_gradient(m, n_in, n_out, d, n_out, w, transposed, dx, n_in)


@entry(
    NOTHING, result(2), given(2), given(2), given(2), INTEGER, INTEGER, NUMBER, INTEGER,
    result(2), FLAG, result(2), result(1), FLAG, result(1), calls=(linked_backward,),
)  # fmt: skip
def dense_backward(
    dZ, X, W, kept, kind, function, constant, user, dX, need_dX, dW, db, need_db, transposed
):
    """Turn dZ, which holds dY, into dL/dZ and write dW and, if needed, db and dX."""
    m, n_in = X.shape
    linked_backward(
        m, n_in, W.shape[1], kind, function, constant, user, pointer(dZ), pointer(X),
        pointer(W), pointer(kept), pointer(dX), int(need_dX), pointer(dW), pointer(db),
        int(need_db), pointer(transposed),
    )  # fmt: skip
