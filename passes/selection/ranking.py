"""Rankings: one order in which all units would go, from scores within groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphprune.channels.groups import Group, Groups, Ints
from graphprune.criteria import Floats
from graphprune.passes.scoring.score import unit_order


@dataclass(frozen=True)
class Ranking:
    """Units in the order of removal, with their groups; units that may not go are left out.

    units, groups: int64, shape (removable units,). A group's units appear from least to most important.
    """

    units: Ints
    groups: Ints

    def widths_after(self, count: int, full: Ints) -> Ints:
        """Width of every group once the first ``count`` units are gone."""
        return full - np.bincount(self.groups[:count], minlength=full.size)


def rank(values: Floats, groups: Groups, how: str, floors: Ints) -> Ranking:
    """Order all units. floors: how many units each group must keep (its most important ones).

    ``global``: by score. ``local``: by rank within the group, so that all groups shrink alike. ``isomorphic``: by rank
    among all units of groups with the same structure (Fang et al., Isomorphic Pruning, ECCV 2024). Units without a score (NaN)
    come last.
    """
    ordered = unit_order(values, groups)
    keys = RANKINGS[how](values, groups, ordered)
    units, group_of, order_keys = [], [], []
    for group, (sequence, key) in enumerate(zip(ordered, keys, strict=True)):
        count = max(0, sequence.size - int(floors[group]))
        units.append(sequence[:count])
        order_keys.append(key[:count])
        group_of.append(np.full(count, group, dtype=np.int64))
    if not units:
        return Ranking(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    # Keys never fall within a group, whose units come in order of importance: a stable sort keeps that order.
    order = np.argsort(np.concatenate(order_keys), kind="stable")
    return Ranking(np.concatenate(units)[order], np.concatenate(group_of)[order])


def _global(values: Floats, groups: Groups, ordered: Sequence[Ints]) -> list[Floats]:
    return [values[units] for units in ordered]


def _local(values: Floats, groups: Groups, ordered: Sequence[Ints]) -> list[Floats]:
    return [np.where(np.isnan(values[units]), np.nan, np.arange(1, units.size + 1) / units.size) for units in ordered]


def _isomorphic(values: Floats, groups: Groups, ordered: Sequence[Ints]) -> list[Floats]:
    pools: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
    for group in groups.prunable:
        pools[_structure(group)].append(group.index)
    keys: list[Floats] = [np.zeros(0)] * len(ordered)
    for members in pools.values():
        pooled = np.concatenate([values[ordered[m]] for m in members])
        pooled = np.sort(pooled[~np.isnan(pooled)])
        for m in members:
            own = values[ordered[m]]
            keys[m] = np.where(np.isnan(own), np.nan, np.searchsorted(pooled, own, side="right") / max(1, pooled.size))
    return keys


def _structure(group: Group) -> tuple[tuple[str, int], ...]:
    """What kinds of slices a unit has, whatever the layers are called and however wide they are."""
    return tuple(sorted((member.tensor.rpartition(".")[2], member.axis) for member in group.members))


RANKINGS: Mapping[str, Callable[[Floats, Groups, Sequence[Ints]], list[Floats]]] = {
    "global": _global,
    "local": _local,
    "isomorphic": _isomorphic,
}
