"""Blocks that read images: convolutions, norms, gates, shuffles and pools."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.block import WIDTHS, Block, Options, Shape, block, divisor, plain


@block
class Conv(Block):
    """A convolution, perhaps transposed, dilated or with a stride."""

    rank, weight = 3, 8

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        kind = random.choice(["plain", "plain", "plain", "stride", "transposed", "dilated"])
        return {"out": random.choice(WIDTHS), "kernel": random.choice([1, 3]), "kind": kind, "bias": random.random() < 0.5}

    def make(self, shape: Shape, out: int, kernel: int, kind: str, bias: bool) -> None:
        extra: dict[str, Any] = {"stride": {"stride": 2}, "dilated": {"dilation": 2}}.get(kind, {})
        layer: Any = nn.ConvTranspose2d if kind == "transposed" else nn.Conv2d
        padding = kernel // 2 * (2 if kind == "dilated" else 1)
        self.conv = layer(shape[0], out, kernel, padding=padding, bias=bias, **extra)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x)


@block
class GroupedConv(Block):
    """A convolution in groups, perhaps transposed; depthwise where there is a group for each channel."""

    rank, weight = 3, 5

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        width = shapes[0][0]
        groups = width if random.random() < 0.5 else divisor(random, width)
        if groups is None or groups == 1:
            return None
        return {"groups": groups, "times": random.choice([1, 1, 2]), "transposed": random.random() < 0.3}

    def make(self, shape: Shape, groups: int, times: int, transposed: bool) -> None:
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        out = groups * times if shape[0] == groups else groups * times * 2
        self.conv = kind(shape[0], out, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x)


@block
class Conv3d(Block):
    """A convolution over frames that are the image twice."""

    rank, weight = 3, 1

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"out": random.choice(WIDTHS)}

    def make(self, shape: Shape, out: int) -> None:
        self.conv = nn.Conv3d(shape[0], out, (2, 1, 1))
        self.norm = nn.BatchNorm3d(out)

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.conv(torch.stack([x, x.flip(-1)], 2))).squeeze(2)


NORMS: dict[str, Any] = {
    "batch": nn.BatchNorm2d,
    "frozen": lambda width: nn.BatchNorm2d(width, affine=False),
    "one": lambda width: nn.GroupNorm(1, width),
    "each": lambda width: nn.GroupNorm(width, width),
    "instance": lambda width: nn.InstanceNorm2d(width, affine=True),
    "tracked": lambda width: nn.InstanceNorm2d(width, track_running_stats=True),
}


@block
class ImageNorm(Block):
    """Batch, group and instance normalisation."""

    rank, weight = 3, 6

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        width, height, breadth = shapes[0]
        groups = divisor(random, width)
        if groups is not None and random.random() < 0.4:
            return {"kind": "groups", "groups": groups}
        kinds = ["batch", "batch", "frozen"] + (["one", "each", "instance", "tracked"] if height * breadth > 3 else [])
        return {"kind": random.choice(kinds)}

    def make(self, shape: Shape, kind: str, groups: int = 1) -> None:
        self.norm = nn.GroupNorm(groups, shape[0]) if kind == "groups" else NORMS[kind](shape[0])
        if isinstance(self.norm, nn.GroupNorm) and shape[0] % groups:
            raise ValueError("groups")

    def forward(self, x: Tensor) -> Any:
        return self.norm(x)


@block
class ChannelGate(Block):
    """Squeeze and excitation."""

    rank = 3

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"inner": random.choice([2, 4]), "linear": random.random() < 0.5}

    def make(self, shape: Shape, inner: int, linear: bool) -> None:
        layer: Any = nn.Linear if linear else nn.Conv2d
        extra = () if linear else (1,)
        self.linear, self.down, self.up = linear, layer(shape[0], inner, *extra), layer(inner, shape[0], *extra)

    def forward(self, x: Tensor) -> Any:
        if self.linear:
            return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))[:, :, None, None]
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


@block
class PlaceGate(Block):
    """A map over places, from the mean and the largest of the channels."""

    rank, weight = 3, 1

    def make(self, shape: Shape) -> None:
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return x * torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


@block
class ChannelsLast(Block):
    """A residual block over the last axis, with a scale of each channel, as in ConvNeXt."""

    rank = 3

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"inner": random.choice(WIDTHS)}

    def make(self, shape: Shape, inner: int) -> None:
        self.norm, self.up, self.down = nn.LayerNorm(shape[0]), nn.Linear(shape[0], inner), nn.Linear(inner, shape[0])
        self.scale = nn.Parameter(torch.ones(shape[0]))

    def forward(self, x: Tensor) -> Any:
        y = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1)))))
        return x + (self.scale * y).permute(0, 3, 1, 2)


@block
class Shuffle(Block):
    """Channels shuffled, by views or by torch's own call."""

    rank = 3

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        groups = divisor(random, shapes[0][0])
        return None if groups is None else {"groups": groups, "views": random.random() < 0.6}

    def make(self, shape: Shape, groups: int, views: bool) -> None:
        self.groups, self.views = groups, views

    def forward(self, x: Tensor) -> Tensor:
        if not self.views:
            return F.channel_shuffle(x, self.groups)
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


