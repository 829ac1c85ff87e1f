"""What a correct floating-point evaluation can be off by at most: running error analysis.

The mathematics is evaluated once more in extended precision, independently of the package, and
each array carries a bound of the error that an evaluation in `dtype` can have there. With u the
unit roundoff, a sum of n terms (products, fused or not), taken in any order, is off by at most
γ_n·Σ|terms|, γ_n = n·u/(1 - n·u) (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3);
a function that is accurate to k ULP adds 2k·u·|result|; errors of the inputs go through Lipschitz
constants. Nothing is fitted to what the backends happen to give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXACT = np.longdouble
ULP_SIGMOID = 2.5  # exp, tanh, sigmoid as functions
ULP_OTHER = 4.0  # other functions


def unit(dtype):
    """Unit roundoff of `dtype`, plus that of the extended precision compared with."""
    return EXACT(np.finfo(dtype).eps) / 2 + np.finfo(EXACT).eps / 2


def gamma(n, dtype):
    nu = n * unit(dtype)
    assert nu < 0.5
    return nu / (1 - nu)


@dataclass
class Approx:
    """Exact values and a bound of the error of computed ones."""

    value: np.ndarray
    error: np.ndarray

    @property
    def size(self):
        """A bound of the computed values."""
        return abs(self.value) + self.error

    @property
    def T(self):
        return Approx(self.value.T, self.error.T)

    def check(self, computed, what=""):
        """Assert that computed values are within the bound."""
        computed = np.asarray(computed)
        assert computed.shape == self.value.shape, what
        excess = abs(computed.astype(EXACT) - self.value) - self.error
        if not (excess <= 0).all():
            worst = np.unravel_index(np.nanargmax(excess), excess.shape)
            raise AssertionError(
                f"{what}{list(map(int, worst))}: {computed[worst]!r} instead of "
                f"{self.value[worst]!r}, {abs(computed[worst] - self.value[worst]):.3g} off, "
                f"at most {self.error[worst]:.3g} can come from rounding"
            )

    def check_sharp(self, share):
        """Assert that the bound itself is small: a check against it can fail."""
        assert self.error.max() <= share * abs(self.value).max()


def exact(array):
    array = np.asarray(array, dtype=EXACT)
    return Approx(array, np.zeros_like(array))


def product(A, B, dtype, addend=None):
    """A @ B (+ addend): the inner dimension's γ, and the errors that A and B bring along."""
    terms = A.value.shape[1] + (addend is not None)
    value = A.value @ B.value
    sizes = A.size @ B.size
    if addend is not None:
        value = value + np.asarray(addend, EXACT)
        sizes = sizes + abs(np.asarray(addend, EXACT))
    error = gamma(terms, dtype) * sizes + terms * np.finfo(dtype).tiny
    if A.error.any():
        error = error + A.error @ B.size
    if B.error.any():
        error = error + abs(A.value) @ B.error
    return Approx(value, error)


def times(A, B, dtype, roundings=1):
    """A ∘ B."""
    error = A.error * B.size + abs(A.value) * B.error
    return Approx(A.value * B.value, error + gamma(roundings, dtype) * A.size * B.size)


def sum_rows(A, dtype):
    error = A.error.sum(axis=0) + gamma(max(len(A.value), 1), dtype) * A.size.sum(axis=0)
    return Approx(A.value.sum(axis=0), error)


# Activations.


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def activate(act, Z, dtype):
    """act(Z): the errors of Z times the Lipschitz constant, and the function's own ULPs."""
    u = unit(dtype)
    if act.name == "linear":
        return Z
    if act.name == "relu":
        return Approx(np.maximum(Z.value, 0), Z.error)
    if act.name == "leaky_relu":  # the slope is rounded to dtype, then the product
        value = np.where(Z.value > 0, Z.value, act.constant * Z.value)
        lipschitz = max(1.0, act.constant)
        return Approx(value, lipschitz * Z.error + gamma(2, dtype) * act.constant * Z.size)
    if act.name == "tanh":
        value, spread = np.tanh(Z.value), Z.error
    elif act.name == "sigmoid":
        value, spread = sigmoid(Z.value), Z.error / 4
    return Approx(value, spread + 2 * ULP_SIGMOID * u * (abs(value) + spread))


def slope(act, Z, Y, dtype):
    """act' as the backward pass takes it: from the signs of Z, or from Y.

    Where Z is closer to 0 than its error, either side of a kink is right.
    """
    u = unit(dtype)
    unsure = (Z.error > 0) & (abs(Z.value) <= Z.error)
    if act.name == "linear":
        return exact(np.ones_like(Z.value))
    if act.name == "relu":
        value = np.where(Z.value > 0, 1, np.where(Z.value < 0, 0, EXACT(act.constant)))
        jump = 1 + abs(act.constant)
        return Approx(value, np.where(unsure, jump, 0 * value))
    if act.name == "leaky_relu":
        value = np.where(Z.value > 0, 1, EXACT(act.constant))
        return Approx(value, np.where(unsure, abs(1 - act.constant), 0) + u * act.constant)
    y, e = Y.value, Y.error
    if act.name == "tanh":  # y² and the difference are rounded: u·y² + u·(1 - y²)(1 + u) < 2u
        return Approx(1 - y * y, (2 * abs(y) + e) * e + 2 * u)
    if act.name == "sigmoid":
        rounding = gamma(2, dtype) * Y.size * (abs(1 - y) + e)
        return Approx(y * (1 - y), (abs(1 - 2 * y) + e) * e + rounding)
    raise AssertionError(act)


