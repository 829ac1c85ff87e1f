"""What is the gradient of a VAE's KL term with respect to the encoder's last layer?

Question: the layer maps 400 hidden units h to 20 means mu and 20 logarithms of variances lv, and
KL = ½Σ(e^lv + mu² - 1 - lv). PyTorch gives me a gradient of the shape of W. By hand I get
∂KL/∂mu = mu and ∂KL/∂lv = ½(e^lv - 1): how do these become ∂KL/∂W?

Answer: both are errors δ at the layer's outputs, (n, 40) for n rows. As for any dense layer
∂KL/∂W = hᵀδ/n, (400, 40), averaged over rows, and ∂KL/∂b = Σδ/n. There is nothing to draw from:
the KL term of two Gaussians has no noise in it, and no target.

Lesson: put the head's outputs side by side, means first, and "gaussian_kl" is a loss like any
other, with y=None. A gradient always has the shape of what it belongs to.
"""

import numpy as np

import fastbp as fb


def main():
    rng = np.random.default_rng(0)
    h = np.maximum(rng.standard_normal((16, 400)), 0)  # what a relu encoder hands over
    head = fb.Network(400, fb.Dense(2 * 20))
    params = head.init(seed=0)
    kl, grad = head.value_and_grad(params, h, None, "gaussian_kl")
    ((dW, db),) = head.unpack(grad)
    ((W, b),) = head.unpack(params)
    print(f"KL = {kl:.6f}; W has shape {W.shape}, its gradient {dW.shape}")

    mu, lv = np.hsplit(h @ W + b, 2)
    delta = np.hstack([mu, 0.5 * (np.exp(lv) - 1)]) / len(h)
    hand = {"W": h.T @ delta, "b": delta.sum(axis=0)}
    for name, found in (("W", dW), ("b", db)):
        print(f"∂KL/∂{name} by hand: {np.abs(found - hand[name]).max():.1e} apart")
    check = fb.check_grad(head.objective(h, None, "gaussian_kl"), params)
    print(f"∂KL/∂W and ∂KL/∂b against differences: {check}")
    return {"h": h, "W": W, "b": b, "kl": kl, "dW": dW, "db": db, "check": check}


if __name__ == "__main__":
    main()
