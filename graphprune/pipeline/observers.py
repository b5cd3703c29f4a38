"""Watching a pipeline: time it, print it, dump it, and leave a reproducer when it fails.

Observers form a stack around every pass and analysis: the first one's ``before_...`` is called first and its
``after_...`` last. Put :class:`Timing` at the end to keep the work of the others out of its figures.
"""

from __future__ import annotations

import platform
import shlex
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from graphprune.errors import PipelineError, TargetError, UsageError, typed_line, unknown
from graphprune.files import write_whole
from graphprune.ir.program import Program
from graphprune.ir.verify_graph import graph_text
from graphprune.pipeline.text import format_pass, format_pipeline

if TYPE_CHECKING:
    from graphprune.pipeline.pass_base import Analysis, Pass


@dataclass(frozen=True)
class Step:
    """One position in a pipeline. index: from 0. pipeline: all the passes of the run."""

    index: int
    pipeline: tuple[Pass, ...]

    @property
    def current(self) -> Pass:
        """The pass at this position."""
        return self.pipeline[self.index]

    @property
    def remaining(self) -> tuple[Pass, ...]:
        """This pass and those after it."""
        return self.pipeline[self.index :]


class Observer:
    """Called around passes and analyses; subclass it and define what is wanted. Observers change nothing."""

    def before_pass(self, step: Step, program: Program) -> None:
        """A pass is about to run on a program."""

    def after_pass(self, step: Step, before: Program, after: Program) -> None:
        """A pass has run, and its result has passed all checks."""

    def pass_failed(self, step: Step, program: Program, error: Exception) -> None:
        """A pass, or a check of its result, raised an error, which is raised again after this call."""

    def before_analysis(self, analysis: Analysis[Any]) -> None:
        """An analysis is about to be computed (a kept result is no computation)."""

    def after_analysis(self, analysis: Analysis[Any]) -> None:
        """An analysis has been computed, or has failed."""


@dataclass
class Span:
    """The time that one pass or analysis took, with the analyses computed inside it."""

    name: str
    seconds: float = 0.0
    children: list[Span] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As plain data: name, seconds, children."""
        return {"name": self.name, "seconds": self.seconds, "children": [child.as_dict() for child in self.children]}


class Timing(Observer):
    """Wall-clock time of passes, with the analyses that each had to compute, as "(A) name", below it.

    clock: returns seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.spans: list[Span] = []
        self._clock = clock
        self._open: list[tuple[Span, float]] = []

    @property
    def total(self) -> float:
        """Seconds in all passes."""
        return sum(span.seconds for span in self.spans)

    def as_dict(self) -> dict[str, Any]:
        """As plain data: ``{"total": seconds, "passes": [{"name", "seconds", "children"}, ...]}``."""
        return {"total": self.total, "passes": [span.as_dict() for span in self.spans]}

    def table(self) -> Table:
        """As a table: the tree by indentation, seconds, and the share of the total."""
        table = Table("Pass", title="Time by pass", show_footer=True)
        table.columns[0].footer = "total"
        table.add_column("Seconds", f"{self.total:.3f}", justify="right")
        table.add_column("Share", "", justify="right")
        for depth, span in _walk(self.spans):
            share = f"{span.seconds / self.total:.0%}" if self.total else ""
            table.add_row(f"{'  ' * depth}{span.name}", f"{span.seconds:.3f}", share)
        return table

    def before_pass(self, step: Step, program: Program) -> None:
        """Start the pass's clock."""
        self._enter(step.current.name)

    def after_pass(self, step: Step, before: Program, after: Program) -> None:
        """Stop the pass's clock."""
        self._leave()

    def pass_failed(self, step: Step, program: Program, error: Exception) -> None:
        """Stop the pass's clock; the time of a failed pass counts."""
        self._leave()

    def before_analysis(self, analysis: Analysis[Any]) -> None:
        """Start the analysis's clock."""
        self._enter(f"(A) {analysis.name}")

    def after_analysis(self, analysis: Analysis[Any]) -> None:
        """Stop the analysis's clock."""
        self._leave()

    def _enter(self, name: str) -> None:
        span = Span(name)
        (self._open[-1][0].children if self._open else self.spans).append(span)
        self._open.append((span, self._clock()))

    def _leave(self) -> None:
        span, start = self._open.pop()
        span.seconds = self._clock() - start


def _walk(spans: list[Span], depth: int = 0) -> Iterator[tuple[int, Span]]:
    for span in spans:
        yield depth, span
        yield from _walk(span.children, depth + 1)


