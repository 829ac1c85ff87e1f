"""Columns of tables: the numbers or the codes of texts that they hold, and `encode` as a matrix.

A column is of numbers if more than half of the cells in the first block that has any are numbers,
else of texts; gaps do not count. So one stray text in a column of numbers is an error that names
the cell, not a new category.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.arrays import FLOAT32, FLOAT64
from ...common.errors import unknown_name
from ...common.terminal import printable
from .cells import (
    GAP,
    USUAL,
    Notation,
    advice_for,
    arrow,
    gap_texts,
    is_numeric,
    shown,
    unit_of,
)

# Of a column of texts or classes: more are rarely categories, and each costs a column of X.
MAX_LEVELS = 256
EXACT = 2**53  # beyond it float64 does not tell all whole numbers apart


@dataclass(frozen=True)
class Field:
    """A column in a model.

    Parameters
    ----------
    name : str
    levels : tuple of str, optional
        The different texts of a column of texts, in order; GAP last if it has gaps.
    unit : str
        That of its `Notation`.
    mean : float, optional
        Of its numbers in the rows of the training, which stands for gaps.
    flag : bool
        Whether a column of numbers has an input more, 1 where there is a gap and 0 elsewhere.
    """

    name: str
    levels: tuple[str, ...] | None = None
    unit: str = ""
    mean: float | None = None
    flag: bool = False

    @property
    def width(self) -> int:
        """The number of columns in the encoded matrix: one, or one per level; one for the flag."""
        return 1 + self.flag if self.levels is None else len(self.levels)


class BadCell(Exception):
    """A cell that cannot be read: its place within the block, and what is wrong with it."""

    def __init__(self, index: int, problem: str):
        super().__init__(index, problem)
        self.index, self.problem = index, problem


class Column:
    """A column of a table, numbers or codes of texts, which `Table.read` fills.

    Parameters
    ----------
    name : str
    kind : {"auto", "numbers", "texts"}
    levels : sequence of str, optional
        The texts that may occur, whose places are their codes; by default any.
    dtype : numpy.dtype
        That of numbers, float32 or float64.
    notation : Notation
        Of numbers. Its unit is found out if `kind` is "auto".
    gaps : str
        What to do about gaps, for the message of an error; "" if they may occur.
    optional : bool
        Whether a cell that cannot be read sets the attribute `fault` to a message instead of
        raising an error.
    labels : bool
        Whether whole numbers that float64 does not tell apart are to be kept apart.

    Attributes
    ----------
    n_gaps : int
    """

    def __init__(
        self,
        name: str,
        kind: str = "auto",
        levels: Sequence[str] | None = None,
        dtype: np.dtype = FLOAT64,
        *,
        notation: Notation = USUAL,
        gaps: str = "correct it, fill it or remove the row",
        optional: bool = False,
        labels: bool = False,
    ):
        self.name, self.optional, self.fault = name, optional, ""
        self.notation, self.n_gaps = notation, 0
        self._kind, self._dtype, self._gaps = kind, dtype, gaps
        # Arrays that grow in place, without a second copy.
        self._numbers, self._codes = array("f" if dtype == FLOAT32 else "d"), array("i")
        self._whole = array("q") if labels else None
        self._zeros = ""  # a number with zeros before it
        self._asked, self._new = kind == "texts", levels is None
        self._code = {level: code for code, level in enumerate(levels or ())}

    @property
    def is_text(self) -> bool:
        return self._kind == "texts"

    @property
    def values(self) -> np.ndarray:
        """The numbers with NaN for gaps, or the codes of the texts in the order of `levels`, (n,).

        Float64; int64 for whole numbers of a column of labels of which one is beyond 2^53.
        """
        if self.is_text:
            rank = np.empty(len(self._code), np.intp)
            rank[[self._code[level] for level in self.levels]] = np.arange(len(self._code))
            return rank[np.frombuffer(self._codes, np.intc)]
        values = np.frombuffer(self._numbers, self._dtype)
        whole = np.frombuffer(self._whole or b"", np.int64)
        return whole if len(whole) and np.abs(values).max() >= EXACT else values

    @property
    def is_gap(self) -> np.ndarray:
        """Which rows are gaps, (n,)."""
        if not self.is_text:
            return np.isnan(np.frombuffer(self._numbers, self._dtype))
        return np.frombuffer(self._codes, np.intc) == self._code.get(GAP, -1)

    @property
    def levels(self) -> tuple[str, ...]:
        """The texts, those that were found in alphabetical order; GAP is the last."""
        found = sorted(self._code, key=lambda text: (text == GAP, text))
        return tuple(found if self._new else self._code)

    def field(self, rows: np.ndarray, missing: str = "error") -> Field:
        """The column as a model has it that is fitted to these rows; for `missing` see `Reading`.

        Raises
        ------
        ValueError
            If there is no number in these rows.
        """
        if self.is_text:
            levels = self.levels
            return Field(self.name, levels[:-1] if missing == "drop" and GAP in levels else levels)
        known = self.values[rows]
        known = known[~np.isnan(known)] if self.n_gaps else known
        if not len(known):
            raise ValueError(
                f"column {self.name!r} has nothing but gaps in the rows to train on; leave it out "
                f"(--drop)"
            )
        mean = float((known / len(known)).sum(dtype=FLOAT64))  # of numbers whose sum overflows too
        return Field(
            self.name, None, self.notation.unit, mean, missing == "category" and self.n_gaps > 0
        )

    def extend(self, cells: Any) -> None:
        """Append the cells of a block, an array of pyarrow: strings or numbers."""
        pa = arrow()
        if is_numeric(cells.type) and self._kind != "texts":
            self._append_values(cells)
            return
        cells = cells.cast(pa.string())
        if cells.null_count:
            cells = cells.fill_null("")
        if self._kind != "texts" and self._append_plain(cells):
            return
        cells = pa.compute.utf8_trim_whitespace(cells)
        is_gap = pa.compute.is_in(cells, gap_texts()).to_numpy(zero_copy_only=False)
        if self._kind == "auto":
            self._decide(cells.filter(pa.array(~is_gap)))
        taken = not self._gaps and (not self.is_text or self._new or GAP in self._code)
        if not taken and is_gap.any():
            raise self._bad_gap(cells, is_gap)
        self.n_gaps += int(is_gap.sum())
        if self.is_text:
            self._append_texts(cells, is_gap)
        else:
            self._append_numbers(cells, is_gap)

    def _bad_gap(self, cells: Any, is_gap: np.ndarray) -> BadCell:
        index = int(is_gap.argmax())
        cell = cells[index].as_py()
        shown = repr(cell) + ", a gap" if cell else "empty"
        wanted = "a text" if self.is_text else "a finite number"
        advice = self._gaps or "the model takes no gaps here: it was fitted to a column without any"
        return BadCell(index, f"{shown}, expected {wanted}; {advice}")

    def _decide(self, known: Any) -> None:
        """Decide by cells that are no gaps what the column is; later if there are none."""
        if not len(known):
            return
        cell = known[0].as_py()
        for unit in dict.fromkeys(("", unit_of(cell))):
            notation = Notation(self.notation.decimal, self.notation.thousands, unit)
            if 2 * int(notation.matches(known).sum()) > len(known):
                self._kind, self.notation = "numbers", notation
                return
        self._kind = "texts"
        if self.n_gaps:  # all cells so far
            self._code[GAP] = 0
            self._codes.extend([0] * self.n_gaps)
            del self._numbers[:]

    def _append_plain(self, cells: Any) -> bool:
        """Append the cells if all are finite numbers in the usual notation; whether they were."""
        pa = arrow()
        if self.notation != USUAL:
            return False
        try:
            values = cells.cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            return False
        if not self._fits(values).all():
            return False
        if self._kind == "auto" or self._whole is not None:
            zeros = pa.compute.match_substring_regex(cells, r"^\s*[+-]?0\d")
            if zeros.true_count:
                self._zeros = cells.filter(zeros)[0].as_py()
        self._kind = "numbers"
        self._append(values, cells)
        return True

    def _append_numbers(self, cells: Any, is_gap: np.ndarray) -> None:
        """Append cells without blanks; gaps become NaN."""
        pa = arrow()
        good = self.notation.matches(cells) & ~is_gap
        values = np.full(len(cells), np.nan)
        values[good] = self.notation.numbers(cells.filter(pa.array(good)))
        good &= self._fits(values)
        if not (good | is_gap).all():
            index = int((good | is_gap).argmin())
            cell = cells[index].as_py()
            unit = f" in {self.notation.unit}" if self.notation.unit else ""
            raise BadCell(
                index,
                f"{shown(cell)}, expected a finite number{unit}; correct it, fill it or remove "
                f"the row{advice_for([cell], self.notation)}",
            )
        self._append(values, cells)

    def _append_values(self, cells: Any) -> None:
        """Append an array of numbers, NaN and null being gaps."""
        pa = arrow()
        values = cells.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        is_gap = np.isnan(values)
        if is_gap.any() and self._gaps:
            raise BadCell(int(is_gap.argmax()), f"a gap, expected a finite number; {self._gaps}")
        good = self._fits(values) | is_gap
        if not good.all():
            index = int(good.argmin())
            raise BadCell(index, f"{values[index]:g}, expected a finite number")
        self._kind = "numbers"
        self.n_gaps += int(is_gap.sum())
        self._append(values, cells)

    def _fits(self, values: np.ndarray) -> np.ndarray:
        """Which values are finite in the column's dtype."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.isfinite(values.astype(self._dtype, copy=False))

    def _append(self, values: np.ndarray, cells: Any) -> None:
        block = np.ascontiguousarray(values, self._dtype)
        self._numbers.frombytes(block.data.cast("B") if len(block) else b"")
        if self._whole is not None:
            pa = arrow()
            try:
                whole = cells.cast(pa.int64()).to_numpy(zero_copy_only=False)
                self._whole.frombytes(np.ascontiguousarray(whole, np.int64).data.cast("B"))
            except (pa.ArrowInvalid, TypeError, ValueError):
                self._whole = None

    def _append_texts(self, cells: Any, is_gap: np.ndarray) -> None:
        pa = arrow()
        if is_gap.any():
            cells = pa.compute.if_else(pa.array(is_gap), GAP, cells)
        coded = cells.dictionary_encode()
        codes = []
        for place, text in enumerate(coded.dictionary.to_pylist()):
            if text not in self._code:
                if not self._new:
                    index = int((coded.indices.to_numpy() == place).argmax())
                    problem = unknown_name("category", text, filter(None, self._code))
                    raise BadCell(index, f"an {problem}; correct it, fill it or remove the row")
                self._code[text] = len(self._code)
            codes.append(self._code[text])
        if self._new and len(self._code) > MAX_LEVELS:
            raise ValueError(
                f"column {self.name!r} is of texts, and has more than {MAX_LEVELS} different ones; "
                f"leave it out (--drop), or put its texts into groups"
                f"{advice_for(list(self._code), self.notation)}"
            )
        self._codes.frombytes(np.array(codes, np.intc)[coded.indices.to_numpy()].tobytes())

    @property
    def advice(self) -> str:
        """The options that would read its texts as numbers, after a semicolon, or ""."""
        return "" if self._asked else advice_for(self.levels, self.notation)

    def warning(self, n: int) -> str:
        """What looks like a mistake in a column of n rows, or ""."""
        if not self.is_text:
            if not self._zeros:
                return ""
            return (
                f"column {self.name!r} has numbers with zeros before them, such as "
                f"{self._zeros!r}; if they are codes, say --categorical"
            )
        texts = [level for level in self.levels if level != GAP]
        name, shown = repr(self.name), repr(_short(texts[0])) if texts else ""
        if self.advice:
            return f"column {name} is read as {len(texts)} texts such as {shown}{self.advice}"
        if self.name in texts:
            return (
                f"column {name} has its name among its texts; if row 1 is no header, say "
                f"--no-header"
            )
        if len(texts) > n / 2 > 2:
            return (
                f"column {name} has {len(texts)} different texts in {n} rows, such as {shown}; if "
                f"they do not stand for groups of rows, leave it out: --drop"
            )
        return ""

    def words(self) -> str:
        """What the column was taken for, in a few words."""
        if self.is_text:
            texts = [printable(_short(level)) for level in self.levels if level != GAP]
            more = ", ..." if len(texts) > 6 else ""
            return f"{len(texts)} texts: {', '.join(texts[:6])}{more}"
        words = self.notation.words()
        return f"numbers, {words}" if words else "numbers"


