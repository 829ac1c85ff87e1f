"""Random kernels, networks and training runs against the mathematics, until the time is over.

    python -m tests.helpers.fuzz --seconds 60 --seed 1 [--backend c|numba] [--max-isa avx2]

Runs at the repository's root, one process for each backend and instruction-set level. A case is a
few plain numbers and names, drawn from (seed, index); its arrays follow from them. Results are held
against extended precision within the bounds of oracles/bounds.py, second derivatives and Hessian
products against the reference, the decisions of training runs against plain Python. A failing case
is made smaller while it fails and printed as a program that fails; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, fields, replace
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
if str(TESTS) not in sys.path:  # as a module of `tests`, which is no package
    sys.path.insert(0, str(TESTS))

import numpy as np
from oracles import bounds
from oracles.bounds import EXACT, Approx, exact, gamma
from oracles.transcript import follow

import fastbp as fb
from fastbp import backends
from fastbp.backends.contract import DONE, GOAL_MET, NO_PROGRESS, TrainConfig
from fastbp.maths.losses import loss as loss_of
from helpers.strategies import (
    ARRAYS,
    EVERY_ACTIVATION,
    EVERY_LOSS,
    OPTIMIZERS,
    Training,
    case_of,
    copy_of,
    n_for,
    n_out_for,
    nasty_layouts,
    new_run,
    permuted,
    same,
)

REFERENCE = backends.load("numpy")
LEVELS = ("baseline", "avx2", "avx512")
MOST_FAILURES = 5
LEAST_CASES = 30  # whatever the time: Numba compiles in the first ones


def _by_name(choices):
    named = ((c if isinstance(c, str) else f"{c.name}({c.constant:g})", c) for c in choices)
    return dict(named)


ACTIVATIONS, LOSSES = _by_name(EVERY_ACTIVATION), _by_name(EVERY_LOSS)
# The user-defined one is plain arithmetic, which overflows before its result does.
BUILT_IN = tuple(
    name for name, act in ACTIVATIONS.items() if fb.activation(act).formulas is not None
)

DTYPES = ("float64", "float32")
VALUES = ("moderate", "whole", "spread", "subnormal", "huge", "mixed")
LAYOUTS = (
    "plain", "transposed", "every second", "negative strides", "Fortran order", "broadcast",
    "misaligned by 4", "misaligned by 8", "misaligned by 1", "byte-swapped", "read-only",
)  # fmt: skip
# Around the sizes of vectors, of the kernels' tiles and of the parts of a batch.
SIZES = (1, 2, 3, 0, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 23, 24, 25, 31, 32, 33)
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17)
LARGE = (47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 130)
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 63, 64, 65, 255, 256, 257, 258, 513)

# What the cases' fields of names may be. The first is the simplest: failing cases shrink to it.
CHOICES = {
    "act": BUILT_IN,
    "dtype": DTYPES,
    "values": VALUES,
    "layout": LAYOUTS,
    "X_layout": LAYOUTS,
    "W_layout": LAYOUTS,
    "dY_layout": LAYOUTS,
    "what": ("value_and_grad", "jacobian", "hvp", "gnvp"),
    "loss": tuple(LOSSES),
    "method": tuple(OPTIMIZERS),
}


# Arrays.


def numbers(rng, shape, kind, dtype):
    """Numbers of a kind, an array of `dtype`."""
    info = np.finfo(dtype)
    signs = rng.choice([-1.0, 1.0], shape)
    if kind == "whole":  # where activations have their corners; zeros of both signs
        return (signs * rng.integers(0, 7, shape)).astype(dtype)
    if kind == "spread":
        return (signs * 2.0 ** rng.uniform(-40, 40, shape)).astype(dtype)
    if kind == "subnormal":
        return (signs * rng.uniform(0, 2, shape) * info.tiny).astype(dtype)
    if kind == "huge":
        return (rng.uniform(-1, 1, shape) * info.max).astype(dtype)
    normal = rng.standard_normal(shape)
    if kind == "mixed":
        special = [np.nan, np.inf, -np.inf, 0.0, -0.0, info.tiny, info.smallest_subnormal, info.max]
        normal = np.where(rng.random(shape) < 0.1, rng.choice(special, shape), normal)
    return normal.astype(dtype)


def laid_out(array, layout):
    """The array in that layout; "broadcast" repeats its first row."""
    if layout == "plain":
        return array
    if layout == "broadcast":
        return np.broadcast_to(array[:1], array.shape) if len(array) else array
    return nasty_layouts(array)[layout]


def native(array):
    """A clean copy."""
    return np.array(array, array.dtype.newbyteorder("="), order="C")


# The mathematics. In an Approx whose value is NaN or infinite the result is certain to be so; an
# infinite error says that nothing is known, as where partial sums may overflow.


def _known(A):
    """The finite part of A, zeros elsewhere; and where it is unknown."""
    unknown = ~np.isfinite(A.error)
    finite = np.isfinite(A.value) & ~unknown
    return Approx(np.where(finite, A.value, 0), np.where(finite, A.error, 0)), unknown


def _may_vanish(A):
    """Where A may be computed as 0, or with either sign, which tells when it meets infinity."""
    return (A.error > 0) & (abs(A.value) <= A.error)


def product(A, B, dtype, addend=None):
    """A @ B (+ addend), as `bounds.product`; nothing may be flushed to zero here."""
    info = np.finfo(dtype)
    (finite_A, unknown_A), (finite_B, unknown_B) = _known(A), _known(B)
    b = None if addend is None else np.asarray(addend, EXACT)
    finite_b = None if b is None else np.where(np.isfinite(b), b, 0)
    result = bounds.product(finite_A, finite_B, dtype, finite_b)
    terms = A.value.shape[1] + (b is not None)
    error = result.error - terms * (EXACT(info.tiny) - EXACT(info.smallest_subnormal))
    sizes = finite_A.size @ finite_B.size + (0 if b is None else abs(finite_b))
    value = A.value @ B.value + (0 if b is None else b)
    unknown = unknown_A.any(axis=1)[:, None] | unknown_B.any(axis=0) | (sizes >= info.max / 2)
    unknown |= _may_vanish(A) @ np.isinf(B.value) | np.isinf(A.value) @ _may_vanish(B)
    # Among unknown terms a NaN makes NaN, all else may still become anything.
    spoilt = (np.isnan(A.value) & ~unknown_A).any(axis=1)[:, None]
    spoilt = spoilt | (np.isnan(B.value) & ~unknown_B).any(axis=0)
    value = np.where(unknown, np.where(spoilt, np.nan, 0), value)
    return Approx(value, np.where(unknown, np.inf, np.where(np.isfinite(value), error, 0)))


def times(A, B, dtype):
    """A ∘ B."""
    value = A.value * B.value
    error = bounds.times(A, B, dtype).error + np.finfo(dtype).smallest_subnormal
    unknown = ~np.isfinite(A.error) | ~np.isfinite(B.error)
    unknown |= np.isfinite(value) & (abs(value) + error >= np.finfo(dtype).max / 2)
    unknown |= _may_vanish(A) & np.isinf(B.value) | np.isinf(A.value) & _may_vanish(B)
    return Approx(value, np.where(unknown, np.inf, np.where(np.isfinite(value), error, 0)))


def function(act, order, Z, dtype):
    """act (order 0) or act' (1) of Z, as functions of z."""
    F, finite = bounds.function(act), np.isfinite(Z.value)
    smallest = np.finfo(dtype).smallest_subnormal
    inside = Approx(np.where(finite, Z.value, 0), np.where(np.isfinite(Z.error), Z.error, 0))
    if order == 0:
        result = bounds.activate(act, inside, dtype)
        value, error = result.value, result.error
    else:
        value = np.asarray(F.df(inside.value), EXACT)
        error = gamma(2 * F.ulps[1], dtype) * abs(value) + F.ulps[1] * smallest
        error = error + _lost(F, act, inside.value, value)
    ends = REFERENCE.activation(act, Z.value.astype(np.float64), order)
    value = np.where(finite, value, ends)
    error = np.where(finite, error, gamma(2 * F.ulps[order], dtype) * abs(ends))
    error = np.where(np.isfinite(value), error, 0)
    return Approx(value, np.where(np.isfinite(Z.error), error, np.inf))


