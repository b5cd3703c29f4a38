"""The page and the plot of the speed-up benchmark, made from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

from graphprune.files import atomic_write

Row = Mapping[str, Any]

_HEAD = """# What MACs removed are worth in time

Made by `run.py` beside this page, which says how. {versions}.

*worth* is the share of the time that is gone over the share of the MACs that is gone: 1 where time follows MACs.
"""
_PEER = " time, peer (at its MACs) | worth, peer |"


def publish(folder: Path, rows: Sequence[Row], models: Sequence[str]) -> None:
    """Write ``README.md``, and ``speedup.png`` where matplotlib is installed."""
    timed = [row for row in rows if "ms" in row]
    plots = bool(timed) and find_spec("matplotlib") is not None
    if plots:
        _plot(folder / "speedup.png", timed)
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(page(rows, models, plot=plots))


def page(rows: Sequence[Row], models: Sequence[str], *, plot: bool) -> str:
    """All of it, as Markdown."""
    versions = "; ".join(dict.fromkeys(row["made_with"] for row in rows if "made_with" in row))
    parts = [_HEAD.format(versions=versions or "Nothing is measured yet")]
    if plot:
        parts.append("![share of the time that is left by share of the MACs that is left](speedup.png)\n")
    order = {model: place for place, model in enumerate(models)}
    for setting, found in groupby(sorted(rows, key=_setting), key=_setting):
        chosen = sorted(found, key=lambda row: (order.get(row["model"], len(order)), row["model"], -row["asked"], row["key"]))
        parts += [f"## {_title(setting)}\n", _summary(chosen), _table(chosen)]
    return "\n".join(parts).rstrip() + "\n"


def _setting(row: Row) -> tuple[str, ...]:
    return row["device"], row.get("dtype", ""), row.get("layout", ""), str(row["batch"]), row["way"]


def _title(setting: tuple[str, ...]) -> str:
    device, dtype, layout, batch, way = setting
    kind = [dtype] if dtype else []
    kind += [layout] if layout == "channels_last" else []
    return ", ".join([way, device, *kind, "saturated" if batch == "auto" else f"batch of {batch}"])


def _summary(rows: Sequence[Row]) -> str:
    found = [row["worth"] for row in rows if row.get("worth") is not None]
    theirs = [row["peer_worth"] for row in rows if row.get("peer_worth") is not None]
    texts = [f"median worth of {len(found)} slim models: {median(found):.2f}"] if found else []
    texts += [f"of {len(theirs)} of torch-pruning's: {median(theirs):.2f}"] if theirs else []
    return "; ".join(texts).capitalize() + ".\n" if texts else ""


def _table(rows: Sequence[Row]) -> str:
    peer = any("peer_ms" in row for row in rows)
    lines = ["| model | MACs left | original, ms | slim, ms | speed-up | worth |" + (_PEER if peer else "")]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |" + (" ---: | ---: |" if peer else ""))
    for row in rows:
        name = row["model"].partition(":")[2] + (f", {row['images']} images" if row["batch"] == "auto" and "images" in row else "")
        if "refused" in row:
            lines.append(f"| {name} | {row['asked']:.0%} asked | {row['refused']} | | | |" + (" | |" if peer else ""))
            continue
        speed = row["original_ms"] / row["ms"]
        cells = [
            name,
            f"{row['macs']:.1%}",
            f"{row['original_ms']:.2f}",
            f"{row['ms']:.2f}",
            f"{speed:.2f}x",
            _figure(row["worth"]),
        ]
        if peer:
            there = f"{row['peer_ms']:.2f} ({row['peer_macs']:.1%})" if "peer_ms" in row else ""
            cells += [there, _figure(row.get("peer_worth"))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _plot(path: Path, rows: Sequence[Row]) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    settings = sorted({_setting(row) for row in rows})
    figure = Figure(figsize=(4.2 * len(settings), 4.2), layout="constrained")
    for place, setting in enumerate(settings, 1):
        axes = figure.add_subplot(1, len(settings), place)
        axes.set_prop_cycle(color=colormaps["Paired"].colors)  # of twelve models
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        mine = [row for row in rows if _setting(row) == setting]
        for model, found in groupby(sorted(mine, key=lambda row: (row["model"], row["macs"])), key=lambda row: row["model"]):
            points = [(row["macs"], row["ms"] / row["original_ms"]) for row in found]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=model.partition(":")[2])
        theirs = [(row["peer_macs"], row["peer_ms"] / row["original_ms"]) for row in mine if "peer_ms" in row]
        if theirs:
            axes.scatter(*zip(*theirs, strict=True), marker="x", s=14, color="black", label="torch-pruning")
        axes.set(xlim=(0, 1), ylim=(0, None), xlabel="MACs left", title=fill(_title(setting), 32))
        axes.set_ylabel("time left")
        axes.legend(fontsize=6)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