# Networks.


def forward(net, params, X):
    """Per layer the input, Z and Y."""
    steps, Y = [], exact(X)
    for layer, (W, b) in zip(net.layers, net.unpack(params), strict=True):
        Z = product(Y, exact(W), net.dtype, b)
        steps.append((Y, Z, activate(layer.act, Z, net.dtype)))
        Y = steps[-1][2]
    return steps


def backward(net, params, steps, dY):
    """The pullback of dY: (dparams, dX)."""
    parts = []
    weights = [W for W, _ in net.unpack(params)]
    for layer, W, (X, Z, Y) in reversed(list(zip(net.layers, weights, steps, strict=True))):
        dZ = times(dY, slope(layer.act, Z, Y, net.dtype), net.dtype)
        if layer.bias:
            parts.append(sum_rows(dZ, net.dtype))
        parts.append(product(X.T, dZ, net.dtype))
        dY = product(dZ, exact(W).T, net.dtype)
    return _join(parts[::-1]), dY


def _join(parts):
    return Approx(
        np.concatenate([p.value.ravel() for p in parts]),
        np.concatenate([p.error.ravel() for p in parts]),
    )


def jacobian(net, params, X):
    """(n·n_out, n_params), sample-major, and (n, n_out, n_in)."""
    by_params, by_inputs = [], []
    for x in np.asarray(X):
        steps = forward(net, params, x[None])
        for unit_row in np.eye(net.n_out):
            dparams, dX = backward(net, params, steps, exact(unit_row[None]))
            by_params.append(dparams)
            by_inputs.append(dX)
    J, D = _join(by_params), _join(by_inputs)
    rows, n = (-1, net.n_params), (-1, net.n_out, net.n_in)
    return (
        Approx(J.value.reshape(rows), J.error.reshape(rows)),
        Approx(D.value.reshape(n), D.error.reshape(n)),
    )


# Objectives.


def scale(loss, total_weight, n_out):
    """The normaliser, by the definitions of the losses."""
    return {
        "mse": 1 / EXACT(total_weight * n_out),
        "half_mse": 1 / (2 * EXACT(total_weight)),
        "sse": EXACT(1),
        "bce_logits": 1 / EXACT(total_weight * n_out),
        "softmax_ce": 1 / EXACT(total_weight),
    }[loss]


def rows_of_loss(loss, Y, y, dtype):
    """ℓ per row, and dℓ/dY."""
    u, n_out = unit(dtype), Y.value.shape[1]
    if loss == "softmax_ce":
        return _softmax_rows(Y, y, dtype)
    T = np.asarray(y, EXACT).reshape(Y.value.shape)
    if loss == "bce_logits":
        # |σ - t| <= 1 for Y's errors; exp 2.5 and log1p 4 ULP, three additions: 16 roundings.
        y, e = Y.value, Y.error
        parts = np.maximum(y, 0) + np.log1p(np.exp(-abs(y)))
        error = (e + gamma(16 + n_out, dtype) * (parts + abs(y * T) + e)).sum(axis=1)
        dY = Approx(sigmoid(y) - T, e / 4 + (2 * ULP_SIGMOID + 1) * u * (sigmoid(y) + T + e))
        return Approx((parts - y * T).sum(axis=1), error), dY
    D = Approx(Y.value - T, Y.error + u * (abs(Y.value - T) + Y.error))
    error = (2 * abs(D.value) + D.error) * D.error + gamma(n_out + 1, dtype) * D.size**2
    return Approx((D.value**2).sum(axis=1), error.sum(axis=1)), Approx(2 * D.value, 2 * D.error)


def _softmax_rows(Y, y, dtype):
    n, n_out = Y.value.shape
    y = np.asarray(y)
    if y.size == n:
        y = np.eye(n_out)[y.reshape(n)]
    T = y.astype(EXACT)
    S = Y.value - Y.value.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(S).sum(axis=1, keepdims=True))
    log_p, P = S - log_sum, np.exp(S - log_sum)
    # e^s is off by a factor e^±d: errors of y, the roundings of s (and of s - log_sum), 2.5 ULP of
    # exp, 4 of log. A weighted mean of such factors lies within ±Σ p·expm1(d) in the logarithm.
    d = Y.error + 4 * unit(dtype) * (abs(S) + Y.error + log_sum + 4)
    e = d + (P * np.expm1(d)).sum(axis=1, keepdims=True) + gamma(n_out + 2, dtype)
    rows = (T * e).sum(axis=1) + gamma(n_out + 1, dtype) * (T * (abs(log_p) + e)).sum(axis=1)
    total = T.sum(axis=1, keepdims=True)
    dP = P * np.expm1(e) + gamma(n_out + 2, dtype) * (P * np.exp(e) * total + T)
    return Approx(-(T * log_p).sum(axis=1), rows), Approx(P * total - T, dP)


