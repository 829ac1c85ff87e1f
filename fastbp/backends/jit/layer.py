"""One dense layer forward and backward, over pointers.

X (m, n_in), W (n_in, n_out), Y = act(XW + b) (m, n_out), all contiguous; m is the rows of a tile.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from ...activations import LINEAR
from .activations import BACKWARD, call_activation
from .compiling import part
from .interpreted import intrinsic
from .product import dots, product
from .vectors import as_real, elementwise

_sum = elementwise(lambda x: (x,), 1, 0, total=True)


@intrinsic
def _one(typingctx: Any, like: Any) -> Any:
    """A pointer to the number 1 of the type that `like` points to."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        one = context.get_constant(signature.return_type.dtype, 1)
        return cgutils.global_constant(builder, "fastbp.one", one)

    return types.CPointer(like.dtype)(like), codegen


@part
def linear_forward(m, n_in, n_out, x, w, b, has_bias, z):
    """Z = XW + b."""
    if n_out == 1:
        dots(m, n_in, x, n_in, w, b[0] if has_bias else as_real(z, 0.0), z)
    else:
        product(m, n_out, n_in, x, n_in, 1, w, n_out, b, 0, has_bias, z, n_out)


@part
def layer_forward(m, n_in, n_out, x, w, b, has_bias, kind, function, constant, user, y, z, keep_z):
    """Y, and Z if it is to be kept."""
    product_of = z if keep_z else y
    linear_forward(m, n_in, n_out, x, w, b, has_bias, product_of)
    if kind != LINEAR or keep_z:
        call_activation(function, 0, m * n_out, product_of, y, constant, user)


@part
def multiply_by_derivative(kind, function, constant, user, n, d, x):
    """d *= act', taken from x, which is y where that is enough and else z."""
    if kind != LINEAR:
        call_activation(function, BACKWARD, n, x, d, constant, user)


@part
def weight_gradient(m, n_in, n_out, x, d, dw, db, has_bias, accumulate):
    """dW = Xᵀ dZ and db = Σ_rows dZ for d, which is dL/dZ; added if `accumulate`."""
    if n_out == 1:
        product(1, n_in, m, d, 0, 1, x, n_in, dw, 0, accumulate, dw, 0)  # its transpose
        if has_bias:
            db[0] = (db[0] if accumulate else as_real(db, 0.0)) + as_real(db, _sum(m, d))
    else:
        product(n_in, n_out, m, x, 1, n_in, d, n_out, dw, n_out, accumulate, dw, n_out)
        if has_bias:
            product(1, n_out, m, _one(d), 0, 0, d, n_out, db, 0, accumulate, db, 0)


@part
def needs_transpose(n_in, n_out):
    """Whether `layer_input_gradient` reads Wᵀ; a single row or column is its own transpose."""
    return n_in > 1 and n_out > 1


@part
def layer_input_gradient(m, n_in, n_out, d, w, transposed, dx):
    """dX = dZ Wᵀ."""
    if n_in == 1:
        dots(m, n_out, d, n_out, w, as_real(d, 0.0), dx)
    elif n_out == 1:
        product(m, n_in, 1, d, 1, 1, w, n_in, dx, 0, False, dx, n_in)
    else:
        product(m, n_in, n_out, d, n_out, 1, transposed, n_in, dx, 0, False, dx, n_in)
