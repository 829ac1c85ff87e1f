"""Compilation ahead of use, and its messages."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers.repository import TESTS

import fastbp as fb
from fastbp import backends
from fastbp.cli import commands as cli
from fastbp.common import terminal as _terminal

if reason := backends.why_missing("numba"):
    pytest.skip(reason, allow_module_level=True)

from helpers.numba_backend import functions

from fastbp.backends.jit import caching, compile_notice, compiling


class Terminal(io.StringIO):
    def isatty(self):
        return True


# The line on stderr.


@pytest.fixture
def unused(monkeypatch):
    """As if nothing had been compiled in this process."""
    monkeypatch.setattr(compile_notice, "_spent", 0.0)
    monkeypatch.setattr(compile_notice, "_announced", False)


def compiles(seconds=1.0):
    compile_notice.begin("train")
    compile_notice.end()
    compile_notice._spent += seconds


LINE = "fastbp: compiling for Numba, once, some seconds; `fastbp warmup` does it ahead\n"


def test_a_terminal_gets_one_line(unused, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    compiles(0.4)
    compiles(0.05)
    compiles(0.1)
    assert sys.stderr.getvalue() == ""  # until then it was short
    for _ in range(3):
        compiles()
    assert sys.stderr.getvalue() == LINE


def test_a_log_gets_none(unused, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in range(3):
        compiles()
    assert sys.stderr.getvalue() == ""


def test_nothing_is_written_without_stderr(unused, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    for setting in ("auto", True):
        with _terminal.progress_shown(setting):
            compiles(), compiles()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("closed file")])
def test_a_lost_terminal_does_no_harm(unused, monkeypatch, error):
    class Lost(Terminal):
        def write(self, text):
            raise error

    monkeypatch.setattr(sys, "stderr", Lost())
    compiles(), compiles()


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
@pytest.mark.parametrize("setting", ["auto", True, False])
def test_the_progress_of_fit_rules_it(unused, monkeypatch, kind, setting):
    """The line follows `progress` as the bar does; a later call may write it."""
    monkeypatch.setattr(sys, "stderr", kind())
    X = np.ones((4, 1))
    fit = {"epochs": 2, "seed": 0, "callbacks": lambda _: compiles(), "backend": "numpy"}
    fb.fit(fb.Network(1, fb.Dense(1)), X, X, progress=setting, **fit)
    is_written = setting is True or (setting == "auto" and kind is Terminal)
    assert sys.stderr.getvalue().count("fastbp: compiling") == is_written
    compiles()
    assert sys.stderr.getvalue().count("fastbp: compiling") == (is_written or kind is Terminal)


@pytest.mark.parametrize("setting", [True, False])
def test_the_progress_of_multistart_rules_it(unused, monkeypatch, setting):
    """And not that of the fits inside, which show none."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    X = np.ones((4, 1))
    fit = {"epochs": 2, "callbacks": lambda *_: compiles(), "backend": "numpy"}
    fb.multistart(fb.Network(1, fb.Dense(1)), X, X, 2, seed=0, progress=setting, **fit)
    assert sys.stderr.getvalue().count("fastbp: compiling") == setting


def test_a_logger_hears_of_it(unused, monkeypatch, caplog):
    """The logger has the line once at INFO and each function at DEBUG; it is not printed then."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with caplog.at_level(logging.DEBUG, "fastbp"):
        compiles(), compiles(), compiles()
    messages = [(r.levelname, r.getMessage()) for r in caplog.records]
    line = LINE.strip().removeprefix("fastbp: ")
    one = ("DEBUG", "compiling train")
    assert messages == [one, one, ("INFO", line), one]
    assert sys.stderr.getvalue() == ""


def test_the_line_tells_if_nothing_can_be_kept(unused, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(caching, "folders", lambda: (tmp_path / "file",))
    monkeypatch.setattr(sys, "stderr", Terminal())
    compiles(), compiles()
    assert "in every process" in sys.stderr.getvalue()
    assert "set NUMBA_CACHE_DIR" in sys.stderr.getvalue()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals here")
def test_a_real_terminal(tmp_path):
    """The line appears where something is compiled, and not where it is loaded."""
    program = (
        "import fastbp as fb\n"
        "from fastbp.backends.jit import compile_notice as notice\n"
        "notice.QUIET_SECONDS = 0.01\n"
        "fb.activation('leaky_relu').f([1.0], backend='numba')\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for expected in (LINE, ""):
        ours, theirs = os.openpty()
        with subprocess.Popen(
            [sys.executable, "-c", program], stderr=theirs, env=environment
        ) as child:
            os.close(theirs)
            written = b""
            with open(ours, "rb", buffering=0) as terminal, suppress(OSError):
                while part := terminal.read(65536):
                    written += part
        assert child.returncode == 0
        assert written.decode().replace("\r\n", "\n") == expected


# Ahead of use.

USE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import numpy as np
import fastbp as fb
from helpers.strategies import case
from helpers.numba_backend import METHODS, functions, use_all
rng = np.random.default_rng(0)
for dtype in ("float64", "float32"):
    for loss, acts, method in (
        ("mse", ["tanh", "linear"], "adam"),
        ("softmax_ce", ["gelu", "mish", "silu", "linear"], "momentum"),
        ("huber", ["elu", "softplus", "sigmoid"], "rmsprop"),
    ):
        c = case(rng, [3, *range(4, 4 + len(acts))], acts, dtype, 12, loss)
        use_all(c, method, 5)
versions = [d for function in functions().values() for d in function.dispatchers.values()]
print(len(versions), sum(sum(d.stats.cache_misses.values()) for d in versions))
"""


