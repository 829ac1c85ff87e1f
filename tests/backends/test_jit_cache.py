"""Compiled code on disk: when it is used, what it depends on, where it lies, who may write it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastbp import backends

if reason := backends.why_missing("numba"):
    pytest.skip(reason, allow_module_level=True)

import llvmlite
import numba
from helpers.numba_backend import PACKAGE, RIGHT, TANH, X86, python
from numba.core import config

from fastbp.backends.jit import caching


def make(factor):
    """Python functions of one name that differ in what they close over."""

    def times(x):
        return factor * x

    return times


def compiled(factor=2, signature="float64(float64)"):
    """The value of 3.0 times the factor, whether that was compiled now, and the cache."""
    dispatcher = numba.njit(make(factor))
    dispatcher._cache = cache = caching.Cache(dispatcher.py_func)
    dispatcher.compile(signature)
    return dispatcher(3.0), bool(dispatcher.stats.cache_misses), cache


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Two folders, as the package's own and the user's."""
    found = tmp_path / "package", tmp_path / "user"
    monkeypatch.setattr(caching, "folders", lambda: found)
    caching._remove_stale.cache_clear()
    return found


# Where it lies.


def test_the_first_place_is_used(places):
    value, is_new, cache = compiled()
    assert (value, is_new) == (6.0, True)
    assert cache.path.parent == places[0] and cache.cache_path == str(places[0])
    assert compiled()[:2] == (6.0, False)
    assert [path.name for path in places[0].iterdir()] == [cache.path.name]
    assert not places[1].exists()


@pytest.mark.skipif(not hasattr(os, "umask"), reason="no modes here")
def test_others_may_read_what_an_administrator_compiled(places):
    before = os.umask(0o022)
    try:
        assert compiled()[2].path.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_the_second_place_is_used_where_the_first_cannot_be_written(places):
    places[0].touch()  # a file in its place stops root as well
    cache = compiled()[2]
    assert cache.path.parent == places[1] == caching.writable_folder() and cache.error is None
    assert compiled()[:2] == (6.0, False)


def test_code_in_a_folder_that_cannot_be_written_is_used(places, monkeypatch):
    path = compiled()[2].path

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(caching, "_write", refused)
    value, is_new, cache = compiled()
    assert (value, is_new, cache.path) == (6.0, False, path)
    assert not places[1].exists()


def test_without_a_place_it_is_compiled_each_time(places):
    for place in places:
        place.touch()
    for _ in range(2):
        value, is_new, cache = compiled()
        assert (value, is_new, cache.path) == (6.0, True, None)
        assert isinstance(cache.error, OSError)
    assert caching.writable_folder() is None


