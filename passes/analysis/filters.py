"""Which parameters make the channels of each group, and which read them, as an analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphprune.channels.filters import Filter, find_filters
from graphprune.ir.program import Program
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Analysis


@dataclass(frozen=True)
class Filters(Analysis[Sequence[Filter]]):
    """The parameters that make and read channels, and the activations between them."""

    name: ClassVar[str] = "filters"
    depends: ClassVar[tuple[type[Analysis[Any]], ...]] = (ChannelGroups,)

    def compute(self, program: Program, analyses: AnalysisView) -> Sequence[Filter]:
        """The filters of the program's groups."""
        return find_filters(program, analyses.get(ChannelGroups))
