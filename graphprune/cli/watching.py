"""Observers that the command line puts on a pipeline: progress, timing, graphs, dumps and reproducers."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from graphprune.calibration import Calibration
from graphprune.cli.options import Watch
from graphprune.cli.output import Output, Task
from graphprune.ir.program import Program
from graphprune.pipeline.observers import Dumper, Observer, Printer, Reproducer, Step, Timing

_DOING = {
    "channels": "Following channels",
    "score": "Scoring",
    "select": "Selecting",
    "rewrite": "Rewriting",
    "verify": "Verifying",
    "compensate": "Compensating",
    "fold-constants": "Folding constants",
    "recalibrate": "Estimating statistics",
}


class PassProgress(Observer):
    """Shows which pass runs, on a task of the output."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def before_pass(self, step: Step, program: Program) -> None:
        """Name the pass."""
        name = step.current.name
        self._task.describe(f"{_DOING.get(name, name)} ({step.index + 1} of {len(step.pipeline)})")


def shown(data: Calibration | str | None, task: Task) -> Calibration | str | None:
    """Calibration data that show on a task how many samples were used."""
    if not isinstance(data, Calibration):
        return data
    return data.watched(lambda samples: task.describe(f"Calibrating: {samples:,} samples"))


def counted(task: Task, what: str) -> Callable[[int, int], None]:
    """Shows on a task of total 1 how much of a measurement is done, and how long the rest takes at this pace."""
    begin = monotonic()
    first: list[int] = []
    shown = [0.0]

    def progress(done: int, total: int) -> None:
        if first:
            left = (monotonic() - begin) / max(1, done - first[0]) * (total - done)
            task.describe(f"{what}: {done} of {total}, about {left:.0f} s left")
        else:
            first.append(max(0, done - 4))
        task.advance(done / total - shown[0])
        shown[0] = done / total

    return progress


@dataclass(frozen=True, kw_only=True)
class Watching(Watch):
    """What to observe."""

    timing: Timing = field(default_factory=Timing)

    def observers(self, output: Output, task: Task) -> list[Observer]:
        """The observers, for one run. A pass that fails leaves a reproducer in the dump folder or a temporary one."""
        found: list[Observer] = [PassProgress(task)]
        if self.print_after is not None:
            found.append(Printer(output.errors, self.print_after))
        if self.dump_dir is not None:
            found.append(Dumper(self.dump_dir))
        found.append(Reproducer(self.dump_dir or Path(tempfile.gettempdir(), f"graphprune-{secrets.token_hex(4)}")))
        return [*found, self.timing]

    def report(self, output: Output) -> None:
        """Print the times, if they are wanted."""
        if self.time_passes:
            output.show(self.timing.table())
