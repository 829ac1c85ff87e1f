"""What is timed, by `fastbp bench` and by the benches of the repository: networks and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..fitting._fit import fit
from ..networks.network import Network


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

    def net(self, dtype: str) -> Network:
        """The network."""
        return Network.mlp(self.sizes, self.activation, self.output, dtype)

    def data(self, dtype: str, batches: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """X and y; random numbers, since what they mean does not change the work."""
        rng = np.random.default_rng(7)
        rows, n_out = self.batch * (batches or self.batches), self.sizes[-1]
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

    def options(self, epochs: int) -> dict[str, Any]:
        """The arguments of `fastbp.fit` for so many epochs."""
        options: dict[str, Any] = {"method": self.method, "loss": self.loss, "lr": self.lr}
        return options | {"batch_size": self.batch, "epochs": epochs}

    def fit(
        self, net: Network, params: np.ndarray, X: np.ndarray, y: np.ndarray, epochs: int
    ) -> np.ndarray:
        """The parameters after so many epochs of `fastbp.fit`, rows as stored."""
        return fit(net, X, y, params=params, shuffle=False, **self.options(epochs)).params


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

# Rows, n_in, n_out of one dense layer.
KERNELS = (
    (1, 8, 8),
    (32, 8, 8),
    (32, 32, 32),
    (64, 64, 64),
    (256, 128, 128),
    (1024, 512, 512),
)
