"""A network's objective as a function of its free parameters: what solvers work on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from ..common.arrays import FLOAT64
from ..common.errors import ShapeError
from ..networks.description import Description
from ..networks.objective import Objective

# Options and keywords of SciPy's with an entry per parameter, and fields of its results.
_PER_PARAMETER = ("scale", "offset", "x_scale")
_DERIVATIVES = ("jac", "grad", "lagrangian_grad", "active_mask")


def require_free(net: Description) -> None:
    """Raise ValueError if all parameters are masked or frozen."""
    if net.n_free == 0:
        raise ValueError(
            f"all {net.n_params} parameters of the network are masked or frozen, expected at least "
            f"one that can be fitted; give a layer trainable=True"
        )


class FreeCoordinates:
    """An objective with masked or frozen parameters as a function of the others, in float64.

    A solver works on vectors x (n_free,). The caller's arguments and results have an entry per
    parameter: `restricted` and `callback` translate arguments, `full` translates results.

    Parameters
    ----------
    obj : Objective
    start : array_like (n_params,)
        Its free entries are `x0`; the others stay as they are.

    Raises
    ------
    ShapeError
        If `start` has another length.
    ValueError
        If nothing is free.
    """

    def __init__(self, obj: Objective, start: Any):
        require_free(obj.net)
        self._obj, self._free = obj.astype(FLOAT64), obj.net.free
        self._start = self._obj.net.checked_vector(start).copy()
        self.x0 = self._start[self._free]

    # Functions for the solver.

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective and its gradient (n_free,) at x (n_free,)."""
        value, grad = self._obj.value_and_grad(self._expanded(x))
        return value, grad[self._free]

    def hessp(self, x: np.ndarray, p: np.ndarray) -> np.ndarray:
        """The Hessian's product (n_free,) with p (n_free,)."""
        return self._obj.hvp(self._expanded(x), self._spread(p))[self._free]

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """The residuals (m,); see `Objective.residuals`."""
        return self._obj.residuals(self._expanded(x))

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """The Jacobian (m, n_free) of the residuals."""
        return self._obj.jacobian(self._expanded(x))[:, self._free]

    def callback(self, function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """The caller's function, called with all parameters; its signature stays visible."""
        if function is None:
            return None

        @wraps(function)
        def with_full(*args: Any, **named: Any) -> Any:
            return function(
                *map(self.full, args), **{key: self.full(value) for key, value in named.items()}
            )

        return with_full

    # Results.

    def full(self, free: Any) -> Any:
        """A vector x (n_free,), or a result that holds one, with an entry per parameter."""
        if isinstance(free, np.ndarray):
            return self._expanded(free)
        result = type(free)(free)
        for name in _DERIVATIVES:
            if isinstance(result.get(name), np.ndarray):
                result[name] = self._spread(result[name])
        if "allvecs" in result:
            result.allvecs = [self._expanded(x) for x in result.allvecs]
        result.x = self._expanded(result.x)
        return result

    def _expanded(self, x: np.ndarray) -> np.ndarray:
        params = self._start.copy()
        params[self._free] = x
        return params

    def _spread(self, derivative: np.ndarray) -> np.ndarray:
        """(..., n_free) as (..., n_params), zero for fixed parameters."""
        result = np.zeros((*derivative.shape[:-1], len(self._start)), derivative.dtype)
        result[..., self._free] = derivative
        return result

    # Arguments.

    def restricted(self, keywords: dict[str, Any]) -> dict[str, Any]:
        """SciPy's keywords and options with the entries of the free parameters alone.

        Raises
        ------
        ShapeError
            If one of them does not have an entry per parameter.
        """
        return {key: self._restricted(key, value) for key, value in keywords.items()}

    def _restricted(self, key: str, value: Any) -> Any:
        if key in _PER_PARAMETER:
            return self._entries(key, value)
        if value is None:
            return None
        if key == "callback":
            return self.callback(value)
        if key == "bounds":
            return self._bounds(value)
        if key == "constraints":
            several = isinstance(value, list | tuple)
            return [self._constraint(c) for c in (value if several else [value])]
        if key == "jac_sparsity":
            return self._columns(key, value)
        if key == "hess_inv0":
            return self._columns(key, self._columns(key, value).T).T
        return value

    def _entries(self, name: str, value: Any) -> Any:
        if np.ndim(value) == 0:  # a number for all, None, or a word
            return value
        try:
            return np.broadcast_to(value, self._start.shape)[self._free]
        except ValueError:
            raise self._wrong_shape(name, np.shape(value), "({},)") from None

    def _columns(self, name: str, matrix: Any) -> Any:
        from scipy.sparse import csc_array, issparse

        matrix = csc_array(matrix) if issparse(matrix) else np.asarray(matrix)
        if matrix.shape[-1:] != self._start.shape:
            raise self._wrong_shape(name, matrix.shape, "(..., {})")
        return matrix[..., self._free] if matrix.ndim == 1 else matrix[:, self._free]

    def _wrong_shape(self, name: str, shape: tuple[int, ...], expected: str) -> ShapeError:
        return ShapeError(
            f"{name} has shape {shape}, expected {expected.format(len(self._start))}: an entry per "
            f"parameter, also for the masked and frozen ones"
        )

    def _bounds(self, bounds: Any) -> Any:
        from scipy.optimize import Bounds

        ends = (bounds.lb, bounds.ub, bounds.keep_feasible)
        return Bounds(*(self._entries("bounds", end) for end in ends))

    def _constraint(self, constraint: Any) -> Any:
        """A constraint on all parameters as one on the free ones; masked ones are zero in it."""
        from scipy.optimize import LinearConstraint, NonlinearConstraint

        if isinstance(constraint, LinearConstraint):
            A = self._columns("A of a constraint", constraint.A)
            fixed = constraint.A @ self._effective(np.zeros(len(self._free)))
            lower, upper = constraint.lb - fixed, constraint.ub - fixed
            return LinearConstraint(A, lower, upper, constraint.keep_feasible)
        free = copy.copy(constraint)
        if isinstance(constraint, NonlinearConstraint):
            free.fun, free.jac = self._of_free(constraint.fun), self._jacobian(constraint.jac)
            free.hess = self._hessian(constraint.hess)
            for key, restrict in (("rel_step", self._entries), ("jac_sparsity", self._columns)):
                key = f"finite_diff_{key}"
                if getattr(free, key) is not None:
                    setattr(free, key, restrict(key, getattr(free, key)))
        elif isinstance(constraint, dict):
            for key, wrapped in (("fun", self._of_free), ("jac", self._jacobian)):
                if key in free:
                    free[key] = wrapped(free[key])
        return free

    def _effective(self, x: np.ndarray) -> np.ndarray:
        """All parameters (n_params,), zero where masked."""
        return self._obj.net.checked_params(self._expanded(x))

    def _of_free(self, function: Any) -> Any:
        """A function of all parameters as one of x (n_free,); other values stay as they are."""
        if not callable(function):
            return function
        return lambda x, *args: function(self._effective(x), *args)

    def _jacobian(self, jac: Any) -> Any:
        """The constraint's Jacobian (..., n_free); None and names of differences stay."""
        whole = self._of_free(jac)
        if not callable(jac):
            return whole
        return lambda x, *args: self._columns("jac of a constraint", whole(x, *args))

    def _hessian(self, hess: Any) -> Any:
        """The Hessian of v·fun as an operator; SciPy's approximations of it stay."""
        if not callable(hess):
            return hess
        from scipy.sparse import csc_array, eye_array
        from scipy.sparse.linalg import aslinearoperator

        spread = aslinearoperator(csc_array(eye_array(len(self._start)))[:, self._free])
        whole = self._of_free(hess)
        return lambda x, v: spread.T @ aslinearoperator(whole(x, v)) @ spread


def free_coordinates(obj: Any, start: Any) -> FreeCoordinates | None:
    """The free coordinates of an objective that has fixed parameters.

    None for an objective without fixed parameters and for a function, which are used as they are.
    Errors as `FreeCoordinates`.
    """
    if isinstance(obj, Objective) and obj.net.plan.free is not None:
        return FreeCoordinates(obj, start)
    return None
