"""Widths by hand: what is named keeps just this, what is coupled with it goes along, and targets are met by the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune
from graphprune.channels.levers import Lever, Levers
from graphprune.errors import TargetError, UsageError
from graphprune.passes.selection.select import SelectPass
from graphprune.pipeline.text import format_pipeline, parse_pipeline
from tests.passes.selection.asking import ask, small

PASSES = ["select", "knapsack", "greedy", "threshold"]


class Coupled(nn.Module):
    """Two layers that are added, between a layer alone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(6, 20), nn.BatchNorm1d(20)
        self.body = nn.ModuleList([nn.Linear(20, 30), nn.Linear(20, 30)])
        self.head = nn.Linear(30, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        y: torch.Tensor = self.head((self.body[0](x) + self.body[1](x)).relu())
        return y


def widths(keep: dict[str, Any], **how: Any) -> dict[str, int]:
    torch.manual_seed(0)
    result = graphprune.prune(Coupled(), torch.zeros(1, 6), keep=keep, **how)
    return {name: after for name, (_, after) in result.report.widths.items()}


@pytest.mark.parametrize(
    ("keep", "stem", "body"),
    [
        ({"stem": "50%"}, 10, 30),
        ({"stem": 0.25, "body.1": 12}, 5, 12),
        ({"stem": "25 %"}, 5, 30),
        ({"stem.weight": 7}, 7, 30),
        ({"body": "1%"}, 20, 1),  # one unit at least
        ({"*": "50%", "body.*": "90%"}, 10, 27),  # the later counts
        ({"body.*": "90%", "*": "50%"}, 10, 15),
        ({"body.0": 12, "body.1": 13}, 20, 13),  # they are one group
        ({"stem": "100%"}, 20, 30),
        ({"stem": "47.4%"}, 9, 30),  # of 9.48
        ({"*": 25, "stem": 5}, 5, 25),  # more than the stem has, of which it is not said in the end
        ({"stem": 1, "body": "1"}, 1, 1),  # a channel, as 2 are two
        ({"stem": 1.0, "body": "1.0"}, 20, 30),  # a share
    ],
)
def test_layers_keep_what_is_said_and_the_others_all(keep: dict[str, Any], stem: int, body: int) -> None:
    assert widths(keep) == {"stem": stem, "body.0": body}


@pytest.mark.parametrize("select", PASSES)
def test_targets_are_met_by_the_others(select: str) -> None:
    """And by no more than it takes: one unit more of them would be too much."""
    found = widths({"stem": 15}, target="macs=50%", select=select)
    whole, stem, body = 6 * 20 + 2 * 20 * 30 + 30 * 4, 6 * 15, 2 * 15 + 4
    assert found["stem"] == 15
    assert stem + found["body.0"] * body <= whole / 2 < stem + (found["body.0"] + 1) * body


def test_the_most_important_units_stay() -> None:
    model = Coupled().double()
    with torch.no_grad():
        model.stem.weight[::2] *= 100
    result = graphprune.prune(model, torch.zeros(1, 6, dtype=torch.float64), keep={"stem": "50%"})
    assert torch.equal(result.model.get_parameter("stem.weight"), model.stem.weight[::2])


def test_what_is_kept_overrides_floors_and_is_rounded_up_to_multiples() -> None:
    assert widths({"stem": 3}, min_channels=5, max_ratio=0.5, target="channels=99%")["stem"] == 3
    assert widths({"stem": 9, "body": 16}, round_to=8) == {"stem": 16, "body.0": 16}
    assert widths({"stem": 18}, round_to=8)["stem"] == 20  # no multiple fits


def test_a_number_of_channels_stays_one_as_text() -> None:
    """A plan's pipeline is its record: one channel is not read as all."""
    kept: list[dict[str, Any]] = [{"stem": 1}, {"stem": "1"}, {"stem": 1.0}, {"stem": "1.0"}, {"stem[0-9]": 0.5, "*=": "50%"}]
    for keep in kept:
        (again,) = parse_pipeline(format_pipeline([SelectPass(keep=keep)]))
        assert isinstance(again, SelectPass) and repr(again.keep) == repr(keep)


def test_the_plan_says_what_was_asked_for() -> None:
    plan = graphprune.prune(Coupled(), torch.zeros(1, 6), keep={"stem": 0.5, "body": 12}).plan
    assert plan.keep == {"stem": "0.5", "body": "12"} and plan.target == {}
    assert graphprune.prune(Coupled(), torch.zeros(1, 6)).plan.keep == {}


def bound(steps: str, *levers: Lever, fits: Any = lambda numbers: True) -> dict[str, int]:
    """Widths after a pipeline where configs state them by levers; stem is group 0, and body group 1."""
    program = graphprune.capture(Coupled(), torch.zeros(1, 6)).with_(levers=Levers(levers, fits))
    return {
        name: after
        for name, (_, after) in graphprune.run_pipeline(program, f"channels,score,{steps},rewrite").report.widths.items()
    }


BOTH, STEM, BODY = Lever((0, 1), 10, {("width",): 10}), Lever((0,), 20, {("stem",): 20}), Lever((1,), 30, {("body",): 30})


def test_what_is_on_one_lever_goes_along() -> None:
    """At the first step that holds it, also in multiples; and of two for one lever the later counts."""
    assert bound("select{keep=[stem=50%]}", BOTH) == {"stem": 10, "body.0": 15}
    assert bound("select{keep=[stem=9]}", BOTH) == {"stem": 10, "body.0": 15}
    assert bound("select{keep=[stem=9],round_to=6}", BOTH) == {"stem": 12, "body.0": 18}
    assert bound("select{keep=[body=30%;stem=50%],max_ratio=0.3}", BOTH) == {"stem": 10, "body.0": 15}


def test_other_levers_meet_the_target_and_what_none_moves_stays_whole() -> None:
    found = bound("select{channels=50%,keep=[stem=15]}", STEM, BODY)
    assert found == {"stem": 15, "body.0": 10}
    assert bound('select{keep=["*"=50%]}', STEM) == {"stem": 10, "body.0": 30}
    with pytest.raises(UsageError, match=r"names body\.0, which no number of the config makes narrower"):
        bound("select{keep=[body=50%]}", STEM)


def test_numbers_of_a_config_that_do_not_go_together_are_refused() -> None:
    def divides(numbers: Any) -> bool:
        return bool(numbers[("body",)] % numbers[("stem",)] == 0)

    with pytest.raises(UsageError, match="No model has a config of the widths that keep leaves: stem 7, body 30"):
        bound("select{keep=[stem=7]}", STEM, BODY, fits=divides)
    assert bound("select{channels=60%,keep=[stem=7]}", STEM, BODY, fits=divides) == {"stem": 7, "body.0": 21}


def test_channels_of_units_of_several() -> None:
    """Heads of two channels: as many as hold what is asked for."""
    model = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True).eval()
    found = graphprune.prune(model, torch.zeros(2, 5, 8), keep={"self_attn": 5}).report.widths
    assert [after for name, (_, after) in found.items() if "self_attn" in name] == [3]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"stem"}, "is no mapping"),
        ("stem=50%", "is no mapping"),
        ({"norm": 0.5}, "keep='norm' names no layer that makes channels. Name one that makes those it has, such as stem."),
        ({"stam": 0.5}, "keep='stam' matches no layer that makes channels; did you mean 'stem'"),
        ({"head": 0.5}, "keep='head' names nothing that can be pruned: it reaches the model's output"),
        *(({"stem": amount}, f"says {amount} of the 20 channels of stem") for amount in (0, -1, 21, 2.5, "120%", "half", "nan")),
    ],
)
def test_what_cannot_be_kept_is_refused(keep: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        widths(keep)
    assert message in str(caught.value)


def test_a_target_out_of_reach_beside_what_is_kept_is_refused() -> None:
    with pytest.raises(TargetError, match="Loosen the target, exclude, keep"):
        widths({"*": "100%"}, target="macs=90%")


def test_keep_is_enough_without_a_target_and_one_of_them_is_needed() -> None:
    question = ask(small(), "select{keep=[*=50%]}")
    assert not question.bounds.limits and np.array_equal(
        question.rounded(question.groups.widths), (question.groups.widths + 1) // 2
    )
    with pytest.raises(UsageError, match="needs a target"):
        ask(small(), "select")


@pytest.mark.parametrize("target", [{}, ""])
def test_an_empty_target_is_no_missing_one(target: Any) -> None:
    with pytest.raises(UsageError, match=r"needs a target|has no '='"):
        graphprune.prune(Coupled(), torch.zeros(1, 6), target=target)
