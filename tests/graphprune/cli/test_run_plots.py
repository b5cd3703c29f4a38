"""Pictures of a run: each has what it is to show, and what is not there is not drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from graphprune.cli import run_plots
from graphprune.runs.history import Round

ROUNDS = [
    Round(0, "dense", 0.9, 1000, 4000, 5, widths={"stem": 16, "body": 32}),
    Round(1, "accepted", 0.91, 700, 2000, 7, widths={"stem": 12, "body": 20}),
    Round(2, "rolled back", 0.5, 300, 900, 9, widths={"stem": 3, "body": 2}),
]


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for panel in figure.axes for text in panel.texts]


def test_files_are_of_the_format_and_hold_what_there_is(tmp_path: Path) -> None:
    made = run_plots.draw(tmp_path, ROUNDS, "svg")
    assert [path.name for path in made] == ["rounds.svg", "widths.svg"]
    assert all(path.read_text().startswith("<?xml") for path in made)
    (tmp_path / "scores.json").write_text(json.dumps({"before": {"stem": [1.0, None]}, "after": {"stem": [0.0, 2.0]}}))
    assert [path.name for path in run_plots.draw(tmp_path, ROUNDS, "png")] == ["rounds.png", "widths.png", "scores.png"]


def test_rounds_without_accuracies_or_widths_are_not_drawn(tmp_path: Path) -> None:
    assert run_plots.draw(tmp_path, [replace(row, accuracy=None, widths={}) for row in ROUNDS], "png") == []


def test_rounds_that_were_taken_back_are_marked_and_off_the_line() -> None:
    figure = run_plots._rounds(ROUNDS)
    for panel, sizes in zip(figure.axes, ([1.0, 0.7], [1.0, 0.5]), strict=True):
        lines = {str(line.get_label()): line for line in panel.lines}
        assert list(lines["rolled back"].get_ydata()) == [0.5] and lines["rolled back"].get_marker() == "x"
        path = next(line for line in panel.lines if list(line.get_xdata()) == sizes)
        assert list(path.get_ydata()) == [0.9, 0.91]


def test_widths_are_those_of_the_first_round_and_of_the_last_that_stayed() -> None:
    assert _texts(run_plots._widths(ROUNDS)) == ["12 of 16", "20 of 32"]


def test_of_many_groups_those_that_lost_most_are_shown() -> None:
    names = [f"g{n}" for n in range(run_plots._MOST + 5)]
    first = replace(ROUNDS[0], widths=dict.fromkeys(names, 100))
    last = replace(ROUNDS[1], widths={name: n for n, name in enumerate(names)})
    assert _texts(run_plots._widths([first, last])) == [f"{n} of 100" for n in range(run_plots._MOST)]


def test_scores_of_all_stages_share_one_scale_and_leave_out_what_has_none() -> None:
    figure = run_plots._scores({"before": {"a": [1.0, None, 3.0]}, "after": {"a": [0.0, 0.0, 10.0]}})
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["before (2 units)", "after (3 units)"]
    assert [sum(bar.get_height() for bar in panel.patches) for panel in figure.axes] == [2, 3]  # type: ignore[attr-defined]
    assert len({panel.get_xlim() for panel in figure.axes}) == 1
