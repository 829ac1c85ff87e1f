"""What are all gradients of a one-hidden-layer relu + softmax cross-entropy network, by hand?

Question: z = Wx + b1, h = relu(z), θ = Uh + b2, J = -log softmax(θ)[y]. What are dJ/dU, dJ/db2,
dJ/dW, dJ/db1 and dJ/dx?

Answer: with the errors δ1 = dJ/dθ = softmax(θ) - onehot(y) and δ2 = dJ/dz = Uᵀδ1 where z > 0, else
0, they are δ1hᵀ, δ1, δ2xᵀ, δ2 and Wᵀδ2. This takes seven identities, each checked here through the
gradient of s·(output), s random.

Lesson: one error δ per layer; every gradient has the shape of what it belongs to.
"""

import numpy as np

import fastbp as fb


def softmax(t):
    return np.exp(t) / np.exp(t).sum()


def identities(rng):
    """Name -> (function of a vector v that returns value and gradient, v to check it at)."""
    W, x, t, u, s = (rng.standard_normal(shape) for shape in ((3, 4), 4, 4, 3, 3))
    tanh, y = fb.activation("tanh"), np.eye(3)[1]
    return {
        "d(Wx)/dx = W": (lambda v: (s @ W @ v, s @ W), x),
        "d(uW)/du = Wᵀ": (lambda v: (v @ W @ t, t @ W.T), u),
        "dx/dx = I": (lambda v: (t @ v, t @ np.eye(4)), x),
        "df(x)/dx = diag(f'(x))": (lambda v: (t @ tanh.f(v), t @ np.diag(tanh.df(v))), x),
        "z = Wx: dJ/dW = δxᵀ": (lambda v: (s @ v.reshape(3, 4) @ x, np.outer(s, x).ravel()), W),
        "z = uW: dJ/dW = uᵀδ": (lambda v: (u @ v.reshape(3, 4) @ t, np.outer(u, t).ravel()), W),
        "dJ/dθ = softmax(θ) - y": (lambda v: (-np.log(softmax(v) @ y), softmax(v) - y), s),
    }


def main():
    rng = np.random.default_rng(1)
    net = fb.Network(4, fb.Dense(6, "relu"), fb.Dense(3))
    params, x = rng.standard_normal(net.n_params), rng.standard_normal(4)
    (W, b1), (U, b2) = net.unpack(params, layout="wx")
    h = np.maximum(W @ x + b1, 0)
    d1 = softmax(U @ h + b2) - np.eye(3)[1]
    d2 = (U.T @ d1) * (h > 0)
    hand = {"U": np.outer(d1, h), "b2": d1, "W": np.outer(d2, x), "b1": d2, "x": W.T @ d2}

    _, grad = net.value_and_grad(params, [x], [1], "softmax_ce")
    (dW, db1), (dU, db2) = net.unpack(grad, layout="wx")
    dx = net.vjp(params, [x])[1]([db2])[1][0]  # dJ/db2 is dJ/dθ, what comes from above
    ours = {"U": dU, "b2": db2, "W": dW, "b1": db1, "x": dx}
    for name, g in ours.items():
        print(f"dJ/d{name:3}by hand and by fastbp: {np.abs(g - hand[name]).max():.0e} apart")
    rows = identities(rng)
    checks = {name: fb.check_grad(function, v.ravel()) for name, (function, v) in rows.items()}
    print(*(f"{name}: {check}" for name, check in checks.items()), sep="\n")
    return {"params": params, "x": x, "ours": ours, "identities": rows, "checks": checks}


if __name__ == "__main__":
    main()