def test_an_error_while_writing_leaves_nothing(places, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    value, is_new, cache = compiled()
    assert (value, is_new, cache.path, cache.error.errno) == (6.0, True, None, 28)
    assert not [*places[0].iterdir(), *places[1].iterdir()]


def test_read_only_package_and_a_users_cache(copy, tmp_path):
    (copy / "fastbp" / "backends" / "jit" / "__pycache__").touch()
    user = {"HOME": tmp_path, "XDG_CACHE_HOME": tmp_path / "c", "LOCALAPPDATA": tmp_path / "c"}
    code = TANH + "print(dispatcher.stats.cache_path)"
    first, second = (python(code, copy, **user).split() for _ in range(2))
    assert first[:4] == [*RIGHT, "0", "1"] and second[:4] == [*RIGHT, "1", "0"]
    assert Path(first[4]).is_relative_to(tmp_path) and first[4] == second[4]


# What it depends on.


def test_types_and_closures_have_files_of_their_own(places):
    """So that nothing that two processes write at once can take another's place."""
    paths = {
        compiled(factor, signature)[2].path
        for factor in (2, 3, 2.0)
        for signature in ("float64(float64)", "float32(float32)")
    }
    assert len(paths) == 6
    assert compiled(3)[:2] == (9.0, False) and compiled(2)[:2] == (6.0, False)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (numba, "__version__", "0.1"),
        (llvmlite, "__version__", "0.1"),
        (sys, "abiflags", "t"),
        (config, "OPT", 0),
        (config, "BOUNDSCHECK", 1),
        (config, "DEBUGINFO_DEFAULT", 1),
        (caching, "source_fingerprint", lambda: 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_versions_and_settings_are_not_mixed_up(places, monkeypatch, owner, name, value):
    compiled()
    with monkeypatch.context() as changed:
        changed.setattr(owner, name, value, raising=name != "abiflags")
        assert compiled()[:2] == (6.0, True)
        assert compiled()[:2] == (6.0, False)
    assert compiled()[:2] == (6.0, False)  # and back: nothing was lost


PROCESSORS = [
    {},
    {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse2,+avx,+avx2,+fma"},
    {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse2,+avx,+avx2"},
]


@pytest.mark.skipif(not X86, reason="these are x86 processors")
def test_each_processor_has_code_of_its_own(tmp_path):
    """Of another name, or of this one with other instruction sets: the vectors' width follows."""

    def run(processor):
        return python(TANH, NUMBA_CACHE_DIR=tmp_path, **processor).split()

    for processor in PROCESSORS:
        assert run(processor) == [*RIGHT, "0", "1"], processor
    assert run(PROCESSORS[0]) == [*RIGHT, "1", "0"]


# What may befall a file.


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:-100] + bytes(100),
        lambda content: content[:700] + bytes([content[700] ^ 1]) + content[701:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
    ],
    ids=["empty", "half", "one byte short", "zeros at the end", "one bit", "the checksum"],
)
def test_a_damaged_file_is_replaced(places, damage):
    path = compiled()[2].path
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert compiled()[:2] == (6.0, True)
    assert path.read_bytes()[:32] != damage(whole)[:32] or path.read_bytes() == whole
    assert compiled()[:2] == (6.0, False)


def test_a_damaged_file_is_passed_over(places):
    """Where the second place has a good one, or where no file can be read."""
    path = compiled()[2].path
    content = path.read_bytes()
    places[1].mkdir()
    (places[1] / path.name).write_bytes(content)
    path.write_bytes(b"damaged")
    assert compiled()[:2] == (6.0, False)
    path.unlink()
    path.mkdir()  # reading fails otherwise than by absence
    assert compiled()[:2] == (6.0, False)


def test_what_no_longer_serves_is_removed_after_a_time(places):
    folder = places[0]
    folder.mkdir()
    old, other = time.time() - caching.STALE_SECONDS - 60, "fastbp-0123456789ab"
    ours = f"fastbp-{caching.source_fingerprint():012x}"
    stale = [f"{other}.train.aa.nbc", f"{other}.train.aa.1234.tmp", f"{ours}.train.aa.1234.tmp"]
    served = [f"{ours}.train.aa.nbc", "kernels.dots-1.py311.1.nbc", "a.pyc", "fastbp-notes.nbc"]
    recent = [f"{other}.train.bb.nbc", f"{ours}.train.bb.1234.tmp"]
    for name in (*stale, *served, *recent):
        (folder / name).write_bytes(b"code")
    for name in (*stale, *served):
        os.utime(folder / name, (old, old))
    path = compiled()[2].path
    assert {file.name for file in folder.iterdir()} == {path.name, *served, *recent}


def test_four_processes_may_need_it_first_at_once(tmp_path):
    code = """
import sys, numpy as np, fastbp as fb
from fastbp.backends import jit
print("ready", flush=True)
sys.stdin.readline()
Z = np.array([-1.0, 2.0], sys.argv[1])
print(*fb.activation("leaky_relu").f(Z).round(3), *fb.activation("elu").f(Z).round(3))
print(sum(
    sum(function.dispatchers[Z.dtype.char].stats.cache_misses.values())
    for function in (jit.kernels.activation, *jit.activations.call_activation._members.values())
))
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FASTBP_", "NUMBA_"))}
    environment |= {"PYTHONPATH": str(PACKAGE.parent), "FASTBP_BACKEND": "numba"}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path)

    def run(dtypes):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, dtype],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for dtype in dtypes
        ]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:  # all are there: now they begin together
            process.stdin.write("\n")
            process.stdin.flush()
        results = [process.communicate(timeout=300)[0].split() for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes)
        assert {tuple(result[:4]) for result in results} == {("-0.01", "2.0", "-0.632", "2.0")}
        return [int(result[4]) for result in results]

    assert max(run(["float64", "float32", "float64", "float32"])) == 3
    assert len(list(tmp_path.rglob("*.nbc"))) == 6 and not list(tmp_path.rglob("*.tmp"))
    assert run(["float32"]) == [0]
