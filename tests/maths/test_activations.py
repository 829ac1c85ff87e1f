"""Activations: accuracy over the whole range, special values, any shape."""

from __future__ import annotations

import re
import shutil
import subprocess

import mpmath
import numpy as np
import pytest
from helpers.strategies import EVERY_ACTIVATION, nasty_layouts, same
from oracles import truth
from oracles.bounds import ULP_OTHER, ULP_SIGMOID
from scipy import special

import fastbp as fb
from fastbp import backends
from fastbp.maths import activations
from fastbp.maths.activations import SELU_ALPHA, SELU_SCALE
from fastbp.maths.formulas.activations import FORMULAS

pytestmark = pytest.mark.backend

TIGHT = ("exp", "sigmoid", "tanh")


@pytest.mark.parametrize("act", truth.FUNCTIONS, ids=str)
@pytest.mark.parametrize("order", [0, 1], ids=["f", "df"])
def test_accurate_over_the_whole_range(backend, dtype, act, order):
    if backend == "numpy" and dtype == np.float64:
        pytest.skip("the reference's last digits in float64 are NumPy's")
    Z = truth.points(dtype)
    computed = (act.f, act.df)[order](Z)
    error = truth.ulps(computed, *truth.truth(act, dtype, order))
    worst = np.argmax(error)
    limit = FORMULAS[act.name].ulps[order]
    assert limit <= (ULP_SIGMOID if act.name in TIGHT and order == 0 else ULP_OTHER)
    assert error[worst] <= limit, f"at {Z[worst]!r}: {computed[worst]!r}, {error[worst]:.2f} ULP"


@pytest.mark.parametrize("act", truth.FUNCTIONS, ids=str)
def test_second_derivatives_follow_the_first(backend, dtype, act):
    # Differences of the exact first derivative; h is small against the corners' distance.
    Z = np.linspace(-7.03, 6.97, 201).astype(dtype)
    with mpmath.workdps(60):
        h, slope = mpmath.mpf(10) ** -20, truth.FUNCTIONS[act][1]
        expected = np.array(
            [float((slope(z + h) - slope(z - h)) / (2 * h)) for z in map(mpmath.mpf, Z.tolist())]
        )
    scale = np.maximum(1, abs(expected))
    assert (abs(act.d2f(Z) - expected) <= 8 * np.finfo(dtype).eps * scale).all()


@pytest.mark.parametrize("act", truth.FUNCTIONS, ids=str)
def test_third_derivatives_follow_the_first(dtype, act):
    Z = np.linspace(-7.03, 6.97, 201).astype(dtype)
    with mpmath.workdps(80):
        h, slope = mpmath.mpf(10) ** -20, truth.FUNCTIONS[act][1]
        expected = np.array(
            [
                float((slope(z + h) - 2 * slope(z) + slope(z - h)) / h**2)
                for z in map(mpmath.mpf, Z.tolist())
            ]
        )
    scale = np.maximum(1, abs(expected))
    for backend in {"c", "numpy"} & set(fb.available_backends()):
        computed = backends.load(backend).activation(act, Z, 3)
        assert computed.dtype == dtype
        assert (abs(computed - expected) <= 32 * np.finfo(dtype).eps * scale).all()


def test_third_derivatives_at_special_points_are_those_of_the_reference(dtype):
    if "c" not in fb.available_backends():
        pytest.skip("the C library is not built")
    Z = np.concatenate([SPECIAL, [1e-30, 30, -30, 200, -200, 1e5, -1e5, 1e30, -1e30]]).astype(dtype)
    for act in truth.FUNCTIONS:
        computed, expected = (backends.load(b).activation(act, Z, 3) for b in ("c", "numpy"))
        np.testing.assert_allclose(
            computed, expected, rtol=1e4 * np.finfo(dtype).eps, atol=64 * np.finfo(dtype).eps
        )


