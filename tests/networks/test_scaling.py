"""Scalers against scikit-learn's, and networks with a scaling folded in against the scaled way."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays
from oracles.bounds import gamma

import fastbp as fb
from fastbp.networks import scaling as _scaling

preprocessing = pytest.importorskip("sklearn.preprocessing")

EPS = np.finfo(float).eps


def data(rng, n=50, columns=3):
    """Columns of very different places and sizes."""
    return rng.standard_normal((n, columns)) * [1e-3, 1.0, 1e4] + [0.5, -3.0, 1e6]


PAIRS = {
    "standard": (fb.Scaler.standard, preprocessing.StandardScaler),
    "minmax": (fb.Scaler.minmax, preprocessing.MinMaxScaler),
}


# Scalers.


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_as_scikit_learn(name, n, rng):
    ours, theirs = PAIRS[name]
    X = data(rng, n)
    expected = theirs().fit_transform(X)
    # What rounding X and the shift leaves, in units of the scale.
    error = 8 * n * EPS * np.abs(X).max(axis=0) / ours(X).scale
    assert (abs(ours(X).transform(X) - expected) <= error * (1 + abs(expected))).all()


@pytest.mark.parametrize("name", PAIRS)
def test_transform_and_back(name, rng):
    X = data(rng)
    scaler = PAIRS[name][0](X)
    back = scaler.inverse_transform(scaler.transform(X))
    # Two roundings each way, of numbers up to the sum of what is added.
    assert (abs(back - X) <= gamma(4, np.float64) * (abs(X) + 2 * abs(scaler.shift))).all()


def test_exact_moments(rng):
    """Mean and deviation in rational arithmetic, of data that nearly cancel."""
    X = 1e9 + rng.integers(-3, 4, (40, 2)) / 1024
    scaler = fb.Scaler.standard(X)
    for j in range(2):
        column = [Fraction(x) for x in X[:, j].tolist()]
        mean = sum(column) / 40
        variance = sum((x - mean) ** 2 for x in column) / 40
        assert scaler.shift[j] == float(mean)
        assert scaler.scale[j] == pytest.approx(float(variance) ** 0.5, rel=1e-14)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
@pytest.mark.parametrize("name", PAIRS)
def test_large_data_are_looked_at_in_blocks(name, dtype, rng, monkeypatch):
    """The same to rounding as at once, of whatever type, without a float64 copy of it all."""
    X = (1000 * data(rng, 101)).astype(dtype)
    at_once = PAIRS[name][0](X.astype(float))
    monkeypatch.setattr(_scaling, "BLOCK_BYTES", 7 * 3 * 8)
    scaler = PAIRS[name][0](X)
    for part in ("shift", "scale"):
        expected = getattr(at_once, part)
        assert (
            abs(getattr(scaler, part) - expected) <= gamma(101, np.float64) * abs(X).max(0)
        ).all()
    scaled = scaler.transform(X, np.float32)
    assert scaled.dtype == np.float32
    assert np.array_equal(scaled, scaler.transform(X.astype(float)).astype(np.float32))


def test_results(rng):
    X = data(rng)
    standard = fb.Scaler.standard(X).transform(X)
    assert abs(standard.mean(axis=0)).max() < 1e-9  # eps·|x|/scale, of 1e6/1e4 and 0.5/1e-3
    assert standard.std(axis=0) == pytest.approx(np.ones(3), rel=1e-9)
    minmax = fb.Scaler.minmax(X).transform(X)
    assert (minmax.min(axis=0) == 0).all() and (minmax.max(axis=0) == 1).all()


@pytest.mark.parametrize("n", [1, 3, 1000, 100_000])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e10 / 3, 5e-324])
@pytest.mark.parametrize("name", PAIRS)
def test_constant_columns_are_only_shifted(name, value, n):
    """However many rows: sums of many round, and what rounds is not the column's deviation."""
    X = np.full((n, 3), value)
    X[:, 1] = np.arange(n)
    scaler = PAIRS[name][0](X)
    assert scaler.scale[0] == 1 and scaler.shift[0] == value
    assert (scaler.transform(X)[:, ::2] == 0).all()


def test_columns_constant_but_for_rounding():
    scaler = fb.Scaler.standard([0.1 + 0.2, 0.3, 0.3])
    assert scaler.scale == 1
    assert fb.Scaler.standard([1.0, 1.0 + 1e-12]).scale == pytest.approx(5e-13, rel=1e-3)


