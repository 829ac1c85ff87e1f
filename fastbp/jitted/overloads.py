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
from ..maths.activations import TABLE as ACTIVATIONS, USER
from ..maths.losses import (
    BCE,
    GAUSSIAN_KL,
    GAUSSIAN_NLL,
    MARGIN_RANKING,
    SOFTMAX_CE,
    SOFTMAX_CE_LABELS,
    USER_LOSS,
    loss as loss_of,
)
from ..networks.activations import activation as activation_of
from .handles import (
    FIXED,
    JACOBIAN_SPACE,
    MASKED,
    N_FIXED,
    N_MASKED,
    NET_FREE,
    NET_IN,
    NET_OUT,
    NET_PARAMS,
    SPACE,
    ActivationType,
    LossType,
    NetworkType,
    ObjectiveType,
    address_of,
    call_dense_backward,
    call_dense_forward,
    call_forward,
    call_jacobian,
    call_objective,
    constant_of,
    function_of,
    numbers_of,
    places_at,
    type_of_loss,
    user_of,
)

KEEPS_Z = {row.kind: row.df_from_y is None for row in ACTIVATIONS.values()} | {USER: True}


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


def _require_result(kind: Any, real: Any, ndim: int, expected: str) -> None:
    _require_array("out", kind, real, ndim, expected)
    if kind.layout != "C" or not kind.aligned or not kind.mutable:
        _refuse(f"out is {kind}, expected a writable C-contiguous array")


def _require_network(net: Any) -> types.Float:
    if not isinstance(net, NetworkType):
        _refuse(f"net is {net}, expected a fastbp.Network that is passed as an argument")
    return net.real


@inlined
def user_function(function, like, needed):
    """`user_of`, which is there if it is needed."""
    user = user_of(function, like)
    if needed and user == 0:
        raise RuntimeError(
            "a function of your own is not compiled for this type: pass the activation or the "
            "loss as an argument to the function that Python calls"
        )
    return user


@by_type
def contiguous(array):
    """The array, or a contiguous copy."""
    if array.layout == "C" and array.aligned:
        return lambda array: array
    return lambda array: np.ascontiguousarray(array)


@inlined
def check_length(numbers, params):
    """Raise unless the parameters are a network's."""
    if params.size != numbers[NET_PARAMS]:
        raise ShapeError("params has another length than expected: net.n_params")


@inlined
def check_inputs(numbers, params, x):
    """Raise unless parameters and inputs are a network's."""
    check_length(numbers, params)
    if x.shape[1] != numbers[NET_IN]:
        raise ShapeError("X has another number of columns than expected: net.n_in")


@inlined
def unmasked(numbers, params):
    """The parameters as the entries take them: masked ones are zero."""
    count = numbers[N_MASKED]
    if count == 0:
        return params
    places, result = places_at(numbers, MASKED), params.copy()
    for k in range(count):
        result[places[k]] = 0.0
    return result


@inlined
def without_fixed(numbers, derivative):
    """Set the entries of masked and frozen parameters to zero in each of some gradients."""
    count = numbers[N_FIXED]
    if count > 0:
        places = places_at(numbers, FIXED)
        for start in range(0, derivative.size, numbers[NET_PARAMS]):
            for k in range(count):
                derivative[start + places[k]] = 0.0


@inlined
def gradient_for(out, params):
    """Where the caller wants the gradient."""
    if out.size != params.size:
        raise ShapeError("out has another length than expected: net.n_params")
    return out


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
def any_outputs(n, n_out):
    """Nothing to check."""


@inlined
def two_outputs(n, n_out):
    """Raise unless there are classes."""
    if n_out < 2:
        raise ValueError("the loss needs at least 2 outputs of the network, one per class")


@inlined
def even_outputs(n, n_out):
    """Raise unless there are means and as many logarithms of variances."""
    if n_out % 2 == 1:
        raise ValueError("the loss needs an even number of outputs, means and then log variances")


@inlined
def pairs(n, n_out):
    """Raise unless rows are pairs of scores."""
    if n_out != 1:
        raise ValueError("the loss needs one output of the network, the score")
    if n % 2 == 1:
        raise ShapeError("the loss expects pairs: X with an even number of rows")


_OUTPUTS = {
    SOFTMAX_CE: two_outputs,
    GAUSSIAN_NLL: even_outputs,
    GAUSSIAN_KL: even_outputs,
    MARGIN_RANKING: pairs,
}


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
signs_of = _checked_values(
    inlined(lambda t: abs(t) != 1.0 and t == t),
    "y holds a number other than the labels -1 and 1",
)
counts_of = _checked_values(
    inlined(lambda t: t < 0.0), "y holds a negative number, expected counts >= 0"
)


