"""Products with Jacobian, Hessian and Gauss-Newton matrix, and what is made of them.

The truth is the derivative of the gradient in extended precision, taken by differences, so that it
shares nothing with the rules under test; matrices small enough to be written out; and whole
numbers, for which relu networks have no rounding at all.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from helpers.strategies import (
    EVERY_ACTIVATION,
    EVERY_LOSS,
    SMOOTH_ACTIVATIONS,
    SMOOTH_LOSSES,
    case,
    case_of,
    case_with,
    same,
)
from oracles import bounds
from oracles.bounds import EXACT, richardson

import fastbp as fb
from fastbp.maths.losses import loss as loss_of

pytestmark = pytest.mark.backend

PENALTIES = {"l2": 0.1, "l1": 0.05, "group": 0.07}


def close(computed, expected, share=1e-12):
    """Within that share of the largest entry."""
    computed, expected = np.asarray(computed), np.asarray(expected)
    assert computed.shape == expected.shape
    assert abs(computed - expected).max(initial=0) <= share * abs(expected).max(initial=0)


def bounds_terms(c):
    """The terms as bounds.py names them."""
    return {("weights" if name == "sample_weight" else name): t for name, t in c.terms.items()}


def directions(c, count=2):
    return np.random.default_rng(5).standard_normal((count, c.net.n_params)).astype(c.net.dtype)


# jvp.


@pytest.mark.parametrize("act", EVERY_ACTIVATION, ids=str)
def test_jvp_is_the_jacobian_times_the_tangent(backend, dtype, act):
    c = case(np.random.default_rng(3), [4, 7, 6, 3], [act, act, "linear"], dtype, n=70)
    for v in directions(c):
        Y, dY = c.net.jvp(c.params, c.X, v)
        assert same(Y, c.net.forward(c.params, c.X)) and Y.dtype == dY.dtype == dtype
        bounds.jvp(c.net, c.params, c.X, v).check(dY, "jvp")
        if dtype == np.float64:
            close(dY.ravel(), c.net.jacobian(c.params, c.X) @ v)


def test_jvp_and_vjp_are_adjoint(backend, rng):
    c = case_with("mse", "gelu", n=300)
    v, dY = directions(c)[0], rng.standard_normal((300, 3))
    v[~bounds.free_entries(c.net)] = 0
    _, pullback = c.net.vjp(c.params, c.X)
    left, right = (dY * c.net.jvp(c.params, c.X, v)[1]).sum(), pullback(dY)[0] @ v
    assert left == pytest.approx(right, rel=1e-11)


# hvp and gnvp.

COMBINATIONS = [(loss, "tanh") for loss in SMOOTH_LOSSES]
COMBINATIONS += [(loss, "softplus") for loss in ("bce", "huber", "squared_hinge")]
COMBINATIONS += [("mse", act) for act in SMOOTH_ACTIVATIONS if act != "tanh"]
COMBINATIONS += [("softmax_ce", act) for act in ("sigmoid", "softsign", "elu", "selu", "celu")]


@functools.cache
def wide_products(loss, act):
    """A case with directions v and Hv, by differences of the gradient in extended precision."""
    c = case_with(loss, act, **PENALTIES)
    p, V = c.params.astype(EXACT), directions(c)
    V[:, ~bounds.free_entries(c.net)] = 0

    def gradient(p):
        return bounds.objective(c.net, p, c.X, c.y, c.loss, **bounds_terms(c))[1].value

    # Differences are good to 1e-19/h and h^6.
    return c, V, [richardson(lambda t, v=v: gradient(p + t * v), 1e-3) for v in V]


@pytest.mark.parametrize(("loss", "act"), COMBINATIONS, ids=str)
def test_hvp_is_the_derivative_of_the_gradient(backend, loss, act):
    c, V, expected = wide_products(loss, act)
    for v, Hv in zip(V, expected, strict=True):
        close(c.net.hvp(c.params, c.X, c.y, v, loss, **c.terms), Hv)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
@pytest.mark.parametrize("act", ["relu", fb.leaky_relu(0.3), "hard_tanh", "relu6"], ids=str)
def test_hvp_with_corners_is_that_of_the_smooth_pieces(backend, loss, act):
    """Where no Z is at a corner, differences over a small step see none."""
    c = case_with(loss, act, l2=0.1)
    (v,) = directions(c, 1)
    v[~bounds.free_entries(c.net)] = 0
    p, weights = c.params.astype(EXACT), c.terms["sample_weight"]

    def gradient(t):
        return bounds.objective(c.net, p + t * v, c.X, c.y, loss, weights, 0.1)[1].value

    close(c.net.hvp(c.params, c.X, c.y, v, loss, **c.terms), richardson(gradient, 1e-4), 1e-11)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
@pytest.mark.parametrize("act", ["tanh", "gelu", "elu", "sin"])
def test_products_are_symmetric(backend, loss, act):
    """u·Hv = v·Hu, over several parts of the rows."""
    c = case_with(loss, act, n=600, **PENALTIES)
    u, v = directions(c)
    for product in (c.net.hvp, c.net.gnvp):
        Hu, Hv = (product(c.params, c.X, c.y, x, loss, **c.terms) for x in (u, v))
        scale = np.linalg.norm(u) * np.linalg.norm(Hv) + np.linalg.norm(v) * np.linalg.norm(Hu)
        assert abs(u @ Hv - v @ Hu) <= 1e-13 * scale


def loss_hessian(loss, y, t):
    """d²ℓ/dY² of a row, by differences of its slope in extended precision."""
    y, n_out = np.asarray(y, EXACT), len(y)

    def slope(z):
        return bounds.rows_of_loss(loss, bounds.exact(z[None]), t, np.float64)[1].value[0]

    return np.array([richardson(lambda h, e=e: slope(y + h * e)) for e in np.eye(n_out)])


@pytest.mark.parametrize("loss", [loss for loss in EVERY_LOSS if not loss_of(loss).paired], ids=str)
def test_gnvp_is_jt_times_the_losss_hessian_times_j(backend, loss):
    c = case_with(loss, "softplus")
    Y, J = c.net.forward(c.params, c.X), c.net.jacobian(c.params, c.X)
    J = J.reshape(*Y.shape, -1)
    w = c.terms["sample_weight"]
    G, least = np.zeros((c.net.n_params, c.net.n_params)), 0.0
    for i, (y, J_i) in enumerate(zip(Y, J, strict=True)):
        t = None if c.y is None else c.y[i : i + 1]
        H = loss_hessian(loss, y, t).astype(np.float64)
        G += w[i] * J_i.T @ H @ J_i
        least = min(least, np.linalg.eigvalsh(H).min())
    G *= float(bounds.scale(loss, w.sum(), c.net.n_out))
    products = [c.net.gnvp(c.params, c.X, c.y, e, loss, sample_weight=w) for e in np.eye(len(G))]
    close(products, G)
    # Two are not convex in all outputs (or cut); nor are losses with negative curvature.
    if loss not in ("gaussian_nll", "bce") and least > -1e-9:
        assert np.linalg.eigvalsh(np.array(products)).min() >= -1e-14 * abs(G).max()


def test_gnvp_is_the_hessian_of_linear_networks(backend, rng):
    c = case(rng, [4, 3], ["linear"], loss="softmax_ce", weighted=True)
    for v in directions(c):
        arguments = c.params, c.X, c.y, v, c.loss
        close(c.net.gnvp(*arguments, **c.terms), c.net.hvp(*arguments, **c.terms))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_hessians_of_penalties(backend, dtype, penalty):
    """Of l2 it is the identity on weights, of l1 zero, of a column's norm (I - w wᵀ/‖w‖²)/‖w‖."""
    c = case_with("mse", "tanh", dtype)
    for (W, _), mask in zip(c.net.unpack(c.params), (c.net.layers[0].mask, 1, 1), strict=True):
        W *= mask
    ((W, _), *_) = c.net.unpack(c.params)
    W[:, 4] = 0  # a column of zeros adds nothing
    (v,) = directions(c, 1)
    v[~bounds.free_entries(c.net)] = 0
    expected = np.zeros(c.net.n_params)
    rows = (c.net.unpack(x) for x in (c.params, v))
    for (W, _), (V, _), (E, _) in zip(*rows, bounds.split(c.net, expected), strict=True):
        if penalty == "l2":
            E[:] = 0.3 * V
        for j, (w, u) in enumerate(zip(W.T.astype(float), V.T.astype(float), strict=True)):
            norm = np.linalg.norm(w)
            if penalty == "group" and norm:
                E[:, j] = 0.3 / norm * (u - w * (w @ u) / norm**2)
    expected[~bounds.free_entries(c.net)] = 0
    for product in (c.net.hvp, c.net.gnvp):
        with_penalty = product(c.params, c.X, c.y, v, **{penalty: 0.3})
        difference = with_penalty - product(c.params, c.X, c.y, v)
        # Sums of up to 7 squares, a root, a quotient, two products; and the final sum.
        rounding = 32 * np.finfo(dtype).eps * max(abs(expected).max(), abs(with_penalty).max())
        assert abs(difference - expected).max() <= rounding


