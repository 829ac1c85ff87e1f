"""The peers: other ways to train the same networks on one core, compared where they are installed.

All are optional: ``pip install '.[peers]'``. Each is a function of a workload, a type, data and
parameters to start from that returns ``run(epochs) -> parameters after so many epochs``. Data and
parameters are converted and cut into batches before, compilation is in the first call; neither is
timed. Whatever a library offers that is faster for these networks is taken:

- JAX scan: all steps of a call in one jitted function, a `lax.scan` over the batches of an epoch
  within a loop over the epochs, plain or unrolled by 8.
- JAX step: one jitted step, called from a Python loop.
- torch: `nn.Sequential`, autograd, the fused optimizers of `torch.optim`.
- torch.compile: the whole step, gradient and update, as one compiled function.
- Numba loops: scalar loops in jitted functions, as one writes them for a first network.

Least squares has others, with the same promises; their compiled functions stop at the goal:

- JAX LM: Levenberg-Marquardt in one jitted `lax.while_loop`, with Cholesky factors and the Jacobian
  written out, which is faster than `jax.vmap(jax.grad(...))`.
- optimistix: its Levenberg-Marquardt.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from workloads import LeastSquares

from fastbp.cli.workloads import Training

# One thread for everybody. XLA reads this when it is loaded.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"

Run = Callable[[int], Any]


@dataclass(frozen=True)
class Peer:
    """A way to train.

    Attributes
    ----------
    package : str
        What must be installed.
    module, function : str
        Where it stands here.
    program : str, optional
        What it needs beside the package.
    slow_to_compile : bool
        Left out of the workloads drawn at random.
    most_params : int
        Left out of larger networks, where a step would take seconds.
    """

    package: str
    module: str
    function: str
    program: str | None = None
    slow_to_compile: bool = False
    most_params: int = 10**9

    def missing(self) -> str | None:
        """What would have to be installed."""
        if importlib.util.find_spec(self.package) is None:
            return self.package
        if self.program is not None and shutil.which(self.program) is None:
            return self.program
        return None


PEERS = {
    "JAX scan": Peer("jax", "jax_training", "scan"),
    "JAX scan ×8": Peer("jax", "jax_training", "scan_by_8", slow_to_compile=True),
    "JAX step": Peer("jax", "jax_training", "step_by_step"),
    "torch": Peer("torch", "torch_training", "eager"),
    "torch.compile": Peer(
        "torch", "torch_training", "compiled", program="g++", slow_to_compile=True
    ),
    "Numba loops": Peer("numba", "numba_training", "loops", most_params=200_000),
}

# Of least squares: a function of a `workloads.LeastSquares` that returns ``run(params)``.
LEAST_SQUARES = {
    "JAX LM": Peer("jax", "jax_least_squares", "fit"),
    "optimistix": Peer("optimistix", "jax_least_squares", "optimistix_fit"),
}


def installed(peers: dict[str, Peer] = PEERS) -> list[str]:
    """The peers that can take part."""
    return [name for name, peer in peers.items() if peer.missing() is None]


def left_out() -> dict[str, str]:
    """All other peers, with what they would need."""
    every = PEERS | LEAST_SQUARES
    return {name: need for name, peer in every.items() if (need := peer.missing()) is not None}


def versions() -> dict[str, str]:
    """Of the packages that take part and are not fastbp's own."""
    every = PEERS | LEAST_SQUARES
    packages = {every[name].package for name in installed(every)} - {"numba"}
    return {package: importlib.metadata.version(package) for package in sorted(packages)}


def trainer(
    name: str, work: Training, dtype: str, X: np.ndarray, y: np.ndarray, params: np.ndarray
) -> Run:
    """The peer's ``run(epochs)``."""
    return _function(PEERS[name])(work, dtype, X, y, params)


def solver(name: str, work: LeastSquares) -> Callable[[np.ndarray], Any]:
    """The ``run(params)`` of a peer in least squares, which returns parameters."""
    return _function(LEAST_SQUARES[name])(work)


def _function(peer: Peer) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"peers.{peer.module}"), peer.function)
