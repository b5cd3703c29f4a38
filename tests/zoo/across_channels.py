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


@case
def kernels_as_wide_as_an_embedding() -> Case:
    """A text CNN: kernels of several lengths cover the embedding, which lies on an axis of space, and lose columns with it."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.words(x).unsqueeze(1)
        parts = [F.relu(one(y)).squeeze(3).amax(2) for one in self.kernels]
        return self.head(torch.cat(parts, 1))

    kernels = nn.ModuleList([nn.Conv2d(1, 3, (size, 6)) for size in (2, 3)])
    model = net(forward, words=nn.Embedding(20, 6), kernels=kernels, head=nn.Linear(6, 2))
    frozen = {("kernels.0.weight", 2): "extent"}
    return Case(model, _words, {"words": 6, "kernels.0": 3, "kernels.1": 3}, frozen)


def _words(batch: int) -> Tensor:
    return torch.randint(0, 20, (batch, 7))


@case
def kernels_as_long_as_what_they_read() -> Case:
    """In one and three dimensions, grouped and strided, and of heads x positions, of which kernels cover the positions."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        line = self.line(y.unsqueeze(1)).flatten(1)
        deep = self.deep(F.relu(self.b(x)).view(-1, 1, 1, 6, 1)).flatten(1)
        pair = self.pair(torch.stack([y, y + 1], 1).unsqueeze(3)).flatten(1)
        table = self.table(self.c(x).view(-1, 1, 3, 4)).flatten(1)
        return line + deep + pair + table

    parts = {name: nn.Linear(5, width) for name, width in {"a": 8, "b": 6, "c": 12}.items()}
    line, deep = nn.Conv1d(1, 6, 8, stride=3), nn.Conv3d(1, 6, (1, 6, 1))
    pair, table = nn.Conv2d(2, 6, (8, 1), groups=2), nn.Conv2d(1, 2, (1, 4))
    model = net(forward, **parts, line=line, deep=deep, pair=pair, table=table)
    return Case(model, vector(5), {"a": 8, "b": 6, "c": 4})


@case
def kernels_that_an_axis_goes_on_beside() -> Case:
    """What a kernel, pooling or padding leaves some of, or pads, cannot shrink."""

    def forward(self: Any, x: Tensor) -> Any:
        rows = [part(x).unsqueeze(1) for part in (self.a, self.b, self.c)]
        return self.short(rows[0]), self.padded(rows[1]), self.whole(F.avg_pool1d(rows[2], 2))

    parts = {name: nn.Linear(5, 6) for name in "abc"}
    short, padded, whole = nn.Conv1d(1, 2, 5), nn.Conv1d(1, 2, 6, padding=1), nn.Conv1d(1, 2, 3)
    frozen = {(f"{name}.weight", 0): "extent in space" for name in "abc"}
    return Case(net(forward, **parts, short=short, padded=padded, whole=whole), vector(5), {}, frozen)
