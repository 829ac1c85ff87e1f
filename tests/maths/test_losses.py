"""Losses: the table against the definitions, the forms of targets, sample weights."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from helpers.strategies import EVERY_LOSS, n_for, n_out_for, same, target, weights
from oracles import bounds

import fastbp as fb
from fastbp.maths.losses import ROW_LOSSES, TABLE, loss as loss_of

pytestmark = pytest.mark.backend

every_loss = pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)


def loss_of_outputs(Y, y, loss, **terms):
    """The loss at outputs Y, row by row, so that each row can have another Y."""
    n, n_out = Y.shape
    net = fb.Network(n, fb.Dense(n_out, bias=False), dtype=Y.dtype)
    value, grad = net.value_and_grad(Y.ravel(), np.eye(n), y, loss, **terms)
    again = net.value(Y.ravel(), np.eye(n), y, loss, **terms)
    assert again == pytest.approx(value, rel=1e-6, nan_ok=True)
    return value, grad.reshape(n, n_out)


def check(Y, y, loss, dtype, w=None):
    """Value and derivative at outputs Y against the formulas in extended precision."""
    value, grad = loss_of_outputs(Y, y, loss, sample_weight=w)
    rows, dY = bounds.rows_of_loss(loss, bounds.exact(Y), y, dtype)
    paired = loss_of(loss).paired
    w = np.ones(len(Y) // 2 if paired else len(Y)) if w is None else w.astype(bounds.EXACT)
    factor = bounds.scale(loss, w.sum(), Y.shape[1])
    w = np.repeat(w, 2) if paired else w
    # 3 roundings of factor and weight, then sums in float64; X = I adds exact zeros.
    error = (w * rows.error).sum() + 3 * bounds.unit(dtype) * (w * rows.size).sum()
    error += bounds.gamma(len(Y) + 4, np.float64) * (w * rows.size).sum()
    assert abs(value - factor * (w * rows.value).sum()) <= factor * error
    bounds.times(bounds.exact((factor * w)[:, None]), dY, dtype, 4).check(grad)


@every_loss
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_value_and_derivative_are_within_rounding(backend, dtype, rng, loss, weighted):
    for n, n_out in [(1, 2), (7, 3), (40, 10), (3, 33)]:
        n, n_out = n_for(loss, n), n_out_for(loss, n_out)
        Y = 3 * rng.standard_normal((n, n_out))
        Y = (rng.random((n, n_out)) if loss == "bce" else Y).astype(dtype)
        y = target(rng, loss, n, n_out, dtype, rows_of_probabilities=weighted)
        count = n // 2 if loss_of(loss).paired else n
        check(Y, y, loss, dtype, weights(rng, count, dtype) if weighted else None)


def spread(rng, low, high, shape):
    """Numbers of both signs whose magnitudes range from 10^low to 10^high."""
    return rng.choice([-1, 1], shape) * 10.0 ** rng.uniform(low, high, shape)


FAR = np.array([-(2.0**100), 2.0**100], bounds.EXACT)


def wide_outputs(rng, loss, n, n_out, dtype):
    """Outputs over the range in which the loss and its derivative are finite in dtype."""
    digits = 37 if dtype == np.float32 else 307
    name, shape = loss_of(loss).name, (n, n_out)
    if name == "bce":
        P = 10.0 ** rng.uniform(-30, 0, shape)
        return np.where(rng.random(shape) < 0.5, P, 1 - P).astype(dtype)
    if name in ("poisson", "gaussian_nll", "gaussian_kl"):  # exponentials
        return spread(rng, -9, np.log10(2 * digits), shape).astype(dtype)
    if name == "softmax_ce":
        return spread(rng, -9, 3, shape).astype(dtype)
    if loss_of(loss).paired:
        power = 1.0
    else:  # that with which the loss grows
        ends = bounds.ELEMENTS[name](bounds.EXACT(loss_of(loss).constant)).f(FAR, bounds.EXACT(1))
        power = max(1.0, float(np.log2(ends.max()) / 100))
    return spread(rng, -digits / 8, (digits - 3) / power, shape).astype(dtype)


@every_loss
def test_outputs_of_all_sizes_are_within_rounding(backend, dtype, rng, loss):
    for n, n_out in [(60, 1), (20, 4)]:
        n_out = n_out_for(loss, n_out)
        Y = wide_outputs(rng, loss, n, n_out, dtype)
        y = target(rng, loss, n, n_out, dtype)
        for i in range(0, n, 2):  # in twos (pairs), or the largest would hide the others
            check(Y[i : i + 2], None if y is None else y[i : i + 2], loss, dtype)


# Second derivatives of the elementwise losses, in extended precision: (prediction, target) -> ℓ''.
# What is not here is taken from NumPy's formula, which a test compares with differences of ℓ'.
SECOND = {
    "mse": lambda y, t: 2,
    "half_mse": lambda y, t: 2,
    "sse": lambda y, t: 2,
    "mae": lambda y, t: 0,
    "huber": lambda y, t: abs(y - t) <= 1,
    "log_cosh": lambda y, t: 4 * bounds.sigmoid_slope(2 * (y - t)),
    "quantile": lambda y, t: 0,
    "bce": lambda y, t: t / y**2 + (1 - t) / (1 - y) ** 2,
    "bce_logits": lambda y, t: bounds.sigmoid_slope(y),
    "hinge": lambda y, t: 0,
    "squared_hinge": lambda y, t: 2 * (t * y < 1),
    "poisson": lambda y, t: np.exp(y),
}


def curvature(loss, Y, y, U):
    """ℓ''·U by rows, and the sum of the sizes of its terms."""
    Y, U, k = Y.astype(bounds.EXACT), U.astype(bounds.EXACT), Y.shape[1] // 2
    if loss == "softmax_ce":
        P = np.exp(Y - Y.max(axis=1, keepdims=True))
        P /= P.sum(axis=1, keepdims=True)
        mean, size = ((P * A).sum(axis=1, keepdims=True) for A in (U, abs(U)))
        return P * (U - mean), P * (abs(U) + size)
    if loss.startswith("gaussian"):
        precision, um, uv = np.exp(-Y[:, k:]), U[:, :k], U[:, k:]
        if loss == "gaussian_kl":
            result = np.hstack([um, uv / precision / 2])
            return result, abs(result)
        d = Y[:, :k] - y
        terms = precision * um, -precision * d * uv, -precision * d * um, precision * d * d * uv / 2
        sizes = [abs(term) for term in terms]
        return (
            np.hstack([terms[0] + terms[1], terms[2] + terms[3]]),
            np.hstack([sizes[0] + sizes[1], sizes[2] + sizes[3]]),
        )
    T, second = np.asarray(y, bounds.EXACT), SECOND.get(loss)
    if second is not None:
        result = np.broadcast_to(second(Y, T), Y.shape) * U
        return result, abs(result)
    # A rounding of y - t moves ℓ'' along its slope.
    h, scale = bounds.EXACT(2.0**-20), abs(Y) + abs(T)
    result, *ends = (numpy_s_second(loss, Y + s * h * scale, T, U) for s in (0, -1, 1))
    return result, abs(result) + abs(ends[1] - ends[0]) / (2 * h)


def numpy_s_second(loss, Y, T, U):
    loss = loss_of(loss)
    return ROW_LOSSES[loss.kind].second(Y, T, U, bounds.EXACT(loss.constant))


@pytest.mark.parametrize("loss", [name for name in bounds.ELEMENTS if name in TABLE])
def test_second_derivatives_of_numpy_follow_the_first(rng, loss):
    Y = (0.05 + 0.9 * rng.random((40, 3))).astype(bounds.EXACT)
    y = target(rng, loss, 40, 3, "float64").astype(bounds.EXACT)
    y += 0.003 * (loss_of(loss).target == "values")  # corners are not met
    row = bounds.ELEMENTS[loss](bounds.EXACT(loss_of(loss).constant))
    second = numpy_s_second(loss, Y, y, np.ones_like(Y))
    differences = bounds.richardson(lambda t: row.df(Y + t, y), 1e-4)
    np.testing.assert_allclose(second, differences, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("loss", [name for name in TABLE if name != "margin_ranking"])
@pytest.mark.parametrize("wide", [False, True], ids=["moderate", "wide"])
def test_second_derivatives_are_within_rounding(backend, dtype, rng, loss, wide):
    n, n_out = 12, 4
    Y = 0.1 + 0.8 * rng.random((n, n_out))
    if loss != "bce":
        Y = spread(rng, -6, 1.2, Y.shape) if wide else 6 * Y - 3
    Y, U = Y.astype(dtype), rng.standard_normal((n, n_out)).astype(dtype)
    y = target(rng, loss, n, n_out, dtype)
    net = fb.Network(n, fb.Dense(n_out, bias=False), dtype=dtype)
    computed = net.hvp(Y.ravel(), np.eye(n), y, U.ravel(), loss).reshape(n, n_out)
    value, size = curvature(loss, Y, y, U)
    # At most 24 roundings, and those of the exponentials' arguments, relative to the arguments.
    T = 0 if y is None or y.ndim == 1 else abs(y).max(axis=1, keepdims=True)
    roundings = 24 * (1 + abs(Y).max(axis=1, keepdims=True) + T)
    factor = bounds.scale(loss, n, n_out)
    error = factor * roundings * bounds.unit(dtype) * size + np.finfo(dtype).tiny
    bounds.Approx(factor * value, error).check(computed)


E, LOG2 = np.e, np.log(2)
TANH, SIGMOID = np.tanh(1), 1 / (1 + np.exp(-1))
BY_HAND = [  # loss, Y, y, the sum over the row (or pair), its derivative
    ("mse", [[3, 1]], [[1, 2]], 5, [[4, -2]]),
    ("mae", [[3, 1, 2]], [[1, 2, 2]], 3, [[1, -1, 0]]),
    ("huber", [[3, 0.5, -1]], [[0, 0, 0]], 2.5 + 0.125 + 0.5, [[1, 0.5, -1]]),
    (fb.huber(2), [[3, 0.5, -2]], [[0, 0, 0]], 4 + 0.125 + 2, [[2, 0.5, -2]]),
    ("log_cosh", [[1, 0]], [[0, 0]], np.log(np.cosh(1)), [[TANH, 0]]),
    ("quantile", [[3, 1, 2]], [[1, 2, 2]], 1.5, [[0.5, -0.5, 0]]),
    (fb.quantile(0.2), [[3, 1, 2]], [[1, 2, 2]], 1.6 + 0.2, [[0.8, -0.2, 0]]),
    ("bce", [[0.5, 0.25]], [[1, 0.25]], LOG2 + 2 * LOG2 - 0.75 * np.log(3), [[-2, 0]]),
    ("bce_logits", [[0, 1]], [[1, 0]], LOG2 + np.log(1 + E), [[-0.5, SIGMOID]]),
    ("hinge", [[0.5, 0.5, 3]], [[1, -1, 1]], 0.5 + 1.5, [[-1, 1, 0]]),
    ("squared_hinge", [[0.5, 0.5, 3]], [[1, -1, 1]], 0.25 + 2.25, [[-1, 3, 0]]),
    ("poisson", [[0, 1]], [[2, 3]], 1 + E - 3, [[-1, E - 3]]),
    ("softmax_ce", [[LOG2, 0, 0]], [0], LOG2, [[-0.5, 0.25, 0.25]]),
    ("softmax_ce", [[LOG2, 0, 0]], [[0, 0.5, 0.5]], 2 * LOG2, [[0.5, -0.25, -0.25]]),
    ("gaussian_nll", [[3, LOG2]], [[1]], LOG2 / 2 + 1 + np.log(2 * np.pi) / 2, [[1, -0.5]]),
    ("gaussian_kl", [[3, LOG2]], None, (2 + 9 - 1 - LOG2) / 2, [[3, 0.5]]),
    ("margin_ranking", [[1], [0.5]], None, 0.5, [[-1], [1]]),
    ("margin_ranking", [[2], [0.5]], None, 0, [[0], [0]]),
    (fb.margin_ranking(0.25), [[1], [1.5]], None, 0.75, [[-1], [1]]),
    (fb.margin_ranking(0), [[1], [1]], None, 0, [[0], [0]]),
]


@pytest.mark.parametrize(("loss", "Y", "y", "value", "slope"), BY_HAND, ids=str)
def test_definitions_by_hand(backend, dtype, loss, Y, y, value, slope):
    """As PyTorch's HuberLoss, BCELoss, PoissonNLLLoss, GaussianNLLLoss(full=True) etc."""
    Y = np.array(Y, dtype)
    per_element = loss_of(loss).divisor == "N·n_out"
    count = Y.size if per_element else 1
    computed, grad = loss_of_outputs(Y, y, loss)
    eps = float(np.finfo(dtype).eps)
    assert computed * count == pytest.approx(value, rel=8 * eps, abs=4 * eps)
    np.testing.assert_allclose(grad * count, slope, rtol=8 * eps, atol=4 * eps)


