"""Which parameters make the channels of each group, and which read them, as an analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphprune.analysis_manager import AnalysisView
from graphprune.filters import Filter, find_filters
from graphprune.pass_base import Analysis
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.program import Program


@dataclass(frozen=True)
class Filters(Analysis[Sequence[Filter]]):
    """The parameters that make and read channels, and the activations between them."""

    name: ClassVar[str] = "filters"
    depends: ClassVar[tuple[type[Analysis[Any]], ...]] = (ChannelGroups,)

    def compute(self, program: Program, analyses: AnalysisView) -> Sequence[Filter]:
        """The filters of the program's groups."""
        return find_filters(program, analyses.get(ChannelGroups))
