"""`fit(goal=..., tol=..., max_time=...)`: when a fit ends."""

from __future__ import annotations

import time

import numpy as np
import pytest
from helpers.fits import (
    FIRST_ORDER,
    LEAST_SQUARES,
    MINIMIZE,
    fitted,
)

pytestmark = pytest.mark.backend


# Goals, tolerances, time.


@pytest.mark.parametrize("method", [*FIRST_ORDER, *MINIMIZE, *LEAST_SQUARES])
def test_the_first_epoch_that_meets_the_goal(backend, data, method):
    whole = fitted(data, method=method, epochs=12, batch_size="auto")
    losses = whole.history["loss"]
    k = int(np.argmin(losses[: max(2, len(losses) // 2)]))
    res = fitted(data, method=method, epochs=12, goal=losses[k])
    assert (res.success, res.status, res.nit) == (True, 0, k + 1)
    done = f"{k + 1} {'epoch' if method in FIRST_ORDER else 'iteration'}{'s' if k else ''}"
    assert res.message == f"the goal of {losses[k]:g} was met in {done}"
    assert np.array_equal(res.history["loss"], losses[: k + 1])
    never = fitted(data, method=method, epochs=12, goal=-1.0)
    assert np.array_equal(never.params, whole.params)
    assert (never.status, never.message) == (whole.status, whole.message)


@pytest.mark.parametrize("method", MINIMIZE + LEAST_SQUARES)
def test_tol_is_the_method_s_own(backend, data, method):
    loose, tight = (fitted(data, method=method, tol=tol, epochs=40) for tol in (0.3, 1e-12))
    assert loose.status == 0
    assert loose.nit < tight.nit
    assert loose.fun > tight.fun


def test_tol_is_the_largest_entry_of_the_gradient(backend, data):
    for method in ("scg", "BFGS"):
        res = fitted(data, method=method, tol=1e-2, epochs=500)
        assert res.success
        assert np.abs(res.grad).max() <= 1e-2


@pytest.mark.parametrize("method", [*FIRST_ORDER, "scg", "L-BFGS-B", "trf"])
def test_out_of_time(backend, data, method):
    def slow(epoch):
        time.sleep(0.02)

    res = fitted(data, method=method, epochs=10**6, max_time=0.05, callbacks=slow)
    assert (res.success, res.status) == (False, 1)
    assert res.nit <= 3  # each takes at least 0.02 s
    done = f"{res.nit} {'epoch' if method in FIRST_ORDER else 'iteration'}"
    assert res.message == f"max_time is over after {done}" + ("s" if res.nit != 1 else "")
    assert res.elapsed >= 0.05


def test_out_of_time_without_callbacks(backend, data):
    res = fitted(data, epochs=10**9, max_time=0.1)
    assert res.status == 1
    again = fitted(data, epochs=max(res.nit, 1))
    assert np.array_equal(again.history["loss"][: res.nit], res.history["loss"])


def test_time_is_enough(backend, data):
    for method in ("adam", "scg", "trf"):
        res, same = (fitted(data, method=method, max_time=limit) for limit in (1e6, np.inf))
        assert np.array_equal(res.params, same.params)
        assert res.message == same.message
