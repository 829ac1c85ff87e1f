"""Callbacks of fmincg and scg: what they get, and how they stop the method."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.problems import rosenbrock, sum_of_squares

import fastbp as fb


@pytest.mark.parametrize("minimise", [fb.optimize.fmincg, fb.optimize.scg])
def test_callback_gets_every_iteration(minimise):
    points, results = [], []
    fun = sum_of_squares(rosenbrock)
    result = minimise(fun, [-1.2, 1.0], maxiter=7, callback=points.append)
    assert len(points) == 7
    assert [fun(x)[0] for x in points] == result.history[1:].tolist()

    def listen(intermediate_result):
        results.append((intermediate_result.x, intermediate_result.fun))

    minimise(fun, [-1.2, 1.0], maxiter=7, callback=listen)
    assert [fun(x)[0] for x, _ in results] == [f for _, f in results] == result.history[1:].tolist()


@pytest.mark.parametrize("minimise", [fb.optimize.fmincg, fb.optimize.scg])
def test_callback_may_write_to_its_point(minimise):
    fun = sum_of_squares(rosenbrock)
    result = minimise(fun, [-1.2, 1.0], callback=lambda x: x.fill(0))
    assert result.x.tobytes() == minimise(fun, [-1.2, 1.0]).x.tobytes()


def stop_by_raising(xk):
    raise StopIteration


@pytest.mark.parametrize("callback", [stop_by_raising, lambda xk: True, lambda xk: np.True_])
@pytest.mark.parametrize("minimise", [fb.optimize.fmincg, fb.optimize.scg])
def test_callback_stops(minimise, callback):
    fun = sum_of_squares(rosenbrock)
    result = minimise(fun, [-1.2, 1.0], callback=callback)
    assert (result.nit, result.status, result.success) == (1, 99, False)
    assert "callback" in result.message
    assert result.fun < fun(np.array([-1.2, 1.0]))[0]
