"""Derivatives of users' functions that follow from their code: formulas, spellings, refusals."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from itertools import count

import mpmath
import numpy as np
import pytest
from helpers.strategies import case_of
from hypothesis import given, strategies as st
from oracles import truth
from scipy import special

import fastbp as fb
from fastbp import jitted
from fastbp.common.errors import TraceError
from fastbp.maths import expressions as ex
from fastbp.maths.derivatives import derivative, derivatives
from fastbp.maths.symbols import expression_of

# Formulas against mpmath.

MPMATH = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "power": lambda x, y: x**y,
    "negative": lambda x: -x,
    "abs": abs,
    "sign": mpmath.sign,
    "max": max,
    "min": min,
    "log1p": lambda x: mpmath.log(1 + x),
    "arctan": mpmath.atan,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "equal": lambda x, y: x == y,
    "and": lambda x, y: x and y,
    "or": lambda x, y: x or y,
    "not": lambda x: not x,
    "where": lambda c, x, y: x if c else y,
    **{
        name: getattr(mpmath, name)
        for name in (
            "exp", "expm1", "log", "sqrt", "sin", "cos", "sinh", "cosh", "tanh", "erf", "erfc",
        )
    },
}  # fmt: skip

# Python functions of the variable z that users may write: text, so that mpmath runs it, too.
UNARY = (
    "exp(sin({}))", "log(1 + {}**2)", "log1p(exp({}))", "tanh({})", "1/(1 + exp(-{}))", "sin({})",
    "cos({})", "tan(sin({}))", "arcsin(sin({})/2)", "arccos(cos({})/2)", "arctan({})",
    "arcsinh({})", "arctanh(tanh({})/2)", "arccosh(2 + {}**2)", "log2(2 + {}**2)",
    "exp2(sin({}))", "hypot({}, 1)",
    "sqrt(1 + {}**2)", "erf({})", "sinh(sin({}))", "cosh(sin({}))",
    "abs({})", "maximum({}, 0.25)", "minimum(0.75, {})", "expm1(-abs({}))", "-{}", "1 - tanh({})",
    "exp(-{}**2)", "where({} > 0.3, sin({}), 0.5)", "1 - 1/(1 + exp({}))", "log(cosh({}))",
    "1/(2 + sin({}))", "1 - tanh({})**2", "{}**3",
)  # fmt: skip
BINARY = (
    "({} + {})", "({} - {})", "({} * {})", "({} / (2 + cos({})))", "maximum({}, {})",
    "(2.0*{} - 0.5*{})", "({} - 0.75)",
)  # fmt: skip

texts = st.recursive(
    st.just("z"),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(UNARY), inner).map(lambda p: _filled(*p)),
        st.tuples(st.sampled_from(BINARY), inner, inner).map(lambda p: p[0].format(*p[1:])),
    ),
    max_leaves=5,
)


def _filled(template, text):
    return template.format(*[f"({text})"] * template.count("{}"))


IN_MPMATH = {
    **{name: MPMATH[name] for name in ("exp", "expm1", "log", "log1p", "sqrt", "sin", "cos")},
    **{name: MPMATH[name] for name in ("sinh", "cosh", "tanh", "erf", "where")},
    **{
        f"arc{name}": getattr(mpmath, f"a{name}")
        for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")
    },
    "tan": mpmath.tan,
    "hypot": mpmath.hypot,
    "log2": lambda x: mpmath.log(x, 2),
    "exp2": lambda x: mpmath.power(2, x),
    "maximum": max,
    "minimum": min,
}


IN_NUMPY = {name: getattr(np, name) for name in IN_MPMATH if name != "erf"} | {"erf": special.erf}


def _function(text, names):
    return eval(f"lambda z: {text}", dict(names))


def _derivatives(root):
    roots = [root]
    while len(roots) < 4:
        roots.append(derivative(roots[-1], "z"))
    return roots


@given(texts, st.integers(-3000, 3000))
def test_formulas_agree_with_mpmath(text, place):
    """Value and three derivatives, to thirty digits where all constants are exact."""
    root = expression_of(_function(text, IN_NUMPY), "z", "")
    roots = _derivatives(root)
    nodes = ex.in_order(roots)
    constants = [at.value for at in nodes if at.operation == "constant"]
    exact = all(value * 1024 == int(value * 1024) for value in constants)
    exact &= all(at.operation != "log_cosh" for at in nodes)  # which brings log 2
    with mpmath.workdps(80):
        z, f = mpmath.mpf((place + 0.37) / 1000), _function(text, IN_MPMATH)
        expected = [f(z), *(mpmath.diff(f, z, n) for n in (1, 2, 3))]
        computed = ex.evaluate(roots, {"z": z}, MPMATH, mpmath.mpf)
        # Others, such as log 2 and 2/sqrt(pi), are rounded to 2^-53.
        tolerance = mpmath.mpf(10) ** -30 if exact else mpmath.mpf(2) ** -45
        for value, true in zip(computed, expected, strict=True):
            assert abs(value - true) <= tolerance * max(1, *map(abs, expected))


def _with_error(f):
    """The function for pairs of a value and a bound of its error, of 4 ULP itself."""

    def of_pairs(*pairs):
        pairs = [p if isinstance(p, tuple) else (p, 0) for p in pairs]
        values = [value for value, _ in pairs]
        result = f(*values)
        if isinstance(result, bool):
            return result
        error = 4 * mpmath.mpf(2) ** -52 * abs(result) + mpmath.mpf(2) ** -1000
        for i, (value, bound) in enumerate(pairs):
            ends = [f(*values[:i], value + e, *values[i + 1 :]) for e in (-bound, bound) if bound]
            error += max((abs(end - result) for end in ends), default=0)
        return result, error

    return of_pairs


@given(texts, st.integers(-3000, 3000))
def test_numbers_are_within_bounds_of_running_errors(text, place):
    """In arrays, and in the Python code."""
    roots = _derivatives(expression_of(_function(text, IN_NUMPY), "z", ""))
    point = (place + 0.37) / 1000
    with mpmath.workdps(40):
        functions = {name: _with_error(f) for name, f in MPMATH.items()}
        z = (mpmath.mpf(point), mpmath.mpf(0))
        bounded = ex.evaluate(roots, {"z": z}, functions, lambda c: (mpmath.mpf(c), 0))
        arrays = ex.evaluate(roots, {"z": np.array([point])})
        numbers = ex.function_of(roots, "z")(point)
        for (value, error), array, number in zip(bounded, arrays, numbers, strict=True):
            assert abs(value - float(np.ravel(array)[0])) <= 2 * error
            assert abs(value - float(number)) <= 2 * error


def test_equal_expressions_are_one_object():
    f = expression_of(lambda z: np.exp(z) * z + 1, "z", "")
    assert expression_of(lambda z: 1 + z * math.exp(z), "z", "") is f
    both = ex.source([f, derivative(f, "z")], "z")
    assert both.count("exp(") == 1
    assert ex.function_of([f], "z") is ex.function_of([f], "z")


def test_the_order_of_terms_does_not_depend_on_what_else_there_is():
    """Fused multiply-adds round by it."""
    f, g = (lambda z: z * np.sin(z) + z * np.cos(z)), (lambda z: np.cos(z) * z + np.sin(z) * z)
    alone = expression_of(f, "z", "")
    text = ex.source([alone], "z")
    del alone
    other = expression_of(g, "z", "")
    assert ex.source([expression_of(f, "z", "")], "z") == text == ex.source([other], "z")


# Every operation that is written as code, of numbers in (0, 1) and the negative ones.
OPERATIONS = (
    lambda z: np.log(abs(z)) + np.log1p(z * z) + np.sqrt(1 + z) + np.sign(z),
    lambda z: np.expm1(z) + np.arctan(z) + np.sinh(z) * np.cosh(z) + math.erf(z),
    lambda z: np.where((z > 0.2) & ~(z >= 0.6), np.sin(z), np.cos(z)) + special.xlogy(z, abs(z)),
    lambda z: np.where((z == 0.5) | (z != z), z, np.float32(0.5) * z) + np.float64(2) ** z,
    lambda z: np.maximum(np.sin(z), z * z) + np.minimum(z, np.cos(z)) - z ** np.int64(-3),
    lambda z: np.where(np.logical_and(z < 0, np.logical_not(z < -0.5)), z**2.5, abs(z) ** -0.3),
    lambda z: math.fabs(z) + math.pow(z, 2) + math.atan(z) + np.square(z) + np.reciprocal(z),
    lambda z: (z < 0.3) * 2 + 3 - (z <= 0.3),
)


@pytest.mark.backend
@pytest.mark.parametrize("f", OPERATIONS)
def test_operations_compile(backend, dtype, f):
    """With NaN where the reference has it; derivatives to some ULP of their largest term."""
    act, eps = fb.Activation("mine", f), np.finfo(dtype).eps
    Z = np.array([-0.9, -0.5, -0.1, 0.25, 0.5, 0.75, 0.95, np.nan], dtype)
    for g, tolerance in ((act.f, 16), (act.df, 64), (act.d2f, 256)):
        exact = g(Z.astype(np.float64), backend="numpy")
        scale = np.nanmax(np.abs(exact), initial=1)
        np.testing.assert_allclose(g(Z), exact, rtol=0, atol=tolerance * eps * scale)


# The built-in functions in the spellings that are usual.

E, expit = math.e, special.expit


def _two_branches(z):
    return np.where(z >= 0, 1 / (1 + np.exp(-z)), np.exp(z) / (1 + np.exp(z)))


def _by_decay(z):
    t = np.exp(-abs(z))
    return np.where(z < 0, t, 1) / (1 + t)


def _by_mantissa(z):
    e2z = math.exp(2 * z)
    return (e2z - 1) / (e2z + 1)


SPELLINGS = {
    "relu": (
        lambda z: max(z, 0.0), lambda z: max(0, z), lambda z: np.maximum(0, z),
        lambda z: np.where(z > 0, z, 0), lambda z: z * (z > 0), lambda z: z * float(z > 0),
        lambda z: (z + abs(z)) / 2, lambda z: 0.5 * (np.abs(z) + z), lambda z: -min(-z, 0),
        lambda z: np.select([z > 0], [z]), lambda z: z * np.heaviside(z, 0),
        lambda z: np.piecewise(z, [z > 0], [lambda z: z, 0.0]),
    ),
    "leaky_relu": (
        lambda z: np.where(z > 0, z, 0.01 * z), lambda z: max(z, 0.01 * z),
        lambda z: np.maximum(0, z) + 0.01 * np.minimum(0, z), lambda z: 0.505 * z + 0.495 * abs(z),
    ),
    "sigmoid": (
        lambda z: 1 / (1 + math.exp(-z)), lambda z: 1.0 / (np.exp(-z) + 1.0),
        lambda z: np.exp(z) / (1 + np.exp(z)), lambda z: 1 / (1 + E**-z), expit,
        lambda z: 0.5 * (1 + np.tanh(z / 2)), lambda z: 0.5 * math.tanh(0.5 * z) + 0.5,
        _two_branches, _by_decay, jitted.sigmoid, lambda z: jitted.sigmoid(z),
        lambda z: 1 / (1 + np.exp(-np.clip(z, -500, 500))), lambda z: (1 + math.exp(-z)) ** -1,
    ),
    "tanh": (
        math.tanh, np.tanh, jitted.tanh, lambda z: math.sinh(z) / math.cosh(z), _by_mantissa,
        lambda z: (np.exp(z) - np.exp(-z)) / (np.exp(z) + np.exp(-z)),
        lambda z: 2 / (1 + math.exp(-2 * z)) - 1, lambda z: 1 - 2 / (math.exp(2 * z) + 1),
        lambda z: 2 * expit(2 * z) - 1,
    ),
    "softplus": (
        lambda z: math.log(1 + math.exp(z)), lambda z: np.log1p(np.exp(z)),
        lambda z: np.logaddexp(0, z), lambda z: max(z, 0) + math.log1p(math.exp(-abs(z))),
        lambda z: np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0), lambda z: -np.log(expit(-z)),
    ),
    "silu": (
        lambda z: z / (1 + math.exp(-z)), lambda z: z * jitted.sigmoid(z),
        lambda z: z * np.exp(z) / (1 + np.exp(z)), lambda z: 0.5 * z * (1 + np.tanh(z / 2)),
    ),
    "gelu_tanh": (
        lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    ),
    "hard_sigmoid": (
        lambda z: np.clip((z + 3) / 6, 0, 1), lambda z: np.minimum(np.maximum(z + 3, 0), 6) / 6,
    ),
    "gelu": (
        lambda z: 0.5 * z * (1 + math.erf(z / math.sqrt(2))), lambda z: z * special.ndtr(z),
    ),
    "elu": (
        lambda z: np.where(z > 0, z, np.exp(z) - 1), lambda z: np.where(z > 0, z, np.expm1(z)),
        lambda z: max(z, 0) + min(0, math.exp(z) - 1),
        lambda z: np.maximum(z, 0) + np.expm1(np.minimum(z, 0)),
    ),
    "relu6": (lambda z: min(max(z, 0), 6), lambda z: np.clip(z, 0, 6)),
    "hard_tanh": (lambda z: max(-1.0, min(1.0, z)), lambda z: np.clip(z, -1, 1)),
    "mish": (
        lambda z: z * math.tanh(math.log1p(math.exp(z))),
        lambda z: z * np.tanh(np.log(1 + np.exp(z))),
    ),
    "softsign": (lambda z: z / (1 + abs(z)), lambda z: z / (1 + np.abs(z))),
}  # fmt: skip
CASES = [(name, f) for name, forms in SPELLINGS.items() for f in forms]
# Both signs, corners, the range of saturated units and further.
POINTS = np.concatenate([np.linspace(-40, 40, 321), [-1e3, -750.0, 1e-300, 1e-9, 750.0, 1e3]])


@pytest.mark.parametrize(("name", "f"), CASES)
def test_spellings_of_built_in_functions(name, f):
    """f and f' of the reference, each sum and product of at most eight terms rounded once."""
    act = fb.Activation("mine", f)
    exact = truth.FUNCTIONS[fb.activation(name)]
    with mpmath.workdps(50):
        for order in (0, 1):
            computed = (act.f, act.df)[order](POINTS, backend="numpy")
            for z, value in zip(POINTS.tolist(), computed.tolist(), strict=True):
                true = exact[order](mpmath.mpf(z))
                assert abs(value - true) <= 2**-49 * max(1, abs(true)), (z, value, true)


