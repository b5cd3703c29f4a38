"""Who may import whom, read from the source: the machine knows no policy and no operator, kernels know neither."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# The machine's modules that may import passes: they hand them to the user. A folder counts with all its files.
GATES = (
    "graphprune/__init__.py",
    "graphprune/api.py",
    "graphprune/pipeline/registry.py",
    "graphprune/callbacks/",
    "graphprune/surveys/",
    "graphprune/cli/",
    "graphprune/compiling/",
    "graphprune/methods/",
    "graphprune/own_class/",
    "graphprune/reporting/",
    "graphprune/runs/",
    "graphprune/streaming/",
)

# The label algebra and what is built on it: operators come to it through the registry, never by name.
ALGEBRA = ("channels/labels", "rules", "channels/propagate", "channels/groups", "costs/cost")


def _files(folder: str) -> list[Path]:
    """Python files of a top-level folder, not following the links to the other folders."""
    top = ROOT / folder
    return sorted(path for path in top.rglob("*.py") if not (top / path.relative_to(top).parts[0]).is_symlink())


def _module(path: Path) -> str:
    """The name that a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    prefix = () if parts[0] == "graphprune" else ("graphprune",)
    return ".".join(prefix + (parts[:-1] if parts[-1] == "__init__" else parts))


def _imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Full names of everything that a file imports, wherever in the file it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def _imports_of(path: Path) -> list[str]:
    return list(_imports(ast.parse(path.read_text()), _module(path), is_package=path.name == "__init__.py"))


def _under(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _operator_names(tree: ast.AST) -> Iterator[str]:
    """ATen operators that code names: ``torch.ops.aten.x``, ``"aten::x"`` or ``"aten.x"``, where x exists."""
    known = {
        name.split(".")[0].removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr in known
            and ast.unparse(node.value) in ("torch.ops.aten", "ops.aten", "aten")
        ):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (name for name in re.findall(r"\baten(?:::|\.)(\w+)", node.value) if name in known)


@pytest.mark.parametrize("path", _files("kernels"), ids=_module)
def test_kernels_import_neither_the_machine_nor_passes(path: Path) -> None:
    ours = [name for name in _imports_of(path) if _under(name, "graphprune")]
    assert [name for name in ours if not _under(name, "graphprune.kernels")] == []


@pytest.mark.parametrize("path", _files("passes"), ids=_module)
def test_passes_use_a_kernel_through_its_operator_only(path: Path) -> None:
    assert [name for name in _imports_of(path) if re.match(r"graphprune\.kernels\.\w+\.kernel\b", name)] == []


def test_the_machine_imports_passes_only_at_its_gates() -> None:
    core = [path for path in _files("graphprune") if not path.relative_to(ROOT).as_posix().startswith(GATES)]
    found = [(_module(path), name) for path in core for name in _imports_of(path) if _under(name, "graphprune.passes")]
    assert found == []


@pytest.mark.parametrize("name", ALGEBRA)
def test_the_label_algebra_names_no_operator(name: str) -> None:
    assert list(_operator_names(ast.parse((ROOT / "graphprune" / f"{name}.py").read_text()))) == []


def test_the_checks_see_what_they_forbid() -> None:
    """The negative twin: each forbidden spelling is found."""
    spelled = "from graphprune import passes\nfrom ..passes.rewrite import x\nimport graphprune.plans.plan\n"
    spelled += "def f():\n    from . import kernel\n"
    found = list(_imports(ast.parse(spelled), "graphprune.cli.main", is_package=False))
    assert found == ["graphprune.passes", "graphprune.passes.rewrite.x", "graphprune.plans.plan", "graphprune.cli.kernel"]
    assert list(_imports(ast.parse("from . import a\nfrom .. import b"), "graphprune.cli", is_package=True)) == [
        "graphprune.cli.a",
        "graphprune.b",
    ]
    named = 'a = torch.ops.aten.add.Tensor\nb = "aten::mm"\nc = "aten.view.default"\nd = "aten::pointwise"\ne = torch.add\n'
    assert sorted(_operator_names(ast.parse(named))) == ["add", "mm", "view"]
