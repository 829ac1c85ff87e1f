"""How do I write a network for continuous regression, and fit it by fmincg?

Question: J = 1/2m Σ(a3 - y)² + λ/2m ΣΘ², the latter without biases. Parameters are one vector, Θ1
and Θ2 unrolled by columns, biases first; both layers are linear. Why does fmincg hardly move?

Answer: the gradient is not that of J. It multiplies delta by the activation, a·(1 - a) as if it
were a sigmoid, where its derivative belongs (1 for linear, 1 - a² for tanh), and its data part is
twice what J says while the penalty's is not. `fb.check_grad` fails it. But with a right gradient
linear layers after each other are still one straight line; a tanh layer bends it.

Lesson: a line search believes both value and gradient, and gives up where they disagree. Check the
gradient before you blame the optimizer.
"""

import numpy as np

import fastbp as fb

LAM, HIDDEN = 0.01, 8


def asked(theta, X, y):
    """J and the asker's gradient, linear layers, in Octave's order throughout."""
    m, n1 = len(X), 2 * HIDDEN
    Theta1, Theta2 = theta[:n1].reshape(HIDDEN, 2, order="F"), theta[None, n1:]
    a1 = np.column_stack([np.ones(m), X])
    a2 = np.column_stack([np.ones(m), a1 @ Theta1.T])
    delta3 = a2 @ Theta2.T - y[:, None]
    Ws = [np.hstack([np.zeros((len(T), 1)), T[:, 1:]]) for T in (Theta1, Theta2)]
    J = ((delta3**2).sum() + LAM * sum((W**2).sum() for W in Ws)) / (2 * m)
    delta2 = (delta3 @ Theta2 * (a2 * (1 - a2)))[:, 1:]
    grads = 2 / m * delta2.T @ a1 + LAM / m * Ws[0], 2 / m * delta3.T @ a2 + LAM / m * Ws[1]
    return J, np.concatenate([g.ravel(order="F") for g in grads])


def main():
    rng = np.random.default_rng(0)
    X = np.linspace(-3, 3, 120)[:, None]
    y = np.sin(X[:, 0]) + X[:, 0] / 2 + 0.05 * rng.standard_normal(120)
    theta = rng.uniform(-0.5, 0.5, HIDDEN * 2 + 1 + HIDDEN)
    result = {"X": X, "y": y, "theta": theta, "J": asked(theta, X, y)[0], "fits": {}}
    result["asked"] = fb.check_grad(lambda t: asked(t, X, y), theta)
    stuck = result["stuck"] = fb.optimize.fmincg(asked, theta, (X, y), maxiter=1000)
    print(
        f"the asker's gradient: {result['asked']}\nwith it J {result['J']:.4f} to {stuck.fun:.4f}"
    )
    for hidden in ("linear", "tanh"):
        net = fb.Network.mlp([1, HIDDEN, 1], hidden)
        start = net.pack(theta, layout="theta")
        cost = net.objective(X, y, "half_mse", l2=LAM / len(X))
        print(f"the right one, hidden layer {hidden}: {fb.check_grad(cost, start)}")
        res = fb.optimize.fmincg(cost, start, maxiter=1000)
        error = np.sqrt(np.mean((net.forward(res.x, X)[:, 0] - y) ** 2))
        print(f"{hidden}: J {cost.value(start):.4f} to {res.fun:.6f}, root mean square {error:.4f}")
        result["fits"][hidden] = [Theta.copy() for Theta in net.unpack(res.x, layout="theta")]
    return result


if __name__ == "__main__":
    main()
