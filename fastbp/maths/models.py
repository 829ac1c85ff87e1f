"""Models of data, traced: what a function of parameters computes row by row, as an expression.

A user's function is called once, as `symbols` does it; its parameters are symbols. Arrays with an
entry per row of the data, which the function reads from its arguments or from elsewhere, become
columns: variables of the expression. Its derivatives by the parameters follow from the expression.
"""

from __future__ import annotations

import builtins
import dis
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from ..common.errors import TraceError
from . import expressions as ex
from .derivatives import derivatives
from .expressions import Expression
from .symbols import DATA, Symbol, nested_codes, traced

_HINT = "pass the derivative yourself: jac"
TOLERANCE = 1e-7  # of values by the expression, relative to those that the function returns


class Formula:
    """The expressions of a model, whose parameters are the variables "p0", "p1", ...

    Attributes
    ----------
    value : Expression
    """

    def __init__(self, value: Expression, n_params: int):
        self.value, self.names = value, parameter_names(n_params)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (ex.listed(self.value), len(self.names))

    @cached_property
    def slopes(self) -> list[Expression]:
        """The derivatives of `value` by the parameters."""
        return derivatives(self.value, self.names)

    @cached_property
    def of_value(self) -> ex.Tape:
        """What computes the value."""
        return ex.Tape([self.value])

    @cached_property
    def of_slopes(self) -> ex.Tape:
        """What computes the slopes."""
        return ex.Tape(self.slopes)


@lru_cache(maxsize=256)
def formula(value: Expression, n_params: int) -> Formula:
    """The `Formula`; the same one for the same expression."""
    return Formula(value, n_params)


def _restored(lines: list[Any], n_params: int) -> Formula:
    return formula(ex.of_list(lines), n_params)


@lru_cache(maxsize=64)
def parameter_names(n: int) -> tuple[str, ...]:
    """The names of n parameters in expressions."""
    return tuple(f"p{j}" for j in range(n))


class Model:
    """A `Formula` with the columns of data that it reads.

    Attributes
    ----------
    formula : Formula
    columns : dict
        Arrays (n,) of float64, by the names of their variables.
    n : int
        The number of rows.
    """

    def __init__(self, formula: Formula, columns: dict[str, np.ndarray], n: int):
        self.formula, self.columns, self.n = formula, columns, n

    def values(self, p: np.ndarray) -> np.ndarray:
        """The model (n,) at parameters p (k,)."""
        result = np.empty(self.n)
        result[:] = self.formula.of_value(self._variables(p))[0]
        return result

    def jacobian(self, p: np.ndarray) -> np.ndarray:
        """Its derivatives (n, k) by the parameters."""
        result = np.empty((self.n, len(p)))
        for j, slope in enumerate(self.formula.of_slopes(self._variables(p))):
            result[:, j] = slope
        return result

    def _variables(self, p: np.ndarray) -> dict[str, Any]:
        return self.columns | dict(zip(self.formula.names, p, strict=True))


# Tracing.


class _Columns:
    """The columns (n,) that a function reads, while it is traced."""

    def __init__(self, n: int):
        self.n = n
        self.arrays: dict[str, np.ndarray] = {}
        self.met = False  # whether there was an array, which may have been a constant
        self._names: dict[bytes, str] = {}

    def expression(self, array: np.ndarray) -> Expression | None:
        """The variable of an array, a constant if all entries are equal; None for other shapes."""
        if array.size == 1 and array.ndim == 1:
            return ex.constant(float(array[0]))
        if array.shape != (self.n,):
            return None
        self.met = True
        column = np.array(array, np.float64)
        if (column == column[0]).all():
            return ex.constant(float(column[0]))
        name = self._names.setdefault(column.tobytes(), f"data{len(self.arrays)}")
        self.arrays.setdefault(name, column)
        return ex.variable(name)


class _Rows(Sequence[Symbol]):
    """The rows of x (k, n), or the entries of a vector: symbols."""

    def __init__(self, symbols: Sequence[Symbol]):
        self._symbols = symbols

    def __len__(self) -> int:
        return len(self._symbols)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and len(key) == 2 and key[1] in (slice(None), Ellipsis):
            key = key[0]
        found = self._symbols[key]
        return _Rows(found) if isinstance(key, slice) else found


