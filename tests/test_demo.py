"""The demo: its files, and its figures found again by another route."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split

import fastbp as fb
from fastbp import demo

# Gallery row G21: kilometres and prices, and where its gradient descent ends.
CARS = """240000,3650 139800,3800 150500,4400 185530,4450 176000,5250 114800,5350 166800,5800
89000,5990 144500,5999 84000,6200 82029,6390 63060,6390 74000,6600 97500,6800 67000,6800 76025,6900
48235,6900 93000,6990 60949,7490 65674,7555 54000,7990 68500,7990 22899,7990 61789,8290"""
THETA = (0.9362124793084768, -0.9953762249792935)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    demo.run(folder, quick=True)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return json.loads((folder / "demo.json").read_text())


def test_figures_are_written(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"digits.png", "diabetes.png", "cars.png", "speed.png", "demo.json"}
    from matplotlib.image import imread

    for path in folder.glob("*.png"):
        pixels = imread(path)[..., :3]
        assert min(pixels.shape[:2]) >= 300 and 0.02 < (pixels < 0.95).any(axis=2).mean() < 0.9


def test_every_backend_agrees(report):
    assert set(report["backends"]) == set(fb.available_backends())
    for job in report["jobs"].values():
        assert set(job["runs"]) == {"by hand", *report["backends"]}
        assert job["largest_difference"] <= report["bound"] == 1e-8
        for run in job["runs"].values():
            assert run["fit_s"] > 0 and run["work"] > 0
    demo.check_agreement(report)
    report = copy.deepcopy(report)
    report["jobs"]["cars"]["largest_difference"] = 1e-3
    with pytest.raises(fb.BackendError, match=r"disagree by 1.*e-03 on cars"):
        demo.check_agreement(report)


def test_digits_are_recognized(report):
    """The same fit, its accuracy counted by plain NumPy."""
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X / 16, y, test_size=0.2, stratify=y, random_state=0)
    net = fb.Network.mlp([64, 32, 10], "relu")
    options = {"loss": "softmax_ce", "lr": 0.003, "epochs": 10, "seed": 0}
    (W1, b1), (W2, b2) = net.unpack(fb.fit(net, X, y, **options).params)
    found = (np.maximum(X_test @ W1 + b1, 0) @ W2 + b2).argmax(axis=1)
    accuracy = np.mean(found == y_test)
    job = report["jobs"]["digits"]
    assert accuracy > 0.93 and set(job["scores"].values()) == {accuracy}
    assert accuracy > 5 * np.bincount(y_test).max() / len(y_test)  # no constant does that


def test_diabetes_is_predicted_about_as_well_as_linearly(report):
    job = report["jobs"]["diabetes"]
    X, y = load_diabetes(return_X_y=True)
    whole = LinearRegression().fit(X, y).score(X, y)
    (linear,) = job["baseline"].values()
    assert abs(linear - whole) < 0.25  # of the same data, on held-out rows
    for score in job["scores"].values():
        assert abs(score - linear) < 0.1


def test_cars_are_the_gallerys_and_the_line_is_least_squares(report):
    from importlib.resources import files

    text = (files("fastbp") / "demo" / "cars.csv").read_text().splitlines()
    rows = [line for line in text if line[0].isdigit()]
    assert rows == CARS.split()
    km, price = np.array([row.split(",") for row in rows], float).T
    slope, intercept = np.polyfit(km, price, 1)
    job = report["jobs"]["cars"]
    for method in ("fmincg", "trf", "numpy.polyfit"):
        np.testing.assert_allclose(job["real"][method], (slope, intercept), rtol=1e-6)
        assert job["prices"][method] == pytest.approx(intercept + slope * 50_000, rel=1e-6)
    np.testing.assert_allclose(job["lines"]["gradient descent"], THETA[::-1], rtol=1e-12)
    assert job["prices"]["gradient descent"] == pytest.approx(7417.4868, abs=5e-5)
