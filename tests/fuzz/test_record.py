"""What a record of long runs promises: no network counts twice, a kill loses little, and what failed stays until it is mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from graphprune.errors import UsageError
from tests.fuzz import __main__ as command
from tests.fuzz import record as module
from tests.fuzz.check import Outcome
from tests.fuzz.generate import generate
from tests.fuzz.record import Failure, Part, Record, save_spec
from tests.fuzz.spec import Spec

NAMES = {"day": "2026-01-02", "graphprune": "0.1.0", "torch": "2.14.1"}


@pytest.fixture(autouse=True)
def on_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_today", lambda: NAMES["day"])
    monkeypatch.setattr("graphprune.__version__", NAMES["graphprune"])
    monkeypatch.setattr("torch.__version__", "2.14.1+cpu")


def part(first: int, last: int, **other: str) -> Part:
    return Part.model_validate({"first": first, "next": last, "counts": {"networks": last - first}} | NAMES | other)


def test_a_part_goes_on_on_the_same_day_with_the_same_versions() -> None:
    found, seeds = Record(parts=[part(0, 5)]).begin(0)
    assert found.first == 0 and seeds[0] == 5
    found.add(Outcome(5, counts=Counter({"networks": 1, "exported": 1})))
    assert (found.next, found.counts) == (6, {"networks": 6, "exported": 1})


@pytest.mark.parametrize("other", [{"day": "2026-01-01"}, {"torch": "2.13.0"}, {"graphprune": "0.0.9"}])
def test_another_day_or_version_is_another_part(other: dict[str, str]) -> None:
    record = Record(parts=[part(0, 5, **other)])
    found, seeds = record.begin(0)
    assert found.first == seeds[0] == 5 and len(record.parts) == 2


def test_no_seed_of_another_part_is_taken() -> None:
    record = Record(parts=[part(100, 200), part(0, 5), part(5, 8, day="2026-01-01")])
    assert record.begin(0)[1] == range(8, 100)
    assert record.begin(99)[1] == range(99, 100)
    assert record.begin(150)[1][0] == 200


def test_a_network_that_is_counted_is_not_counted_again() -> None:
    with pytest.raises(AssertionError, match="once"):
        part(0, 5).add(Outcome(4))


def test_totals_are_those_of_all_parts() -> None:
    assert Record(parts=[part(0, 5), part(7, 9)]).counts == {"networks": 7}


def test_a_record_goes_through_its_file_and_parts_without_networks_are_left_out(tmp_path: Path) -> None:
    record = Record(parts=[part(0, 5), part(9, 9)], failures={3: Failure(failure="verified: AssertionError: x")})
    record.save(tmp_path / "record.json")
    found = Record.load(tmp_path / "record.json")
    assert found.parts == record.parts[:1] and found.failures == record.failures
    assert Record.load(tmp_path / "none.json") == Record.load(None) == Record()


def test_a_file_that_is_no_record_is_refused_and_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"first": 0, "next": 9}')
    with pytest.raises(UsageError, match="no valid record of random networks"):
        Record.load(path)
    monkeypatch.setattr("sys.argv", ["fuzz", "--record", str(path)])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "error: " in (said := capsys.readouterr().err) and "no valid record" in said
    assert path.read_text() == '{"first": 0, "next": 9}'


def run(monkeypatch: pytest.MonkeyPatch, path: Path, outcomes: Iterable[Outcome], end: type[BaseException]) -> None:
    """A run of the command that checks nothing: these are the outcomes, and then it is interrupted."""

    def attempts(seeds: Iterable[int], jobs: int, deadline: float) -> Iterator[tuple[Outcome, Spec]]:
        for outcome in outcomes:
            yield outcome, generate(outcome.seed)
        raise end

    monkeypatch.setattr(command, "attempts", attempts)
    monkeypatch.setattr("sys.argv", ["fuzz", "--record", str(path)])
    with pytest.raises(end):
        command.main()


def test_what_was_checked_before_an_interruption_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for first in (0, 3):
        run(monkeypatch, path, [Outcome(first + n, counts=Counter(networks=1)) for n in range(3)], KeyboardInterrupt)
    assert Record.load(path).parts == [part(0, 6)]


def test_the_record_is_written_while_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that a process that is killed, which writes nothing any more, loses no more than that."""
    path = tmp_path / "record.json"
    seen = []

    def outcomes() -> Iterator[Outcome]:
        for seed in range(3):
            seen.append(Record.load(path).counts["networks"])
            yield Outcome(seed, counts=Counter(networks=1))

    monkeypatch.setattr(command, "SAVED", 0.0)
    run(monkeypatch, path, outcomes(), KeyboardInterrupt)
    assert seen == [0, 1, 2]


def test_a_failure_is_written_at_once_and_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved: list[Spec] = []
    path = tmp_path / "record.json"
    monkeypatch.setattr(command, "save_spec", lambda spec: saved.append(spec))

    def outcomes() -> Iterator[Outcome]:
        yield Outcome(0, "verified: AssertionError: x", counts=Counter(networks=1))
        assert Record.load(path).unmended == {0: Failure(failure="verified: AssertionError: x")}

    run(monkeypatch, path, outcomes(), KeyboardInterrupt)
    assert saved == [generate(0)] and Record.load(path).counts["networks"] == 1


def settled(bad: list[Spec], folder: Path) -> Record:
    """A record in which seed 3 failed, tried again where the checks find fault with these networks."""
    record = Record(parts=[part(0, 5)], failures={3: Failure(failure="verified: AssertionError: x")})
    record.settle(lambda spec: spec not in bad, folder)
    return record


def small() -> Spec:
    """What seed 3 was shrunk to."""
    return generate(3).model_copy(update={"prune": {"target": {"macs": 0.5}}})


def test_a_failure_is_mended_once_its_network_and_what_was_saved_of_it_pass(tmp_path: Path) -> None:
    save_spec(small(), tmp_path).rename(tmp_path / "what_it_is_about.json")
    save_spec(generate(4), tmp_path)
    record = settled([generate(4)], tmp_path)
    assert record.failures[3].mended == NAMES["day"] and not record.unmended


@pytest.mark.parametrize("bad", [small, lambda: generate(3)], ids=["saved", "whole"])
def test_a_failure_stays_while_either_of_them_fails(tmp_path: Path, bad: object) -> None:
    assert callable(bad)
    save_spec(small(), tmp_path)
    assert list(settled([bad()], tmp_path).unmended) == [3]


def test_a_failure_stays_where_nothing_was_saved_of_it(tmp_path: Path) -> None:
    assert list(settled([], tmp_path).unmended) == [3]


def test_the_command_fails_while_a_failure_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "attempts", lambda seeds, jobs, deadline: iter(()))
    monkeypatch.setattr(Record, "settle", lambda self, passes: None)
    path = tmp_path / "record.json"
    monkeypatch.setattr("sys.argv", ["fuzz", "--record", str(path)])
    for mended, code in (("", 1), ("2026-01-03", 0)):
        Record(parts=[part(0, 5)], failures={3: Failure(failure="x", mended=mended)}).save(path)
        assert command.main() == code
