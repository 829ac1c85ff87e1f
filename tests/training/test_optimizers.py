"""The first-order methods: PyTorch's update rules, on every backend, and the classes.

Golden trajectories come from tools/trajectories.py, that is from mpmath; where torch is installed
it goes along step by step.
"""

from __future__ import annotations

import inspect
import json
import pickle
from dataclasses import fields

import numpy as np
import pytest
from helpers import repository
from helpers.repository import TESTS
from helpers.strategies import Training, new_run

import fastbp as fb
from fastbp.backends.contract import DONE, TrainConfig
from fastbp.maths.formulas.optimizers import KINDS
from fastbp.training.optimizers import METHODS, Adagrad, AdamW, FirstOrder, RMSprop, with_options

GOLDEN = json.loads((TESTS / "oracles" / "trajectories.json").read_text(encoding="utf-8"))
CLASSES = {type(method).__name__: type(method) for method in METHODS.values()}

# As many roundings of the largest entry trajectories may be apart: in float64 1e-12 of it.
ROUNDINGS = 4504


def agree(computed, expected, dtype, what):
    limit = ROUNDINGS * np.finfo(dtype).eps * abs(expected).max()
    off = abs(computed - expected).max()
    assert off <= limit, f"{what}: {off:.3g} off, at most {limit:.3g}"


class Steps:
    """A method's steps on a mean squared error, by a backend, the rows as stored."""

    def __init__(self, module, net, X, y, start, method, batch_size, clip_norm=None):
        clip_norm = np.inf if clip_norm is None else clip_norm
        config = TrainConfig(method.rule, batch_size, True, clip_norm)
        X, y, start = (np.asarray(a, net.dtype) for a in (X, y, start))
        self.module, self.method = module, method
        self.training = Training(net.objective(X, y).problem, config)
        self.run = new_run(start, method.rule)
        self.run.moments[:] = method.initial_moment

    def to(self, step):
        """The parameters after so many steps."""
        steps = np.arange(step)
        self.training.rates = self.method.rates(steps, steps / self.training.steps_per_epoch)
        assert self.training.go(self.module, self.run, step - self.run.step)[0] == DONE
        return self.run.params


def described(run):
    options = ", ".join(f"{key}={value}" for key, value in run["options"].items())
    clipped = f" clipped at {run['clip_norm']}" if run["clip_norm"] else ""
    return f"{run['method']}({options}){clipped}"


@pytest.mark.backend
@pytest.mark.parametrize("golden", GOLDEN["runs"], ids=described)
def test_golden_trajectories(module, dtype, golden):
    net = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1), dtype=dtype)
    method = CLASSES[golden["method"]](**golden["options"])
    steps = Steps(
        module, net, GOLDEN["X"], np.array(GOLDEN["y"])[:, None], GOLDEN["start"], method,
        GOLDEN["batch_size"], golden["clip_norm"],
    )  # fmt: skip
    for step, expected in golden["params"].items():
        agree(steps.to(int(step)), np.array(expected), dtype, f"step {step}")


@pytest.mark.backend
@pytest.mark.parametrize("golden", GOLDEN["runs"], ids=described)
def test_golden_trajectories_of_fits(backend, golden):
    """Twenty epochs of three batches."""
    net = fb.Network(2, fb.Dense(3, "tanh"), fb.Dense(1))
    res = fb.fit(
        net, GOLDEN["X"], GOLDEN["y"], method=CLASSES[golden["method"]](**golden["options"]),
        params=GOLDEN["start"], epochs=20, batch_size=GOLDEN["batch_size"], shuffle=False,
        clip_norm=golden["clip_norm"],
    )  # fmt: skip
    agree(res.params, np.array(golden["params"]["60"]), np.float64, "the end")


def test_golden_trajectories_are_what_the_tool_computes():
    """The first steps; the whole file takes it some seconds."""
    pytest.importorskip("mpmath")
    tool = repository.tool("trajectories")
    computed = json.loads(tool.as_text(tool.generate(steps=(1, 2))))
    for run in GOLDEN["runs"]:
        assert run["params"].keys() == {str(step) for step in tool.STEPS}
    first = [{**run, "params": {s: run["params"][s] for s in "12"}} for run in GOLDEN["runs"]]
    assert computed == {**GOLDEN, "runs": first}


# Beside PyTorch.

