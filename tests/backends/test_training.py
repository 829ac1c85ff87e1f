"""`contract.train` of every backend: steps, chunks, ends, options, clipping, averages, watching."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from helpers.agreement import REFERENCE, agree_in_training, contents
from helpers.strategies import (
    EVERY_ACTIVATION,
    EVERY_LOSS,
    OPTIMIZERS,
    Case,
    Training,
    case,
    copy_of,
    new_run,
    same,
    training,
)
from oracles.transcript import follow

import fastbp as fb
from fastbp.backends import contract
from fastbp.backends.contract import TrainConfig

# Training.


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
def test_training_agrees_with_the_reference(compiled, method, loss):
    """Chunks that begin and end within epochs, the last batch of each smaller."""
    for seed in range(8):
        _, t, run = training(seed, "float64", method, loss, act=["tanh", "relu"][seed % 2])
        agree_in_training(compiled, t, run, (1, 3, 9, 5, 20))


@pytest.mark.backend
@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
def test_training_of_narrow_networks_agrees_with_the_reference(compiled, loss):
    """Shuffled or not, of a few rows up to all, with fixed entries and a validation."""
    for seed, method in enumerate(OPTIMIZERS):
        act = EVERY_ACTIVATION[seed % len(EVERY_ACTIVATION)]
        options = {"fixed": seed % 3 == 2, "validation": 9 * (seed % 2), "widths": (3, 4)}
        for batch_size in (3, 9, 23):
            _, t, run = training(
                seed, "float64", method, loss, act=act, batch_size=batch_size, **options
            )
            agree_in_training(compiled, t, run, (1, 3, 5))


@pytest.mark.backend
@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_steps_of_a_narrow_network_are_within_rounding(module, dtype, method):
    for seed in range(8):
        c, t, run = training(seed, dtype, method, batch_size=(4, 23)[seed // 4], widths=(4, 3))
        assert follow(module, c, t, run, 12)[0] == contract.DONE


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
@pytest.mark.parametrize("dropout", [0.0, 0.25, 0.99])
def test_training_with_fixed_entries_and_dropout_agrees(compiled, method, dropout):
    for seed in range(6):
        loss = ["mse", "margin_ranking", "softmax_ce"][seed % 3]
        options = {"act": "silu", "fixed": seed < 4, "dropout": dropout, "n": 70, "batch_size": 32}
        c, t, run = training(seed, "float64", method, loss, **options)
        before = run.params.copy()
        agree_in_training(compiled, t, run, (1, 3, 9, 20))
        fixed = np.setdiff1d(np.arange(c.net.n_params), c.net.free)
        assert (fixed.size > 0) == (seed < 4) and same(run.params[fixed], before[fixed])
        assert not run.moments[:, fixed].any()


@pytest.mark.backend
@pytest.mark.parametrize("clip_norm", [np.inf, 0.5])
def test_nan_in_the_derivative_does_not_reach_fixed_entries(module, dtype, clip_norm):
    """The second input is infinite where the frozen layer has a zero weight: 0·inf is NaN."""
    layers = fb.Dense(3, "sigmoid", trainable=False), fb.Dense(1)
    net = fb.Network(2, *layers, dtype=dtype)
    params = np.linspace(0.5, 1, net.n_params).astype(dtype)
    X = np.array([[1, np.inf], [2, np.inf]], dtype)
    problem = net.objective(X, np.zeros((2, 1))).problem
    assert np.isnan(module.value_and_grad(problem, params, 1)[1][:6]).any()
    t = Training(problem, TrainConfig(OPTIMIZERS["adamw"], 2, True, clip_norm))
    run = new_run(params, OPTIMIZERS["adamw"])
    assert t.go(module, run, 3)[0] == contract.DONE
    assert same(run.params[:9], params[:9]) and np.isfinite(run.params).all()


@pytest.mark.backend
@pytest.mark.parametrize(
    "n, batch_size",
    [(1, 1), (7, 7), (64, 32), (65, 64), (70, 1), (300, 300), (1100, 600)],
)
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_training_agrees_for_any_batch_size(compiled, method, n, batch_size):
    _, t, run = training(3, "float64", method, n=n, batch_size=batch_size)
    agree_in_training(compiled, t, run, (2, 11))


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
def test_each_step_is_within_rounding(module, dtype, method, loss):
    """Each step in extended precision, from the backend's state before it."""
    c, t, run = training(7, dtype, method, loss, act="leaky_relu")
    assert follow(module, c, t, run, 12)[0] == contract.DONE


