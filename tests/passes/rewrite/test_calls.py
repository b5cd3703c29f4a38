"""Positions, bounds with steps and repetitions: random plans are exact, and the constant that the call restates has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.checking import analyse, check_plan
from tests.zoo.case import conv, net

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
OTHER = torch.randn(3, 3, 8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
Body = Callable[[Any, Tensor], Tensor]


def _written(y: Tensor, index: Any, value: Any) -> Tensor:
    y = y.clone()
    y[index] = value
    return y


# Each body maps the 8 channels of a convolution to 8 channels, and reads or writes some of them by position.
BODIES: dict[str, tuple[Body, int]] = {
    "a position": (lambda s, y: y * y[:, 6, None], 7),
    "a position from the end": (lambda s, y: y + y[:, -3].unsqueeze(1), 7),
    "a position after dots": (lambda s, y: y + y[..., 5, :, :].unsqueeze(1), 7),
    "a position computed from the width": (lambda s, y: y + y[:, y.shape[1] // 2].unsqueeze(1), 7),
    "two positions": (lambda s, y: y + (y[:, 0] * y[:, 7]).unsqueeze(1), 6),
    "select method": (lambda s, y: y + y.select(1, 4).unsqueeze(1), 7),
    "select function": (lambda s, y: y + torch.select(y, dim=-3, index=-2).unsqueeze(1), 7),
    "select keyword": (lambda s, y: y + y.select(dim=1, index=3).unsqueeze(1), 7),
    "positions of other axes": (lambda s, y: y + y[:, :, 0, None, -1:], 8),
    "written at a position": (lambda s, y: _written(y, (slice(None), 5), 0.5), 7),
    "written into a range": (lambda s, y: _written(y, (slice(None), slice(2, 6)), y[:, 2:6] * 2), 8),
    "written behind dots": (lambda s, y: _written(y, (Ellipsis, slice(None, 3), slice(None), 0), 1.5), 8),
    "a step": (lambda s, y: torch.cat([y[:, ::2], y[:, 1::2]], 1), 4),
    "a step from a later start": (lambda s, y: torch.cat([y[:, 3::2], y[:, 2::2], y[:, :2]], 1), 4),
    "a step to an end": (lambda s, y: torch.cat([y[:, 1:6:2], y[:, 2:8:2], y[:, :2]], 1), 4),
    "a step of three": (lambda s, y: torch.cat([y[:, 2::3], y[:, ::3], y[:, 1:8:3]], 1), 3),
    "steps of two sizes": (lambda s, y: torch.cat([y[:, ::4], y[:, 2::4], y[:, 1::2]], 1), 2),
    "repeat of an axis of size 1": (lambda s, y: y * y.mean(1, keepdim=True).repeat(1, 8, 1, 1), 8),
    "repeat by a width": (lambda s, y: y + s.bias.view(1, 1, 1, 1).repeat(1, y.shape[1], 1, 1), 8),
    "repeat in one list": (lambda s, y: y + s.bias.repeat([y.size(0), y.size(1), 1, 1]), 8),
    "tile of both": (lambda s, y: y[:, :4].repeat(1, 2, 1, 1) + y, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_calls_follow_what_is_kept_before_them(name: str) -> None:
    """The number of channels that may go (alone or with others) is that of the channels which no position names."""
    body, units = BODIES[name]

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(body(self, F.relu(self.a(x))))

    found = analyse(net(forward, a=conv(3, 8), b=conv(8, 2), bias=nn.Parameter(torch.rand(1))), IMAGE)
    assert sum(group.size for group in found.groups.prunable) == units
    statistics = any(group.statistics for group in found.groups.prunable)
    for seed in range(4):
        zeros = not statistics and not name.startswith("written")
        check_plan(found, found.random_plan(seed), other=OTHER, zeros=zeros, again=seed == 0)


def test_a_position_is_the_number_of_kept_channels_before_it() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(y) + y[:, 5:6]

    def taken(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(y) + y[:, 5].unsqueeze(1)

    for body in (forward, taken):
        found = analyse(net(body, a=conv(3, 8), b=conv(8, 2)), IMAGE)
        plan = found.random_plan(3)
        kept = plan.kept["a.weight"][0]
        assert 5 in kept and kept.index(5) < 5
        slim = check_plan(found, plan, other=OTHER)
        index = next(node.args[1][1] for node in slim.graph.nodes if getattr(node.target, "__name__", "") == "getitem")
        assert (index.start if isinstance(index, slice) else index) == kept.index(5)


def test_bilinear_layers_know_their_widths() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.head(self.pair(self.a(x), self.b(x)))

    model = net(forward, a=nn.Linear(6, 5), b=nn.Linear(6, 4), pair=nn.Bilinear(5, 4, 7), head=nn.Linear(7, 2))
    found = analyse(model, IMAGE)
    assert {group.name: group.size for group in found.groups.prunable} == {"a": 5, "b": 4, "pair": 7}
    slim = check_plan(found, found.random_plan(0), other=OTHER, macs=False)
    pair = slim.pair
    assert tuple(pair.weight.shape) == (pair.out_features, pair.in1_features, pair.in2_features)
    assert pair.out_features < 7 and pair.in1_features < 5 and pair.in2_features < 4
