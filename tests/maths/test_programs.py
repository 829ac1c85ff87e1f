"""Programs: what they compute in C, against NumPy and mpmath; their bounds in memory; fallbacks."""

from __future__ import annotations

import copy
import ctypes
import math
import mmap
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import mpmath
import numpy as np
import pytest
from helpers import processes
from hypothesis import given, strategies as st

import fastbp as fb
from fastbp import backends
from fastbp.backends import native, user_code
from fastbp.maths import algebra, expressions as ex, programs
from fastbp.maths.derivatives import derivative
from fastbp.maths.formulas import general
from fastbp.maths.programs import program

pytestmark = [
    pytest.mark.backend,
    pytest.mark.skipif(native.why_missing() is not None, reason="programs run in C"),
]

X, Y, P = map(ex.variable, "xyp")
DTYPES = (np.float64, np.float32)


def run(made, inputs, parameters=(), outputs=None):
    """The outputs of a program on arrays of one dtype and length."""
    ffi, (n, dtype) = native.ffi, (len(inputs[0]), inputs[0].dtype)
    if outputs is None:
        outputs = [np.empty(n, dtype) for _ in range(made.n_outputs)]
    read = [ffi.cast("void *", array.ctypes.data) for array in inputs]
    written = [ffi.cast("void *", array.ctypes.data) for array in outputs]
    native.lib.fb_evaluate(
        dtype == np.float64, native._program(made), list(parameters), n, read, written
    )
    return outputs


# Random expressions, with the errors that roundings may cause. A number is a value and a bound of
# its error, a truth value is 0 or 1 with infinity where it may be wrong.

UNARY = (
    "negative", "abs", "sign", "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "arctan",
    "sinh", "cosh", "tanh", "sigmoid", "erf", "erfc", "softplus", "bell", "log_cosh",
)  # fmt: skip
BINARY = ("add", "subtract", "multiply", "divide", "max", "min", "power", "xlogy")
CONSTANTS = (0.0, -0.0, 1.0, 2.0, -1.5, 0.3, math.inf, math.nan)
EXPONENTS = (2.0, 3.0, -1.0, -2.0, 5.0, 0.5, 2.5)

leaves = st.sampled_from([X, X, Y, P]) | st.sampled_from(CONSTANTS).map(ex.constant)


def _truths(numbers):
    compared = st.tuples(st.sampled_from(("less", "less_equal", "equal")), numbers, numbers)
    return compared.map(lambda t: ex.node(*t)).flatmap(
        lambda one: st.sampled_from(
            [
                one,
                ex.node("not", one),
                ex.node("and", one, ex.node("less", X, Y)),
                ex.node("or", ex.node("less_equal", Y, X), one),
            ]
        )
    )


numbers = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(UNARY), inner).map(lambda t: ex.node(*t)),
        st.tuples(st.sampled_from(BINARY), inner, inner).map(lambda t: ex.node(*t)),
        st.tuples(inner, st.sampled_from(EXPONENTS)).map(
            lambda t: ex.node("power", t[0], ex.constant(t[1]))
        ),
        st.tuples(_truths(inner), inner, inner).map(lambda t: ex.node("where", *t)),
    ),
    max_leaves=10,
)


def _with_bounds(name, dtype):
    """The operation for pairs of values and error bounds, arrays of float64."""
    of_values, info = ex.OPERATIONS[name][0], np.finfo(dtype)
    exactly = name in ("negative", "abs", "sign", "max", "min", "where")
    # Both sides err; powers are products of up to 5 factors.
    rounding = 0.0 if exactly else 16 * float(info.eps)
    least, most = 8 * float(info.smallest_subnormal), float(info.max) / 4

    def apply(*pairs):
        values = [value for value, _ in pairs]
        result = np.asarray(of_values(*values), np.float64)
        error, unclear = np.zeros(result.shape), np.zeros(result.shape, bool)
        for i, (value, bound) in enumerate(pairs):
            if name == "where":
                taken = i == 0 or (i == 1) == values[0].astype(bool)
                unclear |= taken & np.isinf(bound)
            else:
                unclear |= np.isinf(bound)
            if (name, i) in (("divide", 1), ("power", 0)):  # a pole between the ends
                unclear |= (bound >= abs(value)) & (bound > 0)
            for moved in (value - bound, value + bound):
                other = np.asarray(of_values(*values[:i], moved, *values[i + 1 :]), np.float64)
                both_finite = np.isfinite(other) & np.isfinite(result)
                same = (other == result) | (np.isnan(other) & np.isnan(result))
                unclear |= ~both_finite & ~same
                error = np.maximum(error, np.where(both_finite, abs(other - result), 0))
        if name in ex.TRUTHS:
            return result, np.where(unclear | (error > 0), np.inf, 0)
        # A product that overflows may be part of a sum; in float32 it does so early. What
        # underflows there may be a divisor.
        finite = np.isfinite(result)
        all_finite = np.logical_and.reduce([np.isfinite(value) for value in values])
        if not exactly:
            unclear |= all_finite & (abs(result) > most)
            underflows = name == "erfc"  # SciPy's does, some way before
            unclear |= (abs(result) < info.tiny) & ((result != 0) | underflows)
        error = len(pairs) * error + np.where(finite, rounding * abs(result) + least, 0)
        return result, np.where(unclear, np.inf, error)

    return apply


