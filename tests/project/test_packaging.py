"""What users install: sdist -> wheel -> a clean environment, with and without a compiler."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import objects
from helpers.repository import ROOT

from fastbp import backends

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
FAILURE_NOTE = "fastbp/backends/_c_build_failure.txt"
COMPILER = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]

needs_compiler = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which(COMPILER) is None, reason="no C compiler"
)
# Run in the clean environment, from a folder without fastbp.
TRIAL = """
import json
import fastbp as fb
net = fb.Network.mlp([2, 3, 1])
value = net.value(net.init(seed=0), [[1.0, 2.0]], [[3.0]])
print(json.dumps({
    "file": fb.__file__,
    "version": fb.__version__,
    "backends": fb.available_backends(),
    "config": fb.show_config(mode="dicts"),
    "value": value,
}, default=str))
"""


def run(*command, cwd, **variables):
    """The output of a command; this process's FASTBP_* settings are not passed on."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FASTBP_", "PYTHON"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind, source, folder, **variables):
    folder.mkdir(exist_ok=True)
    run(
        *(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", folder, source),
        cwd=folder,
        **variables,
    )
    (product,) = folder.iterdir()
    return product


def unpack(sdist, folder):
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    # A copy, so that neither stale build products get in nor new ones get out.
    copy = tmp_path_factory.mktemp("checkout") / "fastbp"
    ignore = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, copy, ignore=ignore)
    return build("sdist", copy, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def source(sdist, tmp_path_factory):
    return unpack(sdist, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """Built in `source`, where the object files are then."""
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def install(wheel, folder):
    """Install into a new environment that sees this one's dependencies, but not its fastbp."""
    venv.create(folder, symlinks=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"),
        *("--no-deps", "--disable-pip-version-check", wheel),
        cwd=folder,
    )
    purelib = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    )
    # Folders that a .pth file names are searched after the environment's own, and their own .pth
    # files, by which an editable fastbp would come in, are not read.
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(purelib.strip(), "dependencies.pth").write_text("\n".join(dependencies))
    return python


def try_out(python, folder):
    found = json.loads(run(python, "-c", TRIAL, cwd=folder))
    assert Path(found["file"]).is_relative_to(folder)
    assert found["version"] == VERSION
    assert "numpy" in found["backends"]
    return found


def test_sdist_has_what_building_and_testing_need(sdist):
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        *("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "setup.py", "pyproject.toml"),
        *(
            "csrc/build_ffi.py",
            "csrc/fastbp.h",
            "csrc/dispatch.c",
            "tests/project/test_packaging.py",
        ),
    } <= inside
    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in ("csrc", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= inside
    assert not [name for name in inside if name.endswith((".so", ".o", ".pyc"))]


@needs_compiler
def test_wheel_has_the_package_and_nothing_else(wheel):
    inside = names(wheel)
    assert {name.partition("/")[0] for name in inside} == {"fastbp", f"fastbp-{VERSION}.dist-info"}
    assert "fastbp/py.typed" in inside
    assert f"fastbp-{VERSION}.dist-info/licenses/LICENSE" in inside
    assert FAILURE_NOTE not in inside
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastbp").rglob("*.py")}
    assert {name for name in inside if name.endswith(".py")} == modules


@needs_compiler
@pytest.mark.skipif(
    sys.implementation.name != "cpython" or bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="this Python has no limited API",
)
def test_one_wheel_serves_all_pythons_of_a_platform(wheel):
    assert "-cp311-abi3-" in wheel.name
    extensions = [name for name in names(wheel) if name.endswith((".so", ".pyd"))]
    assert [name.partition(".")[0] for name in sorted(extensions)] == [
        "fastbp/backends/_c",
        "fastbp/common/_fastcall",
    ]
    assert not [name for name in extensions if sysconfig.get_config_var("SOABI") in name]


@needs_compiler
def test_wheel_works_in_a_clean_environment(wheel, tmp_path):
    python = install(wheel, tmp_path / "env")
    found = try_out(python, tmp_path)
    assert found["backends"][0] == "c"
    assert run(python.with_name("fastbp"), "info", cwd=tmp_path)


@needs_compiler
@pytest.mark.skipif(shutil.which("strip") is None, reason="no strip here")
def test_extensions_are_small(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path, [name for name in names(wheel) if name.endswith(".so")])
    found = list(tmp_path.rglob("*.so"))
    run("strip", *found, cwd=tmp_path)
    assert found and sum(path.stat().st_size for path in found) < 2e6


needs_binutils = pytest.mark.skipif(
    platform.machine() != "x86_64" or bool(objects.MISSING),
    reason=f"not x86-64, or missing: {objects.MISSING}",
)


@needs_compiler
@needs_binutils
def test_wide_vectors_stand_in_their_targets_only(source, wheel):
    """What any processor runs is in other files than what is chosen at run time."""
    targets = {}
    for path in (source / "build").rglob("*.o"):
        level, _, dtype = path.stem.partition("_")
        if path.parent.name != "targets":
            level = "baseline"
        else:
            targets[path.stem] = path
            assert objects.visible(path) == {f"fb_{level}_{dtype}"}
        assert not objects.above_level(path, level)
    levels = [f"{level}_{dtype}" for level in objects.LEVELS for dtype in ("f32", "f64")]
    assert sorted(targets) == sorted(levels)
    assert objects.above_level(targets["avx2_f32"], "baseline")
    assert objects.above_level(targets["avx512_f64"], "avx2")


@needs_compiler
@needs_binutils
@pytest.mark.parametrize(
    ("instruction", "lowest"),
    [
        ("addps %xmm1, %xmm0", "baseline"),
        ("bsf %eax, %eax", "baseline"),
        ("popcnt %eax, %eax", "avx2"),
        ("haddps %xmm0, %xmm0", "avx2"),
        ("pshufb %xmm0, %xmm0", "avx2"),
        ("roundsd $1, %xmm9, %xmm0", "avx2"),
        ("vaddps %xmm1, %xmm0, %xmm0", "avx2"),
        ("vfmadd231pd %ymm1, %ymm0, %ymm9", "avx2"),
        ("vaddps %zmm1, %zmm0, %zmm0", "avx512"),
        ("vaddps %xmm1, %xmm0, %xmm20", "avx512"),
        ("shlx %rax, %rax, %rax", None),
        ("mulx %eax, %eax, %eax", None),
    ],
)
def test_instructions_are_told_apart(tmp_path, instruction, lowest):
    assembly = tmp_path / "one.c"
    assembly.write_text(f'void one(void) {{ __asm__("{instruction}"); }}\n')
    run(COMPILER, "-c", assembly, "-o", tmp_path / "one.o", cwd=tmp_path)
    levels = list(objects.LEVELS)
    too_low = levels[: levels.index(lowest)] if lowest else levels
    for level in levels:
        found = objects.above_level(tmp_path / "one.o", level)
        assert len(found) == (level in too_low)
        assert not found or instruction.split()[0] in found[0]


@needs_compiler
@needs_binutils
def test_all_names_that_others_see_are_found(tmp_path):
    text = """
    static int hidden(int x) { return 2 * x; }
    int function(int x) { return hidden(x); }
    __attribute__((weak)) int weak(int x) { return x; }
    __attribute__((visibility("hidden"))) int table[3] = {1, 2, 3};
    """
    (tmp_path / "names.c").write_text(text)
    run(COMPILER, "-c", tmp_path / "names.c", "-o", tmp_path / "names.o", cwd=tmp_path)
    assert objects.visible(tmp_path / "names.o") == {"function", "weak", "table"}


def test_package_works_without_extension(sdist, tmp_path):
    source = unpack(sdist, tmp_path / "source")
    wheel = build("wheel", source, tmp_path / "wheel", FASTBP_NO_EXTENSION="1")
    python = install(wheel, tmp_path / "env")
    found = try_out(python, tmp_path)
    assert "c" not in found["backends"]
    assert "FASTBP_NO_EXTENSION" in json.dumps(found["config"])


@pytest.mark.skipif(sys.platform == "win32", reason="CC is not read there")
@pytest.mark.parametrize(
    ("sabotage", "reason"),
    [
        ("no compiler", "no C compiler was found (no-such-compiler)"),
        pytest.param("broken source", ".c:1:2: error: ", marks=needs_compiler),
    ],
)
def test_a_failed_build_still_gives_a_wheel_and_says_why(sdist, tmp_path, sabotage, reason):
    source = unpack(sdist, tmp_path / "source")
    variables = {}
    if sabotage == "no compiler":
        variables["CC"] = "/no-such-folder/no-such-compiler"
    else:
        for path in (source / "csrc").rglob("*.c"):
            path.write_text("#error stops here\n")
    wheel = build("wheel", source, tmp_path / "wheel", **variables)
    assert not [name for name in names(wheel) if name.endswith((".so", ".pyd"))]
    with zipfile.ZipFile(wheel) as archive:
        note = archive.read(FAILURE_NOTE).decode()
    assert reason in note
    assert str(tmp_path) not in note


def test_version_is_the_same_everywhere():
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_requirement_names_the_series_of_numba_that_the_backend_admits():
    (oldest, last), (_, newest) = backends.OLDEST_NUMBA, backends.NEWEST_NUMBA
    expected = f'"numba>={oldest}.{last},<{oldest}.{newest + 1};'
    assert expected in (ROOT / "pyproject.toml").read_text()
