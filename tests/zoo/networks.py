"""Structures of whole networks: many scales, cells, scans and recurrences, indexing, and writing in place."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, case, conv, image, net, pooled

# -- many scales -------------------------------------------------------------------------------------------------------------


@case
def encoder_and_decoder_with_skips() -> Case:
    """U-Net: transposed convolutions up, padding to the size of the skip, both beside each other."""

    def forward(self: Any, x: Tensor) -> Any:
        one = F.relu(self.down1(x))
        two = F.relu(self.down2(F.max_pool2d(one, 2)))
        up = self.up(F.relu(self.bottom(F.max_pool2d(two, 2))))
        rows, columns = two.shape[2] - up.shape[2], two.shape[3] - up.shape[3]
        up = F.pad(up, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        y = F.relu(self.join(torch.cat([two, up], dim=1)))
        y = torch.cat([one, F.interpolate(y, size=one.shape[-2:], mode="bilinear", align_corners=False)], dim=1)
        return self.out(y)

    model = net(
        forward,
        down1=conv(3, 4),
        down2=conv(4, 6),
        bottom=conv(6, 8),
        up=nn.ConvTranspose2d(8, 5, 2, stride=2),
        join=conv(11, 7),
        out=conv(11, 2),
    )
    groups = {"down1": 4, "down2": 6, "bottom": 8, "up": 5, "join": 7}
    return Case(model, image(size=10), groups)


@case
def feature_pyramid() -> Case:
    """FPN: lateral layers tie all scales; a path up and outputs shared by all scales."""

    def forward(self: Any, x: Tensor) -> Any:
        features = []
        for layer in self.backbone:
            x = F.relu(layer(x))
            features.append(x)
        merged = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        for i in (1, 0):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], scale_factor=2.0, mode="nearest")
        return [self.head(F.relu(smooth(m))) for smooth, m in zip(self.smooth, merged, strict=True)]

    backbone = nn.ModuleList([conv(3, 4), conv(4, 5, stride=2), conv(5, 6, stride=2)])
    lateral = nn.ModuleList([conv(4, 7, 1), conv(5, 7, 1), conv(6, 7, 1)])
    smooth = nn.ModuleList(conv(7, 8) for _ in range(3))
    model = net(forward, backbone=backbone, lateral=lateral, smooth=smooth, head=conv(8, 2))
    groups = {"backbone.0": 4, "backbone.1": 5, "backbone.2": 6, "lateral.0": 7, "smooth.0": 8}
    return Case(model, image(), groups)


@case
def weighted_pyramid() -> Case:
    """BiFPN: scales are added with weights of their own, which are parameters."""

    def forward(self: Any, x: Tensor) -> Any:
        one, two = self.a(x), self.b(F.avg_pool2d(x, 2))
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        y = weights[0] * one + weights[1] * F.interpolate(two, scale_factor=2.0)
        return self.c(F.silu(y))

    model = net(forward, a=conv(3, 6), b=conv(3, 6), weights=nn.Parameter(torch.rand(2)), c=conv(6, 2))
    return Case(model, image(), {"a": 6}, {("weights", 0): "indexed by position"})


@case
def exchange_between_resolutions() -> Case:
    """HRNet: every branch gets the sum of all branches, each brought to its size."""

    def forward(self: Any, x: Tensor) -> Any:
        high, low = F.relu(self.high(x)), F.relu(self.low(x))
        for up, down in zip(self.ups, self.downs, strict=True):
            high, low = F.relu(high + F.interpolate(up(low), scale_factor=2.0)), F.relu(low + down(high))
        return self.head(torch.cat([high, F.interpolate(low, size=high.shape[2:], mode="bilinear")], 1))

    ups = nn.ModuleList(conv(6, 4, 1) for _ in range(2))
    downs = nn.ModuleList(conv(4, 6, stride=2) for _ in range(2))
    model = net(forward, high=conv(3, 4), low=conv(3, 6, stride=2), ups=ups, downs=downs, head=conv(10, 2))
    return Case(model, image(), {"high": 4, "low": 6})


class _Hourglass(nn.Module):
    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.skip, self.down, self.up = conv(width, width), conv(width, width), conv(width, width)
        self.inner = _Hourglass(depth - 1, width) if depth > 1 else conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        low = self.up(self.inner(F.relu(self.down(F.max_pool2d(x, 2, 2)))))
        result: Tensor = self.skip(x) + F.interpolate(low, scale_factor=2)
        return result


@case
def hourglass() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        return self.out(F.relu(self.hourglass(self.stem(x))))

    model = net(forward, stem=conv(3, 4), hourglass=_Hourglass(2, 4), out=conv(4, 2))
    groups = {"stem": 4, **{f"hourglass.{n}": 4 for n in ("down", "up", "inner.down", "inner.inner", "inner.up")}}
    return Case(model, image(), groups)


@case
def pooled_at_several_scales() -> Case:
    """SPPF and PSPNet: the same features pooled again and again, side by side."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        one = self.pool(x)
        two = self.pool(one)
        bins = [F.interpolate(layer(F.adaptive_avg_pool2d(x, n)), x.shape[2:]) for n, layer in zip((1, 2), self.bins, strict=True)]
        return self.b(torch.cat((x, one, two, self.pool(two), *bins), 1))

    bins = nn.ModuleList([conv(4, 3, 1), conv(4, 2, 1)])
    model = net(forward, a=conv(3, 4), pool=nn.MaxPool2d(3, 1, 1), bins=bins, b=conv(21, 2))
    return Case(model, image(), {"a": 4, "bins.0": 3, "bins.1": 2})


