"""fastbp: backpropagation at the speed of the machine, for small networks on a CPU.

Kernels, networks and fitting methods with a C, a Numba and a NumPy backend behind one interface.
Public names are loaded at first use, so that ``import fastbp`` stays fast.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> module that defines it.
_EXPORTS = {
    "Activation": "activations",
    "Adagrad": "training.optimizers",
    "Adam": "training.optimizers",
    "AdamW": "training.optimizers",
    "BackendError": "_errors",
    "Dense": "network",
    "DivergenceError": "_errors",
    "FitResult": "_result",
    "GradCheck": "checks",
    "LM": "_lm",
    "MultistartResult": "optimize",
    "Network": "network",
    "NonFiniteError": "_errors",
    "Objective": "_objective",
    "RMSprop": "training.optimizers",
    "SGD": "training.optimizers",
    "Scaler": "_scaling",
    "ShapeError": "_errors",
    "activation": "activations",
    "available_backends": "backends",
    "celu": "activations",
    "check_grad": "checks",
    "check_vjp": "checks",
    "checkpoint": "io",
    "custom_loss": "losses",
    "dense_backward": "_kernels",
    "dense_forward": "_kernels",
    "elu": "activations",
    "fit": "_fit",
    "get_backend": "backends",
    "gradient_report": "checks",
    "huber": "losses",
    "leaky_relu": "activations",
    "load": "io",
    "margin_ranking": "losses",
    "multistart": "_multistart",
    "quantile": "losses",
    "relu": "activations",
    "save": "io",
    "set_backend": "backends",
    "show_config": "_config",
    "use_backend": "backends",
    "warmup": "_warmup",
}
_MODULES = {"jitted": "jitted", "optimize": "optimize", "schedules": "training.schedules"}

__all__ = [*_EXPORTS, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"fastbp.{_EXPORTS[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fastbp.{_MODULES[name]}")
    elif name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        try:
            value = metadata.version("fastbp")
        except metadata.PackageNotFoundError:
            value = "unknown (not installed: running from its source folder)"
    else:
        raise AttributeError(f"module 'fastbp' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
