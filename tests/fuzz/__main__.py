"""``python -m tests.fuzz --minutes N [--seed S] [--jobs K] [--record FILE]``: check random networks until the time is over.

Seeds are counted up from S, or go on where the record ends. Each failure is shrunk and saved under ``tests/fuzz/found`` at once;
pytest runs what lies there. The record is a JSON file with the seeds that were done and the totals. Exits with 1 after a failure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from graphprune.files import atomic_write
from tests.fuzz.attempt import attempt
from tests.fuzz.check import Outcome
from tests.fuzz.spec import Spec

FOUND = Path(__file__).parent / "found"


def outcomes(first: int, jobs: int, deadline: float) -> Iterator[tuple[Outcome, Spec]]:
    """Outcomes of the seeds from ``first`` on, as they are ready, until the deadline; those that have begun are finished."""
    seeds = count(first)
    if jobs == 1:
        while time.monotonic() < deadline:
            yield attempt(next(seeds))
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: set[Future[tuple[Outcome, Spec]]] = {pool.submit(attempt, next(seeds)) for _ in range(jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if time.monotonic() < deadline:
                    running.add(pool.submit(attempt, next(seeds)))
                yield future.result()


def read_record(path: Path | None) -> dict[str, Any]:
    """Totals so far: seeds from ``first`` to below ``next``, counts, seconds and failures by seed."""
    if path is not None and path.exists():
        record: dict[str, Any] = json.loads(path.read_text())
        return record
    return {"first": None, "next": None, "seconds": 0.0, "counts": {}, "failures": {}}


def write_record(path: Path | None, record: dict[str, Any]) -> None:
    """Write the totals, atomically."""
    if path is not None:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")


def save(spec: Spec) -> Path:
    """Write a failing spec where pytest finds it."""
    path = FOUND / f"seed_{spec.seed}.json"
    path.write_text(spec.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    return path


def fuzz(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run for the time that was asked for; returns the record."""
    record = read_record(arguments.record)
    start = time.monotonic()
    before = record["seconds"]
    record["first"] = arguments.seed if record["first"] is None else record["first"]
    record["next"] = record["first"] if record["next"] is None else record["next"]
    counts: Counter[str] = Counter(record["counts"])
    length = arguments.minutes * 60
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=length)
        for outcome, spec in outcomes(record["next"], arguments.jobs, start + length):
            counts += outcome.counts
            if outcome.failure:
                record["failures"][str(outcome.seed)] = outcome.failure[:500]
                console.print(f"seed {outcome.seed}: {outcome.failure}\nsaved as {save(spec)}", markup=False)
            spent = time.monotonic() - start
            record |= {"next": max(record["next"], outcome.seed + 1), "seconds": before + spent, "counts": dict(counts)}
            write_record(arguments.record, record)
            done = f"{counts['networks']} networks, {len(record['failures'])} failures"
            progress.update(task, completed=min(spent, length), description=done)
    return record


def main() -> int:
    """Parse the arguments, run, and print the totals."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--record", type=Path)
    console = Console()
    record = fuzz(parser.parse_args(), console)
    table = Table("what", "how many")
    for name, number in record["counts"].items():
        table.add_row(name, str(number))
    console.print(table)
    console.print(f"seeds {record['first']} to {record['next'] - 1}: {len(record['failures'])} failures")
    return 1 if record["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
