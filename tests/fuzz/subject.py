"""One network on its way through the checks: whatever several of them need is made once, when the first asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import fx, nn

from graphprune.api import run_pipeline
from graphprune.errors import CaptureError, PlanError, TargetError, UsageError
from graphprune.passes.analysis.channels import ChannelGroups, ChannelsPass
from graphprune.passes.rewrite.rewrite import RewritePass, rewrite
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.select import selection_pass
from graphprune.passes.verification.verify import VerifyPass
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.plans.plan import Plan, kept_units
from graphprune.result import PruneResult
from graphprune.tracing import capture
from tests.checking import Analysed, state_hash
from tests.fuzz.silence import choose, silenced
from tests.fuzz.spec import Network, Spec, build, inputs_of


@dataclass(frozen=True)
class Slim:
    """A plan, and the slim model that it leaves."""

    plan: Plan
    model: fx.GraphModule


class Subject:
    """One network, captured and analysed. counts: what the checks counted, to be added up.

    kept, twins: of the silencing oracle (:mod:`tests.fuzz.silence`). analyses: hold those of the program, for one pipeline.
    """

    def __init__(self, spec: Spec, counts: Counter[str]) -> None:
        self.spec, self.counts = spec, counts
        self.model: Network = build(spec)
        self.inputs, self.other = inputs_of(spec, 2), inputs_of(spec, 3)
        self.before = state_hash(self.model)
        self.program = capture(self.model, self.inputs).with_(policy=dict(spec.policy))
        self.analyses = AnalysisManager()
        self.groups = self.analyses.get(self.program, ChannelGroups)
        self.found = Analysed(self.model, self.inputs, self.program, self.groups, spec.policy)
        self.kept, self.twins = choose(self.groups, spec.seed)

    def slim(self, plan: Plan) -> Slim:
        """The slim model of a plan, not verified; what the plan keeps is derived from its indices, as for one from a file."""
        kept = kept_units(plan.model_copy(), self.groups)
        return Slim(plan, rewrite(self.program.module, self.groups, kept))

    @cached_property
    def random(self) -> Slim:
        """Of a plan that keeps a random part of every group."""
        return self.slim(self.found.random_plan(self.spec.seed))

    @cached_property
    def chosen(self) -> Slim:
        """Of the plan of the silencing oracle."""
        return self.slim(self.found.plan(self.kept))

    @cached_property
    def silenced(self) -> nn.Module:
        """The original under weights with which it must equal the slim model of that plan."""
        return silenced(self.model, self.groups, self.chosen.plan, self.twins)

    @cached_property
    def scored(self) -> PruneResult | None:
        """What the passes of ``graphprune.prune`` choose and leave, with a proof; None where they refuse the target."""
        options = dict(self.spec.prune)
        targets, ranking, criterion = options.pop("target"), options.pop("ranking", "global"), options.pop("criterion", "l2")
        passes = (
            ChannelsPass(policy=self.spec.policy),
            ScorePass(criterion),
            selection_pass("select", ranking, options | targets),
            RewritePass(),
            VerifyPass(),
        )
        return unless_refused(lambda: run_pipeline(self.program, passes, model=self.model, analyses=self.analyses))


def unless_refused(prune: Callable[[], PruneResult]) -> PruneResult | None:
    """What a pruning gives, or None where it refuses its target."""
    try:
        return prune()
    except (TargetError, UsageError) as error:
        assert not isinstance(error, (CaptureError, PlanError)), error
        return None
