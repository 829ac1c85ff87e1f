"""Plans and problems as compiled functions take them; made once for each and cached in its handles.

A plan becomes a vector of integers and one of numbers: see layout.N_LAYERS. The integers begin
with the layout of the workspace, the memory for one call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...maths.losses import SOFTMAX_CE_LABELS
from .. import tiling
from ..contract import N_IN, N_OUT, Y_COLUMN, Z_COLUMN, Plan, Problem
from . import activations, curvature, lane_major, layout, losses, network
from .vectors import VECTOR_BYTES

_NEVER = 2**62  # more rows than there are

NO_INTEGERS = np.empty(0, np.int64)


class Empty(NamedTuple):
    """Empty arrays of a dtype, for arguments that a call does without."""

    vector: np.ndarray
    matrix: np.ndarray


EMPTY = {np.dtype(t): Empty(np.empty(0, t), np.empty((0, 0), t)) for t in (np.float32, np.float64)}


class PreparedPlan(NamedTuple):
    """What compiled functions need of a plan."""

    arrays: network.PlanArrays
    dropping: network.PlanArrays  # the same with dropout
    taped: network.PlanArrays  # with the contract's tape of all rows
    frozen: np.ndarray  # int64: the parameters that `train` leaves alone
    dtype: np.dtype
    size: int  # of the workspace
    jacobian_size: int  # of that for derivatives row by row
    curvature_size: int  # of that for second-order products

    def workspace(self) -> np.ndarray:
        """Memory for one call; calls in several threads at once have one each."""
        return np.empty(self.size, self.dtype)

    def jacobian_workspace(self) -> np.ndarray:
        """Memory for one call for derivatives row by row."""
        return np.empty(self.jacobian_size, self.dtype)

    def curvature_workspace(self) -> np.ndarray:
        """Memory for one call of a second-order product."""
        return np.empty(self.curvature_size, self.dtype)


def prepared_plan(plan: Plan) -> PreparedPlan:
    """What the plan is for compiled functions, made at the first call."""
    known = plan.handles.get("numba")
    return known if known is not None else _prepare(plan)


def _prepare(plan: Plan) -> PreparedPlan:
    n_out = plan.layers[:, N_OUT]
    narrow = plan.layers[:, (N_IN, N_OUT)].max() <= tiling.NARROW
    tile = tiling.TILE_ROWS if narrow else tiling.WIDE_TILE_ROWS
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

    def arrays(layers: np.ndarray, leading: np.ndarray, factors: Any) -> network.PlanArrays:
        columns = np.broadcast_to(factors, n_out.shape), free_columns, leading
        table = np.column_stack([layers, addresses, *columns])
        integers = np.concatenate([header, table.ravel(), free_places]).astype(np.int64)
        return network.PlanArrays(integers, np.append(plan.constants, dropped))

    taped = arrays(plan.layers, n_out, -1)
    ordinary = taped if lane_major_rows < _NEVER else arrays(layers, _leading(plan), -1)
    dropping = ordinary
    if plan.dropout is not None:
        header[layout.LANE_MAJOR_ROWS] = _NEVER  # factors of dropout lie row by row
        dropping = arrays(plan.layers, n_out, np.where(dropped > 0, factors, -1))
    frozen = NO_INTEGERS if plan.free is None else np.flatnonzero(~plan.free)
    # A workspace has room to begin at a cache line.
    ends = places[[layout.DELTAS - layout.TAPE, layout.R_TAPE - layout.TAPE, -1]] + line
    known = PreparedPlan(ordinary, dropping, taped, frozen, plan.dtype, *ends.tolist())
    plan.handles["numba"] = known
    return known


def _free(plan: Plan, header: int) -> tuple[np.ndarray, np.ndarray]:
    """The layers' last columns, see layout.FREE_BEFORE, and what these refer to."""
    free = np.ones(plan.n_params, bool) if plan.free is None else plan.free
    columns, places, before = [], [], 0
    start = header + len(plan.layers) * layout.COLUMNS
    for n_in, n_out, _, w, b, *_ in plan.layers.tolist():
        weights = np.flatnonzero(free[w : w + n_in * n_out])
        biases = np.flatnonzero(free[b : b + n_out]) if b >= 0 else NO_INTEGERS
        place = -1 if plan.free is None else start + 2 * before
        columns.append([before, len(weights), len(biases), place])
        before += len(weights) + len(biases)
        if plan.free is not None:
            places += [np.column_stack(divmod(k, n_out)).ravel() for k in (weights, biases)]
    return np.array(columns), np.concatenate([NO_INTEGERS, *places])


