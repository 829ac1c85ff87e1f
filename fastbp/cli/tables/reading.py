"""Tables in files: `open_table` reads a file of text or Parquet block by block into columns.

pyarrow reads them (``fastbp[tables]``). It splits text into cells, turns cells into numbers, codes
texts, and reads Parquet; `text` and `columns` add what it does not check.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import math
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any

from ...common.errors import unknown_name
from ...reports.words import counted
from .cells import arrow, is_numeric
from .columns import BadCell, Column
from .text import SEPARATORS, Reading, Records

PARQUET_ROWS = 1 << 16
UNPACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


class Table:
    """An open table.

    Attributes
    ----------
    path : str
    names : list of str
        The names of the columns; "" for one without a name.
    reading : Reading
        How it is read, with what its head showed.
    """

    def __init__(self, path: str, names: list[str], reading: Reading):
        self.path, self.names, self.reading = path, names, reading
        self._counts = Counter(names)

    def words(self) -> str:
        """How the table is read, in a few words."""
        raise NotImplementedError

    def _blocks(self, places: Sequence[int]) -> Iterator[tuple[Sequence[int], list[Any]]]:
        """The rows' numbers and the cells of these columns, block by block."""
        raise NotImplementedError

    def require(self, what: str, names: Sequence[str]) -> None:
        """Raise ValueError unless the columns are there, once each."""
        self.require_names(what, names)
        for name in names:
            if self._counts[name] > 1:
                places = [k for k, other in enumerate(self.names, 1) if other == name]
                raise ValueError(
                    f"{self.path} has two columns named {name!r}, {places[0]} and {places[1]}; "
                    f"rename one of them, or leave both out (--drop)"
                )

    def require_names(self, what: str, names: Sequence[str]) -> None:
        """Raise ValueError unless there are columns of these names, each named once."""
        for name in names:
            if not name or name not in self._counts:
                raise ValueError(unknown_name(what, name, self.shown_names()))
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"{what} {twice[0]!r} is named twice, expected it once")

    def shown_names(self) -> list[str]:
        """The names for a message, the first hundred of them."""
        names = [name for name in self._counts if name]
        return names if len(names) <= 100 else [*names[:100], "..."]

    def read(self, columns: Sequence[Column]) -> int:
        """Fill the columns of these names; returns the number of rows.

        Raises
        ------
        ValueError
            For rows of another length than the header, cells that cannot be read, and a table
            without rows. Rows are counted as a spreadsheet does, the header being row 1.
        """
        self.require("column", list(dict.fromkeys(column.name for column in columns)))
        place = {name: k for k, name in enumerate(self.names)}
        n = 0
        for rows, cells in self._blocks([place[column.name] for column in columns]):
            for column, block in zip(columns, cells, strict=True):
                if not column.fault:
                    self._extend(column, block, rows)
            n += len(rows)
        if n == 0:
            raise ValueError(f"{self.path} has a header and no rows below it")
        return n

    def _extend(self, column: Column, cells: Any, rows: Sequence[int]) -> None:
        try:
            column.extend(cells)
        except BadCell as bad:
            fault = f"{self.path}: row {rows[bad.index]} of column {column.name!r} is {bad.problem}"
            if not column.optional:
                raise ValueError(fault) from None
            column.fault = fault


class TextTable(Table):
    """A table in a file of text."""

    def __init__(self, path: str, records: Records, sep_is_given: bool):
        super().__init__(path, _header(path, records, sep_is_given), records.reading)
        self._records = records

    def words(self) -> str:
        reading = self.reading
        sep = {"\t": "tab"}.get(str(reading.sep), repr(reading.sep))
        parts = [f"cells separated by {sep}", str(reading.encoding).upper().removesuffix("-SIG")]
        parts += ["no header"] * (reading.header is False)
        if self._records.skipped:
            parts.append(f"{counted(self._records.skipped, 'comment')} left out")
        return ", ".join(parts)

    def _blocks(self, places: Sequence[int]) -> Iterator[tuple[Sequence[int], list[Any]]]:
        pa = arrow()
        from pyarrow import csv

        names, wanted = [str(k) for k in range(len(self.names))], [str(k) for k in places]
        wrong: list[Any] = []

        def refuse(row: Any) -> str:
            wrong.append(row)
            return "error"

        convert = csv.ConvertOptions(
            column_types=pa.schema([(name, pa.string()) for name in wanted]),
            include_columns=wanted,
            strings_can_be_null=False,
        )
        for block in self._records:
            try:
                table = csv.read_csv(
                    pa.BufferReader(block.text),
                    csv.ReadOptions(
                        use_threads=False, block_size=len(block.text) + 1, column_names=names
                    ),
                    csv.ParseOptions(
                        delimiter=self.reading.sep,
                        newlines_in_values=block.quoted,
                        invalid_row_handler=refuse,
                    ),
                    convert,
                )
            except pa.ArrowInvalid as error:
                if not wrong:
                    raise ValueError(f"{self.path} cannot be read: {error}") from None
                raise ValueError(
                    f"{self.path}: row {block.rows[wrong[0].number - 1]} has "
                    f"{counted(wrong[0].actual_columns, 'cell')}, expected {len(names)} as in the "
                    f"first row; a cell with {self.reading.sep!r} in it goes into quotes, and "
                    f"--sep says what separates cells"
                ) from None
            if table.num_rows != len(block.rows):
                raise ValueError(
                    f"{self.path} has lines that end in other ways near row {block.rows[0]}"
                )
            yield block.rows, [column.combine_chunks() for column in table.columns]


