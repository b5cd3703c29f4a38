"""Steps that several methods take."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from math import isnan
from typing import Any

from graphprune.errors import CheckError, UsageError
from graphprune.methods.method import Options
from graphprune.runs.bench import Bench
from graphprune.runs.history import Round, Status
from graphprune.runs.stage import Stage


def dense(bench: Bench, options: Options, *, latency: float | None = None) -> tuple[Stage, float]:
    """The dense model, trained unless it comes so, and its accuracy; the first round. latency: where it is known."""
    stage = replace(bench.dense(), latency=latency)
    if not options.trained:
        stage, _ = bench.train(stage, range(options.epochs), what="Training the dense model")
        check_trained(stage)
    accuracy = bench.evaluate(stage)
    note(bench, stage, "dense", accuracy)
    return stage, accuracy


def check_trained(stage: Stage) -> None:
    """Raise CheckError where training went to infinity or NaN."""
    if stage.diverged:
        raise CheckError(f"{stage.diverged} The weights from before are kept in the run's folder.")


def teacher_of(bench: Bench, options: Options, dense: Stage, *, finished: bool = True) -> Stage | None:
    """The stage to distil from in trainings after cuts, if any. finished: whether the dense model's training is over.

    Raises UsageError where distillation is asked for, and the loop or the model is not made for it.
    """
    takes = "teacher" in signature(bench.task.loop.train).parameters
    if options.distil is None:
        return dense if takes and finished else None
    if options.distil and not finished:
        raise UsageError("Distillation needs a trained model, and this method cuts before the training is over. Give trained=True.")
    if options.distil and not takes:
        raise UsageError("Distillation needs a loop that takes a teacher: train(model, epochs, state, teacher=None).")
    return dense if options.distil else None


def tuned(bench: Bench, stage: Stage, epochs: range, teacher: Stage | None, **how: Any) -> tuple[Stage, list[float]]:
    """A stage after training that follows a cut, distilled from a teacher if there is one."""
    return bench.train(stage, epochs, teacher=teacher, **how) if epochs else (stage, [])


def final(bench: Bench, stage: Stage, epochs: range, teacher: Stage | None, **how: Any) -> Stage:
    """The last training, evaluated after every epoch, and its round."""
    done, accuracies = tuned(bench, stage, epochs, teacher, judge=True, what="Final training", **how)
    check_trained(done)
    accuracy = accuracies[-1] if accuracies else bench.evaluate(done)
    note(bench, done, "final", accuracy, best=max(accuracies, default=accuracy))
    return done


def note(
    bench: Bench,
    stage: Stage,
    status: Status,
    accuracy: float | None,
    *,
    best: float | None = None,
    values: dict[str, float] | None = None,
    text: str = "",
) -> None:
    """A row for a stage. Raises CheckError where nothing could be compared with its accuracy, unless it was taken back."""
    if accuracy is not None and isnan(accuracy):
        if status != "rolled back":
            raise CheckError(f"evaluate returned NaN for the model of round {len(bench.rounds)} ({status}).")
        accuracy, text = None, text or "evaluate returned NaN"
    bench.first = bench.first or stage
    bench.note(
        Round(
            len(bench.rounds),
            status,
            accuracy,
            stage.costs.parameters,
            stage.costs.macs,
            stage.epochs,
            stage.samples,
            best,
            stage.latency,
            widths=bench.widths(stage),
            values=values or {},
            note=text or stage.diverged or stage.lost,
        )
    )


def need_data(bench: Bench, name: str) -> None:
    """Raise UsageError where the run has no data."""
    if bench.task.data is None:
        raise UsageError(f"The method {name} looks at training samples. Give data= with batches of inputs and targets.")