@pytest.mark.backend
@pytest.mark.parametrize("method", ["rmsprop centered", "rmsprop both"])
def test_a_variance_below_zero_counts_as_zero(module, dtype, method):
    """Rounding makes s - a² slightly negative where gradients hardly change; here it is large."""
    c, t, run = training(1, dtype, method)
    run.moments[-1] = 10
    follow(module, c, t, run, 1)
    s, a = run.moments[[0, -1]]
    assert (s < a * a).all()


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_chunks_of_steps_are_one_run_bitwise(module, dtype, method):
    _, t, run = training(7, dtype, method)
    whole = copy_of(run)
    _, losses = t.go(module, whole, 20)
    parts = np.zeros(4)
    for n_steps in (1, 3, 2, 9, 5):
        t.go(module, run, n_steps, parts)
    assert same([*contents(run), parts], [*contents(whole), losses])


@pytest.mark.backend
def test_training_repeats_bitwise_and_leaves_its_inputs(module, dtype):
    _, t, run = training(7, dtype, "adam", "bce_logits")
    p = t.problem
    inputs = [p.X, p.targets, p.weights, t.order, t.rates, p.plan.layers]
    before = [a.copy() for a in inputs]
    again = copy_of(run)
    assert same(t.go(module, run, 17), t.go(module, again, 17))
    assert same(contents(run), contents(again))
    assert same(inputs, before)


@pytest.mark.backend
def test_threads_train_on_one_problem(module, dtype):
    """The problem and its plan are shared, the runs are not."""
    _, t, run = training(7, dtype, "adam", n=70, batch_size=32)
    expected = copy_of(run)
    losses = t.go(module, expected, 30)[1]
    runs = [copy_of(run) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda r: t.go(module, r, 30), runs))
    for r, result in zip(runs, results, strict=True):
        assert same(result, (contract.DONE, losses))
        assert same(contents(r), contents(expected))


@pytest.mark.backend
def test_losses_are_added_to_what_is_there(module):
    _, t, run = training(0, "float64", "sgd")
    losses = np.array([1000.0])
    module.train(t.problem, t.config, run, 1, None, np.array([0.01]), losses, np.empty(0))
    assert losses[0] == pytest.approx(1000 + run.monitor[2], rel=1e-15)
    assert run.monitor[0] == run.monitor[2]


@pytest.mark.backend
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_non_finite_objective_stops_before_its_update(module, dtype, method, bad):
    """Row 11 is bad: it comes in batch 2 of 5 of the first epoch."""
    _, t, run = training(0, dtype, method)
    X = t.problem.X.copy()
    X[11, 1] = bad
    before = copy_of(run)
    t.go(module, before, 2)
    targets = t.problem.targets.copy()
    targets[11] = bad
    for problem in (
        replace(t.problem, X=X, handles={}),
        replace(t.problem, targets=targets, handles={}),
    ):
        bad_run = new_run(run.params, t.config.optimizer)
        spoilt = replace(t, problem=problem)
        if problem.X is X and np.isinf(bad):
            continue  # tanh takes infinities
        code, losses = spoilt.go(module, bad_run, 17)
        assert code == contract.NON_FINITE_OBJECTIVE
        assert bad_run.step == 2
        assert same(bad_run.params, before.params) and same(bad_run.moments, before.moments)
        assert same(bad_run.good, np.array([run.params, run.params]))
        assert not np.isfinite(bad_run.monitor[2]) and not np.isfinite(losses[0])
        assert bad_run.monitor[0] == before.monitor[0]


