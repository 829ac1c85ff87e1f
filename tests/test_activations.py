"""Activations by themselves: accuracy over the whole range, special values, any shape."""

from __future__ import annotations

from functools import cache

import mpmath
import numpy as np
import pytest
from bounds import ULP_OTHER, ULP_SIGMOID
from strategies import ALL_ACTIVATIONS, nasty_layouts, same

import fastbp as fb

pytestmark = pytest.mark.backend

CURVED = {
    "tanh": (mpmath.tanh, lambda z: mpmath.sech(z) ** 2),
    "sigmoid": (
        lambda z: 1 / (1 + mpmath.exp(-z)),
        lambda z: mpmath.exp(-abs(z)) / (1 + mpmath.exp(-abs(z))) ** 2,
    ),
}


@cache
def points(dtype):
    """Both signs of all magnitudes, subnormal to largest, denser where the functions bend."""
    rng = np.random.default_rng(7)
    info = np.finfo(dtype)
    log_tiny, log_max = np.log2(float(info.smallest_subnormal)), np.log2(float(info.max))
    underflow = -np.log(2) * log_tiny  # exp(-z) leaves the numbers here, exp(-2z) at half of it
    magnitudes = np.concatenate(
        [
            2.0 ** rng.uniform(log_tiny, log_max, 400),
            2.0 ** rng.uniform(-14, 5, 600),
            rng.uniform(0, 10, 800),
            rng.uniform(10, 1.02 * underflow, 500),
            *[c * underflow * (1 + 1e-3 * rng.standard_normal(60)) for c in (0.25, 0.5, 0.96, 1)],
            np.arange(1, 130) * np.log(2) / 2,  # where the reduction of exp changes its integer
            [0, info.smallest_subnormal, info.tiny, info.eps, 1, info.max],
        ]
    )
    magnitudes = magnitudes[magnitudes <= info.max].astype(dtype)
    return np.concatenate([magnitudes, -magnitudes])


@cache
def truth(name, dtype, derivative):
    """mpmath's values as head + tail, so that differences from them are exact enough."""
    function = CURVED[name][derivative]
    with mpmath.workdps(40):
        values = [function(mpmath.mpf(float(z))) for z in points(dtype)]
        head = np.array([float(v) for v in values])
        tail = np.array([float(v - h) for v, h in zip(values, head.tolist(), strict=True)])
    return head, tail


def ulps(computed, head, tail):
    """The distance in units in the last place of the result's type."""
    with np.errstate(under="ignore"):
        spacing = np.spacing(abs(head).astype(computed.dtype)).astype(np.float64)
    return abs((computed.astype(np.float64) - head) - tail) / spacing


@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize("derivative", [False, True], ids=["f", "df"])
def test_curved_functions_are_accurate_over_the_whole_range(backend, dtype, name, derivative):
    act = fb.activation(name)
    Z = points(dtype)
    computed = act.df(Z) if derivative else act.f(Z)
    error = ulps(computed, *truth(name, dtype, derivative))
    worst = np.argmax(error)
    limit = ULP_OTHER if derivative else ULP_SIGMOID
    assert error[worst] <= limit, f"at {Z[worst]!r}: {computed[worst]!r}"


@pytest.mark.parametrize("name", CURVED)
def test_curved_functions_keep_their_range_and_symmetry(backend, dtype, name):
    act = fb.activation(name)
    Z = np.sort(np.abs(points(dtype)))
    Y = act.f(Z)
    assert (Y <= 1).all()
    if name == "tanh":
        assert same(act.f(-Z), -Y)
    else:
        assert (act.f(-Z) >= 0).all()
        assert act.f(dtype.type(0)) == 0.5


