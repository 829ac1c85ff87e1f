"""The contract in Numba. `contract` tells what each function must do.

Python allocates the results and a workspace, and one compiled function does the rest:

    compiling      how they are compiled and linked
    caching        where compiled code is kept
    compile_notice the line that says that functions are compiled
    vectors        vector code as formulas; pointers
    elementary     exp, log, tanh and others
    scalars        exp, tanh and sigmoid for users' jitted code
    activations    the activations, each compiled when it is needed
    losses         the losses, likewise
    user           functions of the user's own, for the C backend as well
    product        the matrix product
    layer          one layer
    kernels        the entries for one layer
    network        all layers on a tile of rows
    lane_major     the same for narrow networks
    jacobian_rows  derivatives row by row
    derivatives    the entries for vector-Jacobian products and Jacobians
    objective      the objective and its gradient
    curvature      second-order products
    least_squares  normal equations, and Jᵀr at other parameters
    cholesky       the solution of normal equations
    marquardt      Levenberg and Marquardt's method
    optimizers     the update rules
    training       the training loop
    handles        how users' jitted code calls the entries
    overloads      what fastbp.jitted has for the types of a call

Importing this module compiles nothing. The first call of a function compiles it for its dtype, or
loads it from the cache; sizes, activations, losses and optimizers are arguments. Networks with no
layer wider than 8 have a function of their own, compiled when the first one comes: see lane_major.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...activations import Activation
from ...losses import SOFTMAX_CE_LABELS
from ..contract import (
    N_IN,
    N_OUT,
    PART_ROWS,
    Y_COLUMN,
    Z_COLUMN,
    Descent,
    Plan,
    Problem,
    Recipe,
    Robust,
    Rules,
    Run,
)
from ..tiling import (
    DELTA_ROWS,
    JACOBIAN_ROWS,
    LANE_MAJOR_FEW_ROWS,
    LANE_MAJOR_WIDTH,
    LANE_MAJOR_WIDTH_FOR_FEW,
    LANE_MAJOR_WIDTH_OF_DOUBLES,
    NARROW,
    TILE_ROWS,
    WIDE_TILE_ROWS,
)
from . import (
    activations,
    curvature,
    derivatives,
    kernels,
    lane_major,
    least_squares,
    losses,
    marquardt,
    network,
    objective,
    training,
)
from .vectors import VECTOR_BYTES

_NEVER = 2**62  # more rows than there are

_NO_INTEGERS = np.empty(0, np.int64)
_NO_NUMBERS = np.empty(0)
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

    arrays: tuple[np.ndarray, np.ndarray]  # see network.N_LAYERS; the activations' constants
    dropping: tuple[np.ndarray, np.ndarray]  # the same with dropout
    taped: tuple[np.ndarray, np.ndarray]  # with the contract's tape of all rows
    frozen: np.ndarray  # the parameters that `train` leaves alone
    blank: _Blank
    tile: int
    size: int  # of the workspace
    jacobian_size: int  # of that for derivatives row by row
    curvature_size: int  # of that for second-order products

    def workspace(self) -> np.ndarray:
        """Room for one call; calls in several threads at once have one each."""
        return np.empty(self.size, self.blank.vector.dtype)

    def jacobian_workspace(self) -> np.ndarray:
        """Room for one call for derivatives row by row."""
        return np.empty(self.jacobian_size, self.blank.vector.dtype)

    def curvature_workspace(self) -> np.ndarray:
        """Room for one call of a second-order product."""
        return np.empty(self.curvature_size, self.blank.vector.dtype)


def _prepared(plan: Plan) -> _Prepared:
    found = plan.handles.get("numba")
    return found if found is not None else _prepare(plan)


def _prepare(plan: Plan) -> _Prepared:
    n_out = plan.layers[:, N_OUT]
    tile = TILE_ROWS if plan.layers[:, (N_IN, N_OUT)].max() <= NARROW else WIDE_TILE_ROWS
    dropped = np.zeros(len(n_out)) if plan.dropout is None else plan.dropout
    line = 64 // plan.dtype.itemsize
    layers, tape_width = _layers_of_tile(plan)
    sizes = _workspace(plan, tile, tape_width, dropped)
    places = np.cumsum([0, *(-(-size // line) * line for size in sizes.values())])
    lane_major_rows = _lane_major_rows(plan)
    functions = lane_major.addresses(plan.dtype) if lane_major_rows < _NEVER else (0, 0)
    of_lane_major = [lane_major_rows, lane_major.rows_of_short(plan.dtype), *functions]
    header = [len(n_out), tile, *places[:-1], *of_lane_major]
    addresses = [activations.addresses(act, plan.dtype) for act in plan.activations]
    factors = plan.tape_width + np.cumsum(2 * n_out * (dropped > 0)) - 2 * n_out

    free_columns, free_places = _free(plan, len(header))

    def arrays(
        layers: np.ndarray, leading: np.ndarray, factors: np.ndarray | int
    ) -> tuple[np.ndarray, np.ndarray]:
        columns = np.broadcast_to(factors, n_out.shape), free_columns, leading
        table = np.column_stack([layers, addresses, *columns])
        integers = np.concatenate([header, table.ravel(), free_places]).astype(np.int64)
        return integers, np.append(plan.constants, dropped)

    taped = arrays(plan.layers, n_out, -1)
    ordinary = taped if lane_major_rows < _NEVER else arrays(layers, _leading(plan), -1)
    dropping = ordinary
    if plan.dropout is not None:
        header[network.LANE_MAJOR_ROWS] = _NEVER  # factors of dropout lie row by row
        dropping = arrays(plan.layers, n_out, np.where(dropped > 0, factors, -1))
    found = _Prepared(
        ordinary,
        dropping,
        taped,
        _NO_INTEGERS if plan.free is None else np.flatnonzero(~plan.free),
        _BLANKS[plan.dtype],
        tile,
        int(places[network.DELTAS - network.TAPE]) + line,  # room to begin at a cache line
        int(places[network.R_TAPE - network.TAPE]) + line,
        int(places[-1]) + line,
    )
    plan.handles["numba"] = found
    return found


def _free(plan: Plan, header: int) -> tuple[np.ndarray, np.ndarray]:
    """The layers' last columns, see network.FREE_BEFORE, and what these refer to."""
    free = np.ones(plan.n_params, bool) if plan.free is None else plan.free
    columns, places, before = [], [], 0
    start = header + len(plan.layers) * network.COLUMNS
    for n_in, n_out, _, w, b, *_ in plan.layers.tolist():
        weights = np.flatnonzero(free[w : w + n_in * n_out])
        biases = np.flatnonzero(free[b : b + n_out]) if b >= 0 else _NO_INTEGERS
        place = -1 if plan.free is None else start + 2 * before
        columns.append([before, len(weights), len(biases), place])
        before += len(weights) + len(biases)
        if plan.free is not None:
            places += [np.column_stack(divmod(k, n_out)).ravel() for k in (weights, biases)]
    return np.array(columns), np.concatenate([_NO_INTEGERS, *places])


