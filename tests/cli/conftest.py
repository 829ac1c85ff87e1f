"""A folder with CSV files for the tests of the command line."""

from __future__ import annotations

import csv

import numpy as np
import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch, rng):
    """The current folder, with two files."""
    monkeypatch.chdir(tmp_path)
    km, age = rng.uniform(5, 250, 40), rng.integers(1, 15, 40)
    fuel = rng.choice(["petrol", "diesel"], 40)
    price = 20 - km / 20 - age / 2 + 2 * (fuel == "diesel")
    state = np.where(price > 12, "good", np.where(price > 6, "fair", "poor"))
    header = ["km", "age", "fuel", "price", "state"]
    rows = list(zip(km.tolist(), age.tolist(), fuel, price.tolist(), state, strict=True))
    with open("cars.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    with open("new.csv", "w", newline="") as file:
        csv.writer(file).writerows([["fuel", "no", "km", "age"], ["diesel", 7, 90, 3]])
    return tmp_path
