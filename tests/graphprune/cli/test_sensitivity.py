"""``graphprune sensitivity``: its points, its picture, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphprune.cli.conftest import SOURCE

Cli = Callable[..., Any]
GIVEN = ("sensitivity", SOURCE, "--input", "1x1x8x8", "--data", "d.npz", "-o", "s.json", "--ratio", "0.5")


@pytest.fixture
def images(folder: Path) -> None:
    np.savez("d.npz", x=np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32), y=np.arange(8))


@pytest.mark.usefixtures("images")
def test_each_group_is_measured_and_drawn(cli: Cli) -> None:
    data = cli(*GIVEN, "--plot", "s.svg", "--json").data
    assert [point["group"] for point in data["points"]] == ["stem", "block.conv1", "wide.pointwise", "narrow"]
    assert all(point["kept"] in (16, 24, 8) and 0 <= point["value"] <= 1 for point in data["points"])
    assert json.loads(Path("s.json").read_text())["points"] == data["points"] and Path("s.svg").stat().st_size > 0


@pytest.mark.usefixtures("images")
def test_a_run_goes_on_from_its_file_and_another_is_refused(cli: Cli) -> None:
    cli(*GIVEN, "--group", "narrow")
    known = json.loads(Path("s.json").read_text())
    names = {point["group"] for point in known["points"]}
    assert "narrow" in names and "block.conv1" not in names
    known["points"][0]["value"] = 0.5  # what is known is not measured again
    Path("s.json").write_text(json.dumps(known))
    ran = cli(*GIVEN)
    found = json.loads(Path("s.json").read_text())["points"]
    assert found[: len(names)] == known["points"] and {point["group"] for point in found} > names
    assert "-50%" in ran.out and "points written to s.json" in ran.out
    assert cli(*GIVEN, "--criterion", "l1").code == 2
