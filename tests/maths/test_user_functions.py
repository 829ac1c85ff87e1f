"""User-defined activations and losses: which are accepted, how they compile, their results."""

from __future__ import annotations

import copy
import ctypes
import math
import pickle
import platform
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.strategies import BUMP, QUARTIC, case, case_of, same
from oracles import bounds

import fastbp as fb
from fastbp import jitted
from fastbp.backends import user_code
from fastbp.maths.symbols import check_given_derivative
from fastbp.maths.user_functions import ScalarFunctions

pytestmark = pytest.mark.backend


# Twins of built-in functions, at module level so that they survive pickling.


def tanh_slope(z):
    return 1 - math.tanh(z) ** 2


def tanh_bend(z):
    t = math.tanh(z)
    return -2 * t * (1 - t * t)


def softplus(z):
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def sigmoid(z):
    t = math.exp(-abs(z))
    return (t if z < 0 else 1) / (1 + t)


def sigmoid_slope(z):
    t = math.exp(-abs(z))
    return t / (1 + t) ** 2


def relu(z):
    return z if z > 0 else 0.0


def step(z):
    return 1.0 if z > 0 else 0.0


def zero(z):
    return 0.0


def squared(y, t):
    return (y - t) ** 2, 2 * (y - t)


def two(y, t):
    return 2.0


def logistic(y, t):
    return max(y, 0.0) - y * t + math.log1p(math.exp(-abs(y))), sigmoid(y) - t


def logistic_second(y, t):
    return sigmoid_slope(y)


TWINS = {
    "tanh": fb.Activation("my tanh", np.tanh, tanh_slope, tanh_bend),
    "softplus": fb.Activation("my softplus", softplus, sigmoid, sigmoid_slope),
    "relu": fb.Activation("my relu", relu, step, zero),
}
LOSS_TWINS = {
    "mse": fb.custom_loss(squared, two, name="my mse"),
    "bce_logits": fb.custom_loss(logistic, logistic_second, name="my bce"),
}


# Arguments.


WRONG = [  # f, claimed derivative, the true one
    (lambda z: 2.5 * z**3 - 1.5 * z, lambda z: 7.5 * z**2, lambda z: 7.5 * z**2 - 1.5),
    (math.tanh, lambda z: 1 - z**2, lambda z: 1 - math.tanh(z) ** 2),
    (math.sin, lambda z: -math.cos(z), math.cos),
    (lambda z: math.exp(2 * z), lambda z: math.exp(2 * z), lambda z: 2 * math.exp(2 * z)),
    (lambda z: max(z, 0.0), lambda z: 1.0, lambda z: float(z > 0)),
    (math.log, lambda z: 1 / (z + 1e-4), lambda z: 1 / z),
    (lambda z: z, lambda z: math.nan, lambda z: 1.0),
]


@pytest.mark.parametrize(("f", "claimed", "true"), WRONG)
def test_wrong_derivatives_are_refused(f, claimed, true):
    """The message quotes the point, the derivative there and the difference quotient."""
    with pytest.raises(ValueError, match="correct the derivative") as caught:
        fb.Activation("mine", f, claimed)
    message = str(caught.value)
    assert message.startswith("df of activation 'mine' is ")
    pattern = r"is (\S+) at (\S+), expected (\S+) ± (\S+), the difference quotient of f there"
    quoted, point, expected, error = map(float, re.search(pattern, message).groups())
    # The point is rounded to 6 digits in print.
    assert quoted == pytest.approx(claimed(point), rel=1e-4, nan_ok=True)
    assert expected == pytest.approx(true(point), rel=1e-4)
    assert 0 <= error < 1e-5 * max(1, abs(expected))


def test_wrong_second_derivatives_are_refused():
    with pytest.raises(ValueError, match=r"d2f of activation 'mine' is .* the difference quo.* df"):
        fb.Activation("mine", math.sin, math.cos, math.sin)
    with pytest.raises(ValueError, match=r"d2 of 'mine' for target 0 is 1 at .* expected 2 ± "):
        fb.custom_loss(squared, lambda y, t: 1.0, name="mine")


