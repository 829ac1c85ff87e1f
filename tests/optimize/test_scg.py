"""`fastbp.optimize.scg`: Møller's steps, known minima, networks, and continuing after a stop."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.optimize
from helpers.problems import (
    FREE,
    PROBLEMS,
    START,
    bowl,
    classification,
    regression,
    restricted_regression,
    rosenbrock,
    sum_of_squares,
    wood,
)
from hypothesis import given, settings, strategies as st

import fastbp as fb
from fastbp.optimize._scg import SCGSolver


def moller(fun, x, iterations, hessp=None, sigma=1e-4, lam=1e-6):
    """The nine steps of the paper, in its names; yields w, λ, Δ and whether step 4 was needed."""
    w, N = np.array(x), len(x)
    lam_bar, success = 0.0, True
    p = r = -fun(w)[1]
    for k in range(1, iterations + 1):
        norm2 = p @ p
        if success:  # 2. second-order information
            sigma_k = sigma / np.sqrt(norm2)
            if hessp is None:
                s = (fun(w + sigma_k * p)[1] - fun(w)[1]) / sigma_k
            else:
                s = hessp(w, p)
            delta = p @ s
        delta += (lam - lam_bar) * norm2  # 3. scale
        indefinite = delta <= 0
        if indefinite:  # 4. make the Hessian positive definite
            lam_bar = 2 * (lam - delta / norm2)
            delta = -delta + lam * norm2
            lam = lam_bar
        mu = p @ r  # 5. step size
        alpha = mu / delta
        E, E_new = fun(w)[0], fun(w + alpha * p)[0]
        comparison = 2 * delta * (E - E_new) / mu**2  # 6.
        success = comparison >= 0
        old_p = p
        if success:  # 7.
            w = w + alpha * p
            r_new = -fun(w)[1]
            lam_bar = 0.0
            beta = (r_new @ r_new - r_new @ r) / mu
            p, r = (r_new if k % N == 0 else r_new + beta * p), r_new
            if comparison >= 0.75:
                lam /= 4
        else:
            lam_bar = lam
        if comparison < 0.25:  # 8.
            lam += delta * (1 - comparison) / (old_p @ old_p)
        yield w, lam, comparison, indefinite


def network(loss="mse", activation="tanh", **terms):
    """A network with 3 inputs, its objective and its start."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(60, 3))
    y = np.sin(X @ [1.0, 2.0, -1.0])
    net = fb.Network(3, fb.Dense(5, activation), fb.Dense(1))
    y = (y > 0).astype(float) if loss == "bce_logits" else y
    return net.objective(X, y, loss, **terms), net.init(seed=1)


# The steps.


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("Rosenbrock", [-1.2, 1.0]),
        ("Rosenbrock", [0.1, 0.5]),
        ("Rosenbrock, 10 variables", [-1.2, 1.0] * 5),
        ("Beale", [1.0, 1.0]),
        ("Beale", [-2.0, 2.0]),
        ("Wood", [-3.0, -1.0, -3.0, -1.0]),
        ("Powell's singular", [3.0, -1.0, 0.0, 1.0]),
        ("network", None),
        ("network with exact products", None),
    ],
)
def test_steps_of_the_paper(name, start, monkeypatch):
    monkeypatch.setattr("fastbp.optimize._scg.CUT", np.inf)  # the paper knows no limit
    hessp = None
    if start is None:
        objective, start = network()
        fun = objective.value_and_grad
        hessp = objective.hvp if "exact" in name else None
    else:
        fun = sum_of_squares(PROBLEMS[name][0])
    search = SCGSolver(fun, hessp, start)
    seen = []
    for k, (w, lam, *happened) in enumerate(moller(fun, start, 15, hessp), start=1):
        seen.append(happened)
        search.step()
        # A difference's rounding is 1e-16/sigma = 1e-12 of the curvature; later steps enlarge it.
        np.testing.assert_allclose(search.x, w, rtol=0, atol=1e-9 * np.abs(w).max())
        assert search.damping == pytest.approx(lam, rel=1e-8)
        assert search.nit == k
    comparisons, indefinite = zip(*seen, strict=True)
    if (name, start) == ("Rosenbrock", [-1.2, 1.0]):  # where all that can happen does
        assert any(indefinite)
        assert {c < 0 for c in comparisons} == {0.75 <= c for c in comparisons} == {True, False}


