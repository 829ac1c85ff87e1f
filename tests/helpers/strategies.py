"""Inputs for the tests: random networks and data, seeded or drawn by hypothesis; nasty arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

import fastbp as fb
from fastbp.backends import contract
from fastbp.backends.contract import Optimizer, TrainConfig, TrainState
from fastbp.maths.activations import NAMES
from fastbp.maths.losses import TABLE, Loss, loss as loss_of
from fastbp.training.optimizers import METHODS


def _bump(z):
    return z / (1 + z * z)


def _bump_derivative(z):
    return (1 - z * z) / (1 + z * z) ** 2


def _bump_second(z):
    return 2 * z * (z * z - 3) / (1 + z * z) ** 3


def _quartic(y, t):
    d = y - t
    return d**4 + 0.5 * d * d, 4 * d**3 + d


def _quartic_second(y, t):
    return 12 * (y - t) ** 2 + 1


# User-defined functions, at module level so that they survive pickling.
BUMP = fb.Activation("bump", _bump, _bump_derivative, _bump_second)
QUARTIC = fb.custom_loss(_quartic, _quartic_second, name="quartic")

# The whole tables, parameters other than the usual ones, and user-defined functions.
EVERY_ACTIVATION = (
    *NAMES, fb.relu(0.5), fb.leaky_relu(0.3), fb.leaky_relu(0.0), fb.elu(0.5), fb.celu(2.0), BUMP,
)  # fmt: skip
EVERY_LOSS = (
    *TABLE, fb.huber(0.5), fb.quantile(0.2), fb.margin_ranking(0.25), QUARTIC,
)  # fmt: skip
# Those with two derivatives everywhere.
SMOOTH_ACTIVATIONS = (
    "linear", "tanh", "sigmoid", "softplus", "gelu", "gelu_tanh", "silu", "mish", "exp", "sin",
    BUMP,
)  # fmt: skip
SMOOTH_LOSSES = (
    "mse", "half_mse", "sse", "log_cosh", "bce_logits", "poisson", "softmax_ce", "gaussian_nll",
    "gaussian_kl", QUARTIC,
)  # fmt: skip


@dataclass
class Case:
    """A network with parameters and data, and the loss and terms of an objective."""

    net: fb.Network
    params: np.ndarray
    X: np.ndarray
    y: np.ndarray | None
    loss: str | Loss = "mse"
    terms: dict = field(default_factory=dict)

    def __repr__(self):
        terms = {key: np.asarray(value).tolist() for key, value in self.terms.items()}
        return f"{self.net}\n{len(self.X)} rows, {self.loss}, {terms}"

    @property
    def arguments(self):
        return self.params, self.X, self.y, self.loss

    @property
    def problem(self):
        """The problem for a backend; its parameters are `effective`."""
        return self.net.objective(self.X, self.y, self.loss, **self.terms).problem

    @property
    def effective(self):
        """The parameters with zeros where a mask is."""
        return self.net.checked_params(self.params)


def n_out_for(loss, n_out):
    """The number of outputs next to `n_out` that the loss can take."""
    loss = loss_of(loss)
    if loss.paired:
        return 1
    if loss.name.startswith("gaussian"):
        return n_out + n_out % 2
    return max(n_out, 2) if loss.target == "classes" else n_out


def n_for(loss, n):
    """The number of rows next to `n` that the loss can take."""
    return n + n % 2 if loss_of(loss).paired else n


def target(rng, loss, n, n_out, dtype, rows_of_probabilities=False):
    """Targets of the form that the loss expects, n_out the network's."""
    form = loss_of(loss).target
    if form == "none":
        return None
    if form == "probabilities":
        return rng.choice([0.0, 0.25, 1.0], (n, n_out)).astype(dtype)
    if form == "signs":
        return rng.choice([-1.0, 1.0], (n, n_out)).astype(dtype)
    if form == "counts":
        return rng.integers(6, size=(n, n_out)).astype(dtype)
    if form == "classes":
        if not rows_of_probabilities:
            return rng.integers(n_out, size=n)
        y = rng.integers(1, 9, (n, n_out)).astype(dtype)
        return y / y.sum(axis=1, keepdims=True)
    return rng.standard_normal((n, n_out // 2 if form == "halves" else n_out)).astype(dtype)


def weights(rng, n, dtype):
    """Sample weights, some of them 0, not all."""
    w = rng.choice([0.0, 0.5, 1.0, 2.25], n).astype(dtype)
    w[rng.integers(n)] = 1.5
    return w


def case(
    rng, sizes, activations, dtype="float64", n=9, loss="mse", weighted=False, l2=0.0, bias=True
):
    """Network n_in, sizes..., with the activations in turn; parameters that reach every regime."""
    n_in, *sizes = sizes
    layers = [fb.Dense(size, act, bias=bias) for size, act in zip(sizes, activations, strict=True)]
    net = fb.Network(n_in, *layers, dtype=dtype)
    return case_of(rng, net, n, loss, weighted, **({"l2": l2} if l2 else {}))


def case_of(rng, net, n=9, loss="mse", weighted=False, **penalties):
    """Parameters and data for a network."""
    dtype = net.dtype
    params = net.init(rng) + 0.3 * rng.standard_normal(net.n_params).astype(dtype)
    X = rng.standard_normal((n, net.n_in)).astype(dtype)
    y = target(rng, loss, n, net.n_out, dtype, weighted)
    return Case(net, params, X, y, loss, _weights_of(rng, loss, n, dtype, weighted) | penalties)


def case_with(loss, act, dtype="float64", n=9, weighted=True, **terms):
    """Layers 5 - 7 - 6 - 3 (or what the loss takes) with a mask; all dimensions differ."""
    rng = np.random.default_rng(12)
    n, n_out = n_for(loss, n), n_out_for(loss, 3)
    layers = [fb.Dense(7, act, mask=rng.random((5, 7)) < 0.8), fb.Dense(6, "tanh", bias=False)]
    last = fb.Dense(n_out, "sigmoid" if loss == "bce" else "linear")
    c = case_of(rng, fb.Network(5, *layers, last, dtype=dtype), n, loss, weighted, **terms)
    c.params *= c.net.dtype.type(0.7)  # e^e^z stays small
    return c


def _weights_of(rng, loss, n, dtype, weighted):
    count = n // 2 if loss_of(loss).paired else n
    return {"sample_weight": weights(rng, count, dtype)} if weighted else {}


# Training runs.

OPTIMIZERS = {
    "sgd": Optimizer.of("sgd"),
    "momentum": Optimizer.of("momentum", 0.9),
    "nesterov": Optimizer.of("nesterov", 0.8),
    "adam": Optimizer.of("adam", 0.9, 0.999, 1e-8),
    "adamw": Optimizer.of("adam", 0.9, 0.99, 1e-8, decay=0.3),
    "rmsprop": Optimizer.of("rmsprop", 0.9, 1e-8),
    "rmsprop momentum": Optimizer.of("rmsprop_momentum", 0.9, 1e-8, 0.8),
    "rmsprop centered": Optimizer.of("rmsprop_centered", 0.9, 1e-3),
    "rmsprop both": Optimizer.of("rmsprop_centered_momentum", 0.9, 1e-3, 0.8),
    "adagrad": Optimizer.of("adagrad", 1e-10),
}
# Rules that are not among them have the constants of their method.
_KINDS = {optimizer.kind for optimizer in OPTIMIZERS.values()}
OPTIMIZERS |= {name: m.rule for name, m in METHODS.items() if m.rule.kind not in _KINDS}


def new_run(params, optimizer, seed=0):
    moments = np.zeros((optimizer.n_moments, params.size), params.dtype)
    monitor = np.array([0, 0, 0, np.inf, np.inf, 0])
    good, average = np.array([params, params]), np.zeros(params.size)
    return TrainState(params.copy(), moments, good, params.copy(), average, monitor, seed)


ARRAYS = ("params", "moments", "good", "best", "average", "monitor")  # of a TrainState


def copy_of(run):
    return TrainState(*(getattr(run, name).copy() for name in ARRAYS), run.seed, run.step)


@dataclass
class Training:
    """A problem and how to train on it; `go` does the next steps of a run."""

    problem: contract.Problem
    config: TrainConfig
    order: np.ndarray | None = None
    rates: np.ndarray | None = None
    rate: float = 0.02
    held_out: Case | None = None  # the validation's data

    def having(self, **options):
        """The same with other options of the config."""
        return replace(self, config=replace(self.config, **options))

    @property
    def steps_per_epoch(self):
        return -(-len(self.problem.X) // self.config.batch_size)

    def buffers(self, n_steps):
        """Zeros for the losses and validation values of a run of so many steps from its start."""
        epochs = -(-n_steps // self.steps_per_epoch)
        return np.zeros(epochs), np.zeros(epochs if self.config.validation else 0)

    def go(self, module, run, n_steps, total=None, validation=None):
        """(code, losses of the epochs touched).

        `total` and `validation`, arrays of one number per epoch of the run, are updated in place.
        """
        first, last = (k // self.steps_per_epoch for k in (run.step, run.step + n_steps - 1))
        rates = np.array([self.rate])
        if self.rates is not None:
            rates = np.ascontiguousarray(self.rates[run.step : run.step + n_steps])
        order = None if self.order is None else np.ascontiguousarray(self.order[first : last + 1])
        if total is None:
            total = np.zeros(last + 1)
        if validation is None:
            validation = self.buffers(run.step + n_steps)[1]
        losses, validation = total[first : last + 1], validation[first : last + 1]
        # Backends do not check these.
        assert len(losses) == last - first + 1 and (order is None or len(order) == len(losses))
        assert len(rates) in (1, n_steps)
        assert len(validation) == (len(losses) if self.config.validation else 0)
        code = module.train(
            self.problem, self.config, run, n_steps, order, rates, losses, validation
        )
        return code, losses

    def batch(self, step):
        """The places of a step's rows."""
        epoch, j = divmod(step, self.steps_per_epoch)
        rows = np.arange(len(self.problem.X)) if self.order is None else self.order[epoch]
        return rows[j * self.config.batch_size : (j + 1) * self.config.batch_size]

    def rate_of(self, step):
        return self.rate if self.rates is None else self.rates[step]


def training(
    seed, dtype, method, loss="mse", n=23, batch_size=5, act="tanh", fixed=False, dropout=0.0,
    rate=None, validation=0, widths=(9, 6), **options,
):  # fmt: skip
    """A run's ingredients; shuffled, weighted, penalised and with changing rates by the seed.

    `validation` is its number of rows, `widths` the hidden layers'; `options` are the config's.
    """
    rng = np.random.default_rng(seed)
    shuffled, weighted, changing = seed & 1, bool(seed & 2), seed & 4
    n, batch_size = n_for(loss, n), n_for(loss, batch_size)
    n_out, last = n_out_for(loss, 3), "sigmoid" if loss == "bce" else "linear"
    first, second = widths
    hidden = {}
    if fixed:
        hidden = {"mask": rng.random(widths) < 0.6, "bias_mask": rng.random(second) < 0.6}
    net = fb.Network(
        4,
        fb.Dense(
            first, act, trainable=rng.random((4, first)) < 0.5 if fixed else True, dropout=dropout
        ),
        fb.Dense(second, "sigmoid", dropout=dropout / 2, **hidden),
        fb.Dense(n_out, last),
        dtype=dtype,
    )
    penalties = ({}, {"l2": 0.05}, {"l1": 0.01, "group": 0.02})[seed % 3]
    c = case_of(rng, net, n, loss, weighted, **penalties)
    order = np.array([permuted(rng, loss, n) for _ in range(20)]) if shuffled else None
    averaged = loss_of(loss).averaged
    rates = rng.uniform(0.005, 0.02, 200) / (1 if averaged else 10) if changing else None
    if rate is None:
        rate = 0.02 if averaged else 0.002
    config = TrainConfig(OPTIMIZERS[method], batch_size, averaged, **options)
    t = Training(c.problem, config, order, rates, rate)
    if validation:
        held_out = case_of(rng, net, n_for(loss, validation), loss, weighted, **penalties)
        t = replace(t.having(validation=held_out.problem), held_out=held_out)
    return c, t, new_run(c.effective, config.optimizer, 2**64 - 1 - seed)


def permuted(rng, loss, n):
    """An order of the rows that keeps pairs together."""
    if not loss_of(loss).paired:
        return rng.permutation(n)
    return (2 * rng.permutation(n // 2)[:, None] + [0, 1]).ravel()


# Drawn by hypothesis. Plain choices and small numbers come first: to those an example shrinks.


@st.composite
def networks(
    draw, dtype, activations=EVERY_ACTIVATION, n_out=None, masks=False, dropout=False, width=33
):
    """Networks of depth 1 to 4 and widths 1 to `width`.

    Parameters
    ----------
    n_out : callable, optional
        Number of outputs -> number of outputs: makes it one that suits.
    masks, dropout : bool
        Whether masked and frozen entries, and dropout, are among the options.
    """
    sizes = draw(st.lists(st.integers(1, width), min_size=2, max_size=5))
    if n_out is not None:
        sizes[-1] = n_out(sizes[-1])
    layers = []
    for k, shape in enumerate(pairwise(sizes)):
        options = {"bias": draw(st.sampled_from([True, False]))}
        if masks:
            options |= draw(_fixed(shape, options["bias"]))
        if dropout and k < len(sizes) - 2:
            options["dropout"] = draw(st.sampled_from([0.0, 0.5, 0.125]))
        layers.append(fb.Dense(shape[1], draw(st.sampled_from(activations)), **options))
    return fb.Network(sizes[0], *layers, dtype=dtype)


@st.composite
def _fixed(draw, shape, bias):
    """Masks and frozen entries of a layer W of that shape."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def chosen(shape):
        return rng.random(shape) < 0.6

    options = {}
    if draw(st.booleans()):
        options["mask"] = chosen(shape)
    if bias and draw(st.booleans()):
        options["bias_mask"] = chosen(shape[1])
    kind = draw(st.sampled_from(["free", "frozen", "partly frozen"]))
    if kind != "free":
        options["trainable"] = chosen(shape) if kind == "partly frozen" else False
    return options


@st.composite
def cases(
    draw, dtype, activations=EVERY_ACTIVATION, losses=EVERY_LOSS, penalties=(), rows=40,
    grains=(0.0, 2**-9, 0.5), **options,
):  # fmt: skip
    """Networks of depth 1 to 4, widths 1 to 33, activations and losses, weights, penalties.

    Parameters and data are multiples of one of `grains`: all 0, or numbers of 10 bits, or few
    numbers, which meet corners and each other often. `options` are those of `networks`.
    """
    loss = draw(st.sampled_from(losses))
    net = draw(networks(dtype, activations, lambda size: n_out_for(loss, size), **options))
    n = n_for(loss, draw(st.integers(1, rows)))
    # By a seed, so that hypothesis generates and shrinks fast.
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    grain = draw(st.sampled_from(grains))
    X = _grainy(rng, (n, net.n_in), grain, dtype)
    params = _grainy(rng, net.n_params, grain, dtype)
    terms = _weights_of(rng, loss, n, dtype, draw(st.booleans()))
    terms |= {name: draw(st.sampled_from([0.0, 0.125])) for name in penalties}
    y = target(rng, loss, n, net.n_out, dtype, draw(st.booleans()))
    return Case(net, params, X, y, loss, terms)


def _grainy(rng, shape, grain, dtype):
    values = rng.standard_normal(shape)
    return (np.round(values / grain) * grain if grain else 0 * values).astype(dtype)


# Nasty arrays.


def shifted(array, offset):
    """The same numbers, `offset` bytes behind a multiple of 64."""
    buffer = np.zeros(array.nbytes + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    result = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


def nasty_layouts(array):
    """Name -> an array of the same values and dtype that is laid out in an unusual way."""
    n = array.ndim
    spread = np.full([2 * size + 1 for size in array.shape], -7, array.dtype)
    every_second = spread[(slice(1, None, 2),) * n + (...,)]
    every_second[...] = array
    reverse = (slice(None, None, -1),) * n + (...,)
    backwards = array[reverse].copy()[reverse]
    read_only = array.copy()
    read_only.flags.writeable = False
    return {
        "byte-swapped": array.astype(array.dtype.newbyteorder()),
        "every second": every_second,
        "negative strides": backwards,
        "Fortran order": array.copy(order="F"),
        "transposed": np.array(array.T).T,
        "read-only": read_only,
        "misaligned by 1": shifted(array, 1),
        "misaligned by 4": shifted(array, 4),
        "misaligned by 8": shifted(array, 8),
        "subclass": array.view(type("Subclass", (np.ndarray,), {})),
    }


def nasty_types(array):
    """Name -> the same whole numbers (0 and 1 suit all) in another type."""
    return {
        "float16": array.astype(np.float16),
        "longdouble": array.astype(np.longdouble),
        "other float": array.astype("f8" if array.dtype == np.float32 else "f4"),
        "int64": array.astype(np.int64),
        "uint8": array.astype(np.uint8),
        "bool": array.astype(bool),
        "list": array.tolist(),
        "tuple of lists": tuple(array.tolist()),
    }


def bits(array):
    """What makes two arrays the same: type, shape and bytes."""
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


def same(a, b):
    """Whether two results (nested tuples, lists, numbers, arrays, None) are bitwise the same."""
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if a is None or b is None:
        return a is b
    return bits(a) == bits(b)


def attempt(call):
    """The error that a call raises, as type and message; None if it returns."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None