def _lost(F, act, z, value):
    """What extended precision itself loses of f' = g + z·g', where f = z·g: by its root too."""
    if act.name not in ("gelu", "gelu_tanh", "silu", "mish"):
        return 0
    terms = abs(value) + abs(F.f(z) / np.where(z == 0, 1, z))
    return 8 * (1 + z * z) * np.finfo(EXACT).eps * terms


def derivative(act, Y, Z, dtype):
    """act' as the backward pass computes it, from Y or Z."""
    F = bounds.function(act)
    if F.from_y is None:
        return function(act, 1, exact(Z), dtype)
    finite = np.isfinite(Y)
    result = F.from_y(exact(np.where(finite, Y, 0)), dtype)
    value = np.where(finite, result.value, act.formulas.df_from_y(Y, act.constant))
    return Approx(value, np.where(np.isfinite(value), result.error, 0))


def sum_rows(A, dtype):
    ones = exact(np.ones((1, len(A.value))))
    result = product(ones, A, dtype)
    return Approx(result.value[0], result.error[0])


def compare(computed, expected, dtype, what):
    """Assert that computed values are within the errors of the expected ones."""
    assert computed.dtype == dtype and computed.shape == expected.value.shape, (
        f"{what} has {computed.dtype} {computed.shape}, expected {dtype} {expected.value.shape}"
    )
    x, value, error = computed.astype(EXACT), expected.value, expected.error
    largest = EXACT(np.finfo(dtype).max)
    beyond = (np.sign(x) == np.sign(value)) & (abs(x) >= abs(value) - error)
    right = np.select(
        [np.isnan(value), np.isinf(error), np.isinf(value), abs(value) + error > largest],
        [np.isnan(x), True, x == value, beyond],
        abs(x - value) <= error,
    )
    if not right.all():
        worst = tuple(map(int, np.argwhere(~right)[0]))
        raise AssertionError(
            f"{what}{list(worst)} is {computed[worst]!r}, expected {value[worst]!r} ± "
            f"{error[worst]:.3g} ({np.count_nonzero(~right)} of {right.size} are wrong)"
        )


