"""Levenberg and Marquardt's method inside the backends: `jtr_at` and `descend`.

The truth is the plain solver over the reference's sums, step by step. How far from it rounding may
lead is what the same solver shows if its sums are off by as much as a sum of so many terms can be.
"""

from __future__ import annotations

import functools
import tracemalloc
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from helpers.strategies import case_with, same, weights

import fastbp as fb
from fastbp import backends
from fastbp.backends import contract
from fastbp.maths.marquardt import (
    FLAT,
    MU,
    NFEV,
    NIT,
    NJEV,
    RUNNING,
    SHORT,
    SMALL,
    SQUARES,
    STATUS,
    STUCK,
    LMOptions,
    LMSolver,
    LMState,
    NormalEquations,
)
from fastbp.maths.robust import CAUCHY_RHO, HUBER_RHO, LINEAR_RHO, SOFT_L1_RHO, Robust

pytestmark = pytest.mark.backend

REFERENCE = backends.load("numpy")
EPS = np.finfo(float).eps
ROBUST = {
    "linear": Robust(LINEAR_RHO),
    "huber": Robust(HUBER_RHO, 0.5),
    "soft_l1": Robust(SOFT_L1_RHO, 0.5),
    "cauchy": Robust(CAUCHY_RHO, 0.5),
}

# Jᵀr at other parameters.


def moved_case(dtype="float64", n=9, weighted=True):
    """A problem with masks, its parameters, and those a step further."""
    c = case_with("sse", "tanh", dtype, n, weighted)
    moved = c.effective.copy()
    moved[c.net.free] += np.dtype(dtype).type(0.1)
    return c, c.problem, c.effective, moved


@functools.cache
def jacobian(dtype, n, weighted):
    c, _, params, _ = moved_case(dtype, n, weighted)
    return REFERENCE.jacobian(c.net.plan, params, c.X, 1, True).astype(float)


def slope_of(r, robust):
    """rho' at (r/C)², from its definition."""
    z = (r / robust.scale) ** 2
    return {
        LINEAR_RHO: np.ones_like(z),
        HUBER_RHO: np.where(z <= 1, 1, 1 / np.sqrt(np.maximum(z, 1))),
        SOFT_L1_RHO: 1 / np.sqrt(1 + z),
        CAUCHY_RHO: 1 / (1 + z),
    }[robust.kind]


@pytest.mark.parametrize("robust", ROBUST)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("n", [1, 7, 65, 257])
def test_jtr_at_against_the_jacobian(module, dtype, n, weighted, robust):
    """JᵀD r there, several outputs, masks, rows that fill no tile and several parts."""
    c, problem, params, moved = moved_case(dtype, n, weighted)
    plan, rho = c.net.plan, ROBUST[robust]
    result = module.jtr_at(problem, params, moved, 1, rho)
    assert result.shape == (plan.n_free,) and result.dtype == dtype and plan.n_free < plan.n_params
    J = jacobian(dtype, n, weighted)
    here, there = (REFERENCE.forward(plan, p, c.X).astype(float) - c.y for p in (params, moved))
    w = c.terms.get("sample_weight", np.ones(n)).astype(float)[:, None]
    Dr = (w * slope_of(here, rho) * there).ravel()
    sizes = abs(J).T @ abs(Dr)
    assert abs(result - J.T @ Dr).max() <= 4504 * np.finfo(dtype).eps * sizes.max()
    # It is another one than that of the residuals here.
    assert abs(J.T @ Dr - J.T @ (w * slope_of(here, rho) * here).ravel()).max() > 0.01 * sizes.max()


@pytest.mark.parametrize("robust", ROBUST)
def test_without_a_step_it_is_that_of_the_normal_equations(module, robust):
    _, problem, params, _ = moved_case(n=300)
    _, JTr, _ = module.normal_equations(problem, params, 1, ROBUST[robust])
    result = module.jtr_at(problem, params, params, 1, ROBUST[robust])
    assert abs(result - JTr).max() <= 1e-12 * abs(JTr).max()


