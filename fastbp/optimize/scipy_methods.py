"""`minimize` and `least_squares`: SciPy's methods, with exact derivatives for objectives."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.arrays import FLOAT64, real_array
from ..common.errors import ShapeError, unknown_name
from ..networks.objective import Objective
from ._fmincg import fmincg
from ._scg import scg
from .cache import CachedFunction, CachedObjective, CachedValueAndGrad
from .free_coordinates import FreeCoordinates, free_coordinates
from .function import MESSAGES, STOPPED, stop_test

if TYPE_CHECKING:
    from scipy.optimize import Bounds, OptimizeResult


@dataclass(frozen=True)
class Minimizer:
    """What a method of `minimize` takes.

    Attributes
    ----------
    options : frozenset of str
        Its options, without those for numerical derivatives.
    constrained : frozenset of str
        Which of "bounds" and "constraints" it knows.
    hessian : {"", "hessp", "hess"}
        How it uses second derivatives: not at all, as products, or as a matrix.
    matrices : int
        Matrices (n_free, n_free) that it holds at once.
    """

    options: frozenset[str]
    constrained: frozenset[str] = frozenset()
    hessian: str = ""
    matrices: int = 0


def _row(options: str, constrained: str = "", hessian: str = "", matrices: int = 0) -> Minimizer:
    return Minimizer(frozenset(options.split()), frozenset(constrained.split()), hessian, matrices)


_REGION = "initial_trust_radius max_trust_radius eta gtol maxiter disp return_all"

# SciPy ignores unknown options with a warning, and has no list of the known ones; a test compares
# these with its functions. The matrices were counted by tracing the allocations of its methods.
MINIMIZERS = {
    "CG": _row("gtol norm maxiter disp return_all c1 c2"),
    "BFGS": _row("gtol norm maxiter disp return_all xrtol c1 c2 hess_inv0", matrices=6),
    "Newton-CG": _row("xtol eps maxiter disp return_all c1 c2", hessian="hessp"),
    "L-BFGS-B": _row("maxcor ftol gtol maxfun maxiter maxls disp iprint", "bounds"),
    "TNC": _row(
        "scale offset mesg_num maxCGit eta stepmx accuracy minfev ftol xtol gtol rescale disp "
        "maxfun",
        "bounds",
    ),
    "SLSQP": _row("maxiter ftol iprint disp", "bounds constraints", matrices=10),
    "trust-constr": _row(
        "xtol gtol barrier_tol sparse_jacobian maxiter verbose initial_constr_penalty "
        "initial_tr_radius initial_barrier_parameter initial_barrier_tolerance "
        "factorization_method disp",
        "bounds constraints",
        "hessp",
    ),
    "trust-ncg": _row(_REGION, hessian="hessp"),
    "trust-krylov": _row(_REGION + " inexact", hessian="hessp", matrices=4),
    "trust-exact": _row(_REGION, hessian="hess", matrices=4),
    "dogleg": _row(_REGION, hessian="hess", matrices=2),
    "fmincg": _row("maxiter maxfun red"),
    "scg": _row("maxiter maxfun sigma hessp"),
}
_OF_FASTBP: dict[str, Callable[..., Any]] = {"fmincg": fmincg, "scg": scg}
_KEYWORDS = ("args", "bounds", "callback", "constraints", "hess", "hessp", "options", "tol")
LEAST_SQUARES = ("trf", "dogbox", "lm")
# Memory of a method in Jacobians (for trf with bounds, of Jacobians with n_free more rows).
_JACOBIANS = {"trf": 7, "dogbox": 5, "lm": 4}


def minimize(
    obj: Objective | Callable[..., Any], p0: Any, method: str = "L-BFGS-B", **scipy_options: Any
) -> OptimizeResult:
    """Minimise an objective by a gradient method of `scipy.optimize.minimize`.

    Parameters
    ----------
    obj : Objective or callable
        What `Network.objective` makes, computed in float64 also for float32 networks; or a function
        ``obj(p, *args) -> (f, g)`` of a vector, with value and gradient (n,). It is evaluated once
        at a point, also where the method asks again.
    p0 : array_like (n,)
        Where to start; it is not modified.
    method : str, default "L-BFGS-B"
        Of SciPy "CG", "BFGS", "L-BFGS-B", "TNC" and "SLSQP"; with exact second derivatives of an
        `Objective` "Newton-CG", "trust-ncg", "trust-krylov" and "trust-constr" (products `hvp`),
        "trust-exact" and "dogleg" (the Hessian from n_free products; for dogleg it must be positive
        definite wherever it is computed); of fastbp "fmincg" and "scg" (see `fmincg`, `scg`). Upper
        or lower case.
    **scipy_options
        ``args``, ``bounds``, ``constraints``, ``tol``, ``callback`` and ``options`` as SciPy takes
        them, with a function also its ``hess`` and ``hessp``; the method's options may be given
        directly as well: ``maxiter=200``. Bounds may also be (lower, upper), numbers or vectors. A
        callback stops any method by raising StopIteration or returning True.

    Returns
    -------
    scipy.optimize.OptimizeResult
        As SciPy gives it. For an `Objective`, ``x`` has the network's dtype; ``fun`` and ``jac``
        belong to it before it was rounded to that.

    Notes
    -----
    Where parameters are masked or frozen, the method works on the others alone. ``x``, the
    arguments of ``callback``, ``bounds`` and ``constraints`` still have an entry per parameter;
    fixed entries of ``x`` are those of `p0`, those of derivatives are zero, and bounds of fixed
    parameters do not count. Fields that only SciPy knows, such as ``hess_inv``, are those of the
    free parameters.

    Raises
    ------
    ShapeError
        If `p0` has a wrong shape.
    ValueError
        For an unknown method, bounds or constraints with a method that takes none, bounds that
        cross, a method with second derivatives where the loss or an activation has
        none, or if nothing is free.
    TypeError
        For an unknown option (the message suggests the nearest), or `p0` that is not real.
    MemoryError
        If the matrices that the method holds are larger than the machine's memory.

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
    name = canonical_name(method, MINIMIZERS)
    callback = scipy_options.get("callback")
    if callback is not None:
        scipy_options["callback"] = _raising_to_stop(callback)
    return run_minimizer(obj, p0, name, scipy_options)


