"""What the backends compute, against the reference: every function, width and batch, NaN, masks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers.agreement import REFERENCE, ROUNDINGS, agree, agree_in_training, contents
from helpers.strategies import (
    EVERY_ACTIVATION,
    EVERY_LOSS,
    OPTIMIZERS,
    QUARTIC,
    SMOOTH_ACTIVATIONS,
    SMOOTH_LOSSES,
    case,
    case_of,
    cases,
    copy_of,
    n_for,
    n_out_for,
    new_run,
    same,
    shifted,
    training,
)
from hypothesis import assume, given, settings, strategies as st
from oracles.transcript import follow

import fastbp as fb
from fastbp.backends import contract
from fastbp.maths.robust import SOFT_L1_RHO, Robust

# The functions against the reference.


# Losses of elements, with weights by lanes or row by row; of rows, of pairs, user-defined.
OF_EVERY_KIND = ("mse", "huber", "softmax_ce", "gaussian_nll", "margin_ranking", QUARTIC)


def cotangent(c):
    shape = len(c.X), c.net.n_out
    return np.cos(np.arange(np.prod(shape))).reshape(shape).astype(c.net.dtype)


def pullbacks(module, c):
    plan, params, X = c.net.plan, c.effective, c.X
    tape = module.forward_tape(plan, params, X)
    dY = cotangent(c)
    dparams, nothing = module.backward(plan, params, X, tape, dY, False)
    assert nothing is None
    return (tape, dparams, *module.backward(plan, params, X, tape, dY, True))


def direction(c):
    return np.sin(1 + np.arange(c.net.n_params)).astype(c.net.dtype)


def least_squares(c):
    return c.net.objective(c.X, direction(c)[: c.net.n_out] + 0 * c.X[:, :1]).problem


def jtr_at(module, c):
    moved = c.effective + c.net.dtype.type(0.25) * direction(c)
    return module.jtr_at(least_squares(c), c.effective, moved, 1, Robust(SOFT_L1_RHO, 0.5))


# Name -> function (module, case) -> a tuple of arrays and numbers.
OF_NETWORK = {
    "forward": lambda m, c: (m.forward(c.net.plan, c.effective, c.X),),
    "backward": pullbacks,
    "jvp": lambda m, c: m.jvp(c.net.plan, c.effective, c.X, direction(c)),
    "jacobian": lambda m, c: (m.jacobian(c.net.plan, c.effective, c.X, 1, False),),
    "input_jacobian": lambda m, c: (m.input_jacobian(c.net.plan, c.effective, c.X),),
    "normal_equations": lambda m, c: m.normal_equations(least_squares(c), c.effective, 1, Robust()),
    "sum_of_squares": lambda m, c: (m.sum_of_squares(least_squares(c), c.effective, 1, Robust()),),
    "jtr_at": lambda m, c: (jtr_at(m, c),),
}
OF_PROBLEM = {
    "value": lambda m, c: (m.value(c.problem, c.effective, 1),),
    "value_and_grad": lambda m, c: m.value_and_grad(c.problem, c.effective, 1),
    "row_gradients": lambda m, c: (m.row_gradients(c.problem, c.effective),),
    "hvp": lambda m, c: (m.hvp(c.problem, c.effective, direction(c), False),),
    "gauss_newton": lambda m, c: (m.hvp(c.problem, c.effective, direction(c), True),),
}
CALLS = OF_NETWORK | OF_PROBLEM


def agree_on(module, c, names=CALLS, least=0.0):
    for name in names:
        computed, expected = CALLS[name](module, c), CALLS[name](REFERENCE, c)
        for k, pair in enumerate(zip(computed, expected, strict=True)):
            agree(*pair, f"{name}[{k}] of {c}", c.net.dtype, least)


@pytest.mark.backend
@pytest.mark.parametrize("act", EVERY_ACTIVATION, ids=str)
def test_every_activation_agrees_with_the_reference(compiled, dtype, act):
    """In a hidden and in the last layer, with and without bias; all dimensions differ."""
    rng = np.random.default_rng(1)
    for n, bias in ((1, True), (7, False), (18, True)):
        for acts in ([act, "tanh", "linear"], ["tanh", act, act]):
            agree_on(compiled, case(rng, [5, 9, 6, 3], acts, dtype, n, bias=bias))


@pytest.mark.backend
@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
@pytest.mark.parametrize("penalties", [{}, {"l2": 0.25}, {"l1": 0.125, "group": 0.5}], ids=str)
def test_every_loss_agrees_with_the_reference(compiled, dtype, loss, penalties):
    rng = np.random.default_rng(2)
    last = "sigmoid" if loss == "bce" else "linear"
    for n_out in (1, 2, 3, 8, 9, 17):
        net = fb.Network.mlp([5, 7, n_out_for(loss, n_out)], output=last, dtype=dtype)
        for n, weighted in ((1, False), (6, True), (19, n_out % 2 == 0)):
            c = case_of(rng, net, n_for(loss, n), loss, weighted, **penalties)
            agree_on(compiled, c, OF_PROBLEM)


@pytest.mark.backend
@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
def test_narrow_networks_agree_with_the_reference(compiled, dtype, loss):
    """Layers of 1 to 8 units, which C may treat by units, with every activation and odd rows."""
    rng = np.random.default_rng(8)
    last = "sigmoid" if loss == "bce" else "linear"
    for k, act in enumerate(EVERY_ACTIVATION):
        sizes = [1 + k % 4, 1 + k % 3, 4 - k % 2, n_out_for(loss, 1 + k % 4)]
        if k % 3 == 0:
            sizes = [1 + k % 8, 8 - k % 4, n_out_for(loss, 1 + k % 5)]
        n = n_for(loss, (1, 3, 7, 8, 15, 33, 64, 65, 130, 259)[k % 10])
        bias, l2 = k % 5 > 0, 0.1 * (k % 2)
        acts = [*[act, "tanh"][: len(sizes) - 2], last]
        c = case(rng, sizes, acts, dtype, n, loss, weighted=k % 2 == 1, l2=l2, bias=bias)
        agree_on(compiled, c, ["value", "value_and_grad"])


WIDTHS = {
    "1-11": range(1, 12),
    "12-22": range(12, 23),
    "23-33": range(23, 34),
    "tile edges": (47, 48, 49, 63, 64, 65, 95, 97, 127, 128, 129, 130),
}


@pytest.mark.backend
@pytest.mark.parametrize("widths", WIDTHS)
def test_every_width_agrees_with_the_reference(compiled, dtype, widths):
    """Widths of inputs, hidden layers and outputs in turn; the others are small and different."""
    rng = np.random.default_rng(3)
    for width in WIDTHS[widths]:
        for sizes in ([width, 3, 2], [2, width, 3], [3, 4, width]):
            c = case(rng, sizes, ["tanh", "sigmoid"], dtype, 5, weighted=True)
            agree_on(compiled, c, CALLS if width < 34 else set(CALLS) - {"normal_equations"})


@pytest.mark.backend
@pytest.mark.parametrize("batches", [range(0, 36), range(36, 71)], ids=["0-35", "36-70"])
def test_every_small_batch_agrees_with_the_reference(compiled, dtype, batches):
    rng = np.random.default_rng(4)
    for n in batches:
        c = case(rng, [4, 9, 2], [fb.relu(0.5), "tanh"], dtype, n)
        agree_on(compiled, c, CALLS if n else ["forward", "backward", "jvp", "jacobian"])
    wide = case(rng, [4, 130, 2], ["tanh", "linear"], dtype, batches[-1])
    agree_on(compiled, wide, ["forward", "backward", "jvp", *OF_PROBLEM])


@pytest.mark.backend
@pytest.mark.parametrize(
    "n",
    [127, 129, 255, 256,
     257, 511, 512, 513, 1000, 2561, 4097],
)  # fmt: skip
def test_batches_about_the_parts_agree_with_the_reference(compiled, dtype, n):
    rng = np.random.default_rng(5)
    by_row = {"jacobian", "row_gradients", "input_jacobian"}  # slow in the reference
    names = set(CALLS) if n < 600 else set(CALLS) - by_row - {"normal_equations"}
    c = case(rng, [3, 7, 2], ["tanh", "gelu"], dtype, n, weighted=True)
    agree_on(compiled, c, names)
    agree_on(compiled, case(rng, [2, 4, 1], ["sigmoid", "linear"], dtype, n), ["normal_equations"])
    pairs = case(rng, [3, 5, 1], ["tanh", "linear"], dtype, n + n % 2, "margin_ranking", True)
    agree_on(compiled, pairs, ["value", "value_and_grad"])


@pytest.mark.backend
@pytest.mark.parametrize("name", CALLS)
def test_functions_leave_their_inputs_and_give_fresh_arrays(module, dtype, name):
    """Whether the inputs are read-only or lie 4 or 8 bytes off the vectors' alignment."""
    c = case(np.random.default_rng(6), [5, 9, 3], ["tanh", "silu"], dtype, 11, weighted=True)
    expected = CALLS[name](module, c)
    for offset in (0, 4, 8) if dtype == np.float32 else (0, 8):
        arrays = [shifted(a, offset) for a in (c.params, c.X, c.y, c.terms["sample_weight"])]
        for array in arrays:
            array.flags.writeable = False
        params, X, y, w = arrays
        moved = replace(c, params=params, X=X, y=y, terms={"sample_weight": w})
        assert moved.problem.X is X and moved.effective is params
        results = CALLS[name](module, moved)
        assert same(tuple(results), tuple(expected)), offset
        for result in results:
            if isinstance(result, np.ndarray):
                assert type(result) is np.ndarray and result.dtype is dtype
                assert result.flags.c_contiguous and result.flags.writeable
                assert not any(np.may_share_memory(result, a) for a in arrays)
        assert same(arrays, [c.params, c.X, c.y, c.terms["sample_weight"]])