@pytest.mark.parametrize("threads", [1, 3])
def test_whole_numbers_are_exact(backend, dtype, threads):
    """relu networks over small whole numbers: no product rounds, whatever the type and tiling."""
    rng = np.random.default_rng(7)
    layers = fb.Dense(5, "relu"), fb.Dense(4, fb.leaky_relu(0.5)), fb.Dense(2)
    net, wide = fb.Network(3, *layers, dtype=dtype), fb.Network(3, *layers)
    params, v = rng.integers(-1, 2, (2, net.n_params)).astype(dtype)
    X, y = (rng.integers(-2, 3, shape).astype(dtype) for shape in ((300, 3), (300, 2)))

    def results(net, backend, threads):
        terms = {"loss": "sse", "threads": threads, "backend": backend}
        return [
            net.hvp(params, X, y, v, **terms),
            net.gnvp(params, X, y, v, **terms),
            net.jvp(params, X, v, backend=backend)[1],
            net.per_sample_grad(params, X, y, "sse", backend=backend),
            *net.normal_equations(params, X, y, threads=threads, backend=backend),
        ]

    expected = results(wide, "numpy", 1)
    for computed, exactly in zip(results(net, backend, threads), expected, strict=True):
        assert np.any(exactly)
        np.testing.assert_array_equal(computed, exactly)


