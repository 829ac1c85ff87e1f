"""The text of a table's file: `Records` unpacks and decodes it and yields blocks of whole records.

pyarrow splits records into cells. Here is what it does not do: it takes ``"2"3`` for 23 and a quote
that is not closed for a cell of many rows, knows no comments and no blanks before quotes, counts no
empty lines, and reads no UTF-16 without a mark and no zip archives.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, NamedTuple

SEPARATORS = (",", ";", "\t", "|")
MISSING = ("error", "drop", "mean", "category")
# Bytes that are read at once: to see what a file is; of its records, and per column of wide tables.
HEAD, BLOCK, BLOCK_PER_COLUMN = 1 << 16, 1 << 20, 400
# A record may have so many characters, and what is no file (a device, a pipe) so many bytes.
LONGEST, ENDLESS = 1 << 26, 1 << 34
LONGEST_CELL = 10_000  # lines of a cell in quotes
HEAD_LINES = 100
UNCLOSED = (
    "has a cell that goes on after its closing quote, or a quote that nothing closes; quotes "
    'within quotes are doubled ("")'
)

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Reading:
    """How a table is read. None is found out from the head of the file.

    Parameters
    ----------
    sep : str, optional
        The character between cells.
    decimal : {".", ","}
        The decimal point of numbers.
    thousands : {"", ",", ".", " ", "'"}
        What separates groups of three digits; " " stands for the no-break spaces too.
    comment : str, optional
        Lines that begin with this are left out; by default those above the header that begin with
        "#" and a blank, "#" or "!".
    encoding : str, optional
        A name that Python knows. By default UTF-8, or UTF-16 or UTF-32 if the file shows it.
    header : bool, optional
        Whether the first record has the columns' names; without one they are c1, c2, ... By default
        it must have them, and an error is raised if it holds a number.
    missing : {"error", "drop", "mean", "category"}
        What becomes of gaps; see `fit_table`.
    """

    sep: str | None = None
    decimal: str = "."
    thousands: str = ""
    comment: str | None = None
    encoding: str | None = None
    header: bool | None = None
    missing: str = "error"

    def __post_init__(self) -> None:
        sep = self.sep
        if sep is not None and (len(sep) != 1 or sep in '\r\n"' or not sep.isascii()):
            raise ValueError(f"--sep: {sep!r} is not one character such as ';', or tab")
        for name, known in (
            ("decimal", (".", ",")),
            ("thousands", ("", ",", ".", " ", "'")),
            ("missing", MISSING),
        ):
            if (value := getattr(self, name)) not in known:
                words = " ".join(map(repr, filter(None, known)))
                raise ValueError(f"--{name}: {value!r} is none of {words}")
        if self.decimal == self.thousands:
            raise ValueError(f"--decimal and --thousands are both {self.decimal!r}; one differs")
        if self.comment is not None and (not self.comment or self.comment[0] in '\r\n" '):
            raise ValueError(f"--comment: {self.comment!r} does not begin a line, expected '#'")
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except (LookupError, ValueError):
                raise ValueError(
                    f"--encoding: Python knows no encoding {self.encoding!r}, expected such as "
                    f"utf-8, latin-1, cp1252, utf-16"
                ) from None


class Block(NamedTuple):
    """Whole records as UTF-8, whether they have quotes, and which rows of the file they are.

    Rows are counted as a spreadsheet does: from 1, a record of several lines being one row, and
    comments and empty lines being rows too.
    """

    text: bytes
    quoted: bool
    rows: Sequence[int]


class Records:
    """The records of an open file, the header first.

    Attributes
    ----------
    reading : Reading
        What was asked for, and what the head of the file shows where nothing was.
    header : list of str
        The cells of the first record; none in an empty file.
    skipped : int
        The number of comments so far.
    """

    def __init__(self, path: str, file: IO[bytes], reading: Reading, endless: bool = False):
        self.path, self.skipped, self.header = path, 0, []
        self._file, self._left = file, ENDLESS if endless else None
        self._row = 0
        head = self._bytes(HEAD)
        encoding = reading.encoding or self._encoding(head)
        self.reading = replace(reading, encoding=encoding)
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._returns = False  # whether lines end in "\r" alone, as on old Macs
        self._text = self._decode(head).removeprefix("\ufeff")
        while not re.search("[\r\n]", self._text) and self._more(HEAD):
            pass
        self._returns = "\n" not in self._text and "\r" in self._text[:-1]
        if self._returns:
            self._text = self._text.replace("\r", "\n")
        self._recognise()
        self._compile()
        first = next(self._blocks(one=True), None)
        if first is not None:
            self.header = self._cells(first.text)
            if reading.header is False:  # a row of the table
                self._text, self._row = first.text.decode() + self._text, first.rows[0] - 1

    # Bytes and text.

    def _bytes(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except DAMAGED as error:
            raise ValueError(f"{self.path} is damaged or incomplete: {error}") from None
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise ValueError(
                    f"{self.path} is no file, and does not end after {ENDLESS >> 30} GiB; write "
                    f"what comes from it into a file"
                )
        return data

    def _more(self, size: int) -> bool:
        """Append to the text what comes next in the file; whether there was something."""
        if len(self._text) > LONGEST and "\n" not in self._text:
            raise ValueError(
                f"{self.path}: row {self._row + 1} has more than {LONGEST >> 20} million "
                f"characters; expected a CSV file"
            )
        data = self._bytes(size)
        text = self._decode(data)
        self._text += text.replace("\r", "\n") if self._returns else text
        return bool(data)

    def _encoding(self, head: bytes) -> str:
        for mark, name in MARKS.items():
            if head.startswith(mark):
                return name
        zeros = head[:4096:2].count(0), head[1:4096:2].count(0)
        if not any(zeros):
            return "utf-8"
        name = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
        text = head[: len(head) // 2 * 2].decode(name, "replace")
        if min(zeros) > max(zeros) / 4 or "\0" in text or not re.search("[\r\n]", text):
            raise ValueError(f"{self.path} holds zero bytes, as no text does; expected a CSV file")
        return name

    def _decode(self, data: bytes) -> str:
        try:
            return self._decoder.decode(data, final=not data)
        except UnicodeError as error:
            what = str(error)
            if isinstance(error, UnicodeDecodeError):
                line = self._row + error.object[: error.start].count(b"\n") + 1
                what = f"byte {error.object[error.start]:#x} in line {line} or soon after"
            name = str(self.reading.encoding).upper().removesuffix("-SIG")
            raise ValueError(
                f"{self.path} is not {name} text ({what}); say what it is, such as --encoding "
                f"cp1252 or latin-1, or save it as UTF-8"
            ) from None

    # The head.

    def _recognise(self) -> None:
        """Set what the reading leaves open from the first lines."""
        reading = self.reading
        if match := re.match(r'"?sep=(.)"?\r?\n', self._text):  # as Excel writes and reads it
            self._text, self._row = self._text[match.end() :], 1
            reading = replace(reading, sep=reading.sep or match[1])
        while reading.comment is None and re.match(r"#[\s#!]", self._text):
            self._text = self._text.partition("\n")[2]
            self._row, self.skipped = self._row + 1, self.skipped + 1
            while "\n" not in self._text and self._more(HEAD):
                pass
        if reading.sep is None:
            lines = list(io.StringIO(self._text, newline=""))
            if len(lines) > 1 and not lines[-1].endswith("\n"):
                lines.pop()  # perhaps not whole
            comment = reading.comment
            lines = [line for line in lines if not comment or not line.startswith(comment)]
            reading = replace(reading, sep=self._separator(lines[:HEAD_LINES]))
        self.reading = reading

    def _separator(self, lines: list[str]) -> str:
        """The one character that splits all lines into equally many cells, at least two."""
        widths: dict[str, set[int]] = {}
        for sep in SEPARATORS:
            rows = csv.reader(lines, delimiter=sep, skipinitialspace=True)
            try:
                widths[sep] = {len(row) for row in rows if row}
            except csv.Error:
                widths[sep] = set()
        fitting = [s for s, w in widths.items() if len(w) == 1 and min(w) > 1]
        if len(fitting) > 1:  # not what numbers hold, if that was said
            fitting = [
                s for s in fitting if s not in (self.reading.decimal, self.reading.thousands)
            ]
        if len(fitting) > 1:
            shown = " or ".join(map(repr, fitting))
            raise ValueError(
                f"{self.path}: its cells may be separated by {shown}; say which: --sep"
            )
        if fitting:
            return fitting[0]
        if lines and not any(sep in lines[0] for sep in SEPARATORS):  # one column
            absent = [sep for sep in SEPARATORS if not any(sep in line for line in lines)]
            return [*absent, ","][0]
        return max(SEPARATORS, key=lambda sep: lines[0].count(sep) if lines else 0)

    # Records.

    def _compile(self) -> None:
        """Patterns: of a record, of one with a quote still open, of quotes among blanks."""
        assert self.reading.sep is not None
        self._sep = self.reading.sep.encode()
        self._comment = (self.reading.comment or "").encode()
        sep, blanks = re.escape(self.reading.sep), " *" if self.reading.sep != " " else ""
        inside = '[^"]*(?:""[^"]*)*'
        cell = rf'(?:{blanks}"{inside}"{blanks}|(?!{blanks}")[^{sep}\r\n]*)'
        before = f"(?:{cell}{sep})*"
        self._whole, self._open, self._blanks = (
            re.compile(pattern.encode())
            for pattern in (
                before + cell,
                f'{before}{blanks}"{inside}',
                f'(^|{sep}){blanks}("{inside}"){blanks}(?={sep}|$)',
            )
        )

    def _cells(self, record: bytes) -> list[str]:
        try:
            (cells,) = csv.reader([record.decode().rstrip("\r\n")], delimiter=self._sep.decode())
        except (csv.Error, ValueError):
            raise ValueError(f"{self.path}: row {self._row} has no names of columns") from None
        return [cell.strip() for cell in cells]

    def __iter__(self) -> Iterator[Block]:
        return self._blocks()

    def _blocks(self, one: bool = False) -> Iterator[Block]:
        """Blocks of whole records; of one record alone if `one`."""
        pending: list[bytes] = []  # the lines of a record in which a quote is still open
        size = min(LONGEST, max(BLOCK, BLOCK_PER_COLUMN * len(self.header)))
        while True:
            end = self._text.find("\n") if one else self._text.rfind("\n")
            if end < 0 and self._more(size):
                continue
            end = len(self._text) if end < 0 else end + 1
            lines, self._text = self._text[:end], self._text[end:]
            if not lines:
                break
            if (block := self._block(lines.encode(), pending)).rows:
                yield block
                if one:
                    return
        if pending:
            raise ValueError(f"{self.path}: row {self._row} {UNCLOSED}")

    def _block(self, text: bytes, pending: list[bytes]) -> Block:
        """The records that end in these lines."""
        quoted = bool(pending) or b'"' in text
        comments = self._comment and (
            text.startswith(self._comment) or b"\n" + self._comment in text
        )
        empty = b"\n\n" in text or b"\n\r\n" in text or text[:1] in b"\r\n"
        if not (quoted or comments or empty or text.count(b"\r") > text.count(b"\r\n")):
            first, self._row = self._row + 1, self._row + text.count(b"\n")
            self._row += not text.endswith(b"\n")
            return Block(text, False, range(first, self._row + 1))
        kept, rows = [], []
        for line in text.splitlines(keepends=True):
            record = line.rstrip(b"\r\n")
            if pending:
                pending.append(line)
                if b'"' not in record and len(pending) <= LONGEST_CELL:
                    continue
                record = b"".join(pending).rstrip(b"\r\n")
            else:
                self._row += 1
                if not record:
                    continue
                if self._comment and record.startswith(self._comment):
                    self.skipped += 1
                    continue
            if b'"' in record and not self._whole.fullmatch(record):
                if not self._open.fullmatch(record) or len(pending) > LONGEST_CELL:
                    raise ValueError(f"{self.path}: row {self._row} {UNCLOSED}")
                pending[:] = pending or [line]
                continue
            pending.clear()
            if b' "' in record or b'" ' in record:
                record = self._blanks.sub(rb"\1\2", record)
            kept.append(record)
            rows.append(self._row)
        return Block(b"\n".join(kept) + b"\n", quoted, rows)
