"""Networks: an immutable description, one flat parameter vector that the caller owns, derivatives.

The parameter vector holds layer after layer W (n_in, n_out) row-major, then b (n_out,). Entries
whose connection a mask takes away count as zero whatever the vector holds; they and the frozen ones
have zero derivative, and `Network.free` lists the others. Backends know nothing of this but for
`train`: parameters are masked here on their way in, derivatives on their way out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from . import backends
from ._arrays import (
    FLOAT64,
    converted,
    dtype_of,
    lazy_matrix,
    matrix,
    real_array,
    whole_number,
)
from ._errors import ShapeError, unknown_name
from ._objective import Objective
from ._scaling import shift_and_scale
from .activations import Activation, activation as activation_of
from .backends.contract import Y_COLUMN, Plan
from .losses import Loss

LAYOUTS = ("xw", "wx", "theta")
INITS = ("auto", "glorot", "he", "lecun", "zeros")


@dataclass(frozen=True, eq=False)
class Dense:
    """A fully connected layer: Y = act(XW + b).

    Parameters
    ----------
    n_out : int
        Number of units.
    activation : str or Activation, default "linear"
    bias : bool, default True
        Whether the layer has b.
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
        [0, 1); the others are divided by 1 - dropout [4]_. Nothing else knows of it.

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
    """A mask as a read-only array of bool, or None."""
    if value is None:
        return None
    array = real_array(name, value, FLOAT64)
    if array.ndim != ndim or array.shape[-1] != n_out:
        expected = f"(n_in, {n_out})" if ndim == 2 else f"({n_out},)"
        raise ShapeError(f"{name} has shape {array.shape}, expected {expected}")
    bad = (array != 0) & (array != 1)
    if bad.any():
        place = np.argwhere(bad)[0].tolist()
        where = f"row {place[0]}, column {place[1]}" if ndim == 2 else f"entry {place[0]}"
        raise ValueError(f"{name} holds {array[tuple(place)]} at {where}, expected {zero} or 1")
    chosen = array == 1
    chosen.flags.writeable = False
    return chosen