def _short(text: str) -> str:
    return text if len(text) <= 30 else text[:27] + "..."


def gaps_of(columns: Sequence[Column]) -> np.ndarray:
    """Which rows have a gap in one of the columns, (n,)."""
    is_gap = np.zeros(len(columns[0].is_gap), bool)
    for column in columns:
        if column.n_gaps:
            is_gap |= column.is_gap
    return is_gap


def encode(
    columns: Sequence[Column],
    fields: Sequence[Field],
    row_sets: Sequence[np.ndarray],
    dtype: np.dtype,
) -> list[np.ndarray]:
    """For each set of rows the matrix of the columns; texts become one 0/1 column per level.

    Parameters
    ----------
    columns : sequence of Column
    fields : sequence of Field
        Of the columns; they say what stands for gaps.
    row_sets : sequence of numpy.ndarray of int
        The numbers of the rows, from 0.
    dtype : numpy.dtype

    Returns
    -------
    list of numpy.ndarray (rows, sum of the fields' widths)
    """
    width = sum(field.width for field in fields)
    matrices = [np.zeros((len(rows), width), dtype) for rows in row_sets]
    first = 0
    for column, field in zip(columns, fields, strict=True):
        values = column.values
        for X, rows in zip(matrices, row_sets, strict=True):
            chosen = values[rows]
            if field.levels is not None:
                X[np.arange(len(rows)), first + chosen] = 1
                continue
            X[:, first] = chosen
            if column.n_gaps:
                is_gap = np.isnan(chosen)
                X[is_gap, first] = field.mean
                if field.flag:
                    X[is_gap, first + 1] = 1
        first += field.width
    return matrices
