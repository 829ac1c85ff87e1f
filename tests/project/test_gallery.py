"""The examples: what each prints is right, by an independent route, on every backend.

Independent are closed formulas, NumPy by hand, complex steps (f(x + ih)/h has no rounding error of
a difference), SciPy and scikit-learn. Figures that belong to a question are asserted as printed.
"""

from __future__ import annotations

import ast
import math
import re
import runpy

import numpy as np
import pytest
from helpers import repository
from helpers.repository import EXAMPLES

import fastbp as fb

pytestmark = pytest.mark.backend

FILES = sorted(EXAMPLES.glob("g[0-9][0-9]_*.py"))
TINY = 1e-30  # of complex steps


def load(path):
    for package in ("sklearn", "matplotlib", "pandas"):
        if re.search(rf"^\s*(from|import) {package}", path.read_text(encoding="utf-8"), re.M):
            pytest.importorskip(package)
    return repository.load(path)


@pytest.fixture
def example(backend, capsys):
    """Runs an example's main on the backend; returns what it returns and what it printed."""

    def run(row, **options):
        (path,) = EXAMPLES.glob(f"{row}_*.py")
        result = load(path).main(**options)
        return result, capsys.readouterr().out

    return run


def complex_step(f, x):
    """The gradient of a real-valued analytic function."""
    x = np.asarray(x, complex)
    gradient = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.copy()
        moved[index] += 1j * TINY
        gradient[index] = f(moved).imag / TINY
    return gradient


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# All of them.


def test_there_are_examples():
    assert len(FILES) >= 26


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_form(path):
    text = path.read_text(encoding="utf-8")
    assert 15 <= len(text.splitlines()) <= 60
    tree = ast.parse(text)
    doc = ast.get_docstring(tree)
    assert doc.splitlines()[0].endswith("?")
    assert [word for word in ("\nQuestion: ", "\nAnswer: ", "\nLesson: ") if word not in doc] == []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or ".").startswith(("fastbp", "."))
        elif isinstance(node, ast.Import):
            assert all(a.name == "fastbp" for a in node.names if a.name.startswith("fastbp"))
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_runs_as_a_script(path, capsys):
    if path.stem.startswith("g27") or (path.stem.startswith("g18") and fb.get_backend() == "numpy"):
        pytest.skip("millions of steps or calls with NumPy; the row's own test does fewer")
    load(path)  # skips where a package is missing
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_table_lists_them():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (G\d\d) \| (.+?) \| \[(.+?)\]\((.+?)\) \|$", table, re.M)
    assert [name for _, _, name, _ in listed] == [path.name for path in FILES]
    for row, question, name, link in listed:
        assert link == name and name.startswith(row.lower())
        doc = ast.get_docstring(ast.parse((EXAMPLES / name).read_text(encoding="utf-8")))
        assert question == doc.splitlines()[0]


# One by one.


def relu_by_hand(X, y, grad_at_zero):
    """The losses of G01's 200 steps, and the least |pre-activation| that was met."""
    net = fb.Network.mlp([2, 30, 1], "relu")
    (W1, b1), (W2, b2) = net.unpack(net.init(seed=0))
    losses, least = [], np.inf
    for _ in range(200):
        Z = X @ W1 + b1
        least = min(least, np.abs(Z).min())
        H = np.maximum(Z, 0)
        R = H @ W2 + b2 - y
        losses.append((R**2).sum())
        dY = 2 * R
        dZ = dY @ W2.T * np.where(Z == 0, grad_at_zero, Z > 0)
        W2 -= 0.002 * H.T @ dY
        b2 -= 0.002 * dY.sum(axis=0)
        W1 -= 0.002 * X.T @ dZ
        b1 -= 0.002 * dZ.sum(axis=0)
    return np.array(losses), least


def test_g01_relu_at_zero(example):
    result, text = example("g01")
    y = result["y"]
    assert result["X"].shape == (4, 2) and y.shape == (4, 1)
    assert (result["X_zero"] == 0).all(axis=1).sum() == 1
    for name in ("X", "X_zero"):
        losses = result[f"losses of {name}"]
        for value, found in losses.items():
            expected, least = relu_by_hand(result[name], y, value)
            np.testing.assert_allclose(found, expected, rtol=1e-10)
            assert (least == 0) == (name == "X_zero")
    on_random, on_zero = result["losses of X"], result["losses of X_zero"]
    for value in (0.5, 1.0):
        assert np.array_equal(on_random[value], on_random[0.0])
        assert not np.array_equal(on_zero[value], on_zero[0.0])
    assert not np.array_equal(on_zero[0.5], on_zero[1.0])
    assert result["X identical"] and not result["X_zero identical"]
    assert isinstance(result["error"], fb.ShapeError)
    assert "(4, 2)" in str(result["error"]) and "(4, 1)" in str(result["error"])
    assert "random rows: the three runs are bit-identical" in text
    assert "one row of zeros: the three runs are different" in text


def test_g03_sigmoid_derivative(example):
    result, text = example("g03")
    X = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
    y = np.array([[0, 0, 1, 1]]).T
    state = np.random.RandomState(1)
    start = 2 * state.random_sample((3, 1)) - 1
    assert np.array_equal(result["start"], start[:, 0])
    figures = {
        "with a·(1 - a)": ".03178 .02576 .97907 .97415",
        "without": ".00181 .00120 .99920 .99880",
    }
    for name, printed in figures.items():
        W = start.copy()
        for _ in range(1000):
            a = sigmoid(X @ W)
            W -= X.T @ ((a - y) * (a * (1 - a) if name != "without" else 1))
        np.testing.assert_allclose(result["outputs"][name], a[:, 0], rtol=0, atol=1e-13)
        assert " ".join(f"{v:.5f}"[1:] for v in result["outputs"][name]) == printed
        assert f"{name}: 0{printed.replace(' ', ' 0')}\n" in text

    def squares(w):
        return ((sigmoid(X @ w) - y[:, 0]) ** 2).sum()

    def entropy(w):
        a = sigmoid(X @ w)
        return -(y[:, 0] * np.log(a) + (1 - y[:, 0]) * np.log(1 - a)).sum()

    gradients = [complex_step(f, start[:, 0]) for f in (squares, entropy)]
    names = list(figures), ["sum of squares", "cross-entropy"]
    for i, of in enumerate(names[0]):
        for k, objective in enumerate(names[1]):
            check = result["checks"][of, objective]
            assert bool(check) == (i == k)
            np.testing.assert_allclose(check.analytic, gradients[i], rtol=1e-12)
            np.testing.assert_allclose(check.numeric, gradients[k], rtol=1e-9)
    assert text.count("passed") == text.count("FAILED") == 2


