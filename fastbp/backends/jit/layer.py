"""One dense layer forward and backward, over pointers.

X (m, n_in), W (n_in, n_out), Y = act(XW + b) (m, n_out); m is the rows of a tile, ldx the distance
of the rows of X, and so on. W and its gradient are contiguous.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import types

from ...maths.activations import LINEAR, RELU
from .activations import BACKWARD, call_activation
from .compiling import INTEGER, NUMBER, Struct, inlined
from .intrinsics import emits, same
from .numba_internals import cgutils
from .product import PADDED, RECTIFIED, dots, finished_product, product
from .vectors import as_real, elementwise, vector_width

_sum = elementwise(lambda x: (x,), 1, 0, total=True)


class Affine(NamedTuple):
    """W (n_in, n_out) and b (n_out,), or the gradient with respect to both."""

    n_in: Any
    n_out: Any
    w: Any
    b: Any
    has_bias: Any


class Act(NamedTuple):
    """An activation."""

    kind: Any
    function: Any  # the address of its function
    constant: Any
    user: Any  # the address of the user's own functions, or 0


ACT = Struct(Act, INTEGER, INTEGER, NUMBER, INTEGER)


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
def apply(act, order, n, z, out):
    """Write act (order 0), act' (1) or act'' (2) of n numbers z; BACKWARD multiplies by act'."""
    call_activation(act.function, order, n, z, out, act.constant, act.user)


@inlined
def linear_forward(m, layer, x, ldx, z, ldz, finish):
    """Z = XW + b, or with RECTIFIED relu of it; a single column is contiguous."""
    n_in, n_out = layer.n_in, layer.n_out
    if n_out == 1:
        start = layer.b[0] if layer.has_bias else as_real(z, 0.0)
        dots(m, n_in, x, ldx, layer.w, start, z, finish)
    else:
        finished_product(
            m, n_out, n_in, x, ldx, 1, layer.w, n_out, layer.b, 0, layer.has_bias, z, ldz,
            finish + _room(ldz, z),
        )  # fmt: skip


@inlined
def layer_forward(m, layer, act, x, ldx, y, z, ld, keep_z):
    """Y, and Z if `keep_z`; rows of both are `ld` apart."""
    product_of = z if keep_z else y
    rectified = act.kind == RELU and not keep_z
    linear_forward(m, layer, x, ldx, product_of, ld, RECTIFIED if rectified else 0)
    if keep_z or (act.kind != LINEAR and not rectified):
        apply(act, 0, span(m, layer.n_out, ld), product_of, y)


@inlined
def span(m, n, ld):
    """The numbers from the first to the last of m rows; between rows they are harmless."""
    return (m - 1) * ld + n if m > 0 else 0


@inlined
def multiply_by_derivative(act, n, d, x):
    """d *= act', taken from x, which is y where that is enough and else z."""
    if act.kind != LINEAR:
        apply(act, BACKWARD, n, x, d)


@inlined
def weight_gradient(m, gradient, x, ldx, d, ldd, accumulate):
    """dW = Xᵀ dZ and db = Σ_rows dZ for d, which is dL/dZ (m, n_out); added if `accumulate`."""
    n_in, n_out, dw, db = gradient.n_in, gradient.n_out, gradient.w, gradient.b
    if n_out == 1:
        product(1, n_in, m, d, 0, 1, x, ldx, dw, 0, accumulate, dw, 0)  # its transpose
        if gradient.has_bias:
            db[0] = (db[0] if accumulate else as_real(db, 0.0)) + as_real(db, _sum(m, d))
    else:
        product(n_in, n_out, m, x, 1, ldx, d, ldd, dw, n_out, accumulate, dw, n_out)
        if gradient.has_bias:
            product(1, n_out, m, _one(d), 0, 0, d, ldd, db, 0, accumulate, db, 0)


@inlined
def needs_transpose(n_in, n_out):
    """Whether `layer_input_gradient` reads Wᵀ; a single row or column is its own transpose."""
    return n_in > 1 and n_out > 1


@inlined
def layer_input_gradient(m, layer, d, ldd, transposed, dx, ldx):
    """dX = dZ Wᵀ (m, n_in), where `transposed` is Wᵀ."""
    n_in, n_out, w = layer.n_in, layer.n_out, layer.w
    if n_in == 1:
        dots(m, n_out, d, ldd, w, as_real(d, 0.0), dx, 0)
    elif n_out == 1:
        finished_product(m, n_in, 1, d, 1, 1, w, n_in, dx, 0, False, dx, ldx, _room(ldx, dx))
    else:
        finished_product(
            m, n_in, n_out, d, ldd, 1, transposed, n_in, dx, 0, False, dx, ldx, _room(ldx, dx)
        )