@pytest.mark.parametrize("n", [200, 257, 600, 5000])
def test_threads_do_not_change_it(compiled, dtype, n):
    _, problem, params, moved = moved_case(dtype, n)
    one, three = (
        compiled.jtr_at(problem, params, moved, threads, ROBUST["cauchy"]) for threads in (1, 3)
    )
    assert same(one, three)


# Minimisations.


@dataclass
class Task:
    """A sum of squares, and the options of its minimisation."""

    net: fb.Network
    problem: contract.Problem
    params: np.ndarray
    prior: np.ndarray
    options: LMOptions = field(default_factory=LMOptions)
    robust: Robust = field(default_factory=Robust)
    steps: int = 6
    goal: float = -np.inf

    @property
    def free(self):
        return self.net.free


def task(n=40, sizes=(2, 4, 2), prior=0.0, weighted=False, act="tanh", **changes):
    """Noisy waves; the first layer has a mask, the last one a frozen bias if it has two units."""
    rng = np.random.default_rng(4)
    n_in, hidden, n_out = sizes
    fixed = {"mask": rng.random((n_in, hidden)) < 0.8} if n_out > 1 else {}
    layers = [fb.Dense(hidden, act, **fixed), fb.Dense(n_out, bias=n_out == 1)]
    net = fb.Network(n_in, *layers)
    X = rng.standard_normal((n, n_in))
    y = np.sin(2 * X[:, :1] + np.arange(n_out)) + 0.3 * rng.standard_normal((n, n_out))
    terms = {"sample_weight": weights(rng, n, np.float64)} if weighted else {}
    problem = net.objective(X, y, "sse", **terms).problem
    return Task(
        net, problem, net.checked_params(net.init(rng)), prior * rng.random(net.n_free), **changes
    )


TASKS = {
    "plain": lambda: task(),
    "one output": lambda: task(sizes=(3, 5, 1)),
    "weights": lambda: task(weighted=True),
    "prior": lambda: task(prior=0.5),
    "huber": lambda: task(robust=ROBUST["huber"]),
    "soft_l1": lambda: task(robust=ROBUST["soft_l1"]),
    "cauchy": lambda: task(robust=ROBUST["cauchy"]),
    "uniform": lambda: task(options=LMOptions(uniform=True)),
    "no bend": lambda: task(options=LMOptions(bend=False)),
    "fixed factors": lambda: task(options=LMOptions(mu=1e-2, mu_dec=0.1, mu_inc=10.0, bend=False)),
    "several parts": lambda: task(n=258, sizes=(2, 2, 1), weighted=True, prior=0.1, steps=3),
    "more than a panel": lambda: task(sizes=(4, 12, 2), n=30, prior=0.05, steps=3),
    "together": lambda: task(
        weighted=True, prior=0.3, robust=ROBUST["huber"], options=LMOptions(uniform=True, mu=1.0)
    ),
}
# Name -> the status at the end, and a task that reaches it.
ENDS = {
    "flat": (FLAT, lambda: task(sizes=(2, 2, 1), options=LMOptions(min_grad=1.0), steps=200)),
    "small": (SMALL, lambda: task(options=LMOptions(ftol=1e-4, xtol=0, gtol=0), steps=200)),
    "short": (
        SHORT,
        lambda: task(options=LMOptions(ftol=0, xtol=1e-2, gtol=0), prior=0.5, steps=200),
    ),
    "stuck": (STUCK, lambda: task(options=LMOptions(mu=1e-8, mu_max=1e-7), steps=200)),
    "goal": (RUNNING, lambda: task(goal=20.0, steps=200)),
    "steps": (RUNNING, lambda: task(steps=3)),
    "none": (RUNNING, lambda: task(steps=0)),
    "flat at once": (FLAT, lambda: task(options=LMOptions(min_grad=1e6), steps=5)),
}


