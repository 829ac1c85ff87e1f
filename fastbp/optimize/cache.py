"""What was computed is remembered: SciPy asks for value and gradient apart, and comes back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from ..common.arrays import FLOAT64
from ..networks.objective import Objective

# How much is kept: points, and bytes of them, and of Hessian products at one point.
POINTS = 64
BYTES = 2**24


class Memory:
    """A function of a vector that keeps its last results.

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
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._key = b""  # the last one, by far the most asked for
        self._result: Any = None
        self.calls = 0

    def __call__(self, x: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        key = x.tobytes()
        if key == self._key:
            return self._result
        result = self._kept.get(key)
        if result is None:
            self.calls += 1
            result = self._kept[key] = self._function(x, *args, **kwargs)
            if len(self._kept) > POINTS or len(self._kept) * len(key) > BYTES:
                self._kept.popitem(last=False)
        self._key, self._result = key, result
        return result

    def known(self, x: np.ndarray) -> Any:
        """The result at x if it is kept, else None."""
        return self._kept.get(x.tobytes())


class Pairs(Memory):
    """A function that returns value and gradient, as SciPy asks for them: one after the other."""

    def value(self, x: np.ndarray) -> float:
        return self(x)[0]

    def grad(self, x: np.ndarray) -> np.ndarray:
        # Nearly always where the value was asked for: not a call more than it takes.
        return self._result[1] if x.tobytes() == self._key else self(x)[1]


class Products:
    """A Hessian's products, each computed once as long as the point stays the same.

    A trust region that was cut makes a method walk the same directions again.

    Parameters
    ----------
    hessp : callable
        ``hessp(x, p, *args)``, x and p (n,).
    """

    def __init__(self, hessp: Callable[..., np.ndarray]):
        self._hessp = hessp
        self._point = b""
        self._kept: dict[bytes, np.ndarray] = {}

    def __call__(self, x: np.ndarray, p: np.ndarray, *args: Any) -> np.ndarray:
        p = np.asarray(p, FLOAT64)  # SciPy tries its operators on zeros of another type
        point, direction = x.tobytes(), p.tobytes()
        if point != self._point:
            self._point, self._kept = point, {}
        product = self._kept.get(direction)
        if product is None:
            product = self._hessp(x, p, *args)
            if len(self._kept) * len(direction) < BYTES:  # those of a cut region come first
                self._kept[direction] = product
        return product


class Remembered(Objective):
    """An objective that computes nothing twice at the points where it has been last.

    What it returns is shared and must not be modified.

    Parameters
    ----------
    obj : Objective

    Attributes
    ----------
    pairs : Pairs
        Value and gradient.
    """

    def __init__(self, obj: Objective):
        self.__dict__ |= obj.__dict__
        self.pairs = Pairs(super().value_and_grad)
        self._residuals = Memory(super().residuals)
        self._products = Products(super().hvp)

    @property
    def nfev(self) -> int:
        """How often the objective was evaluated."""
        return self.pairs.calls + self._residuals.calls

    def known(self, params: np.ndarray) -> tuple[float, np.ndarray] | None:
        """Value and gradient at `params` if they are remembered."""
        return self.pairs.known(params)

    def value(self, params: Any) -> float:
        return self.pairs(params)[0]

    def value_and_grad(self, params: Any) -> tuple[float, np.ndarray]:
        return self.pairs(params)

    def hvp(self, params: Any, v: Any) -> np.ndarray:
        return self._products(params, v)

    def residuals(self, params: Any) -> np.ndarray:
        return self._residuals(params).copy()  # SciPy's robust losses write to it
