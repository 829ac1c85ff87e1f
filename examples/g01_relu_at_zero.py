"""Does the value of relu's derivative at 0 matter?

Question: relu has no derivative at 0; some libraries take 0 there, some 1/2, some 1. Does training
depend on it?

Answer: on random data it does not: no pre-activation is ever exactly 0, and the three runs agree in
every bit. It does where exact zeros meet: with a row of zeros and biases that start at 0, every
hidden unit sits on the kink.

Lesson: look for exact zeros in the data before arguing about the convention. And when two programs
disagree, compare shapes first: targets (4, 2) beside outputs (4, 1) broadcast in NumPy without a
word, and the loss is then of another problem. fastbp raises instead.
"""

import numpy as np

import fastbp as fb

VALUES = (0.0, 0.5, 1.0)


def train(X, y, grad_at_zero):
    """The losses of 200 full-batch steps."""
    net = fb.Network(2, fb.Dense(30, fb.relu(grad_at_zero)), fb.Dense(1))
    options = {"method": "sgd", "loss": "sse", "lr": 0.002, "epochs": 200, "batch_size": None}
    return fb.fit(net, X, y, params=net.init(seed=0), **options).history["loss"]


def main():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((4, 2)), rng.standard_normal((4, 1))
    X_zero = X.copy()
    X_zero[2] = 0.0

    result = {"X": X, "X_zero": X_zero, "y": y}
    for name, title in (("X", "random rows"), ("X_zero", "one row of zeros")):
        losses = {value: train(result[name], y, value) for value in VALUES}
        same = all(np.array_equal(losses[0.0], losses[value]) for value in VALUES)
        print(f"{title}: the three runs are {'bit-identical' if same else 'different'}")
        for value in VALUES:
            first, last = losses[value][[0, -1]]
            print(f"  relu'(0) = {value:3}: loss {first:.6f} -> {last:.15f}")
        result[f"losses of {name}"], result[f"{name} identical"] = losses, same

    try:
        train(X, np.column_stack([y, y]), 0.0)
    except fb.ShapeError as error:
        print(f"ShapeError: {error}")
        result["error"] = error
    return result


if __name__ == "__main__":
    main()
