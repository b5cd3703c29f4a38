"""What is promised, how it is tested, and what the last run of these tests found.

    pip install -e ".[test]"
    python docs/benchmarks/trust/run.py --minutes 20

Five runs, each with a record beside this file. *zoo*: the small structures of ``tests/zoo`` under pytest. *failures*: commands that
are killed, interrupted, and short of room or memory (``tests/failure``). *fuzz*: random networks (``python -m tests.fuzz``) for so
many minutes, added to those of the record. *mutants*: so many wrong rules (``python -m tests.mutants``) that are not
in the record yet; those that make no difference stand in ``equivalent.json``, with the reasons. *hostile*: so many damaged and
hostile files (``python -m tests.hostile``), counted on. *checkpoint*, only if asked for (``--checkpoint``): one that is larger than
the memory of the process that prunes it (``docs/benchmarks/large/stream.py``, 10 GB of disk). Then ``README.md`` is written from
the records; with ``--minutes 0``, ``--mutants 0``, ``--files 0``, ``--no-zoo`` or ``--no-failures`` from what was run before.
``--afresh`` forgets the records.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
EQUIVALENT = HERE / "equivalent.json"
STREAMED = HERE.parent / "large" / "stream.json"
ZOO, FAILURES, FUZZ, MUTANTS, HOSTILE = (HERE / f"{name}.json" for name in ("zoo", "failures", "fuzz", "mutants", "hostile"))


def child(*arguments: str) -> None:
    """Run a module of the repository; a test that fails is a result and no error."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, check=False)