def test_g04_parabola(example, tmp_path):
    result, text = example("g04", path=tmp_path / "parabola.png")
    x = result["grid"]
    assert (x[0, 0], x[-1, 0]) == (0, 1000)
    errors = {}
    for scale in ("minmax", None):
        res, a = result[scale], x
        assert res.nfev == 10_000
        for k, (W, b) in enumerate(res.net.unpack(res.params)):
            a = a @ W + b
            a = np.maximum(a, 0) if k < 2 else a
        errors[scale] = 100 * np.sqrt(np.mean((a - x * (x + 1)) ** 2)) / (1000 * 1001)
        assert f"scale={scale}: error {errors[scale]:.3f} % after 10000 steps\n" in text
    assert errors["minmax"] < 0.5 < 10 * errors["minmax"] < errors[None]
    # The fit on scaled data, scaled by hand.
    res = result["minmax"]
    x = np.random.default_rng(0).uniform(0, 1000, (1600, 1))
    y = x**2 + x
    unit = fb.fit(
        res.net, (x - x.min()) / np.ptp(x), (y - y.min()) / np.ptp(y),
        params=res.net.init(np.random.SeedSequence(0).spawn(1)[0]), epochs=1, seed=0,
    )  # fmt: skip
    assert res.history["loss"][0] == pytest.approx(unit.history["loss"][0], rel=1e-12)
    assert "softmax over one output: [1.]\n" in text
    assert "has shape (1600, 1600)\n" in text
    assert (tmp_path / "parabola.png").read_bytes().startswith(b"\x89PNG")


def test_g05_backward_argument(example):
    result, text = example("g05")
    assert set(result["products"]) == {(1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 1, 1)}
    for v, dx in result["products"].items():
        assert np.array_equal(dx, 2 * np.array(v))
    assert result["v"].tolist() == [0.1, 1.0, 0.0001]
    (W1, b1), (W2, b2) = fb.Network.mlp([4, 5, 3]).unpack(result["params"])

    def outputs(x):
        return np.tanh(x @ W1 + b1) @ W2 + b2

    J = np.array([complex_step(lambda x, k=k: outputs(x)[k], result["x"][0]) for k in range(3)])
    np.testing.assert_allclose(result["J"], J, rtol=0, atol=1e-14)
    np.testing.assert_allclose(result["vjp"], result["v"] @ J, rtol=0, atol=1e-14)
    assert "dx = [2. 2. 2. 2.]" in text


def course_cost(theta, X, t, lam):
    z = X @ theta[:-1] + theta[-1]
    return np.mean(np.logaddexp(0, z) - t * z) + lam / (2 * len(X)) * theta[:-1] @ theta[:-1]


def best_theta(X, t, lam):
    from sklearn.linear_model import LogisticRegression

    solver = LogisticRegression(C=1 / lam, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    fitted = solver.fit(X, t)
    return np.append(fitted.coef_[0], fitted.intercept_)


def test_g06_one_vs_all(example):
    result, text = example("g06")
    from sklearn.datasets import load_digits

    X, labels = load_digits(return_X_y=True)
    three = X[:, np.argsort(X.var(axis=0))[-3:]] / 16
    data = {"pixels 0..16": X, "pixels / 16": X / 16}
    data |= {f"3 pixels, λ = {lam}": three for lam in ("0", "0.1", "1", "10")}
    assert set(result["accuracy"]) == set(data)
    for name, inputs in data.items():
        thetas = result["thetas"][name]
        scores = inputs @ thetas[:, :-1].T + thetas[:, -1]
        share = np.mean(scores.argmax(axis=1) == labels)
        assert result["accuracy"][name] == pytest.approx(share, abs=1e-12)
        assert re.search(rf"^{re.escape(name)} +{100 * share:.1f} %", text, re.M)
        # About 98.9 % and about 45 %; 50 iterations are short of the minimum on whole images.
        figure, slack = (0.45, 0.015) if name.startswith("3") else (0.989, 0.005)
        assert share == pytest.approx(figure, abs=slack)
    assert result["peer"] == pytest.approx(0.989, abs=0.002)
    assert result["accuracy"]["pixels / 16"] == pytest.approx(result["peer"], abs=0.005)

    for digit in range(10):
        t = labels == digit
        for lam in (1, 10):  # converged: the same minimum
            theta = result["thetas"][f"3 pixels, λ = {lam}"][digit]
            best = best_theta(three, t, lam)
            np.testing.assert_allclose(theta, best, rtol=0, atol=1e-6 * np.abs(best).max())
        reached = course_cost(result["thetas"]["pixels / 16"][digit], X / 16, t, 0.1)
        least = course_cost(best_theta(X / 16, t, 0.1), X / 16, t, 0.1)
        assert least * (1 - 1e-9) <= reached <= 1.05 * least


def test_g07_relu_backward(example):
    result, text = example("g07")
    X, dY = result["X"], result["dY"]
    for i, j in np.ndindex(X.shape):
        assert result["dX"][i, j] == (dY[i, j] if X[i, j] > 0 else 0)
        assert result["Y"][i, j] == (X[i, j] if X[i, j] > 0 else 0)
    np.testing.assert_allclose(result["dW"], X.T @ result["dX"], rtol=1e-14)
    np.testing.assert_allclose(result["db"], result["dX"].sum(axis=0), rtol=1e-14)
    right, wrong = result["right"], result["wrong"]
    assert right and not wrong
    assert len(right.numeric) == X.size
    np.testing.assert_allclose(right.analytic, wrong.numeric, rtol=0, atol=1e-9)
    assert "wrong" in wrong.message and wrong.message in text


def pooler_by_hand(params, X, labels, slope=None):
    """Loss, gradient and norms of G08's network, tanh or leaky relu with that slope."""
    W, b, U = params[:589824].reshape(768, 768), params[589824:590592], params[590592:592128]
    U = U.reshape(768, 2)
    Z = X @ W + b
    Y = np.tanh(Z) if slope is None else np.where(Z > 0, Z, slope * Z)
    T = Y @ U + params[592128:]
    P = np.exp(T - T.max(axis=1, keepdims=True))
    P /= P.sum(axis=1, keepdims=True)
    loss = -np.mean(np.log(P[np.arange(64), labels]))
    dT = (P - np.eye(2)[labels]) / 64
    dY = dT @ U.T
    dZ = dY * (1 - Y**2 if slope is None else np.where(Z > 0, 1, slope))
    dW, dU = X.T @ dZ, Y.T @ dT
    norms = [[np.linalg.norm(a) for a in layer] for layer in ((W, dW, dY, dZ), (U, dU, dT, dT))]
    return loss, np.concatenate([dW.ravel(), dZ.sum(0), dU.ravel(), dT.sum(0)]), norms, Z


def test_g08_tanh_pooler(example):
    result, text = example("g08")
    X, start = result["X"].astype(float), result["start"].astype(float)
    labels = result["labels"]
    for name, slope in (("tanh", None), ("leaky_relu", 0.01)):
        report = result["reports"][name]
        loss, gradient, norms, Z = pooler_by_hand(start, X, labels, slope)
        assert str(report) in text
        assert report.value == pytest.approx(loss, rel=1e-12)
        assert report.gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-9)
        for layer, by_hand in zip(report.layers, norms, strict=True):
            found = layer.weight_norm, layer.gradient_norm, layer.dY_norm, layer.dZ_norm
            np.testing.assert_allclose(found, by_hand, rtol=1e-9)
        pooler, dW = report.layers[0], gradient[:589824]
        assert pooler.z_std == pytest.approx(10, abs=0.1)
        assert pooler.z_std == pytest.approx(Z.std(), rel=1e-12)
        tiny = np.count_nonzero(np.abs(dW.astype(np.float16)) < 2.0**-14)
        assert pooler.underflow["float16"] == pytest.approx(tiny, abs=5)  # some lie at the border
        if slope is not None:
            assert set(pooler.vanished.values()) == {0.0}
            continue
        # y rounds to 1 within half the spacing of numbers below 1, eps/4; z has a normal law.
        figures = {"float16": 0.65, "float32": 0.32, "float64": 0.06}
        for precision, share in pooler.vanished.items():
            edge = np.arctanh(1 - np.finfo(precision).eps.astype(np.longdouble) / 4)
            assert share == pytest.approx(np.mean(np.abs(Z) >= edge), abs=1e-3)
            assert share == pytest.approx(math.erfc(edge / 10 / math.sqrt(2)), abs=0.01)
            y = np.tanh(Z.astype(precision))
            in_numpy = np.mean(1 - y * y == 0)  # 37 % where its float32 tanh is rounded correctly
            assert figures[precision] - 0.01 < in_numpy < max(figures[precision], share) + 0.01

    # A float32 sum of 768 products is off by γ_768 = 4.6e-5 of its terms at most, in 30 steps.
    for name, trained in (("tanh", slice(None)), ("tanh, pooler frozen", slice(590592, None))):
        losses, params = result["runs"][name]
        by_hand, moving = [], start.copy()
        for _ in range(30):
            loss, gradient, *_ = pooler_by_hand(moving, X, labels)
            moving[trained] -= 0.1 * gradient[trained]
            by_hand.append(loss)
        np.testing.assert_allclose(losses, by_hand, rtol=30 * 4.6e-5)
        fixed = np.ones(len(params), bool)
        fixed[trained] = False
        assert np.array_equal(params[fixed], result["start"][fixed])
    losses, _ = result["runs"]["leaky relu"]
    assert max(losses) > 10 * losses[0]
    losses, _ = result["runs"]["leaky relu, clipped"]
    assert max(losses) == losses[0] and losses[-1] < 0.1


