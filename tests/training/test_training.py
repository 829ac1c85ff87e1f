"""The training loop: trajectories against NumPy by hand, chunks, orders, threads, stability.

Runs with dropout, penalties, masks, frozen layers, pairs of rows and every loss are compared with
loops over what the network says of each batch, or with formulas.
"""

from __future__ import annotations

import copy
import tracemalloc

import numpy as np
import pytest

import fastbp as fb
from fastbp.backends import reference
from fastbp.maths.formulas.optimizers import KINDS
from fastbp.maths.losses import TABLE
from fastbp.training import loop
from fastbp.training.optimizers import METHODS
from fastbp.training.stability import batch_curvature

pytestmark = pytest.mark.backend

NET = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(2))
N = 13


@pytest.fixture
def data(rng):
    return rng.standard_normal((N, 3)), rng.standard_normal((N, 2)), rng.uniform(0.5, 2, N)


# The same by hand: a 3-4-2 network on one vector W1, b1, W2, b2, and PyTorch's update rules.


def loss_and_grad(p, X, T, w, factor, l2, dropout=1.0):
    W1, b1, W2, b2 = np.split(p, [12, 16, 24])
    W1, W2 = W1.reshape(3, 4), W2.reshape(4, 2)
    H = np.tanh(X @ W1 + b1)
    E = H * dropout @ W2 + b2 - T
    loss = factor * np.sum(w[:, None] * E**2) + l2 / 2 * (np.sum(W1**2) + np.sum(W2**2))
    dY = 2 * factor * w[:, None] * E
    dZ = dY @ W2.T * dropout * (1 - H**2)
    grads = X.T @ dZ + l2 * W1, dZ.sum(axis=0), (H * dropout).T @ dY + l2 * W2, dY.sum(axis=0)
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


class AdamW(Adam):
    def __init__(self, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, decay=0.01):
        super().__init__(lr, betas, eps)
        self.decay = decay

    def step(self, p, g):
        return super().step(p - self.lr * self.decay * p, g)


class RMSprop:
    def __init__(self, lr=0.01, alpha=0.99, eps=1e-8, momentum=0.0, centered=False):
        self.lr, self.alpha, self.eps = lr, alpha, eps
        self.momentum, self.centered = momentum, centered
        self.s = self.a = self.v = 0.0

    def step(self, p, g):
        self.s = self.alpha * self.s + (1 - self.alpha) * g**2
        self.a = self.alpha * self.a + (1 - self.alpha) * g
        square = self.s - self.a**2 if self.centered else self.s
        self.v = self.momentum * self.v + g / (np.sqrt(square) + self.eps)
        return p - self.lr * self.v


class Adagrad:
    def __init__(self, lr=0.01, lr_decay=0.0, initial=0.0, eps=1e-10):
        self.lr, self.lr_decay, self.s, self.eps = lr, lr_decay, initial, eps
        self.t = 0

    def step(self, p, g):
        self.s, lr = self.s + g**2, self.lr / (1 + self.t * self.lr_decay)
        self.t += 1
        return p - lr * g / (np.sqrt(self.s) + self.eps)


