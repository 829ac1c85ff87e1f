"""Targets and sample weights: checked against what a loss expects, and converted once."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..common.arrays import as_array, real_array
from ..common.errors import ShapeError
from ..maths.losses import GAUSSIAN_KL, GAUSSIAN_NLL, SOFTMAX_CE_LABELS, Loss


def prepare_target(
    loss: Loss, y: Any, n: int, n_out: int, dtype: np.dtype
) -> tuple[int, np.ndarray]:
    """Check `y` against the form of targets that the loss expects, and convert it.

    Parameters
    ----------
    loss : Loss
    y : array_like or None
        The targets in the form of `loss.target`.
    n, n_out : int
        Rows of X, outputs of the network.
    dtype : numpy.dtype
        The network's.

    Returns
    -------
    kind : int
        Number of the row function: labels have another one than rows of probabilities.
    targets : numpy.ndarray
        (n, n_out) of `dtype`; (n, n_out/2) for "gaussian_nll", (n, 0) for losses without targets;
        labels (n,) of int64.

    Raises
    ------
    ShapeError
        For a wrong shape; targets never broadcast.
    ValueError
        For targets of the wrong form or out of range, or outputs that the loss cannot take.
    TypeError
        For complex, object or string arrays.
    """
    _check_outputs(loss, n, n_out)
    if loss.target == "none":
        if y is not None:
            raise ValueError(f"y was given, but loss {loss.name!r} has no targets; pass y=None")
        return loss.kind, np.empty((n, 0), dtype)
    if y is None:
        raise ValueError(f"y is None, but loss {loss.name!r} expects {_FORMS[loss.target]}")
    if loss.target == "classes":
        labels = _class_labels(loss, y, n, n_out)
        if labels is not None:
            return SOFTMAX_CE_LABELS, labels
    targets = real_array("y", y, dtype)
    width = n_out // 2 if loss.target == "halves" else n_out
    if targets.shape == (n,) and width == 1:
        targets = targets.reshape(n, 1)
    if targets.shape != (n, width):
        expected = f"({n}, {width})" + (f" or ({n},)" if width == 1 else "")
        raise ShapeError(
            f"y has shape {targets.shape}, expected {expected} as X has {n} rows and the network "
            f"{n_out} output{'s' if n_out > 1 else ''}; targets never broadcast"
        )
    _check_range(loss, targets)
    return loss.kind, targets


_FORMS = {
    "values": "values of shape (n, n_out)",
    "probabilities": "labels 0 and 1 or probabilities between them",
    "signs": "labels -1 and 1",
    "counts": "counts >= 0",
    "classes": "integer labels (n,) or rows of probabilities (n, n_out)",
    "halves": "values of shape (n, n_out/2)",
}


def _check_outputs(loss: Loss, n: int, n_out: int) -> None:
    """Raise if the loss is not defined for n rows of n_out outputs."""
    if loss.target == "classes" and n_out < 2:
        raise ValueError(
            f"loss {loss.name!r} needs at least 2 outputs, one per class, and the network has "
            f"{n_out}: the softmax of one output is always 1. Use Dense(n_classes), or "
            f"'bce_logits' for two classes with one output"
        )
    if loss.kind in (GAUSSIAN_NLL, GAUSSIAN_KL) and n_out % 2:
        raise ValueError(
            f"loss {loss.name!r} needs an even number of outputs, means and then logarithms of "
            f"variances, and the network has {n_out}; use Dense(2 * k)"
        )
    if loss.paired and n_out != 1:
        raise ValueError(
            f"loss {loss.name!r} needs one output, the score, and the network has {n_out}"
        )
    if loss.paired and n % 2:
        raise ShapeError(
            f"X has {n} rows, but loss {loss.name!r} expects pairs: an even number of rows, "
            f"2i the better and 2i + 1 the worse one of pair i"
        )


def _class_labels(loss: Loss, y: Any, n: int, n_out: int) -> np.ndarray | None:
    """Integer labels (n,), or None if y holds rows of probabilities."""
    array = as_array("y", y)
    if array.dtype.kind in "iub":
        if array.shape in ((n,), (n, 1)):
            return _labels(array.reshape(n), n_out)
        if array.shape != (n, n_out):
            raise ShapeError(
                f"y has shape {array.shape}, expected integer labels ({n},) or rows of "
                f"probabilities ({n}, {n_out})"
            )
    elif array.ndim == 1 or array.shape == (n, 1):
        if array.dtype.kind in "OSUVc":
            what = "encode them as integers first, np.unique(y, return_inverse=True)[1]"
            raise TypeError(f"y has dtype {array.dtype}, expected integer labels; {what}")
        raise ValueError(
            f"y has shape {array.shape} and dtype {array.dtype}; loss {loss.name!r} expects "
            f"integer labels ({n},), 0 to {n_out - 1}, or rows of probabilities "
            f"({n}, {n_out}); convert labels with y.astype(int)"
        )
    return None


def _check_range(loss: Loss, targets: np.ndarray) -> None:
    """Raise for targets out of the loss's range; NaN passes, and the loss is then NaN."""
    form, advice = loss.target, ""
    if form in ("probabilities", "classes"):
        bad = (targets < 0) | (targets > 1)
        form, advice = "probabilities", " (labels -1 and 1 are (y + 1) / 2)"
    elif form == "signs":
        bad = (abs(targets) != 1) & ~np.isnan(targets)
        advice = " (labels 0 and 1 are 2 * y - 1)"
    elif form == "counts":
        bad = targets < 0
    else:
        return
    if bad.any():
        i, j = np.argwhere(bad)[0]
        raise ValueError(
            f"y holds {targets[i, j]} at row {i}, column {j}; loss {loss.name!r} expects "
            f"{_FORMS[form]}{advice}"
        )


