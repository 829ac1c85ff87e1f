"""Add what is new in the tables of activations, losses and optimizers to the documentation.

    python tools/lists.py

writes the names that are missing into README.md, the tables of docs/, the docstrings that list
names, and the public names of fastbp/__init__.py. What stands there already stays as it is, so that
a row can be worded better afterwards. The formula of a row is the docstring of its NumPy function.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from textwrap import fill

from fastbp.cli.tables.model import LOSSES, REGRESSION
from fastbp.maths import activations, losses
from fastbp.training.optimizers import METHODS

ROOT = Path(__file__).resolve().parent.parent
LOSS_GROUPS = {  # of targets, as the docstring of `objective` has them
    "values": "- values y:", "probabilities": "- probabilities y:",
    "signs": "- labels -1 and 1:", "counts": "- counts y:", "classes": "- per row:",
    "halves": "- per row:", "none": "- per row:",
}  # fmt: skip
CLASSES = {type(method).__name__: name for name, method in METHODS.items()}


class Documents:
    """The files, with what has been added to them."""

    def __init__(self) -> None:
        self.texts: dict[Path, str] = {}

    def change(self, path: str, before: str, after: str, added: str) -> None:
        """Insert a text where `after` (a pattern) follows what `before` (a pattern) matches."""
        text = self.text(path)
        match = re.search(f"({before})(?={after})", text, re.M | re.S)
        if match is None:
            raise ValueError(f"{path} has no place for {added!r}")
        self.texts[ROOT / path] = text[: match.end()] + added + text[match.end() :]

    def change_wrapped(self, path: str, before: str, after: str, added: str, end: str) -> None:
        """The same within a paragraph of a docstring, which is wrapped again from its first line
        to `end`, a pattern."""
        self.change(path, before, after, added)
        text = self.text(path)
        start = text.rindex("\n", 0, re.search(before, text, re.M | re.S).start()) + 1
        stop = start + re.search(end, text[start:], re.M).end()
        old = text[start:stop]
        first = re.match(r" *", old)[0]
        further = first + "  " * old.lstrip().startswith("- ")
        new = fill(
            " ".join(old.split()), 100, initial_indent=first, subsequent_indent=further,
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
        self.texts[ROOT / path] = text[:start] + new + text[stop:]

    def text(self, path: str) -> str:
        return self.texts.setdefault(ROOT / path, (ROOT / path).read_text(encoding="utf-8"))

    def missing(self, path: str, names: Iterable[str], pattern: str) -> list[str]:
        """The names for which the file does not have the pattern, {} for the name."""
        return [n for n in names if not re.search(pattern.format(n), self.text(path), re.M)]


def add_activations(documents: Documents) -> None:
    names = activations.NAMES
    for name in documents.missing("docs/networks.md", names, r"^\| `{}` \|"):
        row = f"\n| `{name}` | {cell(formula(activations.TABLE[name].f))} | |"
        documents.change("docs/networks.md", rf"^\| `{ahead(name, names)}` \|[^\n]*", "", row)
    for name in documents.missing("README.md", names, r"^\| \[Activations\].*[ ,]{}[ ,]"):
        place = rf"^\| \[Activations\][^\n]*? {ahead(name, names)}\b"
        documents.change("README.md", place, "", f", {name}")
    path = "fastbp/networks/activations.py"
    for name in documents.missing(path, names, '"{}"'):
        ends = r"One of \"linear\".*?", r"; an `Activation`"
        documents.change_wrapped(path, *ends, f', "{name}"', r"as it is\.")


def add_losses(documents: Documents) -> None:
    names = tuple(losses.TABLE)
    for name in documents.missing("docs/losses.md", names, r"^\| `{}` \|"):
        loss = losses.TABLE[name]
        what = cell(formula(losses.ROW_LOSSES[loss.kind].value))
        row = f"\n| `{name}` | {what} | {loss.divisor} | {loss.target} |"
        documents.change("docs/losses.md", rf"^\| `{ahead(name, names)}` \|[^\n]*", "", row)
    for name in documents.missing("README.md", names, r"^\| \[Losses\].*[ ,]{}[ ,;]"):
        place = rf"^\| \[Losses\][^\n]*? {ahead(name, names)}\b"
        documents.change("README.md", place, "", f", {name}")
    offered = LOSSES[REGRESSION]
    for name in documents.missing("docs/command_line.md", offered, r"`{}[:`]"):
        documents.change(
            "docs/command_line.md", r"`poisson`.*?", r"\s+and `gaussian_nll`", f", `{name}`"
        )
    path = "fastbp/networks/network.py"
    for name in documents.missing(path, names, '"{}"'):
        loss = losses.TABLE[name]
        added = f'; "{name}" {formula(losses.ROW_LOSSES[loss.kind].value)}'
        begin = re.escape(LOSS_GROUPS[loss.target]) + r".*?"
        documents.change_wrapped(
            path, begin, r"[;.]\n +(- |\"\"\")", added, r"[;.](?=\n +(- |\"\"\"))"
        )


def add_optimizers(documents: Documents) -> None:
    for name in documents.missing("docs/fitting.md", METHODS, r'`"{}"`'):
        method = METHODS[name]
        options = ", ".join(f"`{f.name}` ({getattr(method, f.name)})" for f in fields(method))
        row = f'\n| `"{name}"` | `fb.{type(method).__name__}(...)` | {options} |'
        documents.change("docs/fitting.md", r"^\| `\"sgd\"`.*?", r'\n\| `"lm"`', row)
    for name in documents.missing("README.md", CLASSES, r"^\| \[Fitting\].*[ ,]{}[ ,]"):
        documents.change("README.md", r"^\| \[Fitting\][^\n]*?", r" with rate", f", {name}")
    path = "fastbp/fitting/_fit.py"
    for name in documents.missing(path, METHODS, '"{}"'):
        ends = r'"sgd", "momentum".*?', r'\s+and "adagrad"'
        documents.change_wrapped(path, *ends, f', "{name}"', r"minibatch method\.")
    path = "fastbp/__init__.py"
    for name in documents.missing(path, CLASSES, '^    "{}":'):
        before = [n for n in re.findall(r'^    "(\w+)":', documents.text(path), re.M) if n < name]
        line = f'    "{name}": "training.optimizers",\n'
        documents.change(path, rf'^    "{before[-1]}":[^\n]*\n', "", line)


def ahead(name: str, names: tuple[str, ...]) -> str:
    """The name before this one."""
    return names[names.index(name) - 1]


def formula(function: object) -> str:
    """What the docstring of a NumPy function says that it computes."""
    if not function.__doc__:
        name = function.__name__  # type: ignore[attr-defined]
        raise SystemExit(f"{name} has no docstring, expected its formula, for the documentation")
    return function.__doc__.strip().rstrip(".")


def cell(text: str) -> str:
    return text.replace("|", r"\|")


def generate() -> dict[Path, str]:
    """The texts of the files."""
    documents = Documents()
    add_activations(documents)
    add_losses(documents)
    add_optimizers(documents)
    return documents.texts


if __name__ == "__main__":
    for path, text in generate().items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
