"""Class-aware pruning: what matters for few classes goes, little by little (DATE 2024, arXiv 2312.05875)."""

from __future__ import annotations

from math import inf, nextafter
from typing import Literal

from pydantic import Field

from graphprune.methods import steps
from graphprune.methods.method import Options, method
from graphprune.passes.analysis.channels import ChannelsPass
from graphprune.passes.scoring.score import ScorePass
from graphprune.passes.selection.threshold import ThresholdPass
from graphprune.runs.bench import Bench
from graphprune.runs.stage import Stage
from graphprune.training.penalties import L1, Orthogonality, Penalty, Sum, convolution_weights


class ClassAwareOptions(Options):
    """Options of :data:`class_aware`."""

    tolerance: float = Field(0.005, ge=0, description="Accuracy that may be lost, as a share.")
    classes_share: float = Field(0.3, gt=0, le=1, description="Units that matter for fewer than this share of the classes may go.")
    at_most: float = Field(0.1, gt=0, le=1, description="Share of all units that goes in one round at most.")
    samples: int = Field(10, ge=1, description="Of each class, for the score.")
    l1: float = Field(1e-4, ge=0, description="Strength of the L1 penalty on all parameters.")
    orthogonality: float = Field(0.01, ge=0, description="Strength of the orthogonality penalty on convolutions, if there are any.")
    orth_padding: int = Field(1, ge=1, le=2, description="Padding of its self-convolution: 1 as the authors have it, 2 as OCNN.")
    regularise_epochs: int | None = Field(
        None, ge=0, description="Epochs with the penalties before the first cut; default: the whole schedule."
    )
    tune_epochs: int = Field(5, ge=1, description="Epochs with the penalties after each cut, at the end of the schedule.")
    final_epochs: int = Field(0, ge=0, description="Epochs without the penalties at the end.")
    coupled: bool = Field(False, description="Cut groups that several layers make, too (residual streams).")
    max_rounds: int = Field(50, ge=1, description="Rounds at most.")
    tau: float = Field(0.0, ge=0, description="Change of the loss over which a value matters; the paper's 1e-50 is 0 in float32.")
    tau_mode: Literal["absolute", "relative"] = Field("absolute", description="relative: tau times the layer's median.")


@method("class-aware", ClassAwareOptions)
def class_aware(bench: Bench, options: ClassAwareOptions) -> Stage:
    """Remove the units that matter for few classes, at most 10 % at a time, as long as the accuracy holds.

    Training with ``L1 + orthogonality`` penalties polarises the scores: most units matter for all classes or for hardly any. A
    round removes units with a score under ``classes_share x classes`` (the weakest 10 % of all, if there are more), trains with the
    penalties and evaluates. The first round that loses more than the tolerance against the model it began with is taken back, and
    ends the run; so does one that finds nothing to remove. The base is the better of the accuracies with and without penalties, so
    that what the regularisation costs counts too.
    """
    steps.need_data(bench, "class-aware")
    dense, trained = steps.dense(bench, options)
    teacher = steps.teacher_of(bench, options, dense)
    penalty = _penalty(bench, options)
    first = options.last(options.regularise_epochs)
    stage, accuracy, base = dense, trained, trained
    bench.show("scores before regularisation", bench.scores(dense, _score(options)))
    if first:
        stage, _ = bench.train(dense, first, penalty=penalty, fresh=True, what="Training with penalties")
        steps.check_trained(stage)
        accuracy = bench.evaluate(stage)
        base = max(base, accuracy)
        steps.note(bench, stage, "accepted", accuracy, text="regularised")
        bench.show("scores after regularisation", bench.scores(stage, _score(options)))
    stage = _rounds(bench, options, stage, base - options.tolerance, penalty, teacher)
    return steps.final(bench, stage, options.last(options.final_epochs), teacher)


def _penalty(bench: Bench, options: ClassAwareOptions) -> Penalty:
    """L1, and the other where there are convolutions for it."""
    found: list[Penalty] = [L1(options.l1)]
    if options.orthogonality and convolution_weights(bench.task.model):
        found.append(Orthogonality(options.orthogonality, padding=options.orth_padding))
    return Sum(tuple(found))


def _rounds(bench: Bench, options: ClassAwareOptions, stage: Stage, floor: float, penalty: Penalty, teacher: Stage | None) -> Stage:
    """Rounds until one finds nothing, or loses too much."""
    assert bench.task.data is not None
    classes = sum(1 for _ in bench.task.data.by_class(1))
    threshold = nextafter(options.classes_share * classes, -inf)  # what the pass removes is at most its threshold
    tune = options.last(options.tune_epochs)
    exclude = () if options.coupled else bench.coupled
    passes = [
        ChannelsPass((*bench.task.exclude, *exclude), dict(bench.task.policy)),
        _score(options),
        ThresholdPass(threshold=threshold, share="none", at_most=options.at_most),
    ]
    for _ in range(options.max_rounds):
        tried = bench.prune(stage, passes)
        if tried is stage:
            return stage
        tried, _ = steps.tuned(bench, tried, tune, teacher, penalty=penalty)
        accuracy = None if tried.diverged else bench.evaluate(tried)
        if accuracy is None or not accuracy >= floor:  # NaN is no accuracy
            steps.note(bench, tried, "rolled back", accuracy)
            return stage
        steps.note(bench, tried, "accepted", accuracy)
        stage = tried
    return stage


def _score(options: ClassAwareOptions) -> ScorePass:
    relative = options.tau_mode == "relative"
    criterion = f"class-aware(samples={options.samples}, tau={options.tau}, relative={relative})"
    return ScorePass(criterion, reduction="max", normalise="none")
