"""What `fit` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arrays import FLOAT64
from ._errors import ShapeError
from ._targets import prepare_target
from .losses import BCE, Loss
from .network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from scipy.optimize import OptimizeResult

# Values of `FitResult.status`.
FINISHED, LIMIT, STUCK, DIVERGED, INTERRUPTED, STOPPED = range(6)


@dataclass(eq=False, repr=False)
class FitResult:
    """What `fit` came to.

    Attributes
    ----------
    params : numpy.ndarray (n_params,)
        The fitted parameters, of the network's dtype, for data as they were given: with patience
        the best ones, with averaging their mean, after a divergence the last good ones, after
        Ctrl-C those of the last complete chunk of steps or iteration. Masked and frozen entries are
        those of the start.
    fun : float
        The objective at `params` over the training data as given, penalties included, without
        dropout.
    grad : numpy.ndarray (n_params,)
        Its gradient there.
    success : bool
        Whether `status` is 0.
    status : int
        0: all epochs are done, or the method converged, reached the goal or ran out of patience.
        1: the time was over, or a full-batch method did `epochs` iterations and had not converged.
        2: a full-batch method could not go on. 3: divergence. 4: Ctrl-C. 5: a callback stopped it.
    message : str
        The same as a sentence.
    nit : int
        Complete epochs, or iterations; those before `state` included.
    nfev : int
        Evaluations of the objective: steps, each on its batch, or those of a full-batch method.
    seed : int
        With it the same call gives the same result.
    history : dict of str to numpy.ndarray of float64, (nit,)
        "loss": per epoch the mean of the objectives met, each on its batch before its step; for
        full-batch methods the objective after each iteration. "val_loss", with validation: its
        objective at the end of each epoch. Both in scaled units if `fit` scaled y.
    state : dict or None
        What ``fit(state=...)`` goes on from, as if it had not stopped; `fastbp.save` stores it.
        None after a divergence, and for methods that cannot be continued.
    epoch, step : int
        The epoch and the step of the run in which it stopped, both counted from 1; iterations and
        evaluations for full-batch methods.
    loss : float
        The last objective met, NaN if there was none.
    elapsed : float
        Seconds that the call took.
    method : str
        The method with its numbers.
    backend : str
    n_rows : int
        Rows trained on.
    scale : {"standard", "minmax"} or None
        How `fit` scaled them.
    net : Network
    loss_function : Loss
    """

    params: np.ndarray
    fun: float
    grad: np.ndarray
    success: bool
    status: int
    message: str
    nit: int
    nfev: int
    seed: int
    history: dict[str, np.ndarray]
    state: dict[str, Any] | None
    epoch: int
    step: int
    loss: float
    elapsed: float
    method: str
    backend: str
    n_rows: int
    scale: str | None
    net: Network
    loss_function: Loss
    data: tuple[Any, Any] | None = field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # The rows that it was fitted to stay behind: they may be many.
        return self.__dict__ | {"data": None}

    def __repr__(self) -> str:
        steepest = float(np.abs(self.grad).max())
        return (
            f"FitResult(success={self.success}, status={self.status}: {self.message}\n"
            f"  fun={self.fun:.6g}, largest |grad|={steepest:.3g}, nit={self.nit}, "
            f"nfev={self.nfev}, seed={self.seed}\n"
            f"  params: {len(self.params)} of {self.params.dtype} for network {self.net.sizes})"
        )

    def predict(self, X: Any) -> np.ndarray:
        """The network's output (n, n_out) at `params`; for logits their values, not labels.

        Parameters
        ----------
        X : array_like (n, n_in)

        Raises
        ------
        ShapeError, TypeError
            As `Network.forward`.
        """
        return self.net.forward(self.params, X)

    def score(self, X: Any, y: Any) -> float:
        """How well the network does on these rows: R², or accuracy for classes and pairs.

        Parameters
        ----------
        X : array_like (n, n_in), n >= 1
        y : array_like or None
            As `fit` takes it.

        Returns
        -------
        float
            For "softmax_ce" the share of rows whose largest output is the label's (or the most
            probable class's); for "bce", "bce_logits", "hinge" and "squared_hinge" the share of
            rows all of whose outputs are on the right side of ½ ("bce") or 0; for "margin_ranking"
            the share of pairs whose better one has the larger output. Else
            R² = 1 - Σ(Y - y)²/Σ(y - mean)², averaged over columns, Y being the outputs, e to their
            power for "poisson", the means for "gaussian_nll"; a constant column counts 1 if it is
            met exactly and 0 if not, and one row has no R² (NaN).

        Raises
        ------
        ShapeError, TypeError, ValueError
            As `fit`; ValueError too for "gaussian_kl", which has nothing to compare outputs with.
        """
        loss, Y = self.loss_function, self.predict(X).astype(np.float64)
        n, n_out = Y.shape
        if n == 0:
            raise ShapeError(f"X has shape (0, {self.net.n_in}), expected at least one row")
        _, T = prepare_target(loss, y, n, n_out, FLOAT64)
        if loss.paired:
            return float(np.mean(Y[0::2] > Y[1::2]))
        if loss.target == "none":
            raise ValueError(
                f"loss {loss.name!r} has no targets and so no score; judge it by its value, "
                f"net.value(params, X, None, {loss.name!r})"
            )
        if loss.target == "classes":
            labels = T if T.ndim == 1 else T.argmax(axis=1)
            return float(np.mean(Y.argmax(axis=1) == labels))
        if loss.target in ("probabilities", "signs"):
            border = 0.5 if loss.kind == BCE else 0.0
            return float(np.mean(((Y > border) == (T > 0.5)).all(axis=1)))
        if loss.target == "counts":
            with np.errstate(over="ignore"):
                Y = np.exp(Y)
        return r_squared(Y[:, : T.shape[1]], T)

    def summary(self) -> str:
        """The fit in words and figures: network, method, what was reached, why it ended."""
        from ._summary import summary

        return summary(self)

    def plot(self, X: Any = None, y: Any = None, classes: Sequence[Any] | None = None) -> Figure:
        """Plot the losses of the epochs and, beside them, how well the outputs meet the targets.

        For values these are predictions against targets and the residuals, for classes the
        confusion matrix.

        Parameters
        ----------
        X, y : array_like, optional
            As `fit` takes them; by default the rows that it trained on.
        classes : sequence, optional
            What classes are called, in the order of their labels.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If the result was loaded or pickled, so that the rows are not there, and X is missing.
        """
        from .plots import fit_result

        if X is None:
            if self.data is None:
                raise ValueError(
                    "the rows that this result was fitted to are not kept in files; pass X and y"
                )
            X, y = self.data
        return fit_result(self, X, y, classes)

    def to_scipy(self) -> OptimizeResult:
        """The same as SciPy names it: x, fun, jac, success, status, message, nit, nfev."""
        from scipy.optimize import OptimizeResult

        names = ("fun", "success", "status", "message", "nit", "nfev")
        found = {name: getattr(self, name) for name in names}
        return OptimizeResult(x=self.params, jac=self.grad, **found)


def r_squared(Y: np.ndarray, T: np.ndarray) -> float:
    if len(T) == 1:
        return float("nan")
    with np.errstate(over="ignore", invalid="ignore"):
        residual = ((Y - T) ** 2).sum(axis=0)
        spread = ((T - T.mean(axis=0)) ** 2).sum(axis=0)
        constant = spread == 0
        r2 = np.where(constant, residual == 0, 1 - residual / np.where(constant, 1, spread))
    return float(r2.mean())
