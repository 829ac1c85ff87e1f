"""The contract in Numba. `contract` says what each function must do.

Python allocates the results and a workspace, and one compiled function does the rest:

    prepared       plans and problems as compiled functions take them
    kernels        the entries for one layer
    network        a network on a tile of rows; the entry for its output
    objective      the objective and its gradient
    derivatives    vector-Jacobian products and Jacobians
    curvature      second-order products, gradients row by row
    least_squares  normal equations, and Jᵀr at other parameters
    marquardt      Levenberg and Marquardt's method
    training       the training loop
    layer          one layer
    lane_major     all layers, for narrow networks
    jacobian_rows  derivatives row by row
    losses         the losses, each compiled when it is needed
    activations    the activations, likewise
    optimizers     the update rules
    product        the matrix product
    cholesky       the solution of normal equations
    elementary     exp, log, tanh and others
    vectors        vector code as formulas; pointers
    intrinsics     functions of LLVM's instructions
    compiling      how functions are compiled and linked
    caching        where compiled code is stored
    compile_notice the line that says that functions are compiled
    user           functions of the user's own, for the C backend as well
    scalars        exp, tanh and sigmoid for users' jitted code
    numba_internals  what Numba does not document

Arguments that belong together are a NamedTuple: arrays where Python calls, pointers inside.

Importing this module compiles nothing. The first call of a function compiles it for its dtype, or
loads it from the cache; sizes, activations, losses and optimizers are arguments. Networks with no
layer wider than 8 have a function of their own, compiled when the first one comes: see lane_major.
"""

from __future__ import annotations

import numpy as np

from ...maths.activations import ActivationSpec
from ...maths.marquardt import LMOptions, LMState
from ...maths.robust import Robust
from ..contract import PART_ROWS, Plan, Problem, TrainConfig, TrainState
from ..tiling import JACOBIAN_ROWS
from . import (
    activations,
    curvature,
    derivatives,
    kernels,
    least_squares,
    marquardt,
    network,
    objective,
    training,
)
from .layer import Act
from .prepared import EMPTY, PreparedPlan, prepared_data, prepared_plan
from .vectors import VECTOR_BYTES

_NO_ORDER = np.empty((0, 0), np.int64)

# One layer.


def _act(act: ActivationSpec, dtype: np.dtype) -> Act:
    """An activation as the kernels take it."""
    function, user = activations.addresses(act, dtype)
    return Act(act.kind, function, act.constant, user)


def activation(act: ActivationSpec, Z: np.ndarray, order: int) -> np.ndarray:
    result = np.empty(Z.shape, Z.dtype)
    kernels.activation[Z.dtype](order, _act(act, Z.dtype), Z.reshape(-1), result.reshape(-1))
    return result


