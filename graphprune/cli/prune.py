"""``graphprune prune``: a model in, a smaller verified one out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli import options
from graphprune.cli.output import Output
from graphprune.errors import UsageError

if TYPE_CHECKING:
    from graphprune.cli.loading import Job
    from graphprune.cli.watching import Watching
    from graphprune.latency.table import LatencyTable
    from graphprune.result import PruneResult

_HOW = "How to prune"


def command(
    source: options.SourceText,
    out: options.OutOrPlan,
    *,
    selection: options.Selection,
    latency: options.Latency = None,
    no_measure: options.NoMeasure = False,
    compensate: Annotated[
        str | None,
        typer.Option(
            metavar="least-squares|constants",
            help="After the proof, give layers the weights that make up best for what they lost (on --calibrate data), or fold "
            "removed constants into biases (exact, without data).",
            rich_help_panel=_HOW,
        ),
    ] = None,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Estimate batch-norm statistics anew on --calibrate data.", rich_help_panel=_HOW)
    ] = False,
    limits: options.Limits,
    pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Passes to run instead, as text; `graphprune passes` lists them.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    plan: options.PlanCopy = None,
    no_verify: options.NoVerify = False,
    keep_class: options.KeepClass = False,
    model: options.Model,
    device: options.Device = "cpu",
    calibration: options.Calibration,
    accuracy: options.Accuracy,
    watch: options.Watch,
    screen: options.Screen,
) -> None:
    """Prune a model, prove the result equal to the masked original, and save it."""
    from graphprune.cli.loading import Request, check_format, parse_policy, writing
    from graphprune.cli.slimming import finish
    from graphprune.cli.watching import Watching

    how = {
        **selection.arguments(),
        "compensate": compensate,
        "recalibrate": recalibrate or None,
        "exclude": limits.exclude,
        "policy": parse_policy(limits.policy) or None,
        "verify": False if no_verify else None,
        "keep_class": keep_class or None,
    }
    given = {name: value for name, value in how.items() if value is not None}
    if no_measure and latency is None:
        raise UsageError("--no-measure goes by a table alone. Give one with --latency FILE.")
    timing = Timing(latency, not no_measure)
    if pipeline is not None and given:
        name = "no-verify" if "verify" in given else next(iter(given)).replace("_", "-")
        raise UsageError(f"--pipeline replaces --{name}. Leave out one of them; the pipeline takes it as an option of a pass.")
    request = Request.of(source, model, limits, calibration, accuracy, device=device)
    watching = Watching(**vars(watch))
    check_format(out, {".json": "plan"})
    inputs = [*request.files, *([latency] if latency is not None else [])]
    with writing([out, plan], inputs), screen.output() as output:
        job = request.open(output)
        finish(job, lambda: _run(output, job, watching, given, pipeline, model.seed, timing), out, plan, watching, output)


@dataclass(frozen=True)
class Timing:
    """What targets on latency go by. table: a file; None to measure first. measure: time slim models here."""

    table: Path | None
    measure: bool


def _profile(output: Output, job: Job, given: dict[str, Any]) -> LatencyTable:
    """Measure the model first, as `graphprune profile` does by default."""
    import graphprune
    from graphprune.cli.watching import counted

    how = {name: given[name] for name in ("exclude", "policy") if name in given}
    with output.task("Measuring latency", total=1.0) as task:
        progress = counted(task, "Measuring latency")
        return graphprune.profile(job.source.model, job.inputs, device=job.device, scopes=job.scopes, progress=progress, **how)


def _run(
    output: Output, job: Job, watching: Watching, given: dict[str, Any], pipeline: str | None, seed: int, timing: Timing
) -> PruneResult:
    import graphprune
    from graphprune.cli.watching import shown
    from graphprune.passes.calibration.supply import calibrated
    from graphprune.passes.latency.source import timed
    from graphprune.tracing import capture

    model, scopes, text = job.source.model, job.scopes, job.source.text
    table: Any = timing.table
    if table is None and "latency" in given.get("target", {}) and not given.get("keep_class"):  # whose groups are not known yet
        table = _profile(output, job, given)
    with output.task("Pruning") as task:
        observers, calibration = watching.observers(output, task), shown(job.calibration, task)
        if pipeline is not None:
            program = capture(model, job.inputs, scopes=scopes, source=text)
            program = program if table is None else timed(program, table, measure=timing.measure)
            program = calibrated(program, calibration, seed=seed, whole=(model, job.inputs))
            return graphprune.run_pipeline(program, pipeline, observers=observers, model=model)
        return graphprune.prune(
            model, job.inputs, scopes=scopes, data=calibration, latency=table, measure=timing.measure, seed=seed,
            observers=observers, source=text, **given
        )  # fmt: skip