def test_after_it_nothing_is_compiled(capsys):
    assert cli.main(["warmup"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    done = fb.warmup()
    assert out.startswith("compiled ") and out.endswith(f"they are kept in {done.folder}\n")
    assert done.compiled == 0 and done.found == len(list(compiling.versions(DTYPES)))
    used = subprocess.run(
        [sys.executable, "-c", USE],
        env=os.environ | {"FASTBP_BACKEND": "numba"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert used.returncode == 0, used.stderr
    versions, misses = map(int, used.stdout.split())
    assert versions > 60 and misses == 0


DTYPES = [np.dtype("float64"), np.dtype("float32")]


def test_it_knows_all_that_there_is():
    """Every entry, what entries call, every activation and loss."""
    from fastbp.backends.jit import activations, losses

    kinds = len(activations.FORMULAS) + 1 + len(losses.ELEMENTWISE) + len(losses._OTHERS)
    of_float32 = [function for function, _ in compiling.versions(DTYPES[1:])]
    of_float64 = [function for function, _ in compiling.versions(DTYPES[:1])]
    assert len(set(of_float64)) == len(of_float64)
    assert set(of_float64) - set(of_float32) == {functions()["descend"]}
    assert set(of_float64) == set(functions().values())
    assert len(of_float64) > kinds + 20


def test_a_dtype_of_ones_choice(monkeypatch):
    asked = []
    monkeypatch.setattr(compiling, "versions", lambda dtypes: asked.append(dtypes) or iter(()))
    for dtype in ("both", "float64", "float32"):
        fb.warmup(dtype)
    assert asked == [DTYPES, DTYPES[:1], DTYPES[1:]]
    with pytest.raises(ValueError, match="did you mean 'float32'"):
        fb.warmup("float3")
    with pytest.raises(ValueError, match="progress is 'yes', expected 'auto', True or False"):
        fb.warmup(progress="yes")


class Stub:
    """A stand-in for a compiled function."""

    def __init__(self, path, error=None):
        self.path, self.error = path, error

    def warm(self, dtype):
        return self, True


def test_the_bar(monkeypatch, tmp_path):
    stubs = [(Stub(tmp_path / "a.nbc"), np.dtype("f8"))] * 7
    monkeypatch.setattr(compiling, "versions", lambda dtypes: iter(stubs))
    for name, value in {"TERM": "xterm", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    for kind, setting, seen in (
        (Terminal, "auto", True),
        (Terminal, False, False),
        (io.StringIO, "auto", False),
        (io.StringIO, True, True),
    ):
        monkeypatch.setattr(sys, "stderr", kind())
        done = fb.warmup(progress=setting)
        assert (done.compiled, done.found, done.folder) == (7, 0, tmp_path)
        assert ("7/7" in sys.stderr.getvalue()) == seen
        assert ("compiling for Numba" in sys.stderr.getvalue()) == seen


def failing(capsys):
    assert cli.main(["warmup"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fastbp: ") and err.count("\n") == 1
    return err


def test_it_ends_if_nothing_can_be_kept(monkeypatch, tmp_path, capsys):
    error = OSError(30, "Read-only file system")
    stub = Stub(None, error)
    monkeypatch.setattr(compiling, "versions", lambda dtypes: iter([(stub, np.dtype("f8"))] * 9))
    monkeypatch.setattr(caching, "folders", lambda: (Path("/package"), Path("/home/me")))
    line = failing(capsys)
    for part in (str(Path("/package")), str(Path("/home/me")), "Read-only file system"):
        assert part in line
    assert "set NUMBA_CACHE_DIR to a folder" in line


def test_it_needs_numba(monkeypatch, capsys):
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(backends, "why_missing", lambda name: "install it with: pip install it")
    line = failing(capsys)
    assert "'numba' cannot run here" in line and "pip install it" in line
