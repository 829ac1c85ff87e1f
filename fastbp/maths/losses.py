"""Losses: the tables of their names, formulas, normalisers and forms of targets.

A loss of n rows is ``scale · Σ_i w_i ℓ(Y_i, T_i)``. `ROW_LOSSES` has the row functions ℓ and their
derivatives in NumPy, `TABLE` the losses by name. The normaliser ``scale`` is computed here, so that
backends only sum; `networks.targets` checks targets. CONTRIBUTING.md says how a loss is added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from ..common.errors import unknown_name
from .symbols import TracedPairFunctions, check_given_derivative
from .user_functions import POINTS, PairFunctions, value_of

# Numbers by which the backends know the row functions.
(
    SQUARED, BCE_LOGITS, SOFTMAX_CE, SOFTMAX_CE_LABELS, ABSOLUTE, HUBER, LOG_COSH, QUANTILE, BCE,
    HINGE, SQUARED_HINGE, POISSON, GAUSSIAN_NLL, GAUSSIAN_KL, MARGIN_RANKING, USER_LOSS,
) = range(16)  # fmt: skip

# The functions of `RowLoss`, in float64. A second derivative that does not exist is 0.


def _per_row(elements):
    return elements.sum(axis=1)


def _zero(Y, T, U, _):
    return np.zeros_like(U)


def _squared(Y, T, _):
    return _per_row((Y - T) ** 2)


def _squared_derivative(Y, T, _):
    return 2 * (Y - T)


def _squared_second(Y, T, U, _):
    return 2 * U


def _absolute(Y, T, _):
    return _per_row(np.abs(Y - T))


def _absolute_derivative(Y, T, _):
    return np.sign(Y - T)


def _huber(Y, T, delta):
    d = np.abs(Y - T)
    return _per_row(np.where(d <= delta, 0.5 * d * d, delta * (d - 0.5 * delta)))


def _huber_derivative(Y, T, delta):
    return np.clip(Y - T, -delta, delta)


def _huber_second(Y, T, U, delta):
    return np.where(np.abs(Y - T) <= delta, U, 0)


def _log_cosh(Y, T, _):
    # log cosh d = |d| + log((1 + e^-2|d|)/2) cancels near 0; there it is atanh s, tanh² d = t.
    d = np.abs(Y - T)
    t = np.tanh(d) ** 2
    near = np.arctanh(t / (2 - t))
    far = d + np.log1p(np.exp(-2 * d)) - np.log(2)
    return _per_row(np.where(t < 0.5, near, far))


def _log_cosh_derivative(Y, T, _):
    return np.tanh(Y - T)


def _log_cosh_second(Y, T, U, _):
    t = np.exp(-2 * np.abs(Y - T))
    return 4 * t / (1 + t) ** 2 * U


def _quantile(Y, T, tau):
    d = T - Y
    return _per_row(np.where(d > 0, tau * d, (tau - 1) * d))


def _quantile_derivative(Y, T, tau):
    d = T - Y
    return np.where(d > 0, -tau, np.where(d < 0, 1 - tau, 0 * d))


def _bce(Y, T, eps):
    # Probabilities are cut to [eps, 1 - eps]; eps is the machine epsilon of the network's dtype.
    P = np.clip(Y, eps, 1 - eps)
    return _per_row(-T * np.log(P) - (1 - T) * np.log1p(-P))


def _bce_derivative(Y, T, eps):
    P = np.clip(Y, eps, 1 - eps)
    return np.where(P == Y, (P - T) / (P * (1 - P)), np.where(np.isnan(Y), Y, 0))


def _bce_second(Y, T, U, eps):
    P = np.clip(Y, eps, 1 - eps)
    return np.where(P == Y, T / P**2 + (1 - T) / (1 - P) ** 2, np.where(np.isnan(Y), Y, 0)) * U


def _bce_logits(Y, T, _):
    # -t log s - (1-t) log(1-s) with s = sigmoid(y), rewritten so that nothing overflows.
    return _per_row(np.maximum(Y, 0) - Y * T + np.log1p(np.exp(-np.abs(Y))))


def _bce_logits_derivative(Y, T, _):
    t = np.exp(-np.abs(Y))
    return np.where(Y < 0, t / (1 + t), 1 / (1 + t)) - T


def _bce_logits_second(Y, T, U, _):
    t = np.exp(-np.abs(Y))
    return t / (1 + t) ** 2 * U


def _hinge(Y, T, _):
    return _per_row(np.maximum(1 - T * Y, 0))


def _hinge_derivative(Y, T, _):
    slack = 1 - T * Y
    return np.where(slack > 0, -T, np.where(np.isnan(slack), slack, 0))


def _squared_hinge(Y, T, _):
    return _per_row(np.maximum(1 - T * Y, 0) ** 2)


def _squared_hinge_derivative(Y, T, _):
    return -2 * T * np.maximum(1 - T * Y, 0)


def _squared_hinge_second(Y, T, U, _):
    return np.where(1 - T * Y > 0, 2 * T * T * U, 0)


def _poisson(Y, T, _):
    return _per_row(np.exp(Y) - T * Y)


def _poisson_derivative(Y, T, _):
    return np.exp(Y) - T


def _poisson_second(Y, T, U, _):
    return np.exp(Y) * U


def _log_softmax(Y):
    Y = Y - Y.max(axis=1, keepdims=True)
    return Y - np.log(np.exp(Y).sum(axis=1, keepdims=True))


def _softmax_ce(Y, T, _):
    return -_per_row(T * _log_softmax(Y))


def _softmax_ce_derivative(Y, T, _):
    return np.exp(_log_softmax(Y)) * T.sum(axis=1, keepdims=True) - T


def _softmax_ce_second(Y, T, U, _):
    P = np.exp(_log_softmax(Y))
    return P * (U - (P * U).sum(axis=1, keepdims=True)) * T.sum(axis=1, keepdims=True)


def _softmax_ce_labels(Y, T, _):
    return -_log_softmax(Y)[np.arange(len(T)), T]


def _softmax_ce_labels_derivative(Y, T, _):
    D = np.exp(_log_softmax(Y))
    D[np.arange(len(T)), T] -= 1
    return D


def _softmax_ce_labels_second(Y, T, U, _):
    P = np.exp(_log_softmax(Y))
    return P * (U - (P * U).sum(axis=1, keepdims=True))


# Columns 0 to k - 1 are means m, columns k to 2k - 1 logarithms v of variances.


def _gaussian_nll(Y, T, _):
    m, v = np.hsplit(Y, 2)
    return _per_row(0.5 * (v + (m - T) ** 2 * np.exp(-v)) + 0.5 * np.log(2 * np.pi))


def _gaussian_nll_derivative(Y, T, _):
    m, v = np.hsplit(Y, 2)
    d, precision = m - T, np.exp(-v)
    return np.hstack([d * precision, 0.5 * (1 - d * d * precision)])


def _gaussian_nll_second(Y, T, U, _):
    m, v = np.hsplit(Y, 2)
    um, uv = np.hsplit(U, 2)
    d, precision = m - T, np.exp(-v)
    return np.hstack([precision * (um - d * uv), precision * d * (0.5 * d * uv - um)])


def _gaussian_kl(Y, T, _):
    m, v = np.hsplit(Y, 2)
    return _per_row(0.5 * (np.expm1(v) - v + m * m))


def _gaussian_kl_derivative(Y, T, _):
    m, v = np.hsplit(Y, 2)
    return np.hstack([m, 0.5 * np.expm1(v)])


def _gaussian_kl_second(Y, T, U, _):
    _m, v = np.hsplit(Y, 2)
    um, uv = np.hsplit(U, 2)
    return np.hstack([um, 0.5 * np.exp(v) * uv])


# Rows 2i and 2i + 1 are a pair, better and worse; the pair's loss stands in the first of them.


def _margin_ranking(Y, T, margin):
    slack = margin - (Y[0::2, 0] - Y[1::2, 0])
    return np.stack([np.maximum(slack, 0), np.zeros_like(slack)], axis=1).ravel()


def _margin_ranking_derivative(Y, T, margin):
    slack = margin - (Y[0::2] - Y[1::2])
    down = np.where(slack > 0, -1.0, np.where(np.isnan(slack), slack, 0))
    return np.stack([down, -down], axis=1).reshape(Y.shape)


@dataclass(frozen=True)
class RowLoss:
    """The loss ℓ of a row and its derivatives; c is the loss's parameter, if it has one.

    Attributes
    ----------
    value : callable
        (Y (n, n_out), T, c) -> (n,)
    derivative : callable
        (Y (n, n_out), T, c) -> dℓ/dY (n, n_out)
    second : callable
        (Y (n, n_out), T, U (n, n_out), c) -> the product of the Hessian d²ℓ/dY² with U
    """

    value: Callable[..., np.ndarray]
    derivative: Callable[..., np.ndarray]
    second: Callable[..., np.ndarray]


ROW_LOSSES: dict[int, RowLoss] = {
    SQUARED: RowLoss(_squared, _squared_derivative, _squared_second),
    ABSOLUTE: RowLoss(_absolute, _absolute_derivative, _zero),
    HUBER: RowLoss(_huber, _huber_derivative, _huber_second),
    LOG_COSH: RowLoss(_log_cosh, _log_cosh_derivative, _log_cosh_second),
    QUANTILE: RowLoss(_quantile, _quantile_derivative, _zero),
    BCE: RowLoss(_bce, _bce_derivative, _bce_second),
    BCE_LOGITS: RowLoss(_bce_logits, _bce_logits_derivative, _bce_logits_second),
    HINGE: RowLoss(_hinge, _hinge_derivative, _zero),
    SQUARED_HINGE: RowLoss(_squared_hinge, _squared_hinge_derivative, _squared_hinge_second),
    POISSON: RowLoss(_poisson, _poisson_derivative, _poisson_second),
    SOFTMAX_CE: RowLoss(_softmax_ce, _softmax_ce_derivative, _softmax_ce_second),
    SOFTMAX_CE_LABELS: RowLoss(
        _softmax_ce_labels, _softmax_ce_labels_derivative, _softmax_ce_labels_second
    ),
    GAUSSIAN_NLL: RowLoss(_gaussian_nll, _gaussian_nll_derivative, _gaussian_nll_second),
    GAUSSIAN_KL: RowLoss(_gaussian_kl, _gaussian_kl_derivative, _gaussian_kl_second),
    MARGIN_RANKING: RowLoss(_margin_ranking, _margin_ranking_derivative, _zero),
}


def row_loss(kind: int, functions: PairFunctions | None) -> RowLoss:
    """The row functions of that number; `functions` are those of a user-defined loss."""
    if functions is None:
        return ROW_LOSSES[kind]
    return RowLoss(
        lambda Y, T, _: _per_row(functions.evaluate(Y, T)[0]),
        lambda Y, T, _: functions.evaluate(Y, T)[1],
        lambda Y, T, U, _: functions.second(Y, T) * U,
    )


@dataclass(frozen=True)
class Loss:
    """A loss by name: its row function, its normaliser and the form of its targets.

    Attributes
    ----------
    name : str
    kind : int
        The number of the row function.
    divisor : {"N·n_out", "2N", "N", "1"}
        The normaliser; N is the sum of the sample weights (the number of rows, or pairs, without
        them).
    target : {"values", "probabilities", "signs", "counts", "classes", "halves", "none"}
        Values of shape (n, n_out); probabilities in [0, 1], signs -1 and 1, or counts >= 0 of that
        shape; integer labels (n,), for which rows of probabilities may stand as well; values of
        shape (n, n_out/2); or y=None.
    constant : float
        The row function's parameter; 0 where there is none.
    functions : PairFunctions or None
        The functions of a user-defined loss.
    """

    name: str
    kind: int
    divisor: str
    target: str
    constant: float = 0.0
    functions: PairFunctions | None = None

    def __repr__(self) -> str:
        if self.functions is not None:
            return f"<loss {self.name!r} of the user's own>"
        usual = TABLE[self.name]
        return repr(self.name) if self == usual else f"fb.{self.name}({self.constant:g})"

    @property
    def least_squares(self) -> bool:
        """Whether the loss is a sum of squared residuals."""
        return self.kind == SQUARED

    @property
    def averaged(self) -> bool:
        """Whether the normaliser grows with the number of rows."""
        return self.divisor != "1"

    @property
    def paired(self) -> bool:
        """Whether rows 2i and 2i + 1 belong together."""
        return self.kind == MARGIN_RANKING

    def scale(self, total_weight: float, n_out: int) -> float:
        """The factor of Σ_i w_i ℓ_i if Σ_i w_i is `total_weight`."""
        if self.divisor == "N·n_out":
            return 1.0 / (total_weight * n_out)
        if self.divisor == "2N":
            return 1.0 / (2.0 * total_weight)
        if self.divisor == "N":
            return 1.0 / total_weight
        return 1.0

    def parameter(self, dtype: np.dtype) -> float:
        """The number c that the row function takes for a network of this dtype."""
        return float(np.finfo(dtype).eps) if self.kind == BCE else self.constant

    def require_second(self) -> None:
        """Raise ValueError if the loss was made without its second derivative."""
        if self.functions is not None and self.functions.d2 is None:
            raise ValueError(
                f"loss {self.name!r} has no second derivative, which Hessian products need; "
                f"make it as fastbp.custom_loss(f, d2), or with an f that returns the loss alone"
            )


TABLE: dict[str, Loss] = {
    row.name: row
    for row in (
        Loss("mse", SQUARED, "N·n_out", "values"),
        Loss("half_mse", SQUARED, "2N", "values"),
        Loss("sse", SQUARED, "1", "values"),
        Loss("mae", ABSOLUTE, "N·n_out", "values"),
        Loss("huber", HUBER, "N·n_out", "values", 1.0),
        Loss("log_cosh", LOG_COSH, "N·n_out", "values"),
        Loss("quantile", QUANTILE, "N·n_out", "values", 0.5),
        Loss("bce", BCE, "N·n_out", "probabilities"),
        Loss("bce_logits", BCE_LOGITS, "N·n_out", "probabilities"),
        Loss("hinge", HINGE, "N·n_out", "signs"),
        Loss("squared_hinge", SQUARED_HINGE, "N·n_out", "signs"),
        Loss("poisson", POISSON, "N·n_out", "counts"),
        Loss("softmax_ce", SOFTMAX_CE, "N", "classes"),
        Loss("gaussian_nll", GAUSSIAN_NLL, "N", "halves"),
        Loss("gaussian_kl", GAUSSIAN_KL, "N", "none"),
        Loss("margin_ranking", MARGIN_RANKING, "N", "none", 1.0),
    )
}


def huber(delta: float = 1.0) -> Loss:
    """½d² for errors d = Y - y up to delta, delta·(|d| - ½delta) beyond; mean over elements [1]_.

    Parameters
    ----------
    delta : float, default 1.0
        Positive, in units of y.

    Raises
    ------
    ValueError
        If `delta` is not positive and finite.

    References
    ----------
    .. [1] P. J. Huber, "Robust estimation of a location parameter", Annals of Mathematical
       Statistics 35(1), 1964.
    """
    return _with_constant(
        TABLE["huber"], "delta", delta, 0 < float(delta) < np.inf, "a positive number"
    )


def quantile(tau: float = 0.5) -> Loss:
    """tau·d for d = y - Y > 0, (tau - 1)·d otherwise; its minimum is the tau-quantile [1]_.

    Parameters
    ----------
    tau : float, default 0.5
        In (0, 1); ½ gives half the mean absolute error.

    Raises
    ------
    ValueError
        If `tau` is not between 0 and 1.

    References
    ----------
    .. [1] R. Koenker, G. Bassett, "Regression quantiles", Econometrica 46(1), 1978.
    """
    return _with_constant(
        TABLE["quantile"], "tau", tau, 0 < float(tau) < 1, "a number between 0 and 1"
    )


def margin_ranking(margin: float = 1.0) -> Loss:
    """max(0, margin - (better - worse)) of pairs of rows, averaged over pairs.

    Rows 2i and 2i + 1 of X are the better and the worse one of pair i; y is None, and there is one
    sample weight per pair. The network has one output, the score.

    Parameters
    ----------
    margin : float, default 1.0
        By how much the better one's score should be larger; >= 0.

    Raises
    ------
    ValueError
        If `margin` is negative or not finite.
    """
    accepted = 0 <= float(margin) < np.inf
    return _with_constant(
        TABLE["margin_ranking"], "margin", margin, accepted, "a finite number >= 0"
    )


def _with_constant(loss: Loss, name: str, value: Any, accepted: bool, expected: str) -> Loss:
    """The loss with this parameter; ValueError, with its `name`, unless it is `accepted`."""
    if not accepted:
        raise ValueError(f"{name} is {value}, expected {expected}")
    return replace(loss, constant=float(value))


def custom_loss(
    f: Callable, d2: Callable | None = None, *, name: str = "custom", compile: bool = False
) -> Loss:
    """A loss of your own, from a scalar function; mean over elements, as "mse" is.

    Parameters
    ----------
    f : callable
        (prediction, target) -> loss, or (loss, dloss), floats; dloss is the derivative with respect
        to the prediction. Where it returns the loss alone, dloss and the second derivative follow
        from its code, as for `fastbp.Activation`. `math`, NumPy's functions of one number and
        Python functions made of these may be called. The compiled backends evaluate it in float32
        in networks of float32, the reference in float64. A function that returns pairs is compiled
        once with Numba, and fast where its exp and tanh are those of `fastbp.jitted`.
    d2 : callable, optional
        (prediction, target) -> the second derivative; without it Hessian products raise if f
        returns pairs.
    name : str, default "custom"
        What messages call it.
    compile : bool, default False
        Whether the C backend, too, has Numba compile a function that returns the loss alone, as for
        `fastbp.Activation`.

    Returns
    -------
    Loss
        Usable wherever a loss's name is.

    Raises
    ------
    TypeError
        If a function is not callable, or `f` does not return one or two real numbers.
    ValueError
        If dloss is not the derivative of loss, or `d2` not that of dloss: both are compared with
        differences at predictions in [-4, 4] for the targets 0 and 1, and with the derivative that
        follows from the code, where one does, in [-34, 34].
    TraceError
        If `f` returns the loss alone and has something from which no derivative follows, such as a
        branch on a value; it is a ValueError.

    Examples
    --------
    >>> import fastbp as fb
    >>> cubic = fb.custom_loss(lambda y, t: abs(y - t) ** 3)
    >>> fb.Network(1, fb.Dense(1)).value([1.0, 0.0], [[1.0], [3.0]], [1.0, 1.0], cubic)
    4.0
    >>> quartic = fb.custom_loss(lambda y, t: ((y - t) ** 4, 4 * (y - t) ** 3))
    >>> fb.Network(1, fb.Dense(1)).value([1.0, 0.0], [[1.0], [3.0]], [1.0, 1.0], quartic)
    8.0
    """
    functions = PairFunctions(f, d2)
    traced = _returns_numbers(f)
    if traced:
        functions = TracedPairFunctions(f, d2, compile)
    pairs = functions.callables[0]
    for t in (0.0, 1.0):
        loss_at, slope_at = _item_of_pair(pairs, 0, t), _item_of_pair(pairs, 1, t)
        if not traced:
            check_given_derivative(f"dloss of {name!r} for target {t:g}", "loss", loss_at, slope_at)
        if d2 is not None:
            second_at = partial(_with_target, d2, t)
            check_given_derivative(f"d2 of {name!r} for target {t:g}", "dloss", slope_at, second_at)
    return Loss(name, USER_LOSS, "N·n_out", "values", 0.0, functions)


def _returns_numbers(f: Callable) -> bool:
    """Whether f returns the loss alone."""
    results = (value_of(f, y, t) for t in (0.0, 1.0) for y in POINTS)
    return all(  # np.where makes arrays without axes
        isinstance(result, Real | np.bool_) or (isinstance(result, np.ndarray) and not result.ndim)
        for result in results
    )


def _item_of_pair(f: Callable, index: int, t: float) -> Callable[[float], Any]:
    """The function y -> f(y, t)[index]; TypeError if f does not return a pair."""

    def item(y: float) -> Any:
        pair = f(y, t)
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise TypeError(f"f returned {pair!r}, expected a pair (loss, dloss) or the loss")
        return pair[index]

    return item


def _with_target(f: Callable, t: float, y: float) -> Any:
    """f(y, t), for `partial`."""
    return f(y, t)


def loss(name: str | Loss) -> Loss:
    """The loss of that name; raises ValueError with the nearest name for an unknown one."""
    if isinstance(name, Loss):
        return name
    by_name = TABLE.get(name) if isinstance(name, str) else None
    if by_name is None:
        raise ValueError(unknown_name("loss", name, TABLE))
    return by_name
