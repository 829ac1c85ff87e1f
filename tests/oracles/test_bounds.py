"""The formulas of bounds.py, with which other tests compare, against mpmath and differences."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from helpers.strategies import EVERY_ACTIVATION, EVERY_LOSS, n_out_for, target

import fastbp as fb
from fastbp.backends import reference
from fastbp.maths.formulas.optimizers import RULES
from fastbp.maths.losses import loss as loss_of
from oracles import bounds, truth
from oracles.bounds import EXACT, exact

NEGLIGIBLE = np.finfo(np.float64).eps / 32


def mpf(number):
    """An extended number exactly: as the sum of two float64."""
    head = float(number)
    return mpmath.mpf(head) + mpmath.mpf(float(number - EXACT(head)))


# Some constants of truth.py are float64.
SHARP = [act for act in truth.FUNCTIONS if act.name not in ("selu", "hard_sigmoid")]

TABLED = [act for act in EVERY_ACTIVATION if fb.activation(act).name in bounds.FUNCTIONS]


@pytest.mark.parametrize("act", SHARP, ids=str)
def test_functions_agree_with_mpmath(act):
    Z, F = np.linspace(-7.03, 6.97, 201).astype(EXACT), bounds.function(act)
    # Derivatives that change their sign are accurate to a few units of their terms.
    absolute = 8 * float(np.finfo(EXACT).eps)
    with mpmath.workdps(truth.DIGITS):
        f, df = ([definition(mpf(z)) for z in Z] for definition in truth.FUNCTIONS[act])
        for computed, expected in zip(F.f(Z), f, strict=True):
            assert abs(mpf(computed) - expected) <= NEGLIGIBLE * abs(expected)
        for computed, expected in zip(F.df(Z), df, strict=True):
            assert abs(mpf(computed) - expected) <= NEGLIGIBLE * abs(expected) + absolute


@pytest.mark.parametrize("act", TABLED, ids=str)
def test_constants_bound_the_derivatives(act):
    """Secants are no steeper than the constants say, of f everywhere, of f' between corners."""
    F, Z = bounds.function(fb.activation(act)), np.linspace(-8, 4, 20001).astype(EXACT)
    low, high = Z[:-1], Z[1:]
    steepest, bend = (b(high) if callable(b) else b for b in (F.steepest, F.bend))
    rounding = 1e-14 * (high - low)
    assert (abs(F.f(high) - F.f(low)) <= steepest * (high - low) + rounding).all()
    between = np.all([(high < c) | (low > c) for c in F.corners], axis=0)
    assert (abs(F.df(high) - F.df(low)) <= bend * (high - low) + rounding)[between].all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("act", truth.FUNCTIONS, ids=str)
def test_activations_without_a_row_have_bounds_from_mpmath(act, dtype):
    """The values of the row, and at no place a smaller error than a few units in the last place."""
    rng = np.random.default_rng(5)
    Z = bounds.exact(rng.uniform(-3, 3, 40))
    Z.error += 100 * np.finfo(dtype).eps
    row, general = bounds.function(act), bounds._by_truth(act)
    unit = np.finfo(dtype).eps
    for of_row, of_mpmath in ((row.f, general.f), (row.df, general.df)):
        np.testing.assert_allclose(of_mpmath(Z.value), of_row(Z.value), 1e-15, 1e-17)
    spread = bounds._carried(general.f, None, Z)
    assert (spread <= 2.01 * bounds._carried(row.f, row.steepest, Z)).all()
    if general.from_y is not None:
        Y = bounds.exact(row.f(Z.value))
        slope, expected = general.from_y(Y, dtype), row.from_y(Y, dtype)
        off = abs(slope.value - expected.value)
        assert (off <= 1e-15 + unit / 32).all() and (slope.error >= 8 * unit).all()
        assert (slope.error <= 32 * unit * (1 + abs(slope.value))).all()


@pytest.mark.parametrize("name", bounds.RULES)
def test_rules_without_a_row_have_bounds_from_numpy_s_rule(name):
    rng = np.random.default_rng(6)
    moments = [bounds.exact(rng.uniform(1, 2, 30)) for _ in range(RULES[name].n_moments)]
    g = bounds.exact(rng.standard_normal(30))
    g.error += 1e-12
    constants = {"adagrad": (1e-3,)}.get(name, (0.9, 0.1, 0.5))
    constants = tuple(map(EXACT, (*constants, 0, 0)[:4]))
    arguments = constants, moments, g, EXACT(0.1), 3, np.float64
    by_row = bounds.RULES[name](*arguments)
    by_numpy = bounds._by_reference(reference._RULES[name])(*arguments)
    for row, general in zip((by_row[0], *by_row[1]), (by_numpy[0], *by_numpy[1]), strict=True):
        assert (abs(row.value - general.value) <= 1e-15 * (1 + abs(row.value))).all()
        assert (general.error <= 1e-11 * (1 + abs(row.value))).all()


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
def test_slopes_of_losses_agree_with_differences(loss):
    rng = np.random.default_rng(3)
    n, n_out = 6, n_out_for(loss, 3)
    for probabilities in (False, True):
        Y = rng.random((n, n_out)).astype(EXACT)
        y = target(rng, loss, n, n_out, "float64", probabilities)
        U = rng.standard_normal((n, n_out))

        def value(t, Y=Y, y=y, U=U):
            return bounds.rows_of_loss(loss, exact(Y + t * U), y, np.float64)[0].value.sum()

        _, D = bounds.rows_of_loss(loss, exact(Y), y, np.float64)
        expected = bounds.richardson(value, 1e-4)
        assert abs((D.value * U).sum() - expected) <= 1e-13 * abs(D.value * U).sum()


def test_bounds_notice_single_wrong_numbers():
    """An entry that is off by a few dozen units makes a check fail."""
    rng = np.random.default_rng(4)
    act = fb.activation("sigmoid")
    net = fb.Network(4, fb.Dense(7, act), fb.Dense(6, "gelu"), fb.Dense(3))
    params, X = net.init(1), rng.standard_normal((5, 4))
    loss = loss_of("log_cosh")
    value, grad = bounds.objective(net, params, X, rng.standard_normal((5, 3)), loss, l1=0.1)
    for bound in (value, grad):
        bound.check_sharp(300 * np.finfo(np.float64).eps)
        bound.check(bound.value.astype(np.float64))
    wrong = grad.value.astype(np.float64)
    wrong[17] += 500 * np.finfo(np.float64).eps * abs(wrong).max()
    with pytest.raises(AssertionError, match=r"\[17\]"):
        grad.check(wrong)
