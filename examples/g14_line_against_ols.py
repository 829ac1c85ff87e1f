"""Why does gradient descent for a line disagree with ordinary least squares?

Question: drivers in fatal collisions per billion miles in 51 US states, those impaired by alcohol
as x, all as y. Least squares gives slope 2.03 and intercept 5.86, 1,000 steps of gradient descent
with lr 1e-4 from (0, 0) give 2.97 and 0.66. Which is right?

Answer: least squares. The descent has only not arrived: curvature along the valley in which slope
and intercept trade off is 262 times smaller than across it, and 1,000 steps of that rate go a
small part of the way. Standardised data make the valley round: `scale="standard"` scales inside
the fit and folds the scaling back, so that the line that comes out is for raw data. And a method
that knows it is least squares, "lm" or "trf", needs a few steps whatever the scale.

Lesson: look at the condition number before the number of steps.
"""

from pathlib import Path

import numpy as np

import fastbp as fb

DATA = Path(__file__).parent / "data" / "alcohol_total.csv"
line = fb.Network(1, fb.Dense(1))


def main():
    alcohol, total = np.loadtxt(DATA, delimiter=",", skiprows=1, unpack=True)
    ones = np.column_stack([alcohol, np.ones_like(alcohol)])
    ols = np.linalg.lstsq(ones, total, rcond=None)[0]
    J = line.jacobian([0.0, 0.0], alcohol[:, None])
    condition = np.linalg.cond(J.T @ J)
    print(f"condition number {condition:.0f}")
    print(f"{'least squares':30} slope {ols[0]:.7f}, intercept {ols[1]:.7f}")

    start = {"params": [0.0, 0.0], "loss": "mse"}
    sgd = {"method": "sgd", "epochs": 1000, "batch_size": None, **start}
    fits = {
        "lr 1e-4, 1,000 steps": fb.fit(line, alcohol[:, None], total, lr=1e-4, **sgd),
        'lr 0.1, scale="standard"': fb.fit(
            line, alcohol[:, None], total, lr=0.1, scale="standard", **sgd
        ),
        # A model linear in its parameters needs no damping.
        "lm": fb.fit(line, alcohol[:, None], total, method="lm", mu=1e-9, **start),
        "trf": fb.fit(line, alcohol[:, None], total, method="trf", **start),
    }
    for name, res in fits.items():
        slope, intercept = res.params
        print(f"{name:30} slope {slope:.7f}, intercept {intercept:.7f}, {res.nit} iterations")
    return {"alcohol": alcohol, "total": total, "condition": condition, "ols": ols, "fits": fits}


if __name__ == "__main__":
    main()
