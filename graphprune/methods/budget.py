"""Budgets of runs: what must remain of the original, reached in several cuts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphprune.latency.table import LatencyTable
from graphprune.passes.selection.target import parse_target, split_target
from graphprune.runs.bench import Bench
from graphprune.runs.stage import Stage


@dataclass(frozen=True)
class Budget:
    """A target, such as ``macs=50%``, of which every cut brings the model a part of the way.

    kind: as in a target. whole: of the original; most: what must remain at most, in the same unit.
    """

    kind: str
    whole: float
    most: float

    @classmethod
    def of(cls, bench: Bench, text: str) -> Budget:
        """A budget from ``macs=50%``, a part of the ORIGINAL. Raises UsageError for text that is no target."""
        kind, value = split_target(text)
        target = parse_target(kind, value)
        whole = bench.latency_table(bench.dense()).full_ms if kind == "latency" else bench.amount(kind, 1.0)
        return cls(kind, whole, target.limit(whole))

    @property
    def latency(self) -> float | None:
        """Milliseconds of the original, where the budget is of these."""
        return self.whole if self.kind == "latency" else None

    def after(self, share: float) -> float:
        """What may remain once this share of the way is done, in the budget's unit."""
        return self.whole - share * (self.whole - self.most)

    def options(self, share: float, stage: Stage, bench: Bench) -> dict[str, Any]:
        """The option of a selection pass that takes a stage this share of the way."""
        most = self.after(share)
        # Of a latency it is the shares that count, which are measured by turns: milliseconds of different hours do not compare.
        have = (stage.latency or self.whole) if self.kind == "latency" else bench.measured(stage, self.kind)
        return {self.kind: min(1.0, most / have)}

    def table(self, stage: Stage, bench: Bench) -> LatencyTable | None:
        """The stage's latency, where the budget is one."""
        return bench.latency_table(stage) if self.kind == "latency" else None
