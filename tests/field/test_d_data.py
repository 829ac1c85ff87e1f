"""Cases from the field: arrays that are no plain arrays of numbers, at every way in.

Each is refused with what to do, and leaves the caller's data as it was. To add a case, write the
array and its message into REFUSED, or a way in into WAYS_IN.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

import fastbp as fb

NET = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1))
PARAMS = NET.init(0)
X = np.random.default_rng(1).standard_normal((6, 2))
Y = X[:, :1] - 2 * X[:, 1:]

# A netCDF file's fill value, hidden behind the mask.
FILLED = np.where(X > X[3, 0], 9.97e36, X)

WAYS_IN = {
    "fit": lambda X: fb.fit(NET, X, Y, method="lm", seed=0, epochs=3),
    "fit, minibatches": lambda X: fb.fit(NET, X, Y, epochs=1, seed=0),
    "fit, targets": lambda X: fb.fit(NET, np.zeros((6, 2)), X[:, :1], epochs=1, seed=0),
    "forward": lambda X: NET.forward(PARAMS, X),
    "value and gradient": lambda X: NET.value_and_grad(PARAMS, X, Y),
    "objective": lambda X: NET.objective(X, Y),
    "dense layer": lambda X: fb.dense_forward(X, np.ones((2, 1))),
    "scaler": fb.Scaler.standard,
    "activation": lambda X: fb.activation("tanh").f(X),
    "curve": lambda X: fb.optimize.curve_fit(
        lambda x, a, b: a * x + b, X[:, 0], Y[:, 0], [1.0, 1.0]
    ),
    "curve, observations": lambda X: fb.optimize.curve_fit(
        lambda x, a, b: a * x + b, Y[:, 0], X[:, 0], [1.0, 1.0]
    ),
    "residuals": lambda X: fb.optimize.levenberg_marquardt(lambda p: p[0] - X[:, 0], [0.0]),
    "weights": lambda X: fb.fit(NET, Y @ [[1, 1]], Y, sample_weight=X[:, 0] * X[:, 0], epochs=1),
}
REFUSED = {
    "masked": (np.ma.masked_greater(FILLED, 1e30), fb.NonFiniteError, "masked entries, the first"),
    "complex": (X + 0j * X, TypeError, r"complex128, expected real numbers; pass real and imag"),
    "sparse": (scipy.sparse.csr_array(X), TypeError, r"sparse \(\w+\), expected an array; pass"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("way", WAYS_IN)
def test_refused_everywhere(way, kind):
    data, error, message = REFUSED[kind]
    before = data.copy()
    with pytest.raises(error, match=message):
        WAYS_IN[way](data)
    assert type(data) is type(before)
    assert (abs(data - before)).sum() == 0


@pytest.mark.parametrize("way", ["forward", "curve", "residuals"])
def test_a_mask_that_hides_nothing_is_no_matter(way):
    results = [WAYS_IN[way](data) for data in (X, np.ma.masked_array(X))]
    first, second = (getattr(r, "x", r) if way != "curve" else r.params for r in results)
    np.testing.assert_array_equal(first, second)
