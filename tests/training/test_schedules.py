"""Schedules of the rate: closed forms, arrays, checks."""

from __future__ import annotations

import math
import pickle
import re

import numpy as np
import pytest

from fastbp.training import schedules
from fastbp.training.schedules import cosine, exponential, inverse_time, rates, step, warmup


def name_of(schedule):
    """Its repr, which for functions would be another in every process."""
    return re.sub(r"<function (\w+) at 0x\w+>", r"\1", repr(schedule))


def linear(epoch):
    assert type(epoch) is float
    return 0.5 - 0.01 * epoch


SCHEDULES = [
    cosine(0.1, 30),
    cosine(0.3, epochs=12.5, final=0.01),
    step(0.1, 7),
    step(0.2, every=2.5, factor=0.7),
    exponential(0.1, 0.95),
    exponential(1e-5, 1.2),
    inverse_time(0.1, 0.3),
    warmup(0.1, 5),
    warmup(cosine(0.1, 20), epochs=10, start=0.25),
    warmup(warmup(step(0.1, 3), 3), 2),
    warmup(linear, 4.0, start=0.0),
]


# What they are.


@pytest.mark.parametrize("epoch", range(31))
def test_recursions_of_torch(epoch):
    """torch.optim.lr_scheduler gives the rates of whole epochs one from the other."""
    lr, T, final = 0.3, 30, 0.02
    annealed = decayed = stepped = lr
    for t in range(1, epoch + 1):
        # CosineAnnealingLR, ExponentialLR(0.9), StepLR(10, 0.1)
        ratio = (1 + math.cos(math.pi * t / T)) / (1 + math.cos(math.pi * (t - 1) / T))
        annealed = ratio * (annealed - final) + final
        decayed *= 0.9
        stepped *= 0.1 if t % 10 == 0 else 1
    # Each of at most 30 multiplications rounds a few times.
    close = {"rtol": 1e-13, "atol": 1e-15}
    np.testing.assert_allclose(cosine(lr, T, final)(epoch), annealed, **close)
    np.testing.assert_allclose(exponential(lr, 0.9)(epoch), decayed, **close)
    np.testing.assert_allclose(step(lr, 10)(epoch), stepped, **close)


def test_linear_warmup_of_torch():
    """LinearLR adds the same to its factor every epoch; SequentialLR starts the next from 0."""
    rate = warmup(exponential(0.2, 0.5), epochs=5, start=0.25)
    expected = [0.2 * (0.25 + k * 0.15) for k in range(5)] + [0.2, 0.1, 0.05, 0.025]
    np.testing.assert_allclose(rate(np.arange(9)), expected, rtol=1e-14)


def test_inverse_time_halves():
    rate = inverse_time(0.6, decay=0.25)
    assert [rate(e) for e in (0, 4, 8, 20)] == pytest.approx([0.6, 0.3, 0.2, 0.1], rel=1e-15)


def test_cosine_between_its_ends():
    for lr, final in ((0.1, 0.0), (0.3, 0.1), (0.1, 0.7)):
        rate = cosine(lr, 40, final)
        assert rate(0) == lr
        assert rate(40) == rate(41.5) == rate(1e9) == final
        assert rate(20) == pytest.approx((lr + final) / 2, rel=1e-15)
        # Odd around the middle, and as steep as a cosine there.
        assert rate(13) + rate(27) == pytest.approx(lr + final, rel=1e-15)
        assert (rate(21) - rate(19)) / 2 == pytest.approx(
            (final - lr) * math.sin(math.pi / 40) / 2, rel=1e-12
        )


@pytest.mark.parametrize("every", [0.1, 0.3, 0.7, 1, 2.5, 1 / 3])
@pytest.mark.parametrize("per_epoch", [1, 3, 7, 30, 1000])
def test_step_changes_at_the_right_step(every, per_epoch):
    k = np.arange(1, 200)
    epochs = k * every  # rounded: some are a little early
    assert np.array_equal(step(1.0, every, 2.0)(epochs), 2.0**k)
    before = epochs - 1 / per_epoch if 1 / per_epoch < every else epochs - every / 2
    assert np.array_equal(step(1.0, every, 2.0)(before), 2.0 ** (k - 1))


def test_warmup_is_continuous():
    for lr in (0.1, cosine(0.3, 10), linear):
        rate = warmup(lr, 3.0, start=0.2)
        first = lr(0.0) if callable(lr) else lr
        assert rate(0) == pytest.approx(0.2 * first, rel=1e-15)
        assert rate(3) == first
        assert rate(np.nextafter(3.0, 0)) == pytest.approx(first, rel=1e-15)
        for later in (0.5, 4.0, 9.75):
            assert rate(3 + later) == (lr(later) if callable(lr) else lr)