def dense_forward(
    X: np.ndarray, W: np.ndarray, b: np.ndarray | None, act: ActivationSpec, keep_z: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    dtype = X.dtype
    empty, Y = EMPTY[dtype], np.empty((X.shape[0], W.shape[1]), dtype)
    Z = np.empty_like(Y) if keep_z else empty.matrix
    bias = empty.vector if b is None else b
    kernels.dense_forward[dtype](X, W, bias, b is not None, _act(act, dtype), Y, Z, keep_z)
    return Y, Z if keep_z else None


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
    dtype = X.dtype
    empty, dW = EMPTY[dtype], np.empty(W.shape, dtype)
    dX = np.empty(X.shape, dtype) if need_dX else empty.matrix
    db = np.empty(W.shape[1], dtype) if need_db else empty.vector
    transposed = np.empty(W.size, dtype) if need_dX else empty.vector
    z_or_y = Z if act.keeps_z and Z is not None else Y
    kernels.dense_backward[dtype](
        dY.copy(), X, W, z_or_y, _act(act, dtype), dX, need_dX, dW, db, need_db, transposed
    )
    return dX if need_dX else None, dW, db if need_db else None


# The network.


def forward(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    p, nothing = prepared_plan(plan), EMPTY[plan.dtype].vector
    Y = np.empty((X.shape[0], plan.n_out), plan.dtype)
    network.forward[plan.dtype](p.arrays, params, X, nothing, False, Y, p.workspace())
    return Y


def forward_tape(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    p, empty = prepared_plan(plan), EMPTY[plan.dtype]
    tape = np.empty(X.shape[0] * plan.tape_width, plan.dtype)
    network.forward[plan.dtype](p.taped, params, X, tape, True, empty.matrix, empty.vector)
    return tape


def backward(
    plan: Plan,
    params: np.ndarray,
    X: np.ndarray,
    tape: np.ndarray,
    dY: np.ndarray,
    need_dX: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    p, dparams = prepared_plan(plan), np.empty(plan.n_params, plan.dtype)
    dX = np.empty(X.shape if need_dX else (0, 0), plan.dtype)
    derivatives.pullback[plan.dtype](
        p.taped, params, X, tape, dY, need_dX, dparams, dX, p.workspace()
    )
    return dparams, dX if need_dX else None


def jvp(
    plan: Plan, params: np.ndarray, X: np.ndarray, tangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    p = prepared_plan(plan)
    Y, dY = np.empty((2, X.shape[0], plan.n_out), plan.dtype)
    curvature.jvp[plan.dtype](p.arrays, params, X, tangent, Y, dY, p.curvature_workspace())
    return Y, dY


def jacobian(
    plan: Plan, params: np.ndarray, X: np.ndarray, threads: int, free_only: bool
) -> np.ndarray:
    p, columns = prepared_plan(plan), plan.n_free if free_only else plan.n_params
    J = np.empty((len(X) * plan.n_out, columns), plan.dtype)
    space = p.jacobian_workspace()
    derivatives.jacobian[plan.dtype](p.arrays, params, X, free_only, J.reshape(-1), space)
    return J


def input_jacobian(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    p, J = prepared_plan(plan), np.empty((X.shape[0], plan.n_out, plan.n_in), plan.dtype)
    derivatives.input_jacobian[plan.dtype](p.arrays, params, X, J.reshape(-1), p.workspace())
    return J


# The objective.


def value(problem: Problem, params: np.ndarray, threads: int) -> float:
    return _objective(problem, params, EMPTY[problem.plan.dtype].vector)


def value_and_grad(problem: Problem, params: np.ndarray, threads: int) -> tuple[float, np.ndarray]:
    gradient = np.empty(problem.plan.n_params, problem.plan.dtype)
    return _objective(problem, params, gradient), gradient


def _objective(problem: Problem, params: np.ndarray, gradient: np.ndarray) -> float:
    """The objective; its gradient is written where there is room for it."""
    p = prepared_plan(problem.plan)
    return objective.objective[problem.plan.dtype](
        p.arrays, params, prepared_data(problem), gradient, gradient.size > 0, p.workspace()
    )


def row_gradients(problem: Problem, params: np.ndarray) -> np.ndarray:
    plan, p = problem.plan, prepared_plan(problem.plan)
    rows = np.empty((problem.X.shape[0], plan.n_params), plan.dtype)
    space = p.jacobian_workspace()
    curvature.row_gradients[plan.dtype](p.arrays, params, prepared_data(problem), rows, space)
    return rows


def hvp(problem: Problem, params: np.ndarray, v: np.ndarray, gauss_newton: bool) -> np.ndarray:
    plan, p, result = problem.plan, prepared_plan(problem.plan), np.empty_like(params)
    space = p.curvature_workspace()
    curvature.hvp[plan.dtype](
        p.arrays, params, prepared_data(problem), v, gauss_newton, result, space
    )
    return result


# Sums of squares.


def sum_of_squares(problem: Problem, params: np.ndarray, threads: int, robust: Robust) -> float:
    _, total = _least_squares(problem, params, robust, False)
    return total


def normal_equations(
    problem: Problem, params: np.ndarray, threads: int, robust: Robust
) -> tuple[np.ndarray, np.ndarray, float]:
    normal, total = _least_squares(problem, params, robust, True)
    return normal[:-1], normal[-1], total


def _least_squares(
    problem: Problem, params: np.ndarray, robust: Robust, derive: bool
) -> tuple[np.ndarray, float]:
    """JᵀDJ with JᵀDr below (n_free + 1, n_free), and the sum of squares.

    Unless `derive` the first is empty.
    """
    plan, p = problem.plan, prepared_plan(problem.plan)
    n = plan.n_free if derive else 0
    normal = np.empty((n + 1, n), plan.dtype)
    total = least_squares.normal_equations[plan.dtype](
        p.arrays, params, prepared_data(problem), robust, _rooms(problem, n, normal.size), derive,
        normal, p.jacobian_workspace(),
    )  # fmt: skip
    return normal, total


def _rooms(problem: Problem, n_free: int, part: int) -> least_squares.Rooms:
    """Memory for normal equations in n_free parameters, and for `part` sums over a part."""
    plan = problem.plan
    block = max(JACOBIAN_ROWS, plan.n_out)
    rows = np.empty(block * (2 + n_free + 16) + VECTOR_BYTES, plan.dtype)
    return least_squares.Rooms(block, rows, _room_of_part(problem, part))


def _room_of_part(problem: Problem, size: int) -> np.ndarray:
    """Memory for so many sums over a part of the rows, if there are several parts."""
    return np.empty(size if len(problem.X) > PART_ROWS else 0, problem.plan.dtype)


def jtr_at(
    problem: Problem, params: np.ndarray, moved: np.ndarray, threads: int, robust: Robust
) -> np.ndarray:
    plan, p, gradient = problem.plan, prepared_plan(problem.plan), np.empty_like(params)
    least_squares.jtr_at[plan.dtype](
        p.arrays, params, prepared_data(problem), robust, moved, gradient,
        _room_of_part(problem, gradient.size), p.workspace(),
    )  # fmt: skip
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
    plan, p = problem.plan, prepared_plan(problem.plan)
    search, rooms = descent.handles.get("numba") or _new_search(problem, options, descent)
    search.options[marquardt.GOAL] = goal
    return marquardt.descend[plan.dtype](
        p.arrays, prepared_data(problem), robust, search, records, rooms, p.jacobian_workspace()
    )


def _new_search(
    problem: Problem, options: LMOptions, descent: LMState
) -> tuple[marquardt.SearchArrays, least_squares.Rooms]:
    plan, n = problem.plan, problem.plan.n_free
    numbers = [
        options.mu_dec or 0, options.mu_inc or 0, options.mu_max, options.uniform, options.bend,
        options.ftol, options.xtol, options.gtol, options.min_grad, -np.inf,
    ]  # fmt: skip
    search = marquardt.SearchArrays(
        descent.params, descent.prior, descent.normal, descent.scales, descent.state,
        np.arange(n) if plan.free is None else np.flatnonzero(plan.free),
        np.array(numbers, np.float64), np.empty(plan.n_params), np.empty(plan.n_params),
        np.zeros(marquardt.N_NUMBERS), np.empty(marquardt.space_for(n)),
    )  # fmt: skip
    rooms = _rooms(problem, n, max((n + 1) * n, plan.n_params))
    descent.handles["numba"] = search, rooms
    return search, rooms


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
    p, watched = prepared_plan(problem.plan), config.validation or problem
    state = training.State(run.params, run.moments, run.good, run.best, run.average, run.monitor)
    chunk = training.Chunk(_NO_ORDER if order is None else order, rates, losses, validation)
    status, run.step = training.train[problem.plan.dtype](
        p.dropping, prepared_data(problem), p.arrays, prepared_data(watched), _config(config, p),
        state, run.seed, run.step, n_steps, chunk, p.workspace(),
    )  # fmt: skip
    return status


def _config(config: TrainConfig, p: PreparedPlan) -> training.Config:
    """A configuration as compiled code takes it."""
    rule, validated = config.optimizer, config.validation is not None
    integers = [
        rule.kind, config.batch_size, config.averaged, config.average_from, validated,
        config.patience,
    ]  # fmt: skip
    epsilon = float(np.finfo(p.dtype).eps)
    numbers = [*rule.constants, config.clip_norm, config.goal, config.tol, epsilon]
    return training.Config(np.array(integers, np.int64), np.array(numbers, np.float64), p.frozen)
