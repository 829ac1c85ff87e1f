"""SciPy's methods on a network's objective, with exact derivatives."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..common.arrays import FLOAT64, real_array
from ..common.errors import ShapeError, unknown_name
from ..networks.objective import Objective
from ._fmincg import fmincg
from ._scg import scg
from .cache import Memory, Pairs, Remembered
from .free_coordinates import FreeCoordinates
from .function import MESSAGES, STOPPED, listener

if TYPE_CHECKING:
    from scipy.optimize import Bounds, OptimizeResult


@dataclass(frozen=True)
class Method:
    """What a method of `scipy.optimize.minimize` takes.

    Attributes
    ----------
    options : frozenset of str
        Its options, without those for numerical derivatives.
    constrained : frozenset of str
        Which of "bounds" and "constraints" it knows.
    hessian : {"", "hessp", "hess"}
        How it uses second derivatives: not at all, by products, or as a matrix.
    matrices : int
        Matrices (n_free, n_free) that it holds at once.
    """

    options: frozenset[str]
    constrained: frozenset[str] = frozenset()
    hessian: str = ""
    matrices: int = 0


def _method(options: str, constrained: str = "", hessian: str = "", matrices: int = 0) -> Method:
    return Method(frozenset(options.split()), frozenset(constrained.split()), hessian, matrices)


_REGION = "initial_trust_radius max_trust_radius eta gtol maxiter disp return_all"

# SciPy passes over unknown options with a warning, and does not list the known ones in a form for
# programs; a test compares these with its functions. The matrices were counted by tracing what its
# methods allocate.
METHODS = {
    "CG": _method("gtol norm maxiter disp return_all c1 c2"),
    "BFGS": _method("gtol norm maxiter disp return_all xrtol c1 c2 hess_inv0", matrices=6),
    "Newton-CG": _method("xtol eps maxiter disp return_all c1 c2", hessian="hessp"),
    "L-BFGS-B": _method("maxcor ftol gtol maxfun maxiter maxls disp iprint", "bounds"),
    "TNC": _method(
        "scale offset mesg_num maxCGit eta stepmx accuracy minfev ftol xtol gtol rescale disp "
        "maxfun",
        "bounds",
    ),
    "SLSQP": _method("maxiter ftol iprint disp", "bounds constraints", matrices=10),
    "trust-constr": _method(
        "xtol gtol barrier_tol sparse_jacobian maxiter verbose initial_constr_penalty "
        "initial_tr_radius initial_barrier_parameter initial_barrier_tolerance "
        "factorization_method disp",
        "bounds constraints",
        "hessp",
    ),
    "trust-ncg": _method(_REGION, hessian="hessp"),
    "trust-krylov": _method(_REGION + " inexact", hessian="hessp", matrices=4),
    "trust-exact": _method(_REGION, hessian="hess", matrices=4),
    "dogleg": _method(_REGION, hessian="hess", matrices=2),
    "fmincg": _method("maxiter maxfun red"),
    "scg": _method("maxiter maxfun sigma hessp"),
}
_OWN: dict[str, Callable[..., Any]] = {"fmincg": fmincg, "scg": scg}
_KEYWORDS = ("args", "bounds", "callback", "constraints", "hess", "hessp", "options", "tol")
LEAST_SQUARES = ("trf", "dogbox", "lm")
# How many times the memory of the Jacobian (for trf with bounds, of one with n_free more rows).
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
        For an unknown method, bounds or constraints with a method that knows none, bounds that
        nothing fits between, a method with second derivatives where the loss or an activation has
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
    name = _lookup(method, METHODS)
    callback = scipy_options.get("callback")
    if callback is not None:
        scipy_options["callback"] = _stopping(callback)
    return minimized(obj, p0, name, scipy_options)


def minimized(
    obj: Objective | Callable[..., Any], p0: Any, name: str, scipy_options: dict[str, Any]
) -> OptimizeResult:
    """What `minimize` returns, for the name of a method as METHODS has it.

    A callback takes an ``intermediate_result``, or x alone, and returns None.
    """
    keywords, options = _divided(name, scipy_options)
    objective, p0 = _float64(obj, p0)
    if name in _OWN:
        return _finished(obj, None, _OWN[name](objective, p0, **keywords, **options))
    _bound(keywords, len(p0), pairs=True)
    inside = _inside(objective, p0)
    if inside is not None:
        keywords, options = inside.restricted(keywords), inside.restricted(options)
        p0 = inside.x0
    require_memory(name, METHODS[name].matrices * len(p0) ** 2)
    if isinstance(objective, Remembered):
        pairs = objective.pairs if inside is None else Pairs(inside.value_and_grad)
        keywords |= _second(objective, inside, name, keywords)
    else:
        args = keywords.pop("args", ())
        args = args if isinstance(args, tuple) else (args,)
        pairs = Pairs(_copying(objective, args))
        for key in ("hess", "hessp"):
            if callable(keywords.get(key)):
                keywords[key] = _with(keywords[key], args)
    return _finished(obj, inside, _by_scipy(pairs, p0, name, keywords, options))


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
        residuals than free parameters, bounds that nothing fits between or that `p0` is outside of,
        or if nothing is free.
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

    name = _lookup(method, LEAST_SQUARES)
    _check_names(scipy_options, least_squares_names(), (), "keyword of least_squares")

    objective, p0 = _float64(obj, p0)
    _bound(scipy_options, len(p0), pairs=False)
    inside = _inside(objective, p0)
    fun, jac = objective, scipy_options.pop("jac", None)
    if isinstance(obj, Objective):
        if jac is not None:
            raise TypeError("jac was given with an objective, which brings its own; leave it out")
        if inside is not None:
            scipy_options, p0 = inside.restricted(scipy_options), inside.x0
        fun, jac = (inside or objective).residuals, (inside or objective).jacobian
    elif jac is None:
        raise TypeError(
            "jac is missing: with a function pass jac=its derivative (m, n), or jac='2-point' for "
            "numerical derivatives; a network's objective brings its own"
        )
    _require_inside(p0, scipy_options.get("bounds"))
    if isinstance(obj, Objective) and scipy_options.get("tr_solver") != "lsmr":
        rows = len(fun(p0)) + (len(p0) if name == "trf" and "bounds" in scipy_options else 0)
        require_memory(name, _JACOBIANS[name] * rows * len(p0))
    if name == "lm":  # around MINPACK, SciPy asks twice at both ends
        fun = Memory(fun)
        jac = Memory(jac) if callable(jac) else jac
        args, kwargs = scipy_options.get("args", ()), scipy_options.get("kwargs") or {}
        n_residuals = np.size(fun(p0, *args, **kwargs))
        if n_residuals < p0.size:
            raise ValueError(
                f"method 'lm' needs at least as many residuals as parameters, and there are "
                f"{n_residuals} residuals and {p0.size} parameters; 'trf', and fastbp's own "
                f"levenberg_marquardt and fit(method='lm'), take any number"
            )
    found = scipy.optimize.least_squares(fun, p0, jac=jac, method=name, **scipy_options)
    return _finished(obj, inside, found)


def least_squares_names() -> set[str]:
    """The keywords that `least_squares` takes."""
    import scipy.optimize

    signature = inspect.signature(scipy.optimize.least_squares)
    return set(signature.parameters) - {"fun", "x0", "method"}


# What goes in.


def _divided(name: str, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `scipy.optimize.minimize` takes as keywords, and what as options of the method."""
    known = METHODS[name]
    keywords, options = {}, dict(given.get("options") or {})
    for key, value in given.items():
        if key == "options":
            continue
        if key in known.options or key not in _KEYWORDS:
            if key in options:
                raise TypeError(f"option {key!r} is given twice: directly and in options")
            options[key] = value
        elif key not in ("bounds", "constraints") or key in known.constrained:
            keywords[key] = value
        elif value is not None and np.size(value):
            able = [other for other, row in METHODS.items() if key in row.constrained]
            raise ValueError(f"method {name!r} takes no {key}; {', '.join(able)} do")
    _check_names(options, known.options, _KEYWORDS, f"option of method {name!r}")
    return keywords, options