def equations_of(t, noise=None):
    """The reference's sums; `noise` adds errors as large as rounding can make in such sums."""
    share, sizes = len(t.problem.X) * t.net.n_out * EPS, {}

    def full(x):
        params = t.params.copy()
        params[t.free] = x
        return params

    def off(size):
        if noise is None:
            return np.zeros_like(size)
        return share * size * noise.uniform(-1, 1, np.shape(size))

    def normal_equations(x):
        JTJ, JTr, total = REFERENCE.normal_equations(t.problem, full(x), 1, t.robust)
        lengths = np.sqrt(np.diagonal(JTJ))
        sizes["JTr"] = lengths * np.sqrt(total)
        errors = np.triu(off(np.outer(lengths, lengths)))
        return JTJ + errors + np.triu(errors, 1).T, JTr + off(sizes["JTr"]), total + off(total)

    def sum_of_squares(x):
        total = REFERENCE.sum_of_squares(t.problem, full(x), 1, t.robust)
        return total + off(total)

    def jtr_at(x, step):
        result = REFERENCE.jtr_at(t.problem, full(x), full(x + step), 1, t.robust)
        return result + off(sizes["JTr"])

    return NormalEquations(normal_equations, sum_of_squares, jtr_at)


def minimised(t, noise=None):
    """The solver after its steps over the reference, and its records."""
    solver = LMSolver(equations_of(t, noise), t.params[t.free], t.options, t.prior)
    return solver, solver.steps(t.steps, t.goal)


@functools.cache
def expected_of(name):
    """A task, its `minimised`, and its `minimised` with noise three times."""
    t = TASKS[name]() if name in TASKS else ENDS[name][1]()
    return t, minimised(t), [minimised(t, np.random.default_rng(seed)) for seed in range(3)]


def new_descent(t):
    n, state = t.net.n_free, np.zeros(8)
    state[MU] = t.options.mu
    return LMState(t.params.copy(), t.prior, np.zeros((n + 1, n)), np.zeros(n), state)


def descended(module, t, threads=1, pieces=None):
    """The state after a backend's `descend`, called for `pieces` of the steps, and the records."""
    descent, result = new_descent(t), []
    for steps in pieces or [t.steps]:
        records = np.full((steps, 4), np.nan)
        taken = module.descend(t.problem, t.options, t.robust, descent, records, t.goal, threads)
        result.append(records[:taken])
    return descent, np.concatenate(result)


def agree(name, descent, records):
    """Assert that the state is that of the solver over the reference."""
    t, (solver, expected), noisy = expected_of(name)
    assert int(descent.state[STATUS]) == solver.status
    counts = solver.nit, solver.nfev, solver.njev
    assert tuple(descent.state[[NIT, NFEV, NJEV]].astype(int)) == counts
    assert records.shape == expected.shape == (solver.nit, 4)
    assert all((s.nit, s.nfev, s.njev) == counts for s, _ in noisy)  # rounding decides nothing

    def limit(of):
        true = of(solver)
        return 4 * np.max([abs(of(s) - true) for s, _ in noisy], axis=0) + 8 * EPS * abs(true)

    def check(result, of, sharp=1e-6):
        true, most = of(solver), limit(of).max()
        assert abs(result - true).max() <= most <= sharp * abs(true).max()

    check(descent.params[t.free], lambda s: s.x)
    check(descent.scales, lambda s: s.scales)
    check(descent.normal[:-1], lambda s: s.linear.JTJ)
    check(descent.state[[SQUARES]], lambda s: np.array([s.squares]))
    check(descent.state[[MU]], lambda s: np.array([s.mu]))
    root = np.sqrt(np.diagonal(solver.linear.JTJ) * solver.squares)
    beyond = 4 * np.max([abs(s.linear.gradient - solver.linear.gradient) for s, _ in noisy], axis=0)
    assert (abs(descent.normal[-1] - solver.linear.gradient) <= beyond.max() + EPS * root).all()
    assert same(np.ascontiguousarray(descent.normal[:-1].T), descent.normal[:-1])
    for column in range(4):
        spread = np.max([abs(r - expected)[:, column] for _, r in noisy], axis=0)
        allowed = 4 * spread.max(initial=0) + 64 * EPS * abs(expected[:, column]).max(initial=0)
        assert (abs(records - expected)[:, column] <= allowed).all(), column
    held = np.setdiff1d(np.arange(t.net.n_params), t.free)
    assert same(descent.params[held], t.params[held])


