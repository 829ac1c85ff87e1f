"""`fastbp fit`, `predict` and `info` on CSV files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from helpers.commands import failing, fit

import fastbp as fb
from fastbp.cli.commands import main
from fastbp.cli.tables.text import Reading

# Fits to CSV files.


def test_fit_to_classes(capsys, folder):
    assert fit("--target", "state", "--drop", "price", "--validation", "0.2") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "state: classification, 3 classes: fair, good, poor" in out
    assert "24 training, 8 validation, 8 held-out; drawn with seed 0" in out
    assert re.search(r"^accuracy on the held-out rows: [01]", out, re.M)
    assert re.search(r"^best validation loss \S+ in epoch \d+$", out, re.M)
    assert "wrote the model to model.safetensors" in out
    epochs = [line.split() for line in out.splitlines() if re.match(r" +\d", line)]
    assert [int(row[0]) for row in epochs] == [1, 2, 5, 10, 20] and {*map(len, epochs)} == {3}


def test_fit_as_json(capsys, folder):
    assert fit("--target", "price", "--drop", "state", "--json", "--out", "m.safetensors") == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert err == "" and printed["model"] == "m.safetensors"
    assert printed["features"] == {"km": "numbers", "age": "numbers", "fuel": ["diesel", "petrol"]}
    assert printed["target"]["task"] == "regression" and printed["target"]["columns"] == ["price"]
    assert len(printed["history"]["loss"]) == printed["training"]["epochs"] == 20
    assert printed["training"]["score"]["name"] == "R2"
    assert printed["training"]["rows"] == {"training": 32, "validation": 0, "held-out": 8}
    net, params, _, meta = fb.load("m.safetensors")
    assert (
        meta["training"] == printed["training"]
        and net.sizes == printed["network"]["sizes"] == "4-20-1"
    )
    assert params.shape == (printed["network"]["parameters"],)


def test_fit_passes_its_options_on(monkeypatch, folder):
    passed = {}

    def fit_table(path, warn, **options):
        passed.update(options)
        raise ValueError

    monkeypatch.setattr("fastbp.cli.tables.fitting.fit_table", fit_table)
    options = (
        "--hidden 3,2 --activation relu --loss mae --method sgd --lr 0.5 --batch-size all --l2 0.1 "
        "--l1 0.2 --scale none --test 0.3 --validation 0.1 --patience 4 --max-time 9 "
        "--dtype float32 --threads 2 --backend numpy --task regression --sep tab "
        "--decimal , --missing mean "
        "--target a,b --features c --drop d --categorical e"
    )
    fit(*options.split())
    assert passed == {
        "hidden": (3, 2), "activation": "relu", "loss": "mae", "method": "sgd", "lr": 0.5,
        "batch_size": None, "l2": 0.1, "l1": 0.2, "test": 0.3, "validation": 0.1, "patience": 4,
        "max_time": 9.0, "dtype": "float32", "threads": 2, "backend": "numpy",
        "task": "regression", "reading": Reading(sep="\t", decimal=",", missing="mean"),
        "target": ("a", "b"), "features": ("c",), "drop": ("d",),
        "categorical": ("e",), "seed": 0, "epochs": 20,
    }  # fmt: skip
    fit("--target", '"a, in m",b', "--hidden", "0", "--batch-size", "8")
    assert passed["target"] == ("a, in m", "b") and passed["hidden"] == ()
    assert passed["batch_size"] == 8 and passed["scale"] == "standard"


def test_predict(capsys, folder):
    fit("--target", "price", "--drop", "state")
    capsys.readouterr()
    assert main(["predict", "model.safetensors", "new.csv"]) == 0
    out, err = capsys.readouterr()
    assert err == "fastbp: the model does not take 'no': ignored\n"
    net, params, *_ = fb.load("model.safetensors")
    header, value = out.splitlines()
    assert header == "price"
    assert float(value) == net.forward(params, [[90, 3, 1, 0]])[0, 0]  # diesel, petrol
    assert main(["predict", "model.safetensors", "cars.csv", "--out", "out.csv"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "R2 " in err and "on 40 rows" in err
    assert len(Path("out.csv").read_text().splitlines()) == 41


def test_predict_classes(capsys, folder):
    fit("--target", "state", "--drop", "price", "--dtype", "float32")
    capsys.readouterr()
    assert main(["predict", "model.safetensors", "cars.csv"]) == 0
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["state", "P(fair)", "P(good)", "P(poor)"]
    right = 0
    known_rows = csv.DictReader(io.StringIO(Path("cars.csv").read_text()))
    for row, known in zip(rows, known_rows, strict=True):
        p = {name: float(row[f"P({name})"]) for name in ("fair", "good", "poor")}
        assert sum(p.values()) == pytest.approx(1, rel=1e-6)
        assert p[row["state"]] == max(p.values())
        right += row["state"] == known["state"]
    assert f"accuracy {right / 40:.4g} on 40 rows" in err


@pytest.mark.parametrize(
    ("cell", "words"),
    [("", "row 3 of column 'price' is empty"), ("cheap", "row 3 of column 'price' is 'cheap'")],
)
def test_predict_where_the_target_has_gaps(capsys, folder, cell, words):
    fit("--target", "price", "--drop", "state")
    capsys.readouterr()
    Path("new.csv").write_text(
        f"km,age,fuel,price\n9,1,petrol,2\n8,2,diesel,{cell}\n7,3,petrol,1\n"
    )
    assert main(["predict", "model.safetensors", "new.csv"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4 and err.startswith("fastbp: no score: ") and words in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("km,fuel\n1,petrol\n", ["new.csv lacks 'age'; expected the columns"]),
        ("Km,Age,fuel\n1,2,petrol\n", ["lacks 'km' (it has 'Km'), 'age' (it has 'Age')"]),
        ("km,age,fuel\n1,2,petrol\n3,4,gas\n", ["row 3 of column 'fuel'", "'gas'", "'diesel'"]),
        ("km,age,fuel\n1,,petrol\n", ["row 2 of column 'age' is empty"]),
        ("km,age,fuel\n", ["no rows"]),
        ("km;age;fuel\n1;2;petrol,x\n", ["row 2 of column 'fuel'", "'petrol,x'"]),
    ],
)
def test_predict_for_other_columns(capsys, folder, content, words):
    fit("--target", "price", "--drop", "state")
    capsys.readouterr()
    Path("new.csv").write_text(content)
    line = failing(capsys, "predict", "model.safetensors", "new.csv", "--out", "out.csv")
    assert all(word in line for word in words)
    assert not Path("out.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no target is given", "'km', 'age', 'fuel', 'price', 'state'"]),
        (["--target", "prize"], ["'prize'", "did you mean 'price'"]),
        (["--target", '"price'], ["does not name columns"]),
        (["--target", "price,state"], ["'state' is of texts"]),
        (["--target", "price", "--task", "regresion"], ["'--task'", "'regression'"]),
        (["--target", "price", "--method", "adan"], ["'adan'", "did you mean 'adam'"]),
        (["--target", "price", "--loss", "hubber"], ["'hubber'", "did you mean 'huber'"]),
        (["--target", "price", "--activation", "rellu"], ["'rellu'", "did you mean 'relu'"]),
        (["--target", "price", "--backend", "nunba"], ["'nunba'", "did you mean 'numba'"]),
        (["--target", "price", "--hidden", "3,x"], ["--hidden", "'3,x'", "20,10"]),
        (["--target", "price", "--hidden", "3,0"], ["--hidden", "'3,0'"]),
        (["--target", "price", "--batch-size", "0"], ["--batch-size", "'0'", "auto or all"]),
        (["--target", "price", "--sep", ";;"], ["--sep", "';;'", "one character"]),
        (["--target", "price", "--lr", "-1"], ["lr is -1.0"]),
        (["--target", "price", "--test", "1"], ["test is 1,"]),
        (["--target", "price", "--seed", "-1"], ["--seed", "-1"]),
        (["--target", "price", "--lrate", "1"], ["--lrate", "--lr"]),
        (["--target", "price", "--out", "no/m"], ["--out", "there is no folder", "make it first"]),
        (["--target", "price", "--out", "./cars.csv"], ["--out", "the data themselves"]),
        (["--target", "price", "--plot", "p.xyz"], ["--plot", "'xyz'", "'png'"]),
        (["--target", "price", "--plot", "cars.csv"], ["--plot", "the data themselves"]),
    ],
)
def test_mistakes_in_a_fit(capsys, folder, arguments, words):
    before = Path("cars.csv").read_bytes()
    line = failing(capsys, "fit", "cars.csv", "--epochs", "1", *arguments)
    assert all(word in line for word in words), line
    assert sorted(os.listdir()) == ["cars.csv", "new.csv"]
    assert Path("cars.csv").read_bytes() == before


def test_files_that_are_not_there_or_not_such(capsys, folder):
    assert "nothing.csv" in failing(capsys, "fit", "nothing.csv", "--target", "a")
    assert "nothing" in failing(capsys, "predict", "nothing", "cars.csv")
    assert "nothing" in failing(capsys, "info", "nothing")
    for command in (["predict", "cars.csv", "cars.csv"], ["info", "cars.csv"]):
        assert "cars.csv is not a safetensors file" in failing(capsys, *command)
    net = fb.Network.mlp([2, 1])
    fb.save("net.safetensors", net, net.init(seed=0))
    assert "knows no columns" in failing(capsys, "predict", "net.safetensors", "cars.csv")
    assert "no text" in failing(capsys, "fit", "net.safetensors", "--target", "price")


def test_a_diverged_fit_writes_nothing_and_gives_status_1(capsys, folder):
    arguments = ["--target", "price", "--method", "sgd", "--lr", "1e9", "--plot", "p.png", "--json"]
    line = failing(capsys, "fit", "cars.csv", "--seed", "0", *arguments, status=1)
    assert "diverged" in line and "take a smaller rate" in line
    assert sorted(os.listdir()) == ["cars.csv", "new.csv"]


def test_ctrl_c_in_a_fit_writes_what_it_had_reached(capsys, monkeypatch, folder):
    def interrupt(epoch):
        if epoch.epoch == 3:
            signal.raise_signal(signal.SIGINT)

    def fit_until_then(*args, **options):
        return real(*args, **options, callbacks=[interrupt])

    from fastbp.cli.tables import fitting

    real = fitting.fit
    monkeypatch.setattr(fitting, "fit", fit_until_then)
    assert fit("--target", "price") == 130
    out, err = capsys.readouterr()
    assert err.strip() == "fastbp: interrupted" and "interrupted (Ctrl-C)" in out
    assert 0 < fb.load("model.safetensors").meta["training"]["epochs"] < 20


def test_plot(capsys, folder):
    assert fit("--target", "price", "--plot", "fit.png") == 0
    assert "wrote the plot to fit.png" in capsys.readouterr().out
    assert Path("fit.png").read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib(capsys, monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = failing(capsys, "fit", "cars.csv", "--target", "price", "--plot", "fit.png")
    assert "pip install 'fastbp[demo]'" in line and not Path("model.safetensors").exists()


def test_info_about_a_table_model(capsys, folder):
    fit("--target", "state", "--drop", "price")
    capsys.readouterr()
    assert main(["info", "model.safetensors"]) == 0
    out = capsys.readouterr().out
    for words in ("4-20-3", "Dense(20, 'tanh')", "diesel | petrol", "fair | good | poor", "seed"):
        assert words in out
    assert main(["info", "model.safetensors", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["target"]["classes"] == ["fair", "good", "poor"]
    assert printed["training"]["rows"]["held-out"] == 8


def test_info_about_any_network(capsys, folder):
    net = fb.Network(2, fb.Dense(3, "relu", bias=False), fb.Dense(1))
    fb.save("m.safetensors", net, net.init(seed=0), {"step": 5}, note="by hand", limit=float("inf"))
    assert main(["info", "m.safetensors", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (
        printed["network"]["layer 0"] == repr(net.layers[0])
        and printed["network"]["parameters"] == 10
    )
    assert printed["meta"] == {"note": "by hand", "limit": None} and printed["state"] == ["step"]
    assert main(["info", "m.safetensors"]) == 0
    assert "by hand" in capsys.readouterr().out
