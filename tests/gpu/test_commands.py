"""Commands compute on the device that is asked for, find there what they find on the CPU, and write files that load anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import graphprune
from tests.gpu.devices import everywhere, on
from tests.graphprune.cli.conftest import cli as cli
from tests.graphprune.cli.conftest import folder as folder

Cli = Callable[..., Any]

MODEL = ("graphprune.cli.digits:small_cnn", "--input", "1x1x8x8")
DATA = ("--calibrate", "digits.npz", "--samples", "64")


@pytest.fixture(autouse=True)
def _files(folder: Path) -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(96, 1, 8, 8)).astype(np.float32), draw.integers(0, 10, 96)
    np.savez(folder / "digits.npz", x=x, y=y)


@pytest.fixture(autouse=True)
def _used(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test has a device for has to use its memory."""
    if request.getfixturevalue("device") != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield
    assert torch.cuda.max_memory_allocated() > before


def _scores(ran: Any) -> list[float]:
    assert ran.code == 0, ran.err
    return [score for one in ran.data["criteria"].values() for group in one.values() for score in group["scores"]]


@everywhere
@pytest.mark.parametrize("criterion", ["l2", "taylor", "variance", "fpgm"])
def test_scores_are_those_of_the_cpu(criterion: str, device: str, cli: Cli) -> None:
    how = ("score", *MODEL, *DATA, "--criterion", criterion, "--json")
    ours, theirs = _scores(cli(*how, "--device", device)), _scores(cli(*how))
    assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-3 * max(theirs))


@everywhere
@pytest.mark.parametrize("out", ["slim.safetensors", "slim.pt2"])
def test_prune_compensates_measures_and_writes_for_the_cpu(out: str, device: str, cli: Cli) -> None:
    more = ("--compensate", "least-squares", "--recalibrate", "--data", "digits.npz", "--target", "channels=60%")
    ran = cli("prune", *MODEL, *DATA, *more, "-o", out, "--plan", "plan.json", "--device", device, "--json")
    assert ran.code == 0, ran.err
    assert ran.data["verification"]["passed"] and ran.data["accuracy"]["images"] == 96
    loaded = torch.export.load(out).module() if out.endswith(".pt2") else graphprune.load(out)
    assert on(loaded, "cpu") and loaded(torch.zeros(1, 1, 8, 8)).device.type == "cpu"


@everywhere
def test_a_plan_of_the_cpu_is_applied_and_verified(device: str, cli: Cli) -> None:
    assert cli("prune", *MODEL, "-o", "plan.json", "--quiet").code == 0
    where = ("--device", device, "--json", "--data", "digits.npz")
    ran = cli("apply", MODEL[0], "plan.json", *MODEL[1:], *where, "-o", "slim.safetensors")
    assert ran.code == 0 and ran.data["verification"]["passed"], ran.err
    ran = cli("verify", MODEL[0], "slim.safetensors", *MODEL[1:], *where)
    assert ran.code == 0 and ran.data["verification"]["passed"] and ran.data["accuracy"]["images"] == 96, ran.err


@everywhere
def test_each_group_is_cut_there(device: str, cli: Cli) -> None:
    ran = cli("sensitivity", *MODEL, "--data", "digits.npz", "--ratio", "0.5", "--device", device, "-o", "points.json", "--json")
    assert ran.code == 0, ran.err
    points = json.loads(Path("points.json").read_text())["points"]
    assert points and all(0 <= point["value"] <= 1 for point in points)


@everywhere
def test_the_front_is_that_of_the_cpu(device: str, cli: Cli) -> None:
    fronts = []
    for where in (device, "cpu"):
        ran = cli("sweep", *MODEL, "--points", "3", "--device", where, "-o", f"{where}-front.json", "--json")
        assert ran.code == 0, ran.err
        fronts.append([point["shares"]["macs"] for point in ran.data["points"]])
    assert fronts[0] == pytest.approx(fronts[1], rel=0.02)
