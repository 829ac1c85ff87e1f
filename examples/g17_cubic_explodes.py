"""Why does the cost explode when I fit a cubic?

Question: the features are x³, x², x and 1 for 100 points x of [-3, 3], the targets a cubic of x.
Gradient descent with lr 0.01 runs off to inf. Is the gradient wrong?

Answer: the rate is. Along the steepest direction every step multiplies the error by 1 - lr·λ, λ
being the largest curvature of the mean squared error, here 226: x³ reaches 27 where 1 stays at 1.
Above lr = 2/λ = 0.00884 that grows in size, at 0.01 by 1.26 a step. fastbp stops the run, names the
step and quotes that limit, which `net.max_stable_rate` tells before any step is taken. lr 1e-4 goes
down.

Lesson: powers of x bring large curvature. Ask for the limit, or scale the features.
"""

import numpy as np

import fastbp as fb

x = np.linspace(-3, 3, 100)
X = np.column_stack([x**3, x**2, x, np.ones(100)])
y = X @ [0.5, -1.0, -2.0, 3.0]
cubic = fb.Network(4, fb.Dense(1, bias=False))


def descend(lr):
    options = {"params": np.zeros(4), "epochs": 1000, "batch_size": None}
    return fb.fit(cubic, X, y, method="sgd", loss="mse", lr=lr, **options)


def main():
    limit = cubic.max_stable_rate(np.zeros(4), X, y, "mse")
    print(f"largest stable rate {limit:.5f}\n")
    try:
        descend(0.01)
    except fb.DivergenceError as error:
        divergence, losses = error, error.result.history["loss"]
        print(f"lr 0.01: {error}")
        for steps in (10, 20, 30):
            print(f"  {losses[steps] / losses[0]:.1e} times the first cost after {steps} steps")

    slow = descend(1e-4)
    down = "every step down" if (np.diff(slow.history["loss"]) < 0).all() else "not always down"
    print(f"\nlr 1e-4: cost {slow.history['loss'][0]:.3f} -> {slow.fun:.3f}, {down}")
    best = fb.fit(cubic, X, y, method="trf", params=np.zeros(4))
    print(f"least squares: {best.params.round(6).tolist()}")
    return {"limit": limit, "divergence": divergence, "slow": slow, "best": best.params}


if __name__ == "__main__":
    main()
