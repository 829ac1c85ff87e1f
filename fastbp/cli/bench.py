"""The command `fastbp bench`: times the backends and the same work written by hand in NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from .. import backends
from ..common.timing import BY_HAND, compare, one_blas_thread, table_of
from ..fitting._fit import fit
from ..networks.network import Network
from ..networks.single_layers import dense_backward, dense_forward
from .workloads import TRAINING

DTYPES = {"f64": "float64", "f32": "float32"}
LAYERS = ((1, 8, 8), (32, 16, 16), (32, 64, 32), (64, 64, 64), (256, 128, 128))  # n, n_in, n_out
# The workloads of `workloads.TRAINING`, with the batches of an epoch and the epochs of a timed run.
RUNS = {
    "T1": (100, 10),
    "T2": (100, 10),
    "T3": (20, 20),
    "T4": (20, 20),
    "T5": (4, 4),
    "T6": (4, 10),
}
# In place where that is faster; slopes from the layer's output.
ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "relu": (lambda Z: np.maximum(Z, 0, out=Z), lambda Y: Y > 0),
    "tanh": (lambda Z: np.tanh(Z, out=Z), lambda Y: 1 - Y * Y),
    "sigmoid": (lambda Z: 1 / (1 + np.exp(-Z)), lambda Y: Y * (1 - Y)),
    "linear": (lambda Z: Z, np.ones_like),
}


def run(quick: bool = False, as_json: bool = False) -> None:
    """Time all cases; print tables, or JSON with microseconds by name. `quick` takes less time."""
    rows, (one_thread, threads) = [], one_blas_thread()
    with one_thread:
        for what, case, dtype, steps, calls in cases(backends.available_backends(), quick):
            _, _, best = compare(calls, 0.02 if quick else 1.0)
            us = {name: 1e6 * seconds / steps for name, seconds in best.items()}
            rows.append({"what": what, "case": case, "type": dtype, "us": us})
    if as_json:
        print(json.dumps({"threads": threads, "rows": rows}, indent=1))
    else:
        _print(rows, threads)


def cases(names: tuple[str, ...], quick: bool) -> Iterator[tuple[Any, ...]]:
    """The cases to time: kind, case, type, steps of one call, calls by name of the backend."""
    rng = np.random.default_rng(0)
    for n, n_in, n_out in LAYERS[: 2 if quick else None]:
        for short, dtype in DTYPES.items():
            shapes = ((n, n_in), (n_in, n_out), (n_out,), (n, n_out))
            arrays = tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)
            calls: dict[str, Callable[[], Any]] = {BY_HAND: partial(dense_by_hand, arrays)}
            calls |= {name: partial(dense, arrays, name) for name in names}
            yield "relu layer, forward + backward", f"{n}×{n_in}×{n_out}", short, 1, calls
    for name, (batches, epochs) in list(RUNS.items())[: 4 if quick else None]:
        training = TRAINING[name]
        sizes = "-".join(map(str, training.sizes))
        title = f"{sizes} {training.activation} {training.method} {training.batch}"
        for short, dtype in DTYPES.items():
            task = training.net(dtype), *training.data(dtype, batches)
            options = training.options(1 if quick else epochs)
            calls = {BY_HAND: partial(train_by_hand, *task, **options)}
            # The work of `fit` before and after the steps counts too.
            calls |= {n: partial(fit, *task, seed=0, backend=n, **options) for n in names}
            yield "training step", title, short, options["epochs"] * batches, calls


def dense(arrays: tuple[np.ndarray, ...], backend: str) -> Any:
    """One relu layer forward and backward in fastbp; arrays are X, W, b, dY."""
    X, W, b, dY = arrays
    _, cache = dense_forward(X, W, b, "relu", backend=backend)
    return dense_backward(dY, cache)


def dense_by_hand(arrays: tuple[np.ndarray, ...]) -> Any:
    """The same layer in NumPy; arrays are X, W, b, dY."""
    X, W, b, dY = arrays
    Y = X @ W
    Y += b
    np.maximum(Y, 0, out=Y)
    dZ = dY * (Y > 0)
    return dZ @ W.T, X.T @ dZ, dZ.sum(axis=0)


def train_by_hand(
    net: Network, X: np.ndarray, y: np.ndarray, loss: str, method: str, lr: float,
    batch_size: int, epochs: int,
) -> np.ndarray:  # fmt: skip
    """`fit` in NumPy: flat parameters, results in place, rows gathered once per epoch."""
    init_seed, order_seed, _ = np.random.SeedSequence(0).spawn(3)
    p, rng = net.init(init_seed), np.random.default_rng(order_seed)
    g, m, s = np.zeros((3, len(p)), p.dtype)
    layers, gradients = net.unpack(p), net.unpack(g)
    acts = [ACTIVATIONS[layer.act.name] for layer in net.layers]
    rows, step, last = np.arange(batch_size), 0, len(layers) - 1
    for _ in range(epochs):
        order = rng.permutation(len(X))
        X_epoch, y_epoch = X[order], y[order]
        for start in range(0, len(X), batch_size):
            A, target = [X_epoch[start : start + batch_size]], y_epoch[start : start + batch_size]
            for (W, b), (act, _) in zip(layers, acts, strict=True):
                Z = A[-1] @ W
                Z += b
                A.append(act(Z))
            if loss == "softmax_ce":
                dZ = A[-1] - A[-1].max(axis=1, keepdims=True)
                np.exp(dZ, out=dZ)
                dZ /= dZ.sum(axis=1, keepdims=True)
                dZ[rows, target] -= 1
                dZ /= batch_size
            else:
                dZ = A[-1] - target
                dZ *= 2 / dZ.size
                if net.layers[-1].act.name != "linear":
                    dZ *= acts[-1][1](A[-1])
            for k in range(last, -1, -1):
                np.matmul(A[k].T, dZ, out=gradients[k][0])
                dZ.sum(axis=0, out=gradients[k][1])
                if k > 0:
                    dZ = dZ @ layers[k][0].T
                    dZ *= acts[k - 1][1](A[k])
            step += 1
            if method == "sgd":
                p -= lr * g
            elif method == "momentum":
                m *= 0.9
                m += g
                p -= lr * m
            else:
                m += 0.1 * (g - m)
                s += 0.001 * (g * g - s)
                root = (1 - 0.999**step) ** 0.5
                p -= lr * root / (1 - 0.9**step) * m / (np.sqrt(s) + 1e-8 * root)
    return p


def _print(rows: list[dict[str, Any]], threads: str) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for what in dict.fromkeys(row["what"] for row in rows):
        table = table_of("", "type", *rows[0]["us"])
        for row in rows:
            if row["what"] == what:
                hand, *others = row["us"].values()
                cells = [f"{_number(us)} ×{hand / us:.2g}{' !'[us > hand]}" for us in others]
                table.add_row(row["case"], row["type"], _number(hand), *cells)
        console.print(f"\n{what}: µs, and how many times as fast as by hand", style="bold")
        console.print(table)
    console.print(
        f"! is slower than NumPy by hand. Least of several runs taken in turns. {threads}"
    )


def _number(us: float) -> str:
    return f"{us:,.0f}" if us >= 100 else f"{us:.3g}"