# Bounds of |f'''|.
JERKS = {
    "linear": 0, "tanh": 2, "sigmoid": 0.125, "softplus": 0.097, "gelu": 0.78, "gelu_tanh": 0.78,
    "silu": 0.31, "mish": 0.59, "sin": 1, "bump": 6,
}  # fmt: skip


def second_derivative(act, Z, dtype):
    """f'' by differences of f', of which backends give it to 8 eps of max(1, |f''|)."""
    F = bounds.function(act)
    value = richardson(lambda h: F.df(Z.value + h), 1e-3)
    accuracy = 8 * np.finfo(dtype).eps + 1000 * np.finfo(EXACT).eps
    return bounds.Approx(value, JERKS[act.name] * Z.error + accuracy * np.maximum(1, abs(value)))


def product_for_squares(net, params, X, y, v, gauss_newton):
    """The Hessian of Σ(Y - y)² times v with its rounding errors, by Pearlmutter's rule."""
    times, plus, matmul, exact = bounds.times, bounds.plus, bounds.product, bounds.exact
    dtype, A, RA, steps, parts = net.dtype, exact(X), exact(0 * X), [], []
    weights, directions = bounds.matrices(net, params), bounds.split(net, v.astype(EXACT))
    for layer, (W, b), (V, c) in zip(net.layers, weights, directions, strict=True):
        Z = matmul(A, exact(W), dtype, b)
        RZ = plus(matmul(RA, exact(W), dtype), matmul(A, exact(V), dtype, c), dtype)
        Y = bounds.activate(layer.act, Z, dtype)
        slope = bounds.either_slope(layer.act, Z, Y, dtype)
        steps.append((layer.act, exact(W), exact(V), A, RA, Z, RZ, slope))
        A, RA = Y, times(slope, RZ, dtype)
    two = exact(2)
    dA, RdA = times(two, plus(A, exact(-y), dtype), dtype), times(two, RA, dtype)
    for act, W, V, A, RA, Z, RZ, slope in reversed(steps):
        dZ, RdZ = times(dA, slope, dtype), times(RdA, slope, dtype)
        dW, RdA = matmul(A.T, RdZ, dtype), matmul(RdZ, W.T, dtype)
        if not gauss_newton:
            bend = times(dA, second_derivative(act, Z, dtype), dtype)
            RdZ = plus(RdZ, times(bend, RZ, dtype), dtype)
            dW = plus(matmul(A.T, RdZ, dtype), matmul(RA.T, dZ, dtype), dtype)
            RdA = plus(matmul(RdZ, W.T, dtype), matmul(dZ, V.T, dtype), dtype)
        parts[:0] = [dW, bounds.sum_rows(RdZ, dtype)]
        dA = matmul(dZ, W.T, dtype)
    values, errors = zip(*((part.value.ravel(), part.error.ravel()) for part in parts), strict=True)
    return bounds.Approx(np.concatenate(values), np.concatenate(errors))


