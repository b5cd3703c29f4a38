"""The rounds of one run, with those that were rolled back."""

from __future__ import annotations

from typing import Any

from graphprune.cli.rounds import round_cells
from graphprune.reporting.facts import Chart, Missing, Section, Table
from graphprune.reporting.material import Material
from graphprune.runs.history import Round


def rounds(material: Material) -> Section | None:
    """Accuracy and size round by round; None for what is no single run."""
    run = material.run
    if run is None:
        return None
    rows = run.rounds
    if not rows:
        lack = Missing("The run has finished no round yet.", "Let it go on: graphprune run FOLDER/recipe.toml")
        return Section("rounds", "Rounds", missing=[lack])
    back = [row.number for row in rows if row.status == "rolled back"]
    lead = f"{len(rows)} rounds." + (f" Rolled back: {', '.join(map(str, back))}." if back else " None was rolled back.")
    charts = [
        Chart("rounds", "Accuracy and remaining cost after each round of the run.", [_data(row, rows[0]) for row in rows], 340)
    ]
    if len(rows) > 2 and rows[0].widths:
        charts.append(_widths(rows))
    cells = [round_cells(row, rows[0]) for row in rows]
    names = [name for name in cells[0] if any(found[name] for found in cells)]
    columns = [name if name in ("status", "by", "note") else f"#{name}" for name in names]
    table = Table("Rounds", columns, [[found[name] or "-" for name in names] for found in cells])
    return Section("rounds", "Rounds", lead, charts=charts, tables=[table])


def _data(row: Round, first: Round) -> dict[str, Any]:
    return {
        "round": row.number,
        "status": row.status,
        "accuracy": row.accuracy,
        "params": row.params / first.params if first.params else None,
        "macs": row.macs / first.macs if first.macs else None,
        "latency": row.latency,
        "epochs": row.epochs,
        "note": row.note,
    }


def _widths(rows: tuple[Round, ...]) -> Chart:
    full = rows[0].widths
    cells = [
        [column, place, row.widths[name] / width, row.widths[name], width]
        for place, row in enumerate(rows)
        for column, (name, width) in enumerate(full.items())
        if name in row.widths
    ]
    names = [f"{row.number} {row.status}" for row in rows]
    data = {"columns": list(full), "rows": names, "cells": cells, "title": "Width that remains after each round"}
    return Chart("heatmap", "What remains of the width of every group of channels after each round.", data, 130 + 26 * len(rows))