@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 20), st.integers(1, 3)),
        elements=st.floats(-1e6, 1e6, allow_subnormal=False),
    )
)
def test_any_finite_data(X):
    for fit in (fb.Scaler.standard, fb.Scaler.minmax):
        scaler = fit(X)
        scaled = scaler.transform(X)
        assert np.isfinite(scaled).all() and (scaler.scale > 0).all()
        back = scaler.inverse_transform(scaled)
        error = gamma(4, np.float64) * (abs(X) + 2 * abs(scaler.shift))
        underflow = np.finfo(float).smallest_subnormal * scaler.scale
        assert (abs(back - X) <= error + underflow).all()
    assert (scaled >= 0).all() and (scaled <= 1).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, bool, ">f8"])
def test_types(dtype):
    X = np.array([[0, 1], [1, 1], [1, 0]]).astype(dtype)
    scaler = fb.Scaler.standard(X)
    assert scaler.shift == pytest.approx([2 / 3, 2 / 3], rel=1e-15)
    assert scaler.transform(X).dtype == np.float64


def test_vectors_are_one_column():
    scaler = fb.Scaler.minmax([2.0, 4.0, 3.0])
    assert scaler.transform([2.0, 4.0]).tolist() == [0, 1]
    assert scaler.transform([[3.0]]).tolist() == [[0.5]]
    assert scaler.inverse_transform([0.5]).tolist() == [3]


def test_scalers_do_not_change(rng):
    shift = np.array([1.0, 2.0])
    scaler = fb.Scaler(shift, [3, 4])
    shift[0] = 7
    assert scaler.shift.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        scaler.scale[0] = 0
    copy = pickle.loads(pickle.dumps(scaler))
    assert copy.transform([[4.0, 6.0]]).tolist() == [[1, 1]]


@pytest.mark.parametrize("fit", [fb.Scaler.standard, fb.Scaler.minmax])
def test_bad_data(fit):
    with pytest.raises(fb.NonFiniteError, match="nan at row 1, column 0"):
        fit([[1.0, 2.0], [np.nan, 3.0]])
    with pytest.raises(fb.NonFiniteError, match="inf at row 0"):
        fit([[np.inf]])
    with pytest.raises(ValueError, match="expected it finite"):  # a range beyond the largest number
        fit([[1.7e308], [-1.7e308]])
    for shape in ((0, 2), (2, 2, 2), ()):
        with pytest.raises(fb.ShapeError, match="at least one row"):
            fit(np.zeros(shape))
    with pytest.raises(TypeError, match="expected real numbers"):
        fit([["a"]])


def test_bad_scalers():
    with pytest.raises(ValueError, match=r"scale holds 0\.0 at column 1"):
        fb.Scaler([1, 2], [1, 0])
    with pytest.raises(ValueError, match="shift holds nan at column 0"):
        fb.Scaler([np.nan], [1])
    with pytest.raises(fb.ShapeError, match=r"shift has shape \(2,\) and scale \(1,\)"):
        fb.Scaler([1, 2], [1])
    with pytest.raises(fb.ShapeError, match=r"scale has shape \(1, 1\)"):
        fb.Scaler([1], [[1]])
    with pytest.raises(TypeError, match="shift"):
        fb.Scaler([1j], [1])


@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 2), ()])
def test_widths_of_what_is_transformed(method, shape):
    with pytest.raises(fb.ShapeError, match=r"expected \(n, 2\)"):
        getattr(fb.Scaler([1, 2], [3, 4]), method)(np.zeros(shape))


# Folding.