class NumPys:
    """The rule of a method that has no class here, as the NumPy backend has it."""

    def __init__(self, method):
        self.lr, self.constants = method.lr, method.rule.constants
        self.update = reference._RULES[list(KINDS)[method.rule.kind]]
        self.moments, self.t = [0.0] * method.rule.n_moments, 0

    def step(self, p, g):
        self.moments, self.t = [m + np.zeros_like(g) for m in self.moments], self.t + 1
        p = p - self.lr * self.constants[3] * p
        return p - self.update(self.moments, g, self.lr, self.t, self.constants)


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
    "adamw": (
        fb.AdamW(0.03, (0.8, 0.99), 1e-7, weight_decay=0.2), AdamW(0.03, (0.8, 0.99), 1e-7, 0.2)
    ),
    "rmsprop": (fb.RMSprop(0.02, 0.9, 1e-6), RMSprop(0.02, 0.9, 1e-6)),
    "rmsprop, centered": (
        fb.RMSprop(0.01, 0.9, 1e-3, 0.6, centered=True), RMSprop(0.01, 0.9, 1e-3, 0.6, True)
    ),
    "adagrad": (fb.Adagrad(0.1, 0.05, 0.2, 1e-8), Adagrad(0.1, 0.05, 0.2, 1e-8)),
}  # fmt: skip
RULES |= {name: (method, NumPys(method)) for name, method in METHODS.items() if name not in RULES}


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
    """Those of PyTorch's methods; what it does not have steps as NumPy's rule."""
    X, T, _ = data
    rules = {
        "sgd": Sgd(0.01),
        "momentum": Sgd(0.01, 0.9),
        "nesterov": Sgd(0.01, 0.9, True),
        "adam": Adam(),
        "adamw": AdamW(),
        "rmsprop": RMSprop(),
        "adagrad": Adagrad(),
    }
    rule = rules.get(name) or NumPys(METHODS[name])
    params, _ = by_hand(rule, (X, T, np.ones(N)), NET.init(0), 2, N, [np.arange(N)] * 2)
    res = fb.fit(NET, X, T, method=name, params=NET.init(0), epochs=2)
    np.testing.assert_allclose(res.params, params, rtol=0, atol=1e-12)


# Dropout, by the definition of its random numbers in whole numbers of Python.


