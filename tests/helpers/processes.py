"""Programs in child processes, their output and their environment."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys


def environment(without=("FASTBP_",), **variables):
    """This process's variables, without those that begin with one of `without`, and `variables`."""
    others = {key: value for key, value in os.environ.items() if not key.startswith(without)}
    return others | {key: str(value) for key, value in variables.items()}


def run(code, *, cwd=None, timeout=120, without=("FASTBP_",), **variables):
    """Run a program; the `subprocess.CompletedProcess`, with its output as text.

    For `without` see `environment`.
    """
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment(without, **variables),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def python(code, **options):
    """The output of a program, which must not fail; options as for `run`."""
    done = run(code, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_a_fork(function):
    """What a function returns in a forked process, which must end without an error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(function(), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return pickle.loads(data)
