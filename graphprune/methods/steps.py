"""Steps that several methods take."""

from __future__ import annotations

from typing import Any

from graphprune.errors import CheckError, UsageError
from graphprune.methods.method import Options
from graphprune.runs.bench import Bench
from graphprune.runs.history import Round, Status
from graphprune.runs.stage import Stage


def dense(bench: Bench, options: Options, **training: Any) -> tuple[Stage, float]:
    """The dense model, trained unless it comes so, and its accuracy; the first round. training: as for :meth:`Bench.train`."""
    stage = bench.dense()
    if not options.trained:
        stage, _ = bench.train(stage, range(options.epochs), what="Training the dense model", **training)
        check_trained(stage)
    accuracy = bench.evaluate(stage)
    note(bench, stage, "dense", accuracy)
    return stage, accuracy


def check_trained(stage: Stage) -> None:
    """Raise CheckError where training went to infinity or NaN."""
    if stage.diverged:
        raise CheckError(f"{stage.diverged} The weights from before are kept in the run's folder.")


def tuned(bench: Bench, stage: Stage, epochs: range, options: Options, teacher: Stage, **how: Any) -> tuple[Stage, list[float]]:
    """A stage after training that follows a cut; distilled from the teacher where that is asked for."""
    if not epochs:
        return stage, []
    return bench.train(stage, epochs, teacher=teacher if options.distil else None, **how)


def final(bench: Bench, stage: Stage, epochs: range, options: Options, teacher: Stage, **how: Any) -> Stage:
    """The last training, evaluated after every epoch, and its round."""
    done, accuracies = tuned(bench, stage, epochs, options, teacher, judge=True, what="Final training", **how)
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
    """A row for a stage."""
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
            note=text or stage.diverged,
        )
    )


def need_data(bench: Bench, name: str) -> None:
    """Raise UsageError where the run has no data."""
    if bench.task.data is None:
        raise UsageError(f"The method {name} looks at training samples. Give data= with batches of inputs and targets.")
