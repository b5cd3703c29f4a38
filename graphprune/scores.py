"""Scores: one importance for every unit, as a scoring pass leaves it on the program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Scores:
    """Importance of every unit by one criterion; higher stays longer.

    criterion: the criterion's name. values: float64, shape (units,), NaN for units without a score.
    provenance: the options that produced it, for the plan.
    """

    criterion: str
    values: npt.NDArray[np.float64]
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values.setflags(write=False)


def span(values: npt.NDArray[np.float64]) -> list[str]:
    """The least, median and largest score among those that are known, as people read them.

    >>> span(np.array([3.0, np.nan, 1.0])), span(np.array([]))
    (['1', '2', '3'], ['-', '-', '-'])
    """
    known = values[np.isfinite(values)]
    return [f"{value:.3g}" for value in (known.min(), np.median(known), known.max())] if known.size else ["-"] * 3
