"""Bounds of the error of correct floating-point evaluations: running error analysis.

The mathematics is evaluated once more in extended precision, independently of the package, and
each array carries a bound of the error that an evaluation in `dtype` can have there. With u the
unit roundoff, a sum of n terms (products, fused or not), taken in any order, is off by at most
γ_n·Σ|terms|, γ_n = n·u/(1 - n·u) (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3);
a function that is accurate to k ULP adds 2k·u·|result|; errors of the inputs go through Lipschitz
constants, or through the ends of the interval where the function is monotone. Nothing is fitted to
the results of the backends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product as product_of

import numpy as np

from fastbp.backends import reference
from fastbp.maths.formulas.activations import FORMULAS
from fastbp.maths.formulas.optimizers import KINDS
from fastbp.maths.losses import loss as loss_of
from oracles import truth

EXACT = np.longdouble
ULP_SIGMOID = 2.5  # exp, tanh, sigmoid as functions
ULP_OTHER = 4.0  # other functions
PI = EXACT("3.14159265358979323846264338327950288")


def unit(dtype):
    """Unit roundoff of `dtype`, plus that of the extended precision of the comparison."""
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

    def __getitem__(self, key):
        return Approx(self.value[key], self.error[key])

    def __neg__(self):
        return Approx(-self.value, self.error)

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
    """A @ B (+ addend): the inner dimension's γ, and the errors of A and B."""
    terms = A.value.shape[1] + (addend is not None)
    value = A.value @ B.value
    sizes = _no_less(A.size, B.size)
    if addend is not None:
        value = value + np.asarray(addend, EXACT)
        sizes = sizes + abs(np.asarray(addend, EXACT))
    error = gamma(terms, dtype) * sizes + terms * np.finfo(dtype).tiny
    if A.error.any():
        error = error + _no_less(A.error, B.size)
    if B.error.any():
        error = error + _no_less(abs(A.value), B.error)
    return Approx(value, error)


def _no_less(A, B):
    """A @ B for entries >= 0, or slightly more: a bound can be multiplied in float64."""
    if not max(A.max(initial=0), B.max(initial=0)) < 1e140:
        return A @ B
    result = A.astype(np.float64) @ B.astype(np.float64)
    return (result * (1 + 1e-9) + np.finfo(np.float64).tiny).astype(EXACT)


def times(A, B, dtype, roundings=1):
    """A ∘ B."""
    error = A.error * B.size + abs(A.value) * B.error
    return Approx(A.value * B.value, error + gamma(roundings, dtype) * A.size * B.size)


def plus(A, B, dtype):
    """A + B."""
    value, error = A.value + B.value, A.error + B.error
    return Approx(value, error + unit(dtype) * (abs(value) + error))


def sum_rows(A, dtype):
    error = A.error.sum(axis=0) + gamma(max(len(A.value), 1), dtype) * A.size.sum(axis=0)
    return Approx(A.value.sum(axis=0), error)


# Activations.


def sigmoid(z):
    t = np.exp(-abs(z))
    return np.where(z < 0, t, 1) / (1 + t)


def sigmoid_slope(z):
    t = np.exp(-abs(z))
    return t / (1 + t) ** 2


def normal_cdf(z):
    """Φ by erf's series near 0 and erfc's continued fraction beyond [DLMF 7.6.2, 7.9.3]."""
    x = abs(np.asarray(z, EXACT)) / np.sqrt(EXACT(2))
    near, far = np.minimum(x, 1.25), np.maximum(x, 1.25)
    term = total = near
    for n in range(1, 50):
        term = term * 2 * near * near / (2 * n + 1)
        total = total + term
    fraction = far
    for n in range(200, 0, -1):
        fraction = far + EXACT(n) / 2 / fraction
    density = np.exp(-x * x) / np.sqrt(PI)
    tail = np.where(x < 1.25, 1 - 2 * density * total, density / fraction) / 2
    return np.where(z < 0, tail, 1 - tail)


def normal_density(z):
    return np.exp(-z * z / 2) / np.sqrt(2 * PI)


def _elu(scale, alpha, divisor):
    """scale·z above 0 and scale·alpha·(e^(z/divisor) - 1) below, with the derivative."""
    return (
        lambda z: scale * np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0) / divisor)),
        lambda z: scale * np.where(z > 0, 1, alpha / divisor * np.exp(np.minimum(z, 0) / divisor)),
    )


def _gelu_tanh(z):
    v, dv = np.sqrt(8 / PI) * (z + CUBIC * z**3), np.sqrt(8 / PI) * (1 + 3 * CUBIC * z * z)
    return z * sigmoid(v), sigmoid(v) + z * sigmoid_slope(v) * dv


def _mish(z):
    w = np.tanh(np.log1p(np.exp(z)))
    return z * w, w + z * (1 - w * w) * sigmoid(z)


# Derivatives as they are computed from Y, an Approx.

ONE = exact(1)


def _number(number, dtype):
    """A number rounded to dtype."""
    number = np.asarray(number, EXACT)
    return Approx(number, unit(dtype) * abs(number))


