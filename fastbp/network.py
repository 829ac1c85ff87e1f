"""Networks: an immutable description, one flat parameter vector that the caller owns, derivatives.

The parameter vector holds layer after layer W (n_in, n_out) row-major, then b (n_out,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from types import ModuleType
from typing import Any

import numpy as np

from . import backends
from ._arrays import FLOAT32, FLOAT64, matrix, real_array, whole_number
from ._errors import ShapeError, unknown_name
from .activations import Activation, activation as activation_of
from .backends.contract import Y_COLUMN, Plan, Problem
from .losses import Loss, loss as loss_of, prepare_target, prepare_weights

LAYOUTS = ("xw", "wx", "theta")
INITS = ("auto", "glorot", "he", "zeros")


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: Y = act(XW + b).

    Parameters
    ----------
    n_out : int
        Number of units.
    activation : str or Activation, default "linear"
    bias : bool, default True
        Whether the layer has b.
    init : {"auto", "glorot", "he", "zeros"}
        Initial weights, uniform on ±limit: "glorot" has limit sqrt(6/(n_in + n_out)) [1]_, "he"
        sqrt(6/n_in) [2]_; "auto" takes "he" for the relu family and "glorot" else. Biases start
        at 0.

    Raises
    ------
    ValueError
        For a size below 1 or an unknown name.
    TypeError
        If `n_out` is not a whole number.

    References
    ----------
    .. [1] X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural
       networks", AISTATS 2010.
    .. [2] K. He et al., "Delving deep into rectifiers", ICCV 2015.
    """

    n_out: int
    activation: str | Activation = "linear"
    _: KW_ONLY
    bias: bool = True
    init: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_out", whole_number("n_out", self.n_out))
        object.__setattr__(self, "activation", activation_of(self.activation))
        object.__setattr__(self, "bias", bool(self.bias))
        if self.init not in INITS:
            raise ValueError(unknown_name("init", self.init, INITS))

    @property
    def act(self) -> Activation:
        """The activation as an object."""
        return activation_of(self.activation)

    def __repr__(self) -> str:
        options = "" if self.bias else ", bias=False"
        if self.init != "auto":
            options += f", init={self.init!r}"
        act = "" if self.act.name == "linear" else f", {self.act!r}"
        return f"Dense({self.n_out}{act}{options})"


