"""Curves fitted inside the backends: `fit_curve` and `curve_residuals`.

The truth is the plain solver over residuals and Jacobians written by hand, step by step. How far
from it rounding may lead is what the same solver shows if these are off by some units of rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from helpers.curves import curve_of, descent, fit, nist_curve
from helpers.strategies import same
from oracles import nist

from fastbp import backends
from fastbp.backends import reference
from fastbp.backends.contract import CurveProblem
from fastbp.maths.linear_models import model_of
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
)
from fastbp.maths.robust import CAUCHY_RHO, HUBER_RHO, LINEAR_RHO, SOFT_L1_RHO, Robust, rho

pytestmark = pytest.mark.backend

EPS = np.finfo(float).eps
ROBUST = {
    "linear": Robust(LINEAR_RHO),
    "huber": Robust(HUBER_RHO, 0.05),
    "soft_l1": Robust(SOFT_L1_RHO, 0.05),
    "cauchy": Robust(CAUCHY_RHO, 0.05),
}

# Functions f(p, x) and their Jacobians, (m, n).


def saturation(p, x):
    return p[0] * (1 - np.exp(-p[1] * x))


def saturation_slopes(p, x):
    e = np.exp(-p[1] * x)
    return np.stack([1 - e, p[0] * x * e], axis=-1)


def peak(p, x):
    return p[0] + p[1] * np.exp(-(((x - p[2]) / p[3]) ** 2))


def peak_slopes(p, x):
    z = (x - p[2]) / p[3]
    e = np.exp(-(z**2))
    inner = 2 * p[1] * e * z / p[3]
    return np.stack([np.ones_like(x), e, inner, inner * z], axis=-1)


def plane(p, x):
    return p[0] * x[0] + p[1] * x[1] + p[2] * x[0] * x[1]


def plane_slopes(p, x):
    return np.stack([x[0], x[1], x[0] * x[1]], axis=-1)


def bowl(p, x):
    return (p[0] - x) ** 2 + p[1] * p[0]


def bowl_slopes(p, x):
    return np.stack([2 * (p[0] - x) + p[1], p[0] + 0 * x], axis=-1)


def level(p, x):
    return p[0] * p[0]


def level_slopes(p, x):
    return np.full((len(x), 1), 2 * p[0])


def waves(p, x):
    return sum(p[k] * np.sin((k + 1) * x + p[k] * x) for k in range(len(p)))


def waves_slopes(p, x):
    angles = [(k + 1) * x + p[k] * x for k in range(len(p))]
    return np.stack([np.sin(a) + c * x * np.cos(a) for a, c in zip(angles, p, strict=True)], -1)


def sums(p, x):
    """Only the sum of two parameters counts, and a third one not at all."""
    return np.exp(-(p[0] + p[1]) * x) + 0 * p[2]


def sums_slopes(p, x):
    by_either = -x * np.exp(-(p[0] + p[1]) * x)
    return np.stack([by_either, by_either, 0 * x], axis=-1)


FUNCTIONS = {
    f: slopes
    for f, slopes in (
        (saturation, saturation_slopes),
        (peak, peak_slopes),
        (plane, plane_slopes),
        (bowl, bowl_slopes),
        (level, level_slopes),
        (waves, waves_slopes),
        (sums, sums_slopes),
    )
}


@dataclass
class Task:
    """A curve, its data and start, and how it is fitted."""

    f: Callable
    x: np.ndarray
    y: np.ndarray
    start: list[float]
    weights: np.ndarray | None = None
    options: LMOptions = field(default_factory=LMOptions)
    robust: Robust = field(default_factory=Robust)
    bounds: tuple[list[float], list[float]] | None = None
    steps: int = 6
    goal: float = -np.inf

    @functools.cached_property
    def problem(self) -> CurveProblem:
        columns = tuple(np.ascontiguousarray(row) for row in np.atleast_2d(self.x))
        curve = curve_of(self.f, len(self.start), len(columns))
        return CurveProblem(curve, columns, self.y, self.weights)

    @property
    def pair(self):
        return None if self.bounds is None else tuple(np.array(b, float) for b in self.bounds)

    def fit(self, module, **changes):
        t = replace(self, **changes)
        state, records = descent(t.start, t.options), np.full((t.steps + 1, 4), -1.0)
        taken = module.fit_curve(self.problem, t.options, t.robust, t.pair, state, records, t.goal)
        return state, records[: taken + 1]


def data(f, true, m=40, noise=0.05, outliers=0, weighted=False, n_inputs=1):
    """x, y and weights, of a few rows."""
    rng = np.random.default_rng(7)
    x = rng.uniform(0, 4, (n_inputs, m)) if n_inputs > 1 else rng.uniform(0, 4, m)
    y = f(true, x) + noise * rng.standard_normal(m)
    y[:outliers] += 3
    weights = {"weights": rng.uniform(0.5, 2, m)} if weighted else {}
    return {"x": x, "y": y} | weights


def growth(true=(2.0, 0.7), start=(1.0, 0.2), **changes):
    options = {name: changes.pop(name) for name in ("m", "outliers", "weighted") if name in changes}
    return Task(saturation, **data(saturation, true, **options), start=list(start), **changes)


def bell(true=(0.5, 2.0, 1.5, 0.6), start=(0.0, 1.0, 1.2, 1.0), **changes):
    options = {name: changes.pop(name) for name in ("m", "outliers", "weighted") if name in changes}
    return Task(peak, **data(peak, true, **options), start=list(start), **changes)


def wide(**changes):
    return Task(
        waves, **data(waves, [1.0, 0.5, -0.5, 0.2, 0.1], 3, 0.0), start=[0.9, 0.4, -0.4, 0.1, 0.2],
        **changes,
    )  # fmt: skip


TASKS = {
    "growth": growth,
    "bell": bell,
    "one row": lambda: growth(m=1, steps=3),
    "several blocks": lambda: bell(m=700, weighted=True),
    "a whole block": lambda: bell(m=256),
    "weights": lambda: bell(weighted=True),
    "huber": lambda: growth(outliers=3, robust=ROBUST["huber"]),
    "soft_l1": lambda: growth(outliers=3, robust=ROBUST["soft_l1"]),
    "cauchy": lambda: bell(outliers=3, weighted=True, robust=ROBUST["cauchy"], steps=4),
    "uniform": lambda: bell(options=LMOptions(uniform=True)),
    "no bend": lambda: bell(options=LMOptions(bend=False)),
    "fixed factors": lambda: bell(options=LMOptions(mu=1e-2, mu_dec=0.1, mu_inc=10.0, bend=False)),
    "two inputs": lambda: Task(
        plane, **data(plane, [1.0, -2.0, 0.5], n_inputs=2), start=[0.0, 0.0, 0.0], steps=2
    ),
    "a uniform slope": lambda: Task(bowl, **data(bowl, [1.0, 0.5]), start=[3.0, 2.0], steps=3),
    "no input in f": lambda: Task(level, **data(saturation, (2.0, 0.7)), start=[3.0], steps=3),
    "bounds far away": lambda: bell(bounds=([-9] * 4, [9] * 4)),
    "an upper bound": lambda: growth(bounds=([-1, -1], [1.6, 9]), steps=5),
    "a lower bound": lambda: bell(bounds=([0.7, -9, 1.9, 0.1], [9, 9, 9, 9]), start=(1, 1, 2, 1)),
    "from a bound": lambda: bell(
        bounds=([0.0, 1.0, 1.0, 0.1], [9, 9, 1.4, 1.0]), start=(0.0, 1.0, 1.4, 1.0)
    ),
    "bounds and outliers": lambda: bell(
        outliers=3,
        weighted=True,
        robust=ROBUST["huber"],
        bounds=([0.7, 0, 0, 0], [9, 9, 9, 0.9]),
        start=(1, 1, 1.2, 0.9),
        options=LMOptions(uniform=True),
    ),
    "fewer rows than parameters": lambda: wide(steps=2),
    "fewer rows and bounds": lambda: wide(bounds=([-9] * 5, [0.9, 9, -0.4, 9, 9]), steps=2),
    "only a sum counts": lambda: Task(
        sums, **data(sums, [0.3, 0.4, 0.0]), start=[0.1, 0.1, 5.0], steps=4
    ),
}
# Name -> the status at the end, and a task that reaches it.
ENDS = {
    "flat": (FLAT, lambda: growth(options=LMOptions(min_grad=0.1), steps=200)),
    "small": (SMALL, lambda: growth(options=LMOptions(ftol=1e-4, xtol=0, gtol=0), steps=200)),
    "short": (SHORT, lambda: growth(options=LMOptions(ftol=0, xtol=1e-2, gtol=0), steps=200)),
    "stuck": (STUCK, lambda: growth(options=LMOptions(mu=1e-8, mu_max=1e-9, bend=False),
                                    start=(30.0, 0.01), steps=200)),
    "goal": (RUNNING, lambda: growth(goal=1.0, steps=200)),
    "goal at once": (RUNNING, lambda: growth(goal=1e6)),
    "steps": (RUNNING, lambda: growth(steps=2)),
    "none": (RUNNING, lambda: growth(steps=0)),
    "flat at once": (FLAT, lambda: growth(options=LMOptions(min_grad=1e6))),
    "all held": (FLAT, lambda: Task(
        plane, **data(plane, [1.0, 2.0, 3.0], n_inputs=2), start=[0, 0, 0],
        bounds=([-1] * 3, [0] * 3),
    )),
}  # fmt: skip


class ByHand:
    """A task's sum of squares; `noise` adds errors of rounding."""

    def __init__(self, t: Task, noise=None):
        self.t, self.noise = t, noise
        self.w = 1.0 if t.weights is None else t.weights

    def off(self, size):
        if self.noise is None:
            return 0.0
        return 8 * EPS * np.abs(size) * self.noise.uniform(-1, 1, np.shape(size))

    def residuals(self, p):
        f = np.broadcast_to(self.t.f(p, self.t.x), self.t.y.shape)
        return self.w * (f + self.off(f) - self.t.y)

    def total(self, p):
        r = self.residuals(p)
        self.last = p, r
        return float(rho(r, self.t.robust)[0].sum())

    def linear(self, p):
        last = getattr(self, "last", (None, None))
        r = last[1] if last[0] is p else self.residuals(p)
        J = np.reshape(self.w, (-1, 1)) * FUNCTIONS[self.t.f](p, self.t.x)
        squares, slope = rho(r, self.t.robust)
        root = np.sqrt(slope)
        model = model_of(
            root[:, None] * (J + self.off(J)), root * r, lambda v: root * self.residuals(p + v)
        )
        return float(squares.sum()), model


