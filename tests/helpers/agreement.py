"""Agreement of a backend with the reference, to some roundings of the largest entry."""

from __future__ import annotations

import numpy as np

from fastbp import backends
from fastbp.backends import contract
from helpers.strategies import ARRAYS, copy_of

REFERENCE = backends.load("numpy")

# As many roundings of the largest entry may results be apart: in float64 1e-12 of it.
ROUNDINGS = 4504


def agree(computed, expected, what, dtype=np.float64, least=0.0):
    """Results of a network of `dtype`; losses are float64 in any. `least` is a size that counts."""
    computed, expected = np.asarray(computed), np.asarray(expected)
    assert (computed.shape, computed.dtype) == (expected.shape, expected.dtype), what
    limit = ROUNDINGS * np.finfo(dtype).eps * abs(expected).max(initial=least)
    worst = abs(computed - expected).max(initial=0)
    assert worst <= limit, f"{what}: {worst} off, at most {limit}"


def contents(run):
    """All arrays and numbers of a run."""
    return [*(getattr(run, name) for name in ARRAYS), run.step]


def agree_runs(computed, expected):
    assert computed.step == expected.step
    agree(computed.params, expected.params, "params")
    for k, (a, b) in enumerate(zip(computed.moments, expected.moments, strict=True)):
        agree(a, b, f"moments {k}")
    for k in range(2):
        agree(computed.good[k], expected.good[k], f"good {k}")
    agree(computed.best, expected.best, "best")
    agree(computed.average, expected.average, "average")
    for k, (a, b) in enumerate(zip(computed.monitor, expected.monitor, strict=True)):
        assert a == b or agree(a, b, f"monitor {k}") is None  # both may be infinite


def agree_in_training(module, t, run, chunks):
    expected = copy_of(run)
    buffers, expected_buffers = t.buffers(run.step + sum(chunks)), t.buffers(run.step + sum(chunks))
    for n_steps in chunks:
        code, _ = t.go(module, run, n_steps, *buffers)
        assert code == t.go(REFERENCE, expected, n_steps, *expected_buffers)[0] == contract.DONE
        for pair in zip(buffers, expected_buffers, strict=True):
            agree(*pair, "losses or validation")
        agree_runs(run, expected)
