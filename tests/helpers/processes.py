"""Python in child processes: what a fresh interpreter prints, and in which environment."""

from __future__ import annotations

import os
import subprocess
import sys


def environment(without=("FASTBP_",), **variables):
    """The variables of this process but those that begin so, and `variables`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(without)}
    return kept | {key: str(value) for key, value in variables.items()}


def run(code, *, cwd=None, timeout=120, **variables):
    """A program after it has ended, with the text that it wrote."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def python(code, **options):
    """What a program prints, which must not fail; options of `run`."""
    done = run(code, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout
