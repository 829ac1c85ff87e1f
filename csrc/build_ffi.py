"""How cffi builds `fastbp.backends._c`: declarations from fastbp.h, sources from the C files here.

No flag depends on the machine that compiles: wider vectors come from functions that carry their own
target and are chosen at run time. The flags keep IEEE semantics, with contraction to fused
multiply-adds, which gcc and clang would otherwise treat differently.
"""

import os
import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
THREADS = ["-pthread"] if os.name == "posix" else []
FLAGS = ["-O3", "-g0", "-std=gnu11", "-fno-math-errno", "-ffp-contract=fast", "-fvisibility=hidden"]


def declarations(header: str) -> str:
    """What cffi's parser can read of a C header: all but the preprocessor."""
    header = re.sub(r"/\*.*?\*/|//[^\n]*", " ", header, flags=re.DOTALL).replace("\\\n", " ")
    header = re.sub(r"#\s*ifdef\s+__cplusplus.*?#\s*endif", "", header, flags=re.DOTALL)
    return "\n".join(s for s in header.splitlines() if not s.lstrip().startswith("#"))


def paths(*patterns: str) -> list[str]:
    return sorted(path.as_posix() for pattern in patterns for path in HERE.glob(pattern))


ffi = FFI()
ffi.cdef(declarations((HERE / "fastbp.h").read_text(encoding="utf-8")))
ffi.set_source(
    "fastbp.backends._c",
    '#include "fastbp.h"',
    sources=paths("*.c", "targets/*.c"),
    depends=paths("*.h", "core/*.h", "build_ffi.py"),
    include_dirs=[HERE.as_posix()],
    extra_compile_args=FLAGS + THREADS,
    extra_link_args=THREADS,
    optional=True,
)
