"""`FitResult`, what `fit` returns: predictions, uncertainty, score, summary and plot of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.arrays import FLOAT64
from ..common.errors import ShapeError
from ..maths.losses import BCE, Loss
from ..maths.uncertainty import Uncertainty, t_quantile
from ..networks.network import Network
from ..networks.targets import prepare_target
from .covariance import FittedProblem, prediction_deviations

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from scipy.optimize import OptimizeResult


@dataclass(eq=False, repr=False)
class FitResult:
    """The result of `fit`: the parameters, how the fit ended, and its history.

    Attributes
    ----------
    params : numpy.ndarray (n_params,)
        The fitted parameters, of the network's dtype, for raw data: with patience the best ones,
        with averaging their mean, after a divergence the last good ones, after Ctrl-C those of the
        last complete chunk of steps or iteration. Masked and frozen entries are those of the start.
    fun : float
        The objective at `params` over the raw training data, penalties included, without dropout.
    grad : numpy.ndarray (n_params,)
        Its gradient there.
    success : bool
        Whether `status` is 0.
    status : int
        0: all epochs are done, or the method converged, reached the goal or ran out of patience.
        1: the time was over, or a full-batch method did `epochs` iterations and had not converged.
        2: a full-batch method could not go on. 3: divergence. 4: Ctrl-C. 5: a callback stopped it.
    message : str
        The status as a sentence, with the reason.
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
        ``fit(state=...)`` continues from it as if the fit had not stopped; `fastbp.save` stores it.
        None after a divergence, and for methods that cannot be continued.
    epoch, step : int
        The epoch and the step in which the fit stopped, both counted from 1; iterations and
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
        How `fit` scaled the data.
    net : Network
    loss_function : Loss
    fitted : FittedProblem or None
        The training rows and the method, from which `covariance` is computed; None in a result that
        was pickled.
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
    fitted: FittedProblem | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Without the training rows: they may be many.
        return self.__dict__ | {"fitted": None}

    @property
    def data(self) -> tuple[np.ndarray, np.ndarray | None] | None:
        """X (n, n_in) and the targets of the training rows; None in a result that was pickled."""
        if self.fitted is None:
            return None
        obj = self.fitted.objective
        return obj.problem.X, obj.targets

    def __repr__(self) -> str:
        steepest = float(np.abs(self.grad).max())
        return (
            f"FitResult(success={self.success}, status={self.status}: {self.message}\n"
            f"  fun={self.fun:.6g}, largest |grad|={steepest:.3g}, nit={self.nit}, "
            f"nfev={self.nfev}, seed={self.seed}\n"
            f"  params: {len(self.params)} of {self.params.dtype} for network {self.net.sizes})"
        )

    def predict(self, X: Any, *, return_std: bool = False, interval: float | None = None) -> Any:
        """The network's output at `params`; for logits their values, not labels.

        Parameters
        ----------
        X : array_like (n, n_in)
        return_std : bool, default False
            Also return the standard error of the outputs that results from the covariance of the
            parameters, to first order (the delta method): that of the mean of many observations.
        interval : float in (0, 1), optional
            Also return the ends of an interval that contains a new observation of weight 1 with
            this probability. It adds the variance of the residuals to that of the outputs, and uses
            Student's t with the degrees of freedom.

        Returns
        -------
        Y : numpy.ndarray (n, n_out)
        std : numpy.ndarray (n, n_out)
            With `return_std`; infinite where the training rows do not determine the output.
        lower, upper : numpy.ndarray (n, n_out)
            With `interval`.

        Raises
        ------
        ShapeError, TypeError
            As `Network.forward`.
        ValueError
            With both `return_std` and `interval`, and where `covariance` raises one.

        Examples
        --------
        >>> import numpy as np, fastbp as fb
        >>> x = np.arange(5.0).reshape(-1, 1)
        >>> res = fb.fit(fb.Network(1, fb.Dense(1)), x, [0, 1, 3, 2, 4], method="trf", seed=0)
        >>> Y, std = res.predict([[2.0], [10.0]], return_std=True)
        >>> print(Y.round(3).ravel(), std.round(3).ravel())
        [2.  9.2] [0.356 2.045]
        >>> Y, lower, upper = res.predict([[2.0]], interval=0.95)
        >>> print(lower.round(3), upper.round(3))
        [[-0.774]] [[4.774]]
        """
        Y = self.net.forward(self.params, X)
        if not return_std and interval is None:
            return Y
        if return_std and interval is not None:
            raise ValueError(
                f"return_std=True and interval={interval} were given; ask for them one by one"
            )
        half = t_quantile(interval, self.uncertainty.dof) if interval is not None else 1.0
        std = prediction_deviations(self.uncertainty, self.net, self.params, X)
        if return_std:
            return Y, std.astype(Y.dtype)
        reach = half * np.hypot(std, self.uncertainty.noise)
        return Y, (Y - reach).astype(Y.dtype), (Y + reach).astype(Y.dtype)

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """The uncertainty of the parameters of a least-squares fit, whatever the method.

        It has ``variance`` (s²), ``dof`` (degrees of freedom), ``n_effective`` (the number of
        parameters that the rows determine), ``condition`` (that of the scaled JᵀJ), ``noise``
        (n_out,), the standard deviation of observations, and ``notes``, which say in words what
        speaks against standard errors. It is computed at the first use and then stays, also in a
        pickled result. Errors as for `covariance`.
        """
        if self.fitted is None:
            raise ValueError(
                "the rows that this result was fitted to are not kept in files; ask it for "
                "res.uncertainty before it is pickled, which keeps that, or fit again"
            )
        return self.fitted.uncertainty(self.params)

    def covariance(self, *, absolute_sigma: bool = False) -> np.ndarray:
        """The covariance of the parameters as estimates, for a fit by least squares.

        It is s²(JᵀJ + Λ)⁻¹ at `params`, where J is the Jacobian of the weighted residuals, and Λ
        the diagonal matrix of `l2` in the sum of squares, taken as a Gaussian prior [1]_.

        Parameters
        ----------
        absolute_sigma : bool, default False
            Whether sample weights are exactly the inverse variances, so that s² = 1; by default
            they are so up to a common factor, which is estimated as s².

        Returns
        -------
        numpy.ndarray (n_params, n_params) of float64
            For parameters that take raw data, also if `fit` scaled them. Zero for masked and frozen
            parameters and for those at a bound, infinite where the rows determine nothing.

        Raises
        ------
        ValueError
            If the loss is not "mse", "half_mse" or "sse", with l1, group, robust losses or
            constraints, and for a result that was pickled before `uncertainty` was computed.

        Notes
        -----
        s² is the weighted sum of squared residuals divided by the degrees of freedom: residuals
        (rows of positive weight times outputs) less γ = tr(JᵀJ(JᵀJ + Λ)⁻¹), the number of free
        parameters where there is no penalty. All outputs share one s², as in the loss; it is that
        of scaled outputs if `fit` scaled y. ``uncertainty.notes`` and `summary` say what speaks
        against the figures.

        References
        ----------
        .. [1] D. J. C. MacKay, "Bayesian interpolation", Neural Computation 4(3), 1992.

        Examples
        --------
        >>> import numpy as np, fastbp as fb
        >>> x = np.arange(5.0).reshape(-1, 1)
        >>> res = fb.fit(fb.Network(1, fb.Dense(1)), x, [0, 1, 3, 2, 4], method="trf", seed=0)
        >>> print(res.covariance().round(3))
        [[ 0.063 -0.127]
         [-0.127  0.38 ]]
        """
        return self.uncertainty.covariance(absolute_sigma)

    def standard_errors(self, *, absolute_sigma: bool = False) -> np.ndarray:
        """The standard deviations (n_params,) of the parameters: roots of `covariance`'s diagonal.

        `net.unpack` gives them layer by layer.
        """
        return self.uncertainty.standard_errors(absolute_sigma)

    def score(self, X: Any, y: Any) -> float:
        """The score of the network on these rows: R², or the accuracy for classes and pairs.

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
            R² = 1 - Σ(Y - y)²/Σ(y - mean)², averaged over columns, where Y are the outputs, their
            exponentials for "poisson", the means for "gaussian_nll"; for a constant column it is 1
            if Y = y and else 0, and for a single row NaN.

        Raises
        ------
        ShapeError, TypeError, ValueError
            As `fit`; ValueError also for "gaussian_kl", which has no targets.
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
        """The fit in words and figures: network, method, objective, and why it ended."""
        from ..reports.summaries import fit_summary

        return fit_summary(self)

    def plot(self, X: Any = None, y: Any = None, classes: Sequence[Any] | None = None) -> Figure:
        """Plot the losses of the epochs and, beside them, how well the outputs meet the targets.

        For values these are predictions against targets and the residuals, for classes the
        confusion matrix.

        Parameters
        ----------
        X, y : array_like, optional
            As `fit` takes them; by default the rows that it trained on.
        classes : sequence, optional
            The names of the classes, in the order of their labels.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If X is missing and the result was pickled, so that it has no rows.
        """
        from ..reports.plots import fit_result

        if X is None:
            data = self.data
            if data is None:
                raise ValueError(
                    "the rows that this result was fitted to are not kept in files; pass X and y"
                )
            X, y = data
        return fit_result(self, X, y, classes)

    def to_scipy(self) -> OptimizeResult:
        """The same as SciPy names it: x, fun, jac, success, status, message, nit, nfev."""
        from scipy.optimize import OptimizeResult

        names = ("fun", "success", "status", "message", "nit", "nfev")
        fields = {name: getattr(self, name) for name in names}
        return OptimizeResult(x=self.params, jac=self.grad, **fields)


def r_squared(Y: np.ndarray, T: np.ndarray) -> float:
    """R² of predictions Y for targets T, both (n, n_out), averaged over columns."""
    if len(T) == 1:
        return float("nan")
    with np.errstate(over="ignore", invalid="ignore"):
        residual = ((Y - T) ** 2).sum(axis=0)
        spread = ((T - T.mean(axis=0)) ** 2).sum(axis=0)
        constant = spread == 0
        r2 = np.where(constant, residual == 0, 1 - residual / np.where(constant, 1, spread))
    return float(r2.mean())
