"""Adaptive activation-based pruning: thresholds on activation attention that grow as long as the accuracy allows.

Zhao, Jain and Zhao, "Adaptive activation-based structured pruning" (arXiv 2201.10520), later "Automatic attention pruning" (AISTATS
2023, arXiv 2303.08595).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from graphprune.errors import TargetError
from graphprune.methods import steps
from graphprune.methods.budget import Budget
from graphprune.methods.method import Options, method
from graphprune.methods.texts import Criterion, Keep, Target
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.threshold import ThresholdPass
from graphprune.runs.bench import Bench
from graphprune.runs.stage import Stage


class AdaptiveOptions(Options):
    """Options of :data:`adaptive`."""

    target: Target | None = Field(
        None,
        description="What must remain of the original, as params=30%; default: as little as the accuracy allows.",
    )
    keep: Keep = Field({})
    tolerance: float = Field(0.0, ge=0, description="Accuracy that may be lost, as a share, without a target.")
    statistic: Literal["mean", "max", "sum"] = Field("mean", description="Attention of a channel over its positions.")
    p: Literal[1, 2, 4] = Field(1, description="Power of the activations.")
    criterion: Criterion | None = Field(None, description="Another criterion instead of the attention, such as taylor.")
    share: Literal["params", "macs", "none"] = Field("params", description="What a layer's part of the threshold goes by.")
    step_share: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="Share of the parameters (MACs, if `share` goes by them) that the threshold of a round removes.",
    )
    first_step: float | None = Field(
        None,
        gt=0,
        description="Step of the threshold itself, instead (the authors' scripts have 1); both are halved where it fails.",
    )
    rewind: float = Field(0.6, ge=0, lt=1, description="Part of the schedule to which every retraining goes back.")
    rewind_weights: bool = Field(False, description="Go back to the weights of that epoch, too; for models that are trained here.")
    rounds: int = Field(5, ge=1, description="Cuts on the way to a target.")
    max_rounds: int = Field(40, ge=1, description="Rounds at most, without a target.")
    strikes: int = Field(3, ge=1, description="Failures from one model after which it is given up.")
    patience: int = Field(3, ge=1, description="Accepted rounds that change the size by under 0.1 % before the run ends.")

    @model_validator(mode="after")
    def _aimed(self) -> Self:
        if self.keep and self.target is None:
            raise ValueError(
                "keep goes with a target: without one the accuracy alone decides how wide layers end. exclude leaves some whole."
            )
        return self

    def expected_rounds(self) -> int | None:
        """One for each cut to a target."""
        return None if self.target is None else 1 + self.rounds


_RAISES: Final = 20  # steps that are added at most until something goes


@dataclass(frozen=True)
class _Accepted:
    """A model that was accepted, with the threshold that made it and the step that led there."""

    stage: Stage
    threshold: float
    step: float


@method("adaptive", AdaptiveOptions)
def adaptive(bench: Bench, options: AdaptiveOptions) -> Stage:
    """Raise a threshold on activation attention round by round, back off where the accuracy falls.

    A unit goes if its attention ``mean |a|^p`` over samples and positions is at most ``T x share`` of its layer, the share being of
    parameters or MACs; of coupled layers the largest attention counts. Without a target: a round raises T by its step and retrains
    from the learning rate of ``rewind``; if the accuracy falls by more than the tolerance, the model, T and the step of the last
    accepted round are restored and the step is halved (``step_k / 2^N`` at the N-th failure; the paper prints N-1, which would try
    the same again), and after 3 failures that round is given up for the one before. With a target: T is found by bisection without
    training, so that the size is met, in several cuts with retraining between.
    """
    steps.need_data(bench, "adaptive")
    budget = None if options.target is None else Budget.of(bench, options.target, options.keep)
    dense, base, early = _dense(bench, options)
    if budget is not None:
        return _to_target(bench, options, budget, dense, early)
    return _by_accuracy(bench, options, dense, base, early)


def _dense(bench: Bench, options: AdaptiveOptions) -> tuple[Stage, float, Stage | None]:
    """The dense model, its accuracy, and the one of the epoch that weights are rewound to."""
    if options.trained or not options.rewind_weights:
        return (*steps.dense(bench, options), None)
    back = _back(options)
    early, _ = bench.train(bench.dense(), range(back), what="Training the dense model")
    steps.check_trained(early)
    dense, _ = bench.train(early, range(back, options.epochs), what="Training the dense model")
    steps.check_trained(dense)
    accuracy = bench.evaluate(dense)
    steps.note(bench, dense, "dense", accuracy)
    return dense, accuracy, early


def _back(options: AdaptiveOptions) -> int:
    return round(options.rewind * options.epochs)


def _retrained(bench: Bench, options: AdaptiveOptions, cut: Stage, dense: Stage, early: Stage | None) -> Stage:
    """A stage after a cut, trained from the epoch that learning rates, and weights if wanted, are rewound to."""
    if early is not None and cut.plan is not None:
        cut = bench.rewind(cut, early)
    return steps.tuned(bench, cut, range(_back(options), options.epochs), steps.teacher_of(bench, options, dense), fresh=True)[0]


def _score(bench: Bench, options: AdaptiveOptions) -> ScorePass:
    if options.criterion is not None:
        return ScorePass(options.criterion, normalise="none", seed=bench.task.seed)
    return ScorePass(f"attention(statistic={options.statistic}, p={options.p})", reduction="max", normalise="none")


def _to_target(bench: Bench, options: AdaptiveOptions, budget: Budget, dense: Stage, early: Stage | None) -> Stage:
    stage = dense
    for number in range(1, options.rounds + 1):
        target = budget.options(number / options.rounds, stage, bench)
        threshold = ThresholdPass(share=options.share, **target)
        cut = bench.prune(stage, [_score(bench, options), threshold], table=budget.table(stage, bench))
        stage = _retrained(bench, options, cut, dense, early)
        steps.check_trained(stage)
        last = number == options.rounds
        steps.note(bench, stage, "final" if last else "accepted", bench.evaluate(stage), values={"cut": number})
    return stage


def _by_accuracy(bench: Bench, options: AdaptiveOptions, dense: Stage, base: float, early: Stage | None) -> Stage:
    """Algorithm 2 of the paper, as corrected in the method's documentation."""
    next_cut, first = (_cut_by_size, options.step_share) if options.first_step is None else (_cut_by_threshold, options.first_step)
    accepted, best = [_Accepted(dense, 0.0, first)], dense
    failures = settled = 0
    last: object = None  # what the last cut kept
    for _ in range(options.max_rounds):
        top = accepted[-1]
        step = top.step / 2**failures
        cut, threshold = next_cut(bench, options, top, step, failures)
        kept = None if cut is None or cut.plan is None else cut.plan.kept
        if cut is None or (failures and kept == last):  # nothing lies between what was accepted and what failed
            return best
        tried, last = _retrained(bench, options, cut, dense, early), kept
        accuracy = None if tried.diverged else bench.evaluate(tried)
        good = accuracy is not None and base - accuracy <= options.tolerance
        steps.note(bench, tried, "accepted" if good else "rolled back", accuracy, values={"threshold": threshold, "step": step})
        if good:
            change = (top.stage.costs.parameters - tried.costs.parameters) / dense.costs.parameters
            settled = settled + 1 if change < 0.001 else 0
            accepted.append(_Accepted(tried, threshold, step))
            best, failures = min(best, tried, key=lambda stage: _cost(options, stage)), 0
            if settled == options.patience:
                return best
            continue
        failures += 1
        if failures == options.strikes:
            accepted.pop()
            if not accepted:
                return best
            accepted[-1], failures = replace(accepted[-1], step=step / 2), 0
    return best


