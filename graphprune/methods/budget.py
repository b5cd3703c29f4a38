"""Budgets of runs: what must remain of the original, and of some of its layers, reached in several cuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphprune.channels.filters import find_filters
from graphprune.latency.table import LatencyTable
from graphprune.passes.selection.keeping import Given, given_widths
from graphprune.passes.selection.target import parse_target, split_target
from graphprune.runs.bench import Bench
from graphprune.runs.stage import Stage


@dataclass(frozen=True)
class Budget:
    """A target, such as ``macs=50%``, and widths of some groups, of which every cut brings the model a part of the way.

    kind: as in a target; empty where there is none. whole: of the original; most: what must remain at most, in the same unit.
    given: of the groups whose width is given.
    """

    kind: str
    whole: float
    most: float
    given: tuple[Given, ...] = ()

    @classmethod
    def of(cls, bench: Bench, text: str | None, keep: Mapping[str, float | str] | None = None) -> Budget:
        """A budget from ``macs=50%``, a part of the ORIGINAL, and from what is to stay of some of its layers.

        Raises UsageError for text that is no target, and for what cannot stay.
        """
        given = given_widths(keep, bench.groups, find_filters(bench.program, bench.groups)) if keep else ()
        if text is None:
            return cls("", 1.0, 1.0, given)
        kind, value = split_target(text)
        target = parse_target(kind, value)
        whole = bench.latency_table(bench.dense()).full_ms if kind == "latency" else bench.amount(kind, 1.0)
        return cls(kind, whole, target.limit(whole), given)

    @property
    def latency(self) -> float | None:
        """Milliseconds of the original, where the budget is of these."""
        return self.whole if self.kind == "latency" else None

    def after(self, share: float) -> float:
        """What may remain once this share of the way is done, in the budget's unit."""
        return self.whole - share * (self.whole - self.most)

    def options(self, share: float, stage: Stage, bench: Bench) -> dict[str, Any]:
        """The options of a selection pass that takes a stage this share of the way."""
        found: dict[str, Any] = {}
        if self.kind:
            # Of a latency it is the shares that count, which are measured by turns: milliseconds of different hours do not compare.
            have = (stage.latency or self.whole) if self.kind == "latency" else bench.measured(stage, self.kind)
            found[self.kind] = min(1.0, self.after(share) / have)
        now = bench.widths(stage) if self.given else {}
        keep = {one.pattern: one.channels(share, now[one.group.name]) for one in self.given if now[one.group.name] > 1}
        return found | ({"keep": keep} if keep else {}) or {"channels": 1.0}

    def table(self, stage: Stage, bench: Bench) -> LatencyTable | None:
        """The stage's latency, where the budget is one."""
        return bench.latency_table(stage) if self.kind == "latency" else None