def test_derivatives_that_are_wrong_where_differences_do_not_reach_are_refused():
    """Beyond 4, and by the code of f, which is exact there."""
    clipped = lambda z: 1 - math.tanh(min(max(z, -6.0), 6.0)) ** 2 + 1e-3 * (abs(z) > 6)  # noqa: E731
    with pytest.raises(
        ValueError, match=r"df of 'tanh' is 0\.001\d* at 7\.7, expected 8\.\d+e-07, .*code"
    ):
        check_given_derivative("df of 'tanh'", "f", math.tanh, clipped)
    with pytest.raises(
        ValueError, match=r"dloss of 'far' for target 0 is .* at 12.3, expected 24.6"
    ):
        fb.custom_loss(lambda y, t: ((y - t) ** 2, 2 * min(y - t, 12.0)), name="far")
    # What has no expression is compared with differences alone.
    fb.Activation("mine", relu, step, zero)


def test_wrong_slopes_of_losses_are_refused():
    with pytest.raises(ValueError, match=r"dloss of 'custom' for target 0 is .* quotient of loss"):
        fb.custom_loss(lambda y, t: ((y - t) ** 2, y - t))
    # Right for the target 0, wrong for 1.
    with pytest.raises(ValueError, match=r"dloss of 'mine' for target 1 is "):
        fb.custom_loss(lambda y, t: ((y - t) ** 2, 2 * y), name="mine")


NOT_FUNCTIONS = [
    (lambda: fb.Activation("mine", 3, math.cos), "f is 3, expected a function of numbers"),
    (lambda: fb.Activation("mine", None), "f is None, expected a function of numbers"),
    (lambda: fb.Activation("mine", math.sin, 0), "df is 0, expected a function of numbers"),
    (lambda: fb.Activation("mine", lambda z: [z]), "f of activation 'mine': the function returned"),
    (lambda: fb.Activation("mine", math.sin, math.cos, 0), "d2f is 0, expected a function"),
    (lambda: fb.Activation("mine", "tanh", "tanh"), "f is 'tanh', expected a function"),
    (lambda: fb.Activation(3, math.sin, math.cos), "name is 3, expected a string, such as 'P3'"),
    (lambda: fb.Activation("mine", zero, lambda z: None), "the function returned None for -3.9"),
    (
        lambda: fb.Activation("mine", zero, lambda z: [1, 2]),
        "returned [1, 2] for -3.9173, expected",
    ),
    (lambda: fb.Activation("mine", lambda z: 1j * z, zero), "expected a real number"),
    (lambda: fb.custom_loss(None), "f is None, expected a function of numbers"),
    (lambda: fb.custom_loss(squared, 2), "d2 is 2, expected a function of numbers"),
    (lambda: fb.custom_loss(lambda y, t: None), "expected a pair (loss, dloss) or the loss"),
    (lambda: fb.custom_loss(lambda y, t: (y, 1.0, 0.0)), "expected a pair (loss, dloss)"),
    (lambda: fb.custom_loss(lambda y, t: ("a", "b")), "expected a real number"),
]


@pytest.mark.parametrize(("make", "message"), NOT_FUNCTIONS, ids=[m for _, m in NOT_FUNCTIONS])
def test_what_is_no_function_of_numbers(make, message):
    with pytest.raises(TypeError) as caught:
        make()
    assert message in str(caught.value)


def test_names_of_built_in_functions_are_taken():
    with pytest.raises(ValueError, match="name is 'tanh', which is a built-in activation; give"):
        fb.Activation("tanh", math.tanh, tanh_slope)


ACCEPTED = [  # with corners, jumps, other kinds of number, and parts of the line left out
    (relu, step),
    (abs, np.sign),
    (lambda z: min(max(z, -1.0), 1.0), lambda z: 1 if abs(z) < 1 else 0),
    (lambda z: 1.0 if z > 0.5 else 0.0, zero),
    (math.floor, lambda z: 0),
    (lambda z: z, lambda z: 1),
    (lambda z: max(z, 0), lambda z: z > 0),
    (lambda z: np.maximum(z, 0), lambda z: np.float32(z > 0)),
    (math.log, lambda z: 1 / z),
    (math.sqrt, lambda z: 0.5 / math.sqrt(z)),
    (lambda z: z**0.5, lambda z: 0.5 * z**-0.5),
    (lambda z: 1 / z, lambda z: -1 / z**2),
    (lambda z: math.log(z - 3), lambda z: 1 / (z - 3)),
    (lambda z: math.exp(100 * z), lambda z: 100 * math.exp(100 * z)),
]


