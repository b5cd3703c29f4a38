"""Structures that compare or mix channels with each other: extrema, softmaxes, convolutions over channels, parts by position."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, case, conv, image, net, vector


@case
def channel_and_spatial_attention() -> Case:
    """CBAM as a whole: a shared bottleneck over pooled channels, then places."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        mean, largest = (self.up(F.relu(self.down(pool))) for pool in (F.adaptive_avg_pool2d(y, 1), F.adaptive_max_pool2d(y, 1)))
        y = y * (mean + largest).sigmoid()
        return self.b(y * self.mix(torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True).values], dim=1)).sigmoid())

    model = net(forward, a=conv(3, 6), down=conv(6, 3, 1), up=conv(3, 6, 1), mix=conv(2, 1, 5), b=conv(6, 2))
    return Case(model, image(), {"a": 6, "down": 3})


@case
def maxout() -> Case:
    """The largest of each three neighbours: they are one unit, and go together."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x).unflatten(1, (4, 3)).max(2)[0])

    return Case(net(forward, a=conv(3, 12), b=conv(4, 2)), image(), {"a": 4})


@case
def largest_of_two_halves() -> Case:
    """Max-feature-map: channel i against channel i + 4."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(torch.stack(self.a(x).chunk(2, 1)).max(0).values)

    return Case(net(forward, a=conv(3, 8), b=conv(4, 2)), image(), {"a": 4})


@case
def which_channel_is_largest() -> Case:
    """Where the indices are read, they must mean what they meant."""

    def forward(self: Any, x: Tensor) -> Any:
        largest, index = self.a(x).max(1, keepdim=True)
        return self.b(torch.cat([largest, index.to(largest.dtype)], 1))

    return Case(net(forward, a=conv(3, 6), b=conv(2, 2)), image(), {}, {("a.weight", 0): "ordered or indexed"})


@case
def softmax_gate_over_channels() -> Case:
    """Channels weighed against each other: by default all of them stay."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x).softmax(1) * self.c(x))

    model = net(forward, a=conv(3, 6), c=conv(3, 6), b=conv(6, 2))
    return Case(model, image(), {}, {("a.weight", 0): "normalised or accumulated along its axis"})


@case
def softmax_over_those_that_are_left() -> Case:
    """Policy ``softmax``: those that are left are weighed against each other."""
    case = softmax_gate_over_channels()
    return Case(case.model, case.inputs, {"a": 6}, policy={"softmax": "allow"})


@case
def log_softmax_over_those_that_are_left() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.log_softmax(self.a(x), dim=1))

    return Case(net(forward, a=conv(3, 6), b=conv(6, 2)), image(), {"a": 6}, policy={"softmax": "allow"})


@case
def softmax_under_frozen_statistics() -> Case:
    """Policy ``statistics`` comes first."""
    case = softmax_gate_over_channels()
    why = {("a.weight", 0): "a softmax over prunable channels"}
    return Case(case.model, case.inputs, {}, why, policy={"softmax": "allow", "statistics": "freeze"})


@case
def convolution_over_channels() -> Case:
    """ECA: each channel is weighed by its neighbours, and would get others; no convolution over fewer gives the same."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        weights = self.eca(y.mean((2, 3)).unsqueeze(1)).sigmoid()
        return self.b(y * weights.view(y.shape[0], -1, 1, 1))

    model = net(forward, a=conv(3, 6), eca=nn.Conv1d(1, 1, 3, padding=1, bias=False), b=conv(6, 2))
    return Case(model, image(), {}, {("a.weight", 0): "its extent in space or batch cannot shrink"})


@case
def parts_by_position() -> Case:
    """All positions of an axis, each for a use of its own: Python holds as many parts as there were."""

    def forward(self: Any, x: Tensor) -> Any:
        first, second, third = self.a(x).unbind(1)
        return self.b(torch.stack([first + second, second * third], 1))

    return Case(net(forward, a=conv(3, 3), b=conv(2, 2)), image(), {}, {("a.weight", 0): "taken apart by position"})


@case
def heads_and_positions_merged() -> Case:
    """``einsum`` over heads and their positions at once: of two axes of a parameter that become one, the wider one is free."""

    def forward(self: Any, x: Tensor) -> Any:
        heads = self.q(x).unflatten(-1, (4, 8))
        return self.b(torch.einsum("bnhd,hde->bne", heads, self.w))

    model = net(forward, q=nn.Linear(6, 32), w=nn.Parameter(torch.randn(4, 8, 5)), b=nn.Linear(5, 2))
    return Case(model, vector(3, 6), {"q": 8, "w": 5}, {("w", 0): "merged into one axis"}, macs=False)
