"""CSV tables: columns and matrices read from files, and errors for wrong files."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from helpers.tables import read, write
from hypothesis import given, settings, strategies as st

from fastbp.cli.tables.cells import GAPS
from fastbp.cli.tables.columns import MAX_LEVELS, Column, encode


def texts(column):
    return [column.levels[code] for code in column.values]


# Reading.


def test_numbers_and_texts(tmp_path):
    rows = [["a", "b"], ["1", "x"], [" 2.5e3 ", " y"], ["-.5", "x"]]
    columns = read(write(tmp_path / "t.csv", rows))
    assert columns["a"].values.tolist() == [1.0, 2500.0, -0.5]
    assert not columns["a"].is_text and columns["a"].levels == ()
    assert columns["b"].values.tolist() == [0, 1, 0] and columns["b"].levels == ("x", "y")


@settings(max_examples=25)
@given(st.data())
def test_what_was_written_is_read(tmp_path, data):
    n = data.draw(st.sampled_from([1, 3, 999, 1000, 2001]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    numbers = rng.standard_normal(n) * 10.0 ** rng.integers(-300, 300, n)
    text = st.text(
        st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp", "N"]), min_size=1
    )
    words = [*data.draw(st.lists(text, min_size=2, max_size=9, unique=True)), 'a "b", c\nd']
    words = [word for word in [*words, "inf", "NAN"] if word not in GAPS]
    chosen = [words[k] for k in rng.integers(0, len(words), n)]
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    header = [["number", "text"]]
    path = write(
        tmp_path / "t.csv", header + list(zip(numbers, chosen, strict=True)), lineterminator=end
    )
    columns = read(path)
    assert np.array_equal(columns["number"].values, numbers)
    assert texts(columns["text"]) == chosen
    assert columns["text"].levels == tuple(sorted(set(chosen)))


def test_other_delimiters_a_byte_order_mark_and_empty_lines(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffgröße; b\r\n1;2\r\n\r\n3;4\r\n\r\n".encode())
    columns = read(path, sep=";")
    assert columns["größe"].values.tolist() == [1, 3] and columns["b"].values.tolist() == [2, 4]


def test_more_empty_lines_than_a_block(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "\n" * (1005) + "1,2\n", encoding="utf-8")
    assert read(path)["a"].values.tolist() == [1.0]


def test_float32_columns(tmp_path):
    path = write(tmp_path / "t.csv", [["a"], ["0.1"], ["-3e38"]])
    values = read(path, Column("a", dtype=np.dtype(np.float32)))["a"].values
    assert values.dtype == np.float32 and np.array_equal(values, np.float32([0.1, -3e38]))


def test_the_first_block_decides_what_a_column_is(tmp_path):
    with pytest.raises(ValueError, match="row 3 of column 'number' is 'x'"):
        read(write(tmp_path / "t.csv", [["number"], ["1"], ["x"], ["2"]]))
    columns = read(write(tmp_path / "t.csv", [["text"], ["1"], ["x"]]))
    assert texts(columns["text"]) == ["1", "x"]
    asked = read(write(tmp_path / "t.csv", [["code"], ["07"], ["7"]]), Column("code", "texts"))
    assert texts(asked["code"]) == ["07", "7"]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("", "empty"), ("  ", "empty"), ("abc", "'abc'"), ("1,5,5", "'1,5,5'"),
        ("1_000", "'1_000'"), ("nan", "'nan', a gap"), (" NA", "'NA', a gap"), ("-inf", "'-inf'"),
        ("1e999", "'1e999'"), ("0x10", "'0x10'"), ("\u0661", "'\u0661'"), ("1 2", "'1 2'"),
        ("1.500,0.5", "'1.500,0.5'"), ("nan(1)", "'nan(1)'"), ("12%", "'12%'"), ("--1", "'--1'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("row", [2, 5, 1007])
def test_cells_that_are_no_finite_numbers(tmp_path, cell, shown, row):
    rows = [["a", "b"]] + [["1", "2"]] * (1020)
    rows[row - 1] = ["1", cell]
    path = write(tmp_path / "t.csv", rows)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: row {row} of column 'b' is {shown}, expected a finite number; correct it, fill "
        f"it or remove the row"
    )


def test_rows_are_counted_as_a_spreadsheet_does(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,"two\nlines"\n\n3,"x"\n,y\n5,z\n', encoding="utf-8")
    with pytest.raises(ValueError, match="row 5 of column 'a' is empty"):
        read(path)
    path.write_text("a,b\n1,x\n\n3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="row 4 has 1 cell, expected 2"):
        read(path)


def test_a_number_beyond_float32(tmp_path):
    path = write(tmp_path / "t.csv", [["a"], ["1"], ["1e39"]])
    assert read(path)["a"].values[1] == 1e39
    with pytest.raises(ValueError, match="row 3 of column 'a' is '1e39'"):
        read(path, Column("a", dtype=np.dtype(np.float32)))


def test_gaps_and_strangers_among_texts(tmp_path):
    path = write(tmp_path / "t.csv", [["a", "b"], ["x", "1"], ["y", "2"], ["", "3"]])
    with pytest.raises(ValueError, match="row 4 of column 'a' is empty, expected a text"):
        read(path)
    path = write(tmp_path / "t.csv", [["a"], ["red"], ["gren"]])
    with pytest.raises(ValueError, match=r"row 3 of column 'a'.*'gren'.*did you mean 'green'"):
        read(path, Column("a", "texts", ["green", "red"]))
    column = read(path, Column("a", "texts", ["green", "red"], optional=True))["a"]
    assert "row 3 of column 'a'" in column.fault


def test_too_many_texts(tmp_path):
    names = [[f"n{k}"] for k in range(MAX_LEVELS + 1)]
    assert len(read(write(tmp_path / "t.csv", [["a"], *names[1:]]))["a"].levels) == MAX_LEVELS
    with pytest.raises(ValueError, match=f"column 'a' is of texts.*more than {MAX_LEVELS}"):
        read(write(tmp_path / "t.csv", [["a"], *names]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty in row 1, expected a header"),
        (b"\n\n", "is empty in row 1"),
        (b"a,b\n", "has a header and no rows"),
        (b"a,b\n\n\n", "has a header and no rows"),
        (b"1,2\n3,4\n", "has numbers in row 1, such as 1, expected"),
        (b"5.1,3.5,Iris-setosa\n4.9,3.0,Iris-setosa\n", "say --no-header if there is none"),
        (b"a,b,a\n1,2,3\n", "two columns named 'a', 1 and 3"),
        (b"a,b\n1,2,3\n", "row 2 has 3 cells, expected 2"),
        (b"a,b\n1\n", "row 2 has 1 cell, expected 2"),
        (b"a,b;c\n1,2;3\n", "may be separated by ',' or ';'; say which: --sep"),
        (b'a,b\n1,"2\n', "row 2 has a cell that goes on after its closing quote, or a quote that"),
        (b'a,b\n1,"2"3\n', "row 2 has a cell that goes on after its closing quote"),
        (b'a,b\n1,"2\n' + b"4,5\n" * 20_000, "row 2 has a cell that goes on"),
        (b'a,b\n1,"2\n' + b'4,"5"\n' * 20, "row 2 has a cell that goes on"),
        ("größe\n1\n".encode("latin-1"), "is not UTF-8 text (byte 0xf6 in line 1"),
        ("a\nß\n".encode("cp1252"), "--encoding cp1252"),
        (b"PK\x03\x04\x14\x00\x08\x88\x99", "is no zip archive that can be read"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00", "is damaged or incomplete"),
        (gzip.compress(b"a,b\n" + b"1,2\n" * 999, mtime=0)[:-9], "is damaged or incomplete"),
        (b"PAR1 and more", "cannot be read as Parquet"),
        (bytes(5000), "holds zero bytes"),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, words):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert words in str(caught.value) and str(caught.value).startswith(str(path))


def test_the_separator_that_was_asked_for(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a;b\n1;2\n", encoding="utf-8")
    assert list(read(path)) == ["a", "b"]
    with pytest.raises(ValueError, match=r"has the one column 'a;b'; if ';' .* say --sep ';'"):
        read(path, sep=",")
    path.write_text("a\tb\n1\t2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="say --sep tab"):
        read(path, sep=",")


def test_encoding(tmp_path):
    rows = [["a", "b", "c"], ["1", "x", "4"], ["2", "z", "5"], ["3", "y", "6"], ["4", "x", "7"]]
    columns = read(write(tmp_path / "t.csv", rows))
    parts = [np.array([1, 3]), np.array([], int), np.array([0])]
    fields = [column.field(np.arange(4)) for column in columns.values()]
    X, none, first = encode(list(columns.values()), fields, parts, np.dtype(np.float32))
    assert X.dtype == np.float32 and X.tolist() == [[2, 0, 0, 1, 5], [4, 1, 0, 0, 7]]
    assert none.shape == (0, 5) and first.tolist() == [[1, 1, 0, 0, 4]]