def _cost(options: AdaptiveOptions, stage: Stage) -> int:
    return stage.costs.macs if options.share == "macs" else stage.costs.parameters


def _cut_by_threshold(
    bench: Bench, options: AdaptiveOptions, top: _Accepted, step: float, failures: int
) -> tuple[Stage | None, float]:
    """The cut at the threshold of an accepted model plus a step, and that threshold.

    After an accepted round steps are added until something goes: a round that removes nothing tells nothing.
    """
    threshold = top.threshold
    for _ in range(1 if failures else _RAISES):
        threshold += step
        cut = bench.prune(top.stage, [_score(bench, options), ThresholdPass(threshold=threshold, share=options.share)])
        if cut is not top.stage:
            return cut, threshold
    return None, threshold


def _cut_by_size(bench: Bench, options: AdaptiveOptions, top: _Accepted, step: float, failures: int) -> tuple[Stage | None, float]:
    """The cut at the smallest threshold that removes this share of the original's parameters (or MACs), and that threshold."""
    kind = "macs" if options.share == "macs" else "params"
    have, whole = bench.measured(top.stage, kind), bench.amount(kind, 1.0)
    remains: dict[str, Any] = {kind: max(have - step * whole, 1.0) / have}
    try:
        plan = bench.choose(top.stage, [_score(bench, options), ThresholdPass(share=options.share, **remains)])
    except TargetError:  # nothing more can go
        return None, top.threshold
    assert plan is not None, "less than all remains"
    return bench.cut(top.stage, plan), float(next(iter(plan.scores.values()))["threshold"])
