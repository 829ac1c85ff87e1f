"""Calls on a network from a jitted loop, beside the same calls from Python.

"NumPy in njit" is what one writes there by hand: np.dot and np.tanh, which Numba compiles.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from measuring.checks import flat
from measuring.race import Contestant
from workloads import DTYPES, problem

import fastbp as fb

njit = pytest.importorskip("numba").njit
from fastbp import jitted  # noqa: E402

HAND, INSIDE = "NumPy in njit", "jitted"
OUTSIDE = {f"{name} from Python": name for name in fb.available_backends() if name != "numpy"}
NAMES = (INSIDE, *OUTSIDE, HAND)


@njit
def forward(net, params, X, y, times):
    for _ in range(times):
        Y = jitted.forward(net, params, X)
    return Y


@njit
def value_and_grad(net, params, X, y, times):
    for _ in range(times):
        result = jitted.value_and_grad(net, params, X, y)
    return result


@njit
def forward_by_hand(layers, X, y, times):
    for _ in range(times):
        (W1, b1), (W2, b2), (W3, b3) = layers
        A1 = np.tanh(np.dot(X, W1) + b1)
        A2 = np.tanh(np.dot(A1, W2) + b2)
        Y = np.dot(A2, W3) + b3
    return Y


@njit
def value_and_grad_by_hand(layers, X, y, times):
    for _ in range(times):
        (W1, b1), (W2, b2), (W3, b3) = layers
        A1 = np.tanh(np.dot(X, W1) + b1)
        A2 = np.tanh(np.dot(A1, W2) + b2)
        D3 = np.dot(A2, W3) + b3 - y
        loss = np.sum(D3 * D3) / D3.size
        D3 = D3 * X.dtype.type(2.0 / D3.size)
        D2 = np.dot(D3, W3.T) * (1 - A2 * A2)
        D1 = np.dot(D2, W2.T) * (1 - A1 * A1)
        of_first = np.dot(X.T, D1), D1.sum(axis=0), np.dot(A1.T, D2)
        result = loss, (*of_first, D2.sum(axis=0), np.dot(A2.T, D3), D3.sum(axis=0))
    return result


# Ours and by hand; the rows.
CALLS = {
    "forward, 4-32-16-4 tanh, 1 row": (forward, forward_by_hand, 1),
    "value_and_grad, 4-32-16-4 tanh, 1 row": (value_and_grad, value_and_grad_by_hand, 1),
    "value_and_grad, 4-32-16-4 tanh, 32 rows": (value_and_grad, value_and_grad_by_hand, 32),
}


def contestant(name: str, call: str, dtype: str) -> Contestant:
    inside, by_hand, rows = CALLS[call]
    net, params, X, y = problem((4, 32, 16, 4), "tanh", rows, dtype)
    public = getattr(net, inside.__name__)
    arguments = (params, X) if inside is forward else (params, X, y)
    if name == INSIDE:
        run = partial(inside, net, params, X, y)
    elif name == HAND:
        layers = tuple((W.copy(), b.copy()) for W, b in net.unpack(params))
        run = partial(by_hand, layers, X, y)
    else:

        def run(times):
            for _ in range(times):
                result = public(*arguments, backend=OUTSIDE[name])
            return result

    def check():
        found, expected = run(1), public(*arguments, backend="numpy")
        if name == HAND and inside is value_and_grad:
            found = found[0], flat(found[1])
        error = np.abs(flat(found) - flat(expected)).max()
        assert error <= 1000 * np.finfo(dtype).eps * np.abs(flat(expected)).max()

    return Contestant(run, check)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_call(measure, call, dtype, name):
    makers = {other: partial(contestant, other, call, dtype) for other in NAMES}
    measure(makers, name, 0.3, suite="jitted", row=call, dtype=dtype, unit="call")