def chosen_by_hand(free, start, X):
    """G09's network in its free coordinates: the output (n,) for them; analytic."""
    sees = np.array([[j < 3] * 2 + [j >= 3] * 2 for j in range(6)]).T  # (4 inputs, 6 units)

    def output(v):
        p = np.array(start, dtype=np.result_type(v))
        p[free] = v
        W1, b1, W2, b2 = p[:24].reshape(4, 6) * sees, p[24:30] * [1, 1, 0, 1, 1, 0], p[30:36], p[36]
        return np.tanh(X @ W1 + b1) @ W2 + b2

    return output


def chosen_descent(v, gradient, method):
    """200 full-batch steps, as G09's first-order methods do them."""
    m, s = np.zeros_like(v), np.zeros_like(v)
    for step in range(1, 201):
        g = gradient(v)
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g
        adam = m / (1 - 0.9**step) / (np.sqrt(s / (1 - 0.999**step)) + 1e-8)
        v = v - (0.2 * g if method == "sgd" else 0.05 * adam)
    return v


def test_g09_chosen_connections(example):
    result, text = example("g09")
    X, y, start = result["X"], result["y"], result["start"]
    masked = [i * 6 + j for i in range(4) for j in range(6) if (i < 2) != (j < 3)]
    fixed = [*masked, 24 + 2, 24 + 5, 30 + 0, 30 + 3]
    free = np.setdiff1d(np.arange(37), fixed)
    assert len(free) == 21
    assert set(start[masked]) == {99.0} and start[fixed[-4:]].tolist() == [-99, -99, 1, 1]

    output = chosen_by_hand(free, start, X)
    J = np.column_stack([output(start[free] + 1j * TINY * e).imag / TINY for e in np.eye(21)])
    np.testing.assert_allclose(result["J free"], J, rtol=0, atol=1e-13)
    assert np.array_equal(result["J"][:, free], result["J free"])
    assert not result["J"][:, fixed].any()
    assert "Jacobian (200, 37), of the free ones (200, 21)" in text

    def objective(v):
        return np.mean((output(v) - y) ** 2)

    assert list(result["params"]) == ["sgd", "adam", "L-BFGS-B", "fmincg", "lm", "trf"]
    for method, params in result["params"].items():
        assert params[fixed].tobytes() == start[fixed].tobytes()
        error = objective(params[free])
        assert error < 0.1 * objective(start[free])
        assert re.search(rf"^{method} +mse {error:.2e}, fixed entries unchanged$", text, re.M)
        if method in ("sgd", "adam"):
            by_hand = chosen_descent(start[free], lambda v: complex_step(objective, v), method)
            np.testing.assert_allclose(params[free], by_hand, rtol=0, atol=1e-9)
    lm, trf = (result["params"][method][free] for method in ("lm", "trf"))
    assert np.abs(complex_step(objective, trf)).max() < 1e-6 and objective(lm) <= objective(trf)


def two_layers(params):
    """The score of a 3-24-1 tanh network, and its gradient for given errors dY (n, 1)."""
    W1, b1, W2, b2 = params[:72].reshape(3, 24), params[72:96], params[96:120, None], params[120]

    def score(X):
        return np.tanh(X @ W1 + b1) @ W2 + b2

    def gradient(X, dY):
        H = np.tanh(X @ W1 + b1)
        dZ = dY @ W2.T * (1 - H**2)
        return np.concatenate([(X.T @ dZ).ravel(), dZ.sum(0), (H.T @ dY).ravel(), dY.sum(0)])

    return score, gradient


def test_g10_cancelling_integral(example):
    result, text = example("g10")

    def exact(ecut, q2, q02=485124412):
        return np.log((q2 - ecut) / (ecut - q02)) / (q02 - q2)

    value = exact(17909665929, 9e10)
    for name, (found, error) in result["found"].items():
        assert f"{name:15} {found:.9e} ± {error:.0e}\n" in text
        if name == "cauchy":
            # The tail beyond 1e9·q2, about 1/(1e9·q2), is left out.
            assert abs(found - value) <= error + 1.2e-20 and error < 1e-8 * abs(value)
        else:  # wrong, and further than it tells
            assert abs(found - value) > 0.5 * abs(value) and abs(found - value) > 5 * error
    assert len(result["found"]) == 4

    X, y = result["X"], result["y"]
    np.testing.assert_allclose(y, 1e11 * exact(*X.T), rtol=1e-7)
    errors = np.abs(result["Y"] - y)
    assert X.shape == (50, 2) and np.sqrt(np.mean(errors**2)) < 1e-3 * np.ptp(y)
    inside = (result["lower"] < y) & (y < result["upper"])
    assert f"{inside.sum()} of 50 new values within their bars of 95 %\n" in text
    assert inside.sum() >= 42 and (result["upper"] - result["lower"]).max() < 0.01 * np.ptp(y)


