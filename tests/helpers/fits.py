"""Fits for the tests of `fit`: networks, methods by kind, what options are compared with."""

from __future__ import annotations

import numpy as np

import fastbp as fb
from fastbp.maths.losses import TABLE
from fastbp.training.optimizers import METHODS

NET = fb.Network(3, fb.Dense(5, "tanh"), fb.Dense(2))
LINE = fb.Network(3, fb.Dense(1))
N = 50
FIRST_ORDER = list(METHODS)
MINIMIZE = ["scg", "fmincg", "L-BFGS-B", "BFGS", "CG", "Newton-CG", "TNC", "SLSQP", "trust-constr",
    "trust-ncg", "trust-krylov", "trust-exact"]  # fmt: skip
LEAST_SQUARES = ["trf", "dogbox"]
FULL_BATCH = [*MINIMIZE, *LEAST_SQUARES]


def fitted(data, net=NET, **options):
    X, y = data
    return fb.fit(net, X, y, **{"epochs": 8, "seed": 5} | options)


def children(seed):
    """Of the initial parameters, the orders, the dropout and the rows held out."""
    return np.random.SeedSequence(seed).spawn(4)


def close(a, b, rtol=1e-11):
    """Equal but for the rounding of each step, about 1e-16, of which later ones make more."""
    np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


def losses_and_targets(rng):
    values = 100 + 30 * rng.standard_normal((N, 2))
    quartic = fb.custom_loss(lambda y, t: ((y - t) ** 4, 4 * (y - t) ** 3), name="quartic")
    forms = {
        "values": values,
        "probabilities": (values > 100).astype(float),
        "signs": np.where(values > 100, 1.0, -1.0),
        "counts": np.round(abs(values) / 50),
        "classes": (values[:, 0] > 100).astype(int),
        "halves": values[:, :1],
        "none": None,
    }
    for loss in TABLE.values():
        yield loss, forms[loss.target], loss.target in ("values", "halves")
    yield quartic, values / 50, False  # of which nobody knows what it compares
