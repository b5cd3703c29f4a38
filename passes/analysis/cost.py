"""The cost model as an analysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graphprune.costs.cost import CostModel
from graphprune.ir.program import Program
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Analysis


@dataclass(frozen=True)
class ModelCost(Analysis[CostModel]):
    """Parameters, MACs and memory as functions of the group widths."""

    name: ClassVar[str] = "cost"
    depends: ClassVar[tuple[type[Analysis[Any]], ...]] = (ChannelGroups,)

    def compute(self, program: Program, analyses: AnalysisView) -> CostModel:
        """The cost model of the program's groups."""
        return CostModel(program, analyses.get(ChannelGroups))
