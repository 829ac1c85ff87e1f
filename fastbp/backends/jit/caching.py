"""Compiled functions kept on disk from one process to the next.

Numba's own cache has an index per function, which several processes may write at once; then the
code of one version can come to stand under another's name. It knows of a change in the one source
file that holds a function and not in those that the code is also made of, looks nowhere but where
it can write, and leaves behind what no longer serves. Here each version of a function is a file,
whose name depends on all that the code depends on, and whose content is checked.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba import config

from .numba_internals import AppDirs, dumps, packed, unpacked

_HERE = Path(__file__).resolve().parent
_SUFFIX = ".nbc"  # Numba's, which tools that clean up know
_OURS = re.compile(r"fastbp-(?P<sources>[0-9a-f]{12})\..*(\.nbc|\.tmp)")

# Files of other sources may still serve another version of fastbp that shares the folder; one that
# was not used for so long is compiled again.
STALE_SECONDS = 30 * 24 * 3600


@cache
def source_fingerprint() -> int:
    """A number that changes with any source file of which the compiled code is made."""
    package, digest = _HERE.parents[1], hashlib.sha256()
    for folder in ("backends", "backends/jit", "jitted", "maths", "maths/formulas"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return int.from_bytes(digest.digest()[:6], "little")


@cache
def folders() -> tuple[Path, ...]:
    """Where compiled functions are looked for; they are kept in the first that can be written.

    NUMBA_CACHE_DIR names the only one; else it is the package's own, which may have been filled by
    whoever installed it, and the user's.
    """
    if config.CACHE_DIR:
        return (Path(config.CACHE_DIR) / "fastbp",)
    users = Path(AppDirs(appname="fastbp", appauthor=False).user_cache_dir)
    return _HERE / "__pycache__", users


def writable_folder() -> Path | None:
    """Where functions that are compiled now are kept, or None if there is no place."""
    for folder in folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    return None


def _environment(codegen: Any) -> tuple[Any, ...]:
    """What the code depends on beside its sources and types."""
    return (
        *codegen.magic_tuple(),  # platform, processor, its instruction sets
        numba.__version__,
        llvmlite.__version__,
        sys.version_info[:2],
        getattr(sys, "abiflags", ""),
        config.OPT, config.LOOP_VECTORIZE, config.SLP_VECTORIZE,
        config.BOUNDSCHECK, config.DEBUGINFO_DEFAULT,
    )  # fmt: skip


class Cache:
    """What Numba's dispatcher asks for compiled code, and hands it to: a function's own.

    The cache fails in many ways (no writable folder, a full disk, a damaged file, sources that are
    not there), and none of them is a reason not to run.

    Attributes
    ----------
    name : str
        The function's.
    path : Path or None
        The file that holds the code.
    error : Exception or None
        Why there is none.
    """

    def __init__(self, function: Callable):
        self.name = function.__qualname__.rpartition(".")[2]
        self._place = function.__module__, function.__qualname__
        self._closure = tuple(cell.cell_contents for cell in function.__closure__ or ())
        self.path: Path | None = None
        self.error: Exception | None = None

    @property
    def cache_path(self) -> str | None:
        """The folder, as Numba's statistics show it."""
        return None if self.path is None else str(self.path.parent)

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The compiled function, or None if it must be compiled."""
        try:
            context.refresh()
            found = self._load(self._file_name(signature, context.codegen()), context)
        except Exception as error:
            found, self.error = None, error
        return found

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep what has just been compiled."""
        try:
            self._save(self._file_name(signature, compiled.codegen), packed(compiled))
        except Exception as error:
            self.error = error

    def _file_name(self, signature: Any, codegen: Any) -> str:
        key = repr((*self._place, str(signature), *_environment(codegen))).encode()
        digest = hashlib.sha256(key + dumps(self._closure)).hexdigest()[:20]
        return f"fastbp-{source_fingerprint():012x}.{self.name}.{digest}{_SUFFIX}"

    def _load(self, name: str, context: Any) -> Any:
        for folder in folders():
            with suppress(OSError):
                content = (folder / name).read_bytes()
                checksum, data = content[:32], content[32:]
                if hashlib.sha256(data).digest() == checksum:
                    self.path = folder / name
                    return unpacked(context, data)
        return None

    def _save(self, name: str, data: bytes) -> None:
        for folder in folders():
            try:
                _write(folder / name, hashlib.sha256(data).digest() + data)
            except OSError as error:
                self.error = error
                continue
            self.path, self.error = folder / name, None
            with suppress(OSError):
                _remove_stale(folder)
            return


def _write(path: Path, content: bytes) -> None:
    """The whole file at once, so that other processes never see a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@cache  # once per process
def _remove_stale(folder: Path) -> None:
    """Remove what long ago other sources became or an interrupted process left."""
    ours, before = f"{source_fingerprint():012x}", time.time() - STALE_SECONDS
    for path in folder.iterdir():
        named = _OURS.fullmatch(path.name)
        if named and (named["sources"] != ours or path.suffix == ".tmp"):
            with suppress(OSError):
                if path.stat().st_mtime < before:
                    path.unlink()
