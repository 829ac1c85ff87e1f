"""The entries for derivatives of outputs: vector-Jacobian products and Jacobians."""

from __future__ import annotations

from ..contract import N_OUT
from .compiling import (
    FLAG,
    NOTHING,
    entry,
    given,
    given_doubles,
    given_integers,
    result,
)
from .jacobian_rows import ROWS, deltas_of, rows_of_jacobian, samples_of_deltas, set_unit_rows
from .network import (
    DELTA,
    DELTAS,
    FORWARD,
    N_LAYERS,
    NEXT_DELTA,
    SPARE_ROW,
    TAPE,
    TILE,
    TILES,
    TRANSPOSED,
    X_ROWS,
    backward_tile,
    fill,
    forward_tile,
    layer_of,
    number_of_free,
    transpose_weights,
)
from .vectors import aligned, at, copy, pointer


@entry(
    NOTHING,
    given_integers(1), given_doubles(1), given(1), given(2), given(1), given(2), FLAG, result(1),
    result(2), result(1), calls=TILES,
)  # fmt: skip
def pullback(plan, constants, params, X, tape, dY, need_dx, gradient, dX, workspace):
    """The vector-Jacobian product of dY to `gradient` and `dX`."""
    n, n_in = X.shape
    q, c, p, x = pointer(plan), pointer(constants), pointer(params), pointer(X)
    space, tile = aligned(pointer(workspace)), q[TILE]
    n_out, transposed = layer_of(q, q[N_LAYERS] - 1)[N_OUT], at(space, q[TRANSPOSED])
    d, next_d = at(space, q[DELTA]), at(space, q[NEXT_DELTA])
    g, dx = pointer(gradient), pointer(dX)
    transpose_weights(q, p, need_dx, transposed)
    for i in range(0, max(n, 1), tile):  # no rows at all make a gradient of zeros
        m = min(tile, n - i)
        copy(d, at(pointer(dY), i * n_out), m * n_out)
        backward_tile(
            q, c, p, transposed, at(x, i * n_in), m, pointer(tape), n, i,
            d, next_d, g, True, i > 0, at(dx, i * n_in), need_dx,
        )  # fmt: skip


@entry(
    NOTHING, given_integers(1), given_doubles(1), given(1), given(2), FLAG, result(1), result(1),
    calls=(*FORWARD, *ROWS),
)  # fmt: skip
def jacobian(plan, constants, params, X, free_only, J, workspace):
    """Write dY/dparams, or the columns of the free ones alone."""
    n, n_in = X.shape
    q, c, p, x = pointer(plan), pointer(constants), pointer(params), pointer(X)
    space, last = aligned(pointer(workspace)), layer_of(q, q[N_LAYERS] - 1)
    tape, tile, transposed = at(space, q[TAPE]), q[TILE], at(space, q[TRANSPOSED])
    deltas, spare, n_out = at(space, q[DELTAS]), at(space, q[SPARE_ROW]), last[N_OUT]
    columns, step = number_of_free(q) if free_only else params.size, samples_of_deltas(n_out)
    transpose_weights(q, p, False, transposed)
    for i in range(0, n, step):
        m, xi = min(step, n - i), at(x, i * n_in)
        forward_tile(q, c, p, xi, m, tape, tile, 0)
        set_unit_rows(m, n_out, deltas_of(q, last, deltas))
        rows_of_jacobian(
            q, c, p, transposed, xi, m, n_out, tape, tile, deltas, spare, free_only,
            at(pointer(J), i * n_out * columns), columns,
        )  # fmt: skip


@entry(
    NOTHING,
    given_integers(1), given_doubles(1), given(1), given(2), result(1), result(1), calls=TILES,
)  # fmt: skip
def input_jacobian(plan, constants, params, X, J, workspace):
    """Write dY/dX (n, n_out, n_in)."""
    n, n_in = X.shape
    q, c, p, x = pointer(plan), pointer(constants), pointer(params), pointer(X)
    space, tile = aligned(pointer(workspace)), q[TILE]
    n_out = layer_of(q, q[N_LAYERS] - 1)[N_OUT]
    tape, transposed = at(space, q[TAPE]), at(space, q[TRANSPOSED])
    d, next_d, x_rows = at(space, q[DELTA]), at(space, q[NEXT_DELTA]), at(space, q[X_ROWS])
    to = pointer(J)
    transpose_weights(q, p, True, transposed)
    for i in range(0, n, tile):
        m, xi = min(tile, n - i), at(x, i * n_in)
        forward_tile(q, c, p, xi, m, tape, tile, 0)
        for k in range(n_out):
            fill(d, m * n_out, 0.0)
            for j in range(m):
                d[j * n_out + k] = 1.0
            backward_tile(
                q, c, p, transposed, xi, m, tape, tile, 0,
                d, next_d, p, False, False, x_rows, True,
            )  # fmt: skip
            for j in range(m):
                copy(at(to, ((i + j) * n_out + k) * n_in), at(x_rows, j * n_in), n_in)
