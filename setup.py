"""The C extension; everything else about the package is in pyproject.toml.

The extension is optional: without a working compiler the package installs all the same and runs on
Numba or NumPy. Why it is missing is left in `fastbp/backends/_c_build_failure.txt`, which
`fastbp.show_config()` quotes. FASTBP_NO_EXTENSION=1 leaves it out on purpose.
"""

import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

FAILURE_NOTE = "fastbp/backends/_c_build_failure.txt"

# One wheel for all Pythons of a platform. Free-threaded and debug builds cannot load it.
LIMITED_API = (
    sys.implementation.name == "cpython"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
    and not hasattr(sys, "gettotalrefcount")
)


class BuildOptional(build_ext):
    """build_ext that compiles the sources in parallel and turns a failure into a note."""

    failure: str | None = None

    def run(self) -> None:
        super().run()
        note = Path("" if self.inplace else self.build_lib, FAILURE_NOTE)
        if self.failure is None:
            note.unlink(missing_ok=True)
        else:
            self._remove_stale_extension()
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(self.failure + "\n", encoding="utf-8")

    def build_extension(self, ext) -> None:
        messages: list[str] = []
        try:
            self._refuse_if_hopeless()
            with _copy_of_stderr(messages), _compiling_in_parallel(self.compiler):
                super().build_extension(ext)
        except Exception as error:
            self.failure = _summary(messages) or str(error)
            self._remove_stale_extension()  # or build_ext --inplace would copy it
            self.warn(f"fastbp is built without its C backend: {self.failure}")

    def _refuse_if_hopeless(self) -> None:
        if os.environ.get("FASTBP_NO_EXTENSION", "0") not in ("", "0"):
            raise RuntimeError("FASTBP_NO_EXTENSION was set when fastbp was built")
        command = getattr(self.compiler, "compiler_so", None)  # unknown on Windows
        if command and shutil.which(command[0]) is None:
            name = os.path.basename(command[0])
            raise RuntimeError(f"no C compiler was found ({name}) when fastbp was built")

    def _remove_stale_extension(self) -> None:
        for ext in self.extensions:
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)


@contextmanager
def _copy_of_stderr(messages: list[str]) -> Iterator[None]:
    """Append what this process and its children write to stderr, and pass it on afterwards."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            log.seek(0)
            messages.append(log.read())
            sys.stderr.write(messages[-1])


@contextmanager
def _compiling_in_parallel(compiler) -> Iterator[None]:
    """Let `compiler.compile` work on several sources at once: each takes many seconds."""
    compile_serially = compiler.compile

    def compile_in_parallel(sources, **options):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = pool.map(lambda source: compile_serially([source], **options), sources)
            return [name for names in objects for name in names]

    compiler.compile = compile_in_parallel
    try:
        yield
    finally:
        del compiler.compile


def _summary(messages: list[str]) -> str:
    """The compiler's first two complaints, without the directories of the machine."""
    complaint = re.compile(r"error:|undefined reference|cannot find")
    lines = [line.strip() for line in "".join(messages).splitlines() if complaint.search(line)]
    return "\n".join(re.sub(r"(?<![^\s'\"(])/[^\s:]*/", "", line) for line in lines[:2])


setup(
    cffi_modules=["csrc/build_ffi.py:ffi"],
    cmdclass={"build_ext": BuildOptional},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