def trace_curve(f: Callable, x: Any, n: int, n_params: int) -> tuple[Model, bool]:
    """The model f(x, *parameters) of n rows.

    First f is called with symbols for x, an array (n,) or (k, n), and the expression is stored, to
    be used again for the same code as long as all that it reads is the same. Where f does with x
    what has no expression (a mean, a length, a row), f is called with x itself, whose arrays become
    columns.

    Returns
    -------
    model : Model
    known : bool
        Whether the expression was stored earlier; else `require_agreement` is due.

    Raises
    ------
    TraceError
        If f has no expression.
    """
    shape = x.shape if type(x) is np.ndarray else None
    if shape == (n,):
        columns, rows = {"x": x}, 0
    elif shape is not None and len(shape) == 2 and shape[1] == n:
        columns, rows = {f"x{i}": row for i, row in enumerate(x)}, shape[0]
    else:
        return _trace(f, (x if shape is None else x.copy(),), n, n_params)[0], False
    key = (id(f.__code__), rows, n_params) if isinstance(f, FunctionType) else None
    stored = _stored.get(key)
    if stored is not None and isinstance(f, FunctionType) and stored.reads.same(f):
        return Model(stored.formula, columns, n), True
    symbols = [Symbol(ex.variable(name)) for name in columns]
    try:
        model, of_x = _trace(f, (_Rows(symbols) if rows else symbols[0],), n, n_params)
    except TraceError:
        return _trace(f, (x.copy(),), n, n_params)[0], False
    reads = reads_of(f) if isinstance(f, FunctionType) and of_x else None
    if reads is not None:
        if len(_stored) >= 256:
            _stored.clear()
        _stored[key] = _Stored(reads, model.formula)
    model.columns |= columns
    return model, False


def trace_residuals(fun: Callable, args: tuple, n_params: int, n: int) -> Model:
    """The model of n residuals fun(parameters, *args).

    Raises
    ------
    TraceError
        If fun has no expression.
    """
    symbols = [Symbol(ex.variable(name)) for name in parameter_names(n_params)]
    return _traced(lambda: traced(fun, (_Rows(symbols), *args), _HINT), n, n_params)[0]


def _trace(f: Callable, x: tuple, n: int, n_params: int) -> tuple[Model, bool]:
    symbols = [Symbol(ex.variable(name)) for name in parameter_names(n_params)]
    return _traced(lambda: traced(f, (*x, *symbols), _HINT), n, n_params)


def _traced(call: Callable[[], Expression], n: int, n_params: int) -> tuple[Model, bool]:
    """The model of what is called, and whether no array entered it but by symbols."""
    columns = _Columns(n)
    token = DATA.set(columns.expression)
    try:
        value = call()
    finally:
        DATA.reset(token)
    return Model(formula(value, n_params), columns.arrays, n), not columns.met


def forget(f: Callable) -> None:
    """Remove the stored expressions of f."""
    if type(f) is FunctionType:
        for key in [key for key in list(_stored) if key[0] == id(f.__code__)]:
            _stored.pop(key, None)


def require_agreement(model: Model, p: np.ndarray, values: np.ndarray) -> None:
    """Raise TraceError unless the model gives the values (n,) that the function returned at p."""
    found, size = model.values(p), np.abs(values)
    known = np.isfinite(values)
    largest = size[known].max(initial=0.0)
    with np.errstate(invalid="ignore"):
        near = np.abs(found - values) <= TOLERANCE * np.maximum(size, 1e-3 * largest)
    if (near | ~known).all():
        return
    row = int(np.flatnonzero(~near & known)[0])
    operation = f"it returns {values[row]:.8g} in row {row}, by its expression {found[row]:.8g}"
    raise TraceError(f"f does not compute what its code says: {operation}", operation)


