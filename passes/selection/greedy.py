"""The greedy pass: step by step, the units that cost the least score for what they save. Policy only: writes a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphprune.passes.selection.decision import Budgeted, Question
from graphprune.passes.selection.local_search import grown, shrunk, top
from graphprune.passes.selection.settle import Choice
from graphprune.pipeline.analysis_manager import AnalysisView


@dataclass(frozen=True)
class GreedyPass(Budgeted):
    """Remove units step by step, those with the least score for what they save, until all targets are met.

    What a step saves is the change of the target's measure at the widths so far; of several targets, of those that are not met
    yet, as shares of what they allow. Units without a score stay. In the end what still fits comes back. Targets and floors: see
    :class:`~graphprune.passes.selection.decision.Budgeted`.
    """

    name: ClassVar[str] = "greedy"

    def choose(self, question: Question, analyses: AnalysisView) -> Choice:
        """The widths when all targets are met."""
        question = question.with_silent_units()
        question.check_reachable(question.least)
        choices = question.choices()
        items = shrunk(choices, question.bounds, top(choices))
        return Choice(choices.at(grown(choices, question.bounds, items)))
