"""`fit(callbacks=...)`: what callbacks get, when they are called, how they stop a fit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.fits import (
    FIRST_ORDER,
    FULL_BATCH,
    NET,
    fitted,
)

import fastbp as fb
from fastbp.training.optimizers import METHODS

pytestmark = pytest.mark.backend


# Callbacks.


@pytest.mark.parametrize("method", [*FIRST_ORDER, *FULL_BATCH])
def test_what_callbacks_are_told(backend, data, method):
    seen = []

    def note(epoch):
        seen.append((epoch, epoch.params, epoch.elapsed))

    res = fitted(data, method=method, callbacks=note, epochs=30 if method == "TNC" else 8)
    assert [epoch.epoch for epoch, _, _ in seen] == list(range(1, res.nit + 1))
    assert [epoch.loss for epoch, _, _ in seen] == res.history["loss"].tolist()
    assert {epoch.val_loss for epoch, _, _ in seen} == {None}
    times = [elapsed for _, _, elapsed in seen]
    assert times == sorted(times)
    assert 0 < times[-1] <= res.elapsed
    assert {id(epoch.net) for epoch, _, _ in seen} == {id(NET)}
    assert np.array_equal(seen[-1][1], res.params)
    assert not np.array_equal(seen[0][1], seen[-1][1])
    rates = {epoch.rate for epoch, _, _ in seen}
    assert rates == ({None} if method in FULL_BATCH else {METHODS[method].lr})
    assert (seen[-1][0].state is None) == (method in FULL_BATCH and method != "scg")
    assert repr(seen[0][0]).startswith(f"Epoch(1: loss={seen[0][0].loss:.6g}")


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B", "trf"])
def test_what_callbacks_get_is_theirs(backend, data, method):
    def spoil(epoch):
        params, again = epoch.params, epoch.params
        assert params is not again
        assert np.array_equal(params, again)
        params[:] = np.nan
        for value in (epoch.state or {}).values():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                value[...] = np.nan

    res, same = (fitted(data, method=method, callbacks=calls) for calls in (spoil, ()))
    assert np.array_equal(res.params, same.params)
    assert np.array_equal(res.history["loss"], same.history["loss"])


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B"])
def test_callbacks_of_scaled_fits_see_raw_parameters(backend, raw, method):
    seen = []
    res = fitted(
        raw, method=method, scale="standard", epochs=4,
        callbacks=lambda epoch: seen.append(NET.value(epoch.params, *raw)),
    )  # fmt: skip
    assert seen[-1] == res.fun
    assert len(seen) == 4


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B", "trf"])
def test_callbacks_see_fixed_entries_as_they_were(backend, data, method):
    net = fb.Network(3, fb.Dense(5, "tanh", mask=np.arange(15).reshape(3, 5) % 4 > 0), fb.Dense(2))
    start = net.init(0)
    start[0] = np.nan
    seen = []
    res = fitted(
        data, net, params=start, method=method, callbacks=lambda epoch: seen.append(epoch.params)
    )
    assert seen[-1].tobytes() == res.params.tobytes()


def test_callbacks_are_called_in_their_order(backend, data):
    calls = []
    callbacks = (lambda epoch, k=k: calls.append((epoch.epoch, k)) for k in range(3))
    fitted(data, epochs=2, callbacks=callbacks)
    assert calls == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B", "trf"])
def test_only_true_stops(backend, data, method):
    for answer in (1, "stop", [True], np.array([True]), np.ones(3), None, False, np.False_):
        res = fitted(data, method=method, epochs=4, callbacks=lambda epoch, a=answer: a)
        assert res.nit >= 3, answer
    for answer in (True, np.True_):
        res = fitted(data, method=method, epochs=3, callbacks=lambda epoch, a=answer: a)
        assert (res.success, res.status, res.nit) == (False, 5, 1)
        noun = "epoch" if method == "adam" else "iteration"
        assert res.message == f"a callback stopped the fit after 1 {noun}"


@pytest.mark.parametrize("error", [ZeroDivisionError, StopIteration, SystemExit])
@pytest.mark.parametrize("method", ["adam", *FULL_BATCH])
def test_exceptions_of_callbacks_come_out(backend, data, method, error):
    def fail(epoch):
        if epoch.epoch == 2:
            raise error("mine")

    # SciPy would take StopIteration for a wish; generators make the same of it.
    expected, message = error, "mine"
    if error is StopIteration:
        expected, message = RuntimeError, "a callback raised StopIteration"
    with pytest.raises(expected, match=message):
        fitted(data, method=method, callbacks=fail, epochs=30)


@pytest.mark.parametrize("method", ["adam", "scg", "trf"])
def test_a_fit_in_a_fit(backend, data, method):
    within = []
    res = fitted(
        data, method=method, epochs=3,
        callbacks=lambda epoch: within.append(fitted(data, method=method, epochs=3).params),
    )  # fmt: skip
    for params in within:
        assert np.array_equal(params, res.params)
