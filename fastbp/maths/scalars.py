"""exp, tanh and sigmoid of one number, of which users make activations and losses.

Python runs these functions, by the reference's formulas; in jitted code those of backends/jit take
their place.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from .activations import TABLE


def exp(x):
    """e^x of a number, in jitted code and in Python.

    Parameters
    ----------
    x : float or int

    Returns
    -------
    float
        In jitted code of the type of x, float64 for integers, and bitwise what
        ``fb.activation("exp").f`` of the Numba backend gives. Loops over it become vector code.
    """
    return _value("exp", x)


def tanh(x):
    """The hyperbolic tangent of a number, in jitted code and in Python.

    Parameters
    ----------
    x : float or int

    Returns
    -------
    float
        As `exp` returns it.
    """
    return _value("tanh", x)


def sigmoid(x):
    """1 / (1 + e^-x) of a number, in jitted code and in Python.

    Parameters
    ----------
    x : float or int

    Returns
    -------
    float
        As `exp` returns it.
    """
    return _value("sigmoid", x)


def _value(name: str, x: Any) -> float | np.float32:
    """The built-in activation of that name at x, in the type of x if this is float32."""
    single = isinstance(x, np.float32)
    if not isinstance(x, Real | np.bool_):
        raise TypeError(
            f"x of {name} is {x!r}, expected a number; fastbp.activation({name!r}).f takes arrays"
        )
    with np.errstate(all="ignore"):
        y = TABLE[name].f(np.float64(x), 0.0)
    return np.float32(y) if single else float(y)
