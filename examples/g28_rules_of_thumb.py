"""Do the rules of thumb hold: standardise the inputs, and use dropout?

Question: everybody says so. How much does standardising gain, and what does dropout do?

Answer: measure. Logistic regression on inputs of sizes 0.2 to 5 takes 2229 epochs to a loss that
standardised ones meet in 6, each at its own best rate. Dropout on a layer's outputs,
`fb.Dense(..., dropout=0.5)`, is a penalty: in a linear model it is ridge regression, with
p/(1 - p)·mean(x_j²) on w_j², and comes to that model's weights. Where rows are few, here 20 for 11
weights, it helps; with 500 it does harm.

Lesson: standardise always, it is one word, `scale="standard"`. Dropout is for few data.
"""

import numpy as np

import fastbp as fb


def fit_to(goal, scale, X, labels):
    """Logistic regression by gradient descent, at half the largest stable rate."""
    net = fb.Network(3, fb.Dense(1))
    seen = X if scale is None else fb.Scaler.standard(X).transform(X)
    lr = 0.5 * net.max_stable_rate(np.zeros(4), seen, labels, "bce_logits")
    options = {"method": "sgd", "loss": "bce_logits", "batch_size": None, "epochs": 10_000}
    return fb.fit(net, X, labels, lr=lr, params=np.zeros(4), scale=scale, goal=goal, **options)


def linear_model(X, y, dropout, steps):
    """The weights and the bias of a linear model whose inputs go through dropout."""
    k = X.shape[1]
    same = fb.Dense(k, bias=False, trainable=False, dropout=dropout)  # the identity
    net = fb.Network(k, same, fb.Dense(1))
    start = net.pack([(np.eye(k), None), (np.zeros((k, 1)), [0.0])])
    options = {"method": "sgd", "lr": 0.02, "batch_size": None, "epochs": steps, "seed": 0}
    return fb.fit(net, X, y, params=start, average=True, **options).params[k * k :]


def main(steps=10_000):
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((200, 3))
    X, labels = Z * [5, 1, 0.2], Z.sum(axis=1) + rng.standard_normal(200) > 0
    result = {"X": X, "labels": labels, "fits": {}, "weights": {}}
    for scale in ("standard", None):
        res = result["fits"][scale] = fit_to(0.35, scale, X, labels)
        print(f"scale={scale}: {res.nit} epochs, loss {res.history['loss'][-1]:.4f}")

    truth, fresh = rng.standard_normal(10), rng.standard_normal((10_000, 10))
    for n in (20, 500):
        X = rng.standard_normal((n, 10))
        y = X @ truth + 3 * rng.standard_normal(n)
        for dropout in (0.0, 0.5):
            w = linear_model(X, y, dropout, steps)
            result["weights"][n, dropout] = X, y, truth, w
            error = np.mean((fresh @ (w[:-1] - truth) + w[-1]) ** 2)
            print(f"{n} rows, dropout {dropout:g}: mean squared error on fresh rows {error:.3f}")
    return result


if __name__ == "__main__":
    main()
