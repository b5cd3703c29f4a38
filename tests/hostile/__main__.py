"""``python -m tests.hostile --files N [--seed S] [--kind K] [--minutes M] [--record FILE]``: read mutated files.

Each is read in a process with limited memory and time. Files are counted up from S, or go on where the record ends, and take turns
over the kinds. A file that does anything but load or be refused in a sentence is kept under ``tests/hostile/found``, where pytest
reads it from then on. The record is a JSON file of what came of each kind. Exits with 1 after a defect.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from graphprune.files import atomic_write
from tests.hostile.kinds import KINDS
from tests.hostile.worker import Try, tried

FOUND = Path(__file__).parent / "found"


def tries(kinds: Sequence[str], first: int, count: int, deadline: float) -> Iterator[Try]:
    """Kinds in turn, with a number that says which file of the kind, until there are enough or the time is over."""
    for place in range(first, first + count):
        if time.monotonic() > deadline:
            return
        yield kinds[place % len(kinds)], place


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Read as many files as were asked for; returns the record."""
    path: Path | None = arguments.record
    known: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}
    record: dict[str, Any] = {"first": arguments.seed, "next": arguments.seed, "kinds": {}, "defects": {}} | known
    counts = {name: Counter(record["kinds"].get(name, {})) for name in arguments.kind or KINDS}
    deadline = time.monotonic() + arguments.minutes * 60
    with tempfile.TemporaryDirectory() as seeds:
        for outcome in tried(tries(list(counts), record["next"], arguments.files, deadline), Path(seeds), FOUND):
            counts[outcome.kind][outcome.verdict] += 1
            record["next"] = outcome.number + 1
            if outcome.defect:
                record["defects"][f"{outcome.kind} {outcome.number}"] = outcome.defect
                console.print(f"{outcome.kind} {outcome.number}: {outcome.defect}", markup=False, soft_wrap=True)
            if path is not None and record["next"] % 100 == 0:
                _write(path, record, counts)
    _write(path, record, counts)
    return record


def _write(path: Path | None, record: dict[str, Any], counts: dict[str, Counter[str]]) -> None:
    record["kinds"] = {name: dict(counter) for name, counter in counts.items()}
    if path is not None:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")


def main() -> int:
    """Parse the arguments, run, and print the totals."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    parser.add_argument("--minutes", type=float, default=10**6)
    parser.add_argument("--record", type=Path)
    console = Console()
    record = run(parser.parse_args(), console)
    table = Table("kind", "read", "refused", "defects")
    for name, counts in record["kinds"].items():
        table.add_row(name, *(str(counts.get(verdict, 0)) for verdict in ("read", "refused", "defect")))
    console.print(table)
    console.print(f"files {record['first']} to {record['next'] - 1}: {len(record['defects'])} defects")
    return 1 if record["defects"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
