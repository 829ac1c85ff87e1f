"""Calls of users' functions with symbols, and the functions with derivatives that come of them.

A user's function is called once with symbols, which record as expressions what it does with them.
NumPy's functions pass symbols to their class. Those of `math`, min and max do not: a copy of the
user's function is called, whose globals, cells and helper functions have stand-ins for these. The
user's modules stay as they are.
"""

from __future__ import annotations

import builtins
import linecache
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import cached_property, partial, reduce
from numbers import Real
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, ClassVar, cast

import numpy as np

from ..common.errors import TraceError
from . import algebra, expressions as ex, scalars
from .derivatives import derivative, keeping_nan, with_limits
from .expressions import Expression
from .programs import Program, program
from .user_functions import (
    POINTS,
    PairFunctions,
    ScalarFunctions,
    check_derivative,
    number,
    require_callable,
)


class _Refusal(Exception):
    """What has no expression, in words."""


_BRANCH = "a branch on a value; write np.where(condition, a, b)"


def _refuse(operation: str) -> Callable:
    def refused(*_: Any, **__: Any) -> Any:
        raise _Refusal(operation)

    return refused


# What makes an expression of an array that a user's function reads, or None of one that does not
# fit; without it such arrays are refused.
DATA: ContextVar[Callable[[np.ndarray], Expression | None] | None] = ContextVar(
    "DATA", default=None
)


def _expression(x: Any) -> Expression:
    if isinstance(x, Symbol):
        return x.expression
    if isinstance(x, np.ndarray) and x.ndim and x.dtype.kind in "biuf":
        of_data = DATA.get()
        column = None if of_data is None else of_data(x)
        if column is not None:
            return column
    if isinstance(x, np.ndarray) and x.ndim == 0 and x.dtype.kind in "biuf":
        x = x[()]
    if not isinstance(x, Real | np.bool_):
        if isinstance(x, np.ndarray):
            kind = f"an array of shape {x.shape}"
        else:
            kind = f"a {type(x).__name__}" if isinstance(x, list | tuple | dict) else f"{x!r}"
        raise _Refusal(f"arithmetic with {kind}, expected numbers")
    return ex.constant(float(x))


def _recorded(function: Callable[..., Expression], truths: bool = False) -> Callable:
    """A function of symbols and numbers from one of expressions; truth values count as 0 and 1."""

    def of_symbols(*arguments: Any) -> Symbol:
        expressions = map(_expression, arguments)
        return Symbol(function(*(expressions if truths else map(algebra.number, expressions))))

    return of_symbols


def _truth(x: Expression) -> Expression:
    plain = x.operation in ex.TRUTHS or x.operation == "constant"
    return x if plain else algebra.compare("not", algebra.compare("equal", x, ex.ZERO))


def _logical(operation: str) -> Callable:
    return _recorded(lambda *xs: algebra.compare(operation, *map(_truth, xs)), truths=True)


def _swapped(function: Callable) -> Callable:
    return lambda x, y: function(y, x)


def _unary(name: str) -> Callable:
    return _recorded(partial(algebra.apply, name))


_negate = _recorded(algebra.negative)
_plain_add, _subtract = _recorded(algebra.add), _recorded(algebra.subtract)
_multiply, _divide, _power = (
    _recorded(algebra.multiply),
    _recorded(algebra.divide),
    _recorded(algebra.power),
)
_max, _min = _recorded(partial(algebra.bound, "max")), _recorded(partial(algebra.bound, "min"))
_less = _recorded(partial(algebra.compare, "less"))
_less_equal = _recorded(partial(algebra.compare, "less_equal"))
_equal = _recorded(partial(algebra.compare, "equal"))
_and, _or, _not = _logical("and"), _logical("or"), _logical("not")


def _is_truth(x: Any) -> bool:
    if isinstance(x, Symbol):
        return x.expression.operation in ex.TRUTHS
    return isinstance(x, bool) or getattr(x, "dtype", None) == np.bool_


def _add(x: Any, y: Any) -> Symbol:
    if _is_truth(x) and _is_truth(y):
        raise _Refusal("the sum of two comparisons, which is 'or' for arrays; write 1.0 * (a < b)")
    return _plain_add(x, y)


def _where(condition: Any, x: Any, y: Any) -> Symbol:
    truth, *sides = map(_expression, (condition, x, y))
    return Symbol(algebra.where(_truth(truth), *map(algebra.number, sides)))


