"""The data of a fit: rows split into training and validation, columns scaled, both bound."""

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
class FitData:
    """The objectives of a fit, and the way between parameters for raw and for scaled columns.

    Attributes
    ----------
    raw : Objective
        Over the training rows in the units of the caller.
    training : Objective
        Over the same rows with scaled columns; `raw` itself without scaling.
    validation : Objective or None
        Over the validation rows, with scaled columns and without penalties.
    scale : {"standard", "minmax"} or None
    x_scaler, y_scaler : Scaler or None
        The scalers of the columns of X and of y; None for columns that are not scaled.
    start : numpy.ndarray (n_params,) or None
        The initial parameters for raw columns. The result has the same fixed entries.
    """

    raw: Objective
    training: Objective
    validation: Objective | None = None
    scale: str | None = None
    x_scaler: Scaler | None = None
    y_scaler: Scaler | None = None
    start: np.ndarray | None = None

    @property
    def n_validation(self) -> int:
        """How many rows the validation has."""
        return 0 if self.validation is None else len(self.validation.problem.X)

    def to_scaled(self, params: np.ndarray) -> np.ndarray:
        """Parameters for scaled columns from those for raw ones; a new vector (n_params,)."""
        return self._folded(params, inverse(self.x_scaler), inverse(self._output_scaler))

    def to_raw(self, params: np.ndarray) -> np.ndarray:
        """Parameters for raw columns from those for scaled ones; a new vector (n_params,).

        Fixed entries are those of `start`.
        """
        raw = self._folded(params, self.x_scaler, self._output_scaler)
        if self.start is not None and self.raw.net.plan.free is not None:
            raw = np.where(self.raw.net.plan.free, raw, self.start)
        return raw

    @property
    def _output_scaler(self) -> Scaler | None:
        """The scaler of the outputs, which have two columns per column of y for "gaussian_nll"."""
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


# Training and validation rows.


@dataclass(eq=False)
class Samples:
    """Samples with their targets and weights.

    Attributes
    ----------
    X : array_like (n, n_in)
    y : array_like of n rows, or None where the loss has no targets
    weights : array_like (n,), or (n/2,) for a loss of pairs; None for equal weights
    """

    X: Any
    y: Any
    weights: Any = None

    def take(self, groups: np.ndarray, size: int) -> Samples:
        """The rows of some groups, which are `size` rows with one weight.

        Parameters
        ----------
        groups : numpy.ndarray of int (n_groups,)
            Group g has the rows g·size, ..., g·size + size - 1.
        size : int
        """
        rows = (size * groups[:, None] + np.arange(size)).ravel()
        y, weights = self.y, self.weights
        return Samples(
            as_array("X", self.X)[rows],
            None if y is None else as_array("y", y)[rows],
            None if weights is None else as_array("sample_weight", weights)[groups],
        )


