"""Expressions as programs: code for a small register machine, which the C library runs by blocks.

An instruction applies one operation to blocks of some hundred numbers that stay in the first-level
cache (csrc/core/programs.h), so that an expression runs as vector code without being compiled. What
depends on parameters and constants alone runs once a call, before the blocks. Products become part
of sums, integer powers become products, and e^-|x| is one operation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import expressions as ex
from .expressions import Expression, node

# Operations of programs, on a, b, c and d. Truth values are 1 and 0. DECAY is e^-|a|, LOG1P_SMALL
# log(1 + a) for a from 0 to 1, BELL the derivative of the logistic function, SHARE 1/(1 + a),
# PRODUCT_OF_THREE abc, NEGATIVE_PRODUCT -ab, PRODUCT_PLUS ab + c, PRODUCT_MINUS ab - c,
# MINUS_PRODUCT c - ab, IF_LESS, IF_LESS_EQUAL and IF_EQUAL c where a and b are so, else d.
(
    OP_COPY, OP_ADD, OP_SUBTRACT, OP_MULTIPLY, OP_DIVIDE, OP_POWER, OP_NEGATIVE, OP_ABS, OP_SIGN,
    OP_MAX, OP_MIN, OP_EXP, OP_EXPM1, OP_LOG, OP_LOG1P, OP_SQRT, OP_SIN, OP_COS, OP_ARCTAN, OP_SINH,
    OP_COSH, OP_TANH, OP_SIGMOID, OP_ERF, OP_ERFC, OP_LESS, OP_LESS_EQUAL, OP_EQUAL, OP_AND, OP_OR,
    OP_NOT, OP_WHERE, OP_DECAY, OP_LOG1P_SMALL, OP_NEGATIVE_PRODUCT, OP_PRODUCT_PLUS,
    OP_PRODUCT_MINUS, OP_MINUS_PRODUCT, OP_IF_LESS, OP_IF_LESS_EQUAL, OP_IF_EQUAL,
    OP_BELL, OP_SHARE, OP_PRODUCT_OF_THREE,
) = range(44)  # fmt: skip

# Numbers of an instruction: the operation, the place of the result, and those of a, b, c, d.
INSTRUCTION = 6

# Places of a program at most, all uniforms, inputs, registers and outputs together.
MOST_PLACES = 512


@dataclass(frozen=True, eq=False)
class Program:
    """Code that computes expressions for each element of arrays.

    Places are numbered: the uniforms, which are one number for all elements (constants, parameters,
    and what follows from these alone), inputs, registers, outputs. The last output may be written
    to the first input's memory.

    Attributes
    ----------
    code : int16 array (n, INSTRUCTION)
    n_once : int
        So many instructions, the first ones, compute uniforms.
    constants : float64 array
    n_parameters, n_uniforms, n_inputs, n_registers, n_outputs : int
    handles : dict
        What backends keep with the program.
    """

    code: np.ndarray
    n_once: int
    constants: np.ndarray
    n_parameters: int
    n_uniforms: int
    n_inputs: int
    n_registers: int
    n_outputs: int
    handles: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def fits(self) -> bool:
        """Whether the C library has room for its places."""
        places = self.n_uniforms + self.n_inputs + self.n_registers + self.n_outputs
        return places <= MOST_PLACES


def program(
    roots: Sequence[Expression], inputs: Sequence[str], parameters: Sequence[str] = ()
) -> Program:
    """The program that computes these expressions together.

    Parameters
    ----------
    roots : sequence of Expression
        The outputs.
    inputs, parameters : sequence of str
        The variables that are arrays, and those that are numbers, in the order in which the program
        takes them.

    Returns
    -------
    Program

    Raises
    ------
    KeyError
        If an expression has another variable.
    """
    roots = _fused(lowered(roots), set(inputs))
    nodes = ex.in_order(reversed(roots))  # which takes the last one first
    uniform = _uniform(nodes, set(inputs))
    places: dict[Expression, int] = {}
    constants = [at for at in nodes if at.operation == "constant"]
    computed = [at for at in nodes if at.operation not in ("constant", "variable")]
    once = [at for at in computed if at in uniform]
    each = [at for at in computed if at not in uniform]

    n_fixed = len(constants) + len(parameters)
    n_uniforms = n_fixed + len(once)
    variables = {name: len(constants) + i for i, name in enumerate(parameters)}
    variables |= {name: n_uniforms + i for i, name in enumerate(inputs)}
    places |= {at: variables[at.value] for at in nodes if at.operation == "variable"}
    places |= {at: i for i, at in enumerate(constants)}
    places |= {at: n_fixed + i for i, at in enumerate(once)}

    first_register = n_uniforms + len(inputs)
    outputs, copies = _outputs(roots, each)
    n_registers = _registers(each, places, outputs, copies, first_register)
    first_output = first_register + n_registers
    places |= {at: first_output + k for at, k in outputs.items()}
    lines = [(_number(at), places[at], *(places[x] for x in at.arguments)) for at in once + each]
    lines += [(OP_COPY, first_output + k, places[at]) for k, at in copies]
    code = np.zeros((len(lines), INSTRUCTION), np.int16)
    if first_output + len(roots) < 2**15:  # else it does not fit, and nobody runs it
        for row, line in zip(code, lines, strict=True):
            row[: len(line)] = line
    values = np.array([at.value for at in constants], np.float64)
    sizes = len(parameters), n_uniforms, len(inputs), n_registers, len(roots)
    return Program(code, len(once), values, *sizes)


def _number(at: Expression) -> int:
    return globals()[f"OP_{at.operation.upper()}"]


def _uniform(nodes: Iterable[Expression], inputs: set[str]) -> set[Expression]:
    """Those that no input enters."""
    found: set[Expression] = set()
    for at in nodes:
        if at.operation == "variable":
            uniform = at.value not in inputs
        else:
            uniform = found.issuperset(at.arguments)
        if uniform:
            found.add(at)
    return found


def _outputs(
    roots: Sequence[Expression], each: list[Expression]
) -> tuple[dict[Expression, int], list[tuple[int, Expression]]]:
    """Which nodes are computed in an output's place, and which outputs are copies, and of what."""
    outputs: dict[Expression, int] = {}
    copies = []
    computed = set(each)
    for k, root in enumerate(roots):
        is_last = k == len(roots) - 1
        # The last output may lie where the first input does, which others read until the end.
        if root in computed and root not in outputs and (not is_last or root is each[-1]):
            outputs[root] = k
        else:
            copies.append((k, root))
    return outputs, copies


