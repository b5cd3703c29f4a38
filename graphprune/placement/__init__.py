"""Models whose weights are not where the model is: offloaded by accelerate, or sharded by FSDP2. They are pruned in place."""

from __future__ import annotations

from graphprune.placement.find import placement_of
from graphprune.placement.placement import Placement, with_values

__all__ = ["Placement", "placement_of", "with_values"]