def _bound(keywords: dict[str, Any], n: int, pairs: bool) -> None:
    """Bring bounds into SciPy's form."""
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
        Which of both forms two pairs for two parameters are.

    Raises
    ------
    ShapeError
        If there are not so many entries.
    ValueError
        If nothing fits between two bounds.
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
    """Raise MemoryError if so many float64 cannot be held, before anything tries to."""
    needed, memory = 8 * numbers, main_memory()
    if needed > memory:
        raise MemoryError(
            f"method {name!r} needs about {needed / 2**30:.3g} GiB for its matrices, and this "
            f"machine has {memory / 2**30:.3g} GiB; 'L-BFGS-B', 'CG', 'fmincg' and 'scg' need none"
        )


def main_memory() -> float:
    """Bytes of main memory; inf where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _float64(obj: Any, p0: Any) -> tuple[Any, np.ndarray]:
    """The objective in float64, remembered, or the function, and a new start (n_params,)."""
    if isinstance(obj, Objective):
        double = obj.astype(FLOAT64)
        if not isinstance(double, Remembered):
            double = Remembered(double)
        return double, double.net.checked_vector(p0).copy()
    if not callable(obj):
        raise TypeError(f"obj is {obj!r}, expected a network's objective or a function")
    p0 = real_array("p0", p0, FLOAT64).copy()
    if p0.ndim != 1 or p0.size == 0:
        raise ShapeError(f"p0 has shape {p0.shape}, expected a vector (n,) of at least one entry")
    return obj, p0


def _inside(objective: Any, p0: np.ndarray) -> FreeCoordinates | None:
    """The free parameters' coordinates, where some are fixed."""
    if isinstance(objective, Objective) and objective.net.plan.free is not None:
        return FreeCoordinates(objective, p0)
    return None


