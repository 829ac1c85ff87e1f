"""`curve_fit`: the parameters of a function f(x, *parameters) that fit data best."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import isfinite, sqrt
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from ..common.arrays import FLOAT64, all_finite, number, real_array, require_finite, whole_number
from ..common.errors import NonFiniteError, ShapeError, TraceError, unknown_name
from ..maths.marquardt import (
    FLAT,
    RUNNING,
    SHORT,
    SMALL,
    STUCK,
    LMOptions,
    LMSolver,
)
from ..maths.models import TOLERANCE, forget, require_agreement
from ..maths.robust import (
    ARCTAN_RHO,
    CAUCHY_RHO,
    HUBER_RHO,
    LINEAR_RHO,
    SOFT_L1_RHO,
    Robust,
)
from ._levenberg_marquardt import Residuals, checked_bounds
from .curve_solver import CurveSolver
from .curves import DIFFERENCES, Curve, CurveFit, End, Weighting, data_of, new_array, traced_curve
from .differences import STEPS

METHODS = ("lm", "trf", "dogbox")
LOSSES = {
    "linear": LINEAR_RHO,
    "soft_l1": SOFT_L1_RHO,
    "huber": HUBER_RHO,
    "cauchy": CAUCHY_RHO,
    "arctan": ARCTAN_RHO,
}
MESSAGES = {
    STUCK: "No step decreases the sum of squares, although the derivatives promise one: {}",
    RUNNING: "The maximum number of iterations (maxiter) has been reached.",
    FLAT: "Converged: the gradient is zero but for rounding.",
    SMALL: "Converged: the sum of squares falls no further.",
    SHORT: "Converged: the parameters change no further.",
}
_STUCK = {
    True: "f has a kink or a steep wall here.",
    False: "they are wrong or not accurate enough, or f has a kink or a steep wall here.",
}
_OPTIONS, _LINEAR = LMOptions(), Robust()
_WRONG = 1e-3  # relative to the largest entry of a column: an error of the caller's derivatives
# A sum of squares below the first number may be of residuals whose squares underflow, as those of
# residuals below the second one do.
_LEAST_TOTAL, _LEAST_SIZE = 1e-280, 1e-130
_SMALL = 5000  # numbers
_TOLERANCE = 1e-12  # of SciPy's methods


def curve_fit(
    f: Callable[..., Any],
    x: Any,
    y: Any,
    p0: Any = None,
    *,
    sigma: Any = None,
    absolute_sigma: bool = False,
    bounds: Any = None,
    loss: str = "linear",
    f_scale: float = 1.0,
    method: str = "lm",
    jac: Any = None,
    names: Sequence[str] | None = None,
    maxiter: int = 5000,
) -> CurveFit:
    """Fit the parameters of a function to data by least squares.

    The function's code is read: f is called once with symbols in the place of its parameters, and
    its exact derivatives follow [1]_. With them the whole fit is one call of the backend. A
    function that cannot be read so (a branch on a parameter, an integral) is differentiated by
    differences; ``result.derivatives`` and ``result.notes`` say so, and why.

    Parameters
    ----------
    f : callable
        ``f(x, *parameters) -> y`` (n,), of NumPy's functions, those of `math` or of
        `fastbp.jitted`.
    x : array_like (n,) or (k, n), or any object
        What f takes. Lists and arrays come to f as arrays of float64.
    y : array_like (n,)
        The observations.
    p0 : array_like (p,) or dict, optional
        Where to start; a dict has f's parameters by name. By default ones, or what is between the
        bounds.
    sigma : float or array_like (n,) or (n, n), optional
        The standard deviations of the observations, or their covariance.
    absolute_sigma : bool, default False
        Whether `sigma` is in the units of y; else it is relative, and the residuals tell the
        variance.
    bounds : pair of array_like (p,), or scipy.optimize.Bounds, optional
        Limits of the parameters, (lower, upper); numbers are for all.
    loss : {"linear", "soft_l1", "huber", "cauchy", "arctan"}
        How residuals larger than `f_scale` count, as in `scipy.optimize.least_squares`.
    f_scale : float, default 1.0
        Where outliers begin, in units of y, or of sigma if that is given.
    method : {"lm", "trf", "dogbox"}
        Levenberg and Marquardt's method, which takes bounds too and any number of rows; or SciPy's.
    jac : callable or {"2-point", "3-point", "cs"}, optional
        ``jac(x, *parameters) -> (n, p)``, or differences to be taken. A function is compared with
        what follows from f's code.
    names : sequence of str, optional
        The parameters' names in results; by default those of f's signature.
    maxiter : int, default 5000
        The maximum number of steps; for SciPy's methods, of evaluations.

    Returns
    -------
    CurveFit
        ``popt, pcov = result`` unpacks it; see its class for standard errors, intervals,
        predictions with bands, notes, ``summary()`` and ``plot()``.

    Raises
    ------
    ShapeError
        If y is no vector, or f, jac, sigma, p0 or `bounds` do not fit to it or to the parameters.
    NonFiniteError
        If y, p0, or what f returns at p0 is not finite, or the squares of that.
    TypeError, ValueError
        For what is not real, deviations that are not positive, bounds that cross or exclude p0,
        unknown names, and a `jac` that is wrong.

    References
    ----------
    .. [1] A. Griewank, A. Walther, "Evaluating Derivatives", 2nd edition, SIAM, 2008.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> t = np.arange(6.0)
    >>> y = np.array([3.02, 1.80, 1.12, 0.66, 0.42, 0.24])
    >>> fit = fb.optimize.curve_fit(lambda t, a, b: a * np.exp(-b * t), t, y, [1.0, 1.0])
    >>> popt, pcov = fit
    >>> popt.round(3).tolist(), fit.derivatives
    ([3.012, 0.502], 'exact')
    """
    if not callable(f):
        raise TypeError(f"f is {f!r}, expected a function f(x, *parameters)")
    x = data_of(x)
    y = new_array("y", y)
    if y.ndim != 1 or not y.size:
        hint = "; pass y.ravel()" if y.ndim > 1 and y.size else ""
        raise ShapeError(
            f"y has shape {y.shape}, expected a vector (n,) of at least one entry{hint}"
        )
    _require_finite("y", y)
    p, names = _start(f, p0, names, bounds)
    pair = None if bounds is None else _bounds(bounds, p, names)
    weighting = _NO_WEIGHTS if sigma is None else _weighting(sigma, len(y))
    robust = _LINEAR if loss == "linear" else _robust(loss, f_scale)
    if method not in METHODS:
        raise ValueError(unknown_name("method", method, METHODS))
    maxiter = whole_number("maxiter", maxiter)
    if jac is not None and not callable(jac) and jac not in DIFFERENCES:
        raise ValueError(f"jac is {jac!r}, expected a function or one of {DIFFERENCES}")
    curve = Curve(f, x, len(y), jac or "3-point", bounds=pair)
    notes = () if jac in DIFFERENCES else _trace(curve, p)
    if curve.model is not None and isinstance(x, np.ndarray):
        _require_finite("x", x)
    if callable(jac):
        _require_jac(curve, p, names)
    elif jac == "cs":
        _require_complex_steps(curve, p, names)
    settings = y, weighting, robust, p, method, loss, f_scale, maxiter
    end = _solved(curve, *settings)
    try:
        _require_agreement_at_end(curve, end, y, weighting, robust)
    except TraceError as error:
        forget(f)
        curve.model, notes = None, () if callable(jac) else (_by_differences(error),)
        end = _solved(curve, *settings)
    if not isfinite(end.total):
        _require_finite_start(curve, y, p)
    if end.total < _LEAST_TOTAL:
        _require_no_underflow(y, weighting)
    if end.nit == 0 and end.JTJ is not None and not all_finite(end.JTJ):
        name = names[int(np.argmin(np.isfinite(end.JTJ.diagonal())))]
        raise NonFiniteError(
            f"the squares of the derivatives by {name} overflow at p0; measure it, or y, in other "
            f"units"
        )
    return CurveFit(
        curve, y, sigma, weighting, p, end, names=names, method=method, robust=robust, loss=loss,
        absolute_sigma=bool(absolute_sigma), notes=notes,
    )  # fmt: skip


# Derivatives.


def _trace(curve: Curve, p: np.ndarray) -> tuple[str, ...]:
    """Set the model of the curve; the notes on it if there is none."""
    try:
        values = traced_curve(curve, p)
    except TraceError as error:
        return () if callable(curve.jac) else (_by_differences(error),)
    if values is not None and not callable(curve.jac):
        model = curve.model
        assert model is not None
        if all_finite(values) and not all_finite(model.jacobian(p)):
            curve.model = None
            return ("derivatives by differences, for those of the expression are not finite at p0",)
    return ()


def _by_differences(error: TraceError) -> str:
    """The note on a function without an expression."""
    line = "" if error.line is None else f" in line {error.line} of {error.filename}"
    return f"derivatives by differences, for f cannot be traced{line}: {error.operation}"


def _require_agreement_at_end(
    curve: Curve, end: End, y: np.ndarray, weighting: Weighting, robust: Robust
) -> None:
    """Raise TraceError unless the expression gives what f returns where the fit ended.

    A function that hides a branch from symbols, by their type or behind an exception, may agree at
    the start alone; of such a function nothing is stored.
    """
    if curve.model is None or curve.is_stored or not isfinite(end.total):
        return
    with np.errstate(all="ignore"):
        try:
            values = curve.called(end.p)
        except (ArithmeticError, ValueError):
            return
        if robust.kind == LINEAR_RHO and weighting.rows_apart:  # in less time
            r, size = weighting(values - y), weighting(values)
            gap = abs(sqrt(_sum_of_squares(r)) - sqrt(end.total))
            if gap <= TOLERANCE * sqrt(_sum_of_squares(size)):
                return
    require_agreement(curve.model, end.p, values)


def _sum_of_squares(r: np.ndarray) -> float:
    # BLAS takes threads for more.
    return float(r.dot(r) if r.size <= _SMALL else np.einsum("i,i", r, r))


def _require_jac(curve: Curve, p: np.ndarray, names: tuple[str, ...]) -> None:
    """Raise ValueError if the caller's derivatives at p differ from those of the expression.

    At a kink, what lies between the slopes beside it is right.
    """
    if curve.model is None:
        return
    with np.errstate(all="ignore"):
        J, exact = curve.jacobian(p), curve.model.jacobian(p)
        size = np.abs(exact).max(axis=0)
        for i, j in np.argwhere(np.abs(J - exact) > _WRONG * size):
            step = np.zeros_like(p)
            step[j] = STEPS["3-point"] * (abs(p[j]) or 1.0)
            before, here, after = (curve.model.values(p + sign * step)[i] for sign in (-1, 0, 1))
            slopes = (after - here) / step[j], (here - before) / step[j]
            least, most = min(slopes) - _WRONG * size[j], max(slopes) + _WRONG * size[j]
            if not least <= J[i, j] <= most:  # else it is right at a kink
                raise ValueError(
                    f"jac returned {J[i, j]:.6g} at p0 in row {i} for the derivative by {names[j]},"
                    f" which is {exact[i, j]:.6g}; correct it, or leave jac out: the derivatives "
                    f"follow from f"
                )


def _require_complex_steps(curve: Curve, p: np.ndarray, names: tuple[str, ...]) -> None:
    """Raise ValueError if f loses the imaginary part, and with it the derivative, at p."""
    with np.errstate(all="ignore"):
        J, expected = curve.jacobian(p), curve.differences(p)
        noise = (
            100
            * STEPS["3-point"] ** 2
            * np.abs(curve.called(p)).max()
            / np.where(p == 0, 1, abs(p))
        )
        most = _WRONG * np.abs(expected).max(axis=0) + noise
        wrong = np.abs(J - expected).max(axis=0) > most
    if wrong.any():
        raise ValueError(
            f"jac is 'cs', but complex steps of {names[int(np.argmax(wrong))]} do not give the "
            f"derivative at p0, as where f takes an absolute value or a real part; leave jac out"
        )


# Solvers.


def _solved(
    curve: Curve,
    y: np.ndarray,
    weighting: Weighting,
    robust: Robust,
    p: np.ndarray,
    method: str,
    loss: str,
    f_scale: float,
    maxiter: int,
) -> End:
    """Where the fit from p ends."""
    if method != "lm":
        return _by_scipy(curve, y, weighting, p, method, loss, f_scale, maxiter)
    in_python = curve.model is None or callable(curve.jac) or not weighting.rows_apart
    if in_python or robust.kind == ARCTAN_RHO:
        return _by_solver(curve, y, weighting, robust, p, maxiter)
    return _by_backend(curve, y, weighting, robust, p, maxiter)


def _by_backend(
    curve: Curve, y: np.ndarray, weighting: Weighting, robust: Robust, p: np.ndarray, maxiter: int
) -> End:
    """Levenberg and Marquardt's method in calls of the backend, of many steps each."""
    assert curve.model is not None
    solver = CurveSolver(curve.model, p, _OPTIONS, robust, curve.bounds, y, weighting.weights)
    status = solver.run(maxiter)
    return End(
        solver.x, solver.total, status, _message(status, True), *solver.counts,
        solver.JTJ if robust.kind == LINEAR_RHO else None, lambda: solver.residuals()[1],
    )  # fmt: skip