def test_a_sum_of_corners_may_have_none():
    """abs has a corner at 0, where abs' counts as 0; z·abs(z) has none."""
    for f, slopes in (
        (lambda z: abs(z), [-1, 0, 1]),
        (lambda z: 3 * abs(z) - z + 1, [-4, -4, 2]),
        (lambda z: z - abs(z), [2, 0, 0]),
        (lambda z: np.sign(z) * np.log1p(abs(z)), [0.5, 1, 0.5]),
        (lambda z: np.sign(2 * z) * abs(z) / (1 + abs(z)), [0.25, 1, 0.25]),
        (lambda z: abs(z) ** 3, [-3, 0, 3]),
        (lambda z: z * abs(z), [2, 0, 2]),
        (lambda z: math.sqrt(z * z), [-1, 0, 1]),
        (lambda z: max(z, 0) - max(-z, 0), [1, 1, 1]),
        (lambda z: np.where(z < 0, np.exp(-abs(z)), 1 + max(z, 0)), [math.exp(-1), 1, 1]),
    ):
        assert fb.Activation("mine", f).df([-1.0, 0.0, 1.0], backend="numpy").tolist() == slopes


def test_stable_forms(backend):
    """Where the plain form overflows, loses digits or is 0·∞ the function is right."""
    entropy = fb.Activation("entropy", lambda z: -z * math.log(z))
    np.testing.assert_array_equal(entropy.f([0.0, 1.0]), [0, 0])
    assert entropy.df([0.0])[0] == np.inf
    softplus = fb.Activation("mine", lambda z: math.log(1 + math.exp(z)))
    Z = np.array([-700.0, -40.0, 800.0])
    np.testing.assert_allclose(softplus.f(Z), [math.exp(-700), math.exp(-40), 800], rtol=1e-14)
    np.testing.assert_allclose(softplus.df(Z), [math.exp(-700), math.exp(-40), 1], rtol=1e-14)
    log_cosh = fb.Activation("mine", lambda z: math.log(math.cosh(z)))
    np.testing.assert_allclose(log_cosh.f([-900.0, 900.0]), 900 - math.log(2), rtol=1e-15)
    np.testing.assert_array_equal(fb.Activation("root", math.sqrt).df([0.0]), [np.inf])


