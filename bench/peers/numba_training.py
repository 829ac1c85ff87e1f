"""Training in plain loops under Numba, row by row; see peers/__init__.py."""

from __future__ import annotations

import numpy as np
from numba import njit
from workloads import ADAM_BETAS, ADAM_EPS, MOMENTUM

# What the jitted functions know activations and methods by.
ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid")
METHODS = ("sgd", "momentum", "adam")
BETA1, BETA2 = ADAM_BETAS


def loops(work, dtype, X, y, params):
    X, y = (np.concatenate(arrays) for arrays in zip(*work.cut(X, y), strict=True))
    sizes = np.array(work.sizes)
    acts = np.array([ACTIVATIONS.index(name) for name in work.activations])
    method, softmax = METHODS.index(work.method), work.loss == "softmax_ce"
    lr = params.dtype.type(work.lr)

    def run(epochs):
        trained = params.copy()
        train(trained, sizes, acts, softmax, method, lr, X, y, work.batch, epochs)
        return trained

    return run


@njit(fastmath=True)
def train(params, sizes, acts, softmax, method, lr, X, y, batch, epochs):
    grad, m, s = np.zeros_like(params), np.zeros_like(params), np.zeros_like(params)
    A = np.zeros((len(sizes), max(sizes)), params.dtype)  # activations of a row, the input first
    D = np.zeros_like(A)  # the objective's derivatives with respect to them
    steps = 0
    for _ in range(epochs):
        for first in range(0, len(X), batch):
            grad[:] = 0
            for row in range(first, first + batch):
                forward(params, sizes, acts, X[row], A)
                n_out = sizes[-1]
                output_derivative(softmax, A[-1, :n_out], y[row], D[-1, :n_out])
                backward(params, sizes, acts, A, D, grad)
            steps += 1
            update(method, lr, steps, params, grad, batch, m, s)


@njit(fastmath=True)
def forward(params, sizes, acts, x, A):
    A[0, : sizes[0]] = x
    at = 0
    for k in range(len(acts)):
        n_in, n_out = sizes[k], sizes[k + 1]
        for j in range(n_out):
            A[k + 1, j] = params[at + n_in * n_out + j]
        for i in range(n_in):
            for j in range(n_out):
                A[k + 1, j] += A[k, i] * params[at + i * n_out + j]
        for j in range(n_out):
            z = A[k + 1, j]
            if acts[k] == 1:
                A[k + 1, j] = max(z, A.dtype.type(0))
            elif acts[k] == 2:
                A[k + 1, j] = np.tanh(z)
            elif acts[k] == 3:
                A[k + 1, j] = 1 / (1 + np.exp(-z))
        at += (n_in + 1) * n_out


@njit(fastmath=True)
def output_derivative(softmax, a, y, d):
    """Of a row's loss with respect to its outputs."""
    if softmax:
        d[:] = np.exp(a - a.max())
        d[:] = d / d.sum() - y
    else:
        d[:] = 2 * (a - y) / len(y)


@njit(fastmath=True)
def backward(params, sizes, acts, A, D, grad):
    at = len(params)
    for k in range(len(acts) - 1, -1, -1):
        n_in, n_out = sizes[k], sizes[k + 1]
        at -= (n_in + 1) * n_out
        for j in range(n_out):
            a = A[k + 1, j]
            if acts[k] == 1 and a <= 0:
                D[k + 1, j] = 0
            elif acts[k] == 2:
                D[k + 1, j] *= 1 - a * a
            elif acts[k] == 3:
                D[k + 1, j] *= a * (1 - a)
            grad[at + n_in * n_out + j] += D[k + 1, j]
        for i in range(n_in):
            total = A.dtype.type(0)
            for j in range(n_out):
                grad[at + i * n_out + j] += A[k, i] * D[k + 1, j]
                total += params[at + i * n_out + j] * D[k + 1, j]
            D[k, i] = total


@njit(fastmath=True)
def update(method, lr, steps, params, grad, batch, m, s):
    c1, c2 = 1 - BETA1**steps, 1 - BETA2**steps
    for i in range(len(params)):
        g = grad[i] / batch
        if method == 0:
            params[i] -= lr * g
        elif method == 1:
            m[i] = MOMENTUM * m[i] + g
            params[i] -= lr * m[i]
        else:
            m[i] = BETA1 * m[i] + (1 - BETA1) * g
            s[i] = BETA2 * s[i] + (1 - BETA2) * g * g
            params[i] -= lr / c1 * m[i] / (np.sqrt(s[i] / c2) + ADAM_EPS)
