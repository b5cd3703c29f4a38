"""``graphprune report``: what it writes, says and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.graphprune.cli.conftest import SOURCE

Cli = Callable[..., Any]


@pytest.fixture
def slim(cli: Cli, folder: Path) -> Path:
    cli("prune", SOURCE, "--input", "1x1x8x8", "--target", "macs=50%", "-o", "slim.safetensors", "--plan", "plan.json", "-q")
    return folder / "slim.safetensors"


def test_a_slim_model_is_reported_with_what_is_missing(cli: Cli, slim: Path, folder: Path) -> None:
    assert "coupling" in cli("report", "slim.safetensors", "-o", "r.html", "--json").data["missing"]  # its original is code
    ran = cli("report", "slim.safetensors", "--trust-pickle", "-o", "r.html", "--json")
    assert ran.code == 0
    assert ran.data["sections"] == ["summary", "widths", "coupling", "importance", "latency", "again"]
    assert set(ran.data["missing"]) == {"summary", "importance", "latency"}
    assert ran.data["bytes"] == (folder / "r.html").stat().st_size


def test_what_was_to_stay_is_told(cli: Cli, slim: Path, folder: Path) -> None:
    assert "what was to stay" not in _page(cli, folder, "plan.json")
    cli("prune", SOURCE, "--input", "1x1x8x8", "--keep", "block.conv1=37.5%", "-o", "kept.json", "-q")
    page = _page(cli, folder, "kept.json")
    assert "what was to stay" in page and "37.5%" in page


def _page(cli: Cli, folder: Path, what: str) -> str:
    assert cli("report", what, "--against", SOURCE, "--input", "1x1x8x8", "-o", "r.html").code == 0
    return (folder / "r.html").read_text()


def test_what_several_sections_lack_is_said_once(cli: Cli, slim: Path) -> None:
    said = cli("report", "plan.json", "-o", "r.html").out
    assert said.count("does not know the original model") == 1 and "Summary, Coupling, Importance: The report" in said


def test_nothing_is_missing_where_all_is_given(cli: Cli, slim: Path, folder: Path) -> None:
    import numpy as np

    np.savez("d.npz", x=np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32), y=np.arange(8))
    assert cli("profile", SOURCE, "--input", "1x1x8x8", "--samples", "8", "-o", "latency.json", "-q").code == 0
    ran = cli(
        "report", "slim.safetensors", "--against", SOURCE, "--data", "d.npz", "--latency", "latency.json", "-o", "r.html", "--json"
    )
    assert ran.data["missing"] == {}


def test_a_criterion_that_needs_data_says_so_or_gets_them(cli: Cli, slim: Path) -> None:
    given = ("report", "slim.safetensors", "--against", SOURCE, "--criterion", "apoz", "-o", "r.html", "--json")
    assert "apoz" in cli(*given).data["missing"]["importance"][0]
    assert "importance" not in cli(*given, "--calibrate", "synthetic").data["missing"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone does not exist"),
        (["slim.safetensors", "-o", "r.pdf"], "End r.pdf in .html"),
        (["slim.safetensors", "--against", "gone:model"], "gone"),
        (["plan.json", "--latency", "plan.json"], "no valid latency table"),
    ],
)
def test_bad_input_is_refused_and_writes_nothing(cli: Cli, slim: Path, folder: Path, arguments: list[str], message: str) -> None:
    ran = cli("report", *arguments)
    assert ran.code == 2 and message in ran.err
    assert not [path.name for path in folder.iterdir() if path.suffix in (".html", ".pdf")]


def test_the_subject_is_not_written_over(cli: Cli, slim: Path, folder: Path) -> None:
    (folder / "plan.html").write_text("kept")
    ran = cli("report", "plan.json", "--latency", "plan.html", "-o", "plan.html")
    assert ran.code == 2 and (folder / "plan.html").read_text() == "kept"


def test_a_folder_of_runs_is_compared(cli: Cli, folder: Path) -> None:
    row = {"number": 0, "status": "dense", "accuracy": 0.5, "params": 4, "macs": 4, "epochs": 0}
    for name in ("one", "two"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "rounds.jsonl").write_text(json.dumps(row) + "\n")
    assert cli("report", "runs", "--json").data["sections"] == ["runs", "again"]
    assert (folder / "report.html").is_file()