def objective(net, params, X, y, loss, weights=None, l2=0.0, factor=None):
    """The objective (accumulated in float64) and its gradient; `factor` is the normaliser."""
    n = len(X)
    w = np.ones(n, EXACT) if weights is None else np.asarray(weights, EXACT)
    factor = scale(loss, w.sum(), net.n_out) if factor is None else EXACT(factor)
    steps = forward(net, params, X)
    rows, dY = rows_of_loss(loss, steps[-1][2], y, net.dtype)
    value = factor * (w * rows.value).sum()
    error = factor * (w * rows.error).sum()
    error += (gamma(3, net.dtype) + gamma(n + 4, np.float64)) * factor * (w * rows.size).sum()
    # The normaliser, the weight and their product with dY are rounded, and so may be 2·factor.
    grad, _ = backward(net, params, steps, times(exact((factor * w)[:, None]), dY, net.dtype, 4))
    if l2:
        l2, p = EXACT(l2), np.asarray(params, EXACT).copy()
        p[~weight_entries(net)] = 0
        squares = (p * p).sum()
        value = value + l2 / 2 * squares
        error = error + l2 / 2 * squares * (gamma(3, net.dtype) + gamma(p.size + 4, np.float64))
        sizes = grad.size + abs(l2 * p)
        grad = Approx(grad.value + l2 * p, grad.error + gamma(3, net.dtype) * sizes)
    return Approx(np.asarray(value), np.asarray(error)), grad


def weight_entries(net):
    """Which parameters are weights."""
    return np.concatenate(
        [
            np.repeat([True, False], [W.size, 0 if b is None else b.size])
            for W, b in net.unpack(np.zeros(net.n_params, net.dtype))
        ]
    )


# Steps of an optimizer.


def step(kind, constants, params, moments, grad, lr, t, dtype):
    """One update, t counted from 1: (params, moments) from exact ones and a gradient with errors.

    The rates and constants are rounded to dtype once, each operation once; what is subnormal may
    be flushed to zero.
    """
    lr, tiny = EXACT(lr), np.finfo(dtype).tiny
    p = np.asarray(params, EXACT)
    if kind == "adam":
        m, s = np.asarray(moments, EXACT)
        beta1, beta2, eps = map(EXACT, constants)
        m = _mix(beta1, m, grad, dtype)
        s = _mix(beta2, s, times(grad, grad, dtype, 2), dtype)
        # Monotone in m and s: the ends of their intervals give the ends of the update's. The root,
        # the quotient and the products are within 4 ULP each. The bias corrections are taken in
        # float64, where 1 - β^t (with β^t a product) magnifies the rounding of β^t.
        rate, root = lr / (1 - beta1**t), np.sqrt(1 - beta2**t)

        def update(m, s):
            return rate * m / (np.sqrt(np.maximum(s, 0)) / root + eps)

        middle = update(m.value, s.value)
        ends = [
            update(m.value + i * m.error, s.value + j * s.error) for i in (-1, 1) for j in (-1, 1)
        ]
        change = Approx(middle, np.max([abs(end - middle) for end in ends], axis=0))
        powers = sum(beta**t / (1 - beta**t) for beta in (beta1, beta2))
        corrections = gamma(t + 1, np.float64) * powers
        change.error += (gamma(8 * ULP_OTHER, dtype) + corrections) * change.size
        moments = [m, s]
    elif not moments.size:
        change, moments = times(exact(lr * np.ones_like(p)), grad, dtype, 2), []
    else:
        momentum = EXACT(constants[0])
        old = momentum * np.asarray(moments[0], EXACT)
        v = Approx(old + grad.value, 0)
        v.error = grad.error + gamma(3, dtype) * (abs(old) + grad.size) + tiny
        direction = v
        if kind == "nesterov":
            sizes = grad.size + momentum * v.size
            direction = Approx(
                grad.value + momentum * v.value,
                grad.error + momentum * v.error + gamma(3, dtype) * sizes + tiny,
            )
        change = times(exact(lr * np.ones_like(p)), direction, dtype, 2)
        moments = [v]
    new = Approx(p - change.value, change.error + gamma(1, dtype) * (abs(p) + change.size) + tiny)
    return new, moments


def _mix(beta, old, new, dtype):
    """β·old + (1 - β)·new, also as old + (1 - β)·(new - old)."""
    value = beta * old + (1 - beta) * new.value
    sizes = 2 * abs(old) + (1 - beta) * new.size
    return Approx(value, (1 - beta) * new.error + gamma(4, dtype) * sizes + np.finfo(dtype).tiny)
