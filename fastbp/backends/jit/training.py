"""The training loop: the steps of a chunk in one call, and what happens at the end of an epoch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import types

from .. import contract
from . import layout, vectors
from .compiling import INTEGER, NUMBER, PAIR, Struct, callee, entry, in_array, inlined, out_array
from .losses import DATA, SCALE, pointers
from .network import PLAN, net_of, room, with_params
from .objective import SUMS, Batch, all_rows, objective_of, sum_of_rows, sum_of_squares
from .optimizers import start_powers, update
from .vectors import as_real, at, copy, elementwise, pointer

# Compiled code takes a configuration as a vector of integers and one of numbers, its settings:
# attributes of `TrainConfig` and `Optimizer` of these names, whether there is a validation, and the
# epsilon of the dtype. The settings begin with the optimizer's four constants.
KIND, BATCH_SIZE, AVERAGED, AVERAGE_FROM, VALIDATED, PATIENCE = range(6)
CLIP_NORM, GOAL, TOL, EPSILON = range(4, 8)

# 0 for finite numbers, NaN for all others.
_finite_probe = elementwise(lambda x: (x - x,), 1, 0, total=True)
_multiply = elementwise(lambda x, factor: (x * factor,), 1, 1)
# The mean of `count` vectors from that of the others and the last one.
_add_to_mean = elementwise(lambda mean, x, count: (mean + (x - mean) / count,), 2, 1)
_convert = elementwise(lambda to, x: (x,), 2, 1)


@inlined
def _clip(n, g, clip_norm):
    """Scale a gradient down to a norm."""
    factor = clip_norm / (math.sqrt(sum_of_squares(n, g)) + contract.CLIP_EPSILON)
    if factor < 1.0:
        _multiply(n, g, as_real(g, factor))


@inlined
def _check(n_params, params, good, monitor, mean):
    """Whether an epoch was sound: its parameters finite, its mean objective not grown."""
    if _finite_probe(n_params, params) != 0.0:
        return contract.NON_FINITE_PARAMETERS
    if mean <= contract.GROWTH_LIMIT * monitor[contract.FIRST_OBJECTIVE]:
        copy(good, at(good, n_params), n_params)
        monitor[contract.EPOCHS_GROWN] = 0.0
        return contract.DONE
    monitor[contract.EPOCHS_GROWN] += 1.0
    diverged = monitor[contract.EPOCHS_GROWN] == contract.GROWTH_EPOCHS
    return contract.GROWN if diverged else contract.DONE


@inlined
def _watches(integers, settings):
    """Whether there is anything to do for `_watch`."""
    return integers[VALIDATED] or integers[PATIENCE] > 0 or settings[GOAL] > -math.inf


class Config(NamedTuple):
    """A configuration: arrays, or in compiled code pointers to them."""

    integers: Any  # int64, see KIND
    settings: Any  # float64, see CLIP_NORM
    frozen: Any  # int64: the parameters that do not change


class State(NamedTuple):
    """The arrays of `TrainState`, or in compiled code pointers to them."""

    params: Any
    moments: Any
    good: Any
    best: Any
    average: Any
    monitor: Any


class Chunk(NamedTuple):
    """The arguments of `train` for some steps."""

    order: Any
    rates: Any
    losses: Any
    validation: Any


CONFIG = Struct(Config, in_array(1, INTEGER), in_array(1, NUMBER), in_array(1, INTEGER))
STATE = Struct(
    State, out_array(1), out_array(2), out_array(2), out_array(1), out_array(1, NUMBER),
    out_array(1, NUMBER)
)  # fmt: skip
CHUNK = Struct(
    Chunk, in_array(2, INTEGER), in_array(1, NUMBER), out_array(1, NUMBER), out_array(1, NUMBER)
)  # fmt: skip


@callee
def _watch(net, data, n_rows, config, state, n_params, step, mean, validation):
    """What follows a sound epoch: the validation on its data, the best parameters, the stops."""
    integers, settings = config.integers, config.settings
    monitor, candidate = state.monitor, net.params
    if 0 <= integers[AVERAGE_FROM] < step:
        candidate = room(net, layout.GRADIENT)
        _convert(n_params, candidate, state.average)
    watched = mean
    if integers[VALIDATED]:
        factor, there = data.numbers[SCALE], with_params(net, candidate)
        total = sum_of_rows(there, data, all_rows(data, n_rows, factor), candidate, False, 0)
        watched = objective_of(total, factor, there, data.numbers, candidate, False)
        validation[0] = watched
    patience = integers[PATIENCE]
    if patience > 0:
        if watched < monitor[contract.LOWEST]:
            copy(state.best, candidate, n_params)
            monitor[contract.LOWEST] = watched
        bound = monitor[contract.LAST_PROGRESS]
        if bound < math.inf:
            bound -= settings[TOL] * abs(bound)
        if watched < bound:
            monitor[contract.LAST_PROGRESS] = watched
            monitor[contract.EPOCHS_WITHOUT] = 0.0
        else:
            monitor[contract.EPOCHS_WITHOUT] += 1.0
    if mean <= settings[GOAL]:
        return contract.GOAL_MET
    if patience > 0 and monitor[contract.EPOCHS_WITHOUT] >= patience:
        return contract.NO_PROGRESS
    return contract.DONE


@entry(
    PAIR, PLAN, DATA, PLAN, DATA, CONFIG, STATE, types.uint64, INTEGER, INTEGER, CHUNK,
    out_array(1), calls=SUMS,
)  # fmt: skip
def train(plan, data, v_plan, v_data, config, run, seed, step, n_steps, chunk, workspace):
    """Do steps as `train` says; returns why it stopped and the steps completed.

    `v_plan` and `v_data` are those of the validation, `step` the steps done before.
    """
    mode = vectors.floating_point_mode()
    vectors.set_floating_point_mode(vectors.flushing(mode))
    integers, settings = pointer(config.integers), pointer(config.settings)
    state = State(
        pointer(run.params), pointer(run.moments), pointer(run.good), pointer(run.best),
        pointer(run.average), pointer(run.monitor),
    )  # fmt: skip
    net, rows = net_of(plan, run.params, workspace), pointers(data)
    p, m, a, g = state.params, state.monitor, rows.numbers, room(net, layout.GRADIENT)
    n, n_params, batch_size = data.x.shape[0], run.params.size, integers[BATCH_SIZE]
    steps_per_epoch = (n + batch_size - 1) // batch_size
    epoch, first = 0, step % steps_per_epoch * batch_size
    rate, lost, has_order = pointer(chunk.rates), pointer(chunk.losses), chunk.order.size > 0
    held, fixed = room(net, layout.PART_GRADIENT), pointer(config.frozen)
    n_frozen = config.frozen.size
    watches, status = _watches(integers, settings), contract.DONE
    in_one_tile = n <= min(batch_size, net.plan[layout.TILE])
    all_in_a_tile = in_one_tile and not has_order and not integers[VALIDATED]
    powers = vectors.room_for(m, 2)
    start_powers(settings, step, powers)
    for i in range(n_steps):
        count, resident = min(batch_size, n - first), i > 0 and all_in_a_tile
        factor = a[SCALE] * n / count if integers[AVERAGED] else a[SCALE]
        if first == 0:
            copy(at(state.good, n_params), p, n_params)
        order = at(pointer(chunk.order), epoch * n)
        batch = Batch(order, has_order, first, count, factor, seed, step, resident)
        total = sum_of_rows(net, rows, batch, g, True, n_params)
        objective = objective_of(total, factor, net, a, g, True)
        lost[epoch] += objective
        m[contract.LAST_OBJECTIVE] = objective
        if not math.isfinite(objective):
            status = contract.NON_FINITE_OBJECTIVE
            break
        if step == 0:
            m[contract.FIRST_OBJECTIVE] = max(abs(objective), settings[EPSILON])
        for k in range(n_frozen):
            held[k] = p[fixed[k]]
            g[fixed[k]] = 0.0
        if settings[CLIP_NORM] < math.inf:
            _clip(n_params, g, settings[CLIP_NORM])
        lr = rate[i] if chunk.rates.size > 1 else rate[0]
        update(integers[KIND], settings, lr, step, n_params, p, state.moments, g, powers)
        for k in range(n_frozen):  # which the optimizer may decay
            p[fixed[k]] = held[k]
        if 0 <= integers[AVERAGE_FROM] <= step:
            averaged = float(step - integers[AVERAGE_FROM] + 1)
            _add_to_mean(n_params, state.average, p, averaged)
        step += 1
        first += batch_size
        if first >= n:
            mean = lost[epoch] / steps_per_epoch
            status = _check(n_params, p, state.good, m, mean)
            if status == contract.DONE and watches:
                status = _watch(
                    net_of(v_plan, run.params, workspace), pointers(v_data), v_data.x.shape[0],
                    Config(integers, settings, fixed), state, n_params, step, mean,
                    at(pointer(chunk.validation), epoch),
                )  # fmt: skip
            if status != contract.DONE:
                break
            epoch, first = epoch + 1, 0
    vectors.set_floating_point_mode(mode)
    return status, step
