"""CSV tables: what is read, refused and recognised, and what a model keeps of it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings, strategies as st

import fastbp as fb
from fastbp.cli.tables.fitting import fit_table, recognise, split
from fastbp.cli.tables.model import LOSSES, TableModel, Target
from fastbp.cli.tables.reading import BLOCK_ROWS, MAX_LEVELS, Column, encode, open_table

FLOAT64 = np.dtype(np.float64)


def write(path, rows, **options):
    """A CSV file of these rows, the header first."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows(rows)
    return str(path)


def read(path, *columns, delimiter=","):
    """The columns of the file, all of them by default, by name."""
    with open_table(path, delimiter) as table:
        columns = columns or [Column(name) for name in table.names]
        table.read(columns)
    return {column.name: column for column in columns}


def texts(column):
    return [column.field.levels[code] for code in column.values]


# Reading.


def test_numbers_and_texts(tmp_path):
    rows = [["a", "b"], ["1", "x"], [" 2.5e3 ", " y"], ["-.5", "x"]]
    columns = read(write(tmp_path / "t.csv", rows))
    assert columns["a"].values.tolist() == [1.0, 2500.0, -0.5]
    assert not columns["a"].is_text and columns["a"].field.levels is None
    assert columns["b"].values.tolist() == [0, 1, 0] and columns["b"].field.levels == ("x", "y")


