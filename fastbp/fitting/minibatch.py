"""First-order methods within `fit`: a run of the training loop, and how it ended in words."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..backends import contract
from ..backends.contract import TrainConfig
from ..reports.words import AT_START, Status, counted, no_progress
from ..training import loop, state as states
from ..training.callbacks import INTERRUPT, TIME_IS_UP
from ..training.optimizers import SGD, FirstOrder
from ..training.stability import batch_curvature
from .arguments import DROPOUT, ORDER, child_seed
from .task import FitTask, MethodResult


class StepOptions(NamedTuple):
    """The arguments of `fit` that only minibatch methods take, checked; clip_norm may be inf."""

    batch_size: int
    shuffle: bool
    clip_norm: float
    average: bool


def run(task: FitTask, options: StepOptions) -> MethodResult:
    """Run the first-order method of a task.

    Raises
    ------
    TypeError, ValueError
        For a state of another run, or of one that is complete.
    """
    data, method, limits = task.data, task.method, task.limits
    assert isinstance(method, FirstOrder)
    obj, batch_size = data.training, options.batch_size
    n = len(obj.problem.X)
    shuffled = options.shuffle and batch_size < n
    steps_per_epoch = -(-n // batch_size)
    steps = limits.epochs * steps_per_epoch
    config = TrainConfig(
        optimizer=method.rule,
        batch_size=batch_size,
        averaged=obj.loss.averaged,
        clip_norm=options.clip_norm,
        average_from=steps // 2 if options.average else -1,
        validation=None if data.validation is None else data.validation.problem,
        goal=limits.goal,
        patience=limits.patience or 0,
        tol=limits.tol or 0.0,
        threads=obj.threads,
    )
    loop_state = _initial_state(task, config)
    identity = task.identity | {"batch_size": batch_size, "shuffle": shuffled}
    if task.saved_state is not None:
        states.require_same(task.saved_state, identity)
        validated = data.validation is not None
        loop_state = states.from_dict(
            task.saved_state, loop_state, config.average_from, steps_per_epoch, validated
        )
        _require_unfinished(loop_state, steps, limits.epochs)
    shuffler = None
    if shuffled:
        group = 2 if obj.loss.paired else 1
        seed = child_seed(task.seed, ORDER)
        shuffler = loop.Shuffler(seed, n, limits.epochs, group, loop_state.order)

    def state_of(checkpoint: loop.LoopState) -> dict[str, Any]:
        return states.to_dict(identity, config.average_from, checkpoint) | states.data_entries(data)

    out = loop.train(
        obj, method, config, loop_state, shuffler, limits.epochs, task.observer, data.to_raw,
        state_of,
    )  # fmt: skip
    status, message = _status(task, batch_size, out)
    return MethodResult(
        out.params,
        status,
        message,
        nfev=out.steps,
        epoch=out.epoch,
        loss=out.loss,
        losses=out.losses,
        validation=out.validation,
        state=None if status == Status.DIVERGED else state_of(out.state),
    )


def _initial_state(task: FitTask, config: TrainConfig) -> loop.LoopState:
    """The state of the loop before the first step."""
    net, method, dropout_seed = task.data.training.net, task.method, 0
    assert isinstance(method, FirstOrder)
    if net.plan.dropout is not None:
        dropout_seed = int(child_seed(task.seed, DROPOUT).generate_state(1, np.uint64)[0])
    start = net.checked_params(task.start)
    return loop.initial_state(start, config, method.initial_moment, dropout_seed)


def _require_unfinished(loop_state: loop.LoopState, steps: int, epochs: int) -> None:
    if loop_state.run.step >= steps:
        raise ValueError(
            f"state is of a run with {loop_state.run.step} steps, and epochs={epochs} are {steps}: "
            f"epochs counts those before it too; pass a larger number to go on"
        )


# How it ended.


def _status(task: FitTask, batch_size: int, out: loop.LoopResult) -> tuple[int, str]:
    """The status and the message of the result."""
    nit = len(out.losses)
    done = counted(nit, "epoch")
    if out.code in loop.DIVERGED:
        return Status.DIVERGED, _divergence(task, batch_size, out)
    if out.code == contract.GOAL_MET:
        return Status.FINISHED, f"the goal of {task.limits.goal:g} was met in {done}"
    if out.code == contract.NO_PROGRESS:
        lowest = float(out.state.run.monitor[contract.LOWEST])
        return Status.FINISHED, no_progress(task.limits.patience or 0, "epoch", nit, lowest)
    if out.stopped == INTERRUPT:
        return Status.INTERRUPTED, f"interrupted (Ctrl-C) after {done}"
    if out.steps >= task.limits.epochs * -(-len(task.data.training.problem.X) // batch_size):
        return Status.FINISHED, f"all {done} done"
    if out.stopped == TIME_IS_UP:
        return Status.LIMIT, f"max_time is over after {done}"
    return Status.STOPPED, f"a callback stopped the fit after {done}"


def _divergence(task: FitTask, batch_size: int, out: loop.LoopResult) -> str:
    """Where and how the run diverged, and what to do about it, as a sentence."""
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
        f"{_stable_rate(task, batch_size, out)} or scale X and y to about unit size"
    )


def _stable_rate(task: FitTask, batch_size: int, out: loop.LoopResult) -> str:
    """The largest stable rate in parentheses, if it is known and smaller than the rate used."""
    obj, method = task.data.training, task.method
    if not (isinstance(method, SGD) and obj.loss.least_squares):
        return ""
    limit = method.stable_limit
    # The curvature may have grown on the way, so that the rate was stable at the start.
    for place, params in (("initial", task.start), ("last good", out.params)):
        curvature = batch_curvature(obj, params, batch_size)
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