@pytest.mark.parametrize(("f", "df"), ACCEPTED)
def test_functions_with_corners_and_partial_domains_are_accepted(f, df):
    act = fb.Activation("mine", f, df)
    assert act.f([3.7, 3.2], backend="numpy").tolist() == [f(3.7), f(3.2)]
    assert act.df([3.7, 3.2], backend="numpy").tolist() == [df(3.7), df(3.2)]


def test_a_function_without_any_derivative_between_minus_4_and_4():
    with pytest.raises(ValueError, match="df of activation 'mine' cannot be checked: f has no fin"):
        fb.Activation("mine", lambda z: math.log(z - 5), lambda z: 1 / (z - 5))


# Objects.


def test_equality_goes_by_name_and_functions():
    tanh = fb.Activation("my tanh", np.tanh, tanh_slope, tanh_bend)
    assert tanh == TWINS["tanh"] and hash(tanh) == hash(TWINS["tanh"])
    others = [
        fb.activation("tanh"),
        fb.Activation("another", np.tanh, tanh_slope, tanh_bend),
        fb.Activation("my tanh", np.tanh, tanh_slope),
        fb.Activation("my tanh", math.tanh, tanh_slope, tanh_bend),
    ]
    assert all(tanh != other for other in others)
    assert len({tanh, TWINS["tanh"], *others}) == 1 + len(others)
    loss = fb.custom_loss(squared, two, name="my mse")
    assert loss == LOSS_TWINS["mse"] and hash(loss) == hash(LOSS_TWINS["mse"])
    assert loss not in (fb.custom_loss(squared, name="my mse"), fb.custom_loss(squared, two))


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_functions_of_a_module_survive_copies(backend, rng, copied):
    net = fb.Network(4, fb.Dense(7, TWINS["tanh"]), fb.Dense(3))
    c = case_of(rng, net, loss=LOSS_TWINS["mse"])
    again, loss = copied(net), copied(c.loss)
    assert again == net and hash(again) == hash(net) and loss == c.loss
    assert same(again.value_and_grad(c.params, c.X, c.y, loss), net.value_and_grad(*c.arguments))


def test_lambdas_cannot_be_pickled():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(fb.Activation("mine", lambda z: z * z, lambda z: 2 * z))


def test_objects_in_words():
    assert repr(TWINS["tanh"]) == "<activation 'my tanh' of the user's own>"
    assert repr(LOSS_TWINS["mse"]) == "<loss 'my mse' of the user's own>"
    with pytest.raises(AttributeError, match="cannot be changed; make another one"):
        TWINS["tanh"].name = "other"
    with pytest.raises(AttributeError, match="cannot be changed; make another one"):
        del TWINS["tanh"].functions


# Arithmetic.

TROUBLED = [  # where Python's functions raise, the others give infinity or NaN
    (lambda z: math.exp(z), lambda z: math.exp(z), [800.0, -800.0]),
    (lambda z: math.log(z), lambda z: 1 / z, [-1.0, math.inf]),
    (lambda z: math.sqrt(z), lambda z: 0.5 / math.sqrt(z), [-1.0, math.inf]),
    (lambda z: 1 / z, lambda z: -1 / z**2, [0.0, -0.0, math.inf]),
    (lambda z: z / z, lambda z: 0 * z, [0.0, math.inf]),
    (lambda z: z**0.5, lambda z: 0.5 * z**-0.5, [-2.0, 0.0]),
    (lambda z: z**3, lambda z: 3 * z**2, [1e200, -1e200]),
    (lambda z: math.asin(z), lambda z: 1 / math.sqrt(1 - z * z), [2.0, -3.0]),
    (lambda z: math.cosh(z), lambda z: math.sinh(z), [1000.0]),
    (lambda z: math.sin(z), lambda z: math.cos(z), [math.inf]),
]


