"""Curves as the backends take them, from Python functions; NIST's problems as such."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from oracles import nist

from fastbp.backends.contract import Curve, CurveProblem
from fastbp.maths import expressions as ex
from fastbp.maths.derivatives import derivative
from fastbp.maths.marquardt import MU, LMOptions, LMState
from fastbp.maths.robust import Robust
from fastbp.maths.symbols import Symbol


def curve_of(f: Callable, n_parameters: int, n_inputs: int = 1) -> Curve:
    """The curve f(p, x), where x is a list of symbols if there are several inputs."""
    inputs = tuple(f"x{k}" for k in range(n_inputs))
    parameters = tuple(f"p{k}" for k in range(n_parameters))
    x = [Symbol(ex.variable(name)) for name in inputs]
    p = [Symbol(ex.variable(name)) for name in parameters]
    root = f(p, x[0] if n_inputs == 1 else x).expression
    return Curve((root, *(derivative(root, name) for name in parameters)), inputs, parameters)


def nist_curve(problem: nist.Problem, monkeypatch) -> CurveProblem:
    """The problem without the derivatives that it has."""
    monkeypatch.setattr(nist, "columns", lambda *derivatives: None)
    monkeypatch.setattr(np, "ones_like", lambda x: 1.0)
    columns = np.atleast_2d(problem.x)
    n = problem.starts.shape[1]
    curve = curve_of(lambda b, x: problem.model(b, x)[0], n, len(columns))
    monkeypatch.undo()
    columns = tuple(map(np.ascontiguousarray, columns))
    return CurveProblem(curve, columns, np.ascontiguousarray(problem.y))


def descent(start, options: LMOptions) -> LMState:
    """A state that has not begun."""
    x = np.array(start, float)
    n = len(x)
    state = LMState(x, np.zeros(n), np.zeros((n + 1, n)), np.zeros(n), np.zeros(8))
    state.state[MU] = options.mu
    return state


def fit(
    module, problem, start, *, robust=None, bounds=None, steps=1000, goal=-np.inf, **options
) -> tuple[LMState, np.ndarray]:
    """The state reached and the records."""
    options = LMOptions(**options)
    state, records = descent(start, options), np.full((steps + 1, 4), -1.0)
    taken = module.fit_curve(problem, options, robust or Robust(), bounds, state, records, goal)
    return state, records[: taken + 1]