@pytest.mark.parametrize("ratio", [-0.1, 0.24, 0.26, 0.74, 0.76, 1.9])
def test_damping_follows_the_comparison(ratio):
    # From 1 with a curvature of h a parabola x² gains 2 - 2/h times what that h promises.
    h = 2 / (2 - ratio)
    search = SCGSolver(bowl, lambda x, p: h * p, [1.0])
    search.step()
    assert (search.x[0] != 1) == (ratio > 0)
    expected = 1e-6 + h * (1 - ratio) if ratio < 0.25 else 1e-6 / 4 if ratio > 0.75 else 1e-6
    assert search.damping == pytest.approx(expected, rel=1e-5)


def test_a_step_that_gains_nothing_is_taken():
    search = SCGSolver(lambda x: (1.0, np.ones(1)), None, [0.0])
    search.step()
    assert search.x[0] < 0 and search.f == 1


def test_a_direction_that_leads_nowhere_is_given_up():
    state = SCGSolver(bowl, None, [1.0, 0.0]).state()
    search = SCGSolver(bowl, None, [0.0, 0.0], state=state | {"direction": np.array([0.0, 1.0])})
    search.step()
    assert search.x.tolist() == [1, 0] and search.status is None
    search.step()
    np.testing.assert_allclose(search.x, 0, atol=1e-6)


def test_no_curvature_and_no_damping():
    state = SCGSolver(bowl, None, [1.0]).state() | {"curvature": 0.0, "damping": 0.0}
    search = SCGSolver(bowl, None, [0.0], state=state)
    while search.f == 1.0:
        search.step()
    assert search.f < 1.0


def test_a_direction_that_overflows_is_given_up():
    def fun(x):
        return (1.0, np.array([1e-10, 0])) if x[0] == 0 else (0.5, np.array([0, 1e150]))

    search = SCGSolver(fun, lambda x, p: p, [0.0, 0.0])
    search.step()
    assert search.f == 0.5 and search.direction.tolist() == [0, -1]


@pytest.mark.parametrize("beyond", [1e30, np.inf, -np.inf, np.nan])
def test_steps_are_not_cut_too_much(beyond):
    points = []

    def wall(x):
        points.append(x[0])
        return (beyond, np.full(1, np.nan)) if x[0] > 1.05 else bowl(x - 2)

    search = SCGSolver(wall, lambda x, p: 2 * p, [1.0])
    for _ in range(3):
        search.step()
    # Without the wall the first step is the last; the damping of 1e-6 shortens it by half that.
    np.testing.assert_allclose(points, [1, 2, 1.1, 1.01], rtol=1e-6)
    assert search.x[0] == points[-1] and search.f == pytest.approx(0.99**2, rel=1e-5)


@pytest.mark.parametrize("exact", [False, True])
@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 8), spread=st.floats(0, 1))
def test_quadratics_take_n_steps(exact, monkeypatch, seed, n, spread):
    monkeypatch.setattr("fastbp.optimize._scg.DAMPING", 1e-12)
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    A = Q * 10 ** rng.uniform(0, spread, n) @ Q.T
    x0, center = rng.normal(size=(2, n))

    def fun(x):
        d = x - center
        return float(d @ A @ d) / 2, A @ d

    hessp = (lambda x, p: A @ p) if exact else None
    result = fb.optimize.scg(fun, x0, hessp=hessp, maxiter=n)
    # Conjugate gradients would be there. Damping and the rounding of differences spoil every step
    # by 1e-12, which those after it enlarge.
    assert np.linalg.norm(result.jac) <= 1e-6 * np.linalg.norm(fun(x0)[1])
    assert result.nit == n or result.success
    assert (np.diff(result.history) <= 0).all()


# What it finds.


@pytest.mark.parametrize("name", PROBLEMS)
def test_known_minima(name):
    residuals, x0, minimum = PROBLEMS[name]
    fun = sum_of_squares(residuals)
    result = fb.optimize.scg(fun, x0, maxiter=3000)
    assert result.fun < 1e-20
    # Powell's Hessian is singular: f grows with the 4th power of the distance.
    tolerance = 1e-4 if name == "Powell's singular" else 1e-9
    np.testing.assert_allclose(result.x, minimum, atol=tolerance)
    assert result.success or name == "Powell's singular"