@pytest.mark.parametrize(("name", "f"), CASES)
def test_nan_and_infinity_as_those_of_the_built_in_function(name, f):
    act, built_in = fb.Activation("mine", f), fb.activation(name)
    Z = np.array([np.nan, np.inf, -np.inf, 0.5])
    for order in ("f", "df", "d2f"):
        values, expected = (getattr(a, order)(Z, backend="numpy") for a in (act, built_in))
        np.testing.assert_allclose(values, expected, rtol=1e-13, atol=1e-15)


def test_limits_are_no_accidents_of_rounding():
    """(|z + 1| - |z - 1|)/2 is 0 from 1e17 on, as NumPy has it; z·sin z has no limit."""
    for f in (lambda z: (abs(z + 1) - abs(z - 1)) / 2, lambda z: z * np.sin(z)):
        assert np.isnan(fb.Activation("mine", f).f([np.inf, -np.inf], backend="numpy")).all()
    cubic = fb.Activation("mine", lambda z: z**3 - 3 * z)
    assert cubic.f([np.inf, -np.inf], backend="numpy").tolist() == [np.inf, -np.inf]


def test_a_function_may_ask_for_nan():
    act = fb.Activation("mine", lambda z: np.where(z == z, max(z, 0), -1))
    assert act.f([np.nan, 2.0], backend="numpy").tolist() == [-1, 2]


