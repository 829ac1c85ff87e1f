"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastbp as fb
from fastbp import cli

ROOT = Path(__file__).parents[1]


def failure(capsys, *arguments):
    """The one line that a failing command leaves on stderr."""
    status = cli.main(arguments)
    out, err = capsys.readouterr()
    err = err.lstrip()  # click ends the line on which the terminal shows ^C
    assert err.startswith("fastbp: ") and err.count("\n") == 1 and "Traceback" not in out + err
    return status, err


def test_help_and_version(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("info", "demo", "bench"))
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastbp {fb.__version__}\n"


def test_info_is_the_configuration(capsys):
    assert cli.main(["info", "--json"]) == 0
    config = fb.show_config(mode="dicts")
    assert json.loads(capsys.readouterr().out) == config
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert config["versions"]["numpy"] in text and fb.get_backend() in text


def test_show_config_prints_what_it_returns(capsys):
    assert fb.show_config() is None
    text = capsys.readouterr().out
    for name, state in fb.show_config(mode="dicts")["backends"].items():
        assert f"{name}: {state}" in text
    with pytest.raises(ValueError, match="mode is 'json', expected"):
        fb.show_config("json")


def test_bench_times_every_backend(capsys):
    assert cli.main(["bench", "--quick", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["rows"]) > 8
    for row in result["rows"]:
        assert set(row["us"]) == {"by hand", *fb.available_backends()}
        assert all(0 < us < 1e6 for us in row["us"].values())


def test_errors_of_users_are_one_line_and_status_2(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for arguments, part in (
        (["inof"], "inof"),
        (["info", "--jsn"], "--jsn"),
        (["demo", "--backend", "nunba"], "did you mean 'numba'"),
        (["demo", "--out", str(file / "folder")], "cannot write into the folder"),
    ):
        status, err = failure(capsys, *arguments)
        assert status == 2 and part in err, arguments


def test_a_missing_extra_is_named(capsys, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "sklearn" else found(name, *a)
    )
    status, err = failure(capsys, "demo", "--out", str(tmp_path / "out"))
    assert status == 2 and "sklearn" in err and "pip install 'fastbp[demo]'" in err
    assert not (tmp_path / "out").exists()


def test_interrupting_ends_with_130(capsys, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fb, "show_config", interrupted)
    status, err = failure(capsys, "info")
    assert status == 130 and "interrupted" in err


def test_as_a_program():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fastbp"]
    done = subprocess.run(
        [*command, "info", "--json"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and json.loads(done.stdout)["backend"] in fb.available_backends()
    environment["FASTBP_BACKEND"] = "fortran"
    done = subprocess.run([*command, "info"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("fastbp: FASTBP_BACKEND: unknown backend 'fortran'")
    assert done.stderr.count("\n") == 1
