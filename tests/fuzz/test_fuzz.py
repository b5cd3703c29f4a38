"""A fixed slice of the random networks, every network that once failed, and that the checks see wrong rules."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checking import max_error, run
from tests.fuzz.block import BLOCKS
from tests.fuzz.check import CHECKS, Check, check, runs, untouched, verified
from tests.fuzz.generate import generate
from tests.fuzz.record import Record
from tests.fuzz.shrink import reduce
from tests.fuzz.silence import choose, silenced
from tests.fuzz.spec import Spec
from tests.fuzz.subject import Subject
from tests.watched import LOST

SLICE = range(32)
ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs" / "benchmarks" / "trust" / "fuzz.json"


def found() -> Iterator[Any]:
    """Networks that once failed. Those that still do by the record, as rounding on a machine has it, may; what hangs is not run."""
    standing = Record.load(RECORD).unmended
    for path in sorted((Path(__file__).parent / "found").glob("*.json")):
        spec = Spec.model_validate_json(path.read_text())
        failure = standing[spec.seed].failure if spec.seed in standing else ""
        marks = [pytest.mark.xfail(reason=failure, run=not failure.startswith(LOST))] if failure else []
        yield pytest.param(spec, id=path.stem, marks=marks)


@pytest.mark.parametrize("seed", SLICE)
def test_random_networks_are_pruned_exactly(seed: int) -> None:
    outcome = check(generate(seed))
    assert not outcome.failure, f"{outcome.failure}\n{outcome.trace}"


@pytest.mark.parametrize("spec", list(found()))
def test_networks_that_once_failed_are_pruned_exactly(spec: Spec) -> None:
    outcome = check(spec, everything=True)
    assert not outcome.failure, f"{outcome.failure}\n{outcome.trace}"


def test_a_seed_is_a_network_and_goes_through_json() -> None:
    for seed in range(8):
        spec = generate(seed)
        assert spec == generate(seed) == Spec.model_validate_json(spec.model_dump_json())
        assert runs(spec)


def test_every_block_is_drawn() -> None:
    """Negative twin of a generator that refuses a block everywhere."""
    drawn = Counter(step.block for seed in range(400) for step in generate(seed).steps)
    assert set(BLOCKS) - set(drawn) == set()


@pytest.mark.parametrize("seed", range(4))
def test_the_silencing_oracle_tells_plans_apart(seed: int) -> None:
    """Its negative twin: silencing other channels than those that are gone gives other outputs."""
    subject = Subject(generate(seed), Counter())
    slim, groups = subject.chosen.model, subject.groups
    errors = []
    for number in range(100, 105):
        kept, twins = choose(groups, number)
        other = silenced(subject.model, groups, subject.found.plan(kept), twins)
        errors.append(max_error(run(slim, subject.inputs), run(other, subject.inputs)))
    assert max(errors) > 1e-4


def test_checks_of_a_share_draw_their_networks_one_by_one() -> None:
    """The same ones each time, about as many as they are to, and not all on the same networks; the others take every network."""
    taken = [{seed for seed in range(4000) if Check(one, every=8).takes(seed)} for one in (verified, untouched)]
    assert all(400 < len(seeds) < 600 for seeds in taken) and 30 < len(taken[0] & taken[1]) < 100
    assert all(step.takes(seed) for step in CHECKS if step.every == 1 for seed in range(20))


def test_a_network_can_be_put_to_every_check() -> None:
    seed = next(seed for seed in range(200) if not any(step.takes(seed) for step in CHECKS if step.every > 1))
    names = {"pruned alike", "plans applied from JSON", "saved and loaded", "exported"}
    assert names.isdisjoint(check(generate(seed)).counts)
    assert names <= check(generate(seed), everything=True).counts.keys()


def test_a_failing_network_is_shrunk_to_what_fails() -> None:
    spec = next(found for found in map(generate, range(100)) if len(found.steps) > 8 and _reads_images_in_groups(found))
    small = reduce(spec, _reads_images_in_groups, time.monotonic() + 30)
    assert len(small.steps) == 2 and runs(small) and small.policy == {} and set(small.prune) == {"target"}


def _reads_images_in_groups(spec: Spec) -> bool:
    return any(step.block == "GroupedConv" for step in spec.steps)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks Linux for the processes of a process")
def test_the_command_goes_on_after_a_kill_that_leaves_no_process(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    command = [sys.executable, "-m", "tests.fuzz", "--record", str(path), "--minutes"]
    options: Any = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "stdout": subprocess.DEVNULL}
    with subprocess.Popen([*command, "20", "--jobs", "2"], **options) as first:
        until(path.exists)
        workers = list(descendants(first.pid))
        first.kill()
    assert len(workers) >= 2
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    before = Record.load(path).counts["networks"]
    subprocess.run([*command, "0.001"], **options, timeout=600, check=True)
    record = Record.load(path)
    assert record.parts[0].first == 0 and record.parts[-1].next == record.counts["networks"] > before > 0


def descendants(process: int) -> Iterator[int]:
    """The processes that a process has begun, and those that they have."""
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        yield int(child)
        yield from descendants(int(child))


def until(ready: Callable[[], bool]) -> None:
    """Wait until something is so. It takes seconds to import torch in several processes."""
    deadline = time.monotonic() + 600
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.1)