@pytest.mark.parametrize("act", [act for act in SMOOTH_ACTIVATIONS if act != "exp"], ids=str)
def test_products_are_within_rounding(backend, dtype, act):
    c = case(np.random.default_rng(3), [4, 7, 6, 3], [act, act, "linear"], dtype, n=70, loss="sse")
    (v,) = directions(c, 1)
    for product, gauss_newton in ((c.net.hvp, False), (c.net.gnvp, True)):
        bound = product_for_squares(c.net, c.params, c.X, c.y, v, gauss_newton)
        bound.check(product(c.params, c.X, c.y, v, "sse"), f"{product.__name__} of {act}")
        bound.check_sharp(5e4 * np.finfo(dtype).eps)


LINEAR_TANH = fb.Activation("t", np.tanh, lambda z: 1 - np.tanh(z) ** 2)
HALF_SQUARE = fb.custom_loss(lambda y, t: ((y - t) ** 2 / 2, y - t), name="half")


def test_second_derivatives_that_are_missing(backend, rng):
    net = fb.Network(4, fb.Dense(3, LINEAR_TANH), fb.Dense(2))
    params, X, y = net.init(0), rng.standard_normal((5, 4)), rng.standard_normal((5, 2))
    with pytest.raises(
        ValueError, match=r"activation 't' has no second derivative.*Activation\('t"
    ):
        net.hvp(params, X, y, params)
    with pytest.raises(ValueError, match="activation 't' has no second derivative"):
        net.max_stable_rate(params, X, np.zeros(5, int), "softmax_ce")
    assert np.isfinite(net.gnvp(params, X, y, params)).all()  # which needs none
    assert 0 < net.max_stable_rate(params, X, y) < np.inf
    plain = fb.Network(4, fb.Dense(3, "tanh"), fb.Dense(2))
    for product in (plain.hvp, plain.gnvp):
        with pytest.raises(ValueError, match=r"loss 'half' has no second derivative.*\(f, d2\)"):
            product(params, X, y, params, HALF_SQUARE)
    with pytest.raises(ValueError, match="loss 'half' has no second derivative"):
        plain.max_stable_rate(params, X, y, HALF_SQUARE)


