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
    model: options.Model,
    screen: options.Screen,
) -> None:
    """Write a slim model, or any other, for another runtime, for any batch, and check that it computes the same there."""
    from graphprune import capture
    from graphprune.artifact import read_artifact
    from graphprune.cli.loading import Request, check_outputs
    from graphprune.errors import UsageError
    from graphprune.exporting import export_model, format_of

    request = Request.of(source, model)
    format_of(out, format)
    check_outputs([out], request.files)
    with screen.output() as output:
        job = request.open(output)
        with output.task(f"Writing {out}"):
            program = capture(job.source.model, job.inputs, source=source)
            if program.scopes:
                raise UsageError(f"{source} does not trace as a whole, and export takes models that do.")
            plan = read_artifact(source).plan if Path(source).suffix == ".safetensors" else None
            checked = export_model(program.module, program.inputs, out, format=format, dynamic=not static, plan=plan)
        about = {"source": source, "out": str(out), "inputs": job.inputs.describe(), "dynamic": not static}
        output.data(about | asdict(checked))
        output.say(f"Written to {out}. {checked}.")
