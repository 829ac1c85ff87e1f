"""The contract in plain NumPy: the mathematics of fastbp as a reader would write it down.

Nothing here is tuned. The other backends are validated against this one, and it runs where there
is neither a compiler nor Numba. `contract` documents the functions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..maths.activations import ActivationSpec
from ..maths.expressions import Tape
from ..maths.formulas.optimizers import KINDS
from ..maths.linear_models import LinearModel, model_of
from ..maths.losses import RowLoss, row_loss
from ..maths.marquardt import LMOptions, LMSolver, LMState, NormalEquations
from ..maths.robust import Robust, rho
from . import contract
from .contract import CurveProblem, Optimizer, Plan, Problem, TrainConfig, TrainState

# One layer.


def activation(act: ActivationSpec, Z: np.ndarray, order: int) -> np.ndarray:
    z = Z.astype(np.float64)
    with np.errstate(all="ignore"):
        if act.formulas is None:
            assert act.functions is not None
            return act.functions.evaluate(order, z).astype(Z.dtype)
        return np.asarray(act.formulas.of(order)(z, act.constant)).astype(Z.dtype)


def dense_forward(
    X: np.ndarray, W: np.ndarray, b: np.ndarray | None, act: ActivationSpec, keep_z: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    with np.errstate(all="ignore"):
        Z = X @ W if b is None else X @ W + b
    return activation(act, Z, 0), Z if keep_z else None


def dense_backward(
    dY: np.ndarray,
    X: np.ndarray,
    W: np.ndarray,
    Y: np.ndarray,
    Z: np.ndarray | None,
    act: ActivationSpec,
    need_dX: bool,
    need_db: bool,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    with np.errstate(all="ignore"):
        dZ = dY * _derivative(act, Y, Z)
        dW = X.T @ dZ
        dX = dZ @ W.T if need_dX else None
        db = dZ.sum(axis=0) if need_db else None
    return dX, np.ascontiguousarray(dW), db


def _derivative(act: ActivationSpec, Y: np.ndarray, Z: np.ndarray | None) -> np.ndarray:
    """act'(Z), computed from Y where Y determines it."""
    if act.formulas is None or act.formulas.df_from_y is None:
        assert Z is not None
        return activation(act, Z, 1)
    return np.asarray(act.formulas.df_from_y(Y, act.constant)).astype(Y.dtype)


# The network.


class _Layer:
    """A layer's activation, and its W and b as views of a vector (n_params,)."""

    def __init__(self, plan: Plan, index: int, vector: np.ndarray):
        n_in, n_out, _, w, b, self.y_column, self.z_column = map(int, plan.layers[index])
        self.act = plan.activations[index]
        self.n_out = n_out
        self.W = vector[w : w + n_in * n_out].reshape(n_in, n_out)
        self.b = vector[b : b + n_out] if b >= 0 else None

    def Y(self, tape: np.ndarray, n: int) -> np.ndarray:
        """The layer's output (n, n_out) in a tape."""
        return self._block(tape, n, self.y_column)

    def Z(self, tape: np.ndarray, n: int) -> np.ndarray | None:
        """The layer's Z (n, n_out) in a tape, None if the tape does not have it."""
        return self._block(tape, n, self.z_column) if self.z_column >= 0 else None

    def _block(self, tape: np.ndarray, n: int, column: int) -> np.ndarray:
        return tape[n * column : n * (column + self.n_out)].reshape(n, self.n_out)


def _layers(plan: Plan, vector: np.ndarray) -> list[_Layer]:
    return [_Layer(plan, index, vector) for index in range(len(plan.layers))]