def test_expressions_for_exports_are_the_functions(tmp_path):
    """MATLAB's by NumPy, C's by a compiler."""
    Z = np.array([-30, -7, -3.5, -1, -0.3, 0, 0.2, 0.9, 1.5, 4, 6.5, 40])
    names = {
        "max": np.maximum, "min": np.minimum, "abs": np.abs, "erfc": special.erfc,
        **{name: getattr(np, name) for name in "exp expm1 log log1p sqrt tanh sin cos".split()},
    }  # fmt: skip
    compiler, lines, expected = shutil.which("cc"), [], []
    for name in activations.NAMES:
        act, row = fb.activation(name), activations.TABLE[name]
        Y = act.f(Z, backend="numpy")
        matlab = row.matlab.replace(".*", "*").replace("./", "/").replace(".^", "**")
        with np.errstate(over="ignore"):
            computed = eval(matlab, names, {"z": Z, "c": act.constant})
        np.testing.assert_allclose(computed, Y, 1e-12)
        lines.append(f"c = {act.constant!r}; (void)c; for (i = 0; i < {len(Z)}; i++) {{")
        lines.append(f'double z = Z[i]; printf("%.17g ", {row.c}); }}')
        expected.append(Y)
        assert re.fullmatch(r"[A-Z]\w+\(.*\)", row.onnx)
    if compiler is None:
        pytest.skip("no C compiler was found")
    head = "#include <math.h>\n#include <stdio.h>\n"
    numbers = ", ".join(map(repr, Z.tolist()))
    body = [f"double Z[] = {{{numbers}}}, c; int i;", *lines, "return 0;"]
    (tmp_path / "f.c").write_text(head + "int main(void) {\n" + "\n".join(body) + "\n}\n")
    subprocess.run([compiler, "f.c", "-o", "f", "-lm"], cwd=tmp_path, check=True)
    computed = subprocess.run(["./f"], cwd=tmp_path, check=True, capture_output=True).stdout
    np.testing.assert_allclose(np.array(computed.split(), float), np.ravel(expected), 1e-12)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softsign", "hard_tanh", "hard_sigmoid"])
def test_bounded_functions_keep_their_range_and_symmetry(backend, dtype, name):
    act = fb.activation(name)
    Z = np.sort(np.abs(truth.points(dtype)))
    Y = act.f(Z)
    assert (Y <= 1).all()
    if name.endswith("sigmoid"):
        assert (act.f(-Z) >= 0).all()
        assert act.f(dtype.type(0)) == 0.5
    else:
        assert same(act.f(-Z), -Y)


PIECEWISE_LINEAR = ("linear", "relu", fb.relu(0.5), "leaky_relu", fb.leaky_relu(0.3))


