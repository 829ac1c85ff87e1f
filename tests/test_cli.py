"""The command line: what it prints, its exit statuses, one line for an error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

import fastbp as fb
from fastbp import bench, demo
from fastbp.cli import main

COMMAND = [sys.executable, "-m", "fastbp"]


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
    monkeypatch.setitem(vars(fb), "__version__", "1.2.3")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "fastbp 1.2.3\n"


def test_help_and_version_load_no_numpy():
    code = (
        "import sys, fastbp.cli\n"
        "fastbp.cli.main(['--help']), fastbp.cli.main(['--version'])\n"
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

    monkeypatch.setattr(fb, "show_config", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err.strip() == "fastbp: interrupted"


def test_ctrl_c_inside_a_fit_ends_the_demo(monkeypatch):
    from fastbp.demo import jobs

    monkeypatch.setattr(fb, "fit", lambda: types.SimpleNamespace(status=4))
    with pytest.raises(KeyboardInterrupt):
        jobs.fit()


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
    assert len(everything) == 2 * (len(bench.LAYERS) + len(bench.TRAININGS))
    for sizes, activation, loss, method, batch_size, n, _ in bench.TRAININGS[4:]:
        rng = np.random.default_rng(2)
        net = fb.Network.mlp(sizes, activation)
        X, y = rng.standard_normal((n, sizes[0])), rng.standard_normal((n, sizes[-1]))
        y = y.argmax(axis=1) if loss == "softmax_ce" else y
        options = {"loss": loss, "method": method, "batch_size": batch_size, "epochs": 2}
        by_hand = bench.train_by_hand(net, X, y, **options)
        fitted = fb.fit(net, X, y, seed=0, backend="numpy", **options).params
        assert np.abs(by_hand - fitted).max() <= 1e-11
