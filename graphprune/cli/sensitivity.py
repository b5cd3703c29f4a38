"""``graphprune sensitivity``: what the accuracy comes to when each group is cut by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli import options
from graphprune.cli.errors import going_on
from graphprune.cli.output import Output
from graphprune.text import several

if TYPE_CHECKING:
    from rich.table import Table

    from graphprune.surveys.curves import Sensitivity

_HOW = "What to try"


def command(
    source: options.SourceText,
    *,
    data: Annotated[
        Path,
        typer.Option(metavar="FILE.npz", help="Labelled images to measure the top-1 accuracy on: x_test and y_test, or x and y."),
    ],
    out: options.Points,
    ratio: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SHARE", help="Share of a group's units to remove. Repeatable. Default: several.", rich_help_panel=_HOW
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A group, layer or block to cut. Repeatable. Default: all.", rich_help_panel=_HOW),
    ] = None,
    criterion: options.LikeScore = "l2",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the curves: .png, .svg or .pdf (needs matplotlib).")
    ] = None,
    limits: options.Limits,
    model: options.Model,
    device: options.Device = "cpu",
    scaling: options.Scaling,
    calibration: options.Calibration,
    screen: options.Screen,
) -> None:
    """Cut each group by itself, at several ratios, and measure the accuracy. Nothing is trained."""
    from graphprune.cli.loading import Request, writing
    from graphprune.cli.pictures import check_plot, picture
    from graphprune.surveys.curves import RATIOS, Sensitivity

    request = Request.of(source, model, limits, scaling, calibration, data=data, device=device)
    how: dict[str, Any] = {"ratios": tuple(ratio or RATIOS), "groups": group, "criterion": criterion, "seed": model.seed}
    how |= {"measure": f"top-1 accuracy on {data}, of weights {model.weights}", **limits.constraints()}
    if plot is not None:
        check_plot(plot)
    with writing([out, plot], request.files), going_on(out), screen.output() as output:
        known = Sensitivity.load(out) if out.exists() else None
        found = _run(output, request, how, known, out)
        output.data(found.model_dump(mode="json", exclude={"model"}))
        output.show(_table(found))
        if plot is not None:
            with picture(plot, 1, 1, size=(7, 4.5)) as (_, axes):
                found.plot(axes[0, 0])
            output.say(f"The curves are drawn in {plot}.")
        output.say(f"{several(len(found.points), 'point')} written to {out}.")


def _run(output: Output, request: Any, how: dict[str, Any], known: Sensitivity | None, out: Path) -> Sensitivity:
    from torch import nn

    from graphprune.cli.accuracy import top1
    from graphprune.surveys.curves import sensitivity

    job = request.open(output)
    with output.task("Scoring") as task:

        def save(found: Sensitivity) -> None:
            found.save(out)
            task.describe(f"{found.points[-1].group} cut by {found.points[-1].ratio:.0%}")

        def evaluate(model: nn.Module) -> float:
            return top1(model, job.images, Output(quiet=True))

        found = sensitivity(
            job.source.model, job.inputs, evaluate, scopes=job.scopes, source=job.source.text, data=job.calibration, known=known,
            save=save, **how
        )  # fmt: skip
    found.save(out)
    return found


def _table(found: Sensitivity) -> Table:
    from graphprune.cli import tables

    ratios = sorted({point.ratio for point in found.points})
    headings = [f"#-{ratio:.0%}" for ratio in ratios]
    table = tables.plain_table("group", *headings, title=f"Top-1 accuracy with one group cut; {found.baseline:.2%} with none")
    for group in found.groups:
        curve = found.curve(group)
        table.add_row(tables.folded(group), *(f"{curve[ratio]:.1%}" if ratio in curve else "" for ratio in ratios))
    return table