@case
def searched_cell() -> Case:
    """A cell of a searched network: states are sums of two operations on earlier states, and all of them come out together."""

    def forward(self: Any, x: Tensor) -> Any:
        before = last = F.relu(self.stem(x))
        for cell in self.cells:
            states = [cell["first"](before), cell["second"](last)]
            states.append(cell["separable"](states[0]) + states[1])
            states.append(F.avg_pool2d(states[1], 3, 1, 1) + cell["dilated"](states[2]))
            before, last = last, F.relu(torch.cat(states[2:], dim=1))
        return pooled(self.head, last)

    def cell(before: int, last: int) -> nn.Module:
        return nn.ModuleDict(
            {
                "first": conv(before, 4, 1),
                "second": conv(last, 4, 1),
                "separable": nn.Sequential(conv(4, 4, groups=4), conv(4, 4, 1)),
                "dilated": nn.Sequential(conv(4, 4, 3, groups=4, dilation=2, padding=2), conv(4, 4, 1)),
            }
        )

    model = net(forward, stem=conv(3, 6), cells=nn.ModuleList([cell(6, 6), cell(6, 8)]), head=nn.Linear(8, 3))
    groups = {"stem": 6, "cells.0.first": 4, "cells.0.second": 4, "cells.1.first": 4, "cells.1.second": 4}
    return Case(model, image(), groups)


@case
def weighted_operations() -> Case:
    """A network that is still being searched: the softmax of parameters weighs operations that are all there."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        weights = self.alpha.softmax(-1)
        y = sum(w * operation(x) for w, operation in zip(weights, self.operations, strict=True))
        return self.b(y)

    operations = nn.ModuleList([nn.Identity(), conv(6, 6), nn.MaxPool2d(3, 1, 1)])
    model = net(forward, a=conv(3, 6), alpha=nn.Parameter(torch.randn(3)), operations=operations, b=conv(6, 2))
    return Case(model, image(), {"a": 6}, {("alpha", 0): "along its axis"})


@case
def partial_convolution_with_chunks() -> Case:
    """C2f of YOLOv8: each block appends to a list that begins with two halves of one layer."""

    def forward(self: Any, x: Tensor) -> Any:
        parts = list(self.a(x).chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.blocks)
        y = self.b(torch.cat(parts, 1))
        first, second = y.split((4, 4), 1)
        return self.c(torch.cat((self.d(first) + first, second), 1))

    blocks = nn.ModuleList([conv(4, 4), conv(4, 4)])
    model = net(forward, a=conv(3, 8), blocks=blocks, b=conv(16, 8), d=conv(4, 4), c=conv(8, 2))
    return Case(model, image(), {"a": 4, "a#2": 4, "blocks.0": 4, "blocks.1": 4, "b": 4, "b#2": 4})


# -- space and channels ------------------------------------------------------------------------------------------------------


@case
def space_to_depth_by_slices() -> Case:
    """YOLOv5's Focus."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        return self.b(torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1))

    return Case(net(forward, a=conv(3, 5), b=conv(20, 2)), image(), {"a": 5})


