"""Why does my multiple regression give NaN?

Question: weight from age and height, 12 people, gradient descent on half the mean squared error
with lr 0.001: after some hundred steps everything is NaN. The formulas are right. What is wrong?

Answer: heights of 62 to 72 and ages of 21 to 41 make a largest curvature λ of 5268, so that 0.001
is above the largest stable rate, 2/λ = 0.00038. fastbp stops the run in step 8 and quotes that rate
long before the weights are NaN, in step 487. Below it the descent hardly moves: the smallest
curvature is 1.7 million times smaller. `scale="standard"` brings that condition number to 1.1, and
the parameters that come out are for raw data and agree with ordinary least squares, as do those of
"lm" and "trf", which have no rate.

Lesson: NaN is the last symptom of a rate that was too large for a long time. Scale.
"""

import numpy as np

import fastbp as fb

PEOPLE = """41 62 115, 21 62 140, 31 62 125, 21 64 125, 31 64 145, 41 64 135, 41 72 165, 31 72 190,
21 72 175, 31 66 150, 31 66 155, 21 64 140"""
plane = fb.Network(2, fb.Dense(1))


def condition(X):
    """Of the Hessian of half the mean squared error: its largest over its smallest eigenvalue."""
    J = plane.jacobian(np.zeros(3), X)
    return np.linalg.cond(J.T @ J)


def main():
    people = np.array([person.split() for person in PEOPLE.split(",")], float)
    X, weight = people[:, :2], people[:, 2]
    start = {"loss": "half_mse", "params": np.zeros(3)}
    sgd = {"method": "sgd", "batch_size": None, "epochs": 1000, **start}
    try:
        fb.fit(plane, X, weight, lr=0.001, **sgd)
    except fb.DivergenceError as error:
        divergence = error
        print(f"lr 0.001: {error}\n")

    scaled = fb.Scaler.standard(X).transform(X)
    conditions = {"raw": condition(X), "standardised": condition(scaled)}
    for name, number in conditions.items():
        print(f"condition number of {name} data: {number:.4g}")
    ols = np.linalg.lstsq(np.column_stack([X, np.ones(12)]), weight, rcond=None)[0]
    fits = {
        "ordinary least squares": ols,
        'scale="standard"': fb.fit(plane, X, weight, lr=1.0, scale="standard", **sgd).params,
        "lm": fb.fit(plane, X, weight, method="lm", **start).params,
        "trf": fb.fit(plane, X, weight, method="trf", **start).params,
    }
    for name, (age, height, bias) in fits.items():
        print(f"{name:24} weight = {bias:.5f} {age:+.7f}·age {height:+.7f}·height")
    return {"divergence": divergence, "conditions": conditions, "fits": fits}


if __name__ == "__main__":
    main()