def _sides(above, below):
    """The slope of `below(Y, dtype)` where y <= 0, the number `above` elsewhere."""

    def from_y(Y, dtype):
        up, low, high = Y.value > 0, below(Y, dtype), _number(above, dtype)
        return Approx(
            np.where(up, high.value, low.value),
            np.where(up, 0 if above == 1 else high.error, low.error),
        )

    return from_y


def _within(low, high):
    """1 for y in (low, high), else 0."""
    return lambda Y, dtype: exact((Y.value > low) & (Y.value < high))


def _softsign_from_y(Y, dtype):
    root = plus(ONE, Approx(-abs(Y.value), Y.error), dtype)
    return times(root, root, dtype)


@dataclass(frozen=True)
class Function:
    """An activation in extended precision, and what rounding does to it.

    Attributes
    ----------
    f, df : callable
        Of z; df at the corners too.
    ulps : tuple of float
        How accurate f and df are as functions.
    steepest, bend : float, or callable of the largest z, or None
        Bounds of |f'| and, between corners, |f''|. With None the errors of z are carried through
        the function itself, at both ends of their interval.
    corners : tuple of float
        Where f' jumps.
    from_y : callable or None
        (Y, dtype) -> f' as computed from Y; None if the backward pass uses Z.
    df_size : callable or None
        Of z: what the roundings of df are relative to, where that is not the result.
    """

    f: Callable
    df: Callable
    ulps: tuple[float, float] = (ULP_OTHER, ULP_OTHER)
    steepest: float | Callable | None = 1.0
    bend: float | Callable | None = 0.0
    corners: tuple[float, ...] = ()
    from_y: Callable | None = None
    df_size: Callable | None = None


S, A = EXACT("1.0507009873554804934193349852946"), EXACT("1.6732632423543772848170429916717")
CUBIC = EXACT("0.044715")
EXACT_F = 0, 0.5  # f is exact, f' a rounded number

# What is not in this table is taken from mpmath by `_by_truth`, which is slower. Of the parameter.
FUNCTIONS: dict[str, Callable[..., Function]] = {
    "linear": lambda c: Function(
        lambda z: z, np.ones_like, EXACT_F, from_y=lambda Y, _: exact(np.ones_like(Y.value))
    ),
    "relu": lambda c: Function(
        lambda z: np.maximum(z, 0),
        lambda z: np.where(z > 0, 1, np.where(z < 0, 0, c)),
        EXACT_F,
        corners=(0,),
        from_y=_within(0, np.inf) if c == 0 else None,
    ),
    "leaky_relu": lambda c: Function(
        lambda z: np.where(z > 0, z, c * z),
        lambda z: np.where(z > 0, 1, c),
        (1, 0.5),  # the slope is rounded, then the product
        max(EXACT(1), c),
        corners=(0,),
        from_y=_sides(1, lambda Y, dtype: _number(c + 0 * Y.value, dtype)),
    ),
    "elu": lambda c: Function(
        *_elu(1, c, 1),
        steepest=max(EXACT(1), c),
        bend=c,
        corners=(0,),
        from_y=_sides(1, lambda Y, dtype: plus(Y, _number(c, dtype), dtype)),
    ),
    "selu": lambda c: Function(
        *_elu(S, A, 1),
        steepest=S * A,
        bend=S * A,
        corners=(0,),
        from_y=_sides(S, lambda Y, dtype: plus(Y, _number(S * A, dtype), dtype)),
    ),
    "celu": lambda c: Function(
        *_elu(1, c, c),
        bend=1 / c,
        from_y=_sides(1, lambda Y, t: plus(times(Y, _number(1 / c, t), t, 2), ONE, t)),
    ),
    "sigmoid": lambda c: Function(
        sigmoid,
        sigmoid_slope,
        (ULP_SIGMOID, ULP_OTHER),
        0.25,
        0.097,
        from_y=lambda Y, dtype: times(Y, plus(ONE, -Y, dtype), dtype),
    ),
    "tanh": lambda c: Function(
        np.tanh,
        lambda z: 4 * sigmoid_slope(2 * z),
        (ULP_SIGMOID, ULP_OTHER),
        1,
        0.77,
        from_y=lambda Y, dtype: plus(ONE, -times(Y, Y, dtype), dtype),
    ),
    "softplus": lambda c: Function(
        lambda z: np.maximum(z, 0) + np.log1p(np.exp(-abs(z))), sigmoid, bend=0.25
    ),
    "softsign": lambda c: Function(
        lambda z: z / (1 + abs(z)), lambda z: 1 / (1 + abs(z)) ** 2, bend=2, from_y=_softsign_from_y
    ),
    "gelu": lambda c: Function(
        lambda z: z * normal_cdf(z),
        lambda z: normal_cdf(z) + z * normal_density(z),
        steepest=1.13,
        bend=0.8,
    ),
    "gelu_tanh": lambda c: Function(
        lambda z: _gelu_tanh(z)[0], lambda z: _gelu_tanh(z)[1], steepest=1.13, bend=0.8
    ),
    "silu": lambda c: Function(
        lambda z: z * sigmoid(z),
        lambda z: sigmoid(z) + z * sigmoid_slope(z),
        steepest=1.1,
        bend=0.5,
    ),
    "mish": lambda c: Function(
        lambda z: _mish(z)[0], lambda z: _mish(z)[1], steepest=1.09, bend=0.645
    ),
    "hard_tanh": lambda c: Function(
        lambda z: np.clip(z, -1, 1),
        lambda z: np.where(abs(z) < 1, 1, 0),
        EXACT_F,
        corners=(-1, 1),
        from_y=_within(-1, 1),
    ),
    "hard_sigmoid": lambda c: Function(
        lambda z: np.clip((z + 3) / 6, 0, 1),
        lambda z: np.where(abs(z) < 3, EXACT(1) / 6, 0),
        (ULP_OTHER, 0.5),
        EXACT(1) / 6,
        corners=(-3, 3),
    ),
    "relu6": lambda c: Function(
        lambda z: np.clip(z, 0, 6),
        lambda z: np.where((z > 0) & (z < 6), 1, 0),
        EXACT_F,
        corners=(0, 6),
        from_y=_within(0, 6),
    ),
    "exp": lambda c: Function(
        np.exp, np.exp, (ULP_SIGMOID, ULP_OTHER), np.exp, np.exp, from_y=lambda Y, _: Y
    ),
    "sin": lambda c: Function(np.sin, np.cos, bend=1),
    # The user-defined one of strategies.py: 4 and 8 roundings.
    "bump": lambda c: Function(
        lambda z: z / (1 + z * z),
        lambda z: (1 - z * z) / (1 + z * z) ** 2,
        (2, 4),
        bend=1.46,
        df_size=lambda z: 1 / (1 + z * z),
    ),
}


