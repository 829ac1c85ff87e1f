"""`check_grad`: a gradient compared with differences of the function's values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..common.arrays import FLOAT32, FLOAT64, real_array, require_finite
from ..common.errors import ShapeError
from ..networks.objective import Objective
from .comparison import GradCheck, compare, verdict
from .numerical import Grid


def check_grad(
    fun_and_grad: Callable[[np.ndarray], Any] | Objective,
    x: Any,
    *,
    free: Any = None,
    samples: int = 1000,
    seed: Any = 0,
) -> GradCheck:
    """Compare a gradient with numerical derivatives of the function it belongs to.

    The numerical derivatives are central differences at ten steps, extrapolated to step 0, with an
    error estimate each [1]_. An entry passes if it differs by at most three times that error plus
    the rounding error of the gradient itself, which is measured beside `x`. The check distinguishes
    a wrong gradient from a rough function: where the numerical derivative is too uncertain for a
    verdict, it fails and says so. Where the derivatives from the left and from the right differ
    (relu at 0), any value between them passes. Each entry takes 20 evaluations.

    Parameters
    ----------
    fun_and_grad : callable or Objective
        ``fun_and_grad(x) -> (f, g)``, a number and the gradient (n,); or what `Network.objective`
        makes.
    x : array_like (n,)
        Where to check; it is not modified. For a float32 function (`x` or g in float32) it is
        rounded to float32, and so are the steps; many kinks within such coarse steps can leave the
        check undecided. The gradient of a float32 network's objective is compared with values in
        float64, which do not have this problem.
    free : array_like of int or bool, optional
        The entries to check; by default all, of a network's objective those that are neither masked
        nor frozen (the derivatives of the others are zero by definition).
    samples : int, default 1000
        If there are more entries, so many are drawn at random, and the derivatives along 8 random
        directions through all entries are compared beside them.
    seed : int, SeedSequence, Generator or None
        For those draws, as `numpy.random.default_rng` takes it.

    Returns
    -------
    GradCheck
        True in a condition if the gradient passed; printed, it names the worst entry with both
        values and the error of the numerical one.

    Raises
    ------
    ShapeError
        If `x` is not a vector or g has another shape.
    NonFiniteError
        If `x`, or the function there, is not finite (entries of g that are not finite fail).
    ValueError
        For entries in `free` that do not exist, or `samples` below 1.
    TypeError
        If `fun_and_grad` does not return a pair.

    References
    ----------
    .. [1] C. J. F. Ridders, "Accurate computation of F'(x) and F'(x)F''(x)", Advances in
       Engineering Software 4 (2), 1982.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> x = np.array([1.0, 2.0, 3.0])
    >>> bool(fb.check_grad(lambda x: (np.sum(x**3), 3 * x**2), x))
    True
    >>> check = fb.check_grad(lambda x: (np.sum(x**3), x**2), x)
    >>> check.passed, check.analytic.tolist(), np.round(check.numeric, 6).tolist()
    (False, [1.0, 4.0, 9.0], [3.0, 12.0, 27.0])
    """
    if not samples >= 1:
        raise ValueError(f"samples is {samples}, expected at least 1")
    if isinstance(fun_and_grad, Objective):
        net = fun_and_grad.net
        point, free = net.checked_params(x).astype(np.float64), net.free if free is None else free
    else:
        single = getattr(x, "dtype", None) == FLOAT32
        point = real_array("x", x, FLOAT32 if single else FLOAT64)
    if point.ndim != 1 or point.size == 0:
        raise ShapeError(f"x has shape {point.shape}, expected a vector (n,) of at least one entry")
    require_finite("x", point)
    places = _places(free, point.size)

    function = _Function(fun_and_grad)
    kind, grad_kind = function.kinds(point)
    grid, grad_grid = Grid(kind, point.dtype), Grid(grad_kind, point.dtype)
    rng = np.random.default_rng(seed)
    result = compare(
        function.value,
        function.value_and_grad,
        grad_grid(point),
        grid,
        grad_grid,
        places,
        samples,
        rng,
    )
    return verdict(
        result,
        point.size,
        lambda place: f"entry {place}" if place >= 0 else f"random direction {-1 - place}",
    )


class _Function:
    """The function to check, called with copies of x; its gradient is returned in float64.

    The values of a network's objective are computed in float64, which resolves more of a float32
    gradient.
    """

    def __init__(self, fun_and_grad: Any):
        self.objective = fun_and_grad if isinstance(fun_and_grad, Objective) else None
        self.exact = None if self.objective is None else self.objective.astype(FLOAT64)
        self.both = fun_and_grad if self.objective is None else self.objective.value_and_grad

    def kinds(self, x: np.ndarray) -> tuple[np.dtype, np.dtype]:
        """The types in which value and gradient are computed."""
        if self.objective is not None:
            return FLOAT64, self.objective.net.dtype
        _, g = _pair(self.both(x.copy()))
        kind = FLOAT32 if FLOAT32 in (x.dtype, getattr(g, "dtype", None)) else FLOAT64
        return kind, kind

    def value(self, x: np.ndarray) -> float:
        if self.exact is not None:
            return self.exact.value(x)
        return float(_pair(self.both(x.copy()))[0])

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        f, g = _pair(self.both(x.copy()))
        g = real_array("the gradient", g, FLOAT64)
        if g.shape != x.shape:
            raise ShapeError(f"the gradient has shape {g.shape}, expected {x.shape}, that of x")
        return float(f) if self.exact is None else self.exact.value(x), g.copy()


def _pair(result: Any) -> tuple[Any, Any]:
    """(f, g) from what the function returned."""
    try:
        f, g = result
    except (TypeError, ValueError):
        raise TypeError(
            f"fun_and_grad returned {type(result).__name__}, expected the pair (value, gradient)"
        ) from None
    return f, g


def _places(free: Any, n: int) -> np.ndarray:
    """The entries to check, ascending, from the argument `free`."""
    if free is None:
        return np.arange(n)
    places = np.asarray(free)
    if places.dtype == bool and places.shape == (n,):
        places = np.flatnonzero(places)
    if places.ndim != 1 or places.dtype.kind not in "iu":
        raise ValueError(
            f"free has shape {places.shape} and dtype {places.dtype}, expected a vector of indices "
            f"or {n} booleans"
        )
    bad = (places < -n) | (places >= n)
    if bad.any():
        raise ValueError(f"free holds {places[bad][0]}, expected indices from 0 to {n - 1}")
    if places.size == 0:
        raise ValueError("free is empty, expected at least one entry to check")
    return np.unique(places % n)
