"""Folders of runs: finished, going on, damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphprune.errors import RunError
from graphprune.reporting.runs import is_run, read_run, runs_in
from tests.graphprune.reporting.conftest import ROUNDS, MakeRun


def test_a_run_is_read_as_it_was_written(make_run: MakeRun) -> None:
    run = read_run(make_run())
    assert run.rounds == ROUNDS
    assert (run.method, run.finished, run.options) == ("adaptive", True, {"target": "macs=50%"})
    assert run.last == ROUNDS[2]


def test_the_last_round_is_one_that_stayed(make_run: MakeRun) -> None:
    run = read_run(make_run(rounds=ROUNDS[:2]))
    assert run.last == ROUNDS[0]
    assert not run.finished


def test_a_line_that_is_torn_while_the_run_goes_on_is_left_out(make_run: MakeRun) -> None:
    folder = make_run()
    path = folder / "rounds.jsonl"
    path.write_text(path.read_text()[:-20])
    assert read_run(folder).rounds == ROUNDS[:2]


@pytest.mark.parametrize(
    ("name", "text"), [("rounds.jsonl", '{"number": "x"}\n'), ("journal.jsonl", "no\n"), ("result.json", "[]")]
)
def test_a_damaged_file_is_named(make_run: MakeRun, name: str, text: str) -> None:
    folder = make_run()
    (folder / name).write_text(text)
    with pytest.raises(RunError, match=rf"{name} is damaged"):
        read_run(folder)


def test_a_folder_of_runs_has_them_by_name_and_nothing_else(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("runs/b")
    make_run("runs/a")
    (tmp_path / "runs" / "other").mkdir()
    assert [run.name for run in runs_in(tmp_path / "runs")] == ["a", "b"]
    assert not is_run(tmp_path / "runs" / "other")
