"""The fuzzer: a short run finds nothing, planted faults are detected, shrunk and reproduced."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb
from fastbp import backends
from helpers import fuzz
from helpers.repository import ROOT

pytestmark = pytest.mark.backend


def fuzzer(*arguments):
    paths = [str(Path(fb.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "tests.helpers.fuzz", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_short_run_finds_nothing(compiled, backend):
    level = os.environ.get("FASTBP_MAX_ISA")
    only = ["--max-isa", level] if level and backend == "c" else []
    done = fuzzer("--backend", backend, "--seconds", "2", "--seed", "1", *only)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == (1 if only or backend == "numba" else len(fuzz._levels(None)))
    for line in lines:
        count, rate = re.fullmatch(
            rf"{backend}, .*: (\d+) cases, ([0-9.e+]+) cases/s, 0 failures", line
        ).groups()
        assert int(count) >= fuzz.LEAST_CASES and float(rate) > 0


# Faults. Each is a function of a backend's function: what stands in its place.


def last_column(forward):
    """The last column is wrong, by one part in a million, where it begins a new vector of 4."""

    def wrong(X, W, b, act, keep_z):
        Y, Z = forward(X, W, b, act, keep_z)
        if Y.shape[1] % 4 == 1 and Y.shape[1] > 1:
            Y[:, -1] *= Y.dtype.type(1 + 1e-6)
        return Y, Z

    return wrong


def forgotten_row(backward):
    """The last of an odd number of rows, 3 at least, is left out of dW."""

    def wrong(dY, X, W, Y, Z, act, need_dX, need_db):
        dX, dW, db = backward(dY, X, W, Y, Z, act, need_dX, need_db)
        if len(X) % 2 and len(X) > 2:
            _, dW, _ = backward(
                dY[:-1], X[:-1], W, Y[:-1], None if Z is None else Z[:-1], act, need_dX, need_db
            )
        return dX, dW, db

    return wrong


def swallowed_nan(activation):
    """tanh makes 1 of NaN."""

    def wrong(act, Z, order):
        result = activation(act, Z, order)
        return np.where(np.isnan(Z), 1, result).astype(Z.dtype) if act.name == "tanh" else result

    return wrong


def flushed(activation):
    """Subnormal numbers come out as zero."""

    def wrong(act, Z, order):
        result = activation(act, Z, order)
        return np.where(abs(result) < np.finfo(Z.dtype).tiny, 0, result).astype(Z.dtype)

    return wrong


def untrained_penalty(value_and_grad):
    """The gradient has no l2."""

    def wrong(problem, params, threads):
        value, grad = value_and_grad(problem, params, threads)
        for i, o, _, w, *_ in problem.plan.layers.tolist():
            grad[w : w + i * o] -= problem.l2 * params[w : w + i * o]
        return value, grad

    return wrong


def first_output_only(jacobian):
    """Rows of the second output repeat those of the first."""

    def wrong(plan, params, X, threads, free_only):
        J = jacobian(plan, params, X, threads, free_only)
        if plan.n_out == 2:
            J[1::2] = J[0::2]
        return J

    return wrong


def symmetric_part(hvp):
    """The product with the whole Hessian is Gauss-Newton's."""
    return lambda problem, params, v, gauss_newton: hvp(problem, params, v, True)


def undecayed_bias(train):
    """AdamW's decay leaves the last parameter, a bias, alone."""

    def wrong(problem, config, run, n_steps, *arrays):
        last = run.params[-1].copy()
        code = train(problem, config, run, n_steps, *arrays)
        if config.optimizer.constants[3] and n_steps == 1:
            rates = arrays[1]
            run.params[-1] += rates[0] * config.optimizer.constants[3] * last
        return code

    return wrong


def impatient(train):
    """The patience is over an epoch too soon, where there is more than one."""

    def wrong(problem, config, run, *others):
        if config.patience > 1:
            config = replace(config, patience=config.patience - 1)
        return train(problem, config, run, *others)

    return wrong


def rounded_average(train):
    """The average has the type of the parameters."""

    def wrong(problem, config, run, *others):
        code = train(problem, config, run, *others)
        run.average[:] = run.average.astype(np.float32)
        return code

    return wrong


FAULTS = [
    ("dense_forward", last_column),
    ("dense_backward", forgotten_row),
    ("activation", swallowed_nan),
    ("activation", flushed),
    ("value_and_grad", untrained_penalty),
    ("jacobian", first_output_only),
    ("hvp", symmetric_part),
    ("train", undecayed_bias),
    ("train", impatient),
    ("train", rounded_average),
]


def plant(monkeypatch, module, name, fault):
    monkeypatch.setattr(module, name, fault(getattr(module, name)))


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[fault.__name__ for _, fault in FAULTS])
def test_planted_faults_are_detected_and_reproduced(compiled, backend, monkeypatch, name, fault):
    """The program that is printed fails as long as the fault is there."""
    monkeypatch.setattr(fuzz, "MOST_FAILURES", 1)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with monkeypatch.context() as planted:
        plant(planted, compiled, name, fault)
        _, failures = fuzz.run(backend, seed=5, most=1500)
        assert len(failures) == 1
        _, program, message = failures[0]
        assert "AssertionError: " in message
        with pytest.raises(AssertionError):
            exec(program, {})
    exec(program, {})


def test_failing_cases_become_small(compiled, backend, monkeypatch):
    """Of a fault that needs 5 columns what is left is 5 columns."""
    plant(monkeypatch, compiled, "dense_forward", last_column)
    case = fuzz.Dense(
        n=33, n_in=17, n_out=25, act="tanh", bias=True, mask=True, dtype="float64",
        values="spread", X_layout="byte-swapped", W_layout="Fortran order", dY_layout="plain",
        seed=1,
    )  # fmt: skip
    assert fuzz.failure(case, backend) is not None
    small = fuzz.shrunk(case, backend)
    assert fuzz.failure(small, backend) is not None
    # A column without inputs has its bias.
    assert (small.n, small.n_out) == (1, 5) and (small.n_in, small.bias) in [(1, False), (0, True)]
    assert (small.act, small.mask, small.values) == ("linear", False, "moderate")
    assert (small.X_layout, small.W_layout) == ("plain", "plain")


DEATH = """
import os, signal, sys
with open(sys.argv[-1], "w") as trace:
    trace.write("{case}")
os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.mark.skipif(os.name != "posix", reason="no signals here")
@pytest.mark.parametrize("case", ["", "17"])
def test_a_crash_is_reported_with_its_case(capsys, case):
    level = backends.load("c").instruction_set() if not backends.why_missing("c") else "baseline"
    command = [sys.executable, "-c", DEATH.format(case=case)]
    assert fuzz.watch(command, "c", level, seed=3) == 1
    output = capsys.readouterr().out
    assert output.startswith(f"\nThe process for c, {level}, ended with status -11")
    if not case:
        assert output.endswith(" before its first case.\n")
        return
    expected = fuzz.reproducer(fuzz.draw(3, 17), "c", level)
    assert f" in case 17 of seed 3.\n\n{expected}" in output
    assert f'os.environ["FASTBP_MAX_ISA"] = "{level}"' in expected


def test_what_cannot_run_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(backends, "why_missing", lambda name: "it is not installed")
    with pytest.raises(SystemExit):
        fuzz.main(["--backend", "numba"])
    assert "backend 'numba' cannot run here: it is not installed" in capsys.readouterr().err
