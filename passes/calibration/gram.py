"""How alike channels are: their Gram matrix over samples and positions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.arithmetic import real_parts
from graphprune.channels.groups import Groups
from graphprune.statistic import Observer, Place, Statistic, Tap

_ROWS = 1024  # multiplied at once: as many as a wide layer has channels
_WIDTH = 128  # of the blocks of a product


@dataclass(frozen=True)
class ChannelGram(Statistic):
    """``G[i, j] = sum over rows of a_i a_j`` and the sums of a_i, over some positions of every sample.

    positions: how many of each sample at most, evenly spaced, so that wide early layers do not take all the time.
    """

    at: Place = "consumed"
    positions: int = 64

    @property
    def place(self) -> Place:
        """Where activations are looked at."""
        return self.at

    def observer(self, groups: Groups) -> Observer:
        """What measures it; keys are (node, axis, name) with the names ``gram``, ``sum`` and ``count``."""
        return _ChannelGram(self.positions)


class _ChannelGram(Observer):
    def __init__(self, positions: int) -> None:
        super().__init__()
        self._positions = positions
        self._waiting: dict[tuple[str, int], list[Tensor]] = defaultdict(list)

    def see(self, tap: Tap, activation: Tensor) -> None:
        """Take a batch's rows; products are made of many rows at once, since adding a matrix of them costs as much as a product
        of hundreds."""
        place = tap.node, tap.axis
        self._waiting[place].append(sampled_rows(real_parts(activation), self._positions))
        if sum(map(len, self._waiting[place])) >= _ROWS:
            self._multiply(place)

    def end(self) -> None:
        """Multiply what is left."""
        for place in list(self._waiting):
            self._multiply(place)

    def _multiply(self, place: tuple[str, int]) -> None:
        rows = torch.cat(self._waiting.pop(place))
        rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
        self.totals.add((*place, "gram"), _gram(rows))
        self.totals.add((*place, "sum"), rows.sum(0))
        self.totals.add((*place, "count"), torch.tensor(float(len(rows))))


def _gram(rows: Tensor) -> Tensor:
    """``rows.mT @ rows``: blocks on and below the diagonal, each copied to its place above it."""
    gram = rows.new_empty(rows.shape[1], rows.shape[1])
    for start in range(0, len(gram), _WIDTH):
        here, before = slice(start, start + _WIDTH), slice(start + _WIDTH)
        block = rows[:, here].mT @ rows[:, before]
        gram[before, here] = block.mT
        gram[here, before] = block
    return gram


def sampled_rows(activation: Tensor, positions: int) -> Tensor:
    """Activations (samples, channels, ...) as rows (samples * positions, channels), at evenly spaced positions of each sample; a
    copy."""
    rows = activation.reshape(*activation.shape[:2], -1).transpose(1, 2)
    count = rows.shape[1]
    if count > positions:
        rows = rows[:, torch.linspace(0, count - 1, positions, device=rows.device).long()]
    else:
        rows = rows.clone(memory_format=torch.contiguous_format)
    return rows.reshape(-1, activation.shape[1])
