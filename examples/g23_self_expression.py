"""How do I write each point as a combination of the others, with a penalty on whole columns?

Question: I minimise ‖X - XC‖² + λ Σ_i ‖c_i‖₂ over C with a zero diagonal, the points being the
columns of X. It should tell apart points from different subspaces. My diagonal creeps away from 0.

Answer: C is the weight matrix of a linear layer that gets X and should give X. Its mask takes the
diagonal away, and `group` penalises the columns. The diagonal is then exactly 0. For orthogonal
subspaces so is, up to rounding, all that connects one with another, and it is the penalty's doing:
without it that part of the start just stays, as X does not see it. For subspaces at an angle it
does not vanish: it grows with λ, for a longer combination costs more than a wrong one.

Lesson: a constraint "this entry is 0" is a mask, not a large penalty. And what the data do not
determine is decided by the penalty, or else by the start.
"""

import numpy as np

import fastbp as fb

POINTS = 8  # on each of two planes
net = fb.Network(2 * POINTS, fb.Dense(2 * POINTS, bias=False, mask=1 - np.eye(2 * POINTS)))
ACROSS = np.kron([[0, 1], [1, 0]], np.ones((POINTS, POINTS))) == 1


def points(directions, rng):
    """Unit vectors (6, 16), columns: eight from the plane of each pair of directions (6, 4)."""
    X = np.hstack([plane @ rng.standard_normal((2, POINTS)) for plane in np.hsplit(directions, 2)])
    return X / np.linalg.norm(X, axis=0)


def solve(X, penalty):
    start = net.init(seed=0)
    lr = 0.5 * net.max_stable_rate(start, X, X, "sse", group=penalty)
    options = {"method": "sgd", "loss": "sse", "batch_size": None, "epochs": 3000}
    return net.unpack(fb.fit(net, X, X, group=penalty, lr=lr, params=start, **options).params)[0][0]


def main():
    rng = np.random.default_rng(0)
    random = rng.standard_normal((6, 4))
    orthogonal = np.linalg.qr(random)[0]
    data = {"orthogonal": points(orthogonal, rng), "random": points(random, rng)}
    result = {"data": data, "C": {}, "ratio": {}}
    for name, penalties in (("orthogonal", (0, 0.5)), ("random", (0.25, 0.5, 1.0))):
        for penalty in penalties:
            C = solve(data[name], penalty)
            ratio = np.linalg.norm(C[ACROSS]) / np.linalg.norm(C[~ACROSS])
            result["C"][name, penalty], result["ratio"][name, penalty] = C, ratio
            print(f"{name} planes, λ = {penalty:g}: largest on the diagonal", end=" ")
            print(f"{np.abs(np.diag(C)).max():g}, across/within {ratio:.1e}")
    return result


if __name__ == "__main__":
    main()