@given(st.lists(numbers, min_size=1, max_size=3), st.integers(0, 2**32), st.sampled_from(DTYPES))
def test_programs_compute_what_numpy_does(roots, seed, dtype):
    """NaN and infinities included; within the bounds of running errors."""
    rng = np.random.default_rng(seed)
    nasty = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-300, 800.0, -800.0, 0.5]
    n = int(rng.integers(1, 300))
    x, y = rng.normal(size=(2, n)).astype(dtype) * 2
    x[: n // 3], y[n // 4 : n // 2] = rng.choice(nasty, n // 3), rng.choice(nasty, n // 2 - n // 4)
    p = float(dtype(rng.normal()))
    made = program(roots, ("x", "y"), ("p",))
    computed = run(made, [x, y], [p])
    exact = np.zeros(n)
    values = {
        "x": (x.astype(float), exact),
        "y": (y.astype(float), exact),
        "p": (np.full(n, p), exact),
    }
    functions = {name: _with_bounds(name, dtype) for name in ex.OPERATIONS}

    def constant(c):
        rounding = float(np.finfo(dtype).eps) * abs(c) if np.isfinite(c) else 0.0
        exactly = np.float64(dtype(c)) == c or np.isnan(c)
        return np.full(n, float(c)), np.full(n, 0.0 if exactly else rounding)

    with np.errstate(all="ignore"):
        expected = ex.evaluate(roots, values, functions, constant)
    for result, (value, error) in zip(computed, expected, strict=True):
        sure = np.isfinite(error)
        finite = np.isfinite(value)
        np.testing.assert_array_equal(np.isnan(result)[sure], np.isnan(value)[sure])
        np.testing.assert_array_equal(result[sure & ~finite], value[sure & ~finite])
        numbers = sure & finite
        far = abs(result[numbers] - value[numbers]) > error[numbers]
        assert not far.any(), (roots, x[numbers][far], y[numbers][far], p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(ex.OPERATIONS))
def test_special_values(name, dtype):
    """Each operation of NaN, infinities, zeros and subnormal numbers is NumPy's, signs included."""
    info = np.finfo(dtype)
    values = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2, -2, 0.5, info.tiny, info.smallest_subnormal,
         -info.smallest_subnormal, info.max, -info.max], dtype,
    )  # fmt: skip
    n_arguments = {"where": 3}.get(name, ex.OPERATIONS[name][1].count("{1}") + 1)
    if name in ("add", "subtract", "multiply", "divide", "power", "less", "less_equal", "equal",
                "and", "or", "max", "min"):  # fmt: skip
        n_arguments = 2
    x, y = (grid.ravel() for grid in np.meshgrid(values, values))
    if name == "where":
        root = ex.node("where", ex.node("less", X, Y), X, Y)
    elif name in ("and", "or", "not"):
        truths = ex.node("less", X, ex.ONE), ex.node("less_equal", ex.ZERO, Y)
        root = algebra.number(ex.node(name, *truths[:n_arguments]))
    else:
        root = algebra.number(ex.node(name, *(X, Y)[:n_arguments]))
    (result,) = run(program([root], "xy"), [x, y])
    variables = {"x": x.astype(float), "y": y.astype(float)}
    with np.errstate(all="ignore"):
        expected = ex.evaluate([root], variables)[0].astype(dtype)
    expected = np.broadcast_to(expected, x.shape)
    np.testing.assert_allclose(
        result, expected, rtol=8 * info.eps, atol=4 * info.smallest_subnormal
    )
    if name not in ("max", "min"):  # of 0 and -0 either
        signed = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(result)[signed], np.signbit(expected)[signed])