def function(act):
    """The row of an activation."""
    if act.name in FUNCTIONS:
        return FUNCTIONS[act.name](EXACT(act.constant))
    return _by_truth(act)


def _by_truth(act):
    """The definition in mpmath, and rounding as it is for any function of that accuracy."""
    f, df = (truth.in_arrays(definition) for definition in truth.FUNCTIONS[act])
    from_y = act.formulas.df_from_y

    def slope_from_y(Y, dtype):
        value, *ends = (
            from_y(y, EXACT(act.constant)) for y in (Y.value, Y.value + Y.error, Y.value - Y.error)
        )
        error = sum(abs(end - value) for end in ends)
        return Approx(value, error + gamma(16, dtype) * (1 + abs(value)))

    return Function(f, df, FORMULAS[act.name].ulps, None, None, (), from_y and slope_from_y)


def _carried(f, bound, Z):
    """The error by those of Z in f, whose derivative has this bound."""
    if bound is None:
        return abs(f(Z.value + Z.error) - f(Z.value)) + abs(f(Z.value - Z.error) - f(Z.value))
    return (bound(Z.value + Z.error) if callable(bound) else bound) * Z.error


def activate(act, Z, dtype):
    """act(Z): the errors of Z times the Lipschitz constant, and the ULPs of the function."""
    F = function(act)
    value, spread = F.f(Z.value), _carried(F.f, F.steepest, Z)
    smallest = np.finfo(dtype).smallest_subnormal
    rounding = gamma(2 * F.ulps[0], dtype) * (abs(value) + spread) + F.ulps[0] * smallest
    return Approx(value, spread + rounding)


def slope(act, Z, Y, dtype):
    """act' as the backward pass computes it: from Y where Y determines it, else from Z.

    Where Z is closer to a corner than its error, either side is right.
    """
    F = function(act)
    result = F.from_y(Y, dtype) if F.from_y is not None else _slope_from_z(F, Z, dtype)
    return Approx(result.value, result.error + _jump(F, Z))


def either_slope(act, Z, Y, dtype):
    """act' from Z or, where Y determines it, from Y."""
    result, other = slope(act, Z, Y, dtype), _slope_from_z(function(act), Z, dtype)
    return Approx(result.value, np.maximum(result.error, other.error))


def _slope_from_z(F, Z, dtype):
    value, spread = F.df(Z.value), _carried(F.df, F.bend, Z)
    size = abs(value) if F.df_size is None else F.df_size(Z.value)
    rounding = gamma(2 * F.ulps[1], dtype) * (size + spread)
    if F.ulps[1] > 1:  # near a root of f' the rounding of extended precision would be more
        rounding = rounding + 8 * np.finfo(EXACT).eps
    return Approx(value, spread + rounding)


def _jump(F, Z):
    """The error of f' where a corner lies within the errors of Z."""
    low, high = Z.value - Z.error, Z.value + Z.error
    here, worst = F.df(Z.value), np.zeros_like(Z.value)
    for corner in F.corners:
        sides = [abs(F.df(z) - here) for z in (low, high, EXACT(corner))]
        jump = np.max(np.broadcast_arrays(*sides), axis=0) + 2 * _carried(F.df, F.bend, Z)
        worst = np.maximum(worst, np.where((low <= corner) & (corner <= high), jump, 0))
    return worst


