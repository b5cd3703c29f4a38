"""The greedy pass: step by step, the units that cost the least score for what they save. Policy only: writes a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphprune.analysis_manager import AnalysisView
from graphprune.passes.selection.decision import Budgeted
from graphprune.passes.selection.local_search import grown, shrunk, top
from graphprune.program import Program


@dataclass(frozen=True)
class GreedyPass(Budgeted):
    """Remove units step by step, those with the least score for what they save, until all targets are met.

    What a step saves is the change of the target's measure at the widths so far; of several targets, of those that are not met
    yet, as shares of what they allow. Units without a score stay. In the end what still fits comes back. Targets and floors: see
    :class:`~graphprune.passes.selection.decision.Budgeted`.
    """

    name: ClassVar[str] = "greedy"

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Attach the plan. Raises TargetError when a target cannot be met, saying how far the model can go."""
        question = self.question(program, analyses).with_silent_units()
        question.check_reachable(question.least)
        choices = question.choices()
        items = shrunk(choices, question.bounds, top(choices))
        return question.decide(choices.at(grown(choices, question.bounds, items)))