def _by_solver(
    curve: Curve, y: np.ndarray, weighting: Weighting, robust: Robust, p: np.ndarray, maxiter: int
) -> End:
    """The same in Python, for any curve and weights."""
    system = Residuals(
        lambda p: weighting(curve.values(p) - y),
        lambda p: weighting(curve.jacobian(p)),
        (),
        robust,
        None,
    )
    with np.errstate(all="ignore"):
        r, J = system.at(p)
        if not (all_finite(r) and all_finite(J)):
            _require_finite_start(curve, y, p)
        solver = LMSolver(system, p, _OPTIONS, None, curve.bounds)
        while solver.status == RUNNING and solver.nit < maxiter:
            solver.step()
    message = _message(solver.status, curve.model is not None and not callable(curve.jac))
    return End(solver.x, solver.total, solver.status, message, solver.nit, solver.nfev, solver.njev)


def _message(status: int, exact: bool) -> str:
    return MESSAGES[status].format(_STUCK[exact])


def _by_scipy(
    curve: Curve,
    y: np.ndarray,
    weighting: Weighting,
    p: np.ndarray,
    method: str,
    loss: str,
    f_scale: float,
    maxiter: int,
) -> End:
    """SciPy's methods for bounded least squares."""
    from scipy.optimize import least_squares

    bounds = curve.bounds or (-np.inf, np.inf)
    with np.errstate(all="ignore"):
        if not (all_finite(curve.values(p)) and all_finite(curve.jacobian(p))):
            _require_finite_start(curve, y, p)
        result = least_squares(
            lambda p: weighting(curve.values(p) - y),
            p,
            lambda p: weighting(curve.jacobian(p)),
            bounds,
            method,
            _TOLERANCE,
            _TOLERANCE,
            _TOLERANCE,
            "jac",
            loss,
            f_scale,
            max_nfev=maxiter,
        )
    return End(
        result.x,
        2 * float(result.cost),
        int(result.status),
        result.message,
        int(result.njev),
        int(result.nfev),
        int(result.njev),
        held=result.active_mask != 0,
    )


