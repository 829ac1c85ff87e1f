"""The C backend: each function of the contract calls the function of csrc/fastbp.h of its name.

`contract` says what the functions do and which shapes the arrays have. Callers have checked the
arrays: they are C-contiguous, aligned and of the plan's dtype, so that the library only needs their
addresses. The library keeps the workspaces of a plan between calls, so that a call in steady state
allocates nothing but its results. Every call releases the GIL.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import unknown_name
from ..maths.activations import ActivationSpec
from ..maths.losses import SOFTMAX_CE_LABELS
from ..maths.marquardt import LMOptions, LMState
from ..maths.programs import Program, program
from ..maths.robust import Robust
from ..maths.user_functions import UserFunctions
from . import reference, user_code
from .contract import CurveProblem, Plan, Problem, TrainConfig, TrainState

LEVELS = ("baseline", "avx2", "avx512")


def _connect_fastcall() -> Any:
    """Connect `_fastcall` to the library; returns that module, or None if it is not built."""
    try:
        from ..common import _fastcall
    except ImportError:  # a Python without the limited API
        return None
    names = ("fb_dense_forward", "fb_dense_backward", "fb_value_and_grad")
    addresses = [_integer(ffi.addressof(lib, name)) for name in names]
    _fastcall.connect_library(sys.modules[__name__], *addresses)
    return _fastcall


def _integer(pointer: Any) -> int:
    """A C pointer as a Python integer."""
    return int(ffi.cast(_INTEGER, pointer))


try:
    from ._c import ffi, lib
except ImportError as error:
    _import_error: ImportError | None = error
else:
    _import_error = None
    _address = ffi.from_buffer
    _NULL, _DOUBLE, _INTEGER = ffi.NULL, ffi.typeof("double *"), ffi.typeof("uintptr_t")
    _DOUBLES, _INT64S = ffi.typeof("double[]"), ffi.typeof("int64_t[]")
    _cap = os.environ.get("FASTBP_MAX_ISA")
    if not lib.fb_set_isa(_cap.encode() if _cap else _NULL):
        raise ValueError("FASTBP_MAX_ISA: " + unknown_name("instruction set", _cap, LEVELS))
    _fastcall = _connect_fastcall()


def why_missing() -> str | None:
    """Why the C library cannot be used and what to do about it, or None if it can."""
    if _import_error is None:
        return None
    record = Path(__file__).with_name("_c_build_failure.txt")
    reason = record.read_text().strip() if record.exists() else str(_import_error)
    return (
        f"the C library is not built ({reason}); install a C compiler (gcc or clang) and "
        f"reinstall with: pip install --force-reinstall --no-deps fastbp"
    )


def instruction_set() -> str:
    """The level in use: "avx512", "avx2" or "baseline"."""
    return ffi.string(lib.fb_isa()).decode()


def compiler() -> str:
    """The compiler that built the library, with its version."""
    return ffi.string(lib.fb_compiler()).decode()


def _check(code: int) -> int:
    """The return value of a function of the library; MemoryError for FB_NO_MEMORY."""
    if code < 0:
        raise MemoryError("the C backend could not allocate its workspace; use smaller batches")
    return code


def _or_null(array: np.ndarray | None) -> Any:
    """The address of an array as a void pointer, NULL for None."""
    return _NULL if array is None else _address(array)


def _typed(kind: Any, array: np.ndarray | None) -> Any:
    """The address of an array as a C pointer of this kind, NULL for None."""
    return _NULL if array is None else _address(kind, array)


def _is_double(array: np.ndarray) -> bool:
    return array.dtype.itemsize == 8


# One layer.


def _user(functions: UserFunctions | None, dtype: np.dtype) -> Any:
    """The library's fb_user * of user-defined functions, NULL for None; it lives as they do."""
    if functions is None:
        return _NULL
    key = "c" if functions.programs else f"c, {dtype.char}"
    user = functions.handles.get(key)
    if user is None:
        fields: dict[str, Any]
        if functions.programs:
            fields = {"programs": [_program(program) for program in functions.programs]}
        else:
            fields = {"function": user_code.address(functions, dtype)}
        user = functions.handles[key] = ffi.new("fb_user *", fields)
    return user


def _program(program: Program) -> Any:
    """The library's fb_program * of a program; it lives as the program does."""
    handle = program.handles.get("c")
    if handle is None:
        buffers = _address("int16_t[]", program.code), _address(_DOUBLES, program.constants)
        sizes = {name: getattr(program, name) for name in _SIZES}
        sizes |= {"n_instructions": len(program.code), "n_constants": len(program.constants)}
        struct = ffi.new("fb_program *", {"code": buffers[0], "constants": buffers[1], **sizes})
        handle = program.handles["c"] = struct, buffers
    return handle[0]