def forward(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    for layer in _layers(plan, params):
        X, _ = dense_forward(X, layer.W, layer.b, layer.act, False)
    return X


def forward_tape(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    return _forward_tape(plan, params, X, [None] * len(plan.layers))


def backward(
    plan: Plan,
    params: np.ndarray,
    X: np.ndarray,
    tape: np.ndarray,
    dY: np.ndarray,
    need_dX: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    return _backward(plan, params, X, tape, dY, need_dX, [None] * len(plan.layers))


# Dropout's factors (n, n_out) of each layer's outputs; None if all are 1.
_Factors = list[np.ndarray | None]


def _forward_tape(plan: Plan, params: np.ndarray, X: np.ndarray, factors: _Factors) -> np.ndarray:
    n = len(X)
    tape = np.empty(n * plan.tape_width, plan.dtype)
    for layer, factor in zip(_layers(plan, params), factors, strict=True):
        Z_of_tape = layer.Z(tape, n)
        Y, Z = dense_forward(X, layer.W, layer.b, layer.act, Z_of_tape is not None)
        layer.Y(tape, n)[:] = Y
        if Z_of_tape is not None:
            Z_of_tape[:] = Z
        X = Y if factor is None else Y * factor
    return tape


def _backward(
    plan: Plan,
    params: np.ndarray,
    X: np.ndarray,
    tape: np.ndarray,
    dY: np.ndarray,
    need_dX: bool,
    factors: _Factors,
) -> tuple[np.ndarray, np.ndarray | None]:
    n = len(X)
    dparams = np.empty(plan.n_params, plan.dtype)
    layers = _layers(plan, params)
    outputs = [layer.Y(tape, n) for layer in layers]
    inputs = [X] + [Y if f is None else Y * f for Y, f in zip(outputs, factors, strict=True)]
    for index in reversed(range(len(layers))):
        layer, gradient = layers[index], _Layer(plan, index, dparams)
        if factors[index] is not None:
            dY = dY * factors[index]
        dX, dW, db = dense_backward(
            dY,
            inputs[index],
            layer.W,
            outputs[index],
            layer.Z(tape, n),
            layer.act,
            need_dX or index > 0,
            layer.b is not None,
        )
        gradient.W[:] = dW
        if gradient.b is not None:
            gradient.b[:] = db
        if dX is not None:
            dY = dX
    return dparams, dY if need_dX else None


def jvp(
    plan: Plan, params: np.ndarray, X: np.ndarray, tangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    dX = np.zeros_like(X)
    with np.errstate(all="ignore"):
        for layer, direction in zip(_layers(plan, params), _layers(plan, tangent), strict=True):
            Z, dZ = _directional(layer, direction, X, dX)
            X, dX = activation(layer.act, Z, 0), activation(layer.act, Z, 1) * dZ
    return X, dX


def _directional(
    layer: _Layer, direction: _Layer, X: np.ndarray, dX: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Z and its derivative dZ in the direction of dX and of `direction`'s W and b."""
    Z, dZ = X @ layer.W, dX @ layer.W + X @ direction.W
    if layer.b is None:
        return Z, dZ
    return Z + layer.b, dZ + direction.b


def jacobian(
    plan: Plan, params: np.ndarray, X: np.ndarray, threads: int, free_only: bool
) -> np.ndarray:
    J = np.empty((len(X), plan.n_out, plan.n_params), plan.dtype)
    for i in range(len(X)):
        x = X[i : i + 1]
        tape = forward_tape(plan, params, x)
        for k in range(plan.n_out):
            J[i, k], _ = backward(plan, params, x, tape, _unit(plan, 1, k), False)
    if free_only and plan.free is not None:
        J = J[:, :, plan.free]
    return np.ascontiguousarray(J.reshape(len(X) * plan.n_out, J.shape[2]))


def input_jacobian(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    J = np.empty((len(X), plan.n_out, plan.n_in), plan.dtype)
    tape = forward_tape(plan, params, X)
    for k in range(plan.n_out):
        _, J[:, k] = backward(plan, params, X, tape, _unit(plan, len(X), k), True)
    return J


def _unit(plan: Plan, n: int, k: int) -> np.ndarray:
    """dY (n, n_out) with 1 for output k and 0 for the others."""
    dY = np.zeros((n, plan.n_out), plan.dtype)
    dY[:, k] = 1
    return dY


# The objective.


def value(problem: Problem, params: np.ndarray, threads: int) -> float:
    Y = forward(problem.plan, params, problem.X)
    return _objective(problem, params, Y)


def value_and_grad(problem: Problem, params: np.ndarray, threads: int) -> tuple[float, np.ndarray]:
    return _value_and_grad(problem, params, [None] * len(problem.plan.layers))


def _value_and_grad(
    problem: Problem, params: np.ndarray, factors: _Factors
) -> tuple[float, np.ndarray]:
    plan, X = problem.plan, problem.X
    tape = _forward_tape(plan, params, X, factors)
    Y = _last_output(plan, params, tape, len(X))
    grad, _ = _backward(plan, params, X, tape, _loss_gradient(problem, Y), False, factors)
    with np.errstate(all="ignore"):
        for layer, gradient in zip(_layers(plan, params), _layers(plan, grad), strict=True):
            gradient.W += _penalty_gradient(problem, layer.W.astype(np.float64))
    return _objective(problem, params, Y), grad


def row_gradients(problem: Problem, params: np.ndarray) -> np.ndarray:
    plan = problem.plan
    dY = _loss_gradient(problem, forward(plan, params, problem.X))
    rows = np.empty((len(dY), plan.n_params), plan.dtype)
    for i in range(len(dY)):
        x = problem.X[i : i + 1]
        rows[i], _ = backward(plan, params, x, forward_tape(plan, params, x), dY[i : i + 1], False)
    return rows


def hvp(problem: Problem, params: np.ndarray, v: np.ndarray, gauss_newton: bool) -> np.ndarray:
    plan = problem.plan
    layers, directions = _layers(plan, params), _layers(plan, v)
    result = np.empty(plan.n_params, plan.dtype)
    with np.errstate(all="ignore"):
        # Forward: each layer's input A and its derivative RA in the direction v.
        inputs, outputs = [(problem.X, np.zeros_like(problem.X))], []
        for layer, direction in zip(layers, directions, strict=True):
            Z, RZ = _directional(layer, direction, *inputs[-1])
            slope = activation(layer.act, Z, 1)
            outputs.append((Z, RZ, slope))
            inputs.append((activation(layer.act, Z, 0), slope * RZ))
        # Backward: dA = dL/dA and its derivative RdA. With dA = 0 the product is Gauss-Newton's.
        Y, RY = inputs[-1]
        dA = np.zeros_like(Y) if gauss_newton else _loss_gradient(problem, Y)
        RdA = _loss_second(problem, Y, RY)
        for index in reversed(range(len(layers))):
            (A, RA), (Z, RZ, slope) = inputs[index], outputs[index]
            dZ, RdZ = dA * slope, RdA * slope
            if not gauss_newton:
                RdZ += dA * activation(layers[index].act, Z, 2) * RZ
            product = _Layer(plan, index, result)
            product.W[:] = A.T @ RdZ + RA.T @ dZ
            if product.b is not None:
                product.b[:] = RdZ.sum(axis=0)
            RdA = RdZ @ layers[index].W.T + dZ @ directions[index].W.T
            dA = dZ @ layers[index].W.T
    return result


def sum_of_squares(problem: Problem, params: np.ndarray, threads: int, robust: Robust) -> float:
    with np.errstate(all="ignore"):
        r = forward(problem.plan, params, problem.X) - problem.targets
        squares, _ = rho(r.astype(np.float64), robust)
        return float((_sample_weights(problem) * squares).sum())


def normal_equations(
    problem: Problem, params: np.ndarray, threads: int, robust: Robust
) -> tuple[np.ndarray, np.ndarray, float]:
    plan = problem.plan
    JTJ = np.zeros((plan.n_free, plan.n_free), plan.dtype)
    JTr, total = np.zeros(plan.n_free, plan.dtype), 0.0
    for start in range(0, len(problem.X), contract.PART_ROWS):
        rows = slice(start, start + contract.PART_ROWS)
        block = _batch(problem, rows, False)
        with np.errstate(all="ignore"):
            r = forward(plan, params, block.X) - block.targets
            _, slope = rho(r.astype(np.float64), robust)
            root = np.sqrt(_sample_weights(block) * slope).astype(plan.dtype).reshape(-1, 1)
            J = root * jacobian(plan, params, block.X, 1, True)
            JTJ += J.T @ J
            JTr += J.T @ (root.ravel() * r.ravel())
        total += sum_of_squares(block, params, 1, robust)
    return JTJ, JTr, total


def jtr_at(
    problem: Problem, params: np.ndarray, moved: np.ndarray, threads: int, robust: Robust
) -> np.ndarray:
    plan, X = problem.plan, problem.X
    with np.errstate(all="ignore"):
        tape = forward_tape(plan, params, X)
        _, slope = rho((forward(plan, params, X) - problem.targets).astype(np.float64), robust)
        r = forward(plan, moved, X) - problem.targets
        weighted = (_sample_weights(problem) * slope * r).astype(plan.dtype)
        gradient, _ = backward(plan, params, X, tape, weighted, False)
    return gradient if plan.free is None else gradient[plan.free]


def descend(
    problem: Problem,
    options: LMOptions,
    robust: Robust,
    descent: LMState,
    records: np.ndarray,
    goal: float,
    threads: int,
) -> int:
    free = slice(None) if problem.plan.free is None else problem.plan.free

    def expanded(x: np.ndarray) -> np.ndarray:
        params = descent.params.copy()
        params[free] = x
        return params

    equations = NormalEquations(
        lambda x: normal_equations(problem, expanded(x), threads, robust),
        lambda x: sum_of_squares(problem, expanded(x), threads, robust),
        lambda x, step: jtr_at(problem, expanded(x), expanded(x + step), threads, robust),
    )
    solver = LMSolver.from_state(equations, options, descent, descent.params[free])
    taken = solver.steps(len(records), goal)
    records[: len(taken)] = taken
    descent.params[free] = solver.x
    solver.store(descent)
    return len(taken)


def _sample_weights(problem: Problem) -> np.ndarray:
    """The sample weights (n, 1) in float64."""
    w = problem.weights
    return np.ones((len(problem.X), 1)) if w is None else w[:, None].astype(np.float64)


def _last_output(plan: Plan, params: np.ndarray, tape: np.ndarray, n: int) -> np.ndarray:
    return _Layer(plan, len(plan.layers) - 1, params).Y(tape, n)


def _row_loss(problem: Problem) -> RowLoss:
    """The row functions of the problem's loss."""
    return row_loss(problem.loss, problem.functions)


def _loss_gradient(problem: Problem, Y: np.ndarray) -> np.ndarray:
    """dL/dY (n, n_out)."""
    with np.errstate(all="ignore"):
        D = _row_loss(problem).derivative(Y.astype(np.float64), _targets(problem), problem.constant)
        return _weighted(problem, D)


def _loss_second(problem: Problem, Y: np.ndarray, U: np.ndarray) -> np.ndarray:
    """The loss's Hessian d²L/dY² times U (n, n_out)."""
    Y, U = Y.astype(np.float64), U.astype(np.float64)
    return _weighted(problem, _row_loss(problem).second(Y, _targets(problem), U, problem.constant))


def _weighted(problem: Problem, D: np.ndarray) -> np.ndarray:
    """scale · w_i · D_i for rows D (n, n_out), in the plan's dtype."""
    if problem.weights is not None:
        D = D * problem.weights[:, None]
    return (problem.scale * D).astype(problem.plan.dtype)


def _objective(problem: Problem, params: np.ndarray, Y: np.ndarray) -> float:
    """The objective, for the output Y (n, n_out)."""
    with np.errstate(all="ignore"):
        rows = _row_loss(problem).value(Y.astype(np.float64), _targets(problem), problem.constant)
        if problem.weights is not None:
            rows = rows * problem.weights
        result = problem.scale * rows.sum()
        for layer in _layers(problem.plan, params):
            result += _penalty(problem, layer.W.astype(np.float64))
    return float(result)


def _penalty(problem: Problem, W: np.ndarray) -> float:
    """The penalties on a layer's W."""
    result = 0.0
    if problem.l2:
        result += 0.5 * problem.l2 * (W**2).sum()
    if problem.l1:
        result += problem.l1 * np.abs(W).sum()
    if problem.group:
        result += problem.group * np.sqrt((W**2).sum(axis=0)).sum()
    return result


def _penalty_gradient(problem: Problem, W: np.ndarray) -> np.ndarray:
    """Their gradient with respect to W."""
    gradient = np.zeros_like(W)
    if problem.l2:
        gradient += problem.l2 * W
    if problem.l1:
        gradient += problem.l1 * np.sign(W)
    if problem.group:
        norms = np.sqrt((W**2).sum(axis=0))
        gradient += problem.group * W / np.where(norms == 0, 1, norms)
    return gradient


def _targets(problem: Problem) -> np.ndarray:
    """The targets, in float64 unless they are labels."""
    T = problem.targets
    return T if T.dtype.kind == "i" else T.astype(np.float64)


# Curves.


def curve_residuals(problem: CurveProblem, params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    f, *slopes = _curve_values(problem, params, len(problem.curve.roots))
    w = 1.0 if problem.weights is None else problem.weights
    with np.errstate(all="ignore"):
        return w * (f - problem.y), w * np.array(slopes)


def _curve_values(problem: CurveProblem, params: np.ndarray, n: int) -> list[np.ndarray]:
    """The first n expressions of the curve, (m,) each."""
    curve = problem.curve
    tapes = curve.handles.setdefault("numpy", {})
    tape = tapes.get(n)
    if tape is None:
        tape = tapes[n] = Tape(curve.roots[:n])
    variables = dict(zip(curve.inputs, problem.columns, strict=True))
    variables |= zip(curve.parameters, params, strict=True)
    return [np.broadcast_to(value, problem.y.shape) for value in tape(variables)]


class _CurveSquares:
    """The sum of squares of a curve; a `marquardt.SumOfSquares`."""

    def __init__(self, problem: CurveProblem, robust: Robust):
        self.problem, self.robust = problem, robust

    def residuals(self, x: np.ndarray) -> np.ndarray:
        p = self.problem
        (f,) = _curve_values(p, x, 1)
        with np.errstate(all="ignore"):
            return (f - p.y) if p.weights is None else p.weights * (f - p.y)

    def total(self, x: np.ndarray) -> float:
        with np.errstate(all="ignore"):
            return float(rho(self.residuals(x), self.robust)[0].sum())

    def linear(self, x: np.ndarray) -> tuple[float, LinearModel]:
        r, J = curve_residuals(self.problem, x)
        with np.errstate(all="ignore"):
            squares, slope = rho(r, self.robust)
            root = np.sqrt(slope)
            return float(squares.sum()), model_of(
                (root * J).T, root * r, lambda step: root * self.residuals(x + step)
            )


def fit_curve(
    problem: CurveProblem,
    options: LMOptions,
    robust: Robust,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    descent: LMState,
    records: np.ndarray,
    goal: float,
) -> int:
    system = _CurveSquares(problem, robust)
    solver = LMSolver.from_state(system, options, descent, descent.params.copy(), bounds)
    records[0] = solver.record
    count = len(records) - 1 if solver.total > goal else 0
    taken = solver.steps(count, goal)
    records[1 : len(taken) + 1] = taken
    descent.params[:] = solver.x
    solver.store(descent)
    return len(taken)


# Training.


def train(
    problem: Problem,
    config: TrainConfig,
    run: TrainState,
    n_steps: int,
    order: np.ndarray | None,
    rates: np.ndarray,
    losses: np.ndarray,
    validation: np.ndarray,
) -> int:
    plan, n, batch_size = problem.plan, len(problem.X), config.batch_size
    steps_per_epoch = -(-n // batch_size)
    first_epoch = run.step // steps_per_epoch
    for i in range(n_steps):
        epoch, j = divmod(run.step, steps_per_epoch)
        epoch -= first_epoch
        rows: slice | np.ndarray = slice(j * batch_size, min((j + 1) * batch_size, n))
        if order is not None:
            rows = order[epoch, rows]
        batch = _batch(problem, rows, config.averaged)
        if j == 0:
            run.good[1] = run.params
        factors = _dropout_factors(plan, len(batch.X), run.seed, run.step)
        objective, g = _value_and_grad(batch, run.params, factors)
        losses[epoch] += objective
        run.monitor[contract.LAST_OBJECTIVE] = objective
        if not np.isfinite(objective):
            return contract.NON_FINITE_OBJECTIVE
        if run.step == 0:
            least = np.finfo(run.params.dtype).eps
            run.monitor[contract.FIRST_OBJECTIVE] = max(abs(objective), least)
        with np.errstate(all="ignore"):
            _step(plan, config, run, g, float(rates[i if len(rates) > 1 else 0]))
        run.step += 1
        if j == steps_per_epoch - 1:
            mean = losses[epoch] / steps_per_epoch
            code = _end_of_epoch(config, run, mean, validation[epoch : epoch + 1])
            if code != contract.DONE:
                return code
    return contract.DONE


def _step(plan: Plan, config: TrainConfig, run: TrainState, g: np.ndarray, lr: float) -> None:
    """Clip the gradient g (n_params,), which changes in place, and update the parameters."""
    free = slice(None) if plan.free is None else plan.free
    if plan.free is not None:
        g[~plan.free] = 0
    if np.isfinite(config.clip_norm):
        norm = float(np.sqrt(np.sum(g * g, dtype=np.float64)))
        g *= min(1.0, config.clip_norm / (norm + contract.CLIP_EPSILON))
    _update(config.optimizer, run, g, lr, free)
    if 0 <= config.average_from <= run.step:
        run.average += (run.params - run.average) / (run.step - config.average_from + 1)


def _end_of_epoch(config: TrainConfig, run: TrainState, mean: float, validation: np.ndarray) -> int:
    """The end of an epoch as `contract.train` describes it; returns its code."""
    if not np.isfinite(run.params).all():
        return contract.NON_FINITE_PARAMETERS
    if mean <= contract.GROWTH_LIMIT * run.monitor[contract.FIRST_OBJECTIVE]:
        run.good[0] = run.good[1]
        run.monitor[contract.EPOCHS_GROWN] = 0
    else:
        run.monitor[contract.EPOCHS_GROWN] += 1
        if run.monitor[contract.EPOCHS_GROWN] == contract.GROWTH_EPOCHS:
            return contract.GROWN
    candidate = run.params
    if 0 <= config.average_from < run.step:
        candidate = run.average.astype(candidate.dtype)
    watched = mean
    if config.validation is not None:
        watched = validation[0] = value(config.validation, candidate, 1)
    if config.patience:
        _watch(config, run, candidate, watched)
    if mean <= config.goal:
        return contract.GOAL_MET
    if config.patience and run.monitor[contract.EPOCHS_WITHOUT] >= config.patience:
        return contract.NO_PROGRESS
    return contract.DONE


def _watch(config: TrainConfig, run: TrainState, candidate: np.ndarray, watched: float) -> None:
    """Compare the watched value with those before, and update `run.best` and `run.monitor`."""
    if watched < run.monitor[contract.LOWEST]:
        run.best[:] = candidate
        run.monitor[contract.LOWEST] = watched
    last = run.monitor[contract.LAST_PROGRESS]
    if watched < (last - config.tol * abs(last) if last < np.inf else np.inf):
        run.monitor[contract.LAST_PROGRESS] = watched
        run.monitor[contract.EPOCHS_WITHOUT] = 0
    else:
        run.monitor[contract.EPOCHS_WITHOUT] += 1


def _batch(problem: Problem, rows: slice | np.ndarray, averaged: bool) -> Problem:
    """The problem over some of its rows; `averaged` as in `TrainConfig`."""
    X = problem.X[rows]
    return replace(
        problem,
        X=X,
        targets=problem.targets[rows],
        weights=None if problem.weights is None else problem.weights[rows],
        scale=problem.scale * len(problem.X) / len(X) if averaged else problem.scale,
        handles={},
    )


_64_BITS = 2**64 - 1


def _dropout_factors(plan: Plan, n: int, seed: int, step: int) -> _Factors:
    """The factors of the layers' outputs in a step with a batch of n rows."""
    if plan.dropout is None:
        return [None] * len(plan.layers)
    factors: _Factors = []
    for index, p in enumerate(plan.dropout):
        n_out = int(plan.layers[index, contract.N_OUT])
        key = _mix(_mix(seed + contract.GOLDEN * (step + 1)) + contract.GOLDEN * (index + 1))
        places = np.arange(n * n_out, dtype=np.uint64).astype(np.uint32)
        h = _hash(_hash(places ^ np.uint32(key & 0xFFFFFFFF)) + np.uint32(key >> 32))
        stays = h >= np.float64(p) * 2.0**32
        factors.append((stays / (1 - p)).astype(plan.dtype).reshape(n, n_out) if p else None)
    return factors


def _mix(x: int) -> int:
    x &= _64_BITS
    x = (x ^ (x >> 30)) * contract.MIX_1 & _64_BITS
    x = (x ^ (x >> 27)) * contract.MIX_2 & _64_BITS
    return x ^ (x >> 31)


def _hash(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(contract.HASH_1)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(contract.HASH_2)
    return x ^ (x >> np.uint32(16))


def _update(
    optimizer: Optimizer, run: TrainState, g: np.ndarray, lr: float, free: slice | np.ndarray
) -> None:
    """One step of the optimizer's rule, in place."""
    if optimizer.constants[3]:
        run.params[free] *= 1 - lr * optimizer.constants[3]
    rule = _RULES[_NAMES[optimizer.kind]]
    run.params -= rule(run.moments, g, lr, run.step + 1, optimizer.constants)


_NAMES = tuple(KINDS)  # by their kinds, which are places

# The rules by name: (moments, g, lr, t, constants) -> what p decreases by. They update the moments
# (n_moments, n_params) in place; t counts from 1.


def _sgd(moments, g, lr, t, constants):
    return lr * g


def _momentum(moments, g, lr, t, constants):
    return lr * _velocity(moments[0], g, constants[0])


def _nesterov(moments, g, lr, t, constants):
    return lr * (g + constants[0] * _velocity(moments[0], g, constants[0]))


def _velocity(v, d, momentum):
    v *= momentum
    v += d
    return v


def _adam(moments, g, lr, t, constants):
    m, s = moments
    beta1, beta2, eps, _ = constants
    m += (1 - beta1) * (g - m)
    s *= beta2
    s += (1 - beta2) * g * g
    return (lr / (1 - beta1**t)) * m / (np.sqrt(s) / np.sqrt(1 - beta2**t) + eps)


def _mean_square(s, g, alpha):
    s *= alpha
    s += (1 - alpha) * g * g
    return s


def _variance(s, a, g, alpha):
    a += (1 - alpha) * (g - a)
    return np.maximum(_mean_square(s, g, alpha) - a * a, 0)


def _rmsprop(moments, g, lr, t, constants):
    alpha, eps, _, _ = constants
    return lr * (g / (np.sqrt(_mean_square(moments[0], g, alpha)) + eps))


def _rmsprop_momentum(moments, g, lr, t, constants):
    (s, v), (alpha, eps, momentum, _) = moments, constants
    return lr * _velocity(v, g / (np.sqrt(_mean_square(s, g, alpha)) + eps), momentum)


def _rmsprop_centered(moments, g, lr, t, constants):
    (s, a), (alpha, eps, _, _) = moments, constants
    return lr * (g / (np.sqrt(_variance(s, a, g, alpha)) + eps))


def _rmsprop_centered_momentum(moments, g, lr, t, constants):
    (s, v, a), (alpha, eps, momentum, _) = moments, constants
    return lr * _velocity(v, g / (np.sqrt(_variance(s, a, g, alpha)) + eps), momentum)


def _adagrad(moments, g, lr, t, constants):
    (s,) = moments
    s += g * g
    return lr * g / (np.sqrt(s) + constants[0])


_RULES = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adam": _adam,
    "rmsprop": _rmsprop,
    "rmsprop_momentum": _rmsprop_momentum,
    "rmsprop_centered": _rmsprop_centered,
    "rmsprop_centered_momentum": _rmsprop_centered_momentum,
    "adagrad": _adagrad,
}