@settings(max_examples=25)
@given(st.data())
def test_what_was_written_is_read(tmp_path, data):
    n = data.draw(st.sampled_from([1, 3, BLOCK_ROWS - 1, BLOCK_ROWS, 2 * BLOCK_ROWS + 1]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    numbers = rng.standard_normal(n) * 10.0 ** rng.integers(-300, 300, n)
    text = st.text(
        st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp", "N"]), min_size=1
    )
    words = [*data.draw(st.lists(text, min_size=2, max_size=9, unique=True)), 'a "b", c\nd']
    # Words that Python reads as numbers, such as "inf".
    words = [w for w in words if w.lower() not in ("inf", "infinity", "nan")]
    chosen = [words[k] for k in rng.integers(0, len(words), n)]
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    header = [["number", "text"]]
    path = write(
        tmp_path / "t.csv", header + list(zip(numbers, chosen, strict=True)), lineterminator=end
    )
    columns = read(path)
    assert np.array_equal(columns["number"].values, numbers)
    assert texts(columns["text"]) == chosen
    assert columns["text"].field.levels == tuple(sorted(set(chosen)))


def test_other_delimiters_a_byte_order_mark_and_empty_lines(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffgröße; b\r\n1;2\r\n\r\n3;4\r\n\r\n".encode())
    columns = read(path, delimiter=";")
    assert columns["größe"].values.tolist() == [1, 3] and columns["b"].values.tolist() == [2, 4]


def test_more_empty_lines_than_a_block(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "\n" * (BLOCK_ROWS + 5) + "1,2\n", encoding="utf-8")
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
        ("", "empty"), ("  ", "empty"), ("abc", "'abc'"), ("1,5", "'1,5'"), ("1_000", "'1_000'"),
        ("nan", "'nan'"), ("-inf", "'-inf'"), ("1e999", "'1e999'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("row", [2, 5, BLOCK_ROWS + 7])
def test_cells_that_are_no_finite_numbers(tmp_path, cell, shown, row):
    rows = [["a", "b"]] + [["1", "2"]] * (BLOCK_ROWS + 20)
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
    assert len(read(write(tmp_path / "t.csv", [["a"], *names[1:]]))["a"].field.levels) == MAX_LEVELS
    with pytest.raises(ValueError, match=f"column 'a' is of texts.*more than {MAX_LEVELS}"):
        read(write(tmp_path / "t.csv", [["a"], *names]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty in row 1, expected a header"),
        (b"\n\n", "is empty in row 1"),
        (b"a,b\n", "has a header and no rows"),
        (b"a,b\n\n\n", "has a header and no rows"),
        (b"1,2\n3,4\n", "has numbers in row 1"),
        (b"a,b,a\n1,2,3\n", "two columns named 'a', 1 and 3"),
        (b"a,b\n1,2,3\n", "row 2 has 3 cells, expected 2"),
        (b"a,b\n1\n", "row 2 has 1 cell, expected 2"),
        (b"a;b\n1;2\n", "if ';' separates its cells, say --delimiter ';'"),
        (b"a\tb\n1\t2\n", "say --delimiter tab"),
        (b'a,b\n1,"2\n', "line 2: unexpected end of data"),
        (b'a,b\n1,"2"3\n', "line 2: "),
        ("größe\n1\n".encode("latin-1"), "is not UTF-8 text (byte 0xf6 in line 1"),
        ("a,b\n1,2\n".encode("utf-16"), "is not UTF-8 text (byte 0xff"),
        (b"PK\x03\x04\x14\x00\x08\x88\x99", "is not UTF-8 text"),
        (b"a\n" + b"x" * 200_000, "line 2: field larger than field limit"),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, words):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert words in str(caught.value) and str(caught.value).startswith(str(path))


def test_encoding(tmp_path):
    rows = [["a", "b", "c"], ["1", "x", "4"], ["2", "z", "5"], ["3", "y", "6"], ["4", "x", "7"]]
    columns = read(write(tmp_path / "t.csv", rows))
    parts = [np.array([1, 3]), np.array([], int), np.array([0])]
    X, none, first = encode(list(columns.values()), parts, np.dtype(np.float32))
    assert X.dtype == np.float32 and X.tolist() == [[2, 0, 0, 1, 5], [4, 1, 0, 0, 7]]
    assert none.shape == (0, 5) and first.tolist() == [[1, 1, 0, 0, 4]]


# The task.


def column_of(values):
    column = Column("t")
    column.extend([str(v) for v in values])
    return column


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([0, 1, 1, 0], (0, 1)),
        ([3.0, -1.0, 3.0, -1.0], (-1, 3)),
        (["b", "a", "b"], ("a", "b")),
        (list(range(10)) * 2, tuple(range(10))),
        (list(range(11)) * 9, None),
        ([1, 2, 3], None),  # fewer than two rows each
        ([0.5, 1, 0.5, 1], None),
    ],
)
def test_recognised_tasks(values, classes):
    target = recognise([column_of(values)], "auto", None)
    assert target == Target(("t",), "softmax_ce" if classes else "mse", classes)
    assert all(type(c) in (int, str) for c in target.classes or ())


def test_tasks_that_were_asked_for():
    whole, broken = column_of([0, 1, 1, 0]), column_of([0.5, 1, 0.5])
    assert recognise([whole], "regression", None).loss == "mse"
    assert recognise([whole], "auto", "quantile:0.9").classes is None
    assert recognise([broken], "classification", None).classes == (0.5, 1)
    assert recognise([column_of([1, 2, 3])], "auto", "softmax_ce").classes == (1, 2, 3)
    assert recognise([whole, whole], "auto", None).task == "regression"


@pytest.mark.parametrize(
    ("values", "task", "loss", "words"),
    [
        ([[1, 1, 1, 1]], "auto", None, "'t' is 1 in every row, expected at least 2 classes"),
        ([["a", "a"]], "auto", None, "'t' is 'a' in every row"),
        ([[2.5, 2.5]], "auto", None, "'t' is 2.5 in every row: nothing to learn"),
        ([["a", "b"]], "regression", None, "'t' is of texts"),
        ([["a", "b"]], "auto", "mse", "'t' is of texts"),
        ([["a", "b"], [1, 2]], "auto", None, "'t' is of texts"),
        ([[1, 2], [1, 2]], "classification", None, "classification takes one"),
        ([[1, 2, 3, 1]], "auto", "bce_logits", "3 classes, and loss 'bce_logits' expects 2"),
        ([range(MAX_LEVELS + 1)], "classification", None, f"{MAX_LEVELS + 1} different numbers"),
        ([[1, -2]], "auto", "poisson", "holds -2, and loss 'poisson' expects counts"),
        ([[1, 2]], "auto", "mes", "unknown loss 'mes'.*did you mean 'mse'"),
        ([[1, 2]], "auto", "mse:2", "'mse' takes no number"),
        ([[1, 2]], "auto", "quantile:x", "loss is 'quantile:x': could not convert"),
        ([[1, 2]], "auto", "quantile:2", "loss is 'quantile:2': tau is 2.0"),
        ([[1, 2]], "regression", "softmax_ce", "for classification, and the task is regression"),
        ([[1, 2]], "classification", "mae", "for regression, and the task is classification"),
    ],
)  # fmt: skip
def test_contradictions(values, task, loss, words):
    with pytest.raises(ValueError, match=words):
        recognise([column_of(v) for v in values], task, loss)


def test_split():
    order = np.random.default_rng(5).permutation(50)
    train, valid, test = split(50, 0.2, 0.1, 5)
    assert test.tolist() == sorted(order[:10]) and valid.tolist() == sorted(order[10:15])
    assert train.tolist() == sorted(order[15:])
    train, valid, test = split(4, 0.01, 0, 5)
    assert len(test) == 1 and len(valid) == 0 and len(train) == 3


@pytest.mark.parametrize(
    ("n", "test", "validation", "words"),
    [
        (10, 1.0, 0, r"test is 1, expected a share of the rows in \[0, 1\)"),
        (10, 0, -0.1, "validation is -0.1"),
        (10, np.nan, 0, "test is nan"),
        (10, 0.5, 0.5, "leave none to train on"),
        (1, 0.2, 0, "of 1 rows leave none"),
    ],
)
def test_shares_that_cannot_be(n, test, validation, words):
    with pytest.raises(ValueError, match=words):
        split(n, test, validation, 0)


# Fitting. What the command does is compared with the same done by hand in NumPy.


N = 60


@pytest.fixture
def flats(tmp_path, rng):
    """A table of numbers and texts; its columns as arrays."""
    data = {
        "area": rng.uniform(20, 150, N),
        "district": rng.choice(["west", "centre", "north"], N),
        "floor": rng.integers(0, 6, N),
    }
    data["price"] = 5 * data["area"] + 100 * (data["district"] == "centre") + data["floor"]
    data["rent"] = -3 * data["area"] + rng.standard_normal(N)
    data["rooms"] = rng.poisson(3, N)
    data["kind"] = np.where(
        data["area"] > 100, "large", np.where(data["area"] > 60, "some", "tiny")
    )
    data["sunny"] = (data["area"] + 20 * data["floor"] > 120).astype(int)
    rows = zip(*(column.tolist() for column in data.values()), strict=True)
    return write(tmp_path / "flats.csv", [list(data), *rows]), data


def by_hand(data):
    """The inputs of the columns area, district and floor."""
    one_hot = (data["district"][:, None] == ["centre", "north", "west"]).astype(float)
    return np.column_stack([data["area"], one_hot, data["floor"]])


FEATURES = ["area", "district", "floor"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_fit_is_the_fit_of_the_same_rows(flats, dtype):
    path, data = flats
    order = np.random.default_rng(3).permutation(N)
    test, valid, train = np.split(order, [12, 18])
    X, y = by_hand(data).astype(dtype), data["price"][:, None]
    train, valid, test = np.sort(train), np.sort(valid), np.sort(test)
    options = {"epochs": 7, "l2": 1e-3, "scale": "standard", "patience": 3}
    expected = fb.fit(
        fb.Network.mlp([5, 4, 1], "relu", dtype=dtype), X[train], y[train], seed=3,
        validation=(X[valid], y[valid]), **options,
    )  # fmt: skip
    model, result, (X_test, y_test) = fit_table(
        path, ["price"], features=FEATURES, hidden=[4], activation="relu", dtype=dtype, seed=3,
        validation=0.1, **options,
    )  # fmt: skip
    assert np.array_equal(result.params, expected.params)
    assert np.array_equal(X_test, X[test]) and np.array_equal(y_test, y[test])
    assert model.training["score"] == {
        "rows": "held-out",
        "name": "R2",
        "value": pytest.approx(expected.score(X[test], y[test]), rel=1e-5),
        "loss": expected.net.value(expected.params, X[test], y[test]),
    }
    assert model.training["rows"] == {"training": 42, "validation": 6, "held-out": 12}


def test_scores_the_training_rows_if_none_are_held_out(flats):
    path, data = flats
    model, result, held_out = fit_table(path, ["rent"], features=FEATURES, test=0, epochs=1, seed=1)
    assert len(held_out[0]) == 0 and model.training["score"]["rows"] == "training"
    assert model.training["score"]["value"] == pytest.approx(
        result.score(by_hand(data), data["rent"][:, None]), rel=1e-9
    )


def test_the_score_of_one_row_of_numbers_is_not_defined(flats):
    model, _, _ = fit_table(flats[0], ["rent"], test=0.01, epochs=1, seed=1)
    assert model.training["score"]["value"] is None
    json.dumps(model.training, allow_nan=False)


CASES = [
    (["rent", "price"], "mse"), (["rent"], "half_mse"), (["rent"], "sse"), (["rent"], "mae"),
    (["rent"], "huber"), (["rent"], "huber:0.3"), (["rent"], "log_cosh"), (["rent"], "quantile"),
    (["rent"], "quantile:0.9"), (["rooms"], "poisson"), (["rent", "price"], "gaussian_nll"),
    (["kind"], "softmax_ce"), (["sunny"], "softmax_ce"), (["sunny"], "bce_logits"),
]  # fmt: skip


def test_the_cases_are_all_losses():
    assert {loss.partition(":")[0] for _, loss in CASES} == {*sum(LOSSES.values(), ())}


@pytest.mark.parametrize(("names", "loss"), CASES)
def test_every_loss_saved_loaded_predicted_and_scored(flats, tmp_path, names, loss):
    path, data = flats
    model, result, held_out = fit_table(
        path, names, loss=loss, features=FEATURES, hidden=[4], epochs=30, seed=0
    )
    model.save(tmp_path / "m.safetensors")
    loaded = TableModel.load(tmp_path / "m.safetensors")
    assert loaded.features == model.features and loaded.target == model.target
    assert loaded.training == model.training and np.array_equal(loaded.params, model.params)
    Y = model.net.forward(model.params, by_hand(data))
    expected = {
        "softmax_ce": lambda: scipy.special.softmax(Y, axis=1),
        "bce_logits": lambda: np.hstack([scipy.special.expit(-Y), scipy.special.expit(Y)]),
        "poisson": lambda: np.exp(Y),
        "gaussian_nll": lambda: np.hstack([Y[:, :2], np.sqrt(np.exp(Y[:, 2:]))]),
    }.get(loss, lambda: Y)()
    predictions = loaded.predict(by_hand(data))
    assert predictions == pytest.approx(expected, rel=1e-12, abs=1e-300)
    assert len(loaded.target.prediction_names) == predictions.shape[1] + (
        loaded.target.classes is not None
    )
    # The score is that of FitResult, of the rows as read anew.
    X, y = held_out
    assert model.training["score"]["value"] == pytest.approx(result.score(X, y), rel=1e-9)
    columns = read(path, *loaded.columns(), *loaded.target.columns())
    (X,) = encode([columns[name] for name in FEATURES], [np.arange(N)], FLOAT64)
    assert np.array_equal(X, by_hand(data))
    y = loaded.target.values([columns[name] for name in names])
    assert loaded.target.score(predictions, y) == pytest.approx(result.score(X, y), rel=1e-9)


def test_probabilities_of_large_logits():
    target = Target(("t",), "bce_logits", (0, 1))
    p = target.predictions(np.array([[-800.0], [800.0], [0.0], [-40.0]]))
    assert p[:3].tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    assert p[3, 1] == pytest.approx(np.exp(-40.0), rel=1e-15)
    p = Target(("t",), "softmax_ce", (0, 1)).predictions(np.array([[800.0, 0.0]]))
    assert p.tolist() == [[1, 0]]


def test_classes_of_numbers_keep_their_values(flats, tmp_path):
    path = write(tmp_path / "t.csv", [["x", "y"]] + [[k, (7, -1)[k % 2]] for k in range(20)])
    model, _, _ = fit_table(path, ["y"], epochs=1, seed=0)
    assert model.target.classes == (-1, 7) and model.target.prediction_names[1:] == [
        "P(-1)",
        "P(7)",
    ]
    column = Column("y", "numbers")
    column.extend(["7.0", "-1"])
    assert model.target.values([column]).tolist() == [1, 0]
    column.extend(["5"])
    with pytest.raises(ValueError, match="column 'y' holds 5, expected one of the classes -1, 7"):
        model.target.values([column])


def test_chosen_columns(flats):
    path, _ = flats

    def features(**options):
        model = fit_table(path, ["rent"], epochs=1, seed=0, **options)[0]
        return [field.name for field in model.features]

    others = ["area", "district", "floor", "price", "rooms", "kind", "sunny"]
    assert features() == others
    assert features(drop=["price", "kind"]) == ["area", "district", "floor", "rooms", "sunny"]
    assert features(features=["floor", "area"]) == ["floor", "area"]
    assert features(features=["floor", "area"], drop=["area"]) == ["floor"]
    model = fit_table(path, ["rent"], epochs=1, seed=0, categorical=["floor"])[0]
    assert model.features[2].levels == ("0", "1", "2", "3", "4", "5")


def test_columns_without_a_name_are_left_out(tmp_path):
    rows = [["", "x", "y"]] + [[k, k / 3, k / 7] for k in range(9)]
    model = fit_table(write(tmp_path / "t.csv", rows), ["y"], epochs=1, seed=0)[0]
    assert [field.name for field in model.features] == ["x"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": []}, "no target is given, expected one or some of the columns 'area', 'dis"),
        ({"target": ["prize"]}, "unknown target 'prize'.*did you mean 'price'"),
        ({"target": ["rent", "rent"]}, "target 'rent' is named twice"),
        ({"features": ["are"]}, "unknown feature 'are'.*did you mean 'area'"),
        ({"features": ["rent"]}, "'rent' is both a feature and a target"),
        ({"drop": ["x"]}, "unknown column to drop 'x'"),
        ({"categorical": ["Floor"]}, "unknown categorical column 'Floor'.*did you mean 'floor'"),
        ({"features": ["area"], "drop": ["area"]}, "no column is left to predict rent from"),
        ({"dtype": "float16"}, "dtype is float16"),
        ({"activation": "thanh"}, "unknown activation 'thanh'"),
    ],
)
def test_columns_and_options_that_are_not_there(flats, options, words):
    with pytest.raises(ValueError, match=words):
        fit_table(flats[0], **({"target": ["rent"], "epochs": 1} | options))


def test_a_seed_is_drawn_and_kept(flats):
    first = fit_table(flats[0], ["rent"], epochs=1)[0]
    again = fit_table(flats[0], ["rent"], epochs=1, seed=first.training["seed"])[0]
    assert np.array_equal(first.params, again.params)
    assert first.training["seed"] != fit_table(flats[0], ["rent"], epochs=1)[0].training["seed"]


def test_files_that_hold_no_table_model(flats, tmp_path):
    path = tmp_path / "m.safetensors"
    net = fb.Network.mlp([2, 1])
    fb.save(path, net, net.init(seed=0))
    with pytest.raises(ValueError, match="knows no columns"):
        TableModel.load(path)
    good = {"features": [{"name": "a", "levels": None}, {"name": "b", "levels": None}]}
    good |= {"target": {"names": ["y"], "loss": "mse", "classes": None}, "training": {}}
    fb.save(path, net, net.init(seed=0), kind="table", **good)
    assert TableModel.load(path).target == Target(("y",), "mse")
    for damage in (
        {"features": good["features"][:1]},
        {"features": 5},
        {"target": {"names": ["y", "z"], "loss": "mse", "classes": None}},
        {"target": {}},
    ):
        fb.save(path, net, net.init(seed=0), kind="table", **(good | damage))
        with pytest.raises(ValueError, match="do not fit its network"):
            TableModel.load(path)


# Memory.

MEASURED = """
import sys
from fastbp.cli.tables.fitting import fit_table

def peak():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))

before = peak()
fit_table(sys.argv[1], ["y"], validation=0.1, epochs=1, seed=0, scale="standard")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells no peak memory")
@pytest.mark.skipif("c" not in fb.available_backends(), reason="others need more of their own")
def test_a_fit_takes_at_most_four_times_the_memory_of_the_numbers(tmp_path, rng):
    n, width = 200_000, 20
    block = rng.standard_normal((1000, width))
    text = "".join(",".join(map("{:.4f}".format, row)) + "\n" for row in block)
    with open(tmp_path / "t.csv", "w", encoding="utf-8") as file:
        file.write(",".join([*(f"x{k}" for k in range(width - 1)), "y"]) + "\n")
        file.writelines([text] * (n // len(block)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "t.csv"],
        env=os.environ | {"FASTBP_BACKEND": "c"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 4 * 8 * n * width
