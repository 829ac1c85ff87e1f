"""SciPy's methods on a network's objective, with exact derivatives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays import FLOAT64, real_array
from .._errors import ShapeError, unknown_name
from .._objective import Objective
from ._fmincg import fmincg
from ._free import FreeCoordinates
from ._scg import scg

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult


@dataclass(frozen=True)
class Method:
    """What a method of `scipy.optimize.minimize` takes.

    Attributes
    ----------
    options : frozenset of str
        Its options, without those for numerical derivatives.
    constrained : frozenset of str
        Which of "bounds" and "constraints" it knows.
    """

    options: frozenset[str]
    constrained: frozenset[str] = frozenset()


def _method(options: str, constrained: str = "") -> Method:
    return Method(frozenset(options.split()), frozenset(constrained.split()))


# The methods that need no second derivatives. SciPy passes over unknown options with a warning, and
# does not list the known ones in a form for programs; a test compares these with its functions.
METHODS = {
    "CG": _method("gtol norm maxiter disp return_all c1 c2"),
    "BFGS": _method("gtol norm maxiter disp return_all xrtol c1 c2 hess_inv0"),
    "Newton-CG": _method("xtol eps maxiter disp return_all c1 c2"),
    "L-BFGS-B": _method("maxcor ftol gtol maxfun maxiter maxls disp iprint", "bounds"),
    "TNC": _method(
        "scale offset mesg_num maxCGit eta stepmx accuracy minfev ftol xtol gtol rescale disp "
        "maxfun",
        "bounds",
    ),
    "SLSQP": _method("maxiter ftol iprint disp", "bounds constraints"),
    "trust-constr": _method(
        "xtol gtol barrier_tol sparse_jacobian maxiter verbose initial_constr_penalty "
        "initial_tr_radius initial_barrier_parameter initial_barrier_tolerance "
        "factorization_method disp",
        "bounds constraints",
    ),
    "fmincg": _method("maxiter maxfun red"),
    "scg": _method("maxiter maxfun sigma"),
}
_OWN = {"fmincg": fmincg, "scg": scg}
_KEYWORDS = ("args", "bounds", "callback", "constraints", "options", "tol")
LEAST_SQUARES = ("trf", "dogbox", "lm")


def minimize(
    obj: Objective | Callable[..., Any], p0: Any, method: str = "L-BFGS-B", **scipy_options: Any
) -> OptimizeResult:
    """Minimise an objective by a gradient method of `scipy.optimize.minimize`.

    Parameters
    ----------
    obj : Objective or callable
        What `Network.objective` makes, computed in float64 also for float32 networks; or a function
        ``obj(p, *args) -> (f, g)`` of a vector, with value and gradient (n,).
    p0 : array_like (n,)
        Where to start; it is not modified.
    method : str, default "L-BFGS-B"
        "CG", "BFGS", "Newton-CG", "L-BFGS-B", "TNC", "SLSQP" or "trust-constr" of SciPy, or
        "fmincg" and "scg" of fastbp (see `fmincg`, `scg`); upper or lower case.
    **scipy_options
        ``args``, ``bounds``, ``constraints``, ``tol``, ``callback`` and ``options`` as SciPy takes
        them; the method's options may be given directly as well: ``maxiter=200``.

    Returns
    -------
    scipy.optimize.OptimizeResult
        As SciPy gives it. For an `Objective`, ``x`` has the network's dtype; ``fun`` and ``jac``
        belong to it before it was rounded to that.

    Notes
    -----
    Where parameters are masked or frozen, the method works on the others alone. ``x``, what
    ``callback`` is told, ``bounds`` and ``constraints`` have an entry per parameter all the same;
    fixed entries of ``x`` are those of `p0`, those of derivatives are zero, and bounds of fixed
    parameters do not count. Fields that only SciPy knows, such as ``hess_inv``, are those of the
    free parameters.

    Raises
    ------
    ShapeError
        If `p0` has a wrong shape.
    ValueError
        For an unknown method, bounds or constraints with a method that knows none, or if nothing is
        free.
    TypeError
        For an unknown option (the message suggests the nearest), or `p0` that is not real.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> X = np.linspace(-1, 1, 20).reshape(-1, 1)
    >>> net = fb.Network(1, fb.Dense(1))
    >>> obj = net.objective(X, 3 * X + 1)
    >>> result = fb.optimize.minimize(obj, net.init(seed=0), "BFGS", maxiter=50)
    >>> np.round(result.x, 4).tolist()
    [3.0, 1.0]
    """
    import scipy.optimize

    name = _lookup(method, METHODS)
    known = METHODS[name]
    keywords, options = {}, dict(scipy_options.pop("options", None) or {})
    for key, value in scipy_options.items():
        if key not in _KEYWORDS:
            if key in options:
                raise TypeError(f"option {key!r} is given twice: directly and in options")
            options[key] = value
        elif key not in ("bounds", "constraints"):
            keywords[key] = value
        elif key in known.constrained:
            keywords[key] = value
        elif value is not None and np.size(value):
            able = [other for other, row in METHODS.items() if key in row.constrained]
            raise ValueError(f"method {name!r} takes no {key}; {', '.join(able)} do")
    _check_names(options, known.options, _KEYWORDS, f"option of method {name!r}")

    objective, p0 = _float64(obj, p0)
    fun = objective.value_and_grad if isinstance(obj, Objective) else objective
    if isinstance(objective, FreeCoordinates):
        keywords, options = objective.restricted(keywords), objective.restricted(options)
    chosen = _OWN.get(name, name)
    found = scipy.optimize.minimize(fun, p0, jac=True, method=chosen, options=options, **keywords)
    return _finished(obj, objective, found)


def least_squares(
    obj: Objective | Callable[..., Any], p0: Any, method: str = "trf", **scipy_options: Any
) -> OptimizeResult:
    """Minimise a sum of squares by `scipy.optimize.least_squares`.

    Parameters
    ----------
    obj : Objective or callable
        An objective with a least-squares loss ("mse", "half_mse", "sse"), whose residuals and exact
        Jacobian are used, computed in float64; or a function ``obj(p, *args) -> r`` (m,), with its
        derivative as the keyword ``jac``.
    p0 : array_like (n,)
        Where to start; it is not modified.
    method : {"trf", "dogbox", "lm"}
        "lm" needs at least as many residuals as parameters.
    **scipy_options
        What `scipy.optimize.least_squares` takes: ``bounds``, ``max_nfev``, ``x_scale``, ``loss``,
        ...; a function's ``jac(p, *args)`` (m, n) too.

    Returns
    -------
    scipy.optimize.OptimizeResult
        As SciPy gives it: ``cost`` is half the sum of the squared residuals, whatever the
        objective's normaliser. For an `Objective`, ``x`` has the network's dtype; the other fields
        belong to it before it was rounded to that. Masked and frozen parameters are dealt with as
        by `minimize`.

    Raises
    ------
    ShapeError
        If `p0` has a wrong shape.
    ValueError
        For an unknown method, a loss or penalty that is not a sum of squares, "lm" with fewer
        residuals than free parameters, or if nothing is free.
    TypeError
        For an unknown keyword, a function without ``jac``, or an objective with one.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> X = np.linspace(-1, 1, 20).reshape(-1, 1)
    >>> net = fb.Network(1, fb.Dense(1))
    >>> result = fb.optimize.least_squares(net.objective(X, 3 * X + 1), net.init(seed=0))
    >>> np.round(result.x, 4).tolist()
    [3.0, 1.0]
    """
    import scipy.optimize

    name = _lookup(method, LEAST_SQUARES)
    _check_names(scipy_options, least_squares_names(), (), "keyword of least_squares")

    objective, p0 = _float64(obj, p0)
    fun, jac = objective, scipy_options.pop("jac", None)
    if isinstance(obj, Objective):
        if jac is not None:
            raise TypeError("jac was given with an objective, which brings its own; leave it out")
        fun, jac = objective.residuals, objective.jacobian
        if isinstance(objective, FreeCoordinates):
            bounds = scipy_options.get("bounds")
            if isinstance(bounds, tuple | list) and len(bounds) == 2:  # not a pair per parameter
                scipy_options["bounds"] = scipy.optimize.Bounds(*bounds)
            scipy_options = objective.restricted(scipy_options)
    elif jac is None:
        raise TypeError(
            "jac is missing: with a function pass jac=its derivative (m, n), or jac='2-point' for "
            "numerical derivatives; a network's objective brings its own"
        )
    if name == "lm":
        fun = _Remembered(fun)
        jac = _Remembered(jac) if callable(jac) else jac
        args, kwargs = scipy_options.get("args", ()), scipy_options.get("kwargs") or {}
        n_residuals = np.size(fun(p0, *args, **kwargs))
        if n_residuals < p0.size:
            raise ValueError(
                f"method 'lm' needs at least as many residuals as parameters, and there are "
                f"{n_residuals} residuals and {p0.size} parameters; 'trf' takes any number"
            )
    found = scipy.optimize.least_squares(fun, p0, jac=jac, method=name, **scipy_options)
    return _finished(obj, objective, found)


def least_squares_names() -> set[str]:
    """The keywords that `least_squares` takes."""
    import scipy.optimize

    signature = inspect.signature(scipy.optimize.least_squares)
    return set(signature.parameters) - {"fun", "x0", "method"}


class _Remembered:
    """A function that keeps its last result: around MINPACK, SciPy asks twice at both ends."""

    def __init__(self, fun: Callable[..., Any]):
        self.fun = fun
        self.x: np.ndarray | None = None
        self.result: Any = None

    def __call__(self, x: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        if self.x is None or not np.array_equal(x, self.x):
            self.x, self.result = x.copy(), self.fun(x, *args, **kwargs)
        return self.result


def _float64(obj: Any, p0: Any) -> tuple[Any, np.ndarray]:
    """The objective in float64, in the free parameters if some are fixed, and a new start."""
    if isinstance(obj, Objective):
        if obj.net.plan.free is not None:
            inside = FreeCoordinates(obj, p0)
            return inside, inside.x0
        double = obj.astype(FLOAT64)
        return double, double.net._params(p0).copy()
    if not callable(obj):
        raise TypeError(f"obj is {obj!r}, expected a network's objective or a function")
    p0 = real_array("p0", p0, FLOAT64).copy()
    if p0.ndim != 1 or p0.size == 0:
        raise ShapeError(f"p0 has shape {p0.shape}, expected a vector (n,) of at least one entry")
    return obj, p0


def _finished(obj: Any, objective: Any, found: Any) -> Any:
    """The result with all parameters, in the network's dtype."""
    if isinstance(objective, FreeCoordinates):
        return objective.finished(found)
    if isinstance(obj, Objective):
        found.x = found.x.astype(obj.net.dtype, copy=False)
    return found


def _lookup(method: Any, names: Iterable[str]) -> str:
    names = list(names)
    for name in names:
        if isinstance(method, str) and method.lower() == name.lower():
            return name
    raise ValueError(unknown_name("method", method, names))


def _check_names(
    given: Iterable[str], known: Iterable[str], more: Iterable[str], what: str
) -> None:
    """Raise for the first name that is not `known`, suggesting from `known` and `more`."""
    for name in given:
        if name not in known:
            raise TypeError(unknown_name(what, name, sorted([*known, *more])))
