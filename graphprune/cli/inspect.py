"""``graphprune inspect``: how a model was captured, what can be pruned, and what cannot, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli import options

if TYPE_CHECKING:
    from graphprune.cli.survey import Survey


def command(
    source: options.SourceText,
    *,
    why: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Explain the groups that this layer or tensor belongs to: what tied or froze them, and where."
        ),
    ] = None,
    pattern: options.Pattern = None,
    cost: Annotated[
        bool,
        typer.Option("--cost", help="Show the cost as formulas in the group widths, and what each group and one unit of it cost."),
    ] = False,
    graph: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the coupling graph: .svg, .png or .pdf (drawn), .dot, .graphml or .json."),
    ] = None,
    limits: options.Limits,
    model: options.Model,
    screen: options.Screen,
) -> None:
    """Show the channel groups of a model: what is coupled, what can go, and why the rest must stay."""
    from graphprune.cli import cost_tables, explaining, survey_tables
    from graphprune.cli.coupling import check_graph_format, write_graph
    from graphprune.cli.loading import Request, check_outputs
    from graphprune.cli.survey import survey

    request = Request.of(source, model, limits)
    constraints = limits.constraints()
    if graph is not None:
        check_graph_format(graph)
    check_outputs([graph], request.files)
    with screen.output() as output:
        job = request.open(output)
        with output.task("Following channels"):
            found: Survey = survey(job, **constraints)
        chosen = found.explained(why) if why is not None else found.matching(pattern)
        if graph is not None:
            write_graph(found.groups, graph)
        data = survey_tables.as_data(found, chosen)
        if why is not None:
            data |= explaining.as_data(found, chosen)
        output.data(data | {"cost_by_width": cost_tables.as_data(found.cost, chosen)} if cost else data)
        if why is not None:
            output.show(*explaining.explanation(found, chosen, screen.verbose))
        else:
            output.show(*survey_tables.overview(found, chosen, screen.verbose))
        if cost:
            output.show(*cost_tables.cost_tables(found, chosen))
        if graph is not None:
            output.say(f"Coupling graph written to {graph}.")
