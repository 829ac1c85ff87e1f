"""dense_forward and dense_backward of every backend against the formulas in extended precision."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.strategies import EVERY_ACTIVATION, same
from oracles import bounds
from oracles.bounds import exact

import fastbp as fb

pytestmark = pytest.mark.backend

EDGES = (47, 48, 49, 63, 64, 65, 95, 96, 97, 128, 129, 200)


CROSSING = ("gelu", "gelu_tanh", "silu", "mish")  # whose derivatives cross 0


def shapes():
    """(n, n_in, n_out): each batch to 70, each width to 33 on both sides, the edges of tiles."""
    rng = np.random.default_rng(33)
    widths = [np.concatenate([1 + rng.permutation(33) for _ in range(3)]) for _ in range(2)]
    few = [(n, *map(int, w)) for n, *w in zip(range(1, 71), *widths, strict=False)]
    small = [int(k) for k in rng.integers(1, 34, 40)]
    n = [int(k) for k in rng.integers(1, 71, 40)]
    wide = [(n[i], edge, small[i]) for i, edge in enumerate(EDGES)]
    wide += [(n[-i - 1], small[-i - 1], edge) for i, edge in enumerate(EDGES)]
    wide += [(9, 129, 97), (65, 64, 96), (24, 48, 200)]
    tall = [(255, 31, 5), (256, 8, 33), (257, 17, 12), (300, 3, 18)]
    return few + wide + tall


def layer(rng, n, n_in, n_out, dtype, bias=True):
    """X, W, b and dY; Z of spread about 1."""
    X = rng.standard_normal((n, n_in)).astype(dtype)
    W = (rng.standard_normal((n_in, n_out)) / np.sqrt(n_in)).astype(dtype)
    b = rng.standard_normal(n_out).astype(dtype) if bias else None
    return X, W, b, rng.standard_normal((n, n_out)).astype(dtype)


def check_layer(X, W, b, dY, act, dtype, need_dX=True, mask=None):
    """Forward and backward against their bounds; the sharpness of these is asserted as well."""
    act = fb.activation(act)
    Y, cache = fb.dense_forward(X, W, b, act, mask=mask)
    dX, dW, db = fb.dense_backward(dY, cache, need_dX=need_dX)
    W = W if mask is None else W * mask
    Z = bounds.product(exact(X), exact(W), dtype, b)
    Y_bound = bounds.activate(act, Z, dtype)
    Y_bound.check(Y, f"Y of {act}")
    if cache.Z is not None:
        Z.check(cache.Z, f"Z of {act}")
    # The backward pass starts from the computed Y (or Z), whatever its error.
    source = exact(Y if cache.Z is None else cache.Z)
    slope = bounds.slope(act, source, exact(Y), dtype)
    if act.name in CROSSING and fb.get_backend() == "numpy" and dtype == np.float64:
        # The reference adds two terms, below 2, each 4 ULP off, also where they cancel.
        slope.error += 2 * 2 * bounds.ULP_OTHER * bounds.unit(dtype)
    dZ = bounds.times(exact(dY), slope, dtype)
    dW_bound = bounds.product(exact(X).T, dZ, dtype)
    if mask is not None:
        assert not dW[mask == 0].any()
        dW_bound = bounds.times(dW_bound, exact(mask), dtype)
    dW_bound.check(dW, f"dW of {act}")
    if need_dX:
        bounds.product(dZ, exact(W).T, dtype).check(dX, f"dX of {act}")
    else:
        assert dX is None
    if b is None:
        assert db is None
    else:
        bounds.sum_rows(dZ, dtype).check(db, f"db of {act}")
    for result in (Y, dX, dW, db):
        if result is not None:
            assert result.dtype == dtype and result.flags.c_contiguous and result.flags.owndata
    return Y_bound, dW_bound


@pytest.mark.parametrize("shape", shapes(), ids=lambda s: "x".join(map(str, s)))
def test_layers_of_all_sizes_are_within_rounding(backend, dtype, shape):
    """Each size with every third activation, each activation with every third size."""
    rng = np.random.default_rng(shape)
    for k, act in enumerate(EVERY_ACTIVATION):
        if (k + sum(shape)) % 3 == 0:
            bias, need_dX = (k + shape[0]) % 3 > 0, (k + shape[1]) % 4 > 0
            check_layer(*layer(rng, *shape, dtype, bias), act, dtype, need_dX)


@pytest.mark.parametrize("shape", [(300, 700, 520), (70, 1030, 24), (513, 20, 300)], ids=str)
def test_large_layers_are_within_rounding(backend, dtype, rng, shape):
    for bound in check_layer(*layer(rng, *shape, dtype), "tanh", dtype):
        bound.check_sharp(2e4 * np.finfo(dtype).eps)


def test_bounds_are_sharp_enough_to_fail(backend, dtype, rng):
    X, W, b, dY = layer(rng, 12, 7, 5, dtype)
    for bound in check_layer(X, W, b, dY, "sigmoid", dtype):
        bound.check_sharp(30 * np.finfo(dtype).eps)
        value = bound.value.astype(dtype)
        value[3, 2] += 40 * np.finfo(dtype).eps * abs(bound.value).max()
        with pytest.raises(AssertionError, match=r"\[3, 2\]"):
            bound.check(value)


@pytest.mark.parametrize("act", EVERY_ACTIVATION, ids=str)
def test_small_whole_numbers_are_exact(backend, dtype, rng, act):
    """Sums of whole numbers have no rounding: relu and its like give the formulas' very numbers."""
    act = fb.activation(act)
    X, W, dY = (rng.integers(-4, 5, shape) for shape in [(23, 11), (11, 7), (23, 7)])
    b = rng.integers(-3, 4, 7)
    X, W, b, dY = (a.astype(dtype) for a in (X, W, b, dY))
    Y, cache = fb.dense_forward(X, W, b, act)
    Z = X @ W + b
    assert (Z == 0).any()
    if act.name in ("linear", "relu"):
        np.testing.assert_array_equal(Y, act.f(Z, backend="numpy"))
        slope = act.df(Z, backend="numpy")
        dX, dW, db = fb.dense_backward(dY, cache)
        np.testing.assert_array_equal(dX, (dY * slope) @ W.T)
        np.testing.assert_array_equal(dW, X.T @ (dY * slope))
        np.testing.assert_array_equal(db, (dY * slope).sum(axis=0))
    else:
        assert same(Y, act.f(Z)) or act.name == "leaky_relu"


