"""Pictures of a run: accuracy against size, widths before and after, scores before and after a regularisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from graphprune.cli.pictures import picture
from graphprune.errors import RunError
from graphprune.files import read_text
from graphprune.runs.history import Round

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Scores: TypeAlias = Mapping[str, Mapping[str, Sequence[float | None]]]

_SCORES: Final = TypeAdapter(dict[str, dict[str, list[FiniteFloat | None]]])

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
    (folder / "plots").mkdir(exist_ok=True)
    made = [folder / "plots" / f"{name}.{kind}" for name in ("rounds", "widths", "scores")]
    drawn = [_draw_rounds(made[0], rounds), _draw_widths(made[1], rounds), _draw_scores(made[2], folder / "scores.json")]
    return [path for path, there in zip(made, drawn, strict=True) if there]


def _draw_rounds(path: Path, rounds: Sequence[Round]) -> bool:
    if all(row.accuracy is None for row in rounds):
        return False
    with picture(path, 1, 2, (10, 4.2)) as (_, axes):
        axes[0, 1].sharey(axes[0, 0])
        for panel, kind, title in zip(axes[0], ("params", "macs"), ("parameters", "MACs"), strict=True):
            fill_rounds(panel, rounds, kind)
            panel.set_xlabel(f"{title} that remain")
        axes[0, 0].set_ylabel("accuracy on validation data")
        axes[0, 1].tick_params(labelleft=False)
        axes[0, 1].legend(frameon=False, loc="best")
    return True


def fill_rounds(panel: Axes, rounds: Sequence[Round], kind: str) -> None:
    """Accuracy against a cost, ``params`` or ``macs``, round by round; rounds that were taken back are off the line."""
    from matplotlib.ticker import PercentFormatter

    known = [
        (getattr(row, kind) / getattr(rounds[0], kind), row.accuracy, row.status) for row in rounds if row.accuracy is not None
    ]
    panel.axhline(known[0][1], color=_GREY, linestyle=":", linewidth=1, zorder=0)
    stayed = [(size, accuracy) for size, accuracy, status in known if status != "rolled back"]
    panel.plot(*np.transpose(stayed), color=_LIGHT, linewidth=2, zorder=1)
    for status, look in _LOOKS.items():
        at = [(size, accuracy) for size, accuracy, other in known if other == status]
        if at:
            panel.plot(*np.transpose(at), linestyle="none", label=status, zorder=2, **look)
    panel.invert_xaxis()
    panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    _plain(panel)


def _draw_widths(path: Path, rounds: Sequence[Round]) -> bool:
    if not rounds or not rounds[0].widths:
        return False
    with picture(path, 1, 1, (8, 1.2 + 0.26 * min(len(rounds[0].widths), _MOST))) as (figure, axes):
        fill_widths(axes[0, 0], rounds)
        above = 1.0 + 0.5 / figure.get_size_inches()[1]
        axes[0, 0].legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, above), ncols=2)
    return True


def fill_widths(panel: Axes, rounds: Sequence[Round]) -> None:
    """Units of every group in the first round and in the last that stayed, as bars; of many groups those that lost most."""
    first, last = rounds[0].widths, next((row for row in reversed(rounds) if row.status != "rolled back"), rounds[0]).widths
    lost = sorted(first, key=lambda name: last[name] - first[name])[:_MOST]
    names = [name for name in first if name in lost]
    places = np.arange(len(names))
    panel.barh(places, [first[name] for name in names], color=_LIGHT, label="before", height=0.8)
    panel.barh(places, [last[name] for name in names], color=_BLUE, label="after", height=0.8)
    for place, name in enumerate(names):
        at, text = (first[name], place), f"{last[name]} of {first[name]}"
        panel.annotate(text, at, (4, 0), textcoords="offset points", va="center", fontsize=8)
    panel.set_yticks(places, names, fontsize=8)
    panel.set_ylim(len(names) - 0.4, -0.6)  # the first group on top
    panel.set_xlim(right=1.12 * max(first.values()))
    panel.set_xlabel("units" if len(names) == len(first) else f"units of the {len(names)} groups that lost most")
    panel.spines[["top", "right"]].set_visible(False)


def _draw_scores(path: Path, scores: Path) -> bool:
    if not scores.is_file():
        return False
    try:
        shown = _SCORES.validate_json(read_text(scores, "scores", RunError))
    except ValidationError as error:
        raise RunError(f"{scores} is damaged. Delete it, and run the same command again.") from error
    if not shown:
        return False
    with picture(path, len(shown), 1, (7, 0.6 + 2.2 * len(shown))) as (_, axes):
        fill_scores(axes[:, 0].tolist(), shown)
    return True


def fill_scores(panels: Sequence[Axes], shown: Scores) -> None:
    """Histograms of the scores of all units, one below the other, on one scale."""
    found = {name: [value for values in groups.values() for value in values if value is not None] for name, groups in shown.items()}
    every = [value for values in found.values() for value in values] or [0.0]
    low, high = min(every), max(every)
    for panel, (name, values) in zip(panels, found.items(), strict=True):
        if panel is not panels[0]:
            panel.sharey(panels[0])
        panel.hist(values, bins=40, range=(low, high if high > low else low + 1), color=_BLUE)
        panel.set_title(f"{name} ({len(values):,} units)", loc="left", fontsize=10)
        panel.set_ylabel("units")
        _plain(panel)
    panels[-1].set_xlabel("score")


def _plain(panel: Axes) -> None:
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
