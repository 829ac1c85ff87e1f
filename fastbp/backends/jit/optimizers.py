"""The optimizers: the update rules of `contract.Optimizer` as formulas over vectors."""

from __future__ import annotations

import math

from ..contract import ADAGRAD, ADAM, NESTEROV, RMSPROP
from .compiling import inlined
from .vectors import Vector, as_real, at, elementwise


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
    shrunk: Vector,  # 1 - lr·decay
    rest1: Vector,  # 1 - β1
    beta2: Vector,
    rest2: Vector,  # 1 - β2
    rate: Vector,  # lr / (1 - β1^t)
    correction: Vector,  # 1 / sqrt(1 - β2^t)
    eps: Vector,
) -> tuple:
    m = m + rest1 * (g - m)
    s = s * beta2 + rest2 * (g * g)
    return shrunk * p - (rate * m).over(s.sqrt() * correction + eps), m, s


def _rmsprop_rule(
    p: Vector,
    s: Vector,
    v: Vector,
    a: Vector,
    g: Vector,
    lr: Vector,
    alpha: Vector,
    rest: Vector,  # 1 - α
    eps: Vector,
    momentum: Vector,
    centered: Vector,
) -> tuple:
    s = s * alpha + rest * (g * g)
    a = a + rest * (g - a)
    q = (s - a * a).at_least(0).where(centered > 0, s)
    v = v * momentum + g.over(q.sqrt() + eps)
    return p - lr * v, s, v, a


def _adagrad_rule(p: Vector, s: Vector, g: Vector, lr: Vector, eps: Vector) -> tuple:
    s = s + g * g
    return p - (lr * g).over(s.sqrt() + eps), s


_sgd = elementwise(lambda p, g, lr: (p - lr * g,), 2, 1)
_momentum = elementwise(_momentum_rule, 3, 2)
_nesterov = elementwise(_nesterov_rule, 3, 2)
_adam = elementwise(_adam_rule, 4, 3)
_rmsprop = elementwise(_rmsprop_rule, 5, 4)
_adagrad = elementwise(_adagrad_rule, 3, 2)


@inlined
def _power(beta, t):
    """β^t by products from the multiple of 64 before on; exactly 0 where 1 - β^t rounds to 1.

    So `_next_power` comes to the same bits wherever a run is resumed.
    """
    first = t - t % 64
    result = 0.0 if first * (1.0 - beta) > 40.0 else beta ** float(first)
    for _ in range(first, t):
        result *= beta
    return result


@inlined
def start_powers(constants, step, powers):
    """The powers of Adam's two β before the given step, for `update`."""
    powers[0], powers[1] = _power(constants[0], step), _power(constants[1], step)


@inlined
def _next_power(beta, t, before):
    return _power(beta, t) if t % 64 == 0 else before * beta


@inlined
def update(kind, n_moments, constants, lr, step, n, p, moments, g, powers):
    """One step of the rule of this kind for n parameters; g is overwritten."""
    c0, c1, c2, c3 = constants[0], constants[1], constants[2], constants[3]
    if kind == ADAM:
        powers[0] = _next_power(c0, step + 1, powers[0])
        powers[1] = _next_power(c1, step + 1, powers[1])
        rate, correction = lr / (1.0 - powers[0]), 1.0 / math.sqrt(1.0 - powers[1])
        _adam(
            n, p, moments, at(moments, n), g, as_real(p, 1.0 - lr * c3),
            as_real(p, 1.0 - c0), as_real(p, c1), as_real(p, 1.0 - c1),
            as_real(p, rate), as_real(p, correction), as_real(p, c2),
        )  # fmt: skip
    elif kind == RMSPROP:
        # A vector that this variant does without is the gradient's own place: with momentum 0 the
        # velocity is d whatever stood there.
        v = at(moments, n) if c2 != 0.0 else g
        a = at(moments, (n_moments - 1) * n) if c3 != 0.0 else g
        _rmsprop(
            n, p, moments, v, a, g, as_real(p, lr), as_real(p, c0), as_real(p, 1.0 - c0),
            as_real(p, c1), as_real(p, c2), as_real(p, c3),
        )  # fmt: skip
    elif kind == ADAGRAD:
        _adagrad(n, p, moments, g, as_real(p, lr), as_real(p, c0))
    elif n_moments == 0:
        _sgd(n, p, g, as_real(p, lr))
    elif kind == NESTEROV:
        _nesterov(n, p, moments, g, as_real(p, lr), as_real(p, c0))
    else:
        _momentum(n, p, moments, g, as_real(p, lr), as_real(p, c0))