def check_whole_numbers(rng, n, n_in, n_out, dtype):
    """A relu layer of small whole numbers, whose sums are exact in any order."""
    X, W, dY = (rng.integers(-4, 5, size) for size in [(n, n_in), (n_in, n_out), (n, n_out)])
    b = rng.integers(-4, 5, n_out)
    X, W, b, dY = (a.astype(dtype) for a in (X, W, b, dY))
    Y, cache = fb.dense_forward(X, W, b, "relu")
    Z = X @ W + b
    dZ = dY * (Z > 0)
    expected = np.maximum(Z, 0), dZ @ W.T, X.T @ dZ, dZ.sum(axis=0)
    for computed, values in zip((Y, *fb.dense_backward(dY, cache)), expected, strict=True):
        np.testing.assert_array_equal(computed, values, str((n, n_in, n_out)))


# About one vector, two and so on of all levels and types.
ABOUT_VECTORS = sorted(
    {k * lanes + d for lanes in (2, 4, 8, 16) for k in (1, 2, 3, 4, 6, 8) for d in (-1, 0, 1)}
)


@pytest.mark.parametrize("width", ABOUT_VECTORS)
def test_edges_of_tiles(backend, dtype, rng, width):
    """All numbers of rows up to two tiles of the largest size, with short sums and long ones."""
    for n in range(1, 27):
        depth = (1, 2, 3, 5, 16, 17, 33, 64)[(n + width) % 8]
        check_whole_numbers(rng, n, depth, width, dtype)
        check_whole_numbers(rng, n, width, depth, dtype)


BLOCKS = [
    *[(9, 300, 64), (25, 255, 67), (24, 256, 64), (13, 257, 96), (50, 512, 33), (10, 513, 49)],
    *[(239, 40, 200), (240, 33, 256), (241, 130, 129), (121, 64, 512), (487, 31, 257)],
    *[(100, 241, 90), (64, 239, 130), (257, 481, 65), (33, 129, 128), (17, 1024, 8)],
    *[(9, 511, 66), (13, 512, 67), (25, 513, 65), (10, 1025, 40), (9, 66, 513), (11, 70, 1024)],
    *[(256, 20, 131), (100, 17, 340), (64, 1, 2000), (300, 2000, 1)],
    *((n, 300, 120) for n in range(1, 11)),
]


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_edges_of_blocks(backend, dtype, rng, shape):
    """Matrices larger than the first-level cache; some strides are powers of two."""
    check_whole_numbers(rng, *shape, dtype)


def test_relu_takes_the_chosen_derivative_at_zero(backend, dtype):
    for at_zero in (0.0, 0.5, 1.0):
        X, W = np.array([[1, -1], [1, 1], [-1, -1]], dtype), np.ones((2, 3), dtype)
        _, cache = fb.dense_forward(X, W, None, fb.relu(at_zero))
        dX, dW, db = fb.dense_backward(np.ones((3, 3), dtype), cache)
        np.testing.assert_array_equal(dX, 3 * np.array([[at_zero] * 2, [1, 1], [0, 0]]))
        np.testing.assert_array_equal(dW, np.outer([1 + at_zero, 1 - at_zero], np.ones(3)))
        assert db is None