SCALERS = {
    "standard": lambda X: fb.Scaler.standard(X),
    "minmax": lambda X: fb.Scaler.minmax(X),
    "pair": lambda X: (X.mean(axis=0), X.std(axis=0)),
    "pair of numbers": lambda X: (2.5, [40.0]),
    "sklearn standard": lambda X: preprocessing.StandardScaler().fit(X),
    "without mean": lambda X: preprocessing.StandardScaler(with_mean=False).fit(X),
    "without deviation": lambda X: preprocessing.StandardScaler(with_std=False).fit(X),
    "without both": lambda X: preprocessing.StandardScaler(with_mean=False, with_std=False).fit(X),
    "sklearn minmax": lambda X: preprocessing.MinMaxScaler().fit(X),
    "minmax to -1..1": lambda X: preprocessing.MinMaxScaler((-1, 1)).fit(X),
    "minmax to 3..7": lambda X: preprocessing.MinMaxScaler((3, 7)).fit(X),
    "largest": lambda X: preprocessing.MaxAbsScaler().fit(X),
    "robust": lambda X: preprocessing.RobustScaler().fit(X),
    "robust, no centre": lambda X: preprocessing.RobustScaler(with_centering=False).fit(X),
    "robust, no scale": lambda X: preprocessing.RobustScaler(with_scaling=False).fit(X),
    "robust, unit variance": lambda X: preprocessing.RobustScaler(unit_variance=True).fit(X),
}


def scaled(scaler, X):
    """The scaled data in extended precision, by the object's own definition."""
    X = X.astype(np.longdouble)
    if isinstance(scaler, fb.Scaler):
        return (X - scaler.shift) / scaler.scale
    if isinstance(scaler, tuple):
        return (X - np.asarray(scaler[0])) / np.asarray(scaler[1])
    return _by_attributes(scaler, X)


def _by_attributes(scaler, X):
    kind = type(scaler).__name__
    if kind == "MinMaxScaler":
        return X * scaler.scale_ + scaler.min_
    if kind == "StandardScaler":
        X = X - scaler.mean_ if scaler.with_mean else X
        return X / scaler.scale_ if scaler.with_std else X
    if kind == "RobustScaler":
        X = X - scaler.center_ if scaler.with_centering else X
        return X / scaler.scale_ if scaler.with_scaling else X
    assert kind == "MaxAbsScaler"
    return X / scaler.scale_


def unscaled(scaler, Y):
    """x = inverse of `scaled`, which is affine, from its values at 0 and 1."""
    zero, one = (scaled(scaler, np.full((1, Y.shape[1]), v)) for v in (0, 1))
    return (Y - zero) / (one - zero)


def outputs(net, pairs, X):
    """XW + b and tanh in extended precision, masks applied."""
    for layer, (W, b) in zip(net.layers, pairs, strict=True):
        W = np.where(layer.mask, W, 0) if layer.mask is not None else W
        Z = X @ W.astype(np.longdouble)
        if b is not None:
            Z = Z + (b if layer.bias_mask is None else np.where(layer.bias_mask, b, 0))
        X = np.tanh(Z) if layer.act.name == "tanh" else Z
    return X


MASK = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1]])
NETWORKS = {
    "one layer": lambda d: fb.Network(3, fb.Dense(2), dtype=d),
    "two layers": lambda d: fb.Network(3, fb.Dense(5, "tanh"), fb.Dense(2), dtype=d),
    "masked": lambda d: fb.Network(
        3,
        fb.Dense(4, "tanh", mask=MASK, bias_mask=[1, 1, 0, 1]),
        fb.Dense(2, mask=MASK[:, :2].repeat(2, axis=0)[:4]),
        dtype=d,
    ),
    "frozen": lambda d: fb.Network(
        3, fb.Dense(4, "tanh", trainable=False), fb.Dense(2, trainable=np.eye(4, 2)), dtype=d
    ),
}


