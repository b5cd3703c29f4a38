"""Latencies as tables, JSON and pictures. What is predicted says so wherever it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from graphprune.cli import tables
from graphprune.cli.output import Output
from graphprune.cli.pictures import picture
from graphprune.cli.profiling import Found
from graphprune.latency.model import Accuracy, LatencyModel, additivity, held_out_accuracy
from graphprune.latency.roofline import RooflineModel
from graphprune.latency.staircase import curve, edges
from graphprune.latency.timing import Timing

_POINTS: Final = 129
_COLUMNS: Final = 4


def label(found: Found) -> str:
    """How the figures came about, in a word or two."""
    return "fitted to measurements" if found.table is not None else "predicted, not measured"


def show(found: Found, output: Output) -> None:
    """Print what was found."""
    rows = group_rows(found)
    output.data(_data(found, rows))
    environment = found.environment
    table = tables.plain_table(
        *("group", "#units", "#ms at full", "#ms at half", "#ms at 1 unit", "#steps"),
        title=f"Latency ({label(found)}): the whole model, by one group's width",
    )
    for row in rows:
        figures = [f"{row[key]:.3f}" for key in ("full_ms", "half_ms", "least_ms")]
        table.add_row(tables.folded(str(row["group"])), str(row["units"]), *figures, str(row["steps"]))
    output.show(table)
    threads = f", {tables.several(environment.threads, 'thread')}" if environment.threads else ""
    output.say(
        f"On {environment.name} ({environment.device}{threads}), {environment.dtype}, {environment.compile}, at {found.inputs}."
    )
    if found.scopes:
        output.say(f"Times are those of the parts that are pruned: {', '.join(found.scopes)}.")
    if found.batches:
        loads = ", ".join(f"{batch}: {1000 * batch / ms:.1f}/s" for batch, ms in found.batches.items())
        output.say(f"Throughput by batch: {loads}.")
    for line in _quality(found):
        output.say(line)


def _quality(found: Found) -> list[str]:
    if isinstance(found.model, RooflineModel):
        roof = found.model.roofline
        error = f"; {_errors(roof.error)} on plain layers that were held out" if roof.error else ""
        return [
            f"Predicted from {roof.rate / 1e6:.1f} GMACs/s, {roof.bandwidth / 1e6:.1f} GB/s and {roof.overhead * 1000:.1f} us for "
            f"each layer{error}. Measure with -o FILE to be sure."
        ]
    assert found.table is not None
    whole, least = found.table.samples[0].whole, found.table.samples[1].whole
    lines = [
        f"Whole model: {whole.median_ms:.3f} ms ± {whole.median_ms * whole.error:.3f} ({whole.runs} runs); "
        f"at one unit in each group: {least.median_ms:.3f} ms. {tables.several(len(found.table.samples), 'sample')}."
    ]
    summed = additivity(found.table)
    if summed is not None:
        eager = " (layers eager, whole models compiled)" if found.environment.compile == "compile" else ""
        lines.append(f"Sum of layers against whole models: off by {_errors(summed)}{eager}.")
    tested = held_out_accuracy(found.table)
    if tested is not None:
        lines.append(f"Predictions for samples that were held out: off by {_errors(tested)}.")
    return lines


def _errors(error: Accuracy) -> str:
    return f"{error.median:.1%} (median), {error.worst:.1%} (worst of {error.samples})"


def group_rows(found: Found) -> list[dict[str, Any]]:
    """For each group the whole model's latency with it at full width, half, and one unit, and the steps in between."""
    rows = []
    for group in found.groups.prunable:
        widths = np.arange(1, group.size + 1)
        times = curve(found.model, found.groups.widths, group.index, widths)
        at = {"full_ms": times[-1], "half_ms": times[max(0, group.size // 2 - 1)], "least_ms": times[0]}
        figures = {key: float(value) for key, value in at.items()}
        rows.append({"group": group.name, "units": group.size, **figures, "steps": int(edges(times).size)})
    return rows


def _data(found: Found, rows: list[dict[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "label": label(found),
        "measured": found.table is not None,
        "environment": found.environment.model_dump(),
        "inputs": found.inputs,
        "scopes": list(found.scopes),
        "batches": found.batches,
        "groups": rows,
    }
    if isinstance(found.model, RooflineModel):
        roof = found.model.roofline
        figures = {"macs_per_ms": roof.rate, "bytes_per_ms": roof.bandwidth, "ramp": roof.ramp, "overhead_ms": roof.overhead}
        return data | {"roofline": figures, "held_out": _error_data(roof.error)}
    assert found.table is not None
    return data | {
        **{name: _timing_data(sample.whole) for name, sample in zip(("whole", "least"), found.table.samples, strict=False)},
        "samples": len(found.table.samples),
        "additivity": _error_data(additivity(found.table)),
        "held_out": _error_data(held_out_accuracy(found.table)),
    }


def _timing_data(timing: Timing) -> dict[str, Any]:
    return timing.model_dump() | {"error_ms": timing.median_ms * timing.error}


def _error_data(error: Accuracy | None) -> dict[str, Any] | None:
    return None if error is None else {"median": error.median, "mean": error.mean, "worst": error.worst, "samples": error.samples}


def plot_latency(found: Found, path: Path) -> None:
    """Draw the staircase of every group, and the model's predictions against what was measured."""
    groups = found.groups.prunable
    panels = len(groups) + (found.table is not None)
    height = -(-panels // _COLUMNS)
    size = 13, 0.6 + min(2.1 * height, 200)  # inches; a picture has a largest height
    with picture(path, height, _COLUMNS, size, dpi=110) as (figure, axes):
        places = list(axes.flat)
        for group, panel in zip(groups, places, strict=False):
            widths = np.unique(np.linspace(1, group.size, _POINTS).round().astype(np.int64))
            times = curve(found.model, found.groups.widths, group.index, widths)
            panel.step(widths, times, where="pre", color="#3b6fb6", linewidth=1.2)
            panel.set_title(group.name, fontsize=8)
            panel.set_ylim(0, 1.08 * times.max())
            panel.tick_params(labelsize=7)
        if found.table is not None:
            _scatter(found, places[len(groups)])
        for panel in places[panels:]:
            panel.set_axis_off()
        figure.suptitle(f"Milliseconds of the whole model by units of one group ({label(found)})", fontsize=10)


def _scatter(found: Found, panel: Any) -> None:
    """Held-out samples by a model that has not seen them; the others by one that has."""
    assert found.table is not None and isinstance(found.model, LatencyModel)
    held_out = np.array([sample.held_out for sample in found.table.samples])
    measured, honest = found.table.whole_ms, LatencyModel(found.table.fitted())(found.table.widths)
    panel.plot([0, measured.max()], [0, measured.max()], color="#bbbbbb", linewidth=0.8)
    panel.scatter(measured[~held_out], honest[~held_out], s=8, color="#3b6fb6", label="fitted")
    panel.scatter(measured[held_out], honest[held_out], s=16, color="#c8442c", label="held out")
    panel.set_title("predicted (ms) against measured (ms)", fontsize=8)
    panel.legend(fontsize=7)
    panel.tick_params(labelsize=7)
