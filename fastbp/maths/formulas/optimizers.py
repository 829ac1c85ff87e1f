"""The update rules of the optimizers as vector formulas.

The classes of training/optimizers.py say what the rules compute. A gradient of 0 moves no parameter
whose moments are 0. Each operation is rounded once, but quotients to about 1.5 ULP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .vector import V


class Rule(NamedTuple):
    """The rule of an optimizer.

    Attributes
    ----------
    n_moments : int
        How many vectors the rule carries from step to step.
    numbers : callable
        (lr, constants, powers) -> the numbers of a step, computed in float64 from the rate, the
        optimizer's constants, and the powers of the first two of them by the step, from 1 on.
    formula : callable
        (p, moments, g, *numbers) -> p and the moments, of parameters p and their gradient g.
    has_powers : bool
        Whether `numbers` uses the powers.
    """

    n_moments: int
    numbers: Callable[..., tuple[Any, ...]]
    formula: Callable[..., tuple[Any, ...]]
    has_powers: bool = False


def _sgd(p: V, moments: list[V], g: V, rate: V) -> tuple[V, ...]:
    return (p - rate * g,)


def _momentum(p: V, moments: list[V], g: V, rate: V, momentum: V) -> tuple[V, ...]:
    v = momentum * moments[0] + g
    return p - rate * v, v


def _nesterov(p: V, moments: list[V], g: V, rate: V, momentum: V) -> tuple[V, ...]:
    v = momentum * moments[0] + g
    return p - rate * (g + momentum * v), v


def _adam_numbers(lr: V, constants: list[V], powers: list[V]) -> tuple[V, ...]:
    beta1, beta2, eps = constants[:3]
    rate, correction = lr / (1 - powers[0]), 1 / (1 - powers[1]).sqrt()
    return rate, correction, 1 - beta1, beta2, 1 - beta2, eps


def _adam(
    p: V, moments: list[V], g: V, rate: V, correction: V, rest1: V, beta2: V, rest2: V, eps: V
) -> tuple[V, ...]:
    m, s = moments
    m = m + rest1 * (g - m)
    s = beta2 * s + rest2 * g * g
    return p - (rate * m).over(s.sqrt() * correction + eps), m, s


def _rmsprop_numbers(lr: V, constants: list[V], powers: list[V]) -> tuple[V, ...]:
    alpha, eps, momentum = constants[:3]
    return lr, alpha, 1 - alpha, eps, momentum


def _rmsprop(has_momentum: bool, centered: bool) -> Rule:
    def formula(
        p: V, moments: list[V], g: V, rate: V, alpha: V, rest: V, eps: V, momentum: V
    ) -> tuple[V, ...]:
        s = q = alpha * moments[0] + rest * g * g
        others = []
        if centered:
            a = moments[-1]
            a = a + rest * (g - a)
            q = (s - a * a).at_least(0)
            others = [a]
        d = g.over(q.sqrt() + eps)
        if has_momentum:
            d = d + momentum * moments[1]
            others = [d, *others]
        return p - rate * d, s, *others

    return Rule(1 + has_momentum + centered, _rmsprop_numbers, formula)


def _adagrad(p: V, moments: list[V], g: V, rate: V, eps: V) -> tuple[V, ...]:
    s = moments[0] + g * g
    return p - (rate * g).over(s.sqrt() + eps), s


# By the names of the kinds, whose numbers are the places here; the constants are those of the
# classes' `rule`.
RULES: dict[str, Rule] = {
    "sgd": Rule(0, lambda lr, constants, powers: (lr,), _sgd),
    "momentum": Rule(1, lambda lr, constants, powers: (lr, constants[0]), _momentum),
    "nesterov": Rule(1, lambda lr, constants, powers: (lr, constants[0]), _nesterov),
    "adam": Rule(2, _adam_numbers, _adam, has_powers=True),
    "rmsprop": _rmsprop(has_momentum=False, centered=False),
    "rmsprop_momentum": _rmsprop(has_momentum=True, centered=False),
    "rmsprop_centered": _rmsprop(has_momentum=False, centered=True),
    "rmsprop_centered_momentum": _rmsprop(has_momentum=True, centered=True),
    "adagrad": Rule(1, lambda lr, constants, powers: (lr, constants[0]), _adagrad),
}
KINDS = {name: kind for kind, name in enumerate(RULES)}
