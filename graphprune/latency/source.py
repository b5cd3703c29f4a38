"""Where a program's latency is known from: a model that predicts it for any widths, and a way to measure some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from graphprune.channels.groups import Floats, Ints
from graphprune.costs.measures import Measure
from graphprune.latency.timing import Ratio


@dataclass(frozen=True)
class Measured:
    """Milliseconds of a slim model and of the whole one, timed by turns.

    error: relative standard error of their ratio. parts: milliseconds of the slim model that each term of the latency model stands
    for, NaN where it was not timed; empty where none was.
    """

    slim: float
    whole: float
    error: float = 0.0
    parts: Floats | None = None

    @property
    def share(self) -> float:
        """What remains of the whole's."""
        return self.slim / self.whole

    @property
    def ratio(self) -> Ratio:
        """The share with its error."""
        return Ratio(self.share, self.error)

    def pooled(self, again: Measured) -> Measured:
        """Both measurements of the same models as one: the surer one counts more.

        Where they differ by more than their errors say, something changed between them, and the error of both grows by as much
        (the scale factor of the Particle Data Group, or Birge's ratio).
        """
        least = 1e-9  # so that two exact ones have a mean
        mine, theirs = (1 / (one.error**2 + least**2) for one in (self, again))
        weight = theirs / (mine + theirs)
        surprise = abs(np.log(self.share / again.share)) / np.sqrt(1 / mine + 1 / theirs)

        def mean(one: float, other: float) -> float:
            return float(one ** (1 - weight) * other**weight)

        parts = self.parts if self.parts is None or again.parts is None else (self.parts + again.parts) / 2
        error = max(1.0, float(surprise)) / float(np.sqrt(mine + theirs))
        return Measured(mean(self.slim, again.slim), mean(self.whole, again.whole), error, parts)


@dataclass(frozen=True)
class Latency:
    """What targets on latency are met by.

    model: predicts milliseconds for any widths. groups: whose widths these are, by name with the full width. measure: times the
    slim model of some widths here and now; None where only the predictions count.
    """

    model: Measure
    groups: Mapping[str, int]
    measure: Callable[[Ints], Measured] | None = None