def _clip(x: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Any:
    low, high = a_min if min is None else min, a_max if max is None else max
    x = x if low is None else _max(x, low)
    return x if high is None else _min(x, high)


def _extremum(of_two: Callable, of_numbers: Callable) -> Callable:
    """min or max of Python."""

    def extremum(*arguments: Any, **options: Any) -> Any:
        values = list(arguments[0]) if len(arguments) == 1 else arguments
        if not _any_symbol(values):
            return of_numbers(values, **options)
        if options.get("key") is not None:
            raise _Refusal(f"{of_numbers.__name__} with a key")
        return reduce(of_two, values)

    return extremum


class Symbol:
    """A number that is not known yet; it stands for a variable or an expression of variables."""

    __slots__ = ("expression",)
    __hash__ = object.__hash__

    def __init__(self, expression: Expression):
        self.expression = expression

    __add__ = __radd__ = _add
    __sub__, __rsub__ = _subtract, _swapped(_subtract)
    __mul__ = __rmul__ = _multiply
    __truediv__, __rtruediv__ = _divide, _swapped(_divide)
    __pow__, __rpow__ = _power, _swapped(_power)
    __neg__, __abs__ = _negate, _unary("abs")
    __lt__, __le__ = _less, _less_equal
    __gt__, __ge__ = _swapped(_less), _swapped(_less_equal)
    __eq__, __ne__ = _equal, lambda x, y: _not(_equal(x, y))
    __and__ = __rand__ = _and
    __or__ = __ror__ = _or
    __invert__ = _not
    __bool__ = _refuse(_BRANCH)
    __float__ = __int__ = __index__ = _refuse("a conversion to a number")
    __array__ = _refuse("a conversion to an array")
    __floordiv__ = __rfloordiv__ = _refuse("the operation //")
    __mod__ = __rmod__ = __divmod__ = __rdivmod__ = _refuse("the operation %")
    __round__ = __trunc__ = __floor__ = __ceil__ = _refuse("rounding to an integer")

    def __pos__(self) -> Symbol:
        return self

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Symbol:
        function = _UFUNCS.get(ufunc.__name__)
        if function is None or method != "__call__" or options:
            raise _Refusal(f"NumPy's {ufunc.__name__}")
        return function(*inputs)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        if function is np.where and len(arguments) == 3:
            return _where(*arguments)
        if function in _ARRAY_FUNCTIONS:
            return _ARRAY_FUNCTIONS[function](*arguments, **options)
        raise _Refusal(f"NumPy's {function.__name__}")


def _select(conditions: Sequence[Any], choices: Sequence[Any], default: Any = 0) -> Any:
    pairs = list(zip(conditions, choices, strict=True))
    return reduce(lambda below, pair: _where(pair[0], pair[1], below), reversed(pairs), default)


def _piecewise(x: Any, conditions: Sequence[Any], functions: Sequence[Any], *args: Any) -> Any:
    values = [f(x, *args) if callable(f) else f for f in functions]
    default = values[-1] if len(values) > len(conditions) else 0
    # Of several conditions that hold NumPy takes the last one.
    pairs = zip(conditions, values, strict=False)
    return reduce(lambda below, pair: _where(pair[0], pair[1], below), pairs, default)


def _polyval(coefficients: Sequence[Any], x: Any) -> Any:
    return reduce(lambda value, c: value * x + c, coefficients, 0.0)


_ARRAY_FUNCTIONS: dict[Any, Callable] = {
    np.clip: _clip, np.select: _select, np.piecewise: _piecewise, np.polyval: _polyval,
}  # fmt: skip


def _any_symbol(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Symbol) for value in values)


# Functions that are made of others.


def _logaddexp(x: Expression, y: Expression) -> Expression:
    if y.operation == "constant":
        x, y = y, x
    if x.operation == "constant" and math.isfinite(x.value):
        return algebra.add(x, algebra.apply("softplus", algebra.subtract(y, x)))
    # From the larger one: a difference of large numbers would lose digits, one of infinities all.
    above, below = (
        algebra.add(first, algebra.apply("softplus", algebra.subtract(second, first)))
        for first, second in ((x, y), (y, x))
    )
    return algebra.where(algebra.compare("less", x, y), below, above)


