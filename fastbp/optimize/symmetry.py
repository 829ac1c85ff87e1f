"""The symmetries of a network: one form for all parameters that compute the same function."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..common.arrays import FLOAT64
from ..networks.description import Description

# Activations with act(-z) = c - act(z), and their c: a unit's signs can be turned.
MIRRORED = {
    "linear": 0.0,
    "tanh": 0.0,
    "hard_tanh": 0.0,
    "softsign": 0.0,
    "sin": 0.0,
    "sigmoid": 1.0,
    "hard_sigmoid": 1.0,
}
# Activations with act(s·z) = s·act(z) for s > 0: a factor can move from the incoming weights of a
# unit to the outgoing ones.
HOMOGENEOUS = ("linear", "relu", "leaky_relu")


def canonical(net: Description, params: Any) -> np.ndarray:
    """Parameters of the same function, in a form that symmetries of the network do not change.

    The units of a hidden layer may be in any order. The signs of a unit's incoming and outgoing
    weights may be turned together if its activation is odd, and also, with a change of the next
    layer's bias, if it is a sigmoid [1]_; a factor may be moved from the ones to the others if it
    is a relu. In the form returned, the product of a unit's incoming weights with a fixed direction
    is positive, units are sorted by it, and the incoming weights of relu layers have norm 1.

    Parameters
    ----------
    net : Network or Description
    params : array_like (n_params,)

    Returns
    -------
    numpy.ndarray of float64
        W, then b, of each layer; zeros for masked entries and for the biases of layers without.

    References
    ----------
    .. [1] H. J. Sussmann, "Uniqueness of the weights for minimal feedforward nets with a given
       input-output map", Neural Networks 5(4), 1992.
    """
    double = net.astype(FLOAT64)
    effective = double.checked_params(np.asarray(params, FLOAT64))
    # Biases are a last row: incoming weights are columns, outgoing ones rows of the next layer.
    layers = [
        np.vstack([W, np.zeros(W.shape[1]) if b is None else b])
        for W, b in double.unpack(effective)
    ]
    rng = np.random.default_rng(0)
    for layer, incoming, outgoing in zip(net.layers, layers, layers[1:], strict=False):
        name = layer.act.name if layer.act.functions is None else ""
        if name in HOMOGENEOUS:
            sizes = np.linalg.norm(incoming, axis=0)
            sizes[sizes == 0] = 1.0
            incoming /= sizes
            outgoing[:-1] *= sizes[:, None]
        side = rng.standard_normal(len(incoming)) @ incoming
        if name in MIRRORED:
            turned = side < 0
            outgoing[-1] += MIRRORED[name] * outgoing[:-1][turned].sum(axis=0)
            incoming[:, turned] *= -1
            outgoing[:-1][turned] *= -1
            side = np.abs(side)
        order = side.argsort()
        incoming[:] = incoming[:, order]
        outgoing[:-1] = outgoing[:-1][order]
    return np.concatenate([layer.ravel() for layer in layers])
