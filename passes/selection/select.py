"""The selection pass: the fewest removals, least important first, that meet every target. Policy only: writes a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from graphprune.channels.groups import Ints
from graphprune.errors import UsageError, did_you_mean
from graphprune.passes.selection.decision import Budgeted, Question, budgeted_passes
from graphprune.passes.selection.ranking import RANKINGS, Ranking, rank
from graphprune.passes.selection.settle import Choice
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.registry import pass_class


@dataclass(frozen=True)
class SelectPass(Budgeted):
    """Choose what to remove by the last scores: the fewest removals in one order of all units that meet the targets.

    ranking: the order, ``global|local|isomorphic``. The result is exact to one unit (to one step of ``round_to``). Targets and
    floors: see :class:`~graphprune.passes.selection.decision.Budgeted`.
    """

    name: ClassVar[str] = "select"

    ranking: str = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choices(ranking=RANKINGS)

    def choose(self, question: Question, analyses: AnalysisView) -> Choice:
        """The widths after the fewest removals."""
        ranking = rank(question.scores.values, question.groups, self.ranking, question.floors)
        widths = fewest_removals(ranking, question)
        lattice = question.lattice
        return Choice(widths if lattice is None else lattice.grown(widths, lambda wider: bool(question.bounds.met(wider))))


def fewest_removals(ranking: Ranking, question: Question) -> Ints:
    """Widths after the shortest prefix of the ranking that meets all bounds, by bisection: costs only fall along it."""

    def widths_after(count: int) -> Ints:
        return question.rounded(ranking.widths_after(count, question.groups.widths))

    low, high = 0, ranking.units.size
    question.check_reachable(widths_after(high))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if question.bounds.met(widths_after(middle)) else (middle + 1, high)
    return widths_after(low)


def selection_pass(name: str, ranking: str, options: Mapping[str, Any]) -> Budgeted:
    """The selection pass of this name. Raises UsageError where it meets no targets, or has no ranking and one is given."""
    if name not in (known := budgeted_passes()):
        raise UsageError(
            f"Pass {name!r} does not select by a target{did_you_mean(name, known, '.')} Choose from {', '.join(known)}."
        )
    found = cast(type[Budgeted], pass_class(name))
    if issubclass(found, SelectPass):
        return found(ranking=ranking, **options)
    if ranking != "global":
        raise UsageError(f"The pass {name!r} has no ranking, which is how 'select' orders units. Leave out one of them.")
    return found(**options)
