"""The contract in plain NumPy: the mathematics of fastbp as a reader would write it down.

Nothing here is tuned. The other backends are validated against this one, and it serves where
neither a compiler nor Numba is at hand. `contract` tells what each function must do.
"""

from __future__ import annotations

import numpy as np

from ..activations import TABLE
from ..losses import ROWS
from . import contract
from .contract import Optimizer, Plan, Problem, Run

_ACTIVATIONS = {row.kind: row for row in TABLE.values()}


# One layer.


def activation(kind: int, constant: float, Z: np.ndarray, derivative: bool) -> np.ndarray:
    row = _ACTIVATIONS[kind]
    formula = row.df if derivative else row.f
    with np.errstate(all="ignore"):
        return np.asarray(formula(Z.astype(np.float64), constant)).astype(Z.dtype)


def dense_forward(
    X: np.ndarray, W: np.ndarray, b: np.ndarray | None, kind: int, constant: float, keep_z: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    with np.errstate(all="ignore"):
        Z = X @ W if b is None else X @ W + b
    return activation(kind, constant, Z, False), Z if keep_z else None


def dense_backward(
    dY: np.ndarray,
    X: np.ndarray,
    W: np.ndarray,
    Y: np.ndarray,
    Z: np.ndarray | None,
    kind: int,
    constant: float,
    need_dX: bool,
    need_db: bool,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    with np.errstate(all="ignore"):
        dZ = dY * _derivative(kind, constant, Y, Z)
        dW = X.T @ dZ
        dX = dZ @ W.T if need_dX else None
        db = dZ.sum(axis=0) if need_db else None
    return dX, np.ascontiguousarray(dW), db


def _derivative(kind: int, constant: float, Y: np.ndarray, Z: np.ndarray | None) -> np.ndarray:
    """act'(Z), from Y where Y determines it."""
    row = _ACTIVATIONS[kind]
    if row.df_from_y is None:
        assert Z is not None
        return activation(kind, constant, Z, True)
    return np.asarray(row.df_from_y(Y, constant)).astype(Y.dtype)


# The network.


class _Layer:
    """Views of one layer's W and b in a parameter-shaped vector, and its activation."""

    def __init__(self, plan: Plan, index: int, vector: np.ndarray):
        n_in, n_out, self.kind, w, b, self.y_column, self.z_column = map(int, plan.layers[index])
        self.constant = float(plan.constants[index])
        self.n_out = n_out
        self.W = vector[w : w + n_in * n_out].reshape(n_in, n_out)
        self.b = vector[b : b + n_out] if b >= 0 else None

    def Y(self, tape: np.ndarray, n: int) -> np.ndarray:
        """The layer's output (n, n_out) in a tape."""
        return self._block(tape, n, self.y_column)

    def Z(self, tape: np.ndarray, n: int) -> np.ndarray | None:
        """Its Z (n, n_out), where the tape keeps it."""
        return self._block(tape, n, self.z_column) if self.z_column >= 0 else None

    def _block(self, tape: np.ndarray, n: int, column: int) -> np.ndarray:
        return tape[n * column : n * (column + self.n_out)].reshape(n, self.n_out)


def _layers(plan: Plan, vector: np.ndarray) -> list[_Layer]:
    return [_Layer(plan, index, vector) for index in range(len(plan.layers))]


def forward(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    for layer in _layers(plan, params):
        X, _ = dense_forward(X, layer.W, layer.b, layer.kind, layer.constant, False)
    return X


def forward_tape(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    n = len(X)
    tape = np.empty(n * plan.tape_width, plan.dtype)
    for layer in _layers(plan, params):
        kept = layer.Z(tape, n)
        Y, Z = dense_forward(X, layer.W, layer.b, layer.kind, layer.constant, kept is not None)
        X = layer.Y(tape, n)
        X[:] = Y
        if kept is not None:
            kept[:] = Z
    return tape


def backward(
    plan: Plan,
    params: np.ndarray,
    X: np.ndarray,
    tape: np.ndarray,
    dY: np.ndarray,
    need_dX: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    n = len(X)
    dparams = np.empty(plan.n_params, plan.dtype)
    layers = _layers(plan, params)
    inputs = [X] + [layer.Y(tape, n) for layer in layers]
    for index in reversed(range(len(layers))):
        layer, gradient = layers[index], _Layer(plan, index, dparams)
        dX, dW, db = dense_backward(
            dY,
            inputs[index],
            layer.W,
            inputs[index + 1],
            layer.Z(tape, n),
            layer.kind,
            layer.constant,
            need_dX or index > 0,
            layer.b is not None,
        )
        gradient.W[:] = dW
        if gradient.b is not None:
            gradient.b[:] = db
        if dX is not None:
            dY = dX
    return dparams, dY if need_dX else None


def jacobian(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    J = np.empty((len(X), plan.n_out, plan.n_params), plan.dtype)
    for i in range(len(X)):
        x = X[i : i + 1]
        tape = forward_tape(plan, params, x)
        for k in range(plan.n_out):
            J[i, k], _ = backward(plan, params, x, tape, _unit(plan, 1, k), False)
    return J.reshape(len(X) * plan.n_out, plan.n_params)


def input_jacobian(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    J = np.empty((len(X), plan.n_out, plan.n_in), plan.dtype)
    tape = forward_tape(plan, params, X)
    for k in range(plan.n_out):
        _, J[:, k] = backward(plan, params, X, tape, _unit(plan, len(X), k), True)
    return J


def _unit(plan: Plan, n: int, k: int) -> np.ndarray:
    """Rows of dY that pick output k."""
    dY = np.zeros((n, plan.n_out), plan.dtype)
    dY[:, k] = 1
    return dY


# The objective.


def value(problem: Problem, params: np.ndarray) -> float:
    Y = forward(problem.plan, params, problem.X)
    return _objective(problem, params, Y)


def value_and_grad(problem: Problem, params: np.ndarray) -> tuple[float, np.ndarray]:
    plan = problem.plan
    tape = forward_tape(plan, params, problem.X)
    last = _Layer(plan, len(plan.layers) - 1, params)
    Y = last.Y(tape, len(problem.X))
    with np.errstate(all="ignore"):
        dY = ROWS[problem.loss].derivative(Y.astype(np.float64), _targets(problem))
        if problem.weights is not None:
            dY *= problem.weights[:, None]
        dY = (problem.scale * dY).astype(plan.dtype)
        grad, _ = backward(plan, params, problem.X, tape, dY, False)
        if problem.l2:
            for layer, gradient in zip(_layers(plan, params), _layers(plan, grad), strict=True):
                gradient.W += plan.dtype.type(problem.l2) * layer.W
    return _objective(problem, params, Y), grad


def _objective(problem: Problem, params: np.ndarray, Y: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        rows = ROWS[problem.loss].value(Y.astype(np.float64), _targets(problem))
        if problem.weights is not None:
            rows = rows * problem.weights
        result = problem.scale * rows.sum()
        if problem.l2:
            squares = sum(
                (layer.W.astype(np.float64) ** 2).sum() for layer in _layers(problem.plan, params)
            )
            result += 0.5 * problem.l2 * squares
    return float(result)


def _targets(problem: Problem) -> np.ndarray:
    T = problem.targets
    return T if T.dtype.kind == "i" else T.astype(np.float64)


# Training.


def train(
    problem: Problem,
    optimizer: Optimizer,
    run: Run,
    n_steps: int,
    batch_size: int,
    averaged: bool,
    order: np.ndarray | None,
    rates: np.ndarray,
    losses: np.ndarray,
) -> int:
    n = len(problem.X)
    steps_per_epoch = -(-n // batch_size)
    first_epoch = run.step // steps_per_epoch
    for i in range(n_steps):
        epoch, j = divmod(run.step, steps_per_epoch)
        epoch -= first_epoch
        rows: slice | np.ndarray = slice(j * batch_size, min((j + 1) * batch_size, n))
        if order is not None:
            rows = order[epoch, rows]
        batch = _batch(problem, rows, averaged)
        if j == 0:
            run.good[1] = run.params
        objective, g = value_and_grad(batch, run.params)
        losses[epoch] += objective
        run.monitor[2] = objective
        if not np.isfinite(objective):
            return contract.NON_FINITE_OBJECTIVE
        if run.step == 0:
            run.monitor[0] = max(abs(objective), np.finfo(run.params.dtype).eps)
        with np.errstate(all="ignore"):
            _update(optimizer, run, g, float(rates[i if len(rates) > 1 else 0]))
        run.step += 1
        if j == steps_per_epoch - 1:
            if not np.isfinite(run.params).all():
                return contract.NON_FINITE_PARAMETERS
            if losses[epoch] / steps_per_epoch <= contract.GROWTH_LIMIT * run.monitor[0]:
                run.good[0] = run.good[1]
                run.monitor[1] = 0
                continue
            run.monitor[1] += 1
            if run.monitor[1] == contract.GROWTH_EPOCHS:
                return contract.GROWN
    return contract.DONE


def _batch(problem: Problem, rows: slice | np.ndarray, averaged: bool) -> Problem:
    X = problem.X[rows]
    return Problem(
        problem.plan,
        problem.loss,
        X,
        problem.targets[rows],
        None if problem.weights is None else problem.weights[rows],
        problem.scale * len(problem.X) / len(X) if averaged else problem.scale,
        problem.l2,
    )


def _update(optimizer: Optimizer, run: Run, g: np.ndarray, lr: float) -> None:
    """One step of the optimizer's rule, in place."""
    p = run.params
    if optimizer.kind == contract.ADAM:
        m, s = run.moments
        beta1, beta2, eps = optimizer.constants
        t = run.step + 1
        m += (1 - beta1) * (g - m)
        s *= beta2
        s += (1 - beta2) * g * g
        p -= (lr / (1 - beta1**t)) * m / (np.sqrt(s) / np.sqrt(1 - beta2**t) + eps)
        return
    if optimizer.n_moments == 0:
        p -= lr * g
        return
    (v,) = run.moments
    (momentum,) = optimizer.constants
    v *= momentum
    v += g
    p -= lr * (g + momentum * v if optimizer.kind == contract.NESTEROV else v)
