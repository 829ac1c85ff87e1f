"""Levenberg and Marquardt's method, step by step as in `maths.marquardt`, which explains it.

The names and the order of what is computed are those of `marquardt.LMSolver`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ...maths import marquardt
from ...maths.marquardt import MU, NFEV, NIT, NJEV, RHO, SQUARES, STATUS, USED
from ..tiling import FACTOR_ROWS
from .cholesky import factor, solve
from .compiling import INTEGER, Struct, callee, entry, in_array, inlined, out_array
from .least_squares import PARTS, ROBUST, ROOMS, jtr_of_rows, mirror, normal_of_rows, rooms_of
from .losses import DATA, pointers
from .network import PLAN, net_of, with_params
from .objective import add
from .vectors import at, copy, elementwise, pointer

# `contract.LMOptions` as numbers, with 0 for None, and the goal.
MU_DEC, MU_INC, MU_MAX, UNIFORM, BEND, FTOL, XTOL, GTOL, MIN_GRAD, GOAL, N_OPTIONS = range(11)

# The numbers of a trial: the sum of squares there, the steps taken, the sum with the prior and the
# steepest gradient where the search stands; and what `_Trial` and `Search` say.
(
    SQUARES_THERE, TAKEN, SUM, STEEPEST, NU, PREDICTED, GAIN, IS_SMALL, IS_SHORT, PROMISES,
    PROMISED_ONCE, N_NUMBERS,
) = range(12)  # fmt: skip


class SearchArrays(NamedTuple):
    """A search as Python hands it over: arrays of `LMState`, and those it works with."""

    params: Any  # (n_params,)
    prior: Any  # (n,) as all that follow, where nothing is said
    normal: Any  # (n + 1, n)
    scales: Any
    state: Any  # (8,)
    free: Any  # int64: where the free parameters are
    options: Any  # (N_OPTIONS,)
    there: Any  # (n_params,)
    jtr: Any  # (n_params,)
    trial: Any  # (N_NUMBERS,)
    space: Any  # (space_for(n),)


SEARCH = Struct(
    SearchArrays, out_array(1), in_array(1), out_array(2), out_array(1), out_array(1),
    in_array(1, INTEGER), in_array(1), out_array(1), out_array(1), out_array(1), out_array(1),
)  # fmt: skip


class _Search(NamedTuple):
    """All of a search; most are pointers, under the names of `SearchArrays`."""

    n: Any  # free parameters
    n_params: Any
    free: Any
    params: Any
    prior: Any
    normal: Any
    scales: Any
    state: Any
    options: Any
    records: Any
    count: Any  # of the records there is room for
    there: Any  # parameters where the rows are looked at
    jtr: Any  # Jᵀr there, for all parameters
    trial: Any
    x: Any
    gradient: Any
    damping: Any
    step: Any
    bend: Any
    negative: Any
    U: Any


class _Rows(NamedTuple):
    """What the sums over rows are of."""

    net: Any  # at the parameters of the search
    data: Any
    n: Any  # rows
    robust: Any
    rooms: Any


_VECTORS = 5


def space_for(n):
    """How many numbers a search over n parameters works with."""
    return n * (_VECTORS + FACTOR_ROWS + n)


_weighted_squares = elementwise(lambda v, scales: (v * v * scales,), 2, 0, total=True)


@inlined
def _length(s, v):
    return math.sqrt(_weighted_squares(s.n, v, s.scales))


@callee
def _move(s, share):
    """Go that share of the step to look there."""
    copy(s.there, s.params, s.n_params)
    for k in range(s.n):
        i = s.free[k]
        s.there[i] = s.params[i] + share * s.step[k]


@callee
def _prior_of(s, params):
    total = 0.0
    for k in range(s.n):
        x = params[s.free[k]]
        total += s.prior[k] * x * x
    return total


@callee
def _arrive(s, fresh):
    """Be at the parameters that `normal` is for; `fresh` if they are new, so that scales follow."""
    n, options = s.n, s.options
    total = s.state[SQUARES] + _prior_of(s, s.params)
    mean = cosine = steepest = 0.0
    for i in range(n):
        s.x[i] = s.params[s.free[i]]
        s.gradient[i] = s.normal[n * n + i] + s.prior[i] * s.x[i]
        squared, g = s.normal[i * n + i] + s.prior[i], abs(s.gradient[i])
        mean += squared / n
        c = g / math.sqrt(squared * total) if squared * total > 0 else 0.0
        # NaN counts as larger.
        steepest = steepest if g <= steepest else g
        cosine = cosine if c <= cosine else c
    s.trial[SUM], s.trial[STEEPEST] = total, steepest
    if not fresh:
        return
    for i in range(n):
        measured = mean if options[UNIFORM] else s.normal[i * n + i] + s.prior[i]
        scale = max(measured, marquardt.DECAY * s.scales[i])
        s.scales[i] = scale if scale > 0 else 1.0
    flat = steepest <= options[MIN_GRAD] or not cosine > options[GTOL]
    s.state[STATUS] = marquardt.FLAT if flat else marquardt.RUNNING


@callee
def _first_order(s):
    """Find the step of the linear model; its factor stays in U. Whether there is one."""
    n, mu, predicted = s.n, s.state[MU], 0.0
    for i in range(n):
        copy(at(s.U, i * n + i), at(s.normal, i * n + i), n - i)
        s.damping[i] = s.prior[i] + mu * s.scales[i]
        s.U[i * n + i] += s.damping[i]
        s.step[i] = -s.gradient[i]
    if not factor(n, s.U, s.negative):
        return False
    solve(n, s.U, s.step)
    for i in range(n):
        predicted += s.step[i] * (mu * s.scales[i] * s.step[i] - s.gradient[i])
    s.trial[PREDICTED] = predicted
    return math.isfinite(predicted)


@callee
def _bend(s):
    """Bend the step; whether that is little enough to be trusted."""
    n = s.n
    for i in range(n):
        linear = -s.gradient[i] - s.damping[i] * s.step[i]
        more = s.jtr[s.free[i]] - s.normal[n * n + i]
        s.bend[i] = linear / marquardt.PROBE - more / (marquardt.PROBE * marquardt.PROBE)
    solve(n, s.U, s.bend)
    straight = 2 * _length(s, s.bend) <= marquardt.LONGEST_BEND * _length(s, s.step)
    add(n, s.step, s.bend)
    return straight


@callee
def _measure(s):
    """Whether the step changes next to nothing, or promises much."""
    trial, options, size = s.trial, s.options, _length(s, s.x)
    relative, predicted = _length(s, s.step) / max(size, marquardt.LEAST_LENGTH), trial[PREDICTED]
    trial[IS_SHORT] = relative <= options[XTOL]
    trial[IS_SMALL] = abs(predicted) <= options[FTOL] * trial[SUM]
    promised = predicted > marquardt.PROMISED * trial[SUM]
    resolved = trial[SUM] > marquardt.ROUNDED * size * size and promised
    trial[PROMISES] = resolved and relative > marquardt.PROMISED


@callee
def _gains(s):
    """Whether the sum of squares at the trial is low enough."""
    trial = s.trial
    total = trial[SQUARES_THERE] + _prior_of(s, s.there)
    gain = trial[GAIN] = trial[SUM] - total if math.isfinite(total) else -math.inf
    if abs(gain) > s.options[FTOL] * trial[SUM]:
        trial[IS_SMALL] = 0.0
    enough = gain > marquardt.TOO_LITTLE * trial[PREDICTED]
    is_last = trial[IS_SMALL] and gain >= -marquardt.UNSEEN * trial[SUM]
    return trial[PREDICTED] > 0 and (enough or is_last)


@callee
def _is_finite(s):
    """Whether the linear model is."""
    n = s.n
    for i in range(n + 1):
        for j in range(i % n, n):  # of the last row all
            if not math.isfinite(s.normal[i * n + j]):
                return False
    return True


@callee
def _take(s):
    """Go to the trial, for which `normal` is already, and record the step."""
    state, options, trial = s.state, s.options, s.trial
    rho = trial[GAIN] / trial[PREDICTED]
    exact = marquardt.EXACT
    factor = max(1 / 3, 1 - (2 * rho - 1) ** 3) if abs(rho - 1) > exact else exact
    if options[MU_DEC] > 0:
        factor = options[MU_DEC]
    state[USED], state[MU] = state[MU], max(marquardt.LEAST_MU, state[MU] * factor)
    state[NIT] += 1
    state[RHO], state[SQUARES] = rho, trial[SQUARES_THERE]
    copy(s.params, s.there, s.n_params)
    _arrive(s, True)
    if state[STATUS] == marquardt.RUNNING and (trial[IS_SMALL] or trial[IS_SHORT]):
        state[STATUS] = marquardt.SMALL if trial[IS_SMALL] else marquardt.SHORT
    record = at(s.records, 4 * int(trial[TAKEN]))
    record[0], record[1] = trial[SUM] / 2, state[USED]
    record[2], record[3] = rho, trial[STEEPEST]
    trial[TAKEN] += 1


@callee
def _fail(s):
    """Damp more, and see whether that makes sense."""
    state, options, trial = s.state, s.options, s.trial
    if trial[PROMISES]:
        trial[PROMISED_ONCE] = 1.0
    state[MU] *= options[MU_INC] if options[MU_INC] > 0 else trial[NU]
    trial[NU] *= 2
    if state[MU] > options[MU_MAX]:
        state[STATUS] = marquardt.STUCK
    if trial[IS_SMALL] or trial[IS_SHORT]:
        converged = marquardt.SMALL if trial[IS_SMALL] else marquardt.SHORT
        state[STATUS] = marquardt.STUCK if trial[PROMISED_ONCE] else converged


@callee
def _normal(s, rows, derive):
    """The sum of squares `there`; if `derive`, the normal equations there as well."""
    net = with_params(rows.net, s.there)
    return normal_of_rows(net, rows.data, rows.robust, rows.n, rows.rooms, derive, s.normal)


@callee
def _succeeds(s, rows):
    """Whether the step with the present damping is to be taken; if so, `normal` is that there."""
    state, trial, straight = s.state, s.trial, True
    trial[IS_SMALL] = trial[IS_SHORT] = trial[PROMISES] = 0.0
    if not _first_order(s):
        return False
    if s.options[BEND] and trial[PREDICTED] > marquardt.STRAIGHT * trial[SUM]:
        state[NFEV] += 1
        _move(s, marquardt.PROBE)
        jtr_of_rows(
            rows.net, rows.data, rows.robust, rows.n, s.n_params, s.there, s.jtr, rows.rooms.part
        )  # fmt: skip
        straight = _bend(s)
    _measure(s)
    if not straight:
        return False
    state[NFEV] += 1
    _move(s, 1.0)
    trial[SQUARES_THERE] = _normal(s, rows, False)
    if not _gains(s):
        return False
    state[NJEV] += 1
    trial[SQUARES_THERE] = _normal(s, rows, True)
    if not _is_finite(s):
        copy(s.there, s.params, s.n_params)
        _normal(s, rows, True)  # what was replaced in vain
        return False
    return True


@inlined
def _step(s, rows):
    """A step that decreases the sum of squares, or the end of the search."""
    s.trial[NU], s.trial[PROMISED_ONCE] = 2.0, 0.0
    while s.state[STATUS] == marquardt.RUNNING:
        if _succeeds(s, rows):
            _take(s)
            return
        _fail(s)


@callee
def _steps(s, rows):
    """Steps until there is no room for records, the sum meets the goal, or the search ends."""
    trial, state = s.trial, s.state
    trial[TAKEN] = 0.0
    if state[NJEV] > 0:
        _arrive(s, False)
    else:
        copy(s.there, s.params, s.n_params)
        state[NJEV] = 1
        state[SQUARES] = _normal(s, rows, True)
        _arrive(s, True)
    while state[STATUS] == marquardt.RUNNING and trial[TAKEN] < s.count:
        if trial[TAKEN] > 0 and trial[SUM] <= s.options[GOAL]:
            break
        _step(s, rows)
    mirror(s.n, s.normal)


@entry(
    INTEGER, PLAN, DATA, ROBUST, SEARCH, out_array(2), ROOMS, out_array(1), calls=PARTS,
    dtypes="d",  # searches are in float64, whatever the network's type
)  # fmt: skip
def descend(plan, data, robust, search, records, rooms, workspace):
    """The steps of `descend`; returns how many."""
    n, v, params = search.prior.size, pointer(search.space), pointer(search.params)
    s = _Search(
        n, search.params.size, pointer(search.free), params, pointer(search.prior),
        pointer(search.normal), pointer(search.scales), pointer(search.state),
        pointer(search.options), pointer(records), records.shape[0], pointer(search.there),
        pointer(search.jtr), pointer(search.trial), v, at(v, n), at(v, 2 * n), at(v, 3 * n),
        at(v, 4 * n), at(v, _VECTORS * n), at(v, (_VECTORS + FACTOR_ROWS) * n),
    )  # fmt: skip
    net = net_of(plan, search.params, workspace)
    rows = _Rows(net, pointers(data), data.x.shape[0], robust, rooms_of(rooms))
    _steps(s, rows)
    return int(s.trial[TAKEN])