def _normal_cdf(x: Expression) -> Expression:
    scaled = algebra.multiply(ex.constant(-math.sqrt(0.5)), x)
    return algebra.multiply(ex.HALF, algebra.apply("erfc", scaled))


def _xlogy(x: Expression, y: Expression) -> Expression:
    return ex.node("xlogy", x, y)


def _scaled(factor: float, x: Expression) -> Expression:
    return algebra.multiply(ex.constant(factor), x)


def _heaviside(x: Expression, at_0: Expression) -> Expression:
    step = algebra.multiply(ex.HALF, algebra.add(algebra.apply("sign", x), ex.ONE))
    return algebra.where(algebra.compare("equal", x, ex.ZERO), at_0, step)


def _hypot(x: Expression, y: Expression) -> Expression:
    return algebra.apply("sqrt", algebra.add(algebra.power(x, ex.TWO), algebra.power(y, ex.TWO)))


_UFUNCS: dict[str, Callable] = {
    "add": _add, "subtract": _subtract, "multiply": _multiply, "divide": _divide,
    "power": _power, "float_power": _power, "negative": _negate, "positive": lambda x: x,
    "maximum": _max, "minimum": _min, "absolute": _unary("abs"), "fabs": _unary("abs"),
    "less": _less, "less_equal": _less_equal, "greater": _swapped(_less),
    "greater_equal": _swapped(_less_equal), "equal": _equal,
    "not_equal": lambda x, y: _not(_equal(x, y)),
    "logical_and": _and, "logical_or": _or, "logical_not": _not,
    "bitwise_and": _and, "bitwise_or": _or, "invert": _not,
    "square": lambda x: _power(x, 2), "reciprocal": lambda x: _divide(1, x),
    "logaddexp": _recorded(_logaddexp), "expit": _unary("sigmoid"),
    "ndtr": _recorded(_normal_cdf), "xlogy": _recorded(_xlogy),
    "hypot": _recorded(_hypot), "heaviside": _recorded(_heaviside),
    "exp2": _recorded(lambda x: algebra.apply("exp", _scaled(math.log(2), x))),
    "log2": _recorded(lambda x: _scaled(1 / math.log(2), algebra.apply("log", x))),
    "log10": _recorded(lambda x: _scaled(1 / math.log(10), algebra.apply("log", x))),
    "deg2rad": _recorded(partial(_scaled, math.pi / 180)),
    "rad2deg": _recorded(partial(_scaled, 180 / math.pi)),
    **{name: _unary(name) for name in (
        "sign", "exp", "expm1", "log", "log1p", "sqrt", "cbrt", "sin", "cos", "tan", "arcsin",
        "arccos", "arctan", "sinh", "cosh", "tanh", "arccosh", "arcsinh", "arctanh", "erf", "erfc",
    )},
}  # fmt: skip


def _log(x: Any, *base: Any) -> Any:
    logarithms = map(_unary("log"), (x, *base))
    return reduce(_divide, logarithms)


# Functions that do not pass symbols to their class: what to record for them.
_FUNCTIONS: dict[Any, Callable] = {
    math.pow: _power, math.hypot: _recorded(_hypot),
    operator.add: _add, operator.sub: _subtract, operator.mul: _multiply,
    operator.truediv: _divide, operator.pow: _power, operator.neg: _negate,
    scalars.exp: _unary("exp"), scalars.tanh: _unary("tanh"), scalars.sigmoid: _unary("sigmoid"),
    float: _recorded(lambda x: x),
    **{getattr(math, name): _UFUNCS[ufunc] for name, ufunc in {
        "fabs": "absolute", "asin": "arcsin", "acos": "arccos", "atan": "arctan",
        "acosh": "arccosh", "asinh": "arcsinh", "atanh": "arctanh", "radians": "deg2rad",
        "degrees": "rad2deg",
        **{name: name for name in (
            "exp", "exp2", "expm1", "log1p", "log2", "log10", "sqrt", "cbrt", "sin", "cos", "tan",
            "sinh", "cosh", "tanh", "erf", "erfc",
        )},
    }.items() if hasattr(math, name)},
    math.log: _log,
}  # fmt: skip