@pytest.mark.parametrize("f", [f for name in SPELLINGS for f in SPELLINGS[name][:1]])
def test_nan_and_infinity(backend, f):
    """What the reference gives, the others give."""
    act, Z = fb.Activation("mine", f), np.array([np.nan, np.inf, -np.inf, 0.5])
    for g in (act.f, act.df, act.d2f):
        np.testing.assert_allclose(g(Z), g(Z, backend="numpy"), rtol=1e-14)


# Refusals.


def branch(z):
    return z if z > 0 else 0.0


def loop(z):
    while z > 1:
        z = z / 2
    return z


def chained(z):
    return np.where(0 < z < 1, z, 0)


def unknown(z):
    y = 2 * z
    return math.gamma(y * y + 1)


def unknown_of_numpy(z):
    return np.spacing(np.tanh(z))


def helper(z):
    return 1 + branch(z)


def conversion(z):
    return np.float64(z) ** 2


def rounding(z):
    return z - round(z)


def array(z):
    return np.sum(np.arange(3.0) * z)


def method(z):
    return z.conjugate()


REFUSED = [
    (branch, "return z if z > 0 else 0.0", "a branch on a value; write np.where(condition, a, b)"),
    (loop, "while z > 1:", "a branch on a value"),
    (chained, "return np.where(0 < z < 1, z, 0)", "a branch on a value"),
    (unknown, "return math.gamma(y * y + 1)", "math.gamma"),
    (unknown_of_numpy, "return np.spacing(np.tanh(z))", "NumPy's spacing"),
    (helper, "return z if z > 0 else 0.0", "a branch on a value"),
    (conversion, "return np.float64(z) ** 2", "a conversion to a"),
    (rounding, "return z - round(z)", "rounding to an integer"),
    (array, "return np.sum(np.arange(3.0) * z)", "arithmetic with an array of shape (3,)"),
    (method, "return z.conjugate()", "AttributeError: "),
]


