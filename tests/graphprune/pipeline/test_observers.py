"""Timing, printing, dumping, and reproducers."""

from __future__ import annotations

import copy
import io
import itertools
import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from graphprune.artifact import read_artifact
from graphprune.errors import PipelineError, TargetError, UsageError, VerificationError
from graphprune.ir.program import Program
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.observers import Dumper, Printer, Reproducer, Timing
from graphprune.pipeline.pass_base import Analysis, Pass
from graphprune.pipeline.pass_manager import PassManager
from graphprune.tracing import capture


@dataclass(frozen=True)
class Inner(Analysis[int]):
    """Fails for programs named so."""

    name = "inner"

    def compute(self, program: Program, analyses: AnalysisView) -> int:
        if program.source == "fail in analysis":
            raise VerificationError("inner failed")
        return 1


@dataclass(frozen=True)
class Outer(Analysis[int]):
    """Reads Inner."""

    name = "outer"
    depends = (Inner,)

    def compute(self, program: Program, analyses: AnalysisView) -> int:
        return analyses.get(Inner)


@dataclass(frozen=True)
class Look(Pass):
    """Reads Outer."""

    name = "look"
    requires = (Outer,)
    level: int = 0

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        analyses.get(Outer)
        return program


@dataclass(frozen=True)
class Widen(Pass):
    """Doubles the last layer."""

    name = "widen"

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        module = copy.deepcopy(program.module)
        layer = module.get_submodule("0")
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(layer.weight.detach().repeat(2, 1))
        layer.bias = nn.Parameter(layer.bias.detach().repeat(2))
        layer.out_features *= 2
        return program.with_(module=module)


@dataclass(frozen=True)
class Fail(Pass):
    """Raises."""

    name = "fail"
    error: str = "check"

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        raise {"check": VerificationError("outputs differ"), "usage": UsageError("bad"), "target": TargetError("too far")}[
            self.error
        ]


class FakePlan:
    """Something that can be saved."""

    def save(self, path: str | Path) -> None:
        Path(path).write_text('{"kept": {}}')


@dataclass(frozen=True)
class Decide(Pass):
    """Adds a plan."""

    name = "decide"
    preserves = "all"
    provides = ("plan",)

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        return program.with_(plan=FakePlan())


@pytest.fixture
def program() -> Program:
    return capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.zeros(2, 4), source="toy")


# ------------------------------------------------------------------------------------------------ timing


def test_timing_is_a_tree_with_analyses_where_they_were_computed(program: Program) -> None:
    """With a clock that ticks once per reading, a span's time is the number of readings inside it plus one."""
    timing = Timing(clock=itertools.count().__next__)
    PassManager([Look(), Look(), Widen()], [timing]).run(program)
    assert timing.as_dict() == {
        "total": 7,
        "passes": [
            {
                "name": "look",
                "seconds": 5,
                "children": [
                    {"name": "(A) outer", "seconds": 3, "children": [{"name": "(A) inner", "seconds": 1, "children": []}]}
                ],
            },
            {"name": "look", "seconds": 1, "children": []},
            {"name": "widen", "seconds": 1, "children": []},
        ],
    }


def test_timing_table_shows_names_seconds_shares_and_total(program: Program) -> None:
    timing = Timing(clock=itertools.count().__next__)
    PassManager([Look(), Widen()], [timing]).run(program)
    console = Console(file=io.StringIO(), width=80)
    console.print(timing.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.split() for line in text.replace("│", " ").replace("┃", " ").splitlines()]
    assert ["look", "5.000", "83%"] in rows
    assert ["(A)", "inner", "1.000", "17%"] in rows
    assert ["total", "6.000"] in rows


def test_timing_stays_balanced_when_a_pass_or_an_analysis_fails(program: Program) -> None:
    timing = Timing(clock=itertools.count().__next__)
    with pytest.raises(VerificationError, match="inner failed"):
        PassManager([Look()], [timing]).run(program.with_(source="fail in analysis"))
    with pytest.raises(VerificationError, match="outputs differ"):
        PassManager([Fail()], [timing]).run(program)
    PassManager([Widen()], [timing]).run(program)
    assert [(span.name, span.seconds) for span in timing.spans] == [("look", 5), ("fail", 1), ("widen", 1)]


def test_timing_of_nothing_has_an_empty_table() -> None:
    assert Timing().table().row_count == 0
    assert Timing().as_dict() == {"total": 0, "passes": []}


# ------------------------------------------------------------------------------------------------ printing


def printed(program: Program, print_after: str, *passes: Pass) -> str:
    console = Console(file=io.StringIO(), width=100)
    PassManager(passes, [Printer(console, print_after)]).run(program)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("print_after", "headings"),
    [
        ("all", ["after look (graph unchanged)", "after widen", "after decide (graph unchanged)"]),
        ("changed", ["after widen"]),
        ("decide", ["after decide (graph unchanged)"]),
    ],
)
def test_printing_after_all_changed_or_named_passes(program: Program, print_after: str, headings: list[str]) -> None:
    text = printed(program, print_after, Look(), Widen(), Decide())
    assert [line.strip("─ ") for line in text.splitlines() if "─" in line] == headings
    assert "# 0.weight: float32[16, 4]" in text


def test_printing_after_an_unknown_pass_is_refused_before_anything_runs(program: Program) -> None:
    with pytest.raises(PipelineError, match=r"'wieden'; did you mean 'widen'\? Choices: all, changed, fail, widen"):
        printed(program, "wieden", Fail(), Widen(), Widen())