PEERS = [
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.02, "momentum": 0.9}),
    ("SGD", {"lr": 0.01, "momentum": 0.3}),
    ("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.05, "momentum": 0.5, "nesterov": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6}),
    ("Adam", {"lr": 0.003, "betas": (0.0, 0.5), "eps": 1e-2}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.5}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.003, "alpha": 0.9, "eps": 1e-4}),
    ("RMSprop", {"lr": 0.003, "alpha": 0.9, "eps": 1e-4, "momentum": 0.8}),
    ("RMSprop", {"lr": 0.003, "alpha": 0.95, "eps": 1e-2, "centered": True}),
    ("RMSprop", {"lr": 0.003, "alpha": 0.9, "eps": 1e-2, "momentum": 0.6, "centered": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.05, "lr_decay": 0.05, "eps": 1e-6}),
    ("Adagrad", {"lr": 0.05, "initial_accumulator_value": 0.5}),
]


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


class Peer:
    """The same network and method in PyTorch, on parameters that have its layout."""

    def __init__(self, torch, net, X, y, start, name, options, batch_size, clip_norm):
        self.torch, self.net, self.clip_norm, self.batch_size = torch, net, clip_norm, batch_size
        self.X, self.y = torch.tensor(X), torch.tensor(y)
        self.pairs = [[torch.tensor(a) for a in pair] for pair in net.unpack(start)]
        self.tensors = [a.requires_grad_() for pair in self.pairs for a in pair]
        self.optimizer = getattr(torch.optim, name)(self.tensors, **options)

    def step(self, k):
        first = k * self.batch_size % len(self.X)
        rows = slice(first, first + self.batch_size)
        (W1, b1), (W2, b2) = self.pairs
        output = self.torch.tanh(self.X[rows] @ W1 + b1) @ W2 + b2
        self.optimizer.zero_grad()
        self.torch.nn.functional.mse_loss(output, self.y[rows]).backward()
        if self.clip_norm is not None:
            self.torch.nn.utils.clip_grad_norm_(self.tensors, self.clip_norm)
        self.optimizer.step()
        return self.net.pack([[a.detach().numpy() for a in pair] for pair in self.pairs])


@pytest.mark.backend
@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize(("name", "options"), PEERS, ids=str)
def test_trajectories_are_pytorch_s(module, dtype, torch, name, options, clip_norm):
    """Ten epochs of four batches, compared after every step."""
    rng = np.random.default_rng(8)
    net = fb.Network(3, fb.Dense(5, "tanh"), fb.Dense(2), dtype=dtype)
    X, y = (rng.standard_normal((24, k)).astype(dtype) for k in (3, 2))
    start, method = net.init(4), CLASSES[name](**({"lr": 0.001} | options))
    options = {"lr": 0.001} | options
    steps = Steps(module, net, X, y, start, method, 6, clip_norm)
    peer = Peer(torch, net, X, y, start, name, options, 6, clip_norm)
    for k in range(40):
        agree(steps.to(k + 1), peer.step(k), dtype, f"step {k}")


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in PEERS))
def test_options_and_defaults_are_pytorch_s(torch, name):
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    for field in fields(CLASSES[name]):
        # PyTorch's 0.001 for SGD is younger; a rate had to be given before.
        expected = 0.01 if (name, field.name) == ("SGD", "lr") else theirs[field.name].default
        assert field.default == expected


# The classes.


def test_names_and_methods():
    usual = {
        "sgd": fb.SGD(0.01),
        "momentum": fb.SGD(0.01, 0.9),
        "nesterov": fb.SGD(0.01, 0.9, nesterov=True),
        "adam": fb.Adam(1e-3, (0.9, 0.999), 1e-8),
        "adamw": AdamW(1e-3, (0.9, 0.999), 1e-8, 0.01),
        "rmsprop": RMSprop(0.01, 0.99, 1e-8, 0.0, False),
        "adagrad": Adagrad(0.01, 0.0, 0.0, 1e-10),
    }
    assert usual.items() <= METHODS.items()
    for name in CLASSES:
        assert getattr(fb, name) is CLASSES[name] and name in fb.__all__


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_are_values(method):
    assert isinstance(method, FirstOrder)
    again = pickle.loads(pickle.dumps(method))
    assert (again, hash(again), repr(again)) == (method, hash(method), repr(method))
    assert with_options(method, {"lr": 0.5}, ()) == type(method)(
        **{field.name: getattr(method, field.name) for field in fields(method)} | {"lr": 0.5}
    )
    assert eval(repr(method), CLASSES) == method


def test_adamw_without_decay_is_adam():
    assert AdamW(0.1, (0.5, 0.6), 1e-3, 0.0).rule == fb.Adam(0.1, (0.5, 0.6), 1e-3).rule


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("centered", [False, True])
def test_rmsprop_carries_what_it_needs(momentum, centered):
    rule = RMSprop(momentum=momentum, centered=centered).rule
    assert rule.n_moments == 1 + bool(momentum) + centered
    assert rule.constants == (0.99, 1e-8, momentum, 0.0)
    assert rule.kind == KINDS["rmsprop" + "_centered" * centered + "_momentum" * bool(momentum)]


