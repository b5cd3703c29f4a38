"""What was measured of a model's time, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt

_MEDIAN: Final = 1.858  # standard error of a median of n values: so many times half of their quartiles' distance, over sqrt(n)
_ONE_ERROR: Final = 0.8413447460685429  # share of a normal distribution that is below one standard error above its mean

Floats = npt.NDArray[np.float64]
Positive = Annotated[FiniteFloat, Field(gt=0)]


class Timing(BaseModel):
    """Milliseconds of one call of a model, over copies of it that lie elsewhere in memory.

    median_ms: of each copy's turns the median, and of the copies the (geometric) mean. low_ms, high_ms: quartiles of all turns.
    runs: calls that were timed. turns: that these were made in. p95_ms: what 95 % of the turns stay below, where it was noted.
    copies_ms: the median of each copy; empty where only one was timed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    median_ms: Positive
    low_ms: Positive
    high_ms: Positive
    runs: PositiveInt
    turns: PositiveInt = 1
    p95_ms: Positive | None = None
    copies_ms: tuple[Positive, ...] = ()

    @property
    def error(self) -> float:
        """The standard error of ``median_ms``, as a share of it: of the copies' mean, of one copy that of its turns' median."""
        if len(self.copies_ms) > 1:
            return standard_error(np.log(self.copies_ms))
        return float(_MEDIAN * self.spread / self.turns**0.5)

    @property
    def spread(self) -> float:
        """Half of the quartiles' distance, as a share of the median."""
        return (self.high_ms - self.low_ms) / 2 / self.median_ms

    def over(self, other: Timing) -> Ratio:
        """This time as a share of another's; copies that were timed by turns with each other are compared with each other.

        >>> both = {"low_ms": 1, "high_ms": 1, "runs": 4}
        >>> slim = Timing(median_ms=0.5, copies_ms=(0.4, 0.625), **both)
        >>> print(slim.over(Timing(median_ms=1, copies_ms=(0.8, 1.25), **both)))
        0.500 ± 0.000
        """
        paired = len(self.copies_ms) == len(other.copies_ms) > 1
        error = standard_error(np.log(self.copies_ms) - np.log(other.copies_ms)) if paired else self.error + other.error
        return Ratio(self.median_ms / other.median_ms, error)


@dataclass(frozen=True)
class Ratio:
    """One time as a share of another. error: its standard error, as a share of the ratio."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.value * self.error:.3f}"

    @property
    def percent(self) -> str:
        """Both in per cent of the other time.

        >>> Ratio(0.6, 0.005).percent
        '60.0% ± 0.3%'
        """
        return f"{self.value:.1%} ± {self.value * self.error:.1%}"


def standard_error(values: npt.ArrayLike) -> float:
    """The standard error of the mean of two or more independent values.

    Few values say little about their own spread. So it is widened by Student's t: the true mean lies within one error of the
    values' in 68 % of all cases, as with many.

    >>> round(standard_error([1.0, 3.0]), 2)  # 1 without the widening
    1.84
    """
    from scipy.special import stdtrit  # not before it is needed: it takes long to import

    given = np.asarray(values, dtype=np.float64)
    plain = given.std(ddof=1) / given.size**0.5
    return float(plain * stdtrit(given.size - 1, _ONE_ERROR))


def uncertainty(timings: Sequence[Timing]) -> float:
    """The largest standard error of the ratio of any two times; of a single one its own."""
    return max((one.over(other).error for one, other in combinations(timings, 2)), default=timings[0].error)
