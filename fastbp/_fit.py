"""`fit`: the one door to all fitting methods."""

from __future__ import annotations

import inspect
import math
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _full_batch as full_batch, backends
from ._arrays import all_finite, number, require_finite, whole_number
from ._errors import DivergenceError, NonFiniteError, unknown_name
from ._fitted import Fitted
from ._full_batch import METHODS as FULL_BATCH
from ._lm import LM
from ._objective import Objective
from ._result import DIVERGED, FINISHED, INTERRUPTED, LIMIT, STOPPED, FitResult
from ._terminal import progress_shown
from ._trace import AT_START, Limits, counted, no_progress
from .backends import contract
from .backends.contract import Recipe
from .losses import Loss, loss as loss_of
from .network import Network
from .optimize._free import require_free
from .training import loop, progress as progress_bar, state as states
from .training.data import Data, Rows, prepare
from .training.optimizers import METHODS, SGD, FirstOrder, with_options
from .training.watch import INTERRUPT, TIME_IS_UP, Epoch, Watch

# Which child seed draws what.
INITIAL, ORDER, DROPOUT, HELD_OUT = range(4)
# Epochs that may pass without progress where only `tol` was given.
PATIENCE = 10


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
        A name of the list in `Network.objective`'s notes, or what `fastbp.huber`,
        `fastbp.quantile`, `fastbp.margin_ranking` and `fastbp.custom_loss` make. A batch of B rows
        is divided by B times the mean weight of all data, so that its gradient is unbiased; "sse"
        is not divided.
    params : array_like (n_params,), optional
        Where to start, not modified; by default ``net.init`` of the first child seed. No method
        changes masked or frozen entries; masked ones may hold anything.
    epochs : int, default 100
        Passes over the data, those before `state` included; for full-batch methods the most
        iterations.
    batch_size : int, None or "auto"
        Rows of a step; the last batch of an epoch has what is left. None is all of them, and
        "auto" 32 for the minibatch methods, all for the others, which take no number. For
        "margin_ranking" it must be even.
    shuffle : bool, default True
        Draw a new order of the rows, or pairs of rows, for every epoch. Without it, or with all
        rows in one batch, they come as stored.
    seed : int, optional
        Four child seeds of ``numpy.random.SeedSequence(seed).spawn(4)`` draw the initial
        parameters, the orders of rows, the dropout and the rows held out, the same on every
        backend. By default a new one, kept in the result.
    sample_weight : array_like (n,), optional
        Weights >= 0, for "margin_ranking" one per pair, (n/2,); all 1 by default.
    l2, l1, group : float, default 0.0
        Add l2/2·‖W‖², l1·Σ|W_ij| and group·Σ_j ‖W_:j‖₂ over weights, never biases, to the objective
        of every batch. Least-squares methods take l2 alone.
    scale : {"standard", "minmax"}, optional
        Bring the columns of X, and of y for losses of plain values, to mean 0 and deviation 1, or
        to [0, 1], and fold that into the result, so that its parameters take raw data. The rates,
        penalties, `goal` and the history are about scaled data, `fun` and `grad` about raw ones.
        A loss of the user's own leaves y as it is. It needs a bias in the first layer, for y a
        linear last one, and nothing frozen in these.
    validation : float or tuple, optional
        A fraction of the rows to hold out, drawn with the seed, or (X, y) or (X, y, sample_weight).
        Their objective, without penalties and dropout, is taken at the end of every epoch or
        iteration: ``history["val_loss"]``.
    patience : int, optional
        Stop after so many epochs without progress, and return the best parameters met. Watched is
        the validation's objective or, for minibatch methods without one, the epoch's mean
        objective.
    goal : float, optional
        Stop at the end of the first epoch whose mean objective is not above it.
    tol : float, optional
        Progress must be by more than tol times the watched value; alone it means ``patience=10``.
        For full-batch methods their own tolerance.
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
        seconds, at once, or never. So is a line if the Numba backend has to compile.
    threads : int, default 1
        How many threads of the C backend share the work of a batch of more than 256 rows; smaller
        ones have no use for them. The other backends run on one. The result does not depend on it.
    on_divergence : {"raise", "return"}
        What to do when the objective, its gradient or the parameters are no longer finite, or the
        mean objective of 3 epochs in a row is over 1e6 times the first one's absolute value.
    state : dict, optional
        `FitResult.state` of a run that was stopped, or what `fastbp.load` gave as such: go on as if
        it had not been. The other arguments are those of that run; `epochs`, limits, callbacks and
        the method's numbers may be others, `params` and `seed` need not be given again.
    backend : {"c", "numba", "numpy"}, optional
        The current one by default.
    **options
        Numbers of the method, such as ``lr`` (a number, or a function of the epoch such as those of
        `fastbp.schedules`), ``momentum``, ``betas``, ``eps`` and ``weight_decay``; they go before
        the method's own. For full-batch methods what `fastbp.optimize` takes; ``bounds``, where the
        method knows them, may be (lower, upper), numbers or vectors, or a pair per parameter, and
        a start outside is moved to the nearest point within. They exclude `scale`.

    Returns
    -------
    FitResult
        Also after Ctrl-C, with ``status`` 4 and what had been reached.

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
    rule, options = _method(method, options)
    if rule == "lm":
        patience = _one_of("patience", patience, "max_fail", options.pop("max_fail", None))
        max_time = _one_of("max_time", max_time, "time", options.pop("time", None))
    epochs = whole_number("epochs", epochs)
    if on_divergence not in ("raise", "return"):
        raise ValueError(unknown_name("on_divergence", on_divergence, ("raise", "return")))
    ending = _ending(rule, validation, patience, goal, tol)
    clip_norm = _positive("clip_norm", clip_norm)
    shuffle, average = _flag("shuffle", shuffle), _flag("average", average)
    if isinstance(rule, str):
        _require_full_batch(net, rule, clip_norm, average, state)
        _require_unscaled(rule, scale, options)
    told = _callbacks(callbacks)
    bar = progress_bar.bar(progress, epochs)
    watch = Watch(net, told, _positive("max_time", max_time), bar)
    seed = _seed(seed, state)
    if state is not None:
        states.require_same(state, {"network": states.fingerprint(net), "scale": scale})
        params = states.array(state, "start", (net.n_params,), net.dtype)
    loss = loss_of(loss)
    if loss.target != "values":
        _require_finite_target(y)
    terms = {"l2": l2, "l1": l1, "group": group, "threads": threads, "backend": backend}
    data = prepare(
        net,
        Rows(X, y, sample_weight),
        loss,
        validation=validation,
        seed=lambda: _child(seed, HELD_OUT),
        scale=scale,
        scalers=None if state is None or scale is None else states.scalers(state),
        terms=terms,
    )
    call = _Call(data, rule, epochs, seed, watch, ending, options)
    batch = _batch_size(batch_size, data.training, rule if isinstance(rule, str) else None)
    # Drawn for scaled columns, where units are about 1, but given for raw ones.
    if params is None:
        inside = net.init(_child(seed, INITIAL))
        data.start = data.outside(inside)
    else:
        data.start = _start(net, params)
        inside = data.inside(data.start)
    try:
        with progress_shown(progress):
            if isinstance(rule, str):
                result = _by_full_batch(call, inside, options, state)
            else:
                result = _by_steps(call, inside, batch, shuffle, clip_norm, average, state)
    finally:
        watch.close()
    if result.status == DIVERGED and on_divergence == "raise":
        raise DivergenceError(result.message, result)
    return result


