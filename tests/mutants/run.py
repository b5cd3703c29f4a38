"""Runs the tests on one mutant, in a process of its own into which the changed module is loaded."""

from __future__ import annotations

import ast
import contextlib
import importlib.abc
import importlib.util
import io
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tests.mutants.mutate import ROOT, Mutation, mutated

#: What must catch a wrong rule after the tests of its own file, the quickest first.
STAGES: Final = (
    ("zoo: groups", ["tests/zoo", "-k", "groups_are"]),
    ("zoo: plans", ["tests/zoo", "-k", "plans_are_exact and 0-"]),
    ("random networks", ["tests/fuzz", "-k", "pruned_exactly"]),
)
OPTIONS: Final = ("-x", "-q", "-p", "no:cacheprovider", "--no-header")
LIMIT: Final = 15  # CPU seconds of one test; a mutant that loops for ever is caught, too


def module_name(file: str) -> str:
    """The name that a file is imported by."""
    dotted = file.removesuffix(".py").replace("/", ".")
    return dotted if dotted.startswith("graphprune.") else f"graphprune.{dotted}"


def own_tests(file: str) -> list[tuple[str, list[str]]]:
    """The tests that mirror a file, if there are any."""
    folder = "tests/passes/analysis" if file.startswith("passes/analysis/rules") else f"tests/{Path(file).parent}"
    mirror = f"{folder}/test_{Path(file).name}"
    return [("its own tests", [mirror])] if (ROOT / mirror).exists() else []


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a tree instead of its file."""

    def __init__(self, name: str, tree: ast.Module, file: str) -> None:
        self.name, self.tree, self.file = name, tree, file

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """A spec for this module alone."""
        return importlib.util.spec_from_loader(name, self, origin=self.file) if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code."""
        module.__file__ = self.file
        exec(compile(self.tree, self.file, "exec"), module.__dict__)


def attempt(mutation: Mutation) -> str:
    """The stage that catches a mutant, or "" for none. The module must not have been imported in this process."""
    import pytest

    assert not any(name == "graphprune" or name.startswith("graphprune.") for name in sys.modules), "use a fresh process"
    signal.signal(signal.SIGPROF, _too_long)
    sys.meta_path.insert(0, Changed(module_name(mutation.file), mutated(mutation), str(ROOT / mutation.file)))
    for stage, arguments in (*own_tests(mutation.file), *STAGES):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = pytest.main([*arguments, *OPTIONS, f"--rootdir={ROOT}"], plugins=[Limit()])
        if code != pytest.ExitCode.OK:
            return stage
    return ""


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"a test took {LIMIT} seconds")


class Limit:
    """A plugin of pytest: each test gets so much time of the CPU."""

    def pytest_runtest_setup(self) -> None:
        """Start the clock."""
        signal.setitimer(signal.ITIMER_PROF, LIMIT)

    def pytest_runtest_teardown(self) -> None:
        """Stop it."""
        signal.setitimer(signal.ITIMER_PROF, 0)
