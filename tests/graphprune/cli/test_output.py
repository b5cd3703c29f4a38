"""Tables are readable on screens of any width."""

from __future__ import annotations

import pytest

from graphprune.cli.output import Output
from graphprune.cli.tables import folded, plain_table

NAME = "stages.0.blocks.1.conv"


def _shown(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str = NAME) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    table = plain_table("width", "group", *(f"#figure {number}" for number in range(5)), "spark")
    table.columns[-1].no_wrap = True
    for row in range(2):
        table.add_row("w0", folded(name), *(f"{row}23,456,789" for _ in range(5)), "▁▂▇▂█▂▃▁▂▁" * 2)
    with Output() as output:
        output.show(table)
        assert output._screen.width == width
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("width", [20, 60, 90])
def test_words_and_figures_stay_whole_where_the_screen_is_narrow(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of single letters, or a figure without its end, cannot be read; lines that the terminal breaks can."""
    lines = _shown(width, capsys, monkeypatch)
    assert lines[2].split() == ["w0", NAME, *["023,456,789"] * 5, "▁▂▇▂█▂▃▁▂▁" * 2]


def test_a_long_name_is_folded_where_the_screen_is_narrow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = _shown(60, capsys, monkeypatch, "model.encoder.layers.11.self_attention")
    assert lines[2].split()[1:2] + lines[3].split() == ["model.encoder.layers.11.", "self_attention"]


@pytest.mark.parametrize(("width", "gap"), [(123, 3), (122, 2), (116, 2), (115, 1), (109, 1), (108, 3)])
def test_columns_come_closer_where_that_makes_the_table_fit(
    width: int, gap: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = _shown(width, capsys, monkeypatch)
    assert " " * gap + "▁" in lines[2] and " " * (gap + 1) + "▁" not in lines[2]


def test_a_table_that_fits_is_as_it_was(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _shown(200, capsys, monkeypatch)
    assert lines[2].split()[1] == NAME and len(lines) == 4 and max(map(len, lines)) < 140