# Arguments.


@dataclass(frozen=True)
class _Ending:
    """When to stop before the last epoch."""

    goal: float
    patience: int | None
    tol: float | None


@dataclass(eq=False)
class _Call:
    """What every part of a call needs."""

    data: Data
    rule: FirstOrder | str
    epochs: int
    seed: int
    watch: Watch
    ending: _Ending
    options: dict[str, Any]


def _ending(rule: FirstOrder | str, validation: Any, patience: Any, goal: Any, tol: Any) -> _Ending:
    if patience is not None:
        patience = whole_number("patience", patience)
        if isinstance(rule, str) and validation is None:
            raise ValueError(
                f"patience is {patience}, but method {rule!r} never lets the objective rise, so "
                f"that there is nothing to watch; pass validation=0.2, or goal or tol instead"
            )
    goal = -np.inf if goal is None else number("goal", goal)
    if math.isnan(goal):
        raise ValueError("goal is nan, expected the objective at which to stop")
    if tol is not None:
        tol = number("tol", tol)
        if not 0 <= tol < np.inf:
            raise ValueError(f"tol is {tol}, expected a finite number >= 0, such as 1e-4")
        if patience is None and not isinstance(rule, str):
            patience = PATIENCE
    return _Ending(goal, patience, tol)


def _positive(name: str, value: Any) -> float:
    """A positive number; None is infinity."""
    if value is None:
        return np.inf
    limit = number(name, value)
    if not limit > 0:
        raise ValueError(f"{name} is {limit:g}, expected a positive number, or None for no limit")
    return limit


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}, expected True or False")
    return bool(value)


