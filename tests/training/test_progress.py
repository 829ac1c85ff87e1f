"""The progress bar: what is seen on a terminal, and that logs stay empty."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

import fastbp as fb
from fastbp.training import progress

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Stands in for the module `time`."""

    now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def open_terminal(monkeypatch):
    """Makes stderr a terminal, in the test: pytest sets stderr again after the fixtures."""

    def make(columns=80):
        for name, value in {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "24"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return make


def without_codes(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def frames(stream):
    """What was drawn, one after another."""
    drawn = re.split(r"[\r\n]+", without_codes(stream.getvalue()))
    return [frame.rstrip() for frame in drawn if frame.strip()]


def run(clock, bar, seconds, epochs=100):
    """A run of 100 epochs that reports ten times a second, up to an epoch."""
    start = clock.now
    for k in range(1, round(10 * seconds * epochs / 100) + 1):
        clock.now = start + 0.1 * k
        epoch = 10 * k / seconds
        bar.update(epoch, 2 / (1 + epoch), 3 / (1 + epoch), 0.01)
    bar.close()


# Whether there is a bar.


@pytest.mark.parametrize("setting", ["yes", None, 1, 0.0, [], "Auto"])
def test_other_settings_raise(setting):
    with pytest.raises(ValueError, match=r"'auto' .*, True or False") as error:
        progress.progress_bar(setting, 10)
    assert repr(setting) in str(error.value)


@pytest.mark.parametrize("stream", [io.StringIO(), None], ids=["file", "none"])
def test_auto_is_nothing_without_a_terminal(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    assert progress.progress_bar("auto", 10) is None


def test_a_closed_stream_is_no_terminal(monkeypatch, open_terminal):
    terminal = open_terminal()
    terminal.close()
    monkeypatch.setattr(Terminal, "isatty", io.StringIO.isatty)  # which raises
    assert progress.progress_bar("auto", 10) is None


def test_false_is_nothing_on_a_terminal(open_terminal):
    open_terminal()
    assert progress.progress_bar(False, 10) is None


def test_true_without_stderr_is_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert progress.progress_bar(True, 10) is None


def test_a_notebook_has_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for shell, seen in (
        (None, False),
        (SimpleNamespace(), False),
        (SimpleNamespace(kernel=1), True),
    ):
        ipython = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        assert (progress.progress_bar("auto", 10) is not None) == seen


# What is drawn.


def test_auto_waits_two_seconds(clock, open_terminal):
    terminal = open_terminal()
    bar = progress.progress_bar("auto", 100)
    for clock.now in (1000.0, 1001.0, 1001.99):
        bar.update(20.0, 1.0, None, None)
    assert terminal.getvalue() == ""
    clock.now = 1002.0
    bar.update(20.0, 1.0, None, None)
    assert "20/100" in without_codes(terminal.getvalue())
    bar.close()


def test_a_short_run_under_auto_leaves_nothing(clock, open_terminal):
    terminal = open_terminal()
    run(clock, progress.progress_bar("auto", 100), 1.9)
    assert terminal.getvalue() == ""


def test_true_draws_at_once(clock, open_terminal):
    terminal = open_terminal()
    bar = progress.progress_bar(True, 100)
    bar.update(0.5, 0.25, None, 0.1)
    assert re.search(r" 0/100 loss 0\.250 lr 0\.100 ", frames(terminal)[-1])
    bar.close()


def test_draws_ten_times_a_second_at_most(clock, open_terminal):
    terminal = open_terminal()
    bar = progress.progress_bar(True, 100)
    bar.update(1.0, 1.0, None, None)
    before = terminal.getvalue()
    clock.now += 0.099
    bar.update(2.0, 1.0, None, None)
    assert terminal.getvalue() == before
    clock.now += 0.002
    bar.update(3.0, 1.0, None, None)
    assert "3/100" in without_codes(terminal.getvalue()[len(before) :])
    bar.close()


def test_numbers_and_times(clock, open_terminal):
    terminal = open_terminal()
    run(clock, progress.progress_bar("auto", 100), 80, epochs=25)
    assert re.fullmatch(
        r"fit [━╸╺]+  25/100 loss 0\.0769 val 0\.115 lr 0\.0100 0:00:20 left 01:00",
        frames(terminal)[-1],
    )


def test_time_left_of_a_continued_run(clock, open_terminal):
    terminal = open_terminal()
    bar = progress.progress_bar("auto", 100)
    for k in range(1, 101):
        clock.now += 0.1
        bar.update(50.5 + k / 10, 1.0, None, None)  # an epoch a second
    bar.close()
    assert frames(terminal)[-1].endswith("0:00:10 left 00:40")


def test_time_left_of_slow_iterations(clock, open_terminal):
    terminal = open_terminal()
    bar = progress.progress_bar("auto", 100)
    for k in range(1, 5):
        clock.now += 45
        bar.update(k, 1.0, None, None)
    bar.close()
    assert frames(terminal)[-1].endswith("0:03:00 left 1:12:00")


def test_last_state_is_drawn_and_stays(clock, open_terminal):
    terminal = open_terminal()
    bar = progress.progress_bar(True, 100)
    bar.update(99.0, 1.0, None, None)
    bar.update(100.0, 0.5, None, None)  # too early for a drawing of its own
    bar.close()
    assert "100/100 loss 0.500" in frames(terminal)[-1]
    assert without_codes(terminal.getvalue()).endswith("\n")


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -1.234e-300])
def test_any_number_can_be_drawn(clock, open_terminal, loss):
    terminal = open_terminal()
    bar = progress.progress_bar(True, 10**7)
    bar.update(10**7, loss, loss, 1e-300)
    bar.close()
    assert f"loss {loss:#.3g} val {loss:#.3g}" in frames(terminal)[-1]


@pytest.mark.parametrize("columns", [40, 60, 79, 80, 100, 200])
def test_all_numbers_fit_the_terminal(clock, open_terminal, columns):
    terminal = open_terminal(columns)
    bar = progress.progress_bar(True, 1000)
    bar.update(1000.0, 1.234e-5, 0.0001234, 0.000999)
    bar.close()
    assert all(len(frame) <= columns for frame in frames(terminal))
    text = without_codes(terminal.getvalue())
    assert "…" not in text
    for number in ("1000/1000", "1.23e-05", "0.000123", "0.000999", "0:00:00"):
        assert number in text
    assert ("━" in text) == (columns >= 80)


# What is left alone.


def test_a_file_gets_one_line_without_codes(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")  # of CI services, and no wish for a moving bar
    run(clock, progress.progress_bar(True, 100), 5)
    written = sys.stderr.getvalue()
    assert "\x1b" not in written and "\r" not in written
    assert written.count("\n") == 1
    assert "100/100 loss 0.0198 val 0.0297" in written


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_the_terminal_is_clean_after_an_exception(clock, open_terminal, error):
    terminal = open_terminal()
    stdout, stderr = sys.stdout, sys.stderr
    bar = progress.progress_bar(True, 100)
    with pytest.raises(error):
        try:
            bar.update(1.0, 1.0, None, None)
            raise error
        finally:
            bar.close()
    written = terminal.getvalue()
    assert HIDE in written
    assert written.rindex(SHOW) > written.rindex(HIDE)
    assert without_codes(written).endswith("\n")
    assert (sys.stdout, sys.stderr) == (stdout, stderr)


@pytest.mark.parametrize("times", [1, 2])
def test_interrupted_drawing_leaves_the_terminal_clean(clock, open_terminal, monkeypatch, times):
    terminal = open_terminal()
    bar = progress.progress_bar(True, 100)
    bar.update(1.0, 1.0, None, None)
    write, interrupts = terminal.write, iter(range(times))

    def interrupted(text):
        if next(interrupts, None) is not None:
            raise KeyboardInterrupt
        return write(text)

    monkeypatch.setattr(terminal, "write", interrupted)
    clock.now += 1
    with pytest.raises(KeyboardInterrupt):
        try:
            bar.update(2.0, 1.0, None, None)
        finally:
            bar.close()
    written = terminal.getvalue()
    assert written.rindex(SHOW) > written.rindex(HIDE)


def test_a_lost_terminal_does_not_end_the_run(clock, open_terminal, monkeypatch):
    terminal = open_terminal()
    stdout, stderr = sys.stdout, sys.stderr
    bar = progress.progress_bar(True, 100)
    bar.update(1.0, 1.0, None, None)
    tried = []

    def lost(text):
        tried.append(text)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(terminal, "write", lost)
    for k in range(10):
        clock.now += 1
        bar.update(2.0 + k, 1.0, None, None)
    assert len(tried) == 1
    bar.close()
    assert (sys.stdout, sys.stderr) == (stdout, stderr)


def test_what_is_printed_stays_where_it_was_sent(clock, open_terminal, monkeypatch):
    terminal = open_terminal()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    bar = progress.progress_bar(True, 100)
    bar.update(1.0, 1.0, None, None)
    print("to a file")
    bar.close()
    assert sys.stdout.getvalue() == "to a file\n"
    assert "to a file" not in terminal.getvalue()


def test_what_is_printed_on_the_terminal_stands_above_the_bar(clock, open_terminal, monkeypatch):
    terminal = open_terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    bar = progress.progress_bar(True, 100)
    bar.update(1.0, 1.0, None, None)
    print("epoch one")
    bar.close()
    lines = without_codes(terminal.getvalue()).splitlines()
    assert any(line.endswith("epoch one") for line in lines[:-1])
    assert lines[-1].startswith("fit ")


def test_closing_without_a_drawing_is_nothing(clock, open_terminal):
    terminal = open_terminal()
    bar = progress.progress_bar(True, 100)
    bar.close()
    bar.close()
    assert terminal.getvalue() == ""


def test_rich_is_loaded_for_the_first_drawing():
    program = (
        "import sys\n"
        "from fastbp.training import progress\n"
        "bar = progress.ProgressBar(10, 1e6)\n"
        "bar.update(1.0, 1.0, None, None)\n"
        "bar.close()\n"
        "assert not any(name.split('.')[0] == 'rich' for name in sys.modules)\n"
        "bar = progress.progress_bar(True, 10)\n"
        "bar.update(1.0, 1.0, None, None)\n"
        "assert 'rich.progress' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.PIPE)


# In `fit`.

NET = fb.Network(1, fb.Dense(1))
X = np.linspace(-1, 1, 40).reshape(-1, 1)


@pytest.mark.parametrize("method, rate", [("adam", " lr 0.00100"), ("L-BFGS-B", "")])
def test_fit_shows_its_last_state(open_terminal, method, rate):
    terminal = open_terminal()
    res = fb.fit(NET, X, 3 * X, method=method, epochs=2, seed=0, validation=0.25, progress=True)
    last = {name: values[-1] for name, values in res.history.items()}
    shown = f"{res.nit}/2 loss {last['loss']:#.3g} val {last['val_loss']:#.3g}{rate} 0:00:"
    assert shown in frames(terminal)[-1]
    assert terminal.getvalue().rindex(SHOW) > terminal.getvalue().rindex(HIDE)


@pytest.mark.parametrize("method", ["adam", "L-BFGS-B"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_fit_leaves_the_terminal_clean(open_terminal, method, error):
    terminal = open_terminal()

    def callback(epoch):
        raise error

    fit = dict(method=method, epochs=5, seed=0, progress=True, callbacks=callback)
    if error is KeyboardInterrupt:
        assert fb.fit(NET, X, 3 * X, **fit).status == 4
    else:
        with pytest.raises(error):
            fb.fit(NET, X, 3 * X, **fit)
    assert sys.stderr is terminal
    assert terminal.getvalue().rindex(SHOW) > terminal.getvalue().rindex(HIDE)


def test_fit_writes_nothing_to_logs(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
    fb.fit(NET, X, 3 * X, epochs=50, seed=0)
    assert sys.stderr.getvalue() == ""


def test_fit_refuses_other_settings():
    with pytest.raises(ValueError, match="progress is 'yes'"):
        fb.fit(NET, X, X, progress="yes")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals here")
def test_a_real_terminal():
    program = (
        "import numpy as np, fastbp as fb\n"
        "from fastbp.training import progress\n"
        "progress.DELAY_SECONDS = 0.0\n"
        "X = np.linspace(-1, 1, 40).reshape(-1, 1)\n"
        "fb.fit(fb.Network(1, fb.Dense(1)), X, X, epochs=300, seed=0)\n"
    )
    ours, theirs = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=environment) as child:
        os.close(theirs)
        written = b""
        with open(ours, "rb", buffering=0) as terminal, suppress(OSError):  # Linux's end of file
            while part := terminal.read(65536):
                written += part
    text = written.decode()
    assert child.returncode == 0
    assert text.rindex(SHOW) > text.rindex(HIDE)
    assert "300/300 loss " in without_codes(text)
