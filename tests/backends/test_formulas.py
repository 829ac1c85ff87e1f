"""The vector formulas are complete, and the C of them is up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import repository

from fastbp.backends import reference
from fastbp.maths import losses
from fastbp.maths.formulas import losses as loss_formulas, optimizers

# In a process of its own: the factors of a product may stand the other way round where an equal
# product is alive already.
GENERATE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tool", sys.argv[1])
tool = importlib.util.module_from_spec(spec)
sys.path.insert(0, str(__import__("pathlib").Path(sys.argv[1]).parent))
spec.loader.exec_module(tool)
for path, text in tool.generate().items():
    if path.read_text(encoding="utf-8") != text:
        print(path)
"""


@pytest.mark.parametrize("name", ["formulas", "naive"])
def test_the_tool_reproduces_the_header(name):
    path = Path(repository.tool(name).__file__)
    command = [sys.executable, "-c", GENERATE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "", f"run python tools/{name}.py"


def test_each_loss_has_a_formula_or_a_function_of_its_own():
    by_hand = {losses.SOFTMAX_CE, losses.SOFTMAX_CE_LABELS, losses.MARGIN_RANKING}
    names = [*loss_formulas.ELEMENTWISE, *loss_formulas.GAUSSIAN]
    kinds = [getattr(losses, name.upper()) for name in names]
    assert sorted([*kinds, *by_hand]) == sorted(losses.ROW_LOSSES) == list(range(losses.USER_LOSS))


def test_each_rule_has_its_reference():
    assert set(reference._RULES) == set(optimizers.RULES)