# Networks.


def split(net, vector):
    """Views (W, b) of the layers in a parameter-shaped vector; b is None for one without."""
    pairs, start, n_in = [], 0, net.n_in
    for layer in net.layers:
        middle = start + n_in * layer.n_out
        stop = middle + layer.n_out * layer.bias
        W = vector[start:middle].reshape(n_in, layer.n_out)
        pairs.append((W, vector[middle:stop] if layer.bias else None))
        start, n_in = stop, layer.n_out
    assert start == len(vector)
    return pairs


def matrices(net, params):
    """(W, b) of the layers in extended precision, masked entries 0."""
    present = ~masked_entries(net)
    return split(net, np.where(present, np.asarray(params, EXACT), EXACT(0)))


def masked_entries(net):
    """Which parameters are masked."""
    masked = np.zeros(net.n_params, bool)
    for layer, (W, b) in zip(net.layers, split(net, masked), strict=True):
        if layer.mask is not None:
            W |= layer.mask == 0
        if layer.bias_mask is not None:
            b |= layer.bias_mask == 0
    return masked


def free_entries(net):
    """Which parameters are neither masked nor frozen."""
    frozen = np.zeros(net.n_params, bool)
    for layer, (W, b) in zip(net.layers, split(net, frozen), strict=True):
        W |= np.asarray(layer.trainable) == 0
        if b is not None:
            b |= layer.trainable is False
    return ~(frozen | masked_entries(net))


def weight_entries(net):
    """Which parameters are weights."""
    weights = np.zeros(net.n_params, bool)
    for W, _ in split(net, weights):
        W[:] = True
    return weights


def forward(net, params, X):
    """Per layer the input, Z and Y."""
    steps, Y = [], exact(X)
    for layer, (W, b) in zip(net.layers, matrices(net, params), strict=True):
        Z = product(Y, exact(W), net.dtype, b)
        steps.append((Y, Z, activate(layer.act, Z, net.dtype)))
        Y = steps[-1][2]
    return steps


def backward(net, params, steps, dY, by_row=False):
    """The pullback of dY, or of each of its rows alone: (dparams, dX)."""
    parts, dtype = [], net.dtype
    weights = [W for W, _ in matrices(net, params)]
    for layer, W, (X, Z, Y) in reversed(list(zip(net.layers, weights, steps, strict=True))):
        dZ = times(dY, slope(layer.act, Z, Y, dtype), dtype)
        if layer.bias:
            parts.append(dZ if by_row else sum_rows(dZ, dtype))
        dW = _outer(X, dZ, dtype) if by_row else _reshaped(product(X.T, dZ, dtype), -1)
        parts.append(dW)
        dY = product(dZ, exact(W).T, dtype)
    return _where_free(net, _join(parts[::-1])), dY


def _outer(X, dZ, dtype):
    """The products of the rows' entries, (n, n_in·n_out)."""
    n, n_in = X.value.shape
    result = times(_reshaped(X, n, n_in, 1), dZ[:, None], dtype)
    return _reshaped(Approx(result.value, result.error + np.finfo(dtype).tiny), n, -1)


def _join(parts):
    return Approx(
        np.concatenate([p.value for p in parts], axis=-1),
        np.concatenate([p.error for p in parts], axis=-1),
    )


def _reshaped(A, *shape):
    return Approx(A.value.reshape(shape), A.error.reshape(shape))


def _where_free(net, A):
    """A (..., n_params), exactly 0 for parameters that are not free."""
    free = free_entries(net)
    return Approx(np.where(free, A.value, 0), np.where(free, A.error, 0))


def jacobian(net, params, X):
    """(n·n_out, n_params), sample-major, and (n, n_out, n_in)."""
    n, steps = len(X), forward(net, params, X)
    pullbacks = [
        backward(net, params, steps, exact(np.tile(unit_row, (n, 1))), by_row=True)
        for unit_row in np.eye(net.n_out)
    ]
    J, D = map(_join, zip(*pullbacks, strict=True))
    return _reshaped(J, n * net.n_out, net.n_params), _reshaped(D, n, net.n_out, net.n_in)


def jvp(net, params, X, tangent):
    """The derivative of the output in the direction of `tangent`, forward through the layers."""
    dtype, dA = net.dtype, exact(np.zeros_like(X))
    directions = split(net, np.where(free_entries(net), np.asarray(tangent, EXACT), EXACT(0)))
    rows = zip(net.layers, matrices(net, params), directions, forward(net, params, X), strict=True)
    for layer, (W, _), (V, c), (A, Z, Y) in rows:
        dZ = plus(product(dA, exact(W), dtype), product(A, exact(V), dtype, c), dtype)
        dA = times(dZ, either_slope(layer.act, Z, Y, dtype), dtype)
    return dA


# Objectives.


