"""Joint costs as sums: what changes against a choice if one group has another width, and if two have.

``cost(w) = cost(a) + sum_l K_l(w_l) + sum_{l<m} D_lm(w_l, w_m) + ...`` around an anchor a, where K_l is the change with group l
alone at w_l, and D_lm what the change with both differs from the sum of the two. Up to D this is exact for sums of products of
two widths, such as the parameters and MACs of convolutions, and for any terms of at most two groups.
"""

from __future__ import annotations

import numpy as np

from graphprune.channels.groups import Floats, Ints
from graphprune.passes.selection.bounds import Bounds
from graphprune.passes.selection.solvers.problem import Choices, Constraint, Pair


def changes(choices: Choices, bounds: Bounds, anchor: Ints) -> list[Floats]:
    """For each group the change of the amounts with this group alone at each candidate; shapes (candidates, bounds)."""
    base = choices.at(anchor)
    found = []
    for group, widths in enumerate(choices.widths):
        rows = np.tile(base, (widths.size, 1))
        rows[:, group] = widths
        found.append(bounds.amounts(rows) - bounds.amounts(base))
    return found


def additive(choices: Choices, bounds: Bounds, anchor: Ints) -> list[Constraint]:
    """The bounds as sums over groups around a choice.

    Where the anchor exceeds a bound, what is to be saved is scaled so that the narrowest choice saves what it really does: widths
    shrink together, and what one saves is less where the others are narrow. The nearer the anchor is to the solution, the less
    that matters.
    """
    alone = changes(choices, bounds, anchor)
    amounts, least = bounds.amounts(choices.at(anchor)), bounds.amounts(choices.at(np.zeros_like(anchor)))
    claimed = np.sum([change[0] for change in alone], axis=0)
    scaled = (claimed < 0) & (least < amounts) & (amounts > bounds.most)
    calibration = np.divide(least - amounts, claimed, out=np.ones_like(claimed), where=scaled)
    room = (bounds.most - amounts) / calibration
    return [Constraint(tuple(change[:, b] for change in alone), float(room[b])) for b in range(room.size)]


def pair_count(choices: Choices, bounds: Bounds) -> int:
    """Pairs of candidates of coupled groups."""
    return sum(choices.widths[first].size * choices.widths[second].size for first, second in bounds.pairs)


def pairwise(choices: Choices, bounds: Bounds, anchor: Ints) -> list[Constraint]:
    """The bounds as sums over groups and pairs of coupled groups around a choice."""
    alone = changes(choices, bounds, anchor)
    base = choices.at(anchor)
    amounts = bounds.amounts(base)
    pairs: list[list[Pair]] = [[] for _ in range(amounts.size)]
    for first, second in bounds.pairs:
        one, other = choices.widths[first], choices.widths[second]
        rows = np.tile(base, (one.size, other.size, 1))
        rows[:, :, first], rows[:, :, second] = one[:, None], other[None]
        both = bounds.amounts(rows) - amounts - alone[first][:, None] - alone[second][None]
        for bound in np.flatnonzero(np.abs(both).max(axis=(0, 1)) > 0).tolist():
            pairs[bound].append(Pair(first, second, both[:, :, bound]))
    room = bounds.most - amounts
    return [Constraint(tuple(change[:, b] for change in alone), float(room[b]), tuple(pairs[b])) for b in range(room.size)]