@pytest.mark.parametrize("act", EVERY_ACTIVATION, ids=str)
def test_mask_takes_connections_away(backend, dtype, rng, act):
    X, W, b, dY = layer(rng, 10, 13, 6, dtype)
    mask = rng.integers(0, 2, W.shape)
    check_layer(X, W, b, dY, act, dtype, mask=mask)
    poisoned = np.where(mask == 1, W, np.nan)
    assert same(
        fb.dense_forward(X, poisoned, b, act, mask=mask)[0],
        fb.dense_forward(X, W, b, act, mask=mask)[0],
    )
    assert same(
        fb.dense_forward(X, W, b, act, mask=np.ones_like(W))[0], fb.dense_forward(X, W, b, act)[0]
    )


def test_masked_gradients_are_zero_whatever_comes(backend, dtype, rng):
    X, W, b, dY = layer(rng, 4, 3, 2, dtype)
    mask = np.array([[1, 0], [0, 1], [1, 0]])
    _, cache = fb.dense_forward(X, W, b, mask=mask)
    _, dW, _ = fb.dense_backward(np.full_like(dY, np.inf), cache)
    assert (dW[mask == 0] == 0).all()
    assert not np.isfinite(dW[mask == 1]).any()


@pytest.mark.parametrize("act", EVERY_ACTIVATION, ids=str)
@pytest.mark.parametrize("shape", [(0, 3, 2), (4, 0, 2), (4, 3, 0), (0, 0, 0)], ids=str)
def test_empty_layers(backend, dtype, rng, act, shape):
    n, n_in, n_out = shape
    act = fb.activation(act)
    X, W, b, dY = layer(rng, n, max(n_in, 1), n_out, dtype)
    X, W = X[:, :n_in], W[:n_in]
    Y, cache = fb.dense_forward(X, W, b, act)
    np.testing.assert_array_equal(Y, act.f(np.zeros((n, n_out), dtype) + b))
    dX, dW, db = fb.dense_backward(dY, cache)
    for result, like in ((Y, dY), (dX, X), (dW, W), (db, b)):
        assert result.shape == like.shape and result.dtype == dtype
    assert not dX.any() or n_out
    assert not dW.any() and (n or not db.any())


@pytest.mark.parametrize("act", EVERY_ACTIVATION, ids=str)
def test_nan_and_infinity_reach_only_what_they_should(backend, dtype, rng, act):
    """A row of X with NaN makes that row of Y and dW NaN, nothing else."""
    act = fb.activation(act)
    X, W, b, dY = layer(rng, 19, 6, 21, dtype)
    X[7, 2] = np.nan
    Y, cache = fb.dense_forward(X, W, b, act)
    dX, dW, db = fb.dense_backward(dY, cache)
    bad = np.arange(19) == 7
    assert np.isnan(Y[bad]).all() and np.isfinite(Y[~bad]).all()
    if act.name != "linear":  # whose derivative is 1 there too
        assert np.isnan(dX[bad]).all() and np.isnan(dW).all() and np.isnan(db).all()
    assert np.isnan(dW[2]).all()
    assert np.isfinite(dX[~bad]).all()


@pytest.mark.parametrize("act", EVERY_ACTIVATION, ids=str)
def test_infinities_are_as_in_the_reference(backend, dtype, act):
    X = np.array([[np.inf, 1], [-np.inf, 1], [1, 2]], dtype)
    W = np.array([[1, -1, 2], [3, 1, 0.5]], dtype)
    results = []
    for name in (backend, "numpy"):
        Y, cache = fb.dense_forward(X, W, None, act, backend=name)
        results.append([Y, *fb.dense_backward(np.ones_like(Y), cache)[:2]])
    for computed, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(np.isnan(computed), np.isnan(expected))
        infinite = np.isinf(expected)
        np.testing.assert_array_equal(computed[infinite], expected[infinite])
        assert (np.isinf(computed) == infinite).all()


def test_subnormal_numbers_are_not_flushed(backend, dtype):
    """Outside training nothing is flushed to zero."""
    small = np.finfo(dtype).smallest_subnormal
    X, W = np.full((5, 1), 3 * small), np.full((1, 9), 2, dtype)
    Y, cache = fb.dense_forward(X, W, None, "relu")
    np.testing.assert_array_equal(Y, np.full((5, 9), 6 * small))
    dX, dW, _ = fb.dense_backward(np.full((5, 9), small), cache)
    np.testing.assert_array_equal(dX, np.full((5, 1), 18 * small))
    assert not dW.any()


def test_backward_stays_on_the_backend_of_forward(backend, dtype, rng):
    X, W, b, dY = layer(rng, 5, 4, 3, dtype)
    _, cache = fb.dense_forward(X, W, b, "tanh")
    expected = fb.dense_backward(dY, cache)
    with fb.use_backend("numpy"):
        assert same(fb.dense_backward(dY, cache), expected)
    assert cache.backend is fb.backends.load(backend)
