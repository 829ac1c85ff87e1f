"""The workloads: what is trained, on which data, how; one row each."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastbp as fb

DTYPES = ("float32", "float64")
HAND = "by hand"
CONTESTANTS = (*fb.available_backends(), HAND)

# The methods' constants, fastbp's and PyTorch's defaults, and how many moments each keeps.
ADAM_BETAS, ADAM_EPS, MOMENTUM = (0.9, 0.999), 1e-8, 0.9
N_MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2}


@dataclass(frozen=True)
class Training:
    """A network, its data and how it is trained.

    Attributes
    ----------
    sizes : tuple of int
        [n_in, hidden..., n_out].
    activation, output : str
        Of the hidden layers and of the last.
    loss, method : str
        As `fastbp.fit` takes them.
    lr : float
        Small enough for any number of epochs; the time of a step does not depend on it.
    batch, batches : int
        Rows of a step, steps of an epoch.
    """

    sizes: tuple[int, ...]
    activation: str
    output: str
    loss: str
    method: str
    lr: float
    batch: int
    batches: int

    @property
    def activations(self) -> list[str]:
        """Of each layer."""
        return [self.activation] * (len(self.sizes) - 2) + [self.output]

    @property
    def title(self) -> str:
        """Such as "2-30-1 relu, mse, batch 4, sgd"."""
        sizes = "-".join(map(str, self.sizes))
        return f"{sizes} {self.activation}, {self.loss}, batch {self.batch}, {self.method}"

    def net(self, dtype: str) -> fb.Network:
        """The network."""
        return fb.Network.mlp(self.sizes, self.activation, self.output, dtype)

    def data(self, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """X and y; random numbers, since what they mean does not change the work."""
        rng = np.random.default_rng(7)
        rows, n_out = self.batch * self.batches, self.sizes[-1]
        X = rng.standard_normal((rows, self.sizes[0])).astype(dtype)
        if self.loss == "softmax_ce":
            return X, rng.integers(n_out, size=rows)
        return X, rng.uniform(0, 1, (rows, n_out)).astype(dtype)

    def cut(self, X: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The batches for the peers; labels as rows of zeros and a one, which is faster in all."""
        if self.loss == "softmax_ce":
            y = np.eye(self.sizes[-1], dtype=X.dtype)[y]
        starts = range(0, len(X), self.batch)
        return [(X[i : i + self.batch], y[i : i + self.batch]) for i in starts]

    def fit(
        self, net: fb.Network, params: np.ndarray, X: np.ndarray, y: np.ndarray, epochs: int
    ) -> np.ndarray:
        """The parameters after so many epochs of `fastbp.fit`, rows as stored."""
        options: dict[str, Any] = {"batch_size": self.batch, "shuffle": False, "lr": self.lr}
        options |= {"method": self.method, "loss": self.loss, "epochs": epochs}
        return fb.fit(net, X, y, params=params, **options).params


# From the network of a first lesson to one where every NumPy call does enough to be worth it.
TRAINING = {
    "T1": Training((3, 3, 1), "sigmoid", "sigmoid", "mse", "sgd", 0.5, 4, 1),
    "T2": Training((2, 30, 1), "relu", "linear", "mse", "sgd", 0.01, 4, 16),
    "T3": Training((1, 40, 40, 1), "relu", "linear", "mse", "adam", 1e-3, 32, 8),
    "T4": Training((64, 32, 10), "relu", "linear", "softmax_ce", "adam", 1e-3, 32, 56),
    "T5": Training((784, 128, 10), "relu", "linear", "softmax_ce", "momentum", 1e-3, 128, 8),
    "T6": Training((24, 64, 64, 8), "tanh", "linear", "mse", "adam", 1e-3, 256, 8),
    "T7": Training((512, 1024, 1024, 10), "relu", "linear", "softmax_ce", "sgd", 1e-3, 256, 2),
}

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

# Rows, n_in, n_out of one dense layer.
KERNELS = (
    (1, 8, 8),
    (32, 8, 8),
    (32, 32, 32),
    (64, 64, 64),
    (256, 128, 128),
    (1024, 512, 512),
)
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
