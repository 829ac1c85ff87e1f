"""The time of an epoch over more and more rows, as they stand and shuffled."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from measuring.race import Contestant
from measuring.session import QUICK
from workloads import DTYPES

import fastbp as fb
from fastbp.cli.workloads import Training

ROWS = (1_000, 10_000, 100_000) if QUICK else (1_000, 10_000, 100_000, 1_000_000)
ORDERS = ("in order", "shuffled")
# A call ends with one look at all rows, so that one epoch would be no epoch's time.
EPOCHS = 5
WORK = Training((16, 32, 1), "relu", "linear", "mse", "adam", 1e-3, batch=32, batches=1)


def data(rows: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    return rng.random((rows, WORK.sizes[0]), dtype), rng.random((rows, WORK.sizes[-1]), dtype)


def contestant(rows: int, order: str, dtype: str) -> Contestant:
    net, (X, y) = WORK.net(dtype), data(rows, dtype)
    params, method = net.init(seed=1), fb.Adam(lr=WORK.lr)

    def run(epochs):
        return fb.fit(
            net, X, y, method=method, params=params, epochs=epochs, batch_size=WORK.batch,
            shuffle=order == "shuffled", seed=0,
        )  # fmt: skip

    def check():
        assert np.isfinite(run(1).fun)

    return Contestant(run, check, units=rows, least=EPOCHS)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_growth(measure, dtype, rows, order):
    makers = {
        f"{n} {other}": partial(contestant, n, other, dtype) for n in ROWS for other in ORDERS
    }
    measure(makers, f"{rows} {order}", 0.5, suite="growth", row=WORK.title, dtype=dtype, unit="row")
