"""Training loops in JAX; see peers/__init__.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from workloads import ADAM_BETAS, ADAM_EPS, MOMENTUM, N_MOMENTS

from fastbp.cli.workloads import Training

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}


def scan(work, dtype, X, y, params, unroll=1):
    start, step = beginning(work, dtype, params), partial(one_step, work)
    data = jax.tree.map(lambda *batches: jnp.stack(batches), *work.cut(X, y))

    @jax.jit
    def train(state, data, epochs):
        def epoch(_, state):
            return jax.lax.scan(step, state, data, unroll=unroll)[0]

        return jax.lax.fori_loop(0, epochs, epoch, state)

    return lambda epochs: jax.block_until_ready(train(start, data, epochs))[0]


scan_by_8 = partial(scan, unroll=8)


def step_by_step(work, dtype, X, y, params):
    start = beginning(work, dtype, params)
    data = [(jnp.array(Xb), jnp.array(yb)) for Xb, yb in work.cut(X, y)]
    train = jax.jit(lambda state, batch: one_step(work, state, batch)[0])

    def run(epochs):
        state = start
        for _ in range(epochs):
            for batch in data:
                state = train(state, batch)
        return jax.block_until_ready(state)[0]

    return run


def beginning(work: Training, dtype: str, params: np.ndarray) -> tuple[Any, Any, Any]:
    """The state before the first step: layers, the moments of each array, steps done."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    layers = [(jnp.array(W), jnp.array(b)) for W, b in work.net(dtype).unpack(params)]
    moments = [[jnp.zeros_like(p)] * N_MOMENTS[work.method] for p in jax.tree.leaves(layers)]
    return layers, moments, jnp.zeros((), dtype)


def one_step(work: Training, state: Any, batch: Any) -> tuple[Any, None]:
    """The next state, as lax.scan wants it."""
    layers, moments, steps = state
    grads = jax.tree.leaves(jax.grad(partial(objective, work))(layers, *batch))
    leaves, tree = jax.tree.flatten(layers)
    rule = partial(UPDATES[work.method], work.lr, steps + 1)
    leaves, moments = zip(*map(rule, leaves, grads, moments), strict=True)
    return (jax.tree.unflatten(tree, leaves), list(moments), steps + 1), None


def objective(work: Training, layers: Any, X: Any, y: Any) -> Any:
    for (W, b), name in zip(layers, work.activations, strict=True):
        X = ACTIVATIONS.get(name, lambda Z: Z)(X @ W + b)
    if work.loss == "mse":
        return jnp.mean((X - y) ** 2)
    return -jnp.sum(y * jax.nn.log_softmax(X)) / len(X)


def sgd(lr, steps, p, g, moments):
    return p - lr * g, []


def momentum(lr, steps, p, g, moments):
    v = MOMENTUM * moments[0] + g
    return p - lr * v, [v]


def adam(lr, steps, p, g, moments):
    (beta1, beta2), (m, s) = ADAM_BETAS, moments
    m = beta1 * m + (1 - beta1) * g
    s = beta2 * s + (1 - beta2) * g * g
    root = jnp.sqrt(s / (1 - beta2**steps))
    return p - lr / (1 - beta1**steps) * m / (root + ADAM_EPS), [m, s]


UPDATES: dict[str, Callable[..., Any]] = {"sgd": sgd, "momentum": momentum, "adam": adam}
