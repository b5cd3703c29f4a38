"""The rounds of a run on the screen: a live table with bars on a terminal, a line for each round elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from graphprune.cli import tables
from graphprune.cli.output import Output, described
from graphprune.runs.history import Round, Silent, Watch

if TYPE_CHECKING:
    from graphprune.training.trainer import Progress as Batches

_SHOWN = 14  # rounds of the live table
_PACE = 86_400.0  # seconds of the past that the time left is reckoned by: a round can take hours


class View(Watch, Protocol):
    """A watch that also follows the batches of the built-in training loop."""

    def batch(self, progress: Batches, /) -> None:
        """So many batches of an epoch are done."""


class Several:
    """Several watches as one."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches

    def working(self, what: str, number: int) -> None:
        """A step begins."""
        for watch in self._watches:
            watch.working(what, number)

    def epoch(self, done: int, total: int) -> None:
        """So many epochs are done."""
        for watch in self._watches:
            watch.epoch(done, total)

    def round(self, row: Round, *, repeated: bool) -> None:
        """A round is over."""
        for watch in self._watches:
            watch.round(row, repeated=repeated)


@contextmanager
def watching(output: Output, rounds: int | None) -> Iterator[View]:
    """How a run is shown: live on a terminal, else as lines, both on standard error; not at all where only errors are wanted.

    rounds: how many there will be, if that is known.
    """
    console = output.errors
    if output.quiet:
        yield _Unseen()
    elif output.as_json or not console.is_terminal or console.is_dumb_terminal:
        yield Lines(console)
    else:
        live = Screen(console, rounds)
        with live.running():
            yield live


class _Unseen(Silent):
    def batch(self, progress: Batches, /) -> None:
        """Nothing."""


class Lines(_Unseen):
    """A line for each round, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._first: Round | None = None

    def round(self, row: Round, *, repeated: bool) -> None:
        """Print a line; rounds from an earlier process are marked."""
        self._first = self._first or row
        found = round_cells(row, self._first)
        text = ", ".join(cell if name in _TEXTS else f"{name} {cell}" for name, cell in found.items() if cell)
        self._console.print(f"{text}{' (done before)' if repeated else ''}", soft_wrap=True)


class Screen:
    """A live table of the rounds, and bars under it: the rounds with the step that is done, its epochs, and their batches."""

    def __init__(self, console: Console, rounds: int | None) -> None:
        self._rows: list[Round] = []
        self._bars = Progress(
            SpinnerColumn(), described(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console, speed_estimate_period=_PACE,
        )  # fmt: skip
        self._step = self._bars.add_task("Starting", total=rounds)
        self._epochs: TaskID | None = None
        self._batches: TaskID | None = None
        self._live = Live(get_renderable=self.picture, console=console, transient=True, refresh_per_second=4)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show it while the block runs; nothing stays of it afterwards."""
        with self._live:
            yield

    def picture(self) -> Group:
        """What is shown now."""
        table = [rounds_table(self._rows, last=_SHOWN)] if self._rows else []
        return Group(*table, self._bars)

    def working(self, what: str, number: int) -> None:
        """A step begins: the bars of the last one go."""
        self._bars.update(self._step, description=f"{what} (step {number + 1})")
        for task in (self._epochs, self._batches):
            if task is not None:
                self._bars.remove_task(task)
        self._epochs = self._batches = None

    def epoch(self, done: int, total: int) -> None:
        """Move the bar of the epochs."""
        self._epochs = self._bars.add_task("Epochs", total=total) if self._epochs is None else self._epochs
        self._bars.update(self._epochs, completed=done, total=total)

    def batch(self, progress: Batches, /) -> None:
        """Move the bar of the batches."""
        about = f"Epoch {progress.epoch} of the schedule, loss {progress.loss:.3g}"
        if self._epochs is None:
            self._epochs = self._bars.add_task("Epochs", total=None)
        if self._batches is None:
            self._batches = self._bars.add_task(about, total=progress.batches)
        self._bars.update(self._batches, completed=progress.batch, total=progress.batches, description=about)

    def round(self, row: Round, *, repeated: bool) -> None:
        """Another row."""
        self._rows.append(row)
        self._bars.update(self._step, completed=len(self._rows))


def rounds_table(rows: Sequence[Round], last: int | None = None) -> Table:
    """The rounds as a table. last: only so many of them."""
    cells = [round_cells(row, rows[0]) for row in rows]
    names = [name for name in _COLUMNS if any(found[name] for found in cells)]
    table = tables.plain_table(*(name if name in _TEXTS else f"#{name}" for name in names), title="Rounds")
    for column, name in zip(table.columns, names, strict=True):
        column.no_wrap = name not in _LONG
    for found in cells if last is None else cells[-last:]:
        table.add_row(*(found[name] for name in names))
    return table


_COLUMNS = ("round", "status", "accuracy", "best epoch", "params", "MACs", "latency", "epochs", "by", "note")
_LONG = ("by", "note")
_TEXTS = ("status", *_LONG)


def round_cells(row: Round, first: Round) -> dict[str, str]:
    """A round as text by column, empty where it has nothing to say."""
    return {
        "round": str(row.number),
        "status": row.status,
        "accuracy": "" if row.accuracy is None else f"{row.accuracy:.2%}",
        "best epoch": "" if row.best is None else f"{row.best:.2%}",
        "params": tables.share(row.params, first.params),
        "MACs": tables.share(row.macs, first.macs),
        "latency": "" if row.latency is None else f"{row.latency:.3g} ms",
        "epochs": str(row.epochs),
        "by": ", ".join(f"{name} {value:.3g}" for name, value in row.values.items()),
        "note": row.note,
    }
