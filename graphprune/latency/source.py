"""Where a program's latency is known from: a model that predicts it for any widths, and a way to measure some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from graphprune.groups import Ints
from graphprune.measures import Measure


class Measured(NamedTuple):
    """Milliseconds of a slim model and of the whole one, timed by turns."""

    slim: float
    whole: float

    @property
    def share(self) -> float:
        """What remains of the whole's."""
        return self.slim / self.whole


@dataclass(frozen=True)
class Latency:
    """What targets on latency are met by.

    model: predicts milliseconds for any widths. groups: whose widths these are, by name with the full width. measure: times the
    slim model of some widths here and now; None where only the predictions count.
    """

    model: Measure
    groups: Mapping[str, int]
    measure: Callable[[Ints], Measured] | None = None
