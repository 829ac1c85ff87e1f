"""`curve_fit` beside SciPy's on NIST's problems: parameters and covariance, without a Jacobian.

Both know the functions: the first call, in which fastbp traces one, is the check. A method that
does not reach four digits of NIST's parameters from a start does not take part there.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import scipy.optimize
from measuring.race import Contestant
from measuring.session import QUICK
from oracles import nist

import fastbp as fb

SCIPY = "SciPy curve_fit"
NAMES = ["Misra1a", "Gauss1", "Thurber"] if QUICK else list(nist.CURVES)
ROWS = [(name, start) for name in NAMES for start in (0, 1)]


class NotReached(Exception):
    """A method ended elsewhere."""


def fit(contestant: str, name: str, start: int) -> Contestant:
    """Fit the problem from one of its two starts."""
    problem, f = nist.problem(name), nist.CURVES[name]
    x, y, p0 = problem.x, problem.y, problem.starts[start]
    function = scipy.optimize.curve_fit if contestant == SCIPY else fb.optimize.curve_fit

    def check():
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                popt, pcov = function(f, x, y, p0)
        except RuntimeError as error:
            raise NotReached(str(error)) from None
        if not problem.digits(popt) >= 4:
            raise NotReached(f"{contestant}: {problem.digits(popt):.1f} digits")
        assert pcov.shape == (len(p0), len(p0))

    def run(times):
        with np.errstate(all="ignore"):
            for _ in range(times):
                _popt, _pcov = function(f, x, y, p0)

    return Contestant(run, check)


@pytest.mark.parametrize("contestant", ("c", SCIPY))
@pytest.mark.parametrize("name, start", ROWS)
def test_curve_fit(measure, name, start, contestant):
    if "c" not in fb.available_backends():
        pytest.skip("the C backend is not here")
    makers = {other: partial(fit, other, name, start) for other in ("c", SCIPY)}
    row = f"{name}, start {start}"
    try:
        with fb.use_backend("c"):
            measure(
                makers, contestant, 0.15, suite="curve_fit", row=row, dtype="float64", unit="fit"
            )
    except NotReached as failure:
        if contestant == "c":
            raise
        pytest.skip(str(failure))
