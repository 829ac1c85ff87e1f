"""`fit_table`: fits a `TableModel` to the columns of a CSV file."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...common.arrays import FLOAT64, dtype_of
from ...fitting._fit import fit
from ...fitting.full_batch import METHODS as FULL_BATCH
from ...fitting.result import FitResult
from ...networks.network import Network
from ...reports.words import Status, counted
from .cells import GAP, Notation
from .columns import EXACT, MAX_LEVELS, Column, encode, gaps_of
from .model import CLASSIFICATION, GAPS_ADVICE, LOSSES, REGRESSION, TableModel, Target
from .reading import Table, open_table
from .text import Reading

# A target of at most so many different whole numbers, two rows each on average, is of classes.
MAX_CLASSES = 10
ADVICE_ROWS = 10_000  # are enough to see whether a network is better than a constant


class TableFit(NamedTuple):
    """The result of `fit_table`.

    Attributes
    ----------
    model : TableModel
    result : FitResult
    held_out : tuple (X, y)
        The rows held out for the test, possibly none; as `fit` takes them.
    read : str
        How the table was read.
    columns : dict of str
        What each column was taken for.
    warnings : list of str
        What looks like a mistake, with the option that mends it.
    advice : str
        What to do if the training stopped far from its end; "" if it did not.
    """

    model: TableModel
    result: FitResult
    held_out: tuple[np.ndarray, np.ndarray]
    read: str
    columns: dict[str, str]
    warnings: list[str]
    advice: str


def fit_table(
    path: str,
    target: Sequence[str],
    *,
    reading: Reading = Reading(),  # noqa: B008
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
    warn: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> TableFit:
    """Fit a network to columns of a table.

    Parameters
    ----------
    path : str
    target : sequence of str
        The columns to predict; several for regression alone.
    reading : Reading
        How to read it. Its `missing` says what becomes of gaps in the features: "error" raises,
        "drop" leaves the rows out, "mean" puts the mean of the rows to train on in their place,
        and "category" adds to that an input that is 1 at gaps. In columns of texts the last two
        take gaps for one more text. Rows without a target are left out, unless it is "error".
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
    warn : callable
        Is called with each warning before the training.
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
    with open_table(path, reading) as table:
        columns, target_columns = _columns(
            table, target, features, drop, categorical, kind, reading
        )
        n = table.read([*columns, *target_columns])
        read = f"{counted(n, 'row')}; {table.words()}"
    rows = _rows(path, columns, target_columns, reading.missing)
    target_spec = recognise(target_columns, task, loss, rows)
    y = target_spec.values(target_columns, rows)
    seed = secrets.randbits(32) if seed is None else seed
    parts = split(len(y), test, validation, seed)
    row_sets = [rows[part] for part in parts]
    fields = tuple(column.field(row_sets[0], reading.missing) for column in columns)
    X, X_valid, X_test = encode(columns, fields, row_sets, kind)
    y, y_valid, y_test = (y[part] for part in parts)
    words = {column.name: _words(column, reading) for column in [*columns, *target_columns]}
    warnings = [text for c in [*columns, *target_columns] if (text := c.warning(n))]
    warnings += _warnings(target_spec, len(rows))
    for warning in warnings:
        warn(warning)
    if len(rows) < n:
        read += f"; {n - len(rows)} with gaps left out"
    del columns, target_columns, rows, row_sets  # frees their memory
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
    model = TableModel(net, result.params, fields, target_spec, record, reading)
    scored = ("held-out", X_test, y_test) if len(X_test) else ("training", X, y)
    record |= _end_record(model, result, *scored) | {"seconds": time.perf_counter() - start}
    some = slice(None, None, max(1, len(X) // ADVICE_ROWS))
    limit = result.status == Status.LIMIT or result.nit == options.get("epochs")
    advice = _advice(model, result, limit, X[some], y[some])
    return TableFit(model, result, (X_test, y_test), read, words, warnings, advice)


# Columns.


def _columns(
    table: Table,
    target: Sequence[str],
    features: Sequence[str],
    drop: Sequence[str],
    categorical: Sequence[str],
    dtype: np.dtype,
    reading: Reading,
) -> tuple[list[Column], list[Column]]:
    """The columns to predict from, and those to predict; not yet read."""
    texts, notation = set(categorical), Notation(reading.decimal, reading.thousands)
    gaps = GAPS_ADVICE if reading.missing == "error" else ""

    def column(name: str, dtype: np.dtype, labels: bool = False) -> Column:
        kind = "texts" if name in texts else "auto"
        return Column(name, kind, dtype=dtype, notation=notation, gaps=gaps, labels=labels)

    names = _feature_names(table, target, features, drop)
    table.require("categorical column", categorical)
    # In float64, in which no two whole numbers that name classes become one.
    target_columns = [column(name, FLOAT64, labels=True) for name in target]
    return [column(name, dtype) for name in names], target_columns


def _feature_names(
    table: Table, target: Sequence[str], features: Sequence[str], drop: Sequence[str]
) -> list[str]:
    if not target:
        columns = ", ".join(map(repr, table.shown_names()))
        raise ValueError(f"no target is given, expected one or some of the columns {columns}")
    table.require("target", target)
    for what, names in (("feature", features), ("column to drop", drop)):
        table.require_names(what, names)
    both = [name for name in target if name in features]
    if both:
        raise ValueError(f"{both[0]!r} is both a feature and a target; it can be one of them")
    left_out = {"", *drop} if features else {"", *drop, *target}
    names = [name for name in features or table.names if name not in left_out]
    table.require("feature", list(dict.fromkeys(names)))
    if not names:
        raise ValueError(f"{table.path}: no column is left to predict {', '.join(target)} from")
    return names


def _rows(
    path: str, columns: Sequence[Column], target: Sequence[Column], missing: str
) -> np.ndarray:
    """The rows to use: those with a target and, under "drop", without gaps."""
    is_gap = gaps_of([*columns, *target] if missing == "drop" else target)
    if is_gap.all():
        raise ValueError(f"{path}: each row has a gap in the target, or in a column to be used")
    return np.flatnonzero(~is_gap)


def _words(column: Column, reading: Reading) -> str:
    """What a column was taken for and what became of its gaps."""
    words = column.words()
    if column.n_gaps:
        done = {"drop": "rows left out", "mean": "mean", "category": "a flag and the mean"}
        texts = "rows left out" if reading.missing == "drop" else "a text of their own"
        words += f"; {counted(column.n_gaps, 'gap')}: "
        words += texts if column.is_text else done[reading.missing]
    return words


def _warnings(target: Target, n: int) -> list[str]:
    classes = target.classes or ()
    if len(classes) <= n / 2:
        return []
    return [
        f"target {target.names[0]!r} has {len(classes)} classes in {counted(n, 'row')}; if it is a "
        f"number, say --task regression, with --decimal or --thousands if it is written so"
    ]


# The task.


def recognise(
    columns: Sequence[Column], task: str, loss: str | None, rows: Any = slice(None)
) -> Target:
    """The target of these rows of the columns; see `fit_table` for `task` and `loss`.

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
        like_classes = len(columns) == 1 and _looks_like_classes(columns[0], rows)
        task = CLASSIFICATION if like_classes else REGRESSION
    if task == REGRESSION:
        _check_numbers(columns, loss, rows)
    classes = None if task == REGRESSION else _classes(columns, loss, rows)
    units = tuple(column.notation.unit for column in columns)
    return Target(names, loss or LOSSES[task][0], classes, units)


def _looks_like_classes(column: Column, rows: Any) -> bool:
    if column.is_text:
        return True
    values = column.values[rows]
    levels = np.unique(values)
    few = len(levels) <= min(MAX_CLASSES, len(values) / 2)
    return few and bool((levels == np.rint(levels)).all())


def _check_numbers(columns: Sequence[Column], loss: str | None, rows: Any) -> None:
    for column in columns:
        if column.is_text:
            raise ValueError(
                f"target {column.name!r} is of texts, and expected are numbers; texts are "
                f"predicted one column at a time, by classification{column.advice}"
            )
        values = column.values[rows]
        least, most = values.min(), values.max()
        if least == most:
            raise ValueError(f"target {column.name!r} is {least:g} in every row: nothing to learn")
        if loss == "poisson" and least < 0:
            raise ValueError(
                f"target {column.name!r} holds {least:g}, and loss 'poisson' expects counts >= 0"
            )


def _classes(columns: Sequence[Column], loss: str | None, rows: Any) -> tuple[Any, ...]:
    if len(columns) > 1:
        raise ValueError(
            f"there are {len(columns)} targets, and classification takes one; fit a model for each"
        )
    (column,) = columns
    levels: Sequence[Any]
    if column.is_text:
        levels = [level for level in column.levels if level != GAP]
    else:
        numbers = np.unique(column.values[rows])
        levels = numbers.tolist()
        if numbers.dtype == FLOAT64:
            if np.abs(numbers).max() >= EXACT:
                raise ValueError(
                    f"target {column.name!r} holds {np.abs(numbers).max():g}, and such numbers are "
                    f"told apart only if all are whole and below 2^63; read them as texts "
                    f"(--categorical)"
                )
            levels = [int(v) if v.is_integer() else v for v in levels]
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


# The end of a fit.


def _advice(model: TableModel, result: FitResult, limit: bool, X: np.ndarray, y: np.ndarray) -> str:
    """What to do if the training stopped far from its end; "" if it did not.

    It did if its limit ended it while the loss of the last tenth of the epochs was more than 1 %
    below that of the tenth before, or if the network is hardly better than a constant on X, y.
    """
    losses = result.history["loss"]
    tenth = max(1, len(losses) // 10)
    before, after = losses[-2 * tenth : -tenth], losses[-tenth:]
    falling = limit and len(before) and after.mean() < 0.99 * before.mean()
    score = model.target.score(model.predict(X), y)
    if model.target.classes is None:
        poor, constant = score < 0.1, "the mean"
    else:
        _, counts = np.unique(y, return_counts=True)
        poor, constant = score <= counts.max() / len(y), "the most frequent class"
    if not (falling or poor):
        return ""
    facts = ["the loss was still falling"] * bool(falling)
    facts += [f"on the rows trained on it is hardly better than {constant}"] * bool(poor)
    name = result.method.partition("(")[0]
    other = "" if name in FULL_BATCH else ", --method L-BFGS-B"
    return f"the training is not at its end: {' and '.join(facts)}; try more --epochs{other}" + (
        ", a larger --lr" if other else ""
    )


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