@pytest.mark.parametrize(("f", "df", "points"), TROUBLED)
def test_arithmetic_errors_are_infinities_and_nan(backend, f, df, points):
    act = fb.Activation("mine", f, df)
    Z = np.array([*points, math.nan, 0.5])
    for g in (act.f, act.df):
        np.testing.assert_allclose(g(Z), g(Z, backend="numpy"), rtol=1e-15)
    assert np.isnan(act.f(Z)[-2]) and np.isfinite(act.f(Z)[-1])


def test_arithmetic_errors_in_losses(backend, rng):
    loss = fb.custom_loss(lambda y, t: (math.exp(y * t), t * math.exp(y * t)), name="exponential")
    net = fb.Network(1, fb.Dense(1, bias=False))
    value, grad = net.value_and_grad([900.0], [[1.0]], [1.0], loss)
    assert value == np.inf and grad == np.inf
    log = fb.custom_loss(lambda y, t: (-t * math.log(y), -t / y), name="log")
    value, grad = net.value_and_grad([-1.0], [[1.0]], [1.0], log)
    assert np.isnan(value) and (backend == "numpy" or grad == 1)


# Compilation.


FACTORS = SimpleNamespace(two=2.0)
RATES = {"fast": 2.0}


def uncompilable(z):
    return z * FACTORS.two


def raising(z):
    if z > 10:
        raise ValueError("too large")
    return z * z


def trips_inference(z):
    return float(str(z))


BEYOND_NUMBA = [  # f, df
    (uncompilable, lambda z: 2.0),
    (raising, lambda z: 2 * z),
    (trips_inference, lambda z: 1.0),
    (lambda z: open.__name__ and z, lambda z: 1.0),
    (lambda z: 2 * uncompilable(z), lambda z: 4.0),
]


