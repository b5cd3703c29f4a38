"""Results in the manner of the field: groups by name, and figures."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import UsageError


def pruned() -> graphprune.PruneResult:
    block = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    return graphprune.prune(nn.Sequential(block, nn.Linear(8, 4)), torch.zeros(1, 8), target="channels=50%")


def test_groups_are_found_by_tensor_layer_block_and_name() -> None:
    groups = pruned().groups
    assert [(group.name, group.reason is None) for group in groups["0.2"]] == [("0.0", True), ("0.2", True)]
    assert groups["0.0.weight"] == groups["0.0"] and groups["0"] == (*groups["0.0"][:1], groups["0.2"][1], groups["0.0"][1])
    assert [group.name for group in groups] == [group.name for group in (*groups.prunable, *groups.frozen)]


def test_what_can_be_looked_up_is_in_the_groups_and_nothing_else() -> None:
    groups = pruned().groups
    assert all(name in groups for name in ("0.0.weight", "0.2", "0")) and "0.3" not in groups and 0 not in groups
    assert groups.prunable[0] in groups and pruned().groups.prunable[0] not in groups


def test_an_unknown_name_is_refused_with_near_ones() -> None:
    groups = pruned().groups
    with pytest.raises(UsageError, match=r"named '0\.3'; did you mean"):
        groups["0.3"]
    with pytest.raises(UsageError, match="known are, among others"):
        groups["zzzz"]


def test_the_groups_of_a_program_are_those_of_its_constraints() -> None:
    program = graphprune.capture(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.zeros(1, 4))
    assert [group.name for group in graphprune.channel_groups(program).prunable] == ["0"]
    assert graphprune.channel_groups(program.with_(exclude=("0",))).prunable == ()


def test_a_figure_shows_the_widths_before_and_after() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    result = pruned()
    figure = result.plot()
    (axes,) = figure.axes
    before, after = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(result.report.widths)
    assert list(zip(before, after, strict=True)) == list(result.report.widths.values())
    _, mine = pyplot.subplots()
    assert result.plot(mine) is mine.figure and mine.containers
    pyplot.close("all")


def test_a_figure_without_matplotlib_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="pip install"):
        pruned().plot()


def test_a_result_prints_as_what_was_achieved_and_proved() -> None:
    """In few lines: its fields, as a dataclass prints them, fill screens."""
    result = pruned()
    lines = str(result).splitlines()
    assert lines[0] == "Sequential, pruned: 2 of 2 groups are narrower."
    after = result.report.after.parameters
    assert lines[2].split() == ["parameters", "588", str(after), f"{after / 588:.1%}"]
    assert lines[-1].startswith("Verified against the masked original") and len(lines) == 8
    assert "0.0.weight" not in str(result.plan) and "macs" not in str(result.plan.target)


def test_what_was_pruned_in_parts_or_not_proved_says_so() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    result = graphprune.prune(nn.Sequential(model, nn.ReLU()), torch.zeros(1, 8), scopes="0", verify=False)
    assert repr(result).splitlines()[0] == "Sequential, pruned in 0: 1 of 1 groups are narrower."
    assert repr(result).endswith("Not verified.")


def test_groups_print_as_how_many_there_are() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    groups = graphprune.channel_groups(graphprune.capture(model, torch.zeros(1, 8)))
    assert repr(groups) == f"Groups: 1 can be pruned (0 of 32 units), {len(groups.frozen)} stay."


def test_a_tensor_that_is_used_under_another_name_is_not_called_unused() -> None:
    """As T5's shared embedding, which its encoder has, too."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.spare = nn.Embedding(10, 8), nn.Parameter(torch.zeros(2))
            self.encoder = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 6), nn.Linear(6, 2))
            self.encoder[0].weight = self.shared.weight

        def forward(self, x: torch.Tensor) -> Any:
            return self.encoder(x)

    result = graphprune.prune(Shared(), torch.zeros(1, 3, dtype=torch.int64), target="channels=50%")
    assert result.report.unused == ("spare",)
