"""What every backend does: the functions, their arguments and their exact meaning.

A backend is a module that has the functions of this one, with the same names and arguments. Here
they have no body; `reference` gives them one in plain NumPy, `native` in C and `jit` in Numba.
Callers have checked everything: arrays are C-contiguous, aligned, of the plan's dtype and of the
shapes given here, and backends neither check again nor modify them, except where a function says
that it works in place. Results are new C-contiguous arrays.

Notation: X (n, n_in), W (n_in, n_out), b (n_out,), Z = XW + b, Y = act(Z); dA is dL/dA and has the
shape of A. Rows are samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Columns of `Plan.layers`.
N_IN, N_OUT, ACTIVATION, W_OFFSET, B_OFFSET, Y_COLUMN, Z_COLUMN = range(7)

# Kinds of `Optimizer`; csrc/fastbp.h has the same.
SGD, NESTEROV, ADAM = range(3)

# Why `train` stopped before its last step (0: it did not); csrc/fastbp.h has the same.
DONE, NON_FINITE_OBJECTIVE, NON_FINITE_PARAMETERS, GROWN = range(4)

# An objective this many times the first one, for so many epochs in a row, is divergence.
GROWTH_LIMIT = 1e6
GROWTH_EPOCHS = 3


@dataclass(frozen=True, eq=False)
class Plan:
    """A network as plain arrays: all that a backend knows of it.

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
    handles : dict
        Where a backend keeps, under its own name, what it made of the plan.
    """

    dtype: np.dtype
    layers: np.ndarray
    constants: np.ndarray
    n_params: int
    tape_width: int
    handles: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def n_in(self) -> int:
        """Columns of X."""
        return int(self.layers[0, N_IN])

    @property
    def n_out(self) -> int:
        """Columns of the last Y."""
        return int(self.layers[-1, N_OUT])


@dataclass(frozen=True, eq=False)
class Problem:
    """An objective over fixed data: ``scale · Σ_i w_i ℓ(Y_i, T_i) + l2/2 · Σ_layers ‖W‖²``.

    Attributes
    ----------
    plan : Plan
    loss : int
        Number of the row function ℓ (see `fastbp.losses`).
    X : numpy.ndarray (n, n_in), n >= 1
    targets : numpy.ndarray
        (n, n_out) of the plan's dtype, or int64 labels (n,) if `loss` is SOFTMAX_CE_LABELS.
    weights : numpy.ndarray (n,) or None
        The sample weights w.
    scale : float
        The normaliser, for all rows together.
    l2 : float
        Penalty on weights; biases are free of it.
    handles : dict
        Where a backend keeps, under its own name, what it made of the problem.
    """

    plan: Plan
    loss: int
    X: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    scale: float
    l2: float = 0.0
    handles: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Optimizer:
    """An update rule by number. g is the gradient, lr the rate, t the step counted from 1.

    Attributes
    ----------
    kind : int
        SGD: v = momentum·v + g (v = g without moments), p -= lr·v.
        NESTEROV: v = momentum·v + g, p -= lr·(g + momentum·v).
        ADAM: m = β1·m + (1-β1)·g, s = β2·s + (1-β2)·g²,
        p -= lr/(1-β1^t) · m / (sqrt(s / (1-β2^t)) + ε).
    n_moments : int
        Vectors that the rule carries from step to step: 0, 1 (v) or 2 (m, s); they start at 0.
    constants : tuple of float
        (momentum,) or (β1, β2, ε).
    """

    kind: int
    n_moments: int
    constants: tuple[float, ...]


@dataclass(eq=False)
class Run:
    """The state of a training run; `train` moves it on in place.

    Attributes
    ----------
    params : numpy.ndarray (n_params,)
        Current parameters.
    moments : numpy.ndarray (n_moments, n_params)
        The optimizer's vectors.
    good : numpy.ndarray (2, n_params)
        Row 0: the last parameters known to be good, which are those at the start of the last
        completed epoch whose objectives, and the parameters after it, were finite, and which was
        not beyond the growth limit (at first: the initial ones). Row 1: the parameters at the
        start of the running epoch.
    monitor : numpy.ndarray of float64 (3,)
        [0] the growth limit's base: the first objective, absolute, at least the dtype's epsilon;
        0 before the first step. [1] completed epochs in a row above GROWTH_LIMIT times that.
        [2] the last objective met.
    step : int
        Steps done since the run's beginning. With s = ceil(n / batch_size) steps an epoch, step k
        is batch k mod s of epoch k div s; batch j holds the places j·batch_size to
        min((j+1)·batch_size, n) of the epoch's order.
    """

    params: np.ndarray
    moments: np.ndarray
    good: np.ndarray
    monitor: np.ndarray
    step: int = 0


def activation(kind: int, constant: float, Z: np.ndarray, derivative: bool) -> np.ndarray:
    """act(Z), or act'(Z), elementwise for Z of any shape."""
    raise NotImplementedError


