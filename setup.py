"""The C extensions; everything else about the package is in pyproject.toml.

Both are optional. Without the library `_c` the package installs all the same and runs on Numba or
NumPy. Why it is missing is left in `fastbp/backends/_c_build_failure.txt`, which
`fastbp.show_config()` quotes. Without `_fastcall`, calls of single layers and of objectives
take some microseconds more. FASTBP_NO_EXTENSION=1 leaves both out on purpose.
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

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

LIBRARY = "fastbp.backends._c"
FAILURE_NOTE = "fastbp/backends/_c_build_failure.txt"

# One wheel for all Pythons of a platform. Free-threaded and debug builds cannot load it.
LIMITED_API = (
    sys.implementation.name == "cpython"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
    and not hasattr(sys, "gettotalrefcount")
)


class BuildOptional(build_ext):
    """build_ext that compiles in parallel and goes on after a failure; the library's is noted."""

    def run(self) -> None:
        self.failures: dict[str, str] = {}
        super().run()
        note = Path("" if self.inplace else self.build_lib, FAILURE_NOTE)
        note.unlink(missing_ok=True)
        self._remove_failed()
        if LIBRARY in self.failures:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(self.failures[LIBRARY] + "\n", encoding="utf-8")

    def build_extension(self, ext) -> None:
        messages: list[str] = []
        try:
            self._refuse_if_hopeless()
            with _copy_of_stderr(messages), _compiling_in_parallel(self.compiler):
                super().build_extension(ext)
        except Exception as error:
            self.failures[ext.name] = _summary(messages) or str(error)
            self._remove_failed()  # or build_ext --inplace would copy a stale one
            self.warn(f"fastbp is built without {ext.name}: {self.failures[ext.name]}")

    def _refuse_if_hopeless(self) -> None:
        if os.environ.get("FASTBP_NO_EXTENSION", "0") not in ("", "0"):
            raise RuntimeError("FASTBP_NO_EXTENSION was set when fastbp was built")
        command = getattr(self.compiler, "compiler_so", None)  # unknown on Windows
        if command and shutil.which(command[0]) is None:
            name = os.path.basename(command[0])
            raise RuntimeError(f"no C compiler was found ({name}) when fastbp was built")

    def _remove_failed(self) -> None:
        for name in self.failures:
            Path(self.get_ext_fullpath(name)).unlink(missing_ok=True)


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


def fastcall() -> list[Extension]:
    """The extension `_fastcall`; none without the limited API or NumPy's headers."""
    if not LIMITED_API:
        return []
    try:
        import numpy
    except ImportError:
        return []
    return [
        Extension(
            "fastbp.common._fastcall",
            ["csrc/python/fastcall.c"],
            depends=["csrc/fastbp.h"],
            include_dirs=[numpy.get_include()],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O3", "-g0", "-std=gnu11", "-fvisibility=hidden"],
            py_limited_api=True,
            optional=True,
        )
    ]


setup(
    cffi_modules=["csrc/build_ffi.py:ffi"],
    ext_modules=fastcall(),
    cmdclass={"build_ext": BuildOptional},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
