"""Cases from the field: tables as people have them, and what the command line does with files.

Each case is a small file after a public report, with the right values by an independent route. A
table is read right or refused with the option that reads it; no number is read wrong in silence. To
add a case, write its bytes into FILES or REFUSED, or a test that runs the command.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from helpers.commands import COMMAND, failing
from helpers.tables import read, write

import fastbp as fb
from fastbp.cli.commands import main
from fastbp.cli.tables.cells import Notation
from fastbp.cli.tables.columns import Column
from fastbp.cli.tables.fitting import fit_table
from fastbp.cli.tables.model import TableModel
from fastbp.cli.tables.reading import open_table
from fastbp.cli.tables.text import Reading

PLAIN = b"a,b\n1.5,x\n-2,y\n"
IN_PLAIN = {"a": [1.5, -2], "b": ["x", "y"]}


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, PLAIN)
    return file.getvalue()


def parquet(**columns):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def content(column):
    """The values of a column as Python has them, None for gaps."""
    if column.is_text:
        return [column.levels[code] or None for code in column.values]
    return [None if np.isnan(value) else value for value in column.values]


# Files that are read without an option, or with those named.

FILES = {
    "gzip": (gzip.compress(PLAIN), {}, IN_PLAIN),
    "several gzip members": (gzip.compress(PLAIN[:8]) + gzip.compress(PLAIN[8:]), {}, IN_PLAIN),
    "bzip2": (bz2.compress(PLAIN), {}, IN_PLAIN),
    "xz": (lzma.compress(PLAIN), {}, IN_PLAIN),
    "zip": (zipped("data/t.csv"), {}, IN_PLAIN),
    "zip of a Mac": (zipped("t.csv", "__MACOSX/._t.csv"), {}, IN_PLAIN),
    "parquet": (parquet(a=[1.5, -2], b=["x", "y"]), {}, IN_PLAIN),
    "parquet of other types": (
        parquet(
            i=pa.array([1, 2], pa.int32()), f=pa.array([0.5, 2], pa.float32()),
            t=pa.array([True, False]), d=pa.array(["u", "v"]).dictionary_encode(),
            when=pa.array([0, 86400], pa.timestamp("s")),
            dec=pa.array(["1.50", "-2.25"]).cast(pa.decimal128(8, 2)),
        ),
        {},
        {"i": [1, 2], "f": [0.5, 2], "t": ["true", "false"], "d": ["u", "v"],
         "when": ["1970-01-01 00:00:00.000", "1970-01-02 00:00:00.000"], "dec": [1.5, -2.25]},
    ),
    "UTF-8 with a mark": (b"\xef\xbb\xbf" + PLAIN, {}, IN_PLAIN),
    "UTF-16 with a mark": (PLAIN.decode().encode("utf-16"), {}, IN_PLAIN),
    "UTF-16 without a mark": (PLAIN.decode().encode("utf-16-le"), {}, IN_PLAIN),
    "UTF-16, the other end first": (PLAIN.decode().encode("utf-16-be"), {}, IN_PLAIN),
    "UTF-16 of other letters": (
        "город,b\n1,ж\n2,ш\n".encode("utf-16-le"), {}, {"город": [1, 2], "b": ["ж", "ш"]}
    ),
    "UTF-32": (PLAIN.decode().encode("utf-32"), {}, IN_PLAIN),
    "latin-1": (
        "größe\n1\n2\n".encode("latin-1"), {"encoding": "latin-1"}, {"größe": [1, 2]}
    ),
    "cp1252": ("a,b\n1,5 €\n2,é\n".encode("cp1252"), {"encoding": "cp1252"},
               {"a": [1, 2], "b": ["5 €", "é"]}),
    "lines of Windows": (PLAIN.replace(b"\n", b"\r\n"), {}, IN_PLAIN),
    "lines of old Macs": (PLAIN.replace(b"\n", b"\r"), {}, IN_PLAIN),
    "no end of the last line": (PLAIN[:-1], {}, IN_PLAIN),
    "empty lines": (b"\n\na,b\n\n1.5,x\n\r\n-2,y\n\n", {}, IN_PLAIN),
    "semicolons": (PLAIN.replace(b",", b";"), {}, IN_PLAIN),
    "tabs": (PLAIN.replace(b",", b"\t"), {}, IN_PLAIN),
    "bars": (PLAIN.replace(b",", b"|"), {}, IN_PLAIN),
    "another separator": (PLAIN.replace(b",", b"^"), {"sep": "^"}, IN_PLAIN),
    "sep= of Excel": (b"sep=;\n" + PLAIN.replace(b",", b";"), {}, IN_PLAIN),
    "a comment above the header": (
        b'# 24 used cars, "all\n# of one model\n' + PLAIN, {}, IN_PLAIN
    ),
    "comments below": (
        b"a,b\n%no\n1.5,x\n-2,y\n%1,2\n", {"comment": "%"}, IN_PLAIN
    ),
    "a comment sign in a cell": (b'#z\na,b\n"#x\n#",1.5\n-2,#y\n#N/A,z\n', {"comment": "#z"},
                                 {"a": ["#x\n#", "-2", None], "b": ["1.5", "#y", "z"]}),
    "a header with a number sign": (b"#a,b\n1.5,x\n-2,y\n", {},
                                    {"#a": [1.5, -2], "b": ["x", "y"]}),
    "blanks before quotes": (
        b'n, what, w\n6, "Banana, 8 oz", 6.68\n7, "Kiwi", 1.5\n', {},
        {"n": [6, 7], "what": ["Banana, 8 oz", "Kiwi"], "w": [6.68, 1.5]},
    ),
    "quotes": (b'a,"b, c"\n"1.5","x ""y""\nz"\n"-2","5"" pipe"\n', {},
               {"a": [1.5, -2], "b, c": ['x "y"\nz', '5" pipe']}),
    "a quote within a cell": (b'a,b\n1,5" pipe\n2,6" pipe\n', {},
                              {"a": [1, 2], "b": ['5" pipe', '6" pipe']}),
    "no header": (b"1,x\n2,y\n", {"header": False}, {"c1": [1, 2], "c2": ["x", "y"]}),
    "numbers as names": (b"id,2019\n1,5\n2,6\n", {"header": True}, {"id": [1, 2], "2019": [5, 6]}),
    "decimal commas": (b"t;v\n10:05;28,7\n10:06;-3\n10:07;,5e-1\n", {"decimal": ","},
                       {"t": ["10:05", "10:06", "10:07"], "v": [28.7, -3, 0.05]}),
    "decimal commas and no header": (b"10:05;28,7\n10:06;28,8\n", {"decimal": ",", "header": False},
                                     {"c1": ["10:05", "10:06"], "c2": [28.7, 28.8]}),
    "decimal commas in quotes": (b'a,v\n1,"28,7"\n2,"3,0"\n', {"decimal": ","},
                                 {"a": [1, 2], "v": [28.7, 3]}),
    "thousands": (b'a,v\n1,"1,500"\n2,"2,000,000.5"\n3,7\n', {"thousands": ","},
                  {"a": [1, 2, 3], "v": [1500, 2000000.5, 7]}),
    "thousands and commas": (b"v\n1.500,5\n2\n", {"decimal": ",", "thousands": "."},
                             {"v": [1500.5, 2]}),
    "thousands of Swiss": (b"v\n1'500.5\n2\n", {"thousands": "'"}, {"v": [1500.5, 2]}),
    "thousands of spaces": ("v\n1 500\n1\u00a0000\u202f000\n".encode(), {"thousands": " "},
                            {"v": [1500, 1000000]}),
    "currency": (b'v,w\n$1.50,\xe2\x82\xac5\n-$20,\xe2\x82\xac 6\n', {},
                 {"v": [1.5, -20], "w": [5, 6]}),
    "percent": (b"v\n12%\n7.5 %\n", {}, {"v": [12, 7.5]}),
    "currency and commas": ("v\n1.500,00 €\n2,5 €\n".encode(), {"decimal": ",", "thousands": "."},
                            {"v": [1500, 2.5]}),
    "gaps first": (b"v\n" + b"NA\n" * 1000 + b"1.5\n" * 3, {}, {"v": [None] * 1000 + [1.5] * 3}),
    "gaps first, then texts": (b"v,w\n" + b"NA,1\n" * 1000 + b"x,1\n", {},
                               {"v": [None] * 1000 + ["x"], "w": [1] * 1001}),
    "all kinds of gaps": (b"v\n1\nnan\nNaN\nnull\n N/A \n#N/A\n\"\"\n?\n", {},
                          {"v": [1, *[None] * 7]}),
    "gaps among texts": (b"v,w\nGrvl,1\nnan,2\n,3\n", {}, {"v": ["Grvl", None, None],
                                                           "w": [1, 2, 3]}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_as_they_come(tmp_path, name):
    data, options, expected = FILES[name]
    path = tmp_path / "t"
    path.write_bytes(data)
    with_gaps = [Column(column, notation=notation(options), gaps="") for column in expected]
    columns = read(path, *with_gaps, **options)
    assert {name: content(column) for name, column in columns.items()} == expected


def notation(options):
    return Notation(options.get("decimal", "."), options.get("thousands", ""))


# Files that are refused, and what the message says.

REFUSED = {
    "two files in a zip": (zipped("a.csv", "b.csv"), {}, "holds 2 files, expected one"),
    "a workbook": (zipped("[Content_Types].xml"), {}, "save the sheet as CSV"),
    "latin-1 unsaid": ("a\ngröße\n".encode("latin-1"), {}, "--encoding cp1252 or latin-1"),
    "two currencies": ("v\n€5\n$6\n€7\n".encode(), {},
                       r"row 3.*'\$6', expected a finite number in €"),
    "currency here and there": (b"v\n$5\n6\n$7\n", {},
                                r"row 3.*'6', expected a finite number in \$"),
    "a point among decimal commas": (b"v\n1,5\n1.5\n2,5\n", {"decimal": ","}, "row 3.*'1.5'"),
    "thousands out of place": (b"v\n1500\n1,50\n1,500\n", {"sep": ";", "thousands": ","},
                               "row 3.*'1,50'"),
    "decimal commas among numbers": (b"v;w\n1;1\n2;1\n3,5;1\n", {}, "row 4.*'3,5'.*--decimal ,"),
    "a comment unsaid": (b"a,b\n1,2\n# no\n", {}, "row 3 has 1 cell, expected 2"),
    "used twice": (b"a,b,a\n1,2,3\n", {}, "two columns named 'a', 1 and 3.*--drop"),
    "a list": (parquet(a=[[1], [2]]), {}, "cannot be read as a table"),
    "more texts than groups": (b"v\n" + b"".join(b"%d,5\n" % k for k in range(300)), {"sep": ";"},
                               "more than 256 different ones.*say --decimal ,"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(tmp_path, name):
    data, options, words = REFUSED[name]
    path = tmp_path / "t"
    path.write_bytes(data)
    names = ["a", "b", "a"] if name == "used twice" else read_names(path, options)
    columns = [Column(column, notation=notation(options)) for column in names]
    with pytest.raises(ValueError, match=re.compile(words, re.S)):
        read(path, *columns, **options)


def read_names(path, options):
    try:
        with open_table(path, Reading(**options)) as table:
            return table.names
    except ValueError:
        return ["a"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sep": ";;"}, "--sep: ';;' is not one character"),
        ({"sep": "¦"}, "--sep"),
        ({"decimal": "x"}, "--decimal: 'x' is none of '.' ','"),
        ({"thousands": "_"}, "--thousands"),
        ({"decimal": ",", "thousands": ","}, "are both ','"),
        ({"comment": ""}, "--comment"),
        ({"encoding": "utf-7.5"}, "--encoding: Python knows no encoding 'utf-7.5'"),
        ({"encoding": "hex"}, "--encoding"),
        ({"missing": "median"}, "--missing"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Reading(**options)


# What looks like a mistake.


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fitted(capsys, *arguments):
    """What a fit printed, on stdout and on stderr."""
    assert main(["fit", *arguments, "--seed", "0"]) == 0
    return capsys.readouterr()


SENSOR = b"time;temp\n" + b"".join(b"2019-06-12 09:54:%02d;%d,7\n" % (k, 20 + k) for k in range(13))


def test_decimal_commas_read_as_texts_are_a_warning(capsys, here):
    Path("t.csv").write_bytes(SENSOR)
    out, err = fitted(capsys, "t.csv", "--target", "temp", "--epochs", "1")
    assert "column 'temp' is read as 13 texts such as '20,7'; if these are numbers, say" in err
    assert "--decimal ," in err and "has 13 classes in 13 rows" in err
    assert "column 'time' has 13 different texts in 13 rows" in err and "--drop" in err
    out, err = fitted(capsys, "t.csv", "--target", "temp", "--decimal", ",", "--epochs", "1")
    assert "temp: regression" in out and "'temp'" not in err


def test_predict_reads_as_the_fit_did(capsys, here):
    values = [1000.5 + 10 * k for k in range(30)]
    rows = [[f"{v:,.2f} €".translate(str.maketrans(",.", ".,")), k] for k, v in enumerate(values)]
    with open("t.csv", "w", encoding="cp1252", newline="") as file:
        csv.writer(file, delimiter=";").writerows([["v", "y"], *rows])
    asked = ("--decimal", ",", "--thousands", ".", "--encoding", "cp1252")
    out, err = fitted(capsys, "t.csv", "--target", "y", *asked, "--epochs", "2", "--json")
    assert err == ""
    printed = json.loads(out)
    assert printed["table"]["columns"]["v"] == "numbers, decimal comma, thousands '.', in €"
    assert printed["reading"] == {"decimal": ",", "thousands": ".", "encoding": "cp1252"}
    assert main(["predict", "model.safetensors", "t.csv"]) == 0
    predicted = [float(line) for line in capsys.readouterr().out.splitlines()[1:]]
    net, params, *_ = fb.load("model.safetensors")
    expected = net.forward(params, np.array(values)[:, None]).ravel()
    assert predicted == pytest.approx(expected, rel=1e-12)
    write("new.csv", [["v"], ["1000.5"]])
    predict = ("predict", "model.safetensors", "new.csv")
    assert "'1000.5', expected a finite number in €" in failing(capsys, *predict)
    write("new.csv", [["v"], ["1000.5 €"], ["1,010.5 €"]])
    asked = ("--decimal", ".", "--thousands", ",", "--encoding", "utf-8")
    assert main([*predict, *asked]) == 0
    predicted = [float(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert predicted == pytest.approx(expected[:2], rel=1e-12)


def test_thousands_are_a_warning(capsys, here):
    rows = [["v", "y"]] + [[f"{k},500", k] for k in range(1, 31)]
    write("t.csv", rows)
    _, err = fitted(capsys, "t.csv", "--target", "y", "--epochs", "1")
    assert "30 texts such as '1,500'; if these are numbers, say --decimal , or --thousands ," in err
    assert main(["fit", "t.csv", "--target", "v", "--task", "regression"]) == 2
    assert "--thousands ," in capsys.readouterr().err


def test_a_file_without_a_header_whose_first_row_is_of_texts(capsys, here):
    write("t.csv", [["p", "x", "n"], *[["p", "x", "s"], ["e", "y", "n"]] * 10])
    _, err = fitted(capsys, "t.csv", "--target", "n", "--epochs", "1")
    assert "column 'p' has its name among its texts; if row 1 is no header, say --no-header" in err
    out, err = fitted(capsys, "t.csv", "--target", "c3", "--no-header", "--epochs", "1")
    assert err == "" and "21 rows" in out and "no header" in out
    assert main(["predict", "model.safetensors", "t.csv"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("c3,P(n),P(s)\n") and "on 21 rows" in err


def test_codes_that_are_read_as_numbers(capsys, here):
    write("t.csv", [["x", "y"], *[[k, ("007", "12")[k % 2]] for k in range(30)]])
    _, err = fitted(capsys, "t.csv", "--target", "y", "--epochs", "1")
    assert "column 'y' has numbers with zeros before them, such as '007'" in err
    _, err = fitted(capsys, "t.csv", "--target", "y", "--categorical", "y", "--epochs", "1")
    assert err == "" and TableModel.load("model.safetensors").target.classes == ("007", "12")


def test_unused_duplicates_do_not_matter(capsys, here):
    write("t.csv", [["x", "z", "y", "z"], *[[k, 1, k / 3, 2] for k in range(20)]])
    line = failing(capsys, "fit", "t.csv", "--target", "y")
    assert "two columns named 'z', 2 and 4" in line
    fitted(capsys, "t.csv", "--target", "y", "--drop", "z", "--epochs", "1")
    fitted(capsys, "t.csv", "--target", "y", "--features", "x", "--epochs", "1")
    assert main(["predict", "model.safetensors", "t.csv"]) == 0


def test_every_choice_is_printed(capsys, here):
    write(
        "t.csv",
        [["n", "t", "g", "y"], *[[k, "uv"[k % 2], "" if k < 3 else k, k] for k in range(30)]],
    )
    out, _ = fitted(capsys, "t.csv", "--target", "y", "--missing", "mean", "--epochs", "1")
    for line in (
        "table     30 rows; cells separated by ',', UTF-8",
        "columns   n  numbers",
        "          t  2 texts: u, v",
        "          g  numbers; 3 gaps: mean",
        "          y  numbers",
    ):
        assert line in out.splitlines()


def test_a_wide_table_is_read_soon_and_printed_short(capsys, here):
    n = 20_000
    write("t.csv", [[f"c{k}" for k in range(n)], *np.random.default_rng(0).random((9, n)).round(3)])
    arguments = ["--target", "c7", "--epochs", "1", "--hidden", "2"]
    out, _ = fitted(capsys, "t.csv", *arguments)
    assert "columns   20000, all of numbers" in out and len(out) < 2000
    assert main(["info", "model.safetensors"]) == 0
    assert "19899 more, see --json" in capsys.readouterr().out
    line = failing(capsys, "fit", "t.csv", "--target", "no")
    assert len(line) < 3000


# Gaps.


def gappy(path, missing_target=False):
    """A table of 40 rows with gaps, and its columns; NaN and "" are the gaps."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(5, 2, 40), rng.normal(0, 1, 40)
    t = rng.choice(["u", "v"], 40).astype(object)
    x[::7], t[::5] = np.nan, ""
    if missing_target:
        y[:2] = np.nan
    shown = [["" if value != value else value for value in column] for column in (x, t, y)]
    write(path, [["x", "t", "y"], *zip(*shown, strict=True)])
    return x, t, y


