"""The contract of the backends: their functions, the arguments and the exact meaning of each.

A backend is a module that has the functions of this one, with the same names and arguments. Here
they have no body; `reference` implements them in plain NumPy, `native` in C and `jit` in Numba.
Callers have checked everything: arrays are C-contiguous, aligned, of the plan's dtype and of the
documented shapes, and backends neither check again nor modify them, except where a function says
that it works in place. Results are new C-contiguous arrays.

C takes the numbers of this module from csrc/constants.h: after a change run
`python tools/constants.py`.

Notation: X (n, n_in), W (n_in, n_out), b (n_out,), Z = XW + b, Y = act(Z); dA is dL/dA and has the
shape of A. Rows are samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..maths.activations import ActivationSpec
from ..maths.formulas.optimizers import KINDS, RULES
from ..maths.marquardt import LMOptions, LMState
from ..maths.robust import Robust
from ..maths.user_functions import PairFunctions

# Columns of `Plan.layers`, and how many there are.
N_IN, N_OUT, ACTIVATION, W_OFFSET, B_OFFSET, Y_COLUMN, Z_COLUMN, LAYER_COLUMNS = range(8)

# The results of `train`: why it stopped before its last step (0: it did not).
DONE, NON_FINITE_OBJECTIVE, NON_FINITE_PARAMETERS, GROWN, GOAL_MET, NO_PROGRESS = range(6)

# An objective this many times the first one, for so many epochs in a row, is divergence.
GROWTH_LIMIT = 1e6
GROWTH_EPOCHS = 3

# Places in `TrainState.monitor`.
FIRST_OBJECTIVE, EPOCHS_GROWN, LAST_OBJECTIVE, LOWEST, LAST_PROGRESS, EPOCHS_WITHOUT = range(6)

# Added to the norm of a gradient by which clipping divides, against division by 0.
CLIP_EPSILON = 1e-6

# A sum over rows is cut into at most MOST_PARTS parts, each of about PART_ROWS rows or more.
MOST_PARTS, PART_ROWS = 16, 256

# Constants of the hash by which `train` draws dropout.
GOLDEN = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
HASH_1, HASH_2 = 0x7FEB352D, 0x846CA68B


@dataclass(frozen=True, eq=False)
class Plan:
    """A network as plain arrays: all that a backend knows about it.

    Attributes
    ----------
    dtype : numpy.dtype
        float32 or float64.
    layers : numpy.ndarray of int64, (n_layers, 7)
        Per layer: n_in, n_out, the activation's number, the offsets of W (row-major) and b (-1
        without bias) in the parameter vector, and the first columns of the layer's Y and Z in the
        tape (Z is -1 where the activation's derivative follows from Y).
    constants : numpy.ndarray of float64, (n_layers,)
        The activations' parameters, 0 where there is none.
    n_params : int
        Length of the parameter vector.
    tape_width : int
        Columns of the tape.
    activations : tuple of ActivationSpec
        The layers' activations: the same as `layers` and `constants`, and user-defined functions.
    free : numpy.ndarray of bool (n_params,), or None
        Which parameters `train` may change; None for all. The gradient of the others counts as 0
        there. `jacobian` and the functions for least squares can leave the others out; no other
        function reads it.
    dropout : numpy.ndarray of float64 (n_layers,), or None
        The share of each layer's outputs that `train` drops, in [0, 1), 0 for the last layer; None
        if it drops none. No other function reads it.
    handles : dict
        Where a backend stores, under its name, what it made of the plan.
    """

    dtype: np.dtype
    layers: np.ndarray
    constants: np.ndarray
    n_params: int
    tape_width: int
    activations: tuple[ActivationSpec, ...]
    free: np.ndarray | None = None
    dropout: np.ndarray | None = None
    handles: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def n_free(self) -> int:
        """How many parameters are free."""
        return self.n_params if self.free is None else int(self.free.sum())

    @cached_property
    def n_in(self) -> int:
        """Columns of X."""
        return int(self.layers[0, N_IN])

    @cached_property
    def n_out(self) -> int:
        """Columns of the last Y."""
        return int(self.layers[-1, N_OUT])


@dataclass(eq=False)  # not frozen, which would treble the time to make one; nobody changes it
class Problem:
    """An objective over fixed data: ``scale · Σ_i w_i ℓ(Y_i, T_i)`` and penalties on the weights.

    These are ``l2/2·‖W‖² + l1·Σ|W_ij| + group·Σ_j ‖W_:j‖₂``, summed over layers; the derivative of
    |w| at 0 and of ‖w‖₂ at a column of zeros is 0.

    Attributes
    ----------
    plan : Plan
    loss : int
        Number of the row function ℓ (see `fastbp.maths.losses`).
    X : numpy.ndarray (n, n_in), n >= 1
    targets : numpy.ndarray
        (n, n_targets) of the plan's dtype, or int64 labels (n,) if `loss` is SOFTMAX_CE_LABELS.
        n_targets is n_out, but n_out/2 for GAUSSIAN_NLL and 0 for GAUSSIAN_KL and MARGIN_RANKING,
        which has pairs of rows: n is even.
    weights : numpy.ndarray (n,) or None
        The sample weights w.
    scale : float
        The normaliser of the sum over all rows.
    constant : float
        The row function's parameter, 0 where there is none.
    functions : PairFunctions or None
        The user-defined row function, for USER_LOSS.
    l2, l1, group : float
        Factors of the penalties, which do not apply to biases.
    handles : dict
        Where a backend stores, under its name, what it made of the problem.
    """

    plan: Plan
    loss: int
    X: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    scale: float
    constant: float = 0.0
    functions: PairFunctions | None = None
    l2: float = 0.0
    l1: float = 0.0
    group: float = 0.0
    handles: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Optimizer:
    """An update rule by number, one of `maths.formulas.optimizers.RULES`.

    Attributes
    ----------
    kind : int
        The rule's place there.
    n_moments : int
        The number of vectors that the rule carries from step to step.
    constants : tuple of four floats
        Those of the rule, in the order of its `numbers`, then zeros; ε is at least float32's
        smallest normal number. The last one is the decay: before each step p -= lr·decay·p for free
        parameters.
    """

    kind: int
    n_moments: int
    constants: tuple[float, float, float, float]

    @classmethod
    def of(cls, name: str, *constants: float, decay: float = 0.0) -> Optimizer:
        """The rule of this name with its constants, at most three."""
        c0, c1, c2 = (*constants, 0.0, 0.0, 0.0)[:3]
        return cls(KINDS[name], RULES[name].n_moments, (c0, c1, c2, decay))


@dataclass(eq=False)  # not frozen, as a problem is not
class TrainConfig:
    """How a training run goes, from its first step to its last.

    Attributes
    ----------
    optimizer : Optimizer
    batch_size : int
        At most n.
    averaged : bool
        If true, a batch of B of the n rows is scaled by problem.scale·n/B (the normaliser is its
        size times the mean weight of all data); if false, by problem.scale as it is.
    clip_norm : float
        The gradient, 0 for what is not free, is multiplied by min(1, clip_norm/(‖g‖ +
        CLIP_EPSILON)) if this is finite; squares are taken in the plan's dtype and summed in
        float64.
    average_from : int
        From this step on, counted from 0, `TrainState.average` is updated; negative for never.
    validation : Problem or None
        Of the same plan; its value (without dropout) is taken at the end of each epoch.
    goal : float
        An epoch whose mean objective is not above it is the last: GOAL_MET; -inf for none.
    patience : int
        After this many epochs in a row without progress `train` stops: NO_PROGRESS. The watched
        value is the validation's or, without one, the epoch's mean objective. 0: none is watched.
    tol : float
        Progress is a watched value below r - tol·|r|, r being the one that made progress last.
    threads : int
        How many threads share a batch of more than one part (see `partition`), at most; a backend
        may run on one.
    """

    optimizer: Optimizer
    batch_size: int
    averaged: bool
    clip_norm: float = np.inf
    average_from: int = -1
    validation: Problem | None = None
    goal: float = -np.inf
    patience: int = 0
    tol: float = 0.0
    threads: int = 1


@dataclass(eq=False)
class TrainState:
    """The state of a training run; `train` updates it in place.

    Attributes
    ----------
    params : numpy.ndarray (n_params,)
        Current parameters.
    moments : numpy.ndarray (n_moments, n_params)
        The optimizer's vectors.
    good : numpy.ndarray (2, n_params)
        Row 0: the last good parameters, which are those at the start of the last completed epoch
        whose objectives, and the parameters after it, were finite and whose mean objective was
        within the growth limit (at first the initial parameters). Row 1: the parameters at the
        start of the running epoch.
    best : numpy.ndarray (n_params,)
        The candidate (see `train`) with the lowest watched value; unused without patience, and
        then it may be empty.
    average : numpy.ndarray of float64 (n_params,)
        The mean of the parameters after each of the steps from `TrainConfig.average_from` on, by
        average += (params - average)/count. Without averaging it may be empty.
    monitor : numpy.ndarray of float64 (6,)
        Numbers, by place: FIRST_OBJECTIVE, the first step's absolute objective, at least the
        dtype's epsilon, and 0 before that step; EPOCHS_GROWN, completed epochs in a row above
        GROWTH_LIMIT times that; LAST_OBJECTIVE, that of the last step; LOWEST, the lowest watched
        value, and LAST_PROGRESS, the one that made progress last, both inf at first;
        EPOCHS_WITHOUT, completed epochs in a row without progress.
    seed : int
        The seed of the dropout, 0 <= seed < 2^64.
    step : int
        The number of completed steps. With s = ceil(n / batch_size) steps an epoch, step k
        is batch k mod s of epoch k div s; batch j holds the places j·batch_size to
        min((j+1)·batch_size, n) of the epoch's order.
    """

    params: np.ndarray
    moments: np.ndarray
    good: np.ndarray
    best: np.ndarray
    average: np.ndarray
    monitor: np.ndarray
    seed: int = 0
    step: int = 0


def partition(n: int) -> list[tuple[int, int]]:
    """The parts (start, stop) of n rows that are summed apart; their sums are added in this order.

    Every backend cuts sums over rows like this, so that results do not depend on the number of
    threads that share the parts. A part has an even number of rows, except the last one.
    """
    most = max(1, min(MOST_PARTS, -(-n // PART_ROWS)))
    size = max(2, 2 * -(-n // (2 * most)))
    return [(start, min(start + size, n)) for start in range(0, n, size)] or [(0, 0)]


def activation(act: ActivationSpec, Z: np.ndarray, order: int) -> np.ndarray:
    """act(Z), or its first or second derivative (order 1, 2), elementwise for Z of any shape.

    `reference` and `native` have the third derivative (order 3) of built-in functions, too.
    """
    raise NotImplementedError


def dense_forward(
    X: np.ndarray, W: np.ndarray, b: np.ndarray | None, act: ActivationSpec, keep_z: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Y = act(XW + b) and, if `keep_z`, Z; n, n_in and n_out may be 0."""
    raise NotImplementedError


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
    """dZ = dY ∘ act'(Z); dX = dZ Wᵀ, dW = Xᵀ dZ, db = Σ_rows dZ (None where not needed).

    act' is taken from Y where Y determines it, else from Z.
    """
    raise NotImplementedError


def forward(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The network's output (n, n_out)."""
    raise NotImplementedError


def forward_tape(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The tape that `backward` reads: a vector of n·tape_width numbers.

    Layer after layer it has the blocks Y (n, n_out) and, unless Z_COLUMN is -1, Z (n, n_out), each
    C-contiguous and starting at n times its column of the plan.
    """
    raise NotImplementedError


def backward(
    plan: Plan,
    params: np.ndarray,
    X: np.ndarray,
    tape: np.ndarray,
    dY: np.ndarray,
    need_dX: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The vector-Jacobian product: (dparams, dX) for dY (n, n_out); dX is None if not needed."""
    raise NotImplementedError


def jvp(
    plan: Plan, params: np.ndarray, X: np.ndarray, tangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The output Y and its derivative in the direction `tangent` (n_params,), both (n, n_out)."""
    raise NotImplementedError


def jacobian(
    plan: Plan, params: np.ndarray, X: np.ndarray, threads: int, free_only: bool
) -> np.ndarray:
    """dY/dparams, (n·n_out, n_params); row i·n_out + k belongs to output k of sample i.

    If `free_only`, the shape is (n·n_out, n_free): only the columns of the free parameters, in
    their order, are computed.
    """
    raise NotImplementedError


def input_jacobian(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    """dY/dX per sample, (n, n_out, n_in)."""
    raise NotImplementedError


def value(problem: Problem, params: np.ndarray, threads: int) -> float:
    """The objective; sums over rows accumulate in float64."""
    raise NotImplementedError


def value_and_grad(problem: Problem, params: np.ndarray, threads: int) -> tuple[float, np.ndarray]:
    """The objective and its gradient (n_params,)."""
    raise NotImplementedError


def row_gradients(problem: Problem, params: np.ndarray) -> np.ndarray:
    """The gradient of each row's term, without penalties, (n, n_params).

    Row i is ``scale · w_i · dℓ/dY_i · dY_i/dparams``; their sum is the gradient.
    """
    raise NotImplementedError


def hvp(problem: Problem, params: np.ndarray, v: np.ndarray, gauss_newton: bool) -> np.ndarray:
    """The Hessian of the objective without penalties, times v (n_params,).

    With J = dY/dparams and ℓ'' the loss's Hessian, the Gauss-Newton matrix is
    ``scale · Jᵀ (w ℓ'') J``; the whole Hessian has in addition ``scale · Σ w ℓ' d²Y/dparams²``. The
    product is the derivative of the gradient in the direction v, by the forward rule applied to
    the backward pass (B. A. Pearlmutter, "Fast exact multiplication by the Hessian", Neural
    Computation 6(1), 1994).
    """
    raise NotImplementedError


def sum_of_squares(problem: Problem, params: np.ndarray, threads: int, robust: Robust) -> float:
    """Σ_ik w_i C² rho(z_ik), z_ik = ((Y - T)_ik / C)²: a sample's weight multiplies its rho.

    The problem's loss is SQUARED; scale and penalties do not count. Sums accumulate in float64.
    """
    raise NotImplementedError


def normal_equations(
    problem: Problem, params: np.ndarray, threads: int, robust: Robust
) -> tuple[np.ndarray, np.ndarray, float]:
    """JᵀDJ (n_free, n_free), JᵀDr (n_free,), `sum_of_squares`, with r = Y - T and J = dr/dparams.

    D is diagonal: w_i rho'(z_ik), 1 without weights for LINEAR_RHO. So JᵀDr is half the gradient of
    the sum, and JᵀDJ, from which rho'' is left out, is positive semidefinite: that of iteratively
    reweighted least squares. J has columns for the free parameters only, and no more of it at a
    time than a block of rows: memory does not grow with n.
    """
    raise NotImplementedError


def jtr_at(
    problem: Problem, params: np.ndarray, moved: np.ndarray, threads: int, robust: Robust
) -> np.ndarray:
    """JᵀD r(moved) (n_free,), where J and D are those of `normal_equations` at params.

    Levenberg and Marquardt's method bends a step by it (geodesic acceleration): with r at params
    plus a share of the step it gives the second derivative of r along the step.
    """
    raise NotImplementedError


def descend(
    problem: Problem,
    options: LMOptions,
    robust: Robust,
    descent: LMState,
    records: np.ndarray,
    goal: float,
    threads: int,
) -> int:
    """Steps of Levenberg and Marquardt's method, as `marquardt.LMSolver` takes them.

    The problem is one of float64. Steps are taken until `records` (k, 4), whose rows are as
    `marquardt.LMSolver.record`, is full, the sum of squares with the prior is not above `goal`, or
    `descent`'s status is not RUNNING. Returns the number of steps.
    """
    raise NotImplementedError


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
    """Do steps run.step to run.step + n_steps - 1 and return DONE, or why it stopped earlier.

    Parameters
    ----------
    problem, config, run
        `run` is changed in place; run.step counts the steps that were completed.
    n_steps : int
        Steps to do; they may begin and end within an epoch.
    order : numpy.ndarray of int64 (epochs touched, n), or None
        The order of rows, one row for each epoch that the steps touch; None takes them as stored.
    rates : numpy.ndarray of float64, (1,) or (n_steps,)
        The rate of all steps, or of each.
    losses : numpy.ndarray of float64 (epochs touched,)
        Each epoch's sum of objectives, to which the steps add theirs: that of the batch before the
        update, penalty included. Where the steps begin within an epoch, its sum so far must be
        here: goal, patience and the growth limit apply to whole epochs.
    validation : numpy.ndarray of float64 (epochs touched,)
        Receives the validation's value at the end of each epoch; empty without one.

    Notes
    -----
    A non-finite objective stops before the update of its step. At the end of each epoch, in this
    order: finite parameters are checked (NON_FINITE_PARAMETERS); growth, that is the epoch's mean
    objective above GROWTH_LIMIT times the first one for GROWTH_EPOCHS epochs in a row (GROWN); the
    validation is evaluated; the watched value is compared, and where it is lower than all before,
    the candidate becomes `run.best`; the goal; the patience. The candidate is what a fit would
    return now: the average if that has begun, rounded to the dtype, else the parameters. A watched
    NaN is no progress. A later call continues as if GOAL_MET or NO_PROGRESS had not stopped the
    run.

    After an early return run.step is the step with the non-finite objective, or the one after the
    last step of the epoch. Subnormal numbers may be flushed to zero during the call; the
    floating-point mode is restored on return.

    Dropout multiplies a layer's output, on its way to the next layer, by 1/(1 - p) or by 0. With
    the batch's rows counted from 0, entry (row, unit) of layer number `index` in step `step` is
    dropped if h < p·2^32, where h is a hash of 32 bits. All arithmetic is modulo 2^64, then 2^32::

        mix(x):  x ^= x >> 30; x *= MIX_1; x ^= x >> 27; x *= MIX_2; x ^= x >> 31
        key = mix(mix(seed + GOLDEN·(step + 1)) + GOLDEN·(index + 1))  (splitmix64 [1]_)
        hash(x): x ^= x >> 16; x *= HASH_1; x ^= x >> 15; x *= HASH_2; x ^= x >> 16
        h = hash(hash((row·n_out + unit) ^ (key mod 2^32)) + (key div 2^32))

    References
    ----------
    .. [1] G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators",
       OOPSLA 2014.
    """
    raise NotImplementedError
