"""Training: the steps of a chunk in one call, and the optimizers' update rules."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..contract import (
    ADAM,
    DONE,
    GROWN,
    GROWTH_EPOCHS,
    GROWTH_LIMIT,
    NESTEROV,
    NON_FINITE_OBJECTIVE,
    NON_FINITE_PARAMETERS,
)
from .compiling import (
    FLAG,
    INTEGER,
    NUMBER,
    PAIR,
    Entry,
    given,
    given_doubles,
    given_integers,
    part,
    result,
    result_doubles,
)
from .network import GRADIENT
from .objective import objective_of_rows
from .vectors import SSE, Vector, aligned, as_real, at, copy, elementwise, pointer


def _momentum_rule(p: Vector, v: Vector, g: Vector, lr: Vector, momentum: Vector) -> tuple:
    v = v * momentum + g
    return p - lr * v, v


def _nesterov_rule(p: Vector, v: Vector, g: Vector, lr: Vector, momentum: Vector) -> tuple:
    v = v * momentum + g
    return p - lr * (g + momentum * v), v


def _adam_rule(
    p: Vector,
    m: Vector,
    s: Vector,
    g: Vector,
    rest1: Vector,  # 1 - β1
    beta2: Vector,
    rest2: Vector,  # 1 - β2
    rate: Vector,  # lr / (1 - β1^t)
    correction: Vector,  # 1 / sqrt(1 - β2^t)
    eps: Vector,
) -> tuple:
    m = m + rest1 * (g - m)
    s = s * beta2 + rest2 * (g * g)
    return p - rate * m / (s.sqrt() * correction + eps), m, s


_sgd = elementwise(lambda p, g, lr: (p - lr * g,), 2, 1)
_momentum = elementwise(_momentum_rule, 3, 2)
_nesterov = elementwise(_nesterov_rule, 3, 2)
_adam = elementwise(_adam_rule, 4, 3)

# 0 for finite numbers, NaN for all others.
_finite_probe = elementwise(lambda x: (x - x,), 1, 0, total=True)


@part
def _update(kind, n_moments, c0, c1, c2, lr, step, n, p, moments, g):
    """One step of the optimizer's rule."""
    if kind == ADAM:
        t = float(step + 1)
        rate, correction = lr / (1.0 - c0**t), 1.0 / math.sqrt(1.0 - c1**t)
        _adam(
            n, p, moments, at(moments, n), g,
            as_real(p, 1.0 - c0), as_real(p, c1), as_real(p, 1.0 - c1),
            as_real(p, rate), as_real(p, correction), as_real(p, c2),
        )  # fmt: skip
    elif n_moments == 0:
        _sgd(n, p, g, as_real(p, lr))
    elif kind == NESTEROV:
        _nesterov(n, p, moments, g, as_real(p, lr), as_real(p, c0))
    else:
        _momentum(n, p, moments, g, as_real(p, lr), as_real(p, c0))


# Numbers near zero: the moments of an optimizer decay into the subnormals as a network converges,
# and arithmetic on those takes many times longer. The mode belongs to the thread; it is set after
# the last allocation, so that nothing can raise before it is restored.

_FLUSH = 0x8040  # the bits of MXCSR that flush subnormal results and operands to zero


@intrinsic
def _floating_point_mode(typingctx: Any) -> Any:
    """The processor's control word for vector arithmetic (0 where we do not know one)."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = cgutils.alloca_once_value(builder, ir.IntType(32)(0))
        if SSE:
            _call_with_address(builder, "llvm.x86.sse.stmxcsr", word)
        return builder.load(word)

    return types.uint32(), codegen


@intrinsic
def _set_floating_point_mode(typingctx: Any, mode: Any) -> Any:
    """Set that control word."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        word = cgutils.alloca_once_value(builder, args[0])
        builder.store(args[0], word)
        if SSE:
            _call_with_address(builder, "llvm.x86.sse.ldmxcsr", word)
        return context.get_dummy_value()

    return types.void(types.uint32), codegen


def _call_with_address(builder: ir.IRBuilder, name: str, place: ir.Value) -> None:
    address = builder.bitcast(place, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [address.type])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [address])


def _make_train(fingerprint):
    def train(
        layers, constants, loss, X, targets, labels, weights, scale, l2,
        kind, n_moments, c0, c1, c2, params, moments, good, monitor,
        step, n_steps, batch_size, averaged, order, rates, losses, epsilon,
        tile, workspace, label_rows, places,
    ):  # fmt: skip
        """Do steps as `contract.train` tells; returns why it stopped and the steps completed."""
        _ = fingerprint  # see compiling.source_fingerprint
        mode = _floating_point_mode()
        _set_floating_point_mode(mode | types.uint32(_FLUSH))
        n, n_params = X.shape[0], params.size
        steps_per_epoch = (n + batch_size - 1) // batch_size
        first_epoch = step // steps_per_epoch
        p, space = pointer(params), aligned(pointer(workspace))
        start, last_good = at(pointer(good), n_params), pointer(good)
        m, rate, lost = pointer(monitor), pointer(rates), pointer(losses)
        g = at(space, pointer(places)[GRADIENT])
        status = DONE
        for i in range(n_steps):
            epoch, j = step // steps_per_epoch - first_epoch, step % steps_per_epoch
            first = j * batch_size
            count = min(batch_size, n - first)
            factor = scale * n / count if averaged else scale
            if j == 0:
                copy(start, p, n_params)
            objective = objective_of_rows(
                pointer(layers), pointer(constants), layers.shape[0], p, loss,
                pointer(X), pointer(targets), pointer(labels), pointer(weights), weights.size > 0,
                at(pointer(order), epoch * n), order.size > 0, first, count, factor, l2, g, True,
                tile, space, pointer(places), pointer(label_rows),
            )  # fmt: skip
            lost[epoch] += objective
            m[2] = objective
            if not math.isfinite(objective):
                status = NON_FINITE_OBJECTIVE
                break
            if step == 0:
                m[0] = max(abs(objective), epsilon)
            lr = rate[i] if rates.size > 1 else rate[0]
            _update(kind, n_moments, c0, c1, c2, lr, step, n_params, p, pointer(moments), g)
            step += 1
            if j == steps_per_epoch - 1:
                if _finite_probe(n_params, p) != 0.0:
                    status = NON_FINITE_PARAMETERS
                    break
                if lost[epoch] / steps_per_epoch <= GROWTH_LIMIT * m[0]:
                    copy(last_good, start, n_params)
                    m[1] = 0.0
                    continue
                m[1] += 1.0
                if m[1] == GROWTH_EPOCHS:
                    status = GROWN
                    break
        _set_floating_point_mode(mode)
        return status, step

    return train


train = Entry(
    _make_train, PAIR,
    given_integers(2), given_doubles(1), INTEGER, given(2), given(2), given_integers(1), given(1),
    NUMBER, NUMBER, INTEGER, INTEGER, NUMBER, NUMBER, NUMBER, result(1), result(2), result(2),
    result_doubles(1), INTEGER, INTEGER, INTEGER, FLAG, given_integers(2), given_doubles(1),
    result_doubles(1), NUMBER, INTEGER, result(1), given_integers(1), given_integers(1),
)  # fmt: skip
