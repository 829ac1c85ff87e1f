"""The shared coefficients are what the script that derives them says, and as good as it says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest

from fastbp.backends import polynomials

SCRIPT = Path(__file__).parents[1] / "tools" / "polynomials.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("derive_polynomials", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_script_reproduces_both_files(script):
    for path, text in script.generate().items():
        assert path.read_text(encoding="utf-8") == text, path.name


def horner(coefficients, x):
    result = mpmath.mpf(0)
    for c in reversed(coefficients):
        result = result * x + mpmath.mpf(float(c))
    return result


# Below one eighth of a unit in the last place, so that rounding decides: 2^-53 and 2^-24 are half
# units.
@pytest.mark.parametrize("name, bound", [("F64", 2.0**-56), ("F32", 2.0**-27)])
def test_errors_are_below_rounding(name, bound):
    rng = np.random.default_rng(0)
    exp_q = getattr(polynomials, f"EXP_{name}")
    atanh_q = getattr(polynomials, f"ATANH_{name}")
    half_ln2 = np.log(2) / 2
    with mpmath.workdps(40):
        for r in map(mpmath.mpf, rng.uniform(-half_ln2, half_ln2, 2000)):
            got = r + r * r * horner(exp_q, r)
            assert abs(got / mpmath.expm1(r) - 1) < bound
        for s in map(mpmath.mpf, rng.uniform(1e-6, 1 / 3, 2000)):
            got = 2 * s + 2 * s**3 * horner(atanh_q, s * s)
            assert abs(got / (2 * mpmath.atanh(s)) - 1) < bound


@pytest.mark.parametrize("name", ["F64", "F32"])
def test_ln2_is_split_so_that_products_are_exact(name):
    dtype = {"F64": np.float64, "F32": np.float32}[name]
    high, low = (dtype(getattr(polynomials, f"LN2_{part}_{name}")) for part in ("HI", "LO"))
    extremes = {"F64": (-1075, 1024), "F32": (-150, 128)}[name]  # where exp is 0 and infinite
    for k in range(*extremes):
        with mpmath.workdps(60):
            assert mpmath.mpf(float(dtype(k) * high)) == k * mpmath.mpf(float(high))
    with mpmath.workdps(60):
        error = mpmath.mpf(float(high)) + mpmath.mpf(float(low)) - mpmath.log(2)
        assert abs(error) < mpmath.mpf(2) ** (-90 if name == "F64" else -38)
