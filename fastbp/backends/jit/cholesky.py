"""Cholesky's factor A = UᵀU of a symmetric matrix, and the solution of equations with it.

Matrices are (n, n). Of A only what is on and above the diagonal is read, and U takes its place.
"""

from __future__ import annotations

import math

from ..tiling import FACTOR_ROWS
from .compiling import callee
from .product import product
from .vectors import at, elementwise

_add_multiple = elementwise(lambda to, x, factor: (to + x * factor,), 2, 1)
_scale = elementwise(lambda x, factor: (x * factor,), 1, 1)
_dot = elementwise(lambda x, y: (x * y,), 2, 0, total=True)


@callee
def factor(n, A, negative):
    """Whether A is positive definite, and then its factor.

    `negative` has room for n·FACTOR_ROWS numbers.
    """
    for k in range(0, n, FACTOR_ROWS):
        rows, first = min(FACTOR_ROWS, n - k), at(A, k * n + k)
        for p in range(k):
            for i in range(rows):
                negative[p * rows + i] = -A[p * n + k + i]
        if k > 0:
            product(rows, n - k, k, negative, 1, rows, at(A, k), n, first, n, True, first, n)
        if not _factor_rows(n, k, k + rows, A):
            return False
    return True


@callee
def _factor_rows(n, first, last, A):
    """Rows of U, from which what the rows above contribute has been subtracted."""
    for k in range(first, last):
        row, pivot = at(A, k * n), A[k * n + k]
        if not (pivot > 0 and math.isfinite(pivot)):
            return False
        _scale(n - k, at(row, k), 1 / math.sqrt(pivot))
        for i in range(k + 1, last):
            _add_multiple(n - i, at(A, i * n + i), at(row, i), -row[i])
    return True


@callee
def solve(n, U, x):
    """x becomes A⁻¹x."""
    for k in range(n):
        row = at(U, k * n)
        x[k] /= row[k]
        _add_multiple(n - k - 1, at(x, k + 1), at(row, k + 1), -x[k])
    for k in range(n - 1, -1, -1):
        row = at(U, k * n)
        x[k] = (x[k] - _dot(n - k - 1, at(row, k + 1), at(x, k + 1))) / row[k]
