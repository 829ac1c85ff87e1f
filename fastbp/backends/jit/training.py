"""The training loop: the steps of a chunk in one call, and what happens at the end of an epoch."""

from __future__ import annotations

import math

from numba import types

from ..contract import (
    CLIP_EPSILON,
    DONE,
    EPOCHS_GROWN,
    EPOCHS_WITHOUT,
    FIRST_OBJECTIVE,
    GOAL_MET,
    GROWN,
    GROWTH_EPOCHS,
    GROWTH_LIMIT,
    LAST_OBJECTIVE,
    LAST_PROGRESS,
    LOWEST,
    NO_PROGRESS,
    NON_FINITE_OBJECTIVE,
    NON_FINITE_PARAMETERS,
)
from .compiling import (
    INTEGER,
    PAIR,
    callee,
    entry,
    given_doubles,
    given_integers,
    inlined,
    result,
    result_doubles,
)
from .losses import SCALE
from .network import GRADIENT, PART_GRADIENT, TILE
from .objective import (
    DATA,
    PLAN,
    SUMS,
    objective_of,
    sum_of_rows,
    sum_of_squares,
    value_of_rows,
)
from .optimizers import start_powers, update
from .vectors import (
    aligned,
    as_real,
    at,
    copy,
    elementwise,
    floating_point_mode,
    flushing,
    pointer,
    room_for,
    set_floating_point_mode,
)

# A recipe is, for compiled code, a vector of integers and one of numbers, its settings: attributes
# of `Recipe` and `Optimizer` of these names, whether there is a validation, and the epsilon of the
# dtype. The settings begin with the optimizer's four constants.
KIND, N_MOMENTS, BATCH_SIZE, AVERAGED, AVERAGE_FROM, VALIDATED, PATIENCE = range(7)
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
    factor = clip_norm / (math.sqrt(sum_of_squares(n, g)) + CLIP_EPSILON)
    if factor < 1.0:
        _multiply(n, g, as_real(g, factor))


@inlined
def _check(n_params, params, good, monitor, mean):
    """Whether an epoch was sound: its parameters finite, its mean objective not grown."""
    if _finite_probe(n_params, params) != 0.0:
        return NON_FINITE_PARAMETERS
    if mean <= GROWTH_LIMIT * monitor[FIRST_OBJECTIVE]:
        copy(good, at(good, n_params), n_params)
        monitor[EPOCHS_GROWN] = 0.0
        return DONE
    monitor[EPOCHS_GROWN] += 1.0
    return GROWN if monitor[EPOCHS_GROWN] == GROWTH_EPOCHS else DONE


@inlined
def _watches(recipe, settings):
    """Whether there is anything to do for `_watch`."""
    return recipe[VALIDATED] or recipe[PATIENCE] > 0 or settings[GOAL] > -math.inf


@callee
def _watch(
    recipe, settings, plan, constants, terms, numbers, x, t, labels, weights, n_rows, n_params,
    params,
    best, average, monitor, step, mean, validation, space,
):  # fmt: skip
    """What follows a sound epoch: the validation on its data, the best parameters, the stops."""
    candidate = params
    if 0 <= recipe[AVERAGE_FROM] < step:
        candidate = at(space, plan[GRADIENT])
        _convert(n_params, candidate, average)
    watched = mean
    if recipe[VALIDATED]:
        factor = numbers[SCALE]
        total = value_of_rows(
            plan, constants, candidate, terms, numbers, x, t, labels, weights, n_rows, space
        )
        watched = objective_of(total, factor, plan, candidate, numbers, candidate, False, space)
        validation[0] = watched
    patience = recipe[PATIENCE]
    if patience > 0:
        if watched < monitor[LOWEST]:
            copy(best, candidate, n_params)
            monitor[LOWEST] = watched
        bound = monitor[LAST_PROGRESS]
        if bound < math.inf:
            bound -= settings[TOL] * abs(bound)
        if watched < bound:
            monitor[LAST_PROGRESS] = watched
            monitor[EPOCHS_WITHOUT] = 0.0
        else:
            monitor[EPOCHS_WITHOUT] += 1.0
    if mean <= settings[GOAL]:
        return GOAL_MET
    if patience > 0 and monitor[EPOCHS_WITHOUT] >= patience:
        return NO_PROGRESS
    return DONE


