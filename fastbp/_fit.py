"""`fit`: the one door to all fitting methods."""

from __future__ import annotations

import inspect
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import optimize
from ._arrays import FLOAT64, require_finite, whole_number
from ._errors import DivergenceError, NonFiniteError, ShapeError, unknown_name
from ._objective import Objective
from ._targets import prepare_target
from .backends import contract
from .losses import BCE, Loss
from .network import Network
from .optimize._free import require_free
from .optimize._scipy import METHODS as MINIMIZE
from .training import loop
from .training.optimizers import METHODS, SGD, FirstOrder, with_options

LEAST_SQUARES = ("trf", "dogbox")
FULL_BATCH = (*MINIMIZE, *LEAST_SQUARES)

# Values of `FitResult.status`.
FINISHED, LIMIT, STUCK, DIVERGED, INTERRUPTED = range(5)


@dataclass(eq=False, repr=False)
class FitResult:
    """What `fit` came to.

    Attributes
    ----------
    params : numpy.ndarray (n_params,)
        The fitted parameters, of the network's dtype; after a divergence the last good ones, after
        Ctrl-C those of the last complete chunk of steps or iteration. Masked and frozen entries are
        those of the start.
    fun : float
        The objective at `params` over all data, penalties included, without dropout.
    grad : numpy.ndarray (n_params,)
        Its gradient there.
    success : bool
        Whether `status` is 0.
    status : int
        0: all epochs are done, or the method converged. 1: a full-batch method did `epochs`
        iterations and had not converged. 2: a full-batch method could not go on. 3: divergence.
        4: Ctrl-C.
    message : str
        The same as a sentence.
    nit : int
        Complete epochs, or iterations.
    nfev : int
        Evaluations of the objective: steps, each on its batch, or those of a full-batch method
        (if Ctrl-C ended that, its iterations).
    seed : int
        With it the same call gives the same result.
    history : dict of str to numpy.ndarray of float64, (nit,)
        "loss": per epoch the mean of the objectives met, each on its batch before its step; for
        full-batch methods the objective after each iteration.
    epoch, step : int
        The epoch and the step of the run in which it stopped, both counted from 1; iterations and
        evaluations for full-batch methods.
    loss : float
        The last objective met, NaN if there was none.
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
    epoch: int
    step: int
    loss: float
    net: Network
    loss_function: Loss

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
        return _r_squared(Y[:, : T.shape[1]], T)


def _r_squared(Y: np.ndarray, T: np.ndarray) -> float:
    if len(T) == 1:
        return float("nan")
    with np.errstate(over="ignore", invalid="ignore"):
        residual = ((Y - T) ** 2).sum(axis=0)
        spread = ((T - T.mean(axis=0)) ** 2).sum(axis=0)
    constant = spread == 0
    r2 = np.where(constant, residual == 0, 1 - residual / np.where(constant, 1, spread))
    return float(r2.mean())


def fit(
    net: Network,
    X: Any,
    y: Any,
    *,
    method: str | FirstOrder = "adam",
    loss: str | Loss = "mse",
    params: Any = None,
    epochs: int = 100,
    batch_size: int | str | None = "auto",
    shuffle: bool = True,
    seed: int | None = None,
    sample_weight: Any = None,
    l2: float = 0.0,
    l1: float = 0.0,
    group: float = 0.0,
    threads: int = 1,
    on_divergence: str = "raise",
    backend: str | None = None,
    **options: Any,
) -> FitResult:
    """Fit a network's parameters to data.

    Parameters
    ----------
    net : Network
    X : array_like (n, n_in), n >= 1
        Finite numbers; converted once to the network's dtype, never modified.
    y : array_like or None
        (n, n_out), or (n,) for one output; of the form that the loss expects, None for those
        without targets.
    method : str, SGD or Adam, default "adam"
        "sgd", "momentum" (0.9), "nesterov" (0.9) and "adam", or ``fb.SGD(...)``, ``fb.Adam(...)``,
        take steps on minibatches with PyTorch's rules and defaults [1]_ [2]_ [3]_. Full-batch
        methods are "fmincg" (conjugate gradients), SciPy's "L-BFGS-B", "BFGS", "CG", "Newton-CG",
        "TNC", "SLSQP" and "trust-constr", and for least-squares losses its "trf" and "dogbox"; they
        compute in float64 and round at the end. Dropout needs one of the minibatch methods.
    loss : str or Loss, default "mse"
        A name of the list in `Network.objective`'s notes, or what `fastbp.huber`,
        `fastbp.quantile`, `fastbp.margin_ranking` and `fastbp.custom_loss` make. A batch of B rows
        is divided by B times the mean weight of all data, so that its gradient is unbiased; "sse"
        is not divided.
    params : array_like (n_params,), optional
        Where to start, not modified; by default ``net.init`` of the first child seed. No method
        changes masked or frozen entries; masked ones may hold anything.
    epochs : int, default 100
        Passes over the data; for full-batch methods the most iterations, for "trf" and "dogbox"
        the most evaluations.
    batch_size : int, None or "auto"
        Rows of a step; the last batch of an epoch has what is left. None is all of them, and
        "auto" 32 for the minibatch methods, all for the others, which take no number. For
        "margin_ranking" it must be even.
    shuffle : bool, default True
        Draw a new order of the rows, or pairs of rows, for every epoch. Without it, or with all
        rows in one batch, they come as stored.
    seed : int, optional
        Three child seeds of ``numpy.random.SeedSequence(seed).spawn(3)`` draw the initial
        parameters, the orders of rows, and the dropout, the same on every backend. By default a new
        one, kept in the result.
    sample_weight : array_like (n,), optional
        Weights >= 0, for "margin_ranking" one per pair, (n/2,); all 1 by default.
    l2, l1, group : float, default 0.0
        Add l2/2·‖W‖², l1·Σ|W_ij| and group·Σ_j ‖W_:j‖₂ over weights, never biases, to the objective
        of every batch. Least-squares methods take l2 alone.
    threads : int, default 1
        How many share the work of a batch of more than 256 rows; smaller ones have no use for
        them. The result does not depend on it.
    on_divergence : {"raise", "return"}
        What to do when the objective, its gradient or the parameters are no longer finite, or the
        mean objective of 3 epochs in a row is over 1e6 times the first one's absolute value.
    backend : {"c", "numba", "numpy"}, optional
        The current one by default.
    **options
        Numbers of the method, such as ``lr``, ``momentum``, ``nesterov``, ``betas`` and ``eps``;
        they go before the method's own. For full-batch methods what `fastbp.optimize` takes.

    Returns
    -------
    FitResult
        Also after Ctrl-C, with ``status`` 4 and what had been reached.

    Raises
    ------
    ShapeError, TypeError, ValueError
        For shapes that do not fit, arrays that are not real, unknown names and options, numbers
        out of range, what a method or loss cannot take, and a network without free parameters.
    NonFiniteError
        If X, y or params hold NaN or infinity; the message says where.
    DivergenceError
        As `on_divergence` says. Its ``result`` has the epoch, the step, the loss and the last good
        parameters, and the message, for SGD on a least-squares loss, the largest stable rate.

    References
    ----------
    .. [1] D. P. Kingma, J. Ba, "Adam: A method for stochastic optimization", ICLR 2015.
    .. [2] I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and
       momentum in deep learning", ICML 2013.
    .. [3] B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", USSR
       Computational Mathematics and Mathematical Physics 4(5), 1964.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> X = np.linspace(-1, 1, 50).reshape(-1, 1)
    >>> y = 3 * X[:, 0] - 1
    >>> res = fb.fit(fb.Network(1, fb.Dense(1)), X, y, method="sgd", lr=0.1, seed=0)
    >>> res.params.round(4)
    array([ 3., -1.])
    >>> round(res.score(X, y), 4), res.history["loss"].shape
    (1.0, (100,))
    """
    if not isinstance(net, Network):
        raise TypeError(f"net is {type(net).__name__}, expected fastbp.Network; fit(net, X, y)")
    require_free(net)
    rule = _method(method, options)
    if isinstance(rule, str):
        _require_no_dropout(net, rule)
    epochs = whole_number("epochs", epochs)
    if on_divergence not in ("raise", "return"):
        raise ValueError(unknown_name("on_divergence", on_divergence, ("raise", "return")))
    seed = _seed(seed)
    init_seed, order_seed, dropout_seed = np.random.SeedSequence(seed).spawn(3)
    _require_finite_target(y)
    obj = net.objective(
        X, y, loss, sample_weight=sample_weight, l2=l2, l1=l1, group=group, threads=threads,
        backend=backend,
    )  # fmt: skip
    batch = _batch_size(batch_size, obj, rule if isinstance(rule, str) else None)
    # After the conversion: what is too large for float32 is infinite there.
    require_finite("X", obj.problem.X)
    require_finite("y", obj.problem.targets)
    start = net.init(init_seed) if params is None else _start(net, params)
    if isinstance(rule, str):
        result = _full_batch(obj, rule, start, epochs, seed, options)
    else:
        shuffled = shuffle and batch < len(obj.problem.X)
        rng = np.random.default_rng(order_seed) if shuffled else None
        noise = int(dropout_seed.generate_state(1, np.uint64)[0])
        result = _first_order(obj, rule, start, epochs, batch, rng, noise, seed)
    if result.status == DIVERGED and on_divergence == "raise":
        raise DivergenceError(result.message, result)
    return result


# Arguments.


def _method(method: Any, options: dict[str, Any]) -> FirstOrder | str:
    """The first-order method with its options, or the name of a full-batch one."""
    if isinstance(method, FirstOrder):
        return with_options(method, options, _ARGUMENTS)
    if not isinstance(method, str):
        raise TypeError(f"method is {method!r}, expected a name or such as fastbp.Adam(lr=0.01)")
    if method in METHODS:
        return with_options(METHODS[method], options, _ARGUMENTS)
    for name in FULL_BATCH:
        if name.lower() == method.lower():
            return name
    raise ValueError(unknown_name("method", method, (*METHODS, *FULL_BATCH)))


def _batch_size(batch_size: Any, obj: Objective, full_batch_method: str | None) -> int:
    n = len(obj.problem.X)
    if batch_size is None:
        return n
    if isinstance(batch_size, str):
        if batch_size != "auto":
            raise ValueError(f"batch_size is {batch_size!r}, expected 'auto', None or a number")
        return n if full_batch_method else min(32, n)
    batch = whole_number("batch_size", batch_size)
    if full_batch_method:
        raise ValueError(
            f"batch_size is {batch_size} with method {full_batch_method!r}, which takes all rows "
            f"at once; leave batch_size out, or take a minibatch method: {', '.join(METHODS)}"
        )
    if obj.loss.paired and batch % 2:
        raise ValueError(
            f"batch_size is {batch}, expected an even number of rows: loss {obj.loss.name!r} is of "
            f"pairs of rows, which stay together"
        )
    return min(batch, n)


def _require_no_dropout(net: Network, method: str) -> None:
    for k, layer in enumerate(net.layers):
        if layer.dropout:
            raise ValueError(
                f"layer {k} has dropout={layer.dropout:g}, but method {method!r} needs the same "
                f"objective at every step; dropout takes a minibatch method "
                f"({', '.join(METHODS)}), if need be with batch_size=None"
            )


def _seed(seed: Any) -> int:
    if seed is None:
        return secrets.randbits(53)  # survives JSON and spreadsheets
    return whole_number("seed", seed, least=0)


def _require_finite_target(y: Any) -> None:
    """Say so if y holds NaN, which else would come out as a label that is out of range."""
    try:
        array = np.asarray(y)
    except ValueError:  # the objective says what is wrong with it
        return
    if array.dtype.kind == "f" and array.ndim:
        require_finite("y", array)


def _start(net: Network, params: Any) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(net._params(params)))
    start = np.array(net._vector(params))
    if bad.size:
        raise NonFiniteError(
            f"params holds {start[bad[0]]} at entry {bad[0]}, expected finite numbers; "
            f"start from net.init(seed)"
        )
    return start


_AT_START = (
    " at the initial parameters, or its gradient overflows; scale X and y to about unit size, or "
    "start from smaller parameters"
)


# First-order methods.


def _first_order(
    obj: Objective,
    method: FirstOrder,
    start: np.ndarray,
    epochs: int,
    batch_size: int,
    rng: np.random.Generator | None,
    noise: int,
    seed: int,
) -> FitResult:
    out = loop.train(obj, method, obj.net._params(start), epochs, batch_size, rng, noise)
    nit = len(out.losses)
    if out.interrupted:
        status, message = INTERRUPTED, f"interrupted (Ctrl-C) after {_counted(nit, 'epoch')}"
    elif out.code != contract.DONE:
        status, message = DIVERGED, _divergence(obj, method, start, batch_size, out)
    else:
        status, message = FINISHED, f"all {_counted(nit, 'epoch')} done"
    return _result(
        obj,
        start,
        out.params,
        status,
        message,
        nit,
        out.steps,
        seed,
        out.losses,
        epoch=out.epoch,
        loss=out.loss,
    )


def _divergence(
    obj: Objective, method: FirstOrder, start: np.ndarray, batch_size: int, out: loop.Outcome
) -> str:
    """Where and how the run diverged, and what to do about it."""
    where = f"fit diverged in epoch {out.epoch} (step {out.steps} of the run)"
    if out.code == contract.NON_FINITE_OBJECTIVE:
        what = f"the objective is {out.loss:g}"
        if out.steps == 1:
            return f"{where}: {what}{_AT_START}"
    elif out.code == contract.NON_FINITE_PARAMETERS:
        what = f"the parameters are no longer finite after an objective of {out.loss:g}"
    else:
        what = (
            f"the objective, {out.loss:g}, has been over {contract.GROWTH_LIMIT:g} times the first "
            f"one for {contract.GROWTH_EPOCHS} epochs"
        )
    return (
        f"{where} with lr={method.lr:g}: {what}; take a smaller rate"
        f"{_stable_rate(obj, method, start, batch_size, out)} or scale X and y to about unit size"
    )


def _stable_rate(
    obj: Objective, method: FirstOrder, start: np.ndarray, batch_size: int, out: loop.Outcome
) -> str:
    """The largest rate that would not diverge, in parentheses, if it is known and explains it."""
    if not (isinstance(method, SGD) and obj.loss.least_squares):
        return ""
    limit = method.stable_limit
    # Where curvature has grown on the way, the start does not explain it.
    for place, params in (("initial", start), ("last good", out.params)):
        curvature = loop.curvature(obj, params, batch_size)
        if 0 < limit / method.lr < curvature < np.inf:
            bound = (
                "the largest stable one is"
                if batch_size == len(obj.problem.X)
                else "none is stable above"
            )
            return (
                f" ({bound} about {limit / curvature:.4g} = {limit:.4g}/λ_max, λ_max = "
                f"{curvature:.4g} being the largest curvature at the {place} parameters)"
            )
    return ""


# Full-batch methods.


class _Trace:
    """A callback that keeps the objective after each iteration and the last finite iterate."""

    def __init__(self, obj: Objective, start: np.ndarray):
        self._obj = obj
        self.params = start
        self.losses: list[float] = []

    def __call__(self, intermediate_result: Any) -> None:
        if isinstance(intermediate_result, np.ndarray):  # TNC tells no value
            x, loss = intermediate_result, self._obj.value(intermediate_result)
        elif "cost" in intermediate_result:  # half the sum of squared residuals
            x = intermediate_result.x
            loss = 2 * self._obj.problem.scale * float(intermediate_result.cost)
        else:
            x, loss = intermediate_result.x, float(intermediate_result.fun)
        self.losses.append(loss)
        if np.isfinite(loss):
            self.params = np.array(x)


def _full_batch(
    obj: Objective, method: str, start: np.ndarray, epochs: int, seed: int, options: dict[str, Any]
) -> FitResult:
    if "callback" in options:
        raise TypeError(
            "callback is not an option of fit, which records each iteration's objective in "
            "history; fastbp.optimize.minimize and least_squares take one"
        )
    double = obj.astype(FLOAT64)
    per_cost = 2 * double.problem.scale  # of half a sum of squares
    x0 = double.net._params(start).copy()
    loss, grad = double.value_and_grad(x0)
    if not (np.isfinite(loss) and np.isfinite(grad).all()):
        message = f"{method} cannot start: the objective is {loss:g}{_AT_START}"
        return _result(obj, start, start, DIVERGED, message, 0, 1, seed, [], loss=loss)
    trace = _Trace(double, x0)
    search = _least_squares if method in LEAST_SQUARES else _minimize
    try:
        with np.errstate(all="ignore"):  # what overflows on the way is backed off from, or told
            found = search(double, x0, method, epochs, trace, options)
    except KeyboardInterrupt:
        nit = len(trace.losses)
        message = f"interrupted (Ctrl-C) after {_counted(nit, 'iteration')}"
        return _result(obj, start, trace.params, INTERRUPTED, message, nit, nit, seed, trace.losses)
    loss = found.cost * per_cost if method in LEAST_SQUARES else found.fun
    nit = len(trace.losses) if method in LEAST_SQUARES else found.nit
    if not (np.isfinite(loss) and np.isfinite(found.x).all()):
        status, params = DIVERGED, trace.params
        message = (
            f"{method} diverged in iteration {nit}: the objective is {loss:g}; start from other "
            f"parameters or scale X and y to about unit size"
        )
    else:
        status, params, message = FINISHED, found.x, str(found.message)
        if not found.success:
            spent = found.nfev if method in (*LEAST_SQUARES, "TNC") else nit
            status = LIMIT if spent >= epochs else STUCK
    return _result(obj, start, params, status, message, nit, found.nfev, seed, trace.losses)


def _minimize(
    obj: Objective, x0: np.ndarray, method: str, epochs: int, trace: _Trace, options: dict[str, Any]
) -> Any:
    limits = {"maxfun" if method == "TNC" else "maxiter": epochs}
    if method == "L-BFGS-B":  # its own limit of 15000 may come first; maxls is 20
        limits["maxfun"] = 21 * epochs
    return optimize.minimize(obj, x0, method=method, callback=trace, **(limits | options))


def _least_squares(
    obj: Objective, x0: np.ndarray, method: str, epochs: int, trace: _Trace, options: dict[str, Any]
) -> Any:
    from scipy.optimize import least_squares

    options = {"max_nfev": epochs} | options
    if "callback" in inspect.signature(least_squares).parameters:  # SciPy 1.16
        return optimize.least_squares(obj, x0, method=method, callback=trace, **options)
    trace.losses.append(obj.value(x0))
    found = optimize.least_squares(obj, x0, method=method, **options)
    trace.losses.append(2 * obj.problem.scale * float(found.cost))
    return found


# Results.


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _result(
    obj: Objective,
    start: np.ndarray,
    found: np.ndarray,
    status: int,
    message: str,
    nit: int,
    nfev: int,
    seed: int,
    losses: Any,
    epoch: int | None = None,
    loss: float | None = None,
) -> FitResult:
    params, free = start.copy(), obj.net.free
    params[free] = found[free]
    fun, grad = obj.value_and_grad(params)
    losses = np.array(losses, np.float64)
    if loss is None:
        loss = float(losses[-1]) if len(losses) else float("nan")
    return FitResult(
        params=params,
        fun=fun,
        grad=grad,
        success=status == FINISHED,
        status=status,
        message=message,
        nit=nit,
        nfev=nfev,
        seed=seed,
        history={"loss": losses},
        epoch=nit if epoch is None else epoch,
        step=nfev,
        loss=loss,
        net=obj.net,
        loss_function=obj.loss,
    )


# What `fit` takes itself: suggested where an option is misspelt.
_ARGUMENTS = tuple(
    name for name, p in inspect.signature(fit).parameters.items() if p.kind is p.KEYWORD_ONLY
)
