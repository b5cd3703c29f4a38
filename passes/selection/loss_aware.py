"""The loss-aware pass: step by step, the cut with the least loss among all layers and criteria. Policy only: writes a plan.

Ghimire et al., Loss-Aware Automatic Selection of Structured Pruning Criteria (LAASP), Image and Vision Computing 136, 2023.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from graphprune.analysis_manager import AnalysisManager, AnalysisView
from graphprune.calibration import Batch, Calibration
from graphprune.errors import TargetError, UsageError
from graphprune.groups import Kept
from graphprune.pass_base import Pass
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.analysis.filters import Filters
from graphprune.passes.calibration.lanes import calibration_batches
from graphprune.passes.rewrite.rewrite import rewrite
from graphprune.passes.scoring.expression import parse_criterion
from graphprune.passes.scoring.score import check_finite, check_present
from graphprune.passes.selection.decision import achieved, amount
from graphprune.passes.selection.target import Target, parse_target
from graphprune.passes.selection.trials.candidates import Candidate, find_candidates
from graphprune.passes.selection.trials.hardest import hardest_first
from graphprune.passes.selection.trials.layers import SCOPES, Layer, find_layers, highest, least_widths, step_sizes, unit_shares
from graphprune.passes.selection.trials.race import OBJECTIVES, Cut, Race
from graphprune.passes.selection.trials.silence import Silence
from graphprune.passes.selection.trials.sweep import Sweep, Work
from graphprune.plan import Plan, composed, fingerprint, kept_units, make_plan
from graphprune.program import Program
from graphprune.registry import unknown


@dataclass(frozen=True)
class LossAwarePass(Pass):
    """Remove units step by step until the target is met. Each step compares, for every layer and criterion, the loss on the
    calibration data without the layer's lowest units, and makes the cut with the least.

    macs: what must remain, as a share of this program's (``98%``) or an amount; it is exceeded by less than one step. criteria: the
    pool. steps: units that one cut takes, by layer; without it, those of about ``step`` percent of this program's MACs
    (:func:`~graphprune.passes.selection.trials.layers.step_sizes`). floors: units that stay, by layer; without it, all but
    ``max_ratio`` of this program's. scope: rank the units of a group by each ``layer`` that makes them, by its weights alone, or
    by the whole ``group``. objective: the ``loss``, or its rise for what a cut saves (``loss-per-mac``). seed: for criteria that
    draw. Batch norms keep their statistics. The plan's ``scores`` list the steps, and what the search took.
    """

    name: ClassVar[str] = "loss-aware"
    requires: ClassVar[tuple[Any, ...]] = (ChannelGroups, ModelCost, Filters)
    preserves: ClassVar[Any] = "all"
    needs: ClassVar[tuple[str, ...]] = ("calibration",)
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    macs: float | str
    criteria: tuple[str, ...] = ("l1", "l2", "euclidean", "cosine")
    steps: Mapping[str, int] = field(default_factory=dict)
    step: float = 1.0
    floors: Mapping[str, int] = field(default_factory=dict)
    max_ratio: float = 0.75
    scope: str = "layer"
    objective: str = "loss"
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, known in (("scope", self.scope, SCOPES), ("objective", self.objective, OBJECTIVES)):
            if value not in known:
                raise UsageError(f"loss-aware{{{option}={value}}} is not known; choose from {', '.join(known)}.")
        if not self.step > 0 or not 0 < self.max_ratio <= 1:
            raise UsageError("loss-aware needs a step over 0, and max_ratio over 0 and at most 1.")
        if min([1, *self.steps.values(), *self.floors.values()]) < 1:
            raise UsageError("loss-aware needs steps and floors of at least 1 unit in every layer.")
        if not self.criteria:
            raise UsageError("loss-aware needs criteria to choose from, as in loss-aware{macs=98%,criteria=[l1;cosine]}.")
        for text in self.criteria:
            parse_criterion(text)
        parse_target("macs", self.macs)

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """Attach the plan. Raises TargetError where no layer has units left to remove before the target is met, and UsageError
        where the model does not run on the data, or its loss is not finite."""
        if program.scopes:
            raise UsageError("loss-aware needs a model that traces as a whole, to its loss; this one is pruned in scopes.")
        check_present(program.tensors)
        check_finite(program.tensors)
        search = _Search(self, program)
        groups, cost = analyses.get(ChannelGroups), analyses.get(ModelCost)
        search.run(parse_target("macs", self.macs), float(cost.macs(groups.widths)))
        kept = kept_units(Plan(kept=search.kept, model=fingerprint(program.module)), groups)
        plan = make_plan(
            program.module,
            groups,
            kept,
            policy=dict(program.policy),
            scores={self.name: search.provenance()},
            target={"macs": str(self.macs)},
            achieved=achieved(cost.measures(), kept.widths(), groups.widths),
        )
        return program.with_(plan=plan)


@dataclass(frozen=True)
class _Step:
    """One cut. units: places of the removed units along the layer's axis, as the program was given. before: the loss without it.
    macs: share of the program's that is left."""

    layer: str
    criterion: str
    units: list[int]
    loss: float
    before: float
    macs: float