@pytest.mark.parametrize("act", PIECEWISE_LINEAR, ids=str)
def test_piecewise_linear_functions(backend, dtype, act):
    act = fb.activation(act)
    Z = truth.points(dtype)
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
NAN, INF = np.nan, np.inf
# f, df and d2f at the special points; what is not here is taken from mpmath by `answers`.
ANSWERS = {
    "linear": ([NAN, INF, -INF, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
    "relu": ([NAN, INF, 0, 0, 0], [NAN, 1, 0, 0, 0], [NAN, 0, 0, 0, 0]),
    fb.relu(0.5): ([NAN, INF, 0, 0, 0], [NAN, 1, 0, 0.5, 0.5], [NAN, 0, 0, 0, 0]),
    "leaky_relu": ([NAN, INF, -INF, 0, 0], [NAN, 1, 0.01, 0.01, 0.01], [NAN, 0, 0, 0, 0]),
    "elu": ([NAN, INF, -1, 0, 0], [NAN, 1, 0, 1, 1], [NAN, 0, 0, 1, 1]),
    fb.elu(0.5): ([NAN, INF, -0.5, 0, 0], [NAN, 1, 0, 0.5, 0.5], [NAN, 0, 0, 0.5, 0.5]),
    "selu": (
        [NAN, INF, -SELU_SCALE * SELU_ALPHA, 0, 0],
        [NAN, SELU_SCALE, 0, SELU_SCALE * SELU_ALPHA, SELU_SCALE * SELU_ALPHA],
        [NAN, 0, 0, SELU_SCALE * SELU_ALPHA, SELU_SCALE * SELU_ALPHA],
    ),
    "celu": ([NAN, INF, -1, 0, 0], [NAN, 1, 0, 1, 1], [NAN, 0, 0, 1, 1]),
    fb.celu(2): ([NAN, INF, -2, 0, 0], [NAN, 1, 0, 1, 1], [NAN, 0, 0, 0.5, 0.5]),
    "sigmoid": ([NAN, 1, 0, 0.5, 0.5], [NAN, 0, 0, 0.25, 0.25], [NAN, 0, 0, 0, 0]),
    "tanh": ([NAN, 1, -1, 0, 0], [NAN, 0, 0, 1, 1], [NAN, 0, 0, 0, 0]),
    "softplus": (
        [NAN, INF, 0, np.log(2), np.log(2)],
        [NAN, 1, 0, 0.5, 0.5],
        [NAN, 0, 0, 0.25, 0.25],
    ),
    "softsign": ([NAN, 1, -1, 0, 0], [NAN, 0, 0, 1, 1], [NAN, 0, 0, 0, 0]),
    "gelu": ([NAN, INF, 0, 0, 0], [NAN, 1, 0, 0.5, 0.5], [NAN, 0, 0, *[np.sqrt(2 / np.pi)] * 2]),
    "gelu_tanh": (
        [NAN, INF, 0, 0, 0],
        [NAN, 1, 0, 0.5, 0.5],
        [NAN, 0, 0, *[np.sqrt(2 / np.pi)] * 2],
    ),
    "silu": ([NAN, INF, 0, 0, 0], [NAN, 1, 0, 0.5, 0.5], [NAN, 0, 0, 0.5, 0.5]),
    "mish": ([NAN, INF, 0, 0, 0], [NAN, 1, 0, 0.6, 0.6], [NAN, 0, 0, 0.64, 0.64]),
    "hard_tanh": ([NAN, 1, -1, 0, 0], [NAN, 0, 0, 1, 1], [NAN, 0, 0, 0, 0]),
    "hard_sigmoid": ([NAN, 1, 0, 0.5, 0.5], [NAN, 0, 0, 1 / 6, 1 / 6], [NAN, 0, 0, 0, 0]),
    "relu6": ([NAN, 6, 0, 0, 0], [NAN, 0, 0, 0, 0], [NAN, 0, 0, 0, 0]),
    "exp": ([NAN, INF, 0, 1, 1], [NAN, INF, 0, 1, 1], [NAN, INF, 0, 1, 1]),
    "sin": ([NAN, NAN, NAN, 0, 0], [NAN, NAN, NAN, 1, 1], [NAN, NAN, NAN, 0, 0]),
}
ODD = ("linear", "tanh", "softsign", "hard_tanh", "sin", "gelu", "gelu_tanh", "silu", "mish")


def test_the_tables_of_formulas_and_truths_are_complete():
    assert set(FORMULAS) == set(activations.TABLE)
    assert {act.name for act in truth.FUNCTIONS} == set(activations.NAMES)


def answers(act):
    """f and df at the special points as mpmath's limits, d2f as NumPy's formula has it there."""
    with mpmath.workdps(truth.DIGITS):
        f, df = (
            [NAN, limit(g, 1), limit(g, -1), *[float(g(mpmath.mpf(0)))] * 2]
            for g in truth.FUNCTIONS[act]
        )
    return f, df, backends.load("numpy").activation(act, np.array(SPECIAL), 2)


def limit(f, sign):
    """The limit at infinity of a function of mpmath: NaN if it oscillates."""
    far, farther = (f(sign * mpmath.mpf(10) ** power) for power in (400, 420))
    if abs(far) > np.finfo(float).max:
        return float(mpmath.sign(far)) * INF
    return float(far) if abs(farther - far) < 1e-30 else NAN


EVERY_ANSWER = dict.fromkeys(map(fb.activation, (*ANSWERS, *activations.NAMES)))


@pytest.mark.parametrize("act", truth.FUNCTIONS, ids=str)
def test_answers_from_mpmath_are_those_of_the_table(act):
    tabled = {fb.activation(key): value for key, value in ANSWERS.items()}.get(act)
    if tabled is not None and act.name != "linear":  # whose slope is 1 at NaN as well
        for computed, expected in zip(answers(act), tabled, strict=True):
            np.testing.assert_allclose(computed, expected, rtol=1e-15, atol=1e-300)


@pytest.mark.parametrize("length", [5, 80])  # alone, and in the middle of vectors
@pytest.mark.parametrize("act", EVERY_ANSWER, ids=str)
def test_nan_stays_nan_and_infinities_are_as_in_the_table(backend, dtype, act, length):
    Z = np.full(length, 0.5, dtype)
    Z[-5:] = SPECIAL
    tabled = {fb.activation(key): value for key, value in ANSWERS.items()}
    for f, expected in zip((act.f, act.df, act.d2f), tabled.get(act) or answers(act), strict=True):
        computed = f(Z)
        # Numbers between the special ones (log 2, 0.6 of mish) are rounded.
        np.testing.assert_allclose(
            computed[-5:], np.array(expected, dtype), rtol=4 * np.finfo(dtype).eps, atol=0
        )
        assert np.isfinite(computed[:-5]).all()


@pytest.mark.parametrize("act", EVERY_ANSWER, ids=str)
def test_subnormal_numbers_are_not_flushed(backend, dtype, act):
    tiny = np.finfo(dtype).smallest_subnormal
    Z = np.array([tiny, -tiny, 1000 * tiny, -1000 * tiny], dtype)
    slope = np.where(Z > 0, *(act.df(np.array([s], dtype))[0] for s in (tiny, -tiny)))
    expected = act.f(dtype.type(0)) + slope * Z  # the tangent, to less than a subnormal
    assert (abs(act.f(Z) - expected) <= np.maximum(tiny, np.finfo(dtype).eps * abs(expected))).all()


@pytest.mark.parametrize("name", ODD)
def test_negative_zero_keeps_its_sign(backend, dtype, name):
    Y = fb.activation(name).f(np.array([-0.0, 0.0], dtype))
    assert (Y == 0).all()
    assert np.signbit(Y).tolist() == [True, False]


@pytest.mark.parametrize("act", EVERY_ACTIVATION, ids=str)
def test_any_shape_and_stride(backend, dtype, rng, act):
    act = fb.activation(act)
    for shape in [(), (0,), (1,), (0, 3), (3, 0, 2), (7, 5), (2, 3, 4, 5), (1000,)]:
        Z = np.asarray(3 * rng.standard_normal(shape)).astype(dtype)
        flat = [f(Z.ravel()) for f in (act.f, act.df, act.d2f)]
        for name, variant in {"clean": Z, **nasty_layouts(Z)}.items():
            before = variant.copy()
            for f, expected in zip((act.f, act.df, act.d2f), flat, strict=True):
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
        (lambda: fb.elu(-1), "alpha is -1.0, expected a finite number >= 0"),
        (lambda: fb.celu(0), "alpha is 0.0, expected a positive finite number"),
        (lambda: fb.activation("tanhh"), "did you mean 'tanh'?"),
        (lambda: fb.activation(None), "unknown activation None: expected one of 'linear'"),
    ]:
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)


def test_names_stand_for_usual_parameters():
    assert fb.activation("relu") == fb.relu()
    assert fb.activation("leaky_relu") == fb.leaky_relu(0.01)
    assert fb.activation("elu") == fb.elu(1.0)
    assert fb.activation("celu") == fb.celu(1.0)
    assert fb.relu(0.5) != fb.relu()
    assert [repr(fb.activation(a)) for a in ("relu", fb.relu(0.5))] == ["'relu'", "fb.relu(0.5)"]
