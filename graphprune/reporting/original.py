"""The original of what a report is about: loaded, captured and analysed, with what a plan leaves of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphprune.channels.groups import Groups, Ints
from graphprune.costs.cost import CostModel, Costs
from graphprune.errors import PipelineError
from graphprune.ir.program import Inputs, Program
from graphprune.passes.analysis.channels import ChannelGroups, ChannelsPass
from graphprune.passes.analysis.cost import ModelCost
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.text import parse_pipeline
from graphprune.plans.plan import Plan, kept_units
from graphprune.sources import Source
from graphprune.tracing import capture


@dataclass(frozen=True)
class Original:
    """A captured and analysed model.

    kept: units of each prunable group that stay, by index; None without a plan. stays: whether each unit stays. weights: whether
    its weights are those that were pruned, as far as is known, so that scores of them mean something.
    """

    source: Source
    inputs: Inputs
    program: Program
    groups: Groups
    cost: CostModel
    kept: Ints | None
    stays: Mapping[int, list[bool]]
    weights: bool
    plan: Plan | None = None

    @property
    def before(self) -> Costs:
        """Costs of the original."""
        return self.cost.costs(self.groups.widths)

    @property
    def after(self) -> Costs | None:
        """Costs of what the plan leaves."""
        return None if self.kept is None else self.cost.costs(self.kept)


def analysed(
    source: Source, inputs: Inputs, plan: Plan | None, exclude: tuple[str, ...], policy: Mapping[str, str], *, weights: bool
) -> Original:
    """Capture and analyse, as it was done for the plan.

    exclude, policy: of a recipe; those of the plan count for more. Raises CaptureError, or PlanError for a plan of another model.
    """
    scopes = tuple(plan.scopes) if plan is not None else ()
    program = capture(source.model, inputs, scopes=scopes, source=source.text)
    program = program.with_(exclude=_excluded(plan) or exclude, policy=dict((plan and plan.policy) or policy))
    analyses = AnalysisManager()
    groups = analyses.get(program, ChannelGroups)
    cost = analyses.get(program, ModelCost)
    if plan is None:
        return Original(source, inputs, program, groups, cost, None, {}, weights)
    plan.check_fits(program.module)
    kept = kept_units(plan, groups)
    stays = {group.index: kept.units[group.units].tolist() for group in groups.prunable}
    return Original(source, inputs, program, groups, cost, kept.widths(), stays, weights, plan)


def _excluded(plan: Plan | None) -> tuple[str, ...]:
    """Patterns that the plan's own pipeline left whole."""
    if plan is None or not plan.pipeline:
        return ()
    try:
        steps = parse_pipeline(plan.pipeline)
    except PipelineError:  # of another version, or with passes of an extension that is not here
        return ()
    return next((step.exclude for step in steps if isinstance(step, ChannelsPass)), ())