@pytest.mark.backend
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("act", ["tanh", "softplus", "relu6", "leaky_relu"])
def test_nan_spreads_as_in_the_reference(compiled, dtype, name, act):
    """A NaN in the data reaches all that depends on its row, one in the parameters all that depends
    on it.
    """
    rng = np.random.default_rng(7)
    c = case(rng, [5, 9, 6, 3], [act, "sigmoid", "linear"], dtype, 37, weighted=True)
    X, params = c.X.copy(), c.params.copy()
    X[17, 2] = params[9 * 5 + 3] = np.nan
    spoilt = [replace(c, X=X), replace(c, params=params), replace(c, X=X, params=params)]
    for s in spoilt:
        for computed, expected in zip(
            CALLS[name](compiled, s), CALLS[name](REFERENCE, s), strict=True
        ):
            assert same(np.isnan(computed), np.isnan(expected))
            assert np.isnan(expected).any()


# Properties of random networks.


@pytest.mark.backend
@given(data=st.data())
def test_random_networks_agree_with_the_reference(compiled, dtype, data):
    # On coarser grains roundings turn corners and derivatives cancel; large numbers magnify errors.
    choices = EVERY_ACTIVATION, EVERY_LOSS, ("l2", "l1", "group")
    c = data.draw(cases(dtype, *choices, masks=True, grains=(2**-9,)))
    assume(abs(REFERENCE.forward_tape(c.net.plan, c.effective, c.X)).max() < 1e4)
    names = {*OF_PROBLEM, "jvp", "forward", "backward"}
    assume(all(np.isfinite(r).all() for name in names for r in CALLS[name](REFERENCE, c)))
    # Where all units are saturated, derivatives taken from Y are right to a rounding of 1.
    agree_on(compiled, c, names, least=1.0)


