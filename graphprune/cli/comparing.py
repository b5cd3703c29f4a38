"""What ``graphprune compare`` does: both models as graphs at the same inputs, their costs, and their times by turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphprune.cli import tables
from graphprune.cli.accuracy import top1
from graphprune.cli.loading import Request
from graphprune.cli.output import Output
from graphprune.costs.cost import Costs
from graphprune.errors import UsageError, first_line
from graphprune.ir.program import Inputs, Program, placeholder_values
from graphprune.latency.batch import batch_of, with_batch
from graphprune.latency.clock import Clock, DeviceClock, Subject
from graphprune.latency.copies import SURE
from graphprune.latency.environment import Environment, environment_of
from graphprune.latency.timing import Ratio, Timing
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.sources import Source, example_inputs, load_source
from graphprune.sources.images import load_images
from graphprune.tracing import capture


@dataclass(frozen=True)
class Loaded:
    """Latency of both models at one batch; batch is None where the inputs have no leading size in common."""

    batch: int | None
    a: Timing
    b: Timing

    @property
    def ratio(self) -> Ratio:
        """B's time as a share of A's."""
        return self.b.over(self.a)


@dataclass(frozen=True)
class Compared:
    """Two models at the same inputs. accuracy: shares of right answers, where there were images."""

    sources: tuple[str, str]
    inputs: Inputs
    environment: Environment
    costs: tuple[Costs, Costs]
    loads: tuple[Loaded, ...]
    accuracy: tuple[float, float] | None
    images: int = 0


def compare(
    a: Request,
    b: Request,
    output: Output,
    *,
    device: str = "cpu",
    compiled: bool = False,
    batches: Sequence[int] = (),
    clock: Clock | None = None,
) -> Compared:
    """Load two models and measure both, in eval mode. The inputs are the user's, else those that a file of a model
    holds (A's first, if both do), else the usual ones of A's library, or of B's.

    clock: what times them; that of the device by default. Raises UsageError where a model does not take the inputs, and
    CaptureError where it does not trace.
    """
    images = None if a.data is None else load_images(a.data, a.mean, a.std)
    with output.task("Loading"):
        sources = [load_source(r.source, weights=r.weights, trust_pickle=r.trust_pickle, seed=r.seed) for r in (a, b)]
        brought = [s for s in sources if s.inputs is not None] + [s for s in sources if s.default_input is not None]
        known = next(iter(brought), sources[0])
        inputs = example_inputs(known, a.shape, seed=a.seed)
    programs = [_captured(source, inputs) for source in sources]
    rated = None
    if images is not None:
        first, second = (top1(source.model, images, output, f"Accuracy of {source.text}") for source in sources)
        rated = first, second
    costs_a, costs_b = (_costs(program) for program in programs)
    environment = environment_of(programs[0].module, device, compile=compiled)
    for program in programs:
        program.module.to(device)
    timer = clock or DeviceClock(environment, effort=SURE)
    loads = tuple(_timed(programs, batch, timer, device, output) for batch in (batches or (None,)))
    return Compared((a.source, b.source), inputs, environment, (costs_a, costs_b), loads, rated, len(images.y) if images else 0)


def _captured(source: Source, inputs: Inputs) -> Program:
    program = capture(source.model, inputs, source=source.text)
    if program.scopes:
        raise UsageError(f"{source.text} does not trace as a whole, and compare takes models that do.")
    program.module.eval()
    return program


def _costs(program: Program) -> Costs:
    analyses = AnalysisManager()
    groups = analyses.get(program, ChannelGroups)
    return analyses.get(program, ModelCost).costs(groups.widths)


def _timed(programs: Sequence[Program], batch: int | None, clock: Clock, device: str, output: Output) -> Loaded:
    subjects = []
    for program in programs:
        inputs = (program.inputs if batch is None else with_batch(program.inputs, batch)).to(device)
        subjects.append(Subject(program.module, tuple(placeholder_values(program.module.graph, inputs))))
        _check_runs(program.source, subjects[-1], inputs)
    with output.task("Timing" if batch is None else f"Timing at batch {batch}"):
        a, b = clock.whole(subjects)
    return Loaded(_batch(inputs) if batch is None else batch, a, b)


def _check_runs(text: str, subject: Subject, inputs: Inputs) -> None:
    try:
        with torch.no_grad():
            subject()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"{text} does not run at {inputs.describe()}: {first_line(error)}. Choose other inputs.") from error


def _batch(inputs: Inputs) -> int | None:
    try:
        return batch_of(inputs)
    except UsageError:
        return None


def show(found: Compared, output: Output) -> None:
    """Print what was found."""
    output.data(_data(found))
    table = tables.plain_table("", "#A", "#B", "#B / A", title=f"A: {found.sources[0]}, B: {found.sources[1]}")
    for row in tables.cost_rows(*found.costs):
        table.add_row(*row)
    if found.accuracy is not None:
        left_share, right_share = found.accuracy
        table.add_row(f"top-1 on {found.images:,} images", f"{left_share:.2%}", f"{right_share:.2%}", "")
    times = tables.plain_table("batch", "", "#median", "#p95", "#samples/s", "#B / A", "#speed-up", title="Latency")
    for load in found.loads:
        for name, timing, *against in (("A", load.a, "", ""), ("B", load.b, str(load.ratio), f"{1 / load.ratio.value:.2f} x")):
            p95 = "-" if timing.p95_ms is None else f"{timing.p95_ms:.3f} ms"
            rate = "-" if load.batch is None else f"{1000 * load.batch / timing.median_ms:,.1f}"
            times.add_row(str(load.batch or "-") if name == "A" else "", name, f"{timing.median_ms:.3f} ms", p95, rate, *against)
    output.show(table, times)
    where = found.environment
    threads = f", {tables.several(where.threads, 'thread')}" if where.threads else ""
    output.say(f"At {found.inputs.describe()}, on {where.name} ({where.device}{threads}), {where.dtype}, {where.compile}.")
    copies = min(max(1, len(load.a.copies_ms)) for load in found.loads)
    output.say(f"Each was timed at {copies} or more places in memory; ± is one standard error.")


def _data(found: Compared) -> dict[str, Any]:
    models = []
    for index, source in enumerate(found.sources):
        accuracy = None if found.accuracy is None else found.accuracy[index]
        models.append({"source": source, **tables.cost_data(found.costs[index]), "accuracy": accuracy})
    return {
        "a": models[0],
        "b": models[1],
        "inputs": found.inputs.describe(),
        "images": found.images,
        "latency": [
            {
                "batch": load.batch,
                "a": _timing_data(load.a, load.batch),
                "b": _timing_data(load.b, load.batch),
                "speedup": 1 / load.ratio.value,
                "ratio": load.ratio.value,
                "ratio_error": load.ratio.value * load.ratio.error,
            }
            for load in found.loads
        ],
        "environment": found.environment.model_dump(),
    }


def _timing_data(timing: Timing, batch: int | None) -> dict[str, float | None]:
    rate = None if batch is None else 1000 * batch / timing.median_ms
    figures = {"median_ms": timing.median_ms, "error_ms": timing.median_ms * timing.error, "p95_ms": timing.p95_ms}
    return {**figures, "samples_per_second": rate, "copies": max(1, len(timing.copies_ms))}
