"""Checkpoints: the state of a run as a dict that `fastbp.save` can store, and back.

The dict is flat: arrays, and values that JSON knows. Its first entries, the identity, say to which
run the state belongs.
"""

from __future__ import annotations

import reprlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backends.contract import TrainState
from ..common.arrays import FLOAT64
from ..networks.description import Description
from ..networks.scaling import Scaler
from .data import FitData
from .loop import LoopState

# The arrays of a TrainState.
ARRAYS = ("params", "moments", "good", "best", "average", "monitor")


def fingerprint(net: Description) -> str:
    """A string that is the same for equal networks and differs for others: sizes, dtype, checksum.

    It is computed once per network.
    """
    plan = net.plan
    text = plan.handles.get("fingerprint")
    if text is None:
        arrays = (plan.layers, plan.constants, plan.free, net.masked, plan.dropout)
        content = b"".join(b"-" if a is None else a.tobytes() for a in arrays)
        content += " ".join(act.name for act in plan.activations).encode()
        text = f"{net.sizes} {net.dtype} {zlib.crc32(content):08x}"
        plan.handles["fingerprint"] = text
    return str(text)


def require_same(state: Any, identity: dict[str, Any]) -> None:
    """Raise unless the state is of a run with this identity.

    Parameters
    ----------
    state : dict
    identity : dict
        Entries that the state must have with the same values.

    Raises
    ------
    TypeError
        If `state` is no dict.
    ValueError
        If it is no state of `fit`, or belongs to another network, method or run.
    """
    if not isinstance(state, dict):
        raise TypeError(
            f"state is of type {type(state).__name__}, expected the dict FitResult.state or what "
            f"fastbp.load returned as state"
        )
    for name, value in identity.items():
        actual = entry(state, name)
        if isinstance(actual, np.ndarray) or actual != value:
            raise ValueError(
                f"state belongs to another run: its {name.replace('_', ' ')} is "
                f"{reprlib.repr(actual)}, expected {value!r}; call fit as that run was called, or "
                f"start a new one from its parameters, params=res.params"
            )


# Entries, each checked: a state may come from a damaged or edited file.


def entry(
    state: dict[str, Any], name: str, expected: str = "", fits: Callable[..., Any] = any
) -> Any:
    """An entry of a state.

    Parameters
    ----------
    state : dict
    name : str
    expected : str
        What the entry should be, for the message; without it any value will do.
    fits : callable
        ``fits(value) -> bool``, whether the entry is that.

    Raises
    ------
    ValueError
        If the entry is missing, or not as expected.
    """
    if name not in state:
        raise ValueError(
            f"state lacks {name!r}, expected the dict FitResult.state or what fastbp.load returned "
            f"as state"
        )
    value = state[name]
    if expected and not fits(value):
        if isinstance(value, np.ndarray):
            actual = f"an array {value.shape} of {value.dtype}"
        else:
            actual = reprlib.repr(value)
        raise ValueError(
            f"state holds {actual} as {name!r}, expected {expected}: it was changed, or belongs to "
            f"a method with other options (such as momentum)"
        )
    return value


def number(
    state: dict[str, Any], name: str, kind: type[int | float] = int, least: float = 0
) -> Any:
    """An entry that is a number of this kind >= `least`, checked as `entry` does."""
    return entry(
        state, name, f"{'a whole number' if kind is int else 'a number'} >= {least:g}",
        lambda value: isinstance(value, kind) and not isinstance(value, bool) and value >= least,
    )  # fmt: skip


def array(
    state: dict[str, Any], name: str, shape: tuple[int, ...], dtype: np.dtype = FLOAT64
) -> np.ndarray:
    """A copy of an entry that is an array of this shape and dtype, checked as `entry` does."""

    def fits(value: Any) -> bool:
        return isinstance(value, np.ndarray) and (value.shape, value.dtype) == (shape, dtype)

    return np.array(entry(state, name, f"an array {shape} of {dtype}", fits), order="C")


