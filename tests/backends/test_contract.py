"""The contract of the backends: signatures, names, numbers, parts."""

from __future__ import annotations

import inspect

import pytest

from fastbp.backends import contract

# The contract.

# `partition` is no function of a backend.
FUNCTIONS = {
    name: function
    for name, function in vars(contract).items()
    if inspect.isfunction(function)
    and function.__module__ == contract.__name__
    and name != "partition"
}


@pytest.mark.backend
@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_the_contracts(module, name):
    expected = inspect.signature(FUNCTIONS[name])
    actual = inspect.signature(getattr(module, name))
    plain = [
        [(p.name, p.kind, p.default) for p in s.parameters.values()] for s in (actual, expected)
    ]
    assert plain[0] == plain[1]


@pytest.mark.backend
def test_backends_have_no_functions_of_their_own(backend, module):
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isroutine(value) or type(value).__module__.startswith("numba"))
        and getattr(value, "__module__", "") == module.__name__  # not what it imports
    }
    # Only the functions for `show_config` compute nothing.
    assert public - {"why_missing", "instruction_set", "compiler"} == set(FUNCTIONS)


def test_numbers_of_activations_and_losses_are_distinct():
    from fastbp.maths.activations import TABLE, USER
    from fastbp.maths.losses import ROW_LOSSES, USER_LOSS

    kinds = [row.kind for row in TABLE.values()]
    assert sorted([*kinds, USER]) == list(range(len(TABLE) + 1))
    assert sorted([*ROW_LOSSES, USER_LOSS]) == list(range(len(ROW_LOSSES) + 1))


def test_parts_cover_all_rows_once_and_have_even_lengths():
    assert contract.partition(0) == [(0, 0)]
    for n in [*range(1, 9000), 10**6 + 1]:
        parts = contract.partition(n)
        assert len(parts) == min(16, -(-n // 256))
        assert [start for start, _ in parts[1:]] == [stop for _, stop in parts[:-1]]
        assert (parts[0][0], parts[-1][1]) == (0, n)
        sizes = [stop - start for start, stop in parts]
        assert min(sizes) > 0 and not any(size % 2 for size in sizes[:-1])
        assert max(sizes) - min(sizes) <= 2 * len(parts)