def _callbacks(callbacks: Any) -> tuple[Callable[[Epoch], Any], ...]:
    found = (callbacks,) if callable(callbacks) else callbacks
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise TypeError(f"callbacks is {callbacks!r}, expected functions of one argument")
    found = tuple(found)
    for callback in found:
        if not callable(callback):
            raise TypeError(f"callbacks holds {callback!r}, expected functions of one argument")
    return found


def _method(method: Any, options: dict[str, Any]) -> tuple[FirstOrder | str, dict[str, Any]]:
    """The first-order method with its options, or the name of a full-batch one and its options."""
    if isinstance(method, FirstOrder):
        return with_options(method, options, _ARGUMENTS), options
    if isinstance(method, LM):
        full_batch.require_options("lm", options, _ARGUMENTS)
        return "lm", vars(method) | options
    if not isinstance(method, str):
        raise TypeError(f"method is {method!r}, expected a name or such as fastbp.Adam(lr=0.01)")
    if method in METHODS:
        return with_options(METHODS[method], options, _ARGUMENTS), options
    for name in FULL_BATCH:
        if name.lower() == method.lower():
            full_batch.require_options(name, options, _ARGUMENTS)
            return name, options
    raise ValueError(unknown_name("method", method, (*METHODS, *FULL_BATCH)))


def _one_of(name: str, value: Any, other: str, same: Any) -> Any:
    """What was given under either of two names."""
    if value is not None and same is not None:
        raise TypeError(f"{name} and {other} were both given, and mean the same; pass one of them")
    return same if value is None else value


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


def _require_full_batch(
    net: Network, method: str, clip_norm: float, average: bool, state: Any
) -> None:
    """Raise for what only steps on batches know."""
    minibatch = ", ".join(METHODS)
    if clip_norm < np.inf or average:
        what = f"clip_norm={clip_norm:g}" if clip_norm < np.inf else "average=True"
        raise ValueError(
            f"{what} with method {method!r}, which chooses its own steps; leave it out, or take a "
            f"minibatch method: {minibatch}"
        )
    if state is not None and method not in full_batch.CONTINUED:
        raise ValueError(
            f"method {method!r} keeps no state to go on from; start it from what was reached, "
            f"params=res.params, or take one of {minibatch}"
        )
    for k, layer in enumerate(net.layers):
        if layer.dropout:
            raise ValueError(
                f"layer {k} has dropout={layer.dropout:g}, but method {method!r} needs the same "
                f"objective at every step; dropout takes a minibatch method "
                f"({minibatch}), if need be with batch_size=None"
            )


def _require_unscaled(method: str, scale: Any, options: dict[str, Any]) -> None:
    """Raise for limits on parameters that stand for something else inside."""
    for name in ("bounds", "constraints"):
        if scale is not None and options.get(name) is not None:
            raise ValueError(
                f"{name} with scale={scale!r}: method {method!r} would keep to them for scaled "
                f"columns, and the parameters for raw ones would be others; scale X and y "
                f"beforehand, or leave one of them out"
            )


def _seed(seed: Any, state: Any) -> int:
    if state is not None:
        states.require_same(state, {})
        kept = int(states.number(state, "seed"))
        if seed is not None and seed != kept:
            raise ValueError(
                f"seed is {seed}, but state goes on with seed {kept}; leave one of them out"
            )
        return kept
    if seed is None:
        return secrets.randbits(53)  # survives JSON and spreadsheets
    return whole_number("seed", seed, least=0)


