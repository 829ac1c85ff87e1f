"""Backends: the contract's signatures, dispatch, and training runs against the reference."""

from __future__ import annotations

import contextvars
import inspect
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import bounds
import numpy as np
import pytest
from bounds import EXACT
from strategies import LOSSES, case, same

import fastbp as fb
from fastbp import backends
from fastbp.backends import contract
from fastbp.backends.contract import Optimizer, Run

# The contract.

FUNCTIONS = {
    name: function
    for name, function in vars(contract).items()
    if inspect.isfunction(function) and function.__module__ == contract.__name__
}


@pytest.mark.backend
@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_the_contracts(module, name):
    expected = inspect.signature(FUNCTIONS[name])
    actual = inspect.signature(getattr(module, name))
    plain = [
        [(p.name, p.kind, p.default) for p in s.parameters.values()] for s in (actual, expected)
    ]
    assert plain[0] == plain[1]


@pytest.mark.backend
def test_backends_have_no_functions_of_their_own(backend, module):
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isroutine(value) or type(value).__module__.startswith("numba"))
        and getattr(value, "__module__", "").startswith(module.__name__)
    }
    # What `show_config` tells is the only thing that is not computed.
    assert public - {"why_missing", "instruction_set", "compiler"} == set(FUNCTIONS)


def test_numbers_of_activations_and_losses_are_distinct():
    from fastbp.activations import TABLE
    from fastbp.losses import ROWS

    kinds = [row.kind for row in TABLE.values()]
    assert sorted(kinds) == list(range(len(TABLE)))
    assert sorted(ROWS) == list(range(len(ROWS)))


# Dispatch.


def python(code, **variables):
    """What a fresh interpreter prints; its errors on failure."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FASTBP_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def restored_default():
    """The process's default backend is put back after the test."""
    before = backends._default
    yield
    backends._default = before


def test_numpy_can_always_run():
    names = fb.available_backends()
    assert names[-1] == "numpy"
    assert names == tuple(name for name in ("c", "numba", "numpy") if name in names)


def test_use_backend_nests_and_restores(restored_default):
    outside = fb.get_backend()
    with fb.use_backend("numpy"):
        assert fb.get_backend() == "numpy"
        for name in fb.available_backends():
            with fb.use_backend(name):
                assert fb.get_backend() == name
                fb.set_backend("numpy")  # of no effect inside
                assert fb.get_backend() == name
            assert fb.get_backend() == "numpy"
        with pytest.raises(KeyError), fb.use_backend(fb.available_backends()[0]):
            raise KeyError
        assert fb.get_backend() == "numpy"
    backends._default = backends.load(outside)
    assert fb.get_backend() == outside


def test_set_backend_holds_for_all_threads_and_use_backend_for_one(restored_default):
    fb.set_backend("numpy")
    seen = []
    with fb.use_backend(fb.available_backends()[0]):
        context = contextvars.Context()  # as a thread without an inherited context has
        thread = threading.Thread(target=lambda: seen.append(context.run(fb.get_backend)))
        thread.start()
        thread.join()
    assert seen == ["numpy"]


def test_backend_argument_comes_first(restored_default):
    net = fb.Network(2, fb.Dense(1, "tanh"))
    params, X = net.init(0), [[0.5, 2.0]]
    with fb.use_backend(fb.available_backends()[0]):
        for name in fb.available_backends():
            with fb.use_backend(name):
                expected = net.forward(params, X)
            assert same(net.forward(params, X, backend=name), expected)
            _, cache = fb.dense_forward(X, np.ones((2, 1)), backend=name)
            assert cache.backend is backends.load(name)


@pytest.mark.parametrize(
    "use",
    [
        fb.set_backend,
        lambda name: fb.use_backend(name).__enter__(),
        lambda name: fb.dense_forward([[1.0]], [[1.0]], backend=name),
        lambda name: fb.activation("tanh").f(1.0, backend=name),
        lambda name: fb.Network(1, fb.Dense(1)).forward([1.0, 0.0], [[1.0]], backend=name),
    ],
)
def test_unknown_backends(use):
    with pytest.raises(ValueError, match=r"unknown backend 'nunba': .*did you mean 'numba'"):
        use("nunba")


def test_missing_backend_says_what_to_do(monkeypatch):
    missing = "Numba is not installed; install it with: pip install numba"
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert "numba" not in fb.available_backends()
    with pytest.raises(fb.BackendError, match=f"backend 'numba' cannot run here: {missing}"):
        backends.load("numba")