def test_g11_residuals_not_their_sum(example):
    result, text = example("g11")
    k = np.arange(1, 7)

    def curve(a, b_inv, c0):
        return (c0 - np.arcsinh(c0) * np.exp(2 * np.pi * a * k)) * b_inv / a

    def least(t):
        """Of the limit β(1 - e^(2πak))/a: for each a the best β, the least over a."""
        from scipy.optimize import minimize_scalar

        def of(a):
            g = (1 - np.exp(2 * np.pi * a * k)) / a
            return ((t - g * (g @ t) / (g @ g)) ** 2).sum()

        return minimize_scalar(of, bounds=(0.01, 0.1), method="bounded", options={"xatol": 1e-10})

    series = load(*EXAMPLES.glob("g11_*")).SERIES
    assert len(result["fits"]) == len(series) == 5
    for i, (t, res) in enumerate(zip(series, result["fits"], strict=True)):
        sse, limit = ((curve(*res.x) - t) ** 2).sum(), least(t)
        assert 2 * res.cost == pytest.approx(sse, rel=1e-12)
        assert f"series {i + 1}: sum of squares {sse:.7f}, {res.message}\n" in text
        assert ("run away" in res.message and "near-singular" in res.message) == (i > 0)
        a, b_inv, c0 = res.x
        if i == 0:
            gradient = complex_step(lambda p, t=t: ((curve(*p) - t) ** 2).sum(), res.x)
            assert np.abs(gradient).max() < 1e-6 and sse < 0.999 * limit.fun
            assert [f"{v:.4f}" for v in (a, abs(b_inv), abs(c0))] == ["0.0362", "0.6420", "0.1207"]
        else:
            assert sse == pytest.approx(limit.fun, rel=1e-4) and a == pytest.approx(
                limit.x, rel=1e-3
            )
            assert abs(c0) < 0.01 and abs(b_inv) > 10
            assert res.standard_errors[1] > 1e3 * abs(b_inv)
    one, away = result["many"]
    assert len(one.x) == len(away.x) == 20
    best = one.clusters[0]
    assert not best.runaway and len(best.members) >= 15
    # The minimum twice, with either sign.
    found = one.x[best.members]
    np.testing.assert_allclose(np.abs(found), np.abs(found[:1]).repeat(len(found), 0), rtol=1e-4)
    assert {-1.0, 1.0} == set(np.sign(found[:, 1])) and (found[:, 1] * found[:, 2] < 0).all()
    assert away.clusters[0].runaway and "runs away" in text


def test_g12_max_margin(example):
    result, text = example("g12")
    X, held_out = result["X"], result["held out"]
    assert X.shape == (1600, 3) and held_out.shape == (2000, 3)
    for rows in (X, held_out):
        quality = np.sin(2 * rows[:, 0]) + rows[:, 1] * rows[:, 2]
        assert (quality[::2] > quality[1::2]).all()

    net = fb.Network.mlp([3, 24, 1], "tanh")
    f, g = net.init(seed=1), net.init(seed=2)
    shared = f.copy()
    losses = {}
    for name, first, second in (("one network", shared, shared), ("two networks", f, g)):
        for _ in range(600):
            (score, first_gradient), (other, second_gradient) = map(two_layers, (first, second))
            short = 1 - (score(X[::2]) - other(X[1::2]))
            down = np.where(short > 0, -1.0, 0.0) / 800
            steps = first_gradient(X[::2], down), second_gradient(X[1::2], -down)
            first -= 0.5 * steps[0]  # both, if it is one vector
            second -= 0.5 * steps[1]
        losses[name] = np.maximum(short, 0).mean()
    for name, params in {"shared": shared, "f": f, "g": g}.items():
        np.testing.assert_allclose(result[name], params, rtol=0, atol=1e-9)
    for name, loss in losses.items():
        assert result["losses"][name] == pytest.approx(loss, abs=1e-12)

    for name, first, second in (("one network", shared, shared), ("two networks", f, g)):
        a, b = two_layers(first)[0], two_layers(second)[0]
        taken = [a(held_out[i]) > b(held_out[i ^ 1]) for i in range(2000)]  # each order of a pair
        right = np.mean([t == (i % 2 == 0) for i, t in enumerate(taken)])
        assert result[name]["accuracy"] == pytest.approx(right, abs=1e-12)
        assert result[name]["fooled"] == pytest.approx(np.mean(taken[1::2]), abs=1e-12)
        assert f"random order: {100 * right:.1f} % right" in text
    assert result["one network"]["accuracy"] >= 0.9 and result["losses"]["one network"] > 0
    assert result["two networks"]["accuracy"] == pytest.approx(0.5, abs=0.01)
    assert result["two networks"]["fooled"] >= 0.99 and result["losses"]["two networks"] == 0


def test_g13_xor_with_bias_input(example):
    result, text = example("g13")
    X = np.array([[0, 0, 1], [1, 1, 1], [1, 0, 1], [0, 1, 1.0]])
    y = np.array([[0], [0], [1], [1.0]])
    random = np.random.RandomState(0)
    W0, w0 = random.rand(3, 3).T, random.rand(1, 3).T

    def descend(lr, steps, hidden_rows):
        """The losses of gradient descent; the hidden weights follow these rows."""
        W, w, losses = W0.copy(), w0.copy(), []
        for _ in range(steps + 1):
            H = sigmoid(X @ W)
            Y = sigmoid(H @ w)
            losses.append(((Y - y) ** 2).sum())
            dZ = 2 * (Y - y) * Y * (1 - Y)
            dH = dZ @ w.T * H * (1 - H)
            w -= lr * H.T @ dZ
            W -= lr * X[hidden_rows].T @ dH[hidden_rows]
        return np.array(losses)

    assert np.array_equal(result["start"], np.concatenate([W0.ravel(), w0.ravel()]))
    shown = {0.01: (None, "0.997"), 1.0: ("0.0040", "2.4e-04")}
    for lr, (at_1000, at_end) in shown.items():
        expected, losses = descend(lr, 10_000, slice(None)), result["losses"][lr]
        assert (np.diff(expected) < 0).all() and (np.diff(losses) < 0).all()
        # 10,000 steps round; on the way off the plateau that grows as the gradient does, 120 times.
        np.testing.assert_allclose(losses, expected, rtol=1e-9)
        assert at_1000 is None or f"{expected[1000]:.4f}" == at_1000
        assert f"{expected[-1]:.1e}" == at_end or f"{expected[-1]:.3f}" == at_end
        assert f"1,000 steps {expected[1000]:.4f}, 10,000 {expected[-1]:.5f}, never rises\n" in text
    W, w = result["lm"].params[:9].reshape(3, 3), result["lm"].params[9:, None]
    sse = ((sigmoid(sigmoid(X @ W) @ w) - y) ** 2).sum()
    assert sse <= 1e-4 and result["lm"].nit < 50
    assert f"Levenberg-Marquardt: {sse:.1e} after {result['lm'].nit} steps\n" in text
    xor = fb.Network(3, fb.Dense(3, "sigmoid", bias=False), fb.Dense(1, "sigmoid", bias=False))
    with pytest.raises(ValueError, match="4 residuals and 12 parameters; 'trf'"):
        fb.optimize.least_squares(xor.objective(X, y, "sse"), result["start"], method="lm")
    assigned = descend(1.0, 2000, slice(-1, None))
    assert result["assigned"] == pytest.approx(assigned[-1], rel=1e-9)
    assert f"{assigned[-1]:.2f}" == "1.00" and f"after 2,000 steps {assigned[-1]:.4f}\n" in text
    assert result["check of fastbp"] and not result["check of assigned"]
    assert result["check of assigned"].worst < 9  # a hidden weight


