"""`fit_table`: fits a `TableModel` to the columns of a CSV file."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...common.arrays import FLOAT64, dtype_of
from ...common.errors import unknown_name
from ...fitting._fit import fit
from ...fitting.result import FitResult
from ...networks.network import Network
from .model import CLASSIFICATION, LOSSES, REGRESSION, TableModel, Target
from .reading import MAX_LEVELS, Column, Table, encode, open_table

# A target of at most so many different whole numbers, two rows each on average, is of classes.
MAX_CLASSES = 10


class TableFit(NamedTuple):
    """The result of `fit_table`.

    Attributes
    ----------
    model : TableModel
    result : FitResult
    held_out : tuple (X, y)
        The rows held out for the test, possibly none; as `fit` takes them.
    """

    model: TableModel
    result: FitResult
    held_out: tuple[np.ndarray, np.ndarray]


def fit_table(
    path: str,
    target: Sequence[str],
    *,
    delimiter: str = ",",
    features: Sequence[str] = (),
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    task: str = "auto",
    loss: str | None = None,
    hidden: Sequence[int] = (20,),
    activation: str = "tanh",
    dtype: str = "float64",
    test: float = 0.2,
    validation: float = 0.0,
    seed: int | None = None,
    **options: Any,
) -> TableFit:
    """Fit a network to columns of a CSV file.

    Parameters
    ----------
    path : str
    target : sequence of str
        The columns to predict; several for regression alone.
    delimiter : str
    features, drop : sequence of str
        The columns to predict from; by default all but the target, those of `drop`, and those
        without a name.
    categorical : sequence of str
        Columns to read as texts even if they hold numbers.
    task : {"auto", "regression", "classification"}
        "auto" goes by `loss`; without one it is classification if the target is of texts, or of at
        most MAX_CLASSES different whole numbers with two rows each on average.
    loss : str, optional
        As `Target` takes it; "mse" or "softmax_ce" by default.
    hidden : sequence of int
        Units of the hidden layers.
    activation, dtype
        As `Network.mlp` takes them; `dtype` is also that of the features.
    test, validation : float
        Shares of the rows to hold out, as `split` does.
    seed : int, optional
        A new one by default.
    **options
        Options of `fit`.

    Returns
    -------
    TableFit

    Raises
    ------
    OSError, ValueError, TypeError
        For a file that cannot be read, columns that are not there, and as `fit`.
    DivergenceError
        As `fit`.
    """
    start = time.perf_counter()
    kind = dtype_of(dtype)
    columns, target_columns = _read(path, delimiter, target, features, drop, categorical, kind)
    fields = tuple(column.field for column in columns)
    target_spec = recognise(target_columns, task, loss)
    y = target_spec.values(target_columns)
    seed = secrets.randbits(32) if seed is None else seed
    row_sets = split(len(y), test, validation, seed)
    X, X_valid, X_test = encode(columns, row_sets, kind)
    y, y_valid, y_test = (y[rows] for rows in row_sets)
    del columns, target_columns  # frees their memory
    net = Network.mlp([X.shape[1], *hidden, target_spec.n_out], activation, dtype=kind)
    valid = (X_valid, y_valid) if len(X_valid) else None
    loss_function = target_spec.loss_function
    result = fit(net, X, y, loss=loss_function, seed=seed, validation=valid, **options)
    record = {
        "data": os.path.basename(path),
        "rows": {"training": len(X), "validation": len(X_valid), "held-out": len(X_test)},
        "seed": seed,
        "options": options,
    }
    model = TableModel(net, result.params, fields, target_spec, record)
    scored = ("held-out", X_test, y_test) if len(X_test) else ("training", X, y)
    record |= _end_record(model, result, *scored) | {"seconds": time.perf_counter() - start}
    return TableFit(model, result, (X_test, y_test))


# Columns.


def _read(
    path: str,
    delimiter: str,
    target: Sequence[str],
    features: Sequence[str],
    drop: Sequence[str],
    categorical: Sequence[str],
    dtype: np.dtype,
) -> tuple[list[Column], list[Column]]:
    """The columns to predict from, and those to predict."""

    def column(name: str, dtype: np.dtype) -> Column:
        return Column(name, "texts" if name in categorical else "auto", dtype=dtype)

    with open_table(path, delimiter) as table:
        names = _feature_names(table, target, features, drop)
        _require_names(table, "categorical column", categorical)
        columns = [column(name, dtype) for name in names]
        # In float64, in which no two whole numbers that name classes become one.
        target_columns = [column(name, FLOAT64) for name in target]
        table.read([*columns, *target_columns])
    return columns, target_columns


def _feature_names(
    table: Table, target: Sequence[str], features: Sequence[str], drop: Sequence[str]
) -> list[str]:
    if not target:
        columns = ", ".join(repr(name) for name in table.names if name)
        raise ValueError(f"no target is given, expected one or some of the columns {columns}")
    for what, names in (("target", target), ("feature", features), ("column to drop", drop)):
        _require_names(table, what, names)
    both = [name for name in target if name in features]
    if both:
        raise ValueError(f"{both[0]!r} is both a feature and a target; it can be one of them")
    chosen = list(features) or [name for name in table.names if name and name not in target]
    names = [name for name in chosen if name not in drop]
    if not names:
        raise ValueError(f"{table.path}: no column is left to predict {', '.join(target)} from")
    return names


def _require_names(table: Table, what: str, names: Sequence[str]) -> None:
    """Raise unless the columns are there, each named once."""
    for k, name in enumerate(names):
        if not name or name not in table.names:
            raise ValueError(unknown_name(what, name, filter(None, table.names)))
        if name in names[:k]:
            raise ValueError(f"{what} {name!r} is named twice, expected it once")


# The task.


def recognise(columns: Sequence[Column], task: str, loss: str | None) -> Target:
    """The target of these columns; see `fit_table` for `task` and `loss`.

    Raises
    ------
    ValueError
        If columns, task and loss contradict each other, or there is nothing to learn.
    """
    names = tuple(column.name for column in columns)
    if loss is not None:
        name = Target(names, loss).loss_function.name
        of_loss = REGRESSION if name in LOSSES[REGRESSION] else CLASSIFICATION
        if task not in ("auto", of_loss):
            raise ValueError(
                f"loss {name!r} is for {of_loss}, and the task is {task}; expected one of "
                f"{', '.join(LOSSES[task])}"
            )
        task = of_loss
    elif task == "auto":
        classes = len(columns) == 1 and _looks_like_classes(columns[0])
        task = CLASSIFICATION if classes else REGRESSION
    if task == REGRESSION:
        _check_numbers(columns, loss)
        return Target(names, loss or LOSSES[REGRESSION][0])
    return Target(names, loss or LOSSES[CLASSIFICATION][0], _classes(columns, loss))


def _looks_like_classes(column: Column) -> bool:
    if column.is_text:
        return True
    values = column.values
    levels = np.unique(values)
    few = len(levels) <= min(MAX_CLASSES, len(values) / 2)
    return few and bool((levels == np.rint(levels)).all())


def _check_numbers(columns: Sequence[Column], loss: str | None) -> None:
    for column in columns:
        if column.is_text:
            raise ValueError(
                f"target {column.name!r} is of texts, and expected are numbers; texts are "
                f"predicted one column at a time, by classification"
            )
        least, most = column.values.min(), column.values.max()
        if least == most:
            raise ValueError(f"target {column.name!r} is {least:g} in every row: nothing to learn")
        if loss == "poisson" and least < 0:
            raise ValueError(
                f"target {column.name!r} holds {least:g}, and loss 'poisson' expects counts >= 0"
            )


def _classes(columns: Sequence[Column], loss: str | None) -> tuple[Any, ...]:
    if len(columns) > 1:
        raise ValueError(
            f"there are {len(columns)} targets, and classification takes one; fit a model for each"
        )
    (column,) = columns
    levels: Sequence[Any] = column.field.levels or np.unique(column.values).tolist()
    if not column.is_text:
        levels = [int(v) if v.is_integer() and abs(v) < 2**53 else v for v in levels]
    if len(levels) == 1:
        raise ValueError(
            f"target {column.name!r} is {levels[0]!r} in every row, expected at least 2 classes"
        )
    if len(levels) > MAX_LEVELS:
        raise ValueError(
            f"target {column.name!r} has {len(levels)} different numbers, expected at most "
            f"{MAX_LEVELS} classes; regression predicts numbers"
        )
    if loss == "bce_logits" and len(levels) != 2:
        raise ValueError(
            f"target {column.name!r} has {len(levels)} classes, and loss 'bce_logits' expects 2; "
            f"'softmax_ce' takes any number"
        )
    return tuple(levels)


# Rows.


def split(n: int, test: float, validation: float, seed: int) -> list[np.ndarray]:
    """The rows for training, for validation and held out for the test, each in ascending order.

    With ``order = numpy.random.default_rng(seed).permutation(n)`` the test has the first of
    `order`, the validation the next; of each share the nearest number of rows, at least one if it
    is not 0.

    Raises
    ------
    ValueError
        For shares outside [0, 1), and if no row is left to train on.
    """
    for name, share in (("test", test), ("validation", validation)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} is {share:g}, expected a share of the rows in [0, 1)")
    a, b = (max(1, round(share * n)) if share else 0 for share in (test, validation))
    if a + b >= n:
        raise ValueError(
            f"test={test:g} and validation={validation:g} of {n} rows leave none to train on; take "
            f"smaller shares, 0 for none"
        )
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(rows) for rows in (order[a + b :], order[a : a + b], order[:a])]


# The record of a fit.


def _end_record(
    model: TableModel, result: FitResult, rows: str, X: np.ndarray, y: np.ndarray
) -> dict[str, Any]:
    """How the training ended, and the score on the rows X, y, which are called `rows`."""
    target, history = model.target, result.history
    score = target.score(model.predict(X), y)
    record = {
        "method": result.method,
        "backend": result.backend,
        "epochs": result.nit,
        "status": result.status,
        "message": result.message,
        "loss": float(history["loss"][-1]) if result.nit else None,
        "score": {
            "rows": rows,
            "name": target.score_name,
            "value": score if np.isfinite(score) else None,
            "loss": model.net.value(model.params, X, y, target.loss_function),
        },
    }
    if "val_loss" in history and result.nit:
        best = int(history["val_loss"].argmin())
        record["best"] = {"val_loss": float(history["val_loss"][best]), "epoch": best + 1}
    return record
