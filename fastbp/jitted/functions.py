"""Those functions of `fastbp.jitted` that need Numba: in Python, and declared to Numba.

In jitted code they run the machine code of the Numba backend; called from Python they forward to
the public functions with ``backend="numba"``.

A network or an objective is an argument of the function that Python calls, since Numba would freeze
a global variable. Arrays have the network's dtype. Another one, or another number of dimensions, is
Numba's ``TypingError`` when users' code is compiled; what does not fit when it runs raises
`fastbp.ShapeError` or `ValueError`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, overload_attribute, typeof_impl

from .. import backends
from ..backends.jit.compiling import USERS_OPTIONS, real_type
from ..backends.jit.numba_internals import Purpose, TypingError
from ..common.errors import ShapeError
from ..maths.losses import Loss
from ..networks import single_layers
from ..networks.activations import Activation
from ..networks.network import Network
from ..networks.objective import Objective
from . import handles, overloads

__all__ = ["dense_backward", "dense_forward", "forward", "jacobian", "value_and_grad"]

# Networks.


def forward(net: Network, params: Any, X: Any, out: Any = None) -> np.ndarray:
    """The network's output, as `Network.forward`.

    Parameters
    ----------
    net : Network
    params : array (n_params,)
    X : array (n, n_in)
    out : array (n, n_out), optional
        Where to put the output, C-contiguous, apart from X and params; a new array by default.

    Returns
    -------
    array (n, n_out)

    Raises
    ------
    ShapeError
        If a shape does not fit.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> from numba import njit
    >>> from fastbp import jitted
    >>> @njit
    ... def iterate(net, params, x, steps):
    ...     for _ in range(steps):
    ...         x = jitted.forward(net, params, x)
    ...     return x
    >>> net = fb.Network(1, fb.Dense(1))  # x/2 + 1
    >>> iterate(net, np.array([0.5, 1.0]), np.array([[10.0]]), 50)
    array([[2.]])
    """
    return _to(out, net.forward(params, X, backend="numba"))


def value_and_grad(
    net: Network | Objective,
    params: Any,
    X: Any = None,
    y: Any = None,
    loss: str | Loss = "mse",
    l2: float = 0.0,
    l1: float = 0.0,
    group: float = 0.0,
    out: Any = None,
) -> tuple[float, np.ndarray]:
    """Loss and gradient, as `Network.value_and_grad` or, of bound data, `Objective.value_and_grad`.

    Parameters
    ----------
    net : Network or Objective
        With an objective, X to group are left out: it has its own, sample weights among them.
    params : array (n_params,)
    X : array (n, n_in), n >= 1
    y : array (n, n_out), or (n,) for one output or integer labels, or None
    loss : str or Loss, default "mse"
        A name as written in the call, or what `fastbp.huber`, `fastbp.quantile`,
        `fastbp.margin_ranking` and `fastbp.custom_loss` make, as an argument.
    l2, l1, group : float, default 0.0
        The penalties of `Network.objective`.
    out : array (n_params,), optional
        Where to put the gradient; a new array by default.

    Returns
    -------
    value : float
    grad : array (n_params,)

    Raises
    ------
    ShapeError
        If a shape does not fit.
    ValueError
        For targets or a penalty that `Network.objective` refuses.
    """
    if isinstance(net, Objective):
        if X is not None or y is not None or (loss, l2, l1, group) != ("mse", 0, 0, 0):
            raise ValueError(
                "an objective has its data, loss and penalties bound; leave X to group out"
            )
        bound = copy.copy(net)
        bound.backend = backends.load("numba")
    else:
        bound = net.objective(X, y, loss, l2=l2, l1=l1, group=group, backend="numba")
    value, grad = bound.value_and_grad(params)
    return value, _to(out, grad)


def jacobian(net: Network, params: Any, X: Any, free_only: bool = False) -> np.ndarray:
    """Derivatives of all outputs with respect to the parameters, as `Network.jacobian`.

    Parameters
    ----------
    net : Network
    params : array (n_params,)
    X : array (n, n_in)
    free_only : bool, default False
        Only the columns of free parameters; otherwise those of the others are zero.

    Returns
    -------
    array (n·n_out, n_params), or (n·n_out, n_free)
        Rows sample-major.

    Raises
    ------
    ShapeError
        If a shape does not fit.
    """
    return net.jacobian(params, X, free_only, backend="numba")


# Layers.


def dense_forward(
    X: Any, W: Any, b: Any = None, activation: str | Activation = "linear"
) -> tuple[np.ndarray, Any]:
    """One dense layer, Y = act(XW + b), as `fastbp.dense_forward`.

    Parameters
    ----------
    X : array (n, n_in)
    W : array (n_in, n_out)
    b : array (n_out,), optional
    activation : str or Activation, default "linear"
        A name as written in the call, or an object as an argument.

    Returns
    -------
    Y : array (n, n_out)
    cache
        For `dense_backward`; it cannot leave jitted code. It refers to X, W and Y: do not modify
        them before.

    Raises
    ------
    ShapeError
        If a shape does not fit.
    """
    return single_layers.dense_forward(X, W, b, activation, backend="numba")


def dense_backward(
    dY: Any, cache: Any, need_dX: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Gradients of one dense layer, as `fastbp.dense_backward`.

    Parameters
    ----------
    dY : array (n, n_out)
        The gradient with respect to the layer's output, not yet multiplied by act'.
    cache
        From `dense_forward`.
    need_dX : bool, default True
        As written in the call; False saves the product for a first layer.

    Returns
    -------
    dX : array (n, n_in) or None
        None if not needed.
    dW : array (n_in, n_out)
    db : array (n_out,) or None
        None for a layer without b.

    Raises
    ------
    ShapeError
        If dY has not the shape of Y.
    """
    return single_layers.dense_backward(dY, cache, need_dX=need_dX)


def _to(out: np.ndarray | None, result: np.ndarray) -> np.ndarray:
    if out is None:
        return result
    if out.shape != result.shape:
        raise ShapeError(f"out has shape {out.shape}, expected {result.shape}")
    out[...] = result
    return out


# Their declarations to Numba.

for _function in (forward, value_and_grad, jacobian, dense_forward, dense_backward):
    overload(_function, strict=False, jit_options=USERS_OPTIONS, prefer_literal=True)(
        getattr(overloads, _function.__name__)
    )


def _declare(what: type, type_of: Callable) -> None:
    @typeof_impl.register(what)
    def numba_type(value: Any, context: Any) -> types.Type:
        if context.purpose is Purpose.constant:
            raise TypingError(
                f"a fastbp {what.__name__} is a global variable here, expected an argument: it "
                f"would be frozen into the compiled code; pass it to the function"
            )
        return type_of(value)


_declare(Network, lambda net: handles.NetworkType(real_type(net.dtype)))
_declare(Objective, lambda bound: handles.ObjectiveType(real_type(bound.net.dtype)))
_declare(Activation, handles.ActivationType)
_declare(Loss, handles.LossType)


def _attribute(name: str, place: int) -> None:
    @overload_attribute(handles.NetworkType, name)
    def read(net):
        return lambda net: handles.numbers_of(net)[place]


_attribute("n_in", handles.NET_IN)
_attribute("n_out", handles.NET_OUT)
_attribute("n_params", handles.NET_PARAMS)
_attribute("n_free", handles.NET_FREE)