def test_g14_line_against_ols(example):
    result, text = example("g14")
    x, y = result["alcohol"], result["total"]
    assert len(x) == len(y) == 51
    slope = np.cov(x, y, bias=True)[0, 1] / x.var()
    ols = np.array([slope, y.mean() - slope * x.mean()])
    assert [f"{v:.7f}" for v in ols] == ["2.0325063", "5.8577762"]
    np.testing.assert_allclose(result["ols"], ols, rtol=1e-12)
    # The error along each eigenvector of the Hessian shrinks by 1 - lr·λ a step.
    H = 2 / 51 * np.array([[x @ x, x.sum()], [x.sum(), 51]])
    curvatures, axes = np.linalg.eigh(H)
    after = ols - axes @ ((1 - 1e-4 * curvatures) ** 1000 * (axes.T @ ols))
    assert [f"{v:.3f}" for v in after] == ["2.972", "0.659"]
    condition = curvatures[1] / curvatures[0]
    assert f"{condition:.0f}" == "262" and "condition number 262\n" in text
    assert result["condition"] == pytest.approx(condition, rel=1e-9)
    slow, scaled, lm, trf = result["fits"].values()
    np.testing.assert_allclose(slow.params, after, rtol=1e-10)
    # Standardised, the Hessian is 2·I: 0.8 of the error is left after each step, none at the end.
    np.testing.assert_allclose(scaled.params, ols, rtol=1e-12)
    np.testing.assert_allclose(trf.params, ols, rtol=1e-7)
    np.testing.assert_allclose(lm.params, ols, rtol=1e-10)
    assert lm.nit <= 3
    for res in (slow, scaled, lm, trf):
        assert f"slope {res.params[0]:.7f}, intercept {res.params[1]:.7f}, {res.nit} it" in text


def test_g15_what_grad_means(example):
    result, text = example("g15")
    assert result["f"] == (4 - 3) * 5
    by_step = complex_step(lambda v: (v[0] + v[1]) * v[2], [4.0, -3.0, 5.0])
    assert [result["x"], result["y"], result["z"]] == by_step.tolist() == [5, 5, 1]
    for x, gradient in result["squares"].items():
        assert gradient == complex_step(lambda v: v[0] * v[0], [x])[0] == 2 * x
    assert "x.grad = 5, y.grad = 5, z.grad = 1\n" in text
    assert "x·x = 1 at x = 1; uses [1.0, 1.0] add to 2\n" in text


def test_g17_cubic_explodes(example):
    result, text = example("g17")
    x = np.linspace(-3, 3, 100)
    A = np.vander(x, 4)
    y = np.polyval([0.5, -1.0, -2.0, 3.0], x)
    curvatures, axes = np.linalg.eigh(2 / 100 * A.T @ A)
    limit = 2 / curvatures[-1]
    assert f"{limit:.5f}" == "0.00884" and "largest stable rate 0.00884\n" in text
    assert result["limit"] == pytest.approx(limit, rel=1e-6)
    best = np.linalg.lstsq(A, y, rcond=None)[0]

    def costs(lr, steps):
        """Of gradient descent: the error along each eigenvector is multiplied by 1 - lr·λ."""
        errors = (axes.T @ best)[:, None] * (1 - lr * curvatures[:, None]) ** np.arange(steps)
        return curvatures @ errors**2 / 2

    divergence = result["divergence"]
    assert isinstance(divergence, fb.DivergenceError)
    expected = costs(0.01, 100)
    # Found at the end of the third epoch above a millionfold.
    step = np.flatnonzero(expected > 1e6 * expected[0])[2] + 1
    found = divergence.result
    assert found.step == found.epoch == step and np.isfinite(found.params).all()
    np.testing.assert_allclose(found.history["loss"], expected[:step], rtol=1e-9)
    assert f"step {step} of" in str(divergence) and "about 0.00884 = " in str(divergence)
    for k in (10, 20, 30):
        assert f"{expected[k] / expected[0]:.1e} times the first cost after {k} steps\n" in text
    slow, expected = result["slow"], costs(1e-4, 1001)
    np.testing.assert_allclose(slow.history["loss"], expected[:-1], rtol=1e-10)
    assert slow.fun == pytest.approx(expected[-1], rel=1e-10)
    assert f"cost {expected[0]:.3f} -> {expected[-1]:.3f}, every step down\n" in text
    np.testing.assert_allclose(result["best"], [0.5, -1, -2, 3], rtol=0, atol=1e-6)


def test_g18_lms_stuck(example, backend):
    epochs = 500 if backend == "numpy" else 100_000
    result, text = example("g18", epochs=epochs)
    y = np.array([400.0, 330, 369, 232, 540])
    X = np.column_stack([np.ones(5), [2104, 1600, 2400, 1416, 3000], [3, 3, 3, 2, 4]])
    X /= X.sum(axis=0)
    expected = {}
    runs = {"last row skipped, lr 0.1": (4, 0.1), "all rows, lr 0.1": (5, 0.1)}
    for name, (rows, lr) in {**runs, "all rows, lr 1": (5, 1.0)}.items():
        # An epoch of rows in order maps (w, 1) linearly.
        epoch = np.eye(4)
        for row, price in zip(X[:rows], y, strict=False):
            epoch = (np.eye(4) + lr * np.outer([*row, 0], [*-row, price])) @ epoch
        assert np.array_equal(epoch[3], [0, 0, 0, 1])
        expected[name] = (np.linalg.matrix_power(epoch, epochs) @ [0, 0.5, 0.5, 1])[:3]

    rng = np.random.default_rng(np.random.SeedSequence(0).spawn(2)[1])
    a, b, c = 0.0, 0.5, 0.5
    totals, half, lines = np.zeros(3), epochs // 2, [(*row, v) for row, v in zip(X, y, strict=True)]
    for epoch in range(epochs):
        for i in rng.permutation(5).tolist():
            p, q, r, price = lines[i]
            error = a * p + b * q + c * r - price
            a, b, c = a - error * p, b - error * q, c - error * r
            if epoch >= half:
                totals += a, b, c
    expected["shuffled, lr 1"] = np.array([a, b, c])
    expected["shuffled, lr 1, averaged"] = totals / (5 * (epochs - half))
    expected["least squares"] = np.linalg.solve(X.T @ X, X.T @ y)

    assert result.keys() == expected.keys()
    for name, w in expected.items():
        # Roundings of each step add up at most: a step enlarges no error.
        np.testing.assert_allclose(result[name], w, rtol=5 * epochs * np.finfo(float).eps)
        assert f"{name:26} cost {((X @ w - y) ** 2).sum():.4f}" in text
    if epochs == 100_000:
        figures = re.findall(r"cost (\S+),", text)
        assert figures[-1] == "1444.1444"
        shown = [f"{float(v):.{d}f}" for v, d in zip(figures, (0, 2, 0, 0, 1), strict=False)]
        assert shown[:3] == ["1723", "1444.19", "1449"] and shown[4] == "1444.2"