@pytest.mark.backend
@settings(max_examples=60)
@given(data=st.data())
def test_forward_and_reverse_mode_are_adjoint(module, dtype, data):
    """dY · (J v) = (Jᵀ dY) · v."""
    c = data.draw(cases(dtype, EVERY_ACTIVATION, masks=True))
    v, dY = direction(c), cotangent(c)
    _, Jv = module.jvp(c.net.plan, c.effective, c.X, v)
    tape = module.forward_tape(c.net.plan, c.effective, c.X)
    dparams, _ = module.backward(c.net.plan, c.effective, c.X, tape, dY, False)
    assume(np.isfinite(Jv).all() and np.isfinite(dparams).all())
    terms = dY.astype(np.float64) * Jv, dparams.astype(np.float64) * v
    off = abs(terms[0].sum() - terms[1].sum())
    assert off <= ROUNDINGS * np.finfo(dtype).eps * sum(abs(t).sum() for t in terms)


@pytest.mark.backend
@settings(max_examples=60)
@given(data=st.data())
def test_masked_entries_never_matter(backend, dtype, data):
    """The values of masked entries change no bit; they and frozen entries have no derivative."""
    c = data.draw(cases(dtype, EVERY_ACTIVATION, EVERY_LOSS, ("l2", "l1", "group"), masks=True))
    fixed = np.setdiff1d(np.arange(c.net.n_params), c.net.free)
    masked = np.zeros(c.net.n_params, bool)
    for layer, (W, b) in zip(c.net.layers, c.net.unpack(masked), strict=True):
        W[:] = layer.mask is not None and ~layer.mask
        if b is not None:
            b[:] = layer.bias_mask is not None and ~layer.bias_mask
    rubbish = np.resize(np.array([np.nan, np.inf, 7, np.finfo(dtype).max], dtype), masked.sum())
    spoilt = c.params.copy()
    spoilt[masked] = rubbish
    results = [
        [
            c.net.forward(params, c.X),
            c.net.value_and_grad(params, c.X, c.y, c.loss, **c.terms),
            c.net.vjp(params, c.X)[1](cotangent(c)),
            c.net.jvp(params, c.X, params),
            c.net.per_sample_grad(params, c.X, c.y, c.loss),
            c.net.hvp(params, c.X, c.y, params, c.loss, **c.terms),
        ]
        for params in (c.params, spoilt)
    ]
    assert same(*results)
    _, (_, grad), (dparams, _), _, rows, Hv = results[0]
    assert not any(derivative[..., fixed].any() for derivative in (grad, dparams, rows, Hv))


