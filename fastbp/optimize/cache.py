"""Caches of function values: SciPy asks for value and gradient apart, and for points again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from ..common.arrays import FLOAT64
from ..networks.objective import Objective

# How much a cache holds: points, and bytes of them, or of Hessian products at one point.
POINTS = 64
BYTES = 2**24


class CachedFunction:
    """A function of a vector, with a cache of its last results.

    Parameters
    ----------
    function : callable
        ``function(x, *args, **kwargs)``, x (n,); the other arguments are always the same.

    Attributes
    ----------
    calls : int
        How often the function was called.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._results: OrderedDict[bytes, Any] = OrderedDict()
        # The last point and its result: by far the most calls ask for them again.
        self._key = b""
        self._result: Any = None
        self.calls = 0

    def __call__(self, x: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        key = x.tobytes()
        if key == self._key:
            return self._result
        result = self._results.get(key)
        if result is None:
            self.calls += 1
            result = self._results[key] = self._function(x, *args, **kwargs)
            if len(self._results) > POINTS or len(self._results) * len(key) > BYTES:
                self._results.popitem(last=False)
        self._key, self._result = key, result
        return result

    def cached(self, x: np.ndarray) -> Any:
        """The result at x if the cache has it, else None."""
        return self._results.get(x.tobytes())


class CachedValueAndGrad(CachedFunction):
    """A cached function x (n,) -> (f, g (n,)), which also gives f and g apart, as SciPy asks."""

    def value(self, x: np.ndarray) -> float:
        """f at x."""
        return self(x)[0]

    def grad(self, x: np.ndarray) -> np.ndarray:
        """g (n,) at x."""
        # SciPy nearly always asks for the value there first: then no further call is made.
        return self._result[1] if x.tobytes() == self._key else self(x)[1]


class CachedProducts:
    """Products of a Hessian with vectors, cached as long as the point stays the same.

    A method that reduces its trust region takes the same directions again.

    Parameters
    ----------
    hessp : callable
        ``hessp(x, p, *args)``, x and p (n,).
    """

    def __init__(self, hessp: Callable[..., np.ndarray]):
        self._hessp = hessp
        self._point = b""
        self._products: dict[bytes, np.ndarray] = {}

    def __call__(self, x: np.ndarray, p: np.ndarray, *args: Any) -> np.ndarray:
        p = np.asarray(p, FLOAT64)  # SciPy tries its operators on zeros of another type
        point, direction = x.tobytes(), p.tobytes()
        if point != self._point:
            self._point, self._products = point, {}
        product = self._products.get(direction)
        if product is None:
            product = self._hessp(x, p, *args)
            if len(self._products) * len(direction) < BYTES:  # the first ones are asked for again
                self._products[direction] = product
        return product


class CachedObjective(Objective):
    """An objective that computes nothing twice at its last points.

    The arrays that it returns are those of the cache: they must not be modified, but for the
    residuals.

    Parameters
    ----------
    obj : Objective

    Attributes
    ----------
    cached_value_and_grad : CachedValueAndGrad
    """

    def __init__(self, obj: Objective):
        self.__dict__ |= obj.__dict__
        self.cached_value_and_grad = CachedValueAndGrad(super().value_and_grad)
        self._residuals = CachedFunction(super().residuals)
        self._products = CachedProducts(super().hvp)

    @property
    def nfev(self) -> int:
        """How often the objective was evaluated."""
        return self.cached_value_and_grad.calls + self._residuals.calls

    def cached(self, params: np.ndarray) -> tuple[float, np.ndarray] | None:
        """Value and gradient (n_params,) at `params` if the cache has them, else None."""
        return self.cached_value_and_grad.cached(params)

    def value(self, params: Any) -> float:
        return self.cached_value_and_grad(params)[0]

    def value_and_grad(self, params: Any) -> tuple[float, np.ndarray]:
        return self.cached_value_and_grad(params)

    def hvp(self, params: Any, v: Any) -> np.ndarray:
        return self._products(params, v)

    def residuals(self, params: Any) -> np.ndarray:
        return self._residuals(params).copy()  # SciPy's robust losses write to it