def test_g19_vae_kl(example):
    result, text = example("g19")
    h, W, b = result["h"], result["W"], result["b"]
    assert h.shape == (16, 400) and W.shape == result["dW"].shape == (400, 40)

    def kl(W, b):
        Y = h @ W + b
        mu, lv = Y[:, :20], Y[:, 20:]
        return 0.5 * (np.exp(lv) + mu**2 - 1 - lv).sum() / 16

    assert result["kl"] == pytest.approx(kl(W, b), rel=1e-13)
    np.testing.assert_allclose(result["db"], complex_step(lambda b: kl(W, b), b), atol=1e-13)
    # ∂KL/∂W_ij is linear in the rows of h: enough columns of both kinds, all inputs.
    for j in (0, 19, 20, 39):

        def of_column(w, j=j):
            moved = W.astype(complex)
            moved[:, j] = w
            return kl(moved, b)

        np.testing.assert_allclose(result["dW"][:, j], complex_step(of_column, W[:, j]), atol=1e-13)
    deltas = [
        np.outer(row, [m if j < 20 else (np.exp(m) - 1) / 2 for j, m in enumerate(row @ W + b)])
        for row in h
    ]
    np.testing.assert_allclose(result["dW"], np.mean(deltas, axis=0), rtol=0, atol=1e-13)
    assert result["check"].passed and "passed" in text
    assert "W has shape (400, 40), its gradient (400, 40)" in text


def test_g20_growing_weights(example):
    result, text = example("g20")
    divergence = result["divergence"]
    assert isinstance(divergence, fb.DivergenceError)
    assert divergence.result.epoch <= 5
    assert np.isfinite(divergence.result.params).all()
    # The residual of one row is multiplied by 1 - lr·λ, λ = 2·|(4, 7, 1)|².
    row, start = np.array([4.0, 7.0, 1.0]), np.array([0.5, 0.5, 1.0])
    limit = 2 * row @ row
    assert f"{2 / limit:.4g}" in str(divergence)
    residual = row @ start - (16 * 4 - 14 * 7 + 36)
    assert residual == 4.5
    assert set(result["residuals"]) == {1.0, 1.9, 2.0, 2.1}
    for factor, residuals in result["residuals"].items():
        expected = residual * (1 - factor) ** np.arange(5)
        np.testing.assert_allclose(residuals, expected, rtol=0, atol=1e-12)
    # The nearest weights without residual; with four rows the only ones.
    np.testing.assert_allclose(result["one"], start - row * residual / (row @ row), atol=1e-13)
    X = np.array([[4.0, 7.0], [-3.0, 2.0], [1.0, -5.0], [-6.0, -1.0]])
    A = np.column_stack([X, np.ones(4)])
    least_squares = np.linalg.lstsq(A, X @ [16.0, -14.0] + 36, rcond=None)[0]
    np.testing.assert_allclose(result["several"], least_squares, rtol=1e-9)
    np.testing.assert_allclose(result["several"], [16, -14, 36], rtol=1e-9)
    assert "w1, w2, b = [16.0, -14.0, 36.0]" in text


def test_g21_real_units(example):
    result, text = example("g21")
    km, price = result["km"], result["price"]
    assert len(km) == len(price) == 24 and (km.min(), km.max()) == (22899, 240000)
    theta0, theta1 = 0.9362124793084768, -0.9953762249792935
    slope = theta1 * (8290 - 3650) / (240000 - 22899)
    intercept = 3650 + theta0 * (8290 - 3650) - slope * 22899
    np.testing.assert_allclose(result["real"], [slope, intercept], rtol=1e-13)
    x = np.append(km, 50_000)
    scaled = theta0 + theta1 * (x - 22899) / (240000 - 22899)
    np.testing.assert_allclose(result["predicted"], scaled * (8290 - 3650) + 3650, rtol=1e-12)
    assert "50,000 km: 7417.4868\n" in text
    assert f"price = {intercept:.4f} {slope:.8f}·km\n" in text
    best = np.polyfit(km, price, 1)
    np.testing.assert_allclose(result["best"], best, rtol=1e-6)
    assert f"the least squares line says {np.polyval(best, 50_000):.4f}\n" in text


def test_g22_multiple_regression(example):
    result, text = example("g22")
    age = np.array([41.0, 21, 31, 21, 31, 41, 41, 31, 21, 31, 31, 21])
    height = np.array([62.0, 62, 62, 64, 64, 64, 72, 72, 72, 66, 66, 64])
    weight = np.array([115.0, 140, 125, 125, 145, 135, 165, 190, 175, 150, 155, 140])
    A = np.column_stack([age, height, np.ones(12)])
    w, costs, bad = np.zeros(3), [], None
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(1, 500):
            residual = A @ w - weight
            costs.append((residual**2).sum() / 24)
            w = w - 0.001 * A.T @ residual / 12
            if bad is None and not np.isfinite(w).all():
                bad = step
    assert bad == 487 and "in step 487" in load(*EXAMPLES.glob("g22_*")).__doc__
    step = np.flatnonzero(np.array(costs) > 1e6 * costs[0])[2] + 1
    divergence = result["divergence"]
    assert isinstance(divergence, fb.DivergenceError) and divergence.result.step == step == 8
    limit = 2 / np.linalg.eigvalsh(A.T @ A / 12)[-1]
    assert f"{limit:.5f}" == "0.00038" and f"about {limit:.4g} = 2/λ_max" in str(divergence)
    assert str(divergence) in text

    Z = np.column_stack([(v - v.mean()) / v.std() for v in (age, height)] + [np.ones(12)])
    for name, columns in (("raw", A), ("standardised", Z)):
        s = np.linalg.svd(columns, compute_uv=False)
        condition = (s[0] / s[-1]) ** 2
        assert result["conditions"][name] == pytest.approx(condition, rel=1e-6)
        assert f"condition number of {name} data: {condition:.4g}\n" in text
    # Cramer's rule for the centred columns.
    a, h, v = (column - column.mean() for column in (age, height, weight))
    det = (a @ a) * (h @ h) - (a @ h) ** 2
    by_age = ((a @ v) * (h @ h) - (h @ v) * (a @ h)) / det
    by_height = ((h @ v) * (a @ a) - (a @ v) * (a @ h)) / det
    best = [by_age, by_height, weight.mean() - by_age * age.mean() - by_height * height.mean()]
    assert len(result["fits"]) == 4
    for name, params in result["fits"].items():
        np.testing.assert_allclose(params, best, rtol=5e-7, err_msg=name)  # 6 digits
        assert f"{name:24} weight = {best[2]:.5f} {best[0]:+.7f}·age" in text


