"""What is the `gradient` argument of backward?

Question: backward() on a vector z wants an argument. What does z.backward([0.1, 1.0, 0.0001]) do?

Answer: it computes vᵀJ, the vector-Jacobian product: row k of the Jacobian J is the derivative of
output k, and v says how much of each row to take. With z = 2x, v = [1, 0, 0, 0] picks the first
output's derivative and [1, 1, 1, 1] adds all of them up. If a loss L comes after z, then v = dL/dz
and the product is dL/dx: the chain rule.

Lesson: reverse mode never forms J. One pullback costs about one backward pass, however many outputs
there are; the whole J takes one per output.
"""

import numpy as np

import fastbp as fb


def main():
    double = fb.Network(4, fb.Dense(4, bias=False))
    _, pullback = double.vjp(double.pack([2 * np.eye(4)]), [[1.0, 2.0, 3.0, 4.0]])
    products = {}
    for v in ([1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]):
        products[tuple(v)] = pullback([v])[1][0]
        print(f"z = 2x, v = {v}: dx = {products[tuple(v)]}")

    net = fb.Network.mlp([4, 5, 3], activation="tanh")
    params, x = net.init(seed=0), np.array([[0.3, -1.2, 0.8, 2.0]])
    v = np.array([0.1, 1.0, 0.0001])
    Y, pullback = net.vjp(params, x)
    product = pullback([v])[1][0]
    J = net.input_jacobian(params, x)[0]  # (3 outputs, 4 inputs)
    print(f"\n3 outputs {Y[0].round(4)} with the Jacobian\n{J.round(4)}")
    print(f"v = {v.tolist()}\n  by one pullback                 {product}")
    print(f"  0.1·J[0] + 1·J[1] + 0.0001·J[2] {v @ J}")
    return {"products": products, "params": params, "x": x, "v": v, "vjp": product, "J": J}


if __name__ == "__main__":
    main()