# Arguments.


_NO_WEIGHTS = Weighting()


class Signature(NamedTuple):
    """The parameters of a function f(x, *parameters): their names, and how many there must be."""

    names: tuple[str, ...]
    least: int
    more: bool


def signature_of(f: Callable) -> Signature:
    """The parameters of f without the first one, which is x."""
    if type(f) is FunctionType:
        code = f.__code__
        if not code.co_flags & inspect.CO_VARARGS and code.co_argcount > 0:
            least = code.co_argcount - len(f.__defaults__ or ()) - 1
            return Signature(code.co_varnames[1 : code.co_argcount], max(least, 0), False)
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have no signature
        return Signature((), 0, True)
    places = [q for q in parameters if q.kind in (q.POSITIONAL_ONLY, q.POSITIONAL_OR_KEYWORD)]
    more = any(q.kind is q.VAR_POSITIONAL for q in parameters)
    if not places and not more:
        raise TypeError("f takes no arguments, expected f(x, *parameters)")
    names = tuple(q.name for q in places[1:])
    return Signature(names, sum(q.default is q.empty for q in places[1:]), more)


def _require_finite(name: str, array: np.ndarray) -> None:
    """As `require_finite`, for x by its rows (n,) or (k, n)."""
    if not all_finite(array):
        require_finite(name, array.T)


