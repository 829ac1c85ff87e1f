"""Runs that stop and go on: from a state, a file or another process, as if they had not stopped."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastbp as fb
from fastbp.networks.objective import Objective
from fastbp.training.optimizers import METHODS

pytestmark = pytest.mark.backend

NET = fb.Network(3, fb.Dense(5, "tanh"), fb.Dense(2))
FIRST_ORDER = list(METHODS)
CONTINUED = [*FIRST_ORDER, "scg"]
OTHERS = ["fmincg", "L-BFGS-B", "BFGS", "CG", "Newton-CG", "TNC", "SLSQP", "trust-constr", "trf"]
AT_ONCE = 1e-9  # as max_time: one step, which is no epoch, or one iteration


@pytest.fixture
def data(rng):
    X = rng.standard_normal((50, 3))
    return X, np.column_stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]])


def fitted(data, net=NET, state=None, **options):
    """A run of four steps an epoch; a state brings its own seed."""
    X, y = data
    run = {"epochs": 9, "seed": 5} | options
    if run.get("method") != "scg":
        run = {"batch_size": 16} | run
    if state is not None:
        del run["seed"]
    return fb.fit(net, X, y, state=state, **run)


def same_states(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, np.ndarray):
            assert (value.dtype, value.shape) == (b[name].dtype, b[name].shape), name
            assert value.tobytes() == b[name].tobytes(), name
        else:
            assert value == b[name], name


def same_runs(res, whole):
    assert res.params.tobytes() == whole.params.tobytes()
    assert list(res.history) == list(whole.history)
    for name, values in whole.history.items():
        assert res.history[name].tobytes() == values.tobytes(), name
    for name in ("fun", "status", "message", "nit", "nfev", "epoch", "step", "loss", "seed"):
        assert getattr(res, name) == getattr(whole, name), name
    assert res.grad.tobytes() == whole.grad.tobytes()
    same_states(res.state, whole.state)


# Stops of every kind.


@pytest.mark.parametrize("method", CONTINUED)
def test_more_epochs(backend, data, dtype, method):
    net = NET.astype(dtype)
    whole, some = (fitted(data, net, method=method, epochs=epochs) for epochs in (9, 4))
    res = fitted(data, net, some.state, method=method)
    same_runs(res, whole)
    assert not np.array_equal(res.params, some.params)


@pytest.mark.parametrize("method", CONTINUED)
def test_a_chain_of_stops(backend, data, method):
    whole = fitted(data, method=method, epochs=11)
    res = fitted(data, method=method, epochs=2)
    for epochs in (3, 7, 11):
        res = fitted(data, state=res.state, method=method, epochs=epochs)
    same_runs(res, whole)


@pytest.mark.parametrize("method", CONTINUED)
def test_out_of_time(backend, data, method):
    """Step by step through the first epoch, of which the first stops are in the middle."""
    whole = fitted(data, method=method)
    res, stops = fitted(data, method=method, max_time=AT_ONCE), []
    for _ in range(5):
        assert res.status == 1
        assert res.message.startswith("max_time is over after")
        stops.append((res.nit, res.nfev))
        res = fitted(data, state=res.state, method=method, max_time=AT_ONCE)
    if method != "scg":
        assert stops == [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5)]
    same_runs(fitted(data, state=res.state, method=method), whole)


@pytest.mark.parametrize("method", CONTINUED)
def test_a_goal_or_a_callback(backend, data, method):
    whole = fitted(data, method=method)
    losses = whole.history["loss"]
    lowest = int(np.argmin(losses[:5]))
    goal = fitted(data, method=method, goal=losses[lowest])
    assert (goal.status, goal.nit) == (0, lowest + 1)
    same_runs(fitted(data, state=goal.state, method=method), whole)
    stopped = fitted(data, method=method, callbacks=lambda epoch: epoch.epoch == goal.nit)
    assert (stopped.status, stopped.nit) == (5, goal.nit)
    same_states(stopped.state, goal.state)
    same_runs(fitted(data, state=stopped.state, method=method), whole)


@pytest.mark.parametrize("method", CONTINUED)
def test_patience(backend, data, method):
    """What waited goes on waiting: more patience than had run out is patience from the start."""
    X, y = data
    options = {"method": method, "epochs": 60, "validation": (X[:9], y[:9] - 1)}
    short, long = (fitted(data, patience=patience, **options) for patience in (3, 5))
    assert short.status == long.status == 0
    assert short.nit < long.nit
    same_runs(fitted(data, state=short.state, patience=5, **options), long)
    again = fitted(data, state=short.state, patience=3, **options)
    assert again.nit == short.nit + 1
    assert again.message.startswith("no progress in 3 ")


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("method", FIRST_ORDER)
def test_ctrl_c_in_the_middle(backend, module, data, monkeypatch, method, call):
    """Chunks of 1, 16, 19 steps: what an interrupted one did does not count."""
    for name in ("CHUNK_SECONDS", "STEP_SECONDS"):
        monkeypatch.setattr(f"fastbp.training.loop.{name}", 1e9)
    whole = fitted(data, method=method)
    train, calls = module.train, []

    def interrupted(*args):
        code = train(*args)
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return code

    monkeypatch.setattr(module, "train", interrupted)
    res = fitted(data, method=method)
    steps = [0, 1, 17, 36][call - 1]
    if call < 4:
        assert (res.status, res.nit, res.nfev) == (4, steps // 4, steps)
        assert np.isfinite(res.fun)
        res = fitted(data, state=res.state, method=method)
    same_runs(res, whole)


@pytest.mark.parametrize("method", CONTINUED)
def test_ctrl_c_in_a_callback(backend, data, method):
    def interrupted(epoch):
        if epoch.epoch == 3:
            raise KeyboardInterrupt

    whole = fitted(data, method=method, validation=0.2)
    res = fitted(data, method=method, validation=0.2, callbacks=interrupted)
    assert (res.status, res.nit) == (4, 3)
    same_runs(fitted(data, state=res.state, method=method, validation=0.2), whole)


@pytest.mark.parametrize("place", ["value_and_grad", "value", "callback"])
def test_ctrl_c_in_the_middle_of_scg(backend, data, monkeypatch, place):
    options = {"method": "scg", "epochs": 12, "validation": 0.2, "patience": 8}
    whole = fitted(data, **options)
    counts, resumed = [], []

    def interrupt(at):
        counts[-1] += 1
        if counts[-1] == at:
            raise KeyboardInterrupt

    for at in range(4, 11):  # the first three begin the search
        counts.append(0)
        with monkeypatch.context() as patch:
            callbacks = [lambda epoch, at=at: interrupt(at)] if place == "callback" else []
            if place != "callback":
                original = getattr(Objective, place)
                patch.setattr(
                    Objective, place,
                    lambda obj, p, at=at, f=original: (interrupt(at), f(obj, p))[1],
                )  # fmt: skip
            res = fitted(data, callbacks=callbacks, **options)
        assert res.status == 4
        assert len(res.history["loss"]) == len(res.history["val_loss"]) == res.nit
        resumed.append(fitted(data, state=res.state, **options))
    for res in resumed:
        same_runs(res, whole)


def test_a_real_ctrl_c(backend, data):
    """Wherever it comes, in epochs of fifty steps."""
    fitted(data, batch_size=1, epochs=1)  # compiles
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    res = fitted(data, batch_size=1, epochs=10**9)
    timer.join()
    assert res.status == 4
    epochs = res.nit + 3
    again = fitted(data, state=res.state, batch_size=1, epochs=epochs)
    same_runs(again, fitted(data, batch_size=1, epochs=epochs))


# Runs of every kind.


def masked_and_frozen():
    net = fb.Network(
        3,
        fb.Dense(
            4, "tanh", mask=[[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]], bias_mask=[1, 0, 1, 1]
        ),
        fb.Dense(3, "tanh", trainable=False),
        fb.Dense(2, trainable=[[1, 0], [0, 1], [0, 0]]),
    )
    start = net.init(123)
    start[1] = np.nan
    return {"net": net, "params": start}


WEIGHTS = np.linspace(0.5, 2, 50)
SETUPS = {
    "schedule": {"lr": fb.schedules.warmup(fb.schedules.cosine(0.02, 6), 2)},
    "own schedule": {"lr": lambda epoch: 0.01 / (1 + epoch) ** 2},
    "lr_decay": {"method": fb.Adagrad(lr_decay=0.1, initial_accumulator_value=0.1)},
    "rmsprop": {"method": fb.RMSprop(momentum=0.5, centered=True)},
    "scale": {"scale": "standard", "validation": 0.2},
    "minmax, pairs of weights": {"scale": "minmax", "sample_weight": WEIGHTS},
    "held out": {"validation": 0.3, "patience": 4, "sample_weight": WEIGHTS},
    "patience alone": {"patience": 2, "tol": 1e-3, "lr": 0.05},
    "average": {"average": True, "lr": 0.02},
    "average, watched": {"average": True, "validation": 0.2, "patience": 7},
    "clipped": {"clip_norm": 0.1, "method": "momentum"},
    "dropout": {"net": fb.Network(3, fb.Dense(5, "tanh", dropout=0.3), fb.Dense(2))},
    "masked and frozen": masked_and_frozen(),
    "start": {"params": NET.init(77), "scale": "standard"},
    "float32": {"net": NET.astype("float32"), "average": True, "scale": "standard"},
    "in order": {"shuffle": False},
    "all rows": {"batch_size": None, "method": "nesterov"},
    "penalties": {"l2": 0.1, "l1": 0.01, "group": 0.01},
    "a loss without normaliser": {"loss": "sse", "method": "sgd", "lr": 1e-3},
    "scg": {"method": "scg"},
    "scg, scaled": {"method": "scg", "scale": "minmax", "validation": 0.2},
    "scg, held out": {"method": "scg", "validation": 0.3, "patience": 4},
    "scg, masked and frozen": masked_and_frozen() | {"method": "scg"},
    "scg, exact products": {"method": "scg", "hessp": True, "sample_weight": WEIGHTS},
    "scg, float32": {"method": "scg", "net": NET.astype("float32")},
}


def through_a_file(path, res):
    fb.save(path, res.net, res.params, state=res.state)
    state = fb.load(path).state
    same_states(state, res.state)
    return state


@pytest.mark.parametrize("setup", SETUPS)
def test_every_kind_of_run(backend, data, tmp_path, setup):
    """Stopped in an epoch, at its end, and later; each time the state goes through a file."""
    options = dict(SETUPS[setup])
    net, path = options.pop("net", NET), tmp_path / "run.safetensors"
    whole = fitted(data, net, **options)
    res = fitted(data, net, **options, max_time=AT_ONCE)
    for last in (1, 6):
        state = through_a_file(path, res)
        before = copy.deepcopy(state)
        res = fitted(
            data, net, state, **options, callbacks=lambda epoch, last=last: epoch.epoch >= last
        )
        same_states(state, before)
    res = fitted(data, net, through_a_file(path, res), **options) if res.status == 5 else res
    same_runs(res, whole)


def test_pairs(backend, rng):
    net, X = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(1)), rng.standard_normal((30, 3))
    options = {"loss": "margin_ranking", "sample_weight": rng.uniform(0.5, 2, 15)}
    options |= {"validation": 0.2, "batch_size": 4, "scale": "standard"}
    whole = fitted((X, None), net, **options)
    res = fitted((X, None), net, **options, max_time=AT_ONCE)
    res = fitted((X, None), net, res.state, **options, callbacks=lambda epoch: epoch.epoch == 3)
    same_runs(fitted((X, None), net, res.state, **options), whole)


def test_orders_of_more_epochs_than_are_drawn_at_once(backend, data, monkeypatch):
    monkeypatch.setattr("fastbp.training.loop.ORDER_ROWS", 3 * 50)
    whole = fitted(data, epochs=11)
    res = fitted(data, epochs=2)
    for epochs in (3, 4, 7, 11):
        res = fitted(data, state=res.state, epochs=epochs)
        same_runs(res, fitted(data, epochs=epochs))
    assert np.array_equal(res.params, whole.params)


def test_the_start_need_not_be_given_again(backend, data):
    """Frozen entries are those that the run began with, masked ones too."""
    options = masked_and_frozen()
    net = options["net"]
    for method in ("adam", "scg"):
        whole = fitted(data, method=method, **options)
        state = fitted(data, method=method, epochs=3, **options).state
        same_runs(fitted(data, net, state, method=method), whole)


@pytest.mark.parametrize("method", CONTINUED)
def test_every_state_that_a_callback_sees(backend, data, method):
    states = []
    whole = fitted(data, method=method, callbacks=lambda epoch: states.append(epoch.state))
    assert len(states) == 9
    for k, state in enumerate(states[:-1]):
        if k in (0, 3, 7):
            same_runs(fitted(data, state=state, method=method), whole)
    same_states(states[-1], whole.state)


def test_an_average_begins_anew_in_a_longer_run(backend, data):
    options = {"average": True, "method": "sgd", "lr": 0.3}
    some = fitted(data, epochs=4, **options)
    same_runs(
        fitted(data, state=some.state, epochs=8, **options), fitted(data, epochs=8, **options)
    )
    plain = fitted(data, epochs=4, method="sgd", lr=0.3)
    res = fitted(data, state=plain.state, epochs=8, **options)
    same_runs(res, fitted(data, epochs=8, **options))
    dropped = fitted(data, state=some.state, epochs=8, method="sgd", lr=0.3)
    same_runs(dropped, fitted(data, epochs=8, method="sgd", lr=0.3))


def test_the_seed_may_be_given_again(backend, data):
    X, y = data
    state = fitted(data, epochs=3).state
    res = fb.fit(NET, X, y, seed=5, epochs=9, batch_size=16, state=state)
    same_runs(res, fitted(data))


def test_on_another_backend(data):
    whole, state = fitted(data, backend="numpy"), fitted(data, epochs=3, backend="numpy").state
    for backend in fb.available_backends():
        res = fitted(data, state=state, backend=backend)
        np.testing.assert_allclose(res.params, whole.params, rtol=0, atol=1e-12)


def test_limits_and_rates_may_be_others(backend, data):
    some = fitted(data, epochs=3, method="sgd", lr=0.1)
    res = fitted(data, state=some.state, epochs=5, method="sgd", lr=0.02, goal=-1.0, patience=9)
    rates = fitted(data, epochs=5, method="sgd", lr=lambda epoch: 0.1 if epoch < 3 else 0.02)
    assert np.array_equal(res.params, rates.params)
    assert np.array_equal(res.history["loss"], rates.history["loss"])


def test_a_search_that_has_ended(backend, rng):
    X = rng.standard_normal((40, 3))
    y, net = X @ [1.0, -2.0, 3.0] + 4, fb.Network(3, fb.Dense(1))
    whole = fb.fit(net, X, y, method="scg", seed=0, epochs=500)
    assert whole.success and whole.nit < 500
    again = fb.fit(net, X, y, method="scg", state=whole.state, epochs=1000)
    same_runs(again, whole)


@pytest.mark.parametrize("method", OTHERS)
def test_methods_that_keep_no_state(backend, data, method):
    res = fitted(data, method=method, batch_size=None, epochs=2)
    assert res.state is None
    state = fitted(data, epochs=2).state
    with pytest.raises(ValueError, match=f"method {method!r} keeps no state .* params=res.params"):
        fitted(data, state=state, method=method, batch_size=None)


# Checkpoints.

CHILD = """
import sys, numpy as np, fastbp as fb
rng = np.random.default_rng(3)
X = rng.standard_normal((50, 3))
net = fb.Network(3, fb.Dense(5, "tanh", dropout=0.1), fb.Dense(2))
fb.fit(net, X, X[:, :2] ** 2, method=sys.argv[2], epochs=10**8, seed=5, batch_size=16,
       scale="standard", validation=0.2, callbacks=fb.checkpoint(sys.argv[1], every=2))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_process(backend, tmp_path):
    path = tmp_path / "run.safetensors"
    environment = os.environ | {"FASTBP_BACKEND": backend}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), "adam"], env=environment)
    try:
        give_up, saved, loads = time.monotonic() + 120, None, 0
        while saved is None or saved.meta["epoch"] < 20 or loads < 20:
            assert child.poll() is None
            assert time.monotonic() < give_up
            if path.exists():
                saved = fb.load(path)  # whenever it is read, it is whole
                loads += 1
            time.sleep(0.001)
    finally:
        child.kill()
        child.wait()
    net, params, state, meta = fb.load(path)
    assert meta["epoch"] % 2 == 0
    rng = np.random.default_rng(3)
    X = rng.standard_normal((50, 3))
    options = {"batch_size": 16, "scale": "standard", "validation": 0.2}
    options["epochs"] = meta["epoch"] + 3
    res = fb.fit(net, X, X[:, :2] ** 2, method="adam", state=state, **options)
    seen = {}
    whole = fb.fit(
        net, X, X[:, :2] ** 2, method="adam", seed=5, **options,
        callbacks=lambda epoch: epoch.epoch == meta["epoch"] and seen.update(params=epoch.params),
    )  # fmt: skip
    same_runs(res, whole)
    assert np.array_equal(params, seen["params"])


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B", "trf"])
def test_checkpoints_of_every_method(backend, data, tmp_path, method):
    path, batch = tmp_path / "run.safetensors", 16 if method == "adam" else None
    seen = []
    res = fitted(
        data, method=method, batch_size=batch, epochs=5,
        callbacks=[fb.checkpoint(path, every=2), lambda epoch: seen.append(epoch.params)],
    )  # fmt: skip
    net, params, state, meta = fb.load(path)
    assert net == NET
    assert meta == {"epoch": 4, "loss": res.history["loss"][3]}
    assert np.array_equal(params, seen[3])
    assert os.listdir(tmp_path) == [path.name]
    if method in CONTINUED:
        again = fitted(data, state=state, method=method, batch_size=batch, epochs=5)
        same_runs(again, res)
    else:
        assert state is None


