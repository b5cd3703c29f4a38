"""Which models are placed, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from torch import nn

from graphprune.placement.accelerated import Offloaded, is_dispatched
from graphprune.placement.fsdp import is_sharded
from graphprune.placement.placement import Placement
from graphprune.placement.sharded import Sharded

_KINDS: Final[Mapping[Callable[[nn.Module], bool], Callable[[nn.Module], Placement]]] = {
    is_dispatched: Offloaded,
    is_sharded: Sharded,
}


def placement_of(model: nn.Module) -> Placement | None:
    """Where a model's weights are, if they are elsewhere. Raises UsageError where that cannot be followed."""
    return next((kind(model) for asks, kind in _KINDS.items() if asks(model)), None)
