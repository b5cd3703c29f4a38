"""``graphprune recipe``: what a run can be made of, and a complete recipe of each method."""

from __future__ import annotations

from typing import Annotated

import typer

from graphprune.cli import options


def command(
    *,
    show: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Print a complete recipe of this method: every option, explained, with its default."),
    ] = None,
    screen: options.Screen,
) -> None:
    """List the methods and the named trainings of `graphprune run`, or print a recipe to start from."""
    from graphprune.cli import tables
    from graphprune.methods import METHODS
    from graphprune.recipe import example
    from graphprune.training.recipes import RECIPES

    with screen.output() as output:
        if show is not None:
            found = example(show)
            output.data(found.tables())
            output.say(found.to_toml().rstrip("\n"))
            return
        methods = {name: method.summary for name, method in METHODS.items()}
        trainings = {name: training.model_dump(mode="json") for name, training in RECIPES.items()}
        output.data({"methods": methods, "trainings": trainings})
        output.show(tables.notes_table("Methods, as in `graphprune run METHOD`", methods, "method", "what it does"))
        table = tables.plain_table(
            "training", "#epochs", "#batch", "optimiser", "#lr", "schedule", title="Named trainings, as in --training NAME"
        )
        for name, one in RECIPES.items():
            table.add_row(name, str(one.epochs), str(one.batch_size), one.optimiser, f"{one.lr:g}", one.schedule)
        output.show(table)
        output.say("`graphprune recipe --show METHOD` prints a complete recipe.")
