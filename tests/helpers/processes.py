"""Programs in child processes, their output and their environment."""

from __future__ import annotations

import os
import subprocess
import sys


def environment(without=("FASTBP_",), **variables):
    """This process's variables, without those that begin with one of `without`, and `variables`."""
    others = {key: value for key, value in os.environ.items() if not key.startswith(without)}
    return others | {key: str(value) for key, value in variables.items()}


def run(code, *, cwd=None, timeout=120, **variables):
    """Run a program; the `subprocess.CompletedProcess`, with its output as text."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def python(code, **options):
    """The output of a program, which must not fail; options as for `run`."""
    done = run(code, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout
