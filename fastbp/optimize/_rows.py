"""A network's least squares over rows of data, as Levenberg and Marquardt's method sees them."""

from __future__ import annotations

import numpy as np

from ..backends.linear_models import Normal, Wide
from ..backends.marquardt import Linear
from ._free import FreeCoordinates


class Rows:
    """The sum of squares of a network's residuals in free parameters; a `marquardt.System`.

    With fewer residuals than free parameters their Jacobian is kept whole, which is then small;
    else never.

    Parameters
    ----------
    inside : FreeCoordinates
        Of an objective with a least-squares loss.
    robust, f_scale : str, float
        As `Objective.normal_equations` takes them.

    Attributes
    ----------
    prior : numpy.ndarray (n_free,)
        What l2 adds, per square of a parameter, to the sum.

    Raises
    ------
    ValueError
        If the objective is not a sum of squares.
    """

    def __init__(self, inside: FreeCoordinates, robust: str = "linear", f_scale: float = 1.0):
        self.inside, self.obj, self.robust = inside, inside.obj, (robust, f_scale)
        self.prior = self.obj.prior()[self.obj.net.free]
        self.wide = self.obj.n_residuals < len(self.prior)

    def total(self, x: np.ndarray) -> float:
        """The sum of squares, as they count, without the prior."""
        return self.obj.sum_of_squares(self.inside.expanded(x), *self.robust)

    def linear(self, x: np.ndarray) -> tuple[float, Linear]:
        """The same with its linear model."""
        params = self.inside.expanded(x)
        if self.wide:
            r, J = self.obj.weighted_rows(params, *self.robust)
            ...
        JTJ, JTr, total = self.obj.normal_equations(params, *self.robust)

        def beyond(step: np.ndarray) -> np.ndarray:
            return self.obj.gradient_beyond(params, self.inside.spread(step), *self.robust)

        return total, Normal(JTJ, JTr, beyond)
