"""The most valuable widths within bounds on joint costs: a solver of sums, put right by the true measures.

Costs are joint: what a channel costs depends on the widths of the layers beside it. Taken in pairs the problem that is solved
has these products. Taken apart it is a sum over groups around a choice of widths (an *anchor*): first the full model's, then the
solution's own, as long as that finds a better one. The true measures decide: among the solutions for all budgets the one is
taken that still meets them, and then improved by single steps and exchanges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from graphprune.channels.groups import Floats, Ints
from graphprune.errors import CheckError, TargetError
from graphprune.passes.selection.bounds import Bounds
from graphprune.passes.selection.linearised import additive, changes, pair_count, pairwise
from graphprune.passes.selection.local_search import polished, top
from graphprune.passes.selection.solvers import chain, dynamic, mixed_integer
from graphprune.passes.selection.solvers.problem import Choices, Constraint

_ROUNDS: Final = 4  # anchors at most
_WEIGHINGS: Final = 6  # of several bounds against each other
_CHAIN_CELLS: Final = 25_000_000  # of 8 bytes, in the tables of the dynamic programme over pairs
_SHARPNESS: Final = 4.0  # how fast their weights follow how full they are: the n-th time by an n-th of this, or they swing
_FEW_PAIRS: Final = 2_000  # pairs of candidates up to which pairwise=auto takes them together
_FEW: Final = 2_000  # candidates up to which solver=auto takes several bounds to HiGHS
_LARGE: Final = 5_000  # candidates and pairs from which HiGHS may stop within a hundred-thousandth of the optimum
_BETTER: Final = 1e-9  # relative gain in value that counts as one


@dataclass(frozen=True)
class Search:
    """What is searched, and how. The narrowest choice must meet the bounds.

    solver: one of :data:`SOLVERS`. together: one of :data:`PAIRWISE`. buckets: of the dynamic programme.
    """

    choices: Choices
    bounds: Bounds
    solver: str
    together: str
    buckets: int

    def run(self) -> Ints:
        """The best choice found: a candidate of each group. Raises CheckError where HiGHS is asked for and comes to no end."""
        try:
            return self._from_anchors()
        except CheckError:
            if self.solver != "auto":
                raise
            return replace(self, solver="dynamic", together="no")._from_anchors()

    def _from_anchors(self) -> Ints:
        anchor = top(self.choices)
        best: Ints | None = None
        around = self._in_pairs if PAIRWISE[self.together](pair_count(self.choices, self.bounds)) else self._apart
        for _ in range(_ROUNDS):
            raw = around(anchor)
            found = polished(self.choices, self.bounds, raw)
            if best is not None and self.choices.value(found) <= self.choices.value(best) + _BETTER * abs(self.choices.value(best)):
                break
            best = found
            if np.array_equal(anchor, found) or (around == self._in_pairs and np.array_equal(raw, found)):
                break  # nothing to put right
            anchor = found
        assert best is not None
        return best

    def _in_pairs(self, anchor: Ints) -> Ints:
        constraints = pairwise(self.choices, self.bounds, anchor)
        if self.solver == "dynamic" and len(constraints) == 1:
            buckets = min(self.buckets, _CHAIN_CELLS // sum(widths.size for widths in self.choices.widths))
            return self._safely(lambda: chain.solve(self.choices.values, constraints[0], buckets))
        return self._safely(lambda: self._milp(constraints))

    def _apart(self, anchor: Ints) -> Ints:
        return SOLVERS[self.solver](self, anchor)

    def _safely(self, solve: Callable[[], Ints]) -> Ints:
        """A solution, or the narrowest choice where the sums, which are not the true costs, say that there is none."""
        try:
            return solve()
        except TargetError:
            return np.zeros(len(self.choices.widths), dtype=np.int64)

    def _milp(self, constraints: list[Constraint]) -> Ints:
        size = sum(v.size for v in self.choices.values) + sum(p.costs.size for c in constraints for p in c.pairs)
        return mixed_integer.solve(self.choices.values, constraints, gap=1e-5 if size > _LARGE else 0.0)

    def milp(self, anchor: Ints) -> Ints:
        """By HiGHS, all bounds at once."""
        constraints = additive(self.choices, self.bounds, anchor)
        return self._safely(lambda: self._milp(constraints))

    def dynamic(self, anchor: Ints) -> Ints:
        """By dynamic programming; of several bounds over a weighted sum of them, the fuller ones weighing more."""
        alone, count = changes(self.choices, self.bounds, anchor), self.bounds.most.size
        if count == 1:
            return self._swept(alone, np.ones(1))
        alone = [change / np.where(self.bounds.most > 0, self.bounds.most, 1) for change in alone]
        weights = np.full(count, 1 / max(1, count))
        found: list[Ints] = []
        for weighing in range(1, _WEIGHINGS + 1):
            items = self._swept(alone, weights)
            if found and np.array_equal(items, found[-1]):
                break
            found.append(items)
            loads = self.bounds.loads(self.choices.at(items))
            weights = weights * loads ** (_SHARPNESS / weighing)
            weights = weights / (weights.sum() or 1.0)
        return max(found, key=self.choices.value)

    def _swept(self, alone: list[Floats], weights: Floats) -> Ints:
        """Of the best choices for all budgets the one for the largest that meets the bounds, by bisection."""
        costs = [change @ weights for change in alone]
        table = dynamic.tabulate(self.choices.values, costs, float(sum(cost.max() for cost in costs)), self.buckets)
        low, high = 0, table.capacity
        while low < high:
            middle = (low + high + 1) // 2
            met = self.bounds.met(self.choices.at(table.choose_bucket(middle)))
            low, high = (middle, high) if met else (low, middle - 1)
        items = table.choose_bucket(low)
        return items if self.bounds.met(self.choices.at(items)) else np.zeros_like(items)

    def automatic(self, anchor: Ints) -> Ints:
        """Several bounds by HiGHS where there are few candidates, all else by dynamic programming."""
        few = sum(widths.size for widths in self.choices.widths) <= _FEW
        return self.milp(anchor) if few and self.bounds.most.size > 1 else self.dynamic(anchor)


#: How sums are solved.
SOLVERS: Final[Mapping[str, Callable[[Search, Ints], Ints]]] = {
    "auto": Search.automatic,
    "dynamic": Search.dynamic,
    "milp": Search.milp,
}
#: Whether costs of coupled groups are taken together, given how many pairs of candidates there are.
PAIRWISE: Final[Mapping[str, Callable[[int], bool]]] = {
    "auto": lambda count: count <= _FEW_PAIRS,
    "no": lambda count: False,
    "yes": lambda count: True,
}
