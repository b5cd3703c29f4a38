"""The multiple-choice knapsack by dynamic programming: exact on the rounded costs, vectorised over the budget.

``f_l[c] = max over candidates p with w_l[p] <= c of f_{l-1}[c - w_l[p]] + v_l[p]``, f_0 = 0. One table answers every budget up
to its own. What is stored of each stage is f_l itself, 8 bytes for each bucket: the choice at (l, c) is the cheapest candidate
that attains f_l[c], found again by the same sum, so that it costs one pass over a group's candidates when it is asked for
instead of a second array that the inner loop would have to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.passes.selection.solvers.integers import Scale, to_integers
from graphprune.passes.selection.solvers.problem import Floats, Ints, check_shapes, no_choice


@dataclass(frozen=True)
class _Stage:
    """A group that was added to the table: its useful candidates, in order of cost, and the best values before it."""

    group: int
    items: Ints
    costs: Ints
    values: Floats
    before: Floats


@dataclass(frozen=True)
class Table:
    """The best choice for every budget up to the one that the table was made for. scale: what its buckets are worth."""

    scale: Scale
    best: Floats
    _stages: tuple[_Stage, ...]

    @property
    def capacity(self) -> int:
        """The most buckets that make a difference."""
        return self.best.size - 1

    def choose(self, budget: float) -> Ints:
        """The most valuable choice within a budget: a candidate for each group. Raises TargetError if there is none."""
        buckets = self.scale.buckets(budget)
        if buckets < 0:
            raise no_choice(budget, self.scale.base)
        return self.choose_bucket(min(buckets, self.capacity))

    def choose_bucket(self, bucket: int) -> Ints:
        """The most valuable choice within a number of buckets, from 0 to the capacity; of equal ones the cheapest at each stage."""
        chosen = np.zeros(len(self._stages), dtype=np.int64)
        for stage in reversed(self._stages):
            fits = stage.costs[: np.searchsorted(stage.costs, bucket, side="right")]
            left = bucket - fits
            place = int(np.argmax(stage.before[np.minimum(left, stage.before.size - 1)] + stage.values[: fits.size]))
            chosen[stage.group] = stage.items[place]
            bucket = int(left[place])
        return chosen


def solve(values: Sequence[Floats], costs: Sequence[Floats], budget: float, buckets: int = 100_000) -> Ints:
    """One candidate of each group, for the most value at a total cost of at most ``budget``.

    values, costs: for each group an array over its candidates; any finite numbers. Costs are rounded up to ``buckets`` steps
    between the cheapest choice and the budget, so the answer keeps within the budget, and is the optimum where costs are
    integers with no more steps than that. Time is O(candidates x buckets), memory 8 bytes x groups x buckets. Raises
    TargetError if no choice fits.
    """
    return tabulate(values, costs, budget, buckets).choose(budget)


def tabulate(values: Sequence[Floats], costs: Sequence[Floats], budget: float, buckets: int = 100_000) -> Table:
    """The best choices for all budgets up to ``budget``; see :func:`solve`."""
    check_shapes(values, costs)
    whole, scale = to_integers(costs, budget, buckets)
    capacity = scale.buckets(budget)
    if capacity < 0:
        raise no_choice(budget, scale.base)
    stages: list[_Stage] = []
    best = np.zeros(1)
    # Wide groups first, while the table is short: it is no longer than what the groups so far can cost.
    for group in sorted(range(len(whole)), key=lambda group: -whole[group].size):
        items = _front(values[group], whole[group], capacity)
        stage = _Stage(group, items, whole[group][items], values[group][items], best)
        stages.append(stage)
        best = _extended(stage, capacity)
    return Table(scale, best, tuple(stages))


def _front(values: Floats, costs: Ints, capacity: int) -> Ints:
    """Candidates that fit and are worth more than all that cost no more, in order of cost; of equals the first."""
    order = np.lexsort((-values, costs))
    order = order[costs[order] <= capacity]
    highest = np.maximum.accumulate(values[order])
    useful: Ints = order[np.concatenate([[True], values[order][1:] > highest[:-1]])]
    return useful


def _extended(stage: _Stage, capacity: int) -> Floats:
    """The best values with one more group. Beyond an array's end its last value holds: nothing costs more than that."""
    before = stage.before
    size = min(capacity, before.size - 1 + int(stage.costs[-1])) + 1
    best = np.full(size, -np.inf)
    spare = np.empty(before.size)
    for cost, value in zip(stage.costs.tolist(), stage.values.tolist(), strict=True):
        count = min(before.size, size - cost)
        target = best[cost : cost + count]
        np.maximum(target, np.add(before[:count], value, out=spare[:count]), out=target)
    return np.asarray(np.maximum.accumulate(best, out=best))