def test_bad_directions(backend, rng):
    c = case(rng, [4, 7, 3], ["tanh", "linear"])
    short = c.params[1:]
    for call, name in (
        (lambda: c.net.jvp(c.params, c.X, short), "tangent"),
        (lambda: c.net.hvp(c.params, c.X, c.y, short), "v"),
        (lambda: c.net.gnvp(c.params, c.X, c.y, short), "v"),
    ):
        with pytest.raises(fb.ShapeError, match=rf"{name} has shape \(58,\), expected \(59,\)"):
            call()
    with pytest.raises(TypeError, match="v has dtype complex128, expected real numbers"):
        c.net.hvp(c.params, c.X, c.y, 1j * c.params)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_parameters_pass_through(backend, dtype, rng, bad):
    """No warning, no error: NaN and infinity go where the mathematics sends them."""
    c = case(rng, [4, 7, 3], ["tanh", "linear"], dtype, weighted=True)
    c.params[40] = bad  # a weight of the last layer
    (v,) = directions(c, 1)
    for product in (c.net.hvp, c.net.gnvp):
        assert not np.isfinite(product(c.params, c.X, c.y, v, **c.terms, **PENALTIES)).all()
    JTJ, JTr, sse = c.net.normal_equations(c.params, c.X, c.y)
    assert not np.isfinite(JTJ).all() and not np.isfinite(JTr).all() and not np.isfinite(sse)
    assert not np.isfinite(c.net.per_sample_grad(c.params, c.X, c.y)).all()
    assert not np.isfinite(c.net.jvp(c.params, c.X, v)[1]).all()


# Gradients by rows.


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
def test_per_sample_gradients_are_those_of_single_rows(backend, dtype, loss):
    c = case_with(loss, "gelu", dtype, weighted=False)
    rows = c.net.per_sample_grad(c.params, c.X, c.y, loss)
    size = 2 if loss_of(loss).paired else 1
    assert rows.shape == (len(c.X) // size, c.net.n_params) and rows.dtype == dtype
    for i, row in enumerate(rows):
        part = slice(size * i, size * (i + 1))
        y = None if c.y is None else c.y[part]
        bounds.objective(c.net, c.params, c.X[part], y, loss)[1].check(row, f"row {i}")
        if dtype == np.float64:
            close(row, c.net.value_and_grad(c.params, c.X[part], y, loss)[1])
    total = rows.sum(axis=0) if loss == "sse" else rows.mean(axis=0)
    grad = c.net.value_and_grad(c.params, c.X, c.y, loss)[1]
    close(total, grad, 100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 257, 300])
def test_per_sample_gradients_of_any_number_of_rows(backend, n):
    c = case(np.random.default_rng(n), [4, 20, 3], ["tanh", "linear"], n=n)
    expected = c.net.per_sample_grad(*c.arguments, backend="numpy")
    close(c.net.per_sample_grad(*c.arguments), expected)


def test_weights_of_pairs_and_rows_weigh_their_gradients(backend, rng):
    for loss, count in (("mse", 6), ("margin_ranking", 3)):
        c = case(rng, [4, 7, 1], ["tanh", "linear"], n=6, loss=loss)
        plain = c.net.objective(c.X, c.y, loss).per_sample_grad(c.params)
        w = rng.random(count)
        weighted = c.net.objective(c.X, c.y, loss, sample_weight=w).per_sample_grad(c.params)
        close(weighted, w[:, None] * plain, 1e-15)
        assert plain.shape == (count, c.net.n_params)


# Normal equations.


@pytest.mark.parametrize("n", [1, 7, 255, 256, 257, 513, 1500])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_normal_equations_against_the_jacobian(backend, n, weighted):
    c = case_with("sse", "tanh", n=n, weighted=weighted)
    w = c.terms.get("sample_weight", np.ones(n))
    free, root = bounds.free_entries(c.net), np.repeat(np.sqrt(w), 3)
    J = root[:, None] * c.net.jacobian(c.params, c.X, free_only=True)
    r = root * (c.net.forward(c.params, c.X) - c.y).ravel()
    JTJ, JTr, sse = c.net.normal_equations(c.params, c.X, c.y, **c.terms)
    assert JTJ.shape == (free.sum(),) * 2 and type(sse) is float
    assert same(JTJ, np.ascontiguousarray(JTJ.T))
    close(JTJ, J.T @ J)
    assert abs(JTr - J.T @ r).max() <= 1e-12 * abs(J).max() * abs(r).sum()  # terms may cancel
    assert sse == pytest.approx(r @ r, rel=1e-12)
    value, grad = c.net.value_and_grad(c.params, c.X, c.y, "sse", **c.terms)
    assert sse == pytest.approx(value, rel=1e-13)
    close(2 * JTr, grad[free], 1e-11)