def require_agreement_nearby(
    model: Model,
    p: np.ndarray,
    values: Callable[[np.ndarray], np.ndarray],
    bounds: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    """The same at a point near p, between the bounds, that is no multiple of p and has no zeros.

    `values` is the function p -> (n,); the point may be none at which it can be called.
    """
    share = 0.1 + 0.05 * np.sin(np.arange(1, len(p) + 1))
    moved = np.where(p == 0, share, p * (1 + share))
    if bounds is not None:
        moved = np.clip(moved, *bounds)
    try:
        with np.errstate(all="ignore"):
            there = values(moved)
    except (ArithmeticError, ValueError):
        return
    require_agreement(model, moved, there)


# What functions read: as long as it is the same, so is what was traced.


class _Stored:
    """A stored expression: what the tracing read, and the formula."""

    def __init__(self, reads: Reads, formula: Formula):
        self.reads, self.formula = reads, formula


_stored: dict[Any, _Stored] = {}

# Built-in functions that depend on the values of their arguments alone: `isinstance` and the like
# tell symbols from numbers, so that their results are not stored.
_PURE = frozenset((
    "abs", "min", "max", "float", "int", "len", "range", "sum", "pow", "zip", "enumerate", "tuple",
    "list", "round", "bool", "map", "reversed", "sorted", "any", "all", "divmod",
))  # fmt: skip
_LIBRARIES = ("numpy", "scipy", "math", "cmath")
_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), np.number, np.bool_, np.ufunc)
_OF_LIBRARIES = (ModuleType, BuiltinFunctionType, FunctionType, type, type(np.where))
_MISSING = object()
_IMPORT = dis.opmap["IMPORT_NAME"]


class _Mutable(Exception):
    """What a function reads may change without notice."""


class Reads:
    """What a function and those that it calls read: globals, closures and defaults.

    Parameters
    ----------
    f : function

    Raises
    ------
    _Mutable
        If some of it can change and still be the same object: an array, an instance of a class.
    """

    def __init__(self, f: FunctionType):
        self._code, self._globals = f.__code__, f.__globals__
        self._own = _values(f)
        self._names: list[tuple[dict[str, Any], str, Any]] = []
        self._others: list[tuple[FunctionType, CodeType, tuple[Any, ...]]] = []
        self._seen = {f}
        self._read(f, self._own)

    def _read(self, f: FunctionType, values: tuple[Any, ...]) -> None:
        for value in values:
            self._require_constant(value)
        codes = list(nested_codes(f.__code__))
        # A `try` may hide a branch from symbols.
        if any(_IMPORT in code.co_code[::2] or code.co_exceptiontable for code in codes):
            raise _Mutable
        for name in {name for code in codes for name in code.co_names}:
            value = f.__globals__.get(name, _MISSING)
            self._names.append((f.__globals__, name, value))
            if value is not _MISSING:
                self._require_constant(value)
            elif hasattr(builtins, name) and name not in _PURE:
                raise _Mutable

    def _require_constant(self, value: Any) -> None:
        if isinstance(value, _CONSTANTS):
            return
        if isinstance(value, tuple):
            for entry in value:
                self._require_constant(entry)
            return
        if isinstance(value, ModuleType):
            library = value.__name__
        elif isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            if owner is builtins and value.__name__ in _PURE:
                return
            library = value.__module__ if owner is None or isinstance(owner, ModuleType) else ""
        else:
            library = getattr(value, "__module__", None) or ""
        if library.split(".")[0] in _LIBRARIES and isinstance(value, _OF_LIBRARIES):
            return
        if type(value) is FunctionType and not value.__dict__:
            if value not in self._seen:
                self._seen.add(value)
                values = _values(value)
                self._others.append((value, value.__code__, values))
                self._read(value, values)
            return
        raise _Mutable

    def same(self, f: FunctionType) -> bool:
        """Whether f, perhaps made anew from the same code, reads the same."""
        if f.__code__ is not self._code or f.__globals__ is not self._globals:
            return False
        for names, name, value in self._names:
            now = names.get(name, _MISSING)
            if now is not value and not _same(now, value):
                return False
        return _equal(_values(f), self._own) and all(
            other.__code__ is code and _equal(_values(other), values)
            for other, code, values in self._others
        )


def reads_of(f: FunctionType) -> Reads | None:
    """What f reads; None if it may change without notice."""
    try:
        return Reads(f)
    except _Mutable:
        return None


def _values(f: FunctionType) -> tuple[Any, ...]:
    """The contents of a function's closure, and its defaults."""
    cells, named = f.__closure__, f.__kwdefaults__
    values = () if cells is None else tuple(map(_content, cells))
    return (*values, *(f.__defaults__ or ()), *(named.items() if named else ()))


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return _MISSING


def _equal(some: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    return len(some) == len(others) and all(map(_same, some, others))


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one object, or equal numbers, of which 0 has two signs."""
    if one is other:
        return True
    kind = type(one)
    if kind is tuple and type(other) is tuple:
        return _equal(one, other)
    return kind is type(other) and kind in (int, float, str) and bool(one) and one == other
