"""What a pruning gives back: the slim model, the plan, and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from graphprune.channels.groups import Groups
from graphprune.compensation import Compensated
from graphprune.costs.cost import Costs
from graphprune.errors import UsageError
from graphprune.html import of_result
from graphprune.ir.program import Inputs, Scope
from graphprune.plans.editor import PlanEditor
from graphprune.plans.plan import Plan
from graphprune.plots import plot_widths
from graphprune.text import columns, cost_rows, verification_line
from graphprune.verification import Verification

if TYPE_CHECKING:
    from graphprune.streaming.configs import Fit


@dataclass(frozen=True)
class Report:
    """What a pruning did.

    before, after: costs at the example inputs. widths: units of every prunable group, before and after. groups: the
    analysis that it rests on. verification: the proof, None if it was skipped. opaque: modules that did not trace, with
    the reason. unused: tensors of the model that its forward does not use; the slim model does not carry them.
    scopes: the submodules that were pruned in place, where the model as a whole does not trace; costs are theirs. untraced: why.
    compensation: what a compensation did, for every layer that it looked at. eval_only: modules whose own code
    the slim model does not follow when it is trained, with the reason: it keeps its behaviour of eval mode, or its gradients are
    others. Empty where the model keeps its class.
    """

    before: Costs
    after: Costs
    widths: Mapping[str, tuple[int, int]]
    groups: Groups = field(repr=False)
    verification: Verification | None
    opaque: Mapping[str, str]
    unused: tuple[str, ...]
    scopes: tuple[str, ...] = ()
    compensation: tuple[Compensated, ...] = ()
    eval_only: Mapping[str, str] = field(default_factory=dict)
    untraced: str = ""

    def __deepcopy__(self, memo: dict[int, object]) -> Report:
        return self  # facts, which nobody changes

    def __reduce__(self) -> str:
        raise UsageError(
            "The report of a result does not pickle, for its analysis holds operators. Pickle result.model and result.plan, "
            "or write the result with graphprune.save."
        )


@dataclass(frozen=True, repr=False)
class PruneResult:
    """A smaller model, the plan that made it, and what was achieved and proved.

    model: the slim model. graph: the pruned graph: the model itself, or that of its scopes. scopes: where these belong, empty
    for a model that was pruned as a whole. keeps_class: the model is of the original's class, and shares its layers with the graph.
    attributes: what modules of that model were told of their new widths, by path and name. config: of a model of transformers that
    keeps its class, or whose widths were to be such as its config can state: the config that states them, or why none does.
    """

    model: nn.Module
    graph: fx.GraphModule
    plan: Plan
    report: Report
    inputs: Inputs
    source: str = ""
    scopes: tuple[Scope, ...] = ()
    keeps_class: bool = False
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: Fit | None = None

    @property
    def groups(self) -> Groups:
        """The channel groups of the original: ``result.groups["layer3"]`` are those of that block."""
        return self.report.groups

    def edit(self) -> PlanEditor:
        """An editor of the plan, for changes by hand; carry out what comes of it with :func:`apply_plan`."""
        return self.plan.edit(self.report.groups)

    def plot(self, axes: Any = None) -> Any:
        """A matplotlib figure of the widths before and after; see :func:`graphprune.plots.plot_widths`."""
        return plot_widths(self.report.widths, axes)

    def __repr__(self) -> str:
        """What was achieved and proved, as the interpreter and ``print`` show it."""
        report = self.report
        cut = sum(new < old for old, new in report.widths.values())
        where = f" in {', '.join(report.scopes)}" if report.scopes else ""
        return "\n".join(
            [
                f"{type(self.model).__name__}, pruned{where}: {cut} of {len(report.widths)} groups are narrower.",
                columns([("", "original", "slim", "remains"), *cost_rows(report.before, report.after)]),
                verification_line(report.verification) if report.verification else "Not verified.",
                *([] if self.config is None else [self.config.describe()]),
            ]
        )

    def _repr_html_(self) -> str:
        return of_result(self.report, self.plan, self.source)
