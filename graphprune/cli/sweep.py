"""``graphprune sweep``: how much importance remains at how much of a cost, for many budgets at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli import options
from graphprune.cli.errors import going_on
from graphprune.cli.output import Output
from graphprune.text import several

if TYPE_CHECKING:
    from graphprune.surveys.pareto import Front

_HOW = "What to try"


def command(
    source: options.SourceText,
    *,
    out: options.Points,
    metric: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="The cost to lower: macs, params, channels, weight_bytes, memory, or latency (with --latency).",
            rich_help_panel=_HOW,
        ),
    ] = "macs",
    points: Annotated[int, typer.Option(metavar="N", help="How many budgets, evenly spaced.", rich_help_panel=_HOW)] = 12,
    least: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="The lowest budget. Default: one unit of each group.", rich_help_panel=_HOW),
    ] = None,
    way: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="How to select: global, local or isomorphic ranking, or a selection pass. Repeatable: they are compared. "
            "Default: global.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYERS=AMOUNT",
            help="What stays of these layers at every budget: 'layer4.*=30%', layer1.0.conv1=48 (channels). Repeatable; of two for "
            "one layer the later counts.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    criterion: options.LikeScore = "l2",
    normalise: Annotated[
        str, typer.Option(metavar="none|mean|max|gaussian", help="Scale within each group.", rich_help_panel=_HOW)
    ] = "max",
    round_to: Annotated[
        int, typer.Option(metavar="N", help="Keep channels in multiples of N where a group is wide enough.", rich_help_panel=_HOW)
    ] = 1,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the front: .png, .svg or .pdf (needs matplotlib).")
    ] = None,
    latency: options.Latency = None,
    limits: options.Limits,
    model: options.Model,
    device: options.Device = "cpu",
    calibration: options.Calibration,
    scaling: options.Scaling,
    screen: options.Screen,
) -> None:
    """Select at many budgets, without training, and show how much importance remains at what cost."""
    from graphprune.cli import front_tables, tables
    from graphprune.cli.loading import Request, writing
    from graphprune.cli.pictures import check_plot
    from graphprune.surveys.pareto import Front, Sweep

    task = Sweep(metric, points, least, tuple(way or ["global"]), {"round_to": round_to}, options.kept(keep or ()) or {})
    request = Request.of(source, model, limits, calibration, scaling, device=device)
    how: dict[str, Any] = {"criterion": criterion, "normalise": normalise, "seed": model.seed, "latency": latency}
    how |= limits.constraints()
    if plot is not None:
        check_plot(plot)
    inputs = [*request.files, *([latency] if latency is not None else [])]
    with writing([out, plot], inputs), going_on(out), screen.output() as output:
        known = Front.load(out) if out.exists() else None
        job = request.open(output)
        front = _run(output, job, task, how, known, out)
        output.data(front_tables.as_data(front))
        output.show(front_tables.front_table(front))
        if task.keep:
            output.say(tables.keep_line(task.keep))
        if plot is not None:
            with output.task(f"Drawing {plot}"):
                front_tables.plot_front(front, plot)
            output.say(f"The front is drawn in {plot}.")
        output.say(f"{several(len(front.points), 'point')} written to {out}.")


def _run(output: Output, job: Any, task: Any, how: dict[str, Any], known: Front | None, out: Path) -> Front:
    from graphprune.cli.watching import shown
    from graphprune.surveys.pareto import sweep

    with output.task("Scoring", total=task.points * len(task.ways)) as shown_task:
        if known is not None:
            shown_task.advance(len(known.points))

        def save(front: Front) -> None:
            front.save(out)
            point = front.points[-1]
            shown_task.describe(f"Selecting: {point.way}, {point.asked:.0%} of {front.metric}")
            shown_task.advance()

        front = sweep(
            job.source.model, job.inputs, task, scopes=job.scopes, source=job.source.text, data=shown(job.calibration, shown_task),
            known=known, save=save, **how
        )  # fmt: skip
    front.save(out)
    return front
