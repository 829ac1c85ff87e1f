"""One dense layer forward and backward, over pointers.

X (m, n_in), W (n_in, n_out), Y = act(XW + b) (m, n_out); m is the rows of a tile, ldx the distance
of the rows of X, and so on. W and its gradient are contiguous.
"""

from __future__ import annotations

from numba import types

from ...activations import LINEAR, RELU
from .activations import BACKWARD, call_activation
from .compiling import inlined
from .intrinsics import emits, same
from .numba_internals import cgutils
from .product import PADDED, RECTIFIED, dots, finished_product, product
from .vectors import as_real, elementwise, vector_width

_sum = elementwise(lambda x: (x,), 1, 0, total=True)


@emits(lambda like: types.CPointer(like.dtype), same)
def _one(code, like):
    """A pointer to the number 1 of the type that `like` points to."""
    one = code.context.get_constant(code.returns.dtype, 1)
    return cgutils.global_constant(code.builder, "fastbp.one", one)


@inlined
def _room(ld, like):
    """How `finished_product` may write rows that are `ld` apart."""
    return PADDED if ld % vector_width(like) == 0 else 0


@inlined
def linear_forward(m, n_in, n_out, x, ldx, w, b, has_bias, z, ldz, finish):
    """Z = XW + b, or with RECTIFIED relu of it; a single column is contiguous."""
    if n_out == 1:
        dots(m, n_in, x, ldx, w, b[0] if has_bias else as_real(z, 0.0), z, finish)
    else:
        finished_product(
            m, n_out, n_in, x, ldx, 1, w, n_out, b, 0, has_bias, z, ldz, finish + _room(ldz, z)
        )


@inlined
def layer_forward(
    m, n_in, n_out, x, ldx, w, b, has_bias, kind, function, constant, user, y, z, ld, keep_z
):
    """Y, and Z if it is to be kept."""
    product_of = z if keep_z else y
    rectified = kind == RELU and not keep_z
    linear_forward(
        m, n_in, n_out, x, ldx, w, b, has_bias, product_of, ld, RECTIFIED if rectified else 0
    )
    if keep_z or (kind != LINEAR and not rectified):
        call_activation(function, 0, span(m, n_out, ld), product_of, y, constant, user)


@inlined
def span(m, n, ld):
    """The numbers from the first to the last of m rows; between rows they are harmless."""
    return (m - 1) * ld + n if m > 0 else 0


@inlined
def multiply_by_derivative(kind, function, constant, user, n, d, x):
    """d *= act', taken from x, which is y where that is enough and else z."""
    if kind != LINEAR:
        call_activation(function, BACKWARD, n, x, d, constant, user)


@inlined
def weight_gradient(m, n_in, n_out, x, ldx, d, ldd, dw, db, has_bias, accumulate):
    """dW = Xᵀ dZ and db = Σ_rows dZ for d, which is dL/dZ; added if `accumulate`."""
    if n_out == 1:
        product(1, n_in, m, d, 0, 1, x, ldx, dw, 0, accumulate, dw, 0)  # its transpose
        if has_bias:
            db[0] = (db[0] if accumulate else as_real(db, 0.0)) + as_real(db, _sum(m, d))
    else:
        product(n_in, n_out, m, x, 1, ldx, d, ldd, dw, n_out, accumulate, dw, n_out)
        if has_bias:
            product(1, n_out, m, _one(d), 0, 0, d, ldd, db, 0, accumulate, db, 0)


@inlined
def needs_transpose(n_in, n_out):
    """Whether `layer_input_gradient` reads Wᵀ; a single row or column is its own transpose."""
    return n_in > 1 and n_out > 1


@inlined
def layer_input_gradient(m, n_in, n_out, d, ldd, w, transposed, dx, ldx):
    """dX = dZ Wᵀ."""
    if n_in == 1:
        dots(m, n_out, d, ldd, w, as_real(d, 0.0), dx, 0)
    elif n_out == 1:
        finished_product(m, n_in, 1, d, 1, 1, w, n_in, dx, 0, False, dx, ldx, _room(ldx, dx))
    else:
        finished_product(
            m, n_in, n_out, d, ldd, 1, transposed, n_in, dx, 0, False, dx, ldx, _room(ldx, dx)
        )