@pytest.mark.parametrize("name", fb.available_backends())
def test_environment_variable_sets_the_default(name):
    done = python("import fastbp as fb; print(fb.get_backend())", FASTBP_BACKEND=name)
    assert (done.stdout.strip(), done.stderr) == (name, "")


def test_unknown_environment_variable_is_an_error_at_first_use():
    done = python("import fastbp as fb; print('imported'); fb.get_backend()", FASTBP_BACKEND="C")
    assert done.stdout.strip() == "imported"
    expected = (
        "ValueError: FASTBP_BACKEND: unknown backend 'C': expected one of 'c', 'numba', 'numpy'"
    )
    assert expected in done.stderr
    assert "did you mean 'c'?" in done.stderr


def test_empty_environment_variable_is_none():
    done = python("import fastbp as fb; print(fb.get_backend())", FASTBP_BACKEND="")
    assert done.stdout.strip() == fb.available_backends()[0]


LEVELS = ("baseline", "avx2", "avx512")


@pytest.mark.skipif("c" not in fb.available_backends(), reason="the C library is not built")
def test_instruction_set_can_be_capped_and_levels_agree():
    code = """
import numpy as np, fastbp as fb
from fastbp.backends import native
net = fb.Network.mlp([20, 33, 17, 3])
X, y = np.sin(np.arange(1400.0)).reshape(70, 20), np.cos(np.arange(210.0)).reshape(70, 3)
value, grad = net.value_and_grad(net.init(0), X, y, backend="c")
print(native.instruction_set(), value.hex(), grad.tobytes().hex())
"""
    found = [python(code, FASTBP_MAX_ISA=cap).stdout.split() for cap in LEVELS]
    names = [name for name, _, _ in found]
    highest = names[-1]
    assert names == [min(cap, highest, key=LEVELS.index) for cap in LEVELS]
    values = [float.fromhex(value) for _, value, _ in found]
    grads = [np.frombuffer(bytes.fromhex(grad)) for _, _, grad in found]
    for value, grad in zip(values, grads, strict=True):
        agree(value, values[0], "value")
        agree(grad, grads[0], "gradient")
    unknown = python("import fastbp as fb; fb.available_backends()", FASTBP_MAX_ISA="avx3")
    assert "ValueError: FASTBP_MAX_ISA: unknown instruction set 'avx3': " in unknown.stderr


# Training.

OPTIMIZERS = {
    "sgd": Optimizer(contract.SGD, 0, (0.0,)),
    "momentum": Optimizer(contract.SGD, 1, (0.9,)),
    "nesterov": Optimizer(contract.NESTEROV, 1, (0.8,)),
    "adam": Optimizer(contract.ADAM, 2, (0.9, 0.999, 1e-8)),
}


def new_run(params, optimizer):
    moments = np.zeros((optimizer.n_moments, params.size), params.dtype)
    return Run(params.copy(), moments, np.array([params, params]), np.zeros(3))


def copy_of(run):
    return Run(run.params.copy(), run.moments.copy(), run.good.copy(), run.monitor.copy(), run.step)


