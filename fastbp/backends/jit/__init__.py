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
    least_squares  normal equations, and gradients beyond them
    cholesky       the solution of normal equations
    marquardt      Levenberg and Marquardt's method
    optimizers     the update rules
    training       the training loop
    sharing        threads
    handles        how users' jitted code calls the entries
    overloads      what fastbp.jitted has for the types of a call

Importing this module compiles nothing. The first call of a function compiles it for its dtype, or
loads it from the cache; sizes, activations, losses and optimizers are arguments. Networks with no
layer wider than 8 have a function of their own, compiled when the first one comes: see lane_major.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...activations import Activation
from ...losses import SOFTMAX_CE_LABELS
from ..contract import (
    DONE,
    MOST_PARTS,
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
    partition,
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
from .compiling import Compiled
from .sharing import Team
from .vectors import VECTOR_BYTES


def _open_door() -> Any:
    """The module of C functions that call compiled ones: csrc/python/door.c; or None."""
    try:
        from .. import _door as door
    except ImportError:  # not built: no compiler, or a Python without limited API
        return None
    return door


_door = _open_door()

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


_told: set[tuple[Compiled, int, str]] = set()


def _tell_door(linked: Compiled, act: Activation, dtype: np.dtype) -> None:
    """Let the door serve later calls like one that has been served here."""
    call = linked, act.kind, dtype.char
    if _door is None or call in _told:
        return
    this, is_double = sys.modules[__name__], dtype.itemsize == 8
    is_backward, function = linked is kernels.linked_backward, _function(act, dtype)[0]
    _door.connect_numba(this, is_double, is_backward, linked.address(dtype), act.kind, function)
    _told.add(call)


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
    _tell_door(kernels.linked_forward, act, dtype)
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
    _tell_door(kernels.linked_backward, act, dtype)
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
    p, n_out, n = _prepared(plan), plan.n_out, X.shape[0]
    parts = [(0, n)] if threads == 1 else partition(n)  # rows do not depend on each other
    J = np.empty((X.shape[0] * n_out, plan.n_free if free_only else plan.n_params), plan.dtype)
    compiled = derivatives.jacobian[plan.dtype]

    def part(bounds: tuple[int, int]) -> None:
        start, stop = bounds
        of_rows = J[start * n_out : stop * n_out].reshape(-1)
        compiled(*p.arrays, params, X[start:stop], free_only, of_rows, p.jacobian_workspace())

    with Team(threads, len(parts)) as team:
        for _ in team.map(part, parts):
            pass
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
    return _objective(problem, params, threads, np.empty(0, problem.plan.dtype))


def value_and_grad(problem: Problem, params: np.ndarray, threads: int) -> tuple[float, np.ndarray]:
    alone = threads == 1 or len(problem.X) <= PART_ROWS
    # The door pays from the second call on: addresses take longer than Numba's way in.
    if _door is not None and alone and "numba" in problem.handles:
        places, _ = problem.handles.get("numba door") or _new_places(problem)
        results = _door.numba_value_and_grad(places, params)
        if results is not None:
            return results
    gradient = np.empty(problem.plan.n_params, problem.plan.dtype)
    return _objective(problem, params, threads, gradient), gradient


def _new_places(problem: Problem) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """What the door needs of a problem: numba_problem in door.c; and the arrays it refers to."""
    p, dtype = _prepared(problem.plan), problem.plan.dtype
    arrays = *p.arrays, *_data(problem)
    function = objective.linked_objective.address(dtype)
    numbers = [function, p.size * dtype.itemsize, len(problem.X)]
    numbers += [array.ctypes.data for array in arrays]
    handle = problem.handles["numba door"] = np.array(numbers, np.uintp), arrays
    return handle


def _objective(problem: Problem, params: np.ndarray, threads: int, gradient: np.ndarray) -> float:
    """The objective; its gradient is written where there is room for it."""
    plan, n = problem.plan, problem.X.shape[0]
    p, data, need_gradient = _prepared(plan), _data(problem), gradient.size > 0
    compiled, space = objective.objective[plan.dtype], p.workspace()
    if threads == 1 or n <= PART_ROWS:
        return compiled(*p.arrays, params, *data, gradient, need_gradient, _NO_NUMBERS, space)
    gradients = np.empty((MOST_PARTS, gradient.size), plan.dtype)
    rows = _Rows(_NO_INTEGERS, 0, n, problem.scale)
    with Team(threads, MOST_PARTS) as team:
        sums = _sums(team, problem, p.arrays, params, rows, gradients)
    result = compiled(*p.arrays, params, *data, gradients.reshape(-1), need_gradient, sums, space)
    gradient[:] = gradients[0]
    return result


class _Rows(NamedTuple):
    """The rows of a batch."""

    order: np.ndarray
    first: int
    n: int
    factor: float  # of the gradient
    seed: int = 0
    step: int = 0
    flush: bool = False  # subnormal numbers to zero


def _sums(
    team: Team,
    problem: Problem,
    arrays: tuple[np.ndarray, np.ndarray],
    params: np.ndarray,
    rows: _Rows,
    gradients: np.ndarray,
) -> np.ndarray:
    """The sums of the batch's parts; their gradients are written to the rows of `gradients`."""
    dtype, parts, data = problem.plan.dtype, partition(rows.n), _data(problem)
    compiled = objective.part_of_sum[dtype]

    def part(i: int) -> float:
        start, stop = parts[i]
        return compiled(
            *arrays, params, *data, rows.order, rows.first, start, stop - start, rows.factor,
            rows.seed, rows.step, gradients[i], gradients.size > 0, rows.flush,
            _prepared(problem.plan).workspace(),
        )  # fmt: skip

    return np.array(list(team.map(part, range(len(parts)))))


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
    _, total = _least_squares(problem, params, threads, robust, False)
    return total


def normal_equations(
    problem: Problem, params: np.ndarray, threads: int, robust: Robust
) -> tuple[np.ndarray, np.ndarray, float]:
    normal, total = _least_squares(problem, params, threads, robust, True)
    least_squares.complete[problem.plan.dtype](normal)
    return normal[:-1], normal[-1], total


def _least_squares(
    problem: Problem, params: np.ndarray, threads: int, robust: Robust, derive: bool
) -> tuple[np.ndarray, float]:
    """JᵀDJ's upper triangle, with JᵀDr below, and the sum of squares; unless `derive` it alone."""
    plan, dtype = problem.plan, problem.plan.dtype
    p, data, n = _prepared(plan), _data(problem), plan.n_free if derive else 0
    block, compiled = _block(plan), least_squares.normal_equations[dtype]

    def part(bounds: tuple[int, int]) -> tuple[np.ndarray, float]:
        start, stop = bounds
        room, normal = _room(plan, n), np.empty((n + 1, n), dtype)
        total = compiled(
            *p.arrays, params, *data, *robust, start, stop - start, block, derive, room, normal,
            p.jacobian_workspace(),
        )  # fmt: skip
        return normal, total

    parts = partition(problem.X.shape[0])
    with Team(threads, len(parts)) as team:
        of_parts = team.map(part, parts)
        normal, total = next(of_parts)
        for more, squares in of_parts:
            least_squares.add_part[dtype](normal, more)
            total += squares
    return normal, total


def _block(plan: Plan) -> int:
    """How many rows of the Jacobian stand in memory at a time."""
    return max(JACOBIAN_ROWS, plan.n_out)


def _room(plan: Plan, n_free: int) -> np.ndarray:
    """Room for them, for two numbers beside each, and for a vector."""
    return np.empty(_block(plan) * (2 + n_free + 16) + VECTOR_BYTES, plan.dtype)


def gradient_beyond(
    problem: Problem, params: np.ndarray, moved: np.ndarray, threads: int, robust: Robust
) -> np.ndarray:
    gradient, free = _beyond(problem, params, moved, threads, robust), problem.plan.free
    return gradient if free is None else gradient[free]


def _beyond(
    problem: Problem, params: np.ndarray, moved: np.ndarray, threads: int, robust: Robust
) -> np.ndarray:
    """The gradient beyond for all parameters."""
    plan, p, data = problem.plan, _prepared(problem.plan), _data(problem)
    compiled = least_squares.gradient_beyond[plan.dtype]

    def part(bounds: tuple[int, int]) -> np.ndarray:
        start, stop = bounds
        gradient = np.empty(plan.n_params, plan.dtype)
        compiled(
            *p.arrays, params, *data, *robust, start, stop - start, moved, gradient, p.workspace()
        )
        return gradient

    parts = partition(problem.X.shape[0])
    with Team(threads, len(parts)) as team:
        of_parts = team.map(part, parts)
        gradient = next(of_parts)
        for more in of_parts:
            gradient += more
    return gradient


def descend(
    problem: Problem,
    rules: Rules,
    robust: Robust,
    descent: Descent,
    records: np.ndarray,
    goal: float,
    threads: int,
) -> int:
    p, n_rows = _prepared(problem.plan), len(problem.X)
    s = descent.handles.get("numba") or _new_search(problem, rules, descent)
    s.rules[marquardt.GOAL] = goal
    alone = threads == 1 or n_rows <= PART_ROWS
    go_on = partial(
        marquardt.descend[problem.plan.dtype], *p.arrays, descent.params, *_data(problem), *robust,
        s.free, descent.prior, descent.normal, descent.scales, descent.state, s.rules, records,
        *s[2:], alone,
    )  # fmt: skip
    space = p.jacobian_workspace()
    asked = go_on(marquardt.START, space)
    while asked != marquardt.END:
        if asked == marquardt.BEYOND:
            s.beyond[:] = _beyond(problem, descent.params, s.there, threads, robust)
        else:
            derive = asked != marquardt.TOTAL
            normal, total = _least_squares(problem, s.there, threads, robust, derive)
            s.trial[marquardt.ANSWER] = total
            if derive:
                descent.normal[:] = normal
        asked = go_on(asked, space)
    return int(s.trial[marquardt.TAKEN])


class _Search(NamedTuple):
    """What a search works with, beside its `Descent`: arguments of `marquardt.descend`."""

    free: np.ndarray
    rules: np.ndarray
    there: np.ndarray
    beyond: np.ndarray
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
    several = len(problem.X) > PART_ROWS
    found = descent.handles["numba"] = _Search(
        np.arange(n) if plan.free is None else np.flatnonzero(plan.free),
        np.array(numbers, np.float64),
        np.empty(plan.n_params),
        np.empty(plan.n_params),
        np.zeros(marquardt.N_NUMBERS),
        np.empty(marquardt.space_for(n)),
        _block(plan),
        _room(plan, n),
        np.empty(max((n + 1) * n, plan.n_params) if several else 0),
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
    given = (*p.arrays, *_data(watched), *_recipe(recipe, dtype))
    changed = run.good, run.best, run.average, run.monitor
    steps = partial(
        training.train[dtype], *p.dropping, *_data(problem), *given, p.frozen, run.params,
        run.moments, *changed, run.seed,
    )  # fmt: skip
    order = _NO_ORDER if order is None else order
    if recipe.threads == 1 or recipe.batch_size <= PART_ROWS:
        nothing = p.blank.vector, _NO_NUMBERS
        status, run.step = steps(
            run.step, n_steps, order, rates, losses, validation, *nothing, p.workspace()
        )
        return status
    end_of_epoch = partial(training.end_of_epoch[dtype], *given, run.params, *changed)
    together = _Together(problem, recipe, run, steps, end_of_epoch)
    return together.train(n_steps, order, rates, losses, validation)


class _Together:
    """Training where threads share each step, and the validation.

    They compute the sums of its parts, and the compiled functions do the rest.
    """

    def __init__(
        self,
        problem: Problem,
        recipe: Recipe,
        run: Run,
        steps: Callable[..., tuple[int, int]],
        end_of_epoch: Callable[..., int],
    ):
        plan = problem.plan
        self._problem, self._recipe, self._run = problem, recipe, run
        self._steps, self._end_of_epoch = steps, end_of_epoch
        self._prepared = _prepared(plan)
        self._space = self._prepared.workspace()
        self._gradients = np.empty((MOST_PARTS, plan.n_params), plan.dtype)

    def train(
        self,
        n_steps: int,
        order: np.ndarray,
        rates: np.ndarray,
        losses: np.ndarray,
        validation: np.ndarray,
    ) -> int:
        run, steps_per_epoch = self._run, -(-len(self._problem.X) // self._recipe.batch_size)
        first_epoch = run.step // steps_per_epoch
        with Team(self._recipe.threads, MOST_PARTS) as team:
            for i in range(n_steps):
                epoch, j = divmod(run.step, steps_per_epoch)
                epoch -= first_epoch
                of_epoch = order[epoch] if order.size else _NO_INTEGERS
                rate = rates[i : i + 1] if len(rates) > 1 else rates
                status = self._step(team, j, of_epoch, rate, losses[epoch:])
                if status == DONE and j == steps_per_epoch - 1:
                    mean = losses[epoch] / steps_per_epoch
                    status = self._end(team, mean, validation[epoch:])
                if status != DONE:
                    return status
        return DONE

    def _step(
        self, team: Team, j: int, order: np.ndarray, rate: np.ndarray, loss: np.ndarray
    ) -> int:
        """One step, on batch j of the epoch."""
        problem, recipe, run, n = self._problem, self._recipe, self._run, len(self._problem.X)
        first = j * recipe.batch_size
        count = min(recipe.batch_size, n - first)
        factor = problem.scale * n / count if recipe.averaged else problem.scale
        rows = _Rows(order, first, count, factor, run.seed, run.step, flush=True)
        arrays, gradients = self._prepared.dropping, self._gradients
        sums = _sums(team, problem, arrays, run.params, rows, gradients)
        status, run.step = self._steps(
            run.step, 1, _NO_ORDER, rate, loss, _NO_NUMBERS, gradients.reshape(-1), sums,
            self._space,
        )  # fmt: skip
        return status

    def _end(self, team: Team, mean: float, validation: np.ndarray) -> int:
        recipe, run, sums = self._recipe, self._run, _NO_NUMBERS
        if recipe.validation is not None:
            averaged = 0 <= recipe.average_from < run.step
            candidate = run.average.astype(run.params.dtype) if averaged else run.params
            n, factor = len(recipe.validation.X), recipe.validation.scale
            rows = _Rows(_NO_INTEGERS, 0, n, factor, flush=True)
            arrays, nothing = self._prepared.arrays, self._gradients[:, :0]
            sums = _sums(team, recipe.validation, arrays, candidate, rows, nothing)
        return self._end_of_epoch(run.step, mean, validation, sums, self._space)


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
