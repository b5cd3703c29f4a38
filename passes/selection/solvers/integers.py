"""Costs as integers, so that they can index a table: rounded up, never down, so that what fits the table fits the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, gcd

import numpy as np

from graphprune.passes.selection.solvers.problem import Floats, Ints

_LARGEST = 2.0**53  # integers up to here are exact in float64


@dataclass(frozen=True)
class Scale:
    """Costs per bucket, and the cost of the cheapest choice. exact: no cost was rounded."""

    bucket: float
    base: float
    exact: bool

    def buckets(self, budget: float) -> int:
        """Buckets that a budget pays for: rounded down, negative for less than the cheapest choice."""
        return floor((budget - self.base) / self.bucket)


def to_integers(costs: Sequence[Floats], budget: float, buckets: int) -> tuple[list[Ints], Scale]:
    """Costs above the cheapest of their array, in buckets; and the scale.

    Every choice takes one cost of each array, so taking off each array's minimum changes all choices alike: this is how negative
    costs become indices without an error. Integer costs that fit the table divided by their greatest common divisor stay exact.
    """
    least = [float(cost.min()) for cost in costs]
    above = [cost - low for cost, low in zip(costs, least, strict=True)]
    base = float(sum(least))
    room = budget - base
    step = _common_step(costs, above)
    if step and room / step <= buckets:
        return [np.rint(cost / step).astype(np.int64) for cost in above], Scale(float(step), base, True)
    bucket = room / buckets if room > 0 else 1.0
    # More than there is room for is all the same; the cap keeps huge costs within 64 bits.
    capped = [np.minimum(np.ceil(cost / bucket), buckets + 1.0).astype(np.int64) for cost in above]
    return capped, Scale(bucket, base, False)


def _common_step(costs: Sequence[Floats], above: Sequence[Floats]) -> int:
    """The greatest common divisor of integer costs, 0 if some are no integers."""
    flat = (
        np.concatenate(list(above)).ravel() if all(cost.ndim == 1 for cost in above) else np.concatenate([c.ravel() for c in above])
    )
    whole = all(np.array_equal(cost, np.rint(cost)) and np.abs(cost).max() < _LARGEST for cost in costs)
    return (gcd(*np.unique(flat).astype(np.int64).tolist()) or 1) if whole else 0
