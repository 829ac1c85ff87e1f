"""`Scaler`: columns of data to about unit size and back; scikit-learn's scalers as such pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.arrays import BLOCK_BYTES, FLOAT64, converted, real_array, require_finite
from ..common.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Scaler:
    """x' = (x - shift)/scale, column by column.

    Parameters
    ----------
    shift, scale : array_like (n_columns,)
        Finite; no entry of scale is 0.

    Raises
    ------
    ShapeError
        If they are not vectors of one length.
    ValueError
        If an entry is not finite or a scale is 0.
    TypeError
        For arrays that are not real.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> X = np.array([[1.0, 10.0], [3.0, 10.0]])
    >>> scaler = fb.Scaler.standard(X)
    >>> scaler.transform(X)
    array([[-1.,  0.],
           [ 1.,  0.]])
    >>> scaler.inverse_transform([[0.0, 0.0]])
    array([[ 2., 10.]])
    """

    shift: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            array = np.atleast_1d(real_array(name, getattr(self, name), FLOAT64)).copy()
            if array.ndim != 1:
                raise ShapeError(f"{name} has shape {array.shape}, expected (n_columns,)")
            bad = ~np.isfinite(array) if name == "shift" else ~np.isfinite(array) | (array == 0)
            if bad.any():
                i = int(np.argmax(bad))
                kind = "finite" if name == "shift" else "finite and not 0"
                raise ValueError(f"{name} holds {array[i]} at column {i}, expected it {kind}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.shift.shape != self.scale.shape:
            raise ShapeError(
                f"shift has shape {self.shift.shape} and scale {self.scale.shape}, expected one "
                f"entry per column in both"
            )

    @classmethod
    def standard(cls, X: Any) -> Scaler:
        """To mean 0 and standard deviation 1 (of n, not n - 1); constant columns are only shifted.

        Parameters
        ----------
        X : array_like (n, n_columns) or (n,), n >= 1, finite
        """
        X = _columns(X)
        with np.errstate(all="ignore"):
            # Sums of many large numbers are too rough for a small deviation; those of differences
            # are not, and a constant column's are 0.
            first = X[0].astype(np.float64)
            mean = sum((B - first).sum(axis=0) for B in _blocks(X)) / len(X)
            squares = sum(((B - first - mean) ** 2).sum(axis=0) for B in _blocks(X))
            shift, deviation = first + mean, np.sqrt(squares / len(X))
        # The entries of a constant column may differ by some roundings.
        largest = np.maximum(abs(X.max(axis=0)), abs(X.min(axis=0)))
        constant = deviation <= 10 * np.finfo(float).eps * largest
        return cls(shift, np.where(constant, 1.0, deviation))

    @classmethod
    def minmax(cls, X: Any) -> Scaler:
        """To [0, 1]; constant columns are only shifted, to 0.

        Parameters
        ----------
        X : array_like (n, n_columns) or (n,), n >= 1, finite
        """
        X = _columns(X)
        least, most = X.min(axis=0).astype(np.float64), X.max(axis=0).astype(np.float64)
        with np.errstate(over="ignore"):
            return cls(least, np.where(most == least, 1.0, most - least))

    def transform(self, X: Any, dtype: Any = FLOAT64) -> np.ndarray:
        """(X - shift)/scale, computed in float64, as an array of `dtype` of the shape of X.

        A vector (n,) counts as one column.
        """
        X = self._checked(X)
        result, start = np.empty(X.shape, dtype), 0
        shift, scale = self._across(X, self.shift), self._across(X, self.scale)
        with np.errstate(over="ignore"):
            for block in _blocks(X):
                stop = start + len(block)
                result[start:stop] = (block - shift) / scale
                start = stop
        return result

    def inverse_transform(self, X: Any) -> np.ndarray:
        """X·scale + shift in float64, of the shape of X."""
        X = self._checked(X)
        return X * self._across(X, self.scale) + self._across(X, self.shift)

    def _checked(self, X: Any) -> np.ndarray:
        """X as a real array (n, n_columns), or (n,) for one column."""
        X = _real(X)
        width = X.shape[1] if X.ndim == 2 else 1
        if X.ndim not in (1, 2) or width != len(self.scale):
            raise ShapeError(f"X has shape {X.shape}, expected (n, {len(self.scale)})")
        return X

    def _across(self, X: Any, values: np.ndarray) -> Any:
        """`values` (n_columns,) so that they broadcast over X; a number for a vector X."""
        return values[0] if np.ndim(X) == 1 else values


def inverse(scaler: Scaler | None) -> Scaler | None:
    """The scaler that undoes this one."""
    return None if scaler is None else Scaler(-scaler.shift / scaler.scale, 1 / scaler.scale)


def _real(X: Any) -> np.ndarray:
    """X as a real array of float64; a large one as it is, to be converted block by block."""
    large = isinstance(X, np.ndarray) and X.dtype.kind in "fiub" and X.nbytes > BLOCK_BYTES
    return X if large else real_array("X", X, FLOAT64)


def _blocks(X: np.ndarray) -> Iterator[np.ndarray]:
    """X (n,) or (n, n_columns) in float64, in blocks of rows of about BLOCK_BYTES."""
    size = max(1, BLOCK_BYTES // (8 * max(1, X[0].size))) if len(X) else 1
    for start in range(0, len(X), size):
        yield converted(X[start : start + size], FLOAT64)


def _columns(X: Any) -> np.ndarray:
    """X as a real, finite array (n, n_columns) with n >= 1."""
    X = _real(X)
    if X.ndim == 1:
        X = X.reshape(-1, 1)
    if X.ndim != 2 or len(X) == 0:
        raise ShapeError(f"X has shape {X.shape}, expected (n, n_columns) with at least one row")
    require_finite("X", X)
    return X


def shift_and_scale(name: str, scaler: Any, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The shift and the scale, (columns,) both, of a scaler.

    Parameters
    ----------
    name : str
        The argument's name in messages.
    scaler : Scaler, scikit-learn's scaler or pair
        StandardScaler, MinMaxScaler, MaxAbsScaler or RobustScaler, fitted; or (shift, scale), each
        a number or an array (columns,).
    columns : int

    Raises
    ------
    ShapeError
        If it has another number of columns.
    TypeError
        If it is none of these.
    ValueError
        As `Scaler`, and for one that clips.
    """
    if isinstance(scaler, Scaler):
        shift, scale = scaler.shift, scaler.scale
    elif isinstance(scaler, tuple | list) and len(scaler) == 2:
        shift, scale = (_per_column(f"{name}[{k}]", p, columns) for k, p in enumerate(scaler))
    else:
        shift, scale = _of_sklearn(name, scaler)
    if np.shape(shift) != (columns,):
        raise ShapeError(f"{name} has {len(shift)} columns, expected {columns}")
    checked = Scaler(shift, scale)
    return checked.shift, checked.scale


