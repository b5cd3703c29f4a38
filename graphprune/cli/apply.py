"""``graphprune apply``: carry out a saved plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli import options

if TYPE_CHECKING:
    from graphprune.result import PruneResult

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help=options.PLAN_FILE)]


def command(
    source: options.SourceText,
    plan: PlanFile,
    out: options.Out,
    *,
    no_verify: options.NoVerify = False,
    keep_class: options.KeepClass = False,
    model: options.Model,
    device: options.Device = "cpu",
    accuracy: options.Accuracy,
    watch: options.Watch,
    screen: options.Screen,
) -> None:
    """Carry out a plan on the model that it was made for: the same slim model, bit for bit."""
    from graphprune import apply_plan
    from graphprune.cli.loading import Request, check_format, writing
    from graphprune.cli.slimming import finish
    from graphprune.cli.watching import Watching
    from graphprune.plans.reading import read_plan

    request = Request.of(source, model, accuracy, device=device)
    watching = Watching(**vars(watch))
    check_format(out)
    with writing([out], [*request.files, plan]), screen.output() as output:
        decision = read_plan(plan)
        job = replace(request, scopes=decision.scopes).open(output)

        def run() -> PruneResult:
            with output.task("Applying") as task:
                observers = watching.observers(output, task)
                return apply_plan(
                    job.source.model, job.inputs, decision, verify=not no_verify, keep_class=keep_class, observers=observers,
                    source=job.source.text,
                )  # fmt: skip

        finish(job, run, out, None, watching, output)