def run_minimizer(
    obj: Objective | Callable[..., Any], p0: Any, name: str, scipy_options: dict[str, Any]
) -> OptimizeResult:
    """`minimize` for a name of MINIMIZERS and a callback that raises StopIteration to stop.

    The callback takes an ``intermediate_result``, or x alone, and returns None.
    """
    keywords, options = _split_keywords(name, scipy_options)
    objective, p0 = _in_float64(obj, p0)
    if name in _OF_FASTBP:
        return _full_result(obj, None, _OF_FASTBP[name](objective, p0, **keywords, **options))
    _convert_bounds(keywords, len(p0), pairs=True)
    free = free_coordinates(objective, p0)
    if free is not None:
        keywords, options = free.restricted(keywords), free.restricted(options)
        p0 = free.x0
    require_memory(name, MINIMIZERS[name].matrices * len(p0) ** 2)
    if isinstance(objective, CachedObjective):
        function = objective.cached_value_and_grad
        if free is not None:
            function = CachedValueAndGrad(free.value_and_grad)
        keywords |= _second_derivatives(objective, free, name, keywords)
    else:
        args = keywords.pop("args", ())
        args = args if isinstance(args, tuple) else (args,)
        function = CachedValueAndGrad(_with_copies(objective, args))
        for key in ("hess", "hessp"):
            if callable(keywords.get(key)):
                keywords[key] = _with_args(keywords[key], args)
    return _full_result(obj, free, _by_scipy(function, p0, name, keywords, options))


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
        residuals than free parameters, bounds that cross or that `p0` is outside of, or if nothing
        is free.
    TypeError
        For an unknown keyword, a function without ``jac``, or an objective with one.
    MemoryError
        If the Jacobian of an objective, and what the method makes of it, are larger than the
        machine's memory.

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

    name = canonical_name(method, LEAST_SQUARES)
    _check_names(scipy_options, least_squares_names(), (), "keyword of least_squares")

    objective, p0 = _in_float64(obj, p0)
    _convert_bounds(scipy_options, len(p0), pairs=False)
    free = free_coordinates(objective, p0)
    fun, jac = objective, scipy_options.pop("jac", None)
    if isinstance(obj, Objective):
        if jac is not None:
            raise TypeError("jac was given with an objective, which brings its own; leave it out")
        if free is not None:
            scipy_options, p0 = free.restricted(scipy_options), free.x0
        fun, jac = (free or objective).residuals, (free or objective).jacobian
    elif jac is None:
        raise TypeError(
            "jac is missing: with a function pass jac=its derivative (m, n), or jac='2-point' for "
            "numerical derivatives; a network's objective brings its own"
        )
    _require_inside(p0, scipy_options.get("bounds"))
    if isinstance(obj, Objective) and scipy_options.get("tr_solver") != "lsmr":
        rows = len(fun(p0)) + (len(p0) if name == "trf" and "bounds" in scipy_options else 0)
        require_memory(name, _JACOBIANS[name] * rows * len(p0))
    if name == "lm":  # SciPy evaluates the start and the end once more than MINPACK does
        fun = CachedFunction(fun)
        jac = CachedFunction(jac) if callable(jac) else jac
        args, kwargs = scipy_options.get("args", ()), scipy_options.get("kwargs") or {}
        n_residuals = np.size(fun(p0, *args, **kwargs))
        if n_residuals < p0.size:
            raise ValueError(
                f"method 'lm' needs at least as many residuals as parameters, and there are "
                f"{n_residuals} residuals and {p0.size} parameters; 'trf', and fastbp's own "
                f"levenberg_marquardt and fit(method='lm'), take any number"
            )
    result = scipy.optimize.least_squares(fun, p0, jac=jac, method=name, **scipy_options)
    return _full_result(obj, free, result)