@pytest.mark.parametrize(("f", "source", "operation"), REFUSED)
def test_refusals_name_the_operation_and_the_line(f, source, operation):
    with pytest.raises(TraceError) as caught:
        expression_of(f, "z", "pass it yourself")
    error = caught.value
    head, place, quoted, reason, hint = str(error).split("\n")
    assert head == "the derivatives of f cannot be derived from its code:"
    assert place.startswith(f"line {error.line} of {__file__}, in ") and error.filename == __file__
    assert quoted.strip() == source and hint == "pass it yourself"
    assert reason == error.operation and reason.startswith(operation)
    with open(__file__, encoding="utf-8") as file:
        assert file.readlines()[error.line - 1].strip() == source
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.line, again.operation) == (str(error), error.line, error.operation)


def test_refusals_say_what_to_do():
    with pytest.raises(fb.TraceError, match=r"pass the derivative yourself: fastbp\.Activation\("):
        fb.Activation("mine", branch)
    with pytest.raises(ValueError, match=r"return the derivative too: .* -> \(loss, dloss\)"):
        fb.custom_loss(lambda y, t: y - t if y > t else t - y)


def test_functions_that_differ_from_call_to_call_are_refused():
    calls = count()
    with pytest.raises(fb.TraceError, match=r"f\(-3\.9173\) is .*, by its expression "):
        fb.Activation("mine", lambda z: z * next(calls))
    with pytest.raises(fb.TraceError, match="by its expression"):
        fb.Activation("mine", lambda z: z if isinstance(z, np.floating) else 2 * z)


