"""SP-LAMP: stages of a knapsack over layer-adaptive scores under a latency budget, with training between (arXiv 2305.14403)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graphprune.methods import steps
from graphprune.methods.budget import Budget
from graphprune.methods.method import AimedOptions, method
from graphprune.methods.texts import Criterion, Target
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.knapsack import KnapsackPass
from graphprune.runs.bench import Bench
from graphprune.runs.stage import Stage


class SpLampOptions(AimedOptions):
    """Options of :data:`sp_lamp`."""

    target: Target | None = Field("latency=50%", description="What must remain of the original; the paper's is latency.")
    stages: int = Field(5, ge=1, description="Cuts, each an equal part of the way (the paper takes 10).")
    stage_epochs: int = Field(3, ge=0, description="Epochs after each cut but the last, at the end of the schedule.")
    final_epochs: int | None = Field(None, ge=0, description="Epochs after the last cut; default: the whole schedule.")
    bn_fold: bool = Field(False, description="Count the batch norm's scale with the weights that it follows.")
    member_norm: bool = Field(False, description="Give coupled layers equal totals.")
    criterion: Criterion | None = Field(None, description="Another criterion instead of SP-LAMP's score, such as taylor.")
    round_to: int | Literal["auto"] = Field(8, description="Keep channels in multiples of this; 'auto': where the latency steps.")
    min_channels: int = Field(1, ge=1, description="Units that every group keeps at least.")

    def expected_rounds(self) -> int | None:
        """One for each stage."""
        return 1 + self.stages


@method("sp-lamp", SpLampOptions)
def sp_lamp(bench: Bench, options: SpLampOptions) -> Stage:
    """Stages of an optimal knapsack over SP-LAMP scores under a latency budget, with training between.

    After stage s of k the budget is ``whole - s/k (whole - target)``. Every stage scores the weights anew (eq. 2, with the
    inclusive sum), measures a latency table of the model as it is, solves the group knapsack exactly (the paper's algorithm 1 as
    printed is wrong on a quarter of random instances), and corrects the budget until the measured latency of the slim model is the
    stage's. The optimiser state is cut with the weights.
    """
    budget = Budget.of(bench, options.target, options.keep)
    dense, _ = steps.dense(bench, options, latency=budget.latency)
    teacher = steps.teacher_of(bench, options, dense)
    stage = dense
    for number in range(1, options.stages + 1):
        knapsack = KnapsackPass(
            round_to=options.round_to,
            min_channels=options.min_channels,
            **budget.options(number / options.stages, stage, bench),
        )
        stage = bench.prune(stage, [_score(bench, options), knapsack], table=budget.table(stage, bench))
        if number < options.stages:
            stage, _ = steps.tuned(bench, stage, options.last(options.stage_epochs), teacher)
            steps.check_trained(stage)
            steps.note(bench, stage, "accepted", bench.evaluate(stage), values={"stage": number})
    return steps.final(bench, stage, options.last(options.final_epochs), teacher, fresh=True)


def _score(bench: Bench, options: SpLampOptions) -> ScorePass:
    if options.criterion is not None:
        return ScorePass(options.criterion, seed=bench.task.seed)
    return ScorePass(f"sp-lamp(bn_fold={options.bn_fold}, member_norm={options.member_norm})", normalise="none")
