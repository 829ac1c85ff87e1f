"""The command line: its output, exit statuses, one line for an error, completion."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import types

import click
import numpy as np
import pytest
from helpers.commands import COMMAND, failing
from helpers.repository import ROOT

import fastbp as fb
from fastbp import demo
from fastbp.cli.commands import commands, main

DOCUMENT = ROOT / "docs" / "command_line.md"


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