def _isinstance(x: Any, kinds: Any) -> bool:
    """Python's, where the stand-in of float counts as float."""
    if isinstance(kinds, tuple):
        return any(_isinstance(x, kind) for kind in kinds)
    return isinstance(x, getattr(kinds, "stands_for", kinds))


class _Module:
    """A module whose functions are replaced by stand-ins as they are read."""

    def __init__(self, module: ModuleType, stand_in: Callable[[Any], Any]):
        self._module, self._stand_in = module, stand_in

    def __getattr__(self, name: str) -> Any:
        return self._stand_in(getattr(self._module, name))


class _Copies:
    """Copies of users' functions that call stand-ins; `codes` are those of all of them."""

    _LIBRARIES: ClassVar = ("numpy", "scipy", "numba")  # which pass symbols on, or cannot

    def __init__(self) -> None:
        self.codes: set[CodeType] = set()
        self._done: dict[FunctionType, FunctionType] = {}
        names = ("max", "min", "float", "isinstance", "__import__")
        stand_ins = {name: self.stand_in(getattr(builtins, name)) for name in names}
        self._builtins = vars(builtins) | stand_ins

    def callable(self, f: Callable) -> Callable:
        """What is called in the place of f, which may be an object with a method `__call__`."""
        method = vars(type(f)).get("__call__")
        if isinstance(method, FunctionType) and not self._of_library(method):
            f = MethodType(method, f)
        return cast("Callable", self.stand_in(f))

    def stand_in(self, x: Any) -> Any:
        """What a copy has in the place of x; x itself as a rule."""
        if type(x).__module__.startswith("numba."):
            x = getattr(x, "py_func", x)
        if x is max or x is min:
            return _extremum(_max if x is max else _min, x)
        if x is isinstance:
            return _isinstance
        if x is builtins.__import__:
            return lambda *arguments: self.stand_in(x(*arguments))
        if isinstance(x, BuiltinFunctionType | FunctionType | type) and x in _FUNCTIONS:
            return self._choice(x, _FUNCTIONS[x])
        if isinstance(x, BuiltinFunctionType) and x.__module__ == "math":
            return self._choice(x, _refuse(f"math.{x.__name__}"))
        if isinstance(x, ModuleType) and x.__name__.split(".")[0] not in self._LIBRARIES:
            return _Module(x, self.stand_in)
        if isinstance(x, partial):
            return partial(self.stand_in(x.func), *x.args, **x.keywords)
        if isinstance(x, MethodType) and isinstance(x.__func__, FunctionType):
            return MethodType(self._copy(x.__func__), x.__self__)
        if isinstance(x, FunctionType):
            return x if self._of_library(x) else self._copy(x)
        return x

    def _of_library(self, function: FunctionType) -> bool:
        return str(function.__module__).split(".")[0] in self._LIBRARIES

    @staticmethod
    def _choice(of_numbers: Callable, of_symbols: Callable) -> Callable:
        def choice(*arguments: Any) -> Any:
            return (of_symbols if _any_symbol(arguments) else of_numbers)(*arguments)

        if of_numbers is float:
            choice.dtype = np.dtype(float)  # type: ignore[attr-defined]  # NumPy takes it as one
            choice.stands_for = float  # type: ignore[attr-defined]  # and `_isinstance`
        return choice

    def _copy(self, function: FunctionType) -> FunctionType:
        if function in self._done:
            return self._done[function]
        codes = list(nested_codes(function.__code__))
        self.codes.update(codes)
        names: dict[str, Any] = dict(function.__globals__, __builtins__=self._builtins)
        cells = tuple(CellType() for _ in function.__closure__ or ())
        copy = FunctionType(function.__code__, names, function.__name__, None, cells)
        self._done[function] = copy  # before its globals, of which it may be one
        for name in {name for code in codes for name in code.co_names}:
            if name in names:
                names[name] = self.stand_in(names[name])
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            cell.cell_contents = self.stand_in(original.cell_contents)
        copy.__defaults__ = tuple(map(self.stand_in, function.__defaults__ or ())) or None
        defaults = (function.__kwdefaults__ or {}).items()
        copy.__kwdefaults__ = {name: self.stand_in(value) for name, value in defaults}
        return copy