@pytest.mark.parametrize("name", PROBLEMS)
def test_result_is_consistent(name):
    residuals, x0, _ = PROBLEMS[name]
    fun = sum_of_squares(residuals)
    met = []

    def noting(x):
        f, g = fun(x)
        met.append(f)
        return f, g

    result = fb.optimize.scg(noting, x0, maxiter=10)
    f, g = fun(result.x)
    assert result.fun == f
    assert np.array_equal(result.jac, g)
    assert result.nfev == result.njev == len(met)
    assert (result.nit, result.nhev, result.status, result.success) == (10, 0, 1, False)
    assert "maxiter" in result.message
    assert len(result.history) == 11
    assert result.history[0] == met[0] and result.history[-1] == f
    assert np.all(np.diff(result.history) <= 0)


@pytest.mark.backend
@pytest.mark.parametrize("hessp", [None, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_linear_regression(backend, hessp, dtype):
    net, objective, exact = regression(dtype)
    result = fb.optimize.scg(objective, net.init(seed=0), hessp=hessp)
    assert result.success
    assert result.x.dtype == np.float64
    np.testing.assert_allclose(result.x, exact, atol=1e-7)
    assert (result.nhev > 0) == bool(hessp)
    double = fb.optimize.scg(objective.astype("float64"), net.init(seed=0), hessp=hessp)
    assert result.x.tobytes() == double.x.tobytes()


@pytest.mark.backend
@pytest.mark.parametrize("hessp", [None, True])
def test_logistic_regression(backend, hessp):
    net, objective = classification()
    start = np.zeros(net.n_params)
    result = fb.optimize.scg(objective, start, hessp=hessp, maxiter=500)
    reference = fb.optimize.minimize(objective, start, ftol=0, gtol=1e-12, maxiter=5000)
    assert result.success
    # The objective is 0.01-strongly convex in the weights: ‖x - x*‖ is at most ‖g‖ / 0.01.
    np.testing.assert_allclose(result.x, reference.x, atol=1e-6)
    assert result.fun - reference.fun <= 1e-12


@pytest.mark.backend
@pytest.mark.parametrize("hessp", [None, True])
@pytest.mark.parametrize(
    ("loss", "activation", "terms"),
    [("mse", "tanh", {}), ("bce_logits", "relu", {"l2": 0.01}), ("mse", "silu", {"l1": 1e-3})],
)
def test_networks(backend, hessp, loss, activation, terms):
    objective, start = network(loss, activation, **terms)
    result = fb.optimize.scg(objective, start, hessp=hessp, maxiter=200)
    f, g = objective.value_and_grad(result.x)
    assert result.fun == f and np.array_equal(result.jac, g)
    assert np.all(np.diff(result.history) <= 0)
    with fb.use_backend("numpy"):
        reference, _ = network(loss, activation, **terms)
    expected = fb.optimize.scg(reference, start, hessp=hessp, maxiter=10).history
    # As in `test_steps_of_the_paper`.
    np.testing.assert_allclose(result.history[:11], expected, rtol=1e-9)


@pytest.mark.backend
@pytest.mark.parametrize("hessp", [None, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moves_what_is_free(backend, hessp, dtype):
    objective, _, exact = restricted_regression(dtype)
    points = []
    result = fb.optimize.scg(objective, START, hessp=hessp, callback=points.append)
    assert result.success
    np.testing.assert_allclose(result.x[FREE], exact, atol=1e-6)
    assert result.jac.shape == (5,) and result.jac[1] == result.jac[2] == 0
    assert len(points) == result.nit
    for x in (result.x, *points):
        assert x.shape == (5,) and np.isnan(x[1]) and x[2] == 2.0
    with pytest.raises(ValueError, match="neither bounds nor constraints"):
        fb.optimize.scg(objective, START, bounds=[(0, 1)] * 5)


def test_something_must_be_free():
    net = fb.Network(2, fb.Dense(1, trainable=False))
    objective = net.objective(np.eye(2), [1.0, 2.0])
    with pytest.raises(ValueError, match="all 3 parameters of the network are masked or frozen"):
        fb.optimize.scg(objective, np.zeros(3))


def rosenbrock_products(x, p, scale=1.0):
    a, b = x
    H = np.array([[1200 * a * a - 400 * b + 2, -400 * a], [-400 * a, 200.0]])
    product = scale * H @ p
    x[:] = p[:] = np.nan  # theirs to write to
    return product


def test_products_of_the_callers():
    fun = sum_of_squares(rosenbrock)

    def scaled(x, scale):
        f, g = fun(x)
        return scale * f, scale * g

    result = fb.optimize.scg(scaled, [-1.2, 1.0], 3.0, hessp=rosenbrock_products)
    assert result.success
    np.testing.assert_allclose(result.x, 1, atol=1e-9)
    # A product for every new direction, an evaluation for every step.
    assert result.nfev == 1 + result.nit
    assert 0 < result.nhev <= result.nit
    differences = fb.optimize.scg(scaled, [-1.2, 1.0], 3.0)
    assert differences.nfev > 1 + differences.nit and differences.nhev == 0


def test_products_that_are_not_finite():
    result = fb.optimize.scg(bowl, [3.0, 1.0], hessp=lambda x, p: p * np.nan, maxiter=300)
    np.testing.assert_allclose(result.x, 0, atol=1e-7)  # damping alone finds the way


# How it copes.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("start", [1e-3, 10.0])
def test_backs_off_from_values_that_are_not_finite(bad, start):
    def fun(x):  # least at 1, undefined from 0 down
        return (x[0] - np.log(x[0]), 1 - 1 / x) if x[0] > 0 else (bad, np.full(1, np.nan))

    result = fb.optimize.scg(fun, [start])
    assert result.success
    np.testing.assert_allclose(result.x, 1, atol=1e-7)
    assert np.isfinite(result.history).all()


@pytest.mark.parametrize(
    "hole",
    [
        (1.99980, 1.99995),  # where the first difference reaches
        (1.27, 1.29),  # where the first step leads: 2 - 36/50
    ],
)
def test_backs_off_from_gradients_that_are_not_finite(hole):
    def fun(x):
        low, high = hole
        slope = 4 * x**3 + 2 * x
        return float(x[0] ** 4 + x[0] ** 2), slope if not low < x[0] < high else slope * np.nan

    result = fb.optimize.scg(fun, [2.0])
    assert result.success
    np.testing.assert_allclose(result.x, 0, atol=1e-7)


def test_a_wrong_gradient_is_reported():
    result = fb.optimize.scg(lambda x: (float(x @ x), -2 * x), [3.0, 1.0])
    assert (result.status, result.success) == (3, False)
    assert "check_grad" in result.message
    assert result.x.tolist() == [3.0, 1.0]


def test_an_unbounded_function_ends():
    result = fb.optimize.scg(lambda x: (-x.sum(), -np.ones(2)), [0.0, 1.0], maxiter=2000)
    assert not result.success
    assert result.fun < -1e300


@pytest.mark.parametrize("scale", [1e-10, 1e10, 1e150])
def test_functions_of_any_size(scale):
    fun = sum_of_squares(rosenbrock)

    def scaled(x):
        f, g = fun(x)
        return scale * f, scale * g

    result = fb.optimize.scg(scaled, [-1.2, 1.0], maxiter=1000)
    assert result.success
    np.testing.assert_allclose(result.x, 1, atol=1e-6)


def test_ends_where_rounding_hides_the_rest():
    residuals, x0, minimum = PROBLEMS["Beale"]
    fun = sum_of_squares(residuals)
    result = fb.optimize.scg(lambda x: (fun(x)[0] + 1e3, fun(x)[1]), x0, maxiter=1000)
    assert result.success and result.nit < 100
    # f is known to 1e-13 here, and grows with the square of the distance.
    np.testing.assert_allclose(result.x, minimum, atol=1e-5)


def test_zero_gradient_at_the_start():
    result = fb.optimize.scg(bowl, [0.0, 0.0])
    assert (result.success, result.nit, result.nfev) == (True, 0, 1)
    assert result.history.tolist() == [0.0]


def test_tol():
    fun = sum_of_squares(rosenbrock)
    result = fb.optimize.scg(fun, [-1.2, 1.0], tol=1e-3)
    assert result.success
    assert np.abs(result.jac).max() <= 1e-3
    assert result.nfev < fb.optimize.scg(fun, [-1.2, 1.0]).nfev
    assert fb.optimize.scg(fun, result.x, tol=1e-3).nfev == 1


@pytest.mark.parametrize("hessp", [None, rosenbrock_products])
@pytest.mark.parametrize("maxfun", [1, 2, 3, 17, 18])
def test_maxfun(maxfun, hessp):
    both = sum_of_squares(rosenbrock)
    calls = []

    def fun(x):
        calls.append(x)
        return both(x)

    result = fb.optimize.scg(fun, [-1.2, 1.0], hessp=hessp, maxfun=maxfun)
    assert (result.status, result.success) == (2, False)
    assert "maxfun" in result.message
    # A step that would take two is not begun with one left.
    assert len(calls) == result.nfev
    assert maxfun - (hessp is None) <= result.nfev <= maxfun


@pytest.mark.parametrize("sigma", [1e-4, 1e-10])
def test_sigma_is_how_far_the_difference_reaches(sigma):
    points = []

    def fun(x):
        points.append(x.copy())
        return bowl(x)

    fb.optimize.scg(fun, [3.0, 4.0], sigma=sigma, maxiter=1)
    np.testing.assert_allclose((points[1] - points[0]) / sigma, [-0.6, -0.8], rtol=1e-5)


def test_arguments_are_not_modified_or_kept():
    x0 = np.array([1.0, 2.0])
    x0.flags.writeable = False
    out = np.empty(2)

    def rude(x):
        f, out[:] = bowl(x)
        x[:] = np.nan
        return f, out

    result = fb.optimize.scg(rude, x0)
    assert x0.tolist() == [1.0, 2.0]
    assert result.x is not x0
    np.testing.assert_allclose(result.x, 0, atol=1e-10)


# Stopping after any iteration and going on.


def stored(state):
    """The state as a file holds it: vectors as bytes, the rest as JSON."""
    vectors = {name: v.tobytes() for name, v in state.items() if isinstance(v, np.ndarray)}
    numbers = {name: v for name, v in state.items() if name not in vectors}
    assert all(state[name].dtype == np.float64 for name in vectors)
    return {name: np.frombuffer(v) for name, v in vectors.items()} | json.loads(json.dumps(numbers))


def of_a_function(name):
    residuals, x0, _ = PROBLEMS[name]
    return sum_of_squares(residuals), None, x0


def of_a_network(exact, **options):
    objective, start = network(**options)
    return objective.value_and_grad, objective.hvp if exact else None, start


@pytest.mark.parametrize(
    ("make", "argument", "iterations"),
    [
        (of_a_function, "Rosenbrock", 100),
        (of_a_function, "Wood", 60),
        (of_a_network, False, 40),
        (of_a_network, True, 40),
    ],
)
def test_goes_on_as_if_it_had_not_stopped(make, argument, iterations):
    fun, hessp, x0 = make(argument)
    whole = SCGSolver(fun, hessp, x0)
    states = [whole.state()]
    while whole.status is None and whole.nit < iterations:
        whole.step()
        states.append(whole.state())
    for k, state in enumerate(states):
        search = SCGSolver(fun, hessp, x0, state=stored(state))
        assert search.nit == k
        for later in states[k:][:4]:
            state_now = search.state()
            assert state_now.keys() == later.keys()
            assert all(np.array_equal(state_now[name], later[name]) for name in later)
            if search.status is None:
                search.step()
    assert (whole.status == 0) == (argument == "Rosenbrock")


def test_a_state_is_a_copy():
    fun = sum_of_squares(wood)
    search = SCGSolver(fun, None, [-3.0, -1, -3, -1])
    search.step()
    state = search.state()
    other = SCGSolver(fun, None, [0.0] * 4, state=state)
    for vector in ("x", "g", "direction"):
        state[vector][:] = np.nan
    for one in (search, other):
        one.step()
        assert np.isfinite(one.x).all() and one.nit == 2
    assert np.array_equal(other.x, search.x)


@pytest.mark.parametrize("exact", [False, True])
def test_cost_and_message(exact):
    objective, start = network()
    search = SCGSolver(objective.value_and_grad, objective.hvp if exact else None, start, tol=1e-3)
    while search.status is None:
        assert search.message == ""
        expected = search.nfev + search.cost
        search.step()
        assert search.nfev == expected
    assert "Converged" in search.message
    assert np.abs(search.g).max() <= 1e-3


# As a method of SciPy.


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("hessp", [None, rosenbrock_products])
def test_as_a_method_of_scipy(separate, hessp):
    both = sum_of_squares(rosenbrock)
    result = scipy.optimize.minimize(
        (lambda x: both(x)[0]) if separate else both,
        [-1.2, 1.0],
        method=fb.optimize.scg,
        jac=(lambda x: both(x)[1]) if separate else True,
        hessp=hessp,
        tol=1e-3,
        options={"maxiter": 300, "sigma": 1e-5},
    )
    direct = fb.optimize.scg(both, [-1.2, 1.0], hessp=hessp, maxiter=300, sigma=1e-5, tol=1e-3)
    assert result.success
    assert result.x.tobytes() == direct.x.tobytes()
    assert (result.nfev, result.nhev) == (direct.nfev, direct.nhev)


@pytest.mark.backend
def test_by_name(backend):
    net, objective, exact = regression("float32")
    result = fb.optimize.minimize(objective, net.init(seed=0), "SCG", tol=1e-9, sigma=1e-5)
    assert result.x.dtype == np.float32
    np.testing.assert_allclose(result.x, exact, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x0": [[1.0]]}, fb.ShapeError, "x0 has shape (1, 1), expected a vector"),
        ({"x0": [np.nan]}, fb.NonFiniteError, "x0 holds nan at row 0"),
        ({"fun": lambda x: (1.0, np.ones(3))}, fb.ShapeError, "shape (3,), expected (1,)"),
        ({"fun": lambda x: (np.nan, x)}, fb.NonFiniteError, "fun is nan at x0"),
        ({"fun": lambda x: (1.0, x * np.inf)}, fb.NonFiniteError, "the gradient at x0 holds inf"),
        ({"fun": lambda x: (1.0, x * 1e200)}, fb.NonFiniteError, "overflows; scale fun down"),
        ({"fun": lambda x: 1.0}, TypeError, "expected the pair (value, gradient)"),
        ({"fun": 3}, TypeError, "fun is 3, expected a function"),
        ({"jac": None}, ValueError, "jac is None, and scg needs the gradient"),
        ({"hessp": True}, TypeError, "hessp is True, expected a function (x, p) -> Hp"),
        ({"hessp": "2-point"}, TypeError, "hessp is '2-point', expected a function"),
        ({"hessp": lambda x, p: np.ones(2)}, fb.ShapeError, "what hessp gave has shape (2,), exp"),
        ({"hessp": lambda x, p: [1j]}, TypeError, "what hessp gave has dtype complex128"),
        ({"bounds": [(0, 1)]}, ValueError, "scg takes neither bounds nor constraints"),
        ({"constraints": {"type": "eq", "fun": len}}, ValueError, "scg takes neither bounds nor"),
        ({"maxiter": 0}, ValueError, "maxiter is 0, expected at least 1"),
        ({"maxfun": 0}, ValueError, "maxfun is 0"),
        ({"sigma": 0.0}, ValueError, "sigma is 0.0, expected a small positive number"),
        ({"sigma": np.nan}, ValueError, "sigma is nan"),
        ({"tol": -1.0}, ValueError, "tol is -1.0"),
        ({"maxitr": 3}, TypeError, "maxitr"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error) as caught:
        fb.optimize.scg(**{"fun": bowl, "x0": [1.0]} | arguments)
    assert message in str(caught.value)


def test_products_of_an_objective():
    net, objective, _ = regression()
    start = net.init(seed=0)
    with pytest.raises(TypeError, match="hessp was given with an objective, which brings its own"):
        fb.optimize.scg(objective, start, hessp=objective.hvp)
    bare = fb.Activation("cube", lambda z: z**3, lambda z: 3 * z * z)
    objective = fb.Network(3, fb.Dense(1, bare)).objective(np.eye(3), np.ones(3))
    with pytest.raises(ValueError, match="'cube' has no second derivative"):
        fb.optimize.scg(objective, start, hessp=True)
    assert fb.optimize.scg(objective, start).fun < 1e-20