def dropped(seed, step, index, row, unit, n_out, share):
    def mix(x):
        x ^= x >> 30
        x = x * 0xBF58476D1CE4E5B9 % 2**64
        x ^= x >> 27
        x = x * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    def scramble(x):
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    golden = 0x9E3779B97F4A7C15
    key = mix((seed + golden * (step + 1)) % 2**64)
    key = mix((key + golden * (index + 1)) % 2**64)
    place = scramble((row * n_out + unit) ^ key % 2**32)
    return scramble((place + key // 2**32) % 2**32) < share * 2**32


def test_dropout_trajectory(backend, data):
    X, T, _ = data
    share, batch, epochs = 0.3, 4, 6
    net = fb.Network(3, fb.Dense(4, "tanh", dropout=share), fb.Dense(2))
    _, order_seed, dropout_seed = np.random.SeedSequence(11).spawn(3)
    rng, seed = np.random.default_rng(order_seed), int(dropout_seed.generate_state(1, np.uint64)[0])
    p, rule, history, step, n_dropped = net.init(0), Sgd(0.05, 0.8), [], 0, 0
    for _ in range(epochs):
        order, met = rng.permutation(N), []
        for j in range(0, N, batch):
            rows = order[j : j + batch]
            dropout = [
                [not dropped(seed, step, 0, i, k, 4, share) for k in range(4)]
                for i in range(len(rows))
            ]
            n_dropped += np.size(dropout) - np.sum(dropout)
            dropout = np.array(dropout) / (1 - share)
            ones = np.ones(len(rows))
            value, g = loss_and_grad(p, X[rows], T[rows], ones, 0.5 / len(rows), 0.0, dropout)
            p, step = rule.step(p, g), step + 1
            met.append(value)
        history.append(np.mean(met))
    assert 0 < n_dropped < 2 * share * epochs * N * 4
    res = fb.fit(
        net, X, T, method=fb.SGD(0.05, 0.8), params=net.init(0), epochs=epochs, batch_size=batch,
        seed=11,
    )  # fmt: skip
    np.testing.assert_allclose(res.history["loss"], history, rtol=1e-12)
    np.testing.assert_allclose(res.params, p, rtol=0, atol=1e-12 * np.abs(p).max())


def test_dropout_is_the_seed_s(backend, data):
    X, T, _ = data
    net = fb.Network(3, fb.Dense(4, "tanh", dropout=0.5), fb.Dense(2))

    def run(seed):
        return fb.fit(net, X, T, params=net.init(0), epochs=5, batch_size=None, seed=seed).params

    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


# What the network says of a batch, step by step, against the loop inside the backend.


def stepwise(net, X, y, loss, start, epochs, batch, seed, lr, **penalties):
    """Gradient descent by calls of the reference; rows of a pair stay together."""
    group = 2 if loss == "margin_ranking" else 1
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[1])
    p, history = start.copy(), []
    for _ in range(epochs):
        firsts, met = group * rng.permutation(len(X) // group), []
        order = (firsts[:, None] + np.arange(group)).ravel()
        for j in range(0, len(X), batch):
            rows = order[j : j + batch]
            labels = None if y is None else y[rows]
            value, g = net.value_and_grad(p, X[rows], labels, loss, backend="numpy", **penalties)
            met.append(value)
            p = p - lr * g
        history.append(np.mean(met))
    return p, np.array(history)


def targets(rng, loss, n):
    form = TABLE[loss].target
    return {
        "values": rng.standard_normal((n, 2)),
        "probabilities": rng.uniform(0, 1, (n, 2)),
        "signs": rng.choice([-1.0, 1.0], (n, 2)),
        "counts": rng.poisson(2.0, (n, 2)).astype(float),
        "classes": rng.integers(0, 2, n),
        "halves": rng.standard_normal((n, 1)),
        "none": None,
    }[form]


def same_run(res, params, history):
    # Of each step's rounding, about 1e-16, the steps after it make a few times as much.
    np.testing.assert_allclose(res.history["loss"], history, rtol=1e-11)
    np.testing.assert_allclose(res.params, params, rtol=0, atol=1e-11 * np.abs(params).max())


@pytest.mark.parametrize("loss", TABLE)
def test_every_loss_s_trajectory(backend, rng, loss):
    n, n_out = 14, 1 if loss == "margin_ranking" else 2
    output = "sigmoid" if loss == "bce" else "linear"
    net = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(n_out, output))
    X, y, start = rng.standard_normal((n, 3)), targets(rng, loss, n), net.init(6)
    run = {"epochs": 8, "seed": 2, "lr": 0.003 if loss == "sse" else 0.05}
    expected = stepwise(net, X, y, loss, start, batch=4, **run)
    same_run(
        fb.fit(net, X, y, loss=loss, method="sgd", params=start, batch_size=4, **run), *expected
    )


PENALTIES = [{"l1": 0.03}, {"group": 0.05}, {"l2": 0.1, "l1": 0.02, "group": 0.03}]


@pytest.mark.parametrize("penalties", PENALTIES, ids=lambda p: "+".join(p))
@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_penalties_by_hand(backend, data, penalties, method):
    X, T, _ = data
    rule = Sgd(0.05) if method == "sgd" else Adam(0.05)
    p, history = NET.init(3), []
    blocks = [(slice(0, 12), (3, 4)), (slice(16, 24), (4, 2))]
    l2, l1, group = (penalties.get(name, 0.0) for name in ("l2", "l1", "group"))
    for _ in range(9):
        value, g = loss_and_grad(p, X, T, np.ones(N), 0.5 / N, l2)
        for block, shape in blocks:
            W = p[block].reshape(shape)
            norms = np.linalg.norm(W, axis=0)
            value += l1 * np.abs(W).sum() + group * norms.sum()
            g[block] += (l1 * np.sign(W) + group * W / norms).ravel()
        history.append(value)
        p = rule.step(p, g)
    res = fb.fit(
        NET, X, T, method=method, lr=0.05, params=NET.init(3), epochs=9, batch_size=None,
        **penalties,
    )  # fmt: skip
    np.testing.assert_allclose(res.history["loss"], history, rtol=1e-12)
    np.testing.assert_allclose(res.params, p, rtol=0, atol=1e-12 * np.abs(p).max())
    assert res.fun == NET.value(res.params, X, T, **penalties)


@pytest.mark.parametrize("batch", [N, 4])
def test_masks_and_frozen_layers(backend, data, batch):
    X, T, _ = data
    mask = np.array([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]])
    net = fb.Network(
        3,
        fb.Dense(4, "tanh", mask=mask, bias_mask=[1, 0, 1, 1]),
        fb.Dense(3, "gelu", trainable=False),
        fb.Dense(2, trainable=[[1, 0], [0, 1], [1, 1]]),
    )
    start = net.init(1)
    run = {"epochs": 6, "seed": 4, "lr": 0.05, "l2": 0.1, "l1": 0.02, "group": 0.01}
    if batch == N:  # as stored
        expected = stepwise_as_stored(net, X, T, start, **run)
    else:
        expected = stepwise(net, X, T, "mse", start, batch=batch, **run)
    same_run(fb.fit(net, X, T, method="sgd", params=start, batch_size=batch, **run), *expected)


