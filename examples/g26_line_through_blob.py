"""Does gradient descent find the line through a stretched cloud of points?

Question: I fit y = b + m·x by gradient descent on half the sum of squares, lr 1e-4, 1,000 steps
from (0, 0). What should come out, and is it the best line?

Answer: nearly. The mean squared error falls from 2.06 to less than 0.1 % above that of the least
squares line, but b and m still are 1 % off. The cloud lies away from x = 0, so that b and m can
trade off against each other: curvature along that valley is 256 times smaller than across it.

Lesson: a flat loss does not mean that the parameters have arrived. And a rate belongs to an
objective: half the sum of squares has half the gradient of "sse", for which the rate is 5e-5.
"""

import numpy as np
from sklearn.datasets import make_blobs

import fastbp as fb


def main():
    blob, _ = make_blobs(n_samples=1000, random_state=170, centers=1)
    blob = blob @ [[0.60834549, -0.63667341], [-0.40887718, 0.85253229]]
    x, y = blob[:, :1], blob[:, 1]

    line = fb.Network(1, fb.Dense(1))
    options = {"loss": "sse", "params": [0.0, 0.0], "epochs": 1000}
    descent = fb.fit(line, x, y, method="sgd", lr=1e-4 / 2, batch_size=None, **options)
    best = fb.fit(line, x, y, method="trf", **options)

    result = {"x": x[:, 0], "y": y, "start": line.value([0.0, 0.0], x, y, "mse")}
    print(f"at the start       mean squared error {result['start']:.7f}")
    for name, params in (("1,000 steps", descent.params), ("least squares", best.params)):
        (m, b), error = params, line.value(params, x, y, "mse")
        print(f"{name:14}b = {b:.6f}, m = {m:.6f}, mean squared error {error:.7f}")
        result[name] = {"b": b, "m": m, "mse": error}
    J = line.jacobian(descent.params, x)
    result["condition"] = np.linalg.cond(J.T @ J)
    print(f"largest over smallest curvature: {result['condition']:.1f}")
    return result


if __name__ == "__main__":
    main()
