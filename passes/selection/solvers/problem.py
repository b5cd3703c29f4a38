"""The group knapsack as data: one candidate of each group is chosen, for the most value within limits on costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from graphprune.errors import TargetError, UsageError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choices:
    """What there is to choose from: for every group its widths, ascending, and what each is worth."""

    widths: tuple[Ints, ...]
    values: tuple[Floats, ...]

    def at(self, items: Ints) -> Ints:
        """The widths of candidates (indices), one of each group; shapes (..., groups)."""
        found: Ints = self._flat[self._starts + items]
        return found

    @cached_property
    def _flat(self) -> Ints:
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.widths])

    @cached_property
    def _starts(self) -> Ints:
        sizes = np.array([widths.size for widths in self.widths], dtype=np.int64)
        return np.cumsum(sizes) - sizes

    def value(self, items: Ints) -> float:
        """What a choice is worth."""
        return total(self.values, items)


@dataclass(frozen=True)
class Pair:
    """A cost of two groups together; costs has shape (candidates of first, candidates of second)."""

    first: int
    second: int
    costs: Floats


@dataclass(frozen=True)
class Constraint:
    """``sum of costs[group][candidate] + sum of pairs <= limit``. Costs may be negative."""

    costs: tuple[Floats, ...]
    limit: float
    pairs: tuple[Pair, ...] = ()

    def cost(self, items: Ints) -> float:
        """The cost of a choice."""
        return total(self.costs, items) + float(sum(pair.costs[items[pair.first], items[pair.second]] for pair in self.pairs))


def total(parts: Sequence[Floats], items: Ints) -> float:
    """The sum over groups of what one candidate of each contributes."""
    return float(sum(part[item] for part, item in zip(parts, items, strict=True)))


def check_shapes(values: Sequence[Floats], costs: Sequence[Floats]) -> None:
    """Raise UsageError unless every group has candidates, with a finite value and a cost each."""
    if len(values) != len(costs) or any(
        v.shape != c.shape or v.ndim != 1 or not v.size for v, c in zip(values, costs, strict=True)
    ):
        raise UsageError("A knapsack needs a value and a cost for every candidate, and at least one candidate in each group.")
    if not all(np.isfinite(part).all() for part in (*values, *costs)):
        raise UsageError("A knapsack needs finite values and costs. Leave out candidates that cannot be had.")


def no_choice(limit: float, least: float) -> TargetError:
    """The error for a limit that even the cheapest choice exceeds."""
    return TargetError(f"No choice of widths costs {limit:,.6g} or less; the cheapest costs {least:,.6g}. Loosen the target.")