def by_hand(t, noise=None):
    """The solver after its steps, and its records with that of the start."""
    solver = LMSolver(ByHand(t, noise), np.array(t.start, float), t.options, None, t.pair)
    first = np.array([solver.record])
    steps = t.steps if solver.total > t.goal else 0
    return solver, np.concatenate([first, solver.steps(steps, t.goal)])


@functools.cache
def expected_of(name):
    """A task, its `by_hand`, and its `by_hand` with noise five times."""
    t = TASKS[name]() if name in TASKS else ENDS[name][1]()
    return t, by_hand(t), [by_hand(t, np.random.default_rng(seed)) for seed in range(5)]


def agree(name, state, records):
    """Assert that the state is that of the solver by hand."""
    _, (solver, expected), noisy = expected_of(name)
    counts = solver.nit, solver.nfev, solver.njev, solver.status
    assert tuple(state.state[[NIT, NFEV, NJEV, STATUS]].astype(int)) == counts
    assert all((s.nit, s.nfev, s.njev, s.status) == counts for s, _ in noisy)
    assert records.shape == expected.shape == (solver.nit + 1, 4)

    def check(result, of, true, sharp=1e-6):
        spread = np.max([abs(of(s, r) - true) for s, r in noisy], axis=0)
        most = (8 * spread + 64 * EPS * abs(true)).max()
        assert abs(result - true).max() <= most <= sharp * abs(true).max()

    def attribute(get):
        return lambda s, _: get(s), get(solver)

    check(state.params, *attribute(lambda s: s.x))
    check(state.scales, *attribute(lambda s: s.scales))
    check(state.normal[:-1], *attribute(lambda s: s.linear.JTJ))
    check(state.state[[SQUARES]], *attribute(lambda s: np.array([s.squares])))
    check(state.state[[MU]], *attribute(lambda s: np.array([s.mu])), sharp=1e-3)
    check(records[:, 0], lambda _, r: r[:, 0], expected[:, 0])
    assert np.isnan(records[0, 1:3]).all()
    for column in (1, 2):
        if len(records) > 1:
            check(records[1:, column], lambda _, r, c=column: r[1:, c], expected[1:, column], 1e-3)
    # Gradients cancel: they are compared by the lengths of what is multiplied.
    root = np.sqrt(np.diagonal(solver.linear.JTJ).max() * solver.squares) + expected[0, 3]
    spread = max(abs(s.linear.gradient - solver.linear.gradient).max() for s, _ in noisy)
    assert abs(state.normal[-1] - solver.linear.gradient).max() <= 8 * spread + 64 * EPS * root
    assert abs(records[:, 3] - expected[:, 3]).max() <= 1e-6 * expected[0, 3] + 64 * EPS * root
    assert same(np.ascontiguousarray(state.normal[:-1].T), state.normal[:-1])