# First-order runs.


def to_dict(identity: dict[str, Any], average_from: int, checkpoint: LoopState) -> dict[str, Any]:
    """The state of a first-order run as a dict, with the arrays of `checkpoint` themselves.

    Parameters
    ----------
    identity : dict
        As `require_same` takes it.
    average_from : int
        As in the config.
    checkpoint : LoopState
        A copy that `LoopState.copy` made.
    """
    run = checkpoint.run
    arrays = {name: getattr(run, name) for name in ARRAYS}
    losses = np.concatenate([checkpoint.losses, checkpoint.partial])
    records = {"losses": losses, "validation": checkpoint.validation.copy()}
    numbers = {"step": run.step, "average_from": average_from, "order": checkpoint.order}
    return identity | numbers | arrays | records


def from_dict(
    state: dict[str, Any], initial: LoopState, average_from: int, per_epoch: int, validated: bool
) -> LoopState:
    """The state of a first-order run from a dict that `to_dict` made.

    Parameters
    ----------
    state : dict
        The state of a run with the same identity.
    initial : LoopState
        The state of such a run before its first step, with arrays of the right shapes.
    average_from : int
        As in the config.
    per_epoch : int
        Steps in an epoch.
    validated : bool
        Whether there is a validation.

    Raises
    ------
    ValueError
        If the state is damaged, of a method with other options, or if it has begun an average
        over other steps.
    """
    arrays: dict[str, Any] = {}
    for name in ARRAYS:
        like = getattr(initial.run, name)
        arrays[name] = array(state, name, like.shape, like.dtype)
    step, averaged_from = number(state, "step"), number(state, "average_from", least=-1)
    if 0 <= average_from < step and averaged_from != average_from:
        raise ValueError(
            f"state is of a run that averages {_over(averaged_from)}, expected "
            f"{_over(average_from)} as this one, which is past that; continue it with the same "
            f"epochs and average"
        )
    if not 0 <= average_from < step:
        arrays["average"][:] = 0  # this run does not use an average that has begun
    losses = array(state, "losses", (-(-step // per_epoch),))
    validation = array(state, "validation", (step // per_epoch if validated else 0,))
    order = entry(state, "order", "where orders are drawn from", _is_position)
    return LoopState(
        TrainState(**arrays, seed=initial.run.seed, step=step), losses, validation, order
    )


def _over(average_from: int) -> str:
    return "no parameters" if average_from < 0 else f"parameters from step {average_from} on"


def _is_position(order: Any) -> bool:
    """Whether it is a `Shuffler.position` or None."""
    if order is None:
        return True
    try:
        np.random.default_rng(0).bit_generator.state = order["generator"]
        return type(order["epoch"]) is int
    except (KeyError, IndexError, TypeError, ValueError):
        return False


# Entries of any method: the scalers and the initial parameters.


def scalers(state: dict[str, Any]) -> tuple[Scaler, Scaler | None]:
    """The scalers of X and y in the state of a run that scaled X; None for y left as it is."""
    y = _scaler(state, "y") if {"y_shift", "y_scale"} & state.keys() else None
    return _scaler(state, "x"), y


def _scaler(state: dict[str, Any], name: str) -> Scaler:
    parts = entry(state, f"{name}_shift"), entry(state, f"{name}_scale")
    try:
        return Scaler(*parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"state holds no scaler as {name!r}: {error}") from None


def data_entries(data: FitData) -> dict[str, np.ndarray]:
    """The entries of a state for the initial parameters and the scalers."""
    assert data.start is not None
    entries = {"start": data.start.copy()}
    for name, scaler in (("x", data.x_scaler), ("y", data.y_scaler)):
        if scaler is not None:
            entries |= {f"{name}_shift": scaler.shift.copy(), f"{name}_scale": scaler.scale.copy()}
    return entries
