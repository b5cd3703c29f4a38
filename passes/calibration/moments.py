"""Moments of every channel's activation, all in one read of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

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
        """Add the sums of a batch; keys are (node, axis, name) with the names ``sums``, ``nonzero``, ``counts`` and ``max``."""
        magnitudes = activation.abs() if activation.is_complex() else activation
        found = activation_attention(magnitudes if magnitudes.is_floating_point() else magnitudes.float())
        place = tap.node, tap.axis
        self.totals.add((*place, "sums"), torch.stack([found.sum, found.abs_sum, found.square_sum, found.fourth_sum]))
        self.totals.add((*place, "nonzero"), found.nonzero)
        count = activation.numel() // max(1, activation.shape[1])
        self.totals.add((*place, "counts"), torch.tensor([len(activation), count]))
        self.totals.raise_to((*place, "max"), found.abs_max)


def needs_moments(at: Place, **options: object) -> tuple[Statistic, ...]:
    """What criteria of moments ask for, by their option ``at``."""
    return (Moments(at),)


#: Where a moment is: the name in its key, and the row of what is there.
_PLACES: Final[Mapping[str, tuple[str, Any]]] = {
    "sum": ("sums", 0),
    "abs": ("sums", 1),
    "square": ("sums", 2),
    "fourth": ("sums", 3),
    "nonzero": ("nonzero", ...),
    "samples": ("counts", 0),
    "count": ("counts", 1),
    "max": ("max", ...),
}


def moment(totals: Totals, tap: Tap, name: str) -> Floats:
    """A moment of a tap's channels, float64 of shape (channels,); ``count`` and ``samples`` have shape ()."""
    store = totals.maxima if name == "max" else totals.sums
    key, row = _PLACES[name]
    found: Floats = np.asarray(store[tap.node, tap.axis, key][row].numpy(force=True))
    return found