@inlined
def halves_of(y, n, n_out):
    """Values for the means, likewise."""
    return values_of(y, n, n_out // 2)


@inlined
def nothing_of(y, n, n_out):
    """No targets."""
    return 0, None, None


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
    "signs": signs_of,
    "counts": counts_of,
    "classes": probabilities_of,
    "halves": halves_of,
    "none": nothing_of,
}


# The functions.


def forward(net, params, X, out=None):
    """`fastbp.jitted.forward`."""
    real, out = _require_network(net), _known(out)
    _require_array("params", params, real, 1, "(n_params,)")
    _require_array("X", X, real, 2, "(n, n_in)")
    if out is not None:
        _require_result(out, real, 2, "(n, n_out)")
    into = out is not None

    def implementation(net, params, X, out=None):
        q, p, x = numbers_of(net), contiguous(params), contiguous(X)
        check_inputs(q, p, x)
        shape = x.shape[0], q[NET_OUT]
        y = out if into else np.empty(shape, p.dtype)
        if y.shape != shape:
            raise ShapeError("out has another shape than expected: (n, n_out)")
        space = np.empty(q[SPACE], p.dtype)
        call_forward(net, unmasked(q, p), x, None, False, y, space)
        return y

    return implementation


def jacobian(net, params, X, free_only=False):
    """`fastbp.jitted.jacobian`."""
    real = _require_network(net)
    _require_array("params", params, real, 1, "(n_params,)")
    _require_array("X", X, real, 2, "(n, n_in)")

    def implementation(net, params, X, free_only=False):
        q, p, x = numbers_of(net), contiguous(params), contiguous(X)
        check_inputs(q, p, x)
        n, n_out, columns = x.shape[0], q[NET_OUT], q[NET_FREE] if free_only else q[NET_PARAMS]
        J = np.empty(n * n_out * columns, p.dtype)
        used, space = unmasked(q, p), np.empty(q[JACOBIAN_SPACE], p.dtype)
        size, of_row = part_size(n), n_out * columns
        for start in range(0, max(n, 1), size):
            stop = min(start + size, n)
            rows = J[start * of_row : stop * of_row]
            call_jacobian(net, used, x[start:stop], free_only, rows, space)
        if not free_only:
            without_fixed(q, J)
        return J.reshape((n * n_out, columns))

    return implementation


def value_and_grad(net, params, X=None, y=None, loss="mse", l2=0.0, l1=0.0, group=0.0, out=None):
    """`fastbp.jitted.value_and_grad`."""
    into = _known(out) is not None
    if isinstance(net, ObjectiveType):
        real = net.real
        others = [_known(value) for value in (X, y, loss, l2, l1, group)]
        if others != [None, None, "mse", 0, 0, 0]:
            _refuse("an objective has its data, loss and penalties bound; leave X to group out")
        implementation = _of_bound(into)
    else:
        real = _require_network(net)
        _require_array("X", X, real, 2, "(n, n_in)")
        for name, value in (("l2", l2), ("l1", l1), ("group", group)):
            if not isinstance(_known(value), int | float | types.Number):
                _refuse(f"{name} is {value}, expected a number")
        kind, constant = _loss(loss, real)
        implementation = _of_data(kind, constant, _require_targets(kind, y, real), into)
    _require_array("params", params, real, 1, "(n_params,)")
    if into:
        _require_result(out, real, 1, "(n_params,)")
    return implementation


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


def _of_bound(into: bool) -> Callable:
    def implementation(
        net, params, X=None, y=None, loss="mse", l2=0.0, l1=0.0, group=0.0, out=None
    ):
        q, p = numbers_of(net), contiguous(params)
        check_length(q, p)
        gradient = gradient_for(out, p) if into else np.empty(p.size, p.dtype)
        space = np.empty(q[SPACE], p.dtype)
        value = call_objective(net, unmasked(q, p), net, gradient, True, space)
        without_fixed(q, gradient)
        return value, gradient

    return implementation


