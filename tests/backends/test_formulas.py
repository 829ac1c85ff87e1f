"""The C of the formulas is up to date."""

from __future__ import annotations

from helpers import repository


def test_the_tool_reproduces_the_header():
    for path, text in repository.tool("formulas").generate().items():
        assert path.read_text(encoding="utf-8") == text, f"run python tools/formulas.py: {path}"
