"""Latency staircases, where a latency table is at hand."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from graphprune.latency.model import LatencyModel
from graphprune.latency.staircase import curve, edges
from graphprune.reporting.facts import Chart, Missing, Section, Table, Tile
from graphprune.reporting.material import Material

_MOST: Final = 12  # groups that are drawn
_POINTS: Final = 257


def latency(material: Material) -> Section | None:
    """The whole model's latency by the width of one group at a time, and by the widths that stayed."""
    if len(material.runs) > 1:
        return None
    table = material.table
    if table is None:
        lack = Missing(
            "There is no latency table.", "Make one with `graphprune profile SOURCE -o latency.json`; add --latency latency.json."
        )
        return Section("latency", "Latency", missing=[lack])
    model, kept = LatencyModel(table), material.widths
    fits = {name: pair[0] for name, pair in kept.items()} == dict(table.groups)
    missing = [] if fits or not kept else [Missing("The latency table is of other groups than the report.", "Profile this model.")]
    rows, drawn = [], []
    for index, (name, full) in enumerate(table.groups.items()):
        every = np.arange(1, full + 1)
        times = curve(model, table.full, index, every)
        stays = kept[name][1] if fits else full
        rows.append((name, full, stays, times))
        drawn.append(_stairs(name, full, stays, times, every))
    drawn.sort(key=lambda one: one["ms"][0] - one["ms"][-1])
    place = table.environment
    lead = f"Fitted to measurements on {place.name} ({place.device}), at {table.inputs}: the whole model by the width of one group."
    figures = [
        [name, str(full), str(stays), f"{times[-1]:.3f}", f"{times[max(stays, 1) - 1]:.3f}", str(edges(times).size)]
        for name, full, stays, times in rows
    ]
    columns = ("group", "#units", "#kept", "#ms at full width", "#ms with this group as kept", "#steps")
    chart = Chart(
        "stairs", "Latency of the whole model by the width of each group.", drawn[:_MOST], 170 * -(-min(len(drawn), _MOST) // 3)
    )
    tiles = [_predicted(model, material, [stays for _, _, stays, _ in rows])] if fits else []
    return Section("latency", "Latency", lead, tiles, [chart], [Table("Latency by group", columns, figures)], missing=missing)


def _stairs(name: str, full: int, stays: int, times: Any, every: Any) -> dict[str, Any]:
    """A curve of so many points at most, the kept width among them."""
    chosen = np.unique([*np.linspace(0, full - 1, min(full, _POINTS)).astype(int), stays - 1])
    return {"name": name, "widths": every[chosen].tolist(), "ms": times[chosen].tolist(), "kept": stays, "full": full}


def _predicted(model: LatencyModel, material: Material, widths: list[int]) -> Tile:
    before, after = (float(value) for value in model(np.array([model.table.full, widths])))
    asked = material.plan.target.get("latency") if material.plan is not None else None
    change = f"{after / before:.1%}" + (f", {asked} asked for" if asked else "")
    return Tile("Latency, by the table", f"{after:.3f} ms", f"{before:.3f} ms", change, after / before)