@dataclass
class Training:
    """A problem and how to train on it; `go` does the next steps of a run."""

    problem: contract.Problem
    optimizer: Optimizer
    batch_size: int
    order: np.ndarray | None = None
    rates: np.ndarray | None = None
    averaged: bool = True
    rate: float = 0.02

    @property
    def steps_per_epoch(self):
        return -(-len(self.problem.X) // self.batch_size)

    def go(self, module, run, n_steps, total=None):
        """(code, losses of the epochs touched); `total` holds those of the whole run."""
        first, last = (k // self.steps_per_epoch for k in (run.step, run.step + n_steps - 1))
        rates = np.array([self.rate])
        if self.rates is not None:
            rates = np.ascontiguousarray(self.rates[run.step : run.step + n_steps])
        order = None if self.order is None else np.ascontiguousarray(self.order[first : last + 1])
        losses = np.zeros(last - first + 1) if total is None else total[first : last + 1]
        code = module.train(
            self.problem, self.optimizer, run, n_steps, self.batch_size, self.averaged, order,
            rates, losses,
        )  # fmt: skip
        return code, losses

    def batch(self, step):
        """The places of a step's rows."""
        epoch, j = divmod(step, self.steps_per_epoch)
        rows = np.arange(len(self.problem.X)) if self.order is None else self.order[epoch]
        return rows[j * self.batch_size : (j + 1) * self.batch_size]


def training(seed, dtype, method, loss="mse", n=23, batch_size=5, act="tanh", **options):
    """A run's ingredients; shuffled, weighted, penalised and with changing rates by the seed."""
    rng = np.random.default_rng(seed)
    shuffled, weighted, changing = seed & 1, seed & 2, seed & 4
    c = case(
        rng, [4, 9, 6, 3], [act, "sigmoid", "linear"], dtype, n, loss, bool(weighted),
        l2=0.05 * (seed % 3),
    )  # fmt: skip
    problem = c.net.objective(c.X, c.y, loss, **c.terms).problem
    order = np.array([rng.permutation(n) for _ in range(20)]) if shuffled else None
    rates = rng.uniform(0.005, 0.02, 200) if changing else None
    options = {"averaged": loss != "sse", "rate": 0.002 if loss == "sse" else 0.02} | options
    if loss == "sse" and rates is not None:
        rates /= 10
    t = Training(problem, OPTIMIZERS[method], batch_size, order, rates, **options)
    return c, t, new_run(c.params, t.optimizer)


def agree(computed, expected, what):
    computed, expected = np.asarray(computed), np.asarray(expected)
    assert computed.shape == expected.shape
    worst = abs(computed - expected).max(initial=0)
    assert worst <= 1e-12 * abs(expected).max(initial=0), f"{what}: {worst} off"


def agree_runs(computed, expected):
    assert computed.step == expected.step
    agree(computed.params, expected.params, "params")
    for k, (a, b) in enumerate(zip(computed.moments, expected.moments, strict=True)):
        agree(a, b, f"moments {k}")
    for k in range(2):
        agree(computed.good[k], expected.good[k], f"good {k}")
    for k in range(3):
        agree(computed.monitor[k], expected.monitor[k], f"monitor {k}")


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(8))
def test_training_agrees_with_the_reference(module, method, loss, seed):
    """Chunks that begin and end within epochs, the last batch of each smaller."""
    reference = backends.load("numpy")
    _, t, run = training(seed, "float64", method, loss, act=["tanh", "relu"][seed % 2])
    expected = copy_of(run)
    for n_steps in (1, 3, 9, 5, 20):
        code, losses = t.go(module, run, n_steps)
        expected_code, expected_losses = t.go(reference, expected, n_steps)
        assert code == expected_code == contract.DONE
        agree(losses, expected_losses, "losses")
        agree_runs(run, expected)


@pytest.mark.backend
@pytest.mark.parametrize("n, batch_size", [(1, 1), (7, 7), (64, 32), (65, 64), (300, 300), (70, 1)])
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_training_agrees_for_any_batch_size(module, method, n, batch_size):
    _, t, run = training(3, "float64", method, n=n, batch_size=batch_size)
    expected = copy_of(run)
    for n_steps in (2, 11):
        _, losses = t.go(module, run, n_steps)
        _, expected_losses = t.go(backends.load("numpy"), expected, n_steps)
        agree(losses, expected_losses, "losses")
        agree_runs(run, expected)


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_step_is_within_rounding(module, dtype, method, loss):
    """Each step from where the backend itself stood before it, in extended precision."""
    c, t, run = training(7, dtype, method, loss, act="leaky_relu")
    weights = t.problem.weights
    for k in range(12):
        before, rows = copy_of(run), t.batch(k)
        factor = EXACT(t.problem.scale)
        if t.averaged:
            factor *= EXACT(len(c.X)) / len(rows)
        objective, grad = bounds.objective(
            c.net, before.params, c.X[rows], c.y[rows], loss,
            None if weights is None else weights[rows], t.problem.l2, factor,
        )  # fmt: skip
        rate = t.rate if t.rates is None else t.rates[k]
        params, moments = bounds.step(
            method, t.optimizer.constants, before.params, before.moments, grad, rate, k + 1, dtype
        )
        code, losses = t.go(module, run, 1)
        assert (code, run.step) == (contract.DONE, k + 1)
        objective.check(run.monitor[2], f"objective of step {k}")
        objective.check(losses[0], f"loss of step {k}")
        for bound, computed in zip(moments, run.moments, strict=True):
            bound.check(computed, f"moments of step {k}")
        params.check(run.params, f"params of step {k}")
        if method != "adam":  # whose first steps hang on the sign of the gradient
            params.check_sharp(200 * np.finfo(dtype).eps)


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_chunks_of_steps_are_one_run_bitwise(module, dtype, method):
    _, t, run = training(7, dtype, method)
    whole = copy_of(run)
    _, losses = t.go(module, whole, 20)
    parts = np.zeros(4)
    for n_steps in (1, 3, 2, 9, 5):
        t.go(module, run, n_steps, parts)
    assert same(
        [run.params, run.moments, run.good, run.monitor, parts],
        [whole.params, whole.moments, whole.good, whole.monitor, losses],
    )


@pytest.mark.backend
def test_training_repeats_bitwise_and_leaves_its_inputs(module, dtype):
    _, t, run = training(7, dtype, "adam", "bce_logits")
    p = t.problem
    inputs = [p.X, p.targets, p.weights, t.order, t.rates, p.plan.layers]
    before = [a.copy() for a in inputs]
    again = copy_of(run)
    assert same(t.go(module, run, 17), t.go(module, again, 17))
    assert same([run.params, run.moments, run.good], [again.params, again.moments, again.good])
    assert same(inputs, before)


@pytest.mark.backend
def test_threads_train_on_one_problem(module, dtype):
    """The problem and its plan are shared, the runs are not."""
    _, t, run = training(7, dtype, "adam", n=70, batch_size=32)
    expected = copy_of(run)
    losses = t.go(module, expected, 30)[1]
    runs = [copy_of(run) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda r: t.go(module, r, 30), runs))
    for r, result in zip(runs, results, strict=True):
        assert same(result, (contract.DONE, losses))
        assert same([r.params, r.moments], [expected.params, expected.moments])


