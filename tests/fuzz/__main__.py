"""``python -m tests.fuzz --minutes N [--seed S] [--jobs K] [--record FILE]``: check random networks until the time is over.

Seeds are counted up from S, without those that the record has. Each failure is shrunk and saved under ``tests/fuzz/found`` at once;
pytest runs what lies there. A network that hangs, or whose process dies, is a failure too, and the run goes on. The record is a
JSON file that every run adds to; a run that is killed loses a minute at most. What failed before is tried again first. Exits with 1
if there are failures that are not mended.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from graphprune.claims import claimed
from graphprune.errors import UsageError
from tests.fuzz.attempt import attempts, passes
from tests.fuzz.record import Failure, Record, save_spec

SAVED = 30.0  # seconds after which the record is written again


def fuzz(record: Record, arguments: argparse.Namespace, console: Console) -> None:
    """Run for the time that was asked for, and add to the record."""
    part, seeds = record.begin(arguments.seed)
    start = time.monotonic()
    saved, length = start - SAVED, arguments.minutes * 60  # the first network is written at once
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=length)
        for outcome, spec in attempts(seeds, arguments.jobs, start + length):
            part.add(outcome)
            now = time.monotonic()
            if outcome.failure:
                record.failures[outcome.seed] = Failure(failure=outcome.failure[:500])
                console.print(f"seed {outcome.seed}: {outcome.failure}\nsaved as {save_spec(spec)}", markup=False)
            if outcome.failure or now - saved > SAVED:
                record.save(arguments.record)
                saved = now
            done = f"{record.counts['networks']} networks, {len(record.unmended)} failures"
            progress.update(task, completed=min(now - start, length), description=done)


def checked(arguments: argparse.Namespace, console: Console) -> Record:
    """The record after a run, which ends however it may; nobody else writes to its file meanwhile."""
    with claimed(arguments.record) if arguments.record is not None else nullcontext():
        record = Record.load(arguments.record)
        record.settle(passes)
        try:
            fuzz(record, arguments, console)
        finally:
            record.save(arguments.record)
        return record


def main() -> int:
    """Parse the arguments, run, and print the totals."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    console = Console()
    try:
        record = checked(arguments, console)
    except UsageError as error:
        parser.error(str(error))
    table = Table("what", "how many")
    for name, number in record.counts.items():
        table.add_row(name, str(number))
    console.print(table)
    for part in record.parts:
        console.print(f"seeds {part.first} to {part.next - 1}: {part.day}, graphprune {part.graphprune}, torch {part.torch}")
    console.print(f"{len(record.unmended)} failures, and {len(record.failures) - len(record.unmended)} that are mended")
    return 1 if record.unmended else 0


if __name__ == "__main__":
    raise SystemExit(main())
