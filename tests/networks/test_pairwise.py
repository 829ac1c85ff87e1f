"""Options together: every two of them meet in a network whose derivatives are checked.

Most faults that need options to coincide need two of them (D. R. Kuhn et al., "Software fault
interactions and implications for software testing", IEEE TSE 30(6), 2004), and all pairs fit into
few rows. Each backend runs all rows.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.strategies import EVERY_ACTIVATION, EVERY_LOSS, n_for, n_out_for, same, target, weights
from oracles import bounds

import fastbp as fb
from fastbp.maths.losses import loss as loss_of

FACTORS = {
    "activation": EVERY_ACTIVATION,
    "loss": EVERY_LOSS,
    "connections": (
        "all", "mask", "bias mask", "no bias", "frozen layer", "frozen entries", "mask and frozen",
    ),
    "penalty": ("none", "l2", "l1", "group", "all"),
    "layout": ("xw", "wx", "theta", "Octave's vector"),
    "rows": (10, 66, 300),
    "layers": (2, 3),
    "weighted": (False, True),
    "dtype": ("float32", "float64"),
}  # fmt: skip
IMPOSSIBLE = {("connections", "no bias", "layout", "theta")}
IMPOSSIBLE |= {("connections", "no bias", "layout", "Octave's vector")}


def possible(first, second):
    """Whether two settings (factor, value) go together."""
    return not {(*first, *second), (*second, *first)} & IMPOSSIBLE


def pairs():
    """All possible pairs of settings of two factors, as a dictionary that keeps their order."""
    settings = [[(name, value) for value in values] for name, values in FACTORS.items()]
    return {
        frozenset(pair): None
        for one, other in itertools.combinations(settings, 2)
        for pair in itertools.product(one, other)
        if possible(*pair)
    }


def covering_array():
    """Rows that have every pair: each takes the first one left and adds what meets most others."""
    rows, left = [], pairs()
    while left:
        row = dict(next(iter(left)))
        for name, values in FACTORS.items():
            if name not in row:
                row[name] = max(
                    (v for v in values if all(possible((name, v), s) for s in row.items())),
                    key=lambda v: sum(frozenset([(name, v), s]) in left for s in row.items()),
                )
        for pair in itertools.combinations(row.items(), 2):
            left.pop(frozenset(pair), None)
        rows.append({name: row[name] for name in FACTORS})
    return rows


ROWS = covering_array()


def test_every_pair_of_options_occurs():
    met = {frozenset(pair) for row in ROWS for pair in itertools.combinations(row.items(), 2)}
    for (one, many), (other, more) in itertools.combinations(FACTORS.items(), 2):
        for a, b in itertools.product(many, more):
            together = frozenset([(one, a), (other, b)]) in met
            assert together != ((one, a, other, b) in IMPOSSIBLE), (a, b)
    # As few as the two largest factors need, or nearly.
    assert len(ROWS) <= 1.05 * len(EVERY_ACTIVATION) * len(EVERY_LOSS)


def network(rng, row):
    """5 inputs, 7 (and 6) hidden units, 3 outputs or what the loss takes."""
    chosen = row["connections"]
    sizes = [5, 7, 6, 3] if row["layers"] == 3 else [5, 7, 3]
    sizes[-1] = n_out_for(row["loss"], sizes[-1])
    acts = [row["activation"]] * (row["layers"] - 1)
    acts.append("sigmoid" if row["loss"] == "bce" else "linear")
    layers = []
    for k, ((n_in, n_out), act) in enumerate(zip(itertools.pairwise(sizes), acts, strict=True)):
        options = {"bias": chosen != "no bias"}
        if "mask" in chosen.split():
            key = "bias_mask" if chosen == "bias mask" else "mask"
            options[key] = rng.random(n_out if chosen == "bias mask" else (n_in, n_out)) < 0.7
        if chosen == "frozen layer":
            options["trainable"] = k != row["layers"] - 2
        elif "frozen" in chosen:
            options["trainable"] = rng.random((n_in, n_out)) < 0.6
        layers.append(fb.Dense(n_out, act, **options))
    return fb.Network(sizes[0], *layers, dtype=row["dtype"])


def parameters(rng, net):
    """Matrices (W, b) with NaN where a mask is."""
    vector = 0.5 * net.init(rng) + 0.15 * rng.standard_normal(net.n_params).astype(net.dtype)
    vector[bounds.masked_entries(net)] = np.nan
    return vector, bounds.split(net, vector)


def packed(net, matrices, layout):
    """The parameter vector from matrices that were laid out by hand."""
    if layout == "xw":
        return net.pack(matrices)
    if layout == "wx":
        return net.pack([(W.T, b) for W, b in matrices], "wx")
    thetas = [np.vstack([b, W]).T for W, b in matrices]
    if layout == "theta":
        return net.pack(thetas, "theta")
    return net.pack(np.concatenate([theta.T.ravel() for theta in thetas]), "theta")


def within_1e12(computed, bound):
    exactly = bound.value
    assert abs(computed - exactly).max(initial=0) <= 1e-12 * abs(exactly).max(initial=0)


@pytest.mark.backend
@pytest.mark.parametrize("number", range(len(ROWS)))
def test_derivatives_are_within_rounding(backend, number):
    row, rng = ROWS[number], np.random.default_rng(number)
    net, loss, n = network(rng, row), row["loss"], n_for(row["loss"], row["rows"])
    vector, matrices = parameters(rng, net)
    params = packed(net, matrices, row["layout"])
    assert same(params, vector)
    X = rng.standard_normal((n, 5)).astype(net.dtype)
    y = target(rng, loss, n, net.n_out, net.dtype, rows_of_probabilities=number % 2 == 1)
    penalties = {name: 0.05 for name in ("l2", "l1", "group") if row["penalty"] in (name, "all")}
    w = None
    if row["weighted"]:
        w = weights(rng, n // 2 if loss_of(loss).paired else n, net.dtype)

    expected = bounds.objective(net, params, X, y, loss, w, **penalties)
    value, grad = net.value_and_grad(params, X, y, loss, sample_weight=w, **penalties)
    steps = bounds.forward(net, params, X)
    Y, pullback = net.vjp(params, X)
    dY = rng.standard_normal(Y.shape).astype(net.dtype)
    pulled = bounds.backward(net, params, steps, bounds.exact(dY))
    computed = {"value": value, "gradient": grad, "Y": Y}
    computed |= dict(zip(("dparams", "dX"), pullback(dY), strict=True))
    for name, bound in zip(computed, (*expected, steps[-1][2], *pulled), strict=True):
        bound.check(computed[name], f"{name} of {row}")
        if net.dtype == np.float64:
            within_1e12(computed[name], bound)
    expected[1].check_sharp(2e4 * np.finfo(net.dtype).eps)
