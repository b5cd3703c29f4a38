"""Plans edited by hand: closed over couplings, carried out and proved, or refused with the reason and nothing changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.errors import PlanError, UsageError
from graphprune.plans.editor import PlanEditor
from graphprune.plans.plan import Plan
from tests.checking import analyse


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.body, self.out = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        y: Tensor = self.out(x + self.body(x).relu())
        return y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 96), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        y: Tensor = self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


IMAGE = torch.zeros(1, 3, 4, 4)


def editor(model: nn.Module, inputs: Any, share: float = 0.5) -> PlanEditor:
    return graphprune.prune(model, inputs, target=f"channels={share}").edit()


def test_an_edit_of_one_layer_is_one_of_all_that_it_is_coupled_with() -> None:
    model = Residual()
    edited = editor(model, IMAGE)
    edited["body"] = [5, 0, 3]
    for place in ("stem", "norm", "norm.running_mean", "body.weight[1]", "out.weight[1]"):
        assert edited[place] == [0, 3, 5]
    result = graphprune.apply_plan(model, IMAGE, edited.plan)
    assert result.report.verification is not None and result.report.verification.passed
    torch.testing.assert_close(result.model.get_parameter("out.weight"), model.out.weight[:, [0, 3, 5]])


def test_an_edited_plan_is_the_one_that_the_same_choice_makes() -> None:
    """Whatever the plan was before: against the plan of exactly these units."""
    found = analyse(Residual(), IMAGE)
    edited = PlanEditor(found.random_plan(1), found.groups)
    other = PlanEditor(found.random_plan(2), found.groups)
    for one in (edited, other):
        one["stem"] = [1, 2]
    assert edited.plan.kept == other.plan.kept and edited.plan.model == found.random_plan(1).model
    assert Plan.model_validate_json(edited.plan.model_dump_json()) == edited.plan


def test_dropping_and_restoring_are_edits_too() -> None:
    edited = editor(Residual(), IMAGE, share=1.0)
    edited.drop("stem", [1, 4])
    edited.drop("norm", [0])
    assert edited["body"] == [2, 3, 5]
    edited.restore("out.weight[1]")
    assert edited["body"] == [0, 1, 2, 3, 4, 5] and edited.plan.kept == {}


def test_the_plan_that_is_edited_stays_as_it_was() -> None:
    result = graphprune.prune(Residual(), IMAGE, target="channels=50%")
    before = result.plan.model_dump()
    edited = result.edit()
    edited["stem"] = [2]
    assert result.plan.model_dump() == before and result.edit()["stem"] != [2]
    assert edited.plan.pipeline == "" and not edited.plan.target and not edited.plan.achieved  # nobody met a target


def test_a_head_goes_with_all_its_positions_or_not_at_all() -> None:
    model, inputs = Attention(), torch.zeros(1, 5, 16)
    edited = editor(model, inputs, share=1.0)
    with pytest.raises(PlanError, match=r"Indices \[0, 1, 2, 3\] and more of out\.weight\[1\] are one unit"):
        edited["out.weight[1]"] = range(1, 32)
    edited["out.weight[1]"] = range(8, 24)
    kept = np.concatenate([start + np.arange(8, 24) for start in (0, 32, 64)]).tolist()
    assert edited["qkv"] == kept
    assert graphprune.apply_plan(model, inputs, edited.plan).report.widths["qkv"] == (4, 2)


@pytest.mark.parametrize(
    ("place", "indices", "error", "message"),
    [
        ("out", [0], PlanError, "out cannot be cut: out must stay, because it reaches the model's output"),
        ("stem.weight[1]", [0, 1], PlanError, "must stay, because convolved over channels that cannot shrink"),
        ("stem", [], PlanError, "Nothing would be left of stem"),
        ("stem", [6], PlanError, "stem has no index 6: it has 6"),
        ("stem", [-1], PlanError, "stem has no index -1"),
        ("stme", [0], UsageError, "no tensor, named 'stme'"),
        ("stem.weight[2]", [0], UsageError, "Axis 2 of stem.weight, of shape [6, 3, 1, 1], has no channels"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(place: str, indices: list[int], error: type, message: str) -> None:
    edited = editor(Residual(), IMAGE)
    before = edited.plan.kept
    with pytest.raises(error) as caught:
        edited[place] = indices
    assert message in str(caught.value) and edited.plan.kept == before


def test_a_plan_of_another_model_is_not_edited() -> None:
    other = graphprune.prune(Attention(), torch.zeros(1, 5, 16), target="channels=50%").plan
    with pytest.raises(PlanError):
        other.edit(graphprune.channel_groups(graphprune.capture(Residual(), IMAGE)))