@pytest.mark.parametrize("name", TASKS)
def test_descend_is_the_search_over_the_reference(module, name):
    t = expected_of(name)[0]
    descent, records = descended(module, t)
    agree(name, descent, records)
    assert len(records) == t.steps
    assert (np.diff(records[:, 0]) < 0).all()


@pytest.mark.parametrize("name", ENDS)
def test_searches_end_as_over_the_reference(module, name):
    status, t = ENDS[name][0], expected_of(name)[0]
    descent, records = descended(module, t)
    assert descent.state[STATUS] == status
    agree(name, descent, records)
    if status == RUNNING:
        assert name != "goal" or 2 * records[-1, 0] <= t.goal < 2 * records[-2, 0]
    else:
        assert len(records) < t.steps
        # Further calls change nothing.
        before = descent.params.copy(), descent.state.copy()
        nothing = np.empty((2, 4))
        assert module.descend(t.problem, t.options, t.robust, descent, nothing, -np.inf, 1) == 0
        assert same((descent.params, descent.state), before)


@pytest.mark.parametrize("name", ["plain", "together", "several parts"])
def test_steps_one_by_one_are_steps_together(module, name):
    t = TASKS[name]()
    whole, records = descended(module, t)
    pieces, of_pieces = descended(module, t, pieces=[0, *[1] * (t.steps - 2), 2])
    assert same(records, of_pieces)
    for attribute in ("params", "scales", "normal", "state"):
        assert same(getattr(whole, attribute), getattr(pieces, attribute)), attribute


@pytest.mark.parametrize("n", [257, 1500])
def test_threads_do_not_change_a_search(compiled, n):
    t = replace(task(n=n, weighted=True, prior=0.1), robust=ROBUST["huber"])
    one, three = (descended(compiled, t, threads) for threads in (1, 3))
    assert same(one[1], three[1])
    for attribute in ("params", "scales", "normal", "state"):
        assert same(getattr(one[0], attribute), getattr(three[0], attribute)), attribute


def test_steps_to_where_the_jacobian_is_infinite_are_not_taken(module):
    """The first trials halve the residual, but the square of the slope there is infinite."""
    net = fb.Network(1, fb.Dense(1, "tanh", bias=False), fb.Dense(1, bias=False))
    problem = net.objective([[1e160]], [[1.0]], "sse").problem
    t = Task(net, problem, np.array([1e-161, 0.0]), np.zeros(2), steps=1)
    descent, records = descended(module, t)
    solver, expected = minimised(t)
    assert solver.njev > 2 and solver.status == RUNNING
    counts = descent.state[[NIT, NFEV, NJEV, STATUS]]
    assert tuple(counts) == (solver.nit, solver.nfev, solver.njev, solver.status)
    np.testing.assert_allclose(descent.params, solver.x, rtol=64 * EPS)
    np.testing.assert_allclose(records, expected, rtol=64 * EPS)
    assert np.isfinite(descent.normal).all()


def test_memory_does_not_grow_with_the_calls(compiled):
    """Later calls work in the arrays of the first."""
    t = task(n=300, prior=0.5)
    descent, records = new_descent(t), np.empty((1, 4))

    def held_after(calls):
        for _ in range(calls):
            compiled.descend(t.problem, t.options, t.robust, descent, records, -np.inf, 1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, tracemalloc.get_traced_memory()[
            0
        ]

    resource = pytest.importorskip("resource")
    tracemalloc.start()
    try:
        held_after(5)  # compiles
        (pages, traced), (more_pages, more_traced) = held_after(5), held_after(20)
    finally:
        tracemalloc.stop()
    assert more_traced - traced < 4096
    assert more_pages == pytest.approx(pages, rel=0.02)