@dataclass(frozen=True)
class Element:
    """A convex loss of one prediction y with target t, in extended precision.

    Attributes
    ----------
    f, df : callable
        (y, t) -> the loss, and its derivative with respect to y, which grows with y.
    roundings : tuple of int
        Of an evaluation of f and df.
    sizes : tuple of callables or None
        (y, t) -> what the roundings of f and df are relative to, where not the result.
    range : tuple of float
        To which y is cut; beyond it the derivative is 0.
    """

    f: Callable
    df: Callable
    roundings: tuple[int, int]
    sizes: tuple[Callable | None, Callable | None] = (None, None)
    range: tuple[float, float] = (-np.inf, np.inf)


def _huber(delta):
    return Element(
        lambda y, t: np.where(
            abs(y - t) <= delta, (y - t) ** 2 / 2, delta * (abs(y - t) - delta / 2)
        ),
        lambda y, t: np.clip(y - t, -delta, delta),
        (4, 2),
        (
            lambda y, t: np.where(
                abs(y - t) <= delta, (y - t) ** 2 / 2, delta * (abs(y - t) + delta / 2)
            ),
            None,
        ),
    )


def _log_cosh(d):
    far = d + np.log1p(np.exp(-2 * d)) - np.log(EXACT(2))
    return np.where(d < 1, np.log1p(2 * np.sinh(np.minimum(d, 1) / 2) ** 2), far)


def _softplus_parts(y):
    return np.maximum(y, 0) + np.log1p(np.exp(-abs(y)))


def _squared(_):
    return Element(lambda y, t: (y - t) ** 2, lambda y, t: 2 * (y - t), (3, 1))


ELEMENTS: dict[str, Callable[..., Element]] = {  # of the parameter
    "mse": _squared,
    "half_mse": _squared,
    "sse": _squared,
    "mae": lambda _: Element(lambda y, t: abs(y - t), lambda y, t: np.sign(y - t), (1, 0)),
    "huber": _huber,
    # Either t = tanh² d is below a half and 30 roundings are relative to the result, or 12 to the
    # three terms of |d| + log1p(e^-2|d|) - log 2, together at most 5 times the result.
    "log_cosh": lambda _: Element(
        lambda y, t: _log_cosh(abs(y - t)), lambda y, t: np.tanh(y - t), (60, 7)
    ),
    "quantile": lambda tau: Element(
        lambda y, t: np.where(y < t, tau * (t - y), (1 - tau) * (y - t)),
        lambda y, t: np.where(y < t, -tau, np.where(y > t, 1 - tau, 0)),
        (3, 1),
    ),
    "bce": lambda eps: Element(
        lambda y, t: -t * np.log(y) - (1 - t) * np.log1p(-y),
        lambda y, t: (y - t) / (y * (1 - y)),
        (12, 5),
        range=(eps, 1 - eps),
    ),
    "bce_logits": lambda _: Element(
        lambda y, t: _softplus_parts(y) - y * t,
        lambda y, t: sigmoid(y) - t,
        (16, 6),  # of exp 2.5 and log1p 4 ULP, three additions; of sigmoid 2.5 ULP
        (lambda y, t: _softplus_parts(y) + abs(y * t), lambda y, t: sigmoid(y) + t),
    ),
    "hinge": lambda _: Element(
        lambda y, t: np.maximum(1 - t * y, 0), lambda y, t: np.where(t * y < 1, -t, 0), (1, 0)
    ),
    "squared_hinge": lambda _: Element(
        lambda y, t: np.maximum(1 - t * y, 0) ** 2,
        lambda y, t: -2 * t * np.maximum(1 - t * y, 0),
        (3, 2),
    ),
    "poisson": lambda _: Element(
        lambda y, t: np.exp(y) - t * y,
        lambda y, t: np.exp(y) - t,
        (7, 6),
        (lambda y, t: np.exp(y) + abs(t * y), lambda y, t: np.exp(y) + t),
    ),
    # The user-defined one of strategies.py.
    "quartic": lambda _: Element(
        lambda y, t: (y - t) ** 4 + (y - t) ** 2 / 2,
        lambda y, t: 4 * (y - t) ** 3 + (y - t),
        (8, 7),
    ),
}


def scale(loss, total_weight, n_out):
    """The normaliser, by the definitions of the losses."""
    name, N = loss_of(loss).name, EXACT(total_weight)
    if name in ("softmax_ce", "gaussian_nll", "gaussian_kl", "margin_ranking"):
        return 1 / N
    return {"half_mse": 1 / (2 * N), "sse": EXACT(1)}.get(name, 1 / (N * n_out))


def rows_of_loss(loss, Y, y, dtype):
    """ℓ per row, and dℓ/dY."""
    loss = loss_of(loss)
    if loss.name == "softmax_ce":
        return _softmax_rows(Y, y, dtype)
    if loss.name == "margin_ranking":
        return _pair_rows(Y, loss.constant, dtype)
    if loss.name.startswith("gaussian"):
        return _gaussian_rows(loss.name, Y, y, dtype)
    parameter = np.finfo(dtype).eps if loss.name == "bce" else loss.constant
    row, T = ELEMENTS[loss.name](EXACT(parameter)), np.asarray(y, EXACT).reshape(Y.value.shape)
    elements, D = _element(row, Y, T, dtype)
    n_out = Y.value.shape[1]
    error = elements.error.sum(axis=1) + gamma(n_out, dtype) * elements.size.sum(axis=1)
    return Approx(elements.value.sum(axis=1), error), D