def test_log_cosh_of_small_errors_keeps_its_digits(backend, dtype):
    """|d| + log1p(e^-2|d|) - log 2 would be noise where d²/2 is below the machine epsilon."""
    for d in (10.0 ** -np.arange(0.0, 12, 0.25)).astype(dtype):
        check(np.array([[d]]), [[0]], "log_cosh", dtype)


INF = np.inf
LIMITS = [  # loss, y, loss and slope at the output -inf, and at inf
    ("mse", 1, (INF, -INF), (INF, INF)),
    ("mae", 1, (INF, -1), (INF, 1)),
    (fb.huber(2), 1, (INF, -2), (INF, 2)),
    ("log_cosh", 1, (INF, -1), (INF, 1)),
    (fb.quantile(0.25), 1, (INF, -0.25), (INF, 0.75)),
    ("hinge", 1, (INF, -1), (0, 0)),
    ("hinge", -1, (0, 0), (INF, 1)),
    ("squared_hinge", 1, (INF, -INF), (0, 0)),
    ("poisson", 1, (INF, -1), (None, INF)),
    ("bce_logits", 0.5, (None, -0.5), (None, 0.5)),
]


@pytest.mark.parametrize(("loss", "y", "low", "high"), LIMITS, ids=str)
def test_infinite_outputs(backend, dtype, loss, y, low, high):
    for output, (value, slope) in ((-INF, low), (INF, high)):
        computed, grad = loss_of_outputs(np.array([[output]], dtype), [y], loss)
        assert value is None or computed == value
        assert grad == slope