@pytest.mark.parametrize(("f", "df"), BEYOND_NUMBA)
def test_what_numba_cannot_compile_runs_in_numpy_alone(backend, f, df):
    act = fb.Activation("mine", f, df)
    net = fb.Network(2, fb.Dense(3, act), fb.Dense(1))
    arguments = net.init(0), [[0.1, 0.2]], [1.0]
    expected = net.value(*arguments, backend="numpy")
    assert math.isfinite(expected)
    if backend == "numpy":
        assert net.value(*arguments) == expected
        return
    for call in (lambda: act.f(0.5), lambda: net.value(*arguments)):
        with pytest.raises(fb.BackendError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith("Numba cannot compile your function; write it with numbers, math")
        assert "or use backend='numpy', which calls it as it is. The reason:\n" in message


def test_exceptions_of_ones_own_have_their_message():
    with pytest.raises(fb.BackendError, match=r"raising raises exceptions; return math\.nan wh"):
        fb.Activation("mine", raising, lambda z: 2 * z).f(1.0, backend="numba")


def undefined(z):
    y = 2 * z
    return y * undefined_number  # noqa: F821


def of_two_kinds(z):
    x = "many"
    if z < 1e9:
        x = z
    return x


def without_result(z):
    if z < 1e9:
        return z


def recursive(z):
    return z if z < 1e9 else recursive(z / 2)


FAILING = [  # where Python is content; the line that does not compile, and why
    (uncompilable, "return z * FACTORS.two", "FACTORS"),
    (lambda z: 2 * uncompilable(z), "return z * FACTORS.two", "FACTORS"),
    (lambda z: z * RATES["fast"], 'RATES["fast"]', "RATES"),
    (lambda z: z if re.match("a", "a") else 0.0, "(lambda z: z if re", "match"),
    (of_two_kinds, 'x = "many"|return x|x = z', "unify"),
    (without_result, "def without_result(z):", "expected numbers in all cases"),
    (recursive, "def recursive(z):", "recursive calls itself; write it as a loop"),
    (raising, 'raise ValueError("too large")', "raising raises exceptions; return math.nan"),
    (lambda z: 1 + raising(z), 'raise ValueError("too large")', "raising raises exceptions"),
]


@pytest.mark.parametrize(("f", "source", "reason"), FAILING)
def test_messages_quote_the_line_that_does_not_compile(f, source, reason):
    pytest.importorskip("numba")
    functions = ScalarFunctions(f, step)
    with pytest.raises(fb.BackendError) as caught:
        user_code.address(functions, np.dtype("float32"))
    head, place, quoted, why = str(caught.value).split("\n")
    assert "or use backend='numpy', which calls it as it is" in head
    line, path = re.fullmatch(r"line (\d+) of (.*), in \S+:", place).groups()
    with open(path, encoding="utf-8") as file:
        assert file.readlines()[int(line) - 1].strip() == quoted.strip()
    assert path == __file__ and any(part in quoted for part in source.split("|"))
    assert reason in why and len(why) < 200
    assert functions.evaluate(0, np.array([0.5]))[0] == f(0.5)


def test_undefined_names_are_quoted_in_the_function_that_has_them():
    pytest.importorskip("numba")
    functions = ScalarFunctions(lambda z: undefined(z), step)
    with pytest.raises(fb.BackendError, match=r"in undefined:\n    return y \* undefined_number"):
        user_code.address(functions, np.dtype(float))


def test_functions_without_source_are_named_by_their_line():
    pytest.importorskip("numba")
    names = {"FACTORS": FACTORS}
    exec(compile("\n\nf = lambda z: z * FACTORS.two", "<typed>", "exec"), names)
    functions = ScalarFunctions(names["f"], step)
    with pytest.raises(fb.BackendError, match="\nline 3 of <typed>, in <lambda>:\nUntyped global"):
        user_code.address(functions, np.dtype(float))


def test_losses_that_do_not_compile(backend):
    loss = fb.custom_loss(lambda y, t: (uncompilable(y - t), 2.0))
    net = fb.Network(1, fb.Dense(1))
    arguments = [1.0, 0.0], [[2.0]], [1.0], loss
    if backend == "numpy":
        assert net.value(*arguments) == 2
    else:
        with pytest.raises(fb.BackendError, match="Numba cannot compile your function"):
            net.value(*arguments)


def test_without_numba_the_message_says_what_to_install(monkeypatch):
    functions = fb.Activation("mine", lambda z: z * z, lambda z: 2 * z).functions
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(fb.BackendError, match=r"install it with: pip install .*, or use backe"):
        user_code.address(functions, np.dtype(float))


CALLABLES = [(math.tanh, tanh_slope), (np.tanh, lambda z: 1 - np.tanh(z) ** 2)]


@pytest.mark.parametrize(("f", "df"), CALLABLES)
def test_functions_of_math_and_numpy(backend, dtype, f, df):
    act, Z = fb.Activation("mine", f, df), np.linspace(-3, 3, 41).astype(dtype)
    np.testing.assert_allclose(act.f(Z), np.tanh(Z), rtol=8 * np.finfo(dtype).eps)
    np.testing.assert_allclose(act.df(Z), 1 - np.tanh(Z) ** 2, atol=8 * np.finfo(dtype).eps)


def test_functions_may_call_others_of_the_users_own(backend, dtype):
    """Globals, variables of enclosing functions, default values; through several levels."""

    def half(z):
        return sigmoid(z) / 2

    def f(z, factor=2.0):
        return factor * half(z)

    act, Z = fb.Activation("mine", f, lambda z: f(z) * (1 - f(z))), np.linspace(-3, 3, 41)
    built_in, rtol = fb.activation("sigmoid"), 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(act.f(Z.astype(dtype)), built_in.f(Z.astype(dtype)), rtol=rtol)
    # 1 - f(z) is rounded as f is, not relative to itself.
    np.testing.assert_allclose(act.df(Z.astype(dtype)), built_in.df(Z.astype(dtype)), atol=rtol)


def test_functions_that_numba_has_compiled_already(backend):
    numba = pytest.importorskip("numba")
    f, df = numba.njit(lambda z: z**3), numba.njit(lambda z: 3 * z**2)
    assert fb.Activation("mine", f, df).df([2.0, -1.0]).tolist() == [12, 3]


def test_compiled_once_for_both_compiled_backends(dtype):
    compiled = [name for name in fb.available_backends() if name != "numpy"]
    if not compiled:
        pytest.skip("no compiled backend")
    act = fb.Activation("mine", lambda z: z * z, lambda z: 2 * z)
    size = len(user_code._compiled)
    for name in compiled * 2:
        assert act.f(np.array([3, -2], dtype), backend=name).tolist() == [9, 4]
    assert len(user_code._compiled) == size + 1


def test_first_use_from_many_threads_at_once(backend):
    slopes = count(2)
    for _ in range(3):
        a = float(next(slopes))
        act = fb.Activation("mine", lambda z, a=a: a * z, lambda z, a=a: a)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda k: act.f([1.0, k], backend=backend), range(16)))  # noqa: B023
        assert [r.tolist() for r in results] == [[a, a * k] for k in range(16)]