def self_expression(X, i, penalty):
    """The best c_i: (2AᵀA + λ/s·I)c = 2Aᵀx_i with s = ‖c‖, A the other points; s by bisection."""
    from scipy.optimize import brentq

    A = np.delete(X, i, axis=1)
    curvatures, axes = np.linalg.eigh(2 * A.T @ A)
    r = axes.T @ (2 * A.T @ X[:, i])

    def c(s):
        return r / (curvatures + penalty / s)

    s = brentq(lambda s: np.linalg.norm(c(s)) / s - 1, 1e-6, 1e3, xtol=1e-15, rtol=1e-14)
    return np.insert(axes @ c(s), i, 0.0)


def test_g23_self_expression(example):
    result, text = example("g23")
    across = np.array([[(i < 8) != (j < 8) for j in range(16)] for i in range(16)])
    for name, X in result["data"].items():
        assert X.shape == (6, 16)
        np.testing.assert_allclose(np.linalg.norm(X, axis=0), 1, rtol=1e-14)
        assert np.linalg.matrix_rank(X[:, :8]) == np.linalg.matrix_rank(X[:, 8:]) == 2
        assert (np.abs(X[:, :8].T @ X[:, 8:]).max() < 1e-14) == (name == "orthogonal")
    assert set(result["C"]) == {
        *(("orthogonal", penalty) for penalty in (0, 0.5)),
        *(("random", penalty) for penalty in (0.25, 0.5, 1.0)),
    }
    for (name, penalty), C in result["C"].items():
        assert np.array_equal(np.diag(C), np.zeros(16))
        ratio = np.linalg.norm(C[across]) / np.linalg.norm(C[~across])
        assert result["ratio"][name, penalty] == pytest.approx(ratio, rel=1e-12)
        assert f"λ = {penalty:g}: largest on the diagonal 0, across/within {ratio:.1e}\n" in text
        if penalty:
            X = result["data"][name]
            best = np.column_stack([self_expression(X, i, penalty) for i in range(16)])
            np.testing.assert_allclose(C, best, rtol=0, atol=1e-10)
    assert np.abs(result["C"]["orthogonal", 0.5][across]).max() <= 1e-12
    assert result["ratio"]["orthogonal", 0] > 0.1
    ratios = [result["ratio"]["random", penalty] for penalty in (0.25, 0.5, 1.0)]
    assert ratios[0] > 1e-3 and ratios == sorted(ratios)


def test_g24_regression_by_fmincg(example):
    result, text = example("g24")
    X, y, theta = result["X"], result["y"], result["theta"]
    x, m, lam = X[:, 0], len(X), 0.01

    def cost(theta, act):
        Theta1, Theta2 = theta[:16].reshape((8, 2), order="F"), theta[16:]
        a2 = act(np.outer(x, Theta1[:, 1]) + Theta1[:, 0])
        weights = (Theta1[:, 1] ** 2).sum() + (Theta2[1:] ** 2).sum()
        return (((a2 @ Theta2[1:] + Theta2[0] - y) ** 2).sum() + lam * weights) / (2 * m)

    assert result["J"] == pytest.approx(cost(theta, lambda z: z), rel=1e-13)
    check, stuck = result["asked"], result["stuck"]
    assert not check and not stuck.success and 0.99 * result["J"] < stuck.fun <= result["J"]
    assert f"J {result['J']:.4f} to {stuck.fun:.4f}\n" in text
    right = complex_step(lambda t: cost(t, lambda z: z), theta)
    np.testing.assert_allclose(check.numeric, right, rtol=0, atol=1e-12)
    assert text.count(": passed: ") == 2

    found = {}
    for hidden, act in (("linear", lambda z: z), ("tanh", np.tanh)):
        flat = np.concatenate([Theta.ravel(order="F") for Theta in result["fits"][hidden]])
        found[hidden] = cost(flat, act)
        assert f"{hidden}: J {cost(theta, act):.4f} to {found[hidden]:.6f}, " in text
    # Of factors whose product is the slope w, the squares sum to 2|w| at least.
    xc, yc = x - x.mean(), y - y.mean()
    slope = (xc @ yc - lam) / (xc @ xc)
    best = (((slope * xc - yc) ** 2).sum() + 2 * lam * slope) / (2 * m)
    assert found["linear"] == pytest.approx(best, rel=1e-6)
    # Close to a minimum, and the noise of 0.05 is what is left of a curve.
    before, after = (complex_step(lambda t: cost(t, np.tanh), t) for t in (theta, flat))
    assert np.linalg.norm(after) < 1e-3 * np.linalg.norm(before) and found["tanh"] < 0.05**2


def test_g25_gradients_by_hand(example):
    result, text = example("g25")
    params, x = result["params"], result["x"]
    net = fb.Network.mlp([4, 6, 3], "relu")
    sizes = [(6, 4), 6, (3, 6), 3, 4]
    (W, b1), (U, b2) = net.unpack(params, layout="wx")
    parts = dict(zip(["W", "b1", "U", "b2", "x"], [W, b1, U, b2, x], strict=True))
    assert [np.shape(p) for p in parts.values()] == [np.empty(size).shape for size in sizes]
    assert np.count_nonzero(result["ours"]["b1"]) in range(2, 6)  # some units on, some off

    def cross_entropy(**changed):
        p = parts | changed
        z = p["W"] @ p["x"] + p["b1"]
        t = p["U"] @ np.where(z.real > 0, z, 0) + p["b2"]
        return np.log(np.exp(t).sum()) - t[1]

    for name, value in parts.items():
        gradient = complex_step(lambda v, name=name: cross_entropy(**{name: v}), value)
        np.testing.assert_allclose(result["ours"][name], gradient, rtol=0, atol=1e-13)

    assert len(result["identities"]) == len(result["checks"]) == 7
    assert all(result["checks"].values())
    for function, v in result["identities"].values():
        v, step = v.ravel(), 1e-5
        for k, entry in enumerate(function(v)[1]):
            e = step * (np.arange(v.size) == k)
            central = (function(v + e)[0] - function(v - e)[0]) / (2 * step)
            assert entry == pytest.approx(central, rel=1e-7, abs=1e-8)
        assert not fb.check_grad(lambda v, f=function: (f(v)[0], 1.001 * f(v)[1]), v)
    apart = [float(a) for a in re.findall(r"(\S+) apart", text)]
    assert len(apart) == 5 and max(apart) <= 1e-13


