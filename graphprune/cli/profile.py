"""``graphprune profile``: the latency of a model on this device, as a function of its group widths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli import options
from graphprune.cli.errors import going_on
from graphprune.errors import UsageError

_HOW = "How to measure"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What to measure, and how."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Where the table goes (.json). It is saved while it grows: after an interruption, the same command goes on.",
            rich_help_panel="Result",
        ),
    ] = None
    device: options.Measured = "cpu"
    compiled: Annotated[
        bool, typer.Option("--compile", help="Time whole models under torch.compile (layers stay eager).", rich_help_panel=_HOW)
    ] = False
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="Leading size of the inputs; 'auto' doubles it until the throughput rises by less than 5 %. Default: as given.",
            rich_help_panel=_HOW,
        ),
    ] = None
    mode: Annotated[
        str,
        typer.Option(
            metavar="layers|model",
            help="'layers' varies all groups at once and times each layer; 'model' times whole models, one group narrowed at a "
            "time, which takes far longer.",
            rich_help_panel=_HOW,
        ),
    ] = "layers"
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="Slim models to measure in mode 'layers'. Default: 24, compiled 10.", rich_help_panel=_HOW),
    ] = None
    step: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Smallest interval of widths that is divided. Default: a thirty-second of each group.",
            rich_help_panel=_HOW,
        ),
    ] = 0
    predict: Annotated[
        bool,
        typer.Option("--predict", help="Measure a few plain layers only, and predict this model from them.", rich_help_panel=_HOW),
    ] = False

    def check(self) -> None:
        """Raise UsageError for options that do not go together."""
        if self.mode not in ("layers", "model"):
            raise UsageError(f"--mode {self.mode} is not known; choose layers or model.")
        if (self.samples is not None and self.samples < 8) or self.step < 0:
            raise UsageError("--samples must be at least 8, and --step at least 1.")
        if self.batch not in (None, "auto") and not (str(self.batch).isdecimal() and int(str(self.batch)) > 0):
            raise UsageError(f"--batch {self.batch} is neither 'auto' nor a number from 1 on.")
        if self.predict == (self.out is not None):
            what = "writes no table, so that it takes no -o." if self.predict else "needs -o FILE for its table, or --predict."
            raise UsageError(f"{'--predict' if self.predict else 'profile'} {what}")
        if self.predict and self.compiled:
            raise UsageError("--predict knows eager layers only. Leave out --compile, or measure.")


def command(
    source: options.SourceText,
    *,
    wish: Wish,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the staircases: .png, .svg or .pdf (needs matplotlib).", rich_help_panel="Result"),
    ] = None,
    limits: options.Limits,
    model: options.Model,
    screen: options.Screen,
) -> None:
    """Measure how long a model takes at different widths, group by group, for targets on latency."""
    from graphprune.cli.latency_tables import plot_latency, show
    from graphprune.cli.loading import Request, check_outputs
    from graphprune.cli.pictures import check_plot
    from graphprune.cli.profiling import find_latency
    from graphprune.devices import check_device

    request = Request.of(source, model, limits)
    constraints = limits.constraints()
    wish.check()
    check_device(wish.device)
    if plot is not None:
        check_plot(plot)
    check_outputs([wish.out, plot], request.files)
    with going_on(wish.out), screen.output() as output:
        found = find_latency(request.open(output), wish, constraints, output)
        show(found, output)
        if plot is not None:
            plot_latency(found, plot)
            output.say(f"Staircases drawn in {plot}.")