@pytest.mark.backend
def test_losses_are_added_to_what_is_there(module):
    _, t, run = training(0, "float64", "sgd")
    losses = np.array([1000.0])
    args = (t.problem, t.optimizer, run, 1, 5, True, None, np.array([0.01]), losses)
    module.train(*args)
    assert losses[0] == pytest.approx(1000 + run.monitor[2], rel=1e-15)
    assert run.monitor[0] == run.monitor[2]


@pytest.mark.backend
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_non_finite_objective_stops_before_its_update(module, dtype, method, bad):
    """Row 11 is bad: it comes in batch 2 of 5 of the first epoch."""
    _, t, run = training(0, dtype, method)
    X = t.problem.X.copy()
    X[11, 1] = bad
    before = copy_of(run)
    t.go(module, before, 2)
    targets = t.problem.targets.copy()
    targets[11] = bad
    for problem in (
        replace(t.problem, X=X, handles={}),
        replace(t.problem, targets=targets, handles={}),
    ):
        bad_run = new_run(run.params, t.optimizer)
        spoilt = replace(t, problem=problem)
        if problem.X is X and np.isinf(bad):
            continue  # tanh takes infinities
        code, losses = spoilt.go(module, bad_run, 17)
        assert code == contract.NON_FINITE_OBJECTIVE
        assert bad_run.step == 2
        assert same(bad_run.params, before.params) and same(bad_run.moments, before.moments)
        assert same(bad_run.good, np.array([run.params, run.params]))
        assert not np.isfinite(bad_run.monitor[2]) and not np.isfinite(losses[0])
        assert bad_run.monitor[0] == before.monitor[0]


@pytest.mark.backend
def test_non_finite_objective_in_a_later_epoch_keeps_the_last_good_start(module):
    _, t, run = training(0, "float64", "sgd")
    t.go(module, run, 5)
    good = run.params.copy()  # the start of epoch 1, found good when epoch 1 completes
    t.go(module, run, 5)
    start = run.params.copy()
    targets = np.full_like(t.problem.targets, np.nan)
    spoilt = replace(t, problem=replace(t.problem, targets=targets, handles={}))
    code, losses = spoilt.go(module, run, 30)
    assert (code, run.step) == (contract.NON_FINITE_OBJECTIVE, 10)
    assert same(run.params, start) and same(run.good, np.array([good, start]))
    assert np.isnan(losses[0]) and not losses[1:].any()


@pytest.mark.backend
@pytest.mark.parametrize("method", OPTIMIZERS)
def test_non_finite_parameters_stop_at_the_end_of_the_epoch(module, dtype, method):
    _, t, run = training(0, dtype, method, batch_size=23, rate=np.inf)
    start = run.params.copy()
    code, losses = t.go(module, run, 4)
    assert (code, run.step) == (contract.NON_FINITE_PARAMETERS, 1)
    assert same(run.good, np.array([start, start]))
    assert losses[0] == run.monitor[2] == run.monitor[0] and not losses[1:].any()


