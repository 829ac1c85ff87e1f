"""Fits to tables: the task that a column stands for, scores, and what a model stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from helpers.tables import cells, read, write

import fastbp as fb
from fastbp.cli.tables.columns import MAX_LEVELS, Column, encode
from fastbp.cli.tables.fitting import fit_table, recognise, split
from fastbp.cli.tables.model import LOSSES, REGRESSION, TableModel, Target

FLOAT64 = np.dtype(np.float64)


# The task.


def column_of(values):
    column = Column("t")
    column.extend(cells(values))
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
    model, result, (X_test, y_test), *_ = fit_table(
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
    model, result, held_out, *_ = fit_table(
        path, ["rent"], features=FEATURES, test=0, epochs=1, seed=1
    )
    assert len(held_out[0]) == 0 and model.training["score"]["rows"] == "training"
    assert model.training["score"]["value"] == pytest.approx(
        result.score(by_hand(data), data["rent"][:, None]), rel=1e-9
    )


def test_the_score_of_one_row_of_numbers_is_not_defined(flats):
    model, *_ = fit_table(flats[0], ["rent"], test=0.01, epochs=1, seed=1)
    assert model.training["score"]["value"] is None
    json.dumps(model.training, allow_nan=False)


CASES = [
    (["rent", "price"], "mse"), (["rent"], "half_mse"), (["rent"], "sse"), (["rent"], "mae"),
    (["rent"], "huber"), (["rent"], "huber:0.3"), (["rent"], "log_cosh"), (["rent"], "quantile"),
    (["rent"], "quantile:0.9"), (["rooms"], "poisson"), (["rent", "price"], "gaussian_nll"),
    (["kind"], "softmax_ce"), (["sunny"], "softmax_ce"), (["sunny"], "bce_logits"),
]  # fmt: skip
_DONE = {loss for _, loss in CASES}
CASES += [(["rooms"], loss) for loss in LOSSES[REGRESSION] if loss not in _DONE]


def test_the_cases_are_all_losses():
    assert {loss.partition(":")[0] for _, loss in CASES} == {*sum(LOSSES.values(), ())}


@pytest.mark.parametrize(("names", "loss"), CASES)
def test_every_loss_saved_loaded_predicted_and_scored(flats, tmp_path, names, loss):
    path, data = flats
    model, result, held_out, *_ = fit_table(
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
    reading = loaded.reading
    columns = read(path, *loaded.columns(reading), *loaded.target.columns(reading))
    chosen = [columns[name] for name in FEATURES]
    (X,) = encode(chosen, loaded.features, [np.arange(N)], FLOAT64)
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
    model, *_ = fit_table(path, ["y"], epochs=1, seed=0)
    assert model.target.classes == (-1, 7) and model.target.prediction_names[1:] == [
        "P(-1)",
        "P(7)",
    ]
    column = Column("y", "numbers")
    column.extend(cells(["7.0", "-1"]))
    assert model.target.values([column]).tolist() == [1, 0]
    column.extend(cells(["5"]))
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
    good |= {"reading": {"decimal": ",", "missing": "mean"}}
    fb.save(path, net, net.init(seed=0), kind="table", **good)
    assert TableModel.load(path).target == Target(("y",), "mse")
    for damage in (
        {"features": good["features"][:1]},
        {"features": 5},
        {"target": {"names": ["y", "z"], "loss": "mse", "classes": None}},
        {"target": {}},
        {"reading": {"decimal": "x"}},
        {"reading": {"deci": ","}},
        {"reading": 5},
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
def test_memory_of_a_fit_to_a_million_rows(tmp_path, rng):
    n, width = 1_000_000, 20
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
    assert int(done.stdout) <= 3.3 * 8 * n * width
