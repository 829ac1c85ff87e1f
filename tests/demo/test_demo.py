"""`fastbp demo`: its files, and its figures computed again by other ways."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split

import fastbp as fb
from fastbp import demo
from fastbp.demo import jobs

CARS = np.array(
    "240000,3650 139800,3800 150500,4400 185530,4450 176000,5250 114800,5350 166800,5800 89000,5990"
    " 144500,5999 84000,6200 82029,6390 63060,6390 74000,6600 97500,6800 67000,6800 76025,6900"
    " 48235,6900 93000,6990 60949,7490 65674,7555 54000,7990 68500,7990 22899,7990 61789,8290"
    .replace(",", " ").split(),
    float,
).reshape(24, 2)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "new" / "folder"


@pytest.fixture(scope="module")
def printed(folder):
    command = [sys.executable, "-m", "fastbp", "demo", "--quick", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def report(folder, printed):
    return json.loads((folder / "demo.json").read_text())


def test_writes_figures(folder, printed):
    from matplotlib.image import imread

    figures = {"digits.png", "diabetes.png", "cars.png", "speed.png"}
    assert {path.name for path in folder.iterdir()} == figures | {"demo.json"}
    for name in figures:
        image = imread(folder / name)
        assert min(image.shape[:2]) >= 400
        assert image.std() > 0.05
        assert str(folder / name) in printed


def test_tables_fit_80_columns_and_show_every_run(printed, report):
    tables = [line for line in printed.splitlines() if not line.startswith("Written:")]
    assert max(map(len, tables)) <= 80
    assert "…" not in printed
    for job in report["jobs"].values():
        for run in job["runs"].values():
            assert f"{1e3 * run['fit_s']:.3g}" in printed


def test_every_backend_agrees_within_the_stated_bound(printed, report):
    assert report["bound"] == 1e-8
    assert printed.count("the bound is") == 3 and "DISAGREE" not in printed
    assert set(report["backends"]) == set(fb.available_backends())
    for job in report["jobs"].values():
        assert set(job["runs"]) == {*fb.available_backends(), "by hand"}
        reference = job["runs"]["numpy"]
        for run in job["runs"].values():
            assert run["parameters_difference"] <= 1e-8
            assert run["losses_difference"] <= 1e-8
            assert run["final_loss"] == pytest.approx(reference["final_loss"], rel=1e-8)
            assert run["work"] == reference["work"]
        assert len(set(np.round(list(job["scores"].values()), 6))) == 1


def test_disagreement_is_an_error(report):
    demo.check_agreement(report)
    spoilt = copy.deepcopy(report)
    spoilt["jobs"]["cars"]["largest_difference"] = 1e-3
    with pytest.raises(fb.BackendError, match=r"disagree by 1.*e-03 on cars"):
        demo.check_agreement(spoilt)


def test_times_are_consistent(report):
    for job in report["jobs"].values():
        hand = job["runs"]["by hand"]["fit_s"]
        for run in job["runs"].values():
            assert 0 < run["fit_s"] < 60
            assert run[f"us_per_{job['unit']}"] == pytest.approx(1e6 * run["fit_s"] / run["work"])
            assert run["times_as_fast_as_by_hand"] == pytest.approx(hand / run["fit_s"])


def test_digits(report):
    job = report["jobs"]["digits"]
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X / 16, y, test_size=0.2, stratify=y, random_state=0)
    init, order, _ = map(np.random.default_rng, np.random.SeedSequence(0).spawn(3))
    limits = np.sqrt(6 / 64), np.sqrt(6 / 42)
    P = {
        "W1": init.uniform(-limits[0], limits[0], (64, 32)), "b1": np.zeros(32),
        "W2": init.uniform(-limits[1], limits[1], (32, 10)), "b2": np.zeros(10),
    }  # fmt: skip
    means = {name: 0 for name in P}
    squares = {name: 0 for name in P}
    step, losses = 0, []
    for _ in range(job["runs"]["numpy"]["work"] // 45):
        rows = order.permutation(len(X))
        losses.append([])
        for start in range(0, len(X), 32):
            x, labels = X[rows[start : start + 32]], y[rows[start : start + 32]]
            hidden = x @ P["W1"] + P["b1"]
            odds = np.exp(np.where(hidden > 0, hidden, 0) @ P["W2"] + P["b2"])
            share = odds / odds.sum(axis=1)[:, None]
            losses[-1].append(np.mean([-np.log(s[k]) for s, k in zip(share, labels, strict=True)]))
            dZ = (share - np.eye(10)[labels]) / len(x)
            dH = np.where(hidden > 0, dZ @ P["W2"].T, 0)
            G = {
                "W1": np.einsum("ni,nj->ij", x, dH), "b1": np.einsum("ni->i", dH),
                "W2": np.einsum("ni,nj->ij", np.where(hidden > 0, hidden, 0), dZ),
                "b2": np.einsum("ni->i", dZ),
            }  # fmt: skip
            step += 1
            for name, g in G.items():
                means[name] = 0.9 * means[name] + 0.1 * g
                squares[name] = 0.999 * squares[name] + 0.001 * g**2
                m, s = means[name] / (1 - 0.9**step), squares[name] / (1 - 0.999**step)
                P[name] = P[name] - 0.003 * m / (np.sqrt(s) + 1e-8)
    predicted = (np.maximum(X_test @ P["W1"] + P["b1"], 0) @ P["W2"] + P["b2"]).argmax(axis=1)
    accuracy = np.mean(predicted == y_test)
    assert accuracy > 0.93
    assert accuracy > 5 * np.bincount(y_test).max() / len(y_test)  # no constant does that
    for score in job["scores"].values():
        assert score == pytest.approx(accuracy, abs=1e-12)
    for run in job["runs"].values():
        assert run["final_loss"] == pytest.approx(np.mean(losses[-1]), rel=1e-8)


def test_diabetes(report):
    job = report["jobs"]["diabetes"]
    X, y = load_diabetes(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0)
    center, width = X.mean(axis=0), X.std(axis=0)
    X, X_test, t = (X - center) / width, (X_test - center) / width, (y - y.mean()) / y.std()
    n = len(X)

    def network(p, X):
        W1, b1, W2, b2 = p[:160].reshape(10, 16), p[160:176], p[176:192], p[192]
        return np.tanh(X @ W1 + b1), W2, b2

    def objective(p):
        """Σ(Y - t)²/n + penalty; the gradient from the whole Jacobian of the outputs."""
        H, W2, b2 = network(p, X)
        r = H @ W2 + b2 - t
        slope = (1 - H**2) * W2
        J = np.hstack(
            [np.einsum("ni,nj->nij", X, slope).reshape(n, 160), slope, H, np.ones((n, 1))]
        )
        weights = p.copy()
        weights[160:176] = weights[192] = 0
        return r @ r / n + 0.05 * weights @ weights, 2 / n * r @ J + 0.1 * weights

    init = np.random.default_rng(np.random.SeedSequence(0).spawn(1)[0])
    start = np.zeros(193)
    start[:160] = init.uniform(-np.sqrt(6 / 26), np.sqrt(6 / 26), 160)
    start[176:192] = init.uniform(-np.sqrt(6 / 17), np.sqrt(6 / 17), 16)
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 30})
    for run in job["runs"].values():
        assert run["final_loss"] == pytest.approx(result.fun, rel=1e-8)
        assert run["work"] == result.nfev
    H, W2, b2 = network(result.x, X_test)
    error = y_test - (y.mean() + y.std() * (H @ W2 + b2))
    r2 = 1 - np.mean(error**2) / np.var(y_test)
    for score in job["scores"].values():
        assert score == pytest.approx(r2, abs=1e-6)

    rows, rows_test = np.c_[X, np.ones(n)], np.c_[X_test, np.ones(len(X_test))]
    line = rows_test @ np.linalg.lstsq(rows, y)[0]
    linear = 1 - np.mean((y_test - line) ** 2) / np.var(y_test)
    assert job["baseline"]["linear regression"] == pytest.approx(linear, abs=1e-9)
    assert abs(r2 - linear) < 0.1


def test_cars(report):
    job = report["jobs"]["cars"]
    assert np.array_equal(np.column_stack(jobs.cars_table()), CARS)
    km, price = CARS.T
    x, t = ((column - column.min()) / np.ptp(column) for column in (km, price))
    best = np.polyfit(x, t, 1)
    for method in ("fmincg", "trf", "numpy.polyfit"):
        assert job["lines"][method] == pytest.approx(best, abs=1e-6)
        assert job["real"][method] == pytest.approx(np.polyfit(km, price, 1), rel=1e-5)
        expected = np.polyval(np.polyfit(km, price, 1), 50_000)
        assert job["prices"][method] == pytest.approx(expected, abs=0.01)

    # Gradient descent from zero on a quadratic with Hessian H: θ_k = (I - (I - αH)^k) θ*.
    A = np.column_stack([x, np.ones(24)])
    H = A.T @ A / 24
    descended = best - np.linalg.matrix_power(np.eye(2) - 0.1 * H, 1000) @ best
    assert job["lines"]["gradient descent"] == pytest.approx(descended, abs=1e-12)
    known = [-0.9953762249792935, 0.9362124793084768]
    assert job["lines"]["gradient descent"] == pytest.approx(known, abs=1e-12)
    assert job["prices"]["gradient descent"] == pytest.approx(7417.4868, abs=1e-4)

    r2 = np.corrcoef(x, t)[0, 1] ** 2
    (least_squares,) = job["baseline"].values()
    assert least_squares == pytest.approx(r2, abs=1e-12)
    for score in job["scores"].values():
        assert r2 - 1e-3 < score < r2


def test_chosen_backends_and_the_reference_run(tmp_path, capsys):
    from fastbp.cli.commands import main

    chosen = fb.available_backends()[0]
    out = tmp_path / "out"
    assert main(["demo", "--quick", "--backend", chosen, "--out", str(out)]) == 0
    report = json.loads((out / "demo.json").read_text())
    assert report["backends"] == list(dict.fromkeys([chosen, "numpy"]))
    assert "the bound is" in capsys.readouterr().out


def test_gradient_written_by_hand():
    rng = np.random.default_rng(3)
    X, t, p = rng.standard_normal((7, 10)), rng.standard_normal(7), rng.standard_normal(193)
    check = fb.check_grad(lambda q: jobs.diabetes_objective(q, X, t), p)
    assert check, check