# The compiled code.

COEFFICIENTS = (0.5, -1.5, 2.5)


def by_horner(z):
    total = 0
    for c in COEFFICIENTS:
        total = total * z + c
    return total


def halves(z, parts=2):
    return z / parts


def swish(z):
    return z * jitted.sigmoid(z)


def swish_slope(z):
    s = jitted.sigmoid(z)
    return s * (1 + z * (1 - s))


MIXED = [  # with constants that Numba alone would make float64 of
    (lambda t: (5 * t**3 - 3 * t) / 2, lambda t: (15 * t**2 - 3) / 2),
    (lambda z: z / (1 + abs(z)), lambda z: 1 / (1 + abs(z)) ** 2),
    (lambda z: z * z if z > 0 else 0, lambda z: 2 * z * (z > 0)),
    (by_horner, lambda z: z - 1.5),
    (lambda z: math.pi * halves(z) + np.maximum(z, 0), lambda z: math.pi / 2 + (z > 0)),
    (swish, swish_slope),
    (
        lambda z: 1.7159 * np.tanh(2 / 3 * z),
        lambda z: 1.7159 * 2 / 3 * (1 - math.tanh(2 / 3 * z) ** 2),
    ),
    (lambda z: math.exp(-z * z / 2), lambda z: -z * np.exp(-z * z / 2)),
]


def assembly(functions, dtype):
    """The code of the function over arrays."""
    user_code.address(functions, dtype)
    result = [c for k, c in user_code._compiled.items() if k == (functions, dtype.char)]
    return result[0]._library.get_asm_str()


VECTORISED = [(np.dtype("float32"), pair) for pair in MIXED]
VECTORISED += [(np.dtype("float64"), MIXED[i]) for i in (0, 5)]


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="reads x86's instructions"
)
@pytest.mark.parametrize(("dtype", "pair"), VECTORISED)
def test_loops_are_vector_code_in_the_type_of_the_network(dtype, pair):
    pytest.importorskip("numba")
    functions = fb.Activation("mine", *pair).functions
    code = assembly(functions, dtype)
    packed, other = ("ps", "pd") if dtype == np.float32 else ("pd", "ps")
    arithmetic = r"\bv?f?n?(?:add|mul|div|sub|madd|msub)(?:132|213|231)?{}\b"
    assert len(re.findall(arithmetic.format(packed), code)) >= 4
    assert not re.search(arithmetic.format(other), code)
    assert not re.search(r"cvt(?:ss2sd|ps2pd|sd2ss|pd2ps)", code)
    assert not re.search(r"call\w*\s+\*?%?\w*(?:exp|tanh|pow)", code)


@pytest.mark.parametrize(("f", "df"), MIXED)
def test_float32_networks_compute_in_float32(backend, f, df):
    """Results differ from those in float64 for the same numbers by a few roundings."""
    act, Z = fb.Activation("mine", f, df), np.linspace(-3, 3, 301).astype(np.float32)
    eps = np.finfo(np.float32).eps
    for order, g in enumerate((act.f, act.df)):
        exact = act.functions.evaluate(order, Z)
        assert abs(g(Z) - exact).max() <= 8 * eps * max(1, abs(exact).max())


