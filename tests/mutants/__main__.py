"""``python -m tests.mutants [--sample N] [--seed S] [--minutes M] [--jobs K] [--record FILE]``: do the tests catch wrong rules?

Each mutant is one change to a rule of an operator or to the algebra of labels, tried in a process of its own. The record is a JSON
file of what caught each; mutants in it are not tried again. Survivors are listed: each is a check that is missing, or a change that
makes no difference.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.mutants.mutate import KINDS, TARGETS, Mutation, mutations, sample
from tests.mutants.run import attempt

PRELOADED = ["torch", "torchvision", "pytest", "numpy", "sympy", "networkx", "pydantic", "scipy.sparse", "rich", "hypothesis"]


def try_all(chosen: list[Mutation], jobs: int, deadline: float, done: dict[str, str], record: Path | None) -> None:
    """Try mutants until the deadline, adding to ``done`` what caught each ("" for a survivor)."""
    console = Console()
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    for start in range(0, len(chosen), jobs):
        if time.monotonic() > deadline:
            return
        with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
            futures = {pool.submit(attempt, mutation): mutation for mutation in chosen[start : start + jobs]}
            for future in as_completed(futures):
                mutation = futures[future]
                try:
                    done[str(mutation)] = future.result()
                except BrokenProcessPool:
                    done[str(mutation)] = "crash"
                console.print(f"{done[str(mutation)] or 'SURVIVED':16} {mutation}", markup=False, soft_wrap=True)
        if record is not None:
            record.write_text(json.dumps(done, indent=1) + "\n")


def main() -> int:
    """Parse the arguments, run, and print what caught how many."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--sample", type=int, default=10**6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10**6)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    record: Path | None = arguments.record
    done: dict[str, str] = json.loads(record.read_text()) if record is not None and record.exists() else {}
    chosen = [mutation for mutation in sample(arguments.sample, arguments.seed) if str(mutation) not in done]
    try_all(chosen, arguments.jobs, time.monotonic() + arguments.minutes * 60, done, record)
    console = Console()
    total = sum(1 for file in TARGETS for _ in mutations(file))
    table = Table("caught by", "mutants")
    for stage, number in Counter(done.values()).most_common():
        table.add_row(stage or "nothing", str(number))
    console.print(table)
    caught = sum(1 for stage in done.values() if stage)
    console.print(f"{caught} of {len(done)} caught; there are {total} mutants of {len(KINDS)} kinds in {len(TARGETS)} files.")
    return 0 if caught == len(done) else 1


if __name__ == "__main__":
    raise SystemExit(main())
