"""Why does LMS get stuck above the minimum?

Question: five houses, prices from area and rooms, a bias column first, columns divided by their
sums. One row a step, lr 0.1, 100,000 epochs: the cost ends at 1723, least squares has 1444. Why?

Answer: the loop left the last row out; that row's price is no part of what it minimised. With all
rows it comes to 1444.19, and that rest is the rate: steps of single rows pull to and fro, and in a
fixed order the weights end on a cycle around the minimum, not in it. A larger rate makes the cycle
wider: 1449 with lr 1. Shuffling turns the cycle into noise, and the average of the weights on the
way, `average=True`, takes the noise off: 1444.2 with lr 1.

Lesson: count the rows that a loop sees. And with one row a step, average the weights, or let the
rate go down.
"""

import numpy as np

import fastbp as fb

y = np.array([400.0, 330.0, 369.0, 232.0, 540.0])
X = np.array([[1, 2104, 3], [1, 1600, 3], [1, 2400, 3], [1, 1416, 2], [1, 3000, 4]])
X = X / X.sum(axis=0)
net = fb.Network(3, fb.Dense(1, bias=False))
RUNS = {
    "last row skipped, lr 0.1": (4, {"lr": 0.1, "shuffle": False}),
    "all rows, lr 0.1": (5, {"lr": 0.1, "shuffle": False}),
    "all rows, lr 1": (5, {"lr": 1.0, "shuffle": False}),
    "shuffled, lr 1": (5, {"lr": 1.0}),
    "shuffled, lr 1, averaged": (5, {"lr": 1.0, "average": True}),
}


def cost(w):
    """The sum of squares over all five rows."""
    return net.value(w, X, y, "sse")


def main(epochs=100_000):
    result = {}
    lms = {"method": "sgd", "loss": "half_mse", "batch_size": 1, "epochs": epochs, "seed": 0}
    for name, (rows, options) in RUNS.items():
        w = fb.fit(net, X[:rows], y[:rows], params=[0, 0.5, 0.5], **options, **lms).params
        result[name] = w
        print(f"{name:26} cost {cost(w):.4f}, weights {w.round(2).tolist()}")
    result["least squares"] = w = np.linalg.lstsq(X, y, rcond=None)[0]
    print(f"{'least squares':26} cost {cost(w):.4f}, weights {w.round(2).tolist()}")
    return result


if __name__ == "__main__":
    main()
