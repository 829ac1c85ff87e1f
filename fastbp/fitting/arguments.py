"""The arguments of `fit`, checked, and the data prepared from them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..common.arrays import all_finite, number, require_finite, whole_number
from ..common.errors import NonFiniteError, unknown_name
from ..maths.losses import Loss, loss as loss_of
from ..networks.network import Network
from ..networks.objective import Objective
from ..networks.scaling import Scaler
from ..training import state as states
from ..training.callbacks import Epoch
from ..training.data import FitData, Samples, prepare
from ..training.optimizers import METHODS as FIRST_ORDER, FirstOrder, with_options
from . import full_batch
from .lm import LM
from .task import Limits

# The child seed that draws each of these.
INITIAL, ORDER, DROPOUT, HELD_OUT = range(4)
# Epochs without progress at which `fit` stops if `tol` is set and `patience` is not.
PATIENCE = 10


# Methods.


def checked_method(
    method: Any, options: dict[str, Any], arguments: tuple[str, ...]
) -> tuple[FirstOrder | str, dict[str, Any]]:
    """The first-order method with its options, or the name of a full-batch one; and the options.

    The message for an unknown option suggests from `arguments` of `fit` too.
    """
    if isinstance(method, FirstOrder):
        return with_options(method, options, arguments), options
    if isinstance(method, LM):
        full_batch.require_options("lm", options, arguments)
        return "lm", vars(method) | options
    if not isinstance(method, str):
        raise TypeError(f"method is {method!r}, expected a name or such as fastbp.Adam(lr=0.01)")
    if method in FIRST_ORDER:
        return with_options(FIRST_ORDER[method], options, arguments), options
    for name in full_batch.METHODS:
        if name.lower() == method.lower():
            full_batch.require_options(name, options, arguments)
            return name, options
    raise ValueError(unknown_name("method", method, (*FIRST_ORDER, *full_batch.METHODS)))


def one_of(name: str, value: Any, other: str, other_value: Any) -> Any:
    """The value of an argument that has two names; TypeError if both were passed."""
    if value is not None and other_value is not None:
        raise TypeError(f"{name} and {other} were both given, and mean the same; pass one of them")
    return other_value if value is None else value


def checked_batch_size(batch_size: Any, obj: Objective, method: FirstOrder | str) -> int:
    """The rows of a step on the training objective; all rows for full-batch methods."""
    is_full_batch = isinstance(method, str)
    n = len(obj.problem.X)
    if batch_size is None:
        return n
    if isinstance(batch_size, str):
        if batch_size != "auto":
            raise ValueError(f"batch_size is {batch_size!r}, expected 'auto', None or a number")
        return n if is_full_batch else min(32, n)
    batch = whole_number("batch_size", batch_size)
    if is_full_batch:
        raise ValueError(
            f"batch_size is {batch_size} with method {method!r}, which takes all rows "
            f"at once; leave batch_size out, or take a minibatch method: {', '.join(FIRST_ORDER)}"
        )
    if obj.loss.paired and batch % 2:
        raise ValueError(
            f"batch_size is {batch}, expected an even number of rows: loss {obj.loss.name!r} is of "
            f"pairs of rows, which stay together"
        )
    return min(batch, n)


def require_full_batch(
    net: Network, method: str, clip_norm: float, average: bool, state: Any
) -> None:
    """Raise ValueError for arguments that a full-batch method cannot take."""
    minibatch = ", ".join(FIRST_ORDER)
    if clip_norm < np.inf or average:
        what = f"clip_norm={clip_norm:g}" if clip_norm < np.inf else "average=True"
        raise ValueError(
            f"{what} with method {method!r}, which chooses its own steps; leave it out, or take a "
            f"minibatch method: {minibatch}"
        )
    if state is not None and method not in full_batch.CONTINUED:
        raise ValueError(
            f"method {method!r} keeps no state to go on from; start it from what was reached, "
            f"params=res.params, or take one of {minibatch}"
        )
    for k, layer in enumerate(net.layers):
        if layer.dropout:
            raise ValueError(
                f"layer {k} has dropout={layer.dropout:g}, but method {method!r} needs the same "
                f"objective at every step; dropout takes a minibatch method "
                f"({minibatch}), if need be with batch_size=None"
            )


def require_unscaled(method: str, scale: Any, options: dict[str, Any]) -> None:
    """Raise ValueError for bounds and constraints if the method works on scaled columns."""
    for name in ("bounds", "constraints"):
        if scale is not None and options.get(name) is not None:
            raise ValueError(
                f"{name} with scale={scale!r}: method {method!r} would keep to them for scaled "
                f"columns, and the parameters for raw ones would be others; scale X and y "
                f"beforehand, or leave one of them out"
            )


# Numbers, flags and callbacks.


def checked_limits(
    method: FirstOrder | str, epochs: int, validation: Any, patience: Any, goal: Any, tol: Any
) -> Limits:
    """The limits of a fit; `epochs` is checked already."""
    if patience is not None:
        patience = whole_number("patience", patience)
        if isinstance(method, str) and validation is None:
            raise ValueError(
                f"patience is {patience}, but method {method!r} never lets the objective rise, so "
                f"that there is nothing to watch; pass validation=0.2, or goal or tol instead"
            )
    goal = -np.inf if goal is None else number("goal", goal)
    if math.isnan(goal):
        raise ValueError("goal is nan, expected the objective at which to stop")
    if tol is not None:
        tol = number("tol", tol)
        if not 0 <= tol < np.inf:
            raise ValueError(f"tol is {tol}, expected a finite number >= 0, such as 1e-4")
        if patience is None and not isinstance(method, str):
            patience = PATIENCE
    return Limits(epochs, goal, patience, tol)


def positive_or_inf(name: str, value: Any) -> float:
    """A positive number; infinity for None."""
    if value is None:
        return np.inf
    limit = number(name, value)
    if not limit > 0:
        raise ValueError(f"{name} is {limit:g}, expected a positive number, or None for no limit")
    return limit


def checked_flag(name: str, value: Any) -> bool:
    """True or False; TypeError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}, expected True or False")
    return bool(value)


