"""Schedules: rates that change during a run, for the argument `lr` of the first-order methods.

A schedule is a function of the epoch, counted from 0 in fractions: step s of a run with k steps an
epoch has epoch s/k. Any function of one float will do; those here take whole arrays of epochs too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.arrays import number

__all__ = ["cosine", "exponential", "inverse_time", "step", "warmup"]

# An epoch is a rounded quotient, step/k: a few roundings below a multiple of `every` count as it.
_ROUNDING = 4 * float(np.finfo(float).eps)


class Schedule:
    """A rate as a function of the epoch, for a float or an array of floats."""

    def __call__(self, epoch: Any) -> Any:
        """The rate at this epoch, a float; for an array (...) of epochs an array (...) of rates."""
        epochs = np.asarray(epoch, np.float64)
        rates = self._at(epochs.ravel()).reshape(epochs.shape)
        return rates if epochs.ndim else float(rates)

    def _at(self, epochs: np.ndarray) -> np.ndarray:
        """The rates at these epochs (n,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class cosine(Schedule):
    """Half a period of the cosine, from `lr` to `final`, then `final` [1]_.

    lr·c + final·(1 - c) with c = (1 + cos(π·epoch/epochs))/2.

    Parameters
    ----------
    lr : float
        The rate at the start, > 0.
    epochs : float
        How many epochs it falls, usually those of the run, > 0.
    final : float, default 0.0
        The rate at the end, >= 0.

    Raises
    ------
    ValueError
        For numbers out of these ranges.
    TypeError
        If one is not a number.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "SGDR: Stochastic gradient descent with warm restarts", ICLR
       2017, one cycle of it.

    Examples
    --------
    >>> import fastbp as fb
    >>> rate = fb.schedules.cosine(0.1, epochs=100)
    >>> rate(0), round(rate(50), 9), rate(100)
    (0.1, 0.05, 0.0)
    """

    lr: float
    epochs: float
    final: float = 0.0

    def __post_init__(self) -> None:
        set_fields(self, lr=_positive("lr", self.lr), epochs=_positive("epochs", self.epochs))
        set_fields(self, final=number("final", self.final))
        if not 0 <= self.final < np.inf:
            raise ValueError(f"final is {self.final}, expected a finite rate >= 0, such as 0.0")

    def _at(self, epochs: np.ndarray) -> np.ndarray:
        share = (1 + np.cos(np.pi * np.minimum(epochs / self.epochs, 1.0))) / 2
        return self.lr * share + self.final * (1 - share)


@dataclass(frozen=True)
class step(Schedule):
    """A rate that is multiplied by `factor` every so many epochs: lr·factor^⌊epoch/every⌋.

    Parameters
    ----------
    lr : float
        The rate at the start, > 0.
    every : float
        Epochs between two changes, > 0.
    factor : float, default 0.1
        The factor of each change, > 0.

    Raises
    ------
    ValueError
        For numbers that are not positive and finite.
    TypeError
        If one is not a number.

    Examples
    --------
    >>> import fastbp as fb
    >>> rate = fb.schedules.step(0.8, every=10, factor=0.5)
    >>> [rate(epoch) for epoch in (0, 9.99, 10, 20)]
    [0.8, 0.8, 0.4, 0.2]
    """

    lr: float
    every: float
    factor: float = 0.1

    def __post_init__(self) -> None:
        set_fields(self, lr=_positive("lr", self.lr), every=_positive("every", self.every))
        set_fields(self, factor=_positive("factor", self.factor))

    def _at(self, epochs: np.ndarray) -> np.ndarray:
        return self.lr * self.factor ** np.floor(epochs / self.every * (1 + _ROUNDING))


@dataclass(frozen=True)
class exponential(Schedule):
    """A rate that is multiplied by `factor` from one epoch to the next: lr·factor^epoch.

    Parameters
    ----------
    lr : float
        The rate at the start, > 0.
    factor : float
        The factor of an epoch, > 0; usually a little less than 1.

    Raises
    ------
    ValueError
        For numbers that are not positive and finite.
    TypeError
        If one is not a number.

    Examples
    --------
    >>> import fastbp as fb
    >>> rate = fb.schedules.exponential(0.8, factor=0.25)
    >>> rate([0.0, 0.5, 1.0])
    array([0.8, 0.4, 0.2])
    """

    lr: float
    factor: float

    def __post_init__(self) -> None:
        set_fields(self, lr=_positive("lr", self.lr), factor=_positive("factor", self.factor))

    def _at(self, epochs: np.ndarray) -> np.ndarray:
        return self.lr * self.factor**epochs


@dataclass(frozen=True)
class inverse_time(Schedule):
    """A rate that falls as 1/epoch in the end: lr/(1 + decay·epoch).

    Its sum grows beyond all bounds, that of its squares does not: the conditions under which steps
    with noisy gradients converge [1]_. Until about epoch 1/decay it hardly falls [2]_.

    Parameters
    ----------
    lr : float
        The rate at the start, > 0.
    decay : float
        1/decay is the epoch at which the rate is lr/2; > 0.

    Raises
    ------
    ValueError
        For numbers that are not positive and finite.
    TypeError
        If one is not a number.

    References
    ----------
    .. [1] H. Robbins, S. Monro, "A stochastic approximation method", Annals of Mathematical
       Statistics 22(3), 1951.
    .. [2] C. Darken, J. Moody, "Note on learning rate schedules for stochastic optimization", NIPS
       1990.

    Examples
    --------
    >>> import fastbp as fb
    >>> rate = fb.schedules.inverse_time(0.8, decay=0.1)
    >>> rate(0), rate(10), rate(30)
    (0.8, 0.4, 0.2)
    """

    lr: float
    decay: float

    def __post_init__(self) -> None:
        set_fields(self, lr=_positive("lr", self.lr), decay=_positive("decay", self.decay))

    def _at(self, epochs: np.ndarray) -> np.ndarray:
        return self.lr / (1 + self.decay * epochs)


@dataclass(frozen=True)
class warmup(Schedule):
    """A rate that rises linearly to the start of another one, which then follows [1]_.

    first·(start + (1 - start)·epoch/epochs) with first = lr(0) until `epochs`, then
    lr(epoch - epochs).

    Parameters
    ----------
    lr : float or callable
        The rate to follow: a number > 0, a schedule or any function of the epoch.
    epochs : float
        How many epochs it rises, > 0.
    start : float, default 0.1
        The share of the first rate to begin with, in [0, 1].

    Raises
    ------
    ValueError
        For numbers out of these ranges.
    TypeError
        If `lr` is neither a number nor callable, or another argument is not a number.

    References
    ----------
    .. [1] P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour",
       arXiv:1706.02677, 2017.

    Examples
    --------
    >>> import fastbp as fb
    >>> rate = fb.schedules.warmup(0.8, epochs=4, start=0.5)
    >>> [round(rate(epoch), 9) for epoch in (0, 1, 4, 100)]
    [0.4, 0.5, 0.8, 0.8]
    >>> fb.schedules.warmup(fb.schedules.cosine(0.1, epochs=95), epochs=5)
    warmup(lr=cosine(lr=0.1, epochs=95.0, final=0.0), epochs=5.0, start=0.1)
    """

    lr: float | Callable[[float], float]
    epochs: float
    start: float = 0.1

    def __post_init__(self) -> None:
        if not callable(self.lr):
            set_fields(self, lr=_positive("lr", self.lr, "a number or a function of the epoch"))
        set_fields(self, epochs=_positive("epochs", self.epochs), start=number("start", self.start))
        if not 0 <= self.start <= 1:
            raise ValueError(f"start is {self.start}, expected a share in [0, 1], such as 0.1")

    def _at(self, epochs: np.ndarray) -> np.ndarray:
        later = epochs >= self.epochs
        share = self.start + (1 - self.start) * np.minimum(epochs / self.epochs, 1.0)
        rates = _evaluated(self.lr, np.zeros(1)) * share
        rates[later] = _evaluated(self.lr, epochs[later] - self.epochs)
        return rates


def rates(lr: float | Callable[[float], float], epochs: np.ndarray) -> np.ndarray:
    """The rates at these epochs, checked.

    Parameters
    ----------
    lr : float or callable
        A number > 0, a schedule of this module or a function, called once per entry with a float.
    epochs : numpy.ndarray of float64 (n,)

    Returns
    -------
    numpy.ndarray of float64 (n,)

    Raises
    ------
    ValueError
        If a rate is not finite or negative, for a number also if it is 0; the message names the
        first such epoch.
    TypeError
        If `lr` is neither a number nor callable, or the function does not return a number.
    """
    if not callable(lr):
        lr = _positive("lr", lr, "a number or a function of the epoch")
    with np.errstate(all="ignore"):  # the results are checked below
        result = _evaluated(lr, epochs)
    bad = ~((result >= 0) & (result < np.inf))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(
            f"lr is {result[i]} at epoch {epochs[i]:g}, expected a finite rate >= 0; {lr!r} gave it"
        )
    return result


def _evaluated(lr: Any, epochs: np.ndarray) -> np.ndarray:
    """The rates at these epochs, (n,) both, unchecked."""
    if isinstance(lr, Schedule):
        return lr._at(epochs)
    if not callable(lr):
        return np.full(len(epochs), lr)
    result = np.empty(len(epochs))
    for i, epoch in enumerate(epochs.tolist()):
        result[i] = number(f"the rate at epoch {epoch:g} that {lr!r} gave", lr(epoch))
    return result


def set_fields(instance: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass, from its `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def _positive(name: str, value: Any, expected: str = "a number") -> float:
    positive = number(name, value, expected)
    if not 0 < positive < np.inf:
        raise ValueError(f"{name} is {positive}, expected a positive finite number")
    return positive
