"""Ranks of feature maps."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.channels.groups import Groups
from graphprune.statistic import Observer, Place, Statistic, Tap

_BLOCK = 1 << 22  # elements of maps decomposed at once


@dataclass(frozen=True)
class Ranks(Statistic):
    """The rank of every channel's map, summed over samples (and frames or windows, where a sample has several maps of a channel).

    Only activations with two axes of places have maps, the last two. samples: how many to use at most, the first ones that this
    process sees. tolerance: singular values up to this part of a map's largest count as zero.
    """

    at: Place = "consumed"
    samples: int = 500
    tolerance: float = 1e-5

    @property
    def place(self) -> Place:
        """Where activations are looked at."""
        return self.at

    def observer(self, groups: Groups) -> Observer:
        """What measures it; keys are (node, axis, name) with the names ``rank`` and ``count``."""
        return _Ranks(self)


class _Ranks(Observer):
    def __init__(self, statistic: Ranks) -> None:
        super().__init__()
        self._statistic = statistic
        self._seen: dict[tuple[str, int], int] = defaultdict(int)

    def see(self, tap: Tap, activation: Tensor) -> None:
        """Add a batch's ranks."""
        left = self._statistic.samples - self._seen[tap.node, tap.axis]
        if len(tap.traced) < 4 or left <= 0:
            return
        maps = activation[:left].transpose(0, 1).flatten(1, -3)  # channels, samples and frames, height, width
        self._seen[tap.node, tap.axis] += len(activation[:left])
        maps = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
        size = max(1, _BLOCK // max(1, maps[0].numel()))
        ranks = torch.cat([self._ranks(block).sum(1) for block in maps.split(size)])
        self.totals.add((tap.node, tap.axis, "rank"), ranks)
        self.totals.add((tap.node, tap.axis, "count"), torch.tensor(float(maps.shape[1])))

    def _ranks(self, maps: Tensor) -> Tensor:
        if not bool(torch.isfinite(maps).all()):
            return maps.new_full(maps.shape[:-2], torch.nan)
        values: Tensor = torch.linalg.svdvals(maps)
        return (values > values[..., :1] * self._statistic.tolerance).sum(-1)
