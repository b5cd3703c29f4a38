"""``graphprune apply``: carry out a saved plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli import options
from graphprune.cli.output import Output

if TYPE_CHECKING:
    from graphprune.api import PruneResult

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan, as `graphprune prune --plan` writes it.")]


def command(
    source: options.SourceText,
    plan: PlanFile,
    out: options.Out,
    no_verify: options.NoVerify = False,
    shape: options.Shape = None,
    weights: options.Weights = None,
    trust_pickle: options.TrustPickle = False,
    seed: options.Seed = 0,
    data: options.Data = None,
    mean: options.Mean = None,
    std: options.Std = None,
    time_passes: options.TimePasses = False,
    print_after: options.PrintAfter = None,
    dump_dir: options.DumpDir = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Carry out a plan on the model that it was made for: the same slim model, bit for bit."""
    from graphprune import Plan, apply_plan
    from graphprune.cli.loading import Request, check_format, writing
    from graphprune.cli.slimming import finish
    from graphprune.cli.watching import Watching

    request = Request(source, weights, trust_pickle, shape, seed, data, mean, std)
    watching = Watching(time_passes, print_after, dump_dir)
    check_format(out)
    with writing([out], [*request.files, plan]), Output(as_json, quiet, verbose) as output:
        decision = Plan.load(plan)
        job = replace(request, scopes=decision.scopes).open(output)

        def run() -> PruneResult:
            with output.task("Applying") as task:
                observers = watching.observers(output, task)
                model, text = job.source.model, job.source.text
                return apply_plan(model, job.inputs, decision, verify=not no_verify, observers=observers, source=text)

        finish(job, run, out, None, watching, output)
