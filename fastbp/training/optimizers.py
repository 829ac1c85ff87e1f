"""The first-order methods: a class for each, with PyTorch's update rules, and a table of names.

CONTRIBUTING.md says how one is added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..backends.contract import Optimizer
from ..common.arrays import number
from ..common.errors import unknown_name
from . import schedules
from .schedules import set_fields

Rate = float | Callable[[float], float]

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def _rate(value: Any) -> Rate:
    if callable(value):
        return value
    lr = number("lr", value, "a number or a function of the epoch")
    if not 0 < lr < np.inf:
        raise ValueError(f"lr is {lr}, expected a positive finite rate, such as 0.01")
    return lr


def _share(name: str, value: Any) -> float:
    """A number in [0, 1)."""
    share = number(name, value)
    if not 0 <= share < 1:
        raise ValueError(f"{name} is {share}, expected a number in [0, 1), such as 0.9")
    return share


def _not_negative(name: str, value: Any, such_as: str) -> float:
    result = number(name, value)
    if not 0 <= result < np.inf:
        raise ValueError(f"{name} is {result}, expected a finite number >= 0, such as {such_as}")
    return result


def _normal_eps(eps: float) -> float:
    """The eps of the rule, at least the smallest normal number, so that no step divides 0 by 0."""
    return max(eps, SMALLEST_NORMAL)


@dataclass(frozen=True)
class FirstOrder:
    """The base of the methods: a rate, and an update rule for the backends.

    Parameters
    ----------
    lr : float or callable
        The rate: a number or a function of the epoch, such as those of `fastbp.schedules`.
    """

    lr: Rate

    @property
    def rule(self) -> Optimizer:
        """The update rule as a backend takes it."""
        raise NotImplementedError

    @property
    def initial_moment(self) -> float:
        """The initial value of all entries of the rule's moments."""
        return 0.0

    @property
    def rate_changes(self) -> bool:
        """Whether the rate changes from step to step."""
        return callable(self.lr)

    def rates(self, steps: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """The rates of these steps, float64 (n,).

        Parameters
        ----------
        steps : numpy.ndarray of int64 (n,)
            Counted from 0.
        epochs : numpy.ndarray of float64 (n,)
            The same in epochs: each step divided by the number of steps in an epoch.

        Raises
        ------
        ValueError
            If a schedule returns a rate that is negative or not finite.
        TypeError
            If it returns something else than a number.
        """
        return schedules.rates(self.lr, epochs)


@dataclass(frozen=True)
class SGD(FirstOrder):
    """Gradient descent, with or without momentum: v = momentum·v + g, p -= lr·v.

    Parameters
    ----------
    lr : float or callable, default 0.01
        The rate: a number or a function of the epoch (see `fastbp.schedules`).
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

    lr: Rate = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        set_fields(self, lr=_rate(self.lr), momentum=_share("momentum", self.momentum))
        set_fields(self, nesterov=bool(self.nesterov))
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs momentum, which is 0; pass momentum=0.9")

    @property
    def rule(self) -> Optimizer:
        """The update rule as a backend takes it."""
        name = "nesterov" if self.nesterov else "momentum" if self.momentum else "sgd"
        return Optimizer.of(name, self.momentum)

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
class Adam(FirstOrder):
    """Adam: steps scaled by running means of the gradient and of its square [1]_.

    m = β1·m + (1-β1)·g, s = β2·s + (1-β2)·g², both from 0; in step t = 1, 2, ...
    p -= lr · m/(1-β1^t) / (sqrt(s/(1-β2^t)) + eps).

    Parameters
    ----------
    lr : float or callable, default 1e-3
        The rate: a number or a function of the epoch (see `fastbp.schedules`).
    betas : tuple of two floats, default (0.9, 0.999)
        The shares of the means that are kept, in [0, 1).
    eps : float, default 1e-8
        Bounds the step where gradients vanish; >= 0. Below 1.2e-38, float32's smallest normal
        number, it counts as that, so that a parameter without a gradient stays as it is.

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

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        try:
            beta1, beta2 = self.betas
        except (TypeError, ValueError):
            raise TypeError(f"betas is {self.betas!r}, expected two numbers in [0, 1)") from None
        set_fields(
            self, lr=_rate(self.lr), betas=(_share("betas[0]", beta1), _share("betas[1]", beta2))
        )
        set_fields(self, eps=_not_negative("eps", self.eps, "1e-8"))

    @property
    def rule(self) -> Optimizer:
        """The update rule as a backend takes it."""
        return Optimizer.of("adam", *self.betas, _normal_eps(self.eps))


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: p -= lr·weight_decay·p before Adam's step [1]_.

    Unlike the gradient of a penalty, the decay is not divided by the gradients' size. Every free
    parameter decays, biases too; one that is masked or frozen stays as it is.

    Parameters
    ----------
    lr : float or callable, default 1e-3
        The rate: a number or a function of the epoch (see `fastbp.schedules`).
    betas : tuple of two floats, default (0.9, 0.999)
        The shares of Adam's means that are kept, in [0, 1).
    eps : float, default 1e-8
        As Adam's.
    weight_decay : float, default 0.01
        The decay, >= 0; 0 makes it Adam.

    Raises
    ------
    ValueError
        For numbers out of these ranges, or a rate that is not positive and finite.
    TypeError
        If one of them is not a number.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019.

    Examples
    --------
    >>> import fastbp as fb
    >>> fb.AdamW(lr=0.01, weight_decay=0.1)
    AdamW(lr=0.01, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.1)
    """

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        set_fields(self, weight_decay=_not_negative("weight_decay", self.weight_decay, "0.01"))

    @property
    def rule(self) -> Optimizer:
        """The update rule as a backend takes it."""
        eps, decay = _normal_eps(self.eps), self.weight_decay
        return Optimizer.of("adam", *self.betas, eps, decay=decay)


@dataclass(frozen=True)
class RMSprop(FirstOrder):
    """Steps divided by the running root mean square of the gradient [1]_.

    s = α·s + (1-α)·g² from 0, d = g/(sqrt(s) + eps), p -= lr·d. If `centered`, s less the square of
    the running mean a = α·a + (1-α)·g stands under the root, an estimate of the variance [2]_. With
    momentum v = momentum·v + d from 0 and p -= lr·v.

    Parameters
    ----------
    lr : float or callable, default 0.01
        The rate: a number or a function of the epoch (see `fastbp.schedules`).
    alpha : float, default 0.99
        The share of the running means that is kept, in [0, 1).
    eps : float, default 1e-8
        Bounds the step where gradients vanish; >= 0. Below 1.2e-38 it counts as that.
    momentum : float, default 0.0
        The share of the last step's v that is kept, in [0, 1).
    centered : bool, default False
        Whether to divide by the root of the variance. Of gradients that hardly change little but
        rounding is left of it: an eps of 1e-3 or so keeps the steps bounded.

    Raises
    ------
    ValueError
        For numbers out of these ranges, or a rate that is not positive and finite.
    TypeError
        If one of them is not a number.

    References
    ----------
    .. [1] T. Tieleman, G. Hinton, "Lecture 6.5: rmsprop", Neural Networks for Machine Learning,
       Coursera, 2012.
    .. [2] A. Graves, "Generating sequences with recurrent neural networks", arXiv:1308.0850, 2013,
       which also adds the momentum.

    Examples
    --------
    >>> import fastbp as fb
    >>> fb.RMSprop(lr=0.001, alpha=0.9)
    RMSprop(lr=0.001, alpha=0.9, eps=1e-08, momentum=0.0, centered=False)
    """

    lr: Rate = 0.01
    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    def __post_init__(self) -> None:
        set_fields(self, lr=_rate(self.lr), alpha=_share("alpha", self.alpha))
        set_fields(self, eps=_not_negative("eps", self.eps, "1e-8"))
        set_fields(self, momentum=_share("momentum", self.momentum), centered=bool(self.centered))

    @property
    def rule(self) -> Optimizer:
        """The update rule as a backend takes it."""
        name = "rmsprop" + "_centered" * self.centered + "_momentum" * (self.momentum > 0)
        return Optimizer.of(name, self.alpha, _normal_eps(self.eps), self.momentum)


@dataclass(frozen=True)
class Adagrad(FirstOrder):
    """Steps divided by the root of the sum of all squared gradients so far [1]_.

    s = s + g², p -= lr/(1 + t·lr_decay) · g/(sqrt(s) + eps) in step t = 0, 1, ...

    Parameters
    ----------
    lr : float or callable, default 0.01
        The rate: a number or a function of the epoch (see `fastbp.schedules`).
    lr_decay : float, default 0.0
        Lowers the rate step by step as above, >= 0.
    initial_accumulator_value : float, default 0.0
        The sum of squares to begin with, >= 0.
    eps : float, default 1e-10
        Bounds the step where gradients vanish; >= 0. Below 1.2e-38 it counts as that.

    Raises
    ------
    ValueError
        For numbers out of these ranges, or a rate that is not positive and finite.
    TypeError
        If one of them is not a number.

    References
    ----------
    .. [1] J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and
       stochastic optimization", Journal of Machine Learning Research 12, 2011.

    Examples
    --------
    >>> import fastbp as fb
    >>> fb.Adagrad(lr=0.1)
    Adagrad(lr=0.1, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10)
    """

    lr: Rate = 0.01
    lr_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        set_fields(self, lr=_rate(self.lr), eps=_not_negative("eps", self.eps, "1e-10"))
        for name in ("lr_decay", "initial_accumulator_value"):
            set_fields(self, **{name: _not_negative(name, getattr(self, name), "0.0")})

    @property
    def rule(self) -> Optimizer:
        """The update rule as a backend takes it."""
        return Optimizer.of("adagrad", _normal_eps(self.eps))

    @property
    def initial_moment(self) -> float:
        """The initial value of all entries of the rule's moments."""
        return self.initial_accumulator_value

    @property
    def rate_changes(self) -> bool:
        """Whether the rate changes from step to step."""
        return super().rate_changes or self.lr_decay > 0

    def rates(self, steps: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """The rates of these steps, float64 (n,), with the decay (see `FirstOrder.rates`)."""
        return super().rates(steps, epochs) / (1 + steps * self.lr_decay)


METHODS: dict[str, FirstOrder] = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.9, nesterov=True),
    "adam": Adam(),
    "adamw": AdamW(),
    "rmsprop": RMSprop(),
    "adagrad": Adagrad(),
}


def with_options(
    method: FirstOrder, options: dict[str, Any], others: tuple[str, ...]
) -> FirstOrder:
    """The method with some of its fields replaced.

    Parameters
    ----------
    method : FirstOrder
    options : dict
        New values by the names of the fields.
    others : tuple of str
        Arguments of the caller, which the message about an unknown option lists too.

    Raises
    ------
    TypeError
        For an option that the method does not have.
    """
    if not options:
        return method
    names = [field.name for field in fields(method)]
    for option in options:
        if option not in names:
            what = f"option of {type(method).__name__}"
            raise TypeError(unknown_name(what, option, [*names, *others]))
    return replace(method, **options)
