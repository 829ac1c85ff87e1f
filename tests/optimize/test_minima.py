"""Clusters of minima: objectives within tolerances, points near each other, runaways."""

from __future__ import annotations

import numpy as np
import pytest

import fastbp as fb
from fastbp.optimize.minima import _clusters

# Clusters.


def test_fits_of_one_teacher_are_one_point(rng):
    """Noise makes the minimum one; permutations and signs of its units are the same point."""
    net = fb.Network(1, fb.Dense(2, "tanh"), fb.Dense(1))
    teacher = np.array([1.0, 2.5, 0.5, -1.0, 1.5, -1.0, 0.2])
    X = np.linspace(-3, 3, 200).reshape(-1, 1)
    y = net.forward(teacher, X) + 0.01 * rng.standard_normal((200, 1))
    ms = fb.multistart(net, X, y, 16, method="trf", epochs=500, seed=0)
    least = ms.clusters[0]
    assert len(least.members) >= 6 and least.n_points == 1 and not least.runaway
    raw = ms.params[: len(least.members)]
    assert len(np.unique(raw.round(2), axis=0)) > 1


def test_separable_classes_run_away(rng):
    X = np.linspace(-1, 1, 20).reshape(-1, 1)
    net = fb.Network(1, fb.Dense(1))
    options = {"loss": "bce_logits", "method": "L-BFGS-B", "epochs": 500, "tol": 1e-14}
    ms = fb.multistart(net, X, X[:, 0] > 0.1, 8, seed=0, **options)
    assert len(ms.clusters) == 1 and ms.clusters[0].runaway
    assert "runs away: parameters" in ms.summary()


def clusters(fun, points, starts=((1.0, 1.0),), rtol=1e-2, atol=1e-8):
    clusters = _clusters(np.array(fun), np.array(points), np.array(starts), np.asarray, rtol, atol)
    return [(c.fun, c.members, c.n_points, c.runaway) for c in clusters]


def test_clusters_are_of_objectives_within_the_tolerances():
    points = np.ones((6, 2))
    assert clusters([1.0, 1.009, 1.011, 1.02, 5.0, 5.0], points) == [
        (1.0, range(2), 1, False),
        (1.011, range(2, 4), 1, False),
        (5.0, range(4, 6), 1, False),
    ]
    zeros = [0.0, 1e-20, 1e-9, 1e-7, -1.0, 3.0]
    assert [c[1] for c in clusters(sorted(zeros), points)] == [
        range(1), range(1, 4), range(4, 5), range(5, 6),
    ]  # fmt: skip
    assert [c[1] for c in clusters([-2.0, -1.99, -1.9], points[:3])] == [range(2), range(2, 3)]
    assert clusters(np.empty(0), np.empty((0, 2))) == []


def test_points_are_near_relative_to_their_sizes():
    points = [[100.0, 1e-3], [101.0, 1.01e-3], [100.0, 2e-3], [101.0, 2e-3], [99.0, -1e-3]]
    ((_, members, n_points, _),) = clusters([1.0] * 5, points)
    assert (members, n_points) == (range(5), 3)


@pytest.mark.parametrize(
    "sizes, runaway",
    [
        ([5e4, 3e4, 9e3], True),  # far away, each elsewhere
        ([3e4, 5e4, 9e3], True),
        ([5e4, 5e4, 5e4], False),  # a minimum far away
        ([5e4], True),
        ([50.0, 40.0, 30.0, 20.0], True),  # the lower the farther
        ([30.0, 50.0, 20.0, 40.0], False),
        ([50.0, 40.0], False),
        ([5.0, 4.0, 3.0], False),
        ([50.0], False),
    ],
)
def test_runaways(sizes, runaway):
    points = [[1.0, size * (-1) ** k] for k, size in enumerate(sizes)]
    fun = 1.0 + 1e-5 * np.arange(len(sizes))
    assert [c[3] for c in clusters(fun, points)] == [runaway]
