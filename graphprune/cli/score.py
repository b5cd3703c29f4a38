"""``graphprune score``: how important each channel is by a criterion, group by group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli import options

if TYPE_CHECKING:
    from graphprune.cli.importance import Importance

_HOW = "How to score"


def command(
    source: options.SourceText,
    *,
    criterion: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="A name that `graphprune passes` lists, with options as in 'attention(p=2)', or a weighted sum as in "
            "'0.5*l2+0.5*taylor'. Repeatable: criteria are compared. Default: l2.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    reduction: Annotated[
        str, typer.Option(metavar="sum|mean|max|l2", help="How coupled slices combine.", rich_help_panel=_HOW)
    ] = "default",
    normalise: Annotated[
        str, typer.Option(metavar="none|mean|max|gaussian", help="Scale within each group.", rich_help_panel=_HOW)
    ] = "none",
    pattern: options.Pattern = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the distributions: .png, .svg or .pdf (needs matplotlib).")
    ] = None,
    limits: options.Limits,
    model: options.Model,
    device: options.Device = "cpu",
    calibration: options.Calibration,
    scaling: options.Scaling,
    screen: options.Screen,
) -> None:
    """Score every channel by a criterion, and show how the scores of each group are distributed."""
    from graphprune.cli.importance import plot_scores, score_all, show
    from graphprune.cli.loading import Request, check_outputs
    from graphprune.cli.pictures import check_plot

    request = Request.of(source, model, limits, calibration, scaling, device=device)
    how: dict[str, Any] = {"reduction": reduction, "normalise": normalise, "seed": model.seed}
    constraints = limits.constraints()
    if plot is not None:
        check_plot(plot)
    check_outputs([plot], request.files)
    with screen.output() as output:
        job = request.open(output)
        found: list[Importance] = score_all(job, tuple(criterion or ["l2"]), how, constraints, pattern, output)
        show(found, output)
        if plot is not None:
            with output.task(f"Drawing {plot}"):
                plot_scores(found, plot)
            output.say(f"Distributions drawn in {plot}.")