class Printer(Observer):
    """Prints the graph after passes.

    print_after: a pass's name, "all", or "changed" (after the passes that changed the graph or the shape of a tensor).
    """

    def __init__(self, console: Console, print_after: str = "all") -> None:
        self._console = console
        self._print_after = print_after

    def before_pass(self, step: Step, program: Program) -> None:
        """Refuse the name of a pass that the pipeline does not have, before anything runs."""
        choices = ["all", "changed", *(one.name for one in step.pipeline)]
        if step.index == 0 and self._print_after not in choices:
            raise PipelineError(unknown("choice to print after:", self._print_after, dict.fromkeys(choices), "Choices"))

    def after_pass(self, step: Step, before: Program, after: Program) -> None:
        """Print the graph if it is wanted."""
        text = graph_text(after.module)
        changed = after.module is not before.module and text != graph_text(before.module)
        if self._print_after in ("all", step.current.name) or (self._print_after == "changed" and changed):
            self._console.rule(f"after {step.current.name}{'' if changed else ' (graph unchanged)'}")
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Dumper(Observer):
    """Writes the graph after every pass as ``003_name.py``, and the plan, where there is one, as ``003_name.json``.

    dump_dir: made if missing; files of these names are overwritten. The program before the first pass is ``000_input``.
    Raises UsageError when a file cannot be written, before the first pass if it is the folder's fault.
    """

    def __init__(self, dump_dir: str | Path) -> None:
        self._dump_dir = Path(dump_dir)

    def before_pass(self, step: Step, program: Program) -> None:
        """Write the pipeline's input."""
        if step.index == 0:
            self._dump("000_input", program)

    def after_pass(self, step: Step, before: Program, after: Program) -> None:
        """Write the pass's result."""
        self._dump(f"{step.index + 1:03}_{step.current.name}", after)

    def _dump(self, name: str, program: Program) -> None:
        try:
            self._dump_dir.mkdir(parents=True, exist_ok=True)
            write_whole(self._dump_dir / f"{name}.py", graph_text(program.module))
            if program.plan is not None:
                program.plan.save(self._dump_dir / f"{name}.json")
        except OSError as error:
            raise UsageError(f"Cannot write to the dump folder {self._dump_dir}: {error.strerror or error}.") from error


class Reproducer(Observer):
    """When a pass fails, writes a folder from which the failure can be had again, and notes it on the error.

    folder: where the new folder, named after the failing pass, goes; made if missing. In it: ``program.safetensors``
    (the program that the pipeline was given, as an artifact), ``pipeline.txt`` (all the passes), ``remaining.txt`` (those
    from the failing one on), ``before.py`` (the graph that the failing pass was given), ``plan.json`` if there was a
    plan, and ``report.txt`` (inputs, versions, traceback).

    Bad usage and unreachable targets are the user's to mend and leave no folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._start: Program | None = None

    def before_pass(self, step: Step, program: Program) -> None:
        """Remember what the pipeline was given."""
        if step.index == 0:
            self._start = program

    def pass_failed(self, step: Step, program: Program, error: Exception) -> None:
        """Write the folder. A failure to do so is noted on the error too, which it must not replace."""
        if isinstance(error, (UsageError, TargetError)):
            return
        try:
            error.add_note(self._write(step, program, error))
        except (OSError, UsageError) as problem:
            error.add_note(f"No reproducer could be written to {self._folder}: {problem}.")

    def _write(self, step: Step, program: Program, error: Exception) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{step.index + 1:03}_{step.current.name}"
        final = _free_name(self._folder / name)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=self._folder) as temporary:
            work = Path(temporary) / "reproducer"
            work.mkdir()
            artifact_note = _write_artifact(work / "program.safetensors", self._start or program)
            for file, text in _reproducer_texts(step, program, error, artifact_note).items():
                (work / file).write_text(text, encoding="utf-8")
            if program.plan is not None:
                program.plan.save(work / "plan.json")
            work.rename(final)
        if artifact_note:
            return f"Reproducer: {final} ({artifact_note}; see report.txt)"
        program_file, out = shlex.quote(str(final / "program.safetensors")), shlex.quote(str(final / "out.safetensors"))
        pipeline = shlex.quote(format_pipeline(step.pipeline))
        return f"Reproducer: {final}\nRun it again with: graphprune prune {program_file} --pipeline {pipeline} -o {out}"


def _reproducer_texts(step: Step, program: Program, error: Exception, artifact_note: str) -> dict[str, str]:
    versions = f"graphprune {_version('graphprune')}, torch {torch.__version__}, Python {platform.python_version()}"
    report = [
        f"pass: {format_pass(step.current)} (number {step.index + 1} of {len(step.pipeline)})",
        f"source: {program.source or 'unknown'}",
        f"inputs: {program.inputs.describe()}",
        f"versions: {versions}, {platform.platform()}",
        f"artifact: {artifact_note or 'program.safetensors'}",
        "",
        "".join(traceback.format_exception(error)),
    ]
    return {
        "pipeline.txt": format_pipeline(step.pipeline) + "\n",
        "remaining.txt": format_pipeline(step.remaining) + "\n",
        "before.py": graph_text(program.module),
        "report.txt": "\n".join(report),
    }


def _write_artifact(path: Path, program: Program) -> str:
    """Save the program; returns why that could not be done, or nothing.

    Any error counts as a reason: this runs while another error is being reported, on a program that may be unsound.
    """
    try:
        from graphprune.artifact import write_artifact

        write_artifact(path, program.module, plan=None, inputs=program.inputs, provenance={})
    except Exception as error:
        path.unlink(missing_ok=True)
        return f"the program could not be saved: {typed_line(error)}"
    return ""


def _free_name(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "from a source tree"
