"""`contract.train` a second time, in plain Python, step by step beside a backend.

The arithmetic of each step is compared with extended precision, from the backend's state before the
step. Decisions (best parameters, stopping) are made from the backend's numbers, and must be exactly
the same.
"""

from __future__ import annotations

import math

import numpy as np
from helpers.strategies import copy_of, same

from fastbp.backends import contract
from fastbp.maths.formulas.optimizers import KINDS
from fastbp.maths.losses import MARGIN_RANKING
from oracles import bounds
from oracles.bounds import EXACT


def follow(module, c, t, run, n_steps, past_stops=False, sharp=True):
    """Do the steps, one by one from the run's start, and check each: (code, losses, validation).

    Parameters
    ----------
    c : Case
        The case of the problem; with None the arithmetic is not checked.
    past_stops : bool
        Whether to continue after GOAL_MET and NO_PROGRESS.
    sharp : bool
        Whether the bounds must be small where the rule allows it, so that the checks can fail.
    """
    assert run.step == 0
    losses, validation = t.buffers(n_steps)
    transcript = Transcript(t, run)
    for k in range(n_steps):
        before = copy_of(run)
        code, _ = t.go(module, run, 1, losses, validation)
        if c is not None:
            check_arithmetic(c, t, before, run, sharp)
        expected = transcript.step(run, losses, validation)
        assert (code, run.step) == (expected, k + 1), (
            f"code {code} and step {run.step} after step {k}, expected code {expected}"
        )
        transcript.check(run, f"after step {k}")
        if code and not (past_stops and code in (contract.GOAL_MET, contract.NO_PROGRESS)):
            break
    return code, losses, validation


def check_arithmetic(c, t, before, run, sharp=True):
    """The objective, parameters and moments of the step that leads from `before` to `run`."""
    dtype, optimizer, k = c.net.dtype, t.config.optimizer, before.step
    rows, factor = t.batch(k), EXACT(t.problem.scale)
    if t.config.averaged:
        factor *= EXACT(len(c.X)) / len(rows)
    terms = dict(c.terms)
    weights = terms.pop("sample_weight", None)
    if weights is not None:
        weights = t.problem.weights[rows][:: 2 if t.problem.loss == MARGIN_RANKING else 1]
    y = None if c.y is None else c.y[rows]
    objective, grad = bounds.objective(
        c.net, before.params, c.X[rows], y, c.loss, weights, factor=factor, **terms
    )
    if np.isfinite(t.config.clip_norm):
        grad = bounds.clipped(grad, t.config.clip_norm, dtype)
    params, moments = bounds.step(
        optimizer, before.params, before.moments, grad, t.rate_of(k), k + 1, dtype,
        bounds.free_entries(c.net),
    )  # fmt: skip
    objective.check(run.monitor[2], f"objective of step {k}")
    for bound, computed in zip(moments, run.moments, strict=True):
        bound.check(computed, f"moments of step {k}")
    params.check(run.params, f"params of step {k}")
    if sharp and optimizer.kind in (KINDS["sgd"], KINDS["momentum"], KINDS["nesterov"]):
        # Those of the others may hang on the sign of a gradient that is nearly 0.
        params.check_sharp(200 * np.finfo(dtype).eps)


class Transcript:
    """The expected state of a run, without parameters and moments."""

    def __init__(self, t, run):
        self.t, self.steps = t, 0
        self.met = []  # the objectives of the running epoch
        self.base, self.grown, self.last = 0.0, 0, 0.0
        self.lowest, self.reference, self.stale = math.inf, math.inf, 0
        self.counted = []  # the parameters that are averaged
        self.good = [run.params.copy(), run.params.copy()]
        self.best = run.params.copy()
        self.before = run.params.copy()

    def step(self, run, losses, validation):
        """Take a step down that was completed; what the backend should have returned."""
        if not self.met:
            self.good[1] = self.before
        self.before, self.last = run.params.copy(), run.monitor[2]
        if self.steps == 0:
            self.base = max(abs(self.last), np.finfo(run.params.dtype).eps)
        self.met.append(self.last)
        if 0 <= self.t.config.average_from <= self.steps:
            self.counted.append(self.before)
        self.steps += 1
        if self.steps % self.t.steps_per_epoch:
            return contract.DONE
        total, epoch = 0.0, self.steps // self.t.steps_per_epoch - 1
        for objective in self.met:
            total += objective
        assert losses[epoch] == total, f"epoch {epoch}: {losses[epoch]!r} instead of {total!r}"
        self.met = []
        return self._end_of_epoch(run, total / self.t.steps_per_epoch, validation[epoch:])

    def _end_of_epoch(self, run, mean, validation):
        config = self.t.config
        if not all(map(math.isfinite, run.params.tolist())):
            return contract.NON_FINITE_PARAMETERS
        self.grown = self.grown + 1 if mean > contract.GROWTH_LIMIT * self.base else 0
        if self.grown == 0:
            self.good[0] = self.good[1]
        if self.grown == contract.GROWTH_EPOCHS:
            return contract.GROWN
        candidate = run.average.astype(run.params.dtype) if self.counted else run.params.copy()
        watched = mean
        if config.validation is not None:
            watched = float(validation[0])
            self._check_validation(candidate, watched)
        if config.patience:
            if watched < self.lowest:
                self.lowest, self.best = watched, candidate
            enough = self.reference
            if math.isfinite(enough):
                enough -= config.tol * abs(enough)
            if watched < enough:
                self.reference, self.stale = watched, 0
            else:
                self.stale += 1
        if mean <= config.goal:
            return contract.GOAL_MET
        if 0 < config.patience <= self.stale:
            return contract.NO_PROGRESS
        return contract.DONE

    def _check_validation(self, candidate, computed):
        c = self.t.held_out
        if c is not None:
            terms = dict(c.terms)
            weights = terms.pop("sample_weight", None)
            expected = bounds.value(c.net, candidate, c.X, c.y, c.loss, weights, **terms)
            expected.check(computed, "validation")

    def check(self, run, what):
        """Assert that the run has the expected state."""
        monitor = [self.base, self.grown, self.last, self.lowest, self.reference, self.stale]
        assert run.monitor.tolist() == monitor, f"{run.monitor} instead of {monitor} {what}"
        for name, expected in (("good", np.array(self.good)), ("best", self.best)):
            assert same(getattr(run, name), expected), f"{name} parameters are others {what}"
        if self.counted:
            # A step of the mean rounds three times, relative to at most four times the largest.
            iterates = np.array(self.counted, EXACT)
            error = len(iterates) * 8 * bounds.unit(np.float64) * abs(iterates).max()
            mean = bounds.Approx(iterates.mean(axis=0), np.full(iterates.shape[1], error))
            mean.check(run.average, f"average {what}")
        else:
            assert not run.average.any(), f"an average has begun {what}"
