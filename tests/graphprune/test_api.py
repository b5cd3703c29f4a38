"""What the public calls take, as first users give it: read as meant, or refused in one sentence that says what to write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import UsageError

X = torch.zeros(1, 8)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize(
    "asked, says",
    [
        ({"exclude": [nn.Linear(2, 2)]}, "exclude takes names, as of model.named_modules(), and was given a Linear"),
        ({"scopes": [nn.Linear(2, 2)]}, "scopes takes names, as of model.named_modules(), and was given a Linear"),
        ({"policy": "heads=whole"}, 'write it as {"heads": "whole"}'),
        ({"target": 0.5}, "Target 0.5 does not say of what; write it as macs=50%"),
        ({"target": {"mac": 0.5}}, "There is no target 'mac'; did you mean 'macs'? Targets: channels, params, macs"),
        ({"criterion": torch.abs}, "Register one of your own with graphprune.criteria.criterion, and give its name"),
        ({"round_to": 8.0}, "round_to=8.0 of select is no whole number of at least 1."),
        ({"min_channels": "2"}, "min_channels='2' of select is no whole number of at least 1."),
        ({"max_ratio": {"0": 0.2}}, "max_ratio={'0': 0.2} of select is no number over 0 and at most 1."),
    ],
)
def test_what_an_option_does_not_take_is_a_sentence(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        graphprune.prune(_model(), X, **asked)
    assert says in str(caught.value)


def test_one_name_may_stand_for_itself() -> None:
    """A text is a sequence of letters, which nobody means."""
    assert graphprune.prune(_model(), X, exclude="0").plan.kept == graphprune.prune(_model(), X, exclude=["0"]).plan.kept
    assert graphprune.capture(nn.Sequential(_model(), nn.Linear(4, 4)), X, scopes="0").scopes[0].path == "0"
    groups = graphprune.channel_groups(graphprune.capture(_model(), X).under(exclude="0"))
    assert [group.name for group in groups.prunable] == ["2"]
