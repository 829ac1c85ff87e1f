"""Can a simulation stay jitted that calls a network at every step?

Question: a small network, fitted to a pendulum's accelerations, is what I integrate. The loop of a
million steps took no time under `numba.njit`; now the calls of the network take all of it.

Answer: `fastbp.jitted.forward` is called from the jitted loop. The network is an argument of the
function, `out` saves a new array per step, and the call itself costs about 0.1 µs.

Lesson: what a small network costs is the way to it. The numbers are those of `net.forward`.
"""

import time

import numpy as np
from numba import njit
from scipy.special import ellipk

import fastbp as fb
from fastbp import jitted

net = fb.Network.mlp([1, 12, 1])  # angle -> acceleration


@njit
def swing(net, params, angle, dt, steps):
    """Leapfrog from rest: the mean period, the range of the energy, the last angle."""
    x, a, speed = np.full((1, 1), angle), np.empty((1, 1)), 0.0
    jitted.forward(net, params, x, a)
    least, most, crossings, first, last = np.inf, -np.inf, 0, 0.0, 0.0
    for step in range(steps):
        speed += 0.5 * dt * a[0, 0]
        before = x[0, 0]
        x[0, 0] += dt * speed
        jitted.forward(net, params, x, a)
        speed += 0.5 * dt * a[0, 0]
        if before < 0.0 <= x[0, 0]:
            last = (step - before / (x[0, 0] - before)) * dt
            first = last if crossings == 0 else first
            crossings += 1
        energy = 0.5 * speed**2 - np.cos(x[0, 0])
        least, most = min(least, energy), max(most, energy)
    return (last - first) / max(crossings - 1, 1), most - least, x[0, 0]


def main(steps=1_000_000, few=10_000, angle=2.0, dt=0.005):
    angles = np.linspace(-np.pi, np.pi, 200)[:, None]
    params = fb.fit(net, angles, -np.sin(angles), method="lm", epochs=300, seed=0).params
    swing(net, params, angle, dt, 1)  # compiles
    start = time.perf_counter()
    period, spread, _ = result = swing(net, params, angle, dt, steps)
    jitted_step, start = (time.perf_counter() - start) / steps, time.perf_counter()
    swing.py_func(net, params, angle, dt, few)
    step, exact = (time.perf_counter() - start) / few, 4 * ellipk(np.sin(angle / 2) ** 2)
    print(f"period {period:.5f} (exact law: {exact:.5f}), energy within {spread:.1e}")
    print(f"a step takes {1e6 * jitted_step:.2f} µs in the jitted loop, {1e6 * step:.2f} in Python")
    return params, result


if __name__ == "__main__":
    main()
