"""The journal: what is recorded is read again, a torn line is not, and another run's file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graphprune.errors import RunError, UsageError
from graphprune.runs.journal import Journal
from graphprune.runs.results import check_result

ABOUT = {"method": "adaptive", "options": "{}", "seed": "0"}


def _filled(path: Path) -> Journal:
    journal = Journal(path, ABOUT)
    journal.record("train", "a", {"x": 1})
    journal.record("evaluate", "b", {"x": 0.5})
    return journal


def test_steps_are_recalled_in_order_by_another_process(tmp_path: Path) -> None:
    _filled(tmp_path / "j")
    again = Journal(tmp_path / "j", ABOUT)
    assert again.replaying
    assert again.recall("train", "a") == {"x": 1}
    assert again.recall("evaluate", "b") == {"x": 0.5}
    assert not again.replaying
    assert again.recall("cut", "c") is None
    assert again.number == 2


def test_a_line_that_was_torn_by_a_kill_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "j"
    _filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": "cut", "ke')
    again = Journal(path, ABOUT)
    assert path.read_bytes() == whole
    again.recall("train", "a")
    again.recall("evaluate", "b")
    again.record("cut", "c", {})
    assert json.loads(path.read_text().splitlines()[-1])["step"] == "cut"


def test_another_step_than_the_recorded_one_is_an_error(tmp_path: Path) -> None:
    _filled(tmp_path / "j")
    with pytest.raises(RunError, match=r"Step 0 of the run .* was train"):
        Journal(tmp_path / "j", ABOUT).recall("train", "other")


@pytest.mark.parametrize("name", ABOUT)
def test_another_run_is_refused_naming_the_difference(tmp_path: Path, name: str) -> None:
    _filled(tmp_path / "j")
    with pytest.raises(RunError, match=f"has {name} "):
        Journal(tmp_path / "j", ABOUT | {name: "other"})


@pytest.mark.parametrize(
    "content", [b"\n", b"nonsense\n", b'{"version": 1}\n{"step": 1}\n', b"[]\n", b"\xff\xfe\n", b'{"version": 2}\n']
)
def test_a_damaged_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(RunError):
        Journal(tmp_path / "j", ABOUT)


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    journal = _filled(path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UsageError, match=r"Cannot write .*/j \(\d\S* KiB\): No space left .* Make room"):
        journal.record("cut", "c", {"x": "y" * 1000})
    assert path.read_bytes() == before


def test_a_process_that_only_reads_writes_nothing(tmp_path: Path) -> None:
    Journal(tmp_path / "j", ABOUT, write=False).record("train", "a", {})
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize("text", ["1\n", "[" * 100_000 + "\n", '{"version": 1}\n{"step": 1}\n', "\xff\n"])
def test_lines_that_are_no_steps_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match="no journal of a run, or is damaged"):
        Journal(tmp_path / "j", ABOUT)


@pytest.mark.parametrize(
    ("step", "result"),
    [
        ("cut", {"costs": {"parameters": 1}, "dropped": [], "samples": 0}),
        ("choose", {}),
        ("choose", {"plan": {"kept": 1}}),
        ("train", {"diverged": "", "accuracies": "x"}),
        ("dense", {"more": 1}),
    ],
)
def test_results_that_are_none_of_their_step_are_refused(step: str, result: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=f"the result of a step {step} is wrong"):
        check_result(step, result)


def test_results_of_every_kind_are_taken() -> None:
    """Negative twin."""
    costs = {"parameters": 1, "macs": 2, "weight_bytes": 4, "activation_bytes": 8}
    check_result("cut", {"costs": costs, "dropped": ["a"], "samples": 3})
    check_result("choose", {"plan": None})
    check_result("train", {"diverged": "", "accuracies": [0.5, float("nan")]})
    check_result("score", {"a": [0.5, None]})