@pytest.mark.backend
def test_non_finite_objective_in_a_later_epoch_keeps_the_last_good_start(module):
    _, t, run = training(0, "float64", "sgd")
    t.go(module, run, 5)
    good = run.params.copy()  # the start of epoch 1, which counts as good when epoch 1 is complete
    t.go(module, run, 5)
    start = run.params.copy()
    targets = np.full_like(t.problem.targets, np.nan)
    spoilt = replace(t, problem=replace(t.problem, targets=targets, handles={}))
    code, losses = spoilt.go(module, run, 30)
    assert (code, run.step) == (contract.NON_FINITE_OBJECTIVE, 10)
    assert same(run.params, start) and same(run.good, np.array([good, start]))
    assert np.isnan(losses[0]) and not losses[1:].any()


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_non_finite_parameters_stop_at_the_end_of_the_epoch(module, dtype, method):
    _, t, run = training(0, dtype, method, batch_size=23, rate=np.inf)
    start = run.params.copy()
    code, losses = t.go(module, run, 4)
    assert (code, run.step) == (contract.NON_FINITE_PARAMETERS, 1)
    assert same(run.good, np.array([start, start]))
    assert losses[0] == run.monitor[2] == run.monitor[0] and not losses[1:].any()


@pytest.mark.backend
@pytest.mark.parametrize("batch_size", [8, 2])
def test_growth_stops_after_three_epochs_above_the_limit(module, dtype, batch_size):
    """A linear model with a rate beyond stability grows by a steady factor."""
    rng = np.random.default_rng(1)
    c = case(rng, [2, 1], ["linear"], dtype, 8)
    problem = c.net.objective(c.X, c.y).problem
    config = TrainConfig(OPTIMIZERS["sgd"], batch_size, True)
    t = Training(problem, config, rate=2.0 if batch_size == 8 else 1.0)
    run, expected = (new_run(c.params, config.optimizer) for _ in range(2))
    expected_code, _ = t.go(REFERENCE, expected, 400)
    assert expected_code == contract.GROWN and expected.step < 400
    assert expected.step % t.steps_per_epoch == 0
    code, losses = t.go(module, run, 400)
    assert (code, run.step) == (contract.GROWN, expected.step)
    epochs = run.step // t.steps_per_epoch
    means = losses[:epochs] / t.steps_per_epoch
    above = means > contract.GROWTH_LIMIT * run.monitor[0]
    assert list(above[-4:]) == [False, True, True, True] and run.monitor[1] == 3
    # Count and losses continue from call to call; good is the start of the last epoch within the
    # limit.
    parts, total, starts = new_run(c.params, config.optimizer), np.zeros(400), []
    code = contract.DONE
    while code == contract.DONE:
        if parts.step % t.steps_per_epoch == 0:
            starts.append(parts.params.copy())
        code, _ = t.go(module, parts, 1, total)
    assert code == contract.GROWN and parts.step == run.step
    assert same([parts.params, parts.good, parts.monitor], [run.params, run.good, run.monitor])
    assert same(run.good, np.array([starts[-4], starts[-1]]))


@pytest.mark.backend
def test_growth_must_be_in_a_row(module, dtype):
    """Two epochs above the limit, one below, two above: no stop."""
    c = case(np.random.default_rng(2), [2, 1], ["linear"], dtype, 3)
    config = TrainConfig(OPTIMIZERS["sgd"], 3, True)
    t = Training(c.net.objective(c.X, c.y).problem, config, rate=0.0)
    far = np.full_like(c.params, 1e5)
    run = new_run(c.params, config.optimizer)
    t.go(module, run, 1)
    run.monitor[0] = 1.0
    for params, count in [(far, 1), (far, 2), (c.params, 0), (far, 1), (far, 2)]:
        run.params[:] = params
        assert t.go(module, run, 1)[0] == contract.DONE
        assert run.monitor[1] == count
    run.params[:] = far
    assert t.go(module, run, 1)[0] == contract.GROWN


@pytest.mark.backend
@pytest.mark.parametrize("share, count", [(0.9, 0), (1.1, 1)])
def test_growth_is_of_the_mean_over_an_epochs_batches(module, dtype, share, count):
    c = case(np.random.default_rng(2), [2, 1], ["linear"], dtype, 3)
    config = TrainConfig(OPTIMIZERS["sgd"], 1, True)
    t = Training(c.net.objective(c.X, c.y).problem, config, rate=0.0)
    run = new_run(c.params, config.optimizer)
    _, losses = t.go(module, run, 3)
    run.monitor[0] = losses[0] / 3 / share / contract.GROWTH_LIMIT
    t.go(module, run, 3)
    assert run.monitor[1] == count


