"""The selection pass: the fewest removals, least important first, that meet every target. Policy only: writes a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, ClassVar

import numpy as np

from graphprune.analysis_manager import AnalysisView
from graphprune.cost import CostModel
from graphprune.errors import TargetError, UsageError
from graphprune.groups import Group, Groups, Ints, Kept
from graphprune.measures import Measure
from graphprune.pass_base import Pass
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.scoring.score import latest
from graphprune.passes.selection.ranking import RANKINGS, Ranking, rank
from graphprune.passes.selection.target import KINDS, Target, parse_target
from graphprune.plan import make_plan
from graphprune.program import Program


@dataclass(frozen=True)
class SelectPass(Pass):
    """Choose what to remove by the last scores.

    channels, params, macs, flops, weight_bytes, memory: what must remain, as a share (``0.5``, ``50%``) or an amount (``60M``,
    ``20MB``); several are met together. ranking: ``global|local|isomorphic``. round_to: kept channels of each group are a
    multiple of this where the group is wide enough. min_channels: units that every group keeps at least. max_ratio: largest
    share of a group that may go. The result is exact to one unit (to one step of ``round_to``).
    """

    name: ClassVar[str] = "select"
    requires: ClassVar[tuple[Any, ...]] = (ChannelGroups, ModelCost)
    preserves: ClassVar[Any] = "all"
    needs: ClassVar[tuple[str, ...]] = ("scores",)
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    channels: float | str | None = None
    params: float | str | None = None
    macs: float | str | None = None
    flops: float | str | None = None
    weight_bytes: float | str | None = None
    memory: float | str | None = None
    ranking: str = "global"
    round_to: int = 1
    min_channels: int = 1
    max_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not self.targets:
            raise UsageError(f"select needs a target, as in select{{macs=50%}}; choose from {', '.join(KINDS)}.")
        if self.ranking not in RANKINGS:
            raise UsageError(f"select{{ranking={self.ranking}}} is not known; choose from {', '.join(RANKINGS)}.")
        if self.round_to < 1 or self.min_channels < 1 or not 0 < self.max_ratio <= 1:
            raise UsageError("select needs round_to and min_channels of at least 1, and max_ratio over 0 and at most 1.")

    @property
    def targets(self) -> list[Target]:
        """The targets that were given."""
        given = ((kind, getattr(self, kind)) for kind in KINDS)
        return [parse_target(kind, value) for kind, value in given if value is not None]

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Attach the plan. Raises TargetError when a target cannot be met, saying how far the model can go."""
        groups, cost = analyses.get(ChannelGroups), analyses.get(ModelCost)
        scores = latest(program.scores)
        ranking = rank(scores.values, groups, self.ranking, self._floors(groups))
        widths_after = self._widths(ranking, groups)
        count = _fewest_removals(ranking, widths_after, cost, self.targets, groups)
        widths = widths_after(count)
        kept = _keep_most_important(ranking, widths, groups)
        plan = make_plan(
            program.module,
            groups,
            kept,
            policy=dict(program.policy),
            scopes=[scope.path for scope in program.scopes],
            scores={scores.criterion: dict(scores.provenance)},
            target={target.kind: target.text for target in self.targets},
            achieved=_achieved(cost, widths, groups, self.targets),
        )
        return program.with_(plan=plan)

    def _floors(self, groups: Groups) -> Ints:
        sizes = groups.widths
        floors: Ints = np.maximum(self.min_channels, np.ceil(sizes * (1 - self.max_ratio) - 1e-9).astype(np.int64))
        return floors

    def _widths(self, ranking: Ranking, groups: Groups) -> Callable[[int], Ints]:
        full = groups.widths
        steps = np.ones_like(full)
        if self.round_to > 1:
            steps = np.array([self.round_to // gcd(self.round_to, _channels_per_unit(group)) for group in groups.prunable])

        def widths_after(count: int) -> Ints:
            raw = ranking.widths_after(count, full)
            widths: Ints = np.minimum(full, -(-raw // steps) * steps)
            return widths

        return widths_after


def _channels_per_unit(group: Group) -> int:
    """Indices that one unit takes on each of its axes, as far as they agree (64 for a head of 64)."""
    return gcd(*(member.multiplicity for member in group.members))


def _fewest_removals(
    ranking: Ranking, widths_after: Callable[[int], Ints], cost: CostModel, targets: Sequence[Target], groups: Groups
) -> int:
    """The shortest prefix of the ranking that meets all targets, by bisection: costs only fall along it."""
    costs = cost.measures()
    limits = [(costs[t.kind], t.limit(float(costs[t.kind](groups.widths)))) for t in targets]

    def met(count: int) -> bool:
        widths = widths_after(count)
        return all(float(measure(widths)) <= limit for measure, limit in limits)

    low, high = 0, ranking.units.size
    if not groups.prunable or not met(high):
        raise _out_of_reach(targets, costs, widths_after(high), groups)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle + 1, high)
    return low


def _out_of_reach(targets: Sequence[Target], costs: Mapping[str, Measure], least: Ints, groups: Groups) -> TargetError:
    for target in targets:
        measure = costs[target.kind]
        original, reachable = float(measure(groups.widths)), float(measure(least))
        if not groups.prunable or reachable > target.limit(original):
            # Kernel extents (axes from 2 on) are no channels and nothing that a user could free.
            frozen = sorted((g for g in groups.frozen if any(m.axis < 2 for m in g.members)), key=lambda g: -_slice_count(g))
            blockers = dict.fromkeys(f"{g.name} ({g.reason})" for g in frozen)
            names = "; ".join(list(blockers)[:3]) or "no frozen group, only the floors of each group"
            share = reachable / original if original else 1.0
            return TargetError(
                f"Target {target} cannot be met: with these options the model can go down to {share:.1%} "
                f"({reachable:,.0f} {measure.unit or target.kind}). In the way: {names}. "
                "Loosen the target, exclude, min_channels, max_ratio or round_to."
            )
    raise AssertionError("some target is out of reach")


def _slice_count(group: Group) -> int:
    return group.size * sum(member.multiplicity for member in group.members)


def _keep_most_important(ranking: Ranking, widths: Ints, groups: Groups) -> Kept:
    """The units that stay at these widths: each group loses its first in the ranking."""
    by_group = np.argsort(ranking.groups, kind="stable")
    owner = ranking.groups[by_group]
    place = np.arange(owner.size) - np.searchsorted(owner, owner)  # of each unit in its group's order
    keep = np.ones(groups.unit_count, dtype=bool)
    keep[ranking.units[by_group[place < (groups.widths - widths)[owner]]]] = False
    return Kept(groups, keep)


def _achieved(cost: CostModel, widths: Ints, groups: Groups, targets: Sequence[Target]) -> dict[str, float]:
    """Shares of the original that remain."""
    kinds = dict.fromkeys(("channels", "params", "macs", *(target.kind for target in targets)))
    measures = cost.measures()
    amounts = {kind: measures[kind](np.stack([widths, groups.widths])).tolist() for kind in kinds}
    return {kind: round(left / max(1.0, original), 6) for kind, (left, original) in amounts.items()}
