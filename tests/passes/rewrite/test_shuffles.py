"""Pruned shuffles: whatever channels are kept, readers that go by position find theirs."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import graphprune
from graphprune.channels.groups import Kept
from graphprune.plans.plan import make_plan
from tests.checking import analyse
from tests.zoo.case import conv, net


def cut(y: Tensor) -> Tensor:
    return torch.cat([y[:, 2:], y[:, :2]], 1)


def added(y: Tensor) -> Tensor:
    y = y.clone()
    y[:, :2] += 1.0
    return y


@pytest.mark.parametrize("by_position", [cut, added])
@pytest.mark.parametrize("views", [False, True])
def test_readers_by_position_follow_any_choice(by_position: Any, views: bool) -> None:
    """Channels that stand in order already are shuffled no more, and are cut where the shuffled ones would be."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        b, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w) if views else F.channel_shuffle(y, 2)
        return self.b(by_position(y))

    model, x = net(forward, a=conv(3, 4), b=conv(4, 2)), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    found = analyse(model, x)
    units = [group.units for group in found.groups.prunable]
    assert sum(map(len, units)) == 4
    unmoved = 0
    for choice in product([False, True], repeat=4):
        keep = torch.ones(found.groups.unit_count, dtype=torch.bool).numpy()
        keep[[unit for group in units for unit in group]] = choice
        if all(keep[group].any() for group in units):
            plan = make_plan(found.program.module, found.groups, Kept(found.groups, keep))
            result = graphprune.apply_plan(model, x, plan)
            assert result.report.verification is not None and result.report.verification.passed
            unmoved += not any(node.target is torch.index_select for node in result.graph.graph.nodes)
    assert unmoved > 1
