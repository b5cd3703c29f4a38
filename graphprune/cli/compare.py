"""``graphprune compare``: two models side by side, as they are: size, work, latency, memory, accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli import options
from graphprune.cli.output import Output

_HOW = "How to measure"


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="A model, named as for the other commands: usually the original.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one that takes the same inputs: usually the slim one.")],
    device: Annotated[
        str, typer.Option(metavar="cpu|cuda", help="The device to measure on, as busy as it is.", rich_help_panel=_HOW)
    ] = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Time both models under torch.compile.", rich_help_panel=_HOW)
    ] = False,
    batch: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Leading size of the inputs. Repeatable. Default: as given.", rich_help_panel=_HOW),
    ] = None,
    shape: options.Shape = None,
    weights: options.Weights = None,
    weights_b: Annotated[
        Path | None, typer.Option("--weights-b", metavar="FILE", help="The same for B.", rich_help_panel="Model")
    ] = None,
    trust_pickle: options.TrustPickle = False,
    seed: options.Seed = 0,
    data: options.Data = None,
    mean: options.Mean = None,
    std: options.Std = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Compare two models at the same inputs: parameters, MACs, bytes, latency by turns, peak activations and accuracy."""
    from graphprune.cli.comparing import compare, show
    from graphprune.cli.loading import Request
    from graphprune.latency.environment import check_device

    check_device(device)
    first = Request(a, weights, trust_pickle, shape, seed, data, mean, std)
    second = Request(b, weights_b, trust_pickle, shape, seed)
    with Output(as_json, quiet, verbose) as output:
        show(compare(first, second, output, device=device, compiled=compiled, batches=tuple(batch or ())), output)
