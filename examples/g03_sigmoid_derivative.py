"""Is the sigmoid's derivative needed in the weight update?

Question: my one-layer network learns with dW = Xᵀ((a - y)·a·(1 - a)), and with dW = Xᵀ(a - y) too,
even faster. Which of the two is right?

Answer: both, each for its own objective. With the derivative it is the gradient of the sum of
squares (but for a factor 2, which lr 0.5 takes off), without it that of the summed cross-entropy.
Each passes a gradient check against its own objective and fails against the other's.

Lesson: a gradient is right or wrong only together with an objective. Say what is minimised, and
check against that.
"""

import numpy as np

import fastbp as fb

X = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
y = np.array([0, 0, 1, 1])

squares = fb.Network(3, fb.Dense(1, "sigmoid", bias=False))
logits = fb.Network(3, fb.Dense(1, bias=False))  # "bce_logits" has the sigmoid in itself


def activated(W):
    return squares.forward(W, X)[:, 0]


GRADIENTS = {
    "with a·(1 - a)": lambda W: 2 * X.T @ (((a := activated(W)) - y) * a * (1 - a)),
    "without": lambda W: X.T @ (activated(W) - y),
}
OBJECTIVES = {
    "sum of squares": lambda W: squares.value(W, X, y, "sse"),
    "cross-entropy": lambda W: len(X) * logits.value(W, X, y, "bce_logits"),  # a sum, not a mean
}


def check(gradient, objective, W):
    return fb.check_grad(lambda W: (OBJECTIVES[objective](W), GRADIENTS[gradient](W)), W)


def main():
    start = 2 * np.random.RandomState(1).random_sample(3) - 1  # np.random.seed(1), random((3, 1))
    # The outputs that step 1,000 computes come before its update: 999 updates.
    options = {"method": "sgd", "params": start, "epochs": 999, "batch_size": None}
    with_it = fb.fit(squares, X, y, loss="sse", lr=0.5, **options)
    without = fb.fit(logits, X, y, loss="bce_logits", lr=1.0 * len(X), **options)
    outputs = {"with a·(1 - a)": activated(with_it.params), "without": activated(without.params)}
    for name, output in outputs.items():
        print(f"outputs in step 1,000, {name}: {' '.join(f'{a:.5f}' for a in output)}")

    checks = {(g, o): check(g, o, start) for g in GRADIENTS for o in OBJECTIVES}
    for (gradient, objective), found in checks.items():
        print(f"gradient {gradient}, objective {objective}:\n  {found}")
    return {"start": start, "outputs": outputs, "checks": checks}


if __name__ == "__main__":
    main()
