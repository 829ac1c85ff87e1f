"""Minimisation of any function: fastbp's methods, and SciPy's with exact derivatives; `curve_fit`.

Importing this package does not load SciPy; the functions do when they run.
"""

from ._curve_fit import curve_fit
from ._fmincg import fmincg
from ._levenberg_marquardt import levenberg_marquardt
from ._multistart import multistart
from ._scg import scg
from .curves import CurveFit
from .minima import MultistartResult
from .scipy_methods import least_squares, minimize

__all__ = [
    "CurveFit",
    "MultistartResult",
    "curve_fit",
    "fmincg",
    "least_squares",
    "levenberg_marquardt",
    "minimize",
    "multistart",
    "scg",
]


def __dir__() -> list[str]:
    return __all__
