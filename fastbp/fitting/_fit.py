"""`fit`: checks its arguments, prepares the data, runs a method, and makes the result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import backends
from ..common.arrays import whole_number
from ..common.errors import DivergenceError, unknown_name
from ..common.terminal import progress_shown
from ..maths.losses import Loss
from ..networks.network import Network
from ..optimize.free_coordinates import require_free
from ..reports.words import Status
from ..training import state as states
from ..training.callbacks import Epoch, Observer
from ..training.optimizers import FirstOrder
from ..training.progress import progress_bar
from . import full_batch, minibatch
from .arguments import (
    INITIAL,
    checked_batch_size,
    checked_callbacks,
    checked_flag,
    checked_limits,
    checked_method,
    checked_seed,
    checked_start,
    child_seed,
    one_of,
    positive_or_inf,
    prepared_data,
    require_full_batch,
    require_unscaled,
)
from .covariance import FittedProblem
from .minibatch import StepOptions
from .result import FitResult
from .task import FitTask, MethodResult


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
    scale: str | None = None,
    validation: Any = None,
    patience: int | None = None,
    goal: float | None = None,
    tol: float | None = None,
    max_time: float | None = None,
    clip_norm: float | None = None,
    average: bool = False,
    callbacks: Callable[[Epoch], Any] | Iterable[Callable[[Epoch], Any]] = (),
    progress: bool | str = "auto",
    threads: int = 1,
    on_divergence: str = "raise",
    state: dict[str, Any] | None = None,
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
    method : str, FirstOrder or LM, default "adam"
        "sgd", "momentum" (0.9), "nesterov" (0.9), "adam", "adamw", "rmsprop" and "adagrad", or
        ``fb.SGD(...)``, ``fb.Adam(...)`` and so on, take steps on minibatches with PyTorch's rules
        and defaults. Full-batch methods are "lm" (Levenberg-Marquardt, for least-squares losses;
        also as ``fb.LM(...)``), "scg" (scaled conjugate gradients), "fmincg" (conjugate gradients),
        SciPy's "L-BFGS-B", "BFGS", "CG", "TNC" and "SLSQP", with exact second
        derivatives "Newton-CG", "trust-ncg", "trust-krylov", "trust-constr", "trust-exact" and
        "dogleg", and for least-squares losses "trf" and "dogbox"; they compute in float64 and round
        at the end. Dropout, `clip_norm` and `average` need a minibatch method.
    loss : str or Loss, default "mse"
        A name of the list in `Network.objective`'s notes, or a loss made by `fastbp.huber`,
        `fastbp.quantile`, `fastbp.margin_ranking` or `fastbp.custom_loss`. A batch of B rows is
        divided by B times the mean weight of all data, so that its gradient is unbiased; "sse"
        is not divided.
    params : array_like (n_params,), optional
        The initial parameters, not modified; by default ``net.init`` of the first child seed. No
        method changes masked or frozen entries; masked ones may hold anything.
    epochs : int, default 100
        Passes over the data, those before `state` included; for full-batch methods the maximum
        number of iterations.
    batch_size : int, None or "auto"
        Rows of a step; the last batch of an epoch has the remaining rows. None is all rows; "auto"
        is 32 for minibatch methods and all rows for full-batch methods, which take no number. For
        "margin_ranking" it must be even.
    shuffle : bool, default True
        Draw a new order of the rows, or pairs of rows, for every epoch. Without it, or with all
        rows in one batch, their order stays.
    seed : int, optional
        Four child seeds of ``numpy.random.SeedSequence(seed).spawn(4)`` draw the initial
        parameters, the orders of rows, the dropout and the rows held out, the same on every
        backend. By default a new one, which the result has.
    sample_weight : array_like (n,), optional
        Weights >= 0, for "margin_ranking" one per pair, (n/2,); all 1 by default.
    l2, l1, group : float, default 0.0
        Add l2/2·‖W‖², l1·Σ|W_ij| and group·Σ_j ‖W_:j‖₂ over weights, never biases, to the objective
        of every batch. Least-squares methods take l2 alone.
    scale : {"standard", "minmax"}, optional
        Bring the columns of X, and of y for losses of plain values, to mean 0 and deviation 1, or
        to [0, 1], and fold that into the result, so that its parameters take raw data. The rates,
        penalties, `goal` and the history are about scaled data, `fun` and `grad` about raw data.
        With a user-defined loss y is not scaled. The first layer must have a bias, and for y the
        last one must be linear; no entry of these layers may be frozen.
    validation : float or tuple, optional
        A fraction of the rows to hold out, drawn with the seed, or (X, y) or (X, y, sample_weight).
        ``history["val_loss"]`` has their objective, without penalties and dropout, at the end of
        every epoch or iteration.
    patience : int, optional
        Stop after so many epochs without progress, and return the best parameters met. Progress is
        measured by the validation's objective or, for minibatch methods without one, by the epoch's
        mean objective.
    goal : float, optional
        Stop at the end of the first epoch whose mean objective is not above it.
    tol : float, optional
        Progress is a decrease by more than tol times the value that `patience` watches; without
        patience it means ``patience=10``. For full-batch methods it is the method's tolerance.
    max_time : float, optional
        Stop after so many seconds, within about 0.1 s or one step.
    clip_norm : float, optional
        Scale the gradient down so that its norm, over all free parameters, is at most this [1]_.
    average : bool, default False
        Return the mean of the parameters after each step of the last half of the run [2]_;
        validation and callbacks see it as soon as it has begun.
    callbacks : callable or iterable of callables, optional
        Called at the end of every epoch or iteration with one argument that has the attributes
        ``epoch``, ``loss``, ``val_loss``, ``rate``, ``elapsed``, ``net``, ``params`` (a new vector)
        and ``state``. Returning True stops the fit. `fastbp.checkpoint` makes one.
    progress : {"auto", True, False}
        A progress bar on stderr: on a terminal or in a notebook if the fit takes over about two
        seconds, at once, or never. The same holds for a line if the Numba backend has to compile.
    threads : int, default 1
        How many threads share the work of a batch of more than 256 rows; smaller batches use one.
        The result does not depend on it.
    on_divergence : {"raise", "return"}
        What to do when the objective, its gradient or the parameters are no longer finite, or the
        mean objective of 3 epochs in a row is over 1e6 times the first one's absolute value.
    state : dict, optional
        `FitResult.state` of a run that was stopped, or the state that `fastbp.load` returned:
        continue as if it had not been stopped. The other arguments must be those of that run, but
        `epochs`, limits, callbacks and the method's numbers may differ, and `params` and `seed` may
        be left out.
    backend : {"c", "numba", "numpy"}, optional
        The current one by default.
    **options
        Numbers of the method, such as ``lr`` (a number, or a function of the epoch such as those of
        `fastbp.schedules`), ``momentum``, ``betas``, ``eps`` and ``weight_decay``; they replace
        those of a method object. For full-batch methods the options of `fastbp.optimize`;
        ``bounds``, where the method takes them, may be (lower, upper), numbers or vectors, or a
        pair per parameter, and a start outside is moved to the nearest point within. They exclude
        `scale`.

    Returns
    -------
    FitResult
        Also after Ctrl-C, with ``status`` 4 and the parameters reached.

    Raises
    ------
    ShapeError, TypeError, ValueError
        For shapes that do not fit, arrays that are not real, unknown names and options, numbers
        out of range, what a method or loss cannot take, a state of another network, method or run,
        and a network without free parameters.
    MemoryError
        If the matrices that a full-batch method holds are larger than the machine's memory; the
        message says how large.
    NonFiniteError
        If X, y or params hold NaN or infinity; the message says where.
    DivergenceError
        As `on_divergence` says. Its ``result`` has the epoch, the step, the loss and the last good
        parameters, and the message, for SGD on a least-squares loss, the largest stable rate.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural
       networks", ICML 2013.
    .. [2] B. T. Polyak, A. B. Juditsky, "Acceleration of stochastic approximation by averaging",
       SIAM Journal on Control and Optimization 30(4), 1992.

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
    method, options = checked_method(method, options, _ARGUMENTS)
    if method == "lm":
        patience = one_of("patience", patience, "max_fail", options.pop("max_fail", None))
        max_time = one_of("max_time", max_time, "time", options.pop("time", None))
    epochs = whole_number("epochs", epochs)
    if on_divergence not in ("raise", "return"):
        raise ValueError(unknown_name("on_divergence", on_divergence, ("raise", "return")))
    limits = checked_limits(method, epochs, validation, patience, goal, tol)
    clip_norm = positive_or_inf("clip_norm", clip_norm)
    shuffle, average = checked_flag("shuffle", shuffle), checked_flag("average", average)
    if isinstance(method, str):
        require_full_batch(net, method, clip_norm, average, state)
        require_unscaled(method, scale, options)
    callbacks = checked_callbacks(callbacks)
    bar = progress_bar(progress, epochs)
    observer = Observer(net, callbacks, positive_or_inf("max_time", max_time), bar)
    seed = checked_seed(seed, state)
    if state is not None:
        states.require_same(state, {"network": states.fingerprint(net), "scale": scale})
        params = states.array(state, "start", (net.n_params,), net.dtype)
    data = prepared_data(
        net,
        X,
        y,
        sample_weight,
        loss,
        seed=seed,
        validation=validation,
        scale=scale,
        scalers=None if state is None or scale is None else states.scalers(state),
        terms={"l2": l2, "l1": l1, "group": group, "threads": threads, "backend": backend},
    )
    batch = checked_batch_size(batch_size, data.training, method)
    # Initial parameters are drawn for scaled columns, whose units are about 1; the caller's are for
    # raw ones.
    if params is None:
        start = net.init(child_seed(seed, INITIAL))
        data.start = data.to_raw(start)
    else:
        data.start = checked_start(net, params)
        start = data.to_scaled(data.start)
    task = FitTask(data, method, start, limits, observer, seed, options, state)
    try:
        with progress_shown(progress):
            if isinstance(method, str):
                end = full_batch.run(task)
            else:
                end = minibatch.run(task, StepOptions(batch, shuffle, clip_norm, average))
            result = _fit_result(net, task, end)
    finally:
        observer.close()
    if result.status == Status.DIVERGED and on_divergence == "raise":
        raise DivergenceError(result.message, result)
    return result


def _fit_result(net: Network, task: FitTask, end: MethodResult) -> FitResult:
    """The result for raw columns and in the network's dtype."""
    data, raw = task.data, task.data.raw
    assert data.start is not None
    params = data.to_raw(end.params)
    value_and_grad = end.value_and_grad
    if value_and_grad is None or raw is not data.training or params.dtype != end.params.dtype:
        value_and_grad = raw.value_and_grad(params)
    fun, grad = value_and_grad
    history = {"loss": np.array(end.losses, np.float64)}
    if data.validation is not None:
        history["val_loss"] = np.array(end.validation, np.float64)
    method = str(task.method)
    return FitResult(
        params=params,
        fun=fun,
        grad=grad,
        success=end.status == Status.FINISHED,
        status=end.status,
        message=end.message,
        nit=len(end.losses),
        nfev=end.nfev,
        seed=task.seed,
        history=history | end.history,
        state=end.state,
        epoch=end.epoch,
        step=end.nfev,
        loss=end.loss,
        elapsed=task.observer.elapsed,
        method=method,
        backend=backends.name_of(raw.backend),
        n_rows=len(raw.problem.X),
        scale=data.scale,
        net=net,
        loss_function=raw.loss,
        fitted=FittedProblem(
            raw, data.start, data.x_scaler, data.y_scaler, method, task.options, end.l2
        ),
    )


# The names of `fit`'s arguments, which are suggested where an option is misspelt.
_ARGUMENTS = tuple(
    name for name, p in inspect.signature(fit).parameters.items() if p.kind is p.KEYWORD_ONLY
)
