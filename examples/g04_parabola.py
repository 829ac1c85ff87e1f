"""Can a relu network learn x² + x, and why did mine stay at a constant?

Question: x is uniform on 0..1000, the network 1-40-40-1 with relu, and it comes to predict one
number for every x. Are relu networks unfit for curves?

Answer: no. With x and y scaled to 0..1, Adam on batches of 32 comes well below 0.5 % of the range
in 10,000 steps; `scale="minmax"` scales inside and folds it back, so that the network that comes
out takes x as it is. The set-up that failed had three faults. A softmax over one output is 1
whatever goes in, and its gradient is 0. Targets of up to a million are far away for steps of 0.001.
And a target (1000,) beside outputs (1000, 1) becomes, in NumPy, a matrix of all differences, for
which the best prediction is a constant, the mean.

Lesson: where a network predicts a constant, look at the last activation, the scale, the shapes.
"""

import numpy as np

import fastbp as fb

net = fb.Network.mlp([1, 40, 40, 1], "relu")


def rmse(params, x):
    """In per cent of the range of x² + x on 0..1000."""
    return 100 * np.sqrt(net.value(params, x, x**2 + x, "mse")) / (1000**2 + 1000)


def plot(path, x, fitted):
    from matplotlib.figure import Figure

    axes = Figure(layout="constrained").subplots()
    axes.plot(x, x**2 + x, label="x² + x")
    axes.plot(x, fitted, "--", label="fit")
    axes.legend()
    axes.figure.savefig(path)


def main(path=None):
    x = np.random.default_rng(0).uniform(0, 1000, (1600, 1))
    options = {"method": "adam", "lr": 0.001, "batch_size": 32, "epochs": 200, "seed": 0}
    grid = np.linspace(0, 1000, 1001)[:, None]
    result = {"grid": grid}
    for scale in ("minmax", None):
        res = result[scale] = fb.fit(net, x, x**2 + x, scale=scale, **options)
        print(f"scale={scale}: error {rmse(res.params, grid):.3f} % after {res.nfev} steps")
    if path:
        plot(path, grid, result["minmax"].predict(grid))

    z = np.linspace(-5, 5, 11)[:, None]  # outputs before a softmax over each row
    print("softmax over one output:", np.unique(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)))
    outputs = net.forward(net.init(seed=0), x)
    print("(1600, 1) - (1600,) has shape", (outputs - (x**2 + x)[:, 0]).shape)
    return result


if __name__ == "__main__":
    main()
