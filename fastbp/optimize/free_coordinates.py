"""A network's objective in its free parameters alone: what solvers see where some are fixed."""

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

    The solver works on vectors x (n_free,). What the caller passes it and gets from it has an entry
    per parameter: `restricted` and `callback` translate on the way in, `full` on the way out.

    Parameters
    ----------
    obj : Objective
    start : array_like (n_params,)
        The free ones of its entries are `x0`; the others stay as they are.

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

    # What the solver calls.

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = self._obj.value_and_grad(self._expanded(x))
        return value, grad[self._free]

    def hessp(self, x: np.ndarray, p: np.ndarray) -> np.ndarray:
        return self._obj.hvp(self._expanded(x), self._spread(p))[self._free]

    def residuals(self, x: np.ndarray) -> np.ndarray:
        return self._obj.residuals(self._expanded(x))

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        return self._obj.jacobian(self._expanded(x))[:, self._free]

    def callback(self, function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """The caller's function, told whole vectors and results; its signature stays visible."""
        if function is None:
            return None

        @wraps(function)
        def told(*args: Any, **named: Any) -> Any:
            return function(
                *map(self.full, args), **{key: self.full(value) for key, value in named.items()}
            )

        return told

    # What comes out.

    def full(self, found: Any) -> Any:
        """A vector x, or a result that holds one, with entries for all parameters."""
        if isinstance(found, np.ndarray):
            return self._expanded(found)
        result = type(found)(found)
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
        """(..., n_free) as (..., n_params), zero for what is fixed."""
        result = np.zeros((*derivative.shape[:-1], len(self._start)), derivative.dtype)
        result[..., self._free] = derivative
        return result

    # What goes in.

    def restricted(self, keywords: dict[str, Any]) -> dict[str, Any]:
        """Keywords and options with what belongs to the free parameters of each.

        Raises
        ------
        ShapeError
            If one does not have an entry per parameter.
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
        inside = copy.copy(constraint)
        if isinstance(constraint, NonlinearConstraint):
            inside.fun, inside.jac = self._inside(constraint.fun), self._jacobian(constraint.jac)
            inside.hess = self._hessian(constraint.hess)
            for key, part in (("rel_step", self._entries), ("jac_sparsity", self._columns)):
                key = f"finite_diff_{key}"
                if getattr(inside, key) is not None:
                    setattr(inside, key, part(key, getattr(inside, key)))
        elif isinstance(constraint, dict):
            for key, wrapped in (("fun", self._inside), ("jac", self._jacobian)):
                if key in inside:
                    inside[key] = wrapped(inside[key])
        return inside

    def _effective(self, x: np.ndarray) -> np.ndarray:
        return self._obj.net.checked_params(self._expanded(x))

    def _inside(self, function: Any) -> Any:
        if not callable(function):
            return function
        return lambda x, *args: function(self._effective(x), *args)

    def _jacobian(self, jac: Any) -> Any:
        """The constraint's Jacobian; names of numerical ones and None pass."""
        whole = self._inside(jac)
        if not callable(jac):
            return whole
        return lambda x, *args: self._columns("jac of a constraint", whole(x, *args))

    def _hessian(self, hess: Any) -> Any:
        """The Hessian of v·fun, of whatever form SciPy takes; what approximates it passes."""
        if not callable(hess):
            return hess
        from scipy.sparse import csc_array, eye_array
        from scipy.sparse.linalg import aslinearoperator

        spread = aslinearoperator(csc_array(eye_array(len(self._start)))[:, self._free])
        whole = self._inside(hess)
        return lambda x, v: spread.T @ aslinearoperator(whole(x, v)) @ spread
