"""`Dense`: a fully connected layer, and which of its connections exist or may change."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from ..common.arrays import FLOAT64, real_array, whole_number
from ..common.errors import ShapeError, unknown_name
from .activations import Activation, activation as activation_of

INITS = ("auto", "glorot", "he", "lecun", "zeros")


@dataclass(frozen=True, eq=False)
class Dense:
    """A fully connected layer: Y = act(XW + b).

    Parameters
    ----------
    n_out : int
        Number of units, at least 1.
    activation : str or Activation, default "linear"
    bias : bool, default True
        Whether the layer has biases b (n_out,).
    mask : array_like (n_in, n_out) of 0 and 1, optional
        Which connections exist. The others count as 0 whatever the parameters hold, and no fit
        changes their entries.
    bias_mask : array_like (n_out,) of 0 and 1, optional
        Which units have a bias, likewise.
    trainable : bool or array_like (n_in, n_out) of 0 and 1, default True
        False keeps W and b of the layer as they are in every fit, 0 in a matrix that entry of W.
    init : {"auto", "glorot", "he", "lecun", "zeros"}
        Initial weights, uniform on ±limit: "glorot" has limit sqrt(6/(n_in + n_out)) [1]_, "he"
        sqrt(6/n_in) [2]_, "lecun" sqrt(3/n_in) [3]_; "auto" takes "he" for the relu family, "lecun"
        for selu and "glorot" else. Biases start at 0.
    dropout : float, default 0.0
        The share of the layer's outputs that each training step of `fastbp.fit` replaces by 0, in
        [0, 1); the others are divided by 1 - dropout [4]_. Everything else computes without it.

    Raises
    ------
    ValueError
        For a size below 1, an unknown name, a mask with entries other than 0 and 1 or a share
        outside [0, 1).
    ShapeError
        For a mask of a wrong shape.
    TypeError
        If `n_out` is not a whole number.

    References
    ----------
    .. [1] X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural
       networks", AISTATS 2010.
    .. [2] K. He et al., "Delving deep into rectifiers", ICCV 2015.
    .. [3] Y. LeCun et al., "Efficient BackProp", in "Neural Networks: Tricks of the Trade", 1998.
    .. [4] N. Srivastava et al., "Dropout: a simple way to prevent neural networks from
       overfitting", JMLR 15, 2014.
    """

    n_out: int
    activation: str | Activation = "linear"
    _: KW_ONLY
    bias: bool = True
    mask: Any = None
    bias_mask: Any = None
    trainable: Any = True
    init: str = "auto"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self._set(n_out=whole_number("n_out", self.n_out))
        self._set(activation=activation_of(self.activation), bias=bool(self.bias))
        if self.init not in INITS:
            raise ValueError(unknown_name("init", self.init, INITS))
        self._set(mask=_connections("mask", self.mask, 2, self.n_out, "0 (no connection)"))
        bias_mask = _connections("bias_mask", self.bias_mask, 1, self.n_out, "0 (no bias)")
        if bias_mask is not None and not self.bias:
            raise ValueError("bias_mask was given with bias=False; leave one of them out")
        self._set(bias_mask=bias_mask)
        if isinstance(self.trainable, bool | np.bool_):
            self._set(trainable=bool(self.trainable))
        else:
            entries = _connections("trainable", self.trainable, 2, self.n_out, "0 (frozen)")
            self._set(trainable=True if entries is None else entries)
        self._set(dropout=_dropout(self.dropout))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _key(self) -> tuple[Any, ...]:
        """What equal layers have in common, hashable."""
        arrays = tuple(
            None if a is None else (a.shape, a.tobytes()) if isinstance(a, np.ndarray) else a
            for a in (self.mask, self.bias_mask, self.trainable)
        )
        return (self.n_out, self.activation, self.bias, *arrays, self.init, self.dropout)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Dense) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    @property
    def act(self) -> Activation:
        """The activation as an object."""
        return activation_of(self.activation)

    def __repr__(self) -> str:
        options = "" if self.bias else ", bias=False"
        for name in ("mask", "bias_mask", "trainable"):
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                options += f", {name}=<{value.sum()} of {value.size}>"
        if self.trainable is False:
            options += ", trainable=False"
        if self.init != "auto":
            options += f", init={self.init!r}"
        if self.dropout:
            options += f", dropout={self.dropout:g}"
        act = "" if self.act.name == "linear" else f", {self.act!r}"
        return f"Dense({self.n_out}{act}{options})"


def _connections(name: str, value: Any, ndim: int, n_out: int, zero: str) -> np.ndarray | None:
    """A mask (n_in, n_out) or, for ndim 1, (n_out,) as a read-only array of bool; None stays None.

    `zero` explains in the message what a 0 means.
    """
    if value is None:
        return None
    array = real_array(name, value, FLOAT64)
    if array.ndim != ndim or array.shape[-1] != n_out:
        expected = f"(n_in, {n_out})" if ndim == 2 else f"({n_out},)"
        raise ShapeError(f"{name} has shape {array.shape}, expected {expected}")
    require_binary(name, array, zero)
    present = array == 1
    present.flags.writeable = False
    return present


def require_binary(name: str, array: np.ndarray, zero: str = "0 (no connection)") -> None:
    """Raise ValueError that names the first entry other than 0 and 1; `array` is 1-d or 2-d."""
    bad = (array != 0) & (array != 1)
    if bad.any():
        place = np.argwhere(bad)[0].tolist()
        where = f"row {place[0]}, column {place[1]}" if len(place) == 2 else f"entry {place[0]}"
        raise ValueError(f"{name} holds {array[tuple(place)]} at {where}, expected {zero} or 1")


def _dropout(value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"dropout is {value!r}, expected a number in [0, 1)") from None
    if not 0 <= share < 1:
        raise ValueError(f"dropout is {share}, expected a share in [0, 1), such as 0.2")
    return share
