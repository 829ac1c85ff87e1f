"""What fastbp is measured against: the same work in NumPy, as fast as a loop by hand gets.

Every buffer is allocated once, every operation writes into one, and parameters, gradients and
moments are flat vectors with a view per layer, so that an update is a few calls for all layers
together. Where NumPy offers two ways the faster one is taken:

- ``np.dot`` with a positional ``out`` costs 0.3 µs less a call than ``@`` or ``np.matmul``;
- ``np.dot(ones, dZ)`` sums columns 2 to 4 times as fast as ``dZ.sum(axis=0)``;
- a number as an array of one element costs 0.2 µs less a call than a Python float.

The training loop does not compute the loss, only its derivative; fastbp computes both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastbp as fb

# Up to so many entries np.sign is the fastest derivative of relu, above it np.greater.
SIGN_LIMIT = 4096


def _activation(name: str, dtype: np.dtype) -> Callable[[np.ndarray], None]:
    """act in place."""
    zero, one = np.zeros(1, dtype), np.ones(1, dtype)

    def relu(Z):
        np.maximum(Z, zero, out=Z)

    def tanh(Z):
        np.tanh(Z, Z)

    def sigmoid(Z):
        np.negative(Z, Z)
        np.exp(Z, Z)
        np.add(Z, one, Z)
        np.reciprocal(Z, Z)

    def linear(Z):
        pass

    return {"relu": relu, "tanh": tanh, "sigmoid": sigmoid, "linear": linear}[name]


def _times_derivative(
    name: str, dtype: np.dtype, entries: int
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """(dY, Y, dZ): dZ = dY ∘ act'(Z), taken from Y, which is overwritten; dZ may be dY."""
    zero, one = np.zeros(1, dtype), np.ones(1, dtype)

    def relu(dY, Y, dZ):
        if entries <= SIGN_LIMIT:
            np.sign(Y, Y)
        else:
            np.greater(Y, zero, Y)
        np.multiply(dY, Y, dZ)

    def tanh(dY, Y, dZ):
        np.multiply(Y, Y, Y)
        np.subtract(one, Y, Y)
        np.multiply(dY, Y, dZ)

    def sigmoid(dY, Y, dZ):
        np.multiply(dY, Y, dZ)
        np.subtract(one, Y, Y)
        np.multiply(dZ, Y, dZ)

    def linear(dY, Y, dZ):
        if dZ is not dY:
            np.copyto(dZ, dY)

    return {"relu": relu, "tanh": tanh, "sigmoid": sigmoid, "linear": linear}[name]


