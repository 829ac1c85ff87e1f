"""Fits from the same weights to the same sum of squares, and the calls that they consist of."""

from __future__ import annotations

from functools import partial

import numpy as np
import peers
import pytest
from measuring.race import Contestant
from measuring.session import QUICK
from peers import handwritten, scipy_least_squares
from workloads import HAND, LEAST_SQUARES, QUICK_STARTS, STARTS, LeastSquares

import fastbp as fb

BACKENDS = [name for name in fb.available_backends() if name != "numpy"]
PEERS = peers.installed(peers.LEAST_SQUARES)
PLAIN = "by hand, plain"
JAX, JAX_FORMULAS = "JAX", "JAX formulas"
# More than any of the methods needs.
MOST_EPOCHS = 20_000


class NotReached(Exception):
    """A method ended above the goal."""


# What a row is about, and who takes part beside fastbp by that method.
METHODS = {
    "lm": {
        HAND: handwritten.Residuals,
        PLAIN: handwritten.PlainResiduals,
        "SciPy lm": partial(scipy_least_squares.least_squares, method="lm"),
        "SciPy trf": partial(scipy_least_squares.least_squares, method="trf"),
        "SciPy L-BFGS-B": scipy_least_squares.lbfgs,
        **{name: partial(peers.solver, name) for name in PEERS},
    },
    "L-BFGS-B": {"SciPy L-BFGS-B": scipy_least_squares.lbfgs},
    "trf": {"SciPy trf": partial(scipy_least_squares.least_squares, method="trf")},
}


def solver(name: str, work: LeastSquares, method: str):
    """``run(params)``, which returns the parameters that it ends with."""
    if name in (HAND, PLAIN):
        residuals = METHODS[method][name](work.net(), *work.data())
        return lambda params: handwritten.levenberg_marquardt(residuals, params, work.goal)
    if name in METHODS[method]:
        return METHODS[method][name](work)
    net, (X, y) = work.net(), work.data()
    goal = work.goal / len(X)  # of the mean

    def fit(params):
        options = {"method": method, "params": params, "goal": goal, "epochs": MOST_EPOCHS}
        if method == "L-BFGS-B":  # SciPy's own tolerances may come before the goal
            options |= {"ftol": 0.0, "gtol": 0.0}
        return fb.fit(net, X, y, backend=name, **options).params

    return fit


def fit(name: str, work: LeastSquares, method: str, start: int) -> Contestant:
    run, net, (X, y) = solver(name, work, method), work.net(), work.data()
    params = net.init(seed=start)

    def check():
        sse = net.value(np.array(run(params.copy())), X, y, "sse", backend="numpy")
        if not sse <= work.goal * (1 + 1e-9):  # roundings of another order of summation
            raise NotReached(f"{name} from start {start}: {sse:.6g}, {work.goal:g} wanted")

    def repeat(times):
        for _ in range(times):
            run(params)

    return Contestant(repeat, check)


FITS = [(problem, method, name) for problem in LEAST_SQUARES for method in METHODS
        for name in (*BACKENDS, *METHODS[method])]  # fmt: skip


@pytest.mark.parametrize("start", QUICK_STARTS if QUICK else STARTS)
@pytest.mark.parametrize("problem, method, name", FITS)
def test_fit(measure, problem, method, name, start):
    work = LEAST_SQUARES[problem]
    names = (*BACKENDS, *METHODS[method])
    makers = {other: partial(fit, other, work, method, start) for other in names}
    row = f"{problem} {work.title}, {method}, start {start}"
    try:
        measure(makers, name, 0.1, suite="fits", row=row, dtype="float64", unit="fit")
    except NotReached as failure:
        if name in BACKENDS:
            raise
        pytest.skip(str(failure))


def call(name: str, work: LeastSquares, what: str) -> Contestant:
    """One Jacobian; JᵀJ, Jᵀr and rᵀr at once."""
    net, (X, y) = work.net(), work.data()
    params = net.init(seed=1)
    function = {
        ("jacobian", HAND): partial(handwritten.jacobian, net, X=X),
        ("normal_equations", HAND): handwritten.Residuals(net, X, y).normal_equations,
    }.get((what, name))
    if name in (JAX, JAX_FORMULAS):
        from peers import jax_least_squares

        function = jax_least_squares.call(work, what, written_out=name == JAX_FORMULAS)
    elif function is None:
        function = getattr(net.objective(X, y, "sse", backend=name), what)

    def check():
        r = handwritten.PlainResiduals(net, X, y)
        J = handwritten.jacobian(net, params, X)
        expected = (J,) if what == "jacobian" else (J.T @ J, J.T @ r(params), r(params) @ r(params))
        found = function(params) if what == "normal_equations" else (function(params),)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())

    def repeat(times):
        for _ in range(times):
            function(params)

    return Contestant(repeat, check)


CALLERS = [*BACKENDS, HAND, *([JAX, JAX_FORMULAS] if "JAX LM" in PEERS else [])]


@pytest.mark.parametrize("name", CALLERS)
@pytest.mark.parametrize("what", ["jacobian", "normal_equations"])
@pytest.mark.parametrize("problem", LEAST_SQUARES)
def test_call(measure, problem, what, name):
    work = LEAST_SQUARES[problem]
    makers = {other: partial(call, other, work, what) for other in CALLERS}
    row = f"{problem} {work.title.split(',')[0]}, {what}"
    measure(makers, name, 0.2, suite="squares", row=row, dtype="float64", unit="call")
