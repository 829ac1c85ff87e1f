"""How functions of the user's own are compiled, for the C backend as well.

Numba types the sum of a float32 and a Python float, or an integer, as float64: NumPy's rules for
arrays. A user's ``2.5 * z**3`` would become float64 arithmetic in networks of float32, at half the
speed or less. So these functions, and those of the user's own that they call, are typed by rules of
Python's numbers: beside a float32 they are rounded to it. Calls of exp and tanh of `math` and NumPy
become those of fastbp, so that loops over the functions become vector code.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dis import get_instructions
from inspect import getclosurevars, isfunction
from itertools import chain
from linecache import getline
from os.path import abspath
from types import CellType, CodeType, FunctionType
from typing import Any

import numpy as np
from numba import types

from ...maths.expressions import Expression
from . import expressions
from .compiling import _OPTIONS, FLAG, NUMBER, by_type, itself, reals
from .expressions import is_given
from .intrinsics import emits, same
from .numba_internals import BaseTuple, CFunc, Dispatcher, Rules, typed_by, unliteral
from .scalars import exp, tanh


def _ours_of_numbers(ours: Callable, of_others: Callable) -> Callable:
    """A function for jitted code: ours of numbers, NumPy's of anything else."""

    def choose(x):
        if isinstance(x, _NUMBERS):
            return lambda x: ours(x)
        return lambda x: of_others(x)

    return by_type(choose, {**_OPTIONS, "forceinline": True})


_NUMBERS = types.Float | types.Integer | types.Boolean
_EXP, _TANH = _ours_of_numbers(exp, np.exp), _ours_of_numbers(tanh, np.tanh)
_OURS = {math.exp: _EXP, np.exp: _EXP, math.tanh: _TANH, np.tanh: _TANH}

_POWERS = {operator.pow, operator.ipow, pow}  # of which integer exponents stay integers
_ARITHMETIC = _POWERS | {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.imod, operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne,
    max, min, divmod, math.pow, math.atan2, math.copysign, math.fmod, math.hypot,
}  # fmt: skip


class _Typing(Rules):
    """Numba's typing, but for calls of `_OURS`."""

    def resolve_value_type(self, val: Any) -> Any:
        try:
            val = _OURS.get(val, val)
        except TypeError:  # not hashable
            pass
        return super().resolve_value_type(val)


class _Float32Typing(_Typing):
    """Typing in which a number beside a float32 is rounded to float32."""

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        name = getattr(func, "typing_key", func)
        if name in _ARITHMETIC or isinstance(name, np.ufunc):
            plain = {unliteral(a) for a in args}
            weak = types.Float | types.Boolean if name in _POWERS else _NUMBERS
            # A float64 is a constant here, and a truth value comes from a comparison of numbers.
            single = types.float32 in plain or {types.float64, types.boolean} <= plain
            if single and all(isinstance(a, weak) for a in plain):
                args = (types.float32,) * len(args)
        return super().resolve_function_type(func, args, kws)

    def unify_pairs(self, first: Any, second: Any) -> Any:
        # A variable that holds both, such as a sum that starts as 0.
        pair = {unliteral(first), unliteral(second)}
        if types.float32 in pair and all(isinstance(t, types.Float | types.Integer) for t in pair):
            return types.float32
        return super().unify_pairs(first, second)


_Jitted, _CFunc = typed_by(_Typing())
_JittedFloat32, _CFuncFloat32 = typed_by(_Float32Typing())


# Finding what the functions are made of, and where they fail.


class Refused(Exception):
    """Why a function cannot be compiled: where, and the reason, each in one line or two."""

    def __init__(self, reason: str, code: CodeType | None = None, line: int | None = None):
        if code is not None:
            line = line or code.co_firstlineno
            source = getline(code.co_filename, line).strip()
            place = f"line {line} of {code.co_filename}, in {code.co_name}:"
            reason = "\n".join(filter(None, (place, source and f"    {source}", reason)))
        super().__init__(reason)