@pytest.mark.backend
def test_good_parameters_lag_one_epoch(module, dtype):
    _, t, run = training(1, dtype, "momentum")
    starts = [run.params.copy()]
    for epoch in range(3):
        t.go(
            module, run, 2
        )  # inside the epoch: the starts of the last completed epoch and of this one
        assert same(run.good, np.array([starts[max(epoch - 1, 0)], starts[epoch]]))
        t.go(module, run, 3)
        assert same(run.good[0], starts[epoch])
        starts.append(run.params.copy())


@pytest.mark.backend
def test_floating_point_mode_is_restored_on_every_way_out(module, dtype):
    """Subnormal numbers may be flushed during the call, never after it."""
    small = np.array([np.finfo(dtype).smallest_subnormal])
    _, t, run = training(0, dtype, "adam", batch_size=23, validation=9)
    _, spoilt, _ = training(0, dtype, "adam", batch_size=23)
    spoilt.problem.targets[3] = np.nan
    constant = replace(t, rate=0.0)
    ways_out = {
        contract.DONE: t,
        contract.NON_FINITE_OBJECTIVE: spoilt,
        contract.NON_FINITE_PARAMETERS: replace(t, rate=np.inf),
        contract.GROWN: constant,
        contract.GOAL_MET: t.having(goal=np.inf),
        contract.NO_PROGRESS: constant.having(patience=1),
    }
    for code, how in ways_out.items():
        r = replace(copy_of(run), step=1)  # behind the step that sets the growth limit's base
        r.monitor[0] = 1e-300 if code == contract.GROWN else 1.0
        assert how.go(module, r, 4)[0] == code
        assert (small * 3 > small).all() and (small / 1 == small).all()


# Clipping.


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_a_norm_below_the_limit_is_left_alone(module, dtype, method):
    """The norm is that of the free entries; that of the whole gradient is above the limit."""
    c, t, run = training(1, dtype, method, fixed=True, batch_size=23)
    _, grad = module.value_and_grad(t.problem, run.params, 1)
    norm, whole = (np.linalg.norm(g.astype(np.float64)) for g in (grad[c.net.free], grad))
    assert whole > 1.02 * norm
    results = []
    for most in (0.99 * norm, 1.01 * norm, np.inf):
        results.append(copy_of(run))
        assert t.having(clip_norm=most).go(module, results[-1], 1)[0] == contract.DONE
    below, above, unlimited = results
    assert same(contents(above), contents(unlimited))
    assert not same(contents(below), contents(unlimited))


@pytest.mark.backend
def test_the_norm_of_many_gradients_loses_nothing(module, dtype):
    """Equal squares summed one by one in float32 would drift."""
    net = fb.Network(300, fb.Dense(70), dtype=dtype)
    params, X, y = np.zeros(net.n_params, dtype), np.full((1, 300), 0.7), np.full((1, 70), 0.3)
    c = Case(net, params, X.astype(dtype), y.astype(dtype))
    t = Training(c.problem, TrainConfig(OPTIMIZERS["sgd"], 1, True, clip_norm=0.01))
    run = new_run(params, OPTIMIZERS["sgd"])
    follow(module, c, t, run, 1, sharp=dtype == np.float32)  # the bound knows no order of sums


# Averages.


@pytest.mark.backend
@pytest.mark.parametrize("first", [0, 1, 4, 5, 19, 20])
def test_the_average_is_the_mean_of_the_iterates(module, dtype, first):
    """Fixed entries stay what they are, to the bit."""
    for method in ("sgd", "adamw"):
        c, t, run = training(3, dtype, method, fixed=True, validation=9, average_from=first)
        start = run.params.copy()
        follow(module, None, t.having(patience=9), run, 20)
        fixed = np.setdiff1d(np.arange(c.net.n_params), c.net.free)
        if first < 20:
            assert same(run.average[fixed], start[fixed].astype(np.float64))
            assert not np.array_equal(run.average.astype(dtype), run.params) or first == 19