def test_pairs_with_infinite_scores(backend, dtype):
    """Infinite differences: an infinitely better one costs nothing, a worse one infinitely much."""
    net = fb.Network(1, fb.Dense(1, bias=False), dtype=dtype)
    X = np.array([[1], [-1], [0], [0]], dtype)  # the second pair is 0·inf, NaN
    for sign, expected in ((1, 0), (-1, INF)):
        value, grad = net.value_and_grad([sign * INF], X[:2], None, "margin_ranking")
        assert value == expected
        assert grad == (0 if sign == 1 else -2)
    value, grad = net.value_and_grad([INF], X, None, "margin_ranking")
    assert np.isnan(value) and np.isnan(grad).all()


@every_loss
@pytest.mark.parametrize("special", [np.nan, INF, -INF, 0.0, -0.0, 1.0])
def test_special_values_are_as_in_the_reference(backend, dtype, loss, special):
    n, n_out = n_for(loss, 1), n_out_for(loss, 2)
    net = fb.Network(1, fb.Dense(n_out, bias=False), dtype=dtype)
    params = [special] + (n_out - 1) * [0.5]
    for seed in range(3):
        y = target(np.random.default_rng(seed), loss, n, n_out, dtype, seed == 2)
        arguments = params, [[1], [0.5]][:n], y, loss
        computed = net.value_and_grad(*arguments)
        expected = net.value_and_grad(*arguments, backend="numpy")
        for a, b in zip(computed, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=16 * np.finfo(dtype).eps)


