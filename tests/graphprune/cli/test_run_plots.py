"""Pictures of a run: each has what it is to show, and what is not there is not drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from graphprune.cli import run_plots
from graphprune.errors import RunError
from graphprune.runs.history import Round

ROUNDS = [
    Round(0, "dense", 0.9, 1000, 4000, 5, widths={"stem": 16, "body": 32}),
    Round(1, "accepted", 0.91, 700, 2000, 7, widths={"stem": 12, "body": 20}),
    Round(2, "rolled back", 0.5, 300, 900, 9, widths={"stem": 3, "body": 2}),
]


def _panels(count: int = 1) -> list[Axes]:
    figure = Figure()
    return [figure.add_subplot(count, 1, place + 1) for place in range(count)]


def _points(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def test_files_are_of_the_format_and_hold_what_there_is(tmp_path: Path) -> None:
    made = run_plots.draw(tmp_path, ROUNDS, "svg")
    assert [path.name for path in made] == ["rounds.svg", "widths.svg"]
    assert all(path.read_text().startswith("<?xml") for path in made)
    (tmp_path / "scores.json").write_text(json.dumps({"before": {"stem": [1.0, None]}, "after": {"stem": [0.0, 2.0]}}))
    assert [path.name for path in run_plots.draw(tmp_path, ROUNDS, "png")] == ["rounds.png", "widths.png", "scores.png"]


def test_rounds_without_accuracies_or_widths_are_not_drawn(tmp_path: Path) -> None:
    assert run_plots.draw(tmp_path, [replace(row, accuracy=None, widths={}) for row in ROUNDS], "png") == []


@pytest.mark.parametrize(("kind", "size", "back"), [("params", 0.7, 0.3), ("macs", 0.5, 0.225)])
def test_rounds_that_were_taken_back_are_marked_and_off_the_line(kind: str, size: float, back: float) -> None:
    (panel,) = _panels()
    run_plots.fill_rounds(panel, ROUNDS, kind)
    lines = {str(line.get_label()): line for line in panel.lines}
    assert _points(lines["rolled back"]) == [(back, 0.5)] and lines["rolled back"].get_marker() == "x"
    assert [(1.0, 0.9), (size, 0.91)] in [_points(line) for line in panel.lines]


def test_widths_are_those_of_the_first_round_and_of_the_last_that_stayed() -> None:
    (panel,) = _panels()
    run_plots.fill_widths(panel, ROUNDS)
    assert [text.get_text() for text in panel.texts] == ["12 of 16", "20 of 32"]


def test_of_many_groups_those_that_lost_most_are_shown() -> None:
    names = [f"g{n}" for n in range(run_plots._MOST + 5)]
    first = replace(ROUNDS[0], widths=dict.fromkeys(names, 100))
    last = replace(ROUNDS[1], widths={name: n for n, name in enumerate(names)})
    (panel,) = _panels()
    run_plots.fill_widths(panel, [first, last])
    assert [text.get_text() for text in panel.texts] == [f"{n} of 100" for n in range(run_plots._MOST)]


def test_scores_of_all_stages_share_one_scale_and_leave_out_what_has_none() -> None:
    panels = _panels(2)
    run_plots.fill_scores(panels, {"before": {"a": [1.0, None, 3.0]}, "after": {"a": [0.0, 0.0, 10.0]}})
    assert [panel.get_title(loc="left") for panel in panels] == ["before (2 units)", "after (3 units)"]
    assert [sum(bar.get_height() for bar in panel.containers[0]) for panel in panels] == [2, 3]
    assert len({panel.get_xlim() for panel in panels}) == len({panel.get_ylim() for panel in panels}) == 1


def test_scores_that_are_damaged_are_refused_and_none_are_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"before": {"stem": "x"}}')
    with pytest.raises(RunError, match=r"scores\.json is damaged"):
        run_plots.draw(tmp_path, [], "png")
    (tmp_path / "scores.json").write_text("{}")
    assert run_plots.draw(tmp_path, [], "png") == []