def inputs(x, t, missing, mean):
    """The encoded features by hand."""
    filled, gap = np.where(np.isnan(x), mean, x), np.isnan(x).astype(float)
    texts = [t == "u", t == "v"] + [t == ""] * (missing != "drop")
    columns = [filled, *([gap] if missing == "category" else []), *texts]
    return np.column_stack(columns).astype(float)


@pytest.mark.parametrize("missing", ["drop", "mean", "category"])
def test_gaps_are_done_again_by_predict(capsys, here, missing):
    x, t, y = gappy("t.csv", missing_target=True)
    known = ~np.isnan(y)
    if missing == "drop":
        known &= ~np.isnan(x) & (t != "")
    rows = np.flatnonzero(known)
    arguments = ["--missing", missing, "--test", "0.25", "--epochs", "3", "--hidden", "4"]
    out, err = fitted(capsys, "t.csv", "--target", "y", *arguments)
    assert err == "" and f"{40 - len(rows)} with gaps left out" in out
    order = np.random.default_rng(0).permutation(len(rows))
    train = rows[np.sort(order[round(0.25 * len(rows)) :])]
    mean = np.nanmean(x[train])
    X = inputs(x, t, missing, mean)
    net = fb.Network.mlp([X.shape[1], 4, 1])
    expected = fb.fit(net, X[train], y[train], epochs=3, seed=0, scale="standard")
    model = TableModel.load("model.safetensors")
    assert model.params == pytest.approx(expected.params, rel=1e-9)

    assert main(["predict", "model.safetensors", "t.csv"]) == 0
    out, err = capsys.readouterr()
    predicted = [row[0] for row in csv.reader(io.StringIO(out))][1:]
    assert len(predicted) == 40
    if missing == "drop":
        gaps = np.isnan(x) | (t == "")
        assert [cell == "" for cell in predicted] == gaps.tolist()
        assert f"{gaps.sum()} rows have gaps and no prediction" in err
    else:
        gaps = np.zeros(40, bool)
        assert "gaps are filled as the fit did" in err
    numbers = np.array([float(cell) for cell in predicted if cell])
    assert numbers == pytest.approx(expected.predict(X[~gaps]).ravel(), rel=1e-9)


