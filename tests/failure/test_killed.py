"""kill -9: no part of a file under its name, and the same command again ends as one that was left alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.failure.commands import COMMANDS
from tests.failure.conftest import Whole
from tests.failure.processes import Stopping, left, run

#: Files that were written in full when the process dies: it dies before the next one gets its name.
MOMENTS = [("prune", 0), ("prune", 1), ("profile", 0), ("profile", 1), ("sweep", 0), ("sweep", 2)]
MOMENTS += [("run", number) for number in (0, 1, 3, 6, 9)]


@pytest.mark.parametrize(("name", "files"), MOMENTS)
def test_a_command_that_is_killed_while_it_writes_ends_the_same_once_it_is_repeated(
    name: str, files: int, tmp_path: Path, whole: Whole
) -> None:
    command = COMMANDS[name]
    assert run(command.line(), tmp_path, Stopping("os:replace", files, killed=True)).code == -signal.SIGKILL
    unfinished = {path for path in left(tmp_path) if Path(path).name.startswith(".")}
    assert any(path.endswith(".tmp") for path in unfinished), "it was killed while it wrote a file"
    again = run(command.line(), tmp_path)
    assert again.code == 0, again.out
    assert command.result(tmp_path) == whole(name)
    assert not {path for path in left(tmp_path) if Path(path).name.startswith(".")}, "what the dead process left is gone"


@pytest.mark.parametrize("name", ["prune"])
def test_an_earlier_result_survives_a_kill(name: str, tmp_path: Path) -> None:
    command = COMMANDS[name]
    for path in command.results:
        (tmp_path / path).write_bytes(b"an earlier result")
    assert run(command.line(), tmp_path, Stopping("os:replace", 0, killed=True)).code == -signal.SIGKILL
    assert set(command.result(tmp_path).values()) == {b"an earlier result"}
