"""The generated coefficients: reproducible, and as good as their comments say."""

from __future__ import annotations

import pytest
from helpers import repository

mpmath = pytest.importorskip("mpmath")


@pytest.fixture(scope="module")
def tool():
    return repository.tool("polynomials")


def test_the_tool_reproduces_both_files(tool):
    for path, text in tool.generate().items():
        assert path.read_text(encoding="utf-8") == text, f"run python tools/polynomials.py: {path}"


def cost_of_rounding(poly, values, unit_roundoff):
    """The most that rounded coefficients can be off by, over the interval."""
    worst = mpmath.mpf(0)
    for i in range(200):
        x = poly.low + (poly.high - poly.low) * (i + mpmath.mpf("0.5")) / 200
        e = unit_roundoff * mpmath.polyval([abs(c) for c in values[::-1]], abs(x))
        worst = max(worst, abs(poly.error(x, e)))
    return worst


def test_errors_are_small_and_degrees_not_higher_than_needed(tool, monkeypatch):
    with mpmath.workdps(60):
        for poly in tool.polynomials():
            for name, bits, unit_roundoff in (("F64", 60, 2.0**-53), ("F32", 30, 2.0**-24)):
                degree = poly.degrees[name]
                values = tool.coefficients(poly, name)
                limit = mpmath.mpf(2) ** -bits + cost_of_rounding(poly, values, unit_roundoff)
                assert 2 ** tool.log2_error(poly, values) < limit
                monkeypatch.setattr(tool, "rounded", lambda x, _: x)
                assert tool.log2_error(poly, tool.coefficients(poly, name)) < -bits
                poly.degrees[name] = degree - 1
                assert tool.log2_error(poly, tool.coefficients(poly, name)) > -bits
                monkeypatch.undo()