def dense_forward(
    X: np.ndarray, W: np.ndarray, b: np.ndarray | None, kind: int, constant: float, keep_z: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Y = act(XW + b) and, if `keep_z`, Z; n, n_in and n_out may be 0."""
    raise NotImplementedError


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
    """dZ = dY ∘ act'(Z); dX = dZ Wᵀ, dW = Xᵀ dZ, db = Σ_rows dZ (None where not needed).

    act' is taken from Y where Y determines it, else from Z.
    """
    raise NotImplementedError


def forward(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The network's output (n, n_out)."""
    raise NotImplementedError


def forward_tape(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    """All that `backward` needs: a vector of n·tape_width numbers.

    Layer after layer the blocks Y (n, n_out) and, where kept, Z (n, n_out), each C-contiguous and
    starting at n times its column of the plan.
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


def value(problem: Problem, params: np.ndarray) -> float:
    """The objective; sums over rows accumulate in float64."""
    raise NotImplementedError


def value_and_grad(problem: Problem, params: np.ndarray) -> tuple[float, np.ndarray]:
    """The objective and its gradient (n_params,)."""
    raise NotImplementedError


def jacobian(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    """dY/dparams, (n·n_out, n_params), rows sample-major."""
    raise NotImplementedError


def input_jacobian(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    """dY/dX per sample, (n, n_out, n_in)."""
    raise NotImplementedError


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
    """Do steps run.step to run.step + n_steps - 1 and return DONE, or why it stopped earlier.

    Parameters
    ----------
    problem, optimizer, run
        `run` is changed in place; run.step counts the steps that were completed.
    n_steps : int
        Steps to do; they may begin and end within an epoch.
    batch_size : int
        At most n.
    averaged : bool
        If true, a batch of B of the n rows is scaled by problem.scale·n/B (the normaliser is its
        size times the mean weight of all data); if false, by problem.scale as it is.
    order : numpy.ndarray of int64 (epochs touched, n), or None
        The order of rows, one row for each epoch that the steps touch; None takes them as stored.
    rates : numpy.ndarray of float64, (1,) or (n_steps,)
        The rate of all steps, or of each.
    losses : numpy.ndarray of float64 (epochs touched,)
        To which the objectives are added, each taken on its batch before the step, penalty
        included. Where the steps begin within an epoch, that epoch's sum so far must stand here:
        the growth limit looks at whole epochs.

    Notes
    -----
    A non-finite objective stops before the update of its step. Finite parameters are checked at the
    end of each epoch, and so is growth: the epoch's mean objective above GROWTH_LIMIT times
    run.monitor[0] for GROWTH_EPOCHS epochs in a row. The step that stopped is run.step after the
    return: the step itself for a non-finite objective, the one after the epoch's last otherwise.
    Subnormal numbers may be flushed to zero inside; the floating-point mode is restored on return.
    """
    raise NotImplementedError
