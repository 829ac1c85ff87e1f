"""`Network`: the computations of a network: outputs, derivatives, and objectives over data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import backends
from ..backends.contract import Y_COLUMN
from ..common.arrays import converted, lazy_matrix, real_array, whole_number
from ..common.errors import ShapeError
from ..maths.losses import Loss
from .description import Description
from .objective import Objective


class Network(Description):
    """Dense layers one after another; immutable, without parameters, which every method takes.

    Parameters
    ----------
    n_in : int
        Number of inputs, the columns of X.
    *layers : Dense
        At least one.
    dtype : {"float64", "float32"}
        The type of parameters, data and results; other real input is converted to it.

    Raises
    ------
    ValueError
        For a size below 1, no layers, or another dtype.
    TypeError
        If a layer is not a `Dense`.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> net = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1))
    >>> net.n_params
    13
    >>> params = net.init(seed=0)
    >>> X, y = np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0])
    >>> loss, grad = net.value_and_grad(params, X, y, loss="mse")
    >>> grad.shape
    (13,)
    """

    # The network as a function.

    def forward(self, params: Any, X: Any, *, backend: str | None = None) -> np.ndarray:
        """The network's output.

        Parameters
        ----------
        params : array_like (n_params,)
        X : array_like (n, n_in)
        backend : {"c", "numba", "numpy"}, optional
            The current one by default.

        Returns
        -------
        numpy.ndarray (n, n_out) of the network's dtype

        Raises
        ------
        ShapeError
            If a shape does not fit.
        TypeError
            For complex, object or string arrays.
        """
        module, plan, params = backends.resolve(backend), self.plan, self.checked_params(params)
        X, blocks = lazy_matrix("X", X, self.dtype, self.n_in, "input of the network")
        if not blocks:
            return module.forward(plan, params, X)
        Y = np.empty((len(X), self.n_out), self.dtype)
        for rows in blocks:
            Y[rows] = module.forward(plan, params, converted(X[rows], self.dtype))
        return Y

    def vjp(
        self, params: Any, X: Any, *, backend: str | None = None
    ) -> tuple[np.ndarray, Callable[..., tuple[np.ndarray, np.ndarray]]]:
        """Output and pullback: the vector-Jacobian products of reverse-mode differentiation.

        Parameters
        ----------
        params : array_like (n_params,)
        X : array_like (n, n_in)
            Neither may be modified before the last use of the pullback.

        Returns
        -------
        Y : numpy.ndarray (n, n_out)
        pullback : callable
            ``pullback(dY) -> (dparams, dX)`` for dY (n, n_out): the gradient of Σ dY ∘ Y with
            respect to parameters and inputs. It may be called any number of times.

        Raises
        ------
        ShapeError, TypeError
            As `forward`; the pullback too.

        Examples
        --------
        >>> import fastbp as fb
        >>> net = fb.Network(2, fb.Dense(1))
        >>> Y, pullback = net.vjp([3.0, 4.0, 0.0], [[1.0, 2.0]])
        >>> pullback([[1.0]])
        (array([1., 2., 1.]), array([[3., 4.]]))
        """
        module = backends.resolve(backend)
        plan, params, X = self.plan, self.checked_params(params), self.checked_inputs(X)
        tape = module.forward_tape(plan, params, X)
        n, n_out = len(X), self.n_out
        start = n * int(plan.layers[-1, Y_COLUMN])
        Y = tape[start : start + n * n_out].reshape(n, n_out)

        def pullback(dY: Any) -> tuple[np.ndarray, np.ndarray]:
            dY = real_array("dY", dY, plan.dtype)
            if dY.shape != (n, n_out):
                raise ShapeError(f"dY has shape {dY.shape}, expected {(n, n_out)}, the shape of Y")
            dparams, dX = module.backward(plan, params, X, tape, dY, True)
            return self.zero_fixed(dparams), dX

        return Y.copy(), pullback

    def jvp(
        self, params: Any, X: Any, tangent: Any, *, backend: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Output and its derivative in a direction of parameter space: forward-mode.

        Parameters
        ----------
        params : array_like (n_params,)
        X : array_like (n, n_in)
        tangent : array_like (n_params,)
            The direction; its entries at masked and frozen parameters count as zero.

        Returns
        -------
        Y, dY : numpy.ndarray (n, n_out)
            dY is the Jacobian times the tangent.

        Raises
        ------
        ShapeError, TypeError
            As `forward`.

        Examples
        --------
        >>> import fastbp as fb
        >>> net = fb.Network(2, fb.Dense(1))
        >>> net.jvp([3.0, 4.0, 0.0], [[1.0, 2.0]], [0.0, 1.0, 0.5])[1]
        array([[2.5]])
        """
        params, tangent = self.checked_params(params), self.checked_tangent("tangent", tangent)
        return backends.resolve(backend).jvp(self.plan, params, self.checked_inputs(X), tangent)

    def jacobian(
        self,
        params: Any,
        X: Any,
        free_only: bool = False,
        *,
        threads: int = 1,
        backend: str | None = None,
    ) -> np.ndarray:
        """Derivatives of all outputs with respect to the parameters.

        Parameters
        ----------
        params : array_like (n_params,)
        X : array_like (n, n_in)
        free_only : bool, default False
            Return only the columns of the free parameters; otherwise those of masked and frozen
            ones are zero.
        threads : int, default 1
            How many threads of the C backend share the work; the others run on one. The result does
            not depend on it.

        Returns
        -------
        numpy.ndarray (n·n_out, n_params), or (n·n_out, n_free)
            Rows sample-major: row i·n_out + k belongs to output k of sample i.

        Raises
        ------
        ShapeError, TypeError
            As `forward`.
        """
        threads, module = whole_number("threads", threads), backends.resolve(backend)
        free = bool(free_only)
        J = module.jacobian(
            self.plan, self.checked_params(params), self.checked_inputs(X), threads, free
        )
        return J if free else self.zero_fixed(J)

    def input_jacobian(self, params: Any, X: Any, *, backend: str | None = None) -> np.ndarray:
        """Derivatives of each sample's outputs with respect to its inputs.

        Parameters
        ----------
        params : array_like (n_params,)
        X : array_like (n, n_in)

        Returns
        -------
        numpy.ndarray (n, n_out, n_in)

        Raises
        ------
        ShapeError, TypeError
            As `forward`.
        """
        return backends.resolve(backend).input_jacobian(
            self.plan, self.checked_params(params), self.checked_inputs(X)
        )

    # The objective.

    def objective(
        self,
        X: Any,
        y: Any,
        loss: str | Loss = "mse",
        *,
        sample_weight: Any = None,
        l2: float = 0.0,
        l1: float = 0.0,
        group: float = 0.0,
        threads: int = 1,
        backend: str | None = None,
    ) -> Objective:
        """The loss over fixed data as a function of the parameters alone, checked and bound once.

        Parameters
        ----------
        X : array_like (n, n_in), n >= 1
            Of the network's dtype and contiguous it is used where it lies, be it a memory-mapped
            file; otherwise it is converted, a block of at most 16 MiB at a time if it is larger.
        y : array_like or None
            (n, n_out), or (n,) for one output; of the form that the loss expects (see Notes).
        loss : str or Loss, default "mse"
            A name of the Notes' list, or what `fastbp.huber`, `fastbp.quantile`,
            `fastbp.margin_ranking` and `fastbp.custom_loss` make.
        sample_weight : array_like (n,), optional
            Weights >= 0, for "margin_ranking" one per pair, (n/2,); all 1 by default.
        l2, l1, group : float, default 0.0
            Add l2/2·‖W‖², l1·Σ|W_ij| and group·Σ_j ‖W_:j‖₂, the Euclidean norms of the columns
            (one per unit), summed over layers. Biases are free of them; the derivative of a norm
            at 0 is taken as 0.
        threads : int, default 1
            How many threads of the C backend share the rows; the others run on one. Results do not
            depend on it.
        backend : {"c", "numba", "numpy"}, optional
            The current one by default, for all calls of the objective.

        Returns
        -------
        Objective

        Raises
        ------
        ShapeError, TypeError, ValueError
            For shapes that do not fit, arrays that are not real, targets or weights that the loss
            does not allow, and unknown names.

        Notes
        -----
        With N the sum of the sample weights w and d = Y - y, all but the last group are divided by
        N·n_out ("half_mse" by 2N, "sse" not at all), the last group by N:

        - values y: "mse", "half_mse", "sse" d²; "mae" |d|; "huber" d²/2 up to |d| = delta (1),
          delta·(|d| - delta/2) beyond; "log_cosh" log cosh d; "quantile" max(-tau·d, (1 - tau)·d),
          tau ½;
        - probabilities y: "bce" -y log Y - (1 - y) log(1 - Y) with Y cut to [ε, 1 - ε], ε the
          dtype's machine epsilon; "bce_logits" the same of sigmoid(Y);
        - labels -1 and 1: "hinge" max(0, 1 - y·Y) and "squared_hinge", its square;
        - counts y: "poisson" e^Y - y·Y;
        - per row: "softmax_ce", the cross-entropy of softmax(Y) for integer labels (n,) or rows of
          probabilities (n, n_out); "gaussian_nll" Σ ½(v + (m - y)²e^-v + log 2π) for outputs
          (m, v) and y (n, n_out/2); "gaussian_kl" Σ ½(e^v + m² - 1 - v) with y=None;
          "margin_ranking" max(0, margin - (Y_2i - Y_2i+1)) of pairs of rows, margin 1, with y=None
          and N the number of pairs.
        """
        module = backends.resolve(backend)
        return Objective(self, X, y, loss, sample_weight, l2, l1, group, threads, module)

    def value(self, params: Any, X: Any, y: Any, loss: str | Loss = "mse", **terms: Any) -> float:
        """The objective at `params`; arguments, terms and errors as for `objective`."""
        return self.objective(X, y, loss, **terms).value(params)

    def value_and_grad(
        self, params: Any, X: Any, y: Any, loss: str | Loss = "mse", **terms: Any
    ) -> tuple[float, np.ndarray]:
        """The objective and its gradient (n_params,); arguments and errors as for `objective`.

        Memory beyond the arguments and the result: at most 16 MiB for a block of X, if it must
        be converted, n·(n_targets + 1) numbers for targets and weights, likewise, three bytes for
        each of those while they are checked, and a workspace that does not grow with n (but on the
        backend "numpy", which keeps every layer's output).
        """
        return self.objective(X, y, loss, **terms).value_and_grad(params)

    def per_sample_grad(
        self,
        params: Any,
        X: Any,
        y: Any,
        loss: str | Loss = "mse",
        *,
        backend: str | None = None,
    ) -> np.ndarray:
        """The gradient of the objective of each sample alone.

        Parameters
        ----------
        params : array_like (n_params,)
        X, y, loss
            As for `objective`.

        Returns
        -------
        numpy.ndarray (n, n_params)
            Row i is the gradient of ``value(params, X[i:i+1], y[i:i+1], loss)``: their mean is that
            of the whole objective (for "sse" their sum). For "margin_ranking" a row per pair.

        Raises
        ------
        ShapeError, TypeError, ValueError
            As `objective`.
        """
        return self.objective(X, y, loss, backend=backend).per_sample_grad(params)

    def normal_equations(
        self,
        params: Any,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        threads: int = 1,
        backend: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """JᵀJ, Jᵀr and rᵀr for the residuals r = sqrt(w)·(Y - y), without forming J.

        Parameters
        ----------
        params : array_like (n_params,)
        X, y, sample_weight, threads
            As for `objective`; memory is bounded as for `value_and_grad`.

        Returns
        -------
        JTJ : numpy.ndarray (n_free, n_free)
            For the free parameters, in the order of `free`, so that masks and frozen layers do not
            make it singular.
        JTr : numpy.ndarray (n_free,)
        sse : float
            The sum of squared residuals.

        Raises
        ------
        ShapeError, TypeError, ValueError
            As `objective`.

        Examples
        --------
        A linear network is fitted by one solution.

        >>> import numpy as np, fastbp as fb
        >>> net, X = fb.Network(1, fb.Dense(1)), np.array([[0.0], [1.0], [2.0]])
        >>> JTJ, JTr, sse = net.normal_equations([0.0, 0.0], X, 3 * X + 1)
        >>> np.linalg.solve(JTJ, -JTr).round(12)
        array([3., 1.])
        """
        terms = {"sample_weight": sample_weight, "threads": threads, "backend": backend}
        return self.objective(X, y, "sse", **terms).normal_equations(params)

    def hvp(
        self, params: Any, X: Any, y: Any, v: Any, loss: str | Loss = "mse", **terms: Any
    ) -> np.ndarray:
        """The objective's Hessian times a vector, exactly and without the Hessian [1]_.

        Parameters
        ----------
        params, v : array_like (n_params,)
            Entries of v at masked and frozen parameters count as zero.
        X, y, loss, **terms
            As for `objective`.

        Returns
        -------
        numpy.ndarray (n_params,)
            Zero at masked and frozen parameters. Second derivatives that do not exist, as at the
            corners of relu and of the l1 penalty, are taken as 0.

        Raises
        ------
        ShapeError, TypeError, ValueError
            As `objective`; ValueError too for user-defined functions without their second
            derivative.

        References
        ----------
        .. [1] B. A. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation
           6(1), 1994.
        """
        return self.objective(X, y, loss, **terms).hvp(params, v)

    def gnvp(
        self, params: Any, X: Any, y: Any, v: Any, loss: str | Loss = "mse", **terms: Any
    ) -> np.ndarray:
        """The Gauss-Newton matrix times a vector: the Hessian without the network's curvature [1]_.

        With J the Jacobian of the outputs and ℓ'' the Hessian of the loss in them it is
        Jᵀℓ''J, plus that of the penalties; positive semidefinite for losses convex in the outputs.
        Arguments, result and errors as for `hvp`.

        References
        ----------
        .. [1] N. N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient
           descent", Neural Computation 14(7), 2002.
        """
        return self.objective(X, y, loss, **terms).gnvp(params, v)

    def max_stable_rate(
        self, params: Any, X: Any, y: Any, loss: str | Loss = "mse", **terms: Any
    ) -> float:
        """The largest rate at which full-batch gradient descent from near `params` does not grow.

        Parameters
        ----------
        params : array_like (n_params,)
        X, y, loss, **terms
            As for `objective`.

        Returns
        -------
        float
            2/λ_max, λ_max the largest eigenvalue of the Hessian, for least-squares losses of the
            Gauss-Newton matrix, over the free parameters; infinite if λ_max <= 0.

        Raises
        ------
        ShapeError, TypeError, ValueError
            As `hvp`.

        Examples
        --------
        >>> import numpy as np, fastbp as fb
        >>> net, x = fb.Network(1, fb.Dense(1, bias=False)), np.array([[1.0], [3.0]])
        >>> round(net.max_stable_rate([0.0], x, 2 * x), 12)  # the loss is 5 (w - 2)²
        0.2
        """
        return self.objective(X, y, loss, **terms).max_stable_rate(params)
