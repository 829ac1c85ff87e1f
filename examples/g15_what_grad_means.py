"""What do x.grad, y.grad, z.grad mean for f = (x + y)·z at x = 4, y = -3, z = 5?

Question: after backward() every variable has a .grad. What does the number say, and why is the
gradient of x·x at 1 equal to 2 and not 1?

Answer: x.grad is how fast f grows with x while the others stay: df/dx = z = 5, df/dy = z = 5,
df/dz = x + y = 1. In x·x the variable is used twice; each use alone has derivative x, and a
variable's gradient is the sum over its uses: 2x.

Lesson: gradients of shared weights add up. f is a network of linear units here: x and y are its
inputs, added with weights 1 and 1, and z is the weight after them.
"""

import fastbp as fb


def main():
    net = fb.Network(2, fb.Dense(1, bias=False), fb.Dense(1, bias=False))
    f, pullback = net.vjp([1.0, 1.0, 5.0], [[4.0, -3.0]])  # weights 1 and 1, then z
    dparams, dinputs = pullback([[1.0]])
    (_, _), (dz, _) = net.unpack(dparams)
    x_grad, y_grad = dinputs[0].tolist()
    z_grad = dz.item()
    print(f"f = (x + y)·z = {f.item():g}")
    print(f"x.grad = {x_grad:g}, y.grad = {y_grad:g}, z.grad = {z_grad:g}")

    # x·x: an input of 1 goes through two layers whose single weight is the same x.
    twice = fb.Network(1, fb.Dense(1, bias=False), fb.Dense(1, bias=False))
    squares = {}
    for x in (1.0, 3.0):
        square, pullback = twice.vjp([x, x], [[1.0]])
        uses = pullback([[1.0]])[0]
        squares[x] = uses.sum()
        print(f"x·x = {square.item():g} at x = {x:g}; uses {uses.tolist()} add to {squares[x]:g}")
    return {"f": f.item(), "x": x_grad, "y": y_grad, "z": z_grad, "squares": squares}


if __name__ == "__main__":
    main()