def nested_codes(code: CodeType) -> Iterator[CodeType]:
    """A code and those of the functions defined in it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from nested_codes(inner)


def expression_of(f: Callable, names: Sequence[str], hint: str) -> Expression:
    """What a user's function computes.

    Parameters
    ----------
    f : callable
        Of as many numbers as there are names, returning a number.
    names : sequence of str
        The variables.
    hint : str
        What to do if the function cannot be traced, for the message.

    Raises
    ------
    TraceError
        If it does something that has no expression: the message names it and the line.
    """
    return traced(f, [Symbol(ex.variable(name)) for name in names], hint)


def traced(f: Callable, arguments: Sequence[Any], hint: str) -> Expression:
    """What a user's function computes of arguments with symbols; see `expression_of`."""
    copies = _Copies()
    try:
        return algebra.number(_expression(copies.callable(f)(*arguments)))
    except Exception as error:
        operation = (
            str(error) if isinstance(error, _Refusal) else f"{type(error).__name__}: {error}"
        )
        place, filename, line = "", None, None
        trace = error.__traceback__
        while trace is not None:  # the innermost line of the user's
            code = trace.tb_frame.f_code
            if code in copies.codes:
                filename, line = code.co_filename, trace.tb_lineno
                text = linecache.getline(filename, line).strip()
                place = f"line {line} of {filename}, in {code.co_name}:\n    {text}\n"
            trace = trace.tb_next
        message = (
            f"the derivatives of f cannot be derived from its code:\n{place}{operation}\n{hint}"
        )
        raise TraceError(message, operation, filename, line) from error


# Users' functions with the derivatives that follow from them.


class TracedScalarFunctions(ScalarFunctions):
    """A user-defined function of one number whose derivatives follow from its code.

    Parameters
    ----------
    f : callable
        float -> float.
    d2f : callable, optional
        A second derivative to be used in the place of what follows.
    name : str
        What messages call the function.
    compile : bool
        Whether the C backend, too, has Numba compile the function.

    Raises
    ------
    TraceError
        If the code has something that has no expression.
    TypeError
        If f does not return a number, or is not callable.
    """

    def __init__(
        self, f: Callable, d2f: Callable | None = None, name: str = "f", compile: bool = False
    ):
        require_callable("f", f)
        values = [number(name, f, z) for z in POINTS]
        hint = "pass the derivative yourself: fastbp.Activation(name, f, df)"
        first = expression_of(f, ("z",), hint)
        slope = derivative(first, "z")
        roots = first, slope, derivative(slope, "z")
        self._derivatives = [with_limits(keeping_nan(root, "z", first), "z") for root in roots]
        callables = [ex.function_of([root], ("z",)) for root in self._derivatives]
        super().__init__(callables[0], callables[1], d2f or callables[2])
        self.arguments = f, None, d2f
        self.roots = self._derivatives if d2f is None else None
        self.compile = compile
        _require_agreement(values, self.evaluate(0, POINTS), hint)

    @cached_property
    def programs(self) -> tuple[Program, ...] | None:  # type: ignore[override]
        if self.compile or self.roots is None:
            return None
        f, df, d2f = self.roots
        return _if_they_fit(program(roots, ["z"]) for roots in ([f], [df], [d2f], [f, df]))

    def evaluate(self, order: int, Z: np.ndarray) -> np.ndarray:
        """As that of the base, over arrays."""
        if order == 2 and self.arguments[2] is not None:
            return super().evaluate(order, Z)
        (values,) = ex.evaluate([self._derivatives[order]], {"z": Z.astype(np.float64)})
        return np.broadcast_to(values, Z.shape).astype(np.float64)


