"""Two processes on one output: the second one is told about the first, and a dead one stands in nobody's way."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from graphprune.claims import claimed, claimed_folder
from graphprune.errors import UsageError
from tests.failure.commands import COMMANDS
from tests.failure.conftest import Whole
from tests.failure.processes import REACHED, Stopping, left, run, start


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_process_is_refused_until_the_first_is_dead(name: str, tmp_path: Path, whole: Whole) -> None:
    command = COMMANDS[name]
    first = start(command.line(), tmp_path, Stopping(*command.work))
    first.wait_for(REACHED)
    before = left(tmp_path)
    second = run(command.line(), tmp_path)
    assert second.code == 2, second.out
    assert f"{command.out} is being written by process {first.process.pid} on " in second.out
    assert second.out.strip().splitlines()[-1].startswith("graphprune: error: ")
    assert left(tmp_path) == before, "the second one leaves the first one's files alone"
    first.signal(signal.SIGKILL)
    assert first.end().code == -signal.SIGKILL
    third = run(command.line(), tmp_path)
    assert third.code == 0, third.out
    assert command.result(tmp_path) == whole(name)
    assert not {path for path in left(tmp_path) if Path(path).name.startswith(".")}


def test_a_claim_leaves_nothing_and_takes_away_what_the_dead_left(tmp_path: Path) -> None:
    (tmp_path / ".a.json.lock").write_text("process 1 on elsewhere")
    (tmp_path / ".a.json.0123abcd.tmp").touch()
    (tmp_path / ".ab.json.0123abcd.tmp").touch()  # somebody else's
    with claimed(tmp_path / "a.json"):
        assert {path.name for path in tmp_path.iterdir()} == {".a.json.lock", ".ab.json.0123abcd.tmp"}
    assert {path.name for path in tmp_path.iterdir()} == {".ab.json.0123abcd.tmp"}


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with claimed_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with claimed_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists() and {p.name for p in (tmp_path / "a" / "b").iterdir()} == {"file"}
    with pytest.raises(UsageError, match="Cannot write"), claimed_folder(tmp_path / "a" / "b" / "file" / "c"):
        pytest.fail("the block must not run")
