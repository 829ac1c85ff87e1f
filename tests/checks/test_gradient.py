"""`check_grad`: right gradients pass, wrong ones fail, and the verdict says why."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import fastbp as fb
from fastbp.maths.losses import TABLE


def problem(activation="tanh", dtype="float64", loss="mse", seed=0, n=20, sizes=(3, 5, 2), l2=0.01):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, sizes[0])), rng.normal(size=(n, sizes[-1]))
    if loss == "bce_logits":
        y = (y > 0).astype(float)
    net = fb.Network.mlp(sizes, activation=activation, dtype=dtype)
    params = net.init(seed) + rng.normal(size=net.n_params).astype(dtype) * 0.1
    return net.objective(X, y, loss, l2=l2), params


def quadratic(x):
    return float(x @ x), 2 * x


# Right gradients pass.


@pytest.mark.backend
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from(["float64", "float32"]),
    activation=st.sampled_from(["linear", "relu", "leaky_relu", "sigmoid", "tanh"]),
    loss=st.sampled_from(["mse", "half_mse", "sse", "bce_logits"]),
    n=st.sampled_from([1, 4, 40]),
)
def test_networks_pass(seed, dtype, activation, loss, n):
    objective, params = problem(activation, dtype, loss, seed, n)
    check = fb.check_grad(objective, params)
    assert check, check


@pytest.mark.backend
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("loss", TABLE)
def test_every_loss_passes(dtype, loss):
    rng = np.random.default_rng(1)
    net = fb.Network(
        3, fb.Dense(4, "tanh"), fb.Dense(1 if loss == "margin_ranking" else 2), dtype=dtype
    )
    y = {
        "values": rng.normal(size=(12, 2)),
        "probabilities": rng.uniform(size=(12, 2)),
        "signs": rng.choice([-1.0, 1.0], (12, 2)),
        "counts": rng.poisson(2.0, (12, 2)),
        "classes": rng.integers(0, 2, 12),
        "halves": rng.normal(size=(12, 1)),
        "none": None,
    }[TABLE[loss].target]
    params = net.init(0)
    params[-net.n_out :] = 0.5  # "bce" takes its outputs as probabilities
    objective = net.objective(rng.normal(size=(12, 3)), y, loss, l2=0.1, group=0.1)
    check = fb.check_grad(objective, params)
    assert check, check


@pytest.mark.backend
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_free_parameters_are_checked(dtype):
    """Masked ones may hold anything; along frozen ones the value does change."""
    rng = np.random.default_rng(0)
    net = fb.Network(
        3,
        fb.Dense(4, "tanh", mask=rng.integers(0, 2, (3, 4)), bias_mask=[1, 0, 1, 1]),
        fb.Dense(3, "tanh", trainable=False),
        fb.Dense(2),
        dtype=dtype,
    )
    params = net.init(0)
    masked = np.delete(np.arange(16), net.free[net.free < 16])
    params[masked] = np.nan
    objective = net.objective(rng.normal(size=(20, 3)), rng.normal(size=(20, 2)), l2=0.1)
    check = fb.check_grad(objective, params)
    assert check, check
    assert check.indices == net.free.tolist()
    assert f"right in {net.n_free} entries of {net.n_params}" in check.message
    sampled = fb.check_grad(objective, params, samples=5)
    assert sampled and "5 entries of 39 and 8 random directions" in sampled.message
    assert fb.check_grad(objective, params, free=masked)
    assert not fb.check_grad(objective, params, free=[16])
    assert fb.check_grad(objective, params, free=[net.free[0]]).indices == [net.free[0]]
    params[16] = np.inf
    with pytest.raises(fb.NonFiniteError, match="x holds inf at row 16"):
        fb.check_grad(objective, params)


def test_nothing_free():
    net = fb.Network(2, fb.Dense(1, trainable=False))
    with pytest.raises(ValueError, match="free is empty, expected at least one entry to check"):
        fb.check_grad(net.objective(np.eye(2), [1.0, 2.0]), np.zeros(3))


RIGHT = {
    "value of 1e8": (lambda x: (1e8 + np.sum(x**2), 2 * x), [1.0, 2.0, -3.0]),
    "badly scaled function": (
        lambda x: (1e-6 * x[0] ** 3 + 1e6 * x[1] ** 3, np.array([3e-6, 3e6]) * x**2),
        [1.0, 0.7],
    ),
    "badly scaled variables": (
        lambda x: (
            (x[0] * 1e8 - 2) ** 4 + np.exp(x[1] * 1e-8),
            np.array([4e8 * (x[0] * 1e8 - 2) ** 3, 1e-8 * np.exp(x[1] * 1e-8)]),
        ),
        [1e-8, 3e8],
    ),
    "overflow nearby": (lambda x: (np.exp(700 * x[0]), 700 * np.exp(700 * x)), [1.0]),
    "edge of the domain nearby": (lambda x: (np.log(x[0]), 1 / x), [1e-3]),
    "narrow bump": (
        # Coarse steps all see a flat function.
        lambda x: (np.exp(-((1e3 * x[0]) ** 2)), -2e6 * x * np.exp(-((1e3 * x[0]) ** 2))),
        [1e-3],
    ),
    "at a minimum": (lambda x: (5 + np.sum(x**2), 2 * x), [0.0, 0.0]),
    "constant": (lambda x: (3.0, np.zeros(2)), [1.0, 2.0]),
    "float32": (
        lambda x: (np.sum(np.sin(x), dtype=np.float32), np.cos(x)),
        np.array([0.1, 1.0, -2.0], np.float32),
    ),
    "gradient in float32": (
        lambda x: (float(np.tanh(x.astype("f")).sum()), 1 - np.tanh(x.astype("f")) ** 2),
        [0.3, -1.2],
    ),
    "integers": (quadratic, [1, 2, 3]),
    "infinite beside a kink": (lambda x: (np.sum(np.sqrt(x)), 0.5 / np.sqrt(x)), [1e-4, 4.0]),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_right_gradients_pass(name):
    function, x = RIGHT[name]
    check = fb.check_grad(function, x)
    assert check, check


# Wrong gradients fail.

FAULTS = {
    "1e-4 too large": lambda g, w: g * (1 + 1e-4),
    "factor 2": lambda g, w: 2 * g,
    "missing 1/n": lambda g, w: 20 * g,
    "sign": lambda g, w: -g,
    "missing penalty on one weight": lambda g, w: g - 0.01 * w * (np.arange(len(g)) == 1),
    "one entry": lambda g, w: g * (1 + 1e-4 * (np.arange(len(g)) == 7)),
    "zero": lambda g, w: 0 * g,
    "NaN in one entry": lambda g, w: np.where(np.arange(len(g)) == 4, np.nan, g),
    "infinity in one entry": lambda g, w: np.where(np.arange(len(g)) == 4, np.inf, g),
}


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_fail(activation, fault):
    objective, params = problem(activation)

    def faulty(x):
        f, g = objective.value_and_grad(x)
        return f, FAULTS[fault](g, x)

    check = fb.check_grad(faulty, params)
    assert not check
    assert check.message.startswith("FAILED: gradient wrong in")


@pytest.mark.parametrize(("fault", "entry"), [("one entry", 7), ("NaN in one entry", 4)])
def test_the_faulty_entry_is_named(fault, entry):
    objective, params = problem()
    g = FAULTS[fault](objective.value_and_grad(params)[1], params)
    check = fb.check_grad(lambda x: (objective.value(x), g), params)
    assert check.worst == entry
    assert f"wrong in 1 of {len(g)} entries; worst is entry {entry}: analytic" in repr(check)


def test_float32_objective_is_checked_to_float32(monkeypatch):
    objective, params = problem("relu", "float32")
    right = type(objective).value_and_grad

    def faulty(self, params):
        f, g = right(self, params)
        return f, g * np.float32(1.001)

    monkeypatch.setattr(type(objective), "value_and_grad", faulty)
    assert not fb.check_grad(objective, params)


def test_sigmoid_gradients_belong_to_different_losses():
    # With the sigmoid's derivative the update descends the squared error, without it the
    # cross-entropy; each passes against its own objective and fails against the other's.
    X = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=float)
    y = np.array([0.0, 0, 1, 1])
    w = np.array([0.3, -0.2, 0.1])

    def probability(w):
        return 1 / (1 + np.exp(-X @ w))

    def squares(w):
        return ((probability(w) - y) ** 2).sum()

    def cross_entropy(w):
        p = probability(w)
        return -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum()

    def with_derivative(w):
        p = probability(w)
        return X.T @ (2 * (p - y) * p * (1 - p))

    def without_derivative(w):
        return X.T @ (probability(w) - y)

    assert fb.check_grad(lambda w: (squares(w), with_derivative(w)), w)
    assert fb.check_grad(lambda w: (cross_entropy(w), without_derivative(w)), w)
    assert not fb.check_grad(lambda w: (squares(w), without_derivative(w)), w)
    assert not fb.check_grad(lambda w: (cross_entropy(w), with_derivative(w)), w)


# What else can be the matter.


@pytest.mark.parametrize("at_zero", [0.0, 0.3, 1.0])
def test_any_subgradient_passes_at_a_kink(at_zero):
    def relu_sum(x):
        return np.maximum(x, 0).sum(), np.where(x == 0, at_zero, x > 0)

    check = fb.check_grad(relu_sum, [1.0, 0.0, -2.0])
    assert check
    assert "1 at a kink" in check.message


def test_other_values_fail_at_a_kink_and_both_sides_are_named():
    check = fb.check_grad(lambda x: (np.abs(x).sum(), np.where(x == 0, 2.0, np.sign(x))), [1, 0])
    assert not check
    assert check.worst == 1
    assert "not differentiable here? the derivative is -1 from the left and 1 from" in check.message


def test_a_random_function_is_named():
    rng = np.random.default_rng(0)
    check = fb.check_grad(lambda x: (x.sum() * rng.random(), np.ones(2)), [1.0, 2.0])
    assert not check
    assert "is it random?" in check.message
    check = fb.check_grad(lambda x: (x.sum(), np.ones(2) + 1e-3 * rng.random(2)), [1.0, 2.0])
    assert not check


def test_a_rough_function_is_undecided():
    check = fb.check_grad(lambda x: (x[0] + np.sin(1e12 * x[0]), np.ones(1)), [0.3])
    assert not check


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_function_that_is_finite_only_here_is_undecided():
    check = fb.check_grad(lambda x: (0.0 if x[0] == 1 else np.nan, np.zeros(1)), [1.0])
    assert not check
    assert "undecided" in check.message
    assert check.error_estimate == np.inf


def test_error_estimates_hold():
    # Values known to 40 digits: the estimate covers the error, and both are small.
    x = np.linspace(0.1, 3, 30)
    check = fb.check_grad(lambda x: (np.sum(np.exp(np.sin(3 * x))), np.zeros(30)), x)
    exact = 3 * np.cos(3 * x) * np.exp(np.sin(3 * x))
    assert np.all(np.abs(check.numeric - exact) <= check.errors)
    assert check.errors.max() < 1e-8 * np.abs(exact).max()


# The result.


def test_fields():
    check = fb.check_grad(lambda x: (float(np.sum(x**2)), 2 * x + [0, 1, 0]), [1.0, 2.0, 3.0])
    assert isinstance(check, fb.GradCheck)
    assert check.passed is False and bool(check) is False
    assert (check.worst, check.indices) == (1, [0, 1, 2])
    assert check.max_error == pytest.approx(1, abs=1e-9)
    assert check.error_estimate == check.errors[1] < 1e-9
    assert check.analytic.tolist() == [2.0, 5.0, 6.0]
    np.testing.assert_allclose(check.numeric, [2.0, 4.0, 6.0], rtol=1e-9)
    text = str(check)
    assert text == repr(check) == check.message
    assert "worst is entry 1: analytic 5, numeric 4" in text and "±" in text


def test_free_selects_entries():
    def first_wrong(x):
        return float(x @ x), 2 * x * [3, 1, 1, 1]

    x = np.arange(1.0, 5.0)
    assert fb.check_grad(first_wrong, x, free=[1, 3])
    assert fb.check_grad(first_wrong, x, free=x > 1)
    assert fb.check_grad(first_wrong, x, free=[-1]).indices == [3]
    assert fb.check_grad(first_wrong, x, free=[2, 0]).worst == 0


def test_long_vectors_are_sampled():
    x = np.random.default_rng(0).normal(size=3000)
    check = fb.check_grad(quadratic, x, samples=50)
    assert check
    assert "50 entries of 3000 and 8 random directions" in check.message
    assert sum(i >= 0 for i in check.indices) == 50
    assert check.indices == fb.check_grad(quadratic, x, samples=50).indices

    def few_wrong(x):  # hardly met by 50 samples: the directions find them
        g = 2 * x
        g[:10] *= 2
        return float(x @ x), g

    check = fb.check_grad(few_wrong, x, samples=50)
    assert not check


def test_arguments_are_not_modified():
    def rude(x):
        f, g = quadratic(x)
        x[:] = 0
        return f, g

    x = np.array([1.0, 2.0])
    x.flags.writeable = False
    assert fb.check_grad(rude, x)
    assert x.tolist() == [1.0, 2.0]


def test_a_reused_gradient_array_is_no_trouble():
    out = np.empty(3)

    def reusing(x):
        out[:] = 2 * x
        return float(x @ x), out

    assert fb.check_grad(reusing, [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fb.check_grad(quadratic, [[1.0]]), fb.ShapeError, "x has shape (1, 1)"),
        (lambda: fb.check_grad(quadratic, []), fb.ShapeError, "x has shape (0,)"),
        (lambda: fb.check_grad(quadratic, [1.0, np.nan]), fb.NonFiniteError, "x holds nan at"),
        (lambda: fb.check_grad(quadratic, [1j]), TypeError, "x has dtype complex128"),
        (
            lambda: fb.check_grad(lambda x: (np.nan, x), [1.0]),
            fb.NonFiniteError,
            "the function is nan at x",
        ),
        (
            lambda: fb.check_grad(lambda x: (1.0, x[:1]), [1.0, 2.0]),
            fb.ShapeError,
            "the gradient has shape (1,), expected (2,)",
        ),
        (lambda: fb.check_grad(lambda x: 1.0, [1.0]), TypeError, "returned float, expected the"),
        (lambda: fb.check_grad(quadratic, [1.0], free=[1]), ValueError, "free holds 1, expected"),
        (lambda: fb.check_grad(quadratic, [1.0], free=[]), ValueError, "free"),
        (lambda: fb.check_grad(quadratic, [1.0], free=[0.5]), ValueError, "a vector of indices"),
        (lambda: fb.check_grad(quadratic, [1.0], samples=0), ValueError, "samples is 0"),
    ],
)
def test_bad_arguments_of_check_grad(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
