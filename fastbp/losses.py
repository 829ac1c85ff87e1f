"""Losses: one table of names, formulas, normalisers and target forms.

A loss of n rows is ``scale · Σ_i w_i ℓ(Y_i, T_i)``. The row function ℓ and its derivative stand in
the table in NumPy; the normaliser ``scale`` is computed here, so that backends only sum. To add a
loss, add a row here and a case of its number in each backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import as_array, real_array
from ._errors import ShapeError, unknown_name

# Numbers by which the backends know the row functions; csrc/fastbp.h has the same.
SQUARED, BCE_LOGITS, SOFTMAX_CE, SOFTMAX_CE_LABELS = range(4)


def _squared(Y, T):
    return ((Y - T) ** 2).sum(axis=1)


def _squared_derivative(Y, T):
    return 2 * (Y - T)


def _bce_logits(Y, T):
    # -t log s - (1-t) log(1-s) with s = sigmoid(y), rewritten so that nothing overflows.
    return (np.maximum(Y, 0) - Y * T + np.log1p(np.exp(-np.abs(Y)))).sum(axis=1)


def _bce_logits_derivative(Y, T):
    t = np.exp(-np.abs(Y))
    return np.where(Y < 0, t / (1 + t), 1 / (1 + t)) - T


def _log_softmax(Y):
    Y = Y - Y.max(axis=1, keepdims=True)
    return Y - np.log(np.exp(Y).sum(axis=1, keepdims=True))


def _softmax_ce(Y, T):
    return -(T * _log_softmax(Y)).sum(axis=1)


def _softmax_ce_derivative(Y, T):
    return np.exp(_log_softmax(Y)) * T.sum(axis=1, keepdims=True) - T


def _softmax_ce_labels(Y, T):
    return -_log_softmax(Y)[np.arange(len(T)), T]


def _softmax_ce_labels_derivative(Y, T):
    D = np.exp(_log_softmax(Y))
    D[np.arange(len(T)), T] -= 1
    return D


@dataclass(frozen=True)
class Row:
    """The loss ℓ of one row and its derivative.

    Attributes
    ----------
    value : callable
        (Y (n, n_out), T) -> (n,)
    derivative : callable
        (Y (n, n_out), T) -> dℓ/dY (n, n_out)
    """

    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    derivative: Callable[[np.ndarray, np.ndarray], np.ndarray]


ROWS: dict[int, Row] = {
    SQUARED: Row(_squared, _squared_derivative),
    BCE_LOGITS: Row(_bce_logits, _bce_logits_derivative),
    SOFTMAX_CE: Row(_softmax_ce, _softmax_ce_derivative),
    SOFTMAX_CE_LABELS: Row(_softmax_ce_labels, _softmax_ce_labels_derivative),
}


@dataclass(frozen=True)
class Loss:
    """A loss by name: which row function, how it is normalised, what targets look like.

    Attributes
    ----------
    name : str
    kind : int
        Number of the row function.
    divisor : {"N·n_out", "2N", "N", "1"}
        The normaliser; N is the sum of the sample weights (the number of rows without them).
    target : {"values", "probabilities", "classes"}
        Values of shape (n, n_out); probabilities in [0, 1] of that shape; or integer labels (n,),
        for which rows of probabilities may stand as well.
    """

    name: str
    kind: int
    divisor: str
    target: str

    @property
    def least_squares(self) -> bool:
        """Whether the loss is a sum of squared residuals."""
        return self.kind == SQUARED

    @property
    def averaged(self) -> bool:
        """Whether the normaliser grows with the number of rows."""
        return self.divisor != "1"

    def scale(self, total_weight: float, n_out: int) -> float:
        """The factor of Σ_i w_i ℓ_i for rows of that total weight."""
        if self.divisor == "N·n_out":
            return 1.0 / (total_weight * n_out)
        if self.divisor == "2N":
            return 1.0 / (2.0 * total_weight)
        if self.divisor == "N":
            return 1.0 / total_weight
        return 1.0


TABLE: dict[str, Loss] = {
    row.name: row
    for row in (
        Loss("mse", SQUARED, "N·n_out", "values"),
        Loss("half_mse", SQUARED, "2N", "values"),
        Loss("sse", SQUARED, "1", "values"),
        Loss("bce_logits", BCE_LOGITS, "N·n_out", "probabilities"),
        Loss("softmax_ce", SOFTMAX_CE, "N", "classes"),
    )
}


def loss(name: str | Loss) -> Loss:
    """The loss of that name; raises ValueError with the nearest name for an unknown one."""
    if isinstance(name, Loss):
        return name
    found = TABLE.get(name) if isinstance(name, str) else None
    if found is None:
        raise ValueError(unknown_name("loss", name, TABLE))
    return found


def prepare_target(
    loss: Loss, y: Any, n: int, n_out: int, dtype: np.dtype
) -> tuple[int, np.ndarray]:
    """Check `y` against the loss's target form and convert it once.

    Parameters
    ----------
    y : array_like
    n, n_out : int
        Rows of the data, outputs of the network.
    dtype : numpy.dtype
        Type of the network.

    Returns
    -------
    kind : int
        Number of the row function (labels and rows of probabilities differ).
    targets : numpy.ndarray
        (n, n_out) of `dtype`, or int64 labels (n,).

    Raises
    ------
    ShapeError
        For a wrong shape; targets never broadcast.
    ValueError
        For labels or probabilities out of range, or a single output under softmax.
    TypeError
        For complex, object or string arrays.
    """
    if loss.target == "classes":
        if n_out < 2:
            raise ValueError(
                f"loss {loss.name!r} needs at least 2 outputs, one per class, and the network has "
                f"{n_out}: the softmax of one output is always 1. Use Dense(n_classes), or "
                f"'bce_logits' for two classes with one output"
            )
        array = as_array("y", y)
        if array.dtype.kind in "iub":
            if array.shape not in ((n,), (n, 1)):
                if array.shape != (n, n_out):
                    raise ShapeError(
                        f"y has shape {array.shape}, expected integer labels ({n},) or rows of "
                        f"probabilities ({n}, {n_out})"
                    )
            else:
                return SOFTMAX_CE_LABELS, _labels(array.reshape(n), n_out)
        elif array.ndim == 1 or array.shape == (n, 1):
            if array.dtype.kind in "OSUV" or array.dtype.kind == "c":
                what = "encode them as integers first, np.unique(y, return_inverse=True)[1]"
                raise TypeError(f"y has dtype {array.dtype}, expected integer labels; {what}")
            raise ValueError(
                f"y has shape {array.shape} and dtype {array.dtype}; loss {loss.name!r} expects "
                f"integer labels ({n},), 0 to {n_out - 1}, or rows of probabilities "
                f"({n}, {n_out}); convert labels with y.astype(int)"
            )
    targets = real_array("y", y, dtype)
    if targets.shape == (n,) and n_out == 1:
        targets = targets.reshape(n, 1)
    if targets.shape != (n, n_out):
        expected = f"({n}, {n_out})" + (f" or ({n},)" if n_out == 1 else "")
        raise ShapeError(
            f"y has shape {targets.shape}, expected {expected} as X has {n} rows and the network "
            f"{n_out} output{'s' if n_out > 1 else ''}; targets never broadcast"
        )
    if loss.target != "values":
        bad = (targets < 0) | (targets > 1)  # NaN passes: the loss is then NaN
        if bad.any():
            i, j = np.argwhere(bad)[0]
            raise ValueError(
                f"y holds {targets[i, j]} at row {i}, column {j}; loss {loss.name!r} expects "
                f"labels 0 and 1 or probabilities between them (labels -1 and 1 are (y + 1) / 2)"
            )
    return loss.kind, targets


def _labels(labels: np.ndarray, n_out: int) -> np.ndarray:
    # Range first: a cast could wrap what is out of int64's range.
    if labels.size and (labels.min() < 0 or labels.max() >= n_out):
        i = int(np.argmax((labels < 0) | (labels >= n_out)))
        raise ValueError(
            f"y holds label {labels[i]} at row {i}, expected 0 to {n_out - 1} for the network's "
            f"{n_out} outputs; number the classes from 0 or give the last layer more outputs"
        )
    return np.ascontiguousarray(labels, dtype=np.int64)


def prepare_weights(sample_weight: Any, n: int, dtype: np.dtype) -> tuple[np.ndarray | None, float]:
    """Sample weights as an (n,) array of `dtype` (or None) and their sum in float64.

    Raises
    ------
    ShapeError
        For a wrong shape.
    ValueError
        If a weight is negative or not finite, or all are zero.
    """
    if sample_weight is None:
        return None, float(n)
    weights = real_array("sample_weight", sample_weight, dtype)
    if weights.shape != (n,):
        raise ShapeError(
            f"sample_weight has shape {weights.shape}, expected ({n},): one weight per row of X"
        )
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(
            f"sample_weight holds {weights[i]} at row {i}, expected finite weights >= 0; "
            f"a row is left out with weight 0"
        )
    total = float(weights.sum(dtype=np.float64))
    if total == 0:
        raise ValueError(
            "sample_weight is zero everywhere, expected at least one positive weight; "
            "pass None to weigh all rows alike"
        )
    return weights, total
