"""My integral's two halves nearly cancel: which digits can I believe?

Question: the principal value of ∫ ds / ((s - q02)(s - q2)) from Ecut to infinity, with numbers of
size 1e10 and a pole at q2. `quad` on both sides of q2 ± ε gives something else for every ε, and its
tolerances do not help. I need it for many (Ecut, q2), fast.

Answer: `weight="cauchy"` takes the pole out, and `epsabs`, 1.5e-8 by default, must be far below
the value, -1.6e-11, or quad is content with anything. Then it agrees with the closed form, ln((q2 -
Ecut)/(Ecut - q02))/(q02 - q2), to nine digits. The split loses the tail beyond the tolerance and
the part within ε: it is wrong by far more than the error it tells. For many values, a small network
fitted to some of them is a surrogate with error bars of its own, once they are scaled by 1e11.

Lesson: print a number's error estimate beside it, and ask what the estimate cannot see.
"""

import numpy as np
from scipy.integrate import quad

import fastbp as fb

Q02, ECUT, Q2 = 485124412.0, 17909665929.0, 9e10


def cauchy(ecut, q2, **tolerance):
    """Value and error estimate."""
    options = {"weight": "cauchy", "wvar": q2, **tolerance}
    return quad(lambda s: 1 / (s - Q02), ecut, 1e9 * q2, **options)


def split(eps):
    sides, options = ((ECUT, Q2 - eps), (Q2 + eps, np.inf)), {"epsabs": 1e-20, "full_output": 1}
    halves = [quad(lambda s: 1 / (s - Q02) / (s - Q2), *side, **options)[:2] for side in sides]
    return np.sum(halves, axis=0)


def main():
    found = {"cauchy": cauchy(ECUT, Q2, epsabs=1e-20), "default epsabs": cauchy(ECUT, Q2)}
    found |= {f"split at {eps:g}": split(eps) for eps in (1e6, 1e8)}
    for name, (value, error) in found.items():
        print(f"{name:15} {value:.9e} ± {error:.0e}")

    rng = np.random.default_rng(0)
    X = rng.uniform((1.5e10, 7e10), (2.5e10, 1.1e11), (200, 2))
    y = [1e11 * cauchy(*x, epsabs=1e-20)[0] for x in X]
    net = fb.Network.mlp([2, 6, 1], "tanh")
    res = fb.fit(net, X[:150], y[:150], method="lm", scale="standard", epochs=300, seed=0)
    X_new, y_new = X[150:], np.array(y[150:])
    Y, lower, upper = (column[:, 0] for column in res.predict(X_new, interval=0.95))
    for x, target, value, top in list(zip(X_new, y_new, Y, upper, strict=True))[:5]:
        print(
            f"Ecut {x[0]:.3e}, q2 {x[1]:.3e}: {target:.6f}, network {value:.6f} ± {top - value:.0e}"
        )
    print(f"{np.sum((lower < y_new) & (y_new < upper))} of 50 new values within their bars of 95 %")
    return {"found": found, "X": X_new, "y": y_new, "Y": Y, "lower": lower, "upper": upper}


if __name__ == "__main__":
    main()
