"""`fit(clip_norm=..., average=..., lr=...)`: clipped gradients, averaged parameters, rates."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.fits import (
    FIRST_ORDER,
    NET,
    N,
    children,
    close,
    fitted,
)

import fastbp as fb

pytestmark = pytest.mark.backend


def batches(seed, n, batch, epochs):
    """The rows of each step."""
    rng = np.random.default_rng(children(seed)[1])
    for _ in range(epochs):
        order = rng.permutation(n) if batch < n else np.arange(n)
        for start in range(0, n, batch):
            yield order[start : start + batch]


def iterates(data, net=NET, **options):
    """The parameters after each step of a run, taken one at a time."""
    results = [fitted(data, net, max_time=1e-9, **options)]
    options.pop("seed", None)
    X, y = data
    while results[-1].status == 1:
        results.append(fb.fit(net, X, y, state=results[-1].state, max_time=1e-9, **options))
    assert [res.nfev for res in results] == list(range(1, len(results) + 1))
    return [res.params for res in results]


# Clipping and averages.


@pytest.mark.parametrize("limit", [0.3, 1.0])
def test_clipped_by_hand(backend, data, limit):
    net = fb.Network(
        3,
        fb.Dense(5, "tanh", mask=np.arange(15).reshape(3, 5) % 4 > 0),
        fb.Dense(2, trainable=False),
    )
    X, y = data
    p, clipped = net.init(1), 0
    for rows in batches(5, N, 10, 4):
        _, g = net.value_and_grad(p, X[rows], y[rows], l2=0.3, backend="numpy")
        norm = np.sqrt((g[net.free] ** 2).sum())
        clipped += norm > limit
        p[net.free] -= 0.2 * g[net.free] * min(1, limit / (norm + 1e-6))
    assert 0 < clipped <= 20
    assert (clipped < 20) == (limit == 1.0)
    res = fitted(
        data, net, method="sgd", lr=0.2, params=net.init(1), batch_size=10, epochs=4, l2=0.3,
        clip_norm=limit,
    )  # fmt: skip
    close(res.params, p)


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_what_is_within_the_limit_is_left_alone(backend, dtype, data, method):
    net = NET.astype(dtype)
    free, within, hard = (
        fitted(data, net, method=method, clip_norm=limit) for limit in (None, 1e6, 1e-3)
    )
    assert np.array_equal(free.params, within.params)
    assert not np.array_equal(free.params, hard.params)


def test_a_clipped_step_is_as_long_as_allowed(backend, dtype, data):
    net = NET.astype(dtype)
    start = net.init(0)
    res = fitted(
        data, net, params=start, method="sgd", lr=0.5, clip_norm=1e-2, epochs=1, batch_size=None
    )
    length = np.linalg.norm((res.params - start).astype(float))
    norm = np.linalg.norm(net.value_and_grad(start, *data)[1].astype(float))
    expected = 0.5 * norm * 1e-2 / (norm + 1e-6)
    # The parameters are about 1 and have the dtype's rounding, which is no small part of a step.
    assert length == pytest.approx(expected, abs=len(start) * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("epochs", [1, 2, 5])
@pytest.mark.parametrize("method", FIRST_ORDER)
def test_the_average_of_the_last_half(backend, data, method, epochs):
    """Epochs of three steps: of 3, 6 and 15 the last 2, 3 and 8."""
    options = {"method": method, "epochs": epochs, "batch_size": 20}
    met = iterates(data, **options)
    assert len(met) == 3 * epochs
    res = fitted(data, average=True, **options)
    close(res.params, np.mean(met[len(met) // 2 :], axis=0), 1e-14)
    assert np.array_equal(res.history["loss"], fitted(data, **options).history["loss"])
    assert res.fun == NET.value(res.params, *data)


def test_averages_are_told_and_validated_once_begun(backend, dtype, data, held):
    net = NET.astype(dtype)
    options = {"lr": 0.05, "batch_size": 20, "epochs": 5}
    met = iterates(data, net, **options)
    seen = []
    res = fitted(
        data, net, average=True, validation=held,
        callbacks=lambda epoch: seen.append(epoch.params), **options,
    )  # fmt: skip
    eps = np.finfo(dtype).eps
    for k in range(5):
        steps = 3 * (k + 1)
        expected = met[steps - 1] if steps <= 7 else np.mean(met[7:steps], axis=0, dtype=float)
        close(seen[k], expected, eps)
    values = [net.value(params, *held) for params in seen]
    close(res.history["val_loss"], np.array(values), 10 * eps)
    assert np.array_equal(res.params, seen[-1])
    assert res.params.dtype == dtype


def test_the_best_average(backend, data, held):
    options = {"lr": 0.3, "epochs": 30, "average": True, "validation": held}
    seen = []
    res = fitted(data, patience=30, callbacks=lambda e: seen.append(e.params), **options)
    assert np.array_equal(res.params, seen[int(np.argmin(res.history["val_loss"]))])


def test_averages_of_scaled_parameters(backend, raw):
    """Folding the mean is taking the mean of what is folded."""
    options = {"scale": "standard", "batch_size": 20, "epochs": 4, "lr": 0.02}
    met = iterates(raw, **options)
    res = fitted(raw, average=True, **options)
    close(res.params, np.mean(met[6:], axis=0), 1e-13)


def test_averages_leave_fixed_entries_alone(backend, dtype, data):
    mask = np.arange(15).reshape(3, 5) % 4 > 0
    net = fb.Network(3, fb.Dense(5, mask=mask), fb.Dense(2, trainable=False), dtype=dtype)
    start = net.init(0)
    start[0] = np.nan
    seen = []
    res = fitted(
        data, net, params=start, average=True, callbacks=lambda epoch: seen.append(epoch.params)
    )
    for params in (*seen, res.params):
        assert np.delete(params, net.free).tobytes() == np.delete(start, net.free).tobytes()


# Rates.


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_a_constant_schedule_is_a_number(backend, data, method):
    number, constant = (
        fitted(data, method=method, lr=lr) for lr in (0.02, lambda epoch: 0.02 + 0 * epoch)
    )
    assert np.array_equal(number.params, constant.params)


def cosine(epoch):
    return 0.01 + 0.29 * (1 + np.cos(np.pi * min(epoch / 3, 1))) / 2


RATES = {
    "cosine": (fb.schedules.cosine(0.3, 3, final=0.01), cosine),
    "step": (fb.schedules.step(0.3, 2, 0.5), lambda epoch: 0.3 * 0.5 ** (epoch // 2)),
    "exponential": (fb.schedules.exponential(0.3, 0.7), lambda epoch: 0.3 * 0.7**epoch),
    "inverse_time": (fb.schedules.inverse_time(0.3, 0.8), lambda epoch: 0.3 / (1 + 0.8 * epoch)),
    "warmup": (
        fb.schedules.warmup(fb.schedules.exponential(0.3, 0.7), 2, start=0.2),
        lambda epoch: 0.3 * (0.2 + 0.4 * epoch) if epoch < 2 else 0.3 * 0.7 ** (epoch - 2),
    ),
    "user-defined": (lambda epoch: 0.3 / (1 + epoch**2), lambda epoch: 0.3 / (1 + epoch**2)),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_by_hand(backend, data, name):
    """Seven steps an epoch, each with its rate."""
    schedule, rate = RATES[name]
    X, y = data
    p = NET.init(1)
    for step, rows in enumerate(batches(5, N, 8, 4)):
        p = p - rate(step / 7) * NET.value_and_grad(p, X[rows], y[rows], backend="numpy")[1]
    rates = []
    res = fitted(
        data, method="sgd", lr=schedule, params=NET.init(1), batch_size=8, epochs=4,
        callbacks=lambda epoch: rates.append(epoch.rate),
    )  # fmt: skip
    close(res.params, p)
    assert rates == pytest.approx([rate((7 * k + 6) / 7) for k in range(4)], rel=1e-14)


def test_a_rate_of_zero_stands_still(backend, data):
    res = fitted(data, method="sgd", lr=lambda epoch: 0.1 if epoch < 3 else 0.0)
    assert np.array_equal(res.params, fitted(data, method="sgd", lr=0.1, epochs=3).params)


def test_a_bad_rate_is_told_when_it_comes(backend, data):
    with pytest.raises(ValueError, match=r"lr is -1\.0 at epoch 3, expected a finite rate >= 0"):
        fitted(data, lr=lambda epoch: 0.1 if epoch < 3 else -1)
    with pytest.raises(TypeError, match=r"the rate at epoch 0 .* is 'fast', expected a number"):
        fitted(data, lr=lambda epoch: "fast")
