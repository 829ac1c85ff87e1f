"""Options of `fit` together: inputs, results, threads, memory, errors."""

from __future__ import annotations

import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
from helpers.fits import (
    FIRST_ORDER,
    FULL_BATCH,
    LINE,
    NET,
    N,
    close,
    fitted,
)

import fastbp as fb

pytestmark = pytest.mark.backend


# All of them.


@pytest.mark.parametrize("method", [*FIRST_ORDER, *FULL_BATCH])
def test_inputs_are_only_read(backend, data, held, method):
    arrays = [*data, *held, np.linspace(1, 2, N), np.linspace(1, 2, 21), NET.init(0)]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    X, y, Xv, yv, weights, weights_v, start = arrays
    options = {"method": method, "epochs": 4, "params": start, "sample_weight": weights}
    fitted((X, y), validation=(Xv, yv, weights_v), scale="standard", patience=3, **options)
    fitted((X, y), validation=0.3, **options)
    for array, copy in zip(arrays, before, strict=True):
        assert np.array_equal(array, copy)


@pytest.mark.parametrize("method", ["adam", "scg", "trf"])
def test_results_survive_pickling(backend, data, method):
    res = fitted(data, method=method, validation=0.2, patience=5, scale="standard")
    text = res.summary()  # what it computes of the rows stays in the result
    copy = pickle.loads(pickle.dumps(res))
    assert np.array_equal(copy.params, res.params)
    assert copy.history.keys() == res.history.keys()
    assert np.array_equal(copy.history["val_loss"], res.history["val_loss"])
    assert copy.summary() == text
    if res.state is not None:
        options = {"method": method, "validation": 0.2, "patience": 5, "scale": "standard"}
        a, b = (fb.fit(NET, *data, state=r.state, epochs=12, **options) for r in (res, copy))
        assert np.array_equal(a.params, b.params)


@pytest.mark.parametrize("method", ["adam", "scg", "L-BFGS-B", "trf"])
def test_results_as_scipy_s(backend, data, method):
    res = fitted(data, method=method)
    scipy_result = res.to_scipy()
    assert type(scipy_result).__module__.startswith("scipy.optimize")
    assert np.array_equal(scipy_result.x, res.params)
    assert np.array_equal(scipy_result.jac, res.grad)
    for name in ("fun", "success", "status", "message", "nit", "nfev"):
        assert scipy_result[name] == getattr(res, name)


@pytest.mark.parametrize("method", ["adam", "rmsprop", "scg"])
def test_threads_change_nothing(backend, dtype, rng, method):
    X = rng.standard_normal((1300, 3))
    data, net = (X, np.column_stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]])), NET.astype(dtype)
    options = {"method": method, "validation": 0.4, "patience": 3, "scale": "standard", "epochs": 3}
    if method != "scg":
        options |= {"batch_size": 600, "clip_norm": 0.1, "average": True}
    one, *others = (fitted(data, net, threads=threads, **options) for threads in (1, 2, 5))
    for res in others:
        assert res.params.tobytes() == one.params.tobytes()
        for name in ("loss", "val_loss"):
            assert res.history[name].tobytes() == one.history[name].tobytes()


COMBINED = {
    "watched": {"validation": 0.3, "patience": 3},
    "scaled": {"scale": "minmax", "validation": 0.2},
    "averaged": {"average": True, "clip_norm": 0.3, "lr": fb.schedules.cosine(0.03, 8)},
}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *itertools.product(FIRST_ORDER, COMBINED),
        *itertools.product(["scg", "L-BFGS-B"], ["watched", "scaled"]),
    ],
)
def test_backends_agree(data, method, name):
    runs = {
        backend: fitted(data, method=method, backend=backend, **COMBINED[name])
        for backend in fb.available_backends()
    }
    expected = runs["numpy"]
    for res in runs.values():
        # A gradient of almost zero is a quotient of two roundings after Adam's and its kin's root.
        close(res.params, expected.params, 1e-8)
        assert res.nit == expected.nit
        for key, values in expected.history.items():
            close(res.history[key], values, 1e-9)