# The types of a recipe, and of arrays of a run.
_RECIPE = given_integers(1), given_doubles(1)
_KEPT = result(2), result(1), result_doubles(1), result_doubles(1)


@entry(
    PAIR,
    *PLAN, *DATA, *PLAN, *DATA, *_RECIPE, given_integers(1), result(1), result(2), *_KEPT,
    types.uint64, INTEGER, INTEGER, given_integers(2), given_doubles(1), result_doubles(1),
    result_doubles(1), result(1), calls=SUMS,
)  # fmt: skip
def train(
    plan, constants, terms, numbers, X, targets, labels, weights, v_plan, v_constants, v_terms,
    v_numbers, v_X, v_targets, v_labels, v_weights, recipe, settings, frozen, params, moments,
    good, best, average, monitor, seed, step, n_steps, order, rates, losses, validation,
    workspace,
):  # fmt: skip
    """Do steps as `contract.train` tells; returns why it stopped and the steps completed."""
    mode = floating_point_mode()
    set_floating_point_mode(flushing(mode))
    n, n_params, batch_size = X.shape[0], params.size, recipe[BATCH_SIZE]
    steps_per_epoch = (n + batch_size - 1) // batch_size
    epoch, first = 0, step % steps_per_epoch * batch_size
    q, c, p, a = pointer(plan), pointer(constants), pointer(params), pointer(numbers)
    space = aligned(pointer(workspace))
    m, rate, lost = pointer(monitor), pointer(rates), pointer(losses)
    g = at(space, q[GRADIENT])
    held, fixed = at(space, q[PART_GRADIENT]), pointer(frozen)
    watches, status = _watches(recipe, settings), DONE
    all_in_a_tile = n <= min(batch_size, q[TILE]) and order.size == 0 and not recipe[VALIDATED]
    powers = room_for(m, 2)
    start_powers(pointer(settings), step, powers)
    for i in range(n_steps):
        count, resident = min(batch_size, n - first), i > 0 and all_in_a_tile
        factor = a[SCALE] * n / count if recipe[AVERAGED] else a[SCALE]
        if first == 0:
            copy(at(pointer(good), n_params), p, n_params)
        total = sum_of_rows(
            q, c, p, pointer(terms), a, pointer(X), pointer(targets), pointer(labels),
            pointer(weights), at(pointer(order), epoch * n), order.size > 0,
            first, count, factor, seed, step, g, True, n_params, resident, space,
        )  # fmt: skip
        objective = objective_of(total, factor, q, p, a, g, True, space)
        lost[epoch] += objective
        m[LAST_OBJECTIVE] = objective
        if not math.isfinite(objective):
            status = NON_FINITE_OBJECTIVE
            break
        if step == 0:
            m[FIRST_OBJECTIVE] = max(abs(objective), settings[EPSILON])
        for k in range(frozen.size):
            held[k] = p[fixed[k]]
            g[fixed[k]] = 0.0
        if settings[CLIP_NORM] < math.inf:
            _clip(n_params, g, settings[CLIP_NORM])
        lr = rate[i] if rates.size > 1 else rate[0]
        update(
            recipe[KIND], recipe[N_MOMENTS], pointer(settings), lr, step, n_params, p,
            pointer(moments), g, powers,
        )  # fmt: skip
        for k in range(frozen.size):  # which the optimizer may decay
            p[fixed[k]] = held[k]
        if 0 <= recipe[AVERAGE_FROM] <= step:
            averaged = float(step - recipe[AVERAGE_FROM] + 1)
            _add_to_mean(n_params, pointer(average), p, averaged)
        step += 1
        first += batch_size
        if first >= n:
            mean = lost[epoch] / steps_per_epoch
            status = _check(n_params, p, pointer(good), m, mean)
            if status == DONE and watches:
                status = _watch(
                    pointer(recipe), pointer(settings), pointer(v_plan), pointer(v_constants),
                    pointer(v_terms), pointer(v_numbers), pointer(v_X), pointer(v_targets),
                    pointer(v_labels), pointer(v_weights), v_X.shape[0], n_params, p,
                    pointer(best), pointer(average), m, step, mean,
                    at(pointer(validation), epoch), space,
                )  # fmt: skip
            if status != DONE:
                break
            epoch, first = epoch + 1, 0
    set_floating_point_mode(mode)
    return status, step
