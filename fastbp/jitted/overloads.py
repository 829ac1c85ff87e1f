"""What `fastbp.jitted` has for the types of a call: the checks and the implementations.

What types tell is checked when users' code is compiled, shapes and values when it runs; there
messages are constant, as Numba wants them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from ..backends.jit import losses
from ..backends.jit.compiling import by_type, inlined_in_users as inlined
from ..backends.jit.layer import Act
from ..backends.jit.numba_internals import TypingError
from ..backends.jit.objective import part_size
from ..common.errors import ShapeError
from ..maths import losses as loss_table
from ..maths.activations import USER
from ..networks.activations import activation as activation_of
from . import handles
from .handles import ActivationType, LossType, NetworkType, ObjectiveType

# Arguments: what is checked when users' code is compiled, and what when it runs.


def _refuse(message: str) -> None:
    raise TypingError(f"fastbp.jitted: {message}")


def _known(value: Any) -> Any:
    """The value of an argument where it is known already, else its type."""
    if isinstance(value, types.Omitted):
        return value.value
    if isinstance(value, types.NoneType):
        return None
    return value.literal_value if isinstance(value, types.Literal) else value


def _require_array(name: str, kind: Any, real: Any, ndim: int, expected: str) -> None:
    if not isinstance(kind, types.Array) or kind.ndim != ndim or kind.dtype != real:
        hint = ""
        if isinstance(kind, types.Array):
            if kind.ndim == 1 and ndim == 2:
                hint = f"; a single row is {name}.reshape(1, -1)"
            elif kind.dtype != real:
                hint = f"; convert it with {name}.astype(np.{real})"
        _refuse(f"{name} is {kind}, expected an array of {real} {expected}{hint}")


def _require_result(kind: Any, real: Any, ndim: int, expected: str) -> bool:
    """Whether there is an array for the result."""
    if _known(kind) is None:
        return False
    _require_array("out", kind, real, ndim, expected)
    if kind.layout != "C" or not kind.aligned or not kind.mutable:
        _refuse(f"out is {kind}, expected a writable C-contiguous array")
    return True


def _require_network(net: Any) -> types.Float:
    if not isinstance(net, NetworkType):
        _refuse(f"net is {net}, expected a fastbp.Network that is passed as an argument")
    return net.real


def _require_inputs(net: Any, params: Any, X: Any) -> types.Float:
    real = _require_network(net)
    _require_array("params", params, real, 1, "(n_params,)")
    _require_array("X", X, real, 2, "(n, n_in)")
    return real


def _named(what: str, given: Any, look_up: Callable[[str], Any], example: str) -> Any:
    """The activation or loss of a name that is written in the call."""
    name = _known(given)
    if not isinstance(name, str):
        _refuse(
            f"{what} is {given}, expected a name as written in the call, or {example} that is "
            f"passed as an argument"
        )
    try:
        return look_up(name)
    except ValueError as error:
        _refuse(str(error))


@inlined
def user_function(function, like, needed):
    """The address of the user's own functions, which is there if it is needed."""
    user = handles.user_of(function, like)
    if needed and user == 0:
        raise RuntimeError(
            "a function of your own is not compiled for this type: pass the activation or the "
            "loss as an argument to the function that Python calls"
        )
    return user


@by_type
def contiguous(array):
    """The array or a contiguous copy, or None if it is None."""
    if _known(array) is None:
        return lambda array: None
    if array.layout == "C" and array.aligned:
        return lambda array: array
    return lambda array: np.ascontiguousarray(array)


@inlined
def check_length(numbers, params):
    """Raise unless the parameters are a network's."""
    if params.size != numbers[handles.NET_PARAMS]:
        raise ShapeError("params has another length than expected: net.n_params")


@inlined
def check_columns(numbers, x):
    """Raise unless inputs are a network's."""
    if x.shape[1] != numbers[handles.NET_IN]:
        raise ShapeError("X has another number of columns than expected: net.n_in")


@inlined
def unmasked(numbers, params):
    """The parameters as the entries take them: masked ones are zero."""
    count = numbers[handles.N_MASKED]
    if count == 0:
        return params
    places, result = handles.places_at(numbers, handles.MASKED), params.copy()
    for k in range(count):
        result[places[k]] = 0.0
    return result