def _lane_major_rows(plan: Plan) -> int:
    """From how many rows on the rows lie along lanes: see lane_major.py."""
    widest = plan.layers[:, (N_IN, N_OUT)].max()
    if widest <= tiling.LANE_MAJOR_WIDTH_FOR_FEW:
        return 1
    doubles = plan.dtype.itemsize == 8
    most = tiling.LANE_MAJOR_WIDTH_OF_DOUBLES if doubles else tiling.LANE_MAJOR_WIDTH
    return tiling.LANE_MAJOR_FEW_ROWS if widest <= most else _NEVER


def _leading(plan: Plan) -> np.ndarray:
    """How far apart rows of the layers' outputs are in the tape of a tile: see layout.LEADING."""
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
        layout.TAPE: tile * max(tape_width, plan.tape_width + 2 * int(n_out[dropped > 0].sum())),
        layout.DELTA: tile * widest,
        layout.NEXT_DELTA: tile * widest,
        layout.TRANSPOSED: plan.n_params,
        layout.GRADIENT: plan.n_params,
        layout.PART_GRADIENT: plan.n_params,
        layout.X_ROWS: tile * plan.n_in,
        layout.TARGET_ROWS: tile * plan.n_out,
        layout.LABEL_ROWS: tile * of_8_bytes,
        layout.WEIGHT_ROWS: tile,
        layout.NORMS: widest * of_8_bytes,
        layout.LANE_MAJOR_X: of_lane_major * tile * plan.n_in,
        layout.LANE_MAJOR_Y: of_lane_major * tile * plan.n_out,
        layout.LANE_MAJOR_D: of_lane_major * tile * plan.n_out,
        layout.LANE_MAJOR_SUMS: of_lane_major * lane_major.lanes_size(plan.dtype, plan.n_params),
        # What follows is for derivatives row by row only.
        layout.DELTAS: max(tiling.DELTA_ROWS, plan.n_out) * tape_width,
        layout.SPARE_ROW: max(plan.n_params + VECTOR_BYTES, tiling.DELTA_ROWS * widest),
        # What follows is for second-order products only.
        layout.R_TAPE: tile * curvature.BLOCKS * int(n_out.sum()),
        layout.R_DELTA: tile * widest,
        layout.NEXT_R_DELTA: tile * widest,
        layout.SPARE: tile * widest,
        layout.R_TRANSPOSED: plan.n_params,
    }


def prepared_data(problem: Problem) -> losses.Data:
    """The loss and the data of a problem, made at the first call."""
    known = problem.handles.get("numba")
    return known if known is not None else _prepare_data(problem)


def _prepare_data(problem: Problem) -> losses.Data:
    dtype, targets = problem.plan.dtype, problem.targets
    empty, of_labels = EMPTY[dtype], problem.loss == SOFTMAX_CE_LABELS
    function, user = losses.addresses(problem.loss, problem.functions, dtype)
    n_targets = 0 if of_labels else targets.shape[1]
    integers = [problem.loss, function, user, n_targets, problem.weights is not None]
    numbers = [problem.scale, problem.constant, problem.l2, problem.l1, problem.group]
    data = problem.handles["numba"] = losses.Data(
        np.array(integers, np.int64),
        np.array(numbers, np.float64),
        problem.X,
        empty.matrix if of_labels else targets,
        targets if of_labels else NO_INTEGERS,
        empty.vector if problem.weights is None else problem.weights,
    )
    return data
