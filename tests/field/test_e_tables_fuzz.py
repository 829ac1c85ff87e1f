"""Random tables in random dialects: read right or refused, and no number is wrong in silence."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import re
from decimal import Decimal

import numpy as np
import pytest
from helpers.tables import read
from hypothesis import given, settings, strategies as st

from fastbp.cli.tables import text as text_module
from fastbp.cli.tables.cells import GAPS, Notation
from fastbp.cli.tables.columns import Column
from fastbp.cli.tables.reading import open_table
from fastbp.cli.tables.text import Reading

EXAMPLES = 300
UNUSUAL = ["ü", "ж", "€", " ", "'", "#", "-", ",", ";", ".", "1", "\t", "|", '"', "\n", "\u00a0"]
TEXTS = st.text(st.sampled_from(list("abcXYZ") + UNUSUAL), min_size=1, max_size=5).filter(
    lambda t: t.strip() and t.strip() not in GAPS and re.search("[a-zж]", t)
)


@st.composite
def numbers(draw, decimal, thousands):
    """A number and the text that a program would write for it."""
    digits, scale = draw(st.integers(-(10**9), 10**9)), draw(st.integers(0, 6))
    value = Decimal(digits).scaleb(-scale)
    whole, point, fraction = f"{value:{',' if thousands else ''}f}".partition(".")
    text = whole.replace(",", thousands) + (decimal if point else "") + fraction
    return float(value), draw(st.sampled_from(["", "+"])) * (digits > 0) + text


@st.composite
def tables(draw):
    """A file, options that read it or none, and its columns as names, values and texts."""
    sep = draw(st.sampled_from([",", ";", "\t", "|"]))
    decimal, thousands = draw(
        st.sampled_from([(".", ""), (",", ""), (".", ","), (",", "."), (".", "'"), (",", " ")])
    )
    given = draw(st.booleans())
    if thousands == "." and not given:
        thousands = ""  # 1.500 alone is one and a half to anybody who knows no more
    n = draw(st.integers(1, 12))
    gap = st.sampled_from(GAPS)
    columns, cells = [], []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            value = numbers(decimal, thousands)
        else:
            value = TEXTS.map(lambda text: (text.strip(), text))
        value = st.one_of(value, gap.map(lambda g: (None, g))) if draw(st.booleans()) else value
        pairs = draw(st.lists(value, min_size=n, max_size=n))
        columns.append([value for value, _ in pairs])
        cells.append([text for _, text in pairs])
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    file = io.StringIO()
    names = [f"name {k}" for k in range(len(columns))]
    writer = csv.writer(file, delimiter=sep, quoting=quoting, lineterminator=end)
    writer.writerows([names, *zip(*cells, strict=True)])
    text = file.getvalue()
    if draw(st.booleans()) and quoting == csv.QUOTE_ALL:
        text = (
            re.sub(rf'(?<="){re.escape(sep)}(?=")', f"{sep} ", text) if _safe(cells, sep) else text
        )
    if draw(st.booleans()):
        text = f"# a comment, {sep} and more{end}" + text
    encodings = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
    data = text.encode(draw(st.sampled_from(encodings)))
    data = gzip.compress(data) if draw(st.booleans()) else data
    options = {"decimal": decimal, "thousands": thousands, "sep": sep} if given else {}
    return data, options, names, columns, cells


def _safe(cells, sep):
    """Whether a separator between two quotes is always one between two cells."""
    return not any('"' in cell for column in cells for cell in column)


@contextlib.contextmanager
def in_small_blocks(draw):
    """Read files in blocks that end anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "HEAD", draw(st.sampled_from([48, 1 << 16])))
        patch.setattr(text_module, "BLOCK", draw(st.sampled_from([1, 2, 7, 64, 1 << 20])))
        patch.setattr(text_module, "BLOCK_PER_COLUMN", 0)
        yield


def shown(column):
    """The values that were read, None for gaps."""
    if column.is_text:
        return [column.levels[code] or None for code in column.values]
    return [None if np.isnan(value) else value for value in column.values]


@settings(max_examples=EXAMPLES)
@given(tables(), st.data())
def test_tables_are_read_right_or_refused(tmp_path, table, drawn):
    data, options, names, columns, cells = table
    path = tmp_path / "t"
    path.write_bytes(data)
    notation = Notation(options.get("decimal", "."), options.get("thousands", ""))
    try:
        with (
            in_small_blocks(drawn.draw),
            open_table(path, Reading(**options)) as opened,
        ):
            result = [Column(name, notation=notation, gaps="") for name in opened.names]
            opened.read(result)
    except ValueError:
        return
    assert [column.name for column in result] == names
    for column, values, texts in zip(result, columns, cells, strict=True):
        # A column of numbers may be read as texts, of which a warning is printed; never as others.
        right = [values, [t.strip() if t.strip() not in GAPS else None for t in texts]]
        assert shown(column) in right, (column.name, texts)
        if options and not any(isinstance(value, str) for value in values):
            assert shown(column) == values or not column.is_text


def test_most_tables_are_read(tmp_path):
    """So that the test above does not pass by refusals."""
    outcomes = []

    @settings(max_examples=EXAMPLES)
    @given(tables())
    def count(table):
        data, options, names, *_ = table
        path = tmp_path / "t"
        path.write_bytes(data)
        notation = Notation(options.get("decimal", "."), options.get("thousands", ""))
        try:
            read(path, *[Column(name, notation=notation, gaps="") for name in names], **options)
            outcomes.append(True)
        except ValueError:
            outcomes.append(False)

    count()
    assert np.mean(outcomes) > 0.5


# Damaged files.

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
GOOD = 'n,t,m\n1.5,a,7\n-2,"b, ""c"" d",8\n3e5, "x",9\n4,"two\nlines",1\n'


def cells_by_python(text):
    """The rows of a file after Python's csv, without blanks around the cells and empty rows."""

    def rows(text):
        lines = io.StringIO(text, newline="")
        return list(csv.reader(lines, strict=True, skipinitialspace=True))

    try:
        found = rows(text)
    except csv.Error:  # Python's takes no blanks after quotes
        found = rows(re.sub(r'(?<=") +(?=[,\r\n]|$)', "", text))
    return [[cell.strip() for cell in row] for row in found if row]


@settings(max_examples=2 * EXAMPLES)
@given(st.data())
def test_damaged_files_are_read_right_or_refused(tmp_path, data):
    text = GOOD * data.draw(st.integers(1, 3))
    text = text.replace("n,t,m\n", "", text.count("n,t,m\n") - 1)
    text = "n,t,m\n" + text.replace("n,t,m\n", "")
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(6, len(text)))
        dropped = data.draw(st.integers(0, 3))
        added = data.draw(st.text(st.sampled_from('",\n\r 19.-e"x_'), max_size=2))
        text = text[:place] + added + text[place + dropped :]
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        with in_small_blocks(data.draw):
            columns = read(path, *[Column(name, gaps="") for name in "ntm"], sep=",")
    except ValueError:
        return
    header, *rows = cells_by_python(text)
    assert header == ["n", "t", "m"] and {len(row) for row in rows} == {3}
    for column, cells in zip(columns.values(), zip(*rows, strict=True), strict=True):
        if column.is_text:
            expected = [cell if cell not in GAPS else None for cell in cells]
        else:
            assert all(NUMBER.fullmatch(cell) or cell in GAPS for cell in cells)
            expected = [None if cell in GAPS else float(cell) for cell in cells]
        assert shown(column) == expected