# The functions of which formulas know the error.

MPMATH = {
    "log": mpmath.log, "log1p": mpmath.log1p, "expm1": mpmath.expm1, "sinh": mpmath.sinh,
    "cosh": mpmath.cosh, "arctan": mpmath.atan, "erf": mpmath.erf, "erfc": mpmath.erfc,
}  # fmt: skip
FORMULAS = {
    name: getattr(general, f"{name}_of_any", getattr(general, name, None)) for name in MPMATH
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MPMATH)
def test_functions_of_any_number_err_by_what_they_state(name, dtype):
    limit = float(re.search(r"to ([\d.]+) ULP", FORMULAS[name].__doc__)[1])
    rng, info = np.random.default_rng(5), np.finfo(dtype)
    wide = np.exp2(rng.uniform(info.minexp - info.nmant, info.maxexp, 200)) * rng.choice(
        [-1, 1], 200
    )
    most = 720.0 if dtype == np.float64 else 95.0
    points = [
        wide,
        rng.normal(size=200) * 2,
        rng.uniform(-most, most, 200),
        np.linspace(-1, 1, 201),
    ]
    points = np.concatenate(points).astype(dtype)
    if name == "log":
        points = abs(points)
    if name == "log1p":
        points = points[points > -1]
    if name == "erfc":
        points = points[abs(points) < 1e3]  # mpmath fails
    (result,) = run(program([ex.node(name, X)], "x"), [points])
    with mpmath.workprec(150):
        for x, value in zip(points.tolist(), result.tolist(), strict=True):
            true = MPMATH[name](mpmath.mpf(x))
            if abs(true) > float(info.max):
                assert abs(value) == np.inf
            elif true:
                exponent = max(int(mpmath.floor(mpmath.log(abs(true), 2))), info.minexp)
                assert abs(value - true) <= limit * mpmath.ldexp(1, exponent - info.nmant), x


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_err_by_what_they_state(dtype):
    limit = float(re.search(r"to ([\d.]+) ULP", general.power.__doc__)[1])
    rng, info = np.random.default_rng(6), np.finfo(dtype)
    wide = np.exp2(rng.uniform(info.minexp - info.nmant, info.maxexp, 200))
    x = np.concatenate([wide, rng.uniform(0.5, 2, 200), 1 + rng.normal(size=200) * 1e-3])
    most = 700.0 if dtype == np.float64 else 80.0
    y = np.concatenate([rng.uniform(-1.2, 1.2, 200), rng.normal(size=200) * most])
    y = np.concatenate([y, rng.normal(size=200) * 500 * most])
    x, y = x.astype(dtype), y.astype(dtype)
    (result,) = run(program([ex.node("power", X, Y)], "xy"), [x, y])
    with mpmath.workprec(150):
        for base, exponent, value in zip(x.tolist(), y.tolist(), result.tolist(), strict=True):
            true = mpmath.mpf(base) ** mpmath.mpf(exponent)
            if true > float(info.max):
                assert value == np.inf
                continue
            place = max(int(mpmath.floor(mpmath.log(true, 2))), info.minexp)
            error = abs(value - true) / mpmath.ldexp(1, place - info.nmant)
            assert error <= limit, (base, exponent)


# Code.


def test_equal_subexpressions_and_powers_are_computed_once():
    f = algebra.multiply(X, algebra.apply("exp", algebra.negative(algebra.power(X, ex.TWO))))
    made = program([f, derivative(f, "x")], "x")
    operations = made.code[:, 0].tolist()
    assert operations.count(programs.OP_EXP) == 1
    assert programs.OP_POWER not in operations
    fifth = program([algebra.power(X, ex.constant(5))], "x")
    assert len(fifth.code) == 2  # x² and x²·x²·x


