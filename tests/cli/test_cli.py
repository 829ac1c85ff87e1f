"""The command line: what it prints, its exit statuses, one line for an error."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import click
import numpy as np
import pytest
from helpers.repository import ROOT

import fastbp as fb
from fastbp import demo
from fastbp.cli import bench
from fastbp.cli.commands import commands, main
from fastbp.cli.workloads import TRAINING

COMMAND = [sys.executable, "-m", "fastbp"]
DOCUMENT = ROOT / "docs" / "command_line.md"


def failing(capsys, *arguments, status=2):
    """The one line on stderr of a command that must fail with this status."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastbp: ") and err.endswith("\n") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",), ("demo", "--help")])
def test_help(capsys, arguments):
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: fastbp") and err == ""


def test_version(capsys, monkeypatch):
    monkeypatch.setattr("fastbp.cli.commands.version", lambda: "1.2.3")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "fastbp 1.2.3\n"


def test_help_and_version_load_no_numpy():
    code = (
        "import sys, fastbp.cli\n"
        "fastbp.cli.main(['--help']), fastbp.cli.main(['--version'])\n"
        "fastbp.cli.main(['fit', '--help'])\n"
        "print([m for m in ('numpy', 'rich', 'numba', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("numpy", np.__version__, "backends", *fb.available_backends()):
        assert word in out


def test_info_as_json(capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == fb.show_config(mode="dicts")


def test_show_config_prints_what_it_returns(capsys):
    assert fb.show_config() is None
    text = capsys.readouterr().out
    for name, state in fb.show_config(mode="dicts")["backends"].items():
        assert f"{name}: {state}" in text
    with pytest.raises(ValueError, match="mode is 'json', expected"):
        fb.show_config("json")


def test_info_says_what_is_missing(capsys, monkeypatch):
    real = fb.backends.why_missing
    reason = "no C compiler was found [here]; install one"
    monkeypatch.setattr(fb.backends, "why_missing", lambda n: reason if n == "c" else real(n))
    with fb.use_backend("numpy"):
        assert main(["info"]) == 0
        assert reason in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inof"], ["inof"]),
        (["--jsn"], ["--jsn"]),
        (["bench", "--fast"], ["--fast"]),
        (["demo", "here"], ["here"]),
        (["demo", "--backend"], ["--backend"]),
        (["demo", "--backend", "nunba"], ["nunba", "did you mean 'numba'"]),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(capsys, arguments, words):
    line = failing(capsys, *arguments)
    assert all(word in line for word in words)


def test_folder_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        line = failing(capsys, "demo", "--out", str(folder))
        assert str(folder) in line and "--out" in line
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_missing_extra(capsys, monkeypatch, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    line = failing(capsys, "demo", "--out", str(tmp_path / "out"))
    assert missing in line and "pip install 'fastbp[demo]'" in line
    assert not (tmp_path / "out").exists()


def test_backend_that_cannot_run_here(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(fb.backends, "_loaded", {})
    monkeypatch.setattr(fb.backends, "why_missing", lambda name: "install it with: pip install it")
    line = failing(capsys, "demo", "--backend", "numba", "--out", str(tmp_path))
    assert "'numba' cannot run here" in line and "pip install it" in line


def test_wrong_environment_variable():
    done = subprocess.run(
        [*COMMAND, "info"],
        env=os.environ | {"FASTBP_BACKEND": "numpyy"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("fastbp: FASTBP_BACKEND: unknown backend 'numpyy'")
    assert done.stderr.count("\n") == 1 and "did you mean 'numpy'" in done.stderr


def test_disagreeing_backends_give_status_1(capsys, monkeypatch):
    report = {"jobs": {"digits": {"largest_difference": 1e-16}, "cars": {"largest_difference": 1}}}
    monkeypatch.setattr(demo, "run", lambda *_: report)
    assert "disagree by 1.0e+00 on cars" in failing(capsys, "demo", status=1)
    report["jobs"]["cars"]["largest_difference"] = np.nan
    assert "disagree by nan" in failing(capsys, "demo", status=1)
    report["jobs"]["cars"]["largest_difference"] = demo.AGREEMENT
    assert main(["demo"]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a single process")
def test_ctrl_c_gives_status_130(tmp_path):
    with subprocess.Popen(
        [*COMMAND, "demo", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline()  # it has begun
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "fastbp: interrupted"


def test_ctrl_c_in_any_command(capsys, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastbp.backends.configuration.show_config", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err.strip() == "fastbp: interrupted"


def test_ctrl_c_inside_a_fit_ends_the_demo(monkeypatch):
    from fastbp.demo import jobs

    monkeypatch.setattr("fastbp.fitting._fit.fit", lambda: types.SimpleNamespace(status=4))
    with pytest.raises(KeyboardInterrupt):
        jobs.fit()


# Fits to CSV files.


@pytest.fixture
def folder(tmp_path, monkeypatch, rng):
    """The current folder, with two files."""
    monkeypatch.chdir(tmp_path)
    km, age = rng.uniform(5, 250, 40), rng.integers(1, 15, 40)
    fuel = rng.choice(["petrol", "diesel"], 40)
    price = 20 - km / 20 - age / 2 + 2 * (fuel == "diesel")
    state = np.where(price > 12, "good", np.where(price > 6, "fair", "poor"))
    header = ["km", "age", "fuel", "price", "state"]
    rows = list(zip(km.tolist(), age.tolist(), fuel, price.tolist(), state, strict=True))
    with open("cars.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    with open("new.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fuel", "no", "km", "age"], ["diesel", 7, 90, 3]])
    return tmp_path


def fit(*arguments):
    return main(["fit", "cars.csv", "--seed", "0", "--epochs", "20", *arguments])


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
    told = json.loads(out)
    assert err == "" and told["model"] == "m.safetensors"
    assert told["features"] == {"km": "numbers", "age": "numbers", "fuel": ["diesel", "petrol"]}
    assert told["target"]["task"] == "regression" and told["target"]["columns"] == ["price"]
    assert len(told["history"]["loss"]) == told["training"]["epochs"] == 20
    assert told["training"]["score"]["name"] == "R2"
    assert told["training"]["rows"] == {"training": 32, "validation": 0, "held-out": 8}
    net, params, _, meta = fb.load("m.safetensors")
    assert (
        meta["training"] == told["training"] and net.sizes == told["network"]["sizes"] == "4-20-1"
    )
    assert params.shape == (told["network"]["parameters"],)


def test_fit_passes_its_options_on(monkeypatch, folder):
    given = {}

    def fit_table(path, **options):
        given.update(options)
        raise ValueError

    monkeypatch.setattr("fastbp.cli.tables.fitting.fit_table", fit_table)
    options = (
        "--hidden 3,2 --activation relu --loss mae --method sgd --lr 0.5 --batch-size all --l2 0.1 "
        "--l1 0.2 --scale none --test 0.3 --validation 0.1 --patience 4 --max-time 9 "
        "--dtype float32 --threads 2 --backend numpy --task regression --delimiter tab "
        "--target a,b --features c --drop d --categorical e"
    )
    fit(*options.split())
    assert given == {
        "hidden": (3, 2), "activation": "relu", "loss": "mae", "method": "sgd", "lr": 0.5,
        "batch_size": None, "l2": 0.1, "l1": 0.2, "test": 0.3, "validation": 0.1, "patience": 4,
        "max_time": 9.0, "dtype": "float32", "threads": 2, "backend": "numpy",
        "task": "regression", "delimiter": "\t", "target": ("a", "b"), "features": ("c",),
        "drop": ("d",), "categorical": ("e",), "seed": 0, "epochs": 20,
    }  # fmt: skip
    fit("--target", '"a, in m",b', "--hidden", "0", "--batch-size", "8")
    assert given["target"] == ("a, in m", "b") and given["hidden"] == ()
    assert given["batch_size"] == 8 and given["scale"] == "standard"


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
        ("km;age;fuel\n1;2;petrol\n", ["--delimiter ';'"]),
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
        (["--target", "price", "--delimiter", ";;"], ["--delimiter", "';;'", "one character"]),
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
    assert "not UTF-8 text" in failing(capsys, "fit", "net.safetensors", "--target", "price")


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
    told = json.loads(capsys.readouterr().out)
    assert told["target"]["classes"] == ["fair", "good", "poor"]
    assert told["training"]["rows"]["held-out"] == 8


def test_info_about_any_network(capsys, folder):
    net = fb.Network(2, fb.Dense(3, "relu", bias=False), fb.Dense(1))
    fb.save("m.safetensors", net, net.init(seed=0), {"step": 5}, note="by hand", limit=float("inf"))
    assert main(["info", "m.safetensors", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["network"]["layer 0"] == repr(net.layers[0]) and told["network"]["parameters"] == 10
    assert told["meta"] == {"note": "by hand", "limit": None} and told["state"] == ["step"]
    assert main(["info", "m.safetensors"]) == 0
    assert "by hand" in capsys.readouterr().out


# Completion.


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(capsys, shell):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert f"_FASTBP_COMPLETE={shell}_complete" in out and "fastbp" in out


def test_completion_of_an_unknown_shell(capsys):
    assert "'bash'" in failing(capsys, "completion", "powershell")


@pytest.mark.parametrize(
    ("words", "begun", "completed"),
    [
        (["fit", "cars.csv", "--method"], "ad", ["adam", "adamw", "adagrad"]),
        (["fit", "cars.csv", "--activation"], "sel", ["selu"]),
        (["fit", "cars.csv", "--loss"], "bce", ["bce_logits"]),
        (["fit", "cars.csv", "--target"], "", ["km", "age", "fuel", "price", "state"]),
        (["fit", "cars.csv", "--drop"], "km,p", ["km,price"]),
        (["fit", "no.csv", "--target"], "k", []),
        (["fit", "--target"], "k", []),
        (["fit", "cars.csv", "--task"], "r", ["regression"]),
        ([], "comp", ["completion"]),
    ],
)
def test_completions(folder, words, begun, completed):
    complete = click.shell_completion.ShellComplete(commands, {}, "fastbp", "_FASTBP_COMPLETE")
    assert [item.value for item in complete.get_completions(words, begun)] == completed


def test_completion_through_the_command(folder):
    done = subprocess.run(
        COMMAND,
        env=os.environ
        | {"_FASTBP_COMPLETE": "bash_complete", "COMP_CWORD": "2", "COMP_WORDS": "fastbp fit --pa"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "plain,--patience\n", done.stderr


# The documentation of it.


def console_blocks(text):
    """The commands of a document's console blocks, each with what it prints."""
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        for entry in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = entry.partition("\n")
            yield command, output


def alike(came, expected):
    """Whether two texts are the same but for times, backends and rounding."""
    pair = [re.sub(r"in \S+ s\b|backend \w+", "-", t).split() for t in (came, expected)]
    if len(pair[0]) != len(pair[1]):
        return False
    for a, b in zip(*pair, strict=True):
        try:
            if float(a.strip("();,")) != pytest.approx(float(b.strip("();,")), rel=2e-3):
                return False
        except ValueError:
            if a != b:
                return False
    return True


def test_documented_commands_print_what_is_documented(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = DOCUMENT.read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], {})  # writes the data
    blocks = list(console_blocks(text))
    assert len(blocks) == 3
    for command, expected in blocks:
        program, *arguments = command.split()
        assert program == "fastbp" and main(arguments) == 0, command
        out, err = capsys.readouterr()
        assert not expected or alike(out + err, expected), out + err


def test_all_options_are_documented():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in ("fit", "predict"):
        for option in commands.commands[name].params:
            if isinstance(option, click.Option):
                assert f"`{option.opts[0]}" in text or f" {option.opts[0]} " in text, option.opts


# The bench.


def test_bench_as_json(capsys):
    assert main(["bench", "--quick", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["what"] for row in rows} == {"relu layer, forward + backward", "training step"}
    for row in rows:
        assert list(row["us"]) == ["by hand", *fb.available_backends()]
        assert all(0 < us < 1e6 for us in row["us"].values())


def test_prints_where_the_encoding_lacks_characters():
    done = subprocess.run(
        [*COMMAND, "bench", "--quick"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "training step: ?s" in done.stdout and "slower than NumPy by hand" in done.stdout


def test_bench_marks_the_cells_that_lose(capsys):
    us = {"by hand": 10.0, "c": 2.0, "numba": 10.5, "numpy": 1234.0}
    bench._print([{"what": "step", "case": "1×2×3", "type": "f64", "us": us}], "One thread.")
    out = capsys.readouterr().out
    assert "2 ×5 " in out and "10.5 ×0.95!" in out and "1,234 ×0.0081!" in out


CASES = [
    pytest.param(calls, kind, id=f"{case} {kind}")
    for _, case, kind, _, calls in bench.cases(fb.available_backends(), quick=True)
]


@pytest.mark.parametrize(("calls", "kind"), CASES)
def test_what_bench_times_gives_the_same_results(calls, kind):
    results = {name: call() for name, call in calls.items()}
    expected = results.pop("by hand")
    tolerance = 1e-11 if kind == "f64" else 1e-4
    for result in results.values():
        if isinstance(result, fb.FitResult):
            result = result.params
        pairs = (
            zip(result, expected, strict=True)
            if isinstance(result, tuple)
            else [(result, expected)]
        )
        for a, b in pairs:
            assert a.dtype == b.dtype == {"f64": np.float64, "f32": np.float32}[kind]
            assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def test_the_layers_that_quick_leaves_out_are_right_too():
    everything = list(bench.cases((), quick=False))
    assert len(everything) == 2 * (len(bench.LAYERS) + len(bench.RUNS))
    for name in ("T5", "T6"):
        training = TRAINING[name]
        task = training.net("float64"), *training.data("float64", 4)
        by_hand = bench.train_by_hand(*task, **training.options(2))
        fitted = fb.fit(*task, seed=0, backend="numpy", **training.options(2)).params
        assert np.abs(by_hand - fitted).max() <= 1e-11