def _dropout(value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"dropout is {value!r}, expected a number in [0, 1)") from None
    if not 0 <= share < 1:
        raise ValueError(f"dropout is {share}, expected a share in [0, 1), such as 0.2")
    return share


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
        object.__setattr__(self, "dtype", dtype_of(dtype))
        self._check_layers()

    def _check_layers(self) -> None:
        n_in = self.n_in
        for k, layer in enumerate(self.layers):
            for name in ("mask", "trainable"):
                value = getattr(layer, name)
                if isinstance(value, np.ndarray) and value.shape != (n_in, layer.n_out):
                    raise ShapeError(
                        f"{name} of layer {k} has shape {value.shape}, expected "
                        f"{(n_in, layer.n_out)}: a row per input, a column per unit"
                    )
            n_in = layer.n_out
        if self.layers[-1].dropout:
            raise ValueError(
                f"dropout of the last layer is {self.layers[-1].dropout:g}, expected 0: its "
                f"outputs are the predictions; drop those of the layer before it"
            )

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
        Network 4-20-1, float64, 121 parameters
          layer  W        b     activation  parameters
              0  (4, 20)  (20,)  tanh               100
              1  (20, 1)  (1,)   linear              21
        """
        if len(sizes) < 2:
            raise ValueError(f"sizes is {list(sizes)}, expected at least [n_in, n_out]")
        n_in, *hidden, n_out = sizes
        layers = [Dense(size, activation) for size in hidden]
        return cls(n_in, *layers, Dense(n_out, output), dtype=dtype)

    def __repr__(self) -> str:
        counts = f"{self.n_params} parameter" + "s" * (self.n_params != 1)
        if self.n_free != self.n_params:
            counts += f", {self.n_free} of them free"
        return f"Network {self.sizes}, {self.dtype}, {counts}\n{self._table()}"

    def _table(self) -> str:
        """A line per layer; columns that say nothing are left out."""
        free = np.zeros(self.n_params, bool)
        free[self.free] = True
        rows = [("layer", "W", "b", "activation", "dropout", "parameters", "free")]
        for k, (layer, (W, b)) in enumerate(zip(self.layers, _views(self.plan, free), strict=True)):
            size = W.size + (0 if b is None else b.size)
            n_free = int(W.sum()) + (0 if b is None else int(b.sum()))
            act = repr(layer.act).strip("'")
            shape = "none" if b is None else str(b.shape)
            share = f"{layer.dropout:g}"
            rows.append((str(k), str(W.shape), shape, act, share, str(size), str(n_free)))
        columns = list(zip(*rows, strict=True))
        if not any(layer.dropout for layer in self.layers):
            del columns[4]
        if self.n_free == self.n_params:
            del columns[-1]
        right = ("layer", "dropout", "parameters", "free")
        texts = []
        for column in columns:
            width = max(map(len, column))
            align = str.rjust if column[0] in right else str.ljust
            texts.append([align(cell, width) for cell in column])
        return "\n".join("  " + "  ".join(line).rstrip() for line in zip(*texts, strict=True))

    @property
    def sizes(self) -> str:
        """The numbers of inputs and units, such as "4-20-1"."""
        return "-".join(map(str, (self.n_in, *(layer.n_out for layer in self.layers))))

    def __reduce__(self) -> tuple[Any, ...]:
        # The cached plan stays behind: it may hold what a backend keeps outside Python.
        return partial(Network, dtype=self.dtype.name), (self.n_in, *self.layers)

    def astype(self, dtype: Any) -> Network:
        """The same network in "float32" or "float64"."""
        if self.dtype == dtype_of(dtype):
            return self
        return Network(self.n_in, *self.layers, dtype=dtype)

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return self.layers[-1].n_out

    @property
    def n_params(self) -> int:
        """Length of the parameter vector."""
        return self.plan.n_params

    @cached_property
    def free(self) -> np.ndarray:
        """Places in the parameter vector that a fit may change: neither masked nor frozen."""
        fixed = self._fixed
        free = np.arange(self.n_params) if fixed is None else np.flatnonzero(~fixed)
        free.flags.writeable = False
        return free

    @property
    def n_free(self) -> int:
        """How many parameters a fit may change."""
        return len(self.free)

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
        plan = Plan(
            self.dtype,
            np.array(rows, np.int64),
            np.array(constants),
            offset,
            column,
            tuple(layer.act for layer in self.layers),
        )
        fixed = self._fixed_in(plan)
        shares = np.array([layer.dropout for layer in self.layers])
        return replace(
            plan,
            free=None if fixed is None else ~fixed,
            dropout=shares if shares.any() else None,
        )

    @cached_property
    def _masked(self) -> np.ndarray | None:
        """Which entries of the parameter vector a mask takes away; None if none."""
        if all(layer.mask is None and layer.bias_mask is None for layer in self.layers):
            return None
        return self._masked_in(self.plan)

    @property
    def _fixed(self) -> np.ndarray | None:
        """Which entries are masked or frozen; None if none."""
        free = self.plan.free
        return None if free is None else ~free

    def _masked_in(self, plan: Plan) -> np.ndarray:
        masked = np.zeros(plan.n_params, bool)
        for layer, (W, b) in zip(self.layers, _views(plan, masked), strict=True):
            if layer.mask is not None:
                W[:] = ~layer.mask
            if layer.bias_mask is not None:
                b[:] = ~layer.bias_mask
        return masked

    def _fixed_in(self, plan: Plan) -> np.ndarray | None:
        fixed = self._masked_in(plan)
        for layer, (W, b) in zip(self.layers, _views(plan, fixed), strict=True):
            if layer.trainable is False:
                W[:] = True
                if b is not None:
                    b[:] = True
            elif layer.trainable is not True:
                W |= ~layer.trainable
        return fixed if fixed.any() else None

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
            kind = layer.act.init if layer.init == "auto" else layer.init
            if kind == "zeros":
                continue
            n_in, n_out = W.shape
            spread = {"glorot": 6 / (n_in + n_out), "he": 6 / n_in, "lecun": 3 / n_in}[kind]
            limit = math.sqrt(spread)
            W[:] = rng.uniform(-limit, limit, W.shape)
            if layer.mask is not None:
                W[~layer.mask] = 0
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
        pairs = _views(self.plan, self._vector(params))
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
            flat = self._vector(layers)
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

    def _vector(self, params: Any, name: str = "params") -> np.ndarray:
        """A checked vector of the parameters' shape, as it is."""
        params = real_array(name, params, self.dtype)
        if params.shape != (self.plan.n_params,):
            raise ShapeError(
                f"{name} has shape {params.shape}, expected ({self.plan.n_params},); "
                f"net.init(seed) or net.pack(layers) make such a vector"
            )
        return params

    def _params(self, params: Any) -> np.ndarray:
        """Checked parameters as the backends take them: masked entries are zero."""
        params, masked = self._vector(params), self._masked
        return params if masked is None else np.where(masked, params.dtype.type(0), params)

    def _tangent(self, name: str, v: Any) -> np.ndarray:
        """A checked direction in parameter space, zero where nothing can move."""
        return self._without_fixed(self._vector(v, name).copy())

    def _without_fixed(self, derivative: np.ndarray) -> np.ndarray:
        """Set the entries (..., n_params) of masked and frozen parameters to zero, in place."""
        if self.plan.free is not None:
            derivative[..., ~self.plan.free] = 0
        return derivative

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
        module, plan, params = backends.resolve(backend), self.plan, self._params(params)
        X, blocks = lazy_matrix("X", X, self.dtype, self.n_in, "input of the network")
        if not blocks:
            return module.forward(plan, params, X)
        Y = np.empty((len(X), self.n_out), self.dtype)
        for rows in blocks:
            Y[rows] = module.forward(plan, params, converted(X[rows], self.dtype))
        return Y

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
            dparams, dX = module.backward(plan, params, X, tape, dY, True)
            return self._without_fixed(dparams), dX

        return Y.copy(), pullback

    def jvp(
        self, params: Any, X: Any, tangent: Any, *, backend: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Output and its derivative in a direction of parameter space: forward-mode.

        Parameters
        ----------
        params : array_like (n_params,)
        X : array_like (n, n_in)
        tangent : array_like (n_params,)
            The direction; its entries at masked and frozen parameters count as zero.

        Returns
        -------
        Y, dY : numpy.ndarray (n, n_out)
            dY is the Jacobian times the tangent.

        Raises
        ------
        ShapeError, TypeError
            As `forward`.

        Examples
        --------
        >>> import fastbp as fb
        >>> net = fb.Network(2, fb.Dense(1))
        >>> net.jvp([3.0, 4.0, 0.0], [[1.0, 2.0]], [0.0, 1.0, 0.5])[1]
        array([[2.5]])
        """
        params, tangent = self._params(params), self._tangent("tangent", tangent)
        return backends.resolve(backend).jvp(self.plan, params, self._inputs(X), tangent)

    def jacobian(
        self,
        params: Any,
        X: Any,
        free_only: bool = False,
        *,
        threads: int = 1,
        backend: str | None = None,
    ) -> np.ndarray:
        """Derivatives of all outputs with respect to the parameters.

        Parameters
        ----------
        params : array_like (n_params,)
        X : array_like (n, n_in)
        free_only : bool, default False
            Only the columns that `free` names; otherwise those of masked and frozen parameters are
            zero.
        threads : int, default 1
            How many threads of the C backend share the work; the others run on one. The result does
            not depend on it.

        Returns
        -------
        numpy.ndarray (n·n_out, n_params), or (n·n_out, n_free)
            Rows sample-major: row i·n_out + k belongs to output k of sample i.

        Raises
        ------
        ShapeError, TypeError
            As `forward`.
        """
        threads, module = whole_number("threads", threads), backends.resolve(backend)
        free = bool(free_only)
        J = module.jacobian(self.plan, self._params(params), self._inputs(X), threads, free)
        return J if free else self._without_fixed(J)

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
        l1: float = 0.0,
        group: float = 0.0,
        threads: int = 1,
        backend: str | None = None,
    ) -> Objective:
        """The loss over fixed data as a function of the parameters alone, checked and bound once.

        Parameters
        ----------
        X : array_like (n, n_in), n >= 1
            Of the network's dtype and contiguous it is used where it lies, be it a memory-mapped
            file; otherwise it is converted, a block of at most 16 MiB at a time if it is larger.
        y : array_like or None
            (n, n_out), or (n,) for one output; of the form that the loss expects (see Notes).
        loss : str or Loss, default "mse"
            A name of the Notes' list, or what `fastbp.huber`, `fastbp.quantile`,
            `fastbp.margin_ranking` and `fastbp.custom_loss` make.
        sample_weight : array_like (n,), optional
            Weights >= 0, for "margin_ranking" one per pair, (n/2,); all 1 by default.
        l2, l1, group : float, default 0.0
            Add l2/2·‖W‖², l1·Σ|W_ij| and group·Σ_j ‖W_:j‖₂, the Euclidean norms of the columns
            (one per unit), summed over layers. Biases are free of them; the derivative of a norm
            at 0 is taken as 0.
        threads : int, default 1
            How many threads of the C backend share the rows; the others run on one. Results do not
            depend on it.
        backend : {"c", "numba", "numpy"}, optional
            The current one by default, for all calls of the objective.

        Returns
        -------
        Objective

        Raises
        ------
        ShapeError, TypeError, ValueError
            For shapes that do not fit, arrays that are not real, targets or weights that the loss
            does not allow, and unknown names.

        Notes
        -----
        With N the sum of the sample weights w and d = Y - y, all but the last group are divided by
        N·n_out ("half_mse" by 2N, "sse" not at all), the last group by N:

        - values y: "mse", "half_mse", "sse" d²; "mae" |d|; "huber" d²/2 up to |d| = delta (1),
          delta·(|d| - delta/2) beyond; "log_cosh" log cosh d; "quantile" max(-tau·d, (1 - tau)·d),
          tau ½;
        - probabilities y: "bce" -y log Y - (1 - y) log(1 - Y) with Y cut to [ε, 1 - ε], ε the
          dtype's machine epsilon; "bce_logits" the same of sigmoid(Y);
        - labels -1 and 1: "hinge" max(0, 1 - y·Y) and "squared_hinge", its square;
        - counts y: "poisson" e^Y - y·Y;
        - per row: "softmax_ce", the cross-entropy of softmax(Y) for integer labels (n,) or rows of
          probabilities (n, n_out); "gaussian_nll" Σ ½(v + (m - y)²e^-v + log 2π) for outputs
          (m, v) and y (n, n_out/2); "gaussian_kl" Σ ½(e^v + m² - 1 - v) with y=None;
          "margin_ranking" max(0, margin - (Y_2i - Y_2i+1)) of pairs of rows, margin 1, with y=None
          and N the number of pairs.
        """
        module = backends.resolve(backend)
        return Objective(self, X, y, loss, sample_weight, l2, l1, group, threads, module)

    def value(self, params: Any, X: Any, y: Any, loss: str | Loss = "mse", **terms: Any) -> float:
        """The objective at `params`; arguments, terms and errors as for `objective`."""
        return self.objective(X, y, loss, **terms).value(params)

    def value_and_grad(
        self, params: Any, X: Any, y: Any, loss: str | Loss = "mse", **terms: Any
    ) -> tuple[float, np.ndarray]:
        """The objective and its gradient (n_params,); arguments and errors as for `objective`.

        Memory beyond the arrays given and the result: at most 16 MiB for a block of X, if it must
        be converted, n·(n_targets + 1) numbers for targets and weights, likewise, three bytes for
        each of those while they are checked, and a workspace that does not grow with n (but on the
        backend "numpy", which keeps every layer's output).
        """
        return self.objective(X, y, loss, **terms).value_and_grad(params)

    def per_sample_grad(
        self,
        params: Any,
        X: Any,
        y: Any,
        loss: str | Loss = "mse",
        *,
        backend: str | None = None,
    ) -> np.ndarray:
        """The gradient of each sample's own objective.

        Parameters
        ----------
        params : array_like (n_params,)
        X, y, loss
            As for `objective`.

        Returns
        -------
        numpy.ndarray (n, n_params)
            Row i is the gradient of ``value(params, X[i:i+1], y[i:i+1], loss)``: their mean is that
            of the whole objective (for "sse" their sum). For "margin_ranking" a row per pair.

        Raises
        ------
        ShapeError, TypeError, ValueError
            As `objective`.
        """
        return self.objective(X, y, loss, backend=backend).per_sample_grad(params)

    def normal_equations(
        self,
        params: Any,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        threads: int = 1,
        backend: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """JᵀJ, Jᵀr and rᵀr for the residuals r = sqrt(w)·(Y - y), without J ever being whole.

        Parameters
        ----------
        params : array_like (n_params,)
        X, y, sample_weight, threads
            As for `objective`; memory is bounded as for `value_and_grad`.

        Returns
        -------
        JTJ : numpy.ndarray (n_free, n_free)
            In the coordinates that `free` names, so that masks and frozen layers do not make it
            singular; all parameters if none is fixed.
        JTr : numpy.ndarray (n_free,)
        sse : float
            The sum of squared residuals.

        Raises
        ------
        ShapeError, TypeError, ValueError
            As `objective`.

        Examples
        --------
        A linear network is fitted by one solution.

        >>> import numpy as np, fastbp as fb
        >>> net, X = fb.Network(1, fb.Dense(1)), np.array([[0.0], [1.0], [2.0]])
        >>> JTJ, JTr, sse = net.normal_equations([0.0, 0.0], X, 3 * X + 1)
        >>> np.linalg.solve(JTJ, -JTr).round(12)
        array([3., 1.])
        """
        terms = {"sample_weight": sample_weight, "threads": threads, "backend": backend}
        return self.objective(X, y, "sse", **terms).normal_equations(params)

    def hvp(
        self, params: Any, X: Any, y: Any, v: Any, loss: str | Loss = "mse", **terms: Any
    ) -> np.ndarray:
        """The objective's Hessian times a vector, exactly and without the Hessian [1]_.

        Parameters
        ----------
        params, v : array_like (n_params,)
            Entries of v at masked and frozen parameters count as zero.
        X, y, loss, **terms
            As for `objective`.

        Returns
        -------
        numpy.ndarray (n_params,)
            Zero at masked and frozen parameters. Second derivatives that do not exist, as at the
            corners of relu and of the l1 penalty, are taken as 0.

        Raises
        ------
        ShapeError, TypeError, ValueError
            As `objective`; ValueError too for functions of the user's own without their second
            derivative.

        References
        ----------
        .. [1] B. A. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation
           6(1), 1994.
        """
        return self.objective(X, y, loss, **terms).hvp(params, v)

    def gnvp(
        self, params: Any, X: Any, y: Any, v: Any, loss: str | Loss = "mse", **terms: Any
    ) -> np.ndarray:
        """The Gauss-Newton matrix times a vector: the Hessian without the network's curvature [1]_.

        With J the Jacobian of the outputs and ℓ'' the Hessian of the loss in them it is
        Jᵀℓ''J, plus that of the penalties; positive semidefinite for losses convex in the outputs.
        Arguments, result and errors as for `hvp`.

        References
        ----------
        .. [1] N. N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient
           descent", Neural Computation 14(7), 2002.
        """
        return self.objective(X, y, loss, **terms).gnvp(params, v)

    def max_stable_rate(
        self, params: Any, X: Any, y: Any, loss: str | Loss = "mse", **terms: Any
    ) -> float:
        """The largest rate at which full-batch gradient descent from near `params` does not grow.

        Parameters
        ----------
        params : array_like (n_params,)
        X, y, loss, **terms
            As for `objective`.

        Returns
        -------
        float
            2/λ_max, λ_max the largest eigenvalue of the Hessian, for least-squares losses of the
            Gauss-Newton matrix, over the free parameters; infinite if λ_max <= 0.

        Raises
        ------
        ShapeError, TypeError, ValueError
            As `hvp`.

        Examples
        --------
        >>> import numpy as np, fastbp as fb
        >>> net, x = fb.Network(1, fb.Dense(1, bias=False)), np.array([[1.0], [3.0]])
        >>> round(net.max_stable_rate([0.0], x, 2 * x), 12)  # the loss is 5 (w - 2)²
        0.2
        """
        return self.objective(X, y, loss, **terms).max_stable_rate(params)

    # Scaled data.

    def fold_scaling(self, params: Any, x_scaler: Any = None, y_scaler: Any = None) -> np.ndarray:
        """Parameters for raw inputs and outputs from those fitted to scaled ones.

        Parameters
        ----------
        params : array_like (n_params,)
            Of the network that takes x' = (x - shift)/scale and gives y' = (y - shift)/scale.
        x_scaler, y_scaler : Scaler, scikit-learn's scaler, or (shift, scale), optional
            How inputs and outputs were scaled; None for not at all. The second form has numbers or
            arrays of one entry per column.

        Returns
        -------
        numpy.ndarray (n_params,)
            A new vector. The network with it takes x and gives y. Frozen entries change as the
            others do; masked ones stay.

        Raises
        ------
        ShapeError
            If a scaler's width does not fit.
        ValueError
            If the last layer is not linear and `y_scaler` is given, a bias that a shift must go
            into is missing or masked, or a scaler clips.
        TypeError
            For something that is no scaler.

        Notes
        -----
        For x: W₁/scale by rows, and b₁ - (shift/scale)·W₁; for y: W·scale by columns, and
        b·scale + shift.

        Examples
        --------
        >>> import numpy as np, fastbp as fb
        >>> net, x = fb.Network(1, fb.Dense(1)), np.array([[10.0], [30.0]])
        >>> net.fold_scaling([2.0, 1.0], x_scaler=(10.0, 20.0))  # 2 (x - 10)/20 + 1
        array([0.1, 0. ])
        """
        given = self._vector(params)
        # In float64, so that each parameter is rounded once.
        result = self._params(given).astype(np.float64)
        pairs = _views(self.plan, result)
        with np.errstate(all="ignore"):
            if x_scaler is not None:
                shift, scale = shift_and_scale("x_scaler", x_scaler, self.n_in)
                W, b = pairs[0]
                W /= scale[:, None]
                self._add_to_bias(0, b, -(shift @ W), "x_scaler")
            if y_scaler is not None:
                shift, scale = shift_and_scale("y_scaler", y_scaler, self.n_out)
                last = self.layers[-1].act
                if last.name != "linear":
                    raise ValueError(
                        f"y_scaler was given, but the last layer is {last!r}; scaled outputs can "
                        f"be folded into a linear one alone"
                    )
                W, b = pairs[-1]
                W *= scale
                if b is not None:
                    b *= scale
                self._add_to_bias(len(pairs) - 1, b, shift, "y_scaler")
        result = converted(result, self.dtype)
        return result if self._masked is None else np.where(self._masked, given, result)

    def _add_to_bias(self, layer: int, b: np.ndarray | None, shift: np.ndarray, name: str) -> None:
        """b += shift, if every unit that needs it has a bias."""
        mask = self.layers[layer].bias_mask
        present = np.zeros(len(shift), bool) if b is None else np.ones(len(shift), bool)
        if mask is not None:
            present &= mask
        lacking = np.flatnonzero((shift != 0) & ~present)
        if lacking.size:
            raise ValueError(
                f"{name} shifts unit {lacking[0]} of layer {layer}, which has no bias to take that "
                f"up; give the layer a bias or scale without a shift"
            )
        if b is not None:
            b[present] += shift[present]


def _views(plan: Plan, vector: np.ndarray) -> list[Any]:
    """Pairs (W, b) of views of a parameter-shaped vector; b is None for a layer without bias."""
    pairs = []
    for n_in, n_out, _, w, b, _, _ in plan.layers.tolist():
        W = vector[w : w + n_in * n_out].reshape(n_in, n_out)
        pairs.append((W, vector[b : b + n_out] if b >= 0 else None))
    return pairs