@pytest.mark.parametrize("name", SCALERS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_folding(name, kind, dtype, rng):
    """The folded network on raw data gives what the scaled way gives, each parameter rounded once.

    An output is off by as much as roundings of the parameters move it: a relative u in each W'_ij
    and b'_j, and what γ of the sums in float64 leaves before that.
    """
    net = NETWORKS[kind](dtype)
    X = data(rng).astype(dtype).astype(float)
    Y = rng.standard_normal((50, 2)) * [1e3, 1e-2] + [5e4, -7.0]
    x_scaler, y_scaler = SCALERS[name](X), SCALERS[name](Y)
    params = (net.init(3) + 0.2 * rng.standard_normal(net.n_params)).astype(dtype)
    if net.masked is not None:  # what masked entries hold means nothing
        params[net.masked] = np.nan
    before = params.copy()
    folded = net.fold_scaling(params, x_scaler, y_scaler)
    assert np.array_equal(params, before, equal_nan=True) and not np.shares_memory(params, folded)
    assert folded.dtype == dtype and folded.shape == params.shape

    expected = unscaled(y_scaler, outputs(net, net.unpack(params), scaled(x_scaler, X)))
    pairs = net.unpack(folded)
    computed = outputs(net, pairs, X)
    # Where the errors of the parameters are added up: sizes of all terms, tanh being Lipschitz.
    unit = np.finfo(dtype).eps / 2 + gamma(20, np.float64)
    A, error = abs(X), np.zeros_like(X)
    for layer, (W, b) in zip(net.layers, pairs, strict=True):
        W = abs(np.where(layer.mask, W, 0) if layer.mask is not None else W).astype(float)
        b = abs(b if layer.bias_mask is None else np.where(layer.bias_mask, b, 0)).astype(float)
        shift_terms = A @ W  # Σ |shift/scale·W| is of the size of Σ |x W'|, x about the shift
        error = error @ W + unit * (2 * shift_terms + b)
        A = np.ones_like(error) if layer.act.name == "tanh" else shift_terms + b
    assert (abs(computed - expected) <= error).all()


def test_each_parameter_is_rounded_once(rng):
    X, net = data(rng), NETWORKS["one layer"]("float32")
    scalers, params = (fb.Scaler.standard(X), (7.1, 0.3)), net.init(0)
    double = net.astype("float64").fold_scaling(params, *scalers)
    assert np.array_equal(net.fold_scaling(params, *scalers), double.astype(np.float32))


def test_folding_is_exact_to_twelve_digits(rng):
    """As the promise reads: predictions from raw inputs, at full precision, to 1e-12."""
    X = rng.uniform(20_000, 250_000, (24, 1))
    y = 8000 - 0.02 * X + rng.standard_normal((24, 1))
    net = fb.Network(1, fb.Dense(1))
    x_scaler, y_scaler = fb.Scaler.minmax(X), fb.Scaler.minmax(y)
    params = np.array([-0.9953762249792935, 0.9362124793084768])
    raw = net.forward(net.fold_scaling(params, x_scaler, y_scaler), X)
    detour = y_scaler.inverse_transform(net.forward(params, x_scaler.transform(X)))
    assert (abs(raw - detour) <= 1e-12 * abs(detour)).all()


@pytest.mark.backend
def test_folded_networks_on_every_backend(backend, rng):
    X, Y = data(rng), rng.standard_normal((50, 2)) + 4
    net = fb.Network(3, fb.Dense(6, "relu"), fb.Dense(2))
    x_scaler, y_scaler = fb.Scaler.standard(X), fb.Scaler.standard(Y)
    params = net.init(0)
    raw = net.forward(net.fold_scaling(params, x_scaler, y_scaler), X)
    detour = y_scaler.inverse_transform(net.forward(params, x_scaler.transform(X)))
    # The shift is up to 100 to 500 times the scale, and so are the terms that cancel.
    assert abs(raw - detour).max() <= 1e-12 * abs(detour).max()


def test_one_side_alone(rng):
    X, net = data(rng), fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(1, "sigmoid"))
    scaler, params = fb.Scaler.standard(X), net.init(0)
    folded = net.fold_scaling(params, x_scaler=scaler)
    assert abs(net.forward(folded, X) - net.forward(params, scaler.transform(X))).max() < 1e-12
    assert np.array_equal(folded[16:], params[16:])
    assert np.array_equal(net.fold_scaling(params), params)
    linear = fb.Network(3, fb.Dense(1))
    folded = linear.fold_scaling([1, 2, 3, 4], y_scaler=(5.0, 2.0))
    assert folded.tolist() == [2, 4, 6, 13]


def test_masked_entries_stay_and_frozen_ones_change():
    net = fb.Network(2, fb.Dense(2, mask=[[1, 0], [1, 1]], bias_mask=[1, 0], trainable=False))
    junk = np.array([1.0, -0.0, 2.0, 3.0, 4.0, np.inf])
    folded = net.fold_scaling(junk, x_scaler=(0.0, 2.0), y_scaler=([1.0, 0.0], 10.0))
    assert folded.tobytes() == np.array([5.0, -0.0, 10.0, 15.0, 41.0, np.inf]).tobytes()


