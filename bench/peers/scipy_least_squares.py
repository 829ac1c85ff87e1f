"""SciPy's methods on functions of `handwritten`, ended by the goal; see bench_least_squares.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.optimize
from workloads import LeastSquares

from peers import handwritten


class Reached(Exception):
    """Ends a method at its argument."""


def least_squares(work: LeastSquares, method: str) -> Callable[[np.ndarray], np.ndarray]:
    """``run(params)`` by "lm" or "trf", with tolerances that never end it before the goal."""
    hand = handwritten.Residuals(work.net(), *work.data())

    def residuals(params):
        r = hand(params)
        if r @ r <= work.goal:
            raise Reached(params)
        return r

    def run(params):
        options = {"method": method} | dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
        try:
            return scipy.optimize.least_squares(residuals, params, jacobian, **options).x
        except Reached as reached:
            return reached.args[0]

    def jacobian(params):
        return hand.jacobian(params).T

    return run


def lbfgs(work: LeastSquares) -> Callable[[np.ndarray], np.ndarray]:
    """``run(params)`` by L-BFGS-B on the mean of squares."""
    X, y = work.data()
    mlp, goal = handwritten.Mlp(work.net(), "mse", len(X)), work.goal / len(X)

    def value_and_grad(params):
        value, grad = mlp.mse_and_gradient(params, X, y)
        if value <= goal:
            raise Reached(params.copy())
        return value, grad

    def run(params):
        limits = {"maxiter": 20_000, "maxfun": 20_000, "ftol": 0.0, "gtol": 0.0}
        try:
            return scipy.optimize.minimize(
                value_and_grad, params, jac=True, method="L-BFGS-B", options=limits
            ).x
        except Reached as reached:
            return reached.args[0]

    return run