def checked_callbacks(callbacks: Any) -> tuple[Callable[[Epoch], Any], ...]:
    """The callback or callbacks as a tuple."""
    several = (callbacks,) if callable(callbacks) else callbacks
    if isinstance(several, str) or not isinstance(several, Iterable):
        raise TypeError(f"callbacks is {callbacks!r}, expected functions of one argument")
    several = tuple(several)
    for callback in several:
        if not callable(callback):
            raise TypeError(f"callbacks holds {callback!r}, expected functions of one argument")
    return several


# Seeds and initial parameters.


def checked_seed(seed: Any, state: Any) -> int:
    """The seed of the call, or that of the run to continue, or a new one."""
    if state is not None:
        states.require_same(state, {})
        saved = int(states.number(state, "seed"))
        if seed is not None and seed != saved:
            raise ValueError(
                f"seed is {seed}, but state goes on with seed {saved}; leave one of them out"
            )
        return saved
    if seed is None:
        return secrets.randbits(53)  # survives JSON and spreadsheets
    return whole_number("seed", seed, least=0)


def child_seed(seed: int, number: int) -> np.random.SeedSequence:
    """The child of this number that ``SeedSequence(seed).spawn`` makes."""
    return np.random.SeedSequence(seed, spawn_key=(number,))


def checked_start(net: Network, params: Any) -> np.ndarray:
    """The initial parameters (n_params,) as a new vector; those that are used must be finite."""
    start = np.array(net.checked_vector(params))
    used = net.checked_params(start)
    if not all_finite(used):
        bad = np.flatnonzero(~np.isfinite(used))[0]
        raise NonFiniteError(
            f"params holds {start[bad]} at entry {bad}, expected finite numbers; "
            f"start from net.init(seed)"
        )
    return start


# Data.


def prepared_data(
    net: Network,
    X: Any,
    y: Any,
    sample_weight: Any,
    loss: str | Loss,
    *,
    seed: int,
    validation: Any,
    scale: str | None,
    scalers: tuple[Scaler, Scaler | None] | None = None,
    terms: dict[str, Any],
) -> FitData:
    """The data of a fit: rows held out, columns scaled, objectives bound.

    Parameters
    ----------
    net, X, y, sample_weight, loss, seed, validation, scale
        As `fit` takes them.
    scalers : tuple or None
        Those of X and y of the run to continue.
    terms : dict
        l2, l1, group, threads and backend.

    Raises
    ------
    ShapeError, TypeError, ValueError, NonFiniteError
        As `fit`.
    """
    loss = loss_of(loss)
    if loss.target != "values":
        _require_finite_target(y)
    return prepare(
        net,
        Samples(X, y, sample_weight),
        loss,
        validation=validation,
        seed=lambda: child_seed(seed, HELD_OUT),
        scale=scale,
        scalers=scalers,
        terms=terms,
    )


def _require_finite_target(y: Any) -> None:
    """Raise NonFiniteError for NaN and infinity in y, before they are taken for wrong labels."""
    try:
        array = np.asarray(y)
    except ValueError:  # the objective raises for it with a better message
        return
    if array.dtype.kind == "f" and array.ndim:
        require_finite("y", array)