@every_loss
def test_nan_outputs_and_targets_give_a_nan_loss(backend, dtype, rng, loss):
    n, n_out = n_for(loss, 3), n_out_for(loss, 2)
    Y = rng.random((n, n_out)).astype(dtype)
    y = target(rng, loss, n, n_out, dtype, rows_of_probabilities=True)
    bad = Y.copy()
    bad[1, -1] = np.nan
    value, grad = loss_of_outputs(bad, y, loss)
    assert np.isnan(value)
    assert np.isnan(grad[1, -1])
    if y is not None:
        y[1, -1] = np.nan
        value, grad = loss_of_outputs(Y, y, loss)
        assert np.isnan(value)
        assert np.isnan(grad[1, -1])


# Normalisers.


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # Y = [[1, 2], [3, 5]], y = [[0, 0], [1, 1]]: squares 1, 4, 4, 16
        ("mse", 25 / 4),
        ("half_mse", 25 / 4),
        ("sse", 25.0),
        ("mae", 9 / 4),
        ("huber", (0.5 + 1.5 + 1.5 + 3.5) / 4),
        ("bce_logits", (np.log1p(E) + np.log1p(E**2) + np.log1p(E**-3) + np.log1p(E**-5)) / 4),
        ("softmax_ce", (np.log1p(E) + np.log1p(E**-2) + 2) / 2),
    ],
)
def test_normalisers(backend, name, expected):
    Y, y = np.array([[1.0, 2], [3, 5]]), np.array([[0.0, 0], [1, 1]])
    if name == "softmax_ce":
        y, expected = np.array([0, 0]), (np.log1p(E) + np.log1p(E**2)) / 2
    assert loss_of_outputs(Y, y, name)[0] == pytest.approx(expected, rel=1e-12)


