"""Pareto fronts, as tables and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from graphprune.cli import tables
from graphprune.cli.pictures import picture
from graphprune.surveys.pareto import Front, Point


def front_table(front: Front) -> Table:
    """A row for each point; those that no other one beats are marked."""
    best = {_key(point) for point in front.best}
    headings = ("", "way", f"#{front.metric}", "#asked", "#parameters", "#MACs", "#score kept")
    table = tables.plain_table(*headings, title=f"Importance that remains, for less {front.metric} (* marks the Pareto front)")
    for point in front.points:
        if not point.reached or point.score is None:
            table.add_row("", point.way, "out of reach", f"{point.asked:.1%}", "-", "-", "-")
            continue
        shares = (point.shares[kind] for kind in ("params", "macs"))
        table.add_row(
            "*" if _key(point) in best else "",
            point.way,
            f"{point.shares[front.metric]:.1%}",
            f"{point.asked:.1%}",
            *(f"{share:.1%}" for share in shares),
            f"{point.score:.1%}",
        )
    return table


def as_data(front: Front) -> dict[str, Any]:
    """The front as plain data, with the points that no other one beats by their places."""
    best = {_key(point) for point in front.best}
    return front.model_dump() | {"best": [place for place, point in enumerate(front.points) if _key(point) in best]}


def _key(point: Point) -> tuple[str, float]:
    return point.way, point.asked


def plot_front(front: Front, path: Path) -> None:
    """Draw the share of the score that is kept against the share of the metric: a line for each way, the front's points filled."""
    with picture(path, 1, 1, (7, 4.5)) as (_, axes):
        panel = axes[0][0]
        best = {_key(point) for point in front.best}
        for way in dict.fromkeys(point.way for point in front.points):
            found = sorted(
                (p.shares[front.metric], p.score or 0.0, _key(p) in best) for p in front.points if p.way == way and p.reached
            )
            (line,) = panel.plot(
                [1.0, *(x for x, _, _ in found[::-1])], [1.0, *(y for _, y, _ in found[::-1])], label=way, linewidth=1.5
            )
            for x, y, filled in found:
                panel.plot(x, y, "o", color=line.get_color(), markerfacecolor=line.get_color() if filled else "white", markersize=5)
        panel.set_xlabel(f"{front.metric} that remain (share of the original)")
        panel.set_ylabel(f"score kept ({front.settings['criterion']})")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, title="filled: on the Pareto front")