def test_missing_biases():
    bare = fb.Network(2, fb.Dense(3, "tanh", bias=False), fb.Dense(1, bias=False))
    ones = np.ones(bare.n_params)
    with pytest.raises(ValueError, match="x_scaler shifts unit 0 of layer 0, which has no bias"):
        bare.fold_scaling(ones, x_scaler=([1.0, 0.0], 1.0))
    with pytest.raises(ValueError, match="y_scaler shifts unit 0 of layer 1, which has no bias"):
        bare.fold_scaling(ones, y_scaler=(1.0, 1.0))
    folded = bare.fold_scaling(ones, (0.0, [2.0, 4.0]), (0.0, 3.0))  # no shift, no bias needed
    assert folded.tolist() == [0.5] * 3 + [0.25] * 3 + [3.0] * 3
    net = fb.Network(2, fb.Dense(2, mask=[[1, 0], [1, 1]], bias_mask=[1, 0]))
    with pytest.raises(ValueError, match="shifts unit 1 of layer 0"):
        net.fold_scaling(np.ones(6), x_scaler=(1.0, 1.0))
    # Unit 1 does not see input 0, whose shift it need not take up.
    assert net.fold_scaling(np.ones(6), x_scaler=([5.0, 0.0], 1.0))[4] == -4


def test_outputs_of_a_curved_layer_cannot_be_unscaled():
    net = fb.Network(2, fb.Dense(1, "tanh"))
    with pytest.raises(ValueError, match="the last layer is 'tanh'"):
        net.fold_scaling(np.ones(3), y_scaler=(0.0, 2.0))


def test_one_layer_takes_both(rng):
    """x' = (x - 10)/20, y' = (y + 1)/3: y = 3(w(x - 10)/20 + b) - 1."""
    net = fb.Network(1, fb.Dense(1))
    assert net.fold_scaling([2.0, 1.0], (10.0, 20.0), (-1.0, 3.0)) == pytest.approx([0.3, -1.0])


WRONG = {
    "wide scaler": (fb.Scaler([1, 2, 3], [1, 1, 1]), fb.ShapeError, "3 columns, expected 2"),
    "wide pair": (([1, 2, 3], 1), fb.ShapeError, r"_scaler\[0\] has shape \(3,\), .* or \(2,\)"),
    "pair of matrices": ((1, np.ones((1, 2))), fb.ShapeError, r"_scaler\[1\] has shape \(1, 2\)"),
    "scale 0": ((0.0, [1.0, 0.0]), ValueError, "scale holds 0.0 at column 1"),
    "shift NaN": ((np.nan, 1.0), ValueError, "shift holds nan"),
    "complex": ((1j, 1.0), TypeError, "expected real numbers"),
    "strings": (("1", "2"), TypeError, "expected real numbers"),
    "triple": ((1, 2, 3), TypeError, "expected a fitted"),
    "string": ("standard", TypeError, "expected a fitted"),
    "unfitted": (preprocessing.StandardScaler(), TypeError, "expected a fitted"),
    "unfitted minmax": (preprocessing.MinMaxScaler(), TypeError, "expected a fitted"),
    "other": (preprocessing.Normalizer().fit(np.eye(2)), TypeError, "expected a fitted"),
    "wide sklearn": (
        preprocessing.StandardScaler().fit(np.eye(3)), fb.ShapeError, "3 columns, expected 2",
    ),
    "wide without both": (
        preprocessing.StandardScaler(with_mean=False, with_std=False).fit(np.eye(3)),
        fb.ShapeError,
        "3 columns, expected 2",
    ),
    "wide robust": (
        preprocessing.RobustScaler(with_centering=False).fit(np.eye(3)),
        fb.ShapeError,
        "3 columns, expected 2",
    ),
    "clipping": (
        preprocessing.MinMaxScaler(clip=True).fit(np.eye(2)), ValueError, "which clips.*clip=False",
    ),
}  # fmt: skip


@pytest.mark.parametrize("side", ["x_scaler", "y_scaler"])
@pytest.mark.parametrize(("scaler", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_scalers(side, scaler, error, message):
    net = fb.Network(2, fb.Dense(2))
    with pytest.raises(error, match=message):
        net.fold_scaling(np.ones(6), **{side: scaler})


def test_wrong_parameters():
    with pytest.raises(fb.ShapeError, match="params has shape"):
        fb.Network(2, fb.Dense(2)).fold_scaling(np.ones(5), (0.0, 1.0))
