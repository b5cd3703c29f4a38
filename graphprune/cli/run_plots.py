"""Pictures of a run: accuracy against size, widths before and after, scores before and after a regularisation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from graphprune.files import atomic_write
from graphprune.runs.history import Round

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = ("png", "svg", "pdf")

_BLUE, _LIGHT, _RED, _GREY = "#3b6fb6", "#c9d7ea", "#c8553d", "#8a8a8a"
_MOST = 60  # groups in the picture of the widths
_LOOKS: Final[dict[str, dict[str, Any]]] = {
    "dense": {"marker": "D", "color": "black"},
    "begun": {"marker": "D", "color": _GREY},
    "accepted": {"marker": "o", "color": _BLUE},
    "rolled back": {"marker": "x", "color": _RED},
    "final": {"marker": "*", "color": _BLUE, "markersize": 13},
}


def draw(folder: Path, rounds: Sequence[Round], kind: str) -> list[Path]:
    """Draw what there is to draw into ``folder/plots``, and return the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (folder / "plots").mkdir(exist_ok=True)
    made = []
    for name, figure in _figures(folder, rounds):
        path = folder / "plots" / f"{name}.{kind}"
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            figure.savefig(stream, format=kind, dpi=130)
        pyplot.close(figure)
        made.append(path)
    return made


def _figures(folder: Path, rounds: Sequence[Round]) -> Iterator[tuple[str, Figure]]:
    if any(row.accuracy is not None for row in rounds):
        yield "rounds", _rounds(rounds)
    if rounds and rounds[0].widths:
        yield "widths", _widths(rounds)
    scores = folder / "scores.json"
    if scores.is_file():
        yield "scores", _scores(json.loads(scores.read_text(encoding="utf-8")))


def _rounds(rounds: Sequence[Round]) -> Figure:
    """Accuracy against parameters and against MACs, round by round; rounds that were taken back are off the line."""
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    known = [row for row in rounds if row.accuracy is not None]
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for panel, kind, title in zip(panels, ("params", "macs"), ("parameters", "MACs"), strict=True):
        sizes = [getattr(row, kind) / getattr(rounds[0], kind) for row in known]
        stayed = [(size, row.accuracy) for size, row in zip(sizes, known, strict=True) if row.status != "rolled back"]
        panel.axhline(known[0].accuracy, color=_GREY, linestyle=":", linewidth=1, zorder=0)
        panel.plot(*zip(*stayed, strict=True), color=_LIGHT, linewidth=2, zorder=1)
        for status, look in _LOOKS.items():
            at = [(size, row.accuracy) for size, row in zip(sizes, known, strict=True) if row.status == status]
            if at:
                panel.plot(*zip(*at, strict=True), linestyle="none", label=status, zorder=2, **look)
        panel.invert_xaxis()
        panel.set_xlabel(f"{title} that remain")
        panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _plain(panel)
    panels[0].set_ylabel("accuracy on validation data")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[1].legend(frameon=False, loc="best")
    return figure


def _widths(rounds: Sequence[Round]) -> Figure:
    """Units of every group in the first round and in the last that stayed, as bars; of many groups those that lost most."""
    from matplotlib import pyplot

    last = next((row for row in reversed(rounds) if row.status != "rolled back"), rounds[0])
    names = list(rounds[0].widths)
    if len(names) > _MOST:
        lost = sorted(names, key=lambda name: last.widths[name] - rounds[0].widths[name])[:_MOST]
        names = [name for name in names if name in lost]
    before, after = ([row.widths[name] for name in names] for row in (rounds[0], last))
    figure, panel = pyplot.subplots(figsize=(8, 1.2 + 0.26 * len(names)), layout="constrained")
    places = np.arange(len(names))
    panel.barh(places, before, color=_LIGHT, label="before", height=0.8)
    panel.barh(places, after, color=_BLUE, label="after", height=0.8)
    for place, old, new in zip(places, before, after, strict=True):
        panel.annotate(f"{new} of {old}", (old, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    panel.set_yticks(places, names, fontsize=8)
    panel.invert_yaxis()
    panel.set_xlim(right=max(before) * 1.12)
    panel.set_xlabel("units" if len(names) == len(rounds[0].widths) else f"units of the {len(names)} groups that lost most")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.5 / figure.get_size_inches()[1]), ncols=2)
    return figure


def _scores(shown: dict[str, dict[str, list[float | None]]]) -> Figure:
    """Histograms of the scores of all units, one below the other, on one scale."""
    from matplotlib import pyplot

    found = {name: [value for values in groups.values() for value in values if value is not None] for name, groups in shown.items()}
    every = [value for values in found.values() for value in values] or [0.0]
    low, high = min(every), max(every)
    figure, panels = pyplot.subplots(
        len(found), 1, figsize=(7, 0.6 + 2.2 * len(found)), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (name, values) in zip(panels[:, 0], found.items(), strict=True):
        panel.hist(values, bins=40, range=(low, high if high > low else low + 1), color=_BLUE)
        panel.set_title(f"{name} ({len(values):,} units)", loc="left", fontsize=10)
        panel.set_ylabel("units")
        _plain(panel)
    panels[-1, 0].set_xlabel("score")
    return figure


def _plain(panel: Axes) -> None:
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