def _labels(labels: np.ndarray, n_out: int) -> np.ndarray:
    """Labels (n,) from 0 to n_out - 1 as int64."""
    # Range first: a cast would wrap labels out of int64's range.
    if labels.size and (labels.min() < 0 or labels.max() >= n_out):
        i = int(np.argmax((labels < 0) | (labels >= n_out)))
        raise ValueError(
            f"y holds label {labels[i]} at row {i}, expected 0 to {n_out - 1} for the network's "
            f"{n_out} outputs; number the classes from 0 or give the last layer more outputs"
        )
    return np.ascontiguousarray(labels, dtype=np.int64)


def prepare_weights(
    loss: Loss, sample_weight: Any, n: int, dtype: np.dtype
) -> tuple[np.ndarray | None, float]:
    """Weights of the rows and their total.

    Parameters
    ----------
    loss : Loss
    sample_weight : array_like (n,) or None
        (n/2,) for a loss of pairs, whose rows 2i and 2i + 1 both get the weight of pair i.
    n : int
        Rows of X.
    dtype : numpy.dtype
        The network's.

    Returns
    -------
    weights : numpy.ndarray (n,) of `dtype`, or None without sample weights
    total : float
        The sum of the sample weights in float64; without them the number of rows or pairs.

    Raises
    ------
    ShapeError
        For a wrong shape.
    ValueError
        If a weight is negative or not finite, or all are zero.
    """
    count, unit = (n // 2, "pair of rows") if loss.paired else (n, "row")
    if sample_weight is None:
        return None, float(count)
    weights = real_array("sample_weight", sample_weight, dtype)
    if weights.shape != (count,):
        raise ShapeError(
            f"sample_weight has shape {weights.shape}, expected ({count},): one weight per {unit} "
            f"of X"
        )
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(
            f"sample_weight holds {weights[i]} at {unit.split()[0]} {i}, expected finite weights "
            f">= 0; a {unit} is left out with weight 0"
        )
    total = float(weights.sum(dtype=np.float64))
    if total == 0:
        raise ValueError(
            "sample_weight is zero everywhere, expected at least one positive weight; "
            "pass None to weigh all rows alike"
        )
    return np.repeat(weights, 2) if loss.paired else weights, total