# What users' functions may call.

SCALE = 2.0


def half(z):
    return max(z, 0) / SCALE


class Bent:
    """A class whose method is an activation."""

    def __init__(self, factor):
        self.factor = factor

    def f(self, z):
        return self.factor * math.exp(-abs(z))


def imports(z):
    import math as m
    from math import tanh

    import numpy

    return m.exp(-abs(z)) * tanh(z) + numpy.sin(z)


def test_helpers_closures_defaults_and_methods():
    before = dict(globals())

    def inner(z, exp=math.exp, *, factor=0.5):
        return factor * exp(-z * z) + half(z)

    for f in (
        inner, lambda z: inner(z), Bent(3.0).f, functools.partial(inner, factor=0.25),
        imports, lambda z: sum(c * z**n for n, c in enumerate((1.0, 2.0, 3.0))),
        lambda z: pow(z, 2), lambda z: max([z, 1.0, 2 * z]), lambda z: 1.0,
    ):  # fmt: skip
        act, Z = fb.Activation("mine", f), np.array([-2.0, -0.3, 0.7, 3.0])
        np.testing.assert_allclose(act.f(Z, backend="numpy"), [f(z) for z in Z], rtol=1e-14)
        slopes = [(f(z + 1e-5) - f(z - 1e-5)) / 2e-5 for z in Z]
        np.testing.assert_allclose(act.df(Z, backend="numpy"), slopes, rtol=1e-8, atol=1e-9)
    assert dict(globals()) == before and inner.__defaults__ == (math.exp,)


# Networks.


def bump(z):
    return z * math.exp(-z * z)


def bump_slope(z):
    return (1 - 2 * z * z) * math.exp(-z * z)