@pytest.mark.backend
@settings(max_examples=60)
@given(data=st.data())
def test_gradient_is_the_slope_of_the_value(module, data):
    """Along random directions; Richardson's rule takes the differences' error to h⁴."""
    dtype = np.dtype("float64")
    c = data.draw(cases(dtype, SMOOTH_ACTIVATIONS, SMOOTH_LOSSES, rows=9, width=6, masks=True))
    v = direction(c) / np.sqrt(c.net.n_params)
    _, grad = module.value_and_grad(c.problem, c.effective, 1)
    assume(np.isfinite(grad).all())

    def slope(h):
        ends = (module.value(c.problem, c.effective + sign * h * v, 1) for sign in (1, -1))
        return (next(ends) - next(ends)) / (2 * h)

    steps = [slope(2.0**-k) for k in (8, 9, 10)]
    first = [(4 * fine - coarse) / 3 for coarse, fine in pairwise(steps)]
    estimate = (16 * first[1] - first[0]) / 15
    # What the loss's terms, of size 1 and of the value's, lose by rounding is divided by 2h.
    rounding = 1e-14 * (1 + abs(module.value(c.problem, c.effective, 1))) * 2**10
    uncertain = abs(estimate - first[1]) + rounding
    assert abs(grad @ v - estimate) <= uncertain + 1e-12 * abs(grad).max()


# Training.


# Options of a config.

EVERY_OPTION = {
    "clip_norm": 0.2, "average_from": 7, "validation": 9, "goal": 1e-3, "patience": 2, "tol": 0.01,
}  # fmt: skip
GO_ON = (contract.DONE, contract.GOAL_MET, contract.NO_PROGRESS)


