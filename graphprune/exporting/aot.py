"""Packages of AOTInductor: machine code that torch runs without Python's part of the model, from Python or from C++."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from torch._inductor import aoti_compile_and_package, config

from graphprune.errors import UsageError, first_line
from graphprune.exporting.checking import Exported, Job, check
from graphprune.exporting.fresh import run_fresh
from graphprune.exporting.program import exported
from graphprune.files import atomic_write
from graphprune.quiet import quiet

# Or else AOTI_RUNTIME_CHECK_INPUTS=1, which lets a package check its inputs, refuses a batch of 1.
_OPTIONS: Final[Mapping[str, bool]] = (
    {"aot_inductor.check_lowerbound": False} if hasattr(config.aot_inductor, "check_lowerbound") else {}
)


def write_aot(job: Job) -> Exported:
    """Compile a package and write it. It is loaded and run in a process of its own.

    Raises UsageError where there is no C++ compiler, or Inductor cannot compile the model.
    """
    _need_compiler()
    program = exported(job)
    with TemporaryDirectory() as folder:  # the package keeps the name of its file
        package = Path(folder) / job.path.name
        try:
            with quiet():
                aoti_compile_and_package(program, package_path=str(package), inductor_configs=dict(_OPTIONS))
        except Exception as error:  # Inductor and compilers raise many kinds
            raise UsageError(f"AOTInductor cannot compile this model: {first_line(error)}. Export it with --format pt2.") from error
        found = check(job, lambda cases: run_fresh("aot", package, cases, job.path))
        with atomic_write(job.path) as temporary:
            shutil.copyfile(package, temporary)
    return found


def _need_compiler() -> None:
    builder: Any = import_module("torch._inductor.cpp_builder")
    try:
        builder.get_cpp_compiler()
    except Exception as error:  # torch raises its own kinds
        raise UsageError("AOTInductor needs a C++ compiler. Install g++ or clang, or name one in the variable CXX.") from error