def test_what_float32_typing_cannot_do_is_done_in_float64(backend):
    numba = pytest.importorskip("numba")

    def picky(x):
        return 2 * x

    @numba.extending.overload(picky)
    def of_float64(x):
        return (lambda x: 2 * x) if x == numba.types.float64 else None

    act = fb.Activation("mine", lambda z: picky(z) / 3, lambda z: 2 / 3)
    Z = np.array([0.5, 0.7], np.float32)
    assert (act.f(Z) == (2 * Z.astype(float) / 3).astype(np.float32)).all()


def test_constant_arrays_in_functions(backend, dtype):
    centres = np.array([-1.0, 0.0, 2.0])
    act = fb.Activation(
        "mine",
        lambda z: np.exp(-((z - centres) ** 2)).sum(),
        lambda z: (-2 * (z - centres) * np.exp(-((z - centres) ** 2))).sum(),
    )
    Z = np.linspace(-3, 3, 7).astype(dtype)
    expected = np.exp(-((Z[:, None].astype(float) - centres) ** 2)).sum(axis=1)
    assert abs(act.f(Z) - expected).max() <= 8 * np.finfo(dtype).eps


@pytest.mark.parametrize("n", [0, 1, 7, 33, 200])
def test_activations_over_arrays(dtype, n):
    """Every order, also in place; nothing after the first n numbers is written."""
    pytest.importorskip("numba")
    act = TWINS["softplus"]
    call = ctypes.CFUNCTYPE(None, *(ctypes.c_int64,) * 2, *(ctypes.c_void_p,) * 2)(
        user_code.address(act.functions, dtype)
    )
    Z = np.random.default_rng(n).standard_normal(n + 1).astype(dtype)
    for order, f in enumerate((act.f, act.df, act.d2f, act.df)):
        out = np.full(n + 1, 3, dtype)
        call(order, n, Z.ctypes.data, out.ctypes.data)
        factor = 3 if order == 3 else 1
        np.testing.assert_allclose(
            out[:n], factor * f(Z[:n], backend="numpy"), rtol=1e-5 if dtype == np.float32 else 1e-14
        )
        assert out[n] == 3
        if order < 3:
            again = Z.copy()
            call(order, n, again.ctypes.data, again.ctypes.data)
            assert same([again], [np.append(out[:n], Z[n:])])


@pytest.mark.parametrize("n", [0, 1, 7, 33, 200])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_over_arrays(dtype, n, weighted):
    pytest.importorskip("numba")
    real = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    kinds = (ctypes.c_int64,) * 2 + (ctypes.c_void_p,) * 3 + (real, ctypes.c_void_p)
    functions = QUARTIC.functions
    call = ctypes.CFUNCTYPE(ctypes.c_double, *kinds)(user_code.address(functions, dtype))
    y, t, w = np.random.default_rng(n).random((3, n + 1)).astype(dtype)
    value, slope = functions.evaluate(y[:n], t[:n])
    bend = functions.second(y[:n], t[:n])
    factors = w[:n].astype(float) if weighted else np.ones(n)
    for order, derivative in ((1, slope), (2, bend)):
        d = np.full(n + 1, 3, dtype)
        weights = w.ctypes.data if weighted else None
        total = call(order, n, y.ctypes.data, t.ctypes.data, weights, 0.5, d.ctypes.data)
        rtol = 1e-5 if dtype == np.float32 else 1e-13
        if order == 1:
            assert total == pytest.approx((factors * value).sum(), rel=rtol, abs=1e-12)
        np.testing.assert_allclose(d[:n], 0.5 * factors * derivative, rtol=rtol, atol=1e-6 * rtol)
        assert d[n] == 3