@pytest.mark.parametrize("name", TASKS)
def test_it_is_the_solver_by_hand(module, name):
    t = expected_of(name)[0]
    state, records = t.fit(module)
    agree(name, state, records)
    assert len(records) == t.steps + 1
    assert (np.diff(records[:, 0]) < 0).all()
    if t.pair is not None:
        lower, upper = t.pair
        assert ((lower <= state.params) & (state.params <= upper)).all()


@pytest.mark.parametrize(
    "name",
    [
        "an upper bound",
        "a lower bound",
        "from a bound",
        "bounds and outliers",
        "fewer rows and bounds",
    ],
)
def test_bounds_are_active_in_these_tests(name):
    t, (end, _), _ = expected_of(name)
    begin, _ = by_hand(replace(t, steps=0))
    assert (begin.held | end.held).any()


@pytest.mark.parametrize("name", ENDS)
def test_fits_end_as_by_hand(module, name):
    status, t = ENDS[name][0], expected_of(name)[0]
    state, records = t.fit(module)
    assert state.state[STATUS] == status
    agree(name, state, records)
    if status == RUNNING:
        assert name != "goal" or 2 * records[-1, 0] <= t.goal < 2 * records[-2, 0]
        return
    assert len(records) < t.steps + 1
    before = state.params.copy(), state.state.copy()
    last = np.empty((3, 4))
    assert module.fit_curve(t.problem, t.options, t.robust, t.pair, state, last, -np.inf) == 0
    assert same((state.params, state.state), before)
    assert same(last[0], records[-1])


