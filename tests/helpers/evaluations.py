"""The numbers of evaluations that fmincg and SciPy's CG need to reach the same value.

The goal is the value at which SciPy's CG ends with its default options, so both are counted at one
accuracy, the one that suits it. Where it gives up at no minimum, a known one is the goal, and it
never gets there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
from oracles.mgh import MGH

import fastbp as fb
from fastbp.optimize.free_coordinates import FreeCoordinates
from helpers.repository import EXAMPLES, load

DEARER = 6  # so many times SciPy's evaluations are enough to see which needs fewer


class Comparison(NamedTuple):
    """Evaluations until the goal is met first, infinite if it never is."""

    name: str
    goal: float
    fmincg: float
    scipy: float

    @property
    def won(self) -> bool:
        return self.fmincg <= self.scipy and self.fmincg < inf


class Case(NamedTuple):
    """A function that returns value and gradient, a start, and its minima where they are known."""

    name: str
    fun: Callable[[np.ndarray], tuple[float, np.ndarray]]
    x0: np.ndarray
    minima: tuple[float, ...] = ()


def compare(case: Case) -> Comparison:
    seen: list[float] = []

    def fun(x):
        f, g = case.fun(x)
        seen.append(f)
        return f, g

    def first(goal):
        enough = goal + 1e-9 * abs(goal)
        return next((k for k, f in enumerate(seen, start=1) if f <= enough), inf)

    theirs = scipy.optimize.minimize(
        fun, case.x0, jac=True, method="CG", options={"maxiter": 10**5}
    )
    at_minimum = any(abs(theirs.fun - m) <= 1e-4 * m + 1e-6 for m in case.minima)
    goal = theirs.fun if theirs.success or at_minimum else max(case.minima) * (1 + 1e-4) + 1e-8
    scipy_needs, budget = first(goal), DEARER * len(seen) + 300
    seen.clear()
    fb.optimize.fmincg(
        fun, case.x0, maxiter=budget, maxfun=budget,
        callback=lambda intermediate_result: intermediate_result.fun <= goal,
    )  # fmt: skip
    return Comparison(case.name, goal, first(goal), scipy_needs)


def collection() -> Iterator[Case]:
    """Every standard start of the problems of Moré, Garbow and Hillstrom."""
    for name, problem in MGH.items():
        for scale, start in zip(problem.scales, problem.starts, strict=True):
            yield Case(f"{name}, x{scale:g}", problem.value_and_grad, start, problem.minima)


def gallery() -> Iterator[Case]:
    """What the examples fit, from where they start; digits by one class of each kind of data."""
    for name, objective, start in _objectives():
        if objective.net.plan.free is None:
            yield Case(name, objective.value_and_grad, np.asarray(start, float))
        else:
            inside = FreeCoordinates(objective, start)
            yield Case(name, inside.value_and_grad, inside.x0)


def _objectives() -> Iterator[tuple[str, Any, Any]]:
    from sklearn.datasets import load_digits, make_blobs

    line = fb.Network(1, fb.Dense(1))
    example = _example("g03")
    start = 2 * np.random.RandomState(1).random_sample(3) - 1
    yield "G03 squares", example.squares.objective(example.X, example.y, "sse"), start
    yield "G03 logits", example.logits.objective(example.X, example.y, "bce_logits"), start

    X, labels = load_digits(return_X_y=True)
    darkest = X[:, np.argsort(X.var(axis=0))[-3:]] / 16
    for name, data in (("0..16", X), ("/ 16", X / 16), ("3 pixels", darkest)):
        net = fb.Network(data.shape[1], fb.Dense(1))
        objective = net.objective(data, labels == 0, "bce_logits", l2=0.1 / len(X))
        yield f"G06 pixels {name}", objective, np.zeros(net.n_params)

    example, rng = _example("g09"), np.random.default_rng(0)
    X, start = rng.uniform(-1, 1, (200, 4)), example.net.init(seed=0)
    y = np.sin(X[:, 0] + X[:, 1]) + np.exp(X[:, 2] - X[:, 3]) / 4
    yield "G09", example.net.objective(X, y, "mse"), start

    example, random = _example("g13"), np.random.RandomState(0).random_sample
    start = example.net.pack([(random((3, 3)), None), (random((1, 3)), None)], layout="wx")
    yield "G13", example.net.objective(example.X, example.y, "sse"), start

    alcohol, total = np.loadtxt(_example("g14").DATA, delimiter=",", skiprows=1, unpack=True)
    yield "G14", line.objective(alcohol[:, None], total, "mse"), np.zeros(2)

    example = _example("g17")
    yield "G17", example.cubic.objective(example.X, example.y, "mse"), np.zeros(4)
    example = _example("g18")
    yield "G18", example.net.objective(example.X, example.y, "sse"), [0.0, 0.5, 0.5]
    example = _example("g20")
    X = np.array([[4.0, 7.0], [-3.0, 2.0], [1.0, -5.0], [-6.0, -1.0]])
    yield "G20", example.unit.objective(X, example.target(X), "sse"), example.START

    cars = np.array([car.split(",") for car in _example("g21").CARS.split()], float)
    km, price = fb.Scaler.minmax(cars).transform(cars).T
    yield "G21", line.objective(km[:, None], price, "mse"), np.zeros(2)
    example = _example("g22")
    people = np.array([person.split() for person in example.PEOPLE.split(",")], float)
    yield "G22", example.plane.objective(people[:, :2], people[:, 2], "half_mse"), np.zeros(3)

    example, rng = _example("g23"), np.random.default_rng(0)
    X = example.points(np.linalg.qr(rng.standard_normal((6, 4)))[0], rng)
    yield "G23", example.net.objective(X, X, "sse"), example.net.init(seed=0)

    blob, _ = make_blobs(n_samples=1000, random_state=170, centers=1)
    blob = blob @ [[0.60834549, -0.63667341], [-0.40887718, 0.85253229]]
    yield "G26", line.objective(blob[:, :1], blob[:, 1], "sse"), np.zeros(2)

    example = _example("g27")
    start = example.net.pack([([[0.3]], [0.0]), ([[-1.0]], [0.0])])
    yield "G27", example.net.objective(example.x, example.y, "sse").astype("float64"), start

    rng = np.random.default_rng(0)
    Z = rng.standard_normal((200, 3))
    labels = Z.sum(axis=1) + rng.standard_normal(200) > 0
    net = fb.Network(3, fb.Dense(1))
    yield "G28", net.objective(Z * [5, 1, 0.2], labels, "bce_logits"), np.zeros(4)


def _example(row: str) -> Any:
    (path,) = EXAMPLES.glob(f"{row}_*.py")
    return load(path)