@every_loss
def test_weights_are_multiplicities(backend, rng, loss):
    """Weight 2 is two rows (pairs), weight 0 none, and a common factor cancels but for "sse"."""
    size = 2 if loss_of(loss).paired else 1  # rows that a weight is for
    n_out = n_out_for(loss, 2)
    Y = rng.random((2 * size, n_out))
    y = target(rng, loss, 2 * size, n_out, "float64")

    def value(rows, **terms):
        return loss_of_outputs(Y[rows], None if y is None else y[rows], loss, **terms)[0]

    first, second = np.arange(size), np.arange(size, 2 * size)
    both, twice = np.r_[first, second], np.r_[first, second, second]
    assert value(both, sample_weight=[1, 2]) == pytest.approx(value(twice), rel=1e-14)
    assert value(both, sample_weight=[1, 0]) == pytest.approx(value(first), rel=1e-14)
    factor = 1 if loss_of(loss).averaged else 3
    assert value(both, sample_weight=[3, 3]) == pytest.approx(factor * value(both), rel=1e-14)
    # Averaged over rows: repeated rows change nothing.
    factor = 1 if loss_of(loss).averaged else 2
    assert value(np.r_[both, both]) == pytest.approx(factor * value(both), rel=1e-14)


# The forms of targets.


def test_softmax_ce_by_hand(backend, dtype):
    Y = np.log(np.array([[1, 2, 5], [3, 1, 4]], dtype))
    value, grad = loss_of_outputs(Y, [2, 0], "softmax_ce")
    assert value == pytest.approx((np.log(8 / 5) + np.log(8 / 3)) / 2, rel=1e-6)
    P = np.array([[1, 2, 5], [3, 1, 4]]) / 8
    np.testing.assert_allclose(grad, (P - [[0, 0, 1], [1, 0, 0]]) / 2, rtol=1e-5)


def test_labels_and_indicator_rows_agree(backend, dtype, rng):
    Y = rng.standard_normal((6, 4)).astype(dtype)
    labels = np.array([0, 3, 1, 2, 3, 3])
    expected = loss_of_outputs(Y, labels, "softmax_ce")
    forms = {
        "column": labels[:, None],
        "list": labels.tolist(),
        "uint8": labels.astype(np.uint8),
        "int16": labels.astype(np.int16),
        "byte-swapped": labels.astype(">i4"),
        "strided": np.repeat(labels, 2)[::2],
    }
    for form, y in forms.items():
        assert same(loss_of_outputs(Y, y, "softmax_ce"), expected), form
    for y in (np.eye(4)[labels], np.eye(4, dtype=int)[labels], np.eye(4, dtype=bool)[labels]):
        value, grad = loss_of_outputs(Y, y, "softmax_ce")
        assert value == pytest.approx(expected[0], rel=8 * float(np.finfo(dtype).eps))
        np.testing.assert_allclose(grad, expected[1], rtol=0, atol=4 * np.finfo(dtype).eps)


def test_two_classes_take_boolean_labels(backend, rng):
    Y, y = rng.standard_normal((5, 2)), np.array([True, False, False, True, True])
    assert same(
        loss_of_outputs(Y, y, "softmax_ce"), loss_of_outputs(Y, y.astype(int), "softmax_ce")
    )
    for loss in ("bce_logits", "bce"):  # and so do labels of single outputs
        P = 1 / (1 + np.exp(-Y[:, :1]))
        expected = loss_of_outputs(P, y[:, None].astype(float), loss)
        assert same(loss_of_outputs(P, y, loss), expected)
        assert same(loss_of_outputs(P, y.astype(np.int8), loss), expected)


@every_loss
def test_forms_of_targets(backend, dtype, rng, loss):
    """Lists, other types and layouts of the same numbers; (n,) for one output."""
    width = 1 if loss_of(loss).target != "classes" else 3
    n, n_out = 4, 2 if loss_of(loss).target == "halves" else n_out_for(loss, width)
    Y = rng.random((n, n_out)).astype(dtype)
    if loss_of(loss).target == "none":
        return
    y = target(rng, loss, n, n_out, dtype).round()
    expected = loss_of_outputs(Y, y, loss)
    forms = [y.tolist(), y.astype(np.int16), np.asarray(y.astype(int), order="F")]
    if y.ndim == 2:
        forms += [y[:, 0], y.astype(np.float16), y.astype(np.longdouble), np.flip(y, 0)[::-1]]
    for form in forms:
        assert same(loss_of_outputs(Y, form, loss), expected), form