# Cases.


@dataclass(frozen=True)
class Elementwise:
    """act, act' or act'' of n numbers."""

    act: str
    order: int
    n: int
    dtype: str
    values: str
    layout: str
    seed: int

    @classmethod
    def draw(cls, rng):
        n = rng.choice([0, *range(1, 70), 127, 128, 129, 1000])
        return _drawn(cls, rng, order=int(rng.integers(3)), n=int(n))

    def check(self, backend):
        act, dtype = fb.activation(ACTIVATIONS[self.act]), np.dtype(self.dtype)
        Z = laid_out(
            numbers(np.random.default_rng(self.seed), self.n, self.values, dtype), self.layout
        )
        computed = (act.f, act.df, act.d2f)[self.order](Z, backend=backend)
        Z, what = native(Z), "act" + "'" * self.order
        if self.order < 2:
            return compare(computed, function(act, self.order, exact(Z), dtype), dtype, what)
        right = exact(REFERENCE.activation(act, Z, 2))
        error = 8 * np.finfo(dtype).eps * np.maximum(1, abs(right.value))
        compare(computed, Approx(right.value, error), dtype, what)


@dataclass(frozen=True)
class Dense:
    """A layer, forward and backward."""

    n: int
    n_in: int
    n_out: int
    act: str
    bias: bool
    mask: bool
    dtype: str
    values: str
    X_layout: str
    W_layout: str
    dY_layout: str
    seed: int

    @classmethod
    def draw(cls, rng):
        sizes = [int(rng.choice(LARGE if rng.random() < 0.08 else SIZES)) for _ in range(3)]
        flags = {"bias": bool(rng.integers(2)), "mask": bool(rng.random() < 0.2)}
        return _drawn(cls, rng, **dict(zip(("n", "n_in", "n_out"), sizes, strict=True)), **flags)

    def check(self, backend):
        act, dtype = fb.activation(ACTIVATIONS[self.act]), np.dtype(self.dtype)
        rng = np.random.default_rng(self.seed)
        X, W, dY = (
            laid_out(numbers(rng, shape, self.values, dtype), layout)
            for shape, layout in (
                ((self.n, self.n_in), self.X_layout),
                ((self.n_in, self.n_out), self.W_layout),
                ((self.n, self.n_out), self.dY_layout),
            )
        )
        b = numbers(rng, self.n_out, self.values, dtype) if self.bias else None
        mask = rng.integers(0, 2, W.shape) if self.mask else None
        before = [native(a) for a in (X, W, dY)]
        Y, cache = fb.dense_forward(X, W, b, act, mask=mask, backend=backend)
        dX, dW, db = fb.dense_backward(dY, cache)
        for array, copy in zip((X, W, dY), before, strict=True):
            assert np.array_equal(native(array), copy, equal_nan=True), "an argument has changed"

        X, W, dY = before
        W = W if mask is None else np.where(mask == 1, W, dtype.type(0))
        Z = product(exact(X), exact(W), dtype, b)
        if cache.Z is not None:
            compare(cache.Z, Z, dtype, "Z")
        compare(Y, function(act, 0, Z, dtype), dtype, "Y")
        # The backward pass is held against what follows from the Y and Z that were computed.
        dZ = times(exact(dY), derivative(act, Y, cache.Z, dtype), dtype)
        compare(dX, product(dZ, exact(W).T, dtype), dtype, "dX")
        expected = product(exact(X).T, dZ, dtype)
        if mask is not None:
            unmasked = mask == 1
            expected = Approx(
                np.where(unmasked, expected.value, 0), np.where(unmasked, expected.error, 0)
            )
        compare(dW, expected, dtype, "dW")
        assert (db is None) == (b is None)
        if b is not None:
            compare(db, sum_rows(dZ, dtype), dtype, "db")