@pytest.mark.parametrize("name", ["bell", "several blocks", "bounds and outliers", "huber"])
def test_steps_one_by_one_are_steps_together(module, name):
    t = TASKS[name]()
    whole, records = t.fit(module)
    state = descent(t.start, t.options)
    place = 0
    for steps in (0, *[1] * (t.steps - 2), 2):
        some = np.empty((steps + 1, 4))
        taken = module.fit_curve(t.problem, t.options, t.robust, t.pair, state, some, t.goal)
        assert taken == steps and same(some, records[place : place + steps + 1])
        place += steps
    for attribute in ("params", "scales", "normal", "state"):
        assert same(getattr(whole, attribute), getattr(state, attribute)), attribute


@pytest.mark.parametrize("start", (0, 1))
@pytest.mark.parametrize("name", nist.MODELS)
def test_nist(module, monkeypatch, name, start):
    problem = nist.problem(name)
    state, _ = fit(module, nist_curve(problem, monkeypatch), problem.starts[start])
    assert problem.digits(state.params) >= 6
    assert state.state[STATUS] > 0
    if name != "Lanczos1":  # its residuals are rounding of the parameters' 11 digits
        assert state.state[SQUARES] == pytest.approx(problem.sum_of_squares, rel=1e-9)


@pytest.mark.parametrize("name", ["bell", "several blocks", "two inputs", "no input in f"])
def test_residuals_and_jacobian(module, name):
    t = TASKS[name]()
    p = np.array(t.start) + 0.1
    before = p.copy()
    r, J = module.curve_residuals(t.problem, p)
    exact = ByHand(t)
    f = np.broadcast_to(t.f(p, t.x), t.y.shape)
    assert (abs(r - exact.residuals(p)) <= 16 * EPS * exact.w * (abs(f) + abs(t.y))).all()
    slopes = (np.reshape(exact.w, (-1, 1)) * FUNCTIONS[t.f](p, t.x)).T
    assert J.shape == slopes.shape and J.flags.c_contiguous and r.flags.c_contiguous
    np.testing.assert_allclose(J, slopes, rtol=64 * EPS, atol=64 * EPS * abs(slopes).max())
    assert same(p, before)


