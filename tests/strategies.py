"""Inputs for the tests: random networks and data, seeded or drawn by hypothesis; nasty arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

import fastbp as fb

ACTIVATIONS = ("linear", "relu", "leaky_relu", "sigmoid", "tanh")
ALL_ACTIVATIONS = (*ACTIVATIONS, fb.relu(0.5), fb.leaky_relu(0.3), fb.leaky_relu(0.0))
LOSSES = ("mse", "half_mse", "sse", "bce_logits", "softmax_ce")


@dataclass
class Case:
    """A network with parameters and data, and what makes an objective of them."""

    net: fb.Network
    params: np.ndarray
    X: np.ndarray
    y: np.ndarray
    loss: str = "mse"
    terms: dict = field(default_factory=dict)

    def __repr__(self):
        terms = {key: np.asarray(value).tolist() for key, value in self.terms.items()}
        return f"{self.net}, {len(self.X)} rows, {self.loss}, {terms}"

    @property
    def arguments(self):
        return self.params, self.X, self.y, self.loss


def target(rng, loss, n, n_out, dtype, rows_of_probabilities=False):
    if loss == "bce_logits":
        return rng.choice([0.0, 0.25, 1.0], (n, n_out)).astype(dtype)
    if loss == "softmax_ce":
        if not rows_of_probabilities:
            return rng.integers(n_out, size=n)
        y = rng.integers(1, 9, (n, n_out)).astype(dtype)
        return y / y.sum(axis=1, keepdims=True)
    return rng.standard_normal((n, n_out)).astype(dtype)


def weights(rng, n, dtype):
    """Sample weights, some of them 0, not all."""
    w = rng.choice([0.0, 0.5, 1.0, 2.25], n).astype(dtype)
    w[rng.integers(n)] = 1.5
    return w


def case(
    rng, sizes, activations, dtype="float64", n=9, loss="mse", weighted=False, l2=0.0, bias=True
):
    """Network n_in, sizes..., with the activations in turn; parameters that reach every regime."""
    n_in, *sizes = sizes
    layers = [fb.Dense(size, act, bias=bias) for size, act in zip(sizes, activations, strict=True)]
    net = fb.Network(n_in, *layers, dtype=dtype)
    params = net.init(rng) + 0.3 * rng.standard_normal(net.n_params).astype(dtype)
    X = rng.standard_normal((n, n_in)).astype(dtype)
    y = target(rng, loss, n, net.n_out, dtype, weighted)
    terms = {"sample_weight": weights(rng, n, dtype)} if weighted else {}
    if l2:
        terms["l2"] = l2
    return Case(net, params, X, y, loss, terms)


@st.composite
def cases(draw, dtype):
    """Networks of depth 1 to 4, widths 1 to 33, all activations and losses, weights, penalty."""
    loss = draw(st.sampled_from(LOSSES))
    width = st.integers(1, 33)
    sizes = draw(st.lists(width, min_size=2, max_size=5))
    if loss == "softmax_ce":
        sizes[-1] = max(sizes[-1], 2)
    layers = [
        fb.Dense(size, draw(st.sampled_from(ALL_ACTIVATIONS)), bias=draw(st.booleans()))
        for size in sizes[1:]
    ]
    net = fb.Network(sizes[0], *layers, dtype=dtype)
    n = draw(st.integers(1, 40))
    # Numbers of 10 bits: found and shrunk fast, exact in both types, with zeros among them.
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    grain = draw(st.sampled_from([0.0, 2**-9, 0.5]))
    X = _grainy(rng, (n, net.n_in), grain, dtype)
    params = _grainy(rng, net.n_params, grain, dtype)
    weighted = draw(st.booleans())
    terms = {"sample_weight": weights(rng, n, dtype)} if weighted else {}
    terms["l2"] = draw(st.sampled_from([0.0, 0.125]))
    y = target(rng, loss, n, net.n_out, dtype, draw(st.booleans()))
    return Case(net, params, X, y, loss, terms)


def _grainy(rng, shape, grain, dtype):
    values = rng.standard_normal(shape)
    return (np.round(values / grain) * grain if grain else 0 * values).astype(dtype)


# Nasty arrays.


def shifted(array, offset):
    """The same numbers, `offset` bytes behind a multiple of 64."""
    buffer = np.zeros(array.nbytes + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    result = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


def nasty_layouts(array):
    """Name -> an array of the same values and dtype that is laid out in an unusual way."""
    n = array.ndim
    spread = np.full([2 * size + 1 for size in array.shape], -7, array.dtype)
    every_second = spread[(slice(1, None, 2),) * n + (...,)]
    every_second[...] = array
    reverse = (slice(None, None, -1),) * n + (...,)
    backwards = array[reverse].copy()[reverse]
    read_only = array.copy()
    read_only.flags.writeable = False
    return {
        "byte-swapped": array.astype(array.dtype.newbyteorder()),
        "every second": every_second,
        "negative strides": backwards,
        "Fortran order": array.copy(order="F"),
        "transposed": np.array(array.T).T,
        "read-only": read_only,
        "misaligned by 1": shifted(array, 1),
        "misaligned by 4": shifted(array, 4),
        "misaligned by 8": shifted(array, 8),
        "subclass": array.view(type("Subclass", (np.ndarray,), {})),
    }


def nasty_types(array):
    """Name -> the same whole numbers (0 and 1 suit all) in another type."""
    return {
        "float16": array.astype(np.float16),
        "longdouble": array.astype(np.longdouble),
        "other float": array.astype("f8" if array.dtype == np.float32 else "f4"),
        "int64": array.astype(np.int64),
        "uint8": array.astype(np.uint8),
        "bool": array.astype(bool),
        "list": array.tolist(),
        "tuple of lists": tuple(array.tolist()),
    }


def bits(array):
    """What makes two arrays the same: type, shape and bytes."""
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


def same(a, b):
    """Whether two results (nested tuples, lists, numbers, arrays, None) are bitwise the same."""
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if a is None or b is None:
        return a is b
    return bits(a) == bits(b)


def attempt(call):
    """The error that a call raises, as type and message; None if it returns."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None
