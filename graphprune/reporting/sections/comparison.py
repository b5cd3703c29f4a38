"""The runs of a folder side by side: accuracy against cost, and widths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from graphprune.cli.tables import share
from graphprune.reporting.facts import Chart, Section, Table
from graphprune.reporting.material import Material
from graphprune.reporting.runs import Run


def comparison(material: Material) -> Section | None:
    """All runs in one chart and one table; None for a single run."""
    if len(material.runs) < 2:
        return None
    known = [run for run in material.runs if run.last is not None]
    rated = [run for run in known if any(row.accuracy is not None for row in run.rounds)]
    names = _short_names(known)
    charts = []
    if rated:
        label = f"Accuracy against what remains of the cost, for {len(rated)} runs, round by round."
        charts.append(Chart("fronts", label, {"runs": [_trajectory(run, names[run.name]) for run in rated]}, 440))
    if heat := _widths(known, names):
        charts.append(heat)
    columns = (
        "run",
        "method",
        "state",
        "#rounds",
        "#epochs",
        "#accuracy, dense",
        "#accuracy, slim",
        "#test",
        "#parameters",
        "#MACs",
    )
    table = Table("Runs", columns, [_row(run) for run in material.runs], folded=False)
    lead = "Accuracies are those on validation data of the last round that stayed, costs are shares of the dense model of each run."
    return Section("runs", f"{len(material.runs)} runs compared", lead, charts=charts, tables=[table])


def _trajectory(run: Run, name: str) -> dict[str, Any]:
    first = run.rounds[0]
    points = [
        {"params": row.params / first.params, "macs": row.macs / first.macs, "accuracy": row.accuracy, "status": row.status,
         "round": row.number}
        for row in run.rounds
        if row.accuracy is not None
    ]  # fmt: skip
    return {"name": name, "points": points}


def _widths(runs: list[Run], names: Mapping[str, str]) -> Chart | None:
    """What remains of each group in each run, where all runs are of one model."""
    firsts = {tuple(run.rounds[0].widths.items()) for run in runs}
    if len(firsts) != 1 or not runs[0].rounds[0].widths:
        return None
    full = runs[0].rounds[0].widths
    cells = [
        [column, row, run.last.widths[name] / width, run.last.widths[name], width]
        for row, run in enumerate(runs)
        for column, (name, width) in enumerate(full.items())
        if run.last is not None and name in run.last.widths
    ]
    label = "What remains of the width of every group of channels, for each run."
    data = {"columns": list(full), "rows": [names[run.name] for run in runs], "cells": cells, "title": "Width that remains"}
    return Chart("heatmap", label, data, 130 + 26 * len(runs))


def _short_names(runs: Sequence[Run]) -> dict[str, str]:
    """Names without the words that all begin with, for drawings; of each at least the last word."""
    words = [re.split(r"(?<=[-_])", run.name) for run in runs]
    shared = [len(set(column)) == 1 for column in zip(*words, strict=False)]
    cut = min([*map(len, words), *(place + 1 for place, same in enumerate(shared) if not same)], default=1) - 1
    return {run.name: "".join(parts[cut:]) for run, parts in zip(runs, words, strict=True)}


def _row(run: Run) -> list[str]:
    last, first = run.last, run.rounds[0] if run.rounds else None
    test = run.result.slim.accuracy.test if run.result is not None else None
    state = "finished" if run.finished else "not finished"
    if last is None or first is None:
        return [run.name, run.method, state, "0", *["-"] * 6]
    return [
        run.name,
        run.method,
        state,
        str(len(run.rounds)),
        str(last.epochs),
        _percent(run.dense_accuracy),
        _percent(last.accuracy),
        _percent(test),
        share(last.params, first.params),
        share(last.macs, first.macs),
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