@inlined
def without_fixed(numbers, derivative):
    """Set the entries of masked and frozen parameters to zero in each of some gradients."""
    count = numbers[handles.N_FIXED]
    if count > 0:
        places = handles.places_at(numbers, handles.FIXED)
        for start in range(0, derivative.size, numbers[handles.NET_PARAMS]):
            for k in range(count):
                derivative[start + places[k]] = 0.0


@inlined
def penalty(factor):
    """A checked factor of a penalty."""
    if not (factor >= 0.0 and factor < np.inf):
        raise ValueError("a penalty is negative or not finite, expected a finite number >= 0")
    return float(factor)


# Of losses: the normaliser (see `losses.Loss.scale`), the outputs and targets that they take.

_SCALES = {
    "N·n_out": inlined(lambda count, n_out: 1.0 / (count * n_out)),
    "2N": inlined(lambda count, n_out: 1.0 / (2.0 * count)),
    "N": inlined(lambda count, n_out: 1.0 / count),
    "1": inlined(lambda count, n_out: 1.0),
}


@inlined
def check_outputs(kind, n, n_out):
    """Raise unless a loss allows these sizes."""
    if kind in (loss_table.SOFTMAX_CE, loss_table.SOFTMAX_CE_LABELS) and n_out < 2:
        raise ValueError("the loss needs at least 2 outputs of the network, one per class")
    if kind in (loss_table.GAUSSIAN_NLL, loss_table.GAUSSIAN_KL) and n_out % 2 == 1:
        raise ValueError("the loss needs an even number of outputs, means and then log variances")
    if kind == loss_table.MARGIN_RANKING:
        if n_out != 1:
            raise ValueError("the loss needs one output of the network, the score")
        if n % 2 == 1:
            raise ShapeError("the loss expects pairs: X with an even number of rows")


@by_type
def as_columns(y):
    """Targets as a contiguous matrix."""
    if y.ndim == 1:
        return lambda y: contiguous(y).reshape((y.size, 1))
    return lambda y: contiguous(y)


@inlined
def values_of(y, n, width):
    """Checked targets: their number of columns, they themselves, no labels."""
    targets = as_columns(y)
    if targets.shape != (n, width):
        raise ShapeError("y has another shape than expected: the output's")
    return width, targets, None


def _checked_values(is_wrong: Callable, message: str) -> Callable:
    """The same for targets of which none may be wrong; NaN passes."""

    @inlined
    def values(y, n, width):
        result = values_of(y, n, width)
        for t in result[1].flat:
            if is_wrong(t):
                raise ValueError(message)
        return result

    return values


probabilities_of = _checked_values(
    inlined(lambda t: t < 0.0 or t > 1.0),
    "y holds a number outside [0, 1], the range of probabilities",
)


@inlined
def labels_of(y, n, n_out):
    """Checked labels: no columns, no matrix, the labels (n,)."""
    labels = as_columns(y)
    if labels.shape != (n, 1):
        raise ShapeError("y has another shape than expected: one integer label per row of X")
    result = np.empty(n, np.int64)
    for i in range(n):
        if labels[i, 0] < 0 or labels[i, 0] >= n_out:
            raise ValueError("y holds a label outside 0 to n_out - 1")
        result[i] = labels[i, 0]
    return 0, None, result