def bump_bend(z):
    return (4 * z * z - 6) * z * math.exp(-z * z)


def swish(z):
    return z * jitted.sigmoid(z)


def swish_slope(z):
    s = jitted.sigmoid(z)
    return s * (1 + z * (1 - s))


def swish_bend(z):
    s = jitted.sigmoid(z)
    return s * (1 - s) * (2 + z * (1 - 2 * s))


def cauchy(y, t):
    return math.log(1 + (y - t) ** 2)


def cauchy_by_hand(y, t):
    d = y - t
    return math.log1p(d * d), 2 * d / (1 + d * d)


def cauchy_second(y, t):
    d = (y - t) ** 2
    return 2 * (1 - d) / (1 + d) ** 2


def cross_entropy(y, t):
    return max(y, 0) - y * t + math.log1p(math.exp(-abs(y)))


PAIRS = {
    "bump": (fb.Activation("bump", bump), fb.Activation("b", bump, bump_slope, bump_bend)),
    "swish": (fb.Activation("swish", swish), fb.Activation("s", swish, swish_slope, swish_bend)),
}
CAUCHY = fb.custom_loss(cauchy, name="cauchy")
CAUCHY_BY_HAND = fb.custom_loss(cauchy_by_hand, cauchy_second, name="by hand")
CROSS_ENTROPY = fb.custom_loss(cross_entropy, name="ce")


@pytest.mark.backend
@pytest.mark.parametrize("name", PAIRS)
def test_as_with_derivatives_by_hand(backend, dtype, name, rng):
    results = []
    v = rng.standard_normal(45).astype(dtype)
    for act, loss in zip(PAIRS[name], (CAUCHY, CAUCHY_BY_HAND), strict=True):
        net = fb.Network(4, fb.Dense(7, act), fb.Dense(1, act), dtype=dtype)
        c = case_of(np.random.default_rng(3), net, loss=loss)
        v = np.resize(v, net.n_params)
        value, grad = net.value_and_grad(*c.arguments)
        products = net.hvp(c.params, c.X, c.y, v, loss)
        results.append([value, grad, products, *(f(c.X) for f in (act.f, act.df, act.d2f))])
    for first, second in zip(*results, strict=True):
        scale = np.max(np.abs(second))
        assert np.max(np.abs(first - second)) <= 200 * np.finfo(dtype).eps * max(scale, 1)


@pytest.mark.backend
def test_gradients_are_right_and_networks_train(backend, rng):
    net = fb.Network(3, fb.Dense(8, PAIRS["bump"][0]), fb.Dense(1))
    X, y = rng.standard_normal((60, 3)), rng.random((60, 1))
    for loss in (CAUCHY, CROSS_ENTROPY):
        assert fb.check_grad(net.objective(X, y, loss), net.init(0)).passed
        result = fb.fit(net, X, y, loss=loss, method="adam", lr=0.01, epochs=20, seed=1)
        assert result.fun < net.value(net.init(1), X, y, loss)


@pytest.mark.backend
def test_code_that_numba_does_not_know_runs_on_every_backend(backend):
    """The expression is compiled, not the user's code."""
    rates = {"fast": 2.0}
    act = fb.Activation("mine", lambda z: rates["fast"] * special.expit(z))
    np.testing.assert_allclose(act.f([0.0, 800.0]), [1, 2], rtol=1e-15)


