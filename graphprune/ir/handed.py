"""What one scope of a program hands to another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, TypeAlias

import torch
from torch import fx

Keys: TypeAlias = tuple[int | str, ...]
"""The way into a structure: keys of dicts, and places in lists and tuples. Empty for a tensor that is alone."""


@dataclass(frozen=True)
class Taken:
    """A tensor that a scope is called with and another scope has made.

    argument, at: where it is among the arguments of the one. source, part: the path of the other, and where it is in its result.
    read: axes whose sizes the code around the scopes reads.
    """

    argument: str
    at: Keys
    source: str
    part: Keys
    read: tuple[int, ...] = ()


def handed_over(tensor: torch.Tensor, to: str, argument: str, at: Keys, read: tuple[int, ...]) -> torch.Tensor:
    """The tensor as it is: where a joint graph goes from one scope to another, which the code around does.

    to: the path of the scope that takes it. argument, at, read: as in :class:`Taken`.

    >>> image = torch.ones(2)
    >>> handed_over(image, "head", "features", (0,), ()) is image
    True
    """
    return tensor


def part_of(tree: Any, keys: Keys) -> Any:
    """A part of a structure.

    >>> part_of({"features": ["fine", "coarse"]}, ("features", 1))
    'coarse'
    """
    return reduce(getitem, keys, tree)


def is_handed_over(node: fx.Node) -> bool:
    """Whether a node is where a graph goes from one scope to another."""
    return node.target is handed_over