@dataclass(frozen=True, init=False, repr=False)
class Network:
    """Dense layers one after another: what a network is, without its parameters.

    Parameters
    ----------
    n_in : int
        Number of inputs, the columns of X.
    *layers : Dense
        At least one.
    dtype : {"float64", "float32"}
        The type of parameters, data and results; other real input is converted to it.

    Raises
    ------
    ValueError
        For a size below 1, no layers, or another dtype.
    TypeError
        If a layer is not a `Dense`.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> net = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1))
    >>> net.n_params
    13
    >>> params = net.init(seed=0)
    >>> X, y = np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0])
    >>> loss, grad = net.value_and_grad(params, X, y, loss="mse")
    >>> grad.shape
    (13,)
    """

    n_in: int
    layers: tuple[Dense, ...]
    dtype: np.dtype

    def __init__(self, n_in: int, *layers: Dense, dtype: Any = "float64"):
        for layer in layers:
            if not isinstance(layer, Dense):
                raise TypeError(
                    f"a layer is {layer!r}, expected fastbp.Dense(...); for plain sizes use "
                    f"Network.mlp([n_in, ..., n_out])"
                )
        if not layers:
            raise ValueError("a network needs at least one layer; add fastbp.Dense(n_out)")
        object.__setattr__(self, "n_in", whole_number("n_in", n_in))
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "dtype", _dtype(dtype))

    @classmethod
    def mlp(
        cls,
        sizes: Sequence[int],
        activation: str | Activation = "tanh",
        output: str | Activation = "linear",
        dtype: Any = "float64",
    ) -> Network:
        """A network by its sizes: `activation` on the hidden layers, `output` on the last.

        Parameters
        ----------
        sizes : sequence of int
            [n_in, hidden..., n_out], at least two numbers.

        Examples
        --------
        >>> import fastbp as fb
        >>> fb.Network.mlp([4, 20, 1])
        Network(4, Dense(20, 'tanh'), Dense(1))
        """
        if len(sizes) < 2:
            raise ValueError(f"sizes is {list(sizes)}, expected at least [n_in, n_out]")
        n_in, *hidden, n_out = sizes
        layers = [Dense(size, activation) for size in hidden]
        return cls(n_in, *layers, Dense(n_out, output), dtype=dtype)

    def __repr__(self) -> str:
        dtype = "" if self.dtype == FLOAT64 else f", dtype='{self.dtype}'"
        return f"Network({self.n_in}, {', '.join(map(repr, self.layers))}{dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The cached plan stays behind: it may hold what a backend keeps outside Python.
        return partial(Network, dtype=self.dtype.name), (self.n_in, *self.layers)

    def astype(self, dtype: Any) -> Network:
        """The same network in "float32" or "float64"."""
        return (
            self if self.dtype == _dtype(dtype) else Network(self.n_in, *self.layers, dtype=dtype)
        )

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return self.layers[-1].n_out

    @property
    def n_params(self) -> int:
        """Length of the parameter vector."""
        return self.plan.n_params

    @cached_property
    def plan(self) -> Plan:
        """The network as plain arrays: what backends receive."""
        rows, constants = [], []
        n_in, offset, column = self.n_in, 0, 0
        for layer in self.layers:
            n_out, act = layer.n_out, layer.act
            w, b, y, z = offset, offset + n_in * n_out, column, column + n_out
            offset = b + n_out * layer.bias
            column = z + n_out * act.keeps_z
            b, z = b if layer.bias else -1, z if act.keeps_z else -1
            rows.append([n_in, n_out, act.kind, w, b, y, z])
            constants.append(act.constant)
            n_in = n_out
        return Plan(self.dtype, np.array(rows, np.int64), np.array(constants), offset, column)

    # Parameters.

    def init(self, seed: Any = None) -> np.ndarray:
        """Initial parameters, drawn as each layer's `init` says.

        Parameters
        ----------
        seed : int, SeedSequence, Generator or None
            As `numpy.random.default_rng` takes it. The same seed gives the same values in float32
            (rounded) and float64.

        Returns
        -------
        numpy.ndarray (n_params,)
        """
        rng = np.random.default_rng(seed)
        params = np.zeros(self.n_params, self.dtype)
        for layer, (W, _) in zip(self.layers, self.unpack(params), strict=True):
            kind = layer.act.row.init if layer.init == "auto" else layer.init
            if kind == "zeros":
                continue
            n_in, n_out = W.shape
            limit = np.sqrt(6 / n_in if kind == "he" else 6 / (n_in + n_out))
            W[:] = rng.uniform(-limit, limit, W.shape)
        return params

    def unpack(self, params: Any, layout: str = "xw") -> list[Any]:
        """The layers' weights and biases in a parameter vector.

        Parameters
        ----------
        params : array_like (n_params,)
        layout : {"xw", "wx", "theta"}
            "xw": pairs (W, b), W (n_in, n_out), for XW + b. "wx": pairs (W, b), W (n_out, n_in), as
            PyTorch stores them. "theta": matrices (n_out, 1 + n_in), the bias in the first column,
            as Octave courses write them. b is None for a layer without bias.

        Returns
        -------
        list
            With "xw" and "wx" views of `params` where it is an array of the network's dtype;
            "theta" makes new matrices.

        Raises
        ------
        ShapeError
            If `params` has another length.
        ValueError
            For an unknown layout, or "theta" where a layer has no bias.
        """
        params = self._params(params)
        pairs: list[tuple[np.ndarray, Any]] = []
        for n_in, n_out, _, w, b, _, _ in self.plan.layers.tolist():
            W = params[w : w + n_in * n_out].reshape(n_in, n_out)
            pairs.append((W, params[b : b + n_out] if b >= 0 else None))
        if layout == "xw":
            return pairs
        if layout == "wx":
            return [(W.T, b) for W, b in pairs]
        self._check_layout(layout)
        return [np.column_stack([b, W.T]) for W, b in pairs]

    def pack(self, layers: Any, layout: str = "xw") -> np.ndarray:
        """A parameter vector from the layers' weights and biases; the inverse of `unpack`.

        Parameters
        ----------
        layers : sequence
            Per layer (W, b), or a matrix Theta for layout "theta". For a layer without bias b is
            None, or W stands alone as an array. With "theta" also one vector: the matrices
            unrolled column by column, as Octave's ``[Theta1(:); Theta2(:)]`` gives it.
        layout : {"xw", "wx", "theta"}
            As for `unpack`.

        Returns
        -------
        numpy.ndarray (n_params,)
            A new vector.

        Raises
        ------
        ShapeError
            If a shape does not fit; the message names the layer and both shapes.
        ValueError
            For an unknown layout.
        """
        self._check_layout(layout)
        if layout == "theta":
            pairs: list[Any] = [(theta[:, 1:], theta[:, 0]) for theta in self._thetas(layers)]
        else:
            pairs = [pair if isinstance(pair, tuple | list) else (pair, None) for pair in layers]
            for k, pair in enumerate(pairs):
                if len(pair) != 2:
                    raise ShapeError(f"layer {k} has {len(pair)} arrays, expected a pair (W, b)")
        if len(pairs) != len(self.layers):
            raise ShapeError(f"{len(pairs)} layers came, expected {len(self.layers)}")
        params = np.empty(self.n_params, self.dtype)
        for k, ((W, b), (W_view, b_view)) in enumerate(
            zip(pairs, self.unpack(params), strict=True)
        ):
            target = W_view if layout == "xw" else W_view.T
            target[:] = self._fitting(f"W of layer {k}", W, target.shape)
            if b_view is None:
                if b is not None:
                    raise ShapeError(f"layer {k} has bias=False and came with b; pass None for it")
            elif b is None:
                raise ShapeError(f"b of layer {k} is missing, expected shape {b_view.shape}")
            else:
                b_view[:] = self._fitting(f"b of layer {k}", b, b_view.shape)
        return params

    def _check_layout(self, layout: str) -> None:
        if layout not in LAYOUTS:
            raise ValueError(unknown_name("layout", layout, LAYOUTS))
        if layout == "theta" and not all(layer.bias for layer in self.layers):
            raise ValueError("layout 'theta' keeps a bias column, and a layer has bias=False")

    def _thetas(self, layers: Any) -> list[np.ndarray]:
        shapes = [(n_out, 1 + n_in) for n_in, n_out, *_ in self.plan.layers.tolist()]
        if isinstance(layers, np.ndarray) and layers.ndim == 1:
            flat = self._params(layers)
            ends = np.cumsum([rows * columns for rows, columns in shapes])
            parts = np.split(flat, ends[:-1])
            return [p.reshape(s, order="F") for p, s in zip(parts, shapes, strict=True)]
        if len(layers) != len(shapes):
            raise ShapeError(f"{len(layers)} layers came, expected {len(shapes)}")
        return [
            self._fitting(f"Theta of layer {k}", theta, shape)
            for k, (theta, shape) in enumerate(zip(layers, shapes, strict=True))
        ]

    def _fitting(self, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
        array = real_array(name, value, self.dtype)
        if array.shape != shape:
            raise ShapeError(f"{name} has shape {array.shape}, expected {shape}")
        return array

    def _params(self, params: Any) -> np.ndarray:
        params = real_array("params", params, self.dtype)
        if params.shape != (self.plan.n_params,):
            raise ShapeError(
                f"params has shape {params.shape}, expected ({self.plan.n_params},); "
                f"net.init(seed) or net.pack(layers) make such a vector"
            )
        return params

    def _inputs(self, X: Any) -> np.ndarray:
        return matrix("X", X, self.dtype, self.n_in, "input of the network")

    # The network as a function.

    def forward(self, params: Any, X: Any, *, backend: str | None = None) -> np.ndarray:
        """The network's output.

        Parameters
        ----------
        params : array_like (n_params,)
        X : array_like (n, n_in)
        backend : {"c", "numba", "numpy"}, optional
            The current one by default.

        Returns
        -------
        numpy.ndarray (n, n_out) of the network's dtype

        Raises
        ------
        ShapeError
            If a shape does not fit.
        TypeError
            For complex, object or string arrays.
        """
        return backends.resolve(backend).forward(self.plan, self._params(params), self._inputs(X))

    def vjp(
        self, params: Any, X: Any, *, backend: str | None = None
    ) -> tuple[np.ndarray, Callable[..., tuple[np.ndarray, np.ndarray]]]:
        """Output and pullback: the vector-Jacobian products of reverse-mode differentiation.

        Parameters
        ----------
        params : array_like (n_params,)
        X : array_like (n, n_in)
            Neither may be modified before the last use of the pullback.

        Returns
        -------
        Y : numpy.ndarray (n, n_out)
        pullback : callable
            ``pullback(dY) -> (dparams, dX)`` for dY (n, n_out): the gradient of Σ dY ∘ Y with
            respect to parameters and inputs. It may be called any number of times.

        Raises
        ------
        ShapeError, TypeError
            As `forward`; the pullback too.

        Examples
        --------
        >>> import fastbp as fb
        >>> net = fb.Network(2, fb.Dense(1))
        >>> Y, pullback = net.vjp([3.0, 4.0, 0.0], [[1.0, 2.0]])
        >>> pullback([[1.0]])
        (array([1., 2., 1.]), array([[3., 4.]]))
        """
        module = backends.resolve(backend)
        plan, params, X = self.plan, self._params(params), self._inputs(X)
        tape = module.forward_tape(plan, params, X)
        n, n_out = len(X), self.n_out
        start = n * int(plan.layers[-1, Y_COLUMN])
        Y = tape[start : start + n * n_out].reshape(n, n_out)

        def pullback(dY: Any) -> tuple[np.ndarray, np.ndarray]:
            dY = real_array("dY", dY, plan.dtype)
            if dY.shape != (n, n_out):
                raise ShapeError(f"dY has shape {dY.shape}, expected {(n, n_out)}, the shape of Y")
            return module.backward(plan, params, X, tape, dY, True)

        return Y.copy(), pullback

    def jacobian(self, params: Any, X: Any, *, backend: str | None = None) -> np.ndarray:
        """Derivatives of all outputs with respect to the parameters.

        Parameters
        ----------
        params : array_like (n_params,)
        X : array_like (n, n_in)

        Returns
        -------
        numpy.ndarray (n·n_out, n_params)
            Rows sample-major: row i·n_out + k belongs to output k of sample i.

        Raises
        ------
        ShapeError, TypeError
            As `forward`.
        """
        return backends.resolve(backend).jacobian(self.plan, self._params(params), self._inputs(X))

    def input_jacobian(self, params: Any, X: Any, *, backend: str | None = None) -> np.ndarray:
        """Derivatives of each sample's outputs with respect to its inputs.

        Parameters
        ----------
        params : array_like (n_params,)
        X : array_like (n, n_in)

        Returns
        -------
        numpy.ndarray (n, n_out, n_in)

        Raises
        ------
        ShapeError, TypeError
            As `forward`.
        """
        return backends.resolve(backend).input_jacobian(
            self.plan, self._params(params), self._inputs(X)
        )

    # The objective.

    def objective(
        self,
        X: Any,
        y: Any,
        loss: str | Loss = "mse",
        *,
        sample_weight: Any = None,
        l2: float = 0.0,
        backend: str | None = None,
    ) -> Objective:
        """The loss over fixed data as a function of the parameters alone, checked and bound once.

        Parameters
        ----------
        X : array_like (n, n_in), n >= 1
        y : array_like
            (n, n_out), or (n,) for one output; for "softmax_ce" integer labels (n,) or rows of
            probabilities (n, n_out).
        loss : {"mse", "half_mse", "sse", "bce_logits", "softmax_ce"}
            With N the sum of the sample weights: "mse" Σw(Y-y)²/(N·n_out), "half_mse"
            Σw(Y-y)²/(2N), "sse" Σw(Y-y)², "bce_logits" cross-entropy of sigmoid(Y) per element
            (N·n_out), "softmax_ce" cross-entropy of softmax(Y) per row (N).
        sample_weight : array_like (n,), optional
            Weights >= 0; all 1 by default.
        l2 : float, default 0.0
            Adds l2/2·‖W‖² over weights, never biases.
        backend : {"c", "numba", "numpy"}, optional
            The current one by default, for all calls of the objective.

        Returns
        -------
        Objective

        Raises
        ------
        ShapeError, TypeError, ValueError
            For shapes that do not fit, arrays that are not real, labels or weights out of range,
            and unknown names.
        """
        return Objective(self, X, y, loss, sample_weight, l2, backends.resolve(backend))

    def value(
        self,
        params: Any,
        X: Any,
        y: Any,
        loss: str | Loss = "mse",
        *,
        sample_weight: Any = None,
        l2: float = 0.0,
        backend: str | None = None,
    ) -> float:
        """The objective at `params`; arguments and errors as for `objective`."""
        terms = {"sample_weight": sample_weight, "l2": l2, "backend": backend}
        return self.objective(X, y, loss, **terms).value(params)

    def value_and_grad(
        self,
        params: Any,
        X: Any,
        y: Any,
        loss: str | Loss = "mse",
        *,
        sample_weight: Any = None,
        l2: float = 0.0,
        backend: str | None = None,
    ) -> tuple[float, np.ndarray]:
        """The objective and its gradient (n_params,); arguments and errors as for `objective`."""
        terms = {"sample_weight": sample_weight, "l2": l2, "backend": backend}
        return self.objective(X, y, loss, **terms).value_and_grad(params)


class Objective:
    """A network's loss over fixed data: a function of the parameters, as SciPy wants it.

    Made by `Network.objective`. It refers to the data and must not outlive a change of them.

    Attributes
    ----------
    net : Network
    loss : Loss
    problem : Problem
        What the backend receives.
    backend : module
        The backend that computes it.
    """

    def __init__(
        self,
        net: Network,
        X: Any,
        y: Any,
        loss: str | Loss,
        sample_weight: Any,
        l2: float,
        module: ModuleType,
    ):
        self.net = net
        self.loss = loss_of(loss)
        X = net._inputs(X)
        n = len(X)
        if n == 0:
            raise ShapeError(f"X has shape {X.shape}, expected at least one row")
        kind, targets = prepare_target(self.loss, y, n, net.n_out, net.dtype)
        weights, total = prepare_weights(sample_weight, n, net.dtype)
        scale = self.loss.scale(total, net.n_out)
        self.problem = Problem(net.plan, kind, X, targets, weights, scale, _penalty("l2", l2))
        self.backend = module

    def astype(self, dtype: Any) -> Objective:
        """The same objective computed in "float32" or "float64"."""
        if self.net.dtype == _dtype(dtype):
            return self
        p = self.problem
        return Objective(
            self.net.astype(dtype), p.X, p.targets, self.loss, p.weights, p.l2, self.backend
        )

    def value(self, params: Any) -> float:
        """The objective at `params` (n_params,)."""
        return self.backend.value(self.problem, self.net._params(params))

    def value_and_grad(self, params: Any) -> tuple[float, np.ndarray]:
        """The objective and its gradient (n_params,) at `params`."""
        return self.backend.value_and_grad(self.problem, self.net._params(params))

    def residuals(self, params: Any) -> np.ndarray:
        """The vector whose sum of squares is the objective up to its normaliser.

        Its entries are sqrt(w)·(Y - y), sample-major; with a penalty sqrt(l2/(2·scale))·W follow,
        where scale is the normaliser (`problem.scale`), so that always
        ``scale·Σ residuals² = value``.

        Raises
        ------
        ValueError
            If the loss is not a sum of squares.
        """
        self._require_least_squares()
        params, p = self.net._params(params), self.problem
        with np.errstate(all="ignore"):  # infinite and NaN entries pass, as in the backends
            R = self.backend.forward(p.plan, params, p.X) - p.targets
            if p.weights is not None:
                R *= np.sqrt(p.weights)[:, None]
            if not p.l2:
                return R.ravel()
            return np.concatenate([R.ravel(), self._prior_factor() * params[self._weight_indices]])

    def jacobian(self, params: Any) -> np.ndarray:
        """The derivative of `residuals`, (len(residuals), n_params)."""
        self._require_least_squares()
        params, p = self.net._params(params), self.problem
        J = self.backend.jacobian(p.plan, params, p.X)
        if p.weights is not None:
            with np.errstate(all="ignore"):
                J *= np.repeat(np.sqrt(p.weights), self.net.n_out)[:, None]
        if not p.l2:
            return J
        indices = self._weight_indices
        prior = np.zeros((len(indices), self.net.n_params), self.net.dtype)
        prior[np.arange(len(indices)), indices] = self._prior_factor()
        return np.concatenate([J, prior])

    def _prior_factor(self) -> np.floating:
        return self.net.dtype.type(np.sqrt(self.problem.l2 / (2 * self.problem.scale)))

    @cached_property
    def _weight_indices(self) -> np.ndarray:
        """Places of the weights in the parameter vector, biases left out."""
        return np.concatenate(
            [np.arange(w, w + i * o) for i, o, _, w, *_ in self.problem.plan.layers.tolist()]
        )

    def _require_least_squares(self) -> None:
        if not self.loss.least_squares:
            raise ValueError(
                f"loss {self.loss.name!r} is not a sum of squares; least-squares methods need "
                f"'mse', 'half_mse' or 'sse', others take 'L-BFGS-B' or 'fmincg'"
            )


def _dtype(dtype: Any) -> np.dtype:
    found = np.dtype(dtype)
    if found not in (FLOAT32, FLOAT64):
        raise ValueError(f"dtype is {found}, expected 'float32' or 'float64'")
    return FLOAT32 if found == FLOAT32 else FLOAT64


def _penalty(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, expected a number >= 0") from None
    if not (np.isfinite(number) and number >= 0):
        raise ValueError(f"{name} is {number}, expected a finite number >= 0")
    return number
