"""The workloads: what is trained, on which data, how; one row each."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import fastbp as fb
from fastbp.cli.workloads import Training

DTYPES = ("float32", "float64")
HAND = "by hand"
CONTESTANTS = (*fb.available_backends(), HAND)

# The methods' constants, fastbp's and PyTorch's defaults, and how many moments each keeps.
ADAM_BETAS, ADAM_EPS, MOMENTUM = (0.9, 0.999), 1e-8, 0.9
N_MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2}


# So that nothing is tuned for the table: so many more in each run, by a seed that it tells.
N_DRAWN = 3
SEED = int(os.environ.get("FASTBP_BENCH_SEED") or secrets.randbelow(10**6))
RATES = {"sgd": 0.05, "momentum": 0.01, "adam": 1e-3}


def draw(rng: np.random.Generator) -> Training:
    """A workload of any shape; sizes and batch evenly on a logarithmic scale."""
    sizes = np.exp2(rng.uniform(0, 8, rng.integers(3, 6))).round().astype(int).tolist()
    activation, method = rng.choice(("relu", "tanh", "sigmoid")), str(rng.choice(list(RATES)))
    classes = sizes[-1] > 1 and rng.random() < 0.5
    loss, batch = "softmax_ce" if classes else "mse", round(2 ** rng.uniform(0, 8))
    return Training(
        tuple(sizes), str(activation), "linear", loss, method, RATES[method], batch, batches=8
    )


_rng = np.random.default_rng(SEED)
DRAWN = {f"R{i}": draw(_rng) for i in range(1, N_DRAWN + 1)}


@dataclass(frozen=True)
class LeastSquares:
    """A network of one tanh layer and one output, data, and the sum of squares to be reached.

    Attributes
    ----------
    sizes : tuple of int
        (n_in, hidden, 1).
    raw : callable
        X (n, n_in) and y (n, 1) before they are standardised.
    goal : float
        Of Σ(Y - y)².
    """

    sizes: tuple[int, int, int]
    raw: Callable[[], tuple[np.ndarray, np.ndarray]]
    goal: float

    @property
    def title(self) -> str:
        """Such as "1-10-1 tanh, SSE 0.01"."""
        return f"{'-'.join(map(str, self.sizes))} tanh, SSE {self.goal:g}"

    def net(self) -> fb.Network:
        """The network, in float64."""
        return fb.Network.mlp(self.sizes, "tanh")

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """X and y with mean 0 and standard deviation 1."""
        X, y = self.raw()
        return (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std()


def wave() -> tuple[np.ndarray, np.ndarray]:
    """200 points of x·sin x."""
    x = np.linspace(-2 * np.pi, 2 * np.pi, 200)[:, None]
    return x, x * np.sin(x)


def surface() -> tuple[np.ndarray, np.ndarray]:
    """2,000 rows of 10 sin(πx₀x₁) + 20(x₂ - ½)² + 10x₃."""
    X = np.random.default_rng(0).random((2000, 4))
    y = 10 * np.sin(np.pi * X[:, 0] * X[:, 1]) + 20 * (X[:, 2] - 0.5) ** 2 + 10 * X[:, 3]
    return X, y[:, None]


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """442 patients, scikit-learn's copy."""
    from sklearn.datasets import load_diabetes

    X, y = load_diabetes(return_X_y=True)
    return X, y[:, None]


LEAST_SQUARES = {
    "L1": LeastSquares((1, 10, 1), wave, 0.01),
    "L2": LeastSquares((4, 20, 1), surface, 0.2),
    "L3": LeastSquares((10, 8, 1), diabetes, 160.0),
}
# Seeds of the weights to start from: the first five, from all of which the Levenberg-Marquardt
# loop in NumPy reaches all goals.
STARTS = (0, 1, 2, 3, 4)

KERNEL_ACTIVATIONS = ("relu", "tanh")

# What FASTBP_BENCH_QUICK=1 leaves: each kind of work once, nothing that takes long.
QUICK_TRAINING = ("T1", "T3", "T4", "T6")
QUICK_KERNELS = ((1, 8, 8), (32, 32, 32), (256, 128, 128))
QUICK_ACTIVATIONS = ("relu",)
QUICK_STARTS = STARTS[:1]


def problem(sizes: tuple[int, ...], activation: str, rows: int, dtype: str):
    net = fb.Network.mlp(sizes, activation, dtype=dtype)
    rng = np.random.default_rng(5)
    X = rng.standard_normal((rows, sizes[0])).astype(dtype)
    y = rng.standard_normal((rows, sizes[-1])).astype(dtype)
    return net, net.init(seed=2), X, y
