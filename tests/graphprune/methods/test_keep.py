"""Methods that end at a target leave some layers as wide as is said; cuts on the way go as far with these as with the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from graphprune.errors import RunError, UsageError
from graphprune.methods import METHODS, MethodResult
from graphprune.methods.budget import Budget
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.select import SelectPass
from graphprune.runs.bench import Bench
from graphprune.runs.loop import Loop
from graphprune.runs.task import Task
from tests.loops import INPUT, DigitsLoop, Residual


def _run(name: str, folder: Path | None = None, **options: Any) -> MethodResult:
    torch.manual_seed(0)
    loop = DigitsLoop(4, count=200)
    how: dict[str, Any] = {"train": loop.train, "evaluate": loop.evaluate, "data": loop.data, "epochs": loop.epochs}
    return METHODS[name](Residual(32, 64), torch.zeros(INPUT), folder=folder, **how, **options)


def _widths(result: MethodResult) -> list[tuple[int, int]]:
    return [(row.widths["stem"], row.widths["conv1"]) for row in result.rounds]


def test_cuts_bring_what_is_said_a_part_of_the_way_and_the_others_stay_whole() -> None:
    result = _run("iterative", keep={"stem": "25%"}, rounds=3, schedule="linear", final_epochs=0)
    assert _widths(result) == [(32, 64), (24, 64), (16, 64), (8, 64)]
    assert result.pruned.report.verification is not None and result.pruned.report.verification.passed
    steep = _run("iterative", keep={"stem": 8}, rounds=3, schedule="cubic", final_epochs=0)
    assert [stem for stem, _ in _widths(steep)] == [32, 15, 8, 8]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iterative", {"rounds": 2}),
        ("iterative", {"rounds": 2, "select": "greedy", "max_ratio": 0.6}),
        ("sp-lamp", {"stages": 2, "stage_epochs": 0, "final_epochs": 0, "round_to": 4}),
        ("adaptive", {"rounds": 2}),
        ("growing", {"trained": True, "latest": 0.5}),
    ],
)
def test_targets_are_met_by_the_others(name: str, options: dict[str, Any]) -> None:
    result = _run(name, target="macs=50%", keep={"stem": "100%", "stem.weight": 24}, **options)
    assert _widths(result)[-1][0] == 24
    assert result.pruned.report.after.macs <= 0.5 * result.pruned.report.before.macs
    assert _widths(result)[-1][1] > 1


def test_a_run_goes_on_with_the_same_widths_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"rounds": 2, "final_epochs": 0}
    first = _run("iterative", tmp_path / "run", keep={"conv1": 1}, **options)
    assert _widths(first) == _widths(_run("iterative", tmp_path / "run", keep={"conv1": 1}, **options))
    assert _widths(first)[-1] == (32, 1)  # and rounds after it is that narrow cut nothing more
    with pytest.raises(RunError, match="options"):
        _run("iterative", tmp_path / "run", keep={"conv1": 2}, **options)


def test_nothing_is_trained_before_it_is_known_that_layers_can_be_so_wide() -> None:
    for name in ("iterative", "sp-lamp", "adaptive", "growing"):
        with pytest.raises(UsageError, match="says 65 of the 64 channels of conv1"):
            _run(name, target="macs=50%", keep={"conv1": 65}, trained=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("class-aware", {}, "class-aware: keep: no option of this method; adaptive, growing, iterative, sp-lamp take it"),
        ("laasp", {}, "laasp: keep: no option of this method"),
        ("adaptive", {}, "keep goes with a target: without one the accuracy alone decides"),
        ("iterative", {"keep": {}, "target": None}, "there is nothing to reach"),
        ("iterative", {"keep": "stem=50%"}, "what stays of some layers is a table"),
        ("iterative", {"keep": {"stem": True}}, "what stays of 'stem' is a share, as 30%, or a number of channels"),
    ],
)
def test_what_methods_do_not_reach_or_read_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _run(name, **{"keep": {"stem": "50%"}, **options})


class _Halves(nn.Module):
    """Two groups of one layer, the second of which is coupled with another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.other = nn.Linear(8, 24), nn.Linear(8, 16)
        self.first, self.second = nn.Linear(8, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.both(x).split([8, 16], 1)
        scores: Tensor = self.first(functional.relu(y)) + self.second(functional.relu(z + self.other(x)))
        return scores


@pytest.mark.parametrize(
    ("keep", "wanted"),
    [
        ({"other": "50%"}, {"both#2": 12}),
        ({"both": "50%"}, {"both": 6, "both#2": 12}),
        ({"both": "100%", "other": "50%"}, {"both": 8, "both#2": 12}),
    ],
)
def test_groups_of_one_layer_are_told_apart(keep: dict[str, str], wanted: dict[str, int]) -> None:
    """The layer's name would name both."""
    loop = DigitsLoop(1, count=200)
    bench = Bench(Task(_Halves(), torch.zeros(2, 8), Loop(loop.train, loop.evaluate)), {})
    options = Budget.of(bench, None, keep).options(0.5, bench.dense(), bench)
    assert options == {"keep": wanted}
    stage = bench.prune(bench.dense(), [ScorePass(), SelectPass(**options)])
    assert list(bench.widths(stage).values()) == list(wanted.values()) or "both" not in wanted
    assert bench.widths(stage)["both#2"] == 12
