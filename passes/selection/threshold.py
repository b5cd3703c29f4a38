"""The threshold pass: units whose score is at most their layer's threshold go. Policy only: writes a plan."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import numpy as np

from graphprune.channels.groups import Ints
from graphprune.errors import UsageError
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.analysis.filters import Filters
from graphprune.passes.scoring.shares import SHARES
from graphprune.passes.selection.decision import Budgeted, Question
from graphprune.passes.selection.ranking import Ranking, rank
from graphprune.passes.selection.settle import Choice
from graphprune.pipeline.analysis_manager import AnalysisView


@dataclass(frozen=True)
class ThresholdPass(Budgeted):
    """Remove units whose last score is at most ``T_g = T x share_g``, g being their group (Automatic Attention Pruning).

    threshold: T; without it, the smallest T that meets the targets. share: of the group's layers in all that make prunable
    channels, by ``params`` or ``macs``, or ``none`` for the same threshold everywhere. Scores are compared as they are, across
    layers, so take ``score{normalise=none}``. Units with one score for their share go together, so a target may be exceeded by
    these. at_most: share of all units that goes, the weakest first, where a threshold would take more. Floors: see
    :class:`~graphprune.passes.selection.decision.Budgeted`.
    """

    name: ClassVar[str] = "threshold"
    requires: ClassVar[tuple[Any, ...]] = (ChannelGroups, ModelCost, Filters)

    threshold: float | None = None
    share: str = "params"
    at_most: float = 1.0

    def __post_init__(self) -> None:
        if (self.threshold is not None and self.targets) or not (self.is_open or self.keep):
            raise UsageError("threshold needs a threshold or a target, not both: threshold{threshold=0.1} or threshold{macs=50%}.")
        if self.threshold is not None and not isfinite(self.threshold):
            raise UsageError(f"threshold{{threshold={self.threshold}}} is not finite. Give a number on the scale of the scores.")
        if not 0 < self.at_most <= 1 or (self.at_most < 1 and self.threshold is None):
            raise UsageError("threshold{at_most=...} is a share over 0 and at most 1, and goes with a threshold.")
        self.check_choices(share=("none", *SHARES))
        self.check_floors()

    @property
    def is_open(self) -> bool:
        """Whether there is a threshold, or a target to find one for."""
        return self.threshold is not None or super().is_open

    def choose(self, question: Question, analyses: AnalysisView) -> Choice:
        """The widths above the threshold, which goes on record. Raises TargetError when a target cannot be met."""
        values = question.scores.values
        if self.share != "none":
            values = values / SHARES[self.share](question.groups, analyses.get(Filters))[question.groups.group_of]
        ranking = rank(values, question.groups, "global", question.floors)
        along = values[ranking.units]
        known = along[~np.isnan(along)]
        threshold = self.threshold if self.threshold is not None else _smallest(np.unique(known), known, ranking, question)
        most = int(self.at_most * question.groups.widths.sum())
        widths = _widths(threshold, known, ranking, question, most)
        return Choice(widths, {"threshold": repr(threshold), "threshold_share": self.share})


def _widths(threshold: float, known: Any, ranking: Ranking, question: Question, most: int | None = None) -> Ints:
    """Widths without the units whose values, ascending along the ranking, are at most the threshold; without so many at most."""
    count = int(np.searchsorted(known, threshold, side="right"))
    count = count if most is None else min(count, most)
    return question.rounded(ranking.widths_after(count, question.groups.widths))


def _smallest(levels: Any, known: Any, ranking: Ranking, question: Question) -> float:
    """The smallest threshold that meets all bounds: minus infinity, for none, or one of the values; by bisection."""
    thresholds = [-np.inf, *levels.tolist()]
    question.check_reachable(_widths(thresholds[-1], known, ranking, question))
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        met = question.bounds.met(_widths(thresholds[middle], known, ranking, question))
        low, high = (low, middle) if met else (middle + 1, high)
    return float(thresholds[low])
