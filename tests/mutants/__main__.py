"""``python -m tests.mutants [--sample N] [--seed S] [--minutes M] [--jobs K] [--only TEXT] [--record FILE]``: wrong rules.

Do the tests catch them? Each is one change to a rule of an operator or to the algebra of labels, tried in a process of its own. The
record is a JSON file of what caught each; mutants in it are not tried again. Survivors are listed: each is a check that is missing,
or a change that makes no difference. Those of the second kind stand with the reason in ``equivalent.json`` beside the record.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.mutants.mutate import KINDS, ROOT, TARGETS, Mutation, mutations, sample
from tests.mutants.run import Trials, Verdict, paths

OPTIONS = ("-qq", "-s", "-p", "no:cacheprovider", "--no-header", "--no-summary", "--tb=line", f"--rootdir={ROOT}")


def load(path: Path | None) -> dict[str, str]:
    """A record, or an empty one."""
    return json.loads(path.read_text()) if path is not None and path.exists() else {}


def main() -> int:
    """Parse the arguments, run, and print what caught how many; 1 where a mutant survived that makes a difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--sample", type=int, default=10**6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10**6)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="", help="mutants with this in their names")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    record: Path | None = arguments.record
    names = {str(mutation) for file in TARGETS for mutation in mutations(file)}
    done = {name: stage for name, stage in load(record).items() if name in names}
    equal = load(record.with_name("equivalent.json")) if record is not None else {}
    console = Console()

    def found(mutation: Mutation, verdict: Verdict) -> None:
        done[str(mutation)] = verdict.stage
        said = verdict.stage or f"SURVIVED {verdict.ran} tests, {len(verdict.changed)} changed"
        console.print(f"{said:16} {mutation}", *verdict.changed[:3], markup=False, soft_wrap=True, highlight=False)
        if record is not None:
            record.write_text(json.dumps(done, indent=1) + "\n")

    chosen = [m for m in sample(arguments.sample, arguments.seed) if str(m) not in done and arguments.only in str(m)]
    if chosen:
        trials = Trials(chosen, found, arguments.jobs, time.monotonic() + arguments.minutes * 60)
        pytest.main([*paths(), *OPTIONS], plugins=[trials])
    table = Table("caught by", "mutants")
    for stage, number in Counter(done.values()).most_common():
        table.add_row(stage or "nothing", str(number))
    console.print(table)
    caught = {name for name, stage in done.items() if stage}
    for name in equal:
        if name in caught or name not in names:
            console.print(f"not equivalent (any more): {name}", markup=False, soft_wrap=True)
    console.print(
        f"{len(caught)} of {len(done)} caught, and {len(set(done) & set(equal) - caught)} make no difference; "
        f"there are {len(names)} mutants of {len(KINDS)} kinds in {len(TARGETS)} files."
    )
    return 0 if set(done) - caught == set(equal) & set(done) else 1


if __name__ == "__main__":
    raise SystemExit(main())
