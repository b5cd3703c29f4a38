"""Policies: named choices with overrides for one site, and refusals of what does not exist."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import UsageError
from graphprune.pipeline.policy import CHOICES, Policy
from tests.checking import analyse
from tests.zoo.case import conv

IMAGE = torch.zeros(1, 3, 8, 8)


def test_every_policy_has_its_first_choice_as_default() -> None:
    policy = Policy()
    assert all(policy.choose(name, "anywhere") == choices[0] for name, choices in CHOICES.items())


def test_a_site_overrides_by_node_or_module_path() -> None:
    policy = Policy(sites={"conv_groups@layer3.*": "whole"})
    assert policy.choose("conv_groups", "layer3_0_conv", "layer3.0.conv") == "whole"
    assert policy.choose("conv_groups", "layer2_0_conv", "layer2.0.conv") == "within"
    assert policy.choose("norm_groups", "x", "layer3.0.norm") == "within"


def test_the_first_site_that_matches_wins() -> None:
    policy = Policy(sites={"heads@a": "head_dim", "heads@*": "whole"}, heads="head_dim")
    assert policy.choose("heads", "a") == "head_dim" and policy.choose("heads", "b") == "whole"


@pytest.mark.parametrize(
    "options", [{"heads": "some"}, {"sites": {"heads@x": "some"}}, {"sites": {"nothing@x": "whole"}}, {"statistics": ""}]
)
def test_unknown_choices_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is not known; choose from"):
        Policy(**options)


@pytest.mark.parametrize("policy", [{"grouping": "whole"}, {"conv_groups": "half"}, {"conv_groups@x": "half"}, {"sites": "whole"}])
def test_unknown_policies_are_refused_by_the_public_call(policy: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        graphprune.prune(nn.Conv2d(3, 4, 1), IMAGE, policy=policy)


def test_one_site_only() -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 8, groups=4), conv(8, 12), conv(12, 12, groups=4), conv(12, 2))
    found = analyse(model, IMAGE, policy={"conv_groups@3": "whole"})
    assert [group.size for group in found.groups.prunable] == [2, 2, 4]


def test_a_policy_is_part_of_the_plan_and_carried_out_from_it() -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 8, groups=4), conv(8, 2))
    result = graphprune.prune(model, IMAGE, target="channels=50%", policy={"conv_groups": "whole"})
    assert result.plan.policy == {"conv_groups": "whole"} and result.model.get_submodule("1").groups == 2
    again = graphprune.apply_plan(model, IMAGE, result.plan)
    assert again.model.code == result.model.code
