"""A program on the way to a plan: what is left of it, as a program of its own, and how its units are those of the whole one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from graphprune.calibration import Calibration
from graphprune.channels.filters import Filter
from graphprune.channels.groups import FROZEN, Groups, Ints, Kept
from graphprune.costs.cost import CostModel
from graphprune.ir.program import Program
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.analysis.filters import Filters
from graphprune.passes.rewrite.rewrite import rewrite
from graphprune.passes.selection.trials.candidates import Candidate
from graphprune.passes.selection.trials.layers import Layer
from graphprune.passes.selection.trials.race import Cut
from graphprune.passes.selection.trials.silence import Silence
from graphprune.passes.selection.trials.sweep import Sweep, Work
from graphprune.pipeline.analysis_manager import AnalysisManager


class Slim:
    """A program with its facts. whole: the one that it was cut from; None for that one itself. kept: what is left of that."""

    def __init__(
        self,
        program: Program,
        groups: Groups,
        cost: CostModel,
        filters: Sequence[Filter],
        whole: Slim | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.program = program
        self.groups = groups
        self.cost = cost
        self.filters = filters
        self.whole = whole or self
        self.kept = kept or Kept(groups, np.ones(groups.unit_count, dtype=bool))

    @cached_property
    def macs(self) -> float:
        """Multiply-accumulates of one pass."""
        return float(self.cost.macs(self.groups.widths))

    @property
    def data(self) -> Calibration:
        """What losses are taken on."""
        assert self.program.calibration is not None
        return self.program.calibration

    def sweep(self, work: Work) -> Sweep:
        """What runs trials of the program."""
        return Sweep(self.program, self.groups, self.data, work)

    def cuts(self, candidates: Sequence[Candidate]) -> Iterator[Cut]:
        """What the trials of candidates need."""
        silence = Silence(self.program, self.groups, self.filters)
        for candidate in candidates:
            widths = self.groups.widths.copy()
            widths[candidate.layer.group] -= len(candidate.units)
            yield Cut(silence.of(sorted(candidate.units)), self.macs - float(self.cost.macs(widths)))

    def is_whole(self, units: frozenset[int]) -> bool:
        """Whether units are also units of the whole program, all of each. One that was narrowed to a single head or channel may
        have units that the whole one does not have, since nothing ties them there any more."""
        mine, theirs = self._same
        among = self._origin(units)
        back = mine[np.isin(theirs, among)]
        return among.size > 0 and bool((self.whole.groups.group_of[among] != FROZEN).all() and np.isin(back, list(units)).all())

    def places(self, candidate: Candidate) -> list[int]:
        """Where a candidate's units are along its layer's axis in the whole program."""
        whole = self.whole.groups
        tensor, axis = self._axis(candidate.layer)
        along = next(whole.vectors.units[whole.vectors[v]] for name, place, v in whole.axes if (name, place) == (tensor, axis))
        return np.flatnonzero(np.isin(along, self._origin(candidate.units))).tolist()

    def without(self, units: frozenset[int]) -> Slim:
        """The program without some units, rewritten from the whole one."""
        whole = self.whole
        stays = self.kept.units.copy()
        stays[self._origin(units)] = False
        kept = Kept(whole.groups, stays)
        program = whole.program.with_(module=rewrite(whole.program.module, whole.groups, kept))
        manager = AnalysisManager()
        facts = manager.get(program, ChannelGroups), manager.get(program, ModelCost), manager.get(program, Filters)
        return Slim(program, *facts, whole, kept)

    def _axis(self, layer: Layer) -> tuple[str, int]:
        """A tensor's axis with the units of a layer."""
        if layer.maker is not None and not layer.maker.weight:
            return layer.maker.tensor, layer.maker.axis
        member = self.groups.prunable[layer.group].members[0]
        return member.tensor, member.axis

    def _origin(self, units: frozenset[int]) -> Ints:
        """The units of the whole program that units stand for."""
        mine, theirs = self._same
        return np.unique(theirs[np.isin(mine, list(units))])

    @cached_property
    def _same(self) -> tuple[Ints, Ints]:
        """Pairs of units, of this program and of the whole one, that have a slice in common."""
        whole = self.whole.groups
        full = {(name, axis): vector for name, axis, vector in whole.axes}
        pairs = [np.zeros((0, 2), dtype=np.int64)]
        for name, axis, vector in self.groups.axes:
            if (name, axis) in full:  # an index of a shuffle that was cut is new
                theirs = full[name, axis]
                left = whole.vectors.units[whole.vectors[theirs]][self.kept.vector(theirs)]
                pairs.append(np.stack([self.groups.vectors.units[self.groups.vectors[vector]], left], 1))
        found = np.unique(np.concatenate(pairs), axis=0)
        return found[:, 0], found[:, 1]