def go_through(module, t, run, n_steps, cuts=()):
    """Train to the end, past all stops: ([(step, code) of each stop], losses, validation)."""
    buffers, stops = t.buffers(n_steps), []
    while run.step < n_steps:
        stop = min([cut for cut in cuts if cut > run.step], default=n_steps)
        code, _ = t.go(module, run, stop - run.step, *buffers)
        assert code in GO_ON
        stops += [(run.step, code)] if code else []
    return stops, *buffers


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_training_with_every_option_agrees_with_the_reference(compiled, method):
    options = EVERY_OPTION | {"goal": -np.inf, "patience": 20}
    for seed in range(8):
        loss = ["mse", "margin_ranking", "softmax_ce", "gaussian_nll"][seed % 4]
        what = {"fixed": seed < 4, "dropout": seed % 3 / 4}
        _, t, run = training(seed, "float64", method, loss, **what, **options)
        agree_in_training(compiled, t, run, (1, 3, 9, 5, 20))


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
@pytest.mark.parametrize("fixed", [False, True])
def test_each_step_with_every_option_follows_the_contract(module, dtype, method, fixed):
    for seed in (1, 2, 4, 7):
        loss = ["mse", "margin_ranking", "softmax_ce", "gaussian_nll"][seed % 4]
        c, t, run = training(seed, dtype, method, loss, fixed=fixed, **EVERY_OPTION)
        follow(module, c, t, run, 20, past_stops=True)


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_chunks_with_every_option_are_one_run_bitwise(module, dtype, method):
    for seed in range(6):
        cuts = np.random.default_rng(seed).choice(60, 20)
        what = {"fixed": seed % 2, "dropout": seed % 3 / 4}
        _, t, run = training(seed, dtype, method, **what, **EVERY_OPTION)
        whole = copy_of(run)
        expected = go_through(module, t, whole, 60)
        assert same(go_through(module, t, run, 60, cuts), expected)
        assert same(contents(run), contents(whole))


@pytest.mark.backend
def test_options_not_in_use_need_no_arrays(module, dtype):
    """Nor does a validation without patience."""
    for validation in (0, 9):
        _, t, run = training(7, dtype, "adam", validation=validation)
        bare = replace(copy_of(run), best=np.empty(0, dtype), average=np.empty(0))
        assert same(t.go(module, bare, 20), t.go(module, run, 20))
        assert same(contents(bare)[:3], contents(run)[:3])


# Watched values. The transcript decides from them which parameters are best and where runs stop.


@pytest.mark.backend
@pytest.mark.parametrize("validation", [0, 9])
@pytest.mark.parametrize("loss", ["mse", "poisson"])
def test_stops_follow_from_the_numbers_met(module, dtype, validation, loss):
    """Rates that are often too large, so that objectives rise and fall; some are negative."""
    codes, watched = set(), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        options = {
            "average_from": int(rng.choice([-1, 13])), "patience": int(rng.integers(1, 5)),
            "tol": rng.choice([0.0, 0.02, 0.2]), "validation": validation,
        }  # fmt: skip
        _, t, run = training(seed, dtype, "sgd", loss, **options)
        t.rates = rng.uniform(0, 1.0, 100)
        if loss == "poisson":  # counts whose best objective is below 0
            t.rates /= 4
            t.problem.targets[:] += 3
        means = t.having(patience=0).go(module, copy_of(run), 100)[1] / t.steps_per_epoch
        goal = float(rng.choice([-np.inf, np.median(means)]))
        code, *_ = follow(module, None, t.having(goal=goal), run, 100)
        codes.add(code)
        watched.append(run.monitor[3])
    assert codes >= {contract.GOAL_MET, contract.NO_PROGRESS}
    assert min(watched) < 0 or loss == "mse"


@pytest.mark.backend
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_validation_that_is_not_finite_is_no_progress(module, dtype, bad):
    _, t, run = training(0, dtype, "adam", validation=9, patience=3)
    t.held_out.y[2] = bad
    held_out = replace(t, held_out=None).having(validation=t.held_out.problem)
    best = run.best.copy()
    code, losses, validation = follow(module, None, held_out, run, 50)
    assert (code, run.step) == (contract.NO_PROGRESS, 15)
    assert not np.isfinite(validation[:3]).any() and not validation[3:].any()
    assert np.isfinite(losses).all() and same(run.best, best)
    assert run.monitor[3:].tolist() == [np.inf, np.inf, 3]
    # Without patience it is just a number.
    run = new_run(best, OPTIMIZERS["adam"])
    assert held_out.having(patience=0).go(module, run, 50)[0] == contract.DONE


