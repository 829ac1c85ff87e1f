"""How do I train one network to score the positive above the negative of each pair?

Question: the loss is max(0, 1 - (f(positive) - f(negative))), but f runs twice per pair. Whose
parameters get the gradient? Two copies of the network reach a loss of zero at once: is that better?

Answer: one network, both rows of a pair in one batch: "margin_ranking" takes rows 2i and 2i + 1 as
pair i, and the gradients of both uses add up. Two networks f and g, each always fed from its own
slot, need not look at the rows: a constant 1 more on f's side meets every margin, and then the
first of any two is called the better one. That is right for half of the pairs.

Lesson: a comparison must be antisymmetric. Share the parameters, and test with pairs in random
order; a loss of zero on pairs that always have the answer first says nothing.
"""

import numpy as np

import fastbp as fb


def pairs(rng, n):
    """Rows 2i and 2i + 1 are a pair, the one with the higher hidden quality first."""
    X = rng.uniform(-1.5, 1.5, (n, 2, 3))
    quality = np.sin(2 * X[:, :, 0]) + X[:, :, 1] * X[:, :, 2]
    return np.take_along_axis(X, quality.argsort(axis=1)[:, ::-1, None], axis=1).reshape(-1, 3)


def main():
    rng = np.random.default_rng(0)
    X, held_out = pairs(rng, 800), pairs(rng, 1000)
    net = fb.Network.mlp([3, 24, 1], "tanh")

    shared = net.init(seed=1)
    for _ in range(600):
        loss, grad = net.value_and_grad(shared, X, None, "margin_ranking")
        shared -= 0.5 * grad

    f, g = net.init(seed=1), net.init(seed=2)
    for _ in range(600):
        (Y_f, pull_f), (Y_g, pull_g) = net.vjp(f, X[::2]), net.vjp(g, X[1::2])
        short = 1 - (Y_f - Y_g)  # of the margin
        dY = np.where(short > 0, -1 / len(short), 0)
        f -= 0.5 * pull_f(dY)[0]
        g -= 0.5 * pull_g(-dY)[0]

    losses = {"one network": loss, "two networks": np.maximum(short, 0).mean()}
    result = {"X": X, "held out": held_out, "shared": shared, "f": f, "g": g, "losses": losses}
    better, worse = held_out[::2], held_out[1::2]
    for name, first, second in (("one network", shared, shared), ("two networks", f, g)):
        right = np.mean(net.forward(first, better) > net.forward(second, worse))
        fooled = np.mean(net.forward(first, worse) > net.forward(second, better))
        result[name] = {"accuracy": (right + 1 - fooled) / 2, "fooled": fooled}
        print(f"{name}: training loss {losses[name]:.4f}")
        print(f"  held-out pairs in random order: {100 * result[name]['accuracy']:.1f} % right")
        print(f"  worse one first: called the better one in {100 * fooled:.1f} %")
    return result


if __name__ == "__main__":
    main()
