"""`replacing`: writes a file so that it is complete at any time, the old or the new one."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO

if sys.platform != "win32":  # where an open file cannot be deleted, which is lock enough
    import fcntl

PREFIX, SUFFIX = ".fastbp-", ".tmp"


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Open a file to be written, which takes the place of `path` when the block ends.

    The content goes into a temporary file of the same folder, which is renamed in one step; after
    an error in the block the old file stays. The new file has the mode of the old one, and its
    owner where the process may set it. A link stays, and what it refers to is replaced. A device
    or a pipe is written to as it stands. Temporary files that killed processes left in the folder
    are removed.

    Raises
    ------
    IsADirectoryError, FileNotFoundError, OSError
        If `path` is a folder, its folder is missing, or writing fails.
    """
    if is_special(path):
        with open(path, "wb") as special:
            yield special
        return
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder, expected the name of a file in it")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"the folder {folder} of {path} does not exist; make it first")
    _remove_remains(folder)
    old = os.stat(path) if os.path.exists(path) else None
    file, temporary = _temporary(folder, 0o666 if old is None else 0o600)
    try:
        with file:
            yield file
            file.flush()
            if old is not None:
                _as_before(temporary, old)
            os.fsync(file.fileno())
            if sys.platform != "win32":  # under the lock
                os.replace(temporary, path)
        if sys.platform == "win32":
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def is_special(path: str) -> bool:
    """Whether `path` is there and neither a file nor a folder: a device, a pipe, a socket."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def _temporary(folder: str, mode: int) -> tuple[BinaryIO, str]:
    """A new file, open and locked, and its path."""
    while True:
        path = os.path.join(folder, f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        file = open(os.open(path, flags, mode), "wb")
        if _lock(file.fileno(), wait=True) and os.path.exists(path):
            return file, path
        file.close()  # another process took it for a remain before it was locked


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file; False if another process holds the lock and we do not wait for it."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks, where nothing is taken for a remain
            return wait
    return True


def _remove_remains(folder: str) -> None:
    """Remove the temporary files of processes that were killed: nobody holds their locks."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX)):
                continue
            with contextlib.suppress(OSError):
                descriptor = os.open(entry.path, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0))
                try:
                    if _lock(descriptor, wait=False):
                        os.unlink(entry.path)
                finally:
                    os.close(descriptor)


def _as_before(path: str, old: os.stat_result) -> None:
    """Give a file the owner and the mode of the old one."""
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(path, old.st_uid, old.st_gid)
    os.chmod(path, stat.S_IMODE(old.st_mode))