def run_tests(tests: str, record: Path) -> None:
    """Run a folder of tests, and record how many passed, by what they test."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        child("pytest", tests, "-q", "-p", "no:cacheprovider", f"--junitxml={report}")
        cases = list(ET.parse(report).iter("testcase"))
    named = [(str(case.get("name")).partition("[")[0], not list(case)) for case in cases]
    counts = {"ran": Counter(name for name, _ in named), "passed": Counter(name for name, fine in named if fine)}
    record.write_text(json.dumps(counts, indent=1) + "\n")


def load(path: Path) -> Any:
    """A record, or nothing."""
    return json.loads(path.read_text()) if path.exists() else {}


def percent(part: int, whole: int) -> str:
    """A share in per cent."""
    return f"{100 * part / whole:.1f}%" if whole else "none"


#: Of the checks of tests/fuzz: what they promise, how they ask, and which of the counts they add to.
CHECKS = (
    (
        "Any plan ends in a proved model",
        "verified",
        "units drawn at random go; the built-in proof, at another batch size than that of the capture",
        "plans proved",
    ),
    (
        "The slim model is the original without these channels",
        "equals_silenced",
        "the original's own Python, with weights under which the channels have no effect; two batch sizes",
        "silenced originals equalled",
    ),
    ("And in train mode", "trains_as_silenced", "the same, and what a step leaves in the buffers", "equalled in train mode"),
    (
        "Statistics are taken over what is left",
        "equals_silenced",
        "of these, networks with statistics, where each removed channel is the twin of one that stays",
        "of these with twins",
    ),
    ("It trains as the original would", "equal_gradients", "gradients of everything that stays", "gradients equalled"),
    ("It can be pruned again", "same_units", "its groups are what is left of the original's", "slim models analysed again"),
    ("A target is met with a proof", "pruned_by_score", "random criterion, target, rounding and policy", "targets met"),
    ("Or it is refused with the reason", "pruned_by_score", "the same", "targets refused"),
    ("Twice the same is the same", "pruned_alike", "all of it again, from the model; plans and bits compared", "pruned alike"),
    ("A plan can be kept", "applied", "through JSON; bits compared, and a proof by another capture", "plans applied from JSON"),
    ("A slim model can be kept", "reloaded", "saved and loaded, and copied; bits compared", "saved and loaded"),
    ("It exports", "exported", "through torch.export", "exported"),
    ("The original is not changed", "untouched", "a digest of all of its state before and after", "networks"),
)

#: Of the tests of tests/zoo: what they promise, the test, and how it asks.
STRUCTURES = (
    ("The groups are those that a reader expects", "test_groups_are_those_expected", "written down for every structure"),
    ("Capture computes what the model computes", "test_capture_computes_what_the_model_computes", "bit for bit"),
    ("Plans are exact, and cost what was said", "test_random_plans_are_exact", "two plans each, three prunings in a row"),
)

#: Of the tests of tests/failure, each for prune, profile, run and sweep: the same.
SURVIVED = (
    (
        "What is killed ends as what was left alone",
        "test_a_command_that_is_killed_while_it_writes_ends_the_same_once_it_is_repeated",
        "kill -9 at a file, then the same command; bytes compared",
    ),
    (
        "An interruption leaves a state to go on from",
        "test_an_interruption_says_so_and_the_command_goes_on",
        "Ctrl-C on a terminal in every phase, and SIGTERM; bytes compared",
    ),
    (
        "A full disk changes nothing",
        "test_no_room_for_a_file_is_said_with_its_size_and_the_command_goes_on",
        "a limit on the size of files; bytes compared",
    ),
    (
        "Two processes do not write to one output",
        "test_the_second_process_is_refused_until_the_first_is_dead",
        "a second process, and a third after kill -9 of the first",
    ),
    (
        "Scores do not change where memory is short",
        "test_scores_are_the_same_on_batches_that_fit",
        "layers that take so many samples at most; float64, to 1e-12",
    ),
)


def files_row(hostile: dict[str, Any]) -> str:
    """The row of the files; empty where none were read."""
    total = sum((Counter(counts) for counts in hostile["kinds"].values()), Counter[str]())
    how = f"{len(hostile['kinds'])} kinds of files, changed; no code runs, nothing hangs, fills memory or is left over"
    found = f"{total.total()} files ({total['read']} still good), {total['defect']} defects"
    fixed = hostile.get("fixed", 0)
    found += f"; {fixed} more were fixed, and these files read again" if fixed else ""
    return f"| A file from a stranger is read or refused in a sentence | hostile: {how} | {found} |"


def streamed_row(streamed: dict[str, Any]) -> str:
    """The row of the largest checkpoint that was pruned tensor by tensor."""
    size, limit, slim = (streamed[f"{name}_bytes"] / 1e9 for name in ("checkpoint", "limit", "slim"))
    how = f"`large/stream.py`: killed once, by a process that may have {limit:.2f} GB; logits of a small twin compared"
    peak = max(streamed[run]["peak"] for run in ("killed", "resumed")) / 1e9
    return f"| A checkpoint may be larger than the memory | {how} | {size:.2f} GB cut to {slim:.2f} GB, peak {peak:.2f} GB |"


def rows(zoo: dict[str, Any], survived: dict[str, Any], fuzz: dict[str, Any], mutants: dict[str, str]) -> list[str]:
    """The table: promise, test and figure of each."""
    counts = totals(fuzz)
    failures = Counter(failure["failure"].partition(":")[0] for failure in unmended(fuzz).values())
    made = [
        f"| {promise} | fuzz, `{check}`: {how} | {counts[count]} networks, {failures[check]} failures |"
        for promise, check, how, count in CHECKS
    ]
    for name, record, tests in (("zoo", zoo, STRUCTURES), ("failures", survived, SURVIVED)):
        for promise, test, how in tests:
            passed, ran = record.get("passed", {}).get(test, 0), record.get("ran", {}).get(test, 0)
            if ran:  # the page says only what was run
                made.append(f"| {promise} | {name}, `{test}`: {how} | {passed} of {ran} passed |")
    caught = sum(1 for stage in mutants.values() if stage)
    same = len(load(EQUIVALENT).keys() & mutants.keys())
    found = f"{caught} of {len(mutants) - same} caught; {same} more make no difference"
    made.append(f"| A wrong rule does not pass | mutants: rules changed on purpose | {found} |")
    hostile, streamed = load(HOSTILE), load(STREAMED)
    return [*made, *([files_row(hostile)] if hostile else []), *([streamed_row(streamed)] if streamed else [])]


def totals(fuzz: dict[str, Any]) -> Counter[str]:
    """Counts of all parts of the record of random networks."""
    return sum((Counter(part["counts"]) for part in fuzz.get("parts", [])), Counter[str]())


def unmended(fuzz: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The networks that failed and still do, by seed."""
    return {seed: failure for seed, failure in fuzz.get("failures", {}).items() if not failure["mended"]}


