"""The loss-aware pass: step by step, the cut with the least loss among all layers and criteria. Policy only: writes a plan.

Ghimire et al., Loss-Aware Automatic Selection of Structured Pruning Criteria (LAASP), Image and Vision Computing 136, 2023.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from graphprune.calibration import Batch
from graphprune.channels.groups import Kept
from graphprune.errors import TargetError, UsageError, unknown
from graphprune.ir.program import Program
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.analysis.filters import Filters
from graphprune.passes.calibration.lanes import calibration_batches
from graphprune.passes.scoring.expression import parse_criterion
from graphprune.passes.scoring.score import check_finite, check_present
from graphprune.passes.selection.decision import achieved, amount
from graphprune.passes.selection.target import Target, parse_target
from graphprune.passes.selection.trials.candidates import Candidate, find_candidates
from graphprune.passes.selection.trials.hardest import hardest_first
from graphprune.passes.selection.trials.layers import SCOPES, find_layers, highest, least_widths, step_sizes, unit_shares
from graphprune.passes.selection.trials.race import OBJECTIVES, Race
from graphprune.passes.selection.trials.slim import Slim
from graphprune.passes.selection.trials.sweep import Work
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Pass
from graphprune.plans.plan import make_plan


@dataclass(frozen=True)
class LossAwarePass(Pass):
    """Remove units step by step until the target is met. Each step compares, for every layer and criterion, the loss on the
    calibration data without the layer's lowest units, and makes the cut with the least.

    macs: what must remain, as a share of this program's (``98%``) or an amount; the last step alone may go below it. criteria: the
    pool. steps: units that one cut takes, by layer, of those layers that may be cut; without it, those of about ``step`` percent of
    this program's MACs (:func:`~graphprune.passes.selection.trials.layers.step_sizes`). floors: units that stay, by layer; without
    it, all but ``max_ratio`` of this program's. scope: rank the units of a group by each ``layer`` that makes them, by its weights
    alone, or by the whole ``group``. objective: the ``loss``, or its rise for what a cut saves (``loss-per-mac``). seed: for
    criteria that draw. Batch norms keep their statistics. The plan's ``scores`` list the steps, and what the search took.
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
        self.check_choices(scope=SCOPES, objective=OBJECTIVES)
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
        search = _Search(self, Slim(program, analyses.get(ChannelGroups), analyses.get(ModelCost), analyses.get(Filters)))
        groups, cost = search.whole.groups, search.whole.cost
        search.run(parse_target("macs", self.macs))
        kept = search.kept
        plan = make_plan(
            program.module,
            groups,
            kept,
            policy=dict(program.policy),
            scores={self.name: search.provenance()},
            target={"macs": str(self.macs)},
            achieved=achieved(cost, kept.widths(), groups.widths),
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

    whole: the program as it was given.
    """

    def __init__(self, options: LossAwarePass, whole: Slim) -> None:
        self.options = options
        self.whole = self._current = whole
        self.steps = dict(options.steps) or step_sizes(whole.program, options.step, options.scope)
        self.floors = dict(options.floors) or least_widths(whole.program, options.max_ratio, options.scope)
        self._check_names()
        self._work = Work()
        self._done: list[_Step] = []
        self._batches = self._sorted(calibration_batches(whole.program, options.name))

    @property
    def kept(self) -> Kept:
        """What is left."""
        return self._current.kept

    def run(self, target: Target) -> None:
        """Cut until the target is met."""
        whole = self.whole.macs
        while self._current.macs > target.limit(whole):
            current = self._current
            candidates = self._candidates(current)
            if not candidates:
                raise TargetError(
                    f"Target {target} cannot be met: after {len(self._done)} steps {current.macs / whole:.1%} of the MACs are left "
                    f"({amount(current.macs)}), and no layer has units to remove. Loosen the target, floors, max_ratio or exclude."
                )
            chosen, loss, before = self._best(current, candidates)
            places = current.places(chosen)
            self._current = current.without(chosen.units)
            left = self._current.macs / whole
            self._done.append(_Step(chosen.layer.name, chosen.criterion, places, loss, before, left))

    def provenance(self) -> dict[str, str]:
        """The options, the steps one by one, and the work, for the record."""
        options = self.options
        found = {name: str(getattr(options, name)) for name in ("step", "max_ratio", "scope", "objective", "seed")}
        found["criteria"] = "; ".join(options.criteria)
        found |= {f"step {number}": json.dumps(asdict(step)) for number, step in enumerate(self._done, 1)}
        return found | {"work": json.dumps(asdict(self._work))}

    def _check_names(self) -> None:
        """Names may be those of a model that was wider; but they are names, and each step has a floor."""
        tensors = self.whole.program.tensors
        for option, names in (("steps", self.steps), ("floors", self.floors)):
            for name in names:
                if not {name.partition("#")[0], f"{name.partition('#')[0]}.weight"} & tensors.keys():
                    known = [layer.name for layer in find_layers(self.whole.groups, self.whole.filters, self.options.scope)]
                    raise UsageError(f"loss-aware{{{option}}}: {unknown('layer', name, known, 'Layers')}")
        bare = next((name for name in self.steps if name not in self.floors), None)
        if bare is not None:
            raise UsageError(f"loss-aware{{floors}} says nothing of {bare}, of which steps does. Give both for the same layers.")

    def _sorted(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The samples that are hardest for the program as it was given first; a single batch as it is."""
        if len(batches) < 2:
            return batches
        sweep = self.whole.sweep(self._work)
        return hardest_first(batches, [sweep.output(batch) for batch in batches], self.whole.data)

    def _candidates(self, current: Slim) -> list[Candidate]:
        """Those of all layers that have units left, and whose units take multiply-accumulates."""
        groups, shares, options = current.groups, unit_shares(current.cost), self.options
        layers = [
            one for one in find_layers(groups, current.filters, options.scope) if one.name in self.steps and shares[one.group] > 0
        ]
        floors = highest(self.floors, layers)
        room = {one: min(self.steps[one.name], groups.prunable[one.group].size - floors[one.group]) for one in layers}
        counts = {layer: count for layer, count in room.items() if count > 0}
        found = find_candidates(current.program, groups, current.filters, counts, options.criteria, options.seed)
        silent = set(options.criteria) - {candidate.criterion for candidate in found}
        if silent and counts and current is self.whole:
            raise UsageError(
                f"The criterion {min(silent)} has nothing to say about any single layer of this model. Choose another one, or "
                "scope=group."
            )
        return [candidate for candidate in found if current.is_whole(candidate.units)]

    def _best(self, current: Slim, candidates: Sequence[Candidate]) -> tuple[Candidate, float, float]:
        """The first candidate with the least objective, its loss, and the loss without it. Equal sets of units run once."""
        first = {candidate.units: candidate for candidate in reversed(candidates)}
        order = [candidate for candidate in candidates if first[candidate.units] is candidate]
        cuts = list(current.cuts(order))
        race = Race(current.sweep(self._work), cuts, current.data, self.options.objective)
        winner, abandoned = race.run(self._batches)
        self._work.candidates += len(candidates)
        self._work.trials += len(cuts)
        self._work.abandoned += abandoned
        return order[winner.index], winner.loss, winner.before