def _registers(
    each: list[Expression],
    places: dict[Expression, int],
    outputs: dict[Expression, int],
    copies: list[tuple[int, Expression]],
    first: int,
) -> int:
    """Give registers to the nodes that need one; returns how many there are.

    A register is free again with the last instruction that reads it, and may hold its result.
    """
    last_use = {x: i for i, at in enumerate(each) for x in at.arguments}
    last_use |= {root: len(each) for _, root in copies}
    free: list[int] = []
    n = 0
    for i, at in enumerate(each):
        for x in dict.fromkeys(at.arguments):
            if last_use[x] == i and places.get(x, -1) >= first:
                free.append(places[x])
        if at in outputs:
            continue
        if not free:
            free.append(first + n)
            n += 1
        places[at] = free.pop()
    return n


# From expressions to the operations of programs.


def lowered(roots: Sequence[Expression]) -> list[Expression]:
    """The roots in operations of programs, but for those that `_fused` makes."""
    roots = ex.decomposed(roots, whole=("bell",))
    done: dict[Expression, Expression] = {}
    for at in ex.in_order(roots):
        arguments = [done[x] for x in at.arguments]
        if at.operation in ("and", "or", "not"):  # a constant may be any number
            arguments = [_truth(x) for x in arguments]
        x = arguments[0] if arguments else at
        if at.operation == "power" and (n := ex.small_integer(arguments[1])) is not None:
            power = _power(x, abs(n)) if n else ex.ONE
            done[at] = power if n >= 0 else node("divide", ex.ONE, power)
        elif at.operation == "exp" and x.operation == "negative" and _is(x.arguments[0], "abs"):
            done[at] = node("decay", x.arguments[0].arguments[0])
        elif at.operation == "log1p" and x.operation == "decay":
            done[at] = node("log1p_small", x)
        else:
            done[at] = node(at.operation, *arguments, value=at.value)
    return [done[root] for root in roots]


def _is(x: Expression, operation: str) -> bool:
    return x.operation == operation


def _truth(x: Expression) -> Expression:
    return ex.constant(x.value != 0) if x.operation == "constant" else x


def _power(x: Expression, n: int) -> Expression:
    """x^n for n > 0 by products."""
    if n == 1:
        return x
    if n % 2:
        return node("multiply", _power(x, n - 1), x)
    half = _power(x, n // 2)
    return node("multiply", half, half)


def _fused(roots: Sequence[Expression], inputs: set[str]) -> list[Expression]:
    """The roots with products and comparisons as part of what alone takes them."""
    nodes = ex.in_order(roots)
    uniform = _uniform(nodes, inputs)
    uses = Counter(x for at in nodes for x in at.arguments)
    uses.update(roots)
    done: dict[Expression, Expression] = {}

    def is_part(x: Expression, *operations: str) -> bool:
        return x.operation in operations and uses[x] == 1 and x not in uniform

    for at in nodes:
        x, y = (*at.arguments, at, at)[:2]
        operation, parts = at.operation, at.arguments
        if operation == "add" and is_part(x, "multiply"):
            operation, parts = "product_plus", (*x.arguments, y)
        elif operation == "add" and is_part(y, "multiply"):
            operation, parts = "product_plus", (*y.arguments, x)
        elif operation == "subtract" and is_part(x, "multiply"):
            operation, parts = "product_minus", (*x.arguments, y)
        elif operation == "subtract" and is_part(y, "multiply"):
            operation, parts = "minus_product", (*y.arguments, x)
        elif operation == "negative" and is_part(x, "multiply"):
            operation, parts = "negative_product", x.arguments
        elif operation == "multiply" and is_part(x, "multiply"):
            operation, parts = "product_of_three", (*x.arguments, y)
        elif operation == "multiply" and is_part(y, "multiply"):
            operation, parts = "product_of_three", (*y.arguments, x)
        elif operation == "divide" and x is ex.ONE and is_part(y, "add") and ex.ONE in y.arguments:
            operation, parts = "share", tuple(z for z in y.arguments if z is not ex.ONE)
        elif operation == "where" and is_part(x, "less", "less_equal", "equal"):
            operation, parts = f"if_{x.operation}", (*x.arguments, *at.arguments[1:])
        done[at] = node(operation, *(done[part] for part in parts), value=at.value)
    return [done[root] for root in roots]