def stepwise_as_stored(net, X, y, start, epochs, seed, lr, **penalties):
    p, history = start.copy(), []
    for _ in range(epochs):
        value, g = net.value_and_grad(p, X, y, backend="numpy", **penalties)
        history.append(value)
        p = p - lr * g
    return p, np.array(history)


def test_masked_inputs_are_as_good_as_missing(backend, data):
    X, T, _ = data
    wide = fb.Network(3, fb.Dense(4, "tanh", mask=[[1] * 4, [0] * 4, [1] * 4]), fb.Dense(2))
    narrow = fb.Network(2, fb.Dense(4, "tanh"), fb.Dense(2))
    start = np.concatenate([narrow.init(0)[:4], np.full(4, np.nan), narrow.init(0)[4:]])
    run = {"epochs": 12, "batch_size": 4, "seed": 1, "l2": 0.1, "group": 0.1}
    same = fb.fit(narrow, X[:, [0, 2]], T, params=narrow.init(0), **run)
    res = fb.fit(wide, X, T, params=start, **run)
    assert np.isnan(res.params[4:8]).all()
    same_run(same, np.delete(res.params, np.s_[4:8]), res.history["loss"])


def test_weighted_pairs(backend, rng):
    """A pair's weight counts for both rows; a batch is divided by its pairs times the mean."""
    net, n_pairs = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(1)), 9
    X, w = rng.standard_normal((2 * n_pairs, 3)), rng.uniform(0.5, 2, n_pairs)
    p, history = net.init(0), []
    order_rng = np.random.default_rng(np.random.SeedSequence(5).spawn(3)[1])
    for _ in range(6):
        met, order = [], order_rng.permutation(n_pairs)
        for j in range(0, n_pairs, 2):
            pairs = order[j : j + 2]
            rows = np.column_stack([2 * pairs, 2 * pairs + 1]).ravel()
            # The network divides by the weights of these pairs.
            factor = w[pairs].mean() / w.mean()
            value, g = net.value_and_grad(
                p, X[rows], None, "margin_ranking", sample_weight=w[pairs], backend="numpy"
            )
            met.append(factor * value)
            p = p - 0.1 * factor * g
        history.append(np.mean(met))
    res = fb.fit(
        net, X, None, loss="margin_ranking", method="sgd", lr=0.1, params=net.init(0), epochs=6,
        batch_size=4, seed=5, sample_weight=w,
    )  # fmt: skip
    same_run(res, p, history)


def test_adam_without_eps_leaves_alone_what_has_no_gradient(backend, dtype, data):
    X, T, _ = data
    net = fb.Network(3, fb.Dense(4, "tanh"), fb.Dense(2, trainable=False), dtype=dtype)
    start = net.init(0)
    X = X * [1, 0, 1]  # the second input's weights have no gradient either
    res = fb.fit(net, X, T, eps=0.0, params=start, epochs=5, seed=0)
    moved = res.params != start
    assert moved.tolist() == [True] * 4 + [False] * 4 + [True] * 8 + [False] * 10


# Threads.


