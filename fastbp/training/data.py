"""What `fit` trains and validates on: rows held out, and columns scaled, as asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.arrays import FLOAT64, as_array, require_finite
from ..common.errors import unknown_name
from ..maths.losses import Loss
from ..networks.dense import Dense
from ..networks.network import Network
from ..networks.objective import Objective
from ..networks.scaling import Scaler, inverse

SCALINGS = {"standard": Scaler.standard, "minmax": Scaler.minmax}


@dataclass(eq=False)
class Data:
    """The objectives of a fit.

    Attributes
    ----------
    raw : Objective
        Over the training rows as they were given.
    training : Objective
        The same over scaled columns; `raw` itself without scaling.
    validation : Objective or None
        Over scaled columns too, and without penalties.
    scale : {"standard", "minmax"} or None
    x_scaler, y_scaler : Scaler or None
        Of the columns of X, and of those of y if they were scaled.
    start : numpy.ndarray (n_params,) or None
        Where the fit begins, for raw columns; its fixed entries are those of the result.
    """

    raw: Objective
    training: Objective
    validation: Objective | None = None
    scale: str | None = None
    x_scaler: Scaler | None = None
    y_scaler: Scaler | None = None
    start: np.ndarray | None = None

    @property
    def n_held_out(self) -> int:
        """Rows that are validated on."""
        return 0 if self.validation is None else len(self.validation.problem.X)

    def inside(self, params: np.ndarray) -> np.ndarray:
        """The parameters for scaled columns that do what `params` do to raw ones."""
        return self._folded(params, inverse(self.x_scaler), inverse(self._output_scaler))

    def outside(self, params: np.ndarray) -> np.ndarray:
        """The parameters for raw columns, fixed entries as at the start; a new vector."""
        found = self._folded(params, self.x_scaler, self._output_scaler)
        if self.start is not None and self.raw.net.plan.free is not None:
            found = np.where(self.raw.net.plan.free, found, self.start)
        return found

    @property
    def _output_scaler(self) -> Scaler | None:
        """Of the network's outputs, which have more columns than y if they tell variances too."""
        if self.y_scaler is None or self.raw.loss.target != "halves":
            return self.y_scaler
        # A deviation of s·σ' is a log-variance larger by 2 log s.
        shift, scale = self.y_scaler.shift, self.y_scaler.scale
        return Scaler(
            np.concatenate([shift, 2 * np.log(np.abs(scale))]),
            np.concatenate([scale, np.ones_like(scale)]),
        )

    def _folded(self, params: np.ndarray, x: Scaler | None, y: Scaler | None) -> np.ndarray:
        net = self.raw.net
        if x is None:
            return np.array(params, net.dtype)
        return net.astype(FLOAT64).fold_scaling(params, x, y).astype(net.dtype)


# Held-out rows.


@dataclass(eq=False)
class Rows:
    """Rows of data as they were given.

    Attributes
    ----------
    X, y : array_like, None for y where the loss has no targets
    weights : array_like or None
    """

    X: Any
    y: Any
    weights: Any = None

    def taken(self, groups: np.ndarray, size: int) -> Rows:
        """The rows of these groups of `size` rows, which have one weight each."""
        rows = (size * groups[:, None] + np.arange(size)).ravel()
        y, weights = self.y, self.weights
        return Rows(
            as_array("X", self.X)[rows],
            None if y is None else as_array("y", y)[rows],
            None if weights is None else as_array("sample_weight", weights)[groups],
        )


def held_out(
    data: Rows, validation: Any, seed: Callable[[], np.random.SeedSequence], paired: bool
) -> tuple[Rows, Rows | None]:
    """The rows to train on, and those to validate on.

    Parameters
    ----------
    data : Rows
        Of equal lengths.
    validation : None, float or tuple
        A fraction of the rows (or pairs of them), or (X, y) or (X, y, sample_weight).
    seed : callable
        Gives the SeedSequence that draws the rows of a fraction; those left keep their order.
    paired : bool
        Whether rows 2i and 2i + 1 belong together.

    Raises
    ------
    ValueError
        For a fraction outside (0, 1), or one that leaves no row on one side.
    TypeError
        For anything else.
    """
    if validation is None:
        return data, None
    if isinstance(validation, tuple | list) and len(validation) in (2, 3):
        return data, Rows(*validation)
    try:
        fraction = float(validation)
    except (TypeError, ValueError):
        raise TypeError(
            f"validation is of type {type(validation).__name__}, expected a fraction in (0, 1), "
            f"or a tuple (X, y) or (X, y, sample_weight)"
        ) from None
    if not 0 < fraction < 1:
        raise ValueError(
            f"validation is {fraction:g}, expected a fraction in (0, 1) such as 0.2, or a tuple "
            f"(X, y) or (X, y, sample_weight)"
        )
    size, unit = (2, "pairs of rows") if paired else (1, "rows")
    groups = len(data.X) // size
    count = max(1, round(fraction * groups))
    if count >= groups:
        raise ValueError(
            f"validation={fraction:g} of {groups} {unit} leaves none to train on; take a smaller "
            f"fraction"
        )
    order = np.random.default_rng(seed()).permutation(groups)
    chosen, rest = np.sort(order[:count]), np.sort(order[count:])
    return data.taken(rest, size), data.taken(chosen, size)


