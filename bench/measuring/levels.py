"""The C backend a second time in the same process, held to AVX2, to take turns with itself.

A library keeps one level for all of its process. So a copy of the file is loaded, and the module of
the backend once more over it; calls of single layers reach it without `_fastcall`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from fastbp import backends, common
from measuring import loops

AVX2 = "c avx2"


def lower() -> tuple[str, ...]:
    """The name under which `fastbp.use_backend` takes the backend at AVX2, if it is another."""
    if loops.LEVEL != "avx512":
        return ()
    if AVX2 not in backends._loaded:
        backends._loaded[AVX2] = _held_to("avx2")
    return (AVX2,)


def _held_to(level: str) -> Any:
    native = backends.load("c")
    library, fastcall = "fastbp.backends._c", "fastbp.common._fastcall"
    with (
        TemporaryDirectory() as folder,
        mock.patch.dict(sys.modules, {fastcall: None}),  # loading puts the copy here
        mock.patch.dict(vars(common)),
        mock.patch.dict(os.environ, FASTBP_MAX_ISA=level),
    ):
        vars(common).pop("_fastcall", None)  # as if it were not built, or it would change sides
        copy = shutil.copy(sys.modules[library].__file__, Path(folder))
        sys.modules[library] = _module(library, copy)
        return _module("fastbp.backends.native", native.__file__)


def _module(name: str, path: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