def _element(row, Y, T, dtype):
    """ℓ and dℓ/dy of each element: convex and monotone, so that extremes are at interval ends."""
    y = np.clip(Y.value, *row.range)
    ends = [np.clip(Y.value + side * Y.error, *row.range) for side in (-1, 1)]
    f, df = row.f(y, T), row.df(y, T)
    slopes = [row.df(end, T) for end in ends]
    spread = np.max([abs(df) * Y.error, *(abs(row.f(end, T) - f) for end in ends)], axis=0)
    turn = np.max([abs(slope - df) for slope in slopes], axis=0)
    sizes = [
        abs(g) + extra if size is None else np.max([size(z, T) for z in (y, *ends)], axis=0)
        for g, size, extra in zip((f, df), row.sizes, (spread, turn), strict=True)
    ]
    inside, sure = (
        (row.range[0] <= Y.value - side) & (Y.value + side <= row.range[1]) for side in (0, Y.error)
    )
    outside = (Y.value + Y.error < row.range[0]) | (Y.value - Y.error > row.range[1])
    turn += np.where(sure | outside, 0, np.max(np.abs(slopes), axis=0))
    k_f, k_df = row.roundings
    return (
        Approx(f, spread + gamma(k_f, dtype) * sizes[0]),
        Approx(np.where(inside, df, 0), turn + gamma(k_df, dtype) * sizes[1]),
    )


def _softmax_rows(Y, y, dtype):
    n, n_out = Y.value.shape
    y = np.asarray(y)
    if y.size == n:
        y = np.eye(n_out)[y.reshape(n).astype(int)]
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
    dP += np.finfo(dtype).tiny
    return Approx(-(T * log_p).sum(axis=1), rows), Approx(P * total - T, dP)


def _exponential(V, dtype, minus_one=False):
    """e^V, or e^V - 1, with the errors of V and those of the function."""
    value, spread = np.exp(V.value), np.exp(V.value) * np.expm1(V.error)
    if minus_one:
        value = np.expm1(V.value)
    ulps = ULP_OTHER if minus_one else ULP_SIGMOID
    return Approx(value, spread + gamma(2 * ulps, dtype) * (abs(value) + spread))


def _gaussian_rows(name, Y, y, dtype):
    """½(v + (m - y)²e^-v + log 2π) or ½(e^v + m² - 1 - v), m means, v logarithms of variances."""
    n, k = len(Y.value), Y.value.shape[1] // 2
    M, V = Y[:, :k], Y[:, k:]
    if name == "gaussian_nll":
        D = plus(M, exact(-np.asarray(y, EXACT).reshape(n, k)), dtype)
        precision = _exponential(-V, dtype)
        Q = times(times(D, D, dtype), precision, dtype, 2)
        terms = [V, Q, Approx(np.log(2 * PI) + 0 * V.value, 0 * V.value)]
        slopes = [times(D, precision, dtype), plus(ONE, -Q, dtype)]
    else:
        E = _exponential(V, dtype, minus_one=True)
        terms, slopes = [E, -V, times(M, M, dtype)], [M, E]
    slopes[1] = Approx(slopes[1].value / 2, slopes[1].error / 2)
    value = sum(term.value for term in terms).sum(axis=1) / 2
    error = sum(term.error for term in terms).sum(axis=1) / 2
    error += gamma(3 + k, dtype) * sum(term.size for term in terms).sum(axis=1) / 2
    return Approx(value, error), _join(slopes)


def _pair_rows(Y, margin, dtype):
    """max(0, margin - (better - worse)) in the first row of each pair, 0 in the second."""
    better, worse = Y[0::2], Y[1::2]
    slack = plus(_number(margin, dtype), plus(worse, -better, dtype), dtype)
    on, unsure = slack.value > 0, (slack.error > 0) & (abs(slack.value) <= slack.error)
    rows, D = exact(np.zeros(len(Y.value))), exact(np.zeros(Y.value.shape))
    rows.value[0::2], rows.error[0::2] = np.maximum(slack.value, 0)[:, 0], slack.error[:, 0]
    D.value[0::2], D.value[1::2] = -1.0 * on, 1.0 * on
    D.error[:] = np.repeat(unsure, 2, axis=0)
    return rows, D


def objective(net, params, X, y, loss, weights=None, l2=0.0, factor=None, l1=0.0, group=0.0):
    """The objective (accumulated in float64) and its gradient; `factor` is the normaliser."""
    dtype, steps = net.dtype, forward(net, params, X)
    rows, dY = rows_of_loss(loss, steps[-1][2], y, dtype)
    w, factor = _weighting(loss, len(X), net.n_out, weights, factor)
    penalty, slopes = penalties(net, params, l2, l1, group)
    # The normaliser, the weight and their product with dY are rounded, and so may be 2·factor.
    grad, _ = backward(net, params, steps, times(exact((factor * w)[:, None]), dY, dtype, 4))
    if l2 or l1 or group:
        error = grad.error + slopes.error + gamma(3, dtype) * (grad.size + slopes.size)
        grad = _where_free(net, Approx(grad.value + slopes.value, error))
    return _total(rows, w, factor, penalty, dtype), grad


