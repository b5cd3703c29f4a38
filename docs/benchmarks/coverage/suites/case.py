"""One model of the benchmark: how it is built, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

#: More parameters than this are analysed without values and proved at reduced depth (see :mod:`suites.large`).
LARGE = 350_000_000


@dataclass(frozen=True)
class Case:
    """A model that can be built, in eval mode with random weights, and example inputs as graphprune takes them.

    build: makes the model. inputs: makes a tensor, a tuple of arguments, or a dict of keyword arguments.
    """

    key: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]


def moved(inputs: Any, device: str) -> Any:
    """Inputs with every tensor on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)
