"""The vector formulas are complete, and the C of them is up to date."""

from __future__ import annotations

import pytest
from helpers import repository

from fastbp.backends import reference
from fastbp.maths import losses
from fastbp.maths.formulas import losses as loss_formulas, optimizers


@pytest.mark.parametrize("name", ["formulas", "naive"])
def test_the_tool_reproduces_the_header(name):
    for path, text in repository.tool(name).generate().items():
        assert path.read_text(encoding="utf-8") == text, f"run python tools/{name}.py: {path}"


def test_each_loss_has_a_formula_or_a_function_of_its_own():
    by_hand = {losses.SOFTMAX_CE, losses.SOFTMAX_CE_LABELS, losses.MARGIN_RANKING}
    names = [*loss_formulas.ELEMENTWISE, *loss_formulas.GAUSSIAN]
    kinds = [getattr(losses, name.upper()) for name in names]
    assert sorted([*kinds, *by_hand]) == sorted(losses.ROW_LOSSES) == list(range(losses.USER_LOSS))


def test_each_rule_has_its_reference():
    assert set(reference._RULES) == set(optimizers.RULES)