@pytest.mark.backend
def test_the_goal_comes_before_the_patience(module, dtype):
    """Both are due in epoch 2; later calls continue, and stop as soon as one is due."""
    _, t, run = training(0, dtype, "sgd", batch_size=23, rate=0.1, validation=9)
    t.held_out.y[:] = np.nan
    t = t.having(validation=t.held_out.problem, patience=2)
    _, means = t.having(patience=0).go(module, copy_of(run), 9)
    assert (np.diff(means) < 0).all()
    t = t.having(goal=means[1])
    code, _ = t.go(module, run, 9)
    assert (code, run.step, run.monitor[5]) == (contract.GOAL_MET, 2, 2)
    assert t.go(module, run, 9)[0] == contract.GOAL_MET and run.step == 3
    assert t.having(goal=0.0).go(module, run, 9)[0] == contract.NO_PROGRESS
    assert (run.step, run.monitor[5]) == (4, 4)


@pytest.mark.backend
def test_the_goal_may_be_met_exactly(module, dtype):
    for batch_size in (23, 5):
        _, t, run = training(0, dtype, "sgd", batch_size=batch_size, rate=0.0)
        _, (total,) = t.go(module, copy_of(run), t.steps_per_epoch)
        mean = total / t.steps_per_epoch
        below = t.having(goal=np.nextafter(mean, -np.inf))
        assert below.go(module, copy_of(run), t.steps_per_epoch)[0] == contract.DONE
        assert t.having(goal=mean).go(module, run, t.steps_per_epoch)[0] == contract.GOAL_MET


@pytest.mark.backend
def test_what_diverges_is_not_watched(module, dtype):
    """The validation is not evaluated if parameters are not finite, nor after the last growth."""
    options = {"validation": 9, "patience": 3, "goal": np.inf, "batch_size": 23}
    _, t, run = training(0, dtype, "sgd", rate=np.inf, **options)
    untouched, before = np.full(1, 123.0), copy_of(run)
    code = t.go(module, run, 1, validation=untouched)[0]
    assert code == contract.NON_FINITE_PARAMETERS and untouched == 123
    assert same([run.best, run.monitor[3:]], [before.best, before.monitor[3:]])
    t = replace(t, rate=0.0).having(goal=-np.inf)
    run, untouched = copy_of(before), np.full(4, 123.0)
    t.go(module, run, 1)
    run.monitor[0] = 1e-300
    code = t.go(module, run, 3, validation=untouched)[0]
    assert (code, run.step) == (contract.GROWN, 4)
    assert (untouched[1:3] < 123).all() and untouched[3] == 123
    assert run.monitor[5] == 2


def stopped(module, dtype):
    """A run for each stop: (code, training, run)."""
    _, t, run = training(1, dtype, "adam", validation=9, average_from=3)
    yield contract.DONE, t, run
    yield contract.GOAL_MET, t.having(goal=np.inf), run
    yield contract.NO_PROGRESS, replace(t, rate=0.0).having(patience=1), run
    last_is_infinite = np.where(np.arange(30) == 4, np.inf, 0.01)
    yield contract.NON_FINITE_PARAMETERS, replace(t, rates=last_is_infinite), run
    targets = t.problem.targets.copy()
    targets[3] = np.nan
    yield (
        contract.NON_FINITE_OBJECTIVE,
        replace(t, problem=replace(t.problem, targets=targets, handles={})),
        run,
    )


@pytest.mark.backend
def test_a_copy_goes_on_as_the_run_would(module, dtype):
    """Training continues after each stop: unless it was divergence, as if without the stop."""
    for expected, t, start in stopped(module, dtype):
        run = copy_of(start)
        code, _ = t.go(module, run, 12)
        assert code == expected
        again, step = copy_of(run), run.step
        assert same(t.go(module, run, 9), t.go(module, again, 9)), expected
        assert same(contents(run), contents(again))
        if expected in GO_ON:
            endless = copy_of(start)
            t.having(goal=-np.inf, patience=0).go(module, endless, run.step)
            assert run.step > step
            assert same(contents(run)[:3], contents(endless)[:3])