_TARGETS = {
    "values": values_of,
    "probabilities": probabilities_of,
    "signs": _checked_values(
        inlined(lambda t: abs(t) != 1.0 and t == t),
        "y holds a number other than the labels -1 and 1",
    ),
    "counts": _checked_values(
        inlined(lambda t: t < 0.0), "y holds a negative number, expected counts >= 0"
    ),
    "classes": probabilities_of,
    "halves": inlined(lambda y, n, n_out: values_of(y, n, n_out // 2)),  # for the means
    "none": inlined(lambda y, n, n_out: (0, None, None)),
}


# The functions.


def forward(net, params, X, out=None):
    """`fastbp.jitted.forward`."""
    real = _require_inputs(net, params, X)
    into = _require_result(out, real, 2, "(n, n_out)")

    def implementation(net, params, X, out=None):
        q, p, x = handles.numbers_of(net), contiguous(params), contiguous(X)
        check_length(q, p)
        check_columns(q, x)
        shape = x.shape[0], q[handles.NET_OUT]
        y = out if into else np.empty(shape, p.dtype)
        if y.shape != shape:
            raise ShapeError("out has another shape than expected: (n, n_out)")
        space = np.empty(q[handles.SPACE], p.dtype)
        handles.call_forward(net, unmasked(q, p), x, None, False, y, space)
        return y

    return implementation


def jacobian(net, params, X, free_only=False):
    """`fastbp.jitted.jacobian`."""
    _require_inputs(net, params, X)

    def implementation(net, params, X, free_only=False):
        q, p, x = handles.numbers_of(net), contiguous(params), contiguous(X)
        check_length(q, p)
        check_columns(q, x)
        n, n_out = x.shape[0], q[handles.NET_OUT]
        columns = q[handles.NET_FREE] if free_only else q[handles.NET_PARAMS]
        J = np.empty(n * n_out * columns, p.dtype)
        used, space = unmasked(q, p), np.empty(q[handles.JACOBIAN_SPACE], p.dtype)
        size, of_row = part_size(n), n_out * columns
        for start in range(0, max(n, 1), size):
            stop = min(start + size, n)
            rows = J[start * of_row : stop * of_row]
            handles.call_jacobian(net, used, x[start:stop], free_only, rows, space)
        if not free_only:
            without_fixed(q, J)
        return J.reshape((n * n_out, columns))

    return implementation


def value_and_grad(net, params, X=None, y=None, loss="mse", l2=0.0, l1=0.0, group=0.0, out=None):
    """`fastbp.jitted.value_and_grad`."""
    if isinstance(net, ObjectiveType):
        real, data_of = net.real, bound_data
        others = [_known(value) for value in (X, y, loss, l2, l1, group)]
        if others != [None, None, "mse", 0, 0, 0]:
            _refuse("an objective has its data, loss and penalties bound; leave X to group out")
    else:
        real = _require_network(net)
        _require_array("X", X, real, 2, "(n, n_in)")
        for name, value in (("l2", l2), ("l1", l1), ("group", group)):
            if not isinstance(_known(value), int | float | types.Number):
                _refuse(f"{name} is {value}, expected a number")
        data_of = _data_for(loss, y, real)
    _require_array("params", params, real, 1, "(n_params,)")
    into = _require_result(out, real, 1, "(n_params,)")

    def implementation(
        net, params, X=None, y=None, loss="mse", l2=0.0, l1=0.0, group=0.0, out=None
    ):
        q, p = handles.numbers_of(net), contiguous(params)
        check_length(q, p)
        data = data_of(net, p, X, y, loss, l2, l1, group)
        gradient = out if into else np.empty(p.size, p.dtype)
        if gradient.size != p.size:
            raise ShapeError("out has another length than expected: net.n_params")
        space = np.empty(q[handles.SPACE], p.dtype)
        value = handles.call_objective(net, unmasked(q, p), data, gradient, True, space)
        without_fixed(q, gradient)
        return value, gradient

    return implementation


@inlined
def bound_data(net, p, X, y, loss, l2, l1, group):
    """An objective, which stands for its data."""
    return net


def _data_for(loss: Any, y: Any, real: types.Float) -> Callable:
    """How `losses.Data` is made from a call with this loss and these targets."""
    if isinstance(loss, LossType):
        kind, is_bce = loss, loss.kind == loss_table.BCE
        constant = float(np.finfo(real.name).eps) if is_bce else None
    else:
        named = _named("loss", loss, loss_table.loss, "a loss such as fastbp.huber(0.5)")
        kind, constant = LossType(named), named.parameter(np.dtype(real.name))
    of_labels = _require_targets(kind, y, real)
    number = loss_table.SOFTMAX_CE_LABELS if of_labels else kind.kind
    function_of, address = handles.function_of(kind, constant), handles.address_of("loss", number)
    is_user = number == loss_table.USER_LOSS
    rows_of_sample = 2 if number == loss_table.MARGIN_RANKING else 1
    scale_of, targets_of = _SCALES[kind.divisor], labels_of if of_labels else _TARGETS[kind.target]

    @inlined
    def data(net, p, X, y, loss, l2, l1, group):
        q, x = handles.numbers_of(net), contiguous(X)
        check_columns(q, x)
        n, n_out = x.shape[0], q[handles.NET_OUT]
        if n == 0:
            raise ShapeError("X has no rows, expected at least one")
        check_outputs(number, n, n_out)
        n_targets, targets, labels = targets_of(y, n, n_out)
        function = function_of(loss)
        terms, numbers = np.empty(5, np.int64), np.empty(5, np.float64)
        terms[losses.LOSS] = number
        terms[losses.LOSS_FUNCTION] = address(p)
        terms[losses.USER_LOSS_FUNCTION] = user_function(function, p, is_user)
        terms[losses.N_TARGETS] = n_targets
        terms[losses.HAS_WEIGHTS] = 0
        numbers[losses.SCALE] = scale_of(float(n // rows_of_sample), n_out)
        numbers[losses.CONSTANT] = handles.constant_of(function)
        numbers[losses.L2], numbers[losses.L1] = penalty(l2), penalty(l1)
        numbers[losses.GROUP] = penalty(group)
        return losses.Data(terms, numbers, x, targets, labels, None)

    return data


def _require_targets(kind: LossType, y: Any, real: types.Float) -> bool:
    """Whether they are labels."""
    y = _known(y)
    given = isinstance(y, types.Array)
    if kind.target == "none":
        if y is not None:
            _refuse(f"y is {y}, but this loss has no targets: pass None")
        return False
    if kind.target == "classes":
        if given and isinstance(y.dtype, types.Integer) and y.ndim in (1, 2):
            return True
        _require_array("y", y, real, 2, "(n, n_out) of probabilities, or integer labels (n,)")
        return False
    _require_array("y", y, real, 1 if given and y.ndim == 1 else 2, "(n, n_out), or (n,) for one")
    return False


# One layer.


class DenseCache(NamedTuple):
    """What `dense_backward` needs of a forward pass in jitted code."""

    X: Any
    W: Any
    b: Any  # None without
    kept: Any  # Y, or Z where the derivative needs it
    activation: Any


def dense_forward(X, W, b=None, activation="linear"):
    """`fastbp.jitted.dense_forward`."""
    real = getattr(X, "dtype", None)
    if real not in (types.float32, types.float64):
        real = "float32 or float64"
    _require_array("X", X, real, 2, "(n, n_in)")
    _require_array("W", W, real, 2, "(n_in, n_out)")
    has_bias = _known(b) is not None
    if has_bias:
        _require_array("b", b, real, 1, "(n_out,)")
    kind, constant = activation, None
    if not isinstance(activation, ActivationType):
        named = _named("activation", activation, activation_of, "an Activation")
        kind, constant = ActivationType(named), named.constant
    number, function_of = kind.kind, handles.function_of(kind, constant)
    address = handles.address_of("activation", number)
    keep_z, is_user = kind.keeps_z, number == USER

    def implementation(X, W, b=None, activation="linear"):
        x, w, bias, function = contiguous(X), contiguous(W), contiguous(b), function_of(activation)
        if x.shape[1] != w.shape[0]:
            raise ShapeError("X has another number of columns than W has rows")
        if has_bias and bias.size != w.shape[1]:
            raise ShapeError("b has another length than expected: one bias per column of W")
        y = np.empty((x.shape[0], w.shape[1]), x.dtype)
        kept = np.empty_like(y) if keep_z else y
        user = user_function(function, x, is_user)
        handles.call_dense_forward(
            x, w, bias, has_bias, Act(number, address(x), handles.constant_of(function), user),
            y, kept, keep_z,
        )  # fmt: skip
        return y, DenseCache(x, w, bias, kept, function)

    return implementation


def dense_backward(dY, cache, need_dX=True):
    """`fastbp.jitted.dense_backward`."""
    if getattr(cache, "instance_class", None) is not DenseCache:
        _refuse(f"cache is {cache}, expected the second result of fastbp.jitted.dense_forward")
    of_x, _, of_b, _, kind = cache.types
    _require_array("dY", dY, of_x.dtype, 2, "(n, n_out)")
    needed = _known(need_dX)
    if not isinstance(needed, bool):
        _refuse(f"need_dX is {need_dX}, expected True or False as written in the call")
    number, has_bias = kind.kind, of_b != types.none
    address, is_user = handles.address_of("activation", number), number == USER

    def implementation(dY, cache, need_dX=True):
        x, w, kept, function = cache.X, cache.W, cache.kept, cache.activation
        if dY.shape != kept.shape:
            raise ShapeError("dY has another shape than Y")
        dz, dw = np.ascontiguousarray(dY).copy(), np.empty_like(w)
        dx = np.empty_like(x) if needed else None
        db = np.empty(w.shape[1], w.dtype) if has_bias else None
        transposed = np.empty(w.size, w.dtype) if needed else None
        user = user_function(function, x, is_user)
        handles.call_dense_backward(
            dz, x, w, kept, Act(number, address(x), handles.constant_of(function), user),
            dx, needed, dw, db, has_bias, transposed,
        )  # fmt: skip
        return dx, dw, db

    return implementation