# Results.


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("loss", LOSS_TWINS)
def test_twins_of_built_in_functions_agree_with_them(backend, dtype, twin, loss):
    rng = np.random.default_rng(4)
    built_in = fb.Network(4, fb.Dense(7, twin), fb.Dense(6, twin), fb.Dense(3), dtype=dtype)
    act = TWINS[twin]
    mine = fb.Network(4, fb.Dense(7, act), fb.Dense(6, act), fb.Dense(3), dtype=dtype)
    c = case_of(rng, built_in, 21, loss, weighted=True, l2=0.1, l1=0.05)
    v = rng.standard_normal(mine.n_params).astype(dtype)

    def results(net, loss):
        arguments = c.params, c.X, c.y
        Y, pullback = net.vjp(c.params, c.X)
        return [
            Y,
            *pullback(c.X[:, :3]),
            net.forward(c.params, c.X),
            np.array(net.value(*arguments, loss, **c.terms)),
            net.value_and_grad(*arguments, loss, **c.terms)[1],
            net.jacobian(c.params, c.X),
            net.input_jacobian(c.params, c.X),
            net.jvp(c.params, c.X, v)[1],
            net.hvp(*arguments, v, loss, **c.terms),
            net.gnvp(*arguments, v, loss, **c.terms),
            net.per_sample_grad(*arguments, loss),
            *net.normal_equations(*arguments)[:2],
        ]

    value, grad = bounds.objective(built_in, *c.arguments, c.terms["sample_weight"], 0.1, l1=0.05)
    result = mine.value_and_grad(c.params, c.X, c.y, LOSS_TWINS[loss], **c.terms)
    value.check(result[0], "value")
    grad.check(result[1], "gradient")
    if dtype == np.float64:
        pairs = zip(results(mine, LOSS_TWINS[loss]), results(built_in, loss), strict=True)
        for computed, expected in pairs:
            assert abs(computed - expected).max() <= 1e-12 * abs(expected).max()


@pytest.mark.parametrize(("n", "n_out"), [(1, 1), (127, 1), (128, 1), (129, 1), (43, 3), (300, 33)])
def test_sizes_around_those_of_buffers(backend, dtype, n, n_out):
    """The functions are called on vectors of fixed length; the last numbers count too."""
    rng = np.random.default_rng(n)
    c = case(rng, [3, n_out, n_out], [BUMP, BUMP], dtype, n, QUARTIC, weighted=True)
    value, grad = bounds.objective(c.net, *c.arguments, c.terms["sample_weight"])
    computed = c.net.value_and_grad(*c.arguments, **c.terms)
    value.check(computed[0], "value")
    grad.check(computed[1], "gradient")
    Z = rng.standard_normal((n, n_out)).astype(dtype)
    for f in (BUMP.f, BUMP.df, BUMP.d2f):
        np.testing.assert_allclose(
            f(Z), f(Z, backend="numpy"), rtol=0, atol=16 * np.finfo(dtype).eps
        )


def test_losses_are_means_over_elements_with_weights(backend, rng):
    Y, y, w = rng.standard_normal((5, 3)), rng.standard_normal((5, 3)), rng.random(5)
    net = fb.Network(5, fb.Dense(3, bias=False))
    value = net.value(Y.ravel(), np.eye(5), y, QUARTIC, sample_weight=w)
    d = Y - y
    expected = (w[:, None] * (d**4 + d**2 / 2)).sum() / (3 * w.sum())
    assert value == pytest.approx(expected, rel=1e-13)
    with pytest.raises(fb.ShapeError, match=r"y has shape \(5,\), expected \(5, 3\)"):
        net.value(Y.ravel(), np.eye(5), y[:, 0], QUARTIC)
    with pytest.raises(ValueError, match="y is None, but loss 'quartic' expects values of shape"):
        net.value(Y.ravel(), np.eye(5), None, QUARTIC)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sgd", {"lr": 0.1, "batch_size": 8}),
        ("adam", {"lr": 0.01, "batch_size": 8}),
        ("L-BFGS-B", {}),
    ],
)
def test_fits_with_twins_follow_those_with_built_in_functions(backend, rng, method, options):
    X, y = rng.standard_normal((40, 4)), rng.standard_normal((40, 2))
    results = []
    for act, loss in (("tanh", "mse"), (TWINS["tanh"], LOSS_TWINS["mse"])):
        net = fb.Network(4, fb.Dense(7, act), fb.Dense(2))
        results.append(fb.fit(net, X, y, method=method, loss=loss, epochs=5, seed=3, **options))
    first, second = results
    assert first.fun < net.value(net.init(0), X, y)
    np.testing.assert_allclose(second.params, first.params, rtol=0, atol=1e-12)
    np.testing.assert_allclose(second.history["loss"], first.history["loss"], rtol=1e-12)
