"""Agreement of a backend with the reference, to some roundings of the largest entry."""

from __future__ import annotations

import numpy as np

from fastbp import backends

REFERENCE = backends.load("numpy")

# As many roundings of the largest entry may results be apart: in float64 1e-12 of it.
ROUNDINGS = 4504


def agree(computed, expected, what, dtype=np.float64, least=0.0):
    """Results of a network of `dtype`; losses are float64 in any. `least` is a size that counts."""
    computed, expected = np.asarray(computed), np.asarray(expected)
    assert (computed.shape, computed.dtype) == (expected.shape, expected.dtype), what
    limit = ROUNDINGS * np.finfo(dtype).eps * abs(expected).max(initial=least)
    worst = abs(computed - expected).max(initial=0)
    assert worst <= limit, f"{what}: {worst} off, at most {limit}"