def value(net, params, X, y, loss, weights=None, l2=0.0, l1=0.0, group=0.0):
    """The objective alone."""
    rows, _ = rows_of_loss(loss, forward(net, params, X)[-1][2], y, net.dtype)
    penalty, _ = penalties(net, params, l2, l1, group)
    return _total(rows, *_weighting(loss, len(X), net.n_out, weights), penalty, net.dtype)


def _weighting(loss, n, n_out, weights=None, factor=None):
    """The weights of the rows and the normaliser."""
    size = 2 if loss_of(loss).name == "margin_ranking" else 1  # rows that a weight is for
    w = np.ones(n // size, EXACT) if weights is None else np.asarray(weights, EXACT)
    return np.repeat(w, size), scale(loss, w.sum(), n_out) if factor is None else EXACT(factor)


def _total(rows, w, factor, penalty, dtype):
    error = (w * rows.error).sum()
    error += (gamma(3, dtype) + gamma(len(w) + 4, np.float64)) * (w * rows.size).sum()
    total = factor * (w * rows.value).sum() + penalty.value
    return Approx(np.asarray(total), np.asarray(factor * error + penalty.error))


def penalties(net, params, l2, l1, group):
    """l2/2·‖W‖² + l1·Σ|W_ij| + group·Σ_j ‖W_:j‖₂ over the layers, and the gradient."""
    dtype, value, error = net.dtype, EXACT(0), EXACT(0)
    l2, l1, group = map(EXACT, (l2, l1, group))
    slopes = exact(np.zeros(net.n_params))
    pairs = zip(
        matrices(net, params), split(net, slopes.value), split(net, slopes.error), strict=True
    )
    for (W, _), (D, _), (E, _) in pairs:
        norms = np.sqrt((W * W).sum(axis=0))
        unit_columns = W / np.where(norms == 0, 1, norms)
        total = l2 / 2 * (W * W).sum() + l1 * abs(W).sum() + group * norms.sum()
        value += total
        # A norm sums in dtype or float64; all else accumulates in float64.
        error += total * (gamma(len(W) + 6, dtype) + gamma(W.size + 4, np.float64))
        D[:] = l2 * W + l1 * np.sign(W) + group * unit_columns
        sizes = l2 * abs(W) + l1 + group * abs(unit_columns)
        E[:] = gamma(len(W) + 6, dtype) * sizes
    return Approx(value, error), slopes


def richardson(f, h=1e-4):
    """f'(0) from central differences at h, h/2, h/4: the error is of order h^6."""
    D = [(f(EXACT(t)) - f(EXACT(-t))) / (2 * EXACT(t)) for t in (h, h / 2, h / 4)]
    D = [(4 * b - a) / 3 for a, b in pairwise(D)]
    return (16 * D[1] - D[0]) / 15


# Steps of an optimizer: PyTorch's algorithms, as its documentation gives them.


def clipped(grad, most, dtype):
    """g·min(1, most/(‖g‖ + 1e-6)); squares are taken in dtype and summed in float64."""
    n, value, error = grad.value.size, np.linalg.norm(grad.value), np.linalg.norm(grad.error)
    rounding = (gamma(2, dtype) + gamma(n + 2, np.float64)) * (value + error)
    error = error + rounding + np.sqrt(EXACT(n * np.finfo(dtype).tiny))
    norm = Approx(np.asarray(value), np.asarray(error))
    factor = _monotone(lambda x: np.minimum(1, most / (np.maximum(x, 0) + EXACT(1e-6))), norm)
    return times(factor, grad, dtype, 5)


def step(optimizer, params, moments, grad, lr, t, dtype, free=True):
    """One update, t counted from 1: (params, moments) from exact ones and a gradient with errors.

    The rates and constants are rounded to dtype once, each operation once; what is subnormal may
    be flushed to zero. Only the `free` parameters decay.
    """
    lr, tiny, p = EXACT(lr), np.finfo(dtype).tiny, exact(params)
    name = list(KINDS)[optimizer.kind]
    rule = RULES.get(name) or _by_reference(reference._RULES[name])
    constants = tuple(map(EXACT, optimizer.constants))
    if constants[3]:
        decay = np.where(free, lr * constants[3], 0)
        error = gamma(3, dtype) * (1 + decay) * abs(p.value)
        p = Approx(p.value - decay * p.value, np.where(free, error + tiny, 0))
    change, moments = rule(constants, [exact(m) for m in moments], grad, lr, t, dtype)
    error = p.error + change.error + gamma(1, dtype) * (p.size + change.size)
    return Approx(p.value - change.value, error + tiny), moments


def _sgd(constants, moments, grad, lr, t, dtype):
    return _rated(lr, grad, dtype), moments


def _momentum(constants, moments, grad, lr, t, dtype):
    v = _accumulated(constants[0], *moments, grad, dtype)
    return _rated(lr, v, dtype), [v]


def _nesterov(constants, moments, grad, lr, t, dtype):
    v = _accumulated(constants[0], *moments, grad, dtype)
    return _rated(lr, _accumulated(constants[0], v, grad, dtype), dtype), [v]


def _adam(constants, moments, grad, lr, t, dtype):
    (m, s), (beta1, beta2, eps, _) = moments, constants
    m = _mix(beta1, m, grad, dtype)
    s = _mix(beta2, s, times(grad, grad, dtype, 2), dtype)
    # The bias corrections are taken in float64, where 1 - β^t (with β^t a product) magnifies the
    # rounding of β^t.
    rate, root = lr / (1 - beta1**t), np.sqrt(1 - beta2**t)
    change = _over_root(m, s, eps, dtype, rate, root)
    powers = sum(beta**t / (1 - beta**t) for beta in (beta1, beta2))
    change.error += gamma(t + 1, np.float64) * powers * change.size
    return change, [m, s]


def _rmsprop(centered, has_momentum):
    def rule(constants, moments, grad, lr, t, dtype):
        alpha, eps, momentum, _ = constants
        s, *others = moments
        s = q = _mix(alpha, s, times(grad, grad, dtype, 2), dtype)
        moments = [s]
        if centered:
            a = _mix(alpha, others.pop(), grad, dtype)
            q = plus(s, -times(a, a, dtype), dtype)
            q.error += np.finfo(dtype).tiny
            moments = [s, a]
        direction = _over_root(grad, q, eps, dtype)
        if has_momentum:
            direction = _accumulated(momentum, *others, direction, dtype)
            moments.insert(1, direction)
        return _rated(lr, direction, dtype), moments

    return rule


def _adagrad(constants, moments, grad, lr, t, dtype):
    s = _accumulated(1, *moments, times(grad, grad, dtype, 2), dtype)
    return _rated(lr, _over_root(grad, s, constants[0], dtype), dtype), [s]


RULES = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adam": _adam,
    "rmsprop": _rmsprop(False, False),
    "rmsprop_momentum": _rmsprop(False, True),
    "rmsprop_centered": _rmsprop(True, False),
    "rmsprop_centered_momentum": _rmsprop(True, True),
    "adagrad": _adagrad,
}