def test_normal_equations_are_within_rounding(backend, dtype):
    c = case_with("sse", "tanh", dtype, n=40, weighted=False)
    free, steps = bounds.free_entries(c.net), bounds.forward(c.net, c.params, c.X)
    J = bounds.jacobian(c.net, c.params, c.X)[0][:, free]
    R = bounds.plus(steps[-1][2], bounds.exact(-c.y), dtype)
    r = bounds.Approx(R.value.reshape(-1, 1), R.error.reshape(-1, 1))
    JTJ, JTr, sse = c.net.normal_equations(c.params, c.X, c.y)
    bounds.product(J.T, J, dtype).check(JTJ, "JTJ")
    bounds.product(J.T, r, dtype).check(JTr[:, None], "JTr")
    squares = bounds.product(r.T, r, dtype)
    squares.check(np.array([[sse]]), "sse")
    bounds.product(J.T, J, dtype).check_sharp(1000 * np.finfo(dtype).eps)


def test_normal_equations_solve_linear_least_squares(backend, rng):
    X, y = rng.standard_normal((700, 5)), rng.standard_normal((700, 2))
    w = rng.random(700)
    net = fb.Network(5, fb.Dense(2, mask=[[1, 0], [1, 1], [0, 1], [1, 1], [1, 0]]))
    JTJ, JTr, _ = net.normal_equations(np.zeros(net.n_params), X, y, w)
    params = np.zeros(net.n_params)
    params[net.free] = np.linalg.solve(JTJ, -JTr)
    root = np.sqrt(w)[:, None]
    for k, columns in enumerate(([0, 1, 3, 4], [1, 2, 3])):
        A = np.column_stack([X[:, columns], np.ones(700)])
        expected = np.linalg.lstsq(root * A, root[:, 0] * y[:, k], rcond=None)[0]
        W, b = net.unpack(params)[0]
        np.testing.assert_allclose([*W[columns, k], b[k]], expected, rtol=1e-10)


# Sums of squares, robust ones among them.

ROBUST = ("linear", "huber", "soft_l1", "cauchy")


def residuals(c):
    """Y - y, from close to 0 to several times the scale of 0.4 in the tests below."""
    return (c.net.forward(c.params, c.X) - c.y).ravel()


@pytest.mark.parametrize("robust", ROBUST)
def test_sums_of_squares_are_twice_scipys_costs(backend, robust):
    from scipy.optimize import least_squares

    c = case_with("sse", "tanh", n=300, weighted=False)
    assert abs(residuals(c)).min() < 0.04 and abs(residuals(c)).max() > 1.6
    start = np.zeros(1)
    cost = least_squares(
        lambda _: residuals(c), start, lambda _: np.zeros((900, 1)), loss=robust, f_scale=0.4
    ).cost
    obj = c.net.objective(c.X, c.y, "sse")
    *_, total = obj.normal_equations(c.params, robust, 0.4)
    assert type(total) is float and total == pytest.approx(2 * cost, rel=1e-13)
    alone = obj.sum_of_squares(c.params, robust, 0.4)
    assert type(alone) is float and alone == pytest.approx(total, rel=1e-14)


def rho_slope(robust, z):
    """rho' as `scipy.optimize.least_squares` documents rho."""
    return {
        "linear": np.ones_like(z),
        "huber": np.where(z <= 1, 1, z**-0.5),
        "soft_l1": (1 + z) ** -0.5,
        "cauchy": 1 / (1 + z),
    }[robust]


