"""``graphprune export``: a model for another runtime."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli import options


def command(
    source: options.SourceText,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="What to write: .pt2 (torch.export), .onnx (needs the extra onnx), .safetensors (graphprune's own), or a folder.",
            rich_help_panel="Result",
        ),
    ],
    *,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="pt2 (torch.export), aot (AOTInductor, also .pt2), onnx, safetensors, or fx-folder (Python source and weights). "
            "Default: what the ending says.",
            rich_help_panel="Result",
        ),
    ] = None,
    static: Annotated[
        bool,
        typer.Option("--static", help="For the sizes of the example inputs alone. Default: any batch.", rich_help_panel="Result"),
    ] = False,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT:AXES",
            help="Axes of an input that may have any size, too, from 0 on: x:2,3 for images of any height and width. Repeatable.",
            rich_help_panel="Result",
        ),
    ] = None,
    model: options.Model,
    screen: options.Screen,
) -> None:
    """Write a slim model, or any other, for another runtime, for any batch, and check that it computes the same there."""
    from graphprune.artifact import read_artifact
    from graphprune.cli.loading import Request, check_outputs
    from graphprune.errors import UsageError
    from graphprune.exporting import export_model, format_of

    request = Request.of(source, model)
    check_outputs([out], request.files, folder=not format_of(out, format).ending)
    if static and dynamic:
        raise UsageError("--static is for the sizes of the example alone, and --dynamic for others. Give one of them.")
    free = dict(map(_axes, dynamic or ())) or not static
    with screen.output() as output:
        job = request.open(output)
        with output.task(f"Writing {out}"):
            plan = read_artifact(source).plan if Path(source).suffix == ".safetensors" else None
            checked = export_model(job.source.model, job.inputs, out, format=format, dynamic=free, plan=plan)
        about = {"source": source, "out": str(out), "inputs": job.inputs.describe(), "dynamic": free}
        output.data(about | asdict(checked))
        output.say(f"Written to {out}. {checked}.")


def _axes(text: str) -> tuple[str, list[int]]:
    """An input's name and axes of it. Raises UsageError."""
    from graphprune.errors import UsageError

    name, _, axes = text.rpartition(":")
    numbers = [int(axis) for axis in axes.split(",") if axis.strip().isdecimal()]
    if not name or len(numbers) != len(axes.split(",")):
        raise UsageError(f"--dynamic {text} does not say which axes of which input. Write it as x:2,3.")
    return name, numbers
