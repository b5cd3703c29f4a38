"""``graphprune diff``: what two plans, or slim models, keep in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli import options
from graphprune.cli.output import Output

if TYPE_CHECKING:
    from graphprune.plans.diff import PlanDiff


def command(
    a: Annotated[Path, typer.Argument(metavar="PLAN_A", help=options.PLAN_FILE)],
    b: Annotated[Path, typer.Argument(metavar="PLAN_B", help="Another one for the same model.")],
    screen: options.Screen,
) -> None:
    """Compare two plans: what both keep, and what only one does. Exit code 1 where they differ."""
    from graphprune.plans.diff import diff_plans
    from graphprune.plans.reading import read_plan

    with screen.output() as output:
        found = diff_plans(read_plan(a), read_plan(b))
        output.data(_data(found))
        _show(found, output)
    if not found.same:
        raise typer.Exit(1)


def _show(found: PlanDiff, output: Output) -> None:
    from graphprune.cli import tables

    table = tables.plain_table("axis", "#full", "#A", "#B", "#both", "#only A", "#only B", "#Jaccard")
    for axis in found.axes:
        counts = (axis.size, axis.both + axis.only_a, axis.both + axis.only_b, axis.both, axis.only_a, axis.only_b)
        name = tables.folded(f"{axis.tensor}[{axis.axis}]".removesuffix(".weight[0]"))
        table.add_row(name, *map(str, counts), f"{axis.jaccard:.2f}")
    if found.axes:
        output.show(table)
    count, share = tables.count, tables.share
    output.say(
        f"Parameters and buffers: {count(found.original)}; A leaves {count(found.a)} ({share(found.a, found.original)}), "
        f"B leaves {count(found.b)} ({share(found.b, found.original)})."
    )
    different = sum(not axis.same for axis in found.axes)
    verdict = f"They differ on {different} of {len(found.axes)} kinds of axis" if different else "They keep the same"
    output.say(f"{verdict}; Jaccard index of all kept indices: {found.jaccard:.3f}.")


def _data(found: PlanDiff) -> dict[str, Any]:
    return {
        "same": found.same,
        "jaccard": found.jaccard,
        "elements": {"original": found.original, "a": found.a, "b": found.b},
        "axes": [
            {
                "tensor": axis.tensor,
                "axis": axis.axis,
                "size": axis.size,
                "both": axis.both,
                "only_a": axis.only_a,
                "only_b": axis.only_b,
                "jaccard": axis.jaccard,
                "alike": [{"tensor": tensor, "axis": number} for tensor, number in axis.alike],
            }
            for axis in found.axes
        ],
    }
