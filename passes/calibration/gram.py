"""How alike channels are: their Gram matrix over samples and positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.channels.groups import Groups
from graphprune.statistic import Observer, Place, Statistic, Tap


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

    def see(self, tap: Tap, activation: Tensor) -> None:
        """Add a batch's products."""
        rows = sampled_rows(activation, self._positions)
        rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
        self.totals.add((tap.node, tap.axis, "gram"), rows.mT @ rows)
        self.totals.add((tap.node, tap.axis, "sum"), rows.sum(0))
        self.totals.add((tap.node, tap.axis, "count"), torch.tensor(float(len(rows))))


def sampled_rows(activation: Tensor, positions: int) -> Tensor:
    """Activations (samples, channels, ...) as rows (samples * positions, channels), at evenly spaced positions of each sample."""
    flat = activation.reshape(*activation.shape[:2], -1)
    count = flat.shape[2]
    if count > positions:
        flat = flat[:, :, torch.linspace(0, count - 1, positions, device=flat.device).long()]
    return flat.transpose(1, 2).reshape(-1, flat.shape[1])
