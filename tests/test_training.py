"""The training loop: trajectories against NumPy written by hand, chunks, orders, stability."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import fastbp as fb
from fastbp.training import loop
from fastbp.training.optimizers import METHODS

pytestmark = pytest.mark.backend

NET = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(2))
N = 13


@pytest.fixture
def data(rng):
    return rng.standard_normal((N, 3)), rng.standard_normal((N, 2)), rng.uniform(0.5, 2, N)


# The same by hand: a 3-4-2 network on one vector W1, b1, W2, b2, and PyTorch's update rules.


def loss_and_grad(p, X, T, w, factor, l2):
    W1, b1, W2, b2 = np.split(p, [12, 16, 24])
    W1, W2 = W1.reshape(3, 4), W2.reshape(4, 2)
    H = np.tanh(X @ W1 + b1)
    E = H @ W2 + b2 - T
    loss = factor * np.sum(w[:, None] * E**2) + l2 / 2 * (np.sum(W1**2) + np.sum(W2**2))
    dY = 2 * factor * w[:, None] * E
    dZ = dY @ W2.T * (1 - H**2)
    grads = X.T @ dZ + l2 * W1, dZ.sum(axis=0), H.T @ dY + l2 * W2, dY.sum(axis=0)
    return loss, np.concatenate([g.ravel() for g in grads])


class Sgd:
    def __init__(self, lr, momentum=0.0, nesterov=False):
        self.lr, self.momentum, self.nesterov = lr, momentum, nesterov
        self.v = 0.0

    def step(self, p, g):
        self.v = self.momentum * self.v + g
        return p - self.lr * (g + self.momentum * self.v if self.nesterov else self.v)


class Adam:
    def __init__(self, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        self.lr, (self.b1, self.b2), self.eps = lr, betas, eps
        self.m = self.s = self.t = 0.0

    def step(self, p, g):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.s = self.b2 * self.s + (1 - self.b2) * g**2
        m, s = self.m / (1 - self.b1**self.t), self.s / (1 - self.b2**self.t)
        return p - self.lr * m / (np.sqrt(s) + self.eps)


def by_hand(rule, data, p, epochs, batch, orders, l2=0.0, loss="mse"):
    X, T, w = data
    history = []
    for e in range(epochs):
        met = []
        for j in range(0, N, batch):
            rows = orders[e][j : j + batch]
            # A batch is divided by its size times the mean weight of all data.
            divisor = {"mse": len(rows) * w.mean() * 2, "sse": 1.0}[loss]
            value, g = loss_and_grad(p, X[rows], T[rows], w[rows], 1 / divisor, l2)
            met.append(value)
            p = rule.step(p, g)
        history.append(np.mean(met))
    return p, np.array(history)


RULES = {
    "sgd": (fb.SGD(lr=0.05), Sgd(0.05)),
    "momentum": (fb.SGD(lr=0.02, momentum=0.8), Sgd(0.02, 0.8)),
    "nesterov": (fb.SGD(0.02, 0.9, nesterov=True), Sgd(0.02, 0.9, True)),
    "adam": (fb.Adam(lr=0.03, betas=(0.8, 0.99), eps=1e-7), Adam(0.03, (0.8, 0.99), 1e-7)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch", [N, 4])
def test_golden_trajectory(backend, data, name, weighted, batch):
    """Ten epochs: ten steps of all rows, or forty of minibatches, the last of a single row."""
    X, T, w = data
    w = w if weighted else np.ones(N)
    method, rule = RULES[name]
    start = NET.init(5)
    rng = np.random.default_rng(np.random.SeedSequence(3).spawn(3)[1])
    orders = [rng.permutation(N) if batch < N else np.arange(N) for _ in range(10)]
    l2 = 0.1 if weighted else 0.0
    params, history = by_hand(copy.deepcopy(rule), (X, T, w), start, 10, batch, orders, l2)
    res = fb.fit(
        NET,
        X,
        T,
        method=method,
        params=start,
        epochs=10,
        batch_size=batch,
        seed=3,
        sample_weight=w if weighted else None,
        l2=l2,
    )
    np.testing.assert_allclose(res.history["loss"], history, rtol=1e-12)
    np.testing.assert_allclose(res.params, params, rtol=0, atol=1e-12 * np.abs(params).max())


def test_sse_is_not_divided(backend, data):
    X, T, w = data
    orders = [np.arange(N)] * 3
    params, history = by_hand(Sgd(0.003), (X, T, w), NET.init(1), 3, 5, orders, 0.01, "sse")
    res = fb.fit(
        NET,
        X,
        T,
        method="sgd",
        lr=0.003,
        loss="sse",
        params=NET.init(1),
        epochs=3,
        batch_size=5,
        shuffle=False,
        sample_weight=w,
        l2=0.01,
    )
    np.testing.assert_allclose(res.history["loss"], history, rtol=1e-12)
    np.testing.assert_allclose(res.params, params, rtol=0, atol=1e-12 * np.abs(params).max())


@pytest.mark.parametrize("name", METHODS)
def test_names_are_pytorch_s_defaults(backend, data, name):
    X, T, _ = data
    rule = {
        "sgd": Sgd(0.01),
        "momentum": Sgd(0.01, 0.9),
        "nesterov": Sgd(0.01, 0.9, True),
        "adam": Adam(),
    }[name]
    params, _ = by_hand(rule, (X, T, np.ones(N)), NET.init(0), 2, N, [np.arange(N)] * 2)
    res = fb.fit(NET, X, T, method=name, params=NET.init(0), epochs=2)
    np.testing.assert_allclose(res.params, params, rtol=0, atol=1e-12)


# Chunks and orders.


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("method", METHODS)
def test_chunks_do_not_show(backend, data, monkeypatch, method, batch):
    X, T, _ = data

    def run(seconds, rows):
        monkeypatch.setattr(loop, "CHUNK_SECONDS", seconds)
        monkeypatch.setattr(loop, "ORDER_ROWS", rows)
        return fb.fit(NET, X, T, method=method, epochs=37, batch_size=batch, seed=1)

    whole = run(1e9, 2**16)
    for seconds, rows in [(0.0, 2**16), (1e9, 1), (1e9, 3 * N), (0.0, 1)]:
        res = run(seconds, rows)
        assert np.array_equal(res.params, whole.params)
        assert np.array_equal(res.history["loss"], whole.history["loss"])


@pytest.mark.parametrize("batch", [None, 1, 4, N])
def test_twice_is_bitwise_equal(backend, data, dtype, batch):
    net = NET.astype(dtype)
    X, T, _ = data
    first, second = (fb.fit(net, X, T, epochs=20, batch_size=batch, seed=9) for _ in range(2))
    assert np.array_equal(first.params, second.params)
    assert np.array_equal(first.history["loss"], second.history["loss"])
    assert first.params.dtype == dtype


def test_history_grows_past_its_first_allocation(backend, data):
    X, T, _ = data
    res = fb.fit(NET, X, T, method="sgd", epochs=5000, batch_size=None, seed=0)
    assert res.history["loss"].shape == (5000,)
    assert (res.history["loss"] > 0).all()


def test_orders_are_numpy_s_permutations(monkeypatch):
    monkeypatch.setattr(loop, "ORDER_ROWS", 3 * N)
    orders = loop._Orders(np.random.default_rng(0), N, 100)
    rng = np.random.default_rng(0)
    for epoch in range(8):
        assert orders.ready_for(epoch) == 3 * (epoch // 3 + 1)
        assert np.array_equal(orders.rows(epoch, epoch)[0], rng.permutation(N))
    assert orders.rows(6, 8).shape == (3, N)


def test_orders_take_bounded_memory():
    assert loop._Orders(np.random.default_rng(0), 10, 10**9)._block.size <= loop.ORDER_ROWS
    assert loop._Orders(np.random.default_rng(0), 10**5, 10**9)._block.shape == (1, 10**5)


# Stability.


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_stable_limit_is_the_edge(backend, momentum, nesterov):
    if nesterov and not momentum:
        pytest.skip("nesterov needs momentum")
    net = fb.Network(1, fb.Dense(1, bias=False))
    edge = fb.SGD(1.0, momentum, nesterov).stable_limit / 2  # curvature 2
    losses = []
    for share in (0.99, 1.01):
        method = fb.SGD(share * edge, momentum, nesterov)
        res = fb.fit(
            net,
            [[1.0]],
            [1.0],
            method=method,
            loss="sse",
            params=[0.0],
            epochs=3000,
            on_divergence="return",
        )
        losses.append(res.history["loss"])
    assert losses[0][-1] < 1e-10
    assert losses[1][-1] > 1e3


@pytest.mark.parametrize("loss", ["mse", "half_mse", "sse"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_curvature_is_the_gauss_newton_matrix_s(backend, data, loss, dtype):
    X, T, w = data
    net, l2 = NET.astype(dtype), 0.3
    obj = net.objective(X, T, loss, sample_weight=w, l2=l2)
    params = net.init(2)
    J = obj.astype("float64").jacobian(params)  # of residuals, the penalty's among them
    H = 2 * obj.problem.scale * J.T @ J
    expected = np.linalg.eigvalsh(H)[-1]
    assert loop.curvature(obj, params, N) == pytest.approx(expected, rel=1e-4)


def test_curvature_of_a_batch_without_normaliser(backend, data):
    X, T, _ = data
    obj, params = NET.objective(X, T, "sse"), NET.init(2)
    assert loop.curvature(obj, params, 4) == pytest.approx(
        loop.curvature(obj, params, N) * 4 / N, rel=1e-9
    )


def test_curvature_of_many_rows_looks_at_some(backend, rng):
    net = fb.Network(3, fb.Dense(1))
    X = rng.standard_normal((20000, 3)) * [3, 1, 1]
    obj = net.objective(X, np.zeros(20000), "mse")
    J = np.column_stack([X, np.ones(20000)])
    expected = 2 * np.linalg.eigvalsh(J.T @ J / 20000)[-1]
    assert loop.curvature(obj, net.init(0), 20000) == pytest.approx(expected, rel=0.1)


# Methods as objects.


def test_methods_are_values():
    assert fb.SGD() == fb.SGD(lr=0.01, momentum=0.0, nesterov=False)
    assert fb.Adam(betas=[0.5, 0.9]) == fb.Adam(1e-3, (0.5, 0.9), 1e-8)
    assert hash(fb.Adam()) == hash(fb.Adam())
    assert repr(fb.Adam()) == "Adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08)"


@pytest.mark.parametrize("lr", [0, -1.0, np.inf, np.nan])
@pytest.mark.parametrize("kind", [fb.SGD, fb.Adam])
def test_rate_must_be_positive(kind, lr):
    with pytest.raises(ValueError, match=r"lr is .*, expected a positive finite rate"):
        kind(lr=lr)


def test_bad_numbers():
    with pytest.raises(TypeError, match="lr is 'fast', expected a number"):
        fb.SGD(lr="fast")
    with pytest.raises(ValueError, match=r"momentum is 1\.0, expected a number in \[0, 1\)"):
        fb.SGD(momentum=1)
    with pytest.raises(ValueError, match="nesterov=True needs momentum"):
        fb.SGD(nesterov=True)
    with pytest.raises(TypeError, match=r"betas is 0\.9, expected two numbers"):
        fb.Adam(betas=0.9)
    with pytest.raises(ValueError, match=r"betas\[1\] is 1\.0"):
        fb.Adam(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="eps is -1"):
        fb.Adam(eps=-1)