def test_rows_of_probabilities_need_not_sum_to_one(backend, dtype, rng):
    """The cross-entropy is -Σ t log p: a row of zeros leaves its sample out."""
    Y, U = rng.standard_normal((2, 4, 3)).astype(dtype)
    y = np.array([[1, 1, 0], [0.5, 0, 0], [0, 0, 0], [0.25, 0.5, 0.25]], dtype)
    check(Y, y, "softmax_ce", dtype)
    net = fb.Network(4, fb.Dense(3, bias=False), dtype=dtype)
    product = net.hvp(Y.ravel(), np.eye(4), y, U.ravel(), "softmax_ce").reshape(4, 3)
    value, size = curvature("softmax_ce", Y, y, U)
    totals = y.sum(axis=1, keepdims=True)
    assert (abs(product - totals * value / 4) <= 99 * np.finfo(dtype).eps * size).all()
    assert not product[2].any()


@pytest.mark.parametrize("name", ["bce_logits", "softmax_ce"])
def test_large_logits_do_not_overflow(backend, dtype, name):
    Y = np.array([[2e3, -2e3], [-2e3, 2e3], [0, 0]], dtype)
    y = [[1, 0], [1, 0], [1, 0]]
    value, grad = loss_of_outputs(Y, y, name)
    assert np.isfinite(grad).all()
    elements, log2 = (6, 2 * np.log(2)) if name == "bce_logits" else (3, np.log(2))
    assert value == pytest.approx((4e3 + log2) / elements, rel=1e-6)
    np.testing.assert_allclose(
        grad * elements, np.array([[0, 0], [-1, 1], [-0.5, 0.5]]), atol=1e-12
    )


def test_certain_probabilities_are_cut(backend, dtype):
    """-log 0 would be infinite: probabilities count as at least the machine epsilon."""
    eps = np.finfo(dtype).eps
    value, grad = loss_of_outputs(np.array([[0, 1, 1, 0]], dtype), [[1, 0, 1, 0]], "bce")
    assert value == pytest.approx(-(np.log(eps) + np.log1p(-eps)) / 2, rel=4 * float(eps))
    assert not grad.any()


