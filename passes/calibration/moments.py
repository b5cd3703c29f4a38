"""Moments of every channel's activation, all in one read of each tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graphprune.channels.groups import Groups
from graphprune.criteria import Floats
from graphprune.kernels.activation_attention import activation_attention
from graphprune.statistic import Observer, Place, Statistic, Tap, Totals


@dataclass(frozen=True)
class Moments(Statistic):
    """Sums of a, |a|, |a|^2, |a|^4, the number of non-zeros and of elements, and the maximum of |a|, for each channel."""

    at: Place = "consumed"

    @property
    def place(self) -> Place:
        """Where activations are looked at."""
        return self.at

    def observer(self, groups: Groups) -> Observer:
        """What measures it."""
        return _Moments()


class _Moments(Observer):
    def see(self, tap: Tap, activation: Tensor) -> None:
        """Add the sums of a batch; the keys are (tap, name)."""
        found = activation_attention(activation if activation.is_floating_point() else activation.float())
        for name, part in (
            ("sum", found.sum),
            ("abs", found.abs_sum),
            ("square", found.square_sum),
            ("fourth", found.fourth_sum),
            ("nonzero", found.nonzero),
        ):
            self.totals.add((tap.node, tap.axis, name), part)
        self.totals.add((tap.node, tap.axis, "samples"), torch.tensor(float(len(activation))))
        count = activation.numel() // max(1, activation.shape[1])
        self.totals.add((tap.node, tap.axis, "count"), torch.tensor(float(count)))
        self.totals.raise_to((tap.node, tap.axis, "max"), found.abs_max)


def needs_moments(at: Place, **options: object) -> tuple[Statistic, ...]:
    """What criteria of moments ask for, by their option ``at``."""
    return (Moments(at),)


def moment(totals: Totals, tap: Tap, name: str) -> Floats:
    """A moment of a tap's channels, float64 of shape (channels,); ``count`` and ``samples`` have shape ()."""
    store = totals.maxima if name == "max" else totals.sums
    found: Floats = np.asarray(store[tap.node, tap.axis, name].numpy(force=True))
    return found
