"""``graphprune profile``: the latency of a model on this device, as a function of its group widths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli import options
from graphprune.cli.errors import going_on
from graphprune.cli.output import Output

_HOW = "How to measure"


def command(
    source: options.SourceText,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Where the table goes (.json). It is saved while it grows: after an interruption, the same command goes on.",
            rich_help_panel="Result",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="cpu|cuda", help="The device to measure on, as busy as it is.", rich_help_panel=_HOW)
    ] = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Time whole models under torch.compile (layers stay eager).", rich_help_panel=_HOW)
    ] = False,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="Leading size of the inputs; 'auto' doubles it until the throughput rises by less than 5 %. Default: as given.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            metavar="layers|model",
            help="'layers' varies all groups at once and times each layer; 'model' times whole models, one group narrowed at a "
            "time, which takes far longer.",
            rich_help_panel=_HOW,
        ),
    ] = "layers",
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="Slim models to measure in mode 'layers'. Default: 24, compiled 10.", rich_help_panel=_HOW),
    ] = None,
    step: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Smallest interval of widths that is divided. Default: a thirty-second of each group.",
            rich_help_panel=_HOW,
        ),
    ] = 0,
    predict: Annotated[
        bool,
        typer.Option("--predict", help="Measure a few plain layers only, and predict this model from them.", rich_help_panel=_HOW),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the staircases: .png, .svg or .pdf (needs matplotlib).", rich_help_panel="Result"),
    ] = None,
    exclude: options.Exclude = None,
    scope: options.Scopes = None,
    policy: options.PolicyChoices = None,
    shape: options.Shape = None,
    weights: options.Weights = None,
    trust_pickle: options.TrustPickle = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Measure how long a model takes at different widths, group by group, for targets on latency."""
    from graphprune.cli.latency_tables import plot_latency, show
    from graphprune.cli.loading import Request, check_outputs, parse_policy
    from graphprune.cli.pictures import check_plot
    from graphprune.cli.profiling import Wish, check, find_latency

    request = Request(source, weights, trust_pickle, shape, seed, scopes=scope)
    wish = Wish(out, device, compiled, batch, mode, samples, step, predict, tuple(exclude or ()), parse_policy(policy))
    check(wish)
    if plot is not None:
        check_plot(plot)
    check_outputs([out, plot], request.files)
    with going_on(out), Output(as_json, quiet, verbose) as output:
        found = find_latency(request.open(output), wish, output)
        show(found, output)
        if plot is not None:
            plot_latency(found, plot)
            output.say(f"Staircases drawn in {plot}.")
