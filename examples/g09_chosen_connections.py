"""How do I train a network in which only some connections exist, and some keep their values?

Question: units 0 to 2 may see inputs 0 and 1 alone, units 3 to 5 inputs 2 and 3; units 2 and 5 have
no bias; and two of the output weights must stay at 1. Setting the entries back after every step
works for gradient descent. What about L-BFGS or least squares?

Answer: say it in the layer: `mask` and `bias_mask` tell which connections exist, `trainable` which
weights may change. Masked entries count as 0 whatever the vector holds, fixed ones keep their
value to the last bit, with every method. `net.free` lists what is left to fit, and a method that
solves linear systems gets those columns only: `jacobian(free_only=True)`.

Lesson: entries set back behind an optimizer's back spoil its momentum, its line search and its idea
of the curvature. A derivative that is exactly 0 does not.
"""

import numpy as np

import fastbp as fb

SEES = np.kron(np.eye(2, dtype=int), np.ones((2, 3), int))  # (4 inputs, 6 units)
HAS_BIAS = [1, 1, 0, 1, 1, 0]
MAY_CHANGE = np.array([[0, 1, 1, 0, 1, 1]], bool).T  # (6 units, 1 output)

net = fb.Network(
    4,
    fb.Dense(6, "tanh", mask=SEES, bias_mask=HAS_BIAS),
    fb.Dense(1, trainable=MAY_CHANGE),
)
METHODS = {"sgd": {"lr": 0.2}, "adam": {"lr": 0.05}}
METHODS |= {method: {} for method in ("L-BFGS-B", "fmincg", "lm", "trf")}


def main():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (200, 4))
    y = np.sin(X[:, 0] + X[:, 1]) + np.exp(X[:, 2] - X[:, 3]) / 4
    start = net.init(seed=0)
    (W1, b1), (W2, _) = net.unpack(start)
    W1[SEES == 0], b1[[2, 5]], W2[~MAY_CHANGE] = 99.0, -99.0, 1.0
    fixed = np.setdiff1d(np.arange(net.n_params), net.free)

    print(net)
    J, J_free = net.jacobian(start, X), net.jacobian(start, X, free_only=True)
    print(f"\nJacobian {J.shape}, of the free ones {J_free.shape}\n")
    result = {"X": X, "y": y, "start": start, "J": J, "J free": J_free, "params": {}}
    for method, rate in METHODS.items():
        options = {"params": start, "epochs": 200, "batch_size": None}
        params = fb.fit(net, X, y, method=method, **options, **rate).params
        same = np.array_equal(params[fixed], start[fixed])
        error = net.value(params, X, y, "mse")
        print(f"{method:8} mse {error:.2e}, fixed entries {'unchanged' if same else 'CHANGED'}")
        result["params"][method] = params
    return result


if __name__ == "__main__":
    main()
