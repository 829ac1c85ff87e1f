"""The first-order methods: one table of update rules, PyTorch's.

To add a method, add a class with a `rule`, a row of `METHODS`, and the rule's number in `contract`
and in each backend.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .._errors import unknown_name
from ..backends import contract
from ..backends.contract import Optimizer


def _set(instance: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, expected a number") from None


def _rate(value: Any) -> float:
    lr = _number("lr", value)
    if not 0 < lr < np.inf:
        raise ValueError(f"lr is {lr}, expected a positive finite rate, such as 0.01")
    return lr


def _share(name: str, value: Any) -> float:
    share = _number(name, value)
    if not 0 <= share < 1:
        raise ValueError(f"{name} is {share}, expected a number in [0, 1), such as 0.9")
    return share


@dataclass(frozen=True)
class SGD:
    """Gradient descent, with momentum if asked for: v = momentum·v + g, p -= lr·v.

    Parameters
    ----------
    lr : float, default 0.01
        The rate.
    momentum : float, default 0.0
        The share of the last step's v that is kept, in [0, 1); v starts at 0 [1]_.
    nesterov : bool, default False
        Take p -= lr·(g + momentum·v) instead, Nesterov's step in the form of [2]_; it needs
        momentum.

    Raises
    ------
    ValueError
        For a rate that is not positive and finite, or a momentum outside [0, 1).
    TypeError
        If one of them is not a number.

    References
    ----------
    .. [1] B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", USSR
       Computational Mathematics and Mathematical Physics 4(5), 1964.
    .. [2] I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and
       momentum in deep learning", ICML 2013.

    Examples
    --------
    >>> import fastbp as fb
    >>> fb.SGD(lr=0.1, momentum=0.9)
    SGD(lr=0.1, momentum=0.9, nesterov=False)
    """

    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _set(self, lr=_rate(self.lr), momentum=_share("momentum", self.momentum))
        _set(self, nesterov=bool(self.nesterov))
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs momentum, which is 0; pass momentum=0.9")

    @property
    def rule(self) -> Optimizer:
        """The update as a backend takes it."""
        kind = contract.NESTEROV if self.nesterov else contract.SGD
        return Optimizer(kind, 1 if self.momentum else 0, (self.momentum,))

    @property
    def stable_limit(self) -> float:
        """The product of rate and curvature below which descent on a quadratic converges.

        On ½λp² one step maps (p, lr·v) linearly. Both eigenvalues of that map are inside the unit
        circle while lr·λ < 2(1 + m), for Nesterov's step while lr·λ < 2(1 + m)/(1 + 2m); without
        momentum m both are 2.
        """
        m = self.momentum
        return 2 * (1 + m) / (1 + 2 * m if self.nesterov else 1)


@dataclass(frozen=True)
class Adam:
    """Adam: steps scaled by running means of the gradient and of its square [1]_.

    m = β1·m + (1-β1)·g, s = β2·s + (1-β2)·g², both from 0; in step t = 1, 2, ...
    p -= lr · m/(1-β1^t) / (sqrt(s/(1-β2^t)) + eps).

    Parameters
    ----------
    lr : float, default 1e-3
        The rate.
    betas : tuple of two floats, default (0.9, 0.999)
        The shares of the means that are kept, in [0, 1).
    eps : float, default 1e-8
        Bounds the step where gradients vanish; >= 0. Below 1.2e-38, float32's smallest normal
        number, it counts as that, so that what never had a gradient stays as it is.

    Raises
    ------
    ValueError
        For a rate that is not positive and finite, betas outside [0, 1) or a negative eps.
    TypeError
        If one of them is not a number.

    References
    ----------
    .. [1] D. P. Kingma, J. Ba, "Adam: A method for stochastic optimization", ICLR 2015.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        try:
            beta1, beta2 = self.betas
        except (TypeError, ValueError):
            raise TypeError(f"betas is {self.betas!r}, expected two numbers in [0, 1)") from None
        _set(self, lr=_rate(self.lr), betas=(_share("betas[0]", beta1), _share("betas[1]", beta2)))
        _set(self, eps=_number("eps", self.eps))
        if not 0 <= self.eps < np.inf:
            raise ValueError(f"eps is {self.eps}, expected a small number >= 0, such as 1e-8")

    @property
    def rule(self) -> Optimizer:
        """The update as a backend takes it."""
        eps = max(self.eps, float(np.finfo(np.float32).tiny))
        return Optimizer(contract.ADAM, 2, (*self.betas, eps))


FirstOrder = SGD | Adam

METHODS: dict[str, FirstOrder] = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.9, nesterov=True),
    "adam": Adam(),
}


def with_options(
    method: FirstOrder, options: dict[str, Any], others: tuple[str, ...]
) -> FirstOrder:
    """The method with some of its numbers replaced.

    Raises
    ------
    TypeError
        For an option that it has not; the message lists those it has, and `others`, the arguments
        that the caller takes itself.
    """
    names = [field.name for field in fields(method)]
    for option in options:
        if option not in names:
            what = f"option of {type(method).__name__}"
            raise TypeError(unknown_name(what, option, [*names, *others]))
    return replace(method, **options)