class _Search:
    """The steps of one run of the pass; between two of them the cut is carried out, so that criteria see the layers that are left.

    kept: what is left, as kept indices of the program's tensors.
    """

    def __init__(self, options: LossAwarePass, program: Program) -> None:
        self.options = options
        self.steps = dict(options.steps) or step_sizes(program, options.step, options.scope)
        self.floors = dict(options.floors) or least_widths(program, options.max_ratio, options.scope)
        self.work = Work()
        self.done: list[_Step] = []
        self.kept: dict[str, dict[int, list[int]]] = {}
        self._current = _Current(program)
        self._names = program.tensors.keys()
        self._batches = self._sorted(calibration_batches(program, options.name))

    def run(self, target: Target, whole: float) -> None:
        """Cut until the target is met."""
        while self._current.macs > target.limit(whole):
            current = self._current
            candidates = self._candidates(current)
            if not candidates:
                raise TargetError(
                    f"Target {target} cannot be met: after {len(self.done)} steps {current.macs / whole:.1%} of the MACs are left "
                    f"({amount(current.macs)}), and no layer has units to remove. Loosen the target, floors, max_ratio or exclude."
                )
            chosen, loss, before = self._best(current, candidates)
            units = self._places(current, chosen)
            self._current, kept = current.without(chosen.units)
            self.kept = composed(self.kept, {name: axes for name, axes in kept.items() if name in self._names})
            left = self._current.macs / whole
            self.done.append(_Step(chosen.layer.name, chosen.criterion, units, loss, before, left))

    def _sorted(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The samples that are hardest for the program as it was given first; a single batch as it is."""
        sweep = self._current.sweep(self.work)
        if len(batches) < 2:
            return batches
        return hardest_first(batches, [sweep.output(batch) for batch in batches], self._current.data)

    def provenance(self) -> dict[str, str]:
        """The options, the steps one by one, and the work, for the record."""
        options = self.options
        found = {name: str(getattr(options, name)) for name in ("step", "max_ratio", "scope", "objective", "seed")}
        found["criteria"] = "; ".join(options.criteria)
        found |= {f"step {number}": json.dumps(asdict(step)) for number, step in enumerate(self.done, 1)}
        return found | {"work": json.dumps(asdict(self.work))}

    def _candidates(self, current: _Current) -> list[Candidate]:
        """Those of all layers that have units left, and whose units take multiply-accumulates."""
        groups, shares = current.groups, unit_shares(current.cost)
        layers = [one for one in find_layers(groups, current.filters, self.options.scope) if shares[one.group] > 0]
        self._check_known(layers)
        floors = highest(self.floors, layers)
        room = {one: min(self.steps[one.name], groups.prunable[one.group].size - floors[one.group]) for one in layers}
        counts = {layer: count for layer, count in room.items() if count > 0}
        options = self.options
        found = find_candidates(current.program, groups, current.filters, counts, options.criteria, options.seed)
        silent = set(options.criteria) - {candidate.criterion for candidate in found}
        if silent and counts and not self.done:
            raise UsageError(
                f"The criterion {min(silent)} has nothing to say about any single layer of this model. Choose another one, or "
                "scope=group."
            )
        return found

    def _check_known(self, layers: Sequence[Layer]) -> None:
        for option, numbers in (("steps", self.steps), ("floors", self.floors)):
            for layer in layers:
                if layer.name not in numbers:
                    raise UsageError(f"loss-aware{{{option}}}: {unknown('entry for', layer.name, numbers, 'Given')}")

    def _best(self, current: _Current, candidates: Sequence[Candidate]) -> tuple[Candidate, float, float]:
        """The first candidate with the least objective, its loss, and the loss without it. Equal sets of units run once."""
        first = {candidate.units: candidate for candidate in reversed(candidates)}
        order = [candidate for candidate in candidates if first[candidate.units] is candidate]
        cuts = list(current.cuts(order))
        race = Race(current.sweep(self.work), cuts, current.data, self.options.objective)
        winner, abandoned = race.run(self._batches)
        self.work.candidates += len(candidates)
        self.work.trials += len(cuts)
        self.work.abandoned += abandoned
        return order[winner.index], winner.loss, winner.before

    def _places(self, current: _Current, chosen: Candidate) -> list[int]:
        """Where a candidate's units are along the layer's axis in the program as it was given."""
        tensor, axis, units = current.axis_of(chosen.layer)
        index = np.flatnonzero(np.isin(units, list(chosen.units))).tolist()
        known = self.kept.get(tensor, {}).get(axis)
        return index if known is None else [known[place] for place in index]


class _Current:
    """A program on the way to the plan, with its facts."""

    def __init__(self, program: Program) -> None:
        manager = AnalysisManager()
        self.program = program
        self.groups = manager.get(program, ChannelGroups)
        self.cost = manager.get(program, ModelCost)
        self.filters = manager.get(program, Filters)

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

    def axis_of(self, layer: Layer) -> tuple[str, int, Any]:
        """A tensor's axis with the units of a layer, and the unit of each index."""
        group = self.groups.prunable[layer.group]
        name, axis = (group.members[0].tensor, group.members[0].axis)
        if layer.maker is not None and not layer.maker.weight:
            name, axis = layer.maker.tensor, layer.maker.axis
        vectors = self.groups.vectors
        vector = next(vector for tensor, place, vector in self.groups.axes if (tensor, place) == (name, axis))
        return name, axis, vectors.units[vectors[vector]]

    def without(self, units: frozenset[int]) -> tuple[_Current, dict[str, dict[int, list[int]]]]:
        """The program without some units, and what is kept of its tensors."""
        stays = np.ones(self.groups.unit_count, dtype=bool)
        stays[list(units)] = False
        kept = Kept(self.groups, stays)
        plan = make_plan(self.program.module, self.groups, kept)
        return _Current(self.program.with_(module=rewrite(self.program.module, self.groups, kept))), plan.kept
