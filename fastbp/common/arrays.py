"""Checks and conversions of arguments: arrays and numbers, checked once, converted once.

The functions return C-contiguous, aligned arrays of native byte order, so that nothing below has to
check again. An array that already is so is returned as it is; arguments are never modified.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from .errors import NonFiniteError, ShapeError

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)

# Arrays that are not of the network's dtype, or not contiguous, are converted in blocks of rows of
# at most this many bytes where the result does not need all rows at once.
BLOCK_BYTES = 2**24


def as_array(name: str, value: Any) -> np.ndarray:
    """`value` as NumPy makes an array of it.

    Raises
    ------
    TypeError
        For nested sequences of unequal lengths, and sparse matrices.
    NonFiniteError
        For a masked array with masked entries: what they hold is arbitrary.
    """
    mask = getattr(value, "mask", False) if isinstance(value, np.ndarray) else False
    if np.any(mask):
        place = np.argwhere(mask)[0].tolist()
        raise NonFiniteError(
            f"{name} is a masked array with {np.count_nonzero(mask)} masked entries, the first at "
            f"{place}, expected numbers; leave such rows out, or fill them with "
            f"{name}.filled(...)"
        )
    if hasattr(value, "toarray"):
        raise TypeError(
            f"{name} is sparse ({type(value).__name__}), expected an array; pass {name}.toarray()"
        )
    try:
        return np.asarray(value)
    except ValueError as error:
        raise TypeError(
            f"{name} is not an array of real numbers ({error}); pass rows of equal length"
        ) from None


def is_ready(value: Any, dtype: np.dtype) -> bool:
    """Whether the value is an array of `dtype` that needs no conversion."""
    if type(value) is not np.ndarray or value.dtype is not dtype:
        return False
    flags = value.flags
    return flags.c_contiguous and flags.aligned


try:
    from ._fastcall import is_ready  # type: ignore[no-redef]  # the same function in C
except ImportError:
    pass


def real_array(name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """`value` as a C-contiguous array of `dtype`.

    Raises
    ------
    TypeError
        For complex, object, string or date arrays.
    """
    if is_ready(value, dtype):
        return value
    array = as_array(name, value)
    if array.dtype.kind == "c":
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected real numbers; pass real and imaginary parts "
            f"as columns or rows of their own, as with np.hstack([{name}.real, {name}.imag])"
        )
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected real numbers "
            f"(float32, float64 or what converts to {dtype}); convert it with "
            f"np.asarray({name}, dtype='{dtype}') if that is what you mean"
        )
    return converted(array, dtype)


def matrix(name: str, value: Any, dtype: np.dtype, columns: int, meaning: str) -> np.ndarray:
    """`value` as an (n, columns) array; `meaning` says in the message what a column is."""
    return _checked_matrix(name, real_array(name, value, dtype), columns, meaning)


def lazy_matrix(
    name: str, value: Any, dtype: np.dtype, columns: int, meaning: str
) -> tuple[np.ndarray, list[slice]]:
    """As `matrix`, but an array that would take more than BLOCK_BYTES to convert is not converted.

    It may be a memory-mapped file.

    Returns
    -------
    array : numpy.ndarray (n, columns)
    blocks : list of slice
        The blocks of rows for each of which the caller must call `converted`; empty if the array
        is converted.
    """
    if is_ready(value, dtype):
        return _checked_matrix(name, value, columns, meaning), []
    array = as_array(name, value)
    if array.ndim == 2 and array.dtype.kind in "fiub":
        blocks = row_blocks(array, dtype)
        if blocks:
            return _checked_matrix(name, array, columns, meaning), blocks
    return matrix(name, value, dtype, columns, meaning), []


def _checked_matrix(name: str, array: np.ndarray, columns: int, meaning: str) -> np.ndarray:
    """The array; ShapeError unless its shape is (n, columns)."""
    if array.ndim != 2 or array.shape[1] != columns:
        hint = ""
        if array.ndim == 1:
            rows = "a single row" if array.shape[0] == columns else "a single column"
            shape = "(1, -1)" if array.shape[0] == columns else "(-1, 1)"
            if columns == 1 or array.shape[0] == columns:
                hint = f"; {rows} is {name}.reshape{shape}"
        raise ShapeError(
            f"{name} has shape {array.shape}, expected (n, {columns}): "
            f"a row per sample, a column per {meaning}{hint}"
        )
    return array


def row_blocks(array: np.ndarray, dtype: np.dtype) -> list[slice]:
    """The blocks in which rows of an array (n, columns) are converted.

    There are none if it needs no conversion or takes at most BLOCK_BYTES.
    """
    n, columns = array.shape
    bytes_of_row = max(1, columns * dtype.itemsize)
    ready = array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned
    if ready or n * bytes_of_row <= BLOCK_BYTES:
        return []
    size = max(2, BLOCK_BYTES // bytes_of_row // 2 * 2)  # even: rows may be pairs
    return [slice(start, start + size) for start in range(0, n, size)]


def converted(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A checked array as one of `dtype`, contiguous and aligned."""
    with np.errstate(all="ignore"):  # float64 outside float32's range becomes inf, as in NumPy
        # np.require keeps 0-d arrays 0-d, and copies only if dtype or layout differ.
        return np.require(array, dtype=dtype, requirements=["C", "ALIGNED"])