BAD_TARGETS = [  # loss, n_out, y for 4 rows, error, part of the message
    ("mse", 1, [1, 2], fb.ShapeError, "y has shape (2,), expected (4, 1) or (4,) as X has 4 rows"),
    ("mse", 1, [[1, 2, 3, 4]], fb.ShapeError, "y has shape (1, 4), expected (4, 1) or (4,)"),
    ("mse", 2, [1, 2, 3, 4], fb.ShapeError, "y has shape (4,), expected (4, 2) as X has 4 rows"),
    ("mse", 2, [[1], [2], [3], [4]], fb.ShapeError, "targets never broadcast"),
    ("mse", 1, 1.0, fb.ShapeError, "y has shape (), expected (4, 1)"),
    ("mse", 1, np.ones((4, 1, 1)), fb.ShapeError, "y has shape (4, 1, 1), expected (4, 1)"),
    ("mse", 1, [1j, 2, 3, 4], TypeError, "y has dtype complex128, expected real numbers"),
    ("mse", 1, ["a", "b", "c", "d"], TypeError, "y has dtype <U1, expected real numbers"),
    ("mse", 1, [None, 1, 2, 3], TypeError, "y has dtype object, expected real numbers"),
    ("mse", 2, [[1, 2], [1], [1, 2], [3]], TypeError, "pass rows of equal length"),
    ("mse", 1, None, ValueError, "y is None, but loss 'mse' expects values of shape (n, n_out)"),
    ("bce", 1, None, ValueError, "expects labels 0 and 1 or probabilities between them"),
    ("hinge", 1, None, ValueError, "y is None, but loss 'hinge' expects labels -1 and 1"),
    ("poisson", 1, None, ValueError, "y is None, but loss 'poisson' expects counts >= 0"),
    ("softmax_ce", 2, None, ValueError, "expects integer labels (n,) or rows of probabilities"),
    ("gaussian_nll", 2, None, ValueError, "expects values of shape (n, n_out/2)"),
    ("bce_logits", 1, [0, 1, 2, 0], ValueError, "y holds 2.0 at row 2, column 0"),
    ("bce_logits", 1, [-1, 1, 1, 1], ValueError, "labels -1 and 1 are (y + 1) / 2"),
    ("bce", 2, [[0, 1], [0, -1], [0, 0], [0, 0]], ValueError, "y holds -1.0 at row 1, column 1"),
    ("hinge", 1, [0, 1, 1, 0], ValueError, "y holds 0.0 at row 0, column 0; loss 'hinge' expects"),
    ("squared_hinge", 1, [1, 1, 1, 0], ValueError, "labels 0 and 1 are 2 * y - 1"),
    ("hinge", 1, [True] * 3 + [False], ValueError, "expects labels -1 and 1"),
    ("poisson", 1, [3, 0, -1, 2], ValueError, "y holds -1.0 at row 2, column 0; loss 'poisson'"),
    ("softmax_ce", 1, [0] * 4, ValueError, "loss 'softmax_ce' needs at least 2 outputs, one per"),
    ("softmax_ce", 4, [0, 4, 1, 0], ValueError, "y holds label 4 at row 1, expected 0 to 3"),
    ("softmax_ce", 4, [0, 1, -1, 0], ValueError, "y holds label -1 at row 2, expected 0 to 3"),
    ("softmax_ce", 4, np.array([0, 2**63, 1, 1], "u8"), ValueError, "label 9223372036854775808 at"),
    ("softmax_ce", 4, [0, 1], fb.ShapeError, "y has shape (2,), expected integer labels (4,)"),
    ("softmax_ce", 4, [0.0, 1.0, 2.0, 3.0], ValueError, "convert labels with y.astype(int)"),
    ("softmax_ce", 4, ["a", "b", "c", "a"], TypeError, "encode them as integers first"),
    ("softmax_ce", 4, np.array([0, 1, 2, 0], object), TypeError, "encode them as integers first"),
    (
        "softmax_ce",
        2,
        [[0.5, 0.5], [1, 0], [1.5, -0.5], [0, 1]],
        ValueError,
        "y holds 1.5 at row 2",
    ),
    ("softmax_ce", 4, np.ones((4, 3)), fb.ShapeError, "y has shape (4, 3), expected (4, 4)"),
    ("softmax_ce", 4, [[1, 2], [1], [1, 2], [3]], TypeError, "pass rows of equal length"),
    ("gaussian_nll", 3, [1] * 4, ValueError, "'gaussian_nll' needs an even number of outputs"),
    ("gaussian_kl", 5, None, ValueError, "the network has 5; use Dense(2 * k)"),
    ("gaussian_nll", 4, np.ones((4, 4)), fb.ShapeError, "y has shape (4, 4), expected (4, 2)"),
    ("gaussian_nll", 4, np.ones(4), fb.ShapeError, "y has shape (4,), expected (4, 2)"),
    ("gaussian_kl", 2, [1] * 4, ValueError, "y was given, but loss 'gaussian_kl' has no targets"),
    ("margin_ranking", 1, [1] * 4, ValueError, "has no targets; pass y=None"),
    ("margin_ranking", 2, None, ValueError, "needs one output, the score, and the network has 2"),
    ("mae5", 1, [0] * 4, ValueError, "unknown loss 'mae5'"),
    ("MSE", 1, [0] * 4, ValueError, "did you mean 'mse'?"),
    (None, 1, [0] * 4, ValueError, "unknown loss None: expected one of 'mse', 'half_mse'"),
]


@pytest.mark.parametrize(
    ("name", "n_out", "y", "error", "message"), BAD_TARGETS, ids=[b[-1] for b in BAD_TARGETS]
)
def test_bad_targets(backend, name, n_out, y, error, message):
    net = fb.Network(1, fb.Dense(n_out))
    with pytest.raises(error) as caught:
        net.value(net.init(0), np.zeros((4, 1)), y, name)
    assert message in str(caught.value)
    assert type(caught.value) is error


def test_pairs_need_an_even_number_of_rows(backend):
    net = fb.Network(1, fb.Dense(1))
    with pytest.raises(fb.ShapeError, match="X has 3 rows, but loss 'margin_ranking' expects pair"):
        net.value(net.init(0), np.zeros((3, 1)), None, "margin_ranking")


