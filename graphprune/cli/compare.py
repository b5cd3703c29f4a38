"""``graphprune compare``: two models side by side, as they are: size, work, latency, memory, accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli import options

_HOW = "How to measure"


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="A model, named as for the other commands: usually the original.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one that takes the same inputs: usually the slim one.")],
    *,
    device: options.Measured = "cpu",
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
    accuracy: options.Accuracy,
    screen: options.Screen,
) -> None:
    """Compare two models at the same inputs: parameters, MACs, bytes, latency by turns, peak activations and accuracy."""
    from graphprune.cli.comparing import compare, show
    from graphprune.cli.loading import Request
    from graphprune.devices import check_device

    check_device(device)
    first = Request.of(a, accuracy, weights=weights, shape=shape, trust_pickle=trust_pickle, seed=seed)
    second = Request(b, weights=weights_b, shape=shape, trust_pickle=trust_pickle, seed=seed)
    with screen.output() as output:
        show(compare(first, second, output, device=device, compiled=compiled, batches=tuple(batch or ())), output)