def dtype_of(dtype: Any) -> np.dtype:
    """FLOAT32 or FLOAT64 for a name or type of it; ValueError for others."""
    result = np.dtype(dtype)
    if result not in (FLOAT32, FLOAT64):
        raise ValueError(f"dtype is {result}, expected 'float32' or 'float64'")
    return FLOAT32 if result == FLOAT32 else FLOAT64


def float_type(*arrays: Any) -> np.dtype:
    """The dtype in which a kernel computes with arrays; None among them do not count.

    It is float32 if there are floats and none is wider, else float64.
    """
    widest = None
    for array in arrays:
        if array is None:
            continue
        if not isinstance(array, (np.ndarray, np.generic)):
            try:
                array = np.asarray(array)
            except ValueError:  # unequal lengths: left to `real_array`, which knows the name
                continue
        dtype = array.dtype
        if dtype is FLOAT32:
            widest = FLOAT32
        elif dtype.kind == "f":
            if dtype.itemsize > 4:
                return FLOAT64
            widest = FLOAT32
    return widest or FLOAT64


@np.errstate(over="ignore", invalid="ignore")
def all_finite(array: np.ndarray) -> bool:
    """Whether the array holds neither NaN nor infinity."""
    # The sum suffices almost always: it is finite unless an entry is not, or it overflows.
    total = np.add.reduce(array, axis=None)
    return math.isfinite(total) or bool(np.isfinite(array).all())


def require_finite(name: str, array: np.ndarray) -> None:
    """Raise `NonFiniteError` naming the first row and column that hold NaN or infinity."""
    if all_finite(array):
        return
    bad = np.argwhere(~np.isfinite(array))
    place = bad[0]
    where = f"row {place[0]}" + (f", column {place[1]}" if array.ndim > 1 else "")
    count = len(bad)
    more = "" if count == 1 else f" ({count} such entries in all)"
    raise NonFiniteError(
        f"{name} holds {array[tuple(place)]} at {where}{more}, expected finite numbers; "
        f"remove or fill such rows first"
    )


def number(name: str, value: Any, expected: str = "a number") -> float:
    """`value` as a float; TypeError, which quotes `expected`, if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, expected {expected}") from None


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int; True and False are not numbers here.

    Raises
    ------
    TypeError
        If it is not a whole number.
    ValueError
        If it is below `least`.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = value if type(value) is int else operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected a whole number") from None
    if number < least:
        raise ValueError(f"{name} is {number}, expected at least {least}")
    return number
