"""exp, tanh and sigmoid of `fastbp.jitted`: in jitted code, and in Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.strategies import same
from oracles import truth
from oracles.bounds import ULP_SIGMOID

import fastbp as fb
from fastbp import jitted

numba = pytest.importorskip("numba")

NAMES = ("exp", "tanh", "sigmoid")


def loop_of(name):
    """A user's loop over the function."""
    function = getattr(jitted, name)

    @numba.njit
    def loop(X, Y):
        for i in range(X.size):
            Y[i] = function(X[i])

    return loop


@pytest.mark.parametrize("name", NAMES)
def test_as_the_built_in_function_to_the_last_bit(dtype, name):
    """Within the bound in vectors and alone, also for subnormal numbers, infinities and NaN."""
    act, loop = fb.activation(name), loop_of(name)
    Z = truth.points(dtype)
    computed, special = np.empty_like(Z), np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype)
    loop(Z, computed)
    assert truth.ulps(computed, *truth.truth(act, dtype, 0)).max() <= ULP_SIGMOID
    assert same(computed, act.f(Z, backend="numba"))
    for points in (special, *Z[:200].reshape(-1, 1)):
        alone = np.empty_like(points)
        loop(points, alone)
        assert same(alone, act.f(points, backend="numba"))


@pytest.mark.parametrize("name", NAMES)
def test_types_in_jitted_code(name):
    function = getattr(jitted, name)
    call = numba.njit(lambda x: function(x))
    for x, returned in ((np.float32(0.5), "float32"), (0.5, "float64"), (2, "float64")):
        assert call(x) == pytest.approx(function(x), rel=1e-6)
        (signature,) = (s for s in call.nopython_signatures if s.args == (numba.typeof(x),))
        assert str(signature.return_type) == returned
    with pytest.raises(numba.TypingError, match=f"No implementation of function .*{name}"):
        call(np.zeros(3))


@pytest.mark.parametrize("name", NAMES)
def test_in_python(name):
    function, act = getattr(jitted, name), fb.activation(name)
    for x in (0.3, -2, True, np.float64(-1.5), 1000.0, -1000.0, math.inf, -math.inf):
        assert type(function(x)) is float
        assert function(x) == act.f(float(x), backend="numpy")
    assert math.isnan(function(math.nan))
    assert type(function(np.float32(0.3))) is np.float32
    for wrong in (np.zeros(3), "1", None, 1j):
        with pytest.raises(TypeError, match=rf"expected a number; fastbp.activation\('{name}'\).f"):
            function(wrong)
