"""One dense layer forward and backward, and the activations, over pointers.

X (m, n_in), W (n_in, n_out), Y = act(XW + b) (m, n_out), all contiguous; m is the rows of a tile.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ...activations import LEAKY_RELU, LINEAR, RELU, RELU_Z, SIGMOID, TANH
from . import elementary
from .compiling import inner, part
from .product import dots, product
from .vectors import Vector, as_real, copy, elementwise, not_inlined


def _relu(z: Vector) -> Vector:
    return z.lanes.constant(0).where(z < 0, z)  # NaN is not < 0 and passes through


def _leaky_relu(z: Vector, slope: Vector) -> Vector:
    return z.where(z > 0, slope * z)


def _relu_derivative(z: Vector, at_zero: Vector) -> Vector:
    negative_or_nan = z.lanes.constant(0).where(z < 0, z)
    return z.lanes.constant(1).where(z > 0, at_zero.where(z.equals(0), negative_or_nan))


def _leaky_relu_derivative(z: Vector, slope: Vector) -> Vector:
    slope_or_nan = slope.where(z.lanes.builder.or_(z < 0, z.equals(0)), z)
    return z.lanes.constant(1).where(z > 0, slope_or_nan)


def _sigmoid_derivative(z: Vector) -> Vector:
    t = elementary.exp(-abs(z))
    return t / ((t + 1) * (t + 1))


def _tanh_derivative(z: Vector) -> Vector:
    t = elementary.exp(abs(z) * -2)  # 1 - tanh² cancels for large |z|; this does not
    return t * 4 / ((t + 1) * (t + 1))


def _sigmoid_derivative_from_y(y: Vector) -> Vector:
    return y * (-(y - 1))


def _tanh_derivative_from_y(y: Vector) -> Vector:
    return -(y * y - 1)


_apply_relu = elementwise(lambda z: (_relu(z),), 1, 1)
_apply_leaky_relu = elementwise(lambda z, slope: (_leaky_relu(z, slope),), 1, 1)
_apply_sigmoid = elementwise(lambda z: (elementary.sigmoid(z),), 1, 1)
_apply_tanh = elementwise(lambda z: (elementary.tanh(z),), 1, 1)

_differentiate_linear = elementwise(lambda z: (z.lanes.constant(1),), 1, 1)
_differentiate_relu = elementwise(lambda z, c: (_relu_derivative(z, c),), 1, 1)
_differentiate_leaky_relu = elementwise(lambda z, c: (_leaky_relu_derivative(z, c),), 1, 1)
_differentiate_sigmoid = elementwise(lambda z: (_sigmoid_derivative(z),), 1, 1)
_differentiate_tanh = elementwise(lambda z: (_tanh_derivative(z),), 1, 1)

_multiply_relu = elementwise(lambda d, y, c: (d * _relu_derivative(y, c),), 2, 1)
_multiply_leaky_relu = elementwise(lambda d, y, c: (d * _leaky_relu_derivative(y, c),), 2, 1)
_multiply_sigmoid = elementwise(lambda d, y: (d * _sigmoid_derivative_from_y(y),), 2, 1)
_multiply_tanh = elementwise(lambda d, y: (d * _tanh_derivative_from_y(y),), 2, 1)

_sum = elementwise(lambda x: (x,), 1, 0, total=True)


@intrinsic
def _one(typingctx: Any, like: Any) -> Any:
    """A pointer to the number 1 of the type that `like` points to."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        one = context.get_constant(signature.return_type.dtype, 1)
        return cgutils.global_constant(builder, "fastbp.one", one)

    return types.CPointer(like.dtype)(like), codegen


@inner
def activate(kind, constant, n, z):
    """Replace n numbers z by act(z)."""
    not_inlined()
    if kind == RELU or kind == RELU_Z:
        _apply_relu(n, z)
    elif kind == TANH:
        _apply_tanh(n, z)
    elif kind == SIGMOID:
        _apply_sigmoid(n, z)
    elif kind == LEAKY_RELU:
        _apply_leaky_relu(n, z, as_real(z, constant))


@inner
def differentiate(kind, constant, n, z):
    """Replace n numbers z by act'(z)."""
    if kind == LINEAR:
        _differentiate_linear(n, z)
    elif kind == RELU or kind == RELU_Z:
        _differentiate_relu(n, z, as_real(z, constant))
    elif kind == TANH:
        _differentiate_tanh(n, z)
    elif kind == SIGMOID:
        _differentiate_sigmoid(n, z)
    elif kind == LEAKY_RELU:
        _differentiate_leaky_relu(n, z, as_real(z, constant))


@inner
def multiply_by_derivative(kind, constant, n, d, y, z):
    """d *= act', taken from y where that is enough."""
    not_inlined()
    if kind == RELU:
        _multiply_relu(n, d, y, as_real(d, constant))
    elif kind == RELU_Z:
        _multiply_relu(n, d, z, as_real(d, constant))
    elif kind == TANH:
        _multiply_tanh(n, d, y)
    elif kind == SIGMOID:
        _multiply_sigmoid(n, d, y)
    elif kind == LEAKY_RELU:
        _multiply_leaky_relu(n, d, y, as_real(d, constant))


@part
def layer_forward(m, n_in, n_out, x, w, b, has_bias, kind, constant, y, z, keep_z):
    """Y, and Z if it is to be kept."""
    if n_out == 1:
        dots(m, n_in, x, n_in, w, b[0] if has_bias else as_real(y, 0.0), y)
    else:
        product(m, n_out, n_in, x, n_in, 1, w, n_out, b, 0, has_bias, y, n_out)
    if keep_z:
        copy(z, y, m * n_out)
    activate(kind, constant, m * n_out, y)


@part
def layer_backward(
    m, n_in, n_out, x, d, y, z, kind, constant, dw, db, has_bias, need_gradient, accumulate
):
    """d, dL/dY, becomes dL/dZ; then dW = Xᵀ dZ and db = Σ_rows dZ, added if `accumulate`."""
    multiply_by_derivative(kind, constant, m * n_out, d, y, z)
    if not need_gradient:
        return
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