@dataclass(frozen=True)
class Net:
    """A derivative of a small network; `layers` are pairs of width and activation."""

    what: str
    n: int
    n_in: int
    layers: tuple[tuple[int, str], ...]
    loss: str
    dtype: str
    weighted: bool
    penalties: bool
    fixed: bool
    nan: bool
    threads: int
    layout: str
    seed: int

    @classmethod
    def draw(cls, rng):
        flags = ("weighted", "penalties", "fixed")
        what = str(rng.choice(CHOICES["what"]))
        # Where all rows are alike, Hessian products may cancel to nothing but rounding.
        layouts = LAYOUTS if what in ("value_and_grad", "jacobian") else LAYOUTS[:5]
        return _drawn(
            cls,
            rng,
            what=what,
            layout=str(rng.choice(layouts)),
            n=int(rng.choice(ROWS[:10] if what == "jacobian" else ROWS)),
            n_in=int(rng.integers(1, 10)),
            layers=_drawn_layers(rng),
            nan=bool(rng.random() < 0.2),
            threads=int(rng.integers(1, 4)),
            **{flag: bool(rng.integers(2)) for flag in flags},
        )

    def case(self):
        rng, c = _network_case(self)
        if self.nan:
            c.X[rng.integers(len(c.X)), rng.integers(self.n_in)] = np.nan
        X, params = (laid_out(a, self.layout) for a in (c.X, c.params))
        return replace(c, X=X, params=params)

    def check(self, backend):
        c = self.case()
        computed = self._compute(backend, c)
        c = replace(c, X=native(c.X), params=native(c.params))
        if (abs(c.net.forward(c.params, c.X, backend="numpy")) > 80).any():
            return  # the loss may overflow in float32 and not in the reference's float64
        right = self._compute("numpy", c)
        for result, expected in zip(computed, right, strict=True):
            assert (np.isnan(result) == np.isnan(expected)).all(), f"{self.what}: NaN elsewhere"
        if not all(np.isfinite(expected).all() for expected in right):
            return
        if self.what in ("hvp", "gnvp"):
            others = [self._compute("numpy", replace(c, params=p))[0] for p in self._neighbours(c)]
            self._check_product(computed[0], right[0], others)
            return
        for result, expected in zip(computed, self._expected(c), strict=True):
            if np.isfinite(expected.value).all() and np.isfinite(expected.error).all():
                compare(result, expected, result.dtype, self.what)

    def _compute(self, backend, c):
        options = {"backend": backend, "threads": self.threads}
        if self.what == "jacobian":
            return (c.net.jacobian(c.params, c.X, **options),)
        obj = c.net.objective(c.X, c.y, c.loss, **c.terms, **options)
        if self.what == "value_and_grad":
            value, grad = obj.value_and_grad(c.params)
            return np.float64(value), grad
        v = np.sin(1 + np.arange(c.net.n_params)).astype(c.net.dtype)
        return (obj.hvp(c.params, v) if self.what == "hvp" else obj.gnvp(c.params, v),)

    def _neighbours(self, c):
        """Parameters a rounding away, twice: they tell how much roundings change."""
        rng, eps = np.random.default_rng(self.seed), np.finfo(self.dtype).eps
        for _ in range(2):
            yield c.params * (1 + eps * rng.choice([-1, 1], c.params.shape)).astype(self.dtype)

    def _check_product(self, computed, right, others):
        off = abs(computed - right).max(initial=0)
        spread = max(abs(other - right).max(initial=0) for other in others)
        # In float64 1e-12 of the largest entry.
        limit = 4504 * np.finfo(self.dtype).eps * abs(right).max(initial=0) + 100 * spread
        assert off <= limit, f"{self.what} is {off:.3g} off, at most {limit:.3g} may be"

    def _expected(self, c):
        if self.what == "jacobian":
            return bounds.jacobian(c.net, c.params, c.X)[:1]
        terms = dict(c.terms)
        return bounds.objective(
            c.net, c.params, c.X, c.y, c.loss, terms.pop("sample_weight", None), **terms
        )


