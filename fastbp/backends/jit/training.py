"""Training: the steps of a chunk in one call, and the optimizers' update rules."""

from __future__ import annotations

import math

from numba import types

from ..contract import (
    ADAM,
    DONE,
    GROWN,
    GROWTH_EPOCHS,
    GROWTH_LIMIT,
    NESTEROV,
    NON_FINITE_OBJECTIVE,
    NON_FINITE_PARAMETERS,
)
from .compiling import (
    FLAG,
    INTEGER,
    NUMBER,
    PAIR,
    Entry,
    given_doubles,
    given_integers,
    part,
    result,
    result_doubles,
)
from .network import GRADIENT
from .objective import DATA, PLAN, SCALE, SUMS, objective_of, sum_of_parts, sum_of_rows
from .vectors import (
    Vector,
    aligned,
    as_real,
    at,
    copy,
    elementwise,
    floating_point_mode,
    flushing,
    pointer,
    set_floating_point_mode,
)


def _momentum_rule(p: Vector, v: Vector, g: Vector, lr: Vector, momentum: Vector) -> tuple:
    v = v * momentum + g
    return p - lr * v, v


def _nesterov_rule(p: Vector, v: Vector, g: Vector, lr: Vector, momentum: Vector) -> tuple:
    v = v * momentum + g
    return p - lr * (g + momentum * v), v


def _adam_rule(
    p: Vector,
    m: Vector,
    s: Vector,
    g: Vector,
    rest1: Vector,  # 1 - β1
    beta2: Vector,
    rest2: Vector,  # 1 - β2
    rate: Vector,  # lr / (1 - β1^t)
    correction: Vector,  # 1 / sqrt(1 - β2^t)
    eps: Vector,
) -> tuple:
    m = m + rest1 * (g - m)
    s = s * beta2 + rest2 * (g * g)
    return p - rate * m / (s.sqrt() * correction + eps), m, s


_sgd = elementwise(lambda p, g, lr: (p - lr * g,), 2, 1)
_momentum = elementwise(_momentum_rule, 3, 2)
_nesterov = elementwise(_nesterov_rule, 3, 2)
_adam = elementwise(_adam_rule, 4, 3)

# 0 for finite numbers, NaN for all others.
_finite_probe = elementwise(lambda x: (x - x,), 1, 0, total=True)


@part
def _update(kind, n_moments, c0, c1, c2, lr, step, n, p, moments, g):
    """One step of the optimizer's rule."""
    if kind == ADAM:
        t = float(step + 1)
        rate, correction = lr / (1.0 - c0**t), 1.0 / math.sqrt(1.0 - c1**t)
        _adam(
            n, p, moments, at(moments, n), g,
            as_real(p, 1.0 - c0), as_real(p, c1), as_real(p, 1.0 - c1),
            as_real(p, rate), as_real(p, correction), as_real(p, c2),
        )  # fmt: skip
    elif n_moments == 0:
        _sgd(n, p, g, as_real(p, lr))
    elif kind == NESTEROV:
        _nesterov(n, p, moments, g, as_real(p, lr), as_real(p, c0))
    else:
        _momentum(n, p, moments, g, as_real(p, lr), as_real(p, c0))


def _make_train(fingerprint):
    def train(
        plan, constants, terms, numbers, X, targets, labels, weights, frozen,
        kind, n_moments, c0, c1, c2, params, moments, good, monitor, seed,
        step, n_steps, batch_size, averaged, order, rates, losses, epsilon, gradients, sums,
        workspace,
    ):  # fmt: skip
        """Do steps as `contract.train` tells; returns why it stopped and the steps completed.

        Where `sums` holds something, the sums and gradients of the parts of one step's batch are
        there already.
        """
        _ = fingerprint  # see compiling.source_fingerprint
        mode = floating_point_mode()
        set_floating_point_mode(flushing(mode))
        n, n_params = X.shape[0], params.size
        steps_per_epoch = (n + batch_size - 1) // batch_size
        first_epoch = step // steps_per_epoch
        q, c, p, a = pointer(plan), pointer(constants), pointer(params), pointer(numbers)
        space = aligned(pointer(workspace))
        start, last_good = at(pointer(good), n_params), pointer(good)
        m, rate, lost = pointer(monitor), pointer(rates), pointer(losses)
        g = pointer(gradients) if sums.size > 0 else at(space, q[GRADIENT])
        status = DONE
        for i in range(n_steps):
            epoch, j = step // steps_per_epoch - first_epoch, step % steps_per_epoch
            first = j * batch_size
            count = min(batch_size, n - first)
            factor = a[SCALE] * n / count if averaged else a[SCALE]
            if j == 0:
                copy(start, p, n_params)
            if sums.size > 0:
                total = sum_of_parts(sums.size, pointer(sums), g, True, n_params)
            else:
                total = sum_of_rows(
                    q, c, p, pointer(terms), a, pointer(X), pointer(targets), pointer(labels),
                    pointer(weights), at(pointer(order), epoch * n), order.size > 0,
                    first, count, factor, seed, step, g, True, n_params, space,
                )  # fmt: skip
            objective = objective_of(total, factor, q, p, a, g, True, space)
            for k in range(frozen.size):
                g[pointer(frozen)[k]] = 0.0
            lost[epoch] += objective
            m[2] = objective
            if not math.isfinite(objective):
                status = NON_FINITE_OBJECTIVE
                break
            if step == 0:
                m[0] = max(abs(objective), epsilon)
            lr = rate[i] if rates.size > 1 else rate[0]
            _update(kind, n_moments, c0, c1, c2, lr, step, n_params, p, pointer(moments), g)
            step += 1
            if j == steps_per_epoch - 1:
                if _finite_probe(n_params, p) != 0.0:
                    status = NON_FINITE_PARAMETERS
                    break
                if lost[epoch] / steps_per_epoch <= GROWTH_LIMIT * m[0]:
                    copy(last_good, start, n_params)
                    m[1] = 0.0
                    continue
                m[1] += 1.0
                if m[1] == GROWTH_EPOCHS:
                    status = GROWN
                    break
        set_floating_point_mode(mode)
        return status, step

    return train


train = Entry(
    _make_train, PAIR,
    *PLAN, *DATA, given_integers(1), INTEGER, INTEGER, NUMBER, NUMBER, NUMBER, result(1),
    result(2), result(2), result_doubles(1), types.uint64, INTEGER, INTEGER, INTEGER, FLAG,
    given_integers(2), given_doubles(1), result_doubles(1), NUMBER, result(1), given_doubles(1),
    result(1), calls=SUMS,
)  # fmt: skip