def _by_reference(update):
    """The bounds of a rule from NumPy's: the rule at both ends of the gradient's error.

    Rules add, multiply and divide by roots of means of squares, so that of absolute values they
    give a bound of their terms' sizes, but for differences such as g - m, whose terms are a few
    times as large. 64 roundings of that size are more than a rule of some ten operations has.
    """

    def rule(constants, moments, grad, lr, t, dtype):
        tiny = np.finfo(dtype).tiny

        def at(values, g):
            values = [np.array(v) for v in values]
            return [np.asarray(update(values, g, lr, t, constants)), *values]

        start = [m.value for m in moments]
        middle = at(start, grad.value)
        ends = [at(start, grad.value + side * grad.error) for side in (-1, 1)]
        sizes = at([abs(v) for v in start], abs(grad.value) + grad.error)
        results = [
            Approx(v, abs(low - v) + abs(high - v) + gamma(64, dtype) * abs(size) + tiny)
            for v, low, high, size in zip(middle, *ends, sizes, strict=True)
        ]
        return results[0], results[1:]

    return rule


def _rated(lr, direction, dtype):
    return times(exact(lr * np.ones_like(direction.value)), direction, dtype, 2)


def _accumulated(share, old, new, dtype):
    """share·old + new."""
    sizes = share * old.size + new.size
    error = share * old.error + new.error + gamma(3, dtype) * sizes + np.finfo(dtype).tiny
    return Approx(share * old.value + new.value, error)


def _mix(beta, old, new, dtype):
    """β·old + (1 - β)·new, also as old + (1 - β)·(new - old)."""
    value = beta * old.value + (1 - beta) * new.value
    sizes = 2 * abs(old.value) + (1 - beta) * new.size
    return Approx(value, (1 - beta) * new.error + gamma(4, dtype) * sizes + np.finfo(dtype).tiny)


def _over_root(g, q, eps, dtype, rate=1, root=1):
    """rate·g/(sqrt(q)/root + eps): the root, the quotient and the products within 4 ULP each."""
    result = _monotone(lambda g, q: rate * g / (np.sqrt(np.maximum(q, 0)) / root + eps), g, q)
    result.error += gamma(8 * ULP_OTHER, dtype) * result.size
    return result


def _monotone(f, *arguments):
    """f of arguments in each of which it is monotone: it is between its values at the corners."""
    middle = f(*(a.value for a in arguments))
    corners = product_of(*((a.value - a.error, a.value + a.error) for a in arguments))
    return Approx(middle, np.max([abs(f(*corner) - middle) for corner in corners], axis=0))
