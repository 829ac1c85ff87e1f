"""The numbers that Python and C share are written once, and C's copy is up to date."""

from __future__ import annotations

import re

import pytest
from helpers import repository
from helpers.repository import ROOT

DEFINITION = re.compile(r"^\s*#\s*define\s+FB_(\w+)\s+\(?(-?[\d.]\S*?)\)?(?:\s|$)", re.MULTILINE)


@pytest.fixture(scope="module")
def tool():
    return repository.tool("constants")


def test_the_tool_reproduces_the_header(tool):
    for path, text in tool.generate().items():
        assert path.read_text(encoding="utf-8") == text, f"run python tools/constants.py: {path}"


def test_each_number_has_one_name_and_python_s_value(tool):
    (text,) = tool.generate().values()
    result = DEFINITION.findall(text)
    assert len(result) == text.count("#define FB_") - 1  # the guard's is no number
    assert len(dict(result)) == len(result)
    for name, value in result:
        tables = [*map(vars, tool.MODULES), tool.RULES]
        here = [table[name] for table in tables if name in table]
        assert set(here) == {int(value, 0) if re.fullmatch(r"-?(0x)?\w+", value) else float(value)}


def test_c_defines_no_such_number_itself(tool):
    generated = {tool.C_FILE, ROOT / "csrc" / "core" / "polynomials.h"}
    others = {path for path in (ROOT / "csrc").rglob("*.[ch]") if path not in generated}
    result = [name for path in sorted(others) for name, _ in DEFINITION.findall(path.read_text())]
    # Which instruction set and dtype a stub is for, and a code that Python knows as MemoryError.
    assert set(result) == {"DOUBLE", "ISA", "NO_MEMORY"}
