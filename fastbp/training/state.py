"""The state of a run as a dict that `fastbp.save` can store, and back.

It is flat: arrays, and values that JSON knows. What says whose state it is comes first.
"""

from __future__ import annotations

import reprlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backends.contract import Run
from ..common.arrays import FLOAT64
from ..networks.description import Description
from ..networks.scaling import Scaler
from .data import Data
from .loop import Progress

ARRAYS = ("params", "moments", "good", "best", "average", "monitor")  # of a Run


def fingerprint(net: Description) -> str:
    """What tells a network from others, whatever its parameters."""
    plan = net.plan
    found = plan.handles.get("fingerprint")
    if found is None:
        content = (plan.layers, plan.constants, plan.free, net.masked, plan.dropout)
        told = b"".join(b"-" if a is None else a.tobytes() for a in content)
        told += " ".join(act.name for act in plan.activations).encode()
        found = f"{net.sizes} {net.dtype} {zlib.crc32(told):08x}"
        plan.handles["fingerprint"] = found
    return str(found)


def require_same(state: Any, identity: dict[str, Any]) -> None:
    """Raise unless the state is of a run with this identity.

    Parameters
    ----------
    state : dict
    identity : dict
        What must be equal, by name.

    Raises
    ------
    TypeError
        If `state` is no dict.
    ValueError
        If it is none of `fit`'s, or belongs to another network, method or run.
    """
    if not isinstance(state, dict):
        raise TypeError(
            f"state is of type {type(state).__name__}, expected the dict FitResult.state or what "
            f"fastbp.load returned as state"
        )
    for name, value in identity.items():
        came = entry(state, name)
        if isinstance(came, np.ndarray) or came != value:
            raise ValueError(
                f"state belongs to another run: its {name.replace('_', ' ')} is "
                f"{reprlib.repr(came)}, expected {value!r}; call fit as that run was called, or "
                f"start a new one from its parameters, params=res.params"
            )


# Entries, each checked: a state may come from a file, or from anywhere.


def entry(state: dict[str, Any], name: str, what: str = "", fits: Callable[..., Any] = any) -> Any:
    """An entry of a state; ValueError if it is not there, or not `what` it should be."""
    if name not in state:
        raise ValueError(
            f"state lacks {name!r}, expected the dict FitResult.state or what fastbp.load returned "
            f"as state"
        )
    value = state[name]
    if what and not fits(value):
        if isinstance(value, np.ndarray):
            came = f"an array {value.shape} of {value.dtype}"
        else:
            came = reprlib.repr(value)
        raise ValueError(
            f"state holds {came} as {name!r}, expected {what}: it was changed, or belongs to a "
            f"method with other options (such as momentum)"
        )
    return value


def number(
    state: dict[str, Any], name: str, kind: type[int | float] = int, least: float = 0
) -> Any:
    """An entry that is an int or a float, not below `least`."""
    return entry(
        state, name, f"{'a whole number' if kind is int else 'a number'} >= {least:g}",
        lambda value: isinstance(value, kind) and not isinstance(value, bool) and value >= least,
    )  # fmt: skip


def array(
    state: dict[str, Any], name: str, shape: tuple[int, ...], dtype: np.dtype = FLOAT64
) -> np.ndarray:
    """A copy of an entry that is an array."""

    def fits(value: Any) -> bool:
        return isinstance(value, np.ndarray) and (value.shape, value.dtype) == (shape, dtype)

    return np.array(entry(state, name, f"an array {shape} of {dtype}", fits), order="C")


# First-order runs.


def packed(identity: dict[str, Any], average_from: int, progress: Progress) -> dict[str, Any]:
    """The state of a first-order run, of a copy of its progress that becomes a part of it."""
    run = progress.run
    arrays = {name: getattr(run, name) for name in ARRAYS}
    losses = np.concatenate([progress.losses, progress.partial])
    records = {"losses": losses, "validation": progress.validation.copy()}
    numbers = {"step": run.step, "average_from": average_from, "order": progress.order}
    return identity | numbers | arrays | records


def unpacked(
    state: dict[str, Any], fresh: Progress, average_from: int, per_epoch: int, validated: bool
) -> Progress:
    """The progress that a state holds.

    Parameters
    ----------
    state : dict
        Of a run with the same identity.
    fresh : Progress
        The beginning of such a run.
    average_from : int
        Of the recipe.
    per_epoch : int
        Steps.
    validated : bool
        Whether there is a validation.

    Raises
    ------
    ValueError
        If the state is damaged, of a method with other options, or if the average that it has
        begun is over other steps.
    """
    arrays: dict[str, Any] = {}
    for name in ARRAYS:
        like = getattr(fresh.run, name)
        arrays[name] = array(state, name, like.shape, like.dtype)
    step, began = number(state, "step"), number(state, "average_from", least=-1)
    if 0 <= average_from < step and began != average_from:
        raise ValueError(
            f"state is of a run that averages {_over(began)}, expected {_over(average_from)} as "
            f"this one, which is past that; continue it with the same epochs and average"
        )
    if not 0 <= average_from < step:
        arrays["average"][:] = 0  # what was averaged is not in use
    losses = array(state, "losses", (-(-step // per_epoch),))
    validation = array(state, "validation", (step // per_epoch if validated else 0,))
    order = entry(state, "order", "where orders are drawn from", _is_position)
    return Progress(Run(**arrays, seed=fresh.run.seed, step=step), losses, validation, order)


def _over(average_from: int) -> str:
    return "no parameters" if average_from < 0 else f"parameters from step {average_from} on"


def _is_position(order: Any) -> bool:
    if order is None:
        return True
    try:
        np.random.default_rng(0).bit_generator.state = order["generator"]
        return type(order["epoch"]) is int
    except (KeyError, IndexError, TypeError, ValueError):
        return False


# Data.


def scalers(state: dict[str, Any]) -> tuple[Scaler, Scaler | None]:
    """Those of the columns of a run that scaled them, of X and, if it scaled them too, of y."""
    y = _scaler(state, "y") if {"y_shift", "y_scale"} & state.keys() else None
    return _scaler(state, "x"), y


def _scaler(state: dict[str, Any], name: str) -> Scaler:
    parts = entry(state, f"{name}_shift"), entry(state, f"{name}_scale")
    try:
        return Scaler(*parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"state holds no scaler as {name!r}: {error}") from None


def of_data(data: Data) -> dict[str, np.ndarray]:
    """The entries of a state that tell where the run began and how its columns were scaled."""
    assert data.start is not None
    told = {"start": data.start.copy()}
    for name, scaler in (("x", data.x_scaler), ("y", data.y_scaler)):
        if scaler is not None:
            told |= {f"{name}_shift": scaler.shift.copy(), f"{name}_scale": scaler.scale.copy()}
    return told
