"""Cells of text: the notations of numbers, and what stands for gaps. pyarrow does the work.

Nothing but a whole cell in the notation asked for is a number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

# What programs write where nothing is known.
GAPS = (
    "", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "NULL", "null", "None", "?",
)  # fmt: skip
GAP = ""  # the level of a column of texts that stands for gaps


def arrow() -> Any:
    """The module pyarrow, which reads tables; ImportError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.compute
    except ImportError:
        raise ImportError(
            "reading tables needs pyarrow, which fastbp's extra 'tables' installs; install it "
            "with: pip install pyarrow"
        ) from None
    return pyarrow


@dataclass(frozen=True)
class Notation:
    """How the numbers of a column are written.

    Parameters
    ----------
    decimal, thousands : str
        As in `Reading`.
    unit : str
        A currency or percent sign that stands before or after each number, or "".
    """

    decimal: str = "."
    thousands: str = ""
    unit: str = ""

    @cached_property
    def pattern(self) -> str:
        """A regular expression; its groups are sign and digits, twice if there is a unit."""
        digits, point, unit = r"\d+", re.escape(self.decimal), re.escape(self.unit)
        if self.thousands:
            digits = rf"(?:\d{{1,3}}(?:{self._separator}\d{{3}})+|\d+)"
        number = rf"((?:{digits}(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?)"
        if not unit:
            return rf"^([+-]?){number}$"
        return rf"^(?:([+-]?){unit} ?{number}|([+-]?){number} ?{unit})$"

    @property
    def _separator(self) -> str:
        return "[ \u00a0\u202f]" if self.thousands == " " else re.escape(self.thousands)

    def matches(self, cells: Any) -> np.ndarray:
        """Which of the cells, an array of strings without blanks around them, are numbers."""
        found = arrow().compute.match_substring_regex(cells, self.pattern)
        return found.to_numpy(zero_copy_only=False)

    def numbers(self, cells: Any) -> np.ndarray:
        """The numbers of cells that all match, float64; infinite beyond its range."""
        pa = arrow()
        change = pa.compute.replace_substring_regex
        cells = change(cells, self.pattern, r"\1\2\3\4" if self.unit else r"\1\2")
        if self.thousands:
            cells = change(cells, self._separator, "")
        if self.decimal != ".":
            cells = pa.compute.replace_substring(cells, self.decimal, ".")
        return cells.cast(pa.float64()).to_numpy(zero_copy_only=False)

    def words(self) -> str:
        """What is unusual of it."""
        parts = ["decimal comma"] * (self.decimal == ",")
        parts += [f"thousands {self.thousands!r}"] * bool(self.thousands)
        return ", ".join([*parts, *[f"in {self.unit}"] * bool(self.unit)])


USUAL = Notation()


def notations_of(texts: Sequence[str]) -> list[Notation]:
    """The notations in which all these texts are numbers, the simplest ones."""
    unit = unit_of(texts[0]) if texts else ""
    found: list[Notation] = []
    for pair in ((".", ""), (",", ""), (".", ","), (",", "."), (".", " "), (",", " "), (".", "'")):
        notation = Notation(*pair, unit)
        simpler = any(other.thousands == "" and other.decimal == pair[0] for other in found)
        if not simpler and texts and all(re.match(notation.pattern, t, re.ASCII) for t in texts):
            found.append(notation)
    return found


def unit_of(cell: str) -> str:
    """The currency or percent sign before or after what may be a number, or ""."""
    for place in (cell.lstrip("+-")[:1], cell[-1:]):
        if place == "%" or (place and unicodedata.category(place) == "Sc"):
            return place
    return ""


def gap_texts() -> Any:
    """GAPS as an array of pyarrow."""
    return arrow().array(GAPS)


def is_numeric(kind: Any) -> bool:
    """Whether a type of pyarrow is one of numbers."""
    types = arrow().types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def shown(cell: str) -> str:
    return repr(cell) if cell else "empty"


def advice_for(texts: Sequence[str], asked: Notation) -> str:
    """Which options would read these texts as numbers, after a semicolon; "" if none would."""
    options = []
    for notation in notations_of([text for text in texts if text != GAP]):
        if (notation.decimal, notation.thousands) == (asked.decimal, asked.thousands):
            return ""
        option = f"--decimal {notation.decimal}" if notation.decimal != asked.decimal else ""
        if notation.thousands:
            shown = "' '" if notation.thousands == " " else notation.thousands
            option += f" --thousands {shown}"
        options.append(option.strip())
    return f"; if these are numbers, say {' or '.join(options)}" if options else ""
