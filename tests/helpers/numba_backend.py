"""What the tests of the Numba backend share: its compiled functions, calls, fresh processes."""

from __future__ import annotations

import importlib
import pkgutil
import platform
from pathlib import Path

import numpy as np

import fastbp as fb
from fastbp.training import optimizers
from helpers import processes

PACKAGE = Path(fb.__file__).resolve().parent
X86 = platform.machine().lower() in ("x86_64", "amd64")


def python(code, path=PACKAGE.parent, **variables):
    """What a fresh interpreter prints that finds fastbp at `path`."""
    variables = {"PYTHONPATH": path, "FASTBP_BACKEND": "numba"} | variables
    without = ("FASTBP_", "NUMBA_")
    # Python searches the current folder first.
    return processes.python(code, cwd=path, timeout=300, without=without, **variables)


def contents():
    """(name, value) of what the backend's files define and import."""
    from fastbp.backends import jit

    for _, place, _ in pkgutil.iter_modules(jit.__path__, jit.__name__ + "."):
        yield from vars(importlib.import_module(place)).items()


def functions():
    """Name -> what is compiled once per dtype: entries, what they call, formulas by their kind."""
    from fastbp.backends.jit.compiling import Compiled, Family

    found = {}
    for name, value in contents():
        if isinstance(value, Compiled):
            found[name] = value
        elif isinstance(value, Family):
            found |= {f"{name} {kind}": member for kind, member in value._members.items()}
    return found


METHODS = (*optimizers.METHODS, fb.RMSprop(momentum=0.9, centered=True))


def use_all(c, method, batch_size):
    """Every function of the contract, the sums over two parts."""
    Y, pullback = c.net.vjp(c.params, c.X)
    pullback(Y)
    c.net.forward(c.params, c.X)
    c.net.jvp(c.params, c.X, c.params)
    c.net.jacobian(c.params, c.X, threads=2)
    c.net.input_jacobian(c.params, c.X)
    obj = c.net.objective(c.X, c.y, c.loss, **c.terms)
    obj.value(c.params), obj.value_and_grad(c.params), obj.per_sample_grad(c.params)
    obj.hvp(c.params, c.params), obj.gnvp(c.params, c.params)
    many = np.resize(c.X, (300, c.net.n_in)), np.zeros((300, c.net.n_out))
    c.net.value_and_grad(c.params, *many, threads=2)
    c.net.normal_equations(c.params, *many, threads=2)
    act, W = c.net.layers[0].act, c.X.T @ c.X
    Y, cache = fb.dense_forward(c.X, W, W[0] if c.terms else None, act)
    fb.dense_backward(Y, cache)
    act.f(c.X), act.df(c.X), act.d2f(c.X)
    options = {"method": method, "epochs": 2, "seed": 0, "on_divergence": "return"}
    if "sample_weight" in c.terms:
        more = {"validation": (c.X, c.y), "patience": 2, "clip_norm": 1.0, "average": True}
    else:
        more = {"shuffle": False}
    fb.fit(
        c.net, c.X, c.y, loss=c.loss, params=c.params, batch_size=batch_size, goal=0.0,
        **options, **more, **c.terms,
    )  # fmt: skip
    if c.net.plan.dropout is None:
        fb.fit(c.net, *many, method="lm", epochs=2, params=c.params, threads=2)
    for validation in (many, None):
        fb.fit(c.net, *many, batch_size=None, threads=2, validation=validation, **options)


TANH = """
import numpy as np, fastbp as fb
print(*fb.activation("leaky_relu").f([-1.0, 2.0]))
from fastbp.backends.jit import kernels
(dispatcher,) = kernels.activation.dispatchers.values()
print(sum(dispatcher.stats.cache_hits.values()), sum(dispatcher.stats.cache_misses.values()))
"""
RIGHT = ["-0.01", "2.0"]
