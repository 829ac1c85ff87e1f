"""Losses: the table against the definitions, what targets may be, what weights may be."""

from __future__ import annotations

import bounds
import numpy as np
import pytest
from strategies import LOSSES, same, target, weights

import fastbp as fb
from fastbp.losses import TABLE, loss

pytestmark = pytest.mark.backend


def outputs_as_parameters(n_out, dtype="float64"):
    """A network whose Y is b for X = 0: then the objective is a function of Y itself."""
    return fb.Network(1, fb.Dense(n_out), dtype=dtype)


def loss_of_outputs(Y, y, name, **terms):
    """The loss at outputs Y, row by row, so that each row can have its own Y."""
    n, n_out = Y.shape
    net = fb.Network(n, fb.Dense(n_out, bias=False), dtype=Y.dtype)
    value, grad = net.value_and_grad(Y.ravel(), np.eye(n), y, name, **terms)
    again = net.value(Y.ravel(), np.eye(n), y, name, **terms)
    assert again == pytest.approx(value, rel=1e-6, nan_ok=True)
    return value, grad.reshape(n, n_out)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_value_and_derivative_are_within_rounding(backend, dtype, rng, name, weighted):
    for n, n_out in [(1, 2), (7, 3), (40, 10), (3, 33)]:
        Y = (3 * rng.standard_normal((n, n_out))).astype(dtype)
        y = target(rng, name, n, n_out, dtype, rows_of_probabilities=weighted)
        w = weights(rng, n, dtype) if weighted else None
        value, grad = loss_of_outputs(Y, y, name, sample_weight=w)
        rows, dY = bounds.rows_of_loss(name, bounds.exact(Y), y, dtype)
        total = np.ones(n) if w is None else w.astype(bounds.EXACT)
        factor = bounds.scale(name, total.sum(), n_out)
        # 3 roundings of factor and weight, then sums in float64; X = I adds exact zeros.
        expected = factor * (total * rows.value).sum()
        error = (total * rows.error).sum() + 3 * bounds.unit(dtype) * (total * rows.size).sum()
        error += bounds.gamma(n + 4, np.float64) * (total * rows.size).sum()
        assert abs(value - expected) <= factor * error
        bounds.times(bounds.exact((factor * total)[:, None]), dY, dtype, 4).check(grad)


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # Y = [[1, 2], [3, 5]], y = [[0, 0], [1, 1]]: squares 1, 4, 4, 16
        ("mse", 25 / 4),
        ("half_mse", 25 / 4),
        ("sse", 25.0),
        ("bce_logits", (np.log1p(np.e) + np.log1p(np.e**2) + np.log1p(np.e**-3) + 6.7153e-3) / 4),
    ],
)
def test_normalisers(backend, name, expected):
    Y, y = np.array([[1.0, 2], [3, 5]]), np.array([[0.0, 0], [1, 1]])
    assert loss_of_outputs(Y, y, name)[0] == pytest.approx(expected, rel=1e-6)
    doubled = loss_of_outputs(Y, y, name, sample_weight=[2, 2])[0]
    assert doubled == pytest.approx(expected * (2 if name == "sse" else 1), rel=1e-6)
    # Weight 2 is two rows, weight 0 none.
    twice = loss_of_outputs(Y[[0, 1, 1]], y[[0, 1, 1]], name)[0]
    assert loss_of_outputs(Y, y, name, sample_weight=[1, 2])[0] == pytest.approx(twice, rel=1e-14)
    one = loss_of_outputs(Y[:1], y[:1], name)[0]
    assert loss_of_outputs(Y, y, name, sample_weight=[1, 0])[0] == pytest.approx(one, rel=1e-14)


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


@pytest.mark.parametrize("name", LOSSES)
def test_nan_outputs_give_a_nan_loss(backend, dtype, name):
    Y = np.array([[0.5, np.nan], [1, 2]], dtype)
    value, grad = loss_of_outputs(Y, [[0, 1], [1, 0]], name)
    assert np.isnan(value)
    assert np.isnan(grad[0, 1])


def test_one_output_takes_a_vector(backend, rng):
    Y, y = rng.standard_normal((5, 1)), rng.standard_normal(5)
    assert same(loss_of_outputs(Y, y, "mse"), loss_of_outputs(Y, y[:, None], "mse"))


