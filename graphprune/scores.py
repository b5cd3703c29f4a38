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