@pytest.mark.parametrize("n", [1, 7, 256, 513, 1500])
@pytest.mark.parametrize("robust", ROBUST)
def test_robust_normal_equations_are_reweighted(backend, dtype, robust, n):
    """D = w·rho'(z) with z of the residual without its weight, in free coordinates."""
    c = case_with("sse", "tanh", dtype, n=n)
    obj = c.net.objective(c.X, c.y, "sse", **c.terms)
    r = residuals(c).astype(np.float64)
    D = np.repeat(c.terms["sample_weight"], 3) * rho_slope(robust, (r / 0.4) ** 2)
    J = c.net.jacobian(c.params, c.X, free_only=True).astype(np.float64)
    JTJ, JTr, _ = obj.normal_equations(c.params, robust, 0.4)
    assert same(JTJ, np.ascontiguousarray(JTJ.T)) and JTJ.dtype == JTr.dtype == dtype
    assert JTJ.flags.c_contiguous and JTr.flags.c_contiguous
    share = 1e-12 if dtype == np.float64 else 1e-3
    close(JTJ, J.T @ (D[:, None] * J), share)
    assert abs(JTr - J.T @ (D * r)).max() <= share * abs(J).max() * (D * abs(r)).sum()


@pytest.mark.parametrize("robust", ROBUST)
def test_robust_gradients_are_those_of_the_sum(backend, robust):
    c = case_with("sse", "tanh", n=40)
    obj, free = c.net.objective(c.X, c.y, "sse", **c.terms), bounds.free_entries(c.net)
    _, JTr, _ = obj.normal_equations(c.params, robust, 0.4)
    v = np.where(free, directions(c)[0], 0)

    def total(t):
        return obj.sum_of_squares(c.params + float(t) * v, robust, 0.4)

    h = 1e-5
    assert (total(h) - total(-h)) / (2 * h) == pytest.approx(2 * JTr @ v[free], rel=1e-6)


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_normal_equations_above_frozen_layers(backend, dtype, rng, frozen):
    """Layers below the first free one are not derived to; of three frozen ones, none is."""
    layers = [fb.Dense(n, "tanh", trainable=i >= frozen) for i, n in enumerate((5, 9, 3))]
    c = case_of(rng, fb.Network(4, *layers, dtype=dtype), 70, "sse", True)
    for robust in ("linear", "huber"):
        computed, expected = (
            c.net.objective(c.X, c.y, "sse", backend=b, **c.terms).normal_equations(
                c.params, robust, 0.5
            )
            for b in (backend, "numpy")
        )
        share = 1e-12 if dtype == np.float64 else 1e-4
        for entry, exactly in zip(computed[:2], expected[:2], strict=True):
            assert entry.dtype == dtype
            close(entry, exactly, share)
        assert computed[2] == pytest.approx(expected[2], rel=share)


def test_outliers_do_not_overflow_where_squares_would_not(backend):
    """A residual of 1e100 counts, and its equations have next to no weight."""
    net, X = fb.Network(1, fb.Dense(1)), np.array([[1.0], [2.0], [3.0]])
    obj = net.objective(X, [1.0, 2.0, 1e100], "sse")
    for robust, size in (("huber", 2e100), ("soft_l1", 2e100), ("cauchy", 200 * np.log(10))):
        JTJ, _, total = obj.normal_equations([1.0, 0.0], robust)
        assert total == pytest.approx(size, rel=1e-13)
        np.testing.assert_allclose(JTJ, [[5, 3], [3, 2]], rtol=1e-13)


# The largest stable rate.


def dense_curvature(c, gauss_newton):
    """The matrix over free parameters whose largest eigenvalue counts, in float64."""
    free = bounds.free_entries(c.net)
    if gauss_newton:
        J = c.net.jacobian(c.params, c.X)[:, free]
        w = np.repeat(c.terms["sample_weight"], c.net.n_out)
        H = (
            2
            * float(bounds.scale(c.loss, w.sum() / c.net.n_out, c.net.n_out))
            * J.T
            @ (w[:, None] * J)
        )
        return H + c.terms.get("l2", 0) * np.diag(bounds.weight_entries(c.net)[free])
    p = c.params.astype(EXACT)

    def gradient(p):
        return bounds.objective(c.net, p, c.X, c.y, c.loss, **bounds_terms(c))[1].value

    columns = [richardson(lambda t, e=e: gradient(p + t * e)) for e in np.eye(len(p))[free]]
    return np.array(columns)[:, free].astype(np.float64)


