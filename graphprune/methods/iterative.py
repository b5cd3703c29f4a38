"""One-shot and iterative pruning with any criterion, selection and budget: the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from graphprune.errors import UsageError
from graphprune.methods import steps
from graphprune.methods.budget import Budget
from graphprune.methods.method import AimedOptions, method
from graphprune.methods.texts import Criterion, Normalise
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.decision import Budgeted
from graphprune.passes.selection.select import selection_pass
from graphprune.runs.bench import Bench
from graphprune.runs.stage import Stage
from graphprune.schedule import share_done


class IterativeOptions(AimedOptions):
    """Options of :data:`iterative`."""

    rounds: int = Field(1, ge=1, description="Cuts; 1 is one-shot.")
    schedule: Literal["cubic", "linear"] = Field("cubic", description="How far each cut goes: cubic (AGP) goes far first.")
    tune_epochs: int = Field(0, ge=0, description="Epochs after each cut but the last, at the end of the schedule.")
    final_epochs: int | None = Field(None, ge=0, description="Epochs after the last cut; default: the whole schedule.")
    criterion: Criterion = Field("l2")
    reduction: str = Field(
        "default",
        description="How the slices of a channel in several tensors make one score: sum, mean, max, l2, or default.",
    )
    normalise: Normalise = Field("max")
    share: str = Field("none", description="Divide the scores of a group by its share of the params or macs, too; or none.")
    select: str = Field("select", description="The selection pass: select, knapsack, greedy or threshold.")
    ranking: str = Field(
        "global", description="Of select: global by score, local alike in all groups, isomorphic among those of one structure."
    )
    round_to: int = Field(1, ge=1, description="Kept channels are a multiple of this.")
    max_ratio: float = Field(1.0, gt=0, le=1, description="Largest share of a group that goes in one cut.")

    @model_validator(mode="after")
    def _known(self) -> Self:
        """What the passes refuse is refused before anything is trained."""
        try:
            self.score(0)
            self.selection({"channels": 1.0})
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    def score(self, seed: int) -> ScorePass:
        """The scoring pass of every cut."""
        return ScorePass(self.criterion, self.reduction, self.normalise, self.share, seed)

    def selection(self, target: Mapping[str, Any]) -> Budgeted:
        """The selection pass of a cut."""
        return selection_pass(self.select, self.ranking, {"round_to": self.round_to, "max_ratio": self.max_ratio, **target})

    def expected_rounds(self) -> int | None:
        """One for each cut."""
        return 1 + self.rounds


@method("iterative", IterativeOptions)
def iterative(bench: Bench, options: IterativeOptions) -> Stage:
    """Cut by a criterion in one or several rounds, with training after each: one-shot, AGP, random and uniform baselines.

    The share of the way to the target after round t of n is ``1 - (1 - t/n)^3`` (automated gradual pruning, Zhu and Gupta 2017,
    arXiv 1710.01878, eq. 1), or ``t/n``. Trainings after a cut take the last epochs of the schedule, so that their learning rate is
    what it ends with; the final one takes all of it by default, the learning-rate rewinding of Renda et al. 2020 (arXiv
    2003.02389).
    """
    budget = Budget.of(bench, options.target, options.keep)
    dense, _ = steps.dense(bench, options, latency=budget.latency)
    teacher = steps.teacher_of(bench, options, dense)
    stage = dense
    for number in range(1, options.rounds + 1):
        way = share_done(number, options.rounds, options.schedule)
        score = options.score(bench.task.seed)
        selection = options.selection(budget.options(way, stage, bench))
        stage = bench.prune(stage, [score, selection], table=budget.table(stage, bench))
        if number < options.rounds:
            stage, _ = steps.tuned(bench, stage, options.last(options.tune_epochs), teacher)
            steps.check_trained(stage)
            steps.note(bench, stage, "accepted", bench.evaluate(stage), values={"way": round(way, 4)})
    return steps.final(bench, stage, options.last(options.final_epochs), teacher, fresh=True)
