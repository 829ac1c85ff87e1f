"""fastbp: backpropagation at the speed of the machine, for small networks on a CPU.

Kernels, networks and fitting methods with a C, a Numba and a NumPy backend behind one interface.
Public names are loaded at first use, so that ``import fastbp`` stays fast.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> module that defines it.
_EXPORTS = {
    "Activation": "networks.activations",
    "Adagrad": "training.optimizers",
    "Adam": "training.optimizers",
    "AdamW": "training.optimizers",
    "BackendError": "common.errors",
    "Dense": "networks.dense",
    "DivergenceError": "common.errors",
    "FitResult": "fitting.result",
    "GradCheck": "checks",
    "LM": "fitting.lm",
    "MultistartResult": "optimize",
    "Network": "networks.network",
    "NonFiniteError": "common.errors",
    "Objective": "networks.objective",
    "RMSprop": "training.optimizers",
    "SGD": "training.optimizers",
    "Scaler": "networks.scaling",
    "ShapeError": "common.errors",
    "TraceError": "common.errors",
    "activation": "networks.activations",
    "available_backends": "backends",
    "celu": "networks.activations",
    "check_grad": "checks",
    "check_vjp": "checks",
    "checkpoint": "io",
    "custom_loss": "maths.losses",
    "dense_backward": "networks.single_layers",
    "dense_forward": "networks.single_layers",
    "elu": "networks.activations",
    "fit": "fitting._fit",
    "get_backend": "backends",
    "gradient_report": "checks",
    "huber": "maths.losses",
    "leaky_relu": "networks.activations",
    "load": "io",
    "margin_ranking": "maths.losses",
    "multistart": "fitting._multistart",
    "quantile": "maths.losses",
    "relu": "networks.activations",
    "save": "io",
    "set_backend": "backends",
    "show_config": "backends.configuration",
    "use_backend": "backends",
    "warmup": "backends.warm_up",
}
_MODULES = {"jitted": "jitted", "optimize": "optimize", "schedules": "training.schedules"}

__all__ = [*_EXPORTS, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"fastbp.{_EXPORTS[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fastbp.{_MODULES[name]}")
    elif name == "__version__":
        value = importlib.import_module("fastbp.common.release").version()
    else:
        raise AttributeError(f"module 'fastbp' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
