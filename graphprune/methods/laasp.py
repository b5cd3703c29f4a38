"""LAASP: while training from scratch, cut where the loss on a fixed sample suffers least, whichever criterion says so.

Ghimire, Lee and Kim, "Loss-aware automatic selection of structured pruning criteria" (Image and Vision Computing 136, 2023; arXiv
2506.20152).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graphprune.methods import steps
from graphprune.methods.budget import Budget
from graphprune.methods.method import Options, method
from graphprune.methods.texts import Criterion, Target
from graphprune.passes.selection.loss_aware import LossAwarePass
from graphprune.passes.selection.trials.layers import least_widths, step_sizes
from graphprune.runs.bench import Bench
from graphprune.runs.stage import Stage


class LaaspOptions(Options):
    """Options of :data:`laasp`."""

    trained: bool = Field(False, description="The model comes trained: cutting begins at once.")
    target: Target = Field("macs=50%", pattern="^macs=", description="MACs that must remain of the original.")
    start: float = Field(
        0.25, ge=0, le=1, description="Part of the schedule that is trained before the first cut (50 of 200 epochs)."
    )
    criteria: tuple[Criterion, ...] = Field(
        ("l1", "l2", "euclidean", "cosine"), min_length=1, description="Criteria to choose from."
    )
    step: float = Field(1.0, gt=0, description="Percent of the MACs that one candidate removes, about.")
    delta: float = Field(0.02, gt=0, le=1, description="Share of the original's MACs after which the model is trained again.")
    delta_epochs: int = Field(6, ge=0, description="Epochs of that training, from the start epoch on.")
    max_ratio: float = Field(0.75, gt=0, lt=1, description="Largest share of its original filters that a layer may lose.")
    scope: Literal["layer", "group"] = Field(
        "layer", description="layer: each layer of a coupled group is a candidate, by its own weights."
    )
    objective: Literal["loss", "loss-per-mac"] = Field("loss", description="What the best candidate has least of.")


@method("laasp", LaaspOptions)
def laasp(bench: Bench, options: LaaspOptions) -> Stage:
    """Prune while training: every cut is the candidate (layer and criterion) with the least loss on a fixed sample.

    The model trains for ``start`` of the schedule. Then candidates of about 1 % of the MACs each, one for each layer and criterion
    of the pool, are tried, and the one with the least loss is carried out, again and again; after each ``delta`` of the MACs the
    model trains for ``delta_epochs`` with a new optimiser at the learning rates from ``start`` on. No layer loses more than
    ``max_ratio``. At last the rest of the schedule is trained. The loss is taken in eval mode on the run's data.
    """
    steps.need_data(bench, "laasp")
    start = 0 if options.trained else round(options.start * options.epochs)
    stage, _ = bench.train(bench.dense(), range(start), what="Training before the first cut") if start else (bench.dense(), [])
    steps.check_trained(stage)
    steps.note(bench, stage, "dense" if options.trained else "begun", bench.evaluate(stage))
    budget = Budget.of(bench, options.target)
    removes = step_sizes(bench.program, options.step, options.scope)
    floors = least_widths(bench.program, options.max_ratio, options.scope)
    teacher, done = steps.teacher_of(bench, options, stage, finished=options.trained), 0.0
    again = range(start, min(start + options.delta_epochs, options.epochs))
    whole_way = 1 - budget.most / budget.whole
    while done < whole_way:
        way = min(1.0, (done + options.delta) / whole_way)
        search = LossAwarePass(
            **budget.options(way, stage, bench),
            criteria=tuple(options.criteria),
            steps=removes,
            floors=floors,
            scope=options.scope,
            objective=options.objective,
            seed=bench.task.seed,
        )
        cut = bench.prune(stage, [search])
        done = 1 - cut.costs.macs / budget.whole
        stage, _ = steps.tuned(bench, cut, again if done < whole_way else range(0), teacher, fresh=True)
        steps.check_trained(stage)
        steps.note(bench, stage, "accepted", bench.evaluate(stage), values={"removed": round(done, 4)})
    return steps.final(bench, stage, range(start, options.epochs), teacher, fresh=True)
