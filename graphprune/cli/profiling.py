"""What ``graphprune profile`` does: measure or predict, and go on from a table that is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from graphprune.channels.groups import Groups
from graphprune.cli.loading import Job
from graphprune.cli.output import Output, Task
from graphprune.cli.profile import Wish
from graphprune.cli.watching import counted
from graphprune.errors import UsageError, first_line
from graphprune.ir.program import Inputs
from graphprune.latency.batch import batch_of, best, saturating, with_batch
from graphprune.latency.clock import Clock, DeviceClock
from graphprune.latency.environment import Environment, environment_of
from graphprune.latency.model import LatencyModel
from graphprune.latency.roofline import RooflineModel, measure_roofline
from graphprune.latency.table import LatencyTable, Settings
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.latency.profile import Maker
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.surveys.profiling import SAMPLES, profile_program
from graphprune.tracing import capture


@dataclass(frozen=True)
class Found:
    """A latency model and what it is of. table: what was measured; None for a prediction."""

    model: LatencyModel | RooflineModel
    groups: Groups
    environment: Environment
    inputs: str
    scopes: tuple[str, ...] = ()
    table: LatencyTable | None = None
    batches: Mapping[int, float] | None = None


def find_latency(job: Job, wish: Wish, constraints: Mapping[str, Any], output: Output) -> Found:
    """Measure the model's latency, or predict it. constraints: ``exclude`` and ``policy`` of the program.

    Raises UsageError for what cannot be done here.
    """
    environment = environment_of(job.source.model, wish.device, compile=wish.compiled)
    clock = DeviceClock(environment)
    known = LatencyTable.load(wish.out) if wish.out is not None and wish.out.exists() else None
    with output.task("Choosing the batch") as task:
        job, batches = _with_batch(job, wish, environment, clock, task, known)
    with output.task("Following channels"):
        program = capture(job.source.model, job.inputs, scopes=job.scopes, source=job.source.text).with_(**constraints)
        groups = AnalysisManager().get(program, ChannelGroups)
    scopes = tuple(scope.path for scope in program.scopes)
    if wish.predict:
        with output.task("Measuring a few layers"):
            roofline = measure_roofline(environment, clock, _batch_or_one(job.inputs))
        model = RooflineModel(program, groups, roofline)
        return Found(model, groups, environment, job.inputs.describe(), scopes, None, batches)
    with output.task("Measuring", total=1.0) as task:
        progress = counted(task, "Measuring")
        table = profile_program(program, groups, environment, _settings(wish), path=wish.out, clock=clock, progress=progress)
    return Found(LatencyModel(table), groups, environment, job.inputs.describe(), scopes, table, batches)


def _settings(wish: Wish) -> Settings:
    """What the table says about the options."""
    number = int(wish.batch) if wish.batch is not None and wish.batch.isdecimal() else 0
    samples = SAMPLES[wish.compiled] if wish.samples is None else wish.samples
    return Settings.model_validate({"mode": wish.mode, "samples": samples, "step": wish.step, "batch": number})


def _batch_or_one(inputs: Inputs) -> int:
    try:
        return batch_of(inputs)
    except UsageError:
        return 1


def _with_batch(
    job: Job, wish: Wish, environment: Environment, clock: Clock, task: Task, known: LatencyTable | None
) -> tuple[Job, dict[int, float] | None]:
    """The job at the batch that is wanted, and what was measured to find it."""
    if wish.batch is None:
        return job, None
    if wish.batch != "auto":
        return replace(job, inputs=with_batch(job.inputs, int(wish.batch))), None
    batch_of(job.inputs)
    if known is not None:  # a run that goes on keeps the batch that it began with
        sizes = [2**power for power in range(13)]
        inputs = [with_batch(job.inputs, size) for size in sizes if with_batch(job.inputs, size).describe() == known.inputs]
        return replace(job, inputs=inputs[0] if inputs else job.inputs), None

    def measure(batch: int) -> float:
        task.describe(f"Choosing the batch: {batch}")
        program = capture(job.source.model, with_batch(job.inputs, batch), scopes=job.scopes, source=job.source.text)
        groups = AnalysisManager().get(program, ChannelGroups)
        return clock.whole([Maker(program, groups, environment).subject(groups.widths.tolist())])[0].median_ms

    try:
        loads = saturating(measure)
    except RuntimeError as error:
        raise UsageError(f"--batch auto: the model does not run at a batch of 1 ({first_line(error)}). Give --batch N.") from error
    return replace(job, inputs=with_batch(job.inputs, best(loads))), {load.batch: load.ms for load in loads}