@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 15, 17, 255, 257])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 33])
def test_sizes(module, m, n):
    """A polynomial, whose first step without damping is its fit: fewer rows too."""
    x = np.linspace(-1, 1, m + 2)[1:-1] if m > 1 else np.array([0.3])
    chebyshev = np.cos(np.arange(n)[:, None] * np.arccos(x))
    y = np.sin(3 * x) + 0.1

    def f(p, x):
        terms = [1.0 + 0 * x, x]
        while len(terms) < n:
            terms.append(2 * x * terms[-1] - terms[-2])
        return sum(c * term for c, term in zip(p, terms, strict=False))

    problem = CurveProblem(curve_of(f, n), (x,), y)
    state, _ = fit(module, problem, np.zeros(n), mu=1e-12, steps=20)
    r = chebyshev.T @ np.linalg.lstsq(chebyshev.T, y)[0] - y
    assert state.state[SQUARES] == pytest.approx(r @ r, abs=1e-20, rel=1e-9)
    np.testing.assert_allclose(
        chebyshev.T @ state.params - y, r, atol=1e-9 * np.linalg.norm(y), rtol=0
    )


def test_ill_conditioned_parameters(module):
    """A polynomial of degree 7, whose columns have a condition number of 1e9."""
    x = np.linspace(1, 10, 50)
    y = np.sin(x) + 0.01 * np.random.default_rng(0).standard_normal(50)
    columns = x[:, None] ** np.arange(8)
    assert 1e8 < np.linalg.cond(columns) < 1e10

    def f(p, x):
        return sum((p[k] * x**k for k in range(1, 8)), p[0])

    state, _ = fit(module, CurveProblem(curve_of(f, 8), (x,), y), np.ones(8))
    np.testing.assert_allclose(state.params, np.linalg.lstsq(columns, y)[0], rtol=1e-6)


def test_fewer_rows_than_parameters_are_interpolated(module):
    t = wide(steps=100)
    state, _ = t.fit(module)
    assert state.state[STATUS] > 0 and state.state[SQUARES] < 1e-24
    assert np.linalg.norm(state.params) < 10


def test_singular_jacobians_keep_what_does_not_count(module):
    t = TASKS["only a sum counts"]()
    state, _ = t.fit(module, steps=100)
    assert state.state[STATUS] > 0
    assert state.params[2] == 5.0  # no data pull at it
    assert state.params[0] == pytest.approx(state.params[1], rel=1e-6)
    one, _ = replace(t, f=decay, start=[0.2]).fit(module, steps=100)
    assert state.state[SQUARES] == pytest.approx(one.state[SQUARES], rel=1e-12)
    assert state.params[0] + state.params[1] == pytest.approx(one.params[0], rel=1e-7)


def decay(p, x):
    return np.exp(-p[0] * x)


def test_no_residuals(module):
    t = growth()
    t = replace(t, y=saturation(t.start, t.x))
    state, records = t.fit(module)
    assert state.state[STATUS] > 0 and same(state.params, np.array(t.start))
    assert records[0, 0] <= 1e-28
    exact = replace(t, y=np.zeros_like(t.y), start=[0.0, 0.5])
    state, records = exact.fit(module)
    assert state.state[STATUS] == FLAT and state.state[SQUARES] == 0 and len(records) == 1


