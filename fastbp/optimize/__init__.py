"""Minimisation: methods of our own, and SciPy's methods with exact derivatives.

Importing this package does not load SciPy; the functions do when they run.
"""

from ._fmincg import fmincg
from ._levenberg_marquardt import levenberg_marquardt
from ._minima import MultistartResult
from ._multistart import multistart
from ._scg import scg
from ._scipy import least_squares, minimize

__all__ = [
    "MultistartResult",
    "fmincg",
    "least_squares",
    "levenberg_marquardt",
    "minimize",
    "multistart",
    "scg",
]