def test_g26_line_through_blob(example):
    result, text = example("g26")
    x, y = result["x"], result["y"]
    A = np.column_stack([x, np.ones(1000)])
    # Each step of rate lr takes 1 - lr·λ of the error along every eigenvector of AᵀA.
    curvatures, axes = np.linalg.eigh(A.T @ A)
    best = np.polyfit(x, y, 1)
    after = best - axes @ ((1 - 1e-4 * curvatures) ** 1000 * (axes.T @ best))
    assert result["condition"] == pytest.approx(curvatures[1] / curvatures[0], rel=1e-9)
    for name, (m, b) in {"1,000 steps": after, "least squares": best}.items():
        found = result[name]
        assert found["m"] == pytest.approx(m, rel=1e-9)
        assert found["b"] == pytest.approx(b, rel=1e-9)
        assert found["mse"] == pytest.approx(np.mean((y - b - m * x) ** 2), rel=1e-9)
        assert f"b = {b:.6f}, m = {m:.6f}" in text
    assert result["start"] == pytest.approx(np.mean(y**2), rel=1e-12)
    assert f"{result['start']:.7f}" == "2.0597035" and "2.0597035" in text
    assert result["1,000 steps"]["mse"] < 1.001 * result["least squares"]["mse"]


def test_g27_own_activation(example, backend):
    # NumPy calls the function once per element, and so does fewer steps.
    steps = 300 if backend == "numpy" else 2000
    result, text = example("g27", steps=steps, backends=[backend])
    x = np.linspace(-np.pi, np.pi, 2000)
    d, c, b, a = 0.3, 0.0, -1.0, 0.0
    losses, steepness = [], []
    for _ in range(steps):
        t = c + d * x
        p = 0.5 * (5 * t**3 - 3 * t)
        r = a + b * p - np.sin(x)
        dt = 2 * r * b * 1.5 * (5 * t**2 - 1)
        gradient = np.array([dt @ x, dt.sum(), 2 * r @ p, 2 * r.sum()])
        losses.append((r**2).sum())
        steepness.append(np.abs(gradient).sum())
        d, c, b, a = np.array([d, c, b, a]) - 5e-6 * gradient
    # Each step rounds the numbers, by u·|b| <= 2.3u, and the gradient, whose rounding error times
    # the rate is less than that; on the way to a minimum no step makes earlier errors larger.
    error = steps * 2 * 2.3 * np.finfo(np.float32).eps / 2
    params = result[backend].params
    np.testing.assert_allclose(params, [d, c, b, a], rtol=0, atol=error)
    lines = re.findall(r"^ *(\d+) (\S+)$", text, re.M)
    assert [int(step) for step, _ in lines] == list(range(100, steps + 1, 100))
    # Rounding of the residuals' terms, of size 2, moves a loss L by 2·sqrt(2000·L)·(a few u).
    for step, shown in lines:
        k = int(step) - 1
        within = {"abs": error * steepness[k], "rel": 1e-4}
        assert result[backend].history["loss"][k] == pytest.approx(losses[k], **within)
        assert f"{result[backend].history['loss'][k]:.6f}" == shown
    d, c, b, a = params.tolist()
    assert text.startswith(f"{backend}:\n")
    assert f"y = {a:.6f} {b:+.6f}·P3({c:.6f} {d:+.6f}·x)\n" in text


def test_g28_rules_of_thumb(example, backend, rng):
    steps = 1000 if backend == "numpy" else 10_000
    result, text = example("g28", steps=steps)
    X, labels = result["X"], result["labels"]
    epochs = {}
    for scale, inputs in ((None, X), ("standard", (X - X.mean(axis=0)) / X.std(axis=0))):
        A = np.column_stack([inputs, np.ones(200)])
        # At 0 the curvature of cross-entropy, p(1 - p), is greatest.
        lr = 0.5 * 2 / np.linalg.eigvalsh(A.T @ A / 4 / 200)[-1]
        w, losses = np.zeros(4), []
        while not losses or losses[-1] > 0.35:
            z = A @ w
            losses.append(np.mean(np.logaddexp(0, z) - labels * z))
            w -= lr * A.T @ (sigmoid(z) - labels) / 200
        epochs[scale] = len(losses)
        res = result["fits"][scale]
        np.testing.assert_allclose(res.history["loss"], losses, rtol=1e-6)
        assert f"scale={scale}: {len(losses)} epochs, loss {losses[-1]:.4f}\n" in text
    assert epochs == {None: 2229, "standard": 6}  # as the docstring says

    errors = {}
    for (n, dropout), (X, y, truth, w) in result["weights"].items():
        assert len(X) == n
        # dropout p is on average a penalty of p/(1-p)·Σ x_j² on w_j².
        A = np.column_stack([X, np.ones(n)])
        penalty = np.diag([*(dropout / (1 - dropout) * (X**2).sum(axis=0)), 0.0])
        H = 2 / n * (A.T @ A + penalty)
        ridge = np.linalg.solve(H, 2 / n * A.T @ y)
        curvatures, axes = np.linalg.eigh(H)
        shrink = 1 - 0.02 * curvatures[:, None]
        left = (shrink ** np.arange(steps // 2 + 1, steps + 1)).mean(axis=1)
        mean = ridge - axes @ (left * (axes.T @ ridge))  # of the last half of the steps, from 0
        if dropout == 0:
            np.testing.assert_allclose(w, mean, rtol=0, atol=1e-10)
        else:
            # The mean of T steps has the covariance H⁻¹SH⁻¹/T, S that of the gradients.
            kept = rng.random((2000, n, 11)) < [0.5] * 10 + [1]
            dropped = kept * A / ([0.5] * 10 + [1])
            gradients = 2 / n * np.einsum("mnk,mn->mk", dropped, dropped @ ridge - y)
            covariance = np.linalg.inv(H) @ np.cov(gradients.T) @ np.linalg.inv(H) / (steps // 2)
            assert (np.abs(w - mean) < 5 * np.sqrt(np.diag(covariance))).all()
        fresh = w[:-1] - truth
        # On standard normal rows.
        errors[n, dropout] = fresh @ fresh + w[-1] ** 2
        (shown,) = re.findall(rf"^{n} rows, dropout {dropout:g}: .* (\S+)$", text, re.M)
        assert float(shown) == pytest.approx(errors[n, dropout], rel=0.08)
    assert 2 * errors[20, 0.5] < errors[20, 0.0]
    assert errors[500, 0.5] > 2 * errors[500, 0.0]
