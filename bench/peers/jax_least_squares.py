"""Least squares in JAX and in optimistix; see peers/__init__.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from workloads import LeastSquares

from peers.handwritten import FIRST_DAMPING, LARGEST_DAMPING

# Of solutions, after which a fit gives up.
MOST_STEPS = 5000


@cache
def fit(work: LeastSquares) -> Callable[[np.ndarray], Any]:
    """The loop of `handwritten.levenberg_marquardt` in one jitted function of the start."""
    residuals, jacobian = functions(work, written_out=True)
    identity = jnp.eye(work.net().n_params)

    def equations(params, r):
        J = jacobian(params)
        return J.T @ J, J.T @ r

    def unfinished(state):
        _, _, sse, _, _, mu, steps = state
        return (sse > work.goal) & (mu <= LARGEST_DAMPING) & (steps < MOST_STEPS)

    def step(state):
        params, r, sse, A, g, mu, steps = state
        trial = params - jax.scipy.linalg.solve(A + mu * identity, g, assume_a="pos")
        r_trial = residuals(trial)
        sse_trial = r_trial @ r_trial
        better = sse_trial < sse
        params, r = jnp.where(better, trial, params), jnp.where(better, r_trial, r)
        again = better & (sse_trial > work.goal)
        A, g = jax.lax.cond(again, lambda: equations(trial, r_trial), lambda: (A, g))
        mu = jnp.where(better, mu / 10, mu * 10)
        return params, r, jnp.where(better, sse_trial, sse), A, g, mu, steps + 1

    @jax.jit
    def run(params):
        r = residuals(params)
        state = (params, r, r @ r, *equations(params, r), FIRST_DAMPING, 0)
        return jax.lax.while_loop(unfinished, step, state)[0]

    return lambda params: jax.block_until_ready(run(params))


@cache
def optimistix_fit(work: LeastSquares) -> Callable[[np.ndarray], Any]:
    """Its Levenberg-Marquardt, ended by the goal, the whole in one jitted function."""
    import optimistix

    class ToGoal(optimistix.LevenbergMarquardt):
        def terminate(self, fn, y, args, options, state, tags):
            _, result = super().terminate(fn, y, args, options, state, tags)
            r = state.f_info.residual
            return (r @ r <= work.goal) & (state.num_accepted_steps > 0), result

    residuals, _ = functions(work, written_out=False)
    solver = ToGoal(rtol=0.0, atol=0.0)  # its QR and forward derivatives are its fastest here

    @jax.jit
    def run(params):
        return optimistix.least_squares(
            lambda params, _: residuals(params), solver, params, max_steps=MOST_STEPS, throw=False
        ).value

    return lambda params: jax.block_until_ready(run(params))


def call(work: LeastSquares, name: str, written_out: bool) -> Callable[[np.ndarray], Any]:
    """A jitted "jacobian" (n, n_params) or "normal_equations" (JᵀJ, Jᵀr, rᵀr)."""
    residuals, jacobian = functions(work, written_out)

    def normal_equations(params):
        r, J = residuals(params), jacobian(params)
        return J.T @ J, J.T @ r, r @ r

    run = jax.jit({"jacobian": jacobian, "normal_equations": normal_equations}[name])
    return lambda params: jax.block_until_ready(run(params))


def functions(work: LeastSquares, written_out: bool) -> tuple[Callable, Callable]:
    """Residuals (n,) and their Jacobian (n, n_params), by `jax.grad` or as formulas."""
    jax.config.update("jax_enable_x64", True)
    n_in, width, _ = work.sizes
    X, y = map(jnp.array, work.data())

    def layers(params):
        W1, rest = params[: n_in * width].reshape(n_in, width), params[n_in * width :]
        return W1, rest[:width], rest[width : 2 * width], rest[-1]

    def output(params, X):
        W1, b1, w2, b2 = layers(params)
        return jnp.tanh(X @ W1 + b1) @ w2 + b2

    def residuals(params):
        return output(params, X) - y[:, 0]

    def formulas(params):
        W1, b1, w2, _ = layers(params)
        H = jnp.tanh(X @ W1 + b1)
        D = (1 - H * H) * w2
        J_W1 = (X[:, :, None] * D[:, None]).reshape(len(X), -1)
        return jnp.concatenate([J_W1, D, H, jnp.ones((len(X), 1))], axis=1)

    def automatic(params):
        return jax.vmap(jax.grad(output), (None, 0))(params, X)

    return residuals, formulas if written_out else automatic
