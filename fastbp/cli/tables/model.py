"""`TableModel`: a network with the columns and classes of the table that it was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...common.arrays import FLOAT64
from ...common.errors import unknown_name
from ...fitting.result import r_squared
from ...io import load, save
from ...maths.losses import TABLE, Loss, huber, loss as loss_of, quantile
from ...networks.network import Network
from .cells import GAP, Notation
from .columns import EXACT, Column, Field
from .text import Reading

REGRESSION, CLASSIFICATION = "regression", "classification"
_TARGETS = ("values", "counts", "halves")
LOSSES = {
    REGRESSION: tuple(name for name, row in TABLE.items() if row.target in _TARGETS),
    CLASSIFICATION: ("softmax_ce", "bce_logits"),
}
PARAMETRISED = {"huber": huber, "quantile": quantile}
GAPS_ADVICE = "fill it, or say what to do with gaps: --missing drop, mean or category"
KIND = "table"  # marks the files of `TableModel.save`, in their meta


@dataclass(frozen=True)
class Target:
    """What a network predicts: its columns, and what its outputs mean.

    Parameters
    ----------
    names : tuple of str
        The names of the columns; one if there are classes.
    loss : str
        A name of LOSSES; those of PARAMETRISED also with a number, as in "quantile:0.9".
    classes : tuple of str, or of int and float, ascending, optional
        The classes that the column holds, for classification.
    units : tuple of str, optional
        The columns' currency or percent signs; see `Notation`.
    """

    names: tuple[str, ...]
    loss: str
    classes: tuple[Any, ...] | None = None
    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", self.units or ("",) * len(self.names))

    @cached_property
    def loss_function(self) -> Loss:
        """The loss for `fit`; ValueError if it is not among LOSSES."""
        name, colon, number = self.loss.partition(":")
        if not any(name in names for names in LOSSES.values()):
            raise ValueError(unknown_name("loss", name, sum(LOSSES.values(), ())))
        if not colon:
            return loss_of(name)
        if name not in PARAMETRISED:
            raise ValueError(f"loss is {self.loss!r}, but {name!r} takes no number after a colon")
        try:
            return PARAMETRISED[name](float(number))
        except ValueError as error:
            raise ValueError(f"loss is {self.loss!r}: {error}") from None

    @property
    def task(self) -> str:
        return REGRESSION if self.classes is None else CLASSIFICATION

    @property
    def n_out(self) -> int:
        """The number of outputs of the network."""
        name = self.loss_function.name
        if name == "gaussian_nll":
            return 2 * len(self.names)
        return len(self.classes) if self.classes and name == "softmax_ce" else len(self.names)

    def columns(self, reading: Reading) -> list[Column]:
        """Columns to read the target from a table, where cells may be missing."""
        kind = "texts" if self.classes and isinstance(self.classes[0], str) else "numbers"
        levels = self.classes if kind == "texts" else None
        notations = [Notation(reading.decimal, reading.thousands, unit) for unit in self.units]
        return [
            Column(name, kind, levels, notation=notation, optional=True, labels=True)
            for name, notation in zip(self.names, notations, strict=True)
        ]

    def values(self, columns: Sequence[Column], rows: Any = slice(None)) -> np.ndarray:
        """y of rows as `fit` takes it: numbers (n, n_columns), labels (n,), 0/1 for "bce_logits".

        Raises
        ------
        ValueError
            For a number that is none of the classes.
        """
        if self.classes is None:
            return np.stack([column.values[rows] for column in columns], axis=1).astype(
                FLOAT64, copy=False
            )
        (column,) = columns
        labels = column.values[rows] if column.is_text else self._labels(column, rows)
        return labels if self.loss == "softmax_ce" else labels[:, None].astype(float)

    def _labels(self, column: Column, rows: Any) -> np.ndarray:
        assert self.classes is not None
        values = column.values[rows]
        if values.dtype == FLOAT64 and np.abs(values).max() >= EXACT:
            raise ValueError(
                f"column {column.name!r} holds {np.abs(values).max():g}, and such numbers are told "
                f"apart only if all are whole and below 2^63; read them as texts (--categorical)"
            )
        labels = np.searchsorted(self.classes, values).clip(max=len(self.classes) - 1)
        strange = np.asarray(self.classes)[labels] != values
        if strange.any():
            raise ValueError(
                f"column {column.name!r} holds {values[strange][0]:g}, expected one of the classes "
                f"{', '.join(map(str, self.classes))}"
            )
        return labels

    def predictions(self, Y: np.ndarray) -> np.ndarray:
        """The predictions that the outputs Y (n, n_out) stand for.

        Probabilities (n, n_classes), or values (n, n_columns); for "gaussian_nll" values and then
        their standard deviations, (n, 2·n_columns).
        """
        if self.loss == "softmax_ce":
            exp = np.exp(Y - Y.max(axis=1, keepdims=True))
            return exp / exp.sum(axis=1, keepdims=True)
        if self.loss == "bce_logits":
            tail = np.exp(-abs(Y))
            less, more = tail / (1 + tail), 1 / (1 + tail)
            return np.where(Y > 0, np.hstack([less, more]), np.hstack([more, less]))
        with np.errstate(over="ignore"):
            if self.loss == "poisson":
                return np.exp(Y)
            if self.loss == "gaussian_nll":
                mean, log_variance = np.split(Y, 2, axis=1)
                return np.hstack([mean, np.exp(log_variance / 2)])
        return Y

    @property
    def prediction_names(self) -> list[str]:
        """The columns of a file of predictions; with classes, the first has the most probable."""
        names = list(self.names)
        if self.classes is not None:
            names += [f"P({level})" for level in self.classes]
        elif self.loss == "gaussian_nll":
            names += [f"sd({name})" for name in self.names]
        return names

    @property
    def score_name(self) -> str:
        return "R2" if self.classes is None else "accuracy"

    def score(self, predictions: np.ndarray, y: np.ndarray) -> float:
        """`FitResult.score` of what `predictions` returned, for y as `values` returns it."""
        if self.classes is None:
            return r_squared(predictions[:, : len(self.names)].astype(FLOAT64), y)
        return float(np.mean(predictions.argmax(axis=1) == y.ravel()))


@dataclass(frozen=True, eq=False)
class TableModel:
    """A network that was fitted to the columns of a table.

    Parameters
    ----------
    net : Network
    params : numpy.ndarray (n_params,)
        For raw numbers, as in the table.
    features : tuple of Field
        In the order of the network's inputs.
    target : Target
    training : dict
        A record of the fit, for people to read.
    reading : Reading
        How the table was read, as it was asked for.
    """

    net: Network
    params: np.ndarray
    features: tuple[Field, ...]
    target: Target
    training: dict[str, Any]
    reading: Reading = Reading()  # noqa: RUF009

    def save(self, path: str) -> None:
        """Write a file that `fastbp.load` reads too; its meta has all but net and params."""
        meta: dict[str, Any] = {
            "kind": KIND,
            "features": [asdict(field) for field in self.features],
            "target": asdict(self.target),
            "reading": asdict(self.reading),
            "training": self.training,
        }
        save(path, self.net, self.params, **meta)

    @classmethod
    def load(cls, path: str) -> TableModel:
        """Read what `save` wrote; ValueError for any other file."""
        net, params, _, meta = load(path)
        if meta.get("kind") != KIND:
            raise ValueError(
                f"{path} holds a network that knows no columns, expected one that 'fastbp fit' "
                f"wrote; in Python, fastbp.load reads it"
            )
        try:
            features = tuple(
                Field(**field | {"levels": _tuple(field["levels"])}) for field in meta["features"]
            )
            target = Target(**{key: _tuple(value) for key, value in meta["target"].items()})
            model = cls(net, params, features, target, meta["training"], Reading(**meta["reading"]))
            widths = sum(field.width for field in features), model.target.n_out
        except (AttributeError, KeyError, TypeError, ValueError):
            widths = None
        if widths != (net.n_in, net.n_out):
            raise ValueError(
                f"{path}: the columns that it names do not fit its network; the file was changed "
                f"after 'fastbp fit' wrote it, fit again"
            )
        return model

    def columns(self, reading: Reading) -> list[Column]:
        """Columns to read its features from a table.

        Raises
        ------
        ValueError
            If gaps are to be a category, and the model was fitted otherwise.
        """
        if reading.missing == "category" and self.reading.missing != "category":
            raise ValueError(
                "the model has no inputs for gaps: to treat them as a category, fit with "
                "--missing category"
            )
        return [self._column(field, reading) for field in self.features]

    def _column(self, field: Field, reading: Reading) -> Column:
        kind = "numbers" if field.levels is None else "texts"
        notation = Notation(reading.decimal, reading.thousands, field.unit)
        gaps = "" if reading.missing != "error" else GAPS_ADVICE
        if reading.missing == "category" and field.levels is None and not field.flag:
            gaps = "the model takes no gaps here: it was fitted to a column without any"
        levels = field.levels
        if reading.missing == "drop" and levels is not None and GAP not in levels:
            levels = (*levels, GAP)  # which no row that is predicted has
        return Column(field.name, kind, levels, self.net.dtype, notation=notation, gaps=gaps)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """`Target.predictions` for encoded features (n, n_in)."""
        return self.target.predictions(self.net.forward(self.params, X))


def _tuple(value: Any) -> Any:
    """The value, a list as a tuple."""
    return tuple(value) if isinstance(value, list) else value
