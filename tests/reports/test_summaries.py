"""`FitResult.summary`: the lines of the text and their figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fastbp as fb

NET = fb.Network(3, fb.Dense(5, "tanh"), fb.Dense(1))


# The summary.


def rows_of(text):
    """The lines by name, those that go on joined."""
    rows: dict[str, str] = {}
    for one in text.splitlines():
        name, value = one[:20].strip(), one[20:]
        if name:
            rows[name] = value
        else:
            rows[list(rows)[-1]] += " " + value
    return rows


def test_summary_of_a_run_in_epochs(data):
    net = fb.Network(3, fb.Dense(5, "tanh", trainable=False), fb.Dense(1))
    res = fb.fit(net, *data, epochs=30, seed=7, validation=0.25, lr=0.02, backend="numpy")
    rows, valid, uncertainty = rows_of(res.summary()), res.history["val_loss"], res.uncertainty
    steepest = np.abs(res.grad).max()
    place = "W" if steepest in np.abs(res.grad[-6:-1]) else "b"
    assert rows == {
        "network": "3-5-1 (tanh, linear), float64, 26 parameters, 6 of them free",
        "method": "Adam(lr=0.02, betas=(0.9, 0.999), eps=1e-08)",
        "loss": "'mse' over 45 rows",
        "done": "30 epochs, 60 steps",
        "ended": "success: all 30 epochs done",
        "objective": f"{res.fun:.6g}",
        "largest |gradient|": f"{steepest:.3g} ({place} of layer 1)",
        "noise": f"{uncertainty.noise[0]:.4g} (standard deviation; 39 degrees of freedom, 6 "
        "effective parameters)",
        "standard errors": "; ".join(uncertainty.notes),
        "validation": f"best {valid.min():.6g} in epoch {1 + valid.argmin()}, last {valid[-1]:.6g}",
        "time": rows["time"],
        "seed": "7",
        "backend": "numpy",
    }


def test_summary_of_a_run_in_iterations(data):
    res = fb.fit(NET, *data, method="l-bfgs-b", epochs=8, seed=0)
    rows = rows_of(res.summary())
    assert rows["method"] == "L-BFGS-B"
    assert rows["done"] == f"8 iterations, {res.nfev} evaluations"
    assert rows["ended"].startswith("limit reached: ")
    assert "validation" not in rows


def test_summary_of_a_divergence_is_within_80_columns(data):
    X, y = data
    res = fb.fit(NET, X, y, method="sgd", lr=5.0, seed=0, on_divergence="return")
    text = res.summary()
    assert max(map(len, text.splitlines())) <= 80
    assert rows_of(text)["ended"] == f"divergence: {res.message}"


@pytest.mark.parametrize("depth", [1, 60])
def test_summary_of_deep_networks_is_within_80_columns(data, depth):
    net = fb.Network(3, *[fb.Dense(2, fb.leaky_relu(0.25)) for _ in range(depth)], fb.Dense(1))
    res = fb.fit(net, *data, epochs=1, seed=0)
    text = res.summary()
    assert max(map(len, text.splitlines())) <= 80
    assert rows_of(text)["network"].count("leaky_relu") == depth


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.00123456, "1.23 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (75.25, "75.2 s"),
        (150, "2 min"),
        (7260, "2 h 1 min"),
    ],
)
def test_summary_s_time(data, seconds, text):
    res = fb.fit(NET, *data, epochs=1, seed=0)
    res.elapsed = seconds
    assert rows_of(res.summary())["time"] == text


@pytest.mark.parametrize(
    "values, text",
    [
        ([], None),
        ([3.0, 1.0, 2.0], "best 1 in epoch 2, last 2"),
        ([3.0, np.nan], "best 3 in epoch 1, last nan"),
        ([np.nan, np.nan], "best nan in epoch 1, last nan"),
    ],
)
def test_summary_s_validation(data, values, text):
    res = fb.fit(NET, *data, epochs=1, seed=0)
    history = {"loss": np.ones(len(values)), "val_loss": np.array(values)}
    assert rows_of(replace(res, history=history).summary()).get("validation") == text
