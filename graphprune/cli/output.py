"""What a command says: tables on standard output, or JSON alone, and progress on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

_LETTERS: Final = 12  # a column of text is not folded to less
_WORD: Final = 24  # nor is a word of so many letters
_GAPS: Final = ((0, 1), (0, 1, 0, 0), 0)  # between columns: three spaces, two, one
_ENDLESS: Final = 10_000


@dataclass(frozen=True)
class Task:
    """One line of progress."""

    _progress: Progress
    _id: TaskID

    def advance(self, steps: float = 1) -> None:
        """So much more is done."""
        self._progress.advance(self._id, steps)

    def describe(self, text: str) -> None:
        """What is being done now."""
        self._progress.update(self._id, description=text)


class Output:
    """Where a command prints, used as a context: ``with Output(json=True) as output``.

    as_json: only :meth:`data` reaches standard output, whatever the user's model prints while it is loaded.
    quiet: print errors only. verbose: for commands that have more to say.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.errors = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._stdout = sys.stdout
        self._screen = Console(quiet=as_json or quiet, markup=False, emoji=False, highlight=False)
        self._watched = self.errors.is_terminal and not (as_json or quiet)
        self._progress = Progress(
            SpinnerColumn(), described(), BarColumn(), TimeElapsedColumn(), console=self.errors, transient=True
        )
        self._stack = ExitStack()

    def __enter__(self) -> Output:
        if self.as_json:
            self._stack.enter_context(redirect_stdout(sys.stderr))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def show(self, *items: RenderableType) -> None:
        """Print tables and the like; a table that a narrow terminal cannot hold is wider, and the terminal breaks its lines."""
        for item in items:
            if isinstance(item, Table):
                with _width_for(item, self._screen):
                    self._screen.print(item)
            else:
                self._screen.print(item)

    def say(self, text: str) -> None:
        """Print a line as it is, however long, so that paths and code can be copied."""
        self._screen.print(text, soft_wrap=True)

    def data(self, value: Mapping[str, Any]) -> None:
        """Print the result as JSON if that is wanted; infinities and NaN become null."""
        if self.as_json:
            self._stdout.write(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")
            self._stdout.flush()

    @contextmanager
    def task(self, text: str, total: float | None = None) -> Iterator[Task]:
        """Show progress on a terminal while the block runs; nothing stays of it afterwards."""
        task = Task(self._progress, self._progress.add_task(text, total=total))
        if self._watched:
            self._progress.start()
        try:
            yield task
        finally:
            self._progress.remove_task(task._id)
            if self._watched and not self._progress.task_ids:
                self._progress.stop()


def described() -> TextColumn:
    """What is being done, before a bar: on a narrow terminal in several lines, so that times are not cut off."""
    return TextColumn("{task.description}", table_column=Column(overflow="fold"))


@contextmanager
def _width_for(table: Table, screen: Console) -> Iterator[None]:
    """The screen as wide as it is, and at least so wide that words stay words; columns come closer where that is enough."""
    endless = screen.options.update(max_width=_ENDLESS)
    for column in table.columns:
        column.width = column.min_width = max(_least(cell, screen, endless, column) for cell in (column.header, *column.cells))
    needed = 0
    for gap in (*_GAPS, _GAPS[0]):
        table.padding = gap
        needed = Measurement.get(screen, endless, table).maximum
        if needed <= screen.width:
            break
    width, screen.width = screen.width, max(screen.width, needed)
    for column in table.columns:
        column.width = None
    try:
        yield
    finally:
        screen.width = width


def _least(cell: RenderableType, screen: Console, endless: ConsoleOptions, column: Column) -> int:
    """The width that a cell needs to be readable."""
    whole = Measurement.get(screen, endless, cell)
    return whole.maximum if column.no_wrap else max(min(whole.maximum, _LETTERS), min(whole.minimum, _WORD))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