def least_squares_names() -> set[str]:
    """The keywords that `least_squares` takes."""
    import scipy.optimize

    signature = inspect.signature(scipy.optimize.least_squares)
    return set(signature.parameters) - {"fun", "x0", "method"}


# Arguments.


def _split_keywords(
    name: str, scipy_options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of `scipy.optimize.minimize`, and the options of the method."""
    known = MINIMIZERS[name]
    keywords, options = {}, dict(scipy_options.get("options") or {})
    for key, value in scipy_options.items():
        if key == "options":
            continue
        if key in known.options or key not in _KEYWORDS:
            if key in options:
                raise TypeError(f"option {key!r} is given twice: directly and in options")
            options[key] = value
        elif key not in ("bounds", "constraints") or key in known.constrained:
            keywords[key] = value
        elif value is not None and np.size(value):
            able = [other for other, row in MINIMIZERS.items() if key in row.constrained]
            raise ValueError(f"method {name!r} takes no {key}; {', '.join(able)} do")
    _check_names(options, known.options, _KEYWORDS, f"option of method {name!r}")
    return keywords, options


def _convert_bounds(keywords: dict[str, Any], n: int, pairs: bool) -> None:
    """Convert the entry "bounds", if there is one, by `as_bounds`."""
    if keywords.get("bounds") is not None:
        keywords["bounds"] = as_bounds(keywords["bounds"], n, pairs)


def as_bounds(bounds: Any, n: int, pairs: bool) -> Bounds:
    """Bounds in any form as SciPy's class, with an entry per parameter.

    Parameters
    ----------
    bounds : Bounds or sequence
        (lower, upper), numbers or vectors (n,); or n pairs (lower, upper), None for infinity.
    n : int
    pairs : bool
        For n = 2, where both forms are two pairs: whether it is the second one.

    Raises
    ------
    ShapeError
        If the number of entries is not n.
    ValueError
        If a lower bound is above the upper one.
    TypeError
        For anything else.
    """
    from scipy.optimize import Bounds

    keep: Any = False
    if isinstance(bounds, Bounds):
        lower, upper, keep = bounds.lb, bounds.ub, bounds.keep_feasible
    elif not isinstance(bounds, list | tuple | np.ndarray):
        raise TypeError(
            f"bounds is {bounds!r}, expected (lower, upper), or a pair (lower, upper) for each of "
            f"{n} parameters"
        )
    elif len(bounds) == n and (pairs or n != 2) and np.ndim(bounds[0]) == 1:
        lower = [-np.inf if pair[0] is None else pair[0] for pair in bounds]
        upper = [np.inf if pair[1] is None else pair[1] for pair in bounds]
    elif len(bounds) == 2:
        lower, upper = bounds
    else:
        raise _wrong_bounds((len(bounds), 2), f"({n}, 2)")
    lower, upper, keep = (_per_parameter(end, n) for end in (lower, upper, keep))
    crossed = ~(lower <= upper)
    if crossed.any():
        k = np.flatnonzero(crossed)[0]
        raise ValueError(
            f"the bounds of parameter {k} are {lower[k]:g} and {upper[k]:g}, expected the lower "
            f"one first, and at most as large as the upper one"
        )
    return Bounds(lower, upper, keep.astype(bool))


def _per_parameter(end: Any, n: int) -> np.ndarray:
    try:
        return np.broadcast_to(np.asarray(end, FLOAT64), n).copy()
    except ValueError:
        raise _wrong_bounds(np.shape(end), f"({n},)") from None


def _wrong_bounds(shape: tuple[int, ...], expected: str) -> ShapeError:
    return ShapeError(
        f"bounds has shape {shape}, expected {expected}: an entry per parameter, also for the "
        f"masked and frozen ones"
    )


def _require_inside(p0: np.ndarray, bounds: Bounds | None) -> None:
    if bounds is None:
        return
    outside = (p0 < bounds.lb) | (p0 > bounds.ub)
    if outside.any():
        k = np.flatnonzero(outside)[0]
        raise ValueError(
            f"the start is outside of the bounds: {p0[k]:g} is not between {bounds.lb[k]:g} and "
            f"{bounds.ub[k]:g}; start from np.clip(p0, lower, upper)"
        )


def require_memory(name: str, numbers: int) -> None:
    """Raise MemoryError if so many float64 numbers exceed the main memory."""
    needed, memory = 8 * numbers, main_memory()
    if needed > memory:
        raise MemoryError(
            f"method {name!r} needs about {needed / 2**30:.3g} GiB for its matrices, and this "
            f"machine has {memory / 2**30:.3g} GiB; 'L-BFGS-B', 'CG', 'fmincg' and 'scg' need none"
        )


def main_memory() -> float:
    """Bytes of main memory; inf if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _in_float64(obj: Any, p0: Any) -> tuple[Any, np.ndarray]:
    """The objective in float64 with caches, or the function, and a copy of the start (n,)."""
    if isinstance(obj, Objective):
        double = obj.astype(FLOAT64)
        if not isinstance(double, CachedObjective):
            double = CachedObjective(double)
        return double, double.net.checked_vector(p0).copy()
    if not callable(obj):
        raise TypeError(f"obj is {obj!r}, expected a network's objective or a function")
    p0 = real_array("p0", p0, FLOAT64).copy()
    if p0.ndim != 1 or p0.size == 0:
        raise ShapeError(f"p0 has shape {p0.shape}, expected a vector (n,) of at least one entry")
    return obj, p0


# Second derivatives.


def _second_derivatives(
    objective: Objective, free: FreeCoordinates | None, name: str, keywords: dict[str, Any]
) -> dict[str, Callable[..., np.ndarray]]:
    """The second derivatives of an objective that the method uses, by SciPy's keyword.

    `keywords` are the caller's, who may choose an approximation instead.
    """
    kind, hess = MINIMIZERS[name].hessian, keywords.get("hess")
    if kind == "hessp" and hess is not None and not callable(hess):
        return {}  # a quasi-Newton strategy of SciPy's, or the name of finite differences
    for key in ("hess", "hessp"):
        if keywords.get(key) is not None:
            raise TypeError(
                f"{key} was given with an objective, which brings its own; leave it out"
            )
    if not kind:
        return {}
    try:
        for layer in objective.net.layers:
            layer.act.require_second()
        objective.loss.require_second()
    except ValueError as error:
        raise ValueError(
            f"method {name!r} needs second derivatives: {error}; or take 'L-BFGS-B', 'BFGS' or "
            f"'CG', with constraints 'SLSQP'"
        ) from None
    products = objective.hvp if free is None else free.hessp
    if kind == "hessp":
        return {"hessp": products}
    return {"hess": lambda x: np.column_stack([products(x, unit) for unit in np.eye(len(x))])}


# The call.


def _by_scipy(
    function: CachedValueAndGrad,
    p0: np.ndarray,
    name: str,
    keywords: dict[str, Any],
    options: dict[str, Any],
) -> OptimizeResult:
    """Call `scipy.optimize.minimize`, with a callback that works alike for all methods."""
    import scipy.optimize

    jac, callback = function.grad, keywords.pop("callback", None)
    if callback is not None and name in ("SLSQP", "TNC"):
        adapter = _CallbackAdapter(callback, function)
        jac, callback = (adapter.grad, None) if name == "SLSQP" else (jac, adapter)
    try:
        result = scipy.optimize.minimize(
            function.value, p0, jac=jac, method=name, callback=callback, options=options, **keywords
        )
    except _CallbackStop as stop:
        return stop.result
    if name == "dogleg" and result.status == 3:
        result.message = (
            "dogleg needs a positive definite Hessian, and here it is not; 'trust-exact', "
            "'trust-ncg' and 'trust-krylov' take any."
        )
    return result


def _with_copies(
    fun: Callable[..., Any], args: tuple[Any, ...]
) -> Callable[[np.ndarray], tuple[Any, np.ndarray]]:
    """The user's function, which may modify x, and return the same array in each call."""

    def value_and_grad(x: np.ndarray) -> tuple[Any, np.ndarray]:
        value, grad = fun(x.copy(), *args)
        return value, np.array(grad)

    return value_and_grad


def _with_args(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any]:
    return lambda *vectors: function(*vectors, *args)


# Callbacks.


class _CallbackStop(Exception):
    """Ends a method that offers a callback no way to stop; carries the result so far."""

    def __init__(self, result: OptimizeResult):
        super().__init__()
        self.result = result


class _CallbackAdapter:
    """Calls a callback after each iteration of TNC and SLSQP as the other methods call theirs.

    TNC passes x alone, and takes no request to stop. SLSQP passes the first point that it tries,
    not the end of an iteration; but it evaluates the gradient there and at the start alone.
    """

    def __init__(self, callback: Callable[..., Any], function: CachedValueAndGrad):
        self._wants_to_stop, self._function = stop_test(callback), function
        self._nit = 0
        self._begun = False

    def __call__(self, x: np.ndarray) -> None:
        from scipy.optimize import OptimizeResult

        self._nit += 1
        value, grad = self._function(x)
        if self._wants_to_stop(x, value):
            raise _CallbackStop(
                OptimizeResult(
                    x=x.copy(),
                    fun=value,
                    jac=grad,
                    nit=self._nit,
                    status=STOPPED,
                    success=False,
                    message=MESSAGES[STOPPED],
                )
            )

    def grad(self, x: np.ndarray) -> np.ndarray:
        """The gradient (n,) at x; unless this is the start, an iteration has ended there."""
        if self._begun:
            self(x)
        self._begun = True
        return self._function.grad(x)


def _raising_to_stop(callback: Callable[..., Any]) -> Callable[..., None]:
    """The callback with the same signature; where it returns True, this raises StopIteration."""

    @wraps(callback)
    def raising(*args: Any, **named: Any) -> None:
        answer = callback(*args, **named)
        if isinstance(answer, bool | np.bool_) and answer:
            raise StopIteration

    return raising


# Results.


def _full_result(obj: Any, free: FreeCoordinates | None, result: Any) -> Any:
    """The result with all parameters, `x` in the network's dtype."""
    result = result if free is None else free.full(result)
    if isinstance(obj, Objective):
        result.x = result.x.astype(obj.net.dtype, copy=False)
    return result


# Names.


def canonical_name(method: Any, names: Iterable[str]) -> str:
    """The one of these names that `method` is but for upper and lower case; ValueError if none."""
    names = list(names)
    for name in names:
        if isinstance(method, str) and method.lower() == name.lower():
            return name
    raise ValueError(unknown_name("method", method, names))


def _check_names(
    names: Iterable[str], known: Iterable[str], more: Iterable[str], what: str
) -> None:
    """Raise TypeError for a name that is not `known`; suggestions are from `known` and `more`."""
    for name in names:
        if name not in known:
            raise TypeError(unknown_name(what, name, sorted([*known, *more])))