class _Compiler:
    """Makes jitted functions of a user's, which compute in `real`, for numbers of another type."""

    def __init__(self, real: types.Float, numbers: types.Float):
        self._real = real
        self._widens = numbers != real
        self._dispatcher: Any = _JittedFloat32 if real == types.float32 else _Jitted
        self._done: dict[Any, Any] = {}
        self.codes: list[CodeType] = []  # of the functions that the user wrote

    def jitted(self, function: Callable) -> Any:
        """The function for compiled callers, and with it the functions in Python that it calls."""
        if isinstance(function, Dispatcher):
            function = function.py_func
        if self._known(function):  # np.tanh and the like
            given = function
            return self.jit(lambda *numbers: given(*numbers))
        if not isfunction(function):
            raise Refused(f"{function!r} is neither a Python function nor one that Numba knows")
        if function not in self._done:
            self._done[function] = None
            self._done[function] = self.jit(self._with_calls(function))
        return self._done[function]

    def jit(self, function: Callable, inline: bool = True) -> Any:
        """The function, to become part of its callers (LLVM vectorises no calls) or not."""
        options = {"nopython": True, "no_cpython_wrapper": True, "forceinline": inline}
        return self._dispatcher(function, targetoptions=_OPTIONS | options)

    def _known(self, function: Callable) -> bool:
        context = self._dispatcher.targetdescr.typing_context
        context.refresh()
        try:
            context.resolve_value_type(function)
        except ValueError:
            return False
        return True

    def _with_calls(self, function: FunctionType) -> FunctionType:
        code = function.__code__
        self.codes.append(code)
        for instruction in get_instructions(code):
            if instruction.opname == "RAISE_VARARGS":
                reason = f"{code.co_name} raises exceptions; return math.nan where it has no value"
                raise Refused(reason, code, instruction.positions and instruction.positions.lineno)
        seen = getclosurevars(function)
        called = {
            name: self._called(value, code)
            for name, value in (*seen.globals.items(), *seen.nonlocals.items())
            if isinstance(value, Dispatcher) or (isfunction(value) and not self._known(value))
        }
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        return FunctionType(
            code,
            function.__globals__ | called,
            function.__name__,
            function.__defaults__,
            tuple(CellType(called.get(name, cell.cell_contents)) for name, cell in cells),
        )

    def _called(self, function: Callable, caller: CodeType) -> Any:
        found = self.jitted(function)
        if found is None:
            raise Refused(f"{function.__name__} calls itself; write it as a loop", caller)
        return found

    def all_checked(self, given: tuple[Any, ...], n: int) -> list[Any]:
        """The jitted functions of n numbers, None where none is given."""
        return [None if function is None else self._checked(function, n) for function in given]

    def _checked(self, function: Callable, n: int) -> Any:
        jitted, arguments = self.jitted(function), (self._real,) * n
        code = getattr(getattr(function, "py_func", function), "__code__", None)
        try:
            _, _, folded, _ = jitted.get_call_template(arguments, {})
        except Exception as error:  # NumbaError, and whatever its inference trips over
            raise self._refused(error, code) from error
        returned = jitted.overloads[tuple(folded)].signature.return_type
        numbers = returned if isinstance(returned, BaseTuple) else (returned,)
        if not all(isinstance(t, _NUMBERS) for t in numbers):
            raise Refused(f"it returns {returned}, expected numbers in all cases", code)
        if not self._widens:
            return jitted
        if n == 1:
            return self.jit(lambda z: jitted(np.float64(z)))
        return self.jit(lambda y, t: jitted(np.float64(y), np.float64(t)))

    def _refused(self, error: Exception, code: CodeType | None) -> Refused:
        message = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
        place = next(chain(self._names(message), self._places(message)), (code, None))
        return Refused(_reason(message), *place)

    def _places(self, message: str) -> Iterator[tuple[CodeType, int]]:
        """The lines of the user's that Numba's message names, those deepest inside first."""
        for match in re.finditer(r'(?:File "(.+?)", line |Raised from (.+?) \()(\d+)', message):
            path, line = abspath(match[1] or match[2]), int(match[3])
            for code in self.codes:
                lines = [n for _, _, n in code.co_lines() if n is not None]
                if path == abspath(code.co_filename) and min(lines) <= line <= max(lines):
                    yield code, line

    def _names(self, message: str) -> Iterator[tuple[CodeType, int]]:
        """The lines that have the name that the message says is not defined."""
        missing = re.search(r"name '(\w+)' is not defined", message)
        for code in self.codes if missing else ():
            for instruction in get_instructions(code):
                if missing and instruction.argval == missing[1] and instruction.positions:
                    yield code, instruction.positions.lineno or code.co_firstlineno