class TracedPairFunctions(PairFunctions):
    """A user-defined loss whose derivatives follow from its code.

    Parameters
    ----------
    f : callable
        (prediction, target) -> loss.
    d2 : callable, optional
        A second derivative to be used in the place of what follows.
    compile : bool
        Whether the C backend, too, has Numba compile the functions.

    Raises
    ------
    TraceError
        If the code has something that has no expression.
    """

    def __init__(self, f: Callable, d2: Callable | None = None, compile: bool = False):
        hint = "return the derivative too: fastbp.custom_loss(f) with f(y, t) -> (loss, dloss)"
        loss = expression_of(f, ("y", "t"), hint)
        slope = derivative(loss, "y")
        roots = loss, slope, derivative(slope, "y")
        self._derivatives = [keeping_nan(root, "y", loss) for root in roots]
        both = ex.function_of(self._derivatives[:2], ("y", "t"))
        super().__init__(both, d2 or ex.function_of(self._derivatives[2:], ("y", "t")))
        self._arguments = f, d2, compile
        self.roots = self._derivatives if d2 is None else None
        self.compile = compile
        for t in (0.0, 1.0, 0.7):
            values = [number("the loss", partial(_with_target, f, t), y) for y in POINTS]
            _require_agreement(values, self.evaluate(POINTS, np.full_like(POINTS, t))[0], hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return TracedPairFunctions, self._arguments

    @cached_property
    def programs(self) -> tuple[Program, ...] | None:  # type: ignore[override]
        if self.compile or self.roots is None:
            return None
        loss, slope, curve = self.roots
        lists = [loss], [loss, slope], [curve]
        return _if_they_fit(program(roots, ["y", "t"]) for roots in lists)

    def evaluate(self, Y: np.ndarray, T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As that of the base, over arrays."""
        loss, slope = self._evaluate(self._derivatives[:2], Y, T)
        return loss, slope

    def second(self, Y: np.ndarray, T: np.ndarray) -> np.ndarray:
        """As that of the base, over arrays."""
        if self._arguments[1] is not None:
            return super().second(Y, T)
        return self._evaluate(self._derivatives[2:], Y, T)[0]

    @staticmethod
    def _evaluate(roots: list[Expression], Y: np.ndarray, T: np.ndarray) -> list[np.ndarray]:
        values = ex.evaluate(roots, {"y": Y.astype(np.float64), "t": T.astype(np.float64)})
        return [np.broadcast_to(value, Y.shape).astype(np.float64) for value in values]


def _if_they_fit(programs: Iterable[Program]) -> tuple[Program, ...] | None:
    """The programs, or None, so that Numba compiles the functions, if one is too large for C."""
    done = tuple(programs)
    return done if all(program.fits for program in done) else None


def _with_target(f: Callable, t: float, y: float) -> Any:
    return f(y, t)


def _require_agreement(values: Sequence[float], traced: np.ndarray, hint: str) -> None:
    """Raise TraceError unless the expression gives what f returned, where that is finite.

    A function whose code differs for symbols, or from call to call, is met here. The tolerance is
    that of derivatives: forms that lose digits are allowed.
    """
    expected = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):
        differ = abs(traced - expected) > 1e-6 * np.maximum(abs(expected), 1)
    differ = (differ | np.isnan(traced)) & np.isfinite(expected)
    if differ.any():
        at = int(np.argmax(differ))
        operation = f"f({POINTS[at]:g}) is {expected[at]:.8g}, by its expression {traced[at]:.8g}"
        message = f"the derivatives of f cannot be derived from its code: {operation}\n{hint}"
        raise TraceError(message, operation)


# Beyond the points of `check_derivative`, where differences lose too many digits.
_FURTHER = np.array([4.9, 7.7, 12.3, 19.1, 33.7])


def check_given_derivative(what: str, of: str, f: Callable, df: Callable) -> None:
    """Compare a derivative with differences, and with the one that follows from the code of f.

    Parameters
    ----------
    what, of : str
        How the message names df and f.
    f, df : callable
        float -> float.

    Raises
    ------
    ValueError
        If `user_functions.check_derivative` finds that it is wrong, or if f has an expression
        whose derivative is another one at a point of [-34, 34]. Forms that lose digits are allowed.
    """
    check_derivative(what, of, f, df)
    points = np.concatenate([POINTS, _FURTHER, -_FURTHER])
    try:
        root = expression_of(f, ("z",), "")
        at = {"z": points}
        values, slopes = ex.evaluate([root, derivative(root, "z")], at)
        values, slopes = (np.broadcast_to(x, points.shape) for x in (values, slopes))
        _require_agreement([number(of, f, z) for z in POINTS], values[: len(POINTS)], "")
    except TraceError:
        return
    for z, value, slope in zip(points.tolist(), values, slopes, strict=True):
        if not np.isfinite([value, slope]).all():
            continue
        claimed = number(what, df, z)
        if abs(claimed - slope) > 1e-5 * max(abs(slope), abs(value), 1):  # false of NaN
            raise ValueError(
                f"{what} is {claimed:.8g} at {z:g}, expected {slope:.8g}, the derivative that "
                f"follows from the code of {of}; correct the derivative, or leave it out"
            )
