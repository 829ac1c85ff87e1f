"""`FittedProblem`: the least-squares problem of a fit, and the uncertainty of its solution."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..common.arrays import FLOAT64, as_array
from ..maths.uncertainty import N_LISTED, Parameters, Uncertainty, listed, of_normal_equations
from ..networks.description import Description
from ..networks.network import Network
from ..networks.objective import Objective
from ..networks.scaling import Scaler, inverse
from ..optimize.scipy_methods import LEAST_SQUARES, as_bounds, main_memory

# Matrices in memory at once: (n_free, n_free), and (n_params, n_free).
SQUARE, TALL = 6, 2
# A parameter is at a bound if its distance is at most this, relative to bounds of 1 or more (for
# float32 rounds it), or this share of the step that the bound stops: interior methods stop earlier.
AT_BOUND, STOPPED_SHARE = 1e-7, 0.01
# Jacobians of predictions are formed in blocks of rows of about so many bytes.
BLOCK_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class FittedProblem:
    """What `fit` minimised, from which the uncertainty of its parameters is computed.

    Attributes
    ----------
    objective : Objective
        Over the raw training rows.
    start : numpy.ndarray (n_params,)
        The initial parameters, for raw data.
    x_scaler, y_scaler : Scaler or None
        Of the columns of X and y, if `fit` scaled them; penalties are on parameters for scaled
        columns.
    method : str
    options : dict
        Those of the method; bounds are among them.
    l2 : float or None
        The penalty that the method determined by itself, if it did.
    """

    objective: Objective
    start: np.ndarray
    x_scaler: Scaler | None
    y_scaler: Scaler | None
    method: str
    options: dict[str, Any]
    l2: float | None = None

    def uncertainty(self, params: np.ndarray) -> Uncertainty:
        """The uncertainty of the fitted parameters (n_params,), for raw data.

        Raises
        ------
        ValueError
            If `fit` did not minimise a plain sum of squares.
        MemoryError
            If the matrices are larger than the machine's memory.
        """
        if self.obstacle:
            raise ValueError(
                f"the fit had {self.obstacle}, and covariance, standard errors and intervals are "
                f"those of plain least squares; fit with loss 'mse', 'half_mse' or 'sse', with l2 "
                f"and bounds if need be"
            )
        _require_memory(self.objective.net)
        objective, scaled_params = self._scaled(params)
        net = objective.net
        JTJ, gradient, sse = objective.normal_equations(scaled_params)
        prior = objective.prior(self.l2)[net.free]
        gradient = gradient + prior * scaled_params[net.free]
        curvature = np.diag(JTJ) + prior
        steps = -gradient / np.where(curvature == 0, 1, curvature)
        movable = ~self._at_bound(params, net.free, steps)
        free = net.free[movable]
        uncertainty = of_normal_equations(
            JTJ[np.ix_(movable, movable)],
            gradient[movable],
            prior[movable],
            sse,
            objective.n_residuals,
            Parameters(
                params,
                self.start,
                free,
                lambda places: _named(net, places),
                "l2, fewer units or more rows would help",
                self._unscaled,
            ),
        )
        scale = np.ones(net.n_out) if self.y_scaler is None else np.abs(self.y_scaler.scale)
        return replace(uncertainty, output_scale=scale)

    @property
    def obstacle(self) -> str:
        """What makes this other than a plain sum of squares, in words; empty if nothing does."""
        obj, options = self.objective, self.options
        if not obj.loss.least_squares:
            return f"loss {obj.loss.name!r}"
        if obj._stored.l1 or obj._stored.group:
            return "a penalty l1 or group"
        if options.get("robust") not in (None, "linear"):
            return f"robust={options['robust']!r}"
        return "constraints" if np.size(options.get("constraints", ())) else ""

    @property
    def work(self) -> float:
        """The approximate number of multiplications that `uncertainty` takes."""
        p = float(self.objective.net.n_free)
        return self.objective.n_residuals * p**2 + 10 * p**3

    def _at_bound(self, x: np.ndarray, free: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Which of the parameters x[free], x (n_params,), are at a bound; bool (n_free,).

        `steps` (n_free,) would take each to its best value.
        """
        bounds = self.options.get("bounds")
        if bounds is None:
            return np.zeros(len(free), bool)
        bounds = as_bounds(bounds, len(x), pairs=self.method not in LEAST_SQUARES)
        x, lower, upper = x[free], bounds.lb[free], bounds.ub[free]
        return _stopped(x - lower, lower, -steps) | _stopped(upper - x, upper, steps)

    # Scaled columns, in float64.

    def _scaled(self, params: np.ndarray) -> tuple[Objective, np.ndarray]:
        """The objective over scaled columns, and its parameters (n_params,)."""
        obj, p = self.objective, self.objective._stored
        net, x, y = obj.net.astype(FLOAT64), self.x_scaler, self.y_scaler
        if x is None or y is None:
            return obj.astype(FLOAT64), params.astype(np.float64)
        scaled = Objective(
            net, x.transform(p.X), y.transform(p.targets), obj.loss, p.weights, p.l2, 0.0, 0.0,
            obj.threads, obj.backend,
        )  # fmt: skip
        return scaled, net.fold_scaling(params, inverse(x), inverse(y))

    def _unscaled(self, changes: np.ndarray) -> np.ndarray:
        """Changes (n_params, k) of parameters for scaled columns as changes for raw columns."""
        if self.x_scaler is None or self.y_scaler is None:
            return changes
        net, y_scale = self.objective.net.astype(FLOAT64), (0.0, self.y_scaler.scale)
        columns = [net.fold_scaling(change, self.x_scaler, y_scale) for change in changes.T]
        return np.array(columns).reshape(-1, len(changes)).T


