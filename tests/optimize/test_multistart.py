"""`fb.optimize.multistart`: functions from many starts, how starts are drawn, what ends them."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
from helpers.figures import line, panels
from helpers.problems import SERIES, START, restricted_regression, same_results
from scipy.optimize import Bounds

import fastbp as fb
from fastbp.optimize import starts

# Functions.


def rosenbrock(x):
    return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def rosenbrock_jacobian(x):
    return np.array([[-20 * x[0], 10.0], [-1.0, 0.0]])


def half_square(x):
    r = rosenbrock(x)
    return r @ r / 2


def half_square_gradient(x):
    return rosenbrock_jacobian(x).T @ rosenbrock(x)


def half_square_pair(x):
    return half_square(x), half_square_gradient(x)


BOX = Bounds([-2.0, -1.0], [2.0, 3.0])


@pytest.mark.parametrize("method", ["trf", "dogbox", "lm"])
def test_least_squares_methods(method):
    jac = rosenbrock_jacobian
    ms = fb.optimize.multistart(rosenbrock, BOX, method, jac=jac, n_starts=10, seed=0)
    np.testing.assert_allclose(ms.best.x, [1, 1], rtol=1e-6)
    assert ms.fun[0] == ms.best.cost and ms.method == method and len(ms) == 10
    alone = fb.optimize.least_squares(rosenbrock, ms.starts[4], method, jac=jac)
    np.testing.assert_array_equal(alone.x, ms.x[4])
    assert ms.messages[4] == alone.message and "jac" not in ms.best and "fun" not in ms.best


def test_levenberg_marquardt_is_the_default():
    ms = fb.optimize.multistart(rosenbrock, BOX, n_starts=10, seed=0)
    np.testing.assert_allclose(ms.x, np.ones((10, 2)), rtol=1e-6)
    alone = fb.optimize.levenberg_marquardt(rosenbrock, ms.starts[4])
    np.testing.assert_array_equal(alone.x, ms.x[4])
    assert (ms.method, ms.fun[4]) == ("levenberg_marquardt", alone.cost)


@pytest.mark.parametrize("method", ["BFGS", "L-BFGS-B", "CG", "fmincg", "scg"])
def test_gradient_methods(method):
    options = {"n_starts": 10, "seed": 0, "options": {"maxiter": 500}}
    pair = fb.optimize.multistart(half_square_pair, BOX, method, **options)
    np.testing.assert_allclose(pair.best.x, [1, 1], rtol=1e-3)
    assert pair.best.fun == pair.fun[0] and "hess_inv" not in pair.best
    parts = fb.optimize.multistart(half_square, BOX, method, jac=half_square_gradient, **options)

    np.testing.assert_array_equal(pair.x, parts.x)


@pytest.mark.parametrize("threads", [2, 5])
def test_functions_in_threads(threads):
    def runs(threads):
        return fb.optimize.multistart(
            half_square_pair, lambda rng: rng.normal(size=2), "fmincg", n_starts=12, seed=5,
            threads=threads,
        )  # fmt: skip

    same_results(runs(1), runs(threads))


def test_arguments_and_options_reach_the_method():
    def shifted(x, where, scale):
        return scale * float((x - where) @ (x - where)), 2 * scale * (x - where)

    ms = fb.optimize.multistart(
        shifted, [[0.0, 0.0], [5.0, 5.0]], "L-BFGS-B", args=(np.array([1.0, 2.0]), 3.0),
        bounds=[(0, 0.5), (None, None)],
    )  # fmt: skip
    np.testing.assert_allclose(ms.x, [[0.5, 2.0]] * 2, rtol=1e-6)
    assert (ms.seed, ms.seeds) == (None, None)


def test_callbacks_of_functions_are_called_one_at_a_time():
    inside, seen = threading.Lock(), []

    def watch(intermediate_result):
        assert inside.acquire(blocking=False)
        seen.append(intermediate_result.fun)
        inside.release()

    ms = fb.optimize.multistart(
        half_square_pair, BOX, "L-BFGS-B", n_starts=6, seed=0, threads=3, callback=watch
    )
    assert len(seen) == sum(res.nit for res in ms)


def test_an_objective_with_frozen_parameters():
    obj, _, exact = restricted_regression()
    starts = np.array([START, START])
    starts[1, 0] = 3.0
    for method in ("trf", "fmincg", "levenberg_marquardt"):
        ms = fb.optimize.multistart(obj, np.nan_to_num(starts, nan=7.0), method)
        np.testing.assert_allclose(ms.x[:, [0, 3, 4]], [exact, exact], rtol=1e-4)
        assert (ms.x[:, [1, 2]] == [7.0, 2.0]).all()
        assert (len(ms.clusters), ms.clusters[0].n_points) == (1, 1)


# Functions: where they start.


def test_starts_drawn_by_a_function():
    def draw(rng):
        return rng.uniform(-1, 1, 2)

    few, many = (
        fb.optimize.multistart(rosenbrock, draw, "trf", jac="2-point", n_starts=n, seed=2)
        for n in (4, 9)
    )
    np.testing.assert_array_equal(many.starts[many.order < 4], few.starts)
    for k, seed in enumerate(many.seeds):
        np.testing.assert_array_equal(many.starts[k], draw(np.random.default_rng(seed)))
    assert len(fb.optimize.multistart(rosenbrock, draw, "trf", jac="2-point")) == 32


def test_a_latin_hypercube_in_bounds():
    box = Bounds([-1.0, 100.0, 3.0], [1.0, 200.0, 3.0])
    ms = fb.optimize.multistart(lambda x: x - 1, box, "trf", jac="2-point", n_starts=20, seed=0)
    inside = (ms.starts[:, :2] - [-1, 100]) / [2, 100]
    assert (ms.starts[:, 2] == 3).all()
    for column in inside.T:
        assert sorted(np.floor(20 * column)) == list(range(20))
    again = fb.optimize.multistart(
        lambda x: x - 1, box, "trf", jac="2-point", n_starts=20, seed=ms.seed
    )
    np.testing.assert_array_equal(again.starts, ms.starts)


def test_points_are_not_changed():
    points = np.array([[-1.2, 1.0], [3.0, 3.0]])

    def spoils(x):
        r = rosenbrock(x)
        x[:] = np.nan
        return r

    ms = fb.optimize.multistart(spoils, points, "lm", jac=rosenbrock_jacobian)
    np.testing.assert_array_equal(points, [[-1.2, 1.0], [3.0, 3.0]])
    np.testing.assert_array_equal(ms.starts, points[ms.order])
    np.testing.assert_allclose(ms.x, np.ones((2, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"starts": [1.0, 2.0]}, fb.ShapeError, r"shape \(2,\), .* starts.reshape\(1, -1\)"),
        ({"starts": np.ones((2, 2, 2))}, fb.ShapeError, r"shape \(2, 2, 2\), expected \(n_starts"),
        ({"starts": np.empty((0, 2))}, fb.ShapeError, r"shape \(0, 2\)"),
        ({"starts": [[1.0], [1.0, 2.0]]}, TypeError, "starts is not an array of real numbers"),
        ({"starts": [[1j, 2.0]]}, TypeError, "starts has dtype complex128"),
        ({"starts": [[1.0, np.inf]]}, fb.NonFiniteError, "starts holds inf at row 0, column 1"),
        (
            {"starts": [[1.0, 2.0]], "n_starts": 3},
            ValueError,
            "n_starts is 3, but starts are points",
        ),
        ({"starts": [[1.0, 2.0]], "seed": 3}, ValueError, "seed is 3, but starts are points"),
        ({"n_starts": 0}, ValueError, "n_starts is 0, expected at least 1"),
        ({"starts": Bounds([0, 0], [1, np.inf])}, ValueError, "expected finite bounds"),
        ({"starts": Bounds([0, 2], [1, 1])}, ValueError, "expected finite bounds"),
        ({"starts": lambda rng: "x"}, TypeError, "starts has dtype"),
        ({"starts": lambda rng: rng.normal(size=rng.integers(1, 9))}, TypeError, "equal length"),
        ({"method": "L-BFGS"}, ValueError, "unknown method 'L-BFGS'.*did you mean 'L-BFGS-B'"),
        ({"fun": 3}, TypeError, "fun is 3, expected a function"),
        ({"jac": None}, TypeError, "jac is missing"),
        ({"threads": -1}, ValueError, "threads is -1"),
        ({"nfev_max": 3}, TypeError, "unknown keyword of least_squares 'nfev_max'"),
    ],
)
def test_bad_arguments_of_functions(arguments, error, message):
    options = {"fun": rosenbrock, "starts": BOX, "method": "trf", "jac": "2-point", "seed": None}
    options |= arguments
    with pytest.raises(error, match=message):
        fb.optimize.multistart(**options)


# Functions: what ends them.


def test_failures_of_functions_come_last():
    def picky(x):
        if x[0] < -1:
            raise ArithmeticError("the model has no solution here")
        return rosenbrock(x) if x[0] < 1.5 else np.full(2, np.nan)

    ms = fb.optimize.multistart(picky, BOX, "trf", jac="2-point", n_starts=16, seed=0)
    n = 16 - ms.failed.sum()
    assert 3 < n < 16 and not ms.failed[:n].any()
    for message in ms.messages[n:]:
        assert message.startswith(("ArithmeticError: the model has", "ValueError: Residuals"))
    assert "failed" in ms.summary()


def test_an_objective_that_is_not_finite_is_a_failure():
    def pair(x):
        return (np.nan, 0 * x) if x[0] > 3 else (float(x @ x), 2 * x)

    ms = fb.optimize.multistart(pair, [[5.0], [1.0], [-np.pi]], "L-BFGS-B")
    assert ms.failed.tolist() == [False, False, True] and ms.order[2] == 0
    assert len(ms.clusters) == 1


@pytest.mark.parametrize("method", ["fmincg", "L-BFGS-B", "trf", "levenberg_marquardt"])
@pytest.mark.parametrize("threads", [1, 2])
def test_interrupted_functions_end_at_their_best_points(method, threads):
    calls, squares = [], method in ("trf", "levenberg_marquardt")

    def interrupted(x):
        calls.append(1)
        if len(calls) == 300:
            os.kill(os.getpid(), signal.SIGINT)
        return slow_valley(x)

    def slow_valley(x):
        r = np.concatenate([100 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])
        J = np.zeros((2 * len(x) - 2, len(x)))
        k = np.arange(len(x) - 1)
        J[k, k], J[k, k + 1], J[len(k) + k, k] = -200 * x[:-1], 100, -1
        return r if squares else (r @ r / 2, J.T @ r)

    def value(x):
        returned = slow_valley(x)
        return returned @ returned / 2 if squares else returned[0]

    starts = np.random.default_rng(0).uniform(-2, 2, (40, 30))
    options = {"jac": "2-point"} if squares else {"maxiter": 10**5, "tol": 1e-30}
    ms = fb.optimize.multistart(interrupted, starts, method, threads=threads, **options)
    assert not ms.success and ms.message.startswith("interrupted (Ctrl-C) after")
    cut = [k for k, message in enumerate(ms.messages) if "interrupted" in message]
    assert 1 <= len(cut) <= threads and len(cut) < len(calls) < 1000
    for k in cut:
        assert ms.fun[k] == pytest.approx(value(ms.x[k]), rel=1e-12)
        assert ms.fun[k] < value(ms.starts[k]) or ms[k].nfev == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_time_of_functions(threads):
    never = threading.Event()

    def slow(x):
        never.wait(0.05)
        return float(np.sum(np.cos(x) + 1e-3 * x**2)), -np.sin(x) + 2e-3 * x

    starts = np.random.default_rng(0).uniform(-2, 2, (20, 5))
    ms = fb.optimize.multistart(slow, starts, "fmincg", threads=threads, max_time=0.2)
    assert not ms.success and 1 <= len(ms) <= threads and ms.n_starts == 20
    assert ms.message == f"max_time is over after {len(ms)} of 20 starts"
    assert set(ms.messages) == {"max_time is over"}
    assert all(1 <= res.nfev <= 5 and res.fun == slow(res.x)[0] for res in ms)


def test_interrupt_before_anything_was_reached():
    def never(k):
        raise KeyboardInterrupt

    halt = starts.Halt(None)
    with pytest.raises(KeyboardInterrupt):
        starts.run_starts(never, 3, 1, halt, None, float)
    assert halt.interrupted.is_set()


# A fit by least squares whose series have a minimum or run away.

TIMES = np.arange(1, 7)


def growth_model(series):
    """Residuals of t_k = (c - asinh(c)·exp(2π·a·k))·b/a and their derivatives by a, b, c."""

    def residuals(x):
        a, b, c = x
        return (c - np.arcsinh(c) * np.exp(2 * np.pi * a * TIMES)) * b / a - series

    def jacobian(x):
        a, b, c = x
        E, s = np.exp(2 * np.pi * a * TIMES), np.arcsinh(c)
        inner = c - s * E
        by_a = -2 * np.pi * TIMES * s * E * b / a - inner * b / a**2
        return np.column_stack([by_a, inner / a, (1 - E / np.hypot(1, c)) * b / a])

    return residuals, jacobian


@pytest.mark.parametrize("number", range(5))
def test_one_series_has_two_mirrored_minima_and_the_others_run_away(number):
    residuals, jacobian = growth_model(SERIES[number])
    box = Bounds([0.05, -1.0, -1.0], [0.3, 1.0, 1.0])
    ms = fb.optimize.multistart(residuals, box, jac=jacobian, n_starts=8, seed=0, maxiter=300)
    (cluster,) = ms.clusters
    a, b, c = np.abs(ms.x.T)
    if number == 0:
        assert cluster.n_points == 2 and not cluster.runaway
        np.testing.assert_allclose(np.array([a, b, c]).T, 8 * [[0.0362, 0.642, 0.1207]], rtol=1e-3)
        assert (ms.x[:, 1] * ms.x[:, 2] < 0).all()
    else:
        assert cluster.runaway and "runs away" in ms.summary()
        assert b.min() > 50 and c.max() < 0.01
        np.testing.assert_allclose(b * c, b[0] * c[0], rtol=1e-4)


# What is shown.


def test_summary_of_many_clusters():
    starts = 2 * np.pi * np.arange(15.0).reshape(-1, 1) + 3
    wave = fb.optimize.multistart(
        lambda x: (float(np.cos(x[0]) + 0.1 * x[0]), -np.sin(x) + 0.1), starts, "L-BFGS-B"
    )
    assert len(wave.clusters) == 15
    assert "...  5 clusters more" in wave.summary() and "seed" not in wave.summary()


def test_plot_shows_the_clusters():
    ms = fb.optimize.multistart(half_square_pair, BOX, "fmincg", n_starts=12, seed=0, maxiter=9)
    (axes,) = panels(ms.plot())
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("start, best first", "objective")
    assert axes.get_title() == "12 starts of fmincg"
    shown = [points for points in axes.lines[1:] for points in points.get_ydata()]
    assert shown == ms.fun.tolist()
    x, y = line(axes, f"{ms.clusters[0].fun:.4g}: ")
    assert list(x) == [place + 1 for place in ms.clusters[0].members]
    assert (y == ms.fun[: len(x)]).all()


def test_runaways_are_rings():
    residuals, jacobian = growth_model(SERIES[1])
    starts = [[0.1, 1.25, -0.1], [0.05, 1.0, 0.3]]
    ms = fb.optimize.multistart(residuals, starts, "trf", jac=jacobian, max_nfev=50)
    for cluster in ms.clusters:
        object.__setattr__(cluster, "runaway", True)
    (axes,) = panels(ms.plot())
    assert all(points.get_markerfacecolor() == "none" for points in axes.lines[1:])
    assert "runs away" in axes.get_legend().get_texts()[0].get_text()
