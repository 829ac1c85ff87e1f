"""Calls on a network: where a call is short, what it costs beyond its arithmetic counts."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from measuring.checks import flat
from measuring.race import Contestant
from peers import handwritten
from workloads import CONTESTANTS, DTYPES, HAND, problem

import fastbp as fb


def forward(dtype, hand):
    """One row: the shortest call there is."""
    net, params, x, _ = problem((4, 32, 16, 4), "tanh", 1, dtype)
    if not hand:
        return lambda: net.forward(params, x)
    mlp = handwritten.Mlp(net, "mse", 1)
    mlp.params[:] = params
    return lambda: mlp.forward(x)


def value_and_grad(sizes, activation, rows, dtype, hand):
    """What an optimizer calls, bound to its data."""
    net, params, X, y = problem(sizes, activation, rows, dtype)
    if hand:
        return partial(handwritten.Mlp(net, "mse", rows).mse_and_gradient, params, X, y)
    return partial(net.objective(X, y).value_and_grad, params)


def jacobian(dtype, hand):
    """What least squares needs."""
    net, params, X, _ = problem((4, 20, 1), "tanh", 2000, dtype)
    function = partial(handwritten.jacobian, net) if hand else net.jacobian
    return lambda: function(params, X)


CALLS = {
    "forward, 4-32-16-4 tanh, 1 row": forward,
    "value_and_grad, 1-40-40-1 relu, 32 rows": partial(value_and_grad, (1, 40, 40, 1), "relu", 32),
    "value_and_grad, 4-20-1 tanh, 2000 rows": partial(value_and_grad, (4, 20, 1), "tanh", 2000),
    "jacobian, 4-20-1 tanh, 2000 rows": jacobian,
}


def contestant(name: str, call: str, dtype: str) -> Contestant:
    hand = name == HAND
    backend = fb.get_backend() if hand else name
    with fb.use_backend(backend):  # an objective keeps the backend that it was made with
        function = CALLS[call](dtype, hand)

    def run(times):
        with fb.use_backend(backend):
            for _ in range(times):
                function()

    def check():
        with fb.use_backend(backend):
            found = flat(function()).astype(np.float64)
        with fb.use_backend("numpy"):
            expected = flat(CALLS[call]("float64", hand=False)())
        error = np.abs(found - expected).max()
        assert error <= 1000 * np.finfo(dtype).eps * np.abs(expected).max()

    return Contestant(run, check)


@pytest.mark.parametrize("name", CONTESTANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_call(measure, call, dtype, name):
    makers = {other: partial(contestant, other, call, dtype) for other in CONTESTANTS}
    measure(makers, name, 0.3, suite="calls", row=call, dtype=dtype, unit="call")
