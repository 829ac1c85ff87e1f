"""How do I write the objective of `least_squares`?

Question: t_k ≈ (c0 - asinh(c0)·exp(2πak))·b_inv/a for k = 1..6, unknown a, b_inv, c0. Returning the
sum of the squares does not work, and with some series the parameters come out absurd.

Answer: return the residuals as a vector; the sum is the method's business. The absurd ones are the
data's answer. Series 1 has a minimum. For the other four the sum falls for ever, ever slower, while
c0 goes to 0, b_inv to infinity, and their product β to a limit: the curve is then β(1 - e^(2πak))/a
and c0 and b_inv are not told apart. And (b_inv, c0) and (-b_inv, -c0) are always the same curve.

Lesson: after a fit look at the standard errors and at other starts, not at the parameters alone.
"""

import numpy as np
from scipy.optimize import Bounds

import fastbp as fb

SERIES = np.array([
    [0.52, 1.28, 2.04, 3.17, 4.53, 6.22],
    [0.51, 1.40, 2.09, 3.00, 4.42, 6.17],
    [0.63, 1.35, 2.19, 3.02, 4.57, 6.29],
    [0.63, 1.39, 2.23, 3.28, 4.70, 6.32],
    [0.57, 1.40, 2.10, 3.06, 4.53, 6.17],
])  # fmt: skip
K, START = np.arange(1, 7), (0.1, 1.25, -0.1)


def residuals(params, t):
    a, b_inv, c0 = params
    return (c0 - np.arcsinh(c0) * np.exp(2 * np.pi * a * K)) * b_inv / a - t


def main():
    result = {"fits": [], "many": []}
    for i, t in enumerate(SERIES, 1):
        res = fb.optimize.levenberg_marquardt(residuals, START, args=(t,))
        (a, b_inv, c0), errors = res.x, res.standard_errors
        print(f"series {i}: sum of squares {2 * res.cost:.7f}, {res.message}")
        print(f"  a {a:.4f} ± {errors[0]:.1e}, b_inv {b_inv:.4g} ± {errors[1]:.1e}, ", end="")
        print(f"c0 {c0:.4g} ± {errors[2]:.1e}")
        result["fits"].append(res)
    box = Bounds((0.01, -2, -0.5), (0.2, 2, 0.5))
    starts = {"n_starts": 20, "seed": 0, "maxiter": 500}
    for i in (0, 1):
        many = fb.optimize.multistart(residuals, box, args=(SERIES[i],), **starts)
        print(f"\nseries {i + 1} from 20 starts\n{many.summary()}")
        result["many"].append(many)
    return result


if __name__ == "__main__":
    main()