def split(
    samples: Samples, validation: Any, seed: Callable[[], np.random.SeedSequence], paired: bool
) -> tuple[Samples, Samples | None]:
    """The samples to train on, and those to validate on, or None.

    Parameters
    ----------
    samples : Samples
        With X, y and weights of equal lengths.
    validation : None, float or tuple
        A fraction of the rows (or pairs of them), or (X, y) or (X, y, sample_weight).
    seed : callable
        Returns the SeedSequence that draws the rows of a fraction. Both parts keep the order of
        their rows.
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
        return samples, None
    if isinstance(validation, tuple | list) and len(validation) in (2, 3):
        return samples, Samples(*validation)
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
    groups = len(samples.X) // size
    count = max(1, round(fraction * groups))
    if count >= groups:
        raise ValueError(
            f"validation={fraction:g} of {groups} {unit} leaves none to train on; take a smaller "
            f"fraction"
        )
    order = np.random.default_rng(seed()).permutation(groups)
    validated, trained = np.sort(order[:count]), np.sort(order[count:])
    return samples.take(trained, size), samples.take(validated, size)


# Scaling.


def _scalers(train: Samples, loss: Loss, scale: str) -> tuple[Scaler, Scaler | None]:
    """Scalers of X, and of y where the loss compares outputs with values; else None for y."""
    make = SCALINGS[scale]
    plain = loss.target in ("values", "halves") and loss.functions is None
    return make(train.X), make(train.y) if plain else None


def _require_foldable(data: FitData) -> None:
    """Raise ValueError if the network cannot take the scaling into its parameters."""
    net, scale = data.raw.net, data.scale
    ends = {0} | ({len(net.layers) - 1} if data.y_scaler is not None else set())
    for k in sorted(ends):
        if _has_frozen_entries(net.layers[k]):
            raise ValueError(
                f"scale={scale!r} is folded into layer {k}, which has frozen entries; scale X and "
                f"y beforehand, or leave the layer trainable"
            )
    try:
        # Numbers whose sums do not cancel, so that every shift shows.
        data.to_raw(np.random.default_rng(0).random(net.n_params))
    except ValueError as error:
        raise ValueError(f"scale={scale!r} cannot be folded into the network: {error}") from None


def _has_frozen_entries(layer: Dense) -> bool:
    if isinstance(layer.trainable, bool):
        return not layer.trainable
    present = True if layer.mask is None else layer.mask
    return bool((~layer.trainable & present).any())


# All of it.


def prepare(
    net: Network,
    samples: Samples,
    loss: Loss,
    *,
    validation: Any,
    seed: Callable[[], np.random.SeedSequence],
    scale: str | None,
    scalers: tuple[Scaler, Scaler | None] | None,
    terms: dict[str, Any],
) -> FitData:
    """Split the rows, scale the columns, and bind the objectives.

    Parameters
    ----------
    net : Network
    samples : Samples
    loss : Loss
    validation, seed
        As `split` takes them.
    scale : {"standard", "minmax"} or None
    scalers : tuple (Scaler, Scaler or None), or None
        The scalers of X and y of the run to continue; None to compute them.
    terms : dict
        l2, l1, group, threads and backend of `Network.objective`.

    Raises
    ------
    ValueError
        For arguments that `split` or `Network.objective` refuses, an unknown `scale`, or a
        network that cannot take the scaling into its parameters.
    ShapeError, TypeError, NonFiniteError
        For data that do not fit or are not finite.
    """
    if scale is not None and scale not in SCALINGS:
        raise ValueError(unknown_name("scale", scale, SCALINGS))
    whole = _objective(net, samples, loss, terms)  # checks X, y and weights before the split
    train, valid = split(samples, validation, seed, loss.paired)
    raw = whole if train is samples else _objective(net, train, loss, terms)
    _require_finite(raw)
    data = FitData(raw, raw, scale=scale)
    unpenalised = terms | {"l2": 0.0, "l1": 0.0, "group": 0.0}
    if valid is not None:
        data.validation = _validation(net, valid, loss, unpenalised)
    if scale is None:
        return data
    data.x_scaler, data.y_scaler = scalers or _scalers(train, loss, scale)
    _require_foldable(data)
    data.training = _objective(net, _scaled(train, data, net), loss, terms)
    _require_finite(data.training)
    if valid is not None:
        data.validation = _validation(net, _scaled(valid, data, net), loss, unpenalised)
    return data


def _objective(net: Network, samples: Samples, loss: Loss, terms: dict[str, Any]) -> Objective:
    return net.objective(samples.X, samples.y, loss, sample_weight=samples.weights, **terms)


def _validation(net: Network, samples: Samples, loss: Loss, terms: dict[str, Any]) -> Objective:
    """The objective over the validation rows; errors say that they are about these."""
    try:
        objective = _objective(net, samples, loss, terms)
        _require_finite(objective)
    except (ValueError, TypeError) as error:
        raise type(error)(f"validation: {error}") from None
    return objective


def _scaled(samples: Samples, data: FitData, net: Network) -> Samples:
    assert data.x_scaler is not None
    y = samples.y if data.y_scaler is None else data.y_scaler.transform(samples.y, net.dtype)
    return Samples(data.x_scaler.transform(samples.X, net.dtype), y, samples.weights)


def _require_finite(obj: Objective) -> None:
    # After the conversion: what is too large for float32 is infinite there.
    require_finite("X", obj.problem.X)
    require_finite("y", obj.problem.targets)