BAD_WEIGHTS = [
    ([1, 1], fb.ShapeError, "sample_weight has shape (2,), expected (4,): one weight per row of X"),
    (1.0, fb.ShapeError, "sample_weight has shape (), expected (4,)"),
    ([[1], [1], [1], [1]], fb.ShapeError, "sample_weight has shape (4, 1), expected (4,)"),
    ([1, -1, 1, 1], ValueError, "sample_weight holds -1.0 at row 1"),
    ([1, 1, np.nan, 1], ValueError, "sample_weight holds nan at row 2"),
    ([np.inf, 1, 1, 1], ValueError, "sample_weight holds inf at row 0"),
    ([0, 0, 0, 0], ValueError, "sample_weight is zero everywhere"),
    ([1j, 1, 1, 1], TypeError, "sample_weight has dtype complex128"),
]
BAD_WEIGHTS_OF_PAIRS = [
    ([1] * 4, fb.ShapeError, "shape (4,), expected (2,): one weight per pair of rows of X"),
    (
        [1, -1],
        ValueError,
        "sample_weight holds -1.0 at pair 1, expected finite weights >= 0; a pair",
    ),
    ([0, 0], ValueError, "sample_weight is zero everywhere"),
]


@pytest.mark.parametrize(
    ("loss", "w", "error", "message"),
    [("mse", *row) for row in BAD_WEIGHTS] + [("pairs", *row) for row in BAD_WEIGHTS_OF_PAIRS],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_weights(backend, loss, w, error, message):
    net, X = fb.Network(1, fb.Dense(1)), np.zeros((4, 1))
    y, loss = (X, "mse") if loss == "mse" else (None, "margin_ranking")
    with pytest.raises(error) as caught:
        net.value(net.init(0), X, y, loss, sample_weight=w)
    assert message in str(caught.value)
    assert type(caught.value) is error


def test_norms_of_float32_columns_are_float64(backend):
    net = fb.Network(40, fb.Dense(30), dtype="float32")
    params = net.init(0)
    W = net.unpack(params)[0][0].astype(np.float64)
    value = net.value(params, np.zeros((2, 40)), np.zeros((2, 30)), group=1.0)
    assert value == pytest.approx(np.linalg.norm(W, axis=0).sum(), rel=1e-14, abs=0)


@pytest.mark.parametrize("name", ["l2", "l1", "group"])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_bad_penalties(backend, name, value):
    net = fb.Network(1, fb.Dense(1))
    with pytest.raises(ValueError, match=f"{name} is {value}, expected a finite number >= 0"):
        net.value_and_grad(net.init(0), np.zeros((3, 1)), np.zeros(3), **{name: value})


BAD_PARAMETERS = [
    (lambda: fb.huber(0), "delta is 0, expected a positive number"),
    (lambda: fb.huber(np.inf), "delta is inf, expected a positive number"),
    (lambda: fb.huber(np.nan), "delta is nan, expected a positive number"),
    (lambda: fb.quantile(0), "tau is 0, expected a number between 0 and 1"),
    (lambda: fb.quantile(1.0), "tau is 1.0, expected a number between 0 and 1"),
    (lambda: fb.margin_ranking(-0.5), "margin is -0.5, expected a finite number >= 0"),
    (lambda: fb.margin_ranking(np.nan), "margin is nan, expected a finite number >= 0"),
]


@pytest.mark.parametrize(
    ("make", "message"), BAD_PARAMETERS, ids=[message for _, message in BAD_PARAMETERS]
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)


# The table.


def test_table_rows_describe_themselves():
    for name, row in TABLE.items():
        assert loss_of(name) is row is loss_of(row)
        assert repr(row) == repr(name)
        assert row.least_squares == (name in ("mse", "half_mse", "sse"))
        assert row.averaged == (name != "sse")
        assert row.paired == (name == "margin_ranking")


def test_names_stand_for_usual_parameters():
    assert fb.huber() == loss_of("huber") != fb.huber(2)
    assert fb.quantile() == loss_of("quantile") != fb.quantile(0.2)
    assert fb.margin_ranking() == loss_of("margin_ranking") != fb.margin_ranking(0)
    made = [fb.huber(2), fb.quantile(0.2), fb.margin_ranking(0)]
    assert [repr(loss) for loss in made] == [
        "fb.huber(2)", "fb.quantile(0.2)", "fb.margin_ranking(0)",
    ]  # fmt: skip
    for loss in made:
        assert pickle.loads(pickle.dumps(loss)) == loss
        assert eval(repr(loss), {"fb": fb}) == loss
    assert len({*made, fb.huber(2)}) == 3
