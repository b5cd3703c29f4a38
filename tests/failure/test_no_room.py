"""A full disk and a folder that is read-only: found out before the long work where that can be, said once, and nothing is left."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failure.commands import COMMANDS
from tests.failure.conftest import Whole
from tests.failure.processes import Refusing, Stopping, left, run

LIMITS = {"prune": 3000, "profile": 1500, "run": 2000, "sweep": 700}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_room_for_a_file_is_said_with_its_size_and_the_command_goes_on(name: str, tmp_path: Path, whole: Whole) -> None:
    command = COMMANDS[name]
    earlier = {} if command.resumes else {path: b"an earlier result" for path in command.results}
    for path, content in earlier.items():
        (tmp_path / path).write_bytes(content)
    ran = run(command.line(), tmp_path, Refusing(LIMITS[name]))
    assert ran.code == 2, ran.out
    message = ran.out.strip().splitlines()[-1]
    about = rf"Cannot write {command.out}\S* \(\d\S* (Ki)?B\): .+, \d\S* \wiB free\."
    assert re.fullmatch(rf"graphprune: error: {about} Make room, and run the same command again\.", message), message
    assert command.result(tmp_path) == earlier
    assert not {path for path in left(tmp_path) if Path(path).name.startswith(".")}
    assert run(command.line(), tmp_path).code == 0
    assert command.result(tmp_path) == whole(name)


@pytest.fixture(params=["full", "read-only"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk that is full, or that nobody may write to."""
    folder = tmp_path / "place"
    folder.mkdir()
    how = "size=4k" if request.param == "full" else "size=64k"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("file systems can be mounted by root alone")
    try:
        if request.param == "full":
            (folder / "filler").write_bytes(b"x" * os.statvfs(folder).f_bsize)
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_takes_nothing_is_found_out_before_the_work(name: str, place: Path, tmp_path: Path) -> None:
    command = COMMANDS[name].inside("place")
    before = left(place)
    ran = run(command.line(), tmp_path, Stopping(*command.work, killed=True))
    assert ran.code == 2, ran.out
    message = ran.out.strip().splitlines()[-1]
    assert message.startswith("graphprune: error: Cannot write ") and "place" in message
    assert left(place) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_in_place_of_the_folder_is_found_out_before_the_work(name: str, tmp_path: Path) -> None:
    (tmp_path / "place").touch()
    command = COMMANDS[name].inside("place")
    ran = run(command.line(), tmp_path, Stopping(*command.work, killed=True))
    assert ran.code == 2, ran.out
    assert "graphprune: error: Cannot write" in ran.out and "place" in ran.out
    assert left(tmp_path) == {"place"}
