"""Why does training in low precision diverge through a tanh pooler?

Question: a 768-768 tanh layer before the classifier. In float32 it trains, in float16 it does not.
Its pre-activations have a standard deviation of 10. What is lost, and what can I do?

Answer: tanh' = 1 - y² is exactly 0 once y rounds to 1: beyond |z| = 4.5 in float16, 9.0 in float32
and 19 in float64: about 65, 37 and 6 % of all derivatives (NumPy's float32 tanh reaches 1 only at
10: 32 %). So each precision trains another network. Keep the pooler as it is, by `trainable=False`,
make its weights smaller, or take leaky relu, whose derivative never vanishes. But then outputs of
size 10 come through too, and the same rate overshoots: clip the gradient by its global norm.

Lesson: look at the spread of the pre-activations before blaming the optimizer: of order 1 is well.
"""

import numpy as np

import fastbp as fb


def pooled(activation, **options):
    pooler, classifier = fb.Dense(768, activation, **options), fb.Dense(2)
    return fb.Network(768, pooler, classifier, dtype="float32")


def descend(net, params, X, labels, clip=np.inf):
    """30 steps of gradient descent; the losses."""
    losses = []
    for _ in range(30):
        loss, grad = net.value_and_grad(params, X, labels, "softmax_ce")
        losses.append(loss)
        params = params - 0.1 * min(1, clip / np.linalg.norm(grad)) * grad
    return losses, params


def main():
    rng = np.random.default_rng(0)
    X, labels = rng.standard_normal((64, 768), dtype="float32"), rng.integers(0, 2, 64)
    start = pooled("tanh").init(seed=0)
    start[: 768 * 768] = rng.normal(0, 10 / np.sqrt(768), 768 * 768)
    result = {"X": X, "labels": labels, "start": start, "reports": {}, "runs": {}}
    for name in ("tanh", "leaky_relu"):
        report = fb.gradient_report(pooled(name), start, X, labels, "softmax_ce")
        result["reports"][name] = report
        print(f"{report}\n")

    runs = {"tanh": (pooled("tanh"), np.inf)}
    runs["tanh, pooler frozen"] = pooled("tanh", trainable=False), np.inf
    runs["leaky relu"] = pooled("leaky_relu"), np.inf
    runs["leaky relu, clipped"] = pooled("leaky_relu"), 1.0
    for name, (net, clip) in runs.items():
        losses, _ = result["runs"][name] = descend(net, start, X, labels, clip)
        print(f"{name}: loss {losses[0]:.3f}, at most {max(losses):.4g}, at last {losses[-1]:.4f}")
    return result


if __name__ == "__main__":
    main()