class ParquetTable(Table):
    """A table in a Parquet file."""

    def __init__(self, path: str, reading: Reading):
        arrow()
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path)
        super().__init__(path, list(self._file.schema_arrow.names), reading)

    def words(self) -> str:
        return "Parquet"

    def _blocks(self, places: Sequence[int]) -> Iterator[tuple[Sequence[int], list[Any]]]:
        pa, first = arrow(), 1
        names = [self.names[k] for k in places]
        for batch in self._file.iter_batches(PARQUET_ROWS, columns=names, use_threads=False):
            rows = range(first, first := first + batch.num_rows)
            try:
                yield rows, [_plain(batch.column(name)) for name in names]
            except pa.ArrowInvalid as error:
                raise ValueError(f"{self.path} cannot be read as a table: {error}") from None


def _plain(cells: Any) -> Any:
    """The cells as numbers or strings."""
    pa = arrow()
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    try:
        return cells if is_numeric(cells.type) else cells.cast(pa.string())
    except pa.ArrowNotImplementedError:
        raise pa.ArrowInvalid(f"a column of {cells.type}") from None


@contextlib.contextmanager
def open_table(path: str | os.PathLike[str], reading: Reading = Reading()) -> Iterator[Table]:  # noqa: B008
    """Open a table and read its header.

    The file is text such as CSV, packed by gzip, bzip2, xz or alone in a zip archive or not packed,
    or it is Parquet.

    Raises
    ------
    ImportError
        Without pyarrow.
    OSError
        If it cannot be opened.
    ValueError
        If it is empty, no such file, or its header does not name columns.
    """
    path = os.fsdecode(path)
    pa = arrow()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        head = file.peek(8)
        endless = not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        if head.startswith(b"PAR1"):
            try:
                if endless:
                    raise OSError("it is no file; write what comes from it into one")
                table = ParquetTable(path, reading)
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(f"{path} cannot be read as Parquet: {error}") from None
            yield table
            return
        source: IO[bytes] = file
        if head.startswith(b"PK\x03\x04"):
            source = stack.enter_context(_only_member(path, stack.enter_context(_archive(file))))
        for magic, unpacked in UNPACKED.items():
            if head.startswith(magic):
                source = stack.enter_context(unpacked(file))
        records = Records(path, source, reading, endless)
        yield TextTable(path, records, reading.sep is not None)


def _archive(file: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{file.name} is no zip archive that can be read: {error}") from None


def _only_member(path: str, archive: zipfile.ZipFile) -> IO[bytes]:
    names = [
        name
        for name in archive.namelist()
        if not name.endswith("/") and not name.startswith("__MACOSX/")
    ]
    if "[Content_Types].xml" in names:
        raise ValueError(f"{path} is a workbook of a spreadsheet; save the sheet as CSV")
    if len(names) != 1:
        raise ValueError(f"{path} holds {counted(len(names), 'file')}, expected one; unpack it")
    try:
        return archive.open(names[0])
    except (RuntimeError, NotImplementedError) as error:  # a password, a method of packing
        raise ValueError(f"{path} cannot be unpacked: {error}") from None


def _header(path: str, records: Records, sep_is_given: bool) -> list[str]:
    """The names of the columns."""
    names, reading = records.header, records.reading
    if not any(names):
        raise ValueError(f"{path} is empty in row 1, expected a header with the columns' names")
    if sep_is_given and len(names) == 1:
        for other in SEPARATORS:
            if other in names[0]:
                raise ValueError(
                    f"{path} has the one column {names[0]!r}; if {other!r} separates its cells, "
                    f"say --sep {'tab' if other == chr(9) else repr(other)}"
                )
    if reading.header is False:
        return [f"c{k}" for k in range(1, len(names) + 1)]
    if reading.header is None and (number := next(filter(_is_number, names), None)):
        raise ValueError(
            f"{path} has numbers in row 1, such as {number}, expected a header with the columns' "
            f"names; say --no-header if there is none, or --header if this is the name of a column"
        )
    return names


def _is_number(name: str) -> bool:
    try:
        return name[-1:].isalnum() and math.isfinite(float(name.replace(",", ".")))
    except ValueError:
        return False
