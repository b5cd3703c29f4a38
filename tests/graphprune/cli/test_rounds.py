"""How rounds are shown: a table with the columns that say something, lines where there is no terminal, bars where there is one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from graphprune.cli.output import Output
from graphprune.cli.rounds import Lines, Screen, Several, rounds_table, watching
from graphprune.runs.history import Round
from graphprune.training.trainer import Progress

DENSE = Round(0, "dense", 0.9, 1000, 4000, 5)
CUT = Round(1, "accepted", 0.88, 700, 2000, 7, values={"threshold": 0.25, "step": 0.125})
BACK = Round(2, "rolled back", None, 500, 1500, 9, latency=1.25, values={"threshold": 0.5}, note="The loss is nan.")


def _console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=160, force_terminal=terminal, color_system=None, markup=False, highlight=False)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_the_columns_that_say_something() -> None:
    console = _console()
    console.print(rounds_table([DENSE, CUT]))
    lines = [line.split() for line in _text(console).splitlines()]
    assert ["round", "status", "accuracy", "params", "MACs", "epochs", "by"] in lines
    assert ["1", "accepted", "88.00%", "70.0%", "50.0%", "7", "threshold", "0.25,", "step", "0.125"] in lines
    console = _console()
    console.print(rounds_table([DENSE, CUT, BACK]))
    assert "latency" in _text(console) and "1.25 ms" in _text(console) and "The loss is nan." in _text(console)


def test_shares_are_of_the_first_round_however_many_rows_are_shown() -> None:
    console = _console()
    console.print(rounds_table([DENSE, CUT, BACK], last=1))
    assert "50.0%" in _text(console) and "37.5%" in _text(console) and "accepted" not in _text(console)


def test_without_a_terminal_there_is_one_line_for_each_round() -> None:
    console = _console()
    lines = Lines(console)
    lines.working("Training", 0)
    lines.epoch(1, 2)
    lines.batch(Progress(0, 1, 2, 0.5))
    lines.round(DENSE, repeated=True)
    lines.round(CUT, repeated=False)
    assert _text(console).splitlines() == [
        "round 0, dense, accuracy 90.00%, params 100.0%, MACs 100.0%, epochs 5 (done before)",
        "round 1, accepted, accuracy 88.00%, params 70.0%, MACs 50.0%, epochs 7, threshold 0.25, step 0.125",
    ]


def test_on_a_terminal_bars_follow_the_step_its_epochs_and_their_batches() -> None:
    console = _console(terminal=True)
    screen = Screen(console, 3)
    screen.round(DENSE, repeated=False)
    screen.working("Training the dense model", 4)
    screen.batch(Progress(7, 20, 40, 0.123456))
    screen.epoch(2, 5)
    console.print(screen.picture())
    shown = _text(console)
    for part in (
        "dense",
        "Training the dense model (step 5)",
        "1/3",
        "Epochs",
        "2/5",
        "Epoch 7 of the schedule, loss 0.123",
        "20/40",
    ):
        assert part in shown
    screen.working("Evaluating", 5)  # the bars of the step before go
    console = _console(terminal=True)
    console.print(screen.picture())
    assert "Epochs" not in _text(console) and "Evaluating (step 6)" in _text(console)


@pytest.mark.parametrize(("quiet", "as_json", "lines"), [(False, False, 1), (False, True, 1), (True, False, 0), (True, True, 0)])
def test_rounds_go_to_standard_error_unless_only_errors_are_wanted(
    quiet: bool, as_json: bool, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Output(as_json, quiet) as output, watching(output, None) as view:
        Several([view, view][:1]).round(DENSE, repeated=False)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == lines


def test_several_watches_are_told_the_same() -> None:
    consoles = [_console(), _console()]
    several = Several([Lines(console) for console in consoles])
    several.working("Training", 0)
    several.epoch(1, 1)
    several.round(CUT, repeated=False)
    assert _text(consoles[0]) == _text(consoles[1]) != ""


def test_on_a_narrow_terminal_times_are_whole_and_what_is_done_takes_more_lines() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    screen = Screen(console, 3)
    screen.working("Training with the penalty", 6)
    shown = Console(file=io.StringIO(), width=60, color_system=None)
    shown.print(screen.picture())
    assert "0/3 0:00:00 left -:--:--" in _text(shown) and "…" not in _text(shown)