def parts(fuzz: dict[str, Any]) -> str:
    """The table of the parts of the record: seeds, networks, when, and with what."""
    made = []
    for part in fuzz.get("parts", []):
        inside = {seed for seed in fuzz["failures"] if part["first"] <= int(seed) < part["next"]}
        failed = len(inside & unmended(fuzz).keys())
        cells = (
            f"{part['first']:,} to {part['next'] - 1:,}",
            f"{part['counts']['networks']:,}",
            part["day"],
            part["graphprune"],
            part["torch"],
            f"{failed}" + (f", and {len(inside) - failed} mended" if len(inside) > failed else ""),
        )
        made.append(f"| {' | '.join(cells)} |")
    return "\n".join(made)


def reach(counts: Counter[str]) -> str:
    """That the networks can be pruned at all."""
    groups = counts["prunable groups"]
    return (
        f"They do not pass by freezing everything: {percent(counts['networks with prunable groups'], counts['networks'])} of the "
        f"networks have prunable groups ({groups} in all, {counts['prunable groups with statistics']} under a statistic), "
        f"{percent(counts['parameters in reach'], counts['parameters'])} of the parameters are in reach, random plans removed "
        f"{percent(counts['parameters removed by random plans'], counts['parameters'])}, and the oracle of silent weights cut "
        f"{percent(counts['prunable groups cut by the silencing oracle'], groups)} of the groups."
    )


def page() -> str:
    """The page, from the records."""
    zoo, failed, fuzz, mutants = load(ZOO), load(FAILURES), load(FUZZ), load(MUTANTS)
    counts = totals(fuzz)
    same: dict[str, str] = load(EQUIVALENT)
    survivors = "\n".join(f"- `{name}`" for name, stage in mutants.items() if not stage and name not in same) or "None."
    reasons = "\n".join(f"- {number}: {reason}" for reason, number in Counter(same.values()).most_common())
    stages = Counter(stage for stage in mutants.values() if stage).most_common()
    caught, by = sum(number for _, number in stages), ", ".join(f"{number} by {stage}" for stage, number in stages) or "none"
    failures = "\n".join(f"- seed {seed}: {failure['failure']}" for seed, failure in unmended(fuzz).items())
    versions = f"torch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}, {platform.machine()}"
    return f"""# Trust: what is promised, and how it is tested

Made by `run.py` beside this page, which says how. {versions}.

| promise | how it is tested | result |
| --- | --- | --- |
{chr(10).join(rows(zoo, failed, fuzz, mutants))}

## Random networks

{counts["networks"]:,} networks were checked, each of another seed, in float64, to a relative error of 1e-10. They are made of
convolutions of all kinds, norms, attention, recurrent layers, gates, shuffles, concatenations, splits and shared layers, with
several inputs and outputs (`tests/fuzz`). {reach(counts)}

| seeds | networks | day | graphprune | torch | failures |
| --- | --- | --- | --- | --- | --- |
{parts(fuzz)}

Checks that take long are of a share of the networks, by the seed; the table above says of how many. Networks that fail are saved in
`tests/fuzz/found`, where pytest runs them. A failure stands until what was saved of it and its own network pass.

{failures or "No failure stands."}

## Wrong rules

Of {len(mutants)} changes to the rules of operators and to the algebra of labels, {caught} were caught ({by}), and {len(same)}
make no difference to what a plan may remove, costs or computes (`equivalent.json` names them):

{reasons}

Every other survivor is a check that is missing:

{survivors}
"""


def main() -> None:
    """Run what was asked for, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--no-zoo", action="store_true")
    parser.add_argument("--no-failures", action="store_true")
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--afresh", action="store_true")
    arguments = parser.parse_args()
    if arguments.afresh:
        for path in (ZOO, FAILURES, FUZZ, MUTANTS, HOSTILE):
            path.unlink(missing_ok=True)
    if not arguments.no_zoo:
        run_tests("tests/zoo", ZOO)
    if not arguments.no_failures:
        run_tests("tests/failure", FAILURES)
    if arguments.minutes:
        child("tests.fuzz", "--minutes", str(arguments.minutes), "--record", str(FUZZ))
    if arguments.mutants:
        child("tests.mutants", "--sample", str(len(load(MUTANTS)) + arguments.mutants), "--record", str(MUTANTS))
    if arguments.files:
        child("tests.hostile", "--files", str(arguments.files), "--record", str(HOSTILE))
    if arguments.checkpoint:
        subprocess.run([sys.executable, str(STREAMED.with_suffix(".py"))], check=True)
    (HERE / "README.md").write_text(page())


if __name__ == "__main__":
    main()
