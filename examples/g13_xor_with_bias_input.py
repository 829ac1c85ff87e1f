"""Why does my XOR network not converge?

Question: 3 inputs, the last always 1 as the bias, 3 sigmoid units, 1 sigmoid output. With lr 0.01
the sum of squares stays near 1 for 10,000 steps. Is the code wrong?

Answer: with a right gradient that is a plateau: lr 1 leaves it, gets to 0.004 in 1,000 steps and
never rises; Levenberg-Marquardt is below 1e-4 in a few dozen. But code that *assigns* the hidden
weights' gradient in the loop over the rows follows the last row alone: it stays at 1.00 for any
rate. The loss cannot tell the two apart; a gradient check does.

Lesson: check the gradient first, then turn to the rate, or to a method that has none.
"""

import numpy as np

import fastbp as fb

X = np.array([[0, 0, 1], [1, 1, 1], [1, 0, 1], [0, 1, 1]])
y = np.array([0, 0, 1, 1])
net = fb.Network(3, fb.Dense(3, "sigmoid", bias=False), fb.Dense(1, "sigmoid", bias=False))


def assigned(params):
    """The loss, and the asker's gradient: `dW =` where `dW +=` was meant."""
    (W, _), (w, _) = net.unpack(params)
    loss, dw = 0.0, np.zeros_like(w)
    for x, target in zip(X, y, strict=True):
        h = 1 / (1 + np.exp(-x @ W))
        (a,) = 1 / (1 + np.exp(-h @ w))
        loss += (a - target) ** 2
        delta = 2 * (a - target) * a * (1 - a)
        dw += delta * h[:, None]
        dW = np.outer(x, delta * w[:, 0] * h * (1 - h))
    return loss, net.pack([(dW, None), (dw, None)])


def main():
    random = np.random.RandomState(0).random_sample  # np.random.seed(0), np.random.rand
    start = net.pack([(random((3, 3)), None), (random((1, 3)), None)], layout="wx")
    result, same = {"start": start, "losses": {}}, {"loss": "sse", "params": start}
    for lr in (0.01, 1.0):
        res = fb.fit(net, X, y, method="sgd", lr=lr, epochs=10_000, batch_size=None, **same)
        losses = result["losses"][lr] = np.append(res.history["loss"], res.fun)
        rises = "never rises" if (np.diff(losses) <= 0).all() else "rises"
        print(f"lr {lr:g}: after 1,000 steps {losses[1000]:.4f}, 10,000 {losses[-1]:.5f}, {rises}")
    result["lm"] = res = fb.fit(net, X, y, method="lm", goal=1e-4, **same)
    print(f"Levenberg-Marquardt: {res.fun:.1e} after {res.nit} steps")
    params = start.copy()
    for _ in range(2000):
        params -= assigned(params)[1]
    result["assigned"] = net.value(params, X, y, "sse")
    print(f"lr 1, gradient assigned: after 2,000 steps {result['assigned']:.4f}")
    for name, gradient in (("fastbp", net.objective(X, y, "sse")), ("assigned", assigned)):
        result[f"check of {name}"] = found = fb.check_grad(gradient, start)
        print(f"the gradient of {name}: {found}")
    return result


if __name__ == "__main__":
    main()