@pytest.mark.parametrize("act", [a for a in ALL_ACTIVATIONS if a not in CURVED], ids=str)
def test_piecewise_linear_functions(backend, dtype, act):
    act = fb.activation(act)
    Z = points(dtype)
    if act.name == "linear":
        negative, at_zero, slope = 1, 1, dtype.type(1)
    elif act.name == "relu":
        negative, at_zero, slope = 0, act.constant, dtype.type(0)
    else:  # the slope may be rounded to dtype before the product, or not
        negative, at_zero, slope = act.constant, act.constant, dtype.type(act.constant)
    products = [dtype.type(act.constant) * Z, (act.constant * Z.astype(np.float64)).astype(dtype)]
    low, high = np.minimum(*products), np.maximum(*products)
    if act.name != "leaky_relu":
        low = high = slope * Z
    Y, D = act.f(Z), act.df(Z)
    assert (Y[Z > 0] == Z[Z > 0]).all()
    assert ((Y >= low) & (Y <= high))[Z <= 0].all()
    assert same(D, np.select([Z > 0, Z < 0], [1, negative], at_zero).astype(dtype))


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0]
ANSWERS = {  # f and df at the special points
    "linear": ([np.nan, np.inf, -np.inf, 0, 0], [1, 1, 1, 1, 1]),
    "relu": ([np.nan, np.inf, 0, 0, 0], [np.nan, 1, 0, 0, 0]),
    "leaky_relu": ([np.nan, np.inf, -np.inf, 0, 0], [np.nan, 1, 0.01, 0.01, 0.01]),
    "sigmoid": ([np.nan, 1, 0, 0.5, 0.5], [np.nan, 0, 0, 0.25, 0.25]),
    "tanh": ([np.nan, 1, -1, 0, 0], [np.nan, 0, 0, 1, 1]),
    fb.relu(0.5): ([np.nan, np.inf, 0, 0, 0], [np.nan, 1, 0, 0.5, 0.5]),
}


@pytest.mark.parametrize("length", [5, 80])  # alone, and in the middle of vectors
@pytest.mark.parametrize("act", ANSWERS, ids=str)
def test_nan_stays_nan_and_infinities_are_as_in_the_table(backend, dtype, act, length):
    Z = np.full(length, 0.5, dtype)
    Z[-5:] = SPECIAL
    for computed, expected in zip(
        (fb.activation(act).f(Z), fb.activation(act).df(Z)), ANSWERS[act], strict=True
    ):
        np.testing.assert_array_equal(computed[-5:], np.array(expected, dtype))
        assert np.isfinite(computed[:-5]).all()


@pytest.mark.parametrize("act", ALL_ACTIVATIONS, ids=str)
def test_any_shape_and_stride(backend, dtype, rng, act):
    act = fb.activation(act)
    for shape in [(), (0,), (1,), (0, 3), (3, 0, 2), (7, 5), (2, 3, 4, 5), (1000,)]:
        Z = np.asarray(3 * rng.standard_normal(shape)).astype(dtype)
        flat = [f(Z.ravel()) for f in (act.f, act.df)]
        for name, variant in {"clean": Z, **nasty_layouts(Z)}.items():
            before = variant.copy()
            for f, expected in zip((act.f, act.df), flat, strict=True):
                result = f(variant)
                assert type(result) is np.ndarray, name
                assert result.flags.c_contiguous and result.flags.writeable
                assert same(result, expected.reshape(shape)), (name, shape)
            assert same(variant, before), name


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float16([0.5]), "float32"),
        (np.float32(0.5), "float32"),
        (np.array([0.5], ">f4"), "float32"),
        (np.longdouble([0.5]), "float64"),
        ([1, 2], "float64"),
        ([0.5], "float64"),
        (np.array([True]), "float64"),
        (0.5, "float64"),
    ],
    ids=str,
)
def test_result_type(backend, value, expected):
    act = fb.activation("tanh")
    for result in (act.f(value), act.df(value)):
        assert result.dtype == expected
        assert result.shape == np.shape(value)
    assert same(act.f(value), act.f(np.asarray(value).astype(expected)))


def test_parametrised_functions_check_their_parameter():
    for call, message in [
        (lambda: fb.relu(np.nan), "grad_at_zero is nan, expected a finite number"),
        (lambda: fb.leaky_relu(-0.1), "slope is -0.1, expected a finite number >= 0"),
        (lambda: fb.leaky_relu(np.inf), "slope is inf"),
        (lambda: fb.activation("tanhh"), "did you mean 'tanh'?"),
        (lambda: fb.activation(None), "unknown activation None: expected one of 'linear'"),
    ]:
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)


def test_names_stand_for_usual_parameters():
    assert fb.activation("relu") == fb.relu()
    assert fb.activation("leaky_relu") == fb.leaky_relu(0.01)
    assert fb.relu(0.5) != fb.relu()
    assert [repr(fb.activation(a)) for a in ALL_ACTIVATIONS[1::4]] == ["'relu'", "fb.relu(0.5)"]
