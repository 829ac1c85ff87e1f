"""`fb.multistart`: equal results for any number of threads, their order, errors, the summary."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import tracemalloc

import numpy as np
import pytest
from helpers.problems import same_results

import fastbp as fb

NET = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1))
SAME = {"method": "L-BFGS-B", "epochs": 30}


@pytest.fixture
def data(rng):
    X = rng.uniform(-1, 1, (50, 2))
    return X, np.sin(3 * X[:, 0]) * X[:, 1]


# Networks: reproducible.


@pytest.mark.backend
@pytest.mark.parametrize(
    "options",
    [
        {"method": "adam", "epochs": 20, "batch_size": 8},
        {"method": "sgd", "epochs": 20, "average": True, "scale": "standard"},
        {"method": "L-BFGS-B", "epochs": 20, "l2": 1e-3},
        {"method": "trf", "epochs": 8, "scale": "minmax"},
        {"method": "lm", "epochs": 8, "scale": "standard", "l2": 1e-3},
        {"method": "scg", "epochs": 10, "loss": fb.huber(0.3)},
    ],
    ids=lambda options: options["method"],
)
def test_each_start_can_be_run_again(backend, data, options):
    X, y = data
    options |= {"sample_weight": np.linspace(1, 2, 50), "validation": (X[:9], y[:9])}
    ms = fb.multistart(NET, X, y, 5, seed=3, threads=2, **options)
    assert len(ms) == 5 and ms.success and ms.message == "5 starts done"
    for k, res in enumerate(ms):
        again = fb.fit(NET, X, y, seed=ms.seeds[k], **options)
        assert again.seed == res.seed and res.backend == backend
        np.testing.assert_array_equal(again.params, ms.params[k])
        np.testing.assert_array_equal(again.params, res.params)
        for name, values in again.history.items():
            np.testing.assert_array_equal(values, res.history[name])
        assert again.fun == res.fun == ms.fun[k]


@pytest.mark.backend
def test_the_number_of_threads_changes_nothing(backend, data):
    one, *others = (fb.multistart(NET, *data, 7, seed=1, threads=t, **SAME) for t in (1, 2, 5))
    for other in others:
        same_results(one, other)


def test_seeds_do_not_depend_on_the_number_of_starts(data):
    few, many = (fb.multistart(NET, *data, n, seed=1, **SAME) for n in (3, 8))
    assert len(set(many.seeds)) == 8
    first = many.order < 3
    np.testing.assert_array_equal(many.order[first], few.order)
    np.testing.assert_array_equal(many.params[first], few.params)


def test_a_seed_is_drawn_and_kept(data):
    ms = fb.multistart(NET, *data, 3, **SAME)
    other = fb.multistart(NET, *data, 3, **SAME)
    assert ms.seed != other.seed
    same_results(ms, fb.multistart(NET, *data, 3, seed=ms.seed, **SAME))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [None, "standard"])
def test_starts_are_where_the_fits_began(data, dtype, scale):
    seen = {}

    def first(epoch):
        if epoch.epoch == 1:
            seen[epoch.start] = epoch.params

    X, y = data
    ms = fb.multistart(
        NET.astype(dtype), 5 * X, y, 4, method="sgd", lr=1e-30, epochs=1, seed=0, callbacks=first,
        scale=scale,
    )  # fmt: skip
    assert ms.starts.dtype == ms.params.dtype == np.dtype(dtype)
    for k in range(4):
        np.testing.assert_allclose(ms.starts[k], seen[ms.order[k]], 4 * np.finfo(dtype).eps, 1e-25)


# Best first.


def test_best_first(data):
    ms = fb.multistart(NET, *data, 9, seed=0, **SAME)
    assert (np.diff(ms.fun) >= 0).all() and not ms.failed.any()
    assert sorted(ms.order) == list(range(9))
    assert ms.best is ms[0] and ms.x is ms.params and ms[-2:] == ms.results[-2:]
    assert [res.fun for res in ms] == ms.fun.tolist()
    assert [res.message for res in ms] == ms.messages
    members = [place for cluster in ms.clusters for place in cluster.members]
    assert members == list(range(9))


def test_those_that_diverge_come_last(data):
    X, y = data
    options = {"method": "sgd", "lr": 0.7, "epochs": 200, "batch_size": None}
    ms = fb.multistart(NET, X, y, 12, seed=0, **options)
    n = 12 - ms.failed.sum()
    assert 0 < n < 12
    assert ms.failed.tolist() == n * [False] + (12 - n) * [True]
    assert (np.diff(ms.fun[:n]) >= 0).all()
    assert all("fit diverged in epoch" in message for message in ms.messages[n:])
    assert sum(len(cluster.members) for cluster in ms.clusters) == n
    assert f"failed     {12 - n}, first start {ms.order[n:].min()}: fit diverged" in ms.summary()


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_ends_one_start(data, threads):
    def failing(epoch):
        if epoch.start in (1, 4):
            raise RuntimeError(f"no luck with {epoch.start}")

    whole = fb.multistart(NET, *data, 6, seed=0, **SAME)
    ms = fb.multistart(NET, *data, 6, seed=0, threads=threads, callbacks=failing, **SAME)
    assert ms.success and ms[4:] == [None, None]
    assert ms.messages[4:] == ["RuntimeError: no luck with 1", "RuntimeError: no luck with 4"]
    assert ms.order[4:].tolist() == [1, 4] and ms.failed.tolist() == 4 * [False] + 2 * [True]
    assert np.isnan(ms.fun[4:]).all() and np.isnan(ms.params[4:]).all()
    others = ~np.isin(whole.order, (1, 4))
    np.testing.assert_array_equal(ms.params[:4], whole.params[others])
    assert "first start 1: RuntimeError: no luck with 1" in ms.summary()
    ms.plot()


def test_the_first_exception_is_raised_if_all_raise(data):
    def failing(epoch):
        raise RuntimeError(f"no luck with {epoch.start}")

    with pytest.raises(RuntimeError, match="no luck with 0") as error:
        fb.multistart(NET, *data, 4, threads=2, callbacks=failing, **SAME)
    assert error.value.__notes__ == [
        "None of 4 starts came to a result; the first one raised this."
    ]


# Networks: many threads at once.


@pytest.mark.parametrize("threads", [1, 4])
def test_callbacks_are_called_one_at_a_time(data, threads):
    inside, seen = threading.Lock(), []

    def watch(epoch):
        assert inside.acquire(blocking=False)
        seen.append(epoch.start)
        inside.release()
        return epoch.start == 2 and epoch.epoch == 3

    ms = fb.multistart(NET, *data, 6, epochs=9, seed=0, threads=threads, callbacks=[watch])
    counts = np.bincount(seen)
    assert counts.tolist() == [9, 9, 3, 9, 9, 9]
    (stopped,) = np.flatnonzero(ms.order == 2)
    assert ms.messages[stopped] == "a callback stopped the fit after 3 epochs"
    assert ms.success


@pytest.mark.parametrize("threads", [1, 2])
def test_time_is_for_all_together(data, threads):
    ms = fb.multistart(NET, *data, 50, epochs=10**9, seed=0, threads=threads, max_time=0.2)
    assert not ms.success and 1 <= len(ms) <= threads and ms.n_starts == 50
    assert ms.message == f"max_time is over after {len(ms)} of 50 starts"
    assert all(res.status == 1 for res in ms)
    assert ms.params.shape == ms.starts.shape == (len(ms), NET.n_params)


@pytest.mark.parametrize("method", ["adam", "fmincg", "lm"])
@pytest.mark.parametrize("threads", [1, 3])
def test_interrupt_keeps_what_was_reached(data, threads, method):
    X, y = data
    begun = threading.Event()

    def interrupt():
        begun.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    def watch(epoch):
        if epoch.epoch == 5:
            begun.set()

    timer = threading.Thread(target=interrupt)
    timer.start()
    y = y + np.random.default_rng(0).standard_normal(len(y))
    net = fb.Network.mlp([2, 40, 40, 1])
    options = {"method": method, "epochs": 10**6, "callbacks": watch}
    ms = fb.multistart(net, X, y, 20, seed=0, threads=threads, **options)
    timer.join()
    assert not ms.success and 1 <= len(ms) <= threads
    assert ms.message == f"interrupted (Ctrl-C) after {len(ms)} of 20 starts"
    assert {res.status for res in ms} == {4} and np.isfinite(ms.fun).all()
    fb.fit(NET, *data, epochs=2)  # nothing is left of it


@pytest.mark.backend
def test_results_share_the_data(backend, rng):
    X = rng.standard_normal((20_000, 20)).astype(np.float32)  # converted: 3.2 MB
    net = fb.Network(20, fb.Dense(1))
    y = X[:, 0].tolist()
    options = {"method": "sgd", "epochs": 1, "batch_size": None, "scale": "standard"}
    fb.multistart(net, X, y, 2, **options)
    tracemalloc.start()
    ms = fb.multistart(net, X, y, 20, threads=2, **options)
    in_use, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ms) == 20 and in_use < 3 * 20_000 * 21 * 8
    assert len(pickle.dumps(ms)) < 100_000


def test_progress_counts_the_starts(data, capsys):
    fb.multistart(NET, *data, 6, seed=0, progress=True, threads=2, **SAME)
    assert "6/6" in capsys.readouterr().err
    fb.multistart(NET, *data, 6, seed=0, **SAME)
    assert capsys.readouterr().err == ""


# Networks: bad input.


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"n_starts": 0}, ValueError, "n_starts is 0, expected at least 1"),
        ({"n_starts": 2.5}, TypeError, "n_starts is 2.5, expected a whole number"),
        ({"n_starts": True}, TypeError, "n_starts is True, expected a whole number"),
        ({"threads": 0}, ValueError, "threads is 0, expected at least 1"),
        ({"seed": -1}, ValueError, "seed is -1, expected at least 0"),
        ({"max_time": 0}, ValueError, "max_time is 0, expected a positive number"),
        ({"max_time": "soon"}, TypeError, "max_time is 'soon', expected a number"),
        ({"rtol": -1.0}, ValueError, "rtol is -1.0, expected a finite number >= 0"),
        ({"atol": np.nan}, ValueError, "atol is nan, expected a finite number >= 0"),
        ({"params": np.zeros(13)}, ValueError, "multistart draws the starts from its seed"),
        ({"seed": 0, "params": np.zeros(13)}, ValueError, "leave params out"),
        ({"state": {}}, ValueError, "state is of one run"),
        ({"validation": 0.2}, ValueError, "validation is 0.2, of which each start would hold out"),
        ({"progress": "yes"}, ValueError, "progress is 'yes', expected 'auto'"),
        ({"callbacks": 3}, TypeError, "callbacks is 3, expected functions"),
        ({"mehtod": "adam"}, TypeError, "did you mean 'method'"),
        ({"method": "adan"}, ValueError, "did you mean 'adam'"),
        ({"epochs": 0}, ValueError, "epochs is 0"),
        ({"scale": "standart"}, ValueError, "did you mean 'standard'"),
    ],
)
def test_bad_arguments(data, options, error, message):
    with pytest.raises(error, match=message):
        fb.multistart(NET, *data, **({"n_starts": 3} | options))


def test_bad_data(data):
    X, y = data
    with pytest.raises(fb.ShapeError, match=r"X has shape \(50, 3\), expected \(n, 2\)"):
        fb.multistart(NET, np.ones((50, 3)), y)
    with pytest.raises(fb.ShapeError, match=r"y has shape \(49,\)"):
        fb.multistart(NET, X, y[1:])
    with pytest.raises(fb.NonFiniteError, match="X holds nan at row 3, column 1"):
        fb.multistart(NET, np.where(np.arange(100).reshape(50, 2) == 7, np.nan, X), y)
    with pytest.raises(fb.NonFiniteError, match="y holds nan at row 0"):
        fb.multistart(NET, X, np.full(50, np.nan), loss="bce_logits")
    with pytest.raises(TypeError, match=r"net is ndarray, expected fastbp.Network"):
        fb.multistart(X, y, NET)
    frozen = fb.Network(2, fb.Dense(1, trainable=False))
    with pytest.raises(ValueError, match="masked or frozen"):
        fb.multistart(frozen, X, y, 3)


# What is shown.


def test_summary_and_repr(data):
    ms = fb.multistart(NET, *data, 9, seed=4, **SAME)
    text = ms.summary()
    assert all(len(text_line) <= 80 for text_line in text.splitlines())
    for part in ("L-BFGS-B", "9 starts done", f"least {ms.fun[0]:.6g}", f"largest {ms.fun[8]:.6g}"):
        assert part in text
    rows = text.partition("points\n")[2].splitlines()
    assert [int(row.split()[1]) for row in rows] == [len(c.members) for c in ms.clusters]
    assert f"fun={ms.fun[0]:.6g} at best" in repr(ms) and "seed=4" in repr(ms)