@pytest.mark.parametrize("loss", ["mse", "margin_ranking", "softmax_ce"])
@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_threads_change_nothing(backend, dtype, rng, loss, method):
    n = 1600  # 7 parts
    net = fb.Network(
        3,
        fb.Dense(5, "tanh", mask=rng.integers(0, 2, (3, 5)), dropout=0.2),
        fb.Dense(1 if loss == "margin_ranking" else 2),
        dtype=dtype,
    )
    X, y = rng.standard_normal((n, 3)), targets(rng, loss, n)
    for batch in (None, 700):  # 700: the last batch of an epoch has one part
        run = {"loss": loss, "method": method, "batch_size": batch, "epochs": 3, "seed": 0}
        one = fb.fit(net, X, y, threads=1, **run)
        for threads in (2, 3, 7):
            res = fb.fit(net, X, y, threads=threads, **run)
            assert res.params.tobytes() == one.params.tobytes()
            assert res.history["loss"].tobytes() == one.history["loss"].tobytes()
            assert res.fun == one.fun


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
    shuffler = loop.Shuffler(np.random.SeedSequence(0), N, 100)
    rng = np.random.default_rng(np.random.SeedSequence(0))
    for epoch in range(8):
        assert shuffler.draw(epoch) == 3 * (epoch // 3 + 1)
        assert np.array_equal(shuffler.orders(epoch, epoch)[0], rng.permutation(N))
    assert shuffler.orders(6, 8).shape == (3, N)


def test_orders_of_pairs(monkeypatch):
    monkeypatch.setattr(loop, "ORDER_ROWS", 3 * 2 * N)
    shuffler = loop.Shuffler(np.random.SeedSequence(0), 2 * N, 100, 2)
    rng = np.random.default_rng(np.random.SeedSequence(0))
    for epoch in range(5):
        assert shuffler.draw(epoch) == 3 * (epoch // 3 + 1)
        pairs = rng.permutation(N)
        expected = [row for i in pairs for row in (2 * i, 2 * i + 1)]
        assert shuffler.orders(epoch, epoch)[0].tolist() == expected
    assert shuffler.orders(3, 4).flags.c_contiguous


def test_orders_take_bounded_memory():
    seed = np.random.SeedSequence(0)
    assert loop.Shuffler(seed, 10, 10**9)._block.size <= loop.ORDER_ROWS
    assert loop.Shuffler(seed, 10**5, 10**9)._block.shape == (1, 10**5)


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
    assert batch_curvature(obj, params, N) == pytest.approx(expected, rel=1e-9)


def test_curvature_of_many_parameters_and_fixed_ones(backend, data):
    X, T, _ = data
    mask = np.arange(60).reshape(3, 20) % 3 > 0
    net = fb.Network(3, fb.Dense(20, "tanh", mask=mask), fb.Dense(2, trainable=False))
    wide = fb.Network(3, fb.Dense(20, "tanh"), fb.Dense(2))
    assert net.n_free < 64 < wide.n_free  # written out, and by products
    for n in (net, wide):
        obj, params = n.objective(X, T, l2=0.3), n.init(2)
        J = obj.jacobian(params)
        expected = np.linalg.eigvalsh(2 * obj.problem.scale * J.T @ J)[-1]
        # What Lanczos' method is asked for is 1e-5.
        assert batch_curvature(obj, params, N) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("width", [4, 40])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_curvature_where_the_network_is_not_finite(backend, data, width, bad):
    X, T, _ = data
    net = fb.Network(3, fb.Dense(width, "tanh"), fb.Dense(2))
    obj = net.objective(X, T)
    assert not np.isfinite(batch_curvature(obj, np.full(net.n_params, bad), N))


def test_curvature_of_a_batch_without_normaliser(backend, data):
    X, T, _ = data
    obj, params = NET.objective(X, T, "sse"), NET.init(2)
    assert batch_curvature(obj, params, 4) == pytest.approx(
        batch_curvature(obj, params, N) * 4 / N, rel=1e-9
    )


def test_curvature_of_many_rows_looks_at_some(backend, rng):
    net = fb.Network(3, fb.Dense(1))
    X = rng.standard_normal((20000, 3)) * [3, 1, 1]
    obj = net.objective(X, np.zeros(20000), "mse")
    J = np.column_stack([X, np.ones(20000)])
    expected = 2 * np.linalg.eigvalsh(J.T @ J / 20000)[-1]
    assert batch_curvature(obj, net.init(0), 20000) == pytest.approx(expected, rel=0.1)


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


@pytest.mark.parametrize("callbacks", [(), [lambda *_: None]], ids=["alone", "called back"])
def test_memory_does_not_grow_with_the_epochs(backend, rng, callbacks):
    """But by the history, a number an epoch: here less than one vector of parameters in all."""
    net = fb.Network.mlp([3, 500, 2])
    X, y = rng.standard_normal((16, 3)), rng.standard_normal((16, 2))

    def peak(epochs):
        tracemalloc.start()
        try:
            fb.fit(net, X, y, epochs=epochs, shuffle=False, seed=0, callbacks=callbacks)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    fb.fit(net, X, y, epochs=1, shuffle=False, seed=0)  # compiles
    peak(1)
    assert peak(500) - peak(10) < net.n_params * X.itemsize
