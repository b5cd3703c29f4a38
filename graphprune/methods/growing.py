"""Growing regularisation: one training in which a penalty presses out what is weakest, until it is clear what stays.

The strong modern baseline: group norms as in DepGraph (CVPR 2023), the penalty grows as in GReg (ICLR 2021), and the cut is made
once the selected sub-network is stable, as in OCSPruner (WACV 2026, by LAASP's authors).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from graphprune.methods import steps
from graphprune.methods.budget import Budget
from graphprune.methods.method import AimedOptions, method
from graphprune.methods.texts import Criterion, Normalise
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.select import SelectPass
from graphprune.plans.plan import Plan
from graphprune.runs.bench import Bench
from graphprune.runs.stage import Stage
from graphprune.training.penalties import GroupL2


class GrowingOptions(AimedOptions):
    """Options of :data:`growing`."""

    trained: bool = Field(False, description="The model comes trained; otherwise the penalty grows in its one training.")
    criterion: Criterion = Field("l2")
    normalise: Normalise = Field("mean")
    max_ratio: float = Field(0.95, gt=0, le=1, description="Largest share of a group that may go.")
    start: float = Field(0.1, ge=0, lt=1, description="Part of the schedule after which the penalty begins.")
    latest: float = Field(0.5, gt=0, le=1, description="Part of the schedule at which the cut is made at the latest.")
    strength: float = Field(1e-4, gt=0, description="By how much the penalty of what would be cut grows with each epoch.")
    similarity: float = Field(
        0.999, gt=0, le=1, description="How far selections of two epochs must agree, on average over `window`."
    )
    window: int = Field(3, ge=1, description="Epochs over which it is averaged.")

    def expected_rounds(self) -> int | None:
        """Before the penalty, after the cut, and at the end."""
        return 3


@method("growing", GrowingOptions)
def growing(bench: Bench, options: GrowingOptions) -> Stage:
    """Press what would be cut towards zero with a penalty that grows, and cut when the selection no longer changes.

    After each epoch from ``start`` on, units are selected for the target by their group norms. The L2 penalty of every unit that
    would go grows by ``strength``; that of one that is selected again falls back to zero. When selections of successive epochs
    agree (intersection over union of what stays, averaged over ``window`` epochs, is at least ``similarity``), or at ``latest``,
    the cut is made, and the rest of the schedule is trained with the optimiser as it is.
    """
    budget, stage = Budget.of(bench, options.target, options.keep), bench.dense()
    start = 0 if options.trained else round(options.start * options.epochs)
    if start:
        stage, _ = bench.train(stage, range(start), what="Training before the penalty")
        steps.check_trained(stage)
    teacher = steps.teacher_of(bench, options, stage, finished=options.trained)
    steps.note(bench, stage, "dense" if options.trained else "begun", bench.evaluate(stage))
    passes = [
        ScorePass(options.criterion, normalise=options.normalise, seed=bench.task.seed),
        SelectPass(max_ratio=options.max_ratio, **budget.options(1.0, stage, bench)),
    ]
    table = budget.table(stage, bench)
    strengths: dict[str, dict[int, Tensor]] = {}
    agreements: list[float] = []
    last: Plan | None = None
    latest = max(start + 1, round(options.latest * options.epochs))
    for epoch in range(start, latest):
        plan = bench.choose(stage, passes, table=table)
        if plan is None:  # the model is small enough as it is
            break
        if last is not None:
            agreements.append(overlap(last, plan))
            recent = agreements[-options.window :]
            if len(recent) == options.window and sum(recent) / options.window >= options.similarity:
                break
        strengths, last = grown(strengths, plan, options.strength, dict(bench.task.model.named_parameters())), plan
        stage, _ = bench.train(stage, range(epoch, epoch + 1), penalty=GroupL2(strengths), what="Training with the penalty")
        steps.check_trained(stage)
    reached = start + len(agreements) + 1
    cut = bench.prune(stage, passes, table=table)
    steps.note(bench, cut, "accepted", bench.evaluate(cut), values={"agreement": agreements[-1] if agreements else 1.0})
    return steps.final(bench, cut, range(min(reached, options.epochs - 1), options.epochs), teacher)


def grown(
    strengths: Mapping[str, Mapping[int, Tensor]], plan: Plan, growth: float, parameters: Mapping[str, Tensor]
) -> dict[str, dict[int, Tensor]]:
    """Strengths of a penalty by parameter, axis and index: more for what a plan removes, none for what it keeps."""
    found: dict[str, dict[int, Tensor]] = {}
    for name, axes in plan.kept.items():
        for axis, kept in axes.items() if name in parameters else ():
            known = strengths.get(name, {}).get(axis)
            now = torch.full(parameters[name].shape[axis : axis + 1], growth) if known is None else known + growth
            now[torch.tensor(kept)] = 0
            found.setdefault(name, {})[axis] = now
    return found


def overlap(first: Plan, second: Plan) -> float:
    """Intersection over union of what two plans for one model keep, over all axes that either cuts."""
    both = either = 0
    for name in first.kept.keys() | second.kept.keys():
        mine, other = first.kept.get(name, {}), second.kept.get(name, {})
        for axis in mine.keys() & other.keys():
            both += len(set(mine[axis]) & set(other[axis]))
            either += len(set(mine[axis]) | set(other[axis]))
    return both / either if either else 1.0