def test_gaps_are_an_error_by_default(capsys, here):
    gappy("t.csv")
    line = failing(capsys, "fit", "t.csv", "--target", "y")
    assert "row 2 of column 'x' is empty" in line and "--missing drop, mean or category" in line


def test_gaps_in_predict_alone(capsys, here):
    write("t.csv", [["x", "t", "y"], *[[k, "uv"[k % 2], k] for k in range(30)]])
    write("new.csv", [["x", "t"], [1, "u"], ["", "v"], [3, "NA"]])
    fitted(capsys, "t.csv", "--target", "y", "--epochs", "1", "--test", "0")
    predict = ("predict", "model.safetensors", "new.csv")
    assert "row 3 of column 'x' is empty" in failing(capsys, *predict)
    assert "fit with --missing category" in failing(capsys, *predict, "--missing", "category")
    assert main([*predict, "--missing", "drop"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[2:] == ['""', '""'] and "2 rows have gaps" in err
    line = failing(capsys, *predict, "--missing", "mean")
    assert "row 4 of column 't' is 'NA', a gap" in line and "without any" in line
    write("new.csv", [["x", "t"], [14.5, "u"], ["", "u"]])
    assert main([*predict, "--missing", "mean"]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first == second  # 14.5 is the mean


def test_a_column_of_gaps_alone(capsys, here):
    write("t.csv", [["x", "g", "y"], *[[k, "", k] for k in range(30)]])
    line = failing(capsys, "fit", "t.csv", "--target", "y", "--missing", "mean")
    assert "column 'g' has nothing but gaps" in line and "--drop" in line
    line = failing(capsys, "fit", "t.csv", "--target", "g", "--missing", "drop")
    assert "each row has a gap" in line
    fitted(capsys, "t.csv", "--target", "y", "--drop", "g", "--epochs", "1")


# Labels beyond 2^53.


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_large_labels_are_kept_apart(capsys, here, kind):
    labels = [9007199254740992 + k % 3 for k in range(30)]
    if kind == "csv":
        write("t", [["x", "y"], *[[k % 3, label] for k, label in enumerate(labels)]])
    else:
        Path("t").write_bytes(parquet(x=[k % 3 for k in range(30)], y=labels))
    fitted(capsys, "t", "--target", "y", "--method", "L-BFGS-B")
    assert TableModel.load("model.safetensors").target.classes == tuple(sorted({*labels}))
    assert main(["predict", "model.safetensors", "t"]) == 0
    out, err = capsys.readouterr()
    assert [int(row["y"]) for row in csv.DictReader(io.StringIO(out))] == labels
    assert "accuracy 1 on 30 rows" in err


@pytest.mark.parametrize("labels", [(2**63, 2**63 + 1), (2.0**60, 2.0**61)])
def test_labels_that_cannot_be_kept_apart_are_refused(capsys, here, labels):
    write("t.csv", [["x", "y"], *[[k, labels[k % 2]] for k in range(30)]])
    line = failing(capsys, "fit", "t.csv", "--target", "y", "--task", "classification")
    assert "--categorical" in line
    fitted(capsys, "t.csv", "--target", "y", "--categorical", "y", "--epochs", "1")


# The end of a fit.


def sine(path, n=200):
    x = np.linspace(0, 10, n)
    write(path, [["x", "y"], *zip(x, np.sin(x), strict=True)])


def test_a_fit_far_from_its_end_says_so(capsys, here):
    sine("t.csv")
    out, _ = fitted(capsys, "t.csv", "--target", "y")
    assert "the training is not at its end" in out
    assert "more --epochs, --method L-BFGS-B" in out
    out, _ = fitted(capsys, "t.csv", "--target", "y", "--method", "L-BFGS-B", "--epochs", "2000")
    assert "not at its end" not in out and float(re.search(r"R2 .*: (\S+)", out)[1]) > 0.99


def test_lm_on_the_command_line(capsys, here):
    sine("t.csv")
    out, err = fitted(capsys, "t.csv", "--target", "y", "--method", "lm")
    assert err == "" and re.search(r"^epoch +loss$", out, re.M)


# Outputs.


@pytest.fixture
def model(capsys, here):
    sine("t.csv", 30)
    fitted(capsys, "t.csv", "--target", "y", "--epochs", "1", "--out", "m.st")
    return here / "m.st"


def test_predictions_do_not_overwrite_models_or_data(capsys, model):
    os.link("m.st", "linked")
    os.symlink("t.csv", "other.csv")
    before = model.read_bytes(), Path("t.csv").read_bytes()
    fb.save("second.st", net := fb.Network.mlp([1, 1]), net.init(seed=0))
    for out in ("m.st", "linked", "t.csv", "other.csv", "./m.st", "second.st"):
        line = failing(capsys, "predict", "m.st", "t.csv", "--out", out)
        assert "name another file" in line
    assert before == (model.read_bytes(), Path("t.csv").read_bytes())
    line = failing(capsys, "fit", "t.csv", "--target", "y", "--out", "p.png", "--plot", "p.png")
    assert "which is the model" in line


@pytest.mark.skipif(sys.platform == "win32", reason="devices and modes are POSIX's")
def test_devices_pipes_and_modes_stay(capsys, model):
    for arguments in (
        ["predict", "m.st", "t.csv", "--out", os.devnull],
        ["fit", "t.csv", "--target", "y", "--epochs", "1", "--out", os.devnull],
    ):
        assert main(arguments) == 0
        assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        assert main(["predict", "m.st", "t.csv", "--out", "pipe"]) == 0
        assert len(reader.stdout.read().splitlines()) == 31
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    Path("p.csv").touch()
    for path, arguments in (
        ("p.csv", ["predict", "m.st", "t.csv", "--out", "p.csv"]),
        ("m.st", ["fit", "t.csv", "--target", "y", "--epochs", "1", "--out", "m.st"]),
    ):
        os.chmod(path, 0o600)
        assert main(arguments) == 0
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert not [name for name in os.listdir() if name.startswith(".fastbp")]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGPIPE")
def test_head_of_the_predictions(here, capsys):
    sine("t.csv", 30)
    fitted(capsys, "t.csv", "--target", "y", "--epochs", "1")
    sine("long.csv", 20_000)
    with subprocess.Popen(
        [*COMMAND, "predict", "model.safetensors", "long.csv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0 and "Error" not in err and "Broken" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev")
def test_data_through_a_pipe(here, capsys):
    sine("t.csv", 30)
    os.mkfifo("pipe")
    with subprocess.Popen(["cp", "t.csv", "pipe"]):
        out, _ = fitted(capsys, "pipe", "--target", "y", "--epochs", "1")
    assert "30 rows" in out


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no /dev/zero")
@pytest.mark.parametrize("endless", ["/dev/zero", "/dev/urandom"])
def test_endless_input(capsys, model, endless):
    failing(capsys, "fit", endless, "--target", "y")
    failing(capsys, "predict", "m.st", endless)
    failing(capsys, "info", endless)


def test_a_pipe_that_does_not_end(capsys, here, monkeypatch):
    monkeypatch.setattr("fastbp.cli.tables.text.ENDLESS", 1 << 22)
    os.mkfifo("pipe")
    with subprocess.Popen(["sh", "-c", "yes 1,2 > pipe"], stderr=subprocess.DEVNULL) as process:
        line = failing(capsys, "fit", "pipe", "--target", "c1", "--no-header")
        process.kill()
    assert "does not end" in line


def test_a_line_that_does_not_end(capsys, here, monkeypatch):
    monkeypatch.setattr("fastbp.cli.tables.text.LONGEST", 1 << 21)
    Path("t.csv").write_bytes(b"a" * (1 << 23))
    assert "more than 2 million characters" in failing(capsys, "fit", "t.csv", "--target", "a")


# Words.


def test_swapped_arguments(capsys, model):
    line = failing(capsys, "predict", "t.csv", "m.st")
    assert "swap them" in line


def test_control_characters_are_escaped(capsys, here):
    bad = "x\x1b[31m\u202e"
    write("t.csv", [[bad, "t\x07", "y"], *[[k, "u\x1b" if k % 2 else "v", k] for k in range(30)]])
    out, err = fitted(capsys, "t.csv", "--target", "y", "--epochs", "1")
    assert main(["info", "model.safetensors"]) == 0
    out += capsys.readouterr().out + err
    failing_line = failing(capsys, "fit", "t.csv", "--target", "z\x1b")
    for text in (out, failing_line):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
        assert "\\x1b" in text
    assert main(["info", "model.safetensors", "--json"]) == 0
    assert bad in json.loads(capsys.readouterr().out)["features"]


def test_the_words_of_info(capsys, model):
    assert main(["info", "m.st"]) == 0
    out = capsys.readouterr().out
    assert "None" not in out and "status     │ success" in out
    assert re.search(r"score +│ R2 \S+ on the held-out rows, loss", out)


def test_without_pyarrow(capsys, here, monkeypatch):
    sine("t.csv", 30)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    line = failing(capsys, "fit", "t.csv", "--target", "y")
    assert "pip install pyarrow" in line and "'tables'" in line
    assert not Path("model.safetensors").exists()
    assert main(["info"]) == 0


def test_info_of_a_model_needs_no_pyarrow(capsys, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["info", "m.st"]) == 0


def test_the_cars_of_the_demo_are_read():
    path = Path(fb.__file__).parent / "demo" / "cars.csv"
    table_fit = fit_table(str(path), ["price"], epochs=1, seed=0)
    assert table_fit.read.endswith("1 comment left out") and table_fit.warnings == []
