"""The exceptions of fastbp, and the message for unknown names.

Every message says what was expected, what came and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ShapeError(ValueError):
    """An array's shape does not fit; the message names the argument and both shapes."""


class NonFiniteError(ValueError):
    """Data hold NaN or infinity; the message names the first such row and column."""


class DivergenceError(ArithmeticError):
    """Training met numbers that are not finite, or its objective grew without bound.

    Attributes
    ----------
    result : FitResult
        The state of the run: epoch, step, loss and the last good parameters.
    """

    def __init__(self, message: str, result: Any = None):
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.result)


class BackendError(RuntimeError):
    """A backend cannot run here; the message says what is missing and how to install it."""


class TraceError(ValueError):
    """The derivatives of a user's function cannot be derived from its code.

    Attributes
    ----------
    operation : str
        What the function does that has no expression.
    filename, line : str, int or None
        Where it does so.
    """

    def __init__(
        self, message: str, operation: str, filename: str | None = None, line: int | None = None
    ):
        super().__init__(message)
        self.operation, self.filename, self.line = operation, filename, line

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.operation, self.filename, self.line)


def unknown_name(what: str, name: object, choices: Iterable[str]) -> str:
    """Message for a name that is not among `choices`, with the nearest one."""
    choices = list(choices)
    near = difflib.get_close_matches(str(name).lower(), [c.lower() for c in choices], n=1)
    hint = ""
    if near:
        nearest = next(c for c in choices if c.lower() == near[0])
        hint = f"; did you mean {nearest!r}?"
    return f"unknown {what} {name!r}: expected one of {', '.join(map(repr, choices))}{hint}"
