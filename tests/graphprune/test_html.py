"""What notebooks show: well-formed, escaped, small, and without colours of its own."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

import graphprune


class Reader(HTMLParser):
    """Reads rows of cells and the text, and insists on balanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.styles: set[str] = set()
        self.states: list[bool] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.styles |= {value or "" for name, value in attributes if name == "style"}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "details":
            self.states.append(("open", None) in attributes)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def result() -> graphprune.PruneResult:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    return graphprune.prune(model, torch.zeros(1, 8), target="channels=50%", source="<script>alert(1)</script> & more")


def shown(thing: Any) -> Reader:
    return Reader(thing._repr_html_())


def test_a_result_shows_costs_widths_and_the_proof(result: graphprune.PruneResult) -> None:
    read = shown(result)
    assert ["parameters", "420", "212", "50.5%"] in read.rows and ["0", "32", "16", "50.0%"] in read.rows
    assert "Verified against the masked original" in read.text and "select{" in read.text


def test_what_comes_from_outside_is_escaped(result: graphprune.PruneResult) -> None:
    html = result._repr_html_()
    assert "<script" not in html and "<script>alert(1)</script> & more" in shown(result).text
    assert "<script" not in graphprune.capture(nn.Linear(2, 2), torch.zeros(1, 2), source="<script>")._repr_html_()


def test_groups_and_one_group_show_what_can_go_and_why_not(result: graphprune.PruneResult) -> None:
    assert ["0", "32", "1", "3"] in shown(result.groups).rows
    assert any(row[0] == "2" and "it reaches the model's output" in row[2] for row in shown(result.groups).rows if len(row) == 3)
    first, last = result.groups["2"]
    assert ["2.weight", "1", "1"] in shown(first).rows and "can be pruned" in shown(first).text
    assert "must stay: it reaches the model's output" in shown(last).text


def test_a_plan_shows_its_cuts_and_how_it_was_made(result: graphprune.PruneResult) -> None:
    read = shown(result.plan)
    assert ["2.weight", "1", "16"] in read.rows and any(row[:1] == ["pipeline"] for row in read.rows)
    assert "Plan that cuts 3 of 4 tensors" in read.text


def test_a_program_shows_what_was_captured() -> None:
    program = graphprune.capture(nn.Linear(2, 3), torch.zeros(1, 2), source="mine")
    read = shown(program)
    assert ["inputs", "float32[1x2]"] in read.rows and ["tensors", "2, of 9 elements"] in read.rows
    assert "Program of mine" in read.text and not any(row[0] == "plan" for row in read.rows)


def test_it_takes_its_colours_from_the_page(result: graphprune.PruneResult) -> None:
    """So that it is readable in light and dark."""
    for thing in (result, result.plan, result.groups):
        assert all("color" not in style and "background" not in style and "font" not in style for style in shown(thing).styles)


def test_long_tables_are_folded() -> None:
    layers = [nn.Linear(4, 4) for _ in range(20)]
    result = graphprune.prune(nn.Sequential(*layers), torch.zeros(1, 4), target="channels=50%")
    assert shown(result).states == [False]
    assert len(result._repr_html_()) < 20_000