def test_uniforms_run_once():
    """What depends on parameters alone, and constants, in the first instructions."""
    slow = algebra.apply("exp", algebra.multiply(P, ex.constant(3)))
    made = program([algebra.multiply(slow, X), slow, ex.constant(4)], "x", "p")
    assert made.n_once == 2
    x = np.linspace(-1, 1, 600)
    for p in (0.5, -0.25):
        product, alone, four = run(made, [x], [p])
        np.testing.assert_allclose(product, math.exp(3 * p) * x, rtol=1e-15)
        np.testing.assert_allclose(alone, np.full(600, math.exp(3 * p)), rtol=1e-15)
        np.testing.assert_array_equal(four, np.full(600, 4.0))


def test_outputs_may_repeat_or_be_inputs():
    x, y = np.linspace(-1, 1, 77), np.linspace(3, 4, 77)
    both = algebra.add(X, Y)
    for roots, expected in (
        ([X, Y, X], [x, y, x]),
        ([both, both, X], [x + y, x + y, x]),
        ([algebra.apply("exp", both), both], [np.exp(x + y), x + y]),
    ):
        for result, wanted in zip(run(program(roots, "xy"), [x, y]), expected, strict=True):
            np.testing.assert_allclose(result, wanted, rtol=1e-15)


def test_unknown_variables_are_refused():
    with pytest.raises(KeyError, match="y"):
        program([Y], "x")


# Memory.


class Guarded:
    """Arrays that end where readable memory ends, or begin where it begins."""

    def __init__(self, n, dtype, at_end):
        page = mmap.PAGESIZE
        size = max(1, math.ceil(n * dtype().itemsize / page)) * page
        self.memory = mmap.mmap(-1, size + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for address in (start, start + page + size):
            assert protect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0) == 0
        offset = page + (size - n * dtype().itemsize if at_end else 0)
        self.array = np.frombuffer(self.memory, dtype, n, offset)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mprotect"), reason="needs mprotect")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_end", [False, True])
def test_nothing_outside_is_touched(dtype, at_end):
    """For every length up to some blocks with a rest; pieces give the same bits."""
    f = algebra.multiply(Y, algebra.apply("exp", algebra.negative(algebra.power(X, ex.TWO))))
    made = program([algebra.add(f, P), derivative(f, "x")], "xy", "p")
    whole = np.random.default_rng(0).normal(size=(2, 1300)).astype(dtype)
    expected = run(made, list(whole), [2.0])
    for n in (*range(40), 255, 256, 257, 511, 512, 513, 1025, 1300):
        guarded = [Guarded(n, dtype, at_end).array for _ in range(4)]
        for array, source in zip(guarded, whole, strict=False):
            array[:] = source[:n]
        run(made, guarded[:2], [2.0], guarded[2:])
        for result, wanted in zip(guarded[2:], expected, strict=True):
            np.testing.assert_array_equal(result, wanted[:n])
        run(made, guarded[:2], [2.0], [guarded[2], guarded[0]])  # the last one in place
        np.testing.assert_array_equal(guarded[0], expected[1][:n])


def test_many_registers_make_small_blocks():
    """As long as the places suffice, and the same numbers."""
    for count in (20, 60, 150):
        terms = [algebra.apply("sin", algebra.add(X, ex.constant(k))) for k in range(count)]
        total = terms[0]
        for term in terms[1:]:
            total = algebra.add(total, term)
        for term in terms:
            total = algebra.multiply(algebra.add(total, term), ex.HALF)
        made = program([total], "x")
        assert made.fits and made.n_registers >= count - 1
        x = np.linspace(-2, 2, 1001)
        (expected,) = ex.evaluate([total], {"x": x})
        np.testing.assert_allclose(run(made, [x])[0], expected, rtol=1e-12, atol=1e-12)