def _per_column(name: str, value: Any, columns: int) -> np.ndarray:
    array = real_array(name, value, FLOAT64)
    if array.shape not in ((), (1,), (columns,)):
        raise ShapeError(f"{name} has shape {array.shape}, expected a number or ({columns},)")
    return np.broadcast_to(array, (columns,))


def _of_sklearn(name: str, scaler: Any) -> tuple[Any, Any]:
    if getattr(scaler, "clip", False):
        raise ValueError(
            f"{name} is {scaler!r}, which clips; that cannot be folded into a network: set "
            f"clip=False"
        )
    if hasattr(scaler, "data_min_") and hasattr(scaler, "min_"):  # MinMaxScaler: x·scale_ + min_
        return -scaler.min_ / scaler.scale_, 1 / scaler.scale_
    if hasattr(scaler, "scale_") and hasattr(scaler, "n_features_in_"):
        zeros, ones = np.zeros(scaler.n_features_in_), np.ones(scaler.n_features_in_)
        # None or without effect where centring or scaling is switched off.
        shift = getattr(scaler, "mean_", getattr(scaler, "center_", None))
        with_mean = getattr(scaler, "with_mean", getattr(scaler, "with_centering", True))
        scale = scaler.scale_
        return (
            zeros if shift is None or not with_mean else shift,
            ones if scale is None else scale,
        )
    raise TypeError(
        f"{name} is {scaler!r}, expected a fitted fastbp.Scaler or scikit-learn scaler, or a pair "
        f"(shift, scale)"
    )
