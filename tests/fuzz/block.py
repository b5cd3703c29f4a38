"""Blocks: the parts that random networks are made of, and their registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, ClassVar, TypeAlias

from torch import nn

Shape: TypeAlias = tuple[int, ...]  # without the batch axis: (C, H, W), (N, C) or (C,)
Options: TypeAlias = dict[str, Any]

WIDTHS = (2, 4, 4, 6, 6, 8, 8, 12)


class Block(nn.Module):
    """A part of a network, made for the shapes of what it reads.

    rank: of the values that it reads, without the batch axis (None: any). arity: how many values it reads.
    contracts: by bare parameter, the axes that it sums over; those of layers of torch are known to the oracle.
    weight: how often it is drawn.
    """

    rank: ClassVar[int | None] = None
    arity: ClassVar[int] = 1
    contracts: ClassVar[dict[str, tuple[int, ...]]] = {}
    weight: ClassVar[int] = 2

    def __init__(self, shapes: Sequence[Shape], **options: Any) -> None:
        """Raises ValueError where the shapes do not suit."""
        super().__init__()
        self.shapes = tuple(shapes)
        self.options = options
        if len(shapes) != self.arity or (self.rank is not None and any(len(shape) != self.rank for shape in shapes)):
            raise ValueError(f"{type(self).__name__} does not read {list(shapes)}")
        self.make(*shapes, **options)

    def make(self, *shapes: Any, **options: Any) -> None:
        """Make the layers."""

    @staticmethod
    def draw(random: Random, *shapes: Shape) -> Options | None:
        """Options that suit the shapes, or None where nothing does."""
        return {}


BLOCKS: dict[str, type[Block]] = {}


def block(found: type[Block]) -> type[Block]:
    """Register a block under the name of its class."""
    assert found.__name__ not in BLOCKS
    BLOCKS[found.__name__] = found
    return found


def plain(name: str, function: Callable[..., Any], *, rank: int | None = None, arity: int = 1, suits: Any = None) -> None:
    """Register a block without parameters: a function of its values. suits: of their shapes, whether it applies."""

    def draw(random: Random, *shapes: Shape) -> Options | None:
        return {} if suits is None or suits(*shapes) else None

    def forward(self: Block, *values: Any) -> Any:
        return function(*values)

    members = {"rank": rank, "arity": arity, "draw": staticmethod(draw), "forward": forward, "weight": 1}
    block(type(name, (Block,), members))


def channel_axis(shape: Shape) -> int:
    """The axis of the channels, with the batch axis counted: the last one of tokens, and else the first."""
    return 2 if len(shape) == 2 else 1


def channels(shape: Shape) -> int:
    """How many channels a value of this shape has."""
    return shape[channel_axis(shape) - 1]


def divisor(random: Random, number: int) -> int | None:
    """A number of equal parts with more than one element each, or None."""
    found = [d for d in (2, 3, 4) if number % d == 0 and number > d]
    return random.choice(found) if found else None