def test_threads_share_a_program():
    made = program([algebra.apply("tanh", algebra.multiply(X, P))], "x", "p")
    x = np.linspace(-3, 3, 50_001)
    expected = [run(made, [x], [p])[0] for p in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for p, result in enumerate(pool.map(lambda p: run(made, [x], [p])[0], range(8))):
            np.testing.assert_array_equal(result, expected[p])


# Activations and losses.


def bump(z):
    return z * np.exp(-(z**2))


def welsch(y, t):
    return 1 - np.exp(-((y - t) ** 2) / 2)


def test_nothing_is_compiled_for_c():
    """Where Numba cannot be imported networks train with traced functions all the same."""
    code = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
import numpy as np, fastbp as fb
act = fb.Activation("bump", lambda z: z * np.exp(-z**2))
loss = fb.custom_loss(lambda y, t: np.log(np.cosh(y - t)))
net = fb.Network(2, fb.Dense(5, act), fb.Dense(1))
X = np.random.default_rng(0).normal(size=(64, 2))
with fb.use_backend("c"):
    res = fb.fit(net, X, X[:, 0], loss=loss, epochs=3, seed=0)
    H = net.hvp(res.params, X, X[:, 0], res.params, loss)
    J = net.jacobian(res.params, X)
    Y, cache = fb.dense_forward(X, np.ones((2, 3)), None, act)
    fb.dense_backward(Y, cache)
print(np.isfinite(H).all() and np.isfinite(J).all() and np.isfinite(res.fun))
"""
    assert processes.python(code).strip() == "True"


@pytest.mark.parametrize("compile", [False, True])
def test_whole_networks_agree(compile, dtype, rng):
    """C by programs and compiled, Numba and NumPy: objective, gradient, products, Jacobians."""
    act = fb.Activation("bump", bump, compile=compile)
    loss = fb.custom_loss(welsch, compile=compile)
    for sizes in ((3, 4, 2), (3, 11, 9, 5)):  # the first is lane-major
        layers = [fb.Dense(n, act) for n in sizes[1:]]
        net = fb.Network(sizes[0], *layers, dtype=dtype)
        params = net.init(seed=1)
        X, T = rng.normal(size=(70, sizes[0])), rng.normal(size=(70, sizes[-1]))
        w = rng.uniform(0.5, 2, 70)
        results = []
        for name in ("numpy", *(b for b in backends.available_backends() if b != "numpy")):
            with fb.use_backend(name):
                value, grad = net.value_and_grad(params, X, T, loss, sample_weight=w)
                only = net.value(params, X, T, loss, sample_weight=w)
                assert only == pytest.approx(value, rel=1e-6 if dtype == np.float32 else 1e-14)
                product = net.hvp(params, X, T, params, loss, sample_weight=w)
                rows = net.per_sample_grad(params, X, T, loss)
                normal = net.normal_equations(params, X, T)[:2]
                _, pullback = net.vjp(params, X)
                results.append([[value], grad, product, rows, *normal])
                results[-1] += [net.jacobian(params, X), net.jvp(params, X, params)[1]]
                results[-1] += pullback(T.astype(dtype))
        for result in results[1:]:
            for array, expected in zip(result, results[0], strict=True):
                scale = np.abs(expected).max()
                tolerance = 2000 * np.finfo(dtype).eps * scale
                np.testing.assert_allclose(array, expected, rtol=0, atol=tolerance)


def test_compile_is_part_of_the_function():
    """Of its equality, its copies and what Numba is asked for."""
    plain, compiled = fb.Activation("a", bump), fb.Activation("a", bump, compile=True)
    assert plain == fb.Activation("a", bump) != compiled == fb.Activation("a", bump, compile=True)
    losses = fb.custom_loss(welsch), fb.custom_loss(welsch, compile=True)
    assert losses[0] == fb.custom_loss(welsch) != losses[1]
    for x in (plain, compiled, *losses):
        assert (x.functions.programs is None) == x.functions.compile
        for again in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
            assert again == x and again.functions.compile == x.functions.compile


def test_c_asks_numba_for_what_is_to_be_compiled(monkeypatch):
    asked = []
    address = user_code.address
    monkeypatch.setattr(user_code, "address", lambda *them: asked.append(them) or address(*them))
    Z = np.linspace(-1, 1, 9)
    fb.Activation("a", bump).f(Z, backend="c")
    assert not asked
    if backends.why_missing("numba"):
        pytest.skip("Numba is missing")
    fb.Activation("a", bump, compile=True).f(Z, backend="c")
    assert len(asked) == 1


def test_what_is_too_large_is_compiled():
    """An expression with more constants than there are places."""
    factors = np.random.default_rng(0).uniform(0.9, 1.1, 600).tolist()

    def f(z):
        for c in factors:
            z = z * 0.9 + c
        return z

    act = fb.Activation("long", f)
    assert act.functions.programs is None
    if backends.why_missing("numba"):
        pytest.skip("Numba is missing")
    Z = np.linspace(-1, 1, 100)
    np.testing.assert_allclose(act.f(Z, backend="c"), f(Z), rtol=1e-12)