def _child(seed: int, number: int) -> np.random.SeedSequence:
    """What ``SeedSequence(seed).spawn`` gives under this number, without the others."""
    return np.random.SeedSequence(seed, spawn_key=(number,))


def _require_finite_target(y: Any) -> None:
    """Say so if y is not finite, which else would come out as a target that is out of range."""
    try:
        array = np.asarray(y)
    except ValueError:  # the objective says what is wrong with it
        return
    if array.dtype.kind == "f" and array.ndim:
        require_finite("y", array)


def _start(net: Network, params: Any) -> np.ndarray:
    start = np.array(net._vector(params))
    used = net._params(start)
    if not all_finite(used):
        bad = np.flatnonzero(~np.isfinite(used))[0]
        raise NonFiniteError(
            f"params holds {start[bad]} at entry {bad}, expected finite numbers; "
            f"start from net.init(seed)"
        )
    return start


# First-order methods.


def _by_steps(
    call: _Call,
    inside: np.ndarray,
    batch_size: int,
    shuffle: bool,
    clip_norm: float,
    average: bool,
    state: dict[str, Any] | None,
) -> FitResult:
    data, method, ending = call.data, call.rule, call.ending
    assert isinstance(method, FirstOrder)
    obj, net = data.training, data.training.net
    n = len(obj.problem.X)
    shuffled = shuffle and batch_size < n
    steps = call.epochs * -(-n // batch_size)
    recipe = Recipe(
        method.rule,
        batch_size,
        obj.loss.averaged,
        clip_norm,
        steps // 2 if average else -1,
        None if data.validation is None else data.validation.problem,
        ending.goal,
        ending.patience or 0,
        ending.tol or 0.0,
        obj.threads,
    )
    identity = {
        "network": states.fingerprint(net),
        "method": type(method).__name__,
        "rows": n,
        "batch_size": batch_size,
        "shuffle": shuffled,
        "scale": data.scale,
        "validation_rows": data.n_held_out,
        "seed": call.seed,
    }
    noise = 0
    if net.plan.dropout is not None:
        noise = int(_child(call.seed, DROPOUT).generate_state(1, np.uint64)[0])
    run = loop.beginning(net._params(inside), recipe, method.initial_moment, noise)
    if state is not None:
        states.require_same(state, identity)
        run = states.unpacked(
            state, run, recipe.average_from, steps // call.epochs, data.validation is not None
        )
        _require_unfinished(run, steps, call.epochs)
    orders = None
    if shuffled:
        group = 2 if obj.loss.paired else 1
        orders = loop.Orders(_child(call.seed, ORDER), n, call.epochs, group, run.order)

    def state_of(progress: loop.Progress) -> dict[str, Any]:
        return states.packed(identity, recipe.average_from, progress) | states.of_data(data)

    out = loop.train(
        obj, method, recipe, run, orders, call.epochs, call.watch, data.outside, state_of
    )
    status, message = _status(call, inside, batch_size, out)
    return _result(
        call,
        out.params,
        status,
        message,
        out.losses,
        out.validation,
        nfev=out.steps,
        epoch=out.epoch,
        loss=out.loss,
        state=None if status == DIVERGED else state_of(out.progress),
    )


def _require_unfinished(run: loop.Progress, steps: int, epochs: int) -> None:
    if run.run.step >= steps:
        raise ValueError(
            f"state is of a run with {run.run.step} steps, and epochs={epochs} are {steps}: epochs "
            f"counts those before it too; pass a larger number to go on"
        )


def _status(call: _Call, start: np.ndarray, batch_size: int, out: loop.Outcome) -> tuple[int, str]:
    nit = len(out.losses)
    done = counted(nit, "epoch")
    if out.code in loop.DIVERGED:
        return DIVERGED, _divergence(call.data.training, call.rule, start, batch_size, out)
    if out.code == contract.GOAL_MET:
        return FINISHED, f"the goal of {call.ending.goal:g} was met in {done}"
    if out.code == contract.NO_PROGRESS:
        lowest = float(out.progress.run.monitor[contract.LOWEST])
        return FINISHED, no_progress(call.ending.patience or 0, "epoch", nit, lowest)
    if out.stopped == INTERRUPT:
        return INTERRUPTED, f"interrupted (Ctrl-C) after {done}"
    if out.steps >= call.epochs * -(-len(call.data.training.problem.X) // batch_size):
        return FINISHED, f"all {done} done"
    if out.stopped == TIME_IS_UP:
        return LIMIT, f"max_time is over after {done}"
    return STOPPED, f"a callback stopped the fit after {done}"


def _divergence(
    obj: Objective, method: Any, start: np.ndarray, batch_size: int, out: loop.Outcome
) -> str:
    """Where and how the run diverged, and what to do about it."""
    where = f"fit diverged in epoch {out.epoch} (step {out.steps} of the run)"
    if out.code == contract.NON_FINITE_OBJECTIVE:
        what = f"the objective is {out.loss:g}"
        if out.steps == 1:
            return f"{where}: {what}{AT_START}"
    elif out.code == contract.NON_FINITE_PARAMETERS:
        what = f"the parameters are no longer finite after an objective of {out.loss:g}"
    else:
        what = (
            f"the objective, {out.loss:g}, has been over {contract.GROWTH_LIMIT:g} times the first "
            f"one for {contract.GROWTH_EPOCHS} epochs"
        )
    return (
        f"{where} with lr={out.rate:g}: {what}; take a smaller rate"
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
        if out.rate > 0 and limit / out.rate < curvature < np.inf:
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


def _by_full_batch(
    call: _Call,
    inside: np.ndarray,
    options: dict[str, Any],
    state: dict[str, Any] | None,
) -> FitResult:
    assert isinstance(call.rule, str)
    ending, data = call.ending, call.data
    limits = Limits(call.epochs, ending.goal, ending.patience, ending.tol)
    identity = {
        "network": states.fingerprint(data.raw.net),
        "method": call.rule,
        "rows": len(data.raw.problem.X),
        "scale": data.scale,
        "validation_rows": data.n_held_out,
        "seed": call.seed,
    }
    out = full_batch.minimise(data, call.rule, inside, limits, call.watch, options, identity, state)
    return _result(
        call,
        out.params,
        out.status,
        out.message,
        out.losses,
        out.validation,
        nfev=out.nfev,
        epoch=out.nit,
        loss=out.loss,
        state=out.state,
        known=out.known,
        told=out.history,
        l2=out.l2,
    )


# Results.


def _result(
    call: _Call,
    found: np.ndarray,
    status: int,
    message: str,
    losses: Any,
    validation: Any,
    *,
    nfev: int,
    epoch: int,
    loss: float,
    state: dict[str, Any] | None,
    known: tuple[float, np.ndarray] | None = None,
    told: dict[str, np.ndarray] | None = None,
    l2: float | None = None,
) -> FitResult:
    data, raw = call.data, call.data.raw
    assert data.start is not None
    params = data.outside(found)
    if known is None or raw is not data.training or params.dtype != found.dtype:
        known = raw.value_and_grad(params)
    fun, grad = known
    history = {"loss": np.array(losses, np.float64)}
    if data.validation is not None:
        history["val_loss"] = np.array(validation, np.float64)
    history |= told or {}
    fitted = Fitted(raw, data.start, data.x_scaler, data.y_scaler, str(call.rule), call.options, l2)
    return FitResult(
        params=params,
        fun=fun,
        grad=grad,
        success=status == FINISHED,
        status=status,
        message=message,
        nit=len(history["loss"]),
        nfev=nfev,
        seed=call.seed,
        history=history,
        state=state,
        epoch=epoch,
        step=nfev,
        loss=loss,
        elapsed=call.watch.elapsed,
        method=str(call.rule),
        backend=backends.name_of(raw.backend),
        n_rows=len(raw.problem.X),
        scale=data.scale,
        net=raw.net,
        loss_function=raw.loss,
        fitted=fitted,
    )


# What `fit` takes itself: suggested where an option is misspelt.
_ARGUMENTS = tuple(
    name for name, p in inspect.signature(fit).parameters.items() if p.kind is p.KEYWORD_ONLY
)