def _reason(message: str) -> str:
    """What Numba says in tens of lines, in one."""
    lines = [line for line in message.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Failed in nopython mode")] or lines
    call = re.match(r" *>>> (.+)", lines[1]) if len(lines) > 1 else None
    if call and lines[0].startswith("No implementation of"):
        return f"Numba has no {call[1]}"
    return re.split(r"[.,]* (?:defined at|operation:|Raised from) ", lines[0])[0]


# The functions over arrays.


@emits(FLAG, same, same)
def _same(code, a, b):
    """Whether two pointers are equal."""
    return code.builder.icmp_unsigned("==", a, b)


@emits(NUMBER, NUMBER, same)
def _plus(code, total, term):
    """The sum of a float64 and a number; of those in a loop the order is free."""
    wide = code.context.cast(code.builder, term, code.types[1], types.float64)
    return code.builder.fadd(total, wide, flags=("reassoc",))


def _over_array(of_number: Any) -> Callable:
    # Two loops: in one, LLVM would find at run time that the places overlap, and take its loop
    # over single numbers.
    def over_array(n, z, out):
        if _same(z, out):
            for i in range(n):
                out[i] = of_number(out[i])
        else:
            for i in range(n):
                out[i] = of_number(z[i])

    return over_array


def _activation(compiler: _Compiler, given: tuple[Any, ...]) -> Callable:
    f, df, d2f = compiler.all_checked(given, 1)
    values = compiler.jit(_over_array(f), inline=False)
    slopes = compiler.jit(_over_array(df), inline=False)
    # Without d2f nobody asks for the second derivative.
    bends = compiler.jit(_over_array(d2f), inline=False) if d2f else slopes

    def apply(order, n, z, out):
        if order == 0:
            values(n, z, out)
        elif order == 1:
            slopes(n, z, out)
        elif order == 2:
            bends(n, z, out)
        else:
            for i in range(n):
                out[i] *= df(z[i])

    return apply


def _loss(compiler: _Compiler, given: tuple[Any, ...]) -> Callable:
    f, d2 = compiler.all_checked(given, 2)

    def first(n, y, t, weights, factor, d):
        total = 0.0
        if is_given(weights):
            for i in range(n):
                value, slope = f(y[i], t[i])
                total = _plus(total, weights[i] * value)
                d[i] = slope * (weights[i] * factor)
        else:
            for i in range(n):
                value, slope = f(y[i], t[i])
                total = _plus(total, value)
                d[i] = slope * factor
        return total

    def second(n, y, t, weights, factor, d):
        if is_given(weights):
            for i in range(n):
                d[i] = d2(y[i], t[i]) * (weights[i] * factor)
        else:
            for i in range(n):
                d[i] = d2(y[i], t[i]) * factor
        return 0.0

    first = compiler.jit(first, inline=False)
    second = compiler.jit(second, inline=False) if d2 else first  # which nobody asks for then

    def apply(order, n, y, t, weights, factor, d):
        if order == 1:
            return first(n, y, t, weights, factor, d)
        return second(n, y, t, weights, factor, d)

    return apply


def compile_activation(
    given: tuple[Any, ...], roots: list[Expression] | None, dtype: np.dtype
) -> CFunc:
    """A user's function and its derivatives (or None) as void (order, n, z, out).

    out becomes the function (order 0) or a derivative (1, 2) of z, which it may be; or, as order 3,
    out times the first derivative. `roots` are their expressions, if these are known.

    Raises
    ------
    Refused
        If Numba cannot compile one of them.
    """
    make = _activation if roots is None else lambda *_: expressions.activation(roots)
    return _compile(make, given, dtype, types.void, reals, reals)


def compile_loss(given: tuple[Any, ...], roots: list[Expression] | None, dtype: np.dtype) -> CFunc:
    """A user's loss and its second derivative as double (order, n, y, t, weights, factor, d).

    Returns Σ w ℓ(y, t) of n pairs; d becomes factor·w·ℓ' (order 1) or factor·w·ℓ'' (order 2). All
    weights w are 1 if that pointer is null. Raises as `compile_activation` does.
    """
    arguments = reals, reals, reals, itself, reals
    make = _loss if roots is None else lambda *_: expressions.loss(roots)
    return _compile(make, given, dtype, types.float64, *arguments)


def _compile(make: Callable, given: Any, dtype: np.dtype, returns: Any, *arguments: Any) -> CFunc:
    """The function that `make` makes of those given; its first arguments are the order and n."""
    real = types.float32 if dtype == np.float32 else types.float64
    arguments = types.int64, types.int64, *(argument(real) for argument in arguments)

    def compiled(cfunc: type[CFunc], arithmetic: types.Float) -> CFunc:
        function = make(_Compiler(arithmetic, real), given)
        compiled = cfunc(function, (arguments, returns), {}, {**_OPTIONS, "nopython": True})
        compiled.compile()
        return compiled

    if real == types.float32:
        with suppress(Exception):  # whatever it trips over, float64 is right
            return compiled(_CFuncFloat32, types.float32)
    return compiled(_CFunc, types.float64)
