"""How does the backward method of a ReLU layer look?

Question: forward is max(x, 0). I wrote backward as "input minus derivative of the upstream
gradient", and the network does not learn. What should it return?

Answer: dX = dY where x > 0, else 0. The derivative is taken of relu at the layer's *input*, and it
multiplies the upstream gradient; nothing is subtracted, the update is the optimizer's business.

Lesson: backward is a vector-Jacobian product: linear in dY, and checkable on its own without any
network around it. `fb.check_vjp` does that for any layer.
"""

import numpy as np

import fastbp as fb


def relu(X):
    return np.maximum(X, 0)


def backward(dY, X):
    return np.where(X > 0, dY, 0)


def wrong_backward(dY, X):
    return X - (dY > 0)


def main():
    X = np.array([[1.5, -2.0, 0.5], [-0.5, 3.0, -1.0]])
    dY = np.array([[10.0, 20.0, 30.0], [-40.0, -50.0, 60.0]])
    # A dense layer with W = I and b = 0 is the activation alone.
    Y, cache = fb.dense_forward(X, np.eye(3), np.zeros(3), "relu")
    dX, dW, db = fb.dense_backward(dY, cache)
    for name, array in {"X": X, "Y": Y, "dY": dY, "dX": dX, "by hand": backward(dY, X)}.items():
        print(f"{name:8}{array.tolist()}")

    right = fb.check_vjp(relu, backward, X)
    wrong = fb.check_vjp(relu, wrong_backward, X)
    print(f"\nbackward: {right}\nthe asker's backward: {wrong}")
    return {"X": X, "dY": dY, "Y": Y, "dX": dX, "dW": dW, "db": db, "right": right, "wrong": wrong}


if __name__ == "__main__":
    main()
