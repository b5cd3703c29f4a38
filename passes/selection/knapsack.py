"""The knapsack pass: the widths that keep the most importance within all budgets. Policy only: writes a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.channels.groups import Ints
from graphprune.errors import UsageError
from graphprune.passes.selection.decision import Budgeted, Question
from graphprune.passes.selection.local_search import polished, shrunk, top
from graphprune.passes.selection.optimum import PAIRWISE, SOLVERS, Search
from graphprune.passes.selection.ranking import RANKINGS, rank
from graphprune.passes.selection.select import fewest_removals
from graphprune.passes.selection.settle import Choice
from graphprune.passes.selection.solvers.problem import Choices
from graphprune.pipeline.analysis_manager import AnalysisView


@dataclass(frozen=True)
class KnapsackPass(Budgeted):
    """Choose the widths that keep the highest sum of the last scores within all targets: a multiple-choice knapsack.

    A group that keeps p units keeps its p most important ones; units without a score stay. solver: ``dynamic`` programming, which
    is exact on costs rounded up to ``buckets`` steps, ``milp`` (HiGHS), which takes several targets at once, or ``auto``. pairwise:
    whether costs of coupled groups are taken together (``yes``: the optimum, for few candidates; ``dynamic`` only on chains), each
    by itself and put right by the true costs (``no``), or together where that is quick (``auto``). Targets and floors: see
    :class:`~graphprune.passes.selection.decision.Budgeted`.
    """

    name: ClassVar[str] = "knapsack"

    solver: str = "auto"
    pairwise: str = "auto"
    buckets: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choices(solver=SOLVERS, pairwise=PAIRWISE)
        if self.buckets < 1:
            raise UsageError("knapsack needs at least one of buckets; 100000 is a good number.")

    def choose(self, question: Question, analyses: AnalysisView) -> Choice:
        """The most valuable widths found. Raises TargetError when a target cannot be met, saying how far the model can go, and
        CheckError where HiGHS is asked for and comes to no end."""
        question = question.with_silent_units()
        question.check_reachable(question.least)
        choices = question.choices()
        found = Search(choices, question.bounds, self.solver, self.pairwise, self.buckets).run()
        # Never less than what any order of removal keeps: costs that were taken apart are an approximation.
        other = polished(choices, question.bounds, max(_ranked(choices, question), key=choices.value))
        return Choice(choices.at(max(found, other, key=choices.value)))


def _ranked(choices: Choices, question: Question) -> Iterator[Ints]:
    """The choices that removal in one order makes, and that of removal by what each step saves."""
    yield shrunk(choices, question.bounds, top(choices))
    for how in RANKINGS:
        ranking = rank(question.scores.values, question.groups, how, question.floors)
        widths = fewest_removals(ranking, question)
        yield np.array([np.searchsorted(w, width) for w, width in zip(choices.widths, widths, strict=True)], dtype=np.int64)
