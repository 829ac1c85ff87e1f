"""Calls of every kind on one network, for processes and threads that make them at once."""

from __future__ import annotations

import numpy as np

import fastbp as fb


def work(net, seed=0, backend=None):
    """Gradients, Jacobians, products and kernels of one network, on data by the seed."""
    rng = np.random.default_rng(seed)
    n = 300 + 30 * seed  # two parts
    X, y = (rng.standard_normal((n, k)).astype(net.dtype) for k in (net.n_in, net.n_out))
    params, w = net.init(seed), abs(y[:, 0])
    Y, pullback = net.vjp(params, X, backend=backend)
    out, cache = fb.dense_forward(X, X.T @ X, None, "sigmoid", backend=backend)
    obj = net.objective(X, y, sample_weight=w, l2=0.1, threads=1 + seed % 3, backend=backend)
    few = net.objective(X[:20], y[:20], backend=backend)
    return [
        *obj.value_and_grad(params),
        *few.normal_equations(params),
        few.per_sample_grad(params),
        obj.hvp(params, params),
        *net.jvp(params, X, params, backend=backend),
        net.jacobian(params, X[:40], threads=2, backend=backend),
        net.input_jacobian(params, X, backend=backend),
        *pullback(Y),
        out,
        *fb.dense_backward(out, cache),
    ]


def network(dtype="float64"):
    layers = [fb.Dense(33, "tanh"), fb.Dense(17, fb.relu(0.5)), fb.Dense(3, "sigmoid")]
    return fb.Network(5, *layers, dtype=dtype)