# ------------------------------------------------------------------------------------------------ dumping


def test_dumping_writes_numbered_graphs_and_plans(program: Program, tmp_path: Path) -> None:
    PassManager([Look(), Widen(), Decide()], [Dumper(tmp_path / "a" / "b")]).run(program)
    files = {path.name: path.read_text() for path in (tmp_path / "a" / "b").iterdir()}
    assert sorted(files) == ["000_input.py", "001_look.py", "002_widen.py", "003_decide.json", "003_decide.py"]
    assert files["000_input.py"] == files["001_look.py"] != files["002_widen.py"]
    assert "float32[16, 4]" in files["002_widen.py"]
    assert json.loads(files["003_decide.json"]) == {"kept": {}}


def test_a_dump_folder_that_cannot_be_written_is_refused_before_the_first_pass(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="Cannot write to the dump folder"):
        PassManager([Fail()], [Dumper(tmp_path / "file" / "dump")]).run(program)
    assert (tmp_path / "file").read_text() == "in the way"


# ------------------------------------------------------------------------------------------------ reproducers


@pytest.fixture
def artifact(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the artifact writer; what it was called with."""
    calls: dict[str, Any] = {}

    def write_artifact(path: Path, module: nn.Module, **options: Any) -> None:
        calls.update(options, module=module)
        path.write_bytes(b"artifact")

    module = types.ModuleType("graphprune.artifact")
    module.write_artifact = write_artifact  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "graphprune.artifact", module)
    return calls


def failure(program: Program, folder: Path, *passes: Pass) -> Exception:
    with pytest.raises(Exception) as caught:
        PassManager(passes, [Reproducer(folder)]).run(program)
    return caught.value


def test_a_failed_pass_leaves_all_that_is_needed_to_run_it_again(
    program: Program, tmp_path: Path, artifact: dict[str, Any]
) -> None:
    error = failure(program, tmp_path / "new", Look(level=2), Widen(), Decide(), Fail(), Look(level=3))
    folder = tmp_path / "new" / "004_fail"
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert sorted(files) == ["before.py", "pipeline.txt", "plan.json", "program.safetensors", "remaining.txt", "report.txt"]
    assert files["pipeline.txt"] == "look{level=2},widen,decide,fail,look{level=3}\n"
    assert files["remaining.txt"] == "fail,look{level=3}\n"
    assert "float32[16, 4]" in files["before.py"]
    assert artifact["module"] is program.module
    assert artifact["inputs"] is program.inputs
    for part in (
        "pass: fail (number 4 of 5)",
        "source: toy",
        "inputs: float32[2x4]",
        f"torch {torch.__version__}",
        "Traceback",
        "outputs differ",
    ):
        assert part in files["report.txt"]
    assert list((tmp_path / "new").iterdir()) == [folder]
    (note,) = error.__notes__
    pipeline = "look{level=2},widen,decide,fail,look{level=3}"
    command = f"graphprune prune {folder}/program.safetensors --pipeline '{pipeline}' -o {folder}/out.safetensors"
    assert note == f"Reproducer: {folder}\nRun it again with: {command}"


def test_a_second_failure_does_not_overwrite_the_first(program: Program, tmp_path: Path, artifact: dict[str, Any]) -> None:
    failure(program, tmp_path, Fail())
    failure(program, tmp_path, Fail())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["001_fail", "001_fail-2"]


def test_the_rest_is_written_when_the_artifact_cannot_be(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graphprune.artifact", types.ModuleType("graphprune.artifact"))
    error = failure(program, tmp_path, Fail())
    assert isinstance(error, VerificationError)
    assert sorted(path.name for path in (tmp_path / "001_fail").iterdir()) == [
        "before.py",
        "pipeline.txt",
        "remaining.txt",
        "report.txt",
    ]
    assert "the program could not be saved: ImportError" in error.__notes__[0]
    assert "artifact: the program could not be saved" in (tmp_path / "001_fail" / "report.txt").read_text()


@pytest.mark.parametrize("kind", ["usage", "target"])
def test_bad_usage_and_unreachable_targets_leave_nothing(
    program: Program, tmp_path: Path, artifact: dict[str, Any], kind: str
) -> None:
    error = failure(program, tmp_path / "new", Fail(error=kind))
    assert not hasattr(error, "__notes__")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_hide_the_error(
    program: Program, tmp_path: Path, artifact: dict[str, Any]
) -> None:
    (tmp_path / "file").write_text("in the way")
    error = failure(program, tmp_path / "file", Fail())
    assert str(error) == "outputs differ"
    assert error.__notes__[0].startswith(f"No reproducer could be written to {tmp_path / 'file'}")


def test_success_leaves_nothing(program: Program, tmp_path: Path, artifact: dict[str, Any]) -> None:
    PassManager([Look()], [Reproducer(tmp_path)]).run(program)
    assert list(tmp_path.iterdir()) == []


def test_the_program_in_a_reproducer_is_an_artifact_that_computes_the_same(program: Program, tmp_path: Path) -> None:
    """It is the program that the pipeline was given, not the one that the failing pass was given."""
    failure(program, tmp_path, Widen(), Fail())
    module = read_artifact(tmp_path / "002_fail" / "program.safetensors").module
    sample = torch.randn(2, 4)
    assert torch.equal(module(sample), program.module(sample))
