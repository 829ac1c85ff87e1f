"""`check_vjp`: right layers pass, wrong ones fail, and the verdict names the input."""

from __future__ import annotations

import numpy as np
import pytest

import fastbp as fb


def relu(X):
    return np.maximum(X, 0)


def relu_backward(dY, X):
    return dY * (X > 0)


def dense(X, W, b):
    return fb.dense_forward(X, W, b, "tanh")[0]


def dense_backward(dY, X, W, b):
    return fb.dense_backward(dY, fb.dense_forward(X, W, b, "tanh")[1])


def dense_inputs(dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in ((4, 3), (3, 5), (5,))]


@pytest.mark.backend
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", range(5))
def test_dense_layer_passes(dtype, seed):
    check = fb.check_vjp(dense, dense_backward, *dense_inputs(dtype, seed))
    assert check, check
    assert len(check.indices) == 12 + 15 + 5


def test_relu_layer_passes_and_the_mistaken_one_is_named():
    X = np.random.default_rng(0).normal(size=(4, 3))
    assert fb.check_vjp(relu, relu_backward, X)
    identity = np.eye(3)
    assert fb.check_vjp(
        lambda X: fb.dense_forward(X, identity, np.zeros(3), "relu")[0],
        lambda dY, X: fb.dense_backward(dY, fb.dense_forward(X, identity, np.zeros(3), "relu")[1])[
            0
        ],
        X,
    )
    # The layer's input minus the derivative of what comes from above.
    check = fb.check_vjp(relu, lambda dY, X: X - (dY > 0), X)
    assert not check
    assert "worst is the gradient of input 0, entry (" in check.message
    assert "gradient of input 0 is not linear in dY" in check.message


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_wrong_input_is_named(k, dtype):
    def faulty(dY, *inputs):
        gradients = list(dense_backward(dY, *inputs))
        gradients[k] = gradients[k] * 1.01
        return tuple(gradients)

    check = fb.check_vjp(dense, faulty, *dense_inputs(dtype))
    assert not check
    number, index = check.worst
    assert number == k
    assert f"the gradient of input {k}, entry {index}" in check.message


def test_one_wrong_entry_is_found():
    def faulty(dY, X, W, b):
        dX, dW, db = dense_backward(dY, X, W, b)
        dW[2, 3] *= 1.001
        return dX, dW, db

    check = fb.check_vjp(dense, faulty, *dense_inputs())
    assert check.worst == (1, (2, 3))


def test_none_skips_an_input():
    check = fb.check_vjp(
        lambda X, labels: X[np.arange(3), labels.astype(int)],
        lambda dY, X, labels: (
            dY[:, None] * (np.arange(4) == labels[:, None].astype(int)),
            None,
        ),
        np.random.default_rng(0).normal(size=(3, 4)),
        [0, 3, 1],
    )
    assert check, check
    assert {k for k, _ in check.indices} == {0}


def test_nan_in_a_gradient_fails():
    check = fb.check_vjp(relu, lambda dY, X: np.full_like(X, np.nan), np.ones((2, 2)))
    assert not check
    assert "analytic nan" in check.message


def test_backward_must_be_linear():
    # Right for the very dY of the check, by cheating; but not linear.
    X = np.ones((2, 2))
    first = []

    def cheating(dY, X):
        first.append(dY.copy())
        return first[0] * (X > 0)

    check = fb.check_vjp(relu, cheating, X)
    assert not check
    assert "FAILED: gradient right in 4 entries" in check.message
    assert "not linear in dY" in check.message


def test_large_inputs_are_sampled():
    X = np.random.default_rng(0).normal(size=(40, 50))
    check = fb.check_vjp(np.sin, lambda dY, X: dY * np.cos(X), X, samples=30)
    assert check
    assert "30 entries of 2000 and 8 random directions" in check.message
    assert not fb.check_vjp(np.sin, lambda dY, X: dY * np.cos(X) * 1.1, X, samples=30)


def test_scalars_and_lists():
    assert fb.check_vjp(lambda x: x**2, lambda dY, x: dY * 2 * x, 3.0)
    assert fb.check_vjp(lambda x: x.sum(), lambda dY, x: dY * np.ones(2), [1, 2])


def test_inputs_and_dY_are_not_shared():
    def forward(X):
        Y = np.maximum(X, 0)
        X[:] = 0
        return Y

    def backward(dY, X):
        dY *= X > 0
        return dY

    X = np.array([[1.0, -1.0]])
    X.flags.writeable = False
    assert fb.check_vjp(forward, backward, X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda X: fb.check_vjp(relu, lambda dY, X: dY.T, X),
            fb.ShapeError,
            "gradient of input 0 has shape (3, 2), expected (2, 3)",
        ),
        (
            lambda X: fb.check_vjp(relu, lambda dY, X: (dY, dY), X),
            fb.ShapeError,
            "returned 2 gradients, expected 1",
        ),
        (
            lambda X: fb.check_vjp(lambda X: (X, None), relu_backward, X),
            TypeError,
            "forward returned a tuple",
        ),
        (lambda X: fb.check_vjp(relu, relu_backward, X * np.nan), fb.NonFiniteError, "input 0"),
        (lambda X: fb.check_vjp(relu, relu_backward), ValueError, "there are no inputs"),
        (lambda X: fb.check_vjp(relu, lambda dY, X: None, X), ValueError, "no gradient"),
        (lambda X: fb.check_vjp(relu, relu_backward, X, samples=0), ValueError, "samples is 0"),
    ],
)
def test_bad_arguments_of_check_vjp(call, error, message):
    with pytest.raises(error) as caught:
        call(np.ones((2, 3)))
    assert message in str(caught.value)