def prediction_deviations(
    uncertainty: Uncertainty, net: Network, params: np.ndarray, X: Any
) -> np.ndarray:
    """Standard errors (n, n_out) of the outputs for X (n, n_in).

    They are those of J e, where J is the Jacobian of the outputs and e the error of the parameters.
    """
    net, X = net.astype(FLOAT64), as_array("X", X)
    result = np.empty((len(X), net.n_out))
    size = max(1, BLOCK_BYTES // (8 * net.n_out * net.n_params))
    for start in range(0, len(X), size):
        J = net.jacobian(params, X[start : start + size])
        result[start : start + size] = uncertainty.deviations(J).reshape(-1, net.n_out)
    return result


def _stopped(distances: np.ndarray, limits: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Whether parameters are at a limit but for rounding, or their steps go far beyond it.

    All arguments are (n_free,): the distances from the limits, these, and the steps towards them.
    """
    rounding = AT_BOUND * np.maximum(1, np.abs(limits))
    return np.isfinite(limits) & (distances <= np.maximum(rounding, STOPPED_SHARE * steps))


def _require_memory(net: Description) -> None:
    """Raise MemoryError if the matrices for its free parameters exceed the main memory."""
    needed = 8 * net.n_free * (SQUARE * net.n_free + TALL * net.n_params)
    memory = main_memory()
    if needed > memory:
        raise MemoryError(
            f"the uncertainty of {net.n_free} free parameters needs about {needed / 2**30:.3g} GiB "
            f"for dense matrices, and this machine has {memory / 2**30:.3g} GiB; it is for smaller "
            f"networks"
        )


def _named(net: Description, places: np.ndarray) -> str:
    """The parameters at these places, in words such as "W[0, 2], b[2] of layer 1"."""
    layers = net.plan.layers.tolist()
    names: dict[int, list[str]] = {}
    for place in places[:N_LISTED].tolist():
        k = max(k for k, (_, _, _, w, *_) in enumerate(layers) if w <= place)
        _, n_out, _, w, b, *_ = layers[k]
        row, column = divmod(place - w, n_out)
        name = f"b[{place - b}]" if 0 <= b <= place else f"W[{row}, {column}]"
        names.setdefault(k, []).append(name)
    texts = [f"{', '.join(group)} of layer {k}" for k, group in names.items()]
    return listed(texts, len(texts) + max(0, len(places) - N_LISTED))
