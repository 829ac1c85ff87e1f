"""The optimizers: the rules of maths/formulas/optimizers.py, compiled."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...maths.formulas.optimizers import KINDS, RULES, Rule
from .compiling import inlined
from .numba_internals import cgutils
from .vectors import Lanes, Scalars, Vector, as_real, by_vectors, elementwise

_WITH_POWERS = tuple(KINDS[name] for name, rule in RULES.items() if rule.has_powers)

_shrink = elementwise(lambda p, factor: (factor * p,), 1, 1)


@inlined
def _power(beta, t):
    """β^t by products from the multiple of 64 before on; exactly 0 where 1 - β^t rounds to 1.

    So `_next_power` comes to the same bits wherever a run is resumed.
    """
    first = t - t % 64
    result = 0.0 if first * (1.0 - beta) > 40.0 else beta ** float(first)
    for _ in range(first, t):
        result *= beta
    return result


@inlined
def start_powers(constants, step, powers):
    """The powers of the first two constants before the given step, for `update`."""
    powers[0], powers[1] = _power(constants[0], step), _power(constants[1], step)


@inlined
def _next_power(beta, t, before):
    return _power(beta, t) if t % 64 == 0 else before * beta


def _emit(builder: Any, real: Any, rule: Rule, n: Any, places: Any, doubles: Any) -> None:
    """A rule's loop over n parameters; `doubles` are the rate, the constants and the powers."""
    p, moments, g = places
    lr, *others = (Vector(Scalars(builder, types.float64), x) for x in doubles)
    numbers = [number.value for number in rule.numbers(lr, others[:4], others[4:])]
    if real == types.float32:
        numbers = [builder.fptrunc(number, ir.FloatType()) for number in numbers]
    offsets = [builder.mul(n, n.type(i)) for i in range(rule.n_moments)]
    starts = [p, *(builder.gep(moments, [offset]) for offset in offsets), g]

    def body(lanes: Lanes, i: ir.Value, mask: ir.Value | None) -> None:
        here = [builder.gep(start, [i]) for start in starts]
        p, *moments, g = (lanes.load(place, mask) for place in here)
        results = rule.formula(p, moments, g, *map(lanes.splat, numbers))
        for vector, place in zip(results, here[:-1], strict=True):
            lanes.store(vector, place, mask)

    by_vectors(builder, real, n, body)


@intrinsic
def _apply(typingctx, kind, n, p, moments, g, lr, constants, powers):
    """One step of the rule of this kind, which is one of `KINDS`."""

    def codegen(context, builder, signature, args):
        kind, n, p, moments, g, lr, constants, powers = args
        doubles = [lr]
        for start, count in ((constants, 4), (powers, 2)):
            doubles += [builder.load(builder.gep(start, [n.type(i)])) for i in range(count)]
        unknown, end = map(builder.append_basic_block, ("unknown_rule", "end_of_rules"))
        switch = builder.switch(kind, unknown)
        for name, rule in RULES.items():
            block = builder.append_basic_block(name)
            switch.add_case(kind.type(KINDS[name]), block)
            builder.position_at_end(block)
            _emit(builder, signature.args[2].dtype, rule, n, (p, moments, g), doubles)
            builder.branch(end)
        builder.position_at_end(unknown)
        trap = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, trap, "llvm.trap"), [])
        builder.unreachable()
        builder.position_at_end(end)
        return context.get_dummy_value()

    doubles = types.float64, constants, powers
    return types.void(types.int64, types.int64, p, p, p, *doubles), codegen


@inlined
def update(kind, constants, lr, step, n, p, moments, g, powers):
    """One step of the rule of this kind for n parameters."""
    if constants[3] != 0.0:
        _shrink(n, p, as_real(p, 1.0 - lr * constants[3]))
    if kind in _WITH_POWERS:
        powers[0] = _next_power(constants[0], step + 1, powers[0])
        powers[1] = _next_power(constants[1], step + 1, powers[1])
    _apply(kind, n, p, moments, g, lr, constants, powers)