def _start(
    f: Callable, p0: Any, names: Sequence[str] | None, bounds: Any
) -> tuple[np.ndarray, tuple[str, ...]]:
    """p0 as a vector (p,), and the names of the parameters."""
    signature = signature_of(f)
    known = signature.names
    if isinstance(p0, dict):
        p0, known = _by_name(p0, signature)
    elif p0 is None:
        p0 = _guess(signature, names, bounds)
    p = new_array("p0", p0)
    if p.ndim == 0:
        p = p.reshape(1)
    if p.ndim != 1 or not p.size:
        raise ShapeError(f"p0 has shape {p.shape}, expected a vector of a number per parameter")
    count = len(p)
    if count < signature.least or (count > len(known) and not signature.more):
        raise ShapeError(
            f"p0 has {count} entries, expected {len(known)}, one for each of f's parameters: "
            f"{', '.join(known)}"
        )
    if not isfinite(sum(p.tolist())):
        require_finite("p0", p)
    if names is None:
        if count > len(known):
            known = (*known, *(f"p[{j}]" for j in range(count - len(known))))
        return p, known[:count]
    if isinstance(names, str):
        names = names.replace(",", " ").split()
    if len(names) != count or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names is {names!r}, expected {count} names, one per parameter")
    return p, tuple(names)


