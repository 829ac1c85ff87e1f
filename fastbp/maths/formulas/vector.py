"""The vectors over which formulas are written, and the mark of formulas that C names.

A formula is a Python function of vectors. The Numba backend calls it with vectors that emit LLVM's
instructions; tools/formulas.py calls it with vectors that record the operations, and writes
csrc/core/formulas.h from the record. So a formula has no branches on values and no loops over them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar

V: TypeAlias = Any  # a Vector of the caller's kind
F = TypeVar("F", bound=Callable[..., Any])


class Vector:
    """Numbers of one dtype, all treated alike; numbers may stand for vectors beside one.

    Products and sums may be fused. Comparisons give masks for `where`, false where a number is NaN.
    """

    __slots__ = ()

    def apply(self, operation: str, *operands: Any, value: Any = None) -> Self:
        """The result of an operation on this vector and others."""
        raise NotImplementedError

    def call(self, formula: Callable, arguments: tuple[Any, ...]) -> Any:
        """The result of a formula that C names."""
        return formula.formula(*arguments)  # type: ignore[attr-defined]

    def constant(self, x: float) -> Self:
        """All numbers equal to x."""
        raise NotImplementedError

    def number(self, name: str) -> Any:
        """The number of this name in `polynomials`, in the vector's dtype."""
        raise NotImplementedError

    def polynomial(self, name: str) -> Self:
        """The polynomial whose coefficients have this name in `polynomials`."""
        coefficients = self.number(name)
        if len(coefficients) < 13:
            return self._horner(coefficients)
        # The processor can work on the even and on the odd powers at once.
        square = self * self
        return square._horner(coefficients[1::2]) * self + square._horner(coefficients[::2])

    def _horner(self, coefficients: tuple[float, ...]) -> Self:
        result = self.constant(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            result = result * self + c
        return result

    def __add__(self, other: Any) -> Self:
        return self.apply("add", other)

    def __sub__(self, other: Any) -> Self:
        return self.apply("subtract", other)

    def __mul__(self, other: Any) -> Self:
        return self.apply("multiply", other)

    def __truediv__(self, other: Any) -> Self:
        return self.apply("divide", other)

    def __radd__(self, other: float) -> Self:
        return self.constant(other) + self

    def __rsub__(self, other: float) -> Self:
        return self.constant(other) - self

    def __rmul__(self, other: float) -> Self:
        return self.constant(other) * self

    def __rtruediv__(self, other: float) -> Self:
        return self.constant(other) / self

    def __neg__(self) -> Self:
        return self.apply("negative")

    def __abs__(self) -> Self:
        return self.apply("abs")

    def sqrt(self) -> Self:
        """The square root."""
        return self.apply("sqrt")

    def over(self, divisor: Any) -> Self:
        """The quotient by numbers that are not negative, to about 1.5 ULP.

        Beside a square root, with which the divider is busy, it may take less time.
        """
        return self.apply("over", divisor)

    # The same, rounded: never fused with another operation.

    def plus(self, other: Any) -> Self:
        """The sum."""
        return self + other

    def minus(self, other: Any) -> Self:
        """The difference."""
        return self - other

    def times(self, other: Any) -> Self:
        """The product."""
        return self * other

    def times_plus(self, factor: Any, term: Any) -> Self:
        """self·factor + term, rounded once if the sum is small against the term."""
        raise NotImplementedError

    # Choice.

    def __lt__(self, other: Any) -> Any:
        return self.apply("less", other)

    def __gt__(self, other: Any) -> Any:
        return self.apply("greater", other)

    def equals(self, other: Any) -> Any:
        """The mask of equal numbers."""
        return self.apply("equal", other)

    def where(self, mask: Any, otherwise: Any) -> Self:
        """These numbers under the mask, the others elsewhere."""
        return self.apply("where", mask, otherwise)

    def at_least(self, least: Any) -> Self:
        """The larger of the two; NaN where this is."""
        return self.apply("at_least", least)

    def at_most(self, most: Any) -> Self:
        """The smaller of the two; NaN where this is."""
        return self.apply("at_most", most)

    def with_sign_of(self, other: Any) -> Self:
        """These numbers, not negative or with the other's signs, with the other's signs."""
        return self.apply("with_sign_of", other)

    def in_c_where(self, mask: Any, name: str, otherwise: Any) -> Self:
        """The C library's function `name` under the mask, which is seldom; the others elsewhere."""
        raise NotImplementedError

    # Bits, as integers of the same width with the operators + - << >> & ^.

    def bits(self) -> Any:
        """The numbers' bits."""
        return self.apply("bits")

    def from_bits(self, bits: Any) -> Self:
        """The numbers of these bits."""
        return self.apply("from_bits", bits)


class TwoWords(NamedTuple):
    """A sum of two numbers; |low| is about the rounding of high."""

    high: Any
    low: Any


class Reduced(NamedTuple):
    """e^x = 2^k (1 + p), for the integer k nearest to x / ln 2."""

    p: Any
    k: Any
    shifted: Any  # has k in its last bits


def named(name: str, by_hand: bool = False) -> Callable[[F], F]:
    """Have C call a formula by a name; `by_hand` says that C's is not generated.

    Its annotations say what it takes and returns: V (a vector), TwoWords, Reduced, or float for a
    number that is known where it is called.
    """

    def mark(formula: F) -> F:
        @wraps(formula)
        def call(*arguments: Any) -> Any:
            first = arguments[0]
            vector = first[0] if isinstance(first, tuple) else first
            return vector.call(call, arguments)

        call.name, call.by_hand, call.formula = name, by_hand, formula  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return mark