@case
def space_to_depth_by_views() -> Case:
    """TResNet's, with the places outside and the channels inside; its reverse puts the places inside."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        b, c, h, w = x.size()
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous().view(b, c * 4, h // 2, w // 2)
        x = self.b(x)
        b, c, h, w = x.size()
        x = x.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, h * 2, w * 2)
        return self.c(x)

    return Case(net(forward, a=conv(3, 5), b=conv(20, 12), c=conv(3, 2)), image(), {"a": 5, "b": 3})


@case
def depth_to_space_with_places_outside() -> Case:
    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        b, c, h, w = x.shape
        x = x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).contiguous().view(b, c // 4, h * 2, w * 2)
        return self.b(x)

    return Case(net(forward, a=conv(3, 12), b=conv(3, 2)), image(), {"a": 3})


@case
def patches_expanded() -> Case:
    """Swin-Unet: a linear layer makes four places of each, channels last; as heads are, places are the outer axis."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.expand(self.a(x).permute(0, 2, 3, 1))
        b, h, w, c = x.shape
        x = x.view(b, h, w, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5).reshape(b, h * 2, w * 2, c // 4)
        return self.head(self.norm(x))

    model = net(forward, a=conv(3, 5), expand=nn.Linear(5, 24), norm=nn.LayerNorm(6), head=nn.Linear(6, 2))
    return Case(model, image(), {"a": 5, "expand": 6}, policy={"heads": "head_dim"})


@case
def flattened_after_transposition() -> Case:
    """Channels last when flattened: the inputs of the linear layer are channels beside each other."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.head(self.b(F.relu(self.a(x))).permute(0, 2, 3, 1).flatten(1))

    return Case(net(forward, a=conv(3, 5), b=conv(5, 4), head=nn.Linear(256, 3)), image(), {"a": 5, "b": 4})


@case
def text_convolution() -> Case:
    """Embeddings, transposed, convolved at several widths, pooled over time."""

    def forward(self: Any, tokens: Tensor) -> Any:
        x = self.embed(tokens).transpose(1, 2)
        y = torch.cat([F.relu(layer(x)).max(dim=2)[0] for layer in self.layers], dim=1)
        return self.head(y)

    layers = nn.ModuleList([nn.Conv1d(6, 4, 2), nn.Conv1d(6, 5, 3)])
    model = net(forward, embed=nn.Embedding(11, 6), layers=layers, head=nn.Linear(9, 2))
    return Case(model, lambda n: torch.randint(0, 11, (n, 7)), {"embed": 6, "layers.0": 4, "layers.1": 5})


@case
def tied_embedding_and_head() -> Case:
    """The head's weight is the embedding's, so the width goes with the residual stream."""

    def forward(self: Any, tokens: Tensor) -> Any:
        x = self.embed(tokens)
        return self.head(self.norm(x + self.down(F.gelu(self.up(x)))))

    embed, head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
    head.weight = embed.weight
    model = net(forward, embed=embed, up=nn.Linear(6, 8), down=nn.Linear(8, 6), norm=nn.LayerNorm(6), head=head)
    return Case(model, lambda n: torch.randint(0, 11, (n, 5)), {"embed": 6, "up": 8}, {("embed.weight", 0): "indexed by data"})


@case
def sampled_at_points() -> Case:
    """A spatial transformer: features are read where a small network says."""

    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        theta = self.locate(F.relu(self.b(x)).mean((2, 3))).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.size()), align_corners=False)
        return self.c(F.grid_sample(x, grid, align_corners=False))

    model = net(forward, a=conv(3, 6), b=conv(6, 4), locate=nn.Linear(4, 6), c=conv(6, 2))
    return Case(model, image(), {"a": 6, "b": 4})
