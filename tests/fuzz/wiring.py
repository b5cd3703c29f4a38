"""Blocks for values of any shape: activations, parts of the channels, and combinations of several values."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.block import Block, Options, Shape, block, channel_axis, channels, plain

#: Those that keep zero are drawn more often; whether they do is no part of any check.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "clamp": lambda x: x.clamp(-1, 2),
    "scaled": lambda x: -x * 0.5 + 0.25,
    "in place": lambda x: x.clone().relu_(),
    "added in place": lambda x: x.mul(0.5).add_(x),
}


@block
class Activation(Block):
    """An element-wise function."""

    weight = 8

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"kind": random.choice(list(ACTIVATIONS))}

    def make(self, shape: Shape, kind: str) -> None:
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.kind](x)


@block
class Slope(Block):
    """A slope for each channel, as PReLU has."""

    weight = 1

    def make(self, shape: Shape) -> None:
        self.axis = channel_axis(shape)
        self.act = nn.PReLU(channels(shape))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x.transpose(1, 2)).transpose(1, 2) if self.axis == 2 else self.act(x)
        return y


@block
class Drop(Block):
    """Dropout that drops nothing, so that train mode is no game of chance."""

    weight = 1

    def make(self, shape: Shape) -> None:
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(x)
        return y


@block
class Parts(Block):
    """Parts of the channels by chunks, splits, slices and narrows; each part is a value of its own."""

    weight = 4

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        width = channels(shapes[0])
        if width < 4:
            return None
        kinds = ["split", "narrow", "slices", "flip"] + (["chunk", "interleaved", "views"] if width % 2 == 0 else [])
        return {"kind": random.choice(kinds), "cut": random.randint(1, width - 1)}

    def make(self, shape: Shape, kind: str, cut: int) -> None:
        width = channels(shape)
        if not 0 < cut < width or (width % 2 and kind in ("chunk", "interleaved", "views")):
            raise ValueError("parts")
        self.axis, self.kind, self.cut, self.width = channel_axis(shape), kind, cut, width

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        axis, cut = self.axis, self.cut
        rest = (slice(None),) * axis
        ways: dict[str, Callable[[], Any]] = {
            "split": lambda: x.split([cut, self.width - cut], axis),
            "narrow": lambda: (x.narrow(axis, 0, cut),),
            "slices": lambda: (x[(*rest, slice(None, cut))], x[(*rest, slice(cut, None))]),
            "flip": lambda: (torch.flip(x, [axis]),),
            "chunk": lambda: x.chunk(2, dim=axis),
            "interleaved": lambda: (x[(*rest, slice(None, None, 2))], x[(*rest, slice(1, None, 2))]),
            "views": lambda: x.unflatten(axis, (2, -1)).unbind(axis),
        }
        return tuple(ways[self.kind]())


@block
class Cat(Block):
    """Several values side by side in their channels; one may be among them twice."""

    arity, weight = 2, 6

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        left, right = shapes
        axis = channel_axis(left) - 1
        same = len(left) == len(right) and left[:axis] == right[:axis] and left[axis + 1 :] == right[axis + 1 :]
        return {"again": random.random() < 0.2} if same else None

    def make(self, left: Shape, right: Shape, again: bool) -> None:
        self.axis, self.again = channel_axis(left), again

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y, x] if self.again else [x, y], self.axis)


def _in_place(x: Tensor, y: Tensor) -> Tensor:
    z = x * 1.0
    z += y
    return z


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "largest": torch.maximum,
    "in place": _in_place,
    "gate": lambda x, y: torch.sigmoid(x) * y,
    "stacked": lambda x, y: torch.stack([x, y], 1).sum(1),
    "mean": lambda x, y: torch.stack([x, y]).mean(0),
    "lerp": lambda x, y: torch.lerp(x, y, 0.25),
    "where": lambda x, y: torch.where(x > 0, x, y),
}


@block
class Combine(Block):
    """Two values of one shape, element by element."""

    arity, weight = 2, 8

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        return {"kind": random.choice(list(BINARY))} if shapes[0] == shapes[1] else None

    def make(self, left: Shape, right: Shape, kind: str) -> None:
        if left != right:
            raise ValueError("shapes")
        self.kind = kind

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return BINARY[self.kind](x, y)


@block
class Residual(Block):
    """A layer whose result is added to what it reads."""

    weight = 5

    def make(self, shape: Shape) -> None:
        width = channels(shape)
        self.layer = nn.Conv2d(width, width, 3, padding=1) if len(shape) == 3 else nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layer(F.relu(x))
        return y


def _gates(image: Shape, vector: Shape) -> bool:
    return len(image) > 1 and len(vector) == 1 and vector[0] == channels(image)


def _spread(x: Tensor, v: Tensor) -> Tensor:
    return x * (v[:, :, None, None] if x.dim() == 4 else v[:, None])


plain("Modulate", _spread, arity=2, suits=_gates)


@block
class SumOfChannels(Block):
    """A layer whose results are summed into one more channel."""

    weight = 1

    def make(self, shape: Shape) -> None:
        width = channels(shape)
        self.axis = channel_axis(shape)
        self.layer = nn.Conv2d(width, width, 1) if len(shape) == 3 else nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.relu(self.layer(x)).sum(self.axis, keepdim=True)], self.axis)


@block
class Positional(Block):
    """What looks at positions among the channels, or at all of them: these must stay."""

    weight = 1

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options:
        return {"kind": random.choice(list(POSITIONAL))}

    def make(self, shape: Shape, kind: str) -> None:
        self.axis, self.kind = channel_axis(shape), kind

    def forward(self, x: Tensor) -> Tensor:
        return POSITIONAL[self.kind](x, self.axis)


POSITIONAL: dict[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": lambda x, axis: x.softmax(axis),
    "cumsum": lambda x, axis: x.cumsum(axis),
    "roll": lambda x, axis: x.roll(1, axis),
    "sort": lambda x, axis: x.sort(axis).values,
    "first": lambda x, axis: x - x.select(axis, 0).unsqueeze(axis),
}
