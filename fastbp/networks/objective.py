"""`Objective`: a network's loss over fixed data as a function of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from ..backends.contract import Problem
from ..common.arrays import FLOAT64, converted, dtype_of, lazy_matrix, number, whole_number
from ..common.errors import ShapeError, unknown_name
from ..maths.losses import Loss, loss as loss_of
from ..maths.robust import CAUCHY_RHO, HUBER_RHO, LINEAR_RHO, SOFT_L1_RHO, Robust
from .description import Description
from .targets import prepare_target, prepare_weights

ROBUST = {
    "linear": LINEAR_RHO,
    "huber": HUBER_RHO,
    "soft_l1": SOFT_L1_RHO,
    "cauchy": CAUCHY_RHO,
}
_NOT_ROBUST = Robust()


class Objective:
    """A network's loss over fixed data: a function of the parameters, as SciPy wants it.

    `Network.objective` makes it and documents the arguments. It refers to the data, which must not
    change while it is in use.

    Attributes
    ----------
    net : Description
    loss : Loss
    threads : int
        How many threads share the rows.
    backend : module
        The backend that computes it.
    """

    def __init__(
        self,
        net: Description,
        X: Any,
        y: Any,
        loss: str | Loss,
        sample_weight: Any,
        l2: float,
        l1: float,
        group: float,
        threads: int,
        module: ModuleType,
    ):
        self.net = net
        self.loss = loss_of(loss)
        self.threads = whole_number("threads", threads)
        X, self._blocks = lazy_matrix("X", X, net.dtype, net.n_in, "input of the network")
        n = len(X)
        if n == 0:
            raise ShapeError(f"X has shape {X.shape}, expected at least one row")
        kind, targets = prepare_target(self.loss, y, n, net.n_out, net.dtype)
        weights, total = prepare_weights(self.loss, sample_weight, n, net.dtype)
        self._stored = Problem(
            net.plan,
            kind,
            X,
            targets,
            weights,
            self.loss.scale(total, net.n_out),
            self.loss.parameter(net.dtype),
            self.loss.functions,
            _penalty("l2", l2),
            _penalty("l1", l1),
            _penalty("group", group),
        )
        self.backend = module

    @cached_property
    def problem(self) -> Problem:
        """The argument of the backend's functions, with X converted as a whole."""
        return self._with_rows(slice(None)) if self._blocks else self._stored

    def _problems(self) -> Iterator[Problem]:
        """The problem, in blocks of rows where X is converted block by block.

        Only the first block has the penalties. To bound the memory, a caller drops its reference
        to a block before it asks for the next one.
        """
        if not self._blocks or "problem" in self.__dict__:
            yield self.problem
            return
        for rows in self._blocks:
            yield self._with_rows(rows)

    def _with_rows(self, rows: slice) -> Problem:
        p = self._stored
        block = replace(
            p,
            X=converted(p.X[rows], self.net.dtype),
            targets=p.targets[rows],
            weights=None if p.weights is None else p.weights[rows],
            handles={},
        )
        return replace(block, l2=0.0, l1=0.0, group=0.0) if rows.start else block

    def astype(self, dtype: Any) -> Objective:
        """The same objective computed in "float32" or "float64"."""
        if self.net.dtype == dtype_of(dtype):
            return self
        p = self._stored
        weights = p.weights
        if weights is not None and self.loss.paired:
            weights = weights[::2]
        return Objective(
            self.net.astype(dtype), p.X, self.targets, self.loss, weights, p.l2, p.l1, p.group,
            self.threads, self.backend,
        )  # fmt: skip

    def value(self, params: Any) -> float:
        """The objective at `params` (n_params,)."""
        params = self.net.checked_params(params)
        return sum(map(lambda p: self.backend.value(p, params, self.threads), self._problems()))

    def value_and_grad(self, params: Any) -> tuple[float, np.ndarray]:
        """The objective and its gradient (n_params,) at `params`."""
        params = self.net.checked_params(params)
        if not self._blocks:
            value, grad = self.backend.value_and_grad(self._stored, params, self.threads)
        else:
            value, grad = self._summed(
                lambda p: self.backend.value_and_grad(p, params, self.threads)
            )
        return value, self.net.zero_fixed(grad)

    @np.errstate(all="ignore")  # infinite and NaN entries pass, as in the backends
    def _summed(self, function: Callable[[Problem], tuple[Any, ...]]) -> list[Any]:
        """The function's results summed over the blocks, in float64, rounded at the end."""
        totals: list[Any] = []
        for results in map(function, self._problems()):
            if not totals:
                totals = [np.asarray(r, np.float64) for r in results]
            else:
                totals = [total + r for total, r in zip(totals, results, strict=True)]
        dtype = self.net.dtype
        return [t.astype(dtype) if t.ndim else float(t) for t in totals]

    @np.errstate(all="ignore")
    def per_sample_grad(self, params: Any) -> np.ndarray:
        """The gradient of each sample's objective; see `Network.per_sample_grad`."""
        params, p = self.net.checked_params(params), self.problem
        of_one = replace(p, scale=self.loss.scale(1.0, self.net.n_out), handles={})
        rows = self.net.zero_fixed(self.backend.row_gradients(of_one, params))
        return rows[0::2] + rows[1::2] if self.loss.paired else rows

    # Curvature.

    def hvp(self, params: Any, v: Any) -> np.ndarray:
        """The Hessian at `params` times v, (n_params,); see `Network.hvp`."""
        for layer in self.net.layers:
            layer.act.require_second()
        return self._curvature(params, v, False)

    def gnvp(self, params: Any, v: Any) -> np.ndarray:
        """The Gauss-Newton matrix at `params` times v, (n_params,); see `Network.gnvp`."""
        return self._curvature(params, v, True)

    @np.errstate(all="ignore")
    def _curvature(self, params: Any, v: Any, gauss_newton: bool) -> np.ndarray:
        self.loss.require_second()
        params, v = self.net.checked_params(params), self.net.checked_tangent("v", v)
        (product,) = self._summed(lambda p: (self.backend.hvp(p, params, v, gauss_newton),))
        return self.net.zero_fixed(product + self._penalty_product(params, v))

    def _penalty_product(self, params: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The Hessian of the penalties at `params` times v, (n_params,)."""
        p = self._stored
        product = np.zeros_like(v)
        if not (p.l2 or p.group):
            return product
        views = (self.net.unpack(vector) for vector in (params, v, product))
        for (W, _), (V, _), (P, _) in zip(*views, strict=True):
            P += p.l2 * V
            if p.group:  # of ‖w‖ it is (I - w wᵀ/‖w‖²)/‖w‖
                norms = np.linalg.norm(W, axis=0)
                unit = W / np.where(norms == 0, 1, norms)
                across = V - unit * (unit * V).sum(axis=0)
                P += np.where(norms == 0, 0, p.group * across / np.where(norms == 0, 1, norms))
        return product

    def max_stable_rate(self, params: Any) -> float:
        """2/λ_max at `params`; see `Network.max_stable_rate`."""
        double = self.astype(FLOAT64)
        params, free = double.net.checked_params(params), double.net.free
        multiply = double.gnvp if self.loss.least_squares else double.hvp

        def product(x: np.ndarray) -> np.ndarray:
            v = np.zeros(double.net.n_params)
            v[free] = np.ravel(x)
            return multiply(params, v)[free]

        largest = largest_eigenvalue(product, len(free))
        return float("inf") if largest <= 0 else 2 / largest

    # Least squares.

    def residuals(self, params: Any) -> np.ndarray:
        """The vector whose sum of squares is the objective up to its normaliser.

        Its entries are sqrt(w)·(Y - y), sample-major; with a penalty sqrt(l2/(2·scale))·W follow,
        where scale is the normaliser (`problem.scale`), so that always
        ``scale·Σ residuals² = value``.

        Raises
        ------
        ValueError
            If the loss is not a sum of squares, or there is an l1 or group penalty.
        """
        self._require_least_squares()
        params, p = self.net.checked_params(params), self.problem
        with np.errstate(all="ignore"):  # infinite and NaN entries pass, as in the backends
            R = self.backend.forward(p.plan, params, p.X) - p.targets
            if p.weights is not None:
                R *= np.sqrt(p.weights)[:, None]
            if not p.l2:
                return R.ravel()
            return np.concatenate([R.ravel(), self._prior_factor() * params[self._weight_indices]])

    def jacobian(self, params: Any) -> np.ndarray:
        """The derivative of `residuals`, (len(residuals), n_params)."""
        self._require_least_squares()
        params, p = self.net.checked_params(params), self.problem
        J = self.backend.jacobian(p.plan, params, p.X, self.threads, False)
        J = self.net.zero_fixed(J)
        if p.weights is not None:
            with np.errstate(all="ignore"):
                J *= np.repeat(np.sqrt(p.weights), self.net.n_out)[:, None]
        if not p.l2:
            return J
        indices = self._weight_indices
        prior = np.zeros((len(indices), self.net.n_params), self.net.dtype)
        prior[np.arange(len(indices)), indices] = self._prior_factor()
        return np.concatenate([J, self.net.zero_fixed(prior)])

    def sum_of_squares(self, params: Any, robust: str = "linear", f_scale: float = 1.0) -> float:
        """The third result of `normal_equations` alone, at the cost of a forward pass."""
        self._require_least_squares()
        params, rho = self.net.checked_params(params), robust_loss(robust, f_scale)
        if not self._blocks:
            return self.backend.sum_of_squares(self._stored, params, self.threads, rho)
        (total,) = self._summed(
            lambda p: (self.backend.sum_of_squares(p, params, self.threads, rho),)
        )
        return total

    def normal_equations(
        self, params: Any, robust: str = "linear", f_scale: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """JᵀDJ, JᵀDr and Σ w f_scale² rho(z) for the free parameters, without penalties.

        Parameters
        ----------
        params : array_like (n_params,)
        robust : {"linear", "huber", "soft_l1", "cauchy"}, default "linear"
            The function rho of `scipy.optimize.least_squares`; of z = (r/f_scale)², r being the
            residuals Y - y without their sample weights w.
        f_scale : float, default 1.0
            The size, in units of y, beyond which a residual counts as an outlier.

        Returns
        -------
        JTJ : numpy.ndarray (n_free, n_free)
        JTr : numpy.ndarray (n_free,)
        total : float
            Σ w r² for "linear". D is diagonal, w·rho'(z): reweighted least squares [1]_.

        Raises
        ------
        ValueError
            If the loss is not a sum of squares, there is an l1 or group penalty, or `robust` or
            `f_scale` is not one of these.

        References
        ----------
        .. [1] P. W. Holland, R. E. Welsch, "Robust regression using iteratively reweighted
           least-squares", Communications in Statistics A6(9), 1977.
        """
        self._require_least_squares()
        params, rho = self.net.checked_params(params), robust_loss(robust, f_scale)
        if not self._blocks:
            return self.backend.normal_equations(self._stored, params, self.threads, rho)
        JTJ, JTr, total = self._summed(
            lambda p: self.backend.normal_equations(p, params, self.threads, rho)
        )
        return JTJ, JTr, total

    def jtr_at(
        self, params: Any, moved: Any, robust: str = "linear", f_scale: float = 1.0
    ) -> np.ndarray:
        """JᵀD r(moved) (n_free,), J and D being those of `normal_equations` at `params`."""
        params, moved = self.net.checked_params(params), self.net.checked_params(moved)
        rho = robust_loss(robust, f_scale)
        (result,) = self._summed(
            lambda p: (self.backend.jtr_at(p, params, moved, self.threads, rho),)
        )
        return result

    @property
    def targets(self) -> np.ndarray | None:
        """The converted targets; None for losses without targets."""
        return None if self.loss.target == "none" else self._stored.targets

    @property
    def problem_scale(self) -> float:
        """The normaliser: the factor of the sum over rows in the objective."""
        return self._stored.scale

    @property
    def n_residuals(self) -> int:
        """Number of residuals that count: rows of positive weight, times outputs."""
        X, weights = self._stored.X, self._stored.weights
        rows = len(X) if weights is None else int(np.count_nonzero(weights))
        return rows * self.net.n_out

    def prior(self, l2: float | None = None) -> np.ndarray:
        """The factors (n_params,) of the squared parameters that l2 adds to the sum of squares."""
        l2 = self._stored.l2 if l2 is None else l2
        prior = np.zeros(self.net.n_params)
        prior[self._weight_indices] = l2 / (2 * self._stored.scale)
        return prior

    def _prior_factor(self) -> np.floating:
        return self.net.dtype.type(np.sqrt(self.problem.l2 / (2 * self.problem.scale)))

    @cached_property
    def _weight_indices(self) -> np.ndarray:
        """Indices of the weights in the parameter vector, without the biases."""
        return np.concatenate(
            [np.arange(w, w + i * o) for i, o, _, w, *_ in self.net.plan.layers.tolist()]
        )

    def _require_least_squares(self) -> None:
        if not self.loss.least_squares:
            raise ValueError(
                f"loss {self.loss.name!r} is not a sum of squares; least-squares methods need "
                f"'mse', 'half_mse' or 'sse', others take 'L-BFGS-B' or 'fmincg'"
            )
        if self._stored.l1 or self._stored.group:
            raise ValueError(
                "penalties l1 and group are not sums of squares; least-squares methods take l2, "
                "others such as 'L-BFGS-B' any"
            )


def largest_eigenvalue(
    product: Callable[[np.ndarray], np.ndarray], n: int, tol: float = 1e-8, restarts: int = 1000
) -> float:
    """The algebraically largest eigenvalue of a symmetric matrix (n, n), from products with it.

    Parameters
    ----------
    product : callable
        ``product(v) -> Av``, (n,) both.
    n : int
        Up to 64 the matrix is formed; above, Lanczos' method (ARPACK) is used.
    tol : float
        Relative accuracy of Lanczos' method.
    restarts : int
        Its most restarts.

    Returns
    -------
    float
        0 for n = 0; NaN if the matrix is not finite or Lanczos' method does not converge.
    """
    if n == 0:
        return 0.0
    if n <= 64:
        H = np.column_stack([product(e) for e in np.eye(n)])
        return float(np.linalg.eigvalsh((H + H.T) / 2)[-1]) if np.isfinite(H).all() else np.nan
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    start = np.random.default_rng(0).standard_normal(n)
    first = product(start)
    if not (np.isfinite(first).all() and first.any()):  # ARPACK does not take these
        return 0.0 if np.isfinite(first).all() else np.nan
    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
    try:
        eigenvalues = eigsh(
            operator, 1, which="LA", v0=start, tol=tol, maxiter=restarts, return_eigenvectors=False
        )
    except ArpackError:
        return np.nan
    return float(eigenvalues[0])


def robust_loss(name: str, f_scale: float) -> Robust:
    """The robust loss of that name (see `Objective.normal_equations`).

    Raises
    ------
    ValueError
        For an unknown name, or an f_scale that is not positive and finite.
    """
    if name == "linear":
        return _NOT_ROBUST
    if name not in ROBUST:
        raise ValueError(unknown_name("robust loss", name, ROBUST))
    scale = number("f_scale", f_scale, "a number > 0")
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"f_scale is {scale}, expected a finite number > 0")
    return Robust(ROBUST[name], scale)


def _penalty(name: str, value: Any) -> float:
    if type(value) is float and value == 0:
        return value
    factor = number(name, value, "a number >= 0")
    if not (np.isfinite(factor) and factor >= 0):
        raise ValueError(f"{name} is {factor}, expected a finite number >= 0")
    return factor
