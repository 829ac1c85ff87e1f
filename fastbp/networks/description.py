"""`Description`: the layers of a network and the layout of its parameters, without computation.

The parameter vector holds layer after layer W (n_in, n_out) row-major, then b (n_out,). Masked
entries, those of connections that do not exist, count as zero whatever the vector holds. Masked and
frozen entries have zero derivative; `Description.free` lists the others. Of the backends' functions
only `train` knows of this: the others receive masked parameters (`checked_params`), and their
derivatives are set to zero afterwards (`zero_fixed`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Self

import numpy as np

from ..backends.contract import Plan
from ..common.arrays import converted, dtype_of, matrix, real_array, whole_number
from ..common.errors import ShapeError, unknown_name
from .activations import Activation
from .dense import Dense
from .scaling import shift_and_scale

LAYOUTS = ("xw", "wx", "theta")


@dataclass(frozen=True, init=False, repr=False)
class Description:
    """Layers one after another, immutable, without parameters.

    `Network` adds the computations; an `Objective` needs only this.
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
    ) -> Self:
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
        # Without the cached plan, in which backends keep handles of memory outside Python.
        return partial(type(self), dtype=self.dtype.name), (self.n_in, *self.layers)

    def astype(self, dtype: Any) -> Self:
        """The same network in "float32" or "float64"."""
        if self.dtype == dtype_of(dtype):
            return self
        return type(self)(self.n_in, *self.layers, dtype=dtype)

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
        """Indices (n_free,) of the parameters that a fit may change: neither masked nor frozen."""
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
    def masked(self) -> np.ndarray | None:
        """Which entries of the parameter vector are masked, bool (n_params,); None if none."""
        if all(layer.mask is None and layer.bias_mask is None for layer in self.layers):
            return None
        return self._masked_in(self.plan)

    @property
    def _fixed(self) -> np.ndarray | None:
        """Which entries are masked or frozen, bool (n_params,); None if none."""
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
        pairs = _views(self.plan, self.checked_vector(params))
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
            target[:] = self._of_shape(f"W of layer {k}", W, target.shape)
            if b_view is None:
                if b is not None:
                    raise ShapeError(f"layer {k} has bias=False and came with b; pass None for it")
            elif b is None:
                raise ShapeError(f"b of layer {k} is missing, expected shape {b_view.shape}")
            else:
                b_view[:] = self._of_shape(f"b of layer {k}", b, b_view.shape)
        return params

    def _check_layout(self, layout: str) -> None:
        if layout not in LAYOUTS:
            raise ValueError(unknown_name("layout", layout, LAYOUTS))
        if layout == "theta" and not all(layer.bias for layer in self.layers):
            raise ValueError("layout 'theta' keeps a bias column, and a layer has bias=False")

    def _thetas(self, layers: Any) -> list[np.ndarray]:
        """The layers' matrices (n_out, 1 + n_in) from such matrices, or from them unrolled."""
        shapes = [(n_out, 1 + n_in) for n_in, n_out, *_ in self.plan.layers.tolist()]
        if isinstance(layers, np.ndarray) and layers.ndim == 1:
            flat = self.checked_vector(layers)
            ends = np.cumsum([rows * columns for rows, columns in shapes])
            parts = np.split(flat, ends[:-1])
            return [p.reshape(s, order="F") for p, s in zip(parts, shapes, strict=True)]
        if len(layers) != len(shapes):
            raise ShapeError(f"{len(layers)} layers came, expected {len(shapes)}")
        return [
            self._of_shape(f"Theta of layer {k}", theta, shape)
            for k, (theta, shape) in enumerate(zip(layers, shapes, strict=True))
        ]

    def _of_shape(self, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
        """`value` as an array of the network's dtype; ShapeError for another shape."""
        array = real_array(name, value, self.dtype)
        if array.shape != shape:
            raise ShapeError(f"{name} has shape {array.shape}, expected {shape}")
        return array

    # Checks of arguments.

    def checked_vector(self, params: Any, name: str = "params") -> np.ndarray:
        """A vector (n_params,) in the network's dtype; the argument itself if it is one.

        Raises
        ------
        ShapeError
            For another shape; the message calls the argument `name`.
        TypeError
            For an array that is not real.
        """
        params = real_array(name, params, self.dtype)
        if params.shape != (self.plan.n_params,):
            raise ShapeError(
                f"{name} has shape {params.shape}, expected ({self.plan.n_params},); "
                f"net.init(seed) or net.pack(layers) make such a vector"
            )
        return params

    def checked_params(self, params: Any) -> np.ndarray:
        """Parameters (n_params,) as the backends take them: checked, with zeros where masked."""
        params, masked = self.checked_vector(params), self.masked
        return params if masked is None else np.where(masked, params.dtype.type(0), params)

    def checked_tangent(self, name: str, v: Any) -> np.ndarray:
        """A direction (n_params,) in parameter space: checked, a copy, zero at fixed entries."""
        return self.zero_fixed(self.checked_vector(v, name).copy())

    def zero_fixed(self, derivative: np.ndarray) -> np.ndarray:
        """Set the entries (..., n_params) of masked and frozen parameters to zero, in place."""
        if self.plan.free is not None:
            derivative[..., ~self.plan.free] = 0
        return derivative

    def checked_inputs(self, X: Any) -> np.ndarray:
        """X (n, n_in) in the network's dtype, checked."""
        return matrix("X", X, self.dtype, self.n_in, "input of the network")

    # Scaled data.

    def fold_scaling(self, params: Any, x_scaler: Any = None, y_scaler: Any = None) -> np.ndarray:
        """Parameters for raw inputs and outputs from those fitted to scaled ones.

        Parameters
        ----------
        params : array_like (n_params,)
            Parameters of the network that takes x' = (x - shift)/scale and returns
            y' = (y - shift)/scale.
        x_scaler, y_scaler : Scaler, scikit-learn's scaler, or (shift, scale), optional
            How inputs and outputs were scaled; None for not at all. `shift` and `scale` are numbers
            or arrays of one entry per column.

        Returns
        -------
        numpy.ndarray (n_params,)
            A new vector, with which the network takes x and returns y. Frozen entries change as
            the others do; masked ones stay.

        Raises
        ------
        ShapeError
            If a scaler's width does not fit.
        ValueError
            If `y_scaler` is passed and the last layer is not linear, if a bias that has to take up
            a shift is missing or masked, or if a scaler clips.
        TypeError
            For an argument that is no scaler.

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
        scaled = self.checked_vector(params)
        # In float64, so that each parameter is rounded once.
        result = self.checked_params(scaled).astype(np.float64)
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
        return result if self.masked is None else np.where(self.masked, scaled, result)

    def _add_to_bias(self, layer: int, b: np.ndarray | None, shift: np.ndarray, name: str) -> None:
        """b += shift, (n_out,) both; ValueError if a unit with a shift has no bias.

        `name` is the scaler's in the message.
        """
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