def test_starts_that_are_not_finite_end_at_once(module):
    for start in ([np.nan, 1.0], [np.inf, 1.0], [1.0, -1e6]):
        state, records = growth().fit(module, start=start)
        assert not np.isfinite(state.state[SQUARES])
        assert state.state[NIT] == 0 and len(records) == 1


def logarithm(p, x):
    return np.log(p[0] * x) + p[1] * x


def test_steps_to_where_the_curve_is_not_finite_are_not_taken(module):
    """The first trials make the argument of the logarithm negative."""
    x = np.linspace(1, 2, 9)
    t = Task(logarithm, x, logarithm([1e-3, 0.1], x), [5.0, 0.0], steps=200)
    state, records = t.fit(module)
    assert state.state[STATUS] > 0 and np.isfinite(records[1:]).all()
    assert state.state[NFEV] > state.state[NIT] + 5
    np.testing.assert_allclose(state.params, [1e-3, 0.1], rtol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_minima_are_those_by_hand(module, seed):
    """Random starts, options and bounds."""
    rng = np.random.default_rng(seed)
    t = [growth, bell][seed % 2](
        m=int(rng.integers(5, 400)), outliers=int(rng.integers(0, 2)), weighted=seed % 3 == 0
    )
    start = np.array(t.start) * rng.uniform(0.9, 1.3, len(t.start))
    bounds = (start - rng.uniform(0.3, 3, len(start)), start + rng.uniform(0.3, 3, len(start)))
    t = replace(
        t, start=list(start), robust=list(ROBUST.values())[seed % 4], steps=500,
        bounds=bounds if seed % 5 else None,
        options=LMOptions(uniform=bool(rng.integers(2)), bend=bool(rng.integers(2))),
    )  # fmt: skip
    state, _ = t.fit(module)
    solver, _ = by_hand(t)
    assert state.state[STATUS] > 0 and solver.status > 0
    assert state.state[SQUARES] == pytest.approx(solver.squares, rel=1e-9)
    np.testing.assert_allclose(state.params, solver.x, rtol=1e-5, atol=1e-6)


def test_more_places_than_the_library_has(module):
    """Such a curve is fitted all the same."""
    n = 200

    def f(p, x):
        return sum(p[k] * np.sin((k + 1.1) * x) / (1 + p[k] ** 2 * x) for k in range(n))

    curve = curve_of(f, n)
    x = np.linspace(0, 3, 20)
    problem = CurveProblem(curve, (x,), np.cos(x))
    state, records = fit(module, problem, np.full(n, 0.01), steps=3)
    expected, expected_records = fit(backends.load("numpy"), problem, np.full(n, 0.01), steps=3)
    assert same(state.params, expected.params) and same(records, expected_records)
    r, J = module.curve_residuals(problem, state.params)
    assert r.shape == (20,) and J.shape == (n, 20)


def test_the_library_fits_by_itself(backend, module, monkeypatch):
    if backend != "c":
        pytest.skip("the others compute in NumPy")
    monkeypatch.delattr(reference, "fit_curve")
    monkeypatch.delattr(reference, "curve_residuals")
    for make in TASKS.values():
        t = make()
        t.fit(module)
        module.curve_residuals(t.problem, np.array(t.start, float))


def test_threads_may_share_a_curve(module):
    t = TASKS["several blocks"]()
    expected, records = t.fit(module)
    with ThreadPoolExecutor(4) as pool:
        for state, of_thread in pool.map(lambda _: t.fit(module), range(40)):
            assert same((state.params, of_thread), (expected.params, records))


def test_data_and_bounds_are_not_modified(module):
    t = TASKS["bounds and outliers"]()
    arrays = [*t.problem.columns, t.problem.y, t.problem.weights, *t.pair]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.setflags(write=False)
    state, records = descent(t.start, t.options), np.empty((5, 4))
    pair = tuple(arrays[-2:])
    module.fit_curve(t.problem, t.options, t.robust, pair, state, records, -np.inf)
    assert same(arrays, before)
