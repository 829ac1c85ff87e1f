"""`check_vjp`: a backward function compared with differences of its forward function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from ..common.arrays import FLOAT32, FLOAT64, real_array, require_finite
from ..common.errors import ShapeError
from .comparison import Comparison, GradCheck, compare, is_direction, verdict
from .numerical import Grid


def check_vjp(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *inputs: Any,
    samples: int = 1000,
    seed: Any = 0,
) -> GradCheck:
    """Check a layer of your own: does its backward function belong to its forward function?

    With Y = forward(inputs) and a random dY, `backward` must return the gradient of Σ dY ∘ Y with
    respect to each input. It is compared with numerical derivatives as in `check_grad`. It must
    also be linear in dY.

    Parameters
    ----------
    forward : callable
        ``forward(*inputs) -> Y``, an array of any shape.
    backward : callable
        ``backward(dY, *inputs)``, dY of the shape of Y, returns the gradient with respect to each
        input, of its shape: an array for one input, a tuple for several; None for an input that
        needs none. Wrap a backward function that takes a cache instead of the inputs as in the last
        example.
    *inputs : array_like
        Where to check. Both functions receive them as arrays, of float32 if they are float32 (or
        float16) and of float64 otherwise; they are not modified.
    samples : int, default 1000
        If an input has more entries, so many are drawn at random, and the derivatives along 8
        random directions are compared beside them.
    seed : int, SeedSequence, Generator or None
        For dY and those draws, as `numpy.random.default_rng` takes it.

    Returns
    -------
    GradCheck
        True in a condition if backward passed; printed, it names the input whose gradient is
        wrong. ``worst`` and ``indices`` are pairs: number of the input, index of the entry.

    Raises
    ------
    ShapeError
        If a gradient has another shape than its input, or their numbers differ.
    NonFiniteError
        If an input, or Y, is not finite.
    TypeError
        If forward does not return an array of real numbers.
    ValueError
        Without inputs, without any gradient, or for `samples` below 1.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> X = np.array([[1.0, -2.0], [0.5, 3.0]])
    >>> def relu(X):
    ...     return np.maximum(X, 0)
    >>> bool(fb.check_vjp(relu, lambda dY, X: dY * (X > 0), X))
    True
    >>> check = fb.check_vjp(relu, lambda dY, X: X - (dY > 0), X)
    >>> check.passed, "gradient of input 0" in check.message
    (False, True)

    With a cache:

    >>> W = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 1.0]])
    >>> def forward(X, W):
    ...     return fb.dense_forward(X, W, activation="tanh")[0]
    >>> def backward(dY, X, W):
    ...     return fb.dense_backward(dY, fb.dense_forward(X, W, activation="tanh")[1])[:2]
    >>> bool(fb.check_vjp(forward, backward, X, W))
    True
    """
    if not inputs:
        raise ValueError("there are no inputs; pass them after backward: check_vjp(f, b, X, W)")
    if samples < 1:
        raise ValueError(f"samples is {samples}, expected at least 1")
    layer = _Layer(forward, backward, inputs)
    rng = np.random.default_rng(seed)
    dY = layer.random_dY(rng)
    gradients = layer.gradients(dY, layer.inputs)
    checked = [k for k, g in enumerate(gradients) if g is not None and g.size]
    if not checked:
        raise ValueError("backward returned no gradient to check: None or empty for all inputs")
    results = []
    for k in checked:
        x = layer.inputs[k]
        grid = Grid(FLOAT32 if layer.single else x.dtype, x.dtype)
        value, value_and_grad = layer.restricted(k, dY)
        point, places = grid(x.ravel()), np.arange(x.size)
        result = compare(
            value, value_and_grad, point, grid, grid, places, samples, rng, f"input {k}"
        )
        results.append(replace(result, places=[_place(k, p, x.shape) for p in result.places]))
    notes = layer.nonlinear(dY, gradients, rng)
    n_entries = sum(layer.inputs[k].size for k in checked)
    return verdict(_joined(results, notes), n_entries, _place_name)


def _place(k: int, place: int, shape: tuple[int, ...]) -> tuple[int, Any]:
    """Input and index of an entry; random directions keep their negative numbers."""
    return k, place if place < 0 else tuple(map(int, np.unravel_index(place, shape)))


def _place_name(place: tuple[int, Any]) -> str:
    k, index = place
    entry = f"random direction {-1 - index}" if is_direction(place) else f"entry {index}"
    return f"the gradient of input {k}, {entry}"


def _joined(results: list[Comparison], notes: list[str]) -> Comparison:
    """The comparisons of all inputs, with further notes, as one."""
    columns: dict[str, Any] = {
        column.name: np.concatenate([getattr(result, column.name) for result in results])
        for column in fields(Comparison)
        if column.name not in ("places", "notes")
    }
    places = [place for result in results for place in result.places]
    notes = [*(note for result in results for note in result.notes), *notes]
    return Comparison(places=places, notes=notes, **columns)


class _Layer:
    """The forward and backward function, called with copies; their results are checked."""

    def __init__(self, forward: Any, backward: Any, inputs: tuple[Any, ...]):
        self.forward, self.backward = forward, backward
        self.inputs = []
        for k, value in enumerate(inputs):
            single = getattr(value, "dtype", None) in (FLOAT32, np.float16)
            x = real_array(f"input {k}", value, FLOAT32 if single else FLOAT64)
            require_finite(f"input {k}", np.atleast_1d(x))
            self.inputs.append(x)
        Y = self._forward(self.inputs)
        require_finite("Y", np.atleast_1d(Y))
        self.shape, self.dtype = Y.shape, Y.dtype
        # An output in float32 is computed in float32, whatever the inputs are.
        self.single = Y.dtype == FLOAT32

    def _forward(self, inputs: list[np.ndarray]) -> np.ndarray:
        Y = self.forward(*(x.copy() for x in inputs))
        if isinstance(Y, tuple):
            raise TypeError(
                "forward returned a tuple, expected the array Y alone; for a pair (Y, cache) wrap "
                "both: lambda X: forward(X)[0] and lambda dY, X: backward(dY, forward(X)[1])"
            )
        single = getattr(Y, "dtype", None) in (FLOAT32, np.float16)
        return real_array("Y", Y, FLOAT32 if single else FLOAT64)

    def random_dY(self, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(rng.standard_normal(self.shape)).astype(self.dtype)

    def gradients(self, dY: np.ndarray, inputs: list[np.ndarray]) -> list[np.ndarray | None]:
        """What backward returns at these inputs: an array in float64 or None for each."""
        results = self.backward(dY.copy(), *(x.copy() for x in inputs))
        if not isinstance(results, tuple | list):
            results = (results,)
        if len(results) != len(inputs):
            raise ShapeError(
                f"backward returned {len(results)} gradients, expected {len(inputs)}: one per "
                f"input, None for an input that needs none"
            )
        gradients: list[np.ndarray | None] = []
        for k, (gradient, x) in enumerate(zip(results, inputs, strict=True)):
            if gradient is None:
                gradients.append(None)
                continue
            name = f"gradient of input {k}"
            gradient = real_array(f"the {name}", gradient, FLOAT64)
            if gradient.shape != x.shape:
                raise ShapeError(f"{name} has shape {gradient.shape}, expected {x.shape}")
            gradients.append(gradient.copy())
        return gradients

    def restricted(self, k: int, dY: np.ndarray) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Σ dY ∘ Y as a function of input k, flattened: its value; its value and gradient."""
        weights = dY.astype(np.float64)

        def inputs(x: np.ndarray) -> list[np.ndarray]:
            return [*self.inputs[:k], x.reshape(self.inputs[k].shape), *self.inputs[k + 1 :]]

        def value(x: np.ndarray) -> float:
            Y = self._forward(inputs(x))
            if Y.shape != self.shape:
                raise ShapeError(f"Y has shape {Y.shape} now, and had {self.shape} before")
            return float((weights * Y).sum())

        def value_and_grad(x: np.ndarray) -> tuple[float, np.ndarray]:
            gradient = self.gradients(dY, inputs(x))[k]
            if gradient is None:
                raise ValueError(f"backward returned the gradient of input {k} once, and None now")
            return value(x), gradient.ravel()

        return value, value_and_grad

    def nonlinear(
        self, dY: np.ndarray, first: list[np.ndarray | None], rng: np.random.Generator
    ) -> list[str]:
        """Notes on the inputs whose gradients are not linear in dY."""
        other = self.random_dY(rng)
        second = self.gradients(other, self.inputs)
        both = self.gradients(dY + other, self.inputs)
        eps = max(np.finfo(self.dtype).eps, *(np.finfo(x.dtype).eps for x in self.inputs))
        notes = []
        for k, (a, b, c) in enumerate(zip(first, second, both, strict=True)):
            if a is None or b is None or c is None or a.size == 0:
                continue
            size = max(np.abs(a).max(), np.abs(b).max(), np.abs(c).max())
            # Enough for sums of many terms that nearly cancel; a fault has order 1.
            if not np.abs(a + b - c).max() <= 1e4 * eps * size:
                notes.append(f"gradient of input {k} is not linear in dY, as backward must be")
        return notes
