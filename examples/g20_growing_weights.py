"""Why do the weights grow at every epoch?

Question: one linear unit, one row (4, 7), target 16·4 - 14·7 + 36. With lr 30 the weights explode
instead of coming to 16, -14, 36. Where is the mistake?

Answer: the gradient is right, the step is not. Each step multiplies the residual by 1 - lr·λ, where
λ = 2·(4² + 7² + 1) = 132 is the largest curvature of the squared error. It shrinks only for
lr < 2/λ; at 2/λ it flips sign forever, and 1/λ ends it in one step. lr 30 multiplies by -3959.
Even then one row cannot tell three weights apart: infinitely many meet it. Three rows or more do.

Lesson: the data set the largest stable rate, 2/λ. And a zero loss does not mean that the weights
are known: count independent rows.
"""

import numpy as np

import fastbp as fb

unit = fb.Network(2, fb.Dense(1))
START = [0.5, 0.5, 1.0]


def target(X):
    return X @ [16.0, -14.0] + 36


def descend(X, lr, epochs):
    options = {"method": "sgd", "loss": "sse", "batch_size": None, "params": START}
    return fb.fit(unit, X, target(X), lr=lr, epochs=epochs, **options)


def main():
    X = np.array([[4.0, 7.0]])
    try:
        descend(X, lr=30, epochs=1000)
    except fb.DivergenceError as error:
        divergence = error
        print(f"lr = 30: {error}\n")

    curvature = 2 * np.sum(unit.jacobian(START, X) ** 2)
    residuals = {}
    for factor in (1.0, 1.9, 2.0, 2.1):
        path = [np.array(START)]
        path += [descend(X, factor / curvature, epochs).params for epochs in (1, 2, 3, 4)]
        residuals[factor] = [(unit.forward(p, X)[:, 0] - target(X)).item() for p in path]
        print(f"lr = {factor}/{curvature:g}: residuals {np.round(residuals[factor], 4).tolist()}")
    one = descend(X, 1 / curvature, 1).params
    print(f"one row, no residual left: w1, w2, b = {one.round(4).tolist()}")

    X = np.array([[4.0, 7.0], [-3.0, 2.0], [1.0, -5.0], [-6.0, -1.0]])
    curvature = 2 * np.linalg.norm(unit.jacobian(START, X), 2) ** 2
    several = descend(X, 1 / curvature, 1000).params
    print(f"{len(X)} rows: w1, w2, b = {several.round(6).tolist()}")
    return {"divergence": divergence, "residuals": residuals, "one": one, "several": several}


if __name__ == "__main__":
    main()