BAD_TARGETS = [  # loss, n_out, y for 3 rows, error, part of the message
    ("mse", 1, [1, 2], fb.ShapeError, "y has shape (2,), expected (3, 1) or (3,) as X has 3 rows"),
    ("mse", 1, [[1, 2, 3]], fb.ShapeError, "y has shape (1, 3), expected (3, 1) or (3,)"),
    ("mse", 2, [1, 2, 3], fb.ShapeError, "y has shape (3,), expected (3, 2) as X has 3 rows"),
    ("mse", 2, [[1], [2], [3]], fb.ShapeError, "targets never broadcast"),
    ("mse", 1, 1.0, fb.ShapeError, "y has shape (), expected (3, 1)"),
    ("mse", 1, np.ones((3, 1, 1)), fb.ShapeError, "y has shape (3, 1, 1), expected (3, 1)"),
    ("mse", 1, [1j, 2, 3], TypeError, "y has dtype complex128, expected real numbers"),
    ("mse", 1, ["a", "b", "c"], TypeError, "y has dtype <U1, expected real numbers"),
    ("mse", 1, [None, 1, 2], TypeError, "y has dtype object, expected real numbers"),
    ("mse", 2, [[1, 2], [1], [1, 2]], TypeError, "pass rows of equal length"),
    ("bce_logits", 1, [0, 1, 2], ValueError, "y holds 2.0 at row 2, column 0"),
    ("bce_logits", 1, [-1, 1, 1], ValueError, "labels -1 and 1 are (y + 1) / 2"),
    ("softmax_ce", 1, [0, 0, 0], ValueError, "needs at least 2 outputs"),
    ("softmax_ce", 4, [0, 4, 1], ValueError, "y holds label 4 at row 1, expected 0 to 3"),
    ("softmax_ce", 4, [0, 1, -1], ValueError, "y holds label -1 at row 2, expected 0 to 3"),
    ("softmax_ce", 4, np.array([0, 2**63, 1], "u8"), ValueError, "label 9223372036854775808 at"),
    ("softmax_ce", 4, [0, 1], fb.ShapeError, "y has shape (2,), expected integer labels (3,)"),
    ("softmax_ce", 4, [0.0, 1.0, 2.0], ValueError, "convert labels with y.astype(int)"),
    ("softmax_ce", 4, ["a", "b", "c"], TypeError, "encode them as integers first"),
    ("softmax_ce", 4, np.array([0, 1, 2], object), TypeError, "encode them as integers first"),
    ("softmax_ce", 2, [[0.5, 0.5], [1, 0], [1.5, -0.5]], ValueError, "y holds 1.5 at row 2"),
    ("softmax_ce", 4, np.ones((3, 3)), fb.ShapeError, "y has shape (3, 3), expected (3, 4)"),
    ("softmax_ce", 4, [[1, 2], [1], [1, 2]], TypeError, "pass rows of equal length"),
    ("mae5", 1, [0, 0, 0], ValueError, "unknown loss 'mae5'"),
    ("MSE", 1, [0, 0, 0], ValueError, "did you mean 'mse'?"),
]


@pytest.mark.parametrize(
    ("name", "n_out", "y", "error", "message"), BAD_TARGETS, ids=[b[-1] for b in BAD_TARGETS]
)
def test_bad_targets(backend, name, n_out, y, error, message):
    net = outputs_as_parameters(n_out)
    with pytest.raises(error) as caught:
        net.value(net.init(0), np.zeros((3, 1)), y, name)
    assert message in str(caught.value)
    assert type(caught.value) is error


BAD_WEIGHTS = [
    ([1, 1], fb.ShapeError, "sample_weight has shape (2,), expected (3,)"),
    (1.0, fb.ShapeError, "sample_weight has shape (), expected (3,)"),
    ([[1], [1], [1]], fb.ShapeError, "sample_weight has shape (3, 1), expected (3,)"),
    ([1, -1, 1], ValueError, "sample_weight holds -1.0 at row 1"),
    ([1, 1, np.nan], ValueError, "sample_weight holds nan at row 2"),
    ([np.inf, 1, 1], ValueError, "sample_weight holds inf at row 0"),
    ([0, 0, 0], ValueError, "sample_weight is zero everywhere"),
    ([1j, 1, 1], TypeError, "sample_weight has dtype complex128"),
]


@pytest.mark.parametrize(("w", "error", "message"), BAD_WEIGHTS, ids=[b[-1] for b in BAD_WEIGHTS])
def test_bad_weights(backend, w, error, message):
    net = outputs_as_parameters(1)
    with pytest.raises(error) as caught:
        net.value(net.init(0), np.zeros((3, 1)), np.zeros(3), sample_weight=w)
    assert message in str(caught.value)
    assert type(caught.value) is error


@pytest.mark.parametrize("l2", [-1.0, np.nan, np.inf])
def test_bad_penalties(backend, l2):
    net = outputs_as_parameters(1)
    with pytest.raises(ValueError, match=f"l2 is {l2}, expected a finite number >= 0"):
        net.value_and_grad(net.init(0), np.zeros((3, 1)), np.zeros(3), l2=l2)


def test_table_rows_describe_themselves():
    assert set(TABLE) == set(LOSSES)
    for name in LOSSES:
        assert loss(name) is TABLE[name] is loss(TABLE[name])
        assert TABLE[name].least_squares == (name in ("mse", "half_mse", "sse"))
        assert TABLE[name].averaged == (name != "sse")
