"""A slice of the mutated files of every kind, every file that once failed, and that the judge sees what it is there to see."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from graphprune.errors import UsageError
from tests.hostile.judge import attempt, judged, seeds_of
from tests.hostile.kinds import KINDS, Kind
from tests.hostile.payloads import CANARY
from tests.hostile.worker import tried

FAST = [name for name in KINDS if name not in ("config", "scores", "pictures", "images", "program")]
FOUND = sorted((Path(__file__).parent / "found").glob("*-*"))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seeds")


@pytest.mark.parametrize("name", FAST)
def test_mutated_files_are_read_or_refused_in_a_sentence(name: str, seeds: Path) -> None:
    found = [attempt(name, number, seeds) for number in range(100_000, 100_014)]
    assert [outcome for outcome in found if outcome.defect] == []
    more = (attempt(name, number, seeds) for number in range(100_014, 100_050))  # of a journal, little has to be refused
    assert any(outcome.verdict == "refused" for outcome in chain(found, more)), "the mutations reach what is read"


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_files_that_once_failed_are_refused(path: Path, seeds: Path, tmp_path: Path) -> None:
    name = path.name.rpartition("-")[0]
    shutil.copytree(seeds_of(name, seeds), tmp_path / "here")
    shutil.copyfile(path, tmp_path / "here" / KINDS[name].file)
    assert judged(KINDS[name], tmp_path / "here")[1] == ""


@pytest.mark.parametrize("name", FAST)
def test_the_sound_file_is_read(name: str, seeds: Path, tmp_path: Path) -> None:
    """Negative twin: refusing everything would pass as well. Pickled modules are always refused."""
    shutil.copytree(seeds_of(name, seeds), tmp_path / "here")
    assert judged(KINDS[name], tmp_path / "here") == ("refused" if name == "module" else "read", "")


def _opens_a_shell(folder: Path) -> None:
    os.system(f"touch {CANARY}")


def _leaves_a_part(folder: Path) -> None:
    (folder / "half").write_text("x")
    raise UsageError("It went wrong.")


def _says_nothing(folder: Path) -> None:
    raise UsageError("no full stop")


def _raises(folder: Path) -> None:
    raise KeyError("name")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (_opens_a_shell, "code of the file ran"),
        (_leaves_a_part, "a file was changed or left over"),
        (_says_nothing, "no sentence"),
        (_raises, "KeyError: 'name' at test_hostile_files.py"),
    ],
)
def test_the_judge_sees_what_a_reader_does_wrong(read: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    kind = replace(KINDS["plan"], read=read)  # type: ignore[arg-type]
    verdict, defect = judged(kind, tmp_path / "here")
    assert verdict == "defect" and message in defect


@pytest.mark.slow
def test_a_worker_that_dies_or_hangs_is_replaced(seeds: Path) -> None:
    found = list(tried([("plan", 1), ("no such kind", 2), ("plan", 3)], seeds))
    assert [outcome.verdict == "defect" for outcome in found] == [False, True, False]
    assert found[1].defect == "the process crashed: exit code 1"


def test_every_kind_has_mutators_of_bytes_and_of_its_format() -> None:
    assert all(isinstance(kind, Kind) and len(kind.mutators) >= 6 for kind in KINDS.values())