@pytest.mark.parametrize("kind", [fb.Adam, AdamW, RMSprop, Adagrad])
def test_an_eps_of_zero_counts_as_the_smallest_normal_number(kind):
    tiny = float(np.finfo(np.float32).tiny)
    assert tiny in kind(eps=0).rule.constants and kind(eps=0).eps == 0


@pytest.mark.backend
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_what_has_no_gradient_stays(module, dtype, method):
    """0/0 does not come up, whatever eps; only a decay changes what has no gradient."""
    if "eps" in vars(method):
        method = with_options(method, {"eps": 0.0}, ())
    net = fb.Network(2, fb.Dense(1), dtype=dtype)
    steps = Steps(module, net, np.zeros((4, 2)), np.ones((4, 1)), [2.0, -3.0, 1.0], method, 4)
    decayed = 1 - method.lr * getattr(method, "weight_decay", 0.0)
    rtol = 8 * np.finfo(dtype).eps if decayed < 1 else 0
    np.testing.assert_allclose(steps.to(1), decayed * np.array([2, -3, 1]), rtol=rtol)
    # The bias had no gradient as long as it was 1.
    np.testing.assert_allclose(steps.to(3)[:2], decayed**3 * np.array([2, -3]), rtol=rtol)


# Rates.


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_rates(method):
    steps = np.arange(6)
    epochs = steps / 2
    constant = method.rates(steps, epochs)
    assert constant.dtype == np.float64 and (constant == method.lr).all()
    changing = with_options(method, {"lr": lambda epoch: 1 / (1 + epoch)}, ())
    assert np.array_equal(changing.rates(steps, epochs), 1 / (1 + epochs))
    with pytest.raises(ValueError, match=r"lr is -0\.5 at epoch 1\.5"):
        with_options(method, {"lr": lambda epoch: 1 - epoch}, ()).rates(steps, epochs)


def test_adagrad_s_decay_is_by_step():
    steps = np.arange(6)
    method = Adagrad(lr=lambda epoch: 2.0**-epoch, lr_decay=0.5)
    expected = 2.0 ** -(steps // 2) / (1 + 0.5 * steps)
    np.testing.assert_allclose(method.rates(steps, steps // 2), expected, rtol=1e-15)


def test_only_adagrad_starts_from_a_sum():
    assert Adagrad(initial_accumulator_value=0.5).initial_moment == 0.5
    assert {method.initial_moment for method in METHODS.values()} == {0.0}


# What they refuse.


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("lr", [0, -1.0, np.inf, np.nan])
def test_rates_must_be_positive(kind, lr):
    with pytest.raises(ValueError, match=r"lr is .*, expected a positive finite rate"):
        kind(lr=lr)


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("lr", ["fast", None, [0.1, 0.2]])
def test_rates_are_numbers_or_functions(kind, lr):
    with pytest.raises(TypeError, match=r"lr is .*, expected a number or a function of the epoch"):
        kind(lr=lr)


SHARES = [(RMSprop, "alpha"), (RMSprop, "momentum"), (fb.SGD, "momentum")]
SIZES = [
    (fb.Adam, "eps"), (AdamW, "eps"), (AdamW, "weight_decay"), (RMSprop, "eps"), (Adagrad, "eps"),
    (Adagrad, "lr_decay"), (Adagrad, "initial_accumulator_value"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), SHARES)
@pytest.mark.parametrize("value", [1, -0.1, np.nan, np.inf])
def test_shares(kind, name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*, expected a number in \[0, 1\)"):
        kind(**{name: value})


@pytest.mark.parametrize(("kind", "name"), SIZES)
@pytest.mark.parametrize("value", [-1e-9, np.nan, np.inf])
def test_sizes(kind, name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*, expected a finite number >= 0"):
        kind(**{name: value})


@pytest.mark.parametrize(("kind", "name"), SHARES + SIZES)
def test_options_are_numbers(kind, name):
    with pytest.raises(TypeError, match=f"{name} is 'small', expected a number"):
        kind(**{name: "small"})


@pytest.mark.parametrize("kind", [fb.Adam, AdamW])
@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), None])
def test_betas_are_two(kind, betas):
    with pytest.raises(TypeError, match=r"betas is .*, expected two numbers"):
        kind(betas=betas)
    with pytest.raises(ValueError, match=r"betas\[0\] is 1\.0"):
        kind(betas=(1.0, 0.9))


def test_unknown_options_name_the_nearest():
    with pytest.raises(TypeError, match=r"(?s)option of RMSprop.*'alhpa'.*alpha"):
        with_options(METHODS["rmsprop"], {"alhpa": 0.5}, ("epochs",))