@block
class PixelShuffle(Block):
    """Channels to places and back."""

    rank = 3

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        width, height, breadth = shapes[0]
        down = height % 2 == 0 and breadth % 2 == 0 and width <= 6 and random.random() < 0.5
        return {"down": down} if down or (width % 4 == 0 and width > 4 and height <= 4) else None

    def make(self, shape: Shape, down: bool) -> None:
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2) if self.down else F.pixel_shuffle(x, 2)


@block
class PadChannels(Block):
    """Zeros before and after the channels, as in the shortcuts of the first ResNets."""

    rank, weight = 3, 1

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"before": random.randint(0, 2), "after": random.randint(0, 2)}

    def make(self, shape: Shape, before: int, after: int) -> None:
        self.pad = (0, 0, 0, 0, before, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pad)


@block
class Windows(Block):
    """A linear layer inside windows, which are cut and put back by views."""

    rank, weight = 3, 1

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        return {} if shapes[0][1] % 2 == 0 and shapes[0][2] % 2 == 0 else None

    def make(self, shape: Shape) -> None:
        self.mix = nn.Linear(shape[0], shape[0])

    def forward(self, x: Tensor) -> Any:
        b, c, h, w = x.shape
        y = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
        y = self.mix(y).reshape(b, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4)
        return y.reshape(b, c, h, w)


def even(shape: Shape) -> bool:
    """Whether an image has an even size of at least four."""
    return shape[1] >= 4 and shape[2] >= 4 and shape[1] % 2 == 0 and shape[2] % 2 == 0


plain("MaxPool", lambda x: F.max_pool2d(x, 2), rank=3, suits=even)
plain("AvgPool", lambda x: F.avg_pool2d(x, 2), rank=3, suits=even)
plain("AdaptivePool", lambda x: F.adaptive_avg_pool2d(x, 2), rank=3, suits=even)
plain("Strided", lambda x: x[:, :, ::2, ::2], rank=3, suits=even)
plain("Focus", lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2]], 1), rank=3, suits=even)
plain("Upsample", lambda x: F.interpolate(x, scale_factor=2), rank=3, suits=lambda s: s[1] <= 4)
plain("Bilinear", lambda x: F.interpolate(x, (5, 5), mode="bilinear", align_corners=False), rank=3)
plain("Unfold", lambda x: F.unfold(x, 2), rank=3, suits=lambda s: s[0] <= 6 and 2 <= s[1] <= 4 and s[2] >= 2)
plain("ReflectPad", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), rank=3, suits=lambda s: 2 <= s[1] <= 6 and s[2] >= 2)
plain("ToTokens", lambda x: x.flatten(2).transpose(1, 2), rank=3)
plain("ToTokensLast", lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]), rank=3)
plain("PoolPlaces", lambda x: x.mean((2, 3)), rank=3)
plain("LargestPlace", lambda x: x.amax((2, 3)), rank=3)
plain("Flatten", lambda x: x.flatten(1), rank=3, suits=lambda s: s[0] * s[1] * s[2] <= 300)