def _by_name(p0: dict[str, Any], signature: Signature) -> tuple[list[Any], tuple[str, ...]]:
    """The entries of p0 in the order of f's parameters, and their names."""
    unknown = [name for name in p0 if name not in signature.names]
    if not signature.names and signature.more:
        order = tuple(p0)
    elif unknown:
        raise ValueError(unknown_name("parameter of p0", unknown[0], signature.names))
    else:
        order = tuple(name for name in signature.names if name in p0)
        missing = [name for name in signature.names[: signature.least] if name not in p0]
        if missing or order != signature.names[: len(order)]:
            lost = missing or [name for name in signature.names if name not in p0]
            raise ValueError(f"p0 has no entry for f's parameter {lost[0]!r}; add one")
    return [number(f"p0[{name!r}]", p0[name]) for name in order], order


def _guess(signature: Signature, names: Sequence[str] | None, bounds: Any) -> np.ndarray:
    """Ones, or numbers between the bounds, for all of f's parameters."""
    if signature.more and not signature.names and names is None:
        raise ValueError("p0 is missing, and f(x, *parameters) does not say how many there are")
    count = len(signature.names) or len(names or ())
    if bounds is None:
        return np.ones(count)
    lower, upper = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") else bounds
    try:
        lower, upper = (np.broadcast_to(np.asarray(b, float), (count,)) for b in (lower, upper))
    except ValueError:
        return np.ones(count)  # the check of the bounds says what is wrong
    low, high = np.isfinite(lower), np.isfinite(upper)
    with np.errstate(invalid="ignore"):
        middle = 0.5 * (lower + upper)
    return np.select([low & high, low, high], [middle, lower + 1, upper - 1], 1.0)


def _bounds(
    bounds: Any, p: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The bounds as two vectors (p,) of their own memory; None if all are infinite."""
    pair = checked_bounds(bounds, p, names, "p0")
    if pair is None or (np.isneginf(pair[0]).all() and np.isposinf(pair[1]).all()):
        return None
    return np.array(pair[0]), np.array(pair[1])


def _weighting(sigma: Any, n: int) -> Weighting:
    """The weights that make residuals independent and of one variance."""
    sigma = real_array("sigma", sigma, FLOAT64)
    if sigma.shape not in ((), (n,), (n, n)):
        raise ShapeError(
            f"sigma has shape {sigma.shape}, expected a number, ({n},), a deviation per row of y, "
            f"or ({n}, {n}), their covariance"
        )
    if not all_finite(sigma):
        require_finite("sigma", np.atleast_1d(sigma))
    if sigma.ndim == 2 and n > 1:
        try:
            if not np.allclose(sigma, sigma.T, rtol=1e-8, atol=0):
                raise np.linalg.LinAlgError
            return Weighting(factor=np.linalg.cholesky(sigma))
        except np.linalg.LinAlgError:
            raise ValueError(
                "sigma is no covariance: it is not symmetric and positive definite; pass the "
                "deviations (n,), or a covariance matrix"
            ) from None
    deviations = np.sqrt(sigma[0]) if sigma.ndim == 2 else np.broadcast_to(sigma, (n,))
    if not (deviations > 0).all():
        row = int(np.flatnonzero(~(deviations > 0))[0])
        raise ValueError(
            f"sigma is {deviations[row]:g} in row {row}, expected deviations > 0; leave such rows "
            f"out, or give them a large sigma"
        )
    return Weighting(1 / deviations)


def _robust(loss: Any, f_scale: Any) -> Robust:
    if loss not in LOSSES:
        raise ValueError(unknown_name("loss", loss, LOSSES))
    scale = number("f_scale", f_scale, "a number > 0")
    if not (isfinite(scale) and scale > 0):
        raise ValueError(f"f_scale is {scale}, expected a finite number > 0")
    return Robust(LOSSES[loss], scale)


def _require_finite_start(curve: Curve, y: np.ndarray, p: np.ndarray) -> None:
    """Raise NonFiniteError: the fit cannot start."""
    if isinstance(curve.x, np.ndarray):
        require_finite("x", curve.x.T)
    values = curve.called(p)
    require_finite("what f returns at p0", values)
    require_finite("the Jacobian at p0", curve.jacobian(p))
    raise NonFiniteError(
        f"the sum of squares at p0 overflows: f is up to {np.abs(values).max():.3g} there and y "
        f"{np.abs(y).max():.3g}; scale y down or start elsewhere"
    )


def _require_no_underflow(y: np.ndarray, weighting: Weighting) -> None:
    """Raise ValueError if the squares of what is as large as y underflow."""
    size = np.abs(weighting(y)).max()
    if 0 < size < _LEAST_SIZE:
        raise ValueError(
            f"the squares of the residuals underflow: y is up to {np.abs(y).max():.3g}"
            f"{'' if size == np.abs(y).max() else f', {size:.3g} by sigma'}; scale y up"
        )
