"""The command line in tests: a command that must fail, a fit to the table of cars."""

from __future__ import annotations

import sys

from fastbp.cli.commands import main

COMMAND = [sys.executable, "-m", "fastbp"]


def failing(capsys, *arguments, status=2):
    """The one line on stderr of a command that must fail with this status."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastbp: ") and err.endswith("\n") and err.count("\n") == 1
    return err


def fit(*arguments):
    return main(["fit", "cars.csv", "--seed", "0", "--epochs", "20", *arguments])