# Second derivatives.


def _second(
    objective: Objective, inside: FreeCoordinates | None, name: str, keywords: dict[str, Any]
) -> dict[str, Callable[..., np.ndarray]]:
    """What the method is given of an objective's second derivatives, by keyword."""
    kind, hess = METHODS[name].hessian, keywords.get("hess")
    if kind == "hessp" and hess is not None and not callable(hess):
        return {}  # a quasi-Newton strategy of SciPy's, or the name of differences
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
    products = objective.hvp if inside is None else inside.hessp
    if kind == "hessp":
        return {"hessp": products}
    return {"hess": lambda x: np.column_stack([products(x, unit) for unit in np.eye(len(x))])}


# The call.


def _by_scipy(
    pairs: Pairs, p0: np.ndarray, name: str, keywords: dict[str, Any], options: dict[str, Any]
) -> OptimizeResult:
    import scipy.optimize

    jac, callback = pairs.grad, keywords.pop("callback", None)
    if callback is not None and name in ("SLSQP", "TNC"):
        told = _Told(callback, pairs)
        jac, callback = (told.grad, None) if name == "SLSQP" else (pairs.grad, told)
    try:
        found = scipy.optimize.minimize(
            pairs.value, p0, jac=jac, method=name, callback=callback, options=options, **keywords
        )
    except _Stopped as stopped:
        return stopped.result
    if name == "dogleg" and found.status == 3:
        found.message = (
            "dogleg needs a positive definite Hessian, and here it is not; 'trust-exact', "
            "'trust-ncg' and 'trust-krylov' take any."
        )
    return found


def _copying(
    fun: Callable[..., Any], args: tuple[Any, ...]
) -> Callable[[np.ndarray], tuple[Any, np.ndarray]]:
    """The user's function, which may write to x, and into the same array again."""

    def both(x: np.ndarray) -> tuple[Any, np.ndarray]:
        value, grad = fun(x.copy(), *args)
        return value, np.array(grad)

    return both


def _with(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any]:
    return lambda *vectors: function(*vectors, *args)


# Callbacks.


class _Stopped(Exception):
    """A callback wants to end a method that cannot be asked to."""

    def __init__(self, result: OptimizeResult):
        super().__init__()
        self.result = result


class _Place(NamedTuple):
    x: np.ndarray
    f: float


class _Told:
    """Tells a callback what the other methods tell theirs.

    TNC tells x alone, and knows no stop. SLSQP tells the first point that it tries, not where an
    iteration ends; but there, and at the start, it asks for the gradient.
    """

    def __init__(self, callback: Callable[..., Any], pairs: Pairs):
        self._tell, self._pairs = listener(callback), pairs
        self._nit = 0
        self._begun = False

    def __call__(self, x: np.ndarray) -> None:
        from scipy.optimize import OptimizeResult

        self._nit += 1
        value, grad = self._pairs(x)
        if self._tell(_Place(x, value)):
            raise _Stopped(
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
        """The gradient; an iteration is over unless this is the start."""
        if self._begun:
            self(x)
        self._begun = True
        return self._pairs.grad(x)


def _stopping(callback: Callable[..., Any]) -> Callable[..., None]:
    """The callback, which may return True instead of raising StopIteration; its signature stays."""

    @wraps(callback)
    def told(*args: Any, **named: Any) -> None:
        answer = callback(*args, **named)
        if isinstance(answer, bool | np.bool_) and answer:
            raise StopIteration

    return told


# What comes out.


def _finished(obj: Any, inside: FreeCoordinates | None, found: Any) -> Any:
    """The result with all parameters, in the network's dtype."""
    result = found if inside is None else inside.full(found)
    if isinstance(obj, Objective):
        result.x = result.x.astype(obj.net.dtype, copy=False)
    return result


# Names.


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