def _lane_major_rows(plan: Plan) -> int:
    """From how many rows on the rows lie along lanes: see lane_major.py."""
    widest = plan.layers[:, (N_IN, N_OUT)].max()
    if widest <= LANE_MAJOR_WIDTH_FOR_FEW:
        return 1
    most = LANE_MAJOR_WIDTH_OF_DOUBLES if plan.dtype.itemsize == 8 else LANE_MAJOR_WIDTH
    return LANE_MAJOR_FEW_ROWS if widest <= most else _NEVER


def _leading(plan: Plan) -> np.ndarray:
    """How far apart rows of the layers' outputs are in the tape of a tile: see network.LEADING."""
    n_out, width = plan.layers[:, N_OUT], VECTOR_BYTES // plan.dtype.itemsize
    leading = np.where(n_out == 1, 1, -(-n_out // width) * width)
    leading[-1] = n_out[-1]
    return leading


def _layers_of_tile(plan: Plan) -> tuple[np.ndarray, int]:
    """The plan's layers with their columns in the tape of a tile, and that tape's width."""
    layers, leading, width = plan.layers.copy(), _leading(plan), 0
    for layer, columns in zip(layers, leading.tolist(), strict=True):
        layer[Y_COLUMN] = width
        width += columns
        if layer[Z_COLUMN] >= 0:
            layer[Z_COLUMN] = width
            width += columns
    return layers, width


def _workspace(plan: Plan, tile: int, tape_width: int, dropped: np.ndarray) -> dict[int, int]:
    """The sizes of the workspace's parts, in their order."""
    n_out, of_lane_major = plan.layers[:, N_OUT], int(_lane_major_rows(plan) < _NEVER)
    widest = max(int(plan.layers[:, (N_IN, N_OUT)].max()), int(_leading(plan).max()))
    of_8_bytes = 8 // plan.dtype.itemsize
    return {
        network.TAPE: tile * max(tape_width, plan.tape_width + 2 * int(n_out[dropped > 0].sum())),
        network.DELTA: tile * widest,
        network.NEXT_DELTA: tile * widest,
        network.TRANSPOSED: plan.n_params,
        network.GRADIENT: plan.n_params,
        network.PART_GRADIENT: plan.n_params,
        network.X_ROWS: tile * plan.n_in,
        network.TARGET_ROWS: tile * plan.n_out,
        network.LABEL_ROWS: tile * of_8_bytes,
        network.WEIGHT_ROWS: tile,
        network.NORMS: widest * of_8_bytes,
        network.LANE_MAJOR_X: of_lane_major * tile * plan.n_in,
        network.LANE_MAJOR_Y: of_lane_major * tile * plan.n_out,
        network.LANE_MAJOR_D: of_lane_major * tile * plan.n_out,
        network.LANE_MAJOR_SUMS: of_lane_major * lane_major.lanes_size(plan.dtype, plan.n_params),
        # What follows is for derivatives row by row only.
        network.DELTAS: max(DELTA_ROWS, plan.n_out) * tape_width,
        network.SPARE_ROW: max(plan.n_params + VECTOR_BYTES, DELTA_ROWS * widest),
        # What follows is for second-order products only.
        network.R_TAPE: tile * curvature.BLOCKS * int(n_out.sum()),
        network.R_DELTA: tile * widest,
        network.NEXT_R_DELTA: tile * widest,
        network.SPARE: tile * widest,
        network.R_TRANSPOSED: plan.n_params,
    }


# One layer.


def _function(act: Activation, dtype: np.dtype) -> tuple[int, float, int]:
    """An activation as the kernels take it: its function, constant and the user's functions."""
    function, user = activations.addresses(act, dtype)
    return function, act.constant, user


def activation(act: Activation, Z: np.ndarray, order: int) -> np.ndarray:
    result = np.empty(Z.shape, Z.dtype)
    kernels.activation[Z.dtype](order, *_function(act, Z.dtype), Z.reshape(-1), result.reshape(-1))
    return result


def dense_forward(
    X: np.ndarray, W: np.ndarray, b: np.ndarray | None, act: Activation, keep_z: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    dtype = X.dtype
    blank = _BLANKS[dtype]
    Y = np.empty((X.shape[0], W.shape[1]), dtype)
    Z = np.empty_like(Y) if keep_z else blank.matrix
    bias, function = blank.vector if b is None else b, _function(act, dtype)
    kernels.dense_forward[dtype](X, W, bias, b is not None, act.kind, *function, Y, Z, keep_z)
    return Y, Z if keep_z else None


def dense_backward(
    dY: np.ndarray,
    X: np.ndarray,
    W: np.ndarray,
    Y: np.ndarray,
    Z: np.ndarray | None,
    act: Activation,
    need_dX: bool,
    need_db: bool,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    dtype = X.dtype
    blank = _BLANKS[dtype]
    dX = np.empty(X.shape, dtype) if need_dX else blank.matrix
    dW = np.empty(W.shape, dtype)
    db = np.empty(W.shape[1], dtype) if need_db else blank.vector
    transposed = np.empty(W.size, dtype) if need_dX else blank.vector
    kept, function = Z if act.keeps_z and Z is not None else Y, _function(act, dtype)
    kernels.dense_backward[dtype](
        dY.copy(), X, W, kept, act.kind, *function, dX, need_dX, dW, db, need_db, transposed
    )
    return dX if need_dX else None, dW, db if need_db else None


# The network.


def forward(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    p = _prepared(plan)
    Y = np.empty((X.shape[0], plan.n_out), plan.dtype)
    network.forward[plan.dtype](*p.arrays, params, X, p.blank.vector, False, Y, p.workspace())
    return Y


def forward_tape(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    p = _prepared(plan)
    tape = np.empty(X.shape[0] * plan.tape_width, plan.dtype)
    network.forward[plan.dtype](*p.taped, params, X, tape, True, p.blank.matrix, p.blank.vector)
    return tape


def backward(
    plan: Plan,
    params: np.ndarray,
    X: np.ndarray,
    tape: np.ndarray,
    dY: np.ndarray,
    need_dX: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    p, dparams = _prepared(plan), np.empty(plan.n_params, plan.dtype)
    dX = np.empty(X.shape if need_dX else (0, 0), plan.dtype)
    derivatives.pullback[plan.dtype](
        *p.taped, params, X, tape, dY, need_dX, dparams, dX, p.workspace()
    )
    return dparams, dX if need_dX else None


def jvp(
    plan: Plan, params: np.ndarray, X: np.ndarray, tangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    p = _prepared(plan)
    Y, dY = np.empty((2, X.shape[0], plan.n_out), plan.dtype)
    curvature.jvp[plan.dtype](*p.arrays, params, X, tangent, Y, dY, p.curvature_workspace())
    return Y, dY


def jacobian(
    plan: Plan, params: np.ndarray, X: np.ndarray, threads: int, free_only: bool
) -> np.ndarray:
    p, shape = _prepared(plan), (len(X) * plan.n_out, plan.n_free if free_only else plan.n_params)
    J = np.empty(shape, plan.dtype)
    derivatives.jacobian[plan.dtype](
        *p.arrays, params, X, free_only, J.reshape(-1), p.jacobian_workspace()
    )
    return J


def input_jacobian(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    p, J = _prepared(plan), np.empty((X.shape[0], plan.n_out, plan.n_in), plan.dtype)
    derivatives.input_jacobian[plan.dtype](*p.arrays, params, X, J.reshape(-1), p.workspace())
    return J


# The objective.


def _data(problem: Problem) -> tuple[np.ndarray, ...]:
    """The loss and the data as the compiled functions take them."""
    found = problem.handles.get("numba")
    return found if found is not None else _prepare_data(problem)


def _prepare_data(problem: Problem) -> tuple[np.ndarray, ...]:
    dtype, targets = problem.plan.dtype, problem.targets
    blank, of_labels = _BLANKS[dtype], problem.loss == SOFTMAX_CE_LABELS
    function, user = losses.addresses(problem.loss, problem.functions, dtype)
    n_targets = 0 if of_labels else targets.shape[1]
    integers = [problem.loss, function, user, n_targets, problem.weights is not None]
    numbers = [problem.scale, problem.constant, problem.l2, problem.l1, problem.group]
    data = (
        np.array(integers, np.int64),
        np.array(numbers, np.float64),
        problem.X,
        blank.matrix if of_labels else targets,
        targets if of_labels else _NO_INTEGERS,
        blank.vector if problem.weights is None else problem.weights,
    )
    problem.handles["numba"] = data
    return data


def value(problem: Problem, params: np.ndarray, threads: int) -> float:
    return _objective(problem, params, _BLANKS[problem.plan.dtype].vector)


def value_and_grad(problem: Problem, params: np.ndarray, threads: int) -> tuple[float, np.ndarray]:
    gradient = np.empty(problem.plan.n_params, problem.plan.dtype)
    return _objective(problem, params, gradient), gradient


def _objective(problem: Problem, params: np.ndarray, gradient: np.ndarray) -> float:
    """The objective; its gradient is written where there is room for it."""
    p = _prepared(problem.plan)
    return objective.objective[problem.plan.dtype](
        *p.arrays, params, *_data(problem), gradient, gradient.size > 0, p.workspace()
    )


def row_gradients(problem: Problem, params: np.ndarray) -> np.ndarray:
    plan = problem.plan
    p = _prepared(plan)
    rows = np.empty((problem.X.shape[0], plan.n_params), plan.dtype)
    curvature.row_gradients[plan.dtype](
        *p.arrays, params, *_data(problem), rows, p.jacobian_workspace()
    )
    return rows


def hvp(problem: Problem, params: np.ndarray, v: np.ndarray, gauss_newton: bool) -> np.ndarray:
    plan = problem.plan
    p = _prepared(plan)
    result = np.empty(plan.n_params, plan.dtype)
    curvature.hvp[plan.dtype](
        *p.arrays, params, *_data(problem), v, gauss_newton, result, p.curvature_workspace()
    )
    return result


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
    """JᵀDJ with JᵀDr below (n_free+1, n_free), and the sum of squares; unless `derive` it alone."""
    plan, p = problem.plan, _prepared(problem.plan)
    n = plan.n_free if derive else 0
    normal = np.empty((n + 1, n), plan.dtype)
    total = least_squares.normal_equations[plan.dtype](
        *p.arrays, params, *_data(problem), *robust, _block(plan), derive, _room(plan, n), normal,
        _room_for_part(problem, normal.size), p.jacobian_workspace(),
    )  # fmt: skip
    return normal, total


def _room_for_part(problem: Problem, size: int) -> np.ndarray:
    """Room for so many sums over the rows of a part, if there are several parts."""
    return np.empty(size if len(problem.X) > PART_ROWS else 0, problem.plan.dtype)


def _block(plan: Plan) -> int:
    """How many rows of the Jacobian stand in memory at a time."""
    return max(JACOBIAN_ROWS, plan.n_out)


def _room(plan: Plan, n_free: int) -> np.ndarray:
    """Room for them, for two numbers beside each, and for a vector."""
    return np.empty(_block(plan) * (2 + n_free + 16) + VECTOR_BYTES, plan.dtype)


def jtr_at(
    problem: Problem, params: np.ndarray, moved: np.ndarray, threads: int, robust: Robust
) -> np.ndarray:
    plan, p, gradient = problem.plan, _prepared(problem.plan), np.empty_like(params)
    least_squares.jtr_at[plan.dtype](
        *p.arrays, params, *_data(problem), *robust, moved, gradient,
        _room_for_part(problem, gradient.size), p.workspace(),
    )  # fmt: skip
    return gradient if plan.free is None else gradient[plan.free]


def descend(
    problem: Problem,
    rules: Rules,
    robust: Robust,
    descent: Descent,
    records: np.ndarray,
    goal: float,
    threads: int,
) -> int:
    p = _prepared(problem.plan)
    s = descent.handles.get("numba") or _new_search(problem, rules, descent)
    s.rules[marquardt.GOAL] = goal
    return marquardt.descend[problem.plan.dtype](
        *p.arrays, descent.params, *_data(problem), *robust, s.free, descent.prior, descent.normal,
        descent.scales, descent.state, s.rules, records, *s[2:], p.jacobian_workspace(),
    )  # fmt: skip


class _Search(NamedTuple):
    """What a search works with, beside its `Descent`: arguments of `marquardt.descend`."""

    free: np.ndarray
    rules: np.ndarray
    there: np.ndarray
    jtr: np.ndarray
    trial: np.ndarray
    space: np.ndarray
    block: int
    room: np.ndarray
    of_part: np.ndarray


def _new_search(problem: Problem, rules: Rules, descent: Descent) -> _Search:
    plan, n = problem.plan, problem.plan.n_free
    numbers = [
        rules.mu_dec or 0, rules.mu_inc or 0, rules.mu_max, rules.uniform, rules.bend, rules.ftol,
        rules.xtol, rules.gtol, rules.min_grad, -np.inf,
    ]  # fmt: skip
    found = descent.handles["numba"] = _Search(
        np.arange(n) if plan.free is None else np.flatnonzero(plan.free),
        np.array(numbers, np.float64),
        np.empty(plan.n_params),
        np.empty(plan.n_params),
        np.zeros(marquardt.N_NUMBERS),
        np.empty(marquardt.space_for(n)),
        _block(plan),
        _room(plan, n),
        _room_for_part(problem, max((n + 1) * n, plan.n_params)),
    )
    return found


# Training.


def train(
    problem: Problem,
    recipe: Recipe,
    run: Run,
    n_steps: int,
    order: np.ndarray | None,
    rates: np.ndarray,
    losses: np.ndarray,
    validation: np.ndarray,
) -> int:
    plan, dtype = problem.plan, problem.plan.dtype
    p, watched = _prepared(plan), problem if recipe.validation is None else recipe.validation
    status, run.step = training.train[dtype](
        *p.dropping, *_data(problem), *p.arrays, *_data(watched), *_recipe(recipe, dtype),
        p.frozen, run.params, run.moments, run.good, run.best, run.average, run.monitor,
        run.seed, run.step, n_steps, _NO_ORDER if order is None else order, rates, losses,
        validation, p.workspace(),
    )  # fmt: skip
    return status


def _recipe(recipe: Recipe, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """A recipe as the compiled functions take it: see training.KIND."""
    rule, validated = recipe.optimizer, recipe.validation is not None
    integers = [
        rule.kind, rule.n_moments, recipe.batch_size, recipe.averaged, recipe.average_from,
        validated, recipe.patience,
    ]  # fmt: skip
    epsilon = float(np.finfo(dtype).eps)
    numbers = [*rule.constants, recipe.clip_norm, recipe.goal, recipe.tol, epsilon]
    return np.array(integers, np.int64), np.array(numbers, np.float64)
