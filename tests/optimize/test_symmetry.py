"""Symmetries of networks: one canonical form for parameters that give the same function."""

from __future__ import annotations

import numpy as np
import pytest

import fastbp as fb
from fastbp.optimize.symmetry import canonical

# Symmetries.


def unit_norms(W, b, V, c, rng):
    """Incoming weights of a relu layer smaller, outgoing ones larger by as much."""
    sizes = rng.uniform(0.1, 10, W.shape[1])
    return W / sizes, b / sizes, V * sizes[:, None], c


def turned(shift):
    def turn(W, b, V, c, rng):
        signs = rng.choice([-1, 1], W.shape[1])
        c = c + shift * V[signs < 0].sum(axis=0)
        return W * signs, b * signs, V * signs[:, None], c

    return turn


def as_they_are(W, b, V, c, rng):
    return W, b, V, c


@pytest.mark.parametrize(
    "activation, change",
    [
        ("tanh", turned(0)),
        ("softsign", turned(0)),
        ("hard_tanh", turned(0)),
        ("sin", turned(0)),
        ("linear", turned(0)),
        ("linear", unit_norms),
        ("sigmoid", turned(1)),
        ("hard_sigmoid", turned(1)),
        ("relu", unit_norms),
        (fb.leaky_relu(0.3), unit_norms),
        ("gelu", as_they_are),
        ("elu", as_they_are),
    ],
    ids=["tanh", "softsign", "hard_tanh", "sin", "linear", "linear_sizes", "sigmoid",
         "hard_sigmoid", "relu", "leaky_relu", "gelu", "elu"],
)  # fmt: skip
def test_canonical_form_is_the_same_for_what_does_the_same(rng, activation, change):
    net = fb.Network(3, fb.Dense(6, activation), fb.Dense(5, activation), fb.Dense(2))
    params = rng.standard_normal(net.n_params)
    X = rng.standard_normal((20, 3))
    for _ in range(20):
        layers = net.unpack(params.copy())
        for k, size in ((0, 6), (1, 5)):
            (W, b), (V, c) = layers[k : k + 2]
            order = rng.permutation(size)
            W, b, V = W[:, order], b[order], V[order]
            W, b, V, c = change(W, b, V, c, rng)
            layers[k : k + 2] = (W, b), (V, c)
        other = net.pack(layers)
        np.testing.assert_allclose(net.forward(other, X), net.forward(params, X), rtol=1e-9)
        np.testing.assert_allclose(canonical(net, other), canonical(net, params), rtol=1e-9)
    far = params + 0.1 * rng.standard_normal(len(params))
    assert np.abs(canonical(net, far) - canonical(net, params)).max() > 0.01


def test_canonical_form_passes_over_what_masks_take_away(rng):
    mask = [[1, 1, 0], [0, 1, 1]]
    net = fb.Network(2, fb.Dense(3, "sigmoid", mask=mask), fb.Dense(1, bias=False))
    params = rng.standard_normal(net.n_params)
    (W, b), (V, _) = net.unpack(params.copy())
    W[~np.array(mask, bool)] = 7.0
    other = net.pack([(W, b), (V, None)])
    np.testing.assert_array_equal(canonical(net, other), canonical(net, params))
    assert len(canonical(net, params)) == net.n_params + 1  # a bias of 0


def test_canonical_form_turns_no_activation_of_the_users_own(rng):
    square = fb.Activation("square", lambda z: z * z, lambda z: 2 * z)
    net = fb.Network(1, fb.Dense(2, square), fb.Dense(1))
    params = rng.standard_normal(net.n_params)
    assert sorted(canonical(net, params)) == sorted(params)  # in another order at most
