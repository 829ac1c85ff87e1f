"""`fastbp bench`: its tables and JSON, and that the work it times gives right results."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest
from helpers.commands import COMMAND

import fastbp as fb
from fastbp.cli import bench
from fastbp.cli.commands import main
from fastbp.cli.workloads import TRAINING

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