# Scaling.


def _scalers(train: Rows, loss: Loss, scale: str) -> tuple[Scaler, Scaler | None]:
    """Of X, and of y where the loss compares outputs with plain values."""
    make = SCALINGS[scale]
    plain = loss.target in ("values", "halves") and loss.functions is None
    return make(train.X), make(train.y) if plain else None


def _require_foldable(found: Data) -> None:
    """Raise where what is fitted to scaled columns could not be told as parameters for raw ones."""
    net, scale = found.raw.net, found.scale
    ends = {0} | ({len(net.layers) - 1} if found.y_scaler is not None else set())
    for k in sorted(ends):
        if _has_frozen_entries(net.layers[k]):
            raise ValueError(
                f"scale={scale!r} is folded into layer {k}, which has frozen entries; scale X and "
                f"y beforehand, or leave the layer trainable"
            )
    try:
        # Numbers whose sums do not cancel, so that every shift shows.
        found.outside(np.random.default_rng(0).random(net.n_params))
    except ValueError as error:
        raise ValueError(f"scale={scale!r} cannot be folded into the network: {error}") from None


def _has_frozen_entries(layer: Dense) -> bool:
    if isinstance(layer.trainable, bool):
        return not layer.trainable
    present = True if layer.mask is None else layer.mask
    return bool((~layer.trainable & present).any())


# Putting it together.


def prepare(
    net: Network,
    data: Rows,
    loss: Loss,
    *,
    validation: Any,
    seed: Callable[[], np.random.SeedSequence],
    scale: str | None,
    scalers: tuple[Scaler, Scaler | None] | None,
    terms: dict[str, Any],
) -> Data:
    """Hold rows out, scale columns, and bind the objectives.

    Parameters
    ----------
    net : Network
    data : Rows
    loss : Loss
    validation, seed
        As `held_out` takes them.
    scale : {"standard", "minmax"} or None
    scalers : tuple or None
        Those of the run that is continued, instead of new ones.
    terms : dict
        l2, l1, group, threads and backend of `Network.objective`.

    Raises
    ------
    ValueError
        Also where scaling could not be folded into the network.
    ShapeError, TypeError, NonFiniteError
        For data that do not fit or are not finite.
    """
    if scale is not None and scale not in SCALINGS:
        raise ValueError(unknown_name("scale", scale, SCALINGS))
    whole = _objective(net, data, loss, terms)  # checks X, y and weights before rows are taken
    train, valid = held_out(data, validation, seed, loss.paired)
    raw = whole if train is data else _objective(net, train, loss, terms)
    _require_finite(raw)
    found = Data(raw, raw, scale=scale)
    unpenalised = terms | {"l2": 0.0, "l1": 0.0, "group": 0.0}
    if valid is not None:
        found.validation = _validation(net, valid, loss, unpenalised)
    if scale is None:
        return found
    found.x_scaler, found.y_scaler = scalers or _scalers(train, loss, scale)
    _require_foldable(found)
    found.training = _objective(net, _scaled(train, found, net), loss, terms)
    _require_finite(found.training)
    if valid is not None:
        found.validation = _validation(net, _scaled(valid, found, net), loss, unpenalised)
    return found


def _objective(net: Network, rows: Rows, loss: Loss, terms: dict[str, Any]) -> Objective:
    return net.objective(rows.X, rows.y, loss, sample_weight=rows.weights, **terms)


def _validation(net: Network, rows: Rows, loss: Loss, terms: dict[str, Any]) -> Objective:
    try:
        found = _objective(net, rows, loss, terms)
        _require_finite(found)
    except (ValueError, TypeError) as error:
        raise type(error)(f"validation: {error}") from None
    return found


def _scaled(rows: Rows, found: Data, net: Network) -> Rows:
    assert found.x_scaler is not None
    y = rows.y if found.y_scaler is None else found.y_scaler.transform(rows.y, net.dtype)
    return Rows(found.x_scaler.transform(rows.X, net.dtype), y, rows.weights)


def _require_finite(obj: Objective) -> None:
    # After the conversion: what is too large for float32 is infinite there.
    require_finite("X", obj.problem.X)
    require_finite("y", obj.problem.targets)
