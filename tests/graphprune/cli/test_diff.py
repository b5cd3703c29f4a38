"""``graphprune diff``: its exit code, its table and its JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.graphprune.cli.conftest import SOURCE

Cli = Callable[..., Any]


@pytest.fixture
def plans(cli: Cli) -> None:
    for name, share in (("a.json", "50%"), ("b.safetensors", "25%")):
        assert cli("prune", SOURCE, "--input", "1x1x8x8", "--target", f"channels={share}", "-o", name, "-q").code == 0


@pytest.mark.usefixtures("plans")
def test_plans_that_differ_exit_1(cli: Cli) -> None:
    ran = cli("diff", "a.json", "b.safetensors")
    assert ran.code == 1 and ran.err == "" and "They differ on" in ran.out and "only A" in ran.out
    data = cli("diff", "a.json", "b.safetensors", "--json")
    assert data.code == 1 and data.data["same"] is False and data.data["elements"]["b"] < data.data["elements"]["a"]
    assert {"tensor", "axis", "size", "both", "only_a", "only_b", "jaccard", "alike"} == set(data.data["axes"][0])


@pytest.mark.usefixtures("plans")
def test_plans_that_agree_exit_0(cli: Cli) -> None:
    ran = cli("diff", "b.safetensors", "b.safetensors")
    assert ran.code == 0 and "They keep the same" in ran.out
    assert cli("diff", "a.json", "a.json", "--json").data["same"] is True


def test_what_holds_no_plan_is_refused(refused: Callable[..., str], folder: Path) -> None:
    (folder / "noise.json").write_text("{}")
    assert "noise.json is no valid plan" in refused("diff", "noise.json", "noise.json")
    assert "Cannot read the plan" in refused("diff", "nowhere.json", "noise.json")