# What they are called with.


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
def test_arrays_are_taken_entry_by_entry(schedule):
    epochs = np.random.default_rng(0).uniform(0, 40, 1001)
    epochs[:40] = np.arange(40)
    computed = schedule(epochs)
    assert computed.dtype == np.float64 and computed.shape == epochs.shape
    # However a run is cut into chunks, the rates are the same to the last bit.
    assert computed.tolist() == [schedule(e) for e in epochs.tolist()]
    assert np.array_equal(computed[3:], schedule(epochs[3:]))
    assert np.array_equal(computed[::2], schedule(epochs[::2]))
    assert np.array_equal(computed, rates(schedule, epochs))
    assert (computed >= 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
def test_shapes(schedule):
    for epoch in (3, 3.0, np.float32(3), np.array(3.0)):
        assert type(schedule(epoch)) is float
        assert schedule(epoch) == schedule(3.0)
    whole = np.arange(6)
    assert schedule(whole.reshape(2, 3)).tolist() == schedule(whole).reshape(2, 3).tolist()
    assert schedule([1, 2]).tolist() == [schedule(1), schedule(2)]
    assert schedule(np.empty((0, 2))).shape == (0, 2)
    assert whole.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
def test_schedules_are_values(schedule):
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule and hash(copy) == hash(schedule)
    assert sum(other == schedule for other in SCHEDULES) == 1
    with pytest.raises(AttributeError):
        schedule.lr = 1.0
    if "linear" not in repr(schedule):
        assert eval(repr(schedule), vars(schedules)) == schedule


# Rates for a run.


def test_rates_of_a_number():
    for lr in (0.1, 1, np.float32(0.5)):
        computed = rates(lr, np.arange(3.0))
        assert computed.dtype == np.float64
        assert computed.tolist() == [lr, lr, lr]


def test_rates_of_a_function():
    epochs = [0.0, 0.5, 0.25]
    asked = []

    def rate(epoch):
        asked.append(epoch)
        return np.float32(2) if epoch else 0

    assert rates(rate, np.array(epochs)).tolist() == [0, 2, 2]
    assert asked == epochs and all(type(epoch) is float for epoch in asked)
    assert rates(linear, np.empty(0)).tolist() == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-9])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_epoch_of_a_bad_rate_is_named(bad, shift):
    epochs = np.array([0.0, 2.0, 2.5, 3.0])

    def rate(epoch):
        return bad if epoch + shift > 2 else 0.1

    with pytest.raises(ValueError, match=rf"lr is {bad} at epoch 2.5, expected a finite rate"):
        rates(warmup(rate, shift) if shift else rate, epochs)
    with pytest.raises(ValueError, match="lr is inf at epoch 2000, expected"):
        rates(exponential(0.1, 2), np.array([0.0, 2000.0]))


@pytest.mark.parametrize("nothing", [None, "fast", 1j, [0.1, 0.2]])
def test_a_rate_is_a_number(nothing):
    with pytest.raises(TypeError, match=r"the rate at epoch 1.5 .* expected a number"):
        rates(lambda epoch: nothing, np.array([1.5]))
    for take in (lambda: rates(nothing, np.zeros(1)), lambda: warmup(nothing, 3)):
        with pytest.raises(TypeError, match="expected a number or a function of the epoch"):
            take()


@pytest.mark.parametrize("lr", [0, -0.1, np.nan, np.inf])
def test_a_number_is_positive(lr):
    expected = "lr is .*, expected a positive finite number"
    for take in (
        lambda: rates(lr, np.zeros(1)),
        lambda: cosine(lr, 3),
        lambda: step(lr, 3),
        lambda: exponential(lr, 0.9),
        lambda: inverse_time(lr, 0.1),
        lambda: warmup(lr, 3),
    ):
        with pytest.raises(ValueError, match=expected):
            take()


@pytest.mark.parametrize(
    ("schedule", "arguments", "error", "message"),
    [
        (cosine, (0.1, 0), ValueError, "epochs is 0.0, expected a positive finite number"),
        (cosine, (0.1, 5, -0.1), ValueError, "final is -0.1, expected a finite rate >= 0"),
        (cosine, (0.1, 5, np.inf), ValueError, "final is inf"),
        (cosine, (0.1, 5, np.nan), ValueError, "final is nan"),
        (cosine, (0.1, None), TypeError, "epochs is None, expected a number"),
        (cosine, ("fast", 3), TypeError, "lr is 'fast', expected a number"),
        (step, (0.1, -1), ValueError, "every is -1.0"),
        (step, (0.1, 5, 0), ValueError, "factor is 0.0"),
        (step, (0.1, 5, "half"), TypeError, "factor is 'half', expected a number"),
        (exponential, (0.1, 0), ValueError, "factor is 0.0"),
        (exponential, (0.1, np.inf), ValueError, "factor is inf"),
        (inverse_time, (0.1, 0), ValueError, "decay is 0.0"),
        (inverse_time, (0.1, -1), ValueError, "decay is -1.0"),
        (warmup, (0.1, 0), ValueError, "epochs is 0.0"),
        (warmup, (0.1, 5, 1.5), ValueError, "start is 1.5, expected a share in [0, 1]"),
        (warmup, (0.1, 5, np.nan), ValueError, "start is nan"),
    ],
)
def test_bad_arguments(schedule, arguments, error, message):
    with pytest.raises(error) as caught:
        schedule(*arguments)
    assert message in str(caught.value)