def _of_data(kind: LossType, constant: float | None, of_labels: bool, into: bool) -> Callable:
    number = SOFTMAX_CE_LABELS if of_labels else kind.kind
    taken, address = function_of(kind, constant), address_of("loss", number)
    check_outputs = _OUTPUTS.get(kind.kind, any_outputs)
    rows_of_sample = 2 if kind.kind == MARGIN_RANKING else 1
    scale_of, has_user = _SCALES[kind.divisor], kind.kind == USER_LOSS
    targets_of = labels_of if of_labels else _TARGETS[kind.target]

    def implementation(
        net, params, X=None, y=None, loss="mse", l2=0.0, l1=0.0, group=0.0, out=None
    ):
        q, p, x = numbers_of(net), contiguous(params), contiguous(X)
        check_inputs(q, p, x)
        n, n_out = x.shape[0], q[NET_OUT]
        if n == 0:
            raise ShapeError("X has no rows, expected at least one")
        check_outputs(n, n_out)
        n_targets, targets, labels = targets_of(y, n, n_out)
        function = taken(loss)
        terms, numbers = np.empty(5, np.int64), np.empty(5, np.float64)
        terms[losses.LOSS] = number
        terms[losses.LOSS_FUNCTION] = address(p)
        terms[losses.USER_LOSS_FUNCTION] = user_function(function, p, has_user)
        terms[losses.N_TARGETS] = n_targets
        terms[losses.HAS_WEIGHTS] = 0
        numbers[losses.SCALE] = scale_of(float(n // rows_of_sample), n_out)
        numbers[losses.CONSTANT] = constant_of(function)
        numbers[losses.L2], numbers[losses.L1] = penalty(l2), penalty(l1)
        numbers[losses.GROUP] = penalty(group)
        gradient = gradient_for(out, p) if into else np.empty(p.size, p.dtype)
        space = np.empty(q[SPACE], p.dtype)
        value = call_objective(
            net, unmasked(q, p), losses.Data(terms, numbers, x, targets, labels, None),
            gradient, True, space,
        )  # fmt: skip
        without_fixed(q, gradient)
        return value, gradient

    return implementation


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
    kind, constant = _activation(activation)
    number, taken = kind.kind, function_of(kind, constant)
    address = address_of("activation", number)
    keep_z, has_user = KEEPS_Z[number], number == USER

    def implementation(X, W, b=None, activation="linear"):
        x, w, bias, function = contiguous(X), contiguous(W), as_bias(b), taken(activation)
        if x.shape[1] != w.shape[0]:
            raise ShapeError("X has another number of columns than W has rows")
        if has_bias and bias.size != w.shape[1]:
            raise ShapeError("b has another length than expected: one bias per column of W")
        y = np.empty((x.shape[0], w.shape[1]), x.dtype)
        kept = np.empty_like(y) if keep_z else y
        user = user_function(function, x, has_user)
        call_dense_forward(
            x, w, bias, has_bias, Act(number, address(x), constant_of(function), user),
            y, kept, keep_z,
        )  # fmt: skip
        return y, DenseCache(x, w, bias, kept, function)

    return implementation


@by_type
def as_bias(b):
    """A contiguous vector, or None."""
    if _known(b) is None:
        return lambda b: None
    return lambda b: contiguous(b)


def dense_backward(dY, cache, need_dX=True):
    """`fastbp.jitted.dense_backward`."""
    if getattr(cache, "instance_class", None) is not DenseCache:
        _refuse(f"cache is {cache}, expected the second result of fastbp.jitted.dense_forward")
    of_x, _, of_b, _, kind = cache.types
    _require_array("dY", dY, of_x.dtype, 2, "(n, n_out)")
    needed = _known(need_dX)
    if not isinstance(needed, bool):
        _refuse(f"need_dX is {need_dX}, expected True or False as written in the call")
    number, has_bias, has_user = kind.kind, of_b != types.none, kind.kind == USER
    address = address_of("activation", number)

    def implementation(dY, cache, need_dX=True):
        x, w, kept, function = cache.X, cache.W, cache.kept, cache.activation
        if dY.shape != kept.shape:
            raise ShapeError("dY has another shape than Y")
        dz, dw = np.ascontiguousarray(dY).copy(), np.empty_like(w)
        dx = np.empty_like(x) if needed else None
        db = np.empty(w.shape[1], w.dtype) if has_bias else None
        transposed = np.empty(w.size, w.dtype) if needed else None
        user = user_function(function, x, has_user)
        call_dense_backward(
            dz, x, w, kept, Act(number, address(x), constant_of(function), user),
            dx, needed, dw, db, has_bias, transposed,
        )  # fmt: skip
        return dx, dw, db

    return implementation


# Names.


def _activation(given: Any) -> tuple[ActivationType, float | None]:
    """Type and, of a name, the constant."""
    if isinstance(given, ActivationType):
        return given, None
    name = _known(given)
    if not isinstance(name, str):
        _refuse(
            f"activation is {given}, expected a name as written in the call, or an Activation that "
            f"is passed as an argument"
        )
    try:
        act = activation_of(name)
    except ValueError as error:
        _refuse(str(error))
    return ActivationType(act.kind), act.constant


def _loss(given: Any, real: types.Float) -> tuple[LossType, float | None]:
    """Type and, of a name, the parameter."""
    if isinstance(given, LossType):
        return given, float(np.finfo(real.name).eps) if given.kind == BCE else None
    name = _known(given)
    if not isinstance(name, str):
        _refuse(
            f"loss is {given}, expected a name as written in the call, or a loss such as "
            f"fastbp.huber(0.5) that is passed as an argument"
        )
    try:
        loss = loss_of(name)
    except ValueError as error:
        _refuse(str(error))
    return type_of_loss(loss), loss.parameter(np.dtype(real.name))
