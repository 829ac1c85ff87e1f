"""The contract in Numba. `contract` tells what each function must do.

Python allocates the results and a workspace, and one compiled function does the rest:

    compiling    how they are compiled and cached
    vectors      vector code as formulas; pointers
    elementary   exp, log1p, tanh, sigmoid
    product      the matrix product
    layer        one layer and the activations
    network      all layers on a tile of rows; derivatives
    objective    losses; the objective and its gradient
    training     the optimizers and the training loop

Importing this module compiles nothing. The first call of a function compiles it for its dtype, or
loads it from Numba's cache; sizes, activations, losses and optimizers are arguments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...losses import SOFTMAX_CE_LABELS
from ..contract import N_IN, N_OUT, Optimizer, Plan, Problem, Run
from . import kernels, network, objective, training

# A tile of rows passes through all layers at once. Narrow layers leave it in the first-level cache;
# for wide ones a larger tile reads the weights less often.
_NARROW = 128
_TILE, _TILE_OF_WIDE = 64, 256

_NO_INTEGERS = np.empty(0, np.int64)
_NO_ORDER = np.empty((0, 0), np.int64)


class _Blank(NamedTuple):
    """Arrays that stand where there is none."""

    vector: np.ndarray
    matrix: np.ndarray


_BLANKS = {
    np.dtype(t): _Blank(np.empty(0, t), np.empty((0, 0), t)) for t in (np.float32, np.float64)
}


class _Prepared(NamedTuple):
    """What the compiled functions need of a plan."""

    layers: np.ndarray
    constants: np.ndarray
    blank: _Blank
    tile: int
    places: np.ndarray  # of the workspace's parts
    size: int  # of the workspace

    def workspace(self) -> np.ndarray:
        """Room for one call; calls in several threads at once have one each."""
        return np.empty(self.size, self.blank.vector.dtype)


def _prepared(plan: Plan) -> _Prepared:
    found = plan.handles.get("numba")
    return found if found is not None else _prepare(plan)


def _prepare(plan: Plan) -> _Prepared:
    layers = np.ascontiguousarray(plan.layers, np.int64)
    widest = int(layers[:, (N_IN, N_OUT)].max())
    tile = _TILE if widest <= _NARROW else _TILE_OF_WIDE
    sizes = {
        network.TAPE: tile * plan.tape_width,
        network.DELTA: tile * widest,
        network.NEXT_DELTA: tile * widest,
        network.TRANSPOSED: plan.n_params,
        network.GRADIENT: plan.n_params,
        network.X_ROWS: tile * plan.n_in,
        network.TARGET_ROWS: tile * plan.n_out,
        network.WEIGHT_ROWS: tile,
        network.MAXIMA: tile,
    }
    padded = [-(-sizes[part] // 16) * 16 for part in range(len(sizes))]  # whole cache lines
    places = np.cumsum([0, *padded])
    found = _Prepared(
        layers,
        np.ascontiguousarray(plan.constants, np.float64),
        _BLANKS[plan.dtype],
        tile,
        places[:-1].astype(np.int64),
        int(places[-1]) + 64 // plan.dtype.itemsize,  # room to begin at a cache line
    )
    plan.handles["numba"] = found
    return found


def activation(kind: int, constant: float, Z: np.ndarray, derivative: bool) -> np.ndarray:
    result = Z.copy()
    kernels.activation[Z.dtype](kind, constant, result.reshape(-1), derivative)
    return result


def dense_forward(
    X: np.ndarray, W: np.ndarray, b: np.ndarray | None, kind: int, constant: float, keep_z: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    dtype = X.dtype
    blank = _BLANKS[dtype]
    Y = np.empty((X.shape[0], W.shape[1]), dtype)
    Z = np.empty_like(Y) if keep_z else blank.matrix
    bias = blank.vector if b is None else b
    kernels.dense_forward[dtype](X, W, bias, b is not None, kind, constant, Y, Z, keep_z)
    return Y, Z if keep_z else None


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
    dtype = X.dtype
    blank = _BLANKS[dtype]
    dX = np.empty(X.shape, dtype) if need_dX else blank.matrix
    dW = np.empty(W.shape, dtype)
    db = np.empty(W.shape[1], dtype) if need_db else blank.vector
    transposed = np.empty(W.size, dtype) if need_dX else blank.vector
    z = blank.matrix if Z is None else Z
    kernels.dense_backward[dtype](
        dY.copy(), X, W, Y, z, kind, constant, dX, need_dX, dW, db, need_db, transposed
    )
    return dX if need_dX else None, dW, db if need_db else None


def forward(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    p = _prepared(plan)
    Y = np.empty((X.shape[0], plan.n_out), plan.dtype)
    network.forward[plan.dtype](
        p.layers, p.constants, params, X, p.blank.vector, False, Y, p.tile, p.workspace(), p.places
    )
    return Y


def forward_tape(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    p = _prepared(plan)
    tape = np.empty(X.shape[0] * plan.tape_width, plan.dtype)
    nothing = p.blank.vector
    network.forward[plan.dtype](
        p.layers, p.constants, params, X, tape, True, p.blank.matrix, p.tile, nothing, p.places
    )
    return tape


def backward(
    plan: Plan,
    params: np.ndarray,
    X: np.ndarray,
    tape: np.ndarray,
    dY: np.ndarray,
    need_dX: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    dparams = np.empty(plan.n_params, plan.dtype)
    dX = np.empty(X.shape if need_dX else (0, 0), plan.dtype)
    _derivatives(network.PRODUCT, plan, params, X, tape, dY, need_dX, dparams, dX)
    return dparams, dX if need_dX else None


def jacobian(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    J = np.empty((X.shape[0] * plan.n_out, plan.n_params), plan.dtype)
    blank = _prepared(plan).blank
    flat, no_tape, no_dY = J.reshape(-1), blank.vector, blank.matrix
    _derivatives(network.JACOBIAN, plan, params, X, no_tape, no_dY, False, flat, blank.matrix)
    return J


def input_jacobian(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    J = np.empty((X.shape[0], plan.n_out, plan.n_in), plan.dtype)
    blank = _prepared(plan).blank
    rows, nothing = J.reshape(-1, plan.n_in), blank.vector
    _derivatives(
        network.INPUT_JACOBIAN, plan, params, X, nothing, blank.matrix, True, nothing, rows
    )
    return J


def _derivatives(
    task: int,
    plan: Plan,
    params: np.ndarray,
    X: np.ndarray,
    tape: np.ndarray,
    dY: np.ndarray,
    need_dX: bool,
    gradient: np.ndarray,
    dX: np.ndarray,
) -> None:
    p = _prepared(plan)
    network.derivatives[plan.dtype](
        task,
        p.layers,
        p.constants,
        params,
        X,
        tape,
        dY,
        need_dX,
        gradient,
        dX,
        p.tile,
        p.workspace(),
        p.places,
    )


def _data(problem: Problem, p: _Prepared) -> tuple[Any, ...]:
    """The loss and the data as the compiled functions take them."""
    of_labels = problem.loss == SOFTMAX_CE_LABELS
    return (
        problem.loss,
        problem.X,
        p.blank.matrix if of_labels else problem.targets,
        problem.targets if of_labels else _NO_INTEGERS,
        p.blank.vector if problem.weights is None else problem.weights,
        problem.scale,
        problem.l2,
    )


def value(problem: Problem, params: np.ndarray) -> float:
    p = _prepared(problem.plan)
    return objective.objective[problem.plan.dtype](
        p.layers,
        p.constants,
        params,
        *_data(problem, p),
        p.blank.vector,
        False,
        p.tile,
        p.workspace(),
        _NO_INTEGERS,
        p.places,
    )


def value_and_grad(problem: Problem, params: np.ndarray) -> tuple[float, np.ndarray]:
    p = _prepared(problem.plan)
    gradient = np.empty(problem.plan.n_params, problem.plan.dtype)
    result = objective.objective[problem.plan.dtype](
        p.layers,
        p.constants,
        params,
        *_data(problem, p),
        gradient,
        True,
        p.tile,
        p.workspace(),
        _NO_INTEGERS,
        p.places,
    )
    return result, gradient


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
    plan = problem.plan
    p = _prepared(plan)
    constants = (*optimizer.constants, 0.0, 0.0, 0.0)[:3]
    status, run.step = training.train[plan.dtype](
        p.layers,
        p.constants,
        *_data(problem, p),
        optimizer.kind,
        optimizer.n_moments,
        *constants,
        run.params,
        run.moments,
        run.good,
        run.monitor,
        run.step,
        n_steps,
        batch_size,
        averaged,
        _NO_ORDER if order is None else order,
        rates,
        losses,
        float(np.finfo(plan.dtype).eps),
        p.tile,
        p.workspace(),
        np.empty(p.tile, np.int64),
        p.places,
    )
    return status
