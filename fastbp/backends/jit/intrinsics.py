"""Functions of jitted code that consist of LLVM's instructions."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


class Code(NamedTuple):
    """Where the instructions of a call are being built.

    Attributes
    ----------
    builder : llvmlite.ir.IRBuilder
    context : Numba's target
    types : tuple of numba types
        The arguments'.
    returns : numba type
    """

    builder: ir.IRBuilder
    context: Any
    types: tuple[Any, ...]
    returns: Any


def same(*given: Any, index: int) -> Any:
    """Declares an argument that is taken as it is passed."""
    return given[index]


def element_of(index: int) -> Callable:
    """Declares a number of the type that another argument, a pointer, points to."""
    return lambda *given, **_: given[index].dtype


def like(index: int) -> Callable:
    """Declares what has the type of another argument."""
    return lambda *given, **_: given[index]


def emits(returns: Any, *arguments: Any, prefer_literal: bool = False) -> Callable:
    """Decorator: a function (code, value, ...) that emits instructions becomes one of jitted code.

    Its arguments beside the code are LLVM's values of the call's arguments. It returns the value of
    the result, or None if there is none.

    Parameters
    ----------
    returns, *arguments : numba type or callable
        The types: `same`, `element_of` and `like` tell them from the types that are passed.
    prefer_literal : bool
        Whether an argument that is `same` and a constant has a type that holds its value.
    """

    def decorate(emit: Callable) -> Any:
        @wraps(emit)  # which has as many arguments as Numba gives
        def typed(typingctx: Any, *given: Any) -> Any:
            declared = tuple(
                kind if isinstance(kind, types.Type) else kind(*given, index=i)
                for i, kind in enumerate(arguments)
            )
            result = returns if isinstance(returns, types.Type) else returns(*given)

            def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
                value = emit(Code(builder, context, declared, result), *values)
                return context.get_dummy_value() if value is None else value

            return result(*declared), codegen

        return intrinsic(prefer_literal=prefer_literal)(typed)

    return decorate