_SIZES = ("n_once", "n_parameters", "n_uniforms", "n_inputs", "n_registers", "n_outputs")


def activation(act: ActivationSpec, Z: np.ndarray, order: int) -> np.ndarray:
    result = np.empty_like(Z)
    function = (act.kind, act.constant, _user(act.functions, Z.dtype))
    lib.fb_activation(_is_double(Z), *function, order, Z.size, _address(Z), _address(result))
    return result


def dense_forward(
    X: np.ndarray, W: np.ndarray, b: np.ndarray | None, act: ActivationSpec, keep_z: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    n, (n_in, n_out) = len(X), W.shape
    Y = np.empty((n, n_out), X.dtype)
    Z = np.empty_like(Y) if keep_z else None
    sizes = (n, n_in, n_out, act.kind, act.constant, _user(act.functions, X.dtype))
    _check(
        lib.fb_dense_forward(
            _is_double(X), *sizes, _address(X), _address(W), _or_null(b), _address(Y), _or_null(Z)
        )
    )
    return Y, Z


def dense_backward(
    dY: np.ndarray,
    X: np.ndarray,
    W: np.ndarray,
    Y: np.ndarray,
    Z: np.ndarray | None,
    act: ActivationSpec,
    need_dX: bool,
    need_db: bool,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    n, (n_in, n_out) = len(X), W.shape
    dX = np.empty_like(X) if need_dX else None
    dW = np.empty_like(W)
    db = np.empty(n_out, W.dtype) if need_db else None
    sizes = (n, n_in, n_out, act.kind, act.constant, _user(act.functions, X.dtype))
    inputs = (_address(dY), _address(X), _address(W), _address(Y), _or_null(Z))
    results = (_or_null(dX), _address(dW), _or_null(db))
    _check(lib.fb_dense_backward(_is_double(X), *sizes, *inputs, *results))
    return dX, dW, db


# The network.


def _plan(plan: Plan) -> Any:
    """The library's fb_plan *; made at the first call, freed with the Python plan."""
    handle = plan.handles.get("c")
    if handle is None:
        users = [_user(act.functions, plan.dtype) for act in plan.activations]
        new = lib.fb_plan_new(
            plan.dtype.itemsize == 8,
            len(plan.layers),
            _typed(_INT64S, plan.layers),
            _typed(_DOUBLES, plan.constants),
            users,
            _typed(_DOUBLES, plan.dropout),
            _typed("uint8_t[]", plan.free),
            plan.n_params,
            plan.tape_width,
        )
        if new == _NULL:
            raise MemoryError("the C backend could not allocate a plan")
        handle = plan.handles["c"] = ffi.gc(new, lib.fb_plan_free)
    return handle


def forward(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    Y = np.empty((len(X), plan.n_out), plan.dtype)
    _check(lib.fb_forward(_plan(plan), _address(params), len(X), _address(X), _address(Y)))
    return Y


def forward_tape(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    n = len(X)
    tape = np.empty(n * plan.tape_width, plan.dtype)
    _check(lib.fb_forward_tape(_plan(plan), _address(params), n, _address(X), _address(tape)))
    return tape


def backward(
    plan: Plan,
    params: np.ndarray,
    X: np.ndarray,
    tape: np.ndarray,
    dY: np.ndarray,
    need_dX: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    dparams = np.empty(plan.n_params, plan.dtype)
    dX = np.empty_like(X) if need_dX else None
    inputs = (_address(params), len(X), _address(X), _address(tape), _address(dY))
    _check(lib.fb_backward(_plan(plan), *inputs, _address(dparams), _or_null(dX)))
    return dparams, dX


def jvp(
    plan: Plan, params: np.ndarray, X: np.ndarray, tangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    Y = np.empty((len(X), plan.n_out), plan.dtype)
    dY = np.empty_like(Y)
    inputs = (_address(params), len(X), _address(X), _address(tangent))
    _check(lib.fb_jvp(_plan(plan), *inputs, _address(Y), _address(dY)))
    return Y, dY


def jacobian(
    plan: Plan, params: np.ndarray, X: np.ndarray, threads: int, free_only: bool
) -> np.ndarray:
    n_columns = plan.n_free if free_only else plan.n_params
    J = np.empty((len(X) * plan.n_out, n_columns), plan.dtype)
    inputs = (_address(params), len(X), _address(X), threads, free_only)
    _check(lib.fb_jacobian(_plan(plan), *inputs, _address(J)))
    return J


def input_jacobian(plan: Plan, params: np.ndarray, X: np.ndarray) -> np.ndarray:
    J = np.empty((len(X), plan.n_out, plan.n_in), plan.dtype)
    _check(lib.fb_input_jacobian(_plan(plan), _address(params), len(X), _address(X), _address(J)))
    return J


# The objective.


def _problem(problem: Problem) -> tuple[Any, Any]:
    """The library's plan and problem, fb_plan * and fb_problem *; made at the first call."""
    return (problem.handles.get("c") or _new_problem(problem))[:2]


def _new_problem(problem: Problem) -> tuple[Any, Any, tuple[int, int], Any]:
    """Plan, problem, their addresses as integers, and the buffers of the problem's arrays.

    The handle keeps the buffers, since cffi's pointers to them do not.
    """
    plan, struct = _plan(problem.plan), ffi.new("fb_problem *")
    buffers = _address(problem.X), _address(problem.targets), _or_null(problem.weights)
    struct.X, targets, struct.weights = buffers
    struct.n = len(problem.X)
    if problem.loss == SOFTMAX_CE_LABELS:
        struct.labels = ffi.cast("int64_t *", targets)
    else:
        struct.y, struct.n_targets = targets, problem.targets.shape[1]
    struct.loss, struct.constant, struct.scale = problem.loss, problem.constant, problem.scale
    struct.user = _user(problem.functions, problem.plan.dtype)
    struct.l2, struct.l1, struct.group = problem.l2, problem.l1, problem.group
    addresses = _integer(plan), _integer(struct)
    handle = problem.handles["c"] = (plan, struct, addresses, buffers)
    return handle


def value(problem: Problem, params: np.ndarray, threads: int) -> float:
    plan, struct = _problem(problem)
    result = ffi.new(_DOUBLE)
    _check(lib.fb_value_and_grad(plan, struct, _address(params), threads, result, _NULL))
    return result[0]


def value_and_grad(problem: Problem, params: np.ndarray, threads: int) -> tuple[float, np.ndarray]:
    plan, struct, addresses, _ = problem.handles.get("c") or _new_problem(problem)
    if _fastcall is not None:
        results = _fastcall.value_and_grad(*addresses, params, threads)
        if results is not None:
            return results
    result, grad = ffi.new(_DOUBLE), np.empty(len(params), params.dtype)
    _check(lib.fb_value_and_grad(plan, struct, _address(params), threads, result, _address(grad)))
    return result[0], grad


def row_gradients(problem: Problem, params: np.ndarray) -> np.ndarray:
    plan, struct = _problem(problem)
    rows = np.empty((len(problem.X), problem.plan.n_params), problem.plan.dtype)
    _check(lib.fb_row_gradients(plan, struct, _address(params), _address(rows)))
    return rows


def hvp(problem: Problem, params: np.ndarray, v: np.ndarray, gauss_newton: bool) -> np.ndarray:
    plan, struct = _problem(problem)
    product = np.empty(problem.plan.n_params, problem.plan.dtype)
    inputs = (_address(params), _address(v), gauss_newton)
    _check(lib.fb_hvp(plan, struct, *inputs, _address(product)))
    return product


def sum_of_squares(problem: Problem, params: np.ndarray, threads: int, robust: Robust) -> float:
    plan, struct = _problem(problem)
    total = ffi.new(_DOUBLE)
    inputs = (_address(params), threads, *robust)
    _check(lib.fb_normal_equations(plan, struct, *inputs, _NULL, total))
    return total[0]


def normal_equations(
    problem: Problem, params: np.ndarray, threads: int, robust: Robust
) -> tuple[np.ndarray, np.ndarray, float]:
    plan, struct = _problem(problem)
    n = problem.plan.n_free
    normal, total = np.empty((n + 1, n), problem.plan.dtype), ffi.new(_DOUBLE)
    inputs = (_address(params), threads, *robust)
    _check(lib.fb_normal_equations(plan, struct, *inputs, _address(normal), total))
    return normal[:n], normal[n], total[0]


def jtr_at(
    problem: Problem, params: np.ndarray, moved: np.ndarray, threads: int, robust: Robust
) -> np.ndarray:
    plan, struct = _problem(problem)
    result = np.empty(problem.plan.n_free, problem.plan.dtype)
    inputs = (_address(params), _address(moved), threads, *robust)
    _check(lib.fb_jtr_at(plan, struct, *inputs, _address(result)))
    return result


def descend(
    problem: Problem,
    options: LMOptions,
    robust: Robust,
    descent: LMState,
    records: np.ndarray,
    goal: float,
    threads: int,
) -> int:
    plan, struct = _problem(problem)
    solver = descent.handles.get("c") or _new_descent(descent, options, robust)
    solver.steps, solver.records = len(records), _address(_DOUBLES, records)
    solver.goal, solver.threads = goal, threads
    return _check(lib.fb_descend(plan, struct, solver))


def _new_descent(descent: LMState, options: LMOptions, robust: Robust) -> Any:
    """The library's fb_descent *, which refers to the arrays of the Python state."""
    arrays = ("params", "normal", "scales", "state", "prior")
    numbers = ("mu_max", "ftol", "xtol", "gtol", "min_grad", "uniform", "bend")
    fields = {name: _address(_DOUBLES, getattr(descent, name)) for name in arrays}
    fields |= {name: getattr(options, name) for name in numbers}
    fields |= {"mu_dec": options.mu_dec or 0.0, "mu_inc": options.mu_inc or 0.0}
    fields |= {"rho": robust.kind, "rho_scale": robust.scale}
    handle = descent.handles["c"] = ffi.new("fb_descent *", fields)
    return handle


# Curves.


def _curve(problem: CurveProblem) -> Any:
    """The library's fb_curve *, or None if the curve has too many places for its programs."""
    return (problem.handles.get("c") or _new_curve(problem))[0]


def _new_curve(problem: CurveProblem) -> tuple[Any, ...]:
    """The fb_curve * and what it refers to, which the handle keeps."""
    curve = problem.curve
    programs = curve.handles.get("c")
    if programs is None:
        names = curve.inputs, curve.parameters
        programs = program(curve.roots[:1], *names), program(curve.roots[1:], *names)
        curve.handles["c"] = programs
    if not (programs[0].fits and programs[1].fits):
        handle: tuple[Any, ...] = (None,)
    else:
        struct = ffi.new("fb_curve *")
        columns = [_address(_DOUBLES, column) for column in problem.columns]
        pointers = ffi.new("double *[]", columns)
        y, weights = _address(_DOUBLES, problem.y), _typed(_DOUBLES, problem.weights)
        struct.value, struct.slopes = map(_program, programs)
        struct.columns, struct.y, struct.weights = pointers, y, weights
        struct.n, struct.n_params = len(problem.y), len(curve.parameters)
        handle = struct, columns, pointers, y, weights
    problem.handles["c"] = handle
    return handle


def curve_residuals(problem: CurveProblem, params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    struct = _curve(problem)
    if struct is None:
        return reference.curve_residuals(problem, params)
    r = np.empty(len(problem.y))
    J = np.empty((len(params), len(r)))
    arrays = (_address(_DOUBLES, array) for array in (params, r, J))
    lib.fb_curve_residuals(struct, *arrays)
    return r, J


def fit_curve(
    problem: CurveProblem,
    options: LMOptions,
    robust: Robust,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    descent: LMState,
    records: np.ndarray,
    goal: float,
) -> int:
    struct = _curve(problem)
    if struct is None:
        return reference.fit_curve(problem, options, robust, bounds, descent, records, goal)
    solver = descent.handles.get("c") or _new_descent(descent, options, robust)
    lower, upper = (_typed(_DOUBLES, bound) for bound in bounds or (None, None))
    solver.lower, solver.upper = lower, upper
    solver.steps, solver.records = len(records) - 1, _address(_DOUBLES, records)
    solver.goal = goal
    return _check(lib.fb_fit_curve(struct, solver))


# Training.


def train(
    problem: Problem,
    config: TrainConfig,
    run: TrainState,
    n_steps: int,
    order: np.ndarray | None,
    rates: np.ndarray,
    losses: np.ndarray,
    validation: np.ndarray,
) -> int:
    plan, data = _problem(problem)
    optimizer = config.optimizer
    struct = ffi.new(
        "fb_run *",
        {
            "params": _address(run.params),
            "moments": _address(run.moments),
            "good": _address(run.good),
            "best": _address(run.best),
            "average": _typed(_DOUBLES, run.average),
            "monitor": _typed(_DOUBLES, run.monitor),
            "seed": run.seed,
            "step": run.step,
            "optimizer": optimizer.kind,
            "n_moments": optimizer.n_moments,
            "constants": optimizer.constants,
            "batch_size": config.batch_size,
            "averaged": config.averaged,
            "clip_norm": config.clip_norm,
            "average_from": config.average_from,
            "validation": _NULL if config.validation is None else _problem(config.validation)[1],
            "goal": config.goal,
            "patience": config.patience,
            "tol": config.tol,
            "threads": config.threads,
            "n_steps": n_steps,
            "n_rates": len(rates),
            "order": _typed(_INT64S, order),
            "rates": _typed(_DOUBLES, rates),
            "losses": _typed(_DOUBLES, losses),
            "validated": _typed(_DOUBLES, validation),
        },
    )
    reason = _check(lib.fb_train(plan, data, struct))
    run.step = struct.step
    return reason
