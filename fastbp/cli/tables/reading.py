"""CSV tables: reads them block by block into typed columns, and encodes these as matrices.

A column is of texts if at least half of the cells in its first block are not numbers, else of
numbers. So one stray text in a column of numbers is an error that names the cell, not a new
category. Only one block at a time is in memory as Python objects.
"""

from __future__ import annotations

import contextlib
import csv
import os
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ...common.arrays import FLOAT32, FLOAT64
from ...common.errors import unknown_name
from ...reports.words import counted

BLOCK_ROWS = 1000
# Of a column of texts or classes: more are rarely categories, and each costs a column of X.
MAX_LEVELS = 256


@dataclass(frozen=True)
class Field:
    """A column in a model: its name and, if it is of texts, its different texts in order."""

    name: str
    levels: tuple[str, ...] | None = None

    @property
    def width(self) -> int:
        """The number of columns in the encoded matrix: one, or one per level."""
        return 1 if self.levels is None else len(self.levels)


class _BadCell(Exception):
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
    optional : bool
        Whether a cell that cannot be read sets the attribute `fault` to a message instead of
        raising an error.
    """

    def __init__(
        self,
        name: str,
        kind: str = "auto",
        levels: Sequence[str] | None = None,
        dtype: np.dtype = FLOAT64,
        optional: bool = False,
    ):
        self.name, self.optional, self.fault = name, optional, ""
        self._kind, self._dtype = kind, dtype
        # Arrays that grow in place, without a second copy.
        self._numbers, self._codes = array("f" if dtype == FLOAT32 else "d"), array("i")
        self._new = levels is None
        self._code: dict[str, int] = defaultdict()
        if levels is None:
            self._code.default_factory = self._code.__len__
        else:
            self._code = {level: code for code, level in enumerate(levels)}

    @property
    def is_text(self) -> bool:
        return self._kind == "texts"

    @property
    def field(self) -> Field:
        """The column as a model has it; levels in alphabetical order."""
        return Field(self.name, tuple(self._levels()) if self.is_text else None)

    @property
    def values(self) -> np.ndarray:
        """The numbers, or the codes of the texts in the order of `field`, (n,)."""
        if not self.is_text:
            return np.frombuffer(self._numbers, self._dtype)
        rank = np.empty(len(self._code), np.intp)
        rank[[self._code[level] for level in self._levels()]] = np.arange(len(self._code))
        return rank[np.frombuffer(self._codes, np.intc)]

    def _levels(self) -> list[str]:
        return sorted(self._code) if self._new else list(self._code)

    def extend(self, cells: Sequence[str]) -> None:
        """Append the cells of a block."""
        if self._kind == "auto":
            numbers = sum(_is_number(cell) for cell in cells)
            self._kind = "numbers" if 2 * numbers > len(cells) else "texts"
        if self.is_text:
            self._extend_texts([cell.strip() for cell in cells])
        else:
            self._extend_numbers(cells)

    def _extend_numbers(self, cells: Sequence[str]) -> None:
        try:
            with np.errstate(over="ignore"):
                block = np.fromiter(map(float, cells), self._dtype, len(cells))
            good = bool(np.isfinite(block).all()) and "_" not in "".join(cells)
        except ValueError:
            good = False
        if not good:
            largest = float(np.finfo(self._dtype).max)
            for index, cell in enumerate(cells):
                if not _is_number(cell) or not abs(float(cell)) <= largest:
                    raise _BadCell(index, f"{_shown(cell)}, expected a finite number")
        self._numbers.frombytes(block.tobytes())

    def _extend_texts(self, cells: Sequence[str]) -> None:
        if "" in cells:
            raise _BadCell(cells.index(""), "empty, expected a text")
        try:
            self._codes.extend(map(self._code.__getitem__, cells))
        except KeyError as error:
            problem = unknown_name("category", error.args[0], self._code)
            raise _BadCell(cells.index(error.args[0]), f"an {problem}") from None
        if self._new and len(self._code) > MAX_LEVELS:
            raise ValueError(
                f"column {self.name!r} is of texts, and has more than {MAX_LEVELS} different ones; "
                f"leave it out, or put its texts into groups (numbers are written with a point, "
                f"as 1.5, and without thousands separators)"
            )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # which Python takes for a separator of digits


def _shown(cell: str) -> str:
    return repr(cell) if cell.strip() else "empty"


class Table:
    """An open CSV file.

    Attributes
    ----------
    path : str
    names : list of str
        The names of the columns; "" for one without a name.
    """

    def __init__(self, path: str, names: list[str], rows: Iterator[list[str]]):
        self.path, self.names, self._rows = path, names, rows

    def read(self, columns: Sequence[Column]) -> int:
        """Fill the columns of these names; returns the number of rows.

        Raises
        ------
        ValueError
            For rows of another length than the header, cells that cannot be read, and a table
            without rows. Rows are counted as a spreadsheet does, the header being row 1.
        """
        places = [self.names.index(column.name) for column in columns]
        first, n = 2, 0
        while block := list(islice(self._rows, BLOCK_ROWS)):
            # Empty lines are rows of a spreadsheet too, but hold nothing.
            numbers = [k for k, row in enumerate(block, first) if row]
            rows = [row for row in block if row]
            self._check_widths(rows, numbers)
            cells = list(zip(*rows, strict=True))
            for place, column in zip(places, columns, strict=True):
                if rows and not column.fault:
                    self._extend(column, cells[place], numbers)
            first, n = first + len(block), n + len(rows)
        if n == 0:
            raise ValueError(f"{self.path} has a header and no rows below it")
        return n

    def _check_widths(self, rows: list[list[str]], numbers: list[int]) -> None:
        width = len(self.names)
        for row, number in zip(rows, numbers, strict=True):
            if len(row) != width:
                raise ValueError(
                    f"{self.path}: row {number} has {counted(len(row), 'cell')}, expected {width} "
                    f"as in the header; a cell with the delimiter in it goes into quotes"
                )

    def _extend(self, column: Column, cells: Sequence[str], numbers: list[int]) -> None:
        try:
            column.extend(cells)
        except _BadCell as bad:
            fault = (
                f"{self.path}: row {numbers[bad.index]} of column {column.name!r} is "
                f"{bad.problem}; correct it, fill it or remove the row"
            )
            if not column.optional:
                raise ValueError(fault) from None
            column.fault = fault


@contextlib.contextmanager
def open_table(path: str | os.PathLike[str], delimiter: str = ",") -> Iterator[Table]:
    """Open a CSV file of UTF-8 text, with or without a byte order mark, and read its header.

    Raises
    ------
    OSError
        If it cannot be opened.
    ValueError
        If it is empty, no such text, or its header does not name columns.
    """
    path = os.fsdecode(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            yield Table(path, _header(path, next(rows, []), delimiter), rows)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {rows.line_num}: {error}; expected a CSV file, with quotes within "
                f'quotes doubled ("")'
            ) from None
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 text (byte {error.object[error.start]:#x} in line "
                f"{rows.line_num + 1} or soon after); expected a CSV file, which a spreadsheet "
                f'saves as "CSV UTF-8"'
            ) from None


def _header(path: str, cells: list[str], delimiter: str) -> list[str]:
    """The names of the columns, checked."""
    names = [cell.strip() for cell in cells]
    if not any(names):
        raise ValueError(f"{path} is empty in row 1, expected a header with the columns' names")
    if all(_is_number(name) for name in names):
        raise ValueError(
            f"{path} has numbers in row 1, expected a header with the columns' names; "
            f"write one above them"
        )
    for k, name in enumerate(names):
        if name and name in names[:k]:
            raise ValueError(
                f"{path} has two columns named {name!r}, {names.index(name) + 1} and {k + 1}; "
                f"rename one of them"
            )
    if len(names) == 1:
        for other in {",", ";", "\t", "|"} - {delimiter}:
            if other in names[0]:
                raise ValueError(
                    f"{path} has the one column {names[0]!r}; if {other!r} separates its cells, "
                    f"say --delimiter {'tab' if other == chr(9) else repr(other)}"
                )
    return names


def encode(
    columns: Sequence[Column], row_sets: Sequence[np.ndarray], dtype: np.dtype
) -> list[np.ndarray]:
    """For each set of rows the matrix of the columns; texts become one 0/1 column per level.

    Parameters
    ----------
    columns : sequence of Column
    row_sets : sequence of numpy.ndarray of int
        The numbers of the rows, from 0.
    dtype : numpy.dtype

    Returns
    -------
    list of numpy.ndarray (rows, sum of the fields' widths)
    """
    fields = [column.field for column in columns]
    width = sum(field.width for field in fields)
    matrices = [np.zeros((len(rows), width), dtype) for rows in row_sets]
    first = 0
    for column, field in zip(columns, fields, strict=True):
        values = column.values
        for X, rows in zip(matrices, row_sets, strict=True):
            if field.levels is None:
                X[:, first] = values[rows]
            else:
                X[np.arange(len(rows)), first + values[rows]] = 1
        first += field.width
    return matrices
