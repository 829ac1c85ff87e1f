"""The documentation's programs run, its links lead somewhere, its tables list what there is."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from functools import partial

import pytest
from helpers import repository
from helpers.repository import ROOT

import fastbp as fb
from fastbp.common.timing import BY_HAND, compare
from fastbp.maths import activations, losses

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Beside them, documents without programs of Python.
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "bench/README.md", "examples/README.md")]
LINKING = [*DOCUMENTS, *OTHERS]
# Documents that name files, and the folders where their paths may begin.
MAPS = {
    "CONTRIBUTING.md": (".", "fastbp", "csrc", "fastbp/backends"),
    "README.md": (".",),
    "bench/README.md": ("bench", "bench/benches", "bench/peers", "bench/measuring", "bench/report"),
}
TABLES = {  # how the README's row of all names begins, and where each has a row of its own
    "Activations": ("docs/networks.md", activations.NAMES),
    "Losses": ("docs/losses.md", tuple(losses.TABLE)),
}


def short(path):
    return str(path.relative_to(ROOT))


def modules():
    """All importable modules of the package; the compiled library has no docstrings."""
    found = pkgutil.walk_packages(fb.__path__, "fastbp.")
    return ["fastbp", *(m.name for m in found if not m.name.endswith(("._c", "__main__")))]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    module = importlib.import_module(name)
    with fb.use_backend(fb.get_backend()):
        failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_public_functions_and_classes_have_docstrings():
    for name in set(fb.__all__) - {"__version__"}:
        assert (getattr(fb, name).__doc__ or "").strip(), name


def program(text):
    """The Python blocks of a document as one program, line numbers kept."""
    lines, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = re.match(r"```python\s*$", line) is not None
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines)


def test_program_takes_the_python_blocks():
    text = "Read\n```python\nx = 1\n```\nand\n```console\n$ ls\n```\n```python\nprint(x)\n```"
    assert program(text) == "\n\nx = 1\n\n\n\n\n\n\nprint(x)\n"


@pytest.mark.parametrize("path", DOCUMENTS, ids=short)
def test_documents_examples_run(path, tmp_path):
    if not path.exists():
        pytest.skip(f"there is no {path.name}")
    script = tmp_path / (path.stem + ".py")
    script.write_text(program(path.read_text(encoding="utf-8")), encoding="utf-8")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:fastbp", script],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


PAIR = "By hand:\n\n{0}\nWith fastbp:\n\n{0}\nThe same result:\n\n{0}".format(
    r"```python\n(.*?)^```\n"
)


@pytest.mark.backend
def test_drop_in_pairs(backend, record_property):
    """Both of each pair come to the same result; how long they take is printed (-rP) and recorded.

    What a section has before its pair sets it up, for itself and for those after it.
    """
    text = (ROOT / "docs" / "drop_in.md").read_text(encoding="utf-8")
    shared, titles = {}, []
    for section in re.split(r"^## ", text, flags=re.M):
        pair = re.search(PAIR, section, re.M | re.S)
        exec(program(section[: pair.start()] if pair else section), shared)
        if not pair:
            continue
        title = section.splitlines()[0]
        by_hand, ours, check = (compile(part, title, "exec") for part in pair.groups())
        calls = {BY_HAND: partial(run, by_hand, shared), backend: partial(run, ours, shared)}
        results, _, best = compare(calls, seconds=0.2)
        assert results[BY_HAND].keys() & results[backend].keys() == shared.keys()
        assert "assert " in pair[3]
        run(check, results[BY_HAND] | results[backend])
        times = ", ".join(f"{name} {1e6 * seconds:,.0f} µs" for name, seconds in best.items())
        record_property(title, times)
        print(f"{title}: {times}, {best[BY_HAND] / best[backend]:.1f} times faster")
        titles.append(title)
    assert len(titles) >= 5
    assert re.findall(r"^\| \[(.*)\]\(.*\) \| [\d,]+ µs \|", text, re.M) == titles


def run(code, names):
    """The names with which a program ends that starts with these."""
    names = dict(names)
    exec(code, names)
    return names


@pytest.mark.parametrize("path", LINKING, ids=short)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


def paths(text):
    """The paths that a text names in backticks, outside its blocks of code."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    ends = r"(?:/|\.(?:py|c|h|md|json|toml))"
    return re.findall(rf"`([\w.-]+(?:/[\w.-]+)+/?|[\w.-]+{ends})`", prose)


def missing(text, folders):
    """The paths that a text names and that are in none of the folders."""
    named = paths(text)
    return [path for path in named if not any((ROOT / f / path).exists() for f in folders)]


def test_missing_paths_are_detected():
    text = "`fastbp/fitting/`, `maths/losses.py`, `setup.py`\n```sh\n`no/where.py`\n```\n"
    text += (
        "   ```diff\n+`no.py`\n   ```\n`fastbp/nowhere/`, `@`, `make test`, `losses.py` `gone.h`"
    )
    assert missing(text, [".", "fastbp"]) == ["fastbp/nowhere/", "losses.py", "gone.h"]


@pytest.mark.parametrize("name", MAPS)
def test_paths_that_documents_name_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(paths(text)) > 10
    assert missing(text, MAPS[name]) == []


def test_the_map_has_every_folder_of_the_package():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z/`, ]+`) \|", text.partition("### ")[0], re.M)
    named = {name for row in rows for name in re.findall(r"`([a-z]+)/`", row)}
    folders = {path.parent.name for path in (ROOT / "fastbp").glob("*/__init__.py")}
    assert folders <= named


def test_the_tool_adds_nothing_to_the_lists_of_names():
    for path, text in repository.tool("lists").generate().items():
        assert path.read_text(encoding="utf-8") == text, f"run python tools/lists.py: {path}"


@pytest.mark.parametrize("title", TABLES)
def test_tables_list_all_names(title):
    document, names = TABLES[title]
    text = (ROOT / document).read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.M)) == sorted(names)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| \[{title}\]\S* \| ([\w, ]*\w)", readme, re.M)
    assert row.split(", ") == list(names)