@pytest.mark.backend
@pytest.mark.parametrize("batch_size", [8, 2])
def test_growth_stops_after_three_epochs_above_the_limit(module, dtype, batch_size):
    """A linear model with a rate beyond stability grows by a steady factor."""
    rng = np.random.default_rng(1)
    c = case(rng, [2, 1], ["linear"], dtype, 8)
    problem = c.net.objective(c.X, c.y).problem
    t = Training(problem, OPTIMIZERS["sgd"], batch_size, rate=2.0 if batch_size == 8 else 1.0)
    run, expected = (new_run(c.params, t.optimizer) for _ in range(2))
    reference = backends.load("numpy")
    expected_code, _ = t.go(reference, expected, 400)
    assert expected_code == contract.GROWN and expected.step < 400
    assert expected.step % t.steps_per_epoch == 0
    code, losses = t.go(module, run, 400)
    assert (code, run.step) == (contract.GROWN, expected.step)
    epochs = run.step // t.steps_per_epoch
    means = losses[:epochs] / t.steps_per_epoch
    above = means > contract.GROWTH_LIMIT * run.monitor[0]
    assert list(above[-4:]) == [False, True, True, True] and run.monitor[1] == 3
    # Count and losses go on from call to call; good is the start of the last epoch not beyond.
    parts, total, starts = new_run(c.params, t.optimizer), np.zeros(400), []
    code = contract.DONE
    while code == contract.DONE:
        if parts.step % t.steps_per_epoch == 0:
            starts.append(parts.params.copy())
        code, _ = t.go(module, parts, 1, total)
    assert code == contract.GROWN and parts.step == run.step
    assert same([parts.params, parts.good, parts.monitor], [run.params, run.good, run.monitor])
    assert same(run.good, np.array([starts[-4], starts[-1]]))


@pytest.mark.backend
def test_growth_must_be_in_a_row(module, dtype):
    """Two epochs above the limit, one below, two above: no stop."""
    c = case(np.random.default_rng(2), [2, 1], ["linear"], dtype, 3)
    t = Training(c.net.objective(c.X, c.y).problem, OPTIMIZERS["sgd"], 3, rate=0.0)
    far = np.full_like(c.params, 1e5)
    run = new_run(c.params, t.optimizer)
    t.go(module, run, 1)
    run.monitor[0] = 1.0
    for params, count in [(far, 1), (far, 2), (c.params, 0), (far, 1), (far, 2)]:
        run.params[:] = params
        assert t.go(module, run, 1)[0] == contract.DONE
        assert run.monitor[1] == count
    run.params[:] = far
    assert t.go(module, run, 1)[0] == contract.GROWN


@pytest.mark.backend
@pytest.mark.parametrize("share, count", [(0.9, 0), (1.1, 1)])
def test_growth_is_of_the_mean_over_an_epochs_batches(module, dtype, share, count):
    c = case(np.random.default_rng(2), [2, 1], ["linear"], dtype, 3)
    t = Training(c.net.objective(c.X, c.y).problem, OPTIMIZERS["sgd"], 1, rate=0.0)
    run = new_run(c.params, t.optimizer)
    _, losses = t.go(module, run, 3)
    run.monitor[0] = losses[0] / 3 / share / contract.GROWTH_LIMIT
    t.go(module, run, 3)
    assert run.monitor[1] == count


@pytest.mark.backend
def test_good_parameters_lag_one_epoch(module, dtype):
    _, t, run = training(1, dtype, "momentum")
    starts = [run.params.copy()]
    for epoch in range(3):
        t.go(module, run, 2)  # inside the epoch: the last completed one's start, and its own
        assert same(run.good, np.array([starts[max(epoch - 1, 0)], starts[epoch]]))
        t.go(module, run, 3)
        assert same(run.good[0], starts[epoch])
        starts.append(run.params.copy())


@pytest.mark.backend
def test_floating_point_mode_is_restored_on_every_way_out(module, dtype):
    """Subnormal numbers may be flushed inside, never after."""
    _, t, run = training(0, dtype, "adam")
    small = np.array([np.finfo(dtype).smallest_subnormal])
    _, spoilt, bad_run = training(0, dtype, "adam")
    spoilt.problem.targets[3] = np.nan
    for tr, r, code in [(t, run, contract.DONE), (spoilt, bad_run, contract.NON_FINITE_OBJECTIVE)]:
        assert tr.go(module, r, 5)[0] == code
        assert (small * 3 > small).all() and (small / 1 == small).all()
