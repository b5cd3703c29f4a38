"""The pass that binds widths to what a config can state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graphprune.ir.program import Program
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Pass
from graphprune.streaming.family import Family


@dataclass(frozen=True)
class LeversPass(Pass):
    """Note which groups only shrink together, and in what steps, as configs of a family state their widths.

    Where no config of it narrows anything, each group keeps a width of its own.
    """

    name: ClassVar[str] = "levers"
    requires: ClassVar[tuple[Any, ...]] = (ChannelGroups,)
    preserves: ClassVar[Any] = "all"
    streams: ClassVar[bool] = True

    family: Family

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """The program with its levers."""
        levers = self.family.levers(analyses.get(ChannelGroups), program.policy)
        return program.with_(levers=levers) if levers.each else program