class Dense:
    """One layer: what `fastbp.dense_forward` and `fastbp.dense_backward` do."""

    def __init__(self, X: np.ndarray, W: np.ndarray, b: np.ndarray, activation: str):
        self.X, self.W, self.b = X, W, b
        self.Y = np.empty((len(X), len(b)), X.dtype)
        self.dX, self.dW, self.db = np.empty_like(X), np.empty_like(W), np.empty_like(b)
        self.dZ, self.ones = np.empty_like(self.Y), np.ones(len(X), X.dtype)
        self.activation = _activation(activation, X.dtype)
        self.times_derivative = _times_derivative(activation, X.dtype, self.Y.size)

    def forward(self) -> np.ndarray:
        Y = self.Y
        np.dot(self.X, self.W, Y)
        np.add(Y, self.b, Y)
        self.activation(Y)
        return Y

    def backward(self, dY: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        dZ = self.dZ
        self.times_derivative(dY, self.Y, dZ)
        np.dot(dZ, self.W.T, self.dX)
        np.dot(self.X.T, dZ, self.dW)
        np.dot(self.ones, dZ, self.db)
        return self.dX, self.dW, self.db


class Mlp:
    """A network's output and gradient, for batches of one size."""

    def __init__(self, net: fb.Network, loss: str, rows: int):
        dtype = net.dtype
        self.params = np.empty(net.n_params, dtype)
        self.grad = np.empty(net.n_params, dtype)
        names = [layer.act.name for layer in net.layers]
        Ws, bs = zip(*net.unpack(self.params), strict=True)
        dWs, dbs = zip(*net.unpack(self.grad), strict=True)
        self.Ys = [np.empty((rows, len(b)), dtype) for b in bs]
        self.Ds = [np.empty_like(Y) for Y in self.Ys]
        acts = [_activation(name, dtype) for name in names]
        derivatives = [
            _times_derivative(name, dtype, Y.size) for name, Y in zip(names, self.Ys, strict=True)
        ]
        self.ones, self.rows = np.ones(rows, dtype), np.arange(rows)
        self.first_dW, self.first_db = dWs[0], dbs[0]
        self.last_derivative = derivatives[-1]
        self.forward_layers = list(zip(Ws, bs, self.Ys, acts, strict=True))
        # From the last layer down to the second, each with what the layer before it needs.
        below = zip(self.Ys, self.Ds, derivatives, strict=True)
        above = zip([W.T for W in Ws], dWs, dbs, strict=True)
        pairs = list(zip(list(below)[:-1], list(above)[1:], strict=True))
        self.backward_layers = [
            (Y, Y.T, D, derivative, WT, dW, db)
            for (Y, D, derivative), (WT, dW, db) in reversed(pairs)
        ]
        self.loss = {"mse": self._mse, "softmax_ce": self._softmax_ce}[loss]
        self.mse_factor = np.array([2 / self.Ys[-1].size], dtype)
        self.row_factor = np.array([1 / rows], dtype)

    def forward(self, X: np.ndarray) -> np.ndarray:
        for W, b, Y, activation in self.forward_layers:
            np.dot(X, W, Y)
            np.add(Y, b, Y)
            activation(Y)
            X = Y
        return X

    def gradient(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The gradient; overwrites what `forward` returned."""
        Y, D = self.forward(X), self.Ds[-1]
        self.loss(Y, y, D)
        self.last_derivative(D, Y, D)
        for A, AT, dA, derivative, WT, dW, db in self.backward_layers:
            np.dot(AT, D, dW)
            np.dot(self.ones, D, db)
            np.dot(D, WT, dA)
            derivative(dA, A, dA)
            D = dA
        np.dot(X.T, D, self.first_dW)
        np.dot(self.ones, D, self.first_db)
        return self.grad

    def mse_and_gradient(
        self, params: np.ndarray, X: np.ndarray, y: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """What SciPy wants of an objective, for a linear last layer; a new gradient each time."""
        np.copyto(self.params, params)
        grad = self.gradient(X, y).copy()
        # The last layer's D is the residual times 2/size; its squares sum to the loss.
        D = self.Ds[-1].ravel()
        return float(D @ D) * D.size / 4, grad

    def _mse(self, Y, y, D):
        np.subtract(Y, y, D)
        np.multiply(D, self.mse_factor, D)

    def _softmax_ce(self, Y, labels, D):
        np.subtract(Y, np.maximum.reduce(Y, axis=1, keepdims=True), D)
        np.exp(D, D)
        # Softmax and the mean over rows with one factor per row.
        factor = np.add.reduce(D, axis=1, keepdims=True)
        np.divide(self.row_factor, factor, factor)
        np.multiply(D, factor, D)
        D[self.rows, labels] -= self.row_factor


class TrainingLoop:
    """Epochs of minibatches in the rows' order: what `fastbp.fit` does with shuffle=False."""

    def __init__(
        self, net: fb.Network, X: np.ndarray, y: np.ndarray, loss: str, batch: int, **rule: Any
    ):
        self.mlp = Mlp(net, loss, batch)
        starts = range(0, len(X), batch)
        self.batches = [(X[i : i + batch], y[i : i + batch]) for i in starts]
        self.update = {"sgd": self._sgd, "momentum": self._momentum, "adam": self._adam}[
            rule["method"]
        ]
        self.lr = rule["lr"]
        self.moments = np.zeros((2, net.n_params), net.dtype)
        self.scratch = np.empty(net.n_params, net.dtype)
        numbers = (rule["lr"], 0.9, 1 - 0.9, 0.999, 1 - 0.999)
        self.numbers = [np.array([x], net.dtype) for x in numbers]

    def run(self, params: np.ndarray, epochs: int) -> np.ndarray:
        """The parameters after so many epochs."""
        mlp, update, batches = self.mlp, self.update, self.batches
        mlp.params[:] = params
        self.moments[:] = 0
        self.powers = 1.0, 1.0
        for _ in range(epochs):
            for X, y in batches:
                update(mlp.params, mlp.gradient(X, y))
        return mlp.params.copy()

    def _sgd(self, p, g):
        np.multiply(g, self.numbers[0], g)
        np.subtract(p, g, p)

    def _momentum(self, p, g):
        lr, momentum, *_ = self.numbers
        v = self.moments[0]
        np.multiply(v, momentum, v)
        np.add(v, g, v)
        np.multiply(v, lr, g)
        np.subtract(p, g, p)

    def _adam(self, p, g):
        _, beta1, rest1, beta2, rest2 = self.numbers
        (m, s), scratch = self.moments, self.scratch
        np.multiply(m, beta1, m)
        np.multiply(g, rest1, scratch)
        np.add(m, scratch, m)
        np.multiply(s, beta2, s)
        np.multiply(g, g, g)
        np.multiply(g, rest2, g)
        np.add(s, g, s)
        # lr/c1 · m / (sqrt(s/c2) + eps) with the factor sqrt(c2) moved out of the vectors.
        power1, power2 = self.powers = self.powers[0] * 0.9, self.powers[1] * 0.999
        root = (1 - power2) ** 0.5
        np.sqrt(s, scratch)
        np.add(scratch, 1e-8 * root, scratch)
        np.divide(m, scratch, scratch)
        np.multiply(scratch, self.lr * root / (1 - power1), scratch)
        np.subtract(p, scratch, p)


def jacobian(net: fb.Network, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The Jacobian of a network of one hidden tanh layer and one linear output, all rows at once.

    Columns as in the parameter vector: W1 row-major, b1, W2, b2.
    """
    (W1, b1), (W2, _) = net.unpack(params)
    (n_in, width), n = W1.shape, len(X)
    J = np.empty((n, net.n_params), net.dtype)
    H = X @ W1
    H += b1
    np.tanh(H, H)
    J[:, -1] = 1
    J[:, -1 - width : -1] = H
    np.multiply(H, H, H)
    np.subtract(1, H, H)
    np.multiply(H, W2[:, 0], H)
    J[:, n_in * width : n_in * width + width] = H
    for i in range(n_in):  # n_in calls on long columns beat one call with a small inner axis
        np.multiply(X[:, i : i + 1], H, J[:, i * width : i * width + width])
    return J


class Residuals:
    """r = Y - y of a network of one hidden tanh layer and one linear output, and its derivatives.

    All is kept transposed, a unit or a parameter per row, so that every operation runs along the
    data. `jacobian` returns a buffer that the next call overwrites.
    """

    def __init__(self, net: fb.Network, X: np.ndarray, y: np.ndarray):
        self.n_in, self.width = net.n_in, net.layers[0].n_out
        self.XT, self.y = np.ascontiguousarray(X.T), np.ascontiguousarray(y[:, 0])
        self.params = np.full(net.n_params, np.nan)
        self.H = np.empty((self.width, len(X)))
        self.JT = np.empty((net.n_params, len(X)))
        # In the order of the parameters: W1 row-major, b1, W2, b2.
        weights = self.n_in * self.width
        self.J_W1 = self.JT[:weights].reshape(self.n_in, self.width, len(X))
        self.J_b1, self.J_W2 = (
            self.JT[weights : weights + self.width],
            self.JT[-1 - self.width : -1],
        )
        self.JT[-1] = 1

    def __call__(self, params: np.ndarray) -> np.ndarray:
        """The residuals (n,), a new array."""
        self.params[:] = params
        weights, width, H = self.n_in * self.width, self.width, self.H
        np.dot(params[:weights].reshape(self.n_in, width).T, self.XT, H)
        np.add(H, params[weights : weights + width, None], H)
        np.tanh(H, H)
        r = np.dot(params[-1 - width : -1], H)
        r += params[-1]
        r -= self.y
        return r

    def jacobian(self, params: np.ndarray) -> np.ndarray:
        """Its transpose (n_params, n); after a call at the same point it takes H from there."""
        if not np.array_equal(params, self.params):
            self(params)
        D = self.J_b1
        np.copyto(self.J_W2, self.H)
        np.multiply(self.H, self.H, D)
        np.subtract(1, D, D)
        np.multiply(D, params[-1 - self.width : -1, None], D)
        np.multiply(self.XT[:, None], D, self.J_W1)
        return self.JT

    def normal_equations(self, params: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """JᵀJ, Jᵀr, rᵀr."""
        r = self(params)
        JT = self.jacobian(params)
        return np.dot(JT, JT.T), np.dot(JT, r), float(r @ r)


class PlainResiduals:
    """The same as one writes it, a row of data per row."""

    def __init__(self, net: fb.Network, X: np.ndarray, y: np.ndarray):
        self.net, self.X, self.y = net, X, y[:, 0]

    def __call__(self, params: np.ndarray) -> np.ndarray:
        (W1, b1), (W2, b2) = self.net.unpack(params)
        return (np.tanh(self.X @ W1 + b1) @ W2 + b2)[:, 0] - self.y

    def jacobian(self, params: np.ndarray) -> np.ndarray:
        """Its transpose (n_params, n), as `Residuals` has it."""
        return jacobian(self.net, params, self.X).T


# Of Levenberg-Marquardt by hand, here and in JAX. Of 1e-3, 1e-2, 0.1 and 1 the first damping that
# needs the fewest solutions.
FIRST_DAMPING, LARGEST_DAMPING = 1.0, 1e10


def levenberg_marquardt(
    fun: Residuals | PlainResiduals, params: np.ndarray, goal: float
) -> np.ndarray:
    """The parameters where rᵀr is at most the goal: damping over 10 after a success, else times 10.

    Ends without, where the damping has grown too large.
    """
    mu, r = FIRST_DAMPING, fun(params)
    sse = r @ r
    while sse > goal:
        JT = fun.jacobian(params)
        A, g = np.dot(JT, JT.T), np.dot(JT, r)
        while True:
            damped = A.copy()
            damped.ravel()[:: len(A) + 1] += mu
            trial = params - np.linalg.solve(damped, g)
            r = fun(trial)
            if r @ r < sse:
                break
            mu *= 10
            if mu > LARGEST_DAMPING:
                return params
        params, sse, mu = trial, r @ r, mu / 10
    return params