@dataclass(frozen=True)
class Train:
    """The first steps of a training run, each from where the one before has led."""

    method: str
    n: int
    batch_size: int
    n_in: int
    layers: tuple[tuple[int, str], ...]
    loss: str
    dtype: str
    weighted: bool
    penalties: bool
    fixed: bool
    shuffled: bool
    clipped: bool
    averaged: bool
    validated: bool
    watched: bool
    threads: int
    seed: int

    @classmethod
    def draw(cls, rng):
        n = int(rng.choice(ROWS))
        flags = ("weighted", "penalties", "fixed", "shuffled", "clipped", "averaged", "validated")
        return _drawn(
            cls,
            rng,
            n=n,
            batch_size=n if rng.random() < 0.3 else int(rng.choice(ROWS)),
            n_in=int(rng.integers(1, 10)),
            layers=_drawn_layers(rng),
            threads=int(rng.integers(1, 4)),
            watched=bool(rng.integers(2)),
            **{flag: bool(rng.integers(2)) for flag in flags},
        )

    def training(self):
        """(case, training, run, number of steps)."""
        rng, c = _network_case(self)
        n = len(c.X)
        config = TrainConfig(
            OPTIMIZERS[self.method],
            n_for(c.loss, min(self.batch_size, n)),
            loss_of(c.loss).averaged,
            clip_norm=0.5 if self.clipped else np.inf,
            average_from=2 if self.averaged else -1,
            patience=2 if self.watched else 0,
            tol=0.01 if self.watched else 0.0,
        )
        order = np.array([permuted(rng, c.loss, n) for _ in range(4)]) if self.shuffled else None
        t = Training(c.problem, config, order, rate=0.01 / n)
        if self.validated:
            held_out = case_of(rng, c.net, n_for(c.loss, self.n // 2 + 1), c.loss, self.weighted)
            t = replace(t.having(validation=held_out.problem), held_out=held_out)
        return c, t, new_run(c.effective, config.optimizer), min(4 * t.steps_per_epoch, 6)

    def check(self, backend):
        c, t, run, n_steps = self.training()
        if not self._moderate(c, t, copy_of(run), n_steps):
            return
        module, again = backends.load(backend), copy_of(run)
        follow(module, c, t, run, n_steps, past_stops=True, sharp=False)
        buffers, t = t.buffers(n_steps), t.having(threads=self.threads)
        while again.step < n_steps:
            t.go(module, again, n_steps - again.step, *buffers)
        for name in ARRAYS:
            whole, parts = getattr(again, name), getattr(run, name)
            assert same(whole, parts), f"{name}: step by step it is not the same"

    def _moderate(self, c, t, run, n_steps):
        """Whether all that the reference comes by is far from overflowing in float32."""
        data = [c.X, *([t.held_out.X] if t.held_out else [])]
        for _ in range(n_steps):
            if t.go(REFERENCE, run, 1)[0] not in (DONE, GOAL_MET, NO_PROGRESS):
                return False
            if any((abs(REFERENCE.forward(c.net.plan, run.params, X)) > 80).any() for X in data):
                return False
        return True


def _drawn_layers(rng):
    widths = [int(rng.choice(WIDTHS)) for _ in range(rng.integers(1, 4))]
    if rng.random() < 0.05:
        widths[rng.integers(len(widths))] = int(rng.choice(LARGE))
    return tuple((width, str(rng.choice(list(ACTIVATIONS)))) for width in widths)


def _network_case(drawn):
    """A generator of random numbers, and what is drawn of network, data and objective."""
    rng, dtype, loss = np.random.default_rng(drawn.seed), np.dtype(drawn.dtype), LOSSES[drawn.loss]
    layers, n_in = [], drawn.n_in
    for k, (width, act) in enumerate(drawn.layers):
        n_out = n_out_for(loss, width) if k == len(drawn.layers) - 1 else width
        fixed = {}
        if drawn.fixed:
            fixed = {"mask": rng.random((n_in, n_out)) < 0.7, "trainable": k != 1}
        layers.append(fb.Dense(n_out, ACTIVATIONS[act], **fixed))
        n_in = n_out
    net = fb.Network(drawn.n_in, *layers, dtype=dtype)
    penalties = {"l2": 0.25, "l1": 0.125, "group": 0.5} if drawn.penalties else {}
    return rng, case_of(rng, net, n_for(loss, drawn.n), loss, drawn.weighted, **penalties)


def _drawn(cls, rng, **values):
    """A case with these values of fields; the others are drawn from their choices."""
    names = [f.name for f in fields(cls) if f.name in CHOICES and f.name not in values]
    chosen = {name: str(rng.choice(CHOICES[name])) for name in names}
    return cls(**chosen, **values, seed=int(rng.integers(2**31)))


def draw(seed, index):
    rng = np.random.default_rng([seed, index])
    return rng.choice([Elementwise, Dense, Net, Train], p=[0.38, 0.38, 0.18, 0.06]).draw(rng)


# Failures.


def failure(case, backend):
    """What is wrong with a case, None if nothing is."""
    try:
        with np.errstate(all="ignore"):
            case.check(backend)
    except Exception:
        return traceback.format_exc(limit=-1)
    return None


def smaller(case):
    """Cases that are a little simpler, each with the same and with other numbers."""
    for field in fields(case):
        value = getattr(case, field.name)
        if field.name == "seed":
            continue
        for simpler in _simpler(case, field.name, value):
            for seed in (case.seed, 0, 1, 2, 3):
                yield replace(case, **{field.name: simpler, "seed": seed})


def _simpler(case, name, value):
    if isinstance(value, bool):
        return [False] if value else []
    if isinstance(value, int):
        least = 1 if isinstance(case, Net | Train) else 0
        numbers = {least, 1, 2, 3, 5, 9, value // 2, value - 1}
        return sorted(v for v in numbers if least <= v < value)
    if isinstance(value, str):
        return CHOICES[name][: CHOICES[name].index(value)][:3]
    return [
        (*value[:k], *instead, *value[k + 1 :])
        for k, (width, act) in enumerate(value)
        for instead in (
            *([()] if len(value) > 1 else []),
            *([(w, act)] for w in sorted({1, width // 2, width - 1}) if 0 < w < width),
            *([[(width, "linear")]] if act != "linear" else []),
        )
    ]


def shrunk(case, backend):
    """The simplest case, of those tried in turn, that still fails."""
    for simpler in smaller(case):
        if failure(simpler, backend) is not None:
            return shrunk(simpler, backend)
    return case


def reproducer(case, backend, level=None):
    """A program that fails as the case does."""
    level = level or os.environ.get("FASTBP_MAX_ISA")
    cap = [f'os.environ["FASTBP_MAX_ISA"] = "{level}"'] if level and backend == "c" else []
    lines = [
        "# At the repository's root.",
        "import os, sys",
        *cap,
        'sys.path.insert(0, "tests")',
        f"from helpers.fuzz import {type(case).__name__}",
        f"{case!r}.check({backend!r})",
    ]
    return "\n".join(lines) + "\n"


def run(backend, seed, seconds=np.inf, most=None, trace=None):
    """(number of cases, failures as (index, program, message)), at most MOST_FAILURES of them."""
    end, index, failures = time.perf_counter() + seconds, 0, []
    with fb.use_backend(backend):
        while index != most and (index < LEAST_CASES or time.perf_counter() < end):
            case = draw(seed, index)
            if trace is not None:  # should the process die now
                trace.seek(0)
                trace.write(b"%d" % index)
            if failure(case, backend) is not None:
                case = shrunk(case, backend)
                failures.append((index, reproducer(case, backend), failure(case, backend)))
                if len(failures) == MOST_FAILURES:
                    break
            index += 1
    return index, failures


# Processes: FASTBP_MAX_ISA is read when the C library is loaded, and a crash ends only one.


def work(backend, seed, seconds, trace):
    """What a child process does; its exit status."""
    level = os.environ.get("FASTBP_MAX_ISA") or "this processor's level"
    start = time.perf_counter()
    with open(trace, "wb", buffering=0) as file:
        count, failures = run(backend, seed, seconds, trace=file)
    for index, program, message in failures:
        print(f"\nCase {index} of seed {seed} fails.\n\n{program}\n{message}")
    rate = count / (time.perf_counter() - start)
    print(f"{backend}, {level}: {count} cases, {rate:.3g} cases/s, {len(failures)} failures")
    return 1 if failures else 0


def watch(command, backend, level, seed):
    """Run a child; its exit status, or 1 if it died, after saying in which case."""
    cap = {} if level is None else {"FASTBP_MAX_ISA": level}
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace")
        trace.touch()
        done = subprocess.run([*command, "--trace", str(trace)], env=os.environ | cap)
        if done.returncode in (0, 1):
            return done.returncode
        place = trace.read_text()
    print(f"\nThe process for {backend}, {level}, ended with status {done.returncode}", end="")
    if place:
        program = reproducer(draw(seed, int(place)), backend, level)
        print(f" in case {int(place)} of seed {seed}.\n\n{program}")
    else:
        print(" before its first case.")
    return 1


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.fuzz")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=("c", "numba"), help="only this one")
    parser.add_argument("--max-isa", choices=LEVELS, help="only this level of the C library")
    parser.add_argument("--trace", help=argparse.SUPPRESS)  # a child's: where it says what it does
    options = parser.parse_args(arguments)
    if options.trace is not None:
        return work(options.backend, options.seed, options.seconds, options.trace)
    names = [options.backend] if options.backend else ["c", "numba"]
    for name in names:
        if backends.why_missing(name):
            parser.error(f"backend {name!r} cannot run here: {backends.why_missing(name)}")
    plans = [
        (name, level)
        for name in names
        for level in (_levels(options.max_isa) if name == "c" else [None])
    ]
    seconds = options.seconds / len(plans)
    statuses = []
    for name, level in plans:
        command = [sys.executable, "-m", "tests.helpers.fuzz", "--backend", name]
        command += ["--seed", str(options.seed), "--seconds", str(seconds)]
        statuses.append(watch(command, name, level, options.seed))
    return max(statuses)


def _levels(only):
    """The levels that this processor has, or the one asked for."""
    if only is not None:
        return [only]
    return LEVELS[: LEVELS.index(backends.load("c").instruction_set()) + 1]


if __name__ == "__main__":
    sys.exit(main())