@pytest.mark.parametrize("hidden", [3, 15], ids=["written out", "Lanczos"])
@pytest.mark.parametrize("loss", ["mse", "half_mse", "sse", "softmax_ce", "poisson"])
def test_largest_stable_rate_against_dense_eigenvalues(backend, hidden, loss):
    """Matrices of up to 64 rows are written out, others left to ARPACK at a relative 1e-8."""
    rng = np.random.default_rng(2)
    mask = rng.random((4, hidden)) < 0.8
    net = fb.Network(4, fb.Dense(hidden, "tanh", mask=mask), fb.Dense(3))
    c = case_of(rng, net, 30, loss, True, l2=0.1)
    assert (net.n_free > 64) == (hidden == 15)
    largest = np.linalg.eigvalsh(dense_curvature(c, loss_of(loss).least_squares))[-1]
    rate = net.max_stable_rate(*c.arguments, **c.terms)
    assert rate == pytest.approx(2 / largest, rel=1.1e-8 if hidden == 15 else 1e-11)


def test_the_rate_is_the_edge_of_stability(backend, rng):
    """Gradient descent on a quadratic: just below the rate it shrinks, just above it grows."""
    X, y = rng.standard_normal((20, 3)), rng.standard_normal(20)
    net = fb.Network(3, fb.Dense(1))
    solution = np.linalg.lstsq(np.column_stack([X, np.ones(20)]), y, rcond=None)[0]
    rate = net.max_stable_rate(net.init(0), X, y)
    for factor, grows in ((0.99, False), (1.01, True)):
        params = solution + 1e-3
        start = net.value(params, X, y) - net.value(solution, X, y)
        for _ in range(400):
            params = params - factor * rate * net.value_and_grad(params, X, y)[1]
        assert (net.value(params, X, y) - net.value(solution, X, y) > start) == grows


def test_flat_objectives_have_no_limit(backend, rng):
    X = rng.standard_normal((6, 4))
    net = fb.Network(4, fb.Dense(2, "relu"), fb.Dense(1))
    assert net.max_stable_rate(np.zeros(net.n_params), X, np.zeros(6), "mae") == np.inf
    wide = fb.Network(4, fb.Dense(20, "relu"), fb.Dense(1))
    assert wide.max_stable_rate(np.zeros(wide.n_params), X, np.zeros(6), "mae") == np.inf


def test_float32_networks_have_the_rate_of_float64(backend, rng):
    c = case(rng, [4, 7, 3], ["tanh", "linear"], "float32")
    wide = c.net.astype("float64")
    rate = c.net.max_stable_rate(*c.arguments)
    assert rate == pytest.approx(wide.max_stable_rate(*c.arguments), rel=1e-14)


def test_rate_of_non_finite_parameters_is_nan(backend):
    for hidden in (3, 30):
        net = fb.Network(4, fb.Dense(hidden, "tanh"), fb.Dense(1))
        params = net.init(0)
        params[0] = np.nan
        assert np.isnan(net.max_stable_rate(params, np.ones((5, 4)), np.ones(5)))


@pytest.mark.parametrize(
    "loss", ["mae", "hinge", "squared_hinge", fb.quantile(0.25), fb.huber(0.25)], ids=str
)
def test_no_curvature_of_nan_either(compiled, loss, dtype):
    """Where the second derivative is 0, so is the product: a NaN row adds none to the bias's."""
    net = fb.Network(1, fb.Dense(1), dtype=dtype)
    arguments = ([1.0, 0.5], [[np.nan], [2.0]], [1.0, -1.0], [0.3, -0.7], loss)
    product, expected = net.gnvp(*arguments), net.gnvp(*arguments, backend="numpy")
    assert np.isfinite(product[1])
    assert np.array_equal(np.isnan(product), np.isnan(expected))