def test_memory_does_not_grow_with_epochs_times_rows(backend):
    X = np.linspace(-1, 1, 2000).reshape(1000, 2)
    net, options = fb.Network(2, fb.Dense(1)), {"seed": 0, "batch_size": 400, "validation": 0.2}
    fb.fit(net, X, X[:, 0], epochs=2, **options)  # loads and compiles
    tracemalloc.start()
    try:
        fb.fit(net, X, X[:, 0], epochs=1500, **options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The orders of all epochs would be 1500·800 numbers, 9.6 MB; those of a block are 0.5 MB.
    assert peak < 3e6


# What cannot be.


MEANINGLESS = [
    ({"patience": 3}, r"patience is 3, but method '{}' never lets .*; pass validation=0\.2"),
    ({"clip_norm": 1.0}, "clip_norm=1 with method '{}', which chooses its own steps; leave it"),
    ({"average": True}, "average=True with method '{}', which chooses its own steps"),
    ({"batch_size": 8}, "batch_size is 8 with method '{}', which takes all rows at once"),
]


@pytest.mark.parametrize(("method", "case"), itertools.product(FULL_BATCH, MEANINGLESS))
def test_what_has_no_meaning_for_full_batch_methods(backend, data, method, case):
    options, message = case
    with pytest.raises(ValueError, match=message.format(method)):
        fitted(data, method=method, **options)


def test_what_validation_cannot_be(backend, data):
    X, y = data
    for fraction in (0, 1, 1.0, -0.2, 3, np.nan, np.inf, True, np.float32(0)):
        with pytest.raises(ValueError, match=r"validation is .*, expected a fraction in \(0, 1\)"):
            fitted(data, validation=fraction)
    for other in ("some", [], (X,), (X, y, None, None), {"X": X}, X):
        with pytest.raises(TypeError, match=r"validation is of type .*, expected a fraction in"):
            fitted(data, validation=other)
    for pair, error, message in [
        ((X[:, :2], y), fb.ShapeError, r"validation: X has shape \(50, 2\), expected \(n, 3\)"),
        ((X, y[:3]), fb.ShapeError, r"validation: y has shape \(3, 2\)"),
        ((X, y, np.ones(3)), fb.ShapeError, "validation: sample_weight has shape"),
        ((X[:0], y[:0]), fb.ShapeError, r"validation: X has shape \(0, 3\)"),
        ((X, y * np.nan), fb.NonFiniteError, "validation: y holds nan at row 0, column 0"),
        ((X * np.inf, y), fb.NonFiniteError, "validation: X holds .*inf at row 0, column 0"),
        ((X, y + 1j), TypeError, "validation: y has dtype complex128"),
        ((X, y, np.zeros(N)), ValueError, "validation: sample_weight is zero everywhere"),
    ]:
        with pytest.raises(error, match=message):
            fitted(data, validation=pair)
    for n, fraction in [(1, 0.5), (2, 0.9), (3, 0.99)]:
        with pytest.raises(ValueError, match=f"of {n} rows leaves none to train on"):
            fitted((X[:n], y[:n]), validation=fraction)
    with pytest.raises(ValueError, match="of 2 pairs of rows leaves none"):
        fitted((X[:4], None), LINE, loss="margin_ranking", validation=0.8)


WRONG = [
    ({"patience": 0}, ValueError, "patience is 0, expected at least 1"),
    ({"patience": -2, "method": "scg"}, ValueError, "patience is -2, expected at least 1"),
    ({"patience": 1.5}, TypeError, r"patience is 1\.5, expected a whole number"),
    ({"patience": True}, TypeError, "patience is True, expected a whole number"),
    ({"goal": "low"}, TypeError, "goal is 'low', expected a number"),
    ({"goal": np.nan}, ValueError, "goal is nan, expected the objective at which to stop"),
    ({"tol": -1e-3}, ValueError, r"tol is -0\.001, expected a finite number >= 0"),
    ({"tol": np.nan, "method": "BFGS"}, ValueError, "tol is nan, expected a finite number >= 0"),
    ({"tol": "small"}, TypeError, "tol is 'small', expected a number"),
    ({"max_time": 0}, ValueError, "max_time is 0, expected a positive number, or None"),
    ({"max_time": np.nan, "method": "trf"}, ValueError, "max_time is nan, expected a positive"),
    ({"max_time": "soon"}, TypeError, "max_time is 'soon', expected a number"),
    ({"clip_norm": 0}, ValueError, "clip_norm is 0, expected a positive number, or None"),
    ({"clip_norm": -1}, ValueError, "clip_norm is -1, expected a positive number, or None"),
    ({"clip_norm": np.nan}, ValueError, "clip_norm is nan, expected a positive number"),
    ({"clip_norm": [1, 2]}, TypeError, r"clip_norm is \[1, 2\], expected a number"),
    ({"average": "no"}, TypeError, "average is 'no', expected True or False"),
    ({"average": 0.9}, TypeError, r"average is 0\.9, expected True or False"),
    ({"shuffle": "no"}, TypeError, "shuffle is 'no', expected True or False"),
    ({"scale": "minmx"}, ValueError, "unknown scale 'minmx': .*did you mean 'minmax'"),
    ({"scale": True}, ValueError, "unknown scale True: expected one of 'standard', 'minmax'"),
    ({"callbacks": "plot"}, TypeError, "callbacks is 'plot', expected functions of one argument"),
    ({"callbacks": None}, TypeError, "callbacks is None, expected functions of one argument"),
    ({"callbacks": [print, 3]}, TypeError, "callbacks holds 3, expected functions of one"),
    ({"progress": "yes"}, ValueError, "progress is 'yes', expected 'auto'"),
    ({"weight_decay": -1, "method": "adamw"}, ValueError, "weight_decay is -1.0, expected a fin"),
    ({"weight_decay": 0.1}, TypeError, "unknown option of Adam 'weight_decay'"),
    ({"thread": 2, "method": "BFGS"}, TypeError, "did you mean 'threads'"),
    ({"gtoll": 2, "method": "bfgs"}, TypeError, "did you mean 'gtol'"),
    ({"max_nfevs": 2, "method": "trf"}, TypeError, "did you mean 'max_nfev'"),
    ({"sigm": 2, "method": "scg"}, TypeError, "did you mean 'sigma'"),
    ({"weight_decai": 0.1, "method": "adamw"}, TypeError, "did you mean 'weight_decay'"),
    ({"alpha": 1, "method": "rmsprop"}, ValueError, r"alpha is 1\.0, expected a number in \[0"),
    ({"lr_decay": np.inf, "method": "adagrad"}, ValueError, "lr_decay is inf, expected a finite"),
    ({"clip_nrom": 1.0}, TypeError, "did you mean 'clip_norm'"),
    ({"validatoin": 0.1}, TypeError, "did you mean 'validation'"),
    ({"sigm": 1e-3, "method": "scg"}, TypeError, "option of method 'scg' .*did you mean 'sigma'"),
    ({"hessp": print, "method": "scg"}, TypeError, "hessp is .*, expected True or False"),
    ({"sigma": 0.0, "method": "scg"}, ValueError, r"sigma is 0\.0, expected a small positive"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_options(backend, data, options, error, message):
    with pytest.raises(error, match=message):
        fitted(data, **options)