def test_checkpoints_are_saved_though_another_callback_stops(backend, data, tmp_path):
    path = tmp_path / "run.safetensors"
    res = fitted(data, callbacks=[lambda epoch: True, fb.checkpoint(path)])
    assert res.status == 5
    same_states(fb.load(path).state, res.state)


def test_a_checkpoint_that_cannot_be_written(backend, data, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fitted(data, callbacks=fb.checkpoint(tmp_path / "missing" / "run.safetensors"))
    with pytest.raises(TypeError, match=r"path is .*, expected the name of a file; callbacks="):
        fitted(data, callbacks=fb.checkpoint)
    for every, error in [(0, ValueError), (1.5, TypeError), ("2", TypeError)]:
        with pytest.raises(error, match="every is"):
            fb.checkpoint("run.safetensors", every=every)


# States that do not fit.


@pytest.mark.parametrize("method", ["adam", "scg"])
def test_states_of_other_runs(backend, data, method):
    X, y = data
    state = fitted(data, method=method, epochs=2).state
    other = "sgd" if method == "adam" else "adam"
    options = {"method": method, "state": state}
    wide = fb.Network(3, fb.Dense(6, "tanh"), fb.Dense(2))
    relu = fb.Network(3, fb.Dense(5, "relu"), fb.Dense(2))
    for net in (wide, relu, NET.astype("float32")):
        with pytest.raises(ValueError, match=r"state belongs to another run: its network is '3-5"):
            fitted(data, net, **options)
    with pytest.raises(ValueError, match=r"its network is '3-5-2 .*expected '4-5-2"):
        fitted((np.ones((50, 4)), y), fb.Network(4, *NET.layers), scale="standard", **options)
    with pytest.raises(ValueError, match=r"its method is .*; call fit as that run was called"):
        fitted(data, **options | {"method": other})
    with pytest.raises(ValueError, match="its rows is 50, expected 49"):
        fitted((X[1:], y[1:]), **options)
    with pytest.raises(ValueError, match="its scale is None, expected 'minmax'"):
        fitted(data, **options, scale="minmax")
    with pytest.raises(ValueError, match="seed is 6, but state goes on with seed 5"):
        fb.fit(NET, X, y, seed=6, **options)
    with pytest.raises(ValueError, match="rows is 50, expected 40"):
        fitted(data, **options, validation=0.2)
    with pytest.raises(ValueError, match="validation"):
        fitted(data, **options, validation=data)


def test_states_of_other_batches(backend, data):
    state = fitted(data, epochs=2).state
    for options, message in [
        ({"batch_size": 17}, "batch size is 16, expected 17"),
        ({"shuffle": False}, "shuffle is True, expected False"),
        ({"batch_size": None}, "batch size is 16, expected 50"),
    ]:
        with pytest.raises(ValueError, match=message):
            fitted(data, state=state, **options)


def test_masked_is_not_frozen(backend, data):
    """The same entries are free, but those of one network are zero."""
    columns = np.ones((3, 5))
    columns[:, 2] = 0
    masked, frozen = (
        fb.Network(3, fb.Dense(5, "tanh", **{kind: columns}), fb.Dense(2))
        for kind in ("mask", "trainable")
    )
    assert np.array_equal(masked.free, frozen.free)
    with pytest.raises(ValueError, match="its network is"):
        fitted(data, frozen, fitted(data, masked, epochs=2).state)


@pytest.mark.parametrize("method", ["adam", "scg"])
def test_a_run_that_is_finished(backend, data, method):
    state = fitted(data, method=method, epochs=4).state
    for epochs in (4, 3):
        with pytest.raises(ValueError, match=f"epochs.*{epochs}.*pass a larger number to go on"):
            fitted(data, state=state, method=method, epochs=epochs)


def test_options_that_need_other_vectors(backend, data):
    state = fitted(data, method="sgd", epochs=2).state
    with pytest.raises(ValueError, match=r"'moments', expected an array \(1, 32\)"):
        fitted(data, state=state, method="momentum")


def test_an_average_from_elsewhere(backend, data):
    state = fitted(data, epochs=4, average=True).state
    with pytest.raises(ValueError, match=r"averages parameters from step 8 on, expected .* 12 on"):
        fitted(data, state=state, epochs=6, average=True)
    state = fitted(data, epochs=4).state
    with pytest.raises(ValueError, match="averages no parameters, expected parameters from step"):
        fitted(data, state=state, epochs=6, average=True)


@pytest.mark.parametrize("method", ["adam", "scg"])
def test_no_state_at_all(backend, data, method):
    for state in (3, "state", [1], fitted(data, epochs=1)):
        with pytest.raises(
            TypeError, match=r"state is of type .*, expected the dict FitResult.sta"
        ):
            fitted(data, state=state, method=method)
    for state in ({}, {"seed": 3}, {"epoch": 3, "params": np.zeros(32)}):
        with pytest.raises(
            ValueError, match=r"state lacks '.*', expected the dict FitResult.state"
        ):
            fitted(data, state=state, method=method)


@pytest.mark.parametrize("options", [{}, {"scale": "standard"}, {"validation": 0.2, "patience": 5}])
@pytest.mark.parametrize("method", ["adam", "scg"])
def test_damaged_states(backend, data, method, options):
    state = fitted(data, method=method, epochs=2, **options).state
    optional = {"curvature", "status"}  # what a search has not asked for is not there
    for name, value in state.items():
        without = {key: other for key, other in state.items() if key != name}
        if name not in optional:
            with pytest.raises(ValueError, match=r"state (lacks|holds|has)"):
                fitted(data, state=without, method=method, **options)
        for wrong in ("x", None, -3, 2.5, np.zeros(7), np.zeros((2, 2)), {}):
            if type(wrong) is type(value) and not isinstance(value, np.ndarray | dict):
                continue
            if wrong is None and (value is None or name == "order"):
                continue  # without it orders are drawn from the first epoch on
            with pytest.raises(ValueError, match=r"state (lacks|holds|has|belongs)"):
                fitted(data, state=state | {name: wrong}, method=method, **options)
