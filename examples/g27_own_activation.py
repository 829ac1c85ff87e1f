"""How do I put my own function into the middle: y = a + b·P3(c + d·x)?

Question: I fit sin x on [-π, π] with the Legendre polynomial P3(t) = ½(5t³ - 3t) between two lines,
and wrote a forward and a backward method for P3. Is there a shorter way?

Answer: it is a 1-1-1 network whose hidden unit has P3 as its activation. `fb.Activation` takes the
function and, where it should not follow from the code, its derivative, checks one against the other
at once, and every backend runs it: the compiled ones compile it once, NumPy calls it as it is. The
loop is `fb.fit`, with the same numbers on all of them.

Lesson: a "custom autograd function" of one number is two lines of mathematics. The four numbers of
the formula are the network's weights and biases.
"""

import numpy as np

import fastbp as fb

P3 = fb.Activation("P3", lambda t: 0.5 * (5 * t**3 - 3 * t), lambda t: 1.5 * (5 * t**2 - 1))
net = fb.Network(1, fb.Dense(1, P3), fb.Dense(1), dtype="float32")
x = np.linspace(-np.pi, np.pi, 2000, dtype="float32").reshape(-1, 1)
y = np.sin(x)


def main(steps=2000, backends=None):
    start = net.pack([([[0.3]], [0.0]), ([[-1.0]], [0.0])])  # d, c; b, a
    options = {"method": "sgd", "loss": "sse", "lr": 5e-6, "batch_size": None, "epochs": steps}
    result = {}
    for backend in backends or fb.available_backends():
        res = result[backend] = fb.fit(net, x, y, params=start, backend=backend, **options)
        print(f"{backend}:")
        for step in range(100, steps + 1, 100):
            print(f"{step:5} {res.history['loss'][step - 1]:.6f}")
        d, c, b, a = res.params.tolist()
        print(f"y = {a:.6f} {b:+.6f}·P3({c:.6f} {d:+.6f}·x)")
    return result


if __name__ == "__main__":
    main()