def test_losses_take_a_second_derivative_of_the_users(backend):
    loss = fb.custom_loss(cauchy, cauchy_second)
    with pytest.raises(ValueError, match="d2 of 'custom' for target 0 is"):
        fb.custom_loss(cauchy, lambda y, t: 1.0)
    with pytest.raises(ValueError, match="d2f of activation 'mine' is"):
        fb.Activation("mine", bump, None, bump)
    net = fb.Network(1, fb.Dense(1))
    arguments = [0.5, 1.0], [[1.0], [2.0]], [0.0, 3.0], [1.0, -1.0]
    expected = net.hvp(*arguments, CAUCHY)
    np.testing.assert_allclose(net.hvp(*arguments, loss), expected, rtol=1e-14)


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_copies_equality_and_hash(copied):
    """The derivatives follow again from the function when it is unpickled."""
    act = PAIRS["bump"][0]
    for x in (act, CAUCHY, fb.Activation("bump", bump, None, bump_bend)):
        again = copied(x)
        assert again == x and hash(again) == hash(x) and repr(again) == repr(x)
    assert act == fb.Activation("bump", bump) and act != PAIRS["bump"][1]
    assert act not in (fb.Activation("bump", swish), fb.Activation("other", bump))
    assert CAUCHY not in (CAUCHY_BY_HAND, CROSS_ENTROPY)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(fb.Activation("mine", lambda z: z * z))


@pytest.mark.parametrize("f", (lambda z: np.logaddexp(z, 0), lambda z: np.logaddexp(z, -z)))
def test_logaddexp_loses_nothing(f):
    act = fb.Activation("act", f)
    Z = np.array([-np.inf, -700.0, -50.0, -1.0, 0.0, 1.0, 50.0, 700.0, np.inf])
    np.testing.assert_allclose(act.f(Z), f(Z), rtol=1e-14)
    slopes = (f(Z[2:7] + 1e-6) - f(Z[2:7] - 1e-6)) / 2e-6
    np.testing.assert_allclose(act.df(Z[2:7]), slopes, rtol=1e-4, atol=1e-9)


def test_options_of_max_and_objects_that_are_called():
    class Bump:
        def __call__(self, z):
            return max([], default=2) * z * math.exp(-z * z) * min([3, 1], key=lambda v: -v)

    act = fb.Activation("bump", Bump())
    np.testing.assert_allclose(act.df(np.array([0.0, 1.0])), [6.0, -6 / math.e])
    with pytest.raises(TraceError, match="max with a key"):
        fb.Activation("far", lambda z: max([z, 1.0], key=abs))


def test_many_corners():
    def knots(z):
        return sum(max(z - 0.01 * i, 0.0) * (0.01 if i % 2 else -0.01) for i in range(1500))

    root = expression_of(knots, ("z",), "")
    (slope,) = ex.evaluate([derivative(root, "z")], {"z": np.array([0.095, 0.105])})
    np.testing.assert_allclose(slope, [0.0, -0.01], atol=1e-12)


def test_lists_of_expressions_restore_them():
    root = expression_of(lambda x, y: np.where(x < y, special.erf(x * y) ** 2, x * y), "xy", "")
    assert ex.of_list(pickle.loads(pickle.dumps(ex.listed(root)))) is root


def test_losses_by_where(backend):
    loss = fb.custom_loss(lambda y, t: np.where(y < t, 2 * (t - y), (y - t) ** 2))
    net = fb.Network(1, fb.Dense(1))
    value, grad = net.value_and_grad([1.0, 0.0], [[1.0], [3.0]], [2.0, 1.0], loss)
    assert value == (2 * 1 + 2**2) / 2
    np.testing.assert_allclose(grad, [(-2 + 3 * 4) / 2, (-2 + 4) / 2])


def test_derivatives_by_many_variables():
    names = [f"p{i}" for i in range(300)]
    root = expression_of(lambda *p: sum(math.sin(i * a) for i, a in enumerate(p)), names, "")
    slopes = derivatives(root, [*names, "other"])
    assert slopes[0] is slopes[-1] is ex.ZERO
    for i in (1, 150, 299):
        expected = expression_of(lambda a, i=i: i * math.cos(i * a), names[i : i + 1], "")
        assert slopes[i] is expected


def test_functions_that_ask_for_floats():
    def f(z):
        return math.exp(z) if isinstance(z, (int, float)) else np.exp(z)

    np.testing.assert_allclose(fb.Activation("rise", f).df(np.ones(1)), [math.e])
